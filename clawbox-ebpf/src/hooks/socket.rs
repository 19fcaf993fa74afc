//! A socket's birth, its port and its end: only kinds that can be judged are made, and a
//! sandbox's listeners are known for as long as they live.

use aya_ebpf::{
    bindings::{BPF_SK_STORAGE_GET_F_CREATE, bpf_sock},
    helpers::generated::{bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_sk_storage_get},
    macros::cgroup_sock,
    programs::SockContext,
};
use clawbox_common::{address::Address, decide, event::Kind, rule::ListenerKey, subject::Standing};
use core::ptr::read_volatile;

use crate::{
    emit,
    maps::{KernelLookup, LISTENER_OF, LISTENERS},
    subject,
};

#[cgroup_sock(sock_create)]
pub fn sock_create(ctx: SockContext) -> i32 {
    let standing = subject::standing();
    if matches!(standing, Standing::Outside) {
        return 1;
    }
    // SAFETY: the context pointer of this program.
    let (kind, protocol) = unsafe {
        (
            read_volatile(&raw const (*ctx.sock).type_),
            read_volatile(&raw const (*ctx.sock).protocol),
        )
    };
    let decision = decide::socket(&KernelLookup, &standing, kind, protocol);
    // An allowed socket says nothing yet: what it is used for is recorded by its own hook.
    if !decision.goes_on() || !matches!(decision.verdict, clawbox_common::verdict::Verdict::Allow) {
        emit::network(Kind::Socket, &standing, &decision, |event| {
            event.port = kind as u16;
            event.protocol = protocol;
        });
    }
    i32::from(decision.goes_on()) & 1
}

/// What `LISTENER_OF` keeps with a socket.
#[inline(always)]
fn listener_of(sock: *mut bpf_sock, flags: u64) -> *mut ListenerKey {
    let map = (&raw const LISTENER_OF).cast_mut().cast();
    // SAFETY: for these programs the helper takes the context in the socket's place.
    unsafe { bpf_sk_storage_get(map, sock.cast(), core::ptr::null_mut(), flags) }.cast()
}

/// The port is known here, also where the kernel chose it.
#[inline(always)]
fn bound(sock: *mut bpf_sock, address: Address) -> i32 {
    let Standing::Subject(subject) = subject::standing() else { return 1 };
    // SAFETY: the context pointer of this program.
    let (protocol, port) = unsafe {
        (read_volatile(&raw const (*sock).protocol), read_volatile(&raw const (*sock).src_port))
    };
    let Some(transport) = decide::transport_of(protocol) else { return 1 };
    // SAFETY: the helpers take the context.
    let (netns, cookie) =
        unsafe { (bpf_get_netns_cookie(sock.cast()), bpf_get_socket_cookie(sock.cast())) };
    let port = port as u16;
    let key = ListenerKey { netns, port, transport, zero: 0, sandbox: subject.sandbox, address };
    // The way back first: an entry that cannot be found again when its socket goes must not exist.
    let kept = listener_of(sock, u64::from(BPF_SK_STORAGE_GET_F_CREATE));
    if !kept.is_null() {
        // SAFETY: not null, and a whole value of the map.
        unsafe { *kept = key };
        // Without memory the sandbox cannot reach its own listener: a deny, not an allow.
        let _ = LISTENERS.insert(key, cookie, 0);
    }
    1
}

#[cgroup_sock(post_bind4)]
pub fn post_bind4(ctx: SockContext) -> i32 {
    // SAFETY: the context pointer of this program, whose kind may read this field.
    bound(ctx.sock, Address::v4(unsafe { read_volatile(&raw const (*ctx.sock).src_ip4) }))
}

#[cgroup_sock(post_bind6)]
pub fn post_bind6(ctx: SockContext) -> i32 {
    // SAFETY: as above; a word at a time, as the verifier wants it.
    let words = unsafe {
        [
            read_volatile(&raw const (*ctx.sock).src_ip6[0]),
            read_volatile(&raw const (*ctx.sock).src_ip6[1]),
            read_volatile(&raw const (*ctx.sock).src_ip6[2]),
            read_volatile(&raw const (*ctx.sock).src_ip6[3]),
        ]
    };
    bound(ctx.sock, Address { words })
}

#[cgroup_sock(sock_release)]
pub fn sock_release(ctx: SockContext) -> i32 {
    let kept = listener_of(ctx.sock, 0);
    if !kept.is_null() {
        // SAFETY: not null, and a whole value of the map, written by the socket's own bind.
        let key = unsafe { *kept };
        let _ = LISTENERS.remove(key);
    }
    1
}

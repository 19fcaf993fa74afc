//! A socket's birth, its port and its end: only kinds that can be judged are made, and a
//! sandbox's listeners are known for as long as they live.

use aya_ebpf::{
    bindings::bpf_sock,
    helpers::generated::{bpf_get_netns_cookie, bpf_get_socket_cookie},
    macros::cgroup_sock,
    programs::SockContext,
};
use clawbox_common::{
    address::Address, decide, event::Kind, rule::ListenerKey, subject::Standing,
};
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
    // Cookie first: an entry that cannot be found again when its socket goes must not exist.
    if LISTENER_OF.insert(cookie, key, 0).is_ok() {
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
    // SAFETY: the helper takes the context.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.sock.cast()) };
    // SAFETY: an entry is written once, by the socket's own bind.
    if let Some(key) = unsafe { LISTENER_OF.get(cookie) } {
        let key = *key;
        let _ = LISTENERS.remove(key);
        let _ = LISTENER_OF.remove(cookie);
    }
    1
}

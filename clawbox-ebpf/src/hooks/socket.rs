//! A socket's birth and its port: only kinds that can be judged are made, and a socket knows which
//! sandbox has bound it.

use aya_ebpf::{
    bindings::BPF_SK_STORAGE_GET_F_CREATE, helpers::generated::bpf_sk_storage_get,
    macros::cgroup_sock, programs::SockContext,
};
use clawbox_common::{decide, event::Kind, subject::Standing};
use core::ptr::read_volatile;

use crate::{
    emit,
    maps::{BOUND_BY, KernelLookup},
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

/// Writes down whose the socket is.
#[inline(always)]
fn bound(ctx: &SockContext) -> i32 {
    let Standing::Subject(subject) = subject::standing() else { return 1 };
    let map = (&raw const BOUND_BY).cast_mut().cast();
    let create = u64::from(BPF_SK_STORAGE_GET_F_CREATE);
    // SAFETY: for these programs the helper takes the context in the socket's place. Without memory
    // the sandbox cannot reach its own listener: a deny, not an allow.
    unsafe {
        let kept = bpf_sk_storage_get(map, ctx.sock.cast(), core::ptr::null_mut(), create);
        if !kept.is_null() {
            *kept.cast::<u32>() = subject.sandbox;
        }
    }
    1
}

#[cgroup_sock(post_bind4)]
pub fn post_bind4(ctx: SockContext) -> i32 {
    bound(&ctx)
}

#[cgroup_sock(post_bind6)]
pub fn post_bind6(ctx: SockContext) -> i32 {
    bound(&ctx)
}

//! A socket's birth and its port: only kinds that can be judged are made, and a socket knows which
//! sandbox has bound it.

use aya_ebpf::{
    helpers::generated::bpf_get_socket_cookie,
    macros::{cgroup_sock, lsm},
    programs::{LsmContext, SockContext},
};
use clawbox_common::{decide, event::Kind, subject::Standing};
use core::ptr::read_volatile;

use super::verdict::eperm;
use crate::{
    contact::{self, Contact},
    maps::{KernelLookup, SOCKETS},
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
        let contact = Contact { port: kind as u16, protocol, ..Contact::default() };
        contact::network(Kind::Socket, &standing, &decision, &contact);
    }
    i32::from(decision.goes_on()) & 1
}

/// `(family, type, protocol, kern)`: the families that no cgroup hook sees.
#[lsm(hook = "socket_create")]
pub fn socket_create(ctx: LsmContext) -> i32 {
    let (family, kind): (u32, u32) = (ctx.arg(0), ctx.arg(1));
    let (protocol, is_kernels): (u32, u32) = (ctx.arg(2), ctx.arg(3));
    let standing = subject::standing();
    if matches!(standing, Standing::Outside) || is_kernels != 0 {
        return 0;
    }
    let decision = decide::family(&KernelLookup, &standing, family, protocol);
    if !matches!(decision.verdict, clawbox_common::verdict::Verdict::Allow) {
        let contact = Contact { port: kind as u16, protocol, family, ..Contact::default() };
        contact::network(Kind::Socket, &standing, &decision, &contact);
    }
    eperm(decision.goes_on())
}

/// Writes down whose the socket is.
#[inline(always)]
fn bound(ctx: &SockContext) -> i32 {
    let Standing::Subject(subject) = subject::standing() else { return 1 };
    // SAFETY: for these programs the helpers take the context in the socket's place. Without memory
    // the sandbox cannot reach its own listener: a deny, not an allow.
    unsafe {
        let kept = SOCKETS.of(ctx.sock.cast(), true);
        if !kept.is_null() {
            (*kept).bound_by = subject.sandbox;
            (*kept).bound_as = bpf_get_socket_cookie(ctx.sock.cast());
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

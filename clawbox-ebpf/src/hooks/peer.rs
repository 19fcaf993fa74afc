//! What a process is shown of the other side: the address it asked for, not the one behind it.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};

use super::address::{address_of, port_of, set, socket};
use crate::maps::SOCKETS;

/// Shows the asked address where the real one is seen. Never refuses: nothing leaves here.
#[inline(always)]
fn show_asked(ctx: &SockAddrContext, v4: bool) -> i32 {
    // SAFETY: the context's socket; the storage lives as long as it.
    let kept = unsafe { SOCKETS.of(socket(ctx), false) };
    if kept.is_null() {
        return 1;
    }
    // SAFETY: not null, and a whole value of the map.
    let kept = unsafe { *kept };
    let seen = address_of(ctx.sock_addr, v4);
    if seen == kept.real && port_of(ctx.sock_addr) == kept.real_port {
        set(ctx.sock_addr, v4, kept.asked, kept.asked_port);
    }
    1
}

#[cgroup_sock_addr(recvmsg4)]
pub fn recvmsg4(ctx: SockAddrContext) -> i32 {
    show_asked(&ctx, true)
}

#[cgroup_sock_addr(recvmsg6)]
pub fn recvmsg6(ctx: SockAddrContext) -> i32 {
    show_asked(&ctx, false)
}

#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(ctx: SockAddrContext) -> i32 {
    show_asked(&ctx, true)
}

#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(ctx: SockAddrContext) -> i32 {
    show_asked(&ctx, false)
}

//! Listening that no cgroup hook sees: `listen` without `bind`, where the kernel chooses the port, and
//! connections taken from a listener that somebody outside has handed in.

use aya_ebpf::{macros::lsm, programs::LsmContext};
use clawbox_common::{
    decide::{self, Destination},
    event::Kind,
    rule::TCP,
    subject::Standing,
};

use super::verdict::eperm;
use crate::{
    contact::{self, Contact},
    kernel_read::{self, Kernel},
    maps::{KernelLookup, SOCKETS},
    subject,
};

/// `(socket, backlog)`.
#[lsm(hook = "socket_listen")]
pub fn socket_listen(ctx: LsmContext) -> i32 {
    // SAFETY: the argument is a socket.
    let socket = unsafe { Kernel::new(ctx.arg(0)) };
    let standing = subject::standing();
    if matches!(standing, Standing::Outside) || !kernel_read::is_unbound(socket) {
        return 0;
    }
    let decision = decide::listen_unbound(&KernelLookup, &standing);
    let contact = Contact { transport: TCP, ..Contact::default() };
    contact::network(Kind::Bind, &standing, &decision, &contact);
    eperm(decision.goes_on())
}

/// `(sock, parent)`: `accept` has taken a connection. One from a listener of a sandbox's own has a copy of
/// what was kept of that. One from a listener that was handed in, as systemd does, has nothing, and would
/// be judged by where it leads to, as if it had been made from here: where the policy would have let
/// the sandbox listen itself, it is as if it had.
#[lsm(hook = "sock_graft")]
pub fn sock_graft(ctx: LsmContext) -> i32 {
    let standing = subject::standing();
    let Standing::Subject(subject) = standing else { return 0 };
    // SAFETY: the argument is a sock.
    let sock = unsafe { Kernel::new(ctx.arg(0)) };
    let Some(end) = kernel_read::own_end(sock) else { return 0 };
    if decide::transport_of(end.protocol) != Some(TCP) {
        return 0;
    }
    let local =
        Destination { address: end.address, port: end.port, transport: TCP, zero: 0, receiver: 0 };
    if !decide::bind(&KernelLookup, &standing, &local).goes_on() {
        return 0;
    }
    // SAFETY: a typed socket. Without memory it stays judged as what was made from here.
    unsafe {
        let kept = SOCKETS.of(sock.for_helpers(), true);
        if !kept.is_null() && (*kept).bound_by == 0 {
            (*kept).bound_by = subject.sandbox;
            // No socket's: it was taken.
            (*kept).bound_as = 0;
        }
    }
    0
}

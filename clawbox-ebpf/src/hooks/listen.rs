//! `listen` without `bind`, which no cgroup hook sees: the kernel then chooses the port.

use aya_ebpf::{macros::lsm, programs::LsmContext};
use clawbox_common::{decide, event::Kind, rule::TCP, subject::Standing};

use super::verdict::eperm;
use crate::{
    emit,
    kernel_read::{self, Kernel},
    maps::KernelLookup,
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
    emit::network(Kind::Bind, &standing, &decision, |event| event.transport = TCP);
    eperm(decision.goes_on())
}

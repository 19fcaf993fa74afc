//! Other processes, and what the kernel lends to the privileged: no sandbox has business with
//! either. Seccomp and empty capabilities refuse most of it before; these hooks do not depend on
//! them, and they write it down.

use aya_ebpf::{macros::lsm, programs::LsmContext};
use clawbox_common::{
    decide::file,
    event::{Kind, Operation},
    subject::{FileId, Standing},
    verdict::Verdict,
};

use super::verdict::eperm;
use crate::{
    emit::{self, Deed},
    kernel_read::{self, Kernel},
    maps::KernelLookup,
    subject,
};

fn deed(operation: Operation, other: u32) -> Deed {
    Deed { kind: Kind::Privilege, operation, access: 0, object: FileId::default(), other }
}

#[inline(always)]
fn process(operation: Operation, other: Kernel) -> i32 {
    let standing = subject::standing();
    let theirs = match standing {
        Standing::Outside => return 0,
        _ => subject::sandbox_of(other),
    };
    // clawbox's own child passes signals on before it has an identity; afterwards this is a
    // process whose fork was not seen. Neither reaches beyond its sandbox.
    if matches!(standing, Standing::Unidentified)
        && theirs.is_some()
        && theirs == subject::sandbox_of_unidentified()
    {
        return 0;
    }
    let decision = file::process(&KernelLookup, &standing, theirs);
    if !matches!(decision.verdict, Verdict::Allow) {
        let deed = deed(operation, kernel_read::thread_group(other));
        emit::used(&standing, &decision, &deed, None);
    }
    eperm(decision.goes_on())
}

/// `(child, mode)`: also who reads another one's memory or environment by way of /proc.
#[lsm(hook = "ptrace_access_check")]
pub fn ptrace_access_check(ctx: LsmContext) -> i32 {
    // SAFETY: the argument is a task.
    process(Operation::Trace, unsafe { Kernel::new(ctx.arg(0)) })
}

/// `(task, info, signal, cred)`.
#[lsm(hook = "task_kill")]
pub fn task_kill(ctx: LsmContext) -> i32 {
    // SAFETY: the argument is a task.
    process(Operation::Signal, unsafe { Kernel::new(ctx.arg(0)) })
}

/// What needs rights that no sandbox has. The sandbox's own set-up, which has no identity yet,
/// goes on; it has given up its capabilities before anything else runs.
#[inline(always)]
fn privileged(operation: Operation) -> i32 {
    let standing = subject::standing();
    if !matches!(standing, Standing::Subject(_)) {
        return 0;
    }
    let decision = file::privileged(&KernelLookup, &standing);
    emit::used(&standing, &decision, &deed(operation, 0), None);
    eperm(decision.goes_on())
}

macro_rules! privilege_hook {
    ($($hook:ident = $operation:ident)*) => {
        $(
            #[lsm]
            pub fn $hook(_: LsmContext) -> i32 {
                privileged(Operation::$operation)
            }
        )*
    };
}

privilege_hook! {
    sb_mount = Mount
    sb_umount = Mount
    sb_remount = Mount
    sb_pivotroot = Mount
    move_mount = Mount
    userns_create = UserNamespace
    bpf = Bpf
    perf_event_open = Perf
    kernel_read_file = KernelImage
    kernel_load_data = KernelImage
    uring_override_creds = IoUring
    uring_sqpoll = IoUring
    path_chroot = Chroot
}

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
    emit::{self, Deed, Judged},
    kernel_read::{self, Kernel},
    maps::KernelLookup,
    subject,
};

fn deed(operation: Operation, other: u32) -> Deed {
    Deed { kind: Kind::Privilege, operation, access: 0, object: FileId::default(), other }
}

#[inline(always)]
fn is_self(task: Kernel) -> bool {
    kernel_read::thread_group(task) == kernel_read::thread_group(kernel_read::current())
}

#[inline(always)]
fn process(operation: Operation, other: Kernel) -> i32 {
    let standing = subject::standing();
    // What a process does to itself is its own affair; clawbox's child does some of it before it
    // has an identity.
    if matches!(standing, Standing::Outside) || is_self(other) {
        return 0;
    }
    let theirs = subject::sandbox_of(other);
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
        emit::used(&standing, Judged::by(&decision), &deed, None);
    }
    eperm(decision.goes_on())
}

/// `PTRACE_MODE_NOAUDIT`, linux/ptrace.h: what is asked only to know how much to show.
pub const NO_AUDIT: u32 = 4;

/// `(child, mode)`: also who reads another one's memory or environment by way of /proc.
#[lsm(hook = "ptrace_access_check")]
pub fn ptrace_access_check(ctx: LsmContext) -> i32 {
    // SAFETY: the argument is a task.
    let other = unsafe { Kernel::new(ctx.arg(0)) };
    let mode: u32 = ctx.arg(1);
    let standing = subject::standing();
    if matches!(standing, Standing::Outside) || is_self(other) {
        return 0;
    }
    let decision = file::reach(&KernelLookup, &standing, subject::of(other));
    if !matches!(decision.verdict, Verdict::Allow) && mode & NO_AUDIT == 0 {
        let deed = deed(Operation::Trace, kernel_read::thread_group(other));
        emit::used(&standing, Judged::by(&decision), &deed, None);
    }
    eperm(decision.goes_on())
}

/// `(task, info, signal, cred)`.
#[lsm(hook = "task_kill")]
pub fn task_kill(ctx: LsmContext) -> i32 {
    // SAFETY: the argument is a task.
    process(Operation::Signal, unsafe { Kernel::new(ctx.arg(0)) })
}

/// `(task, …)`: what one process sets for another.
macro_rules! process_hook {
    ($($hook:ident = $operation:ident)*) => {
        $(
            #[lsm]
            pub fn $hook(ctx: LsmContext) -> i32 {
                // SAFETY: the argument is a task.
                process(Operation::$operation, unsafe { Kernel::new(ctx.arg(0)) })
            }
        )*
    };
}

process_hook! {
    task_setrlimit = Limits
    task_setnice = Schedule
    task_setioprio = Schedule
    task_setscheduler = Schedule
    task_setpgid = ProcessGroup
    task_movememory = MoveMemory
}

/// `PR_SET_MM`, uapi/linux/prctl.h: among the rest, `/proc/PID/exe` can be made another file.
const PR_SET_MM: i32 = 35;

/// `(option, …)`. Zero lets the kernel go on: it then asks the hook's default, which knows no
/// option.
#[lsm(hook = "task_prctl")]
pub fn task_prctl(ctx: LsmContext) -> i32 {
    let option: i32 = ctx.arg(0);
    if option != PR_SET_MM {
        return 0;
    }
    privileged(Operation::ProcessImage)
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
    emit::used(&standing, Judged::by(&decision), &deed(operation, 0), None);
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
    uring_cmd = IoUring
    uring_allowed = IoUring
    key_alloc = Key
    key_permission = Key
    path_chroot = Chroot
}

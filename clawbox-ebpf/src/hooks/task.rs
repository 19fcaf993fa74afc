//! Process life: identities follow exec, fork and exit.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};

use crate::{
    emit,
    kernel_read::{self, Kernel},
    subject,
};

/// `(task, old_pid, bprm)`: the new program has not run an instruction yet.
#[btf_tracepoint(function = "sched_process_exec")]
pub fn task_exec(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: arguments 0 and 2 of this tracepoint are a task and a linux_binprm.
    let (task, bprm) = unsafe { (Kernel::new(ctx.arg(0)), Kernel::new(ctx.arg(2))) };
    if let Some(executed) = subject::exec(task, bprm) {
        emit::exec(task, bprm, &executed);
    }
    0
}

/// `(child)`: its first wake-up, by the task that made it (`kernel_clone`), under the lock of the run
/// queue, so that it cannot run before this returns. Nor can this be interrupted there: a program
/// that can be is not run again on its CPU until it goes on, and at `sched_process_fork` a busy host
/// made children of which nobody heard.
#[btf_tracepoint(function = "sched_wakeup_new")]
pub fn task_fork(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: argument 0 of this tracepoint is a task.
    let child = unsafe { Kernel::new(ctx.arg(0)) };
    subject::fork(kernel_read::current(), child);
    0
}

/// `(task)`: its number cannot be given out again before this returns.
#[btf_tracepoint(function = "sched_process_exit")]
pub fn task_exit(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: argument 0 of this tracepoint is a task.
    subject::exit(unsafe { Kernel::new(ctx.arg(0)) });
    0
}

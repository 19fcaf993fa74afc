//! System calls that came back refused, for kernels without BPF LSM: nobody else would tell what
//! Landlock and seccomp refuse; and those that reached a Unix socket, while a command is learned from. Runs
//! at every return of every process and judges nothing.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use clawbox_common::{
    event::{CALL_DONE, CALL_EACCES, CALL_EPERM, CALL_EXDEV},
    limits::CALL_NUMBERS,
    subject::Standing,
};

use crate::{
    emit::{self, Refused},
    kernel_read::{self, Kernel},
    maps::CALL_SHAPES,
    subject,
};

const EPERM: i64 = -1;
const EACCES: i64 = -13;
const EXDEV: i64 = -18;

/// Numbers from here on are x32 calls, which share a row.
const X32: u64 = 0x4000_0000;

/// The number of none: what sigreturn(2) leaves, with a result that is whatever the process had in the
/// register when a signal came (restore_sigcontext in arch/x86/kernel/signal_64.c). A process that asks for
/// this number itself gets nothing by it either, and is not told.
const NO_CALL: u64 = u64::MAX;

/// `AF_UNIX`.
const UNIX: u64 = 1;

/// `(registers, result)`.
#[btf_tracepoint(function = "sys_exit")]
pub fn call_exit(ctx: BtfTracePointContext) -> i32 {
    let result: i64 = ctx.arg(1);
    // Nearly every call of the host ends here.
    let told = match result {
        EPERM => CALL_EPERM,
        EACCES => CALL_EACCES,
        EXDEV => CALL_EXDEV,
        _ => return 0,
    };
    // SAFETY: argument 0 of this tracepoint is a pt_regs.
    returned(unsafe { Kernel::new(ctx.arg(0)) }, told, result.unsigned_abs() as u32);
    0
}

/// The same for calls that were not refused, at a cost for every call of the host: only while a command is
/// learned from, which needs no hook that this kernel may lack.
#[btf_tracepoint(function = "sys_exit")]
pub fn call_done(ctx: BtfTracePointContext) -> i32 {
    let result: i64 = ctx.arg(1);
    if result >= 0 {
        // SAFETY: as above.
        returned(unsafe { Kernel::new(ctx.arg(0)) }, CALL_DONE, 0);
    }
    0
}

#[inline(always)]
fn returned(registers: Kernel, told: u8, errno: u32) {
    let standing = subject::standing();
    // Who has no identity is clawbox's own child on its way to exec, or a process of which the
    // kernel did not tell; that is counted.
    if !matches!(standing, Standing::Subject(_)) {
        return;
    }
    let number = kernel_read::call_number(registers);
    if number == NO_CALL {
        return;
    }
    let row = if number >= X32 { u64::from(CALL_NUMBERS - 1) } else { number };
    let Some(shape) = CALL_SHAPES.get(row as u32) else { return };
    if shape.errnos & told == 0 {
        return;
    }
    let mut arguments = kernel_read::call_arguments(registers);
    if shape.inner != 0 {
        let mut at = match shape.inner {
            2 => arguments[1],
            5 => arguments[4],
            _ => arguments[2],
        };
        if shape.in_message != 0 {
            at = kernel_read::user_word(at);
            arguments[1] = at;
        }
        arguments[5] = kernel_read::user_word(at);
    }
    // Internet addresses have hooks, and records, of their own.
    if shape.skip != 0 && arguments[5] & 0xffff != UNIX {
        return;
    }
    let task = kernel_read::current();
    emit::call(&standing, &Refused { number: number as u32, errno, arguments, shape, task });
}

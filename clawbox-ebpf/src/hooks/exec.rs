//! What is executed: program starts, and mappings that a loader makes by hand.

use aya_ebpf::{macros::lsm, programs::LsmContext};
use clawbox_common::{event::Operation, subject::Standing};

use super::file::execution;
use crate::{
    kernel_read::{self, Kernel},
    subject,
};

/// `PROT_EXEC`, uapi/asm-generic/mman-common.h.
const PROT_EXEC: u64 = 4;

/// `(bprm)`: once for a script and again for each interpreter.
#[lsm(hook = "bprm_check_security")]
pub fn bprm_check_security(ctx: LsmContext) -> i32 {
    // SAFETY: the argument is a linux_binprm.
    let bprm = unsafe { Kernel::new(ctx.arg(0)) };
    // Who has no identity gets one by this exec; see `file_open`.
    if !matches!(subject::standing(), Standing::Subject(_)) {
        return 0;
    }
    execution(Operation::Start, kernel_read::bprm_file(bprm))
}

/// `(file, requested, protection, flags)`; without a file for anonymous memory.
#[lsm(hook = "mmap_file")]
pub fn mmap_file(ctx: LsmContext) -> i32 {
    // SAFETY: the argument is a file or null.
    let file = unsafe { Kernel::new(ctx.arg(0)) };
    let protection: u64 = ctx.arg(2);
    if file.is_null() || protection & PROT_EXEC == 0 {
        return 0;
    }
    if !matches!(subject::standing(), Standing::Subject(_)) {
        return 0;
    }
    execution(Operation::Map, file)
}

/// `(vma, requested, protection)`.
#[lsm(hook = "file_mprotect")]
pub fn file_mprotect(ctx: LsmContext) -> i32 {
    // SAFETY: the argument is a vm_area_struct.
    let vma = unsafe { Kernel::new(ctx.arg(0)) };
    let protection: u64 = ctx.arg(2);
    if protection & PROT_EXEC == 0 || !matches!(subject::standing(), Standing::Subject(_)) {
        return 0;
    }
    let file = kernel_read::vma_file(vma);
    if file.is_null() {
        return 0;
    }
    execution(Operation::Map, file)
}

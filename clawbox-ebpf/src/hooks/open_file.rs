//! Files that are open already: what a changed policy says of reading, writing and mapping them.
//! Attached when a policy first changes; until then what was opened was judged when it was.

use aya_ebpf::{macros::lsm, programs::LsmContext};
use clawbox_common::{
    event::Operation,
    file::{READ, WRITE},
};

use super::{
    file::{judged, opened},
    verdict::eacces,
};
use crate::kernel_read::{self, Kernel, Untyped};

/// `MAY_WRITE`, linux/fs.h.
const MAY_WRITE: u32 = 2;

/// `MAP_PRIVATE`, uapi/linux/mman.h: what is written to it does not reach the file.
const MAP_PRIVATE: u64 = 2;
/// `PROT_WRITE`, uapi/asm-generic/mman-common.h.
const PROT_WRITE: u64 = 2;

/// `(file, mask)`: each read and write, and each look into a directory.
#[lsm(hook = "file_permission")]
pub fn file_permission(ctx: LsmContext) -> i32 {
    // SAFETY: the argument is a file.
    let file = unsafe { Kernel::new(ctx.arg(0)) };
    let mask: u32 = ctx.arg(1);
    let (operation, access) =
        if mask & MAY_WRITE != 0 { (Operation::Write, WRITE) } else { (Operation::Read, READ) };
    eacces(opened(operation, access, file))
}

/// `(file, requested, protection, flags)`: as in `mmap_file`, which judges execution. What exec maps is
/// the program that it has judged, for a process that has no identity again yet.
#[lsm(hook = "mmap_file")]
pub fn mmap_file_again(ctx: LsmContext) -> i32 {
    // SAFETY: the argument is a file or null.
    let file = unsafe { Kernel::new(ctx.arg(0)) };
    let (protection, flags): (u64, u64) = (ctx.arg(2), ctx.arg(3));
    if file.is_null() || kernel_read::is_opened_by_exec(file) {
        return 0;
    }
    let writes = protection & PROT_WRITE != 0 && flags & MAP_PRIVATE == 0;
    let access = if writes { WRITE } else { READ };
    eacces(judged::<Untyped>(Operation::Map, access, file))
}

/// `(vma, requested, protection)`: a shared mapping that was made to be read becomes writable.
#[lsm(hook = "file_mprotect")]
pub fn file_mprotect_again(ctx: LsmContext) -> i32 {
    // SAFETY: the argument is a vm_area_struct.
    let vma = unsafe { Kernel::new(ctx.arg(0)) };
    let protection: u64 = ctx.arg(2);
    if protection & PROT_WRITE == 0 || !kernel_read::is_shared(vma) {
        return 0;
    }
    let file = kernel_read::vma_file(vma);
    if file.is_null() {
        return 0;
    }
    eacces(judged::<Untyped>(Operation::Map, WRITE, file))
}

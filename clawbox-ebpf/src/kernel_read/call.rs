//! A system call that has returned: its number and arguments, and what they led to, for the trail
//! alone.

use aya_ebpf::helpers::generated::{
    bpf_probe_read_kernel, bpf_probe_read_user, bpf_probe_read_user_str,
};
use clawbox_common::limits::{ARGUMENTS, CALL_PATH};

use core::hint::black_box;

use super::*;

/// The number of the system call that these registers are of.
#[inline(always)]
pub fn call_number(registers: Kernel) -> u64 {
    registers.field::<REGS_NUMBER, _>()
}

/// Its arguments. The kernel leaves them where the process put them until the call has returned.
#[inline(always)]
pub fn call_arguments(registers: Kernel) -> [u64; 6] {
    [
        registers.field::<REGS_1, _>(),
        registers.field::<REGS_2, _>(),
        registers.field::<REGS_3, _>(),
        registers.field::<REGS_4, _>(),
        registers.field::<REGS_5, _>(),
        registers.field::<REGS_6, _>(),
    ]
}

/// Copies a string of the current process; the length with its NUL, negative where it cannot be
/// read. It may have changed since the kernel read it: it is told, and decides nothing.
#[inline(always)]
pub fn user_string(from: u64, into: *mut [u8; CALL_PATH]) -> i32 {
    // SAFETY: `into` is CALL_PATH writable bytes of a ring record; the helper checks the source.
    unsafe { bpf_probe_read_user_str(into.cast(), CALL_PATH as u32, from as *const _) as i32 }
}

/// Copies what the current process was started with; gives all bytes of that, of which no more than fit are
/// copied, and zero where they cannot be read. At its exec nobody has had a chance to change it: the
/// process's own memory decides nothing.
#[inline(always)]
pub fn arguments(task: Kernel, into: *mut [u8; ARGUMENTS]) -> u32 {
    let memory = Untyped(task.field::<TASK_MEMORY, _>());
    let start: u64 = memory.read::<MEMORY_ARGUMENTS, _>();
    let bytes = memory.read::<MEMORY_ARGUMENTS_END, u64>().wrapping_sub(start);
    // No environment behind it. The mask is for the verifier, which must see a bound; that it is one less
    // than fits costs the last byte, a NUL or a cut.
    let copied = if bytes < ARGUMENTS as u64 { bytes } else { ARGUMENTS as u64 - 1 };
    let copied = black_box(copied) & (ARGUMENTS as u64 - 1);
    // SAFETY: `into` is ARGUMENTS writable bytes of a ring record; the helper checks the source.
    let failed = unsafe { bpf_probe_read_user(into.cast(), copied as u32, start as *const _) };
    if failed != 0 || bytes > u64::from(u32::MAX) { 0 } else { bytes as u32 }
}

/// Eight bytes of the current process; zero where they cannot be read.
#[inline(always)]
pub fn user_word(from: u64) -> u64 {
    let mut word = 0_u64;
    // SAFETY: `word` is eight writable bytes; the helper checks the source, and writes zeros where
    // it cannot be read.
    unsafe { bpf_probe_read_user((&raw mut word).cast(), 8, from as *const _) };
    word
}

/// A directory as addresses: its dentry, and the `struct vfsmount` it was reached by. Zeros where
/// there is none.
pub type Reached = (u64, u64);

/// The working directory of a task.
#[inline(always)]
pub fn workdir(task: Kernel) -> Reached {
    let fs = Untyped(Untyped(task.address()).read::<TASK_FS, _>());
    (fs.read::<FS_PWD_DENTRY, _>(), fs.read::<FS_PWD_MNT, _>())
}

/// What a descriptor of a task stands for.
#[inline(always)]
pub fn descriptor(task: Kernel, number: u32) -> Reached {
    let files = Untyped(Untyped(task.address()).read::<TASK_FILES, _>());
    let table = Untyped(files.read::<FILES_TABLE, _>());
    if number >= table.read::<TABLE_SIZE, u32>() {
        return (0, 0);
    }
    let entries: u64 = table.read::<TABLE_FILES, _>();
    let file = Untyped(Untyped(entries.wrapping_add(8 * u64::from(number))).word());
    if file.0 == 0 {
        return (0, 0);
    }
    (file.read::<FILE_DENTRY, _>(), file.read::<FILE_MNT, _>())
}

impl Untyped {
    /// The eight bytes at the address itself.
    #[inline(always)]
    fn word(self) -> u64 {
        let mut value = 0_u64;
        // SAFETY: `value` is eight writable bytes; the helper checks the source.
        unsafe {
            bpf_probe_read_kernel((&raw mut value).cast(), 8, self.0 as *const core::ffi::c_void);
        }
        value
    }
}

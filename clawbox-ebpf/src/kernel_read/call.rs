//! A system call that has returned: its number and arguments, and what they led to, for the trail
//! alone.

use aya_ebpf::helpers::generated::{
    bpf_probe_read_kernel, bpf_probe_read_user, bpf_probe_read_user_str,
};
use clawbox_common::limits::CALL_PATH;

use super::*;

/// The number of the system call that these registers are of.
#[inline(always)]
pub fn call_number(registers: Kernel) -> u64 {
    registers.field(&OFF_REGS_NUMBER)
}

/// Its arguments. The kernel leaves them where the process put them until the call has returned.
#[inline(always)]
pub fn call_arguments(registers: Kernel) -> [u64; 6] {
    [
        registers.field(&OFF_REGS_1),
        registers.field(&OFF_REGS_2),
        registers.field(&OFF_REGS_3),
        registers.field(&OFF_REGS_4),
        registers.field(&OFF_REGS_5),
        registers.field(&OFF_REGS_6),
    ]
}

/// Copies a string of the current process; the length with its NUL, negative where it cannot be
/// read. It may have changed since the kernel read it: it is told, and decides nothing.
#[inline(always)]
pub fn user_string(from: u64, into: *mut [u8; CALL_PATH]) -> i32 {
    // SAFETY: `into` is CALL_PATH writable bytes of a ring record; the helper checks the source.
    unsafe { bpf_probe_read_user_str(into.cast(), CALL_PATH as u32, from as *const _) as i32 }
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
    let fs = Untyped(Untyped(task.address()).read(&OFF_TASK_FS));
    (fs.read(&OFF_FS_PWD_DENTRY), fs.read(&OFF_FS_PWD_MNT))
}

/// What a descriptor of a task stands for.
#[inline(always)]
pub fn descriptor(task: Kernel, number: u32) -> Reached {
    let files = Untyped(Untyped(task.address()).read(&OFF_TASK_FILES));
    let table = Untyped(files.read(&OFF_FILES_TABLE));
    if number >= table.read::<u32>(&OFF_TABLE_SIZE) {
        return (0, 0);
    }
    let entries: u64 = table.read(&OFF_TABLE_FILES);
    let file = Untyped(Untyped(entries.wrapping_add(8 * u64::from(number))).word());
    if file.0 == 0 {
        return (0, 0);
    }
    (file.read(&OFF_FILE_DENTRY), file.read(&OFF_FILE_MNT))
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

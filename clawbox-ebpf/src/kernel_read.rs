//! Every read of kernel memory, and the struct offsets they need. rustc emits no CO-RE
//! relocations, so the agent reads the offsets from the running kernel's BTF and patches these
//! constants before load; .rodata is frozen, so the verifier knows their values.

use aya_ebpf::helpers::generated::{bpf_get_current_task_btf, bpf_probe_read_kernel_str};
use clawbox_common::{
    limits::SCRIPT_PATH,
    subject::{FileId, Incarnation},
};
use core::ptr::read_volatile;

macro_rules! offsets {
    ($($name:ident)*) => { $(#[unsafe(no_mangle)] static $name: u32 = 0;)* };
}

offsets! {
    OFF_TASK_TGID OFF_TASK_SIGNAL OFF_SIGNAL_LIVE
    OFF_BPRM_FILE OFF_BPRM_FILENAME OFF_BPRM_INTERP
    OFF_FILE_DENTRY OFF_DENTRY_INODE OFF_INODE_SB OFF_INODE_INO OFF_SB_DEV
    OFF_TASK_REAL_PARENT OFF_TASK_LEADER OFF_TASK_BORN OFF_TASK_EXECS
}

/// Depth of a sandbox's cgroup below the root of the hierarchy.
#[unsafe(no_mangle)]
static SANDBOX_LEVEL: u32 = 0;

/// A constant that the agent patches. Volatile, or the compiler would fold the zero above.
#[inline(always)]
fn constant(patched: &'static u32) -> u32 {
    // SAFETY: a reference to an initialised static.
    unsafe { read_volatile(patched) }
}

/// The cgroup that all sandboxes' cgroups are in, one level above them. Zero is none.
#[unsafe(no_mangle)]
static SANDBOX_PARENT: u64 = 0;

#[inline(always)]
pub fn sandbox_parent() -> u64 {
    // SAFETY: a reference to an initialised static; volatile as in `constant`.
    unsafe { read_volatile(&SANDBOX_PARENT) }
}

#[inline(always)]
pub fn sandbox_level() -> i32 {
    constant(&SANDBOX_LEVEL) as i32
}

/// A pointer that the verifier tracks as a kernel structure (`PTR_TO_BTF_ID`).
#[derive(Clone, Copy)]
pub struct Kernel(*const u8);

impl Kernel {
    /// # Safety
    /// `pointer` is an argument of a BTF-typed hook or was loaded from one.
    #[inline(always)]
    pub unsafe fn new(pointer: *const u8) -> Self {
        Self(pointer)
    }

    #[inline(always)]
    fn field<T: Copy>(self, offset: &'static u32) -> T {
        // SAFETY: the verifier checks this load against the structure's BTF: offset and size must
        // name a field, and a fault on a stale pointer reads as zero (exception table).
        unsafe { read_volatile(self.0.add(constant(offset) as usize).cast::<T>()) }
    }

    #[inline(always)]
    fn pointer(self, offset: &'static u32) -> Self {
        Self(self.field(offset))
    }
}

#[inline(always)]
pub fn thread_group(task: Kernel) -> u32 {
    task.field(&OFF_TASK_TGID)
}

/// The task that this program runs for.
#[inline(always)]
pub fn current() -> Kernel {
    // SAFETY: the helper gives the running task, with its type.
    unsafe { Kernel::new(bpf_get_current_task_btf().cast()) }
}

/// What tells a task's thread group, and the program in it, from all others of its number.
#[inline(always)]
pub fn incarnation(task: Kernel) -> Incarnation {
    let born = task.pointer(&OFF_TASK_LEADER).field(&OFF_TASK_BORN);
    Incarnation { born, execs: task.field(&OFF_TASK_EXECS) }
}

#[inline(always)]
pub fn parent_thread_group(task: Kernel) -> u32 {
    thread_group(task.pointer(&OFF_TASK_REAL_PARENT))
}

/// Whether no thread of the group is left running; exit hooks see the count already lowered
/// (`do_exit` decrements `signal->live` before its tracepoint).
#[inline(always)]
pub fn group_is_dead(task: Kernel) -> bool {
    let live: u32 = task.pointer(&OFF_TASK_SIGNAL).field(&OFF_SIGNAL_LIVE);
    live == 0
}

/// The file that exec will run: for a script, its interpreter.
#[inline(always)]
pub fn program(bprm: Kernel) -> FileId {
    let inode = bprm.pointer(&OFF_BPRM_FILE).pointer(&OFF_FILE_DENTRY).pointer(&OFF_DENTRY_INODE);
    if inode.0.is_null() {
        return FileId::default();
    }
    let device: u32 = inode.pointer(&OFF_INODE_SB).field(&OFF_SB_DEV);
    FileId { inode: inode.field(&OFF_INODE_INO), device, zero: 0 }
}

/// Whether exec went through an interpreter: `binfmt_script` replaces `bprm->interp`, which
/// `alloc_bprm` makes the same pointer as `bprm->filename`.
#[inline(always)]
pub fn is_script(bprm: Kernel) -> bool {
    let filename: u64 = bprm.field(&OFF_BPRM_FILENAME);
    let interpreter: u64 = bprm.field(&OFF_BPRM_INTERP);
    filename != interpreter
}

/// Copies the path exec was given. False where it does not fit, and then nothing may match it.
#[inline(always)]
pub fn exec_path(bprm: Kernel, into: *mut [u8; SCRIPT_PATH]) -> bool {
    let filename: u64 = bprm.field(&OFF_BPRM_FILENAME);
    // SAFETY: `into` is SCRIPT_PATH writable bytes of a map value or ring record; the helper
    // checks the source.
    let copied =
        unsafe { bpf_probe_read_kernel_str(into.cast(), SCRIPT_PATH as u32, filename as *const _) };
    // The count includes the NUL; a full buffer may be a cut path.
    copied > 1 && copied < SCRIPT_PATH as i64
}

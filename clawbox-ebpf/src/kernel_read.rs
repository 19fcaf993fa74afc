//! Every read of kernel memory. rustc emits no CO-RE relocations, so instructions carry numbers of
//! fields, and the agent puts the running kernel's offsets in their place before load.

mod call;
mod ceiling;
mod cgroup;
mod place;
mod socket;

use aya_ebpf::helpers::generated::{
    bpf_bprm_opts_set, bpf_d_path, bpf_get_current_task_btf, bpf_probe_read_kernel,
    bpf_probe_read_kernel_str,
};
use clawbox_common::{
    field::*,
    file::{READ, WRITE},
    limits::{FILE_NAME, SCRIPT_PATH},
    patch,
    subject::{FileId, Incarnation},
};
use core::{
    arch::asm,
    hint::black_box,
    mem::{transmute, transmute_copy},
    ptr::read_volatile,
};

pub use call::*;
pub use cgroup::*;
pub use place::*;
pub use socket::*;

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

/// One load of a field, by its number.
macro_rules! load {
    ($size:literal, $field:ident, $base:expr) => {{
        let word: u64;
        asm!(
            concat!("{word} = *(", $size, " *)({base} + {at})"),
            word = out(reg) word,
            base = in(reg) $base,
            at = const patch::load_of($field),
            options(nostack, preserves_flags, readonly),
        );
        word
    }};
}

/// The number, of which the compiler knows nothing any more; `black_box` would take it over the stack.
#[inline(always)]
pub fn unseen(number: u64) -> u64 {
    let mut number = number;
    // SAFETY: the number stays what it is.
    unsafe {
        asm!("{number} = {number}", number = inout(reg) number, options(pure, nomem, nostack, preserves_flags));
    }
    number
}

/// The number, worked out before what comes next: else the compiler keeps what it is made of, over calls.
#[inline(always)]
pub fn made(number: u64) -> u64 {
    let mut number = number;
    // SAFETY: the number stays what it is.
    unsafe {
        asm!("{number} = {number}", number = inout(reg) number, options(nomem, nostack, preserves_flags));
    }
    number
}

/// How far into its structure a field is.
#[inline(always)]
fn offset<const FIELD: u16>() -> u64 {
    let offset: u64;
    // SAFETY: a number into a register.
    unsafe {
        asm!(
            "{offset} = {number}",
            offset = out(reg) offset,
            number = const patch::offset_of(FIELD),
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    offset
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
    fn field<const FIELD: u16, T: Copy>(self) -> T {
        // SAFETY: the verifier checks this load against the structure's BTF: offset and size must
        // name a field, and a fault on a stale pointer reads as zero (exception table). What is
        // loaded is as long as `T`, which is an integer or a pointer, and its low bytes come first.
        unsafe {
            let word = match size_of::<T>() {
                1 => load!("u8", FIELD, self.0),
                2 => load!("u16", FIELD, self.0),
                4 => load!("u32", FIELD, self.0),
                _ => load!("u64", FIELD, self.0),
            };
            transmute_copy(&word)
        }
    }

    /// A field of four bytes, with zeros above, which the compiler would put there itself.
    #[inline(always)]
    fn word<const FIELD: u16>(self) -> u64 {
        // SAFETY: as in `field`.
        unsafe { load!("u32", FIELD, self.0) }
    }

    #[inline(always)]
    fn pointer<const FIELD: u16>(self) -> Self {
        Self(self.field::<FIELD, _>())
    }
}

#[inline(always)]
pub fn thread_group(task: Kernel) -> u32 {
    thread_group_word(task) as u32
}

/// The same number as seats have it.
#[inline(always)]
pub fn thread_group_word(task: Kernel) -> u64 {
    task.word::<TASK_TGID>()
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
    let born = task.pointer::<TASK_LEADER>().field::<TASK_BORN, _>();
    Incarnation { born, execs: task.field::<TASK_EXECS, _>() }
}

#[inline(always)]
pub fn parent_thread_group(task: Kernel) -> u32 {
    thread_group(task.pointer::<TASK_REAL_PARENT>())
}

/// Whether no thread of the group is left running; exit hooks see the count already lowered
/// (`do_exit` decrements `signal->live` before its tracepoint).
#[inline(always)]
pub fn group_is_dead(task: Kernel) -> bool {
    let live: u32 = task.pointer::<TASK_SIGNAL>().field::<SIGNAL_LIVE, _>();
    live == 0
}

/// The file that exec will run: for a script, its interpreter.
#[inline(always)]
pub fn program(bprm: Kernel) -> FileId {
    Place::of_file(bprm_file(bprm)).dentry.identity()
}

/// Whether exec went through an interpreter: `binfmt_script` replaces `bprm->interp`, which
/// `alloc_bprm` makes the same pointer as `bprm->filename`.
#[inline(always)]
pub fn is_script(bprm: Kernel) -> bool {
    let filename: u64 = bprm.field::<BPRM_FILENAME, _>();
    let interpreter: u64 = bprm.field::<BPRM_INTERP, _>();
    filename != interpreter
}

/// Copies the path exec was given. False where it does not fit, and then nothing may match it.
#[inline(always)]
pub fn exec_path(bprm: Kernel, into: *mut [u8; SCRIPT_PATH]) -> bool {
    copy_path(bprm.field::<BPRM_FILENAME, _>(), into)
}

/// Copies the path of a script's interpreter. Nothing is decided by it.
#[inline(always)]
pub fn interpreter_path(bprm: Kernel, into: *mut [u8; SCRIPT_PATH]) {
    copy_path(bprm.field::<BPRM_INTERP, _>(), into);
}

#[inline(always)]
fn copy_path(from: u64, into: *mut [u8; SCRIPT_PATH]) -> bool {
    // SAFETY: `into` is SCRIPT_PATH writable bytes of a map value or ring record; the helper
    // checks the source.
    let copied =
        unsafe { bpf_probe_read_kernel_str(into.cast(), SCRIPT_PATH as u32, from as *const _) };
    // The count includes the NUL; a full buffer may be a cut path.
    copied > 1 && copied < SCRIPT_PATH as i64
}

/// Words of a path.
const PATH_WORDS: usize = SCRIPT_PATH / 8;

/// Memory for comparing two paths, which do not fit the stack. Not a CPU's own: an LSM program can
/// be preempted, and another task would run it on the same memory.
#[repr(C)]
pub struct Paths {
    given: [u64; PATH_WORDS],
    own: [u64; PATH_WORDS],
    told: [u64; PATH_WORDS],
}

/// Whether the path that exec was given is the whole path of the file that it opened: absolute, by
/// no symlink, by no descriptor.
#[inline(always)]
pub fn is_own_path(bprm: Kernel, file: Kernel, memory: *mut Paths) -> bool {
    // SAFETY: the caller's memory is a whole `Paths`; words are written one by one, because the
    // compiler's memset is no function here. The helpers write at most SCRIPT_PATH bytes, the path
    // is a field of a typed file, and what is compared was zeroed before it was written.
    unsafe {
        let (given, own) = ((&raw mut (*memory).given), (&raw mut (*memory).own));
        for word in 0..PATH_WORDS {
            let word = black_box(word) % PATH_WORDS;
            given.cast::<u64>().add(word).write_volatile(0);
            own.cast::<u64>().add(word).write_volatile(0);
        }
        if !exec_path(bprm, given.cast()) {
            return false;
        }
        let path = file.0.add(offset::<FILE_PATH>() as usize);
        let told = &raw mut (*memory).told;
        if bpf_d_path(path.cast_mut().cast(), told.cast(), SCRIPT_PATH as u32) <= 0 {
            return false;
        }
        // Behind its end the helper leaves what it worked with.
        bpf_probe_read_kernel_str(own.cast(), SCRIPT_PATH as u32, told.cast());
        for word in 0..PATH_WORDS {
            // Opaque: unrolled, with what it holds of all words at once, it does not fit the stack.
            let word = black_box(word) % PATH_WORDS;
            let (one, other) = (given.cast::<u64>().add(word), own.cast::<u64>().add(word));
            if one.read_volatile() != other.read_volatile() {
                return false;
            }
        }
        true
    }
}

impl PartialEq for Kernel {
    #[inline(always)]
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl Kernel {
    #[inline(always)]
    pub fn address(self) -> u64 {
        self.0 as u64
    }

    #[inline(always)]
    pub fn for_helpers(self) -> *mut core::ffi::c_void {
        self.0.cast_mut().cast()
    }

    #[inline(always)]
    pub fn is_null(self) -> bool {
        self.0.is_null()
    }
}

/// A kernel address that the verifier does not know: every read goes through the helper, which
/// gives zero for what cannot be read.
#[derive(Clone, Copy, PartialEq)]
pub struct Untyped(pub u64);

impl Untyped {
    #[inline(always)]
    fn read<const FIELD: u16, T: Copy + Default>(self) -> T {
        let mut value = T::default();
        let from = self.0.wrapping_add(offset::<FIELD>());
        // SAFETY: `value` is a whole `T` of integers; the helper checks the source, and writes
        // zeros where it cannot be read.
        unsafe {
            bpf_probe_read_kernel(
                (&raw mut value).cast(),
                size_of::<T>() as u32,
                from as *const core::ffi::c_void,
            );
        }
        value
    }

    /// A word right here.
    #[inline(always)]
    fn count(self) -> u32 {
        let mut value = 0_u32;
        // SAFETY: `value` is a whole word; the helper checks the source.
        unsafe {
            bpf_probe_read_kernel(
                (&raw mut value).cast(),
                size_of::<u32>() as u32,
                self.0 as *const core::ffi::c_void,
            );
        }
        value
    }

    /// Of a dentry.
    #[inline(always)]
    fn inode(self) -> Self {
        Self(self.read::<DENTRY_INODE, _>())
    }

    /// Of an inode.
    #[inline(always)]
    fn filesystem(self) -> Self {
        Self(self.read::<INODE_SB, _>())
    }

    /// The name of a dentry in its directory. False where it does not fit.
    #[inline(always)]
    pub fn name(self, into: *mut [u8; FILE_NAME]) -> bool {
        let name: u64 = self.read::<DENTRY_NAME, _>();
        // SAFETY: `into` is FILE_NAME writable bytes; the helper checks the source.
        let copied =
            unsafe { bpf_probe_read_kernel_str(into.cast(), FILE_NAME as u32, name as *const _) };
        copied > 1 && copied < FILE_NAME as i64
    }

    /// The `struct mount` around a `struct vfsmount`.
    #[inline(always)]
    pub fn mount_of(vfsmount: u64) -> Self {
        Self(vfsmount.wrapping_sub(offset::<MOUNT_MNT>()))
    }

    /// The reverse of [`Untyped::mount_of`].
    #[inline(always)]
    pub fn vfsmount(self) -> u64 {
        self.0.wrapping_add(offset::<MOUNT_MNT>())
    }

    /// The mount that this one is mounted on; itself at the top.
    #[inline(always)]
    pub fn mount_parent(self) -> Self {
        Self(self.read::<MOUNT_PARENT, _>())
    }

    /// The dentry that this mount is mounted on.
    #[inline(always)]
    pub fn mount_point(self) -> Self {
        Self(self.read::<MOUNT_POINT, _>())
    }

    /// The `struct vfsmount` of a superblock that is mounted once; zero for any other. It cannot go
    /// while the current task uses a file of it.
    #[inline(always)]
    fn only_mount(self) -> u64 {
        let first: u64 = self.read::<SB_MOUNTS, _>();
        let (mount, is_only) = if offset::<MOUNT_INSTANCE>() != 0 {
            // A `list_head`, which leads to itself where it is empty.
            let head = self.0.wrapping_add(offset::<SB_MOUNTS>());
            let mount = first.wrapping_sub(offset::<MOUNT_INSTANCE>());
            (Self(mount), first != head && Self(mount).read::<MOUNT_INSTANCE, u64>() == head)
        } else {
            let has_list = offset::<MOUNT_NEXT>() != 0 && first != 0;
            (Self(first), has_list && Self(first).read::<MOUNT_NEXT, u64>() == 0)
        };
        if is_only { mount.vfsmount() } else { 0 }
    }

    /// `MNT_NS_INTERNAL`, fs/mount.h: made by the kernel for itself, as overlayfs does for its
    /// layers (`clone_private_mount`).
    #[inline(always)]
    pub fn is_internal_mount(self) -> bool {
        self.read::<MOUNT_NS, u64>() == -22_i64 as u64
    }
}

/// `FMODE_READ`, `FMODE_WRITE`, linux/fs.h.
const FMODE_READ: u32 = 1;
const FMODE_WRITE: u32 = 2;
// What is opened to be read and to be written is told by the bits that a policy's rules use.
const _: () = assert!(FMODE_READ == READ && FMODE_WRITE == WRITE);
/// `__FMODE_EXEC`, which `do_open_execat` puts among the flags.
const FMODE_EXEC: u32 = 0x20;

/// What a file was opened for: [`READ`] and [`WRITE`]; exec has it opened to be read. Without a branch,
/// each way of which would be verified with all that follows.
#[inline(always)]
pub fn open_mode(file: Kernel) -> u32 {
    file.field::<FILE_MODE, u32>() & (FMODE_READ | FMODE_WRITE)
}

/// Whether it is exec that opens it.
#[inline(always)]
pub fn is_opened_by_exec(file: Kernel) -> bool {
    file.field::<FILE_FLAGS, u32>() & FMODE_EXEC != 0
}

/// Where the kernel counts what happens to its trees: `rename_lock` and `mount_lock`, both
/// `seqlock_t`, whose count comes first. Zero where the agent could not find them.
#[unsafe(no_mangle)]
static RENAME_LOCK: u64 = 0;
#[unsafe(no_mangle)]
static MOUNT_LOCK: u64 = 0;

/// The number, in the kernel's types, of `struct seqcount`, where the kernel has `bpf_rdonly_cast`;
/// zero where it does not.
#[unsafe(no_mangle)]
static TYPE_SEQUENCE: u32 = 0;

/// 1 where the agent did not find both.
#[unsafe(no_mangle)]
static MOVES_UNSEEN: u64 = 1;

/// Whether [`tree_changes`] tells nothing.
#[inline(always)]
pub fn moves_unseen() -> bool {
    // SAFETY: a reference to an initialised static; volatile as in `constant`.
    unsafe { read_volatile(&MOVES_UNSEEN) != 0 }
}

/// How often a dentry was moved, and a mount tree changed; odd while that is being done. Read as
/// structures of one word where the kernel can cast to them: as cheap as any load, where the helper
/// costs a hundred instructions.
#[inline(always)]
pub fn tree_changes() -> (u64, u64) {
    // SAFETY: references to initialised statics; volatile as in `constant`.
    let (renames, mounts) = unsafe { (read_volatile(&RENAME_LOCK), read_volatile(&MOUNT_LOCK)) };
    let structure = u64::from(constant(&TYPE_SEQUENCE));
    if structure == 0 {
        let count = |address| u64::from(Untyped(address).count());
        return (count(renames), count(mounts));
    }
    // SAFETY: not a helper but a place for the agent, which puts the kernel function's number here
    // whenever it sets the number of the structure; otherwise this is never reached. The function
    // gives back the address with a type, and a load from there that faults reads as zero.
    unsafe {
        let cast: unsafe extern "C" fn(u64, u64) -> *const u32 = transmute(patch::CAST as usize);
        let count = |address| {
            let word: u64;
            asm!(
                "{word} = *(u32 *)({at} + 0)",
                word = out(reg) word,
                at = in(reg) cast(address, structure),
                options(nostack, preserves_flags, readonly),
            );
            word
        };
        (count(renames), count(mounts))
    }
}

/// The mount by which a file was opened: the address of its `struct vfsmount`.
#[inline(always)]
pub fn mount_of(file: Kernel) -> u64 {
    file.field::<FILE_MNT, _>()
}

/// The inode of an open file, of the filesystem by which it was opened.
#[inline(always)]
pub fn inode_of(file: Kernel) -> Kernel {
    file.pointer::<FILE_INODE>()
}

/// `S_IFMT` and two of its values, uapi/linux/stat.h.
const S_IFMT: u16 = 0o170_000;
const S_IFIFO: u16 = 0o010_000;
const S_IFDIR: u16 = 0o040_000;
/// `DCACHE_OP_REVALIDATE`, linux/dcache.h: somebody else may move it, another machine for instance.
const MOVED_BY_OTHERS: u32 = 1 << 2;

/// Whether an open file's object has this one path below its mount, and the kernel knows when it
/// moves. A directory has one; another object, if it has one name.
#[inline(always)]
pub fn has_one_path(file: Kernel) -> bool {
    let inode = inode_of(file);
    let flags: u32 = file.pointer::<FILE_DENTRY>().field::<DENTRY_FLAGS, _>();
    if flags & MOVED_BY_OTHERS != 0 {
        return false;
    }
    is_directory(inode) || names_of(inode) == 1
}

#[inline(always)]
pub fn is_directory(inode: Kernel) -> bool {
    let mode: u16 = inode.field::<INODE_MODE, _>();
    mode & S_IFMT == S_IFDIR
}

/// Whether it is a pipe without a name.
#[inline(always)]
pub fn is_pipe(file: Kernel) -> bool {
    let mode: u16 = inode_of(file).field::<INODE_MODE, _>();
    mode & S_IFMT == S_IFIFO && file.pointer::<FILE_DENTRY>().is_placeless()
}

/// How many names an object has; a directory's count is another one.
#[inline(always)]
pub fn names_of(inode: Kernel) -> u64 {
    inode.word::<INODE_NLINK>()
}

/// Whether an object would keep a name if it lost one.
#[inline(always)]
pub fn has_several_names(dentry: Kernel) -> bool {
    let inode = dentry.pointer::<DENTRY_INODE>();
    if inode.0.is_null() {
        return false;
    }
    names_of(inode) > 1
}

#[inline(always)]
pub fn bprm_file(bprm: Kernel) -> Kernel {
    bprm.pointer::<BPRM_FILE>()
}

/// `VM_SHARED`, linux/mm.h.
const VM_SHARED: u64 = 8;

/// Whether what is written to a mapping reaches its file.
#[inline(always)]
pub fn is_shared(vma: Kernel) -> bool {
    let flags: u64 = vma.field::<VMA_FLAGS, _>();
    flags & VM_SHARED != 0
}

/// `BPF_F_BPRM_SECUREEXEC`: the program is started as one that gains rights by it (`AT_SECURE`), so
/// that the loader takes no variable which would put other code into it.
const SECURE_EXEC: u64 = 1;

#[inline(always)]
pub fn start_securely(bprm: Kernel) {
    // SAFETY: an argument of a hook that this helper is for. It fails for unknown flags alone.
    unsafe {
        bpf_bprm_opts_set(bprm.0.cast_mut().cast(), SECURE_EXEC);
    }
}

/// The file behind a mapping; null for anonymous memory.
#[inline(always)]
pub fn vma_file(vma: Kernel) -> Kernel {
    vma.pointer::<VMA_FILE>()
}

/// The user that a task acts for, as the initial user namespace counts them. By loads: the helper asks the
/// namespace, and takes a twelfth of a connect's hook.
#[inline(always)]
pub fn user(task: Kernel) -> u32 {
    task.pointer::<TASK_CRED>().field::<CRED_USER, _>()
}

/// Whether the kernel acts for somebody else in this task's name, as overlayfs does when it works
/// on a layer (`override_creds`). No system call lets a sandboxed process do that by itself.
#[inline(always)]
pub fn acts_for_another(task: Kernel) -> bool {
    let (cred, real): (u64, u64) =
        (task.field::<TASK_CRED, _>(), task.field::<TASK_REAL_CRED, _>());
    cred != real
}

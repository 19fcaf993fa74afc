//! Allows that are remembered with the inode they were found for, so that the common open does not
//! go the whole way up again. Only what cannot have become another path since is taken from here.

use aya_ebpf::{
    bindings::BPF_LOCAL_STORAGE_GET_F_CREATE, btf_maps::InodeStorage,
    helpers::generated::bpf_inode_storage_get, macros::btf_map,
};
use clawbox_common::{
    limits::MASK_WORDS,
    rule::{FILES_BY_BINARY, SandboxState},
    subject::{FileId, Mask, Subject},
};
use core::{
    intrinsics::{AtomicOrdering, atomic_cxchg, atomic_xadd},
    ptr::null_mut,
};

use crate::kernel_read::{self, Kernel};

/// What was allowed, and what has to be as it was.
#[repr(C)]
#[derive(Clone, Copy)]
struct Allowed {
    /// Goes up by one when somebody begins to write and by one when it is written: odd in between,
    /// zero in what was never written. Who reads has read nothing if it is another one afterwards.
    version: u64,
    /// The mount by which the file was reached.
    mount: u64,
    moment: Moment,
    /// Policy generation.
    policy: u32,
    /// Bits of `clawbox_common::file`, and [`DIRECTORY`].
    access: u32,
    /// Whose the allow is, where the policy tells binaries apart; zero where it does not.
    own: Mask,
    lineage: Mask,
    /// Where uses by this program in this sandbox are counted; zero is nowhere.
    exe: FileId,
    sandbox: u32,
    tally: u32,
}

/// Counts that go up whenever an object may have become another path's.
#[repr(C)]
#[derive(Clone, Copy, PartialEq)]
pub struct Moment {
    /// Names with which an object that has several lost one of them.
    unlinks: u64,
    /// The kernel's own count of moved dentries, `rename_lock`.
    renames: u32,
    /// The kernel's own count of changes of any mount tree, `mount_lock`.
    mounts: u32,
}

#[btf_map]
static ALLOWED: InodeStorage<Allowed> = InodeStorage::new();

/// See [`Moment::unlinks`]. Written by programs alone, on any processor.
static mut UNLINKS: u64 = 0;

/// Now. To be taken before anything is looked at.
#[inline(always)]
pub fn moment() -> Moment {
    // Where the kernel's counts are not known something always moves.
    let (renames, mounts) = kernel_read::tree_changes().unwrap_or((1, 1));
    // SAFETY: an aligned word, to which others only add.
    let unlinks = unsafe { (&raw const UNLINKS).read_volatile() };
    Moment { unlinks, renames, mounts }
}

impl Moment {
    /// Whether nothing was moving: an odd count is a change that is being made. Asked where it matters,
    /// not once: the verifier would take all that follows for either answer.
    #[inline(always)]
    fn is_still(self) -> bool {
        kernel_read::unseen(u64::from(self.renames | self.mounts)) & 1 == 0
    }
}

/// The object is a directory, which has one name whatever its count of links.
const DIRECTORY: u32 = 1 << 31;

/// Nothing is remembered that allows it.
pub const UNKNOWN: u32 = u32::MAX;

/// Where this use is counted, if all of the access is known to be allowed; zero if that is not known
/// for this program. [`UNKNOWN`] if it is not known to be allowed.
#[inline(always)]
pub fn recall(
    file: Kernel,
    mount: u64,
    access: u32,
    state: &SandboxState,
    subject: &Subject,
    now: Moment,
) -> u32 {
    if !now.is_still() {
        return UNKNOWN;
    }
    let inode = kernel_read::inode_of(file);
    // SAFETY: a map of this kind and a typed inode.
    let kept = unsafe {
        bpf_inode_storage_get(map(), inode.for_helpers(), null_mut(), 0).cast::<Allowed>()
    };
    if kept.is_null() {
        return UNKNOWN;
    }
    // SAFETY: a whole value of the map; RCU keeps it alive until this program ends. Every read is
    // volatile, and so between the two of the version; x86 keeps them in order.
    unsafe {
        let version = (&raw const (*kept).version).read_volatile();
        if version == 0 || version & 1 != 0 {
            return UNKNOWN;
        }
        let granted = (&raw const (*kept).access).read_volatile();
        if (&raw const (*kept).policy).read_volatile() != state.policy
            || granted & access != access
            || (&raw const (*kept).moment.unlinks).read_volatile() != now.unlinks
            || (&raw const (*kept).moment.renames).read_volatile() != now.renames
            || (&raw const (*kept).moment.mounts).read_volatile() != now.mounts
            || (&raw const (*kept).mount).read_volatile() != mount
            // It may have got another name since, by which it is now asked for.
            || (granted & DIRECTORY == 0 && kernel_read::names_of(inode) != 1)
            || (state.flags & FILES_BY_BINARY != 0 && !is_same(kept, subject))
        {
            return UNKNOWN;
        }
        let counts = (&raw const (*kept).exe.inode).read_volatile() == subject.exe.inode
            && (&raw const (*kept).exe.device).read_volatile() == subject.exe.device
            && (&raw const (*kept).sandbox).read_volatile() == subject.sandbox;
        let tally = if counts { (&raw const (*kept).tally).read_volatile() } else { 0 };
        if (&raw const (*kept).version).read_volatile() != version {
            return UNKNOWN;
        }
        tally
    }
}

/// # Safety
/// A whole value of the map.
#[inline(always)]
unsafe fn is_same(kept: *const Allowed, subject: &Subject) -> bool {
    let mut differs = 0;
    for word in 0..MASK_WORDS {
        // SAFETY: the caller's promise.
        unsafe {
            differs |=
                (&raw const (*kept).own.words[word]).read_volatile() ^ subject.own.words[word];
            differs |= (&raw const (*kept).lineage.words[word]).read_volatile()
                ^ subject.lineage.words[word];
        }
    }
    differs == 0
}

/// An access that the way up has just been gone for.
pub struct Found {
    /// Taken before anything was looked at.
    pub then: Moment,
    /// Bits of `clawbox_common::file`.
    pub access: u32,
    /// Where it was counted; zero is nowhere.
    pub tally: u32,
}

/// Remembers an access, if nothing has moved since and the object has no other name by which it
/// could be reached. A function of its own, with a part of the stack of its own.
#[inline(never)]
pub fn keep(file: Kernel, mount: u64, state: &SandboxState, subject: &Subject, found: &Found) {
    if !found.then.is_still() || !kernel_read::has_one_path(file) || moment() != found.then {
        return;
    }
    let inode = kernel_read::inode_of(file);
    let directory = if kernel_read::is_directory(inode) { DIRECTORY } else { 0 };
    let bits = if state.flags & FILES_BY_BINARY != 0 { u64::MAX } else { 0 };
    // In place, and never on the stack, where it does not fit beside the way up.
    // SAFETY: a map of this kind and a typed inode. A value belongs to who has made its version odd,
    // until it is even again. x86 keeps stores in order; on other machines the agent leaves `moment`
    // without its counts.
    unsafe {
        let create = u64::from(BPF_LOCAL_STORAGE_GET_F_CREATE);
        let into = bpf_inode_storage_get(map(), inode.for_helpers(), null_mut(), create);
        let into = into.cast::<Allowed>();
        if into.is_null() {
            return;
        }
        let before = (&raw const (*into).version).read_volatile();
        if before & 1 != 0 || !change(&raw mut (*into).version, before, before + 1) {
            return;
        }
        (&raw mut (*into).mount).write_volatile(mount);
        (&raw mut (*into).moment).write_volatile(found.then);
        (&raw mut (*into).policy).write_volatile(state.policy);
        (&raw mut (*into).access).write_volatile(found.access | directory);
        for word in 0..MASK_WORDS {
            (&raw mut (*into).own.words[word]).write_volatile(subject.own.words[word] & bits);
            let lineage = subject.lineage.words[word] & bits;
            (&raw mut (*into).lineage.words[word]).write_volatile(lineage);
        }
        // By fields: a copy goes over the stack, and its address is then what this returns to the
        // hook ("cannot return stack pointer to the caller").
        (&raw mut (*into).exe.inode).write_volatile(subject.exe.inode);
        (&raw mut (*into).exe.device).write_volatile(subject.exe.device);
        (&raw mut (*into).sandbox).write_volatile(subject.sandbox);
        (&raw mut (*into).tally).write_volatile(found.tally);
        (&raw mut (*into).version).write_volatile(before + 2);
    }
}

/// # Safety
/// An aligned word of a map value.
#[inline(always)]
unsafe fn change(version: *mut u64, from: u64, to: u64) -> bool {
    // SAFETY: the caller's promise.
    unsafe {
        atomic_cxchg::<u64, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(
            version, from, to,
        )
        .1
    }
}

#[inline(always)]
fn map() -> *mut core::ffi::c_void {
    (&raw const ALLOWED).cast_mut().cast()
}

/// An object loses one of several names: by which of them an allow was found is not known.
#[inline(always)]
pub fn one_name_less() {
    // SAFETY: an aligned word; the addition is atomic.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(&raw mut UNLINKS, 1) };
}

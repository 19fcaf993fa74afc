//! Allows that are remembered with the inode they were found for, so that the common open does not
//! go the whole way up again. Only what cannot have become another path since is taken from here.

use aya_ebpf::{
    bindings::BPF_LOCAL_STORAGE_GET_F_CREATE,
    btf_maps::InodeStorage,
    helpers::generated::{bpf_inode_storage_delete, bpf_inode_storage_get},
    macros::{btf_map, map},
    maps::Array,
};
use clawbox_common::{
    limits::MASK_WORDS,
    rule::{FILES_BY_BINARY, SandboxState},
    subject::{FileId, Mask, Subject},
};

use crate::kernel_read::{self, Kernel};

/// What was allowed, and what has to be as it was.
#[repr(C)]
#[derive(Clone, Copy)]
struct Allowed {
    /// The mount by which the file was reached.
    mount: u64,
    moment: Moment,
    /// Policy generation; zero in what was never written.
    policy: u32,
    /// Bits of `clawbox_common::file`.
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

/// See [`Moment::unlinks`].
#[map]
static UNLINKS: Array<u64> = Array::with_max_entries(1, 0);

/// Now, or `None` while something moves, and where the kernel's counts are not known. To be taken
/// before anything is looked at.
#[inline(always)]
pub fn moment() -> Option<Moment> {
    let (renames, mounts) = kernel_read::tree_changes()?;
    let unlinks = UNLINKS.get_ptr(0)?;
    // SAFETY: the only value of the array; an aligned word.
    let unlinks = unsafe { core::ptr::read_volatile(unlinks) };
    // Odd: a change is being made.
    if (renames | mounts) & 1 != 0 {
        return None;
    }
    Some(Moment { unlinks, renames, mounts })
}

/// Nothing is remembered that allows it.
pub const UNKNOWN: u32 = u32::MAX;

/// Where this use is counted, if all of the access is known to be allowed; zero if that is not known
/// for this program. [`UNKNOWN`] if it is not known to be allowed.
#[inline(always)]
pub fn recall(
    file: Kernel,
    access: u32,
    state: &SandboxState,
    subject: &Subject,
    now: Moment,
) -> u32 {
    // SAFETY: a map of this kind and a typed inode.
    let kept = unsafe {
        let inode = kernel_read::inode_of(file).for_helpers();
        bpf_inode_storage_get(map(), inode, core::ptr::null_mut(), 0).cast::<Allowed>()
    };
    if kept.is_null() {
        return UNKNOWN;
    }
    // SAFETY: a whole value of the map, which is not written again: `keep` puts another in its
    // place. RCU keeps it alive until this program ends.
    let kept = unsafe { &*kept };
    if kept.policy != state.policy
        || kept.access & access != access
        || kept.moment != now
        || kept.mount != kernel_read::mount_of(file)
        // It may have got another name since, by which it is now asked for.
        || !kernel_read::has_one_path(file)
    {
        return UNKNOWN;
    }
    if state.flags & FILES_BY_BINARY != 0 && !is_same(kept, subject) {
        return UNKNOWN;
    }
    let counts = kept.exe.inode == subject.exe.inode
        && kept.exe.device == subject.exe.device
        && kept.sandbox == subject.sandbox;
    if counts { kept.tally } else { 0 }
}

#[inline(always)]
fn is_same(kept: &Allowed, subject: &Subject) -> bool {
    let mut differs = 0;
    for word in 0..MASK_WORDS {
        differs |= kept.own.words[word] ^ subject.own.words[word];
        differs |= kept.lineage.words[word] ^ subject.lineage.words[word];
    }
    differs == 0
}

/// Remembers an access that the way up has just been gone for, if nothing has moved since `then`
/// and the object has no other name by which it could be reached. `tally` is where it was counted.
#[inline(always)]
pub fn keep(
    file: Kernel,
    access: u32,
    state: &SandboxState,
    subject: &Subject,
    then: Moment,
    tally: u32,
) {
    if !kernel_read::has_one_path(file) || moment() != Some(then) {
        return;
    }
    let mut allowed = Allowed {
        mount: kernel_read::mount_of(file),
        moment: then,
        policy: state.policy,
        access,
        own: Mask::EMPTY,
        lineage: Mask::EMPTY,
        exe: subject.exe,
        sandbox: subject.sandbox,
        tally,
    };
    if state.flags & FILES_BY_BINARY != 0 {
        (allowed.own, allowed.lineage) = (subject.own, subject.lineage);
    }
    // Never changed in place, or who reads it on another CPU could take one subject's access for
    // another's.
    // SAFETY: a map of this kind, a typed inode, and a value of the map's size.
    unsafe {
        let inode = kernel_read::inode_of(file).for_helpers();
        bpf_inode_storage_delete(map(), inode);
        let create = u64::from(BPF_LOCAL_STORAGE_GET_F_CREATE);
        bpf_inode_storage_get(map(), inode, (&raw mut allowed).cast(), create);
    }
}

#[inline(always)]
fn map() -> *mut core::ffi::c_void {
    (&raw const ALLOWED).cast_mut().cast()
}

/// An object loses one of several names: by which of them an allow was found is not known.
#[inline(always)]
pub fn one_name_less() {
    if let Some(count) = UNLINKS.get_ptr_mut(0) {
        // SAFETY: an aligned u64 of a map value; the addition is atomic.
        unsafe {
            core::intrinsics::atomic_xadd::<u64, u64, { core::intrinsics::AtomicOrdering::Relaxed }>(
                count, 1,
            );
        }
    }
}

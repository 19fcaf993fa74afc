//! Allows that are remembered with the inode they were found for, so that the common open does not
//! go the whole way up again. Only what cannot have become another path since is taken from here.

use aya_ebpf::{
    bindings::BPF_LOCAL_STORAGE_GET_F_CREATE, btf_maps::InodeStorage,
    helpers::generated::bpf_inode_storage_get, macros::btf_map,
};
use clawbox_common::{
    limits::MASK_WORDS,
    rule::{FILES_BY_BINARY, SandboxState},
    subject::{Mask, Subject},
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
    /// [`Moment::changes`].
    changes: u64,
    /// Policy generation.
    policy: u32,
    /// Bits of `clawbox_common::file`, and [`DIRECTORY`].
    access: u32,
    /// Whose the allow is, where the policy tells binaries apart; zero where it does not.
    own: Mask,
    lineage: Mask,
    /// Of the subject that it was found for; [`NO_KIND`] if that has no number.
    kind: u64,
    /// Where uses by that kind are counted; a place of `tally.rs`.
    tally: u32,
    zero: u32,
}

/// How often an object may have become another path's.
#[derive(Clone, Copy)]
pub struct Moment {
    /// Names that objects with several have lost, and the kernel's own counts of moved dentries
    /// (`rename_lock`) and of changes of any mount tree (`mount_lock`). Each only goes up, until the
    /// kernel's, of 32 bits, begin anew: their sum is what it was only if each of them is, or after 2^31
    /// moves and mounts.
    changes: u64,
    /// Odd while one of the kernel's counts is.
    moving: u64,
}

/// What no subject has.
const NO_KIND: u64 = u64::MAX;

#[btf_map]
static ALLOWED: InodeStorage<Allowed> = InodeStorage::new();

/// Names with which an object that has several lost one of them. Written by programs alone, on any
/// processor.
static mut UNLINKS: u64 = 0;

/// Now. To be taken before anything is looked at.
#[inline(always)]
pub fn moment() -> Moment {
    let (renames, mounts) = kernel_read::tree_changes();
    // SAFETY: an aligned word, to which others only add.
    let unlinks = unsafe { (&raw const UNLINKS).read_volatile() };
    let changes = kernel_read::made(unlinks.wrapping_add(renames).wrapping_add(mounts));
    Moment { changes, moving: renames | mounts }
}

impl Moment {
    /// Whether nothing was moving: an odd count is a change that is being made. Asked where it matters,
    /// not once: the verifier would take all that follows for either answer.
    #[inline(always)]
    fn is_still(self) -> bool {
        !kernel_read::moves_unseen() && kernel_read::unseen(self.moving) & 1 == 0
    }
}

/// The object is a directory, which has one name whatever its count of links.
const DIRECTORY: u32 = 1 << 16;

/// Where this use is counted, if it is known to be allowed for this very kind of subject. What every
/// open asks first.
#[inline(always)]
pub fn recall_own(
    file: Kernel,
    access: u32,
    state: &SandboxState,
    subject: &Subject,
    now: Moment,
) -> Option<u32> {
    let kept = remembered(file)?;
    // SAFETY: a whole value of the map. Every read is volatile, and so between the two of the version.
    unsafe {
        let version = (&raw const (*kept).version).read_volatile();
        let tally = (&raw const (*kept).tally).read_volatile();
        let is_own = (&raw const (*kept).kind).read_volatile() == subject.kind
            && holds(kept, version, file, access, state, now)
            && (&raw const (*kept).version).read_volatile() == version;
        is_own.then_some(tally)
    }
}

/// Whether all of the access is known to be allowed, if perhaps for a subject of another kind that the
/// policy does not tell from this one.
#[inline(always)]
pub fn recall(
    file: Kernel,
    access: u32,
    state: &SandboxState,
    subject: &Subject,
    now: Moment,
) -> bool {
    let Some(kept) = remembered(file) else { return false };
    // SAFETY: as in `recall_own`.
    unsafe {
        let version = (&raw const (*kept).version).read_volatile();
        holds(kept, version, file, access, state, now)
            && (state.flags & FILES_BY_BINARY == 0 || is_same(kept, subject))
            && (&raw const (*kept).version).read_volatile() == version
    }
}

/// What is kept for an open file's inode.
#[inline(always)]
fn remembered(file: Kernel) -> Option<*const Allowed> {
    let inode = kernel_read::inode_of(file);
    // SAFETY: a map of this kind and a typed inode. RCU keeps the value alive until this program ends.
    let kept = unsafe { bpf_inode_storage_get(map(), inode.for_helpers(), null_mut(), 0) };
    if kept.is_null() { None } else { Some(kept.cast()) }
}

/// Whether an allow is whole and as good as it was, leaving aside for whom. What was never written has
/// no policy; and since nothing is kept while something moves, nothing moves if the counts are the same.
///
/// # Safety
/// A whole value of the map.
#[inline(always)]
unsafe fn holds(
    kept: *const Allowed,
    version: u64,
    file: Kernel,
    access: u32,
    state: &SandboxState,
    now: Moment,
) -> bool {
    // SAFETY: the caller's promise. x86 keeps reads in order.
    unsafe {
        let granted = (&raw const (*kept).access).read_volatile();
        version & 1 == 0
            && granted & access == access
            && (&raw const (*kept).policy).read_volatile() == state.policy
            && (&raw const (*kept).changes).read_volatile() == now.changes
            && (&raw const (*kept).mount).read_volatile() == kernel_read::mount_of(file)
            // It may have got another name since, by which it is now asked for.
            && (kernel_read::names_of(kernel_read::inode_of(file)) == 1
                || granted & DIRECTORY != 0)
    }
}

/// # Safety
/// A whole value of the map.
#[inline(always)]
unsafe fn is_same(kept: *const Allowed, subject: &Subject) -> bool {
    for word in 0..MASK_WORDS {
        // One by one: loaded together, they would all be on the stack.
        // SAFETY: the caller's promise.
        let (own, lineage) = unsafe {
            (
                (&raw const (*kept).own.words[word]).read_volatile(),
                (&raw const (*kept).lineage.words[word]).read_volatile(),
            )
        };
        if own != subject.own.words[word] || lineage != subject.lineage.words[word] {
            return false;
        }
    }
    true
}

/// An access that the way up has just been gone for.
pub struct Found {
    /// Taken before anything was looked at.
    pub then: Moment,
    /// Bits of `clawbox_common::file`.
    pub access: u32,
    /// Where the next ones are counted; a place of `tally.rs`.
    pub tally: u32,
}

/// Remembers an access, if nothing has moved since and the object has no other name by which it
/// could be reached.
#[inline(always)]
pub fn keep(file: Kernel, state: &SandboxState, subject: &Subject, found: &Found) {
    if found.then.is_still() && kernel_read::has_one_path(file) {
        let where_and_what = u64::from(found.tally) << 32 | u64::from(found.access);
        keep_since(file, state, subject, found.then.changes, where_and_what);
    }
}

/// A function of its own, with a part of the stack of its own. Numbers and no pointer to its caller's
/// stack: it would be left where a result is ("cannot return stack pointer to the caller").
#[inline(never)]
fn keep_since(
    file: Kernel,
    state: &SandboxState,
    subject: &Subject,
    changes: u64,
    where_and_what: u64,
) {
    if moment().changes != changes {
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
        (&raw mut (*into).mount).write_volatile(kernel_read::mount_of(file));
        (&raw mut (*into).changes).write_volatile(changes);
        (&raw mut (*into).policy).write_volatile(state.policy);
        (&raw mut (*into).access).write_volatile(where_and_what as u32 | directory);
        for word in 0..MASK_WORDS {
            (&raw mut (*into).own.words[word]).write_volatile(subject.own.words[word] & bits);
            let lineage = subject.lineage.words[word] & bits;
            (&raw mut (*into).lineage.words[word]).write_volatile(lineage);
        }
        let kind = if subject.kind == 0 { NO_KIND } else { subject.kind };
        (&raw mut (*into).kind).write_volatile(kind);
        (&raw mut (*into).tally).write_volatile((where_and_what >> 32) as u32);
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

//! Which cgroups that somebody else has made are sandboxes, wherever they are in the hierarchy: for
//! starts of programs and walks alone. What every hook asks is the identity that is given there.

use aya_ebpf::{
    bindings::BPF_ANY,
    macros::map,
    maps::{Array, BloomFilter},
};
use clawbox_common::{
    attach::{Attached, LEVELS, NOT_ATTACHED, PENDING, STARTERS},
    limits,
    subject::FileId,
};
use core::ptr::{read_volatile, write_volatile};

use crate::{
    emit,
    kernel_read::{self, Kernel, Untyped},
    subject,
};

/// The sandbox that a cgroup is in: the innermost one's above it that is one.
///
/// With C's linkage, so that the verifier takes it once, as [`crate::search::meet`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn attached(cgroup: u64) -> Attached {
    let cgroup = Untyped(cgroup);
    let depth = cgroup.level();
    let mut found = NOT_ATTACHED;
    // The root, of level 0, is nobody's.
    for level in 1..=LEVELS as u64 {
        if level > depth {
            break;
        }
        if let Some(sandbox) = subject::sandbox_of_cgroup(cgroup.ancestor(level)) {
            found = u64::from(sandbox);
        }
    }
    if found == NOT_ATTACHED && has_unasked() && is_unasked(cgroup.0) != 0 {
        return u64::from(PENDING);
    }
    found
}

/// Cgroups that the agent should be asked about, and that are not in its table: there was no room, or they
/// are deeper than is looked. Whoever is in one is held and denied for good. A set that is never full: where
/// it says so of one that is not in it, too much is held.
#[map]
static UNASKED: BloomFilter<u64> = BloomFilter::with_max_entries(limits::UNASKED, 0);

/// 1 once something is in it.
#[map]
static HAS_UNASKED: Array<u32> = Array::with_max_entries(1, 0);

#[inline(always)]
fn has_unasked() -> bool {
    // SAFETY: an aligned word that only ever becomes 1.
    HAS_UNASKED.get_ptr(0).is_none_or(|word| unsafe { read_volatile(word) != 0 })
}

/// Has a cgroup be held that there is no room for. It is counted, for the trail.
#[inline(always)]
pub fn hold_unasked(cgroup: u64) {
    let _ = UNASKED.insert(cgroup, u64::from(BPF_ANY));
    if let Some(word) = HAS_UNASKED.get_ptr_mut(0) {
        // SAFETY: an aligned word; others write the same.
        unsafe { write_volatile(word, 1) }
    }
    emit::unasked();
}

/// Whether a cgroup or one above it is held so; what is deeper than is looked here either is.
///
/// With C's linkage, so that the verifier takes it once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn is_unasked(cgroup: u64) -> u32 {
    let cgroup = Untyped(cgroup);
    let depth = cgroup.level();
    for level in 1..=DEEPEST {
        if level > depth {
            return 0;
        }
        if UNASKED.contains(cgroup.ancestor(level)).is_ok() {
            return 1;
        }
    }
    u32::from(depth > DEEPEST)
}

/// Levels of the hierarchy at which [`is_unasked`] looks.
const DEEPEST: u64 = 64;

/// The sandbox of a task whose own cgroup is none of clawbox's, and that is about to run a program.
/// `None` where it is in none, or the program is one that starts others.
#[inline(always)]
pub fn newcomer(task: Kernel, exe: FileId) -> Option<u32> {
    let found = attached(kernel_read::cgroup(task));
    if found == NOT_ATTACHED || subject::named(exe, STARTERS).is_some() {
        return None;
    }
    Some(found as u32)
}

/// Whether the agent has yet to say what a cgroup is.
#[inline(always)]
pub const fn is_pending(sandbox: u32) -> bool {
    sandbox == PENDING
}

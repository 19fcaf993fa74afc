//! Marks of thread groups that may have an identity: nearly every process of the host has none, and
//! is told by one load where a look into the table of identities would be a hash and a walk.

use core::{
    intrinsics::{AtomicOrdering, atomic_cxchg},
    ptr::{read_volatile, write_volatile},
};

use clawbox_common::limits;

use crate::maps::MARKS;

/// Several thread groups have had this mark at one time: it says nothing from then on.
const CROWDED: u64 = u64::MAX;

#[inline(always)]
fn of(group: u32) -> Option<*mut u64> {
    MARKS.get_ptr_mut(group & (limits::MARKS - 1))
}

/// False only for a thread group that was never marked, or has been unmarked since.
#[inline(always)]
pub fn is_set(group: u32) -> bool {
    let Some(mark) = of(group) else { return true };
    // SAFETY: an aligned word of a map value.
    let mark = unsafe { read_volatile(mark) };
    mark == u64::from(group) || mark == CROWDED
}

/// Marks a thread group. To be done before it is given an identity.
#[inline(always)]
pub fn set(group: u32) {
    let Some(mark) = of(group) else { return };
    let group = u64::from(group);
    let (held, is_new) = exchange(mark, 0, group);
    if !is_new && held != group {
        // SAFETY: an aligned word of a map value. Whoever changes it meanwhile compares first, and
        // this value compares with no number.
        unsafe { write_volatile(mark, CROWDED) }
    }
}

/// Takes the mark from a thread group that has no identity any more.
#[inline(always)]
pub fn clear(group: u32) {
    if let Some(mark) = of(group) {
        exchange(mark, u64::from(group), 0);
    }
}

#[inline(always)]
fn exchange(mark: *mut u64, from: u64, to: u64) -> (u64, bool) {
    // SAFETY: an aligned word of a map value.
    unsafe {
        atomic_cxchg::<u64, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(mark, from, to)
    }
}

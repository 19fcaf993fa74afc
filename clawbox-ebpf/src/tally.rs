//! Counts of what is allowed, by program and directory: there are too many opens for a record each,
//! and a count of all of them is exact.

use aya_ebpf::{
    bindings::{BPF_F_NO_PREALLOC, BPF_NOEXIST},
    helpers::generated::bpf_ktime_get_boot_ns,
    macros::map,
    maps::{Array, HashMap},
};
use clawbox_common::{
    file::{EXECUTE, READ, Tally, TallyKey, TallyPlace, WRITE},
    flow::COUNTED_USES,
    limits,
    subject::{FileId, Subject},
};
use core::intrinsics::{AtomicOrdering, atomic_xadd};

use crate::counter;

/// What is counted, and where. An entry is made once and never changed or removed.
#[map]
static TALLY_PLACES: HashMap<TallyKey, TallyPlace> =
    HashMap::with_max_entries(limits::TALLIES, BPF_F_NO_PREALLOC);

#[map]
static TALLIES: Array<Tally> = Array::with_max_entries(limits::TALLIES, 0);

/// Of which sandboxes flows or uses are counted. A mark is made here and taken away by the agent, once nothing runs
/// in the sandbox.
#[map]
static COUNTED: Array<[u32; 2]> = Array::with_max_entries(limits::SANDBOXES + 1, 0);

/// Marks that something is counted of a sandbox, before it is.
#[inline(always)]
pub fn mark(sandbox: u32, what: usize) {
    if let Some(marks) = COUNTED.get_ptr_mut(sandbox) {
        // SAFETY: an aligned word of a map value.
        unsafe { (&raw mut (*marks)[what]).write_volatile(1) };
    }
}

/// Places given out so far.
#[map]
static TALLY_PLACES_TAKEN: Array<u64> = Array::with_max_entries(1, 0);

/// The place that nobody reads: for uses that are not to be counted.
pub const NOBODYS: u32 = 0;
/// No place: uses are to be told otherwise.
pub const NONE: u32 = u32::MAX;

/// What became of a use.
#[derive(Clone, Copy, PartialEq)]
pub enum Counted {
    /// Its program and directory were known.
    Again,
    /// They came up for the first time.
    First,
    /// There is no room for them.
    Lost,
}

/// Counts one use, and says where; zero is nowhere. `access` is bits of `clawbox_common::file`; one
/// of several counts for each.
#[inline(always)]
pub fn add(subject: &Subject, directory: FileId, access: u32) -> (Counted, u32) {
    let key = TallyKey { exe: subject.exe, directory, sandbox: subject.sandbox, zero: 0 };
    let found = count_use(&raw const key, access);
    let slot = found as u32;
    let counted = match (slot, found & FIRST) {
        (0, _) => Counted::Lost,
        (_, 0) => Counted::Again,
        _ => Counted::First,
    };
    (counted, slot)
}

/// Beside a place: it was taken just now.
const FIRST: u64 = 1 << 32;

/// The place where a use was counted, zero for none, and [`FIRST`]. With C's linkage, so that the
/// verifier takes it once, as [`crate::search::meet`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn count_use(key: *const TallyKey, access: u32) -> u64 {
    // SAFETY: null, or a whole value of each caller, to which the verifier sees.
    let Some(key) = (unsafe { key.as_ref() }) else { return 0 };
    // A copy on this function's stack: 6.1 takes no key from the memory of another one.
    let key = *key;
    // Also where the place is known: an earlier sandbox of this number may have made it.
    mark(key.sandbox, COUNTED_USES);
    let (mut first, mut slot) = (0, place(&key));
    if slot == 0 {
        slot = take_place();
        // SAFETY: a helper without arguments.
        let now = unsafe { bpf_ktime_get_boot_ns() };
        let found = TallyPlace { slot, zero: 0, first: now };
        if slot != 0 && TALLY_PLACES.insert(key, found, u64::from(BPF_NOEXIST)).is_ok() {
            first = FIRST;
        } else {
            // Another CPU was faster, or there is no room.
            slot = place(&key);
        }
    }
    if slot != 0 && again(slot, access) { u64::from(slot) | first } else { 0 }
}

/// Where a key is counted; zero is nowhere yet.
#[inline(always)]
fn place(key: &TallyKey) -> u32 {
    // SAFETY: entries are never changed.
    unsafe { TALLY_PLACES.get(key) }.map_or(0, |place| place.slot)
}

/// A place that nobody has; zero where there is none left. With C's linkage, as [`count_use`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn take_place() -> u32 {
    let Some(taken) = TALLY_PLACES_TAKEN.get_ptr_mut(0) else { return 0 };
    // SAFETY: an aligned word of a map value, which nobody else changes.
    match unsafe { counter::next(taken) } {
        number if number < u64::from(limits::TALLIES) => number as u32,
        _ => 0,
    }
}

/// Counts one use where such uses are counted. False where that is no place.
#[inline(always)]
pub fn again(slot: u32, access: u32) -> bool {
    let Some(tally) = TALLIES.get_ptr_mut(slot) else { return false };
    // SAFETY: aligned words of a map value.
    unsafe {
        // What is asked most, by one comparison.
        if access == READ {
            one_more(&raw mut (*tally).reads);
            return true;
        }
        if access & READ != 0 {
            one_more(&raw mut (*tally).reads);
        }
        if access & WRITE != 0 {
            one_more(&raw mut (*tally).writes);
        }
        if access & EXECUTE != 0 {
            one_more(&raw mut (*tally).executes);
        }
    }
    true
}

/// # Safety
/// An aligned word of a map value.
#[inline(always)]
unsafe fn one_more(count: *mut u64) {
    // SAFETY: the caller's promise.
    unsafe {
        atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(count, 1);
    }
}

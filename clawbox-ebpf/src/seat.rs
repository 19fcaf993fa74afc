//! Seats: places found by a thread group's number alone, each with the number of who sits there and a
//! copy of its identity. Nearly every process of the host sits nowhere, and is told by one load.

use core::{
    intrinsics::{AtomicOrdering, atomic_cxchg},
    mem::offset_of,
    ptr::{read_volatile, write_volatile},
};

use clawbox_common::{
    limits,
    subject::{Seat, Subject},
};

use crate::maps::SEATS;

/// Several thread groups have had this seat at one time: it says nothing from then on.
const CROWDED: u64 = u64::MAX;

/// Words of an identity.
const WORDS: usize = size_of::<Subject>() / 8;
const _: () = assert!(size_of::<Subject>().is_multiple_of(8));
// What `copy` relies on.
const _: () = assert!(offset_of!(Subject, incarnation) == 0);

#[inline(always)]
fn of(group: u32) -> Option<*mut Seat> {
    SEATS.get_ptr_mut(group & (limits::SEATS - 1))
}

#[inline(always)]
fn occupant(seat: *mut Seat) -> u64 {
    // SAFETY: an aligned word of a map value.
    unsafe { read_volatile(&raw const (*seat).group) }
}

/// What a seat says of a thread group.
pub enum Found<'a> {
    /// It has no identity.
    Nobody,
    /// It sits here, and this is its identity if that was written for it.
    Seated(&'a Subject),
    /// Only the table of identities knows.
    Crowded,
}

/// Looks for a thread group. Its own exec alone changes what it sees, when it has one thread left;
/// a seat is given to another one after its end.
#[inline(always)]
pub fn find<'a>(group: u64) -> Found<'a> {
    let Some(seat) = of(group as u32) else { return Found::Crowded };
    match occupant(seat) {
        // SAFETY: a map value, which stays as long as the map; see above for changes.
        held if held == group => Found::Seated(unsafe { &(*seat).subject }),
        CROWDED => Found::Crowded,
        _ => Found::Nobody,
    }
}

/// False only for a thread group that never took a seat, or has left it since.
#[inline(always)]
pub fn may_have_identity(group: u64) -> bool {
    !matches!(find(group), Found::Nobody)
}

/// Seats a thread group. To be done before it is given an identity.
#[inline(always)]
pub fn take(group: u32) {
    let Some(seat) = of(group) else { return };
    // SAFETY: a word of a map value.
    let occupant = unsafe { &raw mut (*seat).group };
    let group = u64::from(group);
    let (held, is_new) = exchange(occupant, 0, group);
    if !is_new && held != group {
        // SAFETY: an aligned word of a map value. Whoever changes it meanwhile compares first, and
        // this value compares with no number.
        unsafe { write_volatile(occupant, CROWDED) }
    }
}

/// Copies an identity from the table to its thread group's seat, if that is its alone.
#[inline(always)]
pub fn copy(group: u32, subject: *const Subject) {
    let Some(seat) = of(group) else { return };
    if occupant(seat) != u64::from(group) {
        return;
    }
    // SAFETY: two map values of whole words. Nobody else writes to this one while the seat is the
    // group's, and it is the group's own exec or its parent's fork that is here.
    unsafe {
        let (from, to) = (subject.cast::<u64>(), (&raw mut (*seat).subject).cast::<u64>());
        // From the end: whom it was written for comes last, so that nobody takes a half of the old
        // and a half of the new for an identity.
        for word in (0..WORDS).rev() {
            write_volatile(to.add(word), read_volatile(from.add(word)));
        }
    }
}

/// Takes the seat from a thread group that has no identity any more.
#[inline(always)]
pub fn leave(group: u32) {
    if let Some(seat) = of(group) {
        // SAFETY: a word of a map value.
        exchange(unsafe { &raw mut (*seat).group }, u64::from(group), 0);
    }
}

#[inline(always)]
fn exchange(occupant: *mut u64, from: u64, to: u64) -> (u64, bool) {
    // SAFETY: an aligned word of a map value.
    unsafe {
        atomic_cxchg::<u64, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(
            occupant, from, to,
        )
    }
}

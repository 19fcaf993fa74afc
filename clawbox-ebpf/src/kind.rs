//! Numbers for kinds of subjects, so that whom a remembered allow is for is told by one comparison.
//! A number is given once: two subjects that have the same one are the same to every rule.

use aya_ebpf::{bindings::BPF_NOEXIST, macros::map, maps::LruHashMap};
use clawbox_common::{
    limits,
    subject::{Kind, Subject},
};

use core::ptr::read_volatile;

use crate::counter;

/// Numbers that were given. Forgetting one costs its kind another number.
#[map]
static KINDS: LruHashMap<Kind, u64> = LruHashMap::with_max_entries(limits::KINDS, 0);

/// Numbers up to this one were given, counted from [`FIRST_KIND`].
static mut LAST: u64 = 0;

/// Where the numbers of this load begin. The agent puts the time there at each load: subjects that a load
/// before has numbered keep their numbers, and nobody gets one of them a second time.
#[unsafe(no_mangle)]
static FIRST_KIND: u64 = 0;

/// The number of a subject's kind; zero where none can be had. With C's linkage, so that the verifier
/// takes it once, as [`crate::search::meet`]; and with a stack of its own.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn number(subject: *const Subject) -> u64 {
    // SAFETY: null, or a whole value of the caller, to which the verifier sees.
    let Some(subject) = (unsafe { subject.as_ref() }) else { return 0 };
    // On this function's stack: 6.1 takes no key from the memory of another one.
    let kind = subject.what_kind();
    if let Some(number) = given(&kind) {
        return number;
    }
    // SAFETY: a word that nobody else changes.
    let count = unsafe { counter::next(&raw mut LAST) };
    // SAFETY: a reference to an initialised static; volatile, because the agent patches it.
    let fresh = count.wrapping_add(unsafe { read_volatile(&FIRST_KIND) });
    if count != 0 && KINDS.insert(&kind, fresh, u64::from(BPF_NOEXIST)).is_ok() {
        return fresh;
    }
    // Another CPU was faster, or there is no room.
    given(&kind).unwrap_or(0)
}

#[inline(always)]
fn given(kind: &Kind) -> Option<u64> {
    // SAFETY: a value is written when its entry is made, and not changed afterwards.
    unsafe { KINDS.get(kind) }.copied()
}

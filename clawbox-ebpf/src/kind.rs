//! Numbers for kinds of subjects, so that whom a remembered allow is for is told by one comparison.
//! A number is given once: two subjects that have the same one are the same to every rule.

use aya_ebpf::{bindings::BPF_NOEXIST, macros::map, maps::LruHashMap};
use clawbox_common::{
    limits,
    subject::{Kind, Subject},
};
use core::{
    intrinsics::{AtomicOrdering, atomic_cxchg},
    ptr::read_volatile,
};

/// Numbers that were given. Forgetting one costs its kind another number.
#[map]
static KINDS: LruHashMap<Kind, u64> = LruHashMap::with_max_entries(limits::KINDS, 0);

/// The last number that was given.
static mut LAST: u64 = 0;

/// How often the next number is tried for, while other CPUs take numbers too.
const TRIES: u32 = 16;

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
    let fresh = next();
    if fresh != 0 && KINDS.insert(&kind, fresh, u64::from(BPF_NOEXIST)).is_ok() {
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

/// Not by an addition: without 32-bit registers LLVM has none that gives what was there before.
#[inline(always)]
fn next() -> u64 {
    let last = &raw mut LAST;
    for _ in 0..TRIES {
        // SAFETY: an aligned word, which everybody changes so.
        let (before, is_taken) = unsafe {
            let before = read_volatile(last);
            atomic_cxchg::<u64, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(
                last,
                before,
                before + 1,
            )
        };
        if is_taken {
            return before + 1;
        }
    }
    0
}

//! Numbers that are given out one after the other, each once, on any processor.

use core::{
    intrinsics::{AtomicOrdering, atomic_cxchg},
    ptr::read_volatile,
};

/// How often the next number is tried for, while other CPUs take numbers too.
const TRIES: u32 = 16;

/// The next number, from 1; zero where others were faster each time. Not by an addition: without 32-bit
/// registers LLVM has none that gives what was there before.
///
/// # Safety
/// An aligned word that outlives the call, and that everybody changes by this function alone.
#[inline(always)]
pub unsafe fn next(last: *mut u64) -> u64 {
    for _ in 0..TRIES {
        // SAFETY: the caller's promise.
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

//! Counts of what is allowed, by program and directory: there are too many opens for a record each,
//! and a count of all of them is exact.

use aya_ebpf::{
    bindings::{BPF_F_NO_PREALLOC, BPF_NOEXIST},
    helpers::generated::bpf_ktime_get_boot_ns,
    macros::map,
    maps::HashMap,
};
use clawbox_common::{
    file::{EXECUTE, READ, Tally, TallyKey, WRITE},
    limits,
    subject::{FileId, Subject},
};

#[map]
static TALLIES: HashMap<TallyKey, Tally> =
    HashMap::with_max_entries(limits::TALLIES, BPF_F_NO_PREALLOC);

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

/// Counts one use. `access` is bits of `clawbox_common::file`; one of several counts for each.
#[inline(always)]
pub fn add(subject: &Subject, directory: FileId, access: u32) -> Counted {
    let key = TallyKey { exe: subject.exe, directory, sandbox: subject.sandbox, zero: 0 };
    // SAFETY: a helper without arguments.
    let now = unsafe { bpf_ktime_get_boot_ns() };
    if count(&key, access, now) {
        return Counted::Again;
    }
    let bit = |kind: u32| u64::from(access & kind != 0);
    let first = Tally {
        reads: bit(READ),
        writes: bit(WRITE),
        executes: bit(EXECUTE),
        first: now,
        last: now,
    };
    if TALLIES.insert(key, first, u64::from(BPF_NOEXIST)).is_ok() {
        return Counted::First;
    }
    // Another CPU was faster, or there is no room.
    if count(&key, access, now) { Counted::Again } else { Counted::Lost }
}

#[inline(always)]
fn count(key: &TallyKey, access: u32, now: u64) -> bool {
    let Some(tally) = TALLIES.get_ptr_mut(key) else { return false };
    // SAFETY: aligned words of a map value; the additions are atomic, and of two that set the last
    // time either is right.
    unsafe {
        if access & READ != 0 {
            one_more(&raw mut (*tally).reads);
        }
        if access & WRITE != 0 {
            one_more(&raw mut (*tally).writes);
        }
        if access & EXECUTE != 0 {
            one_more(&raw mut (*tally).executes);
        }
        (&raw mut (*tally).last).write_volatile(now);
    }
    true
}

/// # Safety
/// An aligned word of a map value.
#[inline(always)]
unsafe fn one_more(count: *mut u64) {
    // SAFETY: the caller's promise.
    unsafe {
        core::intrinsics::atomic_xadd::<u64, u64, { core::intrinsics::AtomicOrdering::Relaxed }>(
            count, 1,
        );
    }
}

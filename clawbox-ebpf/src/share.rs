//! How much of a ring one sandbox's events may take while nobody reads it: a part of what is free then, so that
//! whoever floods leaves room to all others. Looked at only where a ring has begun to fill.

use aya_ebpf::{
    bindings::{BPF_RB_AVAIL_DATA, BPF_RB_CONS_POS, BPF_RB_RING_SIZE},
    macros::map,
    maps::Array,
};
use clawbox_common::{
    limits::{self, EVENT_WAKE},
    verdict::Verdict,
};
use core::ptr::read_volatile;

use crate::emit::ring_of;

/// What a sandbox's events have taken of a ring since it was read last.
#[repr(C)]
#[derive(Clone, Copy)]
struct Share {
    /// How far it was read then.
    since: u64,
    bytes: u64,
}

/// By sandbox, two for each: of the ring for what is denied and of that for what is allowed.
#[map]
static SHARES: Array<Share> = Array::with_max_entries(2 * (limits::SANDBOXES + 1), 0);

/// Hundredths of what is free and of what it has together that a sandbox's events may take.
#[unsafe(no_mangle)]
static SHARE: u32 = 100;

/// Whether the ring for this verdict has begun to fill.
#[inline(never)]
pub fn is_filling(verdict: u8) -> bool {
    ring_of(verdict).query(u64::from(BPF_RB_AVAIL_DATA)) >= EVENT_WAKE
}

/// Whether a sandbox has taken its share of the ring for this verdict; if not, it takes so many bytes more.
/// Two processors that ask for one sandbox at one moment may each count as one: it is a bound of room, and no
/// count of events.
#[inline(never)]
pub fn is_over(sandbox: u32, verdict: u8, record: u32) -> bool {
    let ring = ring_of(verdict);
    let filled = ring.query(u64::from(BPF_RB_AVAIL_DATA));
    let read = ring.query(u64::from(BPF_RB_CONS_POS));
    let number = sandbox.wrapping_mul(2) | u32::from(verdict == Verdict::Allow as u8);
    let Some(share) = SHARES.get_ptr_mut(number) else { return false };
    // SAFETY: read-only data, written before the program was loaded.
    let hundredths = u64::from(unsafe { read_volatile(&raw const SHARE) });
    // SAFETY: aligned words of a map value.
    unsafe {
        if (&raw const (*share).since).read_volatile() != read {
            (&raw mut (*share).since).write_volatile(read);
            (&raw mut (*share).bytes).write_volatile(0);
        }
        // The ring puts 8 bytes in front of each record.
        let bytes = (&raw const (*share).bytes).read_volatile() + u64::from(record) + 8;
        let free = ring.query(u64::from(BPF_RB_RING_SIZE)).saturating_sub(filled);
        if bytes * 100_u64.saturating_sub(hundredths) > free * hundredths {
            return true;
        }
        (&raw mut (*share).bytes).write_volatile(bytes);
    }
    false
}

//! Numbers of ring records: which ring, which processor and the how many-th. One is taken for each attempt to
//! report, so that a number which nobody has read is an event that was lost.

/// Where the ring stands in a number.
const RING: u32 = 63;

/// Where the processor does, below that.
const PROCESSOR: u32 = 48;

/// The ring of what is denied, held or started.
pub const EVENTS: u32 = 0;

/// The ring of what is allowed.
pub const ALLOWS: u32 = 1;

/// A processor's account of a ring. In this order: who copies it sees no loss whose number it does not see.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Account {
    /// Attempts that found no room.
    pub lost: u64,
    /// The number of the next attempt. The agent writes the first before any program runs.
    pub next: u64,
}

/// The first number of a ring and a processor.
#[must_use]
pub const fn first(ring: u32, processor: u32) -> u64 {
    ((ring & 1) as u64) << RING | ((processor & 0x7fff) as u64) << PROCESSOR
}

/// The how many-th it is, from zero.
#[must_use]
pub const fn count(number: u64) -> u64 {
    number & ((1 << PROCESSOR) - 1)
}

/// Of which ring and which processor: the processor times two, and the ring.
#[must_use]
pub const fn lane(number: u64) -> u16 {
    (((number >> PROCESSOR) & 0x7fff) as u16) << 1 | (number >> RING) as u16
}

/// The first number of a lane.
#[must_use]
pub const fn first_of(lane: u16) -> u64 {
    first((lane & 1) as u32, (lane >> 1) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_says_its_ring_its_processor_and_its_place() {
        for (ring, processor) in [(EVENTS, 0), (ALLOWS, 0), (EVENTS, 1), (ALLOWS, 0x7fff)] {
            let number = first(ring, processor) + 77;
            assert_eq!(lane(number), (processor * 2 + ring) as u16);
            assert_eq!((count(number), number - 77), (77, first_of(lane(number))));
        }
    }
}

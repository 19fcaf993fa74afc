//! The kernel's counts of what it allowed, by program and directory. They only go up; what is new
//! since the last look is the difference.

use std::collections::HashMap as Seen;
use std::io;
use std::os::fd::OwnedFd;

use aya::maps::{Array, MapData, MapError};
use clawbox_common::file::{Tally, TallyKey, TallyPlace};
use nix::time::{ClockId, clock_gettime};

use super::batch;

/// The counts of one load.
pub struct Tallies {
    places: OwnedFd,
    counts: Array<MapData, Tally>,
    seen: Seen<TallyKey, Tally>,
    /// When the last look began, nanoseconds of `CLOCK_BOOTTIME`.
    looked: u64,
}

/// What was allowed between two looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Uses {
    /// How often.
    pub tally: Tally,
    /// Not before this, nanoseconds of `CLOCK_BOOTTIME`: the first use of all, or the look before.
    pub first: u64,
    /// Not after this: the look.
    pub last: u64,
}

impl Tallies {
    pub(super) fn new(places: OwnedFd, counts: Array<MapData, Tally>) -> Self {
        Self { places, counts, seen: Seen::new(), looked: 0 }
    }

    /// What was allowed since the last call, in the order of first use.
    ///
    /// # Errors
    /// A map cannot be read.
    pub fn since_last(&mut self) -> Result<Vec<(TallyKey, Uses)>, MapError> {
        let began = now()?;
        let mut news = Vec::new();
        let places = batch::all::<TallyKey, TallyPlace>(&self.places).map_err(batch::failed)?;
        for (key, place) in places {
            let counted = self.counts.get(&place.slot, 0)?;
            let before = self.seen.get(&key).copied();
            let tally = difference(&counted, &before.unwrap_or_default());
            if tally != Tally::default() {
                self.seen.insert(key, counted);
                let first = place.first.max(self.looked);
                news.push((place.first, key, Uses { tally, first, last: 0 }));
            }
        }
        self.looked = began;
        let last = now()?;
        news.sort_by_key(|(first, key, _)| (*first, *key));
        Ok(news.into_iter().map(|(_, key, uses)| (key, Uses { last, ..uses })).collect())
    }
}

fn now() -> Result<u64, MapError> {
    let failed = |errno| {
        MapError::SyscallError(aya::sys::SyscallError {
            call: "clock_gettime",
            io_error: io::Error::from(errno),
        })
    };
    let time = std::time::Duration::from(clock_gettime(ClockId::CLOCK_BOOTTIME).map_err(failed)?);
    Ok(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
}

fn difference(now: &Tally, before: &Tally) -> Tally {
    Tally {
        reads: now.reads.saturating_sub(before.reads),
        writes: now.writes.saturating_sub(before.writes),
        executes: now.executes.saturating_sub(before.executes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_of_all_differences_is_the_count() {
        let mut before = Tally::default();
        let mut sum = Tally::default();
        for (reads, writes, executes) in [(1, 0, 0), (3, 1, 0), (3, 1, 2)] {
            let now = Tally { reads, writes, executes };
            let new = difference(&now, &before);
            sum.reads += new.reads;
            sum.writes += new.writes;
            sum.executes += new.executes;
            before = now;
        }
        assert_eq!(sum, Tally { reads: 3, writes: 1, executes: 2 });
    }
}

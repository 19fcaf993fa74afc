//! The kernel's counts of what it allowed, by program and directory. They only go up; what is new
//! since the last look is the difference.

use std::collections::HashMap as Seen;

use aya::maps::{HashMap, MapData, MapError};
use clawbox_common::file::{Tally, TallyKey};

/// The counts of one load.
pub struct Tallies {
    counts: HashMap<MapData, TallyKey, Tally>,
    seen: Seen<TallyKey, Tally>,
}

impl Tallies {
    pub(super) fn new(counts: HashMap<MapData, TallyKey, Tally>) -> Self {
        Self { counts, seen: Seen::new() }
    }

    /// What was allowed since the last call, in the order of first use. `first` is when the counted
    /// uses began: at the first use of all, or at the last of the uses told before.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn since_last(&mut self) -> Result<Vec<(TallyKey, Tally)>, MapError> {
        let mut news = Vec::new();
        for entry in self.counts.iter() {
            let (key, now) = entry?;
            let before = self.seen.get(&key).copied().unwrap_or_default();
            let new = difference(&now, &before);
            if new.reads + new.writes + new.executes > 0 {
                self.seen.insert(key, now);
                news.push((key, new));
            }
        }
        news.sort_by_key(|(key, tally)| (tally.first, *key));
        Ok(news)
    }
}

fn difference(now: &Tally, before: &Tally) -> Tally {
    Tally {
        reads: now.reads.saturating_sub(before.reads),
        writes: now.writes.saturating_sub(before.writes),
        executes: now.executes.saturating_sub(before.executes),
        first: if before.last == 0 { now.first } else { before.last },
        last: now.last,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_of_all_differences_is_the_count() {
        let counts = [(1, 0, 0, 5), (3, 1, 0, 9), (3, 1, 2, 12)];
        let mut before = Tally::default();
        let mut sum = Tally::default();
        for (reads, writes, executes, last) in counts {
            let now = Tally { reads, writes, executes, first: 5, last };
            let new = difference(&now, &before);
            sum.reads += new.reads;
            sum.writes += new.writes;
            sum.executes += new.executes;
            assert_eq!(
                (new.first, new.last),
                (if before.last == 0 { 5 } else { before.last }, last)
            );
            before = now;
        }
        assert_eq!((sum.reads, sum.writes, sum.executes), (3, 1, 2));
    }
}

//! What waits to be written to the store: rows, what found no room, and when the writer is to come for it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::columns::Columns;
use super::row;
use crate::audit::record::Gap;
use crate::audit::trail::gap_of;

/// How long a denial, an answer or a lifecycle record waits for others, from when it may have happened; it is
/// durable within 200 ms, of which a disk takes some. Of the two looks that are in it the second is no longer
/// under way when its time has come.
const SOON: Duration = Duration::from_millis(170);

/// How long all else does, from when it happened; it is durable within a second.
const LATER: Duration = Duration::from_millis(700);

/// So many rows are written without waiting.
pub const FULL: usize = 65_536;

/// Rows of allows that may wait for a disk.
const BOUND: usize = 16 * FULL;

/// Rows in all: this much is left to denials.
const URGENT_BOUND: usize = 17 * FULL;

/// The same of rows that say what no other one says, which take more memory.
const OWN_BOUND: usize = 2 * FULL;
const URGENT_OWN_BOUND: usize = 5 * FULL / 2;

/// The kind of the gap that records leave which found no room.
const UNSTORED: &str = "unstored";

/// Bytes of texts that may wait.
const TEXT_BOUND: usize = 32 << 20;

/// What waits to be written.
#[derive(Default)]
pub(super) struct Waiting {
    pub(super) columns: Columns,
    /// When the oldest row came, or what it tells may have happened.
    pub(super) since: Option<Instant>,
    /// The same of the oldest urgent one.
    pub(super) urgent: Option<Instant>,
    /// What found no room, by sandbox.
    pub(super) lost: BTreeMap<String, u64>,
    /// How many of those had a number of the kernel's.
    pub(super) lost_numbers: u64,
    /// Digests of the policies whose texts are among the rows.
    pub(super) policies: BTreeSet<String>,
    /// Nothing that comes now has happened before.
    pub(super) from: Option<Instant>,
    pub(super) is_closed: bool,
    /// What comes now belongs together: no batch ends in it.
    pub(super) is_held: bool,
    /// The writer waits for its end.
    pub(super) is_wanted: bool,
    /// What was cut off for it when that came.
    pub(super) cut: Option<Columns>,
}

impl Waiting {
    pub(super) fn has_room(&self, is_urgent: bool) -> bool {
        let (rows, own) =
            if is_urgent { (URGENT_BOUND, URGENT_OWN_BOUND) } else { (BOUND, OWN_BOUND) };
        self.columns.rows() < rows && self.columns.own() < own && self.columns.pooled() < TEXT_BOUND
    }

    pub(super) fn lose(&mut self, sandbox: &str, count: u64) {
        match self.lost.get_mut(sandbox) {
            Some(lost) => *lost += count,
            None => drop(self.lost.insert(sandbox.to_owned(), count)),
        }
    }

    /// All that waits, to be a batch. What is said of numbers and has no rows yet waits on.
    pub(super) fn cut(&mut self) -> Columns {
        for (sandbox, count) in std::mem::take(&mut self.lost) {
            let gap = gap_of(Gap { count, kind: UNSTORED.to_owned(), verdict: None });
            row::put(&mut self.columns, &sandbox, None, &gap);
        }
        self.columns.of_rings.other.lost += std::mem::take(&mut self.lost_numbers);
        (self.since, self.urgent) = (None, None);
        self.policies.clear();
        match self.columns.rows() {
            0 => Columns::default(),
            _ => self.columns.take(),
        }
    }

    /// Rows have come. Whether the writer has to be told of it.
    pub(super) fn came(&mut self, is_urgent: bool) -> bool {
        let since = || self.from.or_else(|| Some(Instant::now()));
        let is_first = self.since.is_none();
        if is_first {
            self.since = since();
        }
        let is_first_urgent = is_urgent && self.urgent.is_none();
        if is_first_urgent {
            self.urgent = since();
        }
        is_first || is_first_urgent || self.columns.rows() == FULL
    }

    /// How long the writer may wait; `None` until something comes.
    pub(super) fn due(&self) -> Option<Duration> {
        if self.is_closed || self.columns.rows() >= FULL {
            return Some(Duration::ZERO);
        }
        let soon = self.urgent.map(|since| since + SOON);
        let later = self.since.map(|since| since + LATER);
        let due = soon.into_iter().chain(later).min()?;
        Some(due.saturating_duration_since(Instant::now()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// When a row is written that may have happened so long ago.
    fn due(ago: Duration, is_urgent: bool) -> Duration {
        let now = Instant::now();
        let mut waiting =
            Waiting { from: Some(now.checked_sub(ago).unwrap()), ..Waiting::default() };
        assert!(waiting.came(is_urgent), "nobody is told of the first");
        let at = waiting.due().unwrap() + now.elapsed();
        at + ago
    }

    #[test]
    fn what_waits_is_written_in_time_however_late_it_was_read() {
        // What is promised, less what a disk takes.
        for (is_urgent, promised) in [(true, 180), (false, 900)] {
            let promised = Duration::from_millis(promised);
            for ago in [0, 50, 150] {
                let ago = Duration::from_millis(ago);
                assert!(due(ago, is_urgent) <= promised, "{is_urgent} {ago:?}");
                assert!(due(ago, is_urgent) > ago, "nothing waits for others");
            }
            let late = promised * 2;
            let now = Instant::now();
            let from = Some(now.checked_sub(late).unwrap());
            let mut waiting = Waiting { from, ..Waiting::default() };
            waiting.came(is_urgent);
            assert_eq!(waiting.due(), Some(Duration::ZERO));
        }
    }
}

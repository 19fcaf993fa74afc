//! How many lines of a trail may say again what another line has said: the others are told as a number, and the
//! host's store has them.

use std::time::{Duration, Instant};

/// Lines a second, and at once, that say again what another line has said; the host's store has the others.
const REPEATS: (f64, f64) = (256.0, 1_024.0);

/// How often it is told how many those were.
const TELL: Duration = Duration::from_secs(1);

/// Lines that say again what another line has said.
#[derive(Debug)]
pub(super) struct Repeats {
    /// How many there may still be.
    left: f64,
    since: Instant,
    /// How many are in the host's store alone, and since when.
    untold: u64,
    told: Instant,
}

impl Repeats {
    pub(super) fn new() -> Self {
        let now = Instant::now();
        Self { left: REPEATS.1, since: now, untold: 0, told: now }
    }

    /// Whether one more may be a line.
    pub(super) fn take(&mut self) -> bool {
        let has_room = self.left >= 1.0;
        if has_room {
            self.left -= 1.0;
        } else {
            self.untold += 1;
        }
        has_room
    }

    /// Time has gone by. Gives how many are to be told of, where it is time for that.
    pub(super) fn look(&mut self, is_last: bool) -> Option<u64> {
        let now = Instant::now();
        let passed = now.duration_since(std::mem::replace(&mut self.since, now));
        self.left = passed.as_secs_f64().mul_add(REPEATS.0, self.left).min(REPEATS.1);
        let is_due = is_last || now.duration_since(self.told) >= TELL;
        if self.untold == 0 || !is_due {
            return None;
        }
        self.told = now;
        Some(std::mem::take(&mut self.untold))
    }
}

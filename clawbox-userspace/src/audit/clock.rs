//! The kernel's times as those of a trail. Records are put in order by them, so all of a batch are
//! told by one reading of both clocks.

use std::time::{Duration, SystemTime};

use nix::time::{ClockId, clock_gettime};

/// What the wall clock showed at boot, if it had run since as it does now.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    boot: Option<SystemTime>,
}

impl Clock {
    /// Reads both clocks. Who is kept waiting in between reads a later boot, so the earliest of a few
    /// is taken.
    #[must_use]
    pub fn now() -> Self {
        let read = || {
            let since_boot = Duration::from(clock_gettime(ClockId::CLOCK_BOOTTIME).ok()?);
            SystemTime::now().checked_sub(since_boot)
        };
        Self { boot: (0..3).filter_map(|_| read()).min() }
    }

    /// The wall-clock time of a `CLOCK_BOOTTIME` in nanoseconds; `None` if there is none.
    #[must_use]
    pub fn at(&self, boottime_ns: u64) -> Option<SystemTime> {
        self.boot?.checked_add(Duration::from_nanos(boottime_ns))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boot_time_is_turned_into_the_present() {
        let boot = clock_gettime(ClockId::CLOCK_BOOTTIME).unwrap();
        let wall = Clock::now().at(Duration::from(boot).as_nanos() as u64).unwrap();
        let apart = SystemTime::now().duration_since(wall).unwrap_or_default();
        assert!(apart < Duration::from_secs(5), "{apart:?}");
    }

    /// Two readings for two records would have put the later one first whenever the agent was kept
    /// waiting between the clocks.
    #[test]
    fn two_records_are_as_far_apart_as_what_they_record() {
        let clock = Clock::now();
        let (one, other) = (clock.at(1_000).unwrap(), clock.at(1_001).unwrap());
        assert_eq!(other.duration_since(one).unwrap(), Duration::from_nanos(1));
    }
}

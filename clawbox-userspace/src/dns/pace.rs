//! Who asks much waits while others ask: one loop answers all sandboxes' questions, and none of them is to
//! notice how many another one has.

use std::sync::Mutex;
use std::time::Duration;

use tokio::time::Instant;

use super::lock;

/// Questions of one sandbox, at once and in a second, that are answered as they come whoever else asks.
const AT_ONCE: f64 = 1_000.0;
const A_SECOND: f64 = 4_000.0;
/// Somebody else who has asked no longer ago is asking.
const LATELY: Duration = Duration::from_millis(50);
/// A shorter wait is not worth a turn; it is added to the next.
const LEAST: Duration = Duration::from_millis(4);

/// Which sandboxes of a host ask.
#[derive(Debug, Default)]
pub struct Traffic {
    /// The last one and the last other one, and when.
    last: Mutex<[Option<(u32, Instant)>; 2]>,
}

impl Traffic {
    /// A sandbox asks. Whether another one does.
    fn asks(&self, sandbox: u32, now: Instant) -> bool {
        let mut last = lock(&self.last);
        if last[0].is_some_and(|(before, _)| before != sandbox) {
            last[1] = last[0];
        }
        last[0] = Some((sandbox, now));
        last[1].is_some_and(|(_, asked)| now.saturating_duration_since(asked) < LATELY)
    }
}

/// How much one sandbox asks.
#[derive(Debug)]
pub(super) struct Pace {
    sandbox: u32,
    left: f64,
    at: Instant,
}

impl Pace {
    pub(super) fn new(sandbox: u32, now: Instant) -> Self {
        Self { sandbox, left: AT_ONCE, at: now }
    }

    /// One more question. How long the next one is to wait, if at all.
    pub(super) fn asked(&mut self, traffic: &Traffic, now: Instant) -> Option<Duration> {
        let passed = now.saturating_duration_since(self.at);
        self.at = now;
        let left = passed.as_secs_f64().mul_add(A_SECOND, self.left).min(AT_ONCE) - 1.0;
        // No more than a second's is owed, however many connections ask at once.
        self.left = left.max(-A_SECOND);
        if !traffic.asks(self.sandbox, now) {
            // Nobody is kept waiting, and nothing is owed.
            self.left = self.left.max(0.0);
            return None;
        }
        let owed = Duration::from_secs_f64((-self.left).max(0.0) / A_SECOND);
        (owed >= LEAST).then_some(owed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Questions that are answered in a second of one after the other each so far apart; another one asks as
    /// often as that.
    fn answered(apart: Duration, other: Option<Duration>) -> u32 {
        let traffic = Traffic::default();
        let begin = Instant::now();
        let mut pace = Pace::new(1, begin);
        let (mut now, mut answered, mut next) = (begin, 0, begin);
        let second = begin + Duration::from_secs(2);
        while now < second {
            while let Some(every) = other
                && next <= now
            {
                traffic.asks(2, next);
                next += every;
            }
            // The first second uses up what is there at once.
            answered += u32::from(now >= begin + Duration::from_secs(1));
            now += apart + pace.asked(&traffic, now).unwrap_or_default();
        }
        answered
    }

    #[test]
    fn who_asks_much_waits_only_while_another_asks() {
        let (fast, other) = (Duration::from_micros(50), Duration::from_millis(10));
        assert!(answered(fast, None) > 19_000);
        let beside = answered(fast, Some(other));
        assert!((3_900..=4_200).contains(&beside), "{beside}");
        assert!(answered(fast, Some(LATELY * 20)) > 15_000);
    }

    #[test]
    fn who_asks_little_never_waits() {
        let apart = Duration::from_micros(300);
        let beside = answered(apart, Some(Duration::from_micros(50)));
        assert!(beside >= 3_300, "{beside}");
    }

    #[test]
    fn many_questions_at_once_are_answered_as_they_come() {
        let (traffic, now) = (Traffic::default(), Instant::now());
        let mut pace = Pace::new(1, now);
        let waits = (0..1_100).filter(|_| {
            traffic.asks(2, now);
            pace.asked(&traffic, now).is_some()
        });
        let waits = waits.count();
        assert!((1..=100).contains(&waits), "{waits}");
    }

    #[test]
    fn of_two_who_ask_much_each_knows_of_the_other_and_neither_of_itself() {
        let (traffic, now) = (Traffic::default(), Instant::now());
        assert!(!traffic.asks(1, now) && !traffic.asks(1, now));
        assert!(traffic.asks(2, now) && traffic.asks(1, now) && traffic.asks(1, now));
        assert!(!traffic.asks(1, now + LATELY));
        assert!(traffic.asks(3, now + LATELY));
    }
}

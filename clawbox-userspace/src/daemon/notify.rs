//! What the daemon tells systemd, where systemd has started it: that it is ready, that its loop goes
//! round, and that it ends. Elsewhere all of it does nothing; and it never keeps a daemon from running.

use std::time::{Duration, Instant};

use sd_notify::NotifyState;

/// Tells that the loop goes round, as often as the unit's `WatchdogSec` asks for.
pub struct Heartbeat {
    every: Option<Duration>,
    last: Option<Instant>,
}

/// Everything is served from now on.
pub fn ready() -> Heartbeat {
    tell(&[NotifyState::Ready]);
    // Half of the time that is left before systemd takes the daemon for stuck, as it advises.
    Heartbeat { every: sd_notify::watchdog_enabled().map(|limit| limit / 2), last: None }
}

/// The daemon ends by itself, or was told to by somebody other than systemd.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// Between the two messages systemd waits; it wants the time of the first one.
pub async fn reloading(work: impl Future<Output = ()>) {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => tracing::debug!("systemd is not told of a reload: {error}"),
    }
    work.await;
    tell(&[NotifyState::Ready]);
}

impl Heartbeat {
    /// For each turn of the loop, however many there are.
    pub fn alive(&mut self) {
        if self.is_due(Instant::now()) {
            tell(&[NotifyState::Watchdog]);
        }
    }

    fn is_due(&mut self, now: Instant) -> bool {
        let Some(every) = self.every else { return false };
        let is_due = self.last.is_none_or(|last| now.duration_since(last) >= every);
        if is_due {
            self.last = Some(now);
        }
        is_due
    }
}

fn tell(what: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(what) {
        tracing::warn!("systemd does not hear what the daemon tells it: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watchdog_hears_no_more_than_half_of_its_time_apart() {
        let begin = Instant::now();
        let after = |seconds| begin + Duration::from_secs(seconds);
        let mut heartbeat = Heartbeat { every: Some(Duration::from_secs(15)), last: None };
        let heard: Vec<u64> = (0..60).filter(|turn| heartbeat.is_due(after(*turn))).collect();
        assert_eq!(heard, [0, 15, 30, 45]);
    }

    #[test]
    fn without_a_watchdog_nothing_is_told() {
        let mut heartbeat = Heartbeat { every: None, last: None };
        assert!(!heartbeat.is_due(Instant::now()));
    }
}

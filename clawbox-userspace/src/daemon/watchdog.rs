//! The daemon looks after what enforces: that every program is attached and pinned, and that it denies.
//! What is not so is put right, and told in the agent's own trail, every round anew while it lasts.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::time::{Duration, Instant, SystemTime};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Daemon;
use crate::audit::record::{Alarm, Object};
use crate::audit::trail::Draft;
use crate::kernel::attached::Fault;
use crate::sandbox::cgroup::Cgroup;

/// How often; from a second to an hour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub struct Every(Duration);

impl Default for Every {
    fn default() -> Self {
        Self(Duration::from_secs(10))
    }
}

impl TryFrom<String> for Every {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let every = humantime::parse_duration(&text)
            .map_err(|error| format!("`watchdog: {text}`: {error}; write a time, as in 10s"))?;
        if (Duration::from_secs(1)..=Duration::from_secs(3600)).contains(&every) {
            return Ok(Self(every));
        }
        Err(format!("`watchdog: {text}`: write a time from 1s to 1h"))
    }
}

impl From<Every> for String {
    fn from(every: Every) -> Self {
        every.to_string()
    }
}

impl fmt::Display for Every {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.0).fmt(to)
    }
}

/// What can be wrong.
pub const REASONS: [&str; 6] =
    ["detached", "replaced", "unpinned", "not-admitted", "not-denying", "untested"];

/// What it has found so far.
pub struct Watchdog {
    /// Where it tries what must be denied.
    probe: Cgroup,
    began: Instant,
    /// Rounds since the daemon's start.
    pub rounds: u64,
    /// When the last one was.
    pub last: SystemTime,
    /// By what was wrong.
    pub alarms: BTreeMap<&'static str, u64>,
    /// What was wrong in the last round and still is.
    pub failing: Vec<String>,
}

impl Watchdog {
    /// With a cgroup for the probe. The first round is due.
    pub(super) fn new(probe: Cgroup) -> Self {
        let (rounds, alarms, failing) = Default::default();
        let last = SystemTime::UNIX_EPOCH;
        Self { probe, began: Instant::now(), rounds, last, alarms, failing }
    }

    fn is_due(&mut self, every: Every) -> bool {
        if self.rounds > 0 && self.began.elapsed() < every.0 {
            return false;
        }
        self.began = Instant::now();
        true
    }
}

impl Daemon {
    /// A round, where one is due.
    pub(super) fn watch(&mut self) {
        if !self.watchdog.is_due(self.config.watchdog) {
            return;
        }
        let mut faults = self.host.check(&self.watchdog.probe);
        faults.extend(self.probe());
        self.watchdog.rounds += 1;
        self.watchdog.last = SystemTime::now();
        let open = faults.iter().filter_map(|fault| {
            let why = fault.unrepaired.as_ref()?;
            Some(format!("{} is {}: {why}", fault.part, fault.reason))
        });
        self.watchdog.failing = open.collect();
        for fault in faults {
            self.raise(fault);
        }
    }

    /// Whether what is attached denies; where it does not, all that can be is attached again first.
    fn probe(&mut self) -> Option<Fault> {
        let denies = |daemon: &mut Self| daemon.host.denies(&daemon.watchdog.probe);
        match denies(self) {
            Ok(true) => None,
            Ok(false) => {
                let repaired = self.host.attach_again().and_then(|()| match denies(self)? {
                    true => Ok(()),
                    false => Err(io::Error::other("what must be denied goes through")),
                });
                Some(Fault::of("probe", "not-denying", repaired))
            }
            Err(error) => Some(Fault::of("probe", "untested", Err(error))),
        }
    }

    fn raise(&mut self, fault: Fault) {
        let Fault { part, reason, unrepaired } = fault;
        *self.watchdog.alarms.entry(reason).or_default() += 1;
        // A pin that is gone has let nobody through: the daemon holds what was pinned.
        let is_grave = !matches!(reason, "unpinned" | "untested");
        let alarm = Alarm {
            severity: (if is_grave { "critical" } else { "warning" }).into(),
            part: part.clone(),
            repaired: unrepaired.is_none(),
            why: unrepaired.clone(),
            events: None,
        };
        self.host.tell(Draft::of_agent("alarm", reason, Object::Alarm(alarm)));
        match unrepaired {
            None => tracing::error!(part, reason, "watchdog: put right"),
            Some(why) => tracing::error!(part, reason, "watchdog: not put right: {why}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_comes_at_least_once_an_hour_and_at_most_once_a_second() {
        let every = |text: &str| Every::try_from(text.to_owned());
        assert_eq!(every("10s"), Ok(Every::default()));
        assert_eq!(every("1m").unwrap().to_string(), "1m");
        for text in ["0s", "999ms", "2h", "10", "off", ""] {
            assert!(every(text).unwrap_err().contains("write a time"), "{text}");
        }
    }
}

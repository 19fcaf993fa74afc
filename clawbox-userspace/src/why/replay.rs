//! What a policy would have said to what was recorded under another.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use serde::Serialize;

use super::seen::Seen;
use crate::judge::{Deed, Judge, Judged, Who};

/// Reasons that are no rule's: the kernel or the agent decided for its own sake.
const NOT_BY_RULE: [&str; 8] = [
    "own-listener",
    "resolver",
    "address-probe",
    "ephemeral-port",
    "approval",
    "no-record",
    "upstream-failed",
    "system-call",
];

/// Something that a policy says otherwise.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Changed {
    /// Who.
    pub program: String,
    /// What.
    pub what: String,
    /// What was recorded: `allow` or `deny`.
    pub was: &'static str,
    /// What the policy says.
    pub is: &'static str,
    /// Why.
    pub reason: &'static str,
    /// The rule, where one of the network allows it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// How often it was recorded.
    pub count: u64,
}

/// What came of it.
#[derive(Debug, Default, Serialize)]
pub struct Replayed {
    /// Decisions that would be the same.
    pub same: u64,
    /// Records about which a policy cannot be asked.
    pub not_asked: u64,
    /// What would be another.
    pub changed: Vec<Changed>,
}

impl Replayed {
    /// The same of others too, what would be denied first.
    pub fn add(&mut self, others: Self) {
        self.same += others.same;
        self.not_asked += others.not_asked;
        let mut counts: BTreeMap<Changed, u64> = BTreeMap::new();
        for mut changed in std::mem::take(&mut self.changed).into_iter().chain(others.changed) {
            let count = std::mem::take(&mut changed.count);
            *counts.entry(changed).or_default() += count;
        }
        self.changed = counts.into_iter().map(|(kind, count)| Changed { count, ..kind }).collect();
        self.sort();
    }

    fn sort(&mut self) {
        self.changed.sort_by_key(|changed| (changed.is == "allow", Reverse(changed.count)));
    }
}

/// Takes up records.
#[derive(Default)]
pub struct Replay {
    all: BTreeMap<(Who, Deed, bool), u64>,
    /// Counts of uses in directories: which files those were is not known.
    counted: BTreeMap<(Who, Deed), u64>,
    not_asked: u64,
}

impl Replay {
    /// Takes up one.
    pub fn add(&mut self, seen: &Seen) {
        let is_decision = matches!(seen.verdict.as_str(), "allow" | "deny");
        if !is_decision || NOT_BY_RULE.contains(&seen.reason.as_str()) {
            return;
        }
        let deeds = seen.deeds();
        // A question for a name is followed by a connection that is recorded too.
        let (Some(who), false, false) = (seen.who(), deeds.is_empty(), seen.class == "dns") else {
            self.not_asked += 1;
            return;
        };
        for deed in deeds {
            if seen.action == "summary" {
                *self.counted.entry((who.clone(), deed)).or_default() += 1;
                continue;
            }
            *self.all.entry((who.clone(), deed, !seen.is_denied())).or_default() += 1;
        }
    }

    /// Asks a policy about all of them, what would be denied first.
    #[must_use]
    pub fn under(&self, judge: &Judge) -> Replayed {
        let mut replayed = Replayed { not_asked: self.not_asked, ..Replayed::default() };
        for ((who, deed, was_allowed), count) in &self.all {
            let judged = judge.ask(who, deed);
            if judged.is_allowed() == *was_allowed {
                replayed.same += count;
                continue;
            }
            replayed.changed.push(changed(who, deed, *was_allowed, &judged, *count));
        }
        for ((who, deed), count) in &self.counted {
            let judged = judge.ask(who, deed);
            if judged.is_allowed() {
                replayed.same += count;
            } else if opens_below(judge, deed) {
                replayed.not_asked += count;
            } else {
                replayed.changed.push(changed(who, deed, true, &judged, *count));
            }
        }
        replayed.sort();
        replayed
    }
}

/// Whether a policy opens something in a directory that it does not open as a whole.
fn opens_below(judge: &Judge, deed: &Deed) -> bool {
    let Deed::Use { path, .. } = deed else { return false };
    let files = &judge.policy().filesystem;
    let mut granted = files.read_only().iter().chain(files.read_write());
    granted.any(|at| at.value.as_path().starts_with(path))
}

fn changed(who: &Who, deed: &Deed, was_allowed: bool, judged: &Judged, count: u64) -> Changed {
    Changed {
        program: who.script.as_ref().unwrap_or(&who.program).display().to_string(),
        what: deed.to_string(),
        was: if was_allowed { "allow" } else { "deny" },
        is: judged.verdict_name(),
        reason: judged.reason.name(),
        rule: judged.rule.as_ref().map(ToString::to_string),
        count,
    }
}

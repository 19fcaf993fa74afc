//! One attempt: what is tried, what must come of it in all three places, and what did.

use super::inside::Ended;
use super::outside::Seen;
use super::trail::Record;

/// Something an agent tries.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// For people.
    pub title: String,
    /// One simple command of the shell.
    pub line: String,
    /// What comes of it without clawbox: an attempt that fails anyway would show nothing.
    pub plain: &'static str,
    /// What has to come of it.
    pub expected: &'static str,
    /// What the far side may see.
    pub far: Far,
    /// What the audit trail has to say.
    pub record: Wanted,
}

/// What the far side may see of an attempt.
#[derive(Clone, Copy, Debug)]
pub enum Far {
    /// Nothing at all.
    Nothing,
    /// That this name was looked up, at most.
    Lookup(&'static str),
    /// A connection for this name.
    Served(&'static str),
}

/// A record that must be among an attempt's.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// `connect`, `send`, `question`, `exec`.
    pub action: &'static str,
    /// `allow` or `deny`.
    pub verdict: &'static str,
    /// Stable name of the reason.
    pub reason: &'static str,
    /// The object's name, address or path.
    pub object: String,
}

/// What came of an attempt.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What the client had of it.
    pub got: String,
    /// What arrived.
    pub seen: Seen,
}

impl Outcome {
    /// Reads what a client printed.
    #[must_use]
    pub fn of(ended: &Ended, seen: Seen) -> Self {
        let output = ended.output.as_str();
        let got = if output.contains("Operation not permitted") {
            "EPERM".to_owned()
        } else if output.contains("Permission denied") {
            "EACCES".to_owned()
        } else if output.contains("Could not resolve host") {
            "unresolved".to_owned()
        } else {
            last_words(output).map_or_else(|| format!("status {}", ended.status), str::to_owned)
        };
        Self { got, seen }
    }
}

/// The last line that is the program's own and not curl's account of its work.
fn last_words(output: &str) -> Option<&str> {
    let is_account =
        |line: &&str| line.trim().is_empty() || line.starts_with(['*', '<', '>', '{', '}']);
    output.lines().rev().find(|line| !is_account(line))
}

impl Attempt {
    /// Whether the policy lets it through.
    #[must_use]
    pub fn is_allowed(&self) -> bool {
        matches!(self.far, Far::Served(_))
    }

    /// The record of `records` that tells this attempt best: the wanted one, else the last.
    #[must_use]
    pub fn telling<'a>(&self, records: &'a [Record]) -> Option<&'a Record> {
        records.iter().find(|record| self.record.is(record)).or(records.last())
    }

    /// Everything that is not as it must be.
    #[must_use]
    pub fn differences(&self, plain: &Outcome, held: &Outcome, records: &[Record]) -> Vec<String> {
        let mut differences = Vec::new();
        if plain.got != self.plain {
            differences.push(format!(
                "without clawbox it must end with `{}` and ended with `{}`, so it shows nothing",
                self.plain, plain.got
            ));
        }
        if held.got != self.expected {
            let (expected, got) = (self.expected, &held.got);
            differences.push(format!("the client must get `{expected}` and got `{got}`"));
        }
        let (as_expected, must) = match self.far {
            Far::Nothing => (held.seen.0.is_empty(), "see nothing".to_owned()),
            Far::Lookup(name) => {
                (held.seen.only_asked_for(name), format!("see no more than a question for {name}"))
            }
            Far::Served(name) => (held.seen.served(name), format!("see a connection for {name}")),
        };
        if !as_expected {
            differences.push(format!("the far side must {must} and saw {}", held.seen));
        }
        if !records.iter().any(|record| self.record.is(record)) {
            differences.push(format!(
                "the audit trail must say `{} {} {} {}` and does not",
                self.record.verdict, self.record.reason, self.record.action, self.record.object
            ));
        }
        if !self.is_allowed()
            && let Some(record) = records.iter().find(|record| record.lets_out())
        {
            differences.push(format!("the audit trail says `{record}`"));
        }
        differences
    }
}

impl Wanted {
    fn is(&self, record: &Record) -> bool {
        record.action == self.action
            && record.verdict == self.verdict
            && record.reason == self.reason
            && record.is_about(&self.object)
    }
}

//! How much of what a trail was told: decisions by class and verdict, losses by kind, questions by what
//! came of them. Counted where records are made, so that nobody has to read a trail to know.

use std::collections::BTreeMap;

use clawbox_common::verdict::{Reason, Verdict};

use super::record::{Class, Object, VerdictName};
use super::trail::Draft;
use crate::dns::QuestionEvent;

/// Classes that decisions are of.
const CLASSES: [(Class, &str); 5] = [
    (Class::Network, "network"),
    (Class::Dns, "dns"),
    (Class::Process, "process"),
    (Class::File, "file"),
    (Class::Privilege, "privilege"),
];

/// The counts of one trail, or of several together. They only go up.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Counted {
    /// By class, of what is allowed and of what is denied.
    decisions: [[u64; 2]; CLASSES.len()],
    lost: BTreeMap<&'static str, u64>,
    /// Connections that have begun to wait for an answer.
    pub held: u64,
    /// Connections that waited and were let go on.
    pub approved: u64,
    /// Connections that waited and were refused, by whomever.
    pub refused: u64,
    /// By what came of them.
    pub questions: BTreeMap<&'static str, u64>,
    /// Questions that were answered from memory or the hosts file.
    pub known: u64,
    /// Questions that name servers were asked.
    pub asked: u64,
    /// Those of them that no name server answered.
    pub unanswered: u64,
    /// Milliseconds that name servers took, all questions together.
    pub waited_ms: u64,
}

impl Counted {
    /// Counts what a record tells. One that sums uses up counts for all of them.
    pub fn record(&mut self, draft: &Draft) {
        match draft.action {
            "approve" => self.approved += 1,
            "refuse" => self.refused += 1,
            _ if draft.class == Class::Network && draft.reason == Reason::Held.name() => {
                self.held += 1;
            }
            _ => {}
        }
        let verdict = match draft.verdict {
            VerdictName::Allow => 0,
            VerdictName::Deny => 1,
            VerdictName::None => return,
        };
        let uses = match &draft.object {
            Object::Summary(sum) => {
                sum.reads.saturating_add(sum.writes).saturating_add(sum.executes)
            }
            Object::Endpoint(endpoint) => endpoint.times.unwrap_or(1),
            _ => 1,
        };
        let class = CLASSES.iter().position(|(class, _)| *class == draft.class);
        if let Some(counts) = class.and_then(|class| self.decisions.get_mut(class)) {
            counts[verdict] = counts[verdict].saturating_add(uses);
        }
    }

    /// Counts events that are not in the trail.
    pub fn lose(&mut self, kind: &'static str, count: u64) {
        *self.lost.entry(kind).or_default() += count;
    }

    /// Counts a question to the resolver.
    pub fn question(&mut self, event: &QuestionEvent) {
        *self.questions.entry(event.reason.name()).or_default() += 1;
        match event.upstream_ms {
            Some(took) => {
                self.asked += 1;
                self.waited_ms += u64::from(took);
                self.unanswered += u64::from(event.reason == Reason::UpstreamFailed);
            }
            None => {
                let is_allowed = event.verdict == Verdict::Allow && event.reason == Reason::Rule;
                self.known += u64::from(is_allowed || event.reason == Reason::NoRecord);
            }
        }
    }

    /// Adds another trail's.
    pub fn add(&mut self, other: &Self) {
        for (own, others) in self.decisions.iter_mut().zip(&other.decisions) {
            own.iter_mut().zip(others).for_each(|(own, other)| *own += other);
        }
        other.lost.iter().for_each(|(kind, count)| self.lose(kind, *count));
        for (reason, count) in &other.questions {
            *self.questions.entry(reason).or_default() += count;
        }
        self.held += other.held;
        self.approved += other.approved;
        self.refused += other.refused;
        self.known += other.known;
        self.asked += other.asked;
        self.unanswered += other.unanswered;
        self.waited_ms += other.waited_ms;
    }

    /// Class, verdict and how many, of every class.
    pub fn decisions(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> {
        let each = CLASSES.iter().zip(&self.decisions);
        each.flat_map(|((_, class), [allowed, denied])| {
            [(*class, "allow", *allowed), (*class, "deny", *denied)]
        })
    }

    /// How many events of each kind are not in the trail.
    pub fn lost(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.lost.iter().map(|(kind, count)| (*kind, *count))
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::{Gap, Summary};
    use super::*;

    fn draft(class: Class, verdict: VerdictName, object: Object) -> Draft {
        let (action, reason) = ("x", "rule");
        let (time, rule, subject) = Default::default();
        Draft { time, class, action, verdict, reason, let_through: false, rule, subject, object }
    }

    fn nothing() -> Object {
        Object::Gap(Gap { count: 1, kind: "x".to_owned(), verdict: None })
    }

    #[test]
    fn a_sum_counts_for_all_its_uses_and_what_decides_nothing_for_none() {
        let mut counted = Counted::default();
        counted.record(&draft(Class::Network, VerdictName::Deny, nothing()));
        counted.record(&draft(Class::Sandbox, VerdictName::None, nothing()));
        counted.record(&draft(
            Class::File,
            VerdictName::Allow,
            Object::Summary(Summary {
                program: None,
                program_id: String::new(),
                directory: None,
                directory_id: String::new(),
                reads: 4,
                writes: 2,
                executes: 1,
                first: String::new(),
                last: String::new(),
            }),
        ));
        counted.lose("connect", 5);
        let mut both = counted.clone();
        both.add(&counted);
        let found: Vec<_> = both.decisions().filter(|(.., count)| *count > 0).collect();
        assert_eq!(found, [("network", "deny", 2), ("file", "allow", 14)]);
        assert_eq!(both.lost().collect::<Vec<_>>(), [("connect", 10)]);
    }

    #[test]
    fn a_connection_that_waits_is_counted_once_and_so_is_its_end() {
        let mut counted = Counted::default();
        let of = |action, reason| Draft {
            action,
            reason,
            ..draft(Class::Network, VerdictName::None, nothing())
        };
        counted.record(&of("connect", Reason::Held.name()));
        counted.record(&of("refuse", Reason::Refusal.name()));
        counted.record(&of("approve", Reason::Approval.name()));
        assert_eq!((counted.held, counted.refused, counted.approved), (1, 1, 1));
    }
}

//! What a sandbox may tell the owner of a wildcard's zone by the names it asks for: whoever serves
//! `*.example.com` reads every label. Each new name costs its free bytes, of which there are so many an
//! hour and no more.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

/// Bytes of a label that a wildcard leaves free. Names that people give are shorter; DNS takes 63.
const LABEL: usize = 40;
/// Free bytes that may be spent at once: some hundred names.
const BYTES: f64 = 2048.0;
/// Free bytes that come back in a second: a name in some seconds.
const BYTES_BACK: f64 = 2.0;
/// The least that a name costs, so that short ones are counted too.
const LEAST: usize = 8;
/// Names that cost nothing when they are asked for again; of more the oldest is forgotten.
const SEEN: usize = 4096;

/// Bits of a byte above which a long label is taken for data: English has about 4 with hyphens and
/// digits, and random base32 5.
const BITS: f64 = 3.8;
/// From this length on a label's bytes are counted at all.
const LONG: usize = 20;
/// How many times as much a label that is taken for data costs.
const DATA: usize = 8;

/// The budget of one sandbox.
pub(super) struct Budget {
    seen: HashSet<Arc<str>>,
    order: VecDeque<Arc<str>>,
    left: f64,
    at: Instant,
}

impl Budget {
    /// A full one.
    pub(super) fn new(now: Instant) -> Self {
        Self { seen: HashSet::new(), order: VecDeque::new(), left: BYTES, at: now }
    }

    /// Whether a name may be asked for, of which the policy leaves so many bytes free, and pays for it.
    pub(super) fn pays(&mut self, name: &Arc<str>, free: usize, now: Instant) -> bool {
        if free == 0 || self.seen.contains(name) {
            return true;
        }
        if free > LABEL && name.split('.').any(|label| label.len() > LABEL) {
            return false;
        }
        let passed: Duration = now.saturating_duration_since(self.at);
        self.left = (self.left + passed.as_secs_f64() * BYTES_BACK).min(BYTES);
        self.at = now;
        let is_data = name.split('.').any(is_data);
        let cost = free.max(LEAST) * if is_data { DATA } else { 1 };
        // Names are at most 253 bytes long.
        let cost = f64::from(u32::try_from(cost).unwrap_or(u32::MAX));
        if cost > self.left {
            return false;
        }
        self.left -= cost;
        self.remember(name);
        true
    }

    fn remember(&mut self, name: &Arc<str>) {
        if self.order.len() == SEEN
            && let Some(oldest) = self.order.pop_front()
        {
            self.seen.remove(&oldest);
        }
        self.seen.insert(Arc::clone(name));
        self.order.push_back(Arc::clone(name));
    }
}

/// Whether a label looks like bytes and not like a word (Shannon's entropy of its bytes).
fn is_data(label: &str) -> bool {
    if label.len() < LONG {
        return false;
    }
    let mut counts = [0_u32; 256];
    label.bytes().for_each(|byte| counts[usize::from(byte)] += 1);
    let length = f64::from(u32::try_from(label.len()).unwrap_or(u32::MAX));
    let bits: f64 = counts
        .iter()
        .filter(|count| **count > 0)
        .map(|count| f64::from(*count) / length)
        .map(|share| -share * share.log2())
        .sum();
    bits > BITS
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget() -> (Budget, Instant) {
        let now = Instant::now();
        (Budget::new(now), now)
    }

    fn pays(budget: &mut Budget, label: &str, now: Instant) -> bool {
        budget.pays(&format!("{label}.example.com").into(), label.len(), now)
    }

    #[test]
    fn names_that_the_policy_spells_out_cost_nothing() {
        let (mut budget, now) = budget();
        for number in 0..10_000 {
            assert!(budget.pays(&format!("n{number}.test").into(), 0, now));
        }
    }

    #[test]
    fn hundreds_of_ordinary_names_are_free_to_be_asked_for_and_asked_for_again() {
        let (mut budget, now) = budget();
        let names: Vec<String> = (0..150).map(|number| format!("bucket-{number}")).collect();
        for _ in 0..3 {
            assert!(names.iter().all(|name| pays(&mut budget, name, now)));
        }
    }

    #[test]
    fn data_in_labels_is_stopped_within_a_few_hundred_bytes_and_stays_so() {
        let (mut budget, now) = budget();
        let alphabet = b"abcdefghijklmnopqrstuvwxyz234567";
        let mut state = 7_u32;
        let mut label = || -> String {
            (0..32)
                .map(|_| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    char::from(alphabet[(state >> 27) as usize])
                })
                .collect()
        };
        let sent = (0..1000).filter(|_| pays(&mut budget, &label(), now)).count();
        assert!((1..=8).contains(&sent), "{sent} labels of 32 bytes");
        let hour = now + Duration::from_secs(3600);
        let later = (0..1000).filter(|_| pays(&mut budget, &label(), hour)).count();
        assert!(later <= 8, "{later}");
    }

    #[test]
    fn short_names_one_after_the_other_are_stopped_too() {
        let (mut budget, now) = budget();
        let sent = (0..5000).filter(|number| pays(&mut budget, &format!("{number}"), now)).count();
        assert_eq!(sent, 256);
        assert!(!pays(&mut budget, "x", now + Duration::from_secs(2)));
        assert!(pays(&mut budget, "x", now + Duration::from_secs(5)));
    }

    #[test]
    fn a_label_longer_than_people_make_them_is_refused_whatever_is_left() {
        let (mut budget, now) = budget();
        assert!(pays(&mut budget, &"a".repeat(LABEL), now));
        assert!(!pays(&mut budget, &"a".repeat(LABEL + 1), now));
    }
}

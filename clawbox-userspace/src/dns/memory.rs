//! Recent answers from upstream, bounded in number and in size.
//! Only addresses are kept, not records: a hostile server cannot make the agent grow.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

/// Answers that are remembered; the oldest goes first.
const ANSWERS: usize = 512;
/// Addresses of an answer that is remembered; a longer one is asked for again each time.
const ADDRESSES: usize = 256;
/// The longest that an answer is remembered.
const LONGEST: Duration = Duration::from_secs(300);

/// What a name turned out to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Addresses of the family asked for, and for how long.
    Addresses { addresses: Arc<[IpAddr]>, ttl: u32 },
    /// None; the name exists with other records, or does not exist.
    Nothing { exists: bool },
}

/// A name and whether its IPv6 addresses are meant.
type Key = (Arc<str>, bool);

#[derive(Debug, Default)]
pub(super) struct Memory {
    answers: HashMap<Key, Answer>,
    /// In the order of arrival. May name an answer that has been replaced since.
    order: VecDeque<(Key, Instant)>,
}

#[derive(Debug)]
struct Answer {
    found: Found,
    since: Instant,
    until: Instant,
}

impl Memory {
    /// An answer that is still good, with the time it has left.
    pub(super) fn recall(&self, name: &Arc<str>, v6: bool) -> Option<Found> {
        let answer = self.answers.get(&(Arc::clone(name), v6))?;
        let left = answer.until.checked_duration_since(Instant::now())?;
        let left = u32::try_from(left.as_secs()).ok().filter(|&s| s > 0)?;
        Some(match &answer.found {
            Found::Addresses { addresses, .. } => {
                Found::Addresses { addresses: Arc::clone(addresses), ttl: left }
            }
            nothing @ Found::Nothing { .. } => nothing.clone(),
        })
    }

    /// Remembers an answer for a number of seconds.
    pub(super) fn keep(&mut self, name: &Arc<str>, v6: bool, found: &Found, seconds: u32) {
        let fits = match found {
            Found::Addresses { addresses, .. } => addresses.len() <= ADDRESSES,
            Found::Nothing { .. } => true,
        };
        if seconds == 0 || !fits {
            return;
        }
        let since = Instant::now();
        let until = since + Duration::from_secs(seconds.into()).min(LONGEST);
        let key = (Arc::clone(name), v6);
        let answer = Answer { found: found.clone(), since, until };
        self.answers.insert(key.clone(), answer);
        self.order.push_back((key, since));
        while self.order.len() > ANSWERS {
            let Some((key, since)) = self.order.pop_front() else {
                return;
            };
            if self.answers.get(&key).is_some_and(|a| a.since == since) {
                self.answers.remove(&key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(n: u8) -> Found {
        Found::Addresses { addresses: Arc::from([IpAddr::from([10, 0, 0, n])]), ttl: 30 }
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_good_for_the_time_it_has_left() {
        let mut memory = Memory::default();
        let name: Arc<str> = "a.test".into();
        memory.keep(&name, false, &found(1), 30);
        assert_eq!(memory.recall(&name, false), Some(found(1)));
        assert_eq!(memory.recall(&name, true), None);
        tokio::time::advance(Duration::from_secs(10)).await;
        let Some(Found::Addresses { ttl, .. }) = memory.recall(&name, false) else {
            panic!("forgotten too early");
        };
        assert!((19..=20).contains(&ttl));
        tokio::time::advance(Duration::from_secs(21)).await;
        assert_eq!(memory.recall(&name, false), None);
    }

    #[tokio::test(start_paused = true)]
    async fn the_number_of_answers_is_bounded_even_if_one_name_comes_again_and_again() {
        let mut memory = Memory::default();
        for i in 0..3 * ANSWERS {
            memory.keep(&"again.test".into(), false, &found(1), 30);
            memory.keep(&format!("n{i}.test").into(), false, &found(2), 30);
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        assert!(memory.answers.len() <= ANSWERS);
        assert_eq!(memory.order.len(), ANSWERS);
        assert!(memory.recall(&"again.test".into(), false).is_some());
    }

    #[test]
    fn an_endless_answer_and_one_that_must_not_be_kept_are_not_remembered() {
        let mut memory = Memory::default();
        let endless = Found::Addresses {
            addresses: vec![IpAddr::from([10, 0, 0, 1]); ADDRESSES + 1].into(),
            ttl: 30,
        };
        memory.keep(&"long.test".into(), false, &endless, 30);
        memory.keep(&"zero.test".into(), false, &found(1), 0);
        assert!(memory.answers.is_empty() && memory.order.is_empty());
    }
}

//! What happens, as far back as it is kept, and what of it is to be seen.

use std::collections::VecDeque;

use super::cards::Denied;
use super::list::Place;

/// Events that are kept.
pub const KEPT: usize = 5_000;

/// How an event ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// It was allowed.
    Allowed,
    /// It was denied.
    Denied,
    /// It would have been, and went on.
    Would,
    /// It waits for an answer.
    Waits,
    /// Nothing was decided.
    #[default]
    Other,
}

/// An event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// Whose.
    pub sandbox: String,
    /// How it ended.
    pub kind: Kind,
    /// In one line, harmless.
    pub line: String,
    /// What of it is on a card.
    pub denied: Option<Denied>,
}

/// Those that are kept.
#[derive(Clone, Debug, Default)]
pub struct Events {
    all: VecDeque<(Event, String)>,
    /// So many came and were not taken in.
    pub skipped: u64,
    /// The newest is always seen.
    pub follow: bool,
    /// Words that have to be in a line.
    pub filter: String,
    /// Whether they are being written.
    pub typing: bool,
    /// Which of those seen is chosen.
    pub place: Place,
}

impl Events {
    /// None yet; the newest will be seen.
    #[must_use]
    pub fn following() -> Self {
        Self { follow: true, ..Self::default() }
    }

    /// One more.
    pub fn push(&mut self, event: Event) {
        let search = format!("{} {}", event.sandbox, event.line).to_lowercase();
        if self.all.len() >= KEPT
            && let Some((_, gone)) = self.all.pop_front()
            && !self.follow
            && matches(&gone, &words(&self.filter))
        {
            // What is looked at stays where it is.
            self.place.at = self.place.at.saturating_sub(1);
            self.place.top = self.place.top.saturating_sub(1);
        }
        self.all.push_back((event, search));
    }

    /// Those that have the words.
    #[must_use]
    pub fn shown(&self) -> Vec<&Event> {
        let words = words(&self.filter);
        let all = self.all.iter().filter(|(_, search)| matches(search, &words));
        all.map(|(event, _)| event).collect()
    }

    /// How many are kept.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "asked of none")]
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Another row is chosen; at the end it goes on with what comes.
    pub fn step(&mut self, by: isize, height: usize) {
        let length = self.shown().len();
        self.place.step(by, length, height);
        self.follow = by > 0 && self.place.at + 1 >= length;
    }

    /// After the list or the screen has changed.
    pub fn settle(&mut self, height: usize) {
        let length = self.shown().len();
        match self.follow {
            true => self.place.choose(usize::MAX, length, height),
            false => self.place.settle(length, height),
        }
    }
}

fn words(filter: &str) -> Vec<String> {
    filter.split_whitespace().map(str::to_lowercase).collect()
}

fn matches(search: &str, words: &[String]) -> bool {
    words.iter().all(|word| search.contains(word.as_str()))
}

//! Where what comes waits to be shown. It takes everything at once and keeps so much of it: who brings
//! something never waits for who draws.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::super::Wake;
use super::super::events::{Event, KEPT};
use super::super::state::{Message, Poll, Told};

#[derive(Default)]
struct Kept {
    events: VecDeque<Event>,
    skipped: u64,
    poll: Option<Poll>,
    told: Option<Told>,
    rest: Vec<Message>,
}

/// The place.
pub(super) struct Inbox {
    kept: Mutex<Kept>,
    is_told: AtomicBool,
    wake: Sender<Wake>,
}

impl Inbox {
    /// Empty.
    pub(super) fn new(wake: Sender<Wake>) -> Self {
        Self { kept: Mutex::default(), is_told: AtomicBool::new(false), wake }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, put: impl FnOnce(&mut Kept)) {
        put(&mut self.kept());
        // Once until it is looked at.
        if !self.is_told.swap(true, Ordering::AcqRel) {
            let _ = self.wake.send(Wake::Fed);
        }
    }

    /// An event. The oldest that nobody has looked at gives way.
    pub(super) fn event(&self, event: Event) {
        self.put(|kept| {
            if kept.events.len() >= KEPT {
                kept.events.pop_front();
                kept.skipped += 1;
            }
            kept.events.push_back(event);
        });
    }

    /// All sandboxes, in place of what was said of them before.
    pub(super) fn poll(&self, poll: Poll) {
        self.put(|kept| kept.poll = Some(poll));
    }

    /// One sandbox, the same.
    pub(super) fn told(&self, told: Told) {
        self.put(|kept| kept.told = Some(told));
    }

    /// Anything else; it answers what somebody has asked.
    pub(super) fn message(&self, message: Message) {
        self.put(|kept| kept.rest.push(message));
    }

    /// A signal.
    pub(super) fn signal(&self, signal: i32) {
        let _ = self.wake.send(Wake::Signal(signal));
    }

    /// What has come.
    pub(super) fn take(&self) -> Vec<Message> {
        self.is_told.store(false, Ordering::Release);
        let Kept { events, skipped, poll, told, rest } = std::mem::take(&mut *self.kept());
        let mut all = Vec::new();
        all.extend(poll.map(Message::Poll));
        if !events.is_empty() || skipped > 0 {
            all.push(Message::Events(events.into(), skipped));
        }
        all.extend(told.map(Message::Told));
        all.extend(rest);
        all
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn who_brings_more_than_is_looked_at_never_waits_and_what_is_lost_is_counted() {
        let (wake, woken) = channel();
        let inbox = Inbox::new(wake);
        for number in 0..KEPT + 7 {
            inbox.event(Event { line: number.to_string(), ..Event::default() });
        }
        inbox.poll(Poll { at: 1, ..Poll::default() });
        inbox.poll(Poll { at: 2, ..Poll::default() });
        assert_eq!(woken.try_iter().count(), 1, "it is told once");
        let taken = inbox.take();
        let [Message::Poll(poll), Message::Events(events, skipped)] = &taken[..] else {
            panic!("{taken:?}")
        };
        assert_eq!((poll.at, events.len(), *skipped), (2, KEPT, 7));
        assert_eq!(events[0].line, "7");
        assert!(inbox.take().is_empty());
        inbox.poll(Poll::default());
        assert_eq!(woken.try_iter().count(), 1, "and again when it was looked at");
    }
}

//! What the screens show, and how it changes: a message comes, the state is another. Nothing outside is read
//! or written here; what is to be done there is given back.

use std::collections::{BTreeMap, VecDeque};

use crossterm::event::{KeyEvent, MouseEvent};

use super::cards::{Advice, Cards, Key, Way};
use super::events::{Event, Events};
use super::layout;
use super::list::Place;
use super::tree::{self, Process};
use super::{keys, plain};
use crate::sandbox::control::Connection;

/// Looks at a sandbox's counts that a rate is taken over.
const LOOKS: usize = 6;

/// The screens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Screen {
    /// All sandboxes.
    #[default]
    Sandboxes,
    /// What happens.
    Events,
    /// One sandbox.
    One,
    /// What waits for an answer, and what was denied.
    Approvals,
}

impl Screen {
    /// In the order of their numbers.
    pub const ALL: [Self; 4] = [Self::Sandboxes, Self::Events, Self::One, Self::Approvals];

    /// Its name.
    #[must_use]
    pub const fn title(self) -> &'static str {
        match self {
            Self::Sandboxes => "Sandboxes",
            Self::Events => "Events",
            Self::One => "Sandbox",
            Self::Approvals => "Approvals",
        }
    }
}

/// A sandbox, as the daemon tells it and the host's hierarchy of cgroups.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Row {
    /// NAME-NUMBER.
    pub id: String,
    /// Who started it.
    pub owner: String,
    /// The policy's file.
    pub policy: String,
    /// Which of its policies is in force.
    pub revision: u32,
    /// Whether the host's policy is in force in its place.
    pub is_under_global: bool,
    /// Whether denials are only recorded.
    pub audit_only: bool,
    /// Connections that wait.
    pub waiting: u32,
    /// So far.
    pub allowed: u64,
    /// So far.
    pub denied: u64,
    /// Processes; `None` where this process does not see them.
    pub processes: Option<usize>,
}

/// What the daemon says of all sandboxes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Poll {
    /// Milliseconds since the start.
    pub at: u64,
    /// All.
    pub rows: Vec<Row>,
    /// What waits in each.
    pub waiting: Vec<(String, Vec<Connection>)>,
    /// Sandboxes whose events are not followed, because there are so many.
    pub not_followed: usize,
}

/// A policy that a sandbox has had.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Revision {
    /// Which.
    pub number: u32,
    /// Who set it.
    pub author: String,
    /// When.
    pub time: String,
    /// Its files, one behind the other.
    pub text: String,
}

/// What is told of one sandbox.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Which.
    pub sandbox: String,
    /// The policy in force, all of its files.
    pub text: String,
    /// What was approved as long as it runs.
    pub approved: String,
    /// The policies it has had.
    pub revisions: Vec<Revision>,
    /// Its processes.
    pub processes: Vec<Process>,
}

/// Something to be done in a sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Deed {
    /// Approve in this way; these wait.
    Approve(Way, Vec<u32>),
    /// Deny those that wait.
    Deny(Vec<u32>),
    /// Take back what was approved as long as the sandbox runs.
    Withdraw(String),
    /// Put a policy in force again, where another still is.
    Rollback(u32, u32),
}

/// What somebody wants done, and of which card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// Whose.
    pub key: Key,
    /// What.
    pub deed: Deed,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done {
    /// What was wanted.
    pub order: Order,
    /// The policies of before and after, where that changed; or why it was not done.
    pub outcome: Result<Option<(u32, u32)>, String>,
}

/// How to take something back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Undo {
    Order(Order),
    Dismissed(Key),
    Refused(Key),
}

/// What comes.
#[derive(Clone, Debug)]
pub enum Message {
    /// A key.
    Key(KeyEvent),
    /// The mouse.
    Mouse(MouseEvent),
    /// The screen is of another size.
    Resize(u16, u16),
    /// All sandboxes.
    Poll(Poll),
    /// Events, and how many came that are not among them.
    Events(Vec<Event>, u64),
    /// One sandbox.
    Told(Told),
    /// What the policy says of a card.
    Advice(Key, Advice),
    /// Something was done, or not.
    Done(Done),
    /// The daemon does not answer; `None` when it does again.
    Trouble(Option<String>),
}

/// What is to be done outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The end.
    Quit,
    /// Tell of this sandbox until another is asked for.
    Look(String),
    /// Ask its policy about a card.
    Ask(Key),
    /// Do something.
    Do(Order),
}

/// A part of the screen of one sandbox.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pane {
    /// The policy's text.
    #[default]
    Text,
    /// Its revisions.
    Revisions,
    /// Its processes.
    Processes,
}

/// The screen of one sandbox.
#[derive(Clone, Debug, Default)]
pub struct One {
    /// What is told.
    pub told: Option<Told>,
    /// Which is asked for.
    pub wanted: String,
    /// Where keys go.
    pub pane: Pane,
    /// The first line of the text.
    pub text: Place,
    /// The chosen revision.
    pub revisions: Place,
    /// The chosen process.
    pub processes: Place,
    /// Whether the chosen revision's text is shown in place of what is in force.
    pub is_earlier: bool,
}

impl One {
    /// The lines of the text that is shown.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let Some(told) = &self.told else { return Vec::new() };
        let chosen = told.revisions.get(self.revisions.at).filter(|_| self.is_earlier);
        let mut lines = plain::lines(chosen.map_or(&told.text, |revision| &revision.text));
        if chosen.is_none() && !told.approved.is_empty() {
            lines.push("# approved as long as the sandbox runs:".to_owned());
            lines.extend(plain::lines(&told.approved));
        }
        lines
    }

    /// The processes, a line each.
    #[must_use]
    pub fn tree(&self) -> Vec<String> {
        let processes = self.told.as_ref().map(|told| tree::lines(&told.processes));
        processes.unwrap_or_default().iter().map(|line| plain::plain(line)).collect()
    }
}

/// What the screens show.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// Columns and rows.
    pub size: (u16, u16),
    /// Which screen.
    pub screen: Screen,
    /// Whether the keys are told instead.
    pub help: bool,
    /// Whether colours are used.
    pub colour: bool,
    /// All sandboxes.
    pub sandboxes: Vec<Row>,
    /// Which of them is chosen.
    pub place: Place,
    /// What happens.
    pub events: Events,
    /// One of them.
    pub one: One,
    /// What waits and what was denied.
    pub cards: Cards,
    /// The ways to approve a card, one of which is to be chosen.
    pub ways: Option<(Key, Vec<Way>, usize)>,
    /// What came of the last key.
    pub notice: String,
    /// Why nothing new comes.
    pub trouble: Option<String>,
    /// Sandboxes whose events are not followed.
    pub not_followed: usize,
    pub(super) undo: Vec<Undo>,
    looks: BTreeMap<String, VecDeque<(u64, u64, u64)>>,
    asked: Option<(Key, u32)>,
}

impl State {
    /// Of a screen of this size.
    #[must_use]
    pub fn new(size: (u16, u16), colour: bool) -> Self {
        let events = Events::following();
        Self { size, colour, events, ..Self::default() }
    }

    /// Takes a message in. Gives what is to be done outside.
    pub fn update(&mut self, message: Message) -> Vec<Effect> {
        let mut effects = match message {
            Message::Key(key) => keys::key(self, key),
            Message::Mouse(mouse) => keys::mouse(self, mouse),
            Message::Resize(width, height) => {
                self.size = (width, height);
                Vec::new()
            }
            Message::Poll(poll) => self.poll(poll),
            Message::Events(events, skipped) => {
                self.take_up(events, skipped);
                Vec::new()
            }
            Message::Told(told) => {
                if told.sandbox == self.one.wanted {
                    self.one.told = Some(told);
                }
                Vec::new()
            }
            Message::Advice(key, advice) => {
                self.cards.advise(&key, advice);
                Vec::new()
            }
            Message::Done(done) => {
                self.done(done);
                Vec::new()
            }
            Message::Trouble(trouble) => {
                self.trouble = trouble.map(|text| plain::plain(&text));
                Vec::new()
            }
        };
        self.settle();
        effects.extend(self.ask());
        effects
    }

    /// Decisions a second, allowed and denied, of a sandbox lately.
    #[must_use]
    pub fn rates(&self, sandbox: &str) -> (f64, f64) {
        let Some(looks) = self.looks.get(sandbox) else { return (0.0, 0.0) };
        let (Some(first), Some(last)) = (looks.front(), looks.back()) else { return (0.0, 0.0) };
        let seconds = last.0.saturating_sub(first.0) as f64 / 1000.0;
        let rate = |from: u64, to: u64| match seconds > 0.0 {
            true => to.saturating_sub(from) as f64 / seconds,
            false => 0.0,
        };
        (rate(first.1, last.1), rate(first.2, last.2))
    }

    fn poll(&mut self, poll: Poll) -> Vec<Effect> {
        let Poll { at, mut rows, waiting, not_followed } = poll;
        rows.sort_by(|one, other| one.id.cmp(&other.id));
        let chosen = self.sandboxes.get(self.place.at).map(|row| row.id.clone());
        let found = chosen.and_then(|id| rows.iter().position(|row| row.id == id));
        self.place.at = found.unwrap_or(self.place.at);
        self.looks.retain(|id, _| rows.iter().any(|row| row.id == *id));
        for row in &rows {
            let looks = self.looks.entry(row.id.clone()).or_default();
            looks.push_back((at, row.allowed, row.denied));
            if looks.len() > LOOKS {
                looks.pop_front();
            }
        }
        let running: Vec<&str> = rows.iter().map(|row| row.id.as_str()).collect();
        self.cards.waits(&running, &waiting);
        (self.sandboxes, self.not_followed, self.trouble) = (rows, not_followed, None);
        match (self.one.wanted.is_empty(), self.sandboxes.first()) {
            (true, Some(first)) => self.look(first.id.clone()),
            _ => Vec::new(),
        }
    }

    /// Another sandbox is the one that is shown by itself.
    pub(super) fn look(&mut self, sandbox: String) -> Vec<Effect> {
        let pane = self.one.pane;
        self.one = One { wanted: sandbox.clone(), pane, ..One::default() };
        vec![Effect::Look(sandbox)]
    }

    fn take_up(&mut self, events: Vec<Event>, skipped: u64) {
        self.events.skipped = self.events.skipped.saturating_add(skipped);
        for event in events {
            if let Some(denied) = event.denied.clone() {
                self.cards.denied(denied);
            }
            self.events.push(event);
        }
    }

    fn done(&mut self, done: Done) {
        let Done { order: Order { key, deed }, outcome } = done;
        let changed = match outcome {
            Ok(changed) => changed,
            Err(why) => {
                self.notice = format!("not done: {}", plain::plain(&why));
                return;
            }
        };
        let what = format!("{}:{}", plain::plain(&key.host), key.port);
        self.notice = match deed {
            Deed::Approve(way, _) => {
                let (said, undo) = match (way.rule.is_empty(), changed) {
                    (false, Some((before, after))) => match way.scope {
                        super::cards::Scope::Policy => (
                            format!(
                                "revision {after} of the policy allows it; `clawbox policy get` prints it"
                            ),
                            Some(Deed::Rollback(before, after)),
                        ),
                        _ => (
                            "as long as the sandbox runs".to_owned(),
                            Some(Deed::Withdraw(way.rule)),
                        ),
                    },
                    _ => ("once".to_owned(), None),
                };
                if let Some(deed) = undo {
                    self.cards.allowed(&key);
                    self.undo.push(Undo::Order(Order { key, deed }));
                }
                format!("approved {what}: {said}")
            }
            Deed::Deny(_) => {
                self.undo.push(Undo::Refused(key));
                format!("denied {what}")
            }
            Deed::Withdraw(_) => format!("taken back: {what} is allowed no longer"),
            Deed::Rollback(before, _) => {
                format!("taken back: the policy is revision {before}'s again")
            }
        };
    }

    /// Every place is on the screen again.
    fn settle(&mut self) {
        let height = usize::from(layout::list(self).height);
        let (length, screen) = (self.sandboxes.len(), self.screen);
        if screen == Screen::Sandboxes {
            self.place.settle(length, height);
        } else {
            self.place.at = self.place.at.min(length.saturating_sub(1));
        }
        if screen == Screen::Events {
            self.events.settle(height);
        }
        self.cards.settle(match screen {
            Screen::Approvals => height,
            _ => usize::MAX,
        });
        if screen == Screen::One {
            let lengths = (self.one.lines().len(), self.one.tree().len());
            let revisions = self.one.told.as_ref().map_or(0, |told| told.revisions.len());
            let [text, right, below] = layout::one(layout::areas(self.size).body)
                .map(|area| usize::from(layout::inside(area).height));
            self.one.text.settle(lengths.0, text);
            self.one.revisions.settle(revisions, right);
            self.one.processes.settle(lengths.1, below);
        }
    }

    /// What the policy says of the card that is looked at, if that is not known yet.
    fn ask(&mut self) -> Option<Effect> {
        let card = self.cards.chosen().filter(|_| self.screen == Screen::Approvals)?;
        let row = self.sandboxes.iter().find(|row| row.id == card.key.sandbox)?;
        let wanted = (card.key.clone(), row.revision);
        let is_known = card.advice.as_ref().is_some_and(|advice| advice.revision == row.revision);
        if is_known || self.asked.as_ref() == Some(&wanted) {
            return None;
        }
        self.asked = Some(wanted.clone());
        Some(Effect::Ask(wanted.0))
    }
}

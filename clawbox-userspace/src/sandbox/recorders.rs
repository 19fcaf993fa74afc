//! Who writes down what is told of which sandbox, and what has been counted of all of them; and where the host
//! keeps a copy of it.

use std::collections::{BTreeMap, BTreeSet};

use clawbox_common::verdict::Reason;

use super::recorder::Recorder;
use crate::audit::counted::Counted;
use crate::audit::store::intake::Intake;
use crate::events::Event;

/// Who writes down what, by sandbox.
#[derive(Default)]
pub struct Recorders {
    by_sandbox: BTreeMap<u32, Recorder>,
    /// What is no running sandbox's.
    rest: Option<Recorder>,
    /// Sandboxes that another agent was killed in the start of.
    unfinished: BTreeSet<u32>,
    /// What was told of sandboxes that run no more.
    ended: Counted,
    /// Where the host keeps a copy of everything.
    store: Option<Intake>,
}

impl Recorders {
    /// A copy of everything goes there from now on.
    pub fn store_in(&mut self, store: Intake) {
        self.store = Some(store);
    }

    /// Where that is.
    #[must_use]
    pub fn store(&self) -> Option<Intake> {
        self.store.clone()
    }

    /// What is told of no sandbox that runs goes there from now on, and not to the first of them.
    pub fn keep_rest(&mut self, mut recorder: Recorder) {
        recorder.trail.store_in(self.store.clone());
        self.rest = Some(recorder);
    }

    /// A sandbox's, from now on.
    pub fn add(&mut self, sandbox: u32, mut recorder: Recorder) {
        recorder.trail.store_in(self.store.clone());
        self.unfinished.remove(&sandbox);
        self.by_sandbox.insert(sandbox, recorder);
    }

    /// An agent before this one was killed while it started that sandbox, which has ended.
    pub(super) fn unfinished(&mut self, sandbox: u32) {
        self.unfinished.insert(sandbox);
    }

    /// Whether it is what clawbox itself has tried in a sandbox whose start was not finished: of another one its
    /// own recorder knows.
    pub(super) fn is_try(&self, event: &Event) -> bool {
        !self.unfinished.is_empty()
            && event.decoded().reason == Reason::NoIdentity
            && self.unfinished.contains(&event.header().sandbox)
    }

    /// A sandbox's, which is not told anything any more.
    pub fn remove(&mut self, sandbox: u32) -> Option<Recorder> {
        let removed = self.by_sandbox.remove(&sandbox)?;
        self.ended.add(&removed.trail.counted);
        Some(removed)
    }

    /// What was told of all sandboxes, of those that run no more too.
    #[must_use]
    pub fn counted(&self) -> Counted {
        let mut all = self.ended.clone();
        let told = self.by_sandbox.values().chain(&self.rest);
        told.for_each(|recorder| all.add(&recorder.trail.counted));
        all
    }

    /// A sandbox's.
    pub fn of(&mut self, sandbox: u32) -> Option<&mut Recorder> {
        self.by_sandbox.get_mut(&sandbox)
    }

    /// A sandbox's; for what is told of none that runs, the rest's, or where nobody keeps that, the first
    /// one's: of an embedded run's only sandbox everything is told.
    pub(super) fn for_event(&mut self, sandbox: u32) -> Option<&mut Recorder> {
        if self.rest.is_some() || self.by_sandbox.contains_key(&sandbox) {
            // Looked up once for each event.
            return self.by_sandbox.get_mut(&sandbox).or(self.rest.as_mut());
        }
        self.by_sandbox.values_mut().next()
    }

    /// Of what is no sandbox's.
    pub fn rest(&mut self) -> Option<&mut Recorder> {
        self.rest.as_mut()
    }

    pub(super) fn all(&mut self) -> impl Iterator<Item = &mut Recorder> {
        self.by_sandbox.values_mut().chain(self.rest.as_mut())
    }
}

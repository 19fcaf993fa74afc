//! What the kernel counts of what it allows becomes records: now and then of all sandboxes, and of one at its end.

use clawbox_common::rule::LOST_ALLOW;

use super::feed::{Feed, add};
use super::probe::PROBE;
use super::recorders::Recorders;
use crate::audit::clock::Clock;
use crate::audit::store::in_flight::{self, Change, UNNUMBERED};
use crate::audit::store::numbers::Other;

impl Feed {
    /// Records what was allowed since the last time, a line for each program and directory.
    pub fn sum_up(&mut self, recorders: &mut Recorders) {
        let news = match self.counts.tallies.since_last() {
            Ok(news) => news,
            Err(error) => return tracing::warn!("the kernel's counts cannot be read: {error}"),
        };
        let clock = Clock::now();
        for (key, uses) in news {
            if let Some(recorder) = recorders.for_event(key.sandbox) {
                recorder.sum(&key, &uses, &clock);
            }
        }
        recorders.all().for_each(|recorder| recorder.trail.flush());
    }

    /// Records how many allowed connects and sends were like one that was told: of a sandbox that has ended,
    /// or all that have not been for a while.
    pub fn tell_counted(&mut self, recorders: &mut Recorders, ended: Option<u32>) {
        let counted = match ended {
            Some(sandbox) => self.counts.flows.of(sandbox),
            None => self.counts.flows.of_last_span(),
        };
        let counted = match counted {
            Ok(counted) if counted.is_empty() => return,
            Ok(counted) => counted,
            Err(error) => return tracing::warn!("the kernel's counts cannot be read: {error}"),
        };
        let store = self.store.clone();
        if let Some(store) = &store {
            store.hold(self.since);
        }
        let mut counts = in_flight::Counts::new();
        for (key, flow) in counted.iter().filter(|(_, flow)| flow.again > 0) {
            if flow.sandbox != PROBE
                && let Some(recorder) = recorders.for_event(flow.sandbox)
            {
                recorder.counted(key, flow);
                let kind = u32::from(key.kind) | LOST_ALLOW | UNNUMBERED;
                add(&mut counts, (in_flight::key(flow.sandbox, kind), flow.again));
            }
        }
        let mut taken = || self.counts.flows.taken(&counted);
        match &store {
            Some(store) if !counts.is_empty() => {
                let change = Change { counts: &counts, positions: None, reached: &[], told: &[] };
                store.commit(change, Other::default(), taken)
            }
            _ => taken(),
        }
        if let Some(store) = &store {
            store.release();
        }
        recorders.all().for_each(|recorder| recorder.trail.flush());
    }

    /// Records what is counted of a sandbox in which nothing runs any more.
    pub fn tell_ended(&mut self, recorders: &mut Recorders, sandbox: u32) {
        let (flows, uses) = self.counts.counted.of(sandbox);
        if flows {
            self.tell_counted(recorders, Some(sandbox));
        }
        if uses {
            self.sum_up(recorders);
        }
        if flows || uses {
            self.counts.counted.told(sandbox);
        }
    }
}

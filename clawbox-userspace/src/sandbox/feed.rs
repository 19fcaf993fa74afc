//! Reads what the kernel reports of all sandboxes of this process and hands each its own, in the order in
//! which it happened. Woken where it has read all before and something is denied, but not more often than it
//! pays, and by a fill level; never per event. Nobody is woken for what is allowed: it is looked for.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aya::maps::{MapData, RingBuf};
use tokio::io::unix::AsyncFd;

use super::probe::PROBE;
use super::recorder::{Recorder, Stirred};
use crate::audit::clock::Clock;
use crate::audit::counted::Counted;
use crate::audit::record::VerdictName;
use crate::audit::store::intake::Intake;
use crate::events::Event;
use crate::kernel::fill::{Fills, RingFill};
use crate::kernel::flows::Flows;
use crate::kernel::losses::{EXEC_HOOK, Losses};
use crate::kernel::tallies::Tallies;

/// How long an event waits at most before it is read.
pub const TICK: Duration = Duration::from_millis(25);

/// How long what is allowed waits at most, where nothing was for a while: a look costs a few microseconds.
const REST: Duration = Duration::from_millis(200);

/// Events that are brought into order together.
const BATCH: usize = 1024;

/// What the kernel counts.
pub struct Counts {
    /// What it could not deliver.
    pub losses: Losses,
    /// What it allowed.
    pub tallies: Tallies,
    /// What else it allowed that is like what it told.
    pub flows: Flows,
    /// How full its tables are.
    pub fills: Fills,
    /// How full the ring is.
    pub ring: RingFill,
}

/// The event rings and the counters of a load.
pub struct Feed {
    /// What is denied, held or started, and what is allowed.
    rings: [Source; 2],
    pub(super) counts: Counts,
    stirred: Arc<Stirred>,
    undecodable: u64,
    drained: Instant,
    /// Until the next look for what nobody is woken for.
    pause: Duration,
    /// Something is to be read, but not before [`TICK`] has gone by.
    is_told: bool,
}

/// A ring, and the event that was taken from it before another ring's earlier one.
struct Source {
    /// Pollable.
    ring: AsyncFd<RingBuf<MapData>>,
    next: Option<Event>,
}

impl Source {
    fn new(ring: RingBuf<MapData>) -> std::io::Result<Self> {
        // SAFETY: the ring owns its descriptor, does not change it, and closes it only when it is
        // dropped, which `AsyncFd` does after taking it out of the poller.
        let ring = unsafe { AsyncFd::register(ring) }?;
        Ok(Self { ring, next: None })
    }

    /// Looks at the next event, and gives how many stood before it that were none.
    fn look(&mut self) -> u64 {
        let mut undecodable = 0;
        while self.next.is_none()
            && let Some(bytes) = self.ring.get_mut().next()
        {
            match Event::decode(&bytes) {
                Ok(event) => self.next = Some(event),
                Err(_) => undecodable += 1,
            }
        }
        undecodable
    }

    fn time(&self) -> u64 {
        self.next.as_ref().map_or(u64::MAX, |event| event.header().time)
    }

    async fn woken(&mut self) {
        match self.ring.readable_mut().await {
            Ok(mut ready) => ready.clear_ready(),
            // There is a look now and then whatever is told.
            Err(_) => std::future::pending().await,
        }
    }
}

/// Either ring's reader is woken.
async fn woken([one, other]: &mut [Source; 2]) {
    tokio::select! {
        () = one.woken() => {}
        () = other.woken() => {}
    }
}

/// Who writes down what, by sandbox.
#[derive(Default)]
pub struct Recorders {
    by_sandbox: BTreeMap<u32, Recorder>,
    /// What is no running sandbox's.
    rest: Option<Recorder>,
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
        self.by_sandbox.insert(sandbox, recorder);
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
    fn for_event(&mut self, sandbox: u32) -> Option<&mut Recorder> {
        if self.by_sandbox.contains_key(&sandbox) {
            return self.by_sandbox.get_mut(&sandbox);
        }
        self.rest.as_mut().or_else(|| self.by_sandbox.values_mut().next())
    }

    /// Of what is no sandbox's.
    pub fn rest(&mut self) -> Option<&mut Recorder> {
        self.rest.as_mut()
    }

    fn all(&mut self) -> impl Iterator<Item = &mut Recorder> {
        self.by_sandbox.values_mut().chain(self.rest.as_mut())
    }
}

impl Feed {
    /// Takes up a load's event sources. Call it inside the runtime.
    ///
    /// # Errors
    /// The ring cannot be polled.
    pub fn new(rings: [RingBuf<MapData>; 2], counts: Counts) -> std::io::Result<Self> {
        let [denied, allowed] = rings;
        let rings = [Source::new(denied)?, Source::new(allowed)?];
        let (undecodable, drained) = (0, Instant::now());
        // Before this process there may have been another.
        let is_told = true;
        let (stirred, pause) = (Arc::default(), TICK);
        Ok(Self { rings, counts, stirred, undecodable, drained, pause, is_told })
    }

    /// Whether a count of the kernel's tables is under way, which goes on with each look.
    #[must_use]
    pub fn is_counting(&self) -> bool {
        self.counts.fills.is_under_way()
    }

    /// Where the agent's own decisions say whose they are.
    #[must_use]
    pub fn stirred(&self) -> Arc<Stirred> {
        Arc::clone(&self.stirred)
    }

    /// Waits until something is to be read: at once where nothing was for a while, later where something
    /// was just now, so that one look is for many events. Where much waits, it is at once too.
    pub async fn due(&mut self) {
        while !self.is_told {
            self.is_told = tokio::select! {
                () = woken(&mut self.rings) => true,
                () = self.stirred.any() => true,
                () = tokio::time::sleep(self.pause) => self.look(),
            };
        }
        tokio::select! {
            // A second word before the first was heard: the fill level, or what cannot wait.
            () = woken(&mut self.rings) => {}
            () = self.stirred.many() => {}
            () = tokio::time::sleep_until((self.drained + TICK).into()) => {}
        }
    }

    /// Whether something is there. Where nothing is, the next look is later.
    fn look(&mut self) -> bool {
        self.undecodable += self.rings.iter_mut().map(Source::look).sum::<u64>();
        let is_there = self.rings.iter().any(|source| source.next.is_some());
        self.pause = if is_there { TICK } else { (self.pause * 2).min(REST) };
        is_there
    }

    /// Reads all that is there and hands it to the system. Gives the sandboxes that something was told of.
    pub fn drain(&mut self, recorders: &mut Recorders) -> Vec<u32> {
        let mut told = Vec::new();
        (self.drained, self.is_told, self.pause) = (Instant::now(), false, TICK);
        self.counts.ring.look();
        self.counts.fills.go_on();
        while self.drain_batch(recorders, &mut told) == BATCH {}
        told.sort_unstable();
        told.dedup();
        if self.undecodable > 0
            && let Some(recorder) = recorders.for_event(0)
        {
            recorder.trail.gap("undecodable", std::mem::take(&mut self.undecodable));
            recorder.trail.flush();
        }
        told
    }

    /// The earlier of what both rings have next.
    fn next(&mut self) -> Option<Event> {
        self.undecodable += self.rings.iter_mut().map(Source::look).sum::<u64>();
        let first = self.rings.iter_mut().min_by_key(|source| source.time())?;
        first.next.take()
    }

    /// Reads one batch and says how many kernel events it had.
    fn drain_batch(&mut self, recorders: &mut Recorders, told: &mut Vec<u32>) -> usize {
        let (mut read, clock) = (0, Clock::now());
        let first = told.len();
        while read < BATCH
            && let Some(event) = self.next()
        {
            read += 1;
            let sandbox = event.header().sandbox;
            if sandbox == PROBE {
                // What the watchdog tries is no sandbox's doing.
                continue;
            }
            if let Some(recorder) = recorders.for_event(sandbox) {
                told.push(recorder.sandbox());
                recorder.event(event, &clock);
            }
        }
        told.extend(self.stirred.take());
        if let Some(batch) = told.get_mut(first..) {
            batch.sort_unstable();
        }
        let mut last = None;
        for &sandbox in told.get(first..).unwrap_or_default() {
            if last.replace(sandbox) != Some(sandbox)
                && let Some(recorder) = recorders.for_event(sandbox)
            {
                recorder.write();
            }
        }
        read
    }

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
        let flows = &mut self.counts.flows;
        let counted = match ended {
            Some(sandbox) => flows.of(sandbox),
            None => flows.of_last_span(),
        };
        let counted = match counted {
            Ok(counted) => counted,
            Err(error) => return tracing::warn!("the kernel's counts cannot be read: {error}"),
        };
        for (key, flow) in counted {
            if flow.sandbox != PROBE
                && let Some(recorder) = recorders.for_event(flow.sandbox)
            {
                recorder.counted(&key, &flow);
            }
        }
        recorders.all().for_each(|recorder| recorder.trail.flush());
    }

    /// Records what the kernel could not deliver. Gives whether it has left out the program that gives
    /// identities at a start.
    pub fn count_losses(&mut self, recorders: &mut Recorders) -> bool {
        match self.counts.losses.since_last() {
            Ok(losses) => {
                let has_skipped = losses.iter().any(|loss| loss.kind == EXEC_HOOK);
                for loss in losses.into_iter().filter(|loss| loss.sandbox != PROBE) {
                    if let Some(recorder) = recorders.for_event(loss.sandbox) {
                        let verdict = loss.verdict.map(VerdictName::from);
                        recorder.trail.lost(loss.kind, loss.count, verdict);
                        recorder.trail.flush();
                    }
                }
                if let Err(error) = self.counts.losses.told() {
                    tracing::warn!("what was lost will be told once more: {error}");
                }
                has_skipped
            }
            Err(error) => {
                tracing::warn!("the kernel's loss counters cannot be read: {error}");
                false
            }
        }
    }
}

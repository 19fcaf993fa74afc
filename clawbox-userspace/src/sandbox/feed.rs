//! Reads what the kernel reports of all sandboxes of this process and hands each its own, in the order in
//! which it happened. Woken where it has read all before and something is denied, but not more often than it
//! pays, and by a fill level; never per event. Nobody is woken for what is allowed: it is looked for.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clawbox_common::event::{Header, Kind};
use clawbox_common::limits::EVENT_WAKE;
use clawbox_common::number;
use clawbox_common::rule::LOST_ALLOW;
use clawbox_common::verdict::Verdict;
use tokio::io::unix::AsyncFd;

use super::probe::PROBE;
use super::recorder::Stirred;
use super::recorders::Recorders;
use super::timer::Timer;
use crate::audit::clock::Clock;
use crate::audit::record::{Alarm, Object, VerdictName};
use crate::audit::store::in_flight::{self, Change, InFlight, PASSED};
use crate::audit::store::intake::Intake;
use crate::audit::store::numbers::Other;
use crate::audit::store::scan;
use crate::audit::trail::Draft;
use crate::events::Event;
use crate::kernel::counted::Counted;
use crate::kernel::fill::{Fills, RingFill};
use crate::kernel::flows::Flows;
use crate::kernel::losses::{self, EXEC_HOOK, Losses};
use crate::kernel::memory::Memory;
use crate::kernel::numbers::{Found, Numbers};
use crate::kernel::pin::directory_of;
use crate::kernel::ring::Ring;
use crate::kernel::tallies::Tallies;

/// How long an event that somebody is woken for waits at most before it is read, where others were read just
/// before it.
const TICK: Duration = Duration::from_millis(80);

/// How long what is allowed waits, where there is some all the time: each look has its price, and much of it
/// crosses a fill level before.
const ALLOWED: Duration = Duration::from_millis(150);

/// How long what is allowed waits at most, where nothing was for a while: a look of a processor that has slept
/// takes it some 70 microseconds, and so it is one with that for losses, which comes first. The store makes up
/// for it: what is found so late is written at once.
const REST: Duration = Duration::from_millis(900);

/// Events that are brought into order together.
const BATCH: usize = 1024;

/// How long one look may take: questions for names are answered by the same loop, between two.
const LOOK: Duration = Duration::from_millis(2);

/// How long one may take that is to read all: who goes on flooding is not waited for.
const ALL: Duration = Duration::from_millis(500);

/// The pin of what is told in [`in_flight`].
const IN_FLIGHT: &str = "IN_FLIGHT";

/// What the kernel counts.
pub struct Counts {
    /// What it could not deliver.
    pub losses: Losses,
    /// How it has numbered what it told.
    pub numbers: Numbers,
    /// What it allowed.
    pub tallies: Tallies,
    /// What else it allowed that is like what it told.
    pub flows: Flows,
    /// Of whom either is.
    pub counted: Counted,
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
    /// When it was looked for.
    looked: Instant,
    /// What is found next has happened since.
    pub(super) since: Instant,
    /// Until the next look for what nobody is woken for.
    pause: Duration,
    timer: Timer,
    /// Something is to be read, but not before [`TICK`] has gone by.
    is_told: bool,
    /// More is there than one look was to read.
    has_more: bool,
    /// Who has to know what was read, so that a killed agent leaves its number.
    pub(super) store: Option<Intake>,
}

/// A ring, and the event that was taken from it before another ring's earlier one.
struct Source {
    /// Which, as its numbers say it.
    which: u32,
    /// Pollable.
    ring: AsyncFd<Ring>,
    next: Option<Event>,
    /// How far all is read but that one.
    before: u64,
}

impl Source {
    fn new(which: u32, ring: Ring) -> std::io::Result<Self> {
        // SAFETY: the ring owns its descriptor, does not change it, and closes it only when it is
        // dropped, which `AsyncFd` does after taking it out of the poller.
        let ring = unsafe { AsyncFd::register(ring) }?;
        let before = ring.get_ref().position();
        Ok(Self { which, ring, next: None, before })
    }

    /// Looks at the next event, and gives how many stood before it that were none.
    fn look(&mut self, numbers: &mut Numbers) -> u64 {
        let mut undecodable = 0;
        while self.next.is_none() {
            self.before = self.ring.get_ref().position();
            let Some(bytes) = self.ring.get_mut().read() else { break };
            match Event::decode(bytes) {
                Ok(event) => self.next = Some(event),
                Err(_) => {
                    undecodable += 1;
                    let number = bytes.get(NUMBER_AT..).and_then(|bytes| bytes.first_chunk());
                    if let Some(number) = number {
                        numbers.read(self.which, u64::from_ne_bytes(*number));
                    }
                }
            }
        }
        undecodable
    }

    /// How far all is taken.
    fn end(&self) -> u64 {
        if self.next.is_some() { self.before } else { self.ring.get_ref().position() }
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

/// Where the number of an event stands.
const NUMBER_AT: usize = std::mem::offset_of!(Header, number);

/// Of which kind a count of an event's loss would be.
fn kind_of(event: &Event) -> u32 {
    let decoded = event.decoded();
    let kind = decoded.kind as u32;
    let is_allow = decoded.verdict == Verdict::Allow && decoded.kind != Kind::Exec;
    if is_allow { kind | LOST_ALLOW } else { kind }
}

pub(super) fn add(counts: &mut in_flight::Counts, (key, count): (u64, u64)) {
    if count > 0 {
        *counts.entry(key).or_default() += count;
    }
}

/// Either ring's reader is woken.
async fn woken([one, other]: &mut [Source; 2]) {
    tokio::select! {
        () = one.woken() => {}
        () = other.woken() => {}
    }
}

impl Feed {
    /// Takes up a load's event sources. Call it inside the runtime.
    ///
    /// # Errors
    /// The ring cannot be polled.
    pub fn new(rings: [Ring; 2], counts: Counts) -> std::io::Result<Self> {
        let [denied, allowed] = rings;
        let rings = [Source::new(number::EVENTS, denied)?, Source::new(number::ALLOWS, allowed)?];
        let (undecodable, drained) = (0, Instant::now());
        // Before this process there may have been another.
        let (is_told, has_more, pause) = (true, false, ALLOWED);
        let stirred = Arc::default();
        let store = None;
        Ok(Self {
            rings,
            counts,
            stirred,
            undecodable,
            drained,
            looked: drained,
            since: drained,
            pause,
            timer: Timer::new()?,
            is_told,
            has_more,
            store,
        })
    }

    /// Whether a count of the kernel's tables is under way, which goes on with each look.
    #[must_use]
    pub fn is_counting(&self) -> bool {
        self.counts.fills.is_under_way()
    }

    /// Whether anything was there in the last looks.
    #[must_use]
    pub fn reads(&self) -> bool {
        self.pause < REST
    }

    /// Where the agent's own decisions say whose they are.
    #[must_use]
    pub fn stirred(&self) -> Arc<Stirred> {
        Arc::clone(&self.stirred)
    }

    /// Waits until something is to be read: at once where nothing was for a while, later where something
    /// was just now, so that one look is for many events. Where much waits, it is at once too.
    pub async fn due(&mut self) {
        if self.has_more {
            return tokio::task::yield_now().await;
        }
        while !self.is_told {
            self.is_told = tokio::select! {
                () = woken(&mut self.rings) => true,
                () = self.stirred.any() => true,
                () = self.timer.at(self.looked + self.pause) => self.look(),
            };
        }
        // In a flood the next wake may come when no room is left.
        if self.rings.iter().any(|source| source.ring.get_ref().unread() >= EVENT_WAKE) {
            return;
        }
        tokio::select! {
            // A second word before the first was heard: the fill level, or what cannot wait.
            () = woken(&mut self.rings) => {}
            () = self.stirred.many() => {}
            () = self.timer.at(self.drained + TICK) => {}
        }
    }

    /// Whether something is there. Where nothing is, the next look is later.
    fn look(&mut self) -> bool {
        self.look_ahead();
        self.looked = Instant::now();
        let is_there = self.rings.iter().any(|source| source.next.is_some());
        if !is_there {
            self.since = self.looked;
        }
        self.pause = if is_there { ALLOWED } else { (self.pause * 2).min(REST) };
        is_there
    }

    /// Reads all that is there.
    pub fn drain_all(&mut self, recorders: &mut Recorders) {
        let began = Instant::now();
        self.drain(recorders);
        while self.has_more && began.elapsed() < ALL {
            self.drain(recorders);
        }
    }

    /// Reads what is there and hands it to the system, and leaves the rest for the next time where that would
    /// take long. Gives the sandboxes that something was told of.
    pub fn drain(&mut self, recorders: &mut Recorders) -> Vec<u32> {
        let mut told = Vec::new();
        (self.drained, self.is_told) = (Instant::now(), false);
        self.looked = self.drained;
        self.counts.ring.look();
        self.counts.fills.go_on();
        loop {
            let (read, behind) = self.drain_whole(recorders, &mut told);
            let is_behind = behind.contains(&true);
            if read > 0 {
                self.pause = ALLOWED;
            }
            self.has_more = read == BATCH && is_behind && self.drained.elapsed() >= LOOK;
            if read < BATCH || !is_behind || self.has_more {
                // The kernel wakes nobody for what came before it was told that all is read. For what is allowed it
                // wakes nobody anyhow.
                self.is_told = behind[0] && read > 0;
                if read < BATCH && !is_behind {
                    self.counts.numbers.are_read();
                }
                break;
            }
        }
        self.since = self.drained;
        told.sort_unstable();
        told.dedup();
        let undecodable = std::mem::take(&mut self.undecodable);
        self.tell_missing(recorders, "undecodable", undecodable);
        told
    }

    /// The ring that has the earlier of what both have next. It stays where it is: a copy is dear where there are
    /// a million a second.
    fn next(&mut self) -> Option<&mut Source> {
        self.look_ahead();
        let first = self.rings.iter_mut().min_by_key(|source| source.time())?;
        let number = first.next.as_ref()?.header().number;
        self.counts.numbers.read(first.which, number);
        Some(first)
    }

    fn look_ahead(&mut self) {
        let numbers = &mut self.counts.numbers;
        for source in &mut self.rings {
            self.undecodable += source.look(numbers);
        }
    }

    /// Reads one batch, and gives its room back when it is known to wait for the store. How many kernel events
    /// it had, and in which of the rings there are more.
    fn drain_whole(
        &mut self,
        recorders: &mut Recorders,
        told: &mut Vec<u32>,
    ) -> (usize, [bool; 2]) {
        let store = self.store.clone();
        if let Some(store) = &store {
            store.hold(self.since);
        }
        let mut counts = in_flight::Counts::new();
        let read = self.drain_batch(recorders, told, &mut counts);
        let positions = self.rings.each_ref().map(Source::end);
        let mut release = || {
            let ([denied, allowed], [to, until]) = (&mut self.rings, positions);
            [denied.ring.get_mut().release(to), allowed.ring.get_mut().release(until)]
        };
        let reached = self.counts.numbers.take_reached();
        let passed = counts.get(&PASSED).copied().unwrap_or_default();
        let change =
            Change { counts: &counts, positions: Some(positions), reached: &reached, told: &[] };
        let is_behind = match &store {
            Some(store) if read > 0 => {
                store.commit(change, Other { passed, ..Other::default() }, release)
            }
            _ => release(),
        };
        if let Some(store) = &store {
            store.release();
        }
        (read, is_behind)
    }

    /// Reads one batch and says how many kernel events it had, and of which kinds those are that became
    /// records.
    fn drain_batch(
        &mut self,
        recorders: &mut Recorders,
        told: &mut Vec<u32>,
        counts: &mut in_flight::Counts,
    ) -> usize {
        let (mut read, clock) = (0, Clock::now());
        let (mut run, mut passed) = ((0, 0), 0);
        let first = told.len();
        while read < BATCH
            && let Some(source) = self.next()
        {
            read += 1;
            let key = source.next.as_ref().and_then(|event| {
                let sandbox = event.header().sandbox;
                // What the watchdog tries is no sandbox's doing.
                if sandbox == PROBE || recorders.is_try(event) {
                    return None;
                }
                let recorder = recorders.for_event(sandbox)?;
                told.push(recorder.sandbox());
                let is_told = recorder.event(event, &clock);
                is_told.then(|| in_flight::key(sandbox, kind_of(event)))
            });
            source.next = None;
            let Some(key) = key else {
                passed += 1;
                continue;
            };
            if key != run.0 {
                add(counts, std::mem::replace(&mut run, (key, 0)));
            }
            run.1 += 1;
        }
        add(counts, run);
        add(counts, (PASSED, passed));
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

    /// What a killed agent has left of what it had read, in memory of the kernel's beside this load's pins, and
    /// what this one will read. `store` is where a store is, by which is told what of that is on the disk.
    pub fn in_flight(&mut self, run: &str, store: &Path) -> io::Result<InFlight> {
        let pin = directory_of(run).join(IN_FLIGHT);
        let memory = Memory::open(&pin, in_flight::WORDS)?;
        let (mut flight, unfinished) = InFlight::open(Box::new(memory), || {
            scan::next_event(store).unwrap_or_else(|error| {
                tracing::debug!("nothing is read of the store: {error}");
                0
            })
        });
        if let Some(positions) = unfinished.positions {
            for (source, to) in self.rings.iter_mut().zip(positions) {
                source.ring.get_mut().seek(to);
            }
        }
        self.counts.losses.told_before(unfinished.told).map_err(io::Error::other)?;
        for lane in (0..self.counts.numbers.lanes()).filter_map(|lane| u16::try_from(lane).ok()) {
            if let Some(reached) = flight.reached(lane) {
                self.counts.numbers.resume(reached);
            }
        }
        flight.finished();
        Ok(flight)
    }

    /// What is read from now on is told this store.
    pub fn store_in(&mut self, store: Intake) {
        self.store = Some(store);
    }

    /// Records what killed agents have read and not stored.
    pub fn tell_left(&mut self, recorders: &mut Recorders) {
        let Some(store) = &self.store else { return };
        store.tell_left(|left| {
            for (key, count) in left.iter().filter(|(key, _)| **key != PASSED) {
                let of = in_flight::loss_key(*key);
                let (kind, verdict) = losses::named(of);
                if let Some(recorder) = recorders.for_event(of.sandbox) {
                    recorder.trail.unstored(kind, *count, verdict.map(VerdictName::from));
                }
            }
        });
    }

    /// Records what the kernel could not deliver. Gives whether it has left out the program that gives
    /// identities at a start.
    pub fn count_losses(&mut self, recorders: &mut Recorders) -> bool {
        // Before the losses are read: those of all that is settled by then are among them.
        let found = self.counts.numbers.look().unwrap_or_else(|error| {
            tracing::warn!("the kernel's numbers cannot be read: {error}");
            Found::default()
        });
        self.tell_found(recorders, &found);
        let losses = match self.counts.losses.since_last() {
            Ok(losses) => losses,
            Err(error) => {
                tracing::warn!("the kernel's loss counters cannot be read: {error}");
                return false;
            }
        };
        let has_skipped = losses.iter().any(|loss| loss.kind == EXEC_HOOK);
        let store = self.store.clone();
        if let Some(store) = &store {
            store.hold(self.since);
        }
        let mut counts = in_flight::Counts::new();
        let mut other = Other { settled: found.settled, ..Other::default() };
        for loss in losses {
            if loss.sandbox == PROBE {
                other.passed += loss.count;
                continue;
            }
            if let Some(recorder) = recorders.for_event(loss.sandbox) {
                if let Some(key) = loss.key {
                    add(&mut counts, (in_flight::key(key.sandbox, key.kind), loss.count));
                }
                other.lost += if loss.has_numbers() { loss.count } else { 0 };
                let verdict = loss.verdict.map(VerdictName::from);
                recorder.trail.lost(loss.kind, loss.count, verdict);
                recorder.trail.flush();
            }
        }
        add(&mut counts, (PASSED, other.passed));
        let told = self.counts.losses.telling().to_vec();
        let change = Change { counts: &counts, positions: None, reached: &[], told: &told };
        let mut tell = || self.counts.losses.told();
        let told = match &store {
            Some(store) if !counts.is_empty() || !other.settled.is_empty() || !told.is_empty() => {
                store.commit(change, other, tell)
            }
            _ => tell(),
        };
        if let Some(store) = &store {
            store.release();
        }
        if let Err(error) = told {
            tracing::warn!("what was lost will be told once more: {error}");
        }
        has_skipped
    }

    /// Records what the numbers of records say that nothing else does.
    fn tell_found(&mut self, recorders: &mut Recorders, found: &Found) {
        if found.unexplained > 0 {
            let count = found.unexplained;
            tracing::error!("{count} events are neither read nor counted as lost by the kernel");
            self.tell_missing(recorders, "unexplained", count);
        }
        if found.impossible > 0
            && let Some(recorder) = recorders.for_event(0)
        {
            let object = Object::Alarm(Alarm {
                severity: "critical".into(),
                part: "rings".into(),
                repaired: false,
                why: Some("records were read twice, or losses counted of none".into()),
                events: Some(found.impossible),
            });
            recorder.trail.add(Draft::of_agent("alarm", "numbers", object));
            recorder.trail.flush();
        }
    }

    /// Records events that are missing for another cause than want of room.
    fn tell_missing(&mut self, recorders: &mut Recorders, kind: &'static str, count: u64) {
        let Some(recorder) = recorders.for_event(0).filter(|_| count > 0) else { return };
        let store = self.store.clone();
        if let Some(store) = &store {
            store.hold(self.since);
        }
        recorder.trail.gap(kind, count);
        recorder.trail.flush();
        let reached = self.counts.numbers.take_reached();
        if let Some(store) = &store {
            let counts = &in_flight::Counts::from([(in_flight::key(0, 0), count)]);
            let change = Change { counts, positions: None, reached: &reached, told: &[] };
            store.commit(change, Other { lost: count, ..Other::default() }, || ());
            store.release();
        }
    }
}

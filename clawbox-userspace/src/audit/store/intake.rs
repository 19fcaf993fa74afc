//! The way into the store: records are put into columns where they are made, and a thread of its own writes
//! them, soon where one is a denial and later where none is. Nobody waits for the disk: what finds no room
//! is counted, and the count is a record.

use std::cell::{Cell, OnceCell};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::watch;

use super::columns::{Batch, Columns, Like};
use super::in_flight::{self, Change, Counts, InFlight};
use super::ledger::{Line, What};
use super::limits::Limits;
use super::numbers::Other;
use super::policies::InForce;
use super::waiting::Waiting;
use super::writer::{Finding, Writer};
use super::{row, segment_name};
use crate::audit::record::{Alarm, Object};
use crate::audit::trail::Draft;
use crate::audit::veil::{self, Veil};
use crate::sandbox::memory;

/// How long the writer waits at most before it looks again whether what is held is whole.
const HELD: Duration = Duration::from_millis(20);

/// How often it is looked whether a segment is to be closed or removed.
const LOOK: Duration = Duration::from_secs(60);

/// How long after the disk has refused a batch it is offered again.
const AGAIN: Duration = Duration::from_secs(1);

/// How long nothing has come before memory is given back.
const REST: Duration = Duration::from_secs(5);

/// How the store is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Condition {
    /// Whether what was to be written last is on the disk; not so before anything was.
    pub is_written: bool,
    /// Why it is not.
    pub failing: Option<String>,
    /// Segments that were removed, of old age or for room, since the store was opened.
    pub removed_segments: u64,
    /// Their events.
    pub removed_events: u64,
}

#[derive(Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    came: Condvar,
    /// A batch is on the disk.
    stored: watch::Sender<()>,
    condition: watch::Sender<Condition>,
    flight: Mutex<Option<InFlight>>,
    veil: Option<Veil>,
    trail_bound: u64,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Cuts off all that waits, to be written.
    fn cut(&self, waiting: &mut Waiting) -> Columns {
        let columns = waiting.cut();
        if columns.rows() > 0 {
            // Before anything more can come.
            self.in_flight(|flight| {
                flight.taken();
            });
        }
        columns
    }

    fn in_flight(&self, what: impl FnOnce(&mut InFlight)) {
        let mut flight = self.flight.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(flight) = &mut *flight {
            what(flight);
        }
    }
}

/// Where records are put.
#[derive(Clone)]
pub struct Intake(Arc<Shared>);

impl Intake {
    /// Puts hashes in the place of what is to be told by its hash alone.
    pub fn put_over(&self, draft: &mut Draft) {
        if let Some(veil) = &self.0.veil {
            veil.put_over(draft);
        }
    }

    /// Whether programs are told by their hash alone.
    #[must_use]
    pub fn hashes_programs(&self) -> bool {
        self.0.veil.as_ref().is_some_and(Veil::covers_programs)
    }

    /// How large the file of a sandbox's own trail may be, in bytes.
    #[must_use]
    pub fn trail_bound(&self) -> u64 {
        self.0.trail_bound
    }

    /// Takes a record of a sandbox under a policy of this number. What the kernel has told has a number.
    pub fn record(&self, sandbox: &str, policy: Option<u32>, draft: &Draft, number: Option<u64>) {
        self.put(sandbox, draft, number, |columns| row::put(columns, sandbox, policy, draft));
    }

    /// Takes a record that may say again, at another time, what one of the same batch has said.
    pub fn known(
        &self,
        sandbox: &str,
        policy: Option<u32>,
        known: &Known,
        (time, number): (SystemTime, u64),
    ) {
        self.put(sandbox, &known.draft, Some(number), |columns| {
            let micros = row::micros(time);
            if let Some((like, under)) = known.like.get()
                && under == policy
                && columns.again(like, micros)
            {
                return;
            }
            row::put_at(columns, micros, sandbox, policy, &known.draft);
            known.like.set(columns.last().map(|like| (like, policy)));
        });
    }

    /// Takes the text of a policy that a sandbox is under. It is in a batch once, whoever else is under it too.
    pub fn policy(&self, sandbox: &str, number: u32, mut policy: InForce) {
        let mut waiting = self.0.lock();
        if !waiting.has_room(true) {
            return waiting.lose(sandbox, 1);
        }
        if !waiting.policies.insert(policy.digest.clone()) {
            policy.texts.clear();
        }
        let Ok(detail) = serde_json::to_string(&policy) else { return };
        row::put_policy(&mut waiting.columns, sandbox, number, &detail);
        if waiting.came(true) {
            drop(waiting);
            self.0.came.notify_one();
        }
    }

    /// Told when more is on the disk.
    #[must_use]
    pub fn stored(&self) -> watch::Receiver<()> {
        self.0.stored.subscribe()
    }

    /// How the store is, from now on.
    #[must_use]
    pub fn condition(&self) -> watch::Receiver<Condition> {
        self.0.condition.subscribe()
    }

    /// What comes until [`Intake::release`] belongs together: all of it is in one batch. Nothing of it has
    /// happened before `from`.
    pub fn hold(&self, from: Instant) {
        let mut waiting = self.0.lock();
        (waiting.is_held, waiting.from) = (true, Some(from));
    }

    /// See [`Intake::hold`]. If the writer has come meanwhile, it has its batch now: neither waits until the
    /// other one runs.
    pub fn release(&self) {
        let mut waiting = self.0.lock();
        (waiting.is_held, waiting.from) = (false, None);
        if std::mem::take(&mut waiting.is_wanted) {
            waiting.cut = Some(self.0.cut(&mut waiting));
            drop(waiting);
            self.0.came.notify_one();
        }
    }

    /// Says what was put in since [`Intake::hold`]: so many events of each kind, read from the rings up to
    /// these places, and losses that are told with it; and what has become of numbers of which no row is.
    /// `finish` gives the rings' room back and says that losses are told.
    pub fn commit<T>(&self, change: Change<'_>, other: Other, finish: impl FnOnce() -> T) -> T {
        self.0.lock().columns.of_rings.other.add(other);
        let mut flight = self.0.flight.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(flight) = &mut *flight {
            flight.begin(change, false);
        }
        let finished = finish();
        if let Some(flight) = &mut *flight {
            flight.finished();
        }
        finished
    }

    /// What agents that were killed have read and not stored, to be put in by `put` and from then on waiting.
    pub fn tell_left(&self, put: impl FnOnce(&Counts)) {
        let mut left = Counts::new();
        self.0.in_flight(|flight| left = flight.left());
        if left.is_empty() {
            return;
        }
        self.hold(Instant::now());
        put(&left);
        let lost = in_flight::numbered(&left);
        let passed = left.get(&in_flight::PASSED).copied().unwrap_or_default();
        self.0.lock().columns.of_rings.other.add(Other { lost, passed, settled: Vec::new() });
        self.0.in_flight(|flight| {
            let change = Change { counts: &left, positions: None, reached: &[], told: &[] };
            flight.begin(change, true);
            flight.finished();
        });
        self.release();
    }

    fn put(
        &self,
        sandbox: &str,
        draft: &Draft,
        number: Option<u64>,
        put: impl FnOnce(&mut Columns),
    ) {
        let is_urgent = row::is_urgent(draft);
        let mut waiting = self.0.lock();
        if !waiting.has_room(is_urgent) {
            waiting.lost_numbers += u64::from(number.is_some());
            return waiting.lose(sandbox, 1);
        }
        put(&mut waiting.columns);
        if let Some(number) = number {
            waiting.columns.of_rings.has(number);
        }
        if waiting.came(is_urgent) {
            drop(waiting);
            self.0.came.notify_one();
        }
    }
}

/// A record that is made once and told many times.
#[derive(Debug)]
pub struct Known {
    /// All of it but its time.
    pub draft: Draft,
    /// The row that says it in the batch that is being made, and under which policy.
    like: Cell<Option<(Like, Option<u32>)>>,
    /// Its line in the sandbox's own trail, behind the time and the number.
    pub line: OnceCell<Box<[u8]>>,
}

impl From<Draft> for Known {
    fn from(draft: Draft) -> Self {
        Self { draft, like: Cell::new(None), line: OnceCell::new() }
    }
}

/// A store that is written to.
pub struct Store {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Store {
    /// Begins to write to the store of a directory, with the key of a file and beside that the one for hashes.
    ///
    /// # Errors
    /// No thread can be started, or what is to be hashed could not be.
    pub fn start(
        directory: PathBuf,
        key: PathBuf,
        name: &str,
        limits: Limits,
        flight: Option<InFlight>,
    ) -> io::Result<Self> {
        let hash_key = veil::key_of(key.parent().unwrap_or(&directory));
        let veil = Veil::open(&hash_key, limits.hash)?;
        let load = flight.as_ref().map_or(0, InFlight::load);
        let (flight, trail_bound) = (Mutex::new(flight), limits.trail.bytes());
        let shared = Arc::new(Shared { flight, veil, trail_bound, ..Shared::default() });
        shared.lock().columns.load = load;
        let (of_thread, name) = (Arc::clone(&shared), name.to_owned());
        let thread = std::thread::Builder::new().name("audit".to_owned()).stack_size(512 << 10);
        let thread = thread.spawn(move || {
            let keeper = Keeper { shared: of_thread, directory, key, name, limits };
            keeper.run();
        })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Where records are put.
    #[must_use]
    pub fn intake(&self) -> Intake {
        Intake(Arc::clone(&self.shared))
    }
}

impl Drop for Store {
    /// Writes what waits and closes the segment.
    fn drop(&mut self) {
        self.shared.lock().is_closed = true;
        self.shared.came.notify_one();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the audit store's writer has ended before its time");
        }
    }
}

/// The thread that writes.
struct Keeper {
    shared: Arc<Shared>,
    directory: PathBuf,
    key: PathBuf,
    /// Whose the findings about the store itself are.
    name: String,
    limits: Limits,
}

/// A batch, and whether it is all that waits and anything comes after it.
struct Taken {
    batch: Option<Batch>,
    is_all: bool,
    is_closed: bool,
}

impl Keeper {
    fn run(&self) {
        let (mut writer, mut stuck) = (None, None);
        let mut is_failing = false;
        loop {
            let taken = match is_failing {
                true => self.wait_again(stuck.is_none()),
                false => self.next(&mut writer),
            };
            stuck = stuck.or(taken.batch);
            match self.write(&mut writer, stuck.as_ref()) {
                Ok(()) => {
                    if std::mem::take(&mut is_failing) {
                        tracing::info!("the audit store is written again");
                    }
                    self.is_now(None, stuck.take().is_some());
                }
                Err(error) if !std::mem::replace(&mut is_failing, true) => {
                    let path = self.directory.display();
                    tracing::error!("the audit store `{path}` cannot be written: {error}");
                    self.is_now(Some(error.to_string()), false);
                }
                Err(_) => {}
            }
            if taken.is_closed && (taken.is_all || is_failing) {
                return self.end(writer);
            }
        }
    }

    /// Tells how the store is, if that is news. A look that writes nothing proves nothing.
    fn is_now(&self, failing: Option<String>, wrote: bool) {
        self.shared.condition.send_if_modified(|condition| {
            let is_written = failing.is_none() && (wrote || condition.is_written);
            let is_news = condition.failing != failing || condition.is_written != is_written;
            (condition.failing, condition.is_written) = (failing, is_written);
            is_news
        });
    }

    /// Writes a batch, with a writer that is opened where there is none.
    fn write(&self, writer: &mut Option<Writer>, batch: Option<&Batch>) -> io::Result<()> {
        let writer = match writer {
            Some(writer) => writer,
            None => writer.insert(self.open()?),
        };
        let Some(batch) = batch else {
            let looked = writer.look();
            self.tell_removed(writer.removed());
            return looked;
        };
        self.shared.in_flight(|flight| flight.writes(writer.next_event()));
        let appended = writer.append(batch);
        self.tell_removed(writer.removed());
        appended?;
        self.shared.in_flight(InFlight::is_durable);
        self.shared.stored.send_replace(());
        Ok(())
    }

    /// Records which segments are there no longer, and with how many events.
    fn tell_removed(&self, removed: Vec<Line>) {
        for line in removed {
            let Line { what, segment, first, events, .. } = line;
            let (reason, why) = match what {
                What::Expired => ("expired", "they were as old as `audit.keep` lets them be"),
                _ => ("made-room", "there was no room for more"),
            };
            let last = (first + events).saturating_sub(1);
            let object = Object::Alarm(Alarm {
                severity: "warning".into(),
                part: segment_name(segment),
                repaired: true,
                why: Some(format!("events {first} to {last} were removed: {why}")),
                events: Some(events),
            });
            Intake(Arc::clone(&self.shared)).record(&self.name, None, &told(reason, object), None);
            self.shared.condition.send_modify(|condition| {
                condition.removed_segments += 1;
                condition.removed_events += events;
            });
        }
    }

    fn open(&self) -> io::Result<Writer> {
        let (writer, findings) = Writer::open(&self.directory, &self.key, self.limits)?;
        let intake = Intake(Arc::clone(&self.shared));
        for finding in findings {
            let Finding { file, reason, is_critical, why } = finding;
            tracing::warn!(file, reason, "the audit store is not as it was left: {why}");
            let severity = if is_critical { "critical" } else { "warning" };
            let object = Object::Alarm(Alarm {
                severity: severity.into(),
                part: file,
                repaired: !is_critical,
                why: Some(why),
                events: None,
            });
            intake.record(&self.name, None, &told(reason, object), None);
        }
        Ok(writer)
    }

    /// Waits until a batch is due, or it is to be looked after the segments.
    fn next(&self, writer: &mut Option<Writer>) -> Taken {
        let (began, mut has_rested) = (Instant::now(), false);
        let mut waiting = self.shared.lock();
        // At first it is opened, whatever comes.
        while let Some(writer) = writer {
            let patience = match waiting.due() {
                Some(Duration::ZERO) => break,
                Some(due) => due,
                None if has_rested => LOOK.saturating_sub(began.elapsed()),
                None => REST.saturating_sub(began.elapsed()),
            };
            if patience.is_zero() {
                if has_rested {
                    break;
                }
                has_rested = true;
                drop(waiting);
                writer.rest();
                memory::trim();
                waiting = self.shared.lock();
                continue;
            }
            let waited = self.shared.came.wait_timeout(waiting, patience);
            waiting = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        self.take(waiting)
    }

    /// Waits before the disk is tried again; what waits is taken where nothing is held back.
    fn wait_again(&self, takes: bool) -> Taken {
        let waiting = self.shared.lock();
        let waited =
            self.shared.came.wait_timeout_while(waiting, AGAIN, |waiting| !waiting.is_closed);
        let (waiting, _) = waited.unwrap_or_else(PoisonError::into_inner);
        match takes {
            true => self.take(waiting),
            false => Taken { batch: None, is_all: false, is_closed: waiting.is_closed },
        }
    }

    fn take(&self, mut waiting: MutexGuard<'_, Waiting>) -> Taken {
        while waiting.is_held && waiting.cut.is_none() {
            waiting.is_wanted = true;
            let waited = self.shared.came.wait_timeout(waiting, HELD);
            waiting = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        waiting.is_wanted = false;
        let columns = match waiting.cut.take() {
            Some(columns) => columns,
            None => self.shared.cut(&mut waiting),
        };
        let (is_closed, is_all) = (waiting.is_closed, waiting.columns.rows() == 0);
        drop(waiting);
        let batch = columns.into_batch().unwrap_or_else(|error| {
            tracing::error!("records are not stored: {error}");
            None
        });
        Taken { batch, is_all, is_closed }
    }

    fn end(&self, writer: Option<Writer>) {
        let closed = writer.map_or(Ok(()), |mut writer| writer.close());
        if let Err(error) = closed {
            let path = self.directory.display();
            tracing::warn!("the audit store `{path}` is closed by the next daemon: {error}");
        }
    }
}

/// What the store says of itself.
fn told(reason: &'static str, object: Object) -> Draft {
    Draft::of_agent("store", reason, object)
}

/// Where a daemon's store is, of its state directory.
#[must_use]
pub fn directory_of(state: &Path) -> PathBuf {
    state.join("audit")
}

/// Where its key is.
#[must_use]
pub fn key_of(state: &Path) -> PathBuf {
    state.join("audit.key")
}

//! The way into the store: records are put into columns where they are made, and a thread of its own writes
//! them, soon where one is a denial and later where none is. Nobody waits for the disk: what finds no room
//! is counted, and the count is a record.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::columns::{Batch, Columns};
use super::limits::Limits;
use super::row;
use super::writer::{Finding, Writer};
use crate::audit::record::{Alarm, Class, Gap, Object, VerdictName};
use crate::audit::trail::{Draft, gap_of};
use crate::sandbox::memory;

/// How long a denial, an answer or a lifecycle record waits for others; it is durable within 200 ms.
const SOON: Duration = Duration::from_millis(100);

/// How long all else does; it is durable within a second.
const LATER: Duration = Duration::from_millis(700);

/// So many rows are written without waiting.
pub const FULL: usize = 32_768;

/// Rows of allows that may wait for a disk.
const BOUND: usize = 4 * FULL;

/// Rows in all: this much is left to denials.
const URGENT_BOUND: usize = 5 * FULL;

/// Bytes of texts that may wait.
const TEXT_BOUND: usize = 32 << 20;

/// How often it is looked whether a segment is to be closed or removed.
const LOOK: Duration = Duration::from_secs(60);

/// How long after the disk has refused a batch it is offered again.
const AGAIN: Duration = Duration::from_secs(1);

/// How long nothing has come before memory is given back.
const REST: Duration = Duration::from_secs(5);

/// The kind of the gap that records leave which found no room.
const UNSTORED: &str = "unstored";

/// What waits to be written.
#[derive(Default)]
struct Waiting {
    columns: Columns,
    /// When the oldest row came.
    since: Option<Instant>,
    /// When the oldest urgent one did.
    urgent: Option<Instant>,
    /// What found no room, by sandbox.
    lost: BTreeMap<String, u64>,
    is_closed: bool,
}

#[derive(Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    came: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where records are put.
#[derive(Clone)]
pub struct Intake(Arc<Shared>);

impl Intake {
    /// Takes a record of a sandbox under a policy of this number.
    pub fn record(&self, sandbox: &str, policy: Option<u32>, draft: &Draft) {
        let is_urgent = row::is_urgent(draft);
        let mut waiting = self.0.lock();
        if !waiting.has_room(is_urgent) {
            return waiting.lose(sandbox, 1);
        }
        row::put(&mut waiting.columns, sandbox, policy, draft);
        if waiting.came(is_urgent) {
            drop(waiting);
            self.0.came.notify_one();
        }
    }
}

impl Waiting {
    fn has_room(&self, is_urgent: bool) -> bool {
        let bound = if is_urgent { URGENT_BOUND } else { BOUND };
        self.columns.rows() < bound && self.columns.pooled() < TEXT_BOUND
    }

    fn lose(&mut self, sandbox: &str, count: u64) {
        match self.lost.get_mut(sandbox) {
            Some(lost) => *lost += count,
            None => drop(self.lost.insert(sandbox.to_owned(), count)),
        }
    }

    /// Rows have come. Whether the writer has to be told of it.
    fn came(&mut self, is_urgent: bool) -> bool {
        let now = || Some(Instant::now());
        let is_first = self.since.is_none();
        if is_first {
            self.since = now();
        }
        let is_first_urgent = is_urgent && self.urgent.is_none();
        if is_first_urgent {
            self.urgent = now();
        }
        is_first || is_first_urgent || self.columns.rows() == FULL
    }

    /// How long the writer may wait; `None` until something comes.
    fn due(&self) -> Option<Duration> {
        if self.is_closed || self.columns.rows() >= FULL {
            return Some(Duration::ZERO);
        }
        let soon = self.urgent.map(|since| since + SOON);
        let later = self.since.map(|since| since + LATER);
        let due = soon.into_iter().chain(later).min()?;
        Some(due.saturating_duration_since(Instant::now()))
    }
}

/// A store that is written to.
pub struct Store {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Store {
    /// Begins to write to the store of a directory, with the key of a file.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn start(directory: PathBuf, key: PathBuf, name: &str, limits: Limits) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
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
                    stuck = None;
                }
                Err(error) if !std::mem::replace(&mut is_failing, true) => {
                    let path = self.directory.display();
                    tracing::error!("the audit store `{path}` cannot be written: {error}");
                }
                Err(_) => {}
            }
            if taken.is_closed && (taken.is_all || is_failing) {
                return self.end(writer);
            }
        }
    }

    /// Writes a batch, with a writer that is opened where there is none.
    fn write(&self, writer: &mut Option<Writer>, batch: Option<&Batch>) -> io::Result<()> {
        let writer = match writer {
            Some(writer) => writer,
            None => writer.insert(self.open()?),
        };
        match batch {
            Some(batch) => writer.append(batch),
            None => writer.look(),
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
            });
            intake.record(&self.name, None, &told(reason, object));
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
        for (sandbox, count) in std::mem::take(&mut waiting.lost) {
            let gap = gap_of(Gap { count, kind: UNSTORED.to_owned(), verdict: None });
            row::put(&mut waiting.columns, &sandbox, None, &gap);
        }
        let mut columns = std::mem::take(&mut waiting.columns);
        (waiting.since, waiting.urgent) = (None, None);
        let is_closed = waiting.is_closed;
        drop(waiting);
        let batch = columns.take().unwrap_or_else(|error| {
            tracing::error!("records are not stored: {error}");
            None
        });
        Taken { batch, is_all: true, is_closed }
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
    Draft {
        time: None,
        class: Class::Agent,
        action: "store",
        verdict: VerdictName::None,
        reason,
        let_through: false,
        rule: None,
        subject: None,
        object,
    }
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

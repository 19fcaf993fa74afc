//! Where records go: numbered, one JSON object a line, appended. A line that cannot be written
//! becomes part of a gap record as soon as writing works again; it never holds a sandbox up.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::watch;

mod file;
mod repeats;

pub use self::file::before;
use self::file::{Sink, TrailFile, end};
use self::repeats::Repeats;
use super::counted::Counted;
use super::record::{Class, Gap, Object, Record, Rule, Subject, VerdictName};
use super::store::intake::{Intake, Known};

/// Why a trail cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot open the audit trail `{}`: {source}; name another file with --audit", path.display())]
pub struct TrailError {
    path: PathBuf,
    source: io::Error,
}

/// A record without what the trail adds.
#[derive(Clone, Debug)]
pub struct Draft {
    /// When; now if absent.
    pub time: Option<SystemTime>,
    /// Class.
    pub class: Class,
    /// Action.
    pub action: &'static str,
    /// Verdict.
    pub verdict: VerdictName,
    /// Reason.
    pub reason: &'static str,
    /// A denied operation that went on.
    pub let_through: bool,
    /// Deciding rule.
    pub rule: Option<Rule>,
    /// Actor.
    pub subject: Option<Subject>,
    /// Object.
    pub object: Object,
}

impl Draft {
    /// What the agent says of itself.
    #[must_use]
    pub fn of_agent(action: &'static str, reason: &'static str, object: Object) -> Self {
        Self {
            time: None,
            class: Class::Agent,
            action,
            verdict: VerdictName::None,
            reason,
            let_through: false,
            rule: None,
            subject: None,
            object,
        }
    }
}

/// Bytes of records that may wait for a disk that does not take them.
const PENDING_BOUND: usize = 1 << 20;

/// Bytes after which records are handed to the system without waiting for the end of the batch.
const BATCH: usize = 64 * 1024;

/// Who has written so often, each time before so much time has gone by, will do so again.
const OFTEN: u8 = 8;
const QUIET: Duration = Duration::from_secs(1);

/// The kind of the gap that unwritten lines leave.
const UNWRITTEN: &str = "unwritten";

/// The trail of one sandbox.
pub struct Trail {
    out: Box<dyn Sink>,
    /// Whole lines, but for the first, of which a part may be written already.
    pending: Vec<u8>,
    /// When it was written last, and how many times before that with no second in between.
    written: (Option<Instant>, u8),
    sandbox: String,
    seq: u64,
    unwritten: u64,
    denied: u64,
    failing: bool,
    /// What it was told.
    pub counted: Counted,
    /// Who waits for lines.
    grown: watch::Sender<()>,
    /// Where the host keeps its own copy, and under which name.
    store: Option<Intake>,
    id: String,
    /// Number of the policy that is in force, for the host's copy.
    pub policy: Option<u32>,
    repeats: Repeats,
}

impl Trail {
    /// Appends to a file that only its owner may read, or writes to standard output for `-`.
    ///
    /// # Errors
    /// The file or its directory cannot be made.
    pub fn open(path: &Path, sandbox: &str) -> Result<Self, TrailError> {
        if path == Path::new("-") {
            return Ok(Self::to(Box::new(io::stdout()), sandbox));
        }
        let mut file = TrailFile::later(path);
        file.open().map_err(|source| TrailError { path: path.to_owned(), source })?;
        let mut trail = Self::to(Box::new(file), sandbox);
        trail.id = id_of(path, sandbox);
        Ok(trail)
    }

    /// Goes on with a file that an earlier process has begun, after its last number. Where it cannot be
    /// opened that is tried again with each line, as if the disk were full meanwhile.
    #[must_use]
    pub fn go_on(path: &Path, sandbox: &str) -> Self {
        let (seq, is_whole) = end(path).unwrap_or((0, true));
        let mut out = TrailFile::later(path);
        let opened = out.open().map(drop);
        let mut trail = Self::to(Box::new(out), sandbox);
        trail.seq = seq;
        trail.id = id_of(path, sandbox);
        if let Err(error) = opened {
            trail.failing = true;
            let path = path.display();
            tracing::warn!(
                "the audit trail `{path}` cannot be opened: {error}; what is lost will be counted"
            );
        }
        if !is_whole {
            // A line that its writer was ended in.
            trail.pending.push(b'\n');
        }
        trail
    }

    fn to(out: Box<dyn Sink>, sandbox: &str) -> Self {
        Self {
            out,
            pending: Vec::new(),
            written: (None, 0),
            sandbox: sandbox.to_owned(),
            seq: 0,
            unwritten: 0,
            denied: 0,
            failing: false,
            counted: Counted::default(),
            grown: watch::Sender::new(()),
            store: None,
            id: sandbox.to_owned(),
            policy: None,
            repeats: Repeats::new(),
        }
    }

    /// Has all that is added from now on go to the host's store too, which keeps it when the trail is as large
    /// as the store says.
    pub fn store_in(&mut self, store: Option<Intake>) {
        if let Some(store) = &store {
            self.out.bound(store.trail_bound());
        }
        self.store = store;
    }

    /// See [`Trail::store_in`].
    #[must_use]
    pub fn stored_in(mut self, store: Option<Intake>) -> Self {
        self.store_in(store);
        self
    }

    /// Told whenever something was written; closed when nothing more will be.
    #[must_use]
    pub fn grows(&self) -> watch::Receiver<()> {
        self.grown.subscribe()
    }

    /// Denials recorded so far.
    #[must_use]
    pub fn denied(&self) -> u64 {
        self.denied
    }

    /// Adds a record. It is on its way to the disk after the next [`Trail::flush`].
    pub fn add(&mut self, draft: Draft) {
        self.add_event(draft, None);
    }

    /// The same of what the kernel has told, with the number that it has there.
    pub fn add_event(&mut self, mut draft: Draft, number: Option<u64>) {
        // One time for both copies.
        draft.time.get_or_insert_with(SystemTime::now);
        if draft.verdict == VerdictName::Deny {
            self.denied += 1;
        }
        self.counted.record(&draft);
        if let Some(store) = &self.store {
            store.put_over(&mut draft);
            store.record(&self.id, self.policy, &draft, number);
        }
        self.add_line(|trail| trail.enqueue(draft));
    }

    /// Adds a record that says what one before has said. Where the host's store has it and there are many,
    /// it is no line of its own.
    pub fn add_known(&mut self, known: &Known, time: SystemTime, number: u64) {
        if self.store.as_ref().is_some_and(Intake::hashes_programs) {
            // It is in the clear where it is known.
            let draft = Draft { time: Some(time), ..known.draft.clone() };
            return self.add_event(draft, Some(number));
        }
        self.denied += u64::from(known.draft.verdict == VerdictName::Deny);
        self.counted.record(&known.draft);
        if let Some(store) = &self.store {
            store.known(&self.id, self.policy, known, (time, number));
            // What nothing has said before is a line, however much of it there is.
            if known.line.get().is_some() && !self.repeats.take() {
                return;
            }
        }
        self.add_line(|trail| trail.enqueue_again(known, time));
    }

    fn add_line(&mut self, enqueue: impl FnOnce(&mut Self) -> bool) {
        if self.unwritten > 0 {
            let gap = Gap { count: self.unwritten, kind: UNWRITTEN.to_owned(), verdict: None };
            if !self.enqueue(gap_of(gap)) {
                return self.leave_out();
            }
            self.unwritten = 0;
        }
        if !enqueue(self) {
            self.leave_out();
        }
        if self.pending.len() >= BATCH && !self.failing {
            self.write_pending();
        }
    }

    /// A line that cannot be written down.
    fn leave_out(&mut self) {
        self.unwritten += 1;
        self.counted.lose(UNWRITTEN, 1);
    }

    /// Puts into the host's store how many events an agent has read that was killed before it had stored
    /// them; they are lines here.
    pub fn unstored(&mut self, kind: &'static str, count: u64, verdict: Option<VerdictName>) {
        if let Some(store) = &self.store {
            let gap = gap_of(Gap { count, kind: kind.to_owned(), verdict });
            store.record(&self.id, self.policy, &Draft { reason: "killed", ..gap }, None);
        }
    }

    /// Records that events were lost.
    pub fn gap(&mut self, kind: &'static str, count: u64) {
        self.lost(kind, count, None);
    }

    /// Records that events of a verdict were lost.
    pub fn lost(&mut self, kind: &'static str, count: u64, verdict: Option<VerdictName>) {
        self.counted.lose(kind, count);
        self.add(gap_of(Gap { count, kind: kind.to_owned(), verdict }));
    }

    /// False where the line does not fit: then it is as if it had never been asked for, and its
    /// number goes to the next.
    fn enqueue(&mut self, draft: Draft) -> bool {
        let time = draft.time.unwrap_or_else(SystemTime::now);
        let record = Record {
            time: humantime::format_rfc3339_micros(time).to_string(),
            seq: self.seq + 1,
            sandbox: std::mem::take(&mut self.sandbox),
            class: draft.class,
            action: draft.action.into(),
            verdict: draft.verdict,
            reason: draft.reason.into(),
            let_through: draft.let_through,
            rule: draft.rule,
            subject: draft.subject,
            object: draft.object,
        };
        let before = self.pending.len();
        let written = serde_json::to_writer(&mut self.pending, &record).is_ok();
        // Lent to the record: a copy for each line is time that a sandbox's questions wait.
        self.sandbox = record.sandbox;
        self.pending.push(b'\n');
        self.end_line(before, written)
    }

    /// The same for what was a line before, of which all but the time and the number is written down already.
    fn enqueue_again(&mut self, known: &Known, time: SystemTime) -> bool {
        let before = self.pending.len();
        if let Some(rest) = known.line.get() {
            let written = begin_line(&mut self.pending, time, self.seq + 1).is_ok();
            self.pending.extend_from_slice(rest);
            return self.end_line(before, written);
        }
        let is_line = self.enqueue(Draft { time: Some(time), ..known.draft.clone() });
        let mut begun = Vec::new();
        if is_line
            && begin_line(&mut begun, time, self.seq).is_ok()
            && let Some(rest) = self.pending[before..].strip_prefix(begun.as_slice())
        {
            // It is there once: nobody else sets it.
            let _ = known.line.set(rest.into());
        }
        is_line
    }

    fn end_line(&mut self, before: usize, written: bool) -> bool {
        if !written || self.pending.len() > PENDING_BOUND {
            self.pending.truncate(before);
            return false;
        }
        self.seq += 1;
        true
    }

    /// Hands what was added to the system; what it does not take stays for the next time.
    pub fn flush(&mut self) {
        self.tell_repeats(false);
        self.write_pending();
    }

    /// Says how many records were no lines of their own.
    fn tell_repeats(&mut self, is_last: bool) {
        if let Some(count) = self.repeats.look(is_last) {
            let gap = Gap { count, kind: "repeated".to_owned(), verdict: None };
            let told = Draft { action: "repeated", reason: "stored", ..gap_of(gap) };
            if !self.enqueue(told) {
                self.leave_out();
            }
        }
    }

    /// Whether it is written again and again.
    fn writes_on(&mut self) -> bool {
        let now = Instant::now();
        let before = self.written.0.replace(now);
        let goes_on = before.is_some_and(|before| now.duration_since(before) < QUIET);
        self.written.1 = if goes_on { self.written.1.saturating_add(1) } else { 0 };
        self.written.1 >= OFTEN
    }

    fn write_pending(&mut self) {
        let mut taken = 0;
        let mut failure = None;
        while taken < self.pending.len() {
            match self.out.write(&self.pending[taken..]) {
                Ok(0) => {
                    failure = Some(io::ErrorKind::WriteZero.into());
                    break;
                }
                Ok(count) => taken += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    failure = Some(error);
                    break;
                }
            }
        }
        self.pending.drain(..taken);
        let is_kept = self.writes_on() && taken > 0 && self.pending.capacity() <= 2 * BATCH;
        if self.pending.is_empty() && !is_kept {
            // A thousand trails that little is added to have no memory for it; who writes on keeps his.
            self.pending = Vec::new();
        }
        if taken > 0 {
            self.grown.send_replace(());
        }
        let failed = failure.or_else(|| self.out.flush().err());
        if let (Some(error), false) = (&failed, self.failing) {
            tracing::warn!(
                "the audit trail cannot be written: {error}; what is lost will be counted"
            );
        }
        self.failing = failed.is_some();
    }
}

/// What a line begins with, as serde writes a [`Record`].
fn begin_line(into: &mut Vec<u8>, time: SystemTime, seq: u64) -> io::Result<()> {
    write!(into, r#"{{"time":"{}","seq":{seq}"#, humantime::format_rfc3339_micros(time))
}

/// What a sandbox is called over the life of a host: by its file, which has a number that its name has not.
fn id_of(path: &Path, sandbox: &str) -> String {
    let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
    stem.unwrap_or_else(|| sandbox.to_owned())
}

impl Drop for Trail {
    fn drop(&mut self) {
        self.tell_repeats(true);
        self.flush();
    }
}

pub(super) fn gap_of(gap: Gap) -> Draft {
    Draft {
        time: None,
        class: Class::Gap,
        action: "lost",
        verdict: VerdictName::None,
        reason: "lost",
        let_through: false,
        rule: None,
        subject: None,
        object: Object::Gap(gap),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    /// Refuses writes while `full`.
    #[derive(Clone, Default)]
    struct Disk {
        full: Arc<Mutex<bool>>,
        bytes: Arc<Mutex<Vec<u8>>>,
    }

    impl Sink for Disk {}

    impl Write for Disk {
        fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
            if *self.full.lock().unwrap() {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.bytes.lock().unwrap().extend_from_slice(buffer);
            Ok(buffer.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn lines(disk: &Disk) -> Vec<Record> {
        let bytes = disk.bytes.lock().unwrap().clone();
        String::from_utf8(bytes)
            .unwrap()
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    #[test]
    fn records_are_numbered_without_holes() {
        let disk = Disk::default();
        let mut trail = Trail::to(Box::new(disk.clone()), "s");
        for count in 1..=3 {
            trail.gap("connect", count);
        }
        trail.flush();
        let seqs: Vec<u64> = lines(&disk).iter().map(|record| record.seq).collect();
        assert_eq!(seqs, [1, 2, 3]);
    }

    #[test]
    fn a_line_that_says_again_what_another_has_said_is_as_if_it_were_written_anew() {
        let disk = Disk::default();
        let mut trail = Trail::to(Box::new(disk.clone()), "s \"quoted\"");
        let gap = Gap { count: 3, kind: "connect".to_owned(), verdict: None };
        let known = Known::from(gap_of(gap));
        for second in 0..3 {
            let time = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(second);
            trail.add_known(&known, time, 1);
            trail.add(Draft { time: Some(time), ..known.draft.clone() });
        }
        trail.flush();
        let text = String::from_utf8(disk.bytes.lock().unwrap().clone()).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 6);
        for (pair, seq) in lines.chunks(2).zip((1..).step_by(2)) {
            let (one, other) = (format!("\"seq\":{seq},"), format!("\"seq\":{},", seq + 1));
            assert!(pair[0].contains(&one), "{pair:?}");
            assert_eq!(pair[0].replace(&one, &other), pair[1]);
        }
    }

    #[test]
    fn what_a_full_disk_did_not_take_is_counted_when_it_takes_lines_again() {
        let disk = Disk::default();
        let mut trail = Trail::to(Box::new(disk.clone()), "s");
        *disk.full.lock().unwrap() = true;
        for _ in 0..20_000 {
            trail.gap("connect", 1);
        }
        let held = trail.seq;
        *disk.full.lock().unwrap() = false;
        trail.flush();
        trail.gap("connect", 7);
        trail.flush();
        let lines = lines(&disk);
        let counts: Vec<&Object> = lines.iter().rev().take(2).map(|line| &line.object).collect();
        let gap =
            |count, kind: &str| Object::Gap(Gap { count, kind: kind.to_owned(), verdict: None });
        assert_eq!(counts, [&gap(7, "connect"), &gap(20_000 - held, "unwritten")]);
        assert!(lines.iter().zip(1..).all(|(line, seq)| line.seq == seq));
    }

    #[test]
    fn a_trail_whose_writer_was_ended_in_a_line_goes_on_after_its_last_whole_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("trail.jsonl");
        Trail::open(&path, "s").unwrap().gap("connect", 1);
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, [&whole[..], &whole[..20]].concat()).unwrap();
        Trail::go_on(&path, "s").gap("connect", 2);
        let text = std::fs::read_to_string(&path).unwrap();
        let found = text.lines().filter_map(|line| serde_json::from_str::<Record>(line).ok());
        assert_eq!(found.map(|record| record.seq).collect::<Vec<_>>(), [1, 2], "{text}");
    }

    #[test]
    fn a_trail_that_cannot_be_opened_is_written_once_it_can() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join("trails");
        std::fs::write(&place, "no directory").unwrap();
        let path = place.join("trail.jsonl");
        let mut trail = Trail::go_on(&path, "s");
        trail.gap("connect", 1);
        trail.flush();
        std::fs::remove_file(&place).unwrap();
        trail.gap("connect", 2);
        trail.flush();
        assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 2);
    }

    #[test]
    fn the_file_is_for_its_owner_only_and_is_appended_to() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("new/trail.jsonl");
        for _ in 0..2 {
            Trail::open(&path, "s").unwrap().gap("connect", 1);
        }
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 2);
    }
}

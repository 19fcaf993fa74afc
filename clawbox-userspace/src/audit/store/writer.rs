//! Segments as their one writer has them: appended to, durable when it says so, closed and signed by size
//! and age, removed by age and room.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::columns::Batch;
use super::frame::{self, Encoder, Label, Title};
use super::ledger::{self, Ledger, Line, What, private};
use super::limits::{Limits, OnFull};
use super::scan::{Scan, scan};
use super::signed::HostKey;
use super::{Head, segment_name, segments};

/// The segment that is being written.
struct Open {
    number: u64,
    file: File,
    since: Instant,
    bytes: u64,
    batches: u64,
    first: u64,
    events: u64,
    head: Head,
    from: i64,
    to: i64,
}

/// The store's one writer.
pub struct Writer {
    directory: PathBuf,
    limits: Limits,
    ledger: Ledger,
    encoder: Encoder,
    open: Option<Open>,
    /// The last segment's last batch.
    before: Head,
    next_segment: u64,
    next_event: u64,
    /// Segments that are closed and still there, the oldest first.
    closed: Vec<Line>,
    /// Lines that the disk has not taken yet, the oldest first.
    unsaid: Vec<Line>,
    /// What was removed and nobody was told of yet.
    removed: Vec<Line>,
}

/// Something that was not as it was left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The file.
    pub file: String,
    /// A stable name.
    pub reason: &'static str,
    /// Whether anything may be missing that was written.
    pub is_critical: bool,
    /// For people.
    pub why: String,
}

impl Writer {
    /// Takes up a store, or begins one. What an earlier writer has left open is closed.
    ///
    /// # Errors
    /// The directory or the key cannot be used.
    pub fn open(directory: &Path, key: &Path, limits: Limits) -> io::Result<(Self, Vec<Finding>)> {
        DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        fs::set_permissions(directory, fs::Permissions::from_mode(0o700))?;
        let key = HostKey::open(key)?;
        let public = key.public();
        let mut findings = Vec::new();
        write_public(directory, &format!("{public}\n"), &mut findings)?;
        let found = ledger::lines(directory, public)?;
        if found.rest > 0 {
            set_aside(directory, &found, &mut findings)?;
        }
        let tail = ledger::tail(directory, public);
        let ledger = Ledger::behind(directory, key, &found);
        let (mut closed, mut before, mut next_segment, mut next_event) =
            (Vec::new(), Head::default(), 1, 0);
        for line in found.lines {
            next_segment = next_segment.max(line.segment + 1);
            next_event = next_event.max(line.first + line.events);
            if line.is_removal() {
                closed.retain(|kept: &Line| kept.segment != line.segment);
                remove(directory, line.segment)?;
            } else {
                before = Head::parse(&line.head).unwrap_or_default();
                closed.push(line);
            }
        }
        let (encoder, open) = (Encoder::default(), None);
        let directory = directory.to_owned();
        let mut writer = Self {
            directory,
            limits,
            ledger,
            encoder,
            open,
            before,
            next_segment,
            next_event,
            closed,
            unsaid: Vec::new(),
            removed: Vec::new(),
        };
        writer.recover(tail, &mut findings)?;
        Ok((writer, findings))
    }

    /// Closes what an earlier writer has left open, and says what of it is not as it was signed.
    fn recover(
        &mut self,
        tail: io::Result<Option<ledger::Tail>>,
        findings: &mut Vec<Finding>,
    ) -> io::Result<()> {
        let mut signed = (0, 0);
        match tail {
            Ok(Some(tail)) => signed = (tail.segment, tail.batches),
            Ok(None) => {
                findings.push(wrong(ledger::TAIL, "tail-unsigned", "it is not as it was signed"))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let open = segments(&self.directory)?;
        let open =
            open.into_iter().filter(|number| *number >= self.next_segment).collect::<Vec<_>>();
        let mut there = 0;
        for number in &open {
            let name = segment_name(*number);
            let found = scan(&self.directory.join(&name), |_, _| {})?;
            if *number == signed.0 {
                there = found.batches.len() as u64;
            }
            if self.close_found(*number, &found, findings)? {
                self.next_segment = number + 1;
            }
        }
        if signed.0 >= self.next_segment || (open.contains(&signed.0) && there < signed.1) {
            let why = format!("{there} batches are there of {} that were signed", signed.1);
            findings.push(wrong(&segment_name(signed.0), "cut", &why));
            self.next_segment = self.next_segment.max(signed.0 + 1);
        }
        Ok(())
    }

    /// Gives whether it stays.
    fn close_found(
        &mut self,
        number: u64,
        found: &Scan,
        findings: &mut Vec<Finding>,
    ) -> io::Result<bool> {
        let name = segment_name(number);
        let torn = if found.is_ended { 0 } else { found.bytes - found.whole };
        if found.title.is_none() && !found.is_wrong {
            // Its writer was ended before it had written anything.
            fs::remove_file(self.directory.join(name))?;
            return Ok(false);
        }
        let labels: Option<Vec<Label>> = found.batches.iter().map(|seen| seen.label).collect();
        let is_whole = found.title == Some(Title { segment: number, before: self.before });
        let Some(labels) = labels.filter(|labels| is_whole && is_chain(found, labels)) else {
            // To sign it would make it look as if it were whole.
            findings.push(wrong(&name, "broken", "its batches are not those that were written"));
            self.before = found.head();
            return Ok(true);
        };
        if torn > 0 {
            findings.push(Finding {
                file: name.clone(),
                reason: "torn",
                is_critical: false,
                why: format!("{torn} bytes of a batch that was not finished were cut off"),
            });
        }
        let file = private().append(true).open(self.directory.join(&name))?;
        file.set_len(found.whole)?;
        if let (Some(first), Some(last)) = (labels.first(), labels.last()) {
            self.next_event = last.first + last.events;
            let open = Open {
                number,
                file,
                since: Instant::now(),
                bytes: found.whole,
                batches: labels.len() as u64,
                first: first.first,
                events: self.next_event - first.first,
                head: found.head(),
                from: labels.iter().map(|label| label.from).min().unwrap_or(0),
                to: labels.iter().map(|label| label.to).max().unwrap_or(0),
            };
            self.close_as(open, What::Recovered, torn)?;
            return Ok(true);
        }
        drop(file);
        fs::remove_file(self.directory.join(name))?;
        Ok(false)
    }

    /// The number of the next event.
    #[must_use]
    pub fn next_event(&self) -> u64 {
        self.next_event
    }

    /// Appends a batch; it is on the disk when this returns.
    ///
    /// # Errors
    /// The disk does not take it: the store is as it was before.
    pub fn append(&mut self, batch: &Batch) -> io::Result<()> {
        loop {
            let due = self.open.as_ref().is_some_and(|open| self.is_due(open));
            let closed = if due { self.close() } else { Ok(()) };
            let has_room = closed.and_then(|()| self.check_quota());
            match has_room.and_then(|()| self.try_append(batch)) {
                Err(error) if is_full(&error) && self.drops_oldest() && self.make_room()? => {}
                other => return other,
            }
        }
    }

    fn drops_oldest(&self) -> bool {
        self.limits.on_full == OnFull::DropOldest
    }

    /// Where nothing may be removed for it, more than the quota is not written.
    fn check_quota(&mut self) -> io::Result<()> {
        let is_over = |writer: &Self| writer.bytes() >= writer.limits.quota.bytes();
        if self.drops_oldest() || !is_over(self) {
            return Ok(());
        }
        self.expire()?;
        if is_over(self) {
            let why = format!("`audit.quota`, {}, is used up", self.limits.quota);
            return Err(io::Error::new(io::ErrorKind::QuotaExceeded, why));
        }
        Ok(())
    }

    /// Segments that were removed since this was asked last, by the lines that say so.
    pub fn removed(&mut self) -> Vec<Line> {
        std::mem::take(&mut self.removed)
    }

    fn try_append(&mut self, batch: &Batch) -> io::Result<()> {
        let mut open = match self.open.take() {
            Some(open) => open,
            None => self.begin()?,
        };
        let events = batch.columns.num_rows() as u64;
        let label = Label {
            number: open.batches,
            before: open.head,
            first: self.next_event,
            events,
            denied: batch.denied,
            from: batch.from,
            to: batch.to,
        };
        let bytes = self.encoder.batch(batch, &label).map_err(io::Error::other)?;
        let written = (&open.file).write_all(&bytes).and_then(|()| open.file.sync_data());
        if let Err(error) = written {
            // What is there of it would be a batch that nobody has finished.
            drop(open.file.set_len(open.bytes));
            self.open = Some(open);
            return Err(error);
        }
        open.head = Head::of(&bytes);
        open.bytes += bytes.len() as u64;
        open.batches += 1;
        open.events += events;
        open.from = open.from.min(batch.from);
        open.to = open.to.max(batch.to);
        self.next_event += events;
        let (number, batches, head) = (open.number, open.batches, open.head);
        self.open = Some(open);
        self.ledger.come_to(number, batches, head);
        Ok(())
    }

    fn begin(&mut self) -> io::Result<Open> {
        self.say(None)?;
        let number = self.next_segment;
        let path = self.directory.join(segment_name(number));
        let bytes = frame::beginning(&Title { segment: number, before: self.before });
        let file = private().create_new(true).append(true).open(&path)?;
        // The directory as well, or the file may be nowhere after a loss of power.
        let written =
            (&file).write_all(&bytes).and_then(|()| File::open(&self.directory)?.sync_all());
        if let Err(error) = written {
            drop(fs::remove_file(&path));
            return Err(error);
        }
        self.next_segment = number + 1;
        Ok(Open {
            number,
            file,
            since: Instant::now(),
            bytes: bytes.len() as u64,
            batches: 0,
            first: self.next_event,
            events: 0,
            head: Head::of(&bytes),
            from: i64::MAX,
            to: i64::MIN,
        })
    }

    fn is_due(&self, open: &Open) -> bool {
        open.bytes >= self.limits.segment.bytes()
            || open.since.elapsed() >= self.limits.rotate.duration()
    }

    /// Closes what is due and removes what is too old or too much.
    ///
    /// # Errors
    /// The disk does not take the lines that say so.
    pub fn look(&mut self) -> io::Result<()> {
        if self.open.as_ref().is_some_and(|open| self.is_due(open)) {
            self.close()?;
        }
        self.expire()
    }

    /// Closes the segment that is being written.
    ///
    /// # Errors
    /// The disk does not take its end: it is found open by the next writer.
    pub fn close(&mut self) -> io::Result<()> {
        match self.open.take() {
            Some(open) => self.close_as(open, What::Closed, 0),
            None => Ok(()),
        }
    }

    fn close_as(&mut self, open: Open, what: What, torn: u64) -> io::Result<()> {
        let ended = (&open.file).write_all(&frame::END).and_then(|()| open.file.sync_data());
        if let Err(error) = ended {
            drop(open.file.set_len(open.bytes));
            self.open = Some(open);
            return Err(error);
        }
        let line = Line {
            time: String::new(),
            what,
            segment: open.number,
            batches: open.batches,
            first: open.first,
            events: open.events,
            bytes: open.bytes + frame::END.len() as u64,
            head: open.head.to_string(),
            from: open.from,
            to: open.to,
            torn,
            before: String::new(),
        };
        self.before = open.head;
        self.closed.push(line.clone());
        self.say(Some(line))?;
        self.expire()
    }

    /// Signs a line, after those that the disk has not taken.
    fn say(&mut self, line: Option<Line>) -> io::Result<()> {
        self.unsaid.extend(line);
        while let Some(next) = self.unsaid.first().cloned() {
            self.ledger.add(next)?;
            self.unsaid.remove(0);
        }
        Ok(())
    }

    fn expire(&mut self) -> io::Result<()> {
        let keep = i64::try_from(self.limits.keep.duration().as_micros()).unwrap_or(i64::MAX);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let since = i64::try_from(now.as_micros()).unwrap_or(i64::MAX).saturating_sub(keep);
        while self.closed.first().is_some_and(|line| line.to < since) {
            self.remove_oldest(What::Expired)?;
        }
        let quota = self.limits.quota.bytes();
        while self.drops_oldest() && self.bytes() > quota && self.remove_oldest(What::MadeRoom)? {}
        Ok(())
    }

    fn bytes(&self) -> u64 {
        let closed: u64 = self.closed.iter().map(|line| line.bytes).sum();
        closed + self.open.as_ref().map_or(0, |open| open.bytes)
    }

    /// Removes the oldest segment where the disk is full; false where there is none.
    fn make_room(&mut self) -> io::Result<bool> {
        let Some(line) = self.closed.first().cloned() else { return Ok(false) };
        // The line that says so needs room itself: first the segment, then the line.
        remove(&self.directory, line.segment)?;
        tracing::warn!(segment = line.segment, "the disk is full: the oldest records were removed");
        self.closed.remove(0);
        let line = Line { what: What::MadeRoom, ..line };
        self.removed.push(line.clone());
        if let Err(error) = self.say(Some(line)) {
            tracing::debug!("that is signed as soon as there is room: {error}");
        }
        Ok(true)
    }

    fn remove_oldest(&mut self, what: What) -> io::Result<bool> {
        let Some(line) = self.closed.first().cloned() else { return Ok(false) };
        // The line first: a segment that is gone without one looks stolen.
        let line = Line { what, ..line };
        self.say(Some(line.clone()))?;
        self.closed.remove(0);
        remove(&self.directory, line.segment)?;
        self.removed.push(line);
        Ok(true)
    }

    /// Gives back what only writing needs.
    pub fn rest(&mut self) {
        self.encoder = Encoder::default();
    }
}

fn is_chain(found: &Scan, labels: &[Label]) -> bool {
    let mut before = found.beginning;
    let numbered = found.batches.iter().zip(labels).enumerate().all(|(at, (seen, label))| {
        let follows = label.before == before && label.number == at as u64;
        before = seen.head;
        follows
    });
    numbered && !found.is_wrong
}

fn wrong(file: &str, reason: &'static str, why: &str) -> Finding {
    Finding { file: file.to_owned(), reason, is_critical: true, why: why.to_owned() }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

fn remove(directory: &Path, segment: u64) -> io::Result<()> {
    match fs::remove_file(directory.join(segment_name(segment))) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn write_public(directory: &Path, text: &str, findings: &mut Vec<Finding>) -> io::Result<()> {
    let path = directory.join(ledger::PUBLIC);
    match fs::read_to_string(&path) {
        Ok(there) if there == text => return Ok(()),
        Ok(_) => findings.push(wrong(ledger::PUBLIC, "key", "it was not this host's key")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    private().truncate(true).open(path)?.write_all(text.as_bytes())
}

/// Lines that do not hold are kept where nobody takes them for lines.
fn set_aside(
    directory: &Path,
    found: &ledger::Found,
    findings: &mut Vec<Finding>,
) -> io::Result<()> {
    let path = directory.join(ledger::HEADS);
    let text = fs::read(&path)?;
    let whole = text.len() - usize::try_from(found.rest).unwrap_or(0);
    let rest = text.get(whole..).unwrap_or_default();
    // A line that its writer was ended in has no end.
    let is_torn = !rest.contains(&b'\n');
    private().append(true).open(directory.join("heads.rejected"))?.write_all(rest)?;
    private().open(&path)?.set_len(whole as u64)?;
    let why = format!("{} bytes behind line {} do not hold", rest.len(), found.lines.len());
    findings.push(Finding { is_critical: !is_torn, ..wrong(ledger::HEADS, "heads", &why) });
    Ok(())
}

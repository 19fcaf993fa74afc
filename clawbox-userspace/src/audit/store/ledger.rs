//! What is signed: `heads.jsonl` with a line for each segment that was closed or removed, each line naming
//! the one before, and `tail.json`, which says how far the open segment and that file have come.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use nix::libc;
use serde::{Deserialize, Serialize};

use super::Head;
use super::signed::{ADDED, HostKey, PublicKey};

/// The file of the lines.
pub const HEADS: &str = "heads.jsonl";
/// The file of the tail.
pub const TAIL: &str = "tail.json";
/// What the lines are checked with; whoever checks a copy had better know it from elsewhere.
pub const PUBLIC: &str = "public.key";

/// What became of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// It was closed: nothing more comes.
    Closed,
    /// It was found open by the next daemon and closed by that.
    Recovered,
    /// It was removed because it was old enough.
    Expired,
    /// It was removed to make room.
    MadeRoom,
}

/// One line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// When.
    pub time: String,
    /// What became of it.
    pub what: What,
    /// Which segment.
    pub segment: u64,
    /// Its batches.
    pub batches: u64,
    /// Number of its first event.
    pub first: u64,
    /// Its events.
    pub events: u64,
    /// Its bytes, the end of the stream with them.
    pub bytes: u64,
    /// Its last batch.
    pub head: String,
    /// Time of its earliest record, microseconds since 1970.
    pub from: i64,
    /// Time of its latest.
    pub to: i64,
    /// Bytes at its end that were no whole batch and were cut off.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub torn: u64,
    /// The line before.
    pub before: String,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "what serde calls")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Line {
    /// Whether it says that the segment is gone.
    #[must_use]
    pub fn is_removal(&self) -> bool {
        matches!(self.what, What::Expired | What::MadeRoom)
    }
}

/// How far all has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tail {
    /// The segment that was written last.
    pub segment: u64,
    /// Its batches.
    pub batches: u64,
    /// The last of them.
    pub head: String,
    /// Lines of `heads.jsonl`.
    pub lines: u64,
    /// The last of them.
    pub line: String,
    /// Nothing: it makes the file as long as it always is.
    #[serde(default)]
    pub blank: String,
}

/// Bytes of the tail's file: a disk's sector, which is written whole or not at all.
const SECTOR: usize = 512;

/// The signed files of a store, as its writer has them.
pub struct Ledger {
    directory: PathBuf,
    key: HostKey,
    /// How far it has come.
    pub tail: Tail,
    /// The tail's file, once this has written to it.
    file: Option<File>,
}

/// The lines of a store, and what does not hold of them.
pub struct Found {
    /// As many as are as they were signed.
    pub lines: Vec<Line>,
    /// Digest of the last of them.
    pub last: Head,
    /// Bytes behind them that are no line.
    pub rest: u64,
}

/// Reads the lines of a store up to the first that does not hold.
///
/// # Errors
/// They cannot be read.
pub fn lines(directory: &Path, key: PublicKey) -> io::Result<Found> {
    let text = match fs::read(directory.join(HEADS)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        other => other?,
    };
    let (mut lines, mut last, mut read) = (Vec::new(), Head::default(), 0);
    for text in text.split_inclusive(|byte| *byte == b'\n') {
        let said = std::str::from_utf8(text).ok().and_then(|text| key.said::<Line>(text));
        match said.filter(|line| line.before == last.to_string()) {
            Some(line) => {
                (last, read) = (Head::of(text), read + text.len());
                lines.push(line);
            }
            None => break,
        }
    }
    Ok(Found { lines, last, rest: (text.len() - read) as u64 })
}

/// What the tail says; `None` where it is not as it was signed.
///
/// # Errors
/// It cannot be read, or is not there.
pub fn tail(directory: &Path, key: PublicKey) -> io::Result<Option<Tail>> {
    let read = || {
        let mut text = Vec::new();
        File::open(directory.join(TAIL))?.take(64 << 10).read_to_end(&mut text)?;
        Ok::<_, io::Error>(text)
    };
    let mut text = read()?;
    loop {
        let said = std::str::from_utf8(&text).ok().and_then(|text| key.said(text));
        // Whoever writes it may have been in the midst of it.
        let again = if said.is_some() { return Ok(said) } else { read()? };
        if again == text {
            return Ok(None);
        }
        text = again;
    }
}

pub(crate) fn private() -> fs::OpenOptions {
    let mut options = File::options();
    options.write(true).create(true).mode(0o600).custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC);
    options
}

impl Ledger {
    /// Goes on behind lines that hold.
    #[must_use]
    pub fn behind(directory: &Path, key: HostKey, found: &Found) -> Self {
        let tail = Tail {
            segment: 0,
            batches: 0,
            head: Head::default().to_string(),
            lines: found.lines.len() as u64,
            line: found.last.to_string(),
            blank: String::new(),
        };
        Self { directory: directory.to_owned(), key, tail, file: None }
    }

    /// Adds a line, durably. What stood behind those that hold is cut off.
    ///
    /// # Errors
    /// The disk does not take it.
    pub fn add(&mut self, mut line: Line) -> io::Result<()> {
        line.time = humantime::format_rfc3339_micros(SystemTime::now()).to_string();
        line.before.clone_from(&self.tail.line);
        let text = self.key.line(&line)?;
        let file = private().append(true).open(self.directory.join(HEADS))?;
        let before = file.metadata()?.len();
        let written = (&file).write_all(text.as_bytes()).and_then(|()| file.sync_data());
        if let Err(error) = written {
            // Half a line would end all that follow it.
            drop(file.set_len(before));
            return Err(error);
        }
        self.tail.lines += 1;
        self.tail.line = Head::of(text.as_bytes()).to_string();
        self.say_tail();
        Ok(())
    }

    /// Says how far the open segment has come.
    pub fn come_to(&mut self, segment: u64, batches: u64, head: Head) {
        self.tail = Tail { segment, batches, head: head.to_string(), ..self.tail.clone() };
        self.say_tail();
    }

    /// Not synced, and no failure of what it is said of: what is said too little is only not proven, while a
    /// line or a batch that is written again because of it would be there twice.
    fn say_tail(&mut self) {
        if let Err(error) = self.write_tail() {
            tracing::debug!("the store's tail is not signed: {error}");
        }
    }

    /// In place: that takes no room, and no new file and name for each batch.
    fn write_tail(&mut self) -> io::Result<()> {
        self.tail.blank.clear();
        let length = serde_json::to_string(&self.tail)?.len() + ADDED;
        self.tail.blank = " ".repeat(SECTOR.saturating_sub(length));
        let text = self.key.line(&self.tail)?;
        // Nor is it written where nobody finds it.
        let file =
            match self.file.take().filter(|file| file.metadata().is_ok_and(|it| it.nlink() > 0)) {
                Some(file) => file,
                None => return self.begin_tail(text.as_bytes()),
            };
        file.write_all_at(text.as_bytes(), 0)?;
        self.file = Some(file);
        Ok(())
    }

    fn begin_tail(&mut self, text: &[u8]) -> io::Result<()> {
        let new = self.directory.join("tail.new");
        let mut file = private().truncate(true).open(&new)?;
        file.write_all(text)?;
        file.sync_data()?;
        fs::rename(new, self.directory.join(TAIL))?;
        self.file = Some(file);
        Ok(())
    }
}

//! A segment from its beginning to its end, batch by batch: what each says of itself and what it is. What
//! that means is for others to say.

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use arrow_ipc::root_as_message;
use nix::libc;

use super::frame::{self, Label, Step, Title};
use super::{Head, segment_name, segments};

/// A batch as it was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// What it says of itself; `None` where that cannot be read.
    pub label: Option<Label>,
    /// What it is.
    pub head: Head,
    /// Where it begins in the file.
    pub at: u64,
    /// Its bytes.
    pub bytes: u64,
}

/// A segment as it was found.
#[derive(Debug)]
pub struct Scan {
    /// What it says of itself; `None` where that cannot be read.
    pub title: Option<Title>,
    /// What its first batch names as the one before it.
    pub beginning: Head,
    /// Its whole batches.
    pub batches: Vec<Seen>,
    /// Where the last whole one ends.
    pub whole: u64,
    /// All its bytes.
    pub bytes: u64,
    /// Whether the stream's end stands right behind the last whole batch, and nothing behind that.
    pub is_ended: bool,
    /// Whether what stands behind them is something else than the beginning of a batch.
    pub is_wrong: bool,
}

impl Scan {
    /// The last batch, or the schema where there is none.
    #[must_use]
    pub fn head(&self) -> Head {
        self.batches.last().map_or(self.beginning, |seen| seen.head)
    }
}

/// A segment's file.
///
/// # Errors
/// It cannot be opened.
pub fn open(path: &Path) -> io::Result<File> {
    File::options().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC).open(path)
}

/// Number of the first event that a store does not have yet.
///
/// # Errors
/// It cannot be read.
pub fn next_event(directory: &Path) -> io::Result<u64> {
    for number in segments(directory)?.into_iter().rev() {
        let found = scan(&directory.join(segment_name(number)), |_, _| {})?;
        if let Some(label) = found.batches.iter().rev().find_map(|seen| seen.label) {
            return Ok(label.first + label.events);
        }
    }
    Ok(0)
}

/// Reads a segment and hands each whole batch, with its bytes, to somebody.
///
/// # Errors
/// It cannot be read.
pub fn scan(path: &Path, mut each: impl FnMut(&Seen, &[u8])) -> io::Result<Scan> {
    let file = open(path)?;
    let mut from = io::BufReader::with_capacity(1 << 18, &file);
    let mut bytes = Vec::new();
    let mut found = Scan {
        title: None,
        beginning: Head::default(),
        batches: Vec::new(),
        whole: 0,
        bytes: file.metadata()?.len(),
        is_ended: false,
        is_wrong: false,
    };
    let first = frame::step(&mut from, &mut bytes)?;
    let Step::Message { metadata, body } = first else {
        found.is_wrong = matches!(first, Step::Wrong | Step::End);
        return Ok(found);
    };
    found.title = root_as_message(&bytes[metadata..body]).ok().and_then(|m| Title::of(&m));
    found.beginning = Head::of(&bytes);
    found.whole = bytes.len() as u64;
    loop {
        bytes.clear();
        let Step::Message { metadata, body } =
            taken(frame::step(&mut from, &mut bytes)?, &mut found)
        else {
            return Ok(found);
        };
        let label = root_as_message(&bytes[metadata..body]).ok().and_then(|m| Label::of(&m));
        let columns = frame::step(&mut from, &mut bytes)?;
        if !matches!(columns, Step::Message { .. }) {
            found.is_wrong = matches!(columns, Step::Wrong | Step::End);
            return Ok(found);
        }
        let (at, length) = (found.whole, bytes.len() as u64);
        let seen = Seen { label, head: Head::of(&bytes), at, bytes: length };
        each(&seen, &bytes);
        found.batches.push(seen);
        found.whole += length;
    }
}

/// What stands where a batch would begin.
fn taken(step: Step, found: &mut Scan) -> Step {
    match step {
        Step::End => {
            found.is_ended = found.bytes == found.whole + frame::END.len() as u64;
            found.is_wrong = !found.is_ended;
        }
        Step::Wrong => found.is_wrong = true,
        Step::Message { .. } | Step::Nothing | Step::Cut => {}
    }
    step
}

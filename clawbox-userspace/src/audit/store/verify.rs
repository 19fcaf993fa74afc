//! Whether a store is as it was written: every batch is there, whole, once and in its place, from the first
//! segment that was kept to what the host has signed last.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::Path;

use super::frame;
use super::ledger::{self, Line, Tail};
use super::numbers::{self, Labelled, Total};
use super::scan::{Scan, scan};
use super::signed::PublicKey;
use super::{Head, segment_name, segments};

/// Something that is not as it was written.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Problem {
    /// The file.
    pub file: String,
    /// Which batch of it, where it is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch: Option<u64>,
    /// What is wrong.
    pub what: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.batch {
            Some(batch) => write!(to, "{} batch {batch}: {}", self.file, self.what),
            None => write!(to, "{}: {}", self.file, self.what),
        }
    }
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Verified {
    /// Segments that were read.
    pub segments: u64,
    /// Segments that were removed, by a signed line.
    pub removed: u64,
    /// Batches that were read.
    pub batches: u64,
    /// Events in them.
    pub events: u64,
    /// Bytes that were read.
    pub bytes: u64,
    /// Batches at the end that no signature covers yet: of these it is only said that they follow each other.
    pub unsigned: u64,
    /// What the numbers of the kernel's records come to.
    pub numbers: numbers::Sum,
    /// What is wrong; nothing where all is as it was written.
    pub problems: Vec<Problem>,
}

struct Check {
    found: Verified,
    tail: Option<Tail>,
    closed: BTreeMap<u64, Line>,
    gone: BTreeMap<u64, Line>,
}

/// Checks a store. What a daemon writes meanwhile is no problem.
///
/// # Errors
/// A file cannot be read.
pub fn verify(directory: &Path, key: PublicKey) -> io::Result<Verified> {
    // Before the rest: what is written after it is what it does not cover yet.
    let tail = ledger::tail(directory, key);
    let lines = ledger::lines(directory, key)?;
    let on_disk = segments(directory)?;
    let mut check = Check {
        found: Verified::default(),
        tail: None,
        closed: BTreeMap::new(),
        gone: BTreeMap::new(),
    };
    check.signed(tail, &lines, on_disk.is_empty())?;
    for line in lines.lines {
        let by = if line.is_removal() { &mut check.gone } else { &mut check.closed };
        by.insert(line.segment, line);
    }
    check.found.removed = check.gone.len() as u64;
    check.missing(&on_disk);
    let (mut before, mut total) = (None, Total::default());
    for segment in on_disk {
        if check.gone.contains_key(&segment) {
            // The next daemon removes it.
            continue;
        }
        let add = |_: &_, bytes: &[u8]| {
            if let Some(said) = frame::first_message(bytes).and_then(|m| Labelled::of(&m)) {
                total.add(said);
            }
        };
        match scan(&directory.join(segment_name(segment)), add) {
            Ok(found) => before = Some(check.segment(segment, &found, before)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                check.vanished(directory, key, segment)?;
            }
            Err(error) => return Err(error),
        }
    }
    check.numbers(total.sum());
    Ok(check.found)
}

impl Check {
    fn problem(&mut self, file: impl Into<String>, batch: Option<u64>, what: impl Into<String>) {
        let (file, what) = (file.into(), what.into());
        self.found.problems.push(Problem { file, batch, what });
    }

    /// Whether every number of the kernel's is a row's, or one that is told.
    fn numbers(&mut self, sum: numbers::Sum) {
        self.found.numbers = sum;
        if sum.unexplained > 0 {
            let what = format!(
                "{} events that the kernel has numbered are neither here nor counted as lost",
                sum.unexplained
            );
            self.problem("the store", None, what);
        }
        if sum.twice > 0 {
            let what = format!("{} of the kernel's numbers stand here twice", sum.twice);
            self.problem("the store", None, what);
        }
    }

    /// What the signed files say of each other.
    fn signed(
        &mut self,
        tail: io::Result<Option<Tail>>,
        lines: &ledger::Found,
        is_empty: bool,
    ) -> io::Result<()> {
        let count = lines.lines.len() as u64;
        if lines.rest > 0 {
            let what = format!(
                "{} bytes behind line {count} were not signed by this host's key, or not in this place",
                lines.rest
            );
            self.problem(ledger::HEADS, None, what);
        }
        match tail {
            Ok(Some(tail)) => {
                let is_cut = tail.lines > count;
                if is_cut && lines.rest == 0 {
                    let what = format!("has {count} lines of {}: the last were cut", tail.lines);
                    self.problem(ledger::HEADS, None, what);
                }
                self.tail = Some(tail);
            }
            Ok(None) => self.problem(ledger::TAIL, None, "was not signed by this host's key"),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if !is_empty || count > 0 {
                    self.problem(ledger::TAIL, None, "is missing");
                }
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Segments that were written and are not there.
    fn missing(&mut self, on_disk: &[u64]) {
        let last = self.tail.as_ref().map_or(0, |tail| tail.segment);
        let last = last.max(self.closed.keys().next_back().copied().unwrap_or(0));
        let all = 1..=last.max(on_disk.last().copied().unwrap_or(0));
        let missing: Vec<u64> = all
            .filter(|segment| {
                on_disk.binary_search(segment).is_err() && !self.gone.contains_key(segment)
            })
            .collect();
        for segment in missing {
            self.problem(segment_name(segment), None, "is missing, and no signed line removes it");
        }
    }

    /// A daemon may have removed it a moment ago.
    fn vanished(&mut self, directory: &Path, key: PublicKey, segment: u64) -> io::Result<()> {
        let lines = ledger::lines(directory, key)?.lines;
        if lines.iter().any(|line| line.segment == segment && line.is_removal()) {
            self.found.removed += 1;
        } else {
            self.problem(segment_name(segment), None, "is missing, and no signed line removes it");
        }
        Ok(())
    }

    /// Checks a segment; gives its number and last batch.
    fn segment(&mut self, number: u64, found: &Scan, before: Option<(u64, Head)>) -> (u64, Head) {
        let name = segment_name(number);
        self.found.segments += 1;
        self.found.bytes += found.bytes;
        self.found.batches += found.batches.len() as u64;
        match &found.title {
            None => self.problem(&name, None, "does not begin as a segment does"),
            Some(title) if title.segment != number => {
                let what = format!("is segment {} under another name", title.segment);
                self.problem(&name, None, what);
            }
            Some(title) => {
                let kept = self.closed.get(&(number - 1)).map(|line| line.head.clone());
                let seen = before.filter(|(of, _)| *of == number - 1).map(|of| of.1.to_string());
                let expected = kept.or(seen);
                if expected.is_some_and(|head| head != title.before.to_string()) {
                    self.problem(&name, None, "does not follow the segment before it");
                }
            }
        }
        self.chain(&name, found);
        self.end(number, &name, found);
        (number, found.head())
    }

    /// Whether each batch names the one before it.
    fn chain(&mut self, name: &str, found: &Scan) {
        let before = |at: usize| match at.checked_sub(1).and_then(|at| found.batches.get(at)) {
            Some(seen) => seen.head,
            None => found.beginning,
        };
        let follows = |at: usize| {
            let label = found.batches.get(at).and_then(|seen| seen.label);
            label.is_some_and(|label| label.before == before(at))
        };
        let mut next = 0;
        for (at, seen) in found.batches.iter().enumerate() {
            let Some(label) = seen.label else {
                self.problem(name, Some(at as u64), "was changed: it does not say what it is");
                next += 1;
                continue;
            };
            self.found.events += label.events;
            if label.number != next {
                let what = if label.number > next {
                    format!("batch {} stands here: those from {next} were removed", label.number)
                } else {
                    format!("batch {} stands here: it was moved or is here twice", label.number)
                };
                self.problem(name, Some(next), what);
            } else if !follows(at) {
                // The link is wrong: this one was changed if the next does not know it either.
                let is_this = at + 1 < found.batches.len() && !follows(at + 1);
                let changed = if is_this { Some(at) } else { at.checked_sub(1) };
                match changed {
                    Some(changed) => {
                        self.problem(
                            name,
                            Some(changed as u64),
                            "was changed, or the link to it was",
                        );
                    }
                    None => {
                        self.problem(name, None, "its beginning was changed, or the link to it")
                    }
                }
            }
            next = label.number + 1;
        }
    }

    /// Whether it ends where the host has signed that it does.
    fn end(&mut self, number: u64, name: &str, found: &Scan) {
        let count = found.batches.len() as u64;
        if found.is_wrong {
            let what = format!("cannot be read from byte {} on: it was changed", found.whole);
            self.problem(name, Some(count), what);
        }
        if let Some(line) = self.closed.get(&number).cloned() {
            if count < line.batches {
                let what =
                    format!("{count} batches are there of {}: the rest was cut", line.batches);
                self.problem(name, Some(count), what);
            } else if count > line.batches || line.head != found.head().to_string() {
                let last = Some(line.batches.saturating_sub(1));
                self.problem(name, last, "is not the last batch that was signed: it was changed");
            } else if (!found.is_ended || found.bytes != line.bytes) && !found.is_wrong {
                self.problem(name, None, "does not end where it was closed");
            }
            return;
        }
        match self.tail.clone().filter(|tail| tail.segment >= number) {
            Some(tail) if tail.segment == number => {
                self.found.unsigned += count.saturating_sub(tail.batches);
                let signed = tail.batches.checked_sub(1).and_then(|at| usize::try_from(at).ok());
                if count < tail.batches {
                    let what =
                        format!("{count} batches are there of {}: the rest was cut", tail.batches);
                    self.problem(name, Some(count), what);
                } else if let Some(seen) = signed.and_then(|at| found.batches.get(at))
                    && seen.head.to_string() != tail.head
                {
                    let what = "is not what was signed last: it was changed";
                    self.problem(name, Some(tail.batches - 1), what);
                }
            }
            Some(_) => {
                self.problem(name, None, "was closed, and the signed line of that is missing")
            }
            None => self.found.unsigned += count,
        }
    }
}

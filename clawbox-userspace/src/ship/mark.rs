//! How far a receiver has come: a place in the store and the number of the first event that it has not confirmed.
//! It is written down behind what was confirmed, so whoever resumes says some again and leaves none out.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::audit::store::read::Cursor;

/// See the module.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mark {
    /// Where the batch begins that is not confirmed as a whole.
    pub cursor: Cursor,
    /// The first event that is not.
    pub next: u64,
}

/// The mark of one receiver, in a file.
#[derive(Debug)]
pub(super) struct Marks {
    path: PathBuf,
    mark: Mark,
    /// The file says so.
    is_kept: bool,
    is_failing: bool,
}

impl Marks {
    /// What a file says; from the store's beginning where there is none, or none that can be read.
    pub(super) fn at(path: &Path) -> Self {
        let mark = fs::read(path).ok().and_then(|text| serde_json::from_slice(&text).ok());
        let (path, mark) = (path.to_owned(), mark.unwrap_or_default());
        Self { path, mark, is_kept: true, is_failing: false }
    }

    pub(super) fn mark(&self) -> Mark {
        self.mark
    }

    /// Events that are confirmed.
    pub(super) fn shipped(&self) -> u64 {
        self.mark.next
    }

    /// Moves it, in memory.
    pub(super) fn reached(&mut self, mark: Mark) {
        self.is_kept &= self.mark == mark;
        self.mark = mark;
    }

    /// Moves it and writes it down.
    pub(super) fn set(&mut self, mark: Mark) {
        self.reached(mark);
        self.keep();
    }

    /// Writes it down. Where the disk does not take it, what is confirmed from here on is said again by the
    /// next daemon.
    pub(super) fn keep(&mut self) {
        if std::mem::replace(&mut self.is_kept, true) {
            return;
        }
        match self.write() {
            Ok(()) => self.is_failing = false,
            Err(error) if !std::mem::replace(&mut self.is_failing, true) => {
                let path = self.path.display();
                tracing::warn!("how far the store is shipped is not in `{path}`: {error}");
            }
            Err(_) => {}
        }
    }

    fn write(&self) -> io::Result<()> {
        let new = self.path.with_extension("new");
        let text = serde_json::to_vec(&self.mark)?;
        let mut file = crate::audit::store::ledger::private().truncate(true).open(&new)?;
        file.write_all(&text)?;
        fs::rename(new, &self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_what_was_set_last_and_a_broken_file_is_the_beginning() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ship.json");
        let mut marks = Marks::at(&path);
        assert_eq!(marks.mark(), Mark::default());
        let mark = Mark { cursor: Cursor::default(), next: 7 };
        marks.set(mark);
        assert_eq!(Marks::at(&path).mark(), mark);
        fs::write(&path, "{\"cursor\":").unwrap();
        assert_eq!(Marks::at(&path).mark(), Mark::default());
    }
}

//! The file of a trail: appended to, opened as soon as it can be, and from a size on begun anew beside the one
//! before it. With both the trail goes on: its numbers have no hole.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::PENDING_BOUND;

/// Where a trail's lines go.
pub(super) trait Sink: Write + Send {
    /// From now on it takes no more than twice so many bytes, and the oldest lines go.
    fn bound(&mut self, _bytes: u64) {}
}

impl Sink for io::Stdout {}

/// A file that is opened as soon as it can be.
pub(super) struct TrailFile {
    path: PathBuf,
    file: Option<File>,
    size: u64,
    bound: u64,
    /// It is to be put aside before the next line, so that a trail's file is never without one.
    is_full: bool,
}

impl TrailFile {
    /// One that is opened when it is written to.
    pub(super) fn later(path: &Path) -> Self {
        Self { path: path.to_owned(), file: None, size: 0, bound: u64::MAX, is_full: false }
    }

    pub(super) fn open(&mut self) -> io::Result<&mut File> {
        let file = match self.file.take() {
            Some(file) => file,
            None => {
                let file = appending(&self.path)?;
                self.size = file.metadata()?.len();
                file
            }
        };
        Ok(self.file.insert(file))
    }

    /// Puts the file aside, unless somebody else has done that or has cut it.
    fn put_aside(&mut self) -> io::Result<()> {
        let own = self.open()?.metadata()?;
        self.size = own.len();
        match std::fs::symlink_metadata(&self.path) {
            Ok(there) if (there.dev(), there.ino()) == (own.dev(), own.ino()) => {
                if self.size >= self.bound {
                    std::fs::rename(&self.path, before(&self.path))?;
                    self.file = None;
                }
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(_) | Err(_) => self.file = None,
        }
        Ok(())
    }
}

impl Write for TrailFile {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        if std::mem::take(&mut self.is_full)
            && let Err(error) = self.put_aside()
        {
            let path = self.path.display();
            tracing::warn!("the audit trail `{path}` grows past `audit.trail`: {error}");
            // Not with every line.
            self.size = 0;
        }
        let taken = self.open()?.write(buffer)?;
        self.size += taken as u64;
        Ok(taken)
    }

    /// After whole lines.
    fn flush(&mut self) -> io::Result<()> {
        self.is_full = self.size >= self.bound;
        Ok(())
    }
}

impl Sink for TrailFile {
    fn bound(&mut self, bytes: u64) {
        self.bound = bytes;
    }
}

/// Where the lines before those of a trail's file are, if that was begun anew.
#[must_use]
pub fn before(path: &Path) -> PathBuf {
    let mut before = OsString::from(path);
    before.push(".1");
    before.into()
}

fn appending(path: &Path) -> io::Result<File> {
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        std::fs::create_dir_all(parent)?;
    }
    let flags = nix::libc::O_CLOEXEC | nix::libc::O_NOFOLLOW;
    File::options().create(true).append(true).mode(0o600).custom_flags(flags).open(path)
}

/// The number of the last whole record of a trail, and whether its file ends with a whole line.
pub(super) fn end(path: &Path) -> Option<(u64, bool)> {
    match end_of(path) {
        // It was put aside, and nothing was written since.
        Some((None, true)) | None => {
            let (number, _) = end_of(&before(path))?;
            Some((number?, true))
        }
        Some((number, is_whole)) => Some((number.unwrap_or(0), is_whole)),
    }
}

/// A record is no longer than what is looked at.
fn end_of(path: &Path) -> Option<(Option<u64>, bool)> {
    let mut file = File::open(path).ok()?;
    let length = file.metadata().ok()?.len();
    let start = length.saturating_sub(PENDING_BOUND as u64);
    file.seek(SeekFrom::Start(start)).ok()?;
    let mut end = Vec::new();
    file.take(PENDING_BOUND as u64).read_to_end(&mut end).ok()?;
    let number =
        |line: &[u8]| serde_json::from_slice::<serde_json::Value>(line).ok()?["seq"].as_u64();
    let last = end.rsplit(|byte| *byte == b'\n').find_map(number);
    Some((last, end.last().is_none_or(|byte| *byte == b'\n')))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::trail::Trail;

    fn numbers(path: &Path) -> Vec<u64> {
        let text = std::fs::read_to_string(path).unwrap();
        let number =
            |line| serde_json::from_str::<serde_json::Value>(line).unwrap()["seq"].as_u64();
        text.lines().map(|line| number(line).unwrap()).collect()
    }

    #[test]
    fn a_trail_takes_no_more_than_two_files_of_its_bound_and_its_last_lines_have_no_hole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("trail.jsonl");
        let bound = 4096;
        let mut trail = Trail::open(&path, "s").unwrap();
        trail.out.bound(bound);
        for count in 1..=200 {
            trail.gap("connect", count);
            trail.flush();
        }
        drop(trail);
        let all = [numbers(&before(&path)), numbers(&path)].concat();
        let first = all[0];
        assert!(first > 1, "{all:?}");
        assert_eq!(all, (first..=200).collect::<Vec<_>>());
        for path in [&path, &before(&path)] {
            let length = std::fs::metadata(path).unwrap().len();
            assert!(length < bound + 512, "{length}");
        }
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_trail_that_was_just_put_aside_goes_on_after_its_last_number() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("trail.jsonl");
        let mut trail = Trail::open(&path, "s").unwrap();
        trail.gap("connect", 1);
        trail.gap("connect", 2);
        drop(trail);
        std::fs::rename(&path, before(&path)).unwrap();
        // With no file, and with one that has no line.
        for begun in [None, Some("")] {
            if let Some(text) = begun {
                std::fs::write(&path, text).unwrap();
            }
            assert_eq!(end(&path), Some((2, true)));
        }
        Trail::go_on(&path, "s").gap("connect", 3);
        assert_eq!(numbers(&path), [3]);
        assert_eq!(end(&path), Some((3, true)));
        assert_eq!(end(&directory.path().join("none")), None);
    }

    #[test]
    fn a_file_that_somebody_else_has_put_aside_or_cut_is_not_put_aside_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("trail.jsonl");
        let mut trail = Trail::open(&path, "s").unwrap();
        trail.out.bound(1);
        trail.gap("connect", 1);
        trail.flush();
        let elsewhere = directory.path().join("elsewhere");
        std::fs::rename(&path, &elsewhere).unwrap();
        trail.gap("connect", 2);
        trail.flush();
        assert_eq!((numbers(&elsewhere), numbers(&path)), (vec![1], vec![2]));
        File::options().write(true).open(&path).unwrap().set_len(0).unwrap();
        trail.gap("connect", 3);
        trail.flush();
        assert_eq!(numbers(&path), [3]);
        assert!(!before(&path).exists());
    }

    #[test]
    fn what_cannot_be_put_aside_is_written_on() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("trail.jsonl");
        // No file takes the place of a directory.
        std::fs::create_dir(before(&path)).unwrap();
        let mut trail = Trail::open(&path, "s").unwrap();
        trail.out.bound(1);
        for count in 1..=3 {
            trail.gap("connect", count);
            trail.flush();
        }
        assert_eq!(numbers(&path), [1, 2, 3]);
    }
}

//! Which path a program had. The kernel decides by device and inode and cannot spell paths in
//! every hook; the names for people are kept here, and one that cannot be proven is not claimed.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use clawbox_common::event::{Header, TaskEvent};
use clawbox_common::subject::FileId;

use crate::events::exec_path;
use crate::kernel::file_id::Mounts;

/// Programs remembered at most; then the table starts over.
const BOUND: usize = 4096;

/// Thread groups remembered at most; then the table starts over.
const THREAD_GROUPS: usize = 16_384;

/// Paths of programs and scripts seen so far.
#[derive(Debug)]
pub struct Programs {
    mounts: Mounts,
    paths: HashMap<FileId, PathBuf>,
    scripts: HashMap<u32, String>,
    askers: HashMap<u32, Header>,
}

impl Programs {
    /// Starts with the files that the policy names.
    #[must_use]
    pub fn new(mounts: Mounts, known: impl IntoIterator<Item = (FileId, PathBuf)>) -> Self {
        Self {
            mounts,
            paths: known.into_iter().collect(),
            scripts: HashMap::new(),
            askers: HashMap::new(),
        }
    }

    /// Learns the files that a policy names.
    pub fn named(&mut self, known: &[(FileId, PathBuf)]) {
        self.paths.extend(known.iter().cloned());
    }

    /// Learns from a program start.
    pub fn started(&mut self, event: &TaskEvent) {
        let header = &event.header;
        if self.scripts.len() >= THREAD_GROUPS {
            self.scripts.clear();
        }
        if header.is_script == 1 {
            let path = String::from_utf8_lossy(exec_path(event)).into_owned();
            self.scripts.insert(header.tgid, path);
        } else {
            self.scripts.remove(&header.tgid);
        }
        if self.paths.contains_key(&header.exe) {
            return;
        }
        if self.paths.len() >= BOUND {
            self.paths.clear();
        }
        if let Some(path) = self.find(event) {
            self.paths.insert(header.exe, path);
        }
    }

    /// Learns who asks the resolver.
    pub fn asked(&mut self, header: &Header) {
        if self.askers.len() >= THREAD_GROUPS {
            self.askers.clear();
        }
        self.askers.insert(header.tgid, *header);
    }

    /// The last question's sender of a thread group.
    #[must_use]
    pub fn asker(&self, tgid: u32) -> Option<&Header> {
        self.askers.get(&tgid)
    }

    /// A path that is proven to be this program's: it names the same device and inode. Tried are
    /// what `/proc` says of the process and, if that has ended, the path exec was given.
    fn find(&mut self, event: &TaskEvent) -> Option<PathBuf> {
        let link = format!("/proc/{}/exe", event.header.tgid);
        let running = fs::read_link(&link).ok().filter(|_| self.is(Path::new(&link), event));
        running.or_else(|| {
            let given = PathBuf::from(String::from_utf8_lossy(exec_path(event)).into_owned());
            (given.is_absolute() && self.is(&given, event))
                .then(|| fs::canonicalize(&given).unwrap_or(given))
        })
    }

    fn is(&mut self, path: &Path, event: &TaskEvent) -> bool {
        self.mounts.hold(path).is_ok_and(|held| held.id == event.header.exe)
    }

    /// The program's path, if it is known.
    #[must_use]
    pub fn path(&self, exe: FileId) -> Option<&Path> {
        self.paths.get(&exe).map(PathBuf::as_path)
    }

    /// The script that a thread group was started through, if it was.
    #[must_use]
    pub fn script(&self, tgid: u32) -> Option<&str> {
        self.scripts.get(&tgid).map(String::as_str)
    }
}

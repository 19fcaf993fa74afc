//! Which path a program had. The kernel decides by device and inode and cannot spell paths in
//! every hook; the names for people are kept here, and one that cannot be proven is not claimed.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use clawbox_common::event::{Header, TaskEvent};
use clawbox_common::subject::FileId;

use crate::events::{exec_path, program_path};
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
    view: Option<View>,
}

/// The files of a sandbox as its processes see them, for as long as this is held.
#[derive(Debug)]
struct View {
    root: File,
    /// Without it what is mounted in the namespace would go with its last process.
    _namespace: File,
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
            view: None,
        }
    }

    /// Learns the files that a policy names.
    pub fn named(&mut self, known: &[(FileId, PathBuf)]) {
        self.paths.extend(known.iter().cloned());
    }

    /// Looks at the sandbox's files through its first process from now on.
    ///
    /// # Errors
    /// The process has ended, or `/proc` is not there.
    pub fn see_from(&mut self, first_process: u32) -> io::Result<()> {
        if let Err(error) = self.mounts.add_those_of(first_process) {
            tracing::debug!("programs are named by the host's mounts alone: {error}");
        }
        let open = |what| File::open(format!("/proc/{first_process}/{what}"));
        self.view = Some(View { root: open("root")?, _namespace: open("ns/mnt")? });
        Ok(())
    }

    /// The filesystem that an entry of a directory is on, as far as that can be seen. Directories that
    /// are gone by now, as temporary ones soon are, were on that of the directory above: a sandbox
    /// mounts nothing.
    #[must_use]
    pub fn filesystem(&self, entry: &str) -> Option<u64> {
        let View { root, .. } = self.view.as_ref()?;
        let root = format!("/proc/self/fd/{}", root.as_raw_fd());
        // What does not begin at the root is not known as a whole.
        let above = Path::new(entry).ancestors().skip(1).filter(|path| path.has_root());
        let mut seen = above.map(|path| fs::metadata(format!("{root}{}", path.display())));
        seen.find(|seen| !is_gone(seen))?.ok().map(|found| found.dev())
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
    /// what `/proc` says of the process and, if that has ended, the path exec or the script gave.
    fn find(&mut self, event: &TaskEvent) -> Option<PathBuf> {
        let link = format!("/proc/{}/exe", event.header.tgid);
        let running = fs::read_link(&link).ok().filter(|_| self.is(Path::new(&link), event));
        running.or_else(|| {
            let given = PathBuf::from(OsStr::from_bytes(program_path(event)));
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

fn is_gone(seen: &io::Result<fs::Metadata>) -> bool {
    seen.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

#[cfg(test)]
mod tests {
    use clawbox_common::event::Kind;
    use clawbox_common::limits::{ARGUMENTS, SCRIPT_PATH};
    use clawbox_common::verdict::{Reason, Verdict};

    use super::*;

    #[test]
    fn directories_that_are_gone_were_on_the_filesystem_of_the_one_above() {
        let mut programs = Programs::new(Mounts::read().unwrap(), []);
        assert_eq!(programs.filesystem("/proc/version"), None);
        programs.see_from(std::process::id()).unwrap();
        for (one, other) in
            [("/proc/gone/with/it", "/proc/version"), ("/etc/gone/it", "/etc/passwd")]
        {
            assert_eq!(programs.filesystem(one), programs.filesystem(other), "{one}");
        }
        assert_ne!(programs.filesystem("/proc/gone/it"), programs.filesystem("/etc/gone/it"));
        assert_eq!(programs.filesystem("…/it"), None);
    }

    #[test]
    fn the_interpreter_of_a_script_that_has_ended_is_known_by_its_path() {
        let shell = fs::canonicalize("/bin/sh").unwrap();
        for (interpreter, known) in
            [("/bin/sh", Some(shell.as_path())), ("/bin/true", None), ("bin/sh", None), ("", None)]
        {
            let mounts = Mounts::read().unwrap();
            let exe = mounts.hold(&shell).unwrap().id;
            let mut event = ended_script("/some/script", interpreter);
            event.header.exe = exe;
            let mut programs = Programs::new(mounts, []);
            programs.started(&event);
            assert_eq!(programs.path(exe), known, "{interpreter}");
            assert_eq!(programs.script(u32::MAX), Some("/some/script"));
        }
    }

    /// By a thread group that is not there.
    fn ended_script(script: &str, interpreter: &str) -> TaskEvent {
        let text = |path: &str| {
            let mut text = [0; SCRIPT_PATH];
            text[..path.len()].copy_from_slice(path.as_bytes());
            text
        };
        let header = Header {
            number: 0,
            kind: Kind::Exec as u8,
            verdict: Verdict::Allow as u8,
            reason: Reason::Exec as u8,
            audit_only: 0,
            sandbox: 1,
            time: 0,
            tgid: u32::MAX,
            tid: u32::MAX,
            uid: 0,
            is_script: 1,
            exe: FileId { inode: 0, device: 0, zero: 0 },
        };
        let (path, interpreter) = (text(script), text(interpreter));
        let (arguments_bytes, arguments) = (0, [0; ARGUMENTS]);
        TaskEvent { header, parent: 1, arguments_bytes, path, interpreter, arguments }
    }
}

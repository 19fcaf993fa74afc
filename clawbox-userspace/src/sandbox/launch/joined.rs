//! The namespaces of a sandbox's first process, for one more command in it: opened by the agent, entered by
//! the child, which is born in the pid namespace and comes into the others before it has any say.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::errno::Errno;
use nix::libc;
use nix::sched::{CloneFlags, setns};

/// Namespaces that are entered, in this order: with the mounts the host's files are out of sight.
const KINDS: [(&str, CloneFlags); 5] = [
    ("ipc", CloneFlags::CLONE_NEWIPC),
    ("uts", CloneFlags::CLONE_NEWUTS),
    ("cgroup", CloneFlags::CLONE_NEWCGROUP),
    ("net", CloneFlags::CLONE_NEWNET),
    ("mnt", CloneFlags::CLONE_NEWNS),
];

/// Those that are not the agent's own, and where the command is to start.
#[derive(Debug)]
pub struct Joined {
    pub(super) pid: Option<OwnedFd>,
    pub(super) others: Vec<(OwnedFd, CloneFlags)>,
    pub(super) workdir: CString,
}

impl Joined {
    /// Of a process, by its number: the caller sees to it that it is still the one that is meant.
    ///
    /// # Errors
    /// It has ended; or it is in a user namespace of its own, which no sandbox of clawbox's is.
    pub fn of(process: u32, workdir: &Path) -> io::Result<Self> {
        let other = |kind: &str| -> io::Result<Option<OwnedFd>> {
            let theirs = File::open(format!("/proc/{process}/ns/{kind}"))?;
            let own = std::fs::metadata(format!("/proc/self/ns/{kind}"))?;
            let found = theirs.metadata()?;
            let is_own = (found.dev(), found.ino()) == (own.dev(), own.ino());
            Ok((!is_own).then(|| theirs.into()))
        };
        if other("user")?.is_some() {
            return Err(io::Error::other("it is in a user namespace of its own"));
        }
        let mut others = Vec::new();
        for (kind, flag) in KINDS {
            others.extend(other(kind)?.map(|namespace| (namespace, flag)));
        }
        let workdir = CString::new(workdir.as_os_str().as_bytes())?;
        Ok(Self { pid: other("pid")?, others, workdir })
    }

    /// The one that the child is to be born in.
    pub(super) fn pid(&self) -> Option<&OwnedFd> {
        self.pid.as_ref()
    }

    /// Enters all but the pid namespace. For the forked child, as root: system calls only.
    pub(super) fn enter(&self) -> Result<(), Errno> {
        self.others.iter().try_for_each(|(namespace, flag)| setns(namespace, *flag))
    }

    /// Goes to the directory to start in. For the forked child, with the rights of the sandbox's user:
    /// whoever asks names the directory.
    pub(super) fn go_to_workdir(&self) -> Result<(), Errno> {
        // SAFETY: a string of ours.
        Errno::result(unsafe { libc::chdir(self.workdir.as_ptr()) }).map(drop)
    }
}

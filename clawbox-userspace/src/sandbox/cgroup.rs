//! A sandbox's cgroup: where its processes are born, counted and, at the end, all ended.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Directory below the hierarchy's root that holds all sandboxes.
pub const PARENT: &str = "clawbox";

/// Steps from the root of the hierarchy to a sandbox's cgroup.
pub const LEVEL: u32 = 2;

/// How long the processes of a killed cgroup may take to be gone.
const KILL_PATIENCE: Duration = Duration::from_secs(10);

/// Why a cgroup could not be had or removed.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// No cgroup v2 hierarchy is mounted.
    #[error(
        "no cgroup v2 hierarchy is mounted; mount one with `mount -t cgroup2 none /sys/fs/cgroup`, \
         or boot with systemd.unified_cgroup_hierarchy=1"
    )]
    NotMounted,
    /// A file operation failed.
    #[error("cannot {what} `{}`: {source}", path.display())]
    Io {
        /// Operation.
        what: &'static str,
        /// Object.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// Killed processes are still there.
    #[error("processes in `{}` are still there {} s after SIGKILL; see its cgroup.procs", path.display(), KILL_PATIENCE.as_secs())]
    StillPopulated {
        /// The cgroup.
        path: PathBuf,
    },
}

fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CgroupError {
    let path = path.to_owned();
    move |source| CgroupError::Io { what, path, source }
}

/// The mount point of the cgroup v2 hierarchy: alone at /sys/fs/cgroup, or beside version 1.
///
/// # Errors
/// None is mounted.
pub fn hierarchy_root() -> Result<PathBuf, CgroupError> {
    let mountinfo = Path::new("/proc/self/mountinfo");
    let text = fs::read_to_string(mountinfo).map_err(io_error("read", mountinfo))?;
    root_in(&text).ok_or(CgroupError::NotMounted)
}

/// The fields after ` - ` begin with the filesystem's type; the fifth before it is the mount
/// point with `\040`-like escapes, which no cgroup mount has.
fn root_in(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        let kind = filesystem.split(' ').next()?;
        (kind == "cgroup2").then(|| mount.split(' ').nth(4).map(PathBuf::from))?
    })
}

/// The id that BPF helpers give is the kernfs node's, which is the directory's inode.
fn id_of(path: &Path) -> Result<u64, CgroupError> {
    Ok(fs::metadata(path).map_err(io_error("look at", path))?.ino())
}

/// One sandbox's cgroup. Dropping it leaves it in place; see [`Cgroup::remove`].
#[derive(Clone, Debug)]
pub struct Cgroup {
    path: PathBuf,
    id: u64,
}

impl Cgroup {
    /// Makes the cgroup of a sandbox.
    ///
    /// # Errors
    /// It exists, or this process may not make it.
    pub fn create(root: &Path, name: &str) -> Result<Self, CgroupError> {
        let parent = root.join(PARENT);
        let path = parent.join(name);
        loop {
            if let Err(error) = fs::create_dir(&parent)
                && error.kind() != io::ErrorKind::AlreadyExists
            {
                return Err(io_error("make the cgroup", &parent)(error));
            }
            match fs::create_dir(&path) {
                Ok(()) => return Self::open(path),
                // Another run may have removed the parent, which was empty, between the two.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(io_error("make the cgroup", &path)(error)),
            }
        }
    }

    /// Takes up a cgroup that exists.
    ///
    /// # Errors
    /// It does not.
    pub fn open(path: PathBuf) -> Result<Self, CgroupError> {
        let id = id_of(&path)?;
        Ok(Self { path, id })
    }

    /// The cgroup of this id in a directory; `None` if there is none.
    #[must_use]
    pub fn by_id(directory: &Path, id: u64) -> Option<Self> {
        let entries = fs::read_dir(directory).ok()?;
        let found = entries.flatten().filter_map(|entry| Self::open(entry.path()).ok());
        found.into_iter().find(|cgroup| cgroup.id == id)
    }

    /// The id that kernel programs see.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The id of the cgroup that all sandboxes are in; as long as this one is there, so is that.
    ///
    /// # Errors
    /// It cannot be looked at.
    pub fn parent_id(&self) -> Result<u64, CgroupError> {
        id_of(self.path.parent().unwrap_or(&self.path))
    }

    /// Its directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file through which a process enters.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn procs(&self) -> Result<File, CgroupError> {
        let path = self.path.join("cgroup.procs");
        File::options().write(true).open(&path).map_err(io_error("open", &path))
    }

    /// Its directory, for a process to be born in.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn directory(&self) -> Result<File, CgroupError> {
        File::open(&self.path).map_err(io_error("open", &self.path))
    }

    /// Ends every process in it and below it, and waits until they are gone.
    ///
    /// # Errors
    /// A process does not go.
    pub fn end_processes(&self) -> Result<(), CgroupError> {
        let kill = self.path.join("cgroup.kill");
        fs::write(&kill, "1").map_err(io_error("write", &kill))?;
        self.wait_until_empty()
    }

    /// Ends every process in it and below it, waits until they are gone, and removes it.
    ///
    /// # Errors
    /// A process does not go, or a directory cannot be removed.
    pub fn remove(self) -> Result<(), CgroupError> {
        self.end_processes()?;
        remove_tree(&self.path)?;
        // Fails while another sandbox has its cgroup there, as it should.
        let _ = self.path.parent().map(fs::remove_dir);
        Ok(())
    }

    /// `cgroup.events` becomes readable with POLLPRI at each change of `populated`.
    fn wait_until_empty(&self) -> Result<(), CgroupError> {
        let path = self.path.join("cgroup.events");
        let deadline = Instant::now() + KILL_PATIENCE;
        loop {
            let events = File::open(&path).map_err(io_error("open", &path))?;
            let text = io::read_to_string(&events).map_err(io_error("read", &path))?;
            if text.lines().any(|line| line == "populated 0") {
                return Ok(());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(CgroupError::StillPopulated { path: self.path.clone() });
            }
            let mut wait = [PollFd::new(events.as_fd(), PollFlags::POLLPRI)];
            let patience = u16::try_from(left.as_millis()).unwrap_or(u16::MAX);
            poll(&mut wait, PollTimeout::from(patience))
                .map_err(|errno| io_error("wait for", &path)(errno.into()))?;
        }
    }
}

/// A sandbox may have made cgroups of its own below; they go first.
fn remove_tree(path: &Path) -> Result<(), CgroupError> {
    let entries = fs::read_dir(path).map_err(io_error("list", path))?;
    for entry in entries {
        let entry = entry.map_err(io_error("list", path))?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(path).map_err(io_error("remove", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hierarchy_is_found_alone_and_beside_version_one() {
        let hybrid = "25 1 0:23 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                      26 25 0:24 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                      40 25 0:30 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
        let alone = "25 1 0:23 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw\n";
        assert_eq!(root_in(hybrid), Some(PathBuf::from("/sys/fs/cgroup/unified")));
        assert_eq!(root_in(alone), Some(PathBuf::from("/sys/fs/cgroup")));
        assert_eq!(root_in("25 1 0:23 / / rw - ext4 /dev/vda rw\n"), None);
    }
}

//! A sandbox's cgroup: where its processes are born, counted and, at the end, all ended.

mod handle;

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

/// How long the processes of a cgroup that is frozen may take to stop.
const FREEZE_PATIENCE: Duration = Duration::from_secs(5);

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
    /// A process does not stop.
    #[error(
        "processes in `{}` do not stop within {} s (`cgroup.freeze`), so nobody can say who they are; \
         look at what holds them up, or stop them and start them again", path.display(),
        FREEZE_PATIENCE.as_secs()
    )]
    StillRunning {
        /// The cgroup.
        path: PathBuf,
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

    /// The cgroup of this id, wherever it is; `None` if it is no more.
    ///
    /// # Errors
    /// The hierarchy cannot be asked.
    pub fn of_id(root: &Path, id: u64) -> Result<Option<Self>, CgroupError> {
        let found = handle::directory(root, id).map_err(io_error("find a cgroup in", root))?;
        Ok(found.map(|path| Self { path, id }))
    }

    /// Whether it is still there. Another one may have its path.
    #[must_use]
    pub fn is_there(&self) -> bool {
        id_of(&self.path).is_ok_and(|id| id == self.id)
    }

    /// Its path as the kernel and systemd write it, below the root of the hierarchy.
    #[must_use]
    pub fn below(&self, root: &Path) -> PathBuf {
        Path::new("/").join(self.path.strip_prefix(root).unwrap_or(&self.path))
    }

    /// The processes in it and below it. One of another pid namespace's making is there too.
    ///
    /// # Errors
    /// It is gone.
    pub fn processes(&self) -> Result<Vec<u32>, CgroupError> {
        let mut found = Vec::new();
        let mut left = vec![self.path.clone()];
        while let Some(directory) = left.pop() {
            let procs = directory.join("cgroup.procs");
            let text = match fs::read_to_string(&procs) {
                // A threaded cgroup, whose processes its parent has.
                Err(error) if error.raw_os_error() == Some(nix::libc::EOPNOTSUPP) => String::new(),
                Err(_) if directory != self.path => continue,
                other => other.map_err(io_error("read", &procs))?,
            };
            found.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()));
            let entries = fs::read_dir(&directory).into_iter().flatten().flatten();
            let below = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
            left.extend(below.map(|entry| entry.path()));
        }
        Ok(found)
    }

    /// Holds every process in it and below it where it is, until the guard is dropped.
    ///
    /// # Errors
    /// One does not stop; all go on then.
    pub fn freeze(&self) -> Result<Frozen, CgroupError> {
        let file = self.path.join("cgroup.freeze");
        let was = fs::read_to_string(&file).map_err(io_error("read", &file))?;
        let frozen = Frozen { file: file.clone(), is_ours: was.trim() == "0" };
        fs::write(&file, "1").map_err(io_error("write", &file))?;
        let patience = FREEZE_PATIENCE;
        self.wait_for("frozen 1", patience, |path| CgroupError::StillRunning { path })?;
        Ok(frozen)
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

    fn wait_until_empty(&self) -> Result<(), CgroupError> {
        self.wait_for("populated 0", KILL_PATIENCE, |path| CgroupError::StillPopulated { path })
    }

    /// `cgroup.events` becomes readable with POLLPRI at each change of what is in it.
    fn wait_for(
        &self,
        wanted: &str,
        patience: Duration,
        otherwise: impl FnOnce(PathBuf) -> CgroupError,
    ) -> Result<(), CgroupError> {
        let path = self.path.join("cgroup.events");
        let deadline = Instant::now() + patience;
        loop {
            let events = File::open(&path).map_err(io_error("open", &path))?;
            let text = io::read_to_string(&events).map_err(io_error("read", &path))?;
            if text.lines().any(|line| line == wanted) {
                return Ok(());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(otherwise(self.path.clone()));
            }
            let mut wait = [PollFd::new(events.as_fd(), PollFlags::POLLPRI)];
            let patience = u16::try_from(left.as_millis()).unwrap_or(u16::MAX);
            poll(&mut wait, PollTimeout::from(patience))
                .map_err(|errno| io_error("wait for", &path)(errno.into()))?;
        }
    }
}

/// A cgroup whose processes are held where they are.
#[derive(Debug)]
pub struct Frozen {
    file: PathBuf,
    /// Not if somebody else had it frozen before.
    is_ours: bool,
}

impl Drop for Frozen {
    fn drop(&mut self) {
        if self.is_ours
            && let Err(error) = fs::write(&self.file, "0")
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::error!("`{}` stays frozen: {error}; write 0 to it", self.file.display());
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

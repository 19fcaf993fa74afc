//! Sees which files are opened and which entries are changed, by fanotify, on every filesystem of the host; who
//! is in the sandbox is told from its cgroup while the process is there, else afterwards from the trail.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{SystemTime, UNIX_EPOCH};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::fanotify::{EventFFlags, Fanotify, FanotifyEvent, InitFlags, MarkFlags, MaskFlags};
use rustix::event::{EventfdFlags, eventfd};

use super::entries::Entries;
use super::observed::Uses;

/// Different uses that are remembered; what comes then is lost, and said.
const MOST: usize = 500_000;

/// Filesystems that are the kernel's own: `/proc` is always readable, the others are not for policies.
const NOT_WATCHED: [&str; 12] = [
    "proc",
    "sysfs",
    "cgroup2",
    "cgroup",
    "bpf",
    "devpts",
    "debugfs",
    "tracefs",
    "securityfs",
    "configfs",
    "mqueue",
    "pstore",
];

/// A use of a file by a process.
#[derive(Clone, Debug)]
pub struct Opened {
    /// The process.
    pub pid: u32,
    /// The file.
    pub path: PathBuf,
    /// Whether the process was in the sandbox when it was looked at.
    pub is_ours: bool,
    /// What was done.
    pub uses: Uses,
}

/// All that was seen.
#[derive(Debug, Default)]
pub struct Watched {
    /// In no order.
    pub opened: Vec<Opened>,
    /// Whether something is missing.
    pub lost: bool,
}

/// A watch that goes on.
pub struct Watch {
    end: Arc<OwnedFd>,
    thread: JoinHandle<io::Result<Watched>>,
}

impl Watch {
    /// Begins to watch for a sandbox whose cgroup's path has this in it.
    ///
    /// # Errors
    /// The kernel has no fanotify, or does not let this process.
    pub fn begin(cgroup: String) -> io::Result<Self> {
        let flags = InitFlags::FAN_CLOEXEC
            | InitFlags::FAN_NONBLOCK
            | InitFlags::FAN_CLASS_NOTIF
            | InitFlags::FAN_UNLIMITED_QUEUE
            | InitFlags::FAN_UNLIMITED_MARKS;
        let group = Fanotify::init(flags, EventFFlags::O_RDONLY | EventFFlags::O_LARGEFILE)?;
        let mask = MaskFlags::FAN_OPEN
            | MaskFlags::FAN_OPEN_EXEC
            | MaskFlags::FAN_MODIFY
            | MaskFlags::FAN_CLOSE_WRITE
            | MaskFlags::FAN_ONDIR;
        let add = MarkFlags::FAN_MARK_ADD | MarkFlags::FAN_MARK_FILESYSTEM;
        let (mut marked, mut entries) = (0, Vec::new());
        for mount in filesystems()? {
            // Not every filesystem can be watched, and some are behind permissions.
            match group.mark(add, mask, rustix::fs::CWD, Some(&mount)) {
                Ok(()) => marked += 1,
                Err(error) => tracing::debug!("{} is not watched: {error}", mount.display()),
            }
            match Entries::begin(&mount) {
                Ok(of_mount) => entries.push(of_mount),
                Err(error) => tracing::debug!("entries of {}: {error}", mount.display()),
            }
        }
        if marked == 0 {
            return Err(io::Error::other("no filesystem of this host can be watched"));
        }
        let end = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        let stop = Arc::clone(&end);
        let thread = std::thread::Builder::new()
            .name("watch".to_owned())
            .spawn(move || Watcher::new(group, entries, cgroup).until(&stop))?;
        Ok(Self { end, thread })
    }

    /// Ends it.
    ///
    /// # Errors
    /// What was seen cannot be read.
    pub fn end(self) -> io::Result<Watched> {
        rustix::io::write(&*self.end, &1_u64.to_ne_bytes())?;
        self.thread.join().map_err(|_| io::Error::other("the watch has ended before"))?
    }
}

struct Watcher {
    group: Fanotify,
    entries: Vec<Entries>,
    cgroup: String,
    own: u32,
    began: SystemTime,
    ours: HashSet<u32>,
    seen: HashMap<(u32, PathBuf), Uses>,
    lost: bool,
}

impl Watcher {
    fn new(group: Fanotify, entries: Vec<Entries>, cgroup: String) -> Self {
        Self {
            group,
            entries,
            cgroup,
            own: std::process::id(),
            began: SystemTime::now(),
            ours: HashSet::new(),
            seen: HashMap::new(),
            lost: false,
        }
    }

    fn until(mut self, stop: &OwnedFd) -> io::Result<Watched> {
        loop {
            let groups = self.entries.iter().map(Entries::as_fd);
            let all = [stop.as_fd(), self.group.as_fd()].into_iter().chain(groups);
            let mut wanted: Vec<_> = all.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
            match poll(&mut wanted, PollTimeout::NONE) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
            let is_end = wanted[0].revents().is_some_and(|found| !found.is_empty());
            // What was queued before the end is read all the same.
            self.read()?;
            self.read_entries()?;
            if is_end {
                break;
            }
        }
        let (ours, lost) = (self.ours, self.lost);
        let opened = self.seen.into_iter().map(|((pid, path), uses)| {
            let is_ours = ours.contains(&pid);
            Opened { pid, path, is_ours, uses }
        });
        Ok(Watched { opened: opened.collect(), lost })
    }

    fn read(&mut self) -> io::Result<()> {
        loop {
            match self.group.read_events() {
                Ok(events) if events.is_empty() => return Ok(()),
                Ok(events) => events.iter().for_each(|event| self.event(event)),
                Err(nix::errno::Errno::EAGAIN) => return Ok(()),
                Err(nix::errno::Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn read_entries(&mut self) -> io::Result<()> {
        let entries = std::mem::take(&mut self.entries);
        for of_mount in &entries {
            for changed in of_mount.read()? {
                self.lost |= changed.is_loss;
                let uses = Uses { is_written: true, is_made: changed.is_made, ..Uses::default() };
                if let Some(path) = changed.path.filter(|_| self.is_watched(changed.pid)) {
                    self.used(changed.pid, path, &uses);
                }
            }
        }
        self.entries = entries;
        Ok(())
    }

    /// Whether a process may be one of the sandbox's; which are, is known at the end.
    fn is_watched(&mut self, pid: u32) -> bool {
        if pid == self.own {
            return false;
        }
        if !self.ours.contains(&pid) && is_in(pid, &self.cgroup) {
            self.ours.insert(pid);
        }
        true
    }

    fn used(&mut self, pid: u32, path: PathBuf, now: &Uses) {
        if self.seen.len() >= MOST && !self.seen.contains_key(&(pid, path.clone())) {
            self.lost = true;
            return;
        }
        let uses = self.seen.entry((pid, path)).or_default();
        uses.is_written |= now.is_written;
        uses.is_made |= now.is_made;
        uses.is_directory |= now.is_directory;
    }

    fn event(&mut self, event: &FanotifyEvent) {
        let Some(file) = event.fd() else {
            self.lost |= event.mask().contains(MaskFlags::FAN_Q_OVERFLOW);
            return;
        };
        let pid = u32::try_from(event.pid()).unwrap_or(0);
        if !self.is_watched(pid) {
            return;
        }
        let Ok(path) = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())) else {
            return;
        };
        let (path, is_gone) = match path.to_str().and_then(|path| path.strip_suffix(" (deleted)")) {
            Some(path) => (PathBuf::from(path), true),
            None => (path, false),
        };
        if !path.is_absolute() {
            return;
        }
        let written = MaskFlags::FAN_MODIFY | MaskFlags::FAN_CLOSE_WRITE;
        let is_written = event.mask().intersects(written);
        let uses = Uses {
            is_written,
            is_made: is_gone || is_written && is_younger(file, self.began),
            is_directory: event.mask().contains(MaskFlags::FAN_ONDIR),
            ..Uses::default()
        };
        self.used(pid, path, &uses);
    }
}

/// Whether a process is in the cgroup now; one that has ended is not.
fn is_in(pid: u32, cgroup: &str) -> bool {
    let found = std::fs::read_to_string(format!("/proc/{pid}/cgroup"));
    found.is_ok_and(|text| text.lines().any(|line| line.contains(cgroup)))
}

/// Whether a file was made after a moment, as far as its filesystem tells.
fn is_younger(file: impl AsFd, than: SystemTime) -> bool {
    let Ok(found) = file.as_fd().try_clone_to_owned().map(File::from).and_then(|f| f.metadata())
    else {
        return false;
    };
    match found.created() {
        Ok(created) => created >= than,
        // As it was changed; the mode and the size tell no more.
        Err(_) => {
            let seconds = u64::try_from(found.ctime()).unwrap_or(0);
            let begun = than.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
            seconds >= begun
        }
    }
}

/// A mount of each filesystem of this host.
fn filesystems() -> io::Result<Vec<PathBuf>> {
    let text = std::fs::read_to_string("/proc/self/mountinfo")?;
    let mut devices = HashSet::new();
    let mut all = Vec::new();
    for line in text.lines() {
        let (mount, kind) = line.split_once(" - ").unwrap_or((line, ""));
        let kind = kind.split(' ').next().unwrap_or_default();
        let mut fields = mount.split(' ').skip(2);
        let (Some(device), Some(_), Some(point)) = (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        if NOT_WATCHED.contains(&kind) || !devices.insert(device.to_owned()) {
            continue;
        }
        let point = point.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\");
        if Path::new(&point).exists() {
            all.push(point.into());
        }
    }
    Ok(all)
}

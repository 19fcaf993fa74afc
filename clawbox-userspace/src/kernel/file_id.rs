//! Names a file the way the kernel programs see it: superblock device and inode.
//! `stat` is not enough: overlayfs and btrfs report a device of their own making there.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, OnceLock, PoisonError, Weak};

use clawbox_common::subject::FileId;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Why a file has no identity.
#[derive(Debug, thiserror::Error)]
pub enum FileIdError {
    /// It cannot be opened.
    #[error("cannot open `{}`: {source}", path.display())]
    Open {
        /// File.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// `/proc` does not say where the file lives.
    #[error("cannot learn the device and inode of `{}`: {what}; is /proc mounted?", path.display())]
    Proc {
        /// File.
        path: PathBuf,
        /// What is missing.
        what: &'static str,
    },
}

/// A file with its identity, held open: while it is held its inode number cannot be given to
/// another file.
#[derive(Debug)]
pub struct HeldFile {
    /// Its identity.
    pub id: FileId,
    /// The handle that keeps it; of this process's only one.
    pub handle: Arc<OwnedFd>,
}

/// Handles by the file. Sandboxes of one host name much the same files, and a descriptor for each of them
/// for each sandbox would be more than a process may have.
static HANDLES: LazyLock<Mutex<HashMap<FileId, Weak<OwnedFd>>>> = LazyLock::new(Mutex::default);

/// Handles beyond which those that nobody has are forgotten.
const HANDLES_SWEPT: usize = 4096;

/// The handle of a file that somebody has already, else this one.
fn shared(id: FileId, handle: OwnedFd) -> Arc<OwnedFd> {
    let mut handles = HANDLES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = handles.get(&id).and_then(Weak::upgrade) {
        return known;
    }
    if handles.len() >= HANDLES_SWEPT {
        handles.retain(|_, handle| handle.strong_count() > 0);
    }
    let handle = Arc::new(handle);
    handles.insert(id, Arc::downgrade(&handle));
    handle
}

/// The devices behind this process's mounts, read once and used for many files.
#[derive(Clone, Debug, Default)]
pub struct Mounts {
    devices: HashMap<u64, u32>,
}

impl Mounts {
    /// Reads `/proc/self/mountinfo`.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read() -> io::Result<Self> {
        Ok(Self::parse(&fs::read_to_string("/proc/self/mountinfo")?))
    }

    /// Those of the agent itself, read again only where something was mounted or unmounted since: it is all that a
    /// start would read them for.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn of_agent() -> io::Result<Self> {
        let mut known = OF_AGENT.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((file, mounts)) = known.as_ref()
            && !has_changed(file)
        {
            return Ok(mounts.clone());
        }
        // Opened before it is read: what changes in between is seen the next time.
        let mut file = File::open("/proc/self/mountinfo")?;
        let mut text = String::with_capacity(LISTED);
        file.read_to_string(&mut text)?;
        let mounts = Self::parse(&text);
        *known = Some((file, mounts.clone()));
        Ok(mounts)
    }

    /// Adds the mounts of another process, which may have a mount namespace of its own: their
    /// numbers are the kernel's, and other ones than here.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn add_those_of(&mut self, process: u32) -> io::Result<()> {
        let text = fs::read_to_string(format!("/proc/{process}/mountinfo"))?;
        self.devices.extend(Self::parse(&text).devices);
        Ok(())
    }

    /// `ID PARENT MAJOR:MINOR ROOT …`, see proc_pid_mountinfo(5).
    fn parse(text: &str) -> Self {
        let devices = text
            .lines()
            .filter_map(|line| {
                let mut fields = line.split(' ');
                let id = fields.next()?.parse().ok()?;
                let (major, minor) = fields.nth(1)?.split_once(':')?;
                let (major, minor): (u32, u32) = (major.parse().ok()?, minor.parse().ok()?);
                Some((id, device(major, minor)))
            })
            .collect();
        Self { devices }
    }

    /// Opens a file, through symlinks, and names it.
    ///
    /// # Errors
    /// It does not exist, or `/proc` does not describe it.
    pub fn hold(&self, path: &Path) -> Result<HeldFile, FileIdError> {
        let file = File::options()
            .read(true)
            .custom_flags(nix::libc::O_PATH | nix::libc::O_CLOEXEC)
            .open(path)
            .map_err(|source| FileIdError::Open { path: path.to_owned(), source })?;
        let proc = |what| FileIdError::Proc { path: path.to_owned(), what };
        let info = describe(file.as_raw_fd()).map_err(|_| proc("no fdinfo"))?;
        let inode = number(&info, "ino:").ok_or_else(|| proc("no inode in fdinfo"))?;
        let mount = number(&info, "mnt_id:").ok_or_else(|| proc("no mount in fdinfo"))?;
        let device = *self.devices.get(&mount).ok_or_else(|| proc("no such mount in mountinfo"))?;
        let id = FileId { inode, device, zero: 0 };
        Ok(HeldFile { id, handle: shared(id, file.into()) })
    }
}

/// Bytes of a list of mounts that is read in one piece.
const LISTED: usize = 16 << 10;

/// The list of mounts that was read last.
static OF_AGENT: Mutex<Option<(File, Mounts)>> = Mutex::new(None);

/// Whether mounts have changed since the list was opened, or since this was asked the last time:
/// proc_pid_mountinfo(5), `mounts_poll` in fs/proc_namespace.c. Where that cannot be told, a signal came say,
/// they may have.
fn has_changed(list: &File) -> bool {
    let mut asked = [PollFd::new(list, PollFlags::PRI)];
    !matches!(poll(&mut asked, Some(&Timespec::default())), Ok(0))
}

/// This host's `/proc`, for threads that see another one.
static PROC: OnceLock<OwnedFd> = OnceLock::new();

/// From now on files are held also where `/proc` is another one, or none.
///
/// # Errors
/// It cannot be opened.
pub fn keep_proc() -> io::Result<()> {
    if PROC.get().is_none() {
        // Another thread may have been faster.
        drop(PROC.set(fs::File::open("/proc")?.into()));
    }
    Ok(())
}

/// What `/proc` says of a descriptor.
fn describe(fd: i32) -> io::Result<String> {
    let path = format!("self/fdinfo/{fd}");
    let mut opened = match PROC.get() {
        None => fs::File::open(Path::new("/proc").join(path))?,
        Some(proc) => {
            let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
            openat(proc, path.as_str(), flags, Mode::empty())?.into()
        }
    };
    // All of it at once: a start reads some dozens.
    let mut text = [0; DESCRIPTION];
    let length = opened.read(&mut text)?;
    let text = text.get(..length).unwrap_or_default();
    Ok(String::from_utf8_lossy(text).into_owned())
}

/// Longer than what `/proc` says of the descriptor of a path; what it says first is what is looked for.
const DESCRIPTION: usize = 1024;

/// The kernel's internal `dev_t`: 12 bits of major, 20 of minor (`MINORBITS`).
#[must_use]
pub const fn device(major: u32, minor: u32) -> u32 {
    (major << 20) | (minor & 0x000f_ffff)
}

fn number(info: &str, field: &str) -> Option<u64> {
    info.lines().find_map(|line| line.strip_prefix(field))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_file_on_a_plain_filesystem_has_the_identity_that_stat_gives_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        fs::write(&path, "x").unwrap();
        let held = Mounts::read().unwrap().hold(&path).unwrap();
        assert_eq!(held.id.inode, fs::metadata(&path).unwrap().ino());
    }

    #[test]
    fn a_symlink_is_the_file_it_leads_to() {
        let directory = tempfile::tempdir().unwrap();
        let (path, link) = (directory.path().join("file"), directory.path().join("link"));
        fs::write(&path, "x").unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        let mounts = Mounts::read().unwrap();
        assert_eq!(mounts.hold(&path).unwrap().id, mounts.hold(&link).unwrap().id);
    }

    #[test]
    fn a_missing_file_is_named_in_the_error() {
        let error = Mounts::read().unwrap().hold(Path::new("/no/such/file")).unwrap_err();
        assert!(error.to_string().contains("/no/such/file"), "{error}");
    }

    #[test]
    fn a_list_of_mounts_says_by_itself_that_it_has_changed() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        // In a namespace of a thread of its own, so that nobody else mounts anything meanwhile.
        std::thread::spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
            let private = nix::mount::MsFlags::MS_PRIVATE | nix::mount::MsFlags::MS_REC;
            nix::mount::mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
            let list = File::open("/proc/thread-self/mountinfo").unwrap();
            assert!(!has_changed(&list));
            let place = tempfile::tempdir().unwrap();
            let flags = nix::mount::MsFlags::empty();
            nix::mount::mount(Some("none"), place.path(), Some("tmpfs"), flags, None::<&str>)
                .unwrap();
            assert!(has_changed(&list) && !has_changed(&list));
            nix::mount::umount(place.path()).unwrap();
            assert!(has_changed(&list));
        })
        .join()
        .unwrap();
    }

    #[test]
    fn mountinfo_lines_that_do_not_parse_are_left_out() {
        let mounts =
            Mounts::parse("29 1 254:0 / / rw - ext4 /dev/vda rw\nnonsense\n30 29 0:x / /a\n");
        assert_eq!(mounts.devices, HashMap::from([(29, device(254, 0))]));
    }
}

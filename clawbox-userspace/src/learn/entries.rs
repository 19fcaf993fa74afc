//! Sees entries of directories being made, moved, removed and given other attributes, by fanotify. The kernel
//! tells the name, and the directory by a handle, which is opened to learn its path.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::libc;
use nix::sys::fanotify::{EventFFlags, Fanotify, InitFlags, MarkFlags, MaskFlags};

/// An entry that was changed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Changed {
    /// By this process.
    pub pid: u32,
    /// Its path; none where the directory is gone.
    pub path: Option<PathBuf>,
    /// Whether it is a new one, or is not there any more, under this name.
    pub is_made: bool,
    /// Whether the kernel had no room for others.
    pub is_loss: bool,
}

/// The entries of one filesystem: a handle is opened by way of a mount of it.
pub(super) struct Entries {
    group: Fanotify,
    mount: File,
}

impl Entries {
    /// Begins to watch the filesystem of a mount.
    ///
    /// # Errors
    /// The kernel (before 5.9) or the filesystem knows no such reports.
    pub(super) fn begin(mount: &Path) -> io::Result<Self> {
        let flags = InitFlags::FAN_CLOEXEC
            | InitFlags::FAN_NONBLOCK
            | InitFlags::FAN_CLASS_NOTIF
            | InitFlags::FAN_UNLIMITED_QUEUE
            | InitFlags::FAN_UNLIMITED_MARKS
            | InitFlags::from_bits_retain(libc::FAN_REPORT_DFID_NAME);
        let group = Fanotify::init(flags, EventFFlags::O_RDONLY)?;
        let mask = MaskFlags::FAN_CREATE
            | MaskFlags::FAN_DELETE
            | MaskFlags::FAN_MOVED_FROM
            | MaskFlags::FAN_MOVED_TO
            | MaskFlags::FAN_ATTRIB
            | MaskFlags::FAN_ONDIR;
        let add = MarkFlags::FAN_MARK_ADD | MarkFlags::FAN_MARK_FILESYSTEM;
        group.mark(add, mask, rustix::fs::CWD, Some(mount))?;
        Ok(Self { group, mount: File::open(mount)? })
    }

    /// What is there to be waited for.
    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.group.as_fd()
    }

    /// What has been told and not been read.
    ///
    /// # Errors
    /// It cannot be read.
    pub(super) fn read(&self) -> io::Result<Vec<Changed>> {
        let mut all = Vec::new();
        let mut buffer = vec![0; 64 << 10];
        loop {
            match rustix::io::read(&self.group, &mut buffer[..]) {
                Ok(0) | Err(rustix::io::Errno::AGAIN) => return Ok(all),
                Ok(length) => {
                    let told = parse(buffer.get(..length).unwrap_or_default());
                    all.extend(told.into_iter().map(|told| self.changed(&told)));
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn changed(&self, told: &Told) -> Changed {
        let directory = told.handle.as_deref().and_then(|handle| self.directory(handle));
        let path = directory.map(|directory| directory.join(&told.name));
        let is_made =
            told.mask.bits() & !(MaskFlags::FAN_ATTRIB | MaskFlags::FAN_ONDIR).bits() != 0;
        let is_loss = told.mask.contains(MaskFlags::FAN_Q_OVERFLOW);
        Changed { pid: told.pid, path, is_made, is_loss }
    }

    /// The path of a directory that is still there.
    fn directory(&self, handle: &[u32]) -> Option<PathBuf> {
        // The kernel reads as many bytes as the handle's first word says beyond its two words.
        let length = usize::try_from(*handle.first()?).ok()?;
        if handle.len().checked_mul(4)? < length.checked_add(8)? {
            return None;
        }
        let flags = libc::O_PATH | libc::O_CLOEXEC;
        // SAFETY: the handle is aligned and as long as it says, which was looked at above; the call reads
        // it and gives a new descriptor or an error.
        let opened = unsafe {
            libc::syscall(
                libc::SYS_open_by_handle_at,
                self.mount.as_raw_fd(),
                handle.as_ptr(),
                flags,
            )
        };
        let number = i32::try_from(opened).ok().filter(|number| *number >= 0)?;
        // SAFETY: the kernel has just given it to us and nobody else has it.
        let opened = unsafe { OwnedFd::from_raw_fd(number) };
        let path = std::fs::read_link(format!("/proc/self/fd/{}", opened.as_raw_fd())).ok()?;
        let is_there = path.is_absolute() && !path.as_os_str().as_bytes().ends_with(b" (deleted)");
        is_there.then_some(path)
    }
}

/// What the kernel says, before the handle is opened.
#[derive(Debug)]
struct Told {
    mask: MaskFlags,
    pid: u32,
    /// A `file_handle`: its length in bytes, its kind, and that many bytes.
    handle: Option<Vec<u32>>,
    name: PathBuf,
}

/// Takes reports apart; what is shorter than it says ends it.
fn parse(mut buffer: &[u8]) -> Vec<Told> {
    let mut all = Vec::new();
    while let Some((event, rest)) = event(buffer) {
        all.extend(told(event));
        buffer = rest;
    }
    all
}

fn event(buffer: &[u8]) -> Option<(&[u8], &[u8])> {
    let length = usize::try_from(word(buffer, 0)?).ok()?;
    (length > 0).then(|| buffer.split_at_checked(length)).flatten()
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let word = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_ne_bytes(word.try_into().ok()?))
}

fn half(bytes: &[u8], at: usize) -> Option<usize> {
    let half = bytes.get(at..at.checked_add(2)?)?;
    Some(u16::from_ne_bytes(half.try_into().ok()?).into())
}

fn told(event: &[u8]) -> Option<Told> {
    let mask = u64::from_ne_bytes(event.get(8..16)?.try_into().ok()?);
    let mut told = Told {
        mask: MaskFlags::from_bits_retain(mask),
        pid: word(event, 20)?,
        handle: None,
        name: PathBuf::new(),
    };
    let mut at = half(event, 6)?;
    while let Some(length) = half(event, at.checked_add(2)?).filter(|length| *length > 0) {
        let info = event.get(at..at.checked_add(length)?)?;
        // After the header and the filesystem's number.
        if info.first() == Some(&libc::FAN_EVENT_INFO_TYPE_DFID_NAME) {
            let size = usize::try_from(word(info, 12)?).ok()?;
            let end = size.checked_add(20)?;
            let bytes = info.get(12..end)?;
            let words = bytes.chunks(4).map(|chunk| {
                let mut word = [0; 4];
                word.iter_mut().zip(chunk).for_each(|(to, from)| *to = *from);
                u32::from_ne_bytes(word)
            });
            told.handle = Some(words.collect());
            let name = info.get(end..)?.split(|byte| *byte == 0).next()?;
            // The directory itself is told as `.`.
            if name != b"." {
                told.name = OsStr::from_bytes(name).into();
            }
        }
        at = at.checked_add(length)?;
    }
    Some(told)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the kernel writes one: metadata, the number of the filesystem, a handle of eight bytes, a name.
    fn written(mask: MaskFlags, name: &[u8]) -> Vec<u8> {
        let mut info = vec![libc::FAN_EVENT_INFO_TYPE_DFID_NAME, 0, 0, 0];
        info.extend([7; 8]);
        info.extend(8_u32.to_ne_bytes());
        info.extend(1_i32.to_ne_bytes());
        info.extend([9; 8]);
        info.extend(name);
        info.resize(info.len().next_multiple_of(4) + 4, 0);
        let length = u16::try_from(info.len()).unwrap().to_ne_bytes();
        info[2..4].copy_from_slice(&length);
        let mut event = u32::try_from(24 + info.len()).unwrap().to_ne_bytes().to_vec();
        event.extend([3, 0, 24, 0]);
        event.extend(mask.bits().to_ne_bytes());
        event.extend((-1_i32).to_ne_bytes());
        event.extend(42_i32.to_ne_bytes());
        event.extend(info);
        event
    }

    #[test]
    fn reports_are_taken_apart_and_what_is_cut_short_is_left() {
        let mut buffer = written(MaskFlags::FAN_CREATE, b"made");
        buffer.extend(written(MaskFlags::FAN_DELETE | MaskFlags::FAN_ONDIR, b"."));
        let all = parse(&buffer);
        assert_eq!(all.len(), 2);
        assert_eq!((all[0].pid, all[0].name.as_path()), (42, Path::new("made")));
        assert_eq!(all[0].handle.as_deref().unwrap()[..2], [8, 1]);
        assert_eq!(all[1].name, Path::new(""));
        for length in 0..buffer.len() {
            assert!(parse(&buffer[..length]).len() <= 1, "{length}");
        }
    }

    #[test]
    fn entries_are_seen_that_nobody_opens() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let directory = tempfile::tempdir_in("/var/tmp").unwrap();
        let place = std::fs::canonicalize(directory.path()).unwrap();
        let entries = Entries::begin(&place).unwrap();
        std::fs::create_dir(place.join("made")).unwrap();
        std::fs::rename(place.join("made"), place.join("moved")).unwrap();
        std::fs::remove_dir(place.join("moved")).unwrap();
        // The kernel may tell of one entry once for all that was done with it.
        let seen: std::collections::BTreeSet<PathBuf> = entries
            .read()
            .unwrap()
            .into_iter()
            .filter(|changed| changed.pid == std::process::id() && changed.is_made)
            .filter_map(|changed| changed.path.filter(|path| path.starts_with(&place)))
            .collect();
        assert_eq!(seen, ["made", "moved"].map(|name| place.join(name)).into());
    }
}

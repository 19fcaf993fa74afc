//! Landlock rules for what the child mounts: a new file system has other inodes than the one it
//! covers. The parent prepares them; the child opens the paths and adds them to the ruleset.

use std::ffi::CString;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;
use nix::libc;

/// LANDLOCK_RULE_PATH_BENEATH, from linux/landlock.h.
const PATH_BENEATH: u32 = 1;

/// `struct landlock_path_beneath_attr`.
#[repr(C, packed)]
struct PathBeneath {
    allowed_access: u64,
    parent_fd: i32,
}

/// A rule whose path is opened in the child.
#[derive(Debug)]
pub(super) struct LateRule {
    path: CString,
    /// Rights if it is a directory.
    directory: u64,
    /// Rights if it is anything else.
    file: u64,
}

impl LateRule {
    /// `None` for a path with a zero byte, which no file has.
    pub(super) fn new(path: &Path, directory: u64, file: u64) -> Option<Self> {
        let path = CString::new(path.as_os_str().as_bytes()).ok()?;
        Some(Self { path, directory, file })
    }

    /// Its path, for the report.
    pub(super) fn path(&self) -> &Path {
        Path::new(std::ffi::OsStr::from_bytes(self.path.as_bytes()))
    }

    /// Rights if it is a directory, and if it is anything else.
    pub(super) fn rights(&self) -> (u64, u64) {
        (self.directory, self.file)
    }

    /// Opens the path and adds the rule. For the forked child: system calls only.
    pub(super) fn add(&self, ruleset: BorrowedFd<'_>) -> Result<(), Errno> {
        // SAFETY: a string that the rule owns.
        let fd = unsafe { libc::open(self.path.as_ptr(), libc::O_PATH | libc::O_CLOEXEC) };
        let fd = Errno::result(fd)?;
        let added = self.add_opened(ruleset, fd);
        // SAFETY: opened above, and nobody else knows of it.
        unsafe { libc::close(fd) };
        added
    }

    fn add_opened(&self, ruleset: BorrowedFd<'_>, fd: i32) -> Result<(), Errno> {
        // SAFETY: all zeroes is a valid stat, which the kernel then writes.
        let mut found: libc::stat = unsafe { std::mem::zeroed() };
        // SAFETY: an open descriptor and a stat of ours.
        Errno::result(unsafe { libc::fstat(fd, &raw mut found) })?;
        let is_directory = found.st_mode & libc::S_IFMT == libc::S_IFDIR;
        let allowed_access = if is_directory { self.directory } else { self.file };
        let rule = PathBeneath { allowed_access, parent_fd: fd };
        // SAFETY: the kernel reads one `landlock_path_beneath_attr`, which `rule` is.
        let answer = unsafe {
            let number = libc::SYS_landlock_add_rule;
            libc::syscall(number, ruleset.as_raw_fd(), PATH_BENEATH, &raw const rule, 0)
        };
        Errno::result(answer).map(drop)
    }
}

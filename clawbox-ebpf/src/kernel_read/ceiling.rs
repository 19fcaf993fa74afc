//! What Landlock was asked for when it refused, for the trail alone.

use clawbox_common::{event::Operation, file::EXECUTE};

use super::*;

/// `LANDLOCK_REQUEST_PTRACE`, `…_FS_ACCESS`, `…_SCOPE_ABSTRACT_UNIX_SOCKET` and `…_SCOPE_SIGNAL`,
/// security/landlock/log.h.
const TRACE: u32 = 1;
const FILE_ACCESS: u32 = 3;
const ABSTRACT_SOCKET: u32 = 5;
const SIGNAL: u32 = 6;
/// `LSM_AUDIT_DATA_PATH`, `…_TASK` and `…_IOCTL_OP`, linux/lsm_audit.h.
const OF_PATH: u8 = 1;
const OF_TASK: u8 = 5;
const OF_IOCTL: u8 = 11;
/// `LANDLOCK_ACCESS_FS_EXECUTE`, `…_WRITE_FILE`, `…_READ_FILE` and `…_READ_DIR`,
/// uapi/linux/landlock.h: what an open asks for, and nothing else does alone.
const ASKS_TO_EXECUTE: u16 = 1 << 0;
const ASKS_TO_WRITE: u16 = 1 << 1;
const ASKS_TO_READ: u16 = 1 << 2 | 1 << 3;
const OF_OPEN: u16 = ASKS_TO_EXECUTE | ASKS_TO_WRITE | ASKS_TO_READ;

/// The number, or nothing.
#[inline(always)]
const fn bits(number: u32, is_there: bool) -> u32 {
    if is_there { number } else { 0 }
}

impl Untyped {
    /// The access that a `landlock_request` for an open was about, and where the file is; `None`
    /// where the request was for something else. A typed load could not tell the members of its
    /// union apart.
    #[inline(always)]
    pub fn refused_open(self) -> Option<(u32, Reached)> {
        let kind: u32 = self.read::<REQUEST_KIND, _>();
        let of: u8 = self.read::<REQUEST_OBJECT, _>();
        // The low bits of a number whose size has grown.
        let asked: u16 = self.read::<REQUEST_ACCESS, _>();
        let access = bits(READ, asked & ASKS_TO_READ != 0)
            | bits(WRITE, asked & ASKS_TO_WRITE != 0)
            | bits(EXECUTE, asked & ASKS_TO_EXECUTE != 0);
        if kind != FILE_ACCESS || of != OF_PATH || access == 0 || asked & !OF_OPEN != 0 {
            return None;
        }
        let at = (self.read::<REQUEST_DENTRY, _>(), self.read::<REQUEST_MOUNT, _>());
        Some((access, at))
    }

    /// Where the device is that a `landlock_request` for an ioctl was about.
    #[inline(always)]
    pub fn refused_ioctl(self) -> Option<Reached> {
        if self.read::<REQUEST_KIND, u32>() != FILE_ACCESS
            || self.read::<REQUEST_OBJECT, u8>() != OF_IOCTL
        {
            return None;
        }
        let of = Self(self.read::<REQUEST_IOCTL, _>());
        Some((of.read::<IOCTL_DENTRY, _>(), of.read::<IOCTL_MOUNT, _>()))
    }

    /// The thread group that a `landlock_request` was about, and what was to be done to it.
    #[inline(always)]
    pub fn refused_process(self) -> Option<(Operation, u32)> {
        let kind: u32 = self.read::<REQUEST_KIND, _>();
        if (kind != TRACE && kind != SIGNAL) || self.read::<REQUEST_OBJECT, u8>() != OF_TASK {
            return None;
        }
        let task = Self(self.read::<REQUEST_TASK, _>());
        let operation = if kind == TRACE { Operation::Trace } else { Operation::Signal };
        Some((operation, task.read::<TASK_TGID, _>()))
    }

    /// Whether a `landlock_request` was about a Unix socket without a path.
    #[inline(always)]
    pub fn is_of_refused_socket(self) -> bool {
        self.read::<REQUEST_KIND, u32>() == ABSTRACT_SOCKET
    }
}

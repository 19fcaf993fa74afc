//! What Landlock was asked for when it refused, for the trail alone.

use clawbox_common::file::EXECUTE;

use super::*;

/// `LANDLOCK_REQUEST_FS_ACCESS`, security/landlock/log.h.
const FILE_ACCESS: u32 = 3;
/// `LSM_AUDIT_DATA_PATH`, linux/lsm_audit.h.
const OF_PATH: u8 = 1;
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
}

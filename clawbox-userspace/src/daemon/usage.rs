//! What the daemon itself takes of the host, and gives back.

use std::time::{Duration, Instant};

use crate::sandbox::memory::give_back;
use crate::sandbox::order::forget_last;

/// Bytes of this process that are in memory.
#[must_use]
pub fn resident() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").ok();
    let pages = pages.and_then(|text| text.split(' ').nth(1)?.parse::<u64>().ok());
    let page =
        nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten().unwrap_or(4096);
    pages.unwrap_or(0).saturating_mul(page.unsigned_abs())
}

/// Descriptors that this process has open; `None` without `/proc`.
#[must_use]
pub fn descriptors() -> Option<u64> {
    // Since Linux 6.2 this is their number, and does not take another one to learn it.
    let told = std::fs::metadata("/proc/self/fd").ok()?.len();
    if told > 0 {
        return Some(told);
    }
    let open = std::fs::read_dir("/proc/self/fd").ok()?.count();
    // One is that of the directory.
    u64::try_from(open).ok().map(|open| open.saturating_sub(1))
}

/// How long nobody has asked for anything until what that took is given back.
const QUIET: Duration = Duration::from_secs(3);

/// The same where there is always something to read: what is given back is then asked for again at once.
const AT_MOST: Duration = Duration::from_secs(60);

/// Whether the daemon rests.
pub(super) struct Rest {
    since: Instant,
    is_given_back: bool,
}

impl Rest {
    /// One that has just begun.
    pub(super) fn new() -> Self {
        Self { since: Instant::now(), is_given_back: false }
    }

    /// Somebody has asked for something.
    pub(super) fn disturbed(&mut self) {
        *self = Self::new();
    }

    /// Gives memory back once after each time that something was asked for. `reads` is whether events come.
    pub(super) fn look(&mut self, reads: bool) {
        let quiet = if reads { AT_MOST } else { QUIET };
        if !self.is_given_back && self.since.elapsed() >= quiet {
            forget_last();
            give_back();
            self.is_given_back = true;
        }
    }
}

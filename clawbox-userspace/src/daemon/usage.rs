//! What the daemon itself takes of the host.

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

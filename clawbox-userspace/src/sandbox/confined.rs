//! Whether a process is in a sandbox, for who listens: it has no say anywhere, whoever it runs as.

use std::path::PathBuf;

use super::cgroup;
use super::strays::Stray;
use crate::kernel::pinned::Identified;

/// The cgroup of a process, in the hierarchy of version 2.
///
/// # Errors
/// It has ended, or is in none.
pub fn cgroup_of(process: u32) -> std::io::Result<PathBuf> {
    let text = std::fs::read_to_string(format!("/proc/{process}/cgroup"))?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::"));
    path.map(PathBuf::from).ok_or_else(|| std::io::ErrorKind::NotFound.into())
}

/// By its cgroup, or by an identity of any clawbox's of this host: it may have left the cgroup. Who cannot
/// be looked at is taken for one.
#[must_use]
pub fn is_confined(process: u32) -> bool {
    let cgroups = std::fs::read_to_string(format!("/proc/{process}/cgroup"));
    let in_cgroup = cgroups.map_or(true, |text| {
        let paths = text.lines().filter_map(|line| line.strip_prefix("0::/"));
        paths.into_iter().any(|path| path.starts_with(cgroup::PARENT))
    });
    in_cgroup || Identified::all().iter().any(|identified| has_identity(identified, process))
}

/// Whether an identity is this very process's: numbers are given out again.
fn has_identity(identified: &Identified, process: u32) -> bool {
    let found = identified.subject(process);
    found.is_some_and(|subject| !matches!(Stray::find(process, subject.incarnation), Ok(None)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_cannot_be_looked_at_is_taken_for_one() {
        assert!(is_confined(u32::MAX));
    }
}

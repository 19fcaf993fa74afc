//! A sandbox's processes, from the host's hierarchy of cgroups and `/proc`: of nothing that a process could
//! make slow, such as its memory.

use std::fs;
use std::path::Path;
use std::sync::PoisonError;

use super::super::plain::plain;
use super::super::tree::Process;
use super::following::Started;
use crate::sandbox::cgroup::{Cgroup, hierarchy_root};

/// Processes that are shown.
const MOST: usize = 1_000;

/// How many each cgroup has; `None` where this process does not see it.
pub(super) fn counts(cgroups: Vec<String>) -> Vec<Option<usize>> {
    let Ok(root) = hierarchy_root() else { return Vec::new() };
    cgroups.into_iter().map(|cgroup| pids(&root, &cgroup).map(|pids| pids.len())).collect()
}

fn pids(root: &Path, cgroup: &str) -> Option<Vec<u32>> {
    Cgroup::open(root.join(cgroup.trim_start_matches('/'))).ok()?.processes().ok()
}

/// Those of one.
pub(super) fn of(cgroup: &str, started: &Started) -> Vec<Process> {
    let pids = hierarchy_root().ok().and_then(|root| pids(&root, cgroup)).unwrap_or_default();
    let all = pids.into_iter().take(MOST).filter_map(|pid| process(pid, started));
    let mut all: Vec<Process> = all.collect();
    all.sort_by_key(|process| process.pid);
    all
}

fn process(pid: u32, started: &Started) -> Option<Process> {
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let (parent, comm) = parse(&String::from_utf8_lossy(&stat))?;
    let known = started.lock().unwrap_or_else(PoisonError::into_inner).get(&pid).cloned();
    let program = || fs::read_link(format!("/proc/{pid}/exe")).ok();
    let name = known.or_else(|| program().map(|path| plain(&path.to_string_lossy())));
    Some(Process { pid, parent, name: name.unwrap_or_else(|| plain(&format!("[{comm}]"))) })
}

/// The parent and the name of `/proc/PID/stat`; a name may have brackets and spaces.
fn parse(stat: &str) -> Option<(u32, String)> {
    let (before, after) = stat.rsplit_once(')')?;
    let (_, comm) = before.split_once('(')?;
    Some((after.split_whitespace().nth(1)?.parse().ok()?, comm.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_may_be_called_anything() {
        assert_eq!(parse("7 (a) S 1) S 42 7 7 0"), Some((42, "a) S 1".to_owned())));
        assert_eq!(parse("7 (sh"), None);
        let own = process(std::process::id(), &Started::default()).unwrap();
        assert_eq!(own.parent, std::os::unix::process::parent_id());
    }
}

//! Processes as a tree.

use std::collections::{BTreeMap, BTreeSet};

/// A process of a sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its number on the host.
    pub pid: u32,
    /// Its parent's.
    pub parent: u32,
    /// Its program, or what the kernel calls it.
    pub name: String,
}

/// A line each, children below their parents. Who has no parent here is at the top.
#[must_use]
pub fn lines(all: &[Process]) -> Vec<String> {
    let known: BTreeSet<u32> = all.iter().map(|process| process.pid).collect();
    let mut children: BTreeMap<u32, Vec<&Process>> = BTreeMap::new();
    let mut tops = Vec::new();
    for process in all {
        match known.contains(&process.parent) && process.parent != process.pid {
            true => children.entry(process.parent).or_default().push(process),
            false => tops.push(process),
        }
    }
    let mut told = Vec::new();
    // What stands before a process, and whether it is the last of its parent's; the next one is at the end.
    let mut left: Vec<(&Process, String, Option<bool>)> = Vec::new();
    left.extend(tops.into_iter().rev().map(|process| (process, String::new(), None)));
    while let Some((process, before, last)) = left.pop() {
        let (branch, next) = match last {
            None => ("", ""),
            Some(true) => ("└─ ", "   "),
            Some(false) => ("├─ ", "│  "),
        };
        told.push(format!("{before}{branch}{} {}", process.pid, process.name));
        // Taken out: whatever the parents say, nobody is told twice.
        let mut below = children.remove(&process.pid).unwrap_or_default();
        below.sort_by_key(|child| child.pid);
        let end = below.len();
        let below = below.into_iter().enumerate().rev();
        left.extend(
            below.map(|(at, child)| (child, format!("{before}{next}"), Some(at + 1 == end))),
        );
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn children_stand_below_their_parents_and_a_circle_is_not_gone_round() {
        let process = |pid, parent| Process { pid, parent, name: format!("p{pid}") };
        let all = [process(9, 1), process(10, 9), process(12, 10), process(11, 9), process(20, 3)];
        assert_eq!(lines(&all), ["9 p9", "├─ 10 p10", "│  └─ 12 p12", "└─ 11 p11", "20 p20"]);
        assert!(lines(&[process(5, 6), process(6, 5)]).is_empty());
        assert_eq!(lines(&[process(5, 5)]), ["5 p5"]);
    }
}

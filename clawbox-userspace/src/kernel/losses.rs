//! What the kernel could not report: events without room in the ring, and hooks that it did not
//! run.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;

use aya::Ebpf;
use aya::maps::{MapData, MapError, PerCpuArray};
use clawbox_common::event::Kind;
use clawbox_common::rule::{LOST_ALLOW, LOST_TOLD, LossKey};
use clawbox_common::verdict::Verdict;

use super::batch;
use super::load::LoadError;
use super::parts::Late;

/// Counts of events that found no room in the ring, and of hooks that were not run.
pub struct Losses {
    counters: OwnedFd,
    unattributed: PerCpuArray<MapData, u64>,
    /// Hooks whose runs can be left out, with the kind in their gap records.
    skips: Vec<(&'static str, Skips)>,
    /// What was told of them that is still to be written down as told.
    telling: Vec<(LossKey, u64)>,
    seen_unattributed: u64,
    /// How many there were of all; none before the first look.
    seen_all: Option<u64>,
    seen_unasked: u64,
}

/// Where the kernel counts all of them.
const ALL: u32 = 1;

/// Where it counts cgroups that it had no room to ask about.
const UNASKED: u32 = 2;

/// Counters that are told together, at most.
const TOGETHER: usize = 512;

/// Something lost since the last look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loss {
    /// What, as the gap record names it.
    pub kind: &'static str,
    /// Whose; zero where that is not known.
    pub sandbox: u32,
    /// How many.
    pub count: u64,
    /// Whether they were allowed or denied, where that is known and decided.
    pub verdict: Option<Verdict>,
    /// Where the kernel counts them, if it counts them by sandbox.
    pub key: Option<LossKey>,
}

impl Loss {
    /// Whether each of them had a number among the records of a ring.
    #[must_use]
    pub fn has_numbers(&self) -> bool {
        self.key.is_some() || self.kind == UNATTRIBUTED
    }
}

/// Events of which it is not known whose they were.
const UNATTRIBUTED: &str = "unattributed";

/// What events that a counter is of are called, and whether they were allowed or denied.
#[must_use]
pub fn named(key: LossKey) -> (&'static str, Option<Verdict>) {
    let kind = u8::try_from(key.kind & !LOST_ALLOW).ok();
    let kind = kind.and_then(|kind| Kind::try_from(kind).ok());
    let verdict = match kind {
        _ if key.kind & LOST_ALLOW != 0 => Some(Verdict::Allow),
        Some(Kind::Exec) | None => None,
        Some(_) => Some(Verdict::Deny),
    };
    (kind.map_or(UNATTRIBUTED, Kind::name), verdict)
}

/// Why losses cannot be counted.
#[derive(Debug, thiserror::Error)]
pub enum LossError {
    /// A map.
    #[error(transparent)]
    Map(#[from] MapError),
    /// The kernel's account of a program.
    #[error("cannot read a program's fdinfo: {0}")]
    Program(#[from] io::Error),
}

impl Losses {
    pub(super) fn new(
        counters: OwnedFd,
        unattributed: PerCpuArray<MapData, u64>,
        skips: Vec<(&'static str, Skips)>,
    ) -> Self {
        Self {
            counters,
            unattributed,
            skips,
            telling: Vec::new(),
            seen_unattributed: 0,
            seen_all: None,
            seen_unasked: 0,
        }
    }

    /// What was lost since the last call.
    ///
    /// # Errors
    /// A counter cannot be read.
    pub fn since_last(&mut self) -> Result<Vec<Loss>, LossError> {
        let mut losses = Vec::new();
        let all: u64 = self.unattributed.get(&ALL, 0)?.iter().sum();
        // There are some twenty counters for each sandbox.
        let counters = match self.seen_all.replace(all) {
            Some(seen) if seen == all => Vec::new(),
            _ => batch::all(&self.counters).map_err(io::Error::from)?,
        };
        let counters: BTreeMap<LossKey, u64> = counters.into_iter().collect();
        for (key, total) in &counters {
            let (key, total) = (*key, *total);
            let told = LossKey { kind: key.kind | LOST_TOLD, ..key };
            let seen = counters.get(&told).copied().unwrap_or(0);
            if key.kind & LOST_TOLD == 0 && total > seen {
                if self.telling.len() >= TOGETHER {
                    // The others the next time.
                    self.seen_all = None;
                    break;
                }
                self.telling.push((told, total));
                let (kind, verdict) = named(key);
                let (sandbox, count) = (key.sandbox, total - seen);
                losses.push(Loss { kind, sandbox, count, verdict, key: Some(key) });
            }
        }
        let total: u64 = self.unattributed.get(&0, 0)?.iter().sum();
        if total > self.seen_unattributed {
            let count = total - self.seen_unattributed;
            losses.push(Loss { kind: UNATTRIBUTED, sandbox: 0, count, verdict: None, key: None });
            self.seen_unattributed = total;
        }
        let total: u64 = self.unattributed.get(&UNASKED, 0)?.iter().sum();
        let count = total.saturating_sub(std::mem::replace(&mut self.seen_unasked, total));
        if count > 0 {
            losses.push(Loss {
                kind: "cgroup-unasked",
                sandbox: 0,
                count,
                verdict: None,
                key: None,
            });
        }
        // A skipped exec is unrecorded, and like a skipped fork it leaves a process that is denied.
        for (kind, skips) in &mut self.skips {
            let count = skips.since_last()?;
            if count > 0 {
                let kind = *kind;
                losses.push(Loss { kind, sandbox: 0, count, verdict: None, key: None });
            }
        }
        Ok(losses)
    }

    /// Of what [`Losses::since_last`] gave, how many of each are told then.
    #[must_use]
    pub fn telling(&self) -> &[(LossKey, u64)] {
        &self.telling
    }

    /// Says that so many of each are told, as an agent that was killed had begun to.
    ///
    /// # Errors
    /// The kernel's table cannot be written.
    pub fn told_before(&mut self, told: Vec<(LossKey, u64)>) -> Result<(), LossError> {
        self.telling = told;
        self.told()
    }

    /// What [`Losses::since_last`] gave is written down. Who is killed in between tells it once more.
    ///
    /// # Errors
    /// The kernel's table cannot be written.
    pub fn told(&mut self) -> Result<(), LossError> {
        let (keys, totals): (Vec<LossKey>, Vec<u64>) = self.telling.drain(..).unzip();
        if keys.is_empty() {
            return Ok(());
        }
        let late = batch::write(&self.counters, keys, totals).map_err(io::Error::from)?;
        // They are not to come after the next totals.
        late.into_iter().for_each(Late::wait);
        Ok(())
    }
}

/// The kind of loss of a start that the kernel did not tell.
pub const EXEC_HOOK: &str = "exec-hook";

/// Runs of a tracepoint program that the kernel left out: it does not run a program on a CPU on
/// which it was preempted in the middle of that same program (`bpf_trace_run`, 7.x), and counts
/// that as a recursion. All of the host's, in a sandbox or not.
#[derive(Debug)]
pub struct Skips {
    program: OwnedFd,
    /// What `/proc` says of that, once it was asked.
    said: Option<File>,
    seen: u64,
}

impl Skips {
    pub(super) fn of(ebpf: &Ebpf, name: &'static str) -> Result<Self, LoadError> {
        let program = ebpf.program(name).ok_or(LoadError::Absent { kind: "program", name })?;
        let fd = program.fd().and_then(|fd| Ok(fd.as_fd().try_clone_to_owned()?));
        let program =
            fd.map_err(|source| LoadError::Program { program: name, source: source.into() })?;
        Ok(Self { program, said: None, seen: 0 })
    }

    /// How many since the last call.
    ///
    /// # Errors
    /// `/proc` is not there.
    pub fn since_last(&mut self) -> io::Result<u64> {
        let said = match &mut self.said {
            Some(said) => said,
            none => {
                let path = format!("/proc/self/fdinfo/{}", self.program.as_raw_fd());
                none.insert(File::open(path)?)
            }
        };
        // Some 300 bytes, which the kernel makes anew for who reads from the beginning.
        let mut bytes = [0; 1024];
        let read = said.read_at(&mut bytes, 0)?;
        let text = String::from_utf8_lossy(bytes.get(..read).unwrap_or_default());
        let total = skipped(&text);
        let before = std::mem::replace(&mut self.seen, total);
        Ok(total.saturating_sub(before))
    }
}

/// A kernel without the count (before 5.12) has nothing to count either.
fn skipped(fdinfo: &str) -> u64 {
    let count = fdinfo.lines().find_map(|line| line.strip_prefix("recursion_misses:"));
    count.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn skipped_runs_are_read_from_what_the_kernel_says_of_a_program() {
        let fdinfo =
            "pos:\t0\nprog_type:\t26\nrun_cnt:\t0\nrecursion_misses:\t41\nverified_insns:\t9\n";
        assert_eq!(skipped(fdinfo), 41);
        assert_eq!(skipped("pos:\t0\n"), 0);
    }
}

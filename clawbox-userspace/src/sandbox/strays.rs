//! Processes that have left their sandbox's cgroup, as root may under a policy that opens the
//! hierarchy: their identity alone holds them, so they end before enforcement does.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use clawbox_common::subject::{Incarnation, Subject};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::kernel::load::LoadError;
use crate::kernel::losses::Skips;
use crate::kernel::pinned::Identified;

/// How long killed processes may take to be gone.
const PATIENCE: Duration = Duration::from_secs(10);

/// Nanoseconds in one unit of `/proc/PID/stat`: Linux fixes `USER_HZ` at 100 for userspace.
const STAT_UNIT: u64 = 10_000_000;

/// Why processes could not be ended.
#[derive(Debug, thiserror::Error)]
pub enum StraysError {
    /// See the source.
    #[error(transparent)]
    Identities(#[from] LoadError),
    /// A system call that hardly ever fails.
    #[error("cannot {what} process {process} of the sandbox: {source}")]
    Process {
        /// What it was for.
        what: &'static str,
        /// Which.
        process: u32,
        /// Cause.
        source: io::Error,
    },
    /// The kernel's account of a program cannot be read.
    #[error("cannot read how many ends of processes the kernel did not tell: {0}")]
    Uncounted(#[source] io::Error),
    /// Killed processes are still there.
    #[error(
        "processes {0:?} of the sandbox are outside its cgroup and still there {time} s after \
         SIGKILL; look at what holds them up", time = PATIENCE.as_secs()
    )]
    StillThere(Vec<u32>),
}

/// A process that an identity stands for; its number cannot come to mean another one.
pub(super) struct Stray {
    process: u32,
    fd: OwnedFd,
}

/// Ends every process that has an identity in a run, and those that they make meanwhile.
///
/// # Errors
/// One does not go: enforcement must stay.
pub fn end_run(run: &str) -> Result<(), StraysError> {
    match Identified::of_run(run)? {
        Some(identified) => end(&identified, |_| true),
        None => Ok(()),
    }
}

/// Ends every process that has an identity in a sandbox, and those that they make meanwhile.
///
/// # Errors
/// One does not go: enforcement must stay.
pub fn end_sandbox(identified: &Identified, sandbox: u32) -> Result<(), StraysError> {
    end(identified, |subject| subject.sandbox == sandbox)
}

fn end(identified: &Identified, is_meant: impl Fn(&Subject) -> bool) -> Result<(), StraysError> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut strays = Vec::new();
        for (process, subject) in identified.subjects()? {
            if is_meant(&subject) {
                strays.extend(Stray::find(process, subject.incarnation)?);
            }
        }
        if strays.is_empty() {
            return Ok(());
        }
        for stray in &strays {
            stray.kill()?;
        }
        let mut left = Vec::new();
        for stray in &strays {
            if !stray.ends(deadline.saturating_duration_since(Instant::now()))? {
                left.push(stray.process);
            }
        }
        if !left.is_empty() {
            return Err(StraysError::StillThere(left));
        }
    }
}

/// Identities of processes whose end the kernel did not tell. They deny nobody anything, but the
/// table has room for only so many.
#[derive(Debug)]
pub struct Remnants {
    identified: Identified,
    skipped: Skips,
}

impl Remnants {
    /// Of a run whose programs are attached.
    ///
    /// # Errors
    /// It has no table of identities.
    pub fn of(run: &str, skipped: Skips) -> Result<Self, LoadError> {
        let absent = LoadError::Absent { kind: "map", name: "SUBJECTS" };
        Ok(Self { identified: Identified::of_run(run)?.ok_or(absent)?, skipped })
    }

    /// Removes what has come since the last call.
    ///
    /// # Errors
    /// A process or the table cannot be looked at.
    pub fn clear(&mut self) -> Result<(), StraysError> {
        if self.skipped.since_last().map_err(StraysError::Uncounted)? == 0 {
            return Ok(());
        }
        for (process, incarnation) in self.identified.processes()? {
            // Should the number be given out again just now, then the new process is denied.
            if Stray::find(process, incarnation)?.is_none() {
                self.identified.forget(process)?;
            }
        }
        Ok(())
    }
}

impl Stray {
    /// The process, by descriptor.
    pub(super) fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    /// `None` where the process that the identity was written for has ended.
    pub(super) fn find(
        process: u32,
        incarnation: Incarnation,
    ) -> Result<Option<Self>, StraysError> {
        let failed = |source: Errno| failed("find", process, source);
        let Some(pid) = Pid::from_raw(process.cast_signed()) else { return Ok(None) };
        let fd = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(fd) => fd,
            Err(Errno::SRCH) => return Ok(None),
            Err(errno) => return Err(failed(errno)),
        };
        let stray = Self { process, fd };
        // The descriptor is the process's from before the look: it is the one that is looked at.
        match started(process) {
            _ if stray.ends(Duration::ZERO)? => Ok(None),
            Some(when) => Ok((when == incarnation.born / STAT_UNIT).then_some(stray)),
            None if stray.ends(Duration::ZERO)? => Ok(None),
            // Not to be taken for gone.
            None => Err(failed(Errno::ACCESS)),
        }
    }

    fn kill(&self) -> Result<(), StraysError> {
        match pidfd_send_signal(&self.fd, Signal::KILL) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(errno) => Err(failed("kill", self.process, errno)),
        }
    }

    /// Whether it has ended, at the latest when the time is up.
    fn ends(&self, within: Duration) -> Result<bool, StraysError> {
        let within = Timespec::try_from(within).ok();
        let mut ended = [PollFd::new(&self.fd, PollFlags::IN)];
        match poll(&mut ended, within.as_ref()) {
            Ok(count) => Ok(count > 0),
            Err(errno) => Err(failed("wait for", self.process, errno)),
        }
    }
}

fn failed(what: &'static str, process: u32, errno: Errno) -> StraysError {
    StraysError::Process { what, process, source: errno.into() }
}

/// When a process started after boot, in units of `/proc/PID/stat` (proc(5), field 22).
pub(super) fn started(process: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name, field 2, may have spaces and parentheses of its own.
    let (_, fields) = stat.rsplit_once(") ")?;
    fields.split(' ').nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeper() -> std::process::Child {
        std::process::Command::new("/bin/sleep").arg("1000").spawn().unwrap()
    }

    #[test]
    fn a_process_is_found_by_number_and_start_and_known_to_have_ended() {
        let mut child = sleeper();
        let process = child.id();
        let born = started(process).unwrap() * STAT_UNIT + 1;
        let incarnation = Incarnation { born, execs: 0 };
        let found = Stray::find(process, incarnation).unwrap().unwrap();
        let earlier = Incarnation { born: born - STAT_UNIT, execs: 0 };
        assert!(Stray::find(process, earlier).unwrap().is_none(), "another of the same number");
        found.kill().unwrap();
        assert!(found.ends(PATIENCE).unwrap());
        assert!(Stray::find(process, incarnation).unwrap().is_none(), "ended, not waited for");
        child.wait().unwrap();
        assert!(Stray::find(process, incarnation).unwrap().is_none());
    }
}

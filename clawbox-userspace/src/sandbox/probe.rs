//! Whether what is attached denies, tried again and again: in a cgroup that is a sandbox's and has no other
//! process, a child is born that tries what must be denied, and ends. Of the launcher, where there is one: it has
//! little memory whose tables a fork would copy.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use clawbox_common::limits::SANDBOXES;
use nix::libc;
use nix::sys::wait::{WaitStatus, waitpid};

use super::birth::spawn_in;
use super::cgroup::Cgroup;
use super::host::Host;
use super::oom;
use super::self_test::SelfTest;
use crate::kernel::attached::Fault;
use crate::kernel::load::LoadError;

/// The probe's number, which no sandbox has.
pub const PROBE: u32 = SANDBOXES;

/// How the child ends where all was denied, and where something was not.
const DENIED: i32 = 10;
const LET_THROUGH: i32 = 11;

/// Tries what must be denied, in a sandbox's cgroup. `files`: whether files are decided too.
///
/// # Errors
/// It could not be tried.
pub(super) fn denies(cgroup: BorrowedFd<'_>, files: bool) -> io::Result<bool> {
    let test = SelfTest::prepare(files)?;
    // Never executed: the child ends before.
    let mut command = Command::new("/");
    let end = move || {
        let status = if test.run().is_ok() { DENIED } else { LET_THROUGH };
        // SAFETY: ends the forked child, without running what its parent has yet to run.
        unsafe { libc::_exit(status) }
    };
    // SAFETY: what is run after the fork makes system calls and does not allocate.
    unsafe { command.pre_exec(end) };
    let child = spawn_in(cgroup, false, &mut command)?;
    let child = child.ok_or(io::ErrorKind::Unsupported)?;
    match waitpid(child.pid(), None)? {
        WaitStatus::Exited(_, DENIED) => Ok(true),
        WaitStatus::Exited(_, LET_THROUGH) => Ok(false),
        other => Err(io::Error::other(format!("the probe ended otherwise: {other:?}"))),
    }
}

impl Host {
    /// Makes this cgroup the probe's.
    ///
    /// # Errors
    /// A table is full or gone.
    pub fn admit_probe(&mut self, cgroup: &Cgroup) -> Result<(), LoadError> {
        let enforcer = &mut self.kernel.enforcer;
        for (id, number) in enforcer.cgroups()? {
            // Of a daemon before whose cgroup is no more.
            if number == PROBE && id != cgroup.id() {
                enforcer.dismiss(id, PROBE)?;
            }
        }
        enforcer.admit_cgroup(cgroup.id(), PROBE)
    }

    /// Whether what must be denied is, in a cgroup that is the probe's.
    ///
    /// # Errors
    /// It could not be tried.
    pub fn denies(&mut self, probe: &Cgroup) -> io::Result<bool> {
        let files = self.lsm().is_active();
        let directory = probe.directory().map_err(io::Error::other)?;
        if let Some(launcher) = &mut self.launcher {
            match launcher.probe(directory.as_fd(), files) {
                Ok(found) => return found,
                Err(error) => {
                    tracing::warn!(
                        "sandboxes are started by the daemon itself from now on: {error}"
                    );
                    self.launcher = None;
                    oom::share();
                }
            }
        }
        denies(directory.as_fd(), files)
    }

    /// What is not as it has to be: programs, pins, and whose the sandboxes' cgroups are. It is put right as
    /// far as it can be.
    pub fn check(&mut self, probe: &Cgroup) -> Vec<Fault> {
        let mut faults = self.kernel.enforcer.check_attached();
        let own = self.sandboxes().map(|found| (found.cgroup().id(), found.number()));
        let all: Vec<(u64, u32)> = own.chain([(probe.id(), PROBE)]).collect();
        // Where they cannot be read none is known to be there, and each is put there again.
        let known = self.kernel.enforcer.cgroups().unwrap_or_default();
        let known: HashSet<(u64, u32)> = known.into_iter().collect();
        for (cgroup, number) in all.into_iter().filter(|one| !known.contains(one)) {
            let repaired = self.kernel.enforcer.admit_cgroup(cgroup, number);
            let part = match self.sandbox(number) {
                Some(sandbox) => format!("sandbox {number} `{}`", sandbox.name()),
                None => "probe".to_owned(),
            };
            faults.push(Fault::of(&part, "not-admitted", repaired.map_err(io::Error::other)));
        }
        faults
    }

    /// Attaches the programs at cgroups again.
    ///
    /// # Errors
    /// The kernel refuses one.
    pub fn attach_again(&mut self) -> io::Result<()> {
        self.kernel.enforcer.attach_sockets_again()
    }
}

//! Whether what is attached denies, tried again and again: in a cgroup that is a sandbox's and has no other
//! process, a child is born that tries what must be denied, and ends.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

use clawbox_common::limits::SANDBOXES;
use nix::libc;
use nix::sys::wait::{WaitStatus, waitpid};

use super::birth::spawn_in;
use super::cgroup::Cgroup;
use super::host::Host;
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
pub fn denies(cgroup: &Cgroup, files: bool) -> io::Result<bool> {
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
    let directory = cgroup.directory().map_err(io::Error::other)?;
    let child = spawn_in(directory.as_fd(), false, &mut command)?;
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

    /// What is not as it has to be: programs, pins, and whose the sandboxes' cgroups are. It is put right as
    /// far as it can be.
    pub fn check(&mut self, probe: &Cgroup) -> Vec<Fault> {
        let mut faults = self.kernel.enforcer.check_attached();
        let own = self.sandboxes().map(|found| (found.cgroup().id(), found.number()));
        let all: Vec<(u64, u32)> = own.chain([(probe.id(), PROBE)]).collect();
        for (cgroup, number) in all {
            if self.kernel.enforcer.is_admitted(cgroup, number) {
                continue;
            }
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

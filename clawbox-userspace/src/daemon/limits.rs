//! How much of the host a sandbox of the daemon's may use: what its user asks for, within what the
//! configuration gives to ordinary users.

use tonic::Status;

use super::Daemon;
use super::config;
use super::request::{Refusal, refuse};
use crate::api::peer::Peer;
use crate::api::proto;
use crate::sandbox::limits::{Cpus, Limits, Memory, Usage, Wanted};

impl config::Limits {
    /// What an ordinary user's sandbox gets, and cannot have more of.
    ///
    /// # Errors
    /// A number that cannot be.
    pub fn of_sandbox(&self) -> Result<Limits, String> {
        let cpus = self.cpus.map(Cpus::try_from).transpose();
        let cpus = cpus.map_err(|error| format!("`limits.cpus`: {error}"))?;
        if self.pids.is_some_and(|pids| pids < 2) {
            return Err("`limits.pids`: at least 2".to_owned());
        }
        Ok(Limits { memory: self.memory, cpus, pids: self.pids })
    }
}

impl Daemon {
    /// The bounds of a sandbox that is to be started.
    ///
    /// # Errors
    /// More is asked for than the caller may have.
    pub(super) fn limits(
        &self,
        peer: &Peer,
        request: &proto::RunRequest,
    ) -> Result<Wanted, Refusal> {
        let wrong = |why: String| refuse(Status::invalid_argument(why));
        let or_none = |number: u32| (number != 0).then_some(number);
        let memory = (request.memory != 0).then(|| Memory::of(request.memory)).transpose();
        let cpus = or_none(request.cpu_thousandths).map(Cpus::of).transpose();
        let asked = Limits {
            memory: memory.map_err(|error| wrong(format!("memory: {error}")))?,
            cpus: cpus.map_err(|error| wrong(format!("cpus: {error}")))?,
            pids: or_none(request.pids),
        };
        if peer.manages() {
            return Ok(Wanted { asked, default: Limits::default() });
        }
        // Checked when it was read.
        let most = self.config.limits.of_sandbox().map_err(wrong)?;
        Wanted::within(asked, most)
            .map_err(|error| refuse(Status::resource_exhausted(error.to_string())))
    }

    /// Says what a sandbox uses.
    pub(super) fn add_usage(&self, sandbox: &mut proto::Sandbox) {
        let Usage { memory, memory_max, pids, pids_max, cpu_us, cpus_max } =
            Usage::of(&self.root.join(&sandbox.cgroup));
        sandbox.usage = Some(proto::Usage { memory, memory_max, pids, pids_max, cpu_us, cpus_max });
    }
}

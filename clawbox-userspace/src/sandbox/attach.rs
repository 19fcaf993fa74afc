//! Sandboxes whose cgroup is somebody else's: a systemd unit's, a container's. Nothing is started in
//! them, so no backstops hold their processes; what holds them are identities and the kernel programs.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clawbox_common::attach::{LEVELS, PENDING, Walk};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::cgroup::Cgroup;
use super::change::{KernelSide, accounts};
use super::child::Invocation;
use super::control::Text;
use super::launch::{self, Identity};
use super::limits;
use super::order::{InForce, OrderError, backstops, load_in_force, report_shortfalls, valid_name};
use super::run::{LsmUse, Run, RunError, system};
use super::view::View;
use crate::audit::AuditLevel;
use crate::kernel::enforcer::cgroups::Whom;
use crate::kernel::pinned::Identified;
use crate::policy::model::Mode;

/// What a cgroup is to be under.
#[derive(Clone, Debug)]
pub struct AttachOrder {
    /// The policy first, then presets.
    pub texts: Vec<Text>,
    /// The host's policy, which is in force in its place.
    pub global: Option<Vec<Text>>,
    /// What the sandbox is to be called.
    pub name: String,
    /// What of the allowed goes into the trail.
    pub audit_level: AuditLevel,
    /// In place of the policy's own.
    pub mode: Option<Mode>,
    /// What is to be made of BPF LSM.
    pub lsm: LsmUse,
    /// Whether it is attached also where BPF LSM is missing and nothing holds files.
    pub network_only: bool,
    /// Name servers; the host's own if empty.
    pub dns: Vec<SocketAddr>,
    /// How long a connection waits for an answer.
    pub patience: Duration,
    /// Where it is, below the root of the hierarchy.
    pub cgroup: PathBuf,
    /// Where its trail goes.
    pub audit: PathBuf,
}

impl AttachOrder {
    /// Reads the policy, and looks at this host. `generation` is the number of the policy.
    ///
    /// # Errors
    /// The policy does not load, or wants what nobody holds here.
    pub fn prepare(self, generation: u32) -> Result<Run, OrderError> {
        let name = valid_name(&self.name)?.to_owned();
        let InForce { loaded, file, image } =
            load_in_force(&self.texts, self.global.as_deref(), self.mode, generation)?;
        let hard = report_shortfalls(&loaded, Some(&file), true, self.lsm, false)?;
        // Never applied; what it says is which trees the policy opens.
        let backstops = launch::Request {
            workdir: Path::new("/").to_owned(),
            ..backstops(&loaded.policy, &image, &[], true)
        };
        Ok(Run {
            name,
            policy: file,
            accounts: accounts(&loaded.policy),
            image,
            also_writable: Vec::new(),
            lsm: self.lsm,
            refusals: false,
            learning: false,
            needs_lsm: hard || !self.network_only,
            backstops,
            mode: self.mode,
            invocation: Invocation {
                command: vec![OsString::from("attach"), self.cgroup.into_os_string()],
                workdir: Path::new("/").to_owned(),
                user: None::<Identity>,
                readable: Vec::new(),
                inherit: None,
            },
            audit: self.audit,
            audit_level: self.audit_level,
            dns: self.dns,
            texts: self.texts,
            global: self.global,
            patience: self.patience,
            most_rules: None,
            limits: limits::Wanted::default(),
            names: None,
            is_attached: true,
        })
    }
}

/// What the processes of a cgroup see, by one of these or of all; what the agent sees itself if there is
/// none.
///
/// # Errors
/// The cgroup is gone.
pub fn view(cgroup: &Cgroup, first: &[u32]) -> Result<View, RunError> {
    for process in first.iter().copied().chain(cgroup.processes()?) {
        // It may have ended since.
        if let Ok(view) = View::of(process) {
            return Ok(view);
        }
    }
    Ok(View::default())
}

/// Has who is in a cgroup that is a sandbox's by now be somebody in it, and judges what they have open.
/// They are frozen meanwhile.
pub(super) fn identify(
    kernel: &mut KernelSide,
    sandbox: u32,
    whom: Whom,
) -> Result<Walk, RunError> {
    // What they have open was not judged when it was opened.
    kernel.enforcer.judge_open_files()?;
    let walk = kernel.enforcer.walk(sandbox, whom)?;
    if walk.left_out > 0 {
        tracing::error!(
            sandbox,
            "{} processes are denied everything: the table of identities is full",
            walk.left_out
        );
    }
    Ok(walk)
}

/// The processes in a cgroup that the kernel has stopped when they were started, or is about to.
///
/// # Errors
/// The cgroup is gone.
pub(super) fn held(identified: &Identified, cgroup: &Cgroup) -> Result<Vec<u32>, RunError> {
    let is_held = |process: &u32| {
        identified.subject(*process).is_some_and(|subject| subject.sandbox == PENDING)
    };
    Ok(cgroup.processes()?.into_iter().filter(is_held).collect())
}

/// Has processes go on that were held. Also one that has not stopped yet: the kernel takes back what was
/// to stop it.
pub(super) fn resume(held: &[u32]) {
    for process in held.iter().filter_map(|process| i32::try_from(*process).ok()) {
        if let Err(error) = kill(Pid::from_raw(process), Signal::SIGCONT) {
            tracing::debug!(process, "does not go on: {error}");
        }
    }
}

/// Sends a signal to all that are in a cgroup.
pub(super) fn signal(cgroup: &Cgroup, signal: Signal) -> std::io::Result<()> {
    let processes = cgroup.processes().map_err(std::io::Error::other)?;
    for process in processes.into_iter().filter_map(|process| i32::try_from(process).ok()) {
        // It may have ended since.
        let _ = kill(Pid::from_raw(process), signal);
    }
    Ok(())
}

/// Whether a cgroup can be a sandbox's without the agent holding itself.
///
/// # Errors
/// It cannot, and why.
pub fn may_be_attached(root: &Path, cgroup: &Cgroup) -> Result<(), RunError> {
    let path = cgroup.path();
    let refused = |why: &str| Err(RunError::Unknown(format!("`{}`: {why}", path.display())));
    let own = super::confined::cgroup_of(std::process::id()).map_err(system("find its cgroup"))?;
    if path == root || !path.starts_with(root) {
        return refused("name a cgroup below the root of the hierarchy");
    }
    if root.join(own.strip_prefix("/").unwrap_or(&own)).starts_with(path) {
        return refused("clawbox itself is in it");
    }
    if path.strip_prefix(root).is_ok_and(|below| below.iter().count() > LEVELS) {
        return refused("it is deeper in the hierarchy than the kernel programs look");
    }
    // It is systemd, without which nothing on the host starts or ends.
    if cgroup.processes()?.contains(&1) {
        return refused("process 1 is in it");
    }
    if path.starts_with(root.join(super::cgroup::PARENT)) {
        return refused("it is a sandbox's, or of what holds them");
    }
    Ok(())
}

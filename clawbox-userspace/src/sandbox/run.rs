//! `clawbox run` without an agent: the kernel side is loaded for one sandbox, held while its
//! command runs, and removed with it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::cgroup::{self, Cgroup, CgroupError};
use super::child::{self, Invocation, SpawnError, status};
use super::control::{self, Text};
use super::host::Host;
use super::launch::{self, LaunchError};
use super::limits::{self, LimitsError};
use super::oom;
use super::ready::Ready;
use super::run_lock::{self, RunLock, RunLockError};
use super::strays::StraysError;
use super::watch::{self, Foreground, HeldSignals};
use crate::audit::AuditLevel;
use crate::audit::trail::TrailError;
use crate::compile::MapImage;
use crate::dns::UpstreamError;
use crate::kernel::enforcer::EnforcerError;
use crate::kernel::load::{Keep, LoadError, Place, Sizes, Wanted};
use crate::policy::model::Mode;

/// The only sandbox of an embedded run.
const SANDBOX: u32 = 1;

/// What is to be made of BPF LSM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LsmUse {
    /// Use it where the kernel has it
    #[default]
    Auto,
    /// Start nothing without it
    Require,
    /// Do without it: files are Landlock's alone
    Off,
}

/// What to run and under what.
#[derive(Clone, Debug)]
pub struct Run {
    /// Name of the sandbox, for the audit trail and the cgroup.
    pub name: String,
    /// The policy file, for the audit trail.
    pub policy: String,
    /// The compiled policy.
    pub image: MapImage,
    /// Trees that the policy opens without spelling them: the start directory.
    pub also_writable: Vec<PathBuf>,
    /// Whether BPF LSM programs are to decide.
    pub lsm: LsmUse,
    /// Whether what Landlock and seccomp refuse is told where there are no such programs.
    pub refusals: bool,
    /// Whether which Unix sockets are connected to is told: a command is learned from.
    pub learning: bool,
    /// The policy opens paths to single binaries. The backstops are then as wide as all of them
    /// together, which only BPF LSM programs narrow again.
    pub needs_lsm: bool,
    /// What the backstops have to hold.
    pub backstops: launch::Request,
    /// How much of the host it may use.
    pub limits: limits::Wanted,
    /// `--mode`, which also stands over policies that come later.
    pub mode: Option<Mode>,
    /// `run_as_user` and `run_as_group` of the policy.
    pub accounts: [Option<String>; 2],
    /// The command.
    pub invocation: Invocation,
    /// Where the audit trail goes.
    pub audit: PathBuf,
    /// What of the allowed goes into it.
    pub audit_level: AuditLevel,
    /// Name servers; the host's own if empty.
    pub dns: Vec<SocketAddr>,
    /// The files of the policy.
    pub texts: Vec<Text>,
    /// The host's policy, which is in force in their place.
    pub global: Option<Vec<Text>>,
    /// How long a connection waits for an answer, where the policy asks.
    pub patience: Duration,
    /// Rules that its policies may compile to; any number if nothing is said.
    pub most_rules: Option<u32>,
    /// Where the names that it is told of are written down, for who takes it over.
    pub names: Option<PathBuf>,
    /// Whether nothing is started: the processes are somebody else's, and have no backstops.
    pub is_attached: bool,
}

/// Why a run failed.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// See the source.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// See the source.
    #[error(transparent)]
    Enforcer(#[from] EnforcerError),
    /// See the source.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// See the source.
    #[error(transparent)]
    Trail(#[from] TrailError),
    /// See the source.
    #[error(transparent)]
    Backstops(#[from] LaunchError),
    /// See the source.
    #[error(transparent)]
    Lock(#[from] RunLockError),
    /// See the source.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// See the source.
    #[error("cannot set up name resolution: {0}; name a server with --dns ADDRESS")]
    Upstream(#[from] UpstreamError),
    /// A `deny` that would close nothing.
    #[error("`filesystem_policy.deny` cannot be held: {0}; close a directory around it instead")]
    Unclosed(String),
    /// See the source.
    #[error(transparent)]
    Limits(#[from] LimitsError),
    /// The policy cannot be enforced without BPF LSM.
    #[error(
        "no BPF LSM programs: {why}; `--lsm require` and `filesystem_policy.rules` need them. Run \
         on a kernel that has them (`clawbox doctor`), or do without both"
    )]
    NeedsLsm {
        /// Why there are none.
        why: String,
    },
    /// A cgroup of somebody else's cannot be held without BPF LSM.
    #[error(
        "no BPF LSM programs: {why}. Processes that clawbox has not started have no Landlock and no \
         seccomp filter of its, so that nothing would hold their files; with `--network-only` (in a \
         standing rule `network_only: true`) it holds what they connect to alone"
    )]
    NothingHolds {
        /// Why there are none.
        why: String,
    },
    /// See the source.
    #[error(transparent)]
    Strays(#[from] StraysError),
    /// A sandbox of an earlier clawbox cannot be served.
    #[error("{0}")]
    Unknown(String),
    /// Something of a sandbox cannot be ended.
    #[error("a process of a sandbox is still there; enforcement stays on for it")]
    Left,
    /// A system call that hardly ever fails.
    #[error("cannot {what}: {source}")]
    System {
        /// What it was for.
        what: &'static str,
        /// Cause.
        source: std::io::Error,
    },
}

impl RunError {
    /// The exit status of `clawbox run`.
    #[must_use]
    pub fn status(&self) -> u8 {
        match self {
            Self::Spawn(error) => error.status(),
            _ => status::FAILED,
        }
    }
}

pub(super) fn system(what: &'static str) -> impl FnOnce(std::io::Error) -> RunError {
    move |source| RunError::System { what, source }
}

/// What a finished run tells its user.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// The command's status, as the shell counts.
    pub status: u8,
    /// Denials in the audit trail.
    pub denied: u64,
}

/// The steps of a run on the clock, for `CLAWBOX_LOG=debug`. The last one, taking everything down,
/// ends when this is dropped.
struct Steps {
    since: Instant,
}

impl Steps {
    fn done(&mut self, step: &'static str) {
        tracing::debug!(step, micros = self.since.elapsed().as_micros() as u64, "done");
        self.since = Instant::now();
    }
}

impl Drop for Steps {
    fn drop(&mut self) {
        self.done("removed");
    }
}

/// As many descriptors as root may have: connections that pass through the agent have two each, and are
/// not to take them from the control socket. After the command was started, which keeps its own limit.
fn take_descriptors() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, most)| setrlimit(Resource::RLIMIT_NOFILE, most, most));
    if let Err(error) = raised {
        tracing::debug!("the number of descriptors stays as it is: {error}");
    }
}

/// What a run has put into the system; dropping it takes it down: processes first, then enforcement, then
/// the name.
struct Installed {
    host: Option<Host>,
    cgroup: Option<Cgroup>,
    lock: Option<RunLock>,
}

impl Installed {
    /// Makes the cgroup and loads the kernel side, which governs nobody yet.
    fn load(&mut self, root: &Path, run: &Run, sizes: Sizes) -> Result<(), RunError> {
        let name = self.lock.as_ref().map(RunLock::name).unwrap_or_default();
        // First the cgroup: it holds the parent in place, whose id the programs are given.
        let cgroup = self.cgroup.insert(Cgroup::create(root, name)?);
        let place = Place { level: cgroup::LEVEL, parent: cgroup.parent_id()? };
        let wanted = Wanted {
            lsm: run.lsm != LsmUse::Off,
            refusals: run.refusals,
            learning: run.learning,
            share: 100,
        };
        self.host = Some(Host::load(root, place, sizes, name, wanted, Keep::Here)?);
        Ok(())
    }

    /// Starts the command, and gives who serves it.
    fn start(&mut self, run: Run, ready: Ready) -> Result<&mut Host, RunError> {
        let (Some(host), Some(cgroup)) = (&mut self.host, self.cgroup.take()) else {
            return Err(CgroupError::NotMounted.into());
        };
        host.start(run, ready, cgroup)?;
        Ok(host)
    }
}

impl Drop for Installed {
    fn drop(&mut self) {
        if let Some(mut host) = self.host.take()
            && let Err(error) = host.take_down()
        {
            tracing::error!("{error}; the next run removes what is left");
            return;
        }
        // One that nobody was started in.
        if let Some(cgroup) = self.cgroup.take()
            && let Err(error) = cgroup.remove()
        {
            tracing::error!("{error}; the next run removes it");
            return;
        }
        if let Some(lock) = self.lock.take() {
            lock.release();
        }
    }
}

/// Runs a command under a policy, from loading to clean-up.
///
/// # Errors
/// The command did not start; nothing stays behind.
pub fn run(mut run: Run) -> Result<Outcome, RunError> {
    let mut steps = Steps { since: Instant::now() };
    let root = cgroup::hierarchy_root()?;
    run_lock::remove_stale(&root);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(system("start the runtime"))?;
    let ready = Ready::of(&mut run, SANDBOX)?;
    let signals = HeldSignals::hold().map_err(system("hold signals back"))?;
    let lock = RunLock::take(&run.name)?;
    let name = lock.name().to_owned();
    steps.done("prepared");
    let _terminal = Foreground::find();
    let mut installed = Installed { host: None, cgroup: None, lock: Some(lock) };
    let entered = runtime.enter();
    installed.load(&root, &run, ready.sizes(&run))?;
    steps.done("loaded");
    // Before the command: who hears from it may ask for a change at once.
    let control = control::bind(&name).map_err(system("make the control socket"))?;
    let host = installed.start(run, ready)?;
    oom::spare();
    take_descriptors();
    steps.done("started");
    drop(entered);
    let watched = watch::until_exit(host, SANDBOX, &name, control, signals);
    let ended = runtime.block_on(watched).map_err(system("wait"))?;
    steps.done("ended");
    // Whatever the command left running ends here, and is recorded up to its end.
    let status = child::code(ended);
    let denied = host.end(SANDBOX, Some(status))?;
    steps.done("recorded");
    Ok(Outcome { status, denied })
}

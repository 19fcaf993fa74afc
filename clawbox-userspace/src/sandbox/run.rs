//! `clawbox run` without an agent: the kernel side is loaded for one sandbox, held while its
//! command runs, and removed with it.

use std::net::SocketAddr;
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use aya::maps::{MapData, RingBuf};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::birth::Process;
use super::ceiling::Ceiling;
use super::cgroup::{self, CgroupError};
use super::change::{LivePolicy, Settled};
use super::child::{self, Invocation, SpawnError, status};
use super::connections::Connections;
use super::control::{self, Text};
use super::held::HeldConnections;
use super::identities::Identities;
use super::in_force::{EventMeaning, PolicyInForce};
use super::install::Installed;
use super::launch::{self, BackstopReport, LaunchError};
use super::monitor::{self, Counts, Decided, Monitor, Questions, Verified};
use super::objects::Objects;
use super::oom;
use super::run_lock::{self, RunLock, RunLockError};
use super::strays::{Remnants, StraysError};
use super::watch::{self, Foreground, HeldSignals, Served};
use crate::audit::AuditLevel;
use crate::audit::programs::Programs;
use crate::audit::record::{Class, Object, SandboxObject, VerdictName};
use crate::audit::trail::{Draft, Trail, TrailError};
use crate::compile::{AgentPorts, MapImage};
use crate::dns::{NamePolicy as _, Resolver, ResolverSockets, Upstream, UpstreamError};
use crate::gateway::{self, Verifier, WaitingRoom};
use crate::kernel::enforcer::EnforcerError;
use crate::kernel::file_id::Mounts;
use crate::kernel::load::LoadError;
use crate::kernel::lsm::LsmState;
use crate::policy::model::Mode;

/// The only sandbox of an embedded run.
pub const SANDBOX: u32 = 1;

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
    /// The policy opens paths to single binaries. The backstops are then as wide as all of them
    /// together, which only BPF LSM programs narrow again.
    pub needs_lsm: bool,
    /// What the backstops have to hold.
    pub backstops: launch::Request,
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
    /// How long a connection waits for an answer, where the policy asks.
    pub patience: Duration,
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
    /// The policy cannot be enforced without BPF LSM.
    #[error(
        "no BPF LSM programs: {why}; `--lsm require` and `filesystem_policy.rules` need them. Run \
         on a kernel that has them (`clawbox doctor`), or do without both"
    )]
    NeedsLsm {
        /// Why there are none.
        why: String,
    },
    /// See the source.
    #[error(transparent)]
    Strays(#[from] StraysError),
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

fn system(what: &'static str) -> impl FnOnce(std::io::Error) -> RunError {
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

/// What is read and opened before anything is put into the system.
struct Ready {
    trail: Trail,
    upstream: Upstream,
    sockets: ResolverSockets,
    verified: (TcpListener, u16),
    room: WaitingRoom,
    program: PathBuf,
    mounts: Mounts,
    backstops: launch::Prepared,
    report: BackstopReport,
}

impl Ready {
    /// And what the policy names, as it is on this host.
    fn of(run: &mut Run) -> Result<(Self, Identities, Objects), RunError> {
        let trail = Trail::open(&run.audit, &run.name)?;
        let upstream =
            if run.dns.is_empty() { Upstream::system()? } else { Upstream::servers(&run.dns)? };
        let sockets = ResolverSockets::bind().map_err(system("open the resolver's sockets"))?;
        let verified = gateway::bind().map_err(system("open the verifier's socket"))?;
        let room = WaitingRoom::open().map_err(system("open the socket for what waits"))?;
        let program = child::find_program(&run.invocation)?;
        run.backstops.needed.push(program.clone());
        let mounts = Mounts::read().map_err(system("read /proc/self/mountinfo"))?;
        let patterns = run.image.binaries.iter().map(|entry| &entry.pattern);
        let identities = Identities::find(SANDBOX, &mounts, patterns, &run.backstops.writable());
        identities.problems.iter().for_each(|problem| tracing::warn!("{problem}"));
        // The rule stands at the directory that the private one is mounted on.
        run.also_writable.extend(run.backstops.own_tmp());
        let objects = Objects::find(&run.image, &mounts, &run.also_writable);
        objects.problems.iter().for_each(|problem| tracing::warn!("{problem}"));
        if !objects.unclosed.is_empty() {
            return Err(RunError::Unclosed(objects.unclosed.join("; ")));
        }
        let (backstops, report) = launch::prepare(&run.backstops)?;
        report.skipped_paths.iter().for_each(|skipped| {
            tracing::warn!("no access below `{}`: {}", skipped.path.display(), skipped.why);
        });
        let ready =
            Self { trail, upstream, sockets, verified, room, program, mounts, backstops, report };
        Ok((ready, identities, objects))
    }
}

/// Says what this kernel does not do, and refuses where the run cannot be without.
fn accept(run: &Run, lsm: &LsmState) -> Result<(), RunError> {
    if lsm.is_active() {
        return Ok(());
    }
    if run.lsm == LsmUse::Auto {
        tracing::warn!("no BPF LSM, files are Landlock's alone: {}", lsm.why);
        if let Some(why) = &lsm.unrecorded {
            tracing::warn!("what Landlock and seccomp refuse is not in the audit trail: {why}");
        }
    }
    if run.needs_lsm || run.lsm == LsmUse::Require {
        return Err(RunError::NeedsLsm { why: lsm.why.clone() });
    }
    Ok(())
}

/// A command that runs, and what watches it.
struct Started {
    child: Process,
    remnants: Remnants,
    monitor: Monitor,
    in_force: Arc<PolicyInForce>,
    ceiling: Ceiling,
    connections: Connections,
    served: Served,
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

/// The programs that records name, as the command sees them.
fn programs(mut mounts: Mounts, identities: &Identities, first_process: u32) -> Programs {
    if let Err(error) = mounts.add_those_of(first_process) {
        tracing::debug!("programs are named by the host's mounts alone: {error}");
    }
    let mut programs = Programs::new(mounts, identities.paths.iter().cloned());
    if let Err(error) = programs.see_from(first_process) {
        tracing::debug!("the sandbox's files cannot be looked at: {error}");
    }
    programs
}

/// Who verifies connections, and where what the agent decides is read.
fn verifier(
    in_force: &Arc<PolicyInForce>,
    redirects: Arc<gateway::Table>,
    resolver: &Resolver,
    questions: Arc<Questions>,
) -> (Arc<Verifier>, Decided) {
    let asked = in_force.clone();
    let audit_only: Arc<dyn Fn() -> bool + Send + Sync> = Arc::new(move || asked.audit_only());
    let verified = Arc::new(Verified::default());
    let (names, observer) = (resolver.names(), verified.clone());
    let verifier = Verifier { redirects, names, observer, audit_only: audit_only.clone() };
    (Arc::new(verifier), Decided { questions, verified, audit_only })
}

/// Starts the command, which is under the policy from its first instruction.
fn start(
    run: &Run,
    installed: &mut Installed,
    ready: Ready,
    identities: &Identities,
    steps: &mut Steps,
) -> Result<Started, RunError> {
    let Ready { mut trail, upstream, sockets, verified, room, program, mounts, backstops, .. } =
        ready;
    let mut report = ready.report;
    let name = installed.name().to_owned();
    let (enforcer, cgroup) = installed.parts()?;
    let lsm = enforcer.lsm().clone();
    accept(run, &lsm)?;
    let mut ring = enforcer.take_events()?;
    let counts = Counts { losses: enforcer.take_losses()?, tallies: enforcer.take_tallies()? };
    let skipped_exits = enforcer.skipped_exits()?;
    let table = Arc::new(enforcer.take_synthetics()?);
    let connections = Connections::of(&name, enforcer)?;
    let redirects = Arc::new(gateway::Table::new(enforcer.take_redirected()?));
    trim_heap();
    steps.done("placed");

    let remnants = Remnants::of(&name, skipped_exits)?;
    // Before the command: who hears from it may ask for a change at once.
    let control = control::bind(&name).map_err(system("make the control socket"))?;
    let started = SystemTime::now();
    let judges = lsm.is_active();
    let child = child::spawn(&run.invocation, &program, cgroup, backstops, judges, &mut report)
        .inspect_err(|_| told_refusals(run, identities, &mut ring, &mut trail))?;
    oom::spare();
    take_descriptors();
    steps.done("started");
    trail.add(Draft { time: Some(started), ..boundary(run, "start", layers(&lsm, &report), None) });
    let in_force = PolicyInForce::new(run.image.clone());
    let questions = Arc::new(Questions::default());
    let resolver =
        Arc::new(Resolver::new(SANDBOX, in_force.clone(), table, questions.clone(), upstream));
    in_force.know_names(resolver.names());
    let first_process = child.pid().as_raw().cast_unsigned();
    let programs = programs(mounts, identities, first_process);
    let meaning = Box::new(EventMeaning(in_force.clone()));
    let (verifier, decided) = verifier(&in_force, redirects, &resolver, questions);
    let monitor = Monitor::new(ring, counts, decided, programs, meaning, trail, first_process)
        .map_err(system("poll the event ring"))?;
    let ceiling = Ceiling::new(&run.backstops, &report, judges);
    let held = HeldConnections::new(room, run.patience);
    let verifier = (verifier, verified.0);
    let served = Served { resolver, sockets, verifier, held, run: name, control };
    Ok(Started { child, remnants, monitor, in_force, ceiling, connections, served })
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
    // Declared before what is installed, and so dropped after it: these descriptors keep the numbers
    // of what the policies name from being given out again until the last process has gone.
    let (ready, identities, objects) = Ready::of(&mut run)?;
    let mut named_later = Vec::new();
    let signals = HeldSignals::hold().map_err(system("hold signals back"))?;
    let lock = RunLock::take(&run.name)?;
    steps.done("prepared");
    let _terminal = Foreground::find();
    let mut installed = Installed::new(lock);
    installed.load(&root, &run, &identities, &objects)?;
    steps.done("loaded");
    let ports = ports(&ready.sockets, ready.verified.1, ready.room.port());
    let written = installed.enforce(&run, &identities, &objects, ports)?;
    let entered = runtime.enter();
    let Started { child, remnants, monitor, in_force, ceiling, connections, served } =
        start(&run, &mut installed, ready, &identities, &mut steps)?;
    drop(entered);
    let mut live = LivePolicy {
        texts: run.texts.clone(),
        approved: String::new(),
        ceiling,
        settled: settled(&run),
        in_force,
        resolver: served.resolver.clone(),
        ports,
        connections,
        held: &mut named_later,
        outgoing: None,
        enforcer: installed.parts()?.0,
        written,
    };
    let watched = watch::until_exit(child, monitor, served, &mut live, remnants, signals);
    let (ended, mut monitor) = runtime.block_on(watched).map_err(system("wait"))?;
    steps.done("ended");
    // Whatever the command left running ends here, and is recorded up to its end.
    let status = child::code(ended);
    installed.end_processes()?;
    monitor.drain();
    monitor.count_losses();
    monitor.sum_up();
    monitor.trail.add(boundary(&run, "stop", Vec::new(), Some(status)));
    monitor.trail.flush();
    steps.done("recorded");
    Ok(Outcome { status, denied: monitor.trail.denied() })
}

fn settled(run: &Run) -> Settled {
    Settled {
        mode: run.mode,
        audit: run.audit_level,
        accounts: run.accounts.clone(),
        workdir: run.invocation.workdir.clone(),
        always_writable: run.backstops.own_tmp().into_iter().collect(),
        ever_writable: run.backstops.writable(),
    }
}

fn ports(sockets: &ResolverSockets, verifier: u16, waiting: u16) -> AgentPorts {
    let (resolver_v4, v6) = sockets.ports();
    AgentPorts { resolver_v4, resolver_v6: v6.unwrap_or(0), verifier, waiting }
}

/// Records what the kernel refused a command's start for, by the policy's word.
fn told_refusals(
    run: &Run,
    identities: &Identities,
    ring: &mut RingBuf<MapData>,
    trail: &mut Trail,
) {
    let meaning = EventMeaning(PolicyInForce::new(run.image.clone()));
    let mounts = Mounts::read().unwrap_or_default();
    let mut programs = Programs::new(mounts, identities.paths.iter().cloned());
    monitor::record_refusals(ring, &mut programs, &meaning, trail);
}

/// The record of a sandbox's start or stop.
fn boundary(
    run: &Run,
    action: &'static str,
    layers: Vec<serde_json::Value>,
    status: Option<u8>,
) -> Draft {
    let mode = if run.image.audit_only() { "audit" } else { "enforce" };
    Draft {
        time: None,
        class: Class::Sandbox,
        action,
        verdict: VerdictName::None,
        reason: action,
        let_through: false,
        rule: None,
        subject: None,
        object: Object::Sandbox(Box::new(SandboxObject {
            command: run
                .invocation
                .command
                .iter()
                .map(|word| word.to_string_lossy().into_owned())
                .collect(),
            policy: run.policy.clone(),
            generation: None,
            mode: mode.to_owned(),
            status: status.map(i32::from),
            layers,
        })),
    }
}

/// Every layer, requested against actual: the kernel hooks first, which the self-test has just
/// seen deny, then what is missing, then the backstops.
fn layers(lsm: &LsmState, report: &BackstopReport) -> Vec<serde_json::Value> {
    let hooks = serde_json::json!({
        "layer": "cgroup.sockets",
        "state": "full",
        "self_test": "denied",
    });
    let backstops = report.layers.iter().filter_map(|layer| serde_json::to_value(layer).ok());
    [hooks].into_iter().chain(lsm.layers()).chain(backstops).collect()
}

/// Gives back what reading the kernel's types took: some 20 MiB for the rest of the run.
fn trim_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes no pointers; glibc locks its arenas itself.
    unsafe {
        nix::libc::malloc_trim(0);
    }
}

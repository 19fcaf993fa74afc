//! One sandbox from its start to its end: what was put into the system for it, who serves it, and the
//! records of both ends.

use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clawbox_common::rule::SandboxState;
use clawbox_common::subject::FileId;
use nix::sys::signal::Signal;
use tokio::task::JoinHandle;

use super::birth::{End, Process};
use super::ceiling::Ceiling;
use super::cgroup::Cgroup;
use super::change::{Change, KernelSide, LivePolicy, Settled};
use super::child;
use super::control::{Answer, Request, Text};
use super::enter_running::Further;
use super::held::HeldConnections;
use super::host::{Host, Tables};
use super::identities::Identities;
use super::in_force::{EventMeaning, PolicyInForce};
use super::lasting::Lasting;
use super::launch::BackstopReport;
use super::launch::again::Kept;
use super::objects::Objects;
use super::ready::{Ready, Sockets};
use super::recorder::{Decisions, Recorder};
use super::run::{LsmUse, Run, RunError, system};
use crate::audit::programs::Programs;
use crate::audit::record::{Class, Object, SandboxObject, VerdictName};
use crate::audit::trail::{Draft, Trail};
use crate::compile::{AgentPorts, MapImage};
use crate::dns::{NamePolicy as _, Resolver, ResolverSockets, Upstream};
use crate::gateway::Verifier;
use crate::kernel::enforcer::Generation;
use crate::kernel::file_id::Mounts;
use crate::kernel::lsm::LsmState;

/// What has to be taken back of a sandbox, however far its start came.
pub(super) struct Beginning {
    pub(super) number: u32,
    pub(super) cgroup: Cgroup,
    /// The maps' entries of its policies.
    pub(super) written: Vec<Generation>,
    /// While these are open nothing else gets the inode numbers of what its policies name.
    pub(super) held: Vec<(Identities, Objects)>,
}

/// A sandbox that runs.
pub struct Sandbox {
    pub(super) number: u32,
    pub(super) name: String,
    pub(super) cgroup: Cgroup,
    pub(super) child: Process,
    /// When that was started, in units of `/proc/PID/stat`.
    pub(super) born: u64,
    pub(super) since: SystemTime,
    pub(super) dns: Vec<SocketAddr>,
    pub(super) patience: Duration,
    pub(super) told: Told,
    /// The backstops of its start, for further commands; `None` where it had none, or none is known.
    pub(super) kept: Option<Kept>,
    pub(super) policy: LivePolicy,
    pub(super) held: HeldConnections,
    pub(super) servers: Vec<Server>,
}

/// What serves a sandbox, and what it means that it has stopped.
pub(super) struct Server {
    task: JoinHandle<std::io::Result<()>>,
    without: &'static str,
    is_told: bool,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What the records of a start and a stop say.
#[derive(Clone, Debug)]
pub(super) struct Told {
    command: Vec<String>,
    policy: String,
    audit_only: bool,
}

impl Beginning {
    pub(super) fn new(number: u32, cgroup: Cgroup) -> Self {
        Self { number, cgroup, written: Vec::new(), held: Vec::new() }
    }

    /// Puts the cgroup under the policy, all of which is in the kernel's tables by then.
    fn govern(
        &mut self,
        kernel: &mut KernelSide,
        image: &MapImage,
        state: &SandboxState,
    ) -> Result<(), RunError> {
        let Some((identities, objects)) = self.held.last() else { return Ok(()) };
        kernel.generation = kernel.generation.max(image.generation());
        let enforcer = &mut kernel.enforcer;
        self.written.push(enforcer.write_generation(image, &objects.files, &objects.names)?);
        enforcer.write_identities(&identities.binaries, &identities.scripts)?;
        enforcer.set_state(self.number, state)?;
        Ok(enforcer.admit_cgroup(self.cgroup.id(), self.number)?)
    }

    /// Puts the cgroup under the policy, then starts the command in it.
    pub(super) fn go_on(
        &mut self,
        host: &mut Host,
        run: Run,
        ready: Ready,
    ) -> Result<Sandbox, RunError> {
        let lsm = host.lsm().clone();
        accept(&run, &lsm)?;
        let ports = ready.sockets.ports();
        let names = names(&run)?;
        let Ready { trail, upstream, sockets, mounts, mut report, .. } = ready;
        let Sockets { resolver: sockets, verified, room } = sockets;
        let judges = lsm.is_active();
        let state = run.image.state(ports, run.audit_level.flags(), judges);
        let paths = ready.identities.paths.clone();
        self.held.push((ready.identities, ready.objects));
        self.govern(&mut host.kernel, &run.image, &state)?;
        let told = Told::of(&run);
        let settled = Settled::of(&run);
        let in_force = PolicyInForce::new(run.image);
        let decisions = Decisions::of(self.number, host.feed.stirred());
        let recorder = recorder(&in_force, Arc::clone(&decisions), mounts, paths, trail);
        host.recorders.add(self.number, recorder);
        run.limits.apply(&self.cgroup)?;
        let started = SystemTime::now();
        let backstops = Arc::new(ready.backstops);
        let child =
            child::spawn(&run.invocation, &ready.program, &self.cgroup, &backstops, judges)?;
        backstops.correct(&mut report);
        let kept = backstops.keep(&report).map_err(system("keep the backstops"))?;
        if let Some(recorder) = host.recorders.of(self.number) {
            recorder.started(child.pid().as_raw().cast_unsigned());
            let layers = layers(&lsm, &report);
            recorder.trail.add(Draft { time: Some(started), ..told.record("start", layers, None) });
        }
        let (resolver, servers) =
            serve(host, self.number, &in_force, decisions, upstream, sockets, verified);
        names.into_iter().for_each(|names| resolver.names().keep_in(names));
        let policy = LivePolicy {
            sandbox: self.number,
            texts: run.texts,
            approved: String::new(),
            ceiling: Ceiling::new(&run.backstops, &report, judges),
            settled,
            in_force,
            resolver,
            ports,
            held: std::mem::take(&mut self.held),
            outgoing: None,
            written: self.written.pop().unwrap_or_default(),
        };
        Ok(Sandbox {
            number: self.number,
            name: run.name,
            cgroup: self.cgroup.clone(),
            born: child.born(),
            child,
            since: started,
            told,
            dns: run.dns,
            patience: run.patience,
            kept: Some(kept),
            policy,
            held: HeldConnections::new(room, run.patience),
            servers,
        })
    }
}

/// Where the names that a sandbox is told of are written down, if they are.
fn names(run: &Run) -> Result<Option<File>, RunError> {
    let made = run.names.as_deref().map(File::create_new).transpose();
    made.map_err(system("write down the sandbox's names"))
}

/// Who writes down what is told of a sandbox.
pub(super) fn recorder(
    in_force: &Arc<PolicyInForce>,
    decisions: Arc<Decisions>,
    mounts: Mounts,
    programs: Vec<(FileId, PathBuf)>,
    trail: Trail,
) -> Recorder {
    let meaning = Box::new(EventMeaning(Arc::clone(in_force)));
    Recorder::new(decisions, Programs::new(mounts, programs), meaning, audit_only(in_force), trail)
}

/// Has a sandbox's names and verified connections served from now on.
pub(super) fn serve(
    host: &Host,
    number: u32,
    in_force: &Arc<PolicyInForce>,
    decisions: Arc<Decisions>,
    upstream: Upstream,
    sockets: ResolverSockets,
    verified: (TcpListener, u16),
) -> (Arc<Resolver>, Vec<Server>) {
    let Tables { synthetics, redirects } = host.tables.clone();
    let resolver =
        Arc::new(Resolver::new(number, in_force.clone(), synthetics, decisions.clone(), upstream));
    in_force.know_names(resolver.names());
    let verifier = Arc::new(Verifier {
        redirects,
        names: resolver.names(),
        observer: decisions,
        audit_only: audit_only(in_force),
    });
    let servers = vec![
        Server::new(
            tokio::spawn(Arc::clone(&resolver).serve(sockets)),
            "its resolver has stopped; names no longer resolve in it",
        ),
        Server::new(
            tokio::spawn(verifier.serve(verified.0)),
            "connections whose host is to be verified fail from now on",
        ),
    ];
    (resolver, servers)
}

impl Server {
    fn new(task: JoinHandle<std::io::Result<()>>, without: &'static str) -> Self {
        Self { task, without, is_told: false }
    }
}

impl Sandbox {
    /// Its number, which no other one has meanwhile.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.number
    }

    /// What its user calls it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// When it was started.
    #[must_use]
    pub fn since(&self) -> SystemTime {
        self.since
    }

    /// Its first process, as the host sees it.
    #[must_use]
    pub fn first_process(&self) -> nix::unistd::Pid {
        self.child.pid()
    }

    /// Sends its first process a signal.
    ///
    /// # Errors
    /// It has ended.
    pub fn signal(&self, signal: Signal) -> std::io::Result<()> {
        self.child.signal(signal)
    }

    /// Whether its processes have root's user.
    #[must_use]
    pub fn runs_as_root(&self) -> bool {
        self.kept.as_ref().is_some_and(|kept| kept.applied.user.is_none())
    }

    /// Its cgroup.
    #[must_use]
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// The files of the policy in force.
    #[must_use]
    pub fn texts(&self) -> &[Text] {
        &self.policy.texts
    }

    /// The number of the policy in force, in the kernel's tables.
    #[must_use]
    pub fn generation(&self) -> u32 {
        self.policy.in_force.image().generation()
    }

    /// What was approved for as long as it runs.
    #[must_use]
    pub fn approved(&self) -> &str {
        &self.policy.approved
    }

    /// Whether denials are only recorded.
    #[must_use]
    pub fn audit_only(&self) -> bool {
        self.policy.in_force.audit_only()
    }

    /// Connections that wait for an answer.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.held.len()
    }

    pub(super) fn try_wait(&mut self) -> std::io::Result<Option<End>> {
        self.child.try_wait()
    }

    pub(super) fn holds_any(&self) -> bool {
        self.held.len() > 0
    }

    /// Says once of each server that has stopped what that means.
    pub(super) fn check_servers(&mut self) {
        for server in self.servers.iter_mut().filter(|server| server.task.is_finished()) {
            if !std::mem::replace(&mut server.is_told, true) {
                tracing::warn!("sandbox `{}`: {}", self.name, server.without);
            }
        }
    }

    /// What has to be known to serve it again after this process has ended.
    #[must_use]
    pub fn lasting(&self) -> Lasting {
        let image = self.policy.in_force.image();
        let slots = image.binaries.iter().map(|entry| entry.pattern.as_str().to_owned());
        let AgentPorts { resolver_v4, resolver_v6, .. } = self.policy.ports;
        let since = self.since.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        Lasting {
            name: self.name.clone(),
            process: self.child.pid().as_raw().cast_unsigned(),
            born: self.born,
            since,
            command: self.told.command.clone(),
            texts: self.policy.texts.clone(),
            approved: self.policy.approved.clone(),
            generation: image.generation(),
            slots: slots.collect(),
            ports: [resolver_v4, resolver_v6],
            dns: self.dns.clone(),
            patience_ms: u64::try_from(self.patience.as_millis()).unwrap_or(u64::MAX),
            settled: self.policy.settled.clone(),
            ceiling: self.policy.ceiling.clone(),
            backstops: self.kept.as_ref().map(|kept| kept.applied.clone()),
        }
    }

    /// Does what is asked and writes it down.
    pub(super) fn answer(
        &mut self,
        kernel: &mut KernelSide,
        recorder: &mut Recorder,
        request: Request,
    ) -> Answer {
        match request {
            Request::SetPolicy(texts) => {
                let change = self.policy.replace(kernel, texts);
                self.changed(recorder, change)
            }
            Request::Waiting => Answer::Waiting { connections: self.held.list() },
            Request::Deny { id } => self.held.deny(id, recorder),
            Request::Approve { id, lasting } => self.approve(kernel, recorder, id, lasting),
        }
    }

    fn approve(
        &mut self,
        kernel: &mut KernelSide,
        recorder: &mut Recorder,
        id: u32,
        lasting: bool,
    ) -> Answer {
        let Some(connection) = self.held.find(id) else { return self.held.unknown(id) };
        let mut in_force = None;
        if lasting {
            if connection.rule.is_empty() {
                return HeldConnections::nobody(id);
            }
            let change = self.policy.approve(kernel, &connection.rule);
            match self.changed(recorder, change) {
                Answer::Changed { generation, .. } => in_force = Some(generation),
                other => return other,
            }
        }
        self.held.approve(id, in_force, &self.policy.resolver, recorder)
    }

    fn changed(&self, recorder: &mut Recorder, change: Change) -> Answer {
        recorder.policy_changed(&change, self.policy.in_force.image().audit_only());
        change.answer
    }

    /// Serves it no longer. Gives what has to be taken back, and what its last record says.
    pub(super) fn stop(self) -> (Beginning, Told) {
        let Self { number, cgroup, mut told, policy, servers, .. } = self;
        drop(servers);
        policy.resolver.clear();
        told.audit_only = policy.in_force.image().audit_only();
        let written = [policy.written].into_iter().chain(policy.outgoing).collect();
        (Beginning { number, cgroup, written, held: policy.held }, told)
    }
}

fn audit_only(in_force: &Arc<PolicyInForce>) -> Arc<dyn Fn() -> bool + Send + Sync> {
    let in_force = Arc::clone(in_force);
    Arc::new(move || in_force.audit_only())
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

impl Told {
    fn of(run: &Run) -> Self {
        let words = run.invocation.command.iter();
        Self {
            command: words.map(|word| word.to_string_lossy().into_owned()).collect(),
            policy: run.policy.clone(),
            audit_only: run.image.audit_only(),
        }
    }

    /// The record of a sandbox's start or stop.
    fn record(
        &self,
        action: &'static str,
        layers: Vec<serde_json::Value>,
        status: Option<u8>,
    ) -> Draft {
        let mode = if self.audit_only { "audit" } else { "enforce" };
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
                command: self.command.clone(),
                policy: self.policy.clone(),
                generation: None,
                mode: mode.to_owned(),
                status: status.map(i32::from),
                asked_by: None,
                process: None,
                layers,
            })),
        }
    }

    pub(super) fn of_lasting(command: &[String], texts: &[Text], audit_only: bool) -> Self {
        let policy = texts.first().map(|text| text.name.clone()).unwrap_or_default();
        Self { command: command.to_vec(), policy, audit_only }
    }

    /// The record of another clawbox's beginning to serve it.
    pub(super) fn resume_record(&self) -> Draft {
        self.record("resume", Vec::new(), None)
    }

    /// The record of a further command's start.
    pub(super) fn further_record(&self, further: &Further) -> Draft {
        let words = further.command.iter();
        let command = words.map(|word| word.to_string_lossy().into_owned()).collect();
        let mut draft = Self { command, ..self.clone() }.record("exec", Vec::new(), None);
        if let Object::Sandbox(object) = &mut draft.object {
            object.asked_by = Some(further.asked_by);
        }
        draft
    }

    /// The record of its end.
    pub(super) fn stop_record(&self, status: Option<u8>) -> Draft {
        self.record("stop", Vec::new(), status)
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

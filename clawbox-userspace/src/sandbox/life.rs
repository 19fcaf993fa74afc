//! One sandbox from its start to its end: what was put into the system for it, who serves it, and the
//! records of both ends.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clawbox_common::subject::FileId;
use nix::sys::signal::Signal;
use tokio::task::JoinHandle;

use super::attach;
use super::beginning::Beginning;
use super::birth::{End, Process};
use super::cgroup::Cgroup;
use super::change::{Change, KernelSide, LivePolicy};
use super::control::{Answer, Request, Text};
use super::enter_running::Further;
use super::held::HeldConnections;
use super::host::{Host, Tables};
use super::in_force::{EventMeaning, PolicyInForce};
use super::lasting::Lasting;
use super::launch::again::Kept;
use super::ready::Sockets;
use super::recorder::{Decisions, Recorder};
use super::run::Run;
use crate::audit::mask;
use crate::audit::programs::Programs;
use crate::audit::record::{Class, Object, SandboxObject, VerdictName};
use crate::audit::trail::{Draft, Trail};
use crate::compile::AgentPorts;
use crate::dns::{NamePolicy as _, Resolver, Upstream};
use crate::gateway::{AdmitsHidden, HiddenConnections, Verifier, WaitingRoom};
use crate::kernel::file_id::Mounts;

/// A sandbox that runs.
pub struct Sandbox {
    pub(super) number: u32,
    pub(super) name: String,
    pub(super) cgroup: Cgroup,
    pub(super) life: Life,
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
    /// Where it was started, if anything was.
    workdir: Option<String>,
    policy: String,
    audit_only: bool,
}

/// What a sandbox lives as long as.
pub(super) enum Life {
    /// Its first process.
    Command {
        process: Process,
        /// When that was started, in units of `/proc/PID/stat`.
        born: u64,
        /// It is the first of a pid namespace, in which all others are.
        is_apart: bool,
    },
    /// Its cgroup, which is somebody else's.
    Cgroup,
}

/// Who writes down what is told of a sandbox.
pub(super) fn recorder(
    in_force: &Arc<PolicyInForce>,
    decisions: Arc<Decisions>,
    mounts: Mounts,
    programs: Vec<(FileId, PathBuf)>,
    mut trail: Trail,
) -> Recorder {
    trail.policy = Some(in_force.image().generation());
    let meaning = Box::new(EventMeaning(Arc::clone(in_force)));
    Recorder::new(decisions, Programs::new(mounts, programs), meaning, audit_only(in_force), trail)
}

/// What serves a sandbox, and what its policy is told by.
pub(super) struct Served {
    pub(super) resolver: Arc<Resolver>,
    pub(super) hidden: Arc<HiddenConnections>,
    pub(super) servers: Vec<Server>,
    /// Where connections wait.
    pub(super) room: WaitingRoom,
}

/// Has a sandbox's names and verified connections served from now on.
pub(super) fn serve(
    host: &Host,
    number: u32,
    in_force: &Arc<PolicyInForce>,
    decisions: Arc<Decisions>,
    upstream: Upstream,
    sockets: Sockets,
) -> Served {
    let Tables { synthetics, redirects, traffic } = host.tables.clone();
    let Sockets { resolver: resolver_at, verified, room, network } = sockets;
    let resolver = Resolver::new(number, in_force.clone(), synthetics, decisions.clone(), upstream);
    let resolver = Arc::new(resolver.among(traffic));
    in_force.know_names(resolver.names());
    let hidden = Arc::<HiddenConnections>::default();
    let verifier = Arc::new(Verifier {
        sandbox: number,
        redirects,
        names: resolver.names(),
        observer: decisions,
        audit_only: audit_only(in_force),
        admits_hidden: admits_hidden(in_force),
        hidden: Arc::clone(&hidden),
        network,
    });
    let servers = vec![
        Server::new(
            tokio::spawn(Arc::clone(&resolver).serve(resolver_at)),
            "its resolver has stopped; names no longer resolve in it",
        ),
        Server::new(
            tokio::spawn(verifier.serve(verified.0)),
            "connections whose host is to be verified fail from now on",
        ),
    ];
    Served { resolver, hidden, servers, room }
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

    /// Its first process, as the host sees it; of a cgroup that is somebody else's any one, zero if there is
    /// none.
    #[must_use]
    pub fn first_process(&self) -> u32 {
        match &self.life {
            Life::Command { process, .. } => process.pid().as_raw().cast_unsigned(),
            Life::Cgroup => {
                self.cgroup.processes().ok().and_then(|all| all.first().copied()).unwrap_or(0)
            }
        }
    }

    /// Whether its first process is this child.
    #[must_use]
    pub fn is_child(&self, pid: u32) -> bool {
        match &self.life {
            Life::Command { process, .. } => process.pid().as_raw().cast_unsigned() == pid,
            Life::Cgroup => false,
        }
    }

    /// Whether a signal tells of its first process's end.
    #[must_use]
    pub fn has_child(&self) -> bool {
        matches!(&self.life, Life::Command { process, .. } if process.is_child())
    }

    /// Whether its cgroup is somebody else's.
    #[must_use]
    pub fn is_attached(&self) -> bool {
        matches!(self.life, Life::Cgroup)
    }

    /// Whether nobody is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.cgroup.processes().is_ok_and(|processes| processes.is_empty())
    }

    /// Sends its first process a signal; where the cgroup is somebody else's, all that are in it.
    ///
    /// # Errors
    /// It has ended.
    pub fn signal(&self, signal: Signal) -> std::io::Result<()> {
        match &self.life {
            Life::Command { process, .. } => process.signal(signal),
            Life::Cgroup => attach::signal(&self.cgroup, signal),
        }
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

    /// The files of its own policy.
    #[must_use]
    pub fn texts(&self) -> &[Text] {
        &self.policy.texts
    }

    /// The files of the host's policy, where that is in force in its place.
    #[must_use]
    pub fn global(&self) -> Option<&[Text]> {
        self.policy.global.as_deref()
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
        match &mut self.life {
            Life::Command { process, .. } => process.try_wait(),
            Life::Cgroup => Ok((!self.cgroup.is_there()).then_some(End::Unknown)),
        }
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
        let (process, born) = match &self.life {
            Life::Command { process, born, .. } => (process.pid().as_raw().cast_unsigned(), *born),
            Life::Cgroup => (0, 0),
        };
        Lasting {
            name: self.name.clone(),
            process,
            born,
            attached: self.is_attached().then(|| self.cgroup.path().to_owned()),
            since,
            command: self.told.command.clone(),
            texts: self.policy.texts.clone(),
            global: self.policy.global.clone(),
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
            Request::ApproveRule { rule } => {
                let change = self.policy.approve(kernel, &rule);
                self.changed(recorder, change)
            }
            Request::WithdrawRule { rule } => {
                let change = self.policy.withdraw(kernel, &rule);
                self.changed(recorder, change)
            }
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
            if !self.held.is_named(id) {
                return HeldConnections::not_named(id);
            }
            let change = self.policy.approve(kernel, &connection.rule);
            match self.changed(recorder, change) {
                Answer::Changed { generation, .. } => in_force = Some(generation),
                other => return other,
            }
        }
        self.held.approve(id, in_force, &self.policy.resolver, recorder)
    }

    /// The policy in force, as somebody has written it.
    #[must_use]
    pub fn written(&self) -> Written {
        Written { texts: self.policy.texts.clone(), approved: self.policy.approved.clone() }
    }

    /// Puts a policy in force that was before, because the one since counts for nothing.
    pub(super) fn go_back(
        &mut self,
        kernel: &mut KernelSide,
        recorder: &mut Recorder,
        before: Written,
    ) -> Result<(), String> {
        let change = self.policy.change(kernel, before.texts, before.approved);
        match self.changed(recorder, change) {
            Answer::Changed { .. } => Ok(()),
            Answer::Refused { why, .. } => Err(why),
            other => Err(format!("{other:?}")),
        }
    }

    /// Puts the host's policy in force in place of its own, or its own again.
    pub(super) fn go_under(
        &mut self,
        kernel: &mut KernelSide,
        recorder: &mut Recorder,
        global: Option<Vec<Text>>,
    ) -> Answer {
        let change = self.policy.go_under(kernel, global);
        self.changed(recorder, change)
    }

    fn changed(&self, recorder: &mut Recorder, change: Change) -> Answer {
        recorder.policy_changed(&change, self.policy.in_force.image().audit_only());
        change.answer
    }

    /// Serves it no longer. Gives what has to be taken back, and what its last record says.
    pub(super) fn stop(self) -> (Beginning, Told) {
        let is_own = !self.is_attached();
        let is_over = matches!(
            &self.life,
            Life::Command { process, is_apart: true, .. } if process.is_waited_for()
        );
        let Self { number, cgroup, mut told, policy, servers, .. } = self;
        drop(servers);
        policy.resolver.clear();
        told.audit_only = policy.in_force.image().audit_only();
        let written = [policy.written].into_iter().chain(policy.outgoing).collect();
        (
            Beginning {
                number,
                cgroup,
                written,
                named: policy.named,
                is_own,
                is_begun: true,
                is_over,
            },
            told,
        )
    }
}

/// A policy as somebody has written it, and what was approved beside it.
#[derive(Clone, Debug)]
pub struct Written {
    texts: Vec<Text>,
    approved: String,
}

fn audit_only(in_force: &Arc<PolicyInForce>) -> Arc<dyn Fn() -> bool + Send + Sync> {
    let in_force = Arc::clone(in_force);
    Arc::new(move || in_force.audit_only())
}

fn admits_hidden(in_force: &Arc<PolicyInForce>) -> Arc<AdmitsHidden> {
    let in_force = Arc::clone(in_force);
    Arc::new(move |event, name| in_force.admits_hidden(event, name))
}

/// Where it was started, if anything was.
fn workdir(is_attached: bool, workdir: &Path) -> Option<String> {
    (!is_attached).then(|| workdir.display().to_string())
}

impl Told {
    pub(super) fn of(run: &Run) -> Self {
        let words = run.invocation.command.iter();
        Self {
            command: words.map(|word| word.to_string_lossy().into_owned()).collect(),
            workdir: workdir(run.is_attached, &run.invocation.workdir),
            policy: run.policy.clone(),
            audit_only: run.image.audit_only(),
        }
    }

    /// The record of a sandbox's start or stop.
    pub(super) fn record(
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
                command: mask::words(&self.command),
                workdir: self.workdir.clone().filter(|_| matches!(action, "start" | "resume")),
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

    pub(super) fn of_lasting(lasting: &Lasting, audit_only: bool) -> Self {
        let texts = lasting.global.as_ref().unwrap_or(&lasting.texts);
        let policy = texts.first().map(|text| text.name.clone()).unwrap_or_default();
        let workdir = workdir(lasting.settled.is_attached, &lasting.settled.workdir);
        Self { command: lasting.command.clone(), workdir, policy, audit_only }
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

//! The start of one sandbox: its policy into the kernel, its command into its cgroup or an identity to who
//! is there, and what has to be taken back where that fails.

use std::sync::Arc;
use std::time::SystemTime;

use clawbox_common::rule::SandboxState;

use super::attach;
use super::ceiling::Ceiling;
use super::cgroup::Cgroup;
use super::change::{KernelSide, LivePolicy, Settled};
use super::child::{self, Invocation};
use super::connections::{Cut, Reset};
use super::held::HeldConnections;
use super::host::Host;
use super::in_force::PolicyInForce;
use super::launch::again::Kept;
use super::launch::{self, BackstopReport, PidNamespace};
use super::named::Named;
use super::objects::Objects;
use super::ready::{Launch, Ready, Start};
use super::recorder::Decisions;
use super::run::{LsmUse, Run, RunError, system};
use crate::audit::trail::Draft;
use crate::compile::MapImage;
use crate::kernel::enforcer::Generation;
use crate::kernel::enforcer::cgroups::Whom;
use crate::kernel::lsm::LsmState;

use super::life::{Life, Sandbox, Served, Told, recorder, serve};

/// What has to be taken back of a sandbox, however far its start came.
pub(super) struct Beginning {
    pub(super) number: u32,
    pub(super) cgroup: Cgroup,
    /// The maps' entries of its policies.
    pub(super) written: Vec<Generation>,
    /// While these are open nothing else gets the inode numbers of what its policies name.
    pub(super) named: Named,
    /// Whether the cgroup is clawbox's, to be removed.
    pub(super) is_own: bool,
    /// Whether anything of it is in the kernel, so that whoever is in the cgroup has to end with it.
    pub(super) is_begun: bool,
    /// Whether none of its processes is left, wherever they went: the first has been waited for, and was that of a
    /// pid namespace. The kernel ends whoever else is in that, and has the first wait for them
    /// (`zap_pid_ns_processes`, kernel/pid_namespace.c).
    pub(super) is_over: bool,
}

impl Beginning {
    pub(super) fn new(number: u32, cgroup: Cgroup, is_own: bool) -> Self {
        let (written, named) = Default::default();
        Self { number, cgroup, written, named, is_own, is_begun: is_own, is_over: false }
    }

    /// Puts the cgroup under the policy, all of which is in the kernel's tables by then.
    fn govern(
        &mut self,
        kernel: &mut KernelSide,
        image: &MapImage,
        objects: &Objects,
        state: &SandboxState,
    ) -> Result<(), RunError> {
        kernel.generation = kernel.generation.max(image.generation());
        let enforcer = &mut kernel.enforcer;
        self.written.push(enforcer.write_generation(image, &objects.files, &objects.names)?);
        enforcer.write_identities(&self.named.latest.binaries, &self.named.latest.scripts)?;
        enforcer.set_state(self.number, state)?;
        Ok(enforcer.admit_cgroup(self.cgroup.id(), self.number)?)
    }

    /// Puts the cgroup under the policy, then starts the command in it, or has those who are there be
    /// somebody.
    pub(super) fn go_on(
        &mut self,
        host: &mut Host,
        run: Run,
        ready: Ready,
    ) -> Result<Sandbox, RunError> {
        let lsm = host.lsm().clone();
        accept(&run, &lsm)?;
        let ports = ready.sockets.ports();
        let Ready { trail, upstream, sockets, mounts, start, identities, objects, .. } = ready;
        let state = run.image.state(ports, run.audit_level.flags(), lsm.is_active());
        let paths = identities.paths.clone();
        self.named.hold(&identities, &objects);
        // Before anything is changed: it can fail, and then all stays as it was.
        let frozen = run.is_attached.then(|| self.cgroup.freeze()).transpose()?;
        self.is_begun = true;
        self.govern(&mut host.kernel, &run.image, &objects, &state)?;
        let (told, settled) = (Told::of(&run), Settled::of(&run));
        let in_force = PolicyInForce::new(run.image);
        let decisions = Decisions::of(self.number, host.feed.stirred());
        let recorder = recorder(&in_force, Arc::clone(&decisions), mounts, paths, trail);
        host.recorders.add(self.number, recorder);
        run.limits.apply(&self.cgroup)?;
        let started = SystemTime::now();
        let begun = match start {
            Start::Command(launch) => self.spawn(host, &run.invocation, &run.backstops, *launch)?,
            Start::Attached(whom) => self.identify(host, &in_force.image(), &state, whom)?,
        };
        drop(frozen);
        if let Some(recorder) = host.recorders.of(self.number) {
            let record = told.record(begun.action, begun.layers, None);
            recorder.trail.add(Draft { time: Some(started), ..record });
            recorder.reset(&begun.resets);
        }
        let Served { resolver, hidden, servers, room } =
            serve(host, self.number, &in_force, decisions, upstream, sockets);
        run.names.into_iter().for_each(|names| resolver.names().keep_at(names));
        let policy = LivePolicy {
            sandbox: self.number,
            texts: run.texts,
            global: run.global,
            approved: String::new(),
            ceiling: begun.ceiling,
            settled,
            in_force,
            resolver,
            hidden,
            ports,
            named: std::mem::take(&mut self.named),
            outgoing: None,
            written: self.written.pop().unwrap_or_default(),
            attached: run.is_attached.then(|| self.cgroup.clone()),
        };
        Ok(Sandbox {
            number: self.number,
            name: run.name,
            cgroup: self.cgroup.clone(),
            life: begun.life,
            since: started,
            told,
            dns: run.dns,
            patience: run.patience,
            kept: begun.kept,
            policy,
            held: HeldConnections::new(room, run.patience),
            servers,
        })
    }

    fn spawn(
        &self,
        host: &mut Host,
        invocation: &Invocation,
        asked: &launch::Request,
        launch: Launch,
    ) -> Result<Begun, RunError> {
        let lsm = host.lsm().clone();
        let judges = lsm.is_active();
        let Launch { program, backstops, mut report } = launch;
        let launcher = &mut host.launcher;
        let is_apart = matches!(backstops.entry.pid_namespace(), PidNamespace::New);
        let process =
            child::spawn(launcher, invocation, program, &self.cgroup, &backstops, judges)?;
        backstops.correct(&mut report);
        let kept = backstops.keep(&report).map_err(system("keep the backstops"))?;
        if let Some(recorder) = host.recorders.of(self.number) {
            recorder.started(process.pid().as_raw().cast_unsigned());
        }
        Ok(Begun {
            action: "start",
            layers: layers(&lsm, &report),
            ceiling: Ceiling::new(asked, &report, judges),
            life: Life::Command { born: process.born(), process, is_apart },
            resets: Vec::new(),
            kept: Some(kept),
        })
    }

    fn identify(
        &self,
        host: &mut Host,
        image: &MapImage,
        state: &SandboxState,
        whom: Whom,
    ) -> Result<Begun, RunError> {
        host.held = attach::held(host.identified(), &self.cgroup)?;
        let walk = attach::identify(&mut host.kernel, self.number, whom)?;
        let resets = host.kernel.connections.reset(self.number, image, state, Cut::Clients);
        if let Some(recorder) = host.recorders.of(self.number) {
            let identified = host.kernel.connections.identified();
            recorder.attached(&self.cgroup.processes()?, identified);
        }
        let hooks = serde_json::json!({ "layer": "cgroup.sockets", "state": "full" });
        let found = serde_json::json!({
            "layer": "identities",
            "identified": walk.identified,
            "unverified": walk.unverified,
            "left_out": walk.left_out,
        });
        let layers = [hooks, found].into_iter().chain(host.lsm().layers()).collect();
        let (ceiling, life) = (Ceiling::open(), Life::Cgroup);
        Ok(Begun { action: "attach", layers, ceiling, life, resets, kept: None })
    }
}

/// What came of a start.
struct Begun {
    action: &'static str,
    layers: Vec<serde_json::Value>,
    ceiling: Ceiling,
    life: Life,
    resets: Vec<Reset>,
    /// For further commands.
    kept: Option<Kept>,
}

/// Says what this kernel does not do, and refuses where the run cannot be without.
fn accept(run: &Run, lsm: &LsmState) -> Result<(), RunError> {
    if lsm.is_active() {
        return Ok(());
    }
    if run.is_attached && run.needs_lsm {
        return Err(RunError::NothingHolds { why: lsm.why.clone() });
    }
    if run.lsm == LsmUse::Auto && !run.is_attached {
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

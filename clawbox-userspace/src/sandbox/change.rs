//! Changes the policy of a running sandbox: all of the new one is written beside the old, then one
//! write puts it in force. What cannot change while it runs is refused, part by part.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use clawbox_common::rule::SandboxState;
use clawbox_common::subject::FileId;

use super::attach::view;
use super::ceiling::Ceiling;
use super::cgroup::Cgroup;
use super::connections::{Connections, Cut, Reset};
use super::control::{Answer, Text};
use super::identities::Identities;
use super::in_force::PolicyInForce;
use super::named::{Named, Slots};
use super::objects::Objects;
use super::run::Run;
use super::view::View;
use crate::audit::AuditLevel;
use crate::compile::{AgentPorts, MapImage, compile_after};
use crate::dns::{Resolver, hosts_file, lines_of};
use crate::gateway::HiddenConnections;
use crate::kernel::enforcer::{Enforcer, Generation};
use crate::kernel::parts::Parts;
use crate::policy::model::{Located, Mode, Policy};
use crate::policy::{Diagnostic, Severity, load_texts};

/// What a start has settled, whatever the policies after it say.
#[derive(Clone, Debug, serde::Deserialize, serde::Serialize)]
pub struct Settled {
    /// `--mode`, which stands over every policy's own.
    pub mode: Option<Mode>,
    /// What of the allowed goes into the trail.
    pub audit: AuditLevel,
    /// `run_as_user` and `run_as_group` of the first policy.
    pub accounts: [Option<String>; 2],
    /// The directory that `include_workdir` means.
    pub workdir: PathBuf,
    /// Trees that are writable under every policy: a `/tmp` of the sandbox's own.
    pub always_writable: Vec<PathBuf>,
    /// Every tree that the sandbox could write when it was started.
    pub ever_writable: Vec<PathBuf>,
    /// Rules that a policy may compile to, where whoever started it is bounded.
    #[serde(default)]
    pub most_rules: Option<u32>,
    /// Whether its cgroup is somebody else's. Then there are no backstops, and what its policies name is
    /// what its processes see by that name.
    #[serde(default)]
    pub is_attached: bool,
}

impl Settled {
    /// By a start.
    #[must_use]
    pub fn of(run: &Run) -> Self {
        let own_tmp = run.backstops.own_tmp();
        Self {
            mode: run.mode,
            audit: run.audit_level,
            accounts: run.accounts.clone(),
            workdir: run.invocation.workdir.clone(),
            ever_writable: run.backstops.read_write.iter().chain(&own_tmp).cloned().collect(),
            always_writable: own_tmp.into_iter().collect(),
            most_rules: run.most_rules,
            is_attached: run.is_attached,
        }
    }

    fn too_many_rules(&self, image: &MapImage) -> Option<String> {
        too_many_rules(self.most_rules, image)
    }
}

/// Why a policy is larger than it may be, if it is.
#[must_use]
pub fn too_many_rules(most: Option<u32>, image: &MapImage) -> Option<String> {
    let (rules, most) = (image.rules.len(), most?);
    (rules > most as usize)
        .then(|| format!("the policy has {rules} rules, and `limits.rules_per_sandbox` is {most}"))
}

/// The accounts of a policy, as a start settles them.
#[must_use]
pub fn accounts(policy: &Policy) -> [Option<String>; 2] {
    [&policy.process.user, &policy.process.group]
        .map(|account| account.as_ref().map(|account| account.value.to_string()))
}

/// What stands before entries of `network_policies` to make them a preset.
pub const APPROVED_HEAD: &str = "preset: { name: approved, description: Approved while running }\n\
     network_policies:\n";

/// A policy's files, and what was approved beside them.
#[must_use]
pub fn with_approved(mut texts: Vec<Text>, approved: &str) -> Vec<Text> {
    if !approved.is_empty() {
        let text = format!("{APPROVED_HEAD}{approved}");
        texts.push(Text { name: "approved".to_owned(), text });
    }
    texts
}

/// What was approved without one of its entries; `None` where that is not one.
fn without(approved: &str, entry: &str) -> Option<String> {
    let is_key = |text: &str| text.starts_with("  ") && !text.starts_with("   ");
    let begins = |at: &usize| *at == 0 || approved.as_bytes().get(at - 1) == Some(&b'\n');
    let is_whole = is_key(entry) && entry.ends_with('\n');
    let (at, _) = approved.match_indices(entry).find(|(at, _)| is_whole && begins(at))?;
    let (before, rest) = (approved.get(..at)?, approved.get(at + entry.len()..)?);
    // A part of an entry is none.
    let ends = rest.is_empty() || is_key(rest);
    ends.then(|| format!("{before}{rest}"))
}

/// Why a sandbox's own policy does not change.
const UNDER_GLOBAL: &str = "the host's policy is in force in place of the sandbox's own, which nobody changes \
                            meanwhile; `clawbox policy get --global` prints it, `clawbox policy delete \
                            --global` ends it";

/// What becomes of the parts of a policy that the start did not give.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Beyond {
    /// Nothing is changed.
    Refuse,
    /// They are told, and the rest comes into force.
    Tell,
}

/// The answer, programs that the policy names, and sockets that it does not allow.
type Made = (Answer, Vec<(FileId, PathBuf)>, Vec<Reset>);

/// The kernel side that sandboxes share.
pub struct KernelSide {
    /// Programs and maps.
    pub enforcer: Enforcer,
    /// Who is who, and sockets that are open.
    pub connections: Connections,
    /// The last policy generation that was given out.
    pub generation: u32,
}

/// A running sandbox's policy, and what it takes to replace it.
pub struct LivePolicy {
    /// Whose.
    pub sandbox: u32,
    /// What names and events are judged by.
    pub in_force: Arc<PolicyInForce>,
    /// Holds the synthetic addresses.
    pub resolver: Arc<Resolver>,
    /// Connections on which a name is hidden.
    pub hidden: Arc<HiddenConnections>,
    /// Its ports.
    pub ports: AgentPorts,
    /// The files of its own policy.
    pub texts: Vec<Text>,
    /// The host's policy, where that is in force in its place.
    pub global: Option<Vec<Text>>,
    /// What was approved for as long as the sandbox runs: entries of `network_policies`.
    pub approved: String,
    /// What the launch did not give.
    pub ceiling: Ceiling,
    /// What the launch settled.
    pub settled: Settled,
    /// What its policies have named.
    pub(super) named: Named,
    /// The maps' entries of the policy in force.
    pub written: Generation,
    /// Those of the one before, which a program that began under it may still read.
    pub outgoing: Option<Generation>,
    /// Where the sandbox is, if that is somebody else's.
    pub attached: Option<Cgroup>,
}

/// A change that was made, for the trail.
pub struct Change {
    /// The answer for who asked.
    pub answer: Answer,
    /// Programs that the new policy names.
    pub programs: Vec<(FileId, PathBuf)>,
    /// The policy's file; empty if it cannot be known.
    pub policy: String,
    /// Sockets that it does not allow any more.
    pub resets: Vec<Reset>,
}

impl Change {
    fn of(made: Result<Made, Answer>, texts: &[Text]) -> Self {
        match made {
            Ok((answer, programs, resets)) => {
                Self { programs, resets, ..Self::not_made(answer, texts) }
            }
            Err(answer) => Self::not_made(answer, texts),
        }
    }

    fn not_made(answer: Answer, texts: &[Text]) -> Self {
        let policy = texts.first().map(|text| text.name.clone()).unwrap_or_default();
        Self { answer, programs: Vec::new(), policy, resets: Vec::new() }
    }

    fn is_made(&self) -> bool {
        matches!(self.answer, Answer::Changed { .. })
    }
}

impl LivePolicy {
    /// Replaces the policy. Whatever goes wrong leaves the old one in force.
    pub fn replace(&mut self, kernel: &mut KernelSide, texts: Vec<Text>) -> Change {
        let approved = self.approved.clone();
        self.change(kernel, texts, approved)
    }

    /// Adds an entry for `network_policies` that stays whatever policy follows.
    pub fn approve(&mut self, kernel: &mut KernelSide, entry: &str) -> Change {
        let mut approved = self.approved.clone();
        approved.push_str(entry);
        self.change(kernel, self.texts.clone(), approved)
    }

    /// Takes back an entry that was added so.
    pub fn withdraw(&mut self, kernel: &mut KernelSide, entry: &str) -> Change {
        match without(&self.approved, entry) {
            Some(approved) => self.change(kernel, self.texts.clone(), approved),
            None => {
                let why = "nothing like that is approved; it may have been taken back already";
                Change::not_made(refused(why.to_owned()), &self.texts)
            }
        }
    }

    /// The path by which the policy in force names the very program that a process runs; `None` if by
    /// none, or by a glob, which names others too.
    #[must_use]
    pub fn written_for(&self, kernel: &KernelSide, process: u32) -> Option<String> {
        let own = kernel.connections.subject(process)?.own;
        let image = self.in_force.image();
        let mut named = image.binaries.iter().enumerate().filter(|(slot, _)| own.contains(*slot));
        named.find_map(|(_, entry)| {
            entry.pattern.exact().map(|path| path.to_string_lossy().into_owned())
        })
    }

    /// Replaces the policy and what was approved beside it.
    pub(super) fn change(
        &mut self,
        kernel: &mut KernelSide,
        texts: Vec<Text>,
        approved: String,
    ) -> Change {
        if self.global.is_some() {
            return Change::not_made(refused(UNDER_GLOBAL.to_owned()), &texts);
        }
        let made = self.set(kernel, with_approved(texts.clone(), &approved), Beyond::Refuse);
        let change = Change::of(made, &texts);
        if change.is_made() {
            self.texts = texts;
            self.approved = approved;
        }
        change
    }

    /// Puts the host's policy in force in place of its own, or its own again. What the start did not give
    /// is told and stays refused: the rest has to hold all the same.
    pub fn go_under(&mut self, kernel: &mut KernelSide, global: Option<Vec<Text>>) -> Change {
        let before = std::mem::replace(&mut self.global, global);
        let change = self.put_again(kernel);
        if !change.is_made() {
            self.global = before;
        }
        change
    }

    /// Puts what is to be in force in force.
    pub(super) fn put_again(&mut self, kernel: &mut KernelSide) -> Change {
        let own = || with_approved(self.texts.clone(), &self.approved);
        let texts = self.global.clone().unwrap_or_else(own);
        let made = self.set(kernel, texts.clone(), Beyond::Tell);
        Change::of(made, &texts)
    }

    fn set(
        &mut self,
        kernel: &mut KernelSide,
        texts: Vec<Text>,
        beyond: Beyond,
    ) -> Result<Made, Answer> {
        let since = Instant::now();
        let before = self.in_force.image();
        let generation = kernel.generation + 1;
        // Before the new one is written, for the room. It takes as long as it takes to read the text of as many.
        let outgoing = self.outgoing.take();
        let removing = outgoing.map(|outgoing| kernel.enforcer.begin_to_remove(&outgoing));
        let made = self.make(texts, generation, &before);
        // No part of it fails.
        let _ = removing.map(Parts::end);
        let (policy, image) = made?;
        let bound = self.settled.too_many_rules(&image).filter(|_| self.global.is_none());
        if let Some(why) = bound {
            return Err(refused(why));
        }
        let mut writable = self.settled.always_writable.clone();
        if policy.filesystem.include_workdir() && !self.settled.is_attached {
            writable.push(self.settled.workdir.clone());
        }
        let parts = self.needs_a_restart(&policy, &before, &image, &writable);
        if beyond == Beyond::Refuse && !parts.is_empty() {
            let why = "a part of the policy takes effect only when the sandbox is started again; \
                       nothing was changed";
            return Err(Answer::Refused { why: why.to_owned(), parts });
        }
        let (identities, objects) = self.find(&image, &writable)?;
        if !objects.unclosed.is_empty() {
            let why =
                "`filesystem_policy.deny` cannot be held; close a directory around it instead";
            return Err(Answer::Refused { why: why.to_owned(), parts: objects.unclosed });
        }
        let late =
            parts.iter().map(|part| format!("only when the sandbox is started again: {part}"));
        let problems = objects.problems.iter().cloned();
        let warnings = late.chain(identities.problems_of(&image)).chain(problems).collect();
        let programs = identities.paths.clone();
        self.put_in_force(kernel, image, &identities, &objects).map_err(|error| {
            refused(format!("the kernel did not take the new policy, the old one stays: {error}"))
        })?;
        self.named.hold(&identities, &objects);
        let microseconds = u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX);
        let image = self.in_force.image();
        let state = self.state(kernel, &image);
        let resets = kernel.connections.reset(self.sandbox, &image, &state, Cut::All(&self.hidden));
        let connections_reset = resets.len();
        let answer = Answer::Changed { generation, microseconds, connections_reset, warnings };
        Ok((answer, programs, resets))
    }

    /// A policy and what it compiles to after the one of before.
    fn make(
        &self,
        texts: Vec<Text>,
        generation: u32,
        before: &MapImage,
    ) -> Result<(Policy, MapImage), Answer> {
        let policy = self.load(texts)?;
        let mut image = compile_after(&policy, generation, &before.binaries).map_err(mistakes)?;
        image.open_hosts(lines_of(&hosts_file()));
        Ok((policy, image.shared()))
    }

    /// What a policy names, as the sandbox sees it.
    fn find(
        &self,
        image: &MapImage,
        writable: &[PathBuf],
    ) -> Result<(Identities, Objects), Answer> {
        let view = match &self.attached {
            Some(cgroup) => view(cgroup, &[]).map_err(|error| refused(error.to_string()))?,
            None => View::default(),
        };
        let failed = |error| refused(format!("cannot look at what the policy names: {error}"));
        let mounts = view.read_mounts().map_err(failed)?;
        let patterns = image.binaries.iter().map(|entry| &entry.pattern);
        let found = view.within(|| {
            let writable_ever = &self.settled.ever_writable;
            let identities = Identities::find(self.sandbox, &mounts, patterns, writable_ever);
            (identities, Objects::find(image, &mounts, writable))
        });
        found.map_err(failed)
    }

    fn state(&self, kernel: &KernelSide, image: &MapImage) -> SandboxState {
        image.state(self.ports, self.settled.audit.flags(), kernel.enforcer.lsm().is_active())
    }

    fn load(&self, texts: Vec<Text>) -> Result<Policy, Answer> {
        let texts: Vec<_> = texts.into_iter().map(|text| (text.name.into(), text.text)).collect();
        let loaded = load_texts(&texts).and_then(crate::policy::Loaded::enforceable);
        let mut policy = loaded.map_err(mistakes)?.policy;
        if let Some(mode) = self.settled.mode.filter(|_| self.global.is_none()) {
            policy.mode = Some(Located { value: mode, origin: policy.origin.clone() });
        }
        Ok(policy)
    }

    fn needs_a_restart(
        &self,
        policy: &Policy,
        before: &MapImage,
        image: &MapImage,
        writable: &[PathBuf],
    ) -> Vec<String> {
        let mut parts = self.ceiling.beyond(before, image, writable);
        if !self.settled.is_attached && accounts(policy) != self.settled.accounts {
            parts.push("process: a running sandbox keeps its user and group".to_owned());
        }
        parts
    }

    /// New entries, new names, the switch; then what nobody reads any more goes.
    fn put_in_force(
        &mut self,
        kernel: &mut KernelSide,
        image: MapImage,
        identities: &Identities,
        objects: &Objects,
    ) -> Result<(), crate::kernel::load::LoadError> {
        kernel.generation = image.generation();
        let state = self.state(kernel, &image);
        let written = kernel.enforcer.write_generation(&image, &objects.files, &objects.names)?;
        let KernelSide { enforcer, connections, .. } = kernel;
        let switched = enforcer
            .write_identities(&identities.binaries, &identities.scripts)
            .and_then(|()| enforcer.judge_open_files())
            .and_then(|()| {
                self.in_force.replace(image);
                // From here on nothing is waited for, so no question is answered in between.
                self.resolver.refresh();
                let resolver = &self.resolver;
                let grant = |name, real| resolver.grants(name, real);
                connections.renew(self.sandbox, state.policy, grant);
                enforcer.set_state(self.sandbox, &state)
            });
        if let Err(error) = switched {
            if self.in_force.image().generation() == state.policy {
                self.in_force.restore();
                self.resolver.refresh();
            }
            enforcer.remove_generation(&written);
            // The next policy gives the slots of this one to others.
            let Slots { binaries, scripts } = &self.named.latest;
            if let Err(error) = enforcer.hold_identities(self.sandbox, binaries, scripts) {
                tracing::error!("what a refused policy names is known on: {error}");
            }
            return Err(error);
        }
        self.resolver.forget_outdated();
        self.outgoing = Some(std::mem::replace(&mut self.written, written));
        Ok(())
    }
}

fn refused(why: String) -> Answer {
    Answer::Refused { why, parts: Vec::new() }
}

/// What a policy that does not load is answered with.
#[must_use]
pub fn mistakes(diagnostics: Vec<Diagnostic>) -> Answer {
    let errors = diagnostics.iter().filter(|found| found.severity == Severity::Error);
    Answer::DoesNotLoad { errors: errors.map(ToString::to_string).collect() }
}

#[cfg(test)]
mod tests {
    use super::without;

    #[test]
    fn what_is_taken_back_is_one_whole_entry_and_the_others_stay() {
        let entry = |key: &str| format!("  \"{key}\":\n    endpoints: [{{ host: a }}]\n");
        let (one, other) = (entry("one"), entry("other"));
        let both = format!("{one}{other}");
        assert_eq!(without(&both, &one).as_deref(), Some(other.as_str()));
        assert_eq!(without(&both, &other).as_deref(), Some(one.as_str()));
        assert_eq!(without(&one, &one).as_deref(), Some(""));
        for part in ["", "\n", "  \"one\":\n", "    endpoints: [{ host: a }]\n", "a }]\n"] {
            assert_eq!(without(&both, part), None, "{part:?}");
        }
        assert_eq!(without("", &one), None);
    }
}

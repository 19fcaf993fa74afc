//! What this build enforces of a policy on a given machine, part by part, and by which layer.
//! Pure: what it needs to know of the machine comes in as [`HostFacts`].

mod files;
mod network;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

use super::Loaded;
use super::diagnostic::Origin;
use super::model::{Account, Compatibility, Located, Policy, UnknownEndpoints};

/// What `check` has to know of the machine.
#[derive(Clone, Debug, Default)]
pub struct HostFacts {
    /// Whether the socket hooks can be attached: cgroup v2 and a kernel that has them.
    pub cgroup_hooks: bool,
    /// Whether BPF LSM programs can be attached.
    pub bpf_lsm: bool,
    /// Landlock's ABI; zero is none.
    pub landlock_abi: u32,
    /// The policy's accounts that exist here, and their numbers.
    pub accounts: BTreeMap<String, u32>,
    /// The policy's paths that exist here, with the user that owns each.
    pub owners: BTreeMap<PathBuf, u32>,
    /// How many files each of the policy's binary entries means here.
    pub binaries: BTreeMap<String, usize>,
    /// Files that a dynamic program opens before its first own instruction, symlinks resolved.
    pub needed_to_start: Vec<PathBuf>,
}

/// What enforces a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layer {
    /// BPF programs on the sandbox's cgroup.
    CgroupHooks,
    /// Those, and the sandbox's resolver for names.
    CgroupHooksAndResolver,
    /// And the agent, which reads what is said first on a connection.
    CgroupHooksResolverAndAgent,
    /// Landlock.
    Landlock,
    /// BPF LSM programs.
    Lsm,
    /// Those, and Landlock underneath.
    LsmAndLandlock,
    /// Credentials, dropped before exec.
    Credentials,
    /// Nothing in this build or on this machine.
    None,
}

impl Layer {
    /// The name in output.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::CgroupHooks => "cgroup hooks",
            Self::CgroupHooksAndResolver => "cgroup hooks, resolver",
            Self::CgroupHooksResolverAndAgent => "cgroup hooks, resolver, agent",
            Self::Landlock => "Landlock",
            Self::Lsm => "BPF LSM",
            Self::LsmAndLandlock => "BPF LSM, Landlock",
            Self::Credentials => "credentials",
            Self::None => "none",
        }
    }
}

/// How far a part is enforced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// As written.
    Full,
    /// Less than written.
    Partly,
    /// Not at all.
    Not,
    /// More is denied than written, because the exact rule cannot be enforced.
    Denied,
}

impl Status {
    /// The name in output.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Partly => "partly",
            Self::Not => "not",
            Self::Denied => "denied",
        }
    }
}

/// One part of a policy and what becomes of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Part {
    /// The part, as a path into the policy.
    pub part: String,
    /// Where it was written.
    #[serde(flatten)]
    pub origin: Origin,
    /// What enforces it.
    pub layer: Layer,
    /// How far.
    pub status: Status,
    /// Why not fully, or what else to know.
    pub detail: Option<String>,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {}: {} ({})",
            self.origin,
            self.status.name(),
            self.part,
            self.layer.name()
        )?;
        match &self.detail {
            Some(detail) => write!(f, ": {detail}"),
            None => Ok(()),
        }
    }
}

/// What becomes of a policy.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Every part.
    pub parts: Vec<Part>,
    /// What to know beside, about this machine.
    pub warnings: Vec<super::Diagnostic>,
}

impl Report {
    /// The parts that are not enforced as written.
    pub fn shortfalls(&self) -> impl Iterator<Item = &Part> {
        self.parts.iter().filter(|part| part.status != Status::Full)
    }

    /// Whether everything is enforced as written.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.shortfalls().next().is_none()
    }

    /// The parts for which `clawbox run` refuses this policy: none unless it has
    /// `compatibility: hard_requirement`.
    #[must_use]
    pub fn refusals(&self, policy: &Policy) -> Vec<&Part> {
        match policy.compatibility {
            Compatibility::BestEffort => Vec::new(),
            Compatibility::HardRequirement => self.shortfalls().collect(),
        }
    }

    fn add(
        &mut self,
        origin: &Origin,
        part: impl Into<String>,
        layer: Layer,
        status: Status,
        detail: Option<String>,
    ) {
        self.parts.push(Part { part: part.into(), origin: origin.clone(), layer, status, detail });
    }

    fn full(&mut self, origin: &Origin, part: impl Into<String>, layer: Layer) {
        self.add(origin, part, layer, Status::Full, None);
    }

    fn not(&mut self, origin: &Origin, part: impl Into<String>, detail: impl Into<String>) {
        self.add(origin, part, Layer::None, Status::Not, Some(detail.into()));
    }
}

/// Says what becomes of each part of a loaded file on this machine.
#[must_use]
pub fn assess(loaded: &Loaded, facts: &HostFacts) -> Report {
    let mut report = Report::default();
    let policy = &loaded.policy;
    if loaded.kind == super::Kind::Policy {
        files::filesystem(&mut report, policy, facts);
        process(&mut report, policy, facts);
    }
    for network in &policy.network {
        network::network_policy(&mut report, policy, network, facts);
    }
    network::middlewares(&mut report, policy);
    network::listen(&mut report, policy, facts);
    additions(&mut report, policy, facts);
    for (part, origin) in &loaded.ignored {
        report.not(origin, *part, "this build takes only the policy from a blueprint");
    }
    report
}

fn process(report: &mut Report, policy: &Policy, facts: &HostFacts) {
    for (key, account) in [
        ("process.run_as_user", &policy.process.user),
        ("process.run_as_group", &policy.process.group),
    ] {
        let Some(account) = account else { continue };
        let part = format!("{key} {}", account.value);
        if account_number(account, facts).is_some() {
            report.full(&account.origin, part, Layer::Credentials);
        } else {
            let what = format!("there is no {:?} here; run with --user", account.value.to_string());
            report.not(&account.origin, part, what);
        }
    }
}

/// The number of an account on this machine.
fn account_number(account: &Located<Account>, facts: &HostFacts) -> Option<u32> {
    match (account.value.id(), account.value.name()) {
        (Some(id), _) => Some(id),
        (_, Some(name)) => facts.accounts.get(name).copied(),
        (None, None) => None,
    }
}

/// What clawbox adds to the base language, apart from files and the network.
fn additions(report: &mut Report, policy: &Policy, facts: &HostFacts) {
    if let Some(execution) = &policy.execution {
        files::execution(report, execution, facts);
    }
    if let Some(sockets) = &policy.unix_sockets {
        files::unix_sockets(report, sockets, facts);
    }
    if let Some(limits) = &policy.limits {
        report.not(
            &limits.origin,
            "limits",
            "this build sets no cgroup limits; set them on the unit that starts clawbox",
        );
    }
    if let Some(unknown) = &policy.unknown_endpoints {
        match unknown.value {
            UnknownEndpoints::Deny => network::hooked(
                report,
                &unknown.origin,
                "unknown_endpoints: deny".to_owned(),
                Layer::CgroupHooks,
                facts,
            ),
            UnknownEndpoints::Ask => network::hooked(
                report,
                &unknown.origin,
                "unknown_endpoints: ask".to_owned(),
                Layer::CgroupHooksResolverAndAgent,
                facts,
            ),
        }
    }
    if let Some(mode) = &policy.mode
        && policy.audit_only()
    {
        report.warnings.push(super::Diagnostic::warning(
            mode.origin.clone(),
            "`mode: audit` lets every connection through and only records it",
            "write `mode: enforce` once the policy is complete",
        ));
    }
}

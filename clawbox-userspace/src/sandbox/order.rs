//! What a command is to be run under, as it was ordered: by arguments of `clawbox run`, or over the
//! daemon's socket. It becomes a [`Run`] once the policy is read and this host was looked at.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use clawbox_common::rule::TCP;

use super::change::accounts;
use super::child::Invocation;
use super::control::Text;
use super::host_facts;
use super::inherit::Inherit;
use super::launch::identity::IdentityError;
use super::launch::namespaces::Part;
use super::launch::{self, Identity};
use super::limits::Wanted;
use super::run::{LsmUse, Run};
use crate::audit::AuditLevel;
use crate::compile::files::Give;
use crate::compile::{MapImage, compile, compile_after};
use crate::dns::{hosts_file, lines_of};
use crate::kernel::lsm;
use crate::policy::enforceability::{HostFacts, assess};
use crate::policy::model::{Account, Compatibility, Located, Mode};
use crate::policy::{Diagnostic, Loaded, Policy, Severity, load_texts};

/// Why an order cannot be carried out.
#[derive(Debug, thiserror::Error)]
pub enum OrderError {
    /// The policy has mistakes.
    #[error("the policy does not load\n{0}")]
    Policy(String),
    /// The policy wants all of itself enforced.
    #[error(
        "the policy says `landlock.compatibility: hard_requirement`, and this is not enforced \
         here:\n{0}\nuse a kernel or a build that enforces it, or write `best_effort`"
    )]
    Unenforced(String),
    /// A sandbox cannot be called that.
    #[error(
        "`{0}` is no name for a sandbox; use 1 to 64 letters, digits, `-`, `_` and `.`, not beginning \
         with `.`"
    )]
    Name(String),
    /// See the source.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// An order.
#[derive(Clone, Debug)]
pub struct Order {
    /// The policy first, then presets.
    pub texts: Vec<Text>,
    /// The host's policy, which is in force in its place.
    pub global: Option<Vec<Text>>,
    /// What the sandbox is to be called; the command's name if nothing is said.
    pub name: Option<String>,
    /// Whom to run as, in place of the policy's `run_as_user`: `USER` or `USER:GROUP`.
    pub user: Option<String>,
    /// Where to start; absolute.
    pub workdir: PathBuf,
    /// Where the trail goes, if not to its usual place.
    pub audit: Option<PathBuf>,
    /// What of the allowed goes into it.
    pub audit_level: AuditLevel,
    /// In place of the policy's own.
    pub mode: Option<Mode>,
    /// What is to be made of BPF LSM.
    pub lsm: LsmUse,
    /// Whether what Landlock and seccomp refuse is told.
    pub refusals: bool,
    /// Whether which Unix sockets are connected to is told: a command is learned from.
    pub learning: bool,
    /// What of the host the command is to see.
    pub share: Vec<Part>,
    /// Name servers; the host's own if empty.
    pub dns: Vec<SocketAddr>,
    /// How long a connection waits for an answer.
    pub patience: Duration,
    /// Program and arguments; never empty.
    pub command: Vec<OsString>,
    /// Where trails go.
    pub trails: PathBuf,
    /// Whether the command runs as somebody else than root whatever the policy says.
    pub run_as: Option<Identity>,
    /// How much of the host it may use.
    pub limits: Wanted,
    /// Rules that its policies may compile to.
    pub most_rules: Option<u32>,
    /// What it gets of another process that asks for it.
    pub inherit: Option<Arc<Inherit>>,
}

impl Order {
    /// Reads the policy, and looks at this host. `generation` is the number of the policy.
    ///
    /// # Errors
    /// The policy does not load, or something that it names is not to be had.
    pub fn prepare(self, generation: u32) -> Result<Run, OrderError> {
        let InForce { loaded, file, image } =
            load_in_force(&self.texts, self.global.as_deref(), self.mode, generation)?;
        let name = match &self.name {
            Some(name) => valid_name(name)?.to_owned(),
            None => default_name(&self.command),
        };
        let user = self.user(&loaded.policy)?;
        // Nobody has written the one that is learned under, or could read it.
        let told = (!self.learning).then_some(file.as_str());
        let hard = report_shortfalls(&loaded, told, user.is_some(), self.lsm, true)?;
        let workdir = self.workdir;
        let also_writable =
            if loaded.policy.filesystem.include_workdir() { vec![workdir.clone()] } else { vec![] };
        let needs_lsm = self.lsm != LsmUse::Off
            && lsm::refusal().is_none()
            && image.files.iter().any(|grant| grant.whom.is_some());
        let backstops = launch::Request {
            shared: self.share,
            user: user.clone(),
            workdir: workdir.clone(),
            ..backstops(&loaded.policy, &image, &also_writable, needs_lsm)
        };
        Ok(Run {
            mode: self.mode,
            accounts: accounts(&loaded.policy),
            audit: self.audit.unwrap_or_else(|| self.trails.join(format!("{name}.jsonl"))),
            audit_level: self.audit_level,
            name,
            policy: file,
            image,
            invocation: Invocation {
                command: self.command,
                workdir,
                user,
                readable: readable(&backstops),
                inherit: self.inherit,
            },
            backstops,
            also_writable,
            lsm: self.lsm,
            refusals: self.refusals,
            learning: self.learning,
            needs_lsm: needs_lsm || hard,
            dns: self.dns,
            texts: self.texts,
            global: self.global,
            patience: self.patience,
            limits: self.limits,
            most_rules: self.most_rules,
            names: None,
            is_attached: false,
        })
    }

    /// Whom to become: what was ordered, else what the policy says.
    fn user(&self, policy: &Policy) -> Result<Option<Identity>, OrderError> {
        if let Some(identity) = &self.run_as {
            return Ok(Some(identity.clone()));
        }
        let (user, group) = match &self.user {
            Some(text) => match text.split_once(':') {
                Some((user, group)) => (Some(user.to_owned()), Some(group.to_owned())),
                None => (Some(text.clone()), None),
            },
            None => {
                let text = |account: &Option<Located<Account>>| {
                    account.as_ref().map(|account| account.value.to_string())
                };
                (text(&policy.process.user), text(&policy.process.group))
            }
        };
        let user = launch::identity::resolve(user.as_deref(), group.as_deref())?;
        if user.is_none() {
            tracing::warn!(
                "the command runs as root: neither the policy's run_as_user nor --user names a user"
            );
        }
        Ok(user)
    }
}

/// The policy that a sandbox starts under.
pub(super) struct InForce {
    /// It.
    pub loaded: Arc<Loaded>,
    /// The name of its file.
    pub file: String,
    /// Compiled.
    pub image: MapImage,
}

/// Reads a sandbox's own policy, and the one in force: that or the host's.
pub(super) fn load_in_force(
    own: &[Text],
    global: Option<&[Text]>,
    mode: Option<Mode>,
    generation: u32,
) -> Result<InForce, OrderError> {
    let file = |texts: &[Text]| texts.first().map(|text| text.name.clone()).unwrap_or_default();
    // One with mistakes is refused at once, and not when it takes the place of the host's.
    let loaded = load(own, mode)?;
    let Some(global) = global else {
        let image = compile_own(own, mode, &loaded, generation)?;
        return Ok(InForce { file: file(own), loaded, image });
    };
    let image = compile(&loaded.policy, generation).map_err(refused)?;
    let loaded = load(global, None)?;
    // Who is started under the host's is known by its program once its own policy is in force again.
    let mut image = compile_after(&loaded.policy, generation, &image.binaries).map_err(refused)?;
    image.open_hosts(lines_of(&hosts_file()));
    Ok(InForce { file: file(global), loaded, image: image.shared() })
}

/// Compiles a policy that [`load`] has read, unless it was the last one and means the same still.
fn compile_own(
    texts: &[Text],
    mode: Option<Mode>,
    loaded: &Loaded,
    generation: u32,
) -> Result<MapImage, OrderError> {
    let hosts = hosts_file();
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    let last = last.as_mut().filter(|last| last.texts == texts);
    if let Some(compiled) = last.as_ref().and_then(|last| last.compiled.as_ref())
        && (compiled.mode, &compiled.hosts) == (mode, &hosts)
    {
        return Ok(compiled.image.under(generation));
    }
    let mut image = compile(&loaded.policy, generation).map_err(refused)?;
    image.open_hosts(lines_of(&hosts));
    let image = image.shared();
    if let Some(last) = last {
        last.compiled = Some(LastCompiled { mode, hosts, image: image.clone() });
    }
    Ok(image)
}

/// Reads a policy; `mode` stands over its own.
pub(super) fn load(texts: &[Text], mode: Option<Mode>) -> Result<Arc<Loaded>, OrderError> {
    let mut loaded = read(texts)?;
    if let Some(value) = mode {
        let policy = &mut Arc::make_mut(&mut loaded).policy;
        policy.mode = Some(Located { value, origin: policy.origin.clone() });
    }
    Ok(loaded)
}

/// The policy that was read last, with its files: of many sandboxes that are started most have the same.
static LAST: Mutex<Option<Last>> = Mutex::new(None);

struct Last {
    texts: Vec<Text>,
    loaded: Arc<Loaded>,
    compiled: Option<LastCompiled>,
}

/// Compiled, and what else it depends on.
struct LastCompiled {
    mode: Option<Mode>,
    hosts: String,
    image: MapImage,
}

fn read(texts: &[Text]) -> Result<Arc<Loaded>, OrderError> {
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(last) = last.as_ref().filter(|last| last.texts == texts) {
        return Ok(Arc::clone(&last.loaded));
    }
    let named: Vec<(Arc<str>, String)> =
        texts.iter().map(|text| (text.name.as_str().into(), text.text.clone())).collect();
    let loaded = load_texts(&named).and_then(Loaded::enforceable).map_err(refused)?;
    let loaded = Arc::new(loaded);
    *last = Some(Last { texts: texts.to_vec(), loaded: Arc::clone(&loaded), compiled: None });
    Ok(loaded)
}

/// Forgets what was read last, where nothing is started for a while.
pub fn forget_last() {
    LAST.lock().unwrap_or_else(PoisonError::into_inner).take();
}

fn refused(diagnostics: Vec<Diagnostic>) -> OrderError {
    let errors = diagnostics.iter().filter(|found| found.severity == Severity::Error);
    OrderError::Policy(errors.map(ToString::to_string).collect::<Vec<_>>().join("\n"))
}

/// Says what of the policy in a file is not enforced here, and refuses where the policy asks for that. Gives
/// whether it would have to refuse without BPF LSM.
pub(super) fn report_shortfalls(
    loaded: &Loaded,
    file: Option<&str>,
    has_user: bool,
    lsm: LsmUse,
    has_backstops: bool,
) -> Result<bool, OrderError> {
    // That the programs load is seen when they are loaded.
    let may_have = lsm != LsmUse::Off && lsm::refusal().is_none();
    let mut facts = host_facts::gather(&loaded.policy, may_have);
    if !has_backstops {
        facts.landlock_abi = 0;
    }
    let report = assess(loaded, &facts);
    // A user given on the command line stands in for one that this host does not have.
    let stands_in = |part: &&crate::policy::enforceability::Part| {
        !(has_user && part.part.starts_with("process."))
    };
    let refusals: Vec<String> = report
        .refusals(&loaded.policy)
        .into_iter()
        .filter(stands_in)
        .map(|part| format!("{}: {}", part.origin, part.part))
        .collect();
    if !refusals.is_empty() {
        return Err(OrderError::Unenforced(refusals.join("\n")));
    }
    let short = report.shortfalls().filter(stands_in).count();
    if short > 0
        && let Some(file) = file
    {
        tracing::warn!(
            "{short} of {} parts of the policy are not enforced as written; `clawbox policy check \
             {}` names them",
            report.parts.len(),
            file
        );
    }
    let without = assess(loaded, &HostFacts { bpf_lsm: false, ..facts });
    Ok(without.refusals(&loaded.policy).into_iter().any(|part| stands_in(&part)))
}

/// What the backstops have to hold for a policy.
pub(super) fn backstops(
    policy: &Policy,
    image: &MapImage,
    also_writable: &[PathBuf],
    with_rules_for_binaries: bool,
) -> launch::Request {
    let paths = |wanted: Give| {
        let given = image.files.iter().filter(move |grant| {
            grant.give == wanted && (grant.whom.is_none() || with_rules_for_binaries)
        });
        given.map(|grant| grant.path.as_path().to_owned()).collect::<Vec<PathBuf>>()
    };
    let mut read_write = paths(Give::Writing);
    read_write.extend_from_slice(also_writable);
    let rules = image.rules.keys();
    let mut connect_ports: Vec<u16> =
        rules.filter(|rule| rule.transport == TCP).map(|rule| rule.port).collect();
    connect_ports.sort_unstable();
    connect_ports.dedup();
    let listen = policy.listen.as_ref();
    let bind_ports = listen
        .map(|listen| listen.value.ports().iter().map(|port| port.get()).collect())
        .unwrap_or_default();
    let hard_requirement = policy.compatibility == Compatibility::HardRequirement;
    let unix_sockets = paths(Give::Reaching);
    launch::Request {
        read_only: paths(Give::Reading),
        read_write,
        connect_ports,
        bind_ports,
        ping: image.opens_ping(),
        port_ceiling: hard_requirement,
        hard_requirement,
        needed: named_programs(policy).chain(unix_sockets.iter().cloned()).collect(),
        unix_sockets,
        ..launch::Request::default()
    }
}

/// The programs that rules name by their whole path.
fn named_programs(policy: &Policy) -> impl Iterator<Item = PathBuf> {
    let binaries = policy.network.iter().flat_map(|network| &network.binaries);
    let listed =
        policy.execution.iter().flat_map(|execution| execution.value.allow.iter()).flatten();
    binaries
        .map(|binary| &binary.pattern)
        .chain(listed.map(|program| &program.value))
        .filter_map(|pattern| pattern.exact().map(Path::to_owned))
}

/// The trees a sandbox may read, as the paths that programs in them resolve to.
fn readable(backstops: &launch::Request) -> Vec<PathBuf> {
    let trees = backstops.read_only.iter().chain(&backstops.read_write);
    trees.filter_map(|tree| std::fs::canonicalize(tree).ok()).collect()
}

/// A name that a sandbox, and so a file, can have.
///
/// # Errors
/// It cannot.
pub fn valid_name(name: &str) -> Result<&str, OrderError> {
    let fits = |character: char| character.is_ascii_alphanumeric() || "-_.".contains(character);
    if name.is_empty() || name.len() > 64 || name.starts_with('.') || !name.chars().all(fits) {
        return Err(OrderError::Name(name.to_owned()));
    }
    Ok(name)
}

/// The command's file name, as far as it can be a name.
fn default_name(command: &[OsString]) -> String {
    let program = command.first().map(Path::new).and_then(Path::file_name);
    let name = program.map(|name| name.to_string_lossy()).unwrap_or_default();
    valid_name(&name).map_or_else(|_| "sandbox".to_owned(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_safe_as_a_file_name() {
        for name in ["a", "openclaw-1", "A_b.c"] {
            assert!(valid_name(name).is_ok(), "{name}");
        }
        for name in ["", ".", "..", "a/b", "a b", "ä", &"x".repeat(65)] {
            assert!(valid_name(name).is_err(), "{name}");
        }
    }

    #[test]
    fn a_sandbox_without_a_name_is_called_after_its_command() {
        let name = |command: &str| default_name(&[command.into()]);
        assert_eq!(name("/usr/bin/curl"), "curl");
        assert_eq!(name("/usr/bin/["), "sandbox");
    }
}

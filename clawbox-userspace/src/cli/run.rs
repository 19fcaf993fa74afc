//! `clawbox run`: from arguments to a run, and from its outcome to an exit status.

use std::ffi::OsString;
use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use clawbox_common::rule::TCP;

use super::policy::host_facts;
use crate::audit::AuditLevel;
use crate::compile::files::Give;
use crate::compile::{MapImage, compile};
use crate::dns::Upstream;
use crate::kernel::lsm;
use crate::policy::enforceability::{HostFacts, assess};
use crate::policy::model::{Compatibility, Located, Mode};
use crate::policy::{Diagnostic, Loaded, Policy, Severity, load_texts, read_texts};
use crate::sandbox::change::accounts;
use crate::sandbox::child::{Invocation, status};
use crate::sandbox::control::Text;
use crate::sandbox::launch::namespaces::Part;
use crate::sandbox::launch::{self, Identity};
use crate::sandbox::run::{LsmUse, Outcome, Run, run};

/// Where a policy is looked for if none is named.
const DEFAULT_POLICY: &str = "/etc/clawbox/policy.yaml";

/// Where audit trails go if nothing else is said.
const TRAILS: &str = "/var/log/clawbox";

/// Run a command under a policy, enforced by the kernel
///
/// Loads the kernel programs for this one sandbox, starts the command in it, writes every
/// decision down, and removes everything when the command ends.
#[derive(Debug, Args)]
#[command(after_help = "\
Exit status: the command's own; 125 clawbox could not enforce or start; 126 the command cannot be
executed; 127 there is no such command; 128+N it was ended by signal N.

Examples:
  clawbox run --policy policy.yaml -- curl https://api.example.com/
  clawbox run --policy policy.yaml --preset presets/slack.yaml --user agent -- node agent.js
  clawbox run --policy policy.yaml --mode audit --audit - -- ./agent | jq .object")]
pub struct RunCommand {
    /// The policy [default: /etc/clawbox/policy.yaml]
    #[arg(long, value_name = "FILE", env = "CLAWBOX_POLICY")]
    policy: Option<PathBuf>,
    /// Preset to merge into the policy; may be repeated
    #[arg(long, value_name = "FILE")]
    preset: Vec<PathBuf>,
    /// The sandbox's name in the audit trail [default: the command's name]
    #[arg(long)]
    name: Option<String>,
    /// Whom to run as, in place of the policy's run_as_user
    #[arg(long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// Where to start [default: the current directory]
    #[arg(long, value_name = "DIR")]
    workdir: Option<PathBuf>,
    /// Where the audit trail goes; `-` is standard output [default: /var/log/clawbox/NAME.jsonl]
    #[arg(long, value_name = "FILE")]
    audit: Option<PathBuf>,
    /// What of the allowed uses of files goes into the trail; denials always do
    #[arg(long, value_enum, default_value_t)]
    audit_level: AuditLevel,
    /// Enforce, or only record what would be denied [default: the policy's]
    #[arg(long, value_enum)]
    mode: Option<ModeArgument>,
    /// What to make of the kernel's BPF LSM, which decides files by binary
    #[arg(long, value_enum, default_value_t)]
    lsm: LsmUse,
    /// Record what seccomp refuses, and where the kernel has no BPF LSM to tell it, what Landlock does.
    /// It costs every process of the host some time at each system call: off unless asked for
    #[arg(long)]
    refusals: bool,
    /// What of the host the command is to see, in place of one of its own; may be repeated
    #[arg(long, value_enum, value_name = "PART,...", value_delimiter = ',')]
    share: Vec<Part>,
    /// Name server to ask, in place of the host's; may be repeated
    #[arg(long, value_name = "ADDRESS[:PORT]", value_parser = parse_server)]
    dns: Vec<SocketAddr>,
    /// How long a connection that no rule names waits for an answer (`unknown_endpoints: ask`)
    #[arg(long, value_name = "TIME", default_value = "60s")]
    ask_timeout: humantime::Duration,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ModeArgument {
    Enforce,
    Audit,
}

fn parse_server(text: &str) -> Result<SocketAddr, String> {
    Upstream::parse_server(text).map_err(|error| error.to_string())
}

impl RunCommand {
    /// Runs the command.
    ///
    /// # Errors
    /// It could not be started under its policy; the status for that is [`status::FAILED`].
    pub fn run(self) -> anyhow::Result<ExitCode> {
        if !nix::unistd::geteuid().is_root() {
            bail!(
                "clawbox run loads programs into the kernel and needs root; run it with sudo, and \
                 say with --user whom the command is to run as"
            );
        }
        let prepared = self.prepare()?;
        let trail = prepared.audit.clone();
        match run(prepared) {
            Ok(outcome) => {
                tell_denials(&outcome, &trail);
                Ok(ExitCode::from(outcome.status))
            }
            Err(error) => {
                eprintln!("clawbox: {error}");
                Ok(ExitCode::from(error.status()))
            }
        }
    }

    fn prepare(self) -> anyhow::Result<Run> {
        let file = self.policy.clone().unwrap_or_else(|| DEFAULT_POLICY.into());
        let texts = read(&file, &self.preset, self.policy.is_none())?;
        let loaded = load_texts(&texts).and_then(Loaded::enforceable);
        let mut loaded = loaded.map_err(refused)?;
        if let Some(mode) = self.mode {
            let value = if mode == ModeArgument::Audit { Mode::Audit } else { Mode::Enforce };
            loaded.policy.mode = Some(Located { value, origin: loaded.policy.origin.clone() });
        }
        let name = match &self.name {
            Some(name) => valid_name(name)?.to_owned(),
            None => default_name(&self.command),
        };
        let user = self.user(&loaded.policy)?;
        let hard = report_shortfalls(&loaded, &file, user.is_some(), self.lsm)?;
        let image = compile(&loaded.policy, 1).map_err(refused)?;
        let workdir = match self.workdir {
            Some(directory) => std::path::absolute(directory)?,
            None => std::env::current_dir()
                .context("the current directory is gone; name one with --workdir")?,
        };
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
            mode: self.mode.and_then(|_| loaded.policy.mode.as_ref().map(|mode| mode.value)),
            accounts: accounts(&loaded.policy),
            audit: self.audit.unwrap_or_else(|| Path::new(TRAILS).join(format!("{name}.jsonl"))),
            audit_level: self.audit_level,
            name,
            policy: file.display().to_string(),
            image,
            invocation: Invocation {
                command: self.command,
                workdir,
                user,
                readable: readable(&backstops),
            },
            backstops,
            also_writable,
            lsm: self.lsm,
            refusals: self.refusals,
            needs_lsm: needs_lsm || hard,
            dns: self.dns,
            texts: texts
                .into_iter()
                .map(|(name, text)| Text { name: name.to_string(), text })
                .collect(),
            patience: self.ask_timeout.into(),
        })
    }

    /// Whom to become: what the command line says, else what the policy says.
    fn user(&self, policy: &Policy) -> anyhow::Result<Option<Identity>> {
        let (user, group) = match &self.user {
            Some(text) => match text.split_once(':') {
                Some((user, group)) => (Some(user.to_owned()), Some(group.to_owned())),
                None => (Some(text.clone()), None),
            },
            None => {
                let text = |account: &Option<Located<crate::policy::model::Account>>| {
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

/// Name and text of each file.
type Texts = Vec<(Arc<str>, String)>;

fn read(file: &Path, presets: &[PathBuf], by_default: bool) -> anyhow::Result<Texts> {
    if by_default && !file.exists() {
        bail!("no policy: name one with --policy FILE, or write `{}`", file.display());
    }
    read_texts(file, presets).map_err(refused)
}

fn refused(diagnostics: Vec<Diagnostic>) -> anyhow::Error {
    let errors: Vec<String> = diagnostics
        .iter()
        .filter(|diagnostic| diagnostic.severity == Severity::Error)
        .map(ToString::to_string)
        .collect();
    anyhow::anyhow!("the policy does not load\n{}", errors.join("\n"))
}

/// Says what of the policy is not enforced here, and refuses where the policy asks for that. Gives
/// whether it would have to refuse without BPF LSM.
fn report_shortfalls(
    loaded: &Loaded,
    file: &Path,
    has_user: bool,
    lsm: LsmUse,
) -> anyhow::Result<bool> {
    // That the programs load is seen when they are loaded.
    let may_have = lsm != LsmUse::Off && lsm::refusal().is_none();
    let facts = host_facts::gather(&loaded.policy, may_have);
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
        bail!(
            "the policy says `landlock.compatibility: hard_requirement`, and this is not enforced \
             here:\n{}\nuse a kernel or a build that enforces it, or write `best_effort`",
            refusals.join("\n")
        );
    }
    let short = report.shortfalls().filter(stands_in).count();
    if short > 0 {
        tracing::warn!(
            "{short} of {} parts of the policy are not enforced as written; `clawbox policy check \
             {}` names them",
            report.parts.len(),
            file.display()
        );
    }
    let without = assess(loaded, &HostFacts { bpf_lsm: false, ..facts });
    Ok(without.refusals(&loaded.policy).into_iter().any(|part| stands_in(&part)))
}

/// What the backstops have to hold for a policy.
fn backstops(
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

fn valid_name(name: &str) -> anyhow::Result<&str> {
    let fits = |character: char| character.is_ascii_alphanumeric() || "-_.".contains(character);
    if name.is_empty() || name.len() > 64 || name.starts_with('.') || !name.chars().all(fits) {
        bail!(
            "`{name}` is no name for a sandbox; use 1 to 64 letters, digits, `-`, `_` and `.`, not \
             beginning with `.`"
        );
    }
    Ok(name)
}

/// The command's file name, as far as it can be a name.
fn default_name(command: &[OsString]) -> String {
    let program = command.first().map(Path::new).and_then(Path::file_name);
    let name = program.map(|name| name.to_string_lossy()).unwrap_or_default();
    valid_name(&name).map_or_else(|_| "sandbox".to_owned(), str::to_owned)
}

/// For a person who watches; a script reads the trail.
fn tell_denials(outcome: &Outcome, trail: &Path) {
    if outcome.denied > 0 && std::io::stderr().is_terminal() {
        let noun = if outcome.denied == 1 { "denial" } else { "denials" };
        eprintln!("clawbox: {} {noun}; see {}", outcome.denied, trail.display());
    }
}

/// The status for an error before anything was started.
#[must_use]
pub fn failed() -> ExitCode {
    ExitCode::from(status::FAILED)
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

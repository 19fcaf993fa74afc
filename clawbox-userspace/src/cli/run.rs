//! `clawbox run`: from arguments to a run, and from its outcome to an exit status.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};

use super::complete;
use super::{denials, remote};
use crate::api::client::socket;
use crate::audit::AuditLevel;
use crate::dns::Upstream;
use crate::policy::model::Mode;
use crate::policy::{Diagnostic, Severity};
use crate::presets::{First, are_whole, read_texts};
use crate::sandbox::child::status;
use crate::sandbox::control::Text;
use crate::sandbox::launch::namespaces::Part;
use crate::sandbox::limits::{Cpus, Limits, Memory, Wanted};
use crate::sandbox::order::Order;
use crate::sandbox::run::{LsmUse, Outcome, run};
use crate::why::trail::Told;

/// Where a policy is looked for if none is named.
const DEFAULT_POLICY: &str = "/etc/clawbox/policy.yaml";

/// The number of a run's first policy.
const FIRST: u32 = 1;

/// Where audit trails go if nothing else is said.
pub(super) const TRAILS: &str = "/var/log/clawbox";

/// Run a command under a policy, enforced by the kernel
///
/// Where the daemon runs, it starts the command in a sandbox of its own, as you. Without it the kernel
/// programs are loaded for this one sandbox, which needs root, and removed when the command ends. Every
/// decision is written down.
#[derive(Debug, Args)]
#[command(after_help = "\
Exit status: the command's own; 125 clawbox could not enforce or start; 126 the command cannot be
executed; 127 there is no such command; 128+N it was ended by signal N.

Examples:
  clawbox run --policy policy.yaml -- curl https://api.example.com/
  clawbox run --policy policy.yaml --preset slack --user agent -- node agent.js
  clawbox run --profile openclaw --preset telegram -- openclaw gateway
  clawbox run --policy policy.yaml --mode audit --audit - -- ./agent | jq .object")]
pub struct RunCommand {
    /// The policy [default: /etc/clawbox/policy.yaml]
    #[arg(long, value_name = "FILE", env = "CLAWBOX_POLICY")]
    policy: Option<PathBuf>,
    /// A built-in policy for one agent, in place of a file (`clawbox profile list`)
    #[arg(long, value_name = "NAME", conflicts_with = "policy", add = complete::profiles())]
    profile: Option<String>,
    /// Preset to merge into the policy, a built-in one or a file; may be repeated
    #[arg(long, value_name = "NAME|FILE", add = complete::presets())]
    preset: Vec<String>,
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
    /// Load the kernel programs for this command alone, although the daemon runs; needs root
    #[arg(long)]
    standalone: bool,
    /// What of the host the command is to see, in place of one of its own; may be repeated
    #[arg(long, value_enum, value_name = "PART,...", value_delimiter = ',')]
    share: Vec<Part>,
    /// Name server to ask, in place of the host's; may be repeated
    #[arg(long, value_name = "ADDRESS[:PORT]", value_parser = parse_server)]
    dns: Vec<SocketAddr>,
    /// How long a connection that no rule names waits for an answer (`unknown_endpoints: ask`)
    #[arg(long, value_name = "TIME", default_value = "60s")]
    ask_timeout: humantime::Duration,
    /// Memory that it may use, such as 512M or 2G; all of the sandbox is ended where it wants more
    #[arg(long, value_name = "SIZE")]
    memory: Option<Memory>,
    /// Processors that it may use, such as 1.5
    #[arg(long, value_name = "NUMBER")]
    cpus: Option<Cpus>,
    /// Processes and threads that it may have
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(2..))]
    pids: Option<u32>,
    /// Do not say at the end what was denied
    #[arg(short, long)]
    quiet: bool,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum ModeArgument {
    Enforce,
    Audit,
}

impl ModeArgument {
    pub(super) fn mode(self) -> Mode {
        match self {
            Self::Audit => Mode::Audit,
            Self::Enforce => Mode::Enforce,
        }
    }
}

pub(super) fn parse_server(text: &str) -> Result<SocketAddr, String> {
    Upstream::parse_server(text).map_err(|error| error.to_string())
}

impl RunCommand {
    /// Runs the command.
    ///
    /// # Errors
    /// It could not be started under its policy; the status for that is [`status::FAILED`].
    pub fn run(self: Box<Self>) -> anyhow::Result<ExitCode> {
        self.by_daemon().unwrap_or_else(|command| command.alone())
    }

    /// Has the daemon run the command, and gives what came of it.
    ///
    /// # Errors
    /// The command itself, where no daemon runs that is to run it.
    pub fn by_daemon(self: Box<Self>) -> Result<anyhow::Result<ExitCode>, Box<Self>> {
        let asked = match self.daemon() {
            Ok(Some(socket)) => {
                let quiet = self.quiet;
                self.order().and_then(|order| remote::run(&socket, order, quiet))
            }
            Ok(None) => return Err(self),
            Err(error) => Err(error),
        };
        Ok(asked)
    }

    /// Whether its policy is as it stands, and no account has to be looked up for it.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        self.first().is_ok_and(|first| are_whole(&first, &self.preset))
    }

    /// Runs the command with kernel programs for it alone.
    fn alone(self) -> anyhow::Result<ExitCode> {
        if !nix::unistd::geteuid().is_root() {
            bail!(
                "clawbox run loads programs into the kernel and needs root; run it with sudo, and \
                 say with --user whom the command is to run as, or start the daemon, which lets \
                 everybody run sandboxes"
            );
        }
        let quiet = self.quiet;
        let prepared = self.order()?.prepare(FIRST)?;
        let trail = prepared.audit.clone();
        let written = std::fs::metadata(&trail).map_or(0, |file| file.len());
        match run(prepared) {
            Ok(outcome) => {
                if !quiet {
                    tell_denials(&outcome, &trail, written);
                }
                Ok(ExitCode::from(outcome.status))
            }
            Err(error) => {
                eprintln!("clawbox: {error}");
                Ok(ExitCode::from(error.status()))
            }
        }
    }

    /// The socket of the daemon that is to run the command; `None` where there is none, or is to be none.
    fn daemon(&self) -> anyhow::Result<Option<PathBuf>> {
        let Some(socket) = socket().filter(|_| !self.standalone) else { return Ok(None) };
        for (is_given, option) in [
            (self.audit.is_some(), "--audit: the daemon keeps the trails"),
            (self.refusals, "--refusals: that is for the daemon's configuration to say"),
            (self.lsm == LsmUse::Off, "--lsm off: that is for the daemon's configuration to say"),
        ] {
            if is_given {
                bail!(
                    "a sandbox of the daemon cannot have {option}; or run with --standalone, as root"
                );
            }
        }
        Ok(Some(socket))
    }

    /// What the policy is.
    fn first(&self) -> anyhow::Result<First> {
        if let Some(profile) = &self.profile {
            return Ok(First::Profile(profile.clone()));
        }
        let file = self.policy.clone().unwrap_or_else(|| DEFAULT_POLICY.into());
        if self.policy.is_none() && !file.exists() {
            bail!(
                "no policy: name one with --policy FILE or --profile NAME, or write `{}`",
                file.display()
            );
        }
        Ok(First::File(file))
    }

    fn order(self) -> anyhow::Result<Order> {
        let texts = texts(&self.first()?, &self.preset, self.user.as_deref())?;
        let workdir = match self.workdir {
            Some(directory) => std::path::absolute(directory)?,
            None => std::env::current_dir()
                .context("the current directory is gone; name one with --workdir")?,
        };
        let mode = self.mode.map(ModeArgument::mode);
        let asked = Limits { memory: self.memory, cpus: self.cpus, pids: self.pids };
        Ok(Order {
            texts,
            global: None,
            name: self.name,
            user: self.user,
            workdir,
            audit: self.audit,
            audit_level: self.audit_level,
            mode,
            lsm: self.lsm,
            refusals: self.refusals,
            learning: false,
            share: self.share,
            dns: self.dns,
            patience: self.ask_timeout.into(),
            command: self.command,
            trails: TRAILS.into(),
            run_as: None,
            limits: Wanted { asked, default: Limits::default() },
            most_rules: None,
            inherit: None,
        })
    }
}

/// A policy and presets with everything filled in; `user` is whom the sandbox is to run as.
pub(super) fn texts(
    first: &First,
    presets: &[String],
    user: Option<&str>,
) -> anyhow::Result<Vec<Text>> {
    let texts = read_texts(first, presets, user).map_err(refused)?;
    Ok(texts.into_iter().map(|(name, text)| Text { name: name.to_string(), text }).collect())
}

fn refused(diagnostics: Vec<Diagnostic>) -> anyhow::Error {
    let errors: Vec<String> = diagnostics
        .iter()
        .filter(|diagnostic| diagnostic.severity == Severity::Error)
        .map(ToString::to_string)
        .collect();
    anyhow::anyhow!("the policy does not load\n{}", errors.join("\n"))
}

/// What was denied, of a trail that had so many bytes before. On standard output there is none to look at.
fn tell_denials(outcome: &Outcome, trail: &Path, written: u64) {
    if outcome.denied > 0 && trail != Path::new("-") {
        let told = Told::read(trail, written).ok();
        denials::tell(outcome.denied, told.as_ref(), &denials::of_trail(trail));
    }
}

/// The status for an error before anything was started.
#[must_use]
pub fn failed() -> ExitCode {
    ExitCode::from(status::FAILED)
}

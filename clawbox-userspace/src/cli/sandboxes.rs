//! `clawbox list`, `show` and `stop`: what the daemon serves.

use std::io::Write;
use std::process::ExitCode;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::bail;
use clap::Args;
use serde::Serialize;

use super::complete;
use super::style::Style;
use super::{Format, told};
use crate::api::client::{Client, ClientError, socket, wait};
use crate::api::proto;

/// List the sandboxes that run
///
/// Of the daemon's sandboxes those that you have a say in: your own, or all as root or a member of the
/// group `clawbox`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  clawbox list
  clawbox list --format json | jq -r '.[].id'")]
pub struct List {
    /// How to print them
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// Show one sandbox
#[derive(Debug, Args)]
#[command(after_help = "\
Exit status: 0 shown; 2 there is no such sandbox.

Examples:
  clawbox show agent
  clawbox show agent-12 --format json")]
pub struct Show {
    /// The sandbox, by its name, or by NAME-NUMBER where several have it
    #[arg(add = complete::sandboxes())]
    sandbox: String,
    /// How to print it
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// Stop a sandbox
///
/// Its first process is told to end (SIGTERM), and all of it is ended when the time is up.
#[derive(Debug, Args)]
#[command(after_help = "\
Exit status: 0 it has ended; 2 there is no such sandbox.

Examples:
  clawbox stop agent
  clawbox stop agent-12 --timeout 1s")]
pub struct Stop {
    /// The sandbox, by its name, or by NAME-NUMBER where several have it
    #[arg(add = complete::sandboxes())]
    sandbox: String,
    /// How long it may take to end by itself
    #[arg(long, value_name = "TIME", default_value = "10s")]
    timeout: humantime::Duration,
}

/// A sandbox, as it is printed.
#[derive(Debug, Serialize)]
struct Shown {
    id: String,
    name: String,
    owner: String,
    pid: u32,
    since: String,
    policy: String,
    revision: u32,
    /// Whether `policy` is the host's, in place of the sandbox's own.
    under_global: bool,
    mode: &'static str,
    waiting: u32,
    denied: u64,
    trail: String,
    cgroup: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Used>,
}

/// What it uses and may use; no bound is null.
#[derive(Debug, Serialize)]
struct Used {
    memory_bytes: u64,
    memory_max: Option<u64>,
    pids: u64,
    pids_max: Option<u64>,
    cpu_seconds: f64,
    cpus_max: Option<f64>,
}

impl From<proto::Usage> for Used {
    fn from(usage: proto::Usage) -> Self {
        let bound = |number: u64| (number != 0).then_some(number);
        Self {
            memory_bytes: usage.memory,
            memory_max: bound(usage.memory_max),
            pids: usage.pids,
            pids_max: bound(usage.pids_max),
            cpu_seconds: usage.cpu_us as f64 / 1e6,
            cpus_max: bound(usage.cpus_max).map(|thousandths| thousandths as f64 / 1e3),
        }
    }
}

impl Used {
    /// As people read it.
    fn lines(&self) -> [(&'static str, String); 3] {
        let mib = |bytes: u64| format!("{:.1} MiB", bytes as f64 / 1_048_576.0);
        let of =
            |bound: Option<String>| bound.map(|most| format!(" of {most}")).unwrap_or_default();
        let cpus = self.cpus_max.map(|cpus| format!(", at most {cpus} processors"));
        [
            ("memory", mib(self.memory_bytes) + &of(self.memory_max.map(mib))),
            ("tasks", self.pids.to_string() + &of(self.pids_max.map(|most| most.to_string()))),
            ("time", format!("{:.2} s{}", self.cpu_seconds, cpus.unwrap_or_default())),
        ]
    }
}

impl From<proto::Sandbox> for Shown {
    fn from(sandbox: proto::Sandbox) -> Self {
        let since = UNIX_EPOCH + Duration::from_secs(sandbox.since);
        Self {
            id: sandbox.id,
            name: sandbox.name,
            owner: user(sandbox.owner),
            pid: sandbox.pid,
            since: humantime::format_rfc3339_seconds(since).to_string(),
            policy: sandbox.policy,
            revision: sandbox.revision,
            under_global: sandbox.is_under_global,
            mode: if sandbox.audit_only { "audit" } else { "enforce" },
            waiting: sandbox.waiting,
            denied: sandbox.denied,
            trail: sandbox.trail,
            cgroup: sandbox.cgroup,
            usage: sandbox.usage.map(Used::from),
        }
    }
}

impl Shown {
    fn policy(&self) -> String {
        if self.under_global {
            return format!("{} (the host's)", self.policy);
        }
        format!("{} (revision {})", self.policy, self.revision)
    }
}

/// A user's name, or the number of one that has none.
#[must_use]
pub fn user(uid: u32) -> String {
    let found = nix::unistd::User::from_uid(uid.into()).ok().flatten();
    found.map_or_else(|| uid.to_string(), |user| user.name)
}

/// Asks the daemon.
///
/// # Errors
/// It is not there, or says no.
pub(super) fn asked<T, F: Future<Output = Result<T, ClientError>>>(
    question: impl FnOnce(Client) -> F,
) -> anyhow::Result<T> {
    let Some(path) = socket() else {
        bail!(
            "the daemon is not running here; `clawbox daemon` starts one, `systemctl start clawbox` the host's"
        );
    };
    wait(async { question(Client::connect(&path).await?).await }).map_err(told)
}

/// All, or one with what it uses.
fn sandboxes(only: String) -> anyhow::Result<Vec<proto::Sandbox>> {
    asked(|client| async move {
        Ok(client.sandboxes().list(proto::ListRequest { only }).await?.into_inner().sandboxes)
    })
}

/// The names of all, each once; none where the daemon does not answer.
pub(super) fn names() -> Vec<String> {
    let found = sandboxes(String::new()).unwrap_or_default();
    let mut names: Vec<String> = found.into_iter().map(|sandbox| sandbox.name).collect();
    names.sort();
    names.dedup();
    names
}

impl List {
    /// Prints them.
    ///
    /// # Errors
    /// The daemon does not answer.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let found: Vec<Shown> = sandboxes(String::new())?.into_iter().map(Shown::from).collect();
        let mut out = std::io::stdout().lock();
        if self.format == Format::Json {
            writeln!(out, "{}", serde_json::to_string_pretty(&found)?)?;
            return Ok(ExitCode::SUCCESS);
        }
        if found.is_empty() {
            writeln!(out, "no sandbox of yours is running")?;
            return Ok(ExitCode::SUCCESS);
        }
        let width = found.iter().map(|shown| shown.id.len()).max().unwrap_or(0).max(7);
        writeln!(
            out,
            "{:width$}  {:10}  {:>8}  {:20}  {:>6}  {:>7}  POLICY",
            "SANDBOX", "OWNER", "PID", "SINCE", "DENIED", "WAITING"
        )?;
        for shown in found {
            let Shown { id, owner, pid, since, denied, waiting, .. } = &shown;
            let policy = shown.policy();
            writeln!(
                out,
                "{id:width$}  {owner:10}  {pid:>8}  {since:20}  {denied:>6}  {waiting:>7}  {policy}"
            )?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Show {
    /// Prints it.
    ///
    /// # Errors
    /// There is none of this name, or the daemon does not answer.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let all = sandboxes(String::new())?;
        let found = all.iter().find(|sandbox| sandbox.id == self.sandbox).or_else(|| {
            let mut named = all.iter().filter(|sandbox| sandbox.name == self.sandbox);
            named.next().filter(|_| named.next().is_none())
        });
        let Some(found) = found else {
            let ids: Vec<&str> = all.iter().map(|sandbox| sandbox.id.as_str()).collect();
            bail!("`{}` is not one sandbox that runs; these do: {}", self.sandbox, ids.join(", "));
        };
        // It may just have ended.
        let found = sandboxes(found.id.clone())?.pop().unwrap_or_else(|| found.clone());
        print_one(found, self.format)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Prints a sandbox.
pub(super) fn print_one(sandbox: proto::Sandbox, format: Format) -> anyhow::Result<()> {
    let shown = Shown::from(sandbox);
    let mut out = std::io::stdout().lock();
    if format == Format::Json {
        return Ok(writeln!(out, "{}", serde_json::to_string_pretty(&shown)?)?);
    }
    let style = Style::of(&out);
    let policy = shown.policy();
    writeln!(out, "{}", style.strong(&shown.id))?;
    for (what, value) in [
        ("owner", shown.owner),
        ("process", shown.pid.to_string()),
        ("since", shown.since),
        ("policy", policy),
        ("mode", shown.mode.to_owned()),
        ("waiting", shown.waiting.to_string()),
        ("denied", shown.denied.to_string()),
        ("trail", shown.trail),
        ("cgroup", shown.cgroup),
    ] {
        writeln!(out, "  {what:8} {value}")?;
    }
    for (what, value) in shown.usage.iter().flat_map(Used::lines) {
        writeln!(out, "  {what:8} {value}")?;
    }
    Ok(())
}

impl Stop {
    /// Stops it and waits for its end.
    ///
    /// # Errors
    /// There is none of this name, or the daemon does not answer.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let patience = Duration::from(self.timeout).max(Duration::from_millis(1));
        let patience_ms = u64::try_from(patience.as_millis()).unwrap_or(u64::MAX);
        let sandbox = self.sandbox;
        asked(|client| async move {
            client.sandboxes().stop(proto::StopRequest { sandbox, patience_ms }).await?;
            Ok(())
        })?;
        Ok(ExitCode::SUCCESS)
    }
}

//! `clawbox policy explain`: the verdict on one connection, and the rule behind it.
//! Runs the decision of the kernel hooks on the compiled policy.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU16;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use clawbox_common::decide::file::access;
use clawbox_common::decide::{Decision, execution};
use clawbox_common::file::{EXECUTE, READ, WRITE};
use clawbox_common::rule::{BinaryKey, ICMP};
use clawbox_common::verdict::Verdict;
use serde::Serialize;

use super::{DOES_NOT_LOAD, Format, Style, print_diagnostics};
use crate::compile::files::Give;
use crate::compile::question::{Answer, Question, Target, answer, subject};
use crate::compile::{AgentPorts, ImageLookup, MapImage, compile};
use crate::kernel::file_id::Mounts;
use crate::kernel::lsm;
use crate::presets::load_any;
use crate::sandbox::identities::Identities;
use crate::sandbox::objects::Objects;

/// Explain what a policy says about one connection or one file
///
/// Prints the verdict, its reason and the rule that decided, as the kernel would: the same code
/// runs on the same records.
#[derive(Debug, Args)]
#[command(after_help = "\
Exit status: 0 allow; 1 deny; 2 the policy does not load.

Examples:
  clawbox policy explain policy.yaml --binary /usr/bin/curl --host api.example.com --port 443
  clawbox policy explain policy.yaml --binary /usr/lib/git-core/git-remote-https \\
      --ancestor /usr/bin/git --host git.example.com --port 443
  clawbox policy explain policy.yaml --binary /usr/bin/git --path /home/dev/.ssh/id --access read")]
pub(super) struct Explain {
    /// Policy, preset or blueprint
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Program that connects, or uses the file
    #[arg(long, value_name = "PATH")]
    binary: PathBuf,
    /// Program that started it, directly or further up; may be repeated
    #[arg(long, value_name = "PATH")]
    ancestor: Vec<PathBuf>,
    /// Name or address it connects to
    #[arg(long, value_name = "HOST", requires = "port", required_unless_present = "path")]
    host: Option<String>,
    /// Port it connects to
    #[arg(long, value_name = "PORT", requires = "host")]
    port: Option<NonZeroU16>,
    /// File or directory it uses, in place of --host and --port; looked up on this host
    #[arg(long, value_name = "PATH", conflicts_with_all = ["host", "port"])]
    path: Option<PathBuf>,
    /// What it does with the file
    #[arg(long, value_enum, default_value_t, requires = "path")]
    access: Access,
    /// Transport
    #[arg(long, value_enum, default_value_t)]
    transport: Transport,
    /// Preset to merge into the policy, a built-in one or a file; may be repeated
    #[arg(long, value_name = "NAME|FILE")]
    preset: Vec<String>,
    /// Output format
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Transport {
    #[default]
    Tcp,
    Udp,
    /// Echo requests
    Icmp,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum Access {
    #[default]
    Read,
    Write,
    Execute,
}

/// What is printed.
#[derive(Serialize)]
struct Explanation {
    verdict: &'static str,
    reason: &'static str,
    rule: Option<Rule>,
    remarks: Vec<String>,
}

#[derive(Serialize)]
struct Rule {
    policy: String,
    name: String,
    endpoint: usize,
    host: String,
    binary: String,
    place: String,
}

impl Explain {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let compiled =
            load_any(&self.file, &self.preset).and_then(|loaded| compile(&loaded.policy, 1));
        let image = match compiled {
            Ok(image) => image,
            Err(diagnostics) => {
                let mut err = std::io::stderr().lock();
                let style = Style::of(&err);
                print_diagnostics(&mut err, style, &diagnostics)?;
                return Ok(ExitCode::from(DOES_NOT_LOAD));
            }
        };
        let answer = match (&self.path, &self.host, self.port) {
            (Some(path), ..) => self.file(&image, path)?,
            (None, Some(host), Some(port)) => {
                let question = Question {
                    binary: self.binary.clone(),
                    ancestors: self.ancestor.clone(),
                    target: target(host),
                    port: port.get(),
                    transport: match self.transport {
                        Transport::Tcp => clawbox_common::rule::TCP,
                        Transport::Udp => clawbox_common::rule::UDP,
                        Transport::Icmp => bail!("echo requests have no port: leave out --port"),
                    },
                };
                answer(&image, &question)
            }
            (None, Some(host), None) if self.transport == Transport::Icmp => {
                self.ping(&image, host)
            }
            _ => bail!("name --host and --port, --host and --transport icmp, or --path"),
        };
        self.print(&answer)?;
        Ok(match answer.verdict {
            Verdict::Allow => ExitCode::SUCCESS,
            Verdict::Deny => ExitCode::from(1),
        })
    }

    fn ping<'a>(&self, image: &'a MapImage, host: &str) -> Answer<'a> {
        let question = Question {
            binary: self.binary.clone(),
            ancestors: self.ancestor.clone(),
            target: target(host),
            port: 0,
            transport: ICMP,
        };
        let mut answer = answer(image, &question);
        if let Some(why) = lsm::refusal_when_tried() {
            answer.remarks.push(format!("refused here, where nothing sees an echo request: {why}"));
        }
        answer
    }

    /// What BPF LSM programs decide about a file, by their own steps from this host's objects.
    fn file<'a>(&self, image: &'a MapImage, path: &Path) -> anyhow::Result<Answer<'a>> {
        let path = std::path::absolute(path)?;
        let mounts = Mounts::read().context("cannot read /proc/self/mountinfo")?;
        let objects = Objects::find(image, &mounts, &[]);
        let state = image.state(AgentPorts::default(), 0, true);
        let subject = subject(image, &self.binary, &self.ancestor);
        let (search, at) = objects.search(&state, &subject, &mounts, &path);
        let asked = match self.access {
            Access::Read => READ,
            Access::Write => WRITE,
            Access::Execute => EXECUTE,
        };
        let mut decision = access(&search, asked, &state);
        let allowed = matches!(decision.verdict, Verdict::Allow);
        let mut listed = None;
        if matches!(self.access, Access::Execute) && image.lists_programs() && allowed {
            decision = start(image, &mounts, &path);
            let verb =
                if matches!(decision.verdict, Verdict::Allow) { "lists" } else { "does not list" };
            listed = Some(format!("execution.allow: {verb} {}", path.display()));
        }
        let mut remarks: Vec<String> = at
            .map(|at| format!("filesystem_policy: the rule at {} decides", at.display()))
            .into_iter()
            .chain(listed)
            .collect();
        if let Some(why) = lsm::refusal_when_tried() {
            remarks.push(format!("by Landlock alone here, which knows no islands: {why}"));
        }
        let (verdict, reason) = (decision.verdict, decision.reason);
        Ok(Answer { verdict, reason, rule: None, remarks })
    }

    fn print(&self, answer: &Answer<'_>) -> anyhow::Result<()> {
        let explanation = Explanation {
            verdict: match answer.verdict {
                Verdict::Allow => "allow",
                Verdict::Deny => "deny",
            },
            reason: answer.reason.name(),
            rule: answer.rule.map(|rule| Rule {
                policy: rule.policy_key.to_owned(),
                name: rule.name.to_owned(),
                endpoint: rule.endpoint,
                host: rule.host.to_owned(),
                binary: rule.binary.to_owned(),
                place: rule.origin.to_string(),
            }),
            remarks: answer.remarks.clone(),
        };
        let mut out = std::io::stdout().lock();
        if self.format == Format::Json {
            writeln!(out, "{}", serde_json::to_string_pretty(&explanation)?)?;
            return Ok(());
        }
        let style = Style::of(&out);
        let verdict = match answer.verdict {
            Verdict::Allow => style.good("allow"),
            Verdict::Deny => style.bad("deny"),
        };
        writeln!(out, "{verdict}: {}", explanation.reason)?;
        if let Some(rule) = &explanation.rule {
            writeln!(
                out,
                "  network_policies.{}.endpoints[{}] {} for {} {}",
                rule.policy,
                rule.endpoint,
                rule.host,
                rule.binary,
                style.aside(&rule.place)
            )?;
        }
        for remark in &explanation.remarks {
            writeln!(out, "  {remark}")?;
        }
        Ok(())
    }
}

/// Whether a file may be started where the policy lists programs, by what it is on this host: the
/// same file by another name is listed too.
fn start(image: &MapImage, mounts: &Mounts, path: &Path) -> Decision {
    let written = image.files.iter().filter(|grant| grant.give == Give::Writing);
    let writable: Vec<PathBuf> = written.map(|grant| grant.path.as_path().to_owned()).collect();
    let patterns = image.binaries.iter().map(|entry| &entry.pattern);
    let identities = Identities::find(SANDBOX, mounts, patterns, &writable);
    let slots = mounts.hold(path).ok().and_then(|held| {
        identities.binaries.get(&BinaryKey { file: held.id, sandbox: SANDBOX, zero: 0 })
    });
    execution::start(&ImageLookup::new(image, SANDBOX), SANDBOX, slots)
}

/// The number of the sandbox that is explained.
const SANDBOX: u32 = 1;

/// `localhost` is a name that no resolver is asked for.
fn target(host: &str) -> Target {
    if let Ok(address) = host.parse() {
        return Target::Address(address);
    }
    let name = host.strip_suffix('.').unwrap_or(host);
    if name.eq_ignore_ascii_case("localhost") {
        return Target::Address(IpAddr::V4(Ipv4Addr::LOCALHOST));
    }
    Target::Name(host.to_owned())
}

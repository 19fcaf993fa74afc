//! `clawbox policy explain`: the verdict on one connection, and the rule behind it.
//! Runs the decision of the kernel hooks on the compiled policy.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use clawbox_common::verdict::Verdict;
use serde::Serialize;

use super::{DOES_NOT_LOAD, Format, Style, print_diagnostics};
use crate::compile::compile;
use crate::compile::question::{Answer, Question, Target, answer};
use crate::policy::load_any;

/// Explain what a policy says about one connection
///
/// Prints the verdict, its reason and the rule that decided, as the kernel would: the same code
/// runs on the same records.
#[derive(Debug, Args)]
#[command(after_help = "\
Exit status: 0 allow; 1 deny; 2 the policy does not load.

Examples:
  clawbox policy explain policy.yaml --binary /usr/bin/curl --host api.example.com --port 443
  clawbox policy explain policy.yaml --binary /usr/lib/git-core/git-remote-https \\
      --ancestor /usr/bin/git --host git.example.com --port 443")]
pub(super) struct Explain {
    /// Policy, preset or blueprint
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Program that connects
    #[arg(long, value_name = "PATH")]
    binary: PathBuf,
    /// Program that started it, directly or further up; may be repeated
    #[arg(long, value_name = "PATH")]
    ancestor: Vec<PathBuf>,
    /// Name or address it connects to
    #[arg(long, value_name = "HOST")]
    host: String,
    /// Port it connects to
    #[arg(long, value_name = "PORT")]
    port: NonZeroU16,
    /// Transport
    #[arg(long, value_enum, default_value_t)]
    transport: Transport,
    /// Preset to merge into the policy; may be repeated
    #[arg(long, value_name = "FILE")]
    preset: Vec<PathBuf>,
    /// Output format
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum Transport {
    #[default]
    Tcp,
    Udp,
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
        let question = Question {
            binary: self.binary.clone(),
            ancestors: self.ancestor.clone(),
            target: target(&self.host),
            port: self.port,
            transport: match self.transport {
                Transport::Tcp => clawbox_common::rule::TCP,
                Transport::Udp => clawbox_common::rule::UDP,
            },
        };
        let answer = answer(&image, &question);
        self.print(&answer)?;
        Ok(match answer.verdict {
            Verdict::Allow => ExitCode::SUCCESS,
            Verdict::Deny => ExitCode::from(1),
        })
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

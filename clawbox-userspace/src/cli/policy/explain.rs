//! `clawbox policy explain`: the verdict on one connection, and the rule behind it.
//! Runs the decision of the kernel hooks on the compiled policy.

use std::io::Write;
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::bail;
use clap::{Args, ValueEnum};
use clawbox_common::rule::{ICMP, TCP, UDP};
use serde::Serialize;

use super::super::complete;
use super::{Format, Style, refused};
use crate::judge::{Access, Deed, Judge, Judged, RuleTold, Who};
use crate::kernel::lsm;
use crate::presets::load_any;

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
    access: AccessArgument,
    /// Transport
    #[arg(long, value_enum, default_value_t)]
    transport: Transport,
    /// Preset to merge into the policy, a built-in one or a file; may be repeated
    #[arg(long, value_name = "NAME|FILE", add = complete::presets())]
    preset: Vec<String>,
    /// Whose home `~` is, in place of the policy's run_as_user
    #[arg(long, value_name = "USER")]
    user: Option<String>,
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
enum AccessArgument {
    #[default]
    Read,
    Write,
    Execute,
}

/// What is printed.
#[derive(Serialize)]
struct Explanation<'a> {
    verdict: &'static str,
    reason: &'static str,
    rule: Option<&'a RuleTold>,
    remarks: &'a [String],
}

impl Explain {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let judge = load_any(&self.file, &self.preset, self.user.as_deref())
            .and_then(|loaded| Judge::of(loaded.policy, None));
        let judge = match judge {
            Ok(judge) => judge,
            Err(diagnostics) => return refused(&diagnostics),
        };
        let (deed, is_ping) = self.deed()?;
        let who =
            Who { program: self.binary.clone(), script: None, ancestors: self.ancestor.clone() };
        let mut judged = judge.ask(&who, &deed);
        if let Some(why) = lsm::refusal_when_tried() {
            match deed {
                Deed::Use { .. } => judged
                    .remarks
                    .push(format!("by Landlock alone here, which knows no islands: {why}")),
                Deed::Connect { .. } if is_ping => judged
                    .remarks
                    .push(format!("refused here, where nothing sees an echo request: {why}")),
                _ => {}
            }
        }
        self.print(&judged)?;
        Ok(ExitCode::from(u8::from(!judged.is_allowed())))
    }

    /// What is asked about, and whether that is an echo request.
    fn deed(&self) -> anyhow::Result<(Deed, bool)> {
        let connect =
            |host: &String, port, transport| Deed::Connect { host: host.clone(), port, transport };
        Ok(match (&self.path, &self.host, self.port, self.transport) {
            (Some(path), ..) => {
                let access = match self.access {
                    AccessArgument::Read => Access::Read,
                    AccessArgument::Write => Access::Write,
                    AccessArgument::Execute => Access::Execute,
                };
                (Deed::Use { path: std::path::absolute(path)?, access }, false)
            }
            (None, Some(host), None, Transport::Icmp) => (connect(host, 0, ICMP), true),
            (None, Some(_), Some(_), Transport::Icmp) => {
                bail!("echo requests have no port: leave out --port")
            }
            (None, Some(host), Some(port), Transport::Tcp) => {
                (connect(host, port.get(), TCP), false)
            }
            (None, Some(host), Some(port), Transport::Udp) => {
                (connect(host, port.get(), UDP), false)
            }
            _ => bail!("name --host and --port, --host and --transport icmp, or --path"),
        })
    }

    fn print(&self, judged: &Judged) -> anyhow::Result<()> {
        let explanation = Explanation {
            verdict: judged.verdict_name(),
            reason: judged.reason.name(),
            rule: judged.rule.as_ref(),
            remarks: &judged.remarks,
        };
        let mut out = std::io::stdout().lock();
        if self.format == Format::Json {
            writeln!(out, "{}", serde_json::to_string_pretty(&explanation)?)?;
            return Ok(());
        }
        let style = Style::of(&out);
        let verdict = match judged.is_allowed() {
            true => style.good("allow"),
            false => style.bad("deny"),
        };
        writeln!(out, "{verdict}: {}", explanation.reason)?;
        if let Some(rule) = explanation.rule {
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
        for remark in explanation.remarks {
            writeln!(out, "  {remark}")?;
        }
        Ok(())
    }
}

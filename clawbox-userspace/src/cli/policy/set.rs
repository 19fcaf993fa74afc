//! `clawbox policy set`: another policy for a sandbox that is running.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::super::Format;
use super::super::answer::answered;
use super::super::ask::ask;
use super::super::style::Style;
use super::{DOES_NOT_LOAD, print_diagnostics};
use crate::policy::read_texts;
use crate::sandbox::control::{Request, Text};

/// Replace the policy of a running sandbox
///
/// All of the new policy comes into force at one moment, or none of it. What it takes away is taken
/// from files that are open already, too. What the sandbox was not given when it was started
/// (Landlock's paths, the user) needs a restart, and is named.
#[derive(Debug, Args)]
#[command(after_help = "\
Exit status: 0 the kernel decides by the new policy; 1 refused, and nothing has changed; 2 the policy
does not load, or there is no such sandbox.

Examples:
  clawbox policy set agent policy.yaml
  clawbox policy set agent-1234 policy.yaml --preset presets/slack.yaml --format json")]
pub(super) struct Set {
    /// The sandbox, by the name of `run --name`, or by NAME-PID where several have it
    sandbox: String,
    /// The policy
    #[arg(value_name = "FILE")]
    policy: PathBuf,
    /// Preset to merge into the policy; may be repeated
    #[arg(long, value_name = "FILE")]
    preset: Vec<PathBuf>,
    /// How to print what came of it
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

impl Set {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let texts = match read_texts(&self.policy, &self.preset) {
            Ok(texts) => texts,
            Err(diagnostics) => {
                print_diagnostics(
                    &mut std::io::stderr(),
                    Style::of(&std::io::stderr()),
                    &diagnostics,
                )?;
                return Ok(ExitCode::from(DOES_NOT_LOAD));
            }
        };
        let texts = texts.into_iter().map(|(name, text)| Text { name: name.to_string(), text });
        let answer = ask(&self.sandbox, &Request::SetPolicy(texts.collect()))?;
        answered(&answer, &self.sandbox, self.format)
    }
}

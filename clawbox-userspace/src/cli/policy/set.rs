//! `clawbox policy set`: another policy for a sandbox that is running, or for all of a host.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::bail;
use clap::Args;

use super::super::Format;
use super::super::answer::answered;
use super::super::ask::ask;
use super::super::complete;
use super::super::sandboxes::asked;
use super::super::style::Style;
use super::{DOES_NOT_LOAD, print_diagnostics};
use crate::api::{convert, proto};
use crate::presets::{First, are_whole, read_texts};
use crate::sandbox::control::{Answer, Request, Text};

/// Replace the policy of a running sandbox, or set one for the whole host
///
/// All of the new policy comes into force at one moment, or none of it. What it takes away is taken
/// from files that are open already, too. What the sandbox was not given when it was started
/// (Landlock's paths, the user) needs a restart, and is named.
///
/// With --global one policy is in force in every sandbox of the daemon, those that are started later and
/// attached cgroups too, in place of its own and of `run --mode`. Nobody changes or approves anything
/// meanwhile; `clawbox policy delete --global` gives every sandbox its own back.
#[derive(Debug, Args)]
#[command(after_help = "\
Exit status: 0 the kernel decides by the new policy; 1 refused, and nothing has changed; 2 the policy
does not load, or there is no such sandbox.

Examples:
  clawbox policy set agent policy.yaml
  clawbox policy set agent-1234 policy.yaml --preset slack --format json
  clawbox policy set --global lockdown.yaml")]
pub struct Set {
    /// The sandbox, by the name of `run --name`, or by NAME-PID where several have it
    #[arg(required_unless_present = "global", add = complete::sandboxes())]
    sandbox: Option<String>,
    /// The policy
    #[arg(value_name = "FILE", required_unless_present = "global")]
    policy: Option<PathBuf>,
    /// The host's own, for every sandbox in place of its own
    #[arg(long, value_name = "FILE", conflicts_with_all = ["sandbox", "policy"])]
    global: Option<PathBuf>,
    /// Only if this revision is in force: of two who change it one is told
    #[arg(long, value_name = "M")]
    expect: Option<u32>,
    /// Wait until the kernel decides by it, which is always done
    #[arg(long)]
    wait: bool,
    /// Preset to merge into the policy, a built-in one or a file; may be repeated
    #[arg(long, value_name = "NAME|FILE", add = complete::presets())]
    preset: Vec<String>,
    /// How to print what came of it
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

impl Set {
    /// Whether it is as it stands, and no account has to be looked up for it.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        let file = self.global.as_ref().or(self.policy.as_ref());
        file.is_some_and(|file| are_whole(&First::File(file.clone()), &self.preset))
    }

    /// Sets it.
    ///
    /// # Errors
    /// The daemon does not answer, or output cannot be written.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let Some(file) = self.global.as_ref().or(self.policy.as_ref()) else {
            bail!("name a policy");
        };
        let texts = match read_texts(&First::File(file.clone()), &self.preset, None) {
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
        let texts: Vec<Text> = texts.collect();
        let Some(sandbox) = &self.sandbox else {
            let (texts, expected_revision) =
                (convert::texts(&texts), self.expect.unwrap_or_default());
            let request =
                proto::SetGlobalPolicyRequest { texts, expected_revision, ..Default::default() };
            return set_global(request, self.format);
        };
        let answer = match self.expect {
            None => ask(sandbox, &Request::SetPolicy(texts))?,
            // A run without the daemon keeps no revisions.
            Some(expected_revision) => {
                let (sandbox, texts) = (sandbox.clone(), convert::texts(&texts));
                let request = proto::SetPolicyRequest { sandbox, texts, expected_revision };
                own(asked(|client| async move {
                    Ok(client.sandboxes().set_policy(request).await?.into_inner())
                })?)?
            }
        };
        answered(&answer, sandbox, self.format)
    }
}

/// Changes the host's own policy, and says what came of it.
///
/// # Errors
/// The daemon does not answer.
pub(super) fn set_global(
    request: proto::SetGlobalPolicyRequest,
    format: Format,
) -> anyhow::Result<ExitCode> {
    let is_end = request.end;
    let answer = own(asked(|client| async move {
        Ok(client.sandboxes().set_global_policy(request).await?.into_inner())
    })?)?;
    if is_end && format == Format::Text && matches!(answer, Answer::Changed { .. }) {
        writeln!(std::io::stdout(), "every sandbox has its own policy again")?;
        return Ok(ExitCode::SUCCESS);
    }
    answered(&answer, "the host", format)
}

/// An answer of the daemon's.
pub(super) fn own(answer: proto::Answer) -> anyhow::Result<Answer> {
    match convert::own_answer(answer) {
        Some(answer) => Ok(answer),
        None => bail!("the daemon's answer is not of this version of clawbox"),
    }
}

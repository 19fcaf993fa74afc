//! `clawbox approvals`: connections that wait for an answer, and the answer.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Args, Subcommand, ValueEnum};

use super::Format;
use super::answer::answered;
use super::ask::ask;
use super::complete;
use crate::policy::load_any;
use crate::sandbox::change::APPROVED_HEAD;
use crate::sandbox::control::{Answer, Request};

/// Answer connections that no rule names
///
/// Where a policy says `unknown_endpoints: ask`, a connection to an endpoint that no rule names waits,
/// 60 seconds unless `run --ask-timeout` says otherwise. The client sees a connection that is slow to
/// come. Approved, it goes on; denied or not answered, it fails.
#[derive(Debug, Args)]
#[command(after_help = "\
Exit status: 0 done; 1 refused, as for a connection that no longer waits; 2 there is no such sandbox.

Examples:
  clawbox approvals list agent
  clawbox approvals approve agent 3
  clawbox approvals approve agent 3 --for sandbox --save approved.yaml
  clawbox approvals deny agent 4")]
pub struct ApprovalsCommand {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// What waits for an answer, the longest first
    List {
        /// The sandbox, by the name of `run --name`, or by NAME-PID where several have it
        #[arg(add = complete::sandboxes())]
        sandbox: String,
        /// How to print it
        #[arg(long, value_enum, default_value_t)]
        format: Format,
    },
    /// Let a connection go on
    Approve(Approve),
    /// Refuse a connection
    Deny {
        /// The sandbox
        #[arg(add = complete::sandboxes())]
        sandbox: String,
        /// The connection, by its number in the list
        id: u32,
        /// How to print what came of it
        #[arg(long, value_enum, default_value_t)]
        format: Format,
    },
}

#[derive(Debug, Args)]
struct Approve {
    /// The sandbox
    #[arg(add = complete::sandboxes())]
    sandbox: String,
    /// The connection, by its number in the list
    id: u32,
    /// What is approved: this connection, or every one of this program to this endpoint
    #[arg(long = "for", value_enum, default_value_t)]
    scope: Scope,
    /// Write the rule to a preset, for `run --preset FILE` and `policy set --preset FILE`
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
    /// How to print what came of it
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Scope {
    /// This connection
    #[default]
    Once,
    /// As long as the sandbox runs
    Sandbox,
}

impl ApprovalsCommand {
    /// Asks the sandbox's clawbox.
    ///
    /// # Errors
    /// There is no such sandbox, or it does not answer.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        if !nix::unistd::geteuid().is_root() {
            bail!("only root answers what a sandbox asks for; use sudo");
        }
        match self.verb {
            Verb::List { sandbox, format } => {
                answered(&ask(&sandbox, &Request::Waiting)?, &sandbox, format)
            }
            Verb::Deny { sandbox, id, format } => {
                answered(&ask(&sandbox, &Request::Deny { id })?, &sandbox, format)
            }
            Verb::Approve(approve) => approve.run(),
        }
    }
}

impl Approve {
    fn run(self) -> anyhow::Result<ExitCode> {
        let Self { sandbox, id, scope, save, format } = self;
        let answer = ask(&sandbox, &Request::Approve { id, lasting: scope == Scope::Sandbox })?;
        let status = answered(&answer, &sandbox, format)?;
        if let (Answer::Approved { connection, .. }, Some(file)) = (&answer, save) {
            if connection.rule.is_empty() {
                bail!("approved, but no rule can name its program, so there is none to save");
            }
            add(&file, &connection.rule)
                .with_context(|| format!("approved, but not saved to `{}`", file.display()))?;
        }
        Ok(status)
    }
}

/// Adds an entry to the end of a preset, which stays whole whatever happens.
fn add(file: &Path, entry: &str) -> anyhow::Result<()> {
    let before = match fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => APPROVED_HEAD.to_owned(),
        Err(error) => return Err(error.into()),
    };
    if before.contains(entry) {
        return Ok(());
    }
    let end = if before.ends_with('\n') { "" } else { "\n" };
    let mut next = file.as_os_str().to_owned();
    next.push(".new");
    let next = PathBuf::from(next);
    fs::write(&next, format!("{before}{end}{entry}"))?;
    if let Err(mistakes) = load_any(&next, &[]) {
        let mistakes: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
        fs::remove_file(&next)?;
        bail!(
            "with the rule at its end it is no preset any more; name another file, or add the rule \
             yourself:\n{entry}{}",
            mistakes.join("\n")
        );
    }
    Ok(fs::rename(&next, file)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENTRY: &str = "  \"approved curl api.test 443\":\n    endpoints: [{ host: \"api.test\", port: 443 }]\n    binaries: [{ path: \"/usr/bin/curl\" }]\n";

    #[test]
    fn a_rule_is_added_once_to_a_preset_that_loads_before_and_after() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("approved.yaml");
        add(&file, ENTRY).unwrap();
        add(&file, ENTRY).unwrap();
        add(&file, &ENTRY.replace("443", "80")).unwrap();
        let text = fs::read_to_string(&file).unwrap();
        assert_eq!(text.matches("endpoints").count(), 2, "{text}");
        load_any(&file, &[]).unwrap();
    }

    #[test]
    fn a_file_that_would_not_load_any_more_stays_as_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("policy.yaml");
        let text = "version: 1\nfilesystem_policy:\n  read_only: [/usr]\n";
        fs::write(&file, text).unwrap();
        let error = add(&file, ENTRY).unwrap_err().to_string();
        assert!(error.contains("name another file"), "{error}");
        assert_eq!(fs::read_to_string(&file).unwrap(), text);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}

//! `clawbox policy get`, `list`, `diff` and `rollback`: the policies that a sandbox of the daemon has and
//! has had.

use std::io::Write;
use std::process::ExitCode;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::bail;
use clap::Args;
use similar::TextDiff;

use super::super::Format;
use super::super::answer::answered;
use super::super::sandboxes::{asked, user};
use crate::api::{convert, proto};

/// Print a policy of a running sandbox
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  clawbox policy get agent > policy.yaml
  clawbox policy get agent --revision 1 --format json")]
pub(super) struct Get {
    /// The sandbox, by its name, or by NAME-NUMBER where several have it
    sandbox: String,
    /// Which of its policies; the one in force if nothing is said
    #[arg(long, value_name = "N")]
    revision: Option<u32>,
    /// How to print it
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// List the policies that a running sandbox has had
#[derive(Debug, Args)]
pub(super) struct List {
    /// The sandbox, by its name, or by NAME-NUMBER where several have it
    sandbox: String,
    /// How to print them
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// Show what one policy of a running sandbox has that another has not
#[derive(Debug, Args)]
#[command(after_help = "\
Exit status: 0 they are the same; 1 they differ; 2 there is no such sandbox or revision.

Examples:
  clawbox policy diff agent 1
  clawbox policy diff agent 1 3")]
pub(super) struct Diff {
    /// The sandbox, by its name, or by NAME-NUMBER where several have it
    sandbox: String,
    /// The earlier one
    #[arg(value_name = "N")]
    from: u32,
    /// The later one; the one in force if nothing is said
    #[arg(value_name = "M")]
    to: Option<u32>,
}

/// Put an earlier policy of a running sandbox in force again
///
/// It becomes a revision of its own: nothing is undone silently.
#[derive(Debug, Args)]
#[command(after_help = "\
Exit status: 0 the kernel decides by it; 1 refused, and nothing has changed; 2 there is no such sandbox
or revision.

Examples:
  clawbox policy rollback agent 1
  clawbox policy rollback agent 1 --expect 3")]
pub(super) struct Rollback {
    /// The sandbox, by its name, or by NAME-NUMBER where several have it
    sandbox: String,
    /// Which
    #[arg(value_name = "N")]
    revision: u32,
    /// Only if this revision is in force: of two who change it one is told
    #[arg(long, value_name = "M")]
    expect: Option<u32>,
    /// How to print what came of it
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

fn revisions(sandbox: &str) -> anyhow::Result<Vec<proto::Revision>> {
    let sandbox = sandbox.to_owned();
    asked(|client| async move {
        let request = proto::ListRevisionsRequest { sandbox };
        Ok(client.sandboxes().list_revisions(request).await?.into_inner().revisions)
    })
}

/// One of them, or the last.
fn pick(
    all: &[proto::Revision],
    sandbox: &str,
    wanted: Option<u32>,
) -> anyhow::Result<proto::Revision> {
    let found = match wanted {
        Some(number) => all.iter().find(|found| found.revision == number),
        None => all.last(),
    };
    let Some(found) = found else {
        let has: Vec<String> = all.iter().map(|found| found.revision.to_string()).collect();
        bail!("`{sandbox}` has had no such policy; it has had {}", has.join(", "));
    };
    Ok(found.clone())
}

/// All files of a policy in one text, each under its name.
fn whole(revision: &proto::Revision) -> String {
    let file = |text: &proto::Text| format!("# {}\n{}", text.name, text.text);
    revision.texts.iter().map(file).collect::<Vec<_>>().join("\n---\n")
}

fn value(found: &proto::Revision) -> serde_json::Value {
    serde_json::json!({
        "revision": found.revision,
        "author": user(found.author),
        "time": time(found.time),
        "digest": found.digest,
        "texts": convert::own_texts(found.texts.clone()),
    })
}

fn time(seconds: u64) -> String {
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(seconds)).to_string()
}

impl Get {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let found = pick(&revisions(&self.sandbox)?, &self.sandbox, self.revision)?;
        let mut out = std::io::stdout().lock();
        match (self.format, found.texts.as_slice()) {
            (Format::Json, _) => {
                writeln!(out, "{}", serde_json::to_string_pretty(&value(&found))?)?;
            }
            (Format::Text, [only]) => write!(out, "{}", only.text)?,
            (Format::Text, _) => writeln!(out, "{}", whole(&found))?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl List {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let all = revisions(&self.sandbox)?;
        let mut out = std::io::stdout().lock();
        if self.format == Format::Json {
            let all: Vec<_> = all.iter().map(value).collect();
            writeln!(out, "{}", serde_json::to_string_pretty(&all)?)?;
            return Ok(ExitCode::SUCCESS);
        }
        writeln!(out, "{:>8}  {:20}  {:10}  {:12}  FILES", "REVISION", "SET", "BY", "DIGEST")?;
        for found in all {
            let names: Vec<&str> = found.texts.iter().map(|text| text.name.as_str()).collect();
            let digest = found.digest.get(..12).unwrap_or(&found.digest);
            let (by, when) = (user(found.author), time(found.time));
            writeln!(
                out,
                "{:>8}  {when:20}  {by:10}  {digest:12}  {}",
                found.revision,
                names.join(", ")
            )?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Diff {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let all = revisions(&self.sandbox)?;
        let from = pick(&all, &self.sandbox, Some(self.from))?;
        let to = pick(&all, &self.sandbox, self.to)?;
        if from.digest == to.digest {
            return Ok(ExitCode::SUCCESS);
        }
        let (one, other) = (whole(&from), whole(&to));
        let names = [from.revision, to.revision].map(|number| format!("revision {number}"));
        let diff = TextDiff::from_lines(&one, &other);
        let text = diff.unified_diff().header(&names[0], &names[1]).to_string();
        write!(std::io::stdout().lock(), "{text}")?;
        Ok(ExitCode::from(1))
    }
}

impl Rollback {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let request = proto::RollbackRequest {
            sandbox: self.sandbox.clone(),
            revision: self.revision,
            expected_revision: self.expect.unwrap_or_default(),
        };
        let answer = asked(|client| async move {
            Ok(client.sandboxes().rollback(request).await?.into_inner())
        })?;
        let Some(answer) = convert::own_answer(answer) else {
            bail!("the daemon's answer is not of this version of clawbox");
        };
        answered(&answer, &self.sandbox, self.format)
    }
}

//! `clawbox policy get`, `list`, `diff` and `rollback`: the policies that a sandbox of the daemon, or the
//! host, has and has had.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::bail;
use clap::Args;
use similar::TextDiff;

use super::super::Format;
use super::super::answer::answered;
use super::super::complete;
use super::super::sandboxes::{asked, user};
use super::super::style::Style;
use super::refused;
use super::set::{own, set_global};
use crate::api::{convert, proto};
use crate::judge::Judge;
use crate::judge::compared::{Difference, Kind, compare};
use crate::presets::load_any;
use crate::sandbox::control::Text;

/// Print a policy of a running sandbox, or the host's
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  clawbox policy get agent > policy.yaml
  clawbox policy get agent --revision 1 --format json
  clawbox policy get --global")]
pub(super) struct Get {
    /// The sandbox, by its name, or by NAME-NUMBER where several have it
    #[arg(required_unless_present = "global", add = complete::sandboxes())]
    sandbox: Option<String>,
    /// The host's own, which is in force in place of every sandbox's
    #[arg(long, conflicts_with = "sandbox")]
    global: bool,
    /// Which of its policies; the one in force if nothing is said
    #[arg(long, value_name = "N")]
    revision: Option<u32>,
    /// How to print it
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// List the policies that a running sandbox, or the host, has had
#[derive(Debug, Args)]
pub(super) struct List {
    /// The sandbox, by its name, or by NAME-NUMBER where several have it
    #[arg(required_unless_present = "global", add = complete::sandboxes())]
    sandbox: Option<String>,
    /// The host's own, which is in force in place of every sandbox's
    #[arg(long, conflicts_with = "sandbox")]
    global: bool,
    /// How to print them
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// Show what one policy has that another has not: by what they mean, of two files
///
/// Of two policies that a running sandbox or the host has had, by their numbers, the texts are compared. Of
/// two files it is what becomes reachable (`+`), what stops (`-`) and what holds otherwise (`~`), found by
/// asking both the same.
#[derive(Debug, Args)]
#[command(after_help = "\
Exit status: 0 they are the same; 1 they differ; 2 there is no such sandbox or revision, or a file does
not load.

Examples:
  clawbox policy diff policy.yaml next.yaml
  clawbox policy diff policy.yaml next.yaml --format json | jq '.[] | select(.kind == \"opens\")'
  clawbox policy diff agent 1
  clawbox policy diff agent 1 3
  clawbox policy diff --global 1 2")]
pub(super) struct Diff {
    /// The sandbox, by its name, or by NAME-NUMBER where several have it; left out with --global. Or a file
    #[arg(value_name = "SANDBOX|FILE", add = complete::sandboxes())]
    sandbox: String,
    /// The earlier one. Or the other file
    #[arg(value_name = "N|FILE")]
    from: Option<String>,
    /// The later one; the one in force if nothing is said
    #[arg(value_name = "M")]
    to: Option<u32>,
    /// The host's own, which is in force in place of every sandbox's
    #[arg(long)]
    global: bool,
    /// Of two files: whose home `~` is, in place of the policies' run_as_user
    #[arg(long, value_name = "USER", conflicts_with = "global")]
    user: Option<String>,
    /// How to print the differences of two files
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// Put an earlier policy of a running sandbox, or of the host, in force again
///
/// It becomes a revision of its own: nothing is undone silently.
#[derive(Debug, Args)]
#[command(after_help = "\
Exit status: 0 the kernel decides by it; 1 refused, and nothing has changed; 2 there is no such sandbox
or revision.

Examples:
  clawbox policy rollback agent 1
  clawbox policy rollback agent 1 --expect 3
  clawbox policy rollback --global 1")]
pub(super) struct Rollback {
    /// The sandbox, by its name, or by NAME-NUMBER where several have it; left out with --global
    #[arg(add = complete::sandboxes())]
    sandbox: String,
    /// Which
    #[arg(value_name = "N")]
    revision: Option<u32>,
    /// Only if this revision is in force: of two who change it one is told
    #[arg(long, value_name = "M")]
    expect: Option<u32>,
    /// How to print what came of it
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    /// The host's own, which is in force in place of every sandbox's
    #[arg(long)]
    global: bool,
}

/// Whose policies are meant.
enum Whose {
    Sandbox(String),
    Host,
}

impl Whose {
    fn of(sandbox: Option<String>) -> Self {
        sandbox.map_or(Self::Host, Self::Sandbox)
    }

    /// Of words that begin with a sandbox's name, unless the host's are meant: then all are numbers.
    fn of_words(
        global: bool,
        first: String,
        numbers: [Option<u32>; 2],
    ) -> anyhow::Result<(Self, [Option<u32>; 2])> {
        if !global {
            return Ok((Self::Sandbox(first), numbers));
        }
        let Ok(number) = first.parse() else {
            bail!("with --global name revisions alone; `{first}` is no number");
        };
        if numbers[1].is_some() {
            bail!("with --global name revisions alone");
        }
        Ok((Self::Host, [Some(number), numbers[0]]))
    }

    fn name(&self) -> &str {
        match self {
            Self::Sandbox(name) => name,
            Self::Host => "the host",
        }
    }

    /// All that it has had, and which is in force; zero is none.
    fn revisions(&self) -> anyhow::Result<(Vec<proto::Revision>, u32)> {
        let sandbox = match self {
            Self::Sandbox(sandbox) => sandbox.clone(),
            Self::Host => {
                let reply = asked(|client| async move {
                    let request = proto::GetGlobalPolicyRequest {};
                    Ok(client.sandboxes().get_global_policy(request).await?.into_inner())
                })?;
                return Ok((reply.revisions, reply.in_force));
            }
        };
        let all = asked(|client| async move {
            let request = proto::ListRevisionsRequest { sandbox };
            Ok(client.sandboxes().list_revisions(request).await?.into_inner().revisions)
        })?;
        let last = all.last().map_or(0, |last| last.revision);
        Ok((all, last))
    }

    /// One of them, or the one in force.
    fn pick(&self, wanted: Option<u32>) -> anyhow::Result<proto::Revision> {
        let (all, in_force) = self.revisions()?;
        if wanted.is_none() && in_force == 0 {
            bail!("{} has no policy in force", self.name());
        }
        pick(&all, self.name(), wanted.unwrap_or(in_force))
    }
}

/// One of them.
fn pick(all: &[proto::Revision], whose: &str, wanted: u32) -> anyhow::Result<proto::Revision> {
    let Some(found) = all.iter().find(|found| found.revision == wanted) else {
        let has: Vec<String> = all.iter().map(|found| found.revision.to_string()).collect();
        let has = if has.is_empty() { "none".to_owned() } else { has.join(", ") };
        bail!("{whose} has had no such policy; it has had {has}");
    };
    Ok(found.clone())
}

/// The files of the policy that is in force in a sandbox of the daemon's.
///
/// # Errors
/// There is no such sandbox, or the daemon does not answer.
pub(in crate::cli) fn in_force(sandbox: &str) -> anyhow::Result<Vec<Text>> {
    of_revision(sandbox, None)
}

/// The same of the policy that was in force under a number.
///
/// # Errors
/// As [`in_force`], or there was none of that number.
pub(in crate::cli) fn of_revision(
    sandbox: &str,
    revision: Option<u32>,
) -> anyhow::Result<Vec<Text>> {
    let found = Whose::Sandbox(sandbox.to_owned()).pick(revision)?;
    Ok(convert::own_texts(found.texts))
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
        let found = Whose::of(self.sandbox).pick(self.revision)?;
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
        let (all, in_force) = Whose::of(self.sandbox).revisions()?;
        let mut out = std::io::stdout().lock();
        if self.format == Format::Json {
            let all = all.iter().map(|found| {
                let mut value = value(found);
                value["in_force"] = (found.revision == in_force).into();
                value
            });
            let all: Vec<_> = all.collect();
            writeln!(out, "{}", serde_json::to_string_pretty(&all)?)?;
            return Ok(ExitCode::SUCCESS);
        }
        writeln!(out, "{:>8}  {:20}  {:10}  {:12}  FILES", "REVISION", "SET", "BY", "DIGEST")?;
        for found in all {
            let names: Vec<&str> = found.texts.iter().map(|text| text.name.as_str()).collect();
            let digest = found.digest.get(..12).unwrap_or(&found.digest);
            let (by, when) = (user(found.author), time(found.time));
            let mark = if found.revision == in_force { "  (in force)" } else { "" };
            writeln!(
                out,
                "{:>8}  {when:20}  {by:10}  {digest:12}  {}{mark}",
                found.revision,
                names.join(", ")
            )?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Diff {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let from = match &self.from {
            None => None,
            Some(text) => match text.parse() {
                Ok(number) => Some(number),
                Err(_) if !self.global && self.to.is_none() => {
                    let files = [Path::new(&self.sandbox), Path::new(text)];
                    return by_meaning(files, self.user.as_deref(), self.format);
                }
                Err(_) => bail!("`{text}` is no number of a revision"),
            },
        };
        let (whose, numbers) = Whose::of_words(self.global, self.sandbox, [from, self.to])?;
        let [Some(from), to] = numbers else { bail!("name the earlier revision") };
        let (from, to) = (whose.pick(Some(from))?, whose.pick(to)?);
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

/// What the policy of one file means that another does not.
fn by_meaning(
    [before, after]: [&Path; 2],
    user: Option<&str>,
    format: Format,
) -> anyhow::Result<ExitCode> {
    let here = std::env::current_dir().ok();
    let judge = |file: &Path| {
        let loaded = load_any(file, &[], user)?;
        Judge::of(loaded.policy, here.as_deref())
    };
    let (before, after) = match (judge(before), judge(after)) {
        (Ok(before), Ok(after)) => (before, after),
        (before, after) => {
            let errors = [before.err(), after.err()].into_iter().flatten().flatten();
            return refused(&errors.collect::<Vec<_>>());
        }
    };
    let found = compare(&before, &after);
    let mut out = std::io::stdout().lock();
    if format == Format::Json {
        writeln!(out, "{}", serde_json::to_string_pretty(&found)?)?;
        return Ok(ExitCode::from(u8::from(!found.is_empty())));
    }
    let style = Style::of(&out);
    for Difference { kind, what, detail } in &found {
        let line = match kind {
            Kind::Opens => style.good(format!("+ {what}")),
            Kind::Closes => style.bad(format!("- {what}")),
            Kind::Changes => style.doubtful(format!("~ {what}")),
        };
        let detail = detail.as_ref().map(|detail| style.aside(format!("  {detail}")));
        writeln!(out, "{line}{}", detail.unwrap_or_default())?;
    }
    Ok(ExitCode::from(u8::from(!found.is_empty())))
}

impl Rollback {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let (whose, numbers) = Whose::of_words(self.global, self.sandbox, [self.revision, None])?;
        let [Some(revision), None] = numbers else { bail!("name one revision") };
        let expected_revision = self.expect.unwrap_or_default();
        let sandbox = match whose {
            Whose::Sandbox(sandbox) => sandbox,
            Whose::Host => {
                let request = proto::SetGlobalPolicyRequest {
                    revision,
                    expected_revision,
                    ..Default::default()
                };
                return set_global(request, self.format);
            }
        };
        let request =
            proto::RollbackRequest { sandbox: sandbox.clone(), revision, expected_revision };
        let answer = own(asked(|client| async move {
            Ok(client.sandboxes().rollback(request).await?.into_inner())
        })?)?;
        answered(&answer, &sandbox, self.format)
    }
}

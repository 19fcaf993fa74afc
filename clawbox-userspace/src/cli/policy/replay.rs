//! `clawbox policy replay`: what a policy would have said to what was recorded under another.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use serde_json::Value;

use super::super::Format;
use super::super::complete;
use super::super::style::Style;
use super::refused;
use crate::audit::line::harmless;
use crate::audit::lines::Lines;
use crate::audit::record::Record;
use crate::audit::store::event::object;
use crate::audit::store::filter::{Filter, Pattern};
use crate::audit::store::read::{Cursor, Reader};
use crate::audit::store::schema::Text;
use crate::audit::store::starts::Workdirs;
use crate::judge::Judge;
use crate::policy::{Diagnostic, load_texts};
use crate::presets::{First, fill};
use crate::why::replay::{Changed, Replay, Replayed};
use crate::why::seen::Seen;
use crate::why::trail::begun_at;

/// What was recorded, by where its sandbox was started.
type Replays = BTreeMap<Option<String>, Replay>;

/// Ask a policy about all that was recorded, and show what it would decide otherwise
///
/// Of a sandbox's own trail, or of the host's store of records. Nothing is run.
#[derive(Debug, Args)]
#[command(after_help = "\
Exit status: 0 it would decide the same; 1 something would change; 2 the trail or the policy cannot be
read.

Examples:
  clawbox policy replay /var/log/clawbox/agent.jsonl --policy next.yaml
  clawbox policy replay /var/lib/clawbox/audit --sandbox agent --policy next.yaml --format json")]
pub(super) struct ReplayCommand {
    /// A sandbox's trail, or the directory of a store
    #[arg(value_name = "TRAIL")]
    trail: PathBuf,
    /// The policy
    #[arg(long, value_name = "FILE", required_unless_present = "profile")]
    policy: Option<PathBuf>,
    /// A built-in policy for one agent, in place of a file
    #[arg(long, value_name = "NAME", conflicts_with = "policy", add = complete::profiles())]
    profile: Option<String>,
    /// Preset to merge into the policy, a built-in one or a file; may be repeated
    #[arg(long, value_name = "NAME|FILE", add = complete::presets())]
    preset: Vec<String>,
    /// Of a store, this sandbox's records alone
    #[arg(long, value_name = "NAME", add = complete::sandboxes())]
    sandbox: Option<String>,
    /// Whose home `~` is, in place of the policy's run_as_user
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// Where the sandbox would start [default: where it was started]
    #[arg(long, value_name = "DIR")]
    workdir: Option<PathBuf>,
    /// Output format
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

impl ReplayCommand {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        // What is wrong with the policy is said before anything is read.
        // Rules stand at whole paths.
        let named = self.workdir.as_deref().and_then(|named| std::path::absolute(named).ok());
        let first = match self.judge(named.as_deref()) {
            Ok(judge) => judge,
            Err(diagnostics) => return refused(&diagnostics),
        };
        let mut replays = Replays::new();
        if self.trail.is_dir() {
            self.store(&mut replays)
        } else {
            trail(&self.trail, &mut replays)
        }
        .with_context(|| format!("cannot read `{}`", self.trail.display()))?;
        let mut replayed = Replayed::default();
        for (workdir, replay) in &replays {
            let one = match (&self.workdir, workdir) {
                (None, Some(workdir)) => match self.judge(Some(Path::new(workdir))) {
                    Ok(judge) => replay.under(&judge),
                    Err(diagnostics) => return refused(&diagnostics),
                },
                _ => replay.under(&first),
            };
            replayed.add(one);
        }
        let mut out = std::io::stdout().lock();
        match self.format {
            Format::Json => writeln!(out, "{}", serde_json::to_string_pretty(&replayed)?)?,
            Format::Text => print(&mut out, Style::of(&std::io::stdout()), &replayed)?,
        }
        Ok(ExitCode::from(u8::from(!replayed.changed.is_empty())))
    }

    fn judge(&self, workdir: Option<&Path>) -> Result<Judge, Vec<Diagnostic>> {
        let first = match (&self.policy, &self.profile) {
            (Some(policy), _) => First::File(policy.clone()),
            (None, profile) => First::Profile(profile.clone().unwrap_or_default()),
        };
        let filled = fill(&first, &self.preset, self.user.as_deref())?;
        Judge::of(load_texts(&filled.texts)?.policy, workdir)
    }

    fn store(&self, replays: &mut Replays) -> anyhow::Result<()> {
        let mut wanted = Filter::default();
        let whose = self.sandbox.clone().map(Pattern::Sandbox);
        if let Some(sandbox) = &whose {
            wanted.text(&[Text::Sandbox], sandbox.clone());
        }
        let workdirs = Workdirs::read(&self.trail, whose)?;
        let mut reader = Reader::at(&self.trail, Cursor::default());
        while let Some(batch) = reader.next(&mut wanted)? {
            for row in wanted.rows(&batch) {
                let workdir = workdirs.of(row).map(str::to_owned);
                let replay = replays.entry(workdir).or_default();
                replay.add(&Seen::of_row(&Value::Object(object(row))));
            }
        }
        Ok(())
    }
}

fn trail(path: &Path, replays: &mut Replays) -> anyhow::Result<()> {
    let mut workdir = None;
    for line in Lines::of(path, 0)? {
        let Ok(record) = serde_json::from_slice::<Record>(&line?) else { continue };
        if let Some(began) = begun_at(&record) {
            workdir = began.map(str::to_owned);
        }
        replays.entry(workdir.clone()).or_default().add(&Seen::from(&record));
    }
    Ok(())
}

fn print(out: &mut impl Write, style: Style, replayed: &Replayed) -> std::io::Result<()> {
    for Changed { program, what, is, reason, rule, count, .. } in &replayed.changed {
        let verdict = match *is {
            "allow" => style.good("would be allowed"),
            _ => style.bad("would be denied "),
        };
        let why = rule.as_deref().unwrap_or(reason);
        let line = harmless(&format!("{program} → {what}  ({why})"));
        writeln!(out, "{verdict}  {count:>6} × {line}")?;
    }
    let Replayed { same, not_asked, changed } = replayed;
    let (kinds, not_asked) = match not_asked {
        0 => (changed.len(), String::new()),
        many => {
            (changed.len(), format!("; {many} records are nothing that a policy is asked about"))
        }
    };
    writeln!(out, "{same} decisions would be the same, {kinds} kinds would change{not_asked}")
}

//! `clawbox preset`: what is built in, and into a policy's file or out of it, with the difference shown first.

use std::fs::{self, OpenOptions};
use std::io::{BufRead, IsTerminal, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use serde::Serialize;
use similar::TextDiff;

use super::Format;
use super::policy::refused;
use super::style::Style;
use crate::policy::{Diagnostic, drafted, source};
use crate::presets::embedded::PRESETS;
use crate::presets::{Filler, Home, Named, edit, read_preset};

/// List, show, add and remove ready-made rules for services
///
/// A preset is a fragment of a policy for one service. `clawbox run --preset NAME` merges it for one run,
/// `clawbox preset add` writes it into a policy's file.
#[derive(Debug, Args)]
pub struct PresetCommand {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    List(List),
    Show(Show),
    Add(Add),
    Remove(Remove),
}

/// List the presets that are built in
#[derive(Debug, Args)]
struct List {
    /// How to print them
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// Print a preset
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  clawbox preset show github
  clawbox preset show pypi --resolved      # with the hosts of this machine's pip settings")]
struct Show {
    /// A built-in preset, or a file, which has a `/` or ends with .yaml
    #[arg(value_name = "NAME")]
    name: String,
    /// With the hosts of this machine's settings in place of `host_from`
    #[arg(long)]
    resolved: bool,
    /// How to print it
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// Add a preset to a policy's file
///
/// The entries are written below `network_policies`, between two comments; nothing else of the file
/// changes. The difference is shown first. `host_from` becomes the hosts of this machine's settings.
#[derive(Debug, Args)]
#[command(after_help = "\
Exit status: 0 added, or shown with --dry-run; 1 not wanted; 2 it cannot be added.

Examples:
  clawbox preset add slack policy.yaml
  clawbox preset add pypi policy.yaml --dry-run")]
struct Add {
    #[command(flatten)]
    what: What,
}

/// Take a preset that was added out of a policy's file again
///
/// The file is then, to the byte, what it would be without it.
#[derive(Debug, Args)]
#[command(after_help = "\
Exit status: 0 removed, or shown with --dry-run; 1 not wanted; 2 it is not in the file.

Examples:
  clawbox preset remove slack policy.yaml")]
struct Remove {
    #[command(flatten)]
    what: What,
}

#[derive(Debug, Args)]
struct What {
    /// A built-in preset, or a file, which has a `/` or ends with .yaml
    #[arg(value_name = "NAME")]
    name: String,
    /// The policy
    #[arg(value_name = "FILE")]
    policy: PathBuf,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    /// Show the difference, and change nothing
    #[arg(long, conflicts_with = "yes")]
    dry_run: bool,
}

/// What is printed about a preset.
#[derive(Serialize)]
struct About {
    name: String,
    description: String,
    entries: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
}

impl PresetCommand {
    /// Runs the verb.
    ///
    /// # Errors
    /// A file that cannot be read or written, or nobody to ask.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        match self.verb {
            Verb::List(list) => list.run(),
            Verb::Show(show) => show.run(),
            Verb::Add(Add { what }) => what.change(|policy, name| {
                let preset = one(read_preset(name))?;
                let mut filler = Filler::here(Home::Later);
                let filled = filler.fill(&preset.0, &preset.1)?;
                filler.tell();
                edit::add((&policy.0, &policy.1), name, (&preset.0, &filled))
            }),
            Verb::Remove(Remove { what }) => {
                what.change(|policy, name| edit::remove((&policy.0, &policy.1), name))
            }
        }
    }
}

fn one<T>(result: Result<T, Diagnostic>) -> Result<T, Vec<Diagnostic>> {
    result.map_err(|diagnostic| vec![diagnostic])
}

impl List {
    fn run(self) -> anyhow::Result<ExitCode> {
        let mut all = Vec::with_capacity(PRESETS.len());
        for preset in PRESETS {
            match about(preset.name, &(preset.name.into(), preset.text.to_owned())) {
                Ok(about) => all.push(About { text: None, ..about }),
                Err(diagnostic) => return refused(&[diagnostic]),
            }
        }
        let mut out = std::io::stdout().lock();
        if self.format == Format::Json {
            writeln!(out, "{}", serde_json::to_string_pretty(&all)?)?;
            return Ok(ExitCode::SUCCESS);
        }
        let style = Style::of(&out);
        let width = all.iter().map(|about| about.name.len()).max().unwrap_or(0);
        for About { name, description, .. } in all {
            writeln!(out, "{}  {description}", style.strong(format!("{name:<width$}")))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn about(name: &str, text: &Named) -> Result<About, Diagnostic> {
    let (description, entries) = drafted::about(&text.0, &text.1)?;
    Ok(About { name: name.to_owned(), description, entries, text: Some(text.1.clone()) })
}

impl Show {
    fn run(self) -> anyhow::Result<ExitCode> {
        let mut text = match read_preset(&self.name) {
            Ok(text) => text,
            Err(diagnostic) => return refused(&[diagnostic]),
        };
        if self.resolved {
            match Filler::here(Home::Later).fill(&text.0, &text.1) {
                Ok(filled) => text.1 = filled,
                Err(diagnostics) => return refused(&diagnostics),
            }
        }
        let about = match about(&self.name, &text) {
            Ok(about) => about,
            Err(diagnostic) => return refused(&[diagnostic]),
        };
        let mut out = std::io::stdout().lock();
        match self.format {
            Format::Json => writeln!(out, "{}", serde_json::to_string_pretty(&about)?)?,
            Format::Text => write!(out, "{}", text.1)?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl What {
    fn change(
        &self,
        edit: impl FnOnce(&Named, &str) -> Result<String, Vec<Diagnostic>>,
    ) -> anyhow::Result<ExitCode> {
        let file: Arc<str> = source::name(&self.policy);
        let before = match source::read(&self.policy) {
            Ok(text) => (file, text),
            Err(diagnostic) => return refused(&[diagnostic]),
        };
        let after = match edit(&before, &self.name) {
            Ok(after) => after,
            Err(diagnostics) => return refused(&diagnostics),
        };
        show_difference(&before, &after)?;
        if self.dry_run {
            return Ok(ExitCode::SUCCESS);
        }
        if !self.yes && !is_wanted(&self.policy)? {
            return Ok(ExitCode::from(1));
        }
        replace(&self.policy, &before.1, &after)
            .with_context(|| format!("cannot replace `{}`", self.policy.display()))?;
        Ok(ExitCode::SUCCESS)
    }
}

fn show_difference(before: &Named, after: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    let style = Style::of(&out);
    for line in difference(&before.0, &before.1, after).lines() {
        match line.chars().next() {
            Some('+') => writeln!(out, "{}", style.good(line))?,
            Some('-') => writeln!(out, "{}", style.bad(line))?,
            _ => writeln!(out, "{line}")?,
        }
    }
    out.flush()
}

fn difference(file: &str, before: &str, after: &str) -> String {
    let diff = TextDiff::from_lines(before, after);
    diff.unified_diff().header(file, file).to_string()
}

fn is_wanted(file: &Path) -> anyhow::Result<bool> {
    if !std::io::stdin().is_terminal() {
        bail!(
            "nobody is there to ask; say --yes to change the file, or --dry-run to see what would"
        );
    }
    let mut out = std::io::stdout().lock();
    write!(out, "Change `{}`? [y/N] ", file.display())?;
    out.flush()?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// Puts another text in place of a file's, all at once, with its mode and its owner. Not if somebody else
/// has changed it meanwhile.
fn replace(file: &Path, before: &str, after: &str) -> anyhow::Result<()> {
    // A link stays one.
    let file = fs::canonicalize(file)?;
    let metadata = fs::metadata(&file)?;
    let mut next = file.clone().into_os_string();
    next.push(format!(".{}.new", std::process::id()));
    let next = PathBuf::from(next);
    let written = || -> anyhow::Result<()> {
        let mut options = OpenOptions::new();
        let mut out = options.write(true).create_new(true).mode(0o600).open(&next)?;
        out.write_all(after.as_bytes())?;
        if metadata.uid() != nix::unistd::geteuid().as_raw()
            || metadata.gid() != nix::unistd::getegid().as_raw()
        {
            std::os::unix::fs::fchown(&out, Some(metadata.uid()), Some(metadata.gid()))?;
        }
        out.set_permissions(fs::Permissions::from_mode(metadata.mode() & 0o7777))?;
        out.sync_all()?;
        if fs::read_to_string(&file)? != before {
            bail!("it has changed meanwhile; look at it and try again");
        }
        Ok(fs::rename(&next, &file)?)
    };
    written().inspect_err(|_| {
        let _ = fs::remove_file(&next);
    })
}

#[cfg(test)]
#[path = "preset_tests.rs"]
mod tests;

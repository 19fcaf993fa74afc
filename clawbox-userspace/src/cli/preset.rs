//! `clawbox preset`: what is built in, and into a policy's file or out of it, with the difference shown first.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde::Serialize;

use super::Format;
use super::complete;
use super::edited::{Asking, change};
use super::listing::{Listed, print_list};
use super::policy::refused;
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
    #[arg(value_name = "NAME", add = complete::presets())]
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
    #[arg(value_name = "NAME", add = complete::presets())]
    name: String,
    /// The policy
    #[arg(value_name = "FILE")]
    policy: PathBuf,
    #[command(flatten)]
    asking: Asking,
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
        print_list(&all, self.format)
    }
}

impl Listed for About {
    fn line(&self) -> (&str, &str) {
        (&self.name, &self.description)
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
        let before = match source::read(&self.policy) {
            Ok(text) => (source::name(&self.policy), text),
            Err(diagnostic) => return refused(&[diagnostic]),
        };
        match edit(&before, &self.name) {
            Ok(after) => change(&self.policy, &before, &after, self.asking),
            Err(diagnostics) => refused(&diagnostics),
        }
    }
}

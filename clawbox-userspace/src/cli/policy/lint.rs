//! `clawbox policy lint`: what in a policy probably does not do what its author meant.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use super::super::Format;
use super::super::complete;
use super::super::style::Style;
use super::{Report, print_diagnostics, report_each};
use crate::lint::{Finding, lint};
use crate::policy::{Diagnostic, load_texts};
use crate::presets::{First, fill};
use crate::sandbox::host_facts::gather;

/// Look a policy through for what its author hardly meant
///
/// Rules without effect, rules that are too wide, hosts that share their addresses with others and are not
/// verified, secrets that can be read by the way. What only BPF LSM holds is a note: a policy with nothing
/// but notes is clean.
#[derive(Debug, Args)]
#[command(after_help = "\
Exit status: 0 clean; 1 something was found; 2 a policy does not load.

Examples:
  clawbox policy lint policy.yaml
  clawbox policy lint policy.yaml --preset github
  clawbox policy lint --profile openclaw
  clawbox policy lint --format json *.yaml | jq '.[].findings[] | select(.check == \"secret\")'")]
pub(super) struct Lint {
    /// Policies or presets
    #[arg(required_unless_present = "profile", value_name = "FILE")]
    files: Vec<PathBuf>,
    /// A built-in policy for one agent
    #[arg(long, value_name = "NAME", conflicts_with = "files", add = complete::profiles())]
    profile: Option<String>,
    /// Preset to merge into each policy, a built-in one or a file; may be repeated
    #[arg(long, value_name = "NAME|FILE", add = complete::presets())]
    preset: Vec<String>,
    /// Whose home `~` is, in place of the policy's run_as_user
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// Output format
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// What is printed about one file.
#[derive(Serialize)]
struct FileReport {
    file: String,
    clean: bool,
    findings: Vec<Finding>,
}

impl Lint {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let of_profile = self.profile.iter().cloned().map(First::Profile);
        let all: Vec<First> =
            self.files.iter().cloned().map(First::File).chain(of_profile).collect();
        report_each(&all, self.format, |first| self.one(first))
    }

    fn one(&self, first: &First) -> Result<FileReport, Vec<Diagnostic>> {
        let filled = fill(first, &self.preset, self.user.as_deref())?;
        let loaded = load_texts(&filled.texts)?;
        let facts = gather(&loaded.policy, true);
        let home = filled.home.as_deref().filter(|home| *home != Path::new("/"));
        let findings = lint(&loaded, &facts, home)?;
        let file = filled.texts.first().map(|(name, _)| name.to_string()).unwrap_or_default();
        let clean = !findings.iter().any(Finding::is_warning);
        Ok(FileReport { file, clean, findings })
    }
}

impl Report for FileReport {
    fn is_good(&self) -> bool {
        self.clean
    }

    fn print(&self, out: &mut impl Write, style: Style) -> std::io::Result<()> {
        let diagnostics: Vec<Diagnostic> =
            self.findings.iter().map(|finding| finding.diagnostic.clone()).collect();
        print_diagnostics(out, style, &diagnostics)?;
        let found = self.findings.iter().filter(|finding| finding.is_warning()).count();
        let notes = self.findings.len() - found;
        let notes = match notes {
            0 => String::new(),
            1 => ", 1 note".to_owned(),
            many => format!(", {many} notes"),
        };
        let file = style.strong(&self.file);
        match found {
            0 => writeln!(out, "{file}: {}{notes}", style.good("clean")),
            1 => writeln!(out, "{file}: {}{notes}", style.doubtful("1 warning")),
            many => writeln!(out, "{file}: {}{notes}", style.doubtful(format!("{many} warnings"))),
        }
    }
}

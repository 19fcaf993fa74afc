//! `clawbox policy check`: does a file load, and what of it is enforced here?

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use super::super::complete;
use super::{DOES_NOT_LOAD, Format, Style, print_diagnostics};
use crate::compile::compile;
use crate::kernel::lsm;
use crate::policy::enforceability::{Part, Report, Status, assess};
use crate::policy::{Diagnostic, Kind, Loaded, Severity};
use crate::presets::load_any;
use crate::sandbox::host_facts::gather;

/// Check whether a policy loads and what of it this machine enforces
///
/// Every mistake is printed as file:line:column with what to write instead. A policy that loads
/// is listed part by part: which layer enforces it here, and how far.
#[derive(Debug, Args)]
#[command(after_help = "\
Exit status: 0 loads and is fully enforceable here; 1 loads, partly enforceable, each such part
named; 2 does not load.

Examples:
  clawbox policy check policy.yaml
  clawbox policy check policy.yaml --preset github --user agent
  clawbox policy check --format json policies/*.yaml | jq '.[].parts[] | select(.status != \"full\")'")]
pub(super) struct Check {
    /// Policies, presets or blueprints
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
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
    result: &'static str,
    diagnostics: Vec<Diagnostic>,
    parts: Vec<Part>,
    /// Whether `clawbox run` refuses the policy here.
    run_refuses: bool,
}

impl FileReport {
    fn code(&self) -> u8 {
        match self.result {
            "full" => 0,
            "partly" => 1,
            _ => DOES_NOT_LOAD,
        }
    }
}

impl Check {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let check = |file: &PathBuf| check(file, &self.preset, self.user.as_deref());
        let reports: Vec<FileReport> = self.files.iter().map(check).collect();
        let mut out = std::io::stdout().lock();
        match self.format {
            Format::Json => writeln!(out, "{}", serde_json::to_string_pretty(&reports)?)?,
            Format::Text => {
                let style = Style::of(&out);
                for report in &reports {
                    print(&mut out, style, report)?;
                }
            }
        }
        let worst = reports.iter().map(FileReport::code).max().unwrap_or(0);
        Ok(ExitCode::from(worst))
    }
}

fn check(file: &Path, presets: &[String], user: Option<&str>) -> FileReport {
    let compiled = load_any(file, presets, user).and_then(|loaded| {
        compile(&loaded.policy, 1)?;
        Ok(loaded)
    });
    let name = file.display().to_string();
    match compiled {
        Ok(loaded) => {
            let report =
                assess(&loaded, &gather(&loaded.policy, lsm::refusal_when_tried().is_none()));
            loads(name, loaded, report)
        }
        Err(diagnostics) => FileReport {
            file: name,
            result: "does-not-load",
            diagnostics,
            parts: Vec::new(),
            run_refuses: true,
        },
    }
}

fn loads(file: String, loaded: Loaded, report: Report) -> FileReport {
    let run_refuses = loaded.kind != Kind::Policy || !report.refusals(&loaded.policy).is_empty();
    let result = if report.is_full() { "full" } else { "partly" };
    let mut diagnostics = loaded.diagnostics;
    diagnostics.extend(report.warnings);
    diagnostics.sort_by(|a, b| a.origin.cmp(&b.origin));
    FileReport { file, result, diagnostics, parts: report.parts, run_refuses }
}

fn print(out: &mut impl Write, style: Style, report: &FileReport) -> std::io::Result<()> {
    print_diagnostics(out, style, &report.diagnostics)?;
    for part in &report.parts {
        let status = format!("{:<6}", part.status.name());
        let status = match part.status {
            Status::Full => style.good(status),
            Status::Partly | Status::Denied => style.doubtful(status),
            Status::Not => style.bad(status),
        };
        writeln!(
            out,
            "{status} {} {}",
            part.part,
            style.aside(format!("[{}] {}", part.layer.name(), part.origin))
        )?;
        if let Some(detail) = &part.detail {
            writeln!(out, "       {detail}")?;
        }
    }
    let short = report.parts.iter().filter(|part| part.status != Status::Full).count();
    let file = style.strong(&report.file);
    match report.result {
        "full" => writeln!(out, "{file}: {}", style.good("fully enforceable here")),
        "partly" => writeln!(
            out,
            "{file}: {}: {short} of {} parts are not enforced as written",
            style.doubtful("partly enforceable here"),
            report.parts.len()
        ),
        _ => {
            let errors = report
                .diagnostics
                .iter()
                .filter(|diagnostic| diagnostic.severity == Severity::Error)
                .count();
            let noun = if errors == 1 { "error" } else { "errors" };
            writeln!(out, "{file}: {}: {errors} {noun}", style.bad("does not load"))
        }
    }
}

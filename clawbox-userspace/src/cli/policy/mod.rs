//! `clawbox policy`: look at policies without enforcing them, and give a running sandbox, or all of a host,
//! another.

mod allow;
mod check;
mod delete;
mod explain;
mod lint;
mod replay;
pub(super) mod revisions;
mod schema;
mod set;
mod test;

use std::io::Write;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde::Serialize;

use super::Format;
use super::failure::{self, Failure};
use super::style::Style;
use crate::policy::{Diagnostic, Severity};

pub use set::Set;

/// Check, explain and edit policies
#[derive(Debug, Args)]
pub struct PolicyCommand {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Check(check::Check),
    Explain(explain::Explain),
    Schema(schema::Schema),
    Lint(lint::Lint),
    Test(test::Test),
    Replay(replay::ReplayCommand),
    Allow(allow::Allow),
    Set(Set),
    Get(revisions::Get),
    List(revisions::List),
    Diff(revisions::Diff),
    Rollback(revisions::Rollback),
    Delete(delete::Delete),
}

/// A policy that does not load.
pub(super) const DOES_NOT_LOAD: u8 = 2;

impl PolicyCommand {
    /// Runs the verb.
    ///
    /// # Errors
    ///
    /// Output that cannot be written.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        match self.verb {
            Verb::Check(check) => check.run(),
            Verb::Explain(explain) => explain.run(),
            Verb::Schema(schema) => schema.run(),
            Verb::Allow(allow) => allow.run(),
            Verb::Lint(lint) => lint.run(),
            Verb::Replay(replay) => replay.run(),
            Verb::Test(test) => test.run(),
            Verb::Set(set) => set.run(),
            Verb::Get(get) => get.run(),
            Verb::List(list) => list.run(),
            Verb::Diff(diff) => diff.run(),
            Verb::Rollback(rollback) => rollback.run(),
            Verb::Delete(delete) => delete.run(),
        }
    }
}

/// Prints why something cannot be done, and gives the status for it.
pub(super) fn refused(diagnostics: &[Diagnostic]) -> anyhow::Result<ExitCode> {
    if failure::is_json() {
        let failures: Vec<Failure> = diagnostics.iter().map(Failure::from).collect();
        failure::print(&failures);
        return Ok(ExitCode::from(DOES_NOT_LOAD));
    }
    let mut err = std::io::stderr().lock();
    let style = Style::of(&err);
    print_diagnostics(&mut err, style, diagnostics)?;
    Ok(ExitCode::from(DOES_NOT_LOAD))
}

/// What is said of one of several files.
trait Report: Serialize {
    /// Whether there is nothing to mend.
    fn is_good(&self) -> bool;
    /// For people.
    fn print(&self, out: &mut impl Write, style: Style) -> std::io::Result<()>;
}

/// Says it of each, and what keeps some of them from being looked at.
fn report_each<I, R: Report>(
    all: &[I],
    format: Format,
    of: impl Fn(&I) -> Result<R, Vec<Diagnostic>>,
) -> anyhow::Result<ExitCode> {
    let (mut reports, mut errors) = (Vec::with_capacity(all.len()), Vec::new());
    for one in all {
        match of(one) {
            Ok(report) => reports.push(report),
            Err(mut diagnostics) => errors.append(&mut diagnostics),
        }
    }
    let mut out = std::io::stdout().lock();
    match format {
        Format::Json => writeln!(out, "{}", serde_json::to_string_pretty(&reports)?)?,
        Format::Text => {
            let style = Style::of(&out);
            reports.iter().try_for_each(|report| report.print(&mut out, style))?;
        }
    }
    if !errors.is_empty() {
        return refused(&errors);
    }
    Ok(ExitCode::from(u8::from(!reports.iter().all(Report::is_good))))
}

pub(super) fn print_diagnostics(
    out: &mut impl Write,
    style: Style,
    diagnostics: &[Diagnostic],
) -> std::io::Result<()> {
    for diagnostic in diagnostics {
        let severity = diagnostic.severity.name();
        let severity = match diagnostic.severity {
            Severity::Error => style.bad(severity),
            Severity::Warning => style.doubtful(severity),
            Severity::Note => style.aside(severity),
        };
        write!(out, "{}: {severity}: {}", style.strong(&diagnostic.origin), diagnostic.message)?;
        match &diagnostic.remedy {
            Some(remedy) => writeln!(out, "; {remedy}")?,
            None => writeln!(out)?,
        }
    }
    Ok(())
}

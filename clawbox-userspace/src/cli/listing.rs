//! What is built in, listed: a name and what it is for, a line each.

use std::io::Write;
use std::process::ExitCode;

use serde::Serialize;

use super::Format;
use super::style::Style;

/// Something with a name and a sentence.
pub(super) trait Listed: Serialize {
    /// They.
    fn line(&self) -> (&str, &str);
}

/// Prints them.
///
/// # Errors
/// Standard output cannot be written.
pub(super) fn print_list<T: Listed>(all: &[T], format: Format) -> anyhow::Result<ExitCode> {
    let mut out = std::io::stdout().lock();
    if format == Format::Json {
        writeln!(out, "{}", serde_json::to_string_pretty(all)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let style = Style::of(&out);
    let width = all.iter().map(|listed| listed.line().0.len()).max().unwrap_or(0);
    for (name, description) in all.iter().map(Listed::line) {
        writeln!(out, "{}  {description}", style.strong(format!("{name:<width$}")))?;
    }
    Ok(ExitCode::SUCCESS)
}

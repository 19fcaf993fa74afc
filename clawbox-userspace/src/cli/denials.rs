//! What was denied, in brief, when a run ends; and a sandbox's trail by way of the daemon.

use std::io::{self, Write};
use std::path::Path;

use super::sandboxes::asked;
use super::style::Style;
use crate::api::proto;
use crate::audit::line::harmless;
use crate::why::trail::Told;
use crate::why::word_of_shell;

/// Kinds of denials that are told one by one.
const SHOWN: usize = 6;

/// Tells who watches what was denied, and how to have it explained.
pub(super) fn tell(denied: u64, told: Option<&Told>, place: &str) {
    // Nobody is there to hear that it cannot be told.
    let _ = write(&mut io::stderr().lock(), denied, told, place);
}

fn write(out: &mut impl Write, denied: u64, told: Option<&Told>, place: &str) -> io::Result<()> {
    let style = Style::of(&io::stderr());
    let noun = if denied == 1 { "denial" } else { "denials" };
    writeln!(
        out,
        "clawbox: {}; `clawbox why {place}` explains the last",
        style.doubtful(format!("{denied} {noun}"))
    )?;
    let Some(told) = told else { return Ok(()) };
    let mut all: Vec<_> = told.denials.iter().collect();
    all.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    for ((what, by, reason), count) in all.iter().take(SHOWN) {
        let line = harmless(&format!("{what} by {by} ({reason})"));
        writeln!(out, "{count:>6} × {line}")?;
    }
    let rest = all.len().saturating_sub(SHOWN);
    if rest > 0 { writeln!(out, "         and {rest} more kinds") } else { Ok(()) }
}

/// What names a trail's file on the command line of `clawbox why`.
pub(super) fn of_trail(path: &Path) -> String {
    format!("--trail {}", word_of_shell(&path.display().to_string()))
}

/// Reads a sandbox's trail by way of the daemon.
///
/// # Errors
/// There is no such sandbox or trail, or the daemon does not answer.
pub(super) fn trail_of(sandbox: &str, denials: bool, last: u64) -> anyhow::Result<Told> {
    let request = proto::LogsRequest { sandbox: sandbox.to_owned(), follow: false, denials, last };
    asked(|client| async move {
        let mut lines = client.sandboxes().logs(request).await?.into_inner();
        let (mut told, mut rest) = (Told::default(), Vec::new());
        while let Some(more) = lines.message().await? {
            rest.extend_from_slice(&more.lines);
            while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = rest.drain(..=end).collect();
                told.line(&line);
            }
        }
        Ok(told)
    })
}

//! What a running sandbox answers, for people and for machines, and as an exit status.

use std::io::{self, Write};
use std::process::ExitCode;

use super::Format;
use super::style::Style;
use crate::sandbox::control::{Answer, Connection};

/// Nothing was changed.
const REFUSED: u8 = 1;
/// The policy has mistakes.
const DOES_NOT_LOAD: u8 = 2;

/// Prints an answer and gives the exit status.
///
/// # Errors
/// Standard output cannot be written.
pub(super) fn answered(answer: &Answer, sandbox: &str, format: Format) -> anyhow::Result<ExitCode> {
    let mut out = io::stdout().lock();
    match format {
        Format::Json => {
            serde_json::to_writer_pretty(&mut out, answer)?;
            writeln!(out)?;
        }
        Format::Text => print(&mut out, answer, sandbox)?,
    }
    Ok(match answer {
        Answer::Refused { .. } => ExitCode::from(REFUSED),
        Answer::DoesNotLoad { .. } => ExitCode::from(DOES_NOT_LOAD),
        _ => ExitCode::SUCCESS,
    })
}

fn print(out: &mut impl Write, answer: &Answer, sandbox: &str) -> io::Result<()> {
    let style = Style::of(&io::stdout());
    match answer {
        Answer::Changed { generation, microseconds, connections_reset, warnings } => {
            for warning in warnings {
                writeln!(out, "{}: {warning}", style.doubtful("warning"))?;
            }
            let milliseconds = *microseconds as f64 / 1000.0;
            let reset = match connections_reset {
                0 => String::new(),
                1 => "; 1 open connection was reset".to_owned(),
                many => format!("; {many} open connections were reset"),
            };
            let sandbox = style.strong(sandbox);
            writeln!(
                out,
                "{sandbox}: policy {generation} is in force (after {milliseconds:.1} ms){reset}"
            )
        }
        Answer::Waiting { connections } if connections.is_empty() => {
            writeln!(out, "{}: nothing waits for an answer", style.strong(sandbox))
        }
        Answer::Waiting { connections } => {
            writeln!(out, "{:>4}  {:>7}  {:>5}  {:<40} FROM", "ID", "WAITED", "LEFT", "TO")?;
            connections.iter().try_for_each(|connection| {
                let Connection { id, seconds, seconds_left, pid, .. } = connection;
                let to = endpoint(connection);
                let from = program(connection);
                writeln!(out, "{id:>4}  {seconds:>6}s  {seconds_left:>4}s  {to:<40} {from} ({pid})")
            })
        }
        Answer::Approved { connection, generation } => {
            let (from, to) = (program(connection), endpoint(connection));
            match generation {
                Some(policy) => writeln!(
                    out,
                    "approved: {from} to {to}, as long as the sandbox runs (policy {policy})"
                ),
                None => writeln!(out, "approved: {from} to {to}, this once"),
            }
        }
        Answer::Denied { connection } => {
            writeln!(out, "denied: {} to {}", program(connection), endpoint(connection))
        }
        Answer::Refused { why, parts } => {
            writeln!(out, "{}: {why}", style.bad("refused"))?;
            parts.iter().try_for_each(|part| writeln!(out, "  {part}"))
        }
        Answer::DoesNotLoad { errors } => {
            errors.iter().try_for_each(|error| writeln!(out, "{error}"))
        }
    }
}

fn endpoint(connection: &Connection) -> String {
    let Connection { host, port, .. } = connection;
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// The sandbox gives its files their names: what a terminal would act on is spelt out.
fn program(connection: &Connection) -> String {
    let path = connection.program.as_deref().unwrap_or("a program that has ended");
    path.escape_debug().to_string()
}

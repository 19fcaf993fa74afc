//! `clawbox logs`: a sandbox's audit trail, by way of the daemon, which alone may read it.

use std::io::Write;
use std::process::ExitCode;

use clap::Args;

use super::Format;
use super::complete;
use super::sandboxes::asked;
use crate::api::proto;
use crate::audit::line;
use crate::audit::record::Record;

/// Print a sandbox's audit trail
///
/// Of a sandbox that runs, or that has ended and whose trail is still there: your own, or any as root or a
/// member of the group `clawbox`.
#[derive(Debug, Args)]
#[command(after_help = "\
Exit status: 0 printed; 2 there is no such sandbox or no trail.

Examples:
  clawbox logs agent -n 20
  clawbox logs agent --denials -f
  clawbox logs agent-12 --format json | jq .object")]
pub struct Logs {
    /// The sandbox, by its name, or by NAME-NUMBER where several have it
    #[arg(add = complete::sandboxes())]
    sandbox: String,
    /// Go on with what is written from now on, until the sandbox ends
    #[arg(short, long)]
    follow: bool,
    /// Denials alone
    #[arg(long)]
    denials: bool,
    /// The last so many records alone
    #[arg(short = 'n', long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    lines: Option<u64>,
    /// How to print them: a line of text each, or as they are in the trail
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

impl Logs {
    /// Prints it.
    ///
    /// # Errors
    /// There is none of this name, or the daemon does not answer.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let Self { sandbox, follow, denials, lines, format } = self;
        let request =
            proto::LogsRequest { sandbox, follow, denials, last: lines.unwrap_or_default() };
        let printed = asked(|client| async move {
            let mut told = client.sandboxes().logs(request).await?.into_inner();
            let mut out = std::io::stdout();
            while let Some(told) = told.message().await? {
                if let Err(error) = print(&mut out, &told.lines, format) {
                    return Ok(Err(error));
                }
            }
            Ok(Ok(()))
        })?;
        printed?;
        Ok(ExitCode::SUCCESS)
    }
}

fn print(out: &mut impl Write, lines: &[u8], format: Format) -> anyhow::Result<()> {
    for text in lines.split_inclusive(|byte| *byte == b'\n') {
        match serde_json::from_slice::<Record>(text) {
            Ok(record) if format == Format::Text => writeln!(out, "{}", line::of(&record))?,
            // As it is, for programs; and of a later version, for people too.
            _ => out.write_all(text)?,
        }
    }
    Ok(out.flush()?)
}

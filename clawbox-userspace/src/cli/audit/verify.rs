//! `clawbox audit verify`: whether the store is as it was written.

use std::io::Write;
use std::process::ExitCode;

use clap::Args;

use super::Place;
use crate::audit::store::verify::verify;
use crate::cli::Format;

/// Check that no batch of the store was changed, removed, moved or cut off
///
/// Each batch names the one before it by its SHA-256; the host signs the last batch of every segment that it
/// closes, and how far the open one has come. Whoever can read the host's key can sign anything: to be safe
/// from them, keep what this prints with --format json, or the key's public half, on another host.
#[derive(Debug, Args)]
#[command(after_help = "\
Exit status: 0 all is as it was written; 1 something is not; 2 the store cannot be read.

Examples:
  clawbox audit verify
  clawbox audit verify --dir /mnt/copy --key \"$(cat host.public.key)\"
  clawbox audit verify --format json | jq .problems")]
pub(super) struct Verify {
    #[command(flatten)]
    place: Place,
    /// The host's public key, 64 digits [default: of the daemon's key, or with --dir what the store says]
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    /// How to print what was found
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

impl Verify {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let directory = self.place.directory()?;
        let (key, is_known) = self.place.key(self.key.as_deref())?;
        let found = verify(&directory, key)?;
        let mut out = std::io::stdout().lock();
        match self.format {
            Format::Json => writeln!(out, "{}", serde_json::to_string_pretty(&found)?)?,
            Format::Text => {
                found.problems.iter().try_for_each(|problem| writeln!(out, "{problem}"))?;
                writeln!(
                    out,
                    "{} events in {} batches of {} segments read, {} segments removed by signed lines",
                    found.events, found.batches, found.segments, found.removed
                )?;
                if found.unsigned > 0 {
                    let batches = found.unsigned;
                    writeln!(
                        out,
                        "the last {batches} batches follow each other and are not signed yet"
                    )?;
                }
                let numbers = &found.numbers;
                writeln!(
                    out,
                    "of the kernel's numbers {} are rows, {} are counted as lost, {} are of what the \
                     agent tried itself, {} are none of these",
                    numbers.stored, numbers.lost, numbers.passed, numbers.unexplained
                )?;
                match found.problems.len() {
                    0 if is_known => writeln!(out, "all as this host has written it")?,
                    0 => writeln!(
                        out,
                        "all as the key in the store says; give --key to be sure of that"
                    )?,
                    count => writeln!(out, "{count} problems")?,
                }
            }
        }
        Ok(if found.problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(1) })
    }
}

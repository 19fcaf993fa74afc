//! `clawbox audit tail`: what was stored last, and what is stored from now on.

use std::process::ExitCode;

use clap::Args;

use super::Place;
use super::selection::Selection;
use crate::api::proto::{AuditTail, ReadAuditRequest, read_audit_request::What};
use crate::cli::Format;

/// Print what was stored last
#[derive(Debug, Args)]
#[command(after_help = "\
Exit status: 0 printed; 2 the store cannot be read.

Examples:
  clawbox audit tail
  clawbox audit tail -f --verdict deny
  clawbox audit tail -n 100 --sandbox agent --format json")]
pub(super) struct Tail {
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    selection: Selection,
    /// So many events
    #[arg(short = 'n', long, value_name = "COUNT", default_value_t = 10)]
    lines: u64,
    /// Go on with what is stored from now on
    #[arg(short, long)]
    follow: bool,
    /// How to print them
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

impl Tail {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let Self { place, selection, lines, follow, format } = self;
        place.print(ReadAuditRequest {
            selection: Some(selection.into()),
            what: Some(What::Tail(AuditTail { lines, follow })),
            form: super::form(format),
        })
    }
}

//! `clawbox audit stats`: how much the store has, and of what.

use std::process::ExitCode;

use clap::Args;

use super::Place;
use super::selection::Selection;
use crate::api::proto::{AuditStats, ReadAuditRequest, read_audit_request::What};
use crate::cli::Format;

/// Say how much the store has, and of what
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  clawbox audit stats
  clawbox audit stats --sandbox agent --since 24h --format json")]
pub(super) struct Stats {
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    selection: Selection,
    /// How to print it
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

impl Stats {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let Self { place, selection, format } = self;
        place.print(ReadAuditRequest {
            selection: Some(selection.into()),
            what: Some(What::Stats(AuditStats {})),
            form: super::form(format),
        })
    }
}

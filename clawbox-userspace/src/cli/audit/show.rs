//! `clawbox audit show`: one event with all that is known of it, and how its process came to be.

use std::process::ExitCode;

use clap::Args;

use super::Place;
use crate::api::proto::{ReadAuditRequest, read_audit_request::What};
use crate::cli::Format;

/// Show one event, the rule and policy that decided it, and who started its process
#[derive(Debug, Args)]
#[command(after_help = "\
Exit status: 0 shown; 2 there is no such event.

Examples:
  clawbox audit show 4711
  clawbox audit show 4711 --format json | jq .chain")]
pub(super) struct Show {
    #[command(flatten)]
    place: Place,
    /// Its number, the first column of `clawbox audit query`
    id: u64,
    /// How to print it
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

impl Show {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let Self { place, id, format } = self;
        let (selection, what) = (None, Some(What::Show(id)));
        place.print(ReadAuditRequest { selection, what, form: super::form(format) })
    }
}

//! `clawbox audit query`: events of the store, filtered, sorted and counted.

use std::process::ExitCode;

use clap::{Args, ValueEnum};

use super::Place;
use super::selection::Selection;
use crate::api::proto::{AuditForm, AuditQuery, ReadAuditRequest, read_audit_request::What};
use crate::audit::store::filter::Field;

/// How events are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Form {
    /// A line each, for people
    #[default]
    Table,
    /// A JSON object a line
    Json,
    /// CSV with headings
    Csv,
}

/// Print events of the store
#[derive(Debug, Args)]
#[command(after_help = "\
Exit status: 0 printed; 2 the store cannot be read.

Examples:
  clawbox audit query --sandbox agent --verdict deny --since 2h
  clawbox audit query --path '/etc/**' --binary curl --format json
  clawbox audit query --verdict deny --count-by sandbox,host --limit 10
  clawbox audit query --sort -time --limit 20 --format csv")]
pub(super) struct Query {
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    selection: Selection,
    /// By this column, from below, or with a `-` from above [default: as they were stored]
    #[arg(long, value_name = "COLUMN", allow_hyphen_values = true)]
    sort: Option<String>,
    /// No more than these, after sorting
    #[arg(long, value_name = "COUNT")]
    limit: Option<usize>,
    /// How many there are by what these columns have, at most four; see `query --sort x` for their names
    #[arg(long, value_name = "COLUMNS", value_delimiter = ',', conflicts_with = "sort")]
    count_by: Vec<Field>,
    /// How to print them
    #[arg(long, value_enum, default_value_t)]
    format: Form,
}

impl Query {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let Self { place, selection, sort, limit, count_by, format } = self;
        let count_by = count_by.into_iter().map(|field| field.name().to_owned()).collect();
        let limit = limit.map(|limit| limit as u64);
        let form = match format {
            Form::Table => AuditForm::Unspecified,
            Form::Json => AuditForm::Json,
            Form::Csv => AuditForm::Csv,
        };
        place.print(ReadAuditRequest {
            selection: Some(selection.into()),
            what: Some(What::Query(AuditQuery { sort, limit, count_by })),
            form: form.into(),
        })
    }
}

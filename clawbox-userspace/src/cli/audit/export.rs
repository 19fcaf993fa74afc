//! `clawbox audit export`: events of the store in the formats of others.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, ValueEnum};
use serde_json::Value;

use super::Place;
use super::selection::Selection;
use crate::audit::ask::query::record;
use crate::audit::store::export::{Parquet, fields, headings};
use crate::audit::store::filter::Filter;
use crate::audit::store::read::{Cursor, Reader, Row};
use crate::audit::store::{event, ocsf};

/// A format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Form {
    /// Apache Parquet, with the columns of the store
    Parquet,
    /// A JSON object a line
    Jsonl,
    /// CSV with headings
    Csv,
    /// An event of the Open Cybersecurity Schema Framework 1.5 a line
    Ocsf,
}

/// Write events of the store in another format
///
/// The store itself is Arrow IPC streams, which many tools read as they are: see docs/audit.md.
#[derive(Debug, Args)]
#[command(after_help = "\
Exit status: 0 written; 2 the store cannot be read, or the file not written.

Examples:
  clawbox audit export --format parquet --output day.parquet --since 2026-11-26
  clawbox audit export --format ocsf --verdict deny | gzip > denials.json.gz")]
pub(super) struct Export {
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    selection: Selection,
    /// Which format
    #[arg(long, value_enum)]
    format: Form,
    /// Where to; a file is made for its owner alone [default: standard output]
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

impl Export {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let directory = self.place.directory()?;
        let filter = self.selection.filter(&directory)?;
        let reader = Reader::at(&directory, Cursor::default());
        let to: Box<dyn Write + Send> = match &self.output {
            None => Box::new(io::stdout()),
            Some(path) => {
                let file =
                    File::options().create(true).write(true).truncate(true).mode(0o600).open(path);
                Box::new(file.with_context(|| format!("cannot write `{}`", path.display()))?)
            }
        };
        let mut to = BufWriter::new(to);
        match self.format {
            Form::Parquet => parquet(filter, reader, &mut to)?,
            form => lines(form, filter, reader, &mut to)?,
        }
        to.flush()?;
        Ok(ExitCode::SUCCESS)
    }
}

fn parquet(
    mut filter: Filter,
    mut reader: Reader,
    to: &mut (impl Write + Send),
) -> anyhow::Result<()> {
    let mut out = Parquet::new(to)?;
    while let Some(batch) = reader.next(&mut filter)? {
        out.add(&batch, &filter)?;
    }
    Ok(out.end()?)
}

fn lines(
    form: Form,
    mut filter: Filter,
    mut reader: Reader,
    to: &mut impl Write,
) -> anyhow::Result<()> {
    let host = nix::unistd::gethostname().unwrap_or_default();
    let host = host.to_string_lossy();
    let line = |row: Row<'_>| -> anyhow::Result<String> {
        Ok(match form {
            Form::Csv => record(fields(row))?,
            Form::Ocsf => format!("{}\n", ocsf::event(row, &host)),
            Form::Jsonl | Form::Parquet => format!("{}\n", Value::Object(event::object(row))),
        })
    };
    if form == Form::Csv {
        to.write_all(record(headings())?.as_bytes())?;
    }
    while let Some(batch) = reader.next(&mut filter)? {
        for row in filter.rows(&batch) {
            to.write_all(line(row)?.as_bytes())?;
        }
    }
    Ok(())
}

//! `clawbox audit query`: events of the store, filtered, sorted and counted.

use std::io::Write;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use serde_json::{Map, Value};

use super::selection::Selection;
use super::{Place, first_error};
use crate::audit::store::counts::{self, Counts};
use crate::audit::store::event;
use crate::audit::store::export::{fields, headings};
use crate::audit::store::filter::{Field, Filter};
use crate::audit::store::read::{Cursor, Reader, Row};

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

/// A row that waits to be printed, by what it is sorted by.
struct Kept {
    key: Key,
    line: String,
}

/// Numbers before texts, and what has nothing first of all.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    None,
    Number(i64),
    Text(String),
}

impl Key {
    fn of(row: Row<'_>, field: Field) -> Self {
        match field {
            Field::Time => Self::Number(row.micros()),
            Field::Count => Self::Number(i64::try_from(row.count()).unwrap_or(i64::MAX)),
            Field::Number(number) => {
                row.number(number).map_or(Self::None, |n| Self::Number(n.into()))
            }
            Field::Text(text) => row.text(text).map_or(Self::None, |t| Self::Text(t.to_owned())),
        }
    }
}

impl Query {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let filter = self.selection.filter()?;
        let reader = Reader::at(&self.place.directory()?, Cursor::default());
        let mut out = std::io::BufWriter::new(std::io::stdout().lock());
        if !self.count_by.is_empty() {
            self.count(filter, reader, &mut out)?;
        } else if let Some(sort) = &self.sort {
            let (name, is_down) =
                sort.strip_prefix('-').map_or((sort.as_str(), false), |name| (name, true));
            let field = name.parse().map_err(anyhow::Error::msg)?;
            self.sorted(filter, reader, (field, is_down), &mut out)?;
        } else {
            self.in_order(filter, reader, &mut out)?;
        }
        out.flush()?;
        Ok(ExitCode::SUCCESS)
    }

    fn in_order(
        &self,
        mut filter: Filter,
        mut reader: Reader,
        out: &mut impl Write,
    ) -> anyhow::Result<()> {
        self.head(out)?;
        let mut left = self.limit.unwrap_or(usize::MAX);
        while left > 0
            && let Some(batch) = reader.next(&mut filter)?
        {
            for row in filter.rows(&batch).take(left) {
                out.write_all(self.line(row)?.as_bytes())?;
                left -= 1;
            }
        }
        Ok(())
    }

    fn sorted(
        &self,
        mut filter: Filter,
        mut reader: Reader,
        (field, is_down): (Field, bool),
        out: &mut impl Write,
    ) -> anyhow::Result<()> {
        self.head(out)?;
        let limit = self.limit.unwrap_or(usize::MAX);
        let mut kept: Vec<Kept> = Vec::new();
        // Stable both ways: rows that are equal stay as they were stored.
        let sort = |kept: &mut Vec<Kept>| {
            kept.sort_by(|one, other| match is_down {
                true => other.key.cmp(&one.key),
                false => one.key.cmp(&other.key),
            });
            kept.truncate(limit);
        };
        while let Some(batch) = reader.next(&mut filter)? {
            let rows: Vec<Row<'_>> = filter.rows(&batch).collect();
            for row in rows {
                kept.push(Kept { key: Key::of(row, field), line: self.line(row)? });
                if kept.len() >= limit.saturating_mul(2).max(4_096) && limit < usize::MAX {
                    sort(&mut kept);
                }
            }
        }
        sort(&mut kept);
        Ok(kept.iter().try_for_each(|kept| out.write_all(kept.line.as_bytes()))?)
    }

    fn count(
        &self,
        mut filter: Filter,
        mut reader: Reader,
        out: &mut impl Write,
    ) -> anyhow::Result<()> {
        if self.count_by.len() > counts::MOST {
            anyhow::bail!("`--count-by`: at most {} columns", counts::MOST);
        }
        let mut columns: Vec<usize> = self.count_by.iter().map(|field| field.at()).collect();
        columns.push(Field::Count.at());
        filter.show(columns);
        let mut counts = Counts::by(&self.count_by);
        while let Some(batch) = reader.next(&mut filter)? {
            counts.add(&batch, &filter);
        }
        let counted = counts.sorted();
        let counted = counted.iter().take(self.limit.unwrap_or(usize::MAX));
        let names = || self.count_by.iter().map(|field| field.name()).chain(["rows", "events"]);
        let cells = |row: &Map<String, Value>| -> Vec<String> {
            let text =
                |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            names().map(|name| row.get(name).map(text).unwrap_or_default()).collect()
        };
        match self.format {
            Form::Json => {
                for row in counted {
                    writeln!(out, "{}", Value::Object(row.clone()))?;
                }
            }
            Form::Csv => {
                let mut csv = csv::Writer::from_writer(out);
                csv.write_record(names()).map_err(first_error)?;
                counted
                    .map(cells)
                    .try_for_each(|row| csv.write_record(row))
                    .map_err(first_error)?;
                csv.flush()?;
            }
            Form::Table => {
                for row in counted {
                    let count = (row["rows"].to_string(), row["events"].to_string());
                    let mut cells = cells(row);
                    cells.truncate(self.count_by.len());
                    let line = format!("{:>10} {:>12}  {}", count.0, count.1, cells.join("  "));
                    writeln!(out, "{}", crate::audit::line::harmless(&line))?;
                }
            }
        }
        Ok(())
    }

    fn head(&self, out: &mut impl Write) -> anyhow::Result<()> {
        if self.format == Form::Csv {
            out.write_all(record(headings())?.as_bytes())?;
        }
        Ok(())
    }

    fn line(&self, row: Row<'_>) -> anyhow::Result<String> {
        Ok(match self.format {
            Form::Table => format!("{}\n", event::line(row)),
            Form::Json => format!("{}\n", Value::Object(event::object(row))),
            Form::Csv => record(fields(row))?,
        })
    }
}

/// A line of CSV.
pub(super) fn record(cells: impl Iterator<Item = impl AsRef<[u8]>>) -> anyhow::Result<String> {
    let mut csv = csv::Writer::from_writer(Vec::new());
    csv.write_record(cells).map_err(first_error)?;
    let line = csv.into_inner().map_err(|error| error.into_error())?;
    Ok(String::from_utf8_lossy(&line).into_owned())
}

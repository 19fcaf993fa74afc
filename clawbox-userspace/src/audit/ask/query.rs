//! Events of the store, filtered, sorted and counted.

use std::io::Write;

use anyhow::bail;
use serde_json::{Map, Value};

use super::{Out, Permit};
use crate::api::proto::{AuditForm, AuditQuery};
use crate::audit::store::counts::{self, Counts};
use crate::audit::store::event;
use crate::audit::store::export::{fields, headings};
use crate::audit::store::filter::{Field, Filter};
use crate::audit::store::read::{Cursor, Reader, Row};

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

/// What is asked, and in which form it is told.
pub(super) struct Query {
    sort: Option<String>,
    limit: Option<u64>,
    count_by: Vec<Field>,
    form: AuditForm,
    /// No more than these are kept in memory.
    most: usize,
}

impl Query {
    pub(super) fn of(asked: AuditQuery, form: AuditForm, permit: &Permit) -> anyhow::Result<Self> {
        let AuditQuery { sort, limit, count_by } = asked;
        let count_by = count_by.iter().map(|name| name.parse().map_err(anyhow::Error::msg));
        let (count_by, most) = (count_by.collect::<anyhow::Result<_>>()?, permit.most);
        Ok(Self { sort, limit, count_by, form, most })
    }

    fn limit(&self) -> usize {
        self.limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX))
    }

    pub(super) fn answer(
        &self,
        filter: Filter,
        permit: &Permit,
        out: &mut impl Out,
    ) -> anyhow::Result<()> {
        let reader = Reader::at(&permit.directory, Cursor::default());
        if !self.count_by.is_empty() {
            return self.count(filter, reader, out);
        }
        let Some(sort) = &self.sort else { return self.in_order(filter, reader, out) };
        let (name, is_down) =
            sort.strip_prefix('-').map_or((sort.as_str(), false), |name| (name, true));
        let field = name.parse().map_err(anyhow::Error::msg)?;
        self.sorted(filter, reader, (field, is_down), out)
    }

    fn in_order(
        &self,
        mut filter: Filter,
        mut reader: Reader,
        out: &mut impl Out,
    ) -> anyhow::Result<()> {
        self.head(out)?;
        let mut left = self.limit();
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
        out: &mut impl Out,
    ) -> anyhow::Result<()> {
        self.head(out)?;
        let limit = self.limit();
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
                if kept.len() > self.most {
                    bail!(
                        "too many events to be sorted here: say `--limit`, at most {}",
                        self.most / 2
                    );
                }
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
        out: &mut impl Out,
    ) -> anyhow::Result<()> {
        if self.count_by.len() > counts::MOST {
            bail!("`--count-by`: at most {} columns", counts::MOST);
        }
        let mut columns: Vec<usize> = self.count_by.iter().map(|field| field.at()).collect();
        columns.push(Field::Count.at());
        filter.show(columns);
        let mut counts = Counts::by(&self.count_by);
        while let Some(batch) = reader.next(&mut filter)? {
            counts.add(&batch, &filter);
            if counts.len() > self.most {
                bail!("too many different ones to be counted here: count by less");
            }
        }
        let counted = counts.sorted();
        let counted = counted.iter().take(self.limit());
        let names = || self.count_by.iter().map(|field| field.name()).chain(["rows", "events"]);
        let cells = |row: &Map<String, Value>| -> Vec<String> {
            let text =
                |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            names().map(|name| row.get(name).map(text).unwrap_or_default()).collect()
        };
        match self.form {
            AuditForm::Json => {
                for row in counted {
                    writeln!(out, "{}", Value::Object(row.clone()))?;
                }
            }
            AuditForm::Csv => {
                let mut csv = csv::Writer::from_writer(out);
                csv.write_record(names()).map_err(first_error)?;
                counted
                    .map(cells)
                    .try_for_each(|row| csv.write_record(row))
                    .map_err(first_error)?;
                csv.flush()?;
            }
            AuditForm::Unspecified => {
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
        if self.form == AuditForm::Csv {
            out.write_all(record(headings())?.as_bytes())?;
        }
        Ok(())
    }

    fn line(&self, row: Row<'_>) -> anyhow::Result<String> {
        Ok(match self.form {
            AuditForm::Unspecified => format!("{}\n", event::line(row)),
            AuditForm::Json => format!("{}\n", Value::Object(event::object(row))),
            AuditForm::Csv => record(fields(row))?,
        })
    }
}

/// What is wrong with a line of CSV is what is wrong with what it is written to.
pub fn first_error(error: csv::Error) -> anyhow::Error {
    match error.into_kind() {
        csv::ErrorKind::Io(error) => error.into(),
        other => anyhow::anyhow!("{other:?}"),
    }
}

/// A line of CSV.
///
/// # Errors
/// None that can be, of texts.
pub fn record(cells: impl Iterator<Item = impl AsRef<[u8]>>) -> anyhow::Result<String> {
    let mut csv = csv::Writer::from_writer(Vec::new());
    csv.write_record(cells).map_err(first_error)?;
    let line = csv.into_inner().map_err(|error| error.into_error())?;
    Ok(String::from_utf8_lossy(&line).into_owned())
}

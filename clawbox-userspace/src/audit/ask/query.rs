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
use crate::audit::store::read::{Cursor, Loaded, Reader, Row, Wanted as _};

/// A row that waits to be printed, by what it is sorted by.
struct Kept {
    key: Key,
    id: u64,
    line: String,
}

/// The first rows of an order, as many as are asked for.
struct Best {
    kept: Vec<Kept>,
    is_down: bool,
    limit: usize,
    /// Rows are brought into order when there are so many.
    full: usize,
    /// There are as many as are asked for, and this is the last one's.
    last: Option<Key>,
}

impl Best {
    fn of(is_down: bool, limit: usize) -> Self {
        Self { kept: Vec::new(), is_down, limit, full: limit.max(1), last: None }
    }

    /// Whether a row may be one of them.
    fn may_have(&self, key: &Key) -> bool {
        self.last.as_ref().is_none_or(|last| if self.is_down { key >= last } else { key <= last })
    }

    fn add(&mut self, kept: Kept) {
        self.kept.push(kept);
        if self.kept.len() >= self.full && self.limit < usize::MAX {
            self.sort();
            self.full = self.limit.saturating_mul(2).max(4_096);
        }
    }

    /// Rows that are equal stay as they were stored.
    fn sort(&mut self) {
        let is_down = self.is_down;
        self.kept.sort_by(|one, other| {
            let by_key = if is_down { other.key.cmp(&one.key) } else { one.key.cmp(&other.key) };
            by_key.then(one.id.cmp(&other.id))
        });
        self.kept.truncate(self.limit);
        let last = self.kept.last().filter(|_| self.kept.len() == self.limit);
        self.last = last.map(|kept| kept.key.clone());
    }
}

/// Numbers before texts, and what has nothing first of all.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
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
        let mut best = Best::of(is_down, self.limit());
        if field == Field::Time && is_down && self.limit.is_some() {
            // Of most batches the label says that all they have is older.
            let mut places = reader.places(|label| filter.may_have(label).then_some(label.to))?;
            places.sort_by_key(|(_, to)| std::cmp::Reverse(*to));
            for (place, to) in places {
                if !best.may_have(&Key::Number(to)) {
                    break;
                }
                if let Some(batch) = reader.load(place, &mut filter)? {
                    self.sort_in(&mut best, &filter, &batch, field)?;
                }
            }
        } else {
            while let Some(batch) = reader.next(&mut filter)? {
                self.sort_in(&mut best, &filter, &batch, field)?;
            }
        }
        best.sort();
        Ok(best.kept.iter().try_for_each(|kept| out.write_all(kept.line.as_bytes()))?)
    }

    /// Takes those rows of a batch that may be among the first.
    fn sort_in(
        &self,
        best: &mut Best,
        filter: &Filter,
        batch: &Loaded,
        field: Field,
    ) -> anyhow::Result<()> {
        let rows: Vec<Row<'_>> = filter.rows(batch).collect();
        // The latest of them first: where these are asked for, the others need no line.
        for row in rows.into_iter().rev() {
            let key = Key::of(row, field);
            if !best.may_have(&key) {
                continue;
            }
            best.add(Kept { key, id: row.id(), line: self.line(row)? });
            if best.kept.len() > self.most {
                let most = self.most / 2;
                bail!("too many events to be sorted here: say `--limit`, at most {most}");
            }
        }
        Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::store::columns::Columns;
    use crate::audit::store::limits::Limits;
    use crate::audit::store::row;
    use crate::audit::store::schema::Text;
    use crate::audit::store::writer::Writer;

    struct Told(Vec<u8>);

    impl Write for Told {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl Out for Told {
        fn is_open(&self) -> bool {
            true
        }
    }

    fn ids(permit: &Permit, sort: &str, limit: Option<u64>) -> Vec<u64> {
        let asked = AuditQuery { sort: Some(sort.to_owned()), limit, count_by: Vec::new() };
        let query = Query::of(asked, AuditForm::Json, permit).unwrap();
        let mut out = Told(Vec::new());
        query.answer(Filter::default(), permit, &mut out).unwrap();
        let lines = String::from_utf8(out.0).unwrap();
        let rows = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        rows.map(|row| row["id"].as_u64().unwrap()).collect()
    }

    #[test]
    fn the_latest_events_are_those_that_sorting_all_of_them_puts_first_wherever_they_stand() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("audit");
        let key = root.path().join("audit.key");
        let (mut writer, _) = Writer::open(&directory, &key, Limits::default()).unwrap();
        let mut times = Vec::new();
        // What is old would be removed.
        let now = row::micros(std::time::SystemTime::now());
        for batch in 0..30_i64 {
            let mut columns = Columns::default();
            for row in 0..40_i64 {
                // Batches overlap, several rows have one time, and some batches are of another day.
                let micros = now + (batch * 25 + row * 7 % 40) / 3 + (batch % 7) * 100;
                columns.begin(micros);
                columns.text(Text::Class, "gap");
                times.push(micros);
            }
            writer.append(&columns.take().into_batch().unwrap().unwrap()).unwrap();
            if batch % 10 == 9 {
                writer.close().unwrap();
            }
        }
        let permit = Permit::all(directory);
        for sort in ["-time", "time"] {
            let mut all: Vec<u64> = (0..times.len() as u64).collect();
            all.sort_by_key(|id| {
                let micros = times[usize::try_from(*id).unwrap()];
                if sort == "time" { micros } else { -micros }
            });
            assert_eq!(ids(&permit, sort, None), all);
            for limit in [0, 1, 3, 10, 41, 500, 5_000] {
                let few: Vec<u64> = all.iter().copied().take(limit).collect();
                assert_eq!(ids(&permit, sort, Some(limit as u64)), few, "{sort} {limit}");
            }
        }
    }
}

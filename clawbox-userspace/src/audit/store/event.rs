//! A row as others read it: a JSON object of the columns that it has, and one line for people.

use std::fmt::Write as _;
use std::time::{Duration, UNIX_EPOCH};

use serde_json::{Map, Value};

use super::filter::Field;
use super::read::Row;
use super::schema::{self, Number, Text};

/// A time as all of the store's readers print it.
#[must_use]
pub fn time_text(micros: i64) -> String {
    let since = Duration::from_micros(u64::try_from(micros).unwrap_or(0));
    humantime::format_rfc3339_micros(UNIX_EPOCH + since).to_string()
}

/// The value of a column; null where the row has none.
#[must_use]
pub fn value(row: Row<'_>, field: Field) -> Value {
    match field {
        Field::Time => time_text(row.micros()).into(),
        Field::Text(text) => row.text(text).into(),
        Field::Number(number) => row.number(number).into(),
        Field::Count => row.count().into(),
    }
}

/// All that a row has.
#[must_use]
pub fn object(row: Row<'_>) -> Map<String, Value> {
    let mut object = Map::new();
    object.insert("id".to_owned(), row.id().into());
    object.insert(schema::TIME.to_owned(), time_text(row.micros()).into());
    for field in Field::all() {
        let value = match field {
            // Texts that are JSON are told as that.
            Field::Text(text @ (Text::Detail | Text::Args)) => {
                row.text(text).and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
            }
            field => value(row, field),
        };
        if !value.is_null() {
            object.insert(field.name().to_owned(), value);
        }
    }
    object.insert(schema::COUNT.to_owned(), row.count().into());
    if row.let_through() {
        object.insert(schema::LET_THROUGH.to_owned(), true.into());
    }
    object
}

/// A row as one line, in which nothing is more than text to a terminal.
#[must_use]
pub fn line(row: Row<'_>) -> String {
    let text = |column| row.text(column).unwrap_or_default();
    let time = time_text(row.micros());
    let verdict = match (text(Text::Verdict), row.let_through()) {
        ("deny", true) => "would",
        ("none", _) => "-",
        (verdict, _) => verdict,
    };
    let mut line = format!(
        "{:>8}  {}  {verdict:5}  {:12}  {:8}  {}",
        row.id(),
        time.get(..19).unwrap_or_default(),
        text(Text::Sandbox),
        text(Text::Action),
        about(row),
    );
    let program = row.text(Text::Script).or_else(|| row.text(Text::Exe));
    if let (Some(program), Some(pid)) = (program, row.number(Number::Pid)) {
        // To a String: cannot fail.
        let _ = write!(line, "  by {program}[{pid}]");
    }
    let _ = write!(line, "  ({}", text(Text::Reason));
    if let Some(rule) = row.text(Text::Rule) {
        let _ = write!(line, " {rule}");
    }
    line.push(')');
    crate::audit::line::harmless(&line)
}

/// What it is about.
fn about(row: Row<'_>) -> String {
    let text = |column| row.text(column).unwrap_or_default();
    if let Some(ip) = row.text(Text::Ip) {
        let port = row.number(Number::Port).unwrap_or(0);
        let transport = text(Text::Transport);
        return match row.text(Text::Host) {
            Some(host) => format!("{host} ({ip}) port {port}/{transport}"),
            None => format!("{ip} port {port}/{transport}"),
        };
    }
    if text(Text::Class) == "gap" {
        return format!("{} events are not here: {}", row.count(), text(Text::Detail));
    }
    if let Some(args) = row.text(Text::Args) {
        return args.to_owned();
    }
    match (row.text(Text::Path), row.text(Text::Host)) {
        (Some(path), _) => {
            let times = if row.count() > 1 { format!(" x{}", row.count()) } else { String::new() };
            format!("{} {path}{times}", text(Text::Access)).trim_start().to_owned()
        }
        (None, Some(host)) => host.to_owned(),
        (None, None) => text(Text::Detail).to_owned(),
    }
}

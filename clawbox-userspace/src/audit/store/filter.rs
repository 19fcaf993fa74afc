//! Which rows are wanted. What a row must have is looked for in the batch's pool first: a batch whose texts
//! cannot match is not read.

use std::collections::HashMap;
use std::str::FromStr;
use std::time::SystemTime;

use arrow_array::{Array, StringArray};
use globset::{GlobBuilder, GlobMatcher};

use super::frame::Label;
use super::read::{Loaded, Row, Wanted};
use super::row::micros;
use super::schema::{COUNT_AT, NUMBERS, Number, TEXT_NAMES, Text};
use crate::audit::veil::Veil;

/// What a text must be.
#[derive(Clone, Debug)]
pub enum Pattern {
    /// This.
    Is(String),
    /// One of these.
    OneOf(Vec<String>),
    /// A sandbox of this name or NAME-NUMBER.
    Sandbox(String),
    /// A program of this path or name.
    Program(String),
    /// Like this.
    Glob(GlobMatcher),
}

impl Pattern {
    /// This, or what is like it where it has a `*`, `?` or `[`.
    ///
    /// # Errors
    /// It is no pattern.
    pub fn of(text: &str) -> Result<Self, String> {
        if !text.contains(['*', '?', '[']) {
            return Ok(Self::Is(text.to_owned()));
        }
        let glob = GlobBuilder::new(text).literal_separator(true).build();
        Ok(Self::Glob(glob.map_err(|error| error.to_string())?.compile_matcher()))
    }

    /// The same also where it is told by its hash alone. What is no whole text cannot be found so.
    #[must_use]
    pub fn or_hashed(self, veil: Option<&Veil>) -> Self {
        match (self, veil) {
            (Self::Is(text), Some(veil)) => Self::OneOf(vec![veil.text(&text), text]),
            (other, _) => other,
        }
    }

    fn matches(&self, text: &str) -> bool {
        match self {
            Self::Is(this) => text == this,
            Self::OneOf(all) => all.iter().any(|this| text == this),
            Self::Sandbox(name) => {
                let rest = text.strip_prefix(name.as_str());
                rest.is_some_and(|rest| rest.is_empty() || is_number(rest))
            }
            Self::Program(name) => text.rsplit_once('/').map_or(text, |(_, last)| last) == name,
            Self::Glob(glob) => glob.is_match(text),
        }
    }
}

fn is_number(rest: &str) -> bool {
    let digits = rest.strip_prefix('-').unwrap_or_default();
    !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
}

/// One of these columns must have such a text.
#[derive(Clone, Debug)]
struct Condition {
    columns: Vec<Text>,
    pattern: Pattern,
    /// Which texts of the batch's pool are such.
    found: Vec<bool>,
}

/// All that a row must have.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    since: Option<i64>,
    until: Option<i64>,
    conditions: Vec<Condition>,
    numbers: Vec<(Number, u32)>,
    is_denial: bool,
    /// Sandboxes of which alone anything is wanted, each from a time on; all where it is `None`.
    only: Option<HashMap<String, i64>>,
    /// The times of those that the batch's pool names; `i64::MAX` of what is no such sandbox.
    only_found: Vec<i64>,
    /// Columns that are needed beside these; all where it is `None`.
    shown: Option<Vec<usize>>,
}

impl Filter {
    /// Wants rows in which one of these columns has such a text.
    pub fn text(&mut self, columns: &[Text], pattern: Pattern) {
        let of_verdict = columns == [Text::Verdict];
        self.is_denial |=
            of_verdict && matches!(&pattern, Pattern::Is(verdict) if verdict == "deny");
        let (columns, found) = (columns.to_vec(), Vec::new());
        self.conditions.push(Condition { columns, pattern, found });
    }

    /// Wants rows with this number.
    pub fn number(&mut self, column: Number, value: u32) {
        self.numbers.push((column, value));
    }

    /// Wants rows of a time, microseconds since 1970.
    pub fn between(&mut self, since: Option<i64>, until: Option<i64>) {
        (self.since, self.until) = (since, until);
    }

    /// Wants rows of these sandboxes alone, by NAME-NUMBER, each from a time on.
    pub fn only(&mut self, sandboxes: HashMap<String, i64>) {
        self.only = Some(sandboxes);
    }

    fn is_among(&self, row: Row<'_>) -> bool {
        if self.only.is_none() {
            return true;
        }
        let Some(places) = row.batch.places(Text::Sandbox) else { return false };
        if places.is_null(row.at) {
            return false;
        }
        let place = usize::try_from(places.value(row.at)).unwrap_or(usize::MAX);
        self.only_found.get(place).is_some_and(|since| row.micros() >= *since)
    }

    /// Needs these columns alone, by their places.
    pub fn show(&mut self, columns: Vec<usize>) {
        self.shown = Some(columns);
    }

    /// Whether a row has all of it.
    #[must_use]
    pub fn matches(&self, row: Row<'_>) -> bool {
        let micros = row.micros();
        self.since.is_none_or(|since| micros >= since)
            && self.until.is_none_or(|until| micros < until)
            && self.numbers.iter().all(|(column, value)| row.number(*column) == Some(*value))
            && self.is_among(row)
            && self.conditions.iter().all(|condition| condition.matches(row))
    }

    /// Rows of a batch that have all of it, in the order of their numbers.
    pub fn stored<'a>(&'a self, batch: &'a Loaded) -> impl DoubleEndedIterator<Item = Row<'a>> {
        batch.rows().filter(|row| self.matches(*row))
    }

    /// The same in the order of their times.
    pub fn rows<'a>(&'a self, batch: &'a Loaded) -> impl DoubleEndedIterator<Item = Row<'a>> {
        let is_in_order = batch.is_in_order();
        let mut sorted: Vec<Row<'a>> = Vec::new();
        if !is_in_order {
            sorted.extend(self.stored(batch));
            sorted.sort_by_key(|row| row.micros());
        }
        sorted.into_iter().chain(is_in_order.then(|| self.stored(batch)).into_iter().flatten())
    }
}

impl Condition {
    fn matches(&self, row: Row<'_>) -> bool {
        self.columns.iter().any(|column| {
            row.batch.places(*column).is_some_and(|places| {
                let place = usize::try_from(places.value(row.at)).unwrap_or(usize::MAX);
                !places.is_null(row.at) && self.found.get(place).copied().unwrap_or(false)
            })
        })
    }
}

impl Wanted for Filter {
    fn may_have(&self, label: &Label) -> bool {
        self.since.is_none_or(|since| label.to >= since)
            && self.until.is_none_or(|until| label.from < until)
            && (!self.is_denial || label.denied > 0)
    }

    fn may_have_of(&mut self, pool: &StringArray) -> bool {
        if let Some(only) = &self.only {
            let since = |text: Option<&str>| text.and_then(|text| only.get(text)).copied();
            self.only_found = pool.iter().map(|text| since(text).unwrap_or(i64::MAX)).collect();
            if self.only_found.iter().all(|since| *since == i64::MAX) {
                return false;
            }
        }
        self.conditions.iter_mut().all(|condition| {
            let texts = pool.iter().map(Option::unwrap_or_default);
            condition.found = texts.map(|text| condition.pattern.matches(text)).collect();
            condition.found.contains(&true)
        })
    }

    fn columns(&self) -> Option<Vec<usize>> {
        let mut all = self.shown.clone()?;
        all.push(0);
        all.extend(self.numbers.iter().map(|(column, _)| column.at()));
        let texts = self.conditions.iter().flat_map(|condition| &condition.columns);
        all.extend(texts.map(|column| column.at()));
        all.extend(self.only.as_ref().map(|_| Text::Sandbox.at()));
        all.sort_unstable();
        all.dedup();
        Some(all)
    }
}

/// A column that rows are counted, sorted or printed by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// When.
    Time,
    /// A text.
    Text(Text),
    /// A number.
    Number(Number),
    /// How many events.
    Count,
}

const ALL_TEXTS: [Text; TEXT_NAMES.len()] = [
    Text::Sandbox,
    Text::Class,
    Text::Action,
    Text::Verdict,
    Text::Reason,
    Text::Exe,
    Text::ExeId,
    Text::Script,
    Text::Args,
    Text::Host,
    Text::Ip,
    Text::Asked,
    Text::Transport,
    Text::Named,
    Text::Path,
    Text::PathId,
    Text::Access,
    Text::OtherPath,
    Text::Errno,
    Text::Rule,
    Text::RuleHost,
    Text::RuleBinary,
    Text::Detail,
];

const ALL_NUMBERS: [Number; NUMBERS] =
    [Number::Pid, Number::Uid, Number::Parent, Number::Port, Number::RuleEndpoint, Number::Policy];

impl Field {
    /// All columns of text and number, in the order of the store.
    pub fn all() -> impl Iterator<Item = Self> + Clone {
        let texts = ALL_TEXTS.into_iter().map(Self::Text);
        texts.chain(ALL_NUMBERS.into_iter().map(Self::Number))
    }

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Time => super::schema::TIME,
            Self::Text(text) => TEXT_NAMES[text as usize],
            Self::Number(number) => super::schema::NUMBER_NAMES[number as usize],
            Self::Count => super::schema::COUNT,
        }
    }

    /// Its place among the columns.
    #[must_use]
    pub fn at(self) -> usize {
        match self {
            Self::Time => 0,
            Self::Text(text) => text.at(),
            Self::Number(number) => number.at(),
            Self::Count => COUNT_AT,
        }
    }
}

impl FromStr for Field {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let all = [Self::Time, Self::Count].into_iter().chain(Self::all());
        let names = || all.clone().map(Self::name).collect::<Vec<_>>().join(", ");
        let found = all.clone().find(|field| field.name() == name);
        found.ok_or_else(|| format!("no column `{name}`; there are {}", names()))
    }
}

/// A time of the command line: RFC 3339, a day, or how long ago, as in `2h`.
///
/// # Errors
/// It is none.
pub fn time(text: &str) -> Result<i64, String> {
    if let Ok(ago) = humantime::parse_duration(text) {
        let then = SystemTime::now().checked_sub(ago);
        return Ok(micros(then.ok_or_else(|| format!("`{text}` is too long ago"))?));
    }
    let whole = if text.len() == 10 { format!("{text} 00:00:00") } else { text.to_owned() };
    let time = humantime::parse_rfc3339_weak(&whole)
        .map_err(|error| format!("`{text}`: {error}; write 2026-11-26T08:00:00Z, a day or 2h"))?;
    Ok(micros(time))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sandbox_is_meant_by_its_name_or_with_its_number_and_a_path_by_glob() {
        let sandbox = Pattern::Sandbox("agent".to_owned());
        let matching = ["agent", "agent-12"].map(|text| sandbox.matches(text));
        let others =
            ["agent-", "agent-x", "agents-1", "my-agent"].map(|text| sandbox.matches(text));
        assert_eq!((matching, others), ([true; 2], [false; 4]));
        let glob = Pattern::of("/etc/*.conf").unwrap();
        assert!(glob.matches("/etc/a.conf") && !glob.matches("/etc/a/b.conf"));
        assert!(Pattern::of("/etc/**").unwrap().matches("/etc/a/b.conf"));
        assert!(Pattern::of("[").is_err());
        assert!(Pattern::Program("curl".to_owned()).matches("/usr/bin/curl"));
    }

    #[test]
    fn times_are_days_moments_and_spans() {
        assert_eq!(time("1970-01-02").unwrap(), 86_400_000_000);
        assert_eq!(time("1970-01-01T00:00:01Z").unwrap(), 1_000_000);
        let (before, found) = (micros(SystemTime::now()), time("2h").unwrap());
        assert!((7_190_000_000..=7_200_000_000).contains(&(before - found)), "{before} {found}");
        assert!(time("yesterday").unwrap_err().contains("2h"));
        assert_eq!("exe".parse::<Field>().unwrap(), Field::Text(Text::Exe));
        assert!("x".parse::<Field>().unwrap_err().contains("sandbox, class"));
    }
}

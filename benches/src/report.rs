//! The figures as a table for people and as JSON for machines. A target that is missed is marked
//! and changes no exit status: a shared machine must not fail anybody's build.

use std::fmt;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::figures::Spread;

/// How a figure is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// One time as a multiple of another of the same round.
    Ratio,
    /// Milliseconds.
    Milliseconds,
    /// Nanoseconds.
    Nanoseconds,
    /// Mebibytes.
    Mebibytes,
    /// Bytes.
    Bytes,
    /// Hundredths.
    Percent,
}

impl Unit {
    fn name(self) -> &'static str {
        match self {
            Self::Ratio => "ratio",
            Self::Milliseconds => "ms",
            Self::Nanoseconds => "ns",
            Self::Mebibytes => "MiB",
            Self::Bytes => "bytes",
            Self::Percent => "%",
        }
    }

    fn show(self, value: f64) -> String {
        match self {
            Self::Ratio => format!("×{value:.3}"),
            Self::Milliseconds => format!("{value:.2} ms"),
            Self::Nanoseconds => format!("{value:.0} ns"),
            Self::Mebibytes => format!("{value:.1} MiB"),
            Self::Bytes => format!("{value:.1} bytes"),
            Self::Percent => format!("{value:.2} %"),
        }
    }
}

/// One figure.
#[derive(Clone, Debug)]
pub struct Row {
    /// Which measurement it belongs to.
    pub bench: &'static str,
    /// What it is.
    pub what: String,
    /// How it is written.
    pub unit: Unit,
    /// The figure.
    pub value: Spread,
    /// What it may be at most.
    pub target: Option<f64>,
    /// What a reader should know, such as the times behind a ratio.
    pub note: String,
}

impl Row {
    /// Whether the target is met.
    fn met(&self) -> Option<bool> {
        self.target.map(|target| self.value.median <= target)
    }

    fn mark(&self) -> &'static str {
        match self.met() {
            Some(true) => "ok",
            Some(false) => "MISSED",
            None => "",
        }
    }
}

/// Everything measured.
#[derive(Debug)]
pub struct Report {
    rows: Vec<Row>,
    notes: Vec<String>,
    load: String,
}

impl Report {
    /// Begins with what else the machine is doing.
    pub fn begin() -> Self {
        Self { rows: Vec::new(), notes: Vec::new(), load: load() }
    }

    /// Adds a figure.
    pub fn add(&mut self, row: Row) {
        self.rows.push(row);
    }

    /// Adds a figure of a long measurement and says it on standard error: whoever ends that early has it.
    pub fn add_now(&mut self, row: Row) {
        let note = if row.note.is_empty() { String::new() } else { format!(" ({})", row.note) };
        let (value, mark) = (row.unit.show(row.value.median), row.mark());
        eprintln!("{}", format!("bench: {}: {value}{note} {mark}", row.what).trim_end());
        self.add(row);
    }

    /// Adds a remark.
    pub fn note(&mut self, note: String) {
        self.notes.push(note);
    }

    /// As one JSON object.
    pub fn json(&self) -> Value {
        let rows: Vec<Value> = self
            .rows
            .iter()
            .map(|row| {
                json!({
                    "bench": row.bench,
                    "what": row.what,
                    "unit": row.unit.name(),
                    "median": row.value.median,
                    "quartiles": [row.value.low, row.value.high],
                    "samples": row.value.samples,
                    "target": row.target,
                    "met": row.met(),
                    "note": row.note,
                })
            })
            .collect();
        json!({
            "kernel": kernel(),
            "load_before": self.load,
            "load_after": load(),
            "figures": rows,
            "notes": self.notes,
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "kernel {}; load average {} before, {} after", kernel(), self.load, load())?;
        let cells: Vec<[String; 5]> = self
            .rows
            .iter()
            .map(|row| {
                let show = |value| row.unit.show(value);
                let spread = if row.value.samples > 1 {
                    format!("{} – {}", show(row.value.low), show(row.value.high))
                } else {
                    String::new()
                };
                let target = row.target.map(|most| format!("≤ {}", show(most)));
                [
                    row.what.clone(),
                    show(row.value.median),
                    spread,
                    target.unwrap_or_default(),
                    row.mark().to_owned(),
                ]
            })
            .collect();
        let heads = ["", "median", "middle half", "target", ""];
        let width = |column: usize| {
            let of = |cell: &str| cell.chars().count();
            cells.iter().map(|row| of(&row[column])).max().unwrap_or(0).max(of(heads[column]))
        };
        let widths: Vec<usize> = (0..heads.len()).map(width).collect();
        let line = |f: &mut fmt::Formatter<'_>, row: &[&str], note: &str| {
            let first = format!("{:<width$}", row[0], width = widths[0]);
            let rest: Vec<String> = row[1..]
                .iter()
                .zip(&widths[1..])
                .map(|(cell, width)| format!("{cell:>width$}"))
                .collect();
            writeln!(f, "{}", format!("{first}  {}  {note}", rest.join("  ")).trim_end())
        };
        let mut bench = "";
        for (row, cells) in self.rows.iter().zip(&cells) {
            if row.bench != bench {
                bench = row.bench;
                writeln!(f)?;
                line(f, &[bench, heads[1], heads[2], heads[3], heads[4]], "")?;
            }
            let cells: Vec<&str> = cells.iter().map(String::as_str).collect();
            line(f, &cells, &row.note)?;
        }
        if !self.notes.is_empty() {
            writeln!(f)?;
        }
        self.notes.iter().try_for_each(|note| writeln!(f, "{note}"))
    }
}

/// The running kernel's release.
pub fn kernel() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()
}

/// The last minute's load average.
fn load() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or_default().to_owned()
}

/// Says on standard error how far a measurement is: in place on a terminal, else now and then.
#[derive(Debug)]
pub struct Progress {
    name: &'static str,
    all: u32,
    began: Instant,
    said: Option<Instant>,
}

impl Progress {
    /// Of so many rounds.
    pub fn of(name: &'static str, all: u32) -> Self {
        Self { name, all, began: Instant::now(), said: None }
    }

    /// A round begins; the first is number 0.
    pub fn reached(&mut self, round: u32) {
        let in_place = std::io::stderr().is_terminal();
        let pause = Duration::from_secs(if in_place { 0 } else { 10 });
        if self.said.is_none_or(|said| said.elapsed() >= pause) {
            self.said = Some(Instant::now());
            let (start, end) = if in_place { ("\r", "") } else { ("", "\n") };
            eprint!("{start}bench: {}, round {} of {}{end}", self.name, round + 1, self.all);
        }
    }

    /// The last round is over.
    pub fn done(&self) {
        let start = if std::io::stderr().is_terminal() { "\r" } else { "" };
        eprintln!("{start}bench: {}, {:.0?} in all", self.name, self.began.elapsed());
    }
}

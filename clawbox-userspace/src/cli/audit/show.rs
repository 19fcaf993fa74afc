//! `clawbox audit show`: one event with all that is known of it, and how its process came to be.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use anyhow::bail;
use clap::Args;
use serde_json::{Value, json};

use super::Place;
use crate::audit::line::harmless;
use crate::audit::store::event;
use crate::audit::store::filter::{Filter, Pattern};
use crate::audit::store::frame::Label;
use crate::audit::store::history::History;
use crate::audit::store::read::{Cursor, Reader, Row, Wanted};
use crate::audit::store::schema::{Number, Text};
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

/// The batch with one event.
struct One(u64);

impl Wanted for One {
    fn may_have(&self, label: &Label) -> bool {
        label.first <= self.0 && self.0 - label.first < label.events
    }

    fn may_have_of(&mut self, _: &arrow_array::StringArray) -> bool {
        true
    }

    fn columns(&self) -> Option<Vec<usize>> {
        None
    }
}

impl Show {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let Some(shown) = shown(&self.place.directory()?, self.id)? else {
            bail!("there is no event {} in the store", self.id);
        };
        let mut out = std::io::stdout().lock();
        match self.format {
            Format::Json => writeln!(out, "{}", serde_json::to_string_pretty(&shown)?)?,
            Format::Text => {
                for (key, value) in shown.as_object().into_iter().flatten() {
                    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                    if key != "chain" {
                        writeln!(out, "{key:14} {}", harmless(&text))?;
                    }
                }
                let chain = shown["chain"].as_array().into_iter().flatten();
                for (depth, started) in chain.enumerate() {
                    let what = started.get("args").unwrap_or(&started["path"]);
                    let what = what.as_str().map_or_else(|| what.to_string(), str::to_owned);
                    let (by, indent) = (["process", "started by"][depth.min(1)], depth * 2);
                    let line = format!("{by:14} {:indent$}[{}] {what}", "", started["pid"]);
                    writeln!(out, "{}", harmless(&line))?;
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// An event of a store, with how its process came to be as `chain`.
///
/// # Errors
/// The store cannot be read.
pub(in crate::cli) fn shown(directory: &Path, id: u64) -> anyhow::Result<Option<Value>> {
    let mut reader = Reader::at(directory, Cursor::default());
    let Some(batch) = reader.next(&mut One(id))? else { return Ok(None) };
    let at = usize::try_from(id - batch.label.first)?;
    let row = Row { batch: &batch, at };
    let mut shown = Value::Object(event::object(row));
    shown["chain"] = chain(row, Reader::at(directory, Cursor::default()))?;
    Ok(Some(shown))
}

/// The number of the last denial in a store.
///
/// # Errors
/// The store cannot be read.
pub(in crate::cli) fn last_denial(directory: &Path) -> anyhow::Result<Option<u64>> {
    let mut denials = Filter::default();
    denials.text(&[Text::Verdict], Pattern::Is("deny".to_owned()));
    denials.show(Vec::new());
    let mut reader = Reader::at(directory, Cursor::default());
    let mut last = None;
    while let Some(batch) = reader.next(&mut denials)? {
        last = denials.rows(&batch).next_back().map(Row::id).or(last);
    }
    Ok(last)
}

fn chain(row: Row<'_>, mut reader: Reader) -> anyhow::Result<Value> {
    let (Some(sandbox), Some(pid)) = (row.text(Text::Sandbox), row.number(Number::Pid)) else {
        return Ok(json!([]));
    };
    let mut starts = Filter::default();
    starts.text(&[Text::Sandbox], Pattern::Is(sandbox.to_owned()));
    starts.text(&[Text::Class], Pattern::Is("process".to_owned()));
    starts.between(None, Some(row.micros() + 1));
    let texts = [Text::Path, Text::Args].map(Text::at);
    let numbers = [Number::Pid, Number::Parent].map(Number::at);
    starts.show([texts, numbers].concat());
    let mut history = History::default();
    while let Some(batch) = reader.next(&mut starts)? {
        starts.rows(&batch).for_each(|row| history.add(row));
    }
    Ok(serde_json::to_value(history.chain(pid, row.micros()))?)
}

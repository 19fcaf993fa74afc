//! One event with all that is known of it: by which policy and rule, and how its process came to be.

use std::collections::HashMap;
use std::io::{self, Write};
use std::path::Path;

use serde_json::{Value, json};

use crate::audit::line::harmless;
use crate::audit::store::event;
use crate::audit::store::filter::{Filter, Pattern};
use crate::audit::store::frame::Label;
use crate::audit::store::history::History;
use crate::audit::store::policies;
use crate::audit::store::read::{Cursor, Reader, Row, Wanted};
use crate::audit::store::schema::{Number, Text};
use crate::audit::store::starts::Workdirs;

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

/// Prints it for people.
pub(super) fn print(shown: &Value, out: &mut impl Write) -> io::Result<()> {
    for (key, value) in shown.as_object().into_iter().flatten() {
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        match key.as_str() {
            "chain" => {}
            "rule_text" => lines(out, key, &text)?,
            "policy_in_force" => writeln!(out, "{key:14} {}", named(value))?,
            _ => writeln!(out, "{key:14} {}", harmless(&text))?,
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
    Ok(())
}

fn lines(out: &mut impl Write, key: &str, text: &str) -> std::io::Result<()> {
    text.lines().enumerate().try_for_each(|(at, line)| {
        let key = if at == 0 { key } else { "" };
        writeln!(out, "{key:14} {}", harmless(line))
    })
}

/// Which policy, without its text.
fn named(policy: &Value) -> String {
    let whose = if policy["is_global"] == true { "the host's " } else { "" };
    let names = policy["texts"].as_array().into_iter().flatten();
    let names: Vec<&str> = names.filter_map(|file| file["name"].as_str()).collect();
    let digest = policy["digest"].as_str().unwrap_or_default();
    let names = names.join(", ");
    harmless(&format!("{whose}revision {}, {names}, SHA-256 {digest}", policy["revision"]))
}

/// An event of a store, with how its process came to be as `chain`, and where the store has it the text of the
/// policy that decided, and of the rule.
///
/// # Errors
/// The store cannot be read.
pub fn shown(
    directory: &Path,
    id: u64,
    only: Option<&HashMap<String, i64>>,
) -> anyhow::Result<Option<Value>> {
    let mut reader = Reader::at(directory, Cursor::default());
    let Some(batch) = reader.next(&mut One(id))? else { return Ok(None) };
    let at = usize::try_from(id - batch.label.first)?;
    let row = Row { batch: &batch, at };
    if let Some(only) = only {
        // What came before is of another one that had its name, perhaps somebody else's.
        let since = row.text(Text::Sandbox).and_then(|sandbox| only.get(sandbox));
        if since.is_none_or(|since| row.micros() < *since) {
            return Ok(None);
        }
    }
    let mut shown = Value::Object(event::object(row));
    if let Some(policy) = policies::of_event(directory, row)? {
        let rule = row.text(Text::Rule).and_then(|rule| policy.rule(rule));
        if let Some((file, text)) = rule {
            (shown["rule_file"], shown["rule_text"]) = (file.into(), text.into());
        }
        shown["policy_in_force"] = serde_json::to_value(policy)?;
    }
    let whose = row.text(Text::Sandbox).map(|sandbox| Pattern::Is(sandbox.to_owned()));
    if let Some(workdir) = Workdirs::read(directory, whose)?.of(row) {
        shown["workdir"] = workdir.into();
    }
    shown["chain"] = chain(row, only, Reader::at(directory, Cursor::default()))?;
    Ok(Some(shown))
}

/// The number of the last denial in a store.
///
/// # Errors
/// The store cannot be read.
pub fn last_denial(directory: &Path) -> anyhow::Result<Option<u64>> {
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

fn chain(
    row: Row<'_>,
    only: Option<&HashMap<String, i64>>,
    mut reader: Reader,
) -> anyhow::Result<Value> {
    let (Some(sandbox), Some(pid)) = (row.text(Text::Sandbox), row.number(Number::Pid)) else {
        return Ok(json!([]));
    };
    let mut starts = Filter::default();
    starts.text(&[Text::Sandbox], Pattern::Is(sandbox.to_owned()));
    starts.text(&[Text::Class], Pattern::Is("process".to_owned()));
    let since = only.and_then(|only| only.get(sandbox)).copied();
    starts.between(since, Some(row.micros() + 1));
    let texts = [Text::Path, Text::Args].map(Text::at);
    let numbers = [Number::Pid, Number::Parent].map(Number::at);
    starts.show([texts, numbers].concat());
    let mut history = History::default();
    while let Some(batch) = reader.next(&mut starts)? {
        starts.rows(&batch).for_each(|row| history.add(row));
    }
    Ok(serde_json::to_value(history.chain(pid, row.micros()))?)
}

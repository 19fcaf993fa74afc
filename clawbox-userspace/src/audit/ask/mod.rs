//! What is asked of a store, on the command line or of the daemon, and the answer as text.

pub mod query;
pub mod show;

use std::collections::{HashMap, VecDeque};
use std::io::Write;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use serde_json::{Value, json};

use super::line::harmless;
use super::store::counts::Counts;
use super::store::event::{self, time_text};
use super::store::filter::{Field, Filter, Pattern};
use super::store::read::{Cursor, Reader, Row};
use super::store::schema::{Number, Text};
use super::store::{segment_name, segments};
use super::veil::{self, Veil};
use crate::api::proto::read_audit_request::What;
use crate::api::proto::{AuditForm, AuditSelection, AuditTail, ReadAuditRequest};

/// How often who follows is looked after, whether they are still there.
const LOOK: u16 = 1_000;

/// Events or counts that are kept in memory at one time for whoever may have all: some 350 MB of events.
const MOST: usize = 1_000_000;

/// Where an answer goes.
pub trait Out: Write {
    /// Whether anybody reads it.
    fn is_open(&self) -> bool;
}

/// What whoever asks may have of a store.
#[derive(Clone, Debug)]
pub struct Permit {
    /// Its directory.
    pub directory: PathBuf,
    /// Sandboxes of which alone they may, each from a time on, microseconds since 1970; all where it is `None`.
    pub only: Option<HashMap<String, i64>>,
    /// Events or counts that are kept in memory for them at one time.
    pub most: usize,
}

impl Permit {
    /// All of a store.
    #[must_use]
    pub fn all(directory: PathBuf) -> Self {
        Self { directory, only: None, most: MOST }
    }
}

/// By what a question for a text becomes one for its hash, where there is a key for that beside the store.
#[must_use]
pub fn veil_of(directory: &Path) -> Option<Veil> {
    directory.parent().and_then(|state| Veil::read(&veil::key_of(state)).ok())
}

/// What a selection selects. Texts are looked for by their hashes too.
///
/// # Errors
/// It has something that is no pattern.
pub fn filter(selection: &AuditSelection, veil: Option<&Veil>) -> anyhow::Result<Filter> {
    let mut filter = Filter::default();
    let like = |text: &String| Pattern::of(text).map_err(anyhow::Error::msg);
    if let Some(name) = &selection.sandbox {
        let is_glob = name.contains(['*', '?', '[']);
        let pattern = if is_glob { like(name)? } else { Pattern::Sandbox(name.clone()) };
        filter.text(&[Text::Sandbox], pattern);
    }
    if let Some(name) = &selection.binary {
        let is_name = !name.contains(['/', '*', '?', '[']);
        let pattern = if is_name { Pattern::Program(name.clone()) } else { like(name)? };
        filter.text(&[Text::Exe, Text::Script], pattern.or_hashed(veil));
    }
    for (given, columns) in [
        (&selection.host, &[Text::Host, Text::Named, Text::Ip, Text::Asked] as &[Text]),
        (&selection.path, &[Text::Path, Text::OtherPath]),
        (&selection.verdict, &[Text::Verdict]),
        (&selection.rule, &[Text::Rule]),
        (&selection.reason, &[Text::Reason]),
        (&selection.class, &[Text::Class]),
        (&selection.action, &[Text::Action]),
    ] {
        if let Some(text) = given {
            filter.text(columns, like(text)?.or_hashed(veil));
        }
    }
    if let Some(pid) = selection.pid {
        filter.number(Number::Pid, pid);
    }
    filter.between(selection.since, selection.until);
    Ok(filter)
}

/// Answers. It takes as long as reading takes, or as somebody follows.
///
/// # Errors
/// The store cannot be read, or the question cannot be answered.
pub fn answer(
    request: ReadAuditRequest,
    permit: &Permit,
    out: &mut impl Out,
) -> anyhow::Result<()> {
    let form = request.form();
    let veil = veil_of(&permit.directory);
    let mut filter = filter(&request.selection.unwrap_or_default(), veil.as_ref())?;
    if let Some(only) = &permit.only {
        filter.only(only.clone());
    }
    match request.what.context("nothing is asked")? {
        What::Tail(asked) => tail(asked, filter, form, permit, out)?,
        What::Query(asked) => {
            query::Query::of(asked, form, permit)?.answer(filter, permit, out)?;
        }
        What::Show(id) => {
            let Some(shown) = show::shown(&permit.directory, id, permit.only.as_ref())? else {
                bail!("there is no event {id} in the store");
            };
            match form {
                AuditForm::Json => writeln!(out, "{}", serde_json::to_string_pretty(&shown)?)?,
                _ => show::print(&shown, out)?,
            }
        }
        What::Stats(_) => stats(filter, form, permit, out)?,
    }
    Ok(out.flush()?)
}

fn tail(
    AuditTail { lines, follow }: AuditTail,
    mut filter: Filter,
    form: AuditForm,
    permit: &Permit,
    out: &mut impl Out,
) -> anyhow::Result<()> {
    let line = |row: Row<'_>| match form {
        AuditForm::Json => Value::Object(event::object(row)).to_string(),
        _ => event::line(row),
    };
    let lines = usize::try_from(lines).unwrap_or(usize::MAX);
    if lines > permit.most {
        bail!("too many lines to begin with: at most {}", permit.most);
    }
    // Before the first look: what comes after it wakes the next one.
    let news = follow.then(|| watch(&permit.directory)).transpose()?;
    let mut reader = Reader::at(&permit.directory, Cursor::default());
    let mut last = VecDeque::new();
    while let Some(batch) = reader.next(&mut filter)? {
        for row in filter.rows(&batch) {
            last.push_back(line(row));
            if last.len() > lines {
                last.pop_front();
            }
        }
    }
    last.iter().try_for_each(|line| writeln!(out, "{line}"))?;
    out.flush()?;
    let Some(news) = news else { return Ok(()) };
    while out.is_open() {
        while let Some(batch) = reader.next(&mut filter)? {
            filter.rows(&batch).try_for_each(|row| writeln!(out, "{}", line(row)))?;
        }
        out.flush()?;
        let mut waits = [PollFd::new(news.as_fd(), PollFlags::POLLIN)];
        if poll(&mut waits, PollTimeout::from(LOOK))? > 0 {
            news.read_events()?;
        }
    }
    Ok(())
}

fn watch(directory: &Path) -> anyhow::Result<Inotify> {
    let news = Inotify::init(InitFlags::IN_CLOEXEC)?;
    news.add_watch(directory, AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CREATE)?;
    Ok(news)
}

fn stats(
    mut filter: Filter,
    form: AuditForm,
    permit: &Permit,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let by = [Text::Class, Text::Verdict, Text::Action].map(Field::Text);
    filter.show(by.iter().chain([&Field::Count]).map(|field| field.at()).collect());
    let mut reader = Reader::at(&permit.directory, Cursor::default());
    let (mut counts, mut batches, mut rows) = (Counts::by(&by), 0_u64, 0);
    let (mut from, mut to) = (i64::MAX, i64::MIN);
    while let Some(batch) = reader.next(&mut filter)? {
        batches += 1;
        for row in filter.stored(&batch) {
            (from, to) = (from.min(row.micros()), to.max(row.micros()));
            rows += 1;
        }
        counts.add(&batch, &filter);
    }
    let (segments, mut bytes) = (segments(&permit.directory)?, 0);
    for segment in &segments {
        let file = std::fs::metadata(permit.directory.join(segment_name(*segment)));
        bytes += file.map_or(0, |file| file.len());
    }
    let time = |micros| if rows > 0 { Value::from(time_text(micros)) } else { Value::Null };
    let told = json!({
        "segments": segments.len(), "bytes": bytes, "batches": batches, "rows": rows,
        "from": time(from), "to": time(to), "by": counts.sorted(),
    });
    match form {
        AuditForm::Json => writeln!(out, "{}", serde_json::to_string_pretty(&told)?)?,
        _ => {
            for key in ["segments", "bytes", "batches", "rows", "from", "to"] {
                let value = &told[key];
                let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                writeln!(out, "{key:10} {text}")?;
            }
            for row in told["by"].as_array().into_iter().flatten() {
                let text = |key| row[key].as_str().unwrap_or_default();
                let what = harmless(text("action"));
                let (rows, events) = (row["rows"].to_string(), row["events"].to_string());
                let (class, verdict) = (text("class"), text("verdict"));
                writeln!(out, "{rows:>10} {events:>12}  {class:10} {verdict:6} {what}")?;
            }
        }
    }
    Ok(())
}

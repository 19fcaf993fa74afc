//! `clawbox audit tail`: what was stored last, and what is stored from now on.

use std::collections::VecDeque;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use clap::Args;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use serde_json::Value;

use super::Place;
use super::selection::Selection;
use crate::audit::store::event;
use crate::audit::store::read::{Cursor, Reader, Row};
use crate::cli::Format;

/// Print what was stored last
#[derive(Debug, Args)]
#[command(after_help = "\
Exit status: 0 printed; 2 the store cannot be read.

Examples:
  clawbox audit tail
  clawbox audit tail -f --verdict deny
  clawbox audit tail -n 100 --sandbox agent --format json")]
pub(super) struct Tail {
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    selection: Selection,
    /// So many events
    #[arg(short = 'n', long, value_name = "COUNT", default_value_t = 10)]
    lines: usize,
    /// Go on with what is stored from now on
    #[arg(short, long)]
    follow: bool,
    /// How to print them
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

impl Tail {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let directory = self.place.directory()?;
        let mut filter = self.selection.filter()?;
        // Before the first look: what comes after it wakes the next one.
        let news = self.follow.then(|| watch(&directory)).transpose()?;
        let mut reader = Reader::at(&directory, Cursor::default());
        let mut last = VecDeque::new();
        while let Some(batch) = reader.next(&mut filter)? {
            for row in filter.rows(&batch) {
                last.push_back(self.line(row));
                if last.len() > self.lines {
                    last.pop_front();
                }
            }
        }
        let mut out = std::io::stdout().lock();
        last.iter().try_for_each(|line| writeln!(out, "{line}"))?;
        out.flush()?;
        let Some(news) = news else { return Ok(ExitCode::SUCCESS) };
        loop {
            while let Some(batch) = reader.next(&mut filter)? {
                filter.rows(&batch).try_for_each(|row| writeln!(out, "{}", self.line(row)))?;
            }
            out.flush()?;
            news.read_events()?;
        }
    }

    fn line(&self, row: Row<'_>) -> String {
        match self.format {
            Format::Text => event::line(row),
            Format::Json => Value::Object(event::object(row)).to_string(),
        }
    }
}

fn watch(directory: &Path) -> anyhow::Result<Inotify> {
    let news = Inotify::init(InitFlags::IN_CLOEXEC)?;
    news.add_watch(directory, AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CREATE)?;
    Ok(news)
}

//! `clawbox audit stats`: how much the store has, and of what.

use std::io::Write;
use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use super::Place;
use super::selection::Selection;
use crate::audit::line::harmless;
use crate::audit::store::counts::Counts;
use crate::audit::store::event::time_text;
use crate::audit::store::filter::Field;
use crate::audit::store::read::{Cursor, Reader};
use crate::audit::store::schema::Text;
use crate::audit::store::{segment_name, segments};
use crate::cli::Format;

/// Say how much the store has, and of what
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  clawbox audit stats
  clawbox audit stats --sandbox agent --since 24h --format json")]
pub(super) struct Stats {
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    selection: Selection,
    /// How to print it
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

impl Stats {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let directory = self.place.directory()?;
        let mut filter = self.selection.filter()?;
        let by = [Text::Class, Text::Verdict, Text::Action].map(Field::Text);
        filter.show(by.iter().chain([&Field::Count]).map(|field| field.at()).collect());
        let mut reader = Reader::at(&directory, Cursor::default());
        let (mut counts, mut batches, mut rows) = (Counts::by(&by), 0_u64, 0);
        let (mut from, mut to) = (i64::MAX, i64::MIN);
        while let Some(batch) = reader.next(&mut filter)? {
            batches += 1;
            for row in filter.rows(&batch) {
                (from, to) = (from.min(row.micros()), to.max(row.micros()));
                rows += 1;
            }
            counts.add(&batch, &filter);
        }
        let (segments, mut bytes) = (segments(&directory)?, 0);
        for segment in &segments {
            let file = std::fs::metadata(directory.join(segment_name(*segment)));
            bytes += file.map_or(0, |file| file.len());
        }
        let time = |micros| if rows > 0 { Value::from(time_text(micros)) } else { Value::Null };
        let told = json!({
            "segments": segments.len(), "bytes": bytes, "batches": batches, "rows": rows,
            "from": time(from), "to": time(to), "by": counts.sorted(),
        });
        let mut out = std::io::stdout().lock();
        match self.format {
            Format::Json => writeln!(out, "{}", serde_json::to_string_pretty(&told)?)?,
            Format::Text => {
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
        Ok(ExitCode::SUCCESS)
    }
}

//! `clawbox status`: how the daemon is, and how full what it has.

use std::io::Write;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;
use serde::Serialize;

use super::Format;
use super::sandboxes::asked;
use super::style::Style;
use crate::api::proto;

/// Tables fuller than this, in hundredths, are pointed at.
const NEARLY: u64 = 80;

/// Say how the daemon is
///
/// What it enforces with, how full the kernel's tables are, and what is missing from the audit trails.
#[derive(Debug, Args)]
#[command(after_help = "\
Exit status: 0 all is well; 1 something that enforces is not as it has to be and could not be
put right, or the audit store cannot be written; 2 the daemon does not answer.

Examples:
  clawbox status
  clawbox status --format json | jq '.tables[] | select(.entries > .room * 0.8)'")]
pub struct Status {
    /// How to print it
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// The answer, as it is printed.
#[derive(Serialize)]
struct Shown {
    version: String,
    since: String,
    sandboxes: u32,
    bpf_lsm: bool,
    without_lsm: String,
    resident_bytes: u64,
    tables: Vec<Table>,
    ring: Ring,
    events_lost: u64,
    lost: Vec<Lost>,
    metrics: String,
    /// The host's own policy that is in force in every sandbox.
    #[serde(skip_serializing_if = "Option::is_none")]
    global_policy: Option<u32>,
    watchdog: Watchdog,
    audit_store: AuditStore,
}

#[derive(Serialize)]
struct AuditStore {
    failing: String,
    allows_stopped: bool,
    stops: u64,
    removed_segments: u64,
    removed_events: u64,
}

#[derive(Serialize)]
struct Watchdog {
    rounds: u64,
    last: String,
    alarms: u64,
    failing: Vec<String>,
}

#[derive(Serialize)]
struct Table {
    table: String,
    entries: u64,
    room: u64,
}

#[derive(Serialize)]
struct Ring {
    size_bytes: u64,
    pending_bytes: u64,
    peak_bytes: u64,
}

#[derive(Serialize)]
struct Lost {
    kind: String,
    count: u64,
}

impl From<proto::StatusReply> for Shown {
    fn from(reply: proto::StatusReply) -> Self {
        let watch = reply.watchdog.unwrap_or_default();
        let tables = reply.fills.into_iter().map(|fill| {
            let proto::Fill { table, entries, room } = fill;
            Table { table, entries, room }
        });
        let proto::Ring { size_bytes, pending_bytes, peak_bytes } = reply.ring.unwrap_or_default();
        let proto::AuditStore { failing, allows_stopped, stops, removed_segments, removed_events } =
            reply.audit.unwrap_or_default();
        let audit_store =
            AuditStore { failing, allows_stopped, stops, removed_segments, removed_events };
        let lost = reply.lost.into_iter().map(|proto::Count { kind, count }| Lost { kind, count });
        Self {
            version: reply.version,
            since: time(reply.since),
            sandboxes: reply.sandboxes,
            bpf_lsm: reply.bpf_lsm,
            without_lsm: reply.without_lsm,
            resident_bytes: reply.resident_bytes,
            tables: tables.collect(),
            ring: Ring { size_bytes, pending_bytes, peak_bytes },
            events_lost: reply.events_lost,
            lost: lost.collect(),
            metrics: reply.metrics,
            global_policy: (reply.global_revision != 0).then_some(reply.global_revision),
            watchdog: Watchdog {
                rounds: watch.rounds,
                last: time(watch.last),
                alarms: watch.alarms,
                failing: watch.failing,
            },
            audit_store,
        }
    }
}

impl Status {
    /// Prints it.
    ///
    /// # Errors
    /// The daemon does not answer.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let status = asked(|client| async move {
            Ok(client.agent().status(proto::StatusRequest {}).await?.into_inner())
        })?;
        let since = UNIX_EPOCH + Duration::from_secs(status.since);
        let up = SystemTime::now().duration_since(since).unwrap_or_default();
        let shown = Shown::from(status);
        let mut out = std::io::stdout().lock();
        match self.format {
            Format::Json => writeln!(out, "{}", serde_json::to_string_pretty(&shown)?)?,
            Format::Text => {
                let style = Style::of(&out);
                shown.print(&mut out, style, up)?;
            }
        }
        let is_well = shown.watchdog.failing.is_empty() && shown.audit_store.failing.is_empty();
        Ok(if is_well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

impl Shown {
    fn print(&self, out: &mut impl Write, style: Style, up: Duration) -> std::io::Result<()> {
        let up = humantime::format_duration(Duration::from_secs(up.as_secs()));
        let lsm = if self.bpf_lsm {
            style.good("decides about files and sockets")
        } else {
            style.doubtful(format!("absent: {}", self.without_lsm))
        };
        writeln!(out, "{}", style.strong(format!("clawbox {} up {up}", self.version)))?;
        writeln!(out, "  sandboxes {}", self.sandboxes)?;
        writeln!(out, "  BPF LSM   {lsm}")?;
        writeln!(out, "  memory    {}", size(self.resident_bytes))?;
        writeln!(out, "  metrics   {}", self.metrics)?;
        if let Some(revision) = self.global_policy {
            let what = format!("revision {revision}, in place of every sandbox's own");
            writeln!(out, "  policy    {}", style.doubtful(&what))?;
        }
        let Watchdog { rounds, last, alarms, failing } = &self.watchdog;
        let found = match (failing.is_empty(), alarms) {
            (false, _) => style.bad(failing.join("; ")),
            (true, 0) => style.good("all is attached and denies"),
            (true, _) => {
                style.doubtful(format!("{alarms} alarms, all put right; see the agent's trail"))
            }
        };
        writeln!(out, "  watchdog  {found} ({rounds} rounds, the last at {last})")?;
        let Ring { size_bytes, pending_bytes, peak_bytes } = self.ring;
        let (all, waits, most) = (size(size_bytes), size(pending_bytes), size(peak_bytes));
        writeln!(out, "  ring      {waits} of {all} waits to be read; {most} at most so far")?;
        let lost: Vec<String> =
            self.lost.iter().map(|lost| format!("{} {}", lost.count, lost.kind)).collect();
        let lost = match lost.is_empty() {
            true => style.good("no event"),
            false => style.bad(lost.join(", ")),
        };
        writeln!(out, "  lost      {lost}")?;
        writeln!(out, "  store     {}", self.audit_store.line(style))?;
        writeln!(out, "  tables")?;
        for Table { table, entries, room } in &self.tables {
            let filled = format!("{entries} of {room}");
            let is_nearly_full = entries.saturating_mul(100) >= room.saturating_mul(NEARLY);
            let filled = if is_nearly_full { style.bad(filled) } else { filled };
            writeln!(out, "    {table:12} {filled}")?;
        }
        Ok(())
    }
}

impl AuditStore {
    fn line(&self, style: Style) -> String {
        let Self { failing, allows_stopped, removed_segments, removed_events, .. } = self;
        if *allows_stopped {
            return style.bad(format!("nothing is allowed until it is written again: {failing}"));
        }
        if !failing.is_empty() {
            return style.bad(format!("cannot be written: {failing}"));
        }
        match removed_segments {
            0 => style.good("is written"),
            many => format!("is written; {many} segments with {removed_events} events removed"),
        }
    }
}

fn time(seconds: u64) -> String {
    let time = UNIX_EPOCH + Duration::from_secs(seconds);
    humantime::format_rfc3339_seconds(time).to_string()
}

fn size(bytes: u64) -> String {
    match bytes {
        0 => "nothing".to_owned(),
        1..1_048_576 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        _ => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_nearly_full_and_what_was_lost_can_be_read_and_parsed() {
        let fill =
            |table: &str, entries| proto::Fill { table: table.to_owned(), entries, room: 10 };
        let reply = proto::StatusReply {
            version: "1.2.3".to_owned(),
            fills: vec![fill("RULES", 3), fill("NAMES", 9)],
            lost: vec![proto::Count { kind: "connect".to_owned(), count: 7 }],
            events_lost: 7,
            ring: Some(proto::Ring { size_bytes: 1 << 20, pending_bytes: 0, peak_bytes: 512 }),
            metrics: "off".to_owned(),
            watchdog: Some(proto::Watchdog {
                failing: vec!["connect4 is detached: no".to_owned()],
                ..Default::default()
            }),
            ..proto::StatusReply::default()
        };
        let shown = Shown::from(reply);
        let mut out = Vec::new();
        shown
            .print(&mut out, Style::of(&std::fs::File::open("/dev/null").unwrap()), Duration::ZERO)
            .unwrap();
        let text = String::from_utf8(out).unwrap();
        for says in [
            "RULES        3 of 10",
            "7 connect",
            "connect4 is detached: no",
            "nothing of 1.0 MiB waits",
            "0.5 KiB at most",
        ] {
            assert!(text.contains(says), "{says}: {text}");
        }
        let json = serde_json::to_value(&shown).unwrap();
        assert_eq!(
            json["tables"][1],
            serde_json::json!({"table": "NAMES", "entries": 9, "room": 10})
        );
    }
}

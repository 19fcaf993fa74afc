//! A large store, made of what agents do: how long questions to it and a check of it take.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use clawbox::audit::store::columns::Columns;
use clawbox::audit::store::limits::{Limits, Size};
use clawbox::audit::store::schema::{Number, Text};
use clawbox::audit::store::writer::Writer;

use crate::figures::Spread;
use crate::report::{Progress, Report, Row, Unit};
use crate::room::Room;

/// Rows of a batch, and those of them that are like no other.
const BATCH: u64 = 65_536;
const OWN: u64 = 1_000;
/// A host that one batch in so many has.
const RARE: u64 = 200;

/// Microseconds between two rows.
const STEP: i64 = 100;

/// Measures and reports, for a store of so many rows.
pub fn measure(room: &Room, rows: u64, report: &mut Report) -> Result<()> {
    let directory = room.file(&format!("archive-{rows}"));
    let (begin, bytes) = make(&directory, room, rows)?;
    let million = rows / 1_000_000;
    let note = format!("{:.1} bytes a row", bytes as f64 / rows as f64);
    let mut add = |what: String, took: Duration, target, note: String| {
        let value = Spread::one(took.as_secs_f64() * 1000.0);
        let unit = Unit::Milliseconds;
        report.add_now(Row { bench: "audit", what, unit, value, target, note });
    };
    let (checked, found) = time(room, &directory, &["verify", "--format", "json"])?;
    let found: serde_json::Value = serde_json::from_slice(&found)?;
    let there = found["events"].as_u64().context("a check counts events")?;
    if there != rows {
        // A full disk takes the oldest away, and a smaller store answers sooner.
        bail!("{there} of {rows} rows are there: is the disk full?");
    }
    let speed = checked.mul_f64(1e9 / bytes as f64);
    add(format!("check of a gigabyte, of {million} million rows"), speed, Some(1000.0), note);
    let at = |row: i64| clawbox::audit::store::event::time_text(begin + STEP * row);
    let middle = i64::try_from(rows)? / 2;
    let (from, to) = (at(middle), at(middle + 600_000));
    for (what, words) in [
        ("a rare host", "query --host rare.test".to_owned()),
        (
            "a minute of denials",
            format!("query --verdict deny --since {from} --until {to} --limit 10"),
        ),
        (
            "the last ten denials of files below /etc",
            "query --verdict deny --path /etc/** --sort -time --limit 10".to_owned(),
        ),
        ("all, counted by sandbox and verdict", "query --count-by sandbox,verdict".to_owned()),
    ] {
        let words: Vec<&str> = words.split(' ').collect();
        let (took, _) = time(room, &directory, &words)?;
        add(format!("query of {million} million rows: {what}"), took, None, String::new());
    }
    std::fs::remove_dir_all(&directory)?;
    Ok(())
}

/// How long a verb of `clawbox audit` takes, and what it says.
fn time(room: &Room, directory: &Path, words: &[&str]) -> Result<(Duration, Vec<u8>)> {
    let mut command = Command::new(room.clawbox_program());
    command.arg("audit").args(words).arg("--dir").arg(directory);
    let began = Instant::now();
    let output = command.stdin(Stdio::null()).output()?;
    let took = began.elapsed();
    if !output.status.success() || output.stdout.is_empty() {
        bail!("{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok((took, output.stdout))
}

/// Makes a store, and gives its first time and its bytes.
fn make(directory: &Path, room: &Room, rows: u64) -> Result<(i64, u64)> {
    let limits = Limits {
        quota: Size::try_from("1T".to_owned()).map_err(anyhow::Error::msg)?,
        ..Limits::default()
    };
    let key = room.file("archive.key");
    let (mut writer, _) = Writer::open(directory, &key, limits)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let begin = i64::try_from(now.as_micros())? - STEP * i64::try_from(rows)?;
    let (mut made, mut columns, mut random) = (0, Columns::default(), Random(1));
    let mut progress = Progress::of("audit, rows made", 100);
    while made < rows {
        let batch = made / BATCH;
        progress.reached(u32::try_from(made * 100 / rows)?);
        let mut likes = Vec::new();
        for _ in 0..BATCH.min(rows - made) {
            let micros = begin + STEP * made as i64;
            if (likes.len() as u64) < OWN {
                own(
                    &mut columns,
                    micros,
                    &mut random,
                    batch.is_multiple_of(RARE) && likes.is_empty(),
                );
                likes.push(columns.last().context("a row was begun")?);
            } else {
                // What is done often is done by few.
                let pick = random.below(OWN).min(random.below(OWN)).min(random.below(OWN));
                columns.again(likes[pick as usize], micros);
            }
            made += 1;
        }
        let batch = columns.take().into_batch()?.context("rows were added")?;
        writer.append(&batch)?;
    }
    writer.close()?;
    progress.done();
    let mut bytes = 0;
    for entry in std::fs::read_dir(directory)? {
        bytes += entry?.metadata()?.len();
    }
    Ok((begin, bytes))
}

/// A row as agents make them: most connects, some starts and uses of files, one in twenty refused.
fn own(columns: &mut Columns, micros: i64, random: &mut Random, is_rare: bool) {
    columns.begin(micros);
    columns.text(Text::Sandbox, &format!("agent-{}", random.below(50)));
    let is_denied = random.below(20) == 0;
    columns.text(Text::Verdict, if is_denied { "deny" } else { "allow" });
    columns.number(Number::Pid, 1000 + random.below(30_000) as u32);
    columns.number(Number::Uid, 1000);
    columns.number(Number::Policy, random.below(60) as u32);
    let program = random.below(40);
    columns.text(Text::Exe, &format!("/usr/bin/program-{program}"));
    columns.text(Text::ExeId, &format!("254:0:{}", 100_000 + program));
    match random.below(10) {
        0 => {
            columns.text(Text::Class, "process");
            columns.text(Text::Action, "exec");
            columns.text(Text::Reason, "exec");
            columns.text(Text::Path, &format!("/usr/bin/program-{program}"));
            columns.text(
                Text::Args,
                &format!(r#"["program-{program}","--job","{}"]"#, random.below(1 << 30)),
            );
        }
        1..=3 => {
            let place = ["/etc", "/usr/lib", "/home/agent/work"][random.below(3) as usize];
            columns.text(Text::Class, "file");
            columns.text(Text::Action, "open");
            columns.text(Text::Reason, if is_denied { "unknown-file" } else { "rule" });
            columns.text(Text::Path, &format!("{place}/some/file-{}", random.below(5_000)));
            columns.text(Text::PathId, &format!("254:0:{}", random.below(1 << 24)));
            columns.text(Text::Access, "read");
        }
        _ => {
            let host = random.below(300);
            columns.text(Text::Class, "network");
            columns.text(Text::Action, "connect");
            columns.text(Text::Reason, if is_denied { "unknown-endpoint" } else { "rule" });
            let name = if is_rare { "rare.test".to_owned() } else { format!("host-{host}.test") };
            columns.text(Text::Host, &name);
            columns.text(Text::Ip, &format!("198.51.100.{}", host % 256));
            columns.number(Number::Port, 443);
            columns.text(Text::Transport, "tcp");
            if !is_denied {
                columns.text(Text::Rule, "services");
                columns.text(Text::RuleHost, &name);
                columns.number(Number::RuleEndpoint, host as u32);
            }
        }
    }
    if is_rare {
        columns.text(Text::Named, "rare.test");
    }
}

/// Numbers without order that are the same each time.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        // xorshift64*.
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % bound
    }
}

//! What a running clawbox keeps in memory: after its start, and after some thousand events.

use std::time::Duration;

use anyhow::{Context, Result};

use crate::figures::Spread;
use crate::operation::Operation;
use crate::report::{Report, Row, Unit};
use crate::room::{Mode, Room};

/// What may be resident, in MiB.
const TARGET: f64 = 16.0;

/// Events, in batches that the ring holds.
const BATCHES: u32 = 10;
const BATCH: u32 = 1000;

/// Events at once: many times what the ring holds, and faster than they can be written down.
const FLOOD: u32 = 100_000;

/// Measures and reports.
pub fn measure(room: &Room, report: &mut Report) -> Result<()> {
    let mut worker = room.sandboxed(Mode::Enforce)?;
    let pause = || std::thread::sleep(Duration::from_millis(200));
    pause();
    add(report, worker.pid(), "started", "VmRSS", None)?;
    for _ in 0..BATCHES {
        worker.perform(Operation::TcpConnect, BATCH)?;
        worker.perform(Operation::UdpSend, BATCH)?;
        pause();
    }
    let when = format!("after {} events", 2 * BATCHES * BATCH);
    add(report, worker.pid(), &when, "VmRSS", Some(TARGET))?;
    add(report, worker.pid(), &when, "RssAnon", None)?;
    add(report, worker.pid(), &when, "RssFile", None)?;
    worker.perform(Operation::UdpSend, FLOOD)?;
    pause();
    let when = format!("after a flood of {FLOOD} more");
    add(report, worker.pid(), &when, "VmRSS", Some(TARGET))?;
    add(report, worker.pid(), &when, "RssAnon", None)?;
    add(report, worker.pid(), "at its peak, while it loads", "VmHWM", None)?;
    worker.stop()?;
    let trail = room.take_trail()?;
    report.note(format!(
        "memory: {} network records; {} events of the flood found the ring full and are counted",
        trail.network, trail.lost
    ));
    Ok(())
}

fn add(report: &mut Report, pid: u32, when: &str, field: &str, target: Option<f64>) -> Result<()> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let size = line.and_then(|line| line.trim().strip_suffix(" kB"));
    let kib: f64 = size.with_context(|| format!("/proc/{pid}/status has no {field}"))?.parse()?;
    report.add(Row {
        bench: "memory",
        what: format!("{field}, {when}"),
        unit: Unit::Mebibytes,
        value: Spread::one(kib / 1024.0),
        target,
        note: String::new(),
    });
    Ok(())
}

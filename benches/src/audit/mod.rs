//! Events on their way from the kernel to the host's store: how many a second, against a reader that does
//! nothing with them, none of them unaccounted for; what the agent takes for that; and how long queries and
//! checks of a large store take.

mod account;
mod archive;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clawbox::kernel::ring::Ring;

use self::account::Account;
use crate::daemon::Daemon;
use crate::figures::{Spread, median};
use crate::operation::Operation;
use crate::report::{Progress, Report, Row, Unit};
use crate::room::Room;
use crate::worker::{ARGUMENT, Worker};

/// Connects of one request to a worker.
const BATCH: u32 = 20_000;

/// Processes that make events, each in a sandbox of its own.
const MAKERS: u32 = 2;

const PATIENCE: Duration = Duration::from_secs(60);

/// Events a second at which the agent's processor time is looked at, and what of a core it may take, percent.
const RATES: [(u32, f64); 2] = [(10_000, 1.0), (100_000, 6.0)];

/// Rows of a store that is asked.
const ARCHIVE: u64 = 10_000_000;
const LARGE_ARCHIVE: u64 = 100_000_000;

/// Rounds, and how long each part of one takes.
const ROUNDS: u32 = 3;
/// Long, because of those that are stored the last are waited for: they are on the disk within a second.
const FLOOD: Duration = Duration::from_secs(8);
const PACED: Duration = Duration::from_secs(8);

/// What a flood came to.
struct Flood {
    generated: u64,
    /// Until the last one was made.
    took: Duration,
}

/// As fast as these workers go.
fn flood(workers: &mut [Worker], span: Duration) -> Result<Flood> {
    let began = Instant::now();
    let one = |worker: &mut Worker| {
        let mut generated = 0;
        while began.elapsed() < span {
            worker.perform(Operation::UdpConnectMixed, BATCH)?;
            generated += u64::from(BATCH);
        }
        Ok::<_, anyhow::Error>(generated)
    };
    let generated = std::thread::scope(|scope| {
        let makers: Vec<_> = workers.iter_mut().map(|it| scope.spawn(|| one(it))).collect();
        let made = makers.into_iter().map(|maker| maker.join().ok().context("a maker ended")?);
        made.sum::<Result<u64>>()
    })?;
    Ok(Flood { generated, took: began.elapsed() })
}

/// So many a second.
fn paced(worker: &mut Worker, rate: u32, span: Duration) -> Result<Flood> {
    const STEP: Duration = Duration::from_millis(10);
    let (began, mut generated) = (Instant::now(), 0);
    while began.elapsed() < span {
        let due = began + STEP * (generated / (rate / 100));
        if let Some(wait) = due.checked_duration_since(Instant::now()) {
            std::thread::sleep(wait);
        }
        worker.perform(Operation::UdpConnectMixed, rate / 100)?;
        generated += rate / 100;
    }
    Ok(Flood { generated: generated.into(), took: began.elapsed() })
}

/// Reads both rings and does nothing with what is in them, for as long as a flood takes and until they are
/// empty.
fn read_nothing(run: &str, flood: impl FnOnce() -> Result<Flood>) -> Result<(Flood, u64)> {
    let mut rings = [Ring::pinned(run, "EVENTS")?, Ring::pinned(run, "ALLOWS")?];
    let is_over = std::sync::atomic::AtomicBool::new(false);
    let over = std::sync::atomic::Ordering::SeqCst;
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut read = 0_u64;
            loop {
                let was_over = is_over.load(over);
                let before = read;
                for ring in &mut rings {
                    while let Some(bytes) = ring.read() {
                        // What is of neither sandbox of the benches is no event of theirs.
                        let sandbox = bytes.get(4..8).and_then(|bytes| bytes.first_chunk());
                        let sandbox = sandbox.map_or(0, |bytes| u32::from_ne_bytes(*bytes));
                        read += u64::from((1..=MAKERS).contains(&sandbox));
                    }
                    let end = ring.position();
                    ring.release(end);
                }
                if read == before {
                    if was_over {
                        return read;
                    }
                    // Not woken for each event, which would hold up who makes them.
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        });
        let flood = flood();
        is_over.store(true, over);
        let read = reader.join().ok().context("the reader ended early")?;
        Ok((flood?, read))
    })
}

/// What is measured by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// The agent's processor time at two rates
    Rates,
    /// Events a second to the disk, of one process and of two
    Flood,
    /// Queries and a check of ten million rows
    Queries,
    /// The same of a hundred million: minutes, and half a gigabyte of disk
    Large,
}

/// Measures and reports: one part, or all but the one that takes longest.
pub fn measure(room: &Room, part: Option<Part>, quick: bool, report: &mut Report) -> Result<()> {
    let is_asked = |one| part.is_none_or(|part| part == one);
    if is_asked(Part::Rates) || is_asked(Part::Flood) {
        from_the_kernel(room, is_asked, if quick { 1 } else { ROUNDS }, report)?;
    }
    if is_asked(Part::Queries) {
        archive::measure(room, ARCHIVE, report)?;
    }
    if part == Some(Part::Large) {
        archive::measure(room, LARGE_ARCHIVE, report)?;
    }
    Ok(())
}

/// What a daemon does with what the kernel tells.
fn from_the_kernel(
    room: &Room,
    is_asked: impl Fn(Part) -> bool,
    rounds: u32,
    report: &mut Report,
) -> Result<()> {
    let policy = room.policy_of_mixed()?;
    let mut daemon = Daemon::start(room)?;
    let start = |daemon: &Daemon| {
        let mut command = daemon.run_with(&policy, &["--audit-level", "all"]);
        command.arg(room.program()).arg(ARGUMENT);
        Worker::start(&mut command, &room.ends)
    };
    let mut workers = (0..MAKERS).map(|_| start(&daemon)).collect::<Result<Vec<_>>>()?;
    let mut account = Account::of(&room.file("state/audit"));
    // Each worker has connected a socket when it began.
    account.generated = u64::from(MAKERS);
    account.generated += flood(&mut workers, Duration::from_millis(500))?.generated;
    account.settle()?;
    for (rate, target) in RATES.into_iter().filter(|_| is_asked(Part::Rates)) {
        cpu(&daemon, &mut workers[0], &mut account, rate, target, report)?;
    }
    if is_asked(Part::Flood) {
        floods(&mut daemon, &mut workers, &mut account, rounds, report)?;
    }
    // How they have ended no restarted daemon can tell: they are another one's children.
    workers.into_iter().for_each(|worker| drop(worker.stop()));
    drop(daemon);
    if is_asked(Part::Flood) {
        let (bytes, rows) = (account.bytes()?, account.all_rows);
        let note = format!("{rows} rows, {bytes} bytes");
        let value = Spread::one(bytes as f64 / rows as f64);
        let what = "on the disk for an event of a flood".to_owned();
        report.add_now(Row {
            bench: "audit",
            what,
            unit: Unit::Bytes,
            value,
            target: Some(16.0),
            note,
        });
    }
    report.note(format!(
        "audit: {} events made, {} stored, {} counted as lost, {} read elsewhere: none unaccounted; by the \
         kernel's numbers the agent misses {}",
        account.generated, account.rows, account.lost, account.elsewhere, account.unexplained
    ));
    if is_asked(Part::Rates) {
        counted(room, &Daemon::start(room)?, &policy, report)?;
    }
    Ok(())
}

/// As fast as one worker goes, and two.
fn floods(
    daemon: &mut Daemon,
    workers: &mut [Worker],
    account: &mut Account,
    rounds: u32,
    report: &mut Report,
) -> Result<()> {
    let run = format!("bench-{}", std::process::id());
    let mut seen = [Seen::default(), Seen::default()];
    let mut progress = Progress::of("audit", rounds);
    for round in 0..rounds {
        progress.reached(round);
        for (makers, seen) in (1..).zip(&mut seen) {
            seen.round(daemon, &run, &mut workers[..makers], account)?;
        }
    }
    progress.done();
    account.settle_elsewhere()?;
    seen[0].rows("one makes them", report);
    seen[1].rows("two make them", report);
    Ok(())
}

/// What rounds have come to.
#[derive(Default)]
struct Seen {
    /// Events a second that were stored, made, and read by who does nothing with them.
    stored: Vec<f64>,
    offered: Vec<f64>,
    ceilings: Vec<f64>,
    /// The last to the first.
    ratios: Vec<f64>,
    /// The agent's processor time for one that was stored, in nanoseconds.
    taken: Vec<f64>,
}

impl Seen {
    fn round(
        &mut self,
        daemon: &mut Daemon,
        run: &str,
        workers: &mut [Worker],
        account: &mut Account,
    ) -> Result<()> {
        let (before, used, written) = (account.rows, daemon.processor()?, account.written()?);
        let made = flood(workers, FLOOD)?;
        // What is in the store when the last one is made. The rest waits to be written, and what it takes this to
        // read all of them back is not the agent's.
        let written = account.written()?.saturating_sub(written).max(1);
        account.generated += made.generated;
        account.settle()?;
        let rows = (account.rows - before).max(1) as f64;
        let stored = rows.min(written as f64) / made.took.as_secs_f64();
        let used = daemon.processor()?.saturating_sub(used);
        self.taken.push(used.as_secs_f64() * 1e9 / rows);
        self.offered.push(made.generated as f64 / made.took.as_secs_f64());
        daemon.kill();
        let (made, read) = read_nothing(run, || flood(workers, FLOOD))?;
        daemon.start_again()?;
        account.generated += made.generated;
        account.elsewhere += read;
        account.settle()?;
        let ceiling = read as f64 / made.took.as_secs_f64();
        self.stored.push(stored);
        self.ceilings.push(ceiling);
        self.ratios.push(ceiling / stored);
        Ok(())
    }

    fn rows(&self, makers: &str, report: &mut Report) {
        let middle = |rates: &[f64]| median(rates.iter().copied()).unwrap_or_default();
        let note = format!(
            "{:.0} a second stored of {:.0} made; the reader that does nothing read {:.0}",
            middle(&self.stored),
            middle(&self.offered),
            middle(&self.ceilings)
        );
        let mut add = |what: &str, unit, value: Option<Spread>, target, note| {
            if let Some(value) = value {
                let (what, target) = (format!("{what}; {makers}"), Some(target));
                report.add_now(Row { bench: "audit", what, unit, value, target, note });
            }
        };
        let each = Spread::of(self.stored.iter().map(|rate| 1e9 / rate));
        add("an event from the kernel to the disk", Unit::Nanoseconds, each, 1000.0, note);
        let (what, taken) = ("of a processor for it, in the agent", self.taken.iter().copied());
        add(what, Unit::Nanoseconds, Spread::of(taken), 1000.0, String::new());
        let what = "events that a reader reads which does nothing, to those stored";
        let ratios = self.ratios.iter().copied();
        add(what, Unit::Ratio, Spread::of(ratios), 1.25, String::new());
    }
}

/// What the agent takes where those that are alike are counted, as it is by default.
fn counted(
    room: &Room,
    daemon: &Daemon,
    policy: &std::path::Path,
    report: &mut Report,
) -> Result<()> {
    let mut command = daemon.run(policy);
    command.arg(room.program()).arg(ARGUMENT);
    let mut worker = Worker::start(&mut command, &room.ends)?;
    for (rate, target) in RATES {
        let (before, began) = (daemon.processor()?, Instant::now());
        let made = paced(&mut worker, rate, PACED)?;
        let took = began.elapsed();
        let used = daemon.processor()?.saturating_sub(before);
        let reached = made.generated as f64 / made.took.as_secs_f64();
        let note = format!("{reached:.0} a second were made, one in a hundred denied");
        let value = Spread::one(used.as_secs_f64() / took.as_secs_f64() * 100.0);
        let what = format!("of a core, at {rate} a second by default, where the alike are counted");
        let (unit, target) = (Unit::Percent, Some(target));
        report.add_now(Row { bench: "audit", what, unit, value, target, note });
    }
    worker.stop()
}

/// What the agent takes at a rate.
fn cpu(
    daemon: &Daemon,
    worker: &mut Worker,
    account: &mut Account,
    rate: u32,
    target: f64,
    report: &mut Report,
) -> Result<()> {
    let (before, began, lost) = (daemon.processor()?, Instant::now(), account.lost);
    let made = paced(worker, rate, PACED)?;
    account.generated += made.generated;
    let took = began.elapsed();
    let used = daemon.processor()?.saturating_sub(before);
    account.settle()?;
    let reached = made.generated as f64 / made.took.as_secs_f64();
    let note = format!("{reached:.0} a second were made, {} lost", account.lost - lost);
    let value = Spread::one(used.as_secs_f64() / took.as_secs_f64() * 100.0);
    let what = format!("of a core, at {rate} events a second");
    let (unit, target) = (Unit::Percent, Some(target));
    report.add_now(Row { bench: "audit", what, unit, value, target, note });
    Ok(())
}

/// Waits until something is so.
fn until(what: &str, mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    let began = Instant::now();
    while !is_so()? {
        if began.elapsed() > PATIENCE {
            bail!("{what}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

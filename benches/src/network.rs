//! What one network operation costs with clawbox and without. A round is: nothing loaded, a
//! sandbox, nothing again, a sandbox that only records; ratios are made within a round.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::figures::{Spread, median};
use crate::operation::{Operation, Taken};
use crate::report::{Progress, Report, Row, Unit};
use crate::room::{Mode, Room, Trail};
use crate::worker::Worker;

/// Batches of each operation on each side of a round: many and short, so that what else the
/// machine does falls into some of them and their median stays.
const BATCHES: usize = 15;

/// Connections in a batch: some milliseconds.
const CONNECTIONS: u32 = 100;

/// Datagrams and datagram connects in a batch.
const DATAGRAMS: u32 = 500;

/// After each batch of datagrams, so that their events do not fill the ring: each send is to pay
/// for an event that is delivered.
const BREATH: Duration = Duration::from_millis(5);

/// Which figures are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// connect inside a sandbox.
    Connect,
    /// send inside a sandbox.
    Send,
    /// Both, by a process outside.
    Outside,
    /// All of them.
    All,
}

/// Who performs under what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Side {
    /// No clawbox on the host.
    Without,
    /// The same once more, to see what a ratio of nothing to nothing looks like here.
    Again,
    /// Inside a sandbox that enforces.
    Enforcing,
    /// Outside, while that sandbox exists.
    Outside,
    /// Inside a sandbox that only records.
    Recording,
}

/// Nanoseconds of one operation.
#[derive(Clone, Copy, Debug)]
struct Cost {
    wall: f64,
    processor: f64,
    /// What clawbox then spends on reading and writing down its event.
    reader: f64,
}

/// What the batches of one round gave.
type Batches = BTreeMap<(Side, Operation), Vec<Cost>>;

/// Each batch's median in its round.
type Round = BTreeMap<(Side, Operation), Cost>;

/// Everything that rounds leave behind.
#[derive(Debug, Default)]
struct Measured {
    rounds: Vec<Round>,
    trails: Vec<Trail>,
    /// Nanoseconds of clawbox's own processor time for each event, a figure a sandbox.
    reader: Vec<f64>,
    repeated: u32,
}

/// Operations with their batch sizes.
type Plan = Vec<(Operation, u32)>;

/// Measures and reports.
pub fn measure(room: &Room, asked: Asked, rounds: u32, report: &mut Report) -> Result<()> {
    let plan = plan(asked);
    let mut measured = Measured::default();
    let mut progress = Progress::of("network", rounds);
    for number in 0..rounds {
        progress.reached(number);
        let batches = round(room, &plan, number as usize, &mut measured)?;
        measured.rounds.push(batches.into_iter().filter_map(middle).collect());
    }
    progress.done();
    rows(asked, &plan, &measured, report);
    Ok(())
}

fn middle((key, costs): ((Side, Operation), Vec<Cost>)) -> Option<((Side, Operation), Cost)> {
    let wall = median(costs.iter().map(|cost| cost.wall))?;
    let processor = median(costs.iter().map(|cost| cost.processor))?;
    let reader = median(costs.iter().map(|cost| cost.reader))?;
    Some((key, Cost { wall, processor, reader }))
}

fn plan(asked: Asked) -> Plan {
    let wanted = |operation: &Operation| match operation {
        Operation::TcpConnect | Operation::UdpConnect => asked != Asked::Send,
        Operation::UdpSend => asked != Asked::Connect,
        Operation::UdpSendConnected => matches!(asked, Asked::Send | Asked::All),
        _ => false,
    };
    let sized = |operation| match operation {
        Operation::TcpConnect => (operation, CONNECTIONS),
        _ => (operation, DATAGRAMS),
    };
    Operation::PLAIN.iter().copied().filter(wanted).map(sized).collect()
}

/// Every other round has the sandboxes the other way round, and each of its steps begins with
/// another operation and another side.
fn round(room: &Room, plan: &Plan, number: usize, measured: &mut Measured) -> Result<Batches> {
    let mut batches = Batches::new();
    let mut outside = room.outside()?;
    let modes = [(Mode::Enforce, Side::Without), (Mode::Audit, Side::Again)];
    for step in 0..modes.len() {
        let (mode, without) = modes[(step + number) % modes.len()];
        let mut alone = [(without, &mut outside)];
        step_of(room, plan, 0, &mut alone, number, &mut batches, measured)?;
        let mut inside = room.sandboxed(mode).context("the sandbox did not start")?;
        let own = if mode == Mode::Enforce { Side::Enforcing } else { Side::Recording };
        let mut both = vec![(own, &mut inside)];
        if mode == Mode::Enforce {
            both.push((Side::Outside, &mut outside));
        }
        let before = processor_time(both[0].1.pid())?;
        step_of(room, plan, 1, &mut both, number, &mut batches, measured)?;
        let spent = processor_time(inside.pid())?.saturating_sub(before);
        inside.stop()?;
        room.root.wait_for(0)?;
        let trail = room.take_trail()?;
        let reader = spent.as_nanos() as f64 / trail.network.max(1) as f64;
        let performed = batches.iter_mut().filter(|((side, _), _)| *side == own);
        performed.flat_map(|(_, costs)| costs).for_each(|cost| cost.reader = reader);
        measured.reader.push(reader);
        measured.trails.push(trail);
    }
    outside.stop()?;
    Ok(batches)
}

fn step_of(
    room: &Room,
    plan: &Plan,
    programs: u32,
    sides: &mut [(Side, &mut Worker)],
    turn: usize,
    batches: &mut Batches,
    measured: &mut Measured,
) -> Result<()> {
    for batch in 0..BATCHES {
        for place in 0..plan.len() {
            let (operation, count) = plan[(place + batch + turn) % plan.len()];
            for side in 0..sides.len() {
                let at = (side + batch + turn) % sides.len();
                let (side, worker) = &mut sides[at];
                let taken = loop {
                    room.root.wait_for(programs)?;
                    let taken = worker.perform(operation, count)?;
                    if operation != Operation::TcpConnect {
                        std::thread::sleep(BREATH);
                    }
                    if room.root.programs()? == programs {
                        break taken;
                    }
                    measured.repeated += 1;
                };
                batches.entry((*side, operation)).or_default().push(cost(taken, count));
            }
        }
    }
    Ok(())
}

fn cost(taken: Taken, count: u32) -> Cost {
    let each = |whole: Duration| whole.as_nanos() as f64 / f64::from(count);
    Cost { wall: each(taken.wall), processor: each(taken.processor), reader: 0.0 }
}

/// Processor time of a process's only thread.
fn processor_time(pid: u32) -> Result<Duration> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/schedstat"))?;
    let nanoseconds = text.split(' ').next().unwrap_or_default().parse()?;
    Ok(Duration::from_nanos(nanoseconds))
}

/// What the issue asks for.
fn target(side: Side, operation: Operation) -> Option<f64> {
    match (side, operation) {
        (Side::Enforcing, Operation::TcpConnect) => Some(1.08),
        (Side::Enforcing, Operation::UdpSend) => Some(1.35),
        (Side::Outside, Operation::TcpConnect) => Some(1.03),
        _ => None,
    }
}

fn rows(asked: Asked, plan: &Plan, measured: &Measured, report: &mut Report) {
    let sides: &[(Side, &str)] = &[
        (Side::Enforcing, "in a sandbox"),
        (Side::Recording, "in a sandbox that only records"),
        (Side::Outside, "outside, beside a sandbox"),
        (Side::Again, "nothing against nothing, the noise"),
    ];
    for &(side, where_) in sides {
        if asked == Asked::Outside && matches!(side, Side::Enforcing | Side::Recording) {
            continue;
        }
        for &(operation, _) in plan {
            let of = |pick: fn(&Cost) -> f64| {
                Spread::of(measured.rounds.iter().filter_map(|it| ratio(it, side, operation, pick)))
            };
            let (Some(wall), Some(processor)) = (of(|cost| cost.wall), of(|cost| cost.processor))
            else {
                continue;
            };
            let times = |side| {
                let costs =
                    measured.rounds.iter().filter_map(|round| round.get(&(side, operation)));
                median(costs.map(|cost| cost.wall / 1000.0)).unwrap_or_default()
            };
            let mut note = format!(
                "{:.2} → {:.2} µs; processor time ×{:.3}",
                times(Side::Without),
                times(side),
                processor.median
            );
            if side == Side::Enforcing && operation != Operation::UdpSendConnected {
                let all = of(|cost| cost.processor + cost.reader).map(|all| all.median);
                let _ = write!(note, ", ×{:.3} with clawbox's", all.unwrap_or_default());
            }
            report.add(Row {
                bench: where_,
                what: operation.title().to_owned(),
                unit: Unit::Ratio,
                value: wall,
                target: target(side, operation),
                note,
            });
        }
    }
    let sum = |pick: fn(&Trail) -> u64| measured.trails.iter().map(pick).sum::<u64>();
    let reader = median(measured.reader.iter().copied()).unwrap_or_default() / 1000.0;
    report.note(format!(
        "{} connects and sends in {} trails, {} events lost, {} denials; clawbox itself used {reader:.2} \
         µs of processor time for each; {} batches were made again because another clawbox \
         was attached",
        sum(|trail| trail.network),
        measured.trails.len(),
        sum(|trail| trail.lost),
        sum(|trail| trail.denied),
        measured.repeated,
    ));
}

/// A side against the mean of the two times in its round with nothing loaded; the control against
/// the first of them.
fn ratio(round: &Round, side: Side, operation: Operation, of: fn(&Cost) -> f64) -> Option<f64> {
    let value = |side| round.get(&(side, operation)).map(of);
    let without = value(Side::Without)?;
    let against = match side {
        Side::Again => without,
        _ => f64::midpoint(without, value(Side::Again)?),
    };
    Some(value(side)? / against)
}

//! What an allowed connection costs beside what others put in its way: a forward proxy made with hyper, and
//! tinyproxy; what it costs under many rules; and whether established streams are slower.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::figures::{Spread, median};
use crate::operation::{HYPER, Operation, TINYPROXY};
use crate::proxy;
use crate::report::{Progress, Report, Row, Unit};
use crate::room::{Mode, Room};
use crate::running::Running;
use crate::worker::Worker;

/// Operations in a batch.
const CONNECTIONS: u32 = 100;
const TUNNELS: u32 = 50;
const PARTS: u32 = 200;
const PARTS_EACH: u32 = 40;
/// Batches of each in a round.
const BATCHES: usize = 5;
/// How long a proxy may take to be there.
const PATIENCE: Duration = Duration::from_secs(10);

/// Rules of the policies that a connect is made under.
pub const RULES: [usize; 3] = [66, 1_000, 100_000];

/// Who performs what.
type Batches = BTreeMap<(Side, Operation), Vec<f64>>;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Side {
    Without,
    Again,
    Inside,
    Rules(usize),
}

/// Measures and reports.
pub fn measure(room: &Room, rounds: u32, report: &mut Report) -> Result<()> {
    let (_hyper, hyper) = hyper_proxy(room)?;
    let tinyproxy = tinyproxy(room)?;
    if tinyproxy.is_none() {
        report.note(
            "tinyproxy is not installed, so nothing stands beside the hyper proxy".to_owned(),
        );
    }
    let mut tunnels = vec![Operation::ThroughHyper];
    tunnels.extend(tinyproxy.as_ref().map(|_| Operation::ThroughTinyproxy));
    let mut command = Command::new(room.program());
    command.arg(crate::worker::ARGUMENT).env(HYPER, hyper.to_string());
    if let Some((_, address)) = &tinyproxy {
        command.env(TINYPROXY, address.to_string());
    }
    let mut outside = Worker::start(&mut command, &room.ends)?;
    let mut progress = Progress::of("egress", rounds);
    let mut measured = Vec::new();
    for number in 0..rounds {
        progress.reached(number);
        measured.push(round(room, &mut outside, &tunnels, number)?);
    }
    progress.done();
    outside.stop()?;
    rows(&measured, &tunnels, report);
    Ok(())
}

fn round(
    room: &Room,
    outside: &mut Worker,
    tunnels: &[Operation],
    number: u32,
) -> Result<BTreeMap<(Side, Operation), f64>> {
    let direct = [Operation::TcpConnect, Operation::OneStream, Operation::EightStreams];
    let mut batches = Batches::new();
    room.root.wait_for(0)?;
    for side in [Side::Without, Side::Again] {
        perform(outside, side, &direct, &mut batches)?;
        if side == Side::Without {
            perform(outside, side, tunnels, &mut batches)?;
        }
    }
    let mut inside = room.sandboxed(Mode::Enforce)?;
    room.root.wait_for(1)?;
    perform(&mut inside, Side::Inside, &direct, &mut batches)?;
    inside.stop()?;
    room.root.wait_for(0)?;
    room.take_trail()?;
    // The far corners in another order each round.
    for place in 0..RULES.len() {
        let rules = RULES[(place + number as usize) % RULES.len()];
        let mut inside = room.sandboxed_under(rules)?;
        room.root.wait_for(1)?;
        perform(&mut inside, Side::Rules(rules), &direct[..1], &mut batches)?;
        inside.stop()?;
        room.root.wait_for(0)?;
        room.take_trail()?;
    }
    let middle = |(key, costs): (_, Vec<f64>)| Some((key, median(costs)?));
    Ok(batches.into_iter().filter_map(middle).collect())
}

fn perform(
    worker: &mut Worker,
    side: Side,
    operations: &[Operation],
    batches: &mut Batches,
) -> Result<()> {
    for _ in 0..BATCHES {
        for &operation in operations {
            let count = match operation {
                Operation::OneStream => PARTS,
                Operation::EightStreams => PARTS_EACH,
                Operation::ThroughHyper | Operation::ThroughTinyproxy => TUNNELS,
                _ => CONNECTIONS,
            };
            let taken = worker.perform(operation, count)?;
            let each = taken.wall.as_nanos() as f64 / f64::from(count);
            batches.entry((side, operation)).or_default().push(each);
        }
    }
    Ok(())
}

fn rows(rounds: &[BTreeMap<(Side, Operation), f64>], tunnels: &[Operation], report: &mut Report) {
    let of = |side: Side, operation: Operation, against: (Side, Operation)| {
        Spread::of(
            rounds
                .iter()
                .filter_map(|round| Some(round.get(&(side, operation))? / round.get(&against)?)),
        )
    };
    let times = |side, operation| {
        let all = rounds.iter().filter_map(|round| round.get(&(side, operation)));
        median(all.map(|nanoseconds| nanoseconds / 1000.0)).unwrap_or_default()
    };
    let connect = (Side::Without, Operation::TcpConnect);
    let plain = times(Side::Without, Operation::TcpConnect);
    let mut add = |bench, what: String, value, target, note| {
        report.add(Row { bench, what, unit: Unit::Ratio, value, target, note });
    };
    let sides =
        [("in a sandbox", Side::Inside, 1.05), ("nothing against nothing", Side::Again, 0.0)];
    for (bench, side, target) in sides {
        let wanted = (target > 0.0).then_some(target);
        for operation in [Operation::TcpConnect, Operation::OneStream, Operation::EightStreams] {
            let Some(value) = of(side, operation, (Side::Without, operation)) else { continue };
            // Established streams: at least 0.99 of what they had.
            let wanted = if operation == Operation::TcpConnect {
                wanted
            } else {
                wanted.map(|_| 1.0 / 0.99)
            };
            let note = format!(
                "{:.2} → {:.2} µs",
                times(Side::Without, operation),
                times(side, operation)
            );
            add(bench, operation.title().to_owned(), value, wanted, note);
        }
    }
    for &tunnel in tunnels {
        let Some(value) = of(Side::Without, tunnel, connect) else { continue };
        let note = format!("{plain:.2} → {:.2} µs", times(Side::Without, tunnel));
        add("without clawbox", tunnel.title().to_owned(), value, None, note);
    }
    for rules in &RULES[1..] {
        let near = (Side::Rules(RULES[0]), Operation::TcpConnect);
        let Some(value) = of(Side::Rules(*rules), Operation::TcpConnect, near) else { continue };
        let what = format!("TCP connect under {rules} rules, against {}", RULES[0]);
        add("in a sandbox", what, value, Some(1.10), String::new());
    }
    let own = times(Side::Inside, Operation::TcpConnect) - plain;
    let least = tunnels.iter().map(|tunnel| times(Side::Without, *tunnel) - plain);
    let least = least.fold(f64::INFINITY, f64::min);
    report.note(format!(
        "clawbox adds {own:.2} µs to a connect, the faster proxy {least:.2} µs: {:.0} times as much \
         (target: 50)",
        least / own.max(0.01)
    ));
}

fn hyper_proxy(room: &Room) -> Result<(Running, SocketAddr)> {
    let mut command = Command::new(room.program());
    let mut process = command.arg(proxy::ARGUMENT).stdout(Stdio::piped()).spawn()?;
    let stdout = process.stdout.take().context("a pipe was asked for")?;
    let running = Running(process);
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line)?;
    Ok((running, line.trim().parse().context("the proxy does not say where it listens")?))
}

/// `None` where it is not installed.
fn tinyproxy(room: &Room) -> Result<Option<(Running, SocketAddr)>> {
    let program = Path::new("/usr/bin/tinyproxy");
    if !program.exists() {
        return Ok(None);
    }
    // Free when asked; tinyproxy chooses none itself.
    let address = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?;
    let file = room.file("tinyproxy.conf");
    let text = format!(
        "Port {}\nListen 127.0.0.1\nAllow 127.0.0.1\nMaxClients 100\nLogLevel Critical\nTimeout 60\n",
        address.port()
    );
    fs::write(&file, text)?;
    let mut command = Command::new(program);
    let process = command.arg("-d").arg("-c").arg(&file).stdout(Stdio::null()).spawn()?;
    let running = Running(process);
    let since = Instant::now();
    while TcpStream::connect(address).is_err() {
        if since.elapsed() > PATIENCE {
            bail!("tinyproxy does not answer at {address}");
        }
        std::thread::yield_now();
    }
    Ok(Some((running, address)))
}

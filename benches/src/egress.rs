//! What an allowed connection costs beside what others put in its way: a forward proxy made with hyper, and
//! tinyproxy; what it costs under many rules; what a datagram costs; and whether established streams are slower.

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

/// Operations in a batch. Streams move 128 MiB: what one batch of that takes differs by a few hundredths
/// from the next on a quiet machine, and a side's median of them in a round by less.
const CONNECTIONS: u32 = 100;
const TUNNELS: u32 = 50;
const DATAGRAMS: u32 = 500;
const PARTS: u32 = 1024;
const PARTS_EACH: u32 = 128;
/// Batches of each in a round.
const BATCHES: usize = 7;
/// After each batch of datagrams, so that their events do not fill the ring: each send is to pay for an
/// event that is delivered.
const BREATH: Duration = Duration::from_millis(5);
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
    /// Without clawbox, by way of a proxy.
    Proxied,
    Rules(usize),
}

/// What needs nobody but the two ends, and what stands beside it by way of a proxy.
const DIRECT: [Operation; 5] = [
    Operation::TcpConnect,
    Operation::UdpSend,
    Operation::UdpSendConnected,
    Operation::OneStream,
    Operation::EightStreams,
];
const BY_HYPER: [Operation; 3] =
    [Operation::ThroughHyper, Operation::OneThroughHyper, Operation::EightThroughHyper];
const BY_TINYPROXY: [Operation; 3] =
    [Operation::ThroughTinyproxy, Operation::OneThroughTinyproxy, Operation::EightThroughTinyproxy];

/// What an operation by way of a proxy does.
fn direct(operation: Operation) -> Operation {
    match operation {
        Operation::OneThroughHyper | Operation::OneThroughTinyproxy => Operation::OneStream,
        Operation::EightThroughHyper | Operation::EightThroughTinyproxy => Operation::EightStreams,
        _ => Operation::TcpConnect,
    }
}

/// What the issue asks for: at most so much of a connect, and at least 0.99 of the throughput.
fn target(operation: Operation) -> Option<f64> {
    match operation {
        Operation::TcpConnect => Some(1.05),
        Operation::OneStream | Operation::EightStreams => Some(1.0 / 0.99),
        _ => None,
    }
}

type Round = BTreeMap<(Side, Operation), f64>;

/// Against the mean of the two sides without clawbox; the control against the other of them.
fn ratio(round: &Round, side: Side, operation: Operation) -> Option<f64> {
    let value = |side, operation| round.get(&(side, operation)).copied();
    let plain = direct_of(side, operation);
    let without = value(Side::Without, plain)?;
    let against = match side {
        Side::Again => without,
        _ => f64::midpoint(without, value(Side::Again, plain)?),
    };
    Some(value(side, operation)? / against)
}

fn direct_of(side: Side, operation: Operation) -> Operation {
    if side == Side::Proxied { direct(operation) } else { operation }
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
    let mut tunnels = BY_HYPER.to_vec();
    tunnels.extend(tinyproxy.iter().flat_map(|_| BY_TINYPROXY));
    let outside = || {
        let mut command = Command::new(room.program());
        command.arg(crate::worker::ARGUMENT).env(HYPER, hyper.to_string());
        if let Some((_, address)) = &tinyproxy {
            command.env(TINYPROXY, address.to_string());
        }
        Worker::start(&mut command, &room.ends)
    };
    let mut progress = Progress::of("egress", rounds);
    let mut measured = Vec::new();
    for number in 0..rounds {
        progress.reached(number);
        measured.push(round(room, &outside, &tunnels, number)?);
    }
    progress.done();
    rows(&measured, &tunnels, report);
    report.note(
        "a CONNECT proxy carries no datagrams (RFC 9110, 9.3.6), so nothing stands beside the UDP \
         sends; the streams' control is how far two sides without clawbox are apart, each a process of \
         its own before and after the sandbox"
            .to_owned(),
    );
    Ok(())
}

/// The sandbox is in the middle: what the machine drifts by meanwhile, the two sides without it share. Each
/// side is a process of its own, as a sandbox is; which of the two is called the control takes turns.
fn round(
    room: &Room,
    outside: &dyn Fn() -> Result<Worker>,
    tunnels: &[Operation],
    number: u32,
) -> Result<Round> {
    let mut batches = Batches::new();
    let mut sides = [Side::Without, Side::Again];
    sides.rotate_left(number as usize % 2);
    without(room, outside()?, sides[0], &DIRECT, &mut batches)?;
    let mut inside = room.sandboxed(Mode::Enforce)?;
    room.root.wait_for(1)?;
    perform(&mut inside, Side::Inside, &DIRECT, &mut batches)?;
    inside.stop()?;
    room.root.wait_for(0)?;
    room.take_trail()?;
    without(room, outside()?, sides[1], &DIRECT, &mut batches)?;
    without(room, outside()?, Side::Proxied, tunnels, &mut batches)?;
    // The far corners in another order each round.
    for place in 0..RULES.len() {
        let rules = RULES[(place + number as usize) % RULES.len()];
        let mut inside = room.sandboxed_under(rules)?;
        room.root.wait_for(1)?;
        perform(&mut inside, Side::Rules(rules), &DIRECT[..1], &mut batches)?;
        inside.stop()?;
        room.root.wait_for(0)?;
        room.take_trail()?;
    }
    let middle = |(key, costs): (_, Vec<f64>)| Some((key, median(costs)?));
    Ok(batches.into_iter().filter_map(middle).collect())
}

fn without(
    room: &Room,
    mut worker: Worker,
    side: Side,
    operations: &[Operation],
    batches: &mut Batches,
) -> Result<()> {
    room.root.wait_for(0)?;
    perform(&mut worker, side, operations, batches)?;
    worker.stop()
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
                Operation::TcpConnect => CONNECTIONS,
                Operation::UdpSend | Operation::UdpSendConnected => DATAGRAMS,
                Operation::OneStream
                | Operation::OneThroughHyper
                | Operation::OneThroughTinyproxy => PARTS,
                Operation::EightStreams
                | Operation::EightThroughHyper
                | Operation::EightThroughTinyproxy => PARTS_EACH,
                _ => TUNNELS,
            };
            let taken = worker.perform(operation, count)?;
            if matches!(operation, Operation::UdpSend | Operation::UdpSendConnected) {
                std::thread::sleep(BREATH);
            }
            let each = taken.wall.as_nanos() as f64 / f64::from(count);
            batches.entry((side, operation)).or_default().push(each);
        }
    }
    Ok(())
}

fn rows(rounds: &[Round], tunnels: &[Operation], report: &mut Report) {
    let times = |side, operation| {
        let all = rounds.iter().filter_map(|round| round.get(&(side, operation)));
        median(all.map(|nanoseconds| nanoseconds / 1000.0)).unwrap_or_default()
    };
    let sides = [
        ("in a sandbox", Side::Inside, &DIRECT[..]),
        ("nothing against nothing, the noise", Side::Again, &DIRECT),
        ("without clawbox, through a proxy", Side::Proxied, tunnels),
    ];
    for (bench, side, operations) in sides {
        for &operation in operations {
            let all = rounds.iter().filter_map(|round| ratio(round, side, operation));
            let Some(value) = Spread::of(all) else { continue };
            let before = times(Side::Without, direct_of(side, operation));
            report.add(Row {
                bench,
                what: operation.title().to_owned(),
                unit: Unit::Ratio,
                value,
                target: target(operation).filter(|_| side == Side::Inside),
                note: format!("{before:.2} → {:.2} µs", times(side, operation)),
            });
        }
    }
    for rules in &RULES[1..] {
        let connect = |round: &Round, rules| round.get(&(Side::Rules(rules), DIRECT[0])).copied();
        let all =
            rounds.iter().filter_map(|it| Some(connect(it, *rules)? / connect(it, RULES[0])?));
        let Some(value) = Spread::of(all) else { continue };
        report.add(Row {
            bench: "under many rules",
            what: format!("TCP connect under {rules} rules, against {}", RULES[0]),
            unit: Unit::Ratio,
            value,
            target: Some(1.10),
            note: String::new(),
        });
    }
    added(rounds, tunnels, report);
}

/// What clawbox and the faster proxy add to a connect, each in its round.
fn added(rounds: &[Round], tunnels: &[Operation], report: &mut Report) {
    let by = |side, operation| {
        let all = rounds.iter().filter_map(|round| {
            let without = [Side::Without, Side::Again].map(|it| round.get(&(it, DIRECT[0])));
            let [Some(one), Some(other)] = without else { return None };
            Some((round.get(&(side, operation))? - f64::midpoint(*one, *other)) / 1000.0)
        });
        median(all)
    };
    let connects = tunnels.iter().filter(|tunnel| direct(**tunnel) == DIRECT[0]);
    let least = connects.filter_map(|tunnel| by(Side::Proxied, *tunnel)).reduce(f64::min);
    let (Some(own), Some(least)) = (by(Side::Inside, DIRECT[0]), least) else { return };
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

//! What a question costs through a sandbox's resolver, beside dnsmasq, which forwards to the same server.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::figures::{Spread, median, part_of};
use crate::operation::{NAME_SERVER, Operation, REMEMBERED};
use crate::report::{Progress, Report, Row, Unit};
use crate::room::{Mode, Room};
use crate::running::Running;
use crate::worker::Worker;

const OPERATIONS: [Operation; 2] = [Operation::AskRemembered, Operation::AskForwarded];
/// Questions in a batch, and batches in a round.
const QUESTIONS: u32 = 400;
const BATCHES: usize = 7;
/// Questions before the first batch.
const UNCOUNTED: u32 = 32;
const PATIENCE: Duration = Duration::from_secs(10);

/// Serves the names of the measurements: one answer may be remembered, one may not.
pub fn serve() -> Result<SocketAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = socket.local_addr()?;
    std::thread::spawn(move || {
        let mut packet = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut packet[..400]) {
            if let Some(answer) = answered(&packet[..length]) {
                let _ = socket.send_to(&answer, from);
            }
        }
    });
    Ok(address)
}

/// The question again, without what came after it, and one address.
fn answered(question: &[u8]) -> Option<Vec<u8>> {
    let mut end = 12;
    while *question.get(end)? != 0 {
        end += 1 + usize::from(question[end]);
    }
    let kind = question.get(end + 1..end + 3)?;
    let mut answer = question.get(..end + 5)?.to_vec();
    let has_address = kind == [0, 1];
    (answer[2], answer[3]) = (0x81, 0x80);
    (answer[6], answer[7]) = (0, u8::from(has_address));
    (answer[10], answer[11]) = (0, 0);
    if has_address {
        let label = REMEMBERED.split('.').next().unwrap_or_default();
        let ttl: u32 = if answer[13..].starts_with(label.as_bytes()) { 300 } else { 0 };
        answer.extend([0xc0, 12, 0, 1, 0, 1]);
        answer.extend(ttl.to_be_bytes());
        answer.extend([0, 4, 93, 184, 216, 34]);
    }
    Some(answer)
}

/// What one side's questions of one kind took in a round.
#[derive(Debug, Default)]
struct Asked {
    /// Nanoseconds a question, batch by batch: the other side of throughput.
    each: Vec<f64>,
    /// How long each waited for its answer, in nanoseconds.
    waits: Vec<f64>,
}

/// A figure of a round, by the part of [`Asked`] that it is of.
type Figure = fn(&Asked) -> Option<f64>;

const EACH: Figure = |asked| median(asked.each.iter().copied());
const HALF: Figure = |asked| part_of(asked.waits.iter().copied(), 0.5);
const LAST_HUNDREDTH: Figure = |asked| part_of(asked.waits.iter().copied(), 0.99);

/// By whether it is clawbox that was asked, and for what.
type Round = BTreeMap<(bool, Operation), Asked>;

/// Measures and reports.
pub fn measure(room: &Room, rounds: u32, report: &mut Report) -> Result<()> {
    let Some((_dnsmasq, address)) = dnsmasq(room)? else {
        report.note("dnsmasq is not installed, so questions stand beside nothing".to_owned());
        return Ok(());
    };
    let mut command = Command::new(room.program());
    command.arg(crate::worker::ARGUMENT).env(NAME_SERVER, address.to_string());
    let mut outside = Worker::start(&mut command, &room.ends)?;
    let mut progress = Progress::of("dns", rounds);
    let mut measured = Vec::new();
    for number in 0..rounds {
        progress.reached(number);
        let mut inside = room.sandboxed(Mode::Enforce)?;
        measured.push(round(&mut inside, &mut outside)?);
        inside.stop()?;
        room.take_trail()?;
    }
    progress.done();
    outside.stop()?;
    for operation in OPERATIONS {
        tell(operation, &measured, report);
    }
    Ok(())
}

/// Asks both sides in turn, and begins with the other one each time.
fn round(inside: &mut Worker, outside: &mut Worker) -> Result<Round> {
    let mut round = Round::new();
    // A sandbox's resolver is new in each round, dnsmasq is not: without this the last hundredth of
    // its questions would be those that nobody can have remembered.
    for operation in OPERATIONS {
        inside.perform(operation, UNCOUNTED)?;
        outside.perform(operation, UNCOUNTED)?;
    }
    for batch in 0..BATCHES {
        for operation in OPERATIONS {
            for place in 0..2 {
                let is_ours = (place + batch) % 2 == 0;
                let worker = if is_ours { &mut *inside } else { &mut *outside };
                let taken = worker.perform(operation, QUESTIONS)?;
                let asked = round.entry((is_ours, operation)).or_default();
                asked.each.push(taken.wall.as_nanos() as f64 / f64::from(QUESTIONS));
                asked.waits.extend(taken.waits.iter().map(|wait| wait.as_nanos() as f64));
            }
        }
    }
    Ok(round)
}

/// Adds what all rounds say of one operation.
fn tell(operation: Operation, measured: &[Round], report: &mut Report) {
    let of = |is_ours, figure: Figure| {
        measured.iter().filter_map(move |round| figure(round.get(&(is_ours, operation))?))
    };
    let middle = |is_ours, figure| median(of(is_ours, figure)).unwrap_or(f64::INFINITY);
    let mut add = |what: &str, figure, target, note| {
        let pairs = of(true, figure).zip(of(false, figure));
        let Some(value) = Spread::of(pairs.map(|(ours, theirs)| ours / theirs)) else { return };
        report.add(Row {
            bench: "clawbox's resolver against dnsmasq",
            what: format!("{}{what}", operation.title()),
            unit: Unit::Ratio,
            value,
            target,
            note,
        });
    };
    let a_second = |is_ours| 1e9 / middle(is_ours, EACH);
    let note = format!("{:.0} and {:.0} a second", a_second(true), a_second(false));
    add("", EACH, Some(1.0), note);
    for (what, figure) in [(": p50 of its wait", HALF), (": p99 of its wait", LAST_HUNDREDTH)] {
        let [ours, theirs] = [true, false].map(|is_ours| middle(is_ours, figure) / 1000.0);
        add(what, figure, None, format!("{ours:.0} and {theirs:.0} µs"));
    }
}

/// `None` where it is not installed.
fn dnsmasq(room: &Room) -> Result<Option<(Running, SocketAddr)>> {
    let program = Path::new("/usr/sbin/dnsmasq");
    if !program.exists() {
        return Ok(None);
    }
    // Free when asked; dnsmasq chooses none itself.
    let address = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
    let upstream = room.name_server;
    let mut command = Command::new(program);
    command
        .args(["--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts"])
        .args(["--listen-address=127.0.0.1", "--bind-interfaces", "--user=root", "--pid-file="])
        .arg(format!("--port={}", address.port()))
        .arg(format!("--server={}#{}", upstream.ip(), upstream.port()))
        .stderr(Stdio::null());
    let running = Running(command.spawn()?);
    let since = Instant::now();
    let probe = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    probe.set_read_timeout(Some(Duration::from_millis(50)))?;
    let question = b"\0\x01\x01\0\0\x01\0\0\0\0\0\0\x05bench\x04test\0\0\x01\0\x01";
    while probe.send_to(question, address).is_err() || probe.recv(&mut [0; 512]).is_err() {
        if since.elapsed() > PATIENCE {
            bail!("dnsmasq does not answer at {address}");
        }
    }
    Ok(Some((running, address)))
}

//! What a sandbox that does as much as it is let costs the one beside it: against the same work by a process in no
//! sandbox, so that what is measured is clawbox's part and not that of a busy processor.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::bounded::{BOUNDS, Bound, Bounded};
use crate::daemon::Daemon;
use crate::figures::{Spread, median, part_of};
use crate::operation::{NAME_SERVER, Operation};
use crate::report::{Progress, Report, Row, Unit};
use crate::room::Room;
use crate::worker::{ARGUMENT, Worker};

/// What the neighbour does without an end, and of what it has no more.
struct Noise(Operation, u32, Option<Bound>);

/// Denials, each of which is told by itself, and questions for names.
const FLOODS: [Noise; 2] =
    [Noise(Operation::TcpRefused, 2_000, None), Noise(Operation::AskForwarded, 400, None)];

/// What a host's controllers bound.
const BOUNDED: [Noise; 3] = [
    Noise(Operation::Fork, 1, Some(BOUNDS[0])),
    Noise(Operation::Touch, 1, Some(BOUNDS[1])),
    Noise(Operation::Spin, 5, Some(BOUNDS[2])),
];

/// How long it has been at it before anything is measured: what it may have at once is then used up.
const LOUD: Duration = Duration::from_millis(300);

const CONNECTIONS: u32 = 200;
const QUESTIONS: u32 = 200;
const BATCHES: usize = 5;
const STARTS: usize = 5;

/// What the quiet one does, and what of it is told.
const QUIET: [&str; 3] =
    ["TCP connect+accept+close", "p50 of a question's wait, 16 under way", "one more start"];

/// Microseconds, as in [`QUIET`].
type Figures = [f64; QUIET.len()];

struct Stage<'r> {
    daemon: Daemon,
    room: &'r Room,
    policy: &'r Path,
    quiet: Worker,
}

/// Measures and reports what floods cost.
pub fn measure(room: &Room, rounds: u32, report: &mut Report) -> Result<()> {
    beside_each(room, rounds, &FLOODS, report)
}

/// What one costs that is at the bounds of its cgroup, against one in such a cgroup and no sandbox.
pub fn measure_bounded(room: &Room, rounds: u32, report: &mut Report) -> Result<()> {
    beside_each(room, rounds, &BOUNDED, report)
}

fn beside_each(room: &Room, rounds: u32, noises: &[Noise], report: &mut Report) -> Result<()> {
    let policy = room.policy_of("neighbour", 100)?;
    room.root.wait_for(0)?;
    let daemon = Daemon::start(room)?;
    let quiet = sandboxed(room, &daemon, &policy, None)?;
    let mut stage = Stage { daemon, room, policy: &policy, quiet };
    let mut progress = Progress::of("neighbour", rounds);
    for noise in noises {
        let Noise(operation, _, bound) = *noise;
        let mut inside = sandboxed(room, &stage.daemon, &policy, bound)?;
        let cgroup = bound.map(|bound| Bounded::make(room.root.path(), bound)).transpose()?;
        let mut command = match &cgroup {
            Some(cgroup) => cgroup.worker(room.program()),
            None => Command::new(room.program()),
        };
        if cgroup.is_none() {
            command.arg(ARGUMENT);
        }
        command.env(NAME_SERVER, room.name_server.to_string());
        let mut outside = Worker::start(&mut command, &room.ends)?;
        let mut pairs = Vec::new();
        for number in 0..rounds {
            progress.reached(number);
            let mut pair = [[0.0; QUIET.len()]; 2];
            for place in 0..2 {
                // Whose turn is first changes, so that nobody has the warmer machine.
                let is_inside = (place + number) % 2 == 0;
                let loud = if is_inside { &mut inside } else { &mut outside };
                pair[usize::from(!is_inside)] = stage.beside(loud, noise)?;
            }
            pairs.push(pair);
        }
        inside.stop()?;
        outside.stop()?;
        rows(operation, &pairs, report);
    }
    progress.done();
    stage.quiet.stop()?;
    Ok(())
}

fn sandboxed(room: &Room, daemon: &Daemon, policy: &Path, bound: Option<Bound>) -> Result<Worker> {
    let server = room.name_server.to_string();
    let mut options = vec!["--audit-level", "all", "--quiet", "--dns", &server];
    options.extend(bound.iter().flat_map(|bound| [bound.option, bound.value]));
    let mut command = daemon.run_with(policy, &options);
    command.arg(room.program()).arg(ARGUMENT).env(NAME_SERVER, "127.0.0.53:53");
    Worker::start(&mut command, &room.ends)
}

impl Stage<'_> {
    /// What the quiet one's work takes while the other one is at it.
    fn beside(&mut self, loud: &mut Worker, noise: &Noise) -> Result<Figures> {
        let Noise(operation, count, _) = *noise;
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let (begun, is_loud) = mpsc::channel();
            let is_over = &is_over;
            let noisy = scope.spawn(move || -> Result<()> {
                let since = Instant::now();
                while !is_over.load(Ordering::Relaxed) {
                    loud.perform(operation, count)?;
                    if since.elapsed() >= LOUD {
                        // Nobody waits for any but the first.
                        let _ = begun.send(());
                    }
                }
                Ok(())
            });
            // An error of the other one's comes out below.
            let _ = is_loud.recv();
            let figures = self.figures();
            is_over.store(true, Ordering::Relaxed);
            match noisy.join() {
                Ok(outcome) => outcome?,
                Err(_) => bail!("the neighbour's thread panicked"),
            }
            figures
        })
    }

    fn figures(&mut self) -> Result<Figures> {
        let mut connects = Vec::new();
        let mut waits = Vec::new();
        for _ in 0..BATCHES {
            let taken = self.quiet.perform(Operation::TcpConnect, CONNECTIONS)?;
            connects.push(taken.wall.as_secs_f64() * 1e6 / f64::from(CONNECTIONS));
            let taken = self.quiet.perform(Operation::AskForwarded, QUESTIONS)?;
            waits.extend(taken.waits.iter().map(|wait| wait.as_secs_f64() * 1e6));
        }
        let starts = (0..STARTS).map(|_| self.start()).collect::<Result<Vec<_>>>()?;
        let figures = [median(connects), part_of(waits, 0.5), median(starts)];
        let [Some(connect), Some(wait), Some(start)] = figures else { bail!("nothing was done") };
        Ok([connect, wait, start])
    }

    fn start(&self) -> Result<f64> {
        let began = Instant::now();
        let mut command = self.daemon.run(self.policy);
        let output = command.arg("/bin/true").stdin(Stdio::null()).output();
        let output = output
            .with_context(|| format!("cannot start below `{}`", self.room.program().display()))?;
        if !output.status.success() {
            bail!("a start failed: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(began.elapsed().as_secs_f64() * 1e6)
    }
}

fn rows(noise: Operation, pairs: &[[Figures; 2]], report: &mut Report) {
    for (at, what) in QUIET.iter().enumerate() {
        let ratios = pairs.iter().map(|[inside, outside]| inside[at] / outside[at]);
        let Some(value) = Spread::of(ratios) else { continue };
        let middle =
            |side: usize| median(pairs.iter().map(|pair| pair[side][at])).unwrap_or_default();
        report.add(Row {
            bench: "beside a sandbox at its limits, against the same work in none",
            what: format!("{what}, beside: {}", noise.title()),
            unit: Unit::Ratio,
            value,
            target: Some(1.10),
            note: format!("{:.0} and {:.0} µs", middle(0), middle(1)),
        });
    }
}

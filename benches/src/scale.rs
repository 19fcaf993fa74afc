//! One daemon with ever more sandboxes: what one more costs to start, what a connect costs in one of them,
//! how long a policy takes to come into force, and what the daemon needs for all of them.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clawbox::api::client::Client;
use clawbox::api::proto;
use tokio::runtime::Runtime;
use tonic::Streaming;

use crate::daemon::Daemon;
use crate::figures::{Spread, median, part_of};
use crate::operation::Operation;
use crate::report::{Progress, Report, Row, Unit};
use crate::room::Room;
use crate::worker::{ARGUMENT, Worker};

/// Sandboxes that run beside the one that is measured.
pub const SANDBOXES: [usize; 4] = [1, 10, 100, 1000];

/// Rules of each sandbox's policy, and of the one that is set again and again.
const RULES: usize = 100;
const RULES_SET: usize = 1_000;

const STARTS: usize = 25;
const BATCHES: usize = 15;
const CONNECTIONS: u32 = 200;
const CHANGES: usize = 200;
/// How long the daemon is left alone to see what it takes for itself, and before, so that what was asked of it is
/// written down and given back.
const IDLE: Duration = Duration::from_secs(20);
const SETTLE: Duration = Duration::from_secs(6);

/// Sandboxes that only wait.
struct Idle<'d> {
    runtime: Runtime,
    client: Client,
    running: Vec<Streaming<proto::RunEvent>>,
    policy: proto::Text,
    _daemon: &'d Daemon,
}

impl<'d> Idle<'d> {
    fn of(daemon: &'d Daemon, policy: &Path) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let client = runtime.block_on(Client::connect(daemon.socket()))?;
        let text = fs::read_to_string(policy)?;
        let policy = proto::Text { name: policy.display().to_string(), text };
        Ok(Self { runtime, client, running: Vec::new(), policy, _daemon: daemon })
    }

    /// Starts as many as lack.
    fn until(&mut self, wanted: usize) -> Result<()> {
        while self.running.len() < wanted {
            let request = proto::RunRequest {
                texts: vec![self.policy.clone()],
                name: "idle".to_owned(),
                command: vec![b"/bin/sleep".to_vec(), b"1000000".to_vec()],
                environment: vec![b"PATH=/usr/bin:/bin".to_vec()],
                user: "nobody".to_owned(),
                ..proto::RunRequest::default()
            };
            let mut sandboxes = self.client.sandboxes();
            let events = self.runtime.block_on(async {
                let mut events = sandboxes.run(request).await?.into_inner();
                events.message().await?;
                Ok::<_, tonic::Status>(events)
            })?;
            self.running.push(events);
        }
        Ok(())
    }

    /// Sets a policy of the first one and gives the milliseconds until it is said to be in force.
    fn change(&mut self, text: &proto::Text) -> Result<f64> {
        let mut sandboxes = self.client.sandboxes();
        let request = proto::SetPolicyRequest {
            sandbox: "idle-1".to_owned(),
            texts: vec![text.clone()],
            expected_revision: 0,
        };
        let began = Instant::now();
        let answer = self.runtime.block_on(sandboxes.set_policy(request))?.into_inner();
        let took = began.elapsed();
        match answer.outcome {
            Some(proto::answer::Outcome::Changed(_)) => Ok(took.as_secs_f64() * 1000.0),
            other => bail!("the policy was not changed: {other:?}"),
        }
    }
}

/// What is seen with so many sandboxes.
struct Seen {
    sandboxes: usize,
    start: Option<Spread>,
    connect: Spread,
    changes: Vec<f64>,
    resident: f64,
    rings: f64,
    maps: f64,
    idle: f64,
}

/// Measures and reports.
pub fn measure(room: &Room, report: &mut Report) -> Result<()> {
    let policy = room.policy_of("scale", RULES)?;
    let many = room.policy_of("scale-many", RULES_SET)?;
    let many = proto::Text { name: many.display().to_string(), text: fs::read_to_string(&many)? };
    room.root.wait_for(0)?;
    let daemon = Daemon::start(room)?;
    let mut idle = Idle::of(&daemon, &policy)?;
    let mut progress = Progress::of("scale", u32::try_from(SANDBOXES.len()).unwrap_or(1));
    let mut seen = Vec::new();
    for (number, sandboxes) in SANDBOXES.into_iter().enumerate() {
        progress.reached(u32::try_from(number).unwrap_or(0));
        idle.until(sandboxes)?;
        seen.push(look(room, &daemon, &mut idle, &policy, &many, sandboxes)?);
    }
    progress.done();
    rows(&seen, report);
    Ok(())
}

fn look(
    room: &Room,
    daemon: &Daemon,
    idle: &mut Idle<'_>,
    policy: &Path,
    many: &proto::Text,
    sandboxes: usize,
) -> Result<Seen> {
    let start = starts(daemon, policy)?;
    let mut command = daemon.run(policy);
    command.arg(room.program()).arg(ARGUMENT);
    let mut inside = Worker::start(&mut command, &room.ends)?;
    let mut outside = room.outside()?;
    let mut ratios = Vec::new();
    for _ in 0..BATCHES {
        let own = inside.perform(Operation::TcpConnect, CONNECTIONS)?;
        let other = outside.perform(Operation::TcpConnect, CONNECTIONS)?;
        ratios.push(own.wall.as_secs_f64() / other.wall.as_secs_f64());
    }
    inside.stop()?;
    outside.stop()?;
    let changes = (0..CHANGES).map(|_| idle.change(many)).collect::<Result<Vec<_>>>()?;
    std::thread::sleep(SETTLE);
    let before = daemon.processor()?;
    std::thread::sleep(IDLE);
    let spent = daemon.processor()?.saturating_sub(before);
    Ok(Seen {
        sandboxes,
        start,
        connect: Spread::of(ratios).context("no connect")?,
        changes,
        resident: daemon.resident()?,
        rings: daemon.rings()?,
        maps: daemon.maps()?,
        idle: spent.as_secs_f64() / IDLE.as_secs_f64() * 100.0,
    })
}

/// Starts of `/bin/true`, each beside one of bwrap's; `None` where that is not installed.
fn starts(daemon: &Daemon, policy: &Path) -> Result<Option<Spread>> {
    let bwrap = Path::new("/usr/bin/bwrap");
    if !bwrap.exists() {
        return Ok(None);
    }
    let mut ratios = Vec::new();
    for _ in 0..STARTS {
        let timed = |command: &mut Command| -> Result<f64> {
            let began = Instant::now();
            let output = command.stdin(Stdio::null()).output()?;
            if !output.status.success() {
                bail!("a start failed: {}", String::from_utf8_lossy(&output.stderr));
            }
            Ok(began.elapsed().as_secs_f64())
        };
        let own = timed(daemon.run(policy).arg("/bin/true"))?;
        let mut other = Command::new(bwrap);
        let other = timed(other.args(["--unshare-all", "--ro-bind", "/", "/", "/bin/true"]))?;
        ratios.push(own / other);
    }
    Ok(Spread::of(ratios))
}

fn rows(seen: &[Seen], report: &mut Report) {
    let near = seen.first().map(|first| first.connect.median);
    for seen in seen {
        let with = format!("{} sandboxes of {RULES} rules", seen.sandboxes);
        let mut add = |what: String, unit, value: Option<Spread>, target: Option<f64>, note| {
            if let Some(value) = value {
                report.add(Row { bench: "scale", what, unit, value, target, note });
            }
        };
        let what = format!("one more start with {with}, against bwrap");
        add(what, Unit::Ratio, seen.start, Some(1.5), String::new());
        let note = format!("against outside: x{:.3}", seen.connect.median);
        let ratio = near.map(|near| Spread::one(seen.connect.median / near));
        add(format!("TCP connect with {with}, against 1"), Unit::Ratio, ratio, Some(1.10), note);
        let p50 = median(seen.changes.iter().copied()).unwrap_or_default();
        let p99 = part_of(seen.changes.iter().copied(), 0.99).map(Spread::one);
        let note = format!("p50 {p50:.2} ms");
        let what = format!("policy set of {RULES_SET} rules with {with}, p99");
        add(what, Unit::Milliseconds, p99, Some(5.0), note);
        let target = match seen.sandboxes {
            10 => Some(12.0),
            1000 => Some(40.0),
            _ => None,
        };
        let Seen { maps, rings, idle, .. } = seen;
        let note = format!(
            "and {maps:.1} MiB of maps, of which it has rings mapped: {rings:.1}; {idle:.2} % of a core at rest"
        );
        let resident = Some(Spread::one(seen.resident));
        add(format!("resident with {with}"), Unit::Mebibytes, resident, target, note);
    }
}

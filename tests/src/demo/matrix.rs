//! `demo --nemoclaw FILE`: every program of a policy tries every host of it, in the demo's network.
//! What arrives there is held against what `clawbox policy explain` says of the same file.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::inside::{self, Agent, clawbox_run, clean};
use super::interrupt::Interrupt;
use super::outside::{Certificates, EVIL, FRIENDLY, Outside, Zone};
use super::place::Place;
use super::policy_file::Named;
use super::print::{Cell, Look, Progress, Row, Style};
use super::programs::Programs;
use super::stage::Stage;
use super::stand_ins::{self, Wanted};
use super::trail::Trail;

/// A program that asks, and how.
#[derive(Clone, Debug)]
struct Client {
    path: PathBuf,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A copy of curl in the place of a program that this machine does not have, or that nobody
    /// can tell to open one connection.
    StandIn,
    Curl,
    Git,
}

impl Client {
    fn of(path: &Path) -> Self {
        let name = path.file_name().unwrap_or_default();
        let kind = match path.exists() {
            true if name == "curl" => Kind::Curl,
            true if name == "git" => Kind::Git,
            _ => Kind::StandIn,
        };
        Self { path: path.to_owned(), kind }
    }

    /// Certificates are not what this is about: a policy need not let a client read the demo's.
    fn line(&self, host: &str, port: u16) -> String {
        let scheme = if port == 80 { "http" } else { "https" };
        let path = self.path.display();
        match self.kind {
            Kind::Git => format!(
                "GIT_TERMINAL_PROMPT=0 {path} -c http.sslVerify=false ls-remote \
                 {scheme}://{host}:{port}/"
            ),
            Kind::StandIn | Kind::Curl => {
                format!("{path} -qsSk -o /dev/null --max-time 5 {scheme}://{host}:{port}/")
            }
        }
    }

    fn heading(&self) -> String {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        if self.kind == Kind::StandIn { format!("{name}*") } else { name.into_owned() }
    }
}

/// What `clawbox policy explain` says.
#[derive(Clone, Debug)]
struct Explained {
    allows: bool,
    remarks: Vec<String>,
}

/// What came of one program and one host.
#[derive(Clone, Debug)]
struct Pair {
    explained: Explained,
    reached: bool,
    recorded: bool,
}

impl Pair {
    fn agrees(&self) -> bool {
        self.reached == self.explained.allows && self.recorded == self.explained.allows
    }

    fn cell(&self) -> Cell {
        if !self.agrees() {
            let reached = if self.reached { "reached" } else { "not reached" };
            let recorded = if self.recorded { "allowed" } else { "denied" };
            let verdict = if self.explained.allows { "allow" } else { "deny" };
            let text = format!("✗ {reached}, audit {recorded}, explain {verdict}");
            return Cell::new(text, Look::Bad);
        }
        if self.reached {
            Cell::new("allowed", Look::Good)
        } else {
            Cell::new("denied", Look::Aside)
        }
    }
}

/// Holds a policy against this machine and prints what came of it. Says whether all agree.
///
/// # Errors
/// It could not be done.
pub fn show(policy: &Path, keep: bool, interrupt: &Interrupt) -> Result<bool> {
    let policy = fs::canonicalize(policy)
        .with_context(|| format!("cannot open the policy {}", policy.display()))?;
    let named = Named::read(&policy)?;
    let stage = Stage::make()?;
    let held = hold(&policy, &named, &stage, interrupt);
    if keep {
        println!("kept: {}", stage.keep().display());
    }
    held
}

fn hold(policy: &Path, named: &Named, stage: &Stage, interrupt: &Interrupt) -> Result<bool> {
    let started = Instant::now();
    let programs = Programs::find()?;
    let mut paths = named.binaries.clone();
    paths.insert(programs.curl.clone());
    let clients: Vec<Client> = paths.iter().map(|path| Client::of(path)).collect();
    let workdir = workdir(named, stage);
    let inside = place(stage, named, &clients, &programs, &workdir)?;
    let hosts = named.endpoints.iter().map(|(host, _)| host.as_str());
    let ports: BTreeSet<u16> = named.endpoints.iter().map(|(_, port)| *port).collect();
    let certificates = Certificates::make(hosts.clone(), [FRIENDLY.into(), EVIL.into()])?;
    let zone = Zone::of(hosts.map(|host| (host, FRIENDLY)));
    let outside = Outside::start(&inside, zone, &certificates, &ports)?;

    let trail = stage.path("audit.jsonl");
    let run = clawbox_run(&programs, policy, &trail, &workdir);
    let agent = Agent::start(&inside, run, interrupt)?;
    let (reached, said) = try_all(agent, named, &clients, &outside)?;
    let trail = Trail::read(&trail)?;
    if trail.attempts.len() != reached.len() {
        let (told, made) = (trail.attempts.len(), reached.len());
        bail!("the audit trail tells of {told} attempts and there were {made}");
    }
    let mut pairs = Vec::new();
    let every = named.endpoints.iter().flat_map(|at| clients.iter().map(move |one| (at, one)));
    for ((((host, port), client), reached), records) in every.zip(reached).zip(&trail.attempts) {
        interrupt.check()?;
        let explained = explain(&inside, &programs, policy, &client.path, host, *port)?;
        let recorded = records.iter().any(|record| record.lets_out() && record.is_about(host));
        pairs.push(Pair { explained, reached, recorded });
    }
    let style = Style::of_output();
    said.lines().for_each(|line| println!("{}", style.paint(Look::Aside, line.trim_end())));
    Ok(print(style, named, &clients, &pairs, &trail, started))
}

/// Where the agent starts: in the policy's first directory that it may write and that the machine
/// does not have, else in the demo's.
fn workdir(named: &Named, stage: &Stage) -> PathBuf {
    let own = named.writable.iter().find(|path| !path.exists());
    own.cloned().unwrap_or_else(|| stage.path("work"))
}

fn place(
    stage: &Stage,
    named: &Named,
    clients: &[Client],
    programs: &Programs,
    workdir: &Path,
) -> Result<Place> {
    let stand_ins = clients.iter().filter(|client| client.kind == Kind::StandIn);
    let wanted = Wanted {
        programs: stand_ins.map(|client| client.path.as_path()).collect(),
        like: &programs.curl,
        directories: [workdir]
            .into_iter()
            .chain(named.writable.iter().chain(&named.readable).map(PathBuf::as_path))
            .collect(),
    };
    inside::place(stage, || stand_ins::appear(stage, &wanted))
}

/// Whether each pair's host was reached, and what clawbox had to say.
fn try_all(
    mut agent: Agent,
    named: &Named,
    clients: &[Client],
    outside: &Outside,
) -> Result<(Vec<bool>, String)> {
    let progress = Progress::start();
    let mut reached = Vec::new();
    for (host, port) in &named.endpoints {
        for client in clients {
            progress.say(format!("{} → {host}:{port}", client.path.display()));
            agent.attempt(&client.line(host, *port))?;
            reached.push(outside.take()?.served(host));
        }
    }
    Ok((reached, agent.end()?))
}

fn explain(
    inside: &Place,
    programs: &Programs,
    policy: &Path,
    binary: &Path,
    host: &str,
    port: u16,
) -> Result<Explained> {
    let mut command = clean(&programs.clawbox);
    command.args(["policy", "explain", "--format", "json", "--host", host]);
    command.args(["--port", &port.to_string()]).arg("--binary").arg(binary).arg(policy);
    let ended = inside.enter(move || Ok(command.output()?))?;
    let value: Value = serde_json::from_slice(&ended.stdout).with_context(|| {
        let said = String::from_utf8_lossy(&ended.stderr);
        format!("`clawbox policy explain` gave no JSON: {}", said.trim())
    })?;
    let remarks = value["remarks"].as_array().into_iter().flatten();
    Ok(Explained {
        allows: value["verdict"] == "allow",
        remarks: remarks.filter_map(Value::as_str).map(str::to_owned).collect(),
    })
}

fn print(
    style: Style,
    named: &Named,
    clients: &[Client],
    pairs: &[Pair],
    trail: &Trail,
    started: Instant,
) -> bool {
    let mut heading = vec![Cell::new("host", Look::Strong)];
    heading.extend(clients.iter().map(|client| Cell::new(client.heading(), Look::Strong)));
    let mut rows = vec![Row { cells: heading, notes: Vec::new() }];
    for ((host, port), pairs) in named.endpoints.iter().zip(pairs.chunks(clients.len())) {
        let mut cells = vec![Cell::new(format!("{host}:{port}"), Look::Plain)];
        cells.extend(pairs.iter().map(Pair::cell));
        let remarks: BTreeSet<&String> =
            pairs.iter().flat_map(|pair| &pair.explained.remarks).collect();
        let notes = remarks.into_iter().map(|remark| Cell::new(remark, Look::Aside)).collect();
        rows.push(Row { cells, notes });
    }
    print!("{}", style.table(&rows));
    println!();
    if clients.iter().any(|client| client.kind == Kind::StandIn) {
        println!("* a copy of curl in that program's place, for the demo alone");
    }
    named.skipped.iter().for_each(|skipped| println!("not tried: {skipped}"));
    let agree = pairs.iter().filter(|pair| pair.agrees()).count();
    let reached = pairs.iter().filter(|pair| pair.reached).count();
    let is_good = agree == pairs.len() && trail.lost == 0;
    let summary = format!(
        "{} pairs: {reached} reached, {} held back; {agree} as `clawbox policy explain` says; \
         {} audit records, {} lost; {:.1} s",
        pairs.len(),
        pairs.len() - reached,
        trail.lines,
        trail.lost,
        started.elapsed().as_secs_f32()
    );
    println!("{}", style.paint(if is_good { Look::Good } else { Look::Bad }, summary));
    is_good
}

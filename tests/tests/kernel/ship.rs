//! What the agent ships to a fleet's stream: all of it, each once, whoever dies in between.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use clawbox_tests::daemon::Daemon;
use clawbox_tests::network::{ELSEWHERE, SITE, World};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::daemon::{Dialler, output, to_site};
use crate::scene::Scene;

/// As Debian's package `nats-server` has it.
const PROGRAM: &str = "/usr/sbin/nats-server";
const SERVER: &str = "nats://127.0.0.1:4222";

/// A server with JetStream, in the world's network.
struct Server<'w> {
    world: &'w World,
    directory: PathBuf,
    child: Option<Child>,
}

impl<'w> Server<'w> {
    fn start(world: &'w World, directory: &Path) -> Self {
        let mut server = Self { world, directory: directory.to_owned(), child: None };
        server.start_again();
        server
    }

    fn start_again(&mut self) {
        let mut command = Command::new(PROGRAM);
        command.args(["-a", "127.0.0.1", "-p", "4222", "-js", "-sd"]).arg(&self.directory);
        self.world.enter(&mut command);
        let null = [Stdio::null(), Stdio::null(), Stdio::null()];
        let [stdin, stdout, stderr] = null;
        self.child = Some(command.stdin(stdin).stdout(stdout).stderr(stderr).spawn().unwrap());
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

impl Drop for Server<'_> {
    fn drop(&mut self) {
        self.kill();
    }
}

/// So many events of the stream, from its oldest on.
fn shipped(daemon: &Daemon, count: usize) -> Vec<Value> {
    let count = count.to_string();
    let words = ["fleet", "tail", "--server", SERVER, "--all", "--format", "json", "--limit"];
    let words = [&words[..], &[count.as_str()]].concat();
    let began = Instant::now();
    loop {
        let (status, stdout, stderr) = output(daemon.clawbox(&words));
        if status == 0 {
            return stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        }
        // A server that has just been started does not answer yet.
        assert!(began.elapsed() < Duration::from_secs(60), "{stderr}");
    }
}

fn stored(daemon: &Daemon) -> Vec<u64> {
    let config = daemon.place("agent.yaml").display().to_string();
    let words = ["audit", "query", "--format", "json", "--config", &config];
    let (status, stdout, stderr) = output(daemon.clawbox(&words));
    assert_eq!(status, 0, "{stderr}");
    let id = |line: &str| serde_json::from_str::<Value>(line).unwrap()["id"].as_u64().unwrap();
    stdout.lines().map(id).collect()
}

#[test]
fn a_stream_has_every_event_once_when_the_server_and_the_agent_are_killed_in_turn() {
    if !Path::new(PROGRAM).exists() {
        eprintln!("no {PROGRAM}: install nats-server");
        return;
    }
    let scene = Scene::new();
    let mut server = Server::start(&scene.world, &scene.world.private().join("nats"));
    let ship = format!("ship: {{ nats: {{ servers: [\"{SERVER}\"], host: web1 }} }}\n");
    let mut daemon = Daemon::start_configured(&scene.world, "off", &ship);
    let policy = daemon.policy("one", &to_site(&scene));
    let mut dialler = Dialler::start(daemon.as_nobody(&[]), "one", &policy);
    let (site, elsewhere) = (SITE.to_string(), ELSEWHERE.to_string());
    for round in 0..3 {
        for _ in 0..20 {
            assert_eq!([dialler.dial(&elsewhere), dialler.dial(&site)], ["EPERM", "ok"]);
        }
        // Something of it has come, and more is on its way.
        let seen = shipped(&daemon, 10 + 40 * round);
        assert!(seen.iter().all(|event| event["host_name"] == "web1"), "{seen:#?}");
        server.kill();
        assert_eq!(dialler.dial(&elsewhere), "EPERM");
        daemon.kill();
        server.start_again();
        assert_eq!(dialler.dial(&elsewhere), "EPERM");
        daemon.start_again();
    }
    // How it has ended no restarted daemon can tell: it is another one's child.
    let _ = dialler.end();
    daemon.end_by(Signal::SIGTERM);
    let ids = stored(&daemon);
    daemon.start_again();
    let events = shipped(&daemon, ids.len());
    let came: Vec<u64> = events.iter().map(|event| event["id"].as_u64().unwrap()).collect();
    assert_eq!(came, ids, "each once, in their order");
    let denied = |event: &&Value| event["verdict"] == "deny" && event["action"] == "connect";
    let lost: u64 = events
        .iter()
        .filter(|event| event["reason"] == "killed")
        .map(|event| event["count"].as_u64().unwrap())
        .sum();
    let found = events.iter().filter(denied).count() as u64;
    assert!(found <= 66 && found + lost >= 66, "{found} and {lost} of 66 denials");
}

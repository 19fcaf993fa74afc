//! Many sandboxes under one daemon: each has its own policy, its own trail and its own user, and what
//! enforces them outlives the daemon.

use std::io::{BufRead, BufReader, Write};
use std::net::IpAddr;
use std::process::{Child, Command, Stdio};

use clawbox_tests::daemon::Daemon;
use clawbox_tests::network::{ELSEWHERE, SITE};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::attacks::attempt::PYTHON;
use crate::scene::{ECHO, Scene};

/// Connects where each line of its input says, and answers with what came of it. What stands after a `+` is
/// started and does the same where a line begins with `>`.
pub(super) const DIALLER: &str = r#"
import socket, subprocess, sys, errno
print("ready", flush=True)
for line in sys.stdin:
    if line.startswith("+"):
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        child = subprocess.Popen([line[1:].strip(), "-c", sys.argv[1], sys.argv[1]], **pipes)
        print(child.stdout.readline().strip(), flush=True)
        continue
    if line.startswith(">"):
        child.stdin.write(line[1:])
        child.stdin.flush()
        print(child.stdout.readline().strip(), flush=True)
        continue
    try:
        made = socket.create_connection((line.strip(), 7), 30)
        made.send(b"x\n"); made.recv(1)
        print("ok", flush=True)
    except socket.gaierror: print("no name", flush=True)
    except OSError as error: print(errno.errorcode.get(error.errno, str(error)), flush=True)
"#;

/// A sandbox that is asked to connect.
pub struct Dialler {
    pub child: Child,
    lines: BufReader<std::process::ChildStdout>,
}

impl Dialler {
    pub fn start(mut command: Command, name: &str, policy: &str) -> Self {
        command.args(["run", "--name", name, "--policy", policy, "--", PYTHON, "-c", DIALLER]);
        command.arg(DIALLER);
        Self::of(command)
    }

    /// One whose command line is whole.
    pub(super) fn of(mut command: Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        let mut dialler = Self { child, lines };
        assert_eq!(dialler.line(), "ready");
        dialler
    }

    /// What came of it.
    pub(super) fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    pub fn dial(&mut self, to: &str) -> String {
        self.begin(to);
        self.line()
    }

    /// Has it connect, and waits for nothing.
    pub(super) fn begin(&mut self, to: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{to}").unwrap();
    }

    pub fn end(mut self) -> i32 {
        drop(self.child.stdin.take());
        self.child.wait().unwrap().code().unwrap()
    }
}

pub fn to_site(scene: &Scene) -> String {
    scene.allowing(PYTHON, &format!("{{ host: {SITE}, port: {ECHO} }}"))
}

fn to_elsewhere(scene: &Scene) -> String {
    scene.allowing(PYTHON, &format!("{{ host: {ELSEWHERE}, port: {ECHO} }}"))
}

pub fn output(mut command: Command) -> (i32, String, String) {
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn sandboxes_of_two_users_have_each_their_own_policy_and_trail() {
    let scene = Scene::new();
    let daemon = Daemon::start(&scene.world);
    let (one, other) =
        (daemon.policy("one", &to_site(&scene)), daemon.policy("other", &to_elsewhere(&scene)));
    let mut one = Dialler::start(daemon.as_nobody(&[]), "one", &one);
    let mut other = Dialler::start(daemon.as_user(4711, &[]), "other", &other);
    let (site, elsewhere) = (SITE.to_string(), ELSEWHERE.to_string());
    for _ in 0..3 {
        assert_eq!([one.dial(&site), one.dial(&elsewhere)], ["ok", "EPERM"]);
        assert_eq!([other.dial(&elsewhere), other.dial(&site)], ["ok", "EPERM"]);
    }
    let listed = daemon.list();
    assert_eq!(listed.len(), 2, "{listed:?}");
    assert_eq!((one.end(), other.end()), (0, 0));
    for (id, denied, uid) in [("one-1", ELSEWHERE, 65_534), ("other-2", SITE, 4711)] {
        let trail = daemon.trail(id);
        let denials: Vec<&Value> =
            trail.iter().filter(|record| record["verdict"] == "deny").collect();
        assert_eq!(denials.len(), 3, "{trail:#?}");
        assert!(denials.iter().all(|record| {
            record["object"]["ip"] == IpAddr::from(denied).to_string()
                && record["subject"]["uid"] == uid
        }));
        let first = trail.first().map(|record| record["action"].clone());
        assert_eq!(first, Some("start".into()), "{trail:#?}");
        assert_eq!(trail.last().map(|record| record["action"].clone()), Some("stop".into()));
    }
    assert!(daemon.list().is_empty());
}

#[test]
fn a_user_sees_and_stops_their_own_sandboxes_alone_and_a_sandbox_none() {
    let scene = Scene::new();
    let daemon = Daemon::start(&scene.world);
    let policy = daemon.policy("one", &to_site(&scene));
    let theirs = Dialler::start(daemon.as_nobody(&[]), "theirs", &policy);
    for arguments in
        [&["stop", "theirs"][..], &["policy", "set", "theirs", &policy], &["show", "theirs"]]
    {
        let (status, _, stderr) = output(daemon.as_user(4711, arguments));
        assert_ne!(status, 0, "{arguments:?}: {stderr}");
        assert!(!stderr.contains("theirs-1"), "{stderr}");
    }
    let (_, stdout, _) = output(daemon.as_user(4711, &["list", "--format", "json"]));
    assert_eq!(stdout.trim(), "[]");
    let (status, stdout, _) = output(daemon.as_nobody(&["list", "--format", "json"]));
    assert!(status == 0 && stdout.contains("theirs-1"), "{stdout}");
    // Only root runs commands as somebody else.
    let run = ["run", "--policy", &policy, "--user", "daemon", "--", "/bin/true"];
    let (status, _, stderr) = output(daemon.as_nobody(&run));
    assert!(status == 125 && stderr.contains("only root"), "{stderr}");
    // From inside nothing is even heard.
    let copy = scene.world.install(&clawbox_tests::clawbox::program(), "clawbox");
    let copy = copy.display().to_string();
    let inside = ["run", "--policy", &policy, "--", &copy, "list"];
    let (status, stdout, stderr) = output(daemon.as_nobody(&inside));
    assert!(status == 2 && stdout.is_empty(), "{stdout}{stderr}");
    let (status, ..) = output(daemon.as_nobody(&["stop", "theirs"]));
    assert_eq!(status, 0);
    assert_eq!(theirs.end(), 143);
}

#[test]
fn what_cannot_start_says_why_with_the_status_that_a_run_without_the_daemon_has() {
    let scene = Scene::new();
    let daemon = Daemon::start(&scene.world);
    let good = daemon.policy("good", &scene.policy(""));
    let bad = daemon.policy("bad", "version: 1\nlimit: {}\n");
    for (arguments, status, says) in [
        (vec!["run", "--policy", &good, "--", "/no/such/program"], 127, "no such command"),
        (vec!["run", "--policy", &good, "--", "/etc/passwd"], 126, "cannot execute"),
        (vec!["run", "--policy", &bad, "--", "/bin/true"], 125, "unknown key `limit`"),
        (
            vec!["run", "--policy", &good, "--name", "a/b", "--", "/bin/true"],
            125,
            "no name for a sandbox",
        ),
        (vec!["run", "--policy", &good, "--audit", "x", "--", "/bin/true"], 125, "--standalone"),
        (vec!["run", "--policy", &good, "--lsm", "require", "--", "/bin/true"], 125, "BPF LSM"),
    ] {
        let (found, _, stderr) = output(daemon.as_nobody(&arguments));
        assert!(found == status && stderr.contains(says), "{arguments:?}: {found} {stderr}");
    }
    assert!(daemon.list().is_empty());
    let (status, stdout, _) = output(daemon.as_nobody(&[
        "run",
        "--policy",
        &good,
        "--",
        "/bin/sh",
        "-c",
        "id -u; exit 7",
    ]));
    assert_eq!((status, stdout.trim()), (7, "65534"));
}

fn sequence(trail: &[Value]) -> Vec<u64> {
    trail.iter().filter_map(|record| record["seq"].as_u64()).collect()
}

/// By name, so that the resolver has a part in it.
fn to_api(scene: &Scene) -> String {
    scene.allowing(PYTHON, &format!("{{ host: api.test, port: {ECHO} }}"))
}

#[test]
fn what_a_daemon_enforces_outlives_it_and_the_next_one_takes_it_over() {
    let scene = Scene::new();
    let lsm = if scene.has_lsm() { "require" } else { "off" };
    let mut daemon = Daemon::start_with(&scene.world, lsm);
    let (api, other) =
        (daemon.policy("api", &to_api(&scene)), daemon.policy("other", &to_elsewhere(&scene)));
    let mut dialler = Dialler::start(daemon.as_nobody(&[]), "one", &api);
    let (site, elsewhere) = (SITE.to_string(), ELSEWHERE.to_string());
    assert_eq!([dialler.dial("api.test"), dialler.dial(&elsewhere)], ["ok", "EPERM"]);
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        daemon.end_by(signal);
        // Nobody answers names; what was denied is denied on.
        assert_eq!([dialler.dial(&elsewhere), dialler.dial(&site)], ["EPERM", "EPERM"]);
        daemon.start_again();
        let listed = daemon.list();
        assert_eq!(listed[0]["id"], "one-1", "{listed:?}");
        assert_eq!(
            [dialler.dial("api.test"), dialler.dial(&elsewhere)],
            ["ok", "EPERM"],
            "after {signal}"
        );
    }
    let (status, stdout, stderr) = output(daemon.as_nobody(&["policy", "set", "one", &other]));
    assert_eq!(status, 0, "{stdout}{stderr}");
    assert_eq!([dialler.dial(&elsewhere), dialler.dial("api.test")], ["ok", "no name"]);
    daemon.end_by(Signal::SIGKILL);
    daemon.start_again();
    assert_eq!([dialler.dial(&elsewhere), dialler.dial("api.test")], ["ok", "no name"]);
    let (status, stdout, _) = output(daemon.as_nobody(&["show", "one", "--format", "json"]));
    let shown: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((status, &shown["revision"]), (0, &2.into()), "{shown}");
    // Whose status nobody can say: its parent had ended before.
    assert_eq!(dialler.end(), 125);
    let trail = daemon.trail("one-1");
    let numbers = sequence(&trail);
    assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>());
    let resumed = trail.iter().filter(|record| record["action"] == "resume").count();
    assert_eq!(resumed, 3, "{trail:#?}");
    // What was denied while nobody was there to write it down is written down all the same.
    let denied = trail.iter().filter(|record| {
        record["verdict"] == "deny" && record["object"]["ip"] == elsewhere.as_str()
    });
    assert_eq!(denied.count(), 5, "{trail:#?}");
    assert!(daemon.list().is_empty());
    // Open files are judged by now, and what starts reads and writes some before it is anybody.
    let again = ["run", "--policy", &api, "--", "/bin/sh", "-c", "exit 4"];
    assert_eq!(output(daemon.as_nobody(&again)).0, 4);
    let output = daemon.uninstall();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(daemon.remains(), Vec::<std::path::PathBuf>::new());
}

#[test]
fn a_start_that_was_not_finished_and_a_sandbox_that_ended_meanwhile_are_cleared_away() {
    let scene = Scene::new();
    let mut daemon = Daemon::start(&scene.world);
    let policy = daemon.policy("one", &to_site(&scene));
    let ends = Dialler::start(daemon.as_nobody(&[]), "ends", &policy);
    let mut stays = Dialler::start(daemon.as_nobody(&[]), "stays", &policy);
    daemon.end_by(Signal::SIGKILL);
    let cgroup =
        clawbox_tests::clawbox::cgroup_root().join("clawbox").join(daemon.cgroup("ends-1"));
    std::fs::write(cgroup.join("cgroup.kill"), "1").unwrap();
    daemon.start_again();
    let ids: Vec<Value> = daemon.list().into_iter().map(|found| found["id"].clone()).collect();
    assert_eq!(ids, ["stays-2"]);
    assert!(!cgroup.exists());
    assert_eq!(stays.dial(&SITE.to_string()), "ok");
    assert_eq!(ends.end(), 125);
    assert_eq!(output(daemon.clawbox(&["stop", "stays", "--timeout", "1ms"])).0, 0);
    // By force, or before that by itself, which nobody can say then.
    assert!([125, 137].contains(&stays.end()));
}

#[test]
fn every_policy_of_a_sandbox_is_a_revision_that_can_be_read_and_gone_back_to() {
    let scene = Scene::new();
    let mut daemon = Daemon::start(&scene.world);
    let (one, other) =
        (daemon.policy("one", &to_site(&scene)), daemon.policy("other", &to_elsewhere(&scene)));
    let mut dialler = Dialler::start(daemon.as_nobody(&[]), "agent", &one);
    let set = |daemon: &Daemon, words: &[&str]| output(daemon.as_nobody(words));
    assert_eq!(set(&daemon, &["policy", "set", "agent", &other]).0, 0);
    let (site, elsewhere) = (SITE.to_string(), ELSEWHERE.to_string());
    assert_eq!([dialler.dial(&site), dialler.dial(&elsewhere)], ["EPERM", "ok"]);
    // Of two who change it one is told.
    let late = ["policy", "rollback", "agent", "1", "--expect", "1"];
    let (status, stdout, _) = set(&daemon, &late);
    assert!(status == 1 && stdout.contains("revision 2 is in force"), "{stdout}");
    daemon.end_by(Signal::SIGKILL);
    daemon.start_again();
    let (status, stdout, stderr) =
        set(&daemon, &["policy", "rollback", "agent", "1", "--expect", "2"]);
    assert!(status == 0 && stdout.contains("policy 3"), "{stdout}{stderr}");
    assert_eq!([dialler.dial(&site), dialler.dial(&elsewhere)], ["ok", "EPERM"]);
    let (_, stdout, _) = set(&daemon, &["policy", "list", "agent", "--format", "json"]);
    let listed: Vec<Value> = serde_json::from_str(&stdout).unwrap();
    let told: Vec<(u64, &str)> = listed
        .iter()
        .map(|found| (found["revision"].as_u64().unwrap(), found["author"].as_str().unwrap()))
        .collect();
    assert_eq!(told, [(1, "nobody"), (2, "nobody"), (3, "nobody")]);
    assert_eq!(listed[0]["digest"], listed[2]["digest"]);
    let (status, stdout, _) = set(&daemon, &["policy", "diff", "agent", "1", "2"]);
    assert!(
        status == 1 && stdout.contains(&format!("+    endpoints: [{{ host: {ELSEWHERE}")),
        "{stdout}"
    );
    assert_eq!(set(&daemon, &["policy", "diff", "agent", "1", "3"]).0, 0);
    let (_, stdout, _) = set(&daemon, &["policy", "get", "agent"]);
    assert_eq!(stdout, to_site(&scene));
    for wrong in
        [&["policy", "get", "agent", "--revision", "9"][..], &["policy", "rollback", "agent", "9"]]
    {
        assert_eq!(set(&daemon, wrong).0, 2, "{wrong:?}");
    }
}

#[test]
fn what_a_policy_named_that_nobody_was_told_of_gains_nothing_by_the_next_one() {
    let scene = Scene::new();
    let mut daemon = Daemon::start(&scene.world);
    let copy =
        |name: &str| scene.world.install(std::path::Path::new(PYTHON), name).display().to_string();
    let (one, other) = (copy("one"), copy("other"));
    let to_site = format!("{{ host: {SITE}, port: {ECHO} }}");
    let of = |binaries: &str| {
        scene.policy(&format!(
            "network_policies:\n  base:\n    endpoints: [{to_site}]\n    binaries: \
             [{{ path: {PYTHON} }}]\n{binaries}"
        ))
    };
    let more = |binary: &str| {
        of(&format!(
            "  more:\n    endpoints: [{{ host: {ELSEWHERE}, port: {ECHO} }}]\n    binaries: \
             [{{ path: {binary} }}]\n"
        ))
    };
    let base = daemon.policy("base", &of(""));
    let (with_one, with_other) =
        (daemon.policy("with-one", &more(&one)), daemon.policy("with-other", &more(&other)));
    let mut dialler = Dialler::start(daemon.as_nobody(&[]), "agent", &base);
    // As a process that is there already, and as one that is started now.
    let by = |dialler: &mut Dialler| dialler.dial(&format!(">{ELSEWHERE}"));
    let started = |dialler: &mut Dialler, binary: &str| {
        assert_eq!(dialler.dial(&format!("+{binary}")), "ready");
        dialler.dial(&format!(">{ELSEWHERE}"))
    };
    let written = daemon.keep_state();
    assert_eq!(output(daemon.as_nobody(&["policy", "set", "agent", &with_one])).0, 0);
    assert_eq!(started(&mut dialler, &one), "ok");
    // As if it had ended before that was written down.
    daemon.end_by(Signal::SIGKILL);
    daemon.put_state_back(written);
    daemon.start_again();
    assert_eq!(by(&mut dialler), "EPERM");
    assert_eq!(output(daemon.as_nobody(&["policy", "set", "agent", &with_other])).0, 0);
    assert_eq!(by(&mut dialler), "EPERM");
    assert_eq!(started(&mut dialler, &one), "EPERM");
    assert_eq!(started(&mut dialler, &other), "ok");
    assert_eq!(dialler.dial(&SITE.to_string()), "ok");
}

#[test]
fn a_daemon_that_may_not_do_without_bpf_lsm_leaves_what_runs_enforced() {
    let scene = Scene::new();
    if scene.has_lsm() {
        return;
    }
    let mut daemon = Daemon::start(&scene.world);
    let policy = daemon.policy("one", &to_site(&scene));
    let mut dialler = Dialler::start(daemon.as_nobody(&[]), "one", &policy);
    daemon.end_by(Signal::SIGKILL);
    assert!(!daemon.starts_with("require"));
    let (site, elsewhere) = (SITE.to_string(), ELSEWHERE.to_string());
    assert_eq!([dialler.dial(&site), dialler.dial(&elsewhere)], ["ok", "EPERM"]);
    daemon.start_again();
    assert_eq!([dialler.dial(&site), dialler.dial(&elsewhere)], ["ok", "EPERM"]);
    let (status, ..) = output(daemon.as_nobody(&["stop", "one"]));
    assert_eq!(status, 0);
}

#[test]
fn a_users_policy_stays_within_the_users_bounds_when_it_is_changed_too() {
    let scene = Scene::new();
    let daemon = Daemon::start(&scene.world);
    let ports: Vec<String> = (1..=5000).map(|port| port.to_string()).collect();
    let large =
        scene.allowing(PYTHON, &format!("{{ host: {SITE}, ports: [{}] }}", ports.join(",")));
    let (small, large) = (daemon.policy("small", &to_site(&scene)), daemon.policy("large", &large));
    let run = output(daemon.as_nobody(&["run", "--policy", &large, "--", "/bin/true"]));
    assert!(run.0 == 125 && run.2.contains("rules_per_sandbox"), "{run:?}");
    let mut dialler = Dialler::start(daemon.as_nobody(&[]), "one", &small);
    let set = output(daemon.as_nobody(&["policy", "set", "one", &large]));
    assert!(set.0 == 1 && set.1.contains("rules_per_sandbox"), "{set:?}");
    assert_eq!(dialler.dial(&SITE.to_string()), "ok");
}

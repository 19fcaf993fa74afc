//! Who starts sandboxes: a process of the daemon's that has nothing of it, goes with it, and can be missed.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use clawbox_tests::daemon::Daemon;
use clawbox_tests::network::{ELSEWHERE, SITE};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::daemon::{Dialler, output, to_site};
use crate::scene::Scene;

const PATIENCE: Duration = Duration::from_secs(20);

fn children(of: u32) -> Vec<u32> {
    let path = format!("/proc/{of}/task/{of}/children");
    let text = fs::read_to_string(path).unwrap_or_default();
    text.split_ascii_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

fn name(of: u32) -> String {
    fs::read_to_string(format!("/proc/{of}/comm")).unwrap_or_default().trim().to_owned()
}

/// How willingly the kernel ends it, proc(5).
fn score(of: u32) -> i32 {
    let text = fs::read_to_string(format!("/proc/{of}/oom_score_adj")).unwrap();
    text.trim().parse().unwrap()
}

/// Whether root has CAP_SYS_RESOURCE here, which a container may not.
fn may_be_spared() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let held = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
    u64::from_str_radix(held.trim(), 16).unwrap() & (1 << 24) != 0
}

fn launcher(daemon: &Daemon<'_>) -> Option<u32> {
    children(daemon.process()).into_iter().find(|child| name(*child) == "clawbox-launch")
}

/// Whether it runs: who has ended and was not waited for does not.
fn runs(process: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let since = Instant::now();
    while !is_so() {
        assert!(since.elapsed() < PATIENCE, "{what}");
        std::thread::yield_now();
    }
}

#[test]
fn what_starts_sandboxes_has_nothing_of_the_daemon_and_they_are_the_daemons_children() {
    let scene = Scene::new();
    let daemon = Daemon::start(&scene.world);
    let policy = daemon.policy("one", &to_site(&scene));
    let mut one = Dialler::start(daemon.as_nobody(&[]), "one", &policy);
    assert_eq!([one.dial(&SITE.to_string()), one.dial(&ELSEWHERE.to_string())], ["ok", "EPERM"]);
    let launcher = launcher(&daemon).expect("a launcher");
    // Its streams and its end of one socket: no map, no trail, no lock.
    assert_eq!(fs::read_dir(format!("/proc/{launcher}/fd")).unwrap().count(), 4);
    assert_eq!(children(launcher).len(), 0);
    // Where memory is short, what is in a sandbox is ended before who serves it.
    let usual = score(std::process::id());
    let spared = if may_be_spared() { -900 } else { usual };
    assert_eq!([score(daemon.process()), score(launcher)], [spared, usual]);
    let others: Vec<u32> =
        children(daemon.process()).into_iter().filter(|child| *child != launcher).collect();
    assert_eq!(others.len(), 1, "{others:?}");
    assert_eq!(score(others[0]), usual);
    let cgroup = fs::read_to_string(format!("/proc/{}/cgroup", others[0])).unwrap();
    assert!(cgroup.contains(&daemon.cgroup("one-1")), "{cgroup}");
    assert_eq!(one.end(), 0);
}

#[test]
fn without_what_starts_sandboxes_the_daemon_does_and_they_are_confined_alike() {
    let scene = Scene::new();
    let daemon = Daemon::start(&scene.world);
    let policy = daemon.policy("one", &to_site(&scene));
    let gone = launcher(&daemon).expect("a launcher");
    kill(Pid::from_raw(gone as i32), Signal::SIGKILL).unwrap();
    until("it ends", || !runs(gone));
    for _ in 0..2 {
        let mut one = Dialler::start(daemon.as_nobody(&[]), "one", &policy);
        let dialled = [one.dial(&SITE.to_string()), one.dial(&ELSEWHERE.to_string())];
        assert_eq!(dialled, ["ok", "EPERM"]);
        assert_eq!(one.end(), 0);
    }
    assert!(!daemon.says("by the daemon itself from now on").is_empty());
    assert_eq!(launcher(&daemon), None);
    assert_eq!(score(daemon.process()), score(std::process::id()));
    // It was waited for.
    assert!(!Path::new(&format!("/proc/{gone}")).exists());
}

#[test]
fn what_starts_sandboxes_goes_with_the_daemon_and_they_stay() {
    let scene = Scene::new();
    let mut daemon = Daemon::start(&scene.world);
    let policy = daemon.policy("one", &to_site(&scene));
    let mut one = Dialler::start(daemon.as_nobody(&[]), "one", &policy);
    let before = launcher(&daemon).expect("a launcher");
    daemon.kill();
    until("it goes with the daemon", || !runs(before));
    assert_eq!(one.dial(&ELSEWHERE.to_string()), "EPERM");
    daemon.start_again();
    assert_eq!([one.dial(&SITE.to_string()), one.dial(&ELSEWHERE.to_string())], ["ok", "EPERM"]);
    assert!(launcher(&daemon).is_some_and(|launcher| launcher != before));
    // Of what another daemon has started nobody knows the status.
    assert_eq!(one.end(), 125);
}

#[test]
fn a_command_that_cannot_be_started_says_why_as_before() {
    let scene = Scene::new();
    let daemon = Daemon::start(&scene.world);
    let policy = daemon.policy("one", &to_site(&scene));
    for (command, status, says) in [
        ("/etc/passwd", 126, "cannot execute"),
        ("/usr/bin/no-such-program", 127, "no such command"),
    ] {
        let (code, _, error) =
            output(daemon.as_nobody(&["run", "--policy", &policy, "--", command]));
        assert!(code == status && error.contains(says), "{command}: {code} {error}");
    }
    // It has ended each time, and was waited for.
    let launcher = launcher(&daemon).expect("a launcher");
    assert_eq!(children(daemon.process()), [launcher]);
    assert_eq!(daemon.list().len(), 0);
}

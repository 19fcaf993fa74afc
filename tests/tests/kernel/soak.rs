//! Churn: sandboxes are born and die, policies change, cgroups come under a standing rule and go. What the
//! daemon holds afterwards is what it held when it was warm. `CLAWBOX_TESTS_SOAK` says for how many seconds.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use clawbox_tests::clawbox::cgroup_root;
use clawbox_tests::daemon::Daemon;
use clawbox_tests::network::{ELSEWHERE, SITE};
use serde_json::Value;

use super::attached::{Parent, dialler, until};
use super::daemon::{Dialler, output};
use super::reliability::times;
use crate::attacks::attempt::PYTHON;
use crate::scene::{ECHO, Scene};

/// Bytes by which the daemon may have grown since it was warm: what its allocator keeps, and caches that
/// have a bound and are not full yet.
const GROWTH: u64 = 2 << 20;

/// What is held, by name; all of it has to be the same at the end.
#[derive(Debug, Default, PartialEq, Eq)]
struct Held(BTreeMap<String, u64>);

/// What a daemon holds of the host: its memory, and what is counted.
#[derive(Debug)]
struct Figures {
    resident: u64,
    held: Held,
}

fn count(directory: PathBuf, is: impl Fn(&str) -> bool) -> u64 {
    let names = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name());
    names.filter(|name| is(&name.to_string_lossy())).count() as u64
}

impl Figures {
    fn of(daemon: &Daemon) -> Self {
        let (status, stdout, stderr) = output(daemon.clawbox(&["status", "--format", "json"]));
        assert_eq!(status, 0, "{stderr}");
        let shown: Value = serde_json::from_str(&stdout).unwrap();
        let tables = shown["tables"].as_array().unwrap().iter().map(|table| {
            (table["table"].as_str().unwrap().to_owned(), table["entries"].as_u64().unwrap())
        });
        let mut held: BTreeMap<String, u64> = tables.collect();
        // Numbers that are given once for all.
        held.remove("kinds");
        let place = |what: &str| what.to_owned();
        let process = PathBuf::from(format!("/proc/{}", daemon.process()));
        held.insert(place("descriptors"), count(process.join("fd"), |_| true));
        held.insert(place("threads"), count(process.join("task"), |_| true));
        held.insert(place("pins"), count(daemon.pins(), |_| true));
        let (own, name) = (cgroup_root().join("clawbox"), daemon.name());
        let is_its = |found: &str| found.trim_start_matches('.').split('.').next() == Some(name);
        held.insert(place("cgroups"), count(own, is_its));
        held.insert(
            place("files"),
            count(daemon.place("state"), |found| found.ends_with(".names")),
        );
        let text = fs::read_to_string(process.join("status")).unwrap();
        let anonymous = text.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
        let kibibytes: u64 = anonymous.split_whitespace().next().unwrap().parse().unwrap();
        Self { resident: kibibytes << 10, held: Held(held) }
    }

    /// Once nothing is under way any more.
    fn settled(daemon: &Daemon, as_before: Option<&Self>) -> Self {
        until("no sandbox is left but one", || daemon.list().len() == 1);
        let mut found = Self::of(daemon);
        // What the exit of a process leaves is swept within a second or two.
        let since = Instant::now();
        while since.elapsed() < Duration::from_secs(20) {
            let next = Self::of(daemon);
            let is_still = next.held == found.held;
            found = next;
            if is_still && as_before.is_none_or(|before| before.held == found.held) {
                break;
            }
            std::thread::sleep(Duration::from_millis(500));
        }
        found
    }
}

struct Churn<'w> {
    scene: &'w Scene,
    daemon: &'w Daemon<'w>,
    others: &'w Parent,
    policies: [String; 2],
    asking: String,
    rounds: u64,
}

impl Churn<'_> {
    /// A sandbox from its birth to its end, under several policies, and a further command in it.
    fn sandbox(&self) {
        let daemon = self.daemon;
        let name = format!("churn-{}", self.rounds % 3);
        let mut one = Dialler::start(daemon.as_nobody(&[]), &name, &self.policies[0]);
        let (site, elsewhere) = (SITE.to_string(), ELSEWHERE.to_string());
        assert_eq!([one.dial("api.test"), one.dial(&elsewhere)], ["ok", "EPERM"]);
        self.did(&["policy", "set", &name, &self.policies[1]]);
        assert_eq!([one.dial(&elsewhere), one.dial(&site)], ["ok", "EPERM"]);
        self.did(&["exec", &name, "--", "/bin/true"]);
        self.did(&["policy", "rollback", &name, "1"]);
        assert_eq!([one.dial("api.test"), one.dial(&elsewhere)], ["ok", "EPERM"]);
        match self.rounds % 2 {
            0 => assert_eq!(one.end(), 0),
            _ => {
                self.did(&["stop", &name, "--timeout", "1ms"]);
                assert_ne!(one.end(), 0);
            }
        }
    }

    /// One whose connection waits for an answer, and gets it.
    fn asks(&self) {
        let name = "asks";
        let code = format!(
            "import socket, sys\nsocket.create_connection(('{SITE}', {ECHO}), 60).close()\n\
             print('ok', flush=True)\nsys.stdin.read()"
        );
        let run = ["run", "--name", name, "--policy", &self.asking, "--", PYTHON, "-c", &code];
        let mut command = self.daemon.as_nobody(&run);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut number = Value::Null;
        until("it waits", || {
            let list = ["approvals", "list", name, "--format", "json"];
            // It may not have begun yet.
            let (_, stdout, _) = output(self.daemon.clawbox(&list));
            let listed: Value = serde_json::from_str(&stdout).unwrap_or_default();
            number = listed["connections"][0]["id"].clone();
            number.is_number()
        });
        let number = number.to_string();
        let approve = ["approvals", "approve", name, &number, "--for", "sandbox"];
        assert_eq!(output(self.daemon.clawbox(&approve)).0, 0);
        drop(child.stdin.take());
        assert_eq!(child.wait().unwrap().code(), Some(0));
    }

    /// A cgroup that a standing rule is for.
    fn stands(&self) {
        let place = self.others.child(&format!("agent-{}", self.rounds));
        let mut held = Dialler::of(dialler(&self.scene.world, &place));
        let (site, elsewhere) = (SITE.to_string(), ELSEWHERE.to_string());
        assert_eq!([held.dial(&site), held.dial(&elsewhere)], ["ok", "EPERM"]);
        assert_eq!(held.end(), 0);
        until("it is empty", || fs::remove_dir(&place).is_ok());
    }

    #[track_caller]
    fn did(&self, words: &[&str]) {
        let (status, stdout, stderr) = output(self.daemon.as_nobody(words));
        assert_eq!(status, 0, "{words:?}: {stdout}{stderr}");
    }

    fn go_on(&mut self, for_so_long: Duration) {
        let since = Instant::now();
        while since.elapsed() < for_so_long {
            self.rounds += 1;
            self.sandbox();
            self.asks();
            self.stands();
        }
    }
}

#[test]
fn after_much_churn_the_daemon_holds_what_it_held_when_it_was_warm() {
    let seconds = u64::from(times("CLAWBOX_TESTS_SOAK", 30));
    let scene = Scene::new();
    let others = Parent::make();
    let at = |address: &str| format!("{{ host: {address}, port: {ECHO} }}");
    let (site, elsewhere) = (SITE.to_string(), ELSEWHERE.to_string());
    let to_site = scene.allowing(PYTHON, &format!("{}, {}", at(&site), at("api.test")));
    let standing = scene.world.bin().join("standing.yaml");
    fs::write(&standing, scene.allowing(PYTHON, &at(&site))).unwrap();
    let rule = format!(
        "name: stands\nmatch: {{ cgroup: '{}/agent-*' }}\npolicy: {}\nnetwork_only: true\n",
        others.below(),
        standing.display()
    );
    let daemon = Daemon::start_standing(&scene.world, "off", &rule);
    let policies = [
        daemon.policy("one", &to_site),
        daemon.policy("other", &scene.allowing(PYTHON, &at(&elsewhere))),
    ];
    let asking = daemon.policy(
        "asking",
        &format!("{}\nunknown_endpoints: ask\n", scene.allowing(PYTHON, &at("api.test"))),
    );
    let mut stays = Dialler::start(daemon.as_nobody(&[]), "stays", &policies[0]);
    let (scene, daemon, others) = (&scene, &daemon, &others);
    let mut churn = Churn { scene, daemon, others, policies, asking, rounds: 0 };
    churn.go_on(Duration::from_secs(seconds / 3));
    let warm = (churn.rounds, Figures::settled(daemon, None));
    churn.go_on(Duration::from_secs(seconds - seconds / 3));
    let end = Figures::settled(daemon, Some(&warm.1));
    eprintln!("{} rounds: {:?}", warm.0, warm.1);
    eprintln!("{} rounds: {end:?}", churn.rounds);
    assert!(churn.rounds > warm.0);
    assert_eq!([stays.dial(&site), stays.dial(&elsewhere)], ["ok", "EPERM"]);
    assert_eq!(end.held, warm.1.held);
    let grown = end.resident.saturating_sub(warm.1.resident);
    assert!(grown <= GROWTH, "{grown} bytes more: {:?}", (warm.1.resident, end.resident));
}

//! The host's audit store: what is decided is in it soon, and it holds through kills.

use std::io::{BufRead, BufReader, Lines, Write};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use clawbox_tests::daemon::Daemon;
use clawbox_tests::network::{ELSEWHERE, SITE};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::attacks::attempt::PYTHON;
use crate::daemon::{Dialler, output, to_site};
use crate::scene::Scene;

/// A verb of `clawbox audit` on a daemon's store.
fn audit(daemon: &Daemon, words: &[&str]) -> Command {
    let config = daemon.place("agent.yaml").display().to_string();
    let mut command = daemon.clawbox(&["audit"]);
    command.args(words).args(["--config", &config]);
    command
}

pub(crate) fn verified(daemon: &Daemon) -> Value {
    let (status, stdout, stderr) = output(audit(daemon, &["verify", "--format", "json"]));
    assert_eq!(status, 0, "{stdout}{stderr}");
    let found: Value = serde_json::from_str(&stdout).unwrap();
    // Every number that the kernel has given to a record is a row's, or counted as lost: the agent has not
    // missed any, nor has the store.
    assert_eq!(
        (&found["numbers"]["unexplained"], &found["numbers"]["twice"]),
        (&0.into(), &0.into())
    );
    let gaps = query(daemon, &["--class", "gap"]);
    assert!(gaps.iter().all(|gap| gap["detail"]["kind"] != "unexplained"), "{gaps:#?}");
    let alarms = query(daemon, &["--action", "alarm", "--reason", "numbers"]);
    assert!(alarms.is_empty(), "{alarms:#?}");
    found
}

/// The numbers of what is lost are as many as gaps count events of the kernel's.
fn numbers_are_exact(daemon: &Daemon) {
    let found = verified(daemon);
    let gaps = query(daemon, &["--class", "gap"]);
    let kinds = ["connect", "send", "bind", "socket", "exec", "file"];
    let of = |gap: &&Value| kinds.iter().any(|kind| gap["detail"]["kind"] == *kind);
    let lost: u64 = gaps.iter().filter(of).map(|gap| gap["count"].as_u64().unwrap()).sum();
    assert_eq!(found["numbers"]["lost"], lost, "{found:#} {gaps:#?}");
    let rows = query(daemon, &["--class", "network", "--count-by", "class"]);
    let stored = found["numbers"]["stored"].as_u64().unwrap();
    assert!(stored >= rows[0]["rows"].as_u64().unwrap(), "{found:#} {rows:#?}");
}

/// Rows that a query gives.
pub(crate) fn query(daemon: &Daemon, words: &[&str]) -> Vec<Value> {
    let mut command = audit(daemon, &["query"]);
    let (status, stdout, stderr) = output({
        command.args(words).args(["--format", "json"]);
        command
    });
    assert_eq!(status, 0, "{stdout}{stderr}");
    stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Asks until there are so many: how soon they are there is part of the test.
fn until(daemon: &Daemon, count: usize, words: &[&str]) -> Vec<Value> {
    let began = Instant::now();
    loop {
        let rows = query(daemon, words);
        if rows.len() >= count {
            assert_eq!(rows.len(), count, "{rows:#?}");
            return rows;
        }
        assert!(began.elapsed() < Duration::from_secs(60), "{rows:#?}");
    }
}

#[test]
fn a_denial_is_in_the_host_s_store_soon_and_the_store_is_whole_after_kills() {
    let scene = Scene::new();
    let mut daemon = Daemon::start(&scene.world);
    let policy = daemon.policy("one", &to_site(&scene));
    let mut dialler = Dialler::start(daemon.as_nobody(&[]), "one", &policy);
    let (site, elsewhere) = (SITE.to_string(), ELSEWHERE.to_string());
    let denials = ["--sandbox", "one", "--verdict", "deny"];
    for round in 1..=3 {
        assert_eq!([dialler.dial(&elsewhere), dialler.dial(&site)], ["EPERM", "ok"]);
        let rows = until(&daemon, round, &denials);
        let last = &rows[round - 1];
        assert_eq!((&last["ip"], &last["port"]), (&elsewhere.as_str().into(), &7.into()));
        assert_eq!((&last["sandbox"], &last["uid"]), (&"one-1".into(), &65_534.into()));
        assert!(last["exe"].as_str().unwrap().contains("python"), "{last}");
        // What is not on the disk yet goes with a killed daemon: of allows up to a second.
        until(&daemon, round, &["--sandbox", "one", "--verdict", "allow", "--action", "connect"]);
        daemon.end_by(Signal::SIGKILL);
        daemon.start_again();
    }
    // How it has ended no restarted daemon can tell: it is another one's child.
    let _ = dialler.end();
    let stops = until(&daemon, 1, &["--sandbox", "one-1", "--action", "stop"]);
    daemon.end_by(Signal::SIGTERM);
    // The store has what the sandbox's own trail has, record by record.
    let own = daemon.trail("one-1");
    let mut rows = query(&daemon, &["--sandbox", "one-1"]);
    // And the policy's text, from each daemon.
    let all = rows.len();
    rows.retain(|row| row["action"] != "policy-text");
    assert_eq!(all - rows.len(), 4);
    let of = |record: &Value, key: &str| record[key].as_str().unwrap_or_default().to_owned();
    let words = |record: &Value| ["action", "verdict", "reason", "time"].map(|key| of(record, key));
    assert_eq!(
        rows.iter().map(words).collect::<Vec<_>>(),
        own.iter().map(words).collect::<Vec<_>>()
    );
    assert_eq!(of(&stops[0], "class"), "sandbox");
    let found = verified(&daemon);
    assert!(found["events"].as_u64().unwrap() >= rows.len() as u64, "{found}");
    assert_eq!(found["unsigned"], 0, "{found}");
    let counted = query(&daemon, &["--sandbox", "one", "--count-by", "verdict,action"]);
    let of_denied = |row: &&Value| row["verdict"] == "deny" && row["action"] == "connect";
    assert_eq!(counted.iter().find(of_denied).unwrap()["rows"], 3, "{counted:#?}");
    // Nobody else reads it by themselves.
    let config = daemon.place("agent.yaml").display().to_string();
    let (status, stdout, _) = output(daemon.as_nobody(&["audit", "query", "--config", &config]));
    assert_eq!((status, stdout.as_str()), (2, ""));
    // One byte of one batch.
    let segment = daemon.place("state/audit").join("00000001.arrows");
    let mut bytes = std::fs::read(&segment).unwrap();
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    std::fs::write(&segment, bytes).unwrap();
    let (status, stdout, _) = output(audit(&daemon, &["verify"]));
    assert!(status == 1 && stdout.contains("00000001.arrows"), "{stdout}");
}

#[test]
fn an_event_is_shown_with_who_started_whom_and_no_secret() {
    let scene = Scene::new();
    let mut daemon = Daemon::start(&scene.world);
    let policy = daemon.policy("one", &to_site(&scene));
    let dial = "import socket, sys\ntry: socket.create_connection((sys.argv[1], 7), 9)\nexcept OSError: pass";
    let shell = format!("{PYTHON} -c '{dial}' {ELSEWHERE} --token hunter2; true");
    let mut command = daemon.as_nobody(&["run", "--name", "one", "--policy", &policy, "--"]);
    let (status, _, stderr) = output({
        command.args(["/bin/sh", "-c", &shell, "agent", "https://me:hunter2@a.test/"]);
        command
    });
    assert_eq!(status, 0, "{stderr}");
    daemon.end_by(Signal::SIGTERM);
    let denied = query(&daemon, &["--sandbox", "one", "--verdict", "deny", "--action", "connect"]);
    let id = denied[0]["id"].to_string();
    let (status, stdout, stderr) = output(audit(&daemon, &["show", &id, "--format", "json"]));
    assert_eq!(status, 0, "{stderr}");
    let shown: Value = serde_json::from_str(&stdout).unwrap();
    let chain: Vec<&Value> = shown["chain"].as_array().unwrap().iter().collect();
    assert_eq!(chain.len(), 2, "{shown:#}");
    assert_eq!((&chain[0]["parent"], &chain[0]["pid"]), (&chain[1]["pid"], &shown["pid"]));
    let words = |of: &Value| -> Vec<String> { serde_json::from_value(of["args"].clone()).unwrap() };
    let (python, shell) = (words(chain[0]), words(chain[1]));
    assert_eq!((python[1].as_str(), python[3].as_str()), ("-c", ELSEWHERE.to_string().as_str()));
    assert_eq!(python[4..], ["--token", "***"]);
    assert_eq!((shell[0].as_str(), shell[4].as_str()), ("/bin/sh", "https://***@a.test/"));
    assert!(shown["policy"].as_u64().is_some(), "{shown:#}");
    let text = shown["policy_in_force"]["texts"][0]["text"].as_str().unwrap();
    assert_eq!(
        (text, &shown["policy_in_force"]["revision"]),
        (to_site(&scene).as_str(), &1.into())
    );
    let (_, text, _) = output(audit(&daemon, &["show", &id]));
    assert!(text.contains("started by") && !text.contains("hunter2"), "{text}");
    let own = serde_json::to_string(&daemon.trail("one-1")).unwrap();
    assert!(own.contains("--token") && own.contains("***"), "{own}");
}

/// What the store says of connects: how many were allowed and denied, and of both what was lost.
pub(crate) fn connects(daemon: &Daemon) -> [u64; 4] {
    connects_of(daemon, "*")
}

fn connects_of(daemon: &Daemon, name: &str) -> [u64; 4] {
    let count = ["--count-by", "action"];
    let rows = |verdict| {
        let of = ["--sandbox", name, "--action", "connect", "--verdict", verdict, "--host", "*"];
        let counted = query(daemon, &[&of[..], &count].concat());
        counted.iter().map(|row| row["events"].as_u64().unwrap()).sum::<u64>()
    };
    let gaps = query(daemon, &["--sandbox", name, "--class", "gap"]);
    let lost = |verdict: &str| -> u64 {
        let of = |gap: &&Value| {
            gap["detail"]["kind"] == "connect" && gap["detail"]["verdict"] == verdict
        };
        gaps.iter().filter(of).map(|gap| gap["count"].as_u64().unwrap()).sum()
    };
    [rows("allow"), lost("allow"), rows("deny"), lost("deny")]
}

/// Waits until each of so many connects is a row or counted as lost, and of denials each is a row.
fn until_exact(daemon: &Daemon, allowed: u64, denied: u64) {
    let began = Instant::now();
    loop {
        let [rows, lost, denials, denials_lost] = connects(daemon);
        assert!(rows + lost <= allowed && denials_lost == 0, "{rows} {lost} {denials_lost}");
        if (rows + lost, denials) == (allowed, denied) {
            return;
        }
        assert!(began.elapsed() < Duration::from_secs(60), "{rows} {lost} {denials}");
    }
}

#[test]
fn a_flood_of_allows_takes_no_room_from_denials_and_all_of_it_is_stored_or_counted() {
    const ATTEMPTS: u64 = 60_000;
    let scene = Scene::new();
    let mut daemon = Daemon::start(&scene.world);
    let counts = [ATTEMPTS, 200];
    let mut flooder = Flooder::start(&scene, &daemon, "one", 2, counts);
    // Nobody reads until both floods are over.
    let process = Pid::from_raw(daemon.process().cast_signed());
    kill(process, Signal::SIGSTOP).unwrap();
    flooder.go();
    flooder.is_over(counts);
    kill(process, Signal::SIGCONT).unwrap();
    until_exact(&daemon, ATTEMPTS, 200);
    // And now nobody is there to read.
    daemon.end_by(Signal::SIGKILL);
    flooder.go();
    flooder.is_over(counts);
    daemon.start_again();
    flooder.end();
    until_exact(&daemon, 2 * ATTEMPTS, 400);
    daemon.end_by(Signal::SIGTERM);
    let [allowed, lost, ..] = connects(&daemon);
    assert_eq!(allowed + lost, 2 * ATTEMPTS, "more than there was: {allowed} stored, {lost} lost");
    assert!(lost > ATTEMPTS / 2, "the ring was never full: {lost} lost");
    numbers_are_exact(&daemon);
    // Those of the first flood, at least, are known to be holes in the numbers.
    let surplus = verified(&daemon)["numbers"]["surplus"].as_u64().unwrap();
    assert!(surplus < lost, "{surplus} of {lost}");
}

#[test]
fn allows_that_are_alike_are_all_counted_and_few_are_told_whoever_reads() {
    const ATTEMPTS: u64 = 20_000;
    let scene = Scene::new();
    let mut daemon = Daemon::start(&scene.world);
    let counts = [ATTEMPTS, 10];
    let mut flooder = Flooder::start_at("summary", &scene, &daemon, "one", 2, counts);
    flooder.go();
    flooder.is_over(counts);
    // What was told by itself is on the disk; what was counted is not told before ten seconds are over.
    let began = Instant::now();
    while matches!(connects(&daemon), [0, ..] | [_, _, ..10, _]) {
        assert!(began.elapsed() < Duration::from_secs(60), "{:?}", connects(&daemon));
    }
    daemon.end_by(Signal::SIGKILL);
    flooder.go();
    flooder.is_over(counts);
    daemon.start_again();
    flooder.end();
    until_exact(&daemon, 2 * ATTEMPTS, 20);
    daemon.end_by(Signal::SIGTERM);
    let [allowed, lost, ..] = connects(&daemon);
    assert_eq!((allowed, lost), (2 * ATTEMPTS, 0));
    let of = ["--action", "connect", "--verdict", "allow", "--host", "*"];
    let rows = query(&daemon, &of).len();
    assert!(rows <= 12, "{rows} rows");
    verified(&daemon);
}

/// A sandbox in which connects are made as asked: some to where the policy allows it, then fewer elsewhere.
struct Flooder {
    child: Child,
    said: Lines<BufReader<ChildStdout>>,
}

impl Flooder {
    /// Each connect is to be told by itself.
    pub(crate) fn start(
        scene: &Scene,
        daemon: &Daemon,
        name: &str,
        rounds: u32,
        counts: [u64; 2],
    ) -> Self {
        Self::start_at("all", scene, daemon, name, rounds, counts)
    }

    fn start_at(
        level: &str,
        scene: &Scene,
        daemon: &Daemon,
        name: &str,
        rounds: u32,
        counts: [u64; 2],
    ) -> Self {
        let rule = format!("{{ host: {SITE}, port: 7, transport: udp }}");
        let policy = daemon.policy(name, &scene.allowing_attack(&rule));
        let mut command = daemon.as_nobody(&["run", "--name", name, "--policy", &policy]);
        command.args(["--audit-level", level, "--", &scene.attack(), "socket=unix"]);
        for _ in 0..rounds {
            let [allowed, denied] = counts;
            let words = [
                "line".to_owned(),
                format!("flood={allowed},{SITE}:7"),
                format!("flood={denied},{ELSEWHERE}:7"),
            ];
            command.args(words);
        }
        command.arg("line");
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut said = BufReader::new(child.stdout.take().unwrap()).lines();
        // It runs.
        assert!(said.next().unwrap().unwrap().contains("socket=unix"));
        Self { child, said }
    }

    fn go(&mut self) {
        writeln!(self.child.stdin.as_mut().unwrap(), "go").unwrap();
    }

    /// Waits until both parts of a round are over.
    fn is_over(&mut self, [allowed, denied]: [u64; 2]) {
        let told: Vec<Value> = self
            .said
            .by_ref()
            .map(|line| serde_json::from_str::<Value>(&line.unwrap()).unwrap_or_default())
            .filter(|line| line["detail"]["EPERM"].is_u64())
            .take(2)
            .collect();
        let found = (&told[0]["detail"]["other"], &told[1]["detail"]["EPERM"]);
        assert_eq!(found, (&allowed.into(), &denied.into()));
    }

    fn end(mut self) {
        self.go();
        drop(self.child.stdin.take());
        self.child.wait().unwrap();
    }
}

#[test]
fn whatever_is_read_when_the_agent_is_killed_is_stored_or_counted_exactly_by_the_next_one() {
    const ROUNDS: u32 = 4;
    const COUNTS: [u64; 2] = [20_000, 500];
    let scene = Scene::new();
    let mut daemon = Daemon::start(&scene.world);
    let mut flooder = Flooder::start(&scene, &daemon, "one", ROUNDS, COUNTS);
    // What the start itself tried, and is no record, is not in its hands any more.
    until(&daemon, 1, &["--sandbox", "one-1", "--action", "start"]);
    for round in 1..=ROUNDS {
        // It is reading, and what it has read is a moment old: to make records of the whole trail takes longer.
        let trail = daemon.place("trails/one-1.jsonl");
        let connects = || {
            let text = std::fs::read_to_string(&trail).unwrap();
            text.matches(r#""action":"connect""#).count()
        };
        let before = connects();
        flooder.go();
        let began = Instant::now();
        while connects() == before && began.elapsed() < Duration::from_secs(60) {
            std::thread::yield_now();
        }
        daemon.kill();
        flooder.is_over(COUNTS);
        daemon.start_again();
        let all = COUNTS.map(|count| count * u64::from(round));
        let began = Instant::now();
        loop {
            let [allowed, allowed_lost, denied, denied_lost] = connects_of(&daemon, "one");
            let found = [allowed + allowed_lost, denied + denied_lost];
            if found == all {
                break;
            }
            assert!(found[0] <= all[0] && found[1] <= all[1], "{found:?} of {all:?}");
            assert!(began.elapsed() < Duration::from_secs(60), "{found:?} of {all:?}");
        }
    }
    flooder.end();
    let killed = query(&daemon, &["--class", "gap", "--reason", "killed"]);
    assert!(!killed.is_empty(), "it was never killed with anything in its hands");
    daemon.end_by(Signal::SIGTERM);
    numbers_are_exact(&daemon);
}

#[test]
fn what_a_start_tries_itself_is_no_event_and_no_loss_whenever_the_agent_is_killed() {
    let scene = Scene::new();
    let mut daemon = Daemon::start(&scene.world);
    let policy = daemon.policy("one", &to_site(&scene));
    let mut diallers = Vec::new();
    for round in 0..4 {
        let name = format!("one{round}");
        // It says that it runs as soon as it does.
        let mut command = daemon.as_nobody(&["run", "--name", &name, "--policy", &policy, "--"]);
        command.args(["/bin/sh", "-c", "echo ready; read line"]);
        diallers.push(Dialler::of(command));
        // Before it has read what the start has tried; in every other round the next one too.
        daemon.kill();
        daemon.start_again();
        if round % 2 == 1 {
            daemon.kill();
            daemon.start_again();
        }
    }
    for dialler in diallers {
        // Of a start that the daemon has not finished nobody is told how it has ended.
        let _ = dialler.end();
    }
    let began = Instant::now();
    while !daemon.list().is_empty() {
        assert!(began.elapsed() < Duration::from_secs(60), "{:?}", daemon.list());
    }
    daemon.end_by(Signal::SIGTERM);
    let refused = query(&daemon, &["--verdict", "deny"]);
    assert!(refused.is_empty(), "{refused:#?}");
    let denied = |gap: &Value| gap["detail"]["verdict"] == "deny";
    let gaps = query(&daemon, &["--class", "gap"]);
    assert!(!gaps.iter().any(denied), "{gaps:#?}");
    verified(&daemon);
}

#[test]
fn a_sandbox_that_floods_leaves_room_to_the_others_while_nobody_reads() {
    const FLOOD: [u64; 2] = [40_000, 20_000];
    const FEW: [u64; 2] = [60, 40];
    let scene = Scene::new();
    let mut daemon = Daemon::start(&scene.world);
    let mut flooder = Flooder::start(&scene, &daemon, "loud", 1, FLOOD);
    let mut quiet = Flooder::start(&scene, &daemon, "quiet", 1, FEW);
    let process = Pid::from_raw(daemon.process().cast_signed());
    kill(process, Signal::SIGSTOP).unwrap();
    flooder.go();
    flooder.is_over(FLOOD);
    quiet.go();
    quiet.is_over(FEW);
    kill(process, Signal::SIGCONT).unwrap();
    let began = Instant::now();
    loop {
        let loud = connects_of(&daemon, "loud");
        let found = [loud[0] + loud[1], loud[2] + loud[3]];
        if found == FLOOD && connects_of(&daemon, "quiet") == [FEW[0], 0, FEW[1], 0] {
            assert!(loud[1] > 0 && loud[3] > 0, "it was no flood: {loud:?}");
            break;
        }
        assert!(found[0] <= FLOOD[0] && found[1] <= FLOOD[1], "{loud:?}");
        let quiet = connects_of(&daemon, "quiet");
        assert!(began.elapsed() < Duration::from_secs(60), "{loud:?} {quiet:?}");
    }
    flooder.end();
    quiet.end();
    daemon.end_by(Signal::SIGTERM);
    verified(&daemon);
}

/// Reads a segment with three libraries, and OCSF events with the published schema; says what it has read.
const READERS: &str = include_str!("readers.py");

#[test]
fn other_tools_read_a_segment_with_no_code_of_clawbox_and_ocsf_events_are_valid() {
    let Some(python) = std::env::var_os("CLAWBOX_TESTS_READERS") else { return };
    let scene = Scene::new();
    let mut daemon = Daemon::start(&scene.world);
    let policy = daemon.policy("one", &to_site(&scene));
    let mut dialler = Dialler::start(daemon.as_nobody(&[]), "one", &policy);
    for _ in 0..5 {
        assert_eq!(dialler.dial(&ELSEWHERE.to_string()), "EPERM");
        // A batch for each, as far as that can be had: each has texts of its own.
        assert_eq!(dialler.dial("nowhere.test"), "no name");
    }
    assert_eq!(dialler.end(), 0);
    daemon.end_by(Signal::SIGTERM);
    let stored = query(&daemon, &[]).len();
    let denied = query(&daemon, &["--verdict", "deny", "--class", "network"]).len();
    let store = daemon.place("state/audit");
    let exported = |form: &str| {
        let file = daemon.place(&format!("export.{form}"));
        let path = file.display().to_string();
        let made = output(audit(&daemon, &["export", "--format", form, "--output", &path]));
        assert_eq!(made.0, 0, "{}", made.2);
        path
    };
    let mut command = Command::new(python);
    command.args(["-c", READERS]).arg(store.join("00000001.arrows"));
    command.args(["parquet", "csv", "jsonl", "ocsf"].map(exported));
    let (status, stdout, stderr) = output(command);
    assert_eq!(status, 0, "{stdout}{stderr}");
    let read: Value = serde_json::from_str(&stdout).unwrap();
    for reader in ["pyarrow", "duckdb", "polars", "parquet", "csv", "jsonl"] {
        assert_eq!(read[reader], serde_json::json!([stored, denied]), "{reader}: {read}");
    }
    assert_eq!(read["ocsf"], stored, "{read}");
    for class in ["4001", "4003", "1007", "6002"] {
        assert!(read["classes"][class].as_u64().unwrap() > 0, "{class}: {read}");
    }
}

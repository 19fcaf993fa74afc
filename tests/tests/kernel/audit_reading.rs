//! The audit store for who may not read its files: by way of the daemon, and what is theirs.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use clawbox_tests::daemon::Daemon;
use clawbox_tests::network::{ELSEWHERE, NOBODY, SITE};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::daemon::{Dialler, output, to_site};
use crate::scene::Scene;

const USER: u32 = 4711;

/// Whose own group is the group `clawbox`.
const MEMBER: u32 = 4999;

fn read(mut command: Command) -> Vec<Value> {
    command.args(["--format", "json"]);
    let (status, stdout, stderr) = output(command);
    assert_eq!(status, 0, "{stdout}{stderr}");
    stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn sandboxes(rows: &[Value]) -> BTreeSet<&str> {
    rows.iter().map(|row| row["sandbox"].as_str().unwrap()).collect()
}

#[test]
fn the_group_reads_all_of_the_store_through_the_daemon_and_a_user_what_is_their_own() {
    let scene = Scene::new();
    let mut daemon = Daemon::at_rest(&scene.world, "off", "");
    daemon.give_groups(&format!("root:x:0:\nclawbox:x:{MEMBER}:\n"));
    daemon.start_again();
    let policy = daemon.policy("one", &to_site(&scene));
    let (site, elsewhere) = (SITE.to_string(), ELSEWHERE.to_string());
    let mut one = Dialler::start(daemon.as_user(USER, &[]), "one", &policy);
    let mut two = Dialler::start(daemon.as_nobody(&[]), "two", &policy);
    for dialler in [&mut one, &mut two] {
        assert_eq!([dialler.dial(&site), dialler.dial(&elsewhere)], ["ok", "EPERM"]);
    }
    let query = |user| read(daemon.as_user(user, &["audit", "query"]));
    let denied = |user| {
        let began = Instant::now();
        loop {
            let rows = read(daemon.as_user(user, &["audit", "query", "--verdict", "deny"]));
            if !rows.is_empty() {
                return rows;
            }
            assert!(began.elapsed() < Duration::from_secs(60));
        }
    };
    assert_eq!(sandboxes(&denied(USER)), BTreeSet::from(["one-1"]));
    let theirs = denied(NOBODY);
    assert_eq!(sandboxes(&theirs), BTreeSet::from(["two-2"]));
    assert_eq!(sandboxes(&query(USER)), BTreeSet::from(["one-1"]));
    let all = query(MEMBER);
    assert!(sandboxes(&all).is_superset(&BTreeSet::from(["one-1", "two-2"])), "{all:#?}");
    // Asking for somebody else's gives nothing, by name, by number or counted.
    assert!(read(daemon.as_user(USER, &["audit", "query", "--sandbox", "two"])).is_empty());
    let counted = read(daemon.as_user(USER, &["audit", "query", "--count-by", "sandbox"]));
    assert_eq!(sandboxes(&counted), BTreeSet::from(["one-1"]));
    let id = theirs[0]["id"].to_string();
    let (status, _, stderr) = output(daemon.as_user(USER, &["audit", "show", &id]));
    assert!(status == 2 && stderr.contains("no event"), "{status} {stderr}");
    let (status, shown, stderr) = output(daemon.as_nobody(&["audit", "show", &id]));
    assert!(
        status == 0 && shown.contains("started") | shown.contains("process"),
        "{shown}{stderr}"
    );
    assert!(shown.contains("revision 1, ") && shown.contains("one.yaml, SHA-256 "), "{shown}");
    let (_, stats, _) = output(daemon.as_user(USER, &["audit", "stats", "--format", "json"]));
    let stats: Value = serde_json::from_str(&stats).unwrap();
    assert!(stats["rows"].as_u64().unwrap() < all.len() as u64, "{stats}");

    // Who follows sees what comes, and is gone when they go.
    let mut follows = daemon.as_user(USER, &["audit", "tail", "-f", "-n", "0"]);
    let mut follows = follows.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(follows.stdout.take().unwrap()).lines();
    let told = std::thread::scope(|scope| {
        let first = scope.spawn(move || lines.next().unwrap().unwrap());
        while !first.is_finished() {
            let _ = [two.dial(&elsewhere), one.dial(&elsewhere)];
        }
        first.join().unwrap()
    });
    assert!(told.contains("one-1") && told.contains("deny"), "{told}");
    follows.kill().unwrap();
    follows.wait().unwrap();
    // What has ended is theirs still.
    assert_eq!((one.end(), two.end()), (0, 0));
    assert_eq!(sandboxes(&query(USER)), BTreeSet::from(["one-1"]));
}

#[test]
fn what_is_hashed_is_nowhere_in_the_clear_and_is_found_by_who_knows_it() {
    let scene = Scene::new();
    let hash = "audit: { hash: [paths, programs, arguments] }\n";
    let mut daemon = Daemon::start_configured(&scene.world, "off", hash);
    let policy = daemon.policy("one", &to_site(&scene));
    for _ in 0..2 {
        let mut command = daemon.as_nobody(&["run", "--name", "one", "--policy", &policy, "--"]);
        command.args(["/bin/sh", "-c", "/usr/bin/env true sesame; exit 0", "sesame"]);
        let (status, _, stderr) = output(command);
        assert_eq!(status, 0, "{stderr}");
    }
    daemon.end_by(Signal::SIGTERM);
    let config = daemon.place("agent.yaml").display().to_string();
    let query = |words: &[&str]| {
        let mut command = daemon.clawbox(&["audit", "query", "--config", &config]);
        command.args(words);
        read(command)
    };
    let mut rows = query(&[]);
    rows.retain(|row| row["action"] != "policy-text");
    let texts = [serde_json::to_string(&rows).unwrap()]
        .into_iter()
        .chain(["one-1", "one-2"].map(|id| serde_json::to_string(&daemon.trail(id)).unwrap()));
    for text in texts {
        assert!(text.contains("\"exec\"") && text.contains("hmac:"), "{text}");
        assert!(!text.contains("sesame") && !text.contains("/usr/bin/env"), "{text}");
    }
    // Two starts, by the same hash, which the text itself asks for.
    let found = query(&["--path", "/usr/bin/env"]);
    assert_eq!(found.len(), 2, "{rows:#?}");
    assert_eq!((&found[0]["path"], &found[0]["args"]), (&found[1]["path"], &found[1]["args"]));
    let path = found[0]["path"].as_str().unwrap();
    assert_eq!(query(&["--path", path]).len(), 2);
    let words: Vec<String> = serde_json::from_value(found[0]["args"].clone()).unwrap();
    let shell = query(&["--path", "/bin/sh"]);
    let shell: Vec<String> = serde_json::from_value(shell[0]["args"].clone()).unwrap();
    assert!(words.len() == 3 && words[2] == *shell.last().unwrap(), "{words:?} {shell:?}");
    // Who has a copy without the key has hashes alone.
    let copy = scene.world.private().join("copy");
    std::fs::create_dir(&copy).unwrap();
    for entry in std::fs::read_dir(daemon.place("state/audit")).unwrap() {
        let from = entry.unwrap().path();
        std::fs::copy(&from, copy.join(from.file_name().unwrap())).unwrap();
    }
    let copy = copy.display().to_string();
    let asked = daemon.clawbox(&["audit", "query", "--dir", &copy, "--path", "/usr/bin/env"]);
    assert!(read(asked).is_empty());
}

//! A sandbox's audit trail is its owner's to read, by way of the daemon, and nobody else's.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use clawbox_tests::daemon::Daemon;
use clawbox_tests::network::{ELSEWHERE, SITE};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::attached::until;
use crate::audit_store::query;
use crate::daemon::{Dialler, output, to_site};
use crate::scene::Scene;

#[test]
fn an_owner_reads_and_follows_the_trail_of_their_own_sandbox_alone_also_after_its_end() {
    let scene = Scene::new();
    let mut daemon = Daemon::start(&scene.world);
    let policy = daemon.policy("one", &to_site(&scene));
    let mut dialler = Dialler::start(daemon.as_nobody(&[]), "one", &policy);
    let elsewhere = ELSEWHERE.to_string();
    assert_eq!([dialler.dial(&elsewhere), dialler.dial(&SITE.to_string())], ["EPERM", "ok"]);
    let follow = ["logs", "one", "--follow", "--format", "json"];
    let mut following = daemon.as_nobody(&follow).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(following.stdout.take().unwrap()).lines();
    let mut next = |action: &str| -> Value {
        loop {
            let record: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
            if record["action"] == action {
                return record;
            }
        }
    };
    assert_eq!(next("start")["seq"], 1);
    let is_deny = |record: Value| record["verdict"] == "deny" && record["object"]["port"] == 7;
    assert!(is_deny(next("connect")));
    assert_eq!(next("connect")["verdict"], "allow");
    assert_eq!(dialler.dial(&elsewhere), "EPERM");
    assert!(is_deny(next("connect")));
    let (status, stdout, stderr) =
        output(daemon.as_nobody(&["logs", "one", "--denials", "-n", "1"]));
    let told = format!("deny   connect   {elsewhere} port 7/tcp  by ");
    assert!(
        status == 0 && stdout.lines().count() == 1 && stdout.contains(&told),
        "{stdout}{stderr}"
    );
    let as_other = |daemon: &Daemon| output(daemon.as_user(4711, &["logs", "one-1"]));
    let (status, stdout, stderr) = as_other(&daemon);
    assert!(status == 2 && stdout.is_empty() && stderr.contains("no sandbox"), "{stdout}{stderr}");
    assert_eq!(dialler.end(), 0);
    assert_eq!(next("stop")["object"]["status"], 0);
    assert!(following.wait().unwrap().success());

    daemon.end_by(Signal::SIGKILL);
    daemon.start_again();
    let ended = |daemon: &Daemon, words: &[&str]| output(daemon.as_nobody(words));
    let (status, all, _) = ended(&daemon, &["logs", "one", "-f", "--format", "json"]);
    assert!(status == 0 && all.lines().count() == daemon.trail("one-1").len(), "{all}");
    assert_eq!(as_other(&daemon).0, 2);
    // Somebody else's of the same name and number goes on in the same file.
    let theirs = Dialler::start(daemon.as_user(4711, &[]), "one", &policy);
    assert_eq!(theirs.end(), 0);
    assert_eq!(ended(&daemon, &["logs", "one-1"]).0, 2);
    let (status, own, _) = as_other(&daemon);
    let whole = daemon.trail("one-1").len();
    assert!(status == 0 && own.lines().count() == whole - all.lines().count(), "{own}");
    assert!(!own.contains("deny") && own.contains("start"), "{own}");
}

/// Denials of which no two are alike.
const DENIALS: u16 = 700;

#[test]
fn a_trail_takes_two_files_of_its_bound_and_who_follows_it_or_starts_the_daemon_again_misses_nothing()
 {
    let scene = Scene::new();
    let mut daemon = Daemon::start_configured(&scene.world, "off", "audit: { trail: 64K }\n");
    let policy = daemon.policy("one", &to_site(&scene));
    let mut dialler = Dialler::start(daemon.as_nobody(&[]), "one", &policy);
    let follow = ["logs", "one", "--follow", "--format", "json"];
    let mut following = daemon.as_nobody(&follow).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(following.stdout.take().unwrap()).lines();
    let mut next = || -> Value { serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap() };
    assert_eq!(next()["seq"], 1);
    let place = |number: u16| format!("10.99.{}.{}", number / 250, number % 250);
    let mut followed = 1;
    for number in 0..DENIALS {
        assert_eq!(dialler.dial(&place(number)), "EPERM");
        // Who is slower than two files fill up misses some.
        let mut is_behind = number % 50 == 49;
        while is_behind {
            let record = next();
            followed += 1;
            assert_eq!(record["seq"], followed);
            is_behind = record["object"]["ip"] != place(number);
        }
    }
    let read = |daemon: &Daemon| -> Vec<u64> {
        let (status, all, stderr) = output(daemon.as_nobody(&["logs", "one", "--format", "json"]));
        assert_eq!(status, 0, "{stderr}");
        let number = |line| serde_json::from_str::<Value>(line).unwrap()["seq"].as_u64();
        all.lines().map(|line| number(line).unwrap()).collect()
    };
    let goes_on = |numbers: &[u64]| numbers.windows(2).all(|pair| pair[1] == pair[0] + 1);
    let before = read(&daemon);
    assert!(goes_on(&before) && before[0] > 1 && *before.last().unwrap() >= followed, "{before:?}");
    assert!(before.len() > daemon.trail("one-1").len(), "{before:?}");
    for name in ["one-1.jsonl", "one-1.jsonl.1"] {
        let length = daemon.place("trails").join(name).metadata().unwrap().len();
        assert!(length < 128 << 10, "{name}: {length}");
    }
    until("the host's store has each", || {
        let words = ["--sandbox", "one", "--verdict", "deny", "--count-by", "sandbox"];
        query(&daemon, &words).iter().any(|row| row["events"] == DENIALS)
    });

    daemon.end_by(Signal::SIGKILL);
    daemon.start_again();
    assert_eq!(dialler.dial(&place(DENIALS)), "EPERM");
    let ended = |trail: &[Value]| trail.iter().any(|record| record["action"] == "stop");
    assert_eq!(dialler.end(), 125);
    let _ = daemon.trail_once("one-1", ended);
    let after = read(&daemon);
    assert!(goes_on(&after) && after.last() > before.last(), "{after:?}");
    let _ = following.kill();
    let _ = following.wait();
}

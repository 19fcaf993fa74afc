//! A sandbox's audit trail is its owner's to read, by way of the daemon, and nobody else's.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use clawbox_tests::daemon::Daemon;
use clawbox_tests::network::{ELSEWHERE, SITE};
use nix::sys::signal::Signal;
use serde_json::Value;

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

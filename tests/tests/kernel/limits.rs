//! What a sandbox may use of the host, by the controllers of its cgroup.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use clawbox_tests::clawbox::cgroup_root;
use clawbox_tests::daemon::Daemon;
use clawbox_tests::network::SITE;
use serde_json::Value;

use crate::attacks::attempt::PYTHON;
use crate::daemon::{Dialler, output, to_site};
use crate::scene::Scene;

/// Forks until it may not, and says why and after how many.
const FORKS: &str = r#"
import errno, os, signal
children = []
try:
    while len(children) < 1000:
        child = os.fork()
        if child == 0: signal.pause()
        children.append(child)
    print("none")
except OSError as error: print(errno.errorcode[error.errno], len(children))
"#;

/// Wants much more memory than it may have.
const EATS: &str = "held = bytearray(512 << 20); print(len(held))";

#[test]
fn a_sandbox_at_its_limits_is_refused_or_ended_alone_and_what_cannot_be_held_does_not_start() {
    let scene = Scene::new();
    let daemon = Daemon::start(&scene.world);
    let policy = daemon.policy("one", &to_site(&scene));
    let controllers =
        std::fs::read_to_string(cgroup_root().join("cgroup.controllers")).unwrap_or_default();
    let has = |wanted: &str| controllers.split_whitespace().any(|found| found == wanted);
    let run = |limits: &[&str], command: &[&str]| {
        let mut words = vec!["run", "--name", "bounded", "--policy", &policy];
        words.extend(limits);
        words.push("--");
        words.extend(command);
        output(daemon.as_nobody(&words))
    };
    for (option, value, controller) in
        [("--pids", "20", "pids"), ("--memory", "64M", "memory"), ("--cpus", "0.5", "cpu")]
    {
        let (status, _, stderr) = run(&[option, value], &["/bin/true"]);
        let refused = format!("the {controller} controller is not in");
        match has(controller) {
            true => assert_eq!(status, 0, "{stderr}"),
            false => assert!(status == 125 && stderr.contains(&refused), "{stderr}"),
        }
    }
    assert!(daemon.list().is_empty());
    if !["pids", "memory", "cpu"].into_iter().all(has) {
        return;
    }
    let mut other = Dialler::start(daemon.as_nobody(&[]), "other", &policy);
    let mut limited = daemon.as_nobody(&["run", "--memory", "1G", "--cpus", "1.5", "--pids", "50"]);
    limited.args(["--name", "shown", "--policy", &policy, "--", "/bin/sh", "-c"]);
    limited.arg("echo ready; exec sleep 1000").stdout(Stdio::piped());
    let mut limited = limited.spawn().unwrap();
    let mut line = String::new();
    BufReader::new(limited.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    let (status, stdout, stderr) = run(&["--pids", "20"], &[PYTHON, "-c", FORKS]);
    // Process 1 and the command are two of them.
    assert_eq!((status, stdout.trim()), (0, "EAGAIN 18"), "{stderr}");
    assert_eq!(other.dial(&SITE.to_string()), "ok");
    let (status, stdout, _) = run(&["--memory", "64M"], &[PYTHON, "-c", EATS]);
    assert_eq!((status, stdout.as_str()), (137, ""));
    assert_eq!(other.dial(&SITE.to_string()), "ok");
    let (_, stdout, _) = output(daemon.as_nobody(&["show", "shown", "--format", "json"]));
    let shown: Value = serde_json::from_str(&stdout).unwrap();
    let usage = &shown["usage"];
    assert_eq!(
        [&usage["memory_max"], &usage["pids_max"], &usage["cpus_max"]],
        [&Value::from(1_u64 << 30), &Value::from(50), &Value::from(1.5)],
        "{shown:#}"
    );
    assert!(
        usage["pids"].as_u64() >= Some(2) && usage["memory_bytes"].as_u64() > Some(0),
        "{shown:#}"
    );
    assert_eq!(output(daemon.as_nobody(&["stop", "shown"])).0, 0);
    assert!(limited.wait().unwrap().code().is_some());
    assert_eq!(other.end(), 0);
}

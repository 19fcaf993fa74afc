//! A policy changes while its sandbox runs: all of it at once, for files and connections that are
//! there already too, and never beyond what the start gave.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Output};

use clawbox_tests::clawbox::{Clawbox, Running, program};
use clawbox_tests::network::{Entry, SITE};
use serde_json::Value;

use crate::scene::{ECHO, Scene};

/// What `clawbox policy set` said of a policy, and its status.
pub fn set(scene: &Scene, running: &Running, policy: &str) -> (Option<i32>, Value) {
    let file = scene.world.private().join("next.yaml");
    std::fs::write(&file, policy).unwrap();
    let output = set_file(&scene.world.entry(), &running.run(), &file);
    let said = String::from_utf8_lossy(&output.stdout);
    let answer = serde_json::from_str(&said).unwrap_or_else(|error| {
        panic!("{error}: {said}{}", String::from_utf8_lossy(&output.stderr))
    });
    (output.status.code(), answer)
}

fn set_file(host: &Entry, run: &str, file: &Path) -> Output {
    let mut command = Command::new(program());
    command.args(["policy", "set", "--format", "json", run]).arg(file);
    // Runs of a world are known in it alone.
    host.enter(&mut command);
    command.output().unwrap()
}

/// Puts a sandbox under a policy when it is called.
pub fn change_to(scene: &Scene, sandbox: &str, policy: &str) -> impl Fn() + 'static {
    let (host, sandbox, policy) = (scene.world.entry(), sandbox.to_owned(), policy.to_owned());
    let file = scene.world.private().join("next.yaml");
    move || {
        std::fs::write(&file, &policy).unwrap();
        let output = set_file(&host, &sandbox, &file);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
    }
}

#[track_caller]
pub fn changes(scene: &Scene, running: &Running, policy: &str) -> u64 {
    let (status, answer) = set(scene, running, policy);
    assert_eq!((status, &answer["outcome"]), (Some(0), &"changed".into()), "{answer}");
    answer["generation"].as_u64().unwrap()
}

pub fn tree_policy(scene: &Scene, tree: &str, extra: &str) -> String {
    scene
        .policy("")
        .replace("[/dev/null]", &format!("[/dev/null, {tree}]"))
        .replace("  include_workdir: true\n", &format!("  include_workdir: false\n{extra}"))
}

#[test]
fn what_the_start_did_not_give_is_refused_path_by_path_and_nothing_changes() {
    let scene = Scene::new();
    let clawbox = Clawbox::new(&scene.world, &scene.policy("")).with_lsm();
    let mut running = clawbox.spawn(&["/bin/sh", "-c", "echo on; cat"]);
    assert_eq!(running.line(), "on");
    let more = scene.policy("").replace("/usr,", "/usr, /srv, /var/lib,");
    let (status, answer) = set(&scene, &running, &more);
    assert_eq!((status, &answer["outcome"]), (Some(1), &"refused".into()), "{answer}");
    let parts: Vec<&str> =
        answer["parts"].as_array().unwrap().iter().map(|part| part.as_str().unwrap()).collect();
    if scene.has_lsm() {
        assert!(parts[0].starts_with("/srv: it was not readable"), "{parts:?}");
        assert!(parts[1].starts_with("/var/lib: "), "{parts:?}");
    } else {
        assert!(parts[0].starts_with("filesystem_policy: "), "{parts:?}");
    }
    let other = scene.policy("process: { run_as_user: daemon }");
    let (status, answer) = set(&scene, &running, &other);
    assert_eq!(
        (status, answer["parts"][0].as_str().unwrap().split(':').next()),
        (Some(1), Some("process"))
    );
    let (status, answer) = set(&scene, &running, "version: 1\nnetwork: {}\n");
    assert_eq!((status, &answer["outcome"]), (Some(2), &"does-not-load".into()));
    let run = running.wait();
    let reasons: Vec<_> =
        run.records("policy").iter().map(|record| record["reason"].clone()).collect();
    assert_eq!(reasons, ["refused", "refused", "does-not-load"]);
}

#[test]
fn a_rule_that_comes_admits_at_once_and_one_that_goes_admits_no_more() {
    let scene = Scene::new();
    let none = scene.policy("");
    let both = scene.allowing_attack("{ host: api.test, port: 7 }, { host: v4.test, port: 7 }");
    let one = scene.allowing_attack("{ host: api.test, port: 7 }");
    let attack = scene.attack();
    let steps = "resolve=v4.test line";
    let script = format!("{attack} {steps}; while read a; do {attack} $a; done");
    let mut running = Clawbox::new(&scene.world, &none).spawn(&["/bin/sh", "-c", &script]);
    let outcome = |running: &mut Running, step: &str| -> (String, Value) {
        running.say(step);
        let said: Value = serde_json::from_str(&running.line()).unwrap();
        (said["outcome"].as_str().unwrap().to_owned(), said["detail"].clone())
    };
    assert_eq!(serde_json::from_str::<Value>(&running.line()).unwrap()["outcome"], "failed");
    running.say("");
    running.line();
    changes(&scene, &running, &both);
    let (resolved, addresses) = outcome(&mut running, "resolve=v4.test");
    assert_eq!(resolved, "ok");
    let dial = format!("tcp={}:{ECHO}", addresses[0].as_str().unwrap());
    assert_eq!(outcome(&mut running, &dial).0, "ok");
    // An address from before the change is as good after it, while its name is allowed.
    changes(&scene, &running, &both.replace("api.test", "other.test"));
    assert_eq!(outcome(&mut running, &dial).0, "ok");
    changes(&scene, &running, &one);
    assert_eq!(outcome(&mut running, &dial).0, "EPERM");
    assert_eq!(outcome(&mut running, "resolve=v4.test").0, "failed");
    let run = running.wait();
    let to_site = |record: &&Value| {
        record["action"] == "connect"
            && record["object"]["port"] == ECHO
            && record["object"]["ip"] == SITE.to_string()
    };
    let verdicts: Vec<_> =
        run.trail.iter().filter(to_site).map(|record| record["verdict"].clone()).collect();
    assert_eq!(verdicts, ["allow", "allow"], "{:#?}", run.trail);
    let named =
        run.trail.iter().filter(to_site).all(|record| {
            record["object"]["host"] == "v4.test" && record["rule"]["host"] == "v4.test"
        });
    assert!(named, "{:#?}", run.trail);
}

#[test]
fn no_decision_is_made_under_half_a_policy() {
    const CHANGES: usize = 25;
    let scene = Scene::new();
    let policy = |name: &str| {
        scene.allowing_attack(&format!(
            "{{ host: {name}, port: 8 }}, {{ host: api.test, port: 7 }}, {{ host: a{name}, port: 9 }}"
        ))
    };
    let attack = scene.attack();
    let script = format!(
        "echo begun; while [ ! -e stop ]; do {attack} resolve=api.test connect-name=api.test:7; done"
    );
    let mut running =
        Clawbox::new(&scene.world, &policy("x.test")).spawn(&["/bin/sh", "-c", &script]);
    assert_eq!(running.line(), "begun");
    for number in 0..CHANGES {
        changes(&scene, &running, &policy(&format!("n{number}.test")));
    }
    std::fs::write(scene.world.work().join("stop"), "").unwrap();
    let run = running.wait();
    // A kernel that preempts tracing programs (7.x) may leave one out of an exec: that process is nobody
    // and denied, and the trail has a gap for it.
    let left_out: u64 = run
        .trail
        .iter()
        .filter(|record| record["object"]["kind"] == "exec-hook")
        .filter_map(|record| record["object"]["count"].as_u64())
        .sum();
    let (nobodys, denied): (Vec<_>, Vec<_>) =
        run.denials().into_iter().partition(|record| record["reason"] == "no-identity");
    assert!(denied.is_empty(), "{denied:#?}");
    let nobodys: BTreeSet<u64> =
        nobodys.iter().filter_map(|record| record["subject"]["pid"].as_u64()).collect();
    assert!(nobodys.len() as u64 <= left_out, "{nobodys:?}: {:#?}", run.trail);
    let connected =
        run.records("connect").iter().filter(|record| record["object"]["port"] == ECHO).count();
    assert!(connected > 0, "{:#?}", run.trail);
    let is_nobodys = |line: &str| {
        let said: Value = serde_json::from_str(line).unwrap_or_default();
        // It asks no name either: what it resolves, first and to connect, is refused too.
        left_out > 0 && (said["outcome"] == "EPERM" || said["outcome"] == "failed")
    };
    let failed: Vec<&str> = run
        .stdout
        .lines()
        .filter(|line| *line != "begun" && !line.contains("\"ok\"") && !is_nobodys(line))
        .collect();
    assert_eq!(failed, Vec::<&str>::new());
}

#[test]
fn who_asks_for_a_sandbox_that_is_not_there_is_told_which_are() {
    let scene = Scene::new();
    let mut running =
        Clawbox::new(&scene.world, &scene.policy("")).spawn(&["/bin/sh", "-c", "echo on; cat"]);
    assert_eq!(running.line(), "on");
    let file = scene.world.private().join("next.yaml");
    std::fs::write(&file, scene.policy("")).unwrap();
    let output = set_file(&scene.world.entry(), "no-such-sandbox", &file);
    let said: Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2));
    let first = &said["errors"][0];
    assert_eq!(first["what"], "no sandbox `no-such-sandbox` is running here", "{said}");
    assert_eq!(first["why"], format!("running: {}", running.run()), "{said}");
    assert_eq!(running.wait().status, 0);
}

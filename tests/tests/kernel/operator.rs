//! The operator's day: a denial is told, explained, and allowed by the command that is offered.

use std::fs;
use std::os::unix::fs::chown;
use std::path::Path;
use std::process::Command;

use clawbox_tests::clawbox::{Clawbox, program};
use clawbox_tests::daemon::Daemon;
use clawbox_tests::network::{ELSEWHERE, NOBODY, World};
use serde_json::Value;

use crate::daemon::{Dialler, output, to_site};
use crate::scene::Scene;

/// A verb of clawbox that is not `run`, on the host that clawbox runs on: status, output, errors.
pub fn clawbox(world: &World, arguments: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(program());
    command.args(arguments).env_remove("LD_LIBRARY_PATH");
    world.enter(&mut command);
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// A script that says a word to an echo service and prints what comes back.
fn said_to(host: &str, port: u16) -> [String; 3] {
    let script = format!("exec 3<>/dev/tcp/{host}/{port} && echo word >&3 && head -n1 <&3");
    ["/bin/bash".to_owned(), "-c".to_owned(), script]
}

fn why(world: &World, trail: &Path) -> Value {
    let (status, out, err) =
        clawbox(world, &["why", "--trail", trail.to_str().unwrap(), "--format", "json"]);
    assert_eq!(status, 0, "{err}");
    serde_json::from_str(&out).unwrap()
}

#[test]
fn a_denial_is_told_at_the_end_explained_and_allowed_by_the_command_that_is_offered() {
    let scene = Scene::new();
    let directory = scene.world.private();
    let (policy, trail) = (directory.join("agent.yaml"), directory.join("agent.jsonl"));
    fs::write(&policy, scene.allowing("/bin/bash", "{ host: v4.test, port: 8 }")).unwrap();
    let run = |argument: &str| {
        let run = Clawbox::with_policy_file(&scene.world, policy.clone()).without_trail();
        let run = run.without_refusals().argument("--audit").argument(&trail).argument(argument);
        run.run(&said_to("v4.test", 7))
    };
    let denied = run("--audit-level=denials");
    assert_ne!(denied.status, 0);
    for says in ["1 × connect v4.test:7/tcp by /usr/bin/bash (unknown-endpoint)", "why --trail "] {
        assert!(denied.stderr.contains(says), "{says}: {}", denied.stderr);
    }
    assert!(!run("--quiet").stderr.contains("unknown-endpoint"));
    let told = why(&scene.world, &trail);
    assert_eq!(told["event"]["reason"], "unknown-endpoint", "{told}");
    assert_eq!(told["explained"]["nearest"]["differs"], serde_json::json!(["port 7 is not 8"]));
    assert_eq!(told["chain"][0]["path"], "/bin/bash", "{told}");
    let command = told["command"].as_str().unwrap().strip_prefix("clawbox ").unwrap();
    let words: Vec<&str> = command.split(' ').chain(["--yes"]).collect();
    let (status, out, err) = clawbox(&scene.world, &words);
    assert_eq!(status, 0, "{out}{err}");
    assert!(out.contains("+") && fs::read_to_string(&policy).unwrap().contains("allowed bash"));
    let allowed = run("--audit-level=denials");
    assert_eq!((allowed.status, allowed.stdout.as_str()), (0, "word\n"), "{allowed:?}");
    let now = why(&scene.world, &trail);
    assert_eq!(now["explained"]["verdict"], "allow", "{now}");
}

#[test]
fn each_verb_that_asks_whose_home_it_is_can_be_told() {
    let world = World::new();
    let file = world.private().join("agent.yaml");
    let (status, text, _) = clawbox(&world, &["profile", "show", "codex"]);
    assert_eq!(status, 0);
    fs::write(&file, text).unwrap();
    let file = file.to_str().unwrap();
    let verbs: [&[&str]; 5] = [
        &["policy", "check", file],
        &["policy", "lint", file],
        &["policy", "diff", file, file],
        &["policy", "explain", file, "--binary", "/bin/ls", "--host", "x.test", "--port", "7"],
        &["why", "--policy", file, "/bin/ls", "x.test:7"],
    ];
    for verb in verbs {
        let (status, out, err) = clawbox(&world, verb);
        assert!(status == 2 && (out + &err).contains("--user"), "{verb:?}: {err}");
        let words: Vec<&str> = verb.iter().copied().chain(["--user", "nobody"]).collect();
        let (status, out, err) = clawbox(&world, &words);
        assert_ne!(status, 2, "{verb:?}: {out}{err}");
        assert!(!(out + &err).contains("whose home"), "{verb:?}");
    }
}

#[test]
fn assertions_that_name_no_policy_are_told_how_to_name_one() {
    let world = World::new();
    let assertions = world.private().join("assertions.yaml");
    fs::write(&assertions, "tests: [{ deny: any → a.test:443 }]\n").unwrap();
    let (status, _, err) = clawbox(&world, &["policy", "test", assertions.to_str().unwrap()]);
    assert!(status == 2 && err.contains("names no policy; write `policy: FILE`"), "{err}");
}

/// A command that speaks to a host, writes what it hears beside it, makes and removes a directory in
/// another one without opening anything there, and looks at a key.
fn agent(scene: &Scene) -> (String, String) {
    let [vault, spare] = ["vault", "spare"].map(|name| scene.world.bin().join(name));
    for path in [&vault, &spare] {
        fs::create_dir(path).unwrap();
    }
    chown(&spare, Some(NOBODY), Some(NOBODY)).unwrap();
    let spare = spare.display();
    let key = vault.join("id_rsa").display().to_string();
    fs::write(&key, "secret\n").unwrap();
    let script = format!(
        "exec 3<>/dev/tcp/v4.test/7 && echo word >&3 && head -n1 <&3 > heard && cat heard /etc/passwd \
         && mkdir {spare}/made && rmdir {spare}/made && echo emptied && cat {key} 2>/dev/null || true"
    );
    (script, key)
}

#[test]
fn what_was_learned_from_a_command_lints_and_lets_the_same_command_run_and_not_see_the_secret() {
    let scene = Scene::new();
    let world = &scene.world;
    let (script, key) = agent(&scene);
    let directory = world.private();
    let path = |name: &str| directory.join(name).display().to_string();
    let (policy, trail, workdir) = (path("learned.yaml"), path("learn.jsonl"), world.work());
    let dns = format!("{}:{}", clawbox_tests::network::NAMESERVER, clawbox_tests::names::PORT);
    let options =
        ["learn", "--user", "nobody", "--workdir", workdir.to_str().unwrap(), "--dns", &dns];
    let places = ["-o", &policy, "--audit", &trail, "--", "/bin/bash", "-c", &script];
    let (status, out, err) = clawbox(world, &[&options[..], &places].concat());
    assert_eq!(status, 0, "{out}{err}");
    assert!(out.starts_with("word\n") && out.ends_with("secret\n"), "{out}");
    assert!(err.contains("left out") && err.contains(&key), "{err}");
    // Of the policy that it was learned under there is nothing to be looked up.
    assert!(!err.contains("policy check"), "{err}");
    let text = fs::read_to_string(&policy).unwrap();
    let says = ["host: \"v4.test\", port: 7", "/usr/bin/bash", "seen: 1 connection", "run_as_user"];
    for says in says {
        assert!(text.contains(says), "{says}: {text}");
    }
    assert!(!text.contains("93.184."), "{text}");
    let (status, out, err) = clawbox(world, &["policy", "lint", &policy]);
    assert_eq!(status, 0, "{out}{err}");
    let run = Clawbox::with_policy_file(world, policy.clone().into());
    let run = run.run(&["/bin/bash", "-c", &script]);
    assert!(
        run.stdout.starts_with("word\n") && run.stdout.ends_with("emptied\n"),
        "{run:?} {text}"
    );
    // There is no terminal either way, and so nothing to learn of it.
    let left_out = [key.as_str(), "/dev/tty"];
    let is_left_out =
        |record: &&&Value| left_out.iter().any(|path| record["object"]["path"] == *path);
    let denials = run.denials();
    assert!(denials.iter().all(|record| is_left_out(&record)), "{denials:?} {text}");
}

#[test]
fn a_denial_under_the_daemon_is_explained_to_its_owner_and_by_the_store_and_allowed_as_it_runs() {
    let scene = Scene::new();
    let daemon = Daemon::start(&scene.world);
    let policy = daemon.policy("one", &to_site(&scene));
    let mut dialler = Dialler::start(daemon.as_nobody(&[]), "one", &policy);
    let elsewhere = ELSEWHERE.to_string();
    assert_eq!(dialler.dial(&elsewhere), "EPERM");
    let is_denied = |records: &[Value]| records.iter().any(|record| record["verdict"] == "deny");
    let _ = daemon.trail_once("one-1", is_denied);
    let (status, out, err) =
        output(daemon.as_nobody(&["why", "--sandbox", "one", "--format", "json"]));
    assert_eq!(status, 0, "{err}");
    let told: Value = serde_json::from_str(&out).unwrap();
    let expected = format!(
        "clawbox policy allow --sandbox one --binary /usr/bin/python3 --endpoint {elsewhere}:7"
    );
    assert_eq!(told["command"], expected.as_str(), "{told}");
    // The same of the host's store, which has it within a second.
    let config = daemon.place("agent.yaml").display().to_string();
    let last = |daemon: &Daemon<'_>| {
        output(daemon.clawbox(&["why", "--config", &config, "--format", "json"]))
    };
    let stored = (0..1_000).map(|_| last(&daemon)).find(|(status, ..)| *status == 0).unwrap().1;
    let stored: Value = serde_json::from_str(&stored).unwrap();
    assert_eq!(stored["event"]["reason"], "unknown-endpoint", "{stored}");
    assert!(stored["event"]["id"].is_u64() && stored["chain"][0]["pid"].is_u64(), "{stored}");
    assert_eq!(stored["command"], expected.replace(" one ", " one-1 ").as_str(), "{stored}");
    // Both say where the sandbox was started, and so what its policy has opened.
    assert_eq!(stored["event"]["workdir"], told["event"]["workdir"], "{stored}");
    assert!(told["event"]["workdir"].as_str().unwrap().starts_with('/'), "{told}");
    let words: Vec<&str> = expected.split(' ').skip(1).chain(["--yes"]).collect();
    let (status, out, err) = output(daemon.as_nobody(&words));
    assert_eq!(status, 0, "{out}{err}");
    assert_eq!(dialler.dial(&elsewhere), "ok");
    assert_eq!(dialler.end(), 0);
}

#[test]
fn an_error_is_told_to_programs_in_one_shape_whatever_is_wrong() {
    let world = World::new();
    let policy = world.private().join("wrong.yaml");
    fs::write(&policy, "version: 1\nfilesystem_polic: {}\n").unwrap();
    let policy = policy.to_str().unwrap();
    // A mistake in a file, one in the command line, and what is not there.
    for (words, place, says) in [
        (
            &["why", "--policy", policy, "curl", "a.test:443"][..],
            "wrong.yaml:2:1",
            "filesystem_polic",
        ),
        (&["why", "--trial", "x"], "clawbox why", "--trial"),
        (&["why", "--trail", "/no/such/trail"], "clawbox why", "cannot read"),
    ] {
        let words = [words, &["--format", "json"]].concat();
        let (status, out, err) = clawbox(&world, &words);
        assert_eq!((status, out.as_str()), (2, ""), "{words:?}: {err}");
        let told: Value = serde_json::from_str(&err).unwrap_or_else(|why| panic!("{why}: {err}"));
        let first = &told["errors"][0];
        let text = |key: &str| first[key].as_str().unwrap_or_default().to_owned();
        assert!(text("where").ends_with(place) && text("what").contains(says), "{told}");
        let keys: Vec<&String> = first.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["what", "where", "why", "fix"], "{told}");
    }
}

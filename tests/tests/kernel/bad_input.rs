//! What cannot be enforced is not started: one message that names the remedy, the documented exit
//! status, and nothing left behind.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;

use clawbox_tests::clawbox::{Clawbox, program};
use clawbox_tests::network::NOBODY;

use crate::scene::Scene;

/// Asserts that a run was refused with these words and started nothing.
#[track_caller]
fn refused(run: &clawbox_tests::clawbox::Finished, what: &str, words: &[&str]) {
    assert_eq!(run.status, 125, "{what}: {}", run.stderr);
    assert_eq!(run.stdout, "", "{what}");
    for word in words {
        assert!(run.stderr.contains(word), "{what}: no `{word}` in: {}", run.stderr);
    }
    let told = run.stderr.lines().filter(|line| line.starts_with("clawbox: ")).count();
    assert_eq!(told, 1, "{what}: {}", run.stderr);
    assert!(run.trail.iter().all(|record| record["action"] != "exec"), "{what}: {:?}", run.trail);
}

#[test]
fn a_policy_that_is_none_is_refused_with_its_place_and_remedy() {
    let scene = Scene::new();
    let good = scene.allowing("/usr/bin/true", "{ host: api.test, port: 7 }");
    let rule = |endpoint: &str| scene.allowing("/usr/bin/true", endpoint).into_bytes();
    let bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n".to_owned()
        + &(b'b'..=b'i')
            .map(|name| {
                let (name, before) = (char::from(name), char::from(name - 1));
                format!("{name}: &{name} [*{before}, *{before}, *{before}, *{before}, *{before}, *{before}, *{before}, *{before}, *{before}]\n")
            })
            .collect::<String>();
    let cases: [(&str, Vec<u8>, &[&str]); 12] = [
        ("empty", Vec::new(), &["version"]),
        ("blank", b"\n  \n# nothing\n".to_vec(), &["version"]),
        ("truncated", good.as_bytes()[..good.len() - 20].to_vec(), &["policy.yaml:"]),
        ("oversized", format!("{good}# {}\n", "x".repeat(300 * 1024)).into_bytes(), &["256 KiB"]),
        ("binary", (0..=255).cycle().take(4096).collect(), &["UTF-8"]),
        ("duplicate", format!("{good}version: 1\n").into_bytes(), &["version", "policy.yaml:"]),
        ("bomb", format!("version: 1\n{bomb}").into_bytes(), &["alias"]),
        (
            "unknown field",
            format!("{good}netwrok: []\n").into_bytes(),
            &["netwrok", "policy.yaml:"],
        ),
        ("port 0", rule("{ host: api.test, port: 0 }"), &["port", "policy.yaml:"]),
        ("*.com", rule("{ host: \"*.com\", port: 443 }"), &["*.com", "policy.yaml:"]),
        ("other version", b"version: 2\n".to_vec(), &["version"]),
        ("not a mapping", b"- 1\n- 2\n".to_vec(), &["policy.yaml:1:"]),
    ];
    for (what, bytes, words) in cases {
        let file = scene.world.private().join("policy.yaml");
        std::fs::write(&file, bytes).unwrap();
        let run = Clawbox::with_policy_file(&scene.world, file).run(&["/usr/bin/true"]);
        refused(&run, what, words);
        assert!(run.trail.is_empty(), "{what}");
    }
    let missing = PathBuf::from("/no/such/policy.yaml");
    let run = Clawbox::with_policy_file(&scene.world, missing).run(&["/usr/bin/true"]);
    refused(&run, "missing", &["/no/such/policy.yaml"]);
    let directory = scene.world.private();
    let run = Clawbox::with_policy_file(&scene.world, directory).run(&["/usr/bin/true"]);
    refused(&run, "directory", &["private"]);
}

#[test]
fn a_binary_that_is_not_there_admits_nobody_and_is_said() {
    let scene = Scene::new();
    let policy = scene.allowing("/no/such/binary", "{ host: api.test, port: 7 }");
    let run = Clawbox::new(&scene.world, &policy).run(&[&scene.attack(), "tcp=api.test:7"]);
    assert_eq!(run.status, 0);
    assert!(run.stderr.contains("/no/such/binary"), "{}", run.stderr);
    assert!(run.stderr.contains("admits nobody"), "{}", run.stderr);
    assert!(run.stdout.contains("\"EPERM\""), "{}", run.stdout);
    scene.nothing_arrived();
}

#[test]
fn arguments_that_cannot_be_meant_are_refused_before_anything_is_started() {
    let scene = Scene::new();
    let policy = scene.policy("");
    let clawbox = || Clawbox::new(&scene.world, &policy);
    let command = ["/usr/bin/true"];
    let cases = [
        ("unknown user", clawbox().user(Some("no-such-user")), "--user"),
        ("root", clawbox().user(Some("root")), "--user"),
        ("uid 0", clawbox().user(Some("0:0")), "--user"),
        ("unknown group", clawbox().user(Some("nobody:no-such-group")), "--user"),
        ("missing workdir", clawbox().workdir("/no/such/directory".as_ref()), "--workdir"),
        ("a file as workdir", clawbox().workdir("/etc/passwd".as_ref()), "--workdir"),
        ("name", clawbox().argument("--name").argument("../../etc"), "1 to 64"),
        (
            "audit below a file",
            clawbox().without_trail().argument("--audit").argument("/etc/passwd/trail"),
            "--audit",
        ),
        (
            "audit in proc",
            clawbox().without_trail().argument("--audit").argument("/proc/trail"),
            "--audit",
        ),
        (
            "audit through a link",
            {
                let link = scene.world.private().join("link");
                std::os::unix::fs::symlink("/etc/passwd", &link).unwrap();
                clawbox().without_trail().argument("--audit").argument(link)
            },
            "--audit",
        ),
        (
            "preset",
            clawbox().argument("--preset").argument("/no/such/preset.yaml"),
            "/no/such/preset.yaml",
        ),
    ];
    for (what, run, word) in cases {
        refused(&run.run(&command), what, &[word]);
    }
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap();
    assert!(!passwd.contains("\"seq\""), "the trail was written through the link");
}

#[test]
fn usage_errors_have_clawboxs_own_status() {
    let scene = Scene::new();
    let policy = scene.policy("");
    for (argument, word) in
        [("--dns=banana", "--dns"), ("--mode=maybe", "--mode"), ("--no-such", "--no-such")]
    {
        let run = Clawbox::new(&scene.world, &policy).argument(argument).run(&["/usr/bin/true"]);
        assert_eq!(run.status, 125, "{argument}: {}", run.stderr);
        assert!(run.stderr.contains(word), "{}", run.stderr);
        assert!(run.trail.is_empty());
    }
}

#[test]
fn without_root_nothing_is_enforced_and_nothing_is_run() {
    let scene = Scene::new();
    let copy = scene.world.install(&program(), "clawbox");
    let policy = scene.world.work().join("policy.yaml");
    std::fs::write(&policy, scene.policy("")).unwrap();
    let output = std::process::Command::new(copy)
        .arg("run")
        .arg("--policy")
        .arg(&policy)
        .args(["--", "/usr/bin/echo", "ran"])
        .uid(NOBODY)
        .gid(NOBODY)
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(125), "{stderr}");
    assert!(output.stdout.is_empty());
    assert!(stderr.contains("root") && stderr.contains("sudo"), "{stderr}");
}

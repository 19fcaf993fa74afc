//! `clawbox why` and `clawbox policy allow` as a user runs them, without a kernel that enforces.

#![expect(clippy::unwrap_used, reason = "a test's helpers may fail as the test does")]

use std::path::Path;
use std::process::{Command, Output};

const POLICY: &str = "version: 1\n# Mine.\nfilesystem_policy:\n  read_only: [/usr]\n\
    process: { run_as_user: nobody }\nnetwork_policies:\n  api:\n    endpoints:\n      \
    - { host: api.example.com, port: 443 }\n    binaries: [{ path: /opt/none/fetch }]\n";

fn clawbox(directory: &Path, arguments: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_clawbox"));
    let Output { status, stdout, stderr } =
        command.args(arguments).current_dir(directory).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

#[test]
fn a_denial_that_has_not_happened_is_explained_with_a_command_that_then_allows_it() {
    let directory = tempfile::tempdir().unwrap();
    let here = directory.path();
    std::fs::write(here.join("p.yaml"), POLICY).unwrap();
    for question in [
        &["/opt/none/other", "api.example.com:443"][..],
        &["fetch", "--read", "/srv/nothing/here"],
        &["fetch", "--write", "/srv/out"],
    ] {
        let arguments = [&["why", "--policy", "p.yaml"], question].concat();
        let (code, out, err) = clawbox(here, &arguments);
        assert_eq!(code, 0, "{err}");
        assert!(out.starts_with("denied: "), "{out}");
        let command = out.lines().find_map(|line| line.trim().strip_prefix("allow"));
        let words = command.unwrap().trim().strip_prefix("clawbox ").unwrap();
        let words: Vec<&str> = words.split(' ').chain(["--yes"]).collect();
        let (code, shown, err) = clawbox(here, &words);
        assert_eq!(code, 0, "{err}");
        assert!(shown.contains("\n+"), "{shown}");
        assert!(clawbox(here, &arguments).1.starts_with("allowed: "), "{question:?}");
        let (code, _, err) = clawbox(here, &words);
        assert!(code == 0 && err.contains("allows it already"), "{err}");
    }
    let text = std::fs::read_to_string(here.join("p.yaml")).unwrap();
    assert!(
        text.contains("# Mine.") && text.contains("read_only: [/usr, \"/srv/nothing"),
        "{text}"
    );
}

#[test]
fn what_cannot_be_allowed_is_refused_with_the_reason_and_nothing_is_written() {
    let directory = tempfile::tempdir().unwrap();
    let here = directory.path();
    let closed = POLICY.replace("read_only: [/usr]", "read_only: [/usr]\n  deny: [~/.ssh]");
    std::fs::write(here.join("p.yaml"), &closed).unwrap();
    for (arguments, says) in [
        (&["--read", "~/.ssh/id"][..], "still denied: closed-file"),
        (&["--binary", "curl", "--endpoint", "169.254.169.254:80"], "169.254.169.254"),
        (&["--binary", "curl", "--endpoint", "nowhere"], "has no port"),
        (&["--binary", "curl"], "name what to allow"),
    ] {
        let arguments = [&["policy", "allow", "p.yaml", "--yes"], arguments].concat();
        let (code, out, err) = clawbox(here, &arguments);
        assert!(code == 2 && err.contains(says), "{says}: {code} {out} {err}");
    }
    assert_eq!(std::fs::read_to_string(here.join("p.yaml")).unwrap(), closed);
}

#[test]
fn without_a_denial_there_is_nothing_to_explain() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("empty.jsonl"), "").unwrap();
    let (code, out, _) = clawbox(directory.path(), &["why", "--trail", "empty.jsonl"]);
    assert_eq!((code, out.as_str()), (1, "nothing was denied\n"));
    let (code, _, err) = clawbox(directory.path(), &["why", "--trail", "none.jsonl"]);
    assert!(code == 2 && err.contains("none.jsonl"), "{err}");
    let (code, _, err) = clawbox(directory.path(), &["why", "curl", "a.test:443"]);
    assert!(code == 2 && err.contains("name the policy"), "{err}");
}

//! `clawbox preset` and `profile` as a user runs them: exit codes, both formats, and the file before and after.

#![expect(clippy::unwrap_used, reason = "a test's helpers may fail as the test does")]

use std::process::{Command, Output, Stdio};

fn clawbox(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_clawbox"));
    command.args(arguments).stdin(Stdio::null());
    // The only settings that count here.
    command.env("PIP_INDEX_URL", "https://user:hunter2@pip.example:8443/simple");
    command.output().unwrap()
}

#[track_caller]
fn said(arguments: &[&str], code: i32) -> (String, String) {
    let output = clawbox(arguments);
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let (out, err) = (text(output.stdout), text(output.stderr));
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {out}{err}");
    assert!(!out.contains("hunter2") && !err.contains("hunter2"), "{out}{err}");
    (out, err)
}

const POLICY: &str = "# Mine.\nversion: 1\n\nnetwork_policies:\n  own: # first\n    endpoints: [{ host: own.example, port: 443 }]\n    binaries: [{ path: /usr/bin/own }]\n# The end.\n";

#[test]
fn a_preset_is_shown_added_used_and_removed_without_a_trace() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("policy.yaml");
    let path = file.to_str().unwrap();
    let read = || std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, POLICY).unwrap();

    let (out, err) = said(&["preset", "add", "pypi", path, "--dry-run"], 0);
    assert!(out.contains("+      - { host: \"pip.example\", port: 8443, sni: verify }"), "{out}");
    assert!(err.contains("hosts from the settings of pip: "), "{err}");
    assert_eq!(read(), POLICY);
    let (_, err) = said(&["preset", "add", "pypi", path], 2);
    assert!(err.contains("--yes") && err.contains("--dry-run"), "{err}");
    assert_eq!(read(), POLICY);

    said(&["preset", "add", "pypi", path, "--yes"], 0);
    said(&["preset", "add", "slack", path, "--yes"], 0);
    let added = read();
    let (_, err) = said(&["preset", "add", "slack", path, "--yes"], 2);
    assert!(err.contains("is in the policy already"), "{err}");
    assert_eq!(read(), added);
    let asked = ["--binary", "/usr/bin/pip3", "--host", "pip.example", "--port", "8443"];
    let (out, _) = said(&[&["policy", "explain", path], &asked[..]].concat(), 0);
    assert!(out.starts_with("allow"), "{out}");

    said(&["preset", "remove", "pypi", path, "--yes"], 0);
    let asked = ["--binary", "/usr/bin/pip3", "--host", "pip.example", "--port", "8443"];
    said(&[&["policy", "explain", path], &asked[..]].concat(), 1);
    said(&["preset", "remove", "slack", path, "--yes"], 0);
    assert_eq!(read(), POLICY);
    said(&["preset", "remove", "slack", path, "--yes"], 2);
}

#[test]
fn a_preset_by_name_or_by_file_is_merged_where_a_policy_is_looked_at() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("policy.yaml");
    std::fs::write(&file, POLICY).unwrap();
    let path = file.to_str().unwrap();
    let asked = ["--binary", "/usr/bin/node", "--host", "slack.com", "--port", "443"];
    let explain = [&["policy", "explain", path], &asked[..]].concat();
    said(&explain, 1);
    said(&[&explain[..], &["--preset", "slack"]].concat(), 0);
    let (text, _) = said(&["preset", "show", "slack"], 0);
    let own = directory.path().join("own.yaml");
    std::fs::write(&own, text).unwrap();
    said(&[&explain[..], &["--preset", own.to_str().unwrap()]].concat(), 0);
    let (out, err) = said(&[&explain[..], &["--preset", "slak"]].concat(), 2);
    assert!(format!("{out}{err}").contains("did you mean `slack`?"), "{out}{err}");
}

#[test]
fn what_is_built_in_is_listed_and_shown_to_people_and_to_programs() {
    for (verb, known) in [("preset", "github"), ("profile", "openclaw")] {
        let (out, _) = said(&[verb, "list"], 0);
        assert!(out.lines().any(|line| line.starts_with(known)), "{out}");
        let (out, _) = said(&[verb, "list", "--format", "json"], 0);
        let all: serde_json::Value = serde_json::from_str(&out).unwrap();
        let listed = all.as_array().unwrap().iter().find(|about| about["name"] == known).unwrap();
        assert_eq!(listed.get("text"), None);
        let (text, _) = said(&[verb, "show", known], 0);
        let (out, _) = said(&[verb, "show", known, "--format", "json"], 0);
        let about: serde_json::Value = serde_json::from_str(&out).unwrap();
        assert_eq!(about["text"], text);
        said(&[verb, "show", "nothing-like-it"], 2);
    }
    let (out, _) = said(&["preset", "show", "pypi", "--resolved"], 0);
    assert!(out.contains("port: 8443") && !out.contains("host_from"), "{out}");
}

#[test]
fn a_profile_and_a_policy_exclude_each_other() {
    let (_, err) = said(&["run", "--profile", "codex", "--policy", "p.yaml", "--", "true"], 125);
    assert!(err.contains("cannot be used with"), "{err}");
}

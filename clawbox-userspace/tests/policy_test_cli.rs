//! `clawbox policy test` as CI runs it: exit codes, what is printed, and JSON for machines.

#![expect(clippy::unwrap_used, reason = "a test's helpers may fail as the test does")]

use std::path::Path;
use std::process::{Command, Output};

const POLICY: &str = "version: 1\nfilesystem_policy:\n  read_only: [/usr]\n  deny: [~/.ssh]\n\
    network_policies:\n  api:\n    endpoints: [{ host: api.example.com, port: 443 }]\n    \
    binaries: [{ path: /opt/none/fetch }]\n";

fn test(directory: &Path, tests: &str, arguments: &[&str]) -> (i32, String, String) {
    std::fs::write(directory.join("agent.yaml"), POLICY).unwrap();
    std::fs::write(directory.join("agent.test.yaml"), tests).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_clawbox"));
    command.args(["policy", "test", "agent.test.yaml", "--user", "nobody"]).args(arguments);
    let Output { status, stdout, stderr } = command.current_dir(directory).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

#[test]
fn assertions_that_hold_exit_0_and_those_that_do_not_1_with_what_differs() {
    let directory = tempfile::tempdir().unwrap();
    let (code, out, _) = test(
        directory.path(),
        "tests:\n  - allow: fetch → api.example.com:443\n  - deny: any -> api.example.com:443\n    \
         reason: other-binary\n  - allow: fetch -> api.example.com:443\n    rule: api\n  \
         - deny: fetch → api.example.com:444\n  - allow: any → read /usr/x\n  \
         - deny: any → write /usr/x\n  - deny: any → read ~/.ssh/id\n",
        &[],
    );
    assert_eq!((code, out.matches("ok    ").count()), (0, 7), "{out}");
    assert!(out.ends_with("agent.test.yaml: 7 of 7 hold under agent.yaml\n"), "{out}");
    let (code, out, _) = test(
        directory.path(),
        "tests:\n  - deny: fetch → api.example.com:443\n  - allow: any → api.example.com:443\n",
        &[],
    );
    assert_eq!(code, 1);
    assert!(out.contains("FAIL  deny: fetch → api.example.com:443  agent.test.yaml:2:11"), "{out}");
    assert!(out.contains("it is allow: rule for /opt/none/fetch by network_policies.api"), "{out}");
    assert!(out.contains("it is deny: other-binary for /any/program"), "{out}");
}

#[test]
fn a_file_that_is_none_exits_2_and_says_where_and_what_to_write() {
    let directory = tempfile::tempdir().unwrap();
    for (tests, says) in [
        ("tests: []\n", "agent.test.yaml: error: the file asserts nothing"),
        ("tests:\n  - {}\n", "agent.test.yaml:2:5: error: an assertion has either"),
        ("tests:\n  - allow: curl\n", "agent.test.yaml:2:12: error: `curl` has no arrow; write"),
        ("tests:\n  - alow: curl\n", "unknown key `alow`; did you mean `allow`?"),
        ("policy: other.yaml\ntests:\n  - allow: a → b:1\n", "other.yaml"),
    ] {
        let (code, _, err) = test(directory.path(), tests, &[]);
        assert_eq!(code, 2, "{err}");
        assert!(err.contains(says), "{says}: {err}");
    }
}

#[test]
fn machines_get_each_assertion_and_what_was_found() {
    let directory = tempfile::tempdir().unwrap();
    let tests = "tests:\n  - allow: fetch → api.example.com:80\n";
    let (code, out, _) = test(directory.path(), tests, &["--format", "json"]);
    let told: serde_json::Value = serde_json::from_str(&out).unwrap();
    let found = &told[0]["tests"][0];
    assert_eq!((code, &found["holds"], &found["line"]), (1, &false.into(), &2.into()));
    assert_eq!(found["found"]["reason"], "unknown-endpoint");
}

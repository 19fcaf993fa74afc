//! `clawbox policy lint`, `diff` of two files and `replay` as a user runs them.

#![expect(clippy::unwrap_used, reason = "a test's helpers may fail as the test does")]

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

fn clawbox(directory: &Path, arguments: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_clawbox"));
    command.arg("policy").args(arguments).current_dir(directory);
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

fn policy(endpoints: &str, files: &str) -> String {
    format!(
        "version: 1\nfilesystem_policy: {{ {files} }}\nnetwork_policies:\n  api:\n    \
         endpoints: [{endpoints}]\n    binaries: [{{ path: /opt/none/fetch }}]\n"
    )
}

const ONE: &str = "{ host: a.test, port: 443 }";
const OTHER: &str = "{ host: a.test, port: 443, sni: verify }, { host: b.test, port: 80 }";

#[test]
fn lint_exits_0_for_clean_1_for_findings_2_for_not_loading() {
    let directory = tempfile::tempdir().unwrap();
    let here = directory.path();
    std::fs::write(here.join("clean.yaml"), policy(ONE, "read_only: [/usr]")).unwrap();
    std::fs::write(here.join("wide.yaml"), policy(ONE, "read_only: [/usr, /]")).unwrap();
    std::fs::write(here.join("broken.yaml"), "version: 2\n").unwrap();
    for (file, code, says) in [
        ("clean.yaml", 0, "clean.yaml: clean"),
        ("wide.yaml", 1, "wide.yaml:2:40: warning: the whole of `/` may be read"),
        ("broken.yaml", 2, "broken.yaml"),
    ] {
        let (found, out, err) = clawbox(here, &["lint", file]);
        assert!(
            found == code && format!("{out}{err}").contains(says),
            "{file}: {found} {out}{err}"
        );
    }
    let (_, out, _) = clawbox(here, &["lint", "wide.yaml", "--format", "json"]);
    let told: Value = serde_json::from_str(&out).unwrap();
    let checks = told[0]["findings"].as_array().unwrap();
    assert!(checks.iter().any(|found| found["check"] == "broad"), "{told}");
}

#[test]
fn two_files_differ_by_what_they_mean_and_not_by_how_they_are_written() {
    let directory = tempfile::tempdir().unwrap();
    let here = directory.path();
    std::fs::write(here.join("one.yaml"), policy(ONE, "read_only: [/usr, /srv]")).unwrap();
    std::fs::write(here.join("same.yaml"), policy(ONE, "read_only: [ /srv, /usr ]")).unwrap();
    std::fs::write(here.join("next.yaml"), policy(OTHER, "read_only: [/usr]")).unwrap();
    assert_eq!(clawbox(here, &["diff", "one.yaml", "same.yaml"]).0, 0);
    let (code, out, _) = clawbox(here, &["diff", "one.yaml", "next.yaml"]);
    assert_eq!(code, 1);
    for says in [
        "+ /opt/none/fetch → b.test:80  network_policies.api.endpoints[1]",
        "- any → read /srv",
        "~ /opt/none/fetch → a.test:443  unconditionally → `sni: verify`",
    ] {
        assert!(out.contains(says), "{says}: {out}");
    }
    assert_eq!(out.lines().count(), 3, "{out}");
    let (code, _, err) = clawbox(here, &["diff", "one.yaml", "none.yaml"]);
    assert!(code == 2 && err.contains("none.yaml"), "{err}");
}

const TRAIL: &str = r#"
{"time":"2026-01-01T00:00:01.000000Z","seq":1,"sandbox":"a","class":"network","action":"connect","verdict":"allow","reason":"rule","subject":{"pid":11,"uid":1,"exe":"/opt/none/fetch","exe_id":"0:1:2"},"object":{"host":"a.test","ip":"192.0.2.1","port":443,"transport":"tcp"}}
{"time":"2026-01-01T00:00:02.000000Z","seq":2,"sandbox":"a","class":"network","action":"connect","verdict":"deny","reason":"unknown-endpoint","subject":{"pid":11,"uid":1,"exe":"/opt/none/fetch","exe_id":"0:1:2"},"object":{"host":"b.test","ip":"192.0.2.1","port":80,"transport":"tcp"}}
{"time":"2026-01-01T00:00:03.000000Z","seq":3,"sandbox":"a","class":"file","action":"open","verdict":"allow","reason":"rule","subject":{"pid":11,"uid":1,"exe":"/opt/none/fetch","exe_id":"0:1:2"},"object":{"path":"/srv/x","id":"0:1:3","access":["read"]}}
{"time":"2026-01-01T00:00:03.000000Z","seq":5,"sandbox":"a","class":"file","action":"summary","verdict":"allow","reason":"rule","object":{"program":"/opt/none/fetch","program_id":"0:1:2","directory":"/","directory_id":"0:1:1","reads":2,"writes":0,"executes":0,"first":"2026-01-01T00:00:01.000000Z","last":"2026-01-01T00:00:02.000000Z"}}
{"time":"2026-01-01T00:00:04.000000Z","seq":4,"sandbox":"a","class":"network","action":"socket","verdict":"deny","reason":"socket-kind","subject":{"pid":11,"uid":1,"exe":"/opt/none/fetch","exe_id":"0:1:2"},"object":{"socket_type":3,"protocol":1}}
"#;

#[test]
fn a_trail_is_replayed_under_another_policy_and_what_would_change_is_said() {
    let directory = tempfile::tempdir().unwrap();
    let here = directory.path();
    std::fs::write(here.join("trail.jsonl"), TRAIL).unwrap();
    std::fs::write(here.join("one.yaml"), policy(ONE, "read_only: [/usr, /srv]")).unwrap();
    std::fs::write(here.join("next.yaml"), policy(OTHER, "read_only: [/usr]")).unwrap();
    let (code, out, err) = clawbox(here, &["replay", "trail.jsonl", "--policy", "one.yaml"]);
    assert_eq!(code, 0, "{out}{err}");
    assert!(
        out.starts_with("3 decisions would be the same, 0 kinds would change; 2 records"),
        "{out}"
    );
    let (code, out, _) = clawbox(here, &["replay", "trail.jsonl", "--policy", "next.yaml"]);
    assert_eq!(code, 1);
    assert!(out.contains("would be denied        1 × /opt/none/fetch → read /srv/x"), "{out}");
    assert!(out.contains("would be allowed       1 × /opt/none/fetch → b.test:80"), "{out}");
    let json = ["replay", "trail.jsonl", "--policy", "next.yaml", "--format", "json"];
    let told: Value = serde_json::from_str(&clawbox(here, &json).1).unwrap();
    assert_eq!((&told["same"], &told["changed"][0]["is"]), (&1.into(), &"deny".into()));
}

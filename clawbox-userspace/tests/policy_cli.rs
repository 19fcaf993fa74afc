//! `clawbox policy` as a user runs it: exit codes, both formats, and nothing but text in a pipe.

#![expect(clippy::unwrap_used, reason = "a test's helpers may fail as the test does")]

use std::path::PathBuf;
use std::process::{Command, Output};

fn clawbox(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_clawbox")).arg("policy").args(arguments).output().unwrap()
}

struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn write(&self, name: &str, text: &str) -> String {
        let path: PathBuf = self.0.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

const NETWORK: &str = "network_policies:\n  a:\n    endpoints:\n      - { host: a.example.com, \
                       port: 443 }\n    binaries:\n      - { path: /usr/bin/curl }\n";

#[test]
fn check_exits_0_for_full_1_for_partly_2_for_not_loading() {
    let files = Files::new();
    // Nothing that depends on the machine the test runs on.
    let full = files.write("full.yaml", "version: 1\n");
    let partly = files.write("partly.yaml", "version: 1\nlimits: { pids: 5 }\n");
    let broken = files.write("broken.yaml", "version: 1\nlimit: { pids: 5 }\n");
    for (arguments, code) in [
        (vec!["check", &full], 0),
        (vec!["check", &partly], 1),
        (vec!["check", &broken], 2),
        (vec!["check", "/does/not/exist"], 2),
        (vec!["check", &full, &partly], 1),
        (vec!["check", &full, &broken, &partly], 2),
        (vec!["check", &full, "--preset", &partly], 2),
        (vec!["check"], 2),
    ] {
        let output = clawbox(&arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?} {output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(!text.contains('\x1b'), "colour in a pipe: {text}");
    }
    let output = clawbox(&["check", &broken]);
    let text = String::from_utf8(output.stdout).unwrap();
    let expected = format!("{broken}:2:1: error: unknown key `limit`; did you mean `limits`?\n");
    assert!(text.starts_with(&expected), "{text}");
}

#[test]
fn check_speaks_json_to_machines() {
    let files = Files::new();
    let partly = files.write("partly.yaml", "version: 1\nlimits: { pids: 5 }\n");
    let output = clawbox(&["check", &partly, "--format", "json"]);
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(value[0]["result"], "partly");
    assert_eq!(value[0]["run_refuses"], false);
    assert_eq!(value[0]["parts"][0]["part"], "limits");
    assert_eq!(value[0]["parts"][0]["status"], "not");
    assert_eq!(value[0]["parts"][0]["line"], 2);
}

#[test]
fn explain_gives_the_verdict_and_the_rule() {
    let files = Files::new();
    let policy = files.write("p.yaml", &format!("version: 1\n{NETWORK}"));
    let curl = "/usr/bin/curl";
    for (binary, ancestor, host, port, code, says) in [
        (curl, curl, "a.example.com", "443", 0, "allow: rule"),
        ("/usr/bin/wget", curl, "A.example.com.", "443", 0, "for /usr/bin/curl"),
        ("/usr/bin/wget", "/bin/sh", "a.example.com", "443", 1, "deny: other-binary"),
        (curl, curl, "a.example.com", "80", 1, "deny: unknown-endpoint"),
        (curl, curl, "b.example.com", "443", 1, "deny: unknown-name"),
        (curl, curl, "192.0.2.1", "443", 1, "deny: unknown-endpoint"),
        (curl, curl, "localhost", "443", 1, "deny: loopback"),
        (curl, curl, "::ffff:169.254.169.254", "80", 1, "deny: link-local"),
    ] {
        let output = clawbox(&[
            "explain",
            &policy,
            "--binary",
            binary,
            "--ancestor",
            ancestor,
            "--host",
            host,
            "--port",
            port,
        ]);
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(code), "{host} {text}");
        assert!(text.contains(says), "{host} {text}");
    }
    let output =
        clawbox(&["explain", "/does/not/exist", "--binary", curl, "--host", "a", "--port", "1"]);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn explain_decides_about_files_as_the_kernel_does_from_this_host_s_objects() {
    let files = Files::new();
    let policy = files.write(
        "p.yaml",
        "version: 1\nfilesystem_policy:\n  read_only: [/usr]\n  read_write: [/var]\n  \
         deny: [/var/no/such, \"**/.env\"]\n  \
         rules: [{ binaries: [{ path: /usr/bin/git }], read_only: [/etc] }]\n",
    );
    for (binary, path, access, code, says) in [
        ("/usr/bin/cat", "/usr/bin/../lib", "read", 0, "the rule at /usr decides"),
        ("/usr/bin/cat", "/usr/lib", "write", 1, "deny: read-only"),
        ("/usr/bin/cat", "/var/new", "write", 0, "the rule at /var decides"),
        ("/usr/bin/cat", "/var/new", "execute", 1, "deny: writable-program"),
        ("/usr/bin/cat", "/var/no/such/thing", "read", 1, "deny: closed-file"),
        ("/usr/bin/cat", "/var/a/.env", "read", 1, "deny: closed-file"),
        ("/usr/bin/cat", "/etc/passwd", "read", 1, "deny: unknown-file"),
        ("/usr/bin/git", "/etc/passwd", "read", 0, "the rule at /etc decides"),
    ] {
        let command = ["explain", &policy, "--binary", binary, "--path", path, "--access", access];
        let output = clawbox(&command);
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(code), "{path} {access}: {text}");
        assert!(text.contains(says), "{path} {access}: {text}");
    }
}

#[test]
fn explain_says_that_a_rule_is_there_but_denied_entirely() {
    let files = Files::new();
    let narrow = NETWORK.replace("port: 443", "port: 443, access: read-only");
    let policy = files.write("p.yaml", &format!("version: 1\n{narrow}"));
    let output = clawbox(&[
        "explain",
        &policy,
        "--binary",
        "/usr/bin/curl",
        "--host",
        "a.example.com",
        "--port",
        "443",
    ]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("denied entirely: its rules admit only some requests"), "{text}");
}

#[test]
fn schema_knows_every_top_level_key_and_demands_the_version_alone() {
    let output = clawbox(&["schema"]);
    let schema: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let policy = &schema["$defs"]["PolicyDocument"];
    assert_eq!(policy["required"], serde_json::json!(["version"]));
    assert_eq!(policy["additionalProperties"], false);
    for key in ["filesystem_policy", "landlock", "process", "network_policies", "listen", "mode"] {
        assert!(policy["properties"][key].is_object(), "{key}");
    }
    let endpoint = &schema["$defs"]["EndpointSection"];
    assert!(endpoint["required"].is_null(), "{endpoint}");
}

//! Explanations of denials, and that each change they offer was tried.

use clawbox_common::verdict::Reason;

use super::*;
use crate::judge::statement::Statement;
use crate::policy::parse_str;

#[test]
fn every_reason_that_a_record_may_have_is_explained_and_nothing_else_is() {
    let known: Vec<&str> = Reason::ALL.iter().map(|reason| reason.name()).collect();
    for name in &known {
        assert_eq!(reasons::of(name).name, *name);
    }
    for reason in reasons::ALL {
        assert!(known.contains(&reason.name), "{}", reason.name);
    }
}

const POLICY: &str = "version: 1\nfilesystem_policy:\n  read_only: [/usr, ROOT/data/a]\n  \
    read_write: [ROOT/w]\n  deny: [/usr/closed]\nlisten: { ports: [80] }\nexecution: { allow: [/usr/bin/true] }\n\
    unix_sockets: { allow: [ROOT/data/sock] }\nnetwork_policies:\n  api:\n    endpoints:\n      \
    - { host: api.example.com, port: 443 }\n      - { host: \"*.wild.test\", ports: [80, 81] }\n    \
    binaries: [{ path: /opt/none/fetch }]\n";

fn explained(root: &str, statement: &str) -> Explained {
    let file: Arc<str> = "p.yaml".into();
    let policy = POLICY.replace("ROOT", root);
    let judge = Judge::of(parse_str("p.yaml", &policy).unwrap().policy, None).unwrap();
    let said = Statement::parse(statement, None).unwrap();
    let program = judge.programs(&said.program).remove(0);
    explain(&judge, (&file, &policy), &Who::from(program.as_path()), &said.deed)
}

/// A directory with `data/a` in it.
fn root() -> (tempfile::TempDir, String) {
    let world = tempfile::tempdir().unwrap();
    let root = std::fs::canonicalize(world.path()).unwrap();
    std::fs::create_dir_all(root.join("data/a")).unwrap();
    std::fs::create_dir(root.join("w")).unwrap();
    std::fs::write(root.join("w/made"), "").unwrap();
    (world, root.display().to_string())
}

/// What is done, why it is denied, the beginning of the nearest rule, what differs, and what allows it.
const DENIALS: [(&str, &str, &str, &str, &str); 11] = [
    (
        "/opt/none/other → api.example.com:443",
        "other-binary",
        "network_policies.api.endpoints[0]",
        "program /opt/none/other is not /opt/none/fetch",
        "clawbox policy allow p.yaml --binary /opt/none/other --endpoint api.example.com:443",
    ),
    (
        "fetch → api.example.com:444",
        "unknown-endpoint",
        "network_policies.api.endpoints[0]",
        "port 444 is not 443",
        "clawbox policy allow p.yaml --binary /opt/none/fetch --endpoint api.example.com:444",
    ),
    (
        "fetch → www.example.com:443",
        "unknown-name",
        "network_policies.api.endpoints[0]",
        "host www.example.com is not api.example.com",
        "clawbox policy allow p.yaml --binary /opt/none/fetch --endpoint www.example.com:443",
    ),
    (
        "fetch → a.wild.test:81/udp",
        "unknown-endpoint",
        "network_policies.api.endpoints[1]",
        "udp is not tcp",
        "clawbox policy allow p.yaml --binary /opt/none/fetch --endpoint a.wild.test:81/udp",
    ),
    (
        "fetch → write /usr/x",
        "read-only",
        "filesystem_policy.read_only /usr",
        "it may be read there and not written",
        "clawbox policy allow p.yaml --write /usr/x",
    ),
    (
        "fetch → listen 127.0.0.1:81",
        "listen-not-allowed",
        "listen (p.yaml:",
        "port 81 is not 80",
        "clawbox policy allow p.yaml --listen 127.0.0.1:81",
    ),
    (
        "fetch → listen 0.0.0.0:80",
        "listen-not-allowed",
        "listen (p.yaml:",
        "address 0.0.0.0 is not 127.0.0.1 or ::1",
        "clawbox policy allow p.yaml --listen 0.0.0.0:80",
    ),
    (
        "fetch → execute /usr/bin/env",
        "unlisted-program",
        "execution.allow /usr/bin/true (p.yaml:",
        "program /usr/bin/env is not /usr/bin/true",
        "clawbox policy allow p.yaml --execute /usr/bin/env",
    ),
    (
        // Both what writes it and the list deny it: one command for both.
        "fetch → execute ROOT/w/made",
        "writable-program",
        "filesystem_policy.read_write ROOT/w",
        "what may be written there may not be started",
        "clawbox policy allow p.yaml --execute ROOT/w/made --from-writable",
    ),
    (
        "fetch → reach ROOT/data/other",
        "unknown-file",
        "unix_sockets.allow ROOT/data/sock",
        "socket ROOT/data/other is not ROOT/data/sock",
        "clawbox policy allow p.yaml --socket ROOT/data/other",
    ),
    (
        "fetch → read ROOT/data/b",
        "unknown-file",
        "filesystem_policy.read_only ROOT/data/a",
        "ROOT/data/b is not below it",
        "clawbox policy allow p.yaml --read ROOT/data/b",
    ),
];

#[test]
fn a_denial_names_the_nearest_rule_what_differs_and_a_change_that_works() {
    let (_world, root) = root();
    for (statement, reason, rule, differs, command) in DENIALS {
        let [statement, rule, differs, command] =
            [statement, rule, differs, command].map(|text| text.replace("ROOT", &root));
        let told = explained(&root, &statement);
        assert_eq!(told.reason, reason, "{statement}: {told:?}");
        let nearest = told.nearest.as_ref().unwrap();
        assert!(nearest.rule.starts_with(&rule), "{statement}: {nearest:?}");
        assert_eq!(nearest.differs, [differs], "{statement}");
        assert_eq!(told.change.unwrap().command("p.yaml"), command);
    }
}

#[test]
fn what_no_policy_opens_has_no_change() {
    let (_world, root) = root();
    for (statement, reason, says) in [
        ("fetch → 169.254.169.254:80", "link-local", "no policy opens it"),
        ("fetch → read /usr/closed/x", "closed-file", "take `/usr/closed` out"),
    ] {
        let told = explained(&root, statement);
        assert_eq!((told.reason, told.change.is_none()), (reason, true), "{statement}");
        assert!(told.fix.contains(says), "{}", told.fix);
    }
    assert_eq!(explained(&root, "fetch → elsewhere.test:1").nearest, None);
}

#[test]
fn a_command_is_quoted_as_a_shell_wants_it() {
    assert_eq!(word_of_shell("/a b"), "'/a b'");
    assert_eq!(word_of_shell("it's"), r"'it'\''s'");
    assert_eq!(word_of_shell("[::1]:80"), "'[::1]:80'");
    assert_eq!(word_of_shell("/usr/bin/curl"), "/usr/bin/curl");
}

#[test]
fn what_is_offered_below_the_directory_of_the_start_is_what_works_there_and_says_where_that_is() {
    let (_world, root) = root();
    let w = format!("{root}/w");
    let policy = "version: 1\nfilesystem_policy: { include_workdir: true, read_only: [/usr] }\n\
        execution: { allow: [/usr/bin/true] }\n";
    let command = |workdir: Option<&str>, statement: &str| {
        let parsed = parse_str("p.yaml", policy).unwrap().policy;
        let judge = Judge::of(parsed, workdir.map(Path::new)).unwrap();
        let said = Statement::parse(statement, None).unwrap();
        let who = Who::from(said.program.as_ref());
        let told = explain(&judge, (&"p.yaml".into(), policy), &who, &said.deed);
        told.change.unwrap().command("p.yaml")
    };
    let start = format!("/opt/none/sh → execute {w}/made");
    let without = format!("clawbox policy allow p.yaml --execute {w}/made");
    assert_eq!(command(None, &start), without);
    let within = format!("{without} --from-writable --workdir {w}");
    assert_eq!(command(Some(&w), &start), within);
    // Nowhere near it.
    let read = format!("/opt/none/sh → read {root}/data/a");
    let expected = format!("clawbox policy allow p.yaml --read {root}/data/a");
    assert_eq!(command(Some(&w), &read), expected);
}

const TRAIL: &[&str] = &[
    r#"{"time":"2026-01-01T00:00:01.000000Z","seq":1,"sandbox":"a","class":"sandbox","action":"start","verdict":"none","reason":"start","object":{"command":["sh"],"workdir":"/w","policy":"p.yaml","mode":"enforce"}}"#,
    r#"{"time":"2026-01-01T00:00:02.000000Z","seq":2,"sandbox":"a","class":"process","action":"exec","verdict":"allow","reason":"exec","subject":{"pid":10,"uid":1,"exe":"/usr/bin/dash","exe_id":"0:1:1"},"object":{"path":"/bin/sh","parent":9,"args":["sh","agent.sh"]}}"#,
    r#"{"time":"2026-01-01T00:00:03.000000Z","seq":3,"sandbox":"a","class":"process","action":"exec","verdict":"allow","reason":"exec","subject":{"pid":11,"uid":1,"exe":"/usr/bin/curl","exe_id":"0:1:2"},"object":{"path":"/usr/bin/curl","parent":10,"args":["curl","x.test"]}}"#,
    r#"{"time":"2026-01-01T00:00:04.000000Z","seq":4,"sandbox":"a","class":"network","action":"connect","verdict":"deny","reason":"other-binary","subject":{"pid":11,"uid":1,"exe":"/usr/bin/curl","exe_id":"0:1:2"},"object":{"host":"x.test","ip":"192.0.2.1","port":443,"transport":"tcp"}}"#,
];

#[test]
fn a_trail_tells_its_last_denial_and_how_its_process_came_to_be() {
    let mut told = trail::Told::default();
    TRAIL.iter().chain(&[TRAIL[3], "{half a li"]).for_each(|line| told.line(line.as_bytes()));
    let last = told.last.clone().unwrap();
    assert_eq!((last.what(), last.by()), ("connect x.test:443/tcp".to_owned(), "/usr/bin/curl"));
    assert_eq!(last.deeds()[0].to_string(), "x.test:443");
    let chain: Vec<_> = told.chain(&last).into_iter().map(|link| (link.pid, link.path)).collect();
    assert_eq!(chain, [(11, "/usr/bin/curl".to_owned()), (10, "/bin/sh".to_owned())]);
    assert_eq!(told.denials.values().collect::<Vec<_>>(), [&2]);
    assert_eq!(told.policy.as_deref(), Some("p.yaml"));
    // Each denial is of the run before it: another one of this name may be started elsewhere, or attached.
    assert_eq!(last.workdir.as_deref(), Some("/w"));
    let attached = TRAIL[0].replace("\"action\":\"start\"", "\"action\":\"attach\"");
    let attached = attached.replace("\"workdir\":\"/w\",", "");
    [&attached, TRAIL[3]].iter().for_each(|line| told.line(line.as_bytes()));
    assert_eq!(told.last.unwrap().workdir, None);
}

//! What is said about each part of a policy, on machines that differ in one thing.

use super::*;
use crate::policy::{Severity, parse_str};

/// A machine of today on which everything that the tests name exists.
fn machine() -> HostFacts {
    let root_owned = ["/usr", "/etc", "/data", "/data/ro", "/tmp"];
    HostFacts {
        cgroup_hooks: true,
        bpf_lsm: false,
        landlock_abi: 6,
        accounts: [("agent".to_owned(), 1000)].into(),
        owners: root_owned.map(|path| (path.into(), 0)).into(),
        binaries: [("/usr/bin/curl".to_owned(), 1)].into(),
        needed_to_start: vec!["/usr/lib/libc.so.6".into()],
    }
}

fn report(text: &str, facts: &HostFacts) -> Report {
    assess(&parse_str("p.yaml", text).unwrap(), facts)
}

fn network(endpoint: &str) -> String {
    format!(
        "version: 1\nnetwork_policies:\n  a:\n    endpoints: [{{ host: a.example.com, port: 443, \
         {endpoint} }}]\n    binaries: [{{ path: /usr/bin/curl }}]\n"
    )
}

fn files(keys: &str) -> String {
    format!("version: 1\nfilesystem_policy: {{ {keys} }}\n")
}

/// The status of the part whose name begins so, and its detail.
#[track_caller]
fn check(report: &Report, part: &str, status: Status, says: &str) {
    let found = report
        .parts
        .iter()
        .find(|found| found.part.starts_with(part))
        .unwrap_or_else(|| panic!("no {part} in {:#?}", report.parts));
    assert_eq!(found.status, status, "{found}");
    let detail = found.detail.clone().unwrap_or_default();
    assert!(detail.contains(says), "{found}");
}

#[test]
fn endpoints_are_enforced_exactly_or_denied() {
    let every = "rules: [{ allow: { method: \"*\", path: \"/**\" } }]";
    let get = "rules: [{ allow: { method: GET, path: \"/**\" } }]";
    for (keys, status, says) in [
        (String::new(), Status::Full, ""),
        ("protocol: tcp".to_owned(), Status::Full, ""),
        ("access: full".to_owned(), Status::Full, ""),
        ("protocol: rest, access: full".to_owned(), Status::Full, ""),
        (format!("protocol: rest, {every}"), Status::Full, ""),
        (every.replace("/**", "**"), Status::Full, ""),
        (every.to_owned(), Status::Full, ""),
        (get.to_owned(), Status::Denied, "only some requests"),
        ("access: read-only".to_owned(), Status::Denied, "only some requests"),
        ("access: read-write".to_owned(), Status::Denied, "only some requests"),
        ("access: full, path: /v1/**".to_owned(), Status::Denied, "only some requests"),
        (
            "access: full, deny_rules: [{ method: DELETE, path: \"**\" }]".to_owned(),
            Status::Denied,
            "only some requests",
        ),
        (
            "rules: [{ allow: { method: \"*\", path: \"/**\", query: { a: b } } }]".to_owned(),
            Status::Denied,
            "only some requests",
        ),
        ("rules: [{ allow: { method: \"*\" } }]".to_owned(), Status::Denied, "only some requests"),
        (format!("enforcement: audit, {get}"), Status::Partly, "does not record them"),
        (format!("enforcement: audit, {every}"), Status::Full, ""),
        ("protocol: rest".to_owned(), Status::Full, "no request is admitted"),
        (
            "protocol: mcp, mcp: { allow_all_known_mcp_methods: true }".to_owned(),
            Status::Full,
            "no request is admitted",
        ),
        ("sni: verify".to_owned(), Status::Full, ""),
        ("sni: verify, ech: allow".to_owned(), Status::Full, ""),
        (
            "access: full, credential_signing: sigv4".to_owned(),
            Status::Partly,
            "credential_signing needs the HTTP gateway",
        ),
    ] {
        let report = report(&network(&keys), &machine());
        check(&report, "network_policies.a.endpoints[0] a.example.com:443/tcp", status, says);
    }
}

#[test]
fn a_name_that_may_be_hidden_is_said_to_be() {
    let notes = |keys: &str| {
        let report = report(&network(keys), &machine());
        report.warnings.iter().filter(|found| found.message.contains("`ech: allow`")).count()
    };
    assert_eq!((notes("sni: verify, ech: allow"), notes("sni: verify, ech: refuse")), (1, 0));
}

#[test]
fn a_middleware_that_must_not_be_skipped_denies_what_it_may_cover() {
    let text = |on_error: &str, include: &str, host: &str| {
        format!(
            "version: 1\nnetwork_middlewares:\n  m:\n    middleware: openshell/regex\n    \
             on_error: {on_error}\n    endpoints: {{ include: [\"{include}\"] }}\n\
             network_policies:\n  a:\n    endpoints: [{{ host: \"{host}\", port: 443 }}]\n    \
             binaries: [{{ path: /usr/bin/curl }}]\n"
        )
    };
    for (on_error, include, host, status) in [
        ("fail_closed", "**", "a.example.com", Status::Denied),
        ("fail_closed", "*.example.com", "a.example.com", Status::Denied),
        ("fail_closed", "*.example.com", "**.example.com", Status::Denied),
        ("fail_closed", "*.example.com", "a.other.test", Status::Full),
        ("fail_open", "**", "a.example.com", Status::Full),
    ] {
        let report = report(&text(on_error, include, host), &machine());
        check(&report, "network_policies.a", status, "");
    }
}

#[test]
fn files_are_what_landlock_can_hold() {
    for (keys, part, status, says) in [
        ("read_only: [/usr]", "filesystem_policy.read_only /usr", Status::Full, ""),
        (
            "read_only: [/data/ro], read_write: [/data]",
            "filesystem_policy.read_only /data/ro",
            Status::Not,
            "/data/ro stays writable, because it lies under /data in `read_write`",
        ),
        (
            "read_only: [/data], read_write: [/data/ro]",
            "filesystem_policy.read_write /data/ro",
            Status::Full,
            "",
        ),
        (
            "read_write: [/data], deny: [/data/secret]",
            "filesystem_policy.deny /data/secret",
            Status::Not,
            "because /data is allowed",
        ),
        (
            "read_write: [/data], deny: [\"**/.env\"]",
            "filesystem_policy.deny **/.env",
            Status::Not,
            "because /data is allowed",
        ),
        ("read_write: [/data], deny: [/etc]", "filesystem_policy.deny /etc", Status::Full, ""),
        (
            "rules: [{ binaries: [{ path: /usr/bin/git }], read_only: [/etc] }]",
            "filesystem_policy.rules[0]",
            Status::Denied,
            "stay closed for all",
        ),
    ] {
        check(&report(&files(keys), &machine()), part, status, says);
    }
}

#[test]
fn files_are_what_bpf_lsm_programs_hold_where_the_kernel_runs_them() {
    let able = HostFacts { bpf_lsm: true, ..machine() };
    for (keys, part, status, says) in [
        (
            "read_only: [/data/ro], read_write: [/data]",
            "filesystem_policy.read_only",
            Status::Full,
            "",
        ),
        ("read_write: [/data], deny: [/data/secret]", "filesystem_policy.deny", Status::Full, ""),
        ("read_write: [/data], deny: [\"**/.env\"]", "filesystem_policy.deny", Status::Full, ""),
        (
            "read_write: [/data], deny: [\"**/*.pem\"]",
            "filesystem_policy.deny",
            Status::Not,
            "NAME",
        ),
        (
            "rules: [{ binaries: [{ path: /usr/bin/git }], read_only: [/etc] }]",
            "filesystem_policy.rules[0]",
            Status::Full,
            "",
        ),
    ] {
        check(&report(&files(keys), &able), part, status, says);
    }
    let execution = |keys: &str| report(&format!("version: 1\nexecution: {{ {keys} }}\n"), &able);
    check(&execution("from_writable: deny"), "execution.from_writable", Status::Full, "");
    check(&execution("allow: [/usr/bin/git]"), "execution.allow", Status::Full, "");
    let nothing = execution("allow: []");
    assert!(nothing.warnings.iter().any(|warning| warning.message.contains("no program")));
    check(&report("version: 1\nunix_sockets: {}\n", &able), "unix_sockets", Status::Full, "");
}

#[test]
fn what_a_machine_lacks_is_said_of_the_parts_it_would_hold() {
    let usr = files("read_only: [/usr]");
    let ro = "filesystem_policy.read_only /usr";
    let old = HostFacts { landlock_abi: 2, ..machine() };
    check(&report(&usr, &old), ro, Status::Partly, "truncation");
    let none = HostFacts { landlock_abi: 0, ..machine() };
    check(&report(&usr, &none), ro, Status::Not, "no Landlock");
    let owned = HostFacts { owners: [("/usr".into(), 1000)].into(), ..machine() };
    let as_agent = format!("{usr}process: {{ run_as_user: agent }}\n");
    check(&report(&as_agent, &owned), ro, Status::Partly, "owns the path");
    let no_hooks = HostFacts { cgroup_hooks: false, ..machine() };
    let listen = "version: 1\nlisten: { ports: [80] }\n";
    check(&report(&network(""), &no_hooks), "network_policies.a", Status::Not, "Linux 6.1");
    check(&report(listen, &no_hooks), "listen 127.0.0.1 80", Status::Not, "Linux 6.1");
    check(&report(listen, &machine()), "listen ::1 80", Status::Full, "");
}

#[test]
fn an_account_that_is_not_here_needs_user() {
    let text = |user: &str| format!("version: 1\nprocess: {{ run_as_user: {user} }}\n");
    for (user, status, says) in [
        ("agent", Status::Full, ""),
        ("4000", Status::Full, ""),
        ("nobody-here", Status::Not, "run with --user"),
    ] {
        let report = report(&text(user), &machine());
        check(&report, &format!("process.run_as_user {user}"), status, says);
    }
}

#[test]
fn what_clawbox_adds_and_this_build_lacks_is_named() {
    let old = HostFacts { landlock_abi: 5, ..machine() };
    for (key, part, status) in [
        ("execution: {}", "execution", Status::Not),
        ("unix_sockets: {}", "unix_sockets", Status::Partly),
        ("limits: { pids: 5 }", "limits", Status::Not),
        ("unknown_endpoints: ask", "unknown_endpoints: ask", Status::Full),
        ("unknown_endpoints: deny", "unknown_endpoints: deny", Status::Full),
    ] {
        let text = format!("version: 1\n{key}\n");
        check(&report(&text, &machine()), part, status, "");
    }
    let sockets = report("version: 1\nunix_sockets: {}\n", &old);
    check(&sockets, "unix_sockets", Status::Not, "too old");
    let paths = HostFacts { landlock_abi: 9, ..machine() };
    check(&report("version: 1\nunix_sockets: {}\n", &paths), "unix_sockets", Status::Full, "");
    let list = report("version: 1\nexecution: { allow: [/usr/bin/git] }\n", &machine());
    check(&list, "execution.allow", Status::Not, "BPF LSM");
}

#[test]
fn a_hard_requirement_refuses_whatever_is_not_full() {
    let text = |word: &str, key: &str| {
        format!("version: 1\nlandlock: {{ compatibility: {word} }}\n{key}\n")
    };
    for (word, key, refused) in [
        ("best_effort", "limits: { pids: 5 }", 0),
        ("hard_requirement", "limits: { pids: 5 }", 1),
        ("hard_requirement", "unknown_endpoints: ask", 0),
        ("hard_requirement", "listen: { ports: [80] }", 0),
    ] {
        let loaded = parse_str("p.yaml", &text(word, key)).unwrap();
        let report = assess(&loaded, &machine());
        assert_eq!(report.refusals(&loaded.policy).len(), refused, "{word} {key}");
    }
}

#[test]
fn warnings_name_what_is_missing_on_this_machine() {
    let binaries = |path: &str| {
        format!(
            "version: 1\nnetwork_policies:\n  a:\n    endpoints: [{{ host: a.example.com, port: \
             443 }}]\n    binaries: [{{ path: \"{path}\" }}]\n"
        )
    };
    for (text, severity, says) in [
        ("version: 1\n".to_owned(), Severity::Warning, "no program can start"),
        (files("read_only: [/etc]"), Severity::Warning, "cannot start without /usr/lib/libc.so.6"),
        (files("read_only: [/gone]"), Severity::Warning, "/gone does not exist here"),
        (binaries("/bin/gone"), Severity::Warning, "/bin/gone does not exist here"),
        (binaries("/gone/*"), Severity::Warning, "/gone/* matches nothing here"),
        (binaries("/**"), Severity::Note, "admits every program to `a`"),
        (network("access: read-only"), Severity::Note, "read as `protocol: rest`"),
        (network("access: read-only"), Severity::Note, "the rules are enforced"),
        ("version: 1\nmode: audit\n".to_owned(), Severity::Warning, "only records it"),
        (files("read_only: [/usr]"), Severity::Warning, "no BPF LSM programs: every program of"),
    ] {
        let report = report(&text, &machine());
        let found =
            |d: &crate::policy::Diagnostic| d.severity == severity && d.message.contains(says);
        assert!(report.warnings.iter().any(found), "{says}: {:#?}", report.warnings);
    }
    let quiet = format!("{}{}", files("read_only: [/usr]"), &network("")["version: 1\n".len()..]);
    let report = report(&quiet, &HostFacts { bpf_lsm: true, ..machine() });
    assert!(report.is_full() && report.warnings.is_empty(), "{report:#?}");
}

//! Every way to write a policy wrong ends in one located finding that says what to write.

use super::network::FirstSaid;
use super::*;

const HEAD: &str = "version: 1\n";

/// A policy with one endpoint, given as the keys of its mapping.
fn with_endpoint(keys: &str) -> String {
    format!(
        "version: 1\nnetwork_policies:\n  a:\n    endpoints:\n      - {{ {keys} }}\n    \
         binaries:\n      - {{ path: /usr/bin/curl }}\n"
    )
}

#[track_caller]
fn refused(text: &str) -> Vec<Diagnostic> {
    match parse_str("p.yaml", text) {
        Ok(loaded) => panic!("loads: {:#?}", loaded.diagnostics),
        Err(diagnostics) => diagnostics,
    }
}

#[track_caller]
fn check_refused(text: &str, place: &str, says: &str, remedy: &str) {
    let all = refused(text);
    let found = all.iter().find(|d| {
        d.severity == Severity::Error
            && d.message.contains(says)
            && d.remedy.as_deref().is_some_and(|r| r.contains(remedy))
    });
    let listing: Vec<String> = all.iter().map(Diagnostic::to_string).collect();
    let found = found.unwrap_or_else(|| panic!("{says:?}, {remedy:?} not in {listing:#?}"));
    assert_eq!(found.origin.to_string(), place, "{found}");
}

#[track_caller]
fn loaded(text: &str) -> Loaded {
    match parse_str("p.yaml", text) {
        Ok(loaded) => loaded,
        Err(all) => panic!("{:#?}", all.iter().map(Diagnostic::to_string).collect::<Vec<_>>()),
    }
}

#[test]
fn the_smallest_policy_loads_and_allows_nothing() {
    let policy = loaded(HEAD).policy;
    assert!(policy.network.is_empty());
    assert!(!policy.filesystem.is_written());
}

#[test]
fn every_key_of_the_language_loads() {
    let text = include_str!("testdata/everything.yaml");
    let loaded = loaded(text);
    let errors: Vec<String> = loaded.diagnostics.iter().map(|d| d.to_string()).collect();
    insta::assert_snapshot!(errors.join("\n"));
    assert_eq!(loaded.policy.network.len(), 6);
}

#[test]
fn an_unknown_key_is_refused_with_the_nearest_known_one() {
    check_refused(
        "version: 1\nnetwork_policys: {}\n",
        "p.yaml:2:1",
        "unknown key `network_policys`",
        "did you mean `network_policies`?",
    );
    check_refused(
        &with_endpoint("host: a.example.com, prot: 443"),
        "p.yaml:5:32",
        "unknown key `prot`",
        "did you mean `port`?",
    );
    check_refused(
        "version: 1\nlimits: { zzzzzzz: 1 }\n",
        "p.yaml:2:11",
        "unknown key `zzzzzzz`",
        "the keys here are pids, memory, cpu",
    );
}

#[test]
fn an_unknown_value_is_refused_with_the_known_ones() {
    check_refused(
        &with_endpoint("host: a.example.com, port: 443, protocol: sql"),
        "p.yaml:5:53",
        "`sql` is not a value",
        "write one of tcp, rest",
    );
    check_refused(
        "version: 1\nmode: enforced\n",
        "p.yaml:2:7",
        "`enforced` is not a value",
        "did you mean `enforce`?",
    );
}

#[test]
fn a_key_written_twice_is_refused() {
    check_refused(
        "version: 1\nmode: audit\nmode: enforce\n",
        "p.yaml:3:1",
        "the key `mode` is written twice",
        "keep one",
    );
    check_refused(
        "version: 1\nnetwork_policies:\n  a: {}\n  a: {}\n",
        "p.yaml:4:3",
        "the key `a` is written twice",
        "keep one",
    );
    check_refused(
        &with_endpoint("host: a.example.com, port: 1, port: 2"),
        "p.yaml:5:41",
        "the key `port` is written twice",
        "keep one",
    );
}

#[test]
fn a_missing_or_other_version_is_refused() {
    check_refused("mode: audit\n", "p.yaml:1:1", "`version` is missing", "add the key `version`");
    check_refused("version: 2\n", "p.yaml:1:10", "version 2 is not known", "write `version: 1`");
}

#[test]
fn a_value_of_the_wrong_shape_is_refused_in_words_of_the_language() {
    for (text, place, says, remedy) in [
        ("version: x\n", "p.yaml:1:10", "where a whole number", "write a whole number"),
        ("version: 1\nlisten: 5\n", "p.yaml:2:9", "where keys and values", "`key: value`"),
        ("version: 1\nlisten: { ports: 5 }\n", "p.yaml:2:18", "where a list", "write `[a, b]`"),
    ] {
        check_refused(text, place, says, remedy);
    }
}

#[test]
fn a_key_with_nothing_behind_it_is_not_an_absent_key() {
    // With its lines commented out, `rules:` would otherwise admit every request.
    for key in ["rules:", "allowed_ips:", "deny_rules:", "sni:", "ech:", "access:"] {
        let text = format!(
            "version: 1\nnetwork_policies:\n  a:\n    endpoints:\n      - host: a.example.com\n        \
             port: 443\n        {key}\n    binaries: [{{ path: /usr/bin/curl }}]\n"
        );
        let all = refused(&text);
        assert!(!all.is_empty(), "{key}");
    }
}

#[test]
fn what_may_be_encrypted_is_said_only_where_something_is_verified() {
    check_refused(
        &with_endpoint("host: a.example.com, port: 443, ech: allow"),
        "p.yaml:5:48",
        "`ech` says what `sni: verify` lets through",
        "add `sni: verify`, or remove `ech`",
    );
    check_refused(
        &with_endpoint("host: 192.0.2.1, port: 443, ech: refuse"),
        "p.yaml:5:44",
        "`ech` says what `sni: verify` lets through",
        "remove `ech`",
    );
    check_refused(
        &with_endpoint("host: a.example.com, port: 443, sni: verify, ech: allowed"),
        "p.yaml:5:61",
        "`allowed` is not a value",
        "did you mean `allow`?",
    );
    let said = |keys: &str| {
        let loaded = loaded(&with_endpoint(&format!("host: a.example.com, port: 443{keys}")));
        loaded.policy.network[0].endpoints[0].first_said()
    };
    for (keys, expected) in [
        ("", FirstSaid::Anything),
        (", sni: verify", FirstSaid::Name),
        (", sni: verify, ech: refuse", FirstSaid::Name),
        (", ech: allow, sni: verify", FirstSaid::OuterName),
    ] {
        assert_eq!(said(keys), expected, "{keys}");
    }
}

#[test]
fn ports_are_numbers_from_1_to_65535() {
    for (port, place) in [("0", "p.yaml:5:38"), ("65536", "p.yaml:5:38")] {
        check_refused(
            &with_endpoint(&format!("host: a.example.com, port: {port}")),
            place,
            &format!("port {port} is not a port"),
            "write 1 to 65535",
        );
    }
    for (keys, says, remedy) in [
        ("host: a.example.com", "no port", "add `port`"),
        ("host: a.example.com, ports: []", "`ports` is empty", "at least one"),
        ("host: a.example.com, port: 1, ports: [2]", "not among `ports`", "one of the two"),
    ] {
        let all = refused(&with_endpoint(keys));
        let first = all.first().unwrap().to_string();
        assert!(first.contains(says) && first.contains(remedy), "{first}");
    }
    assert!(parse_str("p", &with_endpoint("host: a.example.com, port: 2, ports: [2, 3]")).is_ok());
}

#[test]
fn hosts_that_no_rule_can_mean_are_refused_where_they_stand() {
    for (host, says, remedy) in [
        ("\"*\"", "every host", "*.example.com"),
        ("\"*.com\"", "top-level domain", "last two labels"),
        ("\"https://a.example.com\"", "URL", "host name alone"),
        ("127.0.0.1", "loopback, which is closed", "host_loopback: true"),
        ("localhost", "loopback, which is closed", "host_loopback: true"),
        ("x.localhost", "machine itself", "host: localhost"),
        ("\"::1\"", "loopback, which is closed", "host_loopback: true"),
        ("169.254.169.254", "metadata", "remove the endpoint"),
        ("0.0.0.0", "unspecified", "remove the endpoint"),
        ("224.0.0.1", "multicast", "remove the endpoint"),
        ("255.255.255.255", "reserved or broadcast", "remove the endpoint"),
        ("198.18.0.1", "hands out", "remove the endpoint"),
        ("\"::ffff:10.0.0.1\"", "IPv6 spelling", "write 10.0.0.1"),
        ("\"64:ff9b::a00:1\"", "IPv6 spelling", "write 10.0.0.1"),
    ] {
        let text = with_endpoint(&format!("host: {host}, port: 443"));
        check_refused(&text, "p.yaml:5:17", says, remedy);
    }
}

#[test]
fn host_loopback_opens_loopback_and_nothing_else() {
    for host in ["127.0.0.1", "\"::1\"", "localhost", "127.9.9.9"] {
        let keys = format!("host: {host}, port: 8000, host_loopback: true");
        loaded(&with_endpoint(&keys));
    }
    for host in ["10.0.0.1", "a.example.com"] {
        let keys = format!("host: {host}, port: 8000, host_loopback: true");
        check_refused(
            &with_endpoint(&keys),
            &format!("p.yaml:5:{}", 17 + host.len() + 29),
            "the host is not on it",
            "or remove the key",
        );
    }
}

#[test]
fn ranges_are_checked_where_they_stand() {
    for (range, says, remedy) in [
        ("10.0.0.1/8", "bits behind its prefix", "write 10.0.0.0/8"),
        ("127.0.0.0/8", "never reachable", "remove it"),
        ("example.com", "neither an address nor a range", "10.0.0.0/8"),
    ] {
        let text = with_endpoint(&format!("port: 443, allowed_ips: [{range}]"));
        check_refused(&text, "p.yaml:5:36", says, remedy);
    }
    check_refused(
        &with_endpoint("host: 10.0.0.1, port: 443, allowed_ips: [10.1.0.0/16]"),
        "p.yaml:5:51",
        "lies outside its own `allowed_ips`",
        "remove `allowed_ips`",
    );
    check_refused(&with_endpoint("port: 443"), "p.yaml:5:9", "no host", "add `host`");
}

#[test]
fn echo_requests_have_an_address_and_no_port() {
    for keys in ["host: 10.0.0.1, transport: icmp", "allowed_ips: [10.0.0.0/8], transport: icmp"] {
        parse_str("p.yaml", &with_endpoint(keys)).unwrap();
    }
    for (keys, column, says, remedy) in [
        ("host: 10.0.0.1, port: 7, transport: icmp", 33, "has no ports", "remove `port`"),
        ("host: 10.0.0.1, ports: [7], transport: icmp", 34, "has no ports", "remove `ports`"),
        ("host: a.test, transport: icmp", 36, "needs addresses", "write `host` as an address"),
        ("host: 10.0.0.1, transport: icmp, access: full", 38, "TCP alone", "remove `transport`"),
    ] {
        check_refused(&with_endpoint(keys), &format!("p.yaml:5:{column}"), says, remedy);
    }
    let listen = "version: 1\nlisten: { ports: [7], transport: icmp }\n";
    check_refused(listen, "p.yaml:2:34", "nobody listens for echo requests", "remove `transport`");
}

#[test]
fn request_rules_that_contradict_are_refused() {
    let base = "host: a.example.com, port: 443, ";
    for (keys, says) in [
        ("access: full, rules: [{ allow: { method: GET, path: /x } }]", "exclude each other"),
        ("protocol: rest, rules: []", "`rules` is empty"),
        ("protocol: rest, access: full, deny_rules: []", "`deny_rules` is empty"),
        ("protocol: tcp, access: full", "`protocol: tcp` has none"),
        ("protocol: rest, access: full, transport: udp", "TCP alone"),
        ("protocol: rest, rules: [{ allow: {} }]", "matches on nothing"),
        ("protocol: rest, rules: [{ allow: { method: GET, path: x } }]", "not a request path"),
        ("protocol: rest, rules: [{ allow: { method: \"\", path: /x } }]", "not a method"),
    ] {
        let all = refused(&with_endpoint(&format!("{base}{keys}")));
        assert!(all.iter().any(|d| d.message.contains(says)), "{keys}: {all:#?}");
    }
}

#[test]
fn root_cannot_be_the_sandbox_user() {
    for written in ["root", "0"] {
        check_refused(
            &format!("version: 1\nprocess:\n  run_as_user: {written}\n"),
            "p.yaml:3:16",
            "root",
            "unprivileged account, 1 to 4294967294",
        );
    }
}

#[test]
fn paths_are_absolute_bounded_and_never_a_writable_root() {
    for (list, written, says, remedy) in [
        ("read_only", "/usr/../etc", "holds `..`", "the path it leads to"),
        ("read_only", "usr", "not absolute", "begin it with `/`"),
        ("read_only", "/usr/*", "not globs", "name the directory"),
        ("read_write", "/", "`/` cannot be writable", "the agent works in"),
        ("read_write", "//./", "`/` cannot be writable", "the agent works in"),
    ] {
        check_refused(
            &format!("version: 1\nfilesystem_policy:\n  {list}:\n    - {written}\n"),
            "p.yaml:4:7",
            says,
            remedy,
        );
    }
}

#[test]
fn the_257th_path_is_one_too_many() {
    let lines = |count: usize| -> String {
        let paths: Vec<String> = (0..count).map(|n| format!("    - /p/{n}\n")).collect();
        format!("version: 1\nfilesystem_policy:\n  read_only:\n{}", paths.concat())
    };
    loaded(&lines(256));
    check_refused(&lines(257), "p.yaml:260:7", "names 257 paths", "at most 256");
}

#[test]
fn a_path_in_both_lists_stays_read_only_and_is_reported() {
    let loaded =
        loaded("version: 1\nfilesystem_policy:\n  read_only: [/a, /b]\n  read_write: [/c, /a/]\n");
    let [warning] = loaded.diagnostics.as_slice() else {
        panic!("one warning is expected: {:#?}", loaded.diagnostics);
    };
    assert_eq!(
        warning.to_string(),
        "p.yaml:4:20: warning: /a is in `read_only` too, and the narrower one holds; keep it in \
         one of the two lists"
    );
    let written: Vec<&str> =
        loaded.policy.filesystem.read_write().iter().map(|path| path.value.as_str()).collect();
    assert_eq!(written, ["/c"]);
}

#[test]
fn an_alias_bomb_is_refused_in_no_time() {
    let mut text = String::from("version: 1\nnetwork_policies:\n  a0: &a0 { name: x }\n");
    for level in 1..12 {
        let aliases = vec![format!("*a{}", level - 1); 10].join(", ");
        text.push_str(&format!("  a{level}: &a{level} [{aliases}]\n"));
    }
    let started = std::time::Instant::now();
    let all = refused(&text);
    assert_eq!(all.len(), 1, "{all:#?}");
    assert!(started.elapsed() < std::time::Duration::from_secs(2));
    // The same against the only key that takes arbitrary YAML.
    let mut text = String::from("version: 1\nnetwork_middlewares:\n  m:\n    config:\n");
    text.push_str("      a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for level in 1..12 {
        let aliases = vec![format!("*a{}", level - 1); 10].join(", ");
        text.push_str(&format!("      a{level}: &a{level} [{aliases}]\n"));
    }
    let all = refused(&text);
    let first = all.first().unwrap();
    assert!(first.message.contains("alias") || first.message.contains("repeats"), "{first}");
    assert!(first.remedy.as_deref().unwrap().contains("out"), "{first}");
    assert!(started.elapsed() < std::time::Duration::from_secs(4));
}

#[test]
fn deep_nesting_is_refused() {
    for text in [
        format!("version: 1\nmode: {}{}\n", "[".repeat(5000), "]".repeat(5000)),
        format!("version: 1\nmode: {}1\n", "{a: ".repeat(5000)),
        (0..3000).map(|n| format!("{}a:\n", " ".repeat(n))).take(600).collect(),
    ] {
        let all = refused(&text);
        assert_eq!(all.len(), 1, "{all:#?}");
    }
}

#[test]
fn a_file_of_256_kib_loads_and_a_byte_more_does_not() {
    let text = |size: usize| format!("{HEAD}# {}\n", "x".repeat(size - HEAD.len() - 3));
    assert!(parse_str("p.yaml", &text(256 * 1024)).is_ok());
    check_refused(&text(256 * 1024 + 1), "p.yaml", "larger than 256 KiB", "split it into presets");
}

#[test]
fn what_is_no_policy_file_is_one_clear_diagnostic() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let large = vec![b'#'; 300_000];
    for (path, says) in [
        (dir.path().join("absent"), "there is no such file"),
        (dir.path().to_path_buf(), "this is a directory"),
        (write("empty", b""), "the file is empty"),
        (write("comments", b"# nothing\n\n"), "the file is empty"),
        (write("binary", b"\x7fELF\xff\xfe\x00"), "not UTF-8"),
        (write("nul", b"version: 1\0"), "NUL byte"),
        (write("large", &large), "larger than 256 KiB"),
        (write("truncated", b"version: 1\nnetwork_policies: {a: {name"), ""),
        (write("quote", b"version: \"1\nmode: audit\n"), ""),
        (write("prose", b"This is a README, not a policy.\n"), ""),
        (write("two", b"version: 1\n---\nversion: 1\n"), "more than one YAML document"),
        (write("list", b"- version: 1\n"), ""),
    ] {
        let all = load(&path, &[]).unwrap_err();
        let [diagnostic] = all.as_slice() else {
            panic!("{}: {all:#?}", path.display());
        };
        assert!(diagnostic.message.contains(says), "{diagnostic}");
        assert!(diagnostic.remedy.is_some(), "{diagnostic}");
        assert!(!diagnostic.message.contains('\n'), "{diagnostic}");
    }
}

#[test]
fn every_mistake_of_a_file_is_reported_at_once() {
    let text = "version: 3\nprocess: { run_as_user: root }\nlisten: { ports: [0, 70000] }\n";
    let all = refused(text);
    let places: Vec<String> = all.iter().map(|d| d.origin.to_string()).collect();
    assert_eq!(places, ["p.yaml:1:10", "p.yaml:2:25", "p.yaml:3:19", "p.yaml:3:22"]);
}

#[test]
fn a_blueprint_gives_its_additions_and_names_the_rest() {
    let text = "version: \"0.1.0\"\nprofiles: [default]\ncomponents:\n  sandbox: { name: x }\n  \
                policy:\n    base: p.yaml\n    additions:\n      a:\n        endpoints:\n          \
                - { host: nim.local, port: 8000 }\n";
    let loaded = loaded(text);
    assert_eq!(loaded.kind, Kind::Blueprint);
    assert_eq!(loaded.policy.network.len(), 1);
    let ignored: Vec<&str> = loaded.ignored.iter().map(|(part, _)| *part).collect();
    assert_eq!(ignored, ["version", "profiles", "components.sandbox", "components.policy.base"]);
    check_refused(
        &text.replace("sandbox:", "sandbocs:"),
        "p.yaml:4:3",
        "unknown key `sandbocs`",
        "did you mean `sandbox`?",
    );
}

#[test]
fn the_examples_that_are_packed_load_without_a_finding() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/examples");
    let files = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let mut count = 0;
    for file in files {
        let loaded = load(&file, &[]).unwrap_or_else(|all| panic!("{}: {all:#?}", file.display()));
        assert_eq!(loaded.kind, Kind::Policy, "{}", file.display());
        assert!(loaded.diagnostics.is_empty(), "{}: {:#?}", file.display(), loaded.diagnostics);
        count += 1;
    }
    assert!(count > 0, "no example");
}

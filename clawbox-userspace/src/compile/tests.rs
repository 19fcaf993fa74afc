//! What compilation yields, as listings; what does not fit; and what a name may stand for.

use super::*;
use crate::policy::parse_str;

#[track_caller]
fn image(text: &str) -> MapImage {
    let loaded = parse_str("p.yaml", text).unwrap();
    compile(&loaded.policy, 3).unwrap()
}

const AGENT: &str = r#"
version: 1
network_policies:
  code:
    name: code hosting
    endpoints:
      - { host: git.example.com, port: 443, access: full }
      - { host: "*.pkg.example.com", ports: [443, 80] }
    binaries:
      - { path: /usr/bin/git }
      - { path: "/usr/lib/git-core/*", match: self }
  again:
    endpoints:
      - { host: GIT.example.com., port: 443 }
      - { host: 192.0.2.7, port: 123, transport: any }
    binaries:
      - { path: /usr/bin/curl, match: self }
      - { path: /usr/bin/git, match: self }
  narrow:
    endpoints:
      - host: api.example.com
        port: 443
        protocol: rest
        enforcement: enforce
        rules: [{ allow: { method: GET, path: "/**" } }]
    binaries: [{ path: /usr/bin/never }]
  lan:
    endpoints:
      - { port: 5432, allowed_ips: [10.0.0.0/8, 10.1.0.0/16, "::/0"] }
      - { host: db.example.com, port: 5432, allowed_ips: [10.1.0.0/16] }
    binaries: [{ path: "/**" }]
  models:
    endpoints: [{ host: localhost, port: 8000, host_loopback: true }]
    binaries: [{ path: /usr/bin/curl }]
  nobody:
    endpoints: [{ host: nobody.example.com, port: 443 }]
listen: { ports: [18789], addresses: [127.0.0.1, "0.0.0.0"] }
"#;

#[test]
fn a_policy_compiles_to_these_records() {
    insta::assert_snapshot!(image(AGENT));
}

#[test]
fn the_same_policy_is_the_same_bytes() {
    let first = image(AGENT);
    for _ in 0..20 {
        let again = image(AGENT);
        assert_eq!(again.rules, first.rules);
        assert_eq!(again.addresses, first.addresses);
        assert_eq!(again.patterns, first.patterns);
        assert_eq!(again.binaries, first.binaries);
        assert_eq!(again.to_string(), first.to_string());
    }
}

#[test]
fn a_name_stands_only_for_the_addresses_its_rules_accept() {
    let image = image(
        r#"
version: 1
network_policies:
  a:
    endpoints:
      - { host: a.example.com, port: 443 }
      - { host: "*.example.com", port: 80 }
      - { host: "**.example.com", port: 5432, allowed_ips: [10.1.0.0/16] }
    binaries: [{ path: /usr/bin/a }]
"#,
    );
    let ids = |name: &str, address: &str| {
        let rule = image.name(name).unwrap()?;
        let hosts = rule.hosts_for(address.parse().unwrap())?;
        Some(hosts.ids.into_iter().filter(|id| *id != 0).collect())
    };
    for (name, address, expected) in [
        ("a.example.com", "8.8.8.8", Some(vec![1, 2])),
        ("a.example.com", "64:ff9b::808:808", Some(vec![1, 2])),
        ("a.example.com", "10.0.0.1", Some(vec![1])),
        ("a.example.com", "10.1.0.1", Some(vec![1, 3])),
        ("a.example.com", "::ffff:10.1.0.1", Some(vec![1, 3])),
        ("b.example.com", "8.8.8.8", Some(vec![2])),
        ("b.example.com", "10.0.0.1", None),
        ("b.example.com", "10.1.0.1", Some(vec![3])),
        ("b.example.com", "127.0.0.1", None),
        ("a.example.com", "127.0.0.1", None),
        ("a.example.com", "64:ff9b::7f00:1", None),
        ("a.example.com", "169.254.169.254", None),
        ("a.example.com", "198.18.0.1", None),
        ("a.example.com", "fd00::1", Some(vec![1])),
        ("evil.test", "8.8.8.8", None),
        ("localhost", "127.0.0.1", None),
    ] {
        assert_eq!(ids(name, address), expected, "{name} {address}");
    }
}

#[test]
fn a_name_that_five_patterns_match_is_not_resolved() {
    let hosts = ["a.b.example.com", "*.b.example.com", "**.example.com", "**.b.example.com"];
    let policy = |hosts: &[&str]| {
        let endpoints: Vec<String> =
            hosts.iter().map(|host| format!("      - {{ host: {host:?}, port: 443 }}\n")).collect();
        format!(
            "version: 1\nnetwork_policies:\n  a:\n    binaries: [{{ path: /a }}]\n    \
             endpoints:\n{}",
            endpoints.concat()
        )
    };
    let four = image(&policy(&hosts));
    assert_eq!(four.name("a.b.example.com").unwrap().unwrap().hosts().ids, [1, 2, 3, 4]);
    let mut hosts = hosts.to_vec();
    hosts.push("a*.b.example.com");
    let five = image(&policy(&hosts));
    assert!(five.name("a.b.example.com").is_err());
    assert!(five.name("b.b.example.com").unwrap().is_some());
}

#[test]
fn the_first_rule_that_admits_is_named() {
    let image = image(AGENT);
    let key = |host: &str| {
        let ids = image.name(host).unwrap().unwrap().hosts();
        ids.ids[0]
    };
    let git = key("git.example.com");
    let slot = |path: &str| image.slots_of(std::path::Path::new(path)).words[0];
    for (host, port, matched, expected) in [
        (git, 443, slot("/usr/bin/git"), Some(("code", 0, "/usr/bin/git"))),
        (
            git,
            443,
            slot("/usr/lib/git-core/git-remote-https"),
            Some(("code", 0, "/usr/lib/git-core/*")),
        ),
        (git, 443, slot("/usr/bin/curl"), Some(("again", 0, "/usr/bin/curl"))),
        (key("x.pkg.example.com"), 80, slot("/usr/bin/git"), Some(("code", 1, "/usr/bin/git"))),
        (key("db.example.com"), 5432, 0, Some(("lan", 1, "/**"))),
        (git, 80, slot("/usr/bin/git"), None),
        (git, 443, 0, None),
    ] {
        let found = image.attribute(host, port, TCP, 0, matched);
        let found = found.map(|rule| (rule.policy_key, rule.endpoint, rule.binary));
        assert_eq!(found, expected, "{host} {port} {matched}");
    }
}

#[test]
fn a_descendant_is_not_attributed_to_a_rule_that_takes_the_program_alone() {
    let group = |key: &str, matching: &str| {
        format!(
            "  {key}:\n    endpoints: [{{ host: a.example.com, port: 443 }}]\n    binaries: [{{ \
             path: /a, match: {matching} }}]\n"
        )
    };
    let (own, tree) = (group("own", "self"), group("tree", "tree"));
    let image = image(&format!("version: 1\nnetwork_policies:\n{own}{tree}"));
    // Slot 0 met: by the lineage, as the rule `tree` admits; or by the program, as both do.
    let rule = image.attribute(1, 443, TCP, 0, 1).unwrap();
    assert_eq!(rule.policy_key, "tree");
}

#[track_caller]
fn check_refused(text: &str, expected: &str) {
    let loaded = parse_str("p.yaml", text).unwrap();
    let all = compile(&loaded.policy, 1).unwrap_err();
    let texts: Vec<String> = all.iter().map(ToString::to_string).collect();
    assert_eq!(texts, [expected]);
}

#[test]
fn the_257th_binary_is_one_too_many() {
    let policy = |count: usize| {
        let paths: Vec<String> =
            (0..count).map(|n| format!("      - {{ path: /bin/{n} }}\n")).collect();
        format!(
            "version: 1\nnetwork_policies:\n  a:\n    endpoints: [{{ host: a.example.com, port: 1 \
             }}]\n    binaries:\n{}",
            paths.concat()
        )
    };
    assert_eq!(image(&policy(256)).binaries.len(), 256);
    check_refused(
        &policy(257),
        "p.yaml:262:17: error: the policy names 257 binaries; name at most 256; a glob such as \
         /usr/lib/git-core/* is one",
    );
}

#[test]
fn five_ranges_around_one_address_do_not_fit() {
    let text = "version: 1\nnetwork_policies:\n  a:\n    binaries: [{ path: /a }]\n    endpoints:\n      \
                - { port: 1, allowed_ips: [0.0.0.0/0, 10.0.0.0/8, 10.0.0.0/16, 10.0.0.0/24] }\n      \
                - { host: 10.0.0.1, port: 2 }\n";
    check_refused(
        text,
        "p.yaml:7:9: error: 10.0.0.1/32 lies in 5 ranges: 10.0.0.1/32, 10.0.0.0/24, 10.0.0.0/16, \
         10.0.0.0/8, 0.0.0.0/0; nest at most 4",
    );
}

#[test]
fn a_product_of_ports_and_ranges_is_bounded_before_it_is_built() {
    let numbers = |count: usize, from: &dyn Fn(usize) -> String| {
        (0..count).map(from).collect::<Vec<_>>().join(", ")
    };
    let text = format!(
        "version: 1\nnetwork_policies:\n  a:\n    binaries: [{{ path: /a }}]\n    endpoints:\n      \
         - {{ ports: [{}], allowed_ips: [{}] }}\n",
        numbers(8000, &|n| (n + 1).to_string()),
        numbers(4000, &|n| format!("10.{}.{}.0/24", n / 256, n % 256)),
    );
    let started = std::time::Instant::now();
    check_refused(
        &text,
        "p.yaml:6:9: error: from here on the policy has more than 524288 rules; name fewer ports \
         and ranges",
    );
    assert!(started.elapsed() < std::time::Duration::from_secs(5));
}

#[test]
fn generation_zero_is_refused() {
    let loaded = parse_str("p.yaml", "version: 1\n").unwrap();
    assert!(compile(&loaded.policy, 0).is_err());
}

#[test]
fn what_waits_or_is_verified_is_said_to_and_nothing_that_waits_is_called_allowed() {
    use crate::compile::question::{Question, Target, answer};
    use clawbox_common::rule::UDP;
    use clawbox_common::verdict::{Reason, Verdict};
    let image = image(
        "version: 1\nunknown_endpoints: ask\nnetwork_policies:\n  a:\n    \
         endpoints: [{ host: a.test, port: 443, sni: verify }]\n    binaries: [{ path: /bin/a }]\n",
    );
    let name = |name: &str| Target::Name(name.to_owned());
    let address = Target::Address("192.0.2.1".parse().unwrap());
    for (binary, target, transport, verdict, reason, remark) in [
        ("/bin/a", name("a.test"), TCP, Verdict::Allow, Reason::Rule, "sni: verify"),
        ("/bin/a", name("b.test"), TCP, Verdict::Deny, Reason::Held, "approvals"),
        ("/bin/a", name("b.test"), UDP, Verdict::Deny, Reason::UnknownName, ""),
        ("/bin/a", address.clone(), TCP, Verdict::Deny, Reason::Held, "approvals"),
        ("/bin/a", address, UDP, Verdict::Deny, Reason::UnknownEndpoint, ""),
        // Named, if for another program: nobody is asked.
        ("/bin/b", name("a.test"), TCP, Verdict::Deny, Reason::OtherBinary, "is for /bin/a"),
    ] {
        let (binary, port) = (binary.into(), 443.try_into().unwrap());
        let question = Question { binary, ancestors: Vec::new(), target, port, transport };
        let answer = answer(&image, &question);
        assert_eq!((answer.verdict, answer.reason), (verdict, reason), "{question:?}");
        assert!(answer.remarks.join("; ").contains(remark), "{:?}", answer.remarks);
    }
}

/// What is said of a connection from a program to a name, beside that it is allowed.
#[track_caller]
fn remarks(image: &MapImage, binary: &str, name: &str) -> String {
    use crate::compile::question::{Question, Target, answer};
    let (binary, target) = (binary.into(), Target::Name(name.to_owned()));
    let question = Question { binary, ancestors: Vec::new(), target, port: 443, transport: TCP };
    let answer = answer(image, &question);
    assert_eq!(answer.verdict, clawbox_common::verdict::Verdict::Allow, "{question:?}");
    answer.remarks.join("; ")
}

#[test]
fn of_the_rules_for_a_name_the_one_that_asks_most_is_asked_first_whatever_ports_they_have() {
    let (wild, exact) = ("host: \"*.b.test\"", "host: a.b.test");
    let (verify, ech) = ("sni: verify", "sni: verify, ech: allow");
    for (first, second, is_verified, may_hide) in [
        // The wildcard has a rule that verifies too, for another port.
        (format!("{wild}, port: 443 }}, {{ {wild}, port: 444, {verify}"), verify, true, false),
        (
            format!("{wild}, port: 443, {ech} }}, {{ {wild}, port: 444, {verify}"),
            verify,
            true,
            false,
        ),
        (format!("{wild}, port: 443, {verify}"), ech, true, false),
        (format!("{wild}, port: 443"), ech, true, true),
        (format!("{exact}, port: 443, {verify}"), ech, true, false),
        (format!("{exact}, port: 80, {verify}"), ech, true, true),
        (format!("{exact}, port: 443"), "transport: tcp", false, false),
    ] {
        let image = image(&format!(
            "version: 1\nnetwork_policies:\n  a:\n    endpoints: [{{ {first} }}, \
             {{ {exact}, port: 443, {second} }}]\n    binaries: [{{ path: /bin/a }}]\n"
        ));
        let remarks = remarks(&image, "/bin/a", "a.b.test");
        let found = (remarks.contains("sni: verify"), remarks.contains("ech: allow"));
        assert_eq!(found, (is_verified, may_hide), "{first}; {second}: {remarks}");
    }
}

#[test]
fn a_name_may_be_hidden_by_the_programs_whose_rule_says_so() {
    let image = image(
        "version: 1\nnetwork_policies:\n  a:\n    \
         endpoints: [{ host: a.test, port: 443, sni: verify, ech: allow }]\n    \
         binaries: [{ path: /bin/a }]\n  b:\n    \
         endpoints: [{ host: a.test, port: 443, sni: verify }]\n    \
         binaries: [{ path: /bin/b }]\n",
    );
    assert!(remarks(&image, "/bin/a", "a.test").contains("ech: allow"));
    let of_other = remarks(&image, "/bin/b", "a.test");
    assert!(of_other.contains("sni: verify") && !of_other.contains("ech: allow"), "{of_other}");
    assert!(!image.admits_hidden(0) && !image.admits_hidden(9));
}

#[test]
fn whose_program_is_not_known_may_hide_a_name_where_every_rule_for_the_connection_lets_it() {
    let allowed = "{ host: a.test, port: 443, sni: verify, ech: allow }";
    for (endpoints, expected) in [
        (allowed.to_owned(), true),
        (format!("{allowed}, {{ host: a.test, port: 443 }}"), true),
        (format!("{allowed}, {{ host: a.test, port: 444, sni: verify }}"), true),
        (format!("{allowed}, {{ host: a.test, port: 443, sni: verify }}"), false),
        (format!("{allowed}, {{ host: \"**.a.test\", port: 443, sni: verify }}"), true),
        ("{ host: a.test, port: 443 }".to_owned(), true),
        ("{ host: a.test, port: 444, sni: verify, ech: allow }".to_owned(), false),
        ("{ host: b.test, port: 443, sni: verify, ech: allow }".to_owned(), false),
        (allowed.replace("sni", "allowed_ips: [10.0.0.0/8], sni"), false),
    ] {
        let image = image(&format!(
            "version: 1\nnetwork_policies:\n  a:\n    endpoints: [{endpoints}]\n    \
             binaries: [{{ path: /bin/a }}]\n"
        ));
        let address = "1.0.0.1".parse().unwrap();
        assert_eq!(image.all_admit_hidden("a.test", address, 443), expected, "{endpoints}");
    }
}

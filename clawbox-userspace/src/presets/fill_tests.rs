//! Blanks are filled in where they stand, and a text that hides one is refused.

use super::*;
use crate::policy::parse_str;

fn filled(text: &str) -> Result<String, Vec<String>> {
    let file: Arc<str> = "p.yaml".into();
    let mut filler = Filler::here(Home::At("/home/agent".into()));
    // As if the settings had been read: two servers, one of them on the host's own loopback.
    let server = |host: &str, port| Server { host: host.to_owned(), port };
    filler.told.push((HostFrom::Pip, vec![server("pip.example", 443), server("::1", 3141)]));
    filler.fill(&file, text).map_err(|all| all.iter().map(ToString::to_string).collect())
}

const HEAD: &str = "version: 1\nfilesystem_policy:\n";

#[test]
fn a_home_is_filled_in_wherever_a_path_may_stand() {
    let text = "version: 1\nfilesystem_policy:\n  read_only: [~/.a, '~/b c']  # ~/.a stays\n  read_write:\n    - ~/d\n  \
                rules: [{ binaries: [{ path: ~/e }], read_only: [~/f] }]\nexecution: { allow: [\"~/g\"] }\n\
                unix_sockets: { allow: [~/h] }\n";
    let result = filled(text).unwrap();
    assert_eq!(
        result,
        "version: 1\nfilesystem_policy:\n  read_only: [\"/home/agent/.a\", \"/home/agent/b c\"]  # ~/.a stays\n  \
         read_write:\n    - \"/home/agent/d\"\n  rules: [{ binaries: [{ path: \"/home/agent/e\" }], read_only: \
         [\"/home/agent/f\"] }]\nexecution: { allow: [\"/home/agent/g\"] }\nunix_sockets: { allow: \
         [\"/home/agent/h\"] }\n"
    );
    parse_str("p.yaml", &result).unwrap();
}

#[test]
fn a_group_becomes_its_paths_in_either_kind_of_list() {
    for list in [
        "  deny: [/x, group:container-sockets]\n",
        "  deny:\n    - /x\n    - group:container-sockets # c\n",
    ] {
        let result = filled(&format!("{HEAD}{list}")).unwrap();
        let policy = parse_str("p.yaml", &result).unwrap().policy;
        let deny: Vec<String> =
            policy.filesystem.deny().iter().map(|at| at.value.to_string()).collect();
        assert_eq!(deny.first().map(String::as_str), Some("/x"));
        for path in ["/run/docker.sock", "/home/agent/.docker/run"] {
            assert!(deny.iter().any(|known| known == path), "{deny:?}");
        }
    }
    let error = filled(&format!("{HEAD}  deny: [group:credential]\n")).unwrap_err();
    assert_eq!(
        error,
        ["p.yaml:3:10: error: there is no group \"credential\"; did you mean `group:credentials`?"]
    );
}

#[test]
fn an_endpoint_becomes_one_for_each_server() {
    let before = "version: 1\nnetwork_policies:\n  a:\n    endpoints:\n";
    let after = "    binaries: [{ path: /usr/bin/pip }]\n";
    let list = format!(
        "{before}      - {{ host_from: pip }} # why\n      - {{ host: a.example, port: 1 }}\n{after}"
    );
    let flow = format!("{before}{after}")
        .replace("endpoints:", "endpoints: [{ host_from: \"pip\" }, { host: a.example, port: 1 }]");
    for text in [list, flow] {
        let result = filled(&text).unwrap();
        let policy = parse_str("p.yaml", &result).unwrap().policy;
        let endpoints: Vec<String> =
            policy.network.first().unwrap().endpoints.iter().map(ToString::to_string).collect();
        assert_eq!(endpoints, ["pip.example:443/tcp", "[::1]:3141/tcp", "a.example:1/tcp"]);
        assert_eq!(result.contains("# why"), text.contains("# why"));
    }
    let block = format!("{before}      - host_from: pip\n        sni: verify\n{after}");
    let spaced = format!("{before}      - {{ host_from:  pip }}\n{after}");
    assert!(filled(&spaced).unwrap_err().first().unwrap().contains("one space"));
    let error = filled(&block).unwrap_err();
    assert!(error.first().unwrap().contains("in braces"), "{error:?}");
}

#[test]
fn what_nobody_filled_in_does_not_load_and_says_who_does() {
    for (text, says) in [
        (format!("{HEAD}  deny: [group:credentials]\n"), "stands for the paths of a group"),
        (format!("{HEAD}  read_only: [~/x]\n"), "`~/` is filled in by"),
        (
            "version: 1\nnetwork_policies: { a: { endpoints: [{ host_from: pip }] } }\n".to_owned(),
            "nothing has filled them in",
        ),
    ] {
        let error = parse_str("p.yaml", &text).unwrap_err();
        assert!(error.iter().any(|said| said.to_string().contains(says)), "{error:?}");
    }
}

#[test]
fn a_blank_that_an_anchor_or_a_fold_hides_is_refused() {
    for text in ["  read_only: [\"~/\\u0061\"]\n", "  read_only:\n    - >-\n      ~/x\n"] {
        let error = filled(&format!("{HEAD}{text}")).unwrap_err();
        assert!(error.first().unwrap().contains("write it plainly"), "{error:?}");
    }
}

#[test]
fn what_is_missing_in_many_places_is_said_once() {
    let mut filler = Filler::here(Home::At("/home/with space".into()));
    let text = format!("{HEAD}  read_only: [~/a, ~/b]\n  deny: [~/c, group:nothing]\n");
    let errors = filler.fill(&"p.yaml".into(), &text).unwrap_err();
    let places: Vec<String> = errors.iter().map(|error| error.origin.to_string()).collect();
    assert_eq!(places, ["p.yaml:3:15", "p.yaml:4:15"]);
}

//! What lint finds and what it does not, and that all that is shipped is clean.

use std::sync::Arc;

use super::*;
use crate::policy::{load_texts, parse_str};
use crate::presets::embedded::{PRESETS, PROFILES};
use crate::presets::{Filler, Home};

fn found(text: &str) -> Vec<String> {
    let loaded = parse_str("p.yaml", text).unwrap();
    let all = lint(&loaded, &HostFacts::default(), Some(Path::new("/home/dev"))).unwrap();
    let warnings = all.into_iter().filter(Finding::is_warning);
    warnings.map(|finding| format!("{}: {}", finding.check, finding.diagnostic)).collect()
}

fn network(endpoints: &str, binary: &str) -> String {
    format!(
        "version: 1\nnetwork_policies:\n  a:\n    endpoints: [{endpoints}]\n    \
         binaries: [{{ path: \"{binary}\" }}]\n"
    )
}

#[test]
fn each_check_finds_what_it_is_for_and_leaves_what_is_right() {
    let curl = "/opt/none/curl";
    for (text, check, says) in [
        (
            network("{ host: \"*.a.test\", port: 1 }, { host: b.a.test, port: 1 }", curl),
            "shadowed",
            "b.a.test:1/tcp is allowed by network_policies.a.endpoints[0] already",
        ),
        (network("{ host: a.test, port: 1 }", "/**"), "broad", "every program"),
        (network("{ host: \"*.github.io\", port: 1 }", curl), "broad", "anybody can have"),
        (network("{ allowed_ips: [0.0.0.0/1], port: 1 }", curl), "broad", "all addresses"),
        (network("{ host: a.pages.dev, port: 443 }", curl), "shared-host", "many hosts'"),
        (
            "version: 1\nfilesystem_policy: { read_only: [/usr, /usr/lib] }\n".to_owned(),
            "shadowed",
            "`/usr/lib` is below `/usr`",
        ),
        (
            "version: 1\nfilesystem_policy: { read_write: [/home/dev] }\n".to_owned(),
            "broad",
            "the whole of `/home/dev` may be written",
        ),
        (
            "version: 1\nfilesystem_policy: { read_only: [/etc] }\n".to_owned(),
            "secret",
            "`/etc/shadow` and 2 more may be read",
        ),
        ("version: 1\nmode: audit\n".to_owned(), "mode", "lets it through"),
        (
            format!(
                "{}filesystem_policy: {{ read_write: [/opt/none] }}\n",
                network("{ host: a.test, port: 1 }", curl)
            ),
            "broad",
            "which the sandbox may write",
        ),
    ] {
        let all = found(&text);
        let is_found = all.iter().any(|line| line.starts_with(check) && line.contains(says));
        assert!(is_found, "{says}: {all:?}");
    }
    for text in [
        network("{ host: \"*.a.test\", port: 1 }, { host: b.a.test, port: 2 }", curl),
        network(
            "{ host: \"*.a.test\", port: 443 }, { host: b.a.test, port: 443, sni: verify }",
            curl,
        ),
        network("{ host: a.pages.dev, port: 443, sni: verify }", curl),
        "version: 1\nfilesystem_policy:\n  read_only: [/etc/ssl, /srv/a]\n  read_write: [/srv]\n"
            .to_owned(),
    ] {
        let all: Vec<String> =
            found(&text).into_iter().filter(|line| !line.contains("whole of `/srv`")).collect();
        assert_eq!(all, Vec::<String>::new(), "{text}");
    }
}

#[test]
fn what_only_bpf_lsm_holds_is_a_note_and_leaves_the_policy_clean() {
    let text = "version: 1\nfilesystem_policy:\n  read_write: [/srv/a]\n  deny: [/srv/a/keys]\n";
    let loaded = parse_str("p.yaml", text).unwrap();
    let all = lint(&loaded, &HostFacts::default(), None).unwrap();
    assert!(all.iter().any(|finding| finding.check == "lsm-only"), "{all:?}");
    assert!(!all.iter().any(Finding::is_warning), "{all:?}");
}

#[test]
fn every_preset_and_profile_that_is_shipped_is_clean() {
    let home = Path::new("/home/dev");
    let mut unclean = Vec::new();
    for shipped in PRESETS.iter().chain(PROFILES) {
        let file: Arc<str> = shipped.name.into();
        // No machine's settings decide whether it is clean.
        let text =
            ["pip", "npm", "cargo", "apt"].iter().fold(shipped.text.to_owned(), |text, client| {
                text.replace(&format!("host_from: {client}"), "host: a.pages.dev, port: 443")
            });
        let text = Filler::here(Home::At(home.into())).fill(&file, &text).unwrap();
        let loaded = load_texts(&[(file, text)]).unwrap();
        let all = lint(&loaded, &HostFacts::default(), Some(home)).unwrap();
        let warnings = all.iter().filter(|finding| finding.is_warning());
        unclean.extend(warnings.map(|found| format!("{}: {}", found.check, found.diagnostic)));
    }
    assert_eq!(unclean, Vec::<String>::new());
}

//! Everything that is built in loads, says why, and names no host that the machine is to name.

use std::collections::HashSet;

use super::embedded::GROUPS;
use super::settings::Machine;
use super::*;
use crate::compile::compile;
use crate::policy::drafted::draft;
use crate::policy::model::Policy;
use crate::policy::network::Host;
use crate::policy::{HostFrom, Kind, Severity, parse_str};

const CLIENTS: [HostFrom; 4] = [HostFrom::Pip, HostFrom::Npm, HostFrom::Cargo, HostFrom::Apt];
const HOME: &str = "/home/agent";

fn directory(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies").join(name)
}

/// The text with a server for each client, so that no machine's settings decide whether it loads.
fn with_hosts(text: &str) -> String {
    ["pip", "npm", "cargo", "apt"].iter().fold(text.to_owned(), |text, client| {
        text.replace(&format!("host_from: {client}"), "host: packages.example.com, port: 443")
    })
}

fn filled(embedded: &Embedded) -> String {
    let text = with_hosts(embedded.text);
    Filler::here(Home::At(HOME.into())).fill(&embedded.name.into(), &text).unwrap()
}

#[track_caller]
fn loaded(embedded: &Embedded, kind: Kind) -> Policy {
    let loaded = parse_str(embedded.name, &filled(embedded)).unwrap();
    let said: Vec<String> = loaded.diagnostics.iter().map(ToString::to_string).collect();
    assert!(said.is_empty(), "{said:#?}");
    assert_eq!(loaded.kind, kind, "{}", embedded.name);
    compile(&loaded.policy, 1).unwrap();
    loaded.policy
}

#[test]
fn every_file_of_the_directories_is_built_in() {
    for (all, name) in [(PRESETS, "presets"), (PROFILES, "claws")] {
        let known: HashSet<String> = all.iter().map(|at| format!("{}.yaml", at.name)).collect();
        let files = std::fs::read_dir(directory(name)).unwrap();
        let files: HashSet<String> =
            files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
        assert_eq!(known, files);
    }
}

#[test]
fn every_preset_loads_without_a_remark_and_has_programs_and_exact_ports() {
    for preset in PRESETS {
        let policy = loaded(preset, Kind::Preset);
        for entry in &policy.network {
            assert!(!entry.binaries.is_empty() && !entry.endpoints.is_empty(), "{}", entry.key);
            assert!(entry.binaries.iter().all(|binary| !binary.pattern.is_anybody()));
            for endpoint in &entry.endpoints {
                assert!(!matches!(endpoint.host(), Host::Ranges), "{endpoint}");
                assert_eq!(endpoint.ports().len(), 1, "{endpoint}");
            }
        }
        let (description, _) =
            crate::policy::drafted::about(&preset.name.into(), preset.text).unwrap();
        assert!(!description.is_empty(), "{}", preset.name);
    }
}

#[test]
fn every_preset_is_merged_with_every_other_one() {
    let head = ("p.yaml".into(), "version: 1\n".to_owned());
    let all = PRESETS.iter().map(|preset| (preset.name.into(), filled(preset)));
    let texts: Vec<Named> = std::iter::once(head).chain(all).collect();
    let loaded = load_texts(&texts).unwrap();
    assert!(loaded.diagnostics.is_empty(), "{:?}", loaded.diagnostics);
    compile(&loaded.policy, 1).unwrap();
}

#[test]
fn every_profile_loads_without_a_remark_and_takes_a_preset() {
    for profile in PROFILES {
        let policy = loaded(profile, Kind::Policy);
        assert!(!policy.network.is_empty() && policy.filesystem.is_written(), "{}", profile.name);
        let telegram = ("telegram".into(), preset("telegram").unwrap().text.to_owned());
        let both = load_texts(&[(profile.name.into(), filled(profile)), telegram]).unwrap();
        assert_eq!(both.policy.network.len(), policy.network.len() + 1);
        assert!(both.diagnostics.iter().all(|said| said.severity != Severity::Error));
    }
}

#[test]
fn every_entry_and_every_wildcard_says_why() {
    for embedded in PRESETS.iter().chain(PROFILES) {
        let lines: Vec<&str> = embedded.text.lines().collect();
        let start = lines.iter().position(|line| *line == "network_policies:").unwrap();
        for (index, line) in lines.iter().enumerate().skip(start + 1) {
            let is_key = line.starts_with("  ") && !line.starts_with("   ") && line.ends_with(':');
            let is_wild = line.contains("host: \"*") || line.contains("-*");
            if is_key || is_wild {
                let before = lines[index - 1].trim();
                let says = before.starts_with("# ") && before.len() > 12;
                assert!(says, "{}:{}: {line}", embedded.name, index + 1);
                assert!(!is_wild || before.contains("wildcard"), "{}: {line}", embedded.name);
            }
        }
    }
}

#[test]
fn what_is_built_in_names_no_host_of_this_machine_s_own_settings() {
    let machine = Machine::here();
    let hosts: Vec<String> = CLIENTS
        .into_iter()
        .filter_map(|client| machine.servers(client).ok())
        .flatten()
        .map(|server| server.host)
        .collect();
    for text in PRESETS.iter().chain(PROFILES).map(|at| at.text).chain([GROUPS]) {
        for host in &hosts {
            let quoted =
                [format!("host: {host},"), format!("host: \"{host}\""), format!("/{host}")];
            assert!(!quoted.iter().any(|host| text.contains(host)));
        }
    }
    for name in ["pypi", "npm", "crates", "apt"] {
        let text = preset(name).unwrap().text;
        assert!(text.contains("host_from: ") && !text.contains("host: "), "{name}");
        assert!(hosts.iter().all(|host| !text.contains(host.as_str())), "{name}");
    }
}

#[test]
fn a_name_that_is_none_is_told_the_nearest_and_a_path_is_a_file() {
    let error = read_preset("telegramm").unwrap_err().to_string();
    assert!(error.contains("did you mean `telegram`?"), "{error}");
    let error = read_preset("zzzzzzzzz").unwrap_err().to_string();
    assert!(error.contains("clawbox preset list"), "{error}");
    for (argument, expected) in
        [("./telegram", true), ("telegram.yaml", true), ("a/b.yml", true), ("telegram", false)]
    {
        assert_eq!(is_file(argument), expected, "{argument}");
    }
    assert!(profile("open-claw").unwrap_err().to_string().contains("did you mean `openclaw`?"));
}

#[test]
fn every_group_has_paths_that_deny_takes_and_no_policy_has_too_many() {
    let groups = groups::groups().unwrap();
    for name in [
        "credentials",
        "keyrings",
        "browser-data",
        "shell-startup",
        "git-config",
        "editor-config",
        "container-sockets",
    ] {
        let (_, group) = groups.iter().find(|(known, _)| known == name).unwrap();
        assert!(!group.paths.is_empty() && !group.description.is_empty());
        for path in &group.paths {
            let is_everywhere =
                path.strip_prefix("**/").is_some_and(|name| !name.contains(['/', '*']));
            assert!(is_everywhere || path.starts_with("~/") || path.starts_with('/'), "{path}");
            assert!(is_everywhere || !path.contains('*'), "{path}");
        }
    }
    let names: Vec<String> = groups.iter().map(|(name, _)| format!("group:{name}")).collect();
    let text = format!("version: 1\nfilesystem_policy:\n  deny: [{}]\n", names.join(", "));
    let file = "p.yaml".into();
    let text = Filler::here(Home::At(HOME.into())).fill(&file, &text).unwrap();
    let policy = parse_str(&file, &text).unwrap().policy;
    let paths: usize = groups.iter().map(|(_, group)| group.paths.len()).sum();
    assert_eq!(policy.filesystem.deny().len(), paths);
}

#[test]
fn whoever_leaves_a_blank_is_seen_to_without_being_read() {
    let mut with_blanks = 0;
    for at in PRESETS.iter().chain(PROFILES) {
        let places = draft(&at.name.into(), at.text).unwrap().places;
        with_blanks += usize::from(!places.is_empty());
        assert!(places.is_empty() || may_leave_blanks(at.text), "{}", at.name);
    }
    assert!(with_blanks > 10, "{with_blanks}");
    let policy = |deny: &str| {
        format!("version: 1\nprocess: {{ run_as_group: x }}\nfilesystem_policy:\n  {deny}\n")
    };
    for (deny, expected) in [
        ("deny: [/x]", false),
        ("deny: [group:keyrings]", true),
        ("deny: [\"\\x7e/x\"]", true),
        ("deny: [\"gr\\u006fup:keyrings\"]", true),
        ("deny: [~/x]", true),
    ] {
        let text = policy(deny);
        assert_eq!(may_leave_blanks(&text), expected, "{deny}");
        let places = draft(&"p.yaml".into(), &text).unwrap().places;
        assert_eq!(!places.is_empty(), expected, "{deny}");
    }
}

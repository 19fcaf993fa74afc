//! What becomes of what was seen: which paths stand for it, what is left out, and that the policy loads.

use super::observed::Uses;
use super::*;
use crate::policy::parse_str;
use crate::presets::{Home, Named};

fn place() -> Place {
    Place { workdir: "/srv/agent".into(), home: Some("/home/dev".into()), program: None }
}

fn observed(files: &[(&str, bool, bool)]) -> Observed {
    let mut observed = Observed::default();
    for (path, is_written, is_made) in files {
        let uses = Uses {
            is_written: *is_written,
            is_made: *is_made,
            programs: BTreeSet::from(["/usr/bin/agent".to_owned()]),
            ..Uses::default()
        };
        observed.files.insert(path.into(), uses);
    }
    observed
}

fn learned_paths(learned: &Learned, list: List) -> Vec<&str> {
    let of_list = learned.paths.iter().filter(|added| added.list == list);
    of_list.map(|added| added.value.as_str()).collect()
}

#[test]
fn paths_become_directories_of_their_own_and_secrets_never_do() {
    let observed = observed(&[
        ("/usr/lib/x.so", false, false),
        ("/etc/ssl/certs/a.pem", false, false),
        ("/etc/hosts", false, false),
        ("/srv/agent/main.py", false, false),
        ("/home/dev/.config/tool/settings", false, false),
        ("/home/dev/.cache/tool/x/y", true, true),
        ("/home/dev/.tool/state", true, false),
        ("/home/dev/.gitconfig", false, false),
        ("/home/dev/notes", false, false),
        ("/home/dev/.ssh/id_ed25519", false, false),
        ("/srv/keys/id_rsa", false, false),
        ("/etc/cron.d/x", true, true),
        ("/dev/null", true, false),
        ("/var/lib/tool/db", true, true),
    ]);
    let learned = learn(&observed, &place());
    assert_eq!(
        learned_paths(&learned, List::ReadOnly),
        [
            "/etc/hosts",
            "/etc/ssl",
            "/home/dev/.config/tool",
            "/home/dev/.gitconfig",
            "/home/dev/notes",
            "/proc",
            "/srv/agent",
            "/usr"
        ]
    );
    assert_eq!(
        learned_paths(&learned, List::ReadWrite),
        ["/dev/null", "/home/dev/.cache/tool", "/home/dev/.tool/state", "/var/lib/tool"]
    );
    let left: Vec<&str> = learned.left_out.iter().map(|left| left.what.as_str()).collect();
    assert_eq!(
        left,
        [
            "/usr/bin/agent reads /home/dev/.ssh/id_ed25519",
            "/usr/bin/agent reads /srv/keys/id_rsa",
            "/usr/bin/agent writes /etc/cron.d/x",
        ]
    );
    assert!(learned.remarks[0].contains(".gitconfig is read"), "{:?}", learned.remarks);
}

#[test]
fn a_directory_in_which_a_secret_was_seen_is_not_taken_whole() {
    let learned = learn(
        &observed(&[("/srv/agent/id_rsa", false, false), ("/srv/agent/x", false, false)]),
        &place(),
    );
    assert_eq!(learned_paths(&learned, List::ReadOnly), ["/proc", "/srv/agent/x"]);
}

#[test]
fn a_home_that_is_the_working_directory_is_never_taken_whole() {
    let place = Place { workdir: "/home/dev".into(), ..place() };
    let learned =
        learn(&observed(&[("/home/dev/a/b", true, true), ("/home/dev/c", true, true)]), &place);
    assert_eq!(
        learned_paths(&learned, List::ReadWrite),
        ["/dev/null", "/home/dev/a", "/home/dev/c"]
    );
    assert!(learned.remarks[0].contains("made anew"), "{:?}", learned.remarks);
}

#[test]
fn what_is_closed_as_an_agents_settings_is_open_to_that_agent_alone() {
    let files = [
        ("/home/dev/.codex/sessions/1", true, true),
        ("/home/dev/.codex/config.toml", false, false),
        ("/home/dev/.claude/settings.json", true, false),
        ("/home/dev/.config/gh/hosts.yml", false, false),
    ];
    let place = |program: &str| Place { program: Some(program.to_owned()), ..place() };
    let codex = learn(&observed(&files), &place("codex"));
    assert_eq!(learned_paths(&codex, List::ReadWrite), ["/dev/null", "/home/dev/.codex"]);
    assert_eq!(codex.left_out.len(), 2, "{:?}", codex.left_out);
    assert!(codex.remarks[0].contains("/home/dev/.codex has"), "{:?}", codex.remarks);
    // A secret stays one, whatever the program is called.
    for other in ["agent", "gh", "ssh"] {
        let learned = learn(&observed(&files), &place(other));
        assert_eq!(learned_paths(&learned, List::ReadWrite), ["/dev/null"], "{other}");
        assert!(learned.left_out.iter().any(|left| left.what.contains("gh/hosts.yml")));
    }
}

fn spoken(program: &str, host: &str, port: u16) -> (Spoken, u64) {
    let (program, host) = (program.to_owned(), host.to_owned());
    (Spoken { program, host, port, transport: TCP }, 2)
}

#[test]
fn connections_become_rules_for_names_and_what_no_policy_opens_is_left_out() {
    let observed = Observed {
        spoken: BTreeMap::from([
            spoken("/usr/bin/curl", "api.test", 443),
            spoken("/usr/bin/curl", "127.0.0.1", 5432),
            spoken("/usr/bin/curl", "169.254.169.254", 80),
            spoken("/usr/bin/curl", "192.0.2.7", 80),
            spoken("/opt/a*/curl", "api.test", 443),
        ]),
        listened: BTreeSet::from([8080]),
        ..Observed::default()
    };
    let learned = learn(&observed, &place());
    assert_eq!(learned.left_out.len(), 3, "{:?}", learned.left_out);
    let text = written::policy(&learned, Some("nobody"), "agent \u{1b}x\ny");
    assert!(!text.contains('\u{1b}'), "{text}");
    let loaded = parse_str("learned.yaml", &text).unwrap();
    let hosts: Vec<String> =
        loaded.policy.network[0].endpoints.iter().map(ToString::to_string).collect();
    assert_eq!(hosts, ["192.0.2.7:80/tcp", "api.test:443/tcp"], "{text}");
    assert!(text.contains("# seen: 2 connections\n      - { host: \"api.test\""), "{text}");
    assert!(text.contains("ports: [8080]") && text.contains("run_as_user: \"nobody\""), "{text}");
}

#[test]
fn a_policy_is_widened_by_what_it_lacks_alone_and_keeps_its_comments() {
    let observed = Observed {
        spoken: BTreeMap::from([
            spoken("/usr/bin/curl", "api.test", 443),
            spoken("/usr/bin/curl", "new.test", 443),
        ]),
        ..observed(&[("/usr/bin/x", false, false), ("/srv/agent/out", true, true)])
    };
    let learned = learn(&observed, &place());
    let before = "version: 1\n# Mine.\nfilesystem_policy:\n  read_only: [/usr, /proc]\n  read_write: \
        [/dev/null]\nnetwork_policies:\n  learned_curl: # mine\n    endpoints: [{ host: api.test, port: \
        443 }]\n    binaries: [{ path: /usr/bin/curl }]\n";
    let before: Named = ("p.yaml".into(), before.to_owned());
    let after = written::merged(&learned, &before, Home::Later, &place().workdir).unwrap();
    assert!(after.contains("# Mine.") && after.contains("learned_curl: # mine"), "{after}");
    assert!(after.contains("[/dev/null, \"/srv/agent\"]"), "{after}");
    assert!(after.contains("\"learned_curl_2\"") && after.contains("new.test"), "{after}");
    assert_eq!(after.matches("api.test").count(), 1, "{after}");
    let again: Named = ("p.yaml".into(), after.clone());
    assert_eq!(written::merged(&learned, &again, Home::Later, &place().workdir).unwrap(), after);
}

#[test]
fn sockets_are_opened_one_by_one_and_those_by_which_others_act_are_left_out() {
    let mut observed = observed(&[("/srv/agent/out", true, true)]);
    let reached =
        observed::Reached { count: 2, programs: BTreeSet::from(["/usr/bin/psql".into()]) };
    for path in [
        "/run/db/sock",
        "/run/dbus/system_bus_socket",
        "/srv/agent/own",
        "/run/docker.sock",
        "/run/user/1000/bus",
        "/run/user/1000/gnupg/S.gpg-agent",
        "/tmp/ssh-XXXX/agent.1",
        "/home/dev/.gnupg/S.gpg-agent",
        "/run/systemd/private",
        "@",
        "…/x",
    ] {
        observed.reached.insert(path.into(), reached.clone());
    }
    let learned = learn(&observed, &place());
    let opened: Vec<&str> = learned.sockets.iter().map(|item| item.value.as_str()).collect();
    assert_eq!(opened, ["/run/db/sock", "/run/dbus/system_bus_socket"]);
    assert!(learned.remarks.iter().any(|remark| remark.contains("the host's message bus")));
    assert_eq!(learned.left_out.len(), 8, "{:#?}", learned.left_out);
    let docker = learned.left_out.iter().find(|left| left.what.contains("/run/docker.sock"));
    let docker = docker.unwrap();
    assert!(docker.because.contains("the whole host"), "{docker:?}");
    assert_eq!(docker.options.as_deref().unwrap(), ["--socket", "/run/docker.sock"]);
    let text = written::policy(&learned, None, "agent");
    let says =
        "unix_sockets:\n  allow:\n    # seen: reached 2 times, by psql\n    - \"/run/db/sock\"\n";
    assert!(text.contains(says) && text.contains("reaches the Unix socket @"), "{text}");
    let policy = parse_str("learned.yaml", &text).unwrap().policy;
    assert_eq!(policy.unix_sockets.unwrap().value.len(), 2);

    // A policy that has one of them, and no port, gets the rest.
    observed.listened.insert(8080);
    let learned = learn(&observed, &place());
    let before = "version: 1\nfilesystem_policy: { read_only: [/proc], read_write: [/dev/null, /srv/agent] }\n\
                  unix_sockets: { allow: [/run/db/sock] } # mine\nlisten: { ports: [80] }\n";
    let before: Named = ("p.yaml".into(), before.to_owned());
    let after = written::merged(&learned, &before, Home::Later, &place().workdir).unwrap();
    let both = "allow: [/run/db/sock, \"/run/dbus/system_bus_socket\"] } # mine";
    assert!(after.contains(both) && after.contains("ports: [80, 8080]"), "{after}");
}

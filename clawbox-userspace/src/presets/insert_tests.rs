//! What is added to a policy's text, and what is left of it.

use super::*;
use crate::policy::parse_str;

fn added(text: &str, list: FileList, path_text: &str) -> Result<String, Vec<Diagnostic>> {
    let file: Arc<str> = "p.yaml".into();
    let because = Some("seen twice".to_owned());
    path((&file, text), &PathAdded { list, path: path_text.to_owned(), because })
}

#[test]
fn a_path_is_added_to_a_list_however_it_is_written() {
    for (before, after) in [
        (
            "version: 1\nfilesystem_policy:\n  read_only:\n    - /usr # all\n    # end\n",
            "version: 1\nfilesystem_policy:\n  read_only:\n    - /usr # all\n    # seen twice\n    \
             - \"/srv/a\"\n    # end\n",
        ),
        (
            "version: 1\nfilesystem_policy: { read_only: [/usr, \"/etc\"] }\n",
            "version: 1\nfilesystem_policy: { read_only: [/usr, \"/etc\", \"/srv/a\"] }\n",
        ),
        (
            "version: 1\nfilesystem_policy:\n   # Mine.\n   read_write: [/tmp]\n",
            "version: 1\nfilesystem_policy:\n   read_only:\n     # seen twice\n     - \"/srv/a\"\n   \
             # Mine.\n   read_write: [/tmp]\n",
        ),
        (
            "version: 1\nfilesystem_policy: { read_only: [] }\n",
            "version: 1\nfilesystem_policy: { read_only: [\"/srv/a\"] }\n",
        ),
        (
            "version: 1",
            "version: 1\nfilesystem_policy:\n    read_only:\n      # seen twice\n      - \"/srv/a\"\n",
        ),
    ] {
        assert_eq!(added(before, FileList::ReadOnly, "/srv/a").unwrap(), after, "{before}");
    }
}

#[test]
fn what_cannot_be_added_to_is_left_and_said() {
    let text = "version: 1\nfilesystem_policy: { read_only: [/usr] }\n";
    let error = added(text, FileList::ReadWrite, "/srv/a").unwrap_err();
    assert!(error[0].message.contains("nothing can be added"), "{error:?}");
    let error = added(text, FileList::ReadOnly, "/usr").unwrap_err();
    assert!(error[0].message.contains("already"), "{error:?}");
}

#[test]
fn an_endpoint_is_added_with_its_reason_and_loads() {
    let file: Arc<str> = "p.yaml".into();
    let text = "version: 1\nnetwork_policies:\n  # Mine.\n  a:\n    endpoints: []\n# end\n";
    let endpoint = |host: &str, port, transport| EndpointAdded {
        host: host.to_owned(),
        port,
        transport,
        because: Some("3 connections\nby \u{1b}curl".to_owned()),
    };
    let mut all = text.to_owned();
    for added in [
        endpoint("a.test", 443, TCP),
        endpoint("192.0.2.1", 53, UDP),
        endpoint("localhost", 80, TCP),
    ] {
        all = entry((&file, &all), &Entry::of("/usr/bin/curl", added)).unwrap();
    }
    assert!(all.contains("  # Mine.\n") && all.ends_with("# end\n"), "{all}");
    assert!(all.contains("host: \"a.test\", port: 443, sni: verify"), "{all}");
    assert!(all.contains("transport: udp") && all.contains("host_loopback: true"), "{all}");
    assert!(!all.contains('\u{1b}'), "{all}");
    assert_eq!(parse_str("p.yaml", &all).unwrap().policy.network.len(), 4);
}

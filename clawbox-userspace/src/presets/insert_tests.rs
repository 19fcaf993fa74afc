//! What is added to a policy's text, and what is left of it.

use super::*;
use crate::judge::statement::Statement;
use crate::policy::parse_str;

fn added(text: &str, list: List, value: &str) -> Result<String, Vec<Diagnostic>> {
    let file: Arc<str> = "p.yaml".into();
    let because = Some("seen twice".to_owned());
    item((&file, text), &Item { list, value: value.to_owned(), because })
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
        assert_eq!(added(before, List::ReadOnly, "/srv/a").unwrap(), after, "{before}");
    }
}

#[test]
fn what_cannot_be_added_to_is_left_and_said() {
    let text = "version: 1\nfilesystem_policy: &a { read_only: [/usr] }\n";
    let error = added(text, List::ReadWrite, "/srv/a").unwrap_err();
    assert!(error[0].message.contains("nothing can be added"), "{error:?}");
    let error = added(text, List::ReadOnly, "/usr").unwrap_err();
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

/// A deed that is denied for a reason, written into a text behind `version: 1`.
fn with_deed(text: &str, statement: &str, reason: Reason) -> Result<String, Vec<Diagnostic>> {
    let file: Arc<str> = "p.yaml".into();
    let said = Statement::parse(&format!("any → {statement}"), None).unwrap();
    let changed = deed((&file, &format!("version: 1\n{text}")), "/any", &said.deed, reason)?;
    parse_str("p.yaml", &changed).unwrap();
    Ok(changed.strip_prefix("version: 1\n").unwrap().to_owned())
}

#[test]
fn a_port_is_listened_on_by_the_least_that_the_language_can_say() {
    for (before, statement, after) in [
        ("", "listen 80", "listen:\n    ports: [80]\n    addresses: [\"127.0.0.1\"]\n"),
        (
            "# end",
            "listen [::1]:80/udp",
            "# end\nlisten:\n    ports: [80]\n    addresses: [\"::1\"]\n    transport: udp\n",
        ),
        // Without addresses it is both of loopback.
        ("listen: { ports: [1] } # web\n", "listen [::1]:80", "listen: { ports: [1, 80] } # web\n"),
        (
            "listen:\n  # All.\n  ports:\n    - 80 # web\nmode: enforce\n",
            "listen 192.0.2.1:80",
            "listen:\n  addresses:\n    - \"127.0.0.1\"\n    - \"::1\"\n    - \"192.0.2.1\"\n  # All.\n  \
             ports:\n    - 80 # web\nmode: enforce\n",
        ),
        (
            "listen: {ports: [1], addresses: [127.0.0.1], transport: any}\n",
            "listen 0.0.0.0:1/udp",
            "listen: {ports: [1], addresses: [127.0.0.1, \"0.0.0.0\"], transport: any}\n",
        ),
    ] {
        let reason = Reason::ListenNotAllowed;
        assert_eq!(with_deed(before, statement, reason).unwrap(), after, "{before}");
    }
    let text = "listen: { ports: [1] }\n";
    let error = with_deed(text, "listen 1/udp", Reason::ListenNotAllowed).unwrap_err();
    assert!(error[0].message.contains("other transport"), "{error:?}");
}

#[test]
fn a_program_joins_the_list_that_it_is_missing_in_and_no_other() {
    for (before, reason, after) in [
        (
            "unix_sockets: { allow: [] }\nexecution: { allow: [] }\n",
            Reason::UnlistedProgram,
            "unix_sockets: { allow: [] }\nexecution: { allow: [\"/x\"] }\n",
        ),
        (
            "execution:\n  allow:\n    - /a # mine\n",
            Reason::UnlistedProgram,
            "execution:\n  allow:\n    - /a # mine\n    - \"/x\"\n",
        ),
        ("", Reason::WritableProgram, "execution:\n    from_writable: allow\n"),
        (
            "execution: { allow: [/x] }\n",
            Reason::WritableProgram,
            "execution: { from_writable: allow, allow: [/x] }\n",
        ),
        (
            "execution:\n  # why\n  from_writable: deny # so\n",
            Reason::WritableProgram,
            "execution:\n  # why\n  from_writable: allow # so\n",
        ),
    ] {
        assert_eq!(with_deed(before, "execute /x", reason).unwrap(), after, "{before}");
    }
    let socket = with_deed("", "reach /run/s", Reason::UnknownFile).unwrap();
    assert_eq!(socket, "unix_sockets:\n    allow:\n      - \"/run/s\"\n");
}

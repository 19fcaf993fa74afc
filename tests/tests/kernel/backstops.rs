//! What holds beneath the hooks: kinds of sockets that nobody could judge are not made, and the
//! ways to another identity, namespace or kernel are closed.

use crate::scene::Scene;

/// Not made for anybody in a sandbox, root included.
const CLOSED: [&str; 25] = [
    "raw",
    "raw-udp",
    "raw6",
    "ping",
    "ping6",
    "sctp",
    "sctp-stream",
    "mptcp",
    "udplite",
    "dccp",
    "smc-by-protocol",
    "smc",
    "packet",
    "packet-datagram",
    "vsock",
    "alg",
    "xdp",
    "bluetooth",
    "can",
    "tipc",
    "rds",
    "netlink-audit",
    "netlink-netfilter",
    "netlink-diag",
    "netlink-generic",
];

#[test]
fn only_sockets_whose_every_packet_is_judged_are_made() {
    let scene = Scene::new();
    let policy =
        scene.allowing_attack("{ port: 7, transport: any, allowed_ips: [0.0.0.0/0, \"::/0\"] }");
    let mut steps: Vec<String> = CLOSED.iter().map(|kind| format!("socket={kind}")).collect();
    steps.extend(["socket=netlink-route", "socket=unix"].map(str::to_owned));
    let words: Vec<&str> = steps.iter().map(String::as_str).collect();
    for user in [Some("nobody"), None] {
        let attack = scene.attack();
        let command: Vec<&str> =
            [attack.as_str()].into_iter().chain(words.iter().copied()).collect();
        let run =
            clawbox_tests::clawbox::Clawbox::new(&scene.world, &policy).user(user).run(&command);
        let account = crate::scene::Account::of(run);
        let outcomes = account.outcomes();
        let (closed, open) = outcomes.split_at(CLOSED.len());
        assert!(closed.iter().all(|(_, outcome)| *outcome == "EPERM"), "{user:?}: {closed:?}");
        assert!(open.iter().all(|(_, outcome)| *outcome == "ok"), "{user:?}: {open:?}");
    }
    scene.nothing_arrived();
}

#[test]
fn the_hooks_refuse_odd_sockets_without_seccomp_too() {
    // A socket that is made before the filter is in place passes the hook alone: the self-test
    // of every run does that, and its outcome is in the start record.
    let scene = Scene::new();
    let account = scene.attack_with(&scene.policy(""), &["io-uring="]);
    account.expect(&[("io-uring=", "EPERM")]);
    let start = account.run.records("start")[0];
    let layers = start["object"]["layers"].as_array().unwrap();
    let hooks = layers.iter().find(|layer| layer["layer"] == "cgroup.sockets").unwrap();
    assert_eq!((&hooks["state"], &hooks["self_test"]), (&"full".into(), &"denied".into()));
    for layer in ["seccomp", "capabilities", "user", "process"] {
        let found = layers.iter().find(|found| found["layer"] == layer).unwrap();
        assert_eq!(found["state"], "full", "{found}");
    }
}

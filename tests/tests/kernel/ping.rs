//! Echo requests: closed unless a rule opens them, each judged by where it goes, and only where BPF LSM
//! programs see it.

use std::net::IpAddr;

use clawbox_tests::capture::Packet;
use clawbox_tests::clawbox::Clawbox;
use clawbox_tests::network::{ELSEWHERE, ELSEWHERE_V6, SITE, SITE_V6};

use crate::attacks::attempt::PYTHON;
use crate::scene::{ECHO, Scene, attempts};

/// iputils', which asks with a datagram socket which address it would send from.
const PING: &str = "/usr/bin/ping";

/// What the attacker has at hand: sockets, and requests with this payload.
const TOOLS: &str = r#"
import socket, struct
def pinger(address):
    v6 = ":" in address
    made = socket.socket(10 if v6 else 2, socket.SOCK_DGRAM, 58 if v6 else 1)
    made.settimeout(30)
    return made
def request(address): return struct.pack(">BBHHH", 128 if ":" in address else 8, 0, 0, 0, 1) + b"evil"
def to(address):
    made = pinger(address)
    made.sendto(request(address), (address, 0))
    assert made.recv(99)[8:] == b"evil"
def connected(address):
    made = pinger(address)
    made.connect((address, 1))
    made.send(request(address))
    assert made.recv(99)[8:] == b"evil"
def message(first, then):
    made = pinger(first)
    made.connect((first, 0))
    made.sendmsg([request(then)], [], 0, (then, 0))
"#;

fn echoes(packets: &[Packet]) -> Vec<IpAddr> {
    let echo = |packet: &&Packet| match packet.protocol {
        1 => packet.payload.first() == Some(&8),
        58 => packet.payload.first() == Some(&128),
        _ => false,
    };
    packets.iter().filter(echo).map(|packet| packet.to).collect()
}

fn policy(scene: &Scene) -> String {
    scene.policy(&format!(
        "network_policies:\n  ping:\n    endpoints:\n      - {{ host: {SITE}, transport: icmp }}\n      \
         - {{ allowed_ips: [{SITE_V6}/128], transport: icmp }}\n      \
         - {{ host: {SITE}, port: {ECHO} }}\n    \
         binaries: [{{ path: {PYTHON} }}, {{ path: {PING} }}]"
    ))
}

/// Everybody may ping in this network, as on many distributions.
fn open(scene: &Scene) {
    let range = "/proc/sys/net/ipv4/ping_group_range";
    scene.world.inside(|| std::fs::write(range, "0 2147483647")).unwrap();
}

#[test]
fn echo_requests_reach_what_a_rule_names_and_nobody_else() {
    let scene = Scene::new();
    open(&scene);
    let file = scene.world.script("tools", TOOLS);
    let (load, policy) = (format!("exec(open('{}').read())", file.display()), policy(&scene));
    let tries = [
        ("tools", load.clone()),
        ("by-sendto", format!("to('{SITE}')")),
        ("connected", format!("connected('{SITE}')")),
        ("by-IPv6", format!("to('{SITE_V6}')")),
        ("connected-by-IPv6", format!("connected('{SITE_V6}')")),
        ("elsewhere", format!("to('{ELSEWHERE}')")),
        ("elsewhere-connected", format!("connected('{ELSEWHERE}')")),
        ("elsewhere-by-IPv6", format!("to('{ELSEWHERE_V6}')")),
        ("elsewhere-by-IPv6-connected", format!("connected('{ELSEWHERE_V6}')")),
        ("elsewhere-on-a-connected-one", format!("message('{SITE}', '{ELSEWHERE}')")),
        ("elsewhere-by-IPv6-on-a-connected-one", format!("message('{SITE_V6}', '{ELSEWHERE_V6}')")),
        ("multicast", "to('224.0.0.1')".to_owned()),
        ("the-host", "to('127.0.0.1')".to_owned()),
        ("a-raw-socket", "socket.socket(2, 3, 1)".to_owned()),
        ("a-stream", format!("socket.create_connection(('{SITE}', {ECHO}))")),
    ];
    let tries: Vec<(&str, &str)> =
        tries.iter().map(|(name, code)| (*name, code.as_str())).collect();
    let (outcomes, run) = attempts(&scene, &policy, &tries);
    let has_lsm = scene.has_lsm();
    let allowed = ["by-sendto", "connected", "by-IPv6", "connected-by-IPv6"];
    for (name, outcome) in &outcomes {
        let expected = match name.as_str() {
            "tools" | "a-stream" => "ok",
            name if allowed.contains(&name) && has_lsm => "ok",
            _ => "EPERM",
        };
        assert_eq!(outcome, expected, "{name}: {run:?}");
    }
    let arrived = echoes(&scene.arrived());
    let site: [IpAddr; 2] = [SITE.into(), SITE_V6.into()];
    assert!(arrived.iter().all(|to| site.contains(to)), "{arrived:?}");
    assert_eq!(arrived.len(), if has_lsm { 4 } else { 0 }, "{arrived:?}");
    let records = |verdict: &str, reason: &str| {
        let wanted = run.trail.iter().filter(|record| {
            record["verdict"] == verdict
                && record["reason"] == reason
                && record["object"]["transport"] == "icmp"
        });
        wanted.count()
    };
    if has_lsm {
        assert_eq!(records("deny", "unknown-endpoint"), 6, "{:#?}", run.trail);
        // Connecting is told too, sending each time.
        assert_eq!(records("allow", "rule"), 8, "{:#?}", run.trail);
    } else {
        // Neither a send nor, therefore, the socket.
        let refused =
            run.denials().iter().filter(|record| record["reason"] == "socket-kind").count();
        assert!(refused >= 12, "{:#?}", run.trail);
    }
}

#[test]
fn ping_itself_works_by_a_rule_and_by_none_does_not() {
    let scene = Scene::new();
    open(&scene);
    if !scene.has_lsm() || !std::path::Path::new(PING).exists() {
        return;
    }
    let run = |to: IpAddr| {
        let clawbox = Clawbox::new(&scene.world, &policy(&scene)).with_lsm();
        clawbox.run(&[PING, "-n", "-c", "1", "-W", "60", &to.to_string()])
    };
    let site = run(SITE.into());
    assert_eq!(site.status, 0, "{site:?}");
    assert!(site.stdout.contains("1 received"), "{site:?}");
    let elsewhere = run(ELSEWHERE.into());
    assert_ne!(elsewhere.status, 0, "{elsewhere:?}");
    assert_eq!(echoes(&scene.arrived()), [IpAddr::from(SITE)]);
}

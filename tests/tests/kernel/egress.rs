//! Destinations: what a rule opens and nothing beside it, by every call that can reach somebody,
//! in every spelling of an address.

use std::io::IoSlice;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use clawbox_tests::clawbox::Clawbox;
use clawbox_tests::network::{ELSEWHERE, ELSEWHERE_V6, METADATA, PRIVATE, SITE, SITE_V6};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

use crate::scene::{Account, ECHO, Scene, by_nobody};

fn at(address: impl Into<IpAddr>) -> String {
    std::net::SocketAddr::new(address.into(), ECHO).to_string()
}

fn step(way: &str, address: impl Into<IpAddr>) -> String {
    format!("{way}={}", at(address))
}

fn run(scene: &Scene, policy: &str, steps: &[String]) -> Account {
    let steps: Vec<&str> = steps.iter().map(String::as_str).collect();
    scene.attack_with(policy, &steps)
}

#[test]
fn a_literal_address_and_a_range_open_what_they_name_in_every_spelling() {
    let scene = Scene::new();
    let policy = scene.allowing_attack(&format!(
        "{{ host: {SITE}, port: 7 }}, {{ host: \"{SITE_V6}\", port: 7 }}, \
         {{ port: 7, allowed_ips: [10.1.0.0/16] }}"
    ));
    let open = [
        step("tcp", SITE),
        step("mapped", SITE),
        step("tcp", SITE_V6),
        step("flowlabel", SITE_V6),
        step("tcp", PRIVATE),
    ];
    let account = run(&scene, &policy, &open);
    let expected: Vec<(&str, &str)> = open.iter().map(|step| (step.as_str(), "ok")).collect();
    account.expect(&expected);
    let answer = account.detail(&step("mapped", SITE));
    assert_eq!(answer["peer"], format!("[::ffff:{SITE}]:{ECHO}"));
    assert_eq!(answer["answer"], "hello\n");
    let record = account.record("connect", "rule", &scene.attack(), (SITE.into(), ECHO));
    assert!(by_nobody(record), "{record}");
    assert_eq!(record["rule"]["policy"], "the_rule");
    assert_eq!(record["rule"]["binary"], scene.attack().as_str());
    assert!(account.run.denials().is_empty());
    let arrived = scene.arrived();
    assert!(arrived.iter().any(|packet| packet.to == SITE && packet.protocol == 6), "{arrived:?}");
    // What the attacker calls its own address is what the far side saw.
    let seen = scene.echo.arrivals();
    let local = account.detail(&step("tcp", PRIVATE))["local"].clone();
    assert!(seen.iter().any(|arrival| arrival.from.to_string() == local), "{seen:?} {local}");
}

#[test]
fn no_call_reaches_an_address_that_no_rule_names() {
    let scene = Scene::new();
    let policy = scene.allowing_attack(&format!(
        "{{ host: {SITE}, port: 7, transport: any }}, {{ host: \"{SITE_V6}\", port: 7, transport: any }}"
    ));
    let ways = [
        "tcp",
        "mapped",
        "nonblocking",
        "udp",
        "udp-mapped",
        "send",
        "sendmsg",
        "sendmmsg",
        "send-mapped",
        "send-v4-on-v6",
        "connect-v4-on-v6",
        "unspec-send",
        "fastopen-connect",
    ];
    let mut steps: Vec<String> = ways.iter().map(|way| step(way, ELSEWHERE)).collect();
    for way in ["tcp", "nonblocking", "udp", "send", "sendmsg", "sendmmsg", "flowlabel"] {
        steps.push(step(way, ELSEWHERE_V6));
    }
    steps.push(format!("connect-then-send={},{}", at(SITE), at(ELSEWHERE)));
    let count = steps.len();
    let account = run(&scene, &policy, &steps);
    let expected: Vec<(&str, &str)> = steps.iter().map(|step| (step.as_str(), "EPERM")).collect();
    account.expect(&expected);
    scene.nothing_arrived();
    let denials = account.denials();
    assert_eq!(denials.len(), count, "{denials:?}");
    assert!(denials.iter().all(|(_, reason)| *reason == "unknown-endpoint"), "{denials:?}");
    for action in ["connect", "send"] {
        for address in [IpAddr::from(ELSEWHERE), ELSEWHERE_V6.into()] {
            let exe = scene.attack();
            let record = account.record(action, "unknown-endpoint", &exe, (address, ECHO));
            assert!(by_nobody(record), "{record}");
        }
    }
}

#[test]
fn calls_that_hooks_do_not_see_are_refused_or_reach_nobody() {
    let scene = Scene::new();
    let policy = scene.allowing_attack(&format!("{{ host: {SITE}, port: 7, transport: any }}"));
    let steps =
        [step("fastopen", ELSEWHERE), step("unspec-connect", ELSEWHERE), "io-uring=".to_owned()];
    let account = run(&scene, &policy, &steps);
    account.expect(&[
        (&steps[0], "EOPNOTSUPP"),
        // The call succeeds, as it does for everybody: it connects to nobody.
        (&steps[1], "EDESTADDRREQ"),
        (&steps[2], "EPERM"),
    ]);
    scene.nothing_arrived();
}

#[test]
fn a_rule_for_one_transport_opens_no_other() {
    let scene = Scene::new();
    let policy = scene.allowing_attack(&format!(
        "{{ host: {SITE}, port: 7, transport: udp }}, {{ host: {ELSEWHERE}, port: 7 }}"
    ));
    let open = ["udp", "udp-mapped", "send", "sendmsg", "sendmmsg", "send-mapped", "send-v4-on-v6"];
    let mut steps: Vec<String> = open.iter().map(|way| step(way, SITE)).collect();
    steps.extend([
        step("tcp", SITE),
        step("tcp", ELSEWHERE),
        step("udp", ELSEWHERE),
        step("send", ELSEWHERE),
    ]);
    let account = run(&scene, &policy, &steps);
    let outcomes = ["ok", "ok", "ok", "ok", "ok", "ok", "ok", "EPERM", "ok", "EPERM", "EPERM"];
    let expected: Vec<(&str, &str)> = steps.iter().map(String::as_str).zip(outcomes).collect();
    account.expect(&expected);
    assert_eq!(account.detail(&step("send", SITE))["from"], at(SITE));
    assert_eq!(scene.datagrams.arrivals().len(), open.len());
    let crossed: Vec<_> = scene
        .arrived()
        .into_iter()
        .filter(|packet| (packet.protocol == 6) == (packet.to == IpAddr::from(SITE)))
        .collect();
    assert!(crossed.is_empty(), "{crossed:?}");
    account.record("connect", "unknown-endpoint", &scene.attack(), (SITE.into(), ECHO));
    account.record("send", "unknown-endpoint", &scene.attack(), (ELSEWHERE.into(), ECHO));
}

#[test]
fn some_ranges_are_closed_whatever_the_policy_says() {
    let scene = Scene::new();
    let policy =
        scene.allowing_attack("{ port: 7, transport: any, allowed_ips: [0.0.0.0/0, \"::/0\"] }");
    let closed: [(&str, &str); 18] = [
        ("127.0.0.1", "loopback"),
        ("127.3.2.1", "loopback"),
        ("::1", "loopback"),
        ("0.0.0.0", "unspecified"),
        ("0.1.2.3", "unspecified"),
        ("::", "unspecified"),
        ("169.254.169.254", "link-local"),
        ("fe80::1", "link-local"),
        ("fd00:ec2::254", "link-local"),
        ("224.0.0.1", "multicast"),
        ("ff02::1", "multicast"),
        ("255.255.255.255", "reserved"),
        ("240.0.0.1", "reserved"),
        ("198.18.0.1", "stale-name"),
        ("64:ff9b::a9fe:a9fe", "link-local"),
        ("64:ff9b::7f00:1", "loopback"),
        ("2002:7f00:1::1", "loopback"),
        ("::169.254.169.254", "link-local"),
    ];
    let host = scene.world.inside(|| clawbox_tests::services::Service::echo(ECHO));
    let addresses: Vec<IpAddr> = closed.iter().map(|(text, _)| text.parse().unwrap()).collect();
    let mut steps: Vec<String> = Vec::new();
    for address in &addresses {
        steps.extend([step("connect", *address), step("send", *address)]);
        if address.is_ipv4() {
            steps.extend([step("mapped", *address), step("send-mapped", *address)]);
        }
    }
    let account = run(&scene, &policy, &steps);
    let expected: Vec<(&str, &str)> = steps.iter().map(|step| (step.as_str(), "EPERM")).collect();
    account.expect(&expected);
    for (address, reason) in addresses.iter().zip(closed.iter().map(|(_, reason)| *reason)) {
        account.record("connect", reason, &scene.attack(), (*address, ECHO));
        account.record("send", reason, &scene.attack(), (*address, ECHO));
    }
    scene.nothing_arrived();
    assert!(host.arrivals().is_empty());
    assert_eq!(METADATA, Ipv4Addr::new(169, 254, 169, 254), "the far side has it");
}

#[test]
fn an_address_that_embeds_an_allowed_one_is_judged_as_it() {
    let scene = Scene::new();
    let policy = scene.allowing_attack(&format!("{{ host: {SITE}, port: 7 }}"));
    let [a, b, c, d] = ELSEWHERE.octets();
    let other = u16::from_be_bytes([a, b]);
    let nat64 = Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, other, u16::from_be_bytes([c, d]));
    let six_to_four = Ipv6Addr::new(0x2002, other, u16::from_be_bytes([c, d]), 0, 0, 0, 0, 1);
    let steps = [step("connect", nat64), step("connect", six_to_four)];
    run(&scene, &policy, &steps).expect(&[(&steps[0], "EPERM"), (&steps[1], "EPERM")]);
    // A range around them does not open what is closed in any form.
    let wide = scene.allowing_attack("{ port: 7, allowed_ips: ['2000::/3'] }");
    let metadata = "connect=[2002:a9fe:a9fe::1]:7";
    let account = run(&scene, &wide, &[metadata.to_owned()]);
    account.expect(&[(metadata, "EPERM")]);
    assert_eq!(account.denials(), [("connect", "link-local")]);
    scene.nothing_arrived();
}

#[test]
fn a_port_that_no_rule_names_is_refused() {
    let scene = Scene::new();
    let policy = scene.allowing_attack(&format!("{{ host: {SITE}, port: 7 }}"));
    let account = scene.attack_with(&policy, &["connect=93.184.216.34:8", "send=93.184.216.34:8"]);
    account.expect(&[("connect=93.184.216.34:8", "EPERM"), ("send=93.184.216.34:8", "EPERM")]);
    account.record("connect", "unknown-endpoint", &scene.attack(), (SITE.into(), 8));
    account.record("send", "unknown-endpoint", &scene.attack(), (SITE.into(), 8));
    scene.nothing_arrived();
}

#[test]
fn under_hard_requirement_landlock_closes_ports_as_well() {
    let scene = Scene::new();
    let policy = format!(
        "{}\nlandlock: {{ compatibility: hard_requirement }}\n",
        scene.allowing_attack(&format!("{{ host: {SITE}, port: 7 }}"))
    );
    let words = [scene.attack(), "connect=93.184.216.34:8".to_owned(), step("tcp", SITE)];
    let run = Clawbox::new(&scene.world, &policy).run(&words);
    // A kernel whose Landlock knows no ports cannot promise it, and clawbox does not.
    if run.status == 125 {
        assert!(run.stderr.contains("landlock"), "{}", run.stderr);
        assert!(run.stderr.contains("best_effort"), "{}", run.stderr);
        return;
    }
    Account::of(run).expect(&[("connect=93.184.216.34:8", "EACCES"), (&step("tcp", SITE), "ok")]);
}

#[test]
fn a_socket_made_outside_is_judged_by_who_uses_it() {
    let scene = Scene::new();
    let policy = scene.allowing_attack(&format!("{{ host: {SITE}, port: 7, transport: any }}"));
    let udp = || -> OwnedFd { UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap().into() };
    let denied = serde_json::json!({ "send": "EPERM", "connect": "EPERM" });
    let inherited = step("inherited", ELSEWHERE);
    let socket = scene.world.inside(udp);
    let run = Clawbox::new(&scene.world, &policy).stdin(socket).run(&[&scene.attack(), &inherited]);
    let account = Account::of(run);
    assert_eq!(*account.detail(&inherited), denied);
    account.record("connect", "unknown-endpoint", &scene.attack(), (ELSEWHERE.into(), ECHO));

    let (ours, theirs) = UnixStream::pair().unwrap();
    let socket = scene.world.inside(udp);
    let message = [socket.as_raw_fd()];
    let control = [ControlMessage::ScmRights(&message)];
    let parts = [IoSlice::new(b"x")];
    sendmsg::<()>(ours.as_raw_fd(), &parts, &control, MsgFlags::empty(), None).unwrap();
    let received = step("received", ELSEWHERE);
    let run = Clawbox::new(&scene.world, &policy)
        .stdin(OwnedFd::from(theirs))
        .run(&[&scene.attack(), &received]);
    assert_eq!(*Account::of(run).detail(&received), denied);
    scene.nothing_arrived();
}

#[test]
fn a_stream_socket_made_outside_is_judged_by_who_uses_it() {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
    let scene = Scene::new();
    let policy = scene.allowing_attack(&format!("{{ host: {SITE}, port: 7 }}"));
    let stream = scene
        .world
        .inside(|| socket(AddressFamily::Inet, SockType::Stream, SockFlag::empty(), None).unwrap());
    let inherited = step("inherited", ELSEWHERE);
    let run = Clawbox::new(&scene.world, &policy).stdin(stream).run(&[&scene.attack(), &inherited]);
    assert_eq!(Account::of(run).detail(&inherited)["connect"], "EPERM");
    scene.nothing_arrived();
}

#[test]
fn processes_outside_every_sandbox_are_not_touched() {
    let scene = Scene::new();
    let policy = scene.policy("");
    let mut running = Clawbox::new(&scene.world, &policy).spawn(&[&scene.attack(), "line", "line"]);
    running.say("go");
    assert!(running.line().contains("go"));
    let steps = [
        step("tcp", ELSEWHERE),
        step("udp", ELSEWHERE),
        step("send", ELSEWHERE_V6),
        step("mapped", PRIVATE),
        "bind=127.0.0.1:8080".to_owned(),
        "socket=raw".to_owned(),
    ];
    let output = scene.world.command(scene.attack()).args(&steps).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let ok = text.lines().filter(|line| line.contains("\"outcome\":\"ok\"")).count();
    assert_eq!(ok, steps.len(), "{text}");
    // A listener of the host takes connections as well.
    let listener = scene.world.inside(|| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
    let address = listener.local_addr().unwrap();
    scene.world.inside(|| std::net::TcpStream::connect(address)).unwrap();
    let finished = running.wait();
    assert!(finished.denials().is_empty(), "{:?}", finished.trail);
}

//! Receiving instead of sending, and the host's own loopback: what a sandbox may listen on, and
//! whom it may dial on its own machine.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};

use clawbox_tests::clawbox::Clawbox;
use clawbox_tests::network::HERE;
use clawbox_tests::services::Service;

use crate::scene::{Account, Scene, by_nobody};

const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

#[test]
fn without_listen_nothing_is_bound_but_a_clients_own_port() {
    let scene = Scene::new();
    let policy = scene.policy("");
    let denied = [
        "bind=0.0.0.0:8080",
        "bind=127.0.0.1:8080",
        "bind=127.0.0.1:0",
        "bind=[::]:8080",
        "bind=[::1]:8080",
        "bind-udp=0.0.0.0:5353",
        "bind-udp=[::1]:5353",
        // Addresses that name a question's asker are for the kernel to give.
        "bind-udp=127.64.0.1:0",
    ];
    let allowed = ["bind-udp=127.0.0.1:0", "bind-udp=0.0.0.0:0", "bind-udp=[::]:0"];
    let steps = [&denied[..], &allowed].concat();
    let account = scene.attack_with(&policy, &steps);
    let outcomes = [vec!["EPERM"; denied.len()], vec!["ok"; allowed.len()]].concat();
    account.expect(&steps.iter().copied().zip(outcomes).collect::<Vec<_>>());
    let record = account.record("bind", "listen-not-allowed", &scene.attack(), (LOCAL, 8080));
    assert!(by_nobody(record), "{record}");
    assert_eq!(account.denials().len(), denied.len());
}

#[test]
fn a_listener_is_bound_where_the_policy_says_and_dialled_by_its_own_sandbox_alone() {
    let scene = Scene::new();
    let host = scene.world.inside(|| Service::echo_at(SocketAddr::new(LOCAL, 7)));
    let policy = scene.policy("listen: { ports: [18789], addresses: [127.0.0.1] }");
    let steps = [
        "connect=127.0.0.1:18789",
        "bind=127.0.0.1:18790",
        "bind=0.0.0.0:18789",
        "bind=127.0.0.2:18789",
        "bind-udp=127.0.0.1:18789",
        "bind=127.0.0.1:18789",
        "connect=127.0.0.1:18789",
        "mapped-connect=127.0.0.1:18789",
        "connect=127.0.0.1:7",
        "connect=[::1]:7",
        "send=127.0.0.1:7",
        "line",
        "close",
        "connect=127.0.0.1:18789",
        "line",
        "connect=127.0.0.1:18789",
    ];
    let steps: Vec<&str> = steps.into_iter().filter(|step| !step.starts_with("mapped-")).collect();
    let words: Vec<String> = std::iter::once(scene.attack())
        .chain(steps.iter().map(|step| (*step).to_owned()))
        .collect();
    let mut running = Clawbox::new(&scene.world, &policy).spawn(&words);
    for _ in 0..10 {
        running.line();
    }
    // From outside it is a port like any other; another sandbox may not dial it.
    let listener = SocketAddr::new(LOCAL, 18789);
    scene.world.inside(|| TcpStream::connect(listener)).expect("the host may dial it");
    let stranger = scene.attack_with(&policy, &["connect=127.0.0.1:18789"]);
    stranger.expect(&[("connect=127.0.0.1:18789", "EPERM")]);
    running.say("go");
    for _ in 0..3 {
        running.line();
    }
    // The port now belongs to somebody else.
    let taken = scene.world.inside(|| Service::echo_at(listener));
    running.say("go");
    let account = Account::of(running.wait());
    let outcomes = [
        "EPERM", "EPERM", "EPERM", "EPERM", "EPERM", "ok", "ok", "EPERM", "EPERM", "EPERM", "ok",
        "ok", "EPERM", "ok", "EPERM",
    ];
    account.expect(&steps.into_iter().zip(outcomes).collect::<Vec<_>>());
    account.record("connect", "own-listener", &scene.attack(), (LOCAL, 18789));
    account.record("connect", "loopback", &scene.attack(), (LOCAL, 18789));
    account.record("connect", "loopback", &scene.attack(), (LOCAL, 7));
    assert!(host.arrivals().is_empty() && taken.arrivals().is_empty());
}

#[test]
fn a_port_of_the_hosts_loopback_is_open_to_the_rule_that_names_it() {
    let scene = Scene::new();
    let service = |port: u16| Service::echo_at(SocketAddr::new(LOCAL, port));
    let (open, closed) = scene.world.inside(|| (service(8000), service(8001)));
    let policy = scene.allowing_attack(
        "{ host: 127.0.0.1, port: 8000, host_loopback: true }, \
         { host: localhost, port: 8002, host_loopback: true }",
    );
    let steps = ["tcp=127.0.0.1:8000", "connect=127.0.0.1:8001", "udp=127.0.0.1:8000"];
    let account = scene.attack_with(&policy, &steps);
    account.expect(&[(steps[0], "ok"), (steps[1], "EPERM"), (steps[2], "EPERM")]);
    assert_eq!((open.arrivals().len(), closed.arrivals().len()), (1, 0));
    account.record("connect", "rule", &scene.attack(), (LOCAL, 8000));
    account.record("connect", "loopback", &scene.attack(), (LOCAL, 8001));
}

#[test]
fn the_hosts_own_addresses_are_no_way_round_loopback() {
    let scene = Scene::new();
    let host = scene.world.inside(|| Service::echo(8000));
    let policy = scene.allowing_attack("{ host: 127.0.0.1, port: 8000, host_loopback: true }");
    let own = format!("connect={HERE}:8000");
    let account =
        scene.attack_with(&policy, &[&own, "connect=[::1]:8000", "connect=127.0.0.2:8000"]);
    account.expect(&[
        (&own, "EPERM"),
        ("connect=[::1]:8000", "EPERM"),
        ("connect=127.0.0.2:8000", "EPERM"),
    ]);
    assert!(host.arrivals().is_empty());
}

#[test]
fn a_clients_own_port_lends_no_way_to_a_service_with_the_same_number() {
    let scene = Scene::new();
    // As few ports as there may be, so that the attacker gets the service's by taking them all.
    let range = "/proc/sys/net/ipv4/ip_local_port_range";
    scene.world.inside(|| std::fs::write(range, "40000 40007").unwrap());
    let service = SocketAddr::new(LOCAL, 40003);
    let host = scene.world.inside(|| Service::datagrams_at([service]));
    let mut steps: Vec<String> = Vec::new();
    // The port is taken at 127.0.0.1 only. The others make room for the clients' ports below.
    for other in ["127.0.0.2", "127.0.0.3", "[::1]"] {
        steps.extend(std::iter::repeat_n(format!("bind-udp={other}:0"), 8));
    }
    steps.push("keep=40003".to_owned());
    let tries = ["connect", "udp", "send"].map(|way| format!("{way}={service}"));
    steps.extend(tries);
    let words: Vec<&str> = steps.iter().map(String::as_str).collect();
    let account = scene.attack_with(&scene.policy(""), &words);
    let own: Vec<&str> = account
        .steps
        .iter()
        .filter_map(|step| step["detail"]["local"].as_str())
        .filter(|local| local.ends_with(":40003"))
        .collect();
    assert!(!own.is_empty(), "the attacker did not get the port: {:?}", account.steps);
    let tried = &account.outcomes()[words.len() - 3..];
    assert!(tried.iter().all(|(_, outcome)| *outcome == "EPERM"), "{own:?} {tried:?}");
    assert!(host.arrivals().is_empty());
}

#[test]
fn a_listener_lends_no_way_to_the_hosts_service_that_takes_what_it_does_not() {
    let scene = Scene::new();
    let service = SocketAddr::new(LOCAL, 18789);
    let host = scene.world.inside(|| Service::echo_at(service));
    let policy = scene.policy("listen: { ports: [18789], addresses: ['::'] }");
    let steps = ["bind-v6=[::]:18789", "connect=[::1]:18789", "connect=127.0.0.1:18789"];
    let account = scene.attack_with(&policy, &steps);
    account.expect(&[(steps[0], "ok"), (steps[1], "ok"), (steps[2], "EPERM")]);
    account.record("connect", "loopback", &scene.attack(), (LOCAL, 18789));
    assert!(host.arrivals().is_empty());
}

#[test]
fn a_listener_that_was_never_bound_is_refused_where_the_kernel_has_bpf_lsm() {
    let scene = Scene::new();
    if !scene.has_lsm() {
        return;
    }
    let clawbox = Clawbox::new(&scene.world, &scene.policy("")).with_lsm();
    let account = Account::of(clawbox.run(&[scene.attack().as_str(), "listen-unbound="]));
    account.expect(&[("listen-unbound=", "EPERM")]);
    assert_eq!(account.denials(), [("bind", "listen-not-allowed")]);
}

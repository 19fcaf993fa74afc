//! Names: what they resolve to, who may use the answer, and what leaves the host at all.
//! The name server of the far side writes every question down.

use std::net::{IpAddr, SocketAddr};

use clawbox_tests::clawbox::{Clawbox, Finished};
use clawbox_tests::network::{ELSEWHERE, METADATA, NAMESERVER, PRIVATE, SITE, SITE_V6};
use serde_json::Value;

use crate::attacks::attempt::PYTHON;
use crate::scene::{Account, ECHO, Scene};

/// The ways to ask a name server.
const BY: [&str; 6] = ["udp", "send", "tcp", "udp-mapped", "send-mapped", "tcp-mapped"];

/// Whether an address is of the ranges that stand for names.
fn is_synthetic(address: &Value) -> bool {
    match address.as_str().unwrap().parse::<IpAddr>().unwrap() {
        IpAddr::V4(v4) => v4.octets()[0] == 198 && v4.octets()[1] & 0xfe == 18,
        IpAddr::V6(v6) => v6.segments()[..4] == [0xfd63, 0x6c61, 0x7762, 0x6f78],
    }
}

fn questions<'r>(run: &'r Finished, name: &str) -> Vec<&'r Value> {
    run.records("question").into_iter().filter(|record| record["object"]["name"] == name).collect()
}

#[test]
fn a_name_is_reached_through_an_address_of_its_own_that_hides_the_real_one() {
    let scene = Scene::new();
    let policy = scene.allowing_attack("{ host: api.test, port: 7, transport: any }");
    let ways = ["tcp", "mapped", "udp", "udp-mapped", "send", "sendmmsg", "send-mapped"];
    let mut steps = vec!["resolve=api.test".to_owned()];
    steps.extend(ways.iter().map(|way| format!("{way}=api.test:7")));
    steps.extend(["tcp", "udp", "send"].map(|way| format!("{way}=v6/api.test:7")));
    let words: Vec<&str> = steps.iter().map(String::as_str).collect();
    let account = scene.attack_with(&policy, &words);
    let expected: Vec<(&str, &str)> = words.iter().map(|step| (*step, "ok")).collect();
    account.expect(&expected);
    let resolved = account.detail("resolve=api.test").as_array().unwrap();
    assert_eq!(resolved.len(), 2, "{resolved:?}");
    assert!(resolved.iter().all(is_synthetic), "{resolved:?}");
    // What the process is shown of the other side is what it asked for, not the real address.
    for (step, key, base) in [
        ("tcp=api.test:7", "peer", &resolved[0]),
        ("udp=api.test:7", "peer", &resolved[0]),
        ("udp=api.test:7", "from", &resolved[0]),
        ("send=api.test:7", "from", &resolved[0]),
        ("tcp=v6/api.test:7", "peer", &resolved[1]),
        ("send=v6/api.test:7", "from", &resolved[1]),
    ] {
        let shown = account.detail(step)[key].as_str().unwrap().to_owned();
        let address: SocketAddr = shown.parse().unwrap();
        assert_eq!(address.ip().to_string(), base.as_str().unwrap(), "{step} {key}");
        assert_eq!(address.port(), ECHO);
    }
    for arrival in scene.echo.arrivals().iter().chain(&scene.datagrams.arrivals()) {
        assert!([IpAddr::from(SITE), SITE_V6.into()].contains(&arrival.to.ip()), "{arrival:?}");
    }
    assert_eq!(scene.echo.arrivals().len() + scene.datagrams.arrivals().len(), ways.len() + 3);
    let record = account.record("connect", "rule", &scene.attack(), (SITE.into(), ECHO));
    assert_eq!(record["object"]["host"], "api.test");
    assert_eq!(record["object"]["asked"], resolved[0]);
    assert_eq!(record["rule"]["host"], "api.test");
    account.record("send", "rule", &scene.attack(), (SITE_V6.into(), ECHO));
    assert!(account.run.denials().is_empty());
}

#[test]
fn every_program_that_asks_gets_the_same_kind_of_answer_whatever_server_it_asks() {
    let scene = Scene::new();
    let policy = scene.allowing_attack("{ host: api.test, port: 7 }");
    let servers = ["9.9.9.9:53", "93.184.216.53:53", "127.0.0.53:53", "[2620:fe::fe]:53"];
    let mut steps = Vec::new();
    for server in servers {
        for by in BY {
            steps.push(format!("dns={by},{server},api.test,A"));
        }
    }
    let words: Vec<&str> = steps.iter().map(String::as_str).collect();
    let script = format!("{} {}; getent ahostsv4 api.test", scene.attack(), words.join(" "));
    let account = scene.shell(&policy, &script);
    for (step, server) in steps.iter().zip(servers.iter().flat_map(|server| [server; BY.len()])) {
        let detail = account.detail(step);
        assert_eq!(detail["code"], "NoError", "{step}");
        assert!(detail["addresses"].as_array().unwrap().iter().all(is_synthetic), "{step}");
        assert_eq!(detail["records"], 1, "{step}");
        // Resolver libraries drop answers that seem to come from somebody else.
        let from = if step.contains("tcp") { &detail["peer"] } else { &detail["from"] };
        let (from, server) = (from.as_str().unwrap(), server.parse::<SocketAddr>().unwrap());
        let from: SocketAddr = from.parse().unwrap();
        assert_eq!((from.ip().to_canonical(), from.port()), (server.ip(), server.port()), "{step}");
    }
    let listed = account.run.stdout.lines().find(|line| line.contains("STREAM")).unwrap();
    assert!(is_synthetic(&listed.split(' ').next().unwrap().into()), "{listed}");
    scene.nothing_arrived();
    assert!(scene.names.asked().iter().all(|asked| asked.name == "api.test"));
    let asked = questions(&account.run, "api.test");
    assert!(asked.iter().all(|record| record["verdict"] == "allow"), "{asked:?}");
    assert!(asked.len() >= steps.len(), "{}", asked.len());
}

#[test]
fn a_name_that_is_not_allowed_does_not_exist_and_is_asked_of_nobody() {
    let scene = Scene::new();
    scene.names.host("evil.test", &[SITE.into()]).text("api.test", "a text");
    let policy =
        scene.allowing_attack("{ host: api.test, port: 7 }, { host: \"*.wild.test\", port: 7 }");
    let long = "6c6f6f742d6f662d616e2d6167656e74".to_owned();
    let tunnel = format!("{long}.{long}.{long}.evil.test");
    let denied =
        ["evil.test", &tunnel, "data.api.test", "api.test.evil.test", "a.b.wild.test", "wild.test"];
    let mut steps: Vec<String> = denied
        .iter()
        .flat_map(|name| ["udp", "tcp"].map(|by| format!("dns={by},9.9.9.9:53,{name},A")))
        .collect();
    let kinds = ["TXT", "MX", "NULL", "SRV", "HTTPS", "ANY", "CNAME", "PTR", "NS", "SOA"];
    steps.extend(kinds.map(|kind| format!("dns=udp,9.9.9.9:53,api.test,{kind}")));
    steps.push("resolve=evil.test".to_owned());
    let words: Vec<&str> = steps.iter().map(String::as_str).collect();
    let account = scene.attack_with(&policy, &words);
    for step in &steps[..denied.len() * 2] {
        assert_eq!(account.detail(step)["code"], "NXDomain", "{step}");
    }
    for step in &steps[denied.len() * 2..steps.len() - 1] {
        assert_eq!(account.detail(step)["records"], 0, "{step}");
    }
    assert_eq!(account.steps.last().unwrap()["outcome"], "failed");
    assert_eq!(scene.names.asked(), []);
    scene.nothing_arrived();
    for name in denied {
        let asked = questions(&account.run, name);
        assert!(asked.len() >= 2, "{name}: {asked:?}");
        let right =
            |record: &&&Value| record["verdict"] == "deny" && record["reason"] == "unknown-name";
        assert_eq!(asked.iter().filter(right).count(), asked.len(), "{asked:?}");
    }
    let tunnelled = &questions(&account.run, &tunnel)[0];
    assert_eq!(tunnelled["subject"]["exe"], scene.attack().as_str(), "{tunnelled}");
    let kinds = questions(&account.run, "api.test");
    assert!(kinds.iter().all(|record| record["reason"] == "question-kind"), "{kinds:?}");
}

#[test]
fn an_answer_with_an_address_that_the_rule_does_not_mean_is_refused_whole() {
    let scene = Scene::new();
    let (site, private, metadata) = (SITE.into(), PRIVATE.into(), METADATA.into());
    let names: [(&str, &[IpAddr]); 6] = [
        ("inner.wild.test", &[private]),
        ("public.wild.test", &[site]),
        ("mixed.wild.test", &[site, private]),
        ("metadata.test", &[metadata]),
        ("rebound.test", &[site, IpAddr::from([127, 0, 0, 1])]),
        ("ranged.test", &[private]),
    ];
    for (name, addresses) in names {
        scene.names.host(name, addresses);
    }
    let policy = scene.allowing_attack(
        "{ host: \"*.wild.test\", port: 7 }, { host: metadata.test, port: 7 }, \
         { host: rebound.test, port: 7 }, { host: private.test, port: 7 }, \
         { host: ranged.test, port: 7, allowed_ips: [10.9.0.0/16] }",
    );
    let ask = |name: &str| format!("dns=udp,9.9.9.9:53,{name},A");
    let refused =
        ["inner.wild.test", "mixed.wild.test", "metadata.test", "rebound.test", "ranged.test"];
    let mut steps: Vec<String> = refused.iter().map(|name| ask(name)).collect();
    steps.extend(["tcp=public.wild.test:7", "tcp=private.test:7"].map(str::to_owned));
    let words: Vec<&str> = steps.iter().map(String::as_str).collect();
    let account = scene.attack_with(&policy, &words);
    for name in refused {
        let detail = account.detail(&ask(name));
        assert_eq!(
            (&detail["code"], &detail["records"]),
            (&"ServFail".into(), &0.into()),
            "{name}"
        );
        let asked = questions(&account.run, name);
        assert!(asked.iter().all(|record| record["reason"] == "forbidden-address"), "{asked:?}");
        assert!(asked.iter().all(|record| record["object"]["handed_out"] == Value::Array(vec![])));
    }
    // A rule that names the host itself means a private address too.
    assert_eq!(account.detail("tcp=private.test:7")["answer"], "hello\n");
    assert_eq!(account.detail("tcp=public.wild.test:7")["answer"], "hello\n");
    scene.nothing_arrived_but_at(&[site, private]);
}

#[test]
fn aliases_and_long_answers_lead_to_the_name_that_was_asked_for() {
    let scene = Scene::new();
    scene.names.host("target.evil.test", &[SITE.into()]).alias("alias.test", "middle.test");
    scene.names.alias("middle.test", "target.evil.test").truncate("big.test");
    let many: Vec<IpAddr> = (1..=40).map(|last| IpAddr::from([93, 184, 217, last])).collect();
    scene.names.host("big.test", &many);
    let policy =
        scene.allowing_attack("{ host: alias.test, port: 7 }, { host: big.test, port: 7 }");
    let account = scene.attack_with(
        &policy,
        &["tcp=alias.test:7", "resolve=target.evil.test", "dns=tcp,9.9.9.9:53,big.test,A"],
    );
    assert_eq!(account.detail("tcp=alias.test:7")["answer"], "hello\n");
    assert_eq!(account.steps[1]["outcome"], "failed");
    let addresses =
        account.detail("dns=tcp,9.9.9.9:53,big.test,A")["addresses"].as_array().unwrap();
    assert_eq!(addresses.len(), many.len());
    assert!(addresses.iter().all(is_synthetic));
    assert!(scene.names.asked().iter().any(|asked| asked.transport == "tcp"));
    let record = account.record("connect", "rule", &scene.attack(), (SITE.into(), ECHO));
    assert_eq!(record["object"]["host"], "alias.test");
}

/// Connects by libc to each of its arguments, `NAME:PORT`, and tells what answered there. It listens itself.
const BY_NAME: &str = r#"
import socket, sys
own = socket.create_server(("127.0.0.1", 8080))
for argument in sys.argv[1:]:
    name, port = argument.split(":")
    try:
        made = socket.create_connection((name, int(port)), 20)
        if port == "8080": own.accept()[0].sendall(b"own\n")
        else: made.sendall(b"hello\n")
        print(argument, made.recv(9).decode().strip())
    except OSError as error:
        print(argument, type(error).__name__)
"#;

#[test]
fn search_domains_the_hosts_file_and_localhost_lead_where_they_lead_outside() {
    let scene = Scene::new();
    let host = scene.world.inside(|| clawbox_tests::services::Service::echo(ECHO));
    scene.names.host("api.corp.test", &[SITE.into()]).host("db.test", &[SITE.into()]);
    let rules = "{ host: api.corp.test, port: 7 }, { host: db.test, port: 7 }";
    let policy = format!("{}\nlisten: {{ ports: [8080] }}\n", scene.allowing(PYTHON, rules));
    let script = scene.world.script("by-name", BY_NAME);
    let told = [
        ("api:7", "hello"),
        ("api.corp.test:7", "hello"),
        ("other:7", "gaierror"),
        // In the hosts file, which libc reads by itself, with another address than elsewhere.
        ("db.test:7", "hello"),
        ("db:7", "hello"),
        ("closed.test:7", "PermissionError"),
        ("localhost:8080", "own"),
        ("localhost:7", "PermissionError"),
    ];
    let mut command = vec![PYTHON, script.to_str().unwrap()];
    command.extend(told.map(|(argument, _)| argument));
    // On a line with the allowed name, an alias is it; on another one, the address is another.
    let hosts = format!(
        "127.0.0.1 localhost\n::1 localhost\n{PRIVATE} db.test\tdb # a database\n{ELSEWHERE} closed.test\n"
    );
    let clawbox = Clawbox::new(&scene.world, &policy).covered("/etc/hosts", &hosts);
    // The host's own servers, which its programs ask, and so does the sandbox's resolver.
    let resolv = format!("nameserver {NAMESERVER}\nsearch lab.test corp.test\n");
    let clawbox = clawbox.covered("/etc/resolv.conf", &resolv).with_name_servers_of_host();
    let run = clawbox.run(&command);
    let lines: Vec<(&str, &str)> =
        run.stdout.lines().filter_map(|line| line.split_once(' ')).collect();
    assert_eq!(lines, told, "{}\n{:#?}", run.stderr, run.trail);
    let to: Vec<IpAddr> = scene.echo.arrivals().iter().map(|arrival| arrival.to.ip()).collect();
    assert_eq!(to, [IpAddr::from(SITE), SITE.into(), PRIVATE.into(), PRIVATE.into()]);
    assert!(host.arrivals().is_empty());
    let asked = scene.names.asked();
    assert!(asked.iter().all(|asked| asked.name == "api.corp.test"), "{asked:?}");
    // What the search went through on its way.
    let found = questions(&run, "api.lab.test");
    assert!(!found.is_empty(), "{:#?}", run.trail);
    assert!(found.iter().all(|record| record["reason"] == "unknown-name"), "{found:?}");
    let mut refused = run.denials();
    refused.retain(|record| record["action"] == "connect");
    // Of `localhost` each address is tried that it has.
    let closed = refused.remove(0);
    assert_eq!(closed["object"]["ip"], ELSEWHERE.to_string(), "{closed}");
    assert!(refused.len() >= 2, "{refused:#?}");
    assert!(refused.iter().all(|record| record["reason"] == "loopback"), "{refused:#?}");
}

/// A name that the hosts file gets while the sandbox runs, to libc and to who asks the resolver.
#[test]
fn a_policy_that_comes_sees_the_hosts_file_as_it_is_then() {
    let scene = Scene::new();
    let policy = scene.allowing_attack("{ host: db.test, port: 7 }");
    let (attack, direct) = (scene.attack(), format!("tcp={PRIVATE}:7"));
    let words = [&attack, &direct, "line", &direct, "tcp=db.test:7"];
    let clawbox =
        Clawbox::new(&scene.world, &policy).covered("/etc/hosts", "127.0.0.1 localhost\n");
    let cover = clawbox.cover("/etc/hosts");
    let mut running = clawbox.spawn(&words);
    let first: Value = serde_json::from_str(&running.line()).unwrap();
    assert_eq!(first["outcome"], "EPERM", "{first}");
    std::fs::write(cover, format!("127.0.0.1 localhost\n{PRIVATE} db.test\n")).unwrap();
    crate::live::changes(&scene, &running, &policy);
    running.say("go");
    let account = Account::of(running.wait());
    assert_eq!(account.detail("tcp=db.test:7")["answer"], "hello\n");
    let arrivals = scene.echo.arrivals();
    assert_eq!(arrivals.len(), 2, "{arrivals:?}");
    assert!(arrivals.iter().all(|arrival| arrival.to.ip() == IpAddr::from(PRIVATE)));
    let record = account.record("connect", "rule", &attack, (PRIVATE.into(), ECHO));
    assert_eq!(record["rule"]["host"], "db.test", "{record}");
}

#[test]
fn two_names_on_one_address_are_two_destinations() {
    let scene = Scene::new();
    let other = scene.copy("other-program");
    let policy = scene.policy(&format!(
        "network_policies:\n  \
           first:\n    endpoints: [{{ host: api.test, port: 7 }}]\n    binaries: [{{ path: {} }}]\n  \
           second:\n    endpoints: [{{ host: other.test, port: 7 }}]\n    binaries: [{{ path: {other} }}]",
        scene.attack()
    ));
    let direct = format!("tcp={SITE}:7");
    let steps =
        ["tcp=api.test:7", "tcp=other.test:7", "send=api.test:7", &direct, "tcp=198.18.200.200:7"];
    let account = scene.attack_with(&policy, &steps);
    let outcomes = ["ok", "EPERM", "EPERM", "EPERM", "EPERM"];
    account.expect(&steps.into_iter().zip(outcomes).collect::<Vec<_>>());
    assert_eq!(scene.echo.arrivals().len(), 1);
    let attack = scene.attack();
    let record = account.record("connect", "other-binary", &attack, (SITE.into(), ECHO));
    assert_eq!(record["object"]["host"], "other.test");
    let record = account.record("connect", "unknown-endpoint", &attack, (SITE.into(), ECHO));
    assert_eq!(record["object"].get("host"), None);
    account.record("connect", "stale-name", &attack, ("198.18.200.200".parse().unwrap(), ECHO));
    assert_eq!(account.denials().len(), 4);
}

#[test]
fn an_address_handed_out_to_one_sandbox_is_nothing_in_another() {
    let scene = Scene::new();
    let policy = scene.allowing_attack("{ host: api.test, port: 7 }, { host: v4.test, port: 7 }");
    let steps = ["resolve=api.test", "resolve=v4.test", "line", "tcp=v4.test:7"];
    let words: Vec<String> =
        std::iter::once(scene.attack()).chain(steps.map(str::to_owned)).collect();
    let mut first = Clawbox::new(&scene.world, &policy).spawn(&words);
    first.line();
    let told: Value = serde_json::from_str(&first.line()).unwrap();
    let address = told["detail"][0].as_str().unwrap().to_owned();
    // The second sandbox may reach the same name, but has not asked for it.
    let stolen = format!("tcp={address}:7");
    let account = scene.attack_with(&policy, &[&stolen, "tcp=api.test:7"]);
    account.expect(&[(&stolen, "EPERM"), ("tcp=api.test:7", "ok")]);
    account.record("connect", "stale-name", &scene.attack(), (address.parse().unwrap(), ECHO));
    first.say("go");
    let account = Account::of(first.wait());
    assert_eq!(account.detail("tcp=v4.test:7")["answer"], "hello\n");
    assert_eq!(scene.echo.arrivals().len(), 2);
}

#[test]
fn name_service_by_other_ports_is_a_destination_like_any_other() {
    let scene = Scene::new();
    let policy = scene.allowing_attack("{ host: api.test, port: 7 }");
    let steps = ["tcp=93.184.216.53:853", "udp=93.184.216.53:5353", "connect=93.184.216.53:443"];
    let account = scene.attack_with(&policy, &steps);
    account.expect(&steps.map(|step| (step, "EPERM")));
    assert!(account.denials().iter().all(|(_, reason)| *reason == "unknown-endpoint"));
    scene.nothing_arrived();
}

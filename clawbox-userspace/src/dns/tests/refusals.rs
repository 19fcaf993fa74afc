//! What is not answered, with which code, and that nothing left on its account.
//! The server's list of questions is the far side's proof.

use super::server::{Answer, address};
use super::*;

#[tokio::test]
async fn a_name_the_policy_does_not_allow_never_leaves() {
    let world = World::new().await;
    world.server.host("evil.test", &["93.184.216.34"]);
    let long = format!("{0}.{0}.{0}.evil.test", "x".repeat(63));
    for name in ["evil.test", "EVIL.test", long.as_str(), "test", "."] {
        for kind in [RecordType::A, RecordType::AAAA, RecordType::TXT, RecordType::PTR] {
            let reply = world.ask(name, kind).await;
            assert!(is_nothing(&reply, ResponseCode::NXDomain), "{name} {kind}");
            let event = world.event();
            assert_eq!(&*event.name, name.to_lowercase());
            assert_eq!(event.reason, Reason::UnknownName);
            assert_eq!(event.upstream_ms, None);
        }
    }
    assert!(world.server.questions().is_empty());
    assert_eq!(world.table.len(), 0);
}

#[tokio::test]
async fn other_kinds_of_question_for_an_allowed_name_are_not_forwarded() {
    let world = World::new().await;
    world.allow_public("*.test");
    for kind in [
        RecordType::TXT,
        RecordType::MX,
        RecordType::HTTPS,
        RecordType::SVCB,
        RecordType::ANY,
        RecordType::CNAME,
        RecordType::SRV,
        RecordType::NULL,
        RecordType::Unknown(65_400),
    ] {
        let reply = world.ask("secret.test", kind).await;
        assert!(is_nothing(&reply, ResponseCode::NoError), "{kind}");
        let event = world.event();
        assert_eq!((event.kind, event.reason), (kind, Reason::QuestionKind));
        assert_eq!(event.verdict, Verdict::Deny);
    }
    assert!(world.server.questions().is_empty());
}

#[tokio::test]
async fn names_that_no_host_has_are_not_put_to_the_policy() {
    let world = World::new().await;
    world.allow_public("*.test");
    let odd: [&[&[u8]]; 8] = [
        &[b"a.b", b"test"],
        &[b"a\0", b"test"],
        &[b"\xc3\xa4", b"test"],
        &[b"*", b"test"],
        &[b"a b", b"test"],
        &[b"a\\", b"test"],
        &[b"10", b"0", b"0", b"1"],
        &[b"7"],
    ];
    for labels in odd {
        let asked = question_of(labels, RecordType::A);
        let reply = world.send(&asked).await;
        assert!(is_nothing(&reply, ResponseCode::NXDomain), "{asked:?}");
        let event = world.event();
        assert!(event.name.bytes().all(|b| b.is_ascii_graphic()));
        assert_eq!(event.reason, Reason::UnknownName);
    }
    assert!(lock(&world.policy.asked).is_empty());
    assert!(world.server.questions().is_empty());
}

#[tokio::test]
async fn a_private_answer_needs_an_exact_host_or_allowed_ips() {
    let world = World::new().await;
    for name in ["wild.corp.test", "exact.test", "listed.test", "strict.test"] {
        world.server.host(name, &["10.20.30.40"]);
    }
    let nets = |net: &str| vec![net.parse().unwrap()];
    world.allow_public("*.corp.test");
    let exact = NameRule { internal_allowed: true, ..rule(1) };
    world.allow("exact.test", exact.clone());
    world.allow("listed.test", NameRule { allowed_ips: nets("10.20.0.0/16"), ..rule(1) });
    world.allow("strict.test", NameRule { allowed_ips: nets("10.99.0.0/16"), ..exact });
    for (name, allowed) in [
        ("wild.corp.test", false),
        ("exact.test", true),
        ("listed.test", true),
        ("strict.test", false),
    ] {
        let reply = world.ask(name, RecordType::A).await;
        let want = if allowed {
            (Verdict::Allow, Reason::Rule)
        } else {
            assert!(is_nothing(&reply, ResponseCode::ServFail));
            (Verdict::Deny, Reason::ForbiddenAddress)
        };
        assert_eq!(world.outcome(), want, "{name}");
        assert_eq!(reply.answers.len(), usize::from(allowed), "{name}");
    }
    assert_eq!(world.table.len(), 2);
}

#[tokio::test]
async fn one_forbidden_address_refuses_the_whole_answer() {
    let world = World::new().await;
    let everything = NameRule { internal_allowed: true, ..rule(1) };
    for (i, forbidden) in [
        "169.254.169.254",
        "127.0.0.1",
        "0.0.0.0",
        "198.18.0.1",
        "::1",
        "::ffff:169.254.169.254",
        "64:ff9b::a9fe:a9fe",
        "fd00:ec2::254",
        "fe80::1",
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("rebind{i}.test");
        world.allow(&name, everything.clone());
        let kind = if ip(forbidden).is_ipv4() { RecordType::A } else { RecordType::AAAA };
        let public = if kind == RecordType::A { "93.184.216.34" } else { "2606:4700::1" };
        world.server.host(&name, &[public, forbidden]);
        let reply = world.ask(&name, kind).await;
        assert!(is_nothing(&reply, ResponseCode::ServFail), "{forbidden}");
        assert_eq!(world.outcome(), (Verdict::Deny, Reason::ForbiddenAddress));
    }
    // Also when it stands where no client would be given it.
    world.allow("late.test", everything);
    let mut records: Vec<_> =
        (0..100).map(|i| address("late.test", &format!("93.184.216.{i}"), 60)).collect();
    records.push(address("late.test", "169.254.169.254", 60));
    world.server.set("late.test", RecordType::A, Answer::TooLong(records));
    let reply = world.ask("late.test", RecordType::A).await;
    assert!(is_nothing(&reply, ResponseCode::ServFail));
    assert_eq!(world.table.len(), 0);
}

#[tokio::test]
async fn a_server_that_is_silent_fails_or_refuses_means_servfail() {
    let mut world = World::impatient().await;
    for (name, answer) in [
        ("silent.test", Answer::Silence),
        ("broken.test", Answer::Code(ResponseCode::ServFail)),
        ("refused.test", Answer::Code(ResponseCode::Refused)),
    ] {
        world.allow_public(name);
        world.server.set(name, RecordType::A, answer);
        let reply = world.ask(name, RecordType::A).await;
        assert!(is_nothing(&reply, ResponseCode::ServFail), "{name}");
        let event = world.event();
        assert_eq!((event.verdict, event.reason), (Verdict::Deny, Reason::UpstreamFailed));
        assert!(event.upstream_ms.is_some());
    }
    world.server.stop();
    world.allow_public("dead.test");
    let reply = world.ask("dead.test", RecordType::A).await;
    assert!(is_nothing(&reply, ResponseCode::ServFail));
    assert_eq!(world.outcome(), (Verdict::Deny, Reason::UpstreamFailed));
}

#[tokio::test]
async fn questions_that_wait_for_a_silent_server_do_not_hold_up_others() {
    let world = World::impatient().await;
    world.allow_public("*.silent.test");
    world.server.host("quick.test", &["93.184.216.34"]);
    world.allow_public("quick.test");
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    for i in 0..100 {
        let name = format!("n{i}.silent.test");
        world.server.set(&name, RecordType::A, Answer::Silence);
        let asked = question(&name, RecordType::A).to_vec().unwrap();
        socket.send_to(&asked, world.at).await.unwrap();
    }
    let reply = world.ask("quick.test", RecordType::A).await;
    assert_eq!(reply.answers.len(), 1);
    // And each of them is answered in the end.
    let mut buffer = [0; 512];
    for _ in 0..100 {
        let length = timeout(SOON, socket.recv(&mut buffer)).await.unwrap().unwrap();
        let reply = Message::from_vec(&buffer[..length]).unwrap();
        assert!(is_nothing(&reply, ResponseCode::ServFail));
    }
    assert_eq!(lock(&world.observer.events).len(), 101);
}

#[tokio::test]
async fn audit_mode_answers_what_it_records_as_denied() {
    let world = World::new().await;
    world.policy.audit_only.store(true, Ordering::SeqCst);
    world.server.host("new.test", &["93.184.216.34", "10.0.0.9"]);
    world.server.host("meta.test", &["169.254.169.254"]);
    world.server.host("wild.test", &["10.0.0.9"]);
    world.allow_public("wild.test");
    let reply = world.ask("new.test", RecordType::A).await;
    let value = world.table.real(addresses(&reply)[0]).unwrap();
    assert_eq!(value.hosts, HostIds::default());
    let event = world.event();
    assert_eq!((event.verdict, event.reason), (Verdict::Deny, Reason::UnknownName));
    assert_eq!(event.answers.len(), 2);
    assert_eq!(world.ask("wild.test", RecordType::A).await.answers.len(), 1);
    assert_eq!(world.outcome(), (Verdict::Deny, Reason::ForbiddenAddress));
    let reply = world.ask("meta.test", RecordType::A).await;
    assert!(is_nothing(&reply, ResponseCode::ServFail));
    assert_eq!(world.outcome(), (Verdict::Deny, Reason::ForbiddenAddress));
    let reply = world.ask("new.test", RecordType::TXT).await;
    assert!(is_nothing(&reply, ResponseCode::NoError));
    assert_eq!(world.outcome(), (Verdict::Deny, Reason::UnknownName));
}

#[tokio::test]
async fn a_policy_that_narrows_while_the_server_thinks_is_the_one_that_counts() {
    let world = World::impatient().await;
    world.allow_public("slow.test");
    let started = tokio::spawn({
        let resolver = Arc::clone(&world.resolver);
        world.server.set("slow.test", RecordType::A, Answer::Silence);
        async move {
            let packet = question("slow.test", RecordType::A).to_vec().unwrap();
            let client = SocketAddr::from((Ipv4Addr::LOCALHOST, 9));
            match resolver.receive(&packet, Transport::Udp, client) {
                resolver::Step::Ask(asked) => resolver.resolve(asked).await,
                _ => panic!("answered at once"),
            }
        }
    });
    while world.server.questions().is_empty() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    lock(&world.policy.rules).clear();
    let packet = timeout(SOON, started).await.unwrap().unwrap().unwrap();
    let reply = Message::from_vec(&packet).unwrap();
    assert!(is_nothing(&reply, ResponseCode::NXDomain));
    assert_eq!(world.outcome(), (Verdict::Deny, Reason::UnknownName));
}

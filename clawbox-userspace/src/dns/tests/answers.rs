//! What an allowed name is answered with, and by which way the answer comes.
//! Every answer is followed back through the table to the address it really stands for.

use super::server::{Answer, address, alias};
use super::*;
use clawbox_common::address::{Address, Range};

#[tokio::test]
async fn an_allowed_name_gets_a_synthetic_address_of_either_family() {
    let world = World::new().await;
    world.allow("api.test", rule(5));
    for (kind, real) in [(RecordType::A, "93.184.216.34"), (RecordType::AAAA, "2606:4700::1111")] {
        world.server.host("api.test", &[real]);
        let reply = world.ask("api.test", kind).await;
        assert_eq!(reply.response_code, ResponseCode::NoError);
        assert!(reply.recursion_available && reply.recursion_desired);
        assert!(!reply.authentic_data && !reply.truncation);
        let [synthetic] = addresses(&reply)[..] else {
            panic!("{reply:?}");
        };
        assert_eq!(address_of(synthetic).range(), Range::Synthetic);
        assert_eq!(synthetic.is_ipv4(), kind == RecordType::A);
        let value = world.table.real(synthetic).expect("published");
        assert_eq!(value.real, address_of(ip(real)));
        assert_eq!(value.hosts, rule(5).hosts);
        let name = world.resolver.names().name_of(value.name);
        assert_eq!(name.as_deref(), Some("api.test"));
        let event = world.event();
        assert_eq!(&*event.name, "api.test");
        assert_eq!(event.kind, kind);
        assert_eq!(event.transport, Transport::Udp);
        assert!(event.client.ip().is_loopback());
        assert_eq!((event.verdict, event.reason), (Verdict::Allow, Reason::Rule));
        assert_eq!(event.answers, [(synthetic, ip(real))]);
        assert!(event.upstream_ms.is_some());
    }
}

#[tokio::test]
async fn pipelined_questions_on_one_connection_are_all_answered() {
    let world = World::new().await;
    world.server.host("a.test", &["93.184.216.34"]);
    world.server.host("b.test", &["93.184.216.35"]);
    world.allow_public("a.test");
    world.allow_public("b.test");
    let asked: Vec<_> = (0..40_u16)
        .map(|i| {
            let name = ["a.test", "b.test", "evil.test"][usize::from(i % 3)];
            // A number of its own: of forty that are drawn two are alike once in some eighty runs.
            let mut message = question(name, RecordType::A);
            message.metadata.id = i;
            message
        })
        .collect();
    let replies = world.ask_tcp(&asked).await;
    assert_eq!(replies.len(), asked.len());
    for message in &asked {
        let reply = replies.iter().find(|r| r.id == message.id).unwrap();
        assert_eq!(reply.queries, message.queries);
        let is_evil = message.queries[0].name().to_ascii() == "evil.test.";
        assert_eq!(reply.answers.is_empty(), is_evil);
    }
    assert_eq!(world.table.len(), 2);
    let events = lock(&world.observer.events);
    assert_eq!(events.len(), asked.len());
    assert!(events.iter().all(|e| e.transport == Transport::Tcp));
}

#[tokio::test]
async fn ipv6_clients_are_served_where_the_host_has_ipv6() {
    let sockets = ResolverSockets::bind().unwrap();
    let Some(port) = sockets.ports().1 else {
        return;
    };
    let world = World::new().await;
    world.server.host("api.test", &["93.184.216.34"]);
    world.allow_public("api.test");
    let serving = tokio::spawn(Arc::clone(&world.resolver).serve(sockets));
    let at = SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, port));
    let socket = UdpSocket::bind("[::1]:0").await.unwrap();
    let asked = question("api.test", RecordType::A).to_vec().unwrap();
    socket.send_to(&asked, at).await.unwrap();
    let mut buffer = [0; 512];
    let received = timeout(SOON, socket.recv_from(&mut buffer)).await;
    let (length, from) = received.unwrap().unwrap();
    assert_eq!(from, at);
    assert_eq!(Message::from_vec(&buffer[..length]).unwrap().answers.len(), 1);
    assert!(TcpStream::connect(at).await.is_ok());
    serving.abort();
}

#[tokio::test]
async fn two_names_on_one_address_stay_two_destinations() {
    let world = World::new().await;
    world.server.host("one.test", &["93.184.216.34"]);
    world.server.host("two.test", &["93.184.216.34"]);
    world.allow("one.test", rule(1));
    world.allow("two.test", rule(2));
    let one = addresses(&world.ask("one.test", RecordType::A).await);
    let two = addresses(&world.ask("two.test", RecordType::A).await);
    assert_ne!(one, two);
    assert_eq!(world.table.real(one[0]).unwrap().hosts, rule(1).hosts);
    assert_eq!(world.table.real(two[0]).unwrap().hosts, rule(2).hosts);
}

#[tokio::test]
async fn a_chain_of_aliases_is_followed_and_answered_as_one_name() {
    let world = World::new().await;
    world.allow_public("www.test");
    // One hop in the first answer, the next only when asked for.
    let first = Answer::Records(vec![alias("www.test", "edge.cdn.test", 600)]);
    world.server.set("www.test", RecordType::A, first);
    let rest = Answer::Records(vec![
        alias("edge.cdn.test", "pop.cdn.test", 40),
        address("pop.cdn.test", "93.184.216.34", 600),
        address("stray.test", "93.184.216.99", 600),
    ]);
    world.server.set("edge.cdn.test", RecordType::A, rest);
    world.server.host("pop.cdn.test", &["93.184.216.34"]);
    let reply = world.ask("www.test", RecordType::A).await;
    assert_eq!(reply.answers.len(), 1);
    assert_eq!(reply.answers[0].name, *reply.queries[0].name());
    assert!(reply.answers[0].ttl <= 40);
    let event = world.event();
    assert_eq!(event.answers[0].1, ip("93.184.216.34"));
}

#[tokio::test]
async fn an_upstream_answer_that_was_cut_short_is_fetched_over_tcp() {
    let world = World::new().await;
    world.allow_public("long.test");
    let records = (1..=50).map(|i| address("long.test", &format!("93.184.216.{i}"), 60)).collect();
    let answer = Answer::TooLong(records);
    world.server.set("long.test", RecordType::A, answer);
    let asked = with_edns(question("long.test", RecordType::A), 4096);
    assert_eq!(world.send(&asked).await.answers.len(), 50);
    let ways: Vec<_> = world.server.questions().iter().map(|q| q.2).collect();
    assert_eq!(ways, [Transport::Udp, Transport::Tcp]);
}

#[tokio::test]
async fn hundreds_of_addresses_are_bounded_and_the_same_ones_are_kept() {
    let world = World::new().await;
    world.allow_public("many.test");
    let mut records: Vec<_> = (0..400)
        .map(|i| address("many.test", &format!("93.184.{}.{}", i / 200, i % 200), 0))
        .collect();
    let asked = with_edns(question("many.test", RecordType::A), 4096);
    let mut seen = std::collections::HashSet::new();
    for _ in 0..5 {
        let answer = Answer::TooLong(records.clone());
        world.server.set("many.test", RecordType::A, answer);
        let reply = world.send(&asked).await;
        assert_eq!(reply.answers.len(), ADDRESSES_PER_ANSWER);
        seen.extend(addresses(&reply));
        records.rotate_left(70);
    }
    assert_eq!(seen.len(), ADDRESSES_PER_ANSWER);
    assert_eq!(world.table.len(), ADDRESSES_PER_ANSWER);
}

#[tokio::test]
async fn an_answer_that_does_not_fit_a_datagram_is_cut_short_and_whole_over_tcp() {
    let world = World::new().await;
    for (kind, family) in [(RecordType::A, "93.184.216."), (RecordType::AAAA, "2606::")] {
        world.allow_public("wide.test");
        let ips: Vec<_> = (1..=60).map(|i| format!("{family}{i}")).collect();
        let records = ips.iter().map(|ip| address("wide.test", ip, 60)).collect();
        world.server.set("wide.test", kind, Answer::TooLong(records));
        for (asked, limit) in [
            (question("wide.test", kind), 512),
            (with_edns(question("wide.test", kind), 100), 512),
            (with_edns(question("wide.test", kind), 800), 800),
            (with_edns(question("wide.test", kind), 4096), 4096),
        ] {
            let packet = world.exchange(&asked.to_vec().unwrap()).await.unwrap();
            assert!(packet.len() <= limit, "{} > {limit}", packet.len());
            let reply = Message::from_vec(&packet).unwrap();
            assert_eq!(reply.truncation, limit < 4096);
            assert_eq!(reply.edns.is_some(), asked.edns.is_some());
            let full = if limit < 4096 { limit - 60 } else { 0 };
            assert!(packet.len() > full, "{} for {limit}", packet.len());
        }
        let whole = world.ask_tcp(&[question("wide.test", kind)]).await;
        assert_eq!(whole[0].answers.len(), 60);
        assert!(!whole[0].truncation);
    }
}

#[tokio::test]
async fn the_case_of_a_question_is_echoed_and_means_nothing() {
    let world = World::new().await;
    world.server.host("mixed.test", &["93.184.216.34"]);
    world.allow_public("mixed.test");
    let lower = world.ask("mixed.test", RecordType::A).await;
    let mixed = world.ask("mIxEd.TEST", RecordType::A).await;
    assert_eq!(mixed.queries[0].name().to_string(), "mIxEd.TEST.");
    assert_eq!(mixed.answers[0].name.to_string(), "mIxEd.TEST.");
    assert_eq!(addresses(&lower), addresses(&mixed));
    assert!(lock(&world.policy.asked).iter().all(|n| n == "mixed.test"));
}

#[tokio::test]
async fn localhost_is_the_loopback_and_asks_nobody() {
    let world = World::new().await;
    for (name, kind, want) in [
        ("localhost", RecordType::A, "127.0.0.1"),
        ("LocalHost", RecordType::AAAA, "::1"),
        ("app.localhost", RecordType::A, "127.0.0.1"),
    ] {
        assert_eq!(addresses(&world.ask(name, kind).await), [ip(want)]);
        assert_eq!(world.outcome(), (Verdict::Allow, Reason::Resolver));
    }
    let other = world.ask("localhost", RecordType::TXT).await;
    assert!(is_nothing(&other, ResponseCode::NoError));
    assert!(world.server.questions().is_empty() && world.table.len() == 0);
    let disguised = world.ask("notlocalhost", RecordType::A).await;
    assert!(is_nothing(&disguised, ResponseCode::NXDomain));
}

#[tokio::test]
async fn an_allowed_name_in_the_hosts_file_is_resolved_there_for_both_families() {
    let hosts = "10.1.2.3 db.test\n127.0.1.1 self.test\n0.0.0.0 ads.test\n";
    let world = World::with_hosts(hosts).await;
    world.server.host("db.test", &["93.184.216.34"]);
    world.server.host("db.test", &["2606:4700::1111"]);
    world.allow("db.test", NameRule { internal_allowed: true, ..rule(1) });
    let reply = world.ask("db.test", RecordType::A).await;
    assert_eq!(reply.answers[0].ttl, 5);
    assert_eq!(world.event().answers[0].1, ip("10.1.2.3"));
    let reply = world.ask("db.test", RecordType::AAAA).await;
    assert!(is_nothing(&reply, ResponseCode::NoError));
    assert_eq!(world.outcome(), (Verdict::Allow, Reason::NoRecord));
    for name in ["self.test", "ads.test"] {
        world.allow_public(name);
        let reply = world.ask(name, RecordType::A).await;
        assert!(is_nothing(&reply, ResponseCode::ServFail));
        assert_eq!(world.outcome(), (Verdict::Deny, Reason::ForbiddenAddress));
    }
    assert!(world.server.questions().is_empty());
}

#[tokio::test]
async fn a_name_without_the_record_is_told_from_one_that_does_not_exist() {
    let world = World::new().await;
    world.server.host("v4.test", &["93.184.216.34"]);
    world.allow_public("v4.test");
    world.allow_public("gone.test");
    let reply = world.ask("v4.test", RecordType::AAAA).await;
    assert!(is_nothing(&reply, ResponseCode::NoError));
    assert_eq!(world.outcome(), (Verdict::Allow, Reason::NoRecord));
    let reply = world.ask("gone.test", RecordType::A).await;
    assert!(is_nothing(&reply, ResponseCode::NXDomain));
    assert_eq!(world.outcome(), (Verdict::Allow, Reason::NoRecord));
}

/// A server that has nothing of a name says for how long (RFC 2308): no longer, and a minute at most.
#[tokio::test]
async fn that_there_is_nothing_is_remembered_as_long_as_the_server_says_and_a_minute_at_most() {
    let world = World::new().await;
    for (name, seconds, asked) in [("gone.test", 3600, 1), ("soon.test", 0, 2)] {
        world.allow_public(name);
        world.server.set(name, RecordType::A, Answer::Gone(seconds));
        for _ in 0..2 {
            let reply = world.ask(name, RecordType::A).await;
            assert!(is_nothing(&reply, ResponseCode::NXDomain));
            assert_eq!(world.outcome(), (Verdict::Allow, Reason::NoRecord));
        }
        let of_name = |question: &&(String, _, _)| question.0 == name;
        assert_eq!(world.server.questions().iter().filter(of_name).count(), asked, "{name}");
    }
    // It comes to be, and a minute later it is there.
    world.server.host("gone.test", &["93.184.216.34"]);
    assert!(is_nothing(&world.ask("gone.test", RecordType::A).await, ResponseCode::NXDomain));
    let upstream = world.server.questions().len();
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(61)).await;
    tokio::time::resume();
    assert_eq!(addresses(&world.ask("gone.test", RecordType::A).await).len(), 1);
    assert_eq!(world.server.questions().len(), upstream + 1);
}

/// What must not be remembered is asked for each time, and stands for an address no shorter than others.
#[tokio::test]
async fn an_answer_with_no_time_to_live_is_asked_for_again_and_keeps_its_address() {
    let world = World::new().await;
    world.allow_public("zero.test");
    let answer =
        |last: u8| Answer::Records(vec![address("zero.test", &format!("93.184.216.{last}"), 0)]);
    world.server.set("zero.test", RecordType::A, answer(34));
    let first = addresses(&world.ask("zero.test", RecordType::A).await);
    assert_eq!(addresses(&world.ask("zero.test", RecordType::A).await), first);
    world.server.set("zero.test", RecordType::A, answer(35));
    let other = addresses(&world.ask("zero.test", RecordType::A).await);
    assert_ne!(other, first, "another host's");
    assert_eq!(world.server.questions().len(), 3);
    // Who connects late still reaches what was answered.
    assert_eq!(world.table.real(first[0]).unwrap().real, address_of(ip("93.184.216.34")));
}

/// As many as a message holds, the names in it uncompressed.
#[tokio::test]
async fn thousands_of_addresses_are_no_more_than_an_answer_may_have() {
    let world = World::new().await;
    world.allow_public("huge.test");
    let many = (0..2000).map(|n| format!("93.184.{}.{}", n / 250, n % 250));
    let records = many.map(|ip| address("huge.test", &ip, 60)).collect();
    world.server.set("huge.test", RecordType::A, Answer::TooLong(records));
    let reply = &world.ask_tcp(&[question("huge.test", RecordType::A)]).await[0];
    assert_eq!(reply.answers.len(), ADDRESSES_PER_ANSWER);
    assert_eq!(world.table.len(), ADDRESSES_PER_ANSWER);
}

#[tokio::test]
async fn an_embedded_ipv4_address_stays_as_the_server_wrote_it() {
    let world = World::new().await;
    world.server.host("nat64.test", &["64:ff9b::5db8:d822"]);
    world.allow_public("nat64.test");
    let reply = world.ask("nat64.test", RecordType::AAAA).await;
    let value = world.table.real(addresses(&reply)[0]).unwrap();
    assert_eq!(value.real, address_of(ip("64:ff9b::5db8:d822")));
    assert_eq!(value.real.embedded(), Address::v4(u32::from_ne_bytes([93, 184, 216, 34])));
}

/// More than are decided at once, of which some wait for the upstream and some are answered at once.
#[tokio::test]
async fn questions_that_come_together_are_answered_and_recorded_once_each() {
    let world = World::new().await;
    world.allow_public("api.test");
    world.server.host("api.test", &["93.184.216.34"]);
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let names = ["api.test", "denied.test", "localhost"];
    let asked: Vec<_> = (0..50).map(|n| question(names[n % 3], RecordType::A)).collect();
    socket.writable().await.unwrap();
    // No task runs until this one waits, so all of them are in the queue by then.
    for message in &asked {
        socket.try_send_to(&message.to_vec().unwrap(), world.at).unwrap();
    }
    let mut left: Vec<_> = asked.iter().map(|message| message.id).collect();
    while !left.is_empty() {
        let mut buffer = [0; 512];
        let length = timeout(SOON, socket.recv(&mut buffer)).await.unwrap().unwrap();
        let id = Message::from_vec(&buffer[..length]).unwrap().id;
        left.swap_remove(left.iter().position(|&it| it == id).expect("answered once"));
    }
    assert_eq!(lock(&world.observer.events).len(), asked.len());
}

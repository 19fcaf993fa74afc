//! Packets that are not a good question: refused in form, or dropped, and never fatal.
//! The reader of packets is also given random bytes and questions with bytes changed.

use hickory_proto::op::{MessageType, OpCode};
use hickory_proto::rr::DNSClass;
use proptest::prelude::*;

use super::wire::{Received, read};
use super::*;

fn reject_code(packet: &[u8]) -> Option<ResponseCode> {
    match read(packet, Transport::Udp) {
        Received::Reject(reply) => Some(Message::from_vec(&reply).unwrap().response_code),
        _ => None,
    }
}

#[test]
fn what_is_no_question_is_refused_in_form_or_dropped() {
    let good = question("api.test", RecordType::A);
    let mut response = good.clone();
    response.metadata.message_type = MessageType::Response;
    for silent in [&b""[..], &[0; 11], &response.to_vec().unwrap()] {
        assert!(matches!(read(silent, Transport::Udp), Received::Ignore));
    }
    let mut notify = good.clone();
    notify.metadata.op_code = OpCode::Notify;
    assert_eq!(reject_code(&notify.to_vec().unwrap()), Some(ResponseCode::NotImp));
    let mut two = good.clone();
    two.add_query(good.queries[0].clone());
    let mut none = good.clone();
    none.queries.clear();
    let mut answered = good.clone();
    answered.add_answer(server::address("api.test", "93.184.216.34", 1));
    let mut cut = good.to_vec().unwrap();
    cut.truncate(15);
    let mut promise = good.to_vec().unwrap();
    promise[4..6].copy_from_slice(&[0xff, 0xff]);
    let mut long = good.to_vec().unwrap();
    long.resize(5000, 0);
    for packet in [
        two.to_vec().unwrap(),
        none.to_vec().unwrap(),
        answered.to_vec().unwrap(),
        cut,
        promise,
        long,
    ] {
        assert_eq!(reject_code(&packet), Some(ResponseCode::FormErr));
    }
}

#[tokio::test]
async fn another_class_or_edns_version_is_refused_and_recorded() {
    let world = World::new().await;
    world.allow_public("version.bind");
    let mut chaos = question("version.bind", RecordType::TXT);
    chaos.queries[0].set_query_class(DNSClass::CH);
    assert!(is_nothing(&world.send(&chaos).await, ResponseCode::Refused));
    assert_eq!(world.outcome(), (Verdict::Deny, Reason::QuestionKind));
    let mut future = with_edns(question("version.bind", RecordType::A), 1232);
    future.edns.as_mut().unwrap().set_version(1);
    let reply = world.send(&future).await;
    // 16 is BADVERS here and BADSIG to who reads it without the context.
    assert_eq!(u16::from(reply.response_code), 16);
    assert_eq!(reply.edns.unwrap().version(), 0);
    assert_eq!(world.outcome(), (Verdict::Deny, Reason::QuestionKind));
}

#[tokio::test]
async fn edns_is_echoed_with_its_dnssec_bit_but_not_its_options() {
    let world = World::new().await;
    let mut asked = with_edns(question("evil.test", RecordType::A), 1232);
    asked.edns.as_mut().unwrap().set_dnssec_ok(true);
    asked.metadata.checking_disabled = true;
    asked.metadata.authentic_data = true;
    let reply = world.send(&asked).await;
    let edns = reply.edns.as_ref().unwrap();
    assert!(edns.flags().dnssec_ok && edns.options().as_ref().is_empty());
    assert!(reply.checking_disabled && !reply.authentic_data);
    assert!(world.ask("evil.test", RecordType::A).await.edns.is_none());
}

#[tokio::test]
async fn the_resolver_survives_garbage_on_both_transports() {
    let world = World::new().await;
    world.server.host("api.test", &["93.184.216.34"]);
    world.allow_public("api.test");
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    for length in [0, 1, 12, 100, 512, 4096, 4097, 60_000] {
        socket.send_to(&vec![0x41; length], world.at).await.unwrap();
    }
    for garbage in [
        vec![],
        vec![0],
        vec![0, 0],
        vec![0xff; 70_000],
        vec![0, 5, 1, 2],
        [&[0, 12][..], &[0; 12], &[0, 12], &[0xff; 12]].concat(),
    ] {
        let mut stream = TcpStream::connect(world.at).await.unwrap();
        // The other side may have hung up half-way, which is as good.
        let _ = stream.write_all(&garbage).await;
        let _ = stream.shutdown().await;
        let _ = timeout(SOON, stream.read_to_end(&mut Vec::new())).await.unwrap();
    }
    assert_eq!(world.ask("api.test", RecordType::A).await.answers.len(), 1);
    let replies = world.ask_tcp(&[question("api.test", RecordType::A)]).await;
    assert_eq!(replies[0].answers.len(), 1);
    assert!(!world.serving.is_finished());
}

#[tokio::test]
async fn connections_beyond_the_bound_wait_and_idle_ones_are_closed() {
    let world = World::new().await;
    let mut idle = Vec::new();
    for _ in 0..80 {
        idle.push(TcpStream::connect(world.at).await.unwrap());
    }
    tokio::time::pause();
    let closed = timeout(SOON, idle[0].read(&mut [0; 1])).await.unwrap();
    assert_eq!(closed.unwrap(), 0);
    tokio::time::resume();
    let replies = world.ask_tcp(&[question("evil.test", RecordType::A)]).await;
    assert_eq!(replies.len(), 1);
}

#[tokio::test]
async fn what_was_started_ends_with_the_future_that_serves() {
    let world = World::new().await;
    let mut stream = TcpStream::connect(world.at).await.unwrap();
    stream.write_all(&[0]).await.unwrap();
    world.ask("evil.test", RecordType::A).await;
    world.serving.abort();
    let closed = timeout(SOON, stream.read(&mut [0; 1])).await.unwrap();
    assert!(matches!(closed, Ok(0) | Err(_)));
    while Arc::strong_count(&world.resolver) > 1 {
        tokio::task::yield_now().await;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        check(&bytes);
    }

    #[test]
    fn a_question_with_bytes_changed_never_panics(
        label in proptest::collection::vec(any::<u8>(), 1..64),
        kind in any::<u16>(),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut in any::<prop::sample::Index>(),
        is_cut in any::<bool>(),
    ) {
        let asked = question_of(&[&label, b"test"], RecordType::from(kind));
        let mut packet = with_edns(asked, 1232).to_vec().unwrap();
        for (index, byte) in changes {
            let at = index.index(packet.len());
            packet[at] = byte;
        }
        if is_cut {
            packet.truncate(cut.index(packet.len()));
        }
        check(&packet);
    }
}

/// Reads a packet, answers it if it is a question, and reads the answer.
fn check(packet: &[u8]) {
    for transport in [Transport::Udp, Transport::Tcp] {
        match read(packet, transport) {
            Received::Ignore => {}
            Received::Reject(reply) => {
                assert!(Message::from_vec(&reply).is_ok());
            }
            Received::Question(question) | Received::Refuse(question, _) => {
                assert!(!question.name.is_empty());
                assert!(question.name.bytes().all(|b| (b' '..=b'~').contains(&b)));
                let ips = vec![ip("198.18.0.1"); ADDRESSES_PER_ANSWER];
                let kind = question.kind();
                let ips = if kind == RecordType::AAAA { &[ip("fd63::1"); 64] } else { &ips[..] };
                for code in [ResponseCode::NoError, ResponseCode::NXDomain, ResponseCode::BADVERS] {
                    for ips in [ips, &ips[..1], &[]] {
                        let packet = question.reply(code, ips, 5).unwrap();
                        let reply = Message::from_vec(&packet).unwrap();
                        assert_eq!(reply.message_type, MessageType::Response);
                        assert_eq!(reply.truncation, reply.answers.len() < ips.len());
                        // Byte for byte what hickory makes of it; it does not point to the root.
                        if !reply.queries[0].name().is_root() {
                            assert_eq!(reply.to_vec().unwrap(), packet);
                        }
                    }
                }
            }
        }
    }
}

//! How long synthetic addresses live, when they reach the kernel's table, and what bounds them.
//! Time is the runtime's own and moves when a test says so.

use super::server::{Answer, address};
use super::synthetic::{GRACE, Grant, Pool, Refused};
use super::*;
use clawbox_common::limits::{
    SYNTHETICS, SYNTHETICS_FOR_EACH, SYNTHETICS_PER_SANDBOX, SYNTHETICS_RESERVED,
};

#[tokio::test]
async fn an_answer_is_published_before_it_is_sent() {
    let world = World::new().await;
    world.allow_public("api.test");
    world.server.host("api.test", &["93.184.216.34", "93.184.216.35"]);
    let socket = StdUdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    socket.set_nonblocking(true).unwrap();
    *lock(&world.table.client) = Some(socket.try_clone().unwrap());
    let asked = question("api.test", RecordType::A).to_vec().unwrap();
    socket.send_to(&asked, world.at).unwrap();
    let socket = UdpSocket::from_std(socket).unwrap();
    let mut buffer = [0; 512];
    let length = timeout(SOON, socket.recv(&mut buffer)).await.unwrap().unwrap();
    let reply = Message::from_vec(&buffer[..length]).unwrap();
    for synthetic in addresses(&reply) {
        assert!(world.table.real(synthetic).is_some());
    }
    assert_eq!(world.table.writes.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_name_that_is_asked_for_again_keeps_its_addresses_without_a_write() {
    let world = World::new().await;
    world.allow_public("api.test");
    world.server.host("api.test", &["93.184.216.34", "93.184.216.35"]);
    let first = world.ask("api.test", RecordType::A).await;
    let again = world.ask("api.test", RecordType::A).await;
    assert_eq!(addresses(&first), addresses(&again));
    assert_eq!(world.table.writes.load(Ordering::SeqCst), 2);
    assert_eq!(world.server.questions().len(), 1, "the second from memory");
    let events = lock(&world.observer.events);
    assert_eq!(events[1].upstream_ms, None);
    assert_eq!(events[0].answers, events[1].answers);
}

#[tokio::test]
async fn an_address_is_withdrawn_a_grace_after_its_time_and_no_sooner() {
    let world = World::new().await;
    world.allow_public("short.test");
    let records = Answer::Records(vec![address("short.test", "93.184.216.34", 30)]);
    world.server.set("short.test", RecordType::A, records);
    let reply = world.ask("short.test", RecordType::A).await;
    assert_eq!(reply.answers[0].ttl, 30);
    tokio::time::pause();
    tokio::time::sleep(Duration::from_secs(30) + GRACE - Duration::from_secs(2)).await;
    assert_eq!(world.table.len(), 1);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(world.table.len(), 0);
    tokio::time::resume();
    // Not the same address again at once: somebody may still have it.
    let later = world.ask("short.test", RecordType::A).await;
    assert_ne!(addresses(&later), addresses(&reply));
}

#[tokio::test]
async fn the_time_a_client_is_given_has_bounds() {
    let world = World::new().await;
    for (name, ttl, want) in
        [("zero.test", 0, 5..=5), ("day.test", 86_400, 300..=300), ("minute.test", 60, 59..=60)]
    {
        world.allow_public(name);
        let records = Answer::Records(vec![address(name, "93.184.216.34", ttl)]);
        world.server.set(name, RecordType::A, records);
        let reply = world.ask(name, RecordType::A).await;
        assert!(want.contains(&reply.answers[0].ttl), "{name}");
    }
}

#[tokio::test]
async fn a_table_that_takes_no_more_means_servfail_and_leaves_nothing_half_done() {
    let world = World::new().await;
    *lock(&world.table.room) = Some(1);
    world.allow_public("two.test");
    world.server.host("two.test", &["93.184.216.34", "93.184.216.35"]);
    let reply = world.ask("two.test", RecordType::A).await;
    assert!(is_nothing(&reply, ResponseCode::ServFail));
    assert_eq!(world.outcome(), (Verdict::Deny, Reason::TableFull));
    assert_eq!(world.table.len(), 0);
    *lock(&world.table.room) = None;
    assert_eq!(world.ask("two.test", RecordType::A).await.answers.len(), 2);
}

#[tokio::test]
async fn a_new_policy_renews_addresses_on_the_next_question() {
    let world = World::new().await;
    world.allow("api.test", rule(1));
    world.server.host("api.test", &["93.184.216.34"]);
    let first = addresses(&world.ask("api.test", RecordType::A).await);
    world.allow("api.test", rule(9));
    world.policy.generation.store(2, Ordering::SeqCst);
    let again = addresses(&world.ask("api.test", RecordType::A).await);
    assert_eq!(first, again);
    assert_eq!(world.table.under(2, again[0]).unwrap().hosts, rule(9).hosts);
}

#[tokio::test]
async fn refresh_renews_what_is_still_allowed_and_withdraws_the_rest() {
    let world = World::new().await;
    let internal = NameRule { internal_allowed: true, ..rule(1) };
    let mut held = HashMap::new();
    for (name, real) in
        [("kept.test", "93.184.216.34"), ("gone.test", "93.184.216.34"), ("inner.test", "10.0.0.1")]
    {
        world.allow(name, internal.clone());
        world.server.host(name, &[real]);
        held.insert(name, addresses(&world.ask(name, RecordType::A).await)[0]);
    }
    lock(&world.policy.rules).clear();
    world.allow("kept.test", rule(3));
    world.allow("inner.test", rule(4));
    world.policy.generation.store(2, Ordering::SeqCst);
    world.resolver.refresh();
    let kept = |policy| world.table.under(policy, held["kept.test"]).map(|value| value.hosts);
    assert_eq!((kept(1), kept(2)), (Some(rule(1).hosts), Some(rule(3).hosts)));
    for name in ["gone.test", "inner.test"] {
        assert_eq!(
            (world.table.under(1, held[name]), world.table.under(2, held[name])),
            (None, None)
        );
    }
    world.resolver.forget_outdated();
    assert_eq!((kept(1), kept(2)), (None, Some(rule(3).hosts)));
    world.resolver.clear();
    assert_eq!(world.table.len(), 0);
}

fn pool() -> (Pool, Arc<FakeTable>, Arc<NameTable>) {
    let table = Arc::<FakeTable>::default();
    let names = Arc::<NameTable>::default();
    let pool =
        Pool::new(SANDBOX, Arc::clone(&table) as Arc<dyn SyntheticTable>, Arc::clone(&names));
    (pool, table, names)
}

const GRANT: Grant = Grant { hosts: HostIds { ids: [1, 0, 0, 0] }, policy: 1 };
const MINUTE: Duration = Duration::from_secs(60);

#[tokio::test(start_paused = true)]
async fn a_sandbox_at_its_bound_gets_no_more_until_something_expires() {
    let (mut pool, table, names) = pool();
    for i in 0..SYNTHETICS_PER_SANDBOX {
        let name = format!("n{i}.test");
        pool.hand_out(&name, &[(ip("93.184.216.34"), GRANT)], MINUTE).unwrap();
    }
    let one_more = pool.hand_out("more.test", &[(ip("93.184.216.34"), GRANT)], MINUTE);
    assert!(matches!(one_more, Err(Refused::Full)));
    assert_eq!(table.len(), SYNTHETICS_PER_SANDBOX as usize);
    // What it holds is still answered.
    pool.hand_out("n5.test", &[(ip("93.184.216.34"), GRANT)], MINUTE).unwrap();
    tokio::time::advance(MINUTE + GRACE).await;
    pool.hand_out("more.test", &[(ip("93.184.216.34"), GRANT)], MINUTE).unwrap();
    assert_eq!(table.len(), 1);
    let value = *lock(&table.entries).values().next().unwrap();
    assert_eq!(names.name_of(value.name).as_deref(), Some("more.test"));
}

#[tokio::test(start_paused = true)]
async fn sandboxes_that_hold_many_addresses_leave_room_for_those_that_hold_few() {
    let table = Arc::<FakeTable>::default();
    let pool =
        |sandbox| Pool::new(sandbox, Arc::clone(&table) as Arc<dyn SyntheticTable>, Arc::default());
    let fill = |pool: &mut Pool| {
        let mut held = 0;
        let mut hold = |i: u32| {
            pool.hand_out(&format!("n{i}.test"), &[(ip("93.184.216.34"), GRANT)], MINUTE).is_ok()
        };
        while hold(held) {
            held += 1;
        }
        held
    };
    let mut greedy: Vec<Pool> = (1..=8).map(pool).collect();
    let held: u32 = greedy.iter_mut().map(fill).sum();
    let shared = SYNTHETICS - SYNTHETICS_RESERVED;
    assert!((shared..shared + 2 * SYNTHETICS_FOR_EACH + 1).contains(&held), "{held}");
    for sandbox in 9..=40 {
        assert_eq!(fill(&mut pool(sandbox)), SYNTHETICS_FOR_EACH, "{sandbox}");
    }
    // What is held is answered as before, and what one gives back is there for all.
    greedy[0].hand_out("n7.test", &[(ip("93.184.216.34"), GRANT)], MINUTE).unwrap();
    greedy[0].clear();
    assert!(fill(&mut pool(41)) > SYNTHETICS_FOR_EACH);
}

#[tokio::test(start_paused = true)]
async fn the_range_is_used_up_before_an_address_comes_again_and_held_ones_are_stepped_over() {
    let (mut pool, _, _) = pool();
    let mut hold = |name: &str, ttl| {
        let pairs = pool.hand_out(name, &[(ip("93.184.216.34"), GRANT)], ttl);
        pairs.unwrap()[0].0
    };
    let first = hold("first.test", 60 * MINUTE);
    assert_eq!(first, ip("198.18.0.1"));
    let mut seen = std::collections::HashSet::from([first]);
    // All of a /15 but its first address and its last.
    for i in 1..(1 << 17) - 2 {
        assert!(seen.insert(hold(&format!("n{i}.test"), Duration::ZERO)));
        if i % 4096 == 0 {
            tokio::time::advance(GRACE).await;
        }
    }
    assert!(!seen.contains(&ip("198.18.0.0")) && !seen.contains(&ip("198.19.255.255")));
    assert_eq!(hold("wrapped.test", MINUTE), ip("198.18.0.2"));
    assert_eq!(hold("first.test", MINUTE), first);
    let v6 = pool.hand_out("six.test", &[(ip("2606::1"), GRANT)], MINUTE);
    assert_eq!(v6.unwrap()[0].0, ip("fd63:6c61:7762:6f78::1"));
}

//! The resolver against a real upstream and real clients, all on sockets of the loopback.
//! The upstream, the policy, the table and the observer are fakes that remember what they saw.

mod answers;
mod lifetimes;
mod packets;
mod refusals;
mod server;

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket as StdUdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use clawbox_common::rule::{HostIds, SyntheticKey, SyntheticValue};
use clawbox_common::verdict::{Reason, Verdict};
use hickory_proto::op::{Edns, Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use self::server::Server;
use clawbox_common::address::Range;

use super::admission::address_of;
use super::*;

/// Long enough for a slow machine, short enough to fail.
const SOON: Duration = Duration::from_secs(20);
const SANDBOX: u32 = 7;

/// What the fake policy says about a name.
#[derive(Clone, Default)]
struct NameRule {
    hosts: HostIds,
    internal_allowed: bool,
    allowed_ips: Vec<ipnet::IpNet>,
}

impl NameRule {
    fn admits(&self, address: IpAddr) -> bool {
        let range = address_of(address).embedded().range();
        if self.allowed_ips.is_empty() {
            range == Range::Global || self.internal_allowed
        } else {
            range == Range::Global || self.allowed_ips.iter().any(|net| net.contains(&address))
        }
    }
}

#[derive(Default)]
struct FakePolicy {
    rules: Mutex<HashMap<String, NameRule>>,
    generation: AtomicU32,
    audit_only: AtomicBool,
    /// What it was asked.
    asked: Mutex<Vec<String>>,
}

impl FakePolicy {
    fn rule(&self, name: &str) -> Option<NameRule> {
        let rules = lock(&self.rules);
        let parent = name.split_once('.').map(|(_, parent)| format!("*.{parent}"));
        rules.get(name).or_else(|| rules.get(&parent?)).cloned()
    }
}

impl NamePolicy for FakePolicy {
    fn name(&self, name: &str) -> NameDecision {
        lock(&self.asked).push(name.to_owned());
        self.rule(name).map_or(NameDecision::Denied(Reason::UnknownName), |_| NameDecision::Allowed)
    }

    fn hosts_for(&self, name: &str, address: IpAddr) -> Option<HostIds> {
        self.rule(name).filter(|rule| rule.admits(address)).map(|rule| rule.hosts)
    }

    fn generation(&self) -> u32 {
        self.generation.load(Ordering::SeqCst)
    }

    fn audit_only(&self) -> bool {
        self.audit_only.load(Ordering::SeqCst)
    }
}

#[derive(Default)]
struct FakeTable {
    entries: Mutex<HashMap<SyntheticKey, SyntheticValue>>,
    writes: AtomicU32,
    room: Mutex<Option<usize>>,
    /// A client's socket, which must have no answer yet whenever something is published.
    client: Mutex<Option<StdUdpSocket>>,
}

impl SyntheticTable for FakeTable {
    fn publish(&self, key: &SyntheticKey, value: &SyntheticValue) -> io::Result<()> {
        if let Some(client) = &*lock(&self.client) {
            let early = client.peek(&mut [0; 12]);
            assert!(early.is_err(), "answered before it was published");
        }
        let mut entries = lock(&self.entries);
        if lock(&self.room).is_some_and(|room| entries.len() >= room) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.writes.fetch_add(1, Ordering::SeqCst);
        entries.insert(*key, *value);
        Ok(())
    }

    fn withdraw(&self, key: &SyntheticKey) -> io::Result<()> {
        let gone = lock(&self.entries).remove(key);
        gone.map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn in_use(&self) -> usize {
        lock(&self.entries).len()
    }
}

impl FakeTable {
    /// What a policy generation says of an address.
    fn under(&self, policy: u32, synthetic: IpAddr) -> Option<SyntheticValue> {
        let key = SyntheticKey { sandbox: SANDBOX, policy, address: address_of(synthetic) };
        lock(&self.entries).get(&key).copied()
    }

    fn real(&self, synthetic: IpAddr) -> Option<SyntheticValue> {
        self.under(1, synthetic)
    }

    fn len(&self) -> usize {
        lock(&self.entries).len()
    }
}

#[derive(Default)]
struct FakeObserver {
    events: Mutex<Vec<QuestionEvent>>,
}

impl Observer for FakeObserver {
    fn question(&self, event: QuestionEvent) {
        lock(&self.events).push(event);
    }
}

/// A sandbox's resolver with everything around it.
struct World {
    policy: Arc<FakePolicy>,
    table: Arc<FakeTable>,
    observer: Arc<FakeObserver>,
    server: Server,
    resolver: Arc<Resolver>,
    at: SocketAddr,
    serving: JoinHandle<io::Result<()>>,
    _hosts: tempfile::TempDir,
}

impl Drop for World {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl World {
    async fn new() -> Self {
        Self::build("127.0.0.1 localhost\n", SOON).await
    }

    async fn with_hosts(hosts: &str) -> Self {
        Self::build(hosts, SOON).await
    }

    /// With an upstream that gives up soon.
    async fn impatient() -> Self {
        Self::build("", Duration::from_millis(700)).await
    }

    async fn build(hosts: &str, patience: Duration) -> Self {
        let server = Server::start().await;
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("hosts");
        std::fs::write(&file, hosts).unwrap();
        let upstream =
            Upstream::servers(&[server.at]).unwrap().with_hosts_file(file).with_patience(patience);
        let policy = Arc::<FakePolicy>::default();
        policy.generation.store(1, Ordering::SeqCst);
        let table = Arc::<FakeTable>::default();
        let observer = Arc::<FakeObserver>::default();
        let resolver = Arc::new(Resolver::new(
            SANDBOX,
            Arc::clone(&policy) as Arc<dyn NamePolicy>,
            Arc::clone(&table) as Arc<dyn SyntheticTable>,
            Arc::clone(&observer) as Arc<dyn Observer>,
            upstream,
        ));
        let sockets = ResolverSockets::bind().unwrap();
        let at = SocketAddr::from((Ipv4Addr::LOCALHOST, sockets.ports().0));
        let serving = tokio::spawn(Arc::clone(&resolver).serve(sockets));
        Self { policy, table, observer, server, resolver, at, serving, _hosts: dir }
    }

    /// Allows a name, or a wildcard of one label.
    fn allow(&self, name: &str, rule: NameRule) {
        lock(&self.policy.rules).insert(name.to_owned(), rule);
    }

    fn allow_public(&self, name: &str) {
        self.allow(name, rule(1));
    }

    /// The only event since the last call.
    fn event(&self) -> QuestionEvent {
        let mut events = std::mem::take(&mut *lock(&self.observer.events));
        assert_eq!(events.len(), 1, "{events:#?}");
        events.remove(0)
    }

    fn outcome(&self) -> (Verdict, Reason) {
        let event = self.event();
        (event.verdict, event.reason)
    }

    async fn ask(&self, name: &str, kind: RecordType) -> Message {
        self.send(&question(name, kind)).await
    }

    async fn send(&self, message: &Message) -> Message {
        let packet = self.exchange(&message.to_vec().unwrap()).await;
        let reply = Message::from_vec(&packet.expect("no answer")).unwrap();
        assert_eq!(reply.id, message.id);
        reply
    }

    async fn exchange(&self, packet: &[u8]) -> Option<Vec<u8>> {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        socket.connect(self.at).await.unwrap();
        socket.send(packet).await.unwrap();
        let mut buffer = vec![0; 65_536];
        let length = timeout(SOON, socket.recv(&mut buffer)).await.ok()?.unwrap();
        buffer.truncate(length);
        Some(buffer)
    }

    /// Sends all questions on one connection before it reads the first answer.
    async fn ask_tcp(&self, messages: &[Message]) -> Vec<Message> {
        let mut stream = TcpStream::connect(self.at).await.unwrap();
        for message in messages {
            stream.write_all(&framed(message)).await.unwrap();
        }
        stream.shutdown().await.unwrap();
        let mut bytes = Vec::new();
        timeout(SOON, stream.read_to_end(&mut bytes)).await.unwrap().unwrap();
        let mut answers = Vec::new();
        while let Some((length, rest)) = bytes.split_at_checked(2) {
            let length = usize::from(u16::from_be_bytes(length.try_into().unwrap()));
            answers.push(Message::from_vec(&rest[..length]).unwrap());
            bytes = rest[length..].to_vec();
        }
        answers
    }
}

fn rule(host: u32) -> NameRule {
    NameRule { hosts: HostIds { ids: [host, 0, 0, 0] }, ..NameRule::default() }
}

fn question(name: &str, kind: RecordType) -> Message {
    let labels: Vec<_> = name.split('.').filter(|label| !label.is_empty()).collect();
    let labels: Vec<_> = labels.iter().map(|label| label.as_bytes()).collect();
    question_of(&labels, kind)
}

fn question_of(labels: &[&[u8]], kind: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    let mut name = Name::from_labels(labels.iter().copied()).unwrap();
    name.set_fqdn(true);
    message.add_query(Query::query(name, kind));
    message
}

fn with_edns(mut message: Message, payload: u16) -> Message {
    let mut edns = Edns::new();
    edns.set_max_payload(payload);
    message.set_edns(edns);
    message
}

fn framed(message: &Message) -> Vec<u8> {
    let packet = message.to_vec().unwrap();
    let length = u16::try_from(packet.len()).unwrap();
    [&length.to_be_bytes()[..], &packet].concat()
}

fn addresses(message: &Message) -> Vec<IpAddr> {
    let ips = message.answers.iter().map(|record| record.data.ip_addr());
    ips.collect::<Option<_>>().unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn is_nothing(message: &Message, code: ResponseCode) -> bool {
    message.response_code == code && message.answers.is_empty()
}

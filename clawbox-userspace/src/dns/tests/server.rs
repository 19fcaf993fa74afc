//! A name server on UDP and TCP that answers from a table and remembers its questions.
//! It can be silent, refuse, and cut its datagrams short.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::{CNAME, SOA};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};
use tokio::task::JoinSet;

use super::super::Transport;
use super::super::lock;

/// What the server does with a question.
#[derive(Clone)]
pub(super) enum Answer {
    Records(Vec<Record>),
    /// These records, but over TCP only.
    TooLong(Vec<Record>),
    Code(ResponseCode),
    /// The name does not exist, for so many seconds.
    Gone(u32),
    Silence,
}

type Zone = HashMap<(String, RecordType), Answer>;
type Questions = Vec<(String, RecordType, Transport)>;

#[derive(Default)]
struct State {
    zone: Mutex<Zone>,
    questions: Mutex<Questions>,
}

pub(super) struct Server {
    pub(super) at: SocketAddr,
    state: Arc<State>,
    _tasks: JoinSet<()>,
}

impl Server {
    pub(super) async fn start() -> Self {
        let (udp, tcp) = loop {
            let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
            if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()).await {
                break (udp, tcp);
            }
        };
        let at = udp.local_addr().unwrap();
        let state = Arc::<State>::default();
        let mut tasks = JoinSet::new();
        tasks.spawn(datagrams(Arc::clone(&state), udp));
        tasks.spawn(connections(Arc::clone(&state), tcp));
        Self { at, state, _tasks: tasks }
    }

    pub(super) fn set(&self, name: &str, kind: RecordType, answer: Answer) {
        lock(&self.state.zone).insert((name.to_owned(), kind), answer);
    }

    /// Gives a name addresses for an hour; the family follows from the first.
    pub(super) fn host(&self, name: &str, ips: &[&str]) {
        let records: Vec<_> = ips.iter().map(|ip| address(name, ip, 3600)).collect();
        let kind = records[0].record_type();
        self.set(name, kind, Answer::Records(records));
    }

    pub(super) fn questions(&self) -> Questions {
        lock(&self.state.questions).clone()
    }

    /// Stops answering and gives the ports up.
    pub(super) fn stop(&mut self) {
        self._tasks.abort_all();
    }
}

pub(super) fn address(name: &str, ip: &str, ttl: u32) -> Record {
    let data = RData::from(ip.parse::<IpAddr>().unwrap());
    Record::from_rdata(fqdn(name), ttl, data)
}

pub(super) fn alias(name: &str, target: &str, ttl: u32) -> Record {
    Record::from_rdata(fqdn(name), ttl, RData::CNAME(CNAME(fqdn(target))))
}

fn fqdn(name: &str) -> Name {
    Name::from_ascii(format!("{name}.")).unwrap()
}

async fn datagrams(state: Arc<State>, socket: UdpSocket) {
    let mut buffer = [0; 4096];
    while let Ok((length, client)) = socket.recv_from(&mut buffer).await {
        if let Some(reply) = state.reply(&buffer[..length], Transport::Udp) {
            socket.send_to(&reply, client).await.unwrap();
        }
    }
}

async fn connections(state: Arc<State>, socket: TcpListener) {
    while let Ok((mut stream, _)) = socket.accept().await {
        let state = Arc::clone(&state);
        tokio::spawn(async move {
            while let Ok(length) = stream.read_u16().await {
                let mut packet = vec![0; length.into()];
                stream.read_exact(&mut packet).await.unwrap();
                if let Some(reply) = state.reply(&packet, Transport::Tcp) {
                    let length = u16::try_from(reply.len()).unwrap();
                    stream.write_u16(length).await.unwrap();
                    stream.write_all(&reply).await.unwrap();
                }
            }
        });
    }
}

impl State {
    fn reply(&self, packet: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let asked = Message::from_vec(packet).unwrap();
        let query = asked.queries[0].clone();
        let name = query.name().to_ascii();
        let key = (name.trim_end_matches('.').to_owned(), query.query_type());
        lock(&self.questions).push((key.0.clone(), key.1, transport));
        let answer = lock(&self.zone).get(&key).cloned();
        let mut reply = Message::response(asked.id, asked.op_code);
        reply.add_query(query);
        match answer {
            Some(Answer::Records(records)) => {
                reply.add_answers(records);
            }
            Some(Answer::TooLong(records)) if transport == Transport::Tcp => {
                reply.add_answers(records);
            }
            Some(Answer::TooLong(_)) => reply.metadata.truncation = true,
            Some(Answer::Code(code)) => reply.metadata.response_code = code,
            Some(Answer::Gone(seconds)) => {
                reply.metadata.response_code = ResponseCode::NXDomain;
                let (of, by) = (fqdn("ns.test"), fqdn("root.test"));
                let soa = RData::SOA(SOA::new(of, by, 1, 3600, 600, 86_400, seconds));
                reply.add_authority(Record::from_rdata(fqdn("test"), seconds, soa));
            }
            Some(Answer::Silence) => return None,
            None => {
                let exists = lock(&self.zone).keys().any(|(name, _)| *name == key.0);
                if !exists {
                    reply.metadata.response_code = ResponseCode::NXDomain;
                }
            }
        }
        Some(reply.to_vec().unwrap())
    }
}

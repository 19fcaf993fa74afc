//! A name server of the far side, on UDP and TCP: answers from a table, writes every question
//! down. A name that was never asked for here never left the sandbox's host.

use std::collections::{HashMap, HashSet};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::{CNAME, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};

use crate::network::{NAMESERVER, World};
use crate::services::{Stop, readable};

/// The port of name servers.
pub const PORT: u16 = 53;
/// How long answers hold, in seconds.
const TTL: u32 = 60;
/// Aliases followed in one answer.
const ALIASES: usize = 16;

/// A question as it arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// The name, without the last dot.
    pub name: String,
    /// The record type, `A` for example.
    pub kind: String,
    /// `udp` or `tcp`.
    pub transport: &'static str,
}

#[derive(Default)]
struct State {
    records: Mutex<HashMap<String, Vec<RData>>>,
    truncated: Mutex<HashSet<String>>,
    asked: Mutex<Vec<Asked>>,
}

/// A running name server.
pub struct Names {
    state: Arc<State>,
    _stop: Stop,
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn fully_qualified(name: &str) -> Name {
    Name::from_ascii(format!("{name}.")).expect("tests use valid names")
}

impl Names {
    /// Serves at [`NAMESERVER`], with nothing in the table.
    #[must_use]
    pub fn serve(world: &World) -> Self {
        let at = SocketAddr::from((NAMESERVER, PORT));
        let (udp, tcp) = world.outside(|| {
            (
                UdpSocket::bind(at).expect("the port of the name server is free"),
                TcpListener::bind(at).expect("the port of the name server is free"),
            )
        });
        let state = Arc::<State>::default();
        let stop = Stop::new();
        let (to, stopped) = (Arc::clone(&state), stop.reader());
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while readable(&udp, &stopped) {
                let Ok((length, client)) = udp.recv_from(&mut buffer) else {
                    continue;
                };
                if let Some(reply) = to.reply(&buffer[..length], "udp") {
                    let _ = udp.send_to(&reply, client);
                }
            }
        });
        let (to, stopped) = (Arc::clone(&state), stop.reader());
        thread::spawn(move || {
            while readable(&tcp, &stopped) {
                let Ok((stream, _)) = tcp.accept() else {
                    continue;
                };
                let to = Arc::clone(&to);
                thread::spawn(move || to.converse(stream));
            }
        });
        Self { state, _stop: stop }
    }

    /// Gives a name addresses, of both families.
    pub fn host(&self, name: &str, addresses: &[IpAddr]) -> &Self {
        let records = addresses.iter().map(|address| RData::from(*address)).collect();
        locked(&self.state.records).insert(name.to_owned(), records);
        self
    }

    /// Makes a name another one's alias.
    pub fn alias(&self, name: &str, target: &str) -> &Self {
        let record = RData::CNAME(CNAME(fully_qualified(target)));
        locked(&self.state.records).insert(name.to_owned(), vec![record]);
        self
    }

    /// Gives a name a text.
    pub fn text(&self, name: &str, text: &str) -> &Self {
        let record = RData::TXT(TXT::new(vec![text.to_owned()]));
        locked(&self.state.records).entry(name.to_owned()).or_default().push(record);
        self
    }

    /// Answers a name over TCP only.
    pub fn truncate(&self, name: &str) -> &Self {
        locked(&self.state.truncated).insert(name.to_owned());
        self
    }

    /// Every question so far.
    #[must_use]
    pub fn asked(&self) -> Vec<Asked> {
        locked(&self.state.asked).clone()
    }

    /// Whether a name, or one below it, was asked for.
    #[must_use]
    pub fn was_asked(&self, name: &str) -> bool {
        let below = format!(".{name}");
        self.asked().iter().any(|asked| asked.name == name || asked.name.ends_with(&below))
    }
}

impl State {
    fn converse(&self, mut stream: TcpStream) {
        let mut length = [0; 2];
        while stream.read_exact(&mut length).is_ok() {
            let mut packet = vec![0; u16::from_be_bytes(length).into()];
            if stream.read_exact(&mut packet).is_err() {
                return;
            }
            let Some(reply) = self.reply(&packet, "tcp") else {
                return;
            };
            let mut framed = (reply.len() as u16).to_be_bytes().to_vec();
            framed.extend(reply);
            if stream.write_all(&framed).is_err() {
                return;
            }
        }
    }

    fn reply(&self, packet: &[u8], transport: &'static str) -> Option<Vec<u8>> {
        let message = Message::from_vec(packet).ok()?;
        let query = message.queries.first()?.clone();
        let name = query.name().to_ascii().trim_end_matches('.').to_ascii_lowercase();
        let kind = query.query_type();
        let asked = Asked { name: name.clone(), kind: kind.to_string(), transport };
        locked(&self.asked).push(asked);
        let mut reply = Message::response(message.id, message.op_code);
        reply.add_query(query);
        if transport == "udp" && locked(&self.truncated).contains(&name) {
            reply.metadata.truncation = true;
        } else if self.answers(name.clone(), kind).is_some_and(|answers| {
            reply.add_answers(answers);
            true
        }) {
        } else {
            reply.metadata.response_code = ResponseCode::NXDomain;
        }
        reply.to_vec().ok()
    }

    /// The records of a name, through its aliases; `None` for a name that is not there.
    fn answers(&self, mut name: String, kind: RecordType) -> Option<Vec<Record>> {
        let records = locked(&self.records);
        let mut answers = Vec::new();
        for _ in 0..ALIASES {
            let found = records.get(&name)?;
            let owner = fully_qualified(&name);
            let mut alias = None;
            for data in found {
                if let RData::CNAME(target) = data {
                    alias = Some(target.0.to_ascii().trim_end_matches('.').to_owned());
                }
                if data.record_type() == kind || alias.is_some() {
                    answers.push(Record::from_rdata(owner.clone(), TTL, data.clone()));
                }
            }
            match alias {
                Some(target) => name = target,
                None => break,
            }
        }
        Some(answers)
    }
}

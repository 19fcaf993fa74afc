//! Questions out of packets and packets out of answers; the wire format itself is hickory's.
//! Whatever a client sends, the result is a question, a refusal or silence.

use std::net::IpAddr;
use std::sync::Arc;

use hickory_proto::op::{
    Edns, Header, Message, MessageType, Metadata, OpCode, Query, ResponseCode,
};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};

use super::contract::Transport;

/// Bytes of the largest question that is read, and of the largest datagram that is sent.
pub(super) const PACKET: usize = 4096;
/// The smallest reply size a client can ask for.
const MIN_PAYLOAD: u16 = 512;
/// Bytes of an address record whose name points to the question: A, AAAA.
const RECORD_BYTES: [usize; 2] = [16, 28];

/// What a packet turned out to be.
#[derive(Debug)]
pub(super) enum Received {
    /// Not a question, or not even a header: no answer.
    Ignore,
    /// Not a question that can be decided on.
    Reject(Vec<u8>),
    /// A question for something that this resolver has for nobody.
    Refuse(Question, ResponseCode),
    /// A question to decide.
    Question(Question),
}

/// One well-formed question.
#[derive(Debug)]
pub(super) struct Question {
    metadata: Metadata,
    query: Query,
    edns: Option<Edns>,
    transport: Transport,
    /// Lower case, no trailing dot.
    pub(super) name: Arc<str>,
    /// The name is made like a host's: only such names are put to the policy.
    pub(super) is_host: bool,
}

/// Reads a packet.
pub(super) fn read(packet: &[u8], transport: Transport) -> Received {
    let Ok(header) = Header::read(&mut BinDecoder::new(packet)) else {
        return Received::Ignore;
    };
    if header.message_type == MessageType::Response {
        return Received::Ignore;
    }
    if header.op_code != OpCode::Query {
        return reject(&header, ResponseCode::NotImp);
    }
    // Before anything is allocated for what the counts promise.
    let counts = &header.counts;
    if counts.queries != 1
        || counts.answers != 0
        || counts.authorities != 0
        || counts.additionals > 2
        || packet.len() > PACKET
    {
        return reject(&header, ResponseCode::FormErr);
    }
    let Ok(mut message) = Message::from_vec(packet) else {
        return reject(&header, ResponseCode::FormErr);
    };
    let Some(query) = message.queries.pop() else {
        return reject(&header, ResponseCode::FormErr);
    };
    let class = query.query_class();
    let version = message.version();
    let (name, is_host) = spell(query.name());
    let question = Question {
        metadata: header.metadata,
        edns: message.edns.as_ref().map(answering_edns),
        query,
        transport,
        name: name.into(),
        is_host,
    };
    if version != 0 {
        Received::Refuse(question, ResponseCode::BADVERS)
    } else if class != DNSClass::IN {
        Received::Refuse(question, ResponseCode::Refused)
    } else {
        Received::Question(question)
    }
}

/// The reply to a packet where nothing is allowed; `None` for what gets none. Whatever a client sends is
/// read and answered by this code alone, so this is what is fuzzed.
#[must_use]
pub fn refusal_of(packet: &[u8], transport: Transport) -> Option<Vec<u8>> {
    match read(packet, transport) {
        Received::Ignore => None,
        Received::Reject(packet) => Some(packet),
        Received::Refuse(question, code) => question.reply(code, &[], 0),
        Received::Question(question) => question.reply(ResponseCode::NXDomain, &[], 0),
    }
}

fn reject(header: &Header, code: ResponseCode) -> Received {
    let mut metadata = Metadata::response_from_request(&header.metadata);
    metadata.response_code = code;
    let mut message = Message::response(metadata.id, metadata.op_code);
    message.metadata = metadata;
    message.to_vec().map_or(Received::Ignore, Received::Reject)
}

/// The OPT record of a reply: what was asked about DNSSEC, the client's size as the bound, and
/// none of its options.
fn answering_edns(asked: &Edns) -> Edns {
    let mut edns = Edns::new();
    edns.set_max_payload(asked.max_payload());
    edns.set_dnssec_ok(asked.flags().dnssec_ok);
    edns
}

/// The name as policy and records spell it, and whether it is made like a host's name: letters,
/// digits, hyphens and underscores, and no address in disguise.
fn spell(name: &Name) -> (String, bool) {
    let mut text = String::with_capacity(name.len());
    let mut last = &[][..];
    for label in name.iter() {
        let is_plain = |&b: &u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        if !label.iter().all(is_plain) {
            let mut escaped = name.to_lowercase().to_ascii();
            if name.is_fqdn() && escaped.len() > 1 {
                escaped.pop();
            }
            return (escaped, false);
        }
        if !text.is_empty() {
            text.push('.');
        }
        text.extend(label.iter().map(|b| char::from(b.to_ascii_lowercase())));
        last = label;
    }
    if last.iter().all(u8::is_ascii_digit) {
        let is_root = text.is_empty();
        return (if is_root { ".".to_owned() } else { text }, false);
    }
    (text, true)
}

impl Question {
    /// The record type asked for.
    pub(super) fn kind(&self) -> RecordType {
        self.query.query_type()
    }

    /// How it arrived.
    pub(super) fn transport(&self) -> Transport {
        self.transport
    }

    /// The name for an upstream: as little of the client's choosing as possible.
    pub(super) fn upstream_name(&self) -> Name {
        let mut name = self.query.name().to_lowercase();
        name.set_fqdn(true);
        name
    }

    /// `localhost` and what is below it, which never leave a machine (RFC 6761).
    pub(super) fn is_localhost(&self) -> bool {
        let name: &str = &self.name;
        name == "localhost" || name.ends_with(".localhost")
    }

    /// The packet that answers. What does not fit the transport is cut off and marked so.
    pub(super) fn reply(
        &self,
        code: ResponseCode,
        addresses: &[IpAddr],
        ttl: u32,
    ) -> Option<Vec<u8>> {
        let mut message = Message::response(self.metadata.id, self.metadata.op_code);
        message.metadata = Metadata::response_from_request(&self.metadata);
        message.metadata.recursion_available = true;
        message.metadata.response_code = code;
        message.add_query(self.query.clone());
        for &ip in addresses {
            message.add_answer(Record::from_rdata(self.query.name().clone(), ttl, RData::from(ip)));
        }
        if let Some(edns) = &self.edns {
            let mut edns = edns.clone();
            edns.set_max_payload(u16::try_from(PACKET).unwrap_or(MIN_PAYLOAD));
            message.set_edns(edns);
        }
        let limit = self.limit();
        let mut packet = message.to_vec().ok()?;
        while packet.len() > limit {
            let each = RECORD_BYTES[usize::from(self.kind() == RecordType::AAAA)];
            let excess = (packet.len() - limit).div_ceil(each);
            message.metadata.truncation = true;
            if message.answers.is_empty() {
                return None;
            }
            let kept = message.answers.len().saturating_sub(excess);
            message.answers.truncate(kept);
            packet = message.to_vec().ok()?;
        }
        Some(packet)
    }

    fn limit(&self) -> usize {
        let payload = self.edns.as_ref().map_or(MIN_PAYLOAD, Edns::max_payload);
        match self.transport {
            Transport::Tcp => usize::from(u16::MAX),
            Transport::Udp => usize::from(payload.max(MIN_PAYLOAD)).min(PACKET),
        }
    }
}

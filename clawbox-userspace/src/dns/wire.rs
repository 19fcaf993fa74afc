//! Questions out of packets, which hickory reads, and packets out of answers, which are written here.
//! Whatever a client sends, the result is a question, a refusal or silence.

use std::net::IpAddr;
use std::sync::Arc;

use hickory_proto::op::{
    Edns, Header, HeaderCounts, Message, MessageType, Metadata, OpCode, Query, ResponseCode,
};
use hickory_proto::rr::{DNSClass, Name, RecordType};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder, BinEncodable, BinEncoder};

use super::contract::Transport;

/// Bytes of the largest question that is read, and of the largest datagram that is sent.
pub(super) const PACKET: usize = 4096;
/// The smallest reply size a client can ask for.
const MIN_PAYLOAD: u16 = 512;
/// Bytes of what every packet begins with.
const HEADER_BYTES: usize = 12;
/// Bytes of an OPT record without options.
const OPT_BYTES: usize = 11;
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

/// An address of the name that was asked for, which is said by pointing to it.
fn put_address(packet: &mut Vec<u8>, ip: IpAddr, ttl: u32) {
    let kind = if ip.is_ipv4() { RecordType::A } else { RecordType::AAAA };
    packet.extend_from_slice(&(0xc000 | HEADER_BYTES as u16).to_be_bytes());
    packet.extend_from_slice(&u16::from(kind).to_be_bytes());
    packet.extend_from_slice(&u16::from(DNSClass::IN).to_be_bytes());
    packet.extend_from_slice(&ttl.to_be_bytes());
    match ip {
        IpAddr::V4(v4) => {
            packet.extend_from_slice(&[0, 4]);
            packet.extend_from_slice(&v4.octets());
        }
        IpAddr::V6(v6) => {
            packet.extend_from_slice(&[0, 16]);
            packet.extend_from_slice(&v6.octets());
        }
    }
}

impl Question {
    /// The record type asked for.
    pub(super) fn kind(&self) -> RecordType {
        self.query.query_type()
    }

    /// Other kinds of record are forwarded for nobody.
    pub(super) fn is_for_addresses(&self) -> bool {
        matches!(self.kind(), RecordType::A | RecordType::AAAA)
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

    /// The packet that answers. What does not fit the transport is cut off and marked so. Written
    /// here and not as a `Message`: every question has one, and of it only this little differs.
    pub(super) fn reply(
        &self,
        code: ResponseCode,
        addresses: &[IpAddr],
        ttl: u32,
    ) -> Option<Vec<u8>> {
        let name = self.query.name();
        let name_bytes = name.iter().map(|label| label.len() + 1).sum::<usize>() + 1;
        let opt_bytes = if self.edns.is_some() { OPT_BYTES } else { 0 };
        let others = HEADER_BYTES + name_bytes + 4 + opt_bytes;
        let room = self.limit().checked_sub(others)?;
        let each = RECORD_BYTES[usize::from(self.kind() == RecordType::AAAA)];
        let (kept, is_cut) = match addresses.get(..room / each) {
            Some(kept) if kept.len() < addresses.len() => (kept, true),
            _ => (addresses, false),
        };
        let mut metadata = Metadata::response_from_request(&self.metadata);
        metadata.recursion_available = true;
        metadata.response_code = code;
        metadata.truncation = is_cut;
        let counts = HeaderCounts {
            queries: 1,
            answers: u16::try_from(kept.len()).ok()?,
            authorities: 0,
            additionals: u16::from(self.edns.is_some()),
        };
        let mut packet = Vec::with_capacity(others + kept.len() * each);
        Header { metadata, counts }.emit(&mut BinEncoder::new(&mut packet)).ok()?;
        for label in name.iter() {
            packet.push(u8::try_from(label.len()).ok()?);
            packet.extend_from_slice(label);
        }
        packet.push(0);
        packet.extend_from_slice(&u16::from(self.kind()).to_be_bytes());
        packet.extend_from_slice(&u16::from(self.query.query_class()).to_be_bytes());
        for ip in kept {
            put_address(&mut packet, *ip, ttl);
        }
        if let Some(edns) = &self.edns {
            packet.push(0);
            packet.extend_from_slice(&u16::from(RecordType::OPT).to_be_bytes());
            packet.extend_from_slice(&u16::try_from(PACKET).unwrap_or(MIN_PAYLOAD).to_be_bytes());
            packet.extend_from_slice(&[code.high(), edns.version()]);
            packet.extend_from_slice(&u16::from(*edns.flags()).to_be_bytes());
            packet.extend_from_slice(&[0, 0]);
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

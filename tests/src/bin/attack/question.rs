//! Questions to name servers, as packets: any server, any name, any type, UDP and TCP, on sockets
//! that are connected or not, with the address that the answer seems to come from.

use std::net::SocketAddr;
use std::os::fd::AsRawFd;

use anyhow::{Context, bail};
use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RecordType};
use nix::libc;
use serde_json::{Value, json};

use crate::dial::mapped;
use crate::sockets::{self, Result};

/// `TRANSPORT,SERVER,NAME,TYPE`; transports are `udp`, `send` (unconnected) and
/// `tcp`, and the same by IPv6 sockets: `udp-mapped`, `send-mapped`, `tcp-mapped`.
pub fn ask(text: &str) -> anyhow::Result<Result<Value>> {
    let parts: Vec<&str> = text.split(',').collect();
    let [transport, server, name, kind] = parts[..] else {
        bail!("a question is TRANSPORT,SERVER,NAME,TYPE, not `{text}`");
    };
    let mut server: SocketAddr = server.parse().context("not the address of a server")?;
    let packet = packet(name, kind)?;
    let plain = transport.strip_suffix("-mapped");
    if plain.is_some() {
        server = mapped(server);
    }
    Ok(match plain.unwrap_or(transport) {
        "udp" => by_datagram(server, &packet, true),
        "send" => by_datagram(server, &packet, false),
        "tcp" => by_stream(server, &packet),
        other => bail!("`{other}` is no transport"),
    })
}

fn packet(name: &str, kind: &str) -> anyhow::Result<Vec<u8>> {
    let name = Name::from_ascii(format!("{name}.")).context("no valid name")?;
    let kind: RecordType = kind.parse().context("no record type")?;
    let mut message = Message::new(4711, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name, kind));
    Ok(message.to_vec()?)
}

fn by_datagram(server: SocketAddr, packet: &[u8], connected: bool) -> Result<Value> {
    let socket = sockets::socket(sockets::family(server), libc::SOCK_DGRAM, 0)?;
    let (fd, address) = (socket.as_raw_fd(), sockets::encode(server));
    if connected {
        sockets::connect(fd, &address)?;
        sockets::send(fd, packet)?;
    } else {
        sockets::send_to(fd, packet, 0, &address)?;
    }
    let (answer, from) = sockets::receive(fd)?;
    Ok(told(&answer, from, connected.then(|| sockets::peer(fd)).flatten()))
}

fn by_stream(server: SocketAddr, packet: &[u8]) -> Result<Value> {
    let socket = sockets::socket(sockets::family(server), libc::SOCK_STREAM, 0)?;
    let fd = socket.as_raw_fd();
    sockets::connect(fd, &sockets::encode(server))?;
    let mut framed = (packet.len() as u16).to_be_bytes().to_vec();
    framed.extend(packet);
    sockets::send(fd, &framed)?;
    let mut answer = Vec::new();
    while answer.len() < 2 || answer.len() - 2 < length(&answer) {
        let (more, _) = sockets::receive(fd)?;
        if more.is_empty() {
            break;
        }
        answer.extend(more);
    }
    Ok(told(answer.get(2..).unwrap_or_default(), None, sockets::peer(fd)))
}

fn length(framed: &[u8]) -> usize {
    u16::from_be_bytes([framed[0], framed[1]]).into()
}

fn told(answer: &[u8], from: Option<SocketAddr>, peer: Option<SocketAddr>) -> Value {
    let message = Message::from_vec(answer).ok();
    let addresses: Vec<String> = message
        .iter()
        .flat_map(|message| &message.answers)
        .filter_map(|record| record.data.ip_addr())
        .map(|address| address.to_string())
        .collect();
    json!({
        "code": message.as_ref().map(|message| format!("{:?}", message.response_code)),
        "records": message.as_ref().map(|message| message.answers.len()),
        "addresses": addresses,
        "from": from.map(|from| from.to_string()),
        "peer": peer.map(|peer| peer.to_string()),
    })
}

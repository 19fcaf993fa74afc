//! Ways to reach a network address, each by itself: the outcome is the kernel's, and what came
//! back says whether somebody was really reached.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use anyhow::{Context, bail};
use nix::errno::Errno;
use nix::libc;
use serde_json::{Value, json};

use crate::sockets::{self, Result};

const HELLO: &[u8] = b"hello\n";

/// From linux/socket.h; libc leaves it out.
const AF_SMC: i32 = 43;

/// An address with a port: a literal one, or a name's first of a family (`v6/NAME:PORT`).
pub fn address(text: &str) -> anyhow::Result<SocketAddr> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let (want_v6, text) = match text.strip_prefix("v6/") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let found = text.to_socket_addrs().with_context(|| format!("`{text}` does not resolve"))?;
    let mut family = found.filter(|address| address.is_ipv6() == want_v6);
    family.next().with_context(|| format!("`{text}` has no address of the family"))
}

/// `::ffff:a.b.c.d` for `a.b.c.d`.
pub fn mapped(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(v4) => SocketAddr::new(v4.to_ipv6_mapped().into(), address.port()),
        IpAddr::V6(_) => address,
    }
}

fn shown(fd: RawFd) -> Value {
    sockets::peer(fd).map_or(Value::Null, |peer| peer.to_string().into())
}

fn stream(family: i32) -> Result<OwnedFd> {
    sockets::socket(family, libc::SOCK_STREAM, 0)
}

fn datagram(family: i32) -> Result<OwnedFd> {
    sockets::socket(family, libc::SOCK_DGRAM, 0)
}

/// Says hello on a connected socket and tells what came back, and from whom.
fn converse(fd: RawFd) -> Result<Value> {
    let peer = shown(fd);
    sockets::send(fd, HELLO)?;
    let (answer, from) = sockets::receive(fd)?;
    Ok(json!({
        "peer": peer,
        "answer": String::from_utf8_lossy(&answer),
        "from": from.map(|from| from.to_string()),
        "local": sockets::local(fd).map(|local| local.to_string()),
    }))
}

/// Takes the answer to a datagram.
fn answered(fd: RawFd) -> Result<Value> {
    let (answer, from) = sockets::receive(fd)?;
    Ok(json!({
        "answer": String::from_utf8_lossy(&answer),
        "from": from.map(|from| from.to_string()),
    }))
}

/// A way to reach an address, by its name; `None` for a name that is none.
pub fn by(way: &str, to: SocketAddr) -> Option<Result<Value>> {
    Some(match way {
        "connect" => connect(to),
        "tcp" => talk(to, sockets::family(to)),
        "mapped" => talk(mapped(to), libc::AF_INET6),
        "udp" => udp(to, sockets::family(to)),
        "udp-mapped" => udp(mapped(to), libc::AF_INET6),
        "send" => send(to, sockets::family(to), Call::To),
        "sendmsg" => send(to, sockets::family(to), Call::Message),
        "sendmmsg" => send(to, sockets::family(to), Call::Many),
        "send-mapped" => send(mapped(to), libc::AF_INET6, Call::To),
        "send-v4-on-v6" => send(to, libc::AF_INET6, Call::To),
        "connect-v4-on-v6" => udp(to, libc::AF_INET6),
        "fastopen" => fast_open(to),
        "fastopen-connect" => fast_open_connect(to),
        "unspec-send" => unspecified_send(to),
        "unspec-connect" => unspecified_connect(to),
        "flowlabel" => flow_label(to),
        "nonblocking" => non_blocking(to),
        _ => return None,
    })
}

/// Connects and says nothing.
fn connect(to: SocketAddr) -> Result<Value> {
    let socket = stream(sockets::family(to))?;
    sockets::connect(socket.as_raw_fd(), &sockets::encode(to))?;
    Ok(json!({ "peer": shown(socket.as_raw_fd()) }))
}

fn talk(to: SocketAddr, family: i32) -> Result<Value> {
    let socket = stream(family)?;
    sockets::connect(socket.as_raw_fd(), &sockets::encode(to))?;
    converse(socket.as_raw_fd())
}

fn udp(to: SocketAddr, family: i32) -> Result<Value> {
    let socket = datagram(family)?;
    sockets::connect(socket.as_raw_fd(), &sockets::encode(to))?;
    converse(socket.as_raw_fd())
}

enum Call {
    To,
    Message,
    Many,
}

fn send(to: SocketAddr, family: i32, call: Call) -> Result<Value> {
    let (socket, address) = (datagram(family)?, sockets::encode(to));
    let fd = socket.as_raw_fd();
    match call {
        Call::To => sockets::send_to(fd, HELLO, 0, &address)?,
        Call::Message => sockets::send_message(fd, HELLO, &address, false)?,
        Call::Many => sockets::send_message(fd, HELLO, &address, true)?,
    }
    answered(fd)
}

/// A datagram to one address from a socket that is connected to another.
pub fn connect_then_send(first: SocketAddr, second: SocketAddr) -> Result<Value> {
    let socket = datagram(sockets::family(first))?;
    sockets::connect(socket.as_raw_fd(), &sockets::encode(first))?;
    sockets::send_to(socket.as_raw_fd(), HELLO, 0, &sockets::encode(second))?;
    Ok(Value::Null)
}

/// TCP data in the first packet, without `connect`.
fn fast_open(to: SocketAddr) -> Result<Value> {
    let socket = stream(sockets::family(to))?;
    let address = sockets::encode(to);
    sockets::send_to(socket.as_raw_fd(), HELLO, libc::MSG_FASTOPEN, &address)?;
    answered(socket.as_raw_fd())
}

/// A `connect` that sends nothing before the first write.
fn fast_open_connect(to: SocketAddr) -> Result<Value> {
    let socket = stream(sockets::family(to))?;
    let fd = socket.as_raw_fd();
    sockets::set_option(fd, libc::IPPROTO_TCP, libc::TCP_FASTOPEN_CONNECT, &1_i32)?;
    sockets::connect(fd, &sockets::encode(to))?;
    converse(fd)
}

/// `AF_UNSPEC` in the address of a datagram: IPv4 takes it for `AF_INET`.
fn unspecified_send(to: SocketAddr) -> Result<Value> {
    let socket = datagram(sockets::family(to))?;
    let address = sockets::encode_as(libc::AF_UNSPEC, to);
    sockets::send_to(socket.as_raw_fd(), HELLO, 0, &address)?;
    answered(socket.as_raw_fd())
}

/// `AF_UNSPEC` in `connect` dissolves a connection; it must not make one.
fn unspecified_connect(to: SocketAddr) -> Result<Value> {
    let socket = datagram(sockets::family(to))?;
    sockets::connect(socket.as_raw_fd(), &sockets::encode_as(libc::AF_UNSPEC, to))?;
    converse(socket.as_raw_fd())
}

fn flow_label(to: SocketAddr) -> Result<Value> {
    let SocketAddr::V6(mut v6) = to else {
        return Err(Errno::EAFNOSUPPORT);
    };
    v6.set_flowinfo(0x12345);
    talk(v6.into(), libc::AF_INET6)
}

fn non_blocking(to: SocketAddr) -> Result<Value> {
    let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK;
    let socket = sockets::socket(sockets::family(to), kind, 0)?;
    sockets::connect(socket.as_raw_fd(), &sockets::encode(to)).map(|()| Value::Null)
}

/// Every call that reaches somebody, on a socket that came from outside.
pub fn on_socket(fd: RawFd, to: SocketAddr) -> Result<Value> {
    let address = sockets::encode(to);
    let name = |outcome: Result<()>| match outcome {
        Ok(()) => "ok".to_owned(),
        Err(errno) => format!("{errno:?}"),
    };
    let sent = name(sockets::send_to(fd, HELLO, 0, &address));
    let connected = name(sockets::connect(fd, &address));
    Ok(json!({ "send": sent, "connect": connected }))
}

/// One socket, as many calls of `connect` as asked for; the outcomes by errno.
pub fn flood(count: u64, to: SocketAddr) -> anyhow::Result<Value> {
    let socket = datagram(sockets::family(to)).context("no socket to flood with")?;
    let address = sockets::encode(to);
    let (mut denied, mut other) = (0_u64, 0_u64);
    for _ in 0..count {
        match sockets::connect(socket.as_raw_fd(), &address) {
            Err(Errno::EPERM) => denied += 1,
            _ => other += 1,
        }
    }
    Ok(json!({ "EPERM": denied, "other": other }))
}

/// A socket by the name of its kind, which may not exist in this kernel at all.
pub fn socket_kind(name: &str) -> anyhow::Result<Result<Value>> {
    let (family, kind, protocol) = match name {
        "raw" => (libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_RAW),
        "raw-udp" => (libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_UDP),
        "raw6" => (libc::AF_INET6, libc::SOCK_RAW, libc::IPPROTO_ICMPV6),
        "ping" => (libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_ICMP),
        "ping6" => (libc::AF_INET6, libc::SOCK_DGRAM, libc::IPPROTO_ICMPV6),
        "sctp" => (libc::AF_INET, libc::SOCK_SEQPACKET, libc::IPPROTO_SCTP),
        "sctp-stream" => (libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_SCTP),
        "mptcp" => (libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_MPTCP),
        "udplite" => (libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_UDPLITE),
        "dccp" => (libc::AF_INET, libc::SOCK_DCCP, libc::IPPROTO_DCCP),
        "smc-by-protocol" => (libc::AF_INET, libc::SOCK_STREAM, 256),
        "smc" => (AF_SMC, libc::SOCK_STREAM, 0),
        "packet" => (libc::AF_PACKET, libc::SOCK_RAW, 0x0300),
        "packet-datagram" => (libc::AF_PACKET, libc::SOCK_DGRAM, 0x0300),
        "vsock" => (libc::AF_VSOCK, libc::SOCK_STREAM, 0),
        "alg" => (libc::AF_ALG, libc::SOCK_SEQPACKET, 0),
        "xdp" => (libc::AF_XDP, libc::SOCK_RAW, 0),
        "bluetooth" => (libc::AF_BLUETOOTH, libc::SOCK_RAW, 1),
        "can" => (libc::AF_CAN, libc::SOCK_RAW, 1),
        "tipc" => (libc::AF_TIPC, libc::SOCK_RDM, 0),
        "rds" => (libc::AF_RDS, libc::SOCK_SEQPACKET, 0),
        "netlink-audit" => (libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_AUDIT),
        "netlink-netfilter" => (libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_NETFILTER),
        "netlink-diag" => (libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_INET_DIAG),
        "netlink-generic" => (libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_GENERIC),
        "netlink-route" => (libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE),
        "unix" => (libc::AF_UNIX, libc::SOCK_STREAM, 0),
        other => bail!("`{other}` is no kind of socket"),
    };
    Ok(sockets::socket(family, kind, protocol).map(|_| Value::Null))
}

/// A listener on an IPv6 address that takes nothing of IPv4.
pub fn listener_of_v6_alone(at: SocketAddr) -> Result<(OwnedFd, Value)> {
    let socket = stream(libc::AF_INET6)?;
    sockets::set_option(socket.as_raw_fd(), libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, &1_i32)?;
    sockets::bind(socket.as_raw_fd(), at)?;
    sockets::listen(socket.as_raw_fd())?;
    Ok((socket, Value::Null))
}

/// A listener: bound where asked, or nowhere, which makes the kernel choose a port.
pub fn listener(at: Option<SocketAddr>, is_stream: bool) -> Result<(OwnedFd, Value)> {
    let family = at.map_or(libc::AF_INET, sockets::family);
    let socket = if is_stream { stream(family)? } else { datagram(family)? };
    let fd = socket.as_raw_fd();
    if let Some(at) = at {
        if at.is_ipv6() && at.ip() != IpAddr::from(Ipv6Addr::UNSPECIFIED) {
            sockets::set_option(fd, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, &1_i32)?;
        }
        sockets::bind(fd, at)?;
    }
    if is_stream {
        sockets::listen(fd)?;
    }
    let local = sockets::local(fd).map(|local| local.to_string());
    Ok((socket, json!({ "local": local })))
}

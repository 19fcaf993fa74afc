//! The operations whose price is asked for, made as a program makes them: by the standard
//! library, one thread, on loopback. Only the operation itself is inside the clock.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::time::{ClockId, clock_gettime};

use crate::bounded;

/// Datagrams between two looks at the sink: fewer than its buffer holds, so that every send is
/// delivered and none is the cheaper one that is dropped.
const IN_FLIGHT: u32 = 100;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// socket, connect, accept, close of both ends.
    TcpConnect,
    /// connect of a TCP socket to where nobody listens and no rule leads.
    TcpRefused,
    /// connect of a UDP socket.
    UdpConnect,
    /// connects of a UDP socket to [`MIXED`] addresses of loopback in turn, and one in a hundred elsewhere.
    UdpConnectMixed,
    /// sendto on an unconnected UDP socket.
    UdpSend,
    /// send on a connected UDP socket, which no hook of clawbox sees.
    UdpSendConnected,
    /// As [`Operation::TcpConnect`], by way of a CONNECT proxy made with hyper.
    ThroughHyper,
    /// As [`Operation::TcpConnect`], by way of tinyproxy.
    ThroughTinyproxy,
    /// A part of 128 KiB on one connection that is there already.
    OneStream,
    /// A part of 128 KiB on each of eight.
    EightStreams,
    /// As [`Operation::OneStream`], by way of the proxy made with hyper.
    OneThroughHyper,
    /// As [`Operation::EightStreams`], by way of it.
    EightThroughHyper,
    /// As [`Operation::OneStream`], by way of tinyproxy.
    OneThroughTinyproxy,
    /// As [`Operation::EightStreams`], by way of it.
    EightThroughTinyproxy,
    /// A question for a name whose answer may be remembered, one of [`IN_QUESTION`].
    AskRemembered,
    /// One for a name whose answer may not.
    AskForwarded,
    /// Forks until it may not.
    Fork,
    /// Takes much memory and gives it back.
    Touch,
    /// Spins on more processors than there are.
    Spin,
}

/// Addresses of [`Operation::UdpConnectMixed`]: 127.0.1.0 and so on, at [`MIXED_PORT`].
pub const MIXED: u8 = 64;
pub const MIXED_PORT: u16 = 443;

/// Of [`Operation::TcpRefused`].
const NOBODY_S_PORT: u16 = 9;

/// The name server that is asked: `ADDRESS`.
pub const NAME_SERVER: &str = "CLAWBOX_BENCH_NAME_SERVER";
/// Names by what their answers allow.
pub const REMEMBERED: &str = "remembered.bench.test";
pub const FORWARDED: &str = "forwarded.bench.test";

/// Questions that are under way at one time.
const IN_QUESTION: u32 = 16;

/// Where the proxies are, for who is told: `ADDRESS` of each.
pub const HYPER: &str = "CLAWBOX_BENCH_HYPER";
pub const TINYPROXY: &str = "CLAWBOX_BENCH_TINYPROXY";

/// Bytes of a part.
const PART: usize = 128 * 1024;

impl Operation {
    /// Those that need nobody but the two ends.
    pub const PLAIN: &'static [Self] =
        &[Self::TcpConnect, Self::UdpConnect, Self::UdpSend, Self::UdpSendConnected];

    /// Every operation.
    pub const ALL: &'static [Self] = &[
        Self::TcpConnect,
        Self::TcpRefused,
        Self::UdpConnect,
        Self::UdpConnectMixed,
        Self::UdpSend,
        Self::UdpSendConnected,
        Self::ThroughHyper,
        Self::ThroughTinyproxy,
        Self::OneStream,
        Self::EightStreams,
        Self::OneThroughHyper,
        Self::EightThroughHyper,
        Self::OneThroughTinyproxy,
        Self::EightThroughTinyproxy,
        Self::AskRemembered,
        Self::AskForwarded,
        Self::Fork,
        Self::Touch,
        Self::Spin,
    ];

    /// The name in requests and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::TcpConnect => "tcp-connect",
            Self::TcpRefused => "tcp-refused",
            Self::UdpConnect => "udp-connect",
            Self::UdpConnectMixed => "udp-connect-mixed",
            Self::UdpSend => "udp-send",
            Self::UdpSendConnected => "udp-send-connected",
            Self::ThroughHyper => "through-hyper",
            Self::ThroughTinyproxy => "through-tinyproxy",
            Self::OneStream => "one-stream",
            Self::EightStreams => "eight-streams",
            Self::OneThroughHyper => "one-through-hyper",
            Self::EightThroughHyper => "eight-through-hyper",
            Self::OneThroughTinyproxy => "one-through-tinyproxy",
            Self::EightThroughTinyproxy => "eight-through-tinyproxy",
            Self::AskRemembered => "ask-remembered",
            Self::AskForwarded => "ask-forwarded",
            Self::Fork => "fork",
            Self::Touch => "touch",
            Self::Spin => "spin",
        }
    }

    /// What it is, for people.
    pub fn title(self) -> &'static str {
        match self {
            Self::TcpConnect => "TCP connect+accept+close",
            Self::TcpRefused => "TCP connect that is refused",
            Self::UdpConnect => "UDP connect",
            Self::UdpConnectMixed => "UDP connects, to many places in turn",
            Self::UdpSend => "UDP send, unconnected",
            Self::UdpSendConnected => "UDP send, connected",
            Self::ThroughHyper => "TCP connect through a hyper CONNECT proxy",
            Self::ThroughTinyproxy => "TCP connect through tinyproxy",
            Self::OneStream => "128 KiB on 1 established stream",
            Self::EightStreams => "128 KiB on each of 8 established streams",
            Self::OneThroughHyper => "128 KiB on 1 stream through a hyper CONNECT proxy",
            Self::EightThroughHyper => "128 KiB on each of 8 streams through it",
            Self::OneThroughTinyproxy => "128 KiB on 1 stream through tinyproxy",
            Self::EightThroughTinyproxy => "128 KiB on each of 8 streams through it",
            Self::AskRemembered => "a question that may be remembered, 16 under way",
            Self::AskForwarded => "a question that is forwarded, 16 under way",
            Self::Fork => "forks until it may not",
            Self::Touch => "writes to nearly all the memory it may have",
            Self::Spin => "spins for more processors than it may have",
        }
    }
}

impl FromStr for Operation {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let found = Self::ALL.iter().copied().find(|operation| operation.name() == text);
        found.with_context(|| format!("`{text}` is no operation"))
    }
}

/// What a number of operations took.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// By the wall clock.
    pub wall: Duration,
    /// On a processor: without the time in which somebody else had it.
    pub processor: Duration,
    /// How long each one waited for its answer, where several are under way at one time.
    pub waits: Vec<Duration>,
}

/// The two ends that stay outside a sandbox.
#[derive(Debug)]
pub struct Ends {
    /// Where connections arrive.
    pub listener: TcpListener,
    /// Where datagrams arrive.
    pub sink: UdpSocket,
}

impl Ends {
    /// Makes both on one port of 127.0.0.1, so that one endpoint of a policy names them.
    pub fn bind() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        // Accepted sockets inherit it: closing one sends RST, so that no connection stays behind
        // in TIME_WAIT and the ports never run out.
        let abort = nix::libc::linger { l_onoff: 1, l_linger: 0 };
        nix::sys::socket::setsockopt(&listener, nix::sys::socket::sockopt::Linger, &abort)?;
        let sink = UdpSocket::bind(listener.local_addr()?)?;
        sink.set_nonblocking(true)?;
        Ok(Self { listener, sink })
    }

    /// The address of both.
    pub fn address(&self) -> Result<SocketAddr> {
        Ok(self.listener.local_addr()?)
    }
}

/// Something that performs operations.
#[derive(Debug)]
pub struct Performer {
    ends: Ends,
    address: SocketAddr,
    unconnected: UdpSocket,
    connected: UdpSocket,
    /// Connected now here, now there.
    mixed: UdpSocket,
}

impl Performer {
    /// Opens the sockets.
    pub fn open(ends: Ends) -> Result<Self> {
        let address = ends.address()?;
        let unconnected = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        let connected = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        connected.connect(address)?;
        let mixed = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        Ok(Self { ends, address, unconnected, connected, mixed })
    }

    /// Performs an operation `count` times.
    pub fn perform(&self, operation: Operation, count: u32) -> Result<Taken> {
        let to = self.address;
        match operation {
            Operation::TcpConnect => timed(count, || {
                let client = TcpStream::connect(to)?;
                let (server, _) = self.ends.listener.accept()?;
                drop(server);
                drop(client);
                Ok(())
            }),
            Operation::TcpRefused => timed(count, || {
                use ErrorKind::{ConnectionRefused, PermissionDenied};
                match TcpStream::connect((Ipv4Addr::new(127, 0, 2, 1), NOBODY_S_PORT)) {
                    Err(error) if matches!(error.kind(), ConnectionRefused | PermissionDenied) => {
                        Ok(())
                    }
                    Err(error) => Err(error),
                    Ok(_) => Err(std::io::Error::other("somebody listens")),
                }
            }),
            Operation::UdpConnect => timed(count, || self.connected.connect(to)),
            Operation::UdpConnectMixed => {
                let mut number = 0_u32;
                timed(count, || {
                    number = number.wrapping_add(1);
                    let last = if number.is_multiple_of(100) { 200 } else { number as u8 % MIXED };
                    let address = Ipv4Addr::new(127, 0, 1, last);
                    match self.mixed.connect((address, MIXED_PORT)) {
                        // What no rule allows.
                        Err(error) if error.kind() == ErrorKind::PermissionDenied => Ok(()),
                        other => other,
                    }
                })
            }
            Operation::UdpSend => {
                self.delivered(count, || self.unconnected.send_to(&[1], to).map(drop))
            }
            Operation::UdpSendConnected => {
                self.delivered(count, || self.connected.send(&[1]).map(drop))
            }
            Operation::ThroughHyper => self.through(HYPER, count),
            Operation::ThroughTinyproxy => self.through(TINYPROXY, count),
            Operation::OneStream => self.streamed(1, None, count),
            Operation::EightStreams => self.streamed(8, None, count),
            Operation::OneThroughHyper => self.streamed(1, Some(HYPER), count),
            Operation::EightThroughHyper => self.streamed(8, Some(HYPER), count),
            Operation::OneThroughTinyproxy => self.streamed(1, Some(TINYPROXY), count),
            Operation::EightThroughTinyproxy => self.streamed(8, Some(TINYPROXY), count),
            Operation::AskRemembered => asked(REMEMBERED, count),
            Operation::AskForwarded => asked(FORWARDED, count),
            Operation::Fork => timed(count, bounded::forks),
            Operation::Touch => timed(count, bounded::touches),
            Operation::Spin => timed(count, bounded::spins),
        }
    }

    /// Connects by way of a proxy, until the other end is there.
    fn through(&self, proxy: &str, count: u32) -> Result<Taken> {
        let (proxy, request) = self.asking(proxy)?;
        timed(count, || self.tunnel(proxy, &request).map(drop))
    }

    /// Where a proxy is, and what it is asked for.
    fn asking(&self, proxy: &str) -> Result<(SocketAddr, String)> {
        let proxy = std::env::var(proxy).context("no proxy was named")?.parse()?;
        let to = self.address;
        Ok((proxy, format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n\r\n")))
    }

    /// Both ends of a connection by way of a proxy.
    fn tunnel(&self, proxy: SocketAddr, request: &str) -> std::io::Result<(TcpStream, TcpStream)> {
        let mut client = TcpStream::connect(proxy)?;
        client.write_all(request.as_bytes())?;
        let (server, _) = self.ends.listener.accept()?;
        let mut answer = [0; 512];
        let length = client.read(&mut answer)?;
        if !answer[..length].starts_with(b"HTTP/1.") || !answer[9..].starts_with(b"200") {
            return Err(std::io::Error::other("the proxy refused"));
        }
        Ok((client, server))
    }

    /// Moves parts over connections that are there when the clock starts.
    fn streamed(&self, streams: usize, proxy: Option<&str>, count: u32) -> Result<Taken> {
        let mut pairs = Vec::new();
        for _ in 0..streams {
            pairs.push(match proxy {
                Some(proxy) => {
                    let (proxy, request) = self.asking(proxy)?;
                    self.tunnel(proxy, &request)?
                }
                None => (TcpStream::connect(self.address)?, self.ends.listener.accept()?.0),
            });
        }
        let size = PART * count as usize;
        timed(1, || {
            std::thread::scope(|scope| {
                let readers: Vec<_> = pairs
                    .iter()
                    .map(|(client, server)| {
                        scope.spawn(move || {
                            let (mut client, part) = (client, [7; PART]);
                            (0..count).try_for_each(|_| client.write_all(&part))
                        });
                        scope.spawn(move || {
                            let (mut server, mut part, mut left) = (server, [0; PART], size);
                            while left > 0 {
                                left -= server.read(&mut part)?;
                            }
                            Ok(())
                        })
                    })
                    .collect();
                readers.into_iter().try_for_each(|reader| {
                    reader.join().unwrap_or_else(|_| Err(std::io::Error::other("a reader")))
                })
            })
        })
    }

    /// Sends, and takes out of the sink what has arrived while the clock stands still.
    fn delivered(&self, count: u32, send: impl Fn() -> std::io::Result<()>) -> Result<Taken> {
        let mut taken = Taken::default();
        let mut left = count;
        while left > 0 {
            let now = left.min(IN_FLIGHT);
            let some = timed(now, &send)?;
            taken.wall += some.wall;
            taken.processor += some.processor;
            let arrived = self.drain()?;
            if arrived != now {
                bail!("{arrived} of {now} datagrams arrived");
            }
            left -= now;
        }
        Ok(taken)
    }

    fn drain(&self) -> Result<u32> {
        let mut arrived = 0;
        loop {
            match self.ends.sink.recv(&mut [0; 8]) {
                Ok(_) => arrived += 1,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(arrived),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Asks, so many questions under way, and wants an address each time.
fn asked(name: &str, count: u32) -> Result<Taken> {
    let server: SocketAddr = std::env::var(NAME_SERVER).context("no name server")?.parse()?;
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut question = vec![0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        question.push(u8::try_from(label.len())?);
        question.extend(label.as_bytes());
    }
    question.extend([0, 0, 1, 0, 1]);
    // A question's number is its place here, so all of a batch have different ones.
    let mut sent = vec![Instant::now(); usize::from(u16::try_from(count)?)];
    let mut waits = Vec::with_capacity(sent.len());
    let mut answer = [0; 512];
    let taken = timed(1, || {
        let mut next = 0;
        let mut left = count;
        while left > 0 {
            while next < count && next - (count - left) < IN_QUESTION {
                question[..2].copy_from_slice(&(next as u16).to_be_bytes());
                sent[next as usize] = Instant::now();
                socket.send(&question)?;
                next += 1;
            }
            let length = socket.recv(&mut answer)?;
            let number = usize::from(u16::from_be_bytes([answer[0], answer[1]]));
            if length < 12 || answer[7] == 0 || number >= next as usize {
                return Err(std::io::Error::other("no address was answered"));
            }
            waits.push(sent[number].elapsed());
            left -= 1;
        }
        Ok(())
    })?;
    Ok(Taken { waits, ..taken })
}

fn timed(count: u32, mut operation: impl FnMut() -> std::io::Result<()>) -> Result<Taken> {
    let processor = clock(ClockId::CLOCK_THREAD_CPUTIME_ID)?;
    let wall = clock(ClockId::CLOCK_MONOTONIC)?;
    for _ in 0..count {
        operation()?;
    }
    Ok(Taken {
        wall: clock(ClockId::CLOCK_MONOTONIC)?.saturating_sub(wall),
        processor: clock(ClockId::CLOCK_THREAD_CPUTIME_ID)?.saturating_sub(processor),
        waits: Vec::new(),
    })
}

fn clock(clock: ClockId) -> Result<Duration> {
    Ok(clock_gettime(clock)?.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_can_be_performed_and_is_found_by_its_name() {
        let performer = Performer::open(Ends::bind().unwrap()).unwrap();
        let proxied = [
            Operation::ThroughHyper,
            Operation::ThroughTinyproxy,
            Operation::OneThroughHyper,
            Operation::EightThroughHyper,
            Operation::OneThroughTinyproxy,
            Operation::EightThroughTinyproxy,
            Operation::AskRemembered,
            Operation::AskForwarded,
        ];
        for &operation in Operation::ALL.iter().filter(|it| !proxied.contains(it)) {
            assert_eq!(operation.name().parse::<Operation>().unwrap(), operation);
            let heavy = [Operation::Fork, Operation::Touch, Operation::Spin];
            let count = if heavy.contains(&operation) { 2 } else { IN_FLIGHT * 2 + 1 };
            let taken = performer.perform(operation, count).unwrap();
            assert!(taken.wall > Duration::ZERO, "{operation:?}");
        }
    }
}

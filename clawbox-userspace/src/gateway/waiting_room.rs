//! Where connections wait for an answer: a listener that hears nothing, so that whoever connects goes on
//! trying. One that is approved is met by a connection from the same address (both sides open at once,
//! RFC 9293, 3.5), one that is not is ended.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd as _, AsRawFd};
use std::time::Duration;

use clawbox_common::address::{HELD_PORT, redirect_address};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, connect, recv, send,
    setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use socket2::{Domain, SockFilter, Socket, Type};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use super::network::Network;
use super::verifier::{CONNECT, join};
use crate::kernel::deaf::deafen;

/// How long who waits may take to be met: it answers at once, if it is still there.
const MEET: Duration = Duration::from_secs(10);

/// Seconds that the kernel may take to answer, which it does before it returns.
const ANSWER: i64 = 1;

/// The socket that hears nothing.
pub struct WaitingRoom {
    /// Kept so that the kernel answers nobody's first packet with a refusal.
    _deaf: Socket,
    meeting: Meeting,
}

/// Meets who waits in a room, or sends them away.
#[derive(Clone, Debug)]
pub struct Meeting {
    port: u16,
    network: Network,
}

impl WaitingRoom {
    /// Opens one on 127.0.0.1 of a network.
    ///
    /// # Errors
    /// The loopback interface is down, or no port is free.
    pub fn open(network: Network) -> io::Result<Self> {
        let deaf = network.within(|| {
            let deaf = socket_at(0)?;
            if deafen(deaf.as_fd()).is_err() {
                // `BPF_RET | BPF_K`, 0 bytes: every packet is dropped before TCP looks at it.
                deaf.attach_filter(&[SockFilter::new(0x06, 0, 0, 0)])?;
            }
            deaf.listen(1)?;
            Ok(deaf)
        })?;
        let port = deaf.local_addr()?.as_socket().map_or(0, |at| at.port());
        Ok(Self { _deaf: deaf, meeting: Meeting { port, network } })
    }

    /// Its port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.meeting.port
    }

    /// Who answers those that wait in it.
    #[must_use]
    pub fn meeting(&self) -> &Meeting {
        &self.meeting
    }
}

/// A socket at the address of a waiting room.
fn socket_at(port: u16) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)).into())?;
    Ok(socket)
}

/// Where a waiting connection comes from.
fn source_of(number: u32) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::from_bits(redirect_address(number)), HELD_PORT))
}

impl Meeting {
    /// Takes a connection on: connects to the first of these addresses that answers, meets who waits, and
    /// moves bytes until both sides are done.
    ///
    /// # Errors
    /// Nobody answers, or who waited has gone.
    pub async fn take_on(&self, number: u32, to: &[IpAddr], to_port: u16) -> io::Result<()> {
        let mut last = io::Error::from(io::ErrorKind::HostUnreachable);
        for address in to {
            let connecting = self.network.connect(SocketAddr::new(*address, to_port));
            match timeout(CONNECT, connecting).await {
                Ok(Ok(server)) => {
                    let met = self.meet(number).await;
                    // Should it still be there, it does not go on trying.
                    let client = met.inspect_err(|_| drop(self.turn_away(number)))?;
                    return join(client, server, std::future::pending()).await;
                }
                Ok(Err(error)) => last = error,
                Err(late) => last = late.into(),
            }
        }
        self.turn_away(number)?;
        Err(last)
    }

    async fn meet(&self, number: u32) -> io::Result<TcpStream> {
        let socket = self.network.within(|| socket_at(self.port))?;
        let socket = TcpSocket::from_std_stream(socket.into());
        timeout(MEET, socket.connect(source_of(number))).await?
    }

    /// Ends a connection that waits: its `connect` fails at once. On a kernel that does not end other
    /// processes' connections (`CONFIG_INET_DIAG_DESTROY`) it is met and reset, so that what follows fails.
    ///
    /// # Errors
    /// Nobody waits any more.
    pub fn turn_away(&self, number: u32) -> io::Result<()> {
        self.network
            .within(|| end(self.port, number).or_else(|_| meet_and_reset(self.port, number)))
    }
}

fn meet_and_reset(port: u16, number: u32) -> io::Result<()> {
    let socket = socket_at(port)?;
    socket.set_linger(Some(Duration::ZERO))?;
    // On loopback both sides are done when this returns, or nobody was there.
    match socket.connect(&source_of(number).into()) {
        Err(error) if error.raw_os_error() != Some(nix::libc::EINPROGRESS) => return Err(error),
        _ => {}
    }
    socket.take_error()?.map_or(Ok(()), Err)
}

fn end(port: u16, number: u32) -> io::Result<()> {
    let diag = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkSockDiag,
    )?;
    setsockopt(&diag, sockopt::ReceiveTimeout, &TimeVal::seconds(ANSWER))?;
    connect(diag.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
    send(diag.as_raw_fd(), &destroy(source_of(number), port), MsgFlags::empty())?;
    let mut answer = [0; 512];
    let length = recv(diag.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    // struct nlmsghdr is 16 bytes, and an acknowledgement begins with an error number.
    let error = answer.get(16..20.min(length)).and_then(|bytes| bytes.try_into().ok());
    match error.map(i32::from_ne_bytes) {
        Some(0) => Ok(()),
        Some(error) => Err(io::Error::from_raw_os_error(-error)),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// `SOCK_DESTROY`, linux/sock_diag.h, with a `struct inet_diag_req_v2`, linux/inet_diag.h, of the
/// connection from `source` to a waiting room.
fn destroy(source: SocketAddr, port: u16) -> Vec<u8> {
    const SOCK_DESTROY: u16 = 21;
    // NLM_F_REQUEST | NLM_F_ACK
    const FLAGS: u16 = 1 | 4;
    const TCP: u8 = 6;
    let IpAddr::V4(address) = source.ip() else { return Vec::new() };
    let mut message = Vec::with_capacity(72);
    message.extend(72_u32.to_ne_bytes());
    message.extend(SOCK_DESTROY.to_ne_bytes());
    message.extend(FLAGS.to_ne_bytes());
    // Sequence and port of the asker.
    message.extend([0; 8]);
    // Family, protocol, no extensions, padding; every state.
    message.extend([nix::libc::AF_INET as u8, TCP, 0, 0]);
    message.extend(u32::MAX.to_ne_bytes());
    message.extend(source.port().to_be_bytes());
    message.extend(port.to_be_bytes());
    message.extend(address.octets());
    message.extend([0; 12]);
    message.extend(Ipv4Addr::LOCALHOST.octets());
    message.extend([0; 12]);
    // No interface; INET_DIAG_NOCOOKIE.
    message.extend([0; 4]);
    message.extend([0xff; 8]);
    message
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    /// Another one in each process: the address of one that has ended is not free at once.
    fn number(which: u32) -> u32 {
        std::process::id() << 2 & 0x003f_ffff | which
    }

    /// Somebody who waits, as the kernel programs make it.
    fn waiting(room: &WaitingRoom, number: u32) -> std::thread::JoinHandle<io::Result<Socket>> {
        let client = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        client.bind(&source_of(number).into()).unwrap();
        let at = SocketAddr::from((Ipv4Addr::LOCALHOST, room.port()));
        std::thread::spawn(move || client.connect(&at.into()).map(|()| client))
    }

    /// Until the kernel has the connection that waits.
    fn until_there(number: u32) {
        let hex = format!("{:08X}:{HELD_PORT:04X}", redirect_address(number).swap_bytes());
        while !std::fs::read_to_string("/proc/net/tcp").unwrap().contains(&hex) {
            std::thread::yield_now();
        }
    }

    #[tokio::test]
    async fn who_waits_is_met_and_speaks_with_the_other_side() {
        let room = WaitingRoom::open(Network::default()).unwrap();
        let far = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let client = waiting(&room, number(1));
        until_there(number(1));
        assert!(!client.is_finished());
        let to = far.local_addr().unwrap();
        let on = tokio::spawn({
            let meeting = room.meeting().clone();
            async move { meeting.take_on(number(1), &[to.ip()], to.port()).await }
        });
        let (server, client) = tokio::task::spawn_blocking(move || {
            let (server, _) = far.accept().unwrap();
            (server, client.join().unwrap().unwrap())
        })
        .await
        .unwrap();
        client.send(b"x").unwrap();
        let mut got = [0; 1];
        tokio::task::spawn_blocking(move || {
            use std::io::Read;
            (&server).read_exact(&mut got).unwrap();
            assert_eq!(&got, b"x");
        })
        .await
        .unwrap();
        drop(client);
        let _ = on.await.unwrap();
    }

    #[test]
    fn where_the_kernel_does_not_end_connections_who_is_turned_away_is_reset() {
        let room = WaitingRoom::open(Network::default()).unwrap();
        let client = waiting(&room, number(3));
        until_there(number(3));
        meet_and_reset(room.port(), number(3)).unwrap();
        let ended = client.join().unwrap().and_then(|client| {
            let mut nothing = [std::mem::MaybeUninit::uninit(); 1];
            client.recv(&mut nothing)
        });
        assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        assert!(meet_and_reset(room.port(), number(3)).is_err(), "nobody waits any more");
    }

    #[test]
    fn who_is_turned_away_fails_at_once() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let room = WaitingRoom::open(Network::default()).unwrap();
        let client = waiting(&room, number(2));
        until_there(number(2));
        room.meeting().turn_away(number(2)).unwrap();
        let error = client.join().unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
        assert!(room.meeting().turn_away(number(2)).is_err(), "nobody waits any more");
    }
}

//! Every packet that arrives at the end of a wire: the proof that nothing got there, also for
//! protocols that no server of a test speaks.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::libc;
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};

/// Discard: where marks are sent.
const MARK_PORT: u16 = 9;
const MARK: &[u8; 8] = b"cb-mark:";

/// Emulated machines are slow.
const PATIENCE: Duration = Duration::from_secs(60);

/// One packet of the network layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Source.
    pub from: IpAddr,
    /// Destination.
    pub to: IpAddr,
    /// Protocol number: 6 is TCP, 17 UDP.
    pub protocol: u8,
    /// Destination port; zero where the protocol has none.
    pub port: u16,
    /// What follows the transport's header for UDP, everything after the network header else.
    pub payload: Vec<u8>,
}

#[derive(Default)]
struct Seen {
    packets: Mutex<(Vec<Packet>, u64)>,
    changed: Condvar,
}

/// Reads a namespace's incoming packets until it is dropped.
pub struct Capture {
    seen: Arc<Seen>,
    marks: AtomicU64,
    _stop: io::PipeWriter,
}

impl Capture {
    /// Begins, in the namespace of the calling thread.
    pub(crate) fn start() -> Self {
        let packets = socket(
            AddressFamily::Packet,
            SockType::Datagram,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::EthAll,
        )
        .expect("this kernel has packet sockets");
        let _ = nix::sys::socket::setsockopt(
            &packets,
            nix::sys::socket::sockopt::RcvBufForce,
            &(8 << 20),
        );
        let (stopped, stop) = io::pipe().expect("a pipe");
        let seen = Arc::<Seen>::default();
        let to = Arc::clone(&seen);
        thread::spawn(move || read_until(&packets, &stopped, &to));
        Self { seen, marks: AtomicU64::new(0), _stop: stop }
    }

    /// What has arrived so far.
    pub(crate) fn packets(&self) -> Vec<Packet> {
        self.seen.packets.lock().unwrap_or_else(PoisonError::into_inner).0.clone()
    }

    /// The number of the next mark.
    pub(crate) fn expect_mark(&self) -> u64 {
        self.marks.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Sends a mark, in the namespace of the calling thread, and waits until it arrives: what was
    /// sent before it has arrived too.
    pub(crate) fn wait_for(&self, mark: u64, to: Ipv4Addr) {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a socket");
        let mut message = MARK.to_vec();
        message.extend(mark.to_be_bytes());
        let deadline = Instant::now() + PATIENCE;
        let mut packets = self.seen.packets.lock().unwrap_or_else(PoisonError::into_inner);
        while packets.1 < mark {
            // Again and again: the first may be lost to address resolution.
            let _ = socket.send_to(&message, (to, MARK_PORT));
            assert!(Instant::now() < deadline, "nothing arrives at the far side");
            packets = self
                .seen
                .changed
                .wait_timeout(packets, Duration::from_millis(200))
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }
}

fn read_until(packets: &OwnedFd, stopped: &io::PipeReader, seen: &Seen) {
    let mut buffer = vec![0_u8; 1 << 16];
    while crate::services::readable(packets, stopped) {
        let Some((kind, length)) = receive(packets, &mut buffer) else {
            continue;
        };
        // What this side sends is seen as well.
        if kind == libc::PACKET_OUTGOING {
            continue;
        }
        let Some(packet) = parse(&buffer[..length]) else {
            continue;
        };
        let mut known = seen.packets.lock().unwrap_or_else(PoisonError::into_inner);
        match packet.payload.strip_prefix(MARK).and_then(|number| number.try_into().ok()) {
            Some(number) if packet.port == MARK_PORT => known.1 = u64::from_be_bytes(number),
            _ => known.0.push(packet),
        }
        seen.changed.notify_all();
    }
}

fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> Option<(u8, usize)> {
    // SAFETY: all-zero bytes are a valid sockaddr_ll.
    let mut from: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    let mut size = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: buffer and address are writable for the lengths given, and live through the call.
    let length = unsafe {
        libc::recvfrom(
            socket.as_raw_fd(),
            buffer.as_mut_ptr().cast(),
            buffer.len(),
            libc::MSG_DONTWAIT,
            (&raw mut from).cast(),
            &raw mut size,
        )
    };
    Some((from.sll_pkttype, usize::try_from(length).ok()?))
}

/// IPv4 and IPv6; `None` for the rest and for what the kernel says to its neighbours.
fn parse(packet: &[u8]) -> Option<Packet> {
    let (from, to, protocol, rest): (IpAddr, IpAddr, u8, &[u8]) = match packet.first()? >> 4 {
        4 => {
            let source: [u8; 4] = packet.get(12..16)?.try_into().ok()?;
            let target: [u8; 4] = packet.get(16..20)?.try_into().ok()?;
            let header = usize::from(packet[0] & 0xf) * 4;
            let (source, target) = (Ipv4Addr::from(source), Ipv4Addr::from(target));
            (source.into(), target.into(), packet[9], packet.get(header..)?)
        }
        6 => {
            let source: [u8; 16] = packet.get(8..24)?.try_into().ok()?;
            let target: [u8; 16] = packet.get(24..40)?.try_into().ok()?;
            let (source, target) = (Ipv6Addr::from(source), Ipv6Addr::from(target));
            (source.into(), target.into(), packet[6], packet.get(40..)?)
        }
        _ => return None,
    };
    let (has_ports, header) = (protocol == 6 || protocol == 17, if protocol == 17 { 8 } else { 0 });
    // Neighbour discovery, and reports of multicast listeners behind a hop-by-hop header.
    let is_kernels_own =
        (protocol == 58 && matches!(rest.first()?, 130..=137 | 143)) || protocol == 0;
    (!is_kernels_own).then(|| Packet {
        from,
        to,
        protocol,
        port: if has_ports { u16::from_be_bytes([rest[2], rest[3]]) } else { 0 },
        payload: rest.get(header..).unwrap_or_default().to_vec(),
    })
}

//! Sockets: their family and port, where a Unix socket was bound, and where a socket was made.

use aya_ebpf::helpers::generated::{
    bpf_get_socket_cookie, bpf_skc_to_unix_sock, bpf_sock_from_file,
};
use clawbox_common::address::Address;

use super::*;

/// `AF_INET`, `AF_INET6`.
const INTERNET: [u16; 2] = [2, 10];

/// Whether an internet socket has no local port yet (`skc_num`).
#[inline(always)]
pub fn is_unbound(socket: Kernel) -> bool {
    let sock = socket.pointer::<SOCKET_SOCK>();
    if sock.is_null() {
        return false;
    }
    let (family, port): (u16, u16) = (sock.field::<SOCK_FAMILY, _>(), sock.field::<SOCK_PORT, _>());
    (family == INTERNET[0] || family == INTERNET[1]) && port == 0
}

/// `S_IFSOCK` among `S_IFMT`, uapi/linux/stat.h.
const SOCKET: u16 = 0o140_000;
const KINDS: u16 = 0o170_000;

/// The socket that a file is; null for any other, which is found out before a helper is called: each read
/// of each file of the host comes by here.
#[inline(always)]
pub fn socket_of(file: Kernel) -> Kernel {
    let inode = file.pointer::<FILE_INODE>();
    let mode: u16 = inode.field::<INODE_MODE, _>();
    if mode & KINDS != SOCKET {
        return Kernel(core::ptr::null());
    }
    // SAFETY: the helper takes a file.
    Kernel(unsafe { bpf_sock_from_file(file.for_helpers().cast()) }.cast_const().cast())
}

/// Whether pages can be sent without a message (`proto_ops.sendpage`).
#[inline(always)]
pub fn sends_pages() -> bool {
    offset::<PROTO_SEND_PAGE>() != 0
}

/// `IPPROTO_UDP`, uapi/linux/in.h.
const UDP: u16 = 17;
/// `MSG_MORE`, linux/socket.h.
const MORE: u32 = 0x8000;

/// Whether what is sent is to wait for more of the same datagram.
#[inline(always)]
pub fn waits_for_more(sock: Kernel, message: Kernel) -> bool {
    let flags: u32 = message.field::<MESSAGE_FLAGS, _>();
    flags & MORE != 0 && !sock.is_null() && is_udp(sock)
}

#[inline(always)]
pub fn is_udp(sock: Kernel) -> bool {
    let protocol: u16 = sock.field::<SOCK_PROTOCOL, _>();
    is_internet(sock) && protocol == UDP
}

#[inline(always)]
pub fn is_internet(sock: Kernel) -> bool {
    let family: u16 = sock.field::<SOCK_FAMILY, _>();
    family == INTERNET[0] || family == INTERNET[1]
}

/// The `struct sock` of a socket; null where it is being closed.
#[inline(always)]
pub fn sock(socket: Kernel) -> Kernel {
    socket.pointer::<SOCKET_SOCK>()
}

/// The other end of an internet socket.
pub struct Peer {
    pub address: Address,
    /// Host byte order.
    pub port: u16,
    /// `IPPROTO_` number.
    pub protocol: u32,
}

/// Whom an internet socket is connected to (`skc_dport`); `None` for one that is not, and any other.
#[inline(always)]
pub fn peer(sock: Kernel) -> Option<Peer> {
    let family: u16 = sock.field::<SOCK_FAMILY, _>();
    if family != INTERNET[0] && family != INTERNET[1] {
        return None;
    }
    let port: u16 = sock.field::<SOCK_PEER_PORT, _>();
    if port == 0 {
        return None;
    }
    let address = if family == INTERNET[0] {
        Address::v4(sock.field::<SOCK_PEER_V4, _>())
    } else {
        Address { words: Untyped(sock.address()).read::<SOCK_PEER_V6, _>() }
    };
    let protocol: u16 = sock.field::<SOCK_PROTOCOL, _>();
    Some(Peer { address, port: u16::from_be(port), protocol: u32::from(protocol) })
}

/// The own end of an internet socket that is bound (`skc_rcv_saddr`, `skc_num`); `None` for any other.
#[inline(always)]
pub fn own_end(sock: Kernel) -> Option<Peer> {
    let family: u16 = sock.field::<SOCK_FAMILY, _>();
    let port: u16 = sock.field::<SOCK_PORT, _>();
    if family != INTERNET[0] && family != INTERNET[1] || port == 0 {
        return None;
    }
    let address = if family == INTERNET[0] {
        Address::v4(sock.field::<SOCK_LOCAL_V4, _>())
    } else {
        Address { words: Untyped(sock.address()).read::<SOCK_LOCAL_V6, _>() }
    };
    let protocol: u16 = sock.field::<SOCK_PROTOCOL, _>();
    Some(Peer { address, port, protocol: u32::from(protocol) })
}

/// `IPPROTO_ICMP`, `IPPROTO_ICMPV6`.
const PING: [u16; 2] = [1, 58];

/// Whether it is an internet socket for echo requests.
#[inline(always)]
pub fn is_ping(sock: Kernel) -> bool {
    if !is_internet(sock) {
        return false;
    }
    let protocol: u16 = sock.field::<SOCK_PROTOCOL, _>();
    protocol == PING[0] || protocol == PING[1]
}

/// Whom a send on a socket for echo requests goes to: whom the message names, else whom the socket is
/// connected to (`ping_v4_sendmsg`, `ping_v6_sendmsg`). The kernel has copied the name before the hook is
/// asked, and takes none of another family than the socket's.
#[inline(always)]
pub fn pinged(sock: Kernel, message: Kernel) -> Address {
    let family: u16 = sock.field::<SOCK_FAMILY, _>();
    let name = Untyped(message.address()).read::<MESSAGE_NAME, u64>();
    let is_v4 = family == INTERNET[0];
    if name == 0 {
        return if is_v4 {
            Address::v4(sock.field::<SOCK_PEER_V4, _>())
        } else {
            Address { words: Untyped(sock.address()).read::<SOCK_PEER_V6, _>() }
        };
    }
    // `sockaddr_in`: family, port, address; `sockaddr_in6`: family, port, flow, address.
    let mut address = [0_u32; 4];
    let (offset, length) = if is_v4 { (4, 4) } else { (8, 16) };
    // SAFETY: `address` has room for both lengths; the helper checks the source.
    unsafe {
        bpf_probe_read_kernel(
            (&raw mut address).cast(),
            length,
            name.wrapping_add(offset) as *const core::ffi::c_void,
        );
    }
    if is_v4 { Address::v4(address[0]) } else { Address { words: address } }
}

/// Control messages of a send that are looked at; none has more.
const CONTROLS: u32 = 8;
/// `IP_RETOPTS`, uapi/linux/in.h: options of the packet, a source route among them.
const RETURNED_OPTIONS: (u32, u32) = (0, 7);
/// `IPV6_RTHDR` and `IPV6_2292RTHDR`, uapi/linux/in6.h.
const ROUTING_HEADERS: [(u32, u32); 2] = [(41, 57), (41, 5)];

/// Whether a message's control part names hosts that the packet is to go by, or is longer than can be
/// looked at. The kernel has copied it before the hook is asked (`____sys_sendmsg`, net/socket.c).
#[inline(always)]
pub fn names_a_route(message: Kernel) -> bool {
    let length: u64 = message.field::<MESSAGE_CONTROL_LENGTH, _>();
    if length == 0 {
        return false;
    }
    let start = Untyped(message.address()).read::<MESSAGE_CONTROL, u64>();
    let mut at = 0_u64;
    for _ in 0..CONTROLS {
        // As `CMSG_OK`: a header has its length, level and type in 16 bytes.
        if at + 16 > length {
            return false;
        }
        let mut header = [0_u32; 4];
        // SAFETY: `header` is 16 bytes; the helper checks the source.
        unsafe {
            bpf_probe_read_kernel(
                (&raw mut header).cast(),
                16,
                start.wrapping_add(at) as *const core::ffi::c_void,
            );
        }
        let [size, _, level, kind] = header;
        let is_route = |(of, what)| level == of && kind == what;
        if is_route(RETURNED_OPTIONS)
            || is_route(ROUTING_HEADERS[0])
            || is_route(ROUTING_HEADERS[1])
        {
            return true;
        }
        if size < 16 {
            // The kernel takes no message of it (`CMSG_OK`).
            return false;
        }
        // `CMSG_ALIGN`
        at += (u64::from(size) + 7) & !7;
    }
    at + 16 <= length
}

/// A socket's number that no other one ever has.
#[inline(always)]
pub fn cookie(sock: Kernel) -> u64 {
    // SAFETY: the helper takes a socket of any family.
    unsafe { bpf_get_socket_cookie(sock.for_helpers()) }
}

/// Where a Unix socket was bound; `None` for one without a path.
#[inline(always)]
pub fn bound_path(sock: Kernel) -> Option<Place> {
    // SAFETY: the helper takes a socket of any family, and gives null for one of another.
    let unix =
        Kernel(unsafe { bpf_skc_to_unix_sock(sock.0.cast_mut().cast()) }.cast_const().cast());
    if unix.is_null() {
        return None;
    }
    let unix = Untyped(unix.address());
    let dentry = Untyped(unix.read::<UNIX_DENTRY, _>());
    if dentry.0 == 0 {
        return None;
    }
    Some(Place { dentry, mount: unix.read::<UNIX_MNT, _>() })
}

/// The cgroup that a socket was made in: its address.
#[inline(always)]
pub fn birthplace(sock: Kernel) -> u64 {
    Untyped(sock.address()).read::<SOCK_CGROUP, _>()
}

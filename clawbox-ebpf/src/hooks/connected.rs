//! Sockets that are connected: whoever uses one is judged by their own rules as if they connected it
//! now. So it does not matter who has, how it came to them, or what the policy was then.

use aya_ebpf::{macros::lsm, programs::LsmContext};
use clawbox_common::{
    decide::{self, Decision, Destination},
    event::Kind,
    rule::ICMP,
    subject::Standing,
    verdict::Reason,
};
use core::ptr::{self, null};

use super::{address::answer_again, verdict::eperm};
use crate::{
    contact::{self, Contact},
    kernel_read::{self, Kernel},
    maps::SOCKETS,
    subject,
};

/// `MAY_WRITE`, linux/fs.h.
const MAY_WRITE: u32 = 2;
/// `IPPROTO_UDP`, uapi/linux/in.h, and `UDP_CORK`, uapi/linux/udp.h.
const UDP_CORK: (u32, u32) = (17, 1);

/// `(socket, message, size)`: every send but what [`socket_splice`] sees.
#[lsm(hook = "socket_sendmsg")]
pub fn socket_sendmsg(ctx: LsmContext) -> i32 {
    // SAFETY: the arguments are a socket and a message.
    let (socket, message) = unsafe { (Kernel::new(ctx.arg(0)), Kernel::new(ctx.arg(1))) };
    if kernel_read::names_a_route(message) && refuses(socket, Reason::SourceRoute) {
        return eperm(false);
    }
    let sock = kernel_read::sock(socket);
    if kernel_read::waits_for_more(sock, message) && refuses(socket, Reason::DatagramInParts) {
        return eperm(false);
    }
    if !sock.is_null() && kernel_read::is_ping(sock) {
        return pings(sock, message);
    }
    used(socket, Kind::SendConnected)
}

/// An echo request, which no cgroup hook sees: each is judged by where it goes.
#[inline(always)]
fn pings(sock: Kernel, message: Kernel) -> i32 {
    let standing = subject::standing();
    if matches!(standing, Standing::Outside) {
        return 0;
    }
    let address = kernel_read::pinged(sock, message);
    let to = Destination { address, port: 0, transport: ICMP, zero: 0, receiver: 0 };
    let subject = match standing {
        Standing::Subject(subject) => ptr::from_ref(subject),
        _ => null(),
    };
    let decision = answer_again(subject, &to, null());
    let contact = Contact {
        asked: address,
        real: address,
        transport: ICMP,
        cookie: kernel_read::cookie(sock),
        ..Contact::default()
    };
    contact::network(Kind::Send, &standing, &decision, &contact);
    eperm(decision.goes_on())
}

/// `(socket, level, option)`: a datagram that has been begun goes where its first part was sent, which
/// the kernel looks at no more when others are added: a program would send where another one may. So
/// none is begun, by a flag of a send or by this option.
#[lsm(hook = "socket_setsockopt")]
pub fn socket_setsockopt(ctx: LsmContext) -> i32 {
    let (level, option): (u32, u32) = (ctx.arg(1), ctx.arg(2));
    if (level, option) != UDP_CORK {
        return 0;
    }
    // SAFETY: the argument is a socket.
    let socket = unsafe { Kernel::new(ctx.arg(0)) };
    let sock = kernel_read::sock(socket);
    let is_datagrams = !sock.is_null() && kernel_read::is_udp(sock);
    eperm(!is_datagrams || !refuses(socket, Reason::DatagramInParts))
}

/// Whether it is a sandbox's internet socket; then it is told.
#[inline(always)]
fn refuses(socket: Kernel, reason: Reason) -> bool {
    let standing = subject::standing();
    let sock = kernel_read::sock(socket);
    if matches!(standing, Standing::Outside) || sock.is_null() || !kernel_read::is_internet(sock) {
        return false;
    }
    let decision = Decision::refused(reason);
    let contact = Contact { cookie: kernel_read::cookie(sock), ..Contact::default() };
    contact::network(Kind::SendConnected, &standing, &decision, &contact);
    true
}

/// `(socket, message, size, flags)`
#[lsm(hook = "socket_recvmsg")]
pub fn socket_recvmsg(ctx: LsmContext) -> i32 {
    // SAFETY: the argument is a socket.
    used(unsafe { Kernel::new(ctx.arg(0)) }, Kind::Receive)
}

/// `(file, mask)`: `splice` takes from a stream past `socket_recvmsg` (`tcp_splice_read`), and until 6.5
/// it and `sendfile` send pages past `socket_sendmsg`.
#[lsm(hook = "file_permission")]
pub fn socket_splice(ctx: LsmContext) -> i32 {
    let mask: u32 = ctx.arg(1);
    let sends = mask & MAY_WRITE != 0;
    if sends && !kernel_read::sends_pages() {
        return 0;
    }
    // SAFETY: the argument is a file.
    let socket = kernel_read::socket_of(unsafe { Kernel::new(ctx.arg(0)) });
    if socket.is_null() {
        return 0;
    }
    used(socket, if sends { Kind::SendConnected } else { Kind::Receive })
}

#[inline(always)]
fn used(socket: Kernel, kind: Kind) -> i32 {
    let standing = subject::standing();
    if matches!(standing, Standing::Outside) {
        return 0;
    }
    let sock = kernel_read::sock(socket);
    if sock.is_null() {
        return 0;
    }
    // What has no peer goes where each send says, which the cgroup hooks judge.
    let Some(peer) = kernel_read::peer(sock) else { return 0 };
    let Some(transport) = decide::transport_of(peer.protocol) else {
        let decision = decide::socket(&crate::maps::KernelLookup, &standing, 0, 0);
        contact::network(kind, &standing, &decision, &Contact::default());
        return eperm(decision.goes_on());
    };
    let port = if transport == ICMP { 0 } else { peer.port };
    let mut to = Destination { address: peer.address, port, transport, zero: 0, receiver: 0 };
    // SAFETY: a typed socket.
    let kept = unsafe { SOCKETS.of(sock.for_helpers(), false) };
    let mut told = null();
    if !kept.is_null() {
        // SAFETY: not null, and a whole value of the map.
        let kept = unsafe { &*kept };
        let is_taken = kept.bound_by != 0 && kept.bound_as != kernel_read::cookie(sock);
        if let Standing::Subject(subject) = standing
            && is_taken
            && kept.bound_by == subject.sandbox
        {
            return 0;
        }
        if kept.real == peer.address && kept.real_port == peer.port {
            to = Destination { address: kept.asked, port: kept.asked_port, ..to };
            to.receiver = kept.receiver;
            told = ptr::from_ref(kept);
        }
    }
    let subject = match standing {
        Standing::Subject(subject) => ptr::from_ref(subject),
        _ => null(),
    };
    // SAFETY: null, or whole values that outlive the call.
    let (kept, who) = unsafe { (told.as_ref(), subject.as_ref()) };
    let decision = decide::in_use(answer_again(subject, &to, told), kept, who);
    // An allow was told when it was connected, and so was what only is recorded.
    if !decision.goes_on() {
        let contact = Contact {
            asked: to.address,
            real: peer.address,
            port: to.port,
            transport,
            cookie: kernel_read::cookie(sock),
            ..Contact::default()
        };
        contact::network(kind, &standing, &decision, &contact);
    }
    eperm(decision.goes_on())
}

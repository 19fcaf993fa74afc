//! connect, unconnected sends and bind: the destination is judged and, where it stands for a name
//! or for the name service, replaced.

use aya_ebpf::{
    bindings::bpf_sock_addr, helpers::generated::bpf_get_socket_cookie, macros::cgroup_sock_addr,
    programs::SockAddrContext,
};
use clawbox_common::{
    address::{Address, DNS_PORT},
    attach::NOT_ATTACHED,
    decide::{self, Connected, Decision, Destination, Route},
    event::Kind,
    rule::{ICMP, SocketState},
    subject::{Standing, Subject},
    verdict::{Reason, Verdict},
};
use core::{
    ffi::c_void,
    mem::MaybeUninit,
    ptr::{self, null, read_volatile, write_volatile},
};

use super::{
    receiver,
    route::{self, mark_asker},
};
use crate::{
    attached::is_pending,
    contact::{self, Contact},
    emit, flow, kernel_read,
    maps::{KernelLookup, SOCKETS},
    subject,
};

/// `AF_INET` and port 0 as the first word of a `sockaddr_in`; bpfel is little-endian.
pub const AF_INET: u32 = 2;
pub const AF_INET6: u32 = 10;

/// Which member of the context holds the address; the other may not be touched.
#[derive(Clone, Copy)]
pub enum Family {
    V4,
    V6,
}

#[inline(always)]
pub fn address_of(at: *mut bpf_sock_addr, v4: bool) -> Address {
    // SAFETY: the context pointer of this program. Volatile and a word at a time: LLVM would
    // merge two words into a u64 load, which the verifier refuses on this context.
    unsafe {
        if v4 {
            Address::v4(read_volatile(&raw const (*at).user_ip4))
        } else {
            Address {
                words: [
                    read_volatile(&raw const (*at).user_ip6[0]),
                    read_volatile(&raw const (*at).user_ip6[1]),
                    read_volatile(&raw const (*at).user_ip6[2]),
                    read_volatile(&raw const (*at).user_ip6[3]),
                ],
            }
        }
    }
}

#[inline(always)]
pub fn port_of(at: *mut bpf_sock_addr) -> u16 {
    // SAFETY: the context pointer of this program.
    u16::from_be(unsafe { read_volatile(&raw const (*at).user_port) } as u16)
}

#[inline(always)]
pub fn set(at: *mut bpf_sock_addr, v4: bool, address: Address, port: u16) {
    // SAFETY: the context pointer of this program; see `address_of` for the volatile words.
    unsafe {
        if v4 {
            write_volatile(&raw mut (*at).user_ip4, address.words[3]);
        } else {
            write_volatile(&raw mut (*at).user_ip6[0], address.words[0]);
            write_volatile(&raw mut (*at).user_ip6[1], address.words[1]);
            write_volatile(&raw mut (*at).user_ip6[2], address.words[2]);
            write_volatile(&raw mut (*at).user_ip6[3], address.words[3]);
        }
        write_volatile(&raw mut (*at).user_port, u32::from(port.to_be()));
    }
}

/// The socket, for [`SOCKETS`].
#[inline(always)]
pub fn socket(ctx: &SockAddrContext) -> *mut c_void {
    // SAFETY: the context pointer of this program.
    unsafe { (*ctx.sock_addr).__bindgen_anon_1.sk }.cast()
}

#[inline(always)]
fn destination(at: *mut bpf_sock_addr, family: Family) -> Option<Destination> {
    // SAFETY: the context pointer of this program.
    let protocol = unsafe { read_volatile(&raw const (*at).protocol) };
    let transport = decide::transport_of(protocol)?;
    Some(Destination {
        address: address_of(at, matches!(family, Family::V4)),
        // What a process writes there is no port of an echo request.
        port: if transport == ICMP { 0 } else { port_of(at) },
        transport,
        zero: 0,
        receiver: 0,
    })
}

/// An IPv6 datagram socket that is connected to an IPv4-mapped address sends by way of IPv4, and
/// each send comes here with the address that connect put into the socket: the real one. Then it
/// is judged again as what the process asked connect for. True where that is so.
#[inline(always)]
fn as_connected(ctx: &SockAddrContext, to: &mut Destination) -> bool {
    // SAFETY: the context pointer of this program.
    if unsafe { read_volatile(&raw const (*ctx.sock_addr).family) } != AF_INET6 {
        return false;
    }
    // SAFETY: the context's socket; the storage lives as long as it.
    let kept = unsafe { SOCKETS.of(socket(ctx), false) };
    if kept.is_null() {
        return false;
    }
    // SAFETY: not null, and a whole value of the map.
    let kept = unsafe { *kept };
    let is_same = kept.real == to.address && kept.real_port == to.port;
    if is_same {
        to.address = kept.asked;
        to.port = kept.asked_port;
    }
    is_same
}

/// A connected socket's send comes here without an address, and so with port 0, when it carries
/// control messages of the IP layer (`udp_sendmsg`; an address with port 0 fails before this).
/// Its peer was judged at connect. One that goes to the resolver keeps the address that names its
/// asker, which `IP_PKTINFO` would otherwise replace.
#[inline(always)]
fn send_on_connected(ctx: &SockAddrContext, family: Family, kind: Kind) {
    // SAFETY: the context's socket; the storage lives as long as it.
    let kept = unsafe { SOCKETS.of(socket(ctx), false) };
    if kept.is_null() || !matches!(family, Family::V4) {
        return;
    }
    // SAFETY: not null, and a whole value of the map.
    if unsafe { (*kept).asked_port } == DNS_PORT {
        mark_asker(ctx.sock_addr, matches!(kind, Kind::Send));
    }
}

/// A [`Decision`]'s memory; all zeros are a denial.
type DecisionWords = [u64; size_of::<Decision>() / 8];

const _: () = assert!(size_of::<DecisionWords>() == size_of::<Decision>());
const _: () =
    assert!(Verdict::Deny as u8 == 0 && Reason::Unset as u8 == 0 && Route::Direct as u32 == 0);

/// A denial, for [`judge`] to write over. Word by word: an array of zeros would be a call of memset, which
/// writes bytes.
#[inline(always)]
fn denial(words: &mut MaybeUninit<DecisionWords>) -> *mut DecisionWords {
    let words = words.as_mut_ptr();
    for word in 0..size_of::<DecisionWords>() / 8 {
        // SAFETY: within the array.
        unsafe { words.cast::<u64>().add(word).write_volatile(0) };
    }
    words
}

/// The decision. Whose a listener on loopback is costs a search, and is asked only where no rule opens it.
/// One memory for both answers: two do not fit 6.1's stack beside what [`judge`] takes.
#[inline(always)]
fn judged(ctx: &SockAddrContext, standing: &Standing<'_>, to: &mut Destination) -> Decision {
    let subject = of(standing);
    let mut words = MaybeUninit::uninit();
    let words = denial(&mut words);
    judge(subject, &raw const *to, words);
    // SAFETY: `judge` has written a whole decision, or nothing, and zeros are one too.
    let reason = unsafe { (*words.cast::<Decision>()).reason };
    if matches!(reason, Reason::Loopback) {
        to.receiver = emit::unknown(u64::from(receiver::owner(ctx, to))) as u32;
        if to.receiver != 0 {
            judge(subject, &raw const *to, words);
        }
    }
    // SAFETY: as above.
    unsafe { words.cast::<Decision>().read() }
}

/// What [`judge`] writes, or [`judge_connected`] if what is kept with the socket is about this.
#[inline(always)]
pub fn answer_again(
    subject: *const Subject,
    to: &Destination,
    kept: *const SocketState,
) -> Decision {
    let mut words = MaybeUninit::uninit();
    let words = denial(&mut words);
    if kept.is_null() {
        judge(subject, &raw const *to, words);
    } else {
        judge_connected(subject, &raw const *to, kept, words);
    }
    // SAFETY: as in `judged`.
    unsafe { words.cast::<Decision>().read() }
}

/// Writes the decision about a destination. With C's linkage, as [`crate::search::meet`]: inside the
/// hooks it was verified for every way into it, and what follows for every decision: 60,000
/// instructions a hook. Without a subject it is nobody's.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn judge(
    subject: *const Subject,
    to: *const Destination,
    into: *mut DecisionWords,
) -> u32 {
    if to.is_null() || into.is_null() {
        return 0;
    }
    // SAFETY: not null, and the verifier sees to it that each caller has a whole value here.
    let (to, subject) = unsafe { (&*to, subject.as_ref()) };
    let standing = subject.map_or(Standing::Unidentified, Standing::Subject);
    // SAFETY: memory of a decision's size and alignment.
    unsafe { into.cast::<Decision>().write(decide::egress(&KernelLookup, &standing, to)) };
    1
}

/// As [`judge`], for a socket that is connected and has been told where to.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn judge_connected(
    subject: *const Subject,
    to: *const Destination,
    kept: *const SocketState,
    into: *mut DecisionWords,
) -> u32 {
    if to.is_null() || kept.is_null() || into.is_null() {
        return 0;
    }
    // SAFETY: as in `judge`.
    let (to, subject, kept) = unsafe { (&*to, subject.as_ref(), &*kept) };
    let standing = subject.map_or(Standing::Unidentified, Standing::Subject);
    let lookup = Connected { lookup: &KernelLookup, names: &kept.names };
    // SAFETY: memory of a decision's size and alignment.
    unsafe { into.cast::<Decision>().write(decide::egress(&lookup, &standing, to)) };
    1
}

/// What becomes of who is in no sandbox, as far as anybody has said.
#[inline(always)]
fn outside(kind: Kind) -> i32 {
    match subject::left_out_in() {
        NOT_ATTACHED => return 1,
        sandbox if is_pending(sandbox as u32) => {}
        // A record needs more of the stack than 6.1 has left here: the trail says that one is missing.
        sandbox => emit::lost(sandbox as u32, kind),
    }
    0
}

/// Judges a destination; 1 lets the operation go on, 0 makes it fail with EPERM.
#[inline(always)]
fn egress<const SEND: bool>(ctx: &SockAddrContext, family: Family) -> i32 {
    let kind = if SEND { Kind::Send } else { Kind::Connect };
    let standing = subject::standing();
    if matches!(standing, Standing::Outside) {
        return outside(kind);
    }
    let at = ctx.sock_addr;
    let Some(mut to) = destination(at, family) else {
        let decision = decide::socket(&KernelLookup, &standing, 0, 0);
        contact::network(kind, &standing, &decision, &Contact::default());
        return i32::from(decision.goes_on());
    };
    if matches!(kind, Kind::Send) && to.port == 0 && matches!(standing, Standing::Subject(_)) {
        send_on_connected(ctx, family, kind);
        return 1;
    }
    let is_own_address = match family {
        Family::V4 if matches!(kind, Kind::Send) => as_connected(ctx, &mut to),
        _ => false,
    };
    let mut decision = judged(ctx, &standing, &mut to);
    let subject = of(&standing);
    let reason = match family {
        Family::V4 => route::go::<true, SEND>(at, is_own_address, subject, &to, &mut decision),
        Family::V6 => route::go::<false, SEND>(at, is_own_address, subject, &to, &mut decision),
    };
    if reason != 0 {
        decision.audit_only = 0;
        decision.verdict = Verdict::Deny;
        decision.reason =
            if reason == route::BOUND { Reason::BoundSocket } else { Reason::NoMemory };
    }
    #[cfg(feature = "log")]
    aya_log_ebpf::debug!(
        ctx,
        "kind {} port {} verdict {} reason {}",
        kind as u8,
        to.port,
        decision.verdict as u8,
        decision.reason as u8
    );
    if flow::is_counted(subject, kind as u32, &to, &decision) == 0 {
        told(at, kind as u32, subject, &to, &decision);
    }
    // Of what was in memory the verifier does not know that it is 0 or 1.
    kernel_read::unseen(u64::from(decision.goes_on())) as i32 & 1
}

/// The subject, for functions that take no more than a word; null is nobody.
#[inline(always)]
fn of(standing: &Standing<'_>) -> *const Subject {
    match standing {
        Standing::Subject(subject) => ptr::from_ref(*subject),
        _ => null(),
    }
}

/// Reports a decision. A function of its own, with a part of the stack of its own.
#[inline(never)]
fn told(
    at: *mut bpf_sock_addr,
    kind: u32,
    subject: *const Subject,
    to: &Destination,
    decision: &Decision,
) -> u32 {
    // SAFETY: null, or a subject that the caller has.
    let standing = unsafe { subject.as_ref() }.map_or(Standing::Unidentified, Standing::Subject);
    let kind = if kind == Kind::Send as u32 { Kind::Send } else { Kind::Connect };
    let contact = Contact {
        asked: to.address,
        // A denial says too which address the name stood for.
        real: if matches!(decision.route, Route::Direct) { to.address } else { decision.target },
        port: to.port,
        transport: to.transport,
        route: decision.route as u8,
        protocol: decision.number,
        // SAFETY: the helper takes the context.
        cookie: unsafe { bpf_get_socket_cookie(at.cast()) },
        family: 0,
    };
    contact::network(kind, &standing, decision, &contact);
    0
}

#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    egress::<false>(&ctx, Family::V4)
}

#[cgroup_sock_addr(connect6)]
pub fn connect6(ctx: SockAddrContext) -> i32 {
    egress::<false>(&ctx, Family::V6)
}

#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(ctx: SockAddrContext) -> i32 {
    egress::<true>(&ctx, Family::V4)
}

#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6(ctx: SockAddrContext) -> i32 {
    egress::<true>(&ctx, Family::V6)
}

/// Judges a local address.
#[inline(always)]
fn bind(ctx: &SockAddrContext, family: Family) -> i32 {
    let standing = subject::standing();
    if matches!(standing, Standing::Outside) {
        // systemd's own forks bind the sockets of units in the units' cgroups.
        return 1;
    }
    let at = ctx.sock_addr;
    let Some(local) = destination(at, family) else {
        let decision = decide::socket(&KernelLookup, &standing, 0, 0);
        contact::network(Kind::Bind, &standing, &decision, &Contact::default());
        return i32::from(decision.goes_on());
    };
    let decision = decide::bind(&KernelLookup, &standing, &local);
    let contact = Contact {
        asked: local.address,
        real: local.address,
        port: local.port,
        transport: local.transport,
        // SAFETY: the helper takes the context.
        cookie: unsafe { bpf_get_socket_cookie(at.cast()) },
        ..Contact::default()
    };
    contact::network(Kind::Bind, &standing, &decision, &contact);
    i32::from(decision.goes_on()) & 1
}

#[cgroup_sock_addr(bind4)]
pub fn bind4(ctx: SockAddrContext) -> i32 {
    bind(&ctx, Family::V4)
}

#[cgroup_sock_addr(bind6)]
pub fn bind6(ctx: SockAddrContext) -> i32 {
    bind(&ctx, Family::V6)
}

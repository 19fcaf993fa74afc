//! The decision: (policy, subject, object) to a verdict, over a [`Lookup`]. The kernel programs
//! implement `Lookup` on BPF maps; `policy explain` and the tests on ordered maps.
//!
//! Everything is `inline(always)` and free of recursion and of unbounded loops, because each hook
//! that calls it is verified with the call's whole body in it.

mod admission;
pub mod execution;
pub mod file;
pub mod unix;

pub use admission::{Admission, Placed, RuleQuery, admission};

use crate::address::{Address, DNS_PORT, PING_PROBE_PORT, Range, is_given};
use crate::file::{FileKey, FileRule, NameKey};
use crate::rule::{
    ADDRESS_KEY_BITS, ASK_UNKNOWN, AddressKey, AddressUse, Granted, HostIds, ICMP, PAUSED, PING,
    PING_PROBE, RuleKey, RuleValue, SandboxState, SocketState, SyntheticKey, SyntheticValue, TCP,
    UDP,
};
use crate::subject::{Standing, Subject};
use crate::verdict::{Reason, Verdict};

/// The tables a decision reads. A lookup that finds nothing is `None`, and `None` never allows.
pub trait Lookup {
    /// State of a sandbox.
    fn sandbox(&self, sandbox: u32) -> Option<&SandboxState>;
    /// Rule for a host pattern, port and transport.
    fn rule(&self, key: &RuleKey) -> Option<&RuleValue>;
    /// What stands behind a synthetic address.
    fn synthetic(&self, key: &SyntheticKey) -> Option<&SyntheticValue>;
    /// Longest prefix that holds the address; `bits` is how much of the key to compare.
    fn address(&self, key: &AddressKey, bits: u32) -> Option<&HostIds>;

    /// The address that one stands for, and its range. The kernel programs have it done by a function of its
    /// own, as [`Lookup::admits`]: what follows is then verified once, not once for each range there is.
    #[inline(always)]
    fn placed_at(&self, address: &Address) -> Placed {
        Placed::of(address)
    }

    /// What the rules for a host's patterns say of a subject.
    #[inline(always)]
    fn admits(&self, subject: &Subject, hosts: &HostIds, query: RuleQuery) -> Admission {
        admission(self, subject, hosts, query)
    }
}

/// The tables that a search for a file's rule reads; `None` as in [`Lookup`].
pub trait Files {
    /// The rule that stands at an object.
    fn file(&self, key: &FileKey) -> Option<&FileRule>;
    /// The rule that stands at a name.
    fn name(&self, key: &NameKey) -> Option<&FileRule>;
}

/// The tables, for a socket that is connected: what its name stood for is kept with it.
#[derive(Clone, Copy, Debug)]
pub struct Connected<'a, L> {
    /// The tables.
    pub lookup: &'a L,
    /// Of the socket.
    pub names: &'a [Granted; 2],
}

impl<L: Lookup> Lookup for Connected<'_, L> {
    #[inline(always)]
    fn sandbox(&self, sandbox: u32) -> Option<&SandboxState> {
        self.lookup.sandbox(sandbox)
    }

    #[inline(always)]
    fn rule(&self, key: &RuleKey) -> Option<&RuleValue> {
        self.lookup.rule(key)
    }

    #[inline(always)]
    fn synthetic(&self, key: &SyntheticKey) -> Option<&SyntheticValue> {
        let [first, second] = self.names;
        if first.policy == key.policy {
            return Some(&first.value);
        }
        if second.policy == key.policy {
            return Some(&second.value);
        }
        self.lookup.synthetic(key)
    }

    #[inline(always)]
    fn address(&self, key: &AddressKey, bits: u32) -> Option<&HostIds> {
        self.lookup.address(key, bits)
    }

    #[inline(always)]
    fn placed_at(&self, address: &Address) -> Placed {
        self.lookup.placed_at(address)
    }

    #[inline(always)]
    fn admits(&self, subject: &Subject, hosts: &HostIds, query: RuleQuery) -> Admission {
        self.lookup.admits(subject, hosts, query)
    }
}

/// Where a packet is to go, as the process asked. Without a byte that is not written: the kernel's functions hand it
/// on in memory.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Destination {
    /// Address as asked.
    pub address: Address,
    /// Port, host byte order; zero where the transport has none.
    pub port: u16,
    /// [`TCP`], [`UDP`] or [`ICMP`].
    pub transport: u8,
    /// Nothing.
    pub zero: u8,
    /// The sandbox whose process has bound the socket at which it would arrive; zero if none has, or
    /// nobody has asked: a denial for [`Reason::Loopback`] is an allow for some receiver.
    pub receiver: u32,
}

/// What the hook does to an operation that goes on.
///
/// Without a payload: one that only some variants have is an undefined register on the others'
/// paths, and where those meet LLVM spills it all the same: `(7b) *(u64 *)(r10 -192) = r2`,
/// `R2 !read_ok`.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// Nothing.
    Direct = 0,
    /// Take it to the address behind the one that was asked for.
    Real = 1,
    /// Take it to the sandbox's resolver.
    Resolver = 2,
    /// Take it to the agent, which reads whom it is for before it goes on to the real address.
    Verifier = 3,
    /// Take it to the agent, where it waits until somebody says whether it may go on.
    Waiting = 4,
}

/// A verdict with what led to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The policy's verdict.
    pub verdict: Verdict,
    /// Its cause.
    pub reason: Reason,
    /// 1: the sandbox only records, so the operation goes on whatever the verdict is.
    pub audit_only: u32,
    /// The policy generation that decided; zero if none did.
    pub policy: u32,
    /// [`SandboxState::flags`]; zero if no policy decided.
    pub flags: u32,
    /// What to do to it if it goes on.
    pub route: Route,
    /// Where it goes in the end; zero for [`Route::Direct`].
    pub target: Address,
    /// The port that the route leads to: of the agent where it goes there; zero for [`Route::Direct`].
    pub target_port: u32,
    /// Of a connection that is taken to the agent, its number; zero before it has one.
    pub number: u32,
    /// Host pattern of the deciding rule; zero if none decided.
    pub host: u32,
    /// Number of the name behind a synthetic address; zero if the address was literal.
    pub name: u32,
    /// The first word of the subject's and the rule's sets that meet, and its index: together
    /// they name the binary entry that admitted the subject.
    pub matched: u64,
    /// See `matched`.
    pub matched_word: u32,
}

impl Decision {
    #[inline(always)]
    const fn without_policy(verdict: Verdict, reason: Reason) -> Self {
        Self {
            verdict,
            reason,
            audit_only: 0,
            policy: 0,
            flags: 0,
            route: Route::Direct,
            target: Address { words: [0; 4] },
            target_port: 0,
            number: 0,
            host: 0,
            name: 0,
            matched: 0,
            matched_word: 0,
        }
    }

    /// What the kernel has refused already, before or beneath the hooks; it went on for nobody.
    #[inline(always)]
    #[must_use]
    pub const fn refused(reason: Reason) -> Self {
        Self::without_policy(Verdict::Deny, reason)
    }

    /// Whether the operation goes on.
    #[inline(always)]
    #[must_use]
    pub const fn goes_on(&self) -> bool {
        matches!(self.verdict, Verdict::Allow) || self.audit_only == 1
    }
}

const fn allow(reason: Reason, state: &SandboxState) -> Decision {
    by(state, Verdict::Allow, reason)
}

const fn deny(reason: Reason, state: &SandboxState) -> Decision {
    by(state, Verdict::Deny, reason)
}

#[inline(always)]
const fn by(state: &SandboxState, verdict: Verdict, reason: Reason) -> Decision {
    let SandboxState { policy, audit_only, flags, .. } = *state;
    Decision { audit_only, policy, flags, ..Decision::without_policy(verdict, reason) }
}

/// The subject and the state of its sandbox, or the decision that their absence makes.
#[inline(always)]
fn placed<'a, L: Lookup>(
    lookup: &'a L,
    standing: &Standing<'a>,
) -> Result<(&'a Subject, &'a SandboxState), Decision> {
    placed_where(lookup, standing, SandboxState::is_in_force)
}

/// The same where the state is as `is_so` wants it.
#[inline(always)]
fn placed_where<'a, L: Lookup>(
    lookup: &'a L,
    standing: &Standing<'a>,
    is_so: impl Fn(&SandboxState) -> bool,
) -> Result<(&'a Subject, &'a SandboxState), Decision> {
    match standing {
        Standing::Outside => Err(Decision::without_policy(Verdict::Allow, Reason::Outside)),
        Standing::Unidentified => Err(Decision::without_policy(Verdict::Deny, Reason::NoIdentity)),
        Standing::Subject(subject) => match lookup.sandbox(subject.sandbox) {
            Some(state) if is_so(state) => Ok((subject, state)),
            state => Err(under_none(state)),
        },
    }
}

/// The denial where no policy is in force.
#[inline(always)]
fn under_none(state: Option<&SandboxState>) -> Decision {
    let is_paused = state.is_some_and(|state| state.flags & PAUSED != 0);
    let reason = if is_paused { Reason::Unrecorded } else { Reason::NoPolicy };
    Decision::without_policy(Verdict::Deny, reason)
}

/// May this subject connect or send to this destination?
#[inline(always)]
pub fn egress<L: Lookup>(lookup: &L, standing: &Standing<'_>, to: &Destination) -> Decision {
    let (subject, state) = match placed(lookup, standing) {
        Ok(found) => found,
        Err(decision) => return decision,
    };
    let is_probe = to.port == 0 || (to.port == PING_PROBE_PORT && state.flags & PING_PROBE != 0);
    if to.transport == UDP && is_probe {
        let target = to.address.loopback();
        return Decision { route: Route::Real, target, ..allow(Reason::AddressProbe, state) };
    }
    if to.port == DNS_PORT {
        let port = if to.address.is_v4() { state.resolver_v4 } else { state.resolver_v6 };
        if port == 0 {
            return deny(Reason::NoResolver, state);
        }
        return Decision {
            route: Route::Resolver,
            target: to.address.loopback(),
            target_port: u32::from(port),
            ..allow(Reason::Resolver, state)
        };
    }
    let placed = lookup.placed_at(&to.address);
    let decision = if placed.is(Range::Synthetic) {
        named(lookup, subject, state, to)
    } else {
        literal(lookup, subject, state, to, &placed)
    };
    let waits = matches!(decision.reason, Reason::UnknownEndpoint)
        && state.flags & ASK_UNKNOWN != 0
        && state.audit_only == 0
        && state.waiting != 0
        && to.transport == TCP;
    if waits { held(state, to, &decision) } else { decision }
}

/// What a decision about a connect says of a connection that is there. Where it would be taken to the
/// agent, it has to have been: one that would be held now was held for this very program and approved, and
/// one that would be verified now was.
#[inline(always)]
#[must_use]
pub fn in_use(
    decision: Decision,
    kept: Option<&SocketState>,
    subject: Option<&Subject>,
) -> Decision {
    let is_by_agent = kept.is_some_and(SocketState::is_by_agent);
    let (is_good, reason) = match decision.route {
        Route::Waiting => {
            let is_theirs = match (kept, subject) {
                (Some(kept), Some(subject)) => {
                    kept.held_for.inode != 0
                        && kept.held_for.inode == subject.exe.inode
                        && kept.held_for.device == subject.exe.device
                }
                _ => false,
            };
            (is_by_agent && is_theirs, Reason::UnknownEndpoint)
        }
        Route::Verifier => (is_by_agent, Reason::NoHost),
        _ => (true, Reason::Unset),
    };
    if is_good { decision } else { Decision { verdict: Verdict::Deny, reason, ..decision } }
}

/// A connection that somebody has to say something about. It goes nowhere before, so it may be made.
#[inline(always)]
fn held(state: &SandboxState, to: &Destination, decision: &Decision) -> Decision {
    let is_named = matches!(decision.route, Route::Real);
    Decision {
        verdict: Verdict::Allow,
        reason: Reason::Held,
        route: Route::Waiting,
        target: if is_named { decision.target } else { to.address },
        target_port: u32::from(state.waiting),
        ..*decision
    }
}

/// A destination that the sandbox's resolver handed out for a name.
#[inline(always)]
fn named<L: Lookup>(
    lookup: &L,
    subject: &Subject,
    state: &SandboxState,
    to: &Destination,
) -> Decision {
    let (sandbox, policy) = (subject.sandbox, state.policy);
    let key = SyntheticKey { sandbox, policy, address: to.address };
    let Some(target) = lookup.synthetic(&key) else {
        return deny(Reason::StaleName, state);
    };
    if target.real.is_v4() != to.address.is_v4() {
        // Nor can a sandbox that only records have it: no socket reaches another family's address.
        let name = target.name;
        return Decision { audit_only: 0, name, ..deny(Reason::StaleName, state) };
    }
    let decision = ruled(lookup, subject, state, to, &target.hosts, false);
    if matches!(decision.route, Route::Verifier) {
        if state.verifier == 0 {
            return deny(Reason::NoHost, state);
        }
        return Decision {
            target: target.real,
            target_port: u32::from(state.verifier),
            name: target.name,
            ..decision
        };
    }
    Decision {
        route: Route::Real,
        target: target.real,
        target_port: u32::from(to.port),
        name: target.name,
        ..decision
    }
}

/// A destination that the process named by its address.
#[inline(always)]
fn literal<L: Lookup>(
    lookup: &L,
    subject: &Subject,
    state: &SandboxState,
    to: &Destination,
    placed: &Placed,
) -> Decision {
    let forbidden = match placed.range {
        range if range == Range::LinkLocal as u32 => Reason::LinkLocal,
        range if range == Range::Unspecified as u32 => Reason::Unspecified,
        range if range == Range::Multicast as u32 => Reason::Multicast,
        range if range == Range::Reserved as u32 => Reason::Reserved,
        _ => Reason::Unset,
    };
    if !matches!(forbidden, Reason::Unset) {
        return deny(forbidden, state);
    }
    let loopback = placed.is(Range::Loopback);
    if loopback {
        // A form that only carries a loopback address leaves the host.
        if !matches!(to.address.range(), Range::Loopback) {
            return deny(Reason::Loopback, state);
        }
        if to.receiver != 0 && to.receiver == subject.sandbox {
            return allow(Reason::OwnListener, state);
        }
    }
    let key = AddressKey {
        policy: state.policy,
        usage: AddressUse::Egress as u32,
        address: placed.judged,
    };
    let Some(hosts) = lookup.address(&key, ADDRESS_KEY_BITS) else {
        let reason = if loopback { Reason::Loopback } else { Reason::UnknownEndpoint };
        return deny(reason, state);
    };
    let decision = ruled(lookup, subject, state, to, hosts, loopback);
    if loopback && matches!(decision.reason, Reason::UnknownEndpoint) {
        return Decision { reason: Reason::Loopback, ..decision };
    }
    decision
}

/// The decision by the rules for the patterns that the host matches.
#[inline(always)]
fn ruled<L: Lookup>(
    lookup: &L,
    subject: &Subject,
    state: &SandboxState,
    to: &Destination,
    hosts: &HostIds,
    is_loopback: bool,
) -> Decision {
    let query = RuleQuery::new(state.policy, to, is_loopback);
    let Admission { matched, matched_word, host, who, is_verified } =
        lookup.admits(subject, hosts, query);
    match who {
        Admission::ADMITTED => {
            // Compiled for names alone: whom an address is for, nothing that is said on it can tell.
            let route = if is_verified != 0 { Route::Verifier } else { Route::Direct };
            Decision { host, route, matched, matched_word, ..allow(Reason::Rule, state) }
        }
        Admission::OTHERS => Decision { host, ..deny(Reason::OtherBinary, state) },
        _ => deny(Reason::UnknownEndpoint, state),
    }
}

/// May this subject bind this local address? Port zero asks the kernel for a client port.
#[inline(always)]
pub fn bind<L: Lookup>(lookup: &L, standing: &Standing<'_>, local: &Destination) -> Decision {
    let (_, state) = match placed(lookup, standing) {
        Ok(found) => found,
        Err(decision) => return decision,
    };
    // An address that names an asker or a connection is for the kernel to give.
    if local.address.is_v4() && is_given(u32::from_be(local.address.words[3])) {
        return deny(Reason::ListenNotAllowed, state);
    }
    if local.port == 0 && local.transport == UDP {
        return allow(Reason::EphemeralPort, state);
    }
    let judged = local.address.embedded();
    let key =
        AddressKey { policy: state.policy, usage: AddressUse::Listen as u32, address: judged };
    let Some(hosts) = lookup.address(&key, ADDRESS_KEY_BITS) else {
        return deny(Reason::ListenNotAllowed, state);
    };
    let rule = RuleKey {
        policy: state.policy,
        host: hosts.ids[0],
        port: local.port,
        transport: local.transport,
        zero: 0,
    };
    match lookup.rule(&rule) {
        Some(_) => allow(Reason::Rule, state),
        None => deny(Reason::ListenNotAllowed, state),
    }
}

/// May this subject listen on a socket that it has not bound, at a port of the kernel's choice? A
/// policy names the ports that may be listened on.
#[inline(always)]
pub fn listen_unbound<L: Lookup>(lookup: &L, standing: &Standing<'_>) -> Decision {
    match placed(lookup, standing) {
        Err(decision) => decision,
        Ok((_, state)) => deny(Reason::ListenNotAllowed, state),
    }
}

/// Address families, `include/linux/socket.h`, and the protocol of netlink that libc asks for addresses.
const AF_UNIX: u32 = 1;
const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;
const AF_NETLINK: u32 = 16;
const NETLINK_ROUTE: u32 = 0;

/// May this subject make a socket of this family? Of IPv4 and IPv6 [`socket`] decides, of Unix sockets
/// whoever they are connected to.
#[inline(always)]
pub fn family<L: Lookup>(
    lookup: &L,
    standing: &Standing<'_>,
    family: u32,
    protocol: u32,
) -> Decision {
    let is_judged = family == AF_UNIX || family == AF_INET || family == AF_INET6;
    if is_judged || (family == AF_NETLINK && protocol == NETLINK_ROUTE) {
        return Decision::without_policy(Verdict::Allow, Reason::Rule);
    }
    match placed(lookup, standing) {
        Ok((_, state)) => deny(Reason::SocketKind, state),
        Err(decision) => decision,
    }
}

/// Socket types and protocols, `include/uapi/linux/in.h` and `net.h`.
const SOCK_STREAM: u32 = 1;
const SOCK_DGRAM: u32 = 2;
const IPPROTO_IP: u32 = 0;
const IPPROTO_ICMP: u32 = 1;
const IPPROTO_ICMPV6: u32 = 58;
const IPPROTO_TCP: u32 = 6;
const IPPROTO_UDP: u32 = 17;

/// May this subject make an IPv4 or IPv6 socket of this type and protocol? Only those can be made
/// whose every packet passes a hook that decides: raw, SCTP and the rest cannot, ping where the state says
/// that one does. Nor can MPTCP:
/// the kernel itself connects further subflows, to addresses that the peer names. Programs that ask for
/// it take TCP where they do not get it.
#[inline(always)]
pub fn socket<L: Lookup>(
    lookup: &L,
    standing: &Standing<'_>,
    kind: u32,
    protocol: u32,
) -> Decision {
    let (_, state) = match placed(lookup, standing) {
        Ok(found) => found,
        Err(decision) => return decision,
    };
    let known = match kind {
        SOCK_STREAM => protocol == IPPROTO_IP || protocol == IPPROTO_TCP,
        SOCK_DGRAM => {
            let is_ping = protocol == IPPROTO_ICMP || protocol == IPPROTO_ICMPV6;
            protocol == IPPROTO_IP
                || protocol == IPPROTO_UDP
                || (is_ping && state.flags & PING != 0)
        }
        _ => false,
    };
    if known { allow(Reason::Rule, state) } else { deny(Reason::SocketKind, state) }
}

/// The transport whose rules apply to a socket of this protocol, or `None` for one that no rule
/// can be written for.
#[inline(always)]
#[must_use]
pub const fn transport_of(protocol: u32) -> Option<u8> {
    match protocol {
        IPPROTO_TCP => Some(TCP),
        IPPROTO_UDP => Some(UDP),
        IPPROTO_ICMP | IPPROTO_ICMPV6 => Some(ICMP),
        _ => None,
    }
}

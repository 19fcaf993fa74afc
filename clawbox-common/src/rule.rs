//! Keys and values of the policy maps. All are free of padding and of pointers, and the same
//! bytes in the kernel, in a snapshot and in a test's `BTreeMap`.

use crate::address::Address;
use crate::event::NetworkEvent;
use crate::limits::{PATTERNS_PER_HOST, SCRIPT_PATH};
use crate::subject::{FileId, Mask};

/// Stream over IP.
pub const TCP: u8 = 1;
/// Datagram over IP.
pub const UDP: u8 = 2;

/// In a [`RuleKey`] not a transport: the rule lists the programs that may be started.
pub const PROGRAMS: u8 = 3;

/// Echo requests over IP, which have no port: their rules' is zero.
pub const ICMP: u8 = 4;

/// Number of a host pattern within a policy; zero is no pattern.
pub type HostId = u32;

/// What a rule is looked up by.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RuleKey {
    /// Policy generation.
    pub policy: u32,
    /// Host pattern.
    pub host: HostId,
    /// Port in host byte order.
    pub port: u16,
    /// [`TCP`], [`UDP`], [`ICMP`] or [`PROGRAMS`].
    pub transport: u8,
    /// Always zero.
    pub zero: u8,
}

impl RuleKey {
    /// The key of the list of programs that may be started.
    #[inline(always)]
    #[must_use]
    pub const fn programs(policy: u32) -> Self {
        Self { policy, host: 0, port: 0, transport: PROGRAMS, zero: 0 }
    }
}

/// The rule admits every binary of the sandbox.
pub const ANYBODY: u32 = 1;
/// The rule opens a port on the host's loopback.
pub const HOST_LOOPBACK: u32 = 2;
/// What is said first on a connection has to name the host: the agent reads it.
pub const VERIFY_NAME: u32 = 4;

/// Whom a rule admits. Rules of one policy on the same endpoint are merged into one value.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct RuleValue {
    /// Slots admitted if the subject or an ancestor of it is one of them.
    pub tree: Mask,
    /// Slots admitted only if the subject itself is one of them.
    pub own: Mask,
    /// [`ANYBODY`], [`HOST_LOOPBACK`], [`VERIFY_NAME`].
    pub flags: u32,
    /// Always zero.
    pub zero: u32,
}

/// Host patterns that a name or an address matches, filled from the front; zero ends the list.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct HostIds {
    /// Pattern numbers.
    pub ids: [HostId; PATTERNS_PER_HOST],
}

/// A synthetic address of one sandbox, under one policy: those of the next are all there before it
/// is in force.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SyntheticKey {
    /// Sandbox it was handed out to.
    pub sandbox: u32,
    /// Policy generation.
    pub policy: u32,
    /// The address the client was given.
    pub address: Address,
}

/// What stands behind a synthetic address.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct SyntheticValue {
    /// The address a connection really goes to.
    pub real: Address,
    /// The policy's host patterns that the name matches.
    pub hosts: HostIds,
    /// The name's number in the agent's table, for the audit trail.
    pub name: u32,
}

/// Which table an address range belongs to.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum AddressUse {
    /// Destinations.
    Egress = 1,
    /// Local addresses that may be listened on.
    Listen = 2,
}

/// Longest-prefix key of literal addresses and ranges: 64 bits of policy and use, then the
/// address. The bits are compared in memory order, which for an address is network order.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AddressKey {
    /// Policy generation.
    pub policy: u32,
    /// An [`AddressUse`] as a number.
    pub usage: u32,
    /// The address; bits past the prefix are zero in a stored key.
    pub address: Address,
}

/// Bits of an [`AddressKey`] in front of the address.
pub const ADDRESS_KEY_HEAD: u32 = 64;
/// Bits of a whole [`AddressKey`].
pub const ADDRESS_KEY_BITS: u32 = 192;

/// The state of one sandbox. Another one in its place is how a policy changes; see [`SandboxStates`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SandboxState {
    /// Policy generation in force; zero is no policy.
    pub policy: u32,
    /// 1: decide and record, but let through.
    pub audit_only: u32,
    /// Port of the resolver on 127.0.0.1, host byte order; zero is none.
    pub resolver_v4: u16,
    /// Port of the resolver on ::1, host byte order; zero is none.
    pub resolver_v6: u16,
    /// Port on 127.0.0.1 where the agent verifies connections, host byte order; zero is none.
    pub verifier: u16,
    /// Port on 127.0.0.1 where connections wait for an answer, host byte order; zero is none.
    pub waiting: u16,
    /// [`NAMES_ANYWHERE`], [`EXECUTE_WRITABLE`], [`LISTED_PROGRAMS`], [`FILES_BY_BINARY`],
    /// [`TALLY_ALLOWS`], [`REPORT_ALLOWS`], [`ASK_UNKNOWN`], [`PING`], [`PING_PROBE`]; [`PAUSED`].
    pub flags: u32,
}

/// States that a sandbox's entry has room for.
pub const STATE_SLOTS: usize = 4;

/// The state of one sandbox, and room for those to come. A change writes the next one, which nobody
/// reads, and then which one is current: a program sees the old state or the new, unless it is held
/// up, in the middle, for as long as [`STATE_SLOTS`] − 1 further changes of the policy take.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SandboxStates {
    /// One is in force; all zero has no policy.
    pub states: [SandboxState; STATE_SLOTS],
    /// Which.
    pub current: u64,
}

impl SandboxStates {
    /// Where the state is that comes after the current one.
    #[must_use]
    pub const fn next(&self) -> usize {
        (self.current as usize + 1) % STATE_SLOTS
    }
}

/// The policy has rules for names in any directory.
pub const NAMES_ANYWHERE: u32 = 1;
/// What the sandbox may write, it may execute too.
pub const EXECUTE_WRITABLE: u32 = 2;
/// Only the programs under [`RuleKey::programs`] may be started.
pub const LISTED_PROGRAMS: u32 = 4;

/// The policy has file rules for single binaries.
pub const FILES_BY_BINARY: u32 = 32;
/// Allowed uses of files are counted, and allowed connects and sends that are alike.
pub const TALLY_ALLOWS: u32 = 8;
/// Each allowed use is reported.
pub const REPORT_ALLOWS: u32 = 16;
impl SandboxState {
    /// Under a policy, and served by nobody.
    #[must_use]
    pub const fn under(policy: u32, flags: u32) -> Self {
        Self {
            policy,
            audit_only: 0,
            resolver_v4: 0,
            resolver_v6: 0,
            verifier: 0,
            waiting: 0,
            flags,
        }
    }

    /// While nothing can be recorded nothing new is allowed: the policy is not in force, but for files that are
    /// open already, and what those are used for is told nobody.
    #[must_use]
    pub const fn paused(&self) -> Self {
        Self::under(self.policy, PAUSED | self.flags & OF_FILES)
    }

    /// Whether a policy is in force.
    #[inline(always)]
    #[must_use]
    pub const fn is_in_force(&self) -> bool {
        self.policy != 0 && self.flags & PAUSED == 0
    }

    /// What is to be in force when what is allowed can be recorded again, as far as it is known from here;
    /// `None` where nothing waits for that.
    #[must_use]
    pub const fn waiting(&self) -> Option<Self> {
        if self.policy != 0 && self.flags & PAUSED != 0 {
            Some(Self::under(self.policy, self.flags & !PAUSED))
        } else {
            None
        }
    }
}

/// Of [`SandboxState::flags`]: the policy is not in force until what is allowed can be recorded.
pub const PAUSED: u32 = 1 << 31;

/// Of [`SandboxState::flags`], what a policy's rules for files are read by.
const OF_FILES: u32 = NAMES_ANYWHERE | EXECUTE_WRITABLE | FILES_BY_BINARY;

/// Of [`SandboxState::flags`]: a connection to an endpoint that no rule names waits for an answer.
pub const ASK_UNKNOWN: u32 = 64;
/// Of [`SandboxState::flags`]: sockets for echo requests may be made. Only where a hook judges each of
/// their sends.
pub const PING: u32 = 128;
/// Of [`SandboxState::flags`]: a datagram socket that is connected to [`crate::address::PING_PROBE_PORT`]
/// only asks for its own address.
pub const PING_PROBE: u32 = 256;

/// A file that a policy names as a binary.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BinaryKey {
    /// The file.
    pub file: FileId,
    /// The sandbox whose policy names it.
    pub sandbox: u32,
    /// Always zero.
    pub zero: u32,
}

/// A `#!` script that a policy names as a binary, by the absolute path exec was given.
///
/// Sound only because a sandbox can change neither its root nor its mounts, and because
/// a path whose parents it may write is never entered here unless the policy names that path.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ScriptKey {
    /// The path, NUL-terminated, the rest zero.
    pub path: [u8; SCRIPT_PATH],
    /// The sandbox whose policy names it.
    pub sandbox: u32,
    /// Always zero.
    pub zero: u32,
}

/// What is kept with a socket: what it was asked to reach and what it reaches instead, and who has
/// bound it. A connection that a listener takes begins with a copy of the listener's.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketState {
    /// As the process asked.
    pub asked: Address,
    /// Where it goes.
    pub real: Address,
    /// Port asked, host byte order.
    pub asked_port: u16,
    /// Port it goes to, host byte order.
    pub real_port: u16,
    /// The sandbox that it was connected to a listener of; zero if `real` is no listener of a sandbox.
    pub receiver: u32,
    /// The sandbox whose process has bound it; zero is none.
    pub bound_by: u32,
    /// Always zero.
    pub zero: u32,
    /// The program that a connection was held for, which nobody else may use; zero if it was not.
    pub held_for: FileId,
    /// The cookie of the socket that was bound: another one's is a connection that it took.
    pub bound_as: u64,
    /// If `asked` stands for a name: what is behind it, under the policy that it was connected under and
    /// under one that is to follow. A connection outlives the entry in the table of addresses.
    pub names: [Granted; 2],
}

impl SocketState {
    /// The socket, with this cookie, is connected: nothing that was kept of another connection is about
    /// this one, nor that a listener took it.
    #[inline(always)]
    pub fn connects(&mut self, cookie: u64, asked: (Address, u16), real: (Address, u16)) {
        (self.asked, self.asked_port) = asked;
        (self.real, self.real_port) = real;
        self.receiver = 0;
        self.held_for = FileId { inode: 0, device: 0, zero: 0 };
        self.names[0].policy = 0;
        self.names[1].policy = 0;
        if self.bound_as != cookie {
            self.bound_by = 0;
        }
    }

    /// Whether the connection goes by way of the agent, which is on loopback, to where it was asked to.
    #[inline(always)]
    #[must_use]
    pub fn is_by_agent(&self) -> bool {
        self.real == Address::LOOPBACK_V4 && self.asked != self.real
    }
}

/// A connection that was taken to the agent.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Redirected {
    /// Which one, by the number in its source address: written last, zero while the rest is.
    pub number: u32,
    /// Always zero.
    pub zero: u32,
    /// What was asked, and by whom.
    pub event: NetworkEvent,
}

/// What is behind a name's address, under one policy.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Granted {
    /// Policy generation; zero is nothing.
    pub policy: u32,
    /// As in the table of addresses.
    pub value: SyntheticValue,
}

/// What losses are counted by.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LossKey {
    /// Sandbox.
    pub sandbox: u32,
    /// An [`crate::event::Kind`] as a number, with [`LOST_ALLOW`] where it was allowed.
    pub kind: u32,
}

/// Of a [`LossKey`]: what was lost was allowed.
pub const LOST_ALLOW: u32 = 1 << 8;

/// Of a [`LossKey`]: how much of it the agent has told, so that the next one does not tell it again. No
/// program writes it.
pub const LOST_TOLD: u32 = 1 << 9;

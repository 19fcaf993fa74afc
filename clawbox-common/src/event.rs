//! Records of the event ring: fixed-size, padding-free, decoded with checks and never transmuted.

use crate::address::Address;
use crate::limits::SCRIPT_PATH;
use crate::subject::FileId;

/// What an event is about.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// `connect`.
    Connect = 1,
    /// `sendto`, `sendmsg` or `sendmmsg` with an address on an unconnected socket.
    Send = 2,
    /// `bind`.
    Bind = 3,
    /// `socket`.
    Socket = 4,
    /// A program was started.
    Exec = 5,
}

impl Kind {
    /// Every kind.
    pub const ALL: &'static [Kind] =
        &[Kind::Connect, Kind::Send, Kind::Bind, Kind::Socket, Kind::Exec];

    /// The name in audit records.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Connect => "connect",
            Kind::Send => "send",
            Kind::Bind => "bind",
            Kind::Socket => "socket",
            Kind::Exec => "exec",
        }
    }
}

impl TryFrom<u8> for Kind {
    type Error = u8;

    fn try_from(value: u8) -> Result<Self, u8> {
        Kind::ALL.iter().copied().find(|kind| *kind as u8 == value).ok_or(value)
    }
}

/// What every event begins with.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Header {
    /// A [`Kind`] as a number.
    pub kind: u8,
    /// A [`crate::verdict::Verdict`] as a number.
    pub verdict: u8,
    /// A [`crate::verdict::Reason`] as a number.
    pub reason: u8,
    /// 1 where the sandbox only records.
    pub audit_only: u8,
    /// The sandbox, or zero where only the cgroup was known.
    pub sandbox: u32,
    /// Nanoseconds of `CLOCK_BOOTTIME`.
    pub time: u64,
    /// Thread group (what userspace calls the process), initial pid namespace.
    pub tgid: u32,
    /// Thread, initial pid namespace.
    pub tid: u32,
    /// Real user, initial user namespace.
    pub uid: u32,
    /// 1 where the subject was started through a script.
    pub is_script: u32,
    /// The subject's program.
    pub exe: FileId,
}

/// A network event.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct NetworkEvent {
    /// Common part.
    pub header: Header,
    /// The address asked for; for [`Kind::Bind`] the local one.
    pub asked: Address,
    /// The address really used; equal to `asked` where nothing was rewritten.
    pub real: Address,
    /// Port asked, host byte order. For [`Kind::Socket`] the type.
    pub port: u16,
    /// [`crate::rule::TCP`], [`crate::rule::UDP`] or zero.
    pub transport: u8,
    /// 1 where the resolver was asked.
    pub to_resolver: u8,
    /// Host pattern of the deciding rule.
    pub host: u32,
    /// See [`crate::decide::Decision::matched`].
    pub matched: u64,
    /// See [`crate::decide::Decision::matched_word`].
    pub matched_word: u32,
    /// Number of the name behind a synthetic address.
    pub name: u32,
    /// Policy generation that decided.
    pub policy: u32,
    /// For [`Kind::Socket`] the protocol.
    pub protocol: u32,
    /// The socket's cookie; zero where the hook has none.
    pub cookie: u64,
}

/// A program start.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskEvent {
    /// Common part; `exe` is the program that runs from here on.
    pub header: Header,
    /// Thread group of the parent.
    pub parent: u32,
    /// Always zero.
    pub zero: u32,
    /// The path that exec was given, NUL-terminated; for a script the script's.
    pub path: [u8; SCRIPT_PATH],
}

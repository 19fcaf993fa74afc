//! Records of the event ring: fixed-size, padding-free, decoded with checks and never transmuted.

use crate::address::Address;
use crate::limits::{FILE_NAME, SCRIPT_PATH, TOLD_NAMES};
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
    /// A file was used; which way, an [`Operation`] says.
    File = 6,
    /// Another process, or the kernel's own rights, were to be used.
    Privilege = 7,
}

impl Kind {
    /// Every kind.
    pub const ALL: &'static [Kind] = &[
        Kind::Connect,
        Kind::Send,
        Kind::Bind,
        Kind::Socket,
        Kind::Exec,
        Kind::File,
        Kind::Privilege,
    ];

    /// The name in audit records.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Connect => "connect",
            Kind::Send => "send",
            Kind::Bind => "bind",
            Kind::Socket => "socket",
            Kind::Exec => "exec",
            Kind::File => "file",
            Kind::Privilege => "privilege",
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

macro_rules! operations {
    ($($(#[$doc:meta])* $name:ident = $value:literal, $text:literal;)*) => {
        /// What was done to a file, a process or the kernel.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Operation { $($(#[$doc])* $name = $value,)* }

        impl Operation {
            /// The action in audit records.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Operation::$name => $text,)* }
            }
        }

        impl TryFrom<u32> for Operation {
            type Error = u32;

            fn try_from(value: u32) -> Result<Self, u32> {
                match value { $($value => Ok(Operation::$name),)* other => Err(other) }
            }
        }
    };
}

operations! {
    /// `open` and what opens like it.
    Open = 1, "open";
    /// A descriptor came from another process.
    Receive = 2, "receive";
    /// A file, a device or a fifo was made.
    Create = 3, "create";
    /// A directory was made.
    MakeDirectory = 4, "mkdir";
    /// A symbolic link was made.
    MakeSymlink = 5, "symlink";
    /// A hard link was made.
    Link = 6, "link";
    /// A file was removed.
    Unlink = 7, "unlink";
    /// A directory was removed.
    RemoveDirectory = 8, "rmdir";
    /// An entry was moved, or two were exchanged.
    Rename = 9, "rename";
    /// A size was set.
    Truncate = 10, "truncate";
    /// A mode was set.
    Chmod = 11, "chmod";
    /// An owner was set.
    Chown = 12, "chown";
    /// Times or other attributes were set.
    Attributes = 13, "attributes";
    /// An extended attribute was set or removed.
    ExtendedAttribute = 14, "xattr";
    /// A file was mapped to be executed.
    Map = 15, "map";
    /// A file was to be started.
    Start = 16, "start-program";
    /// A path's Unix socket was connected or sent to.
    UnixSocket = 17, "unix-socket";
    /// Another process was to be traced, or its memory read.
    Trace = 18, "trace";
    /// Another process was to be signalled.
    Signal = 19, "signal";
    /// The mount tree was to be changed.
    Mount = 20, "mount";
    /// A user namespace was to be made.
    UserNamespace = 21, "user-namespace";
    /// `bpf`.
    Bpf = 22, "bpf";
    /// `perf_event_open`.
    Perf = 23, "perf-event";
    /// A kernel module, or another image for the kernel.
    KernelImage = 24, "kernel-image";
    /// A part of io_uring that runs outside the caller.
    IoUring = 25, "io-uring";
    /// `chroot`.
    Chroot = 26, "chroot";
    /// Another process's resource limits were to be set.
    Limits = 27, "set-limits";
    /// Another process's priority or scheduling was to be set.
    Schedule = 28, "schedule";
    /// Another process was to be moved to a process group.
    ProcessGroup = 29, "process-group";
    /// Another process's memory was to be moved to other nodes.
    MoveMemory = 30, "move-memory";
    /// What the kernel says of the process's memory, its program included, was to be rewritten.
    ProcessImage = 31, "process-image";
    /// A key of the kernel's keyrings.
    Key = 32, "key";
}

/// A denied use of a file, a process or the kernel.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileEvent {
    /// Common part.
    pub header: Header,
    /// The object; zero where it does not exist or is no file.
    pub object: FileId,
    /// An [`Operation`] as a number.
    pub operation: u32,
    /// Bits of [`crate::file`]: the access that was denied.
    pub access: u32,
    /// The thread group of another process that was meant.
    pub other: u32,
    /// How many of `names` were written.
    pub told: u32,
    /// Names from the object upwards, each NUL-terminated; a longer one is cut. The root's is `/`:
    /// a path that does not end in it goes on above.
    pub names: [[u8; FILE_NAME]; TOLD_NAMES],
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

//! Records of the event ring: fixed-size, padding-free, decoded with checks and never transmuted.

use crate::address::Address;
use crate::limits::{ARGUMENTS, CALL_PATH, FILE_NAME, SCRIPT_PATH, TOLD_NAMES};
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
    /// A system call came back refused.
    Call = 8,
    /// Something was to be sent on a connected socket.
    SendConnected = 9,
    /// Something was to be received on a connected socket.
    Receive = 10,
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
        Kind::Call,
        Kind::SendConnected,
        Kind::Receive,
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
            Kind::Call => "system-call",
            Kind::SendConnected => "send-connected",
            Kind::Receive => "receive",
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
    /// Which record it is, as [`crate::number`] has it.
    pub number: u64,
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
    /// [`crate::rule::TCP`], [`crate::rule::UDP`], [`crate::rule::ICMP`] or zero.
    pub transport: u8,
    /// A [`crate::decide::Route`] as a number.
    pub route: u8,
    /// Host pattern of the deciding rule. For [`Kind::Socket`] the family, where it is not IPv4 or IPv6.
    pub host: u32,
    /// See [`crate::decide::Decision::matched`].
    pub matched: u64,
    /// See [`crate::decide::Decision::matched_word`].
    pub matched_word: u32,
    /// Number of the name behind a synthetic address.
    pub name: u32,
    /// Policy generation that decided.
    pub policy: u32,
    /// For [`Kind::Socket`] the protocol; of a connection that is taken to the agent, its number.
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
    /// A device was to be asked for, or told, something of its own.
    Ioctl = 33, "ioctl";
    /// A file that was open already was read.
    Read = 40, "read";
    /// A file that was open already was written.
    Write = 41, "write";
    /// A program's first allowed use of anything in a directory: counted from here on.
    Tally = 42, "summary";
}

/// A use of a file, a process or the kernel.
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

/// A path as the kernel spells it, name by name: what a [`FileEvent`] ends with.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    /// See [`FileEvent::told`].
    pub told: u32,
    /// See [`FileEvent::names`].
    pub names: [[u8; FILE_NAME]; TOLD_NAMES],
}

/// A refused system call, told when it returns.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallEvent {
    /// Common part.
    pub header: Header,
    /// Its arguments; the last one is replaced by what [`CallShape::inner`] points at.
    pub arguments: [u64; 6],
    /// Its number.
    pub number: u32,
    /// What it failed with, as a positive number.
    pub errno: u32,
    /// Bytes of `path` with its NUL; negative where it could not be read, zero where the call has
    /// none.
    pub path_length: i32,
    /// The same of `other_path`.
    pub other_length: i32,
    /// The filesystem (the kernel's `s_dev`) of the directory that a relative `other_path` starts from,
    /// where `base` is not that directory; zero where it is, or cannot be told.
    pub other_device: u32,
    /// The directory that the first relative path starts from.
    pub base: Told,
    /// The path that the call is about.
    pub path: [u8; CALL_PATH],
    /// The second path of calls that have two.
    pub other_path: [u8; CALL_PATH],
}

/// `EPERM`, as a bit of [`CallShape::errnos`].
pub const CALL_EPERM: u8 = 1;
/// `EACCES`.
pub const CALL_EACCES: u8 = 2;
/// `EXDEV`, which Landlock answers where a move or a link would gain rights.
pub const CALL_EXDEV: u8 = 4;
/// None: what was asked for was done. Told while a command is learned from.
pub const CALL_DONE: u8 = 8;

/// The working directory, in the place of an argument's number.
pub const CALL_WORKDIR: u8 = 7;

/// What the kernel program must know of a system call. Arguments count from 1; zero is none.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct CallShape {
    /// Which answers are told; zero for a call that nothing is told of.
    pub errnos: u8,
    /// The descriptor that `path` starts from, or [`CALL_WORKDIR`].
    pub directory: u8,
    /// The path.
    pub path: u8,
    /// As `directory`, of `other_path`; zero where that is told as it was given.
    pub other_directory: u8,
    /// The second path.
    pub other_path: u8,
    /// A pointer to 64 bits that are told in place of the last argument.
    pub inner: u8,
    /// Bytes in front of the path: it is a socket address's, and only Unix addresses are told.
    pub skip: u8,
    /// One where that pointer is to a message, whose first word points to the address: it then stands for it.
    pub in_message: u8,
}

/// A program start.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskEvent {
    /// Common part; `exe` is the program that runs from here on.
    pub header: Header,
    /// Thread group of the parent.
    pub parent: u32,
    /// Bytes that the program was started with, each argument with a NUL; `arguments` has fewer than
    /// [`ARGUMENTS`] of them; zero where they could not be read.
    pub arguments_bytes: u32,
    /// The path that exec was given, NUL-terminated; for a script the script's.
    pub path: [u8; SCRIPT_PATH],
    /// For a script the path of its interpreter, NUL-terminated; else empty.
    pub interpreter: [u8; SCRIPT_PATH],
    /// What it was started with. Behind `arguments_bytes` is what the ring held before.
    pub arguments: [u8; ARGUMENTS],
}

//! The system calls that a sandboxed program is refused: one row each, with its reason.
//! Everything else is allowed; the rows are the review, and `clawbox doctor` can print them.

use nix::libc::{self, c_long};

/// One refused system call.
#[derive(Debug, Clone, Copy)]
pub struct Denial {
    /// libc's name for the number, `SYS_…`.
    symbol: &'static str,
    /// The number on this architecture.
    pub number: i64,
    /// Which calls of it are refused.
    pub when: When,
    /// What the caller gets instead.
    pub errno: i32,
    /// Why no agent needs it, or what it would open.
    pub why: &'static str,
}

impl Denial {
    /// The name that `man 2` uses.
    pub fn name(&self) -> &'static str {
        self.symbol.strip_prefix("SYS_").unwrap_or(self.symbol)
    }

    /// Whether the filter refuses a call with these arguments.
    #[must_use]
    pub fn refuses(&self, arguments: &[u64; 6]) -> bool {
        match self.when {
            When::Always => true,
            When::Any(alternatives) => alternatives
                .iter()
                .any(|all| all.iter().all(|condition| condition.holds(arguments))),
        }
    }
}

impl Condition {
    fn holds(&self, arguments: &[u64; 6]) -> bool {
        // Arguments of 32 bits, as the filter compares them.
        let argument = arguments.get(usize::from(self.argument)).map(|all| *all as u32);
        argument.is_some_and(|argument| match self.test {
            Test::Is(value) => argument == value,
            Test::Not(value) => argument != value,
            Test::Bits { mask, value } => argument & mask == value,
        })
    }
}

/// Which calls a row refuses.
#[derive(Debug, Clone, Copy)]
pub enum When {
    /// Every call.
    Always,
    /// A call for which all conditions of at least one of these lists hold.
    Any(&'static [&'static [Condition]]),
}

/// One test of one argument. Every argument tested here is a C `int` or `unsigned int` in the
/// kernel (or is cut down to one), so 32 bits are compared: with 64, garbage in the upper half
/// would make a forbidden value look like another.
#[derive(Debug, Clone, Copy)]
pub struct Condition {
    /// Position of the argument, from 0.
    pub argument: u8,
    /// What must hold for it.
    pub test: Test,
}

/// What must hold for an argument.
#[derive(Debug, Clone, Copy)]
pub enum Test {
    /// It is this value.
    Is(u32),
    /// It is any other value.
    Not(u32),
    /// Under `mask` it is `value`.
    Bits {
        /// The bits looked at.
        mask: u32,
        /// What they must be.
        value: u32,
    },
}

const fn is(argument: u8, value: i32) -> Condition {
    Condition { argument, test: Test::Is(value as u32) }
}

const fn not(argument: u8, value: i32) -> Condition {
    Condition { argument, test: Test::Not(value as u32) }
}

const fn bits(argument: u8, mask: i32, value: i32) -> Condition {
    Condition { argument, test: Test::Bits { mask: mask as u32, value: value as u32 } }
}

const fn set(argument: u8, flag: i32) -> Condition {
    bits(argument, flag, flag)
}

macro_rules! always {
    ($($symbol:ident $why:literal)*) => {
        &[$(Denial {
            symbol: stringify!($symbol),
            number: number::$symbol as i64,
            when: When::Always,
            errno: libc::EPERM,
            why: $why,
        }),*]
    };
}

macro_rules! sometimes {
    ($($symbol:ident $errno:ident $when:expr, $why:literal)*) => {
        &[$(Denial {
            symbol: stringify!($symbol),
            number: number::$symbol as i64,
            when: $when,
            errno: libc::$errno,
            why: $why,
        }),*]
    };
}

/// Numbers from libc, and the few that it does not have yet.
mod number {
    pub use nix::libc::*;
    /// Since 6.15; one number on every architecture, as all since 5.1.
    #[expect(non_upper_case_globals, reason = "libc spells its numbers like this")]
    pub const SYS_open_tree_attr: super::c_long = 467;
}

/// Every refused call.
pub fn denials() -> impl Iterator<Item = &'static Denial> {
    ALWAYS.iter().chain(ONLY_HERE).chain(SOMETIMES)
}

const ALWAYS: &[Denial] = always! {
    // Ways to act that the hooks or this filter would not see.
    SYS_io_uring_setup "a ring does socket and file work in kernel threads, past this filter"
    SYS_io_uring_enter "as io_uring_setup, for a ring that was inherited"
    SYS_io_uring_register "as io_uring_setup, for a ring that was inherited"
    SYS_bpf "loads programs and reaches the enforcer's own maps and links by id"
    SYS_userfaultfd "stalls the kernel in the middle of a copy: the usual lever for exploits"
    SYS_perf_event_open "large kernel surface; observes other processes and the kernel"
    SYS_fanotify_init "watches directories that Landlock does not let it read"
    // Reaching into another process and so into another identity.
    SYS_ptrace "takes over another process, and with it that binary's rights"
    SYS_process_vm_readv "reads another process's memory"
    SYS_process_vm_writev "writes another process's memory"
    SYS_pidfd_getfd "takes an open socket or file out of another process"
    SYS_kcmp "compares kernel addresses of two processes"
    // The view of the file system that paths in the policy are about.
    SYS_mount "changes what a path means"
    SYS_umount2 "uncovers what a mount hides"
    SYS_pivot_root "changes what a path means"
    SYS_chroot "changes what a path means"
    SYS_fsopen "mount by the newer interface"
    SYS_fsconfig "mount by the newer interface"
    SYS_fsmount "mount by the newer interface"
    SYS_fspick "mount by the newer interface"
    SYS_move_mount "mount by the newer interface"
    SYS_open_tree "mount by the newer interface"
    SYS_open_tree_attr "mount by the newer interface"
    SYS_mount_setattr "makes a read-only mount writable"
    SYS_open_by_handle_at "opens by inode number, past every directory's permissions"
    SYS_setns "enters another namespace"
    // Keys belong to the user, not to the sandbox.
    SYS_keyctl "reads and changes keys that other processes of this user hold"
    SYS_add_key "stores keys that outlive the sandbox; history of kernel exploits"
    SYS_request_key "finds other processes' keys and starts a helper outside the sandbox"
    // Administration of the host. Capabilities forbid most of it; this holds without them.
    SYS_kexec_load "replaces the kernel"
    SYS_kexec_file_load "replaces the kernel"
    SYS_init_module "loads kernel code"
    SYS_finit_module "loads kernel code"
    SYS_delete_module "unloads kernel code"
    SYS_reboot "administration of the host"
    SYS_swapon "administration of the host"
    SYS_swapoff "administration of the host"
    SYS_acct "writes a file of the caller's choice at every exit on the host"
    SYS_quotactl "administration of the host"
    SYS_quotactl_fd "administration of the host"
    SYS_settimeofday "moves the clock that certificates and audit records depend on"
    SYS_clock_settime "moves the clock that certificates and audit records depend on"
    SYS_sethostname "administration of the host"
    SYS_setdomainname "administration of the host"
    SYS_syslog "reads or clears the kernel log: addresses, and traces of denials"
    SYS_vhangup "hangs up the terminal that clawbox itself runs on"
    SYS_nfsservctl "removed from the kernel long ago; nothing calls it"
    SYS_lookup_dcookie "removed from the kernel; turned numbers into paths"
};

#[cfg(target_arch = "x86_64")]
const ONLY_HERE: &[Denial] = always! {
    SYS_iopl "direct access to hardware ports"
    SYS_ioperm "direct access to hardware ports"
    SYS_modify_ldt "segments for 16-bit code; history of kernel exploits"
    SYS_uselib "loads a library by a path from before ELF; executes past execve"
    SYS_ustat "obsolete; nothing calls it"
    SYS_sysfs "obsolete; nothing calls it"
    SYS__sysctl "obsolete; nothing calls it"
};

#[cfg(not(target_arch = "x86_64"))]
const ONLY_HERE: &[Denial] = &[];

const SOMETIMES: &[Denial] = sometimes! {
    SYS_socket EPERM When::Any(SOCKET),
        "only AF_UNIX, TCP and UDP over IPv4 and IPv6, and route netlink; nothing raw"
    SYS_socketpair EPERM When::Any(&[&[not(0, libc::AF_UNIX)]]),
        "only AF_UNIX, as for socket"
    SYS_setsockopt EPERM When::Any(SETSOCKOPT),
        "a source route sends packets to another host than the one that connect was judged for; \
         an upper-layer protocol turns a TCP socket into something else"
    SYS_sendto EOPNOTSUPP When::Any(&[&[set(3, libc::MSG_FASTOPEN)]]),
        "connects without connect(), which Landlock does not see; programs then use connect()"
    SYS_sendmsg EOPNOTSUPP When::Any(&[&[set(2, libc::MSG_FASTOPEN)]]),
        "as sendto"
    SYS_sendmmsg EOPNOTSUPP When::Any(&[&[set(3, libc::MSG_FASTOPEN)]]),
        "as sendto"
    SYS_unshare EPERM When::Any(UNSHARE),
        "a new user namespace gives back capabilities; the others change what names mean"
    SYS_clone EPERM When::Any(CLONE),
        "as unshare"
    SYS_clone3 ENOSYS When::Always,
        "its flags lie in memory, where a filter cannot look; libc falls back to clone"
    SYS_execveat EPERM When::Any(&[&[set(4, libc::AT_EMPTY_PATH)]]),
        "executes a descriptor that needs no name: a memfd or a deleted file"
    SYS_ioctl EPERM When::Any(IOCTL),
        "types into, or takes over, the terminal that the sandbox shares with its user"
    SYS_prctl EPERM When::Any(&[&[is(0, libc::PR_SET_MM)]]),
        "rewrites what /proc says about the process, its executable included"
    SYS_personality EPERM When::Any(&[&[not(0, PERSONALITY_READ), not(0, 0)]]),
        "turns off address randomisation or non-executable memory; reading it is allowed"
    SYS_prlimit64 EPERM When::Any(&[&[not(0, 0)]]),
        "changes limits of other processes of the same user, also in other sandboxes"
};

/// 0xffffffff asks personality(2) for the current value.
const PERSONALITY_READ: i32 = -1;

/// Condition "AF_INET or AF_INET6", which differ in one bit.
const INET: Condition = bits(0, !(libc::AF_INET ^ libc::AF_INET6), libc::AF_INET);
const _: () = assert!((libc::AF_INET ^ libc::AF_INET6).count_ones() == 1);
const _: () = assert!(libc::AF_INET & (libc::AF_INET ^ libc::AF_INET6) == 0);

/// The kernel's SOCK_TYPE_MASK: what is left of `type` without SOCK_CLOEXEC and SOCK_NONBLOCK.
const TYPE: i32 = 0xf;
const _: () = assert!(libc::SOCK_STREAM == 1 && libc::SOCK_DGRAM == 2);

const SOCKET: &[&[Condition]] = &[
    &[
        not(0, libc::AF_UNIX),
        not(0, libc::AF_INET),
        not(0, libc::AF_INET6),
        not(0, libc::AF_NETLINK),
    ],
    &[is(0, libc::AF_NETLINK), not(2, libc::NETLINK_ROUTE)],
    // Any type but SOCK_STREAM (1) and SOCK_DGRAM (2): 8…15, 4…7, 3, 0.
    &[INET, bits(1, 0x8, 0x8)],
    &[INET, bits(1, 0xc, 0x4)],
    &[INET, bits(1, TYPE, libc::SOCK_RAW)],
    &[INET, bits(1, TYPE, 0)],
    // Among what is left: ping sockets, SCTP, UDP-Lite, MPTCP and SMC by protocol number.
    &[INET, not(2, libc::IPPROTO_IP), not(2, libc::IPPROTO_TCP), not(2, libc::IPPROTO_UDP)],
];

/// As [`SOCKET`], where a policy opens echo requests: which of them go on the hooks say.
pub(super) const SOCKET_OR_PING: &[&[Condition]] = &[
    SOCKET[0],
    SOCKET[1],
    SOCKET[2],
    SOCKET[3],
    SOCKET[4],
    SOCKET[5],
    &[
        INET,
        not(2, libc::IPPROTO_IP),
        not(2, libc::IPPROTO_TCP),
        not(2, libc::IPPROTO_UDP),
        not(2, libc::IPPROTO_ICMP),
        not(2, libc::IPPROTO_ICMPV6),
    ],
];
const _: () = assert!(SOCKET.len() == SOCKET_OR_PING.len());

const SETSOCKOPT: &[&[Condition]] = &[
    &[is(1, libc::IPPROTO_IP), is(2, libc::IP_OPTIONS)],
    &[is(1, libc::IPPROTO_IPV6), is(2, libc::IPV6_RTHDR)],
    &[is(1, libc::IPPROTO_IPV6), is(2, IPV6_2292PKTOPTIONS)],
    &[is(1, libc::IPPROTO_TCP), is(2, libc::TCP_ULP)],
];

/// From linux/in6.h; libc leaves it out.
const IPV6_2292PKTOPTIONS: i32 = 6;

const IOCTL: &[&[Condition]] =
    &[&[is(1, libc::TIOCSTI as i32)], &[is(1, libc::TIOCLINUX as i32)], &[is(1, TIOCSETD)]];

/// From asm-generic/ioctls.h; a line discipline is kernel code chosen by number.
const TIOCSETD: i32 = 0x5423;

const CLONE: &[&[Condition]] = &[
    &[set(0, libc::CLONE_NEWUSER)],
    &[set(0, libc::CLONE_NEWNS)],
    &[set(0, libc::CLONE_NEWPID)],
    &[set(0, libc::CLONE_NEWNET)],
    &[set(0, libc::CLONE_NEWIPC)],
    &[set(0, libc::CLONE_NEWUTS)],
    &[set(0, libc::CLONE_NEWCGROUP)],
];

/// As [`CLONE`], and CLONE_NEWTIME, which for clone(2) is part of the exit signal.
const UNSHARE: &[&[Condition]] = &[
    &[set(0, libc::CLONE_NEWUSER)],
    &[set(0, libc::CLONE_NEWNS)],
    &[set(0, libc::CLONE_NEWPID)],
    &[set(0, libc::CLONE_NEWNET)],
    &[set(0, libc::CLONE_NEWIPC)],
    &[set(0, libc::CLONE_NEWUTS)],
    &[set(0, libc::CLONE_NEWCGROUP)],
    &[set(0, 0x80)],
];

//! System calls that the filter refuses, one row each, made for real.
//! A row is a sentence, the call, and the answer that it must get.

use nix::libc::*;

use super::*;

type Row = (&'static str, c_long, [i64; 6], i32);

const fn row(says: &'static str, number: c_long, args: [i64; 3], errno: i32) -> Row {
    (says, number, [args[0], args[1], args[2], 0, 0, 0], errno)
}

const fn socket(says: &'static str, family: i32, kind: i32, protocol: i32) -> Row {
    row(says, SYS_socket, [family as i64, kind as i64, protocol as i64], EPERM)
}

const AF_SMC: i32 = 43;
/// libc's own is marked deprecated.
const SOCK_PACKET: i32 = 10;
const IPPROTO_SMC: i32 = 256;
const AF_DECNET: i32 = 12;

const SOCKETS: &[Row] = &[
    socket("a packet socket", AF_PACKET, SOCK_RAW, 0x0300),
    socket("a vsock socket", AF_VSOCK, SOCK_STREAM, 0),
    socket("a kernel crypto socket", AF_ALG, SOCK_SEQPACKET, 0),
    socket("an XDP socket", AF_XDP, SOCK_RAW, 0),
    socket("a Bluetooth socket", AF_BLUETOOTH, SOCK_RAW, 1),
    socket("a CAN socket", AF_CAN, SOCK_RAW, 1),
    socket("a TIPC socket", AF_TIPC, SOCK_RDM, 0),
    socket("an RDS socket", AF_RDS, SOCK_SEQPACKET, 0),
    socket("an RxRPC socket", AF_RXRPC, SOCK_DGRAM, AF_INET),
    socket("a KCM socket", 41, SOCK_DGRAM, 0),
    socket("a QIPCRTR socket", 42, SOCK_DGRAM, 0),
    socket("an SMC socket", AF_SMC, SOCK_STREAM, 0),
    socket("an SMC socket through AF_INET", AF_INET, SOCK_STREAM, IPPROTO_SMC),
    socket("a PPP-over-X socket", AF_PPPOX, SOCK_STREAM, 1),
    socket("a DECnet socket", AF_DECNET, SOCK_STREAM, 0),
    socket("a PF_KEY socket", AF_KEY, SOCK_RAW, 2),
    socket("a socket of no family", AF_UNSPEC, SOCK_DGRAM, 0),
    socket("a family past the last one", 4000, SOCK_DGRAM, 0),
    socket("a raw IPv4 socket", AF_INET, SOCK_RAW, IPPROTO_ICMP),
    socket("a raw IPv6 socket", AF_INET6, SOCK_RAW, IPPROTO_ICMPV6),
    socket("a raw socket with flags", AF_INET, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, 255),
    socket("the old way to a packet socket", AF_INET, SOCK_PACKET, 0x0300),
    socket("a reliable datagram socket", AF_INET, SOCK_RDM, 0),
    socket("a DCCP socket", AF_INET, SOCK_DCCP, IPPROTO_DCCP),
    socket("an SCTP stream", AF_INET, SOCK_STREAM, IPPROTO_SCTP),
    socket("an SCTP sequence", AF_INET6, SOCK_SEQPACKET, IPPROTO_SCTP),
    socket("an IPv4 ping socket", AF_INET, SOCK_DGRAM, IPPROTO_ICMP),
    socket("an IPv6 ping socket", AF_INET6, SOCK_DGRAM, IPPROTO_ICMPV6),
    socket("a UDP-Lite socket", AF_INET, SOCK_DGRAM, IPPROTO_UDPLITE),
    socket("a multipath TCP socket", AF_INET, SOCK_STREAM, IPPROTO_MPTCP),
    socket("an L2TP socket", AF_INET, SOCK_DGRAM, 115),
    socket("netlink for the firewall", AF_NETLINK, SOCK_RAW, NETLINK_NETFILTER),
    socket("netlink for IPsec", AF_NETLINK, SOCK_RAW, NETLINK_XFRM),
    socket("netlink for socket diagnosis", AF_NETLINK, SOCK_RAW, 4),
    socket("netlink for device events", AF_NETLINK, SOCK_DGRAM, NETLINK_KOBJECT_UEVENT),
    socket("netlink for audit", AF_NETLINK, SOCK_RAW, NETLINK_AUDIT),
    socket("generic netlink", AF_NETLINK, SOCK_RAW, NETLINK_GENERIC),
    row("a TIPC socket pair", SYS_socketpair, [AF_TIPC as i64, SOCK_RDM as i64, 0], EPERM),
];

/// Above what the kernel looks at in an `int`.
const GARBAGE: i64 = 0x1_0000_0000;

const CALLS: &[Row] = &[
    row("io_uring", SYS_io_uring_setup, [8, 0, 0], EPERM),
    row("a bpf command", SYS_bpf, [0, 0, 0], EPERM),
    row("PTRACE_TRACEME", SYS_ptrace, [0, 0, 0], EPERM),
    row("PTRACE_SEIZE of itself", SYS_ptrace, [0x4206, 0, 0], EPERM),
    row("reading another's memory", SYS_process_vm_readv, [1, 0, 0], EPERM),
    row("writing another's memory", SYS_process_vm_writev, [1, 0, 0], EPERM),
    row("taking another's descriptor", SYS_pidfd_getfd, [0, 0, 0], EPERM),
    row("comparing two processes", SYS_kcmp, [1, 1, 0], EPERM),
    row("mount", SYS_mount, [0, 0, 0], EPERM),
    row("umount", SYS_umount2, [0, 0, 0], EPERM),
    row("chroot", SYS_chroot, [0, 0, 0], EPERM),
    row("pivot_root", SYS_pivot_root, [0, 0, 0], EPERM),
    row("fsopen", SYS_fsopen, [0, 0, 0], EPERM),
    row("move_mount", SYS_move_mount, [-1, 0, -1], EPERM),
    row("open_tree", SYS_open_tree, [-1, 0, 0], EPERM),
    row("mount_setattr", SYS_mount_setattr, [-1, 0, 0], EPERM),
    row("setns", SYS_setns, [-1, 0, 0], EPERM),
    row("opening by handle", SYS_open_by_handle_at, [-1, 0, 0], EPERM),
    row("keyctl", SYS_keyctl, [0, -3, 0], EPERM),
    row("add_key", SYS_add_key, [0, 0, 0], EPERM),
    row("request_key", SYS_request_key, [0, 0, 0], EPERM),
    row("userfaultfd", SYS_userfaultfd, [1, 0, 0], EPERM),
    row("perf_event_open", SYS_perf_event_open, [0, 0, -1], EPERM),
    row("fanotify", SYS_fanotify_init, [0, 0, 0], EPERM),
    row("kexec_load", SYS_kexec_load, [0, 0, 0], EPERM),
    row("init_module", SYS_init_module, [0, 0, 0], EPERM),
    row("finit_module", SYS_finit_module, [-1, 0, 0], EPERM),
    row("the kernel log", SYS_syslog, [10, 0, 0], EPERM),
    row("a user namespace", SYS_unshare, [CLONE_NEWUSER as i64, 0, 0], EPERM),
    row("a user namespace, with garbage", SYS_unshare, [GARBAGE | 0x1000_0000, 0, 0], EPERM),
    row("a network namespace", SYS_unshare, [CLONE_NEWNET as i64, 0, 0], EPERM),
    row("a time namespace", SYS_unshare, [0x80, 0, 0], EPERM),
    row("clone into a mount namespace", SYS_clone, [(CLONE_NEWNS | SIGCHLD) as i64, 0, 0], EPERM),
    row("clone into a user namespace", SYS_clone, [(CLONE_NEWUSER | SIGCHLD) as i64, 0, 0], EPERM),
    row("clone3", SYS_clone3, [0, 0, 0], ENOSYS),
    row("typing into the terminal", SYS_ioctl, [0, TIOCSTI as i64, 0], EPERM),
    row("typing, with garbage", SYS_ioctl, [0, GARBAGE | TIOCSTI as i64, 0], EPERM),
    row("pasting into the console", SYS_ioctl, [0, TIOCLINUX as i64, 0], EPERM),
    row("changing the line discipline", SYS_ioctl, [0, 0x5423, 0], EPERM),
    row("renaming its executable", SYS_prctl, [PR_SET_MM as i64, 13, 0], EPERM),
    row("no randomisation", SYS_personality, [ADDR_NO_RANDOMIZE as i64, 0, 0], EPERM),
    row("executable data", SYS_personality, [READ_IMPLIES_EXEC as i64, 0, 0], EPERM),
    row("limits of process 1", SYS_prlimit64, [1, RLIMIT_NOFILE as i64, 0], EPERM),
    row("IPv4 source routes", SYS_setsockopt, [-1, IPPROTO_IP as i64, IP_OPTIONS as i64], EPERM),
    row("IPv6 source routes", SYS_setsockopt, [-1, IPPROTO_IPV6 as i64, 57], EPERM),
    row("an upper-layer protocol", SYS_setsockopt, [-1, 6, TCP_ULP as i64], EPERM),
    ("execution without a name", SYS_execveat, [-1, 0, 0, 0, AT_EMPTY_PATH as i64, 0], EPERM),
    ("connecting by sendto", SYS_sendto, [-1, 0, 0, MSG_FASTOPEN as i64, 0, 0], EOPNOTSUPP),
    row("connecting by sendmsg", SYS_sendmsg, [-1, 0, MSG_FASTOPEN as i64], EOPNOTSUPP),
    ("connecting by sendmmsg", SYS_sendmmsg, [-1, 0, 0, MSG_FASTOPEN as i64, 0, 0], EOPNOTSUPP),
];

fn check(rows: &[Row]) {
    if not_root() {
        return;
    }
    let (prepared, _) = prepare(&everyday(&[])).unwrap();
    let wrong: Vec<_> = rows
        .iter()
        .map(|(says, number, args, errno)| {
            (says, inside(&prepared, &|| raw(*number, *args)), refused(*errno))
        })
        .filter(|(_, got, want)| got != want)
        .collect();
    assert!(wrong.is_empty(), "(what, got, want): {wrong:#?}");
}

#[test]
fn every_odd_socket_is_refused() {
    check(SOCKETS);
}

#[test]
fn every_dangerous_call_is_refused() {
    check(CALLS);
}

#[test]
fn every_row_of_the_table_is_refused_by_the_kernel() {
    if not_root() {
        return;
    }
    let (prepared, _) = prepare(&everyday(&[])).unwrap();
    for denial in syscalls::denials() {
        if matches!(denial.when, syscalls::When::Always) {
            let got = inside(&prepared, &|| raw(denial.number as c_long, [0; 6]));
            assert_eq!(got, refused(denial.errno), "{}", denial.name());
        }
    }
}

#[test]
fn what_programs_need_next_to_a_refused_call_is_allowed() {
    if not_root() {
        return;
    }
    let (prepared, _) = prepare(&everyday(&[])).unwrap();
    let socket = |family: i32, kind: i32, protocol: i32| {
        (SYS_socket, [family.into(), kind.into(), protocol.into(), 0, 0, 0])
    };
    let allowed = [
        socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0),
        socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, IPPROTO_TCP),
        socket(AF_INET6, SOCK_DGRAM | SOCK_CLOEXEC, IPPROTO_UDP),
        socket(AF_INET, SOCK_DGRAM, IPPROTO_IP),
        socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE),
        (SYS_personality, [0xffff_ffff, 0, 0, 0, 0, 0]),
        (SYS_personality, [0; 6]),
        (SYS_prlimit64, [0, RLIMIT_NOFILE.into(), 0, 0, 0, 0]),
        (SYS_unshare, [(CLONE_FS | CLONE_FILES).into(), 0, 0, 0, 0, 0]),
        (SYS_prctl, [PR_SET_NAME.into(), c"agent".as_ptr() as i64, 0, 0, 0, 0]),
        (SYS_memfd_create, [c"memory".as_ptr() as i64, 0, 0, 0, 0, 0]),
        (SYS_landlock_create_ruleset, [0, 0, 1, 0, 0, 0]),
    ];
    for (number, args) in allowed {
        let got = inside(&prepared, &|| raw(number, args));
        assert!(matches!(got, Outcome::Returned(0..)), "{number} {args:x?}: {got:?}");
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn an_x32_call_is_refused() {
    if not_root() {
        return;
    }
    let (prepared, _) = prepare(&everyday(&[])).unwrap();
    // A kernel without x32 says ENOSYS, and that only after the filter has passed it.
    let x32 = |number: c_long| 0x4000_0000 + number;
    assert_eq!(in_child(&|| raw(x32(SYS_getpid), [0; 6])), refused(ENOSYS));
    assert_eq!(inside(&prepared, &|| raw(x32(SYS_getpid), [0; 6])), refused(EPERM));
    assert_eq!(inside(&prepared, &|| raw(x32(SYS_socket), [2, 1, 0, 0, 0, 0])), refused(EPERM));
}

#[cfg(target_arch = "x86_64")]
#[test]
fn an_i386_call_ends_the_process() {
    if not_root() {
        return;
    }
    let (prepared, _) = prepare(&everyday(&[])).unwrap();
    let getpid = || {
        let result: i64;
        // SAFETY: call 20 of the i386 table is getpid: no arguments, no memory.
        unsafe {
            std::arch::asm!("int 0x80", inlateout("rax") 20i64 => result,
                out("r8") _, out("r9") _, out("r10") _, out("r11") _);
        }
        result
    };
    if !matches!(in_child(&getpid), Outcome::Returned(1..)) {
        eprintln!("this kernel has no i386 calls; the filter still kills them");
    }
    assert_eq!(inside(&prepared, &getpid), Outcome::Killed(SIGSYS));
}

//! What the child still is after it entered the backstops: user, groups, capabilities, limits.
//! And what of others it can reach: signals, memory, sockets of the same user.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::Arc;

use nix::libc::*;

use super::*;

fn output(request: &Request, program: &str, args: &[&str]) -> String {
    let (prepared, _) = prepare(request).unwrap();
    let prepared = Arc::new(prepared);
    let entered = Arc::clone(&prepared);
    let mut command = Command::new(program);
    command.args(args).env_clear().current_dir("/").stdin(Stdio::null());
    // SAFETY: `enter` is async-signal-safe.
    unsafe { command.pre_exec(move || entered.entry.enter()) };
    let output = command.output().map_err(|error| prepared.explain(error)).unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn field(status: &str, name: &str) -> String {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {name} in {status}"))
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
}

#[test]
fn nothing_of_root_is_left() {
    if not_root() {
        return;
    }
    let status = output(&everyday(&[]), "/bin/cat", &["/proc/self/status"]);
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(field(&status, set), "0000000000000000", "{set}");
    }
    let user = nobody();
    assert_eq!(field(&status, "Uid"), vec![user.uid().to_string(); 4].join(" "));
    assert_eq!(field(&status, "Gid"), vec![user.gid().to_string(); 4].join(" "));
    assert_eq!(field(&status, "Groups"), user.gid().to_string());
    assert_eq!(field(&status, "NoNewPrivs"), "1");
    assert_eq!(field(&status, "Seccomp"), "2");
}

#[test]
fn root_that_is_kept_has_no_capabilities_either() {
    if not_root() {
        return;
    }
    let request = Request { user: None, ..everyday(&[]) };
    let status = output(&request, "/bin/cat", &["/proc/self/status"]);
    assert_eq!(field(&status, "Uid"), "0 0 0 0");
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(field(&status, set), "0000000000000000", "{set}");
    }
    let (_, report) = prepare(&request).unwrap();
    let user = report.layers.iter().find(|layer| layer.layer == "user").unwrap();
    assert_eq!(user.state, LayerState::Absent);
    assert!(user.why.contains("runs as root: not dropped"));
}

#[test]
fn there_are_no_core_files_and_no_inherited_descriptors() {
    if not_root() {
        return;
    }
    let limits = output(&everyday(&[]), "/bin/cat", &["/proc/self/limits"]);
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().skip(4).collect::<Vec<_>>(), ["0", "0", "bytes"]);

    // A descriptor without close-on-exec, as a careless caller may leave it.
    let leaked = std::fs::File::open("/etc/passwd").unwrap();
    nix::fcntl::fcntl(&leaked, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).unwrap();
    let open = output(&everyday(&[]), "/bin/ls", &["/proc/self/fd"]);
    assert_eq!(open.split_whitespace().collect::<Vec<_>>(), ["0", "1", "2", "3"], "3 is ls's own");
}

#[test]
fn there_is_no_way_back_to_root() {
    if not_root() {
        return;
    }
    let (prepared, _) = prepare(&everyday(&[])).unwrap();
    for number in [SYS_setuid, SYS_setgid, SYS_setfsuid] {
        let got = inside(&prepared, &|| raw(number, [0; 6]));
        // setfsuid cannot fail: it answers with the id that still holds.
        let want = if number == SYS_setfsuid {
            Outcome::Returned(nobody().uid().into())
        } else {
            refused(EPERM)
        };
        assert_eq!(got, want, "{number}");
    }
    let both = || raw(SYS_setresuid, [-1, 0, -1, 0, 0, 0]);
    assert_eq!(inside(&prepared, &both), refused(EPERM));
    let none: i64 = 0;
    let setgroups = || raw(SYS_setgroups, [1, &raw const none as i64, 0, 0, 0, 0]);
    assert_eq!(inside(&prepared, &setgroups), refused(EPERM));
}

#[test]
fn a_process_of_the_same_user_outside_cannot_be_signalled() {
    if not_root() || landlock::kernel_abi().unwrap_or(0) < landlock::since::SCOPES {
        return;
    }
    let user = nobody();
    let mut other =
        Command::new("/bin/sleep").arg("60").uid(user.uid()).gid(user.gid()).spawn().unwrap();
    let pid = i64::from(other.id());
    let (prepared, _) = prepare(&everyday(&[])).unwrap();
    let kill = || raw(SYS_kill, [pid, 0, 0, 0, 0, 0]);
    let pidfd_kill = || match raw(SYS_pidfd_open, [pid, 0, 0, 0, 0, 0]) {
        fd @ 0.. => raw(SYS_pidfd_send_signal, [fd, SIGTERM.into(), 0, 0, 0, 0]),
        error => error,
    };
    let limits = || raw(SYS_prlimit64, [pid, RLIMIT_NOFILE.into(), 0, 0, 0, 0]);
    let outcomes = [
        (control(&user, &kill), inside(&prepared, &kill)),
        (Outcome::Returned(0), inside(&prepared, &pidfd_kill)),
        (control(&user, &limits), inside(&prepared, &limits)),
    ];
    let own = || raw(SYS_kill, [raw(SYS_getpid, [0; 6]), 0, 0, 0, 0, 0]);
    let itself = inside(&prepared, &own);
    other.kill().unwrap();
    other.wait().unwrap();
    for (outside, within) in outcomes {
        assert_eq!((outside, within), (Outcome::Returned(0), refused(EPERM)));
    }
    assert_eq!(itself, Outcome::Returned(0));
}

#[test]
fn proc_of_a_process_of_the_same_user_outside_stays_closed() {
    if not_root() {
        return;
    }
    let user = nobody();
    let mut other =
        Command::new("/bin/sleep").arg("60").uid(user.uid()).gid(user.gid()).spawn().unwrap();
    let path = std::ffi::CString::new(format!("/proc/{}/environ", other.id())).unwrap();
    let (prepared, _) = prepare(&everyday(&[])).unwrap();
    let open = || raw(SYS_openat, [AT_FDCWD.into(), path.as_ptr() as i64, 0, 0, 0, 0]);
    let (outside, within) = (control(&user, &open), inside(&prepared, &open));
    other.kill().unwrap();
    other.wait().unwrap();
    assert!(matches!(outside, Outcome::Returned(0..)), "{outside:?}");
    assert_eq!(within, refused(EACCES));
}

#[test]
fn an_abstract_socket_outside_cannot_be_reached() {
    if not_root() || landlock::kernel_abi().unwrap_or(0) < landlock::since::SCOPES {
        return;
    }
    let name = format!("clawbox-test-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).unwrap();
    let _listener = UnixListener::bind_addr(&address).unwrap();
    // SAFETY: all zeroes is a valid sockaddr_un.
    let mut to: sockaddr_un = unsafe { std::mem::zeroed() };
    to.sun_family = AF_UNIX as sa_family_t;
    for (slot, byte) in to.sun_path[1..].iter_mut().zip(name.bytes()) {
        *slot = byte as c_char;
    }
    let length = (std::mem::offset_of!(sockaddr_un, sun_path) + 1 + name.len()) as i64;
    let connect = || {
        let fd = raw(SYS_socket, [AF_UNIX.into(), SOCK_STREAM.into(), 0, 0, 0, 0]);
        raw(SYS_connect, [fd, &raw const to as i64, length, 0, 0, 0])
    };
    let (prepared, _) = prepare(&everyday(&[])).unwrap();
    assert_eq!(control(&nobody(), &connect), Outcome::Returned(0));
    assert_eq!(inside(&prepared, &connect), refused(EPERM));
}

#[test]
fn shared_memory_of_others_is_not_there() {
    if not_root() {
        return;
    }
    let key = 0x0c1a_0000 | i64::from(std::process::id() & 0xffff);
    let id = raw(SYS_shmget, [key, 4096, (IPC_CREAT | 0o666).into(), 0, 0, 0]);
    assert!(id >= 0);
    let find = || raw(SYS_shmget, [key, 4096, 0, 0, 0, 0]);
    let (prepared, _) = prepare(&everyday(&[])).unwrap();
    let (outside, within) = (control(&nobody(), &find), inside(&prepared, &find));
    raw(SYS_shmctl, [id, IPC_RMID.into(), 0, 0, 0, 0]);
    assert_eq!((outside, within), (Outcome::Returned(id), refused(ENOENT)));
}

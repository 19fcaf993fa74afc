//! Files and ports: what Landlock lets the child do, and what it keeps from it.
//! Every refused path has a control that shows the file modes alone would have allowed it.

use std::ffi::CString;
use std::net::TcpListener;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;

use nix::libc::*;

use super::*;

struct Tree {
    root: tempfile::TempDir,
}

impl Tree {
    fn new() -> Self {
        let root = open_directory();
        for directory in ["ro", "rw", "outside"] {
            let directory = root.path().join(directory);
            std::fs::create_dir(&directory).unwrap();
            std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o777)).unwrap();
            let file = directory.join("file");
            std::fs::write(&file, "content").unwrap();
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o666)).unwrap();
            std::fs::copy("/bin/true", directory.join("program")).unwrap();
        }
        std::os::unix::fs::symlink(root.path().join("outside/file"), root.path().join("rw/link"))
            .unwrap();
        Self { root }
    }

    fn path(&self, name: &str) -> CString {
        CString::new(self.root.path().join(name).as_os_str().as_bytes()).unwrap()
    }

    fn request(&self) -> Request {
        let mut request = everyday(&[&self.root.path().join("rw")]);
        request.read_only.push(self.root.path().join("ro"));
        request
    }
}

fn open(path: &CString, flags: i32) -> i64 {
    raw(SYS_openat, [AT_FDCWD.into(), path.as_ptr() as i64, flags.into(), 0o644, 0, 0])
}

fn execute(path: &CString) -> i64 {
    let arguments = [path.as_ptr(), std::ptr::null()];
    // On success this never comes back: the program exits 0 and the pipe stays empty.
    raw(SYS_execve, [path.as_ptr() as i64, arguments.as_ptr() as i64, 0, 0, 0, 0])
}

fn two(number: c_long, from: &CString, to: &CString) -> i64 {
    let here = i64::from(AT_FDCWD);
    raw(number, [here, from.as_ptr() as i64, here, to.as_ptr() as i64, 0, 0])
}

#[test]
fn reading_is_allowed_in_both_and_refused_outside() {
    if not_root() {
        return;
    }
    let tree = Tree::new();
    let (prepared, _) = prepare(&tree.request()).unwrap();
    for (name, allowed) in
        [("ro/file", true), ("rw/file", true), ("outside/file", false), ("rw/link", false)]
    {
        let path = tree.path(name);
        let attempt = || open(&path, O_RDONLY);
        assert!(matches!(control(&nobody(), &attempt), Outcome::Returned(0..)), "{name}");
        let got = inside(&prepared, &attempt);
        match allowed {
            true => assert!(matches!(got, Outcome::Returned(0..)), "{name}: {got:?}"),
            false => assert_eq!(got, refused(EACCES), "{name}"),
        }
    }
    let list = tree.path("outside");
    assert_eq!(inside(&prepared, &|| open(&list, O_RDONLY | O_DIRECTORY)), refused(EACCES));
}

#[test]
fn writing_in_any_way_is_refused_in_read_only() {
    if not_root() {
        return;
    }
    let tree = Tree::new();
    let (prepared, report) = prepare(&tree.request()).unwrap();
    let (file, new, mine) = (tree.path("ro/file"), tree.path("ro/new"), tree.path("rw/file"));
    let here = i64::from(AT_FDCWD);
    let at = |number: c_long, path: &CString, rest: [i64; 2]| {
        raw(number, [here, path.as_ptr() as i64, rest[0], rest[1], 0, 0])
    };
    let truncate = || raw(SYS_truncate, [file.as_ptr() as i64, 0, 0, 0, 0, 0]);
    let attempts: &[(&str, &dyn Fn() -> i64)] = &[
        ("open for writing", &|| open(&file, O_WRONLY)),
        ("open to append", &|| open(&file, O_RDWR | O_APPEND)),
        ("create", &|| open(&new, O_WRONLY | O_CREAT)),
        ("unlink", &|| at(SYS_unlinkat, &file, [0, 0])),
        ("mkdir", &|| at(SYS_mkdirat, &new, [0o755, 0])),
        ("mkfifo", &|| at(SYS_mknodat, &new, [(S_IFIFO | 0o644).into(), 0])),
        ("symlink", &|| {
            raw(SYS_symlinkat, [file.as_ptr() as i64, here, new.as_ptr() as i64, 0, 0, 0])
        }),
    ];
    for (what, attempt) in attempts {
        assert_eq!(inside(&prepared, attempt), refused(EACCES), "{what}");
    }
    if report.landlock_abi >= landlock::since::TRUNCATE {
        assert_eq!(inside(&prepared, &truncate), refused(EACCES), "truncate");
    }
    // Between directories of unequal rights, either refusal is Landlock's.
    for (what, number, from, to) in [
        ("rename out", SYS_renameat2, &file, &mine),
        ("rename in", SYS_renameat2, &mine, &file),
        ("link out", SYS_linkat, &file, &tree.path("rw/new")),
    ] {
        let got = inside(&prepared, &|| two(number, from, to));
        assert!([refused(EACCES), refused(EXDEV)].contains(&got), "{what}: {got:?}");
    }
}

#[test]
fn everything_is_allowed_in_read_write() {
    if not_root() {
        return;
    }
    let tree = Tree::new();
    let (prepared, _) = prepare(&tree.request()).unwrap();
    let (new, newer) = (tree.path("rw/new"), tree.path("rw/newer"));
    let attempts: &[(&str, &dyn Fn() -> i64)] = &[
        ("create", &|| open(&new, O_RDWR | O_CREAT | O_TRUNC)),
        ("rename", &|| two(SYS_renameat2, &new, &newer)),
        ("link", &|| two(SYS_linkat, &newer, &new)),
        ("truncate", &|| raw(SYS_truncate, [new.as_ptr() as i64, 3, 0, 0, 0, 0])),
        ("unlink", &|| raw(SYS_unlinkat, [AT_FDCWD.into(), new.as_ptr() as i64, 0, 0, 0, 0])),
    ];
    for (what, attempt) in attempts {
        let got = inside(&prepared, attempt);
        assert!(matches!(got, Outcome::Returned(0..)), "{what}: {got:?}");
    }
}

#[test]
fn programs_run_from_listed_paths_only() {
    if not_root() {
        return;
    }
    let tree = Tree::new();
    let (prepared, _) = prepare(&tree.request()).unwrap();
    let outside = tree.path("outside/program");
    assert_eq!(inside(&prepared, &|| execute(&outside)), refused(EACCES));
    for (name, runs) in [("ro/program", true), ("outside/program", false)] {
        let program = tree.root.path().join(name);
        let (prepared, _) = prepare(&tree.request()).unwrap();
        let status = programs::command(prepared, &program).status();
        assert_eq!(status.is_ok_and(|status| status.success()), runs, "{name}");
    }
}

#[test]
fn a_single_file_gets_a_rule_of_its_own() {
    if not_root() {
        return;
    }
    let tree = Tree::new();
    let mut request = everyday(&[]);
    request.read_only.push(tree.root.path().join("outside/file"));
    let (prepared, report) = prepare(&request).unwrap();
    assert!(report.skipped_paths.is_empty());
    let (file, neighbour) = (tree.path("outside/file"), tree.path("outside/program"));
    assert!(matches!(inside(&prepared, &|| open(&file, O_RDONLY)), Outcome::Returned(0..)));
    assert_eq!(inside(&prepared, &|| open(&file, O_WRONLY)), refused(EACCES));
    assert_eq!(inside(&prepared, &|| open(&neighbour, O_RDONLY)), refused(EACCES));
}

/// sockaddr_in for 127.0.0.1.
fn loopback(port: u16) -> sockaddr_in {
    // SAFETY: all zeroes is a valid sockaddr_in.
    let mut address: sockaddr_in = unsafe { std::mem::zeroed() };
    address.sin_family = AF_INET as sa_family_t;
    address.sin_port = port.to_be();
    address.sin_addr.s_addr = u32::from_ne_bytes([127, 0, 0, 1]);
    address
}

fn on_socket(number: c_long, kind: i32, address: &sockaddr_in) -> i64 {
    let fd = raw(SYS_socket, [AF_INET.into(), kind.into(), 0, 0, 0, 0]);
    raw(number, [fd, &raw const *address as i64, size_of::<sockaddr_in>() as i64, 0, 0, 0])
}

#[test]
fn a_datagram_goes_to_listed_ports_only() {
    if not_root() || landlock::kernel_abi().unwrap_or(0) < landlock::since::UDP {
        return;
    }
    let (prepared, _) = prepare(&Request { connect_ports: vec![8443], ..everyday(&[]) }).unwrap();
    for (port, want) in
        [(8443, Outcome::Returned(1)), (53, Outcome::Returned(1)), (8444, refused(EACCES))]
    {
        let to = loopback(port);
        let send = || {
            let fd = raw(SYS_socket, [AF_INET.into(), SOCK_DGRAM.into(), 0, 0, 0, 0]);
            let length = size_of::<sockaddr_in>() as i64;
            raw(SYS_sendto, [fd, c"x".as_ptr() as i64, 1, 0, &raw const to as i64, length])
        };
        assert_eq!(inside(&prepared, &send), want, "{port}");
    }
}

#[test]
fn a_unix_socket_by_path_needs_read_write() {
    if not_root() || landlock::kernel_abi().unwrap_or(0) < landlock::since::UNIX_SOCKETS {
        return;
    }
    let tree = Tree::new();
    let (prepared, _) = prepare(&tree.request()).unwrap();
    for (name, want) in
        [("rw/s", Outcome::Returned(0)), ("ro/s", refused(EACCES)), ("outside/s", refused(EACCES))]
    {
        let path = tree.root.path().join(name);
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).unwrap();
        // SAFETY: all zeroes is a valid sockaddr_un.
        let mut to: sockaddr_un = unsafe { std::mem::zeroed() };
        to.sun_family = AF_UNIX as sa_family_t;
        for (slot, byte) in to.sun_path.iter_mut().zip(path.as_os_str().as_bytes()) {
            *slot = *byte as c_char;
        }
        let length = size_of::<sockaddr_un>() as i64;
        let connect = || {
            let fd = raw(SYS_socket, [AF_UNIX.into(), SOCK_STREAM.into(), 0, 0, 0, 0]);
            raw(SYS_connect, [fd, &raw const to as i64, length, 0, 0, 0])
        };
        assert_eq!(control(&nobody(), &connect), Outcome::Returned(0), "{name}");
        assert_eq!(inside(&prepared, &connect), want, "{name}");
    }
}

#[test]
fn only_listed_ports_can_be_connected_and_bound() {
    if not_root() || landlock::kernel_abi().unwrap_or(0) < landlock::since::TCP {
        return;
    }
    let listed = TcpListener::bind("127.0.0.1:0").unwrap();
    let unlisted = TcpListener::bind("127.0.0.1:0").unwrap();
    let free = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().port()
    };
    let port = |listener: &TcpListener| listener.local_addr().unwrap().port();
    let request =
        Request { connect_ports: vec![port(&listed)], bind_ports: vec![free], ..everyday(&[]) };
    let (prepared, _) = prepare(&request).unwrap();
    let dial = |port: u16| {
        let address = loopback(port);
        inside(&prepared, &|| on_socket(SYS_connect, SOCK_STREAM, &address))
    };
    assert_eq!(dial(port(&listed)), Outcome::Returned(0));
    assert_eq!(dial(port(&unlisted)), refused(EACCES));
    // DNS over TCP and the sandbox's own listener: nobody listens, but Landlock lets them pass.
    assert_eq!(dial(53), refused(ECONNREFUSED));
    assert_eq!(dial(free), refused(ECONNREFUSED));
    let bind = |port: u16| {
        let address = loopback(port);
        inside(&prepared, &|| on_socket(SYS_bind, SOCK_STREAM, &address))
    };
    assert_eq!(bind(free), Outcome::Returned(0));
    assert_eq!(bind(0), refused(EACCES));
    let udp = loopback(53);
    let question = inside(&prepared, &|| on_socket(SYS_connect, SOCK_DGRAM, &udp));
    assert_eq!(question, Outcome::Returned(0));
}

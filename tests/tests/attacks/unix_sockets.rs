//! Unix sockets: which of the host's a sandbox reaches. Landlock refuses some before the hooks are
//! asked, on the kernels that have it; what the attacker sees is the same.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};

use clawbox_tests::clawbox::Finished;
use clawbox_tests::layer::{self, Layer};

use crate::scene::{Scene, attempts, denials};

/// Services of the host: a stream and a datagram socket.
struct Services {
    streams: UnixListener,
    datagrams: UnixDatagram,
}

impl Services {
    fn at(directory: &Path, name: &str) -> Self {
        let path = |kind: &str| directory.join(format!("{name}.{kind}"));
        let services = Self {
            streams: UnixListener::bind(path("stream")).unwrap(),
            datagrams: UnixDatagram::bind(path("datagram")).unwrap(),
        };
        for kind in ["stream", "datagram"] {
            let mode = std::fs::Permissions::from_mode(0o777);
            std::fs::set_permissions(path(kind), mode).unwrap();
        }
        services.without_waiting()
    }

    fn abstract_ones(name: &str) -> Self {
        let address =
            |kind: &str| SocketAddr::from_abstract_name(format!("{name}.{kind}")).unwrap();
        Self {
            streams: UnixListener::bind_addr(&address("stream")).unwrap(),
            datagrams: UnixDatagram::bind_addr(&address("datagram")).unwrap(),
        }
        .without_waiting()
    }

    fn without_waiting(self) -> Self {
        self.streams.set_nonblocking(true).unwrap();
        self.datagrams.set_nonblocking(true).unwrap();
        self
    }

    /// Whether a connection and a datagram have come.
    fn arrivals(&self) -> (bool, bool) {
        let arrived = |error: Option<std::io::Error>| {
            error.inspect(|error| assert_eq!(error.kind(), ErrorKind::WouldBlock)).is_none()
        };
        (arrived(self.streams.accept().err()), arrived(self.datagrams.recv(&mut [0; 9]).err()))
    }
}

fn layer_is_full(run: &Finished, name: &str) -> bool {
    let layers = run.records("start")[0]["object"]["layers"].as_array().unwrap().clone();
    layers.iter().any(|layer| layer["layer"] == name && layer["state"] == "full")
}

/// The directory of the host's services, which the sandbox may read and not write.
fn services(scene: &Scene) -> PathBuf {
    let directory = std::fs::canonicalize(scene.world.bin()).unwrap().join("run");
    std::fs::create_dir(&directory).unwrap();
    directory
}

const HELPERS: &str = "import socket as s; U = s.AF_UNIX; \
    dial = lambda p: s.socket(U, s.SOCK_STREAM).connect(p); \
    send = lambda p: s.socket(U, s.SOCK_DGRAM).sendto(b'x', p); \
    tied = lambda p: s.socket(U, s.SOCK_DGRAM).connect(p)";

/// What is tried, by name.
fn tries(run_directory: &Path) -> Vec<(&'static str, String)> {
    let at = |name: &str| run_directory.join(name).display().to_string();
    let calls = |way: &str, name: &str| format!("{way}('{}')", at(name));
    vec![
        ("setup", HELPERS.to_owned()),
        ("closed", calls("dial", "closed.stream")),
        ("closed-send", calls("send", "closed.datagram")),
        ("closed-tied", calls("tied", "closed.datagram")),
        (
            "closed-by-symlink",
            format!("os.symlink('{}', 'soft'); dial('soft')", at("closed.stream")),
        ),
        ("opened", calls("dial", "opened.stream")),
        ("opened-send", calls("send", "opened.datagram")),
        ("opened-mode", format!("os.chmod('{}', 0)", at("opened.stream"))),
        ("writable", "dial('writable.stream'); send('writable.datagram')".to_owned()),
        ("abstract", "dial('\\0outside.stream')".to_owned()),
        ("abstract-send", "send('\\0outside.datagram')".to_owned()),
        ("pair", "a, b = s.socketpair(); a.send(b'x'); b.recv(1)".to_owned()),
        (
            "datagram-pair",
            "a, b = s.socketpair(U, s.SOCK_DGRAM); a.send(b'x'); b.recv(1)".to_owned(),
        ),
        ("own", "l = s.socket(U); l.bind('own'); l.listen(); dial('own'); l.accept()".to_owned()),
        (
            "own-abstract",
            "l = s.socket(U); l.bind('\\0own'); l.listen(); dial('\\0own'); l.accept()".to_owned(),
        ),
        (
            "own-datagram",
            "l = s.socket(U, s.SOCK_DGRAM); l.bind('\\0'); send(l.getsockname()); l.recv(1)"
                .to_owned(),
        ),
        (
            "child-to-parent",
            "l = s.socket(U); l.bind('\\0kin'); l.listen(); \
             p = os.fork() or (dial('\\0kin'), os._exit(0)); l.accept(); os.waitpid(p, 0)"
                .to_owned(),
        ),
    ]
}

/// What was refused is told, by whichever layer was asked first.
fn refusals_are_told(run: &Finished, run_directory: &Path) {
    let denials = denials(run);
    let told = |layer: &str, reason: &'static str, path: &str| {
        let reason = if layer_is_full(run, layer) { "landlock" } else { reason };
        denials.iter().filter(|denial| **denial == ("unix-socket", reason, path)).count()
    };
    for (name, times) in [("closed.stream", 2), ("closed.datagram", 2)] {
        let path = run_directory.join(name).display().to_string();
        let count = told("landlock.unix_sockets", "read-only", &path);
        assert_eq!(count, times, "{name}: {denials:#?}");
    }
    assert_eq!(told("landlock.scopes", "foreign-socket", ""), 2, "{denials:#?}");
}

/// Tells where the attacks ended. Landlock is asked first, where it knows such sockets.
fn tell(tried: &BTreeMap<String, String>, run: &Finished, has_lsm: bool) {
    for (name, outcome) in tried {
        let first = match name.as_str() {
            "abstract" | "abstract-send" => "landlock.scopes",
            name if name.starts_with("closed") => "landlock.unix_sockets",
            _ => continue,
        };
        let layer = match outcome.as_str() {
            "ok" => Layer::NotStopped,
            _ if layer_is_full(run, first) => Layer::Landlock,
            _ if has_lsm => Layer::BpfLsm,
            other => panic!("{name}: {other}"),
        };
        layer::tell(21, &format!("a socket of the host, {name}"), layer);
    }
}

#[test]
fn a_sandbox_reaches_its_own_sockets_and_those_that_its_policy_opens() {
    let scene = Scene::new();
    let has_lsm = scene.has_lsm();
    let run_directory = services(&scene);
    let work = std::fs::canonicalize(scene.world.work()).unwrap();
    let closed = Services::at(&run_directory, "closed");
    let opened = Services::at(&run_directory, "opened");
    let writable = Services::at(&work, "writable");
    let outside = scene.world.inside(|| Services::abstract_ones("outside"));
    let at = |name: &str| run_directory.join(name).display().to_string();
    let policy = scene.policy(&format!(
        "unix_sockets: {{ allow: [{}, {}] }}",
        at("opened.stream"),
        at("opened.datagram")
    ));
    let tries = tries(&run_directory);
    let tries: Vec<(&str, &str)> =
        tries.iter().map(|(name, code)| (*name, code.as_str())).collect();
    let (tried, run) = attempts(&scene, &policy, &tries);
    tell(&tried, &run, has_lsm);
    if !has_lsm {
        return;
    }
    for (name, _) in &tries {
        let expected = match *name {
            "abstract" | "abstract-send" => "EPERM",
            name if name.starts_with("closed") || name == "opened-mode" => "EACCES",
            _ => "ok",
        };
        assert_eq!(tried[*name], expected, "{name}: {tried:#?} {:#?}", run.denials());
    }
    assert_eq!(closed.arrivals(), (false, false));
    assert_eq!(outside.arrivals(), (false, false));
    assert_eq!(opened.arrivals(), (true, true));
    assert_eq!(writable.arrivals(), (true, true));
    refusals_are_told(&run, &run_directory);
    // The test's own end of things works, so that what did not arrive was not let through.
    let mut own = std::os::unix::net::UnixStream::connect(at("closed.stream")).unwrap();
    own.write_all(b"x").unwrap();
    assert!(closed.arrivals().0);
}

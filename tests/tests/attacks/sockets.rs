//! Row 19: sockets of another program, and of a policy that has been narrowed since. Who has connected
//! one does not matter; who uses it does.

use clawbox_tests::clawbox::Clawbox;
use clawbox_tests::network::SITE;

use super::attempt::{Attempt, PYTHON, attempts, find, got_through, harmless, hostile};
use crate::scene::{ECHO, Scene};

/// Uses a socket in the way that it is told, and answers with what came of it. The socket comes with the
/// question, or is the standard input.
const SERVANT: &str = r#"theirs = 0
import errno, os, socket, sys
def of(fd): return socket.socket(fileno=os.dup(fd))
def spliced(fd):
    reader, writer = os.pipe()
    os.write(writer, b"theirs\n")
    os.splice(reader, fd, 7)
WAYS = {
    "send": lambda fd: of(fd).send(b"theirs\n"),
    "sendmsg": lambda fd: of(fd).sendmsg([b"theirs\n"]),
    "write": lambda fd: os.write(fd, b"theirs\n"),
    "splice": spliced,
    "sendfile": lambda fd: os.sendfile(fd, os.open(__file__, os.O_RDONLY), 0, 11),
    "recv": lambda fd: of(fd).recv(1),
    "read": lambda fd: os.read(fd, 1),
}
def outcome(way, fd):
    try:
        WAYS[way](fd)
        return b"ok"
    except OSError as error:
        return errno.errorcode[error.errno].encode()
if len(sys.argv) > 1:
    os.write(1, outcome(sys.argv[1], 0))
    sys.exit()
channel = socket.socket(fileno=0)
while True:
    way, descriptors, flags, sender = socket.recv_fds(channel, 99, 1)
    if not way: break
    channel.send(outcome(way.decode(), descriptors[0]))
    os.close(descriptors[0])
"#;

/// What the allowed program needs to hand its sockets on. `line` waits for an echo of its own.
const MASTER: &str = r#"
import socket, subprocess
tcp = socket.create_connection(SITE)
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.connect(SITE)
ours, theirs = socket.socketpair()
subprocess.Popen([OTHER, SERVANT], stdin=theirs)
theirs.close()
def told(said):
    if said != b"ok": raise OSError(getattr(errno, said.decode()), "")
def passed(socket_, way):
    socket.send_fds(ours, [way.encode()], [socket_.fileno()])
    told(ours.recv(20))
def inherited(socket_, way):
    told(subprocess.run([OTHER, SERVANT, way], stdin=socket_, stdout=subprocess.PIPE).stdout)
heard = b""
def echoed(socket_):
    global heard
    socket_.send(b"mine\n")
    echo = b""
    while not echo.endswith(b"mine\n"): echo += socket_.recv(99)
    heard += echo
"#;

const WAYS: [&str; 7] = ["send", "sendmsg", "write", "splice", "sendfile", "recv", "read"];

/// Reading is last: what was sent by one that got through comes back as an echo.
fn tries(scene: &Scene, is_known: bool) -> Vec<Attempt> {
    let python = std::fs::canonicalize(PYTHON).unwrap();
    let other = scene.world.install(&python, "other-python");
    let servant = scene.world.script("servant", SERVANT);
    let master = scene.world.script("master", MASTER);
    let begin = format!(
        "SITE, OTHER, SERVANT = ('{SITE}', {ECHO}), '{}', '{}'; exec(open('{}').read())",
        other.display(),
        servant.display(),
        master.display()
    );
    let mut tries = vec![harmless("connections of the named program", begin)];
    for kind in ["tcp", "udp"] {
        tries.push(harmless(&format!("its own {kind}"), format!("echoed({kind})")));
        for way in WAYS {
            let name = format!("a {kind} socket received, {way}");
            tries.push(hostile(19, &name, format!("passed({kind}, '{way}')")).known_if(is_known));
        }
        for way in ["write", "recv"] {
            let name = format!("a {kind} socket inherited, {way}");
            let code = format!("inherited({kind}, '{way}')");
            tries.push(hostile(19, &name, code).known_if(is_known));
        }
        tries.push(harmless(&format!("its own {kind} again"), format!("echoed({kind})")));
    }
    if !is_known {
        // Nothing that the other one has sent comes back as an echo.
        tries.push(harmless("what came back", "assert b'theirs' not in heard, heard"));
    }
    tries
}

#[test]
fn a_socket_is_judged_by_who_uses_it_whoever_has_connected_it() {
    let scene = Scene::new();
    let has_lsm = scene.has_lsm();
    let policy = scene.policy(&format!(
        "network_policies:\n  the_rule:\n    \
           endpoints: [{{ host: {SITE}, port: {ECHO}, transport: any }}]\n    \
           binaries: [{{ path: {PYTHON}, match: self }}]"
    ));
    let tries = tries(&scene, !has_lsm);
    let sandbox = || {
        let clawbox = Clawbox::new(&scene.world, &policy);
        if has_lsm { clawbox.with_lsm() } else { clawbox }
    };
    let tried = attempts(sandbox, &tries);
    let through: Vec<&str> = got_through(&tries, &tried).collect();
    assert!(through.is_empty(), "{through:?}");
    let said = |service: &clawbox_tests::services::Service, what: &str| {
        service.arrivals().iter().any(|arrival| arrival.said == what)
    };
    assert!(said(&scene.echo, "mine"));
    if !has_lsm {
        return;
    }
    assert!(!scene.datagrams.arrivals().iter().any(|arrival| arrival.said.contains("theirs")));
    for (name, action) in [
        ("a tcp socket received, splice", "send-connected"),
        ("a tcp socket inherited, recv", "receive"),
        ("a udp socket received, send", "send-connected"),
    ] {
        let tried = find(&tried, name);
        assert_eq!(tried.outcome, "EPERM", "{tried:?}");
        assert!(tried.has(action, "other-binary"), "{tried:?}");
        let by_other = |record: &serde_json::Value| {
            record["subject"]["exe"].as_str().is_some_and(|exe| exe.ends_with("/other-python"))
        };
        assert!(tried.denials.iter().all(by_other), "{tried:?}");
    }
}

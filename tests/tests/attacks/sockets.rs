//! Row 19: sockets of another program, and of a policy that has been narrowed since. Who has connected
//! one does not matter; who uses it does.

use std::io::{ErrorKind, Read};
use std::net::TcpListener;
use std::time::Duration;

use clawbox_tests::clawbox::{Clawbox, Running};
use clawbox_tests::layer::{self, Layer};
use clawbox_tests::network::SITE;
use clawbox_tests::services::Service;
use serde_json::Value;

use super::attempt::{
    ATTACKER, Attempt, PYTHON, answer, attempts, find, got_through, harmless, hostile,
};
use crate::live;
use crate::scene::{ECHO, Scene};

/// For what the kernel does at once.
const PATIENCE: Duration = Duration::from_secs(20);

/// Uses a socket in the way that it is told, and answers with what came of it. The socket comes with the
/// question, or is the standard input.
const SERVANT: &str = r#"theirs = 0
import errno, os, socket, sys
UDP_CORK = 1
def of(fd): return socket.socket(fileno=os.dup(fd))
def spliced(fd):
    reader, writer = os.pipe()
    os.write(writer, b"theirs\n")
    os.splice(reader, fd, 7)
def taken(fd):
    reader, writer = os.pipe()
    os.splice(fd, writer, 1)
WAYS = {
    "splice out": taken,
    "begin": lambda fd: of(fd).send(b"theirs\n", socket.MSG_MORE),
    "cork": lambda fd: of(fd).setsockopt(socket.IPPROTO_UDP, UDP_CORK, 1),
    "uncork": lambda fd: of(fd).setsockopt(socket.IPPROTO_UDP, UDP_CORK, 0),
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
free = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
def begun(socket_, flags=socket.MSG_MORE):
    if socket_ is free: socket_.sendto(b"begun ", flags, SITE)
    else: socket_.send(b"begun ", flags)
def corked(socket_, on=1):
    socket_.setsockopt(socket.IPPROTO_UDP, 1, on)
heard = b""
def echoed(socket_):
    global heard
    socket_.send(b"mine\n")
    echo = b""
    while not echo.endswith(b"mine\n"): echo += socket_.recv(99)
    heard += echo
"#;

const WAYS: [&str; 8] =
    ["send", "sendmsg", "write", "splice", "sendfile", "recv", "read", "splice out"];

/// Datagrams that one program begins and another one ends: what is added goes where the first part goes.
/// By what they are called, and what they do with a socket that is connected and with one that is not.
const PARTS: [(&str, &str); 4] = [
    ("begun by its program, ended by another", "begun({}); passed({}, 'send')"),
    (
        "corked by its program, added to by another",
        "corked({}); begun({}, 0); passed({}, 'send'); corked({}, 0)",
    ),
    ("corked by its program, sent by another", "corked({}); begun({}, 0); passed({}, 'uncork')"),
    ("begun by another, ended by its program", "passed({}, 'begin'); begun({}, 0)"),
];

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
    for socket in ["udp", "free"] {
        for (what, code) in PARTS {
            // Nobody but its program has told a socket that is not connected where to send.
            if (socket, what.starts_with("begun by another")) == ("free", true) {
                continue;
            }
            let name = format!("a datagram {what}, {socket}");
            let code = code.replace("{}", socket);
            tries.push(hostile(19, &name, code).known_if(is_known));
        }
    }
    tries.push(harmless("its own udp after that", "echoed(udp)"));
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
    let sandbox = || Clawbox::new(&scene.world, &policy).with_lsm_if(has_lsm);
    let tried = attempts(sandbox, &tries);
    let through: Vec<&str> = got_through(&tries, &tried).collect();
    assert!(through.is_empty(), "{through:?}");
    let said = |service: &clawbox_tests::services::Service, what: &str| {
        service.arrivals().iter().any(|arrival| arrival.said == what)
    };
    assert!(said(&scene.echo, "mine"));
    if !has_lsm {
        // What is not stopped is what the model says it is: the first part's place, the other one's words.
        assert!(said(&scene.datagrams, "begun theirs\n"), "{:?}", scene.datagrams.arrivals());
        return;
    }
    assert!(!scene.datagrams.arrivals().iter().any(|arrival| arrival.said.contains("theirs")));
    assert!(!said(&scene.datagrams, "begun "), "{:?}", scene.datagrams.arrivals());
    for (name, action) in [
        ("a tcp socket received, splice", "send-connected"),
        ("a tcp socket inherited, recv", "receive"),
        ("a udp socket received, send", "send-connected"),
        ("a tcp socket received, splice out", "receive"),
        ("a udp socket received, splice out", "receive"),
    ] {
        let tried = find(&tried, name);
        assert_eq!(tried.outcome, "EPERM", "{tried:?}");
        assert!(tried.has(action, "other-binary"), "{tried:?}");
        let by_other = |record: &serde_json::Value| {
            record["subject"]["exe"].as_str().is_some_and(|exe| exe.ends_with("/other-python"))
        };
        assert!(tried.denials.iter().all(by_other), "{tried:?}");
    }
    for socket in ["udp", "free"] {
        for (what, _) in &PARTS[..3] {
            let tried = find(&tried, &format!("a datagram {what}, {socket}"));
            assert_eq!(tried.outcome, "EPERM", "{tried:?}");
            assert!(tried.has("send-connected", "datagram-in-parts"), "{tried:?}");
        }
    }
}

/// What is open when the policy changes: by a Python name, how it comes about.
const OPEN: &str = r#"
import socket, threading
def connected(to, kind=socket.SOCK_STREAM):
    made = socket.socket(socket.AF_INET, kind)
    made.connect(to)
    return made
def listening(port):
    made = socket.create_server(("127.0.0.1", port))
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    there = connected(("127.0.0.1", port))
    return made, there, made.accept()[0]
def echoed(made):
    made.send(b"mine\n")
    if made.recv(99) != b"mine\n": raise OSError(errno.EIO, "")
def taken(there, here):
    there.send(b"mine\n")
    if here.recv(99) != b"mine\n": raise OSError(errno.EIO, "")
def accepted(listener):
    listener.setblocking(False)
    try: listener.accept()
    except BlockingIOError: pass
kept, named = connected((SITE, 7)), connected(("v4.test", 7))
gone, gone_udp = connected((SITE, 9)), connected((SITE, 7), socket.SOCK_DGRAM)
gone_name = connected(("api.test", 7))
listener, there, here = listening(8080)
gone_listener, gone_there, gone_here = listening(8081)
waiting = threading.Thread(target=gone.recv, args=[1], daemon=True)
threading.excepthook = lambda told: None
waiting.start()
"#;

/// Uses that go on, and those that end, with what they are called.
const GO_ON: [&str; 4] =
    ["echoed(kept)", "echoed(named)", "taken(there, here)", "accepted(listener)"];
const END: [(&str, &str); 5] = [
    ("an allowed connection", "echoed(gone)"),
    ("an allowed connection by name", "echoed(gone_name)"),
    ("an allowed datagram socket", "echoed(gone_udp)"),
    ("an allowed listener", "accepted(gone_listener)"),
    ("a connection that an allowed listener took", "taken(gone_there, gone_here)"),
];

#[track_caller]
fn all_go_on(running: &mut Running, uses: impl IntoIterator<Item = &'static str>) {
    for code in uses {
        assert_eq!(answer(running, code), "ok", "{code}");
    }
}

#[test]
fn a_policy_that_is_narrowed_resets_what_it_does_not_allow_and_nothing_else() {
    let scene = Scene::new();
    let has_lsm = scene.has_lsm();
    let policy = |endpoints: &str, ports: &str| {
        format!("{}\nlisten: {{ ports: [{ports}] }}\n", scene.allowing(PYTHON, endpoints))
    };
    let stay = format!("{{ host: {SITE}, port: {ECHO} }}, {{ host: v4.test, port: {ECHO} }}");
    let go = format!(
        "{{ host: {SITE}, port: 9 }}, {{ host: {SITE}, port: {ECHO}, transport: udp }}, \
         {{ host: api.test, port: {ECHO} }}"
    );
    let before = policy(&format!("{stay}, {go}"), "8080, 8081");
    let far = scene.world.outside(|| TcpListener::bind((SITE, 9)).unwrap());
    let clawbox = Clawbox::new(&scene.world, &before).with_lsm_if(has_lsm);
    let mut running = clawbox.spawn(&[PYTHON, "-c", ATTACKER]);
    let file = scene.world.script("open", OPEN);
    let begin = format!("SITE = '{SITE}'; exec(open('{}').read())", file.display());
    all_go_on(&mut running, [&*begin.leak()]);
    let (mut far, _) = far.accept().unwrap();
    // What is not reset would be waited for without end.
    far.set_read_timeout(Some(PATIENCE)).unwrap();
    all_go_on(&mut running, GO_ON);
    // Twice, so that both places for what a name stands for have been used.
    let wider = policy(&format!("{stay}, {go}, {{ host: other.test, port: 8 }}"), "8080, 8081");
    for same in [&wider, &before] {
        let (status, said) = live::set(&scene, &running, same);
        assert_eq!((status, &said["connections_reset"]), (Some(0), &0.into()), "{said}");
        all_go_on(&mut running, GO_ON.into_iter().chain(END[1..].iter().map(|(_, code)| *code)));
    }
    let (status, said) = live::set(&scene, &running, &policy(&stay, "8080"));
    assert_eq!(status, Some(0), "{said}");
    let end = far.read(&mut [0; 9]).map_err(|error| error.kind());
    assert_eq!(end, Err(ErrorKind::ConnectionReset), "not left to drain");
    // Who waits on a connection does not wait any longer.
    all_go_on(&mut running, ["waiting.join()"]);
    let outcomes: Vec<String> = END.iter().map(|(_, code)| answer(&mut running, code)).collect();
    all_go_on(&mut running, GO_ON);
    let run = running.wait();
    let resets: Vec<&Value> =
        run.trail.iter().filter(|record| record["action"] == "reset").collect();
    assert_eq!(resets.len() as u64, said["connections_reset"].as_u64().unwrap(), "{resets:#?}");
    for ((attack, _), outcome) in END.iter().zip(&outcomes) {
        assert_ne!(outcome, "ok", "{attack}");
        let layer = if outcome == "EPERM" { Layer::BpfLsm } else { Layer::Agent };
        layer::tell(19, &format!("{attack}, after the policy was narrowed"), layer);
    }
    let by_port = |port: u64| resets.iter().filter(move |record| record["object"]["port"] == port);
    assert_eq!(by_port(9).count(), 1, "{resets:#?}");
    assert!(by_port(9).all(|record| record["reason"] == "unknown-endpoint"));
    assert!(by_port(7).any(|record| record["object"]["host"] == "api.test"), "{resets:#?}");
    assert!(by_port(8080).next().is_none());
    assert!(by_port(8081).all(|record| record["reason"] == "listen-not-allowed"), "{resets:#?}");
}

/// Connections that a later policy says something else of than yes or no.
const LATER: &str = r#"
import socket
def connected(to, made=None):
    made = made or socket.socket()
    made.connect(to)
    return made
def echoed(made):
    made.send(b"mine\n")
    if made.recv(99) != b"mine\n": raise OSError(errno.EIO, "")
kept, asked = connected((SITE, 7)), connected(("v4.test", 7))
literal, unverified = connected((SITE, 9)), connected(("api.test", 7))
# A connection that an own listener took, dissolved and connected to somebody else.
listener = socket.create_server(("0.0.0.0", 8080))
there = connected(("127.0.0.1", 8080))
recycled = listener.accept()[0]
struct_ = __import__("struct").pack("=H14x", 0)
call(42, recycled.fileno(), struct_, 16)
connected((SITE, 9), recycled)
"#;

#[test]
fn a_connection_that_a_narrowed_policy_would_hold_or_verify_is_reset_too() {
    let scene = Scene::new();
    let has_lsm = scene.has_lsm();
    let policy = |endpoints: &str| {
        format!(
            "{}\nunknown_endpoints: ask\nlisten: {{ ports: [8080], addresses: [0.0.0.0] }}\n",
            scene.allowing(PYTHON, endpoints)
        )
    };
    let stay = format!("{{ host: {SITE}, port: {ECHO} }}");
    let before = policy(&format!(
        "{stay}, {{ host: v4.test, port: {ECHO} }}, {{ host: {SITE}, port: 9 }}, \
         {{ host: api.test, port: {ECHO} }}"
    ));
    let after = policy(&format!("{stay}, {{ host: api.test, port: {ECHO}, sni: verify }}"));
    let _far = scene.world.outside(|| Service::echo(9));
    let clawbox = Clawbox::new(&scene.world, &before).with_lsm_if(has_lsm);
    let mut running = clawbox.spawn(&[PYTHON, "-c", ATTACKER]);
    let file = scene.world.script("later", LATER);
    let begin = format!("SITE = '{SITE}'; exec(open('{}').read())", file.display());
    all_go_on(&mut running, [&*begin.leak()]);
    let uses = [
        ("a connection by name that would be held now", "echoed(asked)"),
        ("a connection by address that would be held now", "echoed(literal)"),
        ("a connection that would be verified now", "echoed(unverified)"),
        ("a connection on a socket that a listener took before", "echoed(recycled)"),
    ];
    all_go_on(&mut running, uses.map(|(_, code)| code).into_iter().chain(["echoed(kept)"]));
    let (status, said) = live::set(&scene, &running, &after);
    assert_eq!((status, &said["connections_reset"]), (Some(0), &4.into()), "{said}");
    for (attack, code) in uses {
        let outcome = answer(&mut running, code);
        assert_ne!(outcome, "ok", "{attack}");
        layer::tell(19, attack, Layer::Agent);
    }
    all_go_on(&mut running, ["echoed(kept)"]);
    let run = running.wait();
    let reset = run.trail.iter().filter(|record| record["action"] == "reset");
    assert_eq!(reset.count(), 4, "{:#?}", run.trail);
}

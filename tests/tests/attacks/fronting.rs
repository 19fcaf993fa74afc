//! Row 23: an allowed address, and another host named on it. The far side takes whatever comes.

use std::io::{Read, Write};
use std::net::{Ipv6Addr, TcpListener};
use std::sync::{Arc, Mutex};
use std::thread;

use clawbox_tests::clawbox::Clawbox;
use clawbox_tests::layer::{self, Layer};

use super::attempt::{
    ATTACKER, Attempt, PYTHON, answer, attempts, find, got_through, harmless, hostile,
};
use crate::live;
use crate::scene::Scene;

/// What the attacker says, and how. `says` sends it in pieces and wants the far side's answer.
const SPEAKS: &str = r#"
import socket, ssl
def hello(name, extension=b""):
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    out = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), out, server_hostname=name)
    try: client.do_handshake()
    except ssl.SSLWantReadError: pass
    said = out.read()
    if extension:
        at = 5 + 4 + 2 + 32
        at += 1 + said[at]
        at += 2 + int.from_bytes(said[at:at + 2], "big")
        at += 1 + said[at]
        length = int.from_bytes(said[at:at + 2], "big") + len(extension)
        body = said[5:at] + length.to_bytes(2, "big") + said[at + 2:] + extension
        body = body[:1] + (len(body) - 4).to_bytes(3, "big") + body[4:]
        said = b"\x16\x03\x01" + len(body).to_bytes(2, "big") + body
    return said
def request(host, target="/"):
    return f"GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
def opened(port=443, to="api.test", family=socket.AF_INET):
    addresses = socket.getaddrinfo(to, port, family, socket.SOCK_STREAM)
    made = socket.socket(addresses[0][0])
    made.connect(addresses[0][4])
    if made.getpeername()[:2] != addresses[0][4][:2]: raise OSError(errno.EADDRNOTAVAIL, "")
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made
def says(data, port=443, to="api.test", piece=99999, ends=False, family=socket.AF_INET):
    told(opened(port, to, family), data, piece, ends)
def told(made, data, piece=99999, ends=False):
    try:
        for at in range(0, len(data), piece): made.send(data[at:at + piece])
        if ends: made.shutdown(socket.SHUT_WR)
        answer = made.recv(99)
    except (BrokenPipeError, ConnectionResetError):
        answer = b""
    if answer[:1] == b"\x15" and answer[-1:] != b"\x31": raise OSError(errno.EIO, "")
    if answer != b"far": raise OSError(errno.EPERM, "")
def ended(made):
    made.settimeout(20)
    try: rest = made.recv(1)
    except ConnectionResetError: return
    except TimeoutError: rest = b"nothing"
    raise OSError(errno.EIO, repr(rest))
ECH = b"\xfe\x0d\x00\x0a\x00\x00\x01\x00\x01\x07\x00\x00\x00\x00"
"#;

/// Answers to whatever is said, and keeps what was first.
struct Far(Arc<Mutex<Vec<Vec<u8>>>>);

impl Far {
    fn serve(scene: &Scene, port: u16) -> Self {
        let listener =
            scene.world.outside(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).unwrap());
        let said = Arc::<Mutex<Vec<Vec<u8>>>>::default();
        let heard = Arc::clone(&said);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (mut stream, heard) = (stream.unwrap(), Arc::clone(&heard));
                thread::spawn(move || {
                    let mut buffer = [0; 4096];
                    let mut length = stream.read(&mut buffer).unwrap_or(0);
                    heard.lock().unwrap().push(buffer[..length].to_vec());
                    while length > 0 && stream.write_all(b"far").is_ok() {
                        length = stream.read(&mut buffer).unwrap_or(0);
                    }
                });
            }
        });
        Self(said)
    }

    fn heard(&self) -> Vec<Vec<u8>> {
        self.0.lock().unwrap().clone()
    }
}

fn tries(scene: &Scene) -> Vec<Attempt> {
    let file = scene.world.script("speaks", SPEAKS);
    let begin = format!("exec(open('{}').read())", file.display());
    let may = |name: &str, code: &str| harmless(name, format!("says({code})"));
    let attack = |name: &str, code: &str| hostile(23, name, format!("says({code})"));
    vec![
        harmless("what it speaks", begin),
        may("the host by IPv4", "hello('api.test')"),
        may("the host by IPv6", "hello('API.test'), family=socket.AF_INET6"),
        may("the host in pieces", "hello('api.test'), piece=7"),
        may("the host over HTTP", "request('api.test:443')"),
        may("an endpoint that does not ask", "hello('api.test'), port=444"),
        may("an encrypted ClientHello where it may be", "hello('api.test', ECH), port=445"),
        attack("another host in a ClientHello", "hello('other.test')"),
        attack("another host in a ClientHello in pieces", "hello('other.test'), piece=7"),
        attack("no host in a ClientHello", "hello(None)"),
        attack("an encrypted ClientHello", "hello('api.test', ECH)"),
        attack("another host before an encrypted one", "hello('other.test', ECH), port=445"),
        attack("no host before an encrypted one", "hello(None, ECH), port=445"),
        attack("another host over HTTP", "request('other.test')"),
        attack("another host in a request's target", "request('api.test', 'http://other.test/')"),
        attack("a proxy's CONNECT", "b'CONNECT other.test:443 HTTP/1.1\\r\\n\\r\\n'"),
        attack("neither TLS nor HTTP", "b'SSH-2.0-x\\r\\n'"),
        attack("half a ClientHello", "hello('api.test')[:40], ends=True"),
    ]
}

#[test]
fn a_connection_goes_on_only_if_it_names_the_host_that_it_was_made_for() {
    let scene = Scene::new();
    let policy = scene.allowing(
        PYTHON,
        "{ host: api.test, port: 443, sni: verify }, { host: api.test, port: 444 }, \
         { host: other.test, port: 444 }, { host: api.test, port: 445, sni: verify, ech: allow }",
    );
    let (far, other) = (Far::serve(&scene, 443), Far::serve(&scene, 444));
    let far_hidden = Far::serve(&scene, 445);
    let has_lsm = scene.has_lsm();
    let sandbox = || Clawbox::new(&scene.world, &policy).with_lsm_if(has_lsm);
    let tries = tries(&scene);
    let tried = attempts(sandbox, &tries);
    let through: Vec<&str> = got_through(&tries, &tried).collect();
    assert!(through.is_empty(), "{through:?}");
    assert_eq!((far.heard().len(), other.heard().len()), (4, 1), "{:?}", far.heard());
    assert_eq!(far_hidden.heard().len(), 1, "{:?}", far_hidden.heard());
    let heard = [far.heard(), far_hidden.heard()].concat().concat();
    assert!(!heard.windows(10).any(|part| part == b"other.test"));
    for (name, reason, named) in [
        ("another host in a ClientHello in pieces", "other-host", Some("other.test")),
        ("no host in a ClientHello", "other-host", None),
        ("an encrypted ClientHello", "hidden-host", Some("api.test")),
        ("another host before an encrypted one", "other-host", Some("other.test")),
        ("no host before an encrypted one", "other-host", None),
        ("another host over HTTP", "other-host", Some("other.test")),
        ("half a ClientHello", "no-host", None),
    ] {
        let tried = find(&tried, name);
        let record = &tried.denials[0];
        assert!(tried.has("verify", reason), "{tried:?}");
        assert_eq!(record["object"]["named"].as_str(), named, "{record}");
        assert_eq!(record["object"]["host"], "api.test", "{record}");
        let is_hidden = record["object"]["hidden"] == true;
        assert_eq!(is_hidden, name.contains("encrypted"), "{record}");
        assert!(record["subject"]["exe"].as_str().unwrap().contains("python"), "{record}");
    }
}

/// Connections under a policy that lets a name be hidden: one that hides one and one that does not, one
/// that has not said anything, and one that hides a name and is in a message that nobody has taken.
const HIDING: &str = r#"
hiding, open_, silent, sent = opened(), opened(), opened(), opened()
told(hiding, hello("api.test", ECH)), told(open_, hello("api.test"))
told(sent, hello("api.test", ECH))
ours, theirs = socket.socketpair()
def sends():
    socket.send_fds(ours, [b"!"], [sent.fileno()])
    sent.close()
def takes():
    global sent
    sent = socket.socket(fileno=socket.recv_fds(theirs, 9, 1)[1][0])
sends()
"#;

#[test]
fn a_policy_that_lets_no_name_be_hidden_any_more_ends_where_one_is_and_nothing_else() {
    let scene = Scene::new();
    let far = Far::serve(&scene, 443);
    let policy = |ech: &str, more: &str| {
        scene.allowing(
            PYTHON,
            &format!(
                "{{ host: api.test, port: 443, sni: verify{ech} }}, {{ host: {more}, port: 1 }}"
            ),
        )
    };
    let has_lsm = scene.has_lsm();
    let clawbox = Clawbox::new(&scene.world, &policy(", ech: allow", "a.test"));
    let mut running = clawbox.with_lsm_if(has_lsm).spawn(&[PYTHON, "-c", ATTACKER]);
    let speaks = scene.world.script("speaks", SPEAKS);
    let hiding = scene.world.script("hiding", HIDING);
    for file in [speaks, hiding] {
        let begun = answer(&mut running, &format!("exec(open('{}').read())", file.display()));
        assert_eq!(begun, "ok");
    }
    let (status, said) = live::set(&scene, &running, &policy(", ech: allow", "b.test"));
    assert_eq!((status, &said["connections_reset"]), (Some(0), &0.into()), "{said}");
    let in_message = "takes(); told(sent, b'more'); sends()";
    for code in ["told(hiding, b'more')", "told(open_, b'more')", in_message] {
        assert_eq!(answer(&mut running, code), "ok", "{code}");
    }

    let (status, said) = live::set(&scene, &running, &policy("", "b.test"));
    assert_eq!((status, &said["connections_reset"]), (Some(0), &1.into()), "{said}");
    for (code, outcome) in [
        ("ended(hiding)", "ok"),
        ("takes(); ended(sent)", "ok"),
        ("told(open_, b'more')", "ok"),
        ("told(silent, hello('api.test', ECH))", "EPERM"),
        ("says(hello('api.test', ECH))", "EPERM"),
        ("says(hello('api.test'))", "ok"),
    ] {
        assert_eq!(answer(&mut running, code), outcome, "{code}");
    }
    let run = running.wait();
    layer::tell(23, "an encrypted ClientHello, after the policy was narrowed", Layer::Agent);
    assert_eq!(far.heard().len(), 4, "{:?}", far.heard());
    let resets = run.records("reset");
    assert_eq!(resets.len(), 1, "{resets:#?}");
    assert_eq!(resets[0]["reason"], "hidden-host");
    assert_eq!(resets[0]["object"]["host"], "api.test");
    let verified: Vec<(bool, bool)> = run
        .records("verify")
        .iter()
        .map(|record| (record["object"]["hidden"] == true, record["verdict"] == "allow"))
        .collect();
    let (hidden, not) = ((true, true), (false, true));
    assert_eq!(verified, [hidden, not, hidden, (true, false), (true, false), not]);
}

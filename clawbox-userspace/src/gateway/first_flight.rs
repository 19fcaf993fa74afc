//! What a client says first on a connection: whom it wants to speak to, in a TLS ClientHello or the head
//! of an HTTP request. Pure, and hostile input all of it.

use tls_parser::{TlsExtension, TlsMessage, TlsMessageHandshake};

/// Bytes of a first flight: more than a TLS record, and than servers take for a request's head. What has
/// come is read again with each byte, so that a longer one would cost the agent more than its sender.
pub const LONGEST: usize = 20 * 1024;

/// Header fields of a request.
const FIELDS: usize = 128;

/// Record and message types, RFC 8446, sections 5.1 and 4.
const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
/// `encrypted_client_hello`, RFC 9849, and what it was called in drafts (`encrypted_server_name`).
const ENCRYPTED: [u16; 2] = [0xfe0d, 0xffce];

/// What was said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirstFlight {
    /// In which language.
    pub protocol: Protocol,
    /// The host, lower case and without a last dot; `None` if none was named.
    pub host: Option<String>,
    /// There is, or may be, another name that only the server can read.
    pub is_hidden: bool,
}

/// A language in which a host is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// TLS.
    Tls,
    /// HTTP/1.
    Http,
}

/// It is neither, or not well formed, or names two hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unreadable;

/// Reads what has come so far; `None` if more has to come.
///
/// # Errors
/// More will not help.
pub fn read(bytes: &[u8]) -> Result<Option<FirstFlight>, Unreadable> {
    match bytes.first() {
        None => Ok(None),
        Some(&HANDSHAKE) => match handshake(bytes)? {
            Some(message) => hello(&message).map(Some),
            None if bytes.len() < LONGEST => Ok(None),
            None => Err(Unreadable),
        },
        Some(first) if first.is_ascii_uppercase() => request(bytes),
        Some(_) => Err(Unreadable),
    }
}

/// The first handshake message, which any number of records may share.
fn handshake(mut bytes: &[u8]) -> Result<Option<Vec<u8>>, Unreadable> {
    let mut message = Vec::new();
    loop {
        let [kind, major, _, high, low, rest @ ..] = bytes else { return Ok(None) };
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        // RFC 8446, 5.1: no empty records of a handshake, none longer than 2^14.
        if *kind != HANDSHAKE || *major != 3 || length == 0 || length > 1 << 14 {
            return Err(Unreadable);
        }
        let is_whole = rest.len() >= length;
        message.extend_from_slice(&rest[..length.min(rest.len())]);
        if let [kind, a, b, c, ..] = message[..] {
            let length = 4 + (usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c));
            if kind != CLIENT_HELLO || length > LONGEST {
                return Err(Unreadable);
            }
            if message.len() >= length {
                message.truncate(length);
                return Ok(Some(message));
            }
        }
        if !is_whole {
            return Ok(None);
        }
        bytes = &rest[length..];
    }
}

fn hello(message: &[u8]) -> Result<FirstFlight, Unreadable> {
    let Ok(([], TlsMessage::Handshake(TlsMessageHandshake::ClientHello(hello)))) =
        tls_parser::parse_tls_message_handshake(message)
    else {
        return Err(Unreadable);
    };
    let extensions = hello.ext.unwrap_or_default();
    let Ok(([], extensions)) = tls_parser::parse_tls_client_hello_extensions(extensions) else {
        return Err(Unreadable);
    };
    let mut names = Vec::new();
    for extension in &extensions {
        if let TlsExtension::SNI(list) = extension {
            names.extend(list.iter().map(|(kind, name)| (kind.0, *name)));
        }
    }
    let is_hidden =
        extensions.iter().any(|found| ENCRYPTED.contains(&u16::from(tls_extension_type(found))));
    let host = match names[..] {
        [] => None,
        // RFC 6066: one name of a kind, and there is one kind.
        [(0, name)] => Some(host(name)?),
        _ => return Err(Unreadable),
    };
    Ok(FirstFlight { protocol: Protocol::Tls, host, is_hidden })
}

fn tls_extension_type(extension: &TlsExtension<'_>) -> tls_parser::TlsExtensionType {
    tls_parser::TlsExtensionType::from(extension)
}

fn request(bytes: &[u8]) -> Result<Option<FirstFlight>, Unreadable> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS];
    let mut request = httparse::Request::new(&mut fields);
    match request.parse(bytes) {
        Ok(httparse::Status::Complete(_)) => {}
        Ok(httparse::Status::Partial) if bytes.len() < LONGEST => return Ok(None),
        _ => return Err(Unreadable),
    }
    let mut hosts = request.headers.iter().filter(|field| field.name.eq_ignore_ascii_case("host"));
    let named = hosts.next().map(|field| authority(field.value)).transpose()?;
    if hosts.next().is_some() {
        return Err(Unreadable);
    }
    // A target that has a host of its own stands over the field (RFC 9112, 3.2.2): both must be one.
    let target = request.path.ok_or(Unreadable)?;
    let of_target = match target.split_once("://") {
        Some((_, rest)) => {
            let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
            Some(authority(&rest.as_bytes()[..end])?)
        }
        None if target.starts_with('/') || target == "*" => None,
        None => Some(authority(target.as_bytes())?),
    };
    let host = match (named, of_target) {
        (Some(one), Some(other)) if one != other => return Err(Unreadable),
        (one, other) => other.or(one),
    };
    Ok(Some(FirstFlight { protocol: Protocol::Http, host, is_hidden: false }))
}

/// The host of `host[:port]`.
fn authority(bytes: &[u8]) -> Result<String, Unreadable> {
    let end = match bytes.iter().rposition(|byte| *byte == b':') {
        Some(colon) if bytes[colon + 1..].iter().all(u8::is_ascii_digit) => colon,
        _ => bytes.len(),
    };
    host(bytes[..end].trim_ascii())
}

/// A host's name as names are compared.
fn host(bytes: &[u8]) -> Result<String, Unreadable> {
    let is_known = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._".contains(byte);
    let bytes = bytes.strip_suffix(b".").unwrap_or(bytes);
    if bytes.is_empty() || bytes.len() > 253 || !bytes.iter().all(is_known) {
        return Err(Unreadable);
    }
    String::from_utf8(bytes.to_ascii_lowercase()).map_err(|_| Unreadable)
}

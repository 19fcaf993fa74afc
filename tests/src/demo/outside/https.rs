//! HTTP servers, most of them behind TLS, with certificates of an authority that exists for one
//! demo. They answer every request alike; what matters is who asked and under what name.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::sightings::{Opened, Sightings};

/// How long a server waits for a client that says nothing.
const PATIENCE: Duration = Duration::from_secs(5);

/// A demo's authority and what it has signed.
#[derive(Debug)]
pub struct Certificates {
    authority: String,
    server: CertificateDer<'static>,
    key: PrivatePkcs8KeyDer<'static>,
}

impl Certificates {
    /// Makes an authority and has it sign one certificate for all these names and addresses.
    ///
    /// # Errors
    /// A name is none.
    pub fn make<'a>(
        names: impl IntoIterator<Item = &'a str>,
        addresses: impl IntoIterator<Item = IpAddr>,
    ) -> Result<Self> {
        let mut authority = CertificateParams::default();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        authority.distinguished_name.push(DnType::CommonName, "Authority of a clawbox demo");
        let authority_key = KeyPair::generate()?;
        let signed = authority.self_signed(&authority_key)?;
        let names: Vec<String> = names
            .into_iter()
            .map(str::to_owned)
            .chain(addresses.into_iter().map(|address| address.to_string()))
            .collect();
        let key = KeyPair::generate()?;
        let mut server = CertificateParams::new(names).context("cannot make a certificate")?;
        server.distinguished_name.push(DnType::CommonName, "A server of a clawbox demo");
        let server = server.signed_by(&key, &Issuer::new(authority, authority_key))?;
        Ok(Self {
            authority: signed.pem(),
            server: server.der().clone(),
            key: PrivatePkcs8KeyDer::from(key.serialize_der()),
        })
    }

    /// What a client has to trust.
    #[must_use]
    pub fn authority(&self) -> &str {
        &self.authority
    }

    pub(super) fn server(&self) -> Result<Arc<ServerConfig>> {
        let key = PrivateKeyDer::Pkcs8(self.key.clone_key());
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![self.server.clone()], key)?;
        Ok(Arc::new(config))
    }
}

/// Serves until the listener is gone.
pub(super) fn serve(
    listener: &TcpListener,
    at: SocketAddr,
    tls: Option<&Arc<ServerConfig>>,
    sightings: &Sightings,
) {
    while let Ok((client, _)) = listener.accept() {
        // Written down before a byte is read: a connection alone is already a way out.
        let opened = sightings.connection(at);
        let tls = tls.cloned();
        // A client may break off at any point; that it came is in the sightings.
        thread::spawn(move || drop(converse(client, tls, &opened)));
    }
}

fn converse(client: TcpStream, tls: Option<Arc<ServerConfig>>, opened: &Opened) -> io::Result<()> {
    client.set_read_timeout(Some(PATIENCE))?;
    client.set_nodelay(true)?;
    let Some(tls) = tls else {
        return respond(client, opened, None);
    };
    let mut connection = ServerConnection::new(tls).map_err(io::Error::other)?;
    let mut client = client;
    while connection.is_handshaking() {
        connection.complete_io(&mut client)?;
    }
    let name = connection.server_name().map(str::to_owned);
    if let Some(name) = &name {
        opened.named(name);
    }
    let mut stream = StreamOwned::new(connection, client);
    respond(&mut stream, opened, name)?;
    stream.conn.send_close_notify();
    stream.flush()
}

/// One request, one answer. Where TLS gave no name, the request does.
fn respond(mut stream: impl Read + Write, opened: &Opened, name: Option<String>) -> io::Result<()> {
    let mut reader = BufReader::new(&mut stream);
    let mut is_named = name.is_some();
    loop {
        let mut line = String::new();
        if reader.by_ref().take(8192).read_line(&mut line)? <= 2 {
            break;
        }
        let Some((header, value)) = line.split_once(':') else {
            continue;
        };
        if !is_named && header.eq_ignore_ascii_case("host") {
            let host = value.trim();
            opened.named(host.split(':').next().unwrap_or(host));
            is_named = true;
        }
    }
    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nok\n")?;
    stream.flush()
}

//! Serves connections whose host has to be verified: reads, compares, goes on to the real address, and
//! from there on only moves bytes.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use clawbox_common::decide::Route;
use clawbox_common::event::NetworkEvent;
use clawbox_common::verdict::{Reason, Verdict};
use rustix::net::{listen, sockopt};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use super::first_flight::{self, FirstFlight, LONGEST, Protocol};
use super::redirects::{Redirects, number_of};
use crate::dns::NameTable;
use crate::policy::address::readable;

/// Connections of one sandbox that pass through at one time; more wait to be accepted. Two descriptors
/// each, of as many as the agent may have.
const CONNECTIONS: usize = 1024;
/// Connections that wait to be accepted, as far as the host lets them (`net.core.somaxconn`).
const BACKLOG: i32 = 4096;
/// How long a client may take to say whom it wants to speak to.
const FIRST: Duration = Duration::from_secs(15);
/// How long the host may take to answer.
pub(super) const CONNECT: Duration = Duration::from_secs(60);
/// A pause after an error that may last, such as a lack of descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// A fatal `access_denied` alert (RFC 8446, 6.2), which a client shows as what it is.
const ALERT: [u8; 7] = [21, 3, 3, 0, 2, 2, 49];
/// The same for people.
const FORBIDDEN: &[u8] =
    b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

/// What came of a connection, for the audit trail.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// When.
    pub time: SystemTime,
    /// The connection, as the kernel wrote it down.
    pub event: NetworkEvent,
    /// Whether it went on.
    pub verdict: Verdict,
    /// Why.
    pub reason: Reason,
    /// The host that was named.
    pub named: Option<String>,
}

/// Hears of every connection.
pub trait Observer: Send + Sync {
    /// One has gone on, or been refused.
    fn connection(&self, outcome: Outcome);
}

/// Verifies the connections of one sandbox.
pub struct Verifier {
    /// What they were made for.
    pub redirects: Arc<dyn Redirects>,
    /// The names behind the numbers.
    pub names: Arc<NameTable>,
    /// Who hears of them.
    pub observer: Arc<dyn Observer>,
    /// Whether refusals are only recorded.
    pub audit_only: Arc<dyn Fn() -> bool + Send + Sync>,
}

/// A socket on 127.0.0.1 that nobody serves yet, and its port.
///
/// # Errors
/// The loopback interface is down, or no port is free.
pub fn bind() -> io::Result<(std::net::TcpListener, u16)> {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    listen(&listener, BACKLOG)?;
    listener.set_nonblocking(true)?;
    let port = listener.local_addr()?.port();
    Ok((listener, port))
}

impl Verifier {
    /// Serves until it is dropped. It must run inside a tokio runtime.
    ///
    /// # Errors
    /// The socket cannot be watched.
    pub async fn serve(self: Arc<Self>, listener: std::net::TcpListener) -> io::Result<()> {
        let listener = TcpListener::from_std(listener)?;
        let room = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let Ok(place) = Arc::clone(&room).acquire_owned().await else { return Ok(()) };
            match listener.accept().await {
                Ok((client, source)) => {
                    let verifier = Arc::clone(&self);
                    tokio::spawn(async move {
                        verifier.connection(client, source).await;
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::warn!("connections that are to be verified wait: {error}");
                    sleep(PAUSE).await;
                }
            }
        }
    }

    async fn connection(&self, mut client: TcpStream, source: SocketAddr) {
        let found = number_of(source).map(|number| self.redirects.take(number));
        let event = match found {
            Some(Ok(Some(event))) if event.route == Route::Verifier as u8 => event,
            // Nobody of a sandbox can come from elsewhere; what is too old is refused.
            _ => return abort(&client),
        };
        let mut said = Vec::new();
        let first = first_flight(&mut client, &mut said).await;
        let wanted = self.names.name_of(event.name);
        let (verdict, reason) = judged(first.as_ref(), wanted.as_deref());
        let named = first.as_ref().and_then(|first| first.host.clone());
        let time = SystemTime::now();
        self.observer.connection(Outcome { time, event, verdict, reason, named });
        if verdict == Verdict::Deny && !(self.audit_only)() {
            return refuse(client, first.map(|first| first.protocol)).await;
        }
        if let Err(error) = go_on(client, &said, &event).await {
            tracing::debug!("a verified connection ended: {error}");
        }
    }
}

/// Reads until it is clear who is meant, or that it never will be.
async fn first_flight(client: &mut TcpStream, said: &mut Vec<u8>) -> Option<FirstFlight> {
    let reading = async {
        while said.len() <= LONGEST {
            if client.read_buf(said).await.ok()? == 0 {
                return None;
            }
            match first_flight::read(said) {
                Ok(Some(first)) => return Some(first),
                Ok(None) => {}
                Err(_) => return None,
            }
        }
        None
    };
    timeout(FIRST, reading).await.ok().flatten()
}

/// Whether what was said is about the host that the connection was made for.
fn judged(first: Option<&FirstFlight>, wanted: Option<&str>) -> (Verdict, Reason) {
    let Some(first) = first else { return (Verdict::Deny, Reason::NoHost) };
    if first.is_hidden {
        return (Verdict::Deny, Reason::HiddenHost);
    }
    let is_meant = match (&first.host, wanted) {
        (Some(named), Some(wanted)) => named.eq_ignore_ascii_case(wanted.trim_end_matches('.')),
        _ => false,
    };
    if is_meant { (Verdict::Allow, Reason::Rule) } else { (Verdict::Deny, Reason::OtherHost) }
}

/// Connects to the real address, says what was said, and moves bytes until both sides are done.
async fn go_on(client: TcpStream, said: &[u8], event: &NetworkEvent) -> io::Result<()> {
    let to = SocketAddr::new(readable(event.real), event.port);
    let connecting = timeout(CONNECT, TcpStream::connect(to)).await;
    let mut server = match connecting.map_err(io::Error::from).flatten() {
        Ok(server) => server,
        Err(error) => {
            abort(&client);
            return Err(error);
        }
    };
    // A policy that was narrowed meanwhile has reset it: what it has said goes nowhere.
    client.peer_addr()?;
    server.set_nodelay(true)?;
    server.write_all(said).await?;
    join(client, server).await
}

/// Moves bytes between two connections until both sides are done.
pub(super) async fn join(mut client: TcpStream, mut server: TcpStream) -> io::Result<()> {
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let moved = copy_bidirectional(&mut client, &mut server).await;
    if moved.is_err() {
        // Whoever was cut off, the other one does not take what has come so far for the whole.
        abort(&client);
        abort(&server);
    }
    moved.map(drop)
}

async fn refuse(mut client: TcpStream, protocol: Option<Protocol>) {
    let answer: &[u8] = match protocol {
        Some(Protocol::Tls) => &ALERT,
        Some(Protocol::Http) => FORBIDDEN,
        None => return abort(&client),
    };
    // Best effort: the connection ends either way.
    let _ = client.write_all(answer).await;
    let _ = client.shutdown().await;
}

/// A reset, when it is dropped.
fn abort(stream: &TcpStream) {
    if let Err(error) = sockopt::set_socket_linger(stream, Some(Duration::ZERO)) {
        tracing::debug!("a connection ends without a reset: {error}");
    }
}

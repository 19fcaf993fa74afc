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
use super::hidden::{HiddenConnections, Hiding, MadeFor};
use super::network::Network;
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
    /// Whether another one is, or may be, hidden behind it.
    pub is_hidden: bool,
}

/// Hears of every connection.
pub trait Observer: Send + Sync {
    /// One has gone on, or been refused.
    fn connection(&self, outcome: Outcome);
}

/// Whether the policy lets a name be hidden on a connection, by what the kernel wrote down of it and the
/// name that it was made for.
pub type AdmitsHidden = dyn Fn(&NetworkEvent, &str) -> bool + Send + Sync;

/// Verifies the connections of one sandbox.
pub struct Verifier {
    /// Whose. What another one's was made for is nothing to it, whatever address a connection comes from.
    pub sandbox: u32,
    /// What they were made for.
    pub redirects: Arc<dyn Redirects>,
    /// The names behind the numbers.
    pub names: Arc<NameTable>,
    /// Who hears of them.
    pub observer: Arc<dyn Observer>,
    /// Whether refusals are only recorded.
    pub audit_only: Arc<dyn Fn() -> bool + Send + Sync>,
    /// Whether a name may be hidden.
    pub admits_hidden: Arc<AdmitsHidden>,
    /// Where one is.
    pub hidden: Arc<HiddenConnections>,
    /// Where the connections go on from.
    pub network: Network,
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
            Some(Ok(Some(event)))
                if event.route == Route::Verifier as u8 && event.header.sandbox == self.sandbox =>
            {
                event
            }
            // Nobody of a sandbox can come from elsewhere; what is too old is refused.
            _ => return abort(&client),
        };
        let mut said = Vec::new();
        let first = first_flight(&mut client, &mut said).await;
        let wanted = self.names.name_of(event.name);
        let is_hidden = first.as_ref().is_some_and(|first| first.is_hidden);
        // Before it is judged: a policy that changes in between finds it here.
        let hiding = is_hidden.then(|| {
            let name = wanted.clone().unwrap_or_default();
            let made_for = MadeFor { name, real: readable(event.real), port: event.port };
            self.hidden.begin(event.cookie, made_for)
        });
        let may_hide = |name: &str| (self.admits_hidden)(&event, name);
        let (verdict, reason) = judged(first.as_ref(), wanted.as_deref(), may_hide);
        let named = first.as_ref().and_then(|first| first.host.clone());
        let time = SystemTime::now();
        self.observer.connection(Outcome { time, event, verdict, reason, named, is_hidden });
        if verdict == Verdict::Deny && !(self.audit_only)() {
            return refuse(client, first.map(|first| first.protocol)).await;
        }
        if let Err(error) = self.go_on(client, &said, &event, hiding).await {
            tracing::debug!("a verified connection ended: {error}");
        }
    }

    /// Connects to the real address, says what was said, and moves bytes until both sides are done.
    async fn go_on(
        &self,
        client: TcpStream,
        said: &[u8],
        event: &NetworkEvent,
        hiding: Option<Hiding>,
    ) -> io::Result<()> {
        let to = SocketAddr::new(readable(event.real), event.port);
        let connecting = timeout(CONNECT, self.network.connect(to)).await;
        let mut server = match connecting.map_err(io::Error::from).flatten() {
            Ok(server) => server,
            Err(error) => {
                abort(&client);
                return Err(error);
            }
        };
        // A policy that was narrowed meanwhile has reset it: what it has said goes nowhere.
        client.peer_addr()?;
        if hiding.as_ref().is_some_and(Hiding::has_ended) {
            abort(&client);
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        server.set_nodelay(true)?;
        server.write_all(said).await?;
        let ended = async {
            match &hiding {
                Some(hiding) => hiding.ended().await,
                None => std::future::pending().await,
            }
        };
        join(client, server, ended).await
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
fn judged(
    first: Option<&FirstFlight>,
    wanted: Option<&str>,
    may_hide: impl FnOnce(&str) -> bool,
) -> (Verdict, Reason) {
    let Some(first) = first else { return (Verdict::Deny, Reason::NoHost) };
    if first.is_hidden && !wanted.is_some_and(may_hide) {
        return (Verdict::Deny, Reason::HiddenHost);
    }
    let is_meant = match (&first.host, wanted) {
        (Some(named), Some(wanted)) => named.eq_ignore_ascii_case(wanted.trim_end_matches('.')),
        _ => false,
    };
    if is_meant { (Verdict::Allow, Reason::Rule) } else { (Verdict::Deny, Reason::OtherHost) }
}

/// Moves bytes between two connections until both sides are done, or `ended` is.
pub(super) async fn join(
    mut client: TcpStream,
    mut server: TcpStream,
    ended: impl Future<Output = ()>,
) -> io::Result<()> {
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let moved = tokio::select! {
        moved = copy_bidirectional(&mut client, &mut server) => moved,
        () = ended => Err(io::ErrorKind::ConnectionReset.into()),
    };
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

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::sync::Mutex;

    use clawbox_common::address::{Address, redirect_address};
    use clawbox_common::event::Header;
    use socket2::{Domain, Socket, Type};

    use super::*;

    /// One connection, as the kernel's table has it.
    struct One(Mutex<Option<NetworkEvent>>);

    impl Redirects for One {
        fn take(&self, _: u32) -> io::Result<Option<NetworkEvent>> {
            Ok(self.0.lock().unwrap().take())
        }
    }

    struct Nobody;

    impl Observer for Nobody {
        fn connection(&self, _: Outcome) {}
    }

    /// What comes of a connection that this sandbox's table says was made for `far`, at the verifier of
    /// another one or its own.
    async fn comes_to(far: SocketAddr, number: u32, sandbox: u32) -> io::Result<usize> {
        let header = Header { sandbox: 7, ..Header::default() };
        let IpAddr::V4(address) = far.ip() else { panic!("{far}") };
        let real = Address::v4(address.to_bits().to_be());
        let route = Route::Verifier as u8;
        let event =
            NetworkEvent { header, real, port: far.port(), route, ..NetworkEvent::default() };
        let verifier = Arc::new(Verifier {
            sandbox,
            redirects: Arc::new(One(Mutex::new(Some(event)))),
            names: Arc::default(),
            observer: Arc::new(Nobody),
            // So that the name is nothing that it fails for.
            audit_only: Arc::new(|| true),
            admits_hidden: Arc::new(|_, _| false),
            hidden: Arc::default(),
            network: Network::default(),
        });
        let (listener, port) = bind().unwrap();
        let serving = tokio::spawn(verifier.serve(listener));
        let client = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let source = Ipv4Addr::from_bits(redirect_address(number));
        client.bind(&SocketAddr::from((source, 0)).into()).unwrap();
        client.connect(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)).into()).unwrap();
        client.set_nonblocking(true).unwrap();
        let mut client = TcpStream::from_std(client.into()).unwrap();
        client.write_all(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await?;
        let mut bytes = [0; 16];
        // Whoever is let through to a far side that says nothing would wait for ever.
        let read = tokio::time::timeout(Duration::from_secs(10), client.read(&mut bytes)).await;
        serving.abort();
        read.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    #[tokio::test]
    async fn a_verifier_takes_no_connection_on_that_was_made_for_another_sandbox() {
        let far = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let at = far.local_addr().unwrap();
        let number = std::process::id() << 2 & 0x003f_ffff;
        let other = comes_to(at, number | 1, 8).await;
        assert_eq!(other.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        let answering = tokio::spawn(async move {
            let (mut stream, _) = far.accept().await.unwrap();
            stream.write_all(b"x").await.unwrap();
        });
        assert_eq!(comes_to(at, number | 2, 7).await.unwrap(), 1);
        answering.await.unwrap();
    }

    #[test]
    fn a_hidden_name_passes_only_where_it_may_and_the_outer_one_is_the_hosts() {
        let said = |host: Option<&str>, is_hidden| {
            let host = host.map(str::to_owned);
            FirstFlight { protocol: Protocol::Tls, host, is_hidden }
        };
        let allow = (Verdict::Allow, Reason::Rule);
        let other = (Verdict::Deny, Reason::OtherHost);
        let hidden = (Verdict::Deny, Reason::HiddenHost);
        for (first, wanted, may_hide, expected) in [
            (said(Some("a.test"), false), Some("a.test."), false, allow),
            (said(Some("a.test"), true), Some("a.test"), true, allow),
            (said(Some("a.test"), true), Some("a.test"), false, hidden),
            (said(Some("b.test"), true), Some("a.test"), true, other),
            (said(None, true), Some("a.test"), true, other),
            (said(Some("a.test"), true), None, true, hidden),
            (said(Some("a.test"), false), None, true, other),
        ] {
            let judged = judged(Some(&first), wanted, |name| {
                assert_eq!(Some(name), wanted);
                may_hide
            });
            assert_eq!(judged, expected, "{first:?} {wanted:?}");
        }
        assert_eq!(judged(None, Some("a.test"), |_| true), (Verdict::Deny, Reason::NoHost));
    }
}

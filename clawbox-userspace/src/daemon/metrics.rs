//! Serves the daemon's metrics, as Prometheus reads them. A scrape asks the daemon's loop for numbers and
//! makes text of them beside it, at most once a second however many ask.

use std::convert::Infallible;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use nix::sys::stat::{Mode, umask};
use nix::unistd::Group;
use prometheus::proto::MetricFamily;
use prometheus::{TEXT_FORMAT, TextEncoder};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::{Mutex, Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;

use super::listen_at::ListenAt;
use crate::api::GROUP;
use crate::api::peer::Peer;
use crate::sandbox::confined::is_confined;

/// How long a text is given to whoever asks.
const FRESH: Duration = Duration::from_secs(1);

/// How long a client may take for its question and our answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Clients at one time; others wait until they are accepted.
const CLIENTS: usize = 8;

/// A pause after an error that may last, such as a lack of descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// What the loop is asked for.
pub type Ask = oneshot::Sender<Vec<MetricFamily>>;

/// The server, and what it asks the loop.
pub struct Metrics {
    asks: mpsc::Sender<Ask>,
    asked: mpsc::Receiver<Ask>,
    at: ListenAt,
    server: Option<JoinHandle<()>>,
}

/// What clients share.
struct Shared {
    asks: mpsc::Sender<Ask>,
    last: Mutex<Option<(Instant, Bytes)>>,
}

/// A client's end of a connection.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

enum Listener {
    Unix(UnixListener),
    Loopback(TcpListener),
}

impl Metrics {
    /// Served nowhere yet.
    #[must_use]
    pub fn new() -> Self {
        let (asks, asked) = mpsc::channel(1);
        Self { asks, asked, at: ListenAt::Off, server: None }
    }

    /// Serves them there, and where it did before no longer. Call it inside the runtime.
    ///
    /// # Errors
    /// It cannot listen there; it serves on where it did.
    pub async fn serve(&mut self, at: &ListenAt) -> io::Result<()> {
        if *at == self.at {
            return Ok(());
        }
        let listener = match at {
            ListenAt::Off => None,
            ListenAt::Unix(path) => Some(Listener::Unix(bind(path)?)),
            ListenAt::Loopback(address) => {
                let listener = std::net::TcpListener::bind(address)?;
                listener.set_nonblocking(true)?;
                Some(Listener::Loopback(TcpListener::from_std(listener)?))
            }
        };
        self.stop().await;
        let shared = Arc::new(Shared { asks: self.asks.clone(), last: Mutex::default() });
        self.server = listener.map(|listener| tokio::spawn(accept(listener, shared)));
        self.at = at.clone();
        Ok(())
    }

    /// Serves them no longer: when it returns nobody listens there.
    pub async fn stop(&mut self) {
        if let Some(server) = self.server.take() {
            server.abort();
            // Ended by us: that it was is no news.
            drop(server.await);
        }
        if let ListenAt::Unix(path) = std::mem::take(&mut self.at) {
            drop(fs::remove_file(path));
        }
    }

    /// Waits for a scrape.
    pub async fn asked(&mut self) -> Option<Ask> {
        self.asked.recv().await
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// A socket that at no moment is open to others than root and, where that exists, [`GROUP`].
fn bind(path: &Path) -> io::Result<UnixListener> {
    if let Some(directory) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o711).create(directory)?;
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // The whole process's, which has one thread.
    let before = umask(Mode::from_bits_truncate(0o177));
    let listener = std::os::unix::net::UnixListener::bind(path);
    umask(before);
    let listener = listener?;
    if let Ok(Some(group)) = Group::from_name(GROUP) {
        chown(path, None, Some(group.gid.as_raw()))?;
        fs::set_permissions(path, Permissions::from_mode(0o660))?;
    }
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

impl Listener {
    async fn accept(&self) -> io::Result<Box<dyn Stream>> {
        match self {
            Self::Unix(listener) => Ok(Box::new(heard(listener.accept().await?.0)?)),
            // No sandbox has the host's loopback: the connect hook says so.
            Self::Loopback(listener) => Ok(Box::new(listener.accept().await?.0)),
        }
    }
}

async fn accept(listener: Listener, shared: Arc<Shared>) {
    let room = Arc::new(Semaphore::new(CLIENTS));
    loop {
        let Ok(seat) = Arc::clone(&room).acquire_owned().await else { return };
        match listener.accept().await {
            Ok(stream) => {
                let shared = Arc::clone(&shared);
                tokio::spawn(async move {
                    answer(stream, shared).await;
                    drop(seat);
                });
            }
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                tracing::warn!("metrics: {error}");
            }
            Err(error) => {
                tracing::debug!("a client of the metrics: {error}");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// A client, unless it is a sandbox's: of that nothing is even read.
fn heard(stream: UnixStream) -> io::Result<UnixStream> {
    let peer = Peer::of(&stream)?;
    if is_confined(peer.pid) || peer.has_ended() {
        let why = format!("process {} of a sandbox has no say here", peer.pid);
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
    }
    Ok(stream)
}

async fn answer(stream: Box<dyn Stream>, shared: Arc<Shared>) {
    let service = service_fn(|request| reply(request, &shared));
    let connection = hyper::server::conn::http1::Builder::new()
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(PATIENCE, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!("a client of the metrics: {error}"),
        Err(_) => tracing::debug!("a client of the metrics took too long"),
    }
}

async fn reply(
    request: Request<Incoming>,
    shared: &Shared,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let plain = |status, text: &'static str| {
        let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
        *response.status_mut() = status;
        response
    };
    if request.uri().path() != "/metrics" {
        return Ok(plain(StatusCode::NOT_FOUND, "metrics are at /metrics\n"));
    }
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "metrics are to be read\n");
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return Ok(response);
    }
    let Some(text) = shared.text().await else {
        return Ok(plain(StatusCode::SERVICE_UNAVAILABLE, "the daemon is stopping\n"));
    };
    let mut response = Response::new(Full::new(text));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(TEXT_FORMAT));
    Ok(response)
}

impl Shared {
    /// The text, made anew where it is old. `None` if the daemon gives no numbers any more.
    async fn text(&self) -> Option<Bytes> {
        // Who asks meanwhile waits, and is given the same.
        let mut last = self.last.lock().await;
        if let Some((made, text)) = &*last
            && made.elapsed() < FRESH
        {
            return Some(text.clone());
        }
        let (ask, numbers) = oneshot::channel();
        self.asks.send(ask).await.ok()?;
        let families = numbers.await.ok()?;
        let mut text = String::new();
        for family in &families {
            let encoded = TextEncoder::new().encode_utf8(std::slice::from_ref(family), &mut text);
            if let Err(error) = encoded {
                tracing::debug!("a metric is left out: {error}");
            }
            // The daemon's loop is on this thread.
            tokio::task::yield_now().await;
        }
        let text = Bytes::from(text);
        *last = Some((Instant::now(), text.clone()));
        Some(text)
    }
}

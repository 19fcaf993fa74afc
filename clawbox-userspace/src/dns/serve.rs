//! Moves packets between a sandbox and its resolver, with a bound on everything that waits.
//! Who asks faster than names can be looked up waits in the kernel's socket queues.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{JoinSet, yield_now};
use tokio::time::{sleep, timeout};

use super::contract::Transport;
use super::listener::{Pair, ResolverSockets};
use super::resolver::{Resolver, Step};
use super::wire::PACKET;

/// Questions of one sandbox that are upstream at one time.
const QUESTIONS: usize = 256;
/// Questions that are decided before the first of their answers is sent.
const AT_ONCE: usize = 16;
/// Connections to one socket at one time.
const CONNECTIONS: usize = 64;
/// Answers on one connection that wait for the client to read.
const ANSWERS: usize = 16;
/// How long a connection may take to bring the next whole question, or to take an answer. Longer
/// than any upstream, so that nothing outstanding is cut off.
const IDLE: Duration = Duration::from_secs(10);
/// A pause after an error that may last, such as a lack of descriptors.
const PAUSE: Duration = Duration::from_millis(100);

impl Resolver {
    /// Answers questions until it is dropped. It must run inside a tokio runtime with I/O and
    /// time enabled; what it has started ends with it.
    ///
    /// # Errors
    /// The sockets cannot be watched, or a part of the resolver has failed. The sandbox has no
    /// name service from then on.
    pub async fn serve(self: Arc<Self>, sockets: ResolverSockets) -> io::Result<()> {
        let questions = Arc::new(Semaphore::new(QUESTIONS));
        let mut parts = JoinSet::new();
        for Pair { udp, tcp, .. } in [Some(sockets.v4), sockets.v6].into_iter().flatten() {
            let udp = Arc::new(UdpSocket::from_std(udp)?);
            let tcp = TcpListener::from_std(tcp)?;
            parts.spawn(datagrams(Arc::clone(&self), udp, Arc::clone(&questions)));
            parts.spawn(connections(Arc::clone(&self), tcp, Arc::clone(&questions)));
        }
        parts.spawn(async move {
            loop {
                self.sweep_once().await;
            }
        });
        let ended = parts.join_next().await;
        let cause = ended.and_then(Result::err).map(|e| e.to_string());
        Err(io::Error::other(format!(
            "a part of the sandbox's resolver ended: {}; restart the sandbox and report this",
            cause.unwrap_or_else(|| "no cause known".to_owned())
        )))
    }
}

async fn datagrams(resolver: Arc<Resolver>, socket: Arc<UdpSocket>, questions: Arc<Semaphore>) {
    let mut tasks = JoinSet::new();
    let mut replies = Vec::new();
    loop {
        while tasks.try_join_next().is_some() {}
        if socket.readable().await.is_err() {
            sleep(PAUSE).await;
            continue;
        }
        // A thousand sandboxes that ask nothing have none. One byte more than a question may have, so that
        // a longer one is recognised.
        let mut buffer = vec![0; PACKET + 1];
        let next = socket.try_recv_from(&mut buffer);
        if next.as_ref().is_err_and(|error| error.kind() != io::ErrorKind::WouldBlock) {
            sleep(PAUSE).await;
        }
        let mut next = next.ok();
        while let Some((length, client)) = next {
            let packet = buffer.get(..length).unwrap_or_default();
            match resolver.receive(packet, Transport::Udp, client) {
                Step::Ignore => {}
                Step::Reply(reply) => replies.push((reply, client)),
                Step::Ask(asked) => {
                    // Who can be answered now does not wait for a place among those who cannot.
                    send_all(&socket, &mut replies).await;
                    let Ok(permit) = Arc::clone(&questions).acquire_owned().await else {
                        return;
                    };
                    let (resolver, socket) = (Arc::clone(&resolver), Arc::clone(&socket));
                    tasks.spawn(async move {
                        if let Some(reply) = resolver.resolve(asked).await {
                            send(&socket, &reply, client).await;
                        }
                        drop(permit);
                    });
                }
            }
            if let Some(wait) = resolver.paced() {
                send_all(&socket, &mut replies).await;
                sleep(wait).await;
                break;
            }
            if replies.len() >= AT_ONCE {
                break;
            }
            next = socket.try_recv_from(&mut buffer).ok();
        }
        send_all(&socket, &mut replies).await;
        // Where questions never stop coming, the rest of the agent has its turn all the same: the
        // more of them wait to be written down, the longer everybody waits for it.
        yield_now().await;
    }
}

async fn send_all(socket: &UdpSocket, replies: &mut Vec<(Vec<u8>, SocketAddr)>) {
    for (reply, client) in replies.drain(..) {
        send(socket, &reply, client).await;
    }
}

/// A datagram that cannot be sent is lost like any other.
async fn send(socket: &UdpSocket, reply: &[u8], client: SocketAddr) {
    if let Err(error) = socket.send_to(reply, client).await {
        tracing::debug!(%error, %client, "answer not sent");
    }
}

async fn connections(resolver: Arc<Resolver>, socket: TcpListener, questions: Arc<Semaphore>) {
    let mut tasks = JoinSet::new();
    loop {
        while tasks.try_join_next().is_some() {}
        while tasks.len() >= CONNECTIONS {
            tasks.join_next().await;
        }
        match socket.accept().await {
            Ok((stream, client)) => {
                let (resolver, questions) = (Arc::clone(&resolver), Arc::clone(&questions));
                tasks.spawn(connection(resolver, stream, client, questions));
            }
            Err(_) => sleep(PAUSE).await,
        }
    }
}

/// Serves one connection until the client ends it, is idle or does not read. Questions may be
/// pipelined, and are answered as their answers come (RFC 7766).
async fn connection(
    resolver: Arc<Resolver>,
    stream: TcpStream,
    client: SocketAddr,
    questions: Arc<Semaphore>,
) {
    let (read, write) = stream.into_split();
    let (answers, waiting) = mpsc::channel(ANSWERS);
    // Outlives the reading half: a client that has asked all it wants still gets its answers.
    let mut tasks = JoinSet::new();
    let reading = read_questions(resolver, read, client, questions, answers, &mut tasks);
    // An error on either side ends both, and with them the questions that are outstanding.
    let ended = tokio::try_join!(reading, write_answers(write, waiting));
    if let Err(error) = ended {
        tracing::debug!(%error, %client, "connection ended");
    }
}

async fn read_questions(
    resolver: Arc<Resolver>,
    mut stream: OwnedReadHalf,
    client: SocketAddr,
    questions: Arc<Semaphore>,
    answers: mpsc::Sender<Vec<u8>>,
    tasks: &mut JoinSet<()>,
) -> io::Result<()> {
    let mut buffer = Vec::new();
    loop {
        while tasks.try_join_next().is_some() {}
        match timeout(IDLE, read_question(&mut stream, &mut buffer)).await {
            Ok(Ok(true)) => {}
            // No more questions; dropping `answers` lets the writer finish what is outstanding.
            Ok(Ok(false)) | Err(_) => return Ok(()),
            Ok(Err(error)) => return Err(error),
        }
        if let Some(wait) = resolver.paced() {
            sleep(wait).await;
        }
        match resolver.receive(&buffer, Transport::Tcp, client) {
            Step::Ignore => {}
            Step::Reply(reply) => answers.send(reply).await.map_err(io::Error::other)?,
            Step::Ask(asked) => {
                let permit =
                    Arc::clone(&questions).acquire_owned().await.map_err(io::Error::other)?;
                let (resolver, answers) = (Arc::clone(&resolver), answers.clone());
                tasks.spawn(async move {
                    if let Some(reply) = resolver.resolve(asked).await {
                        // The writer is gone only if the connection is.
                        let _ = answers.send(reply).await;
                    }
                    drop(permit);
                });
            }
        }
    }
}

/// Reads a question with its length in front; false if the client has no more, or sends what
/// cannot be a question.
async fn read_question(stream: &mut OwnedReadHalf, buffer: &mut Vec<u8>) -> io::Result<bool> {
    let length = match stream.read_u16().await {
        Ok(length) => usize::from(length),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
        Err(error) => return Err(error),
    };
    if length == 0 || length > PACKET {
        return Ok(false);
    }
    buffer.resize(length, 0);
    stream.read_exact(buffer).await?;
    Ok(true)
}

async fn write_answers(
    mut stream: OwnedWriteHalf,
    mut waiting: mpsc::Receiver<Vec<u8>>,
) -> io::Result<()> {
    while let Some(answer) = waiting.recv().await {
        let Ok(length) = u16::try_from(answer.len()) else {
            continue;
        };
        // One write, so that length and answer travel together.
        let mut framed = Vec::with_capacity(2 + answer.len());
        framed.extend_from_slice(&length.to_be_bytes());
        framed.extend_from_slice(&answer);
        timeout(IDLE, stream.write_all(&framed)).await.map_err(io::Error::from)??;
    }
    stream.shutdown().await
}

//! Servers of the far side and of the sandbox's own host. Each writes down what reached it and
//! from whom, and answers so that a client can tell it was really reached.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::network::FAR;

/// How long a client may take to say something.
const PATIENCE: Duration = Duration::from_secs(20);

/// Tells threads to end, by being dropped.
pub struct Stop {
    reader: io::PipeReader,
    _writer: io::PipeWriter,
}

impl Stop {
    pub(crate) fn new() -> Self {
        let (reader, writer) = io::pipe().expect("a pipe");
        Self { reader, _writer: writer }
    }

    pub(crate) fn reader(&self) -> io::PipeReader {
        self.reader.try_clone().expect("a descriptor can be copied")
    }
}

/// Waits until a socket has something. False when it is time to end.
pub(crate) fn readable(socket: &impl AsFd, stopped: &io::PipeReader) -> bool {
    let mut waited = [
        PollFd::new(socket.as_fd(), PollFlags::POLLIN),
        PollFd::new(stopped.as_fd(), PollFlags::POLLIN),
    ];
    while poll(&mut waited, PollTimeout::NONE).is_err() {}
    waited[1].revents().is_none_or(|events| events.is_empty())
}

/// Something that reached a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// Who sent it.
    pub from: SocketAddr,
    /// Where it arrived.
    pub to: SocketAddr,
    /// What was said: the first line of a connection, a whole datagram.
    pub said: String,
}

type Arrivals = Arc<Mutex<Vec<Arrival>>>;

/// A running service.
pub struct Service {
    arrivals: Arrivals,
    _stop: Stop,
}

impl Service {
    /// A web server on every address of the calling thread's host: answers each request with one
    /// line that names the host asked for and the address that was reached.
    #[must_use]
    pub fn http(port: u16) -> Self {
        Self::tcp(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)), serve_request)
    }

    /// Sends lines back, on every address of the calling thread's host.
    #[must_use]
    pub fn echo(port: u16) -> Self {
        Self::tcp(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)), serve_lines)
    }

    /// Sends lines back at one address.
    #[must_use]
    pub fn echo_at(at: SocketAddr) -> Self {
        Self::tcp(at, serve_lines)
    }

    fn tcp(at: SocketAddr, serve: fn(TcpStream, &Arrivals) -> io::Result<()>) -> Self {
        let listener =
            TcpListener::bind(at).unwrap_or_else(|error| panic!("cannot listen at {at}: {error}"));
        let service = Self { arrivals: Arrivals::default(), _stop: Stop::new() };
        let (arrivals, stopped) = (Arc::clone(&service.arrivals), service._stop.reader());
        thread::spawn(move || {
            while readable(&listener, &stopped) {
                let Ok((stream, _)) = listener.accept() else {
                    continue;
                };
                let arrivals = Arc::clone(&arrivals);
                thread::spawn(move || serve(stream, &arrivals));
            }
        });
        service
    }

    /// Sends datagrams back from the address they came to, on every address of the far side.
    #[must_use]
    pub fn datagrams(port: u16) -> Self {
        Self::datagrams_at(FAR.iter().map(|address| SocketAddr::new(*address, port)))
    }

    /// Sends datagrams back at these addresses.
    #[must_use]
    pub fn datagrams_at(addresses: impl IntoIterator<Item = SocketAddr>) -> Self {
        let service = Self { arrivals: Arrivals::default(), _stop: Stop::new() };
        for at in addresses {
            let socket = UdpSocket::bind(at).unwrap_or_else(|error| panic!("bind {at}: {error}"));
            let (arrivals, stopped) = (Arc::clone(&service.arrivals), service._stop.reader());
            thread::spawn(move || {
                let mut buffer = [0; 2048];
                while readable(&socket, &stopped) {
                    let Ok((length, from)) = socket.recv_from(&mut buffer) else {
                        continue;
                    };
                    let said = String::from_utf8_lossy(&buffer[..length]).into_owned();
                    note(&arrivals, Arrival { from, to: at, said });
                    let _ = socket.send_to(&buffer[..length], from);
                }
            });
        }
        service
    }

    /// What has reached it so far. A connection counts from when its first line is there.
    #[must_use]
    pub fn arrivals(&self) -> Vec<Arrival> {
        self.arrivals.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn note(arrivals: &Arrivals, arrival: Arrival) {
    arrivals.lock().unwrap_or_else(PoisonError::into_inner).push(arrival);
}

/// IPv4 as IPv4, also where an IPv6 socket took it.
fn plain(address: SocketAddr) -> SocketAddr {
    let ip: IpAddr = address.ip().to_canonical();
    SocketAddr::new(ip, address.port())
}

fn line(stream: &mut TcpStream) -> io::Result<String> {
    let mut line = Vec::new();
    let mut byte = [0];
    while line.len() < 4096 && stream.read(&mut byte)? == 1 && byte[0] != b'\n' {
        line.push(byte[0]);
    }
    Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
}

fn begin(stream: &mut TcpStream, arrivals: &Arrivals) -> io::Result<String> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let said = line(stream)?;
    let (from, to) = (plain(stream.peer_addr()?), plain(stream.local_addr()?));
    note(arrivals, Arrival { from, to, said: said.clone() });
    Ok(said)
}

fn serve_lines(mut stream: TcpStream, arrivals: &Arrivals) -> io::Result<()> {
    let mut said = begin(&mut stream, arrivals)?;
    while !said.is_empty() {
        stream.write_all(format!("{said}\n").as_bytes())?;
        said = line(&mut stream)?;
    }
    Ok(())
}

fn serve_request(mut stream: TcpStream, arrivals: &Arrivals) -> io::Result<()> {
    begin(&mut stream, arrivals)?;
    let mut host = String::new();
    loop {
        let header = line(&mut stream)?;
        if header.is_empty() {
            break;
        }
        if let Some((name, value)) = header.split_once(':')
            && name.eq_ignore_ascii_case("host")
        {
            value.trim().clone_into(&mut host);
        }
    }
    let body = format!("{host} at {}\n", plain(stream.local_addr()?).ip());
    stream.write_all(
        format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        )
        .as_bytes(),
    )
}

//! A connection on loopback that is there already, used from one end. The other end is outside every
//! sandbox and asleep meanwhile, so that nothing but the use itself is counted.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::socket::{MsgFlags, recv};

use crate::instructions::{of_batches, taken};

/// Names in the worker's answers, and for people.
pub const USES: [(&str, &str); 3] = [
    ("send", "send of a byte on a connection"),
    ("write", "write of a byte to a connection"),
    ("recv", "recv of a byte on a connection"),
];

/// Where the other end is: `ADDRESS`.
pub const PEER: &str = "CLAWBOX_BENCH_PEER";

/// Uses in a batch: fewer segments than TCP sends before the first is acknowledged.
const AGAIN: usize = 8;
const BATCHES: usize = 50;

/// How long the other end leaves what arrives alone, by the guest's clock: many times what a batch
/// takes.
const ASLEEP: Duration = Duration::from_millis(20);

/// Serves the other end of any number of connections.
pub fn serve() -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    std::thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            // Who hangs up has counted all it wanted.
            std::thread::spawn(move || answer(stream));
        }
    });
    Ok(address)
}

/// Sends a batch when it is asked to, sleeps, and takes what has come.
fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    loop {
        stream.read_exact(&mut [0])?;
        stream.write_all(&[7; AGAIN])?;
        std::thread::sleep(ASLEEP);
        stream.read_exact(&mut [0; AGAIN])?;
    }
}

/// Instructions of each of [`USES`].
pub fn counted() -> Result<Vec<(&'static str, f64)>> {
    let peer: SocketAddr = std::env::var(PEER).context("nobody to connect to")?.parse()?;
    let mut stream = TcpStream::connect(peer)?;
    stream.set_nodelay(true)?;
    let send = of_batches(BATCHES, |_| batch(&mut stream, |it| Ok(it.write_all(&[7])?), drained))?;
    // The other way into a socket, which other hooks see too.
    let put = |it: &mut TcpStream| Ok(nix::unistd::write(it, &[7]).map(drop)?);
    let write = of_batches(BATCHES, |_| batch(&mut stream, put, drained))?;
    let receive = of_batches(BATCHES, |_| {
        let mut each = 0.0;
        batch(
            &mut stream,
            |it| Ok(it.write_all(&[7])?),
            |it| {
                each = taken(|| (0..AGAIN).try_for_each(|_| Ok(it.read_exact(&mut [0])?)))?;
                Ok(())
            },
        )?;
        Ok(each / AGAIN as f64)
    })?;
    Ok(USES.iter().map(|(name, _)| *name).zip([send, write, receive]).collect())
}

/// Puts a batch into the connection, which counts, and takes one out.
fn batch(
    stream: &mut TcpStream,
    put: impl Fn(&mut TcpStream) -> Result<()>,
    take: impl FnOnce(&mut TcpStream) -> Result<()>,
) -> Result<f64> {
    stream.write_all(&[1])?;
    // All of it is there, and the other end asleep, before anything is counted.
    let there = MsgFlags::MSG_PEEK | MsgFlags::MSG_WAITALL;
    recv(stream.as_raw_fd(), &mut [0; AGAIN], there)?;
    let all = taken(|| (0..AGAIN).try_for_each(|_| put(stream)))?;
    take(stream)?;
    Ok(all / AGAIN as f64)
}

fn drained(stream: &mut TcpStream) -> Result<()> {
    Ok(stream.read_exact(&mut [0; AGAIN])?)
}

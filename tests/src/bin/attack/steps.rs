//! One step of an attack: `name` or `name=argument`. Sockets that a step opens to listen stay open
//! until a `close` step or the end.

use std::io::{self, Write};
use std::net::ToSocketAddrs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, bail};
use nix::errno::Errno;
use nix::libc;
use serde_json::{Value, json};

use crate::sockets::{self, Result};
use crate::{dial, process, question};

static HELD: Mutex<Vec<OwnedFd>> = Mutex::new(Vec::new());

/// Takes a step and prints its outcome.
pub fn take(step: &str) -> anyhow::Result<()> {
    let (name, argument) = step.split_once('=').unwrap_or((step, ""));
    let outcome = perform(name, argument);
    let mut line = json!({ "step": step, "pid": std::process::id() });
    match outcome {
        Ok(Ok(detail)) => {
            line["outcome"] = "ok".into();
            line["detail"] = detail;
        }
        Ok(Err(errno)) => line["outcome"] = format!("{errno:?}").into(),
        // Not the kernel's answer: the test must see that nothing was tried.
        Err(error) => {
            line["outcome"] = "failed".into();
            line["detail"] = format!("{error:#}").into();
        }
    }
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{line}").and_then(|()| stdout.flush()).context("nobody reads")
}

fn perform(name: &str, argument: &str) -> anyhow::Result<Result<Value>> {
    Ok(match name {
        "resolve" => Ok(resolve(argument)?),
        "dns" => question::ask(argument)?,
        "socket" => dial::socket_kind(argument)?,
        "connect-then-send" => {
            let (first, second) = argument.split_once(',').context("two addresses")?;
            dial::connect_then_send(dial::address(first)?, dial::address(second)?)
        }
        "inherited" => dial::on_socket(io::stdin().as_raw_fd(), dial::address(argument)?),
        "received" => {
            let socket = sockets::received_descriptor().context("no descriptor came")?;
            dial::on_socket(socket.as_raw_fd(), dial::address(argument)?)
        }
        "flood" => {
            let (count, to) = argument.split_once(',').context("a number and an address")?;
            Ok(dial::flood(count.parse()?, dial::address(to)?)?)
        }
        "fork-bomb" => {
            let (count, to) = argument.split_once(',').context("a number and an address")?;
            Ok(process::fork_bomb(count.parse()?, dial::address(to)?)?)
        }
        "bind" => hold(dial::listener(Some(dial::address(argument)?), true)),
        "bind-v6" => hold(dial::listener_of_v6_alone(dial::address(argument)?)),
        "bind-udp" => hold(dial::listener(Some(dial::address(argument)?), false)),
        "listen-unbound" => hold(dial::listener(None, true)),
        "close" => {
            HELD.lock().unwrap_or_else(PoisonError::into_inner).clear();
            Ok(Value::Null)
        }
        "keep" => {
            let port: u16 = argument.parse()?;
            let is_kept = |socket: &OwnedFd| {
                sockets::local(socket.as_raw_fd()).is_some_and(|local| local.port() == port)
            };
            HELD.lock().unwrap_or_else(PoisonError::into_inner).retain(is_kept);
            Ok(Value::Null)
        }
        "connect-name" => {
            let (name, port) = argument.split_once(':').context("a name and a port")?;
            let found = resolve(name)?;
            let ip: std::net::IpAddr = found[0].as_str().context("no address")?.parse()?;
            let to = std::net::SocketAddr::new(ip, port.parse()?);
            dial::by("connect", to).context("no way to connect")?
        }
        "line" => Ok(process::line()?.into()),
        "io-uring" => io_uring(),
        "write" => {
            let (path, text) = argument.split_once(',').context("a path and a text")?;
            errno_of(std::fs::write(path, text))?
        }
        way => match dial::by(way, dial::address(argument)?) {
            Some(outcome) => outcome,
            None => bail!("`{way}` is no step"),
        },
    })
}

fn hold(made: Result<(OwnedFd, Value)>) -> Result<Value> {
    made.map(|(socket, detail)| {
        HELD.lock().unwrap_or_else(PoisonError::into_inner).push(socket);
        detail
    })
}

fn errno_of(outcome: io::Result<()>) -> anyhow::Result<Result<Value>> {
    match outcome {
        Ok(()) => Ok(Ok(Value::Null)),
        Err(error) => {
            let number = error.raw_os_error().context("not an answer of the kernel")?;
            Ok(Err(Errno::from_raw(number)))
        }
    }
}

/// By `getaddrinfo`, as programs do.
fn resolve(name: &str) -> anyhow::Result<Value> {
    let found = (name, 0).to_socket_addrs()?;
    let mut addresses: Vec<String> = found.map(|address| address.ip().to_string()).collect();
    addresses.sort();
    addresses.dedup();
    Ok(addresses.into())
}

fn io_uring() -> Result<Value> {
    let mut parameters = [0_u8; 120];
    // SAFETY: the kernel reads and writes one `io_uring_params`, which is 120 bytes.
    let answer = unsafe { libc::syscall(libc::SYS_io_uring_setup, 4, parameters.as_mut_ptr()) };
    Errno::result(answer).map(|_| Value::Null)
}

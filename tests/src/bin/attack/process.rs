//! Who takes the steps: this process, a thread, a child, a daemon, a program executed by a thread
//! that is not the first, or one that has no file.

use std::ffi::CString;
use std::io::{BufRead, Write};
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::thread;

use anyhow::{Context, bail};
use nix::errno::Errno;
use nix::libc;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, execv, fork, pipe, read, setsid};
use serde_json::{Value, json};

use crate::{sockets, steps};

/// Takes the steps in `arguments`, in the way that the first one says if it is no step.
pub fn run(arguments: &[String]) -> anyhow::Result<()> {
    let Some((first, rest)) = arguments.split_first() else {
        return Ok(());
    };
    match first.as_str() {
        "in-thread" => thread::scope(|scope| {
            let thread = scope.spawn(|| run(rest));
            thread.join().unwrap_or_else(|_| bail!("the thread panicked"))
        }),
        "in-child" => in_child(rest),
        "as-daemon" => as_daemon(rest),
        "exec" => execute(rest),
        "exec-in-thread" => thread::scope(|scope| {
            let thread = scope.spawn(|| execute(rest));
            thread.join().unwrap_or_else(|_| bail!("the thread panicked"))
        }),
        "exec-from-memory" => execute_from_memory(rest),
        "exit" => {
            let status = rest.first().context("a status")?;
            std::process::exit(status.parse()?)
        }
        _ => arguments.iter().try_for_each(|step| steps::take(step)),
    }
}

/// The child's own end: nothing of the parent's state runs twice.
fn finish(outcome: anyhow::Result<()>) -> ! {
    let status = match outcome {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("attack: {error:#}");
            70
        }
    };
    // SAFETY: ends the process at once.
    unsafe { libc::_exit(status) }
}

fn in_child(arguments: &[String]) -> anyhow::Result<()> {
    // SAFETY: this process has one thread, so the child may do anything.
    match unsafe { fork() }? {
        ForkResult::Child => finish(run(arguments)),
        ForkResult::Parent { child } => match waitpid(child, None)? {
            WaitStatus::Exited(_, 0) => Ok(()),
            other => bail!("the child ended with {other:?}"),
        },
    }
}

/// Forks twice, so that the process is nobody's child any more, and waits until it has ended.
fn as_daemon(arguments: &[String]) -> anyhow::Result<()> {
    let (ended, alive) = pipe()?;
    // SAFETY: this process has one thread, so the child may do anything.
    match unsafe { fork() }? {
        ForkResult::Child => {
            drop(ended);
            let _ = setsid();
            // SAFETY: as above.
            match unsafe { fork() } {
                Ok(ForkResult::Child) => {
                    while nix::unistd::getppid().as_raw() == first_parent() {
                        thread::yield_now();
                    }
                    finish(run(arguments))
                }
                _ => finish(Ok(())),
            }
        }
        ForkResult::Parent { child } => {
            drop(alive);
            waitpid(child, None)?;
            // Readable only as the end of the file, when the daemon has ended.
            read(&ended, &mut [0])?;
            Ok(())
        }
    }
}

/// The session that a daemon was born into is named after its parent.
fn first_parent() -> i32 {
    nix::unistd::getsid(None).map_or(0, nix::unistd::Pid::as_raw)
}

fn words(arguments: &[String]) -> anyhow::Result<Vec<CString>> {
    Ok(arguments.iter().map(|word| CString::new(word.as_str())).collect::<Result<_, _>>()?)
}

fn execute(arguments: &[String]) -> anyhow::Result<()> {
    let words = words(arguments)?;
    let program = words.first().context("a program to execute")?;
    let Err(errno) = execv(program, &words);
    refused("exec", errno)
}

/// Copies a program into memory and executes it there.
fn execute_from_memory(arguments: &[String]) -> anyhow::Result<()> {
    use nix::sys::memfd::{MFdFlags, memfd_create};
    let words = words(arguments)?;
    let program = arguments.first().context("a program to execute")?;
    let memory = memfd_create("program", MFdFlags::empty())?;
    let path = CString::new(format!("/proc/self/fd/{}", memory.as_raw_fd()))?;
    let mut file = std::fs::File::from(memory);
    file.write_all(&std::fs::read(program)?)?;
    let Err(errno) = execv(&path, &words);
    refused("exec-from-memory", errno)
}

fn refused(step: &str, errno: Errno) -> anyhow::Result<()> {
    println!("{}", json!({ "step": step, "outcome": format!("{errno:?}") }));
    Ok(())
}

/// The next line of standard input; nothing at its end.
pub fn line() -> anyhow::Result<String> {
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line)?;
    Ok(line.trim_end().to_owned())
}

/// Many children at one time, each of which tries to connect; the outcomes by errno. All are
/// alive before the first tries.
pub fn fork_bomb(count: usize, to: SocketAddr) -> anyhow::Result<Value> {
    let address = sockets::encode(to);
    let (start, go) = pipe()?;
    let mut children = Vec::new();
    for _ in 0..count {
        // SAFETY: this process has one thread, so the child may do anything.
        match unsafe { fork() } {
            Ok(ForkResult::Child) => {
                drop(go);
                let _ = read(&start, &mut [0]);
                let socket = sockets::socket(sockets::family(to), libc::SOCK_DGRAM, 0);
                let outcome =
                    socket.and_then(|socket| sockets::connect(socket.as_raw_fd(), &address));
                let status = outcome.err().map_or(0, |errno| errno as i32);
                // SAFETY: ends the process at once.
                unsafe { libc::_exit(status) }
            }
            Ok(ForkResult::Parent { child }) => children.push(child),
            Err(_) => break,
        }
    }
    drop((start, go));
    let (mut denied, mut other) = (0, 0);
    for child in &children {
        match waitpid(*child, None)? {
            WaitStatus::Exited(_, status) if status == libc::EPERM => denied += 1,
            _ => other += 1,
        }
    }
    Ok(json!({ "children": children.len(), "EPERM": denied, "other": other }))
}

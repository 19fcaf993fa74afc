//! What a process does that has all of what its cgroup may have, and such a cgroup without a sandbox.

use std::fs;
use std::hint::{black_box, spin_loop};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, fork, pause};

use crate::worker::ARGUMENT;

/// Where a bound of processes is not reached.
const CHILDREN: usize = 64;
/// Bytes that are written to, of the 48 MiB of [`BOUNDS`].
const TOUCHED: usize = 40 << 20;
const SPINNING: usize = 4;
const SPIN: Duration = Duration::from_millis(20);

/// What of a cgroup is bounded: `clawbox run`'s option, its value, and the controller's file and value.
#[derive(Clone, Copy, Debug)]
pub struct Bound {
    pub option: &'static str,
    pub value: &'static str,
    controller: &'static str,
    file: &'static str,
    written: &'static str,
}

/// Processes, memory, processors.
pub const BOUNDS: [Bound; 3] = [
    Bound { option: "--pids", value: "24", controller: "pids", file: "pids.max", written: "24" },
    Bound {
        option: "--memory",
        value: "48M",
        controller: "memory",
        file: "memory.max",
        written: "50331648",
    },
    Bound {
        option: "--cpus",
        value: "0.25",
        controller: "cpu",
        file: "cpu.max",
        written: "25000 100000",
    },
];

/// A cgroup that is bounded by hand; it is removed when it is dropped and empty.
#[derive(Debug)]
pub struct Bounded(PathBuf);

impl Bounded {
    /// Makes one below the hierarchy's root.
    pub fn make(root: &Path, bound: Bound) -> Result<Self> {
        let enabled = root.join("cgroup.subtree_control");
        fs::write(&enabled, format!("+{}", bound.controller)).with_context(|| {
            format!("this host has no {} controller in cgroup v2", bound.controller)
        })?;
        let path = root.join(format!("bench-{}-{}", bound.controller, std::process::id()));
        fs::create_dir(&path)?;
        let made = Self(path);
        fs::write(made.0.join(bound.file), bound.written)?;
        Ok(made)
    }

    /// A worker in it, that lacks only its environment.
    pub fn worker(&self, program: &Path) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", r#"echo 0 > "$1/cgroup.procs" && exec "$2" "$3""#, "sh"]);
        command.arg(&self.0).arg(program).arg(ARGUMENT);
        command
    }
}

impl Drop for Bounded {
    fn drop(&mut self) {
        let began = Instant::now();
        // Who was in it is just ending.
        while fs::remove_dir(&self.0).is_err() && began.elapsed() < Duration::from_secs(5) {
            std::thread::yield_now();
        }
    }
}

/// Forks until that is refused, and ends all of them.
pub fn forks() -> io::Result<()> {
    let mut children = Vec::with_capacity(CHILDREN);
    let refused = loop {
        if children.len() == CHILDREN {
            break Ok(());
        }
        // SAFETY: the child makes one system call after the other and allocates nothing.
        match unsafe { fork() } {
            Ok(ForkResult::Parent { child }) => children.push(child),
            Ok(ForkResult::Child) => {
                pause();
                // SAFETY: ends the child without what its parent has yet to run.
                unsafe { libc::_exit(0) }
            }
            Err(Errno::EAGAIN) => break Ok(()),
            Err(error) => break Err(error),
        }
    };
    for child in children {
        kill(child, Signal::SIGKILL)?;
        waitpid(child, None)?;
    }
    Ok(refused?)
}

/// Takes memory, writes to all of it, and gives it back.
#[expect(clippy::unnecessary_wraps, reason = "an operation may fail")]
pub fn touches() -> io::Result<()> {
    black_box(vec![1_u8; black_box(TOUCHED)]);
    Ok(())
}

/// Keeps more processors busy than there are.
#[expect(clippy::unnecessary_wraps, reason = "an operation may fail")]
pub fn spins() -> io::Result<()> {
    let spin = || {
        let began = Instant::now();
        while began.elapsed() < SPIN {
            spin_loop();
        }
    };
    std::thread::scope(|scope| (0..SPINNING).for_each(|_| drop(scope.spawn(spin))));
    Ok(())
}

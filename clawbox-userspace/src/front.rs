//! What a package installs as `clawbox`: asks the daemon for what is asked often, without all that the agent
//! is made of, whose pages take longer to map than the daemon takes to answer. The rest it leaves to the agent.
//!
//! It begins at C's `main`: to say where a stack has overflowed, Rust's own beginning reads the map of all memory,
//! which takes a tenth of the way to the daemon.
#![no_main]

use std::ffi::{c_char, c_int};
use std::fs::File;
use std::io::Write;
use std::os::fd::IntoRawFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use clawbox::cli::frequent::Asked;
use clawbox::cli::manual::COMPLETE;
use nix::libc;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Where the agent is, from the directory that this program is in: as packages have it, and as cargo builds it.
const AGENTS: [&str; 2] = ["../lib/clawbox/clawbox", "clawbox"];

/// Where the process begins. What it is asked Rust's library has from the C library's own start.
#[unsafe(no_mangle)]
pub extern "C" fn main(_count: c_int, _words: *const *const c_char) -> c_int {
    begin();
    let status = front();
    // Nobody else does.
    let _ = std::io::stdout().flush();
    let codes = 0..=u8::MAX;
    codes.into_iter().find(|code| ExitCode::from(*code) == status).map_or(1, c_int::from)
}

/// What Rust's own beginning does for safety: a stream that is closed must not become the number of another file,
/// and a reader that goes is an error to be told, not a signal.
fn begin() {
    // SAFETY: there is one thread, and the signal is given no handler.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    for stream in 0..=2 {
        // SAFETY: takes numbers.
        let is_open = unsafe { libc::fcntl(stream, libc::F_GETFD) } != -1;
        if !is_open && let Ok(nothing) = File::options().read(true).write(true).open("/dev/null") {
            // It has the lowest number that is free, and so this one.
            let _ = nothing.into_raw_fd();
        }
    }
}

fn front() -> ExitCode {
    // A shell that asks what it may offer, and filters for the log, are the agent's.
    let is_usual = ["CLAWBOX_LOG", COMPLETE].iter().all(|name| std::env::var_os(name).is_none());
    if is_usual {
        log_to_stderr();
        let asked = Asked::of_arguments().filter(Asked::is_plain);
        if let Some(ended) = asked.and_then(Asked::by_daemon) {
            return ended.status();
        }
    }
    agent()
}

/// Becomes the agent.
fn agent() -> ExitCode {
    let own = std::env::current_exe().unwrap_or_else(|_| "/usr/bin/clawbox".into());
    let beside = |path| own.parent().map(|directory| directory.join(path));
    let found = AGENTS.iter().filter_map(beside).find(|path| path.exists() && *path != own);
    let agent = found.unwrap_or_else(|| PathBuf::from("/usr/lib/clawbox/clawbox"));
    let mut words = std::env::args_os();
    let mut command = Command::new(&agent);
    command.arg0(words.next().unwrap_or_else(|| "clawbox".into())).args(words);
    let error = command.exec();
    eprintln!(
        "clawbox: cannot run the agent, `{}`: {error}; install the package again",
        agent.display()
    );
    clawbox::cli::run::failed()
}

/// Warnings, as the agent's commands say them.
fn log_to_stderr() {
    let usual =
        Targets::new().with_default(LevelFilter::ERROR).with_target("clawbox", LevelFilter::WARN);
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let lines = lines.with_ansi(false).with_target(false).without_time();
    tracing_subscriber::registry().with(lines).with(usual).init();
}

//! What a package installs as `clawbox`: asks the daemon for what is asked often, without all that the agent
//! is made of, whose pages take longer to map than the daemon takes to answer. The rest it leaves to the agent.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use clawbox::cli::frequent::Asked;
use clawbox::cli::manual::COMPLETE;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Where the agent is, from the directory that this program is in: as packages have it, and as cargo builds it.
const AGENTS: [&str; 2] = ["../lib/clawbox/clawbox", "clawbox"];

fn main() -> ExitCode {
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

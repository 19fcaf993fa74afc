//! `clawbox daemon`: the agent of a host.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::bail;
use clap::Args;

use crate::daemon;
use crate::daemon::config::Config;

/// Serve all sandboxes of this host
///
/// Loads the kernel programs once, and starts a sandbox for whoever asks on the control socket:
/// `clawbox run` does so by itself where the daemon runs, and needs no root then. Root and the members of
/// the group `clawbox` manage all sandboxes, everybody else their own.
#[derive(Debug, Args)]
#[command(after_help = "\
Exit status: 0 it was told to stop; 2 it could not begin, and has left nothing behind.

Examples:
  clawbox config check
  clawbox daemon
  clawbox daemon --config agent.yaml")]
pub struct DaemonCommand {
    /// The configuration [default: /etc/clawbox/agent.yaml, where there is one]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl DaemonCommand {
    /// Runs until SIGTERM or SIGINT.
    ///
    /// # Errors
    /// It cannot begin.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        if !nix::unistd::geteuid().is_root() {
            bail!("the daemon loads programs into the kernel and needs root; use sudo, or systemd");
        }
        daemon::run(Config::read(self.config.as_deref())?)?;
        Ok(ExitCode::SUCCESS)
    }
}

//! `clawbox daemon`: the agent of a host.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::bail;
use clap::Args;

use super::{Format, told};
use crate::daemon;
use crate::daemon::config::Config;
use crate::daemon::uninstall::uninstall;
use crate::sandbox::launcher::Launcher;

/// Serve all sandboxes of this host
///
/// Loads the kernel programs once, and starts a sandbox for whoever asks on the control socket:
/// `clawbox run` does so by itself where the daemon runs, and needs no root then. On SIGHUP the
/// configuration is read again. Root and the members of
/// the group `clawbox` manage all sandboxes, everybody else their own.
#[derive(Debug, Args)]
#[command(after_help = "\
Exit status: 0 it was told to stop; 2 it could not begin; what an earlier one has
started is enforced on.

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
        // Before anything is read: it is to have nothing of this process's.
        let launcher = Launcher::begin();
        let config = Config::read(self.config.as_deref()).map_err(told)?;
        daemon::run(config, self.config, launcher).map_err(told)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Take off what the daemon has put into the kernel
///
/// A daemon that stops leaves its sandboxes running and enforced, for the next one to take over. This ends
/// them, and then takes the programs out of the kernel. Trails and policies stay where they are.
#[derive(Debug, Args)]
#[command(after_help = "\
Exit status: 0 nothing is left; 2 the daemon still runs, or a process does not end.

Examples:
  systemctl stop clawbox && clawbox uninstall
  clawbox uninstall --format json")]
pub struct Uninstall {
    /// The daemon's configuration [default: /etc/clawbox/agent.yaml, where there is one]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// How to print what was taken off
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

impl Uninstall {
    /// Takes it off.
    ///
    /// # Errors
    /// The daemon runs, or something cannot be ended.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        if !nix::unistd::geteuid().is_root() {
            bail!("only root takes programs out of the kernel; use sudo");
        }
        let config = Config::read(self.config.as_deref()).map_err(told)?;
        let removed = uninstall(&config).map_err(told)?;
        let mut out = std::io::stdout().lock();
        match self.format {
            Format::Json => writeln!(out, "{}", serde_json::to_string_pretty(&removed)?)?,
            Format::Text if removed.was_enforced => {
                let count = removed.sandboxes;
                let noun = if count == 1 { "sandbox" } else { "sandboxes" };
                writeln!(out, "{count} {noun} ended; nothing is enforced any more")?;
            }
            Format::Text => writeln!(out, "nothing of a daemon is in the kernel")?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

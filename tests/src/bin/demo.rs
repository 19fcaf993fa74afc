//! `cargo xtask demo`: a policy in NemoClaw's language, enforced by the kernel before your eyes.
//! Nothing leaves the machine: the attempts are made in network namespaces without a way out.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Parser;
use clawbox_tests::demo::interrupt::Interrupt;
use clawbox_tests::demo::matrix;
use clawbox_tests::demo::showing::Scene;

/// Something was not as it must be.
const DIFFERS: u8 = 1;
/// The demo could not be shown.
const FAILED: u8 = 125;
/// Ended by Ctrl-C.
const INTERRUPTED: u8 = 130;

/// Makes an agent's attempts with and without clawbox, in a network of its own
#[derive(Debug, Parser)]
#[command(
    name = "cargo xtask demo --",
    after_help = "\
Exit status: 0 everything was as it must be; 1 something was not; 125 the demo could not be shown."
)]
struct Cli {
    /// Keep the policy and the audit trail, and say where
    #[arg(long)]
    keep: bool,
    /// Start a shell in the demo's sandbox instead
    #[arg(long, conflicts_with = "nemoclaw")]
    shell: bool,
    /// Hold a policy of yours against this machine instead: every program it names, and one that
    /// it does not, tries every host it names, on servers of the demo
    #[arg(long, value_name = "FILE")]
    nemoclaw: Option<PathBuf>,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match Interrupt::watch() {
        Ok(interrupt) => show(cli, &interrupt).unwrap_or_else(|error| {
            eprintln!("demo: {error:#}");
            ExitCode::from(if interrupt.is_told() { INTERRUPTED } else { FAILED })
        }),
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::from(FAILED)
        }
    }
}

fn show(cli: Cli, interrupt: &Interrupt) -> Result<ExitCode> {
    if !nix::unistd::geteuid().is_root() {
        bail!(
            "the demo makes network namespaces and loads programs into the kernel: run \
             `cargo xtask demo` as root"
        );
    }
    let as_expected = if let Some(policy) = &cli.nemoclaw {
        matrix::show(policy, cli.keep, interrupt)?
    } else {
        let scene = Scene::set(interrupt)?;
        let shown = if cli.shell {
            scene.shell(interrupt).map(|status| status.success())
        } else {
            scene.show(interrupt)
        };
        if cli.keep {
            scene.keep();
        }
        shown?
    };
    Ok(if as_expected { ExitCode::SUCCESS } else { ExitCode::from(DIFFERS) })
}

//! `cargo xtask demo`: sets up, builds, and shows a policy being enforced.
//! The demo itself is a program of the `tests` package, so that the tests can share its servers.

use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::build;
use crate::process;
use crate::setup::{self, Purpose};
use crate::workspace::Workspace;

#[derive(clap::Args)]
pub struct Args {
    /// Passed on to the demo.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// Runs the demo and returns its status.
pub fn run(workspace: &Workspace, args: &Args) -> Result<ExitCode> {
    if !process::is_root() {
        bail!("the demo loads programs into the kernel: run `cargo xtask demo` as root");
    }
    let toolchain = setup::ensure(workspace, Purpose::Demo)?;
    build::both(workspace, &toolchain, build::Args::default())?;
    let mut cargo = workspace.cargo();
    cargo
        .args(["run", "--quiet", "--package", "clawbox-tests", "--bin", "demo", "--"])
        .args(&args.arguments)
        .env("CLAWBOX", workspace.clawbox(false));
    Ok(process::exit_code(process::status(&mut cargo)?))
}

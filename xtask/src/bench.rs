//! `cargo xtask bench`: sets up, builds with optimisation, and runs the `benches` package.
//! What is measured, and how the figures are made, is that package's own business.

use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::build;
use crate::process;
use crate::setup::{self, Purpose};
use crate::workspace::Workspace;

#[derive(clap::Args)]
pub struct Args {
    /// connect, send, outside, startup, memory, hooks or all; without it they are described.
    name: Option<String>,
    /// Passed on: --rounds N, --quick, --format json.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// Runs the benchmarks and returns their status.
pub fn run(workspace: &Workspace, args: &Args) -> Result<ExitCode> {
    if !process::is_root() {
        bail!("the benchmarks load programs into the kernel: run `cargo xtask bench` as root");
    }
    let toolchain = setup::ensure(workspace, Purpose::Bench)?;
    build::both(workspace, &toolchain, build::Args { release: true, debug_log: false })?;
    let mut cargo = workspace.cargo();
    cargo
        .args(["run", "--quiet", "--release", "--package", "clawbox-benches", "--"])
        .args(&args.name)
        .args(&args.arguments)
        .env("CLAWBOX", workspace.clawbox(true));
    Ok(process::exit_code(process::status(&mut cargo)?))
}

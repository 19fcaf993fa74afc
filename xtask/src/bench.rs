//! `cargo xtask bench`: sets up, builds with optimisation, and runs the `benches` package.
//! What is measured, and how the figures are made, is that package's own business.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::build;
use crate::process;
use crate::setup::{self, Purpose};
use crate::vm::{self, Copy, Guest, Kernel, Limits};
use crate::workspace::Workspace;

/// What is measured in guests that count instructions, on several kernels.
const IN_GUESTS: &str = "lsm";
const GUEST_PROGRAM: &str = "/opt/bench/clawbox-benches";
/// A guest that counts is slower: it takes a minute or two on an idle machine.
const GUEST_TIME: Duration = Duration::from_secs(900);
const GUEST_MEMORY_MIB: u32 = 1536;

#[derive(clap::Args)]
pub struct Args {
    /// connect, send, outside, startup, memory, hooks, egress, dns, scale, audit, all or lsm; without it they are described.
    name: Option<String>,
    /// For lsm, which counts instructions in a VM: 6.1, 6.12, latest or all. To be given before
    /// what is passed on.
    #[arg(long, default_value = "all", value_parser = parse_kernels)]
    kernel: Kernels,
    /// Passed on: --rounds N, --quick, --format json.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

#[derive(Clone)]
struct Kernels(Vec<Kernel>);

fn parse_kernels(text: &str) -> Result<Kernels, String> {
    let named: Vec<Kernel> =
        Kernel::ALL.into_iter().filter(|it| text == "all" || text == it.name()).collect();
    if named.is_empty() { Err("6.1, 6.12, latest or all".to_owned()) } else { Ok(Kernels(named)) }
}

/// Runs the benchmarks and returns their status.
pub fn run(workspace: &Workspace, args: &Args) -> Result<ExitCode> {
    if args.name.as_deref() == Some(IN_GUESTS) {
        return in_guests(workspace, args);
    }
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

/// One guest after the other: each prints its own figures.
fn in_guests(workspace: &Workspace, args: &Args) -> Result<ExitCode> {
    let toolchain = setup::ensure(workspace, Purpose::Test)?;
    build::both(workspace, &toolchain, build::Args { release: true, debug_log: false })?;
    process::run(workspace.cargo().args(["build", "--release", "--package", "clawbox-benches"]))?;
    let clawbox = workspace.clawbox(true);
    let program = clawbox.with_file_name("clawbox-benches");
    let command = [GUEST_PROGRAM, IN_GUESTS].map(str::to_owned);
    let mut guest = Guest::new(command.into_iter().chain(args.arguments.iter().cloned()).collect());
    guest.copies.push(Copy::new(clawbox, PathBuf::from(vm::CLAWBOX))?);
    guest.copies.push(Copy::new(program, PathBuf::from(GUEST_PROGRAM))?);
    guest.variables.push(("CLAWBOX".to_owned(), vm::CLAWBOX.to_owned()));
    let limits = Limits {
        memory_mib: GUEST_MEMORY_MIB,
        time: GUEST_TIME,
        silence: None,
        label: None,
        yields: false,
        counts_instructions: true,
    };
    for &kernel in &args.kernel.0 {
        let outcome = vm::boot(workspace, kernel, &guest, limits)?;
        if outcome.status != 0 {
            return Ok(ExitCode::from(outcome.status));
        }
    }
    Ok(ExitCode::SUCCESS)
}

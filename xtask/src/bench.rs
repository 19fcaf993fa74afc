//! `cargo xtask bench`: sets up, builds with optimisation, and runs the `benches` package.
//! What is measured, and how the figures are made, is that package's own business.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::build;
use crate::packages;
use crate::process;
use crate::setup::{self, Purpose};
use crate::vm::{self, Copy, Guest, Kernel, Limits};
use crate::workspace::Workspace;

/// What is measured in guests that count instructions: on several kernels, and what needs BPF LSM or the
/// controllers of cgroup v2.
const IN_GUESTS: [&str; 2] = ["lsm", "bounded"];
const GUEST_PROGRAM: &str = "/opt/bench/clawbox-benches";
/// What asks a daemon as a package's user does.
const BY_CLIENTS: [&str; 3] = ["all", "scale", "neighbour"];
/// What is measured beside auditd, which slows a machine until its rules are gone.
const BESIDE_AUDITD: &str = "auditd";
const SCRIPT: &str = include_str!("auditd.sh");
/// A guest that counts is slower: it takes a minute or two on an idle machine.
const GUEST_TIME: Duration = Duration::from_secs(900);
const GUEST_MEMORY_MIB: u32 = 1536;

#[derive(clap::Args)]
pub struct Args {
    /// connect, send, outside, startup, memory, hooks, egress, dns, scale, neighbour, audit, all, lsm, bounded or auditd; without it they are described.
    name: Option<String>,
    /// For lsm, bounded and auditd, which are measured in a VM: 6.1, 6.12, latest or all. To be given before
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
    if let Some(name) = args.name.as_deref()
        && IN_GUESTS.contains(&name)
    {
        return in_guests(workspace, name, args);
    }
    if args.name.as_deref() == Some(BESIDE_AUDITD) {
        return beside_auditd(workspace, args);
    }
    if !process::is_root() {
        bail!("the benchmarks load programs into the kernel: run `cargo xtask bench` as root");
    }
    let toolchain = setup::ensure(workspace, Purpose::Bench)?;
    build::both(workspace, &toolchain, build::Args { release: true, debug_log: false })?;
    if args.name.as_deref().is_none_or(|name| BY_CLIENTS.contains(&name)) {
        build::front(workspace)?;
    }
    let mut cargo = workspace.cargo();
    cargo
        .args(["run", "--quiet", "--release", "--package", "clawbox-benches", "--"])
        .args(&args.name)
        .args(&args.arguments)
        .env("CLAWBOX", workspace.clawbox(true));
    Ok(process::exit_code(process::status(&mut cargo)?))
}

/// One guest after the other: each prints its own figures.
fn in_guests(workspace: &Workspace, name: &str, args: &Args) -> Result<ExitCode> {
    let toolchain = setup::ensure(workspace, Purpose::Test)?;
    build::both(workspace, &toolchain, build::Args { release: true, debug_log: false })?;
    process::run(workspace.cargo().args(["build", "--release", "--package", "clawbox-benches"]))?;
    let clawbox = workspace.clawbox(true);
    let program = clawbox.with_file_name("clawbox-benches");
    let command = [GUEST_PROGRAM, name].map(str::to_owned);
    let mut guest = Guest::new(command.into_iter().chain(args.arguments.iter().cloned()).collect());
    guest.has_disk = name != "lsm";
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

/// A compile in a guest with auditd: the script prints a row for each round of each.
fn beside_auditd(workspace: &Workspace, args: &Args) -> Result<ExitCode> {
    let toolchain = setup::ensure(workspace, Purpose::Test)?;
    // As tests have it, which is optimised too.
    build::both(workspace, &toolchain, build::Args { release: false, debug_log: false })?;
    let script = workspace.target().join("auditd.sh");
    fs::write(&script, SCRIPT).with_context(|| format!("cannot write `{}`", script.display()))?;
    let to = |path: &str| PathBuf::from(path);
    let mut guest = Guest::new(["/bin/bash", "/opt/bench/auditd.sh"].map(str::to_owned).into());
    guest.has_disk = true;
    guest.copies.push(Copy::new(workspace.clawbox(false), to(vm::CLAWBOX))?);
    guest.copies.push(Copy::new(script, to("/opt/bench/auditd.sh"))?);
    let programs = packages::unpacked(workspace, &["auditd"], "auditd")?;
    for program in ["auditd", "auditctl"] {
        guest.copies.push(Copy::new(programs.join(program), to("/usr/sbin").join(program))?);
    }
    let config = workspace.tools().join("auditd/etc/audit/auditd.conf");
    guest.copies.push(Copy::new(config, to("/etc/audit/auditd.conf"))?);
    let limits = Limits {
        memory_mib: GUEST_MEMORY_MIB,
        time: GUEST_TIME * 2,
        silence: None,
        label: None,
        yields: false,
        counts_instructions: true,
    };
    // One kernel's figures are enough unless another is asked for.
    let kernels = if args.kernel.0.len() > 1 { &args.kernel.0[..1] } else { &args.kernel.0[..] };
    for &kernel in kernels {
        let outcome = vm::boot(workspace, kernel, &guest, limits)?;
        if outcome.status != 0 {
            return Ok(ExitCode::from(outcome.status));
        }
    }
    Ok(ExitCode::SUCCESS)
}

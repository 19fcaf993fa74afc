//! clawbox's own tasks: `cargo xtask --help`.
//! One file per command; each says what it runs, and every error names what to do about it.

mod agents;
mod apt;
mod attacks;
mod bench;
mod build;
mod demo;
mod dist;
mod mutate;
mod object_file;
mod packages;
mod process;
mod setup;
mod test;
mod tidy;
mod toolchain;
mod vm;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::workspace::Workspace;

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about = "clawbox's own tasks")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Find or install what the other commands need.
    Setup(setup::Args),
    /// Build the BPF object, then the agent.
    Build(build::Args),
    /// Pack the release for Debian; with --check try the package in a fresh one.
    Dist(dist::Args),
    /// Run the tests: here, and in VMs on other kernels.
    Test(test::Args),
    /// Install real agents and start them under their profiles, on this machine.
    Agents(agents::Args),
    /// Run one command on another kernel, in a VM.
    Vm(vm::Args),
    /// Check what review forgets: documentation, sizes, names, dependencies, formatting, lints.
    Tidy,
    /// Watch a policy being enforced, on this machine, with nothing leaving it.
    Demo(demo::Args),
    /// Try the rows of the threat model and see which layer stops each.
    Attacks(attacks::Args),
    /// Take one protection out at a time and see its test fail.
    Mutate(mutate::Args),
    /// Measure what enforcement costs.
    Bench(bench::Args),
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<ExitCode> {
    let workspace = Workspace::locate()?;
    match cli.command {
        Command::Setup(args) => setup::run(&workspace, &args),
        Command::Build(args) => build::run(&workspace, &args),
        Command::Dist(args) => dist::run(&workspace, &args),
        Command::Test(args) => test::run(&workspace, &args),
        Command::Agents(args) => agents::run(&workspace, &args),
        Command::Tidy => tidy::run(&workspace),
        Command::Vm(args) => vm::run(&workspace, &args),
        Command::Demo(args) => demo::run(&workspace, &args),
        Command::Attacks(args) => attacks::run(&workspace, &args),
        Command::Mutate(args) => mutate::run(&workspace, &args),
        Command::Bench(args) => bench::run(&workspace, &args),
    }
}

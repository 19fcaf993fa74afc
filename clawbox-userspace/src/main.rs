//! The `clawbox` command: parse, dispatch, print an error once, exit with a documented status.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use clawbox::cli::policy::PolicyCommand;

/// Enforces one policy per AI-agent sandbox in the kernel
#[derive(Debug, Parser)]
#[command(name = "clawbox", version)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Policy(PolicyCommand),
}

fn main() -> ExitCode {
    let result = match Cli::parse().verb {
        Verb::Policy(command) => command.run(),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("clawbox: {error:#}");
            ExitCode::from(2)
        }
    }
}

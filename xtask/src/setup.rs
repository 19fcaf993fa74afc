//! `cargo xtask setup`: finds or installs what the other commands need, and says what it did.
//! Every command that needs something calls this itself; running it by hand is never required.

use std::process::ExitCode;

use anyhow::Result;
use clap::ValueEnum;

use crate::packages::{self, Package};
use crate::toolchain::Toolchain;
use crate::workspace::Workspace;

/// What to set this machine up for.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Purpose {
    /// The BPF compiler and linker.
    Build,
    /// What the demo runs in its sandboxes.
    Demo,
    /// The same, real programs to run under policies, and what booting other kernels takes.
    Test,
    /// The same as for the demo, and the launcher we measure against.
    Bench,
    /// Everything.
    All,
}

#[derive(clap::Args)]
pub struct Args {
    /// Set up for one purpose only.
    #[arg(long = "for", value_enum, default_value = "all")]
    purpose: Purpose,
}

/// Sets up and reports.
pub fn run(workspace: &Workspace, args: &Args) -> Result<ExitCode> {
    for line in ensure(workspace, args.purpose)?.report {
        println!("{line}");
    }
    Ok(ExitCode::SUCCESS)
}

/// Sets up for `purpose`; silent where there is nothing to do. The report is in the toolchain.
pub fn ensure(workspace: &Workspace, purpose: Purpose) -> Result<Toolchain> {
    let wanted = packages_for(purpose);
    let installed = packages::ensure(workspace, &wanted)?;
    let mut toolchain = Toolchain::ensure(workspace)?;
    if !wanted.is_empty() {
        toolchain.report.push(match installed.as_slice() {
            [] => format!("packages: all {} are there", wanted.len()),
            names => format!("packages: installed {}", names.join(", ")),
        });
    }
    Ok(toolchain)
}

fn packages_for(purpose: Purpose) -> Vec<&'static Package> {
    let groups: &[&'static [Package]] = match purpose {
        Purpose::Build => &[],
        Purpose::Demo => &[packages::DEMO],
        Purpose::Test => &[packages::DEMO, packages::REAL, packages::CLIENTS, packages::VM],
        Purpose::Bench => &[packages::DEMO, packages::BENCH],
        Purpose::All => {
            &[packages::DEMO, packages::REAL, packages::CLIENTS, packages::VM, packages::BENCH]
        }
    };
    groups.iter().flat_map(|group| group.iter()).collect()
}

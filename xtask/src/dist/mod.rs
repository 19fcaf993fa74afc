//! `cargo xtask dist`: the release binary and everything that belongs to it on a Debian machine, as one
//! package in `target/dist`. `--check` puts it into a fresh Debian, uses it, and takes it out again.

mod boot;
mod check;
mod control;
mod listing;
mod machine;
mod tree;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result};

use crate::build;
use crate::packages;
use crate::process;
use crate::setup::{self, Purpose};
use crate::vm::Kernel;
use crate::workspace::Workspace;

#[derive(clap::Args)]
pub struct Args {
    /// Install, use, remove and purge the package in a fresh Debian below target/dist; as root.
    #[arg(long)]
    check: bool,
    /// With --check: boot that Debian with systemd and podman in a VM instead, and use the package there
    /// as it is deployed; a quarter of an hour.
    #[arg(long, requires = "check")]
    vm: bool,
    /// With --vm: these parts of the check alone, by the names that it prints.
    #[arg(long, requires = "vm", value_name = "PART", value_delimiter = ',')]
    only: Vec<String>,
    /// With --vm: the kernel to boot.
    #[arg(long, requires = "vm", value_enum, default_value = "6.1")]
    kernel: Kernel,
}

/// Builds, packs, and checks where that is asked for.
pub fn run(workspace: &Workspace, args: &Args) -> Result<ExitCode> {
    if args.check {
        // Said before minutes of building, not after.
        check::require_root()?;
    }
    packages::ensure(workspace, &packages::DIST.iter().collect::<Vec<_>>())?;
    let package = pack(workspace)?;
    println!("dist: {}", package.display());
    if args.vm {
        return boot::run(workspace, &package, args);
    }
    if args.check {
        return check::run(workspace, &package);
    }
    Ok(ExitCode::SUCCESS)
}

/// Builds the release and packs it; where the package is.
fn pack(workspace: &Workspace) -> Result<PathBuf> {
    println!("dist: building the release (minutes, the first time)");
    let toolchain = setup::ensure(workspace, Purpose::Build)?;
    build::both(workspace, &toolchain, build::Args { release: true, debug_log: false })?;
    let directory = workspace.root().join("target/dist");
    let root = directory.join("tree");
    let _ = fs::remove_dir_all(&root);
    fs::create_dir_all(&root).with_context(|| format!("cannot create `{}`", root.display()))?;

    let clawbox = workspace.clawbox(true);
    let manual = directory.join("manual");
    let _ = fs::remove_dir_all(&manual);
    process::run(Command::new(&clawbox).arg("manual").arg(&manual))?;
    tree::lay(workspace, &clawbox, &build::front(workspace)?, &manual, &root)?;

    let architecture = output("dpkg", &["--print-architecture"])?;
    let depends = control::depends(&directory.join("shlibdeps"), &root.join(tree::AGENT))?;
    let size = tree::kibibytes(&root)?;
    control::lay(workspace, &root, &control::text(&architecture, &depends, size))?;

    println!("dist: packing");
    let version = env!("CARGO_PKG_VERSION");
    let package = directory.join(format!("clawbox_{version}_{architecture}.deb"));
    let mut command = Command::new("dpkg-deb");
    // Files belong to root whoever packs, and are as old as the commit: same sources, same package.
    command.args(["--root-owner-group", "--build"]).arg(&root).arg(&package);
    command.env("SOURCE_DATE_EPOCH", commit_time(workspace)).stdout(Stdio::null());
    process::run(&mut command)?;
    Ok(package)
}

fn output(program: &str, arguments: &[&str]) -> Result<String> {
    Ok(process::output(Command::new(program).args(arguments))?.trim().to_owned())
}

/// Of the newest commit, in seconds; the beginning of time in a tree that is no checkout.
fn commit_time(workspace: &Workspace) -> String {
    let mut git = Command::new("git");
    git.args(["-c", "safe.directory=*", "log", "-1", "--format=%ct"]).current_dir(workspace.root());
    process::output(&mut git).map_or_else(|_| "0".to_owned(), |time| time.trim().to_owned())
}

/// Where the package's own files are in the repository.
fn sources(workspace: &Workspace) -> PathBuf {
    workspace.root().join("packaging")
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read `{}`", path.display()))
}

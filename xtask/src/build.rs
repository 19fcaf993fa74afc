//! `cargo xtask build`: the BPF object first, then the agent that embeds it.
//! The object is replaced only where its bytes changed, so that the agent is not rebuilt for nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

use crate::object_file::without_debug_sections;
use crate::process;
use crate::setup::{self, Purpose};
use crate::toolchain::Toolchain;
use crate::workspace::Workspace;

const TARGET: &str = "bpfel-unknown-none";
const FRONT: &str = "clawbox-front";

#[derive(clap::Args, Clone, Copy, Default)]
pub struct Args {
    /// Build the agent optimised. The BPF object always is: the verifier needs it so.
    #[arg(long)]
    pub release: bool,
    /// Compile log lines into the BPF programs.
    #[arg(long)]
    pub debug_log: bool,
}

/// Sets up and builds both halves.
pub fn run(workspace: &Workspace, args: &Args) -> Result<ExitCode> {
    let toolchain = setup::ensure(workspace, Purpose::Build)?;
    both(workspace, &toolchain, *args)?;
    Ok(ExitCode::SUCCESS)
}

/// Builds the object and then the agent.
pub fn both(workspace: &Workspace, toolchain: &Toolchain, args: Args) -> Result<()> {
    object(workspace, toolchain, args.debug_log)?;
    let mut cargo = workspace.cargo();
    cargo.args(["build", "--package", "clawbox-userspace"]);
    if args.release {
        // Without the one in front of it, which takes as long again: see `front`.
        cargo.args(["--release", "--bin", "clawbox"]);
    }
    if args.debug_log {
        cargo.args(["--features", "debug-log"]);
    }
    process::run(&mut cargo)
}

/// Builds what a package puts in front of the agent, with its libraries inside: to find and map those takes
/// longer than to ask the daemon, and so does moving it to another place in memory. Lies beside the agent.
pub fn front(workspace: &Workspace) -> Result<PathBuf> {
    let version = process::output(workspace.cargo().arg("-vV"))?;
    let target = version.lines().find_map(|line| line.strip_prefix("host: "));
    let target = target.context("cargo does not say what it builds for")?;
    let mut cargo = workspace.cargo();
    cargo.args(["build", "--release", "--package", "clawbox-userspace", "--bin", FRONT]);
    cargo
        .args(["--target", target])
        .env("RUSTFLAGS", "-C target-feature=+crt-static -C relocation-model=static");
    process::run(&mut cargo)?;
    let built = workspace.target().join(target).join("release").join(FRONT);
    let beside = workspace.clawbox(true).with_file_name(FRONT);
    fs::copy(&built, &beside).with_context(|| format!("cannot copy `{}`", built.display()))?;
    Ok(beside)
}

fn object(workspace: &Workspace, toolchain: &Toolchain, debug_log: bool) -> Result<()> {
    let source = workspace.root().join("clawbox-ebpf");
    if !source.join("Cargo.toml").exists() {
        bail!("`{}` has no Cargo.toml; is this a complete checkout?", source.display());
    }
    let features: &[&str] = if debug_log { &["--features", "log"] } else { &[] };
    let build_dir = workspace.root().join("target/bpf/build");
    if make_object(toolchain, &source, &build_dir, features, &workspace.bpf_object())? {
        println!("build: new {}", workspace.bpf_object().display());
    }
    Ok(())
}

/// Builds the object of another source tree.
pub fn object_of(toolchain: &Toolchain, source: &Path, build_dir: &Path, to: &Path) -> Result<()> {
    make_object(toolchain, source, build_dir, &[], to)?;
    Ok(())
}

/// Whether it has changed.
fn make_object(
    toolchain: &Toolchain,
    source: &Path,
    build_dir: &Path,
    features: &[&str],
    to: &Path,
) -> Result<bool> {
    let mut cargo = toolchain.cargo(source);
    cargo
        .args(["build", "--release", "-Zbuild-std=core", "--target", TARGET])
        .args(features)
        .arg("--target-dir")
        .arg(build_dir);
    process::run(&mut cargo).context("the BPF object did not build")?;
    let linked = build_dir.join(TARGET).join("release/clawbox-ebpf");
    let linked =
        fs::read(&linked).with_context(|| format!("cannot read `{}`", linked.display()))?;
    write_if_changed(&without_debug_sections(&linked)?, to)
}

/// Whether `to` had to be written.
fn write_if_changed(bytes: &[u8], to: &Path) -> Result<bool> {
    if fs::read(to).is_ok_and(|old| old == *bytes) {
        return Ok(false);
    }
    // Renamed into place: a build script that runs meanwhile reads the old object or the new one.
    let partial = to.with_extension("partial");
    fs::write(&partial, bytes)
        .and_then(|()| fs::rename(&partial, to))
        .with_context(|| format!("cannot write `{}`", to.display()))?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unchanged_object_is_left_alone() {
        let directory = std::env::temp_dir().join(format!("clawbox-xtask-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let to = directory.join("to.o");
        assert!(write_if_changed(b"one", &to).unwrap());
        assert!(!write_if_changed(b"one", &to).unwrap());
        assert!(write_if_changed(b"two", &to).unwrap());
        assert_eq!(fs::read(&to).unwrap(), b"two");
        fs::remove_dir_all(&directory).unwrap();
    }
}

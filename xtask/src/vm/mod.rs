//! `cargo xtask vm`: one command on a Debian kernel of choice, under QEMU, as root.
//! The guest runs this machine's own programs from memory; nothing it does can reach the host.

mod archive;
mod closure;
mod disk;
mod guest;
mod kernel;
mod machine;
mod modules;
mod userland;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::build;
use crate::setup::{self, Purpose};
use crate::workspace::Workspace;

pub use disk::format;
pub use guest::{CLAWBOX, Copy, Guest};
pub use kernel::Kernel;
pub use machine::{Limits, Outcome};

use machine::Media;

#[derive(clap::Args)]
pub struct Args {
    /// The kernel to boot.
    #[arg(long, value_enum)]
    kernel: Kernel,
    /// Put a host directory or file into the guest. May be repeated.
    #[arg(long, value_name = "PATH:GUESTPATH", value_parser = parse_copy)]
    copy: Vec<Copy>,
    /// Set a variable in the command's environment. May be repeated.
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_variable)]
    env: Vec<(String, String)>,
    /// The guest's memory in MiB.
    #[arg(long, default_value_t = 1024)]
    memory: u32,
    /// Seconds until the guest is stopped.
    #[arg(long, default_value_t = 600)]
    timeout: u64,
    /// Give the guest a disk as its root directory, with an agent's everyday tools.
    #[arg(long)]
    disk: bool,
    /// Make the guest's clock count instructions, for figures that repeat.
    #[arg(long)]
    icount: bool,
    /// Boot with whatever is built, or with no clawbox at all.
    #[arg(long)]
    no_build: bool,
    /// Put the optimised clawbox into the guest.
    #[arg(long)]
    release: bool,
    /// What to run, and its arguments.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    command: Vec<String>,
}

/// Boots, runs the command, and returns its exit status.
pub fn run(workspace: &Workspace, args: &Args) -> Result<ExitCode> {
    let toolchain = setup::ensure(workspace, Purpose::Test)?;
    if !args.no_build {
        let options = build::Args { release: args.release, debug_log: false };
        build::both(workspace, &toolchain, options)?;
    }
    let mut guest = Guest::new(args.command.clone());
    guest.copies.clone_from(&args.copy);
    guest.variables.clone_from(&args.env);
    guest.has_disk = args.disk;
    let clawbox = workspace.clawbox(args.release);
    if clawbox.exists() {
        guest.copies.push(Copy { from: clawbox, to: PathBuf::from(CLAWBOX) });
    }
    let limits = Limits {
        memory_mib: args.memory,
        time: Duration::from_secs(args.timeout),
        silence: None,
        label: None,
        yields: false,
        counts_instructions: args.icount,
    };
    let outcome = boot(workspace, args.kernel, &guest, limits)?;
    Ok(ExitCode::from(outcome.status))
}

/// Boots `kernel` and runs the guest's command; an error where it did not come to an end.
pub fn boot(
    workspace: &Workspace,
    kernel: Kernel,
    guest: &Guest,
    limits: Limits,
) -> Result<Outcome> {
    let directory = workspace.root().join("target/vm");
    // The directory's contents from memory or from a disk.
    let (files, programs) = {
        let _held = hold(&directory)?;
        let programs =
            if guest.has_disk { disk::ensure(workspace)? } else { userland::ensure(workspace)? };
        (kernel::ensure(workspace, kernel)?, programs)
    };
    let (base, disk) = if guest.has_disk { (None, Some(programs)) } else { (Some(programs), None) };
    let image = guest::write_image(&directory, base.as_deref(), &files, guest)
        .context("cannot make the guest's root directory")?;
    println!("vm: booting {}", files.name);
    let media = Media { image: &image, disk: disk.as_deref(), processors: 1 };
    machine::run(&files, &media, limits)
}

/// Boots `kernel` with a whole Debian on `disk` and its own first process. What stands for the guest's
/// command there is a unit that writes its status to the second serial port, as the other guests do.
pub fn boot_system(
    workspace: &Workspace,
    kernel: Kernel,
    disk: &Path,
    limits: Limits,
) -> Result<Outcome> {
    let directory = workspace.root().join("target/vm");
    let files = {
        let _held = hold(&directory)?;
        kernel::ensure(workspace, kernel)?
    };
    let image = guest::write_switch(&directory, &files).context("cannot make the first root")?;
    println!("vm: booting {} with systemd", files.name);
    // A unit that starts and a daemon that loads programs shall not wait for each other's processor.
    machine::run(&files, &Media { image: &image, disk: Some(disk), processors: 2 }, limits)
}

/// Lets one xtask at a time fetch and collect; others wait for what it makes.
fn hold(directory: &Path) -> Result<File> {
    let open = || {
        fs::create_dir_all(directory)?;
        let file = File::create(directory.join("lock"))?;
        file.lock()?;
        Ok::<_, io::Error>(file)
    };
    open().with_context(|| format!("cannot lock `{}`", directory.display()))
}

fn parse_copy(text: &str) -> Result<Copy> {
    let (from, to) = text.rsplit_once(':').context("expected PATH:GUESTPATH")?;
    Copy::new(PathBuf::from(from), PathBuf::from(to))
}

fn parse_variable(text: &str) -> Result<(String, String)> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => bail!("expected NAME=VALUE"),
    }
}

//! `cargo xtask dist --check --vm`: the package on a whole Debian that systemd has booted, in a VM
//! without network: units, containers, users, kills, an upgrade and the removal, as they are deployed.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::machine::{Kind, Machine};
use super::{Args, read};
use crate::packages;
use crate::process;
use crate::setup::{self, Purpose};
use crate::vm::{self, Limits};
use crate::workspace::Workspace;

/// Where the check is in the guest.
const CHECK: &str = "usr/local/lib/clawbox-check";
/// The check itself, which runs in the guest.
const FILES: [(&str, &str); 8] = [
    ("main.py", include_str!("guest/main.py")),
    ("attempt.py", include_str!("guest/attempt.py")),
    ("containers.py", include_str!("guest/containers.py")),
    ("machine.py", include_str!("guest/machine.py")),
    ("package.py", include_str!("guest/package.py")),
    ("removal.py", include_str!("guest/removal.py")),
    ("under_load.py", include_str!("guest/under_load.py")),
    ("units.py", include_str!("guest/units.py")),
];
const UNIT: &str = include_str!("guest/clawbox-check.service");
/// Units that only cost an emulated machine time.
const MASKED: [&str; 11] = [
    "apt-daily-upgrade.timer",
    "apt-daily.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "fstrim.timer",
    "getty.target",
    "podman-auto-update.service",
    "podman-restart.service",
    "podman.socket",
    "podman-auto-update.timer",
    "systemd-logind.service",
];

/// Makes the machine, boots it, and waits for what the check in it says.
pub fn run(workspace: &Workspace, package: &Path, args: &Args) -> Result<ExitCode> {
    setup::ensure(workspace, Purpose::Test)?;
    packages::ensure(workspace, &packages::VM.iter().collect::<Vec<_>>())?;
    let start = Instant::now();
    let disk = disk(workspace, package, args)?;
    let limits = Limits {
        memory_mib: 2048,
        time: Duration::from_secs(3600),
        silence: Some(Duration::from_secs(600)),
        label: None,
        yields: false,
        counts_instructions: false,
    };
    let outcome = vm::boot_system(workspace, args.kernel, &disk, limits);
    fs::remove_file(&disk).with_context(|| format!("cannot remove `{}`", disk.display()))?;
    let status = outcome?.status;
    let verdict = if status == 0 { "ok" } else { "FAILED" };
    println!("check: in a VM: {verdict} ({:.0} s)", start.elapsed().as_secs_f32());
    Ok(ExitCode::from(status))
}

/// A Debian with the packages and the check on it, and neither installed nor run.
fn disk(workspace: &Workspace, package: &Path, args: &Args) -> Result<PathBuf> {
    let machine = Machine::fresh(workspace, Kind::Server)?;
    machine.put("srv/clawbox.deb", &read(package)?)?;
    machine.put("srv/newer.deb", &read(&newer(workspace, package)?)?)?;
    for (name, text) in FILES {
        machine.put(&format!("{CHECK}/{name}"), text.as_bytes())?;
    }
    machine.put(&format!("{CHECK}/only"), args.only.join("\n").as_bytes())?;
    machine.put("etc/hostname", b"clawbox-vm\n")?;
    machine.put("etc/hosts", b"127.0.0.1 localhost\n127.0.1.1 clawbox-vm\n")?;
    machine.put("etc/systemd/system/clawbox-check.service", UNIT.as_bytes())?;
    let units = machine.root().join("etc/systemd/system");
    let link = |to: &str, name: &Path| {
        let _ = fs::remove_file(name);
        symlink(to, name).with_context(|| format!("cannot make the link `{}`", name.display()))
    };
    for unit in MASKED {
        link("/dev/null", &units.join(unit))?;
    }
    link("../clawbox-check.service", &units.join("multi-user.target.wants/clawbox-check.service"))?;
    let disk = workspace.root().join("target/dist/server.ext4");
    println!("check: writing the machine's disk");
    vm::format(machine.root(), &disk)?;
    machine.remove()?;
    Ok(disk)
}

/// The same package as one of a later version, for upgrading to it.
fn newer(workspace: &Workspace, package: &Path) -> Result<PathBuf> {
    let directory = workspace.root().join("target/dist/newer");
    let _ = fs::remove_dir_all(&directory);
    process::run(Command::new("dpkg-deb").arg("--raw-extract").arg(package).arg(&directory))?;
    let control = directory.join("DEBIAN/control");
    let text = String::from_utf8_lossy(&read(&control)?).into_owned();
    let version = env!("CARGO_PKG_VERSION");
    let text = text.replace(&format!("Version: {version}\n"), &format!("Version: {version}+1\n"));
    fs::write(&control, text).with_context(|| format!("cannot write `{}`", control.display()))?;
    let made = workspace.root().join("target/dist/newer.deb");
    let mut build = Command::new("dpkg-deb");
    // Not compressed well: it is unpacked once, by an emulated processor.
    build.args(["-Zgzip", "-z1", "--root-owner-group", "--build"]).arg(&directory).arg(&made);
    process::output(&mut build)?;
    fs::remove_dir_all(&directory)?;
    Ok(made)
}

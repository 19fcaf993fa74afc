//! `cargo xtask dist --check`: the package's life on a machine that has never seen it, from installing to
//! purging. It has no systemd, no network and none of this machine's sandboxes.

use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, bail, ensure};

use super::listing::Listing;
use super::machine::{Kind, Machine};
use super::read;
use super::tree::AGENT;
use crate::process;
use crate::workspace::Workspace;

const PACKAGE: &str = "tmp/clawbox.deb";
const CONFIGURATION: &str = "etc/clawbox/agent.yaml";
const ENABLED: &str = "etc/systemd/system/multi-user.target.wants/clawbox.service";
/// What a daemon leaves; here nobody but this check has written it.
const KEPT: [&str; 2] = ["var/lib/clawbox/sandboxes/one", "var/log/clawbox/one.jsonl"];
const COMPLETIONS: [&str; 3] = [
    "usr/share/bash-completion/completions/clawbox",
    "usr/share/zsh/vendor-completions/_clawbox",
    "usr/share/fish/vendor_completions.d/clawbox.fish",
];

/// Changing root takes it.
pub fn require_root() -> Result<()> {
    if !process::is_root() {
        bail!("the package is installed in a directory that is changed root into: run it as root");
    }
    Ok(())
}

/// Goes through it; the first thing that is wrong is the error.
pub fn run(workspace: &Workspace, package: &Path) -> Result<ExitCode> {
    let machine = Machine::fresh(workspace, Kind::Minimal)?;
    let before = step("files before", || Listing::of(machine.root()))?;
    machine.put(PACKAGE, &read(package)?)?;
    let file = format!("/{PACKAGE}");
    step("install", || machine.run(&["dpkg", "--install", &file]))?;
    step("use", || is_usable(&machine))?;
    step("install over itself", || machine.run(&["dpkg", "--install", &file]))?;
    step("remove", || is_removed(&machine))?;
    step("purge", || machine.run(&["dpkg", "--purge", "clawbox"]))?;
    step("nothing of it in dpkg", || is_forgotten(&machine))?;
    std::fs::remove_file(machine.root().join(PACKAGE))?;
    let after = step("files after", || Listing::of(machine.root()))?;
    let left = before.differences(&after);
    if !left.is_empty() {
        for line in &left {
            println!("check: {line}");
        }
        println!("check: FAILED, a purge does not leave the machine as it was");
        return Ok(ExitCode::FAILURE);
    }
    machine.remove()?;
    println!("check: the package comes, works and goes without a trace");
    Ok(ExitCode::SUCCESS)
}

/// Says what is done before and how long it took after.
fn step<T>(name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    println!("check: {name} …");
    let start = Instant::now();
    let done = work().map_err(|error| error.context(format!("check: {name}")))?;
    println!("check: {name}: ok ({:.1} s)", start.elapsed().as_secs_f32());
    Ok(done)
}

fn is_usable(machine: &Machine) -> Result<()> {
    let version = machine.run(&["clawbox", "--version"])?;
    ensure!(version.trim() == format!("clawbox {}", env!("CARGO_PKG_VERSION")), "it is {version}");
    machine.run(&["clawbox", "config", "check"])?;
    machine.run(&["getent", "group", "clawbox"])?;
    ensure!(machine.has(ENABLED), "the unit is not enabled");
    let verbs = verbs(&machine.run(&["clawbox", "--help"])?);
    ensure!(verbs.len() > 5, "`clawbox --help` lists {verbs:?} alone");
    for name in ["clawbox".to_owned()].into_iter().chain(verbs) {
        let page = format!("usr/share/man/man1/{name}.1.gz");
        ensure!(machine.has(&page), "{page} is missing");
    }
    for file in COMPLETIONS {
        ensure!(machine.has(file), "{file} is missing");
    }
    machine.run(&["bash", "-n", &format!("/{}", COMPLETIONS[0])])?;
    machine.run(&["dpkg", "--verify", "clawbox"])?;
    Ok(())
}

/// What the administrator and the daemon have written outlives a removal.
fn is_removed(machine: &Machine) -> Result<()> {
    for file in KEPT {
        machine.put(file, b"kept\n")?;
    }
    machine.put(CONFIGURATION, b"refusals: true\n")?;
    machine.run(&["dpkg", "--remove", "clawbox"])?;
    for program in ["usr/bin/clawbox", AGENT] {
        ensure!(!machine.has(program), "{program} is still there");
    }
    for file in KEPT.into_iter().chain([CONFIGURATION]) {
        ensure!(machine.has(file), "{file} went with the package, before a purge");
    }
    Ok(())
}

fn is_forgotten(machine: &Machine) -> Result<()> {
    // Fails where it knows of no such package.
    if let Ok(status) = machine.run(&["dpkg-query", "--show", "clawbox"]) {
        bail!("dpkg still knows {status}");
    }
    ensure!(machine.run(&["getent", "group", "clawbox"]).is_err(), "the group is still there");
    Ok(())
}

/// The pages that the verbs in a help text have.
fn verbs(help: &str) -> Vec<String> {
    help.lines()
        .skip_while(|line| !line.starts_with("Commands:"))
        .skip(1)
        .take_while(|line| line.starts_with(' '))
        // A line that is set further in goes on with the text of the one above.
        .filter_map(|line| line.strip_prefix("  ")?.split(' ').next())
        .filter(|verb| !verb.is_empty())
        .filter(|verb| *verb != "help")
        .map(|verb| format!("clawbox-{verb}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verbs_are_read_from_help() {
        let help = "Enforces\n\nUsage: clawbox <COMMAND>\n\nCommands:\n  run     Run a command\n  \
                    policy  Look at\n          it\n  help    Print this\n\nOptions:\n  -h, --help\n";
        assert_eq!(verbs(help), ["clawbox-run", "clawbox-policy"]);
        assert!(verbs("no such section\n  run\n").is_empty());
    }
}

//! `cargo xtask tidy`: the rules that review forgets, checked on every file of the repository.
//! Formatting and lints are part of it, so that one command says whether a change may go in.

mod dependencies;
mod source;

use std::fs;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result};

use crate::process;
use crate::workspace::Workspace;

/// Something that must change before a commit.
#[derive(Debug, PartialEq, Eq)]
pub struct Problem {
    /// Relative to the repository's top.
    pub path: PathBuf,
    /// Where in the file, counted from 1; 0 for the file as a whole.
    pub line: usize,
    /// What is wrong and what to do.
    pub message: String,
}

/// Runs every check; fails if any found something.
pub fn run(workspace: &Workspace) -> Result<ExitCode> {
    let failed = check(workspace)?;
    if failed.is_empty() {
        println!("tidy: nothing to do");
        return Ok(ExitCode::SUCCESS);
    }
    println!("tidy: failed: {}", failed.join(", "));
    Ok(ExitCode::FAILURE)
}

/// Runs every check and prints what each found; the names of those that found something.
pub fn check(workspace: &Workspace) -> Result<Vec<&'static str>> {
    let mut failed = Vec::new();
    let mut section = |name: &'static str, passed: bool| {
        if !passed {
            failed.push(name);
        }
    };
    header("sources");
    section("sources", show(&sources(workspace)?));
    header("dependencies");
    section("dependencies", show(&dependencies::check(workspace)?));
    header("fmt");
    section("fmt", format(workspace)?);
    header("clippy");
    section("clippy", lint(workspace)?);
    header("licences and bans");
    section("licences and bans", deny(workspace)?);
    Ok(failed)
}

fn header(name: &str) {
    println!("── tidy: {name}");
}

fn show(problems: &[Problem]) -> bool {
    for Problem { path, line, message } in problems {
        match line {
            0 => println!("{}: {message}", path.display()),
            line => println!("{}:{line}: {message}", path.display()),
        }
    }
    problems.is_empty()
}

fn sources(workspace: &Workspace) -> Result<Vec<Problem>> {
    let listed = process::output(
        Command::new("git")
            // The checkout may be another user's than root's, who runs the tests.
            .args(["-c", "safe.directory=*", "ls-files", "-z"])
            .args(["--cached", "--others", "--exclude-standard"])
            .current_dir(workspace.root()),
    )
    .context("cannot list the repository's files; tidy needs git and a checkout")?;
    let mut problems = Vec::new();
    for path in listed.split('\0').filter(|path| !path.is_empty()).map(PathBuf::from) {
        // Deleted but not yet committed, or not text: nothing to read.
        let Ok(text) = fs::read_to_string(workspace.root().join(&path)) else {
            continue;
        };
        problems.extend(source::check(&path, &text));
    }
    Ok(problems)
}

fn format(workspace: &Workspace) -> Result<bool> {
    if !has_subcommand(workspace, "fmt") {
        return Ok(not_there("rustfmt"));
    }
    let mut passed = true;
    // `--all` would follow the kernel programs' path dependency back into this workspace.
    for (directory, packages) in [("", "--all"), ("clawbox-ebpf", "--package=clawbox-ebpf")] {
        let directory = workspace.root().join(directory);
        if directory.join("Cargo.toml").exists() {
            let mut cargo = workspace.cargo();
            cargo.args(["fmt", packages, "--", "--check", "-l"]).current_dir(directory);
            passed &= process::status(&mut cargo)?.success();
        }
    }
    Ok(passed)
}

/// clawbox-ebpf is left out: no clippy comes with the distribution's compiler that builds it.
fn lint(workspace: &Workspace) -> Result<bool> {
    if !has_subcommand(workspace, "clippy") {
        return Ok(not_there("clippy"));
    }
    let mut cargo = workspace.cargo();
    cargo.args(["clippy", "--quiet", "--workspace", "--all-targets", "--", "-Dwarnings"]);
    Ok(process::status(&mut cargo)?.success())
}

fn deny(workspace: &Workspace) -> Result<bool> {
    if !has_subcommand(workspace, "deny") {
        println!("skipped: `cargo deny` is not installed (`cargo install cargo-deny --locked`)");
        return Ok(true);
    }
    let mut cargo = workspace.cargo();
    cargo.args(["deny", "--log-level", "error", "check", "bans", "licenses", "sources"]);
    Ok(process::status(&mut cargo)?.success())
}

fn has_subcommand(workspace: &Workspace, name: &str) -> bool {
    let mut cargo = workspace.cargo();
    cargo.args([name, "--version"]).stdout(Stdio::null()).stderr(Stdio::null());
    cargo.status().is_ok_and(|status| status.success())
}

/// A machine that only runs clawbox may lack the component; that is no fault of the sources.
fn not_there(component: &str) -> bool {
    println!("skipped: {component} is not installed (`rustup component add {component}`)");
    true
}

//! What is counted: opens, uses of a connection, program starts and a walk over a tree, by one process that is started in
//! a sandbox or outside. It writes a line for each figure: the operation and its instructions.

use std::ffi::{CStr, CString};
use std::io::{Read, Write};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use landlock::{
    ABI, Access, AccessFs, Ruleset, RulesetAttr, RulesetCreatedAttr, path_beneath_rules,
};
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;

use super::connection;
use super::tree::{self, BATCHES, DEPTHS, FILES, READ_ONLY, READ_WRITE};
use crate::instructions::{of_batches, prove, taken};

/// Opens of one file in a batch: a quarter of what fits between two ticks of the guest's clock, so that
/// the least of some batches has none in it.
const AGAIN: u32 = 60;
/// And of such batches: the first ones are beside what the guest still does for the process's start.
const AGAIN_BATCHES: usize = 50;
/// Program starts in a batch.
const STARTS: u32 = 10;
/// Batches of program starts, and walks.
const LONG_BATCHES: usize = 5;

/// What a process of this program does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Role {
    /// Counts.
    Work,
    /// Counts under Landlock, which it puts around itself.
    Landlocked,
    /// Says that it runs, and waits for the end of its input.
    Wait,
}

/// Does it.
pub fn serve(role: Role) -> Result<()> {
    match role {
        Role::Work => work(),
        Role::Landlocked => {
            restrict()?;
            work()
        }
        Role::Wait => {
            println!("ready");
            std::io::stdin().read_to_end(&mut Vec::new())?;
            Ok(())
        }
    }
}

/// The policy's rules, by Landlock and nothing else.
fn restrict() -> Result<()> {
    // What every kernel here has: 6.1 has ABI 2.
    let abi = ABI::V2;
    let rules = |paths: &'static [&str], access| path_beneath_rules(paths, access);
    Ruleset::default()
        .handle_access(AccessFs::from_all(abi))?
        .create()?
        .add_rules(rules(READ_ONLY, AccessFs::from_read(abi)))?
        .add_rules(rules(READ_WRITE, AccessFs::from_all(abi)))?
        .restrict_self()?;
    Ok(())
}

fn work() -> Result<()> {
    prove()?;
    for depth in DEPTHS {
        tell(&format!("open-again-{depth}"), again(depth)?)?;
        tell(&format!("open-once-{depth}"), once(depth)?)?;
        tell(&format!("open-renamed-{depth}"), after_rename(depth)?)?;
    }
    for (operation, count) in connection::counted()? {
        tell(operation, count)?;
    }
    tell("exec", exec()?)?;
    tell("find", find()?)
}

fn tell(operation: &str, count: f64) -> Result<()> {
    let mut out = std::io::stdout();
    writeln!(out, "{operation} {count:.0}")?;
    out.flush()?;
    Ok(())
}

fn open_and_close(path: &CStr) -> Result<()> {
    drop(open(path, OFlag::O_RDONLY, Mode::empty())?);
    Ok(())
}

/// The same file again and again.
fn again(depth: usize) -> Result<f64> {
    let path = CString::new(tree::file(depth, 0, 0))?;
    of_batches(AGAIN_BATCHES, |_| {
        let all = taken(|| (0..AGAIN).try_for_each(|_| open_and_close(&path)))?;
        Ok(all / f64::from(AGAIN))
    })
}

/// Files that nobody in this sandbox has opened before.
fn once(depth: usize) -> Result<f64> {
    of_batches(BATCHES, |batch| {
        let paths = (0..FILES)
            .map(|number| Ok(CString::new(tree::file(depth, batch + 1, number))?))
            .collect::<Result<Vec<CString>>>()?;
        let all = taken(|| paths.iter().try_for_each(|path| open_and_close(path)))?;
        Ok(all / FILES as f64)
    })
}

/// The same file, while something elsewhere is renamed before each open; without the renames.
fn after_rename(depth: usize) -> Result<f64> {
    let path = CString::new(tree::file(depth, 0, 0))?;
    let names = tree::RENAMED;
    std::fs::write(names[0], [])?;
    let mut turn = 0;
    let mut rename = || {
        turn += 1;
        nix::fcntl::renameat(
            nix::fcntl::AT_FDCWD,
            names[(turn - 1) % 2],
            nix::fcntl::AT_FDCWD,
            names[turn % 2],
        )
    };
    // Even, so that the file has its first name again.
    let turns = FILES + FILES % 2;
    // Each the least by itself: of differences the least would be the one with most else in it.
    let renames = of_batches(BATCHES, |_| taken(|| Ok((0..turns).try_for_each(|_| rename())?)))?;
    let both = of_batches(BATCHES, |_| {
        taken(|| {
            (0..turns).try_for_each(|_| {
                rename()?;
                open_and_close(&path)
            })
        })
    })?;
    std::fs::remove_file(names[0])?;
    Ok((both - renames) / turns as f64)
}

/// fork, exec and wait.
fn exec() -> Result<f64> {
    of_batches(LONG_BATCHES, |_| {
        let all = taken(|| (0..STARTS).try_for_each(|_| run(&mut Command::new("/bin/true"))))?;
        Ok(all / f64::from(STARTS))
    })
}

/// A walk that asks for the size of each file.
fn find() -> Result<f64> {
    of_batches(LONG_BATCHES, |_| {
        taken(|| run(Command::new("/usr/bin/find").arg(tree::WALKED).args(["-size", "+1000k"])))
    })
}

fn run(command: &mut Command) -> Result<()> {
    let status = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .with_context(|| format!("cannot start `{}`", command.get_program().display()))?;
    if !status.success() {
        bail!("`{}` ended with {status}", command.get_program().display());
    }
    Ok(())
}

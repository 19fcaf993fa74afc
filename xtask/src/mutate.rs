//! `cargo xtask mutate`: proves that the tests can fail. One protection at a time is taken out of the
//! programs, and the test that attacks it must then fail; with all of them in, none may.

mod mutants;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::build;
use crate::process;
use crate::setup::{self, Purpose};
use crate::test::{self, Judged, Tests, Which};
use crate::toolchain::Toolchain;
use crate::vm::{self, Copy, Guest, Kernel, Limits};
use crate::workspace::Workspace;

/// For one mutant's test in a VM, most of it for booting and verifying.
const VM_TIME: Duration = Duration::from_secs(400);
/// For each further test of the run without a mutant.
const VM_TIME_MORE: Duration = Duration::from_secs(120);
const VM_MEMORY_MIB: u32 = 1536;

#[derive(clap::Args)]
pub struct Args {
    /// The kernel for protections that are BPF LSM programs.
    #[arg(long, value_enum, default_value = "6.1")]
    kernel: Kernel,
    /// List the mutants and run none.
    #[arg(long)]
    list: bool,
    /// Take out nothing: build another clawbox whose programs do the same in other words, and have daemons of
    /// both take over from each other under load.
    #[arg(long, conflicts_with_all = ["list", "filter"])]
    upgrade: bool,
    /// Only mutants whose name contains this.
    filter: Option<String>,
}

/// A protection taken out.
struct Mutant {
    /// What is missing then.
    name: &'static str,
    /// The source file, from the repository's top.
    file: &'static str,
    /// Text that is there once, and what takes its place.
    from: &'static str,
    to: &'static str,
    /// Part of the name of the test that must fail.
    test: &'static str,
    /// Whether the protection is a BPF LSM program's, which needs a VM.
    needs_lsm: bool,
}

/// A program that is another one for the kernel and decides the same.
const ANOTHER: Mutant = Mutant {
    name: "nothing, in other words",
    file: "clawbox-ebpf/src/hooks/address.rs",
    from: "pub fn connect4(ctx: SockAddrContext) -> i32 {\n",
    to: "pub fn connect4(ctx: SockAddrContext) -> i32 {\n    \
         unsafe { aya_ebpf::helpers::generated::bpf_ktime_get_ns() };\n",
    test: "",
    needs_lsm: false,
};

/// Those in which one daemon takes over from another.
const UPGRADED: [&str; 2] = ["reliability::", "daemon::"];

/// Runs the tests of take-overs with two builds in turn.
fn upgrade(workspace: &Workspace, toolchain: &Toolchain) -> Result<ExitCode> {
    let other = build_mutant(workspace, toolchain, &ANOTHER)?;
    let own = workspace.clawbox(false);
    let judged = test::on_host_with(workspace, &own, Some(&other), Which::AnyOf(&UPGRADED))?;
    Ok(if fails(&judged)? { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Runs the mutants; fails if one survives.
pub fn run(workspace: &Workspace, args: &Args) -> Result<ExitCode> {
    if args.upgrade {
        let toolchain = setup::ensure(workspace, Purpose::Test)?;
        build::both(workspace, &toolchain, build::Args::default())?;
        return upgrade(workspace, &toolchain);
    }
    let wanted = |mutant: &&Mutant| {
        args.filter.as_ref().is_none_or(|filter| mutant.name.contains(filter.as_str()))
    };
    let mutants: Vec<&Mutant> = mutants::ALL.iter().filter(wanted).collect();
    if args.list {
        for mutant in &mutants {
            println!("{}: {} must fail ({})", mutant.name, mutant.test, mutant.file);
        }
        return Ok(ExitCode::SUCCESS);
    }
    if mutants.is_empty() {
        bail!("no mutant has that in its name; `cargo xtask mutate --list` names them");
    }
    if mutants.iter().any(|mutant| !mutant.needs_lsm) && !process::is_root() {
        bail!("some of these are tested on this kernel: run `cargo xtask mutate` as root");
    }
    let toolchain = setup::ensure(workspace, Purpose::Test)?;
    build::both(workspace, &toolchain, build::Args::default())?;
    check_whole(workspace, &mutants, args.kernel)?;
    let mut survivors = Vec::new();
    for mutant in mutants {
        println!("══ without: {}", mutant.name);
        let failed = test_fails(workspace, &toolchain, mutant, args.kernel)
            .with_context(|| format!("mutant `{}`", mutant.name))?;
        println!("mutant: {} — {}", mutant.name, if failed { "found" } else { "SURVIVED" });
        if !failed {
            survivors.push(mutant.name);
        }
    }
    if survivors.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    println!("no test fails without: {}", survivors.join("; "));
    Ok(ExitCode::FAILURE)
}

/// Runs the mutants' tests with nothing taken out. One that fails then too proves nothing later.
fn check_whole(workspace: &Workspace, mutants: &[&Mutant], kernel: Kernel) -> Result<()> {
    for needs_lsm in [false, true] {
        let tests = tests_of(mutants, needs_lsm);
        if tests.is_empty() {
            continue;
        }
        println!("══ with everything: {}", tests.join(", "));
        let which = Which::AnyOf(&tests);
        let judged = if needs_lsm {
            let further = u32::try_from(tests.len() - 1).unwrap_or(u32::MAX);
            let time = VM_TIME.saturating_add(VM_TIME_MORE.saturating_mul(further));
            in_vm(workspace, kernel, &test::guest(workspace, which)?, which, time)?
        } else {
            test::on_host(workspace, &workspace.clawbox(false), which)?
        };
        if fails(&judged).context("with nothing taken out")? {
            bail!("{} of these fail with nothing taken out: mend that first", judged.tests.failed);
        }
    }
    Ok(())
}

/// Each once.
fn tests_of(mutants: &[&Mutant], needs_lsm: bool) -> Vec<&'static str> {
    let wanted = mutants.iter().filter(|mutant| mutant.needs_lsm == needs_lsm);
    let tests: BTreeSet<&str> = wanted.map(|mutant| mutant.test).collect();
    tests.into_iter().collect()
}

/// Whether a test failed by what it tests. That clawbox could not start is no answer.
fn fails(judged: &Judged) -> Result<bool> {
    if let Some(line) = &judged.unstarted {
        bail!("clawbox did not start, so nothing was tested: {line}");
    }
    if judged.tests == Tests::default() {
        bail!("no test ran");
    }
    Ok(judged.tests.failed > 0)
}

fn test_fails(
    workspace: &Workspace,
    toolchain: &Toolchain,
    mutant: &Mutant,
    kernel: Kernel,
) -> Result<bool> {
    let clawbox = build_mutant(workspace, toolchain, mutant)?;
    let which = Which::Named(mutant.test);
    let judged = if mutant.needs_lsm {
        let mut guest = test::guest(workspace, which)?;
        guest.copies.retain(|copy| copy.to != Path::new(vm::CLAWBOX));
        guest.copies.push(Copy::new(clawbox, PathBuf::from(vm::CLAWBOX))?);
        in_vm(workspace, kernel, &guest, which, VM_TIME)?
    } else {
        test::on_host(workspace, &clawbox, which)?
    };
    fails(&judged).with_context(|| format!("test `{}`", mutant.test))
}

fn in_vm(
    workspace: &Workspace,
    kernel: Kernel,
    guest: &Guest,
    which: Which<'_>,
    time: Duration,
) -> Result<Judged> {
    let limits = Limits {
        memory_mib: VM_MEMORY_MIB,
        time,
        silence: None,
        label: None,
        yields: false,
        counts_instructions: false,
    };
    let outcome = vm::boot(workspace, kernel, guest, limits)?;
    test::judged(&outcome.output, outcome.status == 0, which)
}

/// Builds a clawbox whose programs lack something, beside the real one.
fn build_mutant(workspace: &Workspace, toolchain: &Toolchain, mutant: &Mutant) -> Result<PathBuf> {
    let directory = workspace.root().join("target/mutants");
    let source = directory.join("source");
    let _ = fs::remove_dir_all(&source);
    for part in ["clawbox-ebpf", "clawbox-common", "policies", "Cargo.toml", "Cargo.lock"] {
        copy(&workspace.root().join(part), &source.join(part))?;
    }
    // Its manifest takes keys from the workspace's, which names packages that are not copied.
    for package in ["clawbox-userspace", "xtask", "tests", "benches"] {
        copy(&workspace.root().join(package), &source.join(package))?;
    }
    let file = source.join(mutant.file);
    let text =
        fs::read_to_string(&file).with_context(|| format!("cannot read `{}`", file.display()))?;
    if text.matches(mutant.from).count() != 1 {
        bail!("`{}` is not there once in `{}`: mend the mutant", mutant.from, mutant.file);
    }
    fs::write(&file, text.replace(mutant.from, mutant.to))
        .with_context(|| format!("cannot write `{}`", file.display()))?;
    let object = directory.join("clawbox-ebpf.o");
    build::object_of(toolchain, &source.join("clawbox-ebpf"), &directory.join("bpf"), &object)?;
    let target = directory.join("target");
    let mut cargo = workspace.cargo();
    // There, or an agent without the protection would be built with it.
    cargo.current_dir(&source);
    cargo.args(["build", "--package", "clawbox-userspace", "--target-dir"]).arg(&target);
    cargo.env("CLAWBOX_BPF_OBJECT", &object).stdout(Stdio::null());
    process::run(&mut cargo)?;
    Ok(target.join("debug/clawbox"))
}

/// Copies a file, or a directory without what was built in it.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let failed = || format!("cannot copy `{}`", from.display());
    if !from.is_dir() {
        if let Some(parent) = to.parent() {
            fs::create_dir_all(parent).with_context(failed)?;
        }
        fs::copy(from, to).with_context(failed)?;
        return Ok(());
    }
    for entry in fs::read_dir(from).with_context(failed)? {
        let entry = entry.with_context(failed)?;
        if entry.file_name() != "target" {
            copy(&entry.path(), &to.join(entry.file_name()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(passed: u32, failed: u32, unstarted: Option<&str>) -> Judged {
        let unstarted = unstarted.map(str::to_owned);
        Judged { tests: Tests { passed, failed }, unstarted, ..Judged::default() }
    }

    #[test]
    fn only_a_test_that_ran_and_failed_has_found_a_mutant() {
        assert!(fails(&judged(0, 1, None)).unwrap());
        assert!(fails(&judged(3, 1, None)).unwrap());
        assert!(!fails(&judged(1, 0, None)).unwrap());
        let refused = "the kernel refused program `connect4`";
        let error = fails(&judged(0, 1, Some(refused))).unwrap_err().to_string();
        assert!(error.contains(refused), "{error}");
        assert!(fails(&judged(0, 0, None)).is_err());
    }

    #[test]
    fn each_test_runs_once_where_its_protection_is() {
        let mutant =
            |test, needs_lsm| Mutant { name: "", file: "", from: "", to: "", test, needs_lsm };
        let all = [mutant("b", false), mutant("a", false), mutant("b", false), mutant("c", true)];
        let all: Vec<&Mutant> = all.iter().collect();
        assert_eq!(tests_of(&all, false), ["a", "b"]);
        assert_eq!(tests_of(&all, true), ["c"]);
    }
}

//! `cargo xtask attacks`: the rows of the threat model, tried on this kernel and in VMs, as a table of
//! the layer that stopped each. `cargo xtask test` compares the table with what it has seen.

mod table;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::build;
use crate::process;
use crate::setup::{self, Purpose};
use crate::test::{self, Which};
use crate::vm::Kernel;
use crate::workspace::Workspace;

/// Parts of the names of the tests that tell where an attack ended: a module, and one that has a real
/// program attacked, on the kernel that runs it.
const TELLING: [&str; 2] = ["attacks::", "real_programs::a_server_answers"];
/// What they tell it by, in `tests/src/layer.rs`.
const PREFIX: &str = "attack: {";

#[derive(clap::Args)]
pub struct Args {
    /// Only on this machine's kernel.
    #[arg(long, conflicts_with = "kernel")]
    host: bool,
    /// Only in a VM with this kernel.
    #[arg(long, value_enum)]
    kernel: Option<Kernel>,
    /// Write what was seen into the table of docs/threat-model.md.
    #[arg(long)]
    write: bool,
    /// How to print what was seen.
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// The table.
    #[default]
    Text,
    /// Every attack by itself.
    Json,
}

/// Layers by attack, by row.
type Rows = BTreeMap<u8, BTreeMap<String, BTreeSet<String>>>;

/// Where the attacks that were tried on one kernel ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    rows: Rows,
}

impl Observed {
    /// From the output of tests. Other output may stand before a line's own.
    pub fn read(output: &str) -> Result<Self> {
        let mut observed = Self::default();
        for line in output.lines() {
            let Some(at) = line.find(PREFIX) else { continue };
            let text = line[at + PREFIX.len() - 1..].trim();
            let told: Value = serde_json::from_str(text)
                .with_context(|| format!("a line of an attack is cut: {line}"))?;
            let row = told["row"].as_u64().and_then(|row| u8::try_from(row).ok());
            let (Some(row), Some(attack), Some(layer)) =
                (row, told["attack"].as_str(), told["layer"].as_str())
            else {
                bail!("not what an attack tells: {line}");
            };
            let attacks = observed.rows.entry(row).or_default();
            attacks.entry(attack.to_owned()).or_default().insert(layer.to_owned());
        }
        Ok(observed)
    }

    /// Whether anything was tried.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Whether a BPF LSM hook has stopped something.
    fn has_lsm(&self) -> bool {
        self.rows.values().flat_map(BTreeMap::values).any(|layers| layers.contains("BPF LSM"))
    }
}

/// The column of a kernel: a VM's by its name, this machine's by what its kernel is.
pub fn column(kernel: Option<Kernel>, observed: &Observed) -> String {
    let Some(kernel) = kernel else {
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let version: Vec<&str> = release.trim().splitn(3, '.').take(2).collect();
        let lsm = if observed.has_lsm() { "" } else { ", no BPF LSM" };
        return format!("{}{lsm}", version.join("."));
    };
    kernel.name().to_owned()
}

/// Tries the rows and prints where they ended.
pub fn run(workspace: &Workspace, args: &Args) -> Result<ExitCode> {
    if args.kernel.is_none() && !process::is_root() {
        bail!(
            "attacks load programs into the kernel: run `cargo xtask attacks` as root; \
             `cargo xtask attacks --kernel 6.12` needs no root"
        );
    }
    let toolchain = setup::ensure(workspace, Purpose::Test)?;
    build::both(workspace, &toolchain, build::Args::default())?;
    let stages: Vec<test::Stage> = match args.kernel {
        None => {
            let here = test::enforcement_here(workspace, Which::AnyOf(&TELLING));
            let kernels = if args.host { &[][..] } else { &Kernel::ALL };
            let others = test::on_other_kernels(workspace, kernels, Which::AnyOf(&TELLING));
            std::iter::once(here).chain(others).collect()
        }
        Some(kernel) => test::on_other_kernels(workspace, &[kernel], Which::AnyOf(&TELLING)),
    };
    let outcome = test::summary(&stages);
    let seen = seen(&stages);
    match args.format {
        Format::Text => print!("{}", table::of(&seen)),
        Format::Json => println!("{}", as_json(&seen)),
    }
    if args.write {
        // A kernel on which a test has failed keeps its column.
        let whole: Vec<_> = stages.into_iter().filter(|stage| !stage.has_failed()).collect();
        let path = document(workspace);
        let text = table::written(&read(&path)?, &self::seen(&whole))?;
        fs::write(&path, text).with_context(|| format!("cannot write `{}`", path.display()))?;
    }
    Ok(outcome)
}

/// By column, in the order of the stages.
pub fn seen(stages: &[test::Stage]) -> Vec<(String, Observed)> {
    let told = stages.iter().filter(|stage| !stage.attacks.is_empty());
    told.map(|stage| (column(stage.kernel, &stage.attacks), stage.attacks.clone())).collect()
}

/// Fails where the document's table says something else than what was seen, or a row was not tried.
pub fn compare(workspace: &Workspace, seen: &[(String, Observed)]) -> Result<()> {
    let differences = table::differences(&read(&document(workspace))?, seen)?;
    if differences.is_empty() {
        return Ok(());
    }
    for difference in &differences {
        println!("{difference}");
    }
    bail!(
        "docs/threat-model.md says otherwise in {} places; if what was seen is right, \
         `cargo xtask attacks --write` writes it",
        differences.len()
    )
}

fn document(workspace: &Workspace) -> PathBuf {
    workspace.root().join("docs/threat-model.md")
}

fn read(path: &PathBuf) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read `{}`", path.display()))
}

fn as_json(seen: &[(String, Observed)]) -> Value {
    let attacks = seen.iter().flat_map(|(kernel, observed)| {
        observed.rows.iter().flat_map(move |(row, attacks)| {
            attacks.iter().map(move |(attack, layers)| {
                json!({ "kernel": kernel, "row": row, "attack": attack, "layers": layers })
            })
        })
    });
    attacks.collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// Of the tests outside the module of attacks.
    #[test]
    fn every_test_that_tells_of_an_attack_is_asked_for() {
        let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/tests/kernel");
        let mut telling = Vec::new();
        for entry in fs::read_dir(tests).unwrap() {
            let path = entry.unwrap().path();
            let text = fs::read_to_string(&path).unwrap();
            let module = path.file_stem().unwrap().to_str().unwrap();
            for function in text.split("\nfn ").filter(|it| it.contains("tell(")) {
                telling.push(format!("{module}::{}", function.split('(').next().unwrap()));
            }
        }
        assert!(!telling.is_empty(), "else the name of the module is enough");
        for test in telling {
            assert!(TELLING.iter().any(|name| test.contains(name)), "`{test}` is not in TELLING");
        }
    }

    #[test]
    fn what_an_attack_tells_is_found_in_other_output() {
        let output = "test a ... attack: {\"row\":27,\"attack\":\"open\",\"layer\":\"BPF LSM\"}\r\nok\n\
                      6.12 | attack: {\"row\":1,\"attack\":\"copy\",\"layer\":\"seccomp\"}\n";
        let observed = Observed::read(output).unwrap();
        assert_eq!(observed.rows.keys().collect::<Vec<_>>(), [&1, &27]);
        assert!(observed.rows[&27]["open"].contains("BPF LSM") && observed.has_lsm());
        assert!(Observed::read("attack: {\"row\":27,\"att").is_err());
        assert!(Observed::read("attack: {\"row\":27}").is_err());
    }
}

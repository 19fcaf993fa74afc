//! What is checked across manifests: pinned versions, and a reason for each direct dependency.
//! A dependency is somebody else's code running as root; the table says why it is worth that.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

use super::Problem;
use crate::process;
use crate::workspace::Workspace;

const TABLE: &str = "docs/dependencies.md";
/// Lock file, crate and version: kernel objects and their loader were verified with these.
const PINS: [(&str, &str, &str); 2] =
    [("Cargo.lock", "aya", "0.14.0"), ("clawbox-ebpf/Cargo.lock", "aya-ebpf", "0.2.1")];

/// Every problem of the manifests and lock files.
pub fn check(workspace: &Workspace) -> Result<Vec<Problem>> {
    let root = workspace.root();
    let mut problems = Vec::new();
    for (lock, name, version) in PINS {
        let text = fs::read_to_string(root.join(lock)).unwrap_or_default();
        if let Some(message) = unpinned(&text, name, version) {
            problems.push(Problem { path: PathBuf::from(lock), line: 0, message });
        }
    }
    let mut used = BTreeMap::new();
    for directory in ["", "clawbox-ebpf"] {
        let manifest = root.join(directory).join("Cargo.toml");
        if manifest.exists() {
            used.extend(direct_dependencies(workspace, &manifest)?);
        }
    }
    let table = fs::read_to_string(root.join(TABLE)).unwrap_or_default();
    for message in differences(&used, &rows(&table)) {
        problems.push(Problem { path: PathBuf::from(TABLE), line: 0, message });
    }
    Ok(problems)
}

fn unpinned(lock: &str, name: &str, version: &str) -> Option<String> {
    let entry = format!("[[package]]\nname = \"{name}\"\nversion = ");
    let found: Vec<&str> = lock
        .split(&entry)
        .skip(1)
        .filter_map(|rest| rest.strip_prefix('"')?.split('"').next())
        .collect();
    if found == [version] {
        return None;
    }
    let found = if found.is_empty() { "absent".to_owned() } else { found.join(", ") };
    Some(format!(
        "{name} must be {version} and is {found}; `cargo update -p {name} --precise {version}`"
    ))
}

/// Crate and the package that depends on it, path dependencies left out.
fn direct_dependencies(workspace: &Workspace, manifest: &Path) -> Result<BTreeMap<String, String>> {
    let mut cargo = workspace.cargo();
    cargo.args(["metadata", "--format-version", "1", "--no-deps", "--manifest-path"]).arg(manifest);
    let metadata: Value = serde_json::from_str(&process::output(&mut cargo)?)
        .context("`cargo metadata` did not answer with JSON")?;
    Ok(parse_metadata(&metadata))
}

fn parse_metadata(metadata: &Value) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            if let (Some(package), Some(name), true) = (
                package["name"].as_str(),
                dependency["name"].as_str(),
                dependency["path"].is_null(),
            ) {
                found.insert(name.to_owned(), package.to_owned());
            }
        }
    }
    found
}

/// The first column of the table's rows, where that is a crate's name in backticks.
fn rows(table: &str) -> BTreeSet<String> {
    table
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split('`').next())
        .map(str::to_owned)
        .collect()
}

fn differences(used: &BTreeMap<String, String>, rows: &BTreeSet<String>) -> Vec<String> {
    let unexplained =
        used.iter().filter(|(name, _)| !rows.contains(*name)).map(|(name, package)| {
            format!(
                "no row for `{name}`, which {package} uses: say why, its licence, what it replaces"
            )
        });
    let stale = rows
        .iter()
        .filter(|name| !used.contains_key(*name))
        .map(|name| format!("nothing uses `{name}`: remove its row"));
    unexplained.chain(stale).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_holds_only_while_it_is_the_only_version() {
        let entry = |version| format!("[[package]]\nname = \"aya\"\nversion = \"{version}\"\n");
        assert_eq!(unpinned(&entry("0.14.0"), "aya", "0.14.0"), None);
        assert!(unpinned(&entry("0.16.0"), "aya", "0.14.0").unwrap().contains("0.16.0"));
        let two = entry("0.14.0") + &entry("0.13.0");
        assert!(unpinned(&two, "aya", "0.14.0").unwrap().contains("0.14.0, 0.13.0"));
        assert!(unpinned("", "aya", "0.14.0").unwrap().contains("absent"));
    }

    #[test]
    fn every_dependency_has_a_row_and_every_row_a_dependency() {
        let metadata = serde_json::json!({ "packages": [{
            "name": "agent",
            "dependencies": [{ "name": "tokio" }, { "name": "own", "path": "/x" }],
        }]});
        let used = parse_metadata(&metadata);
        assert_eq!(differences(&used, &rows("| `tokio` | async | MIT | threads |\n")), [""; 0]);
        let found = differences(&used, &rows("| crate | why |\n|---|---|\n| `rand` | x |\n"));
        assert!(found[0].contains("`tokio`, which agent uses"), "{found:?}");
        assert!(found[1].contains("nothing uses `rand`"), "{found:?}");
    }
}

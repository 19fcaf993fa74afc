//! Secrets that a policy lets be read by the way: by a wider path, and not because it names them.

use std::path::{Path, PathBuf};

use crate::judge::{ANY_PROGRAM, Access, Deed, Judge, Who};
use crate::policy::model::{Located, Policy};
use crate::policy::path::SandboxPath;
use crate::policy::{Diagnostic, Origin};
use crate::presets::groups::groups;

/// Groups whose paths are secrets, and those who write which have others run programs.
const READ: [&str; 4] = ["credentials", "keyrings", "browser-data", "container-sockets"];
const WRITTEN: [&str; 3] = ["shell-startup", "git-config", "editor-config"];

/// One finding for each group, with the paths of it that can be reached.
pub(super) fn reachable(judge: &Judge, home: Option<&Path>) -> Vec<Diagnostic> {
    let policy = judge.policy();
    let mut found = Vec::new();
    for (name, group) in groups().unwrap_or_default() {
        let (access, verb) = match name.as_str() {
            name if READ.contains(&name) => (Access::Read, "read"),
            name if WRITTEN.contains(&name) => (Access::Write, "written"),
            _ => continue,
        };
        let paths = group.paths.iter().filter_map(|path| absolute(path, home));
        let reached: Vec<PathBuf> = paths
            .filter(|path| !is_named(policy, path))
            .filter(|path| {
                let deed = Deed::Use { path: path.clone(), access };
                judge.ask(&Who::from(Path::new(ANY_PROGRAM)), &deed).is_allowed()
            })
            .collect();
        let Some(first) = reached.first() else { continue };
        let more = match reached.len() - 1 {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        found.push(Diagnostic::warning(
            around(policy, first),
            format!("`{}`{more} may be {verb} ({})", first.display(), group.description),
            format!("write `group:{name}` in `filesystem_policy.deny`, or open less"),
        ));
    }
    found
}

fn absolute(path: &str, home: Option<&Path>) -> Option<PathBuf> {
    match path.strip_prefix("~/") {
        Some(rest) => home.map(|home| home.join(rest)),
        None => path.starts_with('/').then(|| path.into()),
    }
}

fn granted(policy: &Policy) -> impl Iterator<Item = &Located<SandboxPath>> {
    policy.filesystem.read_only().iter().chain(policy.filesystem.read_write())
}

/// Whether the policy opens it, or something in it, by its own name: then that is meant.
fn is_named(policy: &Policy, path: &Path) -> bool {
    granted(policy).any(|at| at.value.as_path().starts_with(path))
}

/// Where the path that opens it stands.
fn around(policy: &Policy, path: &Path) -> Origin {
    let around = granted(policy).filter(|at| path.starts_with(at.value.as_path()));
    let nearest = around.max_by_key(|at| at.value.as_str().len());
    nearest.map_or_else(|| policy.origin.clone(), |at| at.origin.clone())
}

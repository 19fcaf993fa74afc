//! `filesystem_policy`: bounds, contradictions and rules for single binaries.

use super::network::binaries;
use super::{At, Scope};
use crate::policy::document::{FileRuleSection, FilesystemSection};
use crate::policy::model::{FileRule, Filesystem, Located};
use crate::policy::path::{DenyPattern, SandboxPath};

/// Paths a policy may name in all.
const MOST_PATHS: usize = 256;

pub(super) fn filesystem(scope: &mut Scope<'_>, section: &FilesystemSection) -> Filesystem {
    if !bound(scope, section) {
        return Filesystem::default();
    }
    let mut read_only = scope.paths(section.read_only.get());
    let mut read_write = scope.paths(section.read_write.get());
    refuse_root(scope, section.read_write.get(), &mut read_write);
    read_only = distinct(read_only);
    read_write = distinct(read_write);
    for at in section.read_write.get().into_iter().flatten() {
        let Ok(path) = SandboxPath::parse(&at.value) else {
            continue;
        };
        if read_only.iter().any(|other| other.value == path) {
            scope.warning(
                at,
                format!("{path} is in `read_only` too, and the narrower one holds"),
                "keep it in one of the two lists",
            );
            read_write.retain(|other| other.value != path);
        }
    }
    let mut deny = Vec::new();
    for at in section.deny.get().into_iter().flatten() {
        match DenyPattern::parse(&at.value) {
            Ok(value) => deny.push(Located { value, origin: at.origin(scope.file) }),
            Err(error) => scope.error(at, error.to_string(), error.remedy),
        }
    }
    let mut rules = Vec::new();
    for at in section.rules.get().into_iter().flatten() {
        rules.push(Located { value: file_rule(scope, at), origin: at.origin(scope.file) });
    }
    Filesystem {
        written: true,
        include_workdir: section.include_workdir.or(false),
        read_only,
        read_write,
        deny,
        rules,
    }
}

fn file_rule(scope: &mut Scope<'_>, at: &At<FileRuleSection>) -> FileRule {
    let section = &at.value;
    if section.binaries.is_empty() {
        scope.warning(
            at,
            "the rule names no binary and admits nobody",
            "name one under `binaries`",
        );
    }
    let mut read_write = scope.paths(section.read_write.get());
    refuse_root(scope, section.read_write.get(), &mut read_write);
    FileRule {
        binaries: binaries(scope, &section.binaries),
        read_only: distinct(scope.paths(section.read_only.get())),
        read_write: distinct(read_write),
    }
}

fn refuse_root(
    scope: &mut Scope<'_>,
    written: Option<&Vec<At<String>>>,
    paths: &mut Vec<Located<SandboxPath>>,
) {
    for at in written.into_iter().flatten() {
        if matches!(SandboxPath::parse(&at.value), Ok(path) if path.as_str() == "/") {
            scope.error(
                at,
                "`/` cannot be writable",
                "name the directories that the agent works in",
            );
        }
    }
    paths.retain(|path| path.value.as_str() != "/");
}

fn distinct(paths: Vec<Located<SandboxPath>>) -> Vec<Located<SandboxPath>> {
    let mut kept: Vec<Located<SandboxPath>> = Vec::with_capacity(paths.len());
    for path in paths {
        if !kept.iter().any(|other| other.value == path.value) {
            kept.push(path);
        }
    }
    kept
}

/// The base language bounds the two lists together; what clawbox adds is bounded with them.
fn bound(scope: &mut Scope<'_>, section: &FilesystemSection) -> bool {
    let lists = [&section.read_only, &section.read_write, &section.deny];
    let rules = section.rules.get().into_iter().flatten();
    let of_rules = rules.flat_map(|at| [&at.value.read_only, &at.value.read_write]);
    let all: Vec<&At<String>> =
        lists.into_iter().chain(of_rules).filter_map(|list| list.get()).flatten().collect();
    let Some(&first_over) = all.get(MOST_PATHS) else {
        return true;
    };
    scope.error(
        first_over,
        format!("the policy names {} paths", all.len()),
        format!("name at most {MOST_PATHS}; a directory includes everything below it"),
    );
    false
}

//! Files: what BPF LSM programs hold, and what is left of it where there is Landlock alone.

use std::path::Path;

use super::{HostFacts, Layer, Report, Status, account_number};
use crate::compile::files::name_anywhere;
use crate::kernel::lsm::COARSER;
use crate::policy::diagnostic::{Diagnostic, Origin};
use crate::policy::model::{Execution, Located, Policy};
use crate::policy::path::{DenyPattern, SandboxPath};

/// First ABI that rules `truncate`.
const TRUNCATE: u32 = 3;
/// First ABI that keeps abstract Unix sockets inside the sandbox.
const SCOPES: u32 = 6;
/// First ABI that rules Unix sockets with a path.
const UNIX_SOCKETS: u32 = 9;

pub(super) fn filesystem(report: &mut Report, policy: &Policy, facts: &HostFacts) {
    let files = &policy.filesystem;
    if !files.is_written() {
        report.warnings.push(Diagnostic::warning(
            policy.origin.clone(),
            "without `filesystem_policy` nothing is readable and no program can start",
            "list at least /usr, /lib and the program's own files under `read_only`",
        ));
        return;
    }
    for path in files.read_only() {
        read_only(report, policy, path, facts);
    }
    for path in files.read_write() {
        read_write(report, path, facts);
    }
    for deny in files.deny() {
        denied(report, policy, deny, facts);
    }
    for (index, rule) in files.rules().iter().enumerate() {
        let part = format!("filesystem_policy.rules[{index}]");
        if facts.bpf_lsm {
            report.full(&rule.origin, part, Layer::LsmAndLandlock);
        } else {
            let detail = "rules for single binaries need BPF LSM programs, which this kernel does \
                          not run; the paths stay closed for all";
            report.add(
                &rule.origin,
                part,
                Layer::Landlock,
                Status::Denied,
                Some(detail.to_owned()),
            );
        }
    }
    if !facts.bpf_lsm {
        report.warnings.push(Diagnostic::warning(
            policy.origin.clone(),
            format!("this kernel runs no BPF LSM programs: {}", COARSER.join("; ")),
            "run `clawbox doctor --fix`, which says how this host gets them, or arrange the policy \
             so that nothing depends on it",
        ));
    }
    needed_to_start(report, policy, facts);
}

fn allowed(policy: &Policy) -> impl Iterator<Item = &Located<SandboxPath>> {
    let files = &policy.filesystem;
    files.read_only().iter().chain(files.read_write())
}

fn read_only(report: &mut Report, policy: &Policy, path: &Located<SandboxPath>, facts: &HostFacts) {
    let part = format!("filesystem_policy.read_only {}", path.value);
    if facts.landlock_abi == 0 {
        return report.not(&path.origin, part, NO_LANDLOCK);
    }
    missing(report, path, facts);
    if facts.bpf_lsm {
        return report.full(&path.origin, part, Layer::LsmAndLandlock);
    }
    let writable = policy.filesystem.read_write();
    let parent = writable.iter().find(|parent| parent.value.covers(&path.value));
    if let Some(parent) = parent {
        return report.not(
            &path.origin,
            part,
            format!(
                "{} stays writable, because it lies under {} in `read_write` and Landlock cannot \
                 take back what it gave; move one out of the other",
                path.value, parent.value
            ),
        );
    }
    let user = policy.process.user.as_ref();
    let user = user.and_then(|user| account_number(user, facts));
    let owner = facts.owners.get(path.value.as_path());
    let mut open = Vec::new();
    if facts.landlock_abi < TRUNCATE {
        open.push("truncation (Landlock here is older than ABI 3)");
    }
    if owner.is_some() && owner.copied() == user {
        open.push("mode, owner, times and attributes (the sandbox's user owns the path)");
    }
    if open.is_empty() {
        return report.add(&path.origin, part, Layer::Landlock, Status::Full, whose(path));
    }
    report.add(
        &path.origin,
        part,
        Layer::Landlock,
        Status::Partly,
        Some(format!("not ruled: {}", open.join("; "))),
    );
}

const NO_LANDLOCK: &str = "this kernel has no Landlock; add landlock to the kernel's lsm= list";

fn read_write(report: &mut Report, path: &Located<SandboxPath>, facts: &HostFacts) {
    let part = format!("filesystem_policy.read_write {}", path.value);
    if facts.landlock_abi == 0 {
        return report.not(&path.origin, part, NO_LANDLOCK);
    }
    missing(report, path, facts);
    let layer = if facts.bpf_lsm { Layer::LsmAndLandlock } else { Layer::Landlock };
    report.add(&path.origin, part, layer, Status::Full, whose(path));
}

/// A sandbox has a `/proc` of its own, and a `/tmp` too unless the policy lists the host's.
fn whose(path: &Located<SandboxPath>) -> Option<String> {
    let path = path.value.as_path();
    if path.starts_with("/proc") {
        let what = "the sandbox's own, with its own processes; `run --share pid` shows the host's";
        return Some(what.to_owned());
    }
    let lists_tmp = path.starts_with("/tmp") || Path::new("/tmp").starts_with(path);
    lists_tmp.then(|| {
        "lists the host's /tmp; without such a path the sandbox has a private, empty one".to_owned()
    })
}

fn missing(report: &mut Report, path: &Located<SandboxPath>, facts: &HostFacts) {
    if !facts.owners.contains_key(path.value.as_path()) {
        report.warnings.push(Diagnostic::warning(
            path.origin.clone(),
            format!("{} does not exist here, so nothing is opened by it", path.value),
            "create it before the sandbox starts, or remove the line",
        ));
    }
}

fn denied(report: &mut Report, policy: &Policy, deny: &Located<DenyPattern>, facts: &HostFacts) {
    let part = format!("filesystem_policy.deny {}", deny.value);
    if facts.bpf_lsm {
        if matches!(&deny.value, DenyPattern::Path(_)) || name_anywhere(&deny.value).is_some() {
            return report.full(&deny.origin, part, Layer::Lsm);
        }
        return report.not(
            &deny.origin,
            part,
            "of globs this build rules only a whole name in any directory, `**/NAME`",
        );
    }
    let around = match &deny.value {
        DenyPattern::Glob(_) => allowed(policy).next(),
        DenyPattern::Path(path) => allowed(policy).find(|parent| parent.value.covers(path)),
    };
    let opened_below = match &deny.value {
        DenyPattern::Glob(_) => None,
        DenyPattern::Path(path) => allowed(policy).find(|below| path.covers(&below.value)),
    };
    match around.or(opened_below) {
        Some(parent) => report.not(
            &deny.origin,
            part,
            format!(
                "stays open, because {} is allowed and Landlock cannot take back what it gave",
                parent.value
            ),
        ),
        None => report.full(&deny.origin, part, Layer::Landlock),
    }
}

/// Nothing is added to a policy silently, so say what is missing for a program to start.
fn needed_to_start(report: &mut Report, policy: &Policy, facts: &HostFacts) {
    let resolved = |path: &Path| allowed(policy).any(|root| path.starts_with(root.value.as_path()));
    let absent: Vec<String> = facts
        .needed_to_start
        .iter()
        .filter(|path| !resolved(path))
        .map(|path| path.display().to_string())
        .collect();
    if !absent.is_empty() {
        report.warnings.push(Diagnostic::warning(
            Origin::file(&policy.origin.file),
            format!("a dynamic program cannot start without {}", absent.join(", ")),
            "list them, or the directories they lie in, under `read_only`",
        ));
    }
}

/// `execution`, and what holds when a policy does not have it.
pub(super) fn execution(report: &mut Report, execution: &Located<Execution>, facts: &HostFacts) {
    let part = "execution.from_writable";
    if facts.bpf_lsm {
        report.full(&execution.origin, part, Layer::Lsm);
    } else {
        report.not(
            &execution.origin,
            part,
            "needs BPF LSM programs, which this kernel does not run; what may be read may be \
             executed",
        );
    }
    let Some(allow) = &execution.value.allow else { return };
    let part = "execution.allow";
    if facts.bpf_lsm {
        report.full(&execution.origin, part, Layer::Lsm);
    } else {
        let detail = "needs BPF LSM programs, which this kernel does not run; what may be executed \
                      is what `filesystem_policy` lets be read";
        report.not(&execution.origin, part, detail);
    }
    if allow.is_empty() {
        report.warnings.push(Diagnostic::warning(
            execution.origin.clone(),
            "`execution.allow` lists no program, so nothing can be started, not even the command",
            "list the command, and for scripts their interpreters too",
        ));
    }
}

/// `unix_sockets`, and what holds when a policy does not have it.
pub(super) fn unix_sockets(
    report: &mut Report,
    sockets: &Located<Vec<SandboxPath>>,
    facts: &HostFacts,
) {
    let part = "unix_sockets";
    if facts.bpf_lsm {
        return report.full(&sockets.origin, part, Layer::Lsm);
    }
    let detail = match facts.landlock_abi {
        UNIX_SOCKETS.. => return report.full(&sockets.origin, part, Layer::Landlock),
        SCOPES.. => {
            "abstract sockets are kept inside the sandbox; sockets with a path need BPF LSM \
             programs, which this kernel does not run, or Landlock ABI 9"
        }
        _ => {
            let detail = "needs BPF LSM programs, which this kernel does not run, and Landlock \
                          here is too old to keep even abstract sockets inside";
            return report.not(&sockets.origin, part, detail);
        }
    };
    let (layer, status) = (Layer::Landlock, Status::Partly);
    report.add(&sockets.origin, part, layer, status, Some(detail.to_owned()));
}

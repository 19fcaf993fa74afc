//! Two policies by what they mean: what becomes reachable, what stops, found by asking both the same.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde::Serialize;

use super::samples::{deeds, program};
use super::{ANY_PROGRAM, Access, Deed, Judge, Who};
use crate::policy::Policy;
use crate::policy::path::DenyPattern;

/// What a change means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// It was denied and is allowed.
    Opens,
    /// It was allowed and is denied.
    Closes,
    /// It is allowed by both, under other conditions.
    Changes,
}

/// One difference.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Difference {
    /// Which way.
    pub kind: Kind,
    /// Who does what, or a part of the policy.
    pub what: String,
    /// What was, and what is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// All differences, what opens first.
#[must_use]
pub fn compare(before: &Judge, after: &Judge) -> Vec<Difference> {
    let mut found: BTreeSet<Difference> = BTreeSet::new();
    for (who, deed) in questions(before.policy()).union(&questions(after.policy())) {
        let (was, is) = (before.ask(who, deed), after.ask(who, deed));
        let kind = match (was.is_allowed(), is.is_allowed()) {
            (false, true) => Kind::Opens,
            (true, false) => Kind::Closes,
            // How a file is reached says nothing; conditions on a connection do.
            (true, true) if matches!(deed, Deed::Connect { .. }) && was.remarks != is.remarks => {
                Kind::Changes
            }
            _ => continue,
        };
        let detail = match kind {
            Kind::Changes => Some(format!("{} → {}", told(&was.remarks), told(&is.remarks))),
            _ => is.rule.or(was.rule).map(|rule| rule.to_string()),
        };
        let what = format!("{} → {deed}", named(who));
        found.insert(Difference { kind, what, detail });
    }
    for (part, was, is) in parts(before.policy(), after.policy()) {
        if was != is {
            let detail = Some(format!("{was} → {is}"));
            found.insert(Difference { kind: Kind::Changes, what: part.to_owned(), detail });
        }
    }
    found.into_iter().collect()
}

fn told(remarks: &[String]) -> String {
    if remarks.is_empty() { "unconditionally".to_owned() } else { remarks.join(", ") }
}

fn named(who: &Who) -> String {
    match who.program.to_str() {
        Some(ANY_PROGRAM) | None => "any".to_owned(),
        Some(path) => path.to_owned(),
    }
}

/// All that a policy says something about.
fn questions(policy: &Policy) -> BTreeSet<(Who, Deed)> {
    let anybody = Who::from(std::path::Path::new(ANY_PROGRAM));
    let mut all = BTreeSet::new();
    for network in &policy.network {
        let programs = network.binaries.iter().filter_map(|binary| program(&binary.pattern));
        let mut whos: Vec<Who> = programs.map(|path| Who::from(path.as_path())).collect();
        if network.binaries.iter().any(|binary| binary.pattern.is_anybody()) {
            whos.push(anybody.clone());
        }
        for deed in network.endpoints.iter().flat_map(deeds) {
            all.extend(whos.iter().map(|who| (who.clone(), deed.clone())));
        }
    }
    let files = &policy.filesystem;
    let mut paths: Vec<(Who, PathBuf)> = Vec::new();
    for at in files.read_only().iter().chain(files.read_write()) {
        paths.push((anybody.clone(), at.value.as_path().to_owned()));
    }
    for at in files.deny() {
        if let DenyPattern::Path(path) = &at.value {
            paths.push((anybody.clone(), path.as_path().to_owned()));
        }
    }
    for rule in files.rules() {
        let programs = rule.value.binaries.iter().filter_map(|binary| program(&binary.pattern));
        for who in programs.map(|path| Who::from(path.as_path())) {
            let lists = rule.value.read_only.iter().chain(&rule.value.read_write);
            paths.extend(lists.map(|at| (who.clone(), at.value.as_path().to_owned())));
        }
    }
    for (who, path) in paths {
        for access in [Access::Read, Access::Write] {
            all.insert((who.clone(), Deed::Use { path: path.clone(), access }));
        }
    }
    all
}

/// Parts that are no question, as texts.
fn parts(before: &Policy, after: &Policy) -> Vec<(&'static str, String, String)> {
    let listen = |policy: &Policy| match &policy.listen {
        None => "nothing".to_owned(),
        Some(listen) => format!(
            "{:?} at {:?}, {:?}",
            listen.value.ports(),
            listen.value.addresses(),
            listen.value.transport()
        ),
    };
    let sockets = |policy: &Policy| match &policy.unix_sockets {
        None => "not written".to_owned(),
        Some(sockets) => {
            let paths: Vec<&str> = sockets.value.iter().map(|path| path.as_str()).collect();
            format!("[{}]", paths.join(", "))
        }
    };
    let execution = |policy: &Policy| match &policy.execution {
        None => "not written".to_owned(),
        Some(execution) => {
            let allow = execution.value.allow.as_ref().map(|all| {
                all.iter().map(|at| at.value.as_str().to_owned()).collect::<Vec<_>>().join(", ")
            });
            let allow = allow.map(|all| format!(", allow: [{all}]")).unwrap_or_default();
            format!("from_writable: {:?}{allow}", execution.value.from_writable)
        }
    };
    let user = |policy: &Policy| {
        let account = policy.process.user.as_ref().map(|user| user.value.to_string());
        account.unwrap_or_else(|| "not written".to_owned())
    };
    let globs = |policy: &Policy| {
        let globs = policy.filesystem.deny().iter().filter_map(|at| match &at.value {
            DenyPattern::Glob(glob) => Some(glob.as_str()),
            DenyPattern::Path(_) => None,
        });
        let mut globs: Vec<&str> = globs.collect();
        globs.sort_unstable();
        format!("[{}]", globs.join(", "))
    };
    let one = |name, told: &dyn Fn(&Policy) -> String| (name, told(before), told(after));
    vec![
        one("filesystem_policy.deny by name", &globs),
        one("filesystem_policy.include_workdir", &|policy| {
            policy.filesystem.include_workdir().to_string()
        }),
        one("listen", &listen),
        one("unix_sockets", &sockets),
        one("execution", &execution),
        one("process.run_as_user", &user),
        one("mode", &|policy| if policy.audit_only() { "audit" } else { "enforce" }.to_owned()),
        one("unknown_endpoints", &|policy| {
            if policy.asks_for_unknown() { "ask" } else { "deny" }.to_owned()
        }),
        one("landlock.compatibility", &|policy| format!("{:?}", policy.compatibility)),
    ]
}

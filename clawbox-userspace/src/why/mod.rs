//! Why something was denied: which layer and rule, what is nearest, and the smallest change that allows it.
//! Asks the judge; what was seen comes from trails and the host's store.

pub mod nearest;
pub mod reasons;
pub mod replay;
pub mod seen;
#[cfg(test)]
mod tests;
pub mod trail;

use std::path::Path;
use std::sync::Arc;

use clawbox_common::verdict::Reason;
use serde::Serialize;

use crate::judge::{Access, Deed, Judge, RuleTold, Who};
use crate::policy::load_texts;
use crate::policy::path::DenyPattern;
use crate::presets::insert;
use nearest::Nearest;

/// The explanation of one deed under a policy.
#[derive(Clone, Debug, Serialize)]
pub struct Explained {
    /// What the policy says now.
    pub verdict: &'static str,
    /// The reason's name.
    pub reason: &'static str,
    /// What decided.
    pub layer: &'static str,
    /// What the reason means.
    pub meaning: &'static str,
    /// The rule of the network that decided.
    pub rule: Option<RuleTold>,
    /// The path whose rule decided about a file.
    pub path: Option<String>,
    /// What else to know.
    pub remarks: Vec<String>,
    /// The rule that would nearly have matched, and what differs.
    pub nearest: Option<Nearest>,
    /// What would allow it.
    pub change: Option<Change>,
    /// What to do in words.
    pub fix: String,
}

/// The smallest change that allows a deed. It was tried: with it the policy does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    /// The command, without what names the policy.
    pub options: Vec<String>,
}

impl Change {
    /// The command for a policy, as it is typed.
    #[must_use]
    pub fn command(&self, of: &str) -> String {
        let options: Vec<String> = self.options.iter().map(|word| word_of_shell(word)).collect();
        format!("clawbox policy allow {of} {}", options.join(" "))
    }
}

/// Reasons of the moment, of what was said on a connection, or of what a name carries: a rule that the
/// policy lacks is not what was missing, and one more would not have helped.
const NO_RULE: [&str; 8] = [
    "forbidden-address",
    "hidden-host",
    "name-budget",
    "no-host",
    "no-identity",
    "question-kind",
    "stale-name",
    "table-full",
];

impl Explained {
    /// The same of a denial that has happened, for this reason: what would not have helped is not offered.
    #[must_use]
    pub fn of_denial(self, reason: &str) -> Self {
        match NO_RULE.contains(&reason) {
            true => Self { nearest: None, change: None, ..self },
            false => self,
        }
    }
}

/// A word as a shell takes it.
#[must_use]
pub fn word_of_shell(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+@:=,%[]".contains(c);
    if !word.is_empty() && word.chars().all(plain) && !word.contains(['[', ']']) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// Explains a deed; `text` is the policy's own, with everything filled in.
#[must_use]
pub fn explain(judge: &Judge, text: (&Arc<str>, &str), who: &Who, deed: &Deed) -> Explained {
    let judged = judge.ask(who, deed);
    let is_denied = !judged.is_allowed();
    let told = reasons::of(judged.reason.name());
    // What a rule closes is closed on purpose: nobody is handed the line that opens a key to who asked for it.
    let is_closed = judged.reason == Reason::ClosedFile;
    let change = (is_denied && !is_closed).then(|| change(judge, text, who, deed)).flatten();
    let mut remarks = judged.remarks.clone();
    if let (Deed::Listen { address, .. }, Some(_)) = (deed, &change)
        && !address.is_loopback()
    {
        remarks
            .push("other machines can connect there; 127.0.0.1 is for this one alone".to_owned());
    }
    let mut fix = told.fix.to_owned();
    if is_denied
        && is_closed
        && let Some(at) = closed_by(judge, deed)
    {
        fix =
            format!("it is closed on purpose; take `{at}` out of `filesystem_policy.deny` if not");
    }
    Explained {
        verdict: judged.verdict_name(),
        reason: judged.reason.name(),
        layer: told.layer,
        meaning: told.meaning,
        nearest: is_denied.then(|| nearest::to(judge, who, deed)).flatten(),
        change,
        fix,
        rule: judged.rule,
        path: judged.at.map(|at| at.display().to_string()),
        remarks,
    }
}

/// The entry of `deny` that closes a path, as it is written.
fn closed_by(judge: &Judge, deed: &Deed) -> Option<String> {
    let Deed::Use { path, .. } = deed else { return None };
    let resolved = crate::sandbox::objects::resolved(path);
    let closes = |pattern: &DenyPattern| match pattern {
        DenyPattern::Path(closed) => {
            [path, &resolved].iter().any(|path| path.starts_with(closed.as_path()))
        }
        DenyPattern::Glob(glob) => resolved.ancestors().any(|around| glob.matches(around)),
    };
    let entries = judge.policy().filesystem.deny().iter().map(|at| &at.value);
    entries.filter(|pattern| closes(pattern)).map(ToString::to_string).max_by_key(String::len)
}

/// The options of `policy allow` that allow it, if any do.
fn change(judge: &Judge, text: (&Arc<str>, &str), who: &Who, deed: &Deed) -> Option<Change> {
    let program = judge.spelt(who.script.as_ref().unwrap_or(&who.program));
    let program = program.to_str()?;
    // There is no file at that path that could be listed: it was in memory, or is gone.
    if let Deed::Use { path, access: Access::Execute } = deed
        && !path.exists()
    {
        return None;
    }
    let (mut changed, mut denied) = (text.1.to_owned(), judge.ask(who, deed));
    let mut reasons = Vec::new();
    while !denied.is_allowed() {
        // The same again is no further rule's.
        if reasons.contains(&denied.reason) {
            return None;
        }
        reasons.push(denied.reason);
        changed = insert::deed((text.0, &changed), program, deed, denied.reason).ok()?;
        let loaded = load_texts(&[(Arc::clone(text.0), changed.clone())]).ok()?;
        denied = judge.with(loaded.policy).ok()?.ask(who, deed);
    }
    let mut options = options(program, deed, reasons.contains(&Reason::WritableProgram));
    let here = std::env::current_dir().ok();
    if let Some(workdir) =
        judge.workdir().filter(|workdir| is_needed(deed, workdir, here.as_deref()))
    {
        options.extend(["--workdir".to_owned(), workdir.display().to_string()]);
    }
    Some(Change { options })
}

/// Whether where the sandbox starts has to be said with a change: `policy allow` takes the current directory
/// if nothing is, and would find something below one of the two opened that is not, or the other way round.
fn is_needed(deed: &Deed, workdir: &Path, here: Option<&Path>) -> bool {
    let (Deed::Use { path, .. } | Deed::Reach { path }) = deed else { return false };
    let below = |directory: &Path| path.starts_with(directory);
    here != Some(workdir) && (below(workdir) || here.is_some_and(below))
}

fn options(program: &str, deed: &Deed, is_writable: bool) -> Vec<String> {
    let path_of = |path: &Path| path.display().to_string();
    match deed {
        Deed::Connect { .. } => {
            vec!["--binary".into(), program.into(), "--endpoint".into(), deed.to_string()]
        }
        Deed::Use { path, access } => {
            let option = match access {
                Access::Read => "--read",
                Access::Write => "--write",
                Access::Execute => "--execute",
            };
            let also = is_writable.then(|| "--from-writable".to_owned());
            [option.to_owned(), path_of(path)].into_iter().chain(also).collect()
        }
        Deed::Listen { .. } => {
            let deed = deed.to_string();
            let place = deed.strip_prefix("listen ").unwrap_or(&deed);
            vec!["--listen".into(), place.to_owned()]
        }
        Deed::Reach { path } => vec!["--socket".into(), path_of(path)],
    }
}

//! What in a policy probably does not do what its author meant: rules without effect, rules that are too wide,
//! hosts that share addresses, secrets that can be read, and what only BPF LSM holds.

mod broad;
mod secrets;
mod shadowed;
mod shared;
#[cfg(test)]
mod tests;

use std::path::Path;

use serde::Serialize;

pub use self::shared::is_shared;
use crate::judge::Judge;
use crate::policy::enforceability::{HostFacts, Status, assess};
use crate::policy::{Diagnostic, Kind, Loaded, Severity};

/// Something that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Which check.
    pub check: &'static str,
    /// What, where, and what to do.
    #[serde(flatten)]
    pub diagnostic: Diagnostic,
}

impl Finding {
    /// Whether a policy with it is not clean.
    #[must_use]
    pub fn is_warning(&self) -> bool {
        self.diagnostic.severity != Severity::Note
    }
}

/// Looks a policy through. `home` is what `~` is in it, `facts` what this host says of its paths.
///
/// # Errors
///
/// It does not compile.
pub fn lint(
    loaded: &Loaded,
    facts: &HostFacts,
    home: Option<&Path>,
) -> Result<Vec<Finding>, Vec<Diagnostic>> {
    let policy = &loaded.policy;
    let judge = Judge::of(policy.clone(), None)?;
    let mut found = Vec::new();
    let mut add = |check: &'static str, diagnostics: Vec<Diagnostic>| {
        found.extend(diagnostics.into_iter().map(|diagnostic| Finding { check, diagnostic }));
    };
    add("load", loaded.diagnostics.clone());
    add("shadowed", shadowed::endpoints(policy));
    add("shadowed", shadowed::paths(policy));
    add("broad", broad::network(policy));
    add("broad", broad::paths(policy, home));
    add("shared-host", shared::hosts(policy));
    if loaded.kind == Kind::Policy {
        add("secret", secrets::reachable(&judge, home));
    }
    add("lsm-only", lsm_only(loaded, facts));
    if let Some(mode) = policy.mode.as_ref().filter(|_| policy.audit_only()) {
        let message = "`mode: audit` records what is denied and lets it through";
        let fix = "write `mode: enforce`, or leave it out";
        add("mode", vec![Diagnostic::warning(mode.origin.clone(), message, fix)]);
    }
    found.sort_by(|one, other| one.diagnostic.origin.cmp(&other.diagnostic.origin));
    Ok(found)
}

/// Parts that are held with BPF LSM and not, or not as far, without.
fn lsm_only(loaded: &Loaded, facts: &HostFacts) -> Vec<Diagnostic> {
    // Of the newest Landlock: what an older kernel lacks is no matter of the policy.
    let facts = HostFacts { landlock_abi: u32::MAX, ..facts.clone() };
    let with = assess(loaded, &HostFacts { bpf_lsm: true, ..facts.clone() });
    let without = assess(loaded, &HostFacts { bpf_lsm: false, ..facts });
    let held = |part: &str| {
        with.parts.iter().any(|other| other.part == part && other.status == Status::Full)
    };
    let lost = without.shortfalls().filter(|part| held(&part.part));
    lost.map(|part| {
        Diagnostic::note(part.origin.clone(), format!("only BPF LSM holds `{}`", part.part))
    })
    .collect()
}

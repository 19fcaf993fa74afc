//! `network_policies`: keys, names, and who is admitted.

use super::endpoint::endpoint;
use super::{At, Scope};
use crate::policy::binary_pattern::BinaryPattern;
use crate::policy::diagnostic::Findings;
use crate::policy::document::{BinarySection, Matching, NetworkSection};
use crate::policy::model::Binary;
use crate::policy::network::NetworkPolicy;
use crate::policy::preset::Contribution;

pub(super) fn contributions(
    contributions: &[Contribution],
    findings: &mut Findings,
) -> Vec<NetworkPolicy> {
    let mut policies = Vec::new();
    for contribution in contributions {
        let mut scope = Scope { file: &contribution.file, findings };
        policies.push(network_policy(&mut scope, &contribution.key, &contribution.section));
    }
    policies
}

fn network_policy(
    scope: &mut Scope<'_>,
    key: &At<String>,
    section: &At<NetworkSection>,
) -> NetworkPolicy {
    check_label(scope, key);
    let name = match section.value.name.get() {
        Some(name) => {
            check_label(scope, name);
            name.value.clone()
        }
        None => key.value.clone(),
    };
    let written = section.value.endpoints.get().map_or(&[][..], Vec::as_slice);
    if written.is_empty() {
        scope.warning(
            key,
            format!("`{}` has no endpoints", key.value),
            "add one, or remove the entry",
        );
    }
    let endpoints =
        written.iter().enumerate().filter_map(|(index, at)| endpoint(scope, index, at)).collect();
    let entries = section.value.binaries.get().map_or(&[][..], Vec::as_slice);
    if entries.is_empty() {
        scope.warning(
            key,
            format!("`{}` names no binaries and admits nobody", key.value),
            "list the programs under `binaries`; `path: /**` is every program",
        );
    }
    NetworkPolicy {
        key: key.value.clone(),
        name,
        endpoints,
        binaries: binaries(scope, entries),
        origin: key.origin(scope.file),
    }
}

/// Keys and names reach terminals and the audit trail.
fn check_label(scope: &mut Scope<'_>, label: &At<String>) {
    let bad = label.value.is_empty()
        || label.value.len() > 128
        || label.value.chars().any(|c| c.is_control());
    if bad {
        scope.error(
            label,
            "a name is empty, longer than 128 bytes, or holds control characters",
            "write a short word such as `github`",
        );
    }
}

pub(super) fn binaries(scope: &mut Scope<'_>, written: &[At<BinarySection>]) -> Vec<Binary> {
    let mut binaries = Vec::new();
    for at in written {
        let section = &at.value;
        if let Some(harness) = section.harness.get() {
            scope.note(harness, "`harness` is deprecated and has no effect");
        }
        match BinaryPattern::parse(&section.path.value) {
            Ok(pattern) => binaries.push(Binary {
                pattern,
                matching: section.matching.or(Matching::Tree),
                origin: section.path.origin(scope.file),
            }),
            Err(error) => scope.error(&section.path, error.to_string(), error.remedy),
        }
    }
    binaries
}

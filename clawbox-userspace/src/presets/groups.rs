//! Groups of paths that `deny` may name (`group:NAME`), from `policies/groups.yaml`.
//! Data alone: where a home is, and which layer holds a path, is decided elsewhere.

use std::sync::Arc;

use serde::Deserialize;

use super::embedded::GROUPS;
use crate::policy::Diagnostic;
use crate::policy::yaml::{self, Entries};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    groups: Entries<Group>,
}

/// Paths that belong together.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// What they hold.
    pub description: String,
    /// Absolute, below `~/`, or `**/NAME`.
    pub paths: Vec<String>,
}

/// Every group by name.
///
/// # Errors
///
/// The file that is built in does not parse.
pub fn groups() -> Result<Vec<(String, Group)>, Diagnostic> {
    let name: Arc<str> = "groups.yaml".into();
    let file: File = yaml::parse(&name, GROUPS)?;
    Ok(file.groups.0.into_iter().map(|(key, group)| (key.value, group)).collect())
}

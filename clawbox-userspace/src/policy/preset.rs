//! Merges the network parts of several files by key, never by text.
//! One key with two meanings is an error that names both files.

use std::sync::Arc;

use super::diagnostic::{Diagnostic, Findings};
use super::document::NetworkSection;
use super::yaml::{At, Entries};

/// One entry of `network_policies` and the file it came from.
#[derive(Debug)]
pub(super) struct Contribution {
    pub(super) file: Arc<str>,
    pub(super) key: At<String>,
    pub(super) section: At<NetworkSection>,
}

/// Adds a file's entries. An entry that is there already with the same content changes nothing.
pub(super) fn merge(
    into: &mut Vec<Contribution>,
    file: &Arc<str>,
    entries: &Entries<At<NetworkSection>>,
    findings: &mut Findings,
) {
    for (key, section) in &entries.0 {
        match into.iter().find(|known| known.key == *key) {
            None => into.push(Contribution {
                file: Arc::clone(file),
                key: key.clone(),
                section: section.clone(),
            }),
            Some(known) if known.section == *section => {}
            Some(known) => findings.push(Diagnostic::error(
                key.origin(file),
                format!(
                    "`{}` is in {} too, with other content",
                    key.value,
                    known.key.origin(&known.file)
                ),
                "rename one of them; both will hold",
            )),
        }
    }
}

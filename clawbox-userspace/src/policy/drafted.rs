//! A text as its author wrote it, before the command line has filled in what only a machine knows:
//! `~/`, `group:NAME` and `host_from`. Finds those places, and compares texts by what they say.

use std::collections::HashSet;
use std::sync::Arc;

use super::document::{BinarySection, FilesystemSection, HostFrom, NetworkSection, PolicyDocument};
use super::preset::{Contributions, merge};
use super::yaml::{At, Entries, Given};
use super::{Diagnostic, Document, Findings, Origin, parse, source};

/// What has to be filled in at a place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Blank {
    /// A path that begins with `~/`; this is the whole path.
    Home(String),
    /// `group:NAME` in `deny`; this is the name.
    Group(String),
    /// `host_from`.
    Hosts(HostFrom),
}

/// Whether a text may leave anything to be filled in. Where it cannot, nothing has to be read of it: a
/// backslash may be any character (YAML 1.2.2, 5.7).
#[must_use]
pub fn may_leave_blanks(text: &str) -> bool {
    let names_group = || {
        let mut found = text.match_indices("group:");
        found.any(|(at, _)| !text.get(..at).is_some_and(|before| before.ends_with("run_as_")))
    };
    text.contains(['~', '\\']) || text.contains("host_from") || names_group()
}

/// A place to be filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Where its value stands.
    pub origin: Origin,
    /// What belongs there.
    pub blank: Blank,
}

/// What a text leaves to be filled in.
#[derive(Clone, Debug, Default)]
pub struct Draft {
    /// Each place once, in the order of the text.
    pub places: Vec<Place>,
    /// `process.run_as_user`, if the text is a policy that says it.
    pub user: Option<String>,
}

/// Finds what a text leaves to be filled in.
///
/// # Errors
///
/// The text is no policy, preset or blueprint.
pub fn draft(file: &Arc<str>, text: &str) -> Result<Draft, Diagnostic> {
    let mut found = Finder { file, seen: HashSet::new(), draft: Draft::default() };
    match parsed(file, text)? {
        Document::Policy(document) => {
            if let Some(section) = document.filesystem_policy.get() {
                found.filesystem(section);
            }
            if let Some(entries) = document.network_policies.get() {
                found.network(entries);
            }
            if let Some(section) = document.execution.get() {
                found.paths(&section.value.allow);
            }
            if let Some(section) = document.unix_sockets.get() {
                found.paths(&section.value.allow);
            }
            let user = document.process.get().and_then(|process| process.run_as_user.get());
            found.draft.user = user.map(|at| at.value.clone());
        }
        Document::Preset(document) => found.network(&document.network_policies),
        Document::Blueprint(document) => {
            let policy = document.components.policy.get();
            if let Some(entries) = policy.and_then(|policy| policy.additions.get()) {
                found.network(entries);
            }
        }
    }
    let mut draft = found.draft;
    draft.places.sort_by(|a, b| a.origin.cmp(&b.origin));
    Ok(draft)
}

struct Finder<'a> {
    file: &'a Arc<str>,
    /// An alias leads to one place twice.
    seen: HashSet<Origin>,
    draft: Draft,
}

impl Finder<'_> {
    fn add(&mut self, origin: Origin, blank: Blank) {
        if self.seen.insert(origin.clone()) {
            self.draft.places.push(Place { origin, blank });
        }
    }

    fn path(&mut self, at: &At<String>) {
        if at.value.starts_with("~/") {
            self.add(at.origin(self.file), Blank::Home(at.value.clone()));
        }
    }

    fn paths(&mut self, list: &Given<Vec<At<String>>>) {
        for at in list.get().into_iter().flatten() {
            self.path(at);
        }
    }

    fn binaries(&mut self, list: &[At<BinarySection>]) {
        for binary in list {
            self.path(&binary.value.path);
        }
    }

    fn filesystem(&mut self, section: &FilesystemSection) {
        self.paths(&section.read_only);
        self.paths(&section.read_write);
        self.paths(&section.deny);
        for at in section.deny.get().into_iter().flatten() {
            if let Some(name) = at.value.strip_prefix("group:") {
                self.add(at.origin(self.file), Blank::Group(name.to_owned()));
            }
        }
        for rule in section.rules.get().into_iter().flatten() {
            self.binaries(&rule.value.binaries);
            self.paths(&rule.value.read_only);
            self.paths(&rule.value.read_write);
        }
    }

    fn network(&mut self, entries: &Entries<At<NetworkSection>>) {
        for (_, section) in &entries.0 {
            for endpoint in section.value.endpoints.get().into_iter().flatten() {
                if let Some(at) = endpoint.value.host_from.get() {
                    self.add(at.origin(self.file), Blank::Hosts(at.value));
                }
            }
            if let Some(binaries) = section.value.binaries.get() {
                self.binaries(binaries);
            }
        }
    }
}

/// Checks that a changed policy says what it said before and what a preset says, and nothing else.
///
/// # Errors
///
/// A text that does not load, a key that both have, or that the policy says something else.
pub fn check_union(
    before: (&Arc<str>, &str),
    preset: (&Arc<str>, &str),
    after: &str,
) -> Result<(), Vec<Diagnostic>> {
    let (file, text) = before;
    let one = |diagnostic| vec![diagnostic];
    let Document::Policy(mut expected) = parsed(file, text).map_err(one)? else {
        return Err(vec![Diagnostic::error(
            Origin::file(file),
            "the file is not a whole policy",
            "add a preset to a file with `version: 1`",
        )]);
    };
    let Document::Preset(added) = parsed(preset.0, preset.1).map_err(one)? else {
        return Err(vec![Diagnostic::error(
            Origin::file(preset.0),
            "the file is not a preset",
            "write `preset: { name: … }` instead of `version`, and `network_policies` alone",
        )]);
    };
    let mut findings = Findings::default();
    let mut entries = Contributions::default();
    if let Some(own) = expected.network_policies.get() {
        merge(&mut entries, file, own, &mut findings);
    }
    let own = entries.entries.len();
    merge(&mut entries, preset.0, &added.network_policies, &mut findings);
    if findings.has_errors() {
        return Err(findings.into_sorted());
    }
    if entries.entries.len() - own != added.network_policies.0.len() {
        return Err(vec![Diagnostic::error(
            Origin::file(file),
            "the policy has an entry of the preset already",
            "remove it first, or leave the policy as it is",
        )]);
    }
    let all = entries.entries.into_iter().map(|entry| (entry.key, entry.section)).collect();
    expected.network_policies = Given::of(Entries(all));
    match parsed(file, after) {
        Ok(Document::Policy(changed)) if changed == expected => Ok(()),
        _ => Err(vec![Diagnostic::error(
            Origin::file(file),
            "the policy would not be what it was and the preset, so it is left as it is",
            "write `network_policies:` with each entry on lines of its own, indented by spaces",
        )]),
    }
}

pub(super) fn policy_of(file: &Arc<str>, text: &str) -> Result<PolicyDocument, Diagnostic> {
    match parsed(file, text)? {
        Document::Policy(document) => Ok(*document),
        _ => Err(Diagnostic::error(
            Origin::file(file),
            "the file is not a whole policy",
            "name a file with `version: 1`",
        )),
    }
}

/// Whether two policies say the same.
///
/// # Errors
///
/// One does not load.
pub fn say_the_same(file: &Arc<str>, one: &str, other: &str) -> Result<bool, Diagnostic> {
    Ok(match (parsed(file, one)?, parsed(file, other)?) {
        (Document::Policy(one), Document::Policy(other)) => one == other,
        _ => false,
    })
}

/// The keys and the entries' names of a preset's text, as written.
///
/// # Errors
///
/// The text is no preset.
pub fn about(file: &Arc<str>, text: &str) -> Result<(String, Vec<String>), Diagnostic> {
    match parsed(file, text)? {
        Document::Preset(preset) => Ok((
            preset.preset.description,
            preset.network_policies.0.into_iter().map(|(key, _)| key.value).collect(),
        )),
        _ => Err(Diagnostic::error(
            Origin::file(file),
            "the file is not a preset",
            "name a preset; `clawbox preset list` has those that are built in",
        )),
    }
}

pub(super) fn parsed(file: &Arc<str>, text: &str) -> Result<Document, Diagnostic> {
    source::check_text(file, text.as_bytes()).and_then(|text| parse(file, text))
}

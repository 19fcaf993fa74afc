//! The policy language: files in, a valid [`Policy`] or located diagnostics out.
//! Reads files and nothing else of the machine; what a machine can enforce is `enforceability`.

pub mod address;
pub mod binary_pattern;
mod blueprint;
pub mod diagnostic;
mod document;
pub mod drafted;
pub mod enforceability;
pub mod host_pattern;
#[cfg(test)]
mod hostile_input;
pub mod lists;
#[cfg(test)]
mod merging;
pub mod model;
pub(crate) mod nearest;
pub mod network;
pub mod path;
mod preset;
mod request_document;
mod resolve;
pub(crate) mod source;
#[cfg(test)]
mod tests;
pub(crate) mod yaml;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::de::IgnoredAny;

pub use diagnostic::{Diagnostic, Origin, Severity};
pub use document::{HostFrom, schema};
pub use model::Policy;

use blueprint::BlueprintDocument;
use diagnostic::Findings;
use document::{FragmentDocument, PolicyDocument};
use preset::{Contributions, merge};
use yaml::Entries;

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A policy.
    Policy,
    /// A preset fragment.
    Preset,
    /// A NemoClaw blueprint.
    Blueprint,
}

/// A policy that loads.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// What the first file is.
    pub kind: Kind,
    /// The policy with its presets merged in.
    pub policy: Policy,
    /// Warnings and notes.
    pub diagnostics: Vec<Diagnostic>,
    /// Parts of a blueprint that are no policy, and that this build does nothing about.
    pub ignored: Vec<(&'static str, Origin)>,
}

enum Document {
    Policy(Box<PolicyDocument>),
    Preset(FragmentDocument),
    Blueprint(Box<BlueprintDocument>),
}

/// Loads a policy to be enforced, with presets merged in.
///
/// # Errors
///
/// Every mistake in the files, or that the first one is not a policy.
pub fn load(policy: &Path, presets: &[PathBuf]) -> Result<Loaded, Vec<Diagnostic>> {
    load_any(policy, presets)?.enforceable()
}

impl Loaded {
    /// The same, if the first file is a policy.
    ///
    /// # Errors
    ///
    /// That it is none.
    pub fn enforceable(self) -> Result<Self, Vec<Diagnostic>> {
        let what = match self.kind {
            Kind::Policy => return Ok(self),
            Kind::Preset => "a preset, which is a fragment",
            Kind::Blueprint => "a blueprint, of which only the additions are a policy",
        };
        Err(vec![Diagnostic::error(
            self.policy.origin,
            format!("the file is {what}"),
            "write a policy with `version: 1` and give this file with --preset",
        )])
    }
}

/// Loads a file of any kind to be looked at.
///
/// # Errors
///
/// Every mistake in the files.
pub fn load_any(first: &Path, presets: &[PathBuf]) -> Result<Loaded, Vec<Diagnostic>> {
    load_texts(&read_texts(first, presets)?)
}

/// Reads a policy and its presets, as names and texts.
///
/// # Errors
///
/// Each file that cannot be read.
pub fn read_texts(
    first: &Path,
    presets: &[PathBuf],
) -> Result<Vec<(Arc<str>, String)>, Vec<Diagnostic>> {
    let mut texts = Vec::with_capacity(presets.len() + 1);
    let mut unreadable = Vec::new();
    for path in std::iter::once(first).chain(presets.iter().map(PathBuf::as_path)) {
        match source::read(path) {
            Ok(text) => texts.push((source::name(path), text)),
            Err(diagnostic) => unreadable.push(diagnostic),
        }
    }
    if unreadable.is_empty() { Ok(texts) } else { Err(unreadable) }
}

/// Loads a policy from its text.
///
/// # Errors
///
/// Every mistake in the text.
pub fn parse_str(name: &str, text: &str) -> Result<Loaded, Vec<Diagnostic>> {
    load_texts(&[(name.into(), text.to_owned())])
}

/// Loads the first file and its presets, given as names and texts.
///
/// # Errors
///
/// Every mistake in the texts.
pub fn load_texts(texts: &[(Arc<str>, String)]) -> Result<Loaded, Vec<Diagnostic>> {
    let mut documents = Vec::with_capacity(texts.len());
    let mut errors = Vec::new();
    for (file, text) in texts {
        match source::check_text(file, text.as_bytes()).and_then(|text| parse(file, text)) {
            Ok(document) => documents.push((Arc::clone(file), document)),
            Err(diagnostic) => errors.push(diagnostic),
        }
    }
    let mut documents = documents.into_iter();
    let (true, Some((file, first))) = (errors.is_empty(), documents.next()) else {
        return Err(errors);
    };
    let mut findings = Findings::default();
    let mut network = Contributions::default();
    contribute(&file, &first, &mut network, &mut findings);
    for (file, preset) in documents {
        if let Document::Policy(_) = preset {
            findings.push(Diagnostic::error(
                Origin::file(&file),
                "the file is a whole policy, not a preset",
                "write `preset: { name: … }` instead of `version`, and `network_policies` alone",
            ));
        }
        contribute(&file, &preset, &mut network, &mut findings);
    }
    let (kind, policy, ignored) = match &first {
        Document::Policy(document) => (
            Kind::Policy,
            resolve::policy(&file, document, &network.entries, &mut findings),
            Vec::new(),
        ),
        Document::Preset(_) => {
            (Kind::Preset, resolve::fragments(&file, &network.entries, &mut findings), Vec::new())
        }
        Document::Blueprint(document) => (
            Kind::Blueprint,
            resolve::fragments(&file, &network.entries, &mut findings),
            document.unenforced().into_iter().map(|(part, at)| (part, at.origin(&file))).collect(),
        ),
    };
    let refused = findings.has_errors();
    let diagnostics = findings.into_sorted();
    if refused {
        return Err(diagnostics);
    }
    Ok(Loaded { kind, policy, diagnostics, ignored })
}

fn contribute(
    file: &Arc<str>,
    document: &Document,
    network: &mut Contributions,
    findings: &mut Findings,
) {
    let entries = match document {
        Document::Policy(document) => document.network_policies.get(),
        Document::Preset(document) => Some(&document.network_policies),
        Document::Blueprint(document) => {
            document.components.policy.get().and_then(|policy| policy.additions.get())
        }
    };
    if let Some(entries) = entries {
        merge(network, file, entries, findings);
    }
}

/// What is no policy is told by its top-level keys and parsed as that kind, so that a mistake in a preset
/// is not reported as a missing `version`.
fn parse(file: &Arc<str>, text: &str) -> Result<Document, Diagnostic> {
    // Most are policies, and no key of the other kinds is one of theirs.
    let as_policy = yaml::parse(file, text).map(|document| Document::Policy(Box::new(document)));
    if as_policy.is_ok() {
        return as_policy;
    }
    let top: Entries<IgnoredAny> = yaml::parse(file, text)?;
    let has = |key: &str| top.0.iter().any(|(at, _)| at.value == key);
    if has("preset") {
        return yaml::parse(file, text).map(Document::Preset);
    }
    if has("components") || has("profiles") {
        return yaml::parse(file, text).map(|document| Document::Blueprint(Box::new(document)));
    }
    as_policy
}

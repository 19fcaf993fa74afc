//! What the launch asked of each backstop and what this kernel gave: never one without the other.
//! The report goes into the sandbox's first audit record, so that partial is seen as partial.

use std::path::PathBuf;

use serde::Serialize;

/// The backstops of one sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BackstopReport {
    /// Newest Landlock ABI of the kernel.
    pub landlock_abi: i32,
    /// The one that is used: the kernel's, or the newest that this build knows.
    pub landlock_abi_used: i32,
    /// One entry per layer, in the order in which they are applied.
    pub layers: Vec<Layer>,
    /// Paths of the policy for which there is no rule, and why.
    pub skipped_paths: Vec<SkippedPath>,
    /// `read_only` paths that stay writable, because a `read_write` path holds them.
    pub writable_islands: Vec<PathBuf>,
}

impl BackstopReport {
    /// The layers that give less than was asked.
    pub fn incomplete(&self) -> impl Iterator<Item = &Layer> {
        self.layers.iter().filter(|layer| layer.state != LayerState::Full)
    }

    /// The host refused the child what the launch had counted on.
    pub(super) fn lost(&mut self, layer: &str, what: &'static str, why: &str) {
        for layer in self.layers.iter_mut().filter(|found| found.layer == layer) {
            layer.lose(what, why);
        }
    }

    /// A path is not there in the sandbox.
    pub(super) fn skipped(&mut self, path: PathBuf, why: &str) {
        for files in self.layers.iter_mut().filter(|layer| layer.layer == "landlock.files") {
            if !files.requested.contains(&RULE_FOR_EVERY_PATH) {
                files.requested.push(RULE_FOR_EVERY_PATH);
            }
            files.lose(RULE_FOR_EVERY_PATH, SOME_SKIPPED);
        }
        self.skipped_paths.push(SkippedPath { path, why: why.to_owned() });
    }
}

/// What [`BackstopReport::skipped_paths`] takes from `landlock.files`.
pub(super) const RULE_FOR_EVERY_PATH: &str = "a rule for every path";
/// And why.
pub(super) const SOME_SKIPPED: &str = "some paths do not exist (skipped_paths)";

/// One backstop.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Layer {
    /// Its stable name, for example `landlock.files`.
    pub layer: &'static str,
    /// What was asked of it.
    pub requested: Vec<&'static str>,
    /// What it gives.
    pub actual: Vec<&'static str>,
    /// The two in one word.
    pub state: LayerState,
    /// Why it gives less; empty when it does not.
    pub why: String,
}

impl Layer {
    /// A layer that gives `actual` out of `requested`; `why` is kept only if that is less.
    pub(super) fn new(
        layer: &'static str,
        requested: Vec<&'static str>,
        actual: Vec<&'static str>,
        why: impl Into<String>,
    ) -> Self {
        let state = if requested == actual {
            LayerState::Full
        } else if actual.is_empty() {
            LayerState::Absent
        } else {
            LayerState::Partial
        };
        let why = if state == LayerState::Full { String::new() } else { why.into() };
        Self { layer, requested, actual, state, why }
    }

    /// Takes back, after the fact, what could not be given.
    fn lose(&mut self, what: &'static str, why: &str) {
        let (requested, mut actual) = (self.requested.clone(), self.actual.clone());
        actual.retain(|given| *given != what);
        let why = if self.why.is_empty() { why.to_owned() } else { format!("{}; {why}", self.why) };
        *self = Self::new(self.layer, requested, actual, why);
    }

    /// What was asked and not given.
    pub fn missing(&self) -> Vec<&'static str> {
        self.requested.iter().filter(|asked| !self.actual.contains(asked)).copied().collect()
    }
}

/// How much of a layer there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LayerState {
    /// All that was asked.
    Full,
    /// Some of it.
    Partial,
    /// Nothing.
    Absent,
}

/// A path of the policy that got no rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SkippedPath {
    /// As the policy spells it.
    pub path: PathBuf,
    /// What the system said to it.
    pub why: String,
}

//! What a shell offers where a value is to be typed: what is built in, and the sandboxes that run.

use std::ffi::OsStr;

use clap_complete::engine::{
    ArgValueCandidates, ArgValueCompleter, CompletionCandidate, PathCompleter, ValueCompleter,
};

use super::sandboxes;
use crate::presets::embedded::{Embedded, PRESETS, PROFILES};

fn named(all: &[Embedded]) -> Vec<CompletionCandidate> {
    all.iter().map(|embedded| CompletionCandidate::new(embedded.name)).collect()
}

/// Profiles that are built in.
pub(super) fn profiles() -> ArgValueCandidates {
    ArgValueCandidates::new(|| named(PROFILES))
}

/// Presets that are built in, and files.
pub(super) fn presets() -> ArgValueCompleter {
    ArgValueCompleter::new(|current: &OsStr| {
        let begun = current.to_string_lossy().into_owned();
        let mut all = named(PRESETS);
        all.retain(|candidate| candidate.get_value().to_string_lossy().starts_with(&begun));
        all.extend(PathCompleter::file().complete(current));
        all
    })
}

/// Sandboxes of the daemon's that whoever asks may see; none where no daemon answers.
pub(super) fn sandboxes() -> ArgValueCandidates {
    ArgValueCandidates::new(|| {
        sandboxes::names().into_iter().map(CompletionCandidate::new).collect()
    })
}

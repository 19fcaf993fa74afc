//! Policies that are ready made, and what makes a text with blanks one that loads: the machine's settings,
//! the user's home, groups of paths. The command line's alone; the daemon takes texts as they are.

pub mod edit;
pub mod embedded;
mod fill;
pub mod groups;
pub mod insert;
mod section;
pub mod settings;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::policy::drafted::may_leave_blanks;
use crate::policy::nearest::nearest;
use crate::policy::{Diagnostic, Loaded, Origin, load_texts, source};
use embedded::{Embedded, PRESETS, PROFILES};
pub use fill::{Filler, Home};

/// A text and what diagnostics call it.
pub type Named = (Arc<str>, String);

/// The policy that presets are merged into.
#[derive(Clone, Debug)]
pub enum First {
    /// A file.
    File(PathBuf),
    /// A profile that is built in.
    Profile(String),
}

/// A preset that is built in.
///
/// # Errors
///
/// There is none of that name; the nearest one is said.
pub fn preset(name: &str) -> Result<&'static Embedded, Diagnostic> {
    let fix = "`clawbox preset list` has the names; a file is named with a `/` or `.yaml`";
    named(PRESETS, name, "preset", fix)
}

/// A profile that is built in.
///
/// # Errors
///
/// There is none of that name; the nearest one is said.
pub fn profile(name: &str) -> Result<&'static Embedded, Diagnostic> {
    named(PROFILES, name, "profile", "`clawbox profile list` has the names")
}

fn named(
    all: &'static [Embedded],
    name: &str,
    kind: &str,
    fix: &str,
) -> Result<&'static Embedded, Diagnostic> {
    if let Some(found) = all.iter().find(|embedded| embedded.name == name) {
        return Ok(found);
    }
    let names: Vec<&str> = all.iter().map(|embedded| embedded.name).collect();
    let remedy = match nearest(name, &names) {
        Some(known) => format!("did you mean `{known}`?"),
        None => fix.to_owned(),
    };
    let message = format!("there is no built-in {kind} {name:?}");
    Err(Diagnostic::error(Origin::file(kind), message, remedy))
}

/// Whether an argument of `--preset` names a file and not a built-in preset.
#[must_use]
pub fn is_file(argument: &str) -> bool {
    let ending = Path::new(argument).extension();
    argument.contains('/') || ending.is_some_and(|ending| ending == "yaml" || ending == "yml")
}

/// Reads a preset, from a file or a built-in one, as it is written.
///
/// # Errors
///
/// It is not there, or cannot be read.
pub fn read_preset(argument: &str) -> Result<Named, Diagnostic> {
    if is_file(argument) {
        let path = Path::new(argument);
        return source::read(path).map(|text| (source::name(path), text));
    }
    let found = preset(argument)?;
    Ok((format!("preset:{}", found.name).into(), found.text.to_owned()))
}

/// Reads a policy and its presets with every blank filled in. `user` is whom the sandbox will run as, if
/// that is said on the command line.
///
/// # Errors
///
/// Each text that cannot be read or filled in.
pub fn read_texts(
    first: &First,
    presets: &[String],
    user: Option<&str>,
) -> Result<Vec<Named>, Vec<Diagnostic>> {
    let texts = gather(first, presets)?;
    if !texts.iter().any(|(_, text)| may_leave_blanks(text)) {
        return Ok(texts);
    }
    filled(texts, user).map(|filled| filled.texts)
}

/// Whether a policy and its presets can be read and leave nothing to be filled in, so that no account of this host
/// has to be looked up for them.
#[must_use]
pub fn are_whole(first: &First, presets: &[String]) -> bool {
    let texts = gather(first, presets);
    texts.is_ok_and(|texts| !texts.iter().any(|(_, text)| may_leave_blanks(text)))
}

/// Texts with every blank filled in.
#[derive(Clone, Debug)]
pub struct Filled {
    /// The policy and its presets.
    pub texts: Vec<Named>,
    /// What `~` is in them, where that can be told.
    pub home: Option<PathBuf>,
}

/// Reads a policy and its presets as [`read_texts`] does, and says what `~` is.
///
/// # Errors
///
/// Each text that cannot be read or filled in.
pub fn fill(
    first: &First,
    presets: &[String],
    user: Option<&str>,
) -> Result<Filled, Vec<Diagnostic>> {
    filled(gather(first, presets)?, user)
}

fn gather(first: &First, presets: &[String]) -> Result<Vec<Named>, Vec<Diagnostic>> {
    let mut texts = Vec::with_capacity(presets.len() + 1);
    let mut errors = Vec::new();
    let first = match first {
        First::File(path) => source::read(path).map(|text| (source::name(path), text)),
        First::Profile(name) => {
            profile(name).map(|at| (format!("profile:{}", at.name).into(), at.text.to_owned()))
        }
    };
    let presets = presets.iter().map(|argument| read_preset(argument));
    for text in std::iter::once(first).chain(presets) {
        match text {
            Ok(text) => texts.push(text),
            Err(diagnostic) => errors.push(diagnostic),
        }
    }
    if errors.is_empty() { Ok(texts) } else { Err(errors) }
}

fn filled(texts: Vec<Named>, user: Option<&str>) -> Result<Filled, Vec<Diagnostic>> {
    let mut errors = Vec::new();
    let mut filler = Filler::here(Home::Of(user.map(str::to_owned)));
    let mut filled = Vec::with_capacity(texts.len());
    for (file, text) in texts {
        match filler.fill(&file, &text) {
            Ok(text) => filled.push((file, text)),
            Err(mut diagnostics) => errors.append(&mut diagnostics),
        }
    }
    filler.tell();
    let home = filler.home();
    if errors.is_empty() { Ok(Filled { texts: filled, home }) } else { Err(errors) }
}

/// Loads a file of any kind to be looked at, with presets merged in and every blank filled in; `~` is the home of
/// this user, if not of the policy's.
///
/// # Errors
///
/// Every mistake in the texts.
pub fn load_any(
    first: &Path,
    presets: &[String],
    user: Option<&str>,
) -> Result<Loaded, Vec<Diagnostic>> {
    load_texts(&read_texts(&First::File(first.into()), presets, user)?)
}

#[cfg(test)]
mod tests;

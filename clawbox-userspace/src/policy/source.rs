//! Reads a policy file: a regular file of bounded size that is text.
//! Whatever else the path leads to is one clear diagnostic.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;
use std::sync::Arc;

use super::diagnostic::{Diagnostic, Origin};

/// The bound of the base language.
pub(super) const LARGEST: usize = 256 * 1024;

/// The path as diagnostics name it.
pub(crate) fn name(path: &Path) -> Arc<str> {
    path.to_string_lossy().chars().flat_map(escape).collect::<String>().into()
}

/// A file's name may hold anything, and diagnostics go to a terminal.
fn escape(c: char) -> impl Iterator<Item = char> {
    let control = c.is_control().then(|| c.escape_default());
    let plain = (!c.is_control()).then_some(c);
    control.into_iter().flatten().chain(plain)
}

/// Reads a file's text.
pub(crate) fn read(path: &Path) -> Result<String, Diagnostic> {
    let file = name(path);
    let failed = |error: &std::io::Error| {
        let (message, remedy) = match error.kind() {
            ErrorKind::NotFound => ("there is no such file", "check the path"),
            ErrorKind::PermissionDenied => ("the file cannot be read", "check its permissions"),
            ErrorKind::IsADirectory => ("this is a directory", "name the policy file in it"),
            _ => {
                return Diagnostic::error(Origin::file(&file), error.to_string(), "check the path");
            }
        };
        Diagnostic::error(Origin::file(&file), message, remedy)
    };
    let metadata = std::fs::metadata(path).map_err(|error| failed(&error))?;
    if metadata.is_dir() {
        return Err(failed(&ErrorKind::IsADirectory.into()));
    }
    let opened = File::open(path).map_err(|error| failed(&error))?;
    let mut bytes = Vec::new();
    // One byte more than allowed tells a file that is too large; the size in the metadata of a
    // pipe or a growing file tells nothing.
    opened.take(LARGEST as u64 + 1).read_to_end(&mut bytes).map_err(|error| failed(&error))?;
    check_text(&file, &bytes).map(str::to_owned)
}

/// Checks that bytes are the text of a policy.
pub(super) fn check_text<'a>(file: &str, bytes: &'a [u8]) -> Result<&'a str, Diagnostic> {
    let refuse =
        |message: String, remedy: &str| Err(Diagnostic::error(Origin::file(file), message, remedy));
    if bytes.len() > LARGEST {
        return refuse(
            format!("the file is larger than {} KiB", LARGEST / 1024),
            "split it into presets, or use wildcards",
        );
    }
    let Ok(text) = std::str::from_utf8(bytes) else {
        return refuse("the file is not UTF-8 text".to_owned(), "save it as UTF-8");
    };
    if text.contains('\0') {
        return refuse("the file holds a NUL byte and is no text".to_owned(), "name a YAML file");
    }
    let says_something =
        text.lines().any(|line| !line.trim().is_empty() && !line.trim_start().starts_with('#'));
    if !says_something {
        return refuse("the file is empty".to_owned(), "write at least `version: 1`");
    }
    Ok(text)
}

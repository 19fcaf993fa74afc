//! Paths of a policy: absolute, without `..`, normalised; and the globs that `deny` may use.
//! Spelling only: what a path leads to is found when a sandbox starts.

use std::fmt;
use std::path::Path;

use globset::{GlobBuilder, GlobMatcher};
use thiserror::Error;

/// Why a path is refused. The text says what to write instead.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{message}")]
pub struct InvalidPath {
    message: String,
    /// What to write instead.
    pub remedy: String,
}

impl InvalidPath {
    pub(super) fn new(message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { message: message.into(), remedy: remedy.into() }
    }
}

/// The longest path that the kernel takes, `PATH_MAX` with its NUL.
const LONGEST: usize = 4096;

/// Checks what every path must be, and removes repeated and trailing slashes and `.`.
pub(super) fn normalise(written: &str) -> Result<String, InvalidPath> {
    if written.is_empty() {
        return Err(InvalidPath::new("the path is empty", "write an absolute path"));
    }
    if written.len() > LONGEST {
        return Err(InvalidPath::new(
            format!("the path is {} bytes long", written.len()),
            format!("a path has at most {LONGEST}"),
        ));
    }
    if !written.starts_with('/') {
        return Err(InvalidPath::new(
            format!("`{written}` is not absolute"),
            "begin it with `/`; `~/` is filled in by `clawbox run` and `policy set`, variables never are",
        ));
    }
    if written.chars().any(char::is_control) {
        return Err(InvalidPath::new(
            format!("{written:?} holds a control character"),
            "remove it",
        ));
    }
    let mut text = String::with_capacity(written.len());
    for part in written.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                return Err(InvalidPath::new(
                    format!("`{written}` holds `..`"),
                    "write the path it leads to",
                ));
            }
            part => {
                text.push('/');
                text.push_str(part);
            }
        }
    }
    if text.is_empty() {
        text.push('/');
    }
    Ok(text)
}

/// An absolute path without globs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SandboxPath(String);

impl SandboxPath {
    /// Parses a path as written in a policy.
    pub fn parse(written: &str) -> Result<Self, InvalidPath> {
        if written.contains('*') {
            return Err(InvalidPath::new(
                format!("`{written}` holds `*`, but paths here are not globs"),
                "name the directory; everything below it is included",
            ));
        }
        normalise(written).map(Self)
    }

    /// The path, normalised.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The path, normalised.
    #[must_use]
    pub fn as_path(&self) -> &Path {
        Path::new(&self.0)
    }

    /// Whether the other path is this one or lies below it.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        other.as_path().starts_with(self.as_path())
    }
}

impl fmt::Display for SandboxPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An entry of `filesystem_policy.deny`: a path, or a glob such as `**/.env`.
#[derive(Clone, Debug)]
pub enum DenyPattern {
    /// This path and everything below it.
    Path(SandboxPath),
    /// Every path that matches, and everything below it.
    Glob(DenyGlob),
}

/// A valid glob.
#[derive(Clone, Debug)]
pub struct DenyGlob {
    text: String,
    matcher: GlobMatcher,
}

impl DenyGlob {
    /// As written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether a path matches.
    #[must_use]
    pub fn matches(&self, path: &Path) -> bool {
        self.matcher.is_match(path)
    }
}

impl DenyPattern {
    /// Parses an entry of `deny`.
    pub fn parse(written: &str) -> Result<Self, InvalidPath> {
        if written.starts_with("group:") {
            return Err(InvalidPath::new(
                format!(
                    "`{written}` stands for the paths of a group, and nothing has filled them in"
                ),
                "give the file to `clawbox run` or `clawbox policy set`",
            ));
        }
        if !written.contains(['*', '?', '[', '{']) {
            return SandboxPath::parse(written).map(Self::Path);
        }
        let text = match written.strip_prefix("**/") {
            // A relative glob means "anywhere", as in other tools' ignore files.
            Some(rest) => format!("/**{}", normalise(&format!("/{rest}"))?),
            None => normalise(written)?,
        };
        let glob = GlobBuilder::new(&text)
            .literal_separator(true)
            .backslash_escape(false)
            .build()
            .map_err(|error| {
                InvalidPath::new(
                    format!("`{written}` is not a valid glob: {}", error.kind()),
                    "write for example `**/.env`",
                )
            })?;
        Ok(Self::Glob(DenyGlob { text: written.to_owned(), matcher: glob.compile_matcher() }))
    }
}

impl fmt::Display for DenyPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => path.fmt(f),
            Self::Glob(glob) => f.write_str(&glob.text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_normalised_and_cover_what_lies_below() {
        for (written, path) in [
            ("/", "/"),
            ("//", "/"),
            ("/usr/", "/usr"),
            ("/usr//lib/./x", "/usr/lib/x"),
            ("/a.b/..c", "/a.b/..c"),
        ] {
            assert_eq!(SandboxPath::parse(written).unwrap().as_str(), path);
        }
        let sandbox = SandboxPath::parse("/sandbox").unwrap();
        for (path, covered) in
            [("/sandbox", true), ("/sandbox/a/b", true), ("/sandbox2", false), ("/", false)]
        {
            let path = SandboxPath::parse(path).unwrap();
            assert_eq!(sandbox.covers(&path), covered, "{path}");
        }
    }

    #[test]
    fn paths_that_name_nothing_are_refused() {
        for (written, says) in [
            ("", "empty"),
            ("usr", "not absolute"),
            ("~/x", "not absolute"),
            ("/a/../b", "`..`"),
            ("/a/*", "not globs"),
            ("/a\n", "control character"),
            ("/\0", "control character"),
        ] {
            let error = SandboxPath::parse(written).unwrap_err();
            assert!(error.to_string().contains(says), "{written:?}: {error}");
        }
        let long = format!("/{}", "a".repeat(4096));
        let error = SandboxPath::parse(&long).unwrap_err();
        assert_eq!(error.to_string(), "the path is 4097 bytes long");
    }

    #[test]
    fn a_relative_deny_glob_means_anywhere() {
        let DenyPattern::Glob(glob) = DenyPattern::parse("**/.env").unwrap() else {
            panic!("a glob is expected");
        };
        assert!(glob.matches(Path::new("/sandbox/a/.env")));
        assert!(glob.matches(Path::new("/.env")));
        assert!(!glob.matches(Path::new("/sandbox/.envrc")));
    }
}

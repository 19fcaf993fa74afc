//! Which executables a rule means: one path, or a glob over paths.
//! Holds only valid, normalised patterns.

use std::fmt;
use std::path::Path;

use globset::{GlobBuilder, GlobMatcher};

use super::path::{InvalidPath, SandboxPath, normalise};

/// A `path` of a `binaries` list.
#[derive(Clone)]
pub struct BinaryPattern {
    text: String,
    kind: Kind,
}

#[derive(Clone)]
enum Kind {
    Exact,
    Glob(GlobMatcher),
    Anybody,
}

impl BinaryPattern {
    /// Parses an entry: an absolute path in which `*` stays inside one component and `**`
    /// crosses them.
    pub fn parse(written: &str) -> Result<Self, InvalidPath> {
        let text = normalise(written)?;
        if text == "/" {
            return Err(InvalidPath::new(
                "`/` is a directory, not a program",
                "write the program's path, or `/**` for every program",
            ));
        }
        if text == "/**" {
            return Ok(Self { text, kind: Kind::Anybody });
        }
        if !text.contains(['*', '?', '[', '{']) {
            let path = SandboxPath::parse(&text)?;
            return Ok(Self { text: path.as_str().to_owned(), kind: Kind::Exact });
        }
        let glob = GlobBuilder::new(&text)
            .literal_separator(true)
            .backslash_escape(false)
            .build()
            .map_err(|error| {
                InvalidPath::new(
                    format!("`{written}` is not a valid glob: {}", error.kind()),
                    "use `*` inside a component and `**` across components",
                )
            })?;
        Ok(Self { text, kind: Kind::Glob(glob.compile_matcher()) })
    }

    /// The pattern, normalised.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether it admits every program (`/**`).
    #[must_use]
    pub fn is_anybody(&self) -> bool {
        matches!(self.kind, Kind::Anybody)
    }

    /// The path, if it means exactly one.
    #[must_use]
    pub fn exact(&self) -> Option<&Path> {
        matches!(self.kind, Kind::Exact).then(|| Path::new(&self.text))
    }

    /// The deepest directory that every match of a glob lies below: where to look for them.
    #[must_use]
    pub fn search_root(&self) -> &Path {
        let wild = self.text.find(['*', '?', '[', '{']);
        let literal = wild.and_then(|at| self.text.get(..at));
        let literal = literal.unwrap_or(&self.text);
        let cut = literal.rfind('/').unwrap_or(0).max(1);
        Path::new(self.text.get(..cut).unwrap_or("/"))
    }

    /// Whether a path matches.
    #[must_use]
    pub fn matches(&self, path: &Path) -> bool {
        match &self.kind {
            Kind::Exact => Path::new(&self.text) == path,
            Kind::Glob(glob) => glob.is_match(path),
            Kind::Anybody => path.is_absolute(),
        }
    }
}

impl PartialEq for BinaryPattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for BinaryPattern {}

impl fmt::Debug for BinaryPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BinaryPattern({})", self.text)
    }
}

impl fmt::Display for BinaryPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn binary_patterns_match_the_paths_they_mean() {
        for (pattern, path, expected) in [
            ("/usr/bin/git", "/usr/bin/git", true),
            ("/usr//bin/./git/", "/usr/bin/git", true),
            ("/usr/bin/git", "/usr/bin/git2", false),
            ("/usr/bin/*", "/usr/bin/git", true),
            ("/usr/bin/*", "/usr/bin/a/git", false),
            ("/usr/bin/python3*", "/usr/bin/python3.11", true),
            ("/usr/**/git", "/usr/lib/core/git", true),
            ("/usr/**/git", "/usr/git", true),
            ("/opt/**", "/opt/a/b", true),
            ("/opt/**", "/usr/bin/a", false),
            ("/**", "/anything/at/all", true),
        ] {
            let parsed = BinaryPattern::parse(pattern).unwrap();
            assert_eq!(parsed.matches(Path::new(path)), expected, "{pattern} {path}");
        }
    }

    #[test]
    fn a_glob_is_searched_for_below_its_literal_directory() {
        for (pattern, root) in [
            ("/usr/bin/*", "/usr/bin"),
            ("/usr/bin/python*", "/usr/bin"),
            ("/usr/**/git", "/usr"),
            ("/*/git", "/"),
            ("/usr/bin/git", "/usr/bin"),
        ] {
            let parsed = BinaryPattern::parse(pattern).unwrap();
            assert_eq!(parsed.search_root(), Path::new(root), "{pattern}");
        }
    }

    #[test]
    fn what_is_no_program_is_refused() {
        for (written, says) in [
            ("curl", "not absolute"),
            ("/usr/../bin/git", "`..`"),
            ("/", "a directory"),
            ("/usr/bin/[a", "not a valid glob"),
            ("", "empty"),
        ] {
            let error = BinaryPattern::parse(written).unwrap_err();
            assert!(error.to_string().contains(says), "{written}: {error}");
        }
    }
}

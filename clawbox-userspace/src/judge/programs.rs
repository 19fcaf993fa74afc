//! Which programs a word means: a path, a name that the policy or this host has, or any program at all.

use std::path::{Path, PathBuf};

use super::Judge;

/// What `any` stands for: a program that no rule names.
pub const ANY_PROGRAM: &str = "/any/program";

/// Where a name is looked for that the policy does not know; not the caller's PATH, so that a test means
/// the same wherever it runs.
const DIRECTORIES: [&str; 6] =
    ["/usr/local/bin", "/usr/bin", "/bin", "/usr/local/sbin", "/usr/sbin", "/sbin"];

impl Judge {
    /// A program as the policy writes it, where it names that very file: whoever runs it already is known by
    /// that and by no other spelling.
    #[must_use]
    pub fn spelt(&self, program: &Path) -> PathBuf {
        let Ok(held) = self.mounts.hold(program) else { return program.to_owned() };
        let is_it = |path: &&Path| self.mounts.hold(path).is_ok_and(|other| other.id == held.id);
        let mut written = self.image.binaries.iter().filter_map(|entry| entry.pattern.exact());
        written.find(is_it).unwrap_or(program).to_owned()
    }

    /// The programs that a word means, at least one: all of this name that the policy names by their path, or
    /// that this host has.
    #[must_use]
    pub fn programs(&self, word: &str) -> Vec<PathBuf> {
        if word == "any" {
            return vec![ANY_PROGRAM.into()];
        }
        if word.contains('/') {
            return vec![word.into()];
        }
        let named = |path: &&Path| path.file_name().is_some_and(|name| name == word);
        let entries = self.image.binaries.iter();
        let mut found: Vec<PathBuf> = entries
            .filter_map(|entry| entry.pattern.exact())
            .filter(named)
            .map(Path::to_owned)
            .collect();
        if found.is_empty() {
            let here = DIRECTORIES.iter().map(|directory| Path::new(directory).join(word));
            // One directory may be a link to another.
            found.extend(here.filter(|path| path.is_file()).take(1));
        }
        if found.is_empty() {
            found.push(Path::new("/usr/bin").join(word));
        }
        found
    }
}

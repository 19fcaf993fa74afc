//! What is in a directory tree, so that two states of it can be compared: after a purge a machine must be
//! as it was before the package came.

use std::collections::BTreeMap;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result};

/// What changes with every package: where, and whose it is.
const OF_TOOLS: [(&str, &str); 6] = [
    ("etc/group-", "the file before its last change, kept by groupadd and groupdel"),
    ("etc/gshadow-", "the file before its last change, kept by groupadd and groupdel"),
    ("var/lib/dpkg/", "dpkg's records; what it has of the package is looked at by itself"),
    ("var/log/dpkg.log", "dpkg's log"),
    ("var/log/alternatives.log", "dpkg's log"),
    ("var/lib/systemd/deb-systemd-helper-", "Debian's record of units, as it is for all packages"),
];

/// Each path below a directory with what is there.
#[derive(Debug, PartialEq, Eq)]
pub struct Listing(BTreeMap<String, String>);

impl Listing {
    /// Of everything below `root`.
    pub fn of(root: &Path) -> Result<Self> {
        let mut found = BTreeMap::new();
        walk(root, root, &mut found)?;
        Ok(Self(found))
    }

    /// What is otherwise than before, in words; without what the distribution's tools keep.
    pub fn differences(&self, after: &Self) -> Vec<String> {
        let mut found = Vec::new();
        for (path, was) in &self.0 {
            match after.0.get(path) {
                None => found.push(format!("{path} is gone")),
                Some(is) if is != was => found.push(format!("{path} was {was} and is {is}")),
                Some(_) => {}
            }
        }
        let new = after.0.keys().filter(|path| !self.0.contains_key(*path));
        found.extend(new.map(|path| format!("{path} is left")));
        found.retain(|line| !OF_TOOLS.iter().any(|(prefix, _)| line.starts_with(prefix)));
        found
    }
}

fn walk(root: &Path, directory: &Path, found: &mut BTreeMap<String, String>) -> Result<()> {
    let failed = || format!("cannot look at `{}`", directory.display());
    for entry in fs::read_dir(directory).with_context(failed)? {
        let path = entry.with_context(failed)?.path();
        let metadata = fs::symlink_metadata(&path).with_context(failed)?;
        let name = path.strip_prefix(root).unwrap_or(&path).display().to_string();
        let mode = metadata.mode() & 0o7777;
        let what = if metadata.is_symlink() {
            format!("a link to {}", fs::read_link(&path).with_context(failed)?.display())
        } else if metadata.is_dir() {
            format!("a directory of mode {mode:o}")
        } else if metadata.is_file() {
            let bytes = fs::read(&path).with_context(failed)?;
            let mut hasher = DefaultHasher::new();
            bytes.hash(&mut hasher);
            format!("a file of mode {mode:o} with {} bytes ({:x})", bytes.len(), hasher.finish())
        } else {
            format!("something else of mode {mode:o}")
        };
        let owned = format!("{what}, of {}:{}", metadata.uid(), metadata.gid());
        found.insert(name, owned);
        if metadata.is_dir() {
            walk(root, &path, found)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(entries: &[(&str, &str)]) -> Listing {
        Listing(entries.iter().map(|(path, what)| ((*path).into(), (*what).into())).collect())
    }

    #[test]
    fn what_is_left_gone_or_changed_is_said_and_records_of_tools_are_not() {
        let before = listing(&[("etc/group", "1"), ("usr/bin/sh", "1"), ("var/log/dpkg.log", "1")]);
        let after = listing(&[
            ("etc/group", "2"),
            ("etc/group-", "1"),
            ("var/lib/clawbox", "1"),
            ("var/lib/dpkg/status-old", "1"),
            ("var/log/dpkg.log", "2"),
        ]);
        assert_eq!(
            before.differences(&after),
            ["etc/group was 1 and is 2", "usr/bin/sh is gone", "var/lib/clawbox is left"]
        );
        assert!(before.differences(&before).is_empty());
    }

    #[test]
    fn a_tree_is_read_without_following_links() {
        let root = std::env::temp_dir().join(format!("clawbox-listing-{}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        fs::create_dir_all(root.join("a")).unwrap();
        fs::write(root.join("a/file"), "1").unwrap();
        std::os::unix::fs::symlink("/", root.join("a/link")).unwrap();
        let before = Listing::of(&root).unwrap();
        assert_eq!(before.0.keys().collect::<Vec<_>>(), ["a", "a/file", "a/link"]);
        fs::write(root.join("a/file"), "2").unwrap();
        let after = Listing::of(&root).unwrap();
        let found = before.differences(&after);
        assert!(matches!(found.as_slice(), [one] if one.starts_with("a/file was ")), "{found:?}");
        fs::remove_dir_all(&root).unwrap();
    }
}

//! Finds the files behind a policy's binary entries and keeps them open for the sandbox's life.
//! An entry that finds nothing admits nobody; it is reported, not guessed at.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clawbox_common::limits::SCRIPT_PATH;
use clawbox_common::rule::{BinaryKey, ScriptKey};
use clawbox_common::subject::{FileId, Mask};
use walkdir::WalkDir;

use crate::compile::MapImage;
use crate::kernel::file_id::{FileIdError, Mounts};
use crate::policy::binary_pattern::BinaryPattern;

/// Files one glob may look at; a pattern that would search more is cut and reported.
const SEARCH_BOUND: usize = 200_000;

/// What the binary entries of a policy are on this host.
#[derive(Debug, Default)]
pub struct Identities {
    /// For the kernel: file → slots.
    pub binaries: BTreeMap<BinaryKey, Mask>,
    /// For the kernel: script path → slots.
    pub scripts: BTreeMap<ScriptKey, Mask>,
    /// For the audit trail.
    pub paths: Vec<(FileId, PathBuf)>,
    /// Files that were passed over, with the reason.
    pub problems: Vec<String>,
    /// Slots that found nothing: the entry, and why.
    missing: BTreeMap<usize, String>,
    /// While these are open no other file can get one of the inode numbers.
    held: Vec<Arc<OwnedFd>>,
}

impl Identities {
    /// Finds the files of each slot's pattern. `writable` are the trees that the sandbox may
    /// write: nothing in them matches unless its entry names it.
    pub fn find<'a>(
        sandbox: u32,
        mounts: &Mounts,
        patterns: impl IntoIterator<Item = &'a BinaryPattern>,
        writable: &[PathBuf],
    ) -> Self {
        let mut found = Self::default();
        for (slot, pattern) in patterns.into_iter().enumerate() {
            if pattern.is_anybody() {
                continue;
            }
            if let Some(path) = pattern.exact() {
                if let Some(target) = leads_into(path, writable) {
                    found.problems.push(format!(
                        "binary `{pattern}` admits nobody: it leads to `{}`, which the sandbox may \
                         write; name that path if you mean it",
                        target.display()
                    ));
                } else if let Err(error) = found.add(sandbox, mounts, slot, path) {
                    found.missing.insert(slot, format!("binary `{pattern}`: {error}"));
                }
            } else {
                found.search(sandbox, mounts, slot, pattern, writable);
            }
        }
        found
    }

    /// What is to be told of them under a policy: one binary of each rule has to be here, since profiles list
    /// all places that one may be at. What else is missing is told to who wants to know more.
    #[must_use]
    pub fn problems_of(&self, image: &MapImage) -> Vec<String> {
        let mut told = self.problems.clone();
        let mut explained = BTreeSet::new();
        for (rule, slots) in image.slots_by_rule() {
            let whys: Vec<&str> = slots
                .iter()
                .filter_map(|slot| self.missing.get(slot))
                .map(String::as_str)
                .collect();
            if !slots.is_empty() && whys.len() == slots.len() {
                told.push(format!("{rule} admits nobody: {}", whys.join("; ")));
                explained.extend(slots);
            }
        }
        for (_, why) in self.missing.iter().filter(|(slot, _)| !explained.contains(slot)) {
            tracing::debug!("{why}; another one of its rule is here");
        }
        told
    }

    /// How many files are held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.held.len()
    }

    /// What keeps them open.
    pub(super) fn handles(&self) -> &[Arc<OwnedFd>] {
        &self.held
    }

    /// Whether no entry found a file.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    fn search(
        &mut self,
        sandbox: u32,
        mounts: &Mounts,
        slot: usize,
        pattern: &BinaryPattern,
        writable: &[PathBuf],
    ) {
        let before = self.held.len();
        let files = WalkDir::new(pattern.search_root()).into_iter().flatten();
        for entry in files.take(SEARCH_BOUND) {
            let path = entry.path();
            if !pattern.matches(path) || entry.file_type().is_dir() || !is_executable(path) {
                continue;
            }
            if writable.iter().any(|tree| path.starts_with(tree)) {
                self.problems.push(format!(
                    "binary `{pattern}` does not mean `{}`: the sandbox may write it; name it itself",
                    path.display()
                ));
                continue;
            }
            if let Err(error) = self.add(sandbox, mounts, slot, path) {
                self.problems.push(format!("binary `{pattern}`: {error}"));
            }
        }
        if self.held.len() == before {
            self.missing.insert(slot, format!("binary `{pattern}`: no file here matches"));
        }
    }

    fn add(
        &mut self,
        sandbox: u32,
        mounts: &Mounts,
        slot: usize,
        path: &Path,
    ) -> Result<(), FileIdError> {
        let held = mounts.hold(path)?;
        let key = BinaryKey { file: held.id, sandbox, zero: 0 };
        self.binaries.entry(key).or_default().insert(slot);
        if is_script(path) {
            let resolved = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
            for spelling in [path, &resolved] {
                match script_key(sandbox, spelling) {
                    Some(key) => self.scripts.entry(key).or_default().insert(slot),
                    None => self.problems.push(format!(
                        "script `{}` admits nobody: its path is longer than {} bytes",
                        spelling.display(),
                        SCRIPT_PATH - 1
                    )),
                }
            }
        }
        let named = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        self.paths.push((held.id, named));
        self.held.push(held.handle);
        Ok(())
    }
}

/// Where a path that is itself outside the writable trees leads into one of them.
fn leads_into(path: &Path, writable: &[PathBuf]) -> Option<PathBuf> {
    let inside = |path: &Path| writable.iter().any(|tree| path.starts_with(tree));
    let target = std::fs::canonicalize(path).ok()?;
    (inside(&target) && !inside(path)).then_some(target)
}

fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(path)
        .is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

/// Whether the kernel would start an interpreter for it.
fn is_script(path: &Path) -> bool {
    let mut head = [0; 2];
    // Somebody may have put a pipe there, which would be waited for.
    let opened = File::options().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path);
    let read = opened.and_then(|mut file| file.read_exact(&mut head));
    read.is_ok() && &head == b"#!"
}

/// The key that exec of this path looks for; `None` where it does not fit.
fn script_key(sandbox: u32, path: &Path) -> Option<ScriptKey> {
    use std::os::unix::ffi::OsStrExt;
    let bytes = path.as_os_str().as_bytes();
    let mut key = ScriptKey { path: [0; SCRIPT_PATH], sandbox, zero: 0 };
    // One byte stays zero: a path that fills the buffer may have been cut by the kernel.
    (bytes.len() < SCRIPT_PATH - 1).then(|| key.path[..bytes.len()].copy_from_slice(bytes))?;
    Some(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn executable(path: &Path, text: &str) {
        std::fs::write(path, text).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn pattern(text: &str) -> BinaryPattern {
        BinaryPattern::parse(text).unwrap()
    }

    #[test]
    fn a_glob_finds_executables_and_passes_over_what_the_sandbox_may_write() {
        let directory = tempfile::tempdir().unwrap();
        let (bin, open) = (directory.path().join("bin"), directory.path().join("open"));
        for place in [&bin, &open] {
            std::fs::create_dir(place).unwrap();
            executable(&place.join("tool"), "binary");
            std::fs::write(place.join("data"), "").unwrap();
        }
        let glob = pattern(&format!("{}/**", directory.path().display()));
        let mounts = Mounts::read().unwrap();
        let found = Identities::find(1, &mounts, [&glob], std::slice::from_ref(&open));
        assert_eq!(found.len(), 1);
        assert!(found.problems.iter().any(|problem| problem.contains("the sandbox may write it")));
    }

    #[test]
    fn a_link_into_a_tree_that_the_sandbox_may_write_admits_nobody() {
        let directory = tempfile::tempdir().unwrap();
        let open = directory.path().join("open");
        std::fs::create_dir(&open).unwrap();
        executable(&open.join("tool"), "binary");
        let link = directory.path().join("tool");
        std::os::unix::fs::symlink(open.join("tool"), &link).unwrap();
        let (mounts, open) = (Mounts::read().unwrap(), [open]);
        let through = pattern(&link.display().to_string());
        assert!(Identities::find(1, &mounts, [&through], &open).is_empty());
        let named = pattern(&open[0].join("tool").display().to_string());
        assert_eq!(Identities::find(1, &mounts, [&named], &open).len(), 1);
    }

    #[test]
    fn one_file_named_twice_stands_for_both_entries() {
        let directory = tempfile::tempdir().unwrap();
        let (tool, link) = (directory.path().join("tool"), directory.path().join("link"));
        executable(&tool, "binary");
        std::os::unix::fs::symlink(&tool, &link).unwrap();
        let patterns = [&tool, &link].map(|path| pattern(&path.display().to_string()));
        let found = Identities::find(1, &Mounts::read().unwrap(), &patterns, &[]);
        assert_eq!(found.binaries.len(), 1);
        let mask = found.binaries.values().next().unwrap();
        assert!(mask.contains(0) && mask.contains(1));
    }

    #[test]
    fn a_script_is_known_by_the_path_it_is_named_by_and_the_path_it_leads_to() {
        let directory = tempfile::tempdir().unwrap();
        let (script, link) = (directory.path().join("run.mjs"), directory.path().join("run"));
        executable(&script, "#!/usr/bin/env node\n");
        std::os::unix::fs::symlink(&script, &link).unwrap();
        let named = pattern(&link.display().to_string());
        let found = Identities::find(1, &Mounts::read().unwrap(), [&named], &[]);
        assert_eq!(found.scripts.len(), 2);
    }

    #[test]
    fn a_pipe_in_the_place_of_a_program_is_not_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let pipe = directory.path().join("tool");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(!is_script(&pipe));
    }

    #[test]
    fn an_entry_that_finds_nothing_is_a_problem_and_no_identity() {
        let found = found_for("binaries: [{ path: /no/such/binary }]");
        assert!(found.0.is_empty() && found.0.binaries.is_empty());
        assert_eq!(found.1.len(), 1, "{:?}", found.1);
        let says = "network_policies.a admits nobody: binary `/no/such/binary`: ";
        assert!(found.1[0].starts_with(says), "{:?}", found.1);
    }

    /// What a rule's binaries are here, and what is told of them.
    fn found_for(binaries: &str) -> (Identities, Vec<String>) {
        let text = format!(
            "version: 1\nnetwork_policies:\n  a:\n    endpoints: [{{ host: a.test, port: 443 }}]\n    \
             {binaries}\n"
        );
        let policy = crate::policy::parse_str("p.yaml", &text).unwrap().policy;
        let image = crate::compile::compile(&policy, 1).unwrap();
        let patterns = image.binaries.iter().map(|entry| &entry.pattern);
        let found = Identities::find(1, &Mounts::read().unwrap(), patterns, &[]);
        let told = found.problems_of(&image);
        (found, told)
    }

    #[test]
    fn of_the_places_that_a_binary_may_be_at_one_is_enough_and_none_is_told_once() {
        let directory = tempfile::tempdir().unwrap();
        let here = directory.path().join("node");
        executable(&here, "binary");
        let of = |paths: &[&str]| {
            let entries: Vec<String> =
                paths.iter().map(|path| format!("{{ path: {path} }}")).collect();
            found_for(&format!("binaries: [{}]", entries.join(", ")))
        };
        let (found, told) = of(&["/no/such/node", "/no/such/*", here.to_str().unwrap()]);
        assert_eq!((found.len(), told), (1, Vec::new()));
        let (found, told) = of(&["/no/such/node", "/no/such/*"]);
        assert_eq!((found.len(), told.len()), (0, 1), "{told:?}");
        assert!(
            told[0].contains("`/no/such/node`") && told[0].contains("`/no/such/*`"),
            "{told:?}"
        );
    }
}

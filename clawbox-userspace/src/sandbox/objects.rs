//! Finds the objects behind a policy's paths and makes the kernel's rules of them: at the object,
//! at its name, and a hold on the directories above it. What matches nothing is a problem, said.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clawbox_common::decide::Files;
use clawbox_common::decide::file::Search;
use clawbox_common::file::{
    BY_BINARY, DENIED, FileKey, FileRule, HAS_NAMES, HELD, NameKey, REACHABLE, READABLE, WRITABLE,
    WRITTEN_BY_SOME,
};
use clawbox_common::limits::FILE_NAME;
use clawbox_common::rule::SandboxState;
use clawbox_common::subject::{FileId, Subject};

use crate::compile::MapImage;
use crate::compile::files::{FileGrant, Give};
use crate::kernel::file_id::{FileIdError, Mounts};

/// What a policy's paths are on this host.
#[derive(Debug, Default)]
pub struct Objects {
    /// For the kernel: rules at objects.
    pub files: BTreeMap<FileKey, FileRule>,
    /// For the kernel: rules at names.
    pub names: BTreeMap<NameKey, FileRule>,
    /// Paths without an object, and what that means for them.
    pub problems: Vec<String>,
    /// What the policy closes and no rule could be made for: it would stay open.
    pub unclosed: Vec<String>,
    /// Paths whose rules stand at a directory above them, by that directory: neither exists.
    waiting: BTreeMap<PathBuf, Vec<PathBuf>>,
    /// While these are open no other object can get one of the inode numbers.
    held: Vec<Arc<OwnedFd>>,
    /// Objects that were looked at while the others are: most paths of a policy are in the same few directories.
    seen: HashMap<PathBuf, FileId>,
    generation: u32,
}

impl Objects {
    /// Finds the objects of a compiled policy. `also_writable` are trees that the policy means
    /// without spelling them, such as the start directory.
    pub fn find(image: &MapImage, mounts: &Mounts, also_writable: &[PathBuf]) -> Self {
        let mut found = Self { generation: image.generation(), ..Self::default() };
        for grant in &image.files {
            found.add(mounts, grant.path.as_path(), &rule_of(grant), grant.give);
        }
        let writable = FileRule { flags: WRITABLE, ..FileRule::default() };
        for tree in also_writable {
            found.add(mounts, tree, &writable, Give::Writing);
        }
        for name in &image.names_anywhere {
            match found.name_key(FileId::default(), OsStr::new(name)) {
                Some(key) => {
                    let rule = found.names.entry(key).or_default();
                    rule.flags |= DENIED;
                }
                None => found.unclosed.push(too_long(name)),
            }
        }
        found.seen = HashMap::new();
        found.problems.extend(told(&found.waiting));
        found
    }

    /// What the kernel programs would find on their way up from a path, by the same steps, and the
    /// path at which they would find it. A path that does not exist is asked for as if it were made
    /// now.
    #[must_use]
    pub fn search(
        &self,
        state: &SandboxState,
        subject: &Subject,
        mounts: &Mounts,
        path: &Path,
    ) -> (Search, Option<PathBuf>) {
        let whole = resolved(path);
        let mut search = Search::new(state);
        let mut below: Option<&OsStr> = None;
        for at in whole.ancestors() {
            let object = mounts.hold(at).map(|held| held.id).unwrap_or_default();
            let name = |into: &mut [u8; FILE_NAME]| match below.and_then(fitting) {
                Some(name) => {
                    *into = name;
                    true
                }
                None => false,
            };
            if search.step(self, subject, object, name) {
                return (search, Some(at.to_owned()));
            }
            below = at.file_name();
        }
        (search, None)
    }

    /// What keeps them open.
    pub(super) fn handles(&self) -> &[Arc<OwnedFd>] {
        &self.held
    }

    fn add(&mut self, mounts: &Mounts, path: &Path, rule: &FileRule, give: Give) {
        // The object's own path: rules stand where symlinks lead.
        let (existing, missing) = split(path);
        let existing = match std::fs::canonicalize(existing) {
            Ok(existing) => existing,
            Err(error) => {
                return self
                    .fail(give, format!("`{}` cannot be looked at: {error}", path.display()));
            }
        };
        let Some(first_missing) = missing.first() else {
            let result = self.at_object(mounts, &existing, rule).and_then(|()| {
                let by_object = give == Give::Writing;
                if by_object { Ok(()) } else { self.at_name(mounts, &existing, rule, give) }
            });
            if let Err(error) = result {
                self.fail(give, format!("`{}` has no rule: {error}", path.display()));
            }
            return;
        };
        let first = existing.join(first_missing);
        if missing.len() > 1 {
            if give == Give::Writing {
                return self.problems.push(format!(
                    "`{}` opens nothing: `{}` does not exist",
                    path.display(),
                    first.display()
                ));
            }
            self.waiting.entry(first.clone()).or_default().push(path.to_owned());
        }
        if let Err(error) = self.at_name(mounts, &first, rule, give) {
            self.fail(give, format!("`{}` has no rule: {error}", path.display()));
        }
    }

    fn fail(&mut self, give: Give, what: String) {
        let closes = give == Give::Nothing;
        (if closes { &mut self.unclosed } else { &mut self.problems }).push(what);
    }

    fn object(&mut self, mounts: &Mounts, path: &Path) -> Result<FileId, FileIdError> {
        if let Some(seen) = self.seen.get(path) {
            return Ok(*seen);
        }
        let held = mounts.hold(path)?;
        self.held.push(held.handle);
        self.seen.insert(path.to_owned(), held.id);
        Ok(held.id)
    }

    fn at_object(
        &mut self,
        mounts: &Mounts,
        path: &Path,
        rule: &FileRule,
    ) -> Result<(), FileIdError> {
        let file = self.object(mounts, path)?;
        merge(self.rule_at(file), rule);
        Ok(())
    }

    /// A rule that holds for whatever has this name, and a hold on the way to it: an object that
    /// takes the place of another, or whose directory is moved away, has no rule of its own.
    fn at_name(
        &mut self,
        mounts: &Mounts,
        path: &Path,
        rule: &FileRule,
        give: Give,
    ) -> Result<(), FileIdError> {
        let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
            return Ok(());
        };
        let id = self.object(mounts, directory)?;
        match self.name_key(id, name) {
            Some(key) => merge(self.names.entry(key).or_default(), rule),
            None => self.fail(give, too_long(&path.display().to_string())),
        }
        self.rule_at(id).flags |= HAS_NAMES;
        for above in directory.ancestors() {
            let above = self.object(mounts, above)?;
            self.rule_at(above).flags |= HELD;
        }
        Ok(())
    }

    fn rule_at(&mut self, file: FileId) -> &mut FileRule {
        let key = FileKey { file, policy: self.generation, zero: 0 };
        self.files.entry(key).or_default()
    }

    fn name_key(&self, directory: FileId, name: &OsStr) -> Option<NameKey> {
        let name = fitting(name)?;
        Some(NameKey { directory, policy: self.generation, zero: 0, name })
    }
}

impl Files for Objects {
    fn file(&self, key: &FileKey) -> Option<&FileRule> {
        self.files.get(key)
    }

    fn name(&self, key: &NameKey) -> Option<&FileRule> {
        self.names.get(key)
    }
}

/// What waits for its directories, in one line: a group of protected paths has dozens of them.
fn told(waiting: &BTreeMap<PathBuf, Vec<PathBuf>>) -> Option<String> {
    let (first, paths) = waiting.first_key_value()?;
    if let ([path], 1) = (paths.as_slice(), waiting.len()) {
        return Some(format!(
            "`{}` does not exist yet, and neither does `{}`, which the rule stands at until the \
             sandbox is started again",
            path.display(),
            first.display()
        ));
    }
    let count: usize = waiting.values().map(Vec::len).sum();
    let places =
        waiting.iter().map(|(first, paths)| format!("`{}` ({})", first.display(), paths.len()));
    Some(format!(
        "{count} paths do not exist yet, and neither do directories above them, which their rules \
         stand at until the sandbox is started again: {}",
        places.collect::<Vec<_>>().join(", ")
    ))
}

/// A name as a key has it. `None` where it does not fit.
#[must_use]
pub fn fitting(name: &OsStr) -> Option<[u8; FILE_NAME]> {
    let bytes = name.as_bytes();
    let mut fitting = [0; FILE_NAME];
    // One byte stays zero: the kernel says of a name that fills the buffer that it is cut.
    (bytes.len() < FILE_NAME - 1).then(|| fitting[..bytes.len()].copy_from_slice(bytes))?;
    Some(fitting)
}

fn too_long(what: &str) -> String {
    format!("`{what}`: its name is longer than {} bytes and has no rule", FILE_NAME - 2)
}

/// A path without symlinks, as far as it exists.
pub fn resolved(path: &Path) -> PathBuf {
    let (existing, missing) = split(path);
    let mut whole = std::fs::canonicalize(existing).unwrap_or_else(|_| existing.to_owned());
    whole.extend(missing);
    whole
}

/// What exists of a path, and the names of what does not.
fn split(path: &Path) -> (&Path, Vec<&OsStr>) {
    let mut missing = Vec::new();
    let mut existing = path;
    while std::fs::symlink_metadata(existing).is_err() {
        let (Some(parent), Some(name)) = (existing.parent(), existing.file_name()) else { break };
        missing.push(name);
        existing = parent;
    }
    missing.reverse();
    (existing, missing)
}

fn rule_of(grant: &FileGrant) -> FileRule {
    let mut rule = FileRule::default();
    match (grant.whom, grant.give) {
        (_, Give::Nothing) => rule.flags = DENIED,
        (_, Give::Reaching) => rule.flags = REACHABLE,
        (None, Give::Reading) => rule.flags = READABLE,
        (None, Give::Writing) => rule.flags = WRITABLE,
        (Some((tree, own)), give) => {
            rule.flags = BY_BINARY;
            let writes = give == Give::Writing;
            rule.flags |= if writes { WRITTEN_BY_SOME } else { 0 };
            (*(if writes { &mut rule.write_tree } else { &mut rule.read_tree })) = tree;
            (*(if writes { &mut rule.write_own } else { &mut rule.read_own })) = own;
        }
    }
    rule
}

/// Two grants of one object: both count, and closed wins when it is decided. What is in both lists
/// of the base language is readable only, which `resolve` has seen to.
fn merge(into: &mut FileRule, rule: &FileRule) {
    into.flags |= rule.flags;
    into.read_tree.extend(&rule.read_tree);
    into.read_own.extend(&rule.read_own);
    into.write_tree.extend(&rule.write_tree);
    into.write_own.extend(&rule.write_own);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn objects(policy: &str) -> Objects {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), policy).unwrap();
        let loaded = crate::policy::load(file.path(), &[]).unwrap();
        let image = crate::compile::compile(&loaded.policy, 1).unwrap();
        Objects::find(&image, &Mounts::read().unwrap(), &[])
    }

    fn id(path: &Path) -> FileKey {
        let file = Mounts::read().unwrap().hold(path).unwrap().id;
        FileKey { file, policy: 1, zero: 0 }
    }

    #[test]
    fn an_island_has_a_rule_at_its_object_and_its_name_and_holds_what_is_above() {
        let world = tempfile::tempdir().unwrap();
        let root = std::fs::canonicalize(world.path()).unwrap();
        std::fs::create_dir_all(root.join("repo/.git/hooks")).unwrap();
        let found = objects(&format!(
            "version: 1\nfilesystem_policy:\n  read_write: [{root}/repo]\n  \
             deny: [{root}/repo/.git/hooks, {root}/repo/.env, \"**/secret\"]\n",
            root = root.display()
        ));
        assert_eq!(found.problems, Vec::<String>::new());
        assert_eq!(found.files[&id(&root.join("repo/.git/hooks"))].flags, DENIED);
        assert_eq!(found.files[&id(&root.join("repo/.git"))].flags, HAS_NAMES | HELD);
        assert_eq!(found.files[&id(&root.join("repo"))].flags, WRITABLE | HAS_NAMES | HELD);
        assert_eq!(found.files[&id(&root)].flags, HELD);
        assert_eq!(found.names.len(), 3);
        assert!(found.names.values().all(|rule| rule.flags == DENIED));
    }

    #[test]
    fn a_path_that_opens_nothing_is_said() {
        let found = objects("version: 1\nfilesystem_policy: { read_write: [/no/such/place] }\n");
        assert!(found.problems[0].contains("opens nothing"), "{:?}", found.problems);
        assert!(found.files.is_empty() && found.names.is_empty());
    }

    #[test]
    fn what_waits_for_its_directories_is_said_in_one_line() {
        let world = tempfile::tempdir().unwrap();
        let root = std::fs::canonicalize(world.path()).unwrap().display().to_string();
        let closing = |paths: &str| {
            objects(&format!(
                "version: 1\nfilesystem_policy: {{ read_write: [{root}], deny: [{paths}] }}\n"
            ))
            .problems
        };
        let one = closing(&format!("{root}/a/b"));
        assert_eq!(one.len(), 1);
        assert!(one[0].contains("neither does") && one[0].contains("/a/b`"), "{one:?}");
        let more = closing(&format!("{root}/a/b, {root}/a/c/d, {root}/e/f, {root}/g"));
        assert_eq!(more.len(), 1, "{more:?}");
        let says = "3 paths do not exist yet, and neither do directories above them";
        assert!(more[0].starts_with(says), "{more:?}");
        assert!(more[0].ends_with(&format!("`{root}/a` (2), `{root}/e` (1)")), "{more:?}");
    }
}

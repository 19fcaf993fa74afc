//! Which path of a policy stands for a file that was used: a directory where that is sensible, the file
//! alone where it is not, nothing where it is a secret. No directory is taken that holds a protected path.

use std::path::{Component, Path, PathBuf};

use super::Place;
use super::observed::Uses;
use crate::presets::groups::Group;

/// Groups whose paths are secrets: they are neither read nor written by what is learned.
const SECRET: [&str; 4] = ["credentials", "keyrings", "browser-data", "container-sockets"];

/// Trees that are programs and their data. Nothing in them is a secret, and nothing is written.
const SYSTEM: [&str; 7] = ["/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"];

/// What somebody could change the whole host by.
const SENSITIVE: [&str; 6] =
    ["/etc", "/boot", "/var/spool/cron", "/root/.ssh", "/sys", "/run/systemd"];

/// What stands for a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Folded {
    /// Nothing has to.
    Nothing,
    /// This.
    To(PathBuf),
    /// The file itself, and somebody should look at it.
    Alone {
        /// What to look at.
        remark: String,
    },
    /// It is not allowed.
    Left {
        /// Why.
        because: String,
        /// Options of `policy allow` that allow it all the same.
        options: Option<Vec<String>>,
    },
}

/// Protected paths of this host.
#[derive(Debug, Default)]
pub(super) struct Protected {
    /// Group, path, and whether it is a secret.
    paths: Vec<(String, PathBuf, bool)>,
    /// Group and name in any directory.
    names: Vec<(String, String, bool)>,
}

impl Protected {
    pub(super) fn of(groups: &[(String, Group)], place: &Place) -> Self {
        let mut all = Self::default();
        for (name, group) in groups {
            let is_secret = SECRET.contains(&name.as_str());
            for path in &group.paths {
                if let Some(file) = path.strip_prefix("**/") {
                    all.names.push((name.clone(), file.to_owned(), is_secret));
                } else if let Some(rest) = path.strip_prefix("~/") {
                    // Of everybody's, where whose it is cannot be told.
                    let home = place.home.iter().cloned();
                    let homes = home.chain(std::iter::once(PathBuf::from("/root")));
                    all.paths.extend(homes.map(|home| (name.clone(), home.join(rest), is_secret)));
                } else {
                    all.paths.push((name.clone(), path.into(), is_secret));
                }
            }
        }
        all
    }

    /// Protects the secrets among these paths, which are known by their names, as paths of their own.
    pub(super) fn keep_apart<'p>(&mut self, paths: impl Iterator<Item = &'p PathBuf>) {
        for path in paths {
            if let Some((group, true)) = self.group(path) {
                let entry = (group.to_owned(), path.clone(), true);
                self.paths.push(entry);
            }
        }
    }

    /// Takes out what is the program's own by its name, `~/.NAME` or `~/.config/NAME`, and no secret of
    /// others: agents keep their state where other agents must not write. Gives what was taken out.
    pub(super) fn release_own(&mut self, place: &Place) -> Vec<PathBuf> {
        let (Some(home), Some(name)) = (&place.home, &place.program) else { return Vec::new() };
        let own = [format!(".{name}"), format!(".{name}.json"), format!(".config/{name}")];
        let own = own.map(|own| home.join(own));
        let is_own =
            |(_, path, is_secret): &(String, PathBuf, bool)| !is_secret && own.contains(path);
        let released: Vec<PathBuf> =
            self.paths.iter().filter(|entry| is_own(entry)).map(|entry| entry.1.clone()).collect();
        self.paths.retain(|entry| !is_own(entry));
        released
    }

    /// The group of a path that is protected, and whether it is a secret.
    pub(super) fn group(&self, path: &Path) -> Option<(&str, bool)> {
        let by_path = self
            .paths
            .iter()
            .filter(|(_, protected, _)| path.starts_with(protected))
            .map(|(group, _, is_secret)| (group.as_str(), *is_secret));
        let named = |name: &str| path.components().any(|part| part.as_os_str() == name);
        let by_name = self
            .names
            .iter()
            .filter(|(_, name, _)| named(name))
            .map(|(group, _, is_secret)| (group.as_str(), *is_secret));
        by_path.chain(by_name).max_by_key(|(_, is_secret)| *is_secret)
    }

    /// Whether something protected is or would be in a directory.
    fn is_around(&self, directory: &Path) -> bool {
        self.paths.iter().any(|(_, protected, _)| protected.starts_with(directory))
    }
}

/// Folds paths.
pub(super) struct Fold<'a> {
    place: &'a Place,
    protected: Protected,
}

impl<'a> Fold<'a> {
    pub(super) fn new(place: &'a Place, protected: Protected) -> Self {
        Self { place, protected }
    }

    pub(super) fn protected(&self) -> &Protected {
        &self.protected
    }

    pub(super) fn fold(&self, path: &Path, uses: &Uses) -> Folded {
        if path == Path::new("/") || path.starts_with("/proc") || path.starts_with("/sys/fs/cgroup")
        {
            return Folded::Nothing;
        }
        if let Some((group, is_secret)) = self.protected.group(path) {
            return self.guarded(path, uses, group, is_secret);
        }
        let system = SYSTEM.iter().find(|tree| path.starts_with(tree));
        if uses.is_written {
            if let Some(tree) = system.or(SENSITIVE.iter().find(|tree| path.starts_with(tree))) {
                return left(path, uses, &format!("what is below {tree} is the host's"));
            }
            return self.written(path, uses);
        }
        if let Some(tree) = system {
            return Folded::To((*tree).into());
        }
        if path.starts_with("/etc") {
            return self.first_below(path, Path::new("/etc"));
        }
        self.read(path, uses)
    }

    /// What a group protects: secrets are left out, settings may be read, one by one.
    fn guarded(&self, path: &Path, uses: &Uses, group: &str, is_secret: bool) -> Folded {
        if is_secret {
            return left(path, uses, &format!("a secret (group:{group})"));
        }
        if uses.is_written {
            let because = format!("who writes it has others run programs (group:{group})");
            return left(path, uses, &because);
        }
        let remark = format!("{} is read: settings of others (group:{group})", path.display());
        Folded::Alone { remark }
    }

    fn written(&self, path: &Path, uses: &Uses) -> Folded {
        if path.starts_with("/dev") {
            return Folded::To(path.to_owned());
        }
        if path.starts_with(&self.place.workdir) && !self.is_too_wide(&self.place.workdir) {
            return Folded::To(self.place.workdir.clone());
        }
        // What is made anew needs its directory.
        if !uses.is_made {
            return Folded::To(path.to_owned());
        }
        let around = self.directory(path);
        match around {
            Some(directory) => Folded::To(directory),
            None => Folded::Alone {
                remark: format!(
                    "{} is made anew, and the directory around it is not opened: making it again \
                     under another name fails",
                    path.display()
                ),
            },
        }
    }

    fn read(&self, path: &Path, uses: &Uses) -> Folded {
        if path.starts_with(&self.place.workdir) && !self.is_too_wide(&self.place.workdir) {
            return Folded::To(self.place.workdir.clone());
        }
        if path.starts_with("/dev") || path.starts_with("/sys") {
            return Folded::To(path.to_owned());
        }
        // A directory that was listed means what is in it, unless that is far too much.
        if uses.is_directory {
            return if self.is_too_wide(path) {
                left(path, uses, "a directory that holds what is protected")
            } else {
                Folded::To(path.to_owned())
            };
        }
        Folded::To(self.directory(path).unwrap_or_else(|| path.to_owned()))
    }

    /// The directory that stands for a file: an application's own in a home, else the one around it.
    fn directory(&self, path: &Path) -> Option<PathBuf> {
        if let Some(home) = &self.place.home
            && let Ok(below) = path.strip_prefix(home)
        {
            let parts: Vec<Component<'_>> = below.components().collect();
            let first = parts.first()?.as_os_str();
            let deeper = [".config", ".cache", ".local", "snap"];
            let depth = if first == ".local" {
                3
            } else {
                1 + usize::from(deeper.iter().any(|name| first == *name))
            };
            if parts.len() <= depth {
                return None;
            }
            let directory = home.join(parts.iter().take(depth).collect::<PathBuf>());
            return (!self.is_too_wide(&directory)).then_some(directory);
        }
        let directory = path.parent()?;
        (!self.is_too_wide(directory)).then(|| directory.to_owned())
    }

    /// What is first below a directory on the way to a path.
    fn first_below(&self, path: &Path, tree: &Path) -> Folded {
        let first = path.strip_prefix(tree).ok().and_then(|below| below.components().next());
        let Some(first) = first else { return Folded::Nothing };
        let to = tree.join(first);
        Folded::To(if self.protected.is_around(&to) { path.to_owned() } else { to })
    }

    /// Whether a directory holds more than one thing's own, or something protected.
    fn is_too_wide(&self, directory: &Path) -> bool {
        let depth = directory.components().count();
        let is_shared = ["/var/lib", "/var/tmp", "/var/cache", "/var/log", "/run/user", "/dev/shm"]
            .iter()
            .any(|shared| directory == Path::new(shared));
        let has_home = self.place.home.as_ref().is_some_and(|home| home.starts_with(directory));
        // The root and what is right below it, `/tmp` apart.
        let is_top = depth <= 2 && directory != Path::new("/tmp");
        is_top || is_shared || has_home || self.protected.is_around(directory)
    }
}

fn left(path: &Path, uses: &Uses, because: &str) -> Folded {
    let option = if uses.is_written { "--write" } else { "--read" };
    let options = vec![option.to_owned(), path.display().to_string()];
    Folded::Left { because: because.to_owned(), options: Some(options) }
}

//! What stands in bpffs of a load, of this process or of one that has ended: its layout, its sandboxes'
//! cgroups, and who is who in them.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use aya::maps::{HashMap, Map, MapData, MapError};
use clawbox_common::subject::{Incarnation, Subject};

use super::batch;
use super::enforcer::EnforcerError;
use super::load::LoadError;
use super::pin::{self, PinLinksError};

/// A directory among the pins that tells their layout.
const LAYOUT_MARK: &str = "layout-";

/// Whether nothing is pinned here yet; then this build's layout is marked.
pub(super) fn check_layout(directory: &Path) -> Result<bool, EnforcerError> {
    let own = format!("{:016x}", clawbox_common::layout::LAYOUT);
    let failed = |source| PinLinksError::Directory { path: directory.to_owned(), source };
    let mut is_empty = true;
    for entry in std::fs::read_dir(directory).map_err(failed)? {
        is_empty = false;
        let name = entry.map_err(failed)?.file_name();
        if let Some(found) = name.to_str().and_then(|name| name.strip_prefix(LAYOUT_MARK)) {
            if found == own {
                return Ok(false);
            }
            return Err(LoadError::Layout { found: found.to_owned(), own }.into());
        }
    }
    if !is_empty {
        return Err(LoadError::Layout { found: "unknown".to_owned(), own }.into());
    }
    std::fs::create_dir(directory.join(format!("{LAYOUT_MARK}{own}"))).map_err(failed)?;
    Ok(true)
}

/// Makes the directory and the mark of this build's layout where somebody has taken them away.
pub(super) fn restore(directory: &Path) -> std::io::Result<()> {
    let own = format!("{LAYOUT_MARK}{:016x}", clawbox_common::layout::LAYOUT);
    let mark = directory.join(own);
    if mark.exists() { Ok(()) } else { std::fs::create_dir_all(mark) }
}

/// The cgroups that a load's pinned tables take for sandboxes', by their ids, and which; none where nothing
/// is pinned.
///
/// # Errors
/// The pin is not clawbox's table.
pub fn cgroups(run: &str) -> Result<Vec<(u64, u32)>, LoadError> {
    let failed = |source| LoadError::Map { name: "CGROUPS", source };
    let path = pin::directory_of(run).join("CGROUPS");
    if !path.exists() {
        return Ok(Vec::new());
    }
    let map = MapData::from_pin(path).map_err(failed)?;
    let map = HashMap::<_, u64, u32>::try_from(Map::HashMap(map)).map_err(failed)?;
    map.iter().map(|entry| entry.map_err(failed)).collect()
}

/// The table of identities, by thread group.
pub(super) const SUBJECTS: &str = "SUBJECTS";

/// Identities that stand in the kernel: of processes of a load's sandboxes, wherever they have
/// moved to, and of some that have ended since.
#[derive(Debug)]
pub struct Identified {
    subjects: HashMap<MapData, u32, Subject>,
    /// The same table, to be read as a whole.
    map: OwnedFd,
}

impl Identified {
    /// Those of a run, of this process or of one that was killed; `None` if it has none.
    ///
    /// # Errors
    /// The pin is not clawbox's map, or cannot be opened.
    pub fn of_run(run: &str) -> Result<Option<Self>, LoadError> {
        let failed = |source| LoadError::Map { name: SUBJECTS, source };
        let path = pin::directory_of(run).join(SUBJECTS);
        if !path.exists() {
            return Ok(None);
        }
        let pinned = MapData::from_pin(path).map_err(failed)?;
        let map = pinned.fd().as_fd().try_clone_to_owned();
        let map = map.map_err(|source| LoadError::Batch { name: SUBJECTS, source })?;
        let subjects = HashMap::try_from(Map::HashMap(pinned)).map_err(failed)?;
        Ok(Some(Self { subjects, map }))
    }

    /// Those of every run that has pins; one whose table cannot be opened has none to be found in.
    #[must_use]
    pub fn all() -> Vec<Self> {
        let runs = std::fs::read_dir(Path::new(pin::BPFFS).join(pin::PARENT));
        let names = runs.into_iter().flatten().flatten().map(|entry| entry.file_name());
        names.filter_map(|name| Self::of_run(name.to_str()?).ok().flatten()).collect()
    }

    /// The thread groups, and whom the kernel wrote each identity for.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn processes(&self) -> Result<Vec<(u32, Incarnation)>, LoadError> {
        let all = self.subjects()?.into_iter();
        Ok(all.map(|(process, subject)| (process, subject.incarnation)).collect())
    }

    /// The thread groups and who they are.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn subjects(&self) -> Result<Vec<(u32, Subject)>, LoadError> {
        batch::all(&self.map)
            .map_err(|errno| LoadError::Batch { name: SUBJECTS, source: errno.into() })
    }

    /// Who a thread group is; `None` if that is not known.
    #[must_use]
    pub fn subject(&self, process: u32) -> Option<Subject> {
        self.subjects.get(&process, 0).ok()
    }

    /// Removes an identity.
    ///
    /// # Errors
    /// The map cannot be written; an identity that is not there is no error.
    pub fn forget(&mut self, process: u32) -> Result<(), LoadError> {
        match self.subjects.remove(&process) {
            Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
            Err(source) => Err(LoadError::Map { name: SUBJECTS, source }),
        }
    }
}

//! What a sandbox's policies have named so far. It is held until the sandbox's last process has gone, and
//! takes no more room for policies that name the same again.

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use clawbox_common::rule::{BinaryKey, ScriptKey};
use clawbox_common::subject::Mask;

use super::identities::Identities;
use super::objects::Objects;

/// Files and scripts by what the kernel knows them by, and their slots.
#[derive(Debug, Default)]
pub struct Slots {
    /// Files.
    pub binaries: BTreeMap<BinaryKey, Mask>,
    /// Paths of scripts.
    pub scripts: BTreeMap<ScriptKey, Mask>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Named {
    /// By the last policy.
    pub latest: Slots,
    /// By any.
    pub ever: Slots,
    /// While these are open nothing else gets one of the inode numbers. A file has one handle in a process,
    /// and so is known by its number.
    handles: BTreeMap<RawFd, Arc<OwnedFd>>,
}

impl Named {
    /// Of one policy.
    #[must_use]
    pub fn holding(identities: &Identities, objects: &Objects) -> Self {
        let mut named = Self::default();
        named.hold(identities, objects);
        named
    }

    /// Holds what one more policy names.
    pub fn hold(&mut self, identities: &Identities, objects: &Objects) {
        let Identities { binaries, scripts, .. } = identities;
        self.latest = Slots { binaries: binaries.clone(), scripts: scripts.clone() };
        self.ever.binaries.extend(binaries);
        self.ever.scripts.extend(scripts);
        for handle in identities.handles().iter().chain(objects.handles()) {
            self.handles.entry(handle.as_raw_fd()).or_insert_with(|| Arc::clone(handle));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::file_id::Mounts;
    use crate::policy::binary_pattern::BinaryPattern;
    use std::path::Path;

    fn named_by(path: &Path) -> Identities {
        let pattern = BinaryPattern::parse(&path.display().to_string()).unwrap();
        Identities::find(1, &Mounts::read().unwrap(), [&pattern], &[])
    }

    #[test]
    fn what_is_named_again_takes_no_more_room_and_what_is_named_no_longer_is_held() {
        let directory = tempfile::tempdir().unwrap();
        let [one, other] = ["one", "other"].map(|name| directory.path().join(name));
        for file in [&one, &other] {
            std::fs::write(file, "program").unwrap();
        }
        let mut named = Named::default();
        for _ in 0..10 {
            named.hold(&named_by(&one), &Objects::default());
            named.hold(&named_by(&other), &Objects::default());
        }
        assert_eq!((named.handles.len(), named.ever.binaries.len()), (2, 2));
        let other = named_by(&other).binaries;
        assert!(named.latest.binaries.keys().eq(other.keys()));
        // Whoever opens the file gets the handle that is held.
        let again = named_by(&one);
        assert!(named.handles.contains_key(&again.handles()[0].as_raw_fd()));
    }
}

//! `filesystem_policy` to grants: who may do what at a path and below it. Where the paths lead is
//! found when a sandbox starts.

use clawbox_common::rule::{ANYBODY, RuleKey, RuleValue};
use clawbox_common::subject::Mask;

use super::Builder;
use super::image::NO_GENERATION;
use crate::policy::binary_pattern::BinaryPattern;
use crate::policy::model::{Binary, FromWritable, Located, Policy};
use crate::policy::path::{DenyPattern, SandboxPath};

/// What a grant gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Give {
    /// Nothing: the path is closed, whatever a wider grant says.
    Nothing,
    /// To read and execute.
    Reading,
    /// To write too.
    Writing,
    /// To connect and send to the Unix socket that this is. As a file it is not opened.
    Reaching,
}

/// A path of the policy and what it gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileGrant {
    /// As the policy writes it, normalised.
    pub path: SandboxPath,
    /// What.
    pub give: Give,
    /// To whom; `None` is to everybody.
    pub whom: Option<(Mask, Mask)>,
}

/// The name of a deny glob that means it in every directory: `**/NAME` without other wildcards.
#[must_use]
pub fn name_anywhere(pattern: &DenyPattern) -> Option<String> {
    let DenyPattern::Glob(glob) = pattern else { return None };
    let name = glob.as_str().strip_prefix("**/")?;
    (!name.is_empty() && !name.contains(['/', '*', '?', '[', '{'])).then(|| name.to_owned())
}

impl Builder {
    pub(super) fn files(&mut self, policy: &Policy) {
        let files = &policy.filesystem;
        for (paths, give) in
            [(files.read_only(), Give::Reading), (files.read_write(), Give::Writing)]
        {
            self.grants(paths, give, None);
        }
        for deny in files.deny() {
            match &deny.value {
                DenyPattern::Path(path) => {
                    let (path, give) = (path.clone(), Give::Nothing);
                    self.image.files.push(FileGrant { path, give, whom: None });
                }
                pattern => self.image.names_anywhere.extend(name_anywhere(pattern)),
            }
        }
        for rule in files.rules() {
            let whom = self.slots_of(&rule.value.binaries);
            self.grants(&rule.value.read_only, Give::Reading, whom);
            self.grants(&rule.value.read_write, Give::Writing, whom);
        }
        for path in policy.unix_sockets.iter().flat_map(|sockets| &sockets.value) {
            let (path, give) = (path.clone(), Give::Reaching);
            self.image.files.push(FileGrant { path, give, whom: None });
        }
        let Some(execution) = &policy.execution else { return };
        self.image.execute_writable = execution.value.from_writable == FromWritable::Allow;
        if let Some(programs) = &execution.value.allow {
            self.programs(programs);
        }
    }

    /// The programs that may be started. An empty list is one too: nothing is started then.
    fn programs(&mut self, programs: &[Located<BinaryPattern>]) {
        let mut list = RuleValue::default();
        for program in programs {
            if program.value.is_anybody() {
                list.flags |= ANYBODY;
            } else {
                let slot = self.slot(&program.value, &program.origin);
                list.own.insert(slot);
            }
        }
        let key = RuleKey::programs(NO_GENERATION);
        self.image.rules.insert(key, list);
    }

    fn grants(&mut self, paths: &[Located<SandboxPath>], give: Give, whom: Option<(Mask, Mask)>) {
        let grant =
            |path: &Located<SandboxPath>| FileGrant { path: path.value.clone(), give, whom };
        self.image.files.extend(paths.iter().map(grant));
    }

    /// `None` where everybody is meant.
    fn slots_of(&mut self, binaries: &[Binary]) -> Option<(Mask, Mask)> {
        let who = self.who(binaries);
        let who = self.image.who.get(who)?;
        (!who.anybody).then_some((who.tree, who.own))
    }
}

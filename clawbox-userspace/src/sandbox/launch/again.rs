//! The backstops of a sandbox that runs, for one more command in it: the ruleset that its start has made, or
//! after a restart of the agent the same one of what was written down, or none.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use landlock::{ABI, BitFlags, PathBeneath, PathFd, RulesetCreatedAttr};
use serde::{Deserialize, Serialize};

use super::enter::{Credentials, Filters, Plan};
use super::joined::Joined;
use super::landlock::{self as ceiling, Ceiling};
use super::late_rules::LateRule;
use super::namespaces::{Namespaces, PROC, Part, TMP};
use super::report::{BackstopReport, LayerState};
use super::{Identity, LaunchError, Prepared, Request};

/// Which file was opened for a rule: another one may have its path later.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Which {
    device: u64,
    inode: u64,
    /// Nanoseconds since the epoch at its making; zero where its filesystem does not keep that.
    made: u64,
}

impl Which {
    fn of(opened: impl AsFd) -> io::Result<Self> {
        let found = File::from(opened.as_fd().try_clone_to_owned()?).metadata()?;
        let made = found.created().ok().and_then(|made| made.duration_since(UNIX_EPOCH).ok());
        let made = made.and_then(|made| u64::try_from(made.as_nanos()).ok());
        Ok(Self { device: found.dev(), inode: found.ino(), made: made.unwrap_or(0) })
    }
}

/// A rule of the parent's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Opened {
    path: PathBuf,
    access: u64,
    which: Which,
}

impl Opened {
    pub(super) fn of(path: &Path, access: u64, opened: impl AsFd) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), access, which: Which::of(opened)? })
    }
}

/// A rule of the child's, for what is mounted in the sandbox alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Late {
    path: PathBuf,
    directory: u64,
    file: u64,
}

/// What a start has applied, as far as it can be applied again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// Whom it became; `None` is root.
    pub user: Option<Identity>,
    abi: i32,
    opened: Vec<Opened>,
    late: Vec<Late>,
    /// Ports to connect to and to bind, where Landlock holds them.
    ports: Option<[Vec<u16>; 2]>,
    ping: bool,
}

/// The same, with the ruleset of the start where this process has made it.
#[derive(Debug)]
pub struct Kept {
    /// What was applied.
    pub applied: Applied,
    ruleset: Option<OwnedFd>,
}

impl From<Applied> for Kept {
    fn from(applied: Applied) -> Self {
        Self { applied, ruleset: None }
    }
}

impl Applied {
    pub(super) fn new(
        request: &Request,
        abi: i32,
        opened: Vec<Opened>,
        late: &[&LateRule],
    ) -> Self {
        let late = late.iter().map(|rule| {
            let (directory, file) = rule.rights();
            Late { path: rule.path().to_owned(), directory, file }
        });
        let ports = request
            .port_ceiling
            .then(|| [&request.connect_ports, &request.bind_ports].map(Clone::clone));
        let (user, ping) = (request.user.clone(), request.ping);
        Self { user, abi, opened, late: late.collect(), ports, ping }
    }

    /// The ruleset once more. Every file is the one that the start has opened, or there is none: in a
    /// directory that the sandbox writes, it could have put a link to anything in the place of one.
    fn ruleset(&self) -> Result<Ceiling, LaunchError> {
        let abi = ABI::from(self.abi);
        let mut ruleset = ceiling::create(abi, self.ports.is_some())?;
        for Opened { path, access, which } in &self.opened {
            let changed = || LaunchError::Changed { path: path.clone() };
            let opened = PathFd::new(path).map_err(|_| changed())?;
            if Which::of(&opened)? != *which {
                return Err(changed());
            }
            let access = BitFlags::from_bits_truncate(*access);
            ruleset = ruleset.add_rule(PathBeneath::new(opened, access))?;
        }
        if let Some([connect_ports, bind_ports]) = self.ports.clone() {
            let request = Request { connect_ports, bind_ports, ..Request::default() };
            ruleset = ceiling::add_ports(ruleset, &request, abi)?;
        }
        let late = self.late.iter().map(|late| {
            // By any other way the sandbox may have a say in where the path leads.
            let is_own = late.path == Path::new(TMP) || late.path.starts_with(PROC);
            let rule = LateRule::new(&late.path, late.directory, late.file).filter(|_| is_own);
            rule.ok_or_else(|| LaunchError::Changed { path: late.path.clone() })
        });
        Ceiling::of_late_rules(ruleset, self.abi, late.collect::<Result<_, _>>()?)
    }
}

impl Prepared {
    /// What a child, which now runs, has applied, to be applied again. `report` is the corrected one.
    ///
    /// # Errors
    /// There is no descriptor left.
    pub fn keep(&self, report: &BackstopReport) -> io::Result<Kept> {
        let mut applied = self.applied.clone();
        let own_tmp = report
            .layers
            .iter()
            .any(|layer| layer.layer == Part::Tmp.layer() && layer.state == LayerState::Full);
        let is_skipped = |path: &Path| report.skipped_paths.iter().any(|found| found.path == path);
        applied.late.retain(|late| match late.path == Path::new(TMP) {
            true => own_tmp,
            false => !is_skipped(&late.path),
        });
        Ok(Kept { applied, ruleset: Some(self.entry.plan.ceiling.ruleset.try_clone()?) })
    }
}

impl Kept {
    /// For one more command, in the namespaces of the sandbox's first process.
    ///
    /// # Errors
    /// The same backstops cannot be had again.
    pub fn prepare(&self, joined: Joined) -> Result<Prepared, LaunchError> {
        let ceiling = match &self.ruleset {
            // What the child of the start has added is in it.
            Some(ruleset) => Ceiling::whole(ruleset.try_clone()?, self.applied.abi),
            None => self.applied.ruleset()?,
        };
        let user = self.applied.user.as_ref().map(|user| Credentials {
            uid: user.uid(),
            gid: user.gid(),
            groups: user.groups().to_vec(),
        });
        let plan = Plan {
            namespaces: Namespaces::none(),
            joined: Some(joined),
            drop_bounding_set: true,
            user,
            ceiling,
            filters: Filters::of(self.applied.ping)?,
        };
        Prepared::of(plan, self.applied.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(opened: Vec<Opened>, late: &[&str]) -> Applied {
        let late = late.iter().map(|path| Late { path: path.into(), directory: 4, file: 4 });
        let late = late.collect();
        Applied { user: None, abi: 1, opened, late, ports: None, ping: false }
    }

    #[test]
    fn a_ruleset_is_made_again_of_the_very_files_of_the_start_or_not_at_all() {
        if ceiling::kernel_abi().is_err() {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let listed = directory.path().join("listed");
        std::fs::create_dir(&listed).unwrap();
        let opened = Opened::of(&listed, 4, File::open(&listed).unwrap()).unwrap();
        let applied = applied(vec![opened], &[]);
        applied.ruleset().unwrap();
        // By way of the disk, as after a restart.
        let text = serde_json::to_string(&applied).unwrap();
        let applied: Applied = serde_json::from_str(&text).unwrap();
        applied.ruleset().unwrap();
        std::fs::rename(&listed, directory.path().join("away")).unwrap();
        std::os::unix::fs::symlink("/", &listed).unwrap();
        let error = applied.ruleset().unwrap_err().to_string();
        assert!(error.contains("listed"), "{error}");
        std::fs::remove_file(&listed).unwrap();
        assert!(matches!(applied.ruleset(), Err(LaunchError::Changed { .. })));
    }

    #[test]
    fn a_late_rule_is_made_again_only_where_no_sandbox_has_a_say_in_its_path() {
        if ceiling::kernel_abi().is_err() {
            return;
        }
        applied(Vec::new(), &["/proc/sys", "/tmp"]).ruleset().unwrap();
        for path in ["/srv/link", "/tmp/below"] {
            let made = applied(Vec::new(), &[path]).ruleset();
            assert!(matches!(made, Err(LaunchError::Changed { .. })), "{path}");
        }
    }
}

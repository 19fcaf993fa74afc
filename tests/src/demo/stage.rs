//! The demo's directory: policy, audit trail, tools, a workdir, and a secret next to them. Gone at
//! the end; what killed demos left is removed at the start of the next.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::User;
use tempfile::TempDir;

const PREFIX: &str = "clawbox-demo-";
/// Held while a demo lives. A directory that was kept has none and is never removed.
const LOCK: &str = ".lock";

/// Whom the agent runs as.
pub const USER: &str = "nobody";

/// The demo's directory.
#[derive(Debug)]
pub struct Stage {
    directory: TempDir,
    user: User,
    _lock: Flock<File>,
}

impl Stage {
    /// Makes one, after removing what killed demos left.
    ///
    /// # Errors
    /// There is no place where programs can be started from.
    pub fn make() -> Result<Self> {
        let base = base()?;
        remove_leftovers(&base);
        let user = User::from_name(USER)?
            .with_context(|| format!("this machine has no user `{USER}`; add one with useradd"))?;
        let directory = tempfile::Builder::new()
            .prefix(PREFIX)
            .permissions(Permissions::from_mode(0o755))
            .tempdir_in(&base)
            .with_context(|| format!("cannot make a directory in {}", base.display()))?;
        let lock = File::create(directory.path().join(LOCK))?;
        let lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock)
            .map_err(|(_, error)| error)
            .context("cannot lock the demo's directory")?;
        for part in ["tools", "work", "secret"] {
            let path = directory.path().join(part);
            fs::create_dir(&path)?;
            fs::set_permissions(&path, Permissions::from_mode(0o755))?;
        }
        let stage = Self { directory, user, _lock: lock };
        stage.give(&stage.path("work"))?;
        Ok(stage)
    }

    /// The directory, or something in it.
    #[must_use]
    pub fn path(&self, inside: &str) -> PathBuf {
        self.directory.path().join(inside)
    }

    /// Whom the agent runs as.
    #[must_use]
    pub fn user(&self) -> &User {
        &self.user
    }

    /// Writes a file that everybody may read, and start if `mode` says so.
    ///
    /// # Errors
    /// The disk is full.
    pub fn write(&self, inside: &str, text: &str, mode: u32) -> Result<PathBuf> {
        let path = self.path(inside);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        fs::set_permissions(&path, Permissions::from_mode(mode))?;
        Ok(path)
    }

    /// Makes the agent's user own something.
    ///
    /// # Errors
    /// It is not there.
    pub fn give(&self, path: &Path) -> Result<()> {
        Ok(chown(path, Some(self.user.uid.as_raw()), Some(self.user.gid.as_raw()))?)
    }

    /// Leaves the directory where it is.
    #[must_use]
    pub fn keep(self) -> PathBuf {
        let _ = fs::remove_file(self.path(LOCK));
        self.directory.keep()
    }
}

/// Where the agent can start a program that it has written itself: else a denial would show
/// nothing.
fn base() -> Result<PathBuf> {
    let candidates = [std::env::temp_dir(), "/tmp".into(), "/var/tmp".into()];
    let fits = |path: &PathBuf| {
        let everybody = fs::metadata(path).is_ok_and(|found| found.mode() & 0o001 != 0);
        let executable = statvfs(path).is_ok_and(|fs| !fs.flags().contains(FsFlags::ST_NOEXEC));
        everybody && executable
    };
    candidates.into_iter().find(fits).context(
        "programs can be started neither from /tmp nor from /var/tmp (mounted noexec); name \
         another directory in TMPDIR",
    )
}

fn remove_leftovers(base: &Path) {
    let Ok(entries) = fs::read_dir(base) else {
        return;
    };
    for entry in entries.flatten() {
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        // Not what somebody else has made here under our name.
        if !entry.metadata().is_ok_and(|found| found.is_dir() && found.uid() == 0) {
            continue;
        }
        let Ok(lock) = File::open(entry.path().join(LOCK)) else {
            continue;
        };
        if Flock::lock(lock, FlockArg::LockExclusiveNonblock).is_ok() {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

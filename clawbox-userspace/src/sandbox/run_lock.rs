//! What a run leaves in the system while it lives, and the removal of what a killed one left:
//! a lock file names the run, its cgroup and its pins; who can take the lock may clean up.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

use super::cgroup::{self, Cgroup};
use super::{control, strays};
use crate::kernel::pin;

/// Where locks live. Gone after a reboot, as cgroups and pins are.
pub const DIRECTORY: &str = "/run/clawbox";

const SUFFIX: &str = ".lock";

/// A run's name, held for its lifetime.
#[derive(Debug)]
pub struct RunLock {
    name: String,
    path: PathBuf,
    _held: Flock<File>,
}

/// Why a run cannot be registered.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what} `{}`: {source}", path.display())]
pub struct RunLockError {
    what: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl RunLock {
    /// Registers a run under the sandbox's name and this process's id.
    ///
    /// # Errors
    /// `/run` cannot be written.
    pub fn take(sandbox: &str) -> Result<Self, RunLockError> {
        let directory = Path::new(DIRECTORY);
        let failed = |what, path: &Path| {
            let path = path.to_owned();
            move |source| RunLockError { what, path, source }
        };
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(failed("make", directory))?;
        let name = format!("{sandbox}-{}", std::process::id());
        let path = directory.join(format!("{name}{SUFFIX}"));
        let held = lock(&path).map_err(failed("lock", &path))?;
        Ok(Self { name, path, _held: held })
    }

    /// The name of this run's cgroup and directory of pins.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Unregisters. Call it last: what is still there afterwards nobody will look for.
    pub fn release(self) {
        remove_socket(&self.name);
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!("cannot remove `{}`: {error}", self.path.display());
        }
    }
}

/// Makes and locks a file. One that is made by a run while another run cleans up may be taken for
/// a remainder and removed between the two steps; then the lock is on a file without a name.
fn lock(path: &Path) -> io::Result<Flock<File>> {
    loop {
        let file =
            File::options().create(true).truncate(false).write(true).mode(0o600).open(path)?;
        let held = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| errno)?;
        if fs::metadata(path)
            .is_ok_and(|named| held.metadata().is_ok_and(|locked| locked.ino() == named.ino()))
        {
            return Ok(held);
        }
    }
}

/// Ends the processes of runs whose clawbox was killed and removes what they left. Enforcement
/// ends after the last process has: until then the pins have held it up.
pub fn remove_stale(cgroup_root: &Path) {
    let Ok(entries) = fs::read_dir(DIRECTORY) else { return };
    for entry in entries.flatten() {
        let file_name = entry.file_name();
        let Some(name) = file_name.to_str().and_then(|name| name.strip_suffix(SUFFIX)) else {
            continue;
        };
        let Ok(file) = File::options().write(true).open(entry.path()) else { continue };
        let Ok(_held) = Flock::lock(file, FlockArg::LockExclusiveNonblock) else { continue };
        match remove_remains(cgroup_root, name) {
            Ok(()) => {
                tracing::info!("removed what the killed run `{name}` left");
                let _ = fs::remove_file(entry.path());
            }
            Err(error) => tracing::warn!("a killed run left `{name}` behind: {error}"),
        }
    }
}

/// A run that ended before it listened has none.
fn remove_socket(run: &str) {
    let path = control::path_of(run);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!("cannot remove `{}`: {error}", path.display());
        }
        _ => {}
    }
}

fn remove_remains(cgroup_root: &Path, name: &str) -> Result<(), Box<dyn std::error::Error>> {
    let path = cgroup_root.join(cgroup::PARENT).join(name);
    if path.exists() {
        Cgroup::open(path)?.remove()?;
    }
    strays::end_run(name)?;
    pin::remove(&pin::directory_of(name))?;
    remove_socket(name);
    Ok(())
}

//! Takes off what a daemon has put into the kernel, when no daemon runs: its sandboxes first, then what
//! enforces them.

use std::fs;
use std::io;
use std::path::Path;

use super::config::Config;
use super::store::{Store, StoreError};
use super::{DaemonError, system, take_lock};
use crate::kernel::{pin, pinned};
use crate::sandbox::cgroup::{self, Cgroup};
use crate::sandbox::probe::PROBE;
use crate::sandbox::run::RunError;
use crate::sandbox::strays;

/// What was taken off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Removed {
    /// Sandboxes that were ended.
    pub sandboxes: usize,
    /// Whether anything was enforced.
    pub was_enforced: bool,
}

/// Takes the sandboxes, which have ended, out of what is written down.
fn forget(state: &Path) -> Result<(), StoreError> {
    let mut store = Store::open(state, false)?;
    for kept in store.sandboxes()? {
        store.remove(&kept.id)?;
        drop(fs::remove_file(state.join(format!("{}.names", kept.id))));
    }
    Ok(())
}

/// Ends every sandbox of the daemon that this configuration is of, and then enforcement.
///
/// # Errors
/// The daemon runs, or a process does not end: enforcement stays on then.
pub fn uninstall(config: &Config) -> Result<Removed, DaemonError> {
    let root = cgroup::hierarchy_root()?;
    let _lock = take_lock(&config.name)?;
    let pins = pin::directory_of(&config.name);
    let was_enforced = pins.exists();
    let own = root.join(cgroup::PARENT);
    let mut sandboxes = 0;
    for (id, number) in pinned::cgroups(&config.name).map_err(RunError::from)? {
        if number == PROBE {
            continue;
        }
        if let Some(cgroup) = Cgroup::by_id(&own, id) {
            cgroup.remove()?;
            sandboxes += 1;
        }
    }
    strays::end_run(&config.name).map_err(RunError::from)?;
    pin::remove(&pins).map_err(system("remove the pinned programs"))?;
    let keeper = own.join(format!(".{}", config.name));
    if keeper.exists() {
        Cgroup::open(keeper)?.remove()?;
    }
    if config.state.exists()
        && let Err(error) = forget(&config.state)
    {
        // Nothing is enforced any more by then, which is what was asked.
        tracing::warn!("what the sandboxes were stays written down: {error}");
    }
    match fs::remove_file(&config.socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(system("remove the control socket")(error));
        }
        _ => {}
    }
    Ok(Removed { sandboxes, was_enforced })
}

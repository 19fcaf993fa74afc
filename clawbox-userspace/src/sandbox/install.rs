//! What a run puts into the system, and how it is taken down again, whatever happened before:
//! processes first, then enforcement, then the name.

use std::path::Path;

use super::cgroup::{self, Cgroup};
use super::identities::Identities;
use super::objects::Objects;
use super::run::{LsmUse, Run, RunError, SANDBOX};
use super::run_lock::RunLock;
use super::strays;
use crate::compile::AgentPorts;
use crate::kernel::enforcer::{Enforcer, Generation};
use crate::kernel::load::{Place, Sizes, Wanted};

/// What is in the system; dropping it takes it down.
pub(super) struct Installed {
    pub(super) cgroup: Option<Cgroup>,
    pub(super) enforcer: Option<Enforcer>,
    lock: Option<RunLock>,
}

impl Installed {
    /// The name alone.
    pub(super) fn new(lock: RunLock) -> Self {
        Self { cgroup: None, enforcer: None, lock: Some(lock) }
    }

    /// The run's own name, which nobody else has.
    pub(super) fn name(&self) -> &str {
        self.lock.as_ref().map(RunLock::name).unwrap_or_default()
    }

    /// Makes the cgroup and loads the kernel side, which governs nobody yet.
    pub(super) fn load(
        &mut self,
        root: &Path,
        run: &Run,
        identities: &Identities,
        objects: &Objects,
    ) -> Result<(), RunError> {
        let entries = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let sizes = Sizes {
            rules: entries(run.image.rules.len()),
            addresses: entries(run.image.addresses.len()),
            binaries: entries(identities.binaries.len()),
            scripts: entries(identities.scripts.len()),
            files: entries(objects.files.len()),
            names: entries(objects.names.len()),
            sandboxes: 1,
        };
        let name = self.name().to_owned();
        // First the cgroup: it holds the parent in place, whose id the programs are given.
        let cgroup = self.cgroup.insert(Cgroup::create(root, &name)?);
        let place = Place { level: cgroup::LEVEL, parent: cgroup.parent_id()? };
        let wanted = Wanted { lsm: run.lsm != LsmUse::Off, refusals: run.refusals };
        self.enforcer = Some(Enforcer::load(root, place, sizes, &name, wanted)?);
        Ok(())
    }

    /// Puts the cgroup under the policy.
    pub(super) fn enforce(
        &mut self,
        run: &Run,
        identities: &Identities,
        objects: &Objects,
        ports: AgentPorts,
    ) -> Result<Generation, RunError> {
        let (enforcer, cgroup) = self.parts()?;
        let written = enforcer.write_generation(&run.image, &objects.files, &objects.names)?;
        enforcer.write_identities(&identities.binaries, &identities.scripts)?;
        let with_lsm = enforcer.lsm().is_active();
        let state = run.image.state(ports, run.audit_level.flags(), with_lsm);
        enforcer.set_state(SANDBOX, &state)?;
        enforcer.admit_cgroup(cgroup.id(), SANDBOX)?;
        Ok(written)
    }

    /// What [`Installed::load`] put there.
    pub(super) fn parts(&mut self) -> Result<(&mut Enforcer, &Cgroup), RunError> {
        match (&mut self.enforcer, &self.cgroup) {
            (Some(enforcer), Some(cgroup)) => Ok((enforcer, cgroup)),
            _ => Err(cgroup::CgroupError::NotMounted.into()),
        }
    }

    /// Ends every process of the sandbox, in its cgroup or not.
    pub(super) fn end_processes(&mut self) -> Result<(), RunError> {
        if let Some(cgroup) = self.cgroup.take() {
            cgroup.remove()?;
        }
        match &self.lock {
            Some(lock) => Ok(strays::end(lock.name())?),
            None => Ok(()),
        }
    }
}

impl Drop for Installed {
    fn drop(&mut self) {
        // Processes first: enforcement ends when nobody is left to be held by it.
        if let Err(error) = self.end_processes() {
            tracing::error!(
                "{error}; enforcement stays on for what is left, the next run removes it"
            );
            if let Some(enforcer) = self.enforcer.take() {
                std::mem::forget(enforcer);
            }
            return;
        }
        if let Some(enforcer) = self.enforcer.take()
            && let Err(error) = enforcer.remove()
        {
            tracing::error!("cannot remove the pinned links: {error}; the next run tries again");
            return;
        }
        if let Some(lock) = self.lock.take() {
            lock.release();
        }
    }
}

//! The end of a sandbox: its processes, what was told of it, and what it has in the kernel's tables, in this
//! order. Until the last process has ended, all that confines it stays.

use super::beginning::Beginning;
use super::host::Host;
use super::run::RunError;
use super::strays;

/// What is left of a sandbox that has ended, and whether all of its processes have.
pub struct Remains {
    beginning: Beginning,
    ended: Result<(), RunError>,
}

impl Host {
    /// Ends whatever a sandbox's command left running, and records it up to its end. Gives the denials in
    /// its trail.
    ///
    /// # Errors
    /// A process does not end: enforcement stays on for it.
    pub fn end(&mut self, number: u32, status: Option<u8>) -> Result<u64, RunError> {
        let (denied, remains) = self.finish(number, status);
        self.clear(remains).map(|()| denied)
    }

    /// Ends all that is in a sandbox, and writes that down, with what was told of it until then. What it has
    /// in the kernel's tables stays until [`Host::clear`], which has to come before anything is started.
    /// Gives how many denials its trail has.
    pub fn finish(&mut self, number: u32, status: Option<u8>) -> (u64, Option<Remains>) {
        let Some(sandbox) = self.sandboxes.remove(&number) else { return (0, None) };
        let (beginning, stop) = sandbox.stop();
        let ended = self.end_processes(&beginning);
        self.feed.drain_all(&mut self.recorders);
        self.feed.count_losses(&mut self.recorders);
        self.feed.tell_ended(&mut self.recorders, number);
        let mut denied = 0;
        if let Some(mut recorder) = self.recorders.remove(number) {
            recorder.trail.add(stop.stop_record(status));
            recorder.trail.flush();
            denied = recorder.trail.denied();
        }
        (denied, Some(Remains { beginning, ended }))
    }

    /// Takes what is left of a sandbox out of the kernel.
    ///
    /// # Errors
    /// A process does not end: enforcement stays on for it.
    pub fn clear(&mut self, remains: Option<Remains>) -> Result<(), RunError> {
        let Some(Remains { beginning, ended }) = remains else { return Ok(()) };
        let number = beginning.number;
        let cleared = ended.and_then(|()| self.clear_away(beginning));
        if cleared.is_err() {
            self.left.insert(number);
        }
        cleared
    }

    fn end_processes(&self, beginning: &Beginning) -> Result<(), RunError> {
        if !beginning.is_begun {
            return Ok(());
        }
        if beginning.cgroup.is_there() {
            beginning.cgroup.end_processes()?;
        }
        if beginning.is_over {
            return Ok(());
        }
        let identified = self.kernel.connections.identified();
        Ok(strays::end_sandbox(identified, beginning.number)?)
    }

    /// Ends what was begun, processes first.
    pub(super) fn take_back(&mut self, beginning: Beginning) -> Result<(), RunError> {
        self.end_processes(&beginning)?;
        self.clear_away(beginning)
    }

    /// Takes out what is left when no process of it is.
    fn clear_away(&mut self, beginning: Beginning) -> Result<(), RunError> {
        let Beginning { number, cgroup, written, named, is_own, .. } = beginning;
        let id = cgroup.id();
        if is_own {
            cgroup.remove()?;
        }
        let enforcer = &mut self.kernel.enforcer;
        enforcer.dismiss(id, number)?;
        written.iter().for_each(|written| enforcer.remove_generation(written));
        enforcer.remove_identities(&named.ever.binaries, &named.ever.scripts);
        Ok(())
    }
}

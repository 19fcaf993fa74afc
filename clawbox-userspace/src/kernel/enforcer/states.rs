//! Which policy each sandbox is under. While nothing can be recorded none is in force anywhere, but for what is
//! open already; what is to be in force then is kept here, and its rules in the kernel too, where they outlive
//! the agent.

use std::collections::BTreeMap;

use aya::maps::{Array, MapData};
use clawbox_common::rule::{STATE_SLOTS, SandboxState, SandboxStates};

use super::Enforcer;
use crate::kernel::load::LoadError;

const NAME: &str = "SANDBOX_STATES";

/// The states that come back; `None` where those that are meant are in force.
pub(super) type Waiting = Option<BTreeMap<u32, SandboxState>>;

fn failed(source: aya::maps::MapError) -> LoadError {
    LoadError::Map { name: NAME, source }
}

impl Enforcer {
    fn found(&self, sandbox: u32) -> Result<SandboxState, LoadError> {
        let map = self.ebpf.map(NAME).ok_or(LoadError::Absent { kind: "map", name: NAME })?;
        let map = Array::<_, SandboxStates>::try_from(map).map_err(failed)?;
        let states = map.get(&sandbox, 0).map_err(failed)?;
        Ok(states.states[states.current as usize % STATE_SLOTS])
    }

    /// The state that is meant for a sandbox, in force or waiting; all zero if it has none.
    ///
    /// # Errors
    /// The map has no room for a sandbox of this number.
    pub fn state(&self, sandbox: u32) -> Result<SandboxState, LoadError> {
        let kept = self.waiting.as_ref().and_then(|waiting| waiting.get(&sandbox));
        if let Some(kept) = kept {
            return Ok(*kept);
        }
        let found = self.found(sandbox)?;
        // Of an agent before this one no more is known, and nobody is served.
        Ok(found.waiting().unwrap_or(found))
    }

    /// Puts a sandbox under a policy: when it returns, that is in force; or waits, while none is to be.
    ///
    /// # Errors
    /// The map has no room for a sandbox of this number.
    pub fn set_state(&mut self, sandbox: u32, state: &SandboxState) -> Result<(), LoadError> {
        let Some(waiting) = &mut self.waiting else { return self.put_state(sandbox, state) };
        if state.policy == 0 {
            waiting.remove(&sandbox);
            return self.put_state(sandbox, state);
        }
        waiting.insert(sandbox, *state);
        self.put_state(sandbox, &state.paused())
    }

    fn put_state(&mut self, sandbox: u32, state: &SandboxState) -> Result<(), LoadError> {
        let map = self.ebpf.map_mut(NAME).ok_or(LoadError::Absent { kind: "map", name: NAME })?;
        let mut map: Array<&mut MapData, SandboxStates> = Array::try_from(map).map_err(failed)?;
        let mut states = map.get(&sandbox, 0).map_err(failed)?;
        let next = states.next();
        states.states[next] = *state;
        map.set(sandbox, states, 0).map_err(failed)?;
        // The kernel copies a value without a lock: only now is the whole state there.
        states.current = next as u64;
        map.set(sandbox, states, 0).map_err(failed)
    }

    /// Whether no policy is in force because of [`Enforcer::pause`].
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.waiting.is_some()
    }

    /// Whether an agent before this one has left any of these so; if it has, none is in force on.
    ///
    /// # Errors
    /// The map has no room for a sandbox of this number.
    pub fn find_paused(&mut self, sandboxes: &[u32]) -> Result<(), LoadError> {
        for sandbox in sandboxes {
            if self.found(*sandbox)?.waiting().is_some() {
                self.waiting.get_or_insert_default();
            }
        }
        Ok(())
    }

    /// From now on no policy is in force in these, nor in those to come: what they ask is denied.
    ///
    /// # Errors
    /// Of one it may be in force on; call it again.
    pub fn pause(&mut self, sandboxes: &[u32]) -> Result<(), LoadError> {
        self.waiting.get_or_insert_default();
        for sandbox in sandboxes {
            let state = self.state(*sandbox)?;
            self.set_state(*sandbox, &state)?;
        }
        Ok(())
    }

    /// Each is under its policy again.
    ///
    /// # Errors
    /// Some may not be; call it again.
    pub fn resume(&mut self) -> Result<(), LoadError> {
        for (sandbox, state) in self.waiting.clone().unwrap_or_default() {
            self.put_state(sandbox, &state)?;
        }
        self.waiting = None;
        Ok(())
    }
}

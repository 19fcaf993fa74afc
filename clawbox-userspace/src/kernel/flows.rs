//! The kernel's counts of allowed connects and sends that were like one that it has told. They are taken out
//! of its table when nobody counts there any more, so that each is told once, also over restarts.

use std::os::fd::OwnedFd;

use aya::maps::{Array, MapData, MapError};
use clawbox_common::flow::{Flow, FlowKey};

use super::batch;

/// The counts of one load.
pub struct Flows {
    table: OwnedFd,
    span: Array<MapData, u32>,
}

impl Flows {
    pub(super) fn new(table: OwnedFd, span: Array<MapData, u32>) -> Self {
        Self { table, span }
    }

    /// What was counted in the span before this call's last but one, and begins another one: by then no
    /// program counts there that has begun before.
    ///
    /// # Errors
    /// A table cannot be read or changed.
    pub fn of_last_span(&mut self) -> Result<Vec<(FlowKey, Flow)>, MapError> {
        let span = self.span.get(&0, 0)?;
        let mut all = self.all()?;
        if all.iter().any(|(key, _)| key.span == span) {
            self.span.set(0, span.wrapping_add(1), 0)?;
        }
        all.retain(|(key, _)| key.span != span);
        Ok(all)
    }

    /// What was counted of a sandbox. Nothing may run in it any more.
    ///
    /// # Errors
    /// The table cannot be read.
    pub fn of(&mut self, sandbox: u32) -> Result<Vec<(FlowKey, Flow)>, MapError> {
        let mut all = self.all()?;
        all.retain(|(_, flow)| flow.sandbox == sandbox);
        Ok(all)
    }

    /// These have been told.
    pub fn taken(&mut self, told: &[(FlowKey, Flow)]) {
        let keys: Vec<FlowKey> = told.iter().map(|(key, _)| *key).collect();
        batch::remove(&self.table, &keys);
    }

    fn all(&self) -> Result<Vec<(FlowKey, Flow)>, MapError> {
        let mut all = batch::all(&self.table).map_err(batch::failed)?;
        all.sort_unstable_by_key(|(key, _)| *key);
        // One may have been read twice: others come in meanwhile.
        all.dedup_by_key(|(key, _)| *key);
        Ok(all)
    }
}

//! The kernel's counts of allowed connects and sends that were like one that it has told. They are taken out
//! of its table when nobody counts there any more, so that each is told once, also over restarts.

use aya::maps::{Array, HashMap, MapData, MapError};
use clawbox_common::flow::{Flow, FlowKey};

/// The counts of one load.
pub struct Flows {
    table: HashMap<MapData, FlowKey, Flow>,
    span: Array<MapData, u32>,
}

impl Flows {
    pub(super) fn new(table: HashMap<MapData, FlowKey, Flow>, span: Array<MapData, u32>) -> Self {
        Self { table, span }
    }

    /// What was counted in the span before this call's last but one, and begins another one: by then no
    /// program counts there that has begun before.
    ///
    /// # Errors
    /// A table cannot be read or changed.
    pub fn of_last_span(&mut self) -> Result<Vec<(FlowKey, Flow)>, MapError> {
        let span = self.span.get(&0, 0)?;
        let (taken, is_empty) = self.take(|key, _| key.span != span)?;
        if !is_empty {
            self.span.set(0, span.wrapping_add(1), 0)?;
        }
        Ok(taken)
    }

    /// What was counted of a sandbox. Nothing may run in it any more.
    ///
    /// # Errors
    /// A table cannot be read or changed.
    pub fn of(&mut self, sandbox: u32) -> Result<Vec<(FlowKey, Flow)>, MapError> {
        Ok(self.take(|_, flow| flow.sandbox == sandbox)?.0)
    }

    /// Those that are to be told, taken out, and whether no others are there.
    fn take(
        &mut self,
        is_due: impl Fn(&FlowKey, &Flow) -> bool,
    ) -> Result<(Vec<(FlowKey, Flow)>, bool), MapError> {
        let all = self.table.iter().collect::<Result<Vec<_>, _>>()?;
        let (mut due, others): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|(key, flow)| is_due(key, flow));
        // One may have been read twice: others come in meanwhile.
        due.retain(|(key, _)| self.table.remove(key).is_ok());
        due.retain(|(_, flow)| flow.again > 0);
        due.sort_unstable_by_key(|(key, _)| *key);
        Ok((due, others.is_empty()))
    }
}

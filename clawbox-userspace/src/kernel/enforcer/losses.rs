//! The counters of what is lost of each sandbox: there from before its first event until after its last, so
//! that the programs find them and never have to make one.

use std::os::fd::AsFd as _;

use clawbox_common::event::Kind;
use clawbox_common::rule::{LOST_ALLOW, LOST_TOLD, LossKey};

use super::Enforcer;
use crate::kernel::batch;
use crate::kernel::load::LoadError;

const NAME: &str = "LOSSES";

/// What a sandbox's losses are counted by.
fn keys(sandbox: u32) -> Vec<LossKey> {
    let verdicts = Kind::ALL.iter().flat_map(|kind| [*kind as u32, *kind as u32 | LOST_ALLOW]);
    let kinds = verdicts.flat_map(|kind| [kind, kind | LOST_TOLD]);
    kinds.map(|kind| LossKey { sandbox, kind }).collect()
}

impl Enforcer {
    /// Has counters of what is lost of a sandbox. One that is there has counted already, what is nobody's or
    /// before a repair.
    pub(super) fn begin_losses(&self, sandbox: u32) -> Result<(), LoadError> {
        let mut keys = keys(sandbox);
        let map = self.map_data(NAME)?.fd().as_fd();
        let has = |key: &LossKey| batch::has::<_, u64>(map, key);
        // They are written in this order: with the last all are there, and without the first none.
        if keys.last().is_some_and(has) {
            return Ok(());
        }
        if keys.first().is_some_and(has) {
            // What was ended in the middle of this.
            keys.retain(|key| !has(key));
        }
        let written = batch::write_in_order(map, &keys, &vec![0_u64; keys.len()]);
        written.map_err(|errno| LoadError::Batch { name: NAME, source: errno.into() })
    }

    /// They go with the sandbox.
    pub(super) fn end_losses(&self, sandbox: u32) {
        self.remove_keys(NAME, &keys(sandbox));
    }
}

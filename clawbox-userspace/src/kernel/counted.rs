//! Of which sandboxes the kernel has counted anything that it allowed: of the others there is nothing in its
//! tables, which take a while to be gone through.

use aya::maps::{Array, MapData};
use clawbox_common::flow::{COUNTED_FLOWS, COUNTED_USES};

/// The marks of one load, one for each sandbox's number.
pub struct Counted {
    marks: Array<MapData, [u32; 2]>,
}

impl Counted {
    pub(super) fn new(marks: Array<MapData, [u32; 2]>) -> Self {
        Self { marks }
    }

    /// Whether connects and sends of a sandbox may have been counted, and uses of files. Nothing may run in it
    /// any more.
    #[must_use]
    pub fn of(&self, sandbox: u32) -> (bool, bool) {
        // What cannot be read may be.
        let marks = self.marks.get(&sandbox, 0).unwrap_or([1; 2]);
        (marks[COUNTED_FLOWS] != 0, marks[COUNTED_USES] != 0)
    }

    /// What was counted of a sandbox is told, and nothing runs in it.
    pub fn told(&mut self, sandbox: u32) {
        // Where it stays, the tables are gone through in vain.
        let _ = self.marks.set(sandbox, [0; 2], 0);
    }
}

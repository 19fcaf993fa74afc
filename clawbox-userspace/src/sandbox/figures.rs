//! How a host's sandboxes and the kernel's tables are, in numbers, for who watches the daemon.

use super::host::Host;
use crate::audit::counted::Counted;
use crate::audit::trail::Draft;
use crate::kernel::fill::{Fill, Ring};

/// The numbers at one moment.
#[derive(Clone, Debug)]
pub struct Figures {
    /// What was told of all sandboxes since this process's start, of ended ones too.
    pub all: Counted,
    /// The kernel's tables.
    pub fills: Vec<Fill>,
    /// The event ring.
    pub ring: Ring,
}

impl Host {
    /// The numbers now. Tables are counted at most every [`crate::kernel::fill::FRESH`]; the first time all
    /// are counted at once, later a part with each look.
    pub fn figures(&mut self) -> Figures {
        Figures {
            all: self.recorders.counted(),
            fills: self.feed.counts.fills.counted(),
            ring: self.feed.counts.ring.now(),
        }
    }

    /// Writes down what is about the agent itself.
    pub fn tell(&mut self, draft: Draft) {
        if let Some(recorder) = self.recorders.rest() {
            recorder.trail.add(draft);
            recorder.trail.flush();
        }
    }

    /// What was told of one sandbox so far.
    pub fn counted(&mut self, number: u32) -> Option<&Counted> {
        self.recorders.of(number).map(|recorder| &recorder.trail.counted)
    }
}

//! What the daemon looks after once in a while, though nobody asks: all of its sandboxes where something has
//! happened, and else only those of which nothing would tell.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::Daemon;
use crate::sandbox::life::Sandbox;

/// Where nothing has happened that is known of, all are looked after this often: memory that nobody has touched
/// for a second is slow, and a thousand sandboxes have much of it.
const ALL: Duration = Duration::from_secs(30);

/// And where something has, this often at most: whoever asks without a pause waits for it.
const ALL_AT_MOST: Duration = Duration::from_secs(3);

/// Whose turn it is.
pub(super) struct Rounds {
    is_disturbed: bool,
    /// Since the last round.
    was_quiet: bool,
    all_since: Instant,
    /// Sandboxes of whose end nothing tells, as far as the last round of all has seen.
    untold: Vec<u32>,
    /// Sandboxes that are asked to end.
    pub(super) ending: BTreeSet<u32>,
}

impl Rounds {
    pub(super) fn new() -> Self {
        let (untold, ending) = Default::default();
        Self { is_disturbed: true, was_quiet: false, all_since: Instant::now(), untold, ending }
    }

    /// Something has happened.
    pub(super) fn disturb(&mut self) {
        (self.is_disturbed, self.was_quiet) = (true, false);
    }

    fn is_of_all(&mut self) -> bool {
        let pause = if self.is_disturbed { ALL_AT_MOST } else { ALL };
        let is_of_all = self.all_since.elapsed() >= pause;
        if is_of_all {
            (self.is_disturbed, self.all_since) = (false, Instant::now());
        }
        is_of_all
    }

    /// Those that have to be looked after although nothing has happened.
    fn few(&self) -> Vec<u32> {
        self.untold.iter().chain(&self.ending).copied().collect()
    }
}

impl Daemon {
    /// One round. To be made about once in a second.
    pub(super) fn go_round(&mut self) {
        self.look_after_further();
        if self.rounds.is_of_all() {
            self.look_after_ended();
            self.look_after_others();
            self.host.check_servers();
            self.tell_policies();
        } else {
            self.rounds.few().into_iter().for_each(|number| self.look_after(number));
        }
        self.look_after_store();
        // It takes the disk some milliseconds, for which whoever asks again and again would wait.
        if std::mem::replace(&mut self.rounds.was_quiet, true) {
            self.store.rest();
        }
        self.look_after_global();
        self.look_after_recording();
        self.descriptors.look();
    }

    /// Those whose user has gone, and those whose first process is nobody's child here: nothing tells of its
    /// end, and it takes a system call for each.
    pub(super) fn look_after_others(&mut self) {
        let numbers: Vec<u32> = self.members.keys().copied().collect();
        let has_child = |number: &u32| self.host.sandbox(*number).is_some_and(Sandbox::has_child);
        let (told, untold): (Vec<u32>, Vec<u32>) = numbers.into_iter().partition(has_child);
        self.rounds.untold.clone_from(&untold);
        told.into_iter().for_each(|number| self.hurry(number));
        untold.into_iter().for_each(|number| self.look_after(number));
    }
}

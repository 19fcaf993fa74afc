//! A sandbox as the daemon knows it: whose it is, who waits for its end, and how far that is.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::Daemon;
use crate::api::peer::Peer;
use crate::api::proto;
use crate::api::server::{Events, Reply};
use crate::sandbox::birth::End;
use crate::sandbox::child;
use crate::sandbox::ending::Remains;
use crate::sandbox::life::Sandbox;

/// From the request to end to the end by force, if nothing else is said.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// See the module.
pub struct Member {
    /// The user who started it.
    pub owner: u32,
    /// Where its trail is.
    pub trail: String,
    /// NAME-NUMBER.
    pub id: String,
    /// Which of its policies is in force.
    pub revision: u32,
    /// Who has set its policy, where the disk has not taken that yet.
    pub unwritten: Option<u32>,
    /// The number of the policy whose text was stored last, and when.
    pub told: Option<(u32, Instant)>,
    /// Who waits for its end.
    pub events: Vec<Events>,
    /// Whether it is to end with the last of them.
    pub is_watched: bool,
    /// When it is ended by force.
    pub deadline: Option<Instant>,
    /// Who has asked for its end and waits.
    pub stopping: Vec<Reply<proto::StopReply>>,
}

impl Member {
    /// One that nobody waits for.
    #[must_use]
    pub fn new(id: String, owner: u32, trail: String, revision: u32) -> Self {
        Self {
            owner,
            trail,
            id,
            revision,
            unwritten: None,
            told: None,
            events: Vec::new(),
            is_watched: false,
            deadline: None,
            stopping: Vec::new(),
        }
    }

    /// Whether somebody has a say in it.
    #[must_use]
    pub fn is_for(&self, peer: &Peer) -> bool {
        peer.manages() || self.owner == peer.uid
    }
}

/// A sandbox that has ended, of which something is left.
pub(super) struct Ended {
    number: u32,
    remains: Option<Remains>,
    /// With the status that whoever stops it is told.
    member: Option<(Member, u32)>,
}

impl Daemon {
    /// Ends those whose first process has ended, as far as the kernel says which. It names one at a time: the
    /// others are asked only where that is none of theirs.
    pub(super) fn look_after_ended(&mut self) {
        use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        let mut last = None;
        while let Ok(WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, ..)) =
            waitid(Id::All, flags)
        {
            if last.replace(pid) == Some(pid) {
                // Whose it is has not waited for it: not to be asked for ever.
                return self.look_after_members();
            }
            let pid = pid.as_raw().cast_unsigned();
            let number = self.host.sandboxes().find(|sandbox| sandbox.is_child(pid));
            let Some(number) = number.map(Sandbox::number) else {
                return self.look_after_members();
            };
            self.look_after(number);
        }
    }

    /// Sandboxes whose command has ended end, and those whose user has gone are asked to.
    pub(super) fn look_after_members(&mut self) {
        let numbers: Vec<u32> = self.members.keys().copied().collect();
        numbers.into_iter().for_each(|number| self.look_after(number));
    }

    pub(super) fn look_after(&mut self, number: u32) {
        match self.host.ended(number) {
            Ok(None) => self.hurry(number),
            Ok(Some(status)) => self.end(number, Some(status)),
            Err(error) => {
                tracing::error!("sandbox {number} cannot be waited for: {error}");
                self.end(number, None);
            }
        }
    }

    /// Ends one that has been asked to and does not; asks one whose user has gone.
    pub(super) fn hurry(&mut self, number: u32) {
        let is_left = self.is_left(number);
        let Some(member) = self.members.get_mut(&number) else { return };
        match member.deadline {
            Some(deadline) if is_left || Instant::now() >= deadline => self.end(number, None),
            Some(_) => {}
            None => {
                member.events.retain(|events| !events.is_closed());
                if member.is_watched && member.events.is_empty() {
                    self.ask_to_end(number, Signal::SIGHUP, PATIENCE);
                }
            }
        }
    }

    /// Whether nobody is in a sandbox any more that is asked to end, and whose cgroup stays.
    fn is_left(&self, number: u32) -> bool {
        if self.members.get(&number).is_none_or(|member| member.deadline.is_none()) {
            return false;
        }
        let found = self.host.sandbox(number);
        found.is_some_and(|sandbox| sandbox.is_attached() && sandbox.is_empty())
    }

    /// Sends a signal to a sandbox's first process, and ends all of it when the time is up.
    pub(super) fn ask_to_end(&mut self, number: u32, signal: Signal, patience: Duration) {
        if let Some(sandbox) = self.host.sandbox(number)
            && let Err(error) = sandbox.signal(signal)
        {
            tracing::debug!("sandbox {number} was not told to end: {error}");
        }
        if let Some(member) = self.members.get_mut(&number) {
            let deadline = Instant::now() + patience;
            member.deadline =
                Some(member.deadline.map_or(deadline, |earlier| earlier.min(deadline)));
            self.rounds.ending.insert(number);
        }
    }

    /// Ends a sandbox and tells who waits for it.
    pub(super) fn end(&mut self, number: u32, status: Option<End>) {
        let status = status.map(child::code);
        self.rounds.ending.remove(&number);
        let attached = self.host.sandbox(number).filter(|sandbox| sandbox.is_attached());
        let attached = attached.map(|sandbox| sandbox.cgroup().clone());
        let (denied, remains) = self.host.finish(number, status);
        let mut ended = Ended { number, remains, member: None };
        if let Some(cgroup) = attached {
            self.clear_after(&mut ended);
            self.hold_again(&cgroup);
        }
        let Some(member) = self.members.remove(&number) else { return self.ended.push(ended) };
        // Ended by force, as the shell counts.
        let status = u32::from(status.unwrap_or(128 + Signal::SIGKILL as u8));
        tracing::info!(sandbox = member.id, status, denied, "ended");
        for events in &member.events {
            let ended = proto::run_event::Event::Ended(proto::Ended { status, denied });
            // Who has gone does not hear of it.
            let _ = events.try_send(Box::new(Ok(proto::RunEvent { event: Some(ended) })));
        }
        ended.member = Some((member, status));
        self.ended.push(ended);
    }

    /// Clears up after what has ended. Whoever waited has heard of it by then, and whatever they ask next is
    /// answered after this.
    pub(super) fn clear_up(&mut self) {
        for mut ended in std::mem::take(&mut self.ended) {
            self.clear_after(&mut ended);
            let Some((member, status)) = ended.member else { continue };
            drop(std::fs::remove_file(self.names_of(&member.id)));
            if let Err(error) = self.store.remove(&member.id) {
                tracing::error!(sandbox = member.id, "{error}");
            }
            for reply in member.stopping {
                let _ = reply.send(Ok(proto::StopReply { status }));
            }
        }
    }

    fn clear_after(&mut self, ended: &mut Ended) {
        if let Err(error) = self.host.clear(ended.remains.take()) {
            tracing::error!("sandbox {} does not end: {error}", ended.number);
        }
    }
}

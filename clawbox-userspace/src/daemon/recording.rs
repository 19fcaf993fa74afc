//! Whether what is decided can be recorded. Where it cannot and the configuration says so, nothing is
//! allowed in any sandbox until it can again.

use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::{Daemon, store};
use crate::api::proto;
use crate::audit::record::{Alarm, Object};
use crate::audit::store::intake::Condition;
use crate::audit::store::limits::OnFull;
use crate::audit::store::policies::{File, InForce};
use crate::audit::trail::Draft;
use crate::sandbox::change::with_approved;
use crate::sandbox::control::Text;

/// How often a policy's text is stored again.
const ANEW: Duration = Duration::from_secs(86_400);

/// How the store is, as far as the daemon has seen.
pub struct Recording {
    told: watch::Receiver<Condition>,
    /// How it was when that was looked at last.
    pub condition: Condition,
    /// Times since the daemon's start that all allows were stopped.
    pub stops: u64,
}

impl Recording {
    pub(super) fn of(told: watch::Receiver<Condition>) -> Self {
        Self { told, condition: Condition::default(), stops: 0 }
    }

    /// Waits until it is otherwise.
    pub(super) async fn changes(&mut self) -> Option<()> {
        self.told.changed().await.ok()
    }
}

impl Daemon {
    /// Stops what is allowed, or lets it go on, by how the store is.
    pub(super) fn look_after_recording(&mut self) {
        self.recording.condition = self.recording.told.borrow_and_update().clone();
        let may_stop = self.config.audit.on_full == OnFull::StopAllows;
        let Condition { failing, is_written, .. } = self.recording.condition.clone();
        match failing {
            Some(why) if may_stop => self.stop_allows(why),
            None if may_stop && !is_written => {}
            // Without that setting nothing waits for the store.
            _ if self.host.is_paused() => self.allow_again(),
            _ => {}
        }
    }

    /// Whether anything may be begun or approved, or else why not.
    ///
    /// # Errors
    /// Why not.
    pub(super) fn may_allow(&self) -> Result<(), &'static str> {
        match self.host.is_paused() {
            true => Err(
                "nothing is allowed until it can be recorded: look at the disk of the audit store",
            ),
            false => Ok(()),
        }
    }

    fn stop_allows(&mut self, why: String) {
        let is_news = !self.host.is_paused();
        if let Err(error) = self.host.pause() {
            tracing::error!("something may still be allowed that is not recorded: {error}");
        }
        if is_news {
            self.recording.stops += 1;
            tracing::error!("nothing is allowed in any sandbox until it can be recorded: {why}");
            self.say_allows("allows-stopped", false, Some(why));
        }
    }

    fn allow_again(&mut self) {
        match self.host.resume() {
            Ok(()) => {
                tracing::info!("what the policies allow is allowed again");
                self.say_allows("allows-resumed", true, None);
            }
            Err(error) => tracing::error!("not all is allowed again: {error}"),
        }
    }

    fn say_allows(&mut self, reason: &'static str, repaired: bool, why: Option<String>) {
        let (severity, part) = ("critical".into(), "the audit store".to_owned());
        let alarm = Alarm { severity, part, repaired, why, events: None };
        self.host.tell(Draft::of_agent("alarm", reason, Object::Alarm(alarm)));
    }

    /// Stores the text of a sandbox's policy, if that has not been since it came into force, nor for a day:
    /// what is kept of the store is to have it.
    pub(super) fn tell_policy(&mut self, number: u32) {
        let (Some(sandbox), Some(member)) =
            (self.host.sandbox(number), self.members.get_mut(&number))
        else {
            return;
        };
        let generation = sandbox.generation();
        let is_told =
            member.told.is_some_and(|(told, at)| told == generation && at.elapsed() < ANEW);
        if is_told {
            return;
        }
        member.told = Some((generation, Instant::now()));
        let (texts, revision) = match sandbox.global() {
            Some(global) => (global.to_vec(), self.global.revision()),
            None => (with_approved(sandbox.texts().to_vec(), sandbox.approved()), member.revision),
        };
        let (digest, is_global) = (store::digest(&texts), sandbox.global().is_some());
        let file = |text: Text| File { name: text.name, text: text.text };
        let texts = texts.into_iter().map(file).collect();
        let policy = InForce { revision, digest, is_global, texts };
        self.audit.intake().policy(&member.id, generation, policy);
    }

    /// The same of all.
    pub(super) fn tell_policies(&mut self) {
        let numbers: Vec<u32> = self.members.keys().copied().collect();
        numbers.into_iter().for_each(|number| self.tell_policy(number));
    }

    /// For people who ask.
    pub(super) fn described_recording(&self) -> proto::AuditStore {
        let Recording { condition, stops, .. } = &self.recording;
        proto::AuditStore {
            failing: condition.failing.clone().unwrap_or_default(),
            allows_stopped: self.host.is_paused(),
            stops: *stops,
            removed_segments: condition.removed_segments,
            removed_events: condition.removed_events,
        }
    }
}

//! Reads what the kernel and the resolver report of one sandbox and writes it down in the order
//! in which it happened. Woken by a fill level or a timer, never per event.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use aya::maps::{MapData, RingBuf};
use clawbox_common::address::asker_of;
use clawbox_common::event::{Header, Kind, NetworkEvent, Operation};
use clawbox_common::subject::FileId;
use clawbox_common::verdict::{Reason, Verdict};
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;

use super::change::Change;
use super::connections::Reset;
use super::control::Answer;
use crate::audit::clock::Clock;
use crate::audit::kernel_event::{self, Meaning};
use crate::audit::programs::Programs;
use crate::audit::record::{
    Class, Endpoint, Object, Question, SandboxObject, Subject, VerdictName,
};
use crate::audit::trail::{Draft, Trail};
use crate::dns::{Observer, QuestionEvent, RecordType};
use crate::events::{Event, told_path};
use crate::gateway::{self, Outcome};
use crate::kernel::losses::Losses;
use crate::kernel::tallies::Tallies;
use crate::policy::address::readable;

/// How long an event waits at most before it is read.
pub const TICK: Duration = Duration::from_millis(25);

/// Events that are brought into order together.
const BATCH: usize = 1024;

/// DNS questions that may wait for the next look.
const QUESTIONS: usize = 16_384;

/// How many of them make the next look come at once. Few: the resolver answers nobody while they are
/// written down.
const MANY: usize = 32;

/// DNS questions on their way to the trail.
#[derive(Debug, Default)]
pub struct Questions {
    waiting: Mutex<Waiting>,
    /// Told when there are [`MANY`].
    many: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    events: Vec<(SystemTime, QuestionEvent)>,
    lost: u64,
}

impl Questions {
    fn take(&self) -> Waiting {
        std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Observer for Questions {
    fn question(&self, event: QuestionEvent) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.events.len() < QUESTIONS {
            waiting.events.push((SystemTime::now(), event));
            if waiting.events.len() == MANY {
                self.many.notify_one();
            }
        } else {
            waiting.lost += 1;
        }
    }
}

/// Verified connections on their way to the trail.
#[derive(Debug, Default)]
pub struct Verified(Mutex<Vec<Outcome>>);

impl gateway::Observer for Verified {
    // Each is a connection that is open, of which there are only so many, or one that was refused,
    // which takes a round of the loop that reads them.
    fn connection(&self, outcome: Outcome) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(outcome);
    }
}

/// Where the agent's own decisions come from.
pub struct Decided {
    /// DNS questions.
    pub questions: Arc<Questions>,
    /// Verified connections.
    pub verified: Arc<Verified>,
    /// Whether refusals are only recorded.
    pub audit_only: Arc<dyn Fn() -> bool + Send + Sync>,
}

/// What the kernel counts.
pub struct Counts {
    /// What it could not deliver.
    pub losses: Losses,
    /// What it allowed.
    pub tallies: Tallies,
}

/// Directories whose paths are remembered at most; a count of another one tells device and inode.
const DIRECTORIES: usize = 65_536;

/// Everything that is read, and the trail it goes to.
pub struct Monitor {
    /// The ring, pollable.
    ring: AsyncFd<RingBuf<MapData>>,
    counts: Counts,
    decided: Decided,
    programs: Programs,
    /// Paths of directories that something was allowed in.
    directories: HashMap<FileId, String>,
    meaning: Box<dyn Meaning>,
    /// The trail.
    pub trail: Trail,
    /// Before the first exec, the first process is clawbox itself doing the self-test.
    launching: Option<u32>,
    undecodable: u64,
    /// Connections that wait for an answer since the last look.
    held: Vec<NetworkEvent>,
}

impl Monitor {
    /// Takes up a sandbox's event sources. Call it inside the runtime.
    ///
    /// # Errors
    /// The ring cannot be polled.
    pub fn new(
        ring: RingBuf<MapData>,
        counts: Counts,
        decided: Decided,
        programs: Programs,
        meaning: Box<dyn Meaning>,
        trail: Trail,
        first_process: u32,
    ) -> std::io::Result<Self> {
        // SAFETY: the ring owns its descriptor, does not change it, and closes it only when it is
        // dropped, which `AsyncFd` does after taking it out of the poller.
        let ring = unsafe { AsyncFd::register(ring) }?;
        let launching = Some(first_process);
        Ok(Self {
            ring,
            counts,
            decided,
            programs,
            directories: HashMap::new(),
            meaning,
            trail,
            launching,
            undecodable: 0,
            held: Vec::new(),
        })
    }

    /// Waits until the ring has crossed its fill level, or many questions wait.
    pub async fn filled(&mut self) {
        let ring = async {
            match self.ring.readable_mut().await {
                Ok(mut ready) => ready.clear_ready(),
                // The timer still reads the ring.
                Err(_) => std::future::pending().await,
            }
        };
        tokio::select! {
            () = ring => {}
            () = self.decided.questions.many.notified() => {}
        }
    }

    /// Reads all that is there and hands it to the system.
    pub fn drain(&mut self) {
        while self.drain_batch() == BATCH {}
        if self.undecodable > 0 {
            self.trail.gap("undecodable", std::mem::take(&mut self.undecodable));
        }
        self.trail.flush();
    }

    /// Reads one batch and says how many kernel events it had.
    fn drain_batch(&mut self) -> usize {
        let mut drafts = Vec::new();
        let (mut read, clock) = (0, Clock::now());
        while read < BATCH
            && let Some(bytes) = self.ring.get_mut().next()
        {
            read += 1;
            match Event::decode(&bytes) {
                Ok(event) if is_self_test(&mut self.launching, &event) => {}
                Ok(Event::File(_, Operation::Tally, event)) => {
                    if self.directories.len() < DIRECTORIES {
                        self.directories.insert(event.object, told_path(&event));
                    }
                }
                Ok(event) => {
                    let (meaning, programs) = (self.meaning.as_ref(), &mut self.programs);
                    drafts.extend(kernel_event::draft(&event, programs, meaning, &clock));
                    if let Event::Network(decoded, event) = event
                        && decoded.reason == Reason::Held
                    {
                        self.held.push(event);
                    }
                }
                Err(_) => self.undecodable += 1,
            }
        }
        let waiting = self.decided.questions.take();
        let verified = std::mem::take(
            &mut *self.decided.verified.0.lock().unwrap_or_else(PoisonError::into_inner),
        );
        let let_through = (self.decided.audit_only)();
        let programs = &self.programs;
        // One asks several in a row.
        let mut last: Option<(SocketAddr, Option<Subject>)> = None;
        drafts.extend(waiting.events.into_iter().map(|(time, event)| {
            let asked = last.take().filter(|(client, _)| *client == event.client);
            let (_, subject) =
                last.insert(asked.unwrap_or_else(|| (event.client, asker(event.client, programs))));
            question(time, event, subject.clone())
        }));
        drafts.extend(verified.into_iter().map(|outcome| {
            let meaning = self.meaning.as_ref();
            kernel_event::seen_by_agent(outcome, "verify", programs, meaning, let_through)
        }));
        // Several sources: bring them into one order. Stable, so that each keeps its own.
        drafts.sort_by_key(|draft| draft.time);
        drafts.into_iter().for_each(|draft| self.trail.add(draft));
        if waiting.lost > 0 {
            self.trail.gap("dns", waiting.lost);
        }
        read
    }

    /// Connections that have begun to wait for an answer, with the name and the program they are about.
    pub fn take_held(&mut self) -> Vec<(NetworkEvent, Option<String>, Option<String>)> {
        let held = std::mem::take(&mut self.held);
        let about = |event: NetworkEvent| {
            let program = self.programs.path(event.header.exe);
            let program = program.map(|path| path.to_string_lossy().into_owned());
            (event, self.meaning.name(event.name), program)
        };
        held.into_iter().map(about).collect()
    }

    /// Records what became of a connection that waited.
    pub fn settled(&mut self, outcome: Outcome) {
        let action = if outcome.verdict == Verdict::Allow { "approve" } else { "refuse" };
        let meaning = self.meaning.as_ref();
        let draft = kernel_event::seen_by_agent(outcome, action, &self.programs, meaning, false);
        self.trail.add(draft);
        self.trail.flush();
    }

    /// Records that a policy was replaced, or was to be, and learns the programs it names.
    pub fn policy_changed(&mut self, change: &Change, audit_only: bool) {
        self.programs.named(&change.programs);
        let (reason, generation) = match &change.answer {
            Answer::Changed { generation, .. } => ("changed", Some(*generation)),
            Answer::Refused { .. } => ("refused", None),
            Answer::DoesNotLoad { .. } => ("does-not-load", None),
            // No answers about a policy.
            Answer::Waiting { .. } | Answer::Approved { .. } | Answer::Denied { .. } => return,
        };
        self.trail.add(Draft {
            time: None,
            class: Class::Sandbox,
            action: "policy",
            verdict: VerdictName::None,
            reason,
            let_through: false,
            rule: None,
            subject: None,
            object: Object::Sandbox(Box::new(SandboxObject {
                command: Vec::new(),
                policy: change.policy.clone(),
                generation,
                mode: (if audit_only { "audit" } else { "enforce" }).to_owned(),
                status: None,
                layers: Vec::new(),
            })),
        });
        for reset in &change.resets {
            let host = self.meaning.name(reset.name);
            self.trail.add(cut(reset, host, &self.programs));
        }
        self.trail.flush();
    }

    /// Records what was allowed since the last time, a line for each program and directory.
    pub fn sum_up(&mut self) {
        let news = match self.counts.tallies.since_last() {
            Ok(news) => news,
            Err(error) => return tracing::warn!("the kernel's counts cannot be read: {error}"),
        };
        let clock = Clock::now();
        for (key, uses) in news {
            let directory = self.directories.get(&key.directory).map(String::as_str);
            self.trail.add(kernel_event::summary(&key, &uses, directory, &self.programs, &clock));
        }
    }

    /// Records what the kernel could not deliver.
    pub fn count_losses(&mut self) {
        match self.counts.losses.since_last() {
            Ok(losses) => {
                for loss in losses {
                    self.trail.gap(loss.kind, loss.count);
                }
            }
            Err(error) => tracing::warn!("the kernel's loss counters cannot be read: {error}"),
        }
    }
}

/// Records what kept the command from being started, when nothing will be watched: the denials that
/// are not the launch's own.
pub fn record_refusals(
    ring: &mut RingBuf<MapData>,
    programs: &mut Programs,
    meaning: &dyn Meaning,
    trail: &mut Trail,
) {
    let clock = Clock::now();
    while let Some(bytes) = ring.next() {
        if let Ok(event @ Event::File(decoded, ..)) = Event::decode(&bytes)
            && decoded.reason != Reason::NoIdentity
            && decoded.verdict == Verdict::Deny
        {
            kernel_event::draft(&event, programs, meaning, &clock).into_iter().for_each(|draft| {
                trail.add(draft);
            });
        }
    }
    trail.flush();
}

/// The denials of the self-test are the launch's own: they are told by the start record.
fn is_self_test(launching: &mut Option<u32>, event: &Event) -> bool {
    let Some(pid) = *launching else { return false };
    let (header, decoded) = match event {
        Event::Network(decoded, event) => (&event.header, decoded),
        Event::Exec(decoded, event) => (&event.header, decoded),
        Event::File(decoded, _, event) => (&event.header, decoded),
        Event::Call(decoded, event) => (&event.header, decoded),
    };
    // With a pid namespace the first process never executes anything: its child does.
    if decoded.kind == Kind::Exec {
        *launching = None;
    }
    header.tgid == pid && decoded.reason == Reason::NoIdentity
}

/// The process that asked, which the kernel has put into the question's source address.
fn asker(client: SocketAddr, programs: &Programs) -> Option<Subject> {
    let IpAddr::V4(source) = client.ip() else { return None };
    let header = programs.asker(asker_of(source.to_bits())?)?;
    Some(kernel_event::subject(header, programs))
}

/// The record of a connection that a new policy ended.
fn cut(reset: &Reset, host: Option<String>, programs: &Programs) -> Draft {
    let header = Header {
        tgid: reset.process,
        uid: reset.user,
        exe: reset.subject.exe,
        is_script: reset.subject.is_script,
        ..Header::default()
    };
    let asked = readable(reset.to.address);
    Draft {
        time: None,
        class: Class::Network,
        action: "reset",
        verdict: VerdictName::Deny,
        reason: reset.decision.reason.name(),
        let_through: false,
        rule: None,
        subject: Some(kernel_event::subject(&header, programs)),
        object: Object::Endpoint(Endpoint {
            host,
            ip: reset.real,
            asked: (asked != reset.real).then_some(asked),
            port: reset.to.port,
            transport: kernel_event::transport(reset.to.transport).to_owned(),
            named: None,
        }),
    }
}

fn question(time: SystemTime, event: QuestionEvent, subject: Option<Subject>) -> Draft {
    let let_through = event.verdict == Verdict::Deny && !event.answers.is_empty();
    let (handed_out, addresses) = event.answers.into_iter().unzip();
    Draft {
        time: Some(time),
        class: Class::Dns,
        action: "question",
        verdict: if event.reason == Reason::Held {
            VerdictName::None
        } else {
            event.verdict.into()
        },
        reason: event.reason.name(),
        let_through,
        rule: None,
        subject,
        object: Object::Question(Question {
            name: event.name.to_string(),
            kind: match event.kind {
                RecordType::A => "A".into(),
                RecordType::AAAA => "AAAA".into(),
                other => other.to_string().into(),
            },
            transport: event.transport.name().into(),
            addresses,
            handed_out,
        }),
    }
}

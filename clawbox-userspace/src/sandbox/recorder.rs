//! One sandbox's decisions on their way to its trail: those of the kernel, of the resolver and of the
//! verifier, brought into one order.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use clawbox_common::address::asker_of;
use clawbox_common::event::{Header, Kind, NetworkEvent, Operation};
use clawbox_common::file::TallyKey;
use clawbox_common::flow::{Flow, FlowKey};
use clawbox_common::subject::FileId;
use clawbox_common::verdict::{Reason, Verdict};
use tokio::sync::Notify;

use super::change::Change;
use super::connections::Reset;
use super::control::Answer;
use super::repeats::{Repeats, Waits};
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
use crate::kernel::pinned::Identified;
use crate::kernel::tallies::Uses;
use crate::policy::address::readable;

/// DNS questions that may wait for the next look.
const QUESTIONS: usize = 16_384;

/// How many of them make the next look come at once. Few: the resolver answers nobody while they are
/// written down.
const MANY: usize = 32;

/// Directories whose paths are remembered at most; a count of another one tells device and inode.
const DIRECTORIES: usize = 65_536;

/// Which sandboxes the agent has decided something about since the last look.
#[derive(Debug, Default)]
pub struct Stirred {
    sandboxes: Mutex<Vec<u32>>,
    /// Told when the first of them comes.
    any: Notify,
    /// Told when [`MANY`] questions wait.
    many: Notify,
}

impl Stirred {
    fn add(&self, sandbox: u32) {
        let mut stirred = self.sandboxes.lock().unwrap_or_else(PoisonError::into_inner);
        if stirred.is_empty() {
            self.any.notify_one();
        }
        if stirred.last() != Some(&sandbox) {
            stirred.push(sandbox);
        }
    }

    /// Waits until there is one.
    pub async fn any(&self) {
        self.any.notified().await;
    }

    /// They, some perhaps more than once.
    pub fn take(&self) -> Vec<u32> {
        std::mem::take(&mut *self.sandboxes.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits until it does not pay to wait any longer.
    pub async fn many(&self) {
        self.many.notified().await;
    }
}

/// What the agent has decided about one sandbox and the trail has not yet.
#[derive(Debug)]
pub struct Decisions {
    sandbox: u32,
    stirred: Arc<Stirred>,
    waiting: Mutex<Waiting>,
    verified: Mutex<Vec<Outcome>>,
}

#[derive(Debug, Default)]
struct Waiting {
    events: Vec<(SystemTime, QuestionEvent)>,
    lost: u64,
}

impl Decisions {
    /// Of a sandbox.
    #[must_use]
    pub fn of(sandbox: u32, stirred: Arc<Stirred>) -> Arc<Self> {
        let (waiting, verified) = Default::default();
        Arc::new(Self { sandbox, stirred, waiting, verified })
    }
}

impl Observer for Decisions {
    fn question(&self, event: QuestionEvent) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.events.len() < QUESTIONS {
            waiting.events.push((SystemTime::now(), event));
        } else {
            waiting.lost += 1;
        }
        if waiting.events.len() == 1 || waiting.lost == 1 {
            self.stirred.add(self.sandbox);
        }
        if waiting.events.len() == MANY {
            self.stirred.many.notify_one();
        }
    }
}

impl gateway::Observer for Decisions {
    // Each is a connection that is open, of which there are only so many, or one that was refused,
    // which takes a round of the loop that reads them.
    fn connection(&self, outcome: Outcome) {
        self.verified.lock().unwrap_or_else(PoisonError::into_inner).push(outcome);
        self.stirred.add(self.sandbox);
    }
}

/// How long after its birth a sandbox's first process may still be doing the self-test, in nanoseconds.
const TEST_TIME: u64 = 10_000_000_000;

/// How far a sandbox's start is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Start {
    /// Its first process is being made: of that only what the policy refuses is told.
    Begun,
    /// Before the first exec, the first process is clawbox itself doing the self-test.
    Tested(u32),
    /// It ran when this agent began. An agent before may have left what the first process, this one, has tried
    /// before this moment (nanoseconds since boot).
    Left(u32, u64),
    /// It runs.
    Done,
}

/// Processes of further commands before their exec: they are clawbox itself doing the self-test.
#[derive(Debug, Default)]
struct Entering {
    /// One is being made, whose number is not known yet.
    is_begun: bool,
    processes: Vec<u32>,
}

impl Entering {
    fn begins(&mut self) {
        self.is_begun = true;
    }

    fn started(&mut self, process: u32) {
        self.is_begun = false;
        self.processes.push(process);
    }

    fn is_idle(&self) -> bool {
        !self.is_begun && self.processes.is_empty()
    }

    fn failed(&mut self) {
        self.is_begun = false;
        // Of those that started, what they did before has been told too.
        self.processes.clear();
    }

    /// Whether an event of a process is of its self-test; with its exec it is a process as any other.
    fn is_told(&mut self, process: u32, is_test: bool, is_exec: bool) -> bool {
        if is_exec {
            self.processes.retain(|entering| *entering != process);
        } else if is_test && std::mem::take(&mut self.is_begun) {
            self.processes.push(process);
        }
        is_test && self.processes.contains(&process)
    }
}

/// Everything that is told of one sandbox, and the trail it goes to.
pub struct Recorder {
    decisions: Arc<Decisions>,
    programs: Programs,
    /// Paths of directories that something was allowed in.
    directories: HashMap<FileId, String>,
    meaning: Box<dyn Meaning>,
    audit_only: Arc<dyn Fn() -> bool + Send + Sync>,
    /// The trail.
    pub trail: Trail,
    start: Start,
    /// Further commands that are being started.
    entering: Entering,
    /// Of this batch.
    drafts: Vec<Waits>,
    repeats: Repeats,
    /// Connections that wait for an answer since the last look.
    held: Vec<NetworkEvent>,
}

impl Recorder {
    /// Of a sandbox that is being started. `audit_only` says whether refusals are only recorded.
    pub fn new(
        decisions: Arc<Decisions>,
        programs: Programs,
        meaning: Box<dyn Meaning>,
        audit_only: Arc<dyn Fn() -> bool + Send + Sync>,
        trail: Trail,
    ) -> Self {
        Self {
            decisions,
            programs,
            directories: HashMap::new(),
            meaning,
            audit_only,
            trail,
            start: Start::Begun,
            entering: Entering::default(),
            drafts: Vec::new(),
            repeats: Repeats::default(),
            held: Vec::new(),
        }
    }

    /// Of what is told of no sandbox.
    #[must_use]
    pub fn of_rest(self) -> Self {
        Self { start: Start::Done, ..self }
    }

    /// Whose.
    #[must_use]
    pub fn sandbox(&self) -> u32 {
        self.decisions.sandbox
    }

    /// Another clawbox has told of it so far; this is said of that. Where clawbox has started it, its first
    /// process was born at this moment, in hundredths of a second since boot.
    pub fn resumed(&mut self, first_process: u32, born: Option<u64>, told: Draft) {
        self.started(first_process);
        let tested = born.map(|born| born.saturating_mul(10_000_000).saturating_add(TEST_TIME));
        self.start = tested.map_or(Start::Done, |until| Start::Left(first_process, until));
        self.trail.add(told);
        self.trail.flush();
    }

    /// Another command is being started in it. What its process does before its exec is the agent's.
    pub fn further_begins(&mut self) {
        self.entering.begins();
    }

    /// It runs, as this process.
    pub fn further_started(&mut self, process: u32, mut told: Draft) {
        self.entering.started(process);
        if let Object::Sandbox(object) = &mut told.object {
            object.process = Some(process);
        }
        self.trail.add(told);
        self.trail.flush();
    }

    /// It does not run, and all that was told of it has been read.
    pub fn further_failed(&mut self) {
        self.entering.failed();
    }

    /// Its first process is there: what follows is named as that sees it.
    pub fn started(&mut self, first_process: u32) {
        self.start = Start::Tested(first_process);
        self.repeats.forget();
        if let Err(error) = self.programs.see_from(first_process) {
            tracing::debug!("the sandbox's files cannot be looked at: {error}");
        }
    }

    /// Takes up what the kernel has told. Whether that becomes a record.
    pub fn event(&mut self, event: &Event, clock: &Clock) -> bool {
        if self.start == Start::Done
            && self.entering.is_idle()
            && let Event::Network(decoded, event) = event
            && let Some(waits) = self.repeats.again(*decoded, event, clock)
        {
            self.drafts.push(waits);
            return true;
        }
        if self.is_launch(event) {
            return false;
        }
        match event {
            Event::File(_, Operation::Tally, event) => {
                if self.directories.len() < DIRECTORIES {
                    self.directories.insert(event.object, told_path(event));
                }
                false
            }
            event => {
                if matches!(event, Event::Exec(..)) {
                    // What a process or a program is called may be another thing from here on.
                    self.repeats.forget();
                }
                let (meaning, programs) = (self.meaning.as_ref(), &mut self.programs);
                let draft = kernel_event::draft(event, programs, meaning, clock);
                let is_told = draft.is_some();
                self.drafts.extend(draft.map(|draft| self.repeats.first(event, draft)));
                if let Event::Network(decoded, event) = event
                    && decoded.reason == Reason::Held
                {
                    self.held.push(*event);
                }
                is_told
            }
        }
    }

    /// Whether an event is of the launch itself. The denials of the self-test are told by the start
    /// record; of a command that is not started, what kept it from that.
    fn is_launch(&mut self, event: &Event) -> bool {
        let (header, decoded) = (event.header(), event.decoded());
        let is_test = decoded.reason == Reason::NoIdentity;
        match self.start {
            Start::Done => self.entering.is_told(header.tgid, is_test, decoded.kind == Kind::Exec),
            Start::Begun => {
                let is_refusal =
                    matches!(event, Event::File(..)) && decoded.verdict == Verdict::Deny;
                is_test || !is_refusal
            }
            Start::Left(pid, until) => {
                let is_exec = decoded.kind == Kind::Exec;
                if is_exec || header.time > until {
                    self.start = Start::Done;
                }
                let is_left = header.tgid == pid && is_test && header.time <= until;
                // A further command may begin meanwhile.
                self.entering.is_told(header.tgid, is_test, is_exec) || is_left
            }
            Start::Tested(pid) => {
                // With a pid namespace the first process never executes anything: its child does.
                if decoded.kind == Kind::Exec {
                    self.start = Start::Done;
                }
                header.tgid == pid && is_test
            }
        }
    }

    /// Brings what was told into one order and hands it to the system.
    pub fn write(&mut self) {
        let waiting = std::mem::take(
            &mut *self.decisions.waiting.lock().unwrap_or_else(PoisonError::into_inner),
        );
        let verified = std::mem::take(
            &mut *self.decisions.verified.lock().unwrap_or_else(PoisonError::into_inner),
        );
        waiting.events.iter().for_each(|(_, event)| self.trail.counted.question(event));
        let programs = &self.programs;
        // One asks several in a row.
        let mut last: Option<(SocketAddr, Option<Subject>)> = None;
        self.drafts.extend(waiting.events.into_iter().map(|(time, event)| {
            let asked = last.take().filter(|(client, _)| *client == event.client);
            let (_, subject) =
                last.insert(asked.unwrap_or_else(|| (event.client, asker(event.client, programs))));
            question(time, event, subject.clone()).into()
        }));
        let let_through = (self.audit_only)();
        self.drafts.extend(verified.into_iter().map(|outcome| {
            let meaning = self.meaning.as_ref();
            kernel_event::seen_by_agent(outcome, "verify", programs, meaning, let_through).into()
        }));
        // Several sources: bring them into one order. Stable, so that each keeps its own.
        self.drafts.sort_by_key(Waits::time);
        for waits in self.drafts.drain(..) {
            self.repeats.add(waits, &mut self.trail);
        }
        self.repeats.look();
        if waiting.lost > 0 {
            self.trail.gap("dns", waiting.lost);
        }
        self.trail.flush();
    }

    /// Records what was allowed since the last time by one program in one directory.
    pub fn sum(&mut self, key: &TallyKey, uses: &Uses, clock: &Clock) {
        let directory = self.directories.get(&key.directory).map(String::as_str);
        self.trail.add(kernel_event::summary(key, uses, directory, &self.programs, clock));
    }

    /// Records how many more were allowed that were like one that was told.
    pub fn counted(&mut self, key: &FlowKey, flow: &Flow) {
        let (programs, meaning) = (&self.programs, self.meaning.as_ref());
        if let Some(draft) = kernel_event::counted(key, flow, programs, meaning) {
            self.trail.add(draft);
        }
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
        self.repeats.forget();
        let (reason, generation) = match &change.answer {
            Answer::Changed { generation, .. } => {
                self.trail.policy = Some(*generation);
                ("changed", Some(*generation))
            }
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
                workdir: None,
                policy: change.policy.clone(),
                generation,
                mode: (if audit_only { "audit" } else { "enforce" }).to_owned(),
                status: None,
                asked_by: None,
                process: None,
                layers: Vec::new(),
            })),
        });
        self.reset(&change.resets);
    }

    /// Records connections that were ended because the policy does not allow them.
    pub fn reset(&mut self, resets: &[Reset]) {
        for reset in resets {
            let host = self.meaning.name(reset.name);
            self.trail.add(cut(reset, host, &self.programs));
        }
        self.trail.flush();
    }

    /// Of a sandbox in whose cgroup nothing is started by clawbox: these run there, and what follows is
    /// named as the first of them sees it.
    pub fn attached(&mut self, processes: &[u32], identified: &Identified) {
        if let Some(first) = processes.first() {
            self.started(*first);
        }
        let known = processes.iter().filter_map(|process| {
            let path = std::fs::read_link(format!("/proc/{process}/exe")).ok()?;
            Some((identified.subject(*process)?.exe, path))
        });
        self.programs.named(&known.collect::<Vec<_>>());
        self.repeats.forget();
        self.start = Start::Done;
    }
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
            hidden: false,
            times: None,
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

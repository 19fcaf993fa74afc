//! Connections that no rule names, where the policy asks (`unknown_endpoints: ask`): each waits, for so
//! long and no longer, until root approves or denies it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use clawbox_common::event::NetworkEvent;
use clawbox_common::verdict::{Reason, Verdict};

use super::change::{KernelSide, LivePolicy};
use super::control::{Answer, Connection};
use super::recorder::Recorder;
use crate::dns::Resolver;
use crate::gateway::{Outcome, WaitingRoom};
use crate::policy::address::readable;
use crate::policy::binary_pattern::BinaryPattern;

/// Connections of one sandbox that may wait at one time; what comes then is refused at once.
const MOST: usize = 64;

/// How long a connection waits if nothing else is said.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What waits.
pub struct HeldConnections {
    room: WaitingRoom,
    patience: Duration,
    waiting: BTreeMap<u32, Held>,
    last: u32,
}

struct Held {
    event: NetworkEvent,
    name: Option<String>,
    program: Option<String>,
    /// As the policy writes it, where it names that very file: so it is already known who that is.
    written: Option<String>,
    since: Instant,
}

impl HeldConnections {
    /// Nothing yet.
    #[must_use]
    pub fn new(room: WaitingRoom, patience: Duration) -> Self {
        Self { room, patience, waiting: BTreeMap::new(), last: 0 }
    }

    /// Takes up what has begun to wait.
    pub fn take_up(&mut self, recorder: &mut Recorder, policy: &LivePolicy, kernel: &KernelSide) {
        for (event, name, program) in recorder.take_held() {
            let written = policy.written_for(kernel, event.header.tgid);
            let held = Held { event, name, program, written, since: Instant::now() };
            if self.waiting.len() >= MOST {
                self.refuse(&held, Reason::TooManyHeld, recorder);
                continue;
            }
            self.last += 1;
            let Connection { id, host, port, program, .. } = held.told(self.last, self.patience);
            let program = program.unwrap_or_else(|| "a program that has ended".to_owned());
            tracing::warn!(
                "{} waits to connect to {host}:{port}; `clawbox approvals approve` or `deny` {id} \
                 answers it",
                program.escape_debug()
            );
            self.waiting.insert(self.last, held);
        }
    }

    /// Refuses what has waited too long.
    pub fn give_up(&mut self, recorder: &mut Recorder) {
        let patience = self.patience;
        let late: Vec<u32> = self
            .waiting
            .iter()
            .filter(|(_, held)| held.since.elapsed() >= patience)
            .map(|(id, _)| *id)
            .collect();
        for id in late {
            if let Some(held) = self.waiting.remove(&id) {
                self.refuse(&held, Reason::Refusal, recorder);
            }
        }
    }

    /// How many wait.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "asked of none")]
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// What waits, the longest first.
    #[must_use]
    pub fn list(&self) -> Vec<Connection> {
        self.waiting.iter().map(|(id, held)| held.told(*id, self.patience)).collect()
    }

    /// One of them.
    #[must_use]
    pub fn find(&self, id: u32) -> Option<Connection> {
        self.waiting.get(&id).map(|held| held.told(id, self.patience))
    }

    /// Refuses one.
    pub fn deny(&mut self, id: u32, recorder: &mut Recorder) -> Answer {
        let Some(held) = self.waiting.remove(&id) else { return self.unknown(id) };
        self.refuse(&held, Reason::Refusal, recorder);
        Answer::Denied { connection: held.told(id, self.patience) }
    }

    /// Lets one go on; `generation` is the policy that lets all like it go on.
    pub fn approve(
        &mut self,
        id: u32,
        generation: Option<u32>,
        names: &Arc<Resolver>,
        recorder: &mut Recorder,
    ) -> Answer {
        let Some(held) = self.waiting.remove(&id) else { return self.unknown(id) };
        recorder.settled(held.outcome(Verdict::Allow, Reason::Approval));
        let connection = held.told(id, self.patience);
        let (meeting, names) = (self.room.meeting().clone(), Arc::clone(names));
        // Inside the runtime: everything that answers is.
        tokio::spawn(async move {
            let number = held.event.protocol;
            let to = match &held.name {
                Some(name) => names.addresses(name).await,
                None => vec![readable(held.event.real)],
            };
            if let Err(error) = meeting.take_on(number, &to, held.event.port).await {
                tracing::debug!("an approved connection ended: {error}");
            }
        });
        Answer::Approved { connection, generation }
    }

    /// The answer about one that does not wait.
    #[must_use]
    pub fn unknown(&self, id: u32) -> Answer {
        let why = if id > 0 && id <= self.last {
            format!("connection {id} does not wait any longer")
        } else {
            format!("there is no connection {id}; `clawbox approvals list` tells which there are")
        };
        Answer::Refused { why, parts: Vec::new() }
    }

    /// The answer about a rule that nobody would be in.
    #[must_use]
    pub fn nobody(id: u32) -> Answer {
        let why = format!(
            "no rule can name the program of connection {id}: its path is not known, or reads like a \
             glob; approve it once"
        );
        Answer::Refused { why, parts: Vec::new() }
    }

    /// Whether the policy names the program of one by its path, so that the running process is known by it.
    #[must_use]
    pub fn is_named(&self, id: u32) -> bool {
        self.waiting.get(&id).is_some_and(|held| held.written.is_some())
    }

    /// The answer about a rule that would hold for a program's next start and not for who waits: a process
    /// is known by what was named when it was started.
    #[must_use]
    pub fn not_named(id: u32) -> Answer {
        let why = format!(
            "the program of connection {id} was started before any rule named its path, and no rule is for it \
             as it runs; approve it once, with --save to have the rule from the sandbox's next start on"
        );
        Answer::Refused { why, parts: Vec::new() }
    }

    fn refuse(&self, held: &Held, reason: Reason, recorder: &mut Recorder) {
        // Who waited may have given up.
        if let Err(error) = self.room.meeting().turn_away(held.event.protocol) {
            tracing::debug!("a refused connection was not ended: {error}");
        }
        recorder.settled(held.outcome(Verdict::Deny, reason));
    }
}

impl Held {
    fn outcome(&self, verdict: Verdict, reason: Reason) -> Outcome {
        let (time, event) = (SystemTime::now(), self.event);
        Outcome { time, event, verdict, reason, named: None, is_hidden: false }
    }

    /// `None` where no rule can name the program: its path is not known, or a rule would take it for a
    /// glob, and a sandbox can give a file any name.
    fn rule(&self, host: &str) -> Option<String> {
        let program = self.written.as_deref().or(self.program.as_deref())?;
        rule(host, self.event.port, program, false)
    }

    fn told(&self, id: u32, patience: Duration) -> Connection {
        let host = self.name.clone().unwrap_or_else(|| readable(self.event.asked).to_string());
        let (program, port) = (self.program.clone(), self.event.port);
        let waited = self.since.elapsed();
        Connection {
            id,
            rule: self.rule(&host).unwrap_or_default(),
            host,
            port,
            program,
            pid: self.event.header.tgid,
            seconds: waited.as_secs(),
            seconds_left: patience.saturating_sub(waited).as_secs(),
        }
    }
}

/// An entry of `network_policies` for one program and one endpoint, where the host that is named on the
/// connection is verified or not. `None` where no rule can name the program. JSON's strings are YAML's too.
#[must_use]
pub fn rule(host: &str, port: u16, program: &str, is_verified: bool) -> Option<String> {
    BinaryPattern::parse(program).ok()?.exact()?;
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    let file = program.rsplit('/').next().unwrap_or_default();
    let verify = if is_verified { ", sni: verify" } else { "" };
    Some(format!(
        "  {}:\n    endpoints: [{{ host: {}, port: {port}{verify} }}]\n    binaries: [{{ path: {} }}]\n",
        quoted(&format!("approved {file} {host} {port}")),
        quoted(host),
        quoted(program),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(program: Option<&str>, written: Option<&str>) -> Held {
        let [program, written] = [program, written].map(|path| path.map(str::to_owned));
        let event = NetworkEvent { port: 443, ..NetworkEvent::default() };
        Held { event, name: Some("a.test".to_owned()), program, written, since: Instant::now() }
    }

    #[test]
    fn a_rule_names_the_very_program_or_there_is_none() {
        let rule = |program, written| held(program, written).rule("a.test");
        let text = rule(Some("/usr/bin/python3.11"), Some("/usr/bin/python3")).unwrap();
        assert!(text.contains("path: \"/usr/bin/python3\""), "{text}");
        assert!(
            rule(Some("/usr/bin/curl"), None).unwrap().contains("\"approved curl a.test 443\"")
        );
        for glob in ["/srv/**", "/srv/a*", "/srv/[ab]", "relative"] {
            assert_eq!(rule(Some(glob), None), None, "{glob}");
        }
        assert_eq!(rule(None, None), None);
    }
}

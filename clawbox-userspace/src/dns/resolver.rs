//! Decides each question of one sandbox: refused, looked up, or answered from what is known.
//! The policy is asked again after an upstream has answered, because it may have changed.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use clawbox_common::rule::{HostIds, SyntheticKey, SyntheticValue};
use clawbox_common::verdict::{Reason, Verdict};
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Name, RecordType};
use tokio::sync::Notify;
use tracing::warn;

use super::admission::{Refusal, admit};
use super::budget::Budget;
use super::contract::{
    NameDecision, NamePolicy, Observer, QuestionEvent, SyntheticTable, Transport,
};
use super::lock;
use super::memory::Found;
use super::names::NameTable;
use super::pace::{Pace, Traffic};
use super::synthetic::{Grant, Pool, Refused};
use super::upstream::{Failed, Upstream};
use super::wire::{self, Question, Received};
use crate::policy::address::{always_denied, range_of};

/// Bounds of the TTL that a client is given, in seconds.
const TTL: (u32, u32) = (5, 300);

/// What a name stands for that nobody has asked for yet.
const NOWHERE: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

/// The resolver of one sandbox.
pub struct Resolver {
    policy: Arc<dyn NamePolicy>,
    observer: Arc<dyn Observer>,
    upstream: Upstream,
    names: Arc<NameTable>,
    pool: Mutex<Pool>,
    budget: Mutex<Budget>,
    pace: Mutex<Pace>,
    traffic: Arc<Traffic>,
    /// Told when the pool has something that will expire.
    filled: Notify,
}

/// What is to be done about a packet.
pub(super) enum Step {
    /// Nothing.
    Ignore,
    /// Send this.
    Reply(Vec<u8>),
    /// Ask upstream, then send what comes of it.
    Ask(Asked),
}

/// A question that has to go upstream.
pub(super) struct Asked {
    question: Question,
    client: SocketAddr,
}

/// How a question ends.
struct Outcome {
    code: ResponseCode,
    verdict: Verdict,
    reason: Reason,
    answers: Vec<(IpAddr, IpAddr)>,
    ttl: u32,
}

impl Outcome {
    fn refused(code: ResponseCode, reason: Reason) -> Self {
        Self { code, verdict: Verdict::Deny, reason, answers: Vec::new(), ttl: 0 }
    }
}

/// The policy's word on a name, its generation, and what to record of it.
#[derive(Clone, Copy)]
struct Judged {
    policy: u32,
    /// Set if the name is answered only because the policy is in audit mode.
    recorded: Option<Reason>,
    audit_only: bool,
}

/// Why a name is not looked up.
#[derive(Clone, Copy)]
enum NotAllowed {
    /// No rule names it, and somebody is to be asked when it is connected to.
    Asked,
    /// The policy says no.
    Denied(Reason),
}

impl Resolver {
    /// A resolver for the sandbox with this number. Nothing is served before
    /// [`Resolver::serve`].
    #[must_use]
    pub fn new(
        sandbox: u32,
        policy: Arc<dyn NamePolicy>,
        table: Arc<dyn SyntheticTable>,
        observer: Arc<dyn Observer>,
        upstream: Upstream,
    ) -> Self {
        let names = Arc::<NameTable>::default();
        Self {
            policy,
            observer,
            upstream,
            pool: Mutex::new(Pool::new(sandbox, table, Arc::clone(&names))),
            names,
            budget: Mutex::new(Budget::new(tokio::time::Instant::now())),
            pace: Mutex::new(Pace::new(sandbox, tokio::time::Instant::now())),
            traffic: Arc::default(),
            filled: Notify::new(),
        }
    }

    /// One of those that share a loop.
    #[must_use]
    pub fn among(mut self, traffic: Arc<Traffic>) -> Self {
        self.traffic = traffic;
        self
    }

    /// A question has come. How long the next one of this sandbox waits, if at all.
    pub(super) fn paced(&self) -> Option<Duration> {
        lock(&self.pace).asked(&self.traffic, tokio::time::Instant::now())
    }

    /// The names that stand behind the numbers in kernel events.
    #[must_use]
    pub fn names(&self) -> Arc<NameTable> {
        Arc::clone(&self.names)
    }

    /// Judges every address that is held again, for a policy that is about to come into force, and
    /// publishes what it says beside what the one before said. Without it, an address of an earlier
    /// generation is renewed when its name is next asked for.
    pub fn refresh(&self) {
        lock(&self.pool).refresh(|name, real| {
            if real == NOWHERE {
                let policy = self.policy.generation();
                let hosts = HostIds::default();
                let is_asked = self.policy.name(name) == NameDecision::Asked;
                return is_asked.then_some(Grant { hosts, policy });
            }
            let judged = self.judge(name).ok()?;
            let hosts = match self.admit(&judged, name, real) {
                Ok(hosts) => hosts,
                Err(Refusal::NotNamed) if judged.audit_only => HostIds::default(),
                Err(_) => return None,
            };
            self.is_current(&judged).then_some(Grant { hosts, policy: judged.policy })
        });
    }

    /// What the policy in force says of a name, by its number, and one of its addresses; `None` if the
    /// name is not known any more, or not allowed.
    #[must_use]
    pub fn grants(&self, name: u32, real: std::net::IpAddr) -> Option<HostIds> {
        let name = self.names.name_of(name)?;
        let judged = self.judge(&name).ok()?;
        self.admit(&judged, &name, real).ok()
    }

    /// Withdraws what an earlier policy said: call it when the next one is in force.
    pub fn forget_outdated(&self) {
        lock(&self.pool).forget_outdated();
    }

    /// Takes up the addresses that an earlier resolver of this sandbox had handed out under a policy.
    pub fn restore(&self, held: &[(SyntheticKey, SyntheticValue)], policy: u32) {
        lock(&self.pool).restore(held, policy);
        self.filled.notify_one();
    }

    /// Withdraws every address that is held: call it when the sandbox has ended.
    pub fn clear(&self) {
        lock(&self.pool).clear();
    }

    /// Withdraws what has expired, and waits until something else may have.
    pub(super) async fn sweep_once(&self) {
        let next = lock(&self.pool).sweep();
        match next {
            Some(at) => {
                let soonest = tokio::time::Instant::now() + Duration::from_secs(1);
                tokio::time::sleep_until(at.max(soonest)).await;
            }
            None => self.filled.notified().await,
        }
    }

    /// Takes a packet as far as it goes without waiting for anybody.
    pub(super) fn receive(&self, packet: &[u8], transport: Transport, client: SocketAddr) -> Step {
        let question = match wire::read(packet, transport) {
            Received::Ignore => return Step::Ignore,
            Received::Reject(packet) => return Step::Reply(packet),
            Received::Refuse(question, code) => {
                let outcome = Outcome::refused(code, Reason::QuestionKind);
                return self.end(&question, client, outcome, None);
            }
            Received::Question(question) => question,
        };
        if question.is_localhost() {
            return self.end(&question, client, localhost(question.kind()), None);
        }
        let judged = self.judge_question(&question);
        if matches!(judged, Err(NotAllowed::Asked)) && question.is_for_addresses() {
            let outcome = self.promise(&question);
            return self.end(&question, client, outcome, None);
        }
        let judged = match admitted(&question, judged) {
            Ok(judged) => judged,
            Err(outcome) => return self.end(&question, client, outcome, None),
        };
        if !self.pays(&question) {
            // Not NXDOMAIN, on which a client goes on to its search domains.
            let outcome = Outcome::refused(ResponseCode::ServFail, Reason::NameBudget);
            return self.end(&question, client, outcome, None);
        }
        match self.upstream.known(&question.name, question.kind()) {
            Some(found) => {
                let outcome = self.decide(&question, judged, Ok(found));
                self.end(&question, client, outcome, None)
            }
            None => Step::Ask(Asked { question, client }),
        }
    }

    /// Asks upstream and returns the packet to send.
    pub(super) async fn resolve(&self, asked: Asked) -> Option<Vec<u8>> {
        let Asked { question, client } = asked;
        let started = Instant::now();
        let name = Arc::clone(&question.name);
        let found = self.upstream.ask(question.upstream_name(), name, question.kind()).await;
        let took = u32::try_from(started.elapsed().as_millis()).unwrap_or(u32::MAX);
        // Anew: the policy may be another one by now.
        let outcome = match admitted(&question, self.judge_question(&question)) {
            Ok(judged) => self.decide(&question, judged, found),
            Err(outcome) => outcome,
        };
        match self.end(&question, client, outcome, Some(took)) {
            Step::Reply(packet) => Some(packet),
            Step::Ignore | Step::Ask(_) => None,
        }
    }

    fn judge(&self, name: &str) -> Result<Judged, NotAllowed> {
        let audit_only = self.policy.audit_only();
        let policy = self.policy.generation();
        match self.policy.name(name) {
            NameDecision::Allowed => Ok(Judged { policy, recorded: None, audit_only }),
            NameDecision::Denied(reason) if audit_only => Ok(Judged::audited(reason, policy)),
            NameDecision::Denied(reason) => Err(NotAllowed::Denied(reason)),
            NameDecision::Asked => Err(NotAllowed::Asked),
        }
    }

    /// Whether the sandbox may tell an upstream this name. One that only records may tell every name.
    fn pays(&self, question: &Question) -> bool {
        let free = self.policy.free_bytes(&question.name);
        if free == 0 {
            return true;
        }
        let now = tokio::time::Instant::now();
        lock(&self.budget).pays(&question.name, free, now) || self.policy.audit_only()
    }

    /// Gives a name that no rule names an address that leads nowhere: what it stands for is asked only
    /// when somebody has approved of a connection, so that a question for it tells nobody anything.
    fn promise(&self, question: &Question) -> Outcome {
        if question.kind() != RecordType::A {
            let reason = Reason::NoRecord;
            return Outcome {
                verdict: Verdict::Allow,
                ..Outcome::refused(ResponseCode::NoError, reason)
            };
        }
        let grant = Grant { hosts: HostIds::default(), policy: self.policy.generation() };
        match self.hand_out(&question.name, &[(NOWHERE, grant)], TTL.0) {
            Ok(answers) => Outcome {
                code: ResponseCode::NoError,
                verdict: Verdict::Allow,
                reason: Reason::Held,
                answers,
                ttl: TTL.0,
            },
            Err(_) => Outcome::refused(ResponseCode::ServFail, Reason::TableFull),
        }
    }

    /// The addresses of a name that somebody has approved of, as far as any policy could allow them.
    pub async fn addresses(&self, name: &str) -> Vec<IpAddr> {
        let mut addresses = Vec::new();
        let Ok(asked) = Name::from_ascii(format!("{name}.")) else { return addresses };
        for kind in [RecordType::A, RecordType::AAAA] {
            let found = self.upstream.ask(asked.clone(), name.into(), kind).await;
            if let Ok(Found::Addresses { addresses: found, .. }) = found {
                addresses.extend(found.iter().filter(|ip| always_denied(range_of(**ip)).is_none()));
            }
        }
        addresses
    }

    fn admit(&self, judged: &Judged, name: &str, real: IpAddr) -> Result<HostIds, Refusal> {
        admit(self.policy.as_ref(), name, judged.recorded.is_some(), real)
    }

    /// Whether what was judged is still of the policy in force: pattern numbers of one generation
    /// must never be published as another's.
    fn is_current(&self, judged: &Judged) -> bool {
        self.policy.generation() == judged.policy
    }

    fn judge_question(&self, question: &Question) -> Result<Judged, NotAllowed> {
        if question.is_host {
            return self.judge(&question.name);
        }
        if self.policy.audit_only() {
            let policy = self.policy.generation();
            return Ok(Judged::audited(Reason::UnknownName, policy));
        }
        Err(NotAllowed::Denied(Reason::UnknownName))
    }

    fn decide(&self, question: &Question, judged: Judged, found: Result<Found, Failed>) -> Outcome {
        let mut recorded = judged.recorded;
        let (addresses, ttl) = match found {
            Ok(Found::Addresses { addresses, ttl }) => (addresses, ttl),
            Ok(Found::Nothing { exists }) => {
                let code = if exists { ResponseCode::NoError } else { ResponseCode::NXDomain };
                return Outcome {
                    verdict: verdict(recorded),
                    ..Outcome::refused(code, recorded.unwrap_or(Reason::NoRecord))
                };
            }
            Err(Failed) => {
                let reason = recorded.unwrap_or(Reason::UpstreamFailed);
                return Outcome::refused(ResponseCode::ServFail, reason);
            }
        };
        let mut grants = Vec::with_capacity(addresses.len());
        for &real in addresses.iter() {
            let hosts = match self.admit(&judged, &question.name, real) {
                Ok(hosts) => hosts,
                Err(Refusal::NotNamed) if judged.audit_only => {
                    recorded = recorded.or(Some(Reason::ForbiddenAddress));
                    HostIds::default()
                }
                // Not NXDOMAIN, on which a client goes on to its search domains.
                Err(_) => {
                    return Outcome::refused(ResponseCode::ServFail, Reason::ForbiddenAddress);
                }
            };
            grants.push((real, Grant { hosts, policy: judged.policy }));
        }
        if !self.is_current(&judged) {
            // The policy changed in between; a client asks again.
            return Outcome::refused(ResponseCode::ServFail, Reason::StaleName);
        }
        let ttl = ttl.clamp(TTL.0, TTL.1);
        match self.hand_out(&question.name, &grants, ttl) {
            Ok(answers) => Outcome {
                code: ResponseCode::NoError,
                verdict: verdict(recorded),
                reason: recorded.unwrap_or(Reason::Rule),
                answers,
                ttl,
            },
            Err(refused) => {
                if let Refused::Table(error) = refused {
                    warn!(%error, name = %question.name, "synthetic address not published");
                }
                Outcome::refused(ResponseCode::ServFail, Reason::TableFull)
            }
        }
    }

    fn hand_out(
        &self,
        name: &str,
        grants: &[(IpAddr, Grant)],
        ttl: u32,
    ) -> Result<Vec<(IpAddr, IpAddr)>, Refused> {
        let mut pool = lock(&self.pool);
        let was_empty = pool.is_empty();
        let answers = pool.hand_out(name, grants, Duration::from_secs(ttl.into()))?;
        if was_empty {
            self.filled.notify_one();
        }
        Ok(answers)
    }

    /// Records the end of a question and makes its answer.
    fn end(
        &self,
        question: &Question,
        client: SocketAddr,
        outcome: Outcome,
        upstream_ms: Option<u32>,
    ) -> Step {
        let synthetic: Vec<IpAddr> = outcome.answers.iter().map(|&(ip, _)| ip).collect();
        self.observer.question(QuestionEvent {
            name: Arc::clone(&question.name),
            kind: question.kind(),
            transport: question.transport(),
            client,
            verdict: outcome.verdict,
            reason: outcome.reason,
            answers: outcome.answers,
            upstream_ms,
        });
        question.reply(outcome.code, &synthetic, outcome.ttl).map_or(Step::Ignore, Step::Reply)
    }
}

impl Judged {
    fn audited(reason: Reason, policy: u32) -> Self {
        Self { policy, recorded: Some(reason), audit_only: true }
    }
}

/// Whether a question may be answered with addresses at all.
fn admitted(question: &Question, judged: Result<Judged, NotAllowed>) -> Result<Judged, Outcome> {
    let judged = judged.map_err(|not| {
        let reason = match not {
            NotAllowed::Asked => Reason::UnknownName,
            NotAllowed::Denied(reason) => reason,
        };
        Outcome::refused(ResponseCode::NXDomain, reason)
    })?;
    if question.is_for_addresses() {
        return Ok(judged);
    }
    let reason = judged.recorded.unwrap_or(Reason::QuestionKind);
    Err(Outcome::refused(ResponseCode::NoError, reason))
}

fn verdict(recorded: Option<Reason>) -> Verdict {
    match recorded {
        None => Verdict::Allow,
        Some(_) => Verdict::Deny,
    }
}

/// A name for the sandbox's own loopback, which no table and no server has a say in.
fn localhost(kind: RecordType) -> Outcome {
    let ip: IpAddr = match kind {
        RecordType::A => Ipv4Addr::LOCALHOST.into(),
        RecordType::AAAA => Ipv6Addr::LOCALHOST.into(),
        _ => return Outcome::refused(ResponseCode::NoError, Reason::QuestionKind),
    };
    Outcome {
        code: ResponseCode::NoError,
        verdict: Verdict::Allow,
        reason: Reason::Resolver,
        answers: vec![(ip, ip)],
        ttl: TTL.1,
    }
}

//! What the daemon does when it is asked: who may, and how it is said.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::ValueEnum as _;
use nix::sys::signal::Signal;
use tonic::Status;

use super::member::{Member, PATIENCE};
use super::store::{Revision, StoreError};
use super::{Daemon, descriptors};
use crate::api::peer::Peer;
use crate::api::server::{Asked, Events, Reply};
use crate::api::{convert, proto};
use crate::dns::Upstream;
use crate::sandbox::cgroup::Cgroup;
use crate::sandbox::change::too_many_rules;
use crate::sandbox::control::{Answer, Request};
use crate::sandbox::held;
use crate::sandbox::inherit::Inherit;
use crate::sandbox::launch::identity;
use crate::sandbox::launch::namespaces::Part;
use crate::sandbox::life::{Sandbox, Written};
use crate::sandbox::order::Order;
use crate::sandbox::ready::Ready;
use crate::sandbox::run::{LsmUse, RunError};

/// Why something is not done.
pub(super) type Refusal = Box<Status>;

pub(super) fn refuse(status: Status) -> Refusal {
    Box::new(status)
}

/// With the exit status by which the command line tells one failure from another.
pub(super) fn not_started(error: &RunError) -> Refusal {
    let mut status = Status::failed_precondition(error.to_string());
    if let Ok(code) = error.status().to_string().parse() {
        status.metadata_mut().insert(EXIT_STATUS, code);
    }
    refuse(status)
}

pub(super) fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

pub(super) fn described_revision(found: Revision) -> proto::Revision {
    proto::Revision {
        revision: found.revision,
        author: found.author,
        time: found.time,
        digest: found.digest,
        texts: convert::texts(&found.texts),
    }
}

fn refused(why: String) -> Answer {
    Answer::Refused { why, parts: Vec::new() }
}

impl Daemon {
    /// Answers, now or, where something has to be waited for, later.
    pub(super) fn answer(&mut self, peer: &Peer, asked: Asked) {
        fn give<T>(reply: Reply<T>, answer: Result<T, Refusal>) {
            // Who asked may have gone.
            let _ = reply.send(answer.map_err(|status| *status));
        }
        match asked {
            Asked::Run(request, events) => self.run(peer, *request, events),
            Asked::Exec(request, events) => self.exec(peer, request, events),
            Asked::Logs(request, reply) => give(reply, self.logs(peer, &request)),
            Asked::ReadAudit(reply) => give(reply, self.read_audit(peer)),
            Asked::Wait(name, events) => self.wait(peer, &name, events),
            Asked::Attach(request, reply) => give(reply, self.attach(peer, *request)),
            Asked::List(request, reply) => give(reply, Ok(self.list(peer, &request))),
            Asked::Signal(request, reply) => give(reply, self.signal(peer, &request)),
            Asked::Stop(request, reply) => self.stop(peer, &request, reply),
            Asked::Ask(name, request, reply) => give(reply, self.ask(peer, &name, request)),
            Asked::Change(name, request, expected, reply) => {
                give(reply, self.change(peer, &name, request, expected));
            }
            Asked::Revisions(name, reply) => give(reply, self.revisions(peer, &name)),
            Asked::Rollback(request, reply) => give(reply, self.rollback(peer, &request)),
            Asked::SetGlobal(request, reply) => give(reply, self.set_global(peer, request)),
            Asked::Global(reply) => give(reply, self.global_policy(peer)),
            Asked::Policy(name, reply) => give(reply, self.policy(peer, &name)),
            Asked::Status(reply) => give(reply, Ok(self.status())),
        }
    }

    /// A sandbox by NAME-NUMBER, or by NAME where that is one. What the caller may not see is not there.
    pub(super) fn find(&self, peer: &Peer, name: &str) -> Result<u32, Refusal> {
        let seen = || self.members.iter().filter(|(_, member)| member.is_for(peer));
        if let Some((number, _)) = seen().find(|(_, member)| member.id == name) {
            return Ok(*number);
        }
        let of_name = seen().filter(|(number, _)| {
            self.host.sandbox(**number).is_some_and(|sandbox| sandbox.name() == name)
        });
        let found: Vec<(&u32, &Member)> = of_name.collect();
        match found.as_slice() {
            [(number, _)] => Ok(**number),
            [] => {
                let ids: Vec<&str> = seen().map(|(_, member)| member.id.as_str()).collect();
                let running = if ids.is_empty() {
                    String::new()
                } else {
                    format!("; running: {}", ids.join(", "))
                };
                Err(refuse(Status::not_found(format!(
                    "no sandbox `{name}` is running here{running}"
                ))))
            }
            many => {
                let ids: Vec<&str> = many.iter().map(|(_, member)| member.id.as_str()).collect();
                Err(refuse(Status::failed_precondition(format!(
                    "`{name}` is the name of several sandboxes: {}; name one of them",
                    ids.join(", ")
                ))))
            }
        }
    }

    fn run(&mut self, peer: &Peer, request: proto::RunRequest, events: Events) {
        match self.start(peer, request) {
            Ok(number) => {
                let sandbox = self.described(number);
                let started =
                    proto::run_event::Event::Started(proto::Started { sandbox, process: 0 });
                let _ = events.try_send(Box::new(Ok(proto::RunEvent { event: Some(started) })));
                if let Some(member) = self.members.get_mut(&number) {
                    (member.is_watched, member.events) = (true, vec![events]);
                }
            }
            Err(status) => drop(events.try_send(Box::new(Err(*status)))),
        }
    }

    /// Tells of the end of a sandbox that runs; it does not end with who waits.
    fn wait(&mut self, peer: &Peer, name: &str, events: Events) {
        let found = self.find(peer, name);
        let sandbox = found.map(|number| {
            if let Some(member) = self.members.get_mut(&number) {
                member.events.push(events.clone());
            }
            self.described(number)
        });
        let said = sandbox.map_err(|status| *status).map(|sandbox| {
            let started = proto::run_event::Event::Started(proto::Started { sandbox, process: 0 });
            proto::RunEvent { event: Some(started) }
        });
        let _ = events.try_send(Box::new(said));
    }

    fn start(&mut self, peer: &Peer, request: proto::RunRequest) -> Result<u32, Refusal> {
        let own = self.members.values().filter(|member| member.owner == peer.uid).count();
        let bound = self.config.limits.sandboxes_per_user;
        if !peer.manages() && own >= bound as usize {
            return Err(refuse(Status::resource_exhausted(format!(
                "you have {own} sandboxes, and `limits.sandboxes_per_user` is {bound}; stop one, or ask for more"
            ))));
        }
        self.may_begin()?;
        let order = self.order(peer, request)?;
        let number = self.free_number()?;
        let failed =
            |error: &dyn std::error::Error| refuse(Status::failed_precondition(error.to_string()));
        let mut run = order.prepare(self.host.next_generation()).map_err(|error| failed(&error))?;
        let bound = too_many_rules(run.most_rules, &run.image);
        if let Some(why) = bound.filter(|_| run.global.is_none()) {
            return Err(refuse(Status::resource_exhausted(why)));
        }
        let id = format!("{}-{number}", run.name);
        run.audit = self.trail_of(&id);
        let trail = run.audit.display().to_string();
        let names = self.names_of(&id);
        // Of one of this number that ended while nobody served it.
        drop(std::fs::remove_file(&names));
        run.names = Some(names);
        let ready = Ready::of(&mut run, number).map_err(|error| not_started(&error))?;
        let cgroup = Cgroup::create(&self.root, &self.cgroup_of(&id));
        let cgroup = cgroup.map_err(|error| failed(&error))?;
        self.host.start(run, ready, cgroup).map_err(|error| not_started(&error))?;
        let member = Member::new(id.clone(), peer.uid, trail, 1);
        self.members.insert(number, member);
        if let Err(error) = self.keep(number, peer.uid) {
            // The next daemon would not know it.
            self.end(number, None);
            return Err(refuse(Status::unavailable(format!("it was ended again: {error}"))));
        }
        tracing::info!(sandbox = id, uid = peer.uid, "started");
        Ok(number)
    }

    /// Whether a sandbox or a command could be served and would be known after a restart.
    pub(super) fn may_begin(&mut self) -> Result<(), Refusal> {
        if let Some(why) = descriptors::too_few() {
            return Err(refuse(Status::resource_exhausted(why)));
        }
        self.may_allow().map_err(|why| refuse(Status::unavailable(why)))?;
        self.store.check().map_err(|error| refuse(Status::unavailable(error.to_string())))
    }

    pub(super) fn free_number(&mut self) -> Result<u32, Refusal> {
        self.host.next_number().ok_or_else(|| {
            refuse(Status::resource_exhausted(
                "as many sandboxes run as the kernel's tables have room for",
            ))
        })
    }

    /// Where a sandbox's trail goes.
    pub(super) fn trail_of(&self, id: &str) -> PathBuf {
        self.config.trails.join(format!("{id}.jsonl"))
    }

    fn order(&self, peer: &Peer, request: proto::RunRequest) -> Result<Order, Refusal> {
        let wrong = |what: String| refuse(Status::invalid_argument(what));
        let audit_level = convert::audit_level(request.audit_level());
        let mode = convert::mode(request.mode());
        if request.command.is_empty() {
            return Err(wrong("name a command".to_owned()));
        }
        if request.texts.is_empty() {
            return Err(wrong("name a policy".to_owned()));
        }
        if !request.user.is_empty() && peer.uid != 0 {
            return Err(refuse(Status::permission_denied(
                "only root runs commands as somebody else; leave out --user",
            )));
        }
        let limits = self.limits(peer, &request)?;
        let inherit = Inherit::of(peer, request.environment).map_err(|error| {
            refuse(Status::failed_precondition(format!(
                "cannot give the command your streams and directory: {error}"
            )))
        })?;
        let run_as = identity::of_numbers(peer.uid, peer.gid, peer.groups());
        let run_as =
            run_as.map_err(|error| refuse(Status::permission_denied(error.to_string())))?;
        let share = request.share.iter().map(|part| Part::from_str(part, true).map_err(&wrong));
        let dns = if request.dns.is_empty() { &self.config.dns } else { &request.dns };
        let server =
            |text: &String| Upstream::parse_server(text).map_err(|error| wrong(error.to_string()));
        let patience = match request.ask_timeout_ms {
            0 => held::PATIENCE,
            milliseconds => Duration::from_millis(milliseconds),
        };
        Ok(Order {
            texts: convert::own_texts(request.texts),
            global: self.global.texts(),
            name: (!request.name.is_empty()).then_some(request.name),
            user: (!request.user.is_empty()).then_some(request.user),
            workdir: inherit.workdir.clone(),
            audit: None,
            audit_level,
            mode,
            lsm: if request.require_lsm { LsmUse::Require } else { self.config.lsm.into() },
            refusals: self.config.refusals,
            learning: false,
            share: share.collect::<Result<_, _>>()?,
            dns: dns.iter().map(server).collect::<Result<_, _>>()?,
            patience,
            command: request.command.into_iter().map(OsString::from_vec).collect(),
            trails: PathBuf::new(),
            run_as,
            limits,
            most_rules: (!peer.manages()).then_some(self.config.limits.rules_per_sandbox),
            inherit: Some(Arc::new(inherit)),
        })
    }

    fn list(&mut self, peer: &Peer, request: &proto::ListRequest) -> proto::ListReply {
        let only = |member: &Member| request.only.is_empty() || member.id == request.only;
        let seen = self.members.iter().filter(|(_, member)| member.is_for(peer) && only(member));
        let numbers: Vec<u32> = seen.map(|(number, _)| *number).collect();
        let sandboxes = numbers.into_iter().filter_map(|number| self.described(number));
        let mut sandboxes: Vec<proto::Sandbox> = sandboxes.collect();
        if !request.only.is_empty() {
            sandboxes.iter_mut().for_each(|sandbox| self.add_usage(sandbox));
        }
        proto::ListReply { sandboxes }
    }

    pub(super) fn described(&mut self, number: u32) -> Option<proto::Sandbox> {
        let (allowed, denied) = (self.host.allowed(number), self.host.denied(number));
        let member = self.members.get(&number)?;
        let sandbox = self.host.sandbox(number)?;
        let cgroup = sandbox.cgroup().path();
        let texts = sandbox.global().unwrap_or(sandbox.texts());
        let policy = texts.first().map(|text| text.name.clone());
        Some(proto::Sandbox {
            id: member.id.clone(),
            name: sandbox.name().to_owned(),
            owner: member.owner,
            pid: sandbox.first_process(),
            since: seconds(sandbox.since()),
            policy: policy.unwrap_or_default(),
            revision: member.revision,
            trail: member.trail.clone(),
            audit_only: sandbox.audit_only(),
            waiting: u32::try_from(sandbox.waiting()).unwrap_or(u32::MAX),
            denied,
            cgroup: cgroup.strip_prefix(&self.root).unwrap_or(cgroup).display().to_string(),
            usage: None,
            is_under_global: sandbox.global().is_some(),
            allowed,
        })
    }

    fn signal(
        &self,
        peer: &Peer,
        request: &proto::SignalRequest,
    ) -> Result<proto::SignalReply, Refusal> {
        let number = self.find(peer, &request.sandbox)?;
        let wrong = |why: String| refuse(Status::invalid_argument(why));
        let signal = Signal::try_from(request.signal).map_err(|error| wrong(error.to_string()))?;
        if request.process != 0 {
            self.signal_further(number, request.process, signal)?;
        } else if let Some(sandbox) = self.host.sandbox(number) {
            sandbox.signal(signal).map_err(|error| wrong(error.to_string()))?;
        }
        Ok(proto::SignalReply {})
    }

    fn stop(&mut self, peer: &Peer, request: &proto::StopRequest, reply: Reply<proto::StopReply>) {
        let number = match self.find(peer, &request.sandbox) {
            Ok(number) => number,
            Err(status) => return drop(reply.send(Err(*status))),
        };
        if let Some(member) = self.members.get_mut(&number) {
            member.stopping.push(reply);
        }
        let patience = match request.patience_ms {
            0 => PATIENCE,
            milliseconds => Duration::from_millis(milliseconds),
        };
        self.ask_to_end(number, Signal::SIGTERM, patience);
    }

    fn ask(&mut self, peer: &Peer, name: &str, request: Request) -> Result<proto::Answer, Refusal> {
        let number = self.find(peer, name)?;
        let gone = || refuse(Status::not_found(format!("sandbox `{name}` has just ended")));
        // What was held goes on by way of the agent, which the kernel does not ask about.
        let may =
            if matches!(request, Request::Approve { .. }) { self.may_allow() } else { Ok(()) };
        if let Err(why) = may {
            return Ok(refused(why.to_owned()).into());
        }
        let before = match &request {
            Request::SetPolicy(_)
            | Request::Approve { lasting: true, .. }
            | Request::ApproveRule { .. }
            | Request::WithdrawRule { .. } => {
                if let Err(error) = self.store.check() {
                    return Ok(refused(error.to_string()).into());
                }
                self.host.sandbox(number).map(Sandbox::written)
            }
            _ => None,
        };
        let since = Instant::now();
        let mut answer = self.host.answer(number, request).ok_or_else(gone)?;
        self.changes.count(&answer, since.elapsed());
        let member = self.members.get_mut(&number).ok_or_else(gone)?;
        match &mut answer {
            Answer::Changed { generation, .. }
            | Answer::Approved { generation: Some(generation), .. } => {
                member.revision += 1;
                *generation = member.revision;
                // Before it is said to be done.
                if let Err(error) = self.keep(number, peer.uid) {
                    answer = self.go_back(number, before, &error);
                }
            }
            _ => {}
        }
        Ok(answer.into())
    }

    /// Puts the policy of before in force again: the one that took its place would not be known after a
    /// restart.
    fn go_back(&mut self, number: u32, before: Option<Written>, error: &StoreError) -> Answer {
        let back = before.and_then(|before| self.host.go_back(number, before));
        if let Some(member) = self.members.get_mut(&number) {
            if back == Some(Ok(())) {
                member.revision -= 1;
            } else {
                // It is in force, and is written down as soon as it can be.
                member.unwritten = Some(member.owner);
            }
        }
        refused(match back {
            Some(Ok(())) => format!("{error}; the policy of before is in force"),
            Some(Err(why)) => {
                format!("{error}; the new policy is in force all the same, until a restart: {why}")
            }
            None => format!("{error}; the sandbox has just ended"),
        })
    }

    /// As [`Daemon::ask`], unless somebody else was faster.
    fn change(
        &mut self,
        peer: &Peer,
        name: &str,
        request: Request,
        expected: u32,
    ) -> Result<proto::Answer, Refusal> {
        let number = self.find(peer, name)?;
        let is = self.members.get(&number).map_or(0, |member| member.revision);
        if expected != 0 && expected != is {
            let why = format!(
                "revision {is} is in force, not {expected}: somebody else has changed the policy; look at \
                 `clawbox policy diff {name} {expected} {is}`, and try again"
            );
            return Ok(refused(why).into());
        }
        self.ask(peer, name, request)
    }

    fn revisions(&self, peer: &Peer, name: &str) -> Result<proto::RevisionsReply, Refusal> {
        let number = self.find(peer, name)?;
        let (Some(member), Some(sandbox)) = (self.members.get(&number), self.host.sandbox(number))
        else {
            return Err(refuse(Status::not_found(format!("sandbox `{name}` has just ended"))));
        };
        let found = self.store.revisions(&member.id, seconds(sandbox.since()));
        let found = found.map_err(|error| refuse(Status::internal(error.to_string())))?;
        Ok(proto::RevisionsReply { revisions: found.into_iter().map(described_revision).collect() })
    }

    fn rollback(
        &mut self,
        peer: &Peer,
        request: &proto::RollbackRequest,
    ) -> Result<proto::Answer, Refusal> {
        let proto::RollbackRequest { sandbox, revision, expected_revision } = request;
        let all = self.revisions(peer, sandbox)?.revisions;
        let found = all.into_iter().find(|found| found.revision == *revision).ok_or_else(|| {
            refuse(Status::not_found(format!(
                "`{sandbox}` has had no policy {revision}; `clawbox policy list {sandbox}` tells which"
            )))
        })?;
        let texts = convert::own_texts(found.texts);
        self.change(peer, sandbox, Request::SetPolicy(texts), *expected_revision)
    }

    fn policy(&self, peer: &Peer, name: &str) -> Result<proto::PolicyReply, Refusal> {
        let number = self.find(peer, name)?;
        let gone = || refuse(Status::not_found(format!("sandbox `{name}` has just ended")));
        let sandbox = self.host.sandbox(number).ok_or_else(gone)?;
        let member = self.members.get(&number).ok_or_else(gone)?;
        Ok(proto::PolicyReply {
            texts: convert::texts(sandbox.texts()),
            revision: member.revision,
            approved: sandbox.approved().to_owned(),
        })
    }
}

/// Under which a refusal to start carries the exit status that the command line has for it.
pub const EXIT_STATUS: &str = "exit-status";

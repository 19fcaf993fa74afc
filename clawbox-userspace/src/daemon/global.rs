//! The host's own policy, which is in force in every sandbox of the daemon in place of the sandbox's own
//! until it is ended. Those that could not be given it are told, and tried again.

use std::collections::BTreeSet;
use std::time::Instant;

use tonic::Status;

use super::Daemon;
use super::request::{Refusal, described_revision, refuse};
use super::store::StoreError;
use crate::api::peer::Peer;
use crate::api::{convert, proto};
use crate::compile::compile;
use crate::policy::{Loaded, load_texts};
use crate::sandbox::change::mistakes;
use crate::sandbox::control::{Answer, Text};

/// See the module.
#[derive(Default)]
pub(super) struct Global {
    /// Its number and files; `None` where every sandbox has its own.
    in_force: Option<(u32, Vec<Text>)>,
    /// Sandboxes that are not yet under it, or still.
    late: BTreeSet<u32>,
}

impl Global {
    /// As it was written down.
    pub(super) fn kept(in_force: Option<(u32, Vec<Text>)>) -> Self {
        Self { in_force, late: BTreeSet::new() }
    }

    /// What a sandbox is started under in place of its own.
    pub(super) fn texts(&self) -> Option<Vec<Text>> {
        self.in_force.as_ref().map(|(_, texts)| texts.clone())
    }

    /// Its revision; zero is none.
    pub(super) fn revision(&self) -> u32 {
        self.in_force.as_ref().map_or(0, |(revision, _)| *revision)
    }
}

/// What came of it in all sandboxes.
#[derive(Default)]
struct Came {
    resets: usize,
    warnings: Vec<String>,
    failed: Vec<String>,
}

impl Daemon {
    /// Sets it, sets one of its earlier revisions again, or ends it.
    pub(super) fn set_global(
        &mut self,
        peer: &Peer,
        request: proto::SetGlobalPolicyRequest,
    ) -> Result<proto::Answer, Refusal> {
        manages(peer)?;
        let since = Instant::now();
        let is = self.global.revision();
        let expected = request.expected_revision;
        if expected != 0 && expected != is {
            let why =
                format!("revision {is} is in force, not {expected}: somebody else has changed it");
            return Ok(refused(why, Vec::new()).into());
        }
        let to = match self.wanted_global(request)? {
            Ok(to) => to,
            Err(answer) => return Ok(answer.into()),
        };
        let kept = match &to {
            Some(texts) => self.store.set_global(texts, peer.uid),
            None => self.store.end_global().map(|()| 0),
        };
        let revision = match kept {
            Ok(revision) => revision,
            Err(error) => return Ok(refused(error.to_string(), Vec::new()).into()),
        };
        let is_ended = to.is_none();
        self.global.in_force = to.map(|texts| (revision, texts));
        tracing::warn!(revision, uid = peer.uid, is_ended, "the host's policy has changed");
        let all = self.members.keys().copied().collect();
        let came = self.bring_under(all);
        let microseconds = u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX);
        let answer = if came.failed.is_empty() {
            let (generation, connections_reset) = (revision, came.resets);
            Answer::Changed { generation, microseconds, connections_reset, warnings: came.warnings }
        } else {
            let why = "not all sandboxes have it; those are tried again each second, and have what they had \
                       until then";
            refused(why.to_owned(), came.failed)
        };
        self.changes.count(&answer, since.elapsed());
        Ok(answer.into())
    }

    /// The files that are to be in force, or why they cannot be.
    fn wanted_global(
        &self,
        request: proto::SetGlobalPolicyRequest,
    ) -> Result<Result<Option<Vec<Text>>, Answer>, Refusal> {
        if request.end {
            return Ok(Ok(None));
        }
        let texts = if request.revision == 0 {
            convert::own_texts(request.texts)
        } else {
            let all = self.store.global_revisions().map_err(internal)?;
            let found = all.into_iter().find(|found| found.revision == request.revision);
            let unknown = || {
                let revision = request.revision;
                refuse(Status::not_found(format!(
                    "the host has had no policy {revision}; `clawbox policy list --global` tells which"
                )))
            };
            found.ok_or_else(unknown)?.texts
        };
        if texts.is_empty() {
            return Err(refuse(Status::invalid_argument("name a policy")));
        }
        let named = texts.iter().map(|text| (text.name.as_str().into(), text.text.clone()));
        let loaded = load_texts(&named.collect::<Vec<_>>()).and_then(Loaded::enforceable);
        let compiled = loaded.and_then(|loaded| compile(&loaded.policy, 1));
        Ok(compiled.map(|_| Some(texts)).map_err(mistakes))
    }

    /// Gives sandboxes what they are to have, and remembers those that do not have it then.
    fn bring_under(&mut self, numbers: Vec<u32>) -> Came {
        let mut came = Came::default();
        for number in numbers {
            let wanted = self.global.texts();
            let answer = self.host.go_under(number, wanted);
            self.global.late.remove(&number);
            let Some(member) = self.members.get(&number) else { continue };
            let (id, owner) = (member.id.clone(), member.owner);
            match answer {
                Some(Answer::Changed { connections_reset, warnings, .. }) => {
                    came.resets += connections_reset;
                    came.warnings.extend(warnings.iter().map(|warning| format!("{id}: {warning}")));
                    self.keep_in_time(number, owner);
                }
                Some(other) => {
                    let why = why(other);
                    tracing::error!(
                        sandbox = id,
                        "not under the policy that the host is to have: {why}"
                    );
                    came.failed.push(format!("{id}: {why}"));
                    self.global.late.insert(number);
                }
                None => {}
            }
        }
        came
    }

    /// Tries those again that do not have it.
    pub(super) fn look_after_global(&mut self) {
        let late: Vec<u32> = self.global.late.iter().copied().collect();
        if !late.is_empty() {
            self.bring_under(late);
        }
    }

    /// Of sandboxes that were taken over, those that were not written down with what is to be in force.
    pub(super) fn resume_global(&mut self) {
        let wanted = self.global.texts();
        let differs = |number: &&u32| {
            let found = self.host.sandbox(**number);
            found.is_some_and(|sandbox| sandbox.global() != wanted.as_deref())
        };
        let differing = self.members.keys().filter(differs).copied().collect();
        self.bring_under(differing);
    }

    /// Its revisions, for who manages.
    pub(super) fn global_policy(&self, peer: &Peer) -> Result<proto::GlobalPolicyReply, Refusal> {
        manages(peer)?;
        let all = self.store.global_revisions().map_err(internal)?;
        Ok(proto::GlobalPolicyReply {
            revisions: all.into_iter().map(described_revision).collect(),
            in_force: self.global.revision(),
        })
    }
}

fn manages(peer: &Peer) -> Result<(), Refusal> {
    if peer.manages() {
        return Ok(());
    }
    Err(refuse(Status::permission_denied(
        "only root and the group clawbox have a say in the host's policy",
    )))
}

fn internal(error: StoreError) -> Refusal {
    refuse(Status::internal(error.to_string()))
}

fn refused(why: String, parts: Vec<String>) -> Answer {
    Answer::Refused { why, parts }
}

/// What an answer that is no change says.
fn why(answer: Answer) -> String {
    match answer {
        Answer::Refused { why, parts } => [vec![why], parts].concat().join("; "),
        Answer::DoesNotLoad { errors } => errors.join("; "),
        other => format!("{other:?}"),
    }
}

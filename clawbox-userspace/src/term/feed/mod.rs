//! What is shown comes from here, and what is wanted goes: a thread that speaks with the daemon.

mod advice;
mod following;
mod inbox;
mod orders;
mod processes;

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::Sender;
use std::thread;
use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinHandle;

use super::screen::give_back;
use super::state::{Effect, Message, Poll, Revision, Row, Told};
use super::{Wake, plain};
use crate::api::client::{Client, ClientError};
use crate::api::{convert, proto};
use crate::sandbox::control::{Answer, Request};
use following::{Into, Started};
use inbox::Inbox;

/// From one look at all sandboxes to the next.
const LOOK: Duration = Duration::from_millis(500);

/// Sandboxes whose events are followed.
const FOLLOWED: usize = 64;

/// How long who draws may take to end when a signal says so; a terminal may take nothing any more.
const GRACE: Duration = Duration::from_secs(2);

/// The thread's other end.
pub(super) struct Feed {
    inbox: Arc<Inbox>,
    effects: UnboundedSender<Effect>,
}

impl Feed {
    /// Begins to speak with the daemon.
    pub(super) fn begin(socket: PathBuf, wake: Sender<Wake>) -> io::Result<Self> {
        let inbox = Arc::new(Inbox::new(wake));
        let (effects, wanted) = unbounded_channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        {
            let _inside = runtime.enter();
            for kind in [SignalKind::terminate(), SignalKind::hangup(), SignalKind::interrupt()] {
                let (mut signals, inbox) = (signal(kind)?, Arc::clone(&inbox));
                runtime.spawn(async move {
                    if signals.recv().await.is_some() {
                        inbox.signal(kind.as_raw_value());
                        tokio::time::sleep(GRACE).await;
                        give_back();
                        std::process::exit(128 + kind.as_raw_value());
                    }
                });
            }
        }
        let talk = Talk {
            socket,
            inbox: Arc::clone(&inbox),
            began: Instant::now(),
            wanted: String::new(),
            told: None,
            followed: BTreeMap::new(),
            started: Arc::default(),
        };
        thread::Builder::new().name("feed".to_owned()).spawn(move || {
            runtime.block_on(talk.go_on(wanted));
        })?;
        Ok(Self { inbox, effects })
    }

    /// What has come.
    pub(super) fn take(&self) -> Vec<Message> {
        self.inbox.take()
    }

    /// Has something done.
    pub(super) fn tell(&self, effect: Effect) {
        // It goes on as long as the process does.
        let _ = self.effects.send(effect);
    }
}

/// The conversation.
struct Talk {
    socket: PathBuf,
    inbox: Arc<Inbox>,
    began: Instant,
    /// The sandbox that is shown by itself.
    wanted: String,
    /// What was last said of it, without its processes, and at which revision.
    told: Option<(u32, Told)>,
    followed: BTreeMap<String, Followed>,
    started: Started,
}

/// A sandbox whose events are followed.
#[derive(Default)]
struct Followed {
    task: Option<JoinHandle<()>>,
    /// The last record that was shown.
    seen: Arc<AtomicU64>,
}

impl Talk {
    async fn go_on(mut self, mut effects: UnboundedReceiver<Effect>) {
        let mut client = None;
        let mut looks = tokio::time::interval(LOOK);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = looks.tick() => {}
                effect = effects.recv() => match (effect, &client) {
                    (None, _) => return,
                    (Some(effect), Some(client)) => self.carry_out(client, effect).await,
                    // The wish is remembered, the rest cannot be done.
                    (Some(effect), None) => self.without_daemon(effect),
                },
            }
            let found = match client.take() {
                Some(client) => Ok(client),
                None => Client::connect(&self.socket).await,
            };
            client = match found {
                Ok(found) => self.look(&found).await.map(|()| found),
                Err(error) => Err(error),
            }
            .map_err(|error| self.lost(&error))
            .ok();
        }
    }

    /// The daemon is gone; its sandboxes go on, and so does who waits for the next one.
    fn lost(&mut self, error: &ClientError) {
        self.inbox.message(Message::Trouble(Some(error.to_string())));
        self.followed.values_mut().filter_map(|followed| followed.task.take()).for_each(|task| {
            task.abort();
        });
    }

    fn without_daemon(&mut self, effect: Effect) {
        match effect {
            Effect::Look(sandbox) => (self.wanted, self.told) = (sandbox, None),
            Effect::Do(order) => {
                let outcome = Err("the daemon does not answer".to_owned());
                self.inbox.message(Message::Done(super::state::Done { order, outcome }));
            }
            Effect::Ask(_) | Effect::Quit => {}
        }
    }

    async fn carry_out(&mut self, client: &Client, effect: Effect) {
        match effect {
            Effect::Quit => {}
            Effect::Look(sandbox) => (self.wanted, self.told) = (sandbox, None),
            Effect::Ask(key) => {
                let (client, inbox) = (client.clone(), Arc::clone(&self.inbox));
                tokio::spawn(async move {
                    if let Some(advice) = advice::of(&client, &key).await {
                        inbox.message(Message::Advice(key, advice));
                    }
                });
            }
            Effect::Do(order) => {
                let outcome = orders::carry_out(client, &order).await;
                self.inbox.message(Message::Done(super::state::Done { order, outcome }));
            }
        }
    }

    /// Looks at all sandboxes.
    async fn look(&mut self, client: &Client) -> Result<(), ClientError> {
        let request = proto::ListRequest { only: String::new() };
        let found = client.sandboxes().list(request).await?.into_inner().sandboxes;
        let mut waiting = Vec::new();
        for sandbox in found.iter().filter(|sandbox| sandbox.waiting > 0) {
            // It may just have ended.
            if let Ok(Answer::Waiting { connections }) =
                client.ask(&sandbox.id, Request::Waiting).await
            {
                waiting.push((sandbox.id.clone(), connections));
            }
        }
        self.follow(client, &found);
        let cgroups = found.iter().map(|sandbox| sandbox.cgroup.clone()).collect();
        let counts = tokio::task::spawn_blocking(|| processes::counts(cgroups)).await;
        let counts = counts.unwrap_or_default();
        let counts = counts.into_iter().chain(std::iter::repeat(None));
        let rows = found.iter().zip(counts).map(|(sandbox, count)| row(sandbox, count)).collect();
        let at = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let not_followed = found.len().saturating_sub(self.followed.len());
        self.inbox.poll(Poll { at, rows, waiting, not_followed });
        if let Some(sandbox) = found.iter().find(|sandbox| sandbox.id == self.wanted) {
            match self.tell_of(client, sandbox).await {
                // It has just ended.
                Err(error) if !error.is_unknown_sandbox() => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// Follows the events of those that run, as many as can be.
    fn follow(&mut self, client: &Client, found: &[proto::Sandbox]) {
        self.followed.retain(|id, _| found.iter().any(|sandbox| sandbox.id == *id));
        for sandbox in found {
            let is_new = !self.followed.contains_key(&sandbox.id);
            if is_new && self.followed.len() >= FOLLOWED {
                continue;
            }
            let followed = self.followed.entry(sandbox.id.clone()).or_default();
            if followed.task.as_ref().is_some_and(|task| !task.is_finished()) {
                continue;
            }
            let into = Into {
                inbox: Arc::clone(&self.inbox),
                started: Arc::clone(&self.started),
                seen: Arc::clone(&followed.seen),
            };
            let task = following::follow(client.clone(), sandbox.id.clone(), into);
            followed.task = Some(tokio::spawn(task));
        }
    }

    /// Tells of one sandbox.
    async fn tell_of(
        &mut self,
        client: &Client,
        sandbox: &proto::Sandbox,
    ) -> Result<(), ClientError> {
        let known = self.told.take().filter(|(revision, _)| *revision == sandbox.revision);
        let mut told = match known {
            Some((_, told)) => told,
            None => policies(client, &sandbox.id).await?,
        };
        let (cgroup, started) = (sandbox.cgroup.clone(), Arc::clone(&self.started));
        let processes = tokio::task::spawn_blocking(move || processes::of(&cgroup, &started)).await;
        told.processes = processes.unwrap_or_default();
        self.told = Some((sandbox.revision, told.clone()));
        self.inbox.told(told);
        Ok(())
    }
}

fn row(sandbox: &proto::Sandbox, processes: Option<usize>) -> Row {
    Row {
        id: plain::plain(&sandbox.id),
        owner: plain::plain(&crate::cli::sandboxes::user(sandbox.owner)),
        policy: plain::plain(&sandbox.policy),
        revision: sandbox.revision,
        is_under_global: sandbox.is_under_global,
        audit_only: sandbox.audit_only,
        waiting: sandbox.waiting,
        allowed: sandbox.allowed,
        denied: sandbox.denied,
        processes,
    }
}

/// A sandbox's policies.
async fn policies(client: &Client, sandbox: &str) -> Result<Told, ClientError> {
    let named = sandbox.to_owned();
    let request = proto::GetPolicyRequest { sandbox: named.clone() };
    let policy = client.sandboxes().get_policy(request).await?.into_inner();
    let request = proto::ListRevisionsRequest { sandbox: named.clone() };
    let revisions = client.sandboxes().list_revisions(request).await?.into_inner().revisions;
    let revisions = revisions.into_iter().rev().map(|revision| Revision {
        number: revision.revision,
        author: plain::plain(&crate::cli::sandboxes::user(revision.author)),
        time: time(revision.time),
        text: one_text(revision.texts),
    });
    Ok(Told {
        sandbox: named,
        text: one_text(policy.texts),
        approved: policy.approved,
        revisions: revisions.collect(),
        processes: Vec::new(),
    })
}

fn time(seconds: u64) -> String {
    let at = std::time::UNIX_EPOCH.checked_add(Duration::from_secs(seconds));
    at.map(|at| humantime::format_rfc3339_seconds(at).to_string()).unwrap_or_default()
}

/// Files one behind the other.
fn one_text(texts: Vec<proto::Text>) -> String {
    let texts = convert::own_texts(texts).into_iter();
    texts.map(|text| format!("# {}\n{}\n", text.name, text.text)).collect()
}

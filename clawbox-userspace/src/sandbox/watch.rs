//! The life of a running sandbox as seen from outside: serve its names, write its events down,
//! pass signals on, until its first process ends.

use std::io;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::{Pid, getpgrp, tcgetpgrp, tcsetpgrp};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{MissedTickBehavior, interval};

use super::birth::Process;
use super::change::{Change, LivePolicy};
use super::control::{self, Answer, Request};
use super::held::HeldConnections;
use super::monitor::{Monitor, TICK};
use super::strays::Remnants;
use crate::dns::{Resolver, ResolverSockets};
use crate::gateway::Verifier;

/// How often the kernel's loss counters are looked at.
const LOSSES: Duration = Duration::from_secs(1);

/// How often what was allowed is summed up.
const SUMMARY: Duration = Duration::from_secs(60);

/// Signals that are meant for the command.
pub(super) const FORWARDED: [Signal; 6] = [
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGHUP,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
];

/// Keeps the signals that are meant for the command waiting, from before anything is put into the
/// system until somebody receives them: one that came in between would end clawbox alone, and
/// leave the command without it. A child inherits what is blocked: see [`receive_signals`].
#[derive(Debug)]
pub struct HeldSignals(SigSet);

impl HeldSignals {
    /// From now on, for the calling thread.
    ///
    /// # Errors
    /// As the system says; it has no reason to.
    pub fn hold() -> io::Result<Self> {
        let set: SigSet = FORWARDED.into_iter().collect();
        set.thread_block()?;
        Ok(Self(set))
    }
}

/// Lets the calling process receive the signals that [`HeldSignals`] holds back in its parent. For
/// a forked child: makes one system call.
///
/// # Errors
/// As the system says; it has no reason to.
pub fn receive_signals() -> io::Result<()> {
    let set: SigSet = FORWARDED.into_iter().collect();
    Ok(set.thread_unblock()?)
}

impl Drop for HeldSignals {
    fn drop(&mut self) {
        if let Err(error) = self.0.thread_unblock() {
            tracing::warn!("signals stay blocked: {error}");
        }
    }
}

/// Gives the terminal back when dropped. In a pid namespace a shell that has taken the foreground
/// cannot do it itself: the group that had it before has no number there.
#[derive(Debug)]
pub struct Foreground(bool);

impl Foreground {
    /// Remembers whether the terminal is this process's.
    #[must_use]
    pub fn find() -> Self {
        Self(tcgetpgrp(io::stdin()).is_ok_and(|foreground| foreground == getpgrp()))
    }
}

impl Drop for Foreground {
    fn drop(&mut self) {
        // Only from those who are no more: somebody else may have taken it meanwhile.
        let is_nobodys = |group: Pid| kill(Pid::from_raw(-group.as_raw()), None).is_err();
        if !self.0 || !tcgetpgrp(io::stdin()).is_ok_and(is_nobodys) {
            return;
        }
        let mut set = SigSet::empty();
        set.add(Signal::SIGTTOU);
        // Who is not in the foreground may take it only without being stopped for it.
        let taken = set.thread_block().and_then(|()| tcsetpgrp(io::stdin(), getpgrp()));
        if let Err(error) = taken.and_then(|()| set.thread_unblock()) {
            tracing::debug!("the terminal stays without a foreground: {error}");
        }
    }
}

/// What is served while a sandbox runs.
pub struct Served {
    /// Its names.
    pub resolver: Arc<Resolver>,
    /// Where they are asked for.
    pub sockets: ResolverSockets,
    /// Its connections whose host is to be verified, and where they come.
    pub verifier: (Arc<Verifier>, TcpListener),
    /// Its connections that wait for an answer.
    pub held: HeldConnections,
    /// The run.
    pub run: String,
    /// Its control socket.
    pub control: UnixListener,
}

/// Serves a sandbox until its first process ends. Gives that process's status and the monitor,
/// which has not been drained since.
///
/// # Errors
/// Signals cannot be received.
pub async fn until_exit(
    mut child: Process,
    mut monitor: Monitor,
    served: Served,
    policy: &mut LivePolicy<'_>,
    mut remnants: Remnants,
    held: HeldSignals,
) -> io::Result<(ExitStatus, Monitor)> {
    let mut ended = signal(SignalKind::child())?;
    let mut signals = Forwarded::listen()?;
    drop(held);
    let Served { resolver, sockets, verifier: (verifier, listener), mut held, run, control } =
        served;
    let names = Arc::clone(&resolver);
    let serving = tokio::spawn(resolver.serve(sockets));
    let verifying = tokio::spawn(verifier.serve(listener));
    let mut asked = control::listen(&run, control)?;
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut looked, mut summed_up) = (Instant::now(), Instant::now());
    let process = child.pid();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        tokio::select! {
            _ = ended.recv() => {}
            _ = tick.tick() => monitor.drain(),
            () = monitor.filled() => monitor.drain(),
            received = signals.next() => pass_on(process, received),
            Some((request, answer)) = asked.recv() => {
                // What was decided before is written down under the policy that decided it.
                monitor.drain();
                held.take_up(&mut monitor, policy);
                let said = answered(&mut monitor, policy, &mut held, &names, request);
                // Who asked may have gone; the record says what was done.
                let _ = answer.send(said);
            }
        }
        held.take_up(&mut monitor, policy);
        held.give_up(&mut monitor);
        if looked.elapsed() >= LOSSES {
            looked = Instant::now();
            monitor.count_losses();
            if summed_up.elapsed() >= SUMMARY {
                summed_up = Instant::now();
                monitor.sum_up();
            }
            if let Err(error) = remnants.clear() {
                tracing::warn!("identities of ended processes stay: {error}");
            }
            if serving.is_finished() {
                tracing::warn!("the sandbox's resolver has stopped; names no longer resolve in it");
            }
            if verifying.is_finished() {
                tracing::warn!("connections whose host is to be verified fail from now on");
            }
        }
    };
    serving.abort();
    verifying.abort();
    Ok((status, monitor))
}

/// Does what is asked and writes it down.
fn answered(
    monitor: &mut Monitor,
    policy: &mut LivePolicy<'_>,
    held: &mut HeldConnections,
    names: &Arc<Resolver>,
    request: Request,
) -> Answer {
    let changed = |monitor: &mut Monitor, policy: &LivePolicy<'_>, change: Change| {
        monitor.policy_changed(&change, policy.in_force.image().audit_only());
        change.answer
    };
    match request {
        Request::SetPolicy(texts) => {
            let change = policy.replace(texts);
            changed(monitor, policy, change)
        }
        Request::Waiting => Answer::Waiting { connections: held.list() },
        Request::Deny { id } => held.deny(id, monitor),
        Request::Approve { id, lasting } => {
            let Some(connection) = held.find(id) else { return held.unknown(id) };
            let mut in_force = None;
            if lasting {
                if connection.rule.is_empty() {
                    return HeldConnections::nobody(id);
                }
                let change = policy.approve(&connection.rule);
                match changed(monitor, policy, change) {
                    Answer::Changed { generation, .. } => in_force = Some(generation),
                    other => return other,
                }
            }
            held.approve(id, in_force, names, monitor)
        }
    }
}

/// What a terminal's foreground group has got from the terminal itself is not sent a second time.
fn pass_on(process: Pid, received: Signal) {
    let by_terminal = matches!(received, Signal::SIGINT | Signal::SIGQUIT)
        && tcgetpgrp(io::stdin()).is_ok_and(|foreground| foreground == getpgrp());
    if !by_terminal && let Err(error) = kill(process, received) {
        tracing::debug!("cannot pass {received} on: {error}");
    }
}

/// Receives [`FORWARDED`].
struct Forwarded {
    streams: Vec<(Signal, tokio::signal::unix::Signal)>,
}

impl Forwarded {
    fn listen() -> io::Result<Self> {
        let streams = FORWARDED
            .into_iter()
            .map(|number| Ok((number, signal(SignalKind::from_raw(number as i32))?)))
            .collect::<io::Result<_>>()?;
        Ok(Self { streams })
    }

    async fn next(&mut self) -> Signal {
        std::future::poll_fn(|context| {
            for (number, stream) in &mut self.streams {
                if stream.poll_recv(context).is_ready() {
                    return std::task::Poll::Ready(*number);
                }
            }
            std::task::Poll::Pending
        })
        .await
    }
}

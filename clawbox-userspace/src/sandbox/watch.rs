//! The life of a running sandbox as seen from outside: serve its names, write its events down,
//! pass signals on, until its first process ends.

use std::io;
use std::os::unix::net::UnixListener;

use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::{Pid, getpgrp, tcgetpgrp, tcsetpgrp};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::sleep_until;

use super::birth::End;
use super::control;
use super::host::Host;

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

/// Serves a host's one sandbox until its first process ends, and gives that process's status. What has
/// been told since is still to be written down.
///
/// # Errors
/// Signals cannot be received.
pub async fn until_exit(
    host: &mut Host,
    sandbox: u32,
    run: &str,
    control: UnixListener,
    held: HeldSignals,
) -> io::Result<End> {
    let mut ended = signal(SignalKind::child())?;
    let mut signals = Forwarded::listen()?;
    drop(held);
    let mut asked = control::listen(run, control)?;
    loop {
        let deadline = host.deadline();
        if let Some(status) = host.ended(sandbox)? {
            return Ok(status);
        }
        tokio::select! {
            _ = ended.recv() => {}
            () = sleep_until(deadline.into()) => {}
            () = host.due() => {}
            received = signals.next() => {
                if let Some(sandbox) = host.sandbox(sandbox) {
                    pass_on(Pid::from_raw(sandbox.first_process().cast_signed()), received);
                }
            }
            Some((request, answer)) = asked.recv() => {
                if let Some(said) = host.answer(sandbox, request) {
                    // Who asked may have gone; the record says what was done.
                    let _ = answer.send(said);
                }
            }
        }
        host.look();
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

/// Receives the signals that are meant for the command.
pub struct Forwarded {
    streams: Vec<(Signal, tokio::signal::unix::Signal)>,
}

impl Forwarded {
    /// From now on. Call it inside the runtime.
    ///
    /// # Errors
    /// The system does not let this process receive one.
    pub fn listen() -> io::Result<Self> {
        let streams = FORWARDED
            .into_iter()
            .map(|number| Ok((number, signal(SignalKind::from_raw(number as i32))?)))
            .collect::<io::Result<_>>()?;
        Ok(Self { streams })
    }

    /// The next one.
    pub async fn next(&mut self) -> Signal {
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

//! Further commands in sandboxes that run: who has asked for one, and how it ends.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::sync::Arc;
use std::time::Instant;

use nix::sys::signal::Signal;
use tonic::Status;

use super::member::PATIENCE;
use super::request::{Refusal, not_started, refuse};
use super::{Daemon, descriptors};
use crate::api::peer::Peer;
use crate::api::proto;
use crate::api::server::Events;
use crate::sandbox::birth::{End, Process};
use crate::sandbox::child;
use crate::sandbox::enter_running::Further;
use crate::sandbox::inherit::Inherit;

/// Further commands that one sandbox has at one time.
const MOST: usize = 64;

/// One that runs.
pub(super) struct Command {
    /// The number of its sandbox.
    sandbox: u32,
    process: Process,
    /// Whoever has asked for it.
    events: Events,
    /// When it is ended by force.
    deadline: Option<Instant>,
}

impl Daemon {
    /// Starts one.
    pub(super) fn exec(&mut self, peer: &Peer, request: proto::ExecRequest, events: Events) {
        match self.start_further(peer, request) {
            Ok((sandbox, process)) => {
                let number = process.pid().as_raw().cast_unsigned();
                let described = self.described(sandbox);
                let started = proto::Started { sandbox: described, process: number };
                let started = proto::run_event::Event::Started(started);
                let _ = events.try_send(Box::new(Ok(proto::RunEvent { event: Some(started) })));
                self.further.push(Command { sandbox, process, events, deadline: None });
            }
            Err(status) => drop(events.try_send(Box::new(Err(*status)))),
        }
    }

    fn start_further(
        &mut self,
        peer: &Peer,
        request: proto::ExecRequest,
    ) -> Result<(u32, Process), Refusal> {
        let number = self.find(peer, &request.sandbox)?;
        if request.command.is_empty() {
            return Err(refuse(Status::invalid_argument("name a command")));
        }
        if self.further.iter().filter(|command| command.sandbox == number).count() >= MOST {
            return Err(refuse(Status::resource_exhausted(format!(
                "{MOST} further commands run in `{}` already; wait until one has ended",
                request.sandbox
            ))));
        }
        if let Some(why) = descriptors::too_few() {
            return Err(refuse(Status::resource_exhausted(why)));
        }
        self.may_allow().map_err(|why| refuse(Status::unavailable(why)))?;
        if self.host.sandbox(number).is_some_and(|found| found.runs_as_root()) && peer.uid != 0 {
            return Err(refuse(Status::permission_denied(
                "the sandbox runs as root, and only root runs commands as somebody else",
            )));
        }
        let inherit = Inherit::of(peer, request.environment).map_err(|error| {
            refuse(Status::failed_precondition(format!(
                "cannot give the command your streams: {error}"
            )))
        })?;
        let further = Further {
            command: request.command.into_iter().map(OsString::from_vec).collect(),
            workdir: (!request.workdir.is_empty())
                .then(|| OsString::from_vec(request.workdir).into()),
            inherit: Arc::new(inherit),
            asked_by: peer.uid,
        };
        let gone =
            || refuse(Status::not_found(format!("sandbox `{}` has just ended", request.sandbox)));
        let started = self.host.start_further(number, &further).ok_or_else(gone)?;
        let process = started.map_err(|error| not_started(&error))?;
        tracing::info!(sandbox = request.sandbox, uid = peer.uid, "further command started");
        Ok((number, process))
    }

    /// Sends one a signal.
    ///
    /// # Errors
    /// There is none of this number in the sandbox.
    pub(super) fn signal_further(
        &self,
        sandbox: u32,
        process: u32,
        signal: Signal,
    ) -> Result<(), Refusal> {
        let found = self.further.iter().find(|command| {
            command.sandbox == sandbox && command.process.pid().as_raw().cast_unsigned() == process
        });
        let gone = |why: String| refuse(Status::not_found(why));
        let found =
            found.ok_or_else(|| gone(format!("no command of yours is process {process}")))?;
        found.process.signal(signal).map_err(|error| gone(error.to_string()))
    }

    /// Tells of those that have ended, and ends those whose user has gone. Process 1 of a sandbox does not
    /// end before this: the kernel has it wait until all of its namespace have been waited for.
    pub(super) fn look_after_further(&mut self) {
        self.further.retain_mut(|command| match command.process.try_wait() {
            Ok(Some(end)) => {
                command.tell(end);
                false
            }
            Ok(None) => {
                command.hurry();
                true
            }
            Err(error) => {
                tracing::error!("a further command cannot be waited for: {error}");
                command.tell(End::Unknown);
                false
            }
        });
    }
}

impl Command {
    fn tell(&self, end: End) {
        let ended = proto::Ended { status: child::code(end).into(), denied: 0 };
        let ended = proto::run_event::Event::Ended(ended);
        // Who has gone does not hear of it.
        let _ = self.events.try_send(Box::new(Ok(proto::RunEvent { event: Some(ended) })));
    }

    fn hurry(&mut self) {
        if !self.events.is_closed() {
            return;
        }
        let (signal, is_due) = match self.deadline {
            None => (Signal::SIGHUP, true),
            Some(deadline) => (Signal::SIGKILL, Instant::now() >= deadline),
        };
        self.deadline.get_or_insert_with(|| Instant::now() + PATIENCE);
        if is_due && let Err(error) = self.process.signal(signal) {
            tracing::debug!("a further command was not told to end: {error}");
        }
    }
}

//! `clawbox exec`: one more command in a sandbox that runs.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::bail;
use clap::Args;

use super::complete;
use super::remote::{environment, refused};
use crate::api::client::{Client, ClientError, socket, wait};
use crate::api::proto;
use crate::api::proto::run_event::Event;
use crate::sandbox::child::status;
use crate::sandbox::watch::Forwarded;

/// Run one more command in a sandbox that runs
///
/// It has the sandbox's policy, user, processes and files, and your terminal, environment, umask and limits.
/// What was written down of it is in the sandbox's audit trail.
#[derive(Debug, Args)]
#[command(after_help = "\
Exit status: the command's own; 125 it could not be started; 126 it cannot be executed; 127 there is no
such command; 128+N it was ended by signal N.

Examples:
  clawbox exec agent -- ps ax
  clawbox exec agent-12 --workdir /srv/agent -- sh")]
pub struct ExecCommand {
    /// The sandbox, by its name, or by NAME-NUMBER where several have it
    #[arg(add = complete::sandboxes())]
    sandbox: String,
    /// Where to start [default: where the sandbox was started]
    #[arg(long, value_name = "DIR")]
    workdir: Option<PathBuf>,
    /// The command and its arguments
    #[arg(required = true, last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

impl ExecCommand {
    /// Runs it.
    ///
    /// # Errors
    /// The daemon does not answer.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let Some(socket) = socket() else {
            bail!(
                "the daemon is not running here, and a sandbox of its own takes no further command"
            );
        };
        let request = proto::ExecRequest {
            sandbox: self.sandbox,
            command: self.command.into_iter().map(OsString::into_vec).collect(),
            environment: environment(),
            workdir: self.workdir.map(|path| path.into_os_string().into_vec()).unwrap_or_default(),
        };
        match wait(follow(&socket, request)) {
            Ok(ended) => Ok(ExitCode::from(u8::try_from(ended).unwrap_or(status::FAILED))),
            Err(error) => refused(error),
        }
    }
}

/// Waits for the end and gives its status.
async fn follow(socket: &Path, request: proto::ExecRequest) -> Result<u32, ClientError> {
    // Before anything is started: a signal that comes in between is the command's too.
    let mut signals = Forwarded::listen()?;
    let client = Client::connect(socket).await?;
    let mut events = client.sandboxes().exec(request).await?.into_inner();
    let mut running = None;
    loop {
        tokio::select! {
            event = events.message() => match event {
                Ok(Some(proto::RunEvent { event: Some(Event::Started(started)) })) => {
                    running = started.sandbox.map(|sandbox| (sandbox.id, started.process));
                }
                Ok(Some(proto::RunEvent { event: Some(Event::Ended(ended)) })) => {
                    return Ok(ended.status);
                }
                // Of a later version.
                Ok(Some(_)) => {}
                Err(status) if running.is_none() => return Err(status.into()),
                Ok(None) | Err(_) => return Err(ClientError::Ended),
            },
            // What comes before it is known whose it is waits.
            received = signals.next(), if running.is_some() => if let Some((id, process)) = &running {
                let (sandbox, process) = (id.clone(), *process);
                let request = proto::SignalRequest { sandbox, signal: received as i32, process };
                // It may just have ended.
                if let Err(status) = client.sandboxes().signal(request).await {
                    tracing::debug!("cannot pass {received} on: {status}");
                }
            },
        }
    }
}

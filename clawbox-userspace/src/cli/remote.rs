//! `clawbox run` where the daemon runs: the daemon starts the command with this process's streams, and
//! this process waits for its end and passes signals on.

use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::ValueEnum as _;
use tonic::Streaming;

use super::{denials, told};
use crate::api::client::{Client, ClientError, wait};
use crate::api::proto::run_event::Event;
use crate::api::{convert, proto};
use crate::daemon::EXIT_STATUS;
use crate::sandbox::child::status;
use crate::sandbox::launch::namespaces::Part;
use crate::sandbox::limits::{Cpus, Memory};
use crate::sandbox::order::Order;
use crate::sandbox::run::LsmUse;
use crate::sandbox::watch::Forwarded;

/// How long the next daemon is waited for, and how often it is looked for.
const PATIENCE: Duration = Duration::from_secs(60);
/// Denials that are looked at to tell them in brief.
const SHOWN: u64 = 1_000;
const PAUSE: Duration = Duration::from_millis(200);

/// Has the daemon carry an order out, and gives the command's status.
///
/// # Errors
/// The daemon does not answer.
pub(super) fn run(socket: &Path, order: Order, quiet: bool) -> anyhow::Result<ExitCode> {
    std::env::set_current_dir(&order.workdir)?;
    let request = request(order);
    match wait(follow(socket, request)) {
        Ok((ended, id)) => {
            if ended.denied > 0 && !quiet {
                let told = denials::trail_of(&id, true, SHOWN).ok();
                denials::tell(ended.denied, told.as_ref(), &format!("--sandbox {id}"));
            }
            Ok(ExitCode::from(u8::try_from(ended.status).unwrap_or(status::FAILED)))
        }
        Err(error) => refused(error),
    }
}

/// Says why a command was not started, and gives the status for it.
pub(super) fn refused(error: ClientError) -> anyhow::Result<ExitCode> {
    let ClientError::Refused(refusal) = error else { return Err(told(error)) };
    eprintln!("clawbox: {}", refusal.message());
    let told = refusal.metadata().get(EXIT_STATUS).and_then(|code| code.to_str().ok());
    let code = told.and_then(|code| code.parse().ok()).unwrap_or(status::FAILED);
    Ok(ExitCode::from(code))
}

/// This process's, as `NAME=VALUE`.
pub(super) fn environment() -> Vec<Vec<u8>> {
    let variables = std::env::vars_os().map(|(name, value)| {
        let mut variable = name.into_vec();
        variable.push(b'=');
        variable.extend_from_slice(value.as_bytes());
        variable
    });
    variables.collect()
}

fn request(order: Order) -> proto::RunRequest {
    let audit_level = convert::to_audit_level(order.audit_level);
    let mode = convert::to_mode(order.mode);
    proto::RunRequest {
        texts: convert::texts(&order.texts),
        name: order.name.unwrap_or_default(),
        command: order.command.into_iter().map(OsStringExt::into_vec).collect(),
        environment: environment(),
        user: order.user.unwrap_or_default(),
        audit_level: audit_level.into(),
        mode: mode.into(),
        require_lsm: order.lsm == LsmUse::Require,
        share: order.share.iter().filter_map(named).collect(),
        dns: order.dns.iter().map(ToString::to_string).collect(),
        memory: order.limits.asked.memory.map_or(0, Memory::bytes),
        cpu_thousandths: order.limits.asked.cpus.map_or(0, Cpus::thousandths),
        pids: order.limits.asked.pids.unwrap_or_default(),
        ask_timeout_ms: u64::try_from(order.patience.as_millis()).unwrap_or(u64::MAX),
    }
}

/// A part as its option has it.
fn named(part: &Part) -> Option<String> {
    part.to_possible_value().map(|value| value.get_name().to_owned())
}

/// Waits for the end. Gives what is told of it, and which sandbox it was.
async fn follow(
    socket: &Path,
    request: proto::RunRequest,
) -> Result<(proto::Ended, String), ClientError> {
    // Before anything is started: a signal that comes in between is the command's too.
    let mut signals = Forwarded::listen()?;
    let mut client = Client::connect(socket).await?;
    let mut events = client.sandboxes().run(request).await?.into_inner();
    let mut id = String::new();
    loop {
        tokio::select! {
            event = events.message() => match event {
                Ok(Some(proto::RunEvent { event: Some(event) })) => match event {
                    Event::Started(started) => {
                        if let Some(sandbox) = started.sandbox {
                            id = sandbox.id;
                        }
                    }
                    Event::Ended(ended) => return Ok((ended, id)),
                },
                // Said before anything was started, or of a later version.
                Err(status) if id.is_empty() || status.code() == tonic::Code::NotFound => {
                    return Err(status.into());
                }
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => (client, events) = wait_again(socket, &id).await?,
            },
            // What comes before it is known whose it is waits.
            received = signals.next(), if !id.is_empty() => {
                let request = proto::SignalRequest {
                    sandbox: id.clone(),
                    signal: received as i32,
                    process: 0,
                };
                // It may just have ended.
                if let Err(status) = client.sandboxes().signal(request).await {
                    tracing::debug!("cannot pass {received} on: {status}");
                }
            },
        }
    }
}

/// The daemon has gone; the sandbox has not. Waits for the next daemon, which takes it over.
async fn wait_again(
    socket: &Path,
    id: &str,
) -> Result<(Client, Streaming<proto::RunEvent>), ClientError> {
    eprintln!("clawbox: the daemon has stopped; `{id}` is enforced on, and waited for");
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Ok(client) = Client::connect(socket).await {
            let request = proto::WaitRequest { sandbox: id.to_owned() };
            match client.sandboxes().wait(request).await {
                Ok(events) => return Ok((client, events.into_inner())),
                Err(status) if status.code() == tonic::Code::NotFound => return Err(status.into()),
                // The one that is just going.
                Err(_) => {}
            }
        }
        if Instant::now() >= deadline {
            return Err(ClientError::Ended);
        }
        tokio::time::sleep(PAUSE).await;
    }
}

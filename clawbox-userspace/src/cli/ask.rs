//! Whom a question about a sandbox goes to: the daemon where it has a sandbox of that name, else the
//! clawbox of that one run.

use anyhow::bail;

use super::told;
use crate::api::client::{Client, socket, wait};
use crate::sandbox::control::{self, Answer, Request};

/// Asks, and waits for the answer.
///
/// # Errors
/// There is no such sandbox, or it does not answer.
pub(super) fn ask(sandbox: &str, request: &Request) -> anyhow::Result<Answer> {
    if let Some(path) = socket() {
        let asked =
            wait(async { Client::connect(&path).await?.ask(sandbox, request.clone()).await });
        match asked {
            Ok(answer) => return Ok(answer),
            Err(error) if error.is_unknown_sandbox() && nix::unistd::geteuid().is_root() => {
                // A run without the daemon, perhaps; if neither, the daemon's word is the better one.
                return control::ask(sandbox, request).map_err(|_| told(error));
            }
            Err(error) => return Err(told(error)),
        }
    }
    if !nix::unistd::geteuid().is_root() {
        bail!("only root has a say in a sandbox that runs without the daemon; use sudo");
    }
    Ok(control::ask(sandbox, request)?)
}

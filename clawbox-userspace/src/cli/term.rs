//! `clawbox term`: the daemon's sandboxes on a terminal.

use std::io::{IsTerminal, stdin, stdout};
use std::process::ExitCode;

use anyhow::bail;
use clap::Args;

use super::style::refuses_colour;
use crate::api::client::socket;
use crate::term;

/// Watch sandboxes and answer what waits, on a terminal
///
/// Sandboxes with what they are allowed and denied a second; what happens, as it happens; one sandbox's
/// policy, revisions and processes; and a card for each endpoint that waits for an answer or was denied. Of
/// the daemon's sandboxes those that you have a say in. Nothing is told by colour alone, and NO_COLOR is
/// heard.
#[derive(Debug, Args)]
#[command(after_help = "\
Keys:
  1 2 3 4, Tab   sandboxes, events, one sandbox, approvals
  arrows, j k    a row; PgUp PgDn a page, g G the ends; the mouse works too
  Enter          sandboxes: look at it; e: its events alone
  / f            events: only lines with these words; follow or stand still
  a s p          approvals: once; as long as the sandbox runs; to policy, as a revision of it
  n              approvals: choose how narrowly
  d u            approvals: deny; take the last one back
  ? q            help; the end

Exit status: 0 ended by a key; 2 there is no terminal or no daemon; 128 and the signal that ended it.

Examples:
  clawbox term
  ssh -t server sudo clawbox term")]
pub struct Term {}

impl Term {
    /// Shows them until somebody wants no more.
    ///
    /// # Errors
    /// There is no terminal or no daemon.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        if !stdin().is_terminal() || !stdout().is_terminal() {
            bail!(
                "`clawbox term` needs a terminal to draw on; `clawbox list`, `logs` and `approvals` print the \
                 same"
            );
        }
        let Some(socket) = socket() else {
            bail!(
                "the daemon is not running here; `clawbox daemon` starts one, `systemctl start clawbox` the host's"
            );
        };
        term::run(socket, !refuses_colour())
    }
}

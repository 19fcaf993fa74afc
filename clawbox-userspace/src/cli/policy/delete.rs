//! `clawbox policy delete`: the end of the host's own policy.

use std::process::ExitCode;

use clap::Args;

use super::super::Format;
use super::set::set_global;
use crate::api::proto;

/// End the host's own policy: every sandbox has its own again
///
/// A sandbox that was started meanwhile has been given no more than the host's policy gave: what its own
/// gives beyond that needs a restart, and is named.
#[derive(Debug, Args)]
#[command(after_help = "\
Exit status: 0 every sandbox is under its own policy; 1 refused, or some are not yet, and are named.

Examples:
  clawbox policy delete --global
  clawbox policy delete --global --expect 3")]
pub(super) struct Delete {
    /// The host's own policy; a sandbox's cannot be deleted, but set
    #[arg(long, required = true)]
    global: bool,
    /// Only if this revision is in force: of two who change it one is told
    #[arg(long, value_name = "M")]
    expect: Option<u32>,
    /// How to print what came of it
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

impl Delete {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let expected_revision = self.expect.unwrap_or_default();
        let end = self.global;
        let request =
            proto::SetGlobalPolicyRequest { end, expected_revision, ..Default::default() };
        set_global(request, self.format)
    }
}

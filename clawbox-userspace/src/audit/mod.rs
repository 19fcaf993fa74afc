//! The audit trail: every decision, start, stop and loss, as a numbered line of the sandbox's own trail and
//! as a row of the host's store.

pub mod ask;
pub mod clock;
pub mod counted;
pub mod kernel_event;
pub mod line;
pub mod lines;
pub mod mask;
pub mod programs;
pub mod record;
mod refused_call;
pub mod store;
pub mod trail;
pub mod veil;

use clawbox_common::rule::{REPORT_ALLOWS, TALLY_ALLOWS};

/// How much of what is allowed goes into a trail. What is denied always does, and so does every
/// connection, question and program start.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    clap::ValueEnum,
    serde::Deserialize,
    serde::Serialize,
    schemars::JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum AuditLevel {
    /// Nothing of what is allowed of files and endpoints
    Denials,
    /// Allowed uses as counts, of files by program and directory, of endpoints after the first of each
    #[default]
    Summary,
    /// Each allowed use
    All,
}

impl AuditLevel {
    /// What the kernel is told of it.
    #[must_use]
    pub const fn flags(self) -> u32 {
        match self {
            Self::Denials => 0,
            Self::Summary => TALLY_ALLOWS,
            Self::All => REPORT_ALLOWS,
        }
    }
}

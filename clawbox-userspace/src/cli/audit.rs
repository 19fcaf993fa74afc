//! `clawbox audit`: the audit trail's published format.

use std::process::ExitCode;

use clap::{Args, Subcommand};

use crate::audit::record::Record;

/// Read about and, later, in the audit trail
#[derive(Debug, Args)]
pub struct AuditCommand {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Print the JSON Schema of a line of the audit trail
    Schema,
}

impl AuditCommand {
    /// Runs the verb.
    ///
    /// # Errors
    /// The schema cannot be serialised.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        match self.verb {
            Verb::Schema => {
                let schema = schemars::schema_for!(Record);
                println!("{}", serde_json::to_string_pretty(&schema)?);
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}

//! `clawbox policy schema`: the language as JSON Schema.

use std::io::Write;
use std::process::ExitCode;

use clap::Args;

/// Print the policy language as JSON Schema, for editors
///
/// An editor with a YAML language server completes and checks keys with it. What a schema cannot
/// say, `clawbox policy check` does.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  clawbox policy schema > clawbox.schema.json
  sed -i '1i # yaml-language-server: $schema=clawbox.schema.json' policy.yaml")]
pub(super) struct Schema {}

impl Schema {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let schema = serde_json::to_string_pretty(&crate::policy::schema())?;
        writeln!(std::io::stdout().lock(), "{schema}")?;
        Ok(ExitCode::SUCCESS)
    }
}

//! `clawbox config`: the agent's configuration, looked at before the agent does.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::{Format, told};
use crate::daemon::config::Config;
use crate::daemon::standing;

/// Look at the daemon's configuration
#[derive(Debug, Args)]
#[command(after_help = "\
Exit status: 0 it can be used; 2 it cannot.

Examples:
  clawbox config check
  clawbox config check agent.yaml --format json
  clawbox config schema > agent.schema.json")]
pub struct ConfigCommand {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Say whether it can be used, and all that it means
    Check {
        /// The configuration [default: /etc/clawbox/agent.yaml, where there is one]
        #[arg(value_name = "FILE")]
        file: Option<PathBuf>,
        /// How to print it
        #[arg(long, value_enum, default_value_t)]
        format: Format,
    },
    /// Print its JSON Schema, for editors
    Schema {
        /// That of a standing rule, as in /etc/clawbox/sandboxes.d
        #[arg(long)]
        standing: bool,
    },
}

impl ConfigCommand {
    /// Prints.
    ///
    /// # Errors
    /// It cannot be used.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let mut out = std::io::stdout().lock();
        match self.verb {
            Verb::Check { file, format } => {
                let config = Config::read(file.as_deref()).map_err(told)?;
                // Rules that the daemon would not start with.
                standing::read(&config.standing).map_err(told)?;
                match format {
                    Format::Json => writeln!(out, "{}", serde_json::to_string_pretty(&config)?)?,
                    Format::Text => write!(out, "{}", serde_saphyr::to_string(&config)?)?,
                }
            }
            Verb::Schema { standing } => {
                let schema = if standing {
                    schemars::schema_for!(standing::Written)
                } else {
                    schemars::schema_for!(Config)
                };
                writeln!(out, "{}", serde_json::to_string_pretty(&schema)?)?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

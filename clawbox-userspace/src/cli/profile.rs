//! `clawbox profile`: the policies for single agents that are built in.

use std::io::Write;
use std::process::ExitCode;

use anyhow::bail;
use clap::{Args, Subcommand};
use serde::Serialize;

use super::Format;
use super::complete;
use super::listing::{Listed, print_list};
use crate::presets::embedded::{Embedded, PROFILES};
use crate::presets::profile;

/// List and show ready-made policies for agents
///
/// `clawbox run --profile NAME -- COMMAND` runs an agent under one. To change one, write it to a file.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  clawbox run --profile openclaw --preset telegram -- openclaw gateway
  clawbox profile show codex > codex.yaml")]
pub struct ProfileCommand {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List the profiles that are built in
    List {
        /// How to print them
        #[arg(long, value_enum, default_value_t)]
        format: Format,
    },
    /// Print a profile: which paths and hosts the agent has, and where its state and its secrets are
    Show {
        /// The profile
        #[arg(add = complete::profiles())]
        name: String,
        /// How to print it
        #[arg(long, value_enum, default_value_t)]
        format: Format,
    },
}

/// What is printed about a profile.
#[derive(Serialize)]
struct About {
    name: &'static str,
    description: &'static str,
    state: &'static str,
    secrets: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'static str>,
}

impl About {
    fn of(profile: &Embedded) -> Self {
        let said = |mark: &str| profile.text.lines().find_map(|line| line.strip_prefix(mark));
        Self {
            name: profile.name,
            description: said("# ").unwrap_or_default(),
            state: said("# State: ").unwrap_or_default(),
            secrets: said("# Secrets: ").unwrap_or_default(),
            text: None,
        }
    }
}

impl Listed for About {
    fn line(&self) -> (&str, &str) {
        (self.name, self.description)
    }
}

impl ProfileCommand {
    /// Runs the verb.
    ///
    /// # Errors
    /// There is no such profile, or the output cannot be written.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        match self.verb {
            Verb::List { format } => {
                let all: Vec<About> = PROFILES.iter().map(About::of).collect();
                return print_list(&all, format);
            }
            Verb::Show { name, format } => {
                let mut out = std::io::stdout().lock();
                let found = match profile(&name) {
                    Ok(found) => found,
                    Err(diagnostic) => bail!("{diagnostic}"),
                };
                match format {
                    Format::Json => {
                        let about = About { text: Some(found.text), ..About::of(found) };
                        writeln!(out, "{}", serde_json::to_string_pretty(&about)?)?;
                    }
                    Format::Text => write!(out, "{}", found.text)?,
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_profile_says_what_it_is_for_and_where_state_and_secrets_are() {
        for profile in PROFILES {
            let about = About::of(profile);
            for said in [about.description, about.state, about.secrets] {
                assert!(said.ends_with('.'), "{}: {said:?}", profile.name);
            }
        }
    }
}

//! `clawbox audit`: the host's audit store, and the published format of the sandboxes' own trails.

mod export;
mod query;
mod selection;
mod show;
mod stats;
mod tail;
mod verify;

use std::io::{self, BufWriter, StdoutLock, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Subcommand};

use super::sandboxes::asked;
use super::{Format, told};
use crate::api::client::socket;
use crate::api::proto::{AuditForm, ReadAuditRequest};
use crate::audit::ask::{self, Out, Permit};
use crate::audit::record::Record;
use crate::audit::store::intake::{directory_of, key_of};
use crate::audit::store::ledger;
use crate::audit::store::signed::{HostKey, PublicKey};
use crate::daemon::config::Config;

pub(super) use crate::audit::ask::show::{last_denial, shown};

/// Read and check the host's audit store
///
/// Root reads its files. For others the daemon reads: all of it for the group clawbox, for everybody else
/// what is of their own sandboxes.
#[derive(Debug, Args)]
pub struct AuditCommand {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Tail(tail::Tail),
    Query(query::Query),
    Show(show::Show),
    Stats(stats::Stats),
    Export(export::Export),
    Verify(verify::Verify),
    /// Print the JSON Schema of a line of a sandbox's own audit trail
    Schema,
}

/// Which store.
#[derive(Debug, Args)]
pub(super) struct Place {
    /// A store's directory, also a copy of one [default: the daemon's]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// The daemon's configuration [default: /etc/clawbox/agent.yaml, where there is one]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl Place {
    pub(super) fn directory(&self) -> anyhow::Result<PathBuf> {
        let directory = match &self.dir {
            Some(directory) => directory.clone(),
            None => directory_of(&Config::read(self.config.as_deref()).map_err(told)?.state),
        };
        std::fs::read_dir(&directory)
            .with_context(|| format!("cannot read the audit store `{}`", directory.display()))?;
        Ok(directory)
    }

    /// What the store is checked with, and whether that is known from elsewhere than the store itself.
    fn key(&self, given: Option<&str>) -> anyhow::Result<(PublicKey, bool)> {
        if let Some(digits) = given {
            let key = PublicKey::parse(digits);
            return Ok((key.context("`--key` is not a public key of 64 digits")?, true));
        }
        if self.dir.is_none() {
            let state = Config::read(self.config.as_deref()).map_err(told)?.state;
            let path = key_of(&state);
            let key = HostKey::read(&path);
            let key = key.with_context(|| format!("cannot read the key `{}`", path.display()))?;
            return Ok((key.public(), true));
        }
        let path = self.directory()?.join(ledger::PUBLIC);
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("no `--key`, and cannot read `{}`", path.display()))?;
        let key = text.strip_suffix('\n').and_then(PublicKey::parse);
        Ok((key.with_context(|| format!("`{}` is no public key", path.display()))?, false))
    }
}

/// Standard output: whoever has gone is told by an error.
struct Printed(BufWriter<StdoutLock<'static>>);

impl Write for Printed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl Out for Printed {
    fn is_open(&self) -> bool {
        true
    }
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// As the API has it.
fn form(format: Format) -> i32 {
    match format {
        Format::Text => AuditForm::Unspecified.into(),
        Format::Json => AuditForm::Json.into(),
    }
}

impl Place {
    /// Prints an answer: by reading the store, or where only the daemon may, by asking that.
    fn print(&self, request: ReadAuditRequest) -> anyhow::Result<ExitCode> {
        let mut out = Printed(BufWriter::new(io::stdout().lock()));
        match self.directory() {
            Ok(directory) => ask::answer(request, &Permit::all(directory), &mut out)?,
            Err(_) if self.dir.is_none() && !is_root() && socket().is_some() => {
                let printed = asked(|client| async move {
                    let mut told = client.audit().read(request).await?.into_inner();
                    while let Some(told) = told.message().await? {
                        let written = out.write_all(&told.text).and_then(|()| out.flush());
                        if let Err(error) = written {
                            return Ok(Err(error));
                        }
                    }
                    Ok(Ok(()))
                })?;
                printed?;
            }
            Err(error) => return Err(error),
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl AuditCommand {
    /// Runs the verb.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        match self.verb {
            Verb::Tail(tail) => tail.run(),
            Verb::Query(query) => query.run(),
            Verb::Show(show) => show.run(),
            Verb::Stats(stats) => stats.run(),
            Verb::Export(export) => export.run(),
            Verb::Verify(verify) => verify.run(),
            Verb::Schema => {
                let schema = schemars::schema_for!(Record);
                println!("{}", serde_json::to_string_pretty(&schema)?);
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}

//! `clawbox fleet`: what all hosts ship to one stream.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use async_nats::jetstream::consumer::{DeliverPolicy, pull};
use async_nats::jetstream::{self};
use clap::{Args, Subcommand};
use serde_json::Value;
use tokio_stream::StreamExt;

use super::{Format, told};
use crate::audit::line::harmless;
use crate::daemon::config::Config;
use crate::ship::Failure;
use crate::ship::nats::Nats;

/// Read what the hosts of a fleet ship
#[derive(Debug, Args)]
pub struct FleetCommand {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Tail(Tail),
}

/// Print events of all hosts as they come into the stream
#[derive(Debug, Args)]
#[command(after_help = "\
Exit status: 0 printed; 2 the stream cannot be read.

Examples:
  clawbox fleet tail --server nats://192.0.2.1:4222
  clawbox fleet tail --verdict deny --format json
  clawbox fleet tail --all --limit 1000 --host web1")]
struct Tail {
    /// A server of the stream [default: those of `ship.nats` in the agent's configuration]
    #[arg(long, value_name = "URL")]
    server: Vec<String>,
    /// The stream [default: that of the configuration, or CLAWBOX]
    #[arg(long, value_name = "NAME")]
    stream: Option<String>,
    /// A file with the credentials of a NATS user
    #[arg(long, value_name = "FILE")]
    credentials: Option<PathBuf>,
    /// Begin with the oldest event that the stream has
    #[arg(long)]
    all: bool,
    /// End after so many events
    #[arg(long, value_name = "COUNT")]
    limit: Option<u64>,
    /// Of this host
    #[arg(long, value_name = "NAME")]
    host: Option<String>,
    /// allow, deny or none
    #[arg(long, value_name = "VERDICT", value_parser = ["allow", "deny", "none"])]
    verdict: Option<String>,
    /// The daemon's configuration [default: /etc/clawbox/agent.yaml, where there is one]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// How to print them
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

impl FleetCommand {
    /// Runs it.
    ///
    /// # Errors
    /// The stream cannot be read.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let Verb::Tail(tail) = self.verb;
        let nats = tail.nats()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(tail.run(&nats)).map_err(|failure| anyhow::anyhow!("{failure}"))
    }
}

impl Tail {
    fn nats(&self) -> anyhow::Result<Nats> {
        let configured = match self.server.is_empty() {
            true => Config::read(self.config.as_deref()).map_err(told)?.ship.nats,
            false => None,
        };
        let mut nats = configured.unwrap_or_else(|| Nats::at(&self.server));
        if let Some(stream) = &self.stream {
            nats.stream.clone_from(stream);
        }
        if self.credentials.is_some() {
            nats.credentials.clone_from(&self.credentials);
        }
        nats.check().map_err(|error| anyhow::anyhow!("{error}; name a server with --server"))?;
        Ok(nats)
    }

    async fn run(&self, nats: &Nats) -> Result<ExitCode, Failure> {
        let context = jetstream::new(nats.connect().await?);
        let stream = context.get_stream(&nats.stream).await?;
        let deliver_policy = if self.all { DeliverPolicy::All } else { DeliverPolicy::New };
        let wanted = pull::OrderedConfig { deliver_policy, ..Default::default() };
        let mut messages = stream.create_consumer(wanted).await?.messages().await?;
        let mut printed = 0;
        while self.limit.is_none_or(|limit| printed < limit) {
            let Some(message) = messages.next().await else { break };
            let said = serde_json::from_slice::<Value>(&message?.payload);
            let Some(said) = said.ok().filter(|said| self.wants(said)) else { continue };
            let mut out = std::io::stdout().lock();
            match self.format {
                Format::Json => writeln!(out, "{said}")?,
                Format::Text => writeln!(out, "{}", line(&said))?,
            }
            out.flush()?;
            printed += 1;
        }
        Ok(ExitCode::SUCCESS)
    }

    fn wants(&self, said: &Value) -> bool {
        let is = |key: &str, wanted: &Option<String>| {
            wanted.as_ref().is_none_or(|wanted| said[key].as_str() == Some(wanted))
        };
        is("host_name", &self.host) && is("verdict", &self.verdict)
    }
}

/// An event of whatever host as one line, in which nothing is more than text to a terminal.
fn line(said: &Value) -> String {
    let text = |key: &str| said[key].as_str().unwrap_or_default();
    let about = ["host", "ip", "path", "args", "detail"].into_iter().find_map(|key| {
        let value = &said[key];
        match value {
            Value::Null => None,
            Value::String(text) => Some(text.clone()),
            other => Some(other.to_string()),
        }
    });
    let by = match (text("exe"), said["pid"].as_u64()) {
        ("", _) | (_, None) => String::new(),
        (exe, Some(pid)) => format!("  by {exe}[{pid}]"),
    };
    harmless(&format!(
        "{}  {:12}  {:12}  {:5}  {:8}  {}{by}  ({})",
        text("time").get(..19).unwrap_or_default(),
        text("host_name"),
        text("sandbox"),
        text("verdict"),
        text("action"),
        about.unwrap_or_default(),
        text("reason"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_of_another_host_is_one_line_of_text_whatever_is_in_it() {
        let said = serde_json::json!({
            "host_name": "web\u{1b}[2J", "time": "2026-01-02T03:04:05.000006Z", "sandbox": "a-1",
            "verdict": "deny", "action": "open", "path": "/x\ny", "exe": "/bin/cat", "pid": 7,
            "reason": "unknown-file",
        });
        let line = line(&said);
        assert!(line.starts_with("2026-01-02T03:04:05  web\\u{1b}[2J"), "{line}");
        assert!(line.ends_with("/x\\ny  by /bin/cat[7]  (unknown-file)"), "{line}");
    }
}

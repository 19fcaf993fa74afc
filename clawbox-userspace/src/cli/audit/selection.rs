//! Which events a verb of `clawbox audit` is about.

use clap::Args;

use crate::audit::store::filter::{Filter, Pattern, time};
use crate::audit::store::schema::{Number, Text};

/// Filters; an event must pass all that are given. Those of text take `*`, `?` and `[` as a shell does.
#[derive(Debug, Default, Args)]
pub(super) struct Selection {
    /// Of this sandbox, by its name or NAME-NUMBER
    #[arg(long, value_name = "NAME")]
    sandbox: Option<String>,
    /// By this program: its path, its script's, or its file's name
    #[arg(long, value_name = "PROGRAM")]
    binary: Option<String>,
    /// To this host, by name or address
    #[arg(long, value_name = "HOST")]
    host: Option<String>,
    /// About a file or program like this; `**` goes into directories
    #[arg(long, value_name = "GLOB")]
    path: Option<String>,
    /// allow, deny or none
    #[arg(long, value_name = "VERDICT", value_parser = ["allow", "deny", "none"])]
    verdict: Option<String>,
    /// Decided by this rule
    #[arg(long, value_name = "RULE")]
    rule: Option<String>,
    /// For this reason, as in unknown-endpoint
    #[arg(long, value_name = "REASON")]
    reason: Option<String>,
    /// network, dns, process, file, privilege, sandbox, gap or agent
    #[arg(long, value_name = "CLASS")]
    class: Option<String>,
    /// This was done, as in connect
    #[arg(long, value_name = "ACTION")]
    action: Option<String>,
    /// By this process
    #[arg(long, value_name = "PID")]
    pid: Option<u32>,
    /// Not before: 2026-11-26T08:00:00Z, a day, or how long ago, as in 2h
    #[arg(long, value_name = "TIME", value_parser = time)]
    since: Option<i64>,
    /// Before that
    #[arg(long, value_name = "TIME", value_parser = time)]
    until: Option<i64>,
}

impl Selection {
    pub(super) fn filter(&self) -> anyhow::Result<Filter> {
        let mut filter = Filter::default();
        let like = |text: &String| Pattern::of(text).map_err(anyhow::Error::msg);
        if let Some(name) = &self.sandbox {
            let is_glob = name.contains(['*', '?', '[']);
            let pattern = if is_glob { like(name)? } else { Pattern::Sandbox(name.clone()) };
            filter.text(&[Text::Sandbox], pattern);
        }
        if let Some(name) = &self.binary {
            let is_name = !name.contains(['/', '*', '?', '[']);
            let pattern = if is_name { Pattern::Program(name.clone()) } else { like(name)? };
            filter.text(&[Text::Exe, Text::Script], pattern);
        }
        for (given, columns) in [
            (&self.host, &[Text::Host, Text::Named, Text::Ip, Text::Asked] as &[Text]),
            (&self.path, &[Text::Path, Text::OtherPath]),
            (&self.verdict, &[Text::Verdict]),
            (&self.rule, &[Text::Rule]),
            (&self.reason, &[Text::Reason]),
            (&self.class, &[Text::Class]),
            (&self.action, &[Text::Action]),
        ] {
            if let Some(text) = given {
                filter.text(columns, like(text)?);
            }
        }
        if let Some(pid) = self.pid {
            filter.number(Number::Pid, pid);
        }
        filter.between(self.since, self.until);
        Ok(filter)
    }
}

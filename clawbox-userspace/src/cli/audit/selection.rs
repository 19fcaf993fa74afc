//! Which events a verb of `clawbox audit` is about.

use std::path::Path;

use clap::Args;

use crate::api::proto::AuditSelection;
use crate::audit::ask;
use crate::audit::store::filter::{Filter, time};

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

impl From<Selection> for AuditSelection {
    fn from(given: Selection) -> Self {
        let Selection { sandbox, binary, host, path, verdict, rule, reason, .. } = given;
        let Selection { class, action, pid, since, until, .. } = given;
        Self {
            sandbox,
            binary,
            host,
            path,
            verdict,
            rule,
            reason,
            class,
            action,
            pid,
            since,
            until,
        }
    }
}

impl Selection {
    pub(super) fn filter(self, directory: &Path) -> anyhow::Result<Filter> {
        ask::filter(&self.into(), ask::veil_of(directory).as_ref())
    }
}

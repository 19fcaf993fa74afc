//! Follows a sandbox's trail, and makes of each record what is shown of it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::super::cards::{Denied, Key};
use super::super::events::{Event, Kind};
use super::super::plain::plain;
use super::inbox::Inbox;
use crate::api::client::Client;
use crate::api::proto;
use crate::audit::line;
use crate::audit::record::{Class, Object, Record, VerdictName};

/// Records that are asked for of what was before.
const BEFORE: u64 = 200;

/// Command lines that are kept.
const COMMANDS: usize = 16_384;

/// What processes were started with, by their numbers, as the trail has it: without credentials.
pub(super) type Started = Arc<Mutex<BTreeMap<u32, String>>>;

/// Where what is followed goes.
pub(super) struct Into {
    /// Events.
    pub(super) inbox: Arc<Inbox>,
    /// Command lines.
    pub(super) started: Started,
    /// The number of the last record that was shown: what is told again is not shown again.
    pub(super) seen: Arc<AtomicU64>,
}

/// Until the sandbox ends or the daemon does.
pub(super) async fn follow(client: Client, id: String, into: Into) {
    let Into { inbox, started, seen } = into;
    let sandbox = id.clone();
    let request = proto::LogsRequest { sandbox, follow: true, denials: false, last: BEFORE };
    let Ok(stream) = client.sandboxes().logs(request).await else { return };
    let mut stream = stream.into_inner();
    while let Ok(Some(told)) = stream.message().await {
        for line in told.lines.split(|byte| *byte == b'\n') {
            // A record of a later version is left out.
            let Ok(record) = serde_json::from_slice::<Record>(line) else { continue };
            if seen.fetch_max(record.seq, Ordering::Relaxed) >= record.seq {
                continue;
            }
            note(&record, &started);
            inbox.event(event(&id, &record));
        }
        tokio::task::yield_now().await;
    }
}

fn note(record: &Record, started: &Started) {
    let (Object::Program(program), Some(subject)) = (&record.object, &record.subject) else {
        return;
    };
    let mut started = started.lock().unwrap_or_else(PoisonError::into_inner);
    if started.len() >= COMMANDS {
        started.clear();
    }
    let words = if program.args.is_empty() { program.path.clone() } else { program.args.join(" ") };
    started.insert(subject.pid, plain(&words));
}

/// A record as it is shown.
pub(in super::super) fn event(sandbox: &str, record: &Record) -> Event {
    let kind = match (record.verdict, record.let_through) {
        (VerdictName::Allow, _) => Kind::Allowed,
        (VerdictName::Deny, false) => Kind::Denied,
        (VerdictName::Deny, true) => Kind::Would,
        (VerdictName::None, _) if record.reason == "held" => Kind::Waits,
        (VerdictName::None, _) => Kind::Other,
    };
    let is_denied = matches!(kind, Kind::Denied | Kind::Would);
    let denied = is_denied.then(|| denied(sandbox, record)).flatten();
    Event { sandbox: plain(sandbox), kind, line: plain(&line::of(record)), denied }
}

/// What of it somebody could allow: an endpoint that no rule names, or its name.
fn denied(sandbox: &str, record: &Record) -> Option<Denied> {
    const OPEN: [&str; 5] =
        ["unknown-endpoint", "other-binary", "unknown-name", "refusal", "loopback"];
    // A reset is what a change of policy has ended: nobody has asked for it again yet.
    if !OPEN.contains(&record.reason.as_ref()) || record.action == "reset" {
        return None;
    }
    let (host, port, ip, times) = match &record.object {
        Object::Endpoint(to) if to.transport == "tcp" => {
            let host = to.host.clone().unwrap_or_else(|| to.asked.unwrap_or(to.ip).to_string());
            (host, to.port, Some(to.ip), to.times.unwrap_or(1))
        }
        Object::Question(asked) => (asked.name.trim_end_matches('.').to_owned(), 443, None, 1),
        _ => return None,
    };
    let subject = record.subject.as_ref();
    let program = subject.and_then(|subject| subject.script.clone().or(subject.exe.clone()));
    let program = program.unwrap_or_default();
    Some(Denied {
        key: Key { sandbox: sandbox.to_owned(), program, host, port },
        ip,
        time: record.time.clone(),
        times,
        is_name: record.class == Class::Dns,
        is_answer: record.action == "refuse",
    })
}

//! A record as a row of the store: what has a column of its own goes there, the rest is told in one JSON
//! object, so that nothing of a record is lost.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::columns::Columns;
use super::policies;
use super::schema::{Number, Text};
use crate::audit::record::{Class, Endpoint, FileObject, Object, Rule, Subject, VerdictName};
use crate::audit::trail::Draft;

/// A class's name, as in a sandbox's own trail.
#[must_use]
pub fn class_name(class: Class) -> &'static str {
    match class {
        Class::Network => "network",
        Class::Dns => "dns",
        Class::Process => "process",
        Class::File => "file",
        Class::Privilege => "privilege",
        Class::Sandbox => "sandbox",
        Class::Gap => "gap",
        Class::Agent => "agent",
    }
}

fn verdict_name(verdict: VerdictName) -> &'static str {
    match verdict {
        VerdictName::Allow => "allow",
        VerdictName::Deny => "deny",
        VerdictName::None => "none",
    }
}

/// Whether a record is not to wait: a denial, an answer, and whatever is no decision.
#[must_use]
pub fn is_urgent(draft: &Draft) -> bool {
    draft.verdict != VerdictName::Allow || matches!(draft.action, "approve" | "refuse")
}

/// Microseconds since 1970.
#[must_use]
pub fn micros(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

/// Adds a record of a sandbox under a policy of this number.
pub fn put(columns: &mut Columns, sandbox: &str, policy: Option<u32>, draft: &Draft) {
    put_at(columns, micros(draft.time.unwrap_or_else(SystemTime::now)), sandbox, policy, draft);
}

/// The same of a time that is not the record's own.
pub fn put_at(
    columns: &mut Columns,
    micros: i64,
    sandbox: &str,
    policy: Option<u32>,
    draft: &Draft,
) {
    columns.begin(micros);
    columns.text(Text::Sandbox, sandbox);
    columns.text(Text::Class, class_name(draft.class));
    columns.text(Text::Action, draft.action);
    columns.text(Text::Verdict, verdict_name(draft.verdict));
    columns.text(Text::Reason, draft.reason);
    if draft.let_through {
        columns.let_through();
    }
    if let Some(policy) = policy {
        columns.number(Number::Policy, policy);
    }
    if let Some(rule) = &draft.rule {
        put_rule(columns, rule);
    }
    if let Some(subject) = &draft.subject {
        put_subject(columns, subject);
    }
    put_object(columns, &draft.object);
}

/// Adds what a policy's text is.
pub fn put_policy(columns: &mut Columns, sandbox: &str, number: u32, detail: &str) {
    columns.begin(micros(SystemTime::now()));
    columns.text(Text::Sandbox, sandbox);
    columns.text(Text::Class, class_name(Class::Sandbox));
    columns.text(Text::Action, policies::ACTION);
    columns.text(Text::Verdict, verdict_name(VerdictName::None));
    columns.text(Text::Reason, "in-force");
    columns.number(Number::Policy, number);
    columns.text(Text::Detail, detail);
}

fn optional(columns: &mut Columns, column: Text, text: Option<&str>) {
    if let Some(text) = text {
        columns.text(column, text);
    }
}

fn put_rule(columns: &mut Columns, rule: &Rule) {
    columns.text(Text::Rule, &rule.policy);
    columns.text(Text::RuleHost, &rule.host);
    optional(columns, Text::RuleBinary, rule.binary.as_deref());
    columns.number(Number::RuleEndpoint, u32::try_from(rule.endpoint).unwrap_or(u32::MAX));
}

fn put_subject(columns: &mut Columns, subject: &Subject) {
    columns.number(Number::Pid, subject.pid);
    columns.number(Number::Uid, subject.uid);
    optional(columns, Text::Exe, subject.exe.as_deref());
    columns.text(Text::ExeId, &subject.exe_id);
    optional(columns, Text::Script, subject.script.as_deref());
}

fn put_object(columns: &mut Columns, object: &Object) {
    match object {
        Object::Endpoint(endpoint) => return put_endpoint(columns, endpoint),
        Object::File(file) => return put_file(columns, file),
        Object::Program(program) => {
            columns.text(Text::Path, &program.path);
            if let (false, Ok(args)) =
                (program.args.is_empty(), serde_json::to_string(&program.args))
            {
                columns.text(Text::Args, &args);
            }
            return columns.number(Number::Parent, program.parent);
        }
        Object::Question(question) => {
            columns.text(Text::Host, &question.name);
            columns.text(Text::Transport, &question.transport);
        }
        Object::Gap(gap) => columns.count(gap.count),
        Object::Summary(sum) => {
            optional(columns, Text::Exe, sum.program.as_deref());
            columns.text(Text::ExeId, &sum.program_id);
            optional(columns, Text::Path, sum.directory.as_deref());
            columns.text(Text::PathId, &sum.directory_id);
            let uses = [(sum.reads, "read"), (sum.writes, "write"), (sum.executes, "execute")];
            let used = uses.iter().filter(|(count, _)| *count > 0);
            columns.text(Text::Access, &used.map(|(_, name)| *name).collect::<Vec<_>>().join("+"));
            columns.count(uses.iter().map(|(count, _)| count).sum());
        }
        Object::Alarm(alarm) => {
            if let Some(events) = alarm.events {
                columns.count(events);
            }
        }
        Object::Socket(_) | Object::Sandbox(_) | Object::Privilege(_) => {}
    }
    if let Ok(detail) = serde_json::to_string(object) {
        columns.text(Text::Detail, &detail);
    }
}

fn put_endpoint(columns: &mut Columns, endpoint: &Endpoint) {
    optional(columns, Text::Host, endpoint.host.as_deref());
    columns.text(Text::Ip, &endpoint.ip.to_string());
    optional(columns, Text::Asked, endpoint.asked.map(|asked| asked.to_string()).as_deref());
    columns.number(Number::Port, endpoint.port.into());
    columns.text(Text::Transport, &endpoint.transport);
    optional(columns, Text::Named, endpoint.named.as_deref());
    if let Some(times) = endpoint.times {
        columns.count(times);
    }
}

fn put_file(columns: &mut Columns, file: &FileObject) {
    columns.text(Text::Path, &file.path);
    columns.text(Text::PathId, &file.id);
    columns.text(Text::Access, &file.access.join("+"));
    optional(columns, Text::OtherPath, file.other_path.as_deref());
    optional(columns, Text::Errno, file.errno.as_deref());
}

//! A record as one line for people. Whatever a sandbox has a say in (paths, names) is printed without what
//! a terminal would take for more than text.

use std::fmt::Write as _;

use super::record::{Alarm, Class, Object, Record, VerdictName};

/// The line, without its end.
#[must_use]
pub fn of(record: &Record) -> String {
    let mut line = String::new();
    // To a String: cannot fail.
    let _ = write(&mut line, record);
    harmless(&line)
}

fn write(line: &mut String, record: &Record) -> std::fmt::Result {
    let time = record.time.get(..19).unwrap_or(&record.time);
    let verdict = match (record.verdict, record.let_through) {
        (VerdictName::Allow, _) => "allow",
        (VerdictName::Deny, false) => "deny ",
        (VerdictName::Deny, true) => "would",
        (VerdictName::None, _) => "-    ",
    };
    write!(line, "{time}  {verdict}  {:8}  {}", record.action, object(&record.object))?;
    if let Some(subject) = &record.subject {
        let program = subject.script.as_ref().or(subject.exe.as_ref());
        let program = program.map_or("a program that has ended", String::as_str);
        write!(line, "  by {program}[{}]", subject.pid)?;
    }
    if record.class != Class::Sandbox && record.class != Class::Gap {
        write!(line, "  ({}", record.reason)?;
        if let Some(rule) = &record.rule {
            write!(line, " {}", rule.policy)?;
        }
        line.push(')');
    }
    Ok(())
}

fn object(object: &Object) -> String {
    let or_none = |text: &Option<String>| text.clone().unwrap_or_default();
    match object {
        Object::Endpoint(to) => match &to.host {
            Some(host) => format!("{host} ({}) port {}/{}", to.ip, to.port, to.transport),
            None => format!("{} port {}/{}", to.ip, to.port, to.transport),
        },
        Object::Question(asked) => {
            let found: Vec<String> = asked.addresses.iter().map(ToString::to_string).collect();
            format!("{} {} -> {}", asked.name, asked.kind, found.join(" "))
        }
        Object::Program(program) if program.args.len() < 2 => program.path.clone(),
        Object::Program(program) => format!("{} {}", program.path, program.args[1..].join(" ")),
        Object::Socket(socket) => {
            let family =
                socket.family.map(|family| format!("family {family} ")).unwrap_or_default();
            format!("{family}type {} protocol {}", socket.socket_type, socket.protocol)
        }
        Object::File(file) => format!("{} {}", file.access.join("+"), file.path),
        Object::Alarm(Alarm { part, events: Some(events), .. }) => {
            format!("{part} with {events} events is there no longer")
        }
        Object::Alarm(alarm) => {
            let so_far = if alarm.repaired { "put right" } else { "not put right" };
            format!("{} {}, {so_far}", alarm.severity, alarm.part)
        }
        Object::Gap(gap) => {
            let verdict = match gap.verdict {
                Some(VerdictName::Allow) => "allowed ",
                Some(VerdictName::Deny) => "denied ",
                Some(VerdictName::None) | None => "",
            };
            format!("{} {verdict}events of kind {} are not here", gap.count, gap.kind)
        }
        Object::Summary(sum) => format!(
            "{} in {}: {} read, {} written, {} executed",
            or_none(&sum.program),
            or_none(&sum.directory),
            sum.reads,
            sum.writes,
            sum.executes
        ),
        Object::Sandbox(sandbox) => {
            let mut text = sandbox.command.join(" ");
            if let Some(status) = sandbox.status {
                let _ = write!(text, " (status {status})");
            }
            if let Some(user) = sandbox.asked_by {
                let _ = write!(text, " (for user {user})");
            }
            if text.is_empty() { sandbox.policy.clone() } else { text }
        }
        Object::Privilege(privilege) => match (&privilege.system_call, privilege.other_pid) {
            (Some(call), _) => call.clone(),
            (None, Some(process)) => format!("process {process}"),
            (None, None) => String::new(),
        },
    }
}

/// A text without what a terminal would take for more than text.
#[must_use]
pub fn harmless(line: &str) -> String {
    let mut out = String::with_capacity(line.len());
    for character in line.chars() {
        match character.is_control() {
            true => out.extend(character.escape_default()),
            false => out.push(character),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_one_line_that_no_path_can_make_more_of() {
        let read = |text: &str| of(&serde_json::from_str(text).unwrap());
        let subject = r#""subject":{"pid":7,"uid":1,"exe":"/usr/bin/curl","exe_id":"1:2"}"#;
        let connect = format!(
            r#"{{"time":"2026-01-02T03:04:05.000006Z","seq":2,"sandbox":"a","class":"network",
            "action":"connect","verdict":"deny","reason":"unknown-endpoint",{subject},
            "object":{{"host":"x.test","ip":"203.0.113.9","port":443,"transport":"tcp"}}}}"#
        );
        assert_eq!(
            read(&connect),
            "2026-01-02T03:04:05  deny   connect   x.test (203.0.113.9) port 443/tcp  by \
             /usr/bin/curl[7]  (unknown-endpoint)"
        );
        let file = format!(
            r#"{{"time":"2026-01-02T03:04:05.000006Z","seq":2,"sandbox":"a","class":"file",
            "action":"open","verdict":"deny","reason":"unknown-file",{subject},
            "object":{{"path":"/a\u001b[2J\nb\u009b","id":"0","access":["read"]}}}}"#
        );
        let line = read(&file);
        assert!(line.contains(r"read /a\u{1b}[2J\nb\u{9b}  by"), "{line}");
    }
}

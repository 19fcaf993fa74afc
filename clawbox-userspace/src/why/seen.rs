//! A record of a trail or a row of the store as one thing: who did what, and what came of it.

use std::path::PathBuf;

use clawbox_common::event::Operation;
use serde::Serialize;
use serde_json::Value;

use crate::audit::record::{Object, Record, VerdictName};
use crate::judge::{Access, Deed, Who};

/// One decision that was recorded.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Seen {
    /// Its number in the store.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<u64>,
    /// When.
    pub time: String,
    /// In which sandbox.
    pub sandbox: String,
    /// `network`, `file` and so on.
    pub class: String,
    /// `connect`, `open` and so on.
    pub action: String,
    /// `allow`, `deny` or `none`.
    pub verdict: String,
    /// Whether what was denied went on.
    pub let_through: bool,
    /// Why.
    pub reason: String,
    /// Which rule.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// The program.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub program: Option<String>,
    /// The script that it runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub script: Option<String>,
    /// The process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Who started it, of a program start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent: Option<u32>,
    /// Host that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Address that it was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ip: Option<String>,
    /// Port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// `tcp`, `udp` or `icmp`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transport: Option<String>,
    /// The host that was named on the connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub named: Option<String>,
    /// File, or program that was started, or directory that was counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// What was asked of it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub access: Vec<String>,
    /// What a program was started with.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// The system call, the other process or the kind of socket.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// Where its sandbox was started, as far as that was recorded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
}

impl From<&Record> for Seen {
    fn from(record: &Record) -> Self {
        let class = serde_json::to_value(record.class).ok();
        let mut seen = Self {
            time: record.time.clone(),
            sandbox: record.sandbox.clone(),
            class: class.and_then(|class| class.as_str().map(str::to_owned)).unwrap_or_default(),
            action: record.action.to_string(),
            verdict: match record.verdict {
                VerdictName::Allow => "allow",
                VerdictName::Deny => "deny",
                VerdictName::None => "none",
            }
            .to_owned(),
            let_through: record.let_through,
            reason: record.reason.to_string(),
            rule: record.rule.as_ref().map(|rule| rule.policy.clone()),
            ..Self::default()
        };
        if let Some(subject) = &record.subject {
            seen.program = subject.exe.clone();
            seen.script = subject.script.clone();
            seen.pid = Some(subject.pid);
        }
        match &record.object {
            Object::Endpoint(to) => {
                seen.host = to.host.clone();
                seen.ip = Some(to.ip.to_string());
                seen.port = Some(to.port);
                seen.transport = Some(to.transport.clone());
                seen.named = to.named.clone();
            }
            Object::Question(question) => seen.host = Some(question.name.clone()),
            Object::Program(program) => {
                seen.path = Some(program.path.clone());
                seen.parent = Some(program.parent);
                seen.args = program.args.clone();
            }
            Object::File(file) => {
                seen.path = Some(file.path.clone());
                seen.access = file.access.clone();
            }
            Object::Summary(sum) => {
                seen.program = sum.program.clone();
                seen.path = sum.directory.clone();
                let uses = [(sum.reads, "read"), (sum.writes, "write"), (sum.executes, "execute")];
                let used = uses.into_iter().filter(|(count, _)| *count > 0);
                seen.access = used.map(|(_, name)| name.to_owned()).collect();
            }
            object @ (Object::Socket(_) | Object::Privilege(_)) => seen.detail = detail(object),
            Object::Gap(_) | Object::Sandbox(_) | Object::Alarm(_) => {}
        }
        seen
    }
}

/// What else is to be told of an object.
fn detail(object: &Object) -> Option<String> {
    match object {
        Object::Privilege(privilege) => {
            let other = privilege.other_pid.map(|pid| format!("process {pid}"));
            privilege.system_call.clone().or(other)
        }
        Object::Socket(socket) => {
            let family =
                socket.family.map(|family| format!("family {family}, ")).unwrap_or_default();
            Some(format!("{family}type {}, protocol {}", socket.socket_type, socket.protocol))
        }
        _ => None,
    }
}

impl Seen {
    /// Of a row of the store, as [`crate::audit::store::event::object`] has it.
    #[must_use]
    pub fn of_row(row: &Value) -> Self {
        let text = |key: &str| row[key].as_str().map(str::to_owned);
        let number = |key: &str| row[key].as_u64().and_then(|number| u32::try_from(number).ok());
        let access = text("access").unwrap_or_default();
        let args = row["args"].as_array().into_iter().flatten();
        Self {
            id: row["id"].as_u64(),
            time: text("time").unwrap_or_default(),
            sandbox: text("sandbox").unwrap_or_default(),
            class: text("class").unwrap_or_default(),
            action: text("action").unwrap_or_default(),
            verdict: text("verdict").unwrap_or_default(),
            let_through: row["let_through"].as_bool().unwrap_or(false),
            reason: text("reason").unwrap_or_default(),
            rule: text("rule"),
            program: text("exe"),
            script: text("script"),
            pid: number("pid"),
            parent: number("parent"),
            host: text("host"),
            workdir: text("workdir"),
            ip: text("ip"),
            port: number("port").and_then(|port| u16::try_from(port).ok()),
            transport: text("transport"),
            named: text("named"),
            path: text("path"),
            access: access.split('+').filter(|name| !name.is_empty()).map(str::to_owned).collect(),
            args: args.filter_map(|arg| arg.as_str().map(str::to_owned)).collect(),
            detail: match row["class"].as_str() {
                Some("network" | "privilege") => {
                    let object = serde_json::from_value::<Object>(row["detail"].clone()).ok();
                    object.as_ref().and_then(detail)
                }
                _ => None,
            },
        }
    }

    /// Whether it was denied.
    #[must_use]
    pub fn is_denied(&self) -> bool {
        self.verdict == "deny"
    }

    /// Who did it, where its program is known.
    #[must_use]
    pub fn who(&self) -> Option<Who> {
        let script = self.script.as_ref().map(PathBuf::from);
        Some(Who {
            program: self.program.as_ref()?.into(),
            script: script.filter(|script| script.is_absolute()),
            ancestors: Vec::new(),
        })
    }

    /// What a policy can be asked about it: nothing of kinds of sockets and of processes. A question for a
    /// name is asked about as the connection that would have come next.
    #[must_use]
    pub fn deeds(&self) -> Vec<Deed> {
        use clawbox_common::rule::{ICMP, TCP, UDP};
        let transport = match self.transport.as_deref() {
            Some("udp") => UDP,
            Some("icmp") => ICMP,
            _ => TCP,
        };
        if self.action == "bind" {
            let address = self.ip.as_ref().and_then(|ip| ip.parse().ok());
            let place = address.zip(self.port.filter(|port| *port > 0));
            let deed = |(address, port)| Deed::Listen { address, port, transport };
            return place.map(deed).into_iter().collect();
        }
        // No rule is for other transports, and of what was sent by one no address is told.
        if self.transport.as_deref() == Some("other") {
            return Vec::new();
        }
        if self.class == "network" && self.action != "socket" {
            let host = self.host.as_ref().or(self.ip.as_ref());
            let deed = |host: &String, port| Deed::Connect { host: host.clone(), port, transport };
            return host.zip(self.port).map(|(host, port)| deed(host, port)).into_iter().collect();
        }
        if self.class == "dns" {
            let deed =
                |host: &String| Deed::Connect { host: host.clone(), port: 443, transport: TCP };
            return self.host.iter().map(deed).collect();
        }
        let Some(path) = self.path.as_ref().filter(|path| path.starts_with('/')) else {
            return Vec::new();
        };
        let deed = |access| Deed::Use { path: path.into(), access };
        if self.action == Operation::UnixSocket.name() {
            return vec![Deed::Reach { path: path.into() }];
        }
        if self.class == "process" {
            return vec![deed(Access::Execute)];
        }
        let accesses = [Access::Write, Access::Read, Access::Execute].into_iter();
        let asked = |access: Access| self.access.iter().any(|name| name == access.name());
        // What may be written may be read.
        let is_said = |access: &Access| *access != Access::Read || !asked(Access::Write);
        accesses.filter(|access| asked(*access)).filter(is_said).map(deed).collect()
    }

    /// What was done, in a few words.
    #[must_use]
    pub fn what(&self) -> String {
        let or_nothing = |text: &Option<String>| text.clone().unwrap_or_default();
        match (self.class.as_str(), &self.path) {
            ("network", _) if self.port.is_some() && self.ip.is_some() => {
                let host = self.host.as_ref().or(self.ip.as_ref()).cloned().unwrap_or_default();
                let transport = or_nothing(&self.transport);
                format!("{} {host}:{}/{transport}", self.action, self.port.unwrap_or_default())
            }
            ("dns", _) => format!("resolve {}", or_nothing(&self.host)),
            ("file", Some(path)) => format!("{} {path}", self.access.join("+")),
            ("process", Some(path)) => format!("start {path}"),
            _ => match &self.detail {
                Some(detail) => format!("{} ({detail})", self.action),
                None => format!("{} {}", self.class, self.action),
            },
        }
    }

    /// The program, as it is told.
    #[must_use]
    pub fn by(&self) -> &str {
        let program = self.script.as_ref().or(self.program.as_ref());
        program.map_or("a program that has ended", String::as_str)
    }
}

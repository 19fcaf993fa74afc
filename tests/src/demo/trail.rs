//! The audit trail as anybody would read it: lines of JSON, told apart into attempts by who
//! started what.

use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// One line, as far as the demo looks at it.
#[derive(Clone, Debug, Default)]
pub struct Record {
    time: String,
    class: String,
    /// What was done.
    pub action: String,
    /// What the policy says.
    pub verdict: String,
    /// Why.
    pub reason: String,
    policy: Option<String>,
    pid: Option<u64>,
    exe: Option<String>,
    script: Option<String>,
    object: Value,
}

/// A trail, told apart.
#[derive(Debug)]
pub struct Trail {
    /// What each attempt left, in the order in which they were made.
    pub attempts: Vec<Vec<Record>>,
    /// How many lines there are.
    pub lines: usize,
    /// Events that happened and are not there.
    pub lost: u64,
}

impl Trail {
    /// Reads the trail of one sandbox.
    ///
    /// # Errors
    /// It is not there, or is no audit trail.
    pub fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path)
            .with_context(|| format!("cannot read the audit trail {}", path.display()))?;
        let mut records = Vec::new();
        for (index, line) in text.lines().enumerate() {
            records.push(Record::parse(line).with_context(|| {
                format!("line {} of the audit trail is not a record", index + 1)
            })?);
        }
        Self::told_apart(records)
    }

    /// Every program that the driver itself starts begins an attempt.
    fn told_apart(mut records: Vec<Record>) -> Result<Self> {
        let lines = records.len();
        let lost = records.iter().filter_map(|record| record.object["count"].as_u64()).sum();
        // The kernel's events and the resolver's come from two queues.
        records.sort_by(|one, other| one.time.cmp(&other.time));
        let mut execs = records.iter().filter(|record| record.action == "exec");
        let Some(driver) = execs.next().and_then(|record| record.pid) else {
            bail!("the audit trail has no program start");
        };
        let mut attempts: Vec<Vec<Record>> = Vec::new();
        for record in records {
            if record.class == "sandbox" {
                continue;
            }
            if record.action == "exec" && record.object["parent"].as_u64() == Some(driver) {
                attempts.push(Vec::new());
            }
            if let Some(attempt) = attempts.last_mut() {
                attempt.push(record);
            }
        }
        Ok(Self { attempts, lines, lost })
    }
}

impl Record {
    fn parse(line: &str) -> Result<Self> {
        let value: Value = serde_json::from_str(line)?;
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let named = |key: &str| text(&value[key]).with_context(|| format!("no `{key}`"));
        Ok(Self {
            time: named("time")?,
            class: named("class")?,
            action: named("action")?,
            verdict: named("verdict")?,
            reason: named("reason")?,
            policy: text(&value["rule"]["policy"]),
            pid: value["subject"]["pid"].as_u64(),
            exe: text(&value["subject"]["exe"]),
            script: text(&value["subject"]["script"]),
            object: value["object"].clone(),
        })
    }

    /// Whether its object is this name, address or path.
    #[must_use]
    pub fn is_about(&self, object: &str) -> bool {
        ["host", "ip", "name", "path"].iter().any(|key| self.object[*key] == *object)
    }

    /// Whether it says that something went out for the sandbox, other than to its own resolver.
    #[must_use]
    pub fn lets_out(&self) -> bool {
        self.class == "network" && self.verdict == "allow" && self.reason != "resolver"
    }

    fn subject(&self) -> String {
        let name = |path: &String| path.rsplit('/').next().unwrap_or(path).to_owned();
        match (&self.exe, &self.script) {
            (Some(exe), Some(script)) => format!("{} ({})", name(exe), name(script)),
            (Some(exe), None) => name(exe),
            _ => "a program that has ended".to_owned(),
        }
    }

    fn target(&self) -> String {
        let text = |key: &str| self.object[key].as_str().unwrap_or_default();
        if self.class == "dns" {
            return format!("{} {}", text("name"), text("type"));
        }
        if self.action == "exec" {
            return text("path").to_owned();
        }
        if self.object["ip"].is_null() {
            return self.object.to_string();
        }
        let at = format!("{}:{}/{}", text("ip"), self.object["port"], text("transport"));
        match text("host") {
            "" => at,
            host => format!("{host} {at}"),
        }
    }
}

/// The short form: verdict, reason, who, what, and the rule.
impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}  {} → {}", self.verdict, self.reason, self.subject(), self.target())?;
        match &self.policy {
            Some(policy) => write!(f, "  by {policy}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn line(time: u32, action: &str, pid: u32, object: &Value) -> String {
        let class = if action == "exec" { "process" } else { "network" };
        json!({
            "time": format!("2026-01-01T00:00:00.{time:06}Z"), "seq": time, "class": class,
            "action": action, "verdict": "allow", "reason": "rule",
            "subject": { "pid": pid, "exe": "/usr/bin/curl" }, "object": object,
        })
        .to_string()
    }

    #[test]
    fn attempts_are_what_the_driver_starts_with_all_that_these_start() {
        let exec = |time, pid, parent| {
            line(time, "exec", pid, &json!({ "path": "/bin/sh", "parent": parent }))
        };
        let connect = |time, pid, host| {
            let object =
                json!({ "host": host, "ip": "192.0.2.1", "port": 443, "transport": "tcp" });
            line(time, "connect", pid, &object)
        };
        let lines = [
            exec(1, 10, 1),
            exec(2, 11, 10),
            exec(3, 12, 11),
            // Out of order by a few microseconds: the queues are two.
            exec(6, 13, 10),
            connect(5, 12, "a.test"),
            connect(7, 13, "b.test"),
        ];
        let records = lines.iter().map(|line| Record::parse(line).unwrap()).collect();
        let trail = Trail::told_apart(records).unwrap();
        assert_eq!(trail.attempts.iter().map(Vec::len).collect::<Vec<_>>(), [3, 2]);
        assert!(trail.attempts[0][2].is_about("a.test") && trail.attempts[0][2].lets_out());
        assert_eq!(trail.attempts[1][1].to_string(), "allow rule  curl → b.test 192.0.2.1:443/tcp");
    }

    #[test]
    fn what_is_no_record_is_named_by_its_line() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("trail");
        fs::write(&path, "{}\n").unwrap();
        assert!(Trail::read(&path).unwrap_err().to_string().contains("line 1"));
    }
}

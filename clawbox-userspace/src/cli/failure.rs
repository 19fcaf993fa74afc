//! What went wrong, for programs: in one shape, as JSON on standard error, where `--format json` was asked
//! for. For people it is said as it always was.

use std::ffi::{OsStr, OsString};
use std::io::{self, Write};
use std::process::ExitCode;

use clap::Command;
use serde::Serialize;

use crate::api::client::ClientError;
use crate::policy::Diagnostic;

/// One thing that went wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// What is wrong.
    pub what: String,
    /// Where: a place in a file, or the command.
    #[serde(rename = "where")]
    pub place: String,
    /// What led to it, the nearest first.
    pub why: Option<String>,
    /// What to do.
    pub fix: Option<String>,
}

#[derive(Serialize)]
struct Report<'a> {
    errors: &'a [Failure],
}

impl From<&Diagnostic> for Failure {
    fn from(diagnostic: &Diagnostic) -> Self {
        let Diagnostic { origin, message, remedy, .. } = diagnostic;
        let (what, place, fix) = (message.clone(), origin.to_string(), remedy.clone());
        Self { what, place, why: None, fix }
    }
}

impl Failure {
    /// Of an error at a command's edge. What messages have behind `; ` is what to do.
    #[must_use]
    pub fn of(error: &anyhow::Error, place: String) -> Self {
        let said = error.to_string();
        let (what, fix) = match said.split_once("; ") {
            Some((what, fix)) => (what.to_owned(), Some(fix.to_owned())),
            None => (said, None),
        };
        let causes: Vec<String> = error.chain().skip(1).map(ToString::to_string).collect();
        let why = (!causes.is_empty()).then(|| causes.join(": "));
        // What there is instead is no advice.
        let (why, fix) = match fix {
            Some(there) if there.starts_with("running: ") => (why.or(Some(there)), None),
            fix => (why, fix),
        };
        Self { what, place, why, fix }
    }

    /// Of a command line that is none.
    #[must_use]
    pub fn of_usage(error: &clap::Error, place: String) -> Self {
        let text = error.to_string();
        let said = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let mut said = said.take_while(|line| !line.starts_with("Usage:"));
        let what = said.next().unwrap_or_default();
        let what = what.strip_prefix("error: ").unwrap_or(what).to_owned();
        let rest: Vec<&str> = said.filter(|line| !line.starts_with("tip:")).collect();
        let tip = text.lines().find_map(|line| line.trim().strip_prefix("tip: "));
        let fix = tip.map_or_else(|| format!("{place} --help"), str::to_owned);
        let why = (!rest.is_empty()).then(|| rest.join(" "));
        Self { what, place, why, fix: Some(fix) }
    }
}

/// Says what went wrong, and gives the status for it: `failed`, but where nobody reads any more. `place` is
/// asked for where a program reads it.
pub fn tell(error: &anyhow::Error, place: impl FnOnce() -> String, failed: ExitCode) -> ExitCode {
    // `clawbox policy check … | head` has what it wanted; as a shell counts SIGPIPE.
    if is_closed_pipe(error) {
        return ExitCode::from(141);
    }
    match is_json() {
        true => print(&[Failure::of(error, place())]),
        false => eprintln!("clawbox: {error:#}"),
    }
    failed
}

/// Whether whoever reads this process's output has gone.
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    if error.is::<ClientError>() {
        // That is the daemon's end.
        return false;
    }
    error.chain().any(|cause| {
        let by_json =
            cause.downcast_ref::<serde_json::Error>().and_then(|json| json.io_error_kind());
        let kind = cause.downcast_ref::<io::Error>().map(io::Error::kind).or(by_json);
        kind == Some(io::ErrorKind::BrokenPipe)
    })
}

/// Says it on standard error.
pub fn print(failures: &[Failure]) {
    let report = serde_json::to_string_pretty(&Report { errors: failures });
    // Where nobody hears, nobody is told.
    let _ = report.map(|report| writeln!(std::io::stderr(), "{report}"));
}

/// Whether this process was asked for JSON. What stands behind `--` is another command's.
#[must_use]
pub fn is_json() -> bool {
    asks_for_json(std::env::args_os().skip(1))
}

fn asks_for_json(words: impl IntoIterator<Item = OsString>) -> bool {
    let mut before = OsString::new();
    for word in words {
        if word == "--" {
            return false;
        }
        if word == "--format=json" || (before == "--format" && word == "json") {
            return true;
        }
        before = word;
    }
    false
}

/// The verbs of this process's command line, as they are typed.
#[must_use]
pub fn place(command: &Command) -> String {
    let words: Vec<OsString> = std::env::args_os().skip(1).collect();
    verbs(command, words.iter().map(OsString::as_os_str))
}

fn verbs<'a>(command: &Command, words: impl IntoIterator<Item = &'a OsStr>) -> String {
    let (mut at, mut told) = (command, "clawbox".to_owned());
    for word in words {
        let Some(next) = word.to_str().and_then(|word| at.find_subcommand(word)) else { break };
        told.push_str(&format!(" {}", next.get_name()));
        at = next;
    }
    told
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn an_error_says_what_where_why_and_what_to_do() {
        let cause: anyhow::Result<()> = Err(anyhow::anyhow!("no such file"));
        let error = cause.context("cannot read `p.yaml`; name another").unwrap_err();
        let failure = Failure::of(&error, "clawbox why".to_owned());
        assert_eq!(
            serde_json::to_string(&failure).unwrap(),
            r#"{"what":"cannot read `p.yaml`","where":"clawbox why","why":"no such file","fix":"name another"}"#
        );
        let error = anyhow::anyhow!("no sandbox `x` is running here; running: a-1");
        let failure = Failure::of(&error, "clawbox show".to_owned());
        assert_eq!((failure.why.as_deref(), failure.fix), (Some("running: a-1"), None));
        let command = || {
            Command::new("clawbox").subcommand(
                Command::new("policy").subcommand(Command::new("get").arg(clap::arg!(<SANDBOX>))),
            )
        };
        let words = ["policy", "get", "--wrong"];
        let place = verbs(&command(), words.map(OsStr::new));
        assert_eq!(place, "clawbox policy get");
        let usage = command().try_get_matches_from(["clawbox"].into_iter().chain(words));
        let failure = Failure::of_usage(&usage.unwrap_err(), place);
        assert!(failure.what.contains("unexpected argument '--wrong'"), "{failure:?}");
        assert!(failure.fix.is_some());
    }

    #[test]
    fn json_is_asked_for_before_another_commands_words() {
        let asks = |words: &[&str]| asks_for_json(words.iter().map(OsString::from));
        assert!(asks(&["list", "--format", "json"]) && asks(&["list", "--format=json"]));
        assert!(!asks(&["list", "--format", "text"]) && !asks(&["json", "--format"]));
        assert!(!asks(&["run", "--policy", "p", "--", "x", "--format", "json"]));
    }
}

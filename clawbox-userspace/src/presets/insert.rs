//! Widens a policy's text by an endpoint for a program or by a path, comments and layout kept. The result
//! counts only if it says what the policy said and what was added, and nothing else.

use std::net::IpAddr;
use std::sync::Arc;

use clawbox_common::rule::{ICMP, TCP, UDP};

use super::edit::add_entries;
use crate::judge::{Access, Deed};
use crate::policy::drafted::{FileList, check_path, places};
use crate::policy::{Diagnostic, Origin};

/// An entry of `network_policies`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its key.
    pub key: String,
    /// Programs, by path.
    pub programs: Vec<String>,
    /// Host, port and transport of each endpoint, and why it is there.
    pub endpoints: Vec<EndpointAdded>,
}

/// An endpoint of an entry.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EndpointAdded {
    /// Name or address.
    pub host: String,
    /// Port; zero for echo requests.
    pub port: u16,
    /// [`clawbox_common::rule::TCP`] and its like.
    pub transport: u8,
    /// A comment on a line above it.
    pub because: Option<String>,
}

/// A path of `filesystem_policy`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathAdded {
    /// In which list.
    pub list: FileList,
    /// The path.
    pub path: String,
    /// A comment on a line above it, where the list is written in lines.
    pub because: Option<String>,
}

impl Entry {
    /// The entry for one program and one endpoint, as approvals that last are called.
    #[must_use]
    pub fn of(program: &str, endpoint: EndpointAdded) -> Self {
        let file = program.rsplit('/').next().unwrap_or_default();
        let key = format!("allowed {file} {} {}", endpoint.host, endpoint.port);
        Self { key, programs: vec![program.to_owned()], endpoints: vec![endpoint] }
    }

    /// As a fragment that has nothing else.
    #[must_use]
    pub fn fragment(&self) -> String {
        let mut text = format!(
            "preset: {{ name: added }}\nnetwork_policies:\n  {}:\n    endpoints:\n",
            quoted(&self.key)
        );
        for endpoint in &self.endpoints {
            if let Some(because) = &endpoint.because {
                text.push_str(&format!("      # {}\n", one_line(because)));
            }
            text.push_str(&format!("      - {}\n", endpoint.written()));
        }
        text.push_str("    binaries:\n");
        for program in &self.programs {
            text.push_str(&format!("      - {{ path: {} }}\n", quoted(program)));
        }
        text
    }
}

impl EndpointAdded {
    /// As YAML. A name on the port of TLS is verified: an address may be many names'.
    fn written(&self) -> String {
        let Self { host, port, transport, .. } = self;
        let mut text = format!("{{ host: {}", quoted(host));
        if *transport != ICMP {
            text.push_str(&format!(", port: {port}"));
        }
        match *transport {
            ICMP => text.push_str(", transport: icmp"),
            UDP => text.push_str(", transport: udp"),
            _ => {}
        }
        let address = host.parse::<IpAddr>();
        if address.as_ref().map_or(host == "localhost", IpAddr::is_loopback) {
            text.push_str(", host_loopback: true");
        } else if address.is_err() && *port == 443 && *transport == TCP {
            text.push_str(", sni: verify");
        }
        text.push_str(" }");
        text
    }
}

/// A policy's text with an entry.
///
/// # Errors
///
/// The key is taken, or the text is laid out so that nothing can be added to it.
pub fn entry(policy: (&Arc<str>, &str), entry: &Entry) -> Result<String, Vec<Diagnostic>> {
    let name: Arc<str> = "added".into();
    add_entries(policy, (&name, &entry.fragment()))
}

/// A policy's text that allows a deed to a program.
///
/// # Errors
///
/// As [`entry`] and [`path`]; files cannot be opened for being started: what is read may be.
pub fn deed(
    policy: (&Arc<str>, &str),
    program: &str,
    deed: &Deed,
) -> Result<String, Vec<Diagnostic>> {
    match deed {
        Deed::Connect { host, port, transport } => {
            let (host, port, transport) = (host.clone(), *port, *transport);
            let added = EndpointAdded { host, port, transport, because: None };
            entry(policy, &Entry::of(program, added))
        }
        Deed::Use { path: at, access } => {
            let list = match access {
                Access::Write => FileList::ReadWrite,
                Access::Read | Access::Execute => FileList::ReadOnly,
            };
            let path_text = at.display().to_string();
            path(policy, &PathAdded { list, path: path_text, because: None })
        }
    }
}

/// A policy's text with a path.
///
/// # Errors
///
/// It is in the list already, or the text is laid out so that nothing can be added to it.
pub fn path(policy: (&Arc<str>, &str), added: &PathAdded) -> Result<String, Vec<Diagnostic>> {
    let (file, text) = policy;
    let one = |diagnostic| vec![diagnostic];
    let all = places(file, text).map_err(one)?;
    let written = all.of(added.list);
    if written.iter().any(|(path, _)| path == &added.path) {
        let message = format!("`{}` is in {} already", added.path, added.list.key());
        return Err(one(Diagnostic::error(Origin::file(file), message, "leave it as it is")));
    }
    let changed = match written.last() {
        Some((last, place)) => behind(text, last, place, added),
        None => first(text, added, all.has_section),
    };
    let changed = changed.ok_or_else(|| one(unclear(file, added.list)))?;
    check_path(policy, (added.list, &added.path), &changed).map_err(one)?;
    Ok(changed)
}

/// Behind the last entry of a list.
fn behind(text: &str, last: &str, place: &Origin, added: &PathAdded) -> Option<String> {
    let line = line_start(text, place.line)?;
    let column = usize::try_from(place.column).ok()?.checked_sub(1)?;
    let rest = text.get(line..)?;
    let start = line + rest.char_indices().nth(column)?.0;
    let here = text.get(start..)?;
    let forms = [quoted(last), format!("'{last}'"), last.to_owned()];
    let token = forms.iter().find(|form| here.starts_with(form.as_str()))?;
    let before = text.get(line..start)?;
    if before.trim() != "-" {
        // A list in brackets.
        let end = start + token.len();
        let (head, tail) = (text.get(..end)?, text.get(end..)?);
        return Some(format!("{head}, {}{tail}", quoted(&added.path)));
    }
    let end = start + here.find('\n').unwrap_or(here.len());
    let end = text.get(..end)?.trim_end_matches('\r').len();
    let eol = if text.contains("\r\n") { "\r\n" } else { "\n" };
    let indent = before.get(..before.find('-')?)?;
    let mut lines = String::new();
    if let Some(because) = &added.because {
        lines.push_str(&format!("{eol}{indent}# {}", one_line(because)));
    }
    lines.push_str(&format!("{eol}{before}{}", quoted(&added.path)));
    let mut changed = text.to_owned();
    changed.insert_str(end, &lines);
    Some(changed)
}

/// As the first of a list that is not there, or empty.
fn first(text: &str, added: &PathAdded, has_section: bool) -> Option<String> {
    let key = added.list.key();
    let because = added.because.as_ref().map(|because| format!("      # {}\n", one_line(because)));
    let because = because.unwrap_or_default();
    let list = format!("    {key}:\n{because}      - {}\n", quoted(&added.path));
    if !has_section {
        let end = if text.ends_with('\n') { "" } else { "\n" };
        return Some(format!("{text}{end}filesystem_policy:\n{list}"));
    }
    // An empty list in brackets, wherever it stands.
    for empty in [format!("{key}: []"), format!("{key}: [ ]")] {
        if let Some(at) = text.find(&empty) {
            let mut changed = text.to_owned();
            let list = format!("{key}: [{}]", quoted(&added.path));
            changed.replace_range(at..at + empty.len(), &list);
            return Some(changed);
        }
    }
    let start = text
        .split_inclusive('\n')
        .scan(0, |at, line| {
            let start = *at;
            *at += line.len();
            Some((start, *at, line))
        })
        .find(|(_, _, line)| line.starts_with("filesystem_policy:"))?;
    let (_, end, line) = start;
    // What stands behind the key on its line is no section in lines.
    let value = line.trim_end().strip_prefix("filesystem_policy:")?.trim();
    if !value.is_empty() && !value.starts_with('#') {
        return None;
    }
    let is_key = |line: &&str| !line.trim().is_empty() && !line.trim_start().starts_with('#');
    let next = text.get(end..)?.lines().find(is_key)?;
    let indent = next.len() - next.trim_start().len();
    let indent = next.get(..indent)?;
    let list = list.replace("      ", "\u{1}").replace("    ", indent);
    let list = list.replace('\u{1}', &format!("{indent}  "));
    let mut changed = text.to_owned();
    changed.insert_str(end, &list);
    Some(changed)
}

fn line_start(text: &str, line: u32) -> Option<usize> {
    let number = usize::try_from(line).ok()?.checked_sub(1)?;
    let mut starts = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1));
    starts.nth(number)
}

fn unclear(file: &Arc<str>, list: FileList) -> Diagnostic {
    Diagnostic::error(
        Origin::file(file),
        format!("`filesystem_policy.{}` is written so that nothing can be added to it", list.key()),
        "write `filesystem_policy:` with each list on lines of its own, indented by spaces",
    )
}

/// As a YAML string, which has JSON's escapes.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// A comment ends where its line does, and a sandbox has a say in what it holds.
fn one_line(text: &str) -> String {
    crate::audit::line::harmless(text).replace(['\n', '\r'], " ")
}

#[cfg(test)]
#[path = "insert_tests.rs"]
mod tests;

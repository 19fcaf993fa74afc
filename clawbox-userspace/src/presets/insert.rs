//! Widens a policy's text by an endpoint for a program or an entry of a list, comments and layout kept. The result
//! counts only if it says what the policy said and what was added, and nothing else.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use clawbox_common::rule::{ICMP, TCP, UDP};
use clawbox_common::verdict::Reason;

use super::edit::add_entries;
use super::section;
use crate::judge::{Access, Deed};
use crate::policy::lists::{Addition, List, check_addition, lists};
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

/// An entry of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// In which list.
    pub list: List,
    /// What is listed: a path, a port, an address.
    pub value: String,
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

/// A policy's text with what a denial of a deed by a program lacks. Where two rules deny it, it takes two
/// of them; `reason` is the denial's.
///
/// # Errors
///
/// As [`entry`], [`item`] and [`listening`].
pub fn deed(
    policy: (&Arc<str>, &str),
    program: &str,
    deed: &Deed,
    reason: Reason,
) -> Result<String, Vec<Diagnostic>> {
    let listed = |list: List, at: &Path| {
        item(policy, &Item { list, value: at.display().to_string(), because: None })
    };
    match deed {
        Deed::Connect { host, port, transport } => {
            let (host, port, transport) = (host.clone(), *port, *transport);
            let added = EndpointAdded { host, port, transport, because: None };
            entry(policy, &Entry::of(program, added))
        }
        Deed::Use { path, access: Access::Write } => listed(List::ReadWrite, path),
        Deed::Use { path, access: Access::Execute } => match reason {
            Reason::UnlistedProgram => listed(List::Programs, path),
            Reason::WritableProgram => section::from_writable(policy),
            _ => listed(List::ReadOnly, path),
        },
        Deed::Use { path, access: Access::Read } => listed(List::ReadOnly, path),
        Deed::Listen { address, port, transport } => {
            section::listening(policy, *address, *port, *transport)
        }
        Deed::Reach { path } => listed(List::Sockets, path),
    }
}

/// A policy's text with one more entry of a list.
///
/// # Errors
///
/// It is in the list already, or the text is laid out so that nothing can be added to it.
pub fn item(policy: (&Arc<str>, &str), added: &Item) -> Result<String, Vec<Diagnostic>> {
    let (file, text) = policy;
    let one = |diagnostic| vec![diagnostic];
    let all = lists(file, text).map_err(one)?;
    let written = all.of(added.list);
    if written.iter().any(|(entry, _)| entry == &added.value) {
        let (section, key) = (added.list.section(), added.list.key());
        let message = format!("`{}` is in {section}.{key} already", added.value);
        return Err(one(Diagnostic::error(Origin::file(file), message, "leave it as it is")));
    }
    let changed = match written.last() {
        Some((last, place)) => behind(text, last, place, added),
        None => section::first(text, added, all.has_section(added.list.section())),
    };
    let changed = changed.ok_or_else(|| one(section::unclear(file, added.list.section())))?;
    let addition = Addition::Entry(added.list, &added.value);
    check_addition(policy, &addition, &changed).map_err(one)?;
    Ok(changed)
}

/// Behind the last entry of a list.
fn behind(text: &str, last: &str, place: &Origin, added: &Item) -> Option<String> {
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
        return Some(format!("{head}, {}{tail}", added.written()));
    }
    let end = start + here.find('\n').unwrap_or(here.len());
    let end = text.get(..end)?.trim_end_matches('\r').len();
    let eol = if text.contains("\r\n") { "\r\n" } else { "\n" };
    let indent = before.get(..before.find('-')?)?;
    let mut lines = String::new();
    if let Some(because) = &added.because {
        lines.push_str(&format!("{eol}{indent}# {}", one_line(because)));
    }
    lines.push_str(&format!("{eol}{before}{}", added.written()));
    let mut changed = text.to_owned();
    changed.insert_str(end, &lines);
    Some(changed)
}

pub(super) fn line_start(text: &str, line: u32) -> Option<usize> {
    let number = usize::try_from(line).ok()?.checked_sub(1)?;
    let mut starts = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1));
    starts.nth(number)
}

impl Item {
    /// As YAML: ports are numbers.
    pub(super) fn written(&self) -> String {
        if self.list == List::Ports { self.value.clone() } else { quoted(&self.value) }
    }
}

/// As a YAML string, which has JSON's escapes.
pub(super) fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// A comment ends where its line does, and a sandbox has a say in what it holds.
pub(super) fn one_line(text: &str) -> String {
    crate::audit::line::harmless(text).replace(['\n', '\r'], " ")
}

#[cfg(test)]
#[path = "insert_tests.rs"]
mod tests;

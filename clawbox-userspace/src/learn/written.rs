//! A policy's text from what was learned, each rule with its evidence, or what of it another policy lacks.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;

use clawbox_common::rule::TCP;

use super::Learned;
use crate::judge::{Access, Deed, Judge, Who};
use crate::policy::lists::{List, lists};
use crate::policy::{Diagnostic, load_texts};
use crate::presets::insert::{self, Entry};
use crate::presets::{Filler, Home, Named};

/// A whole policy; `user` is whom it runs as, `command` what was learned from.
#[must_use]
pub fn policy(learned: &Learned, user: Option<&str>, command: &str) -> String {
    let mut text = String::new();
    // To a String: cannot fail.
    let _ = write(&mut text, learned, user, command);
    text
}

fn write(
    text: &mut String,
    learned: &Learned,
    user: Option<&str>,
    command: &str,
) -> std::fmt::Result {
    let command = crate::audit::line::harmless(command).replace(['\n', '\r'], " ");
    writeln!(text, "# Learned by `clawbox learn` from: {command}")?;
    writeln!(text, "# What it did is allowed, and nothing else. What was left out is at the end.")?;
    writeln!(text, "version: 1\n\nfilesystem_policy:")?;
    for list in [List::ReadOnly, List::ReadWrite] {
        let paths = learned.paths.iter().filter(|path| path.list == list);
        let mut paths = paths.peekable();
        if paths.peek().is_some() {
            writeln!(text, "  {}:", list.key())?;
        }
        for added in paths {
            if let Some(because) = &added.because {
                writeln!(text, "    # {because}")?;
            }
            writeln!(text, "    - {}", quoted(&added.value))?;
        }
    }
    if let Some(user) = user {
        let (user, group) = user.split_once(':').map_or((user, None), |(u, g)| (u, Some(g)));
        writeln!(text, "\nprocess:\n  run_as_user: {}", quoted(user))?;
        if let Some(group) = group {
            writeln!(text, "  run_as_group: {}", quoted(group))?;
        }
    }
    if !learned.listen.is_empty() {
        let ports: Vec<String> = learned.listen.iter().map(u16::to_string).collect();
        writeln!(text, "\n# seen: bound\nlisten:\n  ports: [{}]", ports.join(", "))?;
    }
    if !learned.sockets.is_empty() {
        writeln!(text, "\nunix_sockets:\n  allow:")?;
    }
    for added in &learned.sockets {
        if let Some(because) = &added.because {
            writeln!(text, "    # {because}")?;
        }
        writeln!(text, "    - {}", quoted(&added.value))?;
    }
    if !learned.entries.is_empty() {
        writeln!(text, "\nnetwork_policies:")?;
    }
    for entry in &learned.entries {
        let fragment = entry.fragment();
        let lines = fragment.lines().skip_while(|line| !line.starts_with("  "));
        for line in lines {
            writeln!(text, "{line}")?;
        }
    }
    if !learned.left_out.is_empty() {
        writeln!(text, "\n# Left out:")?;
    }
    for left in &learned.left_out {
        let line = crate::audit::line::harmless(&format!("{}: {}", left.what, left.because));
        writeln!(text, "# - {}", line.replace(['\n', '\r'], " "))?;
    }
    Ok(())
}

/// A policy's text with what it does not allow yet of what was learned, where the sandbox starts in `workdir`.
///
/// # Errors
///
/// It does not load, or is laid out so that nothing can be added to it.
pub fn merged(
    learned: &Learned,
    before: &Named,
    home: Home,
    workdir: &Path,
) -> Result<String, Vec<Diagnostic>> {
    let (file, mut text) = (Arc::clone(&before.0), before.1.clone());
    let filled = Filler::here(home).fill(&file, &text)?;
    let judge = Judge::of(load_texts(&[(Arc::clone(&file), filled)])?.policy, Some(workdir))?;
    let anybody = Who::from(Path::new(crate::judge::ANY_PROGRAM));
    let written = lists(&file, &text).map_err(|diagnostic| vec![diagnostic])?;
    for added in learned.paths.iter().chain(&learned.sockets) {
        let path = added.value.as_str().into();
        let deed = match added.list {
            List::ReadWrite => Deed::Use { path, access: Access::Write },
            List::Sockets => Deed::Reach { path },
            _ => Deed::Use { path, access: Access::Read },
        };
        // What is listed and not there is denied, and listing it again would not help.
        let is_listed = written.of(added.list).iter().any(|(entry, _)| *entry == added.value);
        if !is_listed && !judge.ask(&anybody, &deed).is_allowed() {
            text = insert::item((&file, &text), added)?;
        }
    }
    for port in &learned.listen {
        let address = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let deed = Deed::Listen { address, port: *port, transport: TCP };
        let judged = judge.ask(&anybody, &deed);
        if !judged.is_allowed() {
            text = insert::deed((&file, &text), crate::judge::ANY_PROGRAM, &deed, judged.reason)?;
        }
    }
    for entry in &learned.entries {
        let mut missing = entry.clone();
        missing.endpoints.retain(|at| {
            let (host, port, transport) = (at.host.clone(), at.port, at.transport);
            let deed = Deed::Connect { host, port, transport };
            let program = entry.programs.first().map(Path::new);
            program.is_some_and(|program| !judge.ask(&Who::from(program), &deed).is_allowed())
        });
        if !missing.endpoints.is_empty() {
            missing.key = unused(&text, &missing);
            text = insert::entry((&file, &text), &missing)?;
        }
    }
    Ok(text)
}

/// A key that the policy's text does not have.
fn unused(text: &str, entry: &Entry) -> String {
    let is_taken = |key: &str| {
        let forms = [format!("{key}:"), format!("\"{key}\":"), format!("'{key}':")];
        text.lines().any(|line| forms.iter().any(|form| line.trim_start().starts_with(form)))
    };
    let numbered = (2..).map(|number| format!("{}_{number}", entry.key));
    std::iter::once(entry.key.clone())
        .chain(numbered)
        .find(|key| !is_taken(key))
        .unwrap_or_default()
}

/// As a YAML string, which has JSON's escapes.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

//! Sections of a policy's text that single keys are written into: lists that have no entry yet, `listen`, and
//! `execution.from_writable`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Range;
use std::sync::Arc;

use clawbox_common::rule::{TCP, UDP};

use super::insert::{Item, item, one_line, quoted};
use crate::policy::lists::{Addition, List, check_addition, lists};
use crate::policy::model::Transport;
use crate::policy::{Diagnostic, Origin};

/// An entry as the first of a list that is not there, or empty.
pub(super) fn first(text: &str, added: &Item, has_section: bool) -> Option<String> {
    let (section, key) = (added.list.section(), added.list.key());
    let because = added.because.as_ref().map(|because| format!("  # {}\n", one_line(because)));
    let list = format!("{key}:\n{}  - {}\n", because.unwrap_or_default(), added.written());
    if !has_section {
        return Some(at_end(text, section, &list));
    }
    // An empty list in brackets, wherever in the section it stands.
    let block = block(text, section)?;
    for empty in [format!("{key}: []"), format!("{key}: [ ]")] {
        if let Some(at) = text.get(block.clone())?.find(&empty) {
            let mut changed = text.to_owned();
            let at = block.start + at;
            let list = format!("{key}: [{}]", added.written());
            changed.replace_range(at..at + empty.len(), &list);
            return Some(changed);
        }
    }
    with_key(text, section, &format!("{key}: [{}]", added.written()), &list)
}

/// A text with a new section at its end; `lines` are not indented.
fn at_end(text: &str, section: &str, lines: &str) -> String {
    let end = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
    let lines: String = lines.lines().map(|line| format!("    {line}\n")).collect();
    format!("{text}{end}{section}:\n{lines}")
}

/// Where a section is, from its key to the next one at the margin.
fn block(text: &str, section: &str) -> Option<Range<usize>> {
    let mut at = 0;
    let mut start = None;
    for line in text.split_inclusive('\n') {
        let begin = at;
        at += line.len();
        let is_it = line.strip_prefix(section).is_some_and(|rest| rest.starts_with(':'));
        match start {
            None if is_it => start = Some(begin),
            Some(start) if !line.trim().is_empty() && !line.starts_with([' ', '#', '\r']) => {
                return Some(start..begin);
            }
            _ => {}
        }
    }
    start.map(|start| start..text.len())
}

/// A text with one more key at the beginning of a section: `flow` within braces, else `lines`.
fn with_key(text: &str, section: &str, flow: &str, lines: &str) -> Option<String> {
    let block = block(text, section)?;
    let line = text.get(block.clone())?.split_inclusive('\n').next()?;
    let value = line.trim_end().strip_prefix(section)?.strip_prefix(':')?.trim_start();
    let mut changed = text.to_owned();
    if let Some(rest) = value.strip_prefix('{') {
        let at = block.start + line.find('{')? + 1;
        let is_empty = rest.trim_start().starts_with('}');
        changed.insert_str(at, &format!(" {flow}{}", if is_empty { " " } else { "," }));
        return Some(changed);
    }
    // What else stands behind the key on its line is no section in lines.
    if !value.is_empty() && !value.starts_with('#') {
        return None;
    }
    let end = block.start + line.len();
    let is_key = |line: &&str| !line.trim().is_empty() && !line.trim_start().starts_with('#');
    let next = text.get(end..block.end)?.lines().find(is_key)?;
    let indent = next.len() - next.trim_start().len();
    let indent = next.get(..indent)?;
    let lines: String = lines.lines().map(|line| format!("{indent}{line}\n")).collect();
    changed.insert_str(end, &lines);
    Some(changed)
}

/// A policy's text that lets every program of the sandbox listen at an address and port. The language has one
/// list of ports and one of addresses: a new one of either opens it with all of the other.
///
/// # Errors
///
/// No rule can be for it, `listen` is for the other transport, or the text is laid out so that nothing can
/// be added to it.
pub fn listening(
    policy: (&Arc<str>, &str),
    address: IpAddr,
    port: u16,
    transport: u8,
) -> Result<String, Vec<Diagnostic>> {
    let (file, text) = policy;
    let one = |diagnostic| vec![diagnostic];
    let all = lists(file, text).map_err(one)?;
    if port == 0 {
        let message = "no policy opens a port of the kernel's choice";
        let fix = "have the program listen on a port of its own, and allow that";
        return Err(one(Diagnostic::error(Origin::file(file), message, fix)));
    }
    let (port, text_of) = (port.to_string(), address.to_string());
    if !all.has_section("listen") {
        let transport = (transport == UDP).then_some(Transport::Udp);
        let udp = transport.map(|_| "transport: udp\n").unwrap_or_default();
        let lines = format!("ports: [{port}]\naddresses: [{}]\n{udp}", quoted(&text_of));
        let changed = at_end(text, "listen", &lines);
        let addition = Addition::Listen { port: &port, address: &text_of, transport };
        check_addition(policy, &addition, &changed).map_err(one)?;
        return Ok(changed);
    }
    let is_for_it = match all.transport.unwrap_or(Transport::Tcp) {
        Transport::Any => true,
        Transport::Udp => transport == UDP,
        Transport::Tcp | Transport::Icmp => transport == TCP,
    };
    if !is_for_it {
        let message = "`listen` is for the other transport";
        let fix = "write `transport: any` there, which opens its ports for both";
        return Err(one(Diagnostic::error(Origin::file(file), message, fix)));
    }
    let loopback = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
    let mut wanted = vec![(List::Ports, port)];
    match all.has(List::Addresses) {
        true => wanted.push((List::Addresses, text_of)),
        false if loopback.contains(&address) => {}
        false => {
            // What holds without the key has to be in it.
            let both = loopback.into_iter().chain([address]);
            wanted.extend(both.map(|address| (List::Addresses, address.to_string())));
        }
    }
    let mut changed = text.to_owned();
    for (list, value) in wanted {
        let is_there = |(written, _): &(String, Origin)| match list {
            List::Addresses => written.parse::<IpAddr>().ok() == value.parse().ok(),
            _ => *written == value,
        };
        if !all.of(list).iter().any(is_there) {
            let added = Item { list, value, because: None };
            changed = item((file, &changed), &added)?;
        }
    }
    Ok(changed)
}

/// A policy's text that lets what the sandbox can write be started.
///
/// # Errors
///
/// It does already, or the text is laid out so that nothing can be added to it.
pub fn from_writable(policy: (&Arc<str>, &str)) -> Result<String, Vec<Diagnostic>> {
    const DENIED: &str = "from_writable: deny";
    const ALLOWED: &str = "from_writable: allow";
    let (file, text) = policy;
    let one = |diagnostic| vec![diagnostic];
    let all = lists(file, text).map_err(one)?;
    let section = List::Programs.section();
    let changed = match (&all.from_writable, all.has_section(section)) {
        (_, false) => Some(at_end(text, section, &format!("{ALLOWED}\n"))),
        (None, true) => with_key(text, section, ALLOWED, &format!("{ALLOWED}\n")),
        (Some(_), true) => block(text, section).and_then(|block| {
            let at = block.start + text.get(block)?.find(DENIED)?;
            let mut changed = text.to_owned();
            changed.replace_range(at..at + DENIED.len(), ALLOWED);
            Some(changed)
        }),
    };
    let changed = changed.ok_or_else(|| one(unclear(file, section)))?;
    check_addition(policy, &Addition::FromWritable, &changed).map_err(one)?;
    Ok(changed)
}

pub(super) fn unclear(file: &Arc<str>, section: &str) -> Diagnostic {
    Diagnostic::error(
        Origin::file(file),
        format!("`{section}` is written so that nothing can be added to it"),
        format!("write `{section}:` with each key on lines of its own, indented by spaces"),
    )
}

//! The lists of a policy's text that single entries are added to, and where each entry stands.
//! Compares two texts by what they say apart from one entry.

use std::sync::Arc;

use super::document::{
    ExecutionSection, FilesystemSection, FromWritable, ListenSection, PolicyDocument, Transport,
    UnixSocketsSection,
};
use super::drafted::policy_of;
use super::yaml::{At, Given};
use super::{Diagnostic, Origin};

/// A list that an entry can be added to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum List {
    /// `filesystem_policy.read_only`
    ReadOnly,
    /// `filesystem_policy.read_write`
    ReadWrite,
    /// `execution.allow`
    Programs,
    /// `unix_sockets.allow`
    Sockets,
    /// `listen.ports`
    Ports,
    /// `listen.addresses`
    Addresses,
}

impl List {
    const ALL: [Self; 6] = [
        Self::ReadOnly,
        Self::ReadWrite,
        Self::Programs,
        Self::Sockets,
        Self::Ports,
        Self::Addresses,
    ];

    /// The section that it is in.
    #[must_use]
    pub const fn section(self) -> &'static str {
        match self {
            Self::ReadOnly | Self::ReadWrite => "filesystem_policy",
            Self::Programs => "execution",
            Self::Sockets => "unix_sockets",
            Self::Ports | Self::Addresses => "listen",
        }
    }

    /// Its key there.
    #[must_use]
    pub const fn key(self) -> &'static str {
        match self {
            Self::ReadOnly => "read_only",
            Self::ReadWrite => "read_write",
            Self::Programs | Self::Sockets => "allow",
            Self::Ports => "ports",
            Self::Addresses => "addresses",
        }
    }
}

/// An entry as it is written, and where.
pub type Written = (String, Origin);

/// What the lists of a policy hold.
#[derive(Clone, Debug, Default)]
pub struct Lists {
    /// Each list that is written, with its entries in the order of the text.
    all: Vec<(List, Vec<Written>)>,
    sections: Vec<&'static str>,
    /// `listen.transport`, absent is TCP.
    pub transport: Option<Transport>,
    /// Where `execution.from_writable` stands, if it is written.
    pub from_writable: Option<Origin>,
}

impl Lists {
    /// Entries of a list.
    #[must_use]
    pub fn of(&self, list: List) -> &[Written] {
        self.all.iter().find(|(other, _)| *other == list).map_or(&[], |(_, written)| written)
    }

    /// Whether a list is written, be it empty.
    #[must_use]
    pub fn has(&self, list: List) -> bool {
        self.all.iter().any(|(other, _)| *other == list)
    }

    /// Whether there is a section of this name.
    #[must_use]
    pub fn has_section(&self, name: &str) -> bool {
        self.sections.contains(&name)
    }

    fn add(&mut self, list: List, written: Option<Vec<Written>>) {
        self.sections.push(list.section());
        self.all.extend(written.map(|written| (list, written)));
    }

    fn texts(&self, list: List) -> impl Iterator<Item = &str> {
        self.of(list).iter().map(|(text, _)| text.as_str())
    }
}

/// The lists of a policy's text.
///
/// # Errors
///
/// The text is no policy.
pub fn lists(file: &Arc<str>, text: &str) -> Result<Lists, Diagnostic> {
    let document = policy_of(file, text)?;
    let mut found = Lists::default();
    let texts = |list: &Given<Vec<At<String>>>| -> Option<Vec<Written>> {
        let list = list.get()?.iter();
        Some(list.map(|at| (at.value.clone(), at.origin(file))).collect())
    };
    if let Some(section) = document.filesystem_policy.get() {
        found.add(List::ReadOnly, texts(&section.read_only));
        found.add(List::ReadWrite, texts(&section.read_write));
    }
    if let Some(At { value, .. }) = document.execution.get() {
        found.add(List::Programs, texts(&value.allow));
        found.from_writable = value.from_writable.get().map(|at| at.origin(file));
    }
    if let Some(At { value, .. }) = document.unix_sockets.get() {
        found.add(List::Sockets, texts(&value.allow));
    }
    if let Some(At { value, .. }) = document.listen.get() {
        let ports = value.ports.iter().map(|at| (at.value.to_string(), at.origin(file)));
        found.add(List::Ports, Some(ports.collect()));
        found.add(List::Addresses, texts(&value.addresses));
        found.transport = value.transport.get().map(|at| at.value);
    }
    Ok(found)
}

/// What a text is changed by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Addition<'a> {
    /// One more entry at the end of a list.
    Entry(List, &'a str),
    /// A `listen` of one port, where there was none.
    Listen {
        /// The port.
        port: &'a str,
        /// The address.
        address: &'a str,
        /// The transport, where it is not TCP.
        transport: Option<Transport>,
    },
    /// `execution.from_writable: allow`
    FromWritable,
}

/// Checks that a changed policy says what it said before and what was added, and nothing else.
///
/// # Errors
///
/// A text that does not load, or that the policy says something else.
pub fn check_addition(
    before: (&Arc<str>, &str),
    addition: &Addition<'_>,
    after: &str,
) -> Result<(), Diagnostic> {
    let (file, text) = before;
    let was = lists(file, text)?;
    let refusal = || {
        let section = match addition {
            Addition::Entry(list, _) => list.section(),
            Addition::Listen { .. } => List::Ports.section(),
            Addition::FromWritable => List::Programs.section(),
        };
        Diagnostic::error(
            Origin::file(file),
            "the policy would not be what it was and what is added, so it is left as it is",
            format!("write `{section}:` with each key on lines of its own, indented by spaces"),
        )
    };
    let is = lists(file, after).map_err(|_| refusal())?;
    let same = |list: List| {
        let added = match addition {
            Addition::Entry(to, entry) if *to == list => Some(*entry),
            Addition::Listen { port, .. } if list == List::Ports => Some(*port),
            Addition::Listen { address, .. } if list == List::Addresses => Some(*address),
            _ => None,
        };
        // A list without entries is not the same as no list.
        let is_there = was.has(list) || added.is_some();
        is.texts(list).eq(was.texts(list).chain(added)) && is.has(list) == is_there
    };
    let transport = match addition {
        Addition::Listen { transport, .. } => *transport,
        _ => was.transport,
    };
    let same_transport =
        is.transport.unwrap_or(Transport::Tcp) == transport.unwrap_or(Transport::Tcp);
    let (one, other) = (policy_of(file, text)?, policy_of(file, after).map_err(|_| refusal())?);
    let execution = |document: &PolicyDocument| {
        let section = document.execution.get();
        section.map_or(FromWritable::Deny, |at| at.value.from_writable.or(FromWritable::Deny))
    };
    let opens = *addition == Addition::FromWritable;
    let wanted = if opens { FromWritable::Allow } else { execution(&one) };
    let same_execution = execution(&other) == wanted;
    let all_same = List::ALL.into_iter().all(same) && same_transport && same_execution;
    if all_same && rest(one) == rest(other) { Ok(()) } else { Err(refusal()) }
}

/// A policy without the lists and what is compared beside them.
fn rest(mut document: PolicyDocument) -> PolicyDocument {
    let mut files = document.filesystem_policy.get().cloned().unwrap_or(FilesystemSection {
        include_workdir: Given::default(),
        read_only: Given::default(),
        read_write: Given::default(),
        deny: Given::default(),
        rules: Given::default(),
    });
    (files.read_only, files.read_write) = (Given::default(), Given::default());
    document.filesystem_policy = Given::of(files);
    document.execution = Given::default();
    document.unix_sockets = Given::default();
    document.listen = Given::default();
    document
}

/// That nothing else is in the sections that [`rest`] takes out: a key that is added to one has to be
/// compared here first.
const _: fn(ExecutionSection, UnixSocketsSection, ListenSection) = |execution, sockets, listen| {
    let ExecutionSection { from_writable: _, allow: _ } = execution;
    let UnixSocketsSection { allow: _ } = sockets;
    let ListenSection { ports: _, addresses: _, transport: _ } = listen;
};

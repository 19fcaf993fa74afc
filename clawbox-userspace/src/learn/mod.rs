//! From what a command did to the smallest policy under which it does the same again: hosts by name, programs
//! by path, paths folded to sensible directories, and what is dangerous left out and said.

mod entries;
mod fold;
pub mod observed;
mod sockets;
#[cfg(test)]
mod tests;
pub mod watch;
pub mod written;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use clawbox_common::rule::{ICMP, TCP, UDP};
use serde::Serialize;

use crate::policy::address::{always_denied, range_of};
use crate::policy::lists::List;
use crate::presets::groups::groups;
use crate::presets::insert::{EndpointAdded, Entry, Item};
use fold::{Fold, Folded, Protected};
use observed::{Observed, Spoken};

/// What was learned.
#[derive(Clone, Debug, Default)]
pub struct Learned {
    /// Entries of `network_policies`, one for each set of programs.
    pub entries: Vec<Entry>,
    /// Paths of `filesystem_policy`.
    pub paths: Vec<Item>,
    /// Ports that were listened on.
    pub listen: BTreeSet<u16>,
    /// Unix sockets that were reached and that no path opens.
    pub sockets: Vec<Item>,
    /// What was left out.
    pub left_out: Vec<LeftOut>,
    /// What is in it and should be looked at.
    pub remarks: Vec<String>,
}

/// Something that was done and is not in the policy.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct LeftOut {
    /// What was done, and by whom.
    pub what: String,
    /// Why it was left out.
    pub because: String,
    /// What allows it all the same, where something does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub options: Option<Vec<String>>,
}

/// Where a command was run.
#[derive(Clone, Debug)]
pub struct Place {
    /// The directory that it was started in.
    pub workdir: PathBuf,
    /// The home of whom it ran as.
    pub home: Option<PathBuf>,
    /// What it is called: what other programs' policies close as this one's settings is its own.
    pub program: Option<String>,
}

/// Learns from what was observed.
#[must_use]
pub fn learn(observed: &Observed, place: &Place) -> Learned {
    let mut learned = Learned::default();
    network(observed, &mut learned);
    files(observed, place, &mut learned);
    learned.listen.extend(&observed.listened);
    if observed.lost {
        learned.remarks.push(
            "the kernel lost reports of what it did: what is missing is denied; learn again with --merge"
                .to_owned(),
        );
    }
    learned.left_out.sort();
    learned.left_out.dedup();
    learned
}

fn network(observed: &Observed, learned: &mut Learned) {
    let mut by_program: BTreeMap<&str, BTreeMap<(&str, u16, u8), u64>> = BTreeMap::new();
    for (spoken, count) in &observed.spoken {
        let Spoken { program, host, port, transport } = spoken;
        let options = || {
            let place = if host.contains(':') { format!("[{host}]") } else { host.clone() };
            vec!["--binary".into(), program.clone(), "--endpoint".into(), format!("{place}:{port}")]
        };
        let leave = |because: &str, options: Option<Vec<String>>| LeftOut {
            what: format!("{program} → {host}:{port}"),
            because: because.to_owned(),
            options,
        };
        if let Ok(address) = host.parse::<IpAddr>() {
            if address.is_loopback() {
                let because = "the host's own loopback, where services ask nobody who they are";
                learned.left_out.push(leave(because, Some(options())));
                continue;
            }
            if always_denied(range_of(address)).is_some() {
                learned.left_out.push(leave("no policy opens this address", None));
                continue;
            }
            learned.remarks.push(format!(
                "{program} connects to {host}:{port} without asking for a name: whose that is can change"
            ));
        }
        if !program.starts_with('/') || program.contains(['*', '?', '[', '{']) {
            learned.left_out.push(leave("no rule can name the program", None));
            continue;
        }
        let counts = by_program.entry(program).or_default();
        *counts.entry((host, *port, *transport)).or_default() += count;
    }
    for (program, endpoints) in by_program {
        let file = program.rsplit('/').next().unwrap_or_default();
        let taken = |key: &str| learned.entries.iter().any(|entry| entry.key == key);
        let plain = format!("learned_{}", key_of(file));
        let key = (1..)
            .map(|number| if number == 1 { plain.clone() } else { format!("{plain}_{number}") })
            .find(|key| !taken(key))
            .unwrap_or_default();
        let endpoints = endpoints.into_iter().map(|((host, port, transport), count)| {
            let verb = if transport == TCP { "connection" } else { "datagram" };
            let verb = if transport == ICMP { "ping" } else { verb };
            let many = if count == 1 { "" } else { "s" };
            let host = host.to_owned();
            let because = Some(format!("seen: {count} {verb}{many}"));
            EndpointAdded { host, port, transport, because }
        });
        let endpoints = endpoints.collect();
        learned.entries.push(Entry { key, programs: vec![program.to_owned()], endpoints });
    }
}

/// A name as a key.
fn key_of(file: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' };
    file.chars().map(plain).collect()
}

fn files(observed: &Observed, place: &Place, learned: &mut Learned) {
    let mut protected = Protected::of(&groups().unwrap_or_default(), place);
    let own = protected.release_own(place);
    for path in own.iter().filter(|own| observed.files.keys().any(|path| path.starts_with(own))) {
        learned.remarks.push(format!(
            "{} has what other programs are kept from: it is this one's own by its name",
            path.display()
        ));
    }
    // A directory in which a secret was seen is not opened as a whole.
    protected.keep_apart(observed.files.keys());
    let fold = Fold::new(place, protected);
    let mut kept: BTreeMap<(List, PathBuf), Evidence> = BTreeMap::new();
    for (path, uses) in &observed.files {
        let list = if uses.is_written { List::ReadWrite } else { List::ReadOnly };
        match fold.fold(path, uses) {
            Folded::Nothing => {}
            Folded::Left { because, options } => learned.left_out.push(LeftOut {
                what: format!("{} {} {}", uses.who(), uses.verb(), path.display()),
                because,
                options,
            }),
            Folded::To(to) => kept.entry((list, to)).or_default().add(path, &uses.programs),
            Folded::Alone { remark } => {
                learned.remarks.push(remark);
                kept.entry((list, path.clone())).or_default().add(path, &uses.programs);
            }
        }
    }
    for path in ["/proc", "/dev/null"] {
        let list = if path == "/proc" { List::ReadOnly } else { List::ReadWrite };
        kept.entry((list, path.into())).or_default();
    }
    let all: Vec<(List, PathBuf)> = kept.keys().cloned().collect();
    for ((list, path), evidence) in kept {
        // What may be written may be read.
        let is_covered = all.iter().any(|(other_list, other)| {
            let wider = path.starts_with(other) && (path != *other || *other_list != list);
            wider && (*other_list == list || *other_list == List::ReadWrite)
        });
        if !is_covered && let Some(text) = path.to_str() {
            let because = Some(evidence.told());
            learned.paths.push(Item { list, value: text.to_owned(), because });
        }
    }
    for (path, reached) in &observed.reached {
        let mut written = learned.paths.iter().filter(|item| item.list == List::ReadWrite);
        let is_writable = written.any(|item| path.starts_with(&item.value));
        sockets::take_up(path, reached, fold.protected(), is_writable, learned);
    }
}

/// Why a path is in the policy.
#[derive(Default)]
struct Evidence {
    files: BTreeSet<PathBuf>,
    programs: BTreeSet<String>,
}

/// Programs that are named one by one.
const NAMED: usize = 3;

impl Evidence {
    fn add(&mut self, path: &Path, programs: &BTreeSet<String>) {
        self.files.insert(path.to_owned());
        self.programs.extend(programs.iter().cloned());
    }

    fn told(&self) -> String {
        if self.files.is_empty() {
            return "needed by most programs".to_owned();
        }
        let mut names: Vec<&str> = self
            .programs
            .iter()
            .map(|program| program.rsplit('/').next().unwrap_or(program))
            .take(NAMED)
            .collect();
        if self.programs.len() > NAMED {
            names.push("others");
        }
        let count = self.files.len();
        let many = if count == 1 { "" } else { "s" };
        let by =
            if names.is_empty() { String::new() } else { format!(", by {}", names.join(", ")) };
        format!("seen: {count} path{many}{by}")
    }
}

/// The number of a transport's name.
#[must_use]
pub fn transport_of(name: Option<&str>) -> u8 {
    match name {
        Some("udp") => UDP,
        Some("icmp") => ICMP,
        _ => TCP,
    }
}

//! What a command did: its connections from the trail, its files from the watch, brought together by process.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use clawbox_common::event::Operation;

use super::transport_of;
use super::watch::{Opened, Watched};
use crate::audit::record::{Object, Record};
use crate::sandbox::objects::resolved;
use crate::why::seen::Seen;

/// A connection, or datagrams.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Spoken {
    /// By whom: a script, else the program.
    pub program: String,
    /// To whom: a name, else an address.
    pub host: String,
    /// Port.
    pub port: u16,
    /// [`clawbox_common::rule::TCP`] and its like.
    pub transport: u8,
}

/// What was done with a path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Uses {
    /// Written, or opened for that.
    pub is_written: bool,
    /// It was not there before, or is not any more.
    pub is_made: bool,
    /// It is a directory that was listed.
    pub is_directory: bool,
    /// By these programs.
    pub programs: BTreeSet<String>,
}

impl Uses {
    /// What was done, as a verb.
    #[must_use]
    pub fn verb(&self) -> &'static str {
        if self.is_written { "writes" } else { "reads" }
    }

    /// By whom.
    #[must_use]
    pub fn who(&self) -> String {
        let names: Vec<&str> = self.programs.iter().map(String::as_str).take(3).collect();
        if names.is_empty() { "a program".to_owned() } else { names.join(", ") }
    }
}

/// Connections and datagrams to a Unix socket.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reached {
    /// How many.
    pub count: u64,
    /// By these programs.
    pub programs: BTreeSet<String>,
}

/// All of it.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// How often something was spoken to.
    pub spoken: BTreeMap<Spoken, u64>,
    /// Files.
    pub files: BTreeMap<PathBuf, Uses>,
    /// Ports that were listened on.
    pub listened: BTreeSet<u16>,
    /// Unix sockets that were connected or sent to, where they were found: how often, and by which programs.
    pub reached: BTreeMap<PathBuf, Reached>,
    /// Names that were asked for and not spoken to.
    pub asked: BTreeSet<String>,
    /// Whether reports are missing.
    pub lost: bool,
}

/// Who did it, as a rule names it: the script, else the program.
fn by(seen: &Seen) -> Option<&String> {
    let script = seen.script.as_ref().filter(|script| script.starts_with('/'));
    script.or(seen.program.as_ref())
}

/// What a trail tells of a run.
#[derive(Debug, Default)]
pub struct Trail {
    observed: Observed,
    /// What each process ran, in order.
    programs: HashMap<u32, Vec<String>>,
    names: HashMap<IpAddr, String>,
    spoken_names: HashSet<String>,
}

impl Trail {
    /// Takes up a line; what is no record is left out.
    pub fn line(&mut self, line: &[u8]) {
        let Ok(record) = serde_json::from_slice::<Record>(line) else { return };
        let seen = Seen::from(&record);
        match &record.object {
            Object::Question(question) => {
                for address in question.addresses.iter().chain(&question.handed_out) {
                    self.names.insert(*address, question.name.clone());
                }
                if !question.addresses.is_empty() {
                    self.observed.asked.insert(question.name.clone());
                }
            }
            Object::Program(_) => {
                if let (Some(pid), Some(program)) = (seen.pid, &seen.program) {
                    self.programs.entry(pid).or_default().push(program.clone());
                }
            }
            Object::Endpoint(to) => match seen.action.as_str() {
                "bind" if seen.is_denied() && to.port > 0 => {
                    self.observed.listened.insert(to.port);
                }
                "connect" | "send" => self.spoken(&seen, to.ip, to.port),
                _ => {}
            },
            // Of whatever kind: nobody knows what it was about.
            Object::Gap(_) => self.observed.lost = true,
            Object::File(file) if seen.action == Operation::UnixSocket.name() => {
                // Where it leads, since rules stand there; what is gone since stays as it was given.
                let path = resolved(Path::new(&file.path));
                let reached = self.observed.reached.entry(path).or_default();
                reached.count += 1;
                reached.programs.extend(by(&seen).cloned());
            }
            _ => {}
        }
    }

    fn spoken(&mut self, seen: &Seen, ip: IpAddr, port: u16) {
        // To itself, to its resolver, and how libc learns an address: no rule is for these.
        if matches!(seen.reason.as_str(), "own-listener" | "resolver" | "address-probe") {
            return;
        }
        let name = seen.host.clone().or_else(|| self.names.get(&ip).cloned());
        if let Some(name) = &name {
            self.spoken_names.insert(name.clone());
        }
        let Some(program) = by(seen) else { return };
        let spoken = Spoken {
            program: program.clone(),
            host: name.unwrap_or_else(|| ip.to_string()),
            port,
            transport: transport_of(seen.transport.as_deref()),
        };
        *self.observed.spoken.entry(spoken).or_default() += 1;
    }

    /// All that was observed, with what the watch has seen of the processes of this run.
    #[must_use]
    pub fn with(mut self, watched: Watched) -> Observed {
        for Opened { pid, path, is_ours, uses } in watched.opened {
            let ran = self.programs.get(&pid);
            if !is_ours && ran.is_none() {
                continue;
            }
            let kept = self.observed.files.entry(path).or_default();
            kept.is_written |= uses.is_written;
            kept.is_made |= uses.is_made;
            kept.is_directory |= uses.is_directory;
            kept.programs.extend(ran.into_iter().flatten().cloned());
        }
        let spoken = &self.spoken_names;
        self.observed.asked.retain(|name| !spoken.contains(name));
        self.observed.lost |= watched.lost;
        self.observed
    }
}

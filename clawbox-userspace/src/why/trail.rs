//! Reads a sandbox's own trail: its denials, the last of them, and who started whom.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::Path;

use serde::Serialize;

use super::seen::Seen;
use crate::audit::lines::Lines;
use crate::audit::record::{Object, Record};

/// A chain ends here: numbers come again.
const LONGEST: usize = 64;

/// What is kept of a trail.
#[derive(Debug, Default)]
pub struct Told {
    /// The last denial.
    pub last: Option<Seen>,
    /// Denials by what was done, by whom and why, and how often.
    pub denials: BTreeMap<(String, String, String), u64>,
    /// The last of each of these, in the order in which each was first there.
    pub each: Vec<Seen>,
    /// The policy that the last start named.
    pub policy: Option<String>,
    /// Where the last start was.
    pub workdir: Option<String>,
    places: BTreeMap<(String, String, String), usize>,
    starts: HashMap<u32, Vec<Seen>>,
}

/// A program start on the way to a process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Link {
    /// The process.
    pub pid: u32,
    /// What it was started as.
    pub path: String,
    /// With what, credentials masked.
    pub args: Vec<String>,
}

/// Where a sandbox was started, if anything was in it, of a record of its beginning: others that had its name
/// have left their records in the same trail.
#[must_use]
pub fn begun_at(record: &Record) -> Option<Option<&str>> {
    match &record.object {
        Object::Sandbox(sandbox) if matches!(&*record.action, "start" | "attach" | "resume") => {
            // By its hash alone it is nowhere.
            Some(sandbox.workdir.as_deref().filter(|workdir| workdir.starts_with('/')))
        }
        _ => None,
    }
}

impl Told {
    /// Takes up a line; what is no record is left out.
    pub fn line(&mut self, line: &[u8]) {
        let Ok(record) = serde_json::from_slice::<Record>(line) else { return };
        if let Object::Sandbox(sandbox) = &record.object {
            self.policy = Some(sandbox.policy.clone());
        }
        if let Some(workdir) = begun_at(&record) {
            self.workdir = workdir.map(str::to_owned);
        }
        let seen = Seen { workdir: self.workdir.clone(), ..Seen::from(&record) };
        if let (Object::Program(_), Some(pid)) = (&record.object, seen.pid) {
            self.starts.entry(pid).or_default().push(seen.clone());
        }
        if seen.is_denied() {
            let key = (seen.what(), seen.by().to_owned(), seen.reason.clone());
            *self.denials.entry(key.clone()).or_default() += 1;
            let place = *self.places.entry(key).or_insert(self.each.len());
            match self.each.get_mut(place) {
                Some(last) => *last = seen.clone(),
                None => self.each.push(seen.clone()),
            }
            self.last = Some(seen);
        }
    }

    /// Reads a file from a byte on.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read(path: &Path, from: u64) -> io::Result<Self> {
        let mut told = Self::default();
        for line in Lines::of(path, from)? {
            told.line(&line?);
        }
        Ok(told)
    }

    /// How the process of a denial came to be, the nearest first.
    #[must_use]
    pub fn chain(&self, of: &Seen) -> Vec<Link> {
        let (mut chain, mut next, mut before) = (Vec::new(), of.pid, of.time.clone());
        while chain.len() < LONGEST
            && let Some(started) = next.and_then(|pid| self.start(pid, &before))
        {
            chain.push(Link {
                pid: started.pid.unwrap_or_default(),
                path: started.path.clone().unwrap_or_default(),
                args: started.args.clone(),
            });
            (next, before) = (started.parent, started.time.clone());
        }
        chain
    }

    fn start(&self, pid: u32, before: &str) -> Option<&Seen> {
        // Times are all of one form, so that they sort as texts.
        self.starts.get(&pid)?.iter().rev().find(|start| start.time.as_str() <= before)
    }
}

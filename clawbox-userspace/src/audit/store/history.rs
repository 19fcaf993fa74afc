//! Who started whom: the program starts of a sandbox, by which a process is followed up to the command that
//! the sandbox was started with.

use std::collections::HashMap;

use super::read::Row;
use super::schema::{Number, Text};

/// A program start.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Started {
    /// The event's number.
    pub id: u64,
    /// When.
    pub time: String,
    /// The process.
    pub pid: u32,
    /// The process that it was started by.
    pub parent: u32,
    /// The path that exec was given.
    pub path: String,
    /// What it was started with, where that was recorded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub args: Option<serde_json::Value>,
    #[serde(skip)]
    micros: i64,
}

/// The program starts of one sandbox.
#[derive(Default)]
pub struct History {
    by_process: HashMap<u32, Vec<Started>>,
}

/// A chain ends here: numbers come again.
const LONGEST: usize = 64;

impl History {
    /// Takes up a row, if it is a program start.
    pub fn add(&mut self, row: Row<'_>) {
        let (Some(pid), Some(parent), Some(path)) =
            (row.number(Number::Pid), row.number(Number::Parent), row.text(Text::Path))
        else {
            return;
        };
        let args = row.text(Text::Args).and_then(|args| serde_json::from_str(args).ok());
        let micros = row.micros();
        let time = super::event::time_text(micros);
        let (id, path) = (row.id(), path.to_owned());
        self.by_process.entry(pid).or_default().push(Started {
            id,
            time,
            pid,
            parent,
            path,
            args,
            micros,
        });
    }

    /// How a process came to be at a time, the nearest first: what it executed, then its parent and so on. A
    /// process that has executed nothing itself is its parent's doing, which is not recorded.
    #[must_use]
    pub fn chain(&self, pid: u32, micros: i64) -> Vec<&Started> {
        let (mut chain, mut next, mut before) = (Vec::new(), pid, micros);
        while chain.len() < LONGEST
            && let Some(started) = self.last(next, before)
        {
            chain.push(started);
            (next, before) = (started.parent, started.micros);
        }
        chain
    }

    fn last(&self, pid: u32, before: i64) -> Option<&Started> {
        let all = self.by_process.get(&pid)?;
        all.iter().filter(|started| started.micros <= before).max_by_key(|s| (s.micros, s.id))
    }
}

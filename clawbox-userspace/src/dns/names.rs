//! Numbers for names, so that a kernel event can say which name an address was handed out for.
//! A number is never given to a second name; names nobody uses are forgotten, oldest first.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use clawbox_common::limits::SYNTHETICS_PER_SANDBOX;

use super::lock;

/// Names remembered at one time, in use or not. Each name in use has an address of its own, so
/// all names in use always fit.
const REMEMBERED: usize = SYNTHETICS_PER_SANDBOX as usize;

/// The names of one sandbox that have been answered with addresses.
#[derive(Debug, Default)]
pub struct NameTable {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    by_number: HashMap<u32, Named>,
    numbers: HashMap<Arc<str>, u32>,
    /// Names without a user, in the order in which they lost it.
    idle: BTreeMap<u64, u32>,
    last_number: u32,
    clock: u64,
    /// Where each new name is written down, for who takes the sandbox over.
    kept: Kept,
}

#[derive(Debug, Default)]
enum Kept {
    #[default]
    Nowhere,
    /// In a file that is yet to be made.
    At(PathBuf),
    In(File),
}

#[derive(Debug)]
struct Named {
    name: Arc<str>,
    users: usize,
    idle_since: Option<u64>,
}

impl NameTable {
    /// The name behind a number, while it is remembered.
    #[must_use]
    pub fn name_of(&self, number: u32) -> Option<Arc<str>> {
        let state = lock(&self.state);
        state.by_number.get(&number).map(|n| Arc::clone(&n.name))
    }

    /// Writes down every name that gets a number, a line each. What the page cache has is enough: after a
    /// loss of power there is no sandbox to serve.
    pub fn keep_in(&self, file: File) {
        lock(&self.state).kept = Kept::In(file);
    }

    /// The same in a file that is made for the first name: few sandboxes that only run a command have one.
    pub fn keep_at(&self, path: PathBuf) {
        lock(&self.state).kept = Kept::At(path);
    }

    /// Takes up what [`NameTable::keep_in`] wrote: names keep their numbers, which the kernel's tables and
    /// sockets have.
    pub fn restore(&self, text: &str) {
        let state = &mut *lock(&self.state);
        for line in text.lines() {
            let Some((number, name)) = line.split_once(' ') else { continue };
            let Ok(number) = number.parse::<u32>() else { continue };
            let name: Arc<str> = name.into();
            state.last_number = state.last_number.max(number);
            state.clock += 1;
            let idle_since = Some(state.clock);
            state.idle.insert(state.clock, number);
            state.numbers.insert(Arc::clone(&name), number);
            state.by_number.insert(number, Named { name, users: 0, idle_since });
        }
        state.forget_idle();
    }

    /// Counts one more user of a name and returns its number; zero once numbers have run out.
    pub(super) fn hold(&self, name: &str) -> u32 {
        let state = &mut *lock(&self.state);
        if let Some(&number) = state.numbers.get(name)
            && let Some(named) = state.by_number.get_mut(&number)
        {
            named.users += 1;
            if let Some(since) = named.idle_since.take() {
                state.idle.remove(&since);
            }
            return number;
        }
        let Some(number) = state.last_number.checked_add(1) else {
            return 0;
        };
        state.last_number = number;
        if let Err(error) = state.kept.write(&format!("{number} {name}\n")) {
            tracing::warn!("names will not be known after a restart of the daemon: {error}");
            state.kept = Kept::Nowhere;
        }
        let name: Arc<str> = name.into();
        state.numbers.insert(Arc::clone(&name), number);
        state.by_number.insert(number, Named { name, users: 1, idle_since: None });
        state.forget_idle();
        number
    }

    /// Counts one user less.
    pub(super) fn release(&self, number: u32) {
        let state = &mut *lock(&self.state);
        let Some(named) = state.by_number.get_mut(&number) else {
            return;
        };
        named.users = named.users.saturating_sub(1);
        if named.users == 0 && named.idle_since.is_none() {
            state.clock += 1;
            named.idle_since = Some(state.clock);
            state.idle.insert(state.clock, number);
            state.forget_idle();
        }
    }
}

impl Kept {
    fn write(&mut self, line: &str) -> io::Result<()> {
        if let Self::At(path) = self {
            *self = Self::In(File::create_new(path)?);
        }
        match self {
            Self::In(file) => file.write_all(line.as_bytes()),
            Self::At(_) | Self::Nowhere => Ok(()),
        }
    }
}

impl State {
    fn forget_idle(&mut self) {
        while self.by_number.len() > REMEMBERED {
            let Some((_, number)) = self.idle.pop_first() else {
                return;
            };
            if let Some(named) = self.by_number.remove(&number) {
                self.numbers.remove(&named.name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_keeps_its_number_while_it_is_remembered() {
        let table = NameTable::default();
        let number = table.hold("a.test");
        table.release(number);
        assert_eq!(table.hold("a.test"), number);
        assert_ne!(table.hold("b.test"), number);
        assert_eq!(table.name_of(number).as_deref(), Some("a.test"));
        assert_eq!(table.name_of(0), None);
    }

    #[test]
    fn names_that_were_written_down_keep_their_numbers_in_another_table() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let table = NameTable::default();
        table.keep_in(file.reopen().unwrap());
        let (one, other) = (table.hold("a.test"), table.hold("b.test"));
        let next = NameTable::default();
        next.restore(&std::fs::read_to_string(file.path()).unwrap());
        assert_eq!(next.name_of(one).as_deref(), Some("a.test"));
        assert_eq!(next.hold("b.test"), other);
        assert!(next.hold("c.test") > other);
        next.restore("x y\n7\n\n");
    }

    #[test]
    fn names_are_written_down_in_a_file_that_the_first_one_makes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("names");
        let table = NameTable::default();
        table.keep_at(path.clone());
        assert!(!path.exists());
        let number = table.hold("a.test");
        table.hold("b.test");
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with(&format!("{number} a.test\n")) && text.contains("b.test"));
    }

    #[test]
    fn names_without_users_are_forgotten_oldest_first_and_numbers_are_not_reused() {
        let table = NameTable::default();
        let kept = table.hold("kept.test");
        let first = table.hold("first.test");
        table.release(first);
        for i in 0..REMEMBERED {
            let number = table.hold(&format!("n{i}.test"));
            table.release(number);
        }
        assert_eq!(table.name_of(kept).as_deref(), Some("kept.test"));
        assert_eq!(table.name_of(first), None);
        assert!(table.hold("first.test") > REMEMBERED as u32);
        let state = lock(&table.state);
        assert_eq!(state.by_number.len(), REMEMBERED);
        assert_eq!(state.numbers.len(), REMEMBERED);
    }
}

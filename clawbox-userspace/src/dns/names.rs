//! Numbers for names, so that a kernel event can say which name an address was handed out for.
//! A number is never given to a second name; names nobody uses are forgotten, oldest first.

use std::collections::{BTreeMap, HashMap};
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

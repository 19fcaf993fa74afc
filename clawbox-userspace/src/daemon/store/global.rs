//! The host's own policy in the store: its revisions, and whether one is in force.

use rusqlite::{OptionalExtension as _, Transaction, params};

use super::{Revision, Store, StoreError, digest, now, pruned, signed};
use crate::sandbox::control::Text;

/// Whose revisions those of the host's own policy are: no sandbox is called so, and it never starts.
const GLOBAL: (&str, u64) = ("", 0);

impl Store {
    /// The host's own policy, if one is in force.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn global(&self) -> Result<Option<(u32, Vec<Text>)>, StoreError> {
        let found: rusqlite::Result<u32> =
            self.connection.query_row("SELECT revision FROM global", [], |row| row.get(0));
        let revision = match found.optional() {
            Ok(Some(revision)) => revision,
            Ok(None) => return Ok(None),
            Err(source) => return Err(self.failed(source)),
        };
        let found = self.global_revisions()?.into_iter().find(|found| found.revision == revision);
        // Without it every sandbox would have its own again.
        let missing = || self.failed(rusqlite::Error::QueryReturnedNoRows);
        found.map(|found| Some((revision, found.texts))).ok_or_else(missing)
    }

    /// Writes down that the host has this policy, and gives its number.
    ///
    /// # Errors
    /// The disk does not take it.
    pub fn set_global(&mut self, texts: &[Text], author: u32) -> Result<u32, StoreError> {
        self.check()?;
        self.wait_for_disk(true)?;
        let (id, started) = GLOBAL;
        let (digest, files) = (digest(texts), serde_json::to_string(texts).unwrap_or_default());
        let write = |transaction: Transaction<'_>| {
            let revision: u32 = transaction.query_row(
                "SELECT coalesce(max(revision), 0) + 1 FROM revisions \
                 WHERE sandbox = ?1 AND started = ?2",
                params![id, signed(started)],
                |row| row.get(0),
            )?;
            transaction.execute(
                "INSERT INTO revisions (sandbox, started, revision, author, time, digest, texts) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                params![id, signed(started), revision, author, now(), digest, files],
            )?;
            transaction.execute("INSERT OR REPLACE INTO global VALUES (0, ?1)", [revision])?;
            pruned::of_one(&transaction, id, signed(started), revision)?;
            transaction.commit()?;
            Ok(revision)
        };
        let written = self.connection.transaction().and_then(write);
        self.taken(written)
    }

    /// Writes down that every sandbox has its own policy.
    ///
    /// # Errors
    /// The disk does not take it.
    pub fn end_global(&mut self) -> Result<(), StoreError> {
        self.check()?;
        self.wait_for_disk(true)?;
        let written = self.connection.execute("DELETE FROM global", []);
        self.taken(written.map(drop))
    }

    /// The policies that the host had, the first one first.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn global_revisions(&self) -> Result<Vec<Revision>, StoreError> {
        let (id, started) = GLOBAL;
        self.revisions(id, started)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_policy_has_revisions_of_its_own_and_is_there_until_it_is_ended() {
        let directory = tempfile::tempdir().unwrap();
        let mut store = Store::open(directory.path(), false).unwrap();
        assert!(store.global().unwrap().is_none());
        let text = |text: &str| vec![Text { name: "g".to_owned(), text: text.to_owned() }];
        assert_eq!(store.set_global(&text("one"), 7).unwrap(), 1);
        assert_eq!(store.set_global(&text("two"), 8).unwrap(), 2);
        drop(store);
        let mut store = Store::open(directory.path(), false).unwrap();
        assert_eq!(store.global().unwrap(), Some((2, text("two"))));
        store.end_global().unwrap();
        assert!(store.global().unwrap().is_none());
        // Never the number of an earlier one.
        assert_eq!(store.set_global(&text("one"), 7).unwrap(), 3);
        let authors = store.global_revisions().unwrap().into_iter().map(|found| found.author);
        assert_eq!(authors.collect::<Vec<_>>(), [7, 8, 7]);
        assert!(store.last_started("").unwrap().is_empty());
    }
}

//! What outlives the daemon: its sandboxes and the revisions of their policies, in one SQLite file that
//! survives a kill and a loss of power at any moment.

mod file;
mod global;
mod owned;
mod pruned;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rusqlite::{Connection, ToSql, Transaction, params};
use sha2::{Digest as _, Sha256};

use crate::sandbox::control::Text;
use crate::sandbox::lasting::Lasting;
use file::{FILE, VERSION, connect, make};

/// Why the store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The directory.
    #[error("cannot make `{}`: {source}", path.display())]
    Directory {
        /// Which.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// The file.
    #[error(
        "the state in `{}` cannot be used: {source}; what runs stays enforced, and nobody serves it. If the \
         disk is full or read-only, mend that; if the file is damaged, put a copy back, or end what runs \
         with `clawbox uninstall` and move the file and those beside it away; then start the daemon again",
        path.display()
    )]
    File {
        /// Which.
        path: PathBuf,
        /// Cause.
        source: rusqlite::Error,
    },
    /// Something was not written.
    #[error("the state in `{}` cannot be written: {source}; look at its disk", path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// Cause.
        source: rusqlite::Error,
    },
    /// Somebody has emptied the file.
    #[error(
        "the state in `{}` is empty, and sandboxes run that were written down there; they stay enforced, and \
         nobody serves them. Put the file back and start the daemon again, or end them: `clawbox uninstall`",
        path.display()
    )]
    Emptied {
        /// Which.
        path: PathBuf,
    },
    /// A later version's.
    #[error("the state in `{}` is of a later version of clawbox; go back to that", path.display())]
    Later {
        /// Which.
        path: PathBuf,
    },
}

/// A sandbox, as it was written down.
#[derive(Debug)]
pub struct Kept {
    /// NAME-NUMBER.
    pub id: String,
    /// Its number in the kernel's tables.
    pub number: u32,
    /// The user who started it.
    pub owner: u32,
    /// Where its trail is.
    pub trail: String,
    /// Which of its policies is in force.
    pub revision: u32,
    /// The rest.
    pub state: Lasting,
}

/// A policy that a sandbox had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revision {
    /// Which, from 1.
    pub revision: u32,
    /// The user who set it.
    pub author: u32,
    /// When, in seconds since the epoch.
    pub time: u64,
    /// Of its files.
    pub digest: String,
    /// Its files.
    pub texts: Vec<Text>,
}

/// The store.
pub struct Store {
    connection: Connection,
    path: PathBuf,
    /// Nothing can be written: what is connected to is a copy.
    is_copy: bool,
    /// The last write was not taken.
    is_failing: bool,
    waits: Option<bool>,
    /// Writes that are in the log alone.
    logged: u32,
}

/// Writes from which on they are moved out of the log while nobody waits.
const MOVED: u32 = 64;

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| signed(since.as_secs()))
}

/// SQLite's integers have a sign.
fn signed(seconds: u64) -> i64 {
    i64::try_from(seconds).unwrap_or(i64::MAX)
}

/// Tells one policy from another: of the names and contents of its files, in order.
#[must_use]
pub fn digest(texts: &[Text]) -> String {
    let mut hash = Sha256::new();
    for text in texts {
        for part in [&text.name, &text.text] {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
    }
    format!("{:x}", hash.finalize())
}

fn put(transaction: &Transaction<'_>, kept: &Kept, author: u32) -> rusqlite::Result<()> {
    let state = serde_json::to_string(&kept.state).unwrap_or_default();
    let texts = serde_json::to_string(&kept.state.texts).unwrap_or_default();
    let digest = digest(&kept.state.texts);
    let (id, started) = (&kept.id, signed(kept.state.since));
    let run = |sql: &str, values: &[&dyn ToSql]| {
        transaction.prepare_cached(sql)?.execute(values).map(drop)
    };
    run(
        "INSERT OR REPLACE INTO sandboxes (id, number, owner, trail, revision, state) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        &[&id, &kept.number, &kept.owner, &kept.trail, &kept.revision, &state],
    )?;
    // Behind all others where it is another one.
    run(
        "DELETE FROM trails WHERE sandbox = ?1 AND (owner != ?2 OR started != ?3)",
        &[&id, &kept.owner, &started],
    )?;
    run(
        "INSERT OR IGNORE INTO trails (sandbox, owner, started) VALUES (?1, ?2, ?3)",
        &[&id, &kept.owner, &started],
    )?;
    // Of another one of this number, in the same second by a clock that may have been set back: what is
    // written down now comes after all others.
    run(
        "DELETE FROM revisions WHERE sandbox = ?1 AND started = ?2 \
         AND (revision > ?3 OR revision = ?3 AND digest != ?4)",
        &[&id, &started, &kept.revision, &digest],
    )?;
    run(
        "INSERT OR IGNORE INTO revisions \
         (sandbox, started, revision, author, time, digest, texts) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        &[&id, &started, &kept.revision, &author, &now(), &digest, &texts],
    )?;
    pruned::of_one(transaction, id, started, kept.revision)
}

impl Store {
    /// Opens the store in a directory, which is made where it is not there. One that can be read and not
    /// written is used as it is. `is_awaited` says that sandboxes run which must be in it.
    ///
    /// # Errors
    /// It cannot be used.
    pub fn open(directory: &Path, is_awaited: bool) -> Result<Self, StoreError> {
        make(directory)
            .map_err(|source| StoreError::Directory { path: directory.to_owned(), source })?;
        let path = directory.join(FILE);
        // SQLite would take it for a new one.
        if is_awaited && fs::metadata(&path).is_ok_and(|found| found.len() == 0) {
            return Err(StoreError::Emptied { path });
        }
        let (connection, is_copy) = connect(&path)?;
        if !is_copy && let Err(error) = pruned::ended(&connection, now()) {
            tracing::warn!("policies of long ago stay in `{}`: {error}", path.display());
        }
        if is_copy {
            let path = path.display();
            tracing::error!(
                "the state in `{path}` cannot be written: what runs is served, and nothing is begun or \
                 changed until it can; look at its disk"
            );
        }
        Ok(Self { connection, path, is_copy, is_failing: is_copy, waits: None, logged: 0 })
    }

    fn failed(&self, source: rusqlite::Error) -> StoreError {
        StoreError::File { path: self.path.clone(), source }
    }

    /// Whether the last write was not taken.
    #[must_use]
    pub fn is_failing(&self) -> bool {
        self.is_failing
    }

    /// Whether the disk takes anything, which is tried only where it did not the last time.
    ///
    /// # Errors
    /// It does not.
    pub fn check(&mut self) -> Result<(), StoreError> {
        if !self.is_failing {
            return Ok(());
        }
        if self.is_copy {
            (self.connection, self.is_copy) = connect(&self.path)?;
            self.waits = None;
        }
        let written = self.connection.pragma_update(None, "user_version", VERSION);
        self.taken(written)?;
        self.is_failing = false;
        tracing::info!("the state can be written again");
        Ok(())
    }

    /// Whether what is written next is on the disk once it is written.
    fn wait_for_disk(&mut self, waits: bool) -> Result<(), StoreError> {
        if self.waits == Some(waits) {
            return Ok(());
        }
        let level = if waits { "FULL" } else { "NORMAL" };
        let set = self.connection.pragma_update(None, "synchronous", level);
        self.taken(set)?;
        self.waits = Some(waits);
        Ok(())
    }

    /// Moves what was written out of the log, which takes the disk some milliseconds: where SQLite did so by
    /// itself, whoever made the write that was one too many would wait for it.
    pub fn rest(&mut self) {
        if self.logged < MOVED || self.is_copy {
            return;
        }
        self.logged = 0;
        let moved = self.connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()));
        if let Err(error) = moved {
            tracing::debug!("the state's log stays as long as it is: {error}");
        }
    }

    /// Says of a write that it was not taken.
    fn taken<T>(&mut self, written: rusqlite::Result<T>) -> Result<T, StoreError> {
        written.map_err(|source| {
            self.is_failing = true;
            StoreError::Write { path: self.path.clone(), source }
        })
    }

    /// Writes a sandbox down, with the policy that is in force and who set it.
    ///
    /// # Errors
    /// The disk does not take it.
    pub fn put(&mut self, kept: &Kept, author: u32) -> Result<(), StoreError> {
        // A policy that was answered as changed is on the disk. That a sandbox runs has to outlive this
        // process alone: it ends with the power itself, and who starts one need not wait for the disk.
        self.wait_for_disk(kept.revision > 1)?;
        let transaction = self.connection.transaction();
        let written = transaction.and_then(|transaction| {
            put(&transaction, kept, author)?;
            transaction.commit()
        });
        self.logged += 1;
        self.taken(written)
    }

    /// Forgets a sandbox that has ended; what its policies were stays.
    ///
    /// # Errors
    /// The disk does not take it.
    pub fn remove(&mut self, id: &str) -> Result<(), StoreError> {
        self.wait_for_disk(false)?;
        let removed = self
            .connection
            .prepare_cached("DELETE FROM sandboxes WHERE id = ?1")
            .and_then(|mut remove| remove.execute([id]));
        self.taken(removed.map(drop))
    }

    /// The sandboxes that were running.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn sandboxes(&self) -> Result<Vec<Kept>, StoreError> {
        let read = || -> rusqlite::Result<Vec<Kept>> {
            let mut query = self
                .connection
                .prepare("SELECT id, number, owner, trail, revision, state FROM sandboxes")?;
            let rows = query.query_map([], |row| {
                let state: String = row.get(5)?;
                let state = serde_json::from_str(&state).map_err(|error| {
                    rusqlite::Error::FromSqlConversionFailure(
                        5,
                        rusqlite::types::Type::Text,
                        Box::new(error),
                    )
                })?;
                Ok(Kept {
                    id: row.get(0)?,
                    number: row.get(1)?,
                    owner: row.get(2)?,
                    trail: row.get(3)?,
                    revision: row.get(4)?,
                    state,
                })
            })?;
            rows.collect()
        };
        read().map_err(|source| self.failed(source))
    }

    /// The sandboxes of a name, or the one of a NAME-NUMBER, that were started last, the latest first, each
    /// with the user who started it.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn last_started(&self, name: &str) -> Result<Vec<(String, u32)>, StoreError> {
        let read = || -> rusqlite::Result<Vec<(String, u32)>> {
            // Unless a version that keeps no such list has started another one since. In the order in which
            // they were written down: the clock may have been set back in between.
            let mut query = self.connection.prepare(
                "SELECT sandbox, owner FROM trails AS own \
                 WHERE (sandbox = ?1 OR (substr(sandbox, 1, length(?1) + 1) = ?1 || '-' \
                 AND substr(sandbox, length(?1) + 2) NOT GLOB '*[^0-9]*')) \
                 AND started = (SELECT started FROM revisions WHERE sandbox = own.sandbox \
                 ORDER BY rowid DESC LIMIT 1) ORDER BY rowid DESC",
            )?;
            query.query_map([name], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
        };
        read().map_err(|source| self.failed(source))
    }

    /// The policies that a sandbox had since its start, the first one first.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn revisions(&self, id: &str, started: u64) -> Result<Vec<Revision>, StoreError> {
        let read = || -> rusqlite::Result<Vec<Revision>> {
            let mut query = self.connection.prepare(
                "SELECT revision, author, time, digest, texts FROM revisions \
                 WHERE sandbox = ?1 AND started = ?2 ORDER BY revision",
            )?;
            let rows = query.query_map(params![id, signed(started)], |row| {
                let texts: String = row.get(4)?;
                Ok(Revision {
                    revision: row.get(0)?,
                    author: row.get(1)?,
                    time: row.get::<_, i64>(2)?.unsigned_abs(),
                    digest: row.get(3)?,
                    texts: serde_json::from_str(&texts).unwrap_or_default(),
                })
            })?;
            rows.collect()
        };
        read().map_err(|source| self.failed(source))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::audit::AuditLevel;
    use crate::sandbox::ceiling::Ceiling;
    use crate::sandbox::change::Settled;

    pub fn kept(id: &str, revision: u32, text: &str) -> Kept {
        let texts = vec![Text { name: "p.yaml".to_owned(), text: text.to_owned() }];
        let settled = Settled {
            mode: None,
            audit: AuditLevel::Summary,
            accounts: [None, None],
            workdir: "/w".into(),
            always_writable: Vec::new(),
            ever_writable: Vec::new(),
            most_rules: None,
            is_attached: false,
        };
        let state = Lasting {
            name: "a".to_owned(),
            process: 7,
            attached: None,
            born: 8,
            since: 9,
            command: vec!["a".to_owned()],
            texts,
            global: None,
            approved: String::new(),
            generation: 3,
            slots: vec!["/usr/bin/a".to_owned()],
            ports: [53, 54],
            dns: Vec::new(),
            patience_ms: 60_000,
            settled,
            ceiling: Ceiling::default(),
            backstops: None,
        };
        Kept { id: id.to_owned(), number: 1, owner: 1000, trail: "/t".to_owned(), revision, state }
    }

    #[test]
    fn what_is_in_the_log_is_moved_while_nobody_waits_and_the_log_does_not_grow() {
        let directory = tempfile::tempdir().unwrap();
        let mut store = Store::open(directory.path(), false).unwrap();
        let log = directory.path().join(format!("{FILE}-wal"));
        let mut write = |from: u32| {
            for revision in from..from + 2 * MOVED {
                store.put(&kept("a-1", revision, &revision.to_string()), 0).unwrap();
            }
            store.rest();
            fs::metadata(&log).unwrap().len()
        };
        let first = write(1);
        assert_eq!(write(1 + 2 * MOVED), first);
    }

    #[test]
    fn what_was_put_is_there_after_the_store_was_opened_again() {
        let directory = tempfile::tempdir().unwrap();
        let mut store = Store::open(directory.path(), true).unwrap();
        store.put(&kept("a-1", 1, "one"), 1000).unwrap();
        store.put(&kept("a-1", 2, "two"), 0).unwrap();
        store.put(&kept("b-2", 1, "one"), 1000).unwrap();
        store.remove("b-2").unwrap();
        // Not closed: as after a kill.
        let killed = tempfile::tempdir().unwrap();
        for entry in fs::read_dir(directory.path()).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), killed.path().join(entry.file_name())).unwrap();
        }
        let mut store = Store::open(killed.path(), true).unwrap();
        let all = store.sandboxes().unwrap();
        assert_eq!(all.len(), 1);
        assert_eq!((all[0].id.as_str(), all[0].revision, all[0].state.generation), ("a-1", 2, 3));
        let revisions = store.revisions("a-1", 9).unwrap();
        let told: Vec<(u32, u32, &str)> = revisions
            .iter()
            .map(|found| (found.revision, found.author, found.texts[0].text.as_str()))
            .collect();
        assert_eq!(told, [(1, 1000, "one"), (2, 0, "two")]);
        assert_ne!(revisions[0].digest, revisions[1].digest);
        assert!(store.revisions("a-1", 8).unwrap().is_empty());
        // Of a sandbox that has ended, its policies stay.
        assert_eq!(store.revisions("b-2", 9).unwrap().len(), 1);
        let last = |store: &Store, name: &str| store.last_started(name).unwrap();
        assert_eq!(
            [last(&store, "a"), last(&store, "a-1")],
            [[("a-1".to_owned(), 1000)], [("a-1".to_owned(), 1000)]]
        );
        assert_eq!(last(&store, "b"), [("b-2".to_owned(), 1000)]);
        // Another one's of the same number, in the same second.
        store.put(&Kept { owner: 4711, ..kept("b-2", 1, "one") }, 4711).unwrap();
        assert_eq!(last(&store, "b"), [("b-2".to_owned(), 4711)]);
        assert!(last(&store, "*").is_empty() && last(&store, "a-").is_empty());
    }

    #[test]
    fn a_damaged_or_later_store_is_refused_and_says_so() {
        let directory = tempfile::tempdir().unwrap();
        let text = b"not a database, but long enough to be looked at....";
        fs::write(directory.path().join(FILE), text).unwrap();
        let error = Store::open(directory.path(), true).err().unwrap().to_string();
        assert!(error.contains("stays enforced") && error.contains(FILE), "{error}");
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path(), true).unwrap();
        store.connection.pragma_update(None, "user_version", VERSION + 1).unwrap();
        drop(store);
        assert!(matches!(Store::open(directory.path(), true), Err(StoreError::Later { .. })));
    }

    /// Of a sandbox that was started at this second by the clock.
    fn at(second: u64, owner: u32, kept: Kept) -> Kept {
        let state = Lasting { since: second, ..kept.state };
        Kept { owner, state, ..kept }
    }

    #[test]
    fn a_clock_that_is_set_back_mixes_no_policies_up_and_hides_no_sandbox() {
        let directory = tempfile::tempdir().unwrap();
        let mut store = Store::open(directory.path(), false).unwrap();
        for (revision, text) in [(1, "one"), (2, "two"), (3, "three")] {
            store.put(&at(2000, 1000, kept("a-1", revision, text)), 1000).unwrap();
        }
        // A later one of the same number, at an earlier second, and then at the very same one.
        for second in [1000, 2000] {
            store.put(&at(second, 4711, kept("a-1", 1, "other")), 4711).unwrap();
            let revisions = store.revisions("a-1", second).unwrap();
            let told: Vec<&str> =
                revisions.iter().map(|found| found.texts[0].text.as_str()).collect();
            assert_eq!(told, ["other"]);
            assert_eq!(store.last_started("a").unwrap(), [("a-1".to_owned(), 4711)]);
        }
        store.put(&at(1500, 0, kept("a-2", 1, "one")), 0).unwrap();
        let last = store.last_started("a").unwrap();
        assert_eq!(last, [("a-2".to_owned(), 0), ("a-1".to_owned(), 4711)]);
        // Writing it down once more does not make it a later one, nor another author's.
        store.put(&at(2000, 4711, kept("a-1", 1, "other")), 0).unwrap();
        assert_eq!(store.last_started("a").unwrap(), last);
        assert_eq!(store.revisions("a-1", 2000).unwrap()[0].author, 4711);
    }

    #[test]
    fn an_emptied_store_is_none_where_sandboxes_run() {
        let directory = tempfile::tempdir().unwrap();
        drop(Store::open(directory.path(), false).unwrap());
        fs::write(directory.path().join(FILE), "").unwrap();
        let error = Store::open(directory.path(), true).err().unwrap().to_string();
        assert!(error.contains("is empty") && error.contains("stay enforced"), "{error}");
        assert_eq!(fs::metadata(directory.path().join(FILE)).unwrap().len(), 0);
        assert!(Store::open(directory.path(), false).is_ok());
    }
}

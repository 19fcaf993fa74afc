//! What outlives the daemon: its sandboxes and every revision of their policies, in one SQLite file that
//! survives a kill and a loss of power at any moment.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rusqlite::{Connection, params};
use sha2::{Digest as _, Sha256};

use crate::sandbox::control::Text;
use crate::sandbox::lasting::Lasting;

/// The file's name in the state directory.
const FILE: &str = "clawbox.sqlite";

/// What the tables look like; a file of a later number is not touched.
const VERSION: i64 = 1;

const TABLES: &str = "
CREATE TABLE IF NOT EXISTS sandboxes (
    id TEXT PRIMARY KEY,
    number INTEGER NOT NULL,
    owner INTEGER NOT NULL,
    trail TEXT NOT NULL,
    revision INTEGER NOT NULL,
    state TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS revisions (
    sandbox TEXT NOT NULL,
    started INTEGER NOT NULL,
    revision INTEGER NOT NULL,
    author INTEGER NOT NULL,
    time INTEGER NOT NULL,
    digest TEXT NOT NULL,
    texts TEXT NOT NULL,
    PRIMARY KEY (sandbox, started, revision)
);
CREATE TABLE IF NOT EXISTS trails (
    sandbox TEXT PRIMARY KEY,
    owner INTEGER NOT NULL,
    started INTEGER NOT NULL
);";

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
        "the state in `{}` cannot be used: {source}; what runs stays enforced. If the file is damaged, \
         move it away: sandboxes that run are then no longer known, `clawbox uninstall` ends them",
        path.display()
    )]
    File {
        /// Which.
        path: PathBuf,
        /// Cause.
        source: rusqlite::Error,
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
}

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

impl Store {
    /// Opens the store in a directory, which is made where it is not there.
    ///
    /// # Errors
    /// It cannot be used.
    pub fn open(directory: &Path) -> Result<Self, StoreError> {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
        made.and_then(|()| fs::set_permissions(directory, fs::Permissions::from_mode(0o700)))
            .map_err(|source| StoreError::Directory { path: directory.to_owned(), source })?;
        let path = directory.join(FILE);
        let failed = |source| StoreError::File { path: path.clone(), source };
        let connection = Connection::open(&path).map_err(failed)?;
        connection.pragma_update(None, "journal_mode", "WAL").map_err(failed)?;
        connection.pragma_update(None, "synchronous", "NORMAL").map_err(failed)?;
        let check: String =
            connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)).map_err(failed)?;
        if check != "ok" {
            return Err(failed(rusqlite::Error::InvalidColumnName(check)));
        }
        let version: i64 =
            connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(failed)?;
        if version > VERSION {
            return Err(StoreError::Later { path });
        }
        connection.execute_batch(TABLES).map_err(failed)?;
        connection.pragma_update(None, "user_version", VERSION).map_err(failed)?;
        Ok(Self { connection, path })
    }

    fn failed(&self, source: rusqlite::Error) -> StoreError {
        StoreError::File { path: self.path.clone(), source }
    }

    /// Writes a sandbox down, with the policy that is in force and who set it.
    ///
    /// # Errors
    /// The disk does not take it.
    pub fn put(&mut self, kept: &Kept, author: u32) -> Result<(), StoreError> {
        let state = serde_json::to_string(&kept.state).unwrap_or_default();
        let texts = serde_json::to_string(&kept.state.texts).unwrap_or_default();
        let digest = digest(&kept.state.texts);
        // A policy that was answered as changed is on the disk. That a sandbox runs has to outlive this
        // process alone: it ends with the power itself, and who starts one need not wait for the disk.
        let level = if kept.revision > 1 { "FULL" } else { "NORMAL" };
        let waits = self.connection.pragma_update(None, "synchronous", level);
        waits.map_err(|source| self.failed(source))?;
        let transaction = self.connection.transaction();
        let written = transaction.and_then(|transaction| {
            transaction.execute(
                "INSERT OR REPLACE INTO sandboxes (id, number, owner, trail, revision, state) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                params![kept.id, kept.number, kept.owner, kept.trail, kept.revision, state],
            )?;
            transaction.execute(
                "INSERT OR REPLACE INTO trails (sandbox, owner, started) VALUES (?1, ?2, ?3)",
                params![kept.id, kept.owner, signed(kept.state.since)],
            )?;
            transaction.execute(
                "INSERT OR IGNORE INTO revisions \
                 (sandbox, started, revision, author, time, digest, texts) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                params![
                    kept.id,
                    signed(kept.state.since),
                    kept.revision,
                    author,
                    now(),
                    digest,
                    texts
                ],
            )?;
            transaction.commit()
        });
        written.map_err(|source| self.failed(source))
    }

    /// Forgets a sandbox that has ended; what its policies were stays.
    ///
    /// # Errors
    /// The disk does not take it.
    pub fn remove(&mut self, id: &str) -> Result<(), StoreError> {
        let waits = self.connection.pragma_update(None, "synchronous", "NORMAL");
        waits.map_err(|source| self.failed(source))?;
        let removed = self.connection.execute("DELETE FROM sandboxes WHERE id = ?1", [id]);
        removed.map(drop).map_err(|source| self.failed(source))
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
            // Unless a version that keeps no such list has started another one since.
            let mut query = self.connection.prepare(
                "SELECT sandbox, owner FROM trails AS own \
                 WHERE (sandbox = ?1 OR (substr(sandbox, 1, length(?1) + 1) = ?1 || '-' \
                 AND substr(sandbox, length(?1) + 2) NOT GLOB '*[^0-9]*')) \
                 AND started = (SELECT max(started) FROM revisions WHERE sandbox = own.sandbox) \
                 ORDER BY started DESC",
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
mod tests {
    use super::*;
    use crate::audit::AuditLevel;
    use crate::sandbox::ceiling::Ceiling;
    use crate::sandbox::change::Settled;

    fn kept(id: &str, revision: u32, text: &str) -> Kept {
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
    fn what_was_put_is_there_after_the_store_was_opened_again() {
        let directory = tempfile::tempdir().unwrap();
        let mut store = Store::open(directory.path()).unwrap();
        store.put(&kept("a-1", 1, "one"), 1000).unwrap();
        store.put(&kept("a-1", 2, "two"), 0).unwrap();
        store.put(&kept("b-2", 1, "one"), 1000).unwrap();
        store.remove("b-2").unwrap();
        // Not closed: as after a kill.
        std::mem::forget(store);
        let mut store = Store::open(directory.path()).unwrap();
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
        fs::write(
            directory.path().join(FILE),
            b"not a database, but long enough to be looked at....",
        )
        .unwrap();
        let error = Store::open(directory.path()).err().unwrap().to_string();
        assert!(error.contains("stays enforced") && error.contains(FILE), "{error}");
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        store.connection.pragma_update(None, "user_version", VERSION + 1).unwrap();
        drop(store);
        assert!(matches!(Store::open(directory.path()), Err(StoreError::Later { .. })));
    }
}

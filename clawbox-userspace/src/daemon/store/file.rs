//! The store's file: how it is made, opened, and read where it cannot be written.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

use rusqlite::{Connection, ErrorCode};

use super::StoreError;
use crate::sandbox::run_lock;

/// The file's name in the state directory.
pub(super) const FILE: &str = "clawbox.sqlite";

/// What the tables look like; a file of a later number is not touched.
pub(super) const VERSION: i64 = 2;

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
);
CREATE TABLE IF NOT EXISTS global (
    only INTEGER PRIMARY KEY CHECK (only = 0),
    revision INTEGER NOT NULL
);";

/// The directory, for root alone. Nothing is written where all is as it should be.
pub(super) fn make(directory: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    if fs::metadata(directory)?.permissions().mode() & 0o777 == 0o700 {
        return Ok(());
    }
    fs::set_permissions(directory, fs::Permissions::from_mode(0o700))
}

/// Pages of 4 KiB.
const PAGES_OF_LOG: u32 = 8_192;

/// A connection to a file, which is made where it is not there, or to a copy, where nothing can be written.
pub(super) fn connect(path: &Path) -> Result<(Connection, bool), StoreError> {
    let failed = |source| StoreError::File { path: path.to_owned(), source };
    let (connection, is_copy) = match writing(path) {
        Err(error) if is_of_the_disk(&error) => (copied(path).ok_or_else(|| failed(error))?, true),
        other => (other.map_err(failed)?, false),
    };
    let check: String =
        connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)).map_err(failed)?;
    if check != "ok" {
        return Err(failed(rusqlite::Error::InvalidColumnName(check)));
    }
    let version: i64 =
        connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(failed)?;
    if version > VERSION {
        return Err(StoreError::Later { path: path.to_owned() });
    }
    if version < VERSION {
        connection.execute_batch(TABLES).map_err(failed)?;
        connection.pragma_update(None, "user_version", VERSION).map_err(failed)?;
    }
    Ok((connection, is_copy))
}

fn writing(path: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open(path)?;
    // Nobody else reads it, and so nothing beside it has to be made on a disk that may be full.
    connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
    // What was answered as done is on the disk.
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    // The daemon moves what is in the log while nobody waits; this bounds it where it has no time for that.
    connection.pragma_update(None, "wal_autocheckpoint", PAGES_OF_LOG)?;
    connection.query_row("PRAGMA user_version", [], |row| row.get::<_, i64>(0))?;
    Ok(connection)
}

fn is_of_the_disk(error: &rusqlite::Error) -> bool {
    let code = error.sqlite_error_code();
    code.is_some_and(|code| {
        use ErrorCode::{CannotOpen, DiskFull, ReadOnly, SystemIoFailure};
        matches!(code, CannotOpen | DiskFull | ReadOnly | SystemIoFailure)
    })
}

/// A copy of a store that cannot be opened where it is: SQLite takes a lock there, which writes.
fn copied(path: &Path) -> Option<Connection> {
    let place = Path::new(run_lock::DIRECTORY).join(format!("state-{}", std::process::id()));
    fs::DirBuilder::new().mode(0o700).create(&place).ok()?;
    let copy = || {
        for suffix in ["", "-wal"] {
            let name = format!("{FILE}{suffix}");
            match fs::copy(path.with_file_name(&name), place.join(&name)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return None,
                _ => {}
            }
        }
        let connection = writing(&place.join(FILE)).ok()?;
        connection.pragma_update(None, "query_only", true).ok()?;
        Some(connection)
    };
    let connection = copy();
    // What is open stays.
    drop(fs::remove_dir_all(&place));
    connection
}

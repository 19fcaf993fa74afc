//! Whose sandboxes were, of those that have ended too.

use super::{Store, StoreError};

impl Store {
    /// The sandboxes that a user has started, those that have ended too, and when, in seconds since 1970.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn started_by(&self, user: u32) -> Result<Vec<(String, i64)>, StoreError> {
        let read = || -> rusqlite::Result<Vec<(String, i64)>> {
            // Unless a version that keeps no such list has started another one since.
            let mut query = self.connection.prepare(
                "SELECT sandbox, started FROM trails AS own WHERE owner = ?1 \
                 AND started = (SELECT started FROM revisions WHERE sandbox = own.sandbox \
                 ORDER BY rowid DESC LIMIT 1)",
            )?;
            query.query_map([user], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
        };
        read().map_err(|source| self.failed(source))
    }
}

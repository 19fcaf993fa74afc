//! What is forgotten of policies that are not in force any more, so that the store of a host that runs for years
//! and changes policies all day stays small.

use rusqlite::{Connection, Transaction, params};

/// Policies of one sandbox, or of the host, that are kept: those that were set last.
pub const OF_ONE: u32 = 1_000;

/// How long those of sandboxes that have ended are kept, in seconds.
const ENDED: i64 = 90 * 86_400;

/// Forgets the oldest of a sandbox's that has come to this revision.
pub(super) fn of_one(
    transaction: &Transaction<'_>,
    id: &str,
    started: i64,
    revision: u32,
) -> rusqlite::Result<()> {
    let Some(oldest) = revision.checked_sub(OF_ONE).filter(|oldest| *oldest > 0) else {
        return Ok(());
    };
    let sql = "DELETE FROM revisions WHERE sandbox = ?1 AND started = ?2 AND revision <= ?3";
    transaction.prepare_cached(sql)?.execute(params![id, started, oldest]).map(drop)
}

/// Forgets those of sandboxes that have ended, and whose policy was set last, long before this time in seconds
/// since 1970. The host's own stay.
pub(super) fn ended(connection: &Connection, now: i64) -> rusqlite::Result<()> {
    let before = now.saturating_sub(ENDED);
    let ended = "NOT EXISTS (SELECT 1 FROM sandboxes WHERE id = sandbox)";
    connection.execute(
        &format!(
            "DELETE FROM revisions WHERE sandbox != '' AND {ended} AND sandbox IN \
             (SELECT sandbox FROM revisions GROUP BY sandbox HAVING max(time) < ?1)"
        ),
        [before],
    )?;
    let sql = format!(
        "DELETE FROM trails WHERE {ended} AND sandbox NOT IN (SELECT sandbox FROM revisions)"
    );
    connection.execute(&sql, []).map(drop)
}

#[cfg(test)]
mod tests {
    use super::super::Store;
    use super::super::tests::kept;
    use super::*;

    #[test]
    fn of_a_sandbox_the_last_policies_are_kept() {
        let directory = tempfile::tempdir().unwrap();
        let mut store = Store::open(directory.path(), false).unwrap();
        for revision in 1..=OF_ONE + 3 {
            store.put(&kept("a-1", revision, &revision.to_string()), 0).unwrap();
        }
        let all = store.revisions("a-1", kept("a-1", 1, "").state.since).unwrap();
        assert_eq!((all.len(), all[0].revision), (OF_ONE as usize, 4));
        assert_eq!(store.sandboxes().unwrap()[0].revision, OF_ONE + 3);
    }

    #[test]
    fn of_sandboxes_that_ended_long_ago_nothing_is_kept_and_of_all_others_everything() {
        let directory = tempfile::tempdir().unwrap();
        let mut store = Store::open(directory.path(), false).unwrap();
        for id in ["old-1", "new-2", "runs-3"] {
            store.put(&kept(id, 1, "x"), 7).unwrap();
        }
        store.set_global(&kept("", 1, "x").state.texts, 0).unwrap();
        ["old-1", "new-2"].iter().for_each(|id| store.remove(id).unwrap());
        let long_ago = "UPDATE revisions SET time = 1 WHERE sandbox != 'new-2'";
        store.connection.execute(long_ago, []).unwrap();
        drop(store);
        let store = Store::open(directory.path(), false).unwrap();
        let since = kept("", 1, "").state.since;
        let count = |id: &str| store.revisions(id, since).unwrap().len();
        assert_eq!([count("old-1"), count("new-2"), count("runs-3")], [0, 1, 1]);
        assert_eq!(store.global_revisions().unwrap().len(), 1);
        let known = |id: &str| store.last_started(id).unwrap().len();
        assert_eq!([known("old-1"), known("new-2"), known("runs-3")], [0, 1, 1]);
    }
}

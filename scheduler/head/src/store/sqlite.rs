//! The journal in SQLite: write-ahead log, synchronous = FULL, one connection, one writer.
//!
//! ```text
//! meta(name, value)        format = 1, clock = milliseconds
//! change(sequence, bytes)  a `Change` as the wire's codec writes it; never updated, never deleted
//! ```

use std::path::{Path, PathBuf};

use motley_scheduler_core::unit::Moment;
use motley_scheduler_core::wire::codec::journal::{decode_change, encode_change};
use rusqlite::{Connection, OptionalExtension};

use super::{Batch, Store, Stored};
use crate::HeadError;

const FORMAT: i64 = 1;

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS change (sequence INTEGER PRIMARY KEY, bytes BLOB NOT NULL);
";

const RESTORE: &str = "stop the scheduler, keep the folder, and restore journal.sqlite from a copy";

#[derive(Debug)]
pub(crate) struct Sqlite {
    path: PathBuf,
    connection: Connection,
}

impl Sqlite {
    pub(crate) fn open(path: &Path) -> Result<Sqlite, HeadError> {
        let error = |source| HeadError::Store { path: path.to_owned(), source };
        let connection = Connection::open(path).map_err(error)?;
        // EXTRA would also flush the folder after each checkpoint; FULL flushes every commit, which is what counts.
        connection
            .execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON;")
            .and_then(|()| connection.execute_batch(SCHEMA))
            .map_err(error)?;
        let mut store = Sqlite { path: path.to_owned(), connection };
        store.check_format()?;
        Ok(store)
    }

    fn check_format(&mut self) -> Result<(), HeadError> {
        match self.meta("format")? {
            None => {
                let insert = "INSERT INTO meta (name, value) VALUES ('format', ?1)";
                self.connection.execute(insert, [FORMAT]).map_err(|error| self.error(error))?;
                Ok(())
            }
            Some(FORMAT) => Ok(()),
            Some(found) => Err(HeadError::TooNew { path: self.path.clone(), found, known: FORMAT }),
        }
    }

    fn meta(&self, name: &str) -> Result<Option<i64>, HeadError> {
        let select = "SELECT value FROM meta WHERE name = ?1";
        let row = self.connection.query_row(select, [name], |row| row.get(0));
        row.optional().map_err(|error| self.error(error))
    }

    fn error(&self, source: rusqlite::Error) -> HeadError {
        HeadError::Store { path: self.path.clone(), source }
    }

    fn damaged(&self, row: i64, reason: impl std::fmt::Display) -> HeadError {
        HeadError::Damaged { path: self.path.clone(), row, reason: reason.to_string(), hint: RESTORE }
    }

    fn load_changes(&self, stored: &mut Stored) -> Result<(), HeadError> {
        let error = |source| self.error(source);
        let select = "SELECT sequence, bytes FROM change ORDER BY sequence";
        let mut statement = self.connection.prepare(select).map_err(error)?;
        let mut rows = statement.query([]).map_err(error)?;
        while let Some(row) = rows.next().map_err(error)? {
            let sequence: i64 = row.get(0).map_err(error)?;
            let bytes = row.get_ref(1).map_err(error)?.as_blob();
            let bytes = bytes.map_err(|failure| self.damaged(sequence, failure))?;
            let change = decode_change(bytes).map_err(|failure| self.damaged(sequence, failure))?;
            stored.changes.push(change);
            if stored.changes.len() as i64 != sequence {
                return Err(self.damaged(sequence, "a row before it is missing"));
            }
        }
        Ok(())
    }

    fn write(&mut self, batch: &Batch, rows: &[Vec<u8>]) -> Result<(), rusqlite::Error> {
        let transaction = self.connection.transaction()?;
        {
            let mut insert = transaction.prepare_cached("INSERT INTO change (bytes) VALUES (?1)")?;
            for bytes in rows {
                insert.execute([bytes])?;
            }
            let clock = "INSERT INTO meta (name, value) VALUES ('clock', ?1)
                         ON CONFLICT (name) DO UPDATE SET value = max(value, excluded.value)";
            transaction.prepare_cached(clock)?.execute([batch.now.0.cast_signed()])?;
        }
        transaction.commit()
    }
}

impl Store for Sqlite {
    fn load(&mut self) -> Result<Stored, HeadError> {
        let clock = self.meta("clock")?.unwrap_or(0);
        let mut stored = Stored { clock: Moment(clock.unsigned_abs()), ..Stored::default() };
        self.load_changes(&mut stored)?;
        Ok(stored)
    }

    fn commit(&mut self, batch: &Batch) -> Result<(), HeadError> {
        let rows: Result<Vec<_>, _> = batch.changes.iter().map(encode_change).collect();
        let rows = rows.map_err(|error| self.damaged(0, error))?;
        self.write(batch, &rows).map_err(|error| self.error(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use motley_scheduler_core::cluster::Change;
    use motley_scheduler_core::id::NodeId;

    fn added(number: u64) -> Change {
        Change::NodeAdded { node: NodeId(number), name: format!("node-{number}"), at: Moment(number) }
    }

    fn batch(numbers: std::ops::Range<u64>, now: u64) -> Batch {
        Batch { changes: numbers.map(added).collect(), now: Moment(now) }
    }

    #[test]
    fn what_was_committed_is_there_after_a_drop_without_goodbye() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal.sqlite");
        let mut store = Sqlite::open(&path).unwrap();
        assert!(store.load().unwrap().changes.is_empty());
        store.commit(&batch(1..4, 100)).unwrap();
        store.commit(&batch(4..5, 90)).unwrap();
        // A second connection stands for the process after a kill: the first never said good-bye.
        let stored = Sqlite::open(&path).unwrap().load().unwrap();
        assert_eq!(stored.changes, (1..5).map(added).collect::<Vec<_>>());
        assert_eq!(stored.clock, Moment(100), "the stored clock never goes back");
    }

    #[test]
    fn a_batch_is_written_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Sqlite::open(&folder.path().join("journal.sqlite")).unwrap();
        store.commit(&batch(1..2, 1)).unwrap();
        // The last row of the batch breaks the transaction after the others were inserted.
        let trigger = "CREATE TRIGGER broken BEFORE INSERT ON change
                       WHEN (SELECT count(*) FROM change) = 7 BEGIN SELECT RAISE(ABORT, 'planted'); END";
        store.connection.execute_batch(trigger).unwrap();
        assert!(store.commit(&batch(2..9, 2)).unwrap_err().to_string().contains("planted"));
        store.connection.execute_batch("DROP TRIGGER broken").unwrap();
        let stored = store.load().unwrap();
        assert_eq!(stored.changes, vec![added(1)]);
        assert_eq!(stored.clock, Moment(1));
        store.commit(&batch(2..3, 3)).unwrap();
        assert_eq!(store.load().unwrap().changes.len(), 2);
    }

    #[test]
    fn durability_is_asked_of_the_disk() {
        let folder = tempfile::tempdir().unwrap();
        let store = Sqlite::open(&folder.path().join("journal.sqlite")).unwrap();
        let pragma = |name: &str| -> String {
            let value = store.connection.query_row(&format!("PRAGMA {name}"), [], |row| {
                row.get_ref(0).map(|value| format!("{value:?}"))
            });
            value.unwrap()
        };
        assert!(pragma("synchronous").contains('2'), "FULL is 2");
        assert!(pragma("journal_mode").contains("119, 97, 108"), "w, a, l");
    }

    #[test]
    fn full_disk_is_an_error_and_loses_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Sqlite::open(&folder.path().join("journal.sqlite")).unwrap();
        store.commit(&batch(1..3, 1)).unwrap();
        let pages: i64 = store.connection.query_row("PRAGMA page_count", [], |row| row.get(0)).unwrap();
        store
            .connection
            .query_row(&format!("PRAGMA max_page_count = {pages}"), [], |row| row.get::<_, i64>(0))
            .unwrap();
        let error = store.commit(&batch(3..5000, 2)).unwrap_err().to_string();
        assert!(error.contains("full"), "{error}");
        store
            .connection
            .query_row("PRAGMA max_page_count = 1000000", [], |row| row.get::<_, i64>(0))
            .unwrap();
        assert_eq!(store.load().unwrap().changes.len(), 2);
        store.commit(&batch(3..5000, 2)).unwrap();
        assert_eq!(store.load().unwrap().changes.len(), 4999);
    }

    #[test]
    fn damage_is_named_by_its_row() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Sqlite::open(&folder.path().join("journal.sqlite")).unwrap();
        store.commit(&batch(1..5, 1)).unwrap();
        store.connection.execute("UPDATE change SET bytes = x'ff00ff' WHERE sequence = 3", []).unwrap();
        let error = store.load().unwrap_err().to_string();
        assert!(error.contains("row 3") && error.contains("hint:"), "{error}");
        store.connection.execute("DELETE FROM change WHERE sequence = 3", []).unwrap();
        let error = store.load().unwrap_err().to_string();
        assert!(error.contains("row 4") && error.contains("missing"), "{error}");
    }

    #[test]
    fn journals_of_newer_programs_are_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal.sqlite");
        let store = Sqlite::open(&path).unwrap();
        store.connection.execute("UPDATE meta SET value = 2 WHERE name = 'format'", []).unwrap();
        drop(store);
        assert!(matches!(Sqlite::open(&path), Err(HeadError::TooNew { found: 2, .. })));
        std::fs::write(
            &path,
            "this is no database, but long enough to be looked at as one by a careless reader",
        )
        .unwrap();
        assert!(matches!(Sqlite::open(&path), Err(HeadError::Store { .. })));
    }
}

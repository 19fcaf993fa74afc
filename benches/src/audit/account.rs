//! What became of each event that was made: it is in the store, or counted as lost there.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use arrow_array::StringArray;
use clawbox::audit::store::frame::Label;
use clawbox::audit::store::read::{Cursor, Loaded, Reader, Wanted};
use clawbox::audit::store::scan::next_event;
use clawbox::audit::store::schema::{COUNT_AT, Text};

/// Columns that tell what an event is.
struct Few;

impl Wanted for Few {
    fn may_have(&self, _: &Label) -> bool {
        true
    }

    fn may_have_of(&mut self, _: &StringArray) -> bool {
        true
    }

    fn columns(&self) -> Option<Vec<usize>> {
        Some(vec![Text::Class.at(), Text::Action.at(), Text::Detail.at(), COUNT_AT])
    }
}

/// See the module.
pub struct Account {
    directory: PathBuf,
    cursor: Cursor,
    /// Connects that were made.
    pub generated: u64,
    /// Those that another reader than the agent has read.
    pub elsewhere: u64,
    /// Those that are in the store.
    pub rows: u64,
    /// Those that it counts as lost.
    pub lost: u64,
    /// Those that it misses by the kernel's numbers.
    pub unexplained: u64,
    /// Rows of whatever kind.
    pub all_rows: u64,
}

impl Account {
    /// Of a store.
    pub fn of(directory: &Path) -> Self {
        let (cursor, directory) = (Cursor::default(), directory.to_owned());
        Self {
            directory,
            cursor,
            generated: 0,
            elsewhere: 0,
            rows: 0,
            lost: 0,
            unexplained: 0,
            all_rows: 0,
        }
    }

    /// Reads what came since.
    fn read(&mut self) -> Result<()> {
        let mut reader = Reader::at(&self.directory, self.cursor);
        while let Some(batch) = reader.next(&mut Few)? {
            self.add(&batch);
        }
        self.cursor = reader.cursor();
        Ok(())
    }

    fn add(&mut self, batch: &Loaded) {
        for row in batch.rows() {
            self.all_rows += 1;
            match (row.text(Text::Class), row.text(Text::Action)) {
                (Some("network"), Some("connect")) => self.rows += 1,
                (Some("gap"), _) => {
                    let detail = row.text(Text::Detail).unwrap_or_default();
                    let is_ours = [r#""connect""#, r#""unstored""#];
                    if is_ours.iter().any(|kind| detail.contains(kind)) {
                        self.lost += row.count();
                    } else if detail.contains(r#""unexplained""#) {
                        self.unexplained += row.count();
                    }
                }
                _ => {}
            }
        }
    }

    /// Waits until each event is accounted for, and none twice.
    pub fn settle(&mut self) -> Result<()> {
        super::until("events are unaccounted for", || {
            self.read()?;
            let found = self.rows + self.lost + self.elsewhere;
            if found > self.generated {
                bail!(
                    "{} events were made, and {} stored, {} lost and {} read elsewhere",
                    self.generated,
                    self.rows,
                    self.lost,
                    self.elsewhere
                );
            }
            Ok(found == self.generated)
        })
        .map_err(|error| {
            error.context(format!(
                "{} made, {} stored, {} lost, {} read elsewhere",
                self.generated, self.rows, self.lost, self.elsewhere
            ))
        })
    }

    /// Waits until the store misses what another reader has read, by the kernel's numbers.
    pub fn settle_elsewhere(&mut self) -> Result<()> {
        super::until("what was read elsewhere is not missed", || {
            self.read()?;
            Ok(self.unexplained >= self.elsewhere)
        })
    }

    /// Events of whatever kind that the store has by now.
    pub fn written(&self) -> Result<u64> {
        Ok(next_event(&self.directory)?)
    }

    /// What the store takes of the disk.
    pub fn bytes(&self) -> Result<u64> {
        let mut bytes = 0;
        for entry in std::fs::read_dir(&self.directory)? {
            bytes += entry?.metadata()?.len();
        }
        Ok(bytes)
    }
}

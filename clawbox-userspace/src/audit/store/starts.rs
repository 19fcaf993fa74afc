//! Where sandboxes were started, which the records of their starts say: what `include_workdir` meant to what was
//! decided later.

use std::collections::HashMap;
use std::io;
use std::path::Path;

use serde_json::Value;

use super::filter::{Filter, Pattern};
use super::read::{Cursor, Reader, Row};
use super::row::class_name;
use super::schema::Text;
use crate::audit::record::Class;

/// The records that say it, or that there is nothing to say.
const ACTIONS: [&str; 3] = ["start", "resume", "attach"];

/// Of sandboxes by NAME-NUMBER, each time that one began: numbers come again after a restart of the machine.
#[derive(Default)]
pub struct Workdirs(HashMap<String, Vec<(i64, Option<String>)>>);

impl Workdirs {
    /// What a store has of these sandboxes, or of all.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn read(directory: &Path, sandbox: Option<Pattern>) -> io::Result<Self> {
        let mut told = Filter::default();
        told.text(&[Text::Class], Pattern::Is(class_name(Class::Sandbox).to_owned()));
        told.text(&[Text::Action], Pattern::OneOf(ACTIONS.map(str::to_owned).to_vec()));
        if let Some(sandbox) = sandbox {
            told.text(&[Text::Sandbox], sandbox);
        }
        told.show([Text::Sandbox, Text::Detail].map(Text::at).to_vec());
        let mut reader = Reader::at(directory, Cursor::default());
        let mut found = Self::default();
        while let Some(batch) = reader.next(&mut told)? {
            told.rows(&batch).for_each(|row| found.add(row));
        }
        Ok(found)
    }

    fn add(&mut self, row: Row<'_>) {
        let Some(sandbox) = row.text(Text::Sandbox) else { return };
        let detail = row.text(Text::Detail).unwrap_or_default();
        let detail: Value = serde_json::from_str(detail).unwrap_or_default();
        // By its hash alone it is nowhere.
        let workdir = detail["workdir"].as_str().filter(|workdir| workdir.starts_with('/'));
        let workdir = workdir.map(str::to_owned);
        self.0.entry(sandbox.to_owned()).or_default().push((row.micros(), workdir));
    }

    /// Where the sandbox of an event had been started.
    #[must_use]
    pub fn of(&self, row: Row<'_>) -> Option<&str> {
        let began = self.0.get(row.text(Text::Sandbox)?)?.iter();
        let last = began.filter(|(at, _)| *at <= row.micros()).max_by_key(|(at, _)| *at)?;
        last.1.as_deref()
    }
}

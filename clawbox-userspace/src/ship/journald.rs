//! systemd's journal: each event an entry with its fields, by the journal's native protocol.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::local::{Form, Level, Place, fields, level, main_line};
use crate::audit::store::event::time_text;
use crate::audit::store::read::Row;

/// Where the journal listens.
const SOCKET: &str = "/run/systemd/journal/socket";

/// The journal.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Journald {
    /// Its socket.
    pub socket: PathBuf,
}

impl Default for Journald {
    fn default() -> Self {
        Self { socket: SOCKET.into() }
    }
}

impl Journald {
    /// Whether it can be used.
    ///
    /// # Errors
    /// What cannot.
    pub fn check(&self) -> Result<(), String> {
        if self.socket.is_absolute() {
            return Ok(());
        }
        Err(format!("`ship.journald.socket: {}`: write the whole path", self.socket.display()))
    }

    pub(super) fn place(&self) -> Place {
        Place::Datagrams(self.socket.clone())
    }
}

/// Events as entries.
pub(super) struct Entries;

/// `NAME=VALUE` a line; a value with lines of its own behind its length, 64 bits, the lowest byte first.
fn add(entry: &mut Vec<u8>, name: &str, value: &str) {
    entry.extend_from_slice(name.as_bytes());
    if value.contains('\n') {
        entry.push(b'\n');
        entry.extend_from_slice(&(value.len() as u64).to_le_bytes());
    } else {
        entry.push(b'=');
    }
    entry.extend_from_slice(value.as_bytes());
    entry.push(b'\n');
}

impl Form for Entries {
    fn message(&self, row: Row<'_>) -> Vec<u8> {
        let priority = match level(row) {
            Level::Critical => "2",
            Level::Error => "3",
            Level::Warning => "4",
            Level::Info => "6",
        };
        let mut entry = Vec::with_capacity(1_024);
        add(&mut entry, "MESSAGE", &main_line(row));
        add(&mut entry, "PRIORITY", priority);
        add(&mut entry, "SYSLOG_IDENTIFIER", "clawbox");
        add(&mut entry, "CLAWBOX_TIME", &time_text(row.micros()));
        for (name, value) in fields(row) {
            add(&mut entry, &format!("CLAWBOX_{}", name.to_ascii_uppercase()), &value);
        }
        entry
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ship::local::tests::with_row;

    #[test]
    fn an_entry_has_each_field_and_a_value_of_several_lines_is_one_value() {
        let entry = with_row("/tmp/a\nPRIORITY=0", |row| Entries.message(row));
        let value = b"/tmp/a\nPRIORITY=0";
        let mut path = b"CLAWBOX_PATH\n".to_vec();
        path.extend((value.len() as u64).to_le_bytes());
        path.extend(value);
        path.push(b'\n');
        assert!(entry.windows(path.len()).any(|window| window == path));
        let text = String::from_utf8_lossy(&entry);
        assert!(text.starts_with("MESSAGE="), "{text}");
        for line in
            ["PRIORITY=4", "SYSLOG_IDENTIFIER=clawbox", "CLAWBOX_ID=0", "CLAWBOX_VERDICT=deny"]
        {
            assert!(text.lines().any(|found| found == line), "{line}: {text}");
        }
        assert!(Journald { socket: "journal".into() }.check().is_err());
    }
}

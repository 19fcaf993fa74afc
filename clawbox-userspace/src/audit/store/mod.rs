//! The host's audit store: the records of all sandboxes of a daemon, in Arrow IPC streams that other tools
//! read as they are, each batch chained to the one before it.

pub mod columns;
pub mod counts;
pub mod event;
pub mod export;
pub mod filter;
pub mod frame;
pub mod history;
pub mod in_flight;
pub mod intake;
pub mod ledger;
pub mod limits;
pub mod numbers;
pub mod ocsf;
pub mod policies;
pub mod read;
#[cfg(test)]
mod reading;
pub mod row;
pub mod scan;
pub mod schema;
pub mod signed;
pub mod starts;
#[cfg(test)]
pub(crate) mod tests;
pub mod verify;
mod waiting;
pub mod writer;

use std::fmt::Write as _;

use sha2::{Digest, Sha256};

/// What a batch is known by: the SHA-256 of its bytes, in which that of the batch before is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Head(pub [u8; 32]);

impl Head {
    /// Of bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// From its digits, which have one way to be written.
    #[must_use]
    pub fn parse(digits: &str) -> Option<Self> {
        signed::from_hex(digits).map(Self)
    }
}

impl std::fmt::Display for Head {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        to.write_str(&hex(&self.0))
    }
}

/// Bytes as lower-case digits.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // To a String: cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The file of a segment.
#[must_use]
pub fn segment_name(number: u64) -> String {
    format!("{number:08}.arrows")
}

/// The number of a segment's file.
#[must_use]
pub fn segment_number(name: &str) -> Option<u64> {
    let number = name.strip_suffix(".arrows")?.parse().ok()?;
    (segment_name(number) == name).then_some(number)
}

/// The segments of a directory, in their order.
///
/// # Errors
/// It cannot be listed.
pub fn segments(directory: &std::path::Path) -> std::io::Result<Vec<u64>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        found.extend(entry?.file_name().to_str().and_then(segment_number));
    }
    found.sort_unstable();
    Ok(found)
}

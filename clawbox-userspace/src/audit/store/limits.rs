//! How large segments get, how long they are kept, and how much of the disk the store may have: keys of the
//! agent's configuration.

use std::fmt;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::audit::veil::What;

/// The audit store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// A segment is closed and signed at this size, such as 64M.
    pub segment: Size,
    /// And after this time, as in 1day.
    pub rotate: Span,
    /// A segment is removed when its last record is this old, as in 30days.
    pub keep: Span,
    /// The oldest segments are removed where all together are larger.
    pub quota: Size,
    /// A sandbox's own trail is begun anew at this size, as in 64M; of the files before it the last one stays.
    pub trail: Size,
    /// How much of the free room of an event ring one sandbox may fill while nobody reads it, in percent.
    pub share: u32,
    /// What is done where the disk is full or the quota used up: drop-oldest, which removes the oldest
    /// segments, or stop-allows, which removes none and has nothing allowed until there is room.
    pub on_full: OnFull,
    /// What of records is told as a keyed hash alone: paths, programs, arguments.
    pub hash: What,
}

/// See [`Limits::on_full`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OnFull {
    /// The oldest segments go.
    #[default]
    DropOldest,
    /// Nothing is allowed.
    StopAllows,
}

impl Default for Limits {
    fn default() -> Self {
        let days = |days: u64| Span(Duration::from_secs(days * 86_400));
        let (segment, quota, share) = (Size(64 << 20), Size(2 << 30), 50);
        let (on_full, hash) = Default::default();
        let (rotate, keep, trail) = (days(1), days(30), Size(64 << 20));
        Self { segment, rotate, keep, quota, trail, share, on_full, hash }
    }
}

impl Limits {
    /// Whether they fit each other.
    ///
    /// # Errors
    /// What does not.
    pub fn check(&self) -> Result<(), String> {
        if !(1..=100).contains(&self.share) {
            return Err(format!("`audit.share: {}`: write 1 to 100", self.share));
        }
        if self.quota.0 < self.segment.0.saturating_mul(2) {
            let (quota, segment) = (self.quota, self.segment);
            return Err(format!("`audit.quota: {quota}`: at least two segments of {segment}"));
        }
        Ok(())
    }
}

/// Bytes: `64M` and so on, by powers of 1024.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub struct Size(u64);

impl Size {
    /// How many.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

/// Less than this a segment is mostly headings.
const LEAST: u64 = 64 << 10;

const UNITS: [(char, u32); 4] = [('T', 40), ('G', 30), ('M', 20), ('K', 10)];

impl TryFrom<String> for Size {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let unit = UNITS.iter().find(|(letter, _)| text.ends_with(*letter));
        let number = unit.and_then(|(letter, _)| text.strip_suffix(*letter)).unwrap_or(&text);
        let number: Option<u64> = number.parse().ok();
        let bytes =
            number.and_then(|number| number.checked_mul(1 << unit.map_or(0, |unit| unit.1)));
        match bytes {
            Some(bytes) if bytes >= LEAST => Ok(Self(bytes)),
            _ => Err(format!("`{text}`: write a size from 64K, as in 64M or 2G")),
        }
    }
}

impl From<Size> for String {
    fn from(size: Size) -> Self {
        size.to_string()
    }
}

impl fmt::Display for Size {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fits = |unit: &&(char, u32)| self.0.is_multiple_of(1 << unit.1);
        match UNITS.iter().find(fits) {
            Some((letter, shift)) => write!(to, "{}{letter}", self.0 >> shift),
            None => write!(to, "{}", self.0),
        }
    }
}

/// From a second to ten years.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub struct Span(Duration);

impl Span {
    /// How long.
    #[must_use]
    pub const fn duration(self) -> Duration {
        self.0
    }
}

impl TryFrom<String> for Span {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let span = humantime::parse_duration(&text)
            .map_err(|error| format!("`{text}`: {error}; write a time, as in 30days"))?;
        let longest = Duration::from_secs(3_653 * 86_400);
        if (Duration::from_secs(1)..=longest).contains(&span) {
            return Ok(Self(span));
        }
        Err(format!("`{text}`: write a time from 1s to ten years"))
    }
}

impl From<Span> for String {
    fn from(span: Span) -> Self {
        humantime::format_duration(span.0).to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_are_written_as_they_are_read_and_have_bounds() {
        for text in ["64M", "2G", "65537", "1T"] {
            assert_eq!(String::from(Size::try_from(text.to_owned()).unwrap()), text);
        }
        for text in ["63K", "x", "", "M", "99999999T", "64MM"] {
            assert!(Size::try_from(text.to_owned()).is_err(), "{text}");
        }
        for text in ["1day", "30days", "2h"] {
            assert_eq!(String::from(Span::try_from(text.to_owned()).unwrap()), text);
        }
        assert!(Span::try_from("0s".to_owned()).is_err());
        let small = Limits { quota: Size(64 << 20), ..Limits::default() };
        assert!(small.check().unwrap_err().contains("two segments"));
    }
}

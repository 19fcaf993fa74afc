//! Batches back from the disk, the oldest first. What a batch says of itself, and then the pool of its
//! texts, decide whether its columns are read at all.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use arrow_array::cast::AsArray;
use arrow_array::types::{Int32Type, TimestampMicrosecondType, UInt32Type, UInt64Type};
use arrow_array::{Array, ArrayRef, StringArray};
use arrow_ipc::{MessageHeader, root_as_message};
use serde::{Deserialize, Serialize};

use super::columns::GROUPED;
use super::frame::{self, Label, Step};
use super::schema::{self, COLUMNS, COUNT_AT, Number, Text};
use super::{scan, segment_name, segments};

/// A batch in memory, as far as it was asked for.
pub struct Loaded {
    /// What it says of itself.
    pub label: Label,
    /// Its texts.
    pub pool: StringArray,
    /// Its columns; those that were not asked for are not there.
    columns: Vec<Option<ArrayRef>>,
    /// Its rows are as they came.
    is_in_order: bool,
}

/// A row of a batch.
#[derive(Clone, Copy)]
pub struct Row<'a> {
    /// Its batch.
    pub batch: &'a Loaded,
    /// Which of it.
    pub at: usize,
}

/// What of the store is wanted.
pub trait Wanted {
    /// Whether a batch that says so of itself may have any of it.
    fn may_have(&self, label: &Label) -> bool;
    /// Whether one with these texts may.
    fn may_have_of(&mut self, pool: &StringArray) -> bool;
    /// The columns that are needed; all where it is `None`.
    fn columns(&self) -> Option<Vec<usize>>;
}

/// Everything.
pub struct Everything;

impl Wanted for Everything {
    fn may_have(&self, _: &Label) -> bool {
        true
    }

    fn may_have_of(&mut self, _: &StringArray) -> bool {
        true
    }

    fn columns(&self) -> Option<Vec<usize>> {
        None
    }
}

/// Of no batch more than its label.
struct Nothing;

impl Wanted for Nothing {
    fn may_have(&self, _: &Label) -> bool {
        false
    }

    fn may_have_of(&mut self, _: &StringArray) -> bool {
        false
    }

    fn columns(&self) -> Option<Vec<usize>> {
        None
    }
}

/// How far a store was read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    segment: u64,
    at: u64,
}

/// Reads a store from a place on.
pub struct Reader {
    directory: PathBuf,
    cursor: Cursor,
    file: Option<File>,
    bytes: Vec<u8>,
}

impl Loaded {
    /// Its rows, in the order of their numbers.
    pub fn rows(&self) -> impl DoubleEndedIterator<Item = Row<'_>> {
        let count = usize::try_from(self.label.events).unwrap_or(0);
        (0..count).map(|at| Row { batch: self, at })
    }

    /// Whether its rows are as they came; in a large one those that are alike may stand together.
    #[must_use]
    pub fn is_in_order(&self) -> bool {
        self.is_in_order
    }

    /// The places of a column's texts in the pool, with the nulls.
    #[must_use]
    pub fn places(&self, column: Text) -> Option<&arrow_array::Int32Array> {
        self.columns[column.at()].as_deref()?.as_primitive_opt::<Int32Type>()
    }

    /// The columns that were read, by their place.
    pub fn columns(&self) -> impl Iterator<Item = (usize, &ArrayRef)> {
        self.columns.iter().enumerate().filter_map(|(at, column)| Some((at, column.as_ref()?)))
    }
}

impl<'a> Row<'a> {
    /// A text.
    #[must_use]
    pub fn text(self, column: Text) -> Option<&'a str> {
        let places = self.batch.places(column)?;
        if places.is_null(self.at) {
            return None;
        }
        let place = usize::try_from(places.value(self.at)).ok()?;
        (place < self.batch.pool.len()).then(|| self.batch.pool.value(place))
    }

    /// A number.
    #[must_use]
    pub fn number(self, column: Number) -> Option<u32> {
        let column = self.batch.columns[column.at()].as_deref()?;
        let column = column.as_primitive_opt::<UInt32Type>()?;
        (!column.is_null(self.at)).then(|| column.value(self.at))
    }

    /// Its number over all segments.
    #[must_use]
    pub fn id(self) -> u64 {
        self.batch.label.first + self.at as u64
    }

    /// When, microseconds since 1970.
    #[must_use]
    pub fn micros(self) -> i64 {
        let time = self.batch.columns[0].as_deref();
        let time = time.and_then(|time| time.as_primitive_opt::<TimestampMicrosecondType>());
        time.map_or(0, |time| time.value(self.at))
    }

    /// How many events it stands for.
    #[must_use]
    pub fn count(self) -> u64 {
        let count = self.batch.columns[COUNT_AT].as_deref();
        count
            .and_then(|count| count.as_primitive_opt::<UInt64Type>())
            .map_or(1, |c| c.value(self.at))
    }

    /// Whether what was denied went on.
    #[must_use]
    pub fn let_through(self) -> bool {
        let column = self.batch.columns[COUNT_AT + 1].as_deref();
        column.and_then(AsArray::as_boolean_opt).is_some_and(|column| column.value(self.at))
    }
}

impl Reader {
    /// Of a store's directory, from a place on.
    #[must_use]
    pub fn at(directory: &Path, cursor: Cursor) -> Self {
        Self { directory: directory.to_owned(), cursor, file: None, bytes: Vec::new() }
    }

    /// How far it has come.
    #[must_use]
    pub fn cursor(&self) -> Cursor {
        self.cursor
    }

    /// The next batch that may have what is wanted; `None` where nothing more is written yet.
    ///
    /// # Errors
    /// A segment cannot be read, or is not what a store has.
    pub fn next(&mut self, wanted: &mut impl Wanted) -> io::Result<Option<Loaded>> {
        loop {
            let Some(mut file) = self.file.take() else {
                match self.open()? {
                    true => continue,
                    false => return Ok(None),
                }
            };
            match self.unit(&mut file, wanted)? {
                Unit::Loaded(loaded) => {
                    self.file = Some(file);
                    return Ok(Some(*loaded));
                }
                Unit::Skipped(..) => self.file = Some(file),
                Unit::Waits if self.is_last()? => {
                    // The rest of it may be there the next time.
                    file.seek(SeekFrom::Start(self.cursor.at))?;
                    self.file = Some(file);
                    return Ok(None);
                }
                Unit::Waits | Unit::Ends => {
                    self.cursor = Cursor { segment: self.cursor.segment + 1, at: 0 };
                }
            }
        }
    }

    /// Where those batches stand whose label is as it is asked for, and what of it is; nothing else is read.
    ///
    /// # Errors
    /// As of [`Reader::next`].
    pub fn places<T>(
        &mut self,
        mut of: impl FnMut(&Label) -> Option<T>,
    ) -> io::Result<Vec<(Cursor, T)>> {
        let mut places = Vec::new();
        loop {
            let Some(mut file) = self.file.take() else {
                match self.open()? {
                    true => continue,
                    false => return Ok(places),
                }
            };
            let at = self.cursor;
            match self.unit(&mut file, &mut Nothing)? {
                Unit::Skipped(label) => {
                    self.file = Some(file);
                    places.extend(of(&label).map(|of| (at, of)));
                }
                Unit::Waits | Unit::Loaded(_) if self.is_last()? => return Ok(places),
                _ => self.cursor = Cursor { segment: self.cursor.segment + 1, at: 0 },
            }
        }
    }

    /// The batch of a place, if it may have what is wanted and is there still.
    ///
    /// # Errors
    /// As of [`Reader::next`].
    pub fn load(&mut self, at: Cursor, wanted: &mut impl Wanted) -> io::Result<Option<Loaded>> {
        let is_open = self.cursor.segment == at.segment;
        self.cursor = at;
        let mut file = match self.file.take().filter(|_| is_open) {
            Some(mut file) => {
                file.seek(SeekFrom::Start(at.at))?;
                file
            }
            None => {
                let is_there = self.open()? && self.cursor == at;
                let Some(file) = self.file.take().filter(|_| is_there) else { return Ok(None) };
                file
            }
        };
        let unit = self.unit(&mut file, wanted)?;
        self.file = Some(file);
        Ok(match unit {
            Unit::Loaded(loaded) => Some(*loaded),
            _ => None,
        })
    }

    fn is_last(&self) -> io::Result<bool> {
        Ok(segments(&self.directory)?.last().is_none_or(|last| *last <= self.cursor.segment))
    }

    /// Opens the segment of the cursor, or the first one behind that is there.
    fn open(&mut self) -> io::Result<bool> {
        let there = segments(&self.directory)?;
        let Some(number) = there.into_iter().find(|number| *number >= self.cursor.segment) else {
            return Ok(false);
        };
        if number != self.cursor.segment {
            self.cursor = Cursor { segment: number, at: 0 };
        }
        let mut file = match scan::open(&self.directory.join(segment_name(number))) {
            // Removed a moment ago.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.cursor = Cursor { segment: number + 1, at: 0 };
                return Ok(true);
            }
            other => other?,
        };
        if self.cursor.at == 0 {
            self.bytes.clear();
            match frame::step(&mut file, &mut self.bytes)? {
                Step::Message { .. } => self.cursor.at = self.bytes.len() as u64,
                Step::Nothing | Step::Cut if self.is_last()? => return Ok(false),
                _ => return Err(wrong(number, "does not begin as a segment does")),
            }
        }
        file.seek(SeekFrom::Start(self.cursor.at))?;
        self.file = Some(file);
        Ok(true)
    }

    fn unit(&mut self, file: &mut File, wanted: &mut impl Wanted) -> io::Result<Unit> {
        self.bytes.clear();
        let number = self.cursor.segment;
        let Some(pool) = self.head(file)? else { return self.behind(file) };
        let message = root_as_message(&self.bytes[pool.metadata..pool.body]);
        let message = message.map_err(|_| wrong(number, "has a message that is none"))?;
        let label =
            Label::of(&message).ok_or_else(|| wrong(number, "has a batch without label"))?;
        let is_wanted = wanted.may_have(&label);
        let mut texts = None;
        if is_wanted {
            let dictionary = message.header_as_dictionary_batch().and_then(|of| of.data());
            let dictionary =
                dictionary.ok_or_else(|| wrong(number, "has a batch without texts"))?;
            let mut body = Vec::new();
            if file.take(pool.length).read_to_end(&mut body)? as u64 != pool.length {
                return Ok(Unit::Waits);
            }
            let read = frame::decode(dictionary, &body, schema::pool(), None);
            let read = read.map_err(|error| wrong(number, &error.to_string()))?;
            let read = read.column(0).as_string_opt::<i32>().cloned();
            texts = read.filter(|pool| wanted.may_have_of(pool));
        } else {
            skip(file, pool.length)?;
        }
        let start = self.bytes.len();
        let Some(columns) = self.head(file)? else { return Ok(Unit::Waits) };
        let bytes = (pool.body + columns.body - columns.metadata + 8) as u64;
        let bytes = bytes + pool.length + columns.length;
        let Some(pool) = texts else {
            skip(file, columns.length)?;
            if file.stream_position()? > file.metadata()?.len() {
                return Ok(Unit::Waits);
            }
            self.cursor.at += bytes;
            return Ok(Unit::Skipped(label));
        };
        let mut body = Vec::new();
        if file.take(columns.length).read_to_end(&mut body)? as u64 != columns.length {
            return Ok(Unit::Waits);
        }
        debug_assert_eq!(start + 8, columns.metadata);
        let message = root_as_message(&self.bytes[columns.metadata..columns.body]);
        let batch = message.ok().and_then(|message| message.header_as_record_batch());
        let batch = batch.ok_or_else(|| wrong(number, "has texts without a batch"))?;
        let asked = wanted.columns();
        let read = frame::decode(batch, &body, schema::stored(), asked.as_deref());
        let read = read.map_err(|error| wrong(number, &error.to_string()))?;
        if read.num_rows() as u64 != label.events {
            return Err(wrong(number, "has a batch that is not as long as it says"));
        }
        let mut columns = vec![None; COLUMNS];
        let places = asked.unwrap_or_else(|| (0..COLUMNS).collect());
        for (place, column) in places.into_iter().zip(read.columns()) {
            columns[place] = Some(column.clone());
        }
        let time = columns[0].as_deref();
        let time = time.and_then(|time| time.as_primitive_opt::<TimestampMicrosecondType>());
        // Where nothing was put together they are told as they came.
        let is_in_order =
            label.events < GROUPED.0 as u64 || time.is_none_or(|time| time.values().is_sorted());
        self.cursor.at += bytes;
        Ok(Unit::Loaded(Box::new(Loaded { label, pool, columns, is_in_order })))
    }

    /// A message without its body; `None` where no whole one is there.
    fn head(&mut self, file: &mut File) -> io::Result<Option<Head>> {
        let start = self.bytes.len();
        if file.take(8).read_to_end(&mut self.bytes)? < 8 {
            return Ok(None);
        }
        let length = self.bytes.get(start + 4..start + 8).and_then(|four| four.try_into().ok());
        let length = length.map_or(0, u32::from_le_bytes);
        if length == 0 || u64::from(length) > frame::LONGEST[0] {
            return Ok(None);
        }
        if file.take(length.into()).read_to_end(&mut self.bytes)? as u64 != u64::from(length) {
            return Ok(None);
        }
        let (metadata, body) = (start + 8, self.bytes.len());
        let message = root_as_message(&self.bytes[metadata..body]).ok();
        let of = |kind| matches!(kind, MessageHeader::DictionaryBatch | MessageHeader::RecordBatch);
        let message = message.filter(|message| of(message.header_type()));
        let length = message.and_then(|message| u64::try_from(message.bodyLength()).ok());
        Ok(length.filter(|length| *length <= frame::LONGEST[1]).map(|length| Head {
            metadata,
            body,
            length,
        }))
    }

    /// What it means that no whole message is there.
    fn behind(&self, file: &File) -> io::Result<Unit> {
        let is_end = self.bytes.get(..8) == Some(&frame::END[..]);
        let rest = file.metadata()?.len().saturating_sub(self.cursor.at);
        Ok(if is_end && rest == frame::END.len() as u64 { Unit::Ends } else { Unit::Waits })
    }
}

struct Head {
    metadata: usize,
    body: usize,
    length: u64,
}

enum Unit {
    Loaded(Box<Loaded>),
    Skipped(Label),
    /// Not whole yet.
    Waits,
    /// The segment's end.
    Ends,
}

fn skip(file: &mut File, bytes: u64) -> io::Result<()> {
    file.seek(SeekFrom::Current(i64::try_from(bytes).unwrap_or(i64::MAX))).map(drop)
}

fn wrong(segment: u64, what: &str) -> io::Error {
    let name = segment_name(segment);
    io::Error::new(io::ErrorKind::InvalidData, format!("{name} {what}; see `clawbox audit verify`"))
}

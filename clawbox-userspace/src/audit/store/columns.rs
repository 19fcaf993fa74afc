//! Rows on their way to the disk, column by column: a text is a place in the batch's pool of strings, which
//! is looked up once where the row before had the same.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_array::types::TimestampMicrosecondType;
use arrow_array::{
    ArrayRef, BooleanArray, Int32Array, PrimitiveArray, RecordBatch, StringArray, UInt32Array,
    UInt64Array,
};
use arrow_buffer::{NullBuffer, NullBufferBuilder, OffsetBuffer, ScalarBuffer};
use arrow_schema::ArrowError;

use super::schema::{self, NUMBERS, Number, TEXTS, Text};

/// No text.
const NONE: i32 = -1;

/// A batch may have so many bytes of texts: their places are numbers of 32 bits.
const POOL: usize = 64 << 20;

/// A text in the pool of the batch that is being made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place(i32);

/// Strings that are each there once.
#[derive(Default)]
struct Pool {
    places: HashMap<Box<str>, i32>,
    ends: Vec<i32>,
    bytes: Vec<u8>,
}

impl Pool {
    fn place(&mut self, text: &str) -> i32 {
        if let Some(place) = self.places.get(text) {
            return *place;
        }
        let place = i32::try_from(self.ends.len()).unwrap_or(NONE);
        let end = i32::try_from(self.bytes.len() + text.len());
        let (Ok(end), true) = (end, place != NONE && self.bytes.len() + text.len() <= POOL) else {
            return NONE;
        };
        self.bytes.extend_from_slice(text.as_bytes());
        self.ends.push(end);
        self.places.insert(text.into(), place);
        place
    }

    fn is(&self, place: i32, text: &str) -> bool {
        let Ok(at) = usize::try_from(place) else { return false };
        let start = at.checked_sub(1).and_then(|before| self.ends.get(before)).copied();
        let range = self.ends.get(at).map(|end| start.unwrap_or(0) as usize..*end as usize);
        range.and_then(|range| self.bytes.get(range)) == Some(text.as_bytes())
    }

    fn take(&mut self) -> StringArray {
        self.places.clear();
        let mut offsets = Vec::with_capacity(self.ends.len() + 1);
        offsets.push(0);
        offsets.append(&mut self.ends);
        let bytes = std::mem::take(&mut self.bytes);
        // SAFETY: the offsets go up, end with the bytes, and each was taken behind a whole string.
        unsafe {
            StringArray::new_unchecked(
                OffsetBuffer::new(ScalarBuffer::from(offsets)),
                bytes.into(),
                None,
            )
        }
    }
}

struct Numbers {
    values: Vec<u32>,
    present: NullBufferBuilder,
}

/// Rows of a batch that is being made.
pub struct Columns {
    pool: Pool,
    time: Vec<i64>,
    texts: [Vec<i32>; TEXTS],
    numbers: [Numbers; NUMBERS],
    count: Vec<u64>,
    let_through: Vec<bool>,
    /// Rows of a denial.
    denied: u64,
}

/// A batch, and what is said of it beside its columns.
pub struct Batch {
    /// The columns as they are stored.
    pub columns: RecordBatch,
    /// Their texts.
    pub pool: StringArray,
    /// Time of the earliest row, microseconds since 1970.
    pub from: i64,
    /// Time of the latest.
    pub to: i64,
    /// Denials among them.
    pub denied: u64,
}

impl Default for Columns {
    fn default() -> Self {
        let numbers = || Numbers { values: Vec::new(), present: NullBufferBuilder::new(0) };
        Self {
            pool: Pool::default(),
            time: Vec::new(),
            texts: std::array::from_fn(|_| Vec::new()),
            numbers: std::array::from_fn(|_| numbers()),
            count: Vec::new(),
            let_through: Vec::new(),
            denied: 0,
        }
    }
}

impl Columns {
    /// Rows so far.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.time.len()
    }

    /// Bytes of texts so far.
    #[must_use]
    pub fn pooled(&self) -> usize {
        self.pool.bytes.len()
    }

    /// Begins a row; what is not set until the next one is null, its count is one.
    pub fn begin(&mut self, micros: i64) {
        let before = self.time.len();
        self.time.push(micros);
        for column in &mut self.texts {
            // The row before is whole.
            column.resize(before, NONE);
        }
        for column in &mut self.numbers {
            pad(column, before);
        }
        self.count.push(1);
        self.let_through.push(false);
    }

    /// Sets a text of the row.
    pub fn text(&mut self, column: Text, text: &str) {
        let keys = &mut self.texts[column as usize];
        let place = match keys.last() {
            Some(last) if self.pool.is(*last, text) => *last,
            _ => self.pool.place(text),
        };
        keys.push(place);
        self.denied += u64::from(column == Text::Verdict && text == "deny");
    }

    /// Looks a text up for several rows of this batch.
    pub fn place(&mut self, text: &str) -> Place {
        Place(self.pool.place(text))
    }

    /// Sets a text that was looked up.
    pub fn placed(&mut self, column: Text, place: Place) {
        self.texts[column as usize].push(place.0);
    }

    /// Sets a number of the row.
    pub fn number(&mut self, column: Number, value: u32) {
        let column = &mut self.numbers[column as usize];
        column.values.push(value);
        column.present.append_non_null();
    }

    /// Says how many events the row stands for.
    pub fn count(&mut self, count: u64) {
        if let Some(last) = self.count.last_mut() {
            *last = count;
        }
    }

    /// Says that what was denied went on.
    pub fn let_through(&mut self) {
        if let Some(last) = self.let_through.last_mut() {
            *last = true;
        }
    }

    /// What is there as a batch, `None` where no row is; the next one begins.
    ///
    /// # Errors
    /// Columns of different lengths, which is a mistake of this program's.
    pub fn take(&mut self) -> Result<Option<Batch>, ArrowError> {
        let rows = self.rows();
        let (Some(from), Some(to)) = (self.time.iter().min(), self.time.iter().max()) else {
            return Ok(None);
        };
        let (from, to) = (*from, *to);
        let time: PrimitiveArray<TimestampMicrosecondType> = std::mem::take(&mut self.time).into();
        let mut columns: Vec<ArrayRef> = vec![Arc::new(time.with_timezone("UTC"))];
        for keys in &mut self.texts {
            keys.resize(rows, NONE);
            columns.push(Arc::new(texts(std::mem::take(keys))));
        }
        for numbers in &mut self.numbers {
            pad(numbers, rows);
            let nulls = numbers.present.finish();
            let values = std::mem::take(&mut numbers.values);
            columns.push(Arc::new(UInt32Array::try_new(values.into(), nulls)?));
        }
        columns.push(Arc::new(UInt64Array::from(std::mem::take(&mut self.count))));
        columns.push(Arc::new(BooleanArray::from(std::mem::take(&mut self.let_through))));
        let columns = RecordBatch::try_new(schema::stored(), columns)?;
        let denied = std::mem::take(&mut self.denied);
        Ok(Some(Batch { columns, pool: self.pool.take(), from, to, denied }))
    }
}

fn pad(column: &mut Numbers, rows: usize) {
    let missing = rows.saturating_sub(column.values.len());
    column.values.resize(rows, 0);
    column.present.append_n_nulls(missing);
}

/// Nulls are the first text's place, which compresses better than a number of their own.
fn texts(mut keys: Vec<i32>) -> Int32Array {
    if !keys.contains(&NONE) {
        return Int32Array::new(keys.into(), None);
    }
    let nulls: NullBuffer = keys.iter().map(|key| *key != NONE).collect::<Vec<bool>>().into();
    keys.iter_mut().filter(|key| **key == NONE).for_each(|key| *key = 0);
    Int32Array::new(keys.into(), Some(nulls))
}

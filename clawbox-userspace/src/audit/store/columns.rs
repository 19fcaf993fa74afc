//! Rows on their way to the disk, column by column: a text is a place in the batch's pool of strings, which
//! is looked up once where the row before had the same. A row that says what an earlier one said is a time
//! and that one's number, until the batch is taken.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_array::types::TimestampMicrosecondType;
use arrow_array::{
    ArrayRef, BooleanArray, Int32Array, PrimitiveArray, RecordBatch, StringArray, UInt32Array,
    UInt64Array,
};
use arrow_buffer::{BooleanBuffer, NullBufferBuilder, OffsetBuffer, ScalarBuffer};
use arrow_schema::ArrowError;

use super::numbers::Numbers as RingNumbers;
use super::schema::{self, NUMBERS, Number, TEXTS, Text};

/// No text.
const NONE: i32 = -1;

/// A batch may have so many bytes of texts: their places are numbers of 32 bits.
const POOL: usize = 64 << 20;

/// From so many rows on, and where so many are like each that is like none, those that are alike are put
/// together. Few rows stay as they came.
pub(super) const GROUPED: (usize, usize) = (4_096, 4);

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

    fn take(mut self) -> StringArray {
        let mut offsets = Vec::with_capacity(self.ends.len() + 1);
        offsets.push(0);
        offsets.append(&mut self.ends);
        let bytes = self.bytes;
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

/// A row of the batch that is being made, which others may be like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Like {
    batch: u64,
    row: u32,
}

/// Rows of a batch that is being made.
pub struct Columns {
    /// Which batch it is, of this process.
    batch: u64,
    pool: Pool,
    time: Vec<i64>,
    /// Of each row the one of the columns below that it is like, in the order of the rows.
    like: Vec<u32>,
    /// Rows of the columns below: those that are like no other.
    own: usize,
    texts: [Vec<i32>; TEXTS],
    numbers: [Numbers; NUMBERS],
    count: Vec<u64>,
    let_through: Vec<bool>,
    is_denied: Vec<bool>,
    /// Rows of a denial.
    denied: u64,
    /// Of which ring records its rows are.
    pub of_rings: RingNumbers,
    /// Of which load of the programs those are.
    pub load: u64,
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
    /// What its label says of the numbers of its rows.
    pub numbers: Vec<(&'static str, String)>,
}

impl Default for Columns {
    fn default() -> Self {
        let numbers = || Numbers { values: Vec::new(), present: NullBufferBuilder::new(0) };
        Self {
            batch: 0,
            pool: Pool::default(),
            time: Vec::new(),
            like: Vec::new(),
            own: 0,
            texts: std::array::from_fn(|_| Vec::new()),
            numbers: std::array::from_fn(|_| numbers()),
            count: Vec::new(),
            let_through: Vec::new(),
            is_denied: Vec::new(),
            denied: 0,
            of_rings: RingNumbers::default(),
            load: 0,
        }
    }
}

impl Columns {
    /// Rows so far.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.time.len()
    }

    /// Those that are like no other.
    #[must_use]
    pub fn own(&self) -> usize {
        self.own
    }

    /// Bytes of texts so far.
    #[must_use]
    pub fn pooled(&self) -> usize {
        self.pool.bytes.len()
    }

    /// Begins a row; what is not set until the next one is null, its count is one.
    pub fn begin(&mut self, micros: i64) {
        let before = self.own;
        self.time.push(micros);
        self.like.push(u32::try_from(before).unwrap_or(u32::MAX));
        self.own += 1;
        for column in &mut self.texts {
            // The row before is whole.
            column.resize(before, NONE);
        }
        for column in &mut self.numbers {
            pad(column, before);
        }
        self.count.push(1);
        self.let_through.push(false);
        self.is_denied.push(false);
    }

    /// The row that was begun last.
    #[must_use]
    pub fn last(&self) -> Option<Like> {
        let row = u32::try_from(self.own.checked_sub(1)?).ok()?;
        Some(Like { batch: self.batch, row })
    }

    /// Adds a row that differs from an earlier one by its time. False where that one is not of this batch.
    pub fn again(&mut self, like: Like, micros: i64) -> bool {
        if like.batch != self.batch {
            return false;
        }
        self.time.push(micros);
        self.like.push(like.row);
        self.denied += u64::from(self.is_denied[like.row as usize]);
        true
    }

    /// Sets a text of the row.
    pub fn text(&mut self, column: Text, text: &str) {
        let keys = &mut self.texts[column as usize];
        let place = match keys.last() {
            Some(last) if self.pool.is(*last, text) => *last,
            _ => self.pool.place(text),
        };
        keys.push(place);
        if column == Text::Verdict && text == "deny" {
            self.denied += 1;
            if let Some(last) = self.is_denied.last_mut() {
                *last = true;
            }
        }
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

    /// What is there, to be made a batch where nobody waits; the next one begins.
    #[must_use]
    pub fn take(&mut self) -> Self {
        let next = Self { batch: self.batch + 1, load: self.load, ..Self::default() };
        std::mem::replace(self, next)
    }

    /// Puts rows that are alike together, each kind in the order in which they came: of all columns but the
    /// times nearly nothing is left to be stored then.
    fn group(&mut self) {
        let rows = self.time.len();
        if rows < GROUPED.0 || rows < GROUPED.1 * self.own {
            return;
        }
        let mut places = vec![0; self.own + 1];
        for like in &self.like {
            places[*like as usize + 1] += 1;
        }
        for own in 0..self.own {
            places[own + 1] += places[own];
        }
        let (mut time, mut grouped) = (vec![0; rows], vec![0; rows]);
        for (like, micros) in self.like.iter().zip(&self.time) {
            let place = &mut places[*like as usize];
            (time[*place], grouped[*place]) = (*micros, *like);
            *place += 1;
        }
        (self.time, self.like) = (time, grouped);
    }

    /// The rows as a batch, `None` where there are none.
    ///
    /// # Errors
    /// Columns of different lengths, which is a mistake of this program's.
    pub fn into_batch(mut self) -> Result<Option<Batch>, ArrowError> {
        let (Some(from), Some(to)) = (self.time.iter().min(), self.time.iter().max()) else {
            return Ok(None);
        };
        let (from, to) = (*from, *to);
        self.group();
        let rows = Rows { own: self.own, like: &self.like };
        let time: PrimitiveArray<TimestampMicrosecondType> = self.time.into();
        let mut columns: Vec<ArrayRef> = vec![Arc::new(time.with_timezone("UTC"))];
        for mut keys in self.texts {
            keys.resize(self.own, NONE);
            columns.push(Arc::new(rows.texts(&keys)));
        }
        for mut numbers in self.numbers {
            pad(&mut numbers, self.own);
            let nulls = numbers.present.finish();
            let nulls = nulls.map(|nulls| rows.bits(&|own| nulls.is_valid(own)).into());
            let values = rows.all(&numbers.values);
            columns.push(Arc::new(UInt32Array::try_new(values.into(), nulls)?));
        }
        columns.push(Arc::new(UInt64Array::from(rows.all(&self.count))));
        let let_through = rows.bits(&|own| self.let_through[own]);
        columns.push(Arc::new(BooleanArray::new(let_through, None)));
        let columns = RecordBatch::try_new(schema::stored(), columns)?;
        let (pool, denied, numbers) =
            (self.pool.take(), self.denied, self.of_rings.pairs(self.load));
        Ok(Some(Batch { columns, pool, from, to, denied, numbers }))
    }
}

/// The rows of a batch, by those that are like no other.
struct Rows<'a> {
    own: usize,
    like: &'a [u32],
}

impl Rows<'_> {
    fn all<T: Copy + PartialEq>(&self, own: &[T]) -> Vec<T> {
        match own {
            _ if self.own == self.like.len() => own.to_vec(),
            [first, rest @ ..] if rest.iter().all(|value| value == first) => {
                vec![*first; self.like.len()]
            }
            _ => self.like.iter().map(|like| own[*like as usize]).collect(),
        }
    }

    fn bits(&self, of: &dyn Fn(usize) -> bool) -> BooleanBuffer {
        let own: Vec<bool> = (0..self.own).map(of).collect();
        let first = own.first().copied().unwrap_or_default();
        match (first, own.iter().all(|bit| *bit == first)) {
            (true, true) => BooleanBuffer::new_set(self.like.len()),
            (false, true) => BooleanBuffer::new_unset(self.like.len()),
            _ => BooleanBuffer::collect_bool(self.like.len(), |row| own[self.like[row] as usize]),
        }
    }

    /// Nulls are the first text's place, which compresses better than a number of their own.
    fn texts(&self, keys: &[i32]) -> Int32Array {
        let nulls = keys.contains(&NONE).then(|| self.bits(&|own| keys[own] != NONE).into());
        let keys: Vec<i32> = keys.iter().map(|key| (*key).max(0)).collect();
        Int32Array::new(self.all(&keys).into(), nulls)
    }
}

fn pad(column: &mut Numbers, rows: usize) {
    let missing = rows.saturating_sub(column.values.len());
    column.values.resize(rows, 0);
    column.present.append_n_nulls(missing);
}

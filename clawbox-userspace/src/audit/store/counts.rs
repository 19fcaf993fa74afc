//! Rows counted by what some of their columns have. Within a batch they are counted by numbers, and texts
//! are looked up once for each batch.

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::event;
use super::filter::{Field, Filter};
use super::read::{Loaded, Row};

/// Columns that can be counted by at one time.
pub const MOST: usize = 4;

type Key = [i64; MOST];

/// Rows, and the events that they stand for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Rows.
    pub rows: u64,
    /// Events.
    pub events: u64,
}

/// Counts by some columns.
pub struct Counts {
    by: Vec<Field>,
    all: HashMap<Vec<Value>, Count>,
}

impl Counts {
    /// By these; those beyond [`MOST`] are not counted by.
    #[must_use]
    pub fn by(fields: &[Field]) -> Self {
        Self { by: fields.iter().copied().take(MOST).collect(), all: HashMap::new() }
    }

    /// Counts the rows of a batch that are wanted.
    pub fn add(&mut self, batch: &Loaded, filter: &Filter) {
        let mut here: HashMap<Key, (usize, Count)> = HashMap::new();
        for row in filter.stored(batch) {
            let mut key = [0; MOST];
            for (place, field) in key.iter_mut().zip(&self.by) {
                *place = number(row, *field);
            }
            let (_, count) = here.entry(key).or_insert((row.at, Count::default()));
            count.rows += 1;
            count.events += row.count();
        }
        for (at, found) in here.into_values() {
            let row = Row { batch, at };
            let key = self.by.iter().map(|field| event::value(row, *field)).collect();
            let count = self.all.entry(key).or_default();
            count.rows += found.rows;
            count.events += found.events;
        }
    }

    /// How many different ones there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Whether nothing was counted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// The counts, the largest first.
    #[must_use]
    pub fn sorted(self) -> Vec<Map<String, Value>> {
        let mut all: Vec<(Vec<Value>, Count)> = self.all.into_iter().collect();
        all.sort_by_cached_key(|(key, count)| {
            let texts: Vec<String> = key.iter().map(Value::to_string).collect();
            (std::cmp::Reverse(count.rows), texts)
        });
        let object = |(key, count): (Vec<Value>, Count)| {
            let names = self.by.iter().map(|field| field.name().to_owned());
            let mut object: Map<String, Value> = names.zip(key).collect();
            object.insert("rows".to_owned(), count.rows.into());
            object.insert("events".to_owned(), count.events.into());
            object
        };
        all.into_iter().map(object).collect()
    }
}

/// A number that stands for what a row has, within its batch.
fn number(row: Row<'_>, field: Field) -> i64 {
    use arrow_array::Array;
    match field {
        Field::Time => row.micros(),
        Field::Count => i64::try_from(row.count()).unwrap_or(i64::MAX),
        Field::Number(number) => row.number(number).map_or(-1, i64::from),
        Field::Text(text) => match row.batch.places(text) {
            Some(places) if !places.is_null(row.at) => places.value(row.at).into(),
            _ => -1,
        },
    }
}

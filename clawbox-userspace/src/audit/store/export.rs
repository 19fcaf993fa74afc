//! Rows in the formats of others: JSON lines, CSV and Parquet.

use std::io::Write;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::Int32Type;
use arrow_array::{Array, ArrayRef, BooleanArray, DictionaryArray, RecordBatch};
use arrow_schema::{ArrowError, DataType, Field as Column, Schema, SchemaRef};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use serde_json::Value;

use super::event;
use super::filter::{Field, Filter};
use super::read::{Loaded, Row};
use super::schema;

/// The columns as readers see them.
#[must_use]
pub fn told() -> SchemaRef {
    let text = DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8));
    let stored = schema::stored();
    let columns = stored.fields().iter().map(|stored| match stored.data_type() {
        DataType::Int32 => Column::new(stored.name(), text.clone(), true),
        _ => stored.as_ref().clone(),
    });
    Arc::new(Schema::new(columns.collect::<Vec<_>>()))
}

/// Writes a Parquet file.
pub struct Parquet<W: Write + Send>(ArrowWriter<W>);

impl<W: Write + Send> Parquet<W> {
    /// Begins one.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn new(to: W) -> Result<Self, ParquetError> {
        let zstd = Compression::ZSTD(ZstdLevel::try_new(3)?);
        let properties = WriterProperties::builder().set_compression(zstd).build();
        Ok(Self(ArrowWriter::try_new(to, told(), Some(properties))?))
    }

    /// Adds the rows of a batch that are wanted.
    ///
    /// # Errors
    /// They cannot be written.
    pub fn add(&mut self, batch: &Loaded, filter: &Filter) -> Result<(), ParquetError> {
        let keep: BooleanArray = batch.rows().map(|row| Some(filter.matches(row))).collect();
        let batch = arrow_select::filter::filter_record_batch(&rows(batch)?, &keep)?;
        self.0.write(&batch)
    }

    /// Ends it.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn end(self) -> Result<(), ParquetError> {
        self.0.close().map(drop)
    }
}

fn rows(batch: &Loaded) -> Result<RecordBatch, ArrowError> {
    let pool: ArrayRef = Arc::new(batch.pool.clone());
    let columns = batch.columns().map(|(_, column)| match column.as_primitive_opt::<Int32Type>() {
        Some(places) if column.data_type() == &DataType::Int32 => {
            Ok(Arc::new(DictionaryArray::try_new(places.clone(), Arc::clone(&pool))?) as ArrayRef)
        }
        _ => Ok(Arc::clone(column)),
    });
    RecordBatch::try_new(told(), columns.collect::<Result<Vec<_>, ArrowError>>()?)
}

/// The headings of CSV.
pub fn headings() -> impl Iterator<Item = &'static str> {
    let middle = Field::all().map(Field::name);
    ["id", schema::TIME].into_iter().chain(middle).chain([schema::COUNT, schema::LET_THROUGH])
}

/// The fields of a row of CSV.
pub fn fields(row: Row<'_>) -> impl Iterator<Item = String> {
    let text = |value| match value {
        Value::Null => String::new(),
        Value::String(text) => text,
        other => other.to_string(),
    };
    let start = [row.id().to_string(), event::time_text(row.micros())];
    let middle = Field::all().map(move |field| text(event::value(row, field)));
    let end = [row.count().to_string(), row.let_through().to_string()];
    start.into_iter().chain(middle).chain(end)
}

//! Batches as messages of an Arrow IPC stream. A batch is two of them: the pool of its texts, which carries
//! the chain and what is in the batch, and its columns.

use std::io::{self, Read};

use arrow_array::{RecordBatch, StringArray};
use arrow_buffer::Buffer;
use arrow_ipc::writer::{DictionaryTracker, IpcDataGenerator, IpcWriteContext, IpcWriteOptions};
use arrow_ipc::{self as ipc, CompressionType, MessageHeader, MetadataVersion};
use arrow_schema::{ArrowError, SchemaRef};
use flatbuffers::{FlatBufferBuilder, ForwardsUOffset, UnionWIPOffset, Vector, WIPOffset};

use super::Head;
use super::columns::Batch;
use super::schema;

/// What ends a stream: a message without length.
pub const END: [u8; 8] = [0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0];

/// The id of the one dictionary.
const POOL: i64 = 0;

/// A message's metadata is no longer, and its body neither.
pub(super) const LONGEST: [u64; 2] = [1 << 20, 1 << 30];

/// What a batch says of itself, in the metadata of its first message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label {
    /// Which of its segment, from 0.
    pub number: u64,
    /// The batch before; before the first it is the stream's schema.
    pub before: Head,
    /// Number of its first event, over all segments.
    pub first: u64,
    /// Its events.
    pub events: u64,
    /// Denials among them.
    pub denied: u64,
    /// Time of the earliest, microseconds since 1970.
    pub from: i64,
    /// Time of the latest.
    pub to: i64,
}

impl Label {
    fn pairs(&self) -> Vec<(&'static str, String)> {
        vec![
            ("clawbox.batch", self.number.to_string()),
            ("clawbox.before", self.before.to_string()),
            ("clawbox.first", self.first.to_string()),
            ("clawbox.events", self.events.to_string()),
            ("clawbox.denied", self.denied.to_string()),
            ("clawbox.from", self.from.to_string()),
            ("clawbox.to", self.to.to_string()),
        ]
    }

    /// Of a batch's first message.
    #[must_use]
    pub fn of(message: &ipc::Message<'_>) -> Option<Self> {
        let pairs = message.custom_metadata()?;
        let value = |key: &str| pairs.iter().find(|pair| pair.key() == Some(key))?.value();
        Some(Self {
            number: value("clawbox.batch")?.parse().ok()?,
            before: Head::parse(value("clawbox.before")?)?,
            first: value("clawbox.first")?.parse().ok()?,
            events: value("clawbox.events")?.parse().ok()?,
            denied: value("clawbox.denied")?.parse().ok()?,
            from: value("clawbox.from")?.parse().ok()?,
            to: value("clawbox.to")?.parse().ok()?,
        })
    }
}

/// What a segment says of itself, in its schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Title {
    /// Its number.
    pub segment: u64,
    /// The last batch of the one before.
    pub before: Head,
}

impl Title {
    /// Of a stream's first message.
    #[must_use]
    pub fn of(message: &ipc::Message<'_>) -> Option<Self> {
        let pairs = message.header_as_schema()?.custom_metadata()?;
        let value = |key: &str| pairs.iter().find(|pair| pair.key() == Some(key))?.value();
        if value("clawbox.version")? != schema::VERSION {
            return None;
        }
        let segment = value("clawbox.segment")?.parse().ok()?;
        Some(Self { segment, before: Head::parse(value("clawbox.before")?)? })
    }
}

type Pairs<'a> = WIPOffset<Vector<'a, ForwardsUOffset<ipc::KeyValue<'a>>>>;

fn pairs<'a>(fbb: &mut FlatBufferBuilder<'a>, all: &[(&str, String)]) -> Pairs<'a> {
    let made: Vec<_> = all
        .iter()
        .map(|(key, value)| {
            let (key, value) = (fbb.create_string(key), fbb.create_string(value));
            let pair = ipc::KeyValueArgs { key: Some(key), value: Some(value) };
            ipc::KeyValue::create(fbb, &pair)
        })
        .collect();
    fbb.create_vector(&made)
}

fn finished(
    mut fbb: FlatBufferBuilder<'_>,
    kind: MessageHeader,
    header: WIPOffset<UnionWIPOffset>,
    body: usize,
    metadata: Option<Pairs<'_>>,
) -> Vec<u8> {
    let mut message = ipc::MessageBuilder::new(&mut fbb);
    message.add_version(MetadataVersion::V5);
    message.add_header_type(kind);
    message.add_header(header);
    message.add_bodyLength(i64::try_from(body).unwrap_or(i64::MAX));
    if let Some(metadata) = metadata {
        // The lifetimes are of the same buffer.
        message.add_custom_metadata(WIPOffset::new(metadata.value()));
    }
    let root = message.finish();
    fbb.finish(root, None);
    fbb.finished_data().to_vec()
}

/// A column that readers are told of.
fn field<'a>(
    fbb: &mut FlatBufferBuilder<'a>,
    stored: &arrow_schema::Field,
) -> WIPOffset<ipc::Field<'a>> {
    use arrow_schema::DataType;
    let name = fbb.create_string(stored.name());
    let children = fbb.create_vector::<WIPOffset<ipc::Field<'_>>>(&[]);
    let int = |fbb: &mut FlatBufferBuilder<'a>, bits, is_signed| {
        ipc::Int::create(fbb, &ipc::IntArgs { bitWidth: bits, is_signed })
    };
    let mut dictionary = None;
    let (kind, of) = match stored.data_type() {
        DataType::Int32 => {
            let index = int(fbb, 32, true);
            let text = ipc::DictionaryEncodingArgs {
                id: POOL,
                indexType: Some(index),
                ..Default::default()
            };
            dictionary = Some(ipc::DictionaryEncoding::create(fbb, &text));
            let text = ipc::Utf8::create(fbb, &ipc::Utf8Args {});
            (ipc::Type::Utf8, text.as_union_value())
        }
        DataType::UInt32 => (ipc::Type::Int, int(fbb, 32, false).as_union_value()),
        DataType::UInt64 => (ipc::Type::Int, int(fbb, 64, false).as_union_value()),
        DataType::Boolean => {
            (ipc::Type::Bool, ipc::Bool::create(fbb, &ipc::BoolArgs {}).as_union_value())
        }
        _ => {
            let zone = fbb.create_string("UTC");
            let unit = ipc::TimeUnit::MICROSECOND;
            let time = ipc::TimestampArgs { unit, timezone: Some(zone) };
            (ipc::Type::Timestamp, ipc::Timestamp::create(fbb, &time).as_union_value())
        }
    };
    let field = ipc::FieldArgs {
        name: Some(name),
        nullable: stored.is_nullable(),
        type_type: kind,
        type_: Some(of),
        dictionary,
        children: Some(children),
        custom_metadata: None,
    };
    ipc::Field::create(fbb, &field)
}

/// What a segment begins with.
#[must_use]
pub fn beginning(title: &Title) -> Vec<u8> {
    let mut fbb = FlatBufferBuilder::new();
    let stored = schema::stored();
    let fields: Vec<_> = stored.fields().iter().map(|stored| field(&mut fbb, stored)).collect();
    let fields = fbb.create_vector(&fields);
    let said = pairs(
        &mut fbb,
        &[
            ("clawbox.version", schema::VERSION.to_owned()),
            ("clawbox.segment", title.segment.to_string()),
            ("clawbox.before", title.before.to_string()),
        ],
    );
    let schema =
        ipc::SchemaArgs { fields: Some(fields), custom_metadata: Some(said), ..Default::default() };
    let schema = ipc::Schema::create(&mut fbb, &schema).as_union_value();
    let mut out = Vec::new();
    let message = finished(fbb, MessageHeader::Schema, schema, 0, None);
    frame(&message, &[], &mut out);
    out
}

/// A message with its length before it and its body behind it.
fn frame(metadata: &[u8], body: &[u8], out: &mut Vec<u8>) {
    let padded = metadata.len().next_multiple_of(8);
    out.extend_from_slice(&END[..4]);
    out.extend_from_slice(&u32::try_from(padded).unwrap_or(u32::MAX).to_le_bytes());
    out.extend_from_slice(metadata);
    out.resize(out.len() + padded - metadata.len(), 0);
    out.extend_from_slice(body);
    out.resize(out.len().next_multiple_of(8), 0);
}

/// Makes messages; what it needs for that is kept from one batch to the next.
#[derive(Default)]
pub struct Encoder {
    context: IpcWriteContext,
}

impl Encoder {
    /// A batch's bytes.
    ///
    /// # Errors
    /// It cannot be encoded, which is a mistake of this program's.
    pub fn batch(&mut self, batch: &Batch, label: &Label) -> Result<Vec<u8>, ArrowError> {
        let mut out = Vec::new();
        let (pool, body) = self.encode(&one_column(&batch.pool)?)?;
        frame(&pool_message(&pool, body.len(), label, &batch.numbers)?, &body, &mut out);
        let (columns, body) = self.encode(&batch.columns)?;
        frame(&columns, &body, &mut out);
        Ok(out)
    }

    fn encode(&mut self, batch: &RecordBatch) -> Result<(Vec<u8>, Vec<u8>), ArrowError> {
        let options = IpcWriteOptions::try_new(8, false, MetadataVersion::V5)?
            .try_with_compression(Some(CompressionType::ZSTD))?
            .try_with_compression_level(Some(1))?;
        // Nothing in it is a dictionary: texts are numbers here.
        let mut none = DictionaryTracker::new(false);
        let encoder = IpcDataGenerator::default();
        let (_, encoded) = encoder.encode(batch, &mut none, &options, &mut self.context)?;
        let mut body = encoded.arrow_data;
        body.resize(body.len().next_multiple_of(8), 0);
        Ok((encoded.ipc_message, body))
    }
}

fn one_column(pool: &StringArray) -> Result<RecordBatch, ArrowError> {
    RecordBatch::try_new(schema::pool(), vec![std::sync::Arc::new(pool.clone())])
}

/// The message of a record batch as that of a dictionary, with the label and what is said of numbers.
fn pool_message(
    encoded: &[u8],
    body: usize,
    label: &Label,
    numbers: &[(&'static str, String)],
) -> Result<Vec<u8>, ArrowError> {
    let wrong = || ArrowError::IpcError("an encoded batch that is none".to_owned());
    let message = ipc::root_as_message(encoded).map_err(|_| wrong())?;
    let batch = message.header_as_record_batch().ok_or_else(wrong)?;
    let mut fbb = FlatBufferBuilder::new();
    let nodes: Vec<_> = batch.nodes().ok_or_else(wrong)?.iter().copied().collect();
    let buffers: Vec<_> = batch.buffers().ok_or_else(wrong)?.iter().copied().collect();
    let (nodes, buffers) = (fbb.create_vector(&nodes), fbb.create_vector(&buffers));
    let compression = batch.compression().map(|compression| {
        let same =
            ipc::BodyCompressionArgs { codec: compression.codec(), method: compression.method() };
        ipc::BodyCompression::create(&mut fbb, &same)
    });
    let data = ipc::RecordBatchArgs {
        length: batch.length(),
        nodes: Some(nodes),
        buffers: Some(buffers),
        compression,
        ..Default::default()
    };
    let data = ipc::RecordBatch::create(&mut fbb, &data);
    let pool = ipc::DictionaryBatchArgs { id: POOL, data: Some(data), isDelta: false };
    let pool = ipc::DictionaryBatch::create(&mut fbb, &pool).as_union_value();
    let label = pairs(&mut fbb, &[label.pairs(), numbers.to_vec()].concat());
    Ok(finished(fbb, MessageHeader::DictionaryBatch, pool, body, Some(label)))
}

/// The first message of a batch's bytes, which has its label.
#[must_use]
pub fn first_message(bytes: &[u8]) -> Option<ipc::Message<'_>> {
    let length = u32::from_le_bytes(*bytes.get(4..)?.first_chunk()?);
    let end = usize::try_from(length).ok()?.checked_add(8)?;
    ipc::root_as_message(bytes.get(8..end)?).ok()
}

/// What stands at a place of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A message, so many bytes of metadata behind the length and of body behind that.
    Message {
        /// Where its metadata begins in what was read into.
        metadata: usize,
        /// Where its body does.
        body: usize,
    },
    /// The stream's end.
    End,
    /// The file ends, between two messages.
    Nothing,
    /// The file ends within a message.
    Cut,
    /// No message.
    Wrong,
}

/// Reads one message behind what is there already.
///
/// # Errors
/// The file cannot be read.
pub fn step(from: &mut impl Read, into: &mut Vec<u8>) -> io::Result<Step> {
    let start = into.len();
    match fill(from, into, 8)? {
        0 => return Ok(Step::Nothing),
        8 => {}
        _ => return Ok(Step::Cut),
    }
    let head = &into[start..];
    let length = u32::from_le_bytes([head[4], head[5], head[6], head[7]]);
    if head[..4] != END[..4] {
        return Ok(Step::Wrong);
    }
    if length == 0 {
        return Ok(Step::End);
    }
    if u64::from(length) > LONGEST[0] {
        return Ok(Step::Wrong);
    }
    let metadata = into.len();
    if fill(from, into, u64::from(length))? < u64::from(length) {
        return Ok(Step::Cut);
    }
    let body = into.len();
    let length = ipc::root_as_message(&into[metadata..body]).ok().map(|m| m.bodyLength());
    let length = length.and_then(|length| u64::try_from(length).ok());
    match length.filter(|length| *length <= LONGEST[1]) {
        None => Ok(Step::Wrong),
        Some(length) if fill(from, into, length)? < length => Ok(Step::Cut),
        Some(_) => Ok(Step::Message { metadata, body }),
    }
}

fn fill(from: &mut impl Read, into: &mut Vec<u8>, bytes: u64) -> io::Result<u64> {
    Ok(from.take(bytes).read_to_end(into)? as u64)
}

/// The batch of a message.
///
/// # Errors
/// It is none.
pub fn decode(
    batch: ipc::RecordBatch<'_>,
    body: &[u8],
    schema: SchemaRef,
    columns: Option<&[usize]>,
) -> Result<RecordBatch, ArrowError> {
    let (body, none) = (Buffer::from(body), std::collections::HashMap::new());
    ipc::reader::read_record_batch(&body, batch, schema, &none, columns, &MetadataVersion::V5)
}

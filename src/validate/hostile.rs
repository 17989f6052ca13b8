//! Looks through a file's own bookkeeping before a decoder believes it: a length that is not there would
//! be reserved in memory at once, and a process that cannot reserve ends.
//!
//! Knows the framing of the Arrow IPC stream and of Thrift's compact protocol (which Parquet footers and
//! page headers are written in), and nothing of what they mean.

use std::{
    collections::HashMap,
    io::{BufRead, Read, Seek, SeekFrom},
};

use arrow::ipc::{self, CompressionType, MessageHeader};

use super::limits::{Limits, too_many, too_much, unreadable};
use crate::{
    error::{Error, Result},
    spool::{Body, BodyReader},
};

/// What a decoder may hold at once, in bytes: one batch of an Arrow stream, its dictionaries, or one page of
/// each column of a Parquet file. Writers stay far below it.
const HELD: u64 = 512 << 20;

/// The longest footer of a Parquet file, and the longest header of a message of an Arrow stream, in bytes.
const LONGEST_BOOKKEEPING: u64 = 32 << 20;

/// The longest page header, in bytes: it may hold the smallest and the largest value.
const LONGEST_PAGE_HEADER: u64 = 1 << 20;

/// How much of a page's header is read at first; most are shorter.
const USUAL_PAGE_HEADER: u64 = 512;

/// Checks every message of an Arrow stream: flat columns and not too many, lengths inside the file, buffers
/// inside their body, and decompressed lengths within the limits.
///
/// # Errors
/// [`Error::ContractViolation`] or [`Error::TooLarge`].
pub fn check_arrow(body: &Body, limits: Limits) -> Result<()> {
    check_messages(body, limits, is_flat)
}

/// The same of a stream whose columns may also be lists of flat values, each of which takes room in a buffer.
///
/// # Errors
/// As [`check_arrow`].
pub fn check_arrow_with_lists(body: &Body, limits: Limits) -> Result<()> {
    check_messages(body, limits, |field| is_flat(field) || is_list(field))
}

fn is_flat(field: &ipc::Field<'_>) -> bool {
    field.children().is_none_or(|children| children.is_empty())
}

fn is_list(field: &ipc::Field<'_>) -> bool {
    use ipc::Type as T;
    let sized = [
        T::Bool,
        T::Int,
        T::FloatingPoint,
        T::Decimal,
        T::Date,
        T::Time,
        T::Timestamp,
        T::Utf8,
        T::LargeUtf8,
        T::Binary,
        T::LargeBinary,
    ];
    let one = field.children().filter(|children| children.len() == 1).map(|children| children.get(0));
    let fits = one.is_some_and(|element| is_flat(&element) && sized.contains(&element.type_type()));
    matches!(field.type_type(), T::List | T::LargeList) && fits
}

fn check_messages(body: &Body, limits: Limits, fits: impl Fn(&ipc::Field<'_>) -> bool) -> Result<()> {
    let mut reader = body.reader();
    let whole = body.len();
    let mut at = 0;
    let mut decoded = 0_u64;
    let mut messages = 0;
    let mut dictionaries = HashMap::new();
    while at < whole {
        let (length, start) = message_length(&mut reader, at)?;
        if length == 0 {
            return Ok(());
        }
        messages += 1;
        if messages > limits.pages {
            return Err(too_many("the number of batches", limits.pages));
        }
        let end = start.checked_add(length).filter(|end| *end <= whole).ok_or_else(unreadable)?;
        if length > LONGEST_BOOKKEEPING {
            return Err(unreadable());
        }
        let header = read(&mut reader, start, length)?;
        let message = ipc::root_as_message(&header).map_err(|_| unreadable())?;
        let inside = u64::try_from(message.bodyLength()).map_err(|_| unreadable())?;
        let next = end.checked_add(inside).filter(|next| *next <= whole).ok_or_else(unreadable)?;
        if inside > HELD {
            return Err(batch_too_large());
        }
        if let Some(schema) = message.header_as_schema() {
            let fields: Vec<_> = schema.fields().into_iter().flatten().collect();
            check_width(fields.len(), limits)?;
            if !fields.iter().all(&fits) {
                return Err(nested());
            }
        }
        let batch = match message.header_type() {
            MessageHeader::RecordBatch => message.header_as_record_batch(),
            MessageHeader::DictionaryBatch => message.header_as_dictionary_batch().and_then(|batch| batch.data()),
            _ => None,
        };
        if let Some(batch) = batch {
            let batch = batch_size(&batch, &mut reader, end..next)?;
            decoded = decoded.saturating_add(batch);
            if decoded > limits.decoded_bytes {
                return Err(too_much(limits.decoded_bytes));
            }
            if batch > HELD {
                return Err(batch_too_large());
            }
            if let Some(dictionary) = message.header_as_dictionary_batch() {
                let held: &mut u64 = dictionaries.entry(dictionary.id()).or_default();
                *held = if dictionary.isDelta() { held.saturating_add(batch) } else { batch };
                if dictionaries.values().fold(0_u64, |sum, held| sum.saturating_add(*held)) > HELD {
                    return Err(batch_too_large());
                }
            }
        }
        at = next;
    }
    Ok(())
}

/// What the buffers of a batch take once they are decompressed; they must lie in `place`.
fn batch_size(batch: &ipc::RecordBatch<'_>, reader: &mut BodyReader, place: std::ops::Range<u64>) -> Result<u64> {
    let compressed = batch
        .compression()
        .is_some_and(|c| c.codec() == CompressionType::ZSTD || c.codec() == CompressionType::LZ4_FRAME);
    let mut decoded = u64::try_from(batch.length()).map_err(|_| unreadable())?;
    for buffer in batch.buffers().into_iter().flatten() {
        let offset = u64::try_from(buffer.offset()).map_err(|_| unreadable())?;
        let length = u64::try_from(buffer.length()).map_err(|_| unreadable())?;
        let start = place.start.checked_add(offset).ok_or_else(unreadable)?;
        if start.checked_add(length).is_none_or(|end| end > place.end) {
            return Err(unreadable());
        }
        let unpacked = if compressed && length >= 8 {
            match i64::from_le_bytes(word(reader, start)?) {
                // Minus one says that this buffer was left as it is.
                -1 => length,
                said => u64::try_from(said).map_err(|_| unreadable())?,
            }
        } else {
            length
        };
        decoded = decoded.saturating_add(unpacked);
    }
    Ok(decoded)
}

/// The length of the message at `at` and where it begins, with or without the continuation mark.
fn message_length(reader: &mut BodyReader, at: u64) -> Result<(u64, u64)> {
    let (length, start) = match i32::from_le_bytes(word(reader, at)?) {
        -1 => (i32::from_le_bytes(word(reader, at + 4)?), at + 8),
        length => (length, at + 4),
    };
    Ok((u64::try_from(length).map_err(|_| unreadable())?, start))
}

/// Checks the footer of a Parquet file and the headers of its pages: flat columns and not too many, lists no
/// longer than the bytes that could hold them, and pages whose number and decompressed size, each and
/// together, stay within the limits.
///
/// # Errors
/// [`Error::ContractViolation`] or [`Error::TooLarge`].
pub fn check_parquet(body: &Body, limits: Limits) -> Result<()> {
    let mut reader = body.reader();
    let end = body.len().checked_sub(8).ok_or_else(unreadable)?;
    if word::<4>(&mut reader, end + 4)? != *b"PAR1" {
        return Err(unreadable());
    }
    let length = u64::from(u32::from_le_bytes(word(&mut reader, end)?));
    let start = end.checked_sub(length).ok_or_else(unreadable)?;
    if length > LONGEST_BOOKKEEPING {
        return Err(Error::TooLarge {
            what: "the file's own description",
            limit: format!("{} MiB; write fewer row groups", LONGEST_BOOKKEEPING >> 20),
        });
    }
    let footer = read(&mut reader, start, length)?;
    let metadata = Thrift::new(&footer).structure(0).ok_or_else(unreadable)?;
    check_columns(&metadata, limits)?;

    // FileMetaData.row_groups (4) > RowGroup.columns (1).
    let groups = metadata.list(4).count() as u64;
    if groups > limits.row_groups {
        return Err(too_many("the number of row groups", limits.row_groups));
    }
    let chunks: u64 = metadata.list(4).map(|group| group.list(1).count() as u64).sum();
    if chunks > limits.pages {
        return Err(too_many("the number of pages", limits.pages));
    }
    let mut walk = Walk { reader, whole: body.len(), limits, pages: chunks, decoded: 0 };
    for group in metadata.list(4) {
        let mut held = 0_u64;
        for chunk in group.list(1) {
            held = held.saturating_add(walk.chunk(chunk)?);
        }
        if held > HELD {
            return Err(Error::TooLarge {
                what: "a page of each column together",
                limit: format!("{} MiB; write the file in smaller pages", HELD >> 20),
            });
        }
    }
    Ok(())
}

/// Checks the schema, which Parquet keeps as a list of all elements with the root as its first.
fn check_columns(metadata: &Structure, limits: Limits) -> Result<()> {
    /// `FieldRepetitionType.REPEATED`.
    const REPEATED: i64 = 2;
    // FileMetaData.schema (2) > SchemaElement: repetition_type (3), num_children (5).
    let columns = || metadata.list(2).skip(1);
    check_width(columns().count(), limits)?;
    let flat = |element: &Structure| {
        element.whole(3) != Some(REPEATED) && element.whole(5).is_none_or(|children| children == 0)
    };
    if columns().all(flat) { Ok(()) } else { Err(nested()) }
}

fn check_width(columns: usize, limits: Limits) -> Result<()> {
    if columns > limits.columns {
        return Err(too_many("the number of columns", limits.columns as u64));
    }
    Ok(())
}

/// A walk over the pages of a Parquet file.
struct Walk {
    reader: BodyReader,
    whole: u64,
    limits: Limits,
    /// Pages so far, and chunks, since one without pages has its price too.
    pages: u64,
    /// What they decompress to.
    decoded: u64,
}

impl Walk {
    /// Walks the pages of a column chunk. Returns what reading it holds at once: its dictionary and its largest
    /// page.
    fn chunk(&mut self, chunk: &Structure) -> Result<u64> {
        /// `PageType.DICTIONARY_PAGE`.
        const DICTIONARY: i64 = 2;
        // ColumnChunk.meta_data (3) > num_values (5): where there are none, writers leave the offsets as they
        // happen to be.
        let Some(column) = chunk.member(3) else { return Ok(0) };
        if column.whole(5) == Some(0) {
            return Ok(0);
        }
        // data_page_offset (9), dictionary_page_offset (11), total_compressed_size (7).
        let (Some(data), Some(size)) = (column.whole(9), column.whole(7)) else { return Ok(0) };
        let first = column.whole(11).filter(|at| *at > 0 && *at < data).unwrap_or(data);
        let mut at = u64::try_from(first).map_err(|_| unreadable())?;
        let size = u64::try_from(size).map_err(|_| unreadable())?;
        let end = at.checked_add(size).filter(|end| *end <= self.whole).ok_or_else(unreadable)?;
        let (mut dictionary, mut largest) = (0, 0);
        while at < end {
            let (page, length) = self.page_header(at, end)?;
            // type (1), uncompressed_page_size (2), compressed_page_size (3).
            let (Some(unpacked), Some(packed)) = (page.whole(2), page.whole(3)) else { return Err(unreadable()) };
            let unpacked = u64::try_from(unpacked).map_err(|_| unreadable())?;
            let packed = u64::try_from(packed).map_err(|_| unreadable())?;
            self.decoded = self.decoded.saturating_add(unpacked);
            if self.decoded > self.limits.decoded_bytes {
                return Err(too_much(self.limits.decoded_bytes));
            }
            self.pages += 1;
            if self.pages > self.limits.pages {
                return Err(too_many("the number of pages", self.limits.pages));
            }
            match page.whole(1) {
                Some(DICTIONARY) => dictionary = unpacked.max(dictionary),
                _ => largest = unpacked.max(largest),
            }
            at = at.checked_add(length).and_then(|at| at.checked_add(packed)).ok_or_else(unreadable)?;
        }
        Ok(dictionary.saturating_add(largest))
    }

    /// The page header at `at`, and its length.
    fn page_header(&mut self, at: u64, end: u64) -> Result<(Structure, u64)> {
        let most = (end - at).min(LONGEST_PAGE_HEADER);
        let mut length = USUAL_PAGE_HEADER.min(most);
        loop {
            let bytes = read(&mut self.reader, at, length)?;
            let mut header = Thrift::new(&bytes);
            if let Some(page) = header.structure(0) {
                return Ok((page, header.at as u64));
            }
            if length == most {
                return Err(unreadable());
            }
            length = length.saturating_mul(8).min(most);
        }
    }
}

/// The `length` bytes at `at`, which callers have found to lie inside the body or to be few.
fn read(reader: &mut BodyReader, at: u64, length: u64) -> Result<Vec<u8>> {
    reader.seek(SeekFrom::Start(at)).map_err(Error::internal)?;
    let mut bytes = Vec::new();
    reader.by_ref().take(length).read_to_end(&mut bytes).map_err(Error::internal)?;
    Ok(bytes)
}

/// The bytes of one number at `at`.
fn word<const N: usize>(reader: &mut BodyReader, at: u64) -> Result<[u8; N]> {
    reader.seek(SeekFrom::Start(at)).map_err(Error::internal)?;
    if let Some(word) = reader.fill_buf().map_err(Error::internal)?.first_chunk() {
        return Ok(*word);
    }
    read(reader, at, N as u64)?.try_into().map_err(|_| unreadable())
}

fn nested() -> Error {
    Error::violation("the file has columns of nested values (structures, lists or maps); send flat columns")
}

fn batch_too_large() -> Error {
    Error::TooLarge {
        what: "a batch of the stream, or all its dictionaries",
        limit: format!("{} MiB; write the stream in smaller batches", HELD >> 20),
    }
}

/// A reader of Thrift's compact protocol that reserves nothing it has not seen.
struct Thrift<'a> {
    bytes: &'a [u8],
    at: usize,
    /// How many more values it takes.
    left: usize,
}

/// A value, as far as anybody here asks.
enum Value {
    Whole(i64),
    Structure(Structure),
    List(Vec<Structure>),
    Other,
}

/// The members of a structure by their ids.
#[derive(Default)]
struct Structure(Vec<(i64, Value)>);

impl Structure {
    fn find(&self, id: i64) -> Option<&Value> {
        self.0.iter().find(|(member, _)| *member == id).map(|(_, value)| value)
    }

    fn whole(&self, id: i64) -> Option<i64> {
        match self.find(id)? {
            Value::Whole(value) => Some(*value),
            _ => None,
        }
    }

    fn member(&self, id: i64) -> Option<&Self> {
        match self.find(id)? {
            Value::Structure(structure) => Some(structure),
            _ => None,
        }
    }

    fn list(&self, id: i64) -> impl Iterator<Item = &Self> {
        let items: &[Self] = match self.find(id) {
            Some(Value::List(items)) => items,
            _ => &[],
        };
        items.iter()
    }
}

/// Deeper than any footer.
const DEEPEST: usize = 32;

/// More values than any footer within its limits has; each takes some forty bytes here.
const MOST_VALUES: usize = 6_000_000;

impl<'a> Thrift<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0, left: MOST_VALUES }
    }

    fn byte(&mut self) -> Option<u8> {
        let byte = *self.bytes.get(self.at)?;
        self.at += 1;
        Some(byte)
    }

    fn skip(&mut self, count: usize) -> Option<()> {
        self.at = self.at.checked_add(count).filter(|at| *at <= self.bytes.len())?;
        Some(())
    }

    fn unsigned(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn signed(&mut self) -> Option<i64> {
        let value = self.unsigned()?;
        Some((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    fn structure(&mut self, depth: usize) -> Option<Structure> {
        if depth > DEEPEST {
            return None;
        }
        let mut members = Structure::default();
        let mut id = 0_i64;
        loop {
            let head = self.byte()?;
            if head == 0 {
                return Some(members);
            }
            id = match head >> 4 {
                0 => self.signed()?,
                step => id.checked_add(i64::from(step))?,
            };
            let value = self.value(head & 0x0f, depth, false)?;
            members.0.push((id, value));
        }
    }

    fn value(&mut self, kind: u8, depth: usize, in_list: bool) -> Option<Value> {
        if depth > DEEPEST {
            return None;
        }
        self.left = self.left.checked_sub(1)?;
        Some(match kind {
            // Truth stands in the kind of a member, and in a byte of its own within a list.
            1 | 2 => {
                if in_list {
                    self.byte()?;
                }
                Value::Other
            }
            3 => {
                self.byte()?;
                Value::Other
            }
            4..=6 => Value::Whole(self.signed()?),
            7 => {
                self.skip(8)?;
                Value::Other
            }
            8 => {
                let length = usize::try_from(self.unsigned()?).ok()?;
                self.skip(length)?;
                Value::Other
            }
            9 | 10 => {
                let head = self.byte()?;
                let count = match head >> 4 {
                    15 => usize::try_from(self.unsigned()?).ok()?,
                    count => usize::from(count),
                };
                // An item takes at least a byte.
                if count > self.bytes.len() - self.at {
                    return None;
                }
                let mut items = Vec::new();
                for _ in 0..count {
                    let item = self.value(head & 0x0f, depth + 1, true)?;
                    // Nobody asks for lists of anything else.
                    if let Value::Structure(structure) = item {
                        items.push(structure);
                    }
                }
                Value::List(items)
            }
            11 => {
                let count = usize::try_from(self.unsigned()?).ok()?;
                if count > self.bytes.len() - self.at {
                    return None;
                }
                if count > 0 {
                    let kinds = self.byte()?;
                    for _ in 0..count {
                        self.value(kinds >> 4, depth + 1, true)?;
                        self.value(kinds & 0x0f, depth + 1, true)?;
                    }
                }
                Value::Other
            }
            12 => Value::Structure(self.structure(depth + 1)?),
            _ => return None,
        })
    }
}

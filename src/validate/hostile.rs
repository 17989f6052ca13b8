//! Looks through a file's own bookkeeping before a decoder believes it: a length that is not there would
//! be reserved in memory at once, and a process that cannot reserve ends.
//!
//! Knows the framing of the Arrow IPC stream and of Thrift's compact protocol (which Parquet footers and
//! page headers are written in), and nothing of what they mean.

use arrow::ipc::{self, CompressionType, MessageHeader};

use super::file::{too_much, unreadable};
use crate::error::Result;

/// Checks every message of an Arrow stream: lengths inside the file, buffers inside their body, and
/// decompressed lengths within `most`.
pub fn check_arrow(bytes: &[u8], most: u64) -> Result<()> {
    let mut at = 0;
    let mut decoded = 0_u64;
    while at < bytes.len() {
        let Some((length, start)) = message_length(bytes, at) else { return Err(unreadable()) };
        if length == 0 {
            return Ok(());
        }
        let end = start.checked_add(length).filter(|end| *end <= bytes.len()).ok_or_else(unreadable)?;
        let message = ipc::root_as_message(&bytes[start..end]).map_err(|_| unreadable())?;
        let body = usize::try_from(message.bodyLength()).map_err(|_| unreadable())?;
        let next = end.checked_add(body).filter(|next| *next <= bytes.len()).ok_or_else(unreadable)?;
        let batch = match message.header_type() {
            MessageHeader::RecordBatch => message.header_as_record_batch(),
            MessageHeader::DictionaryBatch => message.header_as_dictionary_batch().and_then(|batch| batch.data()),
            _ => None,
        };
        if let Some(batch) = batch {
            let compressed = batch
                .compression()
                .is_some_and(|c| c.codec() == CompressionType::ZSTD || c.codec() == CompressionType::LZ4_FRAME);
            decoded = decoded.saturating_add(u64::try_from(batch.length()).map_err(|_| unreadable())?);
            for buffer in batch.buffers().into_iter().flatten() {
                let offset = usize::try_from(buffer.offset()).map_err(|_| unreadable())?;
                let length = usize::try_from(buffer.length()).map_err(|_| unreadable())?;
                let inside = offset.checked_add(length).is_some_and(|buffer_end| buffer_end <= body);
                if !inside {
                    return Err(unreadable());
                }
                let data = &bytes[end + offset..end + offset + length];
                decoded = decoded.saturating_add(match data.first_chunk::<8>() {
                    // Minus one says that this buffer was left as it is.
                    Some(prefix) if compressed => match i64::from_le_bytes(*prefix) {
                        -1 => length as u64,
                        said => u64::try_from(said).map_err(|_| unreadable())?,
                    },
                    _ => length as u64,
                });
                if decoded > most {
                    return Err(too_much(most));
                }
            }
        }
        at = next;
    }
    Ok(())
}

/// The length of the message at `at` and where it begins, with or without the continuation mark.
fn message_length(bytes: &[u8], at: usize) -> Option<(usize, usize)> {
    let word = |at: usize| Some(i32::from_le_bytes(*bytes.get(at..)?.first_chunk::<4>()?));
    match word(at)? {
        -1 => Some((usize::try_from(word(at + 4)?).ok()?, at + 8)),
        length => Some((usize::try_from(length).ok()?, at + 4)),
    }
}

/// Checks the footer of a Parquet file and the headers of its pages: lists no longer than the bytes that
/// could hold them, and pages that decompress to no more than `most` in all.
pub fn check_parquet(bytes: &[u8], most: u64) -> Result<()> {
    let Some((rest, b"PAR1")) = bytes.split_last_chunk::<4>() else { return Err(unreadable()) };
    let Some((rest, length)) = rest.split_last_chunk::<4>() else { return Err(unreadable()) };
    let length = u32::from_le_bytes(*length) as usize;
    let start = rest.len().checked_sub(length).ok_or_else(unreadable)?;
    let mut footer = Thrift { bytes: &rest[start..], at: 0 };
    let metadata = footer.structure(0).ok_or_else(unreadable)?;

    let mut decoded = 0_u64;
    // FileMetaData.row_groups (4) > RowGroup.columns (1) > ColumnChunk.meta_data (3).
    for group in metadata.list(4) {
        for chunk in group.list(1) {
            let Some(column) = chunk.member(3) else { continue };
            // num_values (5): where there are none, writers leave the offsets as they happen to be.
            if column.whole(5) == Some(0) {
                continue;
            }
            // data_page_offset (9), dictionary_page_offset (11), total_compressed_size (7).
            let (Some(data), Some(size)) = (column.whole(9), column.whole(7)) else { continue };
            let first = column.whole(11).filter(|at| *at > 0 && *at < data).unwrap_or(data);
            let first = usize::try_from(first).map_err(|_| unreadable())?;
            let size = usize::try_from(size).map_err(|_| unreadable())?;
            let end = first.checked_add(size).filter(|end| *end <= bytes.len()).ok_or_else(unreadable)?;
            let mut at = first;
            while at < end {
                let mut header = Thrift { bytes: &bytes[at..end], at: 0 };
                let page = header.structure(0).ok_or_else(unreadable)?;
                // uncompressed_page_size (2), compressed_page_size (3).
                let (Some(unpacked), Some(packed)) = (page.whole(2), page.whole(3)) else { return Err(unreadable()) };
                decoded = decoded.saturating_add(u64::try_from(unpacked).map_err(|_| unreadable())?);
                if decoded > most {
                    return Err(too_much(most));
                }
                let packed = usize::try_from(packed).map_err(|_| unreadable())?;
                at = at.checked_add(header.at).and_then(|at| at.checked_add(packed)).ok_or_else(unreadable)?;
            }
        }
    }
    Ok(())
}

/// A reader of Thrift's compact protocol that reserves nothing it has not seen.
struct Thrift<'a> {
    bytes: &'a [u8],
    at: usize,
}

/// A value, as far as anybody here asks.
enum Value {
    Whole(i64),
    Structure(Structure),
    List(Vec<Value>),
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
        let items = match self.find(id) {
            Some(Value::List(items)) => items.as_slice(),
            _ => &[],
        };
        items.iter().filter_map(|item| match item {
            Value::Structure(structure) => Some(structure),
            _ => None,
        })
    }
}

/// Deeper than any footer.
const DEEPEST: usize = 32;

impl Thrift<'_> {
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
                    items.push(self.value(head & 0x0f, depth + 1, true)?);
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

//! What one file may cost, and what is said of one that costs more or cannot be read. Knows no format.

use crate::error::Error;

/// Rows of a slice, the part of a file that is decoded and checked at a time.
pub(super) const SLICE: usize = 8_192;

/// What one file may cost.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes as sent.
    pub bytes: u64,
    /// Rows.
    pub rows: u64,
    /// Bytes once decompressed.
    pub decoded_bytes: u64,
    /// Columns.
    pub columns: usize,
    /// Row groups of a Parquet file.
    pub row_groups: u64,
    /// Pages of a Parquet file, or batches of an Arrow stream.
    pub pages: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            bytes: 4 << 30,
            rows: 20_000_000,
            decoded_bytes: 16 << 30,
            columns: 1_000,
            row_groups: 10_000,
            pages: 200_000,
        }
    }
}

/// What is said of bytes that are not what they were sent as, whichever byte is at fault.
pub(super) fn unreadable() -> Error {
    Error::violation("the file cannot be read as the format it was sent as; write it again and check that it is whole")
}

/// More than so many bytes once decompressed.
pub(super) fn too_much(bytes: u64) -> Error {
    Error::TooLarge { what: "the decompressed file", limit: format!("{} MiB; send it in parts", bytes >> 20) }
}

/// More of `what` in one file than so many.
pub(super) fn too_many(what: &'static str, limit: u64) -> Error {
    Error::TooLarge { what, limit: format!("{limit}; write the file with fewer, or send it in parts") }
}

//! A search of every byte below a folder for what must not be there. Knows nothing of why.
//!
//! Bytes are searched as they lie; of Parquet files, which are compressed, the binary columns are decoded too.

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File, Metadata},
    io::{self, Read},
    os::unix::fs::{FileExt, MetadataExt},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use arrow::array::{AsArray, RecordBatch};
use parquet::arrow::{ProjectionMask, arrow_reader::ParquetRecordBatchReaderBuilder};
use zeroize::Zeroizing;

use crate::{dataset::layout::WIDTH, hex::hex};

/// Bytes read at once.
const PIECE: usize = if cfg!(test) { 1 << 12 } else { 1 << 20 };

/// How the names of the database's files begin.
const DATABASE: &str = "metadata.sqlite";

/// Bytes by which places worth a closer look are found; nothing shorter can be searched for.
const HEAD: usize = 8;

/// Longest number of digits that is looked for as a whole number only. Shorter than the number of a resident,
/// such digits stand in the middle of times and checksums by chance.
const PHONE: usize = 13;

/// What is searched for. Has no printed form, and is wiped on drop.
pub struct Search {
    needles: Vec<Zeroizing<Vec<u8>>>,
    /// Which needles begin so.
    heads: HashMap<[u8; HEAD], Vec<usize>>,
    /// Spares nearly all places the look into `heads`.
    sieve: Vec<bool>,
    pseudonyms: HashSet<[u8; WIDTH]>,
    longest: usize,
    /// Texts too short to be told from chance, which are not searched for.
    pub too_short: usize,
}

/// What a search came to.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Searched {
    /// Bytes looked at, decoded ones not counted.
    pub bytes: u64,
    /// Files with something in them that is searched for, relative to the folder.
    pub found_in: Vec<String>,
}

impl Search {
    /// Searches for texts, as UTF-8 and as UTF-16, and for pseudonyms, as bytes and as hexadecimal digits.
    pub fn new<'a>(
        texts: impl IntoIterator<Item = &'a str>,
        pseudonyms: impl IntoIterator<Item = [u8; WIDTH]>,
    ) -> Self {
        let mut search = Self {
            needles: Vec::new(),
            heads: HashMap::new(),
            sieve: vec![false; 1 << 16],
            pseudonyms: pseudonyms.into_iter().collect(),
            longest: 0,
            too_short: 0,
        };
        for text in texts {
            if text.len() < HEAD {
                search.too_short += 1;
                continue;
            }
            search.add(text.as_bytes().to_vec());
            search.add(text.encode_utf16().flat_map(u16::to_le_bytes).collect());
        }
        for pseudonym in search.pseudonyms.clone() {
            search.add(pseudonym.to_vec());
            search.add(hex(&pseudonym).into_bytes());
        }
        search
    }

    fn add(&mut self, needle: Vec<u8>) {
        let Some(head) = needle.first_chunk::<HEAD>().copied() else { return };
        self.longest = self.longest.max(needle.len());
        self.sieve[place(head)] = true;
        self.heads.entry(head).or_default().push(self.needles.len());
        self.needles.push(Zeroizing::new(needle));
    }

    /// Searches every file below the folder, and the names of files and folders. What vanishes meanwhile is not
    /// there.
    ///
    /// # Errors
    /// Where a file that is there cannot be read.
    pub fn run(&self, folder: &Path) -> io::Result<Searched> {
        let mut searched = Searched::default();
        let mut open = vec![folder.to_owned()];
        while let Some(inside) = open.pop() {
            let Some(entries) = there(fs::read_dir(&inside))? else { continue };
            for entry in entries {
                let Some(entry) = there(entry)? else { continue };
                let path = entry.path();
                let name = path.strip_prefix(folder).unwrap_or(&path).to_string_lossy().into_owned();
                let mut found = self.occurs(name.as_bytes(), Edges { first: true, last: true });
                // Links are not followed: what they lead to lies elsewhere.
                match entry.file_type()? {
                    kind if kind.is_dir() => open.push(path),
                    kind if kind.is_file() => {
                        let Some((bytes, inside)) = there(self.search_file(&path))? else { continue };
                        searched.bytes += bytes;
                        found |= inside || self.occurs_decoded(&path);
                    }
                    _ => {}
                }
                if found {
                    searched.found_in.push(name);
                }
            }
        }
        searched.found_in.sort();
        Ok(searched)
    }

    /// How many bytes a file has, and whether something searched for is among them.
    fn search_file(&self, path: &Path) -> io::Result<(u64, bool)> {
        let mut file = Searching::open(path)?;
        let (mut total, mut found, mut first) = (0, false, true);
        let mut buffer: Vec<u8> = Vec::with_capacity(PIECE + self.longest);
        loop {
            let read = file.by_ref().take(PIECE as u64).read_to_end(&mut buffer)?;
            total += read as u64;
            found |= self.occurs(&buffer, Edges { first, last: read == 0 });
            if read == 0 {
                return Ok((total, found));
            }
            // What a piece ends in may go on in the next one; a byte more shows what it began after.
            let kept = buffer.len().saturating_sub(self.longest + 1);
            first &= kept == 0;
            buffer.drain(..kept);
        }
    }

    fn occurs(&self, bytes: &[u8], edges: Edges) -> bool {
        bytes.windows(HEAD).enumerate().any(|(at, head)| {
            let Some(head) = head.first_chunk::<HEAD>().copied().filter(|head| self.sieve[place(*head)]) else {
                return false;
            };
            let begun = self.heads.get(&head).into_iter().flatten();
            begun.filter_map(|needle| self.needles.get(*needle)).any(|needle| {
                bytes[at..].starts_with(needle) && (!is_number(needle) || edges.alone(bytes, at, at + needle.len()))
            })
        })
    }

    /// Whether a pseudonym is in a binary column of a Parquet file. A file that cannot be decoded, as one that
    /// is being written, was searched as it lies.
    fn occurs_decoded(&self, path: &Path) -> bool {
        if self.pseudonyms.is_empty() || path.extension().is_none_or(|end| end != "parquet") {
            return false;
        }
        let Ok(file) = File::open(path) else { return false };
        let Ok(reader) = ParquetRecordBatchReaderBuilder::try_new(file) else { return false };
        let binary = reader.schema().fields().iter().enumerate();
        let binary: Vec<_> = binary.filter(|(_, field)| field.data_type().is_binary()).map(|(at, _)| at).collect();
        let mask = ProjectionMask::roots(reader.parquet_schema(), binary);
        let Ok(batches) = reader.with_projection(mask).build() else { return false };
        batches.map_while(Result::ok).any(|batch| self.occurs_in(&batch))
    }

    fn occurs_in(&self, batch: &RecordBatch) -> bool {
        batch.columns().iter().any(|column| {
            let column = arrow::compute::cast(column, &arrow::datatypes::DataType::Binary);
            column.is_ok_and(|column| {
                column.as_binary::<i32>().iter().flatten().any(|bytes| self.pseudonyms.contains(bytes))
            })
        })
    }
}

/// Whether a piece of a file begins and ends where the file does.
#[derive(Clone, Copy)]
struct Edges {
    first: bool,
    last: bool,
}

impl Edges {
    /// Whether no digit stands before or after, nor a letter that some numbers are written with: in the middle of a
    /// batch id or a checksum such digits stand by chance. At an edge that the file does not have, the next or the last
    /// piece knows.
    fn alone(self, bytes: &[u8], from: usize, to: usize) -> bool {
        let before = match from.checked_sub(1).and_then(|at| bytes.get(at)) {
            Some(byte) => !byte.is_ascii_hexdigit(),
            None => self.first,
        };
        let after = match bytes.get(to) {
            Some(byte) => !byte.is_ascii_hexdigit(),
            None => self.last,
        };
        before && after
    }
}

/// A file that stays open, and the device and number it has there.
type Held = ((u64, u64), Arc<File>);

/// A file that is read from its start on.
struct Searching {
    file: Arc<File>,
    at: u64,
}

impl Searching {
    /// Opens a file. Those of the database stay open until the process ends: to close one, in whatever place, takes
    /// away all locks the process has on it (POSIX advisory locks; <https://www.sqlite.org/howtocorrupt.html>,
    /// section 2.2), and other processes would believe that nobody uses it.
    fn open(path: &Path) -> io::Result<Self> {
        static DATABASES: Mutex<Vec<Held>> = Mutex::new(Vec::new());
        if !path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(DATABASE)) {
            return Ok(Self { file: Arc::new(File::open(path)?), at: 0 });
        }
        let place = |file: &Metadata| (file.dev(), file.ino());
        let wanted = place(&fs::metadata(path)?);
        let mut databases = DATABASES.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, held)) = databases.iter().find(|(held, _)| *held == wanted) {
            return Ok(Self { file: Arc::clone(held), at: 0 });
        }
        // Whatever lies in that place by now, it stays open.
        let file = Arc::new(File::open(path)?);
        databases.push((place(&file.metadata()?), Arc::clone(&file)));
        Ok(Self { file, at: 0 })
    }
}

impl Read for Searching {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(buffer, self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

fn is_number(needle: &[u8]) -> bool {
    needle.len() <= PHONE && needle.iter().all(u8::is_ascii_digit)
}

fn place(head: [u8; HEAD]) -> usize {
    // Fibonacci hashing: the upper 16 bits of the product are well mixed.
    (u64::from_le_bytes(head).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48) as usize
}

fn there<T>(read: io::Result<T>) -> io::Result<Option<T>> {
    match read {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        read => read.map(Some),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, BinaryArray};
    use parquet::{arrow::ArrowWriter, basic::Compression, file::properties::WriterProperties};

    use super::*;

    const ID: &str = "42019119500110001X";
    const PHONE_NUMBER: &str = "14100000000";

    fn found(name: &str, content: &[u8]) -> Vec<String> {
        let folder = tempfile::tempdir().expect("folder");
        let file = folder.path().join("a").join(name);
        fs::create_dir_all(file.parent().expect("parent")).expect("folder");
        fs::write(&file, content).expect("file");
        let search = Search::new([ID, PHONE_NUMBER, "short"], [*b"sixteen bytes !!"]);
        assert_eq!(search.too_short, 1);
        let searched = search.run(folder.path()).expect("searched");
        assert_eq!(searched.bytes, content.len() as u64);
        searched.found_in
    }

    #[test]
    fn what_is_there_is_found_in_every_form() {
        let wide: Vec<u8> = ID.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let hex = hex(b"sixteen bytes !!");
        for needle in
            [ID.as_bytes(), &wide, hex.as_bytes(), b"sixteen bytes !!", PHONE_NUMBER.as_bytes(), b"x14100000000,"]
        {
            // Also across the seam of two pieces, and at both ends.
            for before in [0, 1, 100, PIECE - 20, PIECE - 11, PIECE - 10, PIECE - 1, PIECE] {
                for after in [0, 1, PIECE + 3] {
                    let content = [vec![b'.'; before], needle.to_vec(), vec![b'.'; after]].concat();
                    assert_eq!(found("f", &content), ["a/f"], "{before} {after}");
                }
            }
        }
        assert_eq!(found(&format!("x{ID}"), b""), [format!("a/x{ID}")]);
    }

    #[test]
    fn what_is_not_there_is_not_found() {
        let parted = [ID.as_bytes()[..9].to_vec(), b"-".to_vec(), ID.as_bytes()[9..].to_vec()].concat();
        for content in [&b""[..], b"short", &parted, &ID.as_bytes()[1..], b"sixteen bytes !?"] {
            assert!(found("f", content).is_empty());
        }
        // Digits inside a longer number are that number's, wherever a piece ends.
        for before in [0, 5, PIECE - 12, PIECE - 11, PIECE - 1] {
            for number in ["1410000000000", "914100000000", "a14100000000", "14100000000f"] {
                let content = [vec![b'.'; before], number.as_bytes().to_vec(), vec![b'.'; 40]].concat();
                assert!(found("f", &content).is_empty(), "{before} {number}");
            }
        }
    }

    #[test]
    fn compressed_pseudonyms_are_found() {
        let written = |value: [u8; WIDTH]| {
            // Many of them, so that a dictionary and its compression hide all but one.
            let values: ArrayRef = Arc::new(BinaryArray::from_iter_values(
                (0..2_000_u32).map(|row| if row == 1_999 { value } else { [(row % 7) as u8 + b'A'; WIDTH] }),
            ));
            let batch = RecordBatch::try_from_iter([("id_no", values)]).expect("rows");
            let layout = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
            let mut out = Vec::new();
            let mut writer = ArrowWriter::try_new(&mut out, batch.schema(), Some(layout)).expect("writer");
            writer.write(&batch).expect("written");
            writer.close().expect("closed");
            out
        };
        assert_eq!(found("f.parquet", &written(*b"sixteen bytes !!")), ["a/f.parquet"]);
        assert!(found("f.parquet", &written(*b"sixteen bytes !?")).is_empty());
        assert!(found("broken.parquet", b"PAR1 and no more").is_empty());
    }
}

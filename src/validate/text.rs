//! CSV as programs and spreadsheets write it: what its bytes mean, what parts its fields, and its rows as
//! columns of text.
//!
//! Whatever it finds out it finds from the file: senders seldom know. Guesses at nothing that could change a
//! value: a file that is valid in none of its encodings is refused.

use std::{
    io::{self, BufRead, ErrorKind, Read, Seek, SeekFrom},
    sync::Arc,
};

use arrow::{
    array::RecordBatch,
    csv::{
        ReaderBuilder,
        reader::{Decoder as Rows, Format},
    },
    datatypes::{DataType, Field, Schema, SchemaRef},
    error::ArrowError,
};
use encoding_rs::{Decoder, DecoderResult, Encoding, GB18030, UTF_16BE, UTF_16LE};

use super::limits::{Limits, SLICE, too_many, unreadable};
use crate::{
    dataset::Dataset,
    error::{Error, Result},
    spool::{Body, BodyReader},
};

/// What may part the fields of a line, the commonest first.
const DELIMITERS: [u8; 4] = *b",;\t|";

/// The mark some programs begin UTF-8 with.
const UTF8_MARK: [u8; 3] = [0xef, 0xbb, 0xbf];

/// The longest header line, in bytes of UTF-8.
const LONGEST_HEADER: u64 = 128 << 10;

/// What the text of one slice of rows may take, in bytes. More is a quote left open, or worse.
const LONGEST_SLICE: u64 = 256 << 20;

/// Bytes of text parsed at a time.
const PIECE: usize = 64 << 10;

/// The rows of a CSV file, slice by slice, every column as text.
pub struct Slices {
    schema: SchemaRef,
    text: Box<dyn BufRead + Send>,
    rows: Rows,
}

/// Finds out how a file is written and reads its header line.
///
/// # Errors
/// [`Error::ContractViolation`] where it is no text, [`Error::TooLarge`] where it has too many columns.
pub fn open(body: &Body, dataset: &Dataset, limits: Limits) -> Result<Slices> {
    let writing = Writing::of(body)?;
    let head = head(&mut writing.reader(body)?)?;
    let (delimiter, names) = header(&head, dataset)?;
    if names.len() > limits.columns {
        return Err(too_many("the number of columns", limits.columns as u64));
    }
    let fields: Vec<_> = names.into_iter().map(|name| Field::new(name, DataType::Utf8, true)).collect();
    let schema: SchemaRef = Arc::new(Schema::new(fields));
    let rows = ReaderBuilder::new(Arc::clone(&schema))
        .with_header(true)
        .with_delimiter(delimiter)
        .with_batch_size(SLICE)
        .build_decoder();
    Ok(Slices { schema, text: writing.reader(body)?, rows })
}

impl Slices {
    /// The columns by their names, all of them text.
    pub fn schema(&self) -> &Schema {
        &self.schema
    }

    fn slice(&mut self) -> Result<Option<RecordBatch>> {
        let mut taken = 0;
        loop {
            let text = self.text.fill_buf().map_err(|_| unreadable())?;
            let piece = &text[..text.len().min(PIECE)];
            let parsed = self.rows.decode(piece).map_err(|error| unparsable(&error))?;
            self.text.consume(parsed);
            taken += parsed as u64;
            if taken > LONGEST_SLICE {
                return Err(Error::TooLarge {
                    what: "the text of a few rows",
                    limit: format!("{} MiB; look for a quote that is left open", LONGEST_SLICE >> 20),
                });
            }
            if parsed == 0 || self.rows.capacity() == 0 {
                break;
            }
        }
        self.rows.flush().map_err(|error| unparsable(&error))
    }
}

impl Iterator for Slices {
    type Item = Result<RecordBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        self.slice().transpose()
    }
}

fn unparsable(error: &ArrowError) -> Error {
    let ArrowError::CsvError(text) = error else { return unreadable() };
    let Some(rest) = text.strip_prefix("incorrect number of fields") else { return unreadable() };
    // Arrow counts rows from the header line on, and calls them lines.
    let digits = rest.strip_prefix(" for line ").and_then(|rest| rest.split(',').next());
    let row = digits.and_then(|digits| digits.parse::<u64>().ok()).map_or_else(
        || "a row".to_owned(),
        |line| format!("line {line} (empty lines and breaks inside of quotes not counted)"),
    );
    Error::violation(format!(
        "{row} has more or fewer fields than the header line; look for delimiters and quotes inside of values"
    ))
}

/// How the characters of a file are written.
#[derive(Debug, Clone, Copy)]
enum Writing {
    /// UTF-8 from this byte on.
    Utf8(u64),
    /// Something to be turned into it.
    Other(&'static Encoding),
}

impl Writing {
    /// By its byte order mark where it has one, else UTF-8 where it is that, else GB18030, which spreadsheets
    /// on Chinese systems write. Reads the file once, or twice, and keeps nothing.
    fn of(body: &Body) -> Result<Self> {
        let start = body.read_at(0, UTF8_MARK.len()).map_err(Error::internal)?;
        let writing = match &start[..] {
            start if start == UTF8_MARK => Self::Utf8(UTF8_MARK.len() as u64),
            [0xff, 0xfe, ..] => Self::Other(UTF_16LE),
            [0xfe, 0xff, ..] => Self::Other(UTF_16BE),
            _ if is_utf8(body.reader()).map_err(Error::internal)? => return Ok(Self::Utf8(0)),
            _ => Self::Other(GB18030),
        };
        let valid = match writing {
            Self::Utf8(_) => is_utf8(body.reader()).map_err(Error::internal)?,
            Self::Other(encoding) => is_valid(&mut Decoded::new(body, encoding))?,
        };
        if valid { Ok(writing) } else { Err(Error::violation("the text is not UTF-8; save it as UTF-8")) }
    }

    /// The text from its beginning, in UTF-8.
    fn reader(self, body: &Body) -> Result<Box<dyn BufRead + Send>> {
        match self {
            Self::Utf8(start) => {
                let mut reader = body.reader();
                reader.seek(SeekFrom::Start(start)).map_err(Error::internal)?;
                Ok(Box::new(reader))
            }
            Self::Other(encoding) => Ok(Box::new(Decoded::new(body, encoding))),
        }
    }
}

fn is_utf8(mut text: impl BufRead) -> io::Result<bool> {
    // The beginning of a character that the next bytes end.
    let mut begun = Vec::new();
    loop {
        let bytes = text.fill_buf()?;
        if bytes.is_empty() {
            return Ok(begun.is_empty());
        }
        let length = bytes.len();
        let mut rest = bytes;
        while let (false, Some((next, others))) = (begun.is_empty(), rest.split_first()) {
            begun.push(*next);
            rest = others;
            match std::str::from_utf8(&begun) {
                Ok(_) => begun.clear(),
                Err(error) if error.error_len().is_some() => return Ok(false),
                Err(_) => {}
            }
        }
        if let Err(error) = std::str::from_utf8(rest) {
            if error.error_len().is_some() {
                return Ok(false);
            }
            begun.extend_from_slice(&rest[error.valid_up_to()..]);
        }
        text.consume(length);
    }
}

fn is_valid(text: &mut Decoded) -> Result<bool> {
    loop {
        match text.fill_buf().map(<[u8]>::len) {
            Ok(0) => return Ok(true),
            Ok(length) => text.consume(length),
            Err(_) if text.malformed => return Ok(false),
            Err(error) => return Err(Error::internal(error)),
        }
    }
}

/// A body in another encoding, as UTF-8.
struct Decoded {
    source: BodyReader,
    decoder: Decoder,
    text: Box<[u8]>,
    /// What of `text` is not yet taken.
    start: usize,
    end: usize,
    over: bool,
    malformed: bool,
}

impl Decoded {
    fn new(body: &Body, encoding: &'static Encoding) -> Self {
        Self {
            source: body.reader(),
            decoder: encoding.new_decoder_with_bom_removal(),
            text: vec![0; PIECE].into(),
            start: 0,
            end: 0,
            over: false,
            malformed: false,
        }
    }
}

impl BufRead for Decoded {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.start == self.end && !self.over {
            let bytes = self.source.fill_buf()?;
            let last = bytes.is_empty();
            let (result, read, written) = self.decoder.decode_to_utf8_without_replacement(bytes, &mut self.text, last);
            self.source.consume(read);
            (self.start, self.end) = (0, written);
            match result {
                DecoderResult::Malformed(..) => {
                    self.malformed = true;
                    return Err(io::Error::new(ErrorKind::InvalidData, "bytes that are no character"));
                }
                DecoderResult::InputEmpty => self.over = last,
                DecoderResult::OutputFull => {}
            }
        }
        Ok(&self.text[self.start..self.end])
    }

    fn consume(&mut self, amount: usize) {
        self.start = (self.start + amount).min(self.end);
    }
}

impl Read for Decoded {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let text = self.fill_buf()?;
        let length = text.len().min(out.len());
        out[..length].copy_from_slice(&text[..length]);
        self.consume(length);
        Ok(length)
    }
}

/// The beginning of a text, with at least its first line.
fn head(text: &mut impl BufRead) -> Result<Vec<u8>> {
    let mut head = Vec::new();
    text.take(LONGEST_HEADER).read_to_end(&mut head).map_err(|_| unreadable())?;
    if head.len() as u64 == LONGEST_HEADER {
        // Not in the middle of a character.
        let end = head.iter().rposition(|byte| matches!(byte, b'\n' | b'\r')).ok_or_else(|| Error::TooLarge {
            what: "the header line",
            limit: format!("{} KiB; send the field names of the contract only", LONGEST_HEADER >> 10),
        })?;
        head.truncate(end + 1);
    }
    Ok(head)
}

/// What parts the fields, and the names it makes of the header line: the delimiter that makes the most names
/// the contract knows.
fn header(head: &[u8], dataset: &Dataset) -> Result<(u8, Vec<String>)> {
    let mut best: Option<(usize, u8, Vec<String>)> = None;
    for delimiter in DELIMITERS {
        let (line, _) = Format::default()
            .with_header(true)
            .with_delimiter(delimiter)
            .infer_schema(head, Some(0))
            .map_err(|_| unreadable())?;
        let names: Vec<String> = line.fields().iter().map(|field| plain_name(field.name())).collect();
        let known = names.iter().filter(|name| dataset.field(name).is_some()).count();
        if best.as_ref().is_none_or(|(most, ..)| known > *most) {
            best = Some((known, delimiter, names));
        }
    }
    best.map(|(_, delimiter, names)| (delimiter, names)).ok_or_else(unreadable)
}

fn plain_name(name: &str) -> String {
    name.trim_matches(|c: char| c.is_whitespace() || c == '\u{feff}').to_owned()
}

#[cfg(test)]
pub(super) mod tests {
    use std::path::Path;

    use arrow::array::AsArray;

    use super::*;
    use crate::{dataset::contract, spool::Spool};

    /// Two fields of text, `place` and `kind`.
    pub(in super::super) fn dataset() -> Dataset {
        let text = "apiVersion: v3.1.0\nkind: DataContract\nid: lab.samples\nname: samples\nversion: 1.0.0\n\
                    status: active\nschema:\n  - name: samples\n    properties:\n\
                    \x20     - {name: place, logicalType: string, physicalType: string}\n\
                    \x20     - {name: kind, logicalType: string, physicalType: string}\n";
        contract::parse(Path::new("lab.samples.odcs.yaml"), text).unwrap()
    }

    fn rows_of(body: &Body) -> Result<Vec<Vec<String>>> {
        let slices = open(body, &dataset(), Limits::default())?;
        let names = slices.schema().fields().iter().map(|field| field.name().clone());
        let mut rows = vec![names.collect::<Vec<_>>()];
        for slice in slices {
            let slice = slice?;
            for row in 0..slice.num_rows() {
                let values = slice.columns().iter().map(|column| column.as_string::<i32>().value(row).to_owned());
                rows.push(values.collect());
            }
        }
        Ok(rows)
    }

    fn rows(bytes: impl Into<Vec<u8>>) -> Vec<Vec<String>> {
        rows_of(&Body::from(bytes.into())).unwrap()
    }

    fn refusal(bytes: impl Into<Vec<u8>>) -> String {
        rows_of(&Body::from(bytes.into())).unwrap_err().to_string()
    }

    const TEXT: &str = "place,kind\r\n武汉,血\r\n汉口,咽\r\n";

    fn expected() -> Vec<Vec<String>> {
        [["place", "kind"], ["武汉", "血"], ["汉口", "咽"]].map(|row| row.map(str::to_owned).to_vec()).to_vec()
    }

    fn utf16(text: &str, bytes: impl Fn(u16) -> [u8; 2]) -> Vec<u8> {
        std::iter::once('\u{feff}').chain(text.chars()).collect::<String>().encode_utf16().flat_map(bytes).collect()
    }

    #[test]
    fn every_encoding_gives_the_same_rows() {
        assert_eq!(rows(TEXT), expected());
        assert_eq!(rows(format!("\u{feff}{TEXT}")), expected());
        let (chinese, _, lossy) = GB18030.encode(TEXT);
        assert!(!lossy && std::str::from_utf8(&chinese).is_err());
        assert_eq!(rows(chinese.into_owned()), expected());
        assert_eq!(rows(utf16(TEXT, u16::to_le_bytes)), expected());
        assert_eq!(rows(utf16(TEXT, u16::to_be_bytes)), expected());
    }

    #[test]
    fn characters_may_lie_across_pieces_and_segments() {
        let folder = tempfile::tempdir().unwrap();
        let spool = Spool::open(folder.path(), 0).unwrap();
        let text = format!("place,kind\n{}", "x武汉三镇,𠮷血\n".repeat(20_000));
        let body = |bytes: &[u8]| {
            let mut draft = spool.draft();
            draft.write(bytes).unwrap();
            draft.finish().unwrap()
        };
        let plain = rows_of(&body(text.as_bytes())).unwrap();
        assert_eq!(plain.len(), 20_001);
        assert!(plain[1..].iter().all(|row| row == &["x武汉三镇", "𠮷血"]));
        assert_eq!(rows_of(&body(&GB18030.encode(&text).0)).unwrap(), plain);
        assert_eq!(rows_of(&body(&utf16(&text, u16::to_le_bytes))).unwrap(), plain);
    }

    #[test]
    fn what_is_in_no_encoding_is_refused() {
        let why = "the text is not UTF-8; save it as UTF-8";
        assert_eq!(refusal([0xff_u8, 0xfe, 0x00]), why);
        assert_eq!(refusal(b"place,kind\n\xff\xff,x\n"), why);
        // A mark that promises UTF-8, and half a character at the end.
        assert_eq!(refusal(b"\xef\xbb\xbfplace,kind\n\xce\xe4,x\n"), why);
        assert_eq!(refusal(b"\xef\xbb\xbfplace,kind\nx,\xe6\xb1"), why);
    }

    #[test]
    fn delimiters_are_found_by_the_names_the_contract_knows() {
        for delimiter in [",", ";", "\t", "|"] {
            assert_eq!(rows(TEXT.replace(',', delimiter)), expected(), "{delimiter:?}");
        }
        assert_eq!(rows("\"place\";\"kind\"\n\"a;b,c\";\"say \"\"x\"\"\nagain\"\n")[1], ["a;b,c", "say \"x\"\nagain"]);
        // A full-width comma is a character like any other.
        assert_eq!(rows("place，kind\nx\n")[0], ["place，kind"]);
        assert_eq!(rows("Place, kind \nx,y\n")[0], ["Place", "kind"]);
    }

    #[test]
    fn what_cannot_be_parted_is_refused_with_a_word_on_why() {
        for (text, line) in [
            ("place,kind\nx,y,z\n".to_owned(), 2),
            ("place,kind\n\n\"a\nb\",c\nsecret\n".to_owned(), 3),
            (format!("place,kind\n{}secret,y,z\n", "x,y\n".repeat(2 * SLICE)), 2 + 2 * SLICE),
        ] {
            let why = refusal(text);
            let expected =
                format!("line {line} (empty lines and breaks inside of quotes not counted) has more or fewer fields");
            assert!(why.starts_with(&expected) && !why.contains("secret"), "{why}");
        }
        assert!(refusal("x".repeat(200 << 10)).starts_with("the header line is larger than 128 KiB"));
        assert!(refusal("place,".repeat(1_001)).starts_with("the number of columns is larger than 1000"));
    }

    #[test]
    fn utf8_is_told_from_its_imitations() {
        for (bytes, expected) in [
            (&b""[..], true),
            ("é武𠮷".as_bytes(), true),
            (&b"\xed\xa0\x80"[..], false),
            (&b"\xc0\x80"[..], false),
            (&b"x\xf0\xa0\xae"[..], false),
        ] {
            // In one piece, and byte by byte.
            assert_eq!(is_utf8(bytes).unwrap(), expected);
            assert_eq!(is_utf8(io::BufReader::with_capacity(1, bytes)).unwrap(), expected);
        }
    }
}

//! Answers in five formats: JSON, NDJSON, CSV, Arrow stream and Parquet. Every format carries the same
//! facts about protection, in the body, the headers or the schema.
//!
//! An answer is written in chunks, each when its reader has taken the one before, so that it is never in memory twice.
//! What has no written form is found before the first byte.

use std::{
    collections::{HashMap, VecDeque},
    fmt::Write as _,
    io,
    ops::RangeInclusive,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use arrow::{
    array::{Array, AsArray, RecordBatch, StringArray, StringViewArray},
    csv::{self, WriterBuilder},
    datatypes::{DataType, Date32Type, Float32Type, Float64Type, Schema, TimeUnit, TimestampMicrosecondType},
    ipc::writer::StreamWriter,
    util::display::{ArrayFormatter, FormatOptions, ValueFormatter},
};
use bytes::Bytes;
use parquet::arrow::ArrowWriter;
use serde::Serialize;
use serde_json::json;

use crate::{
    disclose::Protection,
    error::{Error, Result},
    hub::{Answered, Room},
};

/// How an answer is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AnswerFormat {
    /// One document with columns, rows and facts.
    Json,
    /// One object a row.
    Ndjson,
    /// Comma-separated with a header line.
    Csv,
    /// Arrow IPC stream.
    Arrow,
    /// Parquet file.
    Parquet,
}

impl AnswerFormat {
    /// By an `Accept` header: the first type named that the hub speaks; JSON where any will do.
    ///
    /// # Errors
    /// [`Error::UnsupportedMediaType`] where none fits.
    pub fn from_accept(accept: Option<&str>) -> Result<Self> {
        let Some(accept) = accept.filter(|accept| !accept.trim().is_empty()) else { return Ok(Self::Json) };
        for part in accept.split(',') {
            let kind = part.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
            return Ok(match kind.as_str() {
                "application/json" | "*/*" | "application/*" => Self::Json,
                "application/x-ndjson" => Self::Ndjson,
                "text/csv" | "text/*" => Self::Csv,
                "application/vnd.apache.arrow.stream" => Self::Arrow,
                "application/vnd.apache.parquet" => Self::Parquet,
                _ => continue,
            });
        }
        Err(Error::UnsupportedMediaType(
            "the hub answers in application/json, application/x-ndjson, text/csv, \
             application/vnd.apache.arrow.stream and application/vnd.apache.parquet"
                .into(),
        ))
    }

    /// Its media type.
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Ndjson => "application/x-ndjson",
            Self::Csv => "text/csv; charset=utf-8",
            Self::Arrow => "application/vnd.apache.arrow.stream",
            Self::Parquet => "application/vnd.apache.parquet",
        }
    }
}

/// Bytes that a chunk of text or Arrow has at least, but for the last: fewer would cost a write each.
const CHUNK: usize = 64 << 10;

/// Rows that are turned into text at once.
const SLICE: usize = 512;

/// Bytes a row group of Parquet has at most, about: until it is full it waits in memory.
const ROW_GROUP: usize = 8 << 20;

/// An answer on its way out, chunk by chunk.
pub struct Chunks {
    writer: Writer,
    waiting: VecDeque<RecordBatch>,
    pipe: Pipe,
    ended: bool,
    room: Room,
}

/// Begins to write an answer. Every value is looked at first, so that a chunk fails only by a fault of the hub.
///
/// # Errors
/// [`Error::DataError`] where the format has no form for a column or a value.
pub fn chunks(answered: Answered, format: AnswerFormat) -> Result<Chunks> {
    let pipe = Pipe::default();
    let (writer, batches) = match format {
        AnswerFormat::Json => {
            let batches = &answered.released.batches;
            batches.iter().try_for_each(check_cells)?;
            let columns = serde_json::to_string(&answered.released.columns).map_err(Error::internal)?;
            pipe.push(&format!("{{\"columns\":{columns},\"rows\":["));
            let facts = serde_json::to_string(&Facts::of(&answered)).map_err(Error::internal)?;
            // The facts' own braces are merged into the document's.
            let writer = Writer::Json { first: true, tail: format!("],{}", &facts[1..]) };
            (writer, slices(answered.released.batches))
        }
        AnswerFormat::Ndjson => {
            answered.released.batches.iter().try_for_each(check_cells)?;
            let names = answered.released.columns.iter();
            let names = names.map(|column| serde_json::Value::from(column.name.as_str()).to_string()).collect();
            (Writer::Ndjson { names }, slices(answered.released.batches))
        }
        AnswerFormat::Csv => {
            let (schema, mut batches) = with_facts(&answered)?;
            check_csv(&schema, &batches)?;
            if batches.is_empty() {
                // A header without rows says what there would have been.
                batches.push(RecordBatch::new_empty(schema));
            }
            let writer = WriterBuilder::new().with_header(true).build(pipe.clone());
            (Writer::Csv(Box::new(writer)), slices(batches))
        }
        AnswerFormat::Arrow => {
            let (schema, batches) = with_facts(&answered)?;
            let writer = StreamWriter::try_new(pipe.clone(), &schema).map_err(Error::internal)?;
            (Writer::Arrow(Box::new(writer)), batches.into())
        }
        AnswerFormat::Parquet => {
            let (schema, batches) = with_facts(&answered)?;
            check_parquet(&schema, &batches)?;
            let writer = ArrowWriter::try_new(pipe.clone(), schema, None).map_err(Error::internal)?;
            (Writer::Parquet(Box::new(writer)), batches.into())
        }
    };
    Ok(Chunks { writer, waiting: batches, pipe, ended: false, room: answered.room })
}

impl Chunks {
    /// The only chunk there was, which keeps the room of the answer in place of these.
    pub fn only(self, chunk: Bytes) -> Bytes {
        match self.room.bytes() {
            0 => chunk,
            _ => Bytes::from_owner(Kept { chunk, _room: self.room }),
        }
    }
}

/// Bytes of an answer with the room that they take.
struct Kept {
    chunk: Bytes,
    _room: Room,
}

impl AsRef<[u8]> for Kept {
    fn as_ref(&self) -> &[u8] {
        &self.chunk
    }
}

impl Iterator for Chunks {
    type Item = Result<Bytes>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.ended && self.pipe.len() < CHUNK {
            let written = match self.waiting.pop_front() {
                Some(rows) => self.writer.write(&rows, &self.pipe),
                None => {
                    self.ended = true;
                    self.writer.finish(&self.pipe)
                }
            };
            if let Err(error) = written {
                self.ended = true;
                self.pipe.take();
                return Some(Err(error));
            }
        }
        let chunk = self.pipe.take();
        (!chunk.is_empty()).then(|| Ok(chunk.into()))
    }
}

/// What turns rows into bytes of a format.
enum Writer {
    Json { first: bool, tail: String },
    Ndjson { names: Vec<String> },
    Csv(Box<csv::Writer<Pipe>>),
    Arrow(Box<StreamWriter<Pipe>>),
    Parquet(Box<ArrowWriter<Pipe>>),
}

impl Writer {
    fn write(&mut self, rows: &RecordBatch, pipe: &Pipe) -> Result<()> {
        match self {
            Self::Json { first, .. } => pipe.push(&json_rows(rows, first)?),
            Self::Ndjson { names } => pipe.push(&ndjson_rows(rows, names)?),
            Self::Csv(writer) => writer.write(rows).map_err(Error::internal)?,
            Self::Arrow(writer) => writer.write(rows).map_err(Error::internal)?,
            Self::Parquet(writer) => {
                writer.write(rows).map_err(Error::internal)?;
                if writer.in_progress_size() >= ROW_GROUP {
                    writer.flush().map_err(Error::internal)?;
                }
            }
        }
        Ok(())
    }

    fn finish(&mut self, pipe: &Pipe) -> Result<()> {
        match self {
            Self::Json { tail, .. } => pipe.push(tail),
            Self::Ndjson { .. } | Self::Csv(_) => {}
            Self::Arrow(writer) => writer.finish().map_err(Error::internal)?,
            Self::Parquet(writer) => {
                writer.finish().map_err(Error::internal)?;
            }
        }
        Ok(())
    }
}

/// Where writers leave their bytes for the next chunk.
#[derive(Clone, Default)]
struct Pipe(Arc<Mutex<Vec<u8>>>);

impl Pipe {
    fn bytes(&self) -> MutexGuard<'_, Vec<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn len(&self) -> usize {
        self.bytes().len()
    }

    fn push(&self, text: &str) {
        self.bytes().extend_from_slice(text.as_bytes());
    }

    fn take(&self) -> Vec<u8> {
        std::mem::take(&mut self.bytes())
    }
}

impl io::Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Batches of few rows, which share the columns of the ones they are cut from.
fn slices(batches: Vec<RecordBatch>) -> VecDeque<RecordBatch> {
    let slice = |batch: &RecordBatch, at: usize| batch.slice(at, SLICE.min(batch.num_rows() - at));
    let mut slices = VecDeque::new();
    for batch in batches {
        // One without rows stays: with CSV it brings the header.
        match batch.num_rows() {
            0..=SLICE => slices.push_back(batch),
            rows => slices.extend((0..rows).step_by(SLICE).map(|at| slice(&batch, at))),
        }
    }
    slices
}

// ------------------------------------------------------------------------------- before the first byte

/// Whether every value of a type has a written form.
fn is_always_writable(kind: &DataType) -> bool {
    use DataType::{Binary, BinaryView, Boolean, FixedSizeBinary, LargeBinary, LargeUtf8, Null, Utf8, Utf8View};
    kind.is_numeric()
        || matches!(
            kind,
            Null | Boolean | Utf8 | LargeUtf8 | Utf8View | Binary | LargeBinary | BinaryView | FixedSizeBinary(_)
        )
}

/// Days from 1970 of the years 1 to 9999, which every calendar has.
const USUAL_DAYS: RangeInclusive<i32> = -719_162..=2_932_896;

const MICROSECONDS_A_DAY: i64 = 86_400_000_000;

/// Whether all values of a column are plain days or instants of [`USUAL_DAYS`], which have a written form. Values that
/// are NULL may be anything, and are looked at one by one then.
fn has_usual_days(array: &dyn Array) -> bool {
    match array.data_type() {
        DataType::Date32 => array.as_primitive::<Date32Type>().values().iter().all(|day| USUAL_DAYS.contains(day)),
        DataType::Timestamp(TimeUnit::Microsecond, zone) if zone.as_deref().is_none_or(|zone| zone == "UTC") => {
            let usual = |time: &i64| {
                i32::try_from(time.div_euclid(MICROSECONDS_A_DAY)).is_ok_and(|day| USUAL_DAYS.contains(&day))
            };
            array.as_primitive::<TimestampMicrosecondType>().values().iter().all(usual)
        }
        _ => false,
    }
}

/// Looks at the values that may have no form in JSON.
fn check_cells(batch: &RecordBatch) -> Result<()> {
    let mut text = String::new();
    for array in batch.columns() {
        if is_always_writable(array.data_type()) || has_usual_days(array) {
            continue;
        }
        let cells = Cells::of(array)?;
        for row in 0..array.len() {
            text.clear();
            cells.write(&mut text, row)?;
        }
    }
    Ok(())
}

/// Writes the columns that may have no form in CSV to nowhere.
fn check_csv(schema: &Schema, batches: &[RecordBatch]) -> Result<()> {
    let doubtful = |at: &usize| !is_always_writable(schema.field(*at).data_type());
    let doubtful: Vec<usize> = (0..schema.fields().len()).filter(doubtful).collect();
    if doubtful.is_empty() {
        return Ok(());
    }
    let mut writer = WriterBuilder::new().with_header(false).build(io::sink());
    batches.iter().try_for_each(|batch| writer.write(&batch.project(&doubtful)?)).map_err(|_| unwritable())
}

/// Writes a row to nowhere: what Parquet lacks are types, not values.
fn check_parquet(schema: &Arc<Schema>, batches: &[RecordBatch]) -> Result<()> {
    let written = ArrowWriter::try_new(io::sink(), Arc::clone(schema), None).and_then(|mut writer| {
        if let Some(batch) = batches.iter().find(|batch| batch.num_rows() > 0) {
            writer.write(&batch.slice(0, 1))?;
        }
        writer.close()
    });
    match written {
        Ok(_) => Ok(()),
        Err(_) => Err(Error::DataError("a column has no form in Parquet; cast it to text".into())),
    }
}

/// The facts about an answer that travel with every format, in the order of the document.
#[derive(Serialize)]
struct Facts<'a> {
    protection: &'a Protection,
    notices: &'a [String],
    query_id: &'a str,
    log_index: u64,
    snapshot: &'a str,
    policy: &'a str,
}

impl<'a> Facts<'a> {
    fn of(answered: &'a Answered) -> Self {
        Self {
            protection: &answered.released.protection,
            notices: &answered.released.notices,
            query_id: &answered.query_id,
            log_index: answered.log_index,
            snapshot: &answered.snapshot,
            policy: &answered.policy,
        }
    }
}

/// The facts about an answer that travel with every format.
pub fn facts(answered: &Answered) -> serde_json::Value {
    json!(Facts::of(answered))
}

// ------------------------------------------------------------------------------------------- formats

fn json_rows(rows: &RecordBatch, first: &mut bool) -> Result<String> {
    let mut out = String::with_capacity(BYTES_A_CELL * rows.num_columns() * rows.num_rows());
    let columns = cells(rows)?;
    for row in 0..rows.num_rows() {
        if !std::mem::take(first) {
            out.push(',');
        }
        out.push('[');
        for (at, column) in columns.iter().enumerate() {
            if at > 0 {
                out.push(',');
            }
            column.write(&mut out, row)?;
        }
        out.push(']');
    }
    Ok(out)
}

fn ndjson_rows(rows: &RecordBatch, names: &[String]) -> Result<String> {
    let mut out = String::with_capacity(2 * BYTES_A_CELL * rows.num_columns() * rows.num_rows());
    let columns = cells(rows)?;
    for row in 0..rows.num_rows() {
        out.push('{');
        for (at, (name, column)) in names.iter().zip(&columns).enumerate() {
            if at > 0 {
                out.push(',');
            }
            out.push_str(name);
            out.push(':');
            column.write(&mut out, row)?;
        }
        out.push_str("}\n");
    }
    Ok(out)
}

/// Days and instants beyond the calendar have no written form.
fn unwritable() -> Error {
    Error::DataError("a value in the rows asked for cannot be written; cast it to text".into())
}

/// The rows under a schema whose metadata carries the facts, and each column's exposure and noise.
fn with_facts(answered: &Answered) -> Result<(Arc<Schema>, Vec<RecordBatch>)> {
    let released = &answered.released;
    let fields: Vec<_> = released
        .schema
        .fields()
        .iter()
        .zip(&released.columns)
        .map(|(field, column)| {
            let mut metadata = HashMap::from([("gridhub.exposure".to_owned(), column.exposure.clone())]);
            if let Some(noise) = &column.noise {
                metadata.insert("gridhub.noise".to_owned(), json!(noise).to_string());
            }
            field.as_ref().clone().with_name(&column.name).with_metadata(metadata)
        })
        .collect();
    let facts = facts(answered);
    let metadata = facts.as_object().into_iter().flatten().map(|(name, value)| {
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        (format!("gridhub.{name}"), text)
    });
    let schema = Arc::new(Schema::new_with_metadata(fields, metadata.collect()));
    let batches = released
        .batches
        .iter()
        .map(|batch| RecordBatch::try_new(Arc::clone(&schema), batch.columns().to_vec()))
        .collect::<Result<_, _>>()
        .map_err(Error::internal)?;
    Ok((schema, batches))
}

/// Bytes that a cell is thought to take, so that rows find room at once.
const BYTES_A_CELL: usize = 16;

/// The cells of a column as JSON values: numbers exactly, times in RFC 3339, the rest as text.
enum Cells<'a> {
    /// Texts as they are.
    Texts(&'a StringArray),
    /// The same in another layout.
    Views(&'a StringViewArray),
    /// All others, by how Arrow writes them.
    Formatted(&'a dyn Array, ArrayFormatter<'a>),
}

const FORMAT: FormatOptions<'static> =
    FormatOptions::new().with_display_error(false).with_timestamp_tz_format(Some("%Y-%m-%dT%H:%M:%S%.f%:z"));

/// The cells of each column of a batch.
fn cells(batch: &RecordBatch) -> Result<Vec<Cells<'_>>> {
    batch.columns().iter().map(|column| Cells::of(column)).collect()
}

impl<'a> Cells<'a> {
    fn of(array: &'a dyn Array) -> Result<Self> {
        Ok(match array.data_type() {
            DataType::Utf8 => Self::Texts(array.as_string()),
            DataType::Utf8View => Self::Views(array.as_string_view()),
            _ => Self::Formatted(array, ArrayFormatter::try_new(array, &FORMAT).map_err(Error::internal)?),
        })
    }

    fn write(&self, out: &mut String, row: usize) -> Result<()> {
        match self {
            Self::Texts(texts) if texts.is_valid(row) => push_quoted(out, texts.value(row)),
            Self::Views(texts) if texts.is_valid(row) => push_quoted(out, texts.value(row)),
            Self::Formatted(array, formatter) if has_value(*array, row) => {
                write_formatted(out, array.data_type(), formatter.value(row))?;
            }
            Self::Texts(_) | Self::Views(_) | Self::Formatted(..) => out.push_str("null"),
        }
        Ok(())
    }
}

/// Whether there is something to write; JSON has no infinity, and nothing that is not a number.
fn has_value(array: &dyn Array, row: usize) -> bool {
    let is_finite = match array.data_type() {
        DataType::Null => false,
        DataType::Float32 => array.as_primitive::<Float32Type>().value(row).is_finite(),
        DataType::Float64 => array.as_primitive::<Float64Type>().value(row).is_finite(),
        _ => true,
    };
    is_finite && array.is_valid(row)
}

fn write_formatted(out: &mut String, kind: &DataType, value: ValueFormatter<'_>) -> Result<()> {
    if *kind == DataType::Boolean || kind.is_numeric() {
        return write!(out, "{value}").map_err(|_| unwritable());
    }
    let before = out.len();
    write!(out, "\"{value}").map_err(|_| unwritable())?;
    match is_quoted_as_it_is(&out[before + 1..]) {
        true => out.push('"'),
        false => {
            let text = out.split_off(before + 1);
            out.truncate(before);
            push_quoted(out, &text);
        }
    }
    Ok(())
}

/// Puts a text between quotes, and a backslash before what may not stand there.
fn push_quoted(out: &mut String, text: &str) {
    if !is_quoted_as_it_is(text) {
        out.push_str(&serde_json::Value::from(text).to_string());
        return;
    }
    out.push('"');
    out.push_str(text);
    out.push('"');
}

/// Whether JSON has nothing to say to any letter of a text.
fn is_quoted_as_it_is(text: &str) -> bool {
    text.bytes().all(|byte| byte >= b' ' && byte != b'"' && byte != b'\\')
}

#[cfg(test)]
mod tests {
    use arrow::{
        array::{
            ArrayRef, BinaryArray, BooleanArray, Date32Array, Decimal128Array, Float64Array, Int64Array, NullArray,
            TimestampMicrosecondArray,
        },
        datatypes::Field,
    };

    use super::*;
    use crate::disclose::{ColumnExposure, Protection, Released};

    const FORMATS: [AnswerFormat; 5] =
        [AnswerFormat::Json, AnswerFormat::Ndjson, AnswerFormat::Csv, AnswerFormat::Arrow, AnswerFormat::Parquet];

    fn answered(columns: Vec<(&str, ArrayRef)>, batches: usize) -> Answered {
        let column = |(name, array): &(&str, ArrayRef)| ColumnExposure {
            name: (*name).to_owned(),
            kind: array.data_type().to_string(),
            exposure: "clear".into(),
            noise: None,
            reached_by: Vec::new(),
        };
        let field = |(name, array): &(&str, ArrayRef)| Field::new(*name, array.data_type().clone(), true);
        let schema = Arc::new(Schema::new(columns.iter().map(field).collect::<Vec<_>>()));
        let listed = columns.iter().map(column).collect();
        let arrays = columns.into_iter().map(|(_, array)| array).collect();
        let batch = RecordBatch::try_new(Arc::clone(&schema), arrays).unwrap();
        Answered {
            released: Released {
                columns: listed,
                protection: Protection { mode: "exact".into(), threshold: None, noise_sd: None },
                schema,
                batches: vec![batch; batches],
                notices: Vec::new(),
                reads: std::collections::BTreeMap::new(),
            },
            room: Room::default(),
            query_id: "q".into(),
            log_index: 7,
            snapshot: "s".into(),
            policy: "p".into(),
        }
    }

    fn numbers(rows: i64) -> Vec<(&'static str, ArrayRef)> {
        let names: Vec<_> = (0..rows).map(|row| format!("row \"{row}\"")).collect();
        vec![
            ("n", Arc::new(Int64Array::from_iter_values(0..rows)) as ArrayRef),
            ("name", Arc::new(StringArray::from(names)) as ArrayRef),
        ]
    }

    fn whole(answered: Answered, format: AnswerFormat) -> Vec<u8> {
        chunks(answered, format).unwrap().flat_map(|chunk| chunk.unwrap().to_vec()).collect()
    }

    #[test]
    fn chunks_are_many_and_come_to_one_document() {
        let rows = 3 * SLICE as i64 + 1;
        let text = String::from_utf8(whole(answered(numbers(rows), 2), AnswerFormat::Json)).unwrap();
        let document: serde_json::Value = serde_json::from_str(&text).unwrap();
        let listed = document["rows"].as_array().unwrap();
        let expected = (0..rows).chain(0..rows).map(|row| json!([row, format!("row \"{row}\"")]));
        assert!(listed.iter().cloned().eq(expected));
        assert_eq!(document["log_index"], 7);
        let lines = String::from_utf8(whole(answered(numbers(rows), 2), AnswerFormat::Ndjson)).unwrap();
        assert_eq!(lines.lines().nth(1), Some(r#"{"n":1,"name":"row \"1\""}"#));
        assert_eq!(lines.lines().count() as i64, 2 * rows);
        let table = String::from_utf8(whole(answered(numbers(rows), 2), AnswerFormat::Csv)).unwrap();
        assert_eq!(table.lines().next(), Some("n,name"), "one header");
        assert_eq!(table.lines().count() as i64, 2 * rows + 1);

        for format in FORMATS {
            let sizes: Vec<_> =
                chunks(answered(numbers(20_000), 4), format).unwrap().map(|chunk| chunk.unwrap().len()).collect();
            assert!(sizes.iter().all(|size| *size > 0), "{format:?}");
            if format != AnswerFormat::Parquet {
                assert!(sizes.len() > 3, "{format:?}: {sizes:?}");
            }
        }
    }

    #[test]
    fn an_answer_without_rows_is_written_too() {
        for batches in [0, 1] {
            let text = |format| String::from_utf8(whole(answered(numbers(0), batches), format)).unwrap();
            assert!(text(AnswerFormat::Json).contains("\"rows\":[],\"protection\""));
            assert_eq!((text(AnswerFormat::Ndjson).as_str(), text(AnswerFormat::Csv).as_str()), ("", "n,name\n"));
        }
    }

    #[test]
    fn cells_are_values_of_json() {
        let odd = "a \"b\"\\\n\u{1}";
        let instant = 1_767_600_000_123_000;
        let columns: Vec<(&str, ArrayRef)> = vec![
            ("text", Arc::new(StringArray::from(vec![Some("plain"), Some(odd), None]))),
            ("view", Arc::new(StringViewArray::from(vec![Some("社区"), None, Some("\u{7f}")]))),
            ("whole", Arc::new(Int64Array::from(vec![Some(i64::MIN), None, Some(0)]))),
            ("decimal", Arc::new(Decimal128Array::from(vec![Some(125), None, Some(-1)]))),
            ("real", Arc::new(Float64Array::from(vec![Some(0.5), Some(f64::NAN), None]))),
            ("truth", Arc::new(BooleanArray::from(vec![Some(true), None, Some(false)]))),
            ("day", Arc::new(Date32Array::from(vec![Some(20_458), None, Some(0)]))),
            ("local", Arc::new(TimestampMicrosecondArray::from(vec![Some(instant), None, Some(-1)]))),
            (
                "instant",
                Arc::new(TimestampMicrosecondArray::from(vec![Some(instant), None, Some(0)]).with_timezone("UTC")),
            ),
            ("bytes", Arc::new(BinaryArray::from_opt_vec(vec![Some(&b"\x01\xff"[..]), None, Some(&[])]))),
            ("nothing", Arc::new(NullArray::new(3))),
        ];
        let text = String::from_utf8(whole(answered(columns, 1), AnswerFormat::Json)).unwrap();
        let expected = concat!(
            r#"["plain","社区",-9223372036854775808,0.0000000125,0.5,true,"2026-01-05","2026-01-05T08:00:00.123","#,
            r#""2026-01-05T08:00:00.123+00:00","01ff",null],"#,
            r#"["a \"b\"\\\n\u0001",null,null,null,null,null,null,null,null,null,null],"#,
            "[null,\"\u{7f}\",0,-0.0000000001,null,false,\"1970-01-01\",\"1969-12-31T23:59:59.999999\",",
            r#""1970-01-01T00:00:00+00:00","",null]"#,
        );
        assert!(text.contains(&format!("\"rows\":[{expected}],")), "{text}");
    }

    #[test]
    fn facts_are_in_the_document_as_in_the_headers() {
        let asked = || answered(numbers(1), 1);
        let document: serde_json::Value = serde_json::from_slice(&whole(asked(), AnswerFormat::Json)).unwrap();
        for (name, value) in facts(&asked()).as_object().unwrap() {
            assert_eq!(document[name], *value, "{name}");
        }
    }

    #[test]
    fn what_cannot_be_written_is_found_before_the_first_byte() {
        // The last of many days lies beyond the calendar.
        let mut days = vec![1; 5_000];
        days.push(i32::MAX);
        let days = || vec![("day", Arc::new(Date32Array::from(days.clone())) as ArrayRef)];
        for format in [AnswerFormat::Json, AnswerFormat::Ndjson, AnswerFormat::Csv] {
            let refused = chunks(answered(days(), 1), format).map(drop).unwrap_err();
            assert_eq!(refused.slug(), "data-error", "{format:?}");
        }
        for format in [AnswerFormat::Arrow, AnswerFormat::Parquet] {
            assert!(!whole(answered(days(), 1), format).is_empty(), "{format:?} keeps the number");
        }
    }
}

//! Answers in five formats: JSON, NDJSON, CSV, Arrow stream and Parquet. Every format carries the same
//! facts about protection, in the body, the headers or the schema.
//!
//! An answer is written in chunks, each when its reader has taken the one before, so that it is never in memory twice.
//! What has no written form is found before the first byte.

use std::{
    collections::{HashMap, VecDeque},
    fmt::Write as _,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use arrow::{
    array::{Array, AsArray, RecordBatch},
    csv::{self, WriterBuilder},
    datatypes::{DataType, Float32Type, Float64Type, Schema},
    ipc::writer::StreamWriter,
    util::display::{ArrayFormatter, FormatOptions},
};
use bytes::Bytes;
use parquet::arrow::ArrowWriter;
use serde_json::json;

use crate::{
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
            let facts = facts(&answered).to_string();
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

/// Looks at the values that may have no form in JSON.
fn check_cells(batch: &RecordBatch) -> Result<()> {
    let cells = Cells::of(batch)?;
    let mut text = String::new();
    for (column, array) in batch.columns().iter().enumerate() {
        if is_always_writable(array.data_type()) {
            continue;
        }
        for row in 0..batch.num_rows() {
            text.clear();
            cells.write(&mut text, column, row)?;
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

/// The facts about an answer that travel with every format.
pub fn facts(answered: &Answered) -> serde_json::Value {
    json!({
        "protection": answered.released.protection,
        "notices": answered.released.notices,
        "query_id": answered.query_id,
        "log_index": answered.log_index,
        "snapshot": answered.snapshot,
        "policy": answered.policy,
    })
}

// ------------------------------------------------------------------------------------------- formats

fn json_rows(rows: &RecordBatch, first: &mut bool) -> Result<String> {
    let mut out = String::new();
    let cells = Cells::of(rows)?;
    for row in 0..rows.num_rows() {
        if !std::mem::take(first) {
            out.push(',');
        }
        out.push('[');
        for column in 0..rows.num_columns() {
            if column > 0 {
                out.push(',');
            }
            cells.write(&mut out, column, row)?;
        }
        out.push(']');
    }
    Ok(out)
}

fn ndjson_rows(rows: &RecordBatch, names: &[String]) -> Result<String> {
    let mut out = String::new();
    let cells = Cells::of(rows)?;
    for row in 0..rows.num_rows() {
        out.push('{');
        for (column, name) in names.iter().enumerate() {
            if column > 0 {
                out.push(',');
            }
            let _ = write!(out, "{name}:");
            cells.write(&mut out, column, row)?;
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

/// The cells of a batch as JSON values: numbers exactly, times in RFC 3339, the rest as text.
struct Cells<'a> {
    columns: Vec<(&'a dyn Array, ArrayFormatter<'a>)>,
}

const FORMAT: FormatOptions<'static> =
    FormatOptions::new().with_display_error(false).with_timestamp_tz_format(Some("%Y-%m-%dT%H:%M:%S%.f%:z"));

impl<'a> Cells<'a> {
    fn of(batch: &'a RecordBatch) -> Result<Self> {
        let formatted = |column: &'a Arc<dyn Array>| {
            let array = column.as_ref();
            Ok((array, ArrayFormatter::try_new(array, &FORMAT).map_err(Error::internal)?))
        };
        Ok(Self { columns: batch.columns().iter().map(formatted).collect::<Result<_>>()? })
    }

    fn write(&self, out: &mut String, column: usize, row: usize) -> Result<()> {
        let (array, formatter) = &self.columns[column];
        if array.is_null(row) || *array.data_type() == DataType::Null {
            out.push_str("null");
            return Ok(());
        }
        let text = formatter.value(row).try_to_string().map_err(|_| unwritable())?;
        match array.data_type() {
            DataType::Boolean => out.push_str(&text),
            DataType::Float32 if !array.as_primitive::<Float32Type>().value(row).is_finite() => out.push_str("null"),
            DataType::Float64 if !array.as_primitive::<Float64Type>().value(row).is_finite() => out.push_str("null"),
            kind if kind.is_numeric() => out.push_str(&text),
            _ => out.push_str(&serde_json::Value::from(text).to_string()),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use arrow::{
        array::{ArrayRef, Date32Array, Int64Array, StringArray},
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

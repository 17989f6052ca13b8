//! Answers in five formats: JSON, NDJSON, CSV, Arrow stream and Parquet. Every format carries the same
//! facts about protection, in the body, the headers or the schema.

use std::{collections::HashMap, fmt::Write as _, sync::Arc};

use arrow::{
    array::{Array, AsArray, RecordBatch},
    csv::WriterBuilder,
    datatypes::{DataType, Float32Type, Float64Type, Schema},
    ipc::writer::StreamWriter,
    util::display::{ArrayFormatter, FormatOptions},
};
use parquet::arrow::ArrowWriter;
use serde_json::json;

use crate::{
    error::{Error, Result},
    hub::Answered,
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

/// Writes an answer.
///
/// # Errors
/// Only a fault of the hub.
pub fn write(answered: &Answered, format: AnswerFormat) -> Result<Vec<u8>> {
    match format {
        AnswerFormat::Json => json_document(answered),
        AnswerFormat::Ndjson => ndjson(answered),
        AnswerFormat::Csv => csv(answered),
        AnswerFormat::Arrow => {
            let (schema, batches) = with_facts(answered)?;
            let mut out = Vec::new();
            let mut writer = StreamWriter::try_new(&mut out, &schema).map_err(Error::internal)?;
            batches.iter().try_for_each(|batch| writer.write(batch)).map_err(Error::internal)?;
            writer.finish().map_err(Error::internal)?;
            drop(writer);
            Ok(out)
        }
        AnswerFormat::Parquet => {
            let (schema, batches) = with_facts(answered)?;
            let mut out = Vec::new();
            let written = ArrowWriter::try_new(&mut out, schema, None).and_then(|mut writer| {
                batches.iter().try_for_each(|batch| writer.write(batch))?;
                writer.close()
            });
            match written {
                Ok(_) => Ok(out),
                Err(_) => Err(Error::DataError("a column has no form in Parquet; cast it to text".into())),
            }
        }
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

fn json_document(answered: &Answered) -> Result<Vec<u8>> {
    let columns = serde_json::to_string(&answered.released.columns).map_err(Error::internal)?;
    let mut out = format!("{{\"columns\":{columns},\"rows\":[");
    let mut first = true;
    for batch in &answered.released.batches {
        let cells = Cells::of(batch)?;
        for row in 0..batch.num_rows() {
            if !std::mem::take(&mut first) {
                out.push(',');
            }
            out.push('[');
            for column in 0..batch.num_columns() {
                if column > 0 {
                    out.push(',');
                }
                cells.write(&mut out, column, row)?;
            }
            out.push(']');
        }
    }
    let facts = facts(answered).to_string();
    // The facts' own braces are merged into the document's.
    let _ = write!(out, "],{}", &facts[1..]);
    Ok(out.into_bytes())
}

fn ndjson(answered: &Answered) -> Result<Vec<u8>> {
    let mut out = String::new();
    let names: Vec<String> = answered
        .released
        .columns
        .iter()
        .map(|column| serde_json::Value::from(column.name.as_str()).to_string())
        .collect();
    for batch in &answered.released.batches {
        let cells = Cells::of(batch)?;
        for row in 0..batch.num_rows() {
            out.push('{');
            for (column, name) in names.iter().enumerate() {
                if column > 0 {
                    out.push(',');
                }
                out.push_str(name);
                out.push(':');
                cells.write(&mut out, column, row)?;
            }
            out.push_str("}\n");
        }
    }
    Ok(out.into_bytes())
}

fn csv(answered: &Answered) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    let mut writer = WriterBuilder::new().with_header(true).build(&mut out);
    let (schema, mut batches) = with_facts(answered)?;
    if batches.is_empty() {
        // A header without rows says what there would have been.
        batches.push(RecordBatch::new_empty(schema));
    }
    batches.iter().try_for_each(|batch| writer.write(batch)).map_err(|_| unwritable())?;
    drop(writer);
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

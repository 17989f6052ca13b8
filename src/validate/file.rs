//! Files of rows in: Parquet, Arrow streams and CSV, decoded in slices with every column of the contract
//! in its order. Hostile files cost no more than the limits.

use std::{io::Cursor, panic::AssertUnwindSafe, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, AsArray, RecordBatch},
    csv,
    datatypes::{DataType, Field as ArrowField, Schema, SchemaRef},
    ipc::reader::StreamReader,
};
use bytes::Bytes;
use parquet::arrow::{
    ProjectionMask,
    arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder},
};

use super::hostile;
use crate::{
    dataset::{
        Dataset, FieldType,
        layout::{arrow_type, type_word},
    },
    error::{Error, Result},
};

/// The key of a file's metadata that names the contract version it follows.
const VERSION_KEY: &str = "gridhub.contract_version";

/// How often over a file may unfold, once it is not small.
const MOST_UNFOLDING: u64 = 200;

/// What any file may unfold to, in bytes.
const SMALL: u64 = 256 << 20;

/// Rows decoded at a time.
const SLICE: usize = 8_192;

/// How a file is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Apache Parquet.
    Parquet,
    /// Arrow IPC stream.
    Arrow,
    /// Comma-separated text with a header line, in UTF-8.
    Csv,
}

impl Format {
    /// By media type; parameters after `;` are ignored.
    pub fn from_media_type(media_type: &str) -> Option<Self> {
        match media_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase().as_str() {
            "application/vnd.apache.parquet" => Some(Self::Parquet),
            "application/vnd.apache.arrow.stream" => Some(Self::Arrow),
            "text/csv" => Some(Self::Csv),
            _ => None,
        }
    }

    /// By the end of a file's name.
    pub fn from_file_name(name: &str) -> Option<Self> {
        match name.rsplit('.').next()?.to_ascii_lowercase().as_str() {
            "parquet" => Some(Self::Parquet),
            "arrow" | "arrows" | "ipc" => Some(Self::Arrow),
            "csv" => Some(Self::Csv),
            _ => None,
        }
    }

    /// Its media type.
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Parquet => "application/vnd.apache.parquet",
            Self::Arrow => "application/vnd.apache.arrow.stream",
            Self::Csv => "text/csv",
        }
    }
}

/// What one file may cost.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes as sent.
    pub bytes: usize,
    /// Rows.
    pub rows: u64,
    /// Bytes once decompressed.
    pub decoded_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { bytes: 256 << 20, rows: 20_000_000, decoded_bytes: 2 << 30 }
    }
}

/// The rows of a file, slice by slice.
pub struct Reader {
    slices: Box<dyn Iterator<Item = Result<RecordBatch>> + Send>,
    version: Option<String>,
    left_rows: u64,
    left_bytes: u64,
    most_bytes: u64,
    limits: Limits,
}

impl Reader {
    /// The contract version the file itself names.
    pub fn contract_version(&self) -> Option<&str> {
        self.version.as_deref()
    }
}

impl Iterator for Reader {
    type Item = Result<RecordBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        // The decoders are fuzzed, not proven; a panic on a hostile file is a bad file, not a dead hub.
        let slice = std::panic::catch_unwind(AssertUnwindSafe(|| self.slices.next()))
            .unwrap_or_else(|_| Some(Err(unreadable())))?;
        Some(slice.and_then(|slice| {
            self.left_rows = self.left_rows.checked_sub(slice.num_rows() as u64).ok_or(Error::TooLarge {
                what: "the number of rows",
                limit: format!("{} rows; send the file in parts", self.limits.rows),
            })?;
            self.left_bytes = self.left_bytes.checked_sub(unfolded(&slice)).ok_or_else(|| too_much(self.most_bytes))?;
            Ok(slice)
        }))
    }
}

/// Opens a file and checks that its columns are those of the contract.
///
/// # Errors
/// [`Error::ContractViolation`] or [`Error::TooLarge`].
pub fn open(format: Format, bytes: Bytes, dataset: &Dataset, limits: Limits) -> Result<Reader> {
    if bytes.is_empty() {
        return Err(Error::violation("the file is empty; send it again once it is written"));
    }
    if bytes.len() > limits.bytes {
        return Err(Error::TooLarge {
            what: "the file",
            limit: format!("{} MiB; send it in parts", limits.bytes >> 20),
        });
    }
    // A small file that unfolds into a large one is allowed within reason: columns do repeat themselves.
    let most_bytes = limits.decoded_bytes.min(SMALL.max(bytes.len() as u64 * MOST_UNFOLDING));
    let (slices, version) = std::panic::catch_unwind(AssertUnwindSafe(|| match format {
        Format::Parquet => open_parquet(bytes, dataset, limits),
        Format::Arrow => open_arrow(bytes, dataset, limits),
        Format::Csv => open_csv(bytes, dataset),
    }))
    .unwrap_or_else(|_| Err(unreadable()))?;
    Ok(Reader { slices, version, left_rows: limits.rows, left_bytes: most_bytes, most_bytes, limits })
}

type Opened = (Box<dyn Iterator<Item = Result<RecordBatch>> + Send>, Option<String>);

fn open_parquet(bytes: Bytes, dataset: &Dataset, limits: Limits) -> Result<Opened> {
    hostile::check_parquet(&bytes, limits.decoded_bytes)?;
    let metadata = ArrowReaderMetadata::load(&bytes, ArrowReaderOptions::new()).map_err(|_| unreadable())?;
    let file = metadata.metadata();
    let rows: i64 = file.row_groups().iter().map(|group| group.num_rows().max(0)).sum();
    let decoded: i64 = file.row_groups().iter().map(|group| group.total_byte_size().max(0)).sum();
    if rows.unsigned_abs() > limits.rows {
        return Err(Error::TooLarge {
            what: "the number of rows",
            limit: format!("{} rows; send the file in parts", limits.rows),
        });
    }
    if decoded.unsigned_abs() > limits.decoded_bytes {
        return Err(too_much(limits.decoded_bytes));
    }
    let version = metadata.schema().metadata().get(VERSION_KEY).cloned().or_else(|| {
        let pairs = file.file_metadata().key_value_metadata()?;
        pairs.iter().find(|pair| pair.key == VERSION_KEY)?.value.clone()
    });
    let order = check_columns(dataset, metadata.schema(), false)?;
    // Text is read as views into the decoded pages: a dictionary that repeats one long value a million
    // times then costs one value, not a million.
    let narrow = Schema::new_with_metadata(
        metadata.schema().fields().iter().map(|field| Arc::new(as_view(field))).collect::<Vec<_>>(),
        metadata.schema().metadata().clone(),
    );
    let options = ArrowReaderOptions::new().with_schema(Arc::new(narrow));
    let metadata = ArrowReaderMetadata::try_new(Arc::clone(metadata.metadata()), options).map_err(|_| unreadable())?;
    let reader = ParquetRecordBatchReaderBuilder::new_with_metadata(bytes, metadata)
        .with_projection(ProjectionMask::all())
        .with_batch_size(SLICE)
        .build()
        .map_err(|_| unreadable())?;
    let slices = reader.map(move |slice| slice.and_then(|slice| slice.project(&order)).map_err(|_| unreadable()));
    Ok((Box::new(slices), version))
}

fn as_view(field: &ArrowField) -> ArrowField {
    let kind = match field.data_type() {
        DataType::Utf8 | DataType::LargeUtf8 => DataType::Utf8View,
        other => other.clone(),
    };
    ArrowField::new(field.name(), kind, field.is_nullable()).with_metadata(field.metadata().clone())
}

fn open_arrow(bytes: Bytes, dataset: &Dataset, limits: Limits) -> Result<Opened> {
    if bytes.starts_with(b"ARROW1") {
        return Err(Error::violation("this is an Arrow file; send the stream format, or Parquet"));
    }
    hostile::check_arrow(&bytes, limits.decoded_bytes)?;
    let reader = StreamReader::try_new(Cursor::new(bytes), None).map_err(|_| unreadable())?;
    let version = reader.schema().metadata().get(VERSION_KEY).cloned();
    let order = check_columns(dataset, &reader.schema(), false)?;
    let slices = reader.map(move |slice| slice.and_then(|slice| slice.project(&order)).map_err(|_| unreadable()));
    Ok((Box::new(slices), version))
}

fn open_csv(bytes: Bytes, dataset: &Dataset) -> Result<Opened> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").map_or_else(|| bytes.clone(), |rest| bytes.slice_ref(rest));
    if std::str::from_utf8(&bytes).is_err() {
        return Err(Error::violation("the text is not UTF-8; save it as UTF-8"));
    }
    let (header, _) = csv::reader::Format::default()
        .with_header(true)
        .infer_schema(Cursor::new(bytes.clone()), Some(0))
        .map_err(|_| unreadable())?;
    let as_text: Vec<_> =
        header.fields().iter().map(|field| ArrowField::new(field.name().trim(), DataType::Utf8, true)).collect();
    let schema: SchemaRef = Arc::new(Schema::new(as_text));
    let order = check_columns(dataset, &schema, true)?;
    let reader = csv::ReaderBuilder::new(schema)
        .with_header(true)
        .with_batch_size(SLICE)
        .build(Cursor::new(bytes))
        .map_err(|_| unreadable())?;
    let slices = reader.map(move |slice| slice.and_then(|slice| slice.project(&order)).map_err(|_| unreadable()));
    Ok((Box::new(slices), None))
}

/// Where each field of the contract stands in the file.
fn check_columns(dataset: &Dataset, schema: &Schema, text_only: bool) -> Result<Vec<usize>> {
    let mut faults = Vec::new();
    let surplus: Vec<_> = schema
        .fields()
        .iter()
        .filter(|column| dataset.field(column.name()).is_none())
        // A column's name may itself hold what somebody typed, so only names in the form of one are repeated.
        .map(|column| match crate::dataset::is_sql_name(column.name()) && column.name().len() <= 64 {
            true => format!("`{}`", column.name()),
            false => "one whose name is no field name".to_owned(),
        })
        .collect();
    if !surplus.is_empty() {
        faults.push(format!("columns the contract does not have: {}", surplus.join(", ")));
    }
    let mut order = Vec::with_capacity(dataset.fields.len());
    let mut missing = Vec::new();
    for field in &dataset.fields {
        let mut found = schema.fields().iter().enumerate().filter(|(_, column)| *column.name() == field.name);
        match (found.next(), found.next()) {
            (None, _) => missing.push(format!("`{}`", field.name)),
            (Some(_), Some(_)) => faults.push(format!("column `{}` is there twice", field.name)),
            (Some((at, column)), None) => {
                if !text_only && !fits(field.kind, column.data_type()) {
                    faults.push(format!(
                        "column `{}` holds {}, the contract says {}",
                        field.name,
                        plain_type(column.data_type()),
                        type_word(&arrow_type(field.kind)),
                    ));
                }
                order.push(at);
            }
        }
    }
    if !missing.is_empty() {
        faults.push(format!("columns missing: {}", missing.join(", ")));
    }
    if faults.is_empty() {
        return Ok(order);
    }
    Err(Error::violation(format!(
        "the file does not fit `{}` version {}: {}",
        dataset.name,
        dataset.version,
        faults.join("; ")
    )))
}

/// Whether a column of that type can hold values of a field of this kind, to be checked one by one.
fn fits(kind: FieldType, column: &DataType) -> bool {
    let column = match column {
        DataType::Dictionary(_, value) => value.as_ref(),
        other => other,
    };
    if *column == DataType::Null {
        return true;
    }
    match kind {
        FieldType::Text => matches!(column, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View),
        FieldType::Boolean => *column == DataType::Boolean,
        FieldType::Integer(_) => column.is_integer(),
        FieldType::Decimal(..) | FieldType::Double => column.is_numeric(),
        FieldType::Date => matches!(column, DataType::Date32 | DataType::Date64),
        FieldType::Timestamp => matches!(column, DataType::Timestamp(..)),
    }
}

fn plain_type(kind: &DataType) -> String {
    match kind {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => "text".into(),
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView => "bytes".into(),
        DataType::Dictionary(_, value) => plain_type(value),
        other if other.is_nested() => "nested values".into(),
        other => type_word(other),
    }
}

pub(super) fn unreadable() -> Error {
    Error::violation("the file cannot be read as the format it was sent as; write it again and check that it is whole")
}

/// What a slice would take if every value stood for itself: views and dictionaries make a million copies
/// of a long text look small, and checking them would still cost a million times its length.
fn unfolded(slice: &RecordBatch) -> u64 {
    let of = |column: &ArrayRef| -> u64 {
        if let Some(texts) = column.as_string_view_opt() {
            return texts.lengths().map(u64::from).sum();
        }
        if let DataType::Dictionary(_, value) = column.data_type()
            && matches!(value.as_ref(), DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
        {
            let dictionary = column.as_any_dictionary();
            let values = arrow::compute::cast(dictionary.values(), &DataType::Utf8View);
            let lengths: Vec<u64> =
                values.iter().flat_map(|values| values.as_string_view().lengths().map(u64::from)).collect();
            return dictionary.normalized_keys().into_iter().filter_map(|key| lengths.get(key)).sum();
        }
        column.get_array_memory_size() as u64
    };
    slice.columns().iter().map(of).sum()
}

pub(super) fn too_much(bytes: u64) -> Error {
    Error::TooLarge { what: "the decompressed file", limit: format!("{} MiB; send it in parts", bytes >> 20) }
}

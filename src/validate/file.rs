//! Files of rows in: Parquet, Arrow streams and CSV, decoded in slices with every column of the contract
//! in its order. Hostile files cost no more than the limits.

use std::{panic::AssertUnwindSafe, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, AsArray, RecordBatch, RecordBatchOptions, new_null_array},
    datatypes::{DataType, Field as ArrowField, Schema},
    error::ArrowError,
    ipc::reader::StreamReader,
};
use parquet::{
    arrow::{
        ProjectionMask,
        arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder},
    },
    file::metadata::RowGroupMetaData,
};

use super::{
    format::Format,
    hostile,
    limits::{Limits, SLICE, too_much, unreadable},
    text,
};
use crate::{
    dataset::{
        Dataset, FieldType,
        layout::{arrow_type, type_word},
    },
    error::{Error, Result},
    spool::Body,
};

/// The key of a file's metadata that names the contract version it follows.
const VERSION_KEY: &str = "gridhub.contract_version";

/// How often over a file may unfold, once it is not small.
const MOST_UNFOLDING: u64 = 200;

/// What any file may unfold to, in bytes.
const SMALL: u64 = 256 << 20;

/// The rows of a file, slice by slice.
pub struct Reader {
    batches: Box<dyn Iterator<Item = Result<RecordBatch>> + Send>,
    /// What is left of a batch larger than a slice.
    rest: Option<RecordBatch>,
    version: Option<String>,
    absent: Vec<usize>,
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

    /// The fields of the contract, by their place in it, that have no column here: only such as a later minor version
    /// added. Their values are NULL.
    pub fn absent(&self) -> &[usize] {
        &self.absent
    }

    fn batch(&mut self) -> Option<Result<RecordBatch>> {
        // The decoders are fuzzed, not proven; a panic on a hostile file is a bad file, not a dead hub.
        let batch = std::panic::catch_unwind(AssertUnwindSafe(|| self.batches.next()))
            .unwrap_or_else(|_| Some(Err(unreadable())))?;
        Some(batch.and_then(|batch| {
            self.left_rows = self.left_rows.checked_sub(batch.num_rows() as u64).ok_or(Error::TooLarge {
                what: "the number of rows",
                limit: format!("{} rows; send the file in parts", self.limits.rows),
            })?;
            self.left_bytes = self.left_bytes.checked_sub(unfolded(&batch)).ok_or_else(|| too_much(self.most_bytes))?;
            Ok(batch)
        }))
    }
}

impl Iterator for Reader {
    type Item = Result<RecordBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        let batch = match self.rest.take() {
            Some(rest) => rest,
            None => match self.batch()? {
                Ok(batch) => batch,
                Err(error) => return Some(Err(error)),
            },
        };
        if batch.num_rows() <= SLICE {
            return Some(Ok(batch));
        }
        self.rest = Some(batch.slice(SLICE, batch.num_rows() - SLICE));
        Some(Ok(batch.slice(0, SLICE)))
    }
}

/// Opens a file and checks that its columns are those of the contract. `said`: the contract version its sender says it
/// follows, where it says so outside the file.
///
/// # Errors
/// [`Error::ContractViolation`] or [`Error::TooLarge`].
pub fn open(format: Format, body: Body, dataset: &Dataset, said: Option<&str>, limits: Limits) -> Result<Reader> {
    if body.is_empty() {
        return Err(Error::violation("the file is empty; send it again once it is written"));
    }
    if body.len() > limits.bytes {
        return Err(Error::TooLarge {
            what: "the file",
            limit: format!("{} MiB; send it in parts", limits.bytes >> 20),
        });
    }
    // A small file that unfolds into a large one is allowed within reason: columns do repeat themselves.
    let most_bytes = limits.decoded_bytes.min(SMALL.max(body.len().saturating_mul(MOST_UNFOLDING)));
    let opened = std::panic::catch_unwind(AssertUnwindSafe(|| match format {
        Format::Parquet => open_parquet(body, dataset, said, limits),
        Format::Arrow => open_arrow(&body, dataset, said, limits),
        Format::Csv => open_csv(&body, dataset, said, limits),
    }))
    .unwrap_or_else(|_| Err(unreadable()))?;
    let Opened { batches, version, absent } = opened;
    let (left_rows, left_bytes) = (limits.rows, most_bytes);
    Ok(Reader { batches, rest: None, version, absent, left_rows, left_bytes, most_bytes, limits })
}

/// The rows of an Arrow stream that is none of a dataset's, such as values for a statement: plain columns and lists of
/// plain values, and no more bytes than `most`, neither as sent nor once decompressed.
///
/// # Errors
/// [`Error::ContractViolation`] or [`Error::TooLarge`].
pub fn plain_rows(body: &Body, most: u64) -> Result<Vec<RecordBatch>> {
    if body.len() > most {
        return Err(too_much(most));
    }
    let limits = Limits { bytes: most, decoded_bytes: most, ..Limits::default() };
    std::panic::catch_unwind(AssertUnwindSafe(|| {
        hostile::check_arrow_with_lists(body, limits)?;
        let reader = StreamReader::try_new(body.reader(), None).map_err(|_| unreadable())?;
        reader.map(|batch| batch.map_err(|_| unreadable())).collect()
    }))
    .unwrap_or_else(|_| Err(unreadable()))
}

/// A file whose columns are known.
struct Opened {
    batches: Box<dyn Iterator<Item = Result<RecordBatch>> + Send>,
    version: Option<String>,
    absent: Vec<usize>,
}

fn open_parquet(body: Body, dataset: &Dataset, said: Option<&str>, limits: Limits) -> Result<Opened> {
    hostile::check_parquet(&body, limits)?;
    let metadata = ArrowReaderMetadata::load(&body, ArrowReaderOptions::new()).map_err(|_| unreadable())?;
    let file = metadata.metadata();
    let total = |of: fn(&RowGroupMetaData) -> i64| -> u64 {
        file.row_groups().iter().map(|group| of(group).max(0).unsigned_abs()).fold(0, u64::saturating_add)
    };
    if total(RowGroupMetaData::num_rows) > limits.rows {
        return Err(Error::TooLarge {
            what: "the number of rows",
            limit: format!("{} rows; send the file in parts", limits.rows),
        });
    }
    if total(RowGroupMetaData::total_byte_size) > limits.decoded_bytes {
        return Err(too_much(limits.decoded_bytes));
    }
    let version = metadata.schema().metadata().get(VERSION_KEY).cloned().or_else(|| {
        let pairs = file.file_metadata().key_value_metadata()?;
        pairs.iter().find(|pair| pair.key == VERSION_KEY)?.value.clone()
    });
    let order = check_columns(dataset, metadata.schema(), version.as_deref().or(said), false)?;
    // Text is read as views into the decoded pages: a dictionary that repeats one long value a million
    // times then costs one value, not a million.
    let narrow = Schema::new_with_metadata(
        metadata.schema().fields().iter().map(|field| Arc::new(as_view(field))).collect::<Vec<_>>(),
        metadata.schema().metadata().clone(),
    );
    let options = ArrowReaderOptions::new().with_schema(Arc::new(narrow));
    let metadata = ArrowReaderMetadata::try_new(Arc::clone(metadata.metadata()), options).map_err(|_| unreadable())?;
    let reader = ParquetRecordBatchReaderBuilder::new_with_metadata(body, metadata)
        .with_projection(ProjectionMask::all())
        .with_batch_size(SLICE)
        .build()
        .map_err(|_| unreadable())?;
    let absent = absent(&order);
    let slices = reader.map(move |slice| slice.and_then(|slice| arranged(&slice, &order)).map_err(|_| unreadable()));
    Ok(Opened { batches: Box::new(slices), version, absent })
}

fn as_view(field: &ArrowField) -> ArrowField {
    let kind = match field.data_type() {
        DataType::Utf8 | DataType::LargeUtf8 => DataType::Utf8View,
        other => other.clone(),
    };
    ArrowField::new(field.name(), kind, field.is_nullable()).with_metadata(field.metadata().clone())
}

fn open_arrow(body: &Body, dataset: &Dataset, said: Option<&str>, limits: Limits) -> Result<Opened> {
    if body.read_at(0, 6).map_err(Error::internal)?.starts_with(b"ARROW1") {
        return Err(Error::violation("this is an Arrow file; send the stream format, or Parquet"));
    }
    hostile::check_arrow(body, limits)?;
    let reader = StreamReader::try_new(body.reader(), None).map_err(|_| unreadable())?;
    let version = reader.schema().metadata().get(VERSION_KEY).cloned();
    let order = check_columns(dataset, &reader.schema(), version.as_deref().or(said), false)?;
    let absent = absent(&order);
    let slices = reader.map(move |slice| slice.and_then(|slice| arranged(&slice, &order)).map_err(|_| unreadable()));
    Ok(Opened { batches: Box::new(slices), version, absent })
}

fn open_csv(body: &Body, dataset: &Dataset, said: Option<&str>, limits: Limits) -> Result<Opened> {
    let slices = text::open(body, dataset, limits)?;
    let order = check_columns(dataset, slices.schema(), said, true)?;
    let absent = absent(&order);
    let slices = slices.map(move |slice| slice.and_then(|slice| arranged(&slice, &order).map_err(|_| unreadable())));
    Ok(Opened { batches: Box::new(slices), version: None, absent })
}

fn absent(order: &[Option<usize>]) -> Vec<usize> {
    order.iter().enumerate().filter(|(_, at)| at.is_none()).map(|(field, _)| field).collect()
}

/// The columns of a slice in the contract's order, NULL where the file has none.
fn arranged(slice: &RecordBatch, order: &[Option<usize>]) -> std::result::Result<RecordBatch, ArrowError> {
    let given = slice.schema();
    let mut fields = Vec::with_capacity(order.len());
    let mut columns = Vec::with_capacity(order.len());
    for at in order {
        fields.push(at.map_or_else(|| ArrowField::new("absent", DataType::Null, true), |at| given.field(at).clone()));
        columns.push(match at {
            Some(at) => Arc::clone(slice.column(*at)),
            None => new_null_array(&DataType::Null, slice.num_rows()),
        });
    }
    let options = RecordBatchOptions::new().with_row_count(Some(slice.num_rows()));
    RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), columns, &options)
}

/// Where each field of the contract stands in the file; nowhere only where the contract says since when it is there.
fn check_columns(
    dataset: &Dataset,
    schema: &Schema,
    said: Option<&str>,
    text_only: bool,
) -> Result<Vec<Option<usize>>> {
    let mut faults = Vec::new();
    let surplus: Vec<_> = schema
        .fields()
        .iter()
        .filter(|column| dataset.field(column.name()).is_none())
        // A column's name may itself hold what somebody typed, so only names in the form of one are repeated.
        .map(|column| match is_field_name(column.name()) {
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
            (None, _) if field.since.is_some() => order.push(None),
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
                order.push(Some(at));
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
        "{} does not fit `{}` version {}: {}",
        following(said),
        dataset.name,
        dataset.version,
        faults.join("; ")
    )))
}

/// Whether a text reads like the name of a field, and like nothing that somebody typed into one.
fn is_field_name(text: &str) -> bool {
    let digits = text.split(|c: char| !c.is_ascii_digit()).map(str::len).max().unwrap_or_default();
    crate::dataset::is_sql_name(text) && text.len() <= 64 && digits < 6
}

/// A file in an error, by the contract version it says it follows; no more of what it says than a version takes.
pub(super) fn following(said: Option<&str>) -> String {
    match said {
        None => "a file that names no version".into(),
        Some(said) => format!("a file that follows version `{}`", said.chars().take(40).collect::<String>()),
    }
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
            if dictionary.values().is_empty() {
                return 0;
            }
            let values = arrow::compute::cast(dictionary.values(), &DataType::Utf8View);
            let lengths: Vec<u64> =
                values.iter().flat_map(|values| values.as_string_view().lengths().map(u64::from)).collect();
            return dictionary.normalized_keys().into_iter().filter_map(|key| lengths.get(key)).sum();
        }
        // Its own part of the buffers: columns of a stream share one.
        column.to_data().get_slice_memory_size().unwrap_or_else(|_| column.get_array_memory_size()) as u64
    };
    slice.columns().iter().map(of).sum()
}

#[cfg(test)]
mod tests {
    use arrow::{
        array::{ListArray, StringArray, StructArray, UInt64Array},
        datatypes::{Fields, UInt64Type},
        ipc::writer::StreamWriter,
    };
    use parquet::{arrow::ArrowWriter, file::properties::WriterProperties};
    use proptest::prelude::*;

    use super::*;
    use crate::{spool::Spool, validate::text::tests::dataset};

    fn batch(rows: usize) -> RecordBatch {
        let texts = |prefix: &str| -> ArrayRef {
            Arc::new((0..rows).map(|row| Some(format!("{prefix}{row}"))).collect::<StringArray>())
        };
        RecordBatch::try_from_iter([("kind", texts("k")), ("place", texts("p"))]).unwrap()
    }

    fn parquet_of(batch: &RecordBatch, properties: WriterProperties) -> Vec<u8> {
        let mut out = Vec::new();
        let mut writer = ArrowWriter::try_new(&mut out, batch.schema(), Some(properties)).unwrap();
        writer.write(batch).unwrap();
        writer.close().unwrap();
        out
    }

    fn stream_of(batch: &RecordBatch) -> Vec<u8> {
        let mut out = Vec::new();
        let mut writer = StreamWriter::try_new(&mut out, &batch.schema()).unwrap();
        writer.write(batch).unwrap();
        writer.finish().unwrap();
        drop(writer);
        out
    }

    fn csv_of(batch: &RecordBatch) -> Vec<u8> {
        let mut out = Vec::new();
        arrow::csv::Writer::new(&mut out).write(batch).unwrap();
        out
    }

    fn files(batch: &RecordBatch) -> [(Format, Vec<u8>); 3] {
        [
            (Format::Parquet, parquet_of(batch, WriterProperties::default())),
            (Format::Arrow, stream_of(batch)),
            (Format::Csv, csv_of(batch)),
        ]
    }

    /// The places, in the order of the rows, and the largest slice.
    fn places(format: Format, body: Body, limits: Limits) -> Result<(Vec<String>, usize)> {
        let (mut places, mut largest) = (Vec::new(), 0);
        for slice in open(format, body, &dataset(), None, limits)? {
            let slice = slice?;
            largest = largest.max(slice.num_rows());
            let texts = arrow::compute::cast(slice.column(0), &DataType::Utf8).unwrap();
            places.extend(texts.as_string::<i32>().iter().flatten().map(str::to_owned));
        }
        Ok((places, largest))
    }

    fn refusal(format: Format, file: Vec<u8>, limits: Limits) -> String {
        places(format, file.into(), limits).unwrap_err().to_string()
    }

    #[test]
    fn files_are_read_alike_from_memory_and_from_disk() {
        let folder = tempfile::tempdir().unwrap();
        let spool = Spool::open(folder.path(), 0).unwrap();
        let expected: Vec<_> = (0..30_000).map(|row| format!("p{row}")).collect();
        for (format, file) in files(&batch(30_000)) {
            let mut draft = spool.draft();
            draft.write(&file).unwrap();
            for body in [draft.finish().unwrap(), file.into()] {
                let (places, largest) = places(format, body, Limits::default()).unwrap();
                assert!(places == expected, "{format:?}");
                assert_eq!(largest, SLICE, "{format:?}");
            }
        }
    }

    #[test]
    fn nested_columns_are_refused_before_they_are_decoded() {
        let numbers = || UInt64Array::from(vec![1, 2]);
        let list: ArrayRef = Arc::new(ListArray::from_iter_primitive::<UInt64Type, _, _>([Some([Some(1)])]));
        let fields = Fields::from(vec![ArrowField::new("x", DataType::UInt64, false)]);
        let structure: ArrayRef = Arc::new(StructArray::new(fields, vec![Arc::new(numbers())], None));
        for column in [list, structure] {
            let batch = RecordBatch::try_from_iter([("place", column)]).unwrap();
            for (format, file) in
                [(Format::Parquet, parquet_of(&batch, WriterProperties::default())), (Format::Arrow, stream_of(&batch))]
            {
                let why = refusal(format, file, Limits::default());
                assert!(why.starts_with("the file has columns of nested values"), "{format:?}: {why}");
            }
        }
    }

    #[test]
    fn columns_row_groups_and_pages_are_counted() {
        let narrow = Limits { columns: 1, ..Limits::default() };
        for (format, file) in files(&batch(3)) {
            let why = refusal(format, file, narrow);
            assert!(why.starts_with("the number of columns is larger than 1;"), "{format:?}: {why}");
        }
        let groups = WriterProperties::builder().set_max_row_group_row_count(Some(10)).build();
        let file = parquet_of(&batch(100), groups);
        let of = |row_groups, pages| Limits { row_groups, pages, ..Limits::default() };
        assert!(refusal(Format::Parquet, file.clone(), of(9, 1_000)).starts_with("the number of row groups is larger"));
        // Ten groups of two chunks, each of at least one page.
        assert!(refusal(Format::Parquet, file.clone(), of(10, 39)).starts_with("the number of pages is larger"));
        assert_eq!(places(Format::Parquet, file.into(), of(10, 1_000)).unwrap().0.len(), 100);

        let one = batch(1);
        let mut stream = Vec::new();
        let mut writer = StreamWriter::try_new(&mut stream, &one.schema()).unwrap();
        for _ in 0..5 {
            writer.write(&one).unwrap();
        }
        writer.finish().unwrap();
        drop(writer);
        // The schema is a message too.
        assert!(refusal(Format::Arrow, stream.clone(), of(1, 5)).starts_with("the number of batches is larger than 5"));
        assert_eq!(places(Format::Arrow, stream.into(), of(1, 6)).unwrap().0.len(), 5);
    }

    #[test]
    fn bytes_and_rows_are_counted() {
        for (format, file) in files(&batch(100)) {
            let short = Limits { bytes: file.len() as u64 - 1, ..Limits::default() };
            assert!(refusal(format, file.clone(), short).starts_with("the file is larger"), "{format:?}");
            let few = Limits { rows: 99, ..Limits::default() };
            assert!(refusal(format, file, few).starts_with("the number of rows is larger than 99"), "{format:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        /// No panic and no end without an answer, whatever became of a file on its way.
        #[test]
        fn mutated_files_are_read_or_refused(
            which in 0..3_usize,
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
            cut in prop::option::of(any::<prop::sample::Index>()),
        ) {
            let (format, mut file) = files(&batch(50)).into_iter().nth(which).unwrap();
            for (at, byte) in changes {
                let at = at.index(file.len());
                file[at] = byte;
            }
            if let Some(at) = cut {
                file.truncate(at.index(file.len()) + 1);
            }
            match places(format, file.into(), Limits::default()) {
                Ok(_) | Err(Error::ContractViolation { .. } | Error::TooLarge { .. }) => {}
                Err(other) => prop_assert!(false, "{:?}", other),
            }
        }
    }
}

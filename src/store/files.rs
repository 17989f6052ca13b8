//! How rows lie in the files of a table: with four columns of the hub's own, in an order by which time and
//! territory prune, and with statistics of nothing that names anybody.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, AsArray, BinaryArray, Int64Array, RecordBatch, StringArray, new_null_array},
    compute::{cast, interleave_record_batch},
    datatypes::{DataType, Field as ArrowField, Schema, SchemaRef},
};
use deltalake_core::{
    DeltaTable,
    kernel::Add,
    writer::{DeltaWriter, RecordBatchWriter},
};
use parquet::{
    basic::Compression,
    file::properties::{EnabledStatistics, WriterProperties},
    schema::types::ColumnPath,
};

use super::{ARRIVAL, BATCH, DIGEST, SOURCE, write_error};
use crate::{
    dataset::{
        Dataset,
        layout::{self, WIDTH, stored_schema},
    },
    error::{Error, Result},
};

/// Rows in a row group: few enough that a day or a division leaves most of a large batch unread.
const ROW_GROUP: usize = 1 << 17;

/// The Arrow schema of a table: the stored fields, then the hub's own columns.
pub fn table_schema(dataset: &Dataset) -> SchemaRef {
    let mut fields: Vec<_> = stored_schema(dataset).fields().to_vec();
    fields.push(Arc::new(ArrowField::new(SOURCE, DataType::Utf8, true)));
    fields.push(Arc::new(ArrowField::new(BATCH, DataType::Utf8, true)));
    fields.push(Arc::new(ArrowField::new(ARRIVAL, DataType::Int64, true)));
    fields.push(Arc::new(ArrowField::new(DIGEST, DataType::Binary, true)));
    Arc::new(Schema::new(fields))
}

/// How the files of a batch are written. Pseudonyms get Bloom filters, by which a token finds its row
/// groups; their least and greatest would prune nothing and only sort people by them.
pub fn file_layout(dataset: &Dataset, rows: usize) -> WriterProperties {
    let mut layout =
        WriterProperties::builder().set_compression(Compression::SNAPPY).set_max_row_group_row_count(Some(ROW_GROUP));
    let pseudonyms = dataset.stored_fields().filter(|field| field.identifier.is_some());
    for column in pseudonyms.map(|field| ColumnPath::new(vec![field.name.clone()])) {
        layout = layout
            .set_column_statistics_enabled(column.clone(), EnabledStatistics::None)
            .set_column_bloom_filter_enabled(column.clone(), true)
            .set_column_bloom_filter_fpp(column.clone(), 0.01)
            .set_column_bloom_filter_max_ndv(column.clone(), rows.min(ROW_GROUP) as u64);
        if rows >= ROW_GROUP {
            // Of so many rows, most people have few, and a dictionary would be given up after it was built.
            layout = layout.set_column_dictionary_enabled(column, false);
        }
    }
    // No two rows have one digest, and none can be packed: a dictionary, or a search for repeats, would be for nothing.
    let digest = ColumnPath::new(vec![DIGEST.to_owned()]);
    layout
        .set_column_dictionary_enabled(digest.clone(), false)
        .set_column_compression(digest.clone(), Compression::UNCOMPRESSED)
        .set_column_statistics_enabled(digest, EnabledStatistics::None)
        .build()
}

/// Whose rows they are and with which batch they came.
#[derive(Debug, Clone)]
pub struct Origin {
    /// The agency that pushed them.
    pub source: String,
    /// Its id for the batch.
    pub batch_id: String,
    /// The number of the batch, which no other has.
    pub sequence: i64,
}

/// Stored rows with their digests, and nothing yet of where they come from: that is the same for all of a batch, and
/// need not be carried along while they are put in order.
pub(super) fn with_digests(rows: &RecordBatch, digests: &[[u8; WIDTH]]) -> Result<RecordBatch> {
    let mut fields = rows.schema().fields().to_vec();
    fields.push(Arc::new(ArrowField::new(DIGEST, DataType::Binary, true)));
    let mut columns = rows.columns().to_vec();
    columns.push(Arc::new(BinaryArray::from_iter_values(digests)));
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).map_err(Error::internal)
}

/// Rows with digests as rows of the table.
pub(super) fn with_origin(dataset: &Dataset, rows: &RecordBatch, origin: &Origin) -> Result<RecordBatch> {
    let count = rows.num_rows();
    let mut columns = rows.columns().to_vec();
    let digests = columns.pop().ok_or_else(|| Error::internal("rows without digests"))?;
    columns.push(Arc::new(StringArray::from(vec![origin.source.as_str(); count])) as ArrayRef);
    columns.push(Arc::new(StringArray::from(vec![origin.batch_id.as_str(); count])));
    columns.push(Arc::new(Int64Array::from(vec![origin.sequence; count])));
    columns.push(digests);
    RecordBatch::try_new(table_schema(dataset), columns).map_err(Error::internal)
}

/// The digest of each row of a table.
pub(super) fn digests(rows: &RecordBatch) -> Result<impl Iterator<Item = u128>> {
    let column = rows.column_by_name(DIGEST).ok_or_else(|| Error::internal("rows without digests"))?;
    let column = cast(column, &DataType::Binary).map_err(Error::internal)?;
    let digests = column.as_binary::<i32>().iter().flatten().filter_map(|digest| digest.try_into().ok());
    let digests: Vec<u128> = digests.map(u128::from_le_bytes).collect();
    match digests.len() == rows.num_rows() {
        true => Ok(digests.into_iter()),
        false => Err(Error::internal("rows without digests")),
    }
}

/// The day of the event of each row, in days since 1970 by UTC; nothing where none is known.
pub(super) fn event_days(dataset: &Dataset, rows: &RecordBatch) -> Result<Vec<Option<i32>>> {
    let column = dataset.event_time.as_ref().and_then(|field| rows.column_by_name(field));
    let Some(column) = column else { return Ok(vec![None; rows.num_rows()]) };
    Ok(layout::days(column.as_ref()).map_err(Error::internal)?.iter().collect())
}

/// Rows as one batch in the order in which they will lie: by day of the event, then division, then keyed
/// digest, so that time and territory prune and no order of the sender's is kept. Days are enough to prune by,
/// and finer times would keep the order of events across people.
pub(super) fn laid_out(dataset: &Dataset, batches: &[RecordBatch]) -> Result<RecordBatch> {
    let mut order = Vec::with_capacity(batches.iter().map(RecordBatch::num_rows).sum());
    for (at, batch) in batches.iter().enumerate() {
        let days = event_days(dataset, batch)?;
        let divisions = divisions(dataset, batch)?;
        for (row, digest) in digests(batch)?.enumerate() {
            let division = divisions.get(row).copied().unwrap_or_default();
            order.push((place(days[row], division, digest), at as u64 * MOST + row as u64));
        }
    }
    order.sort_unstable();
    let order: Vec<(usize, usize)> =
        order.into_iter().map(|(_, row)| ((row / MOST) as usize, (row % MOST) as usize)).collect();
    let batches: Vec<&RecordBatch> = batches.iter().collect();
    interleave_record_batch(&batches, &order).map_err(Error::internal)
}

/// More rows than a batch has.
const MOST: u64 = 1 << 32;

/// Where a row lies among others: 32 bits of its day, those without one first, 50 of its division, of which every
/// code has a value, and 46 of its digest.
fn place(day: Option<i32>, division: u64, digest: u128) -> u128 {
    let day = day.map_or(0, |day| u128::from(day.cast_unsigned() ^ (1 << 31)));
    day << 96 | u128::from(division & ((1 << 50) - 1)) << 46 | digest >> 82
}

/// Division codes as numbers that sort as the codes do; none where rows have no division.
fn divisions(dataset: &Dataset, rows: &RecordBatch) -> Result<Vec<u64>> {
    const LONGEST: usize = 15;
    let Some(column) = dataset.territory.as_ref().and_then(|field| rows.column_by_name(field)) else {
        return Ok(Vec::new());
    };
    let codes = cast(column, &DataType::Utf8).map_err(Error::internal)?;
    let number = |code: &str| {
        let missing = LONGEST.checked_sub(code.len())?;
        code.parse::<u64>().ok()?.checked_mul(10_u64.pow(u32::try_from(missing).ok()?))
    };
    Ok(codes.as_string::<i32>().iter().map(|code| code.and_then(number).unwrap_or_default()).collect())
}

/// How many rows new files have, as their own statistics say.
///
/// # Errors
/// Where one does not say it.
pub(super) fn rows_in(files: &[Add]) -> Result<u64> {
    let rows = |file: &Add| -> Option<u64> {
        let statistics: serde_json::Value = serde_json::from_str(file.stats.as_deref()?).ok()?;
        statistics["numRecords"].as_u64()
    };
    let total: Option<u64> = files.iter().map(rows).sum();
    total.ok_or_else(|| Error::internal("a file without a count of its rows"))
}

/// Rows in the columns of the table, in its order: a file of before a contract grew has fewer.
///
/// # Errors
/// A fault of the hub, also where the rows have a column that the table does not, which must not be lost.
pub(super) fn fit(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch> {
    if batch.schema().fields().iter().any(|field| schema.column_with_name(field.name()).is_none()) {
        return Err(Error::internal("a file has a column that its table does not"));
    }
    let column = |name: &str, kind: &DataType| match batch.column_by_name(name) {
        Some(column) if column.data_type() == kind => Ok(Arc::clone(column)),
        Some(column) => cast(column, kind).map_err(Error::internal),
        None => Ok(new_null_array(kind, batch.num_rows())),
    };
    let columns = schema.fields().iter().map(|field| column(field.name(), field.data_type()));
    RecordBatch::try_new(Arc::clone(schema), columns.collect::<Result<_>>()?).map_err(Error::internal)
}

/// Writes rows in the order in which they will lie, as files that no version names yet.
///
/// # Errors
/// [`Error::ResourceLimit`] where the disk is full, else a fault of the hub.
pub(super) async fn write(table: &DeltaTable, dataset: &Dataset, batches: &[RecordBatch]) -> Result<Vec<Add>> {
    if batches.iter().all(|rows| rows.num_rows() == 0) {
        return Ok(Vec::new());
    }
    write_laid_out(table, dataset, laid_out(dataset, batches)?).await
}

/// Writes rows that lie in order as files that no version names yet.
///
/// # Errors
/// [`Error::ResourceLimit`] where the disk is full, else a fault of the hub.
pub(super) async fn write_laid_out(table: &DeltaTable, dataset: &Dataset, rows: RecordBatch) -> Result<Vec<Add>> {
    let layout = file_layout(dataset, rows.num_rows());
    let mut writer = RecordBatchWriter::for_table(table).map_err(|e| write_error(&e))?.with_writer_properties(layout);
    writer.write(rows).await.map_err(|e| write_error(&e))?;
    writer.flush().await.map_err(|e| write_error(&e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_lie_by_day_then_division_then_digest() {
        let mut rows = Vec::new();
        for day in [None, Some(i32::MIN + 1), Some(-1), Some(0), Some(20_000), Some(i32::MAX)] {
            for division in [0, 42, 420_000_000_000_000, 999_999_999_999_999] {
                for digest in [0_u128, 1 << 82, 1 << 100, u128::MAX] {
                    rows.push((day, division, digest));
                }
            }
        }
        for one in &rows {
            for other in &rows {
                let places = [one, other].map(|(day, division, digest)| place(*day, *division, *digest));
                assert_eq!(places[0].cmp(&places[1]), one.cmp(other), "{one:?} and {other:?}");
            }
        }
    }
}

//! Takes rows out of a table for good: out of its files, out of its history, and out of what uploads that
//! failed left behind. Knows pseudonyms, and neither whose they are nor why they go.

use std::{
    collections::{BTreeMap, HashSet},
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use arrow::{
    array::{Array, AsArray, BooleanArray, RecordBatch},
    compute::{cast, concat_batches, filter_record_batch, not},
    datatypes::{DataType, SchemaRef},
    row::{RowConverter, SortField},
};
use deltalake_core::{
    checkpoints,
    kernel::{Action, Add, Remove},
    protocol::DeltaOperation,
};
use parquet::arrow::{
    ProjectionMask,
    arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder},
};

use super::{Change, SOURCE, Writer, files::fit, in_background, table_schema, version_of};
use crate::{
    dataset::{ChangeMode, Dataset, layout::WIDTH},
    error::{Error, Result},
};

/// Rows written to one file in place of a larger one, so that files of any size are rewritten in bounded memory.
const CHUNK: usize = 1 << 20;

/// The same in bytes, where rows hold long texts.
const CHUNK_BYTES: usize = 256 << 20;

/// The pseudonyms whose rows are to go, by the column they would stand in.
#[derive(Clone)]
pub struct Sought {
    columns: BTreeMap<String, HashSet<[u8; WIDTH]>>,
    /// The columns that say of which record a row is one state, where later states replace earlier ones.
    record: Vec<String>,
    /// Records of which some state names one of them: all their states go, or an earlier one would be the current
    /// one again.
    records: HashSet<Box<[u8]>>,
}

impl Sought {
    /// Seeks pseudonyms, each with its linkage domain, in the columns of a dataset.
    pub fn of(dataset: &Dataset, pseudonyms: &[(String, [u8; WIDTH])]) -> Self {
        let columns = dataset.stored_fields().filter_map(|field| {
            let domain = &field.identifier.as_ref()?.domain;
            let named = pseudonyms.iter().filter(|(of, _)| of == domain);
            let named: HashSet<_> = named.map(|(_, pseudonym)| *pseudonym).collect();
            (!named.is_empty()).then(|| (field.name.clone(), named))
        });
        let record = match dataset.change {
            ChangeMode::Append => Vec::new(),
            _ if dataset.key.is_empty() => Vec::new(),
            _ => std::iter::once(SOURCE.to_owned()).chain(dataset.key.iter().cloned()).collect(),
        };
        Self { columns: columns.collect(), record, records: HashSet::new() }
    }

    /// The columns that must be read to find rows to go.
    fn looked_at(&self) -> impl Iterator<Item = &str> {
        let record = if self.records.is_empty() { &[][..] } else { &self.record[..] };
        self.columns.keys().chain(record).map(String::as_str)
    }

    /// The record that each row is of; nothing for rows whose key is not whole, which stand for themselves.
    fn records_of(&self, rows: &RecordBatch) -> Result<Vec<Option<Box<[u8]>>>> {
        let columns = self.record.iter().map(|name| rows.column_by_name(name).cloned());
        let Some(columns) = columns.collect::<Option<Vec<_>>>().filter(|columns| !columns.is_empty()) else {
            return Ok(vec![None; rows.num_rows()]);
        };
        let fields = columns.iter().map(|column| SortField::new(column.data_type().clone())).collect();
        let names = RowConverter::new(fields).and_then(|converter| converter.convert_columns(&columns));
        let names = names.map_err(Error::internal)?;
        let whole = |row: usize| columns.iter().all(|column| column.is_valid(row));
        Ok((0..rows.num_rows()).map(|row| whole(row).then(|| names.row(row).as_ref().into())).collect())
    }

    /// The records of which a row of a file names one of those sought.
    fn records_in(&self, path: &Path) -> Result<Vec<Box<[u8]>>> {
        let Some(reader) = self.reader(path)? else { return Ok(Vec::new()) };
        let columns = self.columns.keys().chain(&self.record).map(String::as_str);
        let mask = ProjectionMask::columns(reader.parquet_schema(), columns);
        let mut records = Vec::new();
        for batch in reader.with_projection(mask).build().map_err(Error::internal)? {
            let batch = batch.map_err(Error::internal)?;
            let named = self.named_in(&batch)?;
            let of = self.records_of(&batch)?.into_iter().zip(&named);
            records.extend(of.filter(|(_, named)| *named == Some(true)).filter_map(|(record, _)| record));
        }
        Ok(records)
    }

    /// A reader of those row groups of a file that may hold what is sought; nothing where none may.
    fn reader(&self, path: &Path) -> Result<Option<ParquetRecordBatchReaderBuilder<File>>> {
        let file = File::open(path).map_err(Error::internal)?;
        let reader = ParquetRecordBatchReaderBuilder::try_new(file).map_err(Error::internal)?;
        let mut groups = Vec::new();
        for group in 0..reader.metadata().num_row_groups() {
            // No Bloom filter tells of records.
            if !self.records.is_empty() || self.may_occur_in(&reader, group)? {
                groups.push(group);
            }
        }
        Ok((!groups.is_empty()).then(|| reader.with_row_groups(groups)))
    }

    /// Whether no column of the dataset could name any of them.
    pub fn is_empty(&self) -> bool {
        self.columns.is_empty()
    }

    /// Which rows name one of them.
    fn named_in(&self, rows: &RecordBatch) -> Result<BooleanArray> {
        let mut named = vec![false; rows.num_rows()];
        for (name, pseudonyms) in &self.columns {
            let Some(column) = rows.column_by_name(name) else { continue };
            let column = cast(column, &DataType::Binary).map_err(Error::internal)?;
            for (named, value) in named.iter_mut().zip(column.as_binary::<i32>()) {
                *named |= value.is_some_and(|value| pseudonyms.contains(value));
            }
        }
        if !self.records.is_empty() {
            for (named, record) in named.iter_mut().zip(self.records_of(rows)?) {
                *named |= record.is_some_and(|record| self.records.contains(&record));
            }
        }
        Ok(BooleanArray::from(named))
    }

    /// Whether a row of a file names one of them. Bloom filters spare most row groups the reading.
    fn occurs_in(&self, path: &Path) -> Result<bool> {
        let Some(reader) = self.reader(path)? else { return Ok(false) };
        let mask = ProjectionMask::columns(reader.parquet_schema(), self.looked_at());
        for batch in reader.with_projection(mask).build().map_err(Error::internal)? {
            if self.named_in(&batch.map_err(Error::internal)?)?.true_count() > 0 {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn may_occur_in(&self, reader: &ParquetRecordBatchReaderBuilder<File>, group: usize) -> Result<bool> {
        for (at, column) in reader.parquet_schema().columns().iter().enumerate() {
            let Some(pseudonyms) = self.columns.get(column.name()) else { continue };
            let filter = reader.get_row_group_column_bloom_filter(group, at).map_err(Error::internal)?;
            let may_hold = |pseudonym: &[u8; WIDTH]| {
                filter.as_ref().is_none_or(|filter| filter.check::<[u8]>(pseudonym.as_slice()))
            };
            if pseudonyms.iter().any(may_hold) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl Writer<'_> {
    /// Deletes the rows that name somebody sought, and all other states of the records they are of, and returns how
    /// many there were. The files that held them are rewritten without them in one commit, which is published at
    /// once; `announce` is told how many rows go before they do.
    ///
    /// # Errors
    /// A fault of the disk, or that of `announce`; nothing is deleted then.
    pub async fn erase(
        &mut self,
        sought: &Arc<Sought>,
        announce: impl FnOnce(u64) -> Result<()> + Send,
    ) -> Result<u64> {
        let (mut actions, mut erased) = (Vec::new(), 0);
        let sought = &self.with_records(sought).await?;
        for (path, remove) in self.data_files()? {
            let (seeking, file) = (Arc::clone(sought), path.clone());
            if !in_background(move || seeking.occurs_in(&file)).await? {
                continue;
            }
            let (rows, adds) = self.rewrite(&path, sought).await?;
            erased += rows;
            actions.push(Action::Remove(remove));
            actions.extend(adds.into_iter().map(Action::Add));
        }
        if erased == 0 {
            return Ok(0);
        }
        announce(erased)?;
        self.commit_actions(actions, DeltaOperation::Delete { predicate: None }, Change::Erasure).await?;
        Ok(erased)
    }

    /// Those sought, together with the records of which some state names them.
    async fn with_records(&self, sought: &Arc<Sought>) -> Result<Arc<Sought>> {
        if sought.record.is_empty() {
            return Ok(Arc::clone(sought));
        }
        let mut records = HashSet::new();
        for (path, _) in self.data_files()? {
            let seeking = Arc::clone(sought);
            records.extend(in_background(move || seeking.records_in(&path)).await?);
        }
        Ok(Arc::new(Sought { records, ..Sought::clone(sought) }))
    }

    /// Forgets every version before the current one: their commits, whose statistics tell of rows that are
    /// gone, and the files that only they hold. Returns how many files were deleted. Questions that still
    /// read an older version fail then, and can be asked again.
    ///
    /// Files that no version holds go too where they were there before `since`, from which on every upload
    /// knows its tombstones: a younger one may belong to an upload on its way.
    ///
    /// # Errors
    /// A fault of the disk. What was deleted until then stays deleted, and the current version whole.
    pub async fn forget_history(&mut self, since: SystemTime) -> Result<u64> {
        // INVARIANT: protected statistics read a version that stays readable.
        if self.published_version() != version_of(&self.current()) {
            let nothing = DeltaOperation::Delete { predicate: None };
            self.commit_actions(Vec::new(), nothing, Change::Erasure).await?;
        }
        let table = self.current();
        let version = version_of(&table);
        checkpoints::create_checkpoint(&table, None).await.map_err(Error::internal)?;
        let log = self.folder().join("_delta_log");
        let flushed = log.clone();
        in_background(move || flush(&flushed, version).map_err(Error::internal)).await?;
        // From here on the table is read by its checkpoint, and needs no older commit.
        self.reopen().await?;
        let (folder, held) = (self.folder().to_owned(), self.held()?);
        in_background(move || {
            let commits = delete(&log, |path| log_version(path).is_some_and(|of| of < version))?;
            let older = |path: &Path| fs::metadata(path).and_then(|file| file.modified()).is_ok_and(|at| at < since);
            let files = delete_data(&folder, |path| !held.contains(path) && older(path))?;
            Ok(commits + files)
        })
        .await
    }

    /// Deletes the files that no version of the table holds and that name somebody sought, as uploads that
    /// failed leave them, and returns how many there were. A file that cannot be read is one that is just being
    /// written.
    ///
    /// # Errors
    /// A fault of the disk.
    pub async fn sweep(&mut self, sought: &Arc<Sought>) -> Result<u64> {
        let (folder, held, sought) = (self.folder().to_owned(), self.held()?, Arc::clone(sought));
        in_background(move || {
            delete_data(&folder, |path| !held.contains(path) && sought.occurs_in(path).unwrap_or(false))
        })
        .await
    }

    /// The files of the current version, and the actions that would remove them.
    fn data_files(&self) -> Result<Vec<(PathBuf, Remove)>> {
        let table = self.current();
        let state = table.snapshot().map_err(Error::internal)?;
        let files = state.log_data();
        let files = files.iter().map(|file| (self.folder().join(&*file.path()), file.remove_action(true)));
        Ok(files.collect())
    }

    fn held(&self) -> Result<HashSet<PathBuf>> {
        Ok(self.data_files()?.into_iter().map(|(path, _)| path).collect())
    }

    /// Writes the rows of a file that name nobody sought; returns how many were left out, and the new files.
    async fn rewrite(&self, path: &Path, sought: &Arc<Sought>) -> Result<(u64, Vec<Add>)> {
        let file = File::open(path).map_err(Error::internal)?;
        let reader = ParquetRecordBatchReaderBuilder::try_new(file).map_err(Error::internal)?;
        let reader = reader.build().map_err(Error::internal)?;
        let schema = table_schema(self.dataset());
        let mut rest = Rest { reader, sought: Arc::clone(sought), schema, left_out: 0 };
        let mut adds = Vec::new();
        loop {
            let (back, chunk) = in_background(move || {
                let chunk = rest.chunk()?;
                Ok((rest, chunk))
            })
            .await?;
            rest = back;
            let Some(chunk) = chunk else { return Ok((rest.left_out, adds)) };
            adds.extend(self.write_file(chunk).await?);
        }
    }
}

/// A file on its way into another without some of its rows.
struct Rest {
    reader: ParquetRecordBatchReader,
    sought: Arc<Sought>,
    schema: SchemaRef,
    left_out: u64,
}

impl Rest {
    /// The next rows that stay; none at the end.
    fn chunk(&mut self) -> Result<Option<RecordBatch>> {
        let (mut parts, mut rows, mut bytes) = (Vec::new(), 0, 0);
        while rows < CHUNK
            && (rows == 0 || bytes < CHUNK_BYTES)
            && let Some(batch) = self.reader.next()
        {
            let batch = batch.map_err(Error::internal)?;
            let named = self.sought.named_in(&batch)?;
            self.left_out += named.true_count() as u64;
            let stay = not(&named).map_err(Error::internal)?;
            let stay = filter_record_batch(&batch, &stay).map_err(Error::internal)?;
            rows += stay.num_rows();
            bytes += stay.get_array_memory_size();
            parts.push(fit(&stay, &self.schema)?);
        }
        if rows == 0 {
            return Ok(None);
        }
        concat_batches(&self.schema, &parts).map(Some).map_err(Error::internal)
    }
}

/// Flushes what the log of a table holds of a version.
fn flush(log: &Path, version: u64) -> io::Result<()> {
    for entry in fs::read_dir(log)? {
        let path = entry?.path();
        let hint = path.file_name().is_some_and(|name| name == "_last_checkpoint");
        if hint || log_version(&path) == Some(version) {
            File::open(path)?.sync_all()?;
        }
    }
    File::open(log)?.sync_all()
}

/// The version that a file of a table's log is of, by its name: `00000000000000000007.json`.
fn log_version(path: &Path) -> Option<u64> {
    path.file_name()?.to_str()?.get(..20)?.parse().ok()
}

/// Deletes the Parquet files below a table's folder that are chosen, outside its log.
fn delete_data(folder: &Path, chosen: impl Fn(&Path) -> bool) -> Result<u64> {
    let (mut deleted, mut open) = (0, vec![folder.to_owned()]);
    while let Some(inside) = open.pop() {
        for entry in fs::read_dir(&inside).map_err(Error::internal)? {
            let path = entry.map_err(Error::internal)?.path();
            if path.is_dir() && path.file_name().is_some_and(|name| name != "_delta_log") {
                open.push(path);
            }
        }
        let parquet = |path: &Path| path.extension().is_some_and(|end| end == "parquet");
        deleted += delete(&inside, |path| parquet(path) && chosen(path))?;
    }
    Ok(deleted)
}

/// Deletes the files in a folder that are chosen, durably.
fn delete(folder: &Path, chosen: impl Fn(&Path) -> bool) -> Result<u64> {
    let mut deleted = 0;
    for entry in fs::read_dir(folder).map_err(Error::internal)? {
        let path = entry.map_err(Error::internal)?.path();
        if path.is_file() && chosen(&path) {
            fs::remove_file(&path).map_err(Error::internal)?;
            deleted += 1;
        }
    }
    if deleted > 0 {
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(Error::internal)?;
    }
    Ok(deleted)
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, BinaryArray, Int64Array};
    use parquet::{arrow::ArrowWriter, file::properties::WriterProperties};

    use super::*;

    fn sought(persons: &[[u8; WIDTH]]) -> Sought {
        let columns = BTreeMap::from([("id_no".to_owned(), persons.iter().copied().collect())]);
        Sought { columns, record: Vec::new(), records: HashSet::new() }
    }

    fn file(folder: &Path, layout: WriterProperties) -> PathBuf {
        let persons: ArrayRef =
            Arc::new((0..100_u8).map(|row| (row % 9 != 0).then_some([row; WIDTH])).collect::<BinaryArray>());
        let numbers: ArrayRef = Arc::new(Int64Array::from_iter_values(0..100));
        let batch = RecordBatch::try_from_iter([("n", numbers), ("id_no", persons)]).expect("rows");
        let path = folder.join("part.parquet");
        let out = File::create(&path).expect("file");
        let mut writer = ArrowWriter::try_new(out, batch.schema(), Some(layout)).expect("writer");
        writer.write(&batch).expect("written");
        writer.close().expect("closed");
        path
    }

    #[test]
    fn rows_are_found_with_filters_and_without() {
        let folder = tempfile::tempdir().expect("folder");
        let filtered = WriterProperties::builder().set_max_row_group_row_count(Some(10)).set_bloom_filter_enabled(true);
        for layout in [WriterProperties::default(), filtered.build()] {
            let path = file(folder.path(), layout);
            for row in 0..100_u8 {
                assert_eq!(
                    sought(&[[row; WIDTH], [200; WIDTH]]).occurs_in(&path).expect("read"),
                    row % 9 != 0,
                    "{row}"
                );
            }
            assert!(!sought(&[[200; WIDTH]]).occurs_in(&path).expect("read"));
        }
    }

    #[test]
    fn the_others_stay_in_their_order_and_new_columns_are_empty() {
        let folder = tempfile::tempdir().expect("folder");
        let path = file(folder.path(), WriterProperties::default());
        let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(path).expect("file")).expect("reader");
        let fields = [("n", DataType::Int64), ("id_no", DataType::Binary), ("new", DataType::Utf8)];
        let fields = fields.map(|(name, kind)| arrow::datatypes::Field::new(name, kind, true));
        let schema = Arc::new(arrow::datatypes::Schema::new(fields.to_vec()));
        let sought = Arc::new(sought(&[[1; WIDTH], [50; WIDTH]]));
        let mut rest = Rest { reader: reader.build().expect("rows"), sought, schema, left_out: 0 };
        let kept = rest.chunk().expect("read").expect("rows");
        assert_eq!((rest.left_out, kept.num_rows(), kept.column(2).null_count()), (2, 98, 98));
        let numbers = kept.column(0).as_primitive::<arrow::datatypes::Int64Type>();
        assert_eq!(numbers.values().to_vec(), (0..100).filter(|n| ![1, 50].contains(n)).collect::<Vec<i64>>());
        assert!(rest.chunk().expect("read").is_none());
    }

    #[test]
    fn versions_are_read_off_names() {
        let version = |name: &str| log_version(Path::new(name));
        assert_eq!(version("t/_delta_log/00000000000000000007.json"), Some(7));
        assert_eq!(version("00000000000000000012.checkpoint.parquet"), Some(12));
        assert_eq!((version("_last_checkpoint"), version("7.json")), (None, None));
    }
}

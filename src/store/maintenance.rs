//! Upkeep of tables: small files are put together, checkpoints written, and what no version needs any more is
//! deleted, without stopping readers and almost without stopping writers. Rows stay as they are: what upkeep
//! adds to a table's history changes none of them. It knows nothing of what the rows mean beyond the day of
//! their event.
//!
//! Ages are those of files and of Delta's own entries, which go by the clock of the machine, not by the hub's.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    sync::Arc,
};

use arrow::{
    array::{ArrayRef, BooleanArray, Date32Array, RecordBatch},
    compute::{concat_batches, filter_record_batch},
    datatypes::SchemaRef,
};
use chrono::{DateTime, TimeDelta, Utc};
use deltalake_core::{
    DeltaTable, checkpoints, ensure_table_uri,
    kernel::{Action, Add, LogicalFileView},
    protocol::DeltaOperation,
};
use futures::TryStreamExt;
use parquet::arrow::{ProjectionMask, arrow_reader::ParquetRecordBatchReaderBuilder};

use super::{
    Change, Store, Table, Writer,
    files::{self, fit},
    in_background, io_error, table_schema, version_of,
};
use crate::{
    dataset::{Dataset, DatasetName, FieldType, layout},
    error::{Error, Result},
};

/// How many rows are held in memory at once, and how many a file gets at most.
const ROWS: usize = 1 << 20;

/// How many bytes are held in memory at once: a row may hold long texts.
const BYTES: usize = 256 << 20;

/// How many commits come between two checkpoints: few enough that opening a table reads little.
const COMMITS: u64 = 50;

/// How long a file that nothing names may be one that an upload is still writing.
const LEFTOVER: TimeDelta = TimeDelta::hours(24);

/// The longest time for which old versions can be kept: Delta's checkpoints forget after a week when a file
/// was removed.
pub const LONGEST: TimeDelta = TimeDelta::hours(168);

/// When and how tables are kept up.
#[derive(Debug, Clone, Copy)]
pub struct Upkeep {
    /// How many files must be worth putting together before they are.
    pub small_files: usize,
    /// How large a file is made, in bytes; what has half of it is left alone.
    pub target: u64,
    /// How long a version can still be read after it was replaced; at most [`LONGEST`].
    pub keep: TimeDelta,
}

impl Default for Upkeep {
    fn default() -> Self {
        Self { small_files: 16, target: 64 << 20, keep: LONGEST }
    }
}

/// What putting files together came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compacted {
    /// The version of the table that has the new files.
    pub version: u64,
    /// How many files the table had.
    pub files_before: usize,
    /// How many it has now.
    pub files_after: usize,
}

/// How many files of a table would be put together now.
///
/// # Errors
/// Only a fault of the hub.
pub async fn crowd(store: &Store, name: &DatasetName, settings: &Upkeep) -> Result<usize> {
    Ok(choose(files_of(&table_of(store, name)?.current()).await?, settings).len())
}

/// Puts small files of a table together, files of neighbouring days first, so that time and territory still
/// leave most of the table unread. Nothing where it would not pay. Reads and writes without being the table's
/// writer, so that pushes need not wait; where the files were replaced meanwhile, nothing is done until next
/// time.
///
/// # Errors
/// [`Error::ResourceLimit`] where the disk is full, else a fault of the hub; the table is as before then.
pub async fn compact(store: &Store, name: &DatasetName, settings: &Upkeep) -> Result<Option<Compacted>> {
    let table = table_of(store, name)?;
    let chosen = choose(files_of(&table.current()).await?, settings);
    if chosen.is_empty() {
        return Ok(None);
    }
    let Some(plan) = Plan::of(&table.dataset, &table.folder, &chosen, settings).await? else { return Ok(None) };
    let mut added = Vec::new();
    if let Err(error) = rewrite(store, table, &plan, &mut added).await {
        discard(&table.folder, &added);
        return Err(error);
    }

    let mut writer = store.writer(name).await?;
    let standing = paths(&files_of(&writer.current()).await?);
    if chosen.iter().any(|file| !standing.contains(&*file.path())) {
        discard(&table.folder, &added);
        return Ok(None);
    }
    let files_after = standing.len() - chosen.len() + added.len();
    let removals = chosen.iter().map(|file| Action::Remove(file.remove_action(false)));
    let additions = added.into_iter().map(|file| Action::Add(Add { data_change: false, ..file }));
    let actions = removals.chain(additions).collect();
    let target_size = i64::try_from(settings.target).map_err(Error::internal)?;
    let operation = DeltaOperation::Optimize { predicate: None, target_size };
    // Where this fails the commit may have landed all the same: the new files stay until nothing names them.
    let version = writer.commit_actions(actions, operation, Change::None).await?;
    Ok(Some(Compacted { version, files_before: standing.len(), files_after }))
}

/// Writes a checkpoint, durably, where enough commits came since the last: whether one was written.
///
/// # Errors
/// [`Error::ResourceLimit`] where the disk is full, else a fault of the hub.
pub async fn checkpoint(store: &Store, name: &DatasetName) -> Result<bool> {
    let table = table_of(store, name)?;
    let current = table.current();
    let version = version_of(&current);
    let last = last_checkpoint(&table.folder).map_err(|e| io_error(&e))?;
    if version < last + COMMITS {
        return Ok(false);
    }
    checkpoints::create_checkpoint(&current, None).await.map_err(|e| super::write_error(&e))?;
    make_checkpoints_durable(&table.folder).map_err(|e| io_error(&e))?;
    Ok(true)
}

/// Deletes what no version needs that can still be read: the current one, the published one, and those that
/// were replaced less than [`Upkeep::keep`] before `now`. What nothing names is left for a day, since an upload
/// may be about to. Old entries of the table's log go with it. Returns how many files were deleted.
///
/// # Errors
/// A fault of the disk or of the table.
pub async fn vacuum(writer: &Writer<'_>, now: DateTime<Utc>, settings: &Upkeep) -> Result<usize> {
    let replaced_before = (now - settings.keep.min(LONGEST)).timestamp_millis();
    let written_before = now - settings.keep.max(LEFTOVER);
    let named = Named::of(writer).await?;
    let mut deleted = 0;
    for file in data_files(writer.folder()).map_err(|e| io_error(&e))? {
        let over = match named.replaced.get(&file.name) {
            _ if named.needed.contains(&file.name) => false,
            Some(at) => *at <= replaced_before,
            None => file.written <= written_before,
        };
        if over {
            fs::remove_file(&file.path).map_err(|e| io_error(&e))?;
            deleted += 1;
        }
    }
    if deleted > 0 {
        File::open(writer.folder()).and_then(|folder| folder.sync_all()).map_err(|e| io_error(&e))?;
    }
    Ok(deleted + trim_log(writer, replaced_before).await?)
}

/// Deletes the data files that no version names, and what was half written of others: uploads and compactions
/// that a crash cut short. Only for the start of a hub, while nobody writes. Returns how many were deleted.
///
/// # Errors
/// A fault of the disk or of the table.
pub async fn sweep(writer: &Writer<'_>) -> Result<usize> {
    let named = Named::of(writer).await?;
    let mut over: Vec<_> = data_files(writer.folder()).map_err(|e| io_error(&e))?;
    over.retain(|file| !named.needed.contains(&file.name) && !named.replaced.contains_key(&file.name));
    let mut over: Vec<_> = over.into_iter().map(|file| file.path).collect();
    for entry in entries(&writer.folder().join("_delta_log")).map_err(|e| io_error(&e))? {
        // How the object store calls files that it has not finished.
        if entry.name.contains('#') {
            over.push(entry.path);
        }
    }
    for path in &over {
        fs::remove_file(path).map_err(|e| io_error(&e))?;
    }
    Ok(over.len())
}

/// Deletes checkpoints that a power cut left torn, so that the table opens from the log they would have
/// shortened. Only for the start of a hub, before the table is opened. Nothing where there is no table.
///
/// # Errors
/// A fault of the disk.
pub fn drop_torn_checkpoints(folder: &Path) -> io::Result<()> {
    let log = folder.join("_delta_log");
    if !log.exists() {
        return Ok(());
    }
    for entry in entries(&log)? {
        if !entry.name.ends_with(CHECKPOINT) || is_whole(&entry.path)? {
            continue;
        }
        let newest = log.join(NEWEST_CHECKPOINT);
        if newest.exists() {
            fs::remove_file(newest)?;
        }
        fs::remove_file(&entry.path)?;
    }
    Ok(())
}

/// How the name of a checkpoint ends; it begins with the version in twenty digits.
const CHECKPOINT: &str = ".checkpoint.parquet";

/// The file that names the newest checkpoint.
const NEWEST_CHECKPOINT: &str = "_last_checkpoint";

fn table_of<'a>(store: &'a Store, name: &DatasetName) -> Result<&'a Table> {
    store.tables.get(name).ok_or_else(|| Error::internal("a dataset without a table"))
}

async fn files_of(table: &DeltaTable) -> Result<Vec<LogicalFileView>> {
    let state = table.snapshot().map_err(Error::internal)?;
    let log = table.log_store();
    state.snapshot().file_views(log.as_ref(), None).try_collect().await.map_err(Error::internal)
}

fn paths(files: &[LogicalFileView]) -> HashSet<String> {
    files.iter().map(|file| file.path().into_owned()).collect()
}

fn size_of(file: &LogicalFileView) -> u64 {
    u64::try_from(file.size()).unwrap_or_default()
}

/// The files that are worth putting together, from the smallest on; none where they are too few.
fn choose(mut files: Vec<LogicalFileView>, settings: &Upkeep) -> Vec<LogicalFileView> {
    files.retain(|file| {
        size_of(file) < settings.target / 2
            && file.num_records().is_some_and(|rows| rows < ROWS / 2)
            && file.deletion_vector_descriptor().is_none()
    });
    files.sort_by_key(|file| (size_of(file), file.path().into_owned()));
    let sizes: Vec<_> = files.iter().map(size_of).collect();
    files.truncate(how_many(&sizes, settings));
    files
}

/// How many of the smallest files are put together, given all sizes from the smallest on.
// INVARIANT: the largest of them is no larger than all the others, so that what is written anew ends in at
// least twice the bytes it was in, and no row is written anew more often than its file can double.
fn how_many(sizes: &[u64], settings: &Upkeep) -> usize {
    let (mut together, mut count) = (0, 0);
    for (at, size) in sizes.iter().enumerate() {
        if *size <= together {
            count = at + 1;
        }
        together += size;
    }
    if count < settings.small_files.max(2) { 0 } else { count }
}

/// A day since 1970 as files are laid out by it; none for rows without a time.
type Day = Option<i32>;

/// Days from the first to the last, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Span {
    first: Day,
    last: Day,
}

impl Span {
    fn contains(self, day: Day) -> bool {
        self.first <= day && day <= self.last
    }

    fn meets(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

/// How files are put together: which spans of days come out, each of about one file.
struct Plan {
    files: Vec<(PathBuf, Span)>,
    event_time: Option<String>,
    spans: Vec<Span>,
    rows: usize,
    rows_in_file: usize,
}

impl Plan {
    /// Nothing where so many files would come out that the work would not pay.
    async fn of(
        dataset: &Dataset,
        folder: &Path,
        chosen: &[LogicalFileView],
        settings: &Upkeep,
    ) -> Result<Option<Self>> {
        let event_time = dataset.event_time.clone().filter(|name| {
            dataset.field(name).is_some_and(|field| matches!(field.kind, FieldType::Timestamp | FieldType::Date))
        });
        let paths: Vec<_> = chosen.iter().map(|file| folder.join(&*file.path())).collect();
        let (counted, field) = (paths.clone(), event_time.clone());
        let days = in_background(move || {
            counted.iter().map(|path| days_in(path, field.as_deref())).collect::<Result<Vec<_>>>()
        })
        .await?;

        let mut rows_of_day = BTreeMap::<Day, usize>::new();
        for (day, rows) in days.iter().flatten() {
            *rows_of_day.entry(*day).or_default() += rows;
        }
        let rows: usize = rows_of_day.values().sum();
        if rows != chosen.iter().filter_map(LogicalFileView::num_records).sum::<usize>() {
            return Err(Error::internal("files of a table have other rows than its log says"));
        }
        let bytes: u64 = chosen.iter().map(size_of).sum();
        let rows_in_file = rows_in_file(rows, bytes, settings);
        let spans = spans(&rows_of_day, rows_in_file);
        if spans.len() * 2 > chosen.len() {
            return Ok(None);
        }
        // A file without rows goes without being read again.
        let reach = |days: BTreeMap<Day, usize>| -> Option<Span> {
            Some(Span { first: *days.first_key_value()?.0, last: *days.last_key_value()?.0 })
        };
        let files = paths.into_iter().zip(days).filter_map(|(path, days)| Some((path, reach(days)?))).collect();
        Ok(Some(Self { files, event_time, spans, rows, rows_in_file }))
    }
}

/// How many rows a new file gets: as many as make it large enough, and the same in each.
fn rows_in_file(rows: usize, bytes: u64, settings: &Upkeep) -> usize {
    let bytes_of_row = (bytes / (rows.max(1) as u64)).max(1);
    let most = usize::try_from(settings.target / bytes_of_row).unwrap_or(ROWS).clamp(1, ROWS);
    rows.div_ceil(rows.div_ceil(most).max(1)).max(1)
}

/// Neighbouring days, as many as make a file; a day is never split here.
fn spans(rows_of_day: &BTreeMap<Day, usize>, rows_in_file: usize) -> Vec<Span> {
    let mut spans = Vec::<Span>::new();
    let mut held = 0;
    for (day, rows) in rows_of_day {
        match spans.last_mut() {
            Some(span) if held + rows <= rows_in_file => {
                span.last = *day;
                held += rows;
            }
            _ => {
                spans.push(Span { first: *day, last: *day });
                held = *rows;
            }
        }
    }
    spans
}

/// Writes the new files, span by span, and lists those that were written, also where it fails.
async fn rewrite(store: &Store, table: &Table, plan: &Plan, added: &mut Vec<Add>) -> Result<()> {
    let (name, schema) = (&table.dataset.name, table_schema(&table.dataset));
    for span in &plan.spans {
        let (mut held, mut rows, mut bytes) = (Vec::new(), 0, 0);
        let met: Vec<_> = plan.files.iter().filter(|(_, reach)| reach.meets(*span)).map(|(path, _)| path).collect();
        for path in met {
            let (path, field, into, span) = (path.clone(), plan.event_time.clone(), Arc::clone(&schema), *span);
            let read = in_background(move || read(&path, field.as_deref(), &into, span)).await?;
            rows += read.iter().map(RecordBatch::num_rows).sum::<usize>();
            bytes += read.iter().map(RecordBatch::get_array_memory_size).sum::<usize>();
            held.extend(read);
            // A day of more rows than memory should hold gets several files.
            if rows >= plan.rows_in_file.saturating_mul(2).min(ROWS) || bytes >= BYTES {
                let batch = concat_batches(&schema, &held).map_err(Error::internal)?;
                (held, rows, bytes) = (Vec::new(), 0, 0);
                added.extend(store.write_file(name, batch).await?);
            }
        }
        if rows > 0 {
            let batch = concat_batches(&schema, &held).map_err(Error::internal)?;
            added.extend(store.write_file(name, batch).await?);
        }
    }
    // INVARIANT: nothing is lost and nothing doubled, or nothing is committed.
    if files::rows_in(added)? != plan.rows as u64 {
        return Err(Error::internal("putting files together gave other rows than were read"));
    }
    Ok(())
}

/// Deletes files that were written and never committed; what cannot be deleted now goes when it is a day old.
fn discard(folder: &Path, files: &[Add]) {
    for file in files {
        if let Err(error) = fs::remove_file(folder.join(&file.path)) {
            tracing::warn!(%error, "a file that was not needed is left for later");
        }
    }
}

/// How many rows of a file lie on each day.
fn days_in(path: &Path, event_time: Option<&str>) -> Result<BTreeMap<Day, usize>> {
    let file = File::open(path).map_err(|e| io_error(&e))?;
    let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(Error::internal)?;
    let mut days = BTreeMap::new();
    let Some(name) = event_time.filter(|name| builder.schema().column_with_name(name).is_some()) else {
        let rows = usize::try_from(builder.metadata().file_metadata().num_rows()).map_err(Error::internal)?;
        if rows > 0 {
            days.insert(None, rows);
        }
        return Ok(days);
    };
    let mask = ProjectionMask::columns(builder.parquet_schema(), [name]);
    for batch in builder.with_projection(mask).build().map_err(Error::internal)? {
        let batch = batch.map_err(Error::internal)?;
        for day in days_of(batch.column(0))?.iter() {
            *days.entry(day).or_default() += 1;
        }
    }
    Ok(days)
}

fn days_of(times: &ArrayRef) -> Result<Date32Array> {
    layout::days(times.as_ref()).map_err(Error::internal)
}

/// The rows of a file that lie in a span of days, in the columns of the table.
fn read(path: &Path, event_time: Option<&str>, schema: &SchemaRef, span: Span) -> Result<Vec<RecordBatch>> {
    let file = File::open(path).map_err(|e| io_error(&e))?;
    let reader = ParquetRecordBatchReaderBuilder::try_new(file).map_err(Error::internal)?;
    let mut batches = Vec::new();
    for batch in reader.build().map_err(Error::internal)? {
        let batch = fit(&batch.map_err(Error::internal)?, schema)?;
        let kept: BooleanArray = match event_time.and_then(|name| batch.column_by_name(name)) {
            Some(times) => days_of(times)?.iter().map(|day| Some(span.contains(day))).collect(),
            None => vec![true; batch.num_rows()].into(),
        };
        let batch = filter_record_batch(&batch, &kept).map_err(Error::internal)?;
        if batch.num_rows() > 0 {
            batches.push(batch);
        }
    }
    Ok(batches)
}

/// What the versions of a table name.
struct Named {
    /// Files of the current and the published version.
    needed: HashSet<String>,
    /// Files that versions before the current one had, with when they were replaced, in milliseconds since 1970.
    replaced: HashMap<String, i64>,
}

impl Named {
    async fn of(writer: &Writer<'_>) -> Result<Self> {
        // Read anew: what is held in memory may lead back to log files that were deleted since.
        let folder = writer.folder().to_str().ok_or_else(|| Error::internal("the path is not UTF-8"))?;
        let location = ensure_table_uri(folder).map_err(Error::internal)?;
        let newest = DeltaTable::try_from_url(location).await.map_err(Error::internal)?;
        let mut needed = paths(&files_of(&newest).await?);
        needed.extend(paths(&files_of(&writer.current()).await?));
        let mut published = newest.clone();
        published.load_version(writer.published_version()).await.map_err(Error::internal)?;
        needed.extend(paths(&files_of(&published).await?));

        let log = newest.log_store();
        let state = newest.snapshot().map_err(Error::internal)?;
        let removals: Vec<_> = state.all_tombstones(log.as_ref()).try_collect().await.map_err(Error::internal)?;
        let replaced = removals.iter().map(|removal| {
            // When is not known: as if it had been now.
            let at = removal.deletion_timestamp().unwrap_or_else(|| Utc::now().timestamp_millis());
            (removal.path().into_owned(), at)
        });
        Ok(Self { needed, replaced: replaced.collect() })
    }
}

/// Deletes log files from before the last checkpoint that is no newer than the published version and than any
/// version to be kept, and returns how many.
async fn trim_log(writer: &Writer<'_>, replaced_before: i64) -> Result<usize> {
    // INVARIANT: log files are only deleted in favour of a checkpoint that would survive a power cut.
    make_checkpoints_durable(writer.folder()).map_err(|e| io_error(&e))?;
    let current = writer.current();
    let oldest_read = writer.published_version().min(version_of(&current));
    let log = current.log_store();
    let trimmed = checkpoints::cleanup_expired_logs_for(oldest_read, log.as_ref(), replaced_before, None);
    trimmed.await.map_err(Error::internal)
}

/// The version of the newest checkpoint; 0 where there is none.
fn last_checkpoint(folder: &Path) -> io::Result<u64> {
    let entries = entries(&folder.join("_delta_log"))?;
    let versions = entries.iter().filter_map(|entry| entry.name.strip_suffix(CHECKPOINT)?.parse().ok());
    Ok(versions.max().unwrap_or_default())
}

fn make_checkpoints_durable(folder: &Path) -> io::Result<()> {
    let log = folder.join("_delta_log");
    for entry in entries(&log)? {
        if entry.name.ends_with(CHECKPOINT) || entry.name == NEWEST_CHECKPOINT {
            File::open(entry.path)?.sync_all()?;
        }
    }
    File::open(log)?.sync_all()
}

/// Whether a Parquet file ends as one does.
fn is_whole(path: &Path) -> io::Result<bool> {
    let mut file = File::open(path)?;
    let mut end = [0; 4];
    if file.metadata()?.len() < 12 {
        return Ok(false);
    }
    file.seek(SeekFrom::End(-4))?;
    file.read_exact(&mut end)?;
    Ok(&end == b"PAR1")
}

/// A file in a folder.
struct Entry {
    path: PathBuf,
    name: String,
    written: DateTime<Utc>,
}

fn entries(folder: &Path) -> io::Result<Vec<Entry>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let metadata = match entry.metadata() {
            Ok(metadata) => metadata,
            // A writer has just finished it under its proper name.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        if let (true, Ok(name)) = (metadata.is_file(), entry.file_name().into_string()) {
            found.push(Entry { path: entry.path(), name, written: metadata.modified()?.into() });
        }
    }
    Ok(found)
}

/// The data files of a table, finished or not.
fn data_files(folder: &Path) -> io::Result<Vec<Entry>> {
    let mut files = entries(folder)?;
    files.retain(|file| file.name.contains(".parquet"));
    Ok(files)
}

#[cfg(test)]
mod tests {
    use arrow::{
        array::{Array, AsArray, Int64Array, StringArray, TimestampMicrosecondArray},
        datatypes::{DataType, Field, Schema, TimeUnit},
    };
    use parquet::arrow::ArrowWriter;
    use rand::{Rng, SeedableRng, rngs::StdRng};

    use super::*;

    const DAY: i64 = 86_400_000_000;

    fn settings() -> Upkeep {
        Upkeep { small_files: 4, target: 64_000, ..Upkeep::default() }
    }

    #[test]
    fn too_few_files_are_left_and_a_large_one_waits_for_its_like() {
        assert_eq!(how_many(&[10, 10, 10], &settings()), 0);
        assert_eq!(how_many(&[10, 10, 10, 10], &settings()), 4);
        // Five thousand bytes are not written anew for forty.
        assert_eq!(how_many(&[10, 10, 10, 10, 5_000], &settings()), 4);
        assert_eq!(how_many(&[900, 900, 900, 900, 900, 900, 5_000, 10_000, 30_000], &settings()), 8);
        // Nearly equal ones are of one kind.
        assert_eq!(how_many(&[900, 901, 902, 903, 904], &settings()), 5);
    }

    #[test]
    fn rewriting_ends_and_leaves_few_files() {
        let (mut sizes, mut written) = (Vec::<u64>::new(), 0);
        for _ in 0..5_000 {
            sizes.push(100);
            sizes.sort_unstable();
            let small: Vec<_> = sizes.iter().copied().filter(|size| *size < 32_000).collect();
            let together: u64 = sizes.drain(..how_many(&small, &settings())).sum();
            if together > 0 {
                sizes.push(together);
                written += together;
            }
            assert!(sizes.len() < 4 + 12 + 500_000 / 32_000, "{sizes:?}");
        }
        assert_eq!(sizes.iter().sum::<u64>(), 500_000);
        // From a hundred bytes to half of the target there are nine doublings.
        assert!(written < 500_000 * 10, "{written}");
    }

    #[test]
    fn days_fill_files_in_order_and_each_lies_in_one() {
        let days = |days: &[(Day, usize)]| days.iter().copied().collect::<BTreeMap<_, _>>();
        let few = days(&[(None, 5), (Some(1), 50), (Some(2), 45), (Some(4), 300), (Some(9), 1)]);
        let span = |first, last| Span { first, last };
        let expected = [span(None, Some(2)), span(Some(4), Some(4)), span(Some(9), Some(9))];
        assert_eq!(spans(&few, 100), expected);
        assert!(spans(&BTreeMap::new(), 100).is_empty());

        let mut random = StdRng::seed_from_u64(5);
        for _ in 0..100 {
            let days: BTreeMap<Day, usize> =
                (0..30).map(|_| (Some(random.random_range(0..60)), random.random_range(1..50))).collect();
            let spans = spans(&days, 80);
            for day in days.keys() {
                assert_eq!(spans.iter().filter(|span| span.contains(*day)).count(), 1, "{days:?}");
            }
            assert!(spans.windows(2).all(|pair| pair[0].last < pair[1].first && !pair[0].meets(pair[1])));
        }
    }

    #[test]
    fn files_are_of_one_size() {
        // A thousand rows of a hundred bytes: two files are needed, and neither is a remainder.
        assert_eq!(rows_in_file(1_000, 100_000, &settings()), 500);
        assert_eq!(rows_in_file(100, 10_000, &settings()), 100);
        assert_eq!(rows_in_file(0, 0, &settings()), 1);
        assert_eq!(rows_in_file(3 * ROWS, 3 * ROWS as u64, &Upkeep::default()), ROWS);
    }

    #[test]
    fn a_file_is_read_by_days_and_lacks_no_column() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("a.parquet");
        let zone = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
        let fields = vec![Field::new("at", zone.clone(), true), Field::new("what", DataType::Utf8, true)];
        let times = [Some(DAY - 1), Some(DAY), None, Some(3 * DAY), Some(2 * DAY - 1)];
        let written = RecordBatch::try_new(
            Arc::new(Schema::new(fields)),
            vec![
                Arc::new(TimestampMicrosecondArray::from_iter(times).with_timezone("UTC")),
                Arc::new(StringArray::from(vec!["a", "b", "c", "d", "e"])),
            ],
        )
        .expect("batch");
        let mut writer =
            ArrowWriter::try_new(File::create(&path).expect("file"), written.schema(), None).expect("writer");
        writer.write(&written).expect("write");
        writer.close().expect("close");

        let days = days_in(&path, Some("at")).expect("days");
        assert_eq!(days, BTreeMap::from([(None, 1), (Some(0), 1), (Some(1), 2), (Some(3), 1)]));
        assert_eq!(days_in(&path, None).expect("days"), BTreeMap::from([(None, 5)]));
        assert_eq!(days_in(&path, Some("other")).expect("days"), BTreeMap::from([(None, 5)]));

        let table: SchemaRef = Arc::new(Schema::new(vec![
            Field::new("at", zone, true),
            Field::new("more", DataType::Int64, true),
            Field::new("what", DataType::Utf8, true),
        ]));
        let found = |first, last| {
            let batches = read(&path, Some("at"), &table, Span { first, last }).expect("rows");
            let batch = concat_batches(&table, &batches).expect("one batch");
            assert_eq!(batch.column(1).as_ref(), &Int64Array::new_null(batch.num_rows()) as &dyn Array);
            batch.column(2).as_string::<i32>().iter().flatten().collect::<String>()
        };
        assert_eq!(found(Some(1), Some(2)), "be");
        assert_eq!(found(None, Some(0)), "ac");
        assert_eq!(found(Some(3), Some(9)), "d");
        assert!(
            read(&path, Some("at"), &written.project(&[0]).expect("one").schema(), Span { first: None, last: None })
                .is_err()
        );
    }

    #[test]
    fn torn_checkpoints_go_and_whole_ones_stay() {
        let folder = tempfile::tempdir().expect("folder");
        drop_torn_checkpoints(folder.path()).expect("no table");
        let log = folder.path().join("_delta_log");
        fs::create_dir(&log).expect("log");
        let write = |name: &str, bytes: &[u8]| fs::write(log.join(name), bytes).expect("file");
        write("00000000000000000050.checkpoint.parquet", b"PAR1 and more and PAR1");
        write(NEWEST_CHECKPOINT, b"{}");
        drop_torn_checkpoints(folder.path()).expect("whole");
        assert_eq!(last_checkpoint(folder.path()).expect("version"), 50);
        assert!(log.join(NEWEST_CHECKPOINT).exists());
        write("00000000000000000100.checkpoint.parquet", &[0; 40]);
        assert_eq!(last_checkpoint(folder.path()).expect("version"), 100);
        drop_torn_checkpoints(folder.path()).expect("torn");
        assert_eq!(last_checkpoint(folder.path()).expect("version"), 50);
        assert!(!log.join(NEWEST_CHECKPOINT).exists());
    }
}

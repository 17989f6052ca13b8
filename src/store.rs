//! Tables on disk: one Delta table a dataset, one writer a table. Accepts [`Pseudonymised`] and nothing
//! else.
//!
//! Every row carries four columns of the hub's own: its source agency, its batch, its order of arrival
//! and a keyed digest. Keys, copies and current state stay within a source, so that nobody overwrites or
//! probes another's rows.

pub mod metadata;
pub mod publication;

use std::{
    collections::{BTreeMap, HashSet},
    fs::File,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock, RwLockWriteGuard},
};

use arrow::{
    array::{ArrayRef, AsArray, BinaryArray, BooleanArray, Int64Array, RecordBatch, StringArray},
    compute::{SortColumn, cast, filter_record_batch, lexsort_to_indices, take_record_batch},
    datatypes::{DataType, Field as ArrowField, Int64Type, Schema, SchemaRef},
};
use datafusion::{
    catalog::{Session, TableProvider},
    execution::{SessionState, SessionStateBuilder, runtime_env::RuntimeEnv},
    physical_plan::collect,
    prelude::SessionConfig,
};
use deltalake_core::{
    DeltaTable, DeltaTableError, TableProperty,
    delta_datafusion::{DeltaSessionConfig, planner::DeltaPlanner},
    ensure_table_uri,
    kernel::{StructType, Transaction, engine::arrow_conversion::TryIntoKernel, transaction::CommitProperties},
    protocol::SaveMode,
};
use parquet::{
    basic::Compression,
    file::properties::{EnabledStatistics, WriterProperties},
    schema::types::ColumnPath,
};
use tokio::sync::{Mutex, MutexGuard};

use crate::{
    dataset::{
        Dataset, DatasetName, Datasets, DivisionRule, FieldType,
        division::Divisions,
        layout::{WIDTH, stored_schema},
    },
    error::{Error, Result},
    pseudonym::Pseudonymised,
};
use publication::{Publisher, Standing, Versions};

/// The agency whose caller pushed a row.
pub const SOURCE: &str = "__source";
/// The batch a row came in.
pub const BATCH: &str = "__batch";
/// The number of the commit a row came in, rising within a table.
pub const ARRIVAL: &str = "__arrival";
/// The keyed digest of the row as it came in.
pub const DIGEST: &str = "__digest";

fn table_schema(dataset: &Dataset) -> SchemaRef {
    let mut fields: Vec<_> = stored_schema(dataset).fields().to_vec();
    fields.push(Arc::new(ArrowField::new(SOURCE, DataType::Utf8, true)));
    fields.push(Arc::new(ArrowField::new(BATCH, DataType::Utf8, true)));
    fields.push(Arc::new(ArrowField::new(ARRIVAL, DataType::Int64, true)));
    fields.push(Arc::new(ArrowField::new(DIGEST, DataType::Binary, true)));
    Arc::new(Schema::new(fields))
}

/// All tables of a hub.
pub struct Store {
    tables: BTreeMap<DatasetName, Table>,
    divisions: RwLock<Arc<Divisions>>,
    session: Arc<SessionState>,
    publisher: Publisher,
}

struct Table {
    dataset: Arc<Dataset>,
    folder: PathBuf,
    versions: RwLock<Versions>,
    writing: Mutex<Writing>,
}

/// What the one writer of a table knows.
#[derive(Default)]
struct Writing {
    /// Digests of all rows, read from the table when the first batch comes.
    digests: Option<HashSet<[u8; WIDTH]>>,
}

/// One table's writer, held from the search for copies to the commit.
pub struct Writer<'a> {
    store: &'a Store,
    table: &'a Table,
    writing: MutexGuard<'a, Writing>,
}

/// Rows that are new to their table, in the order in which they will lie there.
pub struct Prepared {
    rows: RecordBatch,
    digests: Vec<[u8; WIDTH]>,
    source: String,
    /// Exact copies left out.
    pub duplicates: u64,
}

impl Prepared {
    /// How many rows will be stored.
    pub fn accepted(&self) -> u64 {
        self.digests.len() as u64
    }
}

/// The tables as they stood at one moment; cheap to hold.
#[derive(Clone)]
pub struct Snapshot {
    tables: Arc<BTreeMap<DatasetName, Standing>>,
    session: Arc<SessionState>,
}

impl Snapshot {
    /// The version of a table in this snapshot, as row-level questions read it.
    pub fn version(&self, name: &DatasetName) -> Option<i64> {
        i64::try_from(version_of(&self.tables.get(name)?.current)).ok()
    }

    /// The version of a table in this snapshot, as protected statistics read it: 0, which has no rows,
    /// while nothing is published.
    pub fn published_version(&self, name: &DatasetName) -> Option<i64> {
        i64::try_from(version_of(&self.tables.get(name)?.published)).ok()
    }

    /// A table of this snapshot for the query engine, as it stands.
    ///
    /// # Errors
    /// Only a fault of the hub.
    pub async fn provider(&self, name: &DatasetName) -> Result<Arc<dyn TableProvider>> {
        self.readable(&self.standing(name)?.current).await
    }

    /// A table of this snapshot as it was last published ([`publication`]), with the same columns; without
    /// rows while it never was.
    ///
    /// # Errors
    /// Only a fault of the hub.
    pub async fn published(&self, name: &DatasetName) -> Result<Arc<dyn TableProvider>> {
        self.readable(&self.standing(name)?.published).await
    }

    fn standing(&self, name: &DatasetName) -> Result<&Standing> {
        self.tables.get(name).ok_or_else(|| Error::internal("a dataset without a table"))
    }

    async fn readable(&self, table: &DeltaTable) -> Result<Arc<dyn TableProvider>> {
        let provider = table.table_provider().with_session(Arc::clone(&self.session)).await;
        provider.map_err(Error::internal)
    }
}

impl Store {
    /// Opens the tables of all datasets below `folder`, making those that are not there.
    ///
    /// # Errors
    /// [`Error::Setup`] where a table cannot be opened, its columns are not those of its contract, or it is
    /// older than what is remembered of it.
    pub async fn open(
        folder: &Path,
        datasets: &Datasets,
        runtime: Arc<RuntimeEnv>,
        publisher: Publisher,
    ) -> Result<Self> {
        let mut tables = BTreeMap::new();
        for (name, dataset) in datasets {
            let folder = folder.join(name.to_string());
            let table = open_table(&folder, dataset).await?;
            let versions = RwLock::new(Versions::open(table, &folder, name, &publisher).await?);
            let table = Table { dataset: Arc::clone(dataset), folder, versions, writing: Mutex::default() };
            tables.insert(name.clone(), table);
        }
        let store = Self { tables, divisions: RwLock::default(), session: session(runtime), publisher };
        store.refresh_divisions().await?;
        Ok(store)
    }

    /// The tables as they stand now, what is due published.
    pub fn snapshot(&self) -> Snapshot {
        let now = self.publisher.now();
        let tables = self.tables.iter().map(|(name, table)| (name.clone(), table.versions().standing(now))).collect();
        Snapshot { tables: Arc::new(tables), session: Arc::clone(&self.session) }
    }

    /// The division codes known now.
    pub fn divisions(&self) -> Arc<Divisions> {
        Arc::clone(&self.divisions.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits for a table to have no other writer.
    ///
    /// # Errors
    /// Only a fault of the hub.
    pub async fn writer(&self, name: &DatasetName) -> Result<Writer<'_>> {
        let table = self.tables.get(name).ok_or_else(|| Error::internal("a dataset without a table"))?;
        Ok(Writer { store: self, table, writing: table.writing.lock().await })
    }

    async fn refresh_divisions(&self) -> Result<()> {
        let defining = self.tables.values().find_map(|table| {
            let field = table.dataset.fields.iter().find(|field| {
                field.division == Some(DivisionRule::Defines) && table.dataset.key.contains(&field.name)
            })?;
            Some((table, field.name.clone()))
        });
        let Some((table, field)) = defining else { return Ok(()) };
        let mut codes = HashSet::new();
        for batch in self.read(&table.current(), &field).await? {
            let column = cast(batch.column(0), &DataType::Utf8).map_err(Error::internal)?;
            codes.extend(column.as_string::<i32>().iter().flatten().map(str::to_owned));
        }
        *self.divisions.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(Divisions::new(codes));
        Ok(())
    }

    /// All values of one column, for the hub's own bookkeeping.
    async fn read(&self, table: &DeltaTable, column: &str) -> Result<Vec<RecordBatch>> {
        let provider = table.table_provider().with_session(Arc::clone(&self.session)).await.map_err(Error::internal)?;
        let at = provider.schema().index_of(column).map_err(Error::internal)?;
        let plan = provider.scan(self.session.as_ref(), Some(&vec![at]), &[], None).await.map_err(Error::internal)?;
        collect(plan, self.session.task_ctx()).await.map_err(Error::internal)
    }
}

impl Table {
    fn current(&self) -> DeltaTable {
        self.versions.read().unwrap_or_else(PoisonError::into_inner).current()
    }

    fn versions(&self) -> RwLockWriteGuard<'_, Versions> {
        self.versions.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Writer<'_> {
    /// Leaves out exact copies of rows this source has sent before or sends twice, and puts the rest in
    /// the order in which it will lie: by day of the event, then division, then keyed digest, so that
    /// time and territory prune files and no order of the sender's file is kept.
    ///
    /// # Errors
    /// Only a fault of the hub.
    pub async fn prepare(&mut self, batch: Pseudonymised) -> Result<Prepared> {
        let known = match self.writing.digests.take() {
            Some(known) => known,
            None => self.read_digests().await?,
        };
        let mut fresh = HashSet::new();
        let keep: Vec<bool> =
            batch.digests.iter().map(|digest| !known.contains(digest) && fresh.insert(*digest)).collect();
        self.writing.digests = Some(known);
        let digests: Vec<_> = batch.digests.iter().zip(&keep).filter(|(_, keep)| **keep).map(|(d, _)| *d).collect();
        let rows = filter_record_batch(&batch.rows, &BooleanArray::from(keep)).map_err(Error::internal)?;
        let duplicates = (batch.digests.len() - digests.len()) as u64;
        let order = lay_out(&batch.dataset, &rows, &digests)?;
        let rows = take_record_batch(&rows, &order).map_err(Error::internal)?;
        let digests = order.values().iter().map(|at| digests[*at as usize]).collect();
        Ok(Prepared { rows, digests, source: batch.source, duplicates })
    }

    /// Commits the rows as one version of the table, durably. `sequence` rises within a source; a batch
    /// that was committed before under it is not committed again.
    ///
    /// # Errors
    /// [`Error::ResourceLimit`] where the disk is full, else a fault of the hub. Then nothing was stored.
    pub async fn commit(&mut self, batch: Prepared, batch_id: &str, sequence: i64) -> Result<i64> {
        let Prepared { rows, digests, source, .. } = batch;
        let now = self.store.publisher.now();
        let changed = self.store.publisher.changed(&self.table.dataset, &rows, &digests)?;
        let count = rows.num_rows();
        let mut columns = rows.columns().to_vec();
        columns.push(Arc::new(StringArray::from(vec![source.as_str(); count])) as ArrayRef);
        columns.push(Arc::new(StringArray::from(vec![batch_id; count])));
        columns.push(Arc::new(Int64Array::from(vec![sequence; count])));
        columns.push(Arc::new(BinaryArray::from_iter_values(&digests)));
        let rows = RecordBatch::try_new(table_schema(&self.table.dataset), columns).map_err(Error::internal)?;

        let layout = file_layout(&self.table.dataset, count);
        let application = application_of(&source);
        let properties = CommitProperties::default()
            .with_application_transaction(Transaction::new(&application, sequence))
            .with_metadata([("gridhub.batch".to_owned(), batch_id.into())]);
        let written = self
            .table
            .current()
            .write([rows])
            .with_save_mode(SaveMode::Append)
            .with_session_state(Arc::clone(&self.store.session) as Arc<dyn Session>)
            .with_commit_properties(properties)
            .with_writer_properties(layout)
            .await;
        let table = match written {
            Ok(table) => table,
            // The commit may have landed and only what follows it failed: ask the table itself.
            Err(error) => {
                let mut table = self.table.current();
                match table.update_state().await {
                    Ok(()) if committed(&table, &application, sequence).await => table,
                    _ => return Err(write_error(&error)),
                }
            }
        };
        let version = version_of(&table);
        if let Some(known) = &mut self.writing.digests {
            known.extend(digests);
        }
        // INVARIANT: success is reported, and the version read and counted, only when the commit would survive
        // a power cut.
        make_durable(&self.table.folder, version).map_err(|e| io_error(&e))?;
        let publication = self.table.versions().committed(table, changed, now);
        self.store.publisher.keep(&self.table.dataset.name, &publication)?;
        if self.table.dataset.fields.iter().any(|field| field.division == Some(DivisionRule::Defines)) {
            self.store.refresh_divisions().await?;
        }
        i64::try_from(version).map_err(Error::internal)
    }

    /// A version that holds the batch committed under `sequence`, if there is one; made durable before it
    /// is told. Looks for the rows themselves, since later batches of the source may have been committed.
    ///
    /// # Errors
    /// A fault of the disk or the database.
    pub async fn find(&mut self, sequence: i64) -> Result<Option<i64>> {
        // The commit may have landed after the hub stopped looking.
        let mut table = self.table.current();
        table.update_state().await.map_err(Error::internal)?;
        self.writing.digests = None;
        let Table { dataset, folder, .. } = self.table;
        self.table.versions().catch_up(table.clone(), folder, &dataset.name, &self.store.publisher)?;
        let mut found = false;
        for batch in self.store.read(&table, ARRIVAL).await? {
            let arrivals = batch.column(0).as_primitive_opt::<Int64Type>();
            found |= arrivals.is_some_and(|arrivals| arrivals.values().contains(&sequence));
        }
        if !found {
            return Ok(None);
        }
        i64::try_from(version_of(&table)).map(Some).map_err(Error::internal)
    }

    async fn read_digests(&self) -> Result<HashSet<[u8; WIDTH]>> {
        let mut known = HashSet::new();
        for batch in self.store.read(&self.table.current(), DIGEST).await? {
            let column = cast(batch.column(0), &DataType::Binary).map_err(Error::internal)?;
            let digests = column.as_binary::<i32>().iter().flatten();
            known.extend(digests.filter_map(|digest| <[u8; WIDTH]>::try_from(digest).ok()));
        }
        Ok(known)
    }
}

/// Rows in a row group: few enough that a day or a division leaves most of a large batch unread.
const ROW_GROUP: usize = 1 << 17;

/// How the files of a batch are written. Pseudonyms get Bloom filters, by which a token finds its row
/// groups; their least and greatest would prune nothing and only sort people by them.
fn file_layout(dataset: &Dataset, rows: usize) -> WriterProperties {
    let mut layout =
        WriterProperties::builder().set_compression(Compression::SNAPPY).set_max_row_group_row_count(Some(ROW_GROUP));
    let pseudonyms = dataset.stored_fields().filter(|field| field.identifier.is_some());
    for column in pseudonyms.map(|field| ColumnPath::new(vec![field.name.clone()])) {
        layout = layout
            .set_column_statistics_enabled(column.clone(), EnabledStatistics::None)
            .set_column_bloom_filter_enabled(column.clone(), true)
            .set_column_bloom_filter_fpp(column.clone(), 0.01)
            .set_column_bloom_filter_max_ndv(column, rows.min(ROW_GROUP) as u64);
    }
    layout.build()
}

/// The version of an open table.
fn version_of(table: &DeltaTable) -> u64 {
    table.version().unwrap_or_default()
}

fn application_of(source: &str) -> String {
    format!("gridhub:push:{source}")
}

async fn committed(table: &DeltaTable, application: &str, sequence: i64) -> bool {
    let Ok(state) = table.snapshot() else { return false };
    let last = state.transaction_version(table.log_store().as_ref(), application).await;
    last.ok().flatten().is_some_and(|last| last >= sequence)
}

fn lay_out(dataset: &Dataset, rows: &RecordBatch, digests: &[[u8; WIDTH]]) -> Result<arrow::array::UInt32Array> {
    let mut columns = Vec::new();
    for field in dataset.event_time.iter().chain(&dataset.territory) {
        let Some(column) = rows.column_by_name(field) else { continue };
        let timed = dataset.field(field).is_some_and(|field| field.kind == FieldType::Timestamp);
        // Days are enough to prune by, and finer times would keep the order of events across people.
        let values = if timed { cast(column, &DataType::Date32).map_err(Error::internal)? } else { Arc::clone(column) };
        columns.push(SortColumn { values, options: None });
    }
    columns.push(SortColumn { values: Arc::new(BinaryArray::from_iter_values(digests)), options: None });
    lexsort_to_indices(&columns, None).map_err(Error::internal)
}

/// The store's own session: one partition keeps rows in the order laid out, and plain strings keep
/// results in the types contracts name.
fn session(runtime: Arc<RuntimeEnv>) -> Arc<SessionState> {
    let config: SessionConfig = DeltaSessionConfig::default().into();
    let config =
        config.with_target_partitions(1).set_bool("datafusion.execution.parquet.schema_force_view_types", false);
    Arc::new(
        SessionStateBuilder::new()
            .with_default_features()
            .with_config(config)
            .with_runtime_env(runtime)
            .with_query_planner(DeltaPlanner::new())
            .build(),
    )
}

async fn open_table(folder: &Path, dataset: &Dataset) -> Result<DeltaTable> {
    let fault = |e: DeltaTableError| Error::setup(folder, None, format!("cannot open the table: {e}"));
    std::fs::create_dir_all(folder)
        .map_err(|e| Error::setup(folder, None, format!("cannot make the table's folder: {e}")))?;
    let folder_text = folder.to_str().ok_or_else(|| Error::setup(folder, None, "the path is not UTF-8"))?;
    let location = ensure_table_uri(folder_text).map_err(fault)?;
    let schema: StructType =
        table_schema(dataset).as_ref().try_into_kernel().map_err(|e| Error::setup(folder, None, format!("{e}")))?;
    let table = DeltaTable::try_from_url(location).await.map_err(fault)?;
    if table.version().is_some() {
        let have = table.snapshot().map_err(fault)?.snapshot().arrow_schema();
        let columns = |schema: &Schema| {
            schema.fields().iter().map(|f| (f.name().clone(), f.data_type().clone())).collect::<Vec<_>>()
        };
        if columns(&have) != columns(&table_schema(dataset)) {
            return Err(Error::setup(
                folder,
                None,
                format!(
                    "the table's columns are not those of contract version {} of `{}`",
                    dataset.version, dataset.name
                ),
            ));
        }
        return Ok(table);
    }
    // Statistics of pseudonyms prune nothing and would only sort people by them.
    let counted: Vec<_> = stored_schema(dataset)
        .fields()
        .iter()
        .filter(|field| *field.data_type() != DataType::Binary)
        .map(|field| field.name().clone())
        .chain([ARRIVAL.to_owned()])
        .collect();
    let table = table
        .create()
        .with_table_name(dataset.name.to_string())
        .with_columns(schema.into_fields())
        .with_save_mode(SaveMode::Ignore)
        .with_configuration_property(TableProperty::EnableExpiredLogCleanup, Some("false"))
        .with_configuration_property(TableProperty::DataSkippingStatsColumns, Some(counted.join(",")))
        .await
        .map_err(fault)?;
    make_durable(folder, 0).map_err(|e| Error::setup(folder, None, format!("cannot write the table: {e}")))?;
    Ok(table)
}

/// Flushes a commit and the files it names; the local store renames and links without flushing.
fn make_durable(folder: &Path, version: u64) -> std::io::Result<()> {
    let log = folder.join("_delta_log");
    let commit = log.join(format!("{version:020}.json"));
    let text = std::fs::read_to_string(&commit)?;
    for line in text.lines() {
        let action: serde_json::Value = serde_json::from_str(line)?;
        if let Some(path) = action.pointer("/add/path").and_then(|path| path.as_str()) {
            File::open(folder.join(path))?.sync_all()?;
        }
    }
    File::open(commit)?.sync_all()?;
    File::open(log)?.sync_all()?;
    File::open(folder)?.sync_all()
}

fn write_error(error: &DeltaTableError) -> Error {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<std::io::Error>() {
            return io_error(error);
        }
        cause = error.source();
    }
    // The object store wraps some causes in text alone.
    match error.to_string().contains("No space left") {
        true => disk_full(),
        false => Error::internal(error),
    }
}

fn io_error(error: &std::io::Error) -> Error {
    use std::io::ErrorKind::{QuotaExceeded, StorageFull};
    match error.kind() {
        StorageFull | QuotaExceeded => disk_full(),
        _ if error.to_string().contains("No space left") => disk_full(),
        _ => Error::internal(error),
    }
}

fn disk_full() -> Error {
    Error::ResourceLimit(
        "the hub's disk is full; nothing of this batch was stored, send it again under the same id once the \
         operator has made room"
            .into(),
    )
}

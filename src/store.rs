//! Tables on disk: one Delta table a dataset, one writer a table. Accepts [`Pseudonymised`] and nothing
//! else.
//!
//! Every row carries four columns of the hub's own: its source agency, its batch, its order of arrival
//! and a keyed digest. Keys, copies and current state stay within a source, so that nobody overwrites or
//! probes another's rows.

mod copies;
pub mod current;
mod durable;
pub mod epoch;
pub mod erase;
mod evolution;
mod files;
pub mod maintenance;
pub mod materialised;
pub mod metadata;
mod newest;
pub mod publication;
pub mod search;
pub mod stretch;
pub mod tombstones;
mod write;

use std::{
    collections::{BTreeMap, HashSet},
    path::{Path, PathBuf},
    sync::{
        Arc, PoisonError, RwLock, RwLockWriteGuard,
        atomic::{AtomicI64, Ordering},
    },
};

use arrow::{
    array::{AsArray, RecordBatch},
    compute::cast,
    datatypes::{DataType, SchemaRef},
};
use datafusion::{
    catalog::TableProvider,
    execution::{SendableRecordBatchStream, SessionState, SessionStateBuilder, runtime_env::RuntimeEnv},
    logical_expr::Expr,
    physical_plan::execute_stream,
    prelude::SessionConfig,
};
use deltalake_core::{
    DeltaTable, DeltaTableError, TableProperty,
    delta_datafusion::{DeltaSessionConfig, planner::DeltaPlanner},
    ensure_table_uri,
    kernel::{Add, StructType, engine::arrow_conversion::TryIntoKernel},
    protocol::SaveMode,
};
use futures::TryStreamExt;
use tokio::{runtime::Handle, sync::Mutex};

use crate::{
    dataset::{Dataset, DatasetName, Datasets, DivisionRule, division::Divisions},
    error::{Error, Result},
};
pub use files::{Origin, file_layout, table_schema};
use materialised::{Materialised, Room, Unread};
use metadata::Metadata;
use publication::{Publisher, Standing, Version, Versions};
pub use write::{Change, Committed, GroupFiles, Piece, RUN, Run, Staged, Staging, Writer};

/// The agency whose caller pushed a row.
pub const SOURCE: &str = "__source";
/// The batch a row came in.
pub const BATCH: &str = "__batch";
/// The number of the commit a row came in, rising within a table.
pub const ARRIVAL: &str = "__arrival";
/// The keyed digest of the row as it came in.
pub const DIGEST: &str = "__digest";

/// All tables of a hub.
pub struct Store {
    tables: BTreeMap<DatasetName, Table>,
    divisions: RwLock<Arc<Divisions>>,
    session: Arc<SessionState>,
    publisher: Publisher,
    /// Where small tables are held.
    room: Room,
}

struct Table {
    dataset: Arc<Dataset>,
    folder: PathBuf,
    versions: RwLock<Versions>,
    writing: Mutex<Writing>,
    /// The oldest version that can be read, once an erasure took the earlier ones away; 0 before.
    oldest_kept: AtomicI64,
}

/// What the one writer of a table knows.
#[derive(Default)]
struct Writing {
    copies: copies::Copies,
    /// Batches whose rows are among the copies and neither stored nor forgotten.
    noted: usize,
    /// Whether the disk did not take what it was asked to flush. It tells so once, and what it lost since then
    /// cannot be found out.
    lost: bool,
}

/// The tables as they stood at one moment; cheap to hold.
#[derive(Clone)]
pub struct Snapshot {
    tables: Arc<BTreeMap<DatasetName, Standing>>,
    session: Arc<SessionState>,
}

/// The rows of a table, where they lie.
#[derive(Debug, Clone)]
pub enum Stored {
    /// All of them, in files.
    Files(Arc<dyn TableProvider>),
    /// Those that are current, in memory.
    Memory(Arc<Materialised>),
    /// Nowhere yet, or no more; the columns are known, and how its rows lay.
    Nothing(Unread),
}

impl Stored {
    /// The columns.
    pub fn schema(&self) -> SchemaRef {
        match self {
            Self::Files(files) => files.schema(),
            Self::Memory(rows) => rows.schema(),
            Self::Nothing(unread) => unread.schema(),
        }
    }

    /// The same without its rows.
    pub fn unread(&self) -> Self {
        Self::Nothing(match self {
            Self::Files(files) => Unread::new(files.schema(), false),
            Self::Memory(rows) => Unread::new(rows.schema(), rows.has_one_row_each()),
            Self::Nothing(unread) => unread.clone(),
        })
    }
}

impl Snapshot {
    /// The version of a table in this snapshot, as row-level questions read it.
    pub fn version(&self, name: &DatasetName) -> Option<i64> {
        i64::try_from(version_of(&self.tables.get(name)?.current.table)).ok()
    }

    /// The version of a table in this snapshot, as protected statistics read it: 0, which has no rows,
    /// while nothing is published.
    pub fn published_version(&self, name: &DatasetName) -> Option<i64> {
        i64::try_from(version_of(&self.tables.get(name)?.published.table)).ok()
    }

    /// The rows of a table of this snapshot, as it stands.
    ///
    /// # Errors
    /// Only a fault of the hub.
    pub async fn stored(&self, name: &DatasetName) -> Result<Stored> {
        self.stored_in(&self.standing(name)?.current).await
    }

    /// The same as it was last published ([`publication`]).
    ///
    /// # Errors
    /// Only a fault of the hub.
    pub async fn stored_when_published(&self, name: &DatasetName) -> Result<Stored> {
        self.stored_in(&self.standing(name)?.published).await
    }

    /// The files of a table of this snapshot for the query engine, as it stands.
    ///
    /// # Errors
    /// Only a fault of the hub.
    pub async fn provider(&self, name: &DatasetName) -> Result<Arc<dyn TableProvider>> {
        self.readable(&self.standing(name)?.current.table).await
    }

    /// The files of a table of this snapshot as it was last published ([`publication`]), with the same columns; without
    /// rows while it never was.
    ///
    /// # Errors
    /// Only a fault of the hub.
    pub async fn published(&self, name: &DatasetName) -> Result<Arc<dyn TableProvider>> {
        self.readable(&self.standing(name)?.published.table).await
    }

    fn standing(&self, name: &DatasetName) -> Result<&Standing> {
        self.tables.get(name).ok_or_else(|| Error::internal("a dataset without a table"))
    }

    async fn stored_in(&self, version: &Version) -> Result<Stored> {
        match &version.rows {
            Some(rows) => Ok(Stored::Memory(Arc::clone(rows))),
            None => Ok(Stored::Files(self.readable(&version.table).await?)),
        }
    }

    async fn readable(&self, table: &DeltaTable) -> Result<Arc<dyn TableProvider>> {
        let provider = table.table_provider().with_session(Arc::clone(&self.session)).await;
        provider.map_err(Error::internal)
    }
}

impl Store {
    /// Opens the tables of all datasets below `folder`, making those that are not there. Small tables are held in
    /// memory, of that many bytes together.
    ///
    /// # Errors
    /// [`Error::Setup`] where a table cannot be opened, its columns are not those of its contract, or it is
    /// older than what is remembered of it.
    pub async fn open(
        folder: &Path,
        datasets: &Datasets,
        runtime: Arc<RuntimeEnv>,
        publisher: Publisher,
        in_memory: usize,
    ) -> Result<Self> {
        let (session, room) = (session(runtime), Room::of(in_memory));
        let mut tables = BTreeMap::new();
        for (name, dataset) in datasets {
            let folder = folder.join(name.to_string());
            let table = open_table(&folder, dataset, publisher.metadata()).await?;
            let mut versions = Versions::open(table, &folder, name, &publisher).await?;
            let (current, published) = (versions.current(), versions.published());
            let rows = materialised(&current, dataset, &session, &room).await;
            let published = match current.version() == published.version() {
                true => rows.clone(),
                false => materialised(&published, dataset, &session, &room).await,
            };
            versions.take_in(rows, published);
            let versions = RwLock::new(versions);
            let table = Table {
                dataset: Arc::clone(dataset),
                folder,
                versions,
                writing: Mutex::default(),
                oldest_kept: AtomicI64::new(0),
            };
            tables.insert(name.clone(), table);
        }
        let store = Self { tables, divisions: RwLock::default(), session, publisher, room };
        store.refresh_divisions().await.map_err(|error| store.unreadable_divisions(folder, &error))?;
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
        let table = self.table(name)?;
        let mut writing = table.writing.lock().await;
        // INVARIANT: no row counts as sent that is not stored, also where the writer before fell over.
        if std::mem::take(&mut writing.noted) > 0 {
            writing.copies = copies::Copies::default();
        }
        Ok(Writer { store: self, table, writing })
    }

    /// The newest version of a table.
    ///
    /// # Errors
    /// Only a fault of the hub.
    pub fn current(&self, name: &DatasetName) -> Result<DeltaTable> {
        Ok(self.table(name)?.current())
    }

    /// Writes rows with the hub's own columns as files that no version names yet, in the order in which they
    /// will lie.
    ///
    /// # Errors
    /// [`Error::ResourceLimit`] where the disk is full, else a fault of the hub.
    pub async fn write_file(&self, name: &DatasetName, rows: RecordBatch) -> Result<Vec<Add>> {
        let table = self.table(name)?;
        files::write(&table.current(), &table.dataset, &[rows]).await
    }

    /// The oldest version of a table that an erasure left, where there was one since the start.
    pub fn oldest_kept(&self, name: &DatasetName) -> Option<i64> {
        let kept = self.tables.get(name)?.oldest_kept.load(Ordering::Acquire);
        (kept > 0).then_some(kept)
    }

    fn table(&self, name: &DatasetName) -> Result<&Table> {
        self.tables.get(name).ok_or_else(|| Error::internal("a dataset without a table"))
    }

    /// The table that lists all divisions, and its field of codes.
    fn defining_divisions(&self) -> Option<(&Table, &str)> {
        self.tables.values().find_map(|table| {
            let field = table.dataset.fields.iter().find(|field| {
                field.division == Some(DivisionRule::Defines) && table.dataset.key.contains(&field.name)
            })?;
            Some((table, field.name.as_str()))
        })
    }

    fn unreadable_divisions(&self, folder: &Path, error: &Error) -> Error {
        let place = self.defining_divisions().map_or(folder, |(table, _)| table.folder.as_path());
        let cause = error.fault().unwrap_or_default();
        Error::setup(place, None, format!("the divisions cannot be read; restore the table from a backup ({cause})"))
    }

    async fn refresh_divisions(&self) -> Result<()> {
        let Some((table, field)) = self.defining_divisions() else { return Ok(()) };
        let mut codes = HashSet::new();
        let mut rows = self.scan(&table.current(), &[field], &[]).await?;
        while let Some(batch) = rows.try_next().await.map_err(Error::internal)? {
            let column = cast(batch.column(0), &DataType::Utf8).map_err(Error::internal)?;
            codes.extend(column.as_string::<i32>().iter().flatten().map(str::to_owned));
        }
        *self.divisions.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(Divisions::new(codes));
        Ok(())
    }

    /// The rows for which all `filters` may hold, for the hub's own bookkeeping.
    async fn scan(&self, table: &DeltaTable, columns: &[&str], filters: &[Expr]) -> Result<SendableRecordBatchStream> {
        let provider = table.table_provider().with_session(Arc::clone(&self.session)).await.map_err(Error::internal)?;
        let schema = provider.schema();
        let places: std::result::Result<Vec<_>, _> = columns.iter().map(|column| schema.index_of(column)).collect();
        let places = places.map_err(Error::internal)?;
        let plan = provider.scan(self.session.as_ref(), Some(&places), filters, None).await.map_err(Error::internal)?;
        execute_stream(plan, self.session.task_ctx()).map_err(Error::internal)
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

/// The rows of a version to be held in memory, where it is small enough. Where they cannot be read now, whoever asks
/// will be told: a version that is committed stays so.
async fn materialised(
    table: &DeltaTable,
    dataset: &Arc<Dataset>,
    session: &Arc<SessionState>,
    room: &Room,
) -> Option<Arc<Materialised>> {
    let (table, session, room, runtime) = (table.clone(), Arc::clone(session), room.clone(), Handle::current());
    let contract = Arc::clone(dataset);
    let reading = in_background(move || runtime.block_on(Materialised::of(&table, &contract, &session, &room)));
    match reading.await {
        Ok(rows) => rows.map(Arc::new),
        Err(error) => {
            tracing::error!(dataset = %dataset.name, cause = error.fault(), "a version cannot be read into memory");
            None
        }
    }
}

/// The version of an open table.
fn version_of(table: &DeltaTable) -> u64 {
    table.version().unwrap_or_default()
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

async fn open_table(folder: &Path, dataset: &Dataset, metadata: &Metadata) -> Result<DeltaTable> {
    let fault = |e: DeltaTableError| Error::setup(folder, None, format!("cannot open the table: {e}"));
    std::fs::create_dir_all(folder)
        .map_err(|e| Error::setup(folder, None, format!("cannot make the table's folder: {e}")))?;
    maintenance::drop_torn_checkpoints(folder)
        .map_err(|e| Error::setup(folder, None, format!("cannot look through the table's checkpoints: {e}")))?;
    let counted = metadata.publication(&dataset.name.to_string())?.counted;
    durable::set_torn_aside(folder, counted)
        .map_err(|e| Error::setup(folder, None, format!("cannot look through the table's commits: {e}")))?;
    let folder_text = folder.to_str().ok_or_else(|| Error::setup(folder, None, "the path is not UTF-8"))?;
    let location = ensure_table_uri(folder_text).map_err(fault)?;
    let schema: StructType =
        table_schema(dataset).as_ref().try_into_kernel().map_err(|e| Error::setup(folder, None, format!("{e}")))?;
    let table = DeltaTable::try_from_url(location).await.map_err(fault)?;
    if table.version().is_some() {
        return evolution::follow(table, folder, dataset, metadata).await;
    }
    let table = table
        .create()
        .with_table_name(dataset.name.to_string())
        .with_columns(schema.into_fields())
        .with_save_mode(SaveMode::Ignore)
        .with_configuration_property(TableProperty::EnableExpiredLogCleanup, Some("false"))
        .with_configuration_property(TableProperty::DataSkippingStatsColumns, Some(evolution::counted_columns(dataset)))
        .await
        .map_err(fault)?;
    durable::make_durable(folder, 0)
        .and_then(|()| durable::flush_folder(folder))
        .map_err(|e| Error::setup(folder, None, format!("cannot write the table: {e}")))?;
    evolution::remember(dataset, metadata)?;
    Ok(table)
}

/// Runs what waits for the disk away from the threads that serve others.
async fn in_background<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(Error::internal)?
}

/// How many rows the files of a table have, by its log.
fn rows_of(table: &DeltaTable) -> u64 {
    let Ok(state) = table.snapshot() else { return 0 };
    state.log_data().iter().filter_map(|file| file.num_records()).map(|rows| rows as u64).sum()
}

/// What failed in writing, by the causes that the layers of the store wrap each other's errors in.
fn write_error(error: &DeltaTableError) -> Error {
    let mut causes = vec![error.to_string()];
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        if error.downcast_ref::<std::io::Error>().is_some_and(is_full) {
            return disk_full();
        }
        causes.push(error.to_string());
        cause = error.source();
    }
    // Some wrap their cause in text alone.
    match causes.iter().any(|cause| cause.contains("No space left") || cause.contains("File too large")) {
        true => disk_full(),
        false => Error::internal(causes.join(": ")),
    }
}

fn io_error(error: &std::io::Error) -> Error {
    match is_full(error) {
        true => disk_full(),
        false => Error::internal(error),
    }
}

fn is_full(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge) || error.to_string().contains("No space left")
}

fn disk_full() -> Error {
    Error::ResourceLimit(
        "the hub's disk is full; nothing of this batch was stored, send it again under the same id once the \
         operator has made room"
            .into(),
    )
}

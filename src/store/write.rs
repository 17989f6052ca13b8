//! The one way into a table: rows are staged by as many as like, committed by one at a time.
//!
//! Staged rows wait in memory, or, where they are many, as files that no version names yet: pseudonymised, laid
//! out, and gone with whoever staged them if nothing comes of it. A commit takes whole batches, as many as wait.

use std::{
    collections::{BTreeSet, HashSet},
    fs::File,
    io::ErrorKind,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
};

use arrow::{
    array::{Array, ArrayRef, BooleanArray, RecordBatch},
    compute::filter_record_batch,
};
use deltalake_core::{
    DeltaTable,
    kernel::{
        Action, Add,
        transaction::{CommitBuilder, CommitProperties},
    },
    protocol::{DeltaOperation, SaveMode},
};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::json;
use tokio::{
    runtime::Handle,
    sync::MutexGuard,
    task::{JoinHandle, spawn_blocking},
};

use super::{
    Store, Table, Writing,
    copies::{self, Day, Seen},
    durable::{self, flush_commit, flush_files},
    epoch::Counted,
    files::{self, Origin},
    io_error, materialised,
    materialised::Materialised,
    publication::Version,
    rows_of, version_of, write_error,
};
use crate::{
    dataset::{Dataset, DatasetName, DivisionRule},
    error::{Error, Result},
    pseudonym::Pseudonymised,
};

/// So many rows of one thread are laid out together and become a file, where nothing else is said.
pub const RUN: usize = 1 << 18;

/// So many bytes of them become one before they are that many: a row may hold long texts.
const RUN_BYTES: usize = 128 << 20;

/// So many days that nothing is known of are learned for one batch, however large the table is.
const SCATTERED: usize = 8;

/// So many rows are laid out in a moment, which a thread of the runtime may be held for.
const MOMENT: usize = 8_192;

/// That this process, or the machine, has as many files open as it may (ENFILE, EMFILE).
const TOO_MANY_FILES: [i32; 2] = [23, 24];

/// The key of a commit's metadata that lists the batches in it by their numbers.
const BATCHES: &str = "gridhub.batches";

/// The rows of one batch on their way into a table, filled from several threads.
pub struct Staging {
    table: DeltaTable,
    dataset: Arc<Dataset>,
    folder: PathBuf,
    origin: Origin,
    longest_run: usize,
    seen: Seen,
    runtime: Handle,
}

/// What one thread has staged.
pub struct Run<'a> {
    staging: &'a Staging,
    rows: Vec<RecordBatch>,
    waiting: usize,
    waiting_bytes: usize,
    days: BTreeSet<Day>,
    files: Files,
    /// The disk is at work on files while rows for the next ones are made.
    flushing: Vec<JoinHandle<std::io::Result<()>>>,
    count: u64,
    duplicates: u64,
}

/// A batch whose rows are all staged.
pub struct Staged {
    origin: Origin,
    rows: Vec<RecordBatch>,
    files: Files,
    days: BTreeSet<Day>,
    seen: Seen,
    count: u64,
    duplicates: u64,
    /// Whether rows of it are noted as sent that are not stored yet.
    noted: bool,
    /// Whether its rows lie on more days than should be learned for it.
    scattered: bool,
}

/// Files that no version names; deleted when dropped, unless they were kept.
struct Files {
    folder: PathBuf,
    adds: Vec<Add>,
}

impl Files {
    fn of(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), adds: Vec::new() }
    }

    fn keep(&mut self) -> Vec<Add> {
        std::mem::take(&mut self.adds)
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        for add in &self.adds {
            // What cannot be deleted now is swept at the next start.
            let _ = std::fs::remove_file(self.folder.join(&add.path));
        }
    }
}

impl Staging {
    /// Rows of that origin on their way into the table of a dataset; `longest_run` of one thread become a file. To be
    /// made within the runtime.
    ///
    /// # Errors
    /// Only a fault of the hub.
    pub fn begin(store: &Store, name: &DatasetName, origin: Origin, longest_run: usize) -> Result<Self> {
        let table = store.table(name)?;
        Ok(Self {
            table: table.current(),
            dataset: Arc::clone(&table.dataset),
            folder: table.folder.clone(),
            origin,
            longest_run,
            seen: Seen::default(),
            runtime: Handle::current(),
        })
    }

    /// What a thread of its own stages. Not for threads of the runtime, since it may wait for the disk.
    pub fn run(&self) -> Run<'_> {
        Run {
            staging: self,
            rows: Vec::new(),
            waiting: 0,
            waiting_bytes: 0,
            days: BTreeSet::new(),
            files: Files::of(&self.folder),
            flushing: Vec::new(),
            count: 0,
            duplicates: 0,
        }
    }

    /// The batch, once all its threads have ended.
    pub fn finish(self, runs: impl IntoIterator<Item = Piece>) -> Staged {
        let mut staged = Staged {
            files: Files::of(&self.folder),
            origin: self.origin,
            rows: Vec::new(),
            days: BTreeSet::new(),
            seen: self.seen,
            count: 0,
            duplicates: 0,
            noted: false,
            scattered: false,
        };
        for mut piece in runs {
            staged.rows.append(&mut piece.rows);
            staged.files.adds.append(&mut piece.files.adds);
            staged.days.append(&mut piece.days);
            staged.count += piece.count;
            staged.duplicates += piece.duplicates;
        }
        staged
    }
}

/// What a thread staged, in itself complete.
pub struct Piece {
    rows: Vec<RecordBatch>,
    files: Files,
    days: BTreeSet<Day>,
    count: u64,
    duplicates: u64,
}

impl Run<'_> {
    /// Stages rows; those that came before in this batch are left out and counted.
    ///
    /// # Errors
    /// [`Error::ResourceLimit`] where the disk is full, else a fault of the hub.
    pub fn add(&mut self, batch: &Pseudonymised) -> Result<()> {
        let staging = self.staging;
        let fresh: Vec<bool> =
            batch.digests.iter().map(|digest| staging.seen.insert(u128::from_le_bytes(*digest))).collect();
        let count = fresh.iter().filter(|fresh| **fresh).count();
        self.duplicates += (fresh.len() - count) as u64;
        if count == 0 {
            return Ok(());
        }
        let mut rows = files::with_digests(&batch.rows, &batch.digests)?;
        if count < fresh.len() {
            rows = filter_record_batch(&rows, &BooleanArray::from(fresh)).map_err(Error::internal)?;
        }
        self.days.extend(files::event_days(&staging.dataset, &rows)?);
        self.waiting_bytes += bytes_of(&rows);
        self.rows.push(rows);
        self.waiting += count;
        self.count += count as u64;
        match self.waiting < staging.longest_run && self.waiting_bytes < RUN_BYTES {
            true => Ok(()),
            false => self.write(),
        }
    }

    /// Ends the thread's part.
    ///
    /// # Errors
    /// As [`Run::add`].
    pub fn finish(mut self) -> Result<Piece> {
        // Where others lie in files already, the commit should not wait for these.
        if !self.files.adds.is_empty() {
            self.write()?;
        }
        for flushing in std::mem::take(&mut self.flushing) {
            // An error of the disk is told once, so it must be heard here.
            let flushed = self.staging.runtime.block_on(flushing).map_err(Error::internal)?;
            flushed.map_err(|e| io_error(&e))?;
        }
        let Self { staging, rows, files, days, count, duplicates, .. } = self;
        let rows = rows.iter().map(|rows| files::with_origin(&staging.dataset, rows, &staging.origin));
        let rows = rows.collect::<Result<_>>()?;
        Ok(Piece { rows, files, days, count, duplicates })
    }

    fn write(&mut self) -> Result<()> {
        let Staging { table, dataset, runtime, origin, .. } = self.staging;
        let rows = std::mem::take(&mut self.rows);
        (self.waiting, self.waiting_bytes) = (0, 0);
        if rows.is_empty() {
            return Ok(());
        }
        let laid_out = files::laid_out(dataset, &rows)?;
        // What lies in order is there twice now.
        drop(rows);
        let laid_out = files::with_origin(dataset, &laid_out, origin)?;
        let written = runtime.block_on(files::write_laid_out(table, dataset, laid_out))?;
        let paths: Vec<String> = written.iter().map(|add| add.path.clone()).collect();
        self.files.adds.extend(written);
        let folder = self.staging.folder.clone();
        self.flushing.push(runtime.spawn_blocking(move || flush_files(&folder, &paths)));
        Ok(())
    }
}

impl Staged {
    /// How many rows will be stored.
    pub fn rows(&self) -> u64 {
        self.count
    }

    /// How many exact copies were left out.
    pub fn duplicates(&self) -> u64 {
        self.duplicates
    }

    /// Whether its rows are compared with the table itself, and noted nowhere: then no other batch may be in the
    /// same commit.
    pub fn is_large(&self) -> bool {
        self.scattered || self.count >= copies::MANY || !self.files.adds.is_empty()
    }

    /// What the rows that do not lie in files take.
    pub fn bytes_in_memory(&self) -> usize {
        self.rows.iter().map(bytes_of).sum()
    }

    /// The number of the batch.
    pub fn sequence(&self) -> i64 {
        self.origin.sequence
    }
}

/// What a commit changes for those who read protected statistics.
pub enum Change {
    /// Nothing: the same rows lie otherwise.
    None,
    /// Rows are gone that nobody may read again; published at once.
    Erasure,
}

/// What a commit does to the rows of a table.
enum Effect {
    /// Some are added.
    More,
    /// They lie otherwise.
    Same,
    /// Some are taken away.
    Fewer,
}

/// One table's writer, held from the search for copies to the commit.
pub struct Writer<'a> {
    pub(super) store: &'a Store,
    pub(super) table: &'a Table,
    pub(super) writing: MutexGuard<'a, Writing>,
}

impl Writer<'_> {
    /// The newest version.
    pub fn current(&self) -> DeltaTable {
        self.table.current()
    }

    /// The version that protected statistics read; 0, which has no rows, while nothing is published.
    pub fn published_version(&self) -> u64 {
        self.table.versions().published_version()
    }

    /// The dataset whose table it is.
    pub fn dataset(&self) -> &Arc<Dataset> {
        &self.table.dataset
    }

    /// Where the table lies.
    pub fn folder(&self) -> &Path {
        &self.table.folder
    }

    /// Opens the table anew from its newest checkpoint, and takes it as current and published: for whoever has
    /// published the newest version and is about to delete the commits before it.
    ///
    /// # Errors
    /// A fault of the disk, or where the newest version is not the published one.
    pub async fn reopen(&mut self) -> Result<()> {
        let current = self.table.current();
        let mut table = DeltaTable::new(current.log_store());
        table.load().await.map_err(Error::internal)?;
        let same = version_of(&table) == version_of(&current) && version_of(&table) == self.published_version();
        if !same {
            return Err(Error::internal("a table was opened anew at another version"));
        }
        let version = i64::try_from(version_of(&table)).map_err(Error::internal)?;
        self.table.versions().reopened(table);
        self.table.oldest_kept.store(version, Ordering::Release);
        Ok(())
    }

    /// Writes rows with the hub's own columns as files that no version names yet.
    ///
    /// # Errors
    /// [`Error::ResourceLimit`] where the disk is full, else a fault of the hub.
    pub async fn write_file(&self, rows: RecordBatch) -> Result<Vec<Add>> {
        files::write(&self.table.current(), &self.table.dataset, &[rows]).await
    }

    /// Finds out whether a batch is [large](Staged::is_large), which also one of few rows is whose days hold much of a
    /// large table: what is learned of them would take more memory than the batch is worth.
    pub fn look_at(&self, staged: &mut Staged) {
        staged.scattered |= self.writing.copies.unknown(&staged.days) > SCATTERED
            && rows_of(&self.table.current()) > copies::REMEMBERED as u64;
    }

    /// Leaves out rows that their source has sent before, and notes the rest as sent. A [large](Staged::is_large)
    /// batch is compared with what is stored alone, so nothing may be noted and not stored then.
    ///
    /// # Errors
    /// A fault of the disk.
    pub async fn leave_out_copies(&mut self, staged: &mut Staged) -> Result<()> {
        if staged.count == 0 {
            return Ok(());
        }
        let before = staged.count;
        if staged.is_large() {
            let found = copies::take_out_stored(self.store, self.table, &staged.days, &staged.seen).await?;
            if found > 0 {
                self.keep_seen(staged).await?;
            }
            self.writing.copies.forget(&staged.days);
        } else {
            self.writing.copies.learn(self.store, self.table, &staged.days).await?;
            staged.noted = true;
            self.writing.noted += 1;
            for rows in &mut staged.rows {
                let days = files::event_days(&self.table.dataset, rows)?;
                let copies = &mut self.writing.copies;
                let digests = days.into_iter().zip(files::digests(rows)?);
                let fresh: Vec<bool> = digests.map(|(day, digest)| copies.insert(day, digest)).collect();
                if fresh.contains(&false) {
                    *rows = filter_record_batch(rows, &BooleanArray::from(fresh)).map_err(Error::internal)?;
                }
            }
        }
        staged.count =
            staged.rows.iter().map(|rows| rows.num_rows() as u64).sum::<u64>() + files::rows_in(&staged.files.adds)?;
        staged.duplicates += before - staged.count;
        // What is empty is in no commit, and nothing of it was noted.
        if staged.count == 0 && std::mem::take(&mut staged.noted) {
            self.writing.noted = self.writing.noted.saturating_sub(1);
        }
        Ok(())
    }

    /// Leaves only those rows in a batch of which some lie in files that are still among those seen.
    async fn keep_seen(&self, staged: &mut Staged) -> Result<()> {
        let folder = self.table.folder.clone();
        let (table, dataset, runtime) = (self.table.current(), Arc::clone(&self.table.dataset), Handle::current());
        let (rows, seen) = (std::mem::take(&mut staged.rows), std::mem::take(&mut staged.seen));
        // The former files go with this, once others stand in their place.
        let former = std::mem::replace(&mut staged.files, Files::of(&folder));
        let keeping = spawn_blocking(move || {
            let without = |rows: RecordBatch| -> Result<RecordBatch> {
                let fresh = files::digests(&rows)?.map(|digest| Some(seen.contains(digest)));
                filter_record_batch(&rows, &fresh.collect::<BooleanArray>()).map_err(Error::internal)
            };
            let rows = rows.into_iter().map(without).collect::<Result<Vec<_>>>()?;
            let mut kept = Files::of(&folder);
            for add in &former.adds {
                let left =
                    read_file(&folder.join(&add.path))?.map(|rows| without(rows?)).collect::<Result<Vec<_>>>()?;
                kept.adds.extend(runtime.block_on(files::write(&table, &dataset, &left))?);
            }
            Ok((rows, kept, seen))
        });
        (staged.rows, staged.files, staged.seen) = keeping.await.map_err(Error::internal)??;
        Ok(())
    }

    /// Undoes what [`Writer::leave_out_copies`] noted of batches that were not stored.
    pub fn forget<'b>(&mut self, group: impl IntoIterator<Item = &'b Staged>) {
        for staged in group {
            self.writing.copies.forget(&staged.days);
            self.writing.noted = self.writing.noted.saturating_sub(usize::from(staged.noted));
        }
    }

    /// Writes those rows of the group that wait in memory as files that no version names yet.
    ///
    /// # Errors
    /// [`Error::ResourceLimit`] where the disk is full, else a fault of the hub.
    pub async fn write_group(&self, group: &[&Staged]) -> Result<GroupFiles> {
        let rows: Vec<RecordBatch> = group.iter().flat_map(|staged| staged.rows.iter().cloned()).collect();
        let mut files = Files::of(&self.table.folder);
        let count: usize = rows.iter().map(RecordBatch::num_rows).sum();
        if count > MOMENT {
            let (table, dataset, runtime) = (self.table.current(), Arc::clone(&self.table.dataset), Handle::current());
            let writing = spawn_blocking(move || runtime.block_on(files::write(&table, &dataset, &rows)));
            files.adds = writing.await.map_err(Error::internal)??;
        } else if count > 0 {
            files.adds = files::write(&self.table.current(), &self.table.dataset, &rows).await?;
        }
        Ok(GroupFiles(files))
    }

    /// Commits batches as one version of the table, durably, and tells what is to be remembered of it with
    /// [`super::metadata::Metadata::settle_batches`].
    ///
    /// # Errors
    /// [`Error::ResourceLimit`] where the disk is full, else a fault of the hub. Whether the batches were stored
    /// after all, [`Writer::find`] tells.
    pub async fn commit(&mut self, mut group: Vec<&mut Staged>, mut written: GroupFiles) -> Result<Committed> {
        let now = self.store.publisher.now();
        let mut changed = HashSet::new();
        for staged in &group {
            for rows in &staged.rows {
                changed.extend(self.store.publisher.changed(&self.table.dataset, rows)?);
            }
            for add in &staged.files.adds {
                if changed.len() >= super::epoch::SUBJECTS {
                    break;
                }
                for rows in read_file(&self.table.folder.join(&add.path))? {
                    changed.extend(self.store.publisher.changed(&self.table.dataset, &rows?)?);
                    if changed.len() >= super::epoch::SUBJECTS {
                        break;
                    }
                }
            }
        }
        let sequences: Vec<i64> = group.iter().map(|staged| staged.origin.sequence).collect();
        let adds = group.iter().flat_map(|staged| &staged.files.adds).chain(&written.0.adds).cloned();
        let actions: Vec<Action> = adds.map(Action::Add).collect();
        let append = DeltaOperation::Write { mode: SaveMode::Append, partition_by: None, predicate: None };
        // INVARIANT: files of a commit that may have landed are not deleted, also where this is cut short on the way.
        for staged in &mut group {
            staged.files.keep();
        }
        written.0.keep();
        let table = self.append(actions, append, &sequences, Effect::More).await?;
        let version = version_of(&table.table);
        let publication = self.table.versions().committed(table, changed.into_iter().collect(), now);
        let stored = group.iter().filter(|staged| staged.noted).count();
        self.writing.noted = self.writing.noted.saturating_sub(stored);
        self.writing.copies.shrink();
        if self.table.dataset.fields.iter().any(|field| field.division == Some(DivisionRule::Defines))
            && let Err(error) = self.store.refresh_divisions().await
        {
            // The batch is stored; what it adds to the codes is known from the next one on.
            tracing::error!(cause = error.fault(), "the divisions cannot be read");
        }
        Ok(Committed { version: i64::try_from(version).map_err(Error::internal)?, publication })
    }

    /// Commits actions as one version, durably, and remembers it.
    ///
    /// # Errors
    /// [`Error::ResourceLimit`] where the disk is full, else a fault of the hub.
    pub async fn commit_actions(
        &mut self,
        actions: Vec<Action>,
        operation: DeltaOperation,
        change: Change,
    ) -> Result<u64> {
        let effect = match change {
            Change::None => Effect::Same,
            Change::Erasure => Effect::Fewer,
        };
        let table = self.append(actions, operation, &[], effect).await?;
        let version = version_of(&table.table);
        let is_erasure = matches!(change, Change::Erasure);
        let publication = {
            let mut versions = self.table.versions();
            match change {
                Change::None => versions.laid_otherwise(table),
                Change::Erasure => versions.published_at_once(table),
            }
        };
        if is_erasure {
            self.writing.copies = super::copies::Copies::default();
        }
        self.store.publisher.keep(&self.table.dataset.name, &publication)?;
        Ok(version)
    }

    /// One more version, flushed.
    // INVARIANT: success is reported, and the version read and counted, only when the commit would survive
    // a power cut.
    async fn append(
        &mut self,
        actions: Vec<Action>,
        operation: DeltaOperation,
        sequences: &[i64],
        effect: Effect,
    ) -> Result<Version> {
        if self.writing.lost {
            return Err(Error::internal("the disk failed to keep what was written to this table; restart the hub"));
        }
        let mut table = self.table.current();
        let named: Vec<String> = actions
            .iter()
            .filter_map(|action| match action {
                Action::Add(add) => Some(add.path.clone()),
                _ => None,
            })
            .collect();
        // Files first: a commit that is there names nothing that a power cut could take.
        self.flushed({
            let (folder, files) = (self.table.folder.clone(), named.clone());
            move || flush_files(&folder, &files)
        })
        .await?;
        // Checkpoints are upkeep; whoever pushes does not wait for them.
        let properties = CommitProperties::default()
            .with_create_checkpoint(false)
            .with_metadata([(BATCHES.to_owned(), json!(sequences))]);
        let state = table.snapshot().map_err(Error::internal)?;
        let committed = CommitBuilder::from(properties)
            .with_actions(actions)
            .build(Some(state), table.log_store(), operation)
            .await;
        match committed {
            Ok(committed) => table.state = Some(committed.snapshot()),
            // The commit may have landed and only what follows it failed: ask the table itself.
            Err(error) => {
                let before = version_of(&table);
                let landed = match table.update_state().await {
                    Ok(()) => (before + 1..=version_of(&table)).any(|version| self.names(version, &named, sequences)),
                    Err(_) => false,
                };
                if !landed {
                    return Err(write_error(&error));
                }
            }
        }
        let (folder, version) = (self.table.folder.clone(), version_of(&table));
        self.flushed(move || flush_commit(&folder, version)).await?;
        // INVARIANT: nobody can ask about a version before its rows are where the next one will find them.
        let rows = self.in_memory(&table, effect, &named).await;
        Ok(Version { table, rows })
    }

    /// The rows of a version that was just committed, to be held in memory: those of the one before with what was
    /// added, where nothing else was done.
    async fn in_memory(&self, table: &DeltaTable, effect: Effect, added: &[String]) -> Option<Arc<Materialised>> {
        let Store { session, room, .. } = self.store;
        let dataset = &self.table.dataset;
        let before = self.table.versions().rows();
        match (before, effect) {
            (Some(before), Effect::Same) => return Some(before),
            (Some(before), Effect::More) => {
                let folder = self.table.folder.clone();
                let files: Vec<PathBuf> = added.iter().map(|file| folder.join(file)).collect();
                let read = |file: PathBuf| -> Box<dyn Iterator<Item = Result<RecordBatch>>> {
                    match read_file(&file) {
                        Ok(rows) => Box::new(rows),
                        Err(error) => Box::new(std::iter::once(Err(error))),
                    }
                };
                let rows = before.with(move || files.into_iter().flat_map(read), table, dataset, session, room);
                match rows.await {
                    Ok(rows) => return rows.map(Arc::new),
                    Err(error) => {
                        tracing::warn!(dataset = %dataset.name, cause = error.fault(), "a version is read anew");
                    }
                }
            }
            _ => {}
        }
        materialised(table, dataset, session, room).await
    }

    /// Waits for the disk. Once it has failed, the table takes nothing more until the next start.
    async fn flushed(&mut self, flush: impl FnOnce() -> std::io::Result<()> + Send + 'static) -> Result<()> {
        let flushed = spawn_blocking(flush).await.map_err(Error::internal)?;
        // Only what was open and could not be flushed may be lost.
        let opened = |error: &std::io::Error| {
            error.kind() != ErrorKind::NotFound
                && !error.raw_os_error().is_some_and(|code| TOO_MANY_FILES.contains(&code))
        };
        self.writing.lost |= flushed.as_ref().is_err_and(opened);
        flushed.map_err(|e| io_error(&e))
    }

    /// Whether a version is the commit of these files and batches.
    fn names(&self, version: u64, files: &[String], sequences: &[i64]) -> bool {
        let Ok(commit) = durable::actions(&self.table.folder, version) else { return false };
        let adds: Vec<&str> = commit.iter().filter_map(|line| line.pointer("/add/path")?.as_str()).collect();
        batches_of(&commit) == sequences && files.iter().all(|file| adds.contains(&file.as_str()))
    }

    /// The version in which a batch was committed, if it was; made durable before it is told.
    ///
    /// # Errors
    /// A fault of the disk or the database.
    pub async fn find(&mut self, sequence: i64) -> Result<Option<i64>> {
        if self.writing.lost {
            return Err(Error::internal("the disk failed to keep what was written to this table; restart the hub"));
        }
        // The commit may have landed after the hub stopped looking.
        let mut table = self.table.current();
        table.update_state().await.map_err(Error::internal)?;
        self.writing.copies = super::copies::Copies::default();
        let Table { dataset, folder, .. } = self.table;
        let rows = match version_of(&table) > version_of(&self.table.current()) {
            true => materialised(&table, dataset, &self.store.session, &self.store.room).await,
            false => None,
        };
        let publication = {
            let mut versions = self.table.versions();
            versions.catch_up(Version { table: table.clone(), rows }, folder, &dataset.name, &self.store.publisher)?;
            versions.counted()
        };
        // INVARIANT: a version is remembered as counted before anybody is told of a batch in it. Where only what
        // followed the commit failed, it was not.
        self.store.publisher.keep(&dataset.name, &publication)?;
        for version in (0..=version_of(&table)).rev() {
            let commit = match durable::actions(folder, version) {
                Ok(commit) => commit,
                // Commits are kept until long after the batches in them are settled.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => break,
                // Not to be read is not the same as not to be there.
                Err(error) => return Err(io_error(&error)),
            };
            if batches_of(&commit).contains(&sequence) {
                return i64::try_from(version).map(Some).map_err(Error::internal);
            }
        }
        Ok(None)
    }
}

/// Files of a group, to be committed with it.
pub struct GroupFiles(Files);

/// What became of a commit.
pub struct Committed {
    /// The version that holds the batches.
    pub version: i64,
    /// What is published now and what waits; to be remembered with the receipts.
    pub publication: Counted,
}

/// What rows take, without the rest of the buffers they may share with others.
pub(super) fn bytes_of(rows: &RecordBatch) -> usize {
    let of =
        |column: &ArrayRef| column.to_data().get_slice_memory_size().unwrap_or_else(|_| column.get_array_memory_size());
    rows.columns().iter().map(of).sum()
}

/// The rows of a file of a table, some at a time.
fn read_file(path: &Path) -> Result<impl Iterator<Item = Result<RecordBatch>> + use<>> {
    let file = File::open(path).map_err(|e| io_error(&e))?;
    let reader = ParquetRecordBatchReaderBuilder::try_new(file).map_err(Error::internal)?;
    let reader = reader.with_batch_size(8_192).build().map_err(Error::internal)?;
    Ok(reader.map(|rows| rows.map_err(Error::internal)))
}

/// The numbers of the batches in a commit.
fn batches_of(commit: &[serde_json::Value]) -> Vec<i64> {
    let listed = commit.iter().find_map(|line| line.get("commitInfo")?.get(BATCHES)?.as_array());
    listed.map(|numbers| numbers.iter().filter_map(serde_json::Value::as_i64).collect()).unwrap_or_default()
}

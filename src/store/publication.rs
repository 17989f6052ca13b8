//! What is published of each table, kept and held ready to be read; [`epoch`](super::epoch) has the rule.
//!
//! Row-level questions read the current version; those who may see rows learn nothing from a number.

use std::{collections::HashSet, path::Path, sync::Arc};

use arrow::{
    array::{Array, AsArray, BinaryArray, RecordBatch},
    compute::cast,
    datatypes::DataType,
};
use chrono::{DateTime, Utc};
use deltalake_core::DeltaTable;
use ring::hmac;

use super::{
    durable::make_all_durable,
    epoch::{Counted, Publication, SUBJECTS},
    io_error,
    materialised::Materialised,
    metadata::Metadata,
    rows_of, version_of,
};
use crate::{
    audit::Clock,
    dataset::{Dataset, DatasetName, layout::WIDTH},
    error::{Error, Result},
    keys::Keys,
};

/// What publications are kept with.
pub struct Publisher {
    metadata: Arc<Metadata>,
    key: hmac::Key,
    clock: Clock,
}

impl Publisher {
    /// Keeps publications in that database and lives by that clock.
    pub fn new(metadata: Arc<Metadata>, keys: &Keys, clock: Clock) -> Self {
        Self { metadata, key: keys.mac("gridhub/v1/pending"), clock }
    }

    /// Where publications are kept.
    pub(super) fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// The hub's time.
    pub(super) fn now(&self) -> DateTime<Utc> {
        (self.clock)()
    }

    /// Remembers what is published of a table and what waits.
    ///
    /// # Errors
    /// A fault of the database.
    pub(super) fn keep(&self, name: &DatasetName, counted: &Counted) -> Result<()> {
        self.metadata.keep_publication(&name.to_string(), counted)
    }

    /// The keyed digests of those the rows are about, each once; a row about nobody stands for itself. No
    /// more of them than are enough to publish. `rows` have the hub's own columns.
    ///
    /// # Errors
    /// Only a fault of the hub.
    pub(super) fn changed(&self, dataset: &Dataset, rows: &RecordBatch) -> Result<Vec<[u8; WIDTH]>> {
        if dataset.is_about_nobody() {
            // Enough of them to be published: there is nobody whom a change could tell of.
            return Ok((0..SUBJECTS).map(|row| self.keyed(&dataset.name, ("row", &row.to_le_bytes()))).collect());
        }
        let binary = |name: &str| -> Result<BinaryArray> {
            let column = rows.column_by_name(name).ok_or_else(|| Error::internal("rows without a column"))?;
            let column = cast(column, &DataType::Binary).map_err(Error::internal)?;
            Ok(column.as_binary().clone())
        };
        let subjects = dataset.subject.as_ref().map(|field| binary(field)).transpose()?;
        let digests = binary(super::DIGEST)?;
        let (mut seen, mut changed) = (HashSet::new(), Vec::new());
        for row in 0..rows.num_rows() {
            let about = match subjects.as_ref().filter(|subjects| subjects.is_valid(row)) {
                Some(subjects) => ("subject", subjects.value(row)),
                None => ("row", digests.value(row)),
            };
            if !seen.insert(about) {
                continue;
            }
            changed.push(self.keyed(&dataset.name, about));
            if changed.len() == SUBJECTS {
                break;
            }
        }
        Ok(changed)
    }

    /// A digest that links nobody to the tables, nor one table's pending subjects to another's.
    fn keyed(&self, name: &DatasetName, (kind, bytes): (&str, &[u8])) -> [u8; WIDTH] {
        let mut context = hmac::Context::with_key(&self.key);
        context.update(name.to_string().as_bytes());
        context.update(&[0]);
        context.update(kind.as_bytes());
        context.update(&[0]);
        context.update(bytes);
        let mut out = [0; WIDTH];
        out.copy_from_slice(&context.sign().as_ref()[..WIDTH]);
        out
    }
}

/// One version of a table.
#[derive(Clone)]
pub(super) struct Version {
    pub(super) table: DeltaTable,
    /// Its current rows, where they are held in memory.
    pub(super) rows: Option<Arc<Materialised>>,
}

impl From<DeltaTable> for Version {
    fn from(table: DeltaTable) -> Self {
        Self { table, rows: None }
    }
}

/// A table as row-level questions read it, and as protected statistics do.
#[derive(Clone)]
pub(super) struct Standing {
    pub(super) current: Version,
    pub(super) published: Version,
}

/// The standing of a table over time.
// INVARIANT: `current` is the version counted last, and `published` the published one, or version 0, which
// has no rows, while there is none.
pub(super) struct Versions {
    standing: Standing,
    publication: Publication,
}

impl Versions {
    /// The versions of a table that was just opened.
    ///
    /// # Errors
    /// [`Error::Setup`] where the table is older than what is remembered of it, or the published version
    /// cannot be read.
    pub(super) async fn open(
        current: DeltaTable,
        folder: &Path,
        name: &DatasetName,
        publisher: &Publisher,
    ) -> Result<Self> {
        let publication = publisher.metadata.publication(&name.to_string())?;
        let newest = version_of(&current);
        if publication.counted > newest {
            let counted = publication.counted;
            return Err(Error::setup(
                folder,
                None,
                format!("the table is at version {newest}, the metadata at {counted}; restore both from one backup"),
            ));
        }
        // A commit that was emptied is read as one that changes nothing.
        if let Some((_, counted)) = publisher.metadata.extent(&name.to_string())?.filter(|(at, _)| *at == newest)
            && counted != rows_of(&current)
        {
            let have = rows_of(&current);
            let why = format!(
                "the table's log tells of {have} rows, where {counted} were counted in version {newest}: a commit in it \
                 is damaged; restore the table from a backup"
            );
            return Err(Error::setup(&folder.join("_delta_log"), None, why));
        }
        let standing = Standing { current: current.clone().into(), published: current.clone().into() };
        let mut versions = Self { standing, publication };
        versions.catch_up(current.into(), folder, name, publisher)?;
        let published = versions.publication.version.unwrap_or_default();
        if published != newest {
            let loaded = versions.standing.published.table.load_version(published).await;
            loaded.map_err(|e| Error::setup(folder, None, format!("cannot read the published version: {e}")))?;
        }
        Ok(versions)
    }

    /// Takes in the rows of what was just opened.
    pub(super) fn take_in(&mut self, current: Option<Arc<Materialised>>, published: Option<Arc<Materialised>>) {
        self.standing.current.rows = current;
        self.standing.published.rows = published;
    }

    /// The current rows, where they are held in memory.
    pub(super) fn rows(&self) -> Option<Arc<Materialised>> {
        self.standing.current.rows.clone()
    }

    /// The version that protected statistics read, opened.
    pub(super) fn published(&self) -> DeltaTable {
        self.standing.published.table.clone()
    }

    /// The table as it stands.
    pub(super) fn current(&self) -> DeltaTable {
        self.standing.current.table.clone()
    }

    /// The table as it is read from now on, what is due published first.
    pub(super) fn standing(&mut self, now: DateTime<Utc>) -> Standing {
        self.publication.publish_due(now);
        self.hold(self.standing.current.clone());
        self.standing.clone()
    }

    /// Takes in the next version, in which these subjects changed, and returns what is to be kept.
    pub(super) fn committed(&mut self, newest: Version, subjects: Vec<[u8; WIDTH]>, now: DateTime<Utc>) -> Counted {
        self.publication.committed(version_of(&newest.table), subjects, now);
        self.hold(newest);
        self.counted()
    }

    /// Takes in a version with the same rows as the one before, and returns what is to be kept.
    pub(super) fn laid_otherwise(&mut self, newest: Version) -> Counted {
        self.publication.laid_otherwise(version_of(&newest.table));
        self.hold(newest);
        self.counted()
    }

    /// Takes in a version that is published whatever waits, and returns what is to be kept.
    pub(super) fn published_at_once(&mut self, newest: Version) -> Counted {
        self.publication.publish(version_of(&newest.table));
        self.hold(newest);
        self.counted()
    }

    /// Takes the same version, opened anew, as current and published.
    pub(super) fn reopened(&mut self, table: DeltaTable) {
        let same = Version { table, rows: self.standing.current.rows.take() };
        self.standing = Standing { current: same.clone(), published: same };
    }

    /// What is published and what waits.
    pub(super) fn counted(&self) -> Counted {
        Counted { publication: self.publication.clone(), rows: rows_of(&self.standing.current.table) }
    }

    /// The version that protected statistics read.
    pub(super) fn published_version(&self) -> u64 {
        version_of(&self.standing.published.table)
    }

    /// Publishes versions whose changes nobody counted: a power cut or a fault of the disk after a commit
    /// leaves one, a data folder from before there were publications has many. Uncounted, a change would
    /// wait for others that may never come. Publishing it alone tells of it only whoever can bring down
    /// the hub between the two halves of just that commit, which is in no caller's hands.
    ///
    /// # Errors
    /// A fault of the disk or the database.
    pub(super) fn catch_up(
        &mut self,
        newest: Version,
        folder: &Path,
        name: &DatasetName,
        publisher: &Publisher,
    ) -> Result<()> {
        let version = version_of(&newest.table);
        if version <= self.publication.counted {
            return Ok(());
        }
        // INVARIANT: no version is remembered as counted that a power cut could still take away.
        make_all_durable(folder, self.publication.counted + 1..=version).map_err(|e| io_error(&e))?;
        self.publication.publish(version);
        self.hold(newest);
        publisher.keep(name, &self.counted())
    }

    /// Holds the newest version, and as published the one of two that was just published, if one was.
    fn hold(&mut self, newest: Version) {
        for version in [&self.standing.current, &newest] {
            if self.publication.version == version.table.version() {
                self.standing.published = version.clone();
            }
        }
        self.standing.current = newest;
    }
}

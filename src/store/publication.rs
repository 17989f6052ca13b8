//! Publication epochs: which version of a table protected statistics read.
//!
//! They read the newest *published* version, so that nobody can ask for the same number before and after
//! one person's change and subtract: several people change between two versions that are ever read, or a
//! day passes. Row-level questions read the current version; those who may see rows learn nothing from a
//! number. It knows nothing of questions: what is published depends on commits and on the time alone, and
//! not on who asks when.

use std::{
    collections::{BTreeSet, HashSet},
    path::Path,
    sync::Arc,
};

use arrow::array::{Array, AsArray, RecordBatch};
use chrono::{DateTime, TimeDelta, Utc};
use deltalake_core::DeltaTable;
use ring::hmac;

use super::{io_error, make_durable, metadata::Metadata, version_of};
use crate::{
    audit::Clock,
    dataset::{Dataset, DatasetName, layout::WIDTH},
    error::{Error, Result},
    keys::Keys,
};

/// How many distinct subjects change between two published versions, unless [`LONGEST`] passes first.
pub const SUBJECTS: usize = 10;

/// How long a change stays unpublished at most.
pub const LONGEST: TimeDelta = TimeDelta::hours(24);

/// What is published of one table, and what waits.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Publication {
    /// The published version; none while nothing ever was.
    pub version: Option<u64>,
    /// The newest version whose changes were counted.
    pub counted: u64,
    /// When the oldest unpublished change was committed.
    pub since: Option<DateTime<Utc>>,
    /// The subjects that changed since the published version, as keyed digests; fewer than [`SUBJECTS`].
    /// A record that goes from one subject to another counts for the later one: too few are counted
    /// rather than too many.
    pub pending: BTreeSet<[u8; WIDTH]>,
}

impl Publication {
    /// Counts the subjects that changed in a version, and publishes it where they are enough.
    pub fn committed(&mut self, version: u64, subjects: impl IntoIterator<Item = [u8; WIDTH]>, now: DateTime<Utc>) {
        // Whether somebody asked between the day's end and this commit makes no difference.
        self.publish_due(now);
        self.counted = version;
        self.pending.extend(subjects);
        if self.pending.len() >= SUBJECTS {
            self.publish(version);
        } else if !self.pending.is_empty() {
            self.since = self.since.or(Some(now));
        }
    }

    /// Whether a change has waited long enough to be published however few changed with it.
    pub fn due(&self, now: DateTime<Utc>) -> bool {
        self.since.is_some_and(|since| now.signed_duration_since(since) >= LONGEST)
    }

    /// Publishes the newest version where a change in it is due. This need not be kept: what is kept is
    /// enough to find it again.
    pub fn publish_due(&mut self, now: DateTime<Utc>) {
        if self.due(now) {
            self.publish(self.counted);
        }
    }

    /// Publishes a version; nothing waits then.
    pub fn publish(&mut self, version: u64) {
        *self = Self { version: Some(version), counted: version, ..Self::default() };
    }
}

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

    /// The hub's time.
    pub(super) fn now(&self) -> DateTime<Utc> {
        (self.clock)()
    }

    /// Remembers what is published of a table and what waits.
    ///
    /// # Errors
    /// A fault of the database.
    pub(super) fn keep(&self, name: &DatasetName, publication: &Publication) -> Result<()> {
        self.metadata.keep_publication(&name.to_string(), publication)
    }

    /// The keyed digests of those the rows are about, each once; a row about nobody stands for itself. No
    /// more of them than are enough to publish.
    ///
    /// # Errors
    /// Only a fault of the hub.
    pub(super) fn changed(
        &self,
        dataset: &Dataset,
        rows: &RecordBatch,
        digests: &[[u8; WIDTH]],
    ) -> Result<Vec<[u8; WIDTH]>> {
        if dataset.is_about_nobody() {
            // Enough of them to be published: there is nobody whom a change could tell of.
            return Ok((0..SUBJECTS).map(|row| self.keyed(&dataset.name, ("row", &row.to_le_bytes()))).collect());
        }
        let subjects = match &dataset.subject {
            None => None,
            Some(field) => {
                let column = rows.column_by_name(field).and_then(|column| column.as_binary_opt::<i32>());
                Some(column.ok_or_else(|| Error::internal("a subject is no pseudonym"))?)
            }
        };
        let (mut seen, mut changed) = (HashSet::new(), Vec::new());
        for (row, digest) in digests.iter().enumerate() {
            let about = match subjects.filter(|subjects| subjects.is_valid(row)) {
                Some(subjects) => ("subject", subjects.value(row)),
                None => ("row", digest.as_slice()),
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

/// A table as row-level questions read it, and as protected statistics do.
#[derive(Clone)]
pub(super) struct Standing {
    pub(super) current: DeltaTable,
    pub(super) published: DeltaTable,
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
        let standing = Standing { current: current.clone(), published: current.clone() };
        let mut versions = Self { standing, publication };
        versions.catch_up(current, folder, name, publisher)?;
        let published = versions.publication.version.unwrap_or_default();
        if published != newest {
            let loaded = versions.standing.published.load_version(published).await;
            loaded.map_err(|e| Error::setup(folder, None, format!("cannot read the published version: {e}")))?;
        }
        Ok(versions)
    }

    /// The table as it stands.
    pub(super) fn current(&self) -> DeltaTable {
        self.standing.current.clone()
    }

    /// The table as it is read from now on, what is due published first.
    pub(super) fn standing(&mut self, now: DateTime<Utc>) -> Standing {
        self.publication.publish_due(now);
        self.hold(self.standing.current.clone());
        self.standing.clone()
    }

    /// Takes in the next version, in which these subjects changed, and returns what is to be kept.
    pub(super) fn committed(
        &mut self,
        newest: DeltaTable,
        subjects: Vec<[u8; WIDTH]>,
        now: DateTime<Utc>,
    ) -> Publication {
        self.publication.committed(version_of(&newest), subjects, now);
        self.hold(newest);
        self.publication.clone()
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
        newest: DeltaTable,
        folder: &Path,
        name: &DatasetName,
        publisher: &Publisher,
    ) -> Result<()> {
        let version = version_of(&newest);
        if version <= self.publication.counted {
            return Ok(());
        }
        // INVARIANT: no version is remembered as counted that a power cut could still take away.
        for version in self.publication.counted..=version {
            make_durable(folder, version).map_err(|e| io_error(&e))?;
        }
        self.publication.publish(version);
        self.hold(newest);
        publisher.keep(name, &self.publication)
    }

    /// Holds the newest version, and as published the one of two that was just published, if one was.
    fn hold(&mut self, newest: DeltaTable) {
        for table in [&self.standing.current, &newest] {
            if self.publication.version == table.version() {
                self.standing.published = table.clone();
            }
        }
        self.standing.current = newest;
    }
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng, rngs::StdRng};

    use super::*;

    fn at(hours: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(hours * 3_600, 0).expect("time")
    }

    fn people(numbers: std::ops::Range<u8>) -> impl Iterator<Item = [u8; WIDTH]> {
        numbers.map(|number| [number; WIDTH])
    }

    #[test]
    fn ten_subjects_publish_and_nine_wait() {
        let mut publication = Publication::default();
        publication.committed(1, people(0..9), at(0));
        assert_eq!((publication.version, publication.since, publication.pending.len()), (None, Some(at(0)), 9));
        // The same nine again are nobody else.
        publication.committed(2, people(0..9), at(1));
        assert_eq!((publication.version, publication.since, publication.pending.len()), (None, Some(at(0)), 9));
        publication.committed(3, people(9..10), at(2));
        assert_eq!(publication, Publication { version: Some(3), counted: 3, since: None, pending: BTreeSet::new() });
        // Who was published waits again when changed again.
        publication.committed(4, people(0..1), at(3));
        assert_eq!((publication.version, publication.counted, publication.since), (Some(3), 4, Some(at(3))));
    }

    #[test]
    fn a_day_publishes_one() {
        let mut publication = Publication::default();
        publication.committed(1, people(0..12), at(0));
        publication.committed(2, people(0..1), at(5));
        publication.committed(3, people(1..2), at(28));
        assert!(!publication.due(at(29) - TimeDelta::milliseconds(1)));
        assert!(publication.due(at(29)));
        publication.publish_due(at(29));
        assert_eq!(publication, Publication { version: Some(3), counted: 3, since: None, pending: BTreeSet::new() });
        // Nothing waits, so nothing is ever due.
        assert!(!publication.due(at(1_000)));
    }

    #[test]
    fn what_is_due_is_published_without_the_commit_that_finds_it_so() {
        let mut publication = Publication::default();
        publication.committed(1, people(0..3), at(0));
        publication.committed(2, people(3..5), at(24));
        assert_eq!((publication.version, publication.counted, publication.since), (Some(1), 2, Some(at(24))));
        assert_eq!(publication.pending, people(3..5).collect::<BTreeSet<_>>());
    }

    /// Against a model that keeps every unpublished change; and whoever asks in between changes nothing.
    #[test]
    fn random_commits_publish_what_the_model_says() {
        let mut random = StdRng::seed_from_u64(11);
        for _ in 0..300 {
            let (mut asked, mut unasked) = (Publication::default(), Publication::default());
            let (mut published, mut waiting) = (None, Vec::<(u64, i64, u8)>::new());
            let mut hour = 0_i64;
            for version in 1..40 {
                hour += random.random_range(0..14_i64);
                if waiting.first().is_some_and(|(_, since, _)| hour - since >= 24) {
                    published = waiting.drain(..).map(|(version, ..)| version).max();
                }
                if random.random_bool(0.5) {
                    asked.publish_due(at(hour));
                    assert_eq!(asked.version, published);
                }
                let subjects: Vec<u8> = (0..random.random_range(1..5)).map(|_| random.random_range(0..20)).collect();
                waiting.extend(subjects.iter().map(|subject| (version, hour, *subject)));
                if waiting.iter().map(|(.., subject)| subject).collect::<HashSet<_>>().len() >= 10 {
                    waiting.clear();
                    published = Some(version);
                }
                let subjects = || subjects.iter().map(|subject| [*subject; WIDTH]);
                asked.committed(version, subjects(), at(hour));
                unasked.committed(version, subjects(), at(hour));
                assert_eq!(asked.version, published);
                assert_eq!(asked, unasked);
                assert!(asked.pending.len() < SUBJECTS);
            }
        }
    }
}

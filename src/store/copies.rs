//! Exact copies: which rows of a batch its source has sent before.
//!
//! A copy has the event day of what it copies, so only rows of a batch's own days are ever compared. Small
//! batches are compared with digests that stay in memory, day by day, the longest unused ones leaving; large
//! ones with the table itself.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    hash::{BuildHasherDefault, Hasher},
    sync::{Mutex, PoisonError},
};

use arrow::array::RecordBatch;
use datafusion::{
    logical_expr::{Expr, lit},
    prelude::col,
    scalar::ScalarValue,
};
use futures::TryStreamExt;

use super::{DIGEST, Store, Table, files};
use crate::{
    dataset::{Dataset, FieldType},
    error::{Error, Result},
};

/// Digests of rows. They are keyed hashes, so any part of one is as good as a hash of it.
pub(super) type Digests = HashSet<u128, BuildHasherDefault<FirstWord>>;

/// Takes the low half of a digest for its hash.
#[derive(Default)]
pub(super) struct FirstWord(u64);

impl Hasher for FirstWord {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.0 ^= u64::from_le_bytes(word);
        }
    }

    fn write_u128(&mut self, digest: u128) {
        self.0 = digest as u64;
    }
}

/// An event day, in days since 1970; nothing for rows without one.
pub(super) type Day = Option<i32>;

/// The digests of one batch, filled from several threads.
pub(super) struct Seen {
    parts: Vec<Mutex<Digests>>,
}

impl Default for Seen {
    fn default() -> Self {
        // Parts grow one at a time, which takes less at once than one large set that doubles.
        Self { parts: (0..16).map(|_| Mutex::default()).collect() }
    }
}

impl Seen {
    /// Notes a row; false where the batch had it before.
    pub(super) fn insert(&self, digest: u128) -> bool {
        self.part(digest).lock().unwrap_or_else(PoisonError::into_inner).insert(digest)
    }

    /// Whether the batch has a row and nobody took it out.
    pub(super) fn contains(&self, digest: u128) -> bool {
        self.part(digest).lock().unwrap_or_else(PoisonError::into_inner).contains(&digest)
    }

    /// Takes a row out; false where it is not there.
    fn remove(&self, digest: u128) -> bool {
        self.part(digest).lock().unwrap_or_else(PoisonError::into_inner).remove(&digest)
    }

    // The high half, since the sets hash by the low one.
    fn part(&self, digest: u128) -> &Mutex<Digests> {
        &self.parts[(digest >> 64) as usize % self.parts.len()]
    }
}

/// So many digests stay in memory between batches: about 50 MB a table at most.
pub(super) const REMEMBERED: usize = 2_000_000;

/// From so many rows on, a batch is compared with the table itself.
pub(super) const MANY: u64 = 500_000;

/// The digests of a table's rows, by event day, as far as batches have asked for them.
#[derive(Default)]
pub(super) struct Copies {
    days: HashMap<Day, Known>,
    turn: u64,
}

struct Known {
    digests: Digests,
    used: u64,
}

impl Copies {
    /// Reads what is stored of these days, where it is not known yet.
    pub(super) async fn learn(&mut self, store: &Store, table: &Table, days: &BTreeSet<Day>) -> Result<()> {
        self.turn += 1;
        let mut missing = BTreeSet::new();
        for day in days {
            match self.days.get_mut(day) {
                Some(known) => known.used = self.turn,
                None => {
                    missing.insert(*day);
                }
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        let dataset = &table.dataset;
        let mut learned: HashMap<Day, Digests> = missing.iter().map(|day| (*day, Digests::default())).collect();
        stored(store, table, &missing, |rows| {
            for (day, digest) in files::event_days(dataset, rows)?.into_iter().zip(files::digests(rows)?) {
                if let Some(digests) = learned.get_mut(&day) {
                    digests.insert(digest);
                }
            }
            Ok(())
        })
        .await?;
        // Only now: a day that is known in part would pass copies for new rows.
        let used = self.turn;
        self.days.extend(learned.into_iter().map(|(day, digests)| (day, Known { digests, used })));
        Ok(())
    }

    /// Of how many of these days nothing is known.
    pub(super) fn unknown(&self, days: &BTreeSet<Day>) -> usize {
        days.iter().filter(|day| !self.days.contains_key(day)).count()
    }

    /// Notes a row of a day that was learned; false where it is known.
    pub(super) fn insert(&mut self, day: Day, digest: u128) -> bool {
        self.days.get_mut(&day).is_none_or(|known| known.digests.insert(digest))
    }

    /// Forgets what was noted of these days.
    pub(super) fn forget(&mut self, days: &BTreeSet<Day>) {
        self.days.retain(|day, _| !days.contains(day));
    }

    /// Lets go of the days that were not asked for longest, until few enough digests are left.
    pub(super) fn shrink(&mut self) {
        let mut held: usize = self.days.values().map(|known| known.digests.len()).sum();
        while held > REMEMBERED {
            let oldest = self.days.iter().min_by_key(|(_, known)| known.used).map(|(day, _)| *day);
            let Some(gone) = oldest.and_then(|day| self.days.remove(&day)) else { return };
            held -= gone.digests.len();
        }
    }
}

/// Takes those rows out of what a batch has that are stored already, and returns how many they were. A second set of
/// those found would take as much memory as the first.
pub(super) async fn take_out_stored(store: &Store, table: &Table, days: &BTreeSet<Day>, seen: &Seen) -> Result<usize> {
    let mut found = 0;
    stored(store, table, days, |rows| {
        found += files::digests(rows)?.filter(|digest| seen.remove(*digest)).count();
        Ok(())
    })
    .await?;
    Ok(found)
}

/// Reads event days and digests of the stored rows that may be of these days.
async fn stored(
    store: &Store,
    table: &Table,
    days: &BTreeSet<Day>,
    mut take: impl FnMut(&RecordBatch) -> Result<()>,
) -> Result<()> {
    let dataset = &table.dataset;
    let mut columns = vec![DIGEST];
    columns.extend(dataset.event_time.as_deref());
    let filter = of_days(dataset, days);
    let mut rows = store.scan(&table.current(), &columns, &filter).await?;
    while let Some(rows) = rows.try_next().await.map_err(Error::internal)? {
        take(&rows)?;
    }
    Ok(())
}

/// What rows of these days have in common.
fn of_days(dataset: &Dataset, days: &BTreeSet<Day>) -> Vec<Expr> {
    const MICROSECONDS: i64 = 86_400_000_000;
    let Some(field) = dataset.event_time.as_ref().and_then(|name| dataset.field(name)) else { return Vec::new() };
    let dated: Vec<i32> = days.iter().flatten().copied().collect();
    let (Some(first), Some(last)) = (dated.first(), dated.last()) else {
        return vec![col(format!("\"{}\"", field.name)).is_null()];
    };
    let edge = |day: i32| match field.kind {
        FieldType::Timestamp => {
            ScalarValue::TimestampMicrosecond(Some(i64::from(day) * MICROSECONDS), Some("UTC".into()))
        }
        _ => ScalarValue::Date32(Some(day)),
    };
    let column = || col(format!("\"{}\"", field.name));
    let within = column().gt_eq(lit(edge(*first))).and(column().lt(lit(edge(last.saturating_add(1)))));
    vec![match days.contains(&None) {
        true => within.or(column().is_null()),
        false => within,
    }]
}

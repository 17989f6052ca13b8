//! Who was erased, so that no later batch brings them back.
//!
//! A tombstone is a keyed mark of a pseudonym and not the pseudonym, so that the metadata alone name nobody.
//! This module knows no table, no database and no identifier.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError, RwLock},
};

use arrow::{
    array::{AsArray, BooleanArray, RecordBatch},
    compute::cast,
    datatypes::DataType,
};
use ring::hmac;
use tokio::sync::OwnedRwLockReadGuard;

use crate::{
    dataset::{Dataset, layout::WIDTH},
    keys::Keys,
};

/// How many bytes a mark has.
pub const MARK: usize = 32;

/// What is kept of somebody who was erased.
#[derive(Clone, PartialEq, Eq)]
pub struct Tombstone {
    /// The linkage domain of the pseudonym.
    pub domain: String,
    /// HMAC-SHA-256 of domain and pseudonym.
    pub mark: [u8; MARK],
    /// The first 16 bits of the pseudonym. They spare nearly all rows the HMAC, and are those of one in 65,536.
    pub sieve: u16,
}

/// Everybody who was erased.
pub struct Tombstones {
    key: hmac::Key,
    graves: RwLock<HashMap<String, Graves>>,
    /// Held for reading by the uploads that began since the last erasure.
    passage: Mutex<Arc<tokio::sync::RwLock<()>>>,
}

/// The erased of one linkage domain.
struct Graves {
    sieve: Vec<bool>,
    marks: HashSet<[u8; MARK]>,
}

impl Default for Graves {
    fn default() -> Self {
        Self { sieve: vec![false; 1 << 16], marks: HashSet::new() }
    }
}

/// An upload on its way, from before its rows are compared with the tombstones until after they are committed.
pub struct Passage {
    _held: OwnedRwLockReadGuard<()>,
}

impl Tombstones {
    /// Those of a hub with these keys, of whom its metadata keep these tombstones.
    pub fn new(kept: &[Tombstone], keys: &Keys) -> Self {
        let key = keys.mac("gridhub/v1/tombstones");
        let tombstones = Self { key, graves: RwLock::default(), passage: Mutex::default() };
        tombstones.add(kept);
        tombstones
    }

    /// The tombstone of a pseudonym. It stands only once it is kept in the metadata and [added](Self::add).
    pub fn of(&self, domain: &str, pseudonym: &[u8; WIDTH]) -> Tombstone {
        Tombstone { domain: domain.to_owned(), mark: self.mark(domain, pseudonym), sieve: sieve(pseudonym) }
    }

    /// Lets tombstones stand that are kept in the metadata.
    pub fn add(&self, tombstones: &[Tombstone]) {
        let mut graves = self.graves.write().unwrap_or_else(PoisonError::into_inner);
        for Tombstone { domain, mark, sieve } in tombstones {
            let graves = graves.entry(domain.clone()).or_default();
            graves.sieve[usize::from(*sieve)] = true;
            graves.marks.insert(*mark);
        }
    }

    /// Whether nobody was ever erased.
    pub fn is_empty(&self) -> bool {
        self.graves.read().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Whether the one behind that pseudonym was erased.
    pub fn buries(&self, domain: &str, pseudonym: &[u8; WIDTH]) -> bool {
        let graves = self.graves.read().unwrap_or_else(PoisonError::into_inner);
        graves.get(domain).is_some_and(|graves| self.lies_in(graves, domain, pseudonym))
    }

    /// Which of the rows, identifiers replaced by pseudonyms, name somebody who was erased; nothing where none
    /// does.
    ///
    /// The caller holds a [`Passage`] from before until its rows are committed, else an erasure in between
    /// would miss them.
    pub fn buried(&self, dataset: &Dataset, rows: &RecordBatch) -> Option<BooleanArray> {
        let graves = self.graves.read().unwrap_or_else(PoisonError::into_inner);
        if graves.is_empty() {
            return None;
        }
        let mut buried = vec![false; rows.num_rows()];
        for field in dataset.stored_fields() {
            let Some(domain) = field.identifier.as_ref().map(|identifier| &identifier.domain) else { continue };
            let Some((graves, column)) = graves.get(domain).zip(rows.column_by_name(&field.name)) else { continue };
            let Ok(column) = cast(column, &DataType::Binary) else {
                // INVARIANT: what cannot be compared is not taken.
                return Some(BooleanArray::from(vec![true; rows.num_rows()]));
            };
            for (buried, pseudonym) in buried.iter_mut().zip(column.as_binary::<i32>()) {
                let pseudonym = pseudonym.and_then(|bytes| <&[u8; WIDTH]>::try_from(bytes).ok());
                *buried |= pseudonym.is_some_and(|pseudonym| self.lies_in(graves, domain, pseudonym));
            }
        }
        buried.contains(&true).then(|| BooleanArray::from(buried))
    }

    /// Lets an upload begin.
    pub async fn passage(&self) -> Passage {
        loop {
            // Taken while it cannot be exchanged, so that the erasure that exchanges it next waits for this one. A
            // passage that is exchanged has no writer before.
            let held = {
                let passage = self.passage.lock().unwrap_or_else(PoisonError::into_inner);
                Arc::clone(&passage).try_read_owned()
            };
            match held {
                Ok(held) => return Passage { _held: held },
                Err(_) => tokio::task::yield_now().await,
            }
        }
    }

    /// Waits for the uploads to end that began before, and may not have known the newest tombstones. Those
    /// that begin meanwhile know them, and are neither waited for nor held up.
    pub async fn drain(&self) {
        let before = {
            let mut passage = self.passage.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *passage)
        };
        drop(before.write_owned().await);
    }

    fn lies_in(&self, graves: &Graves, domain: &str, pseudonym: &[u8; WIDTH]) -> bool {
        graves.sieve[usize::from(sieve(pseudonym))] && graves.marks.contains(&self.mark(domain, pseudonym))
    }

    fn mark(&self, domain: &str, pseudonym: &[u8; WIDTH]) -> [u8; MARK] {
        let mut context = hmac::Context::with_key(&self.key);
        context.update(domain.as_bytes());
        context.update(&[0]);
        context.update(pseudonym);
        let mut mark = [0; MARK];
        mark.copy_from_slice(context.sign().as_ref());
        mark
    }
}

fn sieve(pseudonym: &[u8; WIDTH]) -> u16 {
    u16::from_be_bytes([pseudonym[0], pseudonym[1]])
}

#[cfg(test)]
mod tests {
    use std::{path::Path, time::Duration};

    use arrow::array::{ArrayRef, BinaryArray};

    use super::*;
    use crate::{dataset::contract, store::metadata::Metadata};

    fn opened(folder: &Path) -> (Metadata, Tombstones) {
        let data = folder.join("data");
        std::fs::create_dir_all(&data).expect("data");
        let metadata = Metadata::open(&data).expect("metadata");
        let keys = Keys::open(&folder.join("keys"), &data, false).expect("keys");
        let tombstones = Tombstones::new(&metadata.tombstones().expect("tombstones"), &keys);
        (metadata, tombstones)
    }

    fn visits() -> Arc<Dataset> {
        let schemas = Path::new(env!("CARGO_MANIFEST_DIR")).join("schemas");
        let datasets = contract::load_folder(&schemas).expect("contracts");
        Arc::clone(datasets.values().find(|found| found.name.to_string() == "community.visits").expect("visits"))
    }

    fn rows(persons: &[Option<[u8; WIDTH]>], workers: &[Option<[u8; WIDTH]>]) -> RecordBatch {
        let column = |values: &[Option<[u8; WIDTH]>]| -> ArrayRef {
            Arc::new(values.iter().map(|value| value.as_ref().map(|value| value.as_slice())).collect::<BinaryArray>())
        };
        RecordBatch::try_from_iter_with_nullable([
            ("id_no", column(persons), true),
            ("worker_id", column(workers), true),
        ])
        .expect("rows")
    }

    #[test]
    fn the_erased_are_known_by_domain_and_after_a_restart() {
        let folder = tempfile::tempdir().expect("folder");
        let (metadata, tombstones) = opened(folder.path());
        let (gone, other) = ([7; WIDTH], [8; WIDTH]);
        // Passes the sieve, and is somebody else.
        let near: [u8; WIDTH] = std::array::from_fn(|at| if at < 2 { 7 } else { 9 });
        let dataset = visits();
        let batch = rows(&[Some(gone), Some(other), None, Some(near)], &[None, Some(gone), None, None]);
        assert!(tombstones.is_empty() && tombstones.buried(&dataset, &batch).is_none());

        let stone = tombstones.of("cn_resident_id", &gone);
        let mark = stone.mark;
        metadata.begin_erasure("e1", 0, b"sealed", std::slice::from_ref(&stone)).expect("kept");
        metadata.begin_erasure("e2", 1, b"sealed", &[stone]).expect("kept once");
        for tombstones in [opened(folder.path()).1, {
            tombstones.add(&metadata.tombstones().expect("tombstones"));
            tombstones
        }] {
            assert!(tombstones.buries("cn_resident_id", &gone) && !tombstones.buries("worker", &gone));
            assert!(!tombstones.buries("cn_resident_id", &near) && !tombstones.buries("cn_resident_id", &other));
            let buried = tombstones.buried(&dataset, &batch).expect("somebody");
            assert_eq!(buried, BooleanArray::from(vec![true, false, false, false]));
            assert!(tombstones.buried(&dataset, &batch.slice(1, 3)).is_none());
        }
        assert!(!mark.windows(4).any(|four| four == [7; 4]), "the mark is not the pseudonym");
    }

    #[test]
    fn rows_that_cannot_be_compared_are_not_taken() {
        let folder = tempfile::tempdir().expect("folder");
        let (_metadata, tombstones) = opened(folder.path());
        tombstones.add(&[tombstones.of("cn_resident_id", &[7; WIDTH])]);
        let numbers: ArrayRef = Arc::new(BooleanArray::from(vec![true, false]));
        let batch = RecordBatch::try_from_iter([("id_no", numbers)]).expect("rows");
        assert_eq!(tombstones.buried(&visits(), &batch), Some(BooleanArray::from(vec![true, true])));
    }

    #[tokio::test]
    async fn an_erasure_waits_for_uploads_that_began_before_and_for_no_others() {
        let folder = tempfile::tempdir().expect("folder");
        let tombstones = opened(folder.path()).1;
        let before = tombstones.passage().await;
        let draining = tombstones.drain();
        tokio::pin!(draining);
        assert!(tokio::time::timeout(Duration::from_millis(50), &mut draining).await.is_err());
        let later = tokio::time::timeout(Duration::from_secs(5), tombstones.passage()).await.expect("not held up");
        drop(before);
        tokio::time::timeout(Duration::from_secs(5), draining).await.expect("over");
        drop(later);
    }
}

//! The ledger: what protected statistics have released, to whomever.
//!
//! It keeps *representatives*, the fresh cells that were released or withheld, against which later cells
//! are held so that two sets that differ in a few people get one answer, and *charges*, the cell definitions
//! released of each column, which are limited over all callers together. It knows neither what makes two
//! cells near nor what the limit is.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{
    representative::{Outcome, Representative},
    sketch::Sketch,
};
use crate::{dataset::layout::WIDTH, error::Result, store::metadata::Metadata};

/// All that was ever released, in memory and on disk.
pub struct Ledger {
    metadata: Arc<Metadata>,
    book: Mutex<Book>,
}

/// What the ledger holds.
#[derive(Default)]
struct Book {
    /// Every representative under its kind, oldest first.
    cells: Vec<(Arc<str>, Representative)>,
    /// Where the representatives of a kind with so many subjects stand in `cells`.
    places: HashMap<Arc<str>, BTreeMap<u64, Vec<usize>>>,
    /// The definitions released of each column.
    charges: HashMap<String, HashSet<[u8; WIDTH]>>,
}

impl Book {
    fn add(&mut self, kind: &str, cell: Representative) {
        let kind: Arc<str> = match self.places.get_key_value(kind) {
            Some((known, _)) => Arc::clone(known),
            None => Arc::from(kind),
        };
        let places = self.places.entry(Arc::clone(&kind)).or_default();
        places.entry(cell.subjects).or_default().push(self.cells.len());
        self.cells.push((kind, cell));
    }

    /// Takes back all representatives but so many.
    fn keep_first(&mut self, count: usize) {
        for (kind, cell) in self.cells.drain(count..) {
            if let Some(places) = self.places.get_mut(&kind).and_then(|sizes| sizes.get_mut(&cell.subjects)) {
                places.retain(|place| *place < count);
            }
        }
    }

    fn charge(&mut self, column: &str, definition: [u8; WIDTH]) -> bool {
        match self.charges.get_mut(column) {
            Some(known) => known.insert(definition),
            None => self.charges.entry(column.to_owned()).or_default().insert(definition),
        }
    }
}

impl Ledger {
    /// Reads what was released so far.
    ///
    /// # Errors
    /// A fault of the database.
    pub fn open(metadata: Arc<Metadata>) -> Result<Self> {
        let mut book = Book::default();
        for (kind, cell) in metadata.representatives()? {
            book.add(&kind, cell);
        }
        for (column, definition) in metadata.charges()? {
            book.charge(&column, definition);
        }
        Ok(Self { metadata, book: Mutex::new(book) })
    }

    /// The version of a dataset at which its subjects were last counted, and how many there were.
    ///
    /// # Errors
    /// A fault of the database.
    pub fn population(&self, dataset: &str) -> Result<Option<(i64, u64)>> {
        self.metadata.population(dataset)
    }

    /// Remembers how many subjects a dataset has at a version.
    ///
    /// # Errors
    /// A fault of the database.
    pub fn remember_population(&self, dataset: &str, version: i64, subjects: u64) -> Result<()> {
        self.metadata.remember_population(dataset, version, subjects)
    }

    /// All that one query decides, under one lock: of two queries at once, only one finds a cell fresh. Wait
    /// for nothing while holding it.
    pub fn session(&self) -> Session<'_> {
        // Whoever panicked with it has taken back what it had added.
        let book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        let known = book.cells.len();
        Session { metadata: &self.metadata, book, known, charged: Vec::new() }
    }
}

/// One query's turn at the ledger. What it adds is kept by [`Session::commit`], and forgotten without.
pub struct Session<'a> {
    metadata: &'a Metadata,
    book: MutexGuard<'a, Book>,
    /// How many representatives there were before.
    known: usize,
    /// What it charged, newly.
    charged: Vec<(String, [u8; WIDTH])>,
}

impl Session<'_> {
    /// The representatives of that kind whose number of subjects differs from `subjects` by less than
    /// `reach`, in no order; those added in this session are among them.
    pub fn near(&self, kind: &str, subjects: u64, reach: u64) -> impl Iterator<Item = &Representative> {
        let cells = &self.book.cells;
        let sizes = self
            .book
            .places
            .get(kind)
            .zip(reach.checked_sub(1))
            .map(|(sizes, most)| sizes.range(subjects.saturating_sub(most)..=subjects.saturating_add(most)));
        let places = sizes.into_iter().flatten().flat_map(|(_, places)| places);
        places.filter_map(move |place| cells.get(*place)).map(|(_, cell)| cell)
    }

    /// Adds a fresh cell with its outcome, or none where it is withheld, and returns its number.
    pub fn add(&mut self, kind: &str, subjects: u64, sketch: Sketch, outcome: Option<Outcome>) -> i64 {
        let id = self.book.cells.last().map_or(1, |(_, newest)| newest.id + 1);
        self.book.add(kind, Representative { id, subjects, sketch, outcome });
        id
    }

    /// Marks a cell definition, given as a digest, as released of a column; true where it was not before.
    pub fn charge(&mut self, column: &str, definition: [u8; WIDTH]) -> bool {
        let fresh = self.book.charge(column, definition);
        if fresh {
            self.charged.push((column.to_owned(), definition));
        }
        fresh
    }

    /// How many definitions were released of a column, those of this session included.
    pub fn charged(&self, column: &str) -> u64 {
        self.book.charges.get(column).map_or(0, |definitions| definitions.len() as u64)
    }

    /// Keeps what was added, on disk before this returns.
    ///
    /// # Errors
    /// A fault of the database; everything is forgotten then.
    pub fn commit(mut self) -> Result<()> {
        let fresh = self.book.cells.iter().skip(self.known).map(|(kind, cell)| (&**kind, cell));
        self.metadata.record_cells(fresh, &self.charged)?;
        // Nothing is left to take back.
        self.known = self.book.cells.len();
        self.charged.clear();
        Ok(())
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        // INVARIANT: the book holds nothing that is not on disk once its session is over.
        self.book.keep_first(self.known);
        for (column, definition) in self.charged.drain(..) {
            if let Some(known) = self.book.charges.get_mut(&column) {
                known.remove(&definition);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        thread,
        time::Duration,
    };

    use tempfile::TempDir;

    use super::*;

    const KIND: &str = "community.visits/temperature/sum";
    const COLUMN: &str = "community.visits.temperature";

    fn metadata(folder: &TempDir) -> Arc<Metadata> {
        Arc::new(Metadata::open(folder.path()).expect("metadata"))
    }

    fn ledger(folder: &TempDir) -> Ledger {
        Ledger::open(metadata(folder)).expect("ledger")
    }

    fn sketch(of: u8) -> Sketch {
        Sketch::from_bytes(&[of; 1_024]).expect("a sketch")
    }

    fn ids(session: &Session<'_>, kind: &str, subjects: u64, reach: u64) -> Vec<i64> {
        let mut ids: Vec<_> = session.near(kind, subjects, reach).map(|cell| cell.id).collect();
        ids.sort_unstable();
        ids
    }

    #[test]
    fn what_was_committed_is_there_after_a_restart() {
        let folder = tempfile::tempdir().expect("folder");
        let released = Outcome { value: i128::MIN + 7, sd: 0.1 + 0.2 };
        let mut before = Vec::new();
        {
            let ledger = ledger(&folder);
            let mut session = ledger.session();
            before.push(session.add(KIND, 40, sketch(1), Some(released)));
            before.push(session.add("other", 40, sketch(2), None));
            assert!(session.charge(COLUMN, [1; WIDTH]) && session.charge(COLUMN, [2; WIDTH]));
            assert!(!session.charge(COLUMN, [1; WIDTH]));
            session.commit().expect("commit");
            // A session of nothing commits too.
            ledger.session().commit().expect("commit");
        }
        let ledger = ledger(&folder);
        let mut session = ledger.session();
        let cells: Vec<_> = session.near(KIND, 40, 1).cloned().collect();
        assert_eq!(cells.len(), 1);
        assert_eq!((cells[0].id, cells[0].subjects, cells[0].outcome), (before[0], 40, Some(released)));
        assert!(cells[0].sketch.bytes()[..] == sketch(1).bytes()[..]);
        assert_eq!(session.near("other", 40, 1).map(|cell| (cell.id, cell.outcome)).collect::<Vec<_>>(), [(2, None)]);
        assert_eq!(session.charged(COLUMN), 2);
        assert!(!session.charge(COLUMN, [2; WIDTH]), "released before the restart");
        assert!(session.charge("community.visits.symptoms", [2; WIDTH]), "another column");
        assert_eq!(session.add(KIND, 40, sketch(3), None), 3, "numbers go on rising");
    }

    #[test]
    fn a_session_that_is_dropped_or_fails_leaves_nothing() {
        let folder = tempfile::tempdir().expect("folder");
        let metadata = metadata(&folder);
        let open = || Ledger::open(Arc::clone(&metadata)).expect("ledger");
        let (first, second) = (open(), open());
        let add = |session: &mut Session<'_>| {
            session.add(KIND, 40, sketch(1), None);
            session.add(KIND, 40, sketch(2), None);
            session.add("other", 7, sketch(3), None);
            session.charge(COLUMN, [1; WIDTH]);
        };
        let nothing = |ledger: &Ledger| {
            let session = ledger.session();
            (ids(&session, KIND, 40, 5), ids(&session, "other", 7, 5), session.charged(COLUMN))
                == (Vec::new(), Vec::new(), 0)
        };
        add(&mut first.session());
        assert!(nothing(&first) && nothing(&open()));

        // Both add a cell of the same number, which the database takes once.
        let mut session = first.session();
        session.add("elsewhere", 1, sketch(4), None);
        session.commit().expect("commit");
        let mut session = second.session();
        add(&mut session);
        assert!(session.commit().is_err());
        assert!(nothing(&second) && nothing(&open()));

        // What was committed before stays when a later session is dropped.
        let mut session = first.session();
        add(&mut session);
        session.commit().expect("commit");
        add(&mut first.session());
        let session = first.session();
        assert_eq!(ids(&session, KIND, 40, 1), [2, 3]);
        assert_eq!(session.charged(COLUMN), 1);
    }

    #[test]
    fn near_goes_by_kind_and_reach() {
        let folder = tempfile::tempdir().expect("folder");
        let ledger = ledger(&folder);
        let mut session = ledger.session();
        for (kind, subjects) in
            [(KIND, 52), (KIND, 48), ("other", 50), (KIND, 50), (KIND, 45), (KIND, 55), (KIND, 0), (KIND, 48)]
        {
            session.add(kind, subjects, sketch(0), None);
        }
        assert_eq!(ids(&session, KIND, 50, 0), [0; 0]);
        assert_eq!(ids(&session, KIND, 50, 1), [4]);
        assert_eq!(ids(&session, KIND, 50, 2), [4]);
        assert_eq!(ids(&session, KIND, 50, 3), [1, 2, 4, 8]);
        assert_eq!(ids(&session, KIND, 50, 5), [1, 2, 4, 8]);
        assert_eq!(ids(&session, KIND, 50, 6), [1, 2, 4, 5, 6, 8]);
        assert_eq!(ids(&session, KIND, 2, 3), [7]);
        assert_eq!(ids(&session, KIND, u64::MAX, u64::MAX), [1, 2, 4, 5, 6, 8]);
        assert_eq!(ids(&session, "other", 50, 100), [3]);
        assert_eq!(ids(&session, "nothing", 50, 100), [0; 0]);
        session.commit().expect("commit");
        // As read from the disk.
        let again = Ledger::open(metadata(&folder)).expect("ledger");
        assert_eq!(ids(&again.session(), KIND, 50, 6), [1, 2, 4, 5, 6, 8]);
    }

    #[test]
    fn of_many_sessions_at_once_one_finds_a_cell_fresh() {
        let folder = tempfile::tempdir().expect("folder");
        let ledger = ledger(&folder);
        let (inside, fresh) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let turns = || {
            for subjects in 0..20 {
                let mut session = ledger.session();
                assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "two sessions at once");
                if session.near(KIND, subjects, 1).next().is_none() {
                    thread::sleep(Duration::from_millis(1));
                    session.add(KIND, subjects, sketch(0), None);
                    fresh.fetch_add(1, Ordering::SeqCst);
                }
                inside.fetch_sub(1, Ordering::SeqCst);
                session.commit().expect("commit");
            }
        };
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(turns);
            }
        });
        assert_eq!(fresh.load(Ordering::SeqCst), 20);
        assert_eq!(metadata(&folder).representatives().expect("cells").len(), 20);
    }

    #[test]
    fn populations_are_those_remembered_last() {
        let folder = tempfile::tempdir().expect("folder");
        assert_eq!(metadata(&folder).population("cdc.cases").expect("population"), None);
        metadata(&folder).remember_population("cdc.cases", 3, 140).expect("remember");
        metadata(&folder).remember_population("cdc.cases", 4, 152).expect("remember");
        assert_eq!(metadata(&folder).population("cdc.cases").expect("population"), Some((4, 152)));
        assert_eq!(metadata(&folder).population("cdc.tests").expect("population"), None);
    }
}

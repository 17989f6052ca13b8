//! What protected statistics cost: the hub's, against the engine's own with one thing more, how many people stand
//! behind each group. That is the least that has to be known where small groups are withheld, and what the ratio is
//! taken against. Both sides run over the same files in as many partitions as there are cores.
//!
//! Each question is asked of a ledger in which nothing was released yet, where all its cells are new and kept on the
//! disk, and once more, where all of them are found and nothing is written. In every round the ledger is a new one;
//! opening it is not timed. Nor is the counting of a dataset's subjects, which a hub does before its first release and
//! again when there are a fifth more versions; it is told apart.
//!
//! Answers are compared as far as noise lets them: who is there, and how far numbers may be from the exact ones.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
};

use arrow::record_batch::RecordBatch;
use gridhub::{
    dataset::DatasetName,
    disclose::{Gate, Released, Settings},
    keys::Keys,
    query::{Bounds, defences::Defences},
    release::{
        ledger::Ledger,
        noise::{FLOOR, NoiseKey, SPREAD, THRESHOLD},
    },
    store::metadata::Metadata,
};
use tempfile::TempDir;

use crate::{Question, World, data, median, report, timed};

/// The exact answer that a protected one is held against.
pub struct Exact {
    /// As the engine alone is asked: the last column says how many people each group stands for.
    pub sql: String,
    /// How far each released number may be from the exact one, as a part of that. Noise is bounded, so these are no
    /// matter of chance for groups of the usual size.
    pub within: &'static [f64],
    /// Whether every group of enough people is shown. Where people are split by something sensitive, groups that are
    /// nearly all of the whole are not.
    pub complete: bool,
}

/// A gate whose ledger is in a folder of its own.
struct NewGate {
    gate: Arc<Gate>,
    _folder: TempDir,
}

/// A gate with the hub's noise and its ledger in `folder`, to which there is no end.
pub fn gate(keys: &Keys, folder: &Path) -> Arc<Gate> {
    let ledger = Ledger::open(Arc::new(Metadata::open(folder).unwrap())).unwrap();
    let settings = Settings { cells_at_least: u64::MAX, ..Settings::default() };
    Arc::new(Gate::new(NoiseKey::new(keys), ledger, settings, Defences::default()))
}

impl World {
    fn new_gate(&self) -> NewGate {
        let folder = tempfile::tempdir_in(self.folder.path()).unwrap();
        NewGate { gate: gate(&self.keys, folder.path()), _folder: folder }
    }

    /// Measures those of the questions that are protected.
    pub async fn measure_protected(&self, questions: &[Question], repeat: usize) -> Vec<report::Protected> {
        let mut measured = Vec::new();
        for question in questions {
            let Some(exact) = &question.protected else { continue };
            let (name, sql) = (&question.name, &question.governed);
            let rows = self.compare_protected(question, exact).await;
            let (mut plain, mut first, mut again) = (vec![], vec![], vec![]);
            for _ in 0..repeat {
                let new = self.new_gate();
                first.push(timed(name, self.released(&new.gate, sql)).await);
                again.push(timed(name, self.released(&new.gate, sql)).await);
                plain.push(timed(name, self.plain.ask(&exact.sql)).await);
            }
            measured.push(report::Protected {
                name: name.clone(),
                rows,
                plain: median(plain),
                first: median(first),
                again: median(again),
            });
        }
        measured
    }

    /// Asks both sides, and compares what they answer. Returns the number of rows.
    async fn compare_protected(&self, question: &Question, exact: &Exact) -> usize {
        let name = &question.name;
        let new = self.new_gate();
        let released = self.released(&new.gate, &question.governed).await;
        let released = released.unwrap_or_else(|error| panic!("{name}: {error:?}"));
        let again = self.released(&new.gate, &question.governed).await;
        let again = again.unwrap_or_else(|error| panic!("{name}: {error:?}"));
        assert!(released.batches == again.batches, "{name} is answered otherwise when asked again");
        let plain = self.plain.ask(&exact.sql).await.unwrap_or_else(|error| panic!("{name}: {error}"));
        compare(name, exact, &released, &plain);
        released.rows()
    }

    /// How long it takes to count the subjects of a dataset, in milliseconds.
    pub async fn measure_counting(&self, dataset: &str, repeat: usize) -> f64 {
        let name = DatasetName::parse(dataset).unwrap();
        let mut times = Vec::new();
        for _ in 0..repeat {
            let (engine, snapshot) = (Arc::clone(&self.engine), self.snapshot.clone());
            let dataset = Arc::clone(&self.view.dataset(&name).unwrap().dataset);
            let counting = async move { engine.count_subjects(&snapshot, &dataset).await };
            times.push(timed(&format!("{name}: its subjects"), self.engine.work(&Bounds::default(), counting)).await);
        }
        median(times)
    }
}

/// Holds an answer against the exact one: every group stands for enough people, none that does is missing, and no
/// number is further off than it may be.
pub fn compare(name: &str, exact: &Exact, released: &Released, plain: &[RecordBatch]) {
    assert_eq!(released.protection.mode, "protected", "{name}");
    let is_number: Vec<bool> = released.columns.iter().map(|column| column.exposure == "released").collect();
    let numbers: Vec<usize> = (0..is_number.len()).filter(|at| is_number[*at]).collect();
    assert_eq!(numbers.len(), exact.within.len(), "{name} has other numbers");
    let key = |row: &[String]| -> Vec<String> {
        let cells = row.iter().zip(&is_number).filter(|(_, is_number)| !**is_number);
        cells.map(|(cell, _)| cell.clone()).collect()
    };
    let groups: BTreeMap<Vec<String>, Vec<String>> =
        data::cells(plain).into_iter().map(|row| (key(&row), row)).collect();
    let mut shown = BTreeSet::new();
    for row in data::cells(&released.batches) {
        let Some(group) = groups.get(&key(&row)) else { panic!("{name} shows {row:?}, of whom there are none") };
        assert!(people(group) >= FLOOR, "{name} shows {row:?}, who are {} people", people(group));
        for (at, within) in numbers.iter().zip(exact.within) {
            // A number may be withheld where its group is not.
            if row[*at] == "NULL" {
                continue;
            }
            let (number, truth) = (number(&row[*at]), number(&group[*at]));
            let off = (number - truth).abs();
            assert!(off <= within * truth.abs(), "{name} is answered with {row:?}, and it is {group:?}");
        }
        shown.insert(key(&row));
    }
    // What noise cannot bring below the threshold.
    let enough = (THRESHOLD + SPREAD).unsigned_abs();
    let missing = groups.iter().find(|(key, group)| people(group) >= enough && !shown.contains(*key));
    assert!(!exact.complete || missing.is_none(), "{name} leaves out {missing:?}");
}

/// How many people a group of the exact answer stands for.
fn people(group: &[String]) -> u64 {
    group.last().and_then(|cell| cell.parse().ok()).expect("a number of people")
}

fn number(cell: &str) -> f64 {
    cell.parse().expect("a number")
}

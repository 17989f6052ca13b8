//! What protection costs those who ask: released counts and means against the truth, by the number of people in a
//! cell, and C10: all noise is whole numbers, and none is larger than it is said to be.

use std::{collections::BTreeMap, fmt::Write as _};

use super::{
    score::median,
    world::{BUSY, Person, QUIET, Visit, World, text_of},
};

/// Sizes of cells, from the first number on.
const SIZES: [(usize, &str); 6] =
    [(1, "1-9"), (10, "10-19"), (20, "20-49"), (50, "50-99"), (100, "100-499"), (500, "500+")];

/// What visits are grouped by.
#[derive(Clone, Copy)]
enum Key {
    District,
    Street,
    Community,
    Grid,
    Mode,
    Day,
}

/// Groupings, from coarse to fine.
const GROUPINGS: [&[Key]; 10] = [
    &[],
    &[Key::District],
    &[Key::Mode],
    &[Key::Street],
    &[Key::Community],
    &[Key::Grid],
    &[Key::Day],
    &[Key::Community, Key::Mode],
    &[Key::Grid, Key::Mode],
    &[Key::District, Key::Day],
];

impl Key {
    fn sql(self) -> &'static str {
        match self {
            Self::District => "substr(grid_code, 1, 6)",
            Self::Street => "substr(grid_code, 1, 9)",
            Self::Community => "substr(grid_code, 1, 12)",
            Self::Grid => "grid_code",
            Self::Mode => "mode",
            Self::Day => "CAST(visited_at AS DATE)",
        }
    }

    fn of(self, person: &Person, visit: &Visit) -> String {
        match self {
            Self::District => person.grid[..6].to_owned(),
            Self::Street => person.grid[..9].to_owned(),
            Self::Community => person.community().to_owned(),
            Self::Grid => person.grid.clone(),
            Self::Mode => visit.mode.to_owned(),
            Self::Day => visit.day.to_string(),
        }
    }
}

/// What is known of a cell without a hub.
#[derive(Default, Clone)]
struct Truth {
    people: usize,
    rows: usize,
    /// Tenths of a degree.
    sum: i64,
}

/// A cell in truth and, where it was told, its number of people and mean.
struct Cell {
    truth: Truth,
    told: Option<(f64, Option<f64>)>,
}

/// The cells of a grouping of the visits of both districts.
async fn cells(world: &World, trial: u64, grouping: &[Key]) -> Vec<Cell> {
    let mut truths: BTreeMap<Vec<String>, Truth> = BTreeMap::new();
    for person in world.city.people.iter().filter(|person| person.grid.starts_with(BUSY) || person.is_alone()) {
        let mut counted = Vec::new();
        for visit in &person.visits {
            let key: Vec<String> = grouping.iter().map(|key| key.of(person, visit)).collect();
            let truth = truths.entry(key.clone()).or_default();
            truth.people += usize::from(!counted.contains(&key));
            truth.rows += 1;
            truth.sum += visit.tenths;
            counted.push(key);
        }
    }
    let keys: String = grouping.iter().map(|key| format!("{}, ", key.sql())).collect();
    let places: Vec<String> = (1..=grouping.len()).map(|place| place.to_string()).collect();
    let group = if places.is_empty() { String::new() } else { format!(" GROUP BY {}", places.join(", ")) };
    let mut attacker = world.start_over(trial);
    let told = attacker
        .ask(&format!(
            "SELECT {keys}count(DISTINCT id_no), avg(temperature) FROM visits WHERE substr(grid_code, 1, 6) IN ('{BUSY}', \
             '{QUIET}'){group}"
        ))
        .await;
    assert!(told.is_answered(), "{}", told.text);
    let mut released: BTreeMap<Vec<String>, (f64, Option<f64>)> = BTreeMap::new();
    for row in &told.rows {
        let (keys, numbers) = row.split_at(grouping.len());
        if let Some(people) = numbers[0].as_f64() {
            released.insert(keys.iter().map(text_of).collect(), (people, numbers[1].as_f64()));
        }
    }
    let unknown = released.keys().filter(|key| !truths.contains_key(*key)).count();
    assert_eq!(unknown, 0, "cells are told that are not there: {released:?}");
    truths.into_iter().map(|(key, truth)| Cell { told: released.get(&key).copied(), truth }).collect()
}

fn mean(truth: &Truth) -> f64 {
    truth.sum as f64 / truth.rows as f64 / 10.0
}

/// The errors by size of cell, as a table.
pub async fn measured(world: &World, trials: u64) -> String {
    let mut by_size: BTreeMap<usize, Vec<Cell>> = BTreeMap::new();
    for trial in 0..trials {
        for grouping in GROUPINGS {
            for cell in cells(world, trial, grouping).await {
                let size = SIZES.iter().rposition(|(from, _)| cell.truth.people >= *from).unwrap_or_default();
                by_size.entry(size).or_default().push(cell);
            }
        }
    }
    let mut text = format!(
        "{:>8} {:>6} {:>6}   {:>18}   {:>18}\n",
        "people", "cells", "told", "count off by (rel)", "mean off by (°C)"
    );
    for (size, cells) in by_size {
        let told: Vec<_> = cells.iter().filter_map(|cell| Some((&cell.truth, cell.told?))).collect();
        let relative: Vec<f64> = told
            .iter()
            .map(|(truth, (people, _))| (people - truth.people as f64).abs() / truth.people as f64)
            .collect();
        let means: Vec<f64> =
            told.iter().filter_map(|(truth, (_, told))| Some(((*told)? - mean(truth)).abs())).collect();
        let average = |numbers: &[f64]| numbers.iter().sum::<f64>() / numbers.len().max(1) as f64;
        let _ = writeln!(
            text,
            "{:>8} {:>6} {:>5.0}%   {:>7.2}% ({:>6.2}%)   {:>8.3} ({:>6.3})",
            SIZES[size].1,
            cells.len(),
            100.0 * told.len() as f64 / cells.len() as f64,
            100.0 * average(&relative),
            100.0 * median(&relative),
            average(&means),
            median(&means),
        );
    }
    text + "mean and, in brackets, median of the size of the error\n"
}

/// C10: every count is a whole number within four of the truth, no cell of fewer than ten is told and every one of
/// eighteen is; means of a hundred people are right to a fifth of a degree.
#[tokio::test(flavor = "multi_thread")]
async fn released_numbers_are_as_good_as_they_are_said_to_be() {
    let world = World::load().await;
    let (mut told, mut off) = (0, BTreeMap::<i64, u32>::new());
    for grouping in GROUPINGS {
        for cell in cells(&world, 0, grouping).await {
            let there = cell.truth.people;
            match cell.told {
                None => assert!(there < 18, "{there} people are withheld"),
                Some((people, of_them)) => {
                    assert!(there >= 10, "{there} people are told");
                    assert_eq!(people.fract(), 0.0);
                    assert!((people - there as f64).abs() <= 4.0, "{people} are told of {there}");
                    *off.entry(people as i64 - there as i64).or_default() += 1;
                    let near = of_them.is_some_and(|told| (told - mean(&cell.truth)).abs() < 0.2);
                    assert!(near || there < 100, "{of_them:?} is told of {}", mean(&cell.truth));
                    told += 1;
                }
            }
        }
    }
    assert!(told > 60, "only {told} cells are told");
    assert!(off.len() >= 5, "noise takes only the values {off:?}");
}

//! Number 4 and C8: as many boxes as the ledger allows, and the best linear guess at everybody's secret.
//!
//! Each box is a list of years of birth and a list of communities (or of days); the attacker knows who is in it and
//! is told, with noise, how many of them are bad cases. Decoded is by the linear estimator of least mean square error,
//! for secrets of prior ½ and noise of variance 2. Random subsets tell much when there are about as many of them as
//! people (Dinur and Nissim 2003), which is what the ledger is to prevent.

use std::fmt::Write as _;

use rand::{Rng, seq::SliceRandom};

use super::{
    score::{Bar, Class, Score},
    world::{ALONE, Attacker, IS_BAD, Person, QUIET, World, day, few_trials},
};

/// Boxes asked for in one question.
const TOGETHER: usize = 20;

/// More boxes than the ledger of any field of this city allows.
const BOXES: usize = 300;

/// Boxes that are spent on one person.
const ON_ONE: usize = 100;

/// The variance of the noise on a count of people.
const VARIANCE: f64 = 2.0;

/// Twice the accuracy over guessing that may be had at full spend.
const BAR: f64 = 0.20;

const TARGET: &str = "the ledger counts numbers by field and not by whom they tell of, so all of them may be spent on one \
                      person who is alone on a day";

/// People who are in a box, by their place among all, and the condition of being in it.
struct Area {
    people: Vec<bool>,
    condition: String,
}

pub async fn games(world: &World, trials: u64) -> Vec<Score> {
    let name = |cells: &str| format!("reconstruction of everybody from random boxes, {cells}");
    let class = Class::Inference;
    let mut sparing = Score::new("4", &name("N/20 cells"), class, Bar::AtMost(BAR));
    let mut full = Score::new("4", &name("all cells"), class, Bar::AtMost(BAR));
    let mut ledger = Score::new("3", "the ledger ends, and repeats stay free", Class::Inference, Bar::Equal);
    let people = cases(world);
    let base = base(&people);
    (sparing, full) = (sparing.based_on(base), full.based_on(base));
    for trial in 0..trials {
        let mut attacker = world.start_over(trial);
        let areas: Vec<Area> = (0..BOXES).map(|_| random_box(&mut attacker, &people)).collect();
        let told = spend(&mut attacker, &areas).await;
        ledger.expect(told.is_spent, || format!("{} cells were told, and the ledger has no end", told.numbers.len()));
        ledger.expect(told.repeats_are_free, || "what was told before is refused once the ledger is spent".into());
        for (score, cells) in [(&mut sparing, people.len() / 20), (&mut full, told.numbers.len())] {
            let cells = cells.min(told.numbers.len());
            let secrets = decode(&areas, &told.numbers[..cells]);
            for (person, secret) in people.iter().zip(secrets) {
                score.add_guess((secret > 0.5) == person.is_bad());
            }
        }
        for score in [&mut sparing, &mut full, &mut ledger] {
            score.add_queries(attacker.asked, attacker.refused);
        }
    }
    vec![ledger, sparing, full, one_person(world, trials).await]
}

/// How accuracy grows with what is spent, in lines.
pub async fn curve(world: &World) -> String {
    let people = cases(world);
    let mut text = format!("reconstruction, {} people: cells spent, accuracy over guessing\n", people.len());
    let mut lines: Vec<(usize, f64, u64)> = Vec::new();
    for trial in 0..few_trials().min(20) {
        let mut attacker = world.start_over(trial);
        let areas: Vec<Area> = (0..BOXES).map(|_| random_box(&mut attacker, &people)).collect();
        let told = spend(&mut attacker, &areas).await;
        let all = told.numbers.len();
        for (line, cells) in [people.len() / 20, 50, 100, 150, all].into_iter().enumerate() {
            let cells = cells.min(all);
            let secrets = decode(&areas, &told.numbers[..cells]);
            let right =
                people.iter().zip(secrets).filter(|(person, secret)| (*secret > 0.5) == person.is_bad()).count();
            let gain = right as f64 / people.len() as f64 - base(&people);
            match lines.get_mut(line) {
                Some((_, sum, count)) => (*sum, *count) = (*sum + gain, *count + 1),
                None => lines.push((cells, gain, 1)),
            }
        }
    }
    for (cells, sum, count) in lines {
        let share = cells as f64 / people.len() as f64;
        let _ = writeln!(text, "{cells:>6} cells ({share:.2} a person) {:+.3}", sum / count as f64);
    }
    text
}

/// Least squares on one person: random lists of days of the quiet district, so that its own day can be solved for.
async fn one_person(world: &World, trials: u64) -> Score {
    let name = "least squares on one person, victim alone, 100 cells";
    let mut score = Score::new("4", name, Class::Inference, Bar::Open(0.10, TARGET));
    let people: Vec<&Person> = world.city.people.iter().filter(|person| person.is_alone()).collect();
    for trial in 0..trials {
        let mut attacker = world.start_over(trial);
        let victim = attacker.victim(Person::is_alone, Person::is_bad);
        let areas: Vec<Area> = (0..ON_ONE).map(|_| random_days(&mut attacker, &people)).collect();
        let told = spend(&mut attacker, &areas).await;
        let secrets = decode(&areas, &told.numbers);
        let place = people.iter().position(|person| person.number == victim.number).unwrap();
        score.add((secrets[place] > 0.5) == victim.is_bad(), &attacker);
    }
    score
}

fn cases(world: &World) -> Vec<&Person> {
    world.city.people.iter().filter(|person| person.is_case()).collect()
}

/// The accuracy of saying of everybody what most are.
fn base(people: &[&Person]) -> f64 {
    let bad = people.iter().filter(|person| person.is_bad()).count() as f64 / people.len() as f64;
    bad.max(1.0 - bad)
}

fn random_box(attacker: &mut Attacker<'_>, people: &[&Person]) -> Area {
    let random = &mut attacker.random;
    let mut places: Vec<&str> = people.iter().map(|person| person.community()).collect();
    places.sort_unstable();
    places.dedup();
    places.shuffle(random);
    places.truncate(places.len() * 3 / 4);
    let years: Vec<String> =
        (1940..2000).filter(|_| random.random_bool(0.65)).map(|year| format!("DATE '{year}-01-01'")).collect();
    let condition = format!(
        "birth_date IN ({}) AND substr(grid_code, 1, 12) IN ({})",
        years.join(", "),
        places.iter().map(|place| format!("'{place}'")).collect::<Vec<_>>().join(", ")
    );
    let is_in = |person: &&Person| places.contains(&person.community()) && years.contains(&person.year());
    Area { people: people.iter().map(is_in).collect(), condition }
}

fn random_days(attacker: &mut Attacker<'_>, people: &[&Person]) -> Area {
    let chosen: Vec<_> = (0..ALONE).filter(|_| attacker.random.random_bool(0.6)).map(day).collect();
    let list: Vec<_> = chosen.iter().map(|day| format!("DATE '{day}'")).collect();
    let condition = format!("substr(grid_code, 1, 6) = '{QUIET}' AND confirmed_date IN ({})", list.join(", "));
    Area { people: people.iter().map(|person| chosen.contains(&person.confirmed())).collect(), condition }
}

/// What the ledger allowed to be told of some boxes, in their order.
struct Spent {
    numbers: Vec<Option<f64>>,
    is_spent: bool,
    repeats_are_free: bool,
}

/// Asks for all boxes until the ledger ends: many together, each under FILTER, which is charged least; one by one where
/// that is refused.
async fn spend(attacker: &mut Attacker<'_>, areas: &[Area]) -> Spent {
    let mut spent = Spent { numbers: Vec::new(), is_spent: false, repeats_are_free: true };
    let mut together = TOGETHER;
    let mut first = None;
    while spent.numbers.len() < areas.len() {
        let from = spent.numbers.len();
        let some = &areas[from..areas.len().min(from + together)];
        let sql = question(some);
        let told = attacker.ask(&sql).await;
        match told.is_answered() {
            true => {
                spent.numbers.extend(told.numbers());
                first.get_or_insert((sql, told.rows));
            }
            false if together > 1 => together = if told.is_spent() { together / 2 } else { 1 },
            false => {
                spent.is_spent = told.is_spent();
                break;
            }
        }
    }
    if let (true, Some((sql, rows))) = (spent.is_spent, first) {
        spent.repeats_are_free = attacker.ask(&sql).await.rows == rows;
    }
    spent
}

fn question(areas: &[Area]) -> String {
    if let [only] = areas {
        return format!("SELECT count(DISTINCT id_no) FROM cases WHERE {IS_BAD} AND {}", only.condition);
    }
    let calls = areas.iter().enumerate().map(|(at, Area { condition, .. })| {
        format!("count(DISTINCT id_no) FILTER (WHERE {IS_BAD} AND {condition}) AS n{at}")
    });
    format!("SELECT {} FROM cases", calls.collect::<Vec<_>>().join(", "))
}

/// The best linear estimate of everybody's secret from the numbers of the first areas.
fn decode(areas: &[Area], numbers: &[Option<f64>]) -> Vec<f64> {
    const PRIOR: f64 = 0.5;
    const SPREAD: f64 = PRIOR * (1.0 - PRIOR);
    let people = areas.first().map_or(0, |area| area.people.len());
    let told = areas.iter().zip(numbers).filter_map(|(area, told)| Some((area, (*told)?)));
    let known: Vec<(&Area, Vec<u64>, f64)> = told.map(|(area, told)| (area, words(&area.people), told)).collect();
    let mut matrix: Vec<Vec<f64>> = Vec::new();
    for (row, (_, one, told)) in known.iter().enumerate() {
        let mut line: Vec<f64> = known.iter().map(|(_, other, _)| SPREAD * common(one, other)).collect();
        line[row] += VARIANCE;
        line.push(told - PRIOR * common(one, one));
        matrix.push(line);
    }
    let weights = solve(matrix);
    let estimate = |person: usize| {
        let with_it = known.iter().zip(&weights).filter(|((area, ..), _)| area.people[person]);
        PRIOR + SPREAD * with_it.map(|(_, weight)| weight).sum::<f64>()
    };
    (0..people).map(estimate).collect()
}

/// Who is in an area, 64 people a word.
fn words(people: &[bool]) -> Vec<u64> {
    people.chunks(64).map(|some| some.iter().fold(0, |word, is_in| word << 1 | u64::from(*is_in))).collect()
}

/// How many people are in both.
fn common(one: &[u64], other: &[u64]) -> f64 {
    f64::from(one.iter().zip(other).map(|(one, other)| (one & other).count_ones()).sum::<u32>())
}

/// Solves a positive definite system, its right side in the last column, by elimination.
fn solve(mut matrix: Vec<Vec<f64>>) -> Vec<f64> {
    let size = matrix.len();
    for at in 0..size {
        let pivot = matrix[at].clone();
        for line in &mut matrix[at + 1..] {
            let factor = line[at] / pivot[at];
            for (cell, above) in line.iter_mut().zip(&pivot).skip(at) {
                *cell -= factor * above;
            }
        }
    }
    let mut solution = vec![0.0; size];
    for at in (0..size).rev() {
        let known: f64 = (at + 1..size).map(|right| matrix[at][right] * solution[right]).sum();
        solution[at] = (matrix[at][size] - known) / matrix[at][at];
    }
    solution
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_system_is_solved() {
        let solution = solve(vec![vec![4.0, 2.0, 1.0, 11.0], vec![2.0, 5.0, 3.0, 21.0], vec![1.0, 3.0, 6.0, 25.0]]);
        for (found, expected) in solution.iter().zip([1.0, 2.0, 3.0]) {
            assert!((found - expected).abs() < 1e-9, "{solution:?}");
        }
    }

    #[test]
    fn who_is_counted_alone_often_enough_is_known() {
        let area = |people: [bool; 2]| Area { people: people.to_vec(), condition: String::new() };
        let areas: Vec<Area> =
            (0..200).map(|at| area(if at % 2 == 0 { [true, false] } else { [true, true] })).collect();
        let numbers: Vec<_> = (0..200).map(|at| Some(f64::from(at % 2))).collect();
        let secrets = decode(&areas, &numbers);
        assert!(secrets[0] < 0.1 && secrets[1] > 0.9, "{secrets:?}");
        assert_eq!(decode(&areas, &[None]), [0.5, 0.5]);
    }
}

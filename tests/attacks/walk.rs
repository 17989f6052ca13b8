//! Number 33: the walk along the edge of an answer.
//!
//! A set that differs from an earlier one in fewer than 10 to 15 people gets that one's answer. So leave out known
//! people one after the other: the answer stays as it was until so many of them who have the sealed value are gone,
//! and changes with the one who makes them too many. Stop just before, and leave out the victim as well: the answer
//! changes if and only if the victim has the value. What this takes is a way to write sets that differ in one known
//! person at a time, which is a list of days on each of which one person was confirmed, or a CASE that gives some
//! boxes of community, year of birth and sex another value than the rest.

use std::collections::BTreeMap;

use super::{
    score::{Bar, Class, Score},
    world::{Attacker, BUSY, HAMLET, IS_BAD, Person, QUIET, World, days},
};

/// How many people are left out at most: about half of them have the sealed value, and the edge is at 14.
const STEPS: usize = 40;

/// Why the bars are not held.
const WHY: &str = "an answer ends at a sharp distance from the one it repeats, and lists of days and CASE leave out single \
                   people: who stands at the edge is told with certainty";

pub async fn games(world: &World, trials: u64) -> Vec<Score> {
    vec![alone(world, trials).await, anybody(world, trials).await]
}

/// For people of the quiet district, by lists of days.
async fn alone(world: &World, trials: u64) -> Score {
    let mut score =
        Score::new("33", "edge walk by lists of days, victim alone", Class::Inference, Bar::Open(0.10, WHY));
    for trial in 0..trials {
        let mut attacker = world.start_over(trial);
        let victim = attacker.victim(Person::is_alone, Person::is_bad);
        let others = attacker.others(Person::is_alone, victim);
        let set = |left_out: &[&Person]| {
            let people = world.city.people.iter().filter(|person| person.is_alone());
            let kept = people.filter(|person| left_out.iter().all(|out| out.number != person.number));
            format!(
                "SELECT count(DISTINCT id_no) FROM cases WHERE substr(grid_code, 1, 6) = '{QUIET}' AND {IS_BAD} AND \
                 confirmed_date IN ({})",
                days(kept)
            )
        };
        let guess = walk(&mut attacker, &others, victim, &set).await;
        let guess = guess.unwrap_or_else(|| attacker.coin());
        score.add(guess == victim.is_bad(), &attacker);
    }
    score
}

/// For anybody of the busy district who is alone in a box of community, year of birth and sex; for others the
/// attacker guesses.
async fn anybody(world: &World, trials: u64) -> Score {
    let name = "edge walk by CASE over boxes, victim anybody";
    let mut score = Score::new("33", name, Class::Inference, Bar::Open(0.10, WHY));
    let mut boxes: BTreeMap<String, u64> = BTreeMap::new();
    for person in world.city.people.iter().filter(|person| of_district(person)) {
        *boxes.entry(of_box(person)).or_default() += 1;
    }
    let in_a_box = |person: &Person| boxes[&of_box(person)] == 1;
    for trial in 0..trials {
        let mut attacker = world.start_over(trial);
        let victim = attacker.victim(Person::is_busy_case, Person::is_bad);
        let others = attacker.others(|person| of_district(person) && in_a_box(person), victim);
        let set = |left_out: &[&Person]| {
            let all = format!(
                "SELECT count(DISTINCT id_no) FROM cases WHERE substr(grid_code, 1, 6) = '{BUSY}' AND {IS_BAD}"
            );
            let boxes: Vec<_> = left_out.iter().map(|person| format!("WHEN {} THEN 0", of_box(person))).collect();
            match boxes.is_empty() {
                true => all,
                false => format!("{all} AND CASE {} ELSE 1 END = 1", boxes.join(" ")),
            }
        };
        let guess = match in_a_box(victim) {
            true => walk(&mut attacker, &others, victim, &set).await,
            false => None,
        };
        let guess = guess.unwrap_or_else(|| attacker.coin());
        score.add(guess == victim.is_bad(), &attacker);
    }
    score
}

/// Cases of the busy district, the hamlet's among them.
fn of_district(person: &Person) -> bool {
    person.is_busy_case() || (person.grid.starts_with(HAMLET) && person.is_case())
}

/// The condition of being in a person's box.
fn of_box(person: &Person) -> String {
    let (community, year, sex) = (person.community(), person.year(), person.sex);
    format!("substr(grid_code, 1, 12) = '{community}' AND birth_date = {year} AND sex = '{sex}'")
}

/// Walks to the edge and asks there; nothing where the edge was not found. How many people may be left out before the
/// answer changes is found by halving.
async fn walk(
    attacker: &mut Attacker<'_>,
    others: &[&Person],
    victim: &Person,
    set: &impl Fn(&[&Person]) -> String,
) -> Option<bool> {
    let whole = attacker.number(&set(&[])).await?;
    let others = &others[..STEPS.min(others.len())];
    let (mut same, mut other) = (0, others.len());
    if attacker.number(&set(others)).await == Some(whole) {
        return None;
    }
    while other - same > 1 {
        let middle = usize::midpoint(same, other);
        match attacker.number(&set(&others[..middle])).await == Some(whole) {
            true => same = middle,
            false => other = middle,
        }
    }
    let at_the_edge: Vec<&Person> = others[..same].iter().copied().chain([victim]).collect();
    Some(attacker.number(&set(&at_the_edge)).await != Some(whole))
}

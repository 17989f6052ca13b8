//! Each defence of the disclosure gate is needed: an attack without chance fails while it stands and succeeds once it
//! is taken down. (Those of the access gate have their witnesses among the ghosts.)
//!
//! A defence without a witness does not compile. [`Defence::Recheck`] looks at plans that the gate itself rewrote, and
//! no SQL leads to one that it finds fault with: its witness hands it a plan, and stands beside it in
//! `src/disclose/recheck.rs`.

use std::{collections::BTreeMap, ops::Range};

use gridhub::{
    demo::city::with_check_digit,
    query::defences::{Defence, Defences},
};

use super::world::{City, HAS_FEVER, IS_BAD, ODD, Person, QUIET, TEN, Told, UNIFORM, World, days, policies};
use crate::support::{CSV, fixture};

/// What shows that a defence is gone.
#[derive(Debug, Clone, Copy)]
enum Witness {
    /// A group of ten people is told.
    SmallGroup,
    /// Counts are the truth.
    TrueCounts,
    /// Two sets that differ in one person are told apart.
    OneMissing,
    /// More is told than the ledger allows.
    Endless,
    /// A community is said to be nothing but mild cases.
    Uniform,
    /// People are picked by NOT.
    Negation,
    /// A few people's rows show in the next answer.
    Fresh,
}

/// The witness of a defence; none where it stands elsewhere.
fn witness(defence: Defence) -> Option<Witness> {
    Some(match defence {
        Defence::Threshold => Witness::SmallGroup,
        Defence::Noise => Witness::TrueCounts,
        Defence::Snap => Witness::OneMissing,
        Defence::Ledger => Witness::Endless,
        Defence::Homogeneity => Witness::Uniform,
        Defence::Grammar => Witness::Negation,
        Defence::Epochs => Witness::Fresh,
        // Beside it.
        Defence::Recheck => return None,
        // Among the ghosts.
        Defence::HiddenFields
        | Defence::RowScope
        | Defence::Barrier
        | Defence::Verification
        | Defence::Statistics
        | Defence::FallibleWaits
        | Defence::MaskedPredicates
        | Defence::TotalOrder
        | Defence::AnswerOrder
        | Defence::GuardedLogic
        | Defence::ErrorWords
        | Defence::FunctionList
        | Defence::Firewall => return None,
    })
}

/// The defences that are gone before one is removed, as they would hide that it is.
fn before(gone: Defence) -> &'static [Defence] {
    match gone {
        // What is near is answered as before, whichever version it is read from.
        Defence::Epochs => &[Defence::Snap],
        _ => &[],
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn removing_a_defence_makes_its_attack_succeed() {
    let witnesses = Defence::ALL.into_iter().filter_map(|defence| Some((defence, witness(defence)?)));
    for (defence, witness) in witnesses {
        let gone = before(defence);
        let standing = witness.succeeds(gone).await;
        assert!(!standing, "{witness:?} succeeds although {defence:?} stands");
        let down = [gone, &[defence]].concat();
        assert!(witness.succeeds(&down).await, "{witness:?} does not succeed although {defence:?} is down");
    }
}

impl Witness {
    /// Whether the attack succeeds on a hub without these defences.
    async fn succeeds(self, gone: &[Defence]) -> bool {
        let folder = tempfile::tempdir().unwrap();
        let world = World::roomy(City::small(), |opening| {
            opening.defences = Defences::without(gone);
            if matches!(self, Self::Endless) {
                let settings = r#"{"cells_per_subject": 0.0, "cells_at_least": 20}"#;
                opening.policies = policies(folder.path(), "disclosure.json", settings);
            }
        })
        .await;
        match self {
            Self::SmallGroup => small_group(&world).await,
            Self::TrueCounts => true_counts(&world).await,
            Self::OneMissing => one_missing(&world).await,
            Self::Endless => endless(&world).await,
            Self::Uniform => uniform(&world).await,
            Self::Negation => negation(&world).await,
            Self::Fresh => fresh(&world).await,
        }
    }
}

async fn answered(world: &World, sql: &str) -> Told {
    let told = world.ask(sql).await;
    assert!(told.is_answered(), "{sql}: {}", told.text);
    told
}

/// People by grid, in a question that touches something sealed.
fn by_grid() -> String {
    format!(
        "SELECT grid_code, count(DISTINCT id_no), count(temperature) FROM visits WHERE substr(grid_code, 1, 6) = '{ODD}' \
         GROUP BY 1"
    )
}

async fn small_group(world: &World) -> bool {
    answered(world, &by_grid()).await.groups(1).iter().any(|(grid, people)| grid == TEN && people.is_some())
}

async fn true_counts(world: &World) -> bool {
    let by_month = "SELECT date_trunc('month', confirmed_date), sex, count(DISTINCT id_no), count(severity) FROM cases \
                    GROUP BY 1, 2";
    let mut truths: BTreeMap<(String, String), usize> = BTreeMap::new();
    for person in world.city.people.iter().filter(|person| person.is_case()) {
        let month = person.confirmed().format("%Y-%m").to_string();
        *truths.entry((month, person.sex.to_owned())).or_default() += 1;
    }
    let told = answered(world, by_month).await.groups(2);
    assert!(told.len() >= 4, "{told:?}");
    told.iter().all(|(key, people)| {
        let (month, sex) = (key[..7].to_owned(), key.rsplit(' ').next().unwrap().to_owned());
        *people == Some(truths[&(month, sex)] as f64)
    })
}

/// All bad cases of the quiet district, and all but one, for eight who are.
async fn one_missing(world: &World) -> bool {
    let bad = format!("SELECT count(DISTINCT id_no) FROM cases WHERE substr(grid_code, 1, 6) = '{QUIET}' AND {IS_BAD}");
    let all = answered(world, &bad).await.number();
    assert!(all.is_some());
    let people: Vec<&Person> = world.city.people.iter().filter(|person| person.is_alone()).collect();
    let mut differ = false;
    for victim in people.iter().filter(|person| person.is_bad()).take(8) {
        let others = people.iter().copied().filter(|person| person.number != victim.number);
        let but_one = answered(world, &format!("{bad} AND confirmed_date IN ({})", days(others))).await.number();
        differ |= all != but_one;
    }
    differ
}

/// Forty questions, of which the settings allow ten.
async fn endless(world: &World) -> bool {
    for day in 20..60 {
        let sql = format!(
            "SELECT count(DISTINCT id_no) FROM cases WHERE {IS_BAD} AND confirmed_date >= DATE '{}'",
            super::world::day(day)
        );
        let told = world.ask(&sql).await;
        if told.is_spent() {
            return false;
        }
        assert!(told.is_answered(), "{sql}: {}", told.text);
    }
    true
}

async fn uniform(world: &World) -> bool {
    let mild = format!(
        "SELECT count(DISTINCT id_no) FROM cases WHERE substr(grid_code, 1, 12) = '{UNIFORM}' AND severity = '轻型'"
    );
    answered(world, &mild).await.number().is_some()
}

async fn negation(world: &World) -> bool {
    let told = world.ask(&format!("SELECT count(DISTINCT id_no) FROM cases WHERE {IS_BAD} AND sex <> '女'")).await;
    assert!(told.is_answered() || told.rule == "protected-filter", "{}", told.text);
    told.is_answered()
}

/// Nine people more, three in each of three communities: too few to be published.
async fn fresh(world: &World) -> bool {
    let questions = [
        "SELECT substr(grid_code, 1, 12), count(DISTINCT id_no), count(temperature) FROM visits GROUP BY 1".to_owned(),
        format!("SELECT count(DISTINCT id_no) FROM visits WHERE {HAS_FEVER}"),
    ];
    let mut before = Vec::new();
    for sql in &questions {
        before.push(answered(world, sql).await.rows);
    }
    for (at, place) in [format!("{QUIET}001001001"), format!("{UNIFORM}001"), TEN.to_owned()].iter().enumerate() {
        push(world, place, 3 * at..3 * at + 3).await;
    }
    let mut after = Vec::new();
    for sql in &questions {
        after.push(answered(world, sql).await.rows);
    }
    before != after
}

/// Pushes visits with fever of new people.
async fn push(world: &World, grid: &str, numbers: Range<usize>) {
    let header = String::from_utf8(fixture("community.visits.csv")).unwrap();
    let mut file = format!("{}\n", header.lines().next().unwrap());
    for number in numbers {
        let id = with_check_digit(&format!("42019919700101{number:03}"));
        file += &format!("W{number},{grid},,{id},,,,2026-01-06 12:00:00,入户,38.5,,,\n");
    }
    let reply = world.hub.push("community-uploader", "community.visits", CSV, file.into_bytes()).await;
    assert_eq!(reply.status, 201, "{}", reply.text());
}

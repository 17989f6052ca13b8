//! The current state of a register that two agencies keep, at random, against a plain model of it.

use std::{cmp::Reverse, fmt::Write as _};

use gridhub::{demo::city::with_check_digit, hub::Opening};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};

use crate::support::{CSV, TestClock, TestHub, changed, fixture};

const RESIDENTS: &str = "community.residents";
const GRIDS: [&str; 3] = ["420191001001001", "420191001001002", "420191001002001"];
/// The community of the first two grids, which the grid worker of the policies looks after.
const HOME: &str = "420191001001";
/// Who pushes, by their agencies' names in order.
const SENDERS: [&str; 2] = ["community-uploader", "hospital-uploader"];

/// Lets hospitals push to the register of residents too.
pub fn two_sources(opening: &mut Opening) {
    let folder = opening.data.parent().unwrap().to_owned();
    opening.policies = changed(&folder, "policies", "community.cedar", |mut text| {
        for action in ["batch:push", "rows:write"] {
            let _ = writeln!(
                text,
                "@id(\"hospital-residents-{action}\")\npermit (\n  principal in Role::\"uploader\",\n  action == \
                 Action::\"{action}\",\n  resource in Dataset::\"{RESIDENTS}\"\n)\nwhen {{ principal in \
                 Agency::\"hospital\" }};"
            );
        }
        text
    });
}

/// A hub to which both push, and which knows the divisions.
pub async fn hub_of_two_sources() -> TestHub {
    let hub = TestHub::with(TestClock::at("2026-01-07T01:00:00Z"), two_sources).await;
    let reply = hub.push("platform-uploader", "platform.divisions", CSV, fixture("platform.divisions.csv")).await;
    assert_eq!(reply.status, 201, "{}", reply.text());
    hub
}

/// A line of the register: `mark` is what the caller knows it by.
pub fn resident(id_no: &str, grid: &str, operation: &str, updated_at: &str, mark: &str) -> String {
    format!("H1,{grid},{id_no},,男,1950-01-01,,,户籍,{mark},{operation},{updated_at}")
}

/// A file of the register.
pub fn register(lines: &[String]) -> Vec<u8> {
    let text = String::from_utf8(fixture("community.residents.csv")).unwrap();
    let header = text.lines().next().unwrap();
    format!("{header}\n{}\n", lines.join("\n")).into_bytes()
}

/// What a source told in one of its batches.
#[derive(Debug, Clone)]
struct Told {
    source: usize,
    batch: usize,
    person: Option<usize>,
    grid: usize,
    operation: &'static str,
    minute: usize,
    mark: String,
}

impl Told {
    fn line(&self) -> String {
        let id_no = self.person.map(id_of).unwrap_or_default();
        let time = format!("2026-01-05 08:{:02}:00", self.minute);
        resident(&id_no, GRIDS[self.grid], self.operation, &time, &self.mark)
    }

    /// Whether it is later word of the same source on the same person.
    fn corrects(&self, other: &Self) -> bool {
        self.is_of(other) && self.source == other.source && (self.minute, self.batch) > (other.minute, other.batch)
    }

    fn is_of(&self, other: &Self) -> bool {
        self.person.is_some() && self.person == other.person
    }
}

fn id_of(person: usize) -> String {
    with_check_digit(&format!("42019119500101{person:03}"))
}

/// What those see of the register whom the rows of `admitted` are open to.
fn current(told: &[Told], admitted: impl Fn(&Told) -> bool) -> Vec<&Told> {
    let left: Vec<_> = told.iter().filter(|row| row.operation != "D").collect();
    let newest = left.iter().filter(|row| !left.iter().any(|other| other.corrects(row)));
    let there = newest.filter(|row| !told.iter().any(|other| other.corrects(row) && other.grid == row.grid));
    let seen: Vec<_> = there.copied().filter(|row| admitted(row)).collect();
    let rank = |row: &Told| (row.minute, Reverse(row.source));
    let mut rows = seen.clone();
    rows.retain(|row| !seen.iter().any(|other| other.is_of(row) && rank(other) > rank(row)));
    rows
}

fn marks(rows: &[&Told]) -> String {
    let mut marks: Vec<_> = rows.iter().map(|row| format!("[\"{}\"]", row.mark)).collect();
    marks.sort();
    marks.join("\n")
}

/// Each person is a small world of its own, and one hub holds them all.
fn invent(people: usize, random: &mut StdRng) -> Vec<Told> {
    const BATCHES: usize = 8;
    let sources: Vec<usize> = (0..BATCHES).map(|_| random.random_range(0..SENDERS.len())).collect();
    let mut told: Vec<Told> = Vec::new();
    for person in 0..people {
        let anybody = random.random_bool(0.9).then_some(person);
        for _ in 0..random.random_range(0..7) {
            let batch = random.random_range(0..BATCHES);
            let row = Told {
                source: sources[batch],
                batch,
                person: anybody,
                grid: random.random_range(0..GRIDS.len()),
                operation: ["S", "I", "U", "D", "D"].choose(random).unwrap(),
                minute: random.random_range(0..5),
                mark: format!("r{:04}", told.len()),
            };
            // Of two that one batch holds of one moment, the contract does not say which counts.
            let twin = |other: &Told| other.is_of(&row) && (other.batch, other.minute) == (row.batch, row.minute);
            if !told.iter().any(twin) {
                told.push(row);
            }
        }
    }
    // Both sources speak, whatever chance said.
    assert!(SENDERS.iter().enumerate().all(|(source, _)| told.iter().any(|row| row.source == source)));
    told
}

#[tokio::test(flavor = "multi_thread")]
async fn the_current_state_is_that_of_the_model() {
    let hub = hub_of_two_sources().await;
    let told = invent(250, &mut StdRng::seed_from_u64(6));
    for batch in 0..8 {
        let rows: Vec<_> = told.iter().filter(|row| row.batch == batch).collect();
        let Some(first) = rows.first() else { continue };
        let lines: Vec<_> = rows.iter().map(|row| row.line()).collect();
        let reply = hub.push(SENDERS[first.source], RESIDENTS, CSV, register(&lines)).await;
        assert_eq!(reply.json()["rows_accepted"], rows.len(), "{}", reply.text());
    }
    let all = current(&told, |_| true);
    let anyone = |sql: String| {
        let hub = &hub;
        async move { hub.ask("health-analyst", "epidemiology", &sql).await.rows() }
    };
    assert_eq!(anyone("SELECT special_group FROM residents ORDER BY 1".into()).await, marks(&all));

    // The worlds are such that each half of the rule matters.
    let elsewhere = all.iter().filter(|row| told.iter().any(|other| other.corrects(row) && other.operation == "D"));
    assert!(elsewhere.count() > 10, "no household moved");
    let apart: usize = (0..SENDERS.len()).map(|source| current(&told, |row| row.source == source).len()).sum();
    assert!(apart > all.len() + 10, "no person is in both registers");
    assert!(all.iter().any(|row| row.person.is_none()));

    // A place is asked of the current rows, and a person may be looked for before they are found.
    let there: Vec<_> = all.iter().copied().filter(|row| row.grid == 1).collect();
    let sql = format!("SELECT special_group FROM residents WHERE grid_code = '{}' ORDER BY 1", GRIDS[1]);
    assert_eq!(anyone(sql).await, marks(&there));
    let known: Vec<_> = all.iter().copied().filter(|row| row.person.is_some()).take(20).collect();
    for row in known {
        let sql = format!("SELECT id_no FROM residents WHERE special_group = '{}'", row.mark);
        let token: Vec<String> = serde_json::from_str(&anyone(sql).await).unwrap();
        let sql = format!("SELECT special_group FROM residents WHERE id_no = '{}'", token[0]);
        assert_eq!(anyone(sql).await, marks(&[row]));
    }

    // To a grid worker there is nothing but the community's own, and to a source nothing but what it sent.
    let home = current(&told, |row| GRIDS[row.grid].starts_with(HOME));
    let worker = hub.ask("grid-worker", "case-management", "SELECT special_group FROM residents ORDER BY 1").await;
    assert_eq!(worker.rows(), marks(&home));
    let own = current(&told, |row| row.source == 0);
    let mine = hub.ask("community-uploader", "", "SELECT count(*) FROM residents").await;
    assert_eq!(mine.rows(), format!("[{}]", own.len()));
}

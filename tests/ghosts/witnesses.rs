//! Each defence of the hub is needed: with all of them two worlds look the same, and with one removed a
//! question tells them apart, or something refused is answered.
//!
//! A defence without a witness does not compile.

use std::collections::{BTreeMap, btree_map::Entry};

use gridhub::{
    hub::Opening,
    query::defences::{Defence, Defences},
};

use super::{
    contracts::{self, CALLER},
    mutate,
    transcript::{self, FORMATS, Told},
    world::{Batch, Change, Coarse, Contents, Exposure, Field, Grant, Kind, Reach, Row, Table, World},
};
use crate::support::TestHub;

/// Questions that show what a defence is for.
struct Witness {
    scene: Scene,
    queries: &'static [&'static str],
    sign: Sign,
}

/// By what it shows.
#[derive(Debug, Clone, Copy)]
enum Sign {
    /// The two worlds answer differently.
    Differs,
    /// What was refused is answered.
    Answers,
    /// The two worlds answer differently, or another defence stops what was answered.
    DiffersOrStops,
}

/// Two worlds that look the same to their caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Scene {
    /// Rows of the neighbours, with values on which expressions fail, and without.
    Neighbours,
    /// The same rows in another order on disk.
    Laid,
    /// Other days of the same month.
    Days,
    /// Other values in a hidden field.
    Secrets,
    /// Zeros among others, and zeros in a batch of their own.
    Zeros,
    /// Many records, and with older revisions of the first of them.
    Revisions,
    /// Several rows on which casts fail, in another order on disk.
    Junk,
    /// Rows on which one expression or another fails, in one batch, or in two.
    FaultsInOneOrTwo,
    /// The same, the two batches the other way round.
    FaultsInTwoOrOne,
}

fn witness(scene: Scene, sign: Sign, queries: &'static [&'static str]) -> Witness {
    Witness { scene, queries, sign }
}

const FALLIBLE: &[&str] = &[
    "SELECT n FROM facts WHERE 10 / m > 1 ORDER BY n",
    "SELECT n FROM facts WHERE CAST(t AS INT) > 0 ORDER BY n",
    // Answers NULL for what it cannot do, but not for days beyond the calendar.
    "SELECT count(*) FROM facts WHERE TRY_CAST(TRY_CAST(n AS DATE) AS TEXT) = 'x'",
    "SELECT count(*) FROM facts WHERE TRY_CAST(TRY_CAST(n AS TIMESTAMP) AS DATE) IS NULL",
];

const CROSSING: &[&str] = &[
    "SELECT n FROM facts WHERE 10 / m > 1 ORDER BY n",
    "SELECT n, 10 / m AS q FROM facts ORDER BY n",
    "SELECT n FROM facts LIMIT 3",
    "SELECT count(*), min(n), max(n) FROM facts",
];

const FAULTS: &[&str] = &[
    "SELECT 10 / m AS q, CAST(t AS INT) AS c FROM facts",
    "SELECT CAST(t AS INT) AS c FROM facts",
    "SELECT n FROM facts WHERE 10 / m > 0 AND CAST(t AS INT) > 0",
    "SELECT CASE WHEN n % 2 = 0 THEN 10 / m ELSE CAST(t AS INT) END AS c FROM facts",
];

const GUARDED: &[&str] = &[
    "SELECT n FROM facts WHERE m <> 0 AND 10 / m > 0 ORDER BY n",
    "SELECT n, m <> 0 AND 10 / m > 0 AS fits FROM facts ORDER BY n",
    "SELECT count(*) FROM facts WHERE m = 0 OR 10 / m > 0",
    "SELECT count(*) FROM facts WHERE m IN (m, 7, 8, 1 / m)",
    "SELECT 10 / m AS q, rank() OVER (ORDER BY m) AS r FROM facts ORDER BY m DESC LIMIT 1",
];

/// The defences of the disclosure gate have their witnesses among the attacks on it.
const DISCLOSURE: [Defence; 8] = [
    Defence::Recheck,
    Defence::Epochs,
    Defence::Threshold,
    Defence::Noise,
    Defence::Snap,
    Defence::Ledger,
    Defence::Homogeneity,
    Defence::Grammar,
];

/// The witnesses of a defence; one that shows is enough, since which of them does depends on how the
/// engine cuts its batches.
fn witnesses(defence: Defence) -> Vec<Witness> {
    use Sign::{Answers, Differs, DiffersOrStops};
    match defence {
        // This engine happens to try a scope first and a caller's filter after it, wherever it puts them; that a
        // plan without its barrier is not run does not rest on it.
        Defence::Barrier => vec![witness(Scene::Neighbours, DiffersOrStops, CROSSING)],
        // A plan without its barrier is stopped by the last look at it, and runs without that.
        Defence::Verification => vec![witness(Scene::Neighbours, Answers, CROSSING)],
        Defence::FallibleWaits => vec![witness(Scene::Neighbours, Differs, FALLIBLE)],
        Defence::MaskedPredicates => vec![witness(
            Scene::Days,
            Differs,
            &[
                "SELECT n FROM facts WHERE day = DATE '2026-01-01' ORDER BY n",
                "SELECT n FROM facts WHERE day <= DATE '2026-01-01' ORDER BY n",
                "SELECT count(*) FROM facts WHERE day IN (DATE '2026-01-01', DATE '2026-02-01')",
            ],
        )],
        Defence::Statistics => vec![witness(
            Scene::Neighbours,
            Differs,
            &[
                "SELECT count(*) FROM facts",
                "SELECT min(n), max(n) FROM facts",
                "SELECT count(m), min(day), max(x) FROM facts",
            ],
        )],
        Defence::TotalOrder => vec![witness(
            Scene::Laid,
            Differs,
            &[
                "SELECT n, row_number() OVER () AS r FROM facts ORDER BY n",
                "SELECT n FROM facts LIMIT 4",
                "SELECT first_value(n) AS f, last_value(n) AS l FROM facts",
                "SELECT sum(x) AS s, avg(x) AS a FROM facts",
                "SELECT n, row_number() OVER (ORDER BY m) AS r FROM facts ORDER BY n",
                "SELECT any_value(t) AS a FROM facts",
                "SELECT m, any_value(t ORDER BY m) AS a FROM facts GROUP BY m",
                "SELECT sum(CAST(CAST(x AS TEXT) AS DOUBLE PRECISION)) AS s FROM facts",
                "SELECT DISTINCT ON (m % 2) n, t FROM facts ORDER BY m % 2",
                "SELECT sum(1e-300) AS s, avg(0.1 + 0 * x) AS a FROM facts",
            ],
        )],
        Defence::AnswerOrder => vec![witness(
            Scene::Laid,
            Differs,
            &[
                "SELECT n FROM facts",
                "SELECT n, who FROM facts WHERE m > 0",
                "SELECT n, count(*) FROM facts GROUP BY n",
                "SELECT a.n, b.n FROM facts AS a JOIN facts AS b ON a.m = b.m",
            ],
        )],
        Defence::GuardedLogic => {
            vec![witness(Scene::Zeros, Differs, GUARDED), witness(Scene::Revisions, Differs, GUARDED)]
        }
        Defence::ErrorWords => vec![
            witness(Scene::Junk, Differs, FAULTS),
            witness(Scene::FaultsInOneOrTwo, Differs, FAULTS),
            witness(Scene::FaultsInTwoOrOne, Differs, FAULTS),
        ],
        Defence::RowScope => vec![witness(
            Scene::Neighbours,
            Differs,
            &["SELECT n FROM facts ORDER BY n", "SELECT count(*), sum(m) FROM facts"],
        )],
        Defence::HiddenFields => vec![witness(
            Scene::Secrets,
            Differs,
            &["SELECT n, secret FROM facts ORDER BY n", "SELECT * FROM facts ORDER BY n"],
        )],
        Defence::FunctionList => vec![witness(
            Scene::Secrets,
            Answers,
            &[
                "SELECT repeat('a', 3)",
                "SELECT md5('a')",
                "SELECT version()",
                "SELECT lpad(t, 20, 'x') FROM facts",
                "SELECT array_agg(n) FROM facts",
            ],
        )],
        Defence::Firewall => vec![witness(
            Scene::Secrets,
            Answers,
            &[
                "SELECT n FROM facts TABLESAMPLE (50 PERCENT)",
                "SELECT n FROM facts FOR UPDATE",
                "EXPLAIN ANALYZE SELECT n FROM facts",
                "SHOW TABLES",
            ],
        )],
        Defence::Recheck
        | Defence::Epochs
        | Defence::Threshold
        | Defence::Noise
        | Defence::Snap
        | Defence::Ledger
        | Defence::Homogeneity
        | Defence::Grammar => Vec::new(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn removing_a_defence_makes_its_witness_fail() {
    let mut guarded = BTreeMap::new();
    for defence in Defence::ALL.iter().copied().filter(|defence| !DISCLOSURE.contains(defence)) {
        let mut shown = Vec::new();
        for witness in witnesses(defence) {
            let scene = witness.scene;
            let gone = before(defence);
            if let Entry::Vacant(place) = guarded.entry((scene, gone.len())) {
                place.insert(Stage::set(scene, gone).await);
            }
            let (one, other) = guarded[&(scene, gone.len())].tell(witness.queries).await;
            for (one, other) in one.iter().zip(&other) {
                assert!(
                    one.equals(other, true),
                    "{scene:?} is told apart by {}\n{}",
                    one.asked,
                    transcript::first_difference(one, other)
                );
            }
            let weakened = Stage::set(scene, &[gone, &[defence]].concat()).await.tell(witness.queries).await;
            let shows = witness.shows(&one, &weakened);
            println!("{defence:?} in {scene:?}: {}", if shows { "shows" } else { "does not show" });
            shown.push(shows);
        }
        assert!(
            shown.contains(&true),
            "nothing shows that {defence:?} was removed: it is not needed any more, or its witness looks elsewhere"
        );
    }
}

impl Witness {
    /// Whether the missing defence shows in what was told without it.
    fn shows(&self, guarded: &[Told], (one, other): &(Vec<Told>, Vec<Told>)) -> bool {
        let answered = |told: &Told| told.verdict == "answered";
        let differs = one.iter().zip(other).any(|(one, other)| !one.equals(other, true));
        let pairs = || guarded.iter().zip(one);
        match self.sign {
            Sign::Differs => differs,
            Sign::Answers => {
                assert!(!guarded.iter().any(answered), "one of {:?} is answered anyway", self.queries);
                pairs().any(|(_, now)| answered(now))
            }
            Sign::DiffersOrStops => differs || pairs().any(|(before, now)| answered(before) && !answered(now)),
        }
    }
}

/// The defences that are gone before one is removed: what the last look at a plan is for shows only where
/// there is something for it to see.
fn before(gone: Defence) -> &'static [Defence] {
    match gone {
        Defence::Verification => &[Defence::Barrier],
        _ => &[],
    }
}

/// Two hubs with the worlds of a scene.
struct Stage(TestHub, TestHub);

impl Stage {
    async fn set(scene: Scene, gone: &[Defence]) -> Self {
        let (world, one, other) = scene.worlds();
        for (table, (one, other)) in world.tables.iter().zip(one.0.iter().zip(&other.0)) {
            assert!(mutate::looks_the_same(table, one, other), "{scene:?} does not look the same");
        }
        let folder = tempfile::tempdir().unwrap();
        contracts::write(&world, folder.path());
        let defences = Defences::without(gone);
        let weakened = |opening: &mut Opening| {
            opening.defences = defences;
            // In files, rows lie as they came; in memory, there is less for some defences to do.
            opening.query_limits.tables = 0;
        };
        let one = contracts::open(folder.path(), &world, &one, weakened).await;
        let other = contracts::open(folder.path(), &world, &other, weakened).await;
        Self(one, other)
    }

    async fn tell(&self, queries: &[&str]) -> (Vec<Told>, Vec<Told>) {
        let (ours, theirs) = (self.0.token(CALLER), self.1.token(CALLER));
        let (mut one, mut other) = (Vec::new(), Vec::new());
        for sql in queries {
            one.push(transcript::ask(&self.0, &ours, sql, FORMATS[0]).await);
            other.push(transcript::ask(&self.1, &theirs, sql, FORMATS[0]).await);
        }
        (one, other)
    }
}

// ------------------------------------------------------------------------------------- scenes

/// n, m, t, x, day, who, place: numbers without zeros, texts that are numbers.
const ROWS: [&str; 12] = [
    "1,5,12,0.1,2026-01-05,P01,420191001001001",
    "2,5,-3,1e16,2026-01-05,P02,420191001001001",
    "3,2,7,0.2,2026-01-05,P03,420191001001001",
    "4,2,8,-1e16,2026-01-05,P04,420191001001001",
    "5,5,9,0.3,2026-01-05,P05,420191001001001",
    "6,1,12,1,2026-01-05,P06,420191001001001",
    "7,5,12,1e8,2026-01-05,P07,420191001001001",
    "8,1,31,0.7,2026-01-05,P08,420191001001001",
    "9,5,12,-1e8,2026-01-05,P09,420191001001001",
    "10,2,4,0.1,2026-01-05,P10,420191001001001",
    "11,5,12,3e15,2026-01-05,P11,420191001001001",
    "12,1,6,1e-3,2026-01-05,P12,420191001001001",
];

/// Rows of the next community: a zero to divide by, texts that are no numbers, extremes.
const GHOSTS: [&str; 3] = [
    "-9223372036854775808,0,x1,1e300,2026-01-01,P30,420191001002001",
    "9223372036854775807,0,no,-1e300,2026-01-09,P31,420191001002001",
    "-5,,,,2026-01-05,,420191001002001",
];

impl Scene {
    /// The caller's world and its two contents.
    fn worlds(self) -> (World, Contents, Contents) {
        let (home, all) = (Grant::Rows(Reach::Home), Grant::Rows(Reach::All));
        let without = |lines: &[&str]| vec![batch(lines, "a")];
        match self {
            Self::Neighbours => {
                let among = [&ROWS[..], &GHOSTS].concat();
                // A batch of nothing but neighbours comes first.
                let alone = batch(&GHOSTS, "g");
                scene(facts(home), without(&ROWS), vec![alone, batch(&among, "a")])
            }
            Self::Laid => scene(facts(all), without(&ROWS), vec![batch(&ROWS, "b")]),
            Self::Days => {
                let first = ROWS.map(|row| row.replace("2026-01-05", "2026-01-01"));
                let first: Vec<&str> = first.iter().map(String::as_str).collect();
                scene(facts(all), without(&ROWS), without(&first))
            }
            Self::Secrets => {
                let mut other = without(&ROWS);
                for row in &mut other[0].rows {
                    row.cells[SECRET] = Some("otherwise".into());
                }
                scene(facts(all), without(&ROWS), other)
            }
            Self::Zeros => {
                let row =
                    |at: usize| format!("{at},{},1,0.5,2026-01-05,P01,420191001001001", if at < 3 { 0 } else { 5 });
                let rows: Vec<String> = (1..11).map(row).collect();
                let rows: Vec<&str> = rows.iter().map(String::as_str).collect();
                let (zeros, fives) = rows.split_at(2);
                scene(facts(all), without(&rows), vec![batch(zeros, "a"), batch(fives, "a")])
            }
            Self::Revisions => revisions(),
            Self::Junk => {
                let row = |at: usize| format!("{at},{},x{at},0.5,2026-01-05,P01,420191001001001", at % 3);
                let rows: Vec<String> = (1..13).map(row).collect();
                let rows: Vec<&str> = rows.iter().map(String::as_str).collect();
                scene(facts(all), without(&rows), vec![batch(&rows, "b")])
            }
            Self::FaultsInOneOrTwo => {
                let [zero, junk] = FAULTY;
                scene(facts(all), without(&FAULTY), vec![batch(&[junk], "a"), batch(&[zero], "b")])
            }
            Self::FaultsInTwoOrOne => {
                let [zero, junk] = FAULTY;
                scene(facts(all), vec![batch(&[zero], "a"), batch(&[junk], "b")], without(&FAULTY))
            }
        }
    }
}

/// A row on which a division fails, and one on which a cast does.
const FAULTY: [&str; 2] = ["2,0,12,0.5,2026-01-05,P01,420191001001001", "1,5,x1,0.5,2026-01-05,P02,420191001001001"];

/// Where `secret` stands in a row of [`facts`].
const SECRET: usize = 7;

fn facts(grant: Grant) -> Table {
    let fields = vec![
        Field::new("n", Kind::Big, Exposure::Clear),
        Field::new("m", Kind::Integer, Exposure::Clear),
        Field::new("t", Kind::Text, Exposure::Clear),
        Field::new("x", Kind::Double, Exposure::Clear),
        Field { coarse: Some(Coarse::Month), ..Field::new("day", Kind::Date, Exposure::Generalised) },
        Field::new("who", Kind::Identifier, Exposure::Token),
        Field::new("place", Kind::Division, Exposure::Clear),
        Field::new("secret", Kind::Text, Exposure::Hidden),
        Field::pad(),
    ];
    Table { territory: Some(6), grant, ..Table::new("facts", fields) }
}

fn scene(table: Table, one: Vec<Batch>, other: Vec<Batch>) -> (World, Contents, Contents) {
    let world = World { tables: vec![table], divisions: false, zone: "UTC" };
    (world, Contents(vec![one]), Contents(vec![other]))
}

/// Rows of [`facts`]. What they are padded with decides how they lie on disk.
fn batch(lines: &[&str], pad: &str) -> Batch {
    let row = |(at, line): (usize, &&str)| {
        let mut cells: Vec<Option<String>> =
            line.split(',').map(|cell| (!cell.is_empty()).then(|| cell.to_owned())).collect();
        cells.push(Some("as it was".into()));
        cells.push(Some(format!("{pad}{}", letters(at))));
        Row { number: u32::try_from(at).unwrap(), cells }
    };
    Batch { source: 0, rows: lines.iter().enumerate().map(row).collect() }
}

fn letters(mut number: usize) -> String {
    let mut text = String::new();
    for _ in 0..4 {
        text.push(char::from(b'a' + u8::try_from(number % 26).unwrap()));
        number /= 26;
    }
    text
}

/// Records up to the third batch of the engine, zeros first. Where nothing is superseded, the first batch
/// holds few others than zeros, and the engine looks at the guard alone; older revisions of the first
/// records move the cut to where zeros and others are mixed.
fn revisions() -> (World, Contents, Contents) {
    const RECORDS: usize = 13_000;
    const ZEROS: usize = 7_500;
    const REVISED: usize = 3_000;
    let fields = vec![
        Field::new("n", Kind::Big, Exposure::Clear),
        Field::new("m", Kind::Integer, Exposure::Clear),
        Field::new("v", Kind::Integer, Exposure::Hidden),
    ];
    let table = Table { change: Change::Upsert, key: Some(0), order_by: Some(2), ..Table::new("facts", fields) };
    let row = |number: usize, version: usize| {
        let m = if number <= ZEROS { 0 } else { 1 };
        let cells = [number, m, version].map(|value| Some(value.to_string())).to_vec();
        Row { number: u32::try_from(number + version * RECORDS).unwrap(), cells }
    };
    let newest = Batch { source: 0, rows: (1..=RECORDS).map(|number| row(number, 2)).collect() };
    let older = Batch { source: 0, rows: (1..=REVISED).map(|number| row(number, 1)).collect() };
    scene(table, vec![newest.clone()], vec![older, newest])
}

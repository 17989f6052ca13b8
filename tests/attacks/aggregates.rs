//! Table C of the catalogue of leaks: what aggregates told elsewhere. C8 is in [`super::reconstruction`], C10 in
//! [`super::accuracy`].

use std::collections::{BTreeMap, BTreeSet};

use chrono::TimeDelta;
use rand::{Rng, SeedableRng, rngs::StdRng, seq::SliceRandom};
use rusqlite::{Connection, OpenFlags};
use serde_json::{Value, json};

use super::{
    Denied,
    score::{Bar, Class, Score, demand},
    world::{
        ANALYST, Attacker, City, HAMLET, HAS_FEVER, INN, IS_BAD, MODES, NAMELESS, ODD, Person, QUIET, TEN, Told,
        UNIFORM, World, Worlds, last_day, text_of,
    },
};
use crate::support::{CSV, fixture};

/// Contact tracers, to whom needs and symptoms are sealed.
const TRACER: (&str, &str) = ("cdc-epidemiologist", "contact-tracing");

/// Planners, to whom cases are rows that may only be counted.
const PLANNER: (&str, &str) = ("health-analyst", "supply-planning");

pub fn denied() -> Vec<Denied> {
    let class = Class::Inference;
    vec![
        Denied::new(
            class,
            "C3",
            "one-hot weights, rows repeated by a cross join",
            &[
                "SELECT sum(CASE WHEN id_no = '{TOKEN}' THEN temperature END) FROM visits",
                "SELECT sum(temperature * CASE WHEN id_no = '{TOKEN}' THEN 1 ELSE 0 END) FROM visits",
                "SELECT avg(temperature) FILTER (WHERE id_no = '{TOKEN}') FROM visits",
                "SELECT count(DISTINCT CASE WHEN id_no = '{TOKEN}' THEN id_no END), avg(temperature) FROM visits",
                "SELECT sum(v.temperature) FROM visits v CROSS JOIN divisions d",
            ],
        ),
        Denied::new(
            class,
            "C4",
            "values that outgrow their clamp",
            &[
                "SELECT sum(temperature * 1000) FROM visits",
                "SELECT sum(exp(temperature)) FROM visits",
                "SELECT avg(temperature) FROM (SELECT temperature FROM visits UNION ALL SELECT temperature FROM visits) \
                 AS u",
                "SELECT sum(t) FROM (SELECT id_no, sum(temperature) AS t FROM visits GROUP BY id_no) AS s",
            ],
        ),
        Denied::new(
            class,
            "C12",
            "margins by grouping sets",
            &[
                "SELECT mode, avg(temperature) FROM visits GROUP BY ROLLUP (mode)",
                "SELECT mode, grid_code, avg(temperature) FROM visits GROUP BY CUBE (mode, grid_code)",
                "SELECT mode, avg(temperature) FROM visits GROUP BY GROUPING SETS ((mode), ())",
            ],
        ),
        Denied::new(
            class,
            "C13",
            "a statement that switches protection off",
            &[
                "SET gridhub.protection = 'off'",
                "SET datafusion.optimizer.max_passes = 0",
                "RESET ALL",
                "BEGIN",
                "SELECT avg(temperature) FROM visits WITH (nolock)",
                "SELECT set_config('gridhub.noise', '0', false)",
            ],
        )
        .unknown(),
        Denied::new(
            class,
            "C14",
            "aggregates that return a record",
            &[
                "SELECT first_value(temperature) FROM visits",
                "SELECT any_value(temperature) FROM visits",
                "SELECT array_agg(temperature) FROM visits",
                "SELECT string_agg(severity, ',') FROM cases",
                "SELECT max(severity) FROM cases",
                "SELECT bit_xor(CAST(temperature AS INT)) FROM visits",
                "SELECT corr(temperature, temperature) FROM visits",
                "SELECT mode() WITHIN GROUP (ORDER BY temperature) FROM visits",
                "SELECT approx_distinct(temperature) FROM visits",
            ],
        )
        .unknown(),
    ]
}

/// What two hubs must tell alike although a victim's value differs, and what must hold of any answer.
pub async fn equal(worlds: &Worlds) -> Vec<Score> {
    vec![
        doubled(&worlds.one).await,
        rare_label(worlds).await,
        rows_are_no_people(&worlds.one).await,
        rewrites(&worlds.one).await,
        recount(&worlds.one).await,
        extremes(worlds).await,
        options(&worlds.one).await,
        dominance(&worlds.one).await,
        table_size(&worlds.one).await,
    ]
}

pub async fn games(world: &World, trials: u64) -> Vec<Score> {
    vec![margins(world, trials).await, own_tiles(world, trials).await]
}

fn score(number: &'static str, name: &str, bar: Bar) -> Score {
    Score::new(number, name, Class::Inference, bar)
}

/// C1: one person's rows are doubled by a join with its two cases. The number of rows must not tell it.
async fn doubled(world: &World) -> Score {
    let mut score = score("C1", "one row doubled", Bar::Equal);
    let twice = world.city.people.iter().find(|person| person.cases.len() > 1).unwrap();
    let place = twice.community();
    let once = format!(
        "SELECT count(*) FROM visits v WHERE v.{HAS_FEVER} AND v.grid_code BETWEEN '{place}001' AND '{place}002'"
    );
    let doubled = once.replace("visits v", "visits v LEFT JOIN cases c ON c.id_no = v.id_no");
    let mut attacker = world.start_over(0);
    let (one, other) = (attacker.number(&once).await, attacker.number(&doubled).await);
    score.expect(one.is_some() && one == other, || format!("{one:?} rows, and {other:?} with one doubled"));
    score.add_queries(attacker.asked, attacker.refused);
    score
}

/// C5: a need that one household has, as a group key. Groups of few are absent, whatever they are called.
async fn rare_label(worlds: &Worlds) -> Score {
    let mut score = score("C5", "the label itself is the secret", Bar::Equal);
    let questions = [
        "SELECT needs, count(*) FROM visits GROUP BY 1 ORDER BY 1".to_owned(),
        "SELECT count(*) FROM visits WHERE needs = '血浆'".to_owned(),
        "SELECT count(*) FROM visits WHERE needs = '没有'".to_owned(),
        "SELECT symptoms, count(*) FROM visits GROUP BY 1".to_owned(),
    ];
    let told = worlds.tell(TRACER, &questions).await;
    for (sql, (one, other)) in questions.iter().zip(&told) {
        score.add_queries(1, u64::from(!one.is_answered()));
        score.expect(one.text == other.text, || format!("{sql}: {} and {}", one.text, other.text));
    }
    let labels: BTreeSet<_> = told[0].0.groups(1).into_iter().map(|(label, _)| label).collect();
    score.expect(labels.contains("药品") && !labels.contains("血浆"), || format!("{labels:?} are told"));
    score.expect(told[1].0.rows == told[2].0.rows, || "a rare need is told from one that nobody has".into());
    score.expect(told[3].0.rule == "protected-group-key", || told[3].0.text.clone());
    score
}

/// C6: one guest with fifty visits and eight with one are nine people; visits that name nobody are nobody's.
async fn rows_are_no_people(world: &World) -> Score {
    let mut score = score("C6", "rows counted for people", Bar::Equal);
    let mut attacker = world.start_over(0);
    let grouped = format!(
        "SELECT grid_code, count(*), avg(temperature) FROM visits WHERE substr(grid_code, 1, 6) = '{ODD}' GROUP BY 1"
    );
    let groups = attacker.ask(&grouped).await.groups(1);
    score.expect(groups.iter().any(|(grid, _)| grid.starts_with(UNIFORM)), || format!("{groups:?}"));
    for absent in [INN, NAMELESS] {
        score.expect(groups.iter().all(|(grid, _)| grid != absent), || format!("{groups:?}"));
        let alone = format!("SELECT count(*), sum(temperature) FROM visits WHERE grid_code = '{absent}'");
        let told = attacker.ask(&alone).await;
        score.expect(told.is_answered() && told.number().is_none(), || told.text.clone());
    }
    score.add_queries(attacker.asked, attacker.refused);
    score
}

/// Rewrites of one question that are tried.
const REWRITES: usize = 200;

/// Rewrites after which the ledger would be spent: each is a definition of its own.
const LEDGER: usize = 40;

/// C7: one question written in two hundred ways. All get one number each, or noise could be averaged away.
async fn rewrites(world: &World) -> Score {
    let mut score = score("C7", "one question in 200 ways", Bar::Equal);
    let mut random = StdRng::seed_from_u64(7);
    let mut texts = BTreeSet::new();
    while texts.len() < REWRITES {
        texts.insert(rewritten(&mut random));
    }
    let mut told: BTreeMap<String, String> = BTreeMap::new();
    for some in texts.iter().collect::<Vec<_>>().chunks(LEDGER) {
        // The same key again, and an empty ledger.
        let mut attacker = world.start_over(0);
        for sql in some {
            let one = attacker.ask(sql).await;
            score.expect(one.is_answered(), || format!("{sql}: {}", one.text));
            told.entry(format!("{:?}", one.rows)).or_insert_with(|| (*sql).clone());
        }
        score.add_queries(attacker.asked, attacker.refused);
    }
    score.expect(told.len() == 1, || format!("different answers: {told:#?}"));
    score
}

/// The visits at the door in the busy district in a week, one way to ask for them.
fn rewritten(random: &mut StdRng) -> String {
    const MODE: [&str; 6] = [
        "mode = '入户'",
        "'入户' = mode",
        "mode IN ('入户')",
        "mode IN ('入户', '入户')",
        "mode BETWEEN '入户' AND '入户'",
        "'入户' = mode",
    ];
    const DAYS: [&str; 6] = [
        "CAST(visited_at AS DATE) BETWEEN DATE '2025-12-28' AND DATE '2026-01-03'",
        "CAST(visited_at AS DATE) >= DATE '2025-12-28' AND CAST(visited_at AS DATE) <= DATE '2026-01-03'",
        "DATE '2025-12-28' <= CAST(visited_at AS DATE) AND DATE '2026-01-04' > CAST(visited_at AS DATE)",
        "visited_at >= DATE '2025-12-28' AND visited_at < DATE '2026-01-04'",
        "visited_at::date > DATE '2025-12-27' AND visited_at::date < DATE '2026-01-04'",
        "CAST(visited_at AS DATE) IN (DATE '2025-12-28', DATE '2025-12-29', DATE '2025-12-30', DATE '2025-12-31', DATE \
         '2026-01-01', DATE '2026-01-02', DATE '2026-01-03')",
    ];
    const AREA: [&str; 6] = [
        "substr(grid_code, 1, 6) = '420191'",
        "'420191' = left(grid_code, 6)",
        "left(grid_code, 6) IN ('420191', '420199')",
        "division(grid_code, 'district') = '420191'",
        "substring(grid_code, 1, 6) = '420191'",
        "substr(grid_code, 1, 9) IN ('420191001', '420191002', '420191003', '420191004')",
    ];
    const FROM: [(&str, &str); 6] = [
        ("", "visits"),
        ("", "community.visits"),
        ("", "visits AS v"),
        ("", "(SELECT * FROM visits) AS v"),
        ("", "(SELECT temperature, mode, id_no, visited_at, grid_code FROM community.visits AS x) AS v"),
        ("WITH v AS (SELECT * FROM visits) ", "v"),
    ];
    const SELECT: [&str; 2] = [
        "count(DISTINCT id_no), sum(temperature), avg(temperature)",
        "count(DISTINCT id_no) AS n, sum(temperature) AS s, avg(temperature) AS m",
    ];
    let mut pick = |ways: &[&'static str]| ways[random.random_range(0..ways.len())];
    let select = pick(&SELECT);
    let mut conditions = [pick(&MODE), pick(&DAYS), pick(&AREA)];
    conditions.shuffle(random);
    let (with, from) = FROM[random.random_range(0..FROM.len())];
    format!("{with}SELECT {select} FROM {from} WHERE {}", conditions.join(" AND "))
}

/// C9: what is charged, against an independent recount: one for each number of each group that was told and not
/// told before. Repeats and what is withheld are free.
async fn recount(world: &World) -> Score {
    let mut score = score("C9", "the ledger, counted again", Bar::Equal);
    let mut attacker = world.start_over(0);
    let fever =
        format!("SELECT substr(grid_code, 1, 12), count(DISTINCT id_no) FROM visits WHERE {HAS_FEVER} GROUP BY 1");
    let means = "SELECT mode, avg(temperature) FROM visits GROUP BY 1";
    let severe = format!("SELECT count(*) FROM cases WHERE severity = '重型' AND substr(grid_code, 1, 6) = '{QUIET}'");
    let withheld = format!("SELECT count(*) FROM cases WHERE severity = '重型' AND grid_code = '{HAMLET}'");
    let told = |groups: Vec<(String, Option<f64>)>| groups.iter().filter(|(_, number)| number.is_some()).count() as u64;
    let mut expected: BTreeMap<String, u64> = BTreeMap::new();
    let mut expect = |column: &str, charges: u64| *expected.entry(column.to_owned()).or_default() += charges;
    for _ in 0..2 {
        let (fever, means) = (attacker.ask(&fever).await, attacker.ask(means).await);
        let (severe, withheld) = (attacker.ask(&severe).await, attacker.ask(&withheld).await);
        score.expect(severe.number().is_some() && withheld.number().is_none(), || {
            format!("{} and {}", severe.text, withheld.text)
        });
        if attacker.asked == 4 {
            expect("community.visits.temperature", told(fever.groups(1)));
            expect("community.visits.temperature", told(means.groups(1)));
            expect("cdc.cases.severity", 1);
        }
    }
    let charged = charges(&attacker);
    score.expect(charged == expected, || format!("{charged:?} are charged, and {expected:?} by recount"));
    score.add_queries(attacker.asked, attacker.refused);
    score
}

/// What was charged of each column.
fn charges(attacker: &Attacker<'_>) -> BTreeMap<String, u64> {
    let ledger = Connection::open_with_flags(attacker.ledger(), OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    let mut charges = ledger.prepare("SELECT column_name, count(*) FROM charges GROUP BY 1").unwrap();
    let charges = charges.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?))).unwrap();
    charges.map(Result::unwrap).map(|(column, count)| (column, u64::try_from(count).unwrap())).collect()
}

/// C11: the largest values there can be, in groups that are withheld and in sums that are refused nothing.
async fn extremes(worlds: &Worlds) -> Score {
    let mut score = score("C11", "overflow and extremes in withheld groups", Bar::Equal);
    let questions = [
        "SELECT category, sum(qty), sum(amount), stddev(amount) FROM sales GROUP BY 1 ORDER BY 1".to_owned(),
        "SELECT count(*), sum(amount), avg(amount) FROM sales WHERE category = '其他'".to_owned(),
        "SELECT category FROM sales GROUP BY 1 HAVING sum(amount) > 100000".to_owned(),
    ];
    for (sql, (one, other)) in questions.iter().zip(worlds.tell(ANALYST, &questions).await) {
        score.add_queries(1, u64::from(!one.is_answered()));
        score.expect(one.is_answered(), || format!("{sql}: {}", one.text));
        score.expect(one.rows == other.rows, || format!("{sql}: {} and {}", one.text, other.text));
        score.expect(!one.text.contains("\"其他\""), || format!("{sql}: {}", one.text));
    }
    score
}

/// C13: no option and no comment changes a number or lets a small group out.
async fn options(world: &World) -> Score {
    let mut score = score("C13", "options, hints and comments", Bar::Equal);
    let counts = format!(
        "SELECT grid_code, count(DISTINCT id_no) AS n, avg(temperature) AS mean FROM visits WHERE \
         substr(grid_code, 1, 6) = '{ODD}' GROUP BY 1"
    );
    let _fresh = world.start_over(0);
    let plain = world.ask(&counts).await.groups(1);
    score.expect(plain.iter().all(|(_, number)| number.is_some_and(|number| number >= 14.0)), || format!("{plain:?}"));
    for members in [
        json!({"interval": true}),
        json!({"small_cells": "merge"}),
        json!({"small_cells": "roll-up"}),
        json!({"interval": true, "small_cells": "roll-up"}),
    ] {
        let told = world.ask_with(&counts, &members).await;
        score.expect(told.is_answered(), || format!("{members}: {}", told.text));
        let groups = told.groups(1);
        let alike = plain.iter().all(|group| groups.contains(group));
        score.expect(alike, || format!("{members}: {groups:?} for {plain:?}"));
        for (grid, number) in &groups {
            score.expect(number.is_some_and(|number| number >= 14.0), || format!("{members}: {grid} has {number:?}"));
            score.expect(![TEN, INN, NAMELESS].contains(&grid.as_str()), || format!("{members}: {grid} is told"));
        }
    }
    for members in [json!({"noise": false}), json!({"protection": "exact"}), json!({"small_cells": "show"})] {
        let told = world.ask_with(&counts, &members).await;
        score.expect(told.status == 400, || format!("{members}: {}", told.text));
    }
    for hint in ["/*+ no_noise */", "-- protection off\n", "/* exact */"] {
        let told = world.ask(&counts.replacen("SELECT", &format!("SELECT {hint}"), 1)).await.groups(1);
        score.expect(told == plain, || format!("{hint}: {told:?} for {plain:?}"));
    }
    score.add_queries(11, 3);
    score
}

/// C15: where one buyer is nearly all of a sum, there is no sum and no mean.
async fn dominance(world: &World) -> Score {
    let mut score = score("C15", "one value dominates", Bar::Equal);
    let mut attacker = world.start_over(0);
    let told = attacker.ask("SELECT category, sum(amount), avg(amount), count(*) FROM sales GROUP BY 1").await;
    let row = |category: &str| told.rows.iter().find(|row| text_of(&row[0]) == category).cloned().unwrap_or_default();
    score.expect(matches!(&row("抗菌")[..], [_, Value::Null, Value::Null, Value::Number(_)]), || told.text.clone());
    score.expect(matches!(&row("止咳")[..], [_, Value::Number(_), ..]), || told.text.clone());
    score.add_queries(attacker.asked, attacker.refused);
    score
}

/// C17: how many rows there are is exact to those who may read them, and to nobody else.
async fn table_size(world: &World) -> Score {
    let mut score = score("C17", "the size of a table", Bar::Equal);
    let rows: usize = world.city.people.iter().map(|person| person.cases.len()).sum();
    let mut counts = BTreeSet::new();
    for trial in 0..8 {
        let _fresh = world.start_over(trial);
        let exact = world.ask("SELECT count(*) FROM cases").await;
        score.expect(exact.number() == Some(rows as f64), || exact.text.clone());
        let told = world.ask_as(PLANNER, "SELECT count(*) FROM cases").await;
        let protected = told.text.contains(r#""mode":"protected""#) && told.text.contains(r#""exposure":"released""#);
        score.expect(protected && told.number().is_some(), || told.text.clone());
        counts.insert(told.number().unwrap_or_default() as i64);
        score.add_queries(2, 0);
    }
    score.expect(counts.len() > 1, || format!("{counts:?} of {rows} carry no noise"));
    score
}

/// C12: the hamlet's bad cases are too few to be told; those of its street are, and those of the other communities of
/// the street. What is left over is the hamlet's, with the noise of all of them.
async fn margins(world: &World, trials: u64) -> Score {
    let mut score = score("C12", "a withheld group from totals", Bar::AtMost(0.10));
    let street = &HAMLET[..9];
    for trial in 0..trials {
        let mut attacker = world.start_over(trial);
        let victim = attacker.victim(|person| person.grid.starts_with(HAMLET), Person::is_bad);
        let bad = format!("FROM cases WHERE {IS_BAD} AND substr(grid_code, 1, 9) = '{street}'");
        let total = attacker.number(&format!("SELECT count(DISTINCT id_no) {bad}")).await;
        let parts = attacker
            .ask(&format!("SELECT substr(grid_code, 1, 12), count(DISTINCT id_no) {bad} GROUP BY 1"))
            .await
            .groups(1);
        let told = parts.iter().find(|(place, _)| place == HAMLET).and_then(|(_, number)| *number);
        let left = total.map(|total| total - parts.iter().filter_map(|(_, number)| *number).sum::<f64>());
        let guess = match told.or(left) {
            Some(bad) if bad != 6.0 => bad > 6.0,
            _ => attacker.coin(),
        };
        score.add(guess == victim.is_bad(), &attacker);
    }
    score
}

/// C2: areas of the attacker's own: the street with and without the hamlet, by lists of communities. Both differ in
/// twelve people, of whom half are bad cases: they are near, or far enough for noise of their own.
async fn own_tiles(world: &World, trials: u64) -> Score {
    let mut score = score("C2", "areas of the attacker's own and their union", Bar::AtMost(0.10));
    let street = &HAMLET[..9];
    for trial in 0..trials {
        let mut attacker = world.start_over(trial);
        let victim = attacker.victim(|person| person.grid.starts_with(HAMLET), Person::is_bad);
        let of = |places: &str| {
            format!("SELECT count(DISTINCT id_no) FROM cases WHERE {IS_BAD} AND substr(grid_code, 1, 12) IN ({places})")
        };
        let rest = format!("'{street}001', '{street}002'");
        let all = attacker.number(&of(&format!("{rest}, '{HAMLET}'"))).await;
        let rest = attacker.number(&of(&rest)).await;
        let guess = match (all, rest) {
            (Some(all), Some(rest)) if all != rest => all - rest > 6.0,
            _ => attacker.coin(),
        };
        score.add(guess == victim.is_bad(), &attacker);
    }
    score
}

// ------------------------------------------------------------------------------------- C16 and number 18

/// 18 and C16: the same question before and after one upload. One person alone is not published; published with nine
/// others from elsewhere, or after a day, it is near what was told before; with many others of the same place, noise
/// is drawn anew. In no case does the answer follow the one person's value.
#[tokio::test(flavor = "multi_thread")]
async fn an_upload_between_two_questions_tells_of_nobody() {
    let mut score = score("C16", "the same question before and after one upload", Bar::Equal);
    let hot = World::roomy(City::small(), |_| {}).await;
    let well = World::roomy(City::small(), |_| {}).await;
    let mut told = Vec::new();
    for (world, tenths) in [(&hot, 385), (&well, 365)] {
        let question = format!(
            "SELECT count(DISTINCT id_no), avg(temperature) FROM visits WHERE {HAS_FEVER} AND substr(grid_code, 1, 6) = \
             '{QUIET}'"
        );
        let mut answers = vec![fresh(world, &question).await];
        push(world, QUIET, 0..1, tenths).await;
        answers.push(fresh(world, &question).await);
        push(world, ODD, 1..10, 365).await;
        answers.push(fresh(world, &question).await);
        push(world, QUIET, 10..11, tenths).await;
        answers.push(fresh(world, &question).await);
        world.hub.clock.step(TimeDelta::hours(25));
        answers.push(fresh(world, &question).await);
        score.expect(answers[0].number().is_some(), || answers[0].text.clone());
        for answer in &answers {
            score.expect(answer.rows == answers[0].rows, || format!("{} and {}", answers[0].text, answer.text));
        }
        push(world, QUIET, 20..60, 385).await;
        let last = fresh(world, &question).await;
        score.expect(last.rows != answers[0].rows, || format!("forty people more change nothing: {}", last.text));
        told.push(answers);
        score.add_queries(6, 0);
    }
    let rows = |answers: &[Told]| answers.iter().map(|answer| answer.rows.clone()).collect::<Vec<_>>();
    score.expect(rows(&told[0]) == rows(&told[1]), || "the answers follow one person's value".into());
    demand(&[score]);
}

/// What the analyst is told, with a token that is not a day old.
async fn fresh(world: &World, sql: &str) -> Told {
    Told::of(&world.hub.ask(ANALYST.0, ANALYST.1, sql).await)
}

/// Pushes visits of new people to a district.
async fn push(world: &World, district: &str, numbers: std::ops::Range<usize>, tenths: i64) {
    let header = String::from_utf8(fixture("community.visits.csv")).unwrap();
    let mut file = format!("{}\n", header.lines().next().unwrap());
    let count = numbers.len();
    for number in numbers {
        let id = gridhub::demo::city::with_check_digit(&format!("42019919600101{number:03}"));
        let (day, mode) = (last_day(), MODES[0]);
        let (whole, tenth) = (tenths / 10, tenths % 10);
        file += &format!("Z{number},{district}001001001,,{id},,,,{day} 12:00:00,{mode},{whole}.{tenth},,,\n");
    }
    let reply = world.hub.push("community-uploader", "community.visits", CSV, file.into_bytes()).await;
    assert_eq!(reply.status, 201, "{}", reply.text());
    assert_eq!(reply.json()["rows_accepted"], count, "{}", reply.text());
}

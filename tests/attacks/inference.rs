//! Attacks that infer a sealed value of somebody of whom all else is known: numbers 1 to 3, 5, 6, 11 to 13, 15, 20,
//! 22, 24, 26, 28, 29 and 32.

use std::collections::BTreeSet;

use rand::{Rng, seq::SliceRandom};

use super::{
    Denied,
    score::{Bar, Class, Score},
    world::{ANALYST, Attacker, BUSY, HAS_FEVER, HOSTEL, IS_BAD, Person, QUIET, UNIFORM, World, Worlds, days},
};

pub fn denied() -> Vec<Denied> {
    vec![
        denied_here(
            "1",
            "all but one, by a fine column",
            &[
                "SELECT count(*) FROM visits WHERE temperature >= 37.3 AND id_no <> '{TOKEN}'",
                "SELECT count(*) FROM visits WHERE temperature >= 37.3 AND id_no NOT IN ('{TOKEN}')",
                "SELECT avg(temperature) FROM (SELECT * FROM visits WHERE id_no <> '{TOKEN}')",
                "SELECT avg(temperature) FROM visits WHERE visited_at <> TIMESTAMP '2026-01-05 10:00:00'",
            ],
        ),
        denied_here(
            "4",
            "subsets by arithmetic, hashes and lists of people",
            &[
                "SELECT count(*) FROM visits WHERE temperature >= 37.3 AND ascii(id_no) % 2 = 0",
                "SELECT count(*) FROM visits WHERE temperature >= 37.3 AND substr(id_no, 1, 1) = 'a'",
                "SELECT count(*) FROM visits WHERE temperature >= 37.3 AND id_no IN ('{TOKEN}', 'x')",
                "SELECT count(*) FROM visits WHERE temperature >= 37.3 AND date_part('minute', visited_at) = 30",
                "SELECT count(*) FROM visits WHERE temperature >= 37.3 AND md5(id_no) LIKE 'a%'",
                "SELECT avg(temperature) FROM visits WHERE id_no < '{TOKEN}'",
            ],
        ),
        denied_here(
            "5",
            "set difference: EXCEPT, NOT, anti-join on a person",
            &[
                "SELECT count(*) FROM (SELECT id_no, temperature FROM visits EXCEPT SELECT id_no, temperature FROM \
                 visits WHERE id_no = '{TOKEN}') WHERE temperature >= 37.3",
                "SELECT count(*) FROM visits WHERE temperature >= 37.3 AND NOT (mode = '线上')",
                "SELECT count(*) FROM visits v WHERE v.temperature >= 37.3 AND NOT EXISTS (SELECT 1 FROM cases c WHERE \
                 c.id_no = v.id_no AND c.case_id = '{TOKEN}')",
                "SELECT count(*) FROM visits v FULL JOIN cases c ON c.id_no = v.id_no WHERE v.temperature >= 37.3",
            ],
        ),
        denied_here(
            "6",
            "tracker: the victim's formula padded with OR",
            &[
                "SELECT count(*) FROM visits WHERE temperature >= 37.3 AND (mode = '入户' OR mode = '电话')",
                "SELECT count(*) FROM visits WHERE temperature >= 37.3 AND (mode = '入户' OR NOT mode = '入户')",
                "SELECT count(*) FROM visits WHERE temperature >= 37.3 OR mode = '入户'",
                "SELECT count(*) FROM visits WHERE temperature >= 37.3 AND mode IS DISTINCT FROM '线上'",
            ],
        ),
        denied_here(
            "11",
            "ORDER BY and LIMIT as a probe",
            &[
                "SELECT id_no FROM visits ORDER BY temperature DESC LIMIT 1",
                "SELECT avg(temperature) FROM (SELECT temperature FROM visits ORDER BY id_no LIMIT 20)",
                "SELECT avg(temperature) FROM (SELECT * FROM visits LIMIT 20)",
                "SELECT DISTINCT ON (temperature) id_no FROM visits",
            ],
        ),
        denied_here(
            "12",
            "prefixes by LIKE",
            &[
                "SELECT count(*) FROM cases WHERE severity LIKE '重%'",
                "SELECT count(*) FROM cases WHERE severity ILIKE '%型'",
                "SELECT id_no FROM cases WHERE severity LIKE '重%'",
            ],
        ),
        denied_here(
            "13",
            "patterns and parts of texts",
            &[
                "SELECT count(*) FROM cases WHERE severity ~ '重'",
                "SELECT count(*) FROM cases WHERE severity SIMILAR TO '重%'",
                "SELECT count(*) FROM cases WHERE levenshtein(severity, '重型') = 0",
                "SELECT count(*) FROM cases WHERE substr(severity, 1, 1) = '重'",
                "SELECT count(*) FROM cases WHERE strpos(severity, '重') > 0",
                "SELECT count(*) FROM cases WHERE starts_with(severity, '重')",
            ],
        ),
        denied_here(
            "15",
            "blow-up by a self-join on anything but the person",
            &[
                "SELECT count(*) FROM visits a JOIN visits b ON a.grid_code = b.grid_code WHERE a.temperature >= 37.3",
                "SELECT avg(a.temperature) FROM visits a CROSS JOIN visits b",
                "SELECT avg(a.temperature) FROM visits a JOIN visits b ON a.temperature = b.temperature",
            ],
        ),
        denied_here(
            "20",
            "bins whose origin and width the caller chooses",
            &[
                "SELECT date_trunc('day', visited_at - INTERVAL '3 hours') AS d, avg(temperature) FROM visits GROUP BY 1",
                "SELECT date_trunc('hour', visited_at) AS h, avg(temperature) FROM visits GROUP BY 1",
                "SELECT count(*) FROM visits WHERE temperature >= 37.3 AND visited_at >= TIMESTAMP '2026-01-05 08:00:00'",
            ],
        ),
        denied_here(
            "22",
            "bisection between the edges of bins",
            &[
                "SELECT count(*) FROM visits WHERE temperature < 37.5",
                "SELECT count(*) FROM visits WHERE temperature > 37.3",
                "SELECT count(*) FILTER (WHERE temperature >= 38.1) FROM visits",
                "SELECT count(*) FROM tests WHERE ct_value BETWEEN 20 AND 24.5",
            ],
        ),
        denied_here(
            "24",
            "subqueries correlated on a sealed value",
            &[
                "SELECT count(*) FROM visits v WHERE EXISTS (SELECT 1 FROM tests t WHERE t.ct_value = v.temperature)",
                "SELECT v.id_no FROM visits v WHERE EXISTS (SELECT 1 FROM tests t WHERE t.id_no = v.id_no AND \
                 t.ct_value < 25)",
                "SELECT count(*) FROM visits WHERE temperature IN (SELECT ct_value FROM tests)",
                "SELECT id_no FROM visits WHERE temperature > (SELECT avg(ct_value) FROM tests)",
            ],
        ),
    ]
}

fn denied_here(number: &'static str, name: &'static str, queries: &'static [&'static str]) -> Denied {
    Denied::new(Class::Inference, number, name, queries)
}

/// What two hubs must tell alike although a victim's value differs.
pub async fn equal(worlds: &Worlds) -> Vec<Score> {
    vec![
        fan_out(worlds).await,
        outlier(worlds).await,
        repeated(&worlds.one).await,
        quantiles(&worlds.one).await,
        homogeneity(&worlds.one).await,
        homogeneity_by_filter(&worlds.one).await,
    ]
}

/// Games for a victim's bit: `few` of those that take many queries.
pub async fn games(world: &World, trials: u64, few: u64) -> Vec<Score> {
    vec![
        differencing(world, trials).await,
        differencing_of_means(world, few).await,
        flag_differencing(world, trials).await,
        tracker(world, trials).await,
        partitions(world, few).await,
        cloning(world, few).await,
        edge(world, trials).await,
        edge_with_full_knowledge(world, trials).await,
        one_cell_with_full_knowledge(world, trials).await,
        eight_cells_with_full_knowledge(world, few).await,
    ]
}

fn score(number: &'static str, name: &str, bar: Bar) -> Score {
    Score::new(number, name, Class::Inference, bar)
}

/// How many bad cases there are in the quiet district, with a condition more.
fn bad_cases(condition: &str) -> String {
    format!(
        "SELECT count(DISTINCT id_no) FROM cases WHERE substr(grid_code, 1, 6) = '{QUIET}' AND {IS_BAD} {condition}"
    )
}

/// The condition of having been confirmed on one of the days of these people.
fn on_days_of<'a>(people: impl IntoIterator<Item = &'a Person>) -> String {
    format!("AND confirmed_date IN ({})", days(people))
}

/// 1: the quiet district, and the same but for the victim's own day, on which nobody else was confirmed. Where both
/// counts differ the victim is a bad case. They must never differ.
async fn differencing(world: &World, trials: u64) -> Score {
    let mut score = score("1", "all but one, by a list of days", Bar::Equal);
    for trial in 0..trials {
        let mut attacker = world.start_over(trial);
        let victim = attacker.victim(Person::is_alone, Person::is_bad);
        let others = attacker.others(Person::is_alone, victim);
        let all = attacker.number(&bad_cases("")).await;
        let but_one = attacker.number(&bad_cases(&on_days_of(others))).await;
        score.expect(all.is_some() && all == but_one, || format!("{all:?} with somebody, {but_one:?} without"));
        let guess = if all == but_one { attacker.coin() } else { true };
        score.add(guess == victim.is_bad(), &attacker);
    }
    score
}

/// 1, on a mean: the temperature of all, and of all but one.
async fn differencing_of_means(world: &World, trials: u64) -> Score {
    let mut score = score("1", "all but one, on a mean", Bar::Equal);
    for trial in 0..trials {
        let mut attacker = world.start_over(trial);
        let victim = attacker.victim(Person::is_alone, Person::has_fever);
        let others = attacker.others(Person::is_alone, victim);
        let of_all = format!("SELECT avg(temperature) FROM visits WHERE substr(grid_code, 1, 6) = '{QUIET}'");
        let all = attacker.number(&of_all).await;
        let of_others = format!("{of_all} AND CAST(visited_at AS DATE) IN ({})", days(others));
        let but_one = attacker.number(&of_others).await;
        score.expect(all.is_some() && all == but_one, || format!("{all:?} with somebody, {but_one:?} without"));
        let guess = if all == but_one { attacker.coin() } else { true };
        score.add(guess == victim.has_fever(), &attacker);
    }
    score
}

/// 5: those with fever, and those of them who are not among the cases of the victim's day.
async fn flag_differencing(world: &World, trials: u64) -> Score {
    let mut score = score("5", "all but one, by NOT EXISTS of a day", Bar::Equal);
    for trial in 0..trials {
        let mut attacker = world.start_over(trial);
        let victim = attacker.victim(Person::is_alone, Person::has_fever);
        let fever = format!(
            "SELECT count(DISTINCT v.id_no) FROM visits v WHERE v.{HAS_FEVER} AND substr(v.grid_code, 1, 6) = '{QUIET}'"
        );
        let all = attacker.number(&fever).await;
        let day = victim.confirmed();
        let others = format!(
            "{fever} AND NOT EXISTS (SELECT 1 FROM cases c WHERE c.id_no = v.id_no AND c.confirmed_date = DATE '{day}')"
        );
        let but_one = attacker.number(&others).await;
        score.expect(all.is_some() && all == but_one, || format!("{all:?} with somebody, {but_one:?} without"));
        let guess = if all == but_one { attacker.coin() } else { true };
        score.add(guess == victim.has_fever(), &attacker);
    }
    score
}

/// 6: with T and U, which part all others, q(T ∪ victim) + q(U ∪ victim) − q(all) is the victim's bit and three
/// samples of noise. No two of these sets are near.
async fn tracker(world: &World, trials: u64) -> Score {
    let mut score = score("6", "tracker of boxes: two halves against the whole", Bar::AtMost(0.10));
    for trial in 0..trials {
        let mut attacker = world.start_over(trial);
        let victim = attacker.victim(Person::is_alone, Person::is_bad);
        let others = attacker.others(Person::is_alone, victim);
        let (half, rest) = others.split_at(others.len() / 2);
        let mut told = Vec::new();
        for people in [half, rest] {
            let set = people.iter().copied().chain([victim]);
            told.push(attacker.number(&bad_cases(&on_days_of(set))).await);
        }
        told.push(attacker.number(&bad_cases("")).await);
        let guess = match told[..] {
            [Some(one), Some(other), Some(all)] if one + other - all != 0.5 => one + other - all > 0.5,
            _ => attacker.coin(),
        };
        score.add(guess == victim.is_bad(), &attacker);
    }
    score
}

/// 3: the difference of two sums over parts, of all and of all but the victim, averaged over ways to part them. The
/// parts with the victim and without are near, so nothing is left to average.
async fn partitions(world: &World, trials: u64) -> Score {
    const WAYS: usize = 5;
    let mut score = score("3", "averaging over partitions, with and without one", Bar::Equal);
    for trial in 0..trials {
        let mut attacker = world.start_over(trial);
        let victim = attacker.victim(Person::is_alone, Person::is_bad);
        let others = attacker.others(Person::is_alone, victim);
        let mut differences = Vec::new();
        for _ in 0..WAYS {
            let half: Vec<i32> = (1940..2000).filter(|_| attacker.random.random_bool(0.5)).collect();
            let years: Vec<_> = half.iter().map(|year| format!("DATE '{year}-01-01'")).collect();
            let key = format!("CASE WHEN birth_date IN ({}) THEN 1 ELSE 0 END", years.join(", "));
            let parts = |condition: &str| {
                bad_cases(condition).replace("SELECT ", &format!("SELECT {key} AS part, ")) + " GROUP BY 1 ORDER BY 1"
            };
            let all = attacker.ask(&parts("")).await.groups(1);
            let but_one = attacker.ask(&parts(&on_days_of(others.iter().copied()))).await.groups(1);
            let sum = |parts: &[(String, Option<f64>)]| parts.iter().filter_map(|(_, number)| *number).sum::<f64>();
            differences.push(sum(&all) - sum(&but_one));
        }
        let mean = differences.iter().sum::<f64>() / WAYS as f64;
        score.expect(mean == 0.0, || format!("the parts differ by {differences:?}"));
        let guess = if mean == 0.0 { attacker.coin() } else { mean > 0.5 };
        score.add(guess == victim.is_bad(), &attacker);
    }
    score
}

/// Conditions that all cases of the quiet district meet.
const DUMMIES: [&str; 5] = [
    "AND sex IN ('男', '女')",
    "AND birth_date >= DATE '1930-01-01'",
    "AND confirmed_date BETWEEN DATE '2025-09-01' AND DATE '2026-01-06'",
    "AND division(grid_code, 'community') IN ('420192001001', '420192001002')",
    "AND birth_date IS NOT NULL",
];

/// 32: the noise is drawn anew for conditions that change nothing, with and without the victim, and averaged
/// (Gadotti et al. 2019). One set must get one answer, however it is written.
async fn cloning(world: &World, trials: u64) -> Score {
    let mut score = score("32", "cloning by conditions that change nothing", Bar::Equal);
    for trial in 0..trials {
        let mut attacker = world.start_over(trial);
        let victim = attacker.victim(Person::is_alone, Person::is_bad);
        let but_one = on_days_of(attacker.others(Person::is_alone, victim));
        let mut told = Vec::new();
        for dummy in DUMMIES {
            told.push(attacker.number(&bad_cases(dummy)).await);
            if !dummy.contains("confirmed_date") {
                told.push(attacker.number(&bad_cases(&format!("{dummy} {but_one}"))).await);
            }
        }
        score.expect(told[0].is_some() && told.iter().all(|number| *number == told[0]), || format!("{told:?}"));
        let guess = attacker.coin();
        score.add(guess == victim.is_bad(), &attacker);
    }
    score
}

/// Severe cases of a street on some days, the victim's among them: as few days as meet `enough`, of those others
/// who were confirmed on them.
fn severe_about(attacker: &mut Attacker<'_>, victim: &Person, enough: impl Fn(&[&Person]) -> bool) -> String {
    let street = &victim.grid[..9];
    let others = attacker.others(|person| person.is_case() && person.grid.starts_with(street), victim);
    let on = others.iter().map(|person| person.confirmed()).filter(|day| *day != victim.confirmed());
    let mut order: Vec<_> = on.collect::<BTreeSet<_>>().into_iter().collect();
    order.shuffle(&mut attacker.random);
    let mut chosen = vec![victim.confirmed()];
    loop {
        let among: Vec<&Person> =
            others.iter().copied().filter(|person| chosen.contains(&person.confirmed())).collect();
        let done = enough(&among);
        match order.pop() {
            Some(day) if !done => chosen.push(day),
            _ => break,
        }
    }
    let list: Vec<_> = chosen.iter().map(|day| format!("DATE '{day}'")).collect();
    format!(
        "SELECT count(DISTINCT id_no) FROM cases WHERE substr(grid_code, 1, 9) = '{street}' AND confirmed_date IN ({}) \
         AND severity = '重型'",
        list.join(", ")
    )
}

/// 28: a cell near the threshold. It is shown, and large, rather with the victim than without.
async fn edge(world: &World, trials: u64) -> Score {
    let mut score = score("28", "suppression as a signal", Bar::AtMost(0.10));
    for trial in 0..trials {
        let mut attacker = world.start_over(trial);
        let victim = attacker.victim(Person::is_busy_case, Person::is_severe);
        let sql = severe_about(&mut attacker, victim, |others| others.len() >= 68);
        let told = attacker.number(&sql).await;
        let guess = told.is_some_and(|number| number > 0.2 * 69.0);
        score.add(guess == victim.is_severe(), &attacker);
    }
    score
}

/// 28, by somebody who knows how severe everybody else's case is.
async fn edge_with_full_knowledge(world: &World, trials: u64) -> Score {
    let mut score = score("28", "suppression as a signal, all others known", Bar::Unbounded);
    for trial in 0..trials {
        let mut attacker = world.start_over(trial);
        let victim = attacker.victim(Person::is_busy_case, Person::is_severe);
        let severe = |others: &[&Person]| others.iter().filter(|other| other.is_severe()).count();
        let known = std::cell::Cell::new(0);
        let sql = severe_about(&mut attacker, victim, |others| {
            known.set(severe(others));
            known.get() >= 13
        });
        let told = attacker.number(&sql).await;
        let guess = likelihood(told, known.get() + 1) > likelihood(told, known.get());
        score.add(guess == victim.is_severe(), &attacker);
    }
    score
}

/// One cell, of which all others are known: what noise of this size leaves (reported: 64 %).
async fn one_cell_with_full_knowledge(world: &World, trials: u64) -> Score {
    let mut score = score("-", "one cell, all others known", Bar::Unbounded);
    for trial in 0..trials {
        let mut attacker = world.start_over(trial);
        let victim = attacker.victim(Person::is_alone, Person::is_bad);
        let known = attacker.others(Person::is_alone, victim).iter().filter(|other| other.is_bad()).count();
        let told = attacker.number(&bad_cases("")).await;
        let guess = likelihood(told, known + 1) > likelihood(told, known);
        score.add(guess == victim.is_bad(), &attacker);
    }
    score
}

/// Eight unrelated cells, of which all others are known (reported: 84 %).
async fn eight_cells_with_full_knowledge(world: &World, trials: u64) -> Score {
    let mut score = score("-", "eight cells, all others known", Bar::Unbounded);
    for trial in 0..trials {
        let mut attacker = world.start_over(trial);
        let victim = attacker.victim(Person::is_alone, Person::is_bad);
        let mut odds = 0.0;
        for _ in 0..8 {
            let others = attacker.others(Person::is_alone, victim);
            let half = &others[..70];
            let known = half.iter().filter(|other| other.is_bad()).count();
            let set = half.iter().copied().chain([victim]);
            let told = attacker.number(&bad_cases(&on_days_of(set))).await;
            odds += likelihood(told, known + 1).ln() - likelihood(told, known).ln();
        }
        let guess = if odds == 0.0 { attacker.coin() } else { odds > 0.0 };
        score.add(guess == victim.is_bad(), &attacker);
    }
    score
}

/// How likely it is that this is told of a set of so many people: noise is public but for its key.
fn likelihood(told: Option<f64>, people: usize) -> f64 {
    const NOISE: [f64; 5] = [0.2803, 0.2191, 0.1047, 0.0306, 0.0054];
    let of = |noise: i64| NOISE.get(usize::try_from(noise.abs()).unwrap_or(5)).copied().unwrap_or(1e-6);
    let people = i64::try_from(people).unwrap_or(0);
    match told {
        Some(number) => of(number as i64 - people),
        None => (-4..=4).filter(|noise| people + noise < 14).map(of).sum::<f64>().max(1e-6),
    }
}

/// 2: one question again and again, in other words and another order. Everything must come out to the byte.
async fn repeated(world: &World) -> Score {
    let mut score = score("2", "averaging over repeats and rewrites", Bar::Equal);
    let mut attacker = world.start_over(0);
    let mut told = Vec::new();
    for sql in [
        bad_cases(""),
        bad_cases(""),
        bad_cases("AND severity IS NOT NULL"),
        bad_cases("").replace("id_no) FROM cases", "c.id_no) FROM cdc.cases AS c"),
        format!(
            "SELECT count(DISTINCT id_no) FROM cases WHERE {IS_BAD} AND left(grid_code, 6) = '{QUIET}' AND sex IN ('女', '男')"
        ),
        format!(
            "WITH c AS (SELECT * FROM cases WHERE {IS_BAD}) SELECT count(DISTINCT id_no) FROM c WHERE \
             '{QUIET}' = substr(grid_code, 1, 6)"
        ),
    ] {
        told.push(attacker.ask(&sql).await);
    }
    score.expect(told.iter().all(|one| one.is_answered() && one.number().is_some()), || format!("{told:?}"));
    score.expect(told[0].text == told[1].text, || "the same question was answered in other words".into());
    score.expect(told.iter().all(|one| one.rows == told[0].rows), || format!("{told:?}"));
    score.add_queries(attacker.asked, attacker.refused);
    score
}

/// 15: the guest of the hostel is joined with itself, so that its fifty visits weigh as 2,500. It counts as one
/// person, and no more in a sum than those next to it: the sum does not tell how hot it is.
async fn fan_out(worlds: &Worlds) -> Score {
    let mut score = score("15", "one person's weight by joins with itself", Bar::Equal);
    let from = format!(
        "FROM visits a JOIN visits b ON a.id_no = b.id_no WHERE a.grid_code = '{HOSTEL}' AND b.grid_code = '{HOSTEL}'"
    );
    let questions = [
        format!("SELECT count(DISTINCT a.id_no), sum(a.temperature) {from}"),
        format!("SELECT avg(a.temperature) {from}"),
        format!("SELECT sum(temperature), avg(temperature) FROM visits WHERE grid_code = '{HOSTEL}'"),
    ];
    alike(&mut score, worlds, &questions).await;
    let attacker = worlds.one.start_over(0);
    let people = worlds.one.ask(&questions[0]).await.number();
    score.expect(people.is_none_or(|people| (people - 31.0).abs() <= 4.0), || format!("{people:?} people of 31"));
    drop(attacker);
    score
}

/// 26: one buyer pays as much as all others together, or a hundred times as much. Neither sum nor mean tells how
/// much it was: it is flattened, or nothing is told at all.
async fn outlier(worlds: &Worlds) -> Score {
    let mut score = score("26", "an outlier through SUM and AVG", Bar::Equal);
    let questions = [
        "SELECT category, count(*), sum(amount), avg(amount) FROM sales GROUP BY 1 ORDER BY 1".to_owned(),
        "SELECT sum(amount) FROM sales WHERE category = '抗菌'".to_owned(),
        "SELECT sum(amount) FROM sales WHERE category IN ('退热', '止咳')".to_owned(),
    ];
    alike(&mut score, worlds, &questions).await;
    score
}

/// Notes where two hubs answer differently, or do not answer.
async fn alike(score: &mut Score, worlds: &Worlds, questions: &[String]) {
    for (sql, (one, other)) in questions.iter().zip(worlds.tell(ANALYST, questions).await) {
        score.add_queries(1, u64::from(!one.is_answered()));
        score.expect(one.is_answered(), || format!("{sql}: {}", one.text));
        score.expect(one.text == other.text, || format!("{sql}: {} and {}", one.text, other.text));
    }
}

/// 22: quantiles at many places. They must be those of the histogram over registered bins, which says nothing
/// more about where between two edges somebody is.
async fn quantiles(world: &World) -> Score {
    let mut score = score("22", "many quantiles, against the released histogram", Bar::Equal);
    let mut attacker = world.start_over(0);
    let of = format!("FROM visits WHERE substr(grid_code, 1, 6) = '{BUSY}'");
    let bins: Vec<_> = std::iter::once(format!("temperature < {}", EDGES[0]))
        .chain(EDGES.windows(2).map(|ends| format!("temperature >= {} AND temperature < {}", ends[0], ends[1])))
        .chain([format!("temperature >= {}", EDGES[EDGES.len() - 1])])
        .map(|condition| format!("count(temperature) FILTER (WHERE {condition})"))
        .collect();
    let bins = bins.join(", ");
    let counts = attacker.ask(&format!("SELECT {bins} {of}")).await.numbers();
    let parts: Vec<f64> = (1..20).map(|part| f64::from(part) / 20.0).collect();
    let calls: Vec<_> = parts
        .iter()
        .enumerate()
        .map(|(at, part)| format!("percentile_cont({part}) WITHIN GROUP (ORDER BY temperature) AS p{at}"))
        .collect();
    let told = attacker.ask(&format!("SELECT {} {of}", calls.join(", "))).await;
    score.expect(told.is_answered(), || told.text.clone());
    for (part, told) in parts.iter().zip(told.numbers()) {
        let expected = histogram(&counts, *part);
        // A tenth is all that the column's own type can say.
        let near = match (told, expected) {
            (Some(told), Some(expected)) => (told - expected).abs() < 0.051,
            (told, expected) => told.is_none() && expected.is_none(),
        };
        score.expect(near, || format!("{told:?} at {part}, and {expected:?} by {counts:?}"));
    }
    score.add_queries(attacker.asked, attacker.refused);
    score
}

/// Where the registered bins of temperature end.
const EDGES: [f64; 8] = [35.5, 36.0, 36.5, 37.0, 37.3, 38.0, 39.0, 40.0];

/// The value below which a part of a histogram over these edges lies; nothing in the bars that are open.
fn histogram(counts: &[Option<f64>], part: f64) -> Option<f64> {
    let bars: Vec<_> = counts.iter().enumerate().filter_map(|(at, count)| Some((at, (*count)?))).collect();
    let wanted = part * bars.iter().map(|(_, count)| count).sum::<f64>();
    let mut below = 0.0;
    for (at, count) in bars {
        if below + count >= wanted {
            let (low, high) = (EDGES.get(at.checked_sub(1)?)?, EDGES.get(at)?);
            return Some(low + (high - low) * (wanted - below) / count);
        }
        below += count;
    }
    None
}

/// 29: all cases of a community are mild, so a count of its mild cases that is as large as the community would
/// say so of each. It must not be told apart from its whole.
async fn homogeneity(world: &World) -> Score {
    let mut score = score("29", "a group that all share one sealed value", Bar::Equal);
    let mut attacker = world.start_over(0);
    let groups = attacker
        .ask("SELECT substr(grid_code, 1, 12), severity, count(DISTINCT id_no) FROM cases GROUP BY 1, 2")
        .await
        .groups(2);
    score.expect(groups.len() > 8, || format!("only {groups:?} are told"));
    let telling: Vec<_> = groups.iter().filter(|(key, _)| key.starts_with(UNIFORM)).collect();
    score.expect(telling.is_empty(), || format!("{telling:?}"));
    for severity in ["轻型", "重型"] {
        let sql = format!(
            "SELECT count(DISTINCT id_no) FROM cases WHERE substr(grid_code, 1, 12) = '{UNIFORM}' AND severity = '{severity}'"
        );
        let told = attacker.number(&sql).await;
        score.expect(told.is_none(), || format!("{told:?} cases are {severity}"));
    }
    score.add_queries(attacker.asked, attacker.refused);
    score
}

/// 29, where the sealed condition stands in FILTER, CASE or a mean of ones and zeros and not in WHERE.
async fn homogeneity_by_filter(world: &World) -> Score {
    let mut score = score("29", "the same through FILTER and CASE", Bar::Equal);
    let mut attacker = world.start_over(0);
    for call in [
        "count(DISTINCT id_no) FILTER (WHERE severity = '轻型')",
        "count(DISTINCT CASE WHEN severity = '轻型' THEN id_no END)",
        "sum(CASE WHEN severity = '轻型' THEN 1 ELSE 0 END)",
        "avg(CASE WHEN severity = '轻型' THEN 1 ELSE 0 END)",
    ] {
        let told =
            attacker.number(&format!("SELECT {call} FROM cases WHERE substr(grid_code, 1, 12) = '{UNIFORM}'")).await;
        score.expect(told.is_none(), || format!("{call} is {told:?} in a community whose cases are all mild"));
    }
    score.add_queries(attacker.asked, attacker.refused);
    score
}

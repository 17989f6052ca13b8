//! Attacks through something other than the answer: numbers 8 to 10, 19, 30 and 31. How long replies take is
//! measured in [`super::timing`].

use serde_json::json;

use super::{
    Denied,
    score::{Bar, Class, Score},
    world::{ANALYST, BUSY, HAS_FEVER, IS_BAD, World, Worlds},
};

pub fn denied() -> Vec<Denied> {
    let class = Class::Channel;
    vec![
        Denied::new(
            class,
            "8",
            "errors that depend on a sealed value",
            &[
                "SELECT count(*) FROM visits WHERE 1 / (temperature - 37.3) > 0",
                "SELECT sum(CAST(temperature AS INT)) FROM visits",
                "SELECT avg(temperature * 10000000000000000000000) FROM visits",
                "SELECT count(*) FROM visits WHERE temperature = (SELECT temperature FROM visits)",
                "SELECT count(*) FROM cases WHERE CAST(severity AS INT) > 0",
                "SELECT count(*) FROM cases WHERE regexp_like(severity, '(')",
                "SELECT count(*) FROM cases WHERE CAST(severity AS DATE) = DATE '2026-01-01'",
            ],
        ),
        Denied::new(
            class,
            "9",
            "errors behind CASE and COALESCE",
            &[
                "SELECT sum(CASE WHEN temperature >= 37.3 THEN 1 / 0 ELSE 1 END) FROM visits",
                "SELECT count(CASE WHEN temperature >= 37.3 THEN 1 / (temperature - temperature) END) FROM visits",
                "SELECT count(*) FROM visits WHERE coalesce(temperature, 1 / 0) >= 37.3",
                "SELECT CASE WHEN temperature >= 37.3 THEN 1 / 0 ELSE 1 END FROM visits",
            ],
        ),
        Denied::new(
            class,
            "10",
            "heavy work where a sealed value is met",
            &[
                "SELECT count(*) FROM cases WHERE CASE WHEN severity = '重型' THEN levenshtein(severity, severity) = 0 \
                 ELSE false END",
                "SELECT count(*) FROM cases WHERE severity = '重型' AND length(repeat('x', 100000000)) > 0",
                "SELECT count(*) FROM cases WHERE severity = '重型' AND EXISTS (SELECT 1 FROM visits a, visits b, \
                 visits c)",
                "SELECT count(*) FROM cases c WHERE c.severity = '重型' AND c.id_no IN (SELECT a.id_no FROM visits a \
                 CROSS JOIN visits b)",
            ],
        ),
        Denied::new(
            class,
            "19",
            "earlier versions and the feed of changes",
            &[
                "SELECT avg(temperature) FROM visits VERSION AS OF 1",
                "SELECT avg(temperature) FROM visits FOR SYSTEM_TIME AS OF '2026-01-05 00:00:00'",
                "SELECT avg(temperature) FROM \"visits@v1\"",
                "SELECT avg(temperature) FROM table_changes('community.visits', 0)",
                "SELECT _change_type, avg(temperature) FROM visits GROUP BY 1",
                "SELECT __arrival, avg(temperature) FROM visits GROUP BY 1",
                "SELECT avg(temperature) FROM visits WHERE __batch IS NOT NULL",
                "SELECT avg(temperature) FROM visits WHERE __subject = 1",
            ],
        )
        .unknown(),
        Denied::new(
            class,
            "30",
            "metadata",
            &[
                "EXPLAIN ANALYZE SELECT avg(temperature) FROM visits",
                "EXPLAIN VERBOSE SELECT avg(temperature) FROM visits",
                "DESCRIBE visits",
                "SHOW TABLES",
                "SELECT * FROM information_schema.columns",
                "SELECT * FROM pg_catalog.pg_stats",
                "SELECT name FROM cases",
                "SELECT nonsense FROM cases",
            ],
        )
        .unknown(),
        Denied::new(
            class,
            "31",
            "ways round the gate: views, prepared statements, writes",
            &[
                "CREATE VIEW v AS SELECT temperature FROM visits",
                "CREATE TABLE t AS SELECT temperature FROM visits",
                "SELECT temperature INTO t FROM visits",
                "PREPARE p AS SELECT temperature FROM visits",
                "COPY (SELECT temperature FROM visits) TO 'visits.csv'",
                "SELECT temperature FROM (WITH v AS (SELECT * FROM visits) SELECT * FROM v) AS w",
                "SELECT avg(temperature) FROM visits TABLESAMPLE (50 PERCENT)",
            ],
        ),
    ]
}

/// What must be told alike whatever the victim's value.
pub async fn equal(worlds: &Worlds) -> Vec<Score> {
    vec![metadata(worlds).await, statistics(&worlds.one).await]
}

/// 30: plans, explanations, the catalogue, and errors about what is hidden or not there.
async fn metadata(worlds: &Worlds) -> Score {
    let mut score = Score::new("30", "plans, explanations, catalogue", Class::Channel, Bar::Equal);
    let protected = format!("SELECT mode, count(*), avg(temperature) FROM visits WHERE {HAS_FEVER} GROUP BY 1");
    let explained = format!("EXPLAIN {protected}");
    let one = worlds.tell(ANALYST, &[explained]).await;
    score.expect(one[0].0.is_answered(), || one[0].0.text.clone());
    score.expect(one[0].0.text == one[0].1.text, || format!("{} and {}", one[0].0.text, one[0].1.text));
    let mut explanations = Vec::new();
    let mut catalogues = Vec::new();
    for world in [&worlds.one, &worlds.other] {
        let token = world.token();
        let body = json!({"sql": protected, "purpose": ANALYST.1});
        let mut explanation = world.hub.post(token, "/v1/explain", &body, "application/json").await.json();
        for member in ["query_id", "log_index"] {
            explanation.as_object_mut().unwrap().shift_remove(member);
        }
        explanations.push(explanation.to_string());
        let path = format!("/v1/datasets?purpose={}", ANALYST.1);
        catalogues.push(world.hub.get(token, &path).await.text());
    }
    score.expect(explanations[0] == explanations[1], || explanations.join(" and "));
    score.expect(explanations[0].contains("community.visits.temperature"), || explanations[0].clone());
    score.expect(catalogues[0] == catalogues[1], || "the catalogues differ".into());
    // A hidden column and one that never was, under names of one length.
    let hidden = worlds.one.ask("SELECT phone FROM cases").await.text;
    let never = worlds.one.ask("SELECT phony FROM cases").await.text;
    score.expect(hidden.replace("phone", "phony") == never, || format!("{hidden} and {never}"));
    score.add_queries(6, 2);
    score
}

/// 31: a count beside a sealed column comes from no statistic of the files, and conditions above a protected aggregate
/// see released numbers only: over many keys the numbers vary as noise does.
async fn statistics(world: &World) -> Score {
    let mut score = Score::new("31", "counts from statistics, filters pushed down", Class::Channel, Bar::Equal);
    let cases = world.city.people.iter().filter(|person| person.grid.starts_with(BUSY) && person.is_case());
    let there = cases.count() as f64;
    let count =
        format!("SELECT count(DISTINCT id_no), count(severity) FROM cases WHERE substr(grid_code, 1, 6) = '{BUSY}'");
    let above = format!(
        "SELECT n FROM (SELECT substr(grid_code, 1, 6) AS place, count(DISTINCT id_no) AS n, count(severity) FROM cases \
         WHERE {IS_BAD} GROUP BY 1) AS g WHERE place = '{BUSY}' AND 1000 / (n - 5000) = 0"
    );
    let mut counts = Vec::new();
    let mut bad = Vec::new();
    for trial in 0..12 {
        let mut attacker = world.start_over(trial);
        counts.extend(attacker.number(&count).await);
        bad.extend(attacker.number(&above).await);
        score.add_queries(attacker.asked, attacker.refused);
    }
    for told in [&counts, &bad] {
        score.expect(told.len() == 12, || format!("only {told:?} are told"));
        score.expect(told.iter().any(|number| *number != told[0]), || format!("{told:?} carry no noise"));
    }
    score.expect(counts.iter().all(|number| (number - there).abs() <= 4.0), || format!("{counts:?} of {there}"));
    score
}

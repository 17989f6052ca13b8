//! A10 to A17: ways past the policy that do not go through the planner.

use std::{path::Path, sync::Arc};

use chrono::{DateTime, TimeDelta, Utc};
use gridhub::{
    dataset::{DatasetName, contract, scope::Scope},
    front::doors::Addresses,
    hub::Hub,
    policy::Policy,
};
use serde_json::json;
use uuid::Uuid;

use super::{listing, refusal, shape, whole};
use crate::{
    doors::support::{Site, batches_of_flight, connect, header, status, texts_of_batches, told},
    support::{CSV, TestClock, TestHub, changed, fixture, opening, repository},
};

/// The repository's policies without the files for which `leave_out` holds.
fn policies_without(into: &Path, leave_out: impl Fn(&str) -> bool) -> std::path::PathBuf {
    let folder = into.join("policies");
    std::fs::create_dir_all(&folder).unwrap();
    for entry in std::fs::read_dir(repository().join("policies")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if !leave_out(&name) {
            std::fs::copy(&path, folder.join(name)).unwrap();
        }
    }
    folder
}

/// Whether a hub opens on the policies that `spoil` leaves in a copy of the repository's.
async fn opens(spoil: impl FnOnce(&Path)) -> bool {
    let folder = tempfile::tempdir().unwrap();
    let policies = policies_without(folder.path(), |_| false);
    spoil(&policies);
    let mut opening = opening(folder.path(), &TestClock::at("2026-01-07T01:00:00Z"));
    opening.policies = policies;
    Hub::open(opening).await.is_ok()
}

/// Where no policy is there, or none that can be read, everything is shown. (A10: ClickHouse#93968, trino#16458,
/// BigQuery's last row policy)
#[tokio::test(flavor = "multi_thread")]
async fn a10_without_policy_nothing_is_open() {
    let mut hub = TestHub::with_city().await;
    let kept = tempfile::tempdir().unwrap();
    let empty = policies_without(kept.path(), |name| name.ends_with(".cedar"));
    hub.restart_with(|opening| opening.policies = empty).await;
    for (caller, purpose) in [
        ("health-analyst", "epidemiology"),
        ("cdc-epidemiologist", "case-management"),
        ("grid-worker", "case-management"),
        ("community-uploader", "quality-control"),
        ("hub-admin", "audit"),
        ("compliance-officer", "audit"),
    ] {
        let token = hub.token(caller);
        let listed = hub.get(&token, &format!("/v1/datasets?purpose={purpose}")).await;
        assert_eq!(listed.json(), json!({ "datasets": [] }), "{caller}");
        for table in ["cases", "cdc.cases", "community.visits", "divisions", "nothing.nothing"] {
            let reply = hub.ask_as(&token, purpose, &format!("SELECT count(*) FROM {table}"), "").await;
            assert_eq!(refusal(&reply), "unknown-table", "{caller} {table}");
        }
        let log = hub.get(&token, &format!("/v1/log/entries?purpose={purpose}")).await;
        assert_eq!(refusal(&log), "not-allowed", "{caller}");
        let pushed = hub.push(caller, "community.visits", CSV, fixture("community.visits.csv")).await;
        assert_eq!(refusal(&pushed), "not-found", "{caller}");
    }

    assert!(opens(|_| {}).await, "the copy itself is whole");
    assert!(!opens(|folder| std::fs::remove_dir_all(folder).unwrap()).await, "no folder");
    assert!(!opens(|folder| std::fs::remove_file(folder.join("schema.cedarschema")).unwrap()).await);
    assert!(!opens(|folder| std::fs::remove_file(folder.join("entities.json")).unwrap()).await);
    assert!(!opens(|folder| std::fs::write(folder.join("entities.json"), "[]").unwrap()).await);
    assert!(!opens(|folder| std::fs::write(folder.join("entities.json"), "[").unwrap()).await);
    assert!(!opens(|folder| std::fs::write(folder.join("more.cedar"), "permit(").unwrap()).await, "half written");
    assert!(!opens(|folder| std::fs::write(folder.join("more.cedar"), [0xff, 0xfe]).unwrap()).await, "no text");
    assert!(!opens(|folder| std::fs::create_dir(folder.join("more.cedar")).unwrap()).await, "no file");
    let unknown_action = "forbid (principal, action == Action::\"rows:glance\", resource);";
    assert!(!opens(|folder| std::fs::write(folder.join("more.cedar"), unknown_action).unwrap()).await, "newer words");
    let cut = std::fs::read_to_string(repository().join("policies/health_bureau.cedar")).unwrap();
    let cut = cut[..cut.find("unless").unwrap()].to_owned();
    assert!(!opens(|folder| std::fs::write(folder.join("health_bureau.cedar"), cut).unwrap()).await, "being replaced");
}

/// Whoever is not listed is let in as if no rule spoke of them. (A10)
#[tokio::test(flavor = "multi_thread")]
async fn a10_nobody_in_particular_gets_nothing() {
    let mut hub = TestHub::with_city().await;
    let garbage = hub.get("ghub_garbage", "/v1/datasets").await;
    assert_eq!(refusal(&garbage), "unauthenticated");
    let nobody = hub.token("nobody");
    let analyst = hub.token("health-analyst");
    assert_eq!(hub.get(&nobody, "/v1/datasets").await.text(), garbage.text());
    assert_eq!(hub.ask_as(&nobody, "epidemiology", "SELECT 1", "").await.text(), garbage.text());
    assert_eq!(hub.ask_as(&analyst, "epidemiology", "SELECT 1", "").await.status, 200);
    // A caller who is no longer listed is nobody, token or not.
    let folder = tempfile::tempdir().unwrap();
    let policies = changed(folder.path(), "policies", "entities.json", |text| {
        let kept: Vec<_> = text.lines().filter(|line| !line.contains("\"health-analyst\"")).collect();
        kept.join("\n")
    });
    hub.restart_with(|opening| opening.policies = policies).await;
    assert_eq!(hub.ask_as(&analyst, "epidemiology", "SELECT 1", "").await.text(), garbage.text());
    // A grant that has run out is none.
    hub.restart().await;
    let end: DateTime<Utc> = "2029-12-31T00:00:00Z".parse().unwrap();
    hub.clock.step(end - hub.clock.now() + TimeDelta::seconds(1));
    let listed = hub.get(&hub.token("health-analyst"), "/v1/datasets?purpose=epidemiology").await.json();
    let names: Vec<_> = listed["datasets"].as_array().unwrap().iter().map(|d| d["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["health_bureau.vaccinations", "platform.divisions"]);
    for (caller, purpose, table) in [
        ("health-analyst", "epidemiology", "cdc.cases"),
        ("health-analyst", "supply-planning", "pharmacy.sales"),
        ("pharmacy-planner", "supply-planning", "cdc.cases"),
        ("grid-worker", "case-management", "cdc.cases"),
        ("cdc-epidemiologist", "contact-tracing", "community.residents"),
    ] {
        let sql = format!("SELECT count(*) FROM {table}");
        assert_eq!(refusal(&hub.ask(caller, purpose, &sql).await), "unknown-table", "{caller} {table}");
    }
}

/// A file of prohibitions gets lost, and what it forbade is open. (A10: the rule of last resort must not be the only
/// one)
#[test]
fn a10_a_lost_file_of_prohibitions_gives_nothing() {
    let datasets = contract::load_folder(&repository().join("schemas")).unwrap();
    let now: DateTime<Utc> = "2026-01-07T01:00:00Z".parse().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let lost = policies_without(folder.path(), |name| name == "health_bureau.cedar");
    let before = Policy::load(&repository().join("policies"), &datasets, Arc::new(move || now)).unwrap();
    let after = Policy::load(&lost, &datasets, Arc::new(move || now)).unwrap();
    for name in ["cdc.cases", "hospital.tests"] {
        let dataset = &datasets[&DatasetName::parse(name).unwrap()];
        for caller in before.callers() {
            for purpose in &caller.purposes {
                let had = before.explain(caller, dataset, purpose).unwrap();
                let has = after.explain(caller, dataset, purpose).unwrap();
                for ((field, had, _), (_, has, _)) in had.fields.iter().zip(&has.fields) {
                    assert!(has <= had, "{} gains {name}.{field} for {purpose}", caller.id);
                }
                for (had, has) in [(had.read, has.read), (had.aggregate, has.aggregate), (had.write, has.write)] {
                    assert!(has == had || has == Scope::Nothing, "{} gains rows of {name}: {has}", caller.id);
                }
            }
        }
    }
}

/// A named query over a masked table is bound to the rights of whoever made it. (A11: GHSA-2g9q-chq2-w8qw)
#[tokio::test(flavor = "multi_thread")]
async fn a11_masks_hold_however_deep() {
    let hub = TestHub::with_city().await;
    let token = hub.token("health-analyst");
    let ask = async |sql: &str| hub.ask_as(&token, "epidemiology", sql, "").await;
    let shown = ask("SELECT case_id, birth_date, grid_code FROM cases ORDER BY 1").await.rows();
    assert_eq!(shown.lines().count(), 14);
    assert!(
        shown
            .lines()
            .all(|row| row.contains("-01-01\",\"420191001001\"]") || row.contains("-01-01\",\"420191001002\"]"))
    );
    for sql in [
        "WITH k AS (SELECT * FROM (SELECT case_id, birth_date, grid_code FROM cases)) SELECT * FROM k ORDER BY case_id",
        "WITH a AS (SELECT case_id, birth_date b, grid_code g FROM cdc.cases), c AS (SELECT * FROM a) SELECT case_id, b, \
         g FROM c ORDER BY 1",
        "SELECT * FROM (SELECT * FROM (SELECT case_id, birth_date, grid_code FROM cases) x) y ORDER BY case_id",
        "SELECT case_id, (SELECT max(k.birth_date) FROM cases k WHERE k.case_id = c.case_id), c.grid_code FROM cases c \
         ORDER BY 1",
        "SELECT case_id, birth_date, grid_code FROM cases UNION SELECT case_id, birth_date, grid_code FROM cases \
         ORDER BY 1",
        "SELECT case_id, birth_date, grid_code FROM cases INTERSECT SELECT case_id, birth_date, grid_code FROM cases \
         ORDER BY 1",
        "SELECT DISTINCT case_id, birth_date, grid_code FROM cases ORDER BY 1",
        "SELECT case_id, max(birth_date), min(grid_code) FROM cases GROUP BY 1 ORDER BY 1",
        "SELECT case_id, first_value(birth_date) OVER (PARTITION BY case_id), grid_code FROM cases ORDER BY 1",
        "SELECT l.case_id, r.birth_date, l.grid_code FROM cases l JOIN cases r USING (case_id) ORDER BY 1",
        "WITH RECURSIVE k AS (SELECT case_id, birth_date, grid_code, 0 AS n FROM cases UNION ALL SELECT case_id, \
         birth_date, grid_code, n + 1 FROM k WHERE n < 1) SELECT case_id, birth_date, grid_code FROM k WHERE n = 1 \
         ORDER BY 1",
    ] {
        assert_eq!(ask(sql).await.rows(), shown, "{sql}");
    }
    for sql in ["CREATE VIEW v AS SELECT * FROM cases", "CREATE MATERIALIZED VIEW v AS SELECT * FROM cases"] {
        assert_eq!(refusal(&ask(sql).await), "refused read-only", "{sql}");
    }
}

/// Spellings of a name that a rule would compare with less care than the catalogue does. Each with a name that
/// never was, of the same length.
fn spellings(word: &str) -> Vec<String> {
    let wide: String = word.chars().map(|c| char::from_u32(u32::from(c) - 0x61 + 0xff41).unwrap_or(c)).collect();
    let first = &word[..1];
    let rest = &word[1..];
    vec![
        word.to_owned(),
        word.to_uppercase(),
        format!("\"{word}\""),
        format!("\"{}\"", word.to_uppercase()),
        format!("\"{}{rest}\"", first.to_uppercase()),
        format!("\"{word} \""),
        format!("\" {word}\""),
        format!("\"{word}.\""),
        format!("\"{word}\u{0}\""),
        format!("{word}\u{200b}"),
        format!("{first}\u{200b}{rest}"),
        format!("\"{first}\u{200d}{rest}\""),
        format!("\"\u{feff}{word}\""),
        format!("{word}\u{301}"),
        format!("\"{word}\u{a0}\""),
        wide.clone(),
        format!("\"{wide}\""),
        word.replace('e', "\u{435}"),
        format!("\"{}\"", word.replace('s', "\u{17f}")),
        format!("{word}/**/"),
        format!("U&\"{word}\""),
        format!("'{word}'"),
        format!("`{word}`"),
        format!("[{word}]"),
    ]
}

/// All spellings in the first two places, the plainest in the others.
fn tried(place: usize) -> usize {
    if place < 2 { usize::MAX } else { 6 }
}

/// A rule bound to a name does not hold for another spelling of it. (A12: GHSA-758m-6g3q-g3hh)
#[tokio::test(flavor = "multi_thread")]
async fn a12_no_spelling_finds_what_is_hidden() {
    let hub = TestHub::with_city().await;
    // Residents are not there for a pharmacy.
    let planner = hub.token("pharmacy-planner");
    for (at, place) in [
        "SELECT count(*) FROM {}",
        "SELECT count(*) FROM community.{}",
        "SELECT count(*) FROM \"community\".{}",
        "SELECT count(*) FROM \"Community\".{}",
        "SELECT count(*) FROM COMMUNITY.{}",
        "SELECT count(*) FROM community . {}",
        "SELECT count(*) FROM hub.community.{}",
        "SELECT count(*) FROM HUB.COMMUNITY.{}",
        "SELECT count(*) FROM \"hub\".\"community\".{}",
        "SELECT count(*) FROM public.{}",
        "SELECT count(*) FROM hub.public.{}",
        "SELECT count(*) FROM datafusion.community.{}",
        "SELECT count(*) FROM hub.hub.community.{}",
        "SELECT count(*) FROM community.community.{}",
        "SELECT count(*) FROM cdc.{}",
        "SELECT count(*) FROM community.{}.x",
    ]
    .iter()
    .enumerate()
    {
        for (hidden, nowhere) in spellings("residents").iter().zip(spellings("residentz")).take(tried(at)) {
            let hidden = hub.ask_as(&planner, "", &place.replace("{}", hidden), "").await;
            let nowhere = hub.ask_as(&planner, "", &place.replace("{}", &nowhere), "").await;
            assert!(hidden.status >= 400, "{place}: {}", hidden.text());
            assert_eq!(shape(&hidden), shape(&nowhere), "{place}");
        }
    }
    for (hidden, nowhere) in [
        ("\"community.residents\"", "\"community.residentz\""),
        ("\"hub.community.residents\"", "\"hub.community.residentz\""),
        ("'community.residents'", "'community.residentz'"),
        ("community.\"residents\"\"\"", "community.\"residentz\"\"\""),
    ] {
        let hidden = hub.ask_as(&planner, "", &format!("SELECT 1 FROM {hidden}"), "").await;
        let nowhere = hub.ask_as(&planner, "", &format!("SELECT 1 FROM {nowhere}"), "").await;
        assert!(hidden.status >= 400);
        assert_eq!(shape(&hidden), shape(&nowhere));
    }
    for path in [
        "community.{}",
        "Community.{}",
        "community%2E{}",
        "community.{}.",
        "community.{}%20",
        "%20community.{}",
        "community.{}%00",
        "community.{}%EF%BC%8E",
        "hub.community.{}",
        "{}",
        "community.{}%2F..",
    ] {
        let hidden = hub.get(&planner, &format!("/v1/datasets/{}", path.replace("{}", "residents"))).await;
        let nowhere = hub.get(&planner, &format!("/v1/datasets/{}", path.replace("{}", "residentz"))).await;
        assert_eq!((hidden.status, shape(&hidden)), (404, shape(&nowhere)), "{path}");
    }

    // The name of a case is not there for an analyst, in whatever letters.
    let analyst = hub.token("health-analyst");
    for (at, place) in [
        "SELECT {} FROM cases",
        "SELECT count(*) FROM cases WHERE {} = 'x'",
        "SELECT c.{} FROM cases c",
        "SELECT cases.{} FROM cases",
        "SELECT cases.{} FROM cdc.cases",
        "SELECT cdc.cases.{} FROM cdc.cases",
        "SELECT hub.cdc.cases.{} FROM hub.cdc.cases",
        "SELECT \"CASES\".{} FROM cases AS \"CASES\"",
        "SELECT (c).{} FROM cases c",
        "SELECT x.{} FROM (SELECT * FROM cases) x",
        "SELECT sex FROM cases ORDER BY {}",
        "SELECT c.sex FROM cases c JOIN cases k USING ({})",
    ]
    .iter()
    .enumerate()
    {
        for (hidden, nowhere) in spellings("name").iter().zip(spellings("nbme")).take(tried(at)) {
            // In single quotes it is a text, which is there for everybody.
            if hidden.starts_with('\'') {
                continue;
            }
            let hidden = hub.ask_as(&analyst, "epidemiology", &place.replace("{}", hidden), "").await;
            let nowhere = hub.ask_as(&analyst, "epidemiology", &place.replace("{}", &nowhere), "").await;
            assert!(hidden.status >= 400, "{place}: {}", hidden.text());
            assert_eq!(shape(&hidden), shape(&nowhere), "{place}");
        }
    }
    // Spellings that SQL takes for the same name get the same, masks included.
    let sql = "SELECT case_id, birth_date, grid_code FROM {} ORDER BY 1";
    let shown = hub.ask_as(&analyst, "epidemiology", &sql.replace("{}", "cases"), "").await.rows();
    for spelled in
        ["CASES", "Cdc.Cases", "cdc.\"cases\"", "\"cdc\".cases", "hub.cdc.cases", "public.cases", "HUB.PUBLIC.CASES"]
    {
        let rows = hub.ask_as(&analyst, "epidemiology", &sql.replace("{}", spelled), "").await.rows();
        assert_eq!(rows, shown, "{spelled}");
    }
}

/// A function that nobody thought of when the list of forbidden ones was written. (A13: CVE-2024-39887)
#[tokio::test(flavor = "multi_thread")]
async fn a13_functions_are_listed_or_refused() {
    let hub = TestHub::with_city().await;
    let token = hub.token("health-analyst");
    let ask = async |sql: String| hub.ask_as(&token, "epidemiology", &sql, "").await;
    for (at, place) in [
        "SELECT {}(mode) FROM visits",
        "SELECT count(*) FROM visits WHERE {}(mode) IS NOT NULL",
        "SELECT mode FROM visits ORDER BY {}(mode)",
        "SELECT mode FROM visits GROUP BY mode HAVING {}(mode) = 'x'",
        "SELECT count(*) FROM visits GROUP BY {}(mode)",
        "SELECT CASE WHEN true THEN mode ELSE {}(mode) END FROM visits",
        "SELECT CASE WHEN false THEN CASE WHEN false THEN {}(mode) END END FROM visits",
        "SELECT (SELECT max({}(mode)) FROM visits)",
        "SELECT code FROM divisions WHERE EXISTS (SELECT {}(mode) FROM visits)",
        "SELECT code FROM divisions WHERE code IN (SELECT {}(mode) FROM visits)",
        "WITH k AS (SELECT {}(mode) AS m FROM visits) SELECT count(*) FROM k",
        "SELECT count(*) FROM visits v JOIN divisions d ON {}(v.mode) = d.name",
        "SELECT code FROM divisions UNION ALL SELECT {}(mode) FROM visits",
        "SELECT upper({}(mode)) FROM visits",
        "SELECT max({}(mode)) FROM visits",
        "SELECT count(*) FILTER (WHERE {}(mode) = 'x') FROM visits",
        "SELECT rank() OVER (PARTITION BY {}(mode) ORDER BY mode) FROM visits",
        "SELECT rank() OVER (ORDER BY {}(mode)) FROM visits",
        "SELECT DISTINCT ON ({}(mode)) mode FROM visits",
        "SELECT avg(temperature) FROM visits GROUP BY {}(mode)",
        "SELECT avg(temperature) FROM visits WHERE mode = {}('x')",
        "SELECT {}(mode) OVER () FROM visits",
    ]
    .iter()
    .enumerate()
    {
        let nowhere = shape(&ask(place.replace("{}", "no_such_function")).await);
        for function in [
            "md5",
            "sha256",
            "digest",
            "encode",
            "random",
            "uuid",
            "version",
            "repeat",
            "lpad",
            "regexp_replace",
            "to_char",
            "arrow_cast",
            "arrow_typeof",
            "current_setting",
            "pg_sleep",
            "pg_read_file",
            "input_file_name",
            "gridhub_token",
            "gridhub_generalise",
            "array_agg",
            "array_length",
            "get_field",
        ]
        .iter()
        .skip(at)
        // Each place with a few, and each of them in a few places.
        .take(if at == 0 { usize::MAX } else { 4 })
        {
            let reply = ask(place.replace("{}", function)).await;
            assert_eq!(refusal(&reply), "refused function-not-listed", "{}", place.replace("{}", function));
            assert_eq!(shape(&reply), nowhere, "{function} in {place}");
        }
    }
    // Syntax that stands for a function is no way around the list.
    for sql in [
        "SELECT ARRAY[1, 2]",
        "SELECT {a: 1}",
        "SELECT OVERLAY(mode PLACING 'x' FROM 1) FROM visits",
        "SELECT mode[1] FROM visits",
        "SELECT array_agg(mode ORDER BY mode) FROM visits",
        "SELECT current_user",
        "SELECT CURRENT_CATALOG",
    ] {
        assert!(ask(sql.into()).await.status >= 400, "{sql}");
    }
}

/// Places where a sealed or hidden column `{}` of cases may be mentioned.
const NESTED: [&str; 24] = [
    "SELECT {} FROM cases",
    "SELECT sex FROM cases GROUP BY sex HAVING max({}) > 'a'",
    "SELECT count(*) FROM cases c JOIN divisions d ON d.name = c.{}",
    "SELECT count(*) FROM divisions d LEFT JOIN cases c ON d.name = c.{} AND c.sex = '男'",
    "SELECT sex FROM cases ORDER BY {}",
    "SELECT sex FROM cases ORDER BY {} LIMIT 1",
    "SELECT count(*) FROM divisions d WHERE EXISTS (SELECT 1 FROM cases c WHERE c.{} = d.name)",
    "SELECT count(*) FROM divisions d WHERE NOT EXISTS (SELECT 1 FROM cases c WHERE c.{} = d.name)",
    "SELECT (SELECT max({}) FROM cases)",
    "SELECT d.code FROM divisions d WHERE d.name = (SELECT min(c.{}) FROM cases c)",
    "SELECT x.a FROM divisions d, LATERAL (SELECT c.{} AS a FROM cases c WHERE c.{} = d.name) x",
    "SELECT sex FROM cases QUALIFY row_number() OVER (ORDER BY {}) = 1",
    "SELECT name FROM divisions UNION SELECT {} FROM cases",
    "SELECT {} FROM cases INTERSECT SELECT name FROM divisions",
    "SELECT name FROM divisions EXCEPT SELECT {} FROM cases",
    "SELECT rank() OVER (PARTITION BY {} ORDER BY sex) FROM cases",
    "SELECT count(*) FILTER (WHERE {} = 'x') FROM cases",
    "SELECT DISTINCT ON ({}) sex FROM cases",
    "SELECT sex FROM cases WHERE sex IN (SELECT {} FROM cases)",
    "SELECT sex FROM cases WHERE {} IN (SELECT name FROM divisions)",
    "SELECT CASE WHEN {} = 'x' THEN 1 END FROM cases",
    "SELECT string_agg(sex, ',' ORDER BY {}) FROM cases",
    "SELECT count(*) FROM cases GROUP BY GROUPING SETS (({}), ())",
    "SELECT count(*) FROM cases c JOIN cases k USING ({})",
];

/// A rule that reads the text misses a mention in an inner query or an unusual clause. (A14: CVE-2025-48912,
/// GHSA-5474-f7g5-273q, GHSA-cxvp-3frm-3876)
#[tokio::test(flavor = "multi_thread")]
async fn a14_the_policy_holds_at_every_scan() {
    let hub = TestHub::with_city().await;
    let token = hub.token("health-analyst");
    let ask = async |sql: String| hub.ask_as(&token, "epidemiology", &sql, "").await;
    for place in NESTED {
        let hidden = ask(place.replace("{}", "phone")).await;
        let nowhere = ask(place.replace("{}", "phony")).await;
        assert!(hidden.status >= 400, "{place}");
        assert_eq!(shape(&hidden), shape(&nowhere), "{place}");
        // A protected count may pick by it; whatever is let out is a number with noise then, or nothing.
        let sealed = ask(place.replace("{}", "severity")).await;
        match sealed.status {
            200 => assert_eq!(sealed.json()["protection"]["mode"], "protected", "{place}"),
            status => {
                assert_eq!(
                    (status, sealed.json()["type"].as_str().unwrap().ends_with("/refused")),
                    (422, true),
                    "{place}"
                );
            }
        }
    }
    // A table that is not there is not there in an inner query either.
    let planner = hub.token("pharmacy-planner");
    for place in [
        "SELECT 1 FROM {}",
        "SELECT (SELECT count(*) FROM {})",
        "SELECT code FROM divisions WHERE EXISTS (SELECT 1 FROM {})",
        "SELECT code FROM divisions WHERE code IN (SELECT grid_code FROM {})",
        "SELECT code FROM divisions ORDER BY (SELECT count(*) FROM {})",
        "SELECT count(*) FROM divisions HAVING count(*) > (SELECT count(*) FROM {})",
        "SELECT count(*) FROM divisions d JOIN {} r ON r.grid_code = d.code",
        "WITH k AS (SELECT * FROM {}) SELECT 1",
        "SELECT 1 UNION SELECT 1 FROM {}",
        "SELECT 1 EXCEPT SELECT 1 FROM {}",
        "SELECT * FROM divisions d, LATERAL (SELECT * FROM {} r WHERE r.grid_code = d.code) x",
        "VALUES ((SELECT count(*) FROM {}))",
        "SELECT CASE WHEN false THEN (SELECT count(*) FROM {}) END",
        "SELECT 1 WHERE false AND EXISTS (SELECT 1 FROM {})",
        "SELECT code FROM divisions LIMIT (SELECT count(*) FROM {})",
    ] {
        let hidden = hub.ask_as(&planner, "", &place.replace("{}", "community.residents"), "").await;
        let nowhere = hub.ask_as(&planner, "", &place.replace("{}", "community.residentz"), "").await;
        assert!(hidden.status >= 400, "{place}");
        assert_eq!(shape(&hidden), shape(&nowhere), "{place}");
    }
    // Rows that may only be counted are not there one by one, wherever they are named.
    for place in [
        "SELECT code FROM divisions WHERE EXISTS (SELECT 1 FROM cases)",
        "SELECT (SELECT max(confirmed_date) FROM cases)",
        "SELECT code FROM divisions WHERE code IN (SELECT grid_code FROM cases)",
        "SELECT count(*) FROM divisions d JOIN cases c ON c.grid_code LIKE d.code",
        "SELECT d.code FROM divisions d JOIN cases c ON c.grid_code = d.code",
        "SELECT grid_code FROM cases UNION ALL SELECT code FROM divisions",
        "SELECT row_number() OVER () FROM cases",
        "SELECT count(*) FROM (SELECT * FROM cases LIMIT 1)",
        "SELECT DISTINCT grid_code FROM cases",
        "SELECT DISTINCT ON (grid_code) confirmed_date FROM cases",
        "SELECT min(confirmed_date) FROM cases",
        "SELECT string_agg(grid_code, ',') FROM cases",
    ] {
        let reply = hub.ask_as(&planner, "", place, "").await;
        assert_eq!(
            (reply.status, reply.json()["type"].as_str().unwrap().ends_with("/refused")),
            (422, true),
            "{place}"
        );
    }
}

/// A statement that writes, or reads a file, comes in where only questions should. (A15: apache/datafusion#7328,
/// restatedev/restate#1570)
#[tokio::test(flavor = "multi_thread")]
async fn a15_nothing_is_written_and_no_file_is_read() {
    let hub = TestHub::with_city().await;
    let out = hub.folder.path().join("out");
    let secret = hub.folder.path().join("secret.csv");
    std::fs::write(&secret, "word\nKRONJUWEL\n").unwrap();
    let tables = hub.data().join("tables");
    let before = (listing(&tables), listing(&hub.data().join("spill")));
    let divisions = hub.ask("hub-admin", "quality-control", "SELECT * FROM divisions ORDER BY code").await.rows();
    for caller in [("health-analyst", "epidemiology"), ("hub-admin", "quality-control"), ("platform-uploader", "")] {
        let token = hub.token(caller.0);
        for sql in [
            format!("COPY divisions TO '{}'", out.display()),
            format!("COPY (SELECT * FROM divisions) TO '{}/' STORED AS PARQUET", out.display()),
            format!("COPY divisions FROM '{}'", secret.display()),
            "COPY divisions FROM STDIN".into(),
            "COPY divisions TO STDOUT".into(),
            "COPY divisions TO PROGRAM 'cat'".into(),
            format!("CREATE EXTERNAL TABLE t STORED AS CSV LOCATION '{}'", secret.display()),
            format!("CREATE EXTERNAL TABLE t (word TEXT) STORED AS CSV LOCATION '{}'", secret.display()),
            format!("SELECT * FROM '{}'", secret.display()),
            format!("SELECT * FROM \"{}\"", secret.display()),
            "CREATE TABLE t AS SELECT * FROM divisions".into(),
            "CREATE TABLE t (a INT)".into(),
            "CREATE TEMPORARY TABLE t AS SELECT 1".into(),
            "CREATE OR REPLACE VIEW divisions AS SELECT 1".into(),
            "CREATE SCHEMA s".into(),
            "CREATE DATABASE d".into(),
            "CREATE INDEX i ON divisions (code)".into(),
            "CREATE ROLE r".into(),
            "DROP TABLE divisions".into(),
            "DROP VIEW divisions".into(),
            "DROP SCHEMA platform".into(),
            "ALTER TABLE divisions RENAME TO d".into(),
            "ALTER TABLE divisions ADD COLUMN a INT".into(),
            "TRUNCATE TABLE divisions".into(),
            "INSERT INTO divisions VALUES ('1', 'x', 1, NULL)".into(),
            "INSERT INTO divisions SELECT * FROM divisions".into(),
            "INSERT OVERWRITE divisions SELECT * FROM divisions".into(),
            "UPDATE divisions SET name = 'x'".into(),
            "DELETE FROM divisions".into(),
            "MERGE INTO divisions d USING divisions e ON d.code = e.code WHEN MATCHED THEN DELETE".into(),
            "SELECT code INTO t FROM divisions".into(),
            "SELECT * INTO TEMP t FROM divisions".into(),
            "WITH gone AS (DELETE FROM divisions RETURNING code) SELECT * FROM gone".into(),
            "WITH new AS (INSERT INTO divisions VALUES ('1', 'x', 1, NULL) RETURNING code) SELECT * FROM new".into(),
            "SELECT code FROM divisions FOR UPDATE".into(),
            "SELECT * FROM (SELECT code FROM divisions FOR SHARE) x".into(),
            "EXPLAIN INSERT INTO divisions VALUES ('1', 'x', 1, NULL)".into(),
            "EXPLAIN ANALYZE DELETE FROM divisions".into(),
            "PREPARE p AS DELETE FROM divisions".into(),
            "GRANT SELECT ON divisions TO PUBLIC".into(),
            "REVOKE SELECT ON divisions FROM PUBLIC".into(),
            "VACUUM divisions".into(),
            "ANALYZE divisions".into(),
            "LOCK TABLE divisions".into(),
            "COMMENT ON TABLE divisions IS 'x'".into(),
            "LOAD 'x.so'".into(),
            "INSTALL httpfs".into(),
            "ATTACH DATABASE 'x' AS y".into(),
            "KILL QUERY 1".into(),
            "SET datafusion.execution.target_partitions = 1".into(),
            "SELECT 1; DELETE FROM divisions".into(),
            "SELECT 1;; DROP TABLE divisions".into(),
            "DO $$ BEGIN DELETE FROM divisions; END $$".into(),
        ] {
            let reply = hub.ask_as(&token, caller.1, &sql, "").await;
            assert!((400..500).contains(&reply.status), "{sql}: {}", reply.text());
            assert!(!whole(&reply).contains("KRONJUWEL"), "{sql}");
        }
    }
    assert_eq!((listing(&tables), listing(&hub.data().join("spill"))), before);
    assert!(!out.exists());
    assert_eq!(
        hub.ask("hub-admin", "quality-control", "SELECT * FROM divisions ORDER BY code").await.rows(),
        divisions
    );
}

/// Catalogues, statistics and hidden columns tell what the rows do not. (A16: trino#3159, #28910, #24434,
/// CVE-2021-37839)
#[tokio::test(flavor = "multi_thread")]
async fn a16_metadata_is_the_callers_own() {
    let hub = TestHub::with_city().await;
    let datasets = contract::load_folder(&repository().join("schemas")).unwrap();
    let now = hub.clock.now();
    let policy = Policy::load(&repository().join("policies"), &datasets, Arc::new(move || now)).unwrap();
    for caller in policy.callers() {
        let token = hub.token(&caller.id);
        for purpose in &caller.purposes {
            let listed = hub.get(&token, &format!("/v1/datasets?purpose={purpose}")).await.json();
            let listed = listed["datasets"].as_array().unwrap();
            for dataset in datasets.values() {
                let name = dataset.name.to_string();
                let found = listed.iter().find(|listed| listed["name"] == name.as_str());
                let one = hub.get(&token, &format!("/v1/datasets/{name}?purpose={purpose}")).await;
                let explained = policy.explain(caller, dataset, purpose).unwrap();
                let reachable = explained.read != Scope::Nothing || explained.aggregate != Scope::Nothing;
                let fields: Vec<_> = explained
                    .fields
                    .iter()
                    .filter_map(|(field, exposure, _)| Some((field.as_str(), exposure.as_ref()?.word())))
                    .collect();
                let Some(found) = found else {
                    assert!(!reachable || fields.is_empty(), "{} for {purpose}: {name} is missing", caller.id);
                    assert_eq!(refusal(&one), "not-found");
                    continue;
                };
                assert!(reachable, "{} for {purpose}: {name} is listed", caller.id);
                assert_eq!(&one.json(), found);
                let shown: Vec<_> = found["fields"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|field| (field["name"].as_str().unwrap(), field["exposure"].as_str().unwrap()))
                    .collect();
                assert_eq!(shown, fields, "{} for {purpose}: {name}", caller.id);
                let members: Vec<_> = found.as_object().unwrap().keys().map(String::as_str).collect();
                assert_eq!(members, ["name", "description", "contract_version", "rows", "fields"]);
                // What SQL calls all columns are these and no others.
                let all = hub.ask_as(&token, purpose, &format!("SELECT * FROM {name} WHERE false"), "").await;
                if found["rows"] == "open" && shown.iter().all(|(_, exposure)| *exposure != "aggregate") {
                    let all = all.json();
                    let columns: Vec<_> =
                        all["columns"].as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap()).collect();
                    assert_eq!(columns, shown.iter().map(|(name, _)| *name).collect::<Vec<_>>());
                } else {
                    assert_ne!(all.status, 200, "{}", all.text());
                }
            }
        }
    }
    // Columns of the hub's own, and those that other engines have, never were.
    let token = hub.token("health-analyst");
    let nowhere = hub.ask_as(&token, "epidemiology", "SELECT nonsense FROM visits", "").await;
    assert_eq!(refusal(&nowhere), "unknown-column");
    for column in [
        "__source",
        "__batch",
        "__arrival",
        "__digest",
        "__subject",
        "__newest",
        "__people",
        "ctid",
        "oid",
        "xmin",
        "tableoid",
        "rowid",
        "_rowid_",
        "\"$path\"",
        "\"$file_modified_time\"",
        "_metadata",
        "_file",
        "_path",
        "file_id",
        "__delta_rs_path",
        "__delta_rs_file_id",
        "_change_type",
        "_commit_version",
        "_commit_timestamp",
    ] {
        let reply = hub.ask_as(&token, "epidemiology", &format!("SELECT {column} FROM visits"), "").await;
        assert_eq!(shape(&reply), shape(&nowhere), "{column}");
    }
    for sql in [
        "DESCRIBE visits",
        "SHOW COLUMNS FROM visits",
        "SHOW STATS FOR visits",
        "SHOW TABLES",
        "SHOW CREATE TABLE visits",
        "SELECT * FROM information_schema.columns",
        "SELECT * FROM pg_catalog.pg_stats",
        "SELECT * FROM \"visits$partitions\"",
        "SELECT * FROM \"visits$files\"",
        "SELECT * FROM \"visits$history\"",
        "SELECT pg_relation_size('visits')",
        "SELECT pg_total_relation_size('visits')",
        "SELECT current_schemas(true)",
        "SELECT has_table_privilege('cases', 'select')",
    ] {
        assert!(hub.ask_as(&token, "epidemiology", sql, "").await.status >= 400, "{sql}");
    }
}

/// What a description says of a field that is not there for this reader tells that it is. (A16)
#[tokio::test(flavor = "multi_thread")]
async fn a16_descriptions_do_not_speak_of_hidden_fields() {
    let hub = TestHub::with_city().await;
    for (caller, purpose) in [
        ("grid-worker", "case-management"),
        ("pharmacy-planner", "supply-planning"),
        ("health-analyst", "supply-planning"),
        ("community-uploader", "quality-control"),
    ] {
        let listed = hub.get(&hub.token(caller), &format!("/v1/datasets?purpose={purpose}")).await.json();
        for dataset in listed["datasets"].as_array().unwrap() {
            let text = dataset["description"].as_str().unwrap().to_lowercase();
            let has = |name: &str| dataset["fields"].as_array().unwrap().iter().any(|field| field["name"] == name);
            for (word, field) in [
                ("severity", "severity"),
                ("source case", "source_case_id"),
                ("temperature", "temperature"),
                ("onset", "onset_date"),
            ] {
                assert!(has(field) || !text.contains(word), "{caller}: {}: {text}", dataset["name"]);
            }
        }
    }
}

/// The second door of the house has no lock: an export, a saved question, a parameter of a page, another protocol.
/// (A17: simonw/datasette#813, #2527)
#[tokio::test(flavor = "multi_thread")]
async fn a17_every_door_is_known_and_goes_through_the_gate() {
    // Routes that answer with data, each guarded; and those that carry none.
    const DATA: [&str; 8] = [
        "/v1/datasets",
        "/v1/datasets/{dataset}",
        "/v1/datasets/{dataset}/batches/{batch}",
        "/v1/sql",
        "/v1/explain",
        "/v1/log/entries",
        "/v1/erasures",
        "/v1/erasures/{id}",
    ];
    // Uploads in pieces: their own sender's alone, see flow/resumable.
    const PIECES: [&str; 2] = ["/v1/uploads", "/v1/uploads/{upload}"];
    const OPEN: [&str; 3] = ["/v1/log/checkpoint", "/v1/log/verifier", "/v1/log/tile"];
    // Open to the loopback address, and silent about data: see flow/http.
    const OPERATIONS: [&str; 3] = ["/healthz", "/readyz", "/metrics"];
    let hub = TestHub::with_city().await;
    let described = hub.get("", "/openapi.json").await.json();
    let paths: Vec<_> = described["paths"].as_object().unwrap().keys().cloned().collect();
    for path in &paths {
        let known = DATA.iter().chain(&PIECES).chain(&OPERATIONS).any(|known| known == path)
            || OPEN.iter().any(|open| path.starts_with(open));
        assert!(known, "`{path}` is new: say here whether it answers with data, and try its gate");
    }
    assert!(DATA.iter().all(|path| paths.iter().any(|found| found == path)), "{paths:?}");
    let id = Uuid::now_v7();
    for path in DATA {
        let filled = path.replace("{dataset}", "cdc.cases").replace("{batch}", &id.to_string());
        let filled = filled.replace("{id}", &id.to_string());
        for method in ["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"] {
            for credential in ["", "Bearer ", "Bearer ghub_x", "Basic aGVhbHRoLWFuYWx5c3Q6"] {
                let mut request = axum::http::Request::builder().method(method).uri(&filled);
                if !credential.is_empty() {
                    request = request.header("authorization", credential);
                }
                let request = request.header("content-type", "application/json");
                let body = axum::body::Body::from(json!({"sql": "SELECT count(*) FROM divisions"}).to_string());
                let reply = hub.send(request.body(body).unwrap()).await;
                assert!([401, 404, 405].contains(&reply.status), "{method} {filled}: {}", reply.status);
            }
        }
    }
    for path in PIECES.map(|path| path.replace("{upload}", &id.to_string())) {
        for method in ["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD"] {
            for credential in ["", "Bearer ", "Bearer ghub_x"] {
                let request = axum::http::Request::builder().method(method).uri(&path).header("tus-resumable", "1.0.0");
                let request = request.header("authorization", credential).header("upload-length", "1");
                let reply = hub.send(request.body(axum::body::Body::empty()).unwrap()).await;
                assert!([401, 405].contains(&reply.status), "{method} {path}: {}", reply.status);
            }
        }
    }
    for path in OPEN.iter().map(|path| path.replace("/tile", "/tile/0/000")).chain(["/metrics".into()]) {
        let reply = hub.get("", &path).await;
        let said = String::from_utf8_lossy(&reply.body).into_owned();
        for word in ["cdc.", "visits", "health-analyst"] {
            assert!(!said.contains(word), "{path}: {said}");
        }
    }
    // A question beside the question is not heard.
    let token = hub.token("grid-worker");
    let plain = hub.get(&token, "/v1/datasets").await;
    for beside in ["?sql=SELECT%201", "?_where=1%3D1", "?caller=hub-admin", "?fields=all", "?format=csv"] {
        assert_eq!(hub.get(&token, &format!("/v1/datasets{beside}")).await.text(), plain.text(), "{beside}");
    }
    assert_eq!(refusal(&hub.get(&token, "/v1/sql?sql=SELECT%201").await), "method-not-allowed");
    let nowhere = hub.get(&token, "/nowhere").await;
    for path in [
        "/v1/export",
        "/v1/export/cdc.cases",
        "/v1/query",
        "/v1/queries/1",
        "/v1/saved",
        "/v1/tables/cdc.cases",
        "/v1/datasets/cdc.cases/rows",
        "/v1/datasets/cdc.cases/files",
        "/v1/datasets/cdc.cases/preview",
        "/v1/datasets/cdc.cases/batches",
        "/v1/log/entries/1",
        "/v1/log/tile/entries/000",
        "/data",
        "/tables/cdc.cases",
        "/metadata.sqlite",
        "/debug/pprof",
    ] {
        let reply = hub.get(&token, path).await;
        assert_eq!((reply.status, reply.text()), (404, nowhere.text()), "{path}");
    }
    // All routes have the same answer to the same hidden thing.
    let sql = json!({"sql": "SELECT severity FROM cases"});
    let asked = hub.post(&token, "/v1/sql", &sql, "").await;
    let explained = hub.post(&token, "/v1/explain", &sql, "").await;
    assert_eq!((asked.status, asked.text()), (explained.status, explained.text()));

    // The doors there are: HTTP, Postgres and Flight SQL. A further one does not compile here before it is tried.
    let door = "127.0.0.1:0";
    let Addresses { http: _, postgres: _, flight: _ } = Addresses { http: door, postgres: door, flight: door };
    let site = Site::open(hub).await;
    let long = "x".repeat(4_000);
    for secret in ["", "ghub_x", "Bearer", long.as_str()] {
        let refused = connect(&site.config("grid-worker", secret, "case-management")).await.err().unwrap();
        assert_eq!(told(&refused), "FATAL 28P01 password authentication failed");
        let mut client = site.flight_client().await;
        assert!(client.handshake("grid-worker", secret).await.is_err());
        client.set_token(secret.to_owned());
        let refused = status(client.execute("SELECT count(*) FROM divisions".into(), None).await.unwrap_err());
        assert_eq!(refused.code(), tonic::Code::Unauthenticated);
    }
    // They too have the same answer to the same hidden thing, and to the same rows.
    let line = site.line("grid-worker", "case-management").await;
    let mut flight = site.flight_session("grid-worker", "case-management").await;
    for (sql, slug, code) in [
        ("SELECT severity FROM cases", "unknown-column", "42703"),
        ("SELECT nothing FROM cases", "unknown-column", "42703"),
        ("SELECT 1 FROM pharmacy.sales", "unknown-table", "42P01"),
        ("SELECT 1 FROM pharmacy.nothing", "unknown-table", "42P01"),
        ("DELETE FROM cases", "refused", "42501"),
    ] {
        let asked = refusal(&site.hub.post(&token, "/v1/sql", &json!({ "sql": sql }), "").await);
        assert_eq!(asked.split(' ').next(), Some(slug), "{sql}");
        assert_eq!(line.fails(sql).await.split(' ').nth(1), Some(code), "{sql}");
        let refused = status(flight.execute(sql.into(), None).await.unwrap_err());
        assert_eq!(header(&refused, "gridhub-error"), slug, "{sql}");
    }
    let sql = "SELECT count(*) AS n FROM cases";
    let info = flight.execute(sql.into(), None).await.unwrap();
    let rows = texts_of_batches(&batches_of_flight(&mut flight, &info).await);
    assert_eq!(rows, [[Some("12".to_owned())]]);
    assert_eq!(line.texts(sql).await, rows);
    assert_eq!(site.hub.ask_as(&token, "case-management", sql, "").await.rows(), "[12]");
}

//! A1 to A9: what the engine tells of rows and values that the caller may not see.

use serde_json::json;

use super::{holds, refusal, shape, whole};
use crate::{
    support::{CSV, TestHub, changed, fixture},
    worlds::{keyed, lines, owned, same, transcript, without_elsewhere, world},
};

/// Ways to fail on a row, each fine where `symptoms` is `1`.
const FALLIBLE: [&str; 9] = [
    "1 / CAST(symptoms AS INT)",
    "CAST(symptoms AS INT)",
    "CAST(CAST(symptoms AS BIGINT) AS SMALLINT)",
    "to_date('2026-01-0' || symptoms)",
    "CAST('2026-01-0' || symptoms AS DATE)",
    "substr(mode, 1, CAST(symptoms AS INT))",
    "split_part(mode, '户', CAST(symptoms AS INT))",
    "chr(CAST(symptoms AS BIGINT))",
    "make_date(2026, CAST(symptoms AS INT), 1)",
];

/// Places where an expression may stand.
const PLACES: [&str; 10] = [
    "SELECT {e} FROM visits ORDER BY 1",
    "SELECT count(*) FROM visits WHERE ({e}) IS NOT NULL",
    "SELECT count(*) FROM visits v JOIN residents r ON r.household_id = v.household_id AND ({e}) IS NOT NULL",
    "SELECT grid_code FROM visits GROUP BY grid_code HAVING max(CASE WHEN ({e}) IS NULL THEN 1 ELSE 0 END) = 0 \
     ORDER BY 1",
    "SELECT sum(CASE WHEN ({e}) IS NOT NULL THEN 1 ELSE 0 END) FROM visits",
    "SELECT count(*) FROM visits WHERE visit_id IN (SELECT visit_id FROM visits WHERE ({e}) IS NOT NULL)",
    "SELECT row_number() OVER (ORDER BY {e}, visit_id) FROM visits ORDER BY 1",
    "SELECT DISTINCT {e} FROM visits ORDER BY 1",
    "SELECT count({e}) FILTER (WHERE ({e}) IS NOT NULL) FROM visits",
    "SELECT visit_id FROM visits ORDER BY {e}, visit_id LIMIT 3",
];

/// Rows elsewhere on which every one of [`FALLIBLE`] fails.
fn poisoned(text: &str) -> String {
    lines(text, |mut cells| {
        cells[10] = match cells[0] {
            "V012" => "x",
            "V013" => "0",
            "V014" => "-1",
            "V015" => "99999(",
            _ => "1",
        };
        Some(owned(cells))
    })
}

/// The same for residents, of whom only the current state is shown.
fn poisoned_residents(text: &str) -> String {
    lines(text, |mut cells| {
        cells[9] = if cells[1] == crate::worlds::ELSEWHERE { "x" } else { "1" };
        Some(owned(cells))
    })
}

/// An expression that fails on a row out of reach ends the query, and so tells that the row is there. (A1:
/// cockroach#146952, ClickHouse#112847, materialize#38568)
#[tokio::test(flavor = "multi_thread")]
async fn a01_expressions_do_not_fail_on_hidden_rows() {
    let with = world(|dataset, text| match dataset {
        "community.visits" => poisoned(&text),
        "community.residents" => poisoned_residents(&text),
        _ => text,
    })
    .await;
    let without = world(|dataset, text| match dataset {
        "community.visits" => without_elsewhere(&poisoned(&text)),
        "community.residents" => without_elsewhere(&poisoned_residents(&text)),
        "cdc.cases" => without_elsewhere(&text),
        _ => text,
    })
    .await;
    let mut questions: Vec<String> =
        FALLIBLE.iter().flat_map(|e| PLACES.iter().map(|place| place.replace("{e}", e))).collect();
    questions.push("SELECT sum(1 / CAST(special_group AS INT)) FROM residents".into());
    questions.push("SELECT count(*) FROM residents WHERE CAST(special_group AS INT) = 1".into());
    let told = transcript(&with, "grid-worker", "case-management", &questions).await;
    for told in told.iter().take(questions.len()) {
        assert!(told.contains("\"rows\""), "nothing visible fails here: {told}");
    }
    same(&with, &without, "grid-worker", "case-management", &questions).await;
    // Who may see those rows is told of the failure: the poison works.
    for e in FALLIBLE {
        let seen = with.ask("health-analyst", "epidemiology", &format!("SELECT {e} FROM visits")).await;
        assert_eq!(refusal(&seen), "data-error", "{e}");
    }
    // Places in an array have no form here.
    for sql in ["SELECT (ARRAY[1, 2])[CAST(symptoms AS INT)] FROM visits", "SELECT make_array(1)[2] FROM visits"] {
        let one = with.ask("grid-worker", "", sql).await;
        assert_eq!((one.status, shape(&one)), (422, shape(&without.ask("grid-worker", "", sql).await)), "{sql}");
    }
}

/// The same for what a mask hides of a visible row: the day of a birth date of which the year is shown. (A1)
#[tokio::test(flavor = "multi_thread")]
async fn a01_expressions_do_not_fail_on_hidden_values() {
    let hub = world(|_, text| text).await;
    // The first case is of somebody born on a tenth of January.
    for sql in [
        "SELECT count(1 / (date_part('day', birth_date) - 10)) FROM cases",
        "SELECT count(*) FROM cases WHERE 1 / (date_part('day', birth_date) - 10) < 1",
        "SELECT sum(CASE WHEN 1 / (date_part('day', birth_date) - 10) < 1 THEN 1 ELSE 0 END) FROM cases",
    ] {
        assert_eq!(hub.ask("health-analyst", "epidemiology", sql).await.rows(), "[14]", "{sql}");
    }
}

const CANARY: &str = "KANARIENVOGEL7731";

/// The engine puts the value on which it failed into its message, which callers and logs then hold. (A2:
/// bytebase#19371, materialize#38562)
#[tokio::test(flavor = "multi_thread")]
async fn a02_errors_carry_no_value() {
    let hub = world(|dataset, text| match dataset {
        "community.visits" => lines(&text, |cells| {
            let mut cells = owned(cells);
            cells[10] = format!("{CANARY}(");
            Some(cells)
        }),
        _ => text,
    })
    .await;
    let token = hub.token("grid-worker");
    let seen = hub.ask_as(&token, "", "SELECT DISTINCT symptoms FROM visits", "").await;
    assert_eq!(seen.rows(), format!("[\"{CANARY}(\"]"), "the canary is there to be found");
    for e in [
        "CAST(symptoms AS INT)",
        "CAST(symptoms AS BIGINT)",
        "CAST(symptoms AS DOUBLE)",
        "CAST(symptoms AS NUMERIC(9, 2))",
        "CAST(symptoms AS BOOLEAN)",
        "CAST(symptoms AS DATE)",
        "CAST(symptoms AS TIMESTAMP)",
        "to_date(symptoms)",
        "to_timestamp(symptoms)",
        "to_unixtime(symptoms)",
        "split_part(symptoms, 'a', length(symptoms) - length(symptoms))",
        "symptoms ~ symptoms",
        "make_date(CAST(symptoms AS INT), 1, 1)",
        "1 / (length(symptoms) - length(symptoms))",
    ] {
        for sql in [
            format!("SELECT {e} FROM visits"),
            format!("SELECT count(*) FROM visits WHERE ({e}) IS NOT NULL"),
            format!("SELECT mode FROM visits GROUP BY mode HAVING count({e}) > 0"),
        ] {
            for accept in ["application/json", "text/csv", "application/vnd.apache.arrow.stream"] {
                let reply = hub.ask_as(&token, "", &sql, accept).await;
                assert_eq!((reply.status, refusal(&reply).as_str()), (422, "data-error"), "{sql}");
                assert!(!whole(&reply).contains(CANARY), "{sql}: {}", whole(&reply));
            }
        }
    }
    // Cells are where they belong, and nowhere else.
    let data = hub.data();
    for entry in std::fs::read_dir(&data).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && path.file_name().is_some_and(|name| name != "tables") {
            assert!(!holds(&path, CANARY), "{}", path.display());
        } else if path.is_file() {
            let bytes = std::fs::read(&path).unwrap();
            assert!(!String::from_utf8_lossy(&bytes).contains(CANARY), "{}", path.display());
        }
    }
}

/// What plans show of the engine and of the data behind it.
const OF_THE_ENGINE: [&str; 20] = [
    "__",
    "Exec",
    "Barrier",
    "statistics",
    "Statistics",
    "rows=",
    "bytes",
    "metrics",
    ".parquet",
    "part-",
    "file:",
    "file_groups",
    "/tmp",
    "tables/",
    "stored",
    "gridhub_",
    "Governed",
    "partition",
    "420191001001",
    "severity",
];

/// A plan carries estimates that the planner drew from rows nobody may see. (A3: CVE-2017-7484, CVE-2019-10130,
/// CVE-2025-8713)
#[tokio::test(flavor = "multi_thread")]
async fn a03_plans_tell_nothing_of_data_or_policy() {
    let with = world(|_, text| text).await;
    let without = world(|dataset, text| match dataset {
        "cdc.cases" | "community.visits" | "community.residents" => without_elsewhere(&text),
        _ => text,
    })
    .await;
    let questions = [
        "SELECT count(*) FROM visits",
        "SELECT grid_code, max(temperature) FROM visits WHERE temperature > 36.5 GROUP BY 1 ORDER BY 2 LIMIT 3",
        "SELECT count(*) FROM cases c JOIN residents r ON r.id_no = c.id_no WHERE c.confirmed_date = DATE '2026-01-05'",
        "SELECT case_id FROM cases WHERE id_no = '00000000000000000000000000000000'",
        "WITH k AS (SELECT id_no FROM cases) SELECT count(*) FROM visits WHERE id_no IN (SELECT id_no FROM k)",
    ];
    for sql in questions {
        let one = with.ask("grid-worker", "", &format!("EXPLAIN {sql}")).await;
        let other = without.ask("grid-worker", "", &format!("EXPLAIN {sql}")).await;
        assert_eq!(one.status, 200, "{sql}: {}", one.text());
        let (one, other) = (one.json(), other.json());
        let columns = one["columns"].as_array().unwrap();
        assert_eq!((columns.len(), &columns[0]["name"], &columns[0]["type"]), (1, &json!("plan"), &json!("text")));
        assert_eq!(one["rows"], other["rows"], "{sql}");
        let plan = one["rows"].to_string();
        for word in OF_THE_ENGINE {
            assert!(!plan.contains(word), "`{word}` in the plan of {sql}: {plan}");
        }
        for hidden in ["phone", "address", "source_case_id", "420191"] {
            assert!(!plan.contains(hidden), "`{hidden}` in the plan of {sql}: {plan}");
        }
        for form in [
            "EXPLAIN VERBOSE {q}",
            "EXPLAIN ANALYZE {q}",
            "EXPLAIN ANALYZE VERBOSE {q}",
            "EXPLAIN FORMAT indent {q}",
            "EXPLAIN FORMAT tree {q}",
            "EXPLAIN FORMAT graphviz {q}",
            "EXPLAIN FORMAT pgjson {q}",
            "EXPLAIN FORMAT mermaid {q}",
            "EXPLAIN (FORMAT json) {q}",
            "EXPLAIN (ANALYZE) {q}",
            "EXPLAIN (ANALYZE, VERBOSE, BUFFERS, COSTS) {q}",
            "EXPLAIN (VERBOSE true, FORMAT 'tree') {q}",
            "EXPLAIN EXPLAIN {q}",
            "DESCRIBE {q}",
        ] {
            let reply = with.ask("grid-worker", "", &form.replace("{q}", sql)).await;
            let said = refusal(&reply);
            let expected = ["refused read-only", "refused explain-form", "refused one-statement", "sql-syntax"];
            assert!(expected.contains(&said.as_str()), "{form}: {said}");
        }
        let explained = with.post(&with.token("grid-worker"), "/v1/explain", &json!({ "sql": sql }), "").await.json();
        let again = without.post(&without.token("grid-worker"), "/v1/explain", &json!({ "sql": sql }), "").await.json();
        for member in ["verdict", "columns", "reads", "protection", "refusal"] {
            assert_eq!(explained[member], again[member], "{sql}");
        }
    }
    // A plan is no way around a refusal, and a hidden column is as unknown in it as one that never was.
    for (sql, said) in [
        ("EXPLAIN SELECT severity FROM cases", "unknown-column"),
        ("EXPLAIN SELECT nonsense FROM cases", "unknown-column"),
        ("EXPLAIN SELECT 1 FROM pharmacy.sales", "unknown-table"),
        ("EXPLAIN SELECT random()", "refused function-not-listed"),
    ] {
        assert_eq!(refusal(&with.ask("grid-worker", "", sql).await), said, "{sql}");
    }
    let sealed = with.ask("health-analyst", "epidemiology", "EXPLAIN SELECT severity FROM cases").await;
    assert_eq!(refusal(&sealed), "refused sealed-field");
}

const COUNTS: [&str; 9] = [
    "SELECT count(*) FROM visits",
    "SELECT count(1), count(visit_id), count(temperature) FROM visits",
    "SELECT min(temperature), max(temperature) FROM visits",
    "SELECT min(grid_code), max(grid_code) FROM visits",
    "SELECT min(visited_at), max(visited_at) FROM visits",
    "SELECT count(*), min(confirmed_date), max(confirmed_date) FROM cases",
    "SELECT count(*), min(birth_date), max(birth_date) FROM residents",
    "SELECT approx_distinct(id_no), approx_median(CAST(temperature AS DOUBLE)) FROM visits",
    "SELECT count(*) FROM (SELECT 1 FROM visits LIMIT 100)",
];

/// The engine answers counts and extremes from a file's footer, where hidden rows are counted too. (A4:
/// DataFusion's `AggregateStatistics`, apache/datafusion#8110, #16402)
#[tokio::test(flavor = "multi_thread")]
async fn a04_no_answer_comes_from_statistics() {
    let with = world(|_, text| text).await;
    // By hand: twelve visits from 36.0 to 37.1 in the two grids of the worker's community.
    for (sql, rows) in [
        ("SELECT count(*) FROM visits", "[12]"),
        ("SELECT min(temperature), max(temperature) FROM visits", "[36.0,37.1]"),
        ("SELECT min(grid_code), max(grid_code) FROM visits", r#"["420191001001001","420191001001002"]"#),
        ("SELECT count(*), max(confirmed_date) FROM cases", r#"[12,"2026-01-06"]"#),
        ("SELECT count(*), max(birth_date) FROM residents", r#"[12,"1983-12-21"]"#),
        ("SELECT count(*) FROM (SELECT 1 FROM visits LIMIT 100)", "[12]"),
    ] {
        assert_eq!(with.ask("grid-worker", "", sql).await.rows(), rows, "{sql}");
    }
    let without = world(|dataset, text| match dataset {
        "cdc.cases" | "community.visits" | "community.residents" => without_elsewhere(&text),
        _ => text,
    })
    .await;
    same(&with, &without, "grid-worker", "case-management", &COUNTS).await;
    // Somebody of whose territory there is no row sees tables in which there never was one.
    let empty = keyed(|_| {}).await;
    let divisions = fixture("platform.divisions.csv");
    assert_eq!(empty.push("platform-uploader", "platform.divisions", CSV, divisions).await.status, 201);
    same(&with, &empty, "grid-worker-b", "case-management", &COUNTS).await;
    assert_eq!(with.ask("grid-worker-b", "", "SELECT count(*), max(temperature) FROM visits").await.rows(), "[0,null]");
}

/// Hidden rows decide where batches end, and sums of fractions and sketches of quantiles depend on that in their last
/// digits. (A4)
#[tokio::test(flavor = "multi_thread")]
async fn a04_hidden_rows_move_no_rounding() {
    let header =
        "household_id,grid_code,id_no,name,sex,birth_date,phone,address,residence_type,special_group,op,updated_at\n";
    let row = |n: usize, grid: &str| {
        let (year, month, day, serial) = (1950 + n % 50, 1 + n / 50 % 12, 1 + n / 600 % 28, n / 16_800);
        let id = gridhub::demo::city::with_check_digit(&format!("420191{year}{month:02}{day:02}{serial:03}"));
        format!("H{n},{grid},{id},,男,{year}-{month:02}-{day:02},,,户籍,,S,2026-01-05 08:00:00\n")
    };
    let visible: String = (0..12_000).map(|n| row(n, "420191001001001")).collect();
    let hidden: String = (12_000..16_000).map(|n| row(n, crate::worlds::ELSEWHERE)).collect();
    let worlds = [format!("{header}{visible}"), format!("{header}{visible}{hidden}")];
    let mut told = Vec::new();
    for file in worlds {
        let hub = keyed(|_| {}).await;
        hub.push("platform-uploader", "platform.divisions", CSV, fixture("platform.divisions.csv")).await;
        let reply = hub.push("community-uploader", "community.residents", CSV, file.into_bytes()).await;
        assert_eq!((reply.status, &reply.json()["rows_rejected"]), (201, &json!(0)), "{}", reply.text());
        let questions = [
            "SELECT count(*) FROM residents",
            "SELECT sum(CAST(date_part('doy', birth_date) AS DOUBLE) / 7) FROM residents",
            "SELECT avg(CAST(date_part('doy', birth_date) AS DOUBLE) / 7) FROM residents",
            "SELECT stddev(CAST(date_part('doy', birth_date) AS DOUBLE) / 7) FROM residents",
            "SELECT approx_median(CAST(date_part('doy', birth_date) AS DOUBLE) / 7) FROM residents",
            "SELECT approx_percentile_cont(CAST(date_part('doy', birth_date) AS DOUBLE) / 7, 0.9) FROM residents",
        ];
        told.push(transcript(&hub, "grid-worker", "case-management", &questions).await);
    }
    for (one, other) in told[0].iter().zip(&told[1]) {
        assert_eq!(one, other);
    }
}

/// Files are left out, and the search for the first few ends early, by the raw values of a masked column. (A5:
/// apache/paimon#8570, #8582)
#[tokio::test(flavor = "multi_thread")]
async fn a05_files_are_not_pruned_by_raw_values() {
    let hub = keyed(|_| {}).await;
    let header =
        String::from_utf8(fixture("health_bureau.vaccinations.csv")).unwrap().lines().next().unwrap().to_owned();
    let people = [
        ("42019119500110001X", "1950-01-10"),
        ("420191195302110043", "1950-06-01"),
        ("420191195603120050", "1950-12-31"),
        ("420191195904130084", "1951-01-01"),
        ("420191196205140093", "1951-07-07"),
        ("420191196506150121", "1952-02-29"),
    ];
    // One person a batch, so one a file; the number of the dose says who it is.
    for (n, (id, born)) in people.iter().enumerate() {
        let dose = n + 1;
        let row = format!("X{dose},{id},,{born},,灭活-A,B0001,{dose},2025-01-10,12420191MB00000013");
        let reply = hub
            .push("health-uploader", "health_bureau.vaccinations", CSV, format!("{header}\n{row}\n").into_bytes())
            .await;
        assert_eq!(reply.json()["rows_accepted"], 1, "{}", reply.text());
    }
    let token = hub.token("health-analyst");
    let ask = async |sql: String| hub.ask_as(&token, "epidemiology", &sql, "").await.rows().replace('\n', " ");
    // By hand from the first days of the years.
    for (predicate, doses) in [
        ("birth_date = DATE '1950-01-01'", "[1] [2] [3]"),
        ("birth_date = DATE '1950-06-01'", ""),
        ("birth_date < DATE '1950-06-01'", "[1] [2] [3]"),
        ("birth_date <= DATE '1950-01-01'", "[1] [2] [3]"),
        ("birth_date > DATE '1950-01-01'", "[4] [5] [6]"),
        ("birth_date >= DATE '1951-01-01' AND birth_date < DATE '1951-01-02'", "[4] [5]"),
        ("birth_date BETWEEN DATE '1951-02-01' AND DATE '1952-01-31'", "[6]"),
        ("birth_date IN (DATE '1950-12-31', DATE '1952-01-01')", "[6]"),
        ("birth_date <> DATE '1951-01-01'", "[1] [2] [3] [6]"),
        ("birth_date IS NULL", ""),
        ("CAST(birth_date AS TEXT) LIKE '%-01-01'", "[1] [2] [3] [4] [5] [6]"),
    ] {
        let rows = ask(format!("SELECT dose_no FROM vaccinations WHERE {predicate} ORDER BY 1")).await;
        assert_eq!(rows, doses, "{predicate}");
    }
    for (sql, rows) in [
        ("SELECT dose_no FROM vaccinations ORDER BY birth_date, dose_no DESC LIMIT 2", "[3] [2]"),
        ("SELECT dose_no FROM vaccinations ORDER BY birth_date DESC, dose_no LIMIT 3", "[6] [4] [5]"),
        ("SELECT dose_no FROM vaccinations ORDER BY birth_date DESC, dose_no DESC LIMIT 2 OFFSET 1", "[5] [4]"),
        ("SELECT min(birth_date), max(birth_date) FROM vaccinations", r#"["1950-01-01","1952-01-01"]"#),
        ("SELECT count(*) FROM (SELECT 1 FROM vaccinations WHERE birth_date = DATE '1950-01-01' LIMIT 2)", "[2]"),
        ("SELECT count(*) FROM vaccinations a JOIN vaccinations b ON a.birth_date = b.birth_date", "[14]"),
    ] {
        assert_eq!(ask(sql.into()).await, rows, "{sql}");
    }
    // Tokens compare as they are shown, not as what is stored.
    let shown = hub.ask_as(&token, "epidemiology", "SELECT id_no, dose_no FROM vaccinations", "").await.json();
    let mut tokens: Vec<(String, i64)> = shown["rows"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| (row[0].as_str().unwrap().to_owned(), row[1].as_i64().unwrap()))
        .collect();
    tokens.sort();
    let doses = |tokens: &[(String, i64)]| tokens.iter().map(|(_, n)| format!("[{n}]")).collect::<Vec<_>>().join(" ");
    for at in 0..tokens.len() {
        let this = &tokens[at].0;
        let equal = ask(format!("SELECT dose_no FROM vaccinations WHERE id_no = '{this}'")).await;
        assert_eq!(equal, doses(&tokens[at..=at]));
        let less = ask(format!("SELECT dose_no FROM vaccinations WHERE id_no < '{this}' ORDER BY id_no")).await;
        assert_eq!(less, doses(&tokens[..at]));
    }
    assert_eq!(ask("SELECT dose_no FROM vaccinations ORDER BY id_no LIMIT 3".into()).await, doses(&tokens[..3]));
}

/// The roles, purposes and numbers of columns with which the same text is asked.
const ASKERS: [(&str, &str); 5] = [
    ("health-analyst", "epidemiology"),
    ("cdc-epidemiologist", "case-management"),
    ("cdc-epidemiologist", "epidemiology"),
    ("grid-worker", "case-management"),
    ("pharmacy-planner", "supply-planning"),
];

/// A plan made for one role is run for another, or outlives the policy it was made under. (A6: CVE-2023-2455)
#[tokio::test(flavor = "multi_thread")]
async fn a06_no_plan_is_reused() {
    let mut hub = TestHub::with_city_in_plain_numbers().await;
    let sql = "SELECT grid_code, count(*) FROM cases GROUP BY 1 ORDER BY 1";
    // By hand: by community, by grid, by community, by own grid, by community with fourteen people and more.
    let expected = [
        r#"["420191001001",12] ["420191001002",2]"#,
        r#"["420191001001001",7] ["420191001001002",5] ["420191001002001",2]"#,
        r#"["420191001001",12] ["420191001002",2]"#,
        r#"["420191001001001",7] ["420191001001002",5]"#,
        "",
    ];
    for turn in 0..2 {
        for ((caller, purpose), expected) in ASKERS.iter().zip(expected) {
            let rows = hub.ask(caller, purpose, sql).await.rows().replace('\n', " ");
            assert_eq!(rows, expected, "{caller} for {purpose}, turn {turn}");
        }
        for ((caller, purpose), expected) in ASKERS.iter().zip(expected).rev() {
            assert_eq!(hub.ask(caller, purpose, sql).await.rows().replace('\n', " "), expected, "{caller}");
        }
    }
    for sql in
        ["PREPARE p AS SELECT grid_code FROM cases", "EXECUTE p", "DEALLOCATE p", "DECLARE c CURSOR FOR SELECT 1"]
    {
        let said = refusal(&hub.ask("health-analyst", "epidemiology", sql).await);
        assert!(said == "refused read-only" || said == "sql-syntax", "{sql}: {said}");
    }
    // The grid of a case is taken back: for those who had it by that policy it never was.
    let tightened = tempfile::tempdir().unwrap();
    let policies = changed(tightened.path(), "policies", "cdc.cedar", |text| {
        assert!(text.contains(r#"["grid_code", "birth_date"]"#));
        text.replace(r#"["grid_code", "birth_date"]"#, r#"["birth_date"]"#)
    });
    hub.restart_with(|opening| opening.policies = policies).await;
    for ((caller, purpose), expected) in ASKERS.iter().zip(expected) {
        let reply = hub.ask(caller, purpose, sql).await;
        match *purpose {
            "epidemiology" => assert_eq!(refusal(&reply), "unknown-column", "{caller}"),
            _ => assert_eq!(reply.rows().replace('\n', " "), expected, "{caller}"),
        }
    }
    hub.restart().await;
    for ((caller, purpose), expected) in ASKERS.iter().zip(expected) {
        assert_eq!(hub.ask(caller, purpose, sql).await.rows().replace('\n', " "), expected, "{caller}");
    }
}

/// An answer kept for one caller is handed to another who may see less. (A7: CVE-2024-22412, ClickHouse#58054,
/// superset#10804)
#[tokio::test(flavor = "multi_thread")]
async fn a07_no_answer_is_reused() {
    let mut hub = TestHub::with_city().await;
    let tokens = "SELECT id_no FROM cases ORDER BY 1";
    let mut told = Vec::new();
    for (caller, purpose) in &ASKERS[..4] {
        let first = hub.ask(caller, purpose, tokens).await;
        let second = hub.ask(caller, purpose, tokens).await;
        assert_eq!(first.json()["rows"], second.json()["rows"], "{caller} for {purpose} asks again");
        assert_ne!(first.header("gridhub-query-id"), second.header("gridhub-query-id"));
        assert_eq!(first.header("cache-control"), "no-store");
        told.push(first.rows());
    }
    for (at, one) in told.iter().enumerate() {
        for other in &told[at + 1..] {
            let shared = one.lines().filter(|line| other.lines().any(|theirs| theirs == *line)).count();
            assert_eq!(shared, 0, "two recipients, or two purposes, were told the same token");
        }
    }
    let seen = async |hub: &TestHub| {
        let mut seen = Vec::new();
        for (caller, purpose) in ASKERS {
            let reply = hub.ask(caller, purpose, "SELECT max(birth_date), max(onset_date) FROM cases").await;
            seen.push(match reply.status {
                200 => reply.rows(),
                _ => refusal(&reply),
            });
        }
        seen
    };
    // By hand: years of birth, whole days, years again, no birth date, neither.
    let before = [
        r#"["1989-01-01","2026-01-03"]"#,
        r#"["1989-02-23","2026-01-03"]"#,
        r#"["1989-01-01","2026-01-03"]"#,
        "unknown-column",
        "unknown-column",
    ];
    assert_eq!(seen(&hub).await, before);
    let other = tempfile::tempdir().unwrap();
    let policies = changed(other.path(), "policies", "cdc.cedar", |text| {
        text.replace(r#"["sex", "onset_date", "confirmed_date"]"#, r#"["sex", "confirmed_date"]"#)
    });
    let version = hub.ask("health-analyst", "epidemiology", "SELECT 1").await.header("gridhub-policy");
    hub.restart_with(|opening| opening.policies = policies).await;
    assert_ne!(hub.ask("health-analyst", "epidemiology", "SELECT 1").await.header("gridhub-policy"), version);
    assert_eq!(seen(&hub).await, ["unknown-column", before[1], "unknown-column", "unknown-column", "unknown-column"]);
    // New rows are in the next answer.
    hub.restart().await;
    let count = "SELECT count(*) FROM cases";
    assert_eq!(hub.ask("health-analyst", "epidemiology", count).await.rows(), "[14]");
    let text = String::from_utf8(fixture("cdc.cases.csv")).unwrap();
    let more = lines(&text, |mut cells| {
        cells[0] = if cells[0] == "C000" { "C100" } else { return None };
        Some(owned(cells))
    });
    assert_eq!(hub.push("cdc-uploader", "cdc.cases", CSV, more.into_bytes()).await.status, 201);
    assert_eq!(hub.ask("health-analyst", "epidemiology", count).await.rows(), "[15]");
}

/// A setting of the session, or a hint in the text, switches the rule off. (A8: matrixone#29142)
#[tokio::test(flavor = "multi_thread")]
async fn a08_nothing_a_caller_sets_changes_the_rule() {
    let hub = TestHub::with_city().await;
    let token = hub.token("grid-worker");
    for sql in [
        "SET datafusion.catalog.information_schema = true",
        "SET datafusion.explain.show_statistics = true",
        "SET datafusion.execution.parquet.pushdown_filters = false",
        "SET purpose = 'audit'",
        "SET ROLE 'hub-admin'",
        "SET SESSION AUTHORIZATION 'hub-admin'",
        "SET TIME ZONE 'UTC'",
        "SET LOCAL row_security = off",
        "SET row_security TO off",
        "RESET ALL",
        "RESET datafusion.execution.batch_size",
        "SHOW ALL",
        "SHOW TABLES",
        "SHOW COLUMNS FROM cases",
        "SHOW FUNCTIONS",
        "SHOW datafusion.execution.batch_size",
        "SHOW CREATE TABLE cases",
        "USE cdc",
        "PRAGMA table_info(cases)",
        "ALTER SESSION SET ROW_SECURITY = false",
        "BEGIN",
        "START TRANSACTION",
        "COMMIT",
        "ROLLBACK",
        "DISCARD ALL",
        "LISTEN cases",
    ] {
        let said = refusal(&hub.ask_as(&token, "", sql, "").await);
        assert!(["refused read-only", "sql-syntax"].contains(&said.as_str()), "{sql}: {said}");
    }
    let plain = hub.ask_as(&token, "", "SELECT count(*) FROM cases", "").await.rows();
    assert_eq!(plain, "[12]");
    for sql in [
        "SELECT /*+ NO_POLICY */ count(*) FROM cases",
        "/*+ SET_VAR(row_security = off) */ SELECT count(*) FROM cases",
        "SELECT count(*) FROM cases -- row_security: off",
    ] {
        assert_eq!(hub.ask_as(&token, "", sql, "").await.rows(), plain, "{sql}");
    }
    for sql in [
        "SELECT count(*) FROM cases WITH (NOLOCK)",
        "SELECT count(*) FROM cases SETTINGS row_security = 0",
        "SELECT count(*) FROM cases OPTION (row_security = 0)",
        "SELECT @@row_security",
        "SELECT current_setting('row_security')",
        "SELECT set_config('row_security', 'off', false)",
    ] {
        assert!(hub.ask_as(&token, "", sql, "").await.status >= 400, "{sql}");
    }
    // Nor does anything beside the text.
    let sql = "SELECT count(*) FROM cases";
    for body in [
        json!({"sql": sql, "options": {"row_security": false}}),
        json!({"sql": sql, "role": "admin"}),
        json!({"sql": sql, "caller": "hub-admin"}),
    ] {
        let reply = hub.post(&token, "/v1/sql", &body, "").await;
        assert_eq!(refusal(&reply), "sql-syntax", "{body}");
    }
    let beside = hub.post(&token, "/v1/sql?purpose=audit&row_security=off", &json!({ "sql": sql }), "").await;
    assert_eq!(beside.rows(), plain);
    let request = axum::http::Request::post("/v1/sql")
        .header("authorization", format!("Bearer {token}"))
        .header("content-type", "application/json")
        .header("purpose", "audit")
        .header("x-forwarded-user", "hub-admin")
        .header("gridhub-policy", "none");
    let request = request.body(axum::body::Body::from(json!({ "sql": sql }).to_string())).unwrap();
    assert_eq!(hub.send(request).await.rows(), plain);
}

/// Another way to the same rows does not know the rule: table functions, readers of files, catalogues. (A9:
/// ClickHouse#97682, #115230, #108462)
#[tokio::test(flavor = "multi_thread")]
async fn a09_there_is_no_other_way_to_the_rows() {
    let hub = TestHub::with_city().await;
    let token = hub.token("health-analyst");
    let ask = async |sql: String| hub.ask_as(&token, "epidemiology", &sql, "").await;
    let unknown_function = shape(&ask("SELECT * FROM no_such_function('x')".into()).await);
    let files = super::listing(&hub.data().join("tables").join("cdc.cases"));
    let file = &files.iter().find(|(file, _)| file.ends_with(".parquet")).unwrap().0;
    for function in [
        "generate_series",
        "range",
        "read_parquet",
        "read_csv",
        "read_json",
        "parquet_metadata",
        "parquet_scan",
        "delta_scan",
        "delta_table",
        "table_changes",
        "metadata_cache",
        "statistics_cache",
        "list_files_cache",
        "arrow_scan",
        "iceberg_scan",
        "glob",
        "url",
        "file",
        "s3",
        "query",
        "query_table",
        "pg_ls_dir",
        "pg_read_file",
        "mergetreeindex",
        "dblink",
    ] {
        let reply = ask(format!("SELECT * FROM {function}('{file}')")).await;
        assert_eq!(refusal(&reply), "refused function-not-listed", "{function}");
        assert_eq!(shape(&reply), unknown_function, "{function}");
    }
    let unknown_table = shape(&ask("SELECT * FROM nothing.nothing".into()).await);
    for table in [
        format!("'{file}'"),
        format!("\"{file}\""),
        "'/etc/passwd'".into(),
        "'file:///etc/passwd'".into(),
        "'s3://bucket/cases.parquet'".into(),
        "'http://127.0.0.1:1/cases.parquet'".into(),
        "\"cases.parquet\"".into(),
        "\"tables/cdc.cases\"".into(),
        "delta.cases".into(),
        "parquet.cases".into(),
        "information_schema.tables".into(),
        "information_schema.columns".into(),
        "information_schema.views".into(),
        "information_schema.schemata".into(),
        "information_schema.df_settings".into(),
        "information_schema.routines".into(),
        "information_schema.parameters".into(),
        "hub.information_schema.tables".into(),
        "pg_catalog.pg_class".into(),
        "pg_catalog.pg_attribute".into(),
        "pg_class".into(),
        "pg_stats".into(),
        "pg_catalog.pg_stats".into(),
        "sqlite_master".into(),
        "system.tables".into(),
        "hub.access_log".into(),
        "hub.policies".into(),
        "stored".into(),
        "public.stored".into(),
        "metadata.tokens".into(),
    ] {
        let reply = ask(format!("SELECT * FROM {table}")).await;
        assert_eq!(refusal(&reply), "unknown-table", "{table}");
        assert_eq!(shape(&reply), unknown_table, "{table}");
    }
    let elsewhere = hub.folder.path().join("out.csv");
    for sql in [
        format!("COPY cases TO '{}'", elsewhere.display()),
        format!("COPY (SELECT * FROM cases) TO '{}' STORED AS CSV", elsewhere.display()),
        format!("CREATE EXTERNAL TABLE t STORED AS PARQUET LOCATION '{file}'"),
        format!("CREATE UNBOUNDED EXTERNAL TABLE t STORED AS CSV LOCATION '{file}'"),
        "CREATE VIEW v AS SELECT * FROM cases".into(),
        "CREATE FUNCTION f() RETURNS INT RETURN 1".into(),
        "TABLE cases; TABLE cases".into(),
        "CALL f()".into(),
        "DESCRIBE cases".into(),
        "DESC cases".into(),
    ] {
        let said = refusal(&ask(sql.clone()).await);
        assert!(["refused read-only", "refused one-statement", "sql-syntax"].contains(&said.as_str()), "{sql}: {said}");
    }
    assert!(!elsewhere.exists());
    assert!(ask("TABLE cases".into()).await.status >= 400, "the whole of it holds a sealed field");
}

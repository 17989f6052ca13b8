//! Asking: parameters, the catalogue, explanations, limits.

use std::time::Duration;

use insta::assert_snapshot;
use serde_json::json;

use crate::support::{TestClock, TestHub, changed};

#[tokio::test(flavor = "multi_thread")]
async fn parameters_are_bound_and_not_pasted() {
    let hub = TestHub::with_city().await;
    let token = hub.token("health-analyst");
    let ask = async |sql: &str, params: serde_json::Value| {
        let body = json!({"sql": sql, "purpose": "epidemiology", "params": params});
        hub.post(&token, "/v1/sql", &body, "").await
    };
    let reply = ask("SELECT name FROM divisions WHERE code = $1 AND level = $2", json!(["420191", 3])).await;
    assert_snapshot!(reply.rows(), @r#"["望江区"]"#);
    let quoted = ask("SELECT count(*) FROM divisions WHERE code = $1", json!(["' OR true --"])).await;
    assert_snapshot!(quoted.rows(), @"[0]");
    let any = "SELECT count(*) FROM divisions WHERE code = ANY ($1)";
    assert_snapshot!(ask(any, json!([["42", "4201", null]])).await.rows(), @"[2]");
    assert_snapshot!(ask(any, json!(["{42,4201}"])).await.rows(), @"[2]");
    assert_snapshot!(ask(any, json!([[]])).await.rows(), @"[0]");
    assert_snapshot!(ask("SELECT count(*) FROM divisions WHERE level <> ALL ($1)", json!([[1, 6.0]])).await.rows(), @"[5]");
    assert_snapshot!(ask(any, json!([["42", 4201]])).await.problem(), @"400 sql-syntax: an array in `params` holds numbers, texts or booleans, or nulls among them");
    assert_snapshot!(ask(any, json!(["42"])).await.problem(), @"400 sql-syntax: ANY and ALL take an array of one dimension for $1; for one value write `x = $1`");
    assert_snapshot!(ask(any, json!([])).await.problem(), @"400 sql-syntax: the statement has more placeholders than `params` has values");
    assert_snapshot!(ask("SELECT count(*) FROM divisions WHERE code IN ($1)", json!([["42"]])).await.problem(), @"422 refused: an array stands where one value belongs");
    assert_snapshot!(ask("SELECT $1 + $2", json!([1])).await.problem(), @"400 sql-syntax: the statement has more placeholders than `params` has values");
    assert_snapshot!(ask("SELECT $1", json!([{"a": 1}])).await.problem(), @"400 sql-syntax: `params` holds numbers, texts, booleans and nulls");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_catalogue_holds_what_the_caller_may_see() {
    let hub = TestHub::with_city().await;
    let planner = hub.token("pharmacy-planner");
    let listed = hub.get(&planner, "/v1/datasets").await.json();
    let names: Vec<_> = listed["datasets"].as_array().unwrap().iter().map(|d| d["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["cdc.cases", "pharmacy.sales", "platform.divisions"]);
    let cases = hub.get(&planner, "/v1/datasets/cdc.cases").await.json();
    assert_eq!(cases["rows"], "aggregate");
    let fields: Vec<_> = cases["fields"]
        .as_array()
        .unwrap()
        .iter()
        .map(|field| format!("{} {}", field["name"].as_str().unwrap(), field["exposure"].as_str().unwrap()))
        .collect();
    assert_eq!(fields, ["id_no aggregate", "grid_code generalised", "confirmed_date clear"]);
    let hidden = hub.get(&planner, "/v1/datasets/community.residents").await;
    let nowhere = hub.get(&planner, "/v1/datasets/community.nothing").await;
    assert_eq!((hidden.status, hidden.problem()), (404, nowhere.problem()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_is_explained_without_being_run() {
    let hub = TestHub::with_city().await;
    let token = hub.token("health-analyst");
    let explain = async |sql: &str| {
        let body = json!({"sql": sql, "purpose": "epidemiology"});
        let mut reply = hub.post(&token, "/v1/explain", &body, "").await.json();
        for member in ["query_id", "log_index"] {
            assert!(!reply.as_object_mut().unwrap().remove(member).unwrap().is_null());
        }
        reply.to_string()
    };
    assert_snapshot!(explain("SELECT sex, count(DISTINCT id_no) AS n FROM cases WHERE severity IS NULL GROUP BY 1").await, @r#"{"verdict":"answered","columns":[{"name":"sex","type":"text","exposure":"clear"},{"name":"n","type":"bigint","exposure":"released","noise":{"of":"count","sd":1.41},"reached_by":[{"field":"cdc.cases.severity","how":"filter"}]}],"reads":{"cdc.cases.*":"rows","cdc.cases.severity":"aggregate","cdc.cases.sex":"clear"},"protection":{"mode":"protected","threshold":14,"noise_sd":1.41}}"#);
    assert_snapshot!(explain("SELECT sex, count(*) FROM cases WHERE severity LIKE '重%' GROUP BY 1").await, @r#"{"verdict":"refused","columns":[],"reads":{},"refusal":{"rule":"protected-filter","why":"`severity` is tested by something other than AND of =, IN, BETWEEN, <, <=, >, >= and IS NULL with literals","try":"filter by sex, birth_date, grid_code, substr(grid_code, 1, 6), substr(grid_code, 1, 9), substr(grid_code, 1, 12), onset_date, date_trunc('week', onset_date), date_trunc('month', onset_date), confirmed_date, date_trunc('week', confirmed_date), date_trunc('month', confirmed_date), severity"}}"#);
    assert_snapshot!(explain("SELECT substr(grid_code, 1, 9) AS street, avg(temperature) AS mean FROM visits GROUP BY 1").await, @r#"{"verdict":"answered","columns":[{"name":"street","type":"text","exposure":"clear"},{"name":"mean","type":"numeric(8,5)","exposure":"released","noise":{"of":"mean"},"reached_by":[{"field":"community.visits.temperature","how":"value"}]}],"reads":{"community.visits.*":"rows","community.visits.grid_code":"clear","community.visits.temperature":"aggregate"},"protection":{"mode":"protected","threshold":14,"noise_sd":1.41}}"#);
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_hold() {
    let hub = TestHub::with(TestClock::at("2026-01-07T01:00:00Z"), |opening| {
        opening.query_limits.rows = 1_000;
        opening.query_limits.deadline = Duration::from_millis(1_500);
        opening.query_limits.memory = 32 << 20;
    })
    .await;
    let token = hub.token("health-analyst");
    let ask = async |sql: &str| hub.ask_as(&token, "epidemiology", sql, "").await;
    let ten = "(VALUES (0), (1), (2), (3), (4), (5), (6), (7), (8), (9))";
    let cross = |times: usize| {
        let tables: Vec<_> = (0..times).map(|at| format!("{ten} t{at}(x{at})")).collect();
        tables.join(", ")
    };
    assert_snapshot!(ask(&format!("SELECT * FROM {}", cross(4))).await.problem(), @"422 resource-limit: the answer has more than 1000 rows or 256 MiB; aggregate it or add a LIMIT");
    assert_snapshot!(ask(&format!("SELECT sum(x0 * x9) FROM {}", cross(10))).await.problem(), @"504 timeout: the query took longer than 1 s; narrow it or aggregate");
    let deep = "WITH RECURSIVE k AS (SELECT 0 AS n UNION ALL SELECT n + 1 FROM k) SELECT count(*) FROM k";
    assert_eq!(ask(deep).await.status, 504, "a recursion without end ends");
    assert_eq!(ask("SELECT 1").await.status, 200, "and the hub goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sealed_measure_without_bounds_is_not_summed() {
    let folder = tempfile::tempdir().unwrap();
    let bounds = "        logicalTypeOptions: {minimum: 30, maximum: 45}\n";
    let centre = "          - {property: gridhub.centre, value: \"36.8\"}\n";
    let schemas = changed(folder.path(), "schemas", "community.visits.odcs.yaml", |text| {
        assert!(text.contains(bounds) && text.contains(centre), "{text}");
        text.replace(bounds, "").replace(centre, "")
    });
    let hub = TestHub::with(TestClock::at("2026-01-07T01:00:00Z"), |opening| opening.schemas = schemas).await;
    let reply = hub.ask("health-analyst", "epidemiology", "SELECT sum(temperature) FROM visits").await;
    assert_eq!(reply.json()["rule"], "unbounded-measure", "{}", reply.text());
    let counted = hub.ask("health-analyst", "epidemiology", "SELECT count(temperature) FROM visits").await;
    assert_eq!(counted.rows(), "[null]");
}

#[tokio::test(flavor = "multi_thread")]
async fn statements_that_are_deep_are_planned_or_refused_and_never_fatal() {
    let hub = TestHub::with_city().await;
    let token = hub.token("health-analyst");
    let ask = async |sql: String| hub.ask_as(&token, "epidemiology", &sql, "").await;
    let chain = |count: usize, part: &str| vec![part; count].join(" ");
    assert_eq!(ask(format!("SELECT 1 {}", chain(390, "+ 1"))).await.rows(), "[391]");
    assert_eq!(
        ask(format!("SELECT count(*) FROM visits WHERE true {}", chain(180, "AND mode <> 'x'"))).await.rows(),
        "[16]"
    );
    assert_eq!(ask(format!("SELECT 1 {}", chain(59, "UNION ALL SELECT 1"))).await.status, 200);
    for sql in [
        format!("SELECT 1 {}", chain(12_000, "+ 1")),
        format!("SELECT 1 {}", chain(7_000, "::int")),
        format!("SELECT 1 {}", chain(2_000, "UNION ALL SELECT 1")),
        format!("SELECT 'a' {}", chain(9_000, "|| 'a'")),
        format!("SELECT {} 1", chain(9_000, "-")),
        format!("SELECT {} true", chain(9_000, "NOT")),
        format!("SELECT 1 {}", chain(7_000, "NOTNULL")),
        format!("SELECT 1 {}", chain(5_000, "IN (1)")),
        format!("SELECT now() {}", chain(3_000, "AT TIME ZONE 'UTC'")),
        format!("SELECT 1 {}", chain(3_000, "MINUS SELECT 1")),
        format!("SELECT 1 {} FROM visits", chain(600, ", rank() OVER (ORDER BY mode)")),
    ] {
        let reply = ask(sql).await;
        assert_eq!(reply.status, 400, "{}", reply.text());
    }
    let tokens: Vec<_> = (0..1_500).map(|n| format!("'{n:032x}'")).collect();
    let listed = format!("SELECT count(*) FROM visits WHERE id_no IN ({})", tokens.join(", "));
    assert_eq!(ask(listed).await.rows(), "[0]");
    let list: Vec<_> = (0..5_000).map(|n| format!("'{n}'")).collect();
    assert_eq!(ask(format!("SELECT count(*) FROM visits WHERE mode IN ({})", list.join(", "))).await.rows(), "[0]");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_purpose_need_not_be_named() {
    let hub = TestHub::with_city().await;
    assert_snapshot!(hub.ask("grid-worker", "", "SELECT count(*) FROM cases").await.rows(), @"[12]");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grant_ends_with_its_declaration() {
    let hub = TestHub::with_city().await;
    assert_eq!(hub.ask("health-analyst", "epidemiology", "SELECT count(*) FROM cases").await.status, 200);
    hub.clock.step("2030-01-01T00:00:00Z".parse::<chrono::DateTime<chrono::Utc>>().unwrap() - hub.clock.now());
    let ended = hub.ask("health-analyst", "epidemiology", "SELECT count(*) FROM cases").await;
    assert_eq!(ended.problem(), "422 unknown-table: unknown table `cases`; GET /v1/datasets lists yours");
    let own = hub.ask("cdc-epidemiologist", "epidemiology", "SELECT count(*) FROM cases").await;
    assert_eq!(own.rows(), "[14]", "the owner's own work goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn operations_answer() {
    let hub = TestHub::with_city().await;
    assert_eq!(hub.get("", "/healthz").await.text(), "ok\n");
    assert_eq!(hub.get("", "/readyz").await.text(), "ready\n");
    assert_eq!(hub.get("", "/openapi.json").await.json()["openapi"], "3.1.0");
}

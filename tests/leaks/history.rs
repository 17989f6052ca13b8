//! D1 to D6: earlier versions, files, policies that change, and what receipts tell.

use chrono::TimeDelta;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{listing, refusal, shape, whole};
use crate::{
    support::{CSV, TestHub, changed, fixture},
    worlds::{keyed, lines, owned},
};

/// An earlier version, or the feed of changes, is read without the policy of today. (D1: apache/hudi#10581)
#[tokio::test(flavor = "multi_thread")]
async fn d01_there_is_no_yesterday() {
    let hub = TestHub::with_city().await;
    // One resident left and one moved: their old rows are on disk and not in the table.
    let sql = "SELECT count(*) FROM residents";
    assert_eq!(hub.ask("health-analyst", "epidemiology", sql).await.rows(), "[15]");
    let token = hub.token("health-analyst");
    for sql in [
        "SELECT * FROM residents VERSION AS OF 1",
        "SELECT * FROM residents TIMESTAMP AS OF '2026-01-05'",
        "SELECT * FROM residents FOR VERSION AS OF 1",
        "SELECT * FROM residents FOR TIMESTAMP AS OF '2026-01-05'",
        "SELECT * FROM residents FOR SYSTEM_TIME AS OF '2026-01-05 00:00:00'",
        "SELECT * FROM residents FOR SYSTEM_TIME AS OF TIMESTAMP '2026-01-05 00:00:00'",
        "SELECT * FROM residents FOR SYSTEM_VERSION AS OF 1",
        "SELECT * FROM residents FOR SYSTEM_TIME ALL",
        "SELECT * FROM residents FOR SYSTEM_TIME BETWEEN '2026-01-05' AND '2026-01-06'",
        "SELECT * FROM residents AS OF SYSTEM TIME '-1h'",
        "SELECT * FROM residents AT (VERSION => 1)",
        "SELECT * FROM residents BEFORE (STATEMENT => 'x')",
        "SELECT * FROM residents@v1",
        "SELECT * FROM residents@20260105000000000",
        "SELECT * FROM \"residents@v1\"",
        "SELECT * FROM \"residents$history\"",
        "SELECT * FROM \"residents$snapshots\"",
        "SELECT * FROM community.residents.history",
        "SELECT * FROM community.residents.\"1\"",
        "SELECT * FROM community.residents_changes",
        "SELECT * FROM table_changes('community.residents', 0)",
        "SELECT * FROM table_changes('community.residents', 0, 1)",
        "SELECT * FROM cdf('community.residents')",
        "SELECT * FROM changes('community.residents')",
        "SELECT * FROM delta_history('community.residents')",
        "SELECT * FROM STREAM(residents)",
        "SELECT * FROM residents CHANGES (INFORMATION => DEFAULT) AT (VERSION => 0)",
        "DESCRIBE HISTORY residents",
        "RESTORE TABLE residents TO VERSION AS OF 0",
        "SELECT _change_type FROM residents",
        "SELECT _commit_version FROM residents",
        "SELECT __arrival FROM residents",
        "SELECT __batch FROM residents",
    ] {
        let said = refusal(&hub.ask_as(&token, "epidemiology", sql, "").await);
        let known = [
            "sql-syntax",
            "unknown-table",
            "unknown-column",
            "refused unsupported",
            "refused read-only",
            "refused function-not-listed",
        ];
        assert!(known.contains(&said.as_str()), "{sql}: {said}");
    }
    let body = json!({"sql": "SELECT count(*) FROM residents", "purpose": "epidemiology", "version": 1});
    assert_eq!(refusal(&hub.post(&token, "/v1/sql", &body, "").await), "sql-syntax");
    for beside in ["version=1", "snapshot=0", "as_of=2026-01-05", "timestamp=2026-01-05T00:00:00Z"] {
        let body = json!({"sql": sql, "purpose": "epidemiology"});
        let reply = hub.post(&token, &format!("/v1/sql?{beside}"), &body, "").await;
        assert_eq!(reply.rows(), "[15]", "{beside}");
    }
    // Who left is in no answer: the earlier row of the grid that now has two residents fewer.
    let gone = "SELECT grid_code, count(DISTINCT id_no) FROM residents GROUP BY 1 ORDER BY 1";
    let rows = hub.ask_as(&token, "epidemiology", gone, "").await.rows();
    assert!(rows.contains(r#"["420191001002001",2]"#), "{rows}");
}

/// A link to the file behind a table, or its name, lets its reader go past the hub. (D2: delta-sharing#132)
#[tokio::test(flavor = "multi_thread")]
async fn d02_no_file_is_ever_named() {
    let hub = TestHub::with_city().await;
    let token = hub.token("health-analyst");
    let uploader = hub.token("community-uploader");
    let mut told = Vec::new();
    for sql in [
        "SELECT count(*) FROM visits",
        "SELECT visit_id, grid_code FROM visits",
        "SELECT substr(grid_code, 1, 9), avg(temperature) FROM visits GROUP BY 1",
        "SELECT 1 FROM nothing",
        "SELECT nothing FROM visits",
        "SELECT temperature FROM visits",
        "SELECT CAST(mode AS INT) FROM visits",
        "SELECT regexp_like(mode, '(') FROM visits",
        "SELECT 1 / (length(mode) - length(mode)) FROM visits",
        "SELEC",
        "EXPLAIN SELECT * FROM divisions",
        "EXPLAIN ANALYZE SELECT * FROM divisions",
        "COPY divisions TO 'x'",
    ] {
        for accept in [
            "application/json",
            "text/csv",
            "application/x-ndjson",
            "application/vnd.apache.arrow.stream",
            "application/vnd.apache.parquet",
        ] {
            told.push((sql.to_owned(), hub.ask_as(&token, "epidemiology", sql, accept).await));
        }
        let body = json!({"sql": sql, "purpose": "epidemiology"});
        told.push((sql.to_owned(), hub.post(&token, "/v1/explain", &body, "").await));
    }
    let id = Uuid::now_v7();
    let visits = fixture("community.visits.csv");
    told.push(("push".into(), hub.push_as(&uploader, "community.visits", id, CSV, visits.clone()).await));
    told.push((
        "push of nonsense".into(),
        hub.push("community-uploader", "community.visits", CSV, b"x".to_vec()).await,
    ));
    for path in [
        "/v1/datasets?purpose=epidemiology".to_owned(),
        "/v1/datasets/cdc.cases?purpose=epidemiology".to_owned(),
        "/v1/datasets/nothing.nothing?purpose=epidemiology".to_owned(),
        "/v1/log/checkpoint".to_owned(),
        "/openapi.json".to_owned(),
    ] {
        told.push((path.clone(), hub.get(&token, &path).await));
    }
    told.push(("receipt".into(), hub.get(&uploader, &format!("/v1/datasets/community.visits/batches/{id}")).await));
    let officer = hub.token("compliance-officer");
    told.push(("log".into(), hub.get(&officer, "/v1/log/entries?count=1000").await));

    let folder = hub.folder.path().display().to_string();
    let files = listing(&hub.data().join("tables"));
    let names: Vec<_> = files.iter().map(|(file, _)| file.rsplit('/').next().unwrap()).collect();
    assert!(names.iter().filter(|name| name.ends_with(".parquet")).count() >= 10);
    for (what, reply) in &told {
        let said = whole(reply);
        for word in [folder.as_str(), "_delta_log", "part-0", "file://", "/tables/", "metadata.sqlite", "s3://"] {
            assert!(!said.contains(word), "{what} says {word}: {said}");
        }
        assert!(!names.iter().any(|name| said.contains(name)), "{what} names a file: {said}");
        assert!(!reply.headers.contains_key("location") && !reply.headers.contains_key("link"), "{what}");
    }
}

// D3, the erased person in earlier versions, has its test with erasure itself.

/// A stream of changes does not know the rows that a question would leave out. (D4: WaveHouse#319,
/// supabase#3053)
#[tokio::test(flavor = "multi_thread")]
async fn d04_there_is_no_stream_yet() {
    let hub = TestHub::with_city().await;
    let token = hub.token("grid-worker");
    let nowhere = shape(&hub.get(&token, "/v1/nowhere").await);
    assert_eq!(nowhere.0, 404);
    for path in
        ["/v1/live", "/v1/live?sql=SELECT%201", "/v1/live?sql=SELECT%20*%20FROM%20visits&purpose=case-management"]
    {
        assert_eq!(shape(&hub.get(&token, path).await), nowhere, "{path}");
        assert_eq!(shape(&hub.post(&token, path, &json!({"sql": "SELECT 1"}), "text/event-stream").await), nowhere);
    }
}

/// What was made under an older policy goes on being shown. (D5: pgsql-ivm#81)
#[tokio::test(flavor = "multi_thread")]
async fn d05_a_tighter_policy_holds_at_once() {
    let mut hub = TestHub::with_city().await;
    let analyst = hub.token("health-analyst");
    let worker = hub.token("grid-worker");
    let born = "SELECT count(DISTINCT birth_date) FROM cases";
    let cases = "SELECT count(*) FROM cases";
    assert_eq!(hub.ask_as(&analyst, "epidemiology", born, "").await.rows(), "[14]");
    assert_eq!(hub.ask_as(&worker, "", cases, "").await.rows(), "[12]");

    // A field, a dataset, a territory taken away; tokens stay in force.
    let folder = tempfile::tempdir().unwrap();
    let policies = changed(folder.path(), "policies", "cdc.cedar", |text| {
        text.replace(r#"["grid_code", "birth_date"]"#, r#"["grid_code"]"#)
    });
    hub.restart_with(|opening| opening.policies = policies).await;
    assert_eq!(refusal(&hub.ask_as(&analyst, "epidemiology", born, "").await), "unknown-column");
    let listed = hub.get(&analyst, "/v1/datasets/cdc.cases?purpose=epidemiology").await.text();
    assert!(!listed.contains("birth_date"), "{listed}");

    let folder = tempfile::tempdir().unwrap();
    let policies = changed(folder.path(), "policies", "cdc.cedar", |text| {
        text + "\n@id(\"test-forbid\")\nforbid (principal in Role::\"worker\", action == Action::\"rows:read\", \
                resource in Dataset::\"cdc.cases\");\n"
    });
    hub.restart_with(|opening| opening.policies = policies).await;
    let refused = hub.ask_as(&worker, "", cases, "").await;
    assert_eq!(refusal(&refused), "unknown-table");
    let nowhere = hub.ask_as(&worker, "", "SELECT count(*) FROM casez", "").await;
    assert_eq!(shape(&refused), shape(&nowhere));

    let folder = tempfile::tempdir().unwrap();
    let policies = changed(folder.path(), "policies", "entities.json", |text| {
        let worker = text.lines().find(|line| line.contains("\"id\": \"grid-worker\"")).unwrap().to_owned();
        let moved = worker.replace("420191001001", "420191001002");
        assert_ne!(worker, moved);
        text.replace(&worker, &moved)
    });
    hub.restart_with(|opening| opening.policies = policies).await;
    let grids = "SELECT grid_code, count(*) FROM cases GROUP BY 1 ORDER BY 1";
    assert_eq!(hub.ask_as(&worker, "", grids, "").await.rows(), r#"["420191001002001",2]"#);

    // A declaration that ends takes its grants with it, at once.
    let folder = tempfile::tempdir().unwrap();
    let policies = changed(folder.path(), "policies", "entities.json", |text| {
        assert!(text.contains("2029-12-31"));
        text.replace("2029-12-31", "2026-01-07T01:00:10Z")
    });
    hub.restart_with(|opening| opening.policies = policies).await;
    assert_eq!(hub.ask_as(&analyst, "epidemiology", cases, "").await.rows(), "[14]");
    hub.clock.step(TimeDelta::milliseconds(9_999));
    assert_eq!(hub.ask_as(&analyst, "epidemiology", cases, "").await.rows(), "[14]");
    hub.clock.step(TimeDelta::milliseconds(1));
    assert_eq!(refusal(&hub.ask_as(&analyst, "epidemiology", cases, "").await), "unknown-table");
    let own = hub.ask("cdc-epidemiologist", "epidemiology", cases).await;
    assert_eq!(own.rows(), "[14]", "the owner's own work goes on");
}

/// A receipt without what differs from batch to batch.
fn essence(reply: &crate::support::Reply) -> (u16, Value) {
    let mut receipt = reply.json();
    for member in ["batch_id", "log_index", "signature"] {
        receipt.as_object_mut().unwrap().shift_remove(member);
    }
    (reply.status, receipt)
}

/// The answer to a write says whether somebody else has the same key, row or person. (D6: BigQuery's page on
/// practices, unique keys as oracles)
#[tokio::test(flavor = "multi_thread")]
async fn d06_receipts_know_nothing_of_others() {
    // The hospital may push where only the owners may elsewhere.
    let folder = tempfile::tempdir().unwrap();
    let policies = changed(folder.path(), "policies", "community.cedar", |text| {
        let grant = |id: &str, action: &str| {
            format!(
                "\n@id(\"{id}\")\npermit (principal == Caller::\"hospital-uploader\", action == Action::\"{action}\", \
                 resource)\nwhen {{ resource in [Agency::\"community\", Agency::\"cdc\"] }};\n"
            )
        };
        text + &grant("test-hospital-push", "batch:push") + &grant("test-hospital-write", "rows:write")
    });
    let one = keyed(|opening| opening.policies = policies.clone()).await;
    let other = keyed(|opening| opening.policies = policies.clone()).await;
    for hub in [&one, &other] {
        let pushed = hub.push("platform-uploader", "platform.divisions", CSV, fixture("platform.divisions.csv")).await;
        assert_eq!(pushed.status, 201);
    }
    let text = |name: &str| String::from_utf8(fixture(name)).unwrap();
    // In the other world somebody was here before: with the same rows, with the same keys in another state, with the
    // same people, and under the same batch id.
    let id = Uuid::now_v7();
    let hospital = other.token("hospital-uploader");
    let taken = lines(&text("community.residents.csv"), |cells| {
        let mut cells = owned(cells);
        cells[10] = "D".into();
        cells[11] = "2026-01-06 23:00:00".into();
        Some(cells)
    });
    let worse = lines(&text("cdc.cases.csv"), |cells| {
        let mut cells = owned(cells);
        cells[10] = "重型".into();
        Some(cells)
    });
    for (dataset, file) in [
        ("community.visits", text("community.visits.csv")),
        ("community.residents", taken),
        ("cdc.cases", worse),
        ("cdc.cases", text("cdc.cases.csv")),
        ("hospital.tests", text("hospital.tests.csv")),
    ] {
        let batch = if dataset == "community.visits" { id } else { Uuid::now_v7() };
        let reply = other.push_as(&hospital, dataset, batch, CSV, file.into_bytes()).await;
        assert_eq!((reply.status, &reply.json()["rows_rejected"]), (201, &json!(0)), "{dataset}: {}", reply.text());
    }

    let (mine, theirs) = (one.token("community-uploader"), other.token("community-uploader"));
    let (cdc, theirs_cdc) = (one.token("cdc-uploader"), other.token("cdc-uploader"));
    let again = Uuid::now_v7();
    let visits = text("community.visits.csv");
    let dirty = visits.replace("420191195302110043", "420191195302110044");
    for (who, dataset, batch, file) in [
        ((&mine, &theirs), "community.visits", id, visits.clone()),
        ((&mine, &theirs), "community.visits", id, visits.clone()),
        ((&mine, &theirs), "community.visits", again, visits.clone()),
        ((&mine, &theirs), "community.visits", Uuid::now_v7(), dirty),
        ((&mine, &theirs), "community.visits", id, text("community.residents.csv")),
        ((&mine, &theirs), "community.residents", Uuid::now_v7(), text("community.residents.csv")),
        ((&mine, &theirs), "community.residents", Uuid::now_v7(), text("community.residents.2.csv")),
        ((&cdc, &theirs_cdc), "cdc.cases", Uuid::now_v7(), text("cdc.cases.csv")),
        ((&cdc, &theirs_cdc), "cdc.cases", Uuid::now_v7(), text("cdc.cases.csv")),
    ] {
        let here = one.push_as(who.0, dataset, batch, CSV, file.clone().into_bytes()).await;
        let there = other.push_as(who.1, dataset, batch, CSV, file.into_bytes()).await;
        assert_eq!(essence(&here), essence(&there), "{dataset}");
    }
    // The pusher's own tables do not change by what others sent either.
    for (caller, sql) in [
        ("community-uploader", "SELECT count(*), count(DISTINCT visit_id) FROM visits"),
        ("community-uploader", "SELECT count(*), count(DISTINCT household_id) FROM residents"),
        ("cdc-uploader", "SELECT count(*), count(DISTINCT case_id) FROM cases"),
    ] {
        let here = one.ask(caller, "", sql).await.rows();
        assert_eq!(here, other.ask(caller, "", sql).await.rows(), "{sql}");
    }
    assert_eq!(one.ask("cdc-uploader", "", "SELECT count(*) FROM cases").await.rows(), "[14]");
    // Somebody else's receipt is nobody's, under the same id too.
    let path = format!("/v1/datasets/community.visits/batches/{again}");
    let hidden = other.get(&hospital, &path).await;
    let nowhere = other.get(&hospital, &format!("/v1/datasets/community.visits/batches/{}", Uuid::now_v7())).await;
    assert_eq!((hidden.status, hidden.text()), (404, nowhere.text()));
}

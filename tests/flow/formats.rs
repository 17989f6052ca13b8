//! One answer in five formats, each carrying the same facts.

use std::io::Cursor;

use arrow::ipc::reader::StreamReader;
use bytes::Bytes;
use insta::assert_snapshot;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use crate::support::TestHub;

const PLAIN: &str = "SELECT code, level, name FROM divisions WHERE level <= 2 ORDER BY level";

#[tokio::test(flavor = "multi_thread")]
async fn json_has_columns_rows_and_facts() {
    let hub = TestHub::with_city().await;
    let sql = "SELECT grid_code, confirmed_date, count(DISTINCT id_no) AS people, min(id_no) IS NULL AS nobody, 1.50 AS exact \
               FROM cases GROUP BY 1, 2 ORDER BY 1, 2";
    let body = hub.ask("health-analyst", "epidemiology", sql).await.json();
    assert_snapshot!(body["columns"].to_string(), @r#"[{"name":"grid_code","type":"text","exposure":"generalised"},{"name":"confirmed_date","type":"date","exposure":"clear"},{"name":"people","type":"bigint","exposure":"clear"},{"name":"nobody","type":"boolean","exposure":"clear"},{"name":"exact","type":"double precision","exposure":"clear"}]"#);
    assert_snapshot!(body["rows"].to_string(), @r#"[["420191001001","2026-01-05",8,false,1.5],["420191001001","2026-01-06",4,false,1.5],["420191001002","2026-01-06",2,false,1.5]]"#);
    assert_snapshot!(body["protection"].to_string(), @r#"{"mode":"exact"}"#);
    assert_eq!(body["notices"], serde_json::json!([]));
    for member in ["query_id", "snapshot", "policy"] {
        assert!(body[member].as_str().is_some_and(|text| text.len() >= 16), "{member}");
    }
    assert!(body["log_index"].as_u64().is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn times_and_decimals_keep_their_form() {
    let hub = TestHub::with_city().await;
    let sql = "SELECT visited_at, temperature FROM visits ORDER BY visited_at LIMIT 1";
    let reply = hub.ask("grid-worker", "case-management", sql).await;
    assert_snapshot!(reply.rows(), @r#"["2026-01-05T07:30:00+08:00",36.0]"#);
}

#[tokio::test(flavor = "multi_thread")]
async fn protected_answers_say_so_in_every_format() {
    let hub = TestHub::with_city().await;
    let token = hub.token("health-analyst");
    let sql = "SELECT substr(grid_code, 1, 9) AS street, avg(temperature) AS mean FROM visits GROUP BY 1";
    let protection = r#"{"mode":"protected","threshold":14,"noise_sd":1.41}"#;

    let json = hub.ask_as(&token, "epidemiology", sql, "application/json").await;
    assert_eq!(json.json()["protection"].to_string(), protection);
    assert_eq!(json.json()["columns"][1]["exposure"], "released");
    for accept in [
        "application/json",
        "application/x-ndjson",
        "text/csv",
        "application/vnd.apache.arrow.stream",
        "application/vnd.apache.parquet",
    ] {
        let reply = hub.ask_as(&token, "epidemiology", sql, accept).await;
        assert_eq!(reply.status, 200, "{accept}");
        assert_eq!(reply.header("gridhub-protection"), protection, "{accept}");
        assert!(reply.header("content-type").starts_with(accept), "{accept}");
        assert_eq!(reply.header("gridhub-query-id").len(), 36, "{accept}");
        assert!(reply.header("gridhub-notices").contains("below 14"), "{accept}");
    }
    let stream = hub.ask_as(&token, "epidemiology", sql, "application/vnd.apache.arrow.stream").await;
    let reader = StreamReader::try_new(Cursor::new(stream.body), None).unwrap();
    let file = hub.ask_as(&token, "epidemiology", sql, "application/vnd.apache.parquet").await;
    let file = ParquetRecordBatchReaderBuilder::try_new(Bytes::from(file.body)).unwrap();
    for schema in [reader.schema(), file.schema().clone()] {
        assert_eq!(schema.metadata()["gridhub.protection"], protection);
        let [street, mean] = [0, 1].map(|at| schema.field(at).metadata());
        assert_eq!((street["gridhub.exposure"].as_str(), street.get("gridhub.noise")), ("clear", None));
        assert_eq!(
            (mean["gridhub.exposure"].as_str(), mean["gridhub.noise"].as_str()),
            ("released", r#"{"of":"mean"}"#)
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rows_are_the_same_in_every_format() {
    let hub = TestHub::with_city().await;
    let token = hub.token("health-analyst");
    let ask = async |accept: &str| hub.ask_as(&token, "epidemiology", PLAIN, accept).await;
    assert_snapshot!(ask("").await.rows(), @r#"
    ["42",1,"云省"]
    ["4201",2,"云泽市"]
    "#);
    assert_snapshot!(ask("application/x-ndjson").await.text(), @r#"
    {"code":"42","level":1,"name":"云省"}
    {"code":"4201","level":2,"name":"云泽市"}
    "#);
    assert_snapshot!(ask("text/csv").await.text(), @"
    code,level,name
    42,1,云省
    4201,2,云泽市
    ");
    let stream = ask("application/vnd.apache.arrow.stream").await.body;
    let stream: Vec<_> = StreamReader::try_new(Cursor::new(stream), None).unwrap().map(Result::unwrap).collect();
    let file = ask("application/vnd.apache.parquet").await.body;
    let file: Vec<_> = ParquetRecordBatchReaderBuilder::try_new(Bytes::from(file))
        .unwrap()
        .build()
        .unwrap()
        .map(Result::unwrap)
        .collect();
    assert_eq!(stream[0].columns(), file[0].columns());
    assert_eq!(stream[0].num_rows(), 2);

    let empty =
        hub.ask_as(&token, "epidemiology", "SELECT code, level FROM divisions WHERE level > 9", "text/csv").await;
    assert_snapshot!(empty.text(), @"code,level");
}

//! Bad input: each gets a clear error that says what to do, and nothing is lost.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, Float32Array, RecordBatch, StringArray, StringDictionaryBuilder},
    datatypes::{DataType, Field, Int32Type, Schema},
};
use insta::assert_snapshot;
use parquet::{
    arrow::ArrowWriter,
    file::{metadata::KeyValue, properties::WriterProperties},
};
use uuid::Uuid;

use crate::support::{CSV, PARQUET, TestHub, batch_of, fixture, parquet_of, stream_of};

const VISITS: &str = "community.visits";

async fn push(hub: &TestHub, media_type: &str, file: Vec<u8>) -> String {
    hub.push("community-uploader", VISITS, media_type, file).await.problem()
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_are_none() {
    let hub = TestHub::with_city().await;
    assert_snapshot!(push(&hub, PARQUET, b"not parquet at all".to_vec()).await, @"422 contract-violation: the file cannot be read as the format it was sent as; write it again and check that it is whole");
    let whole = parquet_of(VISITS, &fixture("community.visits.csv"));
    let truncated = whole[..whole.len() - 100].to_vec();
    assert_snapshot!(push(&hub, PARQUET, truncated).await, @"422 contract-violation: the file cannot be read as the format it was sent as; write it again and check that it is whole");
    let mut damaged = whole.clone();
    for byte in &mut damaged[40..400] {
        *byte ^= 0x5a;
    }
    assert!(push(&hub, PARQUET, damaged).await.starts_with("422 contract-violation"));
    assert_snapshot!(push(&hub, PARQUET, Vec::new()).await, @"422 contract-violation: the file is empty; send it again once it is written");
    assert_snapshot!(push(&hub, CSV, vec![0xff, 0xfe, 0x00]).await, @"422 contract-violation: the text is not UTF-8; save it as UTF-8");
    assert_snapshot!(push(&hub, "application/pdf", whole.clone()).await, @"415 unsupported-media-type: send application/vnd.apache.parquet, application/vnd.apache.arrow.stream or text/csv");
    assert_snapshot!(push(&hub, "application/vnd.apache.arrow.stream", whole).await, @"422 contract-violation: the file cannot be read as the format it was sent as; write it again and check that it is whole");
    assert_snapshot!(hub.ask("community-uploader", "", "SELECT count(*) FROM visits").await.rows(), @"[16]");
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_that_do_not_fit() {
    let hub = TestHub::with_city().await;
    let text = String::from_utf8(fixture("community.visits.csv")).unwrap();
    let renamed = text.replacen("phone", "mobile", 1).into_bytes();
    assert_snapshot!(push(&hub, CSV, renamed).await, @"422 contract-violation: a file that names no version does not fit `community.visits` version 1.0.0: columns the contract does not have: `mobile`; columns missing: `phone`");
    let named_by_a_person = text.replacen("phone", "14100000000", 1).into_bytes();
    assert_snapshot!(push(&hub, CSV, named_by_a_person).await, @"422 contract-violation: a file that names no version does not fit `community.visits` version 1.0.0: columns the contract does not have: one whose name is no field name; columns missing: `phone`");

    let batch = batch_of(VISITS, text.as_bytes());
    let retyped = with_column(&batch, "temperature", Arc::new(StringArray::from(vec!["36.5"; batch.num_rows()])));
    let retyped = with_column(&retyped, "visited_at", Arc::new(Float32Array::from(vec![1.0; batch.num_rows()])));
    assert_snapshot!(push(&hub, PARQUET, gridhub::demo::as_parquet(&retyped).unwrap().to_vec()).await, @"422 contract-violation: a file that names no version does not fit `community.visits` version 1.0.0: column `visited_at` holds real, the contract says timestamp with time zone; column `temperature` holds text, the contract says numeric(4,1)");
}

fn with_column(batch: &RecordBatch, name: &str, values: ArrayRef) -> RecordBatch {
    let at = batch.schema().index_of(name).unwrap();
    let mut fields: Vec<_> = batch.schema().fields().iter().map(|field| field.as_ref().clone()).collect();
    fields[at] = Field::new(name, values.data_type().clone(), true);
    let mut columns = batch.columns().to_vec();
    columns[at] = values;
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap()
}

fn write(batch: &RecordBatch, properties: WriterProperties) -> Vec<u8> {
    let mut out = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut out, batch.schema(), Some(properties)).unwrap();
    writer.write(batch).unwrap();
    writer.close().unwrap();
    out
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_another_contract_version() {
    let hub = TestHub::with_city().await;
    let batch = batch_of(VISITS, &fixture("community.visits.csv"));
    let says = |version: &str| {
        let pair = KeyValue::new("gridhub.contract_version".to_owned(), version.to_owned());
        write(&batch, WriterProperties::builder().set_key_value_metadata(Some(vec![pair])).build())
    };
    assert_snapshot!(push(&hub, PARQUET, says("2.0.0")).await, @"422 contract-violation: the file follows version `2.0.0` of `community.visits`, this hub version 1.0.0; send it in that form or ask for the contract to be raised");
    assert_eq!(hub.push("community-uploader", VISITS, PARQUET, says("1.0.0")).await.status, 201);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decompression_bomb() {
    let hub = TestHub::with_city().await;
    // A hundred thousand rows of one eight-kilobyte value in ten columns: eight gigabytes of text in a few kilobytes of file.
    let rows = 100_000;
    let long = "9".repeat(8_000);
    let mut dictionary = StringDictionaryBuilder::<Int32Type>::new();
    for _ in 0..rows {
        dictionary.append_value(&long);
    }
    let dictionary: ArrayRef = Arc::new(dictionary.finish());
    let batch = batch_of(VISITS, &fixture("community.visits.csv"));
    let names: Vec<_> = batch.schema().fields().iter().map(|field| field.name().clone()).collect();
    let fields: Vec<_> = names.iter().map(|name| Field::new(name, dictionary.data_type().clone(), true)).collect();
    let mut columns: Vec<ArrayRef> = vec![dictionary; names.len()];
    let mut fields = fields;
    for (name, kind) in [("visited_at", None), ("temperature", Some(DataType::Float32))] {
        let at = names.iter().position(|found| found == name).unwrap();
        let kind = kind.unwrap_or_else(|| batch.column(at).data_type().clone());
        columns[at] = arrow::array::new_null_array(&kind, rows);
        fields[at] = Field::new(name, kind, true);
    }
    let bomb = write(
        &RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap(),
        WriterProperties::builder().set_compression(parquet::basic::Compression::SNAPPY).build(),
    );
    assert!(bomb.len() < 2 << 20, "{} bytes", bomb.len());
    let reply = hub.push("community-uploader", VISITS, PARQUET, bomb).await;
    assert_snapshot!(reply.problem(), @"413 too-large: the decompressed file is larger than 256 MiB; send it in parts");
    // It was found out while the long value was in memory once.
    let peak = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = peak.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    let kilobytes: u64 = peak.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!(kilobytes < 3 << 20, "{peak}");
}

/// Files whose bookkeeping promises what is not there: a decoder that believed them would reserve
/// gigabytes, and a process that cannot reserve ends.
#[tokio::test(flavor = "multi_thread")]
async fn files_that_lie_about_lengths() {
    let hub = TestHub::with_city().await;
    // A footer with a schema of no columns and two thousand million row groups.
    let footer = [0x15, 0x02, 0x19, 0x0c, 0x16, 0x00, 0x19, 0xfc, 0xff, 0xff, 0xff, 0xff, 0x07, 0x00];
    let mut parquet = b"PAR1".to_vec();
    parquet.extend_from_slice(&footer);
    parquet.extend_from_slice(&(footer.len() as u32).to_le_bytes());
    parquet.extend_from_slice(b"PAR1");
    assert!(push(&hub, PARQUET, parquet).await.starts_with("422 contract-violation"));
    // Lists of lists of lists.
    let mut nested = b"PAR1".to_vec();
    nested.push(0x19);
    nested.extend(std::iter::repeat_n(0x19, 100_000));
    nested.extend_from_slice(&100_001_u32.to_le_bytes());
    nested.extend_from_slice(b"PAR1");
    assert!(push(&hub, PARQUET, nested).await.starts_with("422 contract-violation"));

    let batch = batch_of(VISITS, &fixture("community.visits.csv"));
    let stream = stream_of(&batch);
    let arrow = "application/vnd.apache.arrow.stream";
    // Every eight bytes in turn promise 2^40: none may be believed, whatever they stand for.
    for at in (0..stream.len() - 8).step_by(8) {
        let mut lying = stream.clone();
        lying[at..at + 8].copy_from_slice(&(1_u64 << 40).to_le_bytes());
        let reply = hub.push("community-uploader", VISITS, arrow, lying).await;
        assert!(matches!(reply.status, 201 | 413 | 422), "{at}: {}", reply.text());
    }
    let whole = parquet_of(VISITS, &fixture("community.visits.csv"));
    for at in (whole.len() - 2_000..whole.len() - 8).step_by(13) {
        let mut lying = whole.clone();
        lying[at..at + 5].copy_from_slice(&[0xff, 0xff, 0xff, 0xff, 0x07]);
        let reply = hub.push("community-uploader", VISITS, PARQUET, lying).await;
        assert!(matches!(reply.status, 201 | 413 | 422), "{at}: {}", reply.text());
    }
    let file = b"ARROW1\0\0".to_vec();
    assert_snapshot!(push(&hub, arrow, file).await, @"422 contract-violation: this is an Arrow file; send the stream format, or Parquet");
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_and_digests() {
    let hub = TestHub::with_city().await;
    let token = hub.token("community-uploader");
    let put = |digest: &str, id: &str| {
        axum::http::Request::put(format!("/v1/datasets/{VISITS}/batches/{id}"))
            .header("authorization", format!("Bearer {token}"))
            .header("content-type", CSV)
            .header("content-digest", digest)
            .body(axum::body::Body::from(fixture("community.visits.csv")))
            .unwrap()
    };
    let id = Uuid::now_v7().to_string();
    let wrong = "sha-256=:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=:";
    assert_snapshot!(hub.send(put(wrong, &id)).await.problem(), @"400 digest-mismatch: the body does not match its Content-Digest; send it again");
    assert_snapshot!(hub.send(put("md5=:AA==:", "42")).await.problem(), @"400 bad-request: the batch id is not a UUID; make one and keep it for every try of the same file");
    let large = hub.push("community-uploader", VISITS, CSV, vec![b'x'; 65 << 20]).await;
    assert_snapshot!(large.problem(), @"413 too-large: the body is larger than this hub's limit; send the file in parts");
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_that_open_nothing() {
    let hub = TestHub::with_city().await;
    let no_token = "401 unauthenticated: no valid access token; send `Authorization: Bearer TOKEN`";
    for header in ["", "Bearer", "Bearer ghub_nonsense", "Basic aGVhbHRo"] {
        let request = axum::http::Request::get("/v1/datasets").header("authorization", header);
        let reply = hub.send(request.body(axum::body::Body::empty()).unwrap()).await;
        assert_eq!(reply.problem(), no_token, "{header}");
        assert_eq!(reply.header("www-authenticate"), "Bearer realm=\"gridhub\"");
    }
    let token = hub.token("health-analyst");
    let ask = async || hub.ask_as(&token, "epidemiology", "SELECT count(*) FROM cases", "").await;
    assert_eq!(ask().await.status, 200);
    let id = hub.metadata().tokens().unwrap().last().unwrap().id.clone();
    gridhub::identity::revoke(&hub.metadata(), &id, hub.clock.now()).unwrap();
    assert_eq!(ask().await.problem(), no_token, "revoked");
    let short = hub.token("health-analyst");
    hub.clock.step(chrono::TimeDelta::days(2));
    assert_eq!(hub.get(&short, "/v1/datasets?purpose=epidemiology").await.problem(), no_token, "expired");
}

#[tokio::test(flavor = "multi_thread")]
async fn statements_that_are_none() {
    let hub = TestHub::with_city().await;
    let token = hub.token("health-analyst");
    let ask = async |purpose: &str, sql: &str| hub.ask_as(&token, purpose, sql, "application/json").await.problem();
    assert_snapshot!(ask("", "SELECT 1").await, @"400 purpose-required: name a purpose; this caller has: epidemiology, supply-planning");
    assert_snapshot!(ask("audit", "SELECT 1").await, @"403 purpose-not-allowed: purpose `audit` is not open to this caller; it has: epidemiology, supply-planning");
    assert_snapshot!(ask("epidemiology", "").await, @"400 sql-syntax: there is no statement; write a SELECT");
    assert_snapshot!(ask("epidemiology", "SELECT 1 FROM").await, @"400 sql-syntax: the statement cannot be read");
    assert_snapshot!(ask("epidemiology", "SELECT 1; SELECT 2").await, @"422 refused: a request holds one statement");
    assert_snapshot!(ask("epidemiology", &format!("SELECT '{}'", "x".repeat(100 << 10))).await, @"413 too-large: the statement is larger than 64 KiB");
    assert_snapshot!(ask("epidemiology", &format!("SELECT {}1{}", "(".repeat(500), ")".repeat(500))).await, @"400 sql-syntax: the statement is nested too deeply");
    assert_snapshot!(ask("epidemiology", "SELECT id_no FROM cases c, tests t").await, @"400 sql-syntax: column `id_no` could come from several tables; write it with its table");
    assert_snapshot!(ask("epidemiology", "SELECT sex, count(*) FROM cases").await, @"400 sql-syntax: the statement does not fit together; check GROUP BY, types and the number of columns");
    let long = ask("epidemiology", &format!("SELECT '{}'", "x".repeat(1 << 20))).await;
    assert_snapshot!(long, @"413 too-large: the request is larger than 1 MiB");
    let nonsense = hub.post(&token, "/v1/sql", &serde_json::json!({"query": "SELECT 1"}), "").await;
    assert_snapshot!(nonsense.problem(), @r#"400 sql-syntax: the request must be JSON: {"sql": "SELECT …", "purpose": "…"}; GET /openapi.json lists all members"#);
    let format = hub.ask_as(&token, "epidemiology", "SELECT 1", "image/png").await;
    assert!(format.problem().starts_with("415 unsupported-media-type: the hub answers in application/json"));
    let nowhere = hub.get(&token, "/v2/everything").await;
    assert_eq!(nowhere.problem(), "404 not-found: not found");
}

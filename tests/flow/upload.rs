//! Pushing batches: what is taken, mended, rejected, counted once, and how receipts say so.

use insta::assert_snapshot;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::{CSV, PARQUET, TestClock, TestHub, batch_of, fixture, parquet_of, stream_of};

const VISITS: &str = "community.visits";

/// A file of visits: the fixture's header and these rows.
fn visits(rows: &[&str]) -> Vec<u8> {
    let text = String::from_utf8(fixture("community.visits.csv")).unwrap();
    let header = text.lines().next().unwrap();
    format!("{header}\n{}\n", rows.join("\n")).into_bytes()
}

async fn hub_with_divisions() -> TestHub {
    let hub = TestHub::start().await;
    let reply = hub.push("platform-uploader", "platform.divisions", CSV, fixture("platform.divisions.csv")).await;
    assert_eq!(reply.status, 201, "{}", reply.text());
    hub
}

/// A receipt without what differs from run to run.
fn essence(receipt: &Value) -> String {
    let mut receipt = receipt.clone();
    for member in ["batch_id", "signature", "content_digest", "log_index"] {
        let taken = receipt.as_object_mut().unwrap().shift_remove(member);
        assert!(taken.is_some_and(|value| !value.is_null()), "{member}");
    }
    receipt.to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn dirty_rows_are_mended_warned_of_or_rejected_by_number() {
    let hub = hub_with_divisions().await;
    // Row by row: clean; lower-case x, spaces and full width; 15 digits; wrong check digit; no id; malformed phone and
    // missing name; unknown grid; a mode nobody knows; a fever beyond bounds; no visit id; an identifier in a remark
    // and in a need; an exact copy of the first.
    let rows = [
        "V1,420191001001001,H1,42019119500110001X,安一,14100000000,W1,2026-01-05 10:00:00,入户,36.5,,,",
        "V2,420191001001001,H1, ４２０１９１ 19500110001x,安　一,+86 141-0000-0000,W1,2026-01-05 10:00:00,入户,36.5,,,",
        "V3,420191001001001,H1,130503670401001,赵一,,W1,2026-01-05 10:00:00,入户,36.5,,,",
        "V4,420191001001001,H1,420191195001100011,安一,,W1,2026-01-05 10:00:00,入户,36.5,,,",
        "V5,420191001001001,H1,,钱一,,W1,2026-01-05 10:00:00,入户,36.5,,,",
        "V6,420191001001001,H1,42019119500110001X,,1410000000,W1,2026-01-05 10:00:00,入户,36.5,,,",
        "V7,420191001001999,H1,42019119500110001X,安一,,W1,2026-01-05 10:00:00,入户,36.5,,,",
        "V8,420191001001001,H1,42019119500110001X,安一,,W1,2026-01-05 10:00:00,飞鸽,36.5,,,",
        "V9,420191001001001,H1,42019119500110001X,安一,,W1,2026-01-05 10:00:00,入户,99.9,,,",
        ",420191001001001,H1,42019119500110001X,安一,,W1,2026-01-05 10:00:00,入户,36.5,,,",
        "V11,420191001001001,H1,42019119500110001X,安一,,W1,2026-01-05 10:00:00,入户,36.5,,打 14100000000,电话14100000000",
        "V12,420191001001001,H1,42019119500110001X,安一,,W1,昨天,入户,36.5,,,",
        "V13,42019100100100,H1,42019119500110001X,安一,,W1,2026-01-05 10:00:00,入户,36.5,,,",
        "V1,420191001001001,H1,42019119500110001X,安一,14100000000,W1,2026-01-05 10:00:00,入户,36.5,,,",
    ];
    let reply = hub.push("community-uploader", VISITS, CSV, visits(&rows)).await;
    assert_eq!(reply.status, 201);
    assert_snapshot!(essence(&reply.json()), @r#"{"dataset":"community.visits","status":"partly_accepted","rows_received":14,"rows_accepted":6,"rows_rejected":7,"rows_duplicate":1,"rejections":{"check_digit":1,"format":1,"missing":1,"not_allowed":1,"out_of_range":1,"type":1,"unknown_division":1},"rejected_rows":[{"row":3,"field":"id_no","reason":"check_digit"},{"row":6,"field":"grid_code","reason":"unknown_division"},{"row":7,"field":"mode","reason":"not_allowed"},{"row":8,"field":"temperature","reason":"out_of_range"},{"row":9,"field":"visit_id","reason":"missing"},{"row":11,"field":"visited_at","reason":"type"},{"row":12,"field":"grid_code","reason":"format"}],"warnings":{"canonicalised":4,"identifier_in_text":2,"malformed_phone":1,"missing_identifier":1,"missing_name":1},"contract_version":"1.0.0"}"#);

    // Every spelling of one person is one token, and nobody shares the token of nobody.
    let rows =
        hub.ask("community-uploader", "", "SELECT count(DISTINCT id_no), count(id_no), count(*) FROM visits").await;
    assert_snapshot!(rows.rows(), @"[2,5,6]");
    let needs = hub.ask("community-uploader", "", "SELECT count(needs) FROM visits").await;
    assert_eq!(needs.status, 422, "needs are sensitive and not the uploader's to read");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_batch_twice_is_one_batch() {
    let hub = hub_with_divisions().await;
    let token = hub.token("community-uploader");
    let id = Uuid::now_v7();
    let file = parquet_of(VISITS, &fixture("community.visits.csv"));
    let first = hub.push_as(&token, VISITS, id, PARQUET, file.clone()).await;
    assert_eq!((first.status, first.json()["rows_accepted"].clone()), (201, json!(16)));

    let again = hub.push_as(&token, VISITS, id, PARQUET, file.clone()).await;
    assert_eq!((again.status, again.json()), (200, first.json()), "same bytes, same receipt");

    let fetched = hub.get(&token, &format!("/v1/datasets/{VISITS}/batches/{id}")).await;
    assert_eq!((fetched.status, fetched.json()), (200, first.json()));

    let other = hub.push_as(&token, VISITS, id, CSV, fixture("community.visits.csv")).await;
    assert_snapshot!(other.problem(), @"409 batch-conflict: this batch id was used for other bytes; send the file under a new id");

    // The same rows in another order, format and batch: all of them are copies.
    let mut lines: Vec<_> =
        String::from_utf8(fixture("community.visits.csv")).unwrap().lines().map(str::to_owned).collect();
    lines[1..].reverse();
    let resorted = hub.push_as(&token, VISITS, Uuid::now_v7(), CSV, lines.join("\n").into_bytes()).await;
    assert_eq!(resorted.status, 201);
    assert_eq!(
        (resorted.json()["rows_accepted"].clone(), resorted.json()["rows_duplicate"].clone()),
        (json!(0), json!(16))
    );
    assert_snapshot!(hub.ask("community-uploader", "", "SELECT count(*) FROM visits").await.rows(), @"[16]");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_outlives_the_hub_and_so_do_its_copies() {
    let mut hub = hub_with_divisions().await;
    let token = hub.token("community-uploader");
    let id = Uuid::now_v7();
    let first = hub.push_as(&token, VISITS, id, CSV, fixture("community.visits.csv")).await;
    hub.restart().await;
    let again = hub.push_as(&token, VISITS, id, CSV, fixture("community.visits.csv")).await;
    assert_eq!((again.status, again.json()), (200, first.json()));
    let copies = hub.push_as(&token, VISITS, Uuid::now_v7(), CSV, fixture("community.visits.csv")).await;
    assert_eq!(copies.json()["rows_duplicate"], 16);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_format_gives_the_same_rows() {
    let hub = hub_with_divisions().await;
    let batch = batch_of(VISITS, &fixture("community.visits.csv"));
    let stream = stream_of(&batch);
    let arrow = hub.push("community-uploader", VISITS, "application/vnd.apache.arrow.stream", stream).await;
    assert_eq!(arrow.json()["rows_accepted"], 16, "{}", arrow.text());
    for (media_type, file) in
        [(PARQUET, parquet_of(VISITS, &fixture("community.visits.csv"))), (CSV, fixture("community.visits.csv"))]
    {
        let copy = hub.push("community-uploader", VISITS, media_type, file).await;
        assert_eq!(copy.json()["rows_duplicate"], 16, "{media_type} is read alike: {}", copy.text());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_day_without_rows_is_a_batch_too() {
    let hub = hub_with_divisions().await;
    let empty = batch_of(VISITS, &fixture("community.visits.csv")).slice(0, 0);
    for file in [gridhub::demo::as_parquet(&empty).unwrap().to_vec(), empty_row_group(&empty)] {
        let reply = hub.push("community-uploader", VISITS, PARQUET, file).await;
        assert_eq!((reply.status, reply.json()["rows_received"].clone()), (201, json!(0)), "{}", reply.text());
        assert_eq!(reply.json()["status"], "accepted");
    }
}

/// A file with a row group of no rows, as other writers make them.
fn empty_row_group(empty: &arrow::array::RecordBatch) -> Vec<u8> {
    use parquet::{arrow::ArrowSchemaConverter, file::writer::SerializedFileWriter};
    let schema = ArrowSchemaConverter::new().convert(&empty.schema()).unwrap();
    let mut out = Vec::new();
    let mut writer = SerializedFileWriter::new(&mut out, schema.root_schema_ptr(), Default::default()).unwrap();
    let mut group = writer.next_row_group().unwrap();
    while let Some(column) = group.next_column().unwrap() {
        column.close().unwrap();
    }
    group.close().unwrap();
    writer.close().unwrap();
    out
}

#[tokio::test(flavor = "multi_thread")]
async fn receipts_are_the_pushing_agencys_alone() {
    let hub = hub_with_divisions().await;
    let id = Uuid::now_v7();
    let path = format!("/v1/datasets/{VISITS}/batches/{id}");
    hub.push_as(&hub.token("community-uploader"), VISITS, id, CSV, fixture("community.visits.csv")).await;
    for caller in ["health-analyst", "cdc-uploader", "pharmacy-planner"] {
        let reply = hub.get(&hub.token(caller), &path).await;
        assert_eq!(reply.problem(), "404 not-found: not found", "{caller}");
    }
    let unknown =
        hub.get(&hub.token("community-uploader"), &format!("/v1/datasets/{VISITS}/batches/{}", Uuid::now_v7())).await;
    assert_eq!(unknown.problem(), "404 not-found: not found");
    // Another agency's batch under the same id is another batch.
    let theirs =
        hub.push_as(&hub.token("hospital-uploader"), "hospital.tests", id, CSV, fixture("hospital.tests.csv")).await;
    assert_eq!(theirs.status, 201);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_push_what_for_which_territory() {
    let hub = hub_with_divisions().await;
    let file = || fixture("community.visits.csv");
    // May see the dataset, not push to it.
    let analyst = hub.push("health-analyst", VISITS, CSV, file()).await;
    assert_snapshot!(analyst.problem(), @"403 not-allowed: `health-analyst` may not push to `community.visits`; ask the agency `community` for leave");
    // May do neither: it is not there, like one that never was.
    let stranger = hub.push("pharmacy-uploader", VISITS, CSV, file()).await;
    let nowhere = hub.push("pharmacy-uploader", "community.nothing", CSV, file()).await;
    assert_eq!(stranger.problem(), "404 not-found: not found");
    assert_eq!(nowhere.problem(), stranger.problem());

    // A row outside the uploader's territory is rejected, the rest is taken.
    let rows = [
        "V1,420191001001001,H1,42019119500110001X,安一,,W1,2026-01-05 10:00:00,入户,36.5,,,",
        "V2,420191001002001,H1,42019119500110001X,安一,,W1,2026-01-05 10:00:00,入户,36.5,,,",
    ];
    let policies = narrowed_policies(&hub, "420191001001");
    let clock = hub.clock.clone();
    let narrow = TestHub::with(clock, |opening| opening.policies = policies.path().to_owned()).await;
    narrow.push("platform-uploader", "platform.divisions", CSV, fixture("platform.divisions.csv")).await;
    let reply = narrow.push("community-east-uploader", VISITS, CSV, visits(&rows)).await;
    assert_eq!(reply.json()["rejected_rows"], json!([{"row": 1, "field": "grid_code", "reason": "outside_scope"}]));
}

/// The repository's policies with another territory for the eastern uploader.
fn narrowed_policies(_: &TestHub, territory: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(crate::support::repository().join("policies")).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let text = text.replace("\"id\": \"420191\"", &format!("\"id\": \"{territory}\""));
        std::fs::write(folder.path().join(path.file_name().unwrap()), text).unwrap();
    }
    folder
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sender_that_hangs_up_loses_nothing() {
    let hub = hub_with_divisions().await;
    let token = hub.token("community-uploader");
    let visit = |batch: usize, row: usize| {
        format!("B{batch}R{row},420191001001001,,42019119500110001X,,,,2026-01-05 10:00:00,入户,36.5,,,")
    };
    let mut sent = 0;
    for batch in 0..8 {
        let rows: Vec<_> = (0..40).map(|row| visit(batch, row)).collect();
        let file = visits(&rows.iter().map(String::as_str).collect::<Vec<_>>());
        let id = Uuid::now_v7();
        let pushing = hub.push_as(&token, VISITS, id, CSV, file.clone());
        let _ = tokio::time::timeout(std::time::Duration::from_millis(3 * batch as u64), pushing).await;
        // Another batch of the same source comes between.
        let other = visit(100 + batch, 0);
        assert_eq!(hub.push_as(&token, VISITS, Uuid::now_v7(), CSV, visits(&[&other])).await.status, 201);
        let again = hub.push_as(&token, VISITS, id, CSV, file).await;
        assert_eq!(again.json()["rows_accepted"], 40, "{}", again.text());
        sent += 41;
    }
    assert_eq!(hub.ask("community-uploader", "", "SELECT count(*) FROM visits").await.rows(), format!("[{sent}]"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_stores_nothing() {
    let hub = hub_with_divisions().await;
    let token = hub.token("community-uploader");
    let id = Uuid::now_v7();
    let request = axum::http::Request::put(format!("/v1/datasets/{VISITS}/batches/{id}?dry_run=true"))
        .header("authorization", format!("Bearer {token}"))
        .header("content-type", CSV)
        .body(axum::body::Body::from(fixture("community.visits.csv")))
        .unwrap();
    let reply = hub.send(request).await;
    assert_eq!((reply.status, reply.json()["rows_accepted"].clone()), (200, json!(16)));
    assert_snapshot!(hub.ask("community-uploader", "", "SELECT count(*) FROM visits").await.rows(), @"[0]");
    assert_eq!(hub.push_as(&token, VISITS, id, CSV, fixture("community.visits.csv")).await.status, 201);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_misspelt_stores_nothing() {
    let hub = hub_with_divisions().await;
    let token = hub.token("community-uploader");
    for query in ["dryrun=true", "dry_run=true&dry-run=true", "dry_run=yes"] {
        let request = axum::http::Request::put(format!("/v1/datasets/{VISITS}/batches/{}?{query}", Uuid::now_v7()))
            .header("authorization", format!("Bearer {token}"))
            .header("content-type", CSV)
            .body(axum::body::Body::from(fixture("community.visits.csv")))
            .unwrap();
        let reply = hub.send(request).await;
        assert_eq!(reply.status, 400, "{query}: {}", reply.text());
    }
    assert_snapshot!(hub.ask("community-uploader", "", "SELECT count(*) FROM visits").await.rows(), @"[0]");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_taken_before_divisions_are_known() {
    let hub = TestHub::start().await;
    let reply = hub.push("community-uploader", VISITS, CSV, fixture("community.visits.csv")).await;
    assert_eq!(reply.status, 422);
    let body = reply.json();
    assert_eq!(body["receipt"]["rejections"], json!({"unknown_division": 16}));
    assert_eq!(body["receipt"]["status"], "rejected");
    // The id is used up: the same bytes get the same answer.
    let id: Uuid = body["receipt"]["batch_id"].as_str().unwrap().parse().unwrap();
    let token = hub.token("community-uploader");
    let again = hub.push_as(&token, VISITS, id, CSV, fixture("community.visits.csv")).await;
    assert_eq!(again.json()["receipt"], body["receipt"]);
}

/// Those who push to one dataset at the same time share commits, and each gets its own receipt and log entries.
#[tokio::test(flavor = "multi_thread")]
async fn batches_that_wait_together_are_committed_together() {
    const PUSHES: usize = 40;
    let hub = hub_with_divisions().await;
    let token = hub.token("community-uploader");
    let file = |number: usize| visits(&[&format!("T{number},420191001001001,,,,,,2026-01-05 10:00:00,入户,36.5,,,")]);
    let pushes = (0..PUSHES).map(|number| hub.push_as(&token, VISITS, Uuid::now_v7(), CSV, file(number)));
    let replies = futures::future::join_all(pushes).await;
    let mut entries: Vec<u64> = replies.iter().map(|reply| reply.json()["log_index"].as_u64().unwrap()).collect();
    entries.sort_unstable();
    entries.dedup();
    assert_eq!(entries.len(), PUSHES);
    assert!(replies.iter().all(|reply| reply.status == 201 && reply.json()["rows_accepted"] == 1));
    assert_eq!(hub.ask("community-uploader", "", "SELECT count(*) FROM visits").await.rows(), format!("[{PUSHES}]"));
    let log = hub.data().join("tables").join(VISITS).join("_delta_log");
    let commits = std::fs::read_dir(log).unwrap().count() - 1;
    assert!(commits < PUSHES / 2, "{commits} commits of {PUSHES} batches");
}

/// A file of which many rows fill files of their own before it is committed: those of them that were sent before
/// leave these files again, and nothing is left over.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_file_is_compared_with_what_is_stored() {
    const ROWS: usize = 6_000;
    let hub = TestHub::with(TestClock::at("2026-01-07T01:00:00Z"), |opening| opening.longest_run = 1_000).await;
    hub.push("platform-uploader", "platform.divisions", CSV, fixture("platform.divisions.csv")).await;
    let row =
        |number: usize| format!("L{number},420191001001001,,,,,,2026-01-{:02} 10:00:00,入户,36.5,,,", 1 + number % 9);
    let file = |rows: std::ops::Range<usize>| {
        let rows: Vec<String> = rows.map(row).collect();
        visits(&rows.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let few = hub.push("community-uploader", VISITS, CSV, file(0..10)).await.json();
    assert_eq!(few["rows_accepted"], 10);
    // The first ten are there, and the last five come twice.
    let mut large = file(0..ROWS);
    large.extend(file(ROWS - 5..ROWS).split(|byte| *byte == b'\n').skip(1).flat_map(|line| [line, b"\n"].concat()));
    let receipt = hub.push("community-uploader", VISITS, CSV, large).await.json();
    let counts = ["rows_received", "rows_accepted", "rows_duplicate"].map(|member| receipt[member].as_u64().unwrap());
    assert_eq!(counts, [ROWS as u64 + 5, ROWS as u64 - 10, 15]);
    let again = hub.push("community-uploader", VISITS, CSV, file(0..ROWS)).await.json();
    assert_eq!((again["rows_accepted"].clone(), again["rows_duplicate"].clone()), (json!(0), json!(ROWS)));
    let counted = hub.ask("community-uploader", "", "SELECT count(*), count(DISTINCT visit_id) FROM visits").await;
    assert_eq!(counted.rows(), format!("[{ROWS},{ROWS}]"));
    let table = hub.data().join("tables").join(VISITS);
    let files = || std::fs::read_dir(&table).unwrap().filter(|file| file.as_ref().unwrap().path().is_file()).count();
    // The ten rows, and those of the large file, which was written anew without them.
    assert_eq!(files(), 2, "files are left over");
}

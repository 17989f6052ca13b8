//! Invariant 1: no raw identifier is ever on the hub's disk. Canaries are pushed, asked for, mistyped and put
//! where they do not belong; then every byte of the data folder is searched, files also decoded.

use std::path::Path;

use arrow::util::display::{ArrayFormatter, FormatOptions};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use uuid::Uuid;

use crate::support::{CSV, PARQUET, TestHub, files_below, fixture, parquet_of};

/// Identifiers that occur nowhere else: an id in its spellings, one with a wrong check, a phone, a name, an
/// address, a household, a visit.
const CANARIES: [&str; 12] = [
    "420191198811110010",
    "４２０１９１１９８８１１１１００１０",
    "420191881111001",
    "198811110016",
    "420191198811110017",
    "14888123456",
    "148-8812-3456",
    "金丝雀",
    "云泽市鸟笼巷7号",
    "HOUSEHOLD-CANARY",
    "VISIT-CANARY",
    "WORKER-CANARY",
];

#[tokio::test(flavor = "multi_thread")]
async fn no_canary_is_ever_on_disk() {
    let mut hub = TestHub::with_city().await;
    let header = String::from_utf8(fixture("community.visits.csv")).unwrap().lines().next().unwrap().to_owned();
    let visit = |id: &str, phone: &str, remark: &str| {
        format!(
            "VISIT-CANARY{id},420191001001001,HOUSEHOLD-CANARY,{id},金丝雀,{phone},WORKER-CANARY,2026-01-05 10:00:00,入户,36.5,\
             电话14888123456,420191198811110017,{remark}"
        )
    };
    let rows = [
        visit("420191198811110010", "14888123456", "金丝雀住云泽市鸟笼巷7号"),
        visit("４２０１９１１９８８１１１１００１０", "148-8812-3456", "id 420191198811110010"),
        visit("420191881111001", "1488812345", ""),
        visit("420191198811110017", "", "14888123456"),
    ];
    let file = format!("{header}\n{}\n", rows.join("\n"));
    let pushed = hub.push("community-uploader", "community.visits", CSV, file.clone().into_bytes()).await;
    assert_eq!(pushed.json()["rows_accepted"], 3, "{}", pushed.text());
    let parquet = parquet_of("community.visits", file.as_bytes());
    hub.push("community-uploader", "community.visits", PARQUET, parquet.clone()).await;
    hub.push("community-uploader", "community.visits", PARQUET, parquet[..parquet.len() / 2].to_vec()).await;
    let renamed = file.replacen("phone", "420191198811110010", 1).into_bytes();
    hub.push("community-uploader", "community.visits", CSV, renamed).await;

    // Canaries in SQL, parameters, purposes, paths, batch ids and headers.
    let token = hub.token("health-analyst");
    for sql in [
        "SELECT count(*) FROM visits WHERE id_no = '420191198811110010'",
        "SELECT count(*) FROM visits WHERE id_no = ' ４２０１９１１９８８１１１１００１０' -- 14888123456",
        "SELECT CAST('420191198811110010' AS DATE)",
        "SELECT \"14888123456\" FROM visits",
        "SELECT 1 FROM \"420191198811110010\"",
        "SELECT 'unfinished 420191198811110010",
        "SELECT symptoms FROM visits WHERE symptoms LIKE '%14888123456%' ORDER BY 1",
    ] {
        let reply = hub.ask_as(&token, "epidemiology", sql, "").await;
        let said = reply.text();
        assert!(reply.status != 500, "{sql}: {said}");
    }
    hub.ask_as(&token, "420191198811110010", "SELECT 1", "").await;
    let params = serde_json::json!({"sql": "SELECT $1", "purpose": "epidemiology", "params": ["420191198811110010"]});
    hub.post(&token, "/v1/sql", &params, "").await;
    hub.get(&token, "/v1/datasets/420191198811110010?purpose=14888123456").await;
    hub.get("420191198811110010", "/v1/datasets").await;
    hub.push_as(&hub.token("community-uploader"), "community.420191198811110010", Uuid::now_v7(), CSV, Vec::new())
        .await;
    let sorted = "SELECT id_no, phone, name FROM visits ORDER BY 1, 2, 3";
    hub.ask("community-uploader", "", sorted).await;

    let stored = hub.ask("community-uploader", "", "SELECT count(*) FROM visits").await.rows();
    assert_eq!(stored, "[19]");
    search(&hub.data());
    hub.restart().await;
    search(&hub.data());
}

/// Reads every file below, as it stands and, for Parquet, decoded.
pub fn search(folder: &Path) {
    let files = files_below(folder);
    for path in &files {
        let bytes = std::fs::read(path).unwrap();
        find(path, &bytes);
        if path.extension().is_some_and(|end| end == "parquet") {
            let reader = ParquetRecordBatchReaderBuilder::try_new(bytes::Bytes::from(bytes)).unwrap().build().unwrap();
            for batch in reader {
                let batch = batch.unwrap();
                for column in batch.columns() {
                    let text = ArrayFormatter::try_new(column, &FormatOptions::default()).unwrap();
                    for row in 0..column.len() {
                        find(path, text.value(row).to_string().as_bytes());
                    }
                }
            }
        }
    }
    assert!(files.len() > 30, "{} files were searched", files.len());
}

fn find(path: &Path, bytes: &[u8]) {
    for canary in CANARIES {
        let wide: Vec<u8> = canary.encode_utf16().flat_map(u16::to_le_bytes).collect();
        for needle in [canary.as_bytes(), &wide] {
            let found = bytes.windows(needle.len()).any(|window| window == needle);
            assert!(!found, "`{canary}` is in {}", path.display());
        }
    }
}

/// The search itself must be able to fail.
#[test]
#[should_panic(expected = "is in")]
fn a_canary_that_is_there_is_found() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("file"), "x 14888123456 y").unwrap();
    search(folder.path());
}

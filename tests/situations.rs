//! What uploaders meet in the world: corrections, resends, other versions, bad rows, files that come days late, rows of
//! a neighbour, households that move, sheets that a spreadsheet program wrote. One test a situation.

use std::path::{Path, PathBuf};

use axum::{body::Body, http::Request};
use gridhub::{demo::city::with_check_digit, hub::Hub};
use insta::assert_snapshot;
use parquet::{
    arrow::ArrowWriter,
    file::{metadata::KeyValue, properties::WriterProperties},
};
use rand::{SeedableRng, rngs::StdRng, seq::SliceRandom};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    flow::current_state::{hub_of_two_sources, register, resident},
    support::{CSV, PARQUET, Reply, TestClock, TestHub, batch_of, changed, files_below, fixture, opening, parquet_of},
};

const VISITS: &str = "community.visits";
const TESTS: &str = "hospital.tests";
const RESIDENTS: &str = "community.residents";
const PERSON: &str = "42019119500110001X";

async fn with_divisions(hub: TestHub) -> TestHub {
    let reply = hub.push("platform-uploader", "platform.divisions", CSV, fixture("platform.divisions.csv")).await;
    assert_eq!(reply.status, 201, "{}", reply.text());
    hub
}

/// The lines of a fixture, the header first.
fn lines(name: &str) -> Vec<String> {
    String::from_utf8(fixture(name)).unwrap().lines().map(str::to_owned).collect()
}

/// A line with other cells.
fn with(line: &str, cells: &[(usize, &str)]) -> String {
    let mut all: Vec<_> = line.split(',').collect();
    for (at, cell) in cells {
        all[*at] = *cell;
    }
    all.join(",")
}

/// Accepted, rejected and duplicate rows of a receipt.
fn counts(reply: &Reply) -> Value {
    let receipt = reply.json();
    json!([receipt["rows_accepted"], receipt["rows_rejected"], receipt["rows_duplicate"]])
}

async fn visits_of(hub: &TestHub) -> String {
    hub.ask("community-uploader", "", "SELECT count(*) FROM visits").await.rows()
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_that_come_at_the_same_time_are_stored_once() {
    let hub = with_divisions(TestHub::start().await).await;
    let (token, visits) = (hub.token("community-uploader"), fixture("community.visits.csv"));
    let pushes = (0..30).map(|number| {
        // Every third only asks what would become of it, and must not let the others forget each other.
        let wish = if number % 3 == 1 { "?dry_run=true" } else { "" };
        let request = Request::put(format!("/v1/datasets/{VISITS}/batches/{}{wish}", Uuid::now_v7()))
            .header("authorization", format!("Bearer {token}"))
            .header("content-type", CSV);
        hub.send(request.body(Body::from(visits.clone())).unwrap())
    });
    let replies = futures::future::join_all(pushes).await;
    let accepted =
        replies.iter().filter(|reply| reply.status == 201).map(|reply| reply.json()["rows_accepted"].as_u64());
    let accepted: Vec<u64> = accepted.map(Option::unwrap).collect();
    assert_eq!(accepted.len(), 20);
    let rows = *accepted.iter().max().unwrap();
    assert!(rows > 0);
    assert_eq!(accepted.iter().sum::<u64>(), rows, "{accepted:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn s1_the_laboratory_corrects_seven_results() {
    let hub = TestHub::start().await;
    let yesterday = parquet_of(TESTS, &fixture("hospital.tests.csv"));
    let first = hub.push("hospital-uploader", TESTS, PARQUET, yesterday.clone()).await;
    assert_eq!((counts(&first), &first.json()["warnings"]["revision"]), (json!([12, 0, 0]), &Value::Null));

    // Seven tests come again as revision 2, in one file with five new ones.
    let known = lines("hospital.tests.csv");
    let mut today = vec![known[0].clone()];
    today.extend(known[1..=7].iter().map(|line| with(line, &[(1, "2"), (9, "可疑"), (10, "")])));
    today.extend(known[8..].iter().enumerate().map(|(at, line)| with(line, &[(0, format!("T10{at}").as_str())])));
    let reply = hub.push("hospital-uploader", TESTS, PARQUET, parquet_of(TESTS, today.join("\n").as_bytes())).await;
    assert_eq!((reply.status, counts(&reply)), (201, json!([12, 0, 0])), "{}", reply.text());
    assert_eq!(reply.json()["warnings"]["revision"], 7, "{}", reply.text());

    // The newest are shown: five old tests and five new ones as they were, seven corrected.
    let shown = "SELECT revision, result, count(*) FROM tests GROUP BY 1, 2 ORDER BY 1, 2";
    let ask = || hub.ask("health-analyst", "epidemiology", shown);
    assert_snapshot!(ask().await.rows(), @r#"
    [1,"阴性",10]
    [2,"可疑",7]
    "#);
    // Both are kept: what was corrected is known when it comes again, and corrects nothing back.
    let again = hub.push("hospital-uploader", TESTS, PARQUET, yesterday).await;
    assert_eq!(counts(&again), json!([0, 0, 12]));
    assert_snapshot!(ask().await.rows(), @r#"
    [1,"阴性",10]
    [2,"可疑",7]
    "#);
}

#[tokio::test(flavor = "multi_thread")]
async fn s2_a_file_comes_again_as_it_was_and_in_another_order() {
    let hub = with_divisions(TestHub::start().await).await;
    let token = hub.token("community-uploader");
    let id = Uuid::now_v7();
    let file = parquet_of(VISITS, &fixture("community.visits.csv"));
    let first = hub.push_as(&token, VISITS, id, PARQUET, file.clone()).await;
    assert_eq!((first.status, counts(&first)), (201, json!([16, 0, 0])));
    // The connection broke after the last byte: the same bytes, under the same id and, from an app that forgot it,
    // under another.
    let again = hub.push_as(&token, VISITS, id, PARQUET, file.clone()).await;
    assert_eq!((again.status, again.json()), (200, first.json()));
    let forgot = hub.push_as(&token, VISITS, Uuid::now_v7(), PARQUET, file).await;
    assert_eq!(counts(&forgot), json!([0, 0, 16]));
    // Sorted otherwise, as Parquet and as CSV, with one new row and one row twice.
    let mut sorted = lines("community.visits.csv");
    sorted[1..].reverse();
    let resorted = parquet_of(VISITS, sorted.join("\n").as_bytes());
    assert_eq!(counts(&hub.push("community-uploader", VISITS, PARQUET, resorted).await), json!([0, 0, 16]));
    sorted.push(with(&sorted[1], &[(0, "V900")]));
    sorted.push(sorted[3].clone());
    let more = hub.push("community-uploader", VISITS, CSV, sorted.join("\n").into_bytes()).await;
    assert_eq!(counts(&more), json!([1, 0, 17]));
    assert_eq!(visits_of(&hub).await, "[17]");
}

/// The visits of the fixture as an app of that version writes them.
fn file_of_version(version: &str, renamed: &str) -> Vec<u8> {
    let batch = batch_of(VISITS, &fixture("community.visits.csv"));
    let schema = batch.schema();
    let (mut fields, mut columns) = (Vec::new(), Vec::new());
    for (field, column) in schema.fields().iter().zip(batch.columns()) {
        let name = if field.name() == "phone" { renamed } else { field.name() };
        let column = match name {
            "temperature" if renamed != "phone" => {
                arrow::compute::cast(column, &arrow::datatypes::DataType::Utf8).unwrap()
            }
            _ => column.clone(),
        };
        fields.push(arrow::datatypes::Field::new(name, column.data_type().clone(), true));
        columns.push(column);
    }
    let schema = std::sync::Arc::new(arrow::datatypes::Schema::new(fields));
    let batch = arrow::array::RecordBatch::try_new(schema, columns).unwrap();
    let pair = KeyValue::new("gridhub.contract_version".to_owned(), version.to_owned());
    let properties = WriterProperties::builder().set_key_value_metadata(Some(vec![pair])).build();
    let mut out = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut out, batch.schema(), Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    out
}

/// Pushes visits as CSV and says in a header which version they follow.
async fn push_following(hub: &TestHub, version: &str, file: Vec<u8>) -> Reply {
    let request = Request::put(format!("/v1/datasets/{VISITS}/batches/{}", Uuid::now_v7()))
        .header("authorization", format!("Bearer {}", hub.token("community-uploader")))
        .header("content-type", CSV)
        .header("gridhub-contract-version", version);
    hub.send(request.body(Body::from(file)).unwrap()).await
}

/// The contract of visits in that version, with a field that 1.1.0 added.
fn grown(text: &str, version: &str, changes: &[(&str, &str)]) -> String {
    let mut text = text.replacen("version: 1.0.0", &format!("version: {version}"), 1);
    text.push_str(
        "      - name: oxygen\n        description: \"Oxygen saturation in per cent.\"\n        logicalType: integer\n        \
         physicalType: int16\n        required: false\n        customProperties:\n          \
         - {property: gridhub.since, value: \"1.1.0\"}\n",
    );
    for (from, to) in changes {
        assert!(text.contains(from), "{from}");
        text = text.replacen(from, to, 1);
    }
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn s3_the_app_or_the_contract_has_another_version() {
    let mut hub = with_divisions(TestHub::start().await).await;
    let old = fixture("community.visits.csv");
    assert_eq!(hub.push("community-uploader", VISITS, CSV, old.clone()).await.status, 201);

    // The app was updated: columns and both versions are named, and what is there stays.
    let push = async |file| hub.push("community-uploader", VISITS, PARQUET, file).await.problem();
    assert_snapshot!(push(file_of_version("1.1.0", "mobile")).await, @"422 contract-violation: a file that follows version `1.1.0` does not fit `community.visits` version 1.0.0: columns the contract does not have: `mobile`; column `temperature` holds text, the contract says numeric(4,1); columns missing: `phone`");
    assert_snapshot!(push(file_of_version("1.1.0", "phone")).await, @"422 contract-violation: the file follows version `1.1.0` of `community.visits`, this hub version 1.0.0; send it in that form or ask for the contract to be raised");
    let renamed = String::from_utf8(old.clone()).unwrap().replacen("phone", "mobile", 1).into_bytes();
    assert_snapshot!(hub.push("community-uploader", VISITS, CSV, renamed.clone()).await.problem(), @"422 contract-violation: a file that names no version does not fit `community.visits` version 1.0.0: columns the contract does not have: `mobile`; columns missing: `phone`");
    assert_snapshot!(push_following(&hub, "1.2.0", renamed).await.problem(), @"422 contract-violation: a file that follows version `1.2.0` does not fit `community.visits` version 1.0.0: columns the contract does not have: `mobile`; columns missing: `phone`");
    assert_eq!(visits_of(&hub).await, "[16]");

    // The contract grows by an optional field: rows from before have none.
    let folder = tempfile::tempdir().unwrap();
    let contract = format!("{VISITS}.odcs.yaml");
    let schemas = |version: &str, changes: &[(&str, &str)]| {
        changed(folder.path(), "schemas", &contract, |text| grown(&text, version, changes))
    };
    let of_1_1 = schemas("1.1.0", &[]);
    hub.restart_with(|opening| opening.schemas = of_1_1).await;
    let oxygen = async |hub: &TestHub| {
        hub.ask("community-uploader", "", "SELECT count(*), count(oxygen), sum(oxygen) FROM visits").await.rows()
    };
    assert_eq!(oxygen(&hub).await, "[16,0,null]");
    // Who has not updated yet goes on, and a row is the same row under both versions.
    let again = hub.push("community-uploader", VISITS, CSV, old.clone()).await;
    assert_eq!((counts(&again), &again.json()["warnings"]["older_contract"]), (json!([0, 0, 16]), &json!(16)));
    let said = push_following(&hub, "1.0.0", old.clone()).await;
    assert_eq!((counts(&said), &said.json()["warnings"]["older_contract"]), (json!([0, 0, 16]), &Value::Null));
    assert_eq!(
        counts(&hub.push("community-uploader", VISITS, PARQUET, file_of_version("1.0.0", "phone")).await)[2],
        16
    );
    // Who says to have updated, and has not, is told.
    assert_snapshot!(push_following(&hub, "1.1.0", old.clone()).await.problem(), @"422 contract-violation: a file that follows version `1.1.0` does not fit `community.visits` version 1.1.0: columns missing that its own version has: `oxygen`");
    let mut new = lines("community.visits.csv");
    new[0].push_str(",oxygen");
    for (at, line) in new.iter_mut().enumerate().skip(1) {
        line.push_str(if at <= 2 { ",97" } else { "," });
    }
    new.push(format!("{},95", with(&lines("community.visits.csv")[1], &[(0, "V901")])));
    let new = push_following(&hub, "1.1.0", new.join("\n").into_bytes()).await;
    // Two old visits with a value are other rows than without one.
    assert_eq!((new.status, counts(&new)), (201, json!([3, 0, 14])), "{}", new.text());
    assert_eq!(oxygen(&hub).await, "[19,3,289]");
    let of_1_1 = schemas("1.1.0", &[]);
    hub.restart_with(|opening| opening.schemas = of_1_1).await;
    assert_eq!(oxygen(&hub).await, "[19,3,289]");

    // What would change the meaning of rows does not start, and says why; the table stays as it was.
    hub.stop();
    for (version, changes, why) in [
        (
            "1.2.0",
            vec![("name: oxygen", "name: saturation")],
            "field `oxygen` was removed; field `saturation` was added and does not say `gridhub.since` a minor version after 1.1.0",
        ),
        (
            "1.2.0",
            vec![("physicalType: int16", "physicalType: int64")],
            "field `oxygen` held smallint and now holds bigint",
        ),
        (
            "1.2.0",
            vec![("value: cn_mobile}", "value: opaque}")],
            "field `phone` held identifiers cn_mobile of the domain cn_mobile and now holds identifiers opaque of the domain opaque",
        ),
        (
            "1.0.0",
            vec![("value: \"1.1.0\"", "value: \"1.0.0\"")],
            "the version went back; field `oxygen` is there since another version than before",
        ),
    ] {
        let mut opening = opening(hub.folder.path(), &hub.clock);
        opening.schemas = schemas(version, &changes);
        let Err(refused) = Hub::open(opening).await else { panic!("{why}") };
        let refused = refused.to_string();
        let both = format!(
            "the table of `{VISITS}` follows contract version 1.1.0, the contract in force is version {version}: {why}; "
        );
        assert!(refused.contains(&both), "{refused}");
    }
    let of_1_1 = schemas("1.1.0", &[]);
    hub.restart_with(|opening| opening.schemas = of_1_1).await;
    assert_eq!(oxygen(&hub).await, "[19,3,289]");
}

/// Whether the bytes are in any file below the folder.
fn is_below(folder: &Path, bytes: &[u8]) -> bool {
    let holds = |path: PathBuf| std::fs::read(path).unwrap().windows(bytes.len()).any(|window| window == bytes);
    files_below(folder).into_iter().any(holds)
}

#[tokio::test(flavor = "multi_thread")]
async fn s4_three_per_cent_fail_their_check() {
    let hub = with_divisions(TestHub::start().await).await;
    let header = lines("community.visits.csv").swap_remove(0);
    let mut file = vec![header];
    let (mut bad, mut bad_rows) = (Vec::new(), Vec::new());
    for row in 0..200_usize {
        let right = with_check_digit(&format!("42019119610203{row:03}"));
        let id_no = match row {
            17 => String::new(),
            _ if row % 33 == 7 && bad.len() < 6 => {
                let wrong = if right.ends_with('3') { '4' } else { '3' };
                bad.push(format!("{}{wrong}", &right[..17]));
                bad_rows.push(json!({"row": row, "field": "id_no", "reason": "check_digit"}));
                bad[bad.len() - 1].clone()
            }
            _ => right,
        };
        file.push(format!("B{row:03},420191001001001,,{id_no},,,W01,2026-01-05 10:00:00,电话,,,,"));
    }
    assert_eq!(bad.len(), 6);
    let text = file.join("\n");
    for (media_type, body) in [(CSV, text.clone().into_bytes()), (PARQUET, parquet_of(VISITS, text.as_bytes()))] {
        let reply = hub.push("community-uploader", VISITS, media_type, body).await;
        let receipt = reply.json();
        assert_eq!((reply.status, &receipt["status"]), (201, &json!("partly_accepted")), "{}", reply.text());
        let accepted = if media_type == CSV { json!([194, 6, 0]) } else { json!([0, 6, 194]) };
        assert_eq!(counts(&reply), accepted);
        assert_eq!(receipt["rejections"], json!({"check_digit": 6}));
        assert_eq!(receipt["rejected_rows"], json!(bad_rows));
        assert_eq!(receipt["warnings"]["missing_identifier"], 1);
        assert!(bad.iter().all(|id_no| !reply.text().contains(id_no.as_str())), "{}", reply.text());
    }
    // Neither those that were refused nor those that were taken are anywhere in the folder, the log in it.
    for id_no in bad.iter().chain([&with_check_digit("42019119610203001")]) {
        assert!(!is_below(&hub.data(), id_no.as_bytes()), "{id_no}");
    }
    assert!(is_below(&hub.data(), b"partly_accepted"), "the search finds what is there");
    assert_eq!(visits_of(&hub).await, "[194]");
}

#[tokio::test(flavor = "multi_thread")]
async fn s5_two_days_come_at_once_and_out_of_order() {
    let hour = |hour: usize| {
        let time = format!("2026-01-0{} {:02}:30:00", 5 + hour / 24, hour % 24);
        let person = with_check_digit(&format!("42019119700101{:03}", hour % 7));
        register(&[resident(&person, "420191001001001", "U", &time, &format!("h{hour:02}"))])
    };
    let visits_of_hour = |hour: usize| {
        let time = format!("2026-01-0{} {:02}:30:00", 5 + hour / 24, hour % 24);
        let header = lines("community.visits.csv").swap_remove(0);
        format!("{header}\nO{hour:02},420191001001001,,{PERSON},,,W01,{time},电话,,,,\n").into_bytes()
    };
    let mut order: Vec<usize> = (0..48).collect();
    let mut told = Vec::new();
    for late in [false, true] {
        if late {
            order.shuffle(&mut StdRng::seed_from_u64(48));
            assert!(!order.is_sorted());
        }
        let hub = with_divisions(TestHub::start().await).await;
        for at in &order {
            let (state, visits) = (hour(*at), visits_of_hour(*at));
            assert_eq!(counts(&hub.push("community-uploader", RESIDENTS, CSV, state).await), json!([1, 0, 0]));
            assert_eq!(counts(&hub.push("community-uploader", VISITS, CSV, visits).await), json!([1, 0, 0]));
        }
        let ask = async |sql: &str| hub.ask("health-analyst", "epidemiology", sql).await.rows();
        let days = ask("SELECT CAST(visited_at AS DATE) AS day, count(*) FROM visits GROUP BY 1 ORDER BY 1").await;
        told.push(ask("SELECT special_group, op, updated_at FROM residents ORDER BY 1").await + "\n" + &days);
        // Of each of seven people the newest, whichever came last.
        let newest = ask("SELECT special_group FROM residents ORDER BY 1").await;
        assert_eq!(newest, (41..48).map(|hour| format!("[\"h{hour}\"]")).collect::<Vec<_>>().join("\n"));
        assert_eq!(days.matches(",24]").count(), 2, "{days}");
    }
    assert_eq!(told[0], told[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn s6_grids_of_a_neighbour_are_turned_away() {
    let folder = tempfile::tempdir().unwrap();
    // The office in the east looks after one community only since the borders moved.
    let policies = changed(folder.path(), "policies", "entities.json", |text| {
        text.replace("\"id\": \"420191\"", "\"id\": \"420191001001\"")
    });
    let hub = TestHub::with(TestClock::at("2026-01-07T01:00:00Z"), |opening| opening.policies = policies).await;
    let hub = with_divisions(hub).await;
    let file = parquet_of(VISITS, &fixture("community.visits.csv"));
    let reply = hub.push("community-east-uploader", VISITS, PARQUET, file.clone()).await;
    // V012 to V015 were in 420191001002001. The receipt says which rows, and the office looks up their grids.
    let outside = |row: usize| json!({"row": row, "field": "grid_code", "reason": "outside_scope"});
    assert_eq!((reply.status, counts(&reply)), (201, json!([12, 4, 0])), "{}", reply.text());
    assert_eq!(reply.json()["rejected_rows"], json!((12..16).map(outside).collect::<Vec<_>>()));
    assert_eq!(visits_of(&hub).await, "[12]");
    // Whose they are sends them, and the others are known already.
    assert_eq!(counts(&hub.push("community-uploader", VISITS, PARQUET, file).await), json!([4, 0, 12]));
    // Nothing but a neighbour's rows is no batch.
    let theirs = [&lines("community.visits.csv")[..1], &lines("community.visits.csv")[13..]].concat().join("\n");
    let refused = hub.push("community-east-uploader", VISITS, CSV, theirs.into_bytes()).await;
    assert_eq!((refused.status, &refused.json()["receipt"]["rejections"]), (422, &json!({"outside_scope": 4})));
}

#[tokio::test(flavor = "multi_thread")]
async fn s7_a_household_that_moved_is_still_there() {
    const A: &str = "420191001001001";
    const B: &str = "420191001002001";
    let line = |grid: &str, operation: &str, time: &str| {
        register(&[resident(PERSON, grid, operation, &format!("2026-01-0{time}:00"), "")])
    };
    let (old, left, arrived) = (line(A, "S", "5 08:00"), line(A, "D", "6 15:00"), line(B, "I", "6 09:00"));
    let ours = "community-uploader";
    let theirs = "hospital-uploader";
    let seen = async |hub: &TestHub| {
        hub.ask("health-analyst", "epidemiology", "SELECT grid_code, op FROM residents").await.rows()
    };
    // B says that it arrived, then A that it left, in whatever order that is heard; from one source and from two.
    for senders in [[ours, ours, ours], [ours, ours, theirs]] {
        for order in [[0, 1, 2], [0, 2, 1], [1, 2, 0], [2, 1, 0]] {
            let hub = hub_of_two_sources().await;
            for at in order {
                let file = [&old, &left, &arrived][at].clone();
                let reply = hub.push(senders[at], RESIDENTS, CSV, file).await;
                assert_eq!(counts(&reply), json!([1, 0, 0]), "{}", reply.text());
            }
            assert_eq!(seen(&hub).await, format!("[\"{B}\",\"I\"]"), "{senders:?} {order:?}");
        }
    }
    // Two sources and nobody says that it left: one person lives in one place, where it was seen last.
    let hub = hub_of_two_sources().await;
    for (sender, file) in [(theirs, &arrived), (ours, &old)] {
        assert_eq!(counts(&hub.push(sender, RESIDENTS, CSV, file.clone()).await), json!([1, 0, 0]));
    }
    assert_eq!(seen(&hub).await, format!("[\"{B}\",\"I\"]"));
    // To each source its own register stays whole.
    assert_eq!(hub.ask(ours, "", "SELECT op FROM residents").await.rows(), "[\"S\"]");
    // When B says that it left again, it is gone from there.
    assert_eq!(counts(&hub.push(theirs, RESIDENTS, CSV, line(B, "D", "6 20:00")).await), json!([1, 0, 0]));
    assert_eq!(seen(&hub).await, format!("[\"{A}\",\"S\"]"));
    assert_eq!(counts(&hub.push(ours, RESIDENTS, CSV, left.clone()).await), json!([1, 0, 0]));
    assert_eq!(seen(&hub).await, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn s8_a_spreadsheet_program_saved_the_sheet() {
    let hub = with_divisions(TestHub::start().await).await;
    let header = lines("community.visits.csv").swap_remove(0);
    // A byte order mark, full-width digits; ids and days that were made numbers of are beyond repair.
    let rows = [
        format!("S1,420191001001001,,{PERSON},安一,,W1,2026-01-05 10:00:00,入户,36.5,,,"),
        "S2,420191001001001,,４２０１９１１９５００１１０００１Ｘ,安一,,W1,2026-01-05 10:00:00,入户,36.5,,,".to_owned(),
        "S3,420191001001001,,4.20104E+17,安一,,W1,2026-01-05 10:00:00,入户,36.5,,,".to_owned(),
        format!("S4,420191001001001,,{PERSON},安一,,W1,46026,入户,36.5,,,"),
        format!("S5,420191001001001,,{PERSON},安一,,W1,46027,入户,36.5,,,"),
    ];
    let file = format!("\u{feff}{header}\n{}\n", rows.join("\n"));
    let reply = hub.push("community-uploader", VISITS, CSV, file.into_bytes()).await;
    let receipt = reply.json();
    assert_eq!((reply.status, counts(&reply)), (201, json!([2, 3, 0])), "{}", reply.text());
    assert_eq!(
        receipt["rejected_rows"],
        json!([
            {"row": 2, "field": "id_no", "reason": "format"},
            {"row": 3, "field": "visited_at", "reason": "type"},
            {"row": 4, "field": "visited_at", "reason": "type"},
        ])
    );
    assert_eq!(receipt["warnings"]["spreadsheet_number"], 1, "{}", reply.text());
    assert_eq!(receipt["warnings"]["spreadsheet_date"], 2, "{}", reply.text());
    assert!(!reply.text().contains("E+17") && !reply.text().contains("4602"), "{}", reply.text());

    // Semicolons, lines that end as that program ends them, and the encoding of the country: the same two rows.
    let text = format!("{header}\n{}\n{}\n", rows[0], rows[1]).replace(',', ";").replace('\n', "\r\n");
    let copies = hub.push("community-uploader", VISITS, CSV, text.clone().into_bytes()).await;
    assert_eq!(counts(&copies), json!([0, 0, 2]), "{}", copies.text());
    let plain = text.replace(rows[1].replace(',', ";").as_str(), "").trim_end().to_owned() + "\r\n";
    let copies = hub.push("community-uploader", VISITS, CSV, gb18030(&plain)).await;
    assert_eq!(counts(&copies), json!([0, 0, 1]), "{}", copies.text());
    let people = hub.ask("community-uploader", "", "SELECT count(*), count(DISTINCT id_no) FROM visits").await;
    assert_eq!(people.rows(), "[2,1]");
}

/// The text in GB 18030, as far as these tests use it.
fn gb18030(text: &str) -> Vec<u8> {
    let code = |letter: char| match letter {
        '入' => vec![0xc8, 0xeb],
        '户' => vec![0xbb, 0xa7],
        '安' => vec![0xb0, 0xb2],
        '一' => vec![0xd2, 0xbb],
        plain => {
            assert!(plain.is_ascii(), "{plain}");
            vec![plain as u8]
        }
    };
    text.chars().flat_map(code).collect()
}

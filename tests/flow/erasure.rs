//! Erasure: who is erased is in no table, no history and no file, comes back with no batch, and nobody else is
//! touched.

use std::{collections::BTreeSet, path::Path, sync::Arc};

use arrow::{array::AsArray, compute::cast, datatypes::DataType};
use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use gridhub::{
    dataset::{Identifier, IdentifierKind},
    demo::city::with_check_digit,
    hub::Certificate,
    keys::Keys,
    pseudonym::Pseudonyms,
};
use insta::assert_snapshot;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use ring::signature::{ED25519, UnparsedPublicKey};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::{CSV, Reply, TestHub, files_below, fixture};

/// Somebody with a row in every dataset about people but one.
const PERSON: &str = "420191196807160139";

const EVERYWHERE: [(&str, &str, u64); 7] = [
    ("cdc-uploader", "cdc.cases", 1),
    ("cdc-uploader", "cdc.quarantine_orders", 0),
    ("community-uploader", "community.residents", 1),
    ("community-uploader", "community.visits", 1),
    ("health-uploader", "health_bureau.vaccinations", 1),
    ("hospital-uploader", "hospital.tests", 1),
    ("pharmacy-uploader", "pharmacy.sales", 1),
];

async fn erase(hub: &TestHub, body: &Value) -> Reply {
    hub.post(&hub.token("compliance-officer"), "/v1/erasures?purpose=audit", body, "").await
}

fn of(person: &str) -> Value {
    json!({ "identifiers": [{ "kind": "cn_resident_id", "value": person }], "basis": "PIPL article 47, file 12" })
}

fn pseudonym(hub: &TestHub, person: &str) -> [u8; 16] {
    let keys = Keys::open(&hub.folder.path().join("keys"), &hub.data(), true).unwrap();
    let identifier = Identifier { kind: IdentifierKind::CnResidentId, domain: "cn_resident_id".into() };
    Pseudonyms::new(Arc::new(keys)).pseudonym(&identifier, person)
}

/// The files in which a person is found, raw or by pseudonym, as they lie or decoded.
fn traces(hub: &TestHub, person: &str) -> Vec<String> {
    let p0 = pseudonym(hub, person);
    let hex: String = p0.iter().map(|byte| format!("{byte:02x}")).collect();
    let wide: Vec<u8> = person.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let needles = [person.as_bytes(), &wide, hex.as_bytes(), &p0];
    let mut traces = Vec::new();
    for path in files_below(&hub.data()) {
        let bytes = std::fs::read(&path).unwrap();
        let plain = needles.iter().any(|needle| bytes.windows(needle.len()).any(|window| window == *needle));
        let parquet = path.extension().is_some_and(|end| end == "parquet");
        if plain || parquet && decoded(&path).contains(p0.as_slice()) {
            traces.push(path.display().to_string());
        }
    }
    traces
}

fn decoded(path: &Path) -> BTreeSet<Vec<u8>> {
    let file = std::fs::File::open(path).unwrap();
    let mut values = BTreeSet::new();
    for batch in ParquetRecordBatchReaderBuilder::try_new(file).unwrap().build().unwrap() {
        for column in batch.unwrap().columns().iter().filter(|column| column.data_type().is_binary()) {
            let column = cast(column, &DataType::Binary).unwrap();
            values.extend(column.as_binary::<i32>().iter().flatten().map(<[u8]>::to_vec));
        }
    }
    values
}

async fn count(hub: &TestHub, caller: &str, dataset: &str) -> i64 {
    let reply = hub.ask(caller, "", &format!("SELECT count(*) FROM {dataset}")).await;
    assert_eq!(reply.status, 200, "{dataset}: {}", reply.text());
    reply.json()["rows"][0][0].as_i64().unwrap()
}

async fn counts(hub: &TestHub) -> Vec<i64> {
    let mut counts = Vec::new();
    for (caller, dataset, _) in EVERYWHERE {
        counts.push(count(hub, caller, dataset).await);
    }
    counts
}

/// The log's entries about erasures.
async fn logged(hub: &TestHub) -> Vec<Value> {
    let entries = hub.get(&hub.token("compliance-officer"), "/v1/log/entries?count=1000").await.json();
    let entries = entries["entries"].as_array().unwrap().clone();
    entries.into_iter().filter(|entry| entry["kind"].as_str().unwrap().starts_with("erasure")).collect()
}

fn verify(hub: &TestHub, reply: &Reply) -> Certificate {
    assert_eq!(reply.status, 200, "{}", reply.text());
    let mut certificate: Certificate = serde_json::from_slice(&reply.body).unwrap();
    let verifier = hub.hub.as_ref().unwrap().verifier();
    let key = BASE64.decode(verifier.splitn(3, '+').nth(2).unwrap()).unwrap();
    let signature = BASE64.decode(std::mem::take(&mut certificate.signature)).unwrap();
    let text = serde_json::to_vec(&certificate).unwrap();
    UnparsedPublicKey::new(&ED25519, &key[1..]).verify(&text, &signature).unwrap();
    assert!(UnparsedPublicKey::new(&ED25519, &key[1..]).verify(&text[1..], &signature).is_err());
    certificate
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_erased_is_gone_everywhere_and_nobody_else() {
    let mut hub = TestHub::with_city_in_plain_numbers().await;
    let before = counts(&hub).await;
    let cases = "SELECT case_id, id_no, severity, birth_date FROM cases";
    let lines = async |hub: &TestHub| -> BTreeSet<String> {
        let rows = hub.ask("cdc-epidemiologist", "case-management", cases).await.rows();
        rows.lines().map(str::to_owned).collect()
    };
    let cases_before = lines(&hub).await;
    let protected = "SELECT count(*) FROM cases";
    assert_eq!(hub.ask("pharmacy-planner", "", protected).await.rows(), "[14]");
    assert!(traces(&hub, PERSON).len() >= 6, "the search of this test can find something");

    let reply = erase(&hub, &of(PERSON)).await;
    let certificate = verify(&hub, &reply);
    for (dataset, erased) in EVERYWHERE.map(|(_, dataset, erased)| (dataset, erased)) {
        assert_eq!(certificate.datasets.get(dataset), Some(&erased), "{dataset}");
    }
    assert_eq!((certificate.identifiers, certificate.datasets.len()), (1, 7));
    assert!(certificate.verified && certificate.files_deleted >= 6 && certificate.bytes_searched > 10_000);
    assert_eq!(certificate.searched_for, ["pseudonyms", "identifiers"]);

    for restarted in [false, true] {
        if restarted {
            hub.restart().await;
        }
        assert_eq!(traces(&hub, PERSON), Vec::<String>::new());
        let expected: Vec<i64> =
            before.iter().zip(EVERYWHERE).map(|(before, (.., erased))| before - erased as i64).collect();
        assert_eq!(counts(&hub).await, expected);
        let cases_after = lines(&hub).await;
        assert!(cases_after.is_subset(&cases_before) && cases_after.len() + 1 == cases_before.len());
        // Published at once: the number before would still count whoever is gone. Thirteen are too few to show.
        let answer = hub.ask("pharmacy-planner", "", protected).await;
        assert_eq!(answer.json()["protection"]["mode"], "protected");
        assert!(!answer.rows().contains("14"), "{}", answer.text());
    }

    let again = hub.get(&hub.token("compliance-officer"), &format!("/v1/erasures/{}", certificate.id)).await;
    assert_eq!((again.status, again.json()), (200, reply.json()));
    let entries = logged(&hub).await;
    assert_eq!(entries.len(), 2, "{entries:?}");
    assert_eq!((&entries[0]["kind"], &entries[0]["basis"]), (&json!("erasure.begin"), &of("")["basis"]));
    assert_eq!((&entries[1]["index"], &entries[1]["verified"]), (&json!(certificate.log_index), &json!(true)));
    assert_eq!(entries[1]["datasets"], json!(certificate.datasets));
    let digest = {
        let unlogged = Certificate { log_index: None, signature: String::new(), ..certificate };
        ring::digest::digest(&ring::digest::SHA256, &serde_json::to_vec(&unlogged).unwrap())
    };
    let digest: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(entries[1]["certificate_digest"], digest);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_batch_brings_the_erased_back() {
    let mut hub = TestHub::with_city().await;
    verify(&hub, &erase(&hub, &of(PERSON)).await);
    let before = counts(&hub).await;
    for restarted in [false, true] {
        if restarted {
            hub.restart().await;
        }
        for (caller, dataset, erased) in EVERYWHERE {
            let reply = hub.push(caller, dataset, CSV, fixture(&format!("{dataset}.csv"))).await;
            assert_eq!(reply.status, 201, "{dataset}: {}", reply.text());
            let receipt = reply.json();
            let rejections = if erased > 0 { json!({ "erased": erased }) } else { json!({}) };
            assert_eq!((&receipt["rejections"], &receipt["rows_accepted"]), (&rejections, &json!(0)), "{receipt}");
        }
        assert_eq!(counts(&hub).await, before);
        assert_eq!(traces(&hub, PERSON), Vec::<String>::new());
    }
    // Erased again, there is nothing left to erase; and the tables still take rows of others.
    let again = verify(&hub, &erase(&hub, &of(PERSON)).await);
    assert!(again.verified && again.datasets.values().all(|rows| *rows == 0));
    let header = String::from_utf8(fixture("community.visits.csv")).unwrap().lines().next().unwrap().to_owned();
    let visit = "V9,420191001001001,,42019119500110001X,,,,2026-01-05 10:00:00,入户,36.5,,,";
    let reply =
        hub.push("community-uploader", "community.visits", CSV, format!("{header}\n{visit}\n").into_bytes()).await;
    assert_eq!(reply.json()["rows_accepted"], 1, "{}", reply.text());
    hub.restart().await;
    assert_eq!(count(&hub, "community-uploader", "community.visits").await, before[3] + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_gets_the_same_answer_with_zeros() {
    let hub = TestHub::with_city().await;
    let before = counts(&hub).await;
    let stranger = with_check_digit("42019119771231901");
    let unknown = erase(&hub, &of(&stranger)).await;
    let certificate = verify(&hub, &unknown);
    assert!(certificate.verified && certificate.files_deleted == 0);
    assert!(certificate.datasets.len() == 7 && certificate.datasets.values().all(|rows| *rows == 0));
    assert_eq!(counts(&hub).await, before);
    let known = erase(&hub, &of(PERSON)).await.json();
    let members = |reply: &Value| reply.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(members(&known), members(&unknown.json()));
}

#[tokio::test(flavor = "multi_thread")]
async fn other_kinds_and_spellings_name_people_too() {
    let hub = TestHub::with_city().await;
    let body = json!({ "identifiers": [
        { "kind": "cn_mobile", "value": "+86 141-0000-0006" },
        { "kind": "cn_resident_id", "value": "４２０１９１ 19500110001x" },
        { "kind": "opaque:household", "value": "420191001001001H0001" },
    ] });
    let certificate = verify(&hub, &erase(&hub, &body).await);
    assert!(certificate.verified);
    // He by his phone, An by his id, and the two of one household.
    assert_eq!((certificate.datasets["community.visits"], certificate.datasets["cdc.cases"]), (4, 2));
    for person in [PERSON, "42019119500110001X"] {
        assert!(traces(&hub, person).is_empty(), "{person}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_is_refused_and_what_cannot_be_read_is_told_by_position() {
    let hub = TestHub::with_city().await;
    let before = counts(&hub).await;
    for (caller, purpose) in [("health-analyst", "epidemiology"), ("community-uploader", "quality-control")] {
        let token = hub.token(caller);
        let refused = hub.post(&token, &format!("/v1/erasures?purpose={purpose}"), &of(PERSON), "").await;
        assert_eq!(refused.problem(), "403 not-allowed: erasure is not open to this caller and purpose");
        let path = format!("/v1/erasures/{}?purpose={purpose}", Uuid::now_v7());
        assert_eq!(hub.get(&token, &path).await.status, 403);
    }
    let nowhere = hub.get(&hub.token("compliance-officer"), &format!("/v1/erasures/{}", Uuid::now_v7())).await;
    assert_eq!(nowhere.problem(), "404 not-found: not found");

    let wrong = |kind: &str, value: &str| {
        json!({ "identifiers": [
        { "kind": "cn_resident_id", "value": PERSON }, { "kind": kind, "value": value } ] })
    };
    let said = async |body: Value| {
        let reply = erase(&hub, &body).await;
        assert!(!reply.text().contains("19680716") && !reply.text().contains("何七"), "{}", reply.text());
        reply.problem()
    };
    assert_snapshot!(said(wrong("cn_resident_id", "420191196807160130")).await, @"400 bad-request: identifier 2 is no `cn_resident_id`; put it right, nothing was erased");
    assert_snapshot!(said(wrong("cn_mobile", "420191196807160139")).await, @"400 bad-request: identifier 2 is no `cn_mobile`; put it right, nothing was erased");
    assert_snapshot!(said(wrong("name", "何七")).await, @"400 bad-request: identifier 2 is of no kind to erase by; write `cn_resident_id`, `cn_mobile`, `uscc`, or `opaque:DOMAIN`");
    assert_snapshot!(said(wrong("opaque:nowhere", "420191196807160139")).await, @"400 bad-request: identifier 2 is of a kind that no dataset holds");
    assert_snapshot!(said(json!({ "identifiers": [] })).await, @"400 bad-request: name 1 to 1000 identifiers; send more in several requests");
    assert_snapshot!(said(json!({ "identifiers": "420191196807160139" })).await, @r#"400 bad-request: the request must be JSON: {"identifiers": [{"kind": "cn_resident_id", "value": "…"}], "basis": "…"}"#);
    let mut naming = of(PERSON);
    naming["basis"] = format!("asked by {PERSON}").into();
    assert_snapshot!(said(naming).await, @"400 bad-request: `basis` goes into the log and must name nobody; cite a law or a file");
    assert_eq!(counts(&hub).await, before);
    assert!(logged(&hub).await.is_empty());
}

/// A fault in the last table leaves an erasure half done; the next start ends it.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_begun_is_ended_over_a_crash() {
    let mut hub = TestHub::with_city().await;
    let sales = hub.data().join("tables").join("pharmacy.sales");
    let files: Vec<_> = std::fs::read_dir(&sales).unwrap().map(|entry| entry.unwrap().path()).collect();
    let file = files.into_iter().find(|path| path.extension().is_some_and(|end| end == "parquet")).unwrap();
    let whole = std::fs::read(&file).unwrap();
    std::fs::write(&file, b"PAR1").unwrap();
    let broken = erase(&hub, &of(PERSON)).await;
    assert_eq!(broken.status, 500, "{}", broken.text());
    assert_eq!(hub.metadata().unfinished_erasures().unwrap().len(), 1);
    // The tombstones stand already, and what is kept of an unfinished erasure names nobody.
    let refused = hub.push("cdc-uploader", "cdc.cases", CSV, fixture("cdc.cases.csv")).await;
    assert_eq!(refused.json()["rejections"], json!({ "erased": 1 }), "{}", refused.text());
    std::fs::write(&file, whole).unwrap();
    let left: Vec<_> = traces(&hub, PERSON).into_iter().filter(|path| !path.contains("pharmacy.sales")).collect();
    assert_eq!(left, Vec::<String>::new());

    hub.restart().await;
    assert_eq!(traces(&hub, PERSON), Vec::<String>::new());
    assert!(hub.metadata().unfinished_erasures().unwrap().is_empty());
    let entries = logged(&hub).await;
    assert_eq!(entries.len(), 2, "{entries:?}");
    let path = format!("/v1/erasures/{}", entries[0]["id"].as_str().unwrap());
    let certificate = verify(&hub, &hub.get(&hub.token("compliance-officer"), &path).await);
    for (_, dataset, erased) in EVERYWHERE {
        assert_eq!(certificate.datasets[dataset], erased, "{dataset}");
    }
    assert_eq!(certificate.searched_for, ["pseudonyms"], "the identifier itself was kept nowhere");
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads_on_their_way_bring_nobody_back() {
    let hub = Arc::new(TestHub::with_city().await);
    let before = count(&hub, "community-uploader", "community.visits").await;
    let token = hub.token("community-uploader");
    let header = String::from_utf8(fixture("community.visits.csv")).unwrap().lines().next().unwrap().to_owned();
    let pushing: Vec<_> = (0..24)
        .map(|batch| {
            let (hub, token, header) = (Arc::clone(&hub), token.clone(), header.clone());
            tokio::spawn(async move {
                let visit = |row: usize, person: &str| {
                    format!("B{batch}R{row},420191001001001,,{person},,,,2026-01-05 10:00:00,入户,36.5,,,\n")
                };
                let rows = [visit(0, PERSON), visit(1, "42019119500110001X"), visit(2, PERSON)].concat();
                tokio::time::sleep(std::time::Duration::from_millis(8 * batch as u64)).await;
                let file = format!("{header}\n{rows}").into_bytes();
                hub.push_as(&token, "community.visits", Uuid::now_v7(), CSV, file).await
            })
        })
        .collect();
    tokio::time::sleep(std::time::Duration::from_millis(60)).await;
    let certificate = verify(&hub, &erase(&hub, &of(PERSON)).await);
    let mut stored = 0;
    for pushed in pushing {
        let receipt = pushed.await.unwrap();
        assert_eq!(receipt.status, 201, "{}", receipt.text());
        stored += receipt.json()["rows_accepted"].as_u64().unwrap() - 1;
    }
    // What was stored of them before the tombstones stood was erased, and nothing came after.
    assert_eq!(certificate.datasets["community.visits"], stored + 1);
    assert!(certificate.verified);
    assert_eq!(traces(&hub, PERSON), Vec::<String>::new());
    assert_eq!(count(&hub, "community-uploader", "community.visits").await, before - 1 + 24);
}

/// A state that is gone must not bring back the one that it corrected.
#[tokio::test(flavor = "multi_thread")]
async fn all_states_of_a_record_go_with_one_of_them() {
    let hub = TestHub::with_city().await;
    let before = count(&hub, "hospital-uploader", "hospital.tests").await;
    let text = String::from_utf8(fixture("hospital.tests.csv")).unwrap();
    let header: Vec<&str> = text.lines().next().unwrap().split(',').collect();
    let row = |revision: &str, result: &str, phone: &str| {
        let value = |field: &&str| match *field {
            "test_id" => "TX1",
            "revision" => revision,
            "phone" => phone,
            "sampled_at" | "reported_at" => "2026-01-05 10:00:00",
            "result" => result,
            _ => "",
        };
        let like: Vec<&str> = text.lines().nth(1).unwrap().split(',').collect();
        let values = header.iter().zip(&like).map(|(field, like)| match value(field) {
            "" if !["id_no", "name", "phone"].contains(field) => (*like).to_owned(),
            own => own.to_owned(),
        });
        values.collect::<Vec<_>>().join(",")
    };
    for (revision, result, phone) in [("1", "阳性", ""), ("2", "阴性", "14155500077")] {
        let file = format!("{}\n{}\n", header.join(","), row(revision, result, phone));
        let reply = hub.push("hospital-uploader", "hospital.tests", CSV, file.into_bytes()).await;
        assert_eq!(reply.status, 201, "{}", reply.text());
    }
    assert_eq!(count(&hub, "hospital-uploader", "hospital.tests").await, before + 1);
    let body = json!({ "identifiers": [{ "kind": "cn_mobile", "value": "14155500077" }] });
    let certificate = verify(&hub, &erase(&hub, &body).await);
    assert_eq!(certificate.datasets["hospital.tests"], 2);
    assert_eq!(count(&hub, "hospital-uploader", "hospital.tests").await, before, "an earlier state came back");
}

/// What is kept of a batch of one row must not let whoever has the data folder guess the row.
#[tokio::test(flavor = "multi_thread")]
async fn no_plain_digest_of_a_file_is_kept() {
    let hub = TestHub::with_city().await;
    let file = fixture("pharmacy.sales.csv");
    let digest = ring::digest::digest(&ring::digest::SHA256, &file);
    let receipt = hub.push("pharmacy-uploader", "pharmacy.sales", CSV, file.clone()).await.json();
    let told = receipt["content_digest"].as_str().unwrap().trim_start_matches("sha-256=:").trim_end_matches(':');
    assert!(!told.is_empty());
    let hex: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    for path in files_below(&hub.data()) {
        let bytes = std::fs::read(&path).unwrap();
        for needle in [digest.as_ref(), told.as_bytes(), hex.as_bytes()] {
            let there = bytes.windows(needle.len()).any(|window| window == needle);
            assert!(!there, "{} holds the digest of a file", path.display());
        }
    }
}

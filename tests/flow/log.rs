//! The log: what it records, who may read it, and that nothing is answered without it.

use std::{path::Path, process::Command};

use gridhub::audit::log::verify;
use insta::assert_snapshot;
use tempfile::TempDir;

use crate::support::{CSV, TestClock, TestHub, fixture};

/// The kinds and outcomes of the newest entries.
async fn newest(hub: &TestHub, count: usize) -> String {
    let token = hub.token("compliance-officer");
    let entries = hub.get(&token, "/v1/log/entries?from=0&count=1000").await.json();
    let entries = entries["entries"].as_array().unwrap().clone();
    let lines: Vec<_> = entries
        .iter()
        .map(|entry| {
            let word = |name: &str| entry[name].as_str().unwrap_or_default().to_owned();
            format!("{} {} {} {}", word("kind"), word("caller"), word("outcome"), word("rule")).trim().to_owned()
        })
        .filter(|line| !line.starts_with("token.create") && !line.starts_with("log.read"))
        .collect();
    lines[lines.len() - count..].join("\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn every_act_has_its_entries() {
    let hub = TestHub::with_city().await;
    hub.push("community-uploader", "community.visits", CSV, fixture("community.visits.csv")).await;
    hub.push("community-uploader", "community.visits", CSV, b"nonsense".to_vec()).await;
    hub.ask("health-analyst", "epidemiology", "SELECT count(*) FROM cases").await;
    hub.ask("health-analyst", "epidemiology", "SELECT severity FROM cases").await;
    hub.ask("health-analyst", "audit", "SELECT 1").await;
    assert_snapshot!(newest(&hub, 9).await, @"
    upload.begin community-uploader
    upload.end community-uploader accepted
    upload.end community-uploader contract-violation
    query.begin health-analyst
    query.end  answered
    query.begin health-analyst
    query.end  refused sealed-field
    query.begin health-analyst
    query.end  purpose-not-allowed
    ");
    let verified = verify(&hub.data().join("log"), None).unwrap();
    assert_eq!(verified.unsigned, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_entry_says_what_left_the_hub() {
    let hub = TestHub::with_city().await;
    let reply = hub
        .ask("health-analyst", "epidemiology", "SELECT sex, count(DISTINCT id_no) FROM cases GROUP BY 1")
        .await
        .json();
    let token = hub.token("compliance-officer");
    let path = format!("/v1/log/entries?from={}&count=1", reply["log_index"]);
    let entry = hub.get(&token, &path).await.json()["entries"][0].clone();
    assert_eq!(entry["query_id"], reply["query_id"]);
    assert_eq!(entry["snapshot"], reply["snapshot"]);
    assert_snapshot!(entry["fields"].to_string(), @r#"{"cdc.cases.*":"rows","cdc.cases.id_no":"token","cdc.cases.sex":"clear"}"#);
    assert_snapshot!(entry["tables"].to_string(), @r#"{"cdc.cases":1}"#);
    assert_eq!((entry["rows"].clone(), entry["protection"].clone()), (2.into(), "exact".into()));
}

/// Also what only filters look at, whoever applies them: the answer tells of it all the same.
#[tokio::test(flavor = "multi_thread")]
async fn an_end_entry_names_what_filters_looked_at() {
    for hub in [TestHub::with_city().await, TestHub::with_city_in_files().await] {
        for (sql, looked_at) in [
            ("SELECT vaccine FROM vaccinations WHERE dose_no = 1", "health_bureau.vaccinations.dose_no clear"),
            ("SELECT dose_no FROM vaccinations WHERE id_no = 'x'", "health_bureau.vaccinations.id_no token"),
            (
                "SELECT count(*) FROM vaccinations WHERE birth_date < '2000-01-01'",
                "health_bureau.vaccinations.birth_date generalised",
            ),
            ("SELECT case_id FROM cases WHERE sex = '女'", "cdc.cases.sex clear"),
            ("SELECT case_id FROM cases WHERE onset_date > '2025-01-01'", "cdc.cases.onset_date clear"),
        ] {
            for _ in 0..2 {
                let reply = hub.ask("health-analyst", "epidemiology", sql).await.json();
                let path = format!("/v1/log/entries?from={}&count=1", reply["log_index"]);
                let entry = hub.get(&hub.token("compliance-officer"), &path).await.json()["entries"][0].clone();
                let (field, exposure) = looked_at.split_once(' ').unwrap();
                assert_eq!(entry["fields"][field], exposure, "{sql}: {}", entry["fields"]);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_officers_read_it() {
    let hub = TestHub::with_city().await;
    for caller in ["health-analyst", "grid-worker"] {
        let path = if caller == "health-analyst" { "/v1/log/entries?purpose=epidemiology" } else { "/v1/log/entries" };
        let reply = hub.get(&hub.token(caller), path).await;
        assert_eq!(reply.problem(), "403 not-allowed: the access log is not open to this caller and purpose");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_a_cut_and_a_forged_log_are_found() {
    let mut hub = TestHub::with_city().await;
    hub.stop();
    let entries = hub.data().join("log").join("entries");
    let whole = std::fs::read(&entries).unwrap();
    let folder = hub.data().join("log");

    let mut changed = whole.clone();
    let at = whole
        .windows(11)
        .position(|window| window == b"cdc.cases\",")
        .or_else(|| whole.windows(9).position(|w| w == b"cdc.cases"))
        .unwrap();
    changed[at] = b'x';
    std::fs::write(&entries, &changed).unwrap();
    let said = verify(&folder, None).unwrap_err();
    assert!(said.contains("altered"), "{said}");

    std::fs::write(&entries, &whole[..whole.len() - 40]).unwrap();
    assert!(verify(&folder, None).unwrap_err().contains("was cut"));

    std::fs::write(&entries, &whole).unwrap();
    let verified = verify(&folder, None).unwrap();
    assert!(verified.signed > 20);
    let stranger = "gridhub/access-log+00000000+AQECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8g";
    assert!(verify(&folder, Some(stranger)).unwrap_err().contains("not signed by this key"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_power_cut_leaves_behind_is_dropped_and_what_was_signed_is_missed() {
    let mut hub = TestHub::with_city().await;
    hub.stop();
    let folder = hub.data().join("log");
    let signed = verify(&folder, None).unwrap().signed;
    // Zeros where the last block of the file should be, and half an entry.
    for tail in [&[0_u8; 6][..], &[0, 40, b'{', b'"']] {
        let mut bytes = std::fs::read(folder.join("entries")).unwrap();
        bytes.extend_from_slice(tail);
        std::fs::write(folder.join("entries"), bytes).unwrap();
        hub.restart().await;
        assert_eq!(hub.ask("health-analyst", "epidemiology", "SELECT 1").await.status, 200);
        hub.stop();
        assert!(verify(&folder, None).unwrap().signed > signed);
    }
    for missing in ["checkpoint", "entries"] {
        let kept = std::fs::read(folder.join(missing)).unwrap();
        std::fs::remove_file(folder.join(missing)).unwrap();
        let refused = gridhub::hub::Hub::open(crate::support::opening(hub.folder.path(), &hub.clock)).await;
        let said = refused.err().unwrap().to_string();
        assert!(said.contains("restore"), "{missing}: {said}");
        std::fs::write(folder.join(missing), kept).unwrap();
    }
    let table = hub.data().join("tables").join("cdc.cases");
    std::fs::rename(&table, hub.data().join("elsewhere")).unwrap();
    let refused = gridhub::hub::Hub::open(crate::support::opening(hub.folder.path(), &hub.clock)).await;
    assert!(refused.err().unwrap().to_string().contains("the table was there and is gone"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_logged_once_however_many_ask_at_once() {
    let hub = std::sync::Arc::new(TestHub::with_city().await);
    let token = hub.token("health-analyst");
    let asking: Vec<_> = (0..24)
        .map(|_| {
            let (hub, token) = (std::sync::Arc::clone(&hub), token.clone());
            tokio::spawn(async move { hub.get(&token, "/v1/datasets?purpose=epidemiology").await.status })
        })
        .collect();
    for reply in asking {
        assert_eq!(reply.await.unwrap(), 200);
    }
    let id = hub.metadata().tokens().unwrap().into_iter().rfind(|t| t.caller == "health-analyst").unwrap().id;
    let officer = hub.token("compliance-officer");
    let entries = hub.get(&officer, "/v1/log/entries?count=1000").await.json();
    let made = entries["entries"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|e| e["kind"] == "token.create" && e["token_id"] == id.as_str());
    assert_eq!(made.count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_answered_that_cannot_be_logged() {
    let hub = TestHub::with_city().await;
    let token = hub.token("health-analyst");
    assert_eq!(hub.get(&token, "/v1/datasets?purpose=epidemiology").await.status, 200);
    // The clock falls behind the last entry: a small step is the discipline of clocks, a large one is not.
    hub.clock.step(chrono::TimeDelta::seconds(-4));
    assert_eq!(hub.ask_as(&token, "epidemiology", "SELECT 1", "").await.status, 200);
    hub.clock.step(chrono::TimeDelta::minutes(-10));
    let refused = hub.ask_as(&token, "epidemiology", "SELECT 1", "").await;
    assert_snapshot!(refused.problem(), @"503 log-unavailable: the access log cannot be written, so nothing can be answered; tell the operator");
    hub.clock.step(chrono::TimeDelta::minutes(11));
    assert_eq!(hub.ask_as(&token, "epidemiology", "SELECT 1", "").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_whose_text_cannot_be_kept_is_not_answered_and_its_end_is_recorded() {
    let hub = TestHub::with_city().await;
    let token = hub.token("health-analyst");
    let ask = || hub.ask_as(&token, "epidemiology", "SELECT 1", "");
    assert_eq!(ask().await.status, 200);
    let database = rusqlite::Connection::open(hub.data().join("metadata.sqlite")).unwrap();
    database.execute_batch("ALTER TABLE questions RENAME TO elsewhere").unwrap();
    assert_eq!(ask().await.status, 500);
    database.execute_batch("ALTER TABLE elsewhere RENAME TO questions").unwrap();
    assert_eq!(ask().await.status, 200);
    assert_snapshot!(newest(&hub, 4).await, @"
    query.begin health-analyst
    query.end  internal
    query.begin health-analyst
    query.end  answered
    ");
}

/// Copies a folder as it lies there now. By another process: one that closes a file lets go of all its own locks on it,
/// and the hub's are of this process.
fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").arg(from.join(".")).arg(to).status().unwrap();
    assert!(copied.success());
}

fn copied(from: &Path) -> TempDir {
    let to = tempfile::tempdir().unwrap();
    copy(from, to.path());
    to
}

/// Starts on what a crash left; the log must be whole, and all goes on. Returns the hub and the entries from one on.
async fn after_a_crash(folder: TempDir, clock: TestClock, from: u64) -> (TestHub, Vec<serde_json::Value>) {
    let log = folder.path().join("data").join("log");
    verify(&log, None).unwrap();
    let hub = TestHub::on(folder, clock).await.unwrap();
    assert_eq!(hub.ask("health-analyst", "epidemiology", "SELECT 1").await.status, 200);
    let officer = hub.token("compliance-officer");
    let entries = hub.get(&officer, &format!("/v1/log/entries?from={from}&count=1000")).await.json();
    assert_eq!(verify(&log, None).unwrap().unsigned, 0);
    (hub, entries["entries"].as_array().unwrap().clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_amid_the_beginning_of_a_question_leaves_its_text_or_its_entry_and_no_answer() {
    let hub = TestHub::with_city().await;
    let token = hub.token("health-analyst");
    let ask = || hub.ask_as(&token, "epidemiology", "SELECT count(*) FROM cases", "application/json");
    assert_eq!(ask().await.status, 200);
    let log = hub.data().join("log");
    let before = verify(&log, None).unwrap().signed;

    // The entry without the text, which does not get into a database that another holds.
    let log_before = copied(&log);
    let holder = rusqlite::Connection::open(hub.data().join("metadata.sqlite")).unwrap();
    holder.execute_batch("BEGIN IMMEDIATE").unwrap();
    let begun = async {
        while verify(&log, None).unwrap().signed == before {
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
        // Time enough for an answer, if it did not wait.
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    };
    let mut asking = std::pin::pin!(ask());
    tokio::select! {
        _ = &mut asking => panic!("answered before its text was kept"),
        () = begun => {}
    }
    assert_eq!(verify(&log, None).unwrap().signed, before + 1);
    let crashed = copied(hub.folder.path());
    holder.execute_batch("ROLLBACK").unwrap();
    let reply = asking.await;
    assert_eq!(reply.status, 200);
    let (after, entries) = after_a_crash(crashed, hub.clock.clone(), before).await;
    let id = entries[0]["query_id"].as_str().unwrap();
    assert_eq!(entries.iter().filter(|entry| entry["query_id"] == id).count(), 1);
    assert_eq!(entries[0]["kind"], "query.begin");
    assert!(after.metadata().question(id).unwrap().is_none());

    // The text without the entry: the log as it lay before the question, and all else as it lies after it.
    let id = reply.json()["query_id"].as_str().unwrap().to_owned();
    let crashed = copied(hub.folder.path());
    copy(log_before.path(), &crashed.path().join("data").join("log"));
    let (after, entries) = after_a_crash(crashed, hub.clock.clone(), before).await;
    assert!(entries.iter().all(|entry| entry["query_id"] != id.as_str()));
    assert!(after.metadata().question(&id).unwrap().is_some());
}

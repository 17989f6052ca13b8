//! Keys and tokens change while the hub serves: what wraps its secrets, and what recipients see of people.

use std::{
    collections::BTreeSet,
    fs,
    ops::Range,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use gridhub::{audit::log::verify, demo::city::with_check_digit, hub::Hub};
use serde_json::Value;

use crate::{
    support::{CSV, TestHub, fixture, opening, repository},
    worlds::keyed,
};

const ANALYST: (&str, &str) = ("health-analyst", "epidemiology");
const CDC: (&str, &str) = ("cdc-epidemiologist", "epidemiology");
const VISITS: &str = "community.visits";

/// Everybody was born in another year, so rows are known again.
const PEOPLE: &str = "SELECT birth_date, id_no FROM cases ORDER BY 1";

fn gridhub(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gridhub"));
    command.current_dir(repository()).args(arguments).output().unwrap()
}

/// What a command that succeeds says.
fn done(arguments: &[&str]) -> String {
    let output = gridhub(arguments);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// What a command that fails says, and how.
fn failed(arguments: &[&str]) -> (Option<i32>, String) {
    let output = gridhub(arguments);
    assert_ne!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stdout));
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

fn keys(hub: &TestHub) -> PathBuf {
    hub.folder.path().join("keys")
}

fn rotate(keys: &Path, data: &Path) -> String {
    done(&["keys", "rotate", "--keys", keys.to_str().unwrap(), "--data", data.to_str().unwrap()])
}

/// The names in a folder.
fn names(folder: &Path) -> BTreeSet<String> {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// The one wrapping key.
fn wrapping_key(keys: &Path) -> PathBuf {
    let there = names(&keys.join("wrapping"));
    assert_eq!(there.len(), 1, "{there:?}");
    keys.join("wrapping").join(there.first().unwrap())
}

/// One visit each of people who are in no other file.
fn visits_of(people: Range<usize>) -> Vec<u8> {
    let header = String::from_utf8(fixture("community.visits.csv")).unwrap().lines().next().unwrap().to_owned();
    let rows: String = people
        .map(|person| {
            let id = with_check_digit(&format!("42019119{:02}0101{:03}", 50 + person, 100 + person));
            let warmth = person % 10;
            format!("W{person},420191001001001,,{id},,,,2026-01-05 10:00:00,入户,36.{warmth},,,\n")
        })
        .collect();
    format!("{header}\n{rows}").into_bytes()
}

async fn ask(hub: &TestHub, (caller, purpose): (&str, &str), sql: &str) -> String {
    hub.ask(caller, purpose, sql).await.rows()
}

/// The tokens that somebody sees of those who fell ill.
async fn tokens(hub: &TestHub, caller: (&str, &str)) -> BTreeSet<String> {
    let seen = ask(hub, caller, "SELECT id_no FROM cases").await;
    let seen: BTreeSet<_> = seen.lines().map(|line| line.trim_matches(['[', ']', '"']).to_owned()).collect();
    assert_eq!(seen.len(), 14, "{seen:?}");
    seen
}

/// The entries of that kind in the log, oldest first.
async fn logged(hub: &TestHub, kind: &str) -> Vec<Value> {
    let (officer, mut from, mut found) = (hub.token("compliance-officer"), 0, Vec::new());
    loop {
        let page = hub.get(&officer, &format!("/v1/log/entries?from={from}&count=1000")).await.json();
        let page = page["entries"].as_array().unwrap();
        found.extend(page.iter().filter(|entry| entry["kind"] == kind).cloned());
        from += page.len();
        if page.len() < 1_000 {
            return found;
        }
    }
}

async fn start_fails(hub: &TestHub) -> String {
    Hub::open(opening(hub.folder.path(), &hub.clock)).await.err().expect("the hub started").to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_rotated_while_the_hub_serves() {
    let mut hub = TestHub::with_city().await;
    let (keys, data) = (keys(&hub), hub.data());
    let before = ask(&hub, ANALYST, PEOPLE).await;
    let first = wrapping_key(&keys);

    let folders = (keys.clone(), data.clone());
    let rotating = tokio::task::spawn_blocking(move || {
        for _ in 0..4 {
            rotate(&folders.0, &folders.1);
        }
    });
    let mut round = 0;
    while !rotating.is_finished() || round < 3 {
        assert_eq!(ask(&hub, ANALYST, PEOPLE).await, before);
        // Who comes for the first time is told from who was there.
        let mut file = visits_of(round % 40..round % 40 + 1);
        let known = fixture("community.visits.csv");
        file.extend_from_slice(&known[known.iter().position(|byte| *byte == b'\n').unwrap() + 1..]);
        let receipt = hub.push("community-uploader", VISITS, CSV, file).await.json();
        let accepted = u64::from(round < 40);
        assert_eq!(receipt["rows_accepted"], accepted, "{receipt}");
        assert_eq!(receipt["rows_duplicate"], 17 - accepted, "{receipt}");
        round += 1;
    }
    rotating.await.unwrap();

    assert!(!first.exists());
    assert_eq!(names(&keys), BTreeSet::from(["log-signing.wrapped", "root.wrapped", "wrapping"].map(str::to_owned)));
    let rotations = logged(&hub, "keys.rotate").await;
    assert_eq!(rotations.len(), 4);
    let id = wrapping_key(&keys).file_stem().unwrap().to_str().unwrap().to_owned();
    assert_eq!(rotations[3]["key_id"], id);
    let count = ask(&hub, ANALYST, "SELECT count(*) FROM visits").await;

    hub.restart().await;
    assert_eq!(ask(&hub, ANALYST, PEOPLE).await, before);
    assert_eq!(ask(&hub, ANALYST, "SELECT count(*) FROM visits").await, count);
    let again = hub.push("community-uploader", VISITS, CSV, fixture("community.visits.csv")).await.json();
    assert_eq!(again["rows_duplicate"], 16, "{again}");
    hub.stop();
    verify(&data.join("log"), None).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_old_are_wrapped_by_the_first_rotation() {
    let mut hub = keyed(|_| {}).await;
    let (keys, data) = (keys(&hub), hub.data());
    for (caller, dataset) in [("platform-uploader", "platform.divisions"), ("cdc-uploader", "cdc.cases")] {
        let reply = hub.push(caller, dataset, CSV, fixture(&format!("{dataset}.csv"))).await;
        assert_eq!(reply.status, 201, "{}", reply.text());
    }
    let before = ask(&hub, ANALYST, PEOPLE).await;
    hub.restart().await;
    assert_eq!(ask(&hub, ANALYST, PEOPLE).await, before);
    assert_eq!(names(&keys), BTreeSet::from(["log-signing.key", "root.key"].map(str::to_owned)));
    let show = ["keys", "show", "--keys", keys.to_str().unwrap()];
    let shown = done(&show);
    assert_eq!(shown.matches("mode 600").count(), 2, "{shown}");
    assert_eq!(shown.matches("not wrapped; `gridhub keys rotate` wraps it").count(), 2, "{shown}");

    rotate(&keys, &data);
    assert_eq!(names(&keys), BTreeSet::from(["log-signing.wrapped", "root.wrapped", "wrapping"].map(str::to_owned)));
    assert_eq!(ask(&hub, ANALYST, PEOPLE).await, before);
    hub.restart().await;
    assert_eq!(ask(&hub, ANALYST, PEOPLE).await, before);
    let id = wrapping_key(&keys).file_stem().unwrap().to_str().unwrap().to_owned();
    let shown = done(&show);
    assert_eq!(shown.matches(&format!("wrapped under {id}")).count(), 2, "{shown}");
    assert!(shown.contains("wraps root, log-signing"), "{shown}");
    // The root key is 32 times the byte 7.
    assert!(!shown.contains("07070707") && !shown.contains("\u{7}\u{7}"), "{shown}");
    for file in ["root.wrapped", "log-signing.wrapped"] {
        assert!(!fs::read(keys.join(file)).unwrap().windows(8).any(|window| window == [7; 8]), "{file}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_do_not_open_are_named() {
    let mut hub = TestHub::start().await;
    hub.stop();
    let wrapping = wrapping_key(&keys(&hub));
    let key = fs::read(&wrapping).unwrap();
    fs::write(&wrapping, [9; 32]).unwrap();
    let said = start_fails(&hub).await;
    assert!(said.contains(".key: holds another key than its name says; restore it from a backup"), "{said}");
    fs::rename(&wrapping, hub.folder.path().join("elsewhere")).unwrap();
    let said = start_fails(&hub).await;
    assert!(said.contains(".key: is missing, and ") && said.contains("restore it from a backup"), "{said}");
    fs::rename(hub.folder.path().join("elsewhere"), &wrapping).unwrap();
    fs::write(&wrapping, key).unwrap();

    for name in ["root", "log-signing"] {
        let file = keys(&hub).join(format!("{name}.wrapped"));
        let bytes = fs::read(&file).unwrap();
        let mut altered = bytes.clone();
        *altered.last_mut().unwrap() ^= 1;
        fs::write(&file, altered).unwrap();
        let said = start_fails(&hub).await;
        assert!(said.contains(&format!("{name}.wrapped: was altered or wrapped for something else")), "{said}");
        fs::write(&file, &bytes[..40]).unwrap();
        let said = start_fails(&hub).await;
        assert!(said.contains(&format!("{name}.wrapped: holds no wrapped key")), "{said}");
        fs::write(&file, bytes).unwrap();
    }
    hub.restart().await;

    // Keys of one hub, data of another.
    let other = TestHub::start().await;
    let (mine, theirs) = (keys(&hub), other.data());
    let before = wrapping_key(&mine);
    let arguments = ["keys", "rotate", "--keys", mine.to_str().unwrap(), "--data", theirs.to_str().unwrap()];
    let (status, said) = failed(&arguments);
    assert!(status == Some(1) && said.contains("was written under other keys"), "{said}");
    assert_eq!(wrapping_key(&mine), before);
    assert_eq!(logged(&other, "keys.rotate").await.len(), 0);
    let nowhere = hub.folder.path().join("nowhere");
    let (status, said) = failed(&["keys", "rotate", "--keys", nowhere.to_str().unwrap()]);
    assert!(status == Some(1) && said.contains("holds no keys of a hub"), "{said}");
    assert!(!nowhere.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_epoch_changes_what_recipients_see_of_people_and_nothing_else() {
    let mut hub = TestHub::with_city().await;
    let reply = hub.push("community-uploader", VISITS, CSV, visits_of(0..40)).await;
    assert_eq!(reply.json()["rows_accepted"], 40, "{}", reply.text());
    let data = hub.data();
    let new_epoch = |names: &[&str]| {
        done(&[&["keys", "new-epoch", "--data", data.to_str().unwrap()][..], names].concat());
    };
    let joined = "SELECT count(*) FROM visits v JOIN cases c ON c.id_no = v.id_no";
    let protected = "SELECT count(temperature) AS n, avg(temperature) AS mean FROM visits";
    let (join_before, protected_before) = (ask(&hub, ANALYST, joined).await, ask(&hub, ANALYST, protected).await);
    assert!(join_before != "[0]" && !protected_before.is_empty() && !protected_before.contains("null"));
    let first = (tokens(&hub, ANALYST).await, tokens(&hub, CDC).await);
    let people = ask(&hub, ANALYST, PEOPLE).await;
    let old = people.lines().next().unwrap().split('"').nth(3).unwrap().to_owned();
    let find = |token: &str| format!("SELECT count(*) FROM cases WHERE id_no = '{token}'");
    assert_eq!(ask(&hub, ANALYST, &find(&old)).await, "[1]");

    // One agency.
    new_epoch(&["--agency", "health_bureau"]);
    let second = tokens(&hub, ANALYST).await;
    assert!(second.is_disjoint(&first.0));
    assert_eq!(tokens(&hub, CDC).await, first.1);
    assert_eq!(ask(&hub, ANALYST, &find(&old)).await, "[0]");
    let people = ask(&hub, ANALYST, PEOPLE).await;
    let new = people.lines().next().unwrap().split('"').nth(3).unwrap().to_owned();
    assert_eq!(ask(&hub, ANALYST, &find(&new)).await, "[1]");
    assert_eq!(ask(&hub, ANALYST, joined).await, join_before);
    assert_eq!(ask(&hub, ANALYST, protected).await, protected_before);

    // It outlives the hub; what is stored is what it was, and known again.
    hub.restart().await;
    assert_eq!(tokens(&hub, ANALYST).await, second);
    let again = hub.push("community-uploader", VISITS, CSV, visits_of(0..40)).await.json();
    assert_eq!(again["rows_duplicate"], 40, "{again}");

    // One purpose, which only one of the two has.
    let casework = ("cdc-epidemiologist", "case-management");
    let of_casework = tokens(&hub, casework).await;
    new_epoch(&["--purpose", "case-management"]);
    assert!(tokens(&hub, casework).await.is_disjoint(&of_casework));
    assert_eq!((tokens(&hub, ANALYST).await, tokens(&hub, CDC).await), (second.clone(), first.1.clone()));

    // Everybody; nobody gets tokens of an earlier epoch again.
    new_epoch(&[]);
    let third = tokens(&hub, ANALYST).await;
    assert!(third.is_disjoint(&second) && third.is_disjoint(&first.0));
    assert!(tokens(&hub, CDC).await.is_disjoint(&first.1));
    assert_eq!(ask(&hub, ANALYST, joined).await, join_before);
    assert_eq!(ask(&hub, ANALYST, protected).await, protected_before);

    // One agency for one purpose, again and again.
    let both = ["--agency", "cdc", "--purpose", "epidemiology"];
    let mut seen = tokens(&hub, CDC).await;
    for _ in 0..2 {
        new_epoch(&both);
        let now = tokens(&hub, CDC).await;
        assert!(now.is_disjoint(&seen));
        seen.extend(now);
    }
    assert_eq!(tokens(&hub, ANALYST).await, third);

    let told: Vec<_> = logged(&hub, "tokens.epoch")
        .await
        .iter()
        .map(|entry| format!("{} {} {}", entry["agency"], entry["purpose"], entry["epoch"]))
        .collect();
    assert_eq!(
        told,
        [
            "\"health_bureau\" null 1",
            "null \"case-management\" 1",
            "null null 1",
            "\"cdc\" \"epidemiology\" 1",
            "\"cdc\" \"epidemiology\" 2"
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_epoch_of_nobody_is_not_begun() {
    let hub = TestHub::start().await;
    let data = hub.data();
    for (names, says) in [
        (&["--agency", "helth_bureau"][..], "no caller is of `helth_bureau`"),
        (&["--purpose", "gossip"][..], "no caller asks for `gossip`"),
        (
            &["--agency", "pharmacy", "--purpose", "epidemiology"][..],
            "no caller is of `pharmacy` and asks for `epidemiology`",
        ),
        (&["--agency", ""][..], "no caller is of ``"),
    ] {
        let (status, said) = failed(&[&["keys", "new-epoch", "--data", data.to_str().unwrap()][..], names].concat());
        assert!(status == Some(2) && said.contains(says), "{said}");
    }
    assert_eq!(logged(&hub, "tokens.epoch").await.len(), 0);
    assert_eq!(hub.metadata().token_epoch("health_bureau", "epidemiology").unwrap(), 1);
    // A database that cannot tell the epoch gives no tokens, and none of an earlier one either.
    let token = hub.token(ANALYST.0);
    let connection = rusqlite::Connection::open(data.join("metadata.sqlite")).unwrap();
    connection.execute("DROP TABLE token_epochs", []).unwrap();
    let refused = hub.ask_as(&token, ANALYST.1, "SELECT id_no FROM cases", "").await;
    assert_eq!(refused.status, 500, "{}", refused.text());
}

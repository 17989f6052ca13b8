//! Protected answers as callers may wish for them, what is said about them, and when they go out.

use std::time::{Duration, Instant};

use gridhub::demo::city::with_check_digit;
use serde_json::{Value, json};

use crate::support::{CSV, Reply, TestHub, changed, fixture};

/// Grids with the people that are visited there: one that is shown, and two that are too small one by one. Whatever
/// the noise, both together are shown: 18 people less 4 are the 14 that a count must have.
const VISITED: [(&str, usize); 3] = [("420191001001001", 60), ("420191001001002", 9), ("420191001002001", 9)];

const COUNT: &str = "SELECT count(temperature) AS n FROM visits";
const BY_GRID: &str = "SELECT grid_code, count(temperature) AS n FROM visits GROUP BY 1";

/// A hub with one visit to each of 78 people.
async fn visited() -> TestHub {
    let hub = TestHub::start().await;
    hub.push("platform-uploader", "platform.divisions", CSV, fixture("platform.divisions.csv")).await;
    let header = String::from_utf8(fixture("community.visits.csv")).unwrap();
    let mut file = format!("{}\n", header.lines().next().unwrap());
    let grids = VISITED.iter().flat_map(|(grid, people)| std::iter::repeat_n(grid, *people));
    for (n, grid) in grids.enumerate() {
        let id = with_check_digit(&format!("42019119{:02}0101{:03}", 50 + n % 40, 100 + n));
        file += &format!("V{n},{grid},,{id},,,,2026-01-05 10:00:00,入户,36.{},,,\n", n % 10);
    }
    let reply = hub.push("community-uploader", "community.visits", CSV, file.into_bytes()).await;
    assert_eq!(reply.json()["rows_accepted"], 78, "{}", reply.text());
    hub
}

/// A question of the analyst with members beside the statement.
fn question(sql: &str, members: Value) -> Value {
    let mut question = json!({"sql": sql, "purpose": "epidemiology"});
    question.as_object_mut().unwrap().extend(members.as_object().unwrap().clone());
    question
}

async fn ask(hub: &TestHub, sql: &str, members: Value) -> Reply {
    hub.post(&hub.token("health-analyst"), "/v1/sql", &question(sql, members), "").await
}

fn names(document: &Value) -> Vec<&str> {
    document["columns"].as_array().unwrap().iter().map(|column| column["name"].as_str().unwrap()).collect()
}

/// The only row that begins with that value.
fn row<'a>(answer: &'a Value, key: &Value) -> &'a [Value] {
    let rows: Vec<_> = answer["rows"].as_array().unwrap().iter().filter(|row| row[0] == *key).collect();
    assert_eq!(rows.len(), 1, "{key} in {answer}");
    rows[0].as_array().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wish_that_nobody_knows_is_a_bad_request() {
    let hub = TestHub::start().await;
    let token = hub.token("health-analyst");
    for path in ["/v1/sql", "/v1/explain"] {
        let problem = async |members: Value| hub.post(&token, path, &question("SELECT 1", members), "").await.problem();
        let words = "write `leave-out`, `merge` or `roll-up`";
        for word in ["hide", "Merge", ""] {
            let said = problem(json!({"small_cells": word})).await;
            assert_eq!(said, format!("400 bad-request: `small_cells` cannot be `{word}`; {words}"), "{path}");
        }
        for members in [json!({"interval": "yes"}), json!({"small_cells": true}), json!({"noise": 0})] {
            let said = problem(members.clone()).await;
            assert!(said.starts_with("400 sql-syntax: the request must be JSON"), "{path} {members}: {said}");
        }
        for members in [json!({"interval": false, "small_cells": "leave-out"}), json!({"small_cells": null})] {
            let reply = hub.post(&token, path, &question("SELECT 1", members), "").await;
            assert_eq!(reply.status, 200, "{}", reply.text());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_number_comes_with_the_ends_of_its_interval() {
    let hub = visited().await;
    let plain = ask(&hub, COUNT, json!({})).await.json();
    assert_eq!(names(&plain), ["n"]);
    let with_ends = ask(&hub, COUNT, json!({"interval": true})).await.json();
    assert_eq!(names(&with_ends), ["n", "n_low", "n_high"]);
    assert!(with_ends["columns"].as_array().unwrap().iter().all(|column| column["exposure"] == "released"));
    let numbers: Vec<_> = with_ends["rows"][0].as_array().unwrap().iter().map(|cell| cell.as_i64().unwrap()).collect();
    let [n, low, high] = numbers[..] else { panic!("{with_ends}") };
    assert!((74..=82).contains(&n), "78 people, and noise of 4 at most: {n}");
    // 1.96 standard deviations of the noise, 2.77, rounded outwards.
    assert_eq!((low, high), (n - 3, n + 3));
    assert_eq!(plain["rows"], json!([[n]]), "the number is the same with and without its ends");

    let asked = question(COUNT, json!({"interval": true}));
    let explained = hub.post(&hub.token("health-analyst"), "/v1/explain", &asked, "").await.json();
    assert_eq!(names(&explained), ["n", "n_low", "n_high"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn small_cells_are_left_out_merged_or_rolled_up() {
    let hub = visited().await;
    let [(large, _), ..] = VISITED;
    let left_out = ask(&hub, BY_GRID, json!({})).await.json();
    assert_eq!(names(&left_out), ["grid_code", "n"]);
    assert_eq!(left_out["rows"].as_array().unwrap().len(), 1, "{left_out}");
    let shown = &row(&left_out, &json!(large))[1];

    let merged = ask(&hub, BY_GRID, json!({"small_cells": "merge"})).await.json();
    assert_eq!(names(&merged), ["grid_code", "n", "answered_at"]);
    assert_eq!(merged["rows"].as_array().unwrap().len(), 2, "{merged}");
    assert_eq!(row(&merged, &json!(large)), [json!(large), shown.clone(), Value::Null]);
    let [_, both, level] = row(&merged, &Value::Null) else { panic!("{merged}") };
    assert!((14..=22).contains(&both.as_i64().unwrap()), "18 people, and noise of 4 at most: {both}");
    assert_eq!(level, "all small groups");

    // One grid of each community: they meet in the subdistrict.
    let rolled_up = ask(&hub, BY_GRID, json!({"small_cells": "roll-up"})).await.json();
    assert_eq!(names(&rolled_up), ["grid_code", "n", "answered_at"]);
    assert_eq!(rolled_up["rows"].as_array().unwrap().len(), 2, "{rolled_up}");
    assert_eq!(row(&rolled_up, &json!(large)), [json!(large), shown.clone(), json!("grid")]);
    let subdistrict = json!("420191001");
    assert_eq!(row(&rolled_up, &subdistrict), [subdistrict.clone(), both.clone(), json!("rest of subdistrict")]);

    let by_mode = "SELECT mode, count(temperature) FROM visits GROUP BY 1";
    let nowhere = ask(&hub, by_mode, json!({"small_cells": "roll-up"})).await.json();
    assert_eq!(nowhere["rule"], "roll-up", "{nowhere}");
}

#[tokio::test(flavor = "multi_thread")]
async fn exact_answers_know_no_wishes() {
    let hub = visited().await;
    let sql = "SELECT mode, count(*) AS n FROM visits GROUP BY 1";
    for members in [json!({}), json!({"interval": true}), json!({"interval": true, "small_cells": "merge"})] {
        let reply = ask(&hub, sql, members).await;
        assert_eq!(reply.rows(), r#"["入户",78]"#);
        let answer = reply.json();
        assert_eq!(names(&answer), ["mode", "n"]);
        assert_eq!(answer["protection"], json!({"mode": "exact"}));
        let said = answer["columns"].as_array().unwrap();
        let bare = said.iter().all(|column| column.get("noise").is_none() && column.get("reached_by").is_none());
        assert!(bare, "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_released_column_says_what_reaches_it() {
    let hub = visited().await;
    let token = hub.token("cdc-epidemiologist");
    let explain = async |sql: &str| {
        let body = json!({"sql": sql, "purpose": "contact-tracing"});
        hub.post(&token, "/v1/explain", &body, "").await.json()
    };
    let reached = |field: &str, how: &str| json!({"field": format!("community.visits.{field}"), "how": how});

    let filtered = "SELECT grid_code, avg(temperature) AS mean FROM visits WHERE needs = '药品' GROUP BY 1";
    let explained = explain(filtered).await;
    assert_eq!(explained["verdict"], "answered", "{explained}");
    assert_eq!(explained["protection"], json!({"mode": "protected", "threshold": 14, "noise_sd": 1.41}));
    let [key, mean] = &explained["columns"].as_array().unwrap()[..] else { panic!("{explained}") };
    assert_eq!((key["exposure"].as_str(), key.get("reached_by")), (Some("clear"), None));
    assert_eq!(mean["exposure"], "released");
    assert_eq!(mean["noise"], json!({"of": "mean"}));
    assert_eq!(mean["reached_by"], json!([reached("needs", "filter"), reached("temperature", "value")]));

    let explained = explain("SELECT needs, count(temperature) AS n FROM visits GROUP BY 1").await;
    let [key, n] = &explained["columns"].as_array().unwrap()[..] else { panic!("{explained}") };
    assert_eq!(key["exposure"], "released", "which needs there are is sealed itself");
    assert_eq!((&key["reached_by"], key.get("noise")), (&json!([reached("needs", "key")]), None));
    assert_eq!(n["noise"], json!({"of": "rows"}), "people have more rows than one, so it differs from row to row");
    assert_eq!(n["reached_by"], json!([reached("needs", "key"), reached("temperature", "value")]));

    let refused = explain("SELECT needs FROM visits").await;
    assert_eq!(refused["verdict"], "refused");
    assert_eq!(refused["refusal"]["rule"], "sealed-field");
    assert!(refused["refusal"]["try"].as_str().is_some_and(|instead| !instead.is_empty()), "{refused}");
}

/// The repository's policies, with another text in place of the settings of releases.
fn with_settings(hub: &TestHub, name: &str, text: &str) -> std::path::PathBuf {
    changed(&hub.folder.path().join(name), "policies", "disclosure.json", |_| text.to_owned())
}

/// How long the fastest of a few such questions takes, and the last reply.
async fn fastest(hub: &TestHub, sql: &str) -> (Duration, Reply) {
    let token = hub.token("health-analyst");
    let mut times = Vec::new();
    loop {
        let started = Instant::now();
        let reply = hub.ask_as(&token, "epidemiology", sql, "").await;
        times.push(started.elapsed());
        if times.len() == 5 {
            return (times.into_iter().min().unwrap(), reply);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn padded_replies_wait_and_say_the_same() {
    // Ids, and what follows the version of the policies.
    let but_for_ids = |reply: &Reply| {
        let mut answer = reply.json();
        for member in ["query_id", "log_index", "snapshot", "policy"] {
            assert!(answer.as_object_mut().unwrap().remove(member).is_some(), "{member}");
        }
        answer
    };
    let mut hub = visited().await;
    let plain = ask(&hub, COUNT, json!({})).await;
    let padded = with_settings(&hub, "padded", r#"{"pad_replies": true}"#);
    hub.restart_with(|opening| opening.policies = padded).await;
    let (time, reply) = fastest(&hub, COUNT).await;
    assert!(time >= Duration::from_millis(64), "{time:?}");
    assert_eq!(but_for_ids(&reply), but_for_ids(&plain));

    let spent = r#"{"cells_per_subject": 0, "cells_at_least": 0, "pad_replies": true}"#;
    let spent = with_settings(&hub, "spent", spent);
    hub.restart_with(|opening| opening.policies = spent).await;
    let (time, reply) = fastest(&hub, BY_GRID).await;
    assert_eq!((reply.status, &reply.json()["rule"]), (422, &json!("protected-spent")), "{}", reply.text());
    assert!(time >= Duration::from_millis(64), "a question that fails on its way waits too: {time:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_of_releases_are_part_of_the_policy() {
    let mut hub = visited().await;
    let version = async |hub: &TestHub| ask(hub, "SELECT 1", json!({})).await.json()["policy"].clone();
    let first = version(&hub).await;
    let other = with_settings(&hub, "other", r#"{"cells_at_least": 201}"#);
    hub.restart_with(|opening| opening.policies = other.clone()).await;
    assert_ne!(version(&hub).await, first);
    std::fs::remove_file(other.join("disclosure.json")).unwrap();
    hub.restart_with(|opening| opening.policies = other).await;
    assert_eq!(ask(&hub, COUNT, json!({})).await.status, 200, "the file need not be there");
}

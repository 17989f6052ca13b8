//! Publication epochs: what protected statistics read lags behind what row-level questions read, until enough
//! people changed or a day has passed, whatever happens to the hub in between.

use std::{ops::Range, sync::Arc};

use arrow::array::RecordBatch;
use chrono::TimeDelta;
use datafusion::{
    catalog::TableProvider, execution::SessionStateBuilder, physical_plan::collect, prelude::SessionConfig,
};
use gridhub::{
    dataset::{DatasetName, contract},
    demo::city::with_check_digit,
    hub::Hub,
    keys::Keys,
    query,
    store::{Store, publication::Publisher},
};
use uuid::Uuid;

use crate::support::{CSV, TestHub, fixture, opening, repository};

const VISITS: &str = "community.visits";

async fn hub_with_divisions() -> TestHub {
    let hub = TestHub::start().await;
    let reply = hub.push("platform-uploader", "platform.divisions", CSV, fixture("platform.divisions.csv")).await;
    assert_eq!(reply.status, 201, "{}", reply.text());
    hub
}

/// Pushes one visit of each of these people, on a day of January.
async fn visit(hub: &TestHub, people: Range<usize>, day: usize) {
    let header = String::from_utf8(fixture("community.visits.csv")).unwrap().lines().next().unwrap().to_owned();
    let count = people.len();
    let rows: String = people
        .map(|person| {
            let id = with_check_digit(&format!("42019119{:02}0101{:03}", 50 + person, 100 + person));
            format!("V{day}{person},420191001001001,,{id},,,,2026-01-{day:02} 10:00:00,入户,36.5,,,\n")
        })
        .collect();
    let reply = hub.push("community-uploader", VISITS, CSV, format!("{header}\n{rows}").into_bytes()).await;
    assert_eq!(reply.status, 201, "{}", reply.text());
    assert_eq!(reply.json()["rows_accepted"], count, "{}", reply.text());
}

/// How many rows a dataset has: as it stands, and as published. Looked at beside the hub, in its folder.
async fn rows(hub: &TestHub, dataset: &str) -> (usize, usize) {
    let (folder, clock) = (hub.folder.path(), hub.clock.clone());
    let datasets = contract::load_folder(&repository().join("schemas")).unwrap();
    let keys = Keys::open(&folder.join("keys"), &hub.data(), true).unwrap();
    let publisher = Publisher::new(Arc::new(hub.metadata()), &keys, Arc::new(move || clock.now()));
    let spill = folder.join(Uuid::now_v7().to_string());
    let runtime = query::runtime(&spill, &query::Limits::default()).unwrap();
    let store = Store::open(&hub.data().join("tables"), &datasets, runtime, publisher, 0).await.unwrap();
    let (snapshot, name) = (store.snapshot(), DatasetName::parse(dataset).unwrap());
    let (current, published) = (snapshot.provider(&name).await.unwrap(), snapshot.published(&name).await.unwrap());
    assert_eq!(current.schema(), published.schema());
    (count(current).await, count(published).await)
}

async fn count(table: Arc<dyn TableProvider>) -> usize {
    let config = SessionConfig::new().set_bool("datafusion.execution.parquet.schema_force_view_types", false);
    let state = SessionStateBuilder::new().with_config(config).with_default_features().build();
    let plan = table.scan(&state, None, &[], None).await.unwrap();
    collect(plan, state.task_ctx()).await.unwrap().iter().map(RecordBatch::num_rows).sum()
}

fn metadata(hub: &TestHub, change: &str) {
    let connection = rusqlite::Connection::open(hub.data().join("metadata.sqlite")).unwrap();
    assert_eq!(connection.execute(change, []).unwrap(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_more_person_is_counted_at_once_and_published_after_a_day() {
    let mut hub = hub_with_divisions().await;
    assert_eq!(rows(&hub, VISITS).await, (0, 0));
    visit(&hub, 0..12, 5).await;
    assert_eq!(rows(&hub, VISITS).await, (12, 12));
    visit(&hub, 12..13, 5).await;
    let sql = "SELECT count(*) FROM visits";
    assert_eq!(hub.ask("community-uploader", "", sql).await.rows(), "[13]");
    assert_eq!(rows(&hub, VISITS).await, (13, 12));

    // The log says what protected statistics would have read.
    let asked = hub.ask("health-analyst", "epidemiology", sql).await.json();
    let path = format!("/v1/log/entries?from={}&count=1", asked["log_index"]);
    let entry = hub.get(&hub.token("compliance-officer"), &path).await.json()["entries"][0].clone();
    assert_eq!(entry["tables"].to_string(), r#"{"community.visits":2}"#);
    assert_eq!(entry["published"].to_string(), r#"{"community.visits":1}"#);

    hub.clock.step(TimeDelta::hours(24) - TimeDelta::milliseconds(1));
    assert_eq!(rows(&hub, VISITS).await, (13, 12));
    hub.clock.step(TimeDelta::milliseconds(1));
    assert_eq!(rows(&hub, VISITS).await, (13, 13));
    hub.restart().await;
    assert_eq!(rows(&hub, VISITS).await, (13, 13));

    // A commit that comes when another is due waits on its own.
    visit(&hub, 13..14, 5).await;
    assert_eq!(rows(&hub, VISITS).await, (14, 13));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tenth_person_publishes_and_those_who_wait_outlive_the_hub() {
    let mut hub = hub_with_divisions().await;
    visit(&hub, 0..12, 5).await;
    // Nine people in all, on two days; some of them were there before.
    visit(&hub, 8..17, 6).await;
    visit(&hub, 8..13, 7).await;
    hub.restart().await;
    assert_eq!(rows(&hub, VISITS).await, (26, 12));
    visit(&hub, 13..17, 7).await;
    assert_eq!(rows(&hub, VISITS).await, (30, 12));
    visit(&hub, 17..18, 7).await;
    assert_eq!(rows(&hub, VISITS).await, (31, 31));
    // Both tables of the snapshot are there without a commit, too.
    hub.restart().await;
    assert_eq!(rows(&hub, VISITS).await, (31, 31));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_about_nobody_is_published_at_once() {
    let hub = hub_with_divisions().await;
    assert_eq!(rows(&hub, "platform.divisions").await, (9, 9));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_a_crash_left_uncounted_is_published_at_the_next_start() {
    let mut hub = hub_with_divisions().await;
    visit(&hub, 0..12, 5).await;
    visit(&hub, 12..13, 5).await;
    hub.stop();
    // As if the hub had died between the two halves of the second commit.
    let of = format!("WHERE dataset = '{VISITS}'");
    metadata(&hub, &format!("UPDATE publications SET counted = 1, since = NULL, pending = x'' {of}"));
    hub.restart().await;
    assert_eq!(rows(&hub, VISITS).await, (13, 13));
    visit(&hub, 13..14, 5).await;
    assert_eq!(rows(&hub, VISITS).await, (14, 13));

    // A data folder from before there were publications.
    hub.stop();
    metadata(&hub, &format!("DELETE FROM publications {of}"));
    hub.restart().await;
    assert_eq!(rows(&hub, VISITS).await, (14, 14));

    // Tables from an older backup than the metadata.
    hub.stop();
    metadata(&hub, &format!("UPDATE publications SET version = 9, counted = 9 {of}"));
    let refused = Hub::open(opening(hub.folder.path(), &hub.clock)).await.err().unwrap().to_string();
    assert!(refused.contains("the table is at version 3, the metadata at 9; restore both"), "{refused}");
}

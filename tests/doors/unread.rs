//! Answers that their readers do not take: they are kept in memory, whichever door they go through, and leave room for
//! those of others.

use std::{sync::Arc, time::Duration};

use axum::{body::Body, http::Request};
use gridhub::{
    audit::Event,
    error::{Error, Result},
    front::http,
    hub::{Answered, Hub, Question},
    identity::Credential,
};
use serde_json::json;
use tokio::time::{Instant, sleep};
use tower::ServiceExt;

use super::support::{Site, rows_of_flight};
use crate::support::{CSV, TestClock, TestHub, fixture};

const SHORT: &str = "SELECT count(*) FROM divisions";

const SLOW: &str = "health-analyst";
const OTHER: &str = "cdc-epidemiologist";

/// A question whose answer is longer than what connections take ahead of their readers: 9^4 rows of twelve long texts,
/// each another, so that none shares its buffer.
fn long() -> String {
    let tables = ["a", "b", "c", "d"];
    let pairs = tables.iter().flat_map(|one| tables.iter().map(move |two| (one, two))).filter(|(one, two)| one != two);
    let columns = pairs
        .map(|(one, two)| format!("{one}.name || {two}.name || {one}.code || {two}.code || {one}.name AS {one}{two}"));
    let columns: Vec<_> = columns.collect();
    format!("SELECT {} FROM divisions a, divisions b, divisions c, divisions d", columns.join(", "))
}

async fn ask(hub: &Hub, caller: &Credential, sql: &str) -> Result<Answered> {
    let purpose = Some("epidemiology".to_owned());
    hub.query(caller, Question { purpose, ..Question::new(sql, "test") }).await
}

async fn outcome(hub: &Hub, caller: &Credential, sql: &str) -> &'static str {
    ask(hub, caller, sql).await.as_ref().map_or_else(Error::slug, |_| "answered")
}

/// A hub with the divisions, and how many bytes the long answer is.
async fn city() -> (TestHub, usize) {
    let city = TestHub::with(TestClock::at("2026-01-07T01:00:00Z"), |opening| opening.throttle.per_second = 0).await;
    let divisions = fixture("platform.divisions.csv");
    assert_eq!(city.push("platform-uploader", "platform.divisions", CSV, divisions).await.status, 201);
    let hub = city.hub.as_ref().unwrap();
    let caller = hub.authenticate(&city.token(SLOW)).await.unwrap();
    let answered = ask(hub, &caller, &long()).await.unwrap();
    assert_eq!(answered.released.rows(), 6_561);
    let bytes = answered.room.bytes();
    assert!(bytes > 4 << 20, "{bytes}");
    drop(answered);
    (city, bytes)
}

/// While somebody does not read.
async fn is_full(hub: &Hub, slow: &Credential, other: &Credential, door: &str) {
    assert_eq!(outcome(hub, other, &long()).await, "busy", "{door}");
    assert_eq!(outcome(hub, slow, &long()).await, "resource-limit", "{door}");
    // What is small passes.
    assert_eq!(outcome(hub, other, SHORT).await, "answered", "{door}");
    assert_eq!(outcome(hub, slow, SHORT).await, "answered", "{door}");
}

/// Once nobody keeps it any more, as doors come to know before long.
async fn has_room(hub: &Hub, other: &Credential, door: &str) {
    let begun = Instant::now();
    while outcome(hub, other, &long()).await != "answered" {
        assert!(begun.elapsed() < Duration::from_secs(30), "{door}");
        sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_nobody_reads_leave_room_for_others_at_every_door() {
    let (mut city, bytes) = city().await;
    city.restart_with(|opening| {
        opening.throttle.per_second = 0;
        opening.unread_answers = bytes * 3 / 2;
    })
    .await;
    let site = Site::open(city).await;
    let hub = site.hub();
    let slow = hub.authenticate(&site.hub.token(SLOW)).await.unwrap();
    let other = hub.authenticate(&site.hub.token(OTHER)).await.unwrap();

    let answered = ask(hub, &slow, &long()).await.unwrap();
    is_full(hub, &slow, &other, "none").await;
    drop(answered);
    assert_eq!(outcome(hub, &other, &long()).await, "answered");

    for format in ["application/json", "text/csv", "application/vnd.apache.arrow.stream"] {
        let router = http::router(Arc::clone(hub), http::Options::default());
        let request = Request::post("/v1/sql")
            .header("authorization", format!("Bearer {}", site.hub.token(SLOW)))
            .header("content-type", "application/json")
            .header("accept", format)
            .body(Body::from(json!({ "sql": long(), "purpose": "epidemiology" }).to_string()));
        let unread = router.oneshot(request.unwrap()).await.unwrap();
        assert_eq!(unread.status(), 200);
        is_full(hub, &slow, &other, format).await;
        drop(unread);
        has_room(hub, &other, format).await;
    }

    let line = site.line(SLOW, "epidemiology").await;
    line.batch_execute(&format!("DECLARE c CURSOR WITH HOLD FOR {}", long())).await.unwrap();
    assert_eq!(line.texts("FETCH 2 FROM c").await.len(), 2);
    is_full(hub, &slow, &other, "postgres").await;
    line.batch_execute("CLOSE c").await.unwrap();
    has_room(hub, &other, "postgres").await;

    let mut client = site.flight_session(SLOW, "epidemiology").await;
    let info = client.execute(long(), None).await.unwrap();
    let unread = rows_of_flight(&mut client, &info).await.unwrap();
    is_full(hub, &slow, &other, "flight").await;
    drop(unread);
    has_room(hub, &other, "flight").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_for_want_of_room_is_recorded_as_that() {
    let (mut city, bytes) = city().await;
    city.restart_with(|opening| opening.unread_answers = bytes / 4).await;
    let told = city.ask(SLOW, "epidemiology", &long()).await.problem();
    assert!(told.starts_with("422 resource-limit"), "{told}");
    let hub = city.hub.as_ref().unwrap();
    let officer = hub.authenticate(&city.token("compliance-officer")).await.unwrap();
    let entries = hub.log_entries(&officer, Some("audit"), 0, 1_000).await.unwrap();
    let ends: Vec<_> = entries
        .iter()
        .filter_map(|entry| match &entry.event {
            Event::QueryEnd { outcome, rows, .. } => Some((outcome.as_str(), *rows)),
            _ => None,
        })
        .collect();
    assert_eq!(ends, [("answered", 6_561), ("resource-limit", 0)]);
}

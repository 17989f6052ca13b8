//! What one question may take: it keeps no place from other callers, and is told where it wants too much.

use std::{sync::Arc, time::Duration};

use gridhub::{error::Error, hub::Question, query::Bounds};
use tokio_util::sync::CancellationToken;

use super::support::ENDLESS_AND_BARE;
use crate::support::{CSV, TestClock, TestHub, fixture};

const NOW: &str = "2026-01-07T01:00:00Z";

#[tokio::test(flavor = "multi_thread")]
async fn what_was_told_to_stop_keeps_its_callers_turn_until_it_has() {
    let city = TestHub::with(TestClock::at(NOW), |opening| {
        opening.throttle.at_once = 1;
        opening.query_limits.at_once = 2;
    })
    .await;
    let hub = city.hub.as_ref().unwrap();
    let analyst = hub.authenticate(&city.token("health-analyst")).await.unwrap();
    // To plan this takes seconds, and cannot be interrupted.
    let long = format!("SELECT {}", ["1"; 1_000].join(" + "));
    let ask = || {
        let (hub, analyst) = (Arc::clone(hub), analyst.clone());
        let bounds = Bounds { deadline: Some(Duration::from_millis(100)), ..Bounds::default() };
        let purpose = Some("epidemiology".to_owned());
        let question = Question { purpose, bounds, ..Question::new(long.as_str(), "test") };
        tokio::spawn(async move { hub.look_up(&analyst, question).await.err() })
    };
    let asked: Vec<_> = (0..3).map(|_| ask()).collect();
    for asked in asked {
        let told = asked.await.unwrap();
        assert!(matches!(told, Some(Error::Timeout(_))), "{told:?}");
    }
    let worker = hub.authenticate(&city.token("grid-worker")).await.unwrap();
    let found = hub.look_up(&worker, Question::new("SELECT 1", "test")).await;
    assert!(found.is_ok(), "{:?}", found.err());
}

#[tokio::test(flavor = "multi_thread")]
async fn two_callers_with_long_statements_leave_a_place_to_a_third() {
    let city = TestHub::with(TestClock::at(NOW), |opening| {
        opening.throttle.at_once = 3;
        opening.query_limits.at_once = 4;
    })
    .await;
    let hub = city.hub.as_ref().unwrap();
    let stop = CancellationToken::new();
    let mut asked = Vec::new();
    for caller in ["health-analyst", "cdc-epidemiologist"] {
        let credential = hub.authenticate(&city.token(caller)).await.unwrap();
        for _ in 0..3 {
            let (hub, credential) = (Arc::clone(hub), credential.clone());
            let bounds = Bounds { stop: stop.clone(), ..Bounds::default() };
            let purpose = Some("epidemiology".to_owned());
            let question = Question { purpose, bounds, ..Question::new(ENDLESS_AND_BARE, "test") };
            asked.push(tokio::spawn(async move { hub.look_up(&credential, question).await.err() }));
        }
    }
    // By then they have taken all that they get.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let worker = hub.authenticate(&city.token("grid-worker")).await.unwrap();
    let found = hub.look_up(&worker, Question::new("SELECT 1", "test")).await;
    assert!(found.is_ok(), "{:?}", found.err());
    stop.cancel();
    for asked in asked {
        let told = asked.await.unwrap();
        assert!(matches!(told, Some(Error::Cancelled | Error::Busy)), "{told:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_join_larger_than_memory_is_told_so() {
    let city = TestHub::with(TestClock::at(NOW), |opening| opening.query_limits.memory = 32 << 20).await;
    let divisions = fixture("platform.divisions.csv");
    assert_eq!(city.push("platform-uploader", "platform.divisions", CSV, divisions).await.status, 201);
    let names = ["a", "b", "c", "d", "e", "f", "g"];
    let tables = names.map(|name| format!("divisions {name}")).join(", ");
    let levels = names.map(|name| format!("{name}.level")).join(" + ");
    let sql = format!("SELECT count(*) FROM {tables} WHERE {levels} > 20");
    let told = city.ask("health-analyst", "epidemiology", &sql).await.problem();
    assert!(told.starts_with("422 resource-limit"), "{told}");
}

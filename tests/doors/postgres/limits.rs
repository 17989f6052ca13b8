//! What ends a statement before its answer, and what does not.

use std::time::{Duration, Instant};

use gridhub::front::postgres::Options;
use tokio_postgres::NoTls;

use super::super::{
    support::{ENDLESS, ENDLESS_AND_BARE, Line, Site, connect, told},
    wire::{Wire, bind, execute, parse, query, sync},
};
use crate::support::{TestClock, TestHub};

/// How long a statement may go on that was ended.
const SOON: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_ends_at_its_timeout() {
    let site = Site::city().await;
    let line = site.line("health-analyst", "epidemiology").await;
    line.batch_execute("SET statement_timeout = '300ms'").await.unwrap();
    for sql in [ENDLESS, ENDLESS_AND_BARE] {
        let begun = Instant::now();
        let ended = "ERROR 57014 canceling statement due to statement timeout";
        assert_eq!(line.fails(sql).await, ended, "{sql}");
        assert_eq!(line.fails(&format!("COPY ({sql}) TO STDOUT")).await, ended, "{sql}");
        assert_eq!(line.fails(&format!("DECLARE c CURSOR WITH HOLD FOR {sql}")).await, ended, "{sql}");
        assert!(begun.elapsed() < 3 * SOON, "{sql}: {:?}", begun.elapsed());
    }
    assert_eq!(line.lines("SHOW statement_timeout").await, ["300ms"]);
    assert_eq!(line.lines("SELECT count(*) FROM divisions").await, ["9"], "the line goes on");

    // The same from the start of a connection.
    let mut config = site.config("health-analyst", &site.hub.token("health-analyst"), "epidemiology");
    config.options("-c purpose=epidemiology -c statement_timeout=300");
    let hurried = connect(&config).await.unwrap();
    assert!(hurried.fails_prepared(ENDLESS).await.contains(" 57014 "));
    hurried.batch_execute("SET statement_timeout = 0; RESET statement_timeout").await.unwrap();
    assert!(hurried.fails(ENDLESS).await.contains("statement timeout"));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_timeout_is_longer_than_the_hubs() {
    let hub = TestHub::with(TestClock::at("2026-01-07T01:00:00Z"), |opening| {
        opening.query_limits.deadline = Duration::from_secs(1);
    })
    .await;
    let site = Site::open(hub).await;
    let line = site.line("health-analyst", "epidemiology").await;
    line.batch_execute("SET statement_timeout = '1h'").await.unwrap();
    let begun = Instant::now();
    assert!(line.fails(ENDLESS_AND_BARE).await.starts_with("ERROR 57014 "));
    assert!(begun.elapsed() < SOON);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_is_cancelled_and_the_line_goes_on() {
    let site = Site::city().await;
    let line = site.line("health-analyst", "epidemiology").await;
    let other = site.line("health-analyst", "epidemiology").await;
    for sql in [ENDLESS, ENDLESS_AND_BARE] {
        let cancel = async |line: &Line| {
            tokio::time::sleep(Duration::from_millis(500)).await;
            let begun = Instant::now();
            line.cancel_token().cancel_query(NoTls).await.unwrap();
            begun
        };
        let (said, begun) = tokio::join!(line.fails(sql), cancel(&line));
        assert_eq!(said, "ERROR 57014 canceling statement due to user request", "{sql}");
        assert!(begun.elapsed() < SOON, "{sql}: {:?}", begun.elapsed());
        // In the extended protocol, too; and it is that line's alone.
        let (said, _) = tokio::join!(line.fails_prepared(sql), async {
            other.cancel_token().cancel_query(NoTls).await.unwrap();
            cancel(&line).await
        });
        assert_eq!(said, "ERROR 57014 canceling statement due to user request", "{sql}");
        assert_eq!(other.lines("SELECT count(*) FROM divisions").await, ["9"]);
    }
    // One that comes late hits nothing.
    line.cancel_token().cancel_query(NoTls).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(line.lines("SELECT count(*) FROM divisions").await, ["9"]);
    // Inside a transaction it is an error like another.
    line.batch_execute("BEGIN").await.unwrap();
    let (_, ()) = tokio::join!(line.fails(ENDLESS), async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        line.cancel_token().cancel_query(NoTls).await.unwrap();
    });
    assert!(line.fails("SELECT count(*) FROM divisions").await.starts_with("ERROR 25P02 "));
    line.batch_execute("ROLLBACK").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_door_that_closes_lets_no_statement_go_on_for_ever() {
    let options = Options { patience: Duration::from_millis(500), ..Options::default() };
    let mut site = Site::open_with(TestHub::with_city().await, options).await;
    let (busy, idle) = (site.line("health-analyst", "epidemiology").await, site.line("grid-worker", "").await);
    let running = tokio::spawn(async move { told(&busy.simple_query(ENDLESS).await.unwrap_err()) });
    tokio::time::sleep(Duration::from_millis(300)).await;
    let begun = Instant::now();
    tokio::time::timeout(3 * SOON, site.close()).await.unwrap();
    assert!(begun.elapsed() >= Duration::from_millis(400), "the running statement was waited for");
    let said = tokio::time::timeout(SOON, running).await.unwrap().unwrap();
    assert!(said.contains("57014") || said.starts_with("no answer"), "{said}");
    let gone = told(&idle.simple_query("SELECT 1").await.unwrap_err());
    assert!(gone.starts_with("FATAL 57P01 ") || gone.starts_with("no answer"), "{gone}");
    let config = site.config("grid-worker", &site.hub.token("grid-worker"), "");
    assert!(connect(&config).await.is_err(), "nobody listens any more");
}

const PURPOSE: [(&str, &str); 1] = [("options", "-c purpose=epidemiology")];

async fn let_in(site: &Site) -> Wire {
    let token = site.hub.token("health-analyst");
    Wire::let_in(site.postgres, "health-analyst", &token, &PURPOSE).await.0
}

#[tokio::test(flavor = "multi_thread")]
async fn who_hangs_up_is_not_answered_any_further() {
    // A statement that went on would be waited for so long.
    let patience = Duration::from_secs(30);
    let options = Options { patience, ..Options::default() };
    let mut site = Site::open_with(TestHub::with_city().await, options).await;
    let prepared = [parse("", ENDLESS, &[]), bind("", "", &[], &[], &[]), execute("", 0), sync()].concat();
    for asked in [query(ENDLESS), query(ENDLESS_AND_BARE), prepared, [query(ENDLESS), query("SELECT 1")].concat()] {
        let mut wire = let_in(&site).await;
        wire.send(&asked).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        drop(wire);
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let begun = Instant::now();
    site.close().await;
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
}

/// Far more bytes than the system keeps for who does not read, and how many they are at least.
fn much() -> (String, usize) {
    const LENGTH: usize = 6_000;
    let sql = format!("SELECT '{}' AS x FROM divisions a, divisions b, divisions c, divisions d", "x".repeat(LENGTH));
    (sql, LENGTH * 9_usize.pow(4))
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_sent_no_longer_than_their_statement_may_take() {
    let site = Site::city().await;
    let (sql, bytes) = much();
    for asked in [query(&sql), query(&format!("COPY ({sql}) TO STDOUT"))] {
        let mut wire = let_in(&site).await;
        wire.ask("SET statement_timeout = '4s'").await;
        wire.send(&asked).await;
        // Nothing is read until the time is over.
        tokio::time::sleep(Duration::from_secs(6)).await;
        let answers = wire.until_ready().await;
        let came: usize = answers.iter().map(|message| message.body.len()).sum();
        assert!(came > 100_000 && came < bytes, "{came} of {bytes} bytes");
        let [.., error, ready] = answers.as_slice() else { panic!("{} messages", answers.len()) };
        assert_eq!((error.code().as_str(), ready.kind), ("57014", b'Z'));
        let counted = wire.ask("SELECT count(*) FROM divisions").await;
        assert!(counted.iter().any(|message| message.kind == b'D' && message.body.ends_with(b"9")), "the line goes on");
        // Who reads gets all of it.
        wire.ask("SET statement_timeout = 0").await;
        let came: usize = {
            wire.send(&asked).await;
            wire.until_ready().await.iter().map(|message| message.body.len()).sum()
        };
        assert!(came >= bytes, "{came} of {bytes} bytes");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_reads_nothing_is_given_up() {
    let options = Options { unread: Duration::from_secs(1), ..Options::default() };
    let mut site = Site::open_with(TestHub::with_city().await, options).await;
    let (sql, bytes) = much();
    let mut wire = let_in(&site).await;
    // Silence alone is no reason.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(wire.ask("SELECT count(*) FROM divisions").await.last().map(|message| message.kind), Some(b'Z'));
    wire.send(&query(&sql)).await;
    tokio::time::sleep(Duration::from_secs(6)).await;
    let begun = Instant::now();
    site.close().await;
    assert!(begun.elapsed() < SOON, "the connection was still there: {:?}", begun.elapsed());
    assert!(wire.rest().await.len() < bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_shut_out_while_it_reads_hears_no_further_statement() {
    let site = Site::city().await;
    let (sql, bytes) = much();
    let cursor = "BEGIN; DECLARE c CURSOR FOR SELECT code FROM divisions; ";
    for (before, after, tag) in [
        ("", "SELECT count(*) FROM divisions", "SELECT 1\0"),
        // What is answered without the hub is no exception.
        (cursor, "FETCH 1 FROM c", "FETCH 1\0"),
        ("", "SHOW purpose", "SHOW\0"),
    ] {
        let token = site.hub.token("health-analyst");
        let id = site.hub().authenticate(&token).await.unwrap().token_id;
        let mut wire = Wire::let_in(site.postgres, "health-analyst", &token, &PURPOSE).await.0;
        wire.send(&query(&format!("{before}{sql}; {after}"))).await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        gridhub::identity::revoke(&site.hub.metadata(), &id, site.hub.clock.now()).unwrap();
        let said = wire.rest().await;
        assert!(said.len() > bytes, "what was let out before is sent: {} of {bytes} bytes", said.len());
        let end = String::from_utf8_lossy(&said[bytes..]).into_owned();
        assert!(end.contains("SELECT 6561\0") && end.contains("28000"), "{}", &end[end.len().saturating_sub(400)..]);
        assert!(!end.contains(tag), "{after}: the second statement was answered");
    }
}

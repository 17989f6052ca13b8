//! What lasts how long: to the end of an exchange of messages, of a transaction, or of the connection.

use super::super::{
    support::Site,
    wire::{Message, Wire, bind, describe, execute, framed, parse, query, sync},
};

const PURPOSE: [(&str, &str); 1] = [("options", "-c purpose=epidemiology")];

async fn wire(site: &Site) -> Wire {
    Wire::let_in(site.postgres, "health-analyst", &site.hub.token("health-analyst"), &PURPOSE).await.0
}

fn kinds(messages: &[Message]) -> String {
    messages.iter().map(|message| char::from(message.kind)).collect()
}

fn code(messages: &[Message]) -> String {
    messages.iter().find(|message| message.kind == b'E').unwrap_or_else(|| panic!("{messages:?}")).code()
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_of_an_exchange_that_fails_go_back() {
    let site = Site::city().await;
    let line = site.line("health-analyst", "epidemiology").await;
    line.fails("SET purpose = 'supply-planning'; SELECT nope FROM divisions").await;
    assert_eq!(line.lines("SHOW purpose").await, ["epidemiology"]);
    // For one exchange only, where there is no block.
    let told = line.lines("SET LOCAL purpose = 'supply-planning'; SHOW purpose").await;
    assert_eq!(told, ["supply-planning"]);
    assert_eq!(line.lines("SHOW purpose").await, ["epidemiology"]);

    let mut wire = wire(&site).await;
    let set = [parse("", "SET purpose = 'supply-planning'", &[]), bind("", "", &[], &[], &[]), execute("", 0)];
    let fails = [parse("", "SELECT nope FROM divisions", &[]), bind("", "", &[], &[], &[]), execute("", 0), sync()];
    wire.send(&[set.concat(), fails.concat()].concat()).await;
    assert_eq!(code(&wire.until_ready().await), "42703");
    let shown = wire.ask("SHOW purpose").await;
    assert!(shown.iter().any(|message| message.body.ends_with(b"epidemiology")), "{shown:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn changed_settings_are_told_before_the_next_exchange_may_begin() {
    let site = Site::city().await;
    let mut wire = wire(&site).await;
    assert_eq!(kinds(&wire.ask("SET application_name = 'a'").await), "CSZ");
    wire.send(
        &[parse("", "SET application_name = 'b'", &[]), bind("", "", &[], &[], &[]), execute("", 0), sync()].concat(),
    )
    .await;
    assert_eq!(kinds(&wire.until_ready().await), "12CSZ");
}

#[tokio::test(flavor = "multi_thread")]
async fn portals_end_with_their_transaction() {
    let site = Site::city().await;
    let mut wire = wire(&site).await;
    wire.ask("BEGIN").await;
    let sql = "SELECT code FROM divisions ORDER BY 1";
    wire.send(&[parse("", sql, &[]), bind("p", "", &[], &[], &[]), execute("p", 2), sync()].concat()).await;
    assert_eq!(kinds(&wire.until_ready().await), "12DDsZ");
    wire.ask("ROLLBACK; BEGIN").await;
    wire.send(&[execute("p", 2), sync()].concat()).await;
    assert_eq!(code(&wire.until_ready().await), "34000");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_without_a_name_lasts_to_the_next() {
    let site = Site::city().await;
    let mut wire = wire(&site).await;
    let bound = [bind("", "", &[], &[], &[]), execute("", 0), sync()].concat();
    wire.send(&[parse("", "SELECT 1", &[]), sync()].concat()).await;
    wire.until_ready().await;
    wire.send(&[parse("", "SELECT 1; SELECT 2", &[]), sync()].concat()).await;
    assert_eq!(code(&wire.until_ready().await), "42601");
    wire.send(&bound).await;
    assert_eq!(code(&wire.until_ready().await), "26000");
    wire.send(&[parse("", "SELECT 1", &[]), sync()].concat()).await;
    wire.until_ready().await;
    wire.ask("SELECT 2").await;
    wire.send(&bound).await;
    assert_eq!(code(&wire.until_ready().await), "26000");
}

#[tokio::test(flavor = "multi_thread")]
async fn text_that_is_not_utf8_is_refused_and_the_connection_goes_on() {
    let site = Site::city().await;
    let mut wire = wire(&site).await;
    wire.send(&framed(b'Q', b"SELECT '\xc9\xe7\xc7\xf8'\0")).await;
    assert_eq!(code(&wire.until_ready().await), "22021");
    wire.send(&framed(b'P', b"\0SELECT '\xc9'\0\0\0")).await;
    wire.send(&[framed(b'P', b"\0SELECT '\xc9'\0\0\0"), query("SELECT 1"), sync()].concat()).await;
    assert_eq!(kinds(&wire.until_ready().await), "EZ");
    wire.send(&[parse("", "SELECT $1", &[25]), bind("", "", &[], &[Some(b"a\0b")], &[]), sync()].concat()).await;
    assert_eq!(code(&wire.until_ready().await), "22P02");
    assert_eq!(kinds(&wire.ask("SELECT 1").await), "TDCZ");
}

#[tokio::test(flavor = "multi_thread")]
async fn parameters_and_savepoints_are_not_without_number() {
    let site = Site::city().await;
    let mut wire = wire(&site).await;
    for number in ["65536", "4000000000", "18446744073709551615"] {
        wire.send(&[parse("", &format!("SELECT ${number}"), &[]), describe(b'S', ""), sync()].concat()).await;
        assert_eq!(code(&wire.until_ready().await), "42P02");
    }
    let many = (0..300).map(|at| format!("SAVEPOINT s{at}; ")).collect::<String>();
    for savepoints in [many, format!("SAVEPOINT {}", "s".repeat(64))] {
        assert_eq!(code(&wire.ask(&format!("BEGIN; {savepoints}")).await), "53400");
        wire.ask("ROLLBACK").await;
    }
    // Of one SELECT the hub refuses as many, and this door of what several come to.
    let columns = |letter: char| (0..1_000).map(|at| format!("{at} AS {letter}{at}")).collect::<Vec<_>>().join(", ");
    let wide = format!("SELECT * FROM (SELECT {}) x, (SELECT {}) y", columns('a'), columns('b'));
    assert_eq!(code(&wire.ask(&wide).await), "54011");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_common_table_may_be_called_as_the_one_it_is_made_of() {
    let site = Site::city().await;
    let line = site.line("health-analyst", "epidemiology").await;
    let sql = "WITH divisions AS (SELECT code FROM divisions WHERE level = 2) SELECT code FROM divisions";
    assert_eq!(line.lines(sql).await, ["4201"]);
}

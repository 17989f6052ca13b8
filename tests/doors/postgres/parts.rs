//! Answers that are read in parts or as files: portals with a fetch size, cursors, `COPY … TO STDOUT`.

use futures::TryStreamExt;
use tokio_postgres::{Portal, binary_copy::BinaryCopyOutStream, types::Type};

use super::super::{
    support::{Line, Site, told},
    wire::{Message, Wire, bind, close, describe, execute, parse, query, sync},
};
use crate::support::fixture;

/// All divisions, in the order of the fixture.
const DIVISIONS: &str = "SELECT code, name, level, parent_code FROM divisions ORDER BY code";

/// The codes of the divisions, in order.
const CODES: [&str; 9] = [
    "42",
    "4201",
    "420191",
    "420191001",
    "420191001001",
    "420191001001001",
    "420191001001002",
    "420191001002",
    "420191001002001",
];

async fn analyst(site: &Site) -> Line {
    site.line("health-analyst", "epidemiology").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_portal_gives_as_many_rows_as_it_is_asked_for() {
    let site = Site::city().await;
    let mut line = analyst(&site).await;
    let entries = || site.hub().checkpoint().lines().nth(1).unwrap().parse::<u64>().unwrap();
    let transaction = line.transaction().await.unwrap();
    let statement = transaction.prepare("SELECT code FROM divisions WHERE level >= $1 ORDER BY code").await.unwrap();
    let before = entries();
    let portal = transaction.bind(&statement, &[&1_i16]).await.unwrap();
    let mut came = Vec::new();
    for expected in [4, 4, 1, 0, 0] {
        let rows = transaction.query_portal(&portal, 4).await.unwrap();
        assert_eq!(rows.len(), expected);
        came.extend(rows.iter().map(|row| row.get::<_, String>(0)));
    }
    assert_eq!(came, CODES);
    assert_eq!(entries(), before + 2, "the question was asked once");
    // Two at a time do not mix.
    let one = transaction.bind(&statement, &[&6_i16]).await.unwrap();
    let other = transaction.bind(&statement, &[&5_i16]).await.unwrap();
    let next = async |portal: &Portal| {
        let rows = transaction.query_portal(portal, 1).await.unwrap();
        rows.iter().map(|row| row.get::<_, String>(0)).collect::<Vec<_>>()
    };
    assert_eq!(next(&one).await, ["420191001001001"]);
    assert_eq!(next(&other).await, ["420191001001"]);
    assert_eq!(next(&one).await, ["420191001001002"]);
    assert_eq!(next(&other).await, ["420191001001001"]);
    assert_eq!(transaction.query_portal(&one, 0).await.unwrap().len(), 1, "all that is left");
    transaction.commit().await.unwrap();
    assert_eq!(line.lines("SELECT count(*) FROM divisions").await, ["9"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn cursors_are_read_forward_and_back() {
    let site = Site::city().await;
    let line = analyst(&site).await;
    let declare = "DECLARE c CURSOR FOR SELECT code FROM divisions ORDER BY code";
    assert!(line.fails(declare).await.starts_with("ERROR 25P01 "), "outside of a transaction it would be gone at once");
    line.batch_execute("BEGIN").await.unwrap();
    line.batch_execute(declare).await.unwrap();
    assert_eq!(line.lines("FETCH 2 FROM c").await, CODES[..2]);
    assert_eq!(line.lines("FETCH NEXT FROM c").await, CODES[2..3]);
    assert_eq!(line.lines("FETCH FORWARD 3 IN c").await, CODES[3..6]);
    assert_eq!(line.lines("MOVE 1 FROM c").await, [""; 0]);
    assert_eq!(line.lines("FETCH PRIOR FROM c").await, CODES[5..6]);
    assert_eq!(line.lines("FETCH BACKWARD 2 FROM c").await, [CODES[4], CODES[3]]);
    assert_eq!(line.lines("FETCH ABSOLUTE 9 FROM c").await, CODES[8..]);
    assert_eq!(line.lines("FETCH ALL FROM c").await, [""; 0]);
    assert_eq!(line.lines("FETCH FIRST FROM c").await, CODES[..1]);
    assert_eq!(line.lines("FETCH ALL FROM c").await, CODES[1..]);
    line.batch_execute("CLOSE c").await.unwrap();
    let closed = line.fails("FETCH 1 FROM c").await;
    assert!(closed.starts_with("ERROR 34000 "), "{closed}");
    line.batch_execute("ROLLBACK").await.unwrap();

    // With the transaction they end, unless they are held.
    line.batch_execute(&format!("BEGIN; {declare}; DECLARE h NO SCROLL CURSOR WITH HOLD FOR {DIVISIONS}"))
        .await
        .unwrap();
    line.batch_execute("COMMIT").await.unwrap();
    assert!(line.fails("FETCH 1 FROM c").await.starts_with("ERROR 34000 "));
    assert_eq!(line.lines("FETCH 1 FROM h").await, ["42 云省 1 NULL"]);
    assert!(line.fails("FETCH PRIOR FROM h").await.starts_with("ERROR 55000 "));
    line.batch_execute("CLOSE ALL").await.unwrap();
    assert!(line.fails("FETCH 1 FROM h").await.starts_with("ERROR 34000 "));

    // What is rolled back, as it was told or by a failure, never was: nothing of it is kept.
    let held = |name: &str| format!("DECLARE {name} CURSOR WITH HOLD FOR {DIVISIONS}");
    line.batch_execute(&held("before")).await.unwrap();
    line.batch_execute(&format!("BEGIN; {}; ROLLBACK", held("told"))).await.unwrap();
    line.fails(&format!("{}; SELECT nothing FROM divisions", held("failed"))).await;
    line.batch_execute(&format!("BEGIN; {}", held("both"))).await.unwrap();
    line.fails("SELECT nothing FROM divisions").await;
    line.batch_execute("COMMIT").await.unwrap();
    for lost in ["told", "failed", "both"] {
        assert!(line.fails(&format!("FETCH 1 FROM {lost}")).await.starts_with("ERROR 34000 "), "{lost}");
    }
    assert_eq!(line.lines("FETCH 1 FROM before").await, ["42 云省 1 NULL"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn cursors_are_read_in_the_extended_protocol_too() {
    let site = Site::city().await;
    let line = analyst(&site).await;
    let declare = "DECLARE h CURSOR WITH HOLD FOR SELECT code, level FROM divisions ORDER BY code";
    line.execute(declare, &[]).await.unwrap();
    let fetch = line.prepare("FETCH 2 FROM h").await.unwrap();
    let kinds: Vec<_> = fetch.columns().iter().map(|column| (column.name(), column.type_().clone())).collect();
    assert_eq!(kinds, [("code", Type::TEXT), ("level", Type::INT2)]);
    let mut came = Vec::new();
    loop {
        let rows = line.query(&fetch, &[]).await.unwrap();
        if rows.is_empty() {
            break;
        }
        came.extend(rows.iter().map(|row| (row.get::<_, String>(0), row.get::<_, i16>(1))));
    }
    let codes: Vec<_> = came.iter().map(|(code, _)| code.as_str()).collect();
    assert_eq!(codes, CODES);
    assert_eq!(came.iter().map(|(_, level)| level).sum::<i16>(), 1 + 2 + 3 + 4 + 5 + 6 + 6 + 5 + 6);
    // A parameter belongs to the question of the cursor.
    line.execute("DECLARE p CURSOR WITH HOLD FOR SELECT code FROM divisions WHERE level = $1", &[&1_i16])
        .await
        .unwrap();
    assert_eq!(line.lines("FETCH ALL FROM p").await, ["42"]);
    line.execute("CLOSE h", &[]).await.unwrap();
    assert!(line.fails_prepared("FETCH 1 FROM h").await.starts_with("ERROR 34000 "));
}

#[tokio::test(flavor = "multi_thread")]
async fn cursors_are_so_many_and_have_names_of_their_own() {
    let site = Site::city().await;
    let line = analyst(&site).await;
    let declare = |at: usize| format!("DECLARE c{at} CURSOR WITH HOLD FOR SELECT code FROM divisions");
    for at in 0..16 {
        line.batch_execute(&declare(at)).await.unwrap();
    }
    assert!(line.fails(&declare(0)).await.starts_with("ERROR 42P03 "));
    assert!(line.fails(&declare(16)).await.starts_with("ERROR 53400 "));
    line.batch_execute("CLOSE c3").await.unwrap();
    line.batch_execute(&declare(16)).await.unwrap();
}

async fn copied(line: &Line, sql: &str) -> Vec<u8> {
    let stream = line.copy_out(sql).await.unwrap_or_else(|error| panic!("{sql}: {}", told(&error)));
    let pieces: Vec<_> = stream.try_collect().await.unwrap_or_else(|error| panic!("{sql}: {}", told(&error)));
    pieces.concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_is_copied_out_as_the_file_it_came_from() {
    let site = Site::city().await;
    let line = analyst(&site).await;
    let file = String::from_utf8(fixture("platform.divisions.csv")).unwrap();
    let file = file.trim_end().to_owned() + "\n";
    let copy = async |sql: &str| String::from_utf8(copied(&line, sql).await).unwrap();
    for options in ["(FORMAT csv, HEADER)", "WITH (FORMAT 'csv', HEADER true)", "CSV HEADER", "WITH CSV HEADER"] {
        assert_eq!(copy(&format!("COPY ({DIVISIONS}) TO STDOUT {options}")).await, file, "{options}");
    }
    let rows = file.split_once('\n').unwrap().1;
    assert_eq!(copy(&format!("COPY ({DIVISIONS}) TO STDOUT (FORMAT csv)")).await, rows);
    // As text, columns are parted by tabs, and the province's missing parent is written.
    let text = rows.replace(',', "\t").replacen("\t1\t\n", "\t1\t\\N\n", 1);
    assert_eq!(copy(&format!("COPY ({DIVISIONS}) TO STDOUT")).await, text);
    let other = text.replace('\t', "|").replace("\\N", "none");
    assert_eq!(copy(&format!("COPY ({DIVISIONS}) TO STDOUT (DELIMITER '|', NULL 'none')")).await, other);
    // A table is all of its columns.
    assert_eq!(copy("COPY platform.divisions (code) TO STDOUT").await.lines().count(), 9);
    assert_eq!(copy("COPY divisions TO STDOUT (FORMAT csv)").await.lines().count(), 9);
    // What means something in the form is escaped.
    let odd = "SELECT 'a,\"b\"' AS odd, 'c\\d' || chr(9) AS other FROM divisions WHERE level = 1";
    assert_eq!(copy(&format!("COPY ({odd}) TO STDOUT (FORMAT csv)")).await, "\"a,\"\"b\"\"\",c\\d\t\n");
    assert_eq!(copy(&format!("COPY ({odd}) TO STDOUT")).await, "a,\"b\"\tc\\\\d\\t\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_is_copied_out_in_binary() {
    let site = Site::city().await;
    let line = analyst(&site).await;
    let copy = format!("COPY ({DIVISIONS}) TO STDOUT (FORMAT binary)");
    let stream = line.copy_out(copy.as_str()).await.unwrap();
    let stream = BinaryCopyOutStream::new(stream, &[Type::TEXT, Type::TEXT, Type::INT2, Type::TEXT]);
    let copied: Vec<_> = stream.try_collect().await.unwrap();
    let copied: Vec<(String, String, i16, Option<String>)> =
        copied.iter().map(|row| (row.get(0), row.get(1), row.get(2), row.get(3))).collect();
    let rows = line.query(DIVISIONS, &[]).await.unwrap();
    let rows: Vec<(String, String, i16, Option<String>)> =
        rows.iter().map(|row| (row.get(0), row.get(1), row.get(2), row.get(3))).collect();
    assert_eq!(copied.len(), 9);
    assert_eq!(copied, rows);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_copied_in_or_to_the_hubs_disk() {
    let site = Site::city().await;
    let line = analyst(&site).await;
    for (sql, code) in [
        ("COPY cases FROM STDIN", "42501"),
        ("COPY cdc.cases (case_id) FROM STDIN (FORMAT csv)", "42501"),
        ("COPY cases FROM '/etc/passwd'", "42501"),
        ("COPY (SELECT code FROM divisions) TO '/tmp/gridhub-copied'", "42501"),
        ("COPY (SELECT code FROM divisions) TO PROGRAM 'touch /tmp/gridhub-copied'", "42501"),
        ("COPY (SELECT name FROM residents) TO STDOUT", "42703"),
        ("COPY (SELECT avg(temperature) FROM visits WHERE temperature > 38.4) TO STDOUT", "42501"),
        ("COPY (DELETE FROM cases) TO STDOUT", "42501"),
        ("COPY hospital.nothing TO STDOUT", "42P01"),
        ("COPY (SELECT 1", "42601"),
    ] {
        let said = line.fails(sql).await;
        assert!(said.starts_with(&format!("ERROR {code} ")), "{sql}: {said}");
        assert_eq!(line.lines("SELECT count(*) FROM divisions").await, ["9"], "{sql}");
    }
    assert!(line.fails("COPY cases FROM STDIN").await.contains("gridhub push"));
    assert!(!std::path::Path::new("/tmp/gridhub-copied").exists());
}

/// Rows of one column, and what ended each statement: its tag, `suspended`, or a SQLSTATE.
fn heard(answers: &[Message]) -> Vec<String> {
    let texts = answers.iter().filter_map(|message| match message.kind {
        b'D' => Some(String::from_utf8(message.body[6..].to_vec()).unwrap()),
        b'C' => Some(String::from_utf8(message.body[..message.body.len() - 1].to_vec()).unwrap()),
        b's' => Some("suspended".to_owned()),
        b'E' => Some(message.code()),
        _ => None,
    });
    texts.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn portals_of_the_protocol_are_cursors_of_sql_and_the_other_way_round() {
    let site = Site::city().await;
    let token = site.hub.token("health-analyst");
    let settings = [("options", "-c purpose=epidemiology")];
    let (mut wire, _) = Wire::let_in(site.postgres, "health-analyst", &token, &settings).await;
    let entries = || site.hub().checkpoint().lines().nth(1).unwrap().parse::<u64>().unwrap();
    let codes = "SELECT code FROM divisions WHERE level >= $1 ORDER BY code";
    let one: &[u8] = &1_i16.to_be_bytes();
    wire.ask("BEGIN").await;
    wire.send(&[parse("s", codes, &[21]), bind("p", "s", &[1], &[Some(one)], &[]), sync()].concat()).await;
    wire.until_ready().await;
    let before = entries();
    // As asyncpg skips rows, before the first and between others.
    assert_eq!(heard(&wire.ask("MOVE FORWARD 1 \"p\"").await), ["MOVE 1"]);
    wire.send(&[describe(b'P', "p"), execute("p", 2), sync()].concat()).await;
    assert_eq!(heard(&wire.until_ready().await), [CODES[1], CODES[2], "suspended"]);
    assert_eq!(heard(&wire.ask("FETCH 2 FROM p").await), [CODES[3], CODES[4], "FETCH 2"]);
    wire.send(&[parse("", "FETCH NEXT FROM p", &[]), describe(b'S', ""), bind("", "", &[], &[], &[])].concat()).await;
    wire.send(&[execute("", 0), sync()].concat()).await;
    let answers = wire.until_ready().await;
    assert!(answers.iter().any(|message| message.kind == b'T' && message.body[2..].starts_with(b"code\0")));
    assert_eq!(heard(&answers), [CODES[5], "FETCH 1"]);
    assert_eq!(entries(), before + 2, "the question was asked once");
    assert_eq!(heard(&wire.ask("SELECT name, is_scrollable FROM pg_cursors").await).last().unwrap(), "SELECT 1");
    assert_eq!(heard(&wire.ask("DECLARE p CURSOR FOR SELECT 1").await), ["42P03"]);
    wire.ask("ROLLBACK").await;
    assert_eq!(heard(&wire.ask("BEGIN; FETCH 1 FROM p").await), ["BEGIN", "34000"], "portals end with transactions");
    wire.ask("ROLLBACK; BEGIN").await;
    wire.send(&[bind("p", "s", &[1], &[Some(one)], &[]), execute("p", 8), sync()].concat()).await;
    assert_eq!(heard(&wire.until_ready().await).len(), 9);
    assert_eq!(heard(&wire.ask("FETCH PRIOR FROM p").await), ["55000"], "they are read forward");
    wire.ask("ROLLBACK; BEGIN").await;
    wire.send(&[bind("p", "s", &[1], &[Some(one)], &[]), sync()].concat()).await;
    wire.until_ready().await;
    assert_eq!(heard(&wire.ask("CLOSE p; CLOSE p").await), ["CLOSE CURSOR", "34000"]);
    wire.ask("ROLLBACK").await;

    // A cursor that was declared is described, carried out and closed by its name.
    let declare = "DECLARE c CURSOR FOR SELECT code FROM divisions ORDER BY code";
    assert_eq!(heard(&wire.ask(&format!("BEGIN; {declare}")).await), ["BEGIN", "DECLARE CURSOR"]);
    let found = heard(&wire.ask("SELECT 1 FROM pg_catalog.pg_cursors WHERE name = 'c'").await);
    assert_eq!(found, ["1", "SELECT 1"], "as psycopg asks");
    assert_eq!(heard(&wire.ask("SELECT 1 FROM pg_cursors WHERE name = 'd'").await), ["SELECT 0"]);
    wire.send(&[describe(b'P', "c"), execute("c", 2), sync()].concat()).await;
    assert_eq!(heard(&wire.until_ready().await), [CODES[0], CODES[1], "suspended"]);
    wire.send(&[bind("c", "s", &[1], &[Some(one)], &[]), sync()].concat()).await;
    assert_eq!(heard(&wire.until_ready().await), ["42P03"]);
    assert_eq!(heard(&wire.ask(&format!("ROLLBACK; BEGIN; {declare}")).await).last().unwrap(), "DECLARE CURSOR");
    wire.send(&[close(b'P', "c"), sync()].concat()).await;
    wire.until_ready().await;
    assert_eq!(heard(&wire.ask("FETCH 1 FROM c").await), ["34000"]);
    wire.send(&query("ROLLBACK")).await;
    assert_eq!(heard(&wire.until_ready().await), ["ROLLBACK"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn queries_are_prepared_in_sql_too() {
    let site = Site::city().await;
    let line = analyst(&site).await;
    line.batch_execute("PREPARE p (int) AS SELECT code FROM divisions WHERE level = $1").await.unwrap();
    assert_eq!(line.lines("EXECUTE p (3)").await, ["420191"]);
    assert_eq!(line.lines("EXECUTE p ('1')").await, ["42"]);
    assert_eq!(line.lines("EXECUTE p (NULL)").await, [""; 0]);
    // Types that are not named are found out.
    line.batch_execute("PREPARE named AS SELECT code FROM divisions WHERE name = $1 AND level < $2").await.unwrap();
    assert_eq!(line.lines("EXECUTE named ('望江区', 4)").await, ["420191"]);
    // In the extended protocol they have columns, too.
    let statement = line.prepare("EXECUTE p (3)").await.unwrap();
    assert_eq!(statement.columns().iter().map(|column| column.name()).collect::<Vec<_>>(), ["code"]);
    assert_eq!(line.query_one(&statement, &[]).await.unwrap().get::<_, String>(0), "420191");
    line.batch_execute("PREPARE hidden AS SELECT name FROM residents").await.unwrap();
    line.batch_execute("PREPARE gone AS DELETE FROM divisions").await.unwrap();
    for (sql, code) in [
        ("EXECUTE p", "42601"),
        ("EXECUTE p (1, 2)", "42601"),
        ("EXECUTE p ('one')", "22P02"),
        ("EXECUTE p ($1)", "0A000"),
        ("EXECUTE nothing", "26000"),
        ("PREPARE p AS SELECT 1", "42P05"),
        ("PREPARE q AS EXECUTE p (1)", "42601"),
        ("EXECUTE hidden", "42703"),
        ("EXECUTE gone", "42501"),
    ] {
        let said = line.fails(sql).await;
        assert!(said.starts_with(&format!("ERROR {code} ")), "{sql}: {said}");
    }
    line.batch_execute("DEALLOCATE p").await.unwrap();
    assert!(line.fails("EXECUTE p (3)").await.starts_with("ERROR 26000 "));
}

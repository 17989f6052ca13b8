//! What always holds, at these doors too: raw identifiers leave no trace, what is hidden leaves none, every answer has
//! its entry in the log, and without one there is no answer.

use std::{
    io::{self, Write},
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};

use arrow::array::RecordBatch;
use arrow_flight::{
    FlightDescriptor, Ticket,
    sql::{CommandGetTables, CommandStatementQuery, ProstMessageExt},
};
use chrono::TimeDelta;
use futures::TryStreamExt;
use gridhub::audit::Event;
use prost::Message as _;
use tonic::{Code, Request};
use tracing_subscriber::{EnvFilter, fmt::MakeWriter};

use super::{
    support::{FlightClient, PROTECTED, Site, connect, header, rows_of_flight, status, told},
    wire::{Message, Wire, bind, close, describe, execute, parse, query, sync},
};
use crate::{
    canary,
    support::TestHub,
    worlds::{self, lines, owned},
};

/// Identifiers as somebody might type them into anything: an id, a phone, a name.
const ID: &str = "420191198811110010";
const PHONE: &str = "14888123456";
const NAME: &str = "金丝雀";

/// What the hub says of itself to its operator.
#[derive(Clone, Default)]
struct Said(Arc<Mutex<Vec<u8>>>);

impl Write for Said {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Said {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// All that the hub says of itself in this process from now on, at every level; what the clients beside it say is
/// theirs.
fn listen() -> Said {
    static SAID: OnceLock<Said> = OnceLock::new();
    SAID.get_or_init(|| {
        let said = Said::default();
        let filter = EnvFilter::new("off,gridhub=trace");
        let heard = tracing_subscriber::fmt().with_env_filter(filter).with_writer(said.clone()).finish();
        tracing::subscriber::set_global_default(heard).unwrap();
        tracing::info!(target: "gridhub", "somebody listens");
        said
    })
    .clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn identifiers_typed_anywhere_leave_no_trace() {
    let said = listen();
    let mut site = Site::city().await;
    let token = site.hub.token("health-analyst");

    // Who one is, and what one would like to be.
    let mut config = site.config("health-analyst", &token, "epidemiology");
    config.application_name(ID).dbname(PHONE);
    let line = connect(&config).await.unwrap();
    for (caller, secret, purpose) in
        [(ID, token.as_str(), ""), ("health-analyst", ID, ""), ("health-analyst", token.as_str(), PHONE)]
    {
        assert!(connect(&site.config(caller, secret, purpose)).await.is_err());
    }
    for sql in [
        format!("SET purpose = '{ID}'"),
        format!("SET application_name = '{NAME} {PHONE}'"),
        format!("SET \"{ID}\" = '{PHONE}'"),
        format!("SHOW \"{ID}\""),
        format!("SELECT current_setting('{ID}')"),
        format!("SELECT count(*) FROM visits WHERE id_no = '{ID}'"),
        format!("SELECT count(*) FROM visits WHERE id_no = '{ID}' -- {PHONE} {NAME}"),
        format!("SELECT count(*) FROM visits WHERE id_no = ANY ('{{{ID},\"{PHONE}\"}}')"),
        format!("SELECT count(*) FROM visits WHERE id_no = ANY ('{ID}')"),
        format!("SELECT CAST('{ID}' AS DATE)"),
        format!("SELECT CAST(mode || '{PHONE}' AS INT) FROM visits"),
        format!("SELECT \"{PHONE}\" FROM visits"),
        format!("SELECT 1 FROM \"{ID}\""),
        format!("SELECT 'unfinished {ID}"),
        format!("SELECT count(*) FROM pg_class WHERE relname = '{ID}' OR relname = '{PHONE}'"),
        format!("COPY (SELECT mode FROM visits WHERE id_no = '{ID}') TO STDOUT (FORMAT csv, NULL '{PHONE}')"),
        format!("COPY (SELECT mode FROM visits) TO '/{ID}.csv'"),
        format!("COPY \"{ID}\" FROM STDIN"),
        format!("BEGIN; DECLARE \"{ID}\" CURSOR FOR SELECT mode FROM visits WHERE id_no = '{PHONE}'"),
        format!("FETCH 1 FROM \"{ID}\""),
        format!("CLOSE \"{PHONE}\""),
        "ROLLBACK".to_owned(),
        format!("SAVEPOINT \"{ID}\""),
        format!("DEALLOCATE \"{ID}\""),
        format!("INSERT INTO visits VALUES ('{ID}', '{PHONE}', '{NAME}')"),
    ] {
        if let Err(error) = line.simple_query(&sql).await {
            let told = told(&error);
            // A copy is no answer for this call of the client, which lets go of it.
            assert!(!told.contains(" XX000 "), "{sql}: {told}");
        }
    }
    let _ = line.query("SELECT count(*) FROM visits WHERE id_no = $1 OR symptoms = $2", &[&ID, &PHONE]).await;
    let _ = line.query("SELECT count(*) FROM visits WHERE id_no = ANY ($1)", &[&vec![ID, PHONE]]).await;

    let (mut wire, _) = Wire::let_in(site.postgres, "health-analyst", &token, &[("application_name", PHONE)]).await;
    wire.send(&query("SET purpose = 'epidemiology'")).await;
    wire.until_ready().await;
    let sql = "SELECT count(*) FROM visits WHERE id_no = $1";
    let malformed = bind(PHONE, ID, &[1], &[Some(&[0xff, 0xfe])], &[]);
    for messages in [
        vec![parse(ID, sql, &[25]), bind(PHONE, ID, &[0], &[Some(ID.as_bytes())], &[]), execute(PHONE, 0)],
        vec![describe(b'S', ID), describe(b'P', PHONE), close(b'P', PHONE)],
        vec![malformed],
        vec![parse("", sql, &[1_082]), bind("", "", &[0], &[Some(ID.as_bytes())], &[])],
    ] {
        wire.send(&[messages.concat(), sync()].concat()).await;
        wire.until_ready().await;
    }

    let mut flight = site.flight_session("health-analyst", "epidemiology").await;
    for sql in [
        format!("SELECT count(*) AS n FROM visits WHERE id_no = '{ID}' OR symptoms = '{NAME}'"),
        format!("SELECT \"{PHONE}\" FROM visits"),
        format!("SELECT 'unfinished {ID}"),
        format!("SELECT table_name FROM information_schema.tables WHERE table_name = '{ID}'"),
    ] {
        if let Ok(info) = flight.execute(sql.clone(), None).await {
            let ticket = info.endpoint[0].ticket.clone().unwrap().ticket;
            assert!(!holds(&ticket, ID) && !holds(&ticket, NAME), "{sql}: a ticket holds nothing of it");
            rows_of_flight(&mut flight, &info).await.unwrap().try_collect::<Vec<_>>().await.unwrap();
        }
        if let Ok(prepared) = flight.prepare(sql, None).await {
            prepared.close().await.unwrap();
        }
    }
    let asked = CommandGetTables { table_name_filter_pattern: Some(format!("{ID}%")), ..CommandGetTables::default() };
    let info = flight.get_tables(asked).await.unwrap();
    rows_of_flight(&mut flight, &info).await.unwrap().try_collect::<Vec<_>>().await.unwrap();
    assert!(flight.do_get(Ticket::new(ID)).await.is_err());
    let mut stranger = site.flight_client().await;
    stranger.set_header("purpose", PHONE);
    assert!(stranger.handshake(ID, PHONE).await.is_err());
    stranger.set_token(ID.to_owned());
    assert!(stranger.execute("SELECT 1".into(), None).await.is_err());

    canary::search(&site.hub.data());
    drop((line, wire, flight, stranger));
    site.close().await;
    let gone = Arc::downgrade(site.hub());
    site.hub.stop();
    // What served the last connection may take a moment to let go of the hub.
    for _ in 0..100 {
        if gone.strong_count() == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    site.hub.restart().await;
    canary::search(&site.hub.data());
    let said = said.0.lock().unwrap();
    assert!(holds(&said, "somebody listens"), "the search of the log looks past it");
    for canary in [ID, PHONE, NAME, token.as_str()] {
        assert!(!holds(&said, canary), "`{canary}` is in what the hub says of itself");
    }
}

fn holds(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|part| part == text.as_bytes())
}

/// Questions of the grid worker whose answers are of its own rows alone.
const WORKER: [&str; 9] = [
    "SELECT grid_code, count(*), max(confirmed_date) FROM cases GROUP BY 1 ORDER BY 1",
    "SELECT visited_at, temperature, mode FROM visits ORDER BY 1, 2",
    "SELECT visit_id, id_no FROM visits ORDER BY 1",
    "SELECT 10 / CAST(temperature - 37.2 AS INT) FROM visits WHERE temperature > 37.15",
    "SELECT severity FROM cases",
    "SELECT 1 FROM pharmacy.sales",
    "EXPLAIN SELECT count(*) FROM visits",
    "SELECT table_schema, table_name FROM information_schema.tables ORDER BY 1, 2",
    "SELECT relname, reltuples, relpages FROM pg_class ORDER BY 1",
];

/// Everything that the Postgres door sends for these statements, in both protocols, as files, in parts and by cursors.
async fn postgres_transcript(site: &Site) -> Vec<(String, Vec<Message>)> {
    let token = site.hub.token("grid-worker");
    let (mut wire, _) = Wire::let_in(site.postgres, "grid-worker", &token, &[]).await;
    let mut told = Vec::new();
    for sql in WORKER {
        let conversations = [
            query(sql),
            query(&format!("COPY ({sql}) TO STDOUT (FORMAT csv, HEADER)")),
            query(&format!("DECLARE c CURSOR WITH HOLD FOR {sql}; FETCH 3 FROM c; MOVE ALL FROM c; CLOSE c")),
            [
                parse("", sql, &[]),
                describe(b'S', ""),
                bind("", "", &[], &[], &[1]),
                describe(b'P', ""),
                execute("", 2),
                execute("", 0),
                sync(),
            ]
            .concat(),
        ];
        for (at, conversation) in conversations.into_iter().enumerate() {
            wire.send(&conversation).await;
            told.push((format!("{sql} ({at})"), wire.until_ready().await));
        }
        wire.ask("CLOSE ALL").await;
    }
    told
}

/// Everything that the Flight SQL door sends for them but ids and places in the log.
async fn flight_transcript(site: &Site) -> Vec<(String, String, Vec<RecordBatch>)> {
    const IDS: [&str; 3] = ["gridhub-query-id", "gridhub-log-index", "date"];
    let mut client = site.flight_session("grid-worker", "case-management").await;
    let headers = |map: &tonic::metadata::MetadataMap| {
        let mut lines: Vec<_> = map.clone().into_headers().into_iter().map(|(k, v)| format!("{k:?} {v:?}")).collect();
        lines.retain(|line| !IDS.iter().any(|id| line.contains(id)));
        lines.sort();
        lines.join("\n")
    };
    let mut told = Vec::new();
    for sql in WORKER {
        match client.execute(sql.into(), None).await {
            Err(error) => {
                let status = status(error);
                let words = format!("{:?} {}\n{}", status.code(), status.message(), headers(status.metadata()));
                told.push((sql.to_owned(), words, Vec::new()));
            }
            Ok(info) => {
                let promised = format!("{:?} {:?} {}", info.schema, info.app_metadata, info.total_records);
                match rows_of_flight(&mut client, &info).await {
                    Err(status) => {
                        let words = format!("{promised} {:?} {}", status.code(), status.message());
                        told.push((sql.to_owned(), words, Vec::new()));
                    }
                    Ok(stream) => {
                        let words = format!("{promised}\n{}", headers(stream.headers()));
                        told.push((sql.to_owned(), words, stream.try_collect().await.unwrap()));
                    }
                }
            }
        }
    }
    told
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_out_of_sight_leave_no_trace() {
    let whole = Site::open(worlds::world(|_, text| text).await).await;
    let gone = worlds::world(|dataset, text| match dataset {
        "cdc.cases" | "community.visits" | "community.residents" => worlds::without_elsewhere(&text),
        _ => text,
    });
    let gone = Site::open(gone.await).await;
    let changed = worlds::world(|dataset, text| match dataset {
        "community.visits" => lines(&text, |mut cells| {
            if cells.contains(&worlds::ELSEWHERE) {
                cells[9] = "37.2";
                cells[10] = "没有";
            }
            Some(owned(cells))
        }),
        _ => text,
    });
    let changed = Site::open(changed.await).await;
    let (postgres, flight) = (postgres_transcript(&whole).await, flight_transcript(&whole).await);
    // It says something: rows of the worker's own in the first answer.
    assert!(postgres[0].1.iter().any(|message| message.kind == b'D' && holds(&message.body, "420191001001001")));
    assert_eq!(flight[0].2.iter().map(RecordBatch::num_rows).sum::<usize>(), 2);
    for other in [&gone, &changed] {
        for (one, other) in postgres.iter().zip(postgres_transcript(other).await) {
            assert_eq!(*one, other);
        }
        for (one, other) in flight.iter().zip(flight_transcript(other).await) {
            assert_eq!(*one, other);
        }
    }
}

/// How many questions of a door were begun and answered, by what the log says.
async fn logged(hub: &TestHub, door: &str) -> (usize, usize) {
    let inner = hub.hub.as_ref().unwrap();
    let officer = inner.authenticate(&hub.token("compliance-officer")).await.unwrap();
    let entries = inner.log_entries(&officer, Some("audit"), 0, 1_000).await.unwrap();
    let begun: Vec<_> = entries
        .iter()
        .filter_map(|entry| match &entry.event {
            Event::QueryBegin { query_id, channel, .. } if channel == door => Some(query_id.clone()),
            _ => None,
        })
        .collect();
    let answered = entries.iter().filter(|entry| match &entry.event {
        Event::QueryEnd { query_id, outcome, .. } => outcome == "answered" && begun.contains(query_id),
        _ => false,
    });
    (begun.len(), answered.count())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_has_its_entries_under_its_door() {
    let site = Site::city().await;
    let line = site.line("health-analyst", "epidemiology").await;
    assert_eq!(logged(&site.hub, "postgres").await, (0, 0));
    line.texts("SELECT count(*) FROM divisions; SELECT count(*) FROM cases").await;
    line.texts(PROTECTED).await;
    line.query("SELECT name FROM divisions", &[]).await.unwrap();
    let statement = line.prepare("SELECT name FROM divisions WHERE code = $1").await.unwrap();
    for code in ["42", "4201"] {
        line.query(&statement, &[&code]).await.unwrap();
    }
    let copy = line.copy_out("COPY (SELECT name FROM divisions) TO STDOUT").await.unwrap();
    copy.try_collect::<Vec<_>>().await.unwrap();
    line.texts("DECLARE c CURSOR WITH HOLD FOR SELECT name FROM divisions; FETCH 1 FROM c; FETCH ALL FROM c").await;
    assert_eq!(logged(&site.hub, "postgres").await, (8, 8));
    // Settings and the catalogue are no questions.
    line.texts("SHOW purpose; SELECT 1; SELECT relname FROM pg_class").await;
    assert_eq!(logged(&site.hub, "postgres").await, (8, 8));
    line.fails("SELECT severity FROM cases").await;
    line.fails("SELECT nothing FROM cases").await;
    assert_eq!(logged(&site.hub, "postgres").await, (10, 8));

    let mut flight = site.flight_session("health-analyst", "epidemiology").await;
    let info = flight.execute("SELECT name FROM divisions".into(), None).await.unwrap();
    assert_eq!(logged(&site.hub, "flight").await, (0, 0), "a ticket is no answer");
    for _ in 0..2 {
        rows_of_flight(&mut flight, &info).await.unwrap().try_collect::<Vec<_>>().await.unwrap();
    }
    assert_eq!(logged(&site.hub, "flight").await, (2, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_answered_that_cannot_be_logged() {
    let site = Site::city().await;
    let line = site.line("health-analyst", "epidemiology").await;
    let mut flight = site.flight_session("health-analyst", "epidemiology").await;
    let sql = "SELECT name FROM divisions";
    let statement = line.prepare(sql).await.unwrap();
    assert_eq!(line.query(&statement, &[]).await.unwrap().len(), 9);
    line.batch_execute("DECLARE c CURSOR WITH HOLD FOR SELECT name FROM divisions").await.unwrap();
    let info = flight.execute(sql.into(), None).await.unwrap();
    // Behind the last entry the log takes none.
    site.hub.clock.step(TimeDelta::minutes(-10));
    for failing in [sql.to_owned(), format!("COPY ({sql}) TO STDOUT"), format!("DECLARE d CURSOR WITH HOLD FOR {sql}")]
    {
        let said = line.fails(&failing).await;
        assert!(said.starts_with("ERROR 58030 the access log cannot be written"), "{failing}: {said}");
    }
    assert!(told(&line.query(&statement, &[]).await.unwrap_err()).starts_with("ERROR 58030 "));
    let refused = rows_of_flight(&mut flight, &info).await.err().unwrap();
    assert_eq!((refused.code(), header(&refused, "gridhub-error").as_str()), (Code::Unavailable, "log-unavailable"));
    // What was let out before is still the client's.
    assert_eq!(line.lines("FETCH 1 FROM c").await.len(), 1);
    site.hub.clock.step(TimeDelta::minutes(11));
    assert_eq!(line.lines(sql).await.len(), 9);
    assert!(rows_of_flight(&mut flight, &info).await.is_ok());
}

/// What the hub of a site says to a caller who has shown nothing that counts.
async fn strangers_call(client: &mut FlightClient, credential: &str) -> Code {
    let asked = CommandStatementQuery { query: "SELECT 1".into(), transaction_id: None };
    let mut request = Request::new(FlightDescriptor::new_cmd(asked.as_any().encode_to_vec()));
    if !credential.is_empty() {
        request.metadata_mut().insert("authorization", credential.parse().unwrap());
    }
    client.inner_mut().get_flight_info(request).await.unwrap_err().code()
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_served_without_a_credential() {
    let site = Site::city().await;
    let mut client = site.flight_client().await;
    for credential in
        ["", "Bearer ", "Bearer ghub_x", "Bearer ghfs_x", "Basic aGVhbHRoLWFuYWx5c3Q6", "Basic ???", "Digest x"]
    {
        assert_eq!(strangers_call(&mut client, credential).await, Code::Unauthenticated, "{credential}");
    }
    for outcome in [
        client.do_get(Ticket::new(vec![7_u8; 40])).await.err().map(|error| status(error).code()),
        client.get_catalogs().await.err().map(|error| status(error).code()),
        client.prepare("SELECT 1".into(), None).await.err().map(|error| status(error).code()),
    ] {
        assert_eq!(outcome, Some(Code::Unauthenticated));
    }
}

//! Conversations over the Flight SQL door, with the client of arrow-flight.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use arrow::{
    array::{
        ArrayRef, AsArray, BooleanArray, Date32Array, Float64Array, Int64Array, ListArray, RecordBatch, StringArray,
        StructArray,
    },
    datatypes::{DataType, Field, Int64Type, Schema},
    ipc::convert::try_schema_from_ipc_buffer,
};
use arrow_flight::{
    Action, CancelFlightInfoRequest, FlightDescriptor, FlightInfo, Ticket,
    sql::{
        ActionClosePreparedStatementRequest, ActionCreatePreparedStatementRequest, ActionCreatePreparedStatementResult,
        Any, CommandGetDbSchemas, CommandGetPrimaryKeys, CommandGetTables, CommandGetXdbcTypeInfo,
        CommandPreparedStatementQuery, CommandStatementIngest, ProstMessageExt, SqlInfo, TableDefinitionOptions,
        TableExistsOption, TableNotExistOption,
    },
};
use bytes::Bytes;
use chrono::TimeDelta;
use futures::{TryStreamExt, stream};
use gridhub::front::{
    figures, flight,
    listen::{Limits, Listener},
};
use prost::Message;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Status, transport::Channel};
use uuid::Uuid;

use super::support::{
    ENDLESS, ENDLESS_AND_BARE, FlightClient, Site, batches_of_flight, header, rows_of_flight, status, texts_of_flight,
};
use crate::support::{CSV, TestHub, batch_of, fixture};

#[tokio::test(flavor = "multi_thread")]
async fn a_session_asks_and_is_told_what_was_done() {
    let site = Site::city().await;
    let token = site.hub.token("health-analyst");
    let mut client = site.flight_client().await;
    client.handshake("health-analyst", &token).await.unwrap();
    let session = client.token().unwrap().clone();
    assert!(session.starts_with("ghfs_") && !session.contains(&token), "the long-lived token is not sent back");

    let sql = "SELECT sex, count(DISTINCT id_no) AS n FROM cases WHERE severity IS NULL GROUP BY 1";
    let unnamed = status(client.execute(sql.into(), None).await.unwrap_err());
    assert_eq!(unnamed.metadata().get("gridhub-error").unwrap(), "purpose-required");

    client.set_header("purpose", "epidemiology");
    let info = client.execute(sql.into(), None).await.unwrap();
    let told = Schema::try_from(info.clone()).unwrap();
    assert_eq!(told.field(0).metadata()["gridhub.exposure"], "clear");
    assert_eq!(told.field(1).metadata()["gridhub.exposure"], "released");
    for _ in 0..2 {
        let stream = rows_of_flight(&mut client, &info).await.unwrap();
        let headers = stream.headers().clone();
        assert!(headers.get("gridhub-protection").unwrap().to_str().unwrap().contains("\"protected\""));
        assert!(headers.contains_key("gridhub-query-id"));
        for batch in stream.try_collect::<Vec<_>>().await.unwrap() {
            assert_eq!(*batch.schema(), told, "rows come under the schema that was told");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_are_looked_at_in_every_call() {
    let site = Site::city().await;
    let sql = "SELECT name FROM divisions WHERE code = '420191'";
    let mut client = site.flight_client().await;
    client.set_header("purpose", "epidemiology");
    assert_eq!(status(client.execute(sql.into(), None).await.unwrap_err()).code(), Code::Unauthenticated);
    assert!(client.handshake("health-analyst", "ghub_wrong").await.is_err());
    let token = site.hub.token("cdc-epidemiologist");
    assert!(client.handshake("health-analyst", &token).await.is_err(), "the token is another caller's");
    client.set_token("ghfs_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA".into());
    assert_eq!(status(client.execute(sql.into(), None).await.unwrap_err()).code(), Code::Unauthenticated);

    client.set_token(site.hub.token("health-analyst"));
    let info = client.execute(sql.into(), None).await.unwrap();
    assert_eq!(texts_of_flight(&mut client, &info, 0).await, ["望江区"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_is_good_for_its_caller_alone() {
    let site = Site::city().await;
    let mut analyst = site.flight_session("health-analyst", "epidemiology").await;
    let info = analyst.execute("SELECT name FROM divisions WHERE code = '420191'".into(), None).await.unwrap();
    let ticket = &info.endpoint[0].ticket.as_ref().unwrap().ticket;
    assert!(!ticket.windows(6).any(|part| part == b"SELECT"), "no SQL in the ticket");

    let mut other = site.flight_session("pharmacy-planner", "supply-planning").await;
    assert_eq!(rows_of_flight(&mut other, &info).await.err().unwrap().code(), Code::NotFound);
    analyst.set_header("purpose", "supply-planning");
    assert_eq!(rows_of_flight(&mut analyst, &info).await.err().unwrap().code(), Code::NotFound);
    analyst.set_header("purpose", "epidemiology");
    assert_eq!(texts_of_flight(&mut analyst, &info, 0).await, ["望江区"]);

    let cancel = Action::new("CancelFlightInfo", CancelFlightInfoRequest::new(info.clone()).encode_to_vec());
    assert_eq!(status(other.do_action(cancel.clone()).await.unwrap_err()).code(), Code::NotFound);
    assert_eq!(texts_of_flight(&mut analyst, &info, 0).await, ["望江区"], "another caller cancels nothing");
    analyst.do_action(cancel).await.unwrap();
    assert_eq!(rows_of_flight(&mut analyst, &info).await.err().unwrap().code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn prepared_statements_are_bound_to_one_row() {
    let site = Site::city().await;
    let mut client = site.flight_session("health-analyst", "epidemiology").await;
    let sql = "SELECT name FROM divisions WHERE code = $1 AND level = $2";
    let mut prepared = client.prepare(sql.into(), None).await.unwrap();
    assert_eq!(prepared.parameter_schema().unwrap().fields().len(), 2);
    let row = |codes: Vec<&str>| {
        let levels = vec![3_i64; codes.len()];
        let columns: [(&str, ArrayRef); 2] =
            [("0", Arc::new(StringArray::from(codes))), ("1", Arc::new(Int64Array::from(levels)))];
        RecordBatch::try_from_iter(columns).unwrap()
    };
    prepared.set_parameters(row(vec!["420191"])).unwrap();
    let first = prepared.execute().await.unwrap();
    prepared.set_parameters(row(vec!["nowhere"])).unwrap();
    let second = prepared.execute().await.unwrap();
    assert!(texts_of_flight(&mut client, &second, 0).await.is_empty());
    assert_eq!(texts_of_flight(&mut client, &first, 0).await, ["望江区"], "a ticket keeps the values it was given for");
    prepared.set_parameters(row(vec!["420191", "420192"])).unwrap();
    let status = status(prepared.execute().await.unwrap_err());
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("one row"), "{status}");
    prepared.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_catalogue_is_the_callers_view() {
    let site = Site::city().await;
    let mut planner = site.flight_session("pharmacy-planner", "supply-planning").await;
    let asked = CommandGetTables { include_schema: true, ..CommandGetTables::default() };
    let info = planner.get_tables(asked).await.unwrap();
    assert_eq!(texts_of_flight(&mut planner, &info, 2).await, ["cases", "sales", "divisions"]);
    let hidden = CommandGetTables { table_name_filter_pattern: Some("resid%".into()), ..CommandGetTables::default() };
    let info = planner.get_tables(hidden).await.unwrap();
    assert!(texts_of_flight(&mut planner, &info, 2).await.is_empty());
    let info = planner.get_sql_info(vec![SqlInfo::FlightSqlServerTransaction]).await.unwrap();
    assert_eq!(batches_of_flight(&mut planner, &info).await[0].num_rows(), 1);
    let info = planner.execute("SELECT 1 AS one".into(), None).await.unwrap();
    assert_eq!(batches_of_flight(&mut planner, &info).await[0].num_rows(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_say_their_rule_and_what_would_pass() {
    let site = Site::city().await;
    let mut client = site.flight_session("health-analyst", "epidemiology").await;
    let sql = "SELECT sex, count(*) FROM cases WHERE severity LIKE '重%' GROUP BY 1";
    let refused = status(client.execute(sql.into(), None).await.unwrap_err());
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert_eq!(refused.metadata().get("gridhub-rule").unwrap(), "protected-filter");
    assert!(refused.metadata().get("gridhub-try").is_some());
    let update = status(client.execute_update("DELETE FROM cases".into(), None).await.unwrap_err());
    assert_eq!(update.code(), Code::Unimplemented);
    let hidden = status(client.execute("SELECT * FROM nothing".into(), None).await.unwrap_err());
    assert_eq!(hidden.metadata().get("gridhub-error").unwrap(), "unknown-table");
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_ingested_once_under_an_id() {
    let hub = TestHub::start().await;
    let divisions = fixture("platform.divisions.csv");
    assert_eq!(hub.push("platform-uploader", "platform.divisions", CSV, divisions).await.status, 201);
    let site = Site::open(hub).await;
    let mut uploader = site.flight_session("community-uploader", "quality-control").await;
    let batch = batch_of("community.visits", &fixture("community.visits.csv"));
    let id = Uuid::now_v7().to_string();
    let append = CommandStatementIngest {
        table_definition_options: Some(TableDefinitionOptions {
            if_not_exist: TableNotExistOption::Fail as i32,
            if_exists: TableExistsOption::Append as i32,
        }),
        table: "visits".into(),
        schema: Some("community".into()),
        options: [("gridhub-batch-id".to_owned(), id.clone())].into(),
        ..CommandStatementIngest::default()
    };
    let accepted = uploader.execute_ingest(append.clone(), stream::iter([Ok(batch.clone())])).await.unwrap();
    assert!(accepted > 0);
    let again = uploader.execute_ingest(append.clone(), stream::iter([Ok(batch.clone())])).await.unwrap();
    assert_eq!(again, accepted, "the same receipt again");
    let token = site.hub.token("community-uploader");
    let receipt = site.hub.get(&token, &format!("/v1/datasets/community.visits/batches/{id}")).await.json();
    assert_eq!(receipt["rows_accepted"], accepted);
    assert_eq!(receipt["rows_received"], batch.num_rows());

    let mut analyst = site.flight_session("health-analyst", "epidemiology").await;
    let refused = analyst.execute_ingest(append.clone(), stream::iter([Ok(batch.clone())])).await.unwrap_err();
    assert_eq!(status(refused).code(), Code::PermissionDenied);
    let replace = TableDefinitionOptions {
        if_not_exist: TableNotExistOption::Create as i32,
        if_exists: TableExistsOption::Replace as i32,
    };
    let replace = CommandStatementIngest { table_definition_options: Some(replace), ..append };
    let refused = uploader.execute_ingest(replace, stream::iter([Ok(batch)])).await.unwrap_err();
    assert_eq!(status(refused).code(), Code::PermissionDenied);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_door_closes_when_it_is_told_to() {
    let mut site = Site::open(TestHub::start().await).await;
    let mut client = site.flight_session("health-analyst", "epidemiology").await;
    site.close().await;
    assert!(client.get_catalogs().await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_clients_ask_of_a_database_is_answered() {
    let site = Site::city().await;
    let mut planner = site.flight_session("pharmacy-planner", "supply-planning").await;
    let info = planner.get_catalogs().await.unwrap();
    assert_eq!(texts_of_flight(&mut planner, &info, 0).await, ["hub"]);
    let info = planner.get_db_schemas(CommandGetDbSchemas::default()).await.unwrap();
    assert_eq!(texts_of_flight(&mut planner, &info, 1).await, ["cdc", "pharmacy", "platform"]);
    let info = planner.get_table_types().await.unwrap();
    assert_eq!(texts_of_flight(&mut planner, &info, 0).await, ["TABLE"]);
    let info = planner.get_xdbc_type_info(CommandGetXdbcTypeInfo::default()).await.unwrap();
    assert!(texts_of_flight(&mut planner, &info, 0).await.contains(&"numeric".to_owned()));
    let keys = CommandGetPrimaryKeys { catalog: None, db_schema: None, table: "sales".into() };
    let info = planner.get_primary_keys(keys).await.unwrap();
    assert_eq!(batches_of_flight(&mut planner, &info).await.iter().map(RecordBatch::num_rows).sum::<usize>(), 0);

    // Tables have the columns that rows of them come with.
    let asked = CommandGetTables { include_schema: true, ..CommandGetTables::default() };
    let info = planner.get_tables(asked).await.unwrap();
    let [tables] = <[RecordBatch; 1]>::try_from(batches_of_flight(&mut planner, &info).await).unwrap();
    let (names, schemas) = (tables.column(2).as_string::<i32>(), tables.column(4).as_binary::<i32>());
    for (name, schema) in names.iter().zip(schemas) {
        let name = name.unwrap();
        let told = try_schema_from_ipc_buffer(schema.unwrap()).unwrap();
        let columns = |schema: &Schema| {
            let fields = schema.fields().iter().map(|field| format!("{} {}", field.name(), field.data_type()));
            fields.collect::<Vec<_>>()
        };
        if name == "cases" {
            // Only to be counted; there are no rows to compare with.
            let fields: Vec<_> = told.fields().iter().map(|field| field.name().as_str()).collect();
            assert_eq!(fields, ["id_no", "grid_code", "confirmed_date"]);
            continue;
        }
        let info = planner.execute(format!("SELECT * FROM {name}"), None).await.unwrap();
        let shown = Schema::try_from(info).unwrap();
        assert!(columns(&told).iter().zip(columns(&shown)).all(|(one, other)| *one == other), "{told} {shown}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_does_not_outlive_its_token() {
    let site = Site::city().await;
    let token = site.hub.token("health-analyst");
    let id = site.hub().authenticate(&token).await.unwrap().token_id;
    let mut client = site.flight_client().await;
    client.set_header("purpose", "epidemiology");
    client.handshake("health-analyst", &token).await.unwrap();
    let sql = "SELECT name FROM divisions WHERE code = '420191'";
    let info = client.execute(sql.into(), None).await.unwrap();
    let mut bearer = site.flight_client().await;
    bearer.set_header("purpose", "epidemiology");
    bearer.set_token(token.clone());
    assert_eq!(texts_of_flight(&mut bearer, &info, 0).await, ["望江区"], "the caller is the same");
    gridhub::identity::revoke(&site.hub.metadata(), &id, site.hub.clock.now()).unwrap();
    for client in [&mut client, &mut bearer] {
        assert_eq!(rows_of_flight(client, &info).await.err().unwrap().code(), Code::Unauthenticated);
        assert_eq!(status(client.execute(sql.into(), None).await.unwrap_err()).code(), Code::Unauthenticated);
    }
    // The caller's other sessions go on, and end when their time is over.
    let mut other = site.flight_session("health-analyst", "epidemiology").await;
    assert_eq!(texts_of_flight(&mut other, &info, 0).await, ["望江区"]);
    site.hub.clock.step(TimeDelta::days(2));
    assert_eq!(rows_of_flight(&mut other, &info).await.err().unwrap().code(), Code::Unauthenticated);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_asked_again_is_told_again() {
    let site = Site::city().await;
    let mut client = site.flight_session("health-analyst", "epidemiology").await;
    let protected = "SELECT count(temperature) AS n FROM visits";
    for sql in ["SELECT code, level, name FROM divisions ORDER BY code LIMIT 3", protected, "SELECT 1 AS one"] {
        let first = client.execute(sql.into(), None).await.unwrap();
        let rows = batches_of_flight(&mut client, &first).await;
        assert!(!rows.is_empty(), "{sql}");
        for _ in 0..2 {
            let again = client.execute(sql.into(), None).await.unwrap();
            assert_eq!((&again.schema, &again.app_metadata), (&first.schema, &first.app_metadata), "{sql}");
            assert_ne!(again.endpoint[0].ticket, first.endpoint[0].ticket, "each has a ticket of its own");
            assert_eq!(batches_of_flight(&mut client, &again).await, rows, "{sql}");
        }
    }
    // Another purpose is told for itself, and who may not see something does not by what others were told.
    let cases = "SELECT case_id, id_no FROM cases ORDER BY 1";
    let info = client.execute(cases.into(), None).await.unwrap();
    let mine = batches_of_flight(&mut client, &info).await;
    let mut planner = site.flight_session("pharmacy-planner", "supply-planning").await;
    for _ in 0..2 {
        let refused = status(planner.execute(cases.into(), None).await.unwrap_err());
        assert!(refused.metadata().contains_key("gridhub-error"), "{refused}");
    }
    let info = client.execute(cases.into(), None).await.unwrap();
    assert_eq!(batches_of_flight(&mut client, &info).await, mine);
}

/// What comes back for a prepared statement's handle, shown with that credential.
async fn ticket_for(client: &mut FlightClient, handle: &Bytes, token: &str) -> Result<FlightInfo, Status> {
    let command = CommandPreparedStatementQuery { prepared_statement_handle: handle.clone() };
    let mut request = Request::new(FlightDescriptor::new_cmd(command.as_any().encode_to_vec()));
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    request.metadata_mut().insert("purpose", "epidemiology".parse().unwrap());
    client.inner_mut().get_flight_info(request).await.map(|response| response.into_inner())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prepared_statement_is_its_callers_until_it_is_closed() {
    let site = Site::city().await;
    let mut analyst = site.flight_session("health-analyst", "epidemiology").await;
    let asked = ActionCreatePreparedStatementRequest {
        query: "SELECT name FROM divisions WHERE code = '420191'".into(),
        transaction_id: None,
    };
    let create = Action::new("CreatePreparedStatement", asked.as_any().encode_to_vec());
    let made = analyst.do_action(create).await.unwrap().message().await.unwrap().unwrap();
    let made = Any::decode(made.body).unwrap().unpack::<ActionCreatePreparedStatementResult>().unwrap().unwrap();
    let handle = made.prepared_statement_handle;
    assert!(!handle.windows(6).any(|part| part == b"SELECT"), "no SQL in the handle");

    let (own, others) = (site.hub.token("health-analyst"), site.hub.token("cdc-epidemiologist"));
    let info = ticket_for(&mut analyst, &handle, &own).await.unwrap();
    assert_eq!(texts_of_flight(&mut analyst, &info, 0).await, ["望江区"]);
    let refused = ticket_for(&mut analyst, &handle, &others).await.unwrap_err();
    let unknown = ticket_for(&mut analyst, &Bytes::from_static(&[7; 32]), &own).await.unwrap_err();
    assert_eq!((refused.code(), refused.message()), (unknown.code(), unknown.message()));
    assert_eq!(refused.code(), Code::NotFound);

    let close = ActionClosePreparedStatementRequest { prepared_statement_handle: handle.clone() };
    let close = Action::new("ClosePreparedStatement", close.as_any().encode_to_vec());
    analyst.do_action(close).await.unwrap();
    assert_eq!(ticket_for(&mut analyst, &handle, &own).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn parameters_of_every_type_are_bound() {
    let site = Site::city().await;
    let mut client = site.flight_session("health-analyst", "epidemiology").await;
    let asked: [(&str, ArrayRef, i64); 7] = [
        ("SELECT count(*) AS n FROM divisions WHERE level = $1", Arc::new(Int64Array::from(vec![6])), 3),
        ("SELECT count(*) AS n FROM divisions WHERE level < $1", Arc::new(Float64Array::from(vec![2.5])), 2),
        ("SELECT count(*) AS n FROM divisions WHERE name = $1", Arc::new(StringArray::from(vec!["望江区"])), 1),
        ("SELECT count(*) AS n FROM divisions WHERE name = $1", Arc::new(StringArray::from(vec![None::<&str>])), 0),
        ("SELECT count(*) AS n FROM divisions WHERE name = $1", Arc::new(StringArray::from(vec!["' OR true --"])), 0),
        // The sixth of January 2026.
        ("SELECT count(*) AS n FROM cases WHERE confirmed_date >= $1", Arc::new(Date32Array::from(vec![20_459])), 6),
        ("SELECT count(*) AS n FROM cases WHERE (sex = '女') = $1", Arc::new(BooleanArray::from(vec![true])), 7),
    ];
    for (sql, value, expected) in asked {
        let mut prepared = client.prepare(sql.into(), None).await.unwrap();
        prepared.set_parameters(RecordBatch::try_from_iter([("0", value)]).unwrap()).unwrap();
        let info = prepared.execute().await.unwrap();
        let batches = batches_of_flight(&mut client, &info).await;
        assert_eq!(batches[0].column(0).as_primitive::<Int64Type>().value(0), expected, "{sql}");
    }
    // Nothing bound, and more than there is room for.
    let mut prepared = client.prepare("SELECT name FROM divisions WHERE code = $1".into(), None).await.unwrap();
    if let Ok(info) = prepared.execute().await {
        let unbound = rows_of_flight(&mut client, &info).await.err().unwrap();
        assert_eq!(unbound.code(), Code::InvalidArgument, "{unbound}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn arrays_are_compared_as_lists() {
    let site = Site::city().await;
    let mut client = site.flight_session("health-analyst", "epidemiology").await;
    let numbers = |numbers: &[i64]| {
        let numbers = numbers.iter().copied().map(Some).collect::<Vec<_>>();
        Arc::new(ListArray::from_iter_primitive::<Int64Type, _, _>([Some(numbers)])) as ArrayRef
    };
    let text: ArrayRef = Arc::new(StringArray::from(vec!["{1,6}"]));
    for (values, expected) in [(numbers(&[1, 6]), 4), (numbers(&[]), 0), (text, 4)] {
        let sql = "SELECT count(*) AS n FROM divisions WHERE level = ANY ($1)";
        let mut prepared = client.prepare(sql.into(), None).await.unwrap();
        let told = prepared.parameter_schema().unwrap().field(0).data_type().clone();
        assert_eq!(told, DataType::new_list(DataType::Int16, true));
        prepared.set_parameters(RecordBatch::try_from_iter([("0", values)]).unwrap()).unwrap();
        let info = prepared.execute().await.unwrap();
        let batches = batches_of_flight(&mut client, &info).await;
        assert_eq!(batches[0].column(0).as_primitive::<Int64Type>().value(0), expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_runs_is_cancelled_by_its_caller_and_ends_at_its_deadline() {
    let site = Site::city().await;
    for sql in [ENDLESS, ENDLESS_AND_BARE] {
        let mut client = site.flight_session("health-analyst", "epidemiology").await;
        let info = client.execute(sql.into(), None).await.unwrap();
        let mut running = site.flight_session("health-analyst", "epidemiology").await;
        let ticket = info.clone();
        let asked = tokio::spawn(async move { rows_of_flight(&mut running, &ticket).await.err() });
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert!(!asked.is_finished());
        let cancel = Action::new("CancelFlightInfo", CancelFlightInfoRequest::new(info).encode_to_vec());
        client.do_action(cancel).await.unwrap();
        let ended = tokio::time::timeout(Duration::from_secs(5), asked).await.unwrap().unwrap().unwrap();
        assert_eq!(ended.code(), Code::Cancelled, "{sql}: {ended}");

        let info = client.execute(sql.into(), None).await.unwrap();
        client.set_header("grpc-timeout", "400m");
        let begun = Instant::now();
        let ended = rows_of_flight(&mut client, &info).await.err().unwrap();
        // Which of the two comes first, the hub's end or the protocol's, is open.
        assert!([Code::DeadlineExceeded, Code::Cancelled].contains(&ended.code()), "{sql}: {ended}");
        assert!(begun.elapsed() < Duration::from_secs(5), "{sql}: {:?}", begun.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_waits_for_any_more_does_not_run_on() {
    let site = Site::city().await;
    let mut client = site.flight_session("health-analyst", "epidemiology").await;
    for sql in [ENDLESS, ENDLESS_AND_BARE] {
        let info = client.execute(sql.into(), None).await.unwrap();
        let mut asked = Vec::new();
        // More than one caller may ask at once, and more than the hub answers at once.
        for _ in 0..9 {
            let (mut leaving, info) = (site.flight_session("health-analyst", "epidemiology").await, info.clone());
            asked.push(tokio::spawn(async move { rows_of_flight(&mut leaving, &info).await.map(drop) }));
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        for asked in asked {
            assert!(!asked.is_finished());
            asked.abort();
        }
        let answer = async {
            let info = client.execute("SELECT name FROM divisions WHERE code = '420191'".into(), None).await.unwrap();
            texts_of_flight(&mut client, &info, 0).await
        };
        let answer = tokio::time::timeout(Duration::from_secs(5), answer).await;
        assert_eq!(answer.expect("those who left still take the turns"), ["望江区"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn values_that_change_a_type_are_not_cut_to_fit() {
    let site = Site::city().await;
    let mut client = site.flight_session("health-analyst", "epidemiology").await;
    let sql = "SELECT coalesce($1, level) AS x FROM divisions";
    let values: [(ArrayRef, bool); 4] = [
        (Arc::new(Int64Array::from(vec![7])), true),
        (Arc::new(Float64Array::from(vec![7.0])), true),
        (Arc::new(Float64Array::from(vec![1.5])), false),
        (Arc::new(Int64Array::from(vec![99_999_999_999])), false),
    ];
    for (value, fits) in values {
        let mut prepared = client.prepare(sql.into(), None).await.unwrap();
        prepared.set_parameters(RecordBatch::try_from_iter([("0", Arc::clone(&value))]).unwrap()).unwrap();
        let info = prepared.execute().await.unwrap();
        let found = rows_of_flight(&mut client, &info).await.unwrap().try_collect::<Vec<_>>().await;
        match fits {
            true => assert_eq!(found.unwrap().iter().map(RecordBatch::num_rows).sum::<usize>(), 9, "{value:?}"),
            false => assert_eq!(status(found.unwrap_err()).code(), Code::InvalidArgument, "{value:?}"),
        }
    }
    // What is no plain value, and what is too long to be kept for every ticket.
    let inner: ArrayRef = Arc::new(Int64Array::from(vec![7]));
    let nested = StructArray::from(vec![(Arc::new(Field::new("n", DataType::Int64, true)), inner)]);
    let long = StringArray::from(vec!["x".repeat(512 << 10)]);
    for value in [Arc::new(nested) as ArrayRef, Arc::new(long)] {
        let mut prepared = client.prepare("SELECT $1 AS x".into(), None).await.unwrap();
        prepared.set_parameters(RecordBatch::try_from_iter([("0", value)]).unwrap()).unwrap();
        assert_eq!(status(prepared.execute().await.unwrap_err()).code(), Code::InvalidArgument);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_about_the_catalogue_are_short() {
    let site = Site::city().await;
    let mut client = site.flight_session("health-analyst", "epidemiology").await;
    let pattern = CommandGetTables { table_name_filter_pattern: Some("_%".repeat(8 << 10)), ..Default::default() };
    let kinds = CommandGetTables { table_types: vec!["TABLE".into(); 8 << 10], ..Default::default() };
    for asked in [pattern, kinds] {
        let ticket = Ticket::new(asked.as_any().encode_to_vec());
        for refused in [client.do_get(ticket).await.err(), client.get_tables(asked).await.err()] {
            let refused = status(refused.unwrap());
            assert_eq!(
                (refused.code(), header(&refused, "gridhub-error").as_str()),
                (Code::InvalidArgument, "too-large")
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_say_their_kind_and_nothing_hidden() {
    let site = Site::city().await;
    let mut unnamed = site.flight_client().await;
    unnamed.handshake("health-analyst", &site.hub.token("health-analyst")).await.unwrap();
    let required = status(unnamed.execute("SELECT name FROM divisions".into(), None).await.unwrap_err());
    assert_eq!(
        (required.code(), header(&required, "gridhub-error").as_str()),
        (Code::InvalidArgument, "purpose-required")
    );
    let purposes = header(&required, "gridhub-purposes");
    assert!(purposes.contains("epidemiology") && purposes.contains("supply-planning"), "{purposes}");
    unnamed.set_header("purpose", "audit");
    let refused = status(unnamed.execute("SELECT name FROM divisions".into(), None).await.unwrap_err());
    assert_eq!(header(&refused, "gridhub-error"), "purpose-not-allowed");
    let mut wrong = site.flight_client().await;
    wrong.set_header("purpose", "audit");
    assert!(wrong.handshake("health-analyst", &site.hub.token("health-analyst")).await.is_err());

    let mut planner = site.flight_session("pharmacy-planner", "supply-planning").await;
    for (sql, code, slug) in [
        ("SELEC 1", Code::InvalidArgument, "sql-syntax"),
        ("SELECT nonsense FROM sales", Code::InvalidArgument, "unknown-column"),
        ("SELECT 1 FROM nothing", Code::InvalidArgument, "unknown-table"),
        ("INSERT INTO sales VALUES (1)", Code::PermissionDenied, "refused"),
        ("SELECT id_no FROM cases", Code::PermissionDenied, "refused"),
    ] {
        let said = status(planner.execute(sql.into(), None).await.unwrap_err());
        assert_eq!((said.code(), header(&said, "gridhub-error").as_str()), (code, slug), "{sql}: {said}");
    }
    for (hidden, nowhere) in [("residents", "residence"), ("hospital.tests", "hospital.texts")] {
        let mut told = Vec::new();
        for name in [hidden, nowhere] {
            let said = status(planner.execute(format!("SELECT * FROM {name}"), None).await.unwrap_err());
            let prepared = status(planner.prepare(format!("SELECT * FROM {name}"), None).await.err().unwrap());
            assert_eq!((said.code(), said.message()), (prepared.code(), prepared.message()));
            told.push((said.code(), said.message().replace(name, "…"), header(&said, "gridhub-error")));
        }
        assert_eq!(told[0], told[1]);
    }
    let begin = Action::new("BeginTransaction", Vec::new());
    assert_eq!(status(planner.do_action(begin).await.unwrap_err()).code(), Code::Unimplemented);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ingestion_is_an_upload_with_its_receipt() {
    const HEADER: &str = "visit_id,grid_code,household_id,id_no,name,phone,worker_id,visited_at,mode,temperature,\
                          symptoms,needs,remark";
    let visit = |number: u32, id: &str| {
        format!("N{number},420191001001001,H{number},{id},,,W01,2026-01-05 10:00:00,入户,36.5,,,\n")
    };
    let rows = |ids: &[&str]| {
        let rows = ids.iter().zip(0..).map(|(id, number)| visit(number, id));
        batch_of("community.visits", format!("{HEADER}\n{}", rows.collect::<String>()).as_bytes())
    };
    // The last digit of the second is wrong.
    let (good, bad) = ("420191198811110010", "420191198811110017");
    let hub = TestHub::start().await;
    let divisions = fixture("platform.divisions.csv");
    assert_eq!(hub.push("platform-uploader", "platform.divisions", CSV, divisions).await.status, 201);
    let site = Site::open(hub).await;
    let mut uploader = site.flight_session("community-uploader", "quality-control").await;
    let append = |table: &str, id: &str| CommandStatementIngest {
        table_definition_options: Some(TableDefinitionOptions {
            if_not_exist: TableNotExistOption::Fail as i32,
            if_exists: TableExistsOption::Append as i32,
        }),
        table: table.into(),
        options: [("gridhub-batch-id".to_owned(), id.to_owned())].into(),
        ..CommandStatementIngest::default()
    };
    let ids: Vec<_> = (0..3).map(|_| Uuid::now_v7().to_string()).collect();

    // The rows that are good are taken, the others are named by their place.
    let partly =
        uploader.execute_ingest(append("visits", &ids[0]), stream::iter([Ok(rows(&[good, bad]))])).await.unwrap();
    assert_eq!(partly, 1);
    let token = site.hub.token("community-uploader");
    let receipt = site.hub.get(&token, &format!("/v1/datasets/community.visits/batches/{}", ids[0])).await.json();
    assert_eq!((receipt["status"].as_str(), receipt["rows_rejected"].as_u64()), (Some("partly_accepted"), Some(1)));
    assert_eq!(
        (receipt["rejected_rows"][0]["row"].as_u64(), receipt["rejections"]["check_digit"].as_u64()),
        (Some(1), Some(1))
    );
    // The same id is the same batch.
    let conflict = uploader.execute_ingest(append("visits", &ids[0]), stream::iter([Ok(rows(&[good]))])).await;
    let conflict = status(conflict.unwrap_err());
    assert_eq!((conflict.code(), header(&conflict, "gridhub-error").as_str()), (Code::AlreadyExists, "batch-conflict"));

    let rejected = uploader.execute_ingest(append("visits", &ids[1]), stream::iter([Ok(rows(&[bad, bad]))])).await;
    let rejected = status(rejected.unwrap_err());
    assert_eq!(header(&rejected, "gridhub-error"), "contract-violation");
    let receipt: serde_json::Value = serde_json::from_str(&header(&rejected, "gridhub-receipt")).unwrap();
    assert_eq!(receipt["status"], "rejected");
    assert!(!format!("{rejected:?}").contains(bad), "{rejected:?}");

    // What does not fit the contract at all uses no id up.
    let nonsense = RecordBatch::try_from_iter([("x", Arc::new(Int64Array::from(vec![1])) as ArrayRef)]).unwrap();
    let refused = uploader.execute_ingest(append("visits", &ids[2]), stream::iter([Ok(nonsense)])).await;
    assert_eq!(header(&status(refused.unwrap_err()), "gridhub-error"), "contract-violation");
    let taken =
        uploader.execute_ingest(append("community.visits", &ids[2]), stream::iter([Ok(rows(&["42019119500110001X"]))]));
    assert_eq!(taken.await.unwrap(), 1);
    let counted = site.hub.ask("community-uploader", "", "SELECT count(*) FROM visits").await;
    assert_eq!(counted.rows(), "[2]");

    // Others' datasets are as unknown as those that are not there.
    let mut told = Vec::new();
    for table in ["cdc.cases", "cdc.nobody"] {
        let refused =
            uploader.execute_ingest(append(table, &Uuid::now_v7().to_string()), stream::iter([Ok(rows(&[good]))]));
        let refused = status(refused.await.unwrap_err());
        told.push((refused.code(), refused.message().replace(table, "…"), header(&refused, "gridhub-error")));
    }
    assert_eq!(told[0], told[1]);
    assert_ne!(told[0].0, Code::Ok);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_ends_before_its_session() {
    const SQL: &str = "SELECT name FROM divisions WHERE code = '420191'";
    let site = Site::city().await;
    let told = |info: &FlightInfo| info.endpoint[0].expiration_time.unwrap().seconds - site.hub.clock.now().timestamp();
    let mut usual = site.flight_session("health-analyst", "epidemiology").await;
    assert_eq!(told(&usual.execute(SQL.into(), None).await.unwrap()), 300);

    let life = Duration::from_secs(4);
    let listener = Listener::bind("127.0.0.1:0", Limits::default()).await.unwrap();
    let address = listener.local_addr().unwrap();
    let options = flight::Options { ticket_life: life, ..flight::Options::default() };
    let stop = CancellationToken::new();
    let _end = stop.clone().drop_guard();
    tokio::spawn(flight::serve(listener, Arc::clone(site.hub()), options, stop));
    let channel = Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
    let mut client = FlightClient::new(channel);
    client.set_header("purpose", "epidemiology");
    client.handshake("health-analyst", &site.hub.token("health-analyst")).await.unwrap();
    let info = client.execute(SQL.into(), None).await.unwrap();
    assert_eq!(told(&info), 4);
    assert_eq!(texts_of_flight(&mut client, &info, 0).await, ["望江区"]);
    sleep(life).await;
    let over = rows_of_flight(&mut client, &info).await.err().unwrap();
    assert_eq!((over.code(), over.message()), (Code::NotFound, "unknown or expired ticket; ask again"));
    let info = client.execute(SQL.into(), None).await.unwrap();
    assert_eq!(texts_of_flight(&mut client, &info, 0).await, ["望江区"]);
}

// In one thread, where the figures are.
#[tokio::test]
async fn questions_are_counted_with_those_of_other_doors() {
    let site = Site::city().await;
    let mut client = site.flight_session("health-analyst", "epidemiology").await;
    let recorder = figures::builder().build_recorder();
    let counting = metrics::set_default_local_recorder(&recorder);
    let info = client.execute("SELECT name FROM divisions WHERE code = '420191'".into(), None).await.unwrap();
    for _ in 0..2 {
        batches_of_flight(&mut client, &info).await;
    }
    let failing = client.execute("SELECT CAST(name AS BIGINT) AS n FROM divisions".into(), None).await.unwrap();
    assert_eq!(header(&rows_of_flight(&mut client, &failing).await.err().unwrap(), "gridhub-error"), "data-error");
    // What is only described is no question, nor is what is asked of the catalogue.
    assert!(client.execute("SELECT nothing FROM nowhere".into(), None).await.is_err());
    let catalogue = client.execute("SELECT table_name FROM information_schema.tables".into(), None).await.unwrap();
    batches_of_flight(&mut client, &catalogue).await;
    drop(counting);
    let text = recorder.handle().render();
    for line in [
        "gridhub_questions_total{door=\"flight\",outcome=\"answered\"} 2\n",
        "gridhub_questions_total{door=\"flight\",outcome=\"data-error\"} 1\n",
        "gridhub_question_seconds_count{door=\"flight\"} 3\n",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
}

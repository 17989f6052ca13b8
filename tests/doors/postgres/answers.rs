//! Answers: values of every type in text and in binary, parameters, notices, and the same cells as at the other doors.

use std::error::Error as StdError;

use bytes::BytesMut;
use chrono::{DateTime, NaiveDate, Utc};
use gridhub::demo::questions;
use serde_json::Value;
use tokio_postgres::{
    SimpleQueryMessage,
    types::{Format, FromSql, IsNull, ToSql, Type},
};

use super::super::support::{PROTECTED, Site, batches_of_flight, rows_of, texts_of_batches, told};
use crate::support::TestHub;

/// The bytes of a value, whatever it is.
#[derive(Debug, PartialEq)]
struct Raw(Vec<u8>);

impl<'a> FromSql<'a> for Raw {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn StdError + Sync + Send>> {
        Ok(Self(raw.to_vec()))
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}

/// A value of any type as text.
#[derive(Debug)]
struct Written(&'static str);

impl ToSql for Written {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn StdError + Sync + Send>> {
        out.extend_from_slice(self.0.as_bytes());
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    fn to_sql_checked(&self, kind: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn StdError + Sync + Send>> {
        self.to_sql(kind, out)
    }

    fn encode_format(&self, _: &Type) -> Format {
        Format::Text
    }
}

fn day(year: i32, month: u32, day: u32) -> NaiveDate {
    NaiveDate::from_ymd_opt(year, month, day).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn values_are_written_as_postgres_writes_them() {
    let site = Site::city().await;
    let worker = site.line("grid-worker", "case-management").await;
    let visit = "SELECT mode, temperature, visited_at, symptoms FROM visits ORDER BY temperature LIMIT 1";
    let cell = |text: &str| Some(text.to_owned());
    assert_eq!(worker.texts(visit).await, [[cell("入户"), cell("36.0"), cell("2026-01-05 07:30:00+08"), None]]);
    let row = worker.query_one(visit, &[]).await.unwrap();
    let kinds: Vec<_> = row.columns().iter().map(|column| column.type_().clone()).collect();
    assert_eq!(kinds, [Type::TEXT, Type::NUMERIC, Type::TIMESTAMPTZ, Type::TEXT]);
    assert_eq!(row.get::<_, String>(0), "入户");
    // One group of four digits, of weight 0, without a sign, one digit after the point: 36.
    assert_eq!(row.get::<_, Raw>(1), Raw(vec![0, 1, 0, 0, 0, 0, 0, 1, 0, 36]));
    assert_eq!(row.get::<_, DateTime<Utc>>(2), "2026-01-04T23:30:00Z".parse::<DateTime<Utc>>().unwrap());
    assert_eq!(row.get::<_, Option<String>>(3), None);

    let analyst = site.line("health-analyst", "epidemiology").await;
    let doses = "SELECT vaccine, dose_no, vaccinated_on, birth_date, id_no FROM vaccinations WHERE dose_no = 2 \
                 ORDER BY birth_date LIMIT 1";
    let [row] = <[_; 1]>::try_from(analyst.texts(doses).await).unwrap();
    let text: Vec<_> = row.into_iter().flatten().collect();
    // The birth date is the year's, the person a token.
    assert_eq!(text[..4], ["灭活-A", "2", "2025-02-10", "1953-01-01"]);
    let row = analyst.query_one(doses, &[]).await.unwrap();
    let kinds: Vec<_> = row.columns().iter().map(|column| column.type_().clone()).collect();
    assert_eq!(kinds, [Type::TEXT, Type::INT2, Type::DATE, Type::DATE, Type::TEXT]);
    assert_eq!((row.get::<_, i16>(1), row.get::<_, NaiveDate>(2)), (2, day(2025, 2, 10)));
    assert_eq!(row.get::<_, NaiveDate>(3), day(1953, 1, 1));
    let token = row.get::<_, String>(4);
    assert_eq!(token, text[4]);
    assert!(token.len() == 32 && token.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')), "{token}");

    // What contracts have no field of, statements may still make.
    let made = "SELECT level > 3 AS b, CAST(level AS INTEGER) AS i4, CAST(level AS BIGINT) AS i8, \
                CAST(level AS REAL) / 4 AS f4, CAST(level AS DOUBLE PRECISION) / 4 AS f8, \
                CAST('2026-01-06 12:30:00' AS TIMESTAMP) AS t, parent_code FROM divisions WHERE code = '42'";
    let text: Vec<_> = analyst.texts(made).await.remove(0);
    let expected = ["f", "1", "1", "0.25", "0.25", "2026-01-06 12:30:00"].map(cell);
    assert_eq!(text[..6], expected);
    assert_eq!(text[6], None);
    let row = analyst.query_one(made, &[]).await.unwrap();
    let kinds: Vec<_> = row.columns().iter().map(|column| column.type_().clone()).collect();
    assert_eq!(kinds, [Type::BOOL, Type::INT4, Type::INT8, Type::FLOAT4, Type::FLOAT8, Type::TIMESTAMP, Type::TEXT]);
    assert_eq!((row.get::<_, bool>(0), row.get::<_, i32>(1), row.get::<_, i64>(2)), (false, 1, 1));
    assert_eq!((row.get::<_, f32>(3), row.get::<_, f64>(4)), (0.25, 0.25));
    assert_eq!(row.get::<_, chrono::NaiveDateTime>(5), day(2026, 1, 6).and_hms_opt(12, 30, 0).unwrap());
    assert_eq!(row.get::<_, Option<String>>(6), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn parameters_of_every_type_are_bound() {
    let site = Site::city().await;
    let line = site.line("health-analyst", "epidemiology").await;
    let count = async |sql: &str, kind: Type, value: &(dyn ToSql + Sync)| {
        let statement = line.prepare_typed(sql, std::slice::from_ref(&kind)).await;
        let statement = statement.unwrap_or_else(|error| panic!("{sql} of {kind}: {}", told(&error)));
        let row = line.query_one(&statement, &[value]).await;
        row.unwrap_or_else(|error| panic!("{sql} of {kind}: {}", told(&error))).get::<_, i64>(0)
    };
    let grids = "SELECT count(*) FROM divisions WHERE level = $1";
    assert_eq!(count(grids, Type::INT2, &6_i16).await, 3);
    assert_eq!(count(grids, Type::INT4, &6_i32).await, 3);
    assert_eq!(count(grids, Type::INT8, &6_i64).await, 3);
    let upper = "SELECT count(*) FROM divisions WHERE level < $1";
    assert_eq!(count(upper, Type::FLOAT4, &2.5_f32).await, 2);
    assert_eq!(count(upper, Type::FLOAT8, &2.5_f64).await, 2);
    let named = "SELECT count(*) FROM divisions WHERE name = $1";
    for kind in [Type::TEXT, Type::VARCHAR, Type::BPCHAR, Type::NAME] {
        assert_eq!(count(named, kind.clone(), &"望江区").await, 1, "{kind}");
        assert_eq!(count(named, kind, &None::<&str>).await, 0);
    }
    assert_eq!(count(named, Type::TEXT, &"' OR true --").await, 0);
    let since = "SELECT count(*) FROM cases WHERE confirmed_date >= $1";
    assert_eq!(count(since, Type::DATE, &day(2026, 1, 6)).await, 6);
    let seen = "SELECT count(*) FROM visits WHERE visited_at >= $1";
    // Eight in the morning where the visits were.
    let eight: DateTime<Utc> = "2026-01-05T00:00:00Z".parse().unwrap();
    assert_eq!(count(seen, Type::TIMESTAMPTZ, &eight).await, 15);
    let women = "SELECT count(*) FROM cases WHERE (sex = '女') = $1";
    assert_eq!(count(women, Type::BOOL, &true).await, 7);

    // The same as text.
    for (sql, kind, value, expected) in [
        (grids, Type::INT2, "6", 3),
        (grids, Type::INT8, " 6 ", 3),
        (upper, Type::NUMERIC, "2.5", 2),
        (upper, Type::FLOAT8, "2.5e0", 2),
        (since, Type::DATE, "2026-01-06", 6),
        (seen, Type::TIMESTAMPTZ, "2026-01-05 00:00:00+00", 15),
        (seen, Type::TIMESTAMPTZ, "2026-01-05 08:00:00+08", 15),
        (women, Type::BOOL, "t", 7),
        (women, Type::BOOL, "no", 7),
        (named, Type::UNKNOWN, "望江区", 1),
    ] {
        assert_eq!(count(sql, kind.clone(), &Written(value)).await, expected, "{sql} of {kind}: {value}");
    }
    // What the client leaves open is what it is compared to.
    let statement = line.prepare("SELECT count(*) FROM cases WHERE confirmed_date >= $1 AND sex = $2").await.unwrap();
    assert_eq!(statement.params(), [Type::DATE, Type::TEXT]);
    let row = line.query_one(&statement, &[&day(2026, 1, 6), &"女"]).await.unwrap();
    // C009, C011, C013.
    assert_eq!(row.get::<_, i64>(0), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn values_that_cannot_be_read_are_named_and_not_said() {
    let site = Site::city().await;
    let line = site.line("health-analyst", "epidemiology").await;
    // Fits values of every type.
    let sql = "SELECT count(*) FROM divisions WHERE $1 IS NOT NULL";
    for (kind, value, code) in [
        (Type::INT2, "14888123456", "22P02"),
        (Type::INT4, "14888123456", "22P02"),
        (Type::INT8, "14888123456x", "22P02"),
        (Type::FLOAT8, "14888123456x", "22P02"),
        (Type::NUMERIC, "14888123456x", "22P02"),
        (Type::BOOL, "14888123456", "22P02"),
        (Type::UUID, "14888123456", "22P02"),
        (Type::DATE, "14888123456", "22007"),
        (Type::TIMESTAMPTZ, "14888123456x", "22007"),
    ] {
        let statement = line.prepare_typed(sql, std::slice::from_ref(&kind)).await.unwrap();
        let said = told(&line.query(&statement, &[&Written(value)]).await.unwrap_err());
        assert_eq!(said, format!("ERROR {code} the value of parameter $1 cannot be read as {}", kind.name()));
    }
    // A type that the hub has no values of.
    let statement = line.prepare_typed(sql, &[Type::POINT]).await.unwrap();
    let said = told(&line.query(&statement, &[&Written("14888123456")]).await.unwrap_err());
    assert!(said.starts_with("ERROR 0A000 ") && !said.contains("14888"), "{said}");
    assert_eq!(line.lines("SELECT count(*) FROM divisions").await, ["9"], "and the line goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prepared_statement_is_asked_for_the_purpose_of_the_moment() {
    let site = Site::city().await;
    let line = site.line("health-analyst", "epidemiology").await;
    let sales = line.prepare("SELECT sale_id FROM sales ORDER BY sale_id").await.unwrap();
    let buyers = line.prepare("SELECT buyer_id_no FROM sales").await.unwrap();
    let tokens = async || {
        let rows = line.query(&sales, &[]).await.unwrap();
        rows.iter().map(|row| row.get::<_, String>(0)).collect::<Vec<_>>()
    };
    let study = tokens().await;
    assert_eq!(study.len(), 6);
    assert_eq!(line.query(&buyers, &[]).await.unwrap().len(), 6);
    line.batch_execute("SET purpose = 'supply-planning'").await.unwrap();
    let planning = tokens().await;
    assert_eq!(planning.len(), 6);
    assert!(planning.iter().all(|token| !study.contains(token)), "other purposes see other tokens");
    let error = told(&line.query(&buyers, &[]).await.unwrap_err());
    assert!(error.starts_with("ERROR 42703 "), "{error}");
    line.batch_execute("SET purpose TO epidemiology").await.unwrap();
    assert_eq!(tokens().await, study);
    assert_eq!(line.query(&buyers, &[]).await.unwrap().len(), 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_statements_of_a_text_are_answered_in_order_until_one_fails() {
    let site = Site::city().await;
    let line = site.line("health-analyst", "epidemiology").await;
    let text = "SELECT count(*) FROM divisions; SHOW purpose;; -- nothing\nSELECT code FROM divisions WHERE level = 1;";
    assert_eq!(line.lines(text).await, ["9", "epidemiology", "42"]);
    assert_eq!(line.lines("").await, [""; 0]);
    assert_eq!(line.lines(" ; -- nothing").await, [""; 0]);

    let failing = "SELECT count(*) FROM divisions; SELECT nothing FROM divisions; SELECT count(*) FROM cases";
    let stream = line.simple_query_raw(failing).await.unwrap();
    let mut stream = std::pin::pin!(stream);
    let mut came = Vec::new();
    let error = loop {
        match futures::TryStreamExt::try_next(&mut stream).await {
            Ok(Some(message)) => came.push(message),
            Ok(None) => panic!("it did not fail"),
            Err(error) => break told(&error),
        }
    };
    assert!(error.starts_with("ERROR 42703 "), "{error}");
    assert_eq!(rows_of(&came), [[Some("9".to_owned())]]);
    assert!(matches!(came.last(), Some(SimpleQueryMessage::CommandComplete(1))));
    assert_eq!(line.lines("SELECT count(*) FROM divisions").await, ["9"]);
    // One at a time where they are prepared.
    let two = line.fails_prepared("SELECT count(*) FROM divisions; SELECT 1").await;
    assert!(two.starts_with("ERROR 42601 "), "{two}");
}

#[tokio::test(flavor = "multi_thread")]
async fn protected_answers_come_with_their_facts_and_exact_ones_without() {
    let site = Site::city().await;
    let line = site.line("health-analyst", "epidemiology").await;
    let exact = "SELECT confirmed_date, count(*) FROM cases GROUP BY 1";
    line.texts(exact).await;
    line.query(exact, &[]).await.unwrap();
    line.texts("SELECT 1; SHOW purpose; SELECT count(*) FROM information_schema.tables").await;
    assert_eq!(line.notices(), [""; 0]);

    let facts = |notices: Vec<String>| {
        let facts: Vec<_> = notices.into_iter().filter(|notice| notice.starts_with("protection: ")).collect();
        let [facts] = <[String; 1]>::try_from(facts).unwrap();
        assert!(facts.starts_with("protection: mode=protected threshold=14 noise_sd="), "{facts}");
        let part = |name: &str| facts.split_once(name).unwrap().1.split(';').next().unwrap().to_owned();
        (part("query_id="), part("log_index=").parse::<u64>().unwrap())
    };
    line.texts(PROTECTED).await;
    let (query, log) = facts(line.notices());
    line.query(PROTECTED, &[]).await.unwrap();
    let (other_query, other_log) = facts(line.notices());
    assert!(other_log > log && query != other_query);
    let officer = site.hub.token("compliance-officer");
    let entry = site.hub.get(&officer, &format!("/v1/log/entries?from={log}&count=1")).await.json();
    assert_eq!(entry["entries"][0]["query_id"], query.as_str());

    line.batch_execute(&format!("BEGIN; DECLARE c CURSOR FOR {PROTECTED}")).await.unwrap();
    facts(line.notices());
    line.texts("FETCH ALL FROM c").await;
    assert_eq!(line.notices(), [""; 0], "once is enough");
    // A client that asked not to hear of it does not.
    line.batch_execute("SET client_min_messages = warning").await.unwrap();
    line.texts(PROTECTED).await;
    assert_eq!(line.notices(), [""; 0]);
    line.batch_execute("SET client_min_messages TO DEFAULT").await.unwrap();
    line.texts(PROTECTED).await;
    facts(line.notices());
}

#[tokio::test(flavor = "multi_thread")]
async fn how_protected_answers_are_wished_for_is_a_setting() {
    let site = Site::open(TestHub::with_city_in_plain_numbers().await).await;
    let line = site.line("health-analyst", "epidemiology").await;
    let street = "SELECT division(grid_code, 'subdistrict') AS street, count(temperature) AS n FROM visits GROUP BY 1";
    assert_eq!(line.lines(street).await, ["420191001 16"]);
    let plain = line.prepare(street).await.unwrap();
    assert_eq!(plain.columns().len(), 2);
    line.batch_execute("SET gridhub.interval = on").await.unwrap();
    let wide = line.prepare(street).await.unwrap();
    assert!(wide.columns().len() > 2, "{:?}", wide.columns());
    let row = line.texts(street).await.remove(0);
    assert_eq!(row.len(), wide.columns().len());
    line.batch_execute("RESET gridhub.interval").await.unwrap();
    assert_eq!(line.lines(street).await, ["420191001 16"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_may_be_explained() {
    let site = Site::city().await;
    let line = site.line("health-analyst", "epidemiology").await;
    let plan = line.texts("EXPLAIN SELECT name FROM divisions").await;
    assert!(!plan.is_empty());
    let prepared = line.query("EXPLAIN SELECT name FROM divisions", &[]).await.unwrap();
    assert_eq!(prepared.len(), plan.len());
    let analyze = line.fails("EXPLAIN ANALYZE SELECT name FROM divisions").await;
    assert!(analyze.starts_with("ERROR 42501 ") && analyze.contains("rule: explain-form"), "{analyze}");
}

/// Whether two doors mean the same cell: numbers and instants may be written in other ways.
fn same_cell(one: &Option<String>, other: &Option<String>) -> bool {
    let (Some(one), Some(other)) = (one, other) else { return one == other };
    if one == other {
        return true;
    }
    if let (Ok(one), Ok(other)) = (one.parse::<f64>(), other.parse::<f64>()) {
        return one == other;
    }
    let instant = |text: &str| {
        let text = text.replacen(' ', "T", 1);
        let text = if text.len() > 3 && text[text.len() - 3..].starts_with(['+', '-']) { text + ":00" } else { text };
        DateTime::parse_from_rfc3339(&text).ok()
    };
    instant(one).is_some() && instant(one) == instant(other)
}

fn json_cell(cell: &Value) -> Option<String> {
    match cell {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_door_gives_the_same_cells() {
    let site = Site::city().await;
    let mut callers = vec![("health-analyst", "epidemiology", questions::analyst(day(2026, 1, 6)))];
    callers.push(("grid-worker", "case-management", questions::worker()));
    callers.push(("pharmacy-planner", "supply-planning", questions::planner()));
    for (caller, purpose, questions) in callers {
        let token = site.hub.token(caller);
        let line = site.line(caller, purpose).await;
        let mut flight = site.flight_session(caller, purpose).await;
        for (name, sql) in questions {
            let http = site.hub.ask_as(&token, purpose, &sql, "application/json").await;
            assert_eq!(http.status, 200, "{name}: {}", http.text());
            let http = http.json();
            let names: Vec<_> =
                http["columns"].as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap()).collect();
            let rows = http["rows"].as_array().unwrap().iter();
            let rows: Vec<Vec<_>> = rows.map(|row| row.as_array().unwrap().iter().map(json_cell).collect()).collect();
            let same = |door: &str, came: Vec<Vec<Option<String>>>| {
                let pairs = came.iter().zip(&rows).all(|(one, other)| {
                    one.len() == other.len() && one.iter().zip(other).all(|(one, other)| same_cell(one, other))
                });
                assert!(came.len() == rows.len() && pairs, "{door}, {name}: {sql}\n{came:?}\n{rows:?}");
            };
            same("simple", line.texts(&sql).await);
            let binary = line.query(sql.as_str(), &[]).await.unwrap_or_else(|error| panic!("{name}: {}", told(&error)));
            assert_eq!(binary.len(), rows.len(), "{name}");
            if let Some(row) = binary.first() {
                let columns: Vec<_> = row.columns().iter().map(|column| column.name()).collect();
                assert_eq!(columns, names, "{name}");
            }
            let info = flight.execute(sql.clone(), None).await.unwrap();
            same("flight", texts_of_batches(&batches_of_flight(&mut flight, &info).await));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_follow_the_types_that_a_client_names() {
    let site = Site::city().await;
    let line = site.line("health-analyst", "epidemiology").await;
    let sql = "SELECT level + $1 AS sum, $2 AS day FROM divisions WHERE code = '42'";
    let statement = line.prepare_typed(sql, &[Type::FLOAT8, Type::DATE]).await.unwrap();
    let kinds: Vec<_> = statement.columns().iter().map(|column| column.type_().clone()).collect();
    assert_eq!(kinds, [Type::FLOAT8, Type::DATE]);
    let day = NaiveDate::from_ymd_opt(1969, 12, 31).unwrap();
    let row = line.query_one(&statement, &[&1.5_f64, &day]).await.unwrap();
    assert_eq!((row.get::<_, f64>(0), row.get::<_, NaiveDate>(1)), (2.5, day));
    // A cast says it, too.
    let sql = "SELECT count(*) FROM divisions WHERE level <= $1::int AND DATE '1970-01-01' > $2::date";
    let row = line.query_one(sql, &[&2_i32, &day]).await.unwrap();
    assert_eq!(row.get::<_, i64>(0), 2);
}

//! What a statement is described as before it is asked: its answer must look like that.

use std::sync::Arc;

use arrow::datatypes::DataType;
use chrono::{NaiveDate, TimeDelta};
use datafusion::common::ScalarValue;
use gridhub::{
    demo::questions,
    disclose::{Small, Wishes},
    error::Error,
    hub::{Described, Hub, Question},
    identity::Credential,
};

use crate::support::{TestClock, TestHub};

fn asked(sql: &str, purpose: &str) -> Question {
    Question { purpose: Some(purpose.to_owned()), ..Question::new(sql, "test") }
}

/// Names and types of what was promised, and of what came.
async fn both(hub: &Hub, credential: &Credential, question: Question) -> (Vec<String>, Vec<String>) {
    let described = hub.describe(credential, &question).await.unwrap();
    let answered = hub.query(credential, question).await.unwrap();
    let promised = described.schema.fields().iter().map(|f| format!("{} {}", f.name(), f.data_type()));
    let columns = answered.released.columns.iter().zip(answered.released.schema.fields());
    (promised.collect(), columns.map(|(column, field)| format!("{} {}", column.name, field.data_type())).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_have_the_columns_they_were_described_with() {
    let city = TestHub::with_city().await;
    let hub = city.hub.as_ref().unwrap();
    let analyst = hub.authenticate(&city.token("health-analyst")).await.unwrap();
    let last = NaiveDate::from_ymd_opt(2026, 1, 6).unwrap();
    for (name, sql) in questions::analyst(last) {
        let (promised, came) = both(hub, &analyst, asked(&sql, "epidemiology")).await;
        assert_eq!(promised, came, "{name}: {sql}");
    }
    // With tokens, and protected with intervals and the level each number is of.
    let wished = Wishes { interval: true, small: Small::RollUp };
    let sql = "SELECT grid_code, count(DISTINCT id_no) AS n FROM visits WHERE temperature > 37 GROUP BY grid_code";
    for question in [
        asked("SELECT id_no, name, symptom_date FROM visits", "epidemiology"),
        asked("EXPLAIN SELECT * FROM divisions", "epidemiology"),
        Question { wishes: wished, ..asked(sql, "epidemiology") },
    ] {
        let sql = question.sql.clone();
        match hub.describe(&analyst, &question).await {
            Ok(_) => {
                let (promised, came) = both(hub, &analyst, question).await;
                assert_eq!(promised, came, "{sql}");
            }
            // A field this caller has not is as unknown when described as when asked for.
            Err(error) => assert_eq!(error.slug(), hub.query(&analyst, question).await.unwrap_err().slug(), "{sql}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn parameters_are_typed_by_what_they_are_compared_to() {
    let city = TestHub::with_city().await;
    let hub = city.hub.as_ref().unwrap();
    let analyst = hub.authenticate(&city.token("health-analyst")).await.unwrap();
    let sql =
        "SELECT confirmed_date, count(*) AS n FROM cases WHERE confirmed_date >= $1 AND sex = $2 GROUP BY 1 LIMIT $3";
    let described = hub.describe(&analyst, &asked(sql, "epidemiology")).await.unwrap();
    assert_eq!(described.parameters, [DataType::Date32, DataType::Utf8, DataType::Int64]);
    let params = vec![ScalarValue::Date32(Some(0)), ScalarValue::from("女"), ScalarValue::Int64(Some(5))];
    let question = Question { params, ..asked(sql, "epidemiology") };
    let answered = hub.query(&analyst, question).await.unwrap();
    assert_eq!(answered.released.schema.field(1).data_type(), described.schema.field(1).data_type());
    let untyped = hub.describe(&analyst, &asked("SELECT $2 AS two", "epidemiology")).await.unwrap();
    assert_eq!(untyped.parameters, [DataType::Utf8, DataType::Utf8]);
    let cast = "SELECT $1::int + level AS n FROM divisions WHERE $2::date < DATE '2026-01-01' AND $3::text = 'x'";
    let cast = hub.describe(&analyst, &asked(cast, "epidemiology")).await.unwrap();
    assert_eq!(cast.parameters, [DataType::Int32, DataType::Date32, DataType::Utf8]);
    // Arrays are of what their elements are compared to.
    let arrays = "SELECT code FROM divisions WHERE level = ANY ($1) AND name <> ALL ($2) AND level = ANY ($3::bigint[]) \
                  AND ($4 IS NULL OR code = ANY ($4))";
    let arrays = hub.describe(&analyst, &asked(arrays, "epidemiology")).await.unwrap();
    let list = |kind| DataType::new_list(kind, true);
    let wanted = [DataType::Int16, DataType::Utf8, DataType::Int64, DataType::Utf8].map(list);
    assert_eq!(arrays.parameters, wanted);
    // Who asks may name types; the columns follow them.
    let sql = "SELECT level + $1 AS sum, $2 AS text, $3 AS day FROM divisions";
    let params = vec![ScalarValue::Float64(None), ScalarValue::Null, ScalarValue::Date32(None)];
    let named = hub.describe(&analyst, &Question { params, ..asked(sql, "epidemiology") }).await.unwrap();
    assert_eq!(named.parameters, [DataType::Float64, DataType::Utf8, DataType::Date32]);
    let kinds: Vec<_> = named.schema.fields().iter().map(|field| field.data_type().clone()).collect();
    assert_eq!(kinds, named.parameters);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_is_not_described_is_recorded() {
    let city = TestHub::with_city().await;
    let hub = city.hub.as_ref().unwrap();
    let analyst = hub.authenticate(&city.token("health-analyst")).await.unwrap();
    let size = || hub.checkpoint().lines().nth(1).unwrap().parse::<u64>().unwrap();
    let before = size();
    hub.describe(&analyst, &asked("SELECT name FROM divisions", "epidemiology")).await.unwrap();
    assert_eq!(size(), before);
    let refused = hub.describe(&analyst, &asked("SELECT temperature FROM visits", "epidemiology")).await;
    assert!(matches!(refused, Err(Error::Refused(_))), "{refused:?}");
    assert_eq!(size(), before + 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_question_ends_and_is_recorded_as_such() {
    let city = TestHub::with_city().await;
    let hub = city.hub.as_ref().unwrap();
    let analyst = hub.authenticate(&city.token("health-analyst")).await.unwrap();
    let long = "SELECT count(*) FROM divisions a, divisions b, divisions c, divisions d, divisions e, divisions f, \
                divisions g, divisions h WHERE a.name < b.name AND c.name < d.name AND e.name < f.name AND g.name < h.name";
    let question = asked(long, "epidemiology");
    let stop = question.bounds.stop.clone();
    let asking = hub.query(&analyst, question);
    let (outcome, ()) = tokio::join!(asking, async {
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        stop.cancel();
    });
    assert!(matches!(outcome, Err(Error::Cancelled)), "{outcome:?}");
    let officer = hub.authenticate(&city.token("compliance-officer")).await.unwrap();
    let entries = hub.log_entries(&officer, Some("audit"), 0, 1_000).await.unwrap();
    assert!(entries.iter().any(|entry| serde_json::to_string(entry).unwrap().contains("\"cancelled\"")));
    // A deadline of its own ends one too.
    let mut hurried = asked(long, "epidemiology");
    hurried.bounds.deadline = Some(std::time::Duration::from_millis(300));
    let outcome = hub.query(&analyst, hurried).await;
    assert!(matches!(outcome, Err(Error::Timeout(_))), "{outcome:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_credential_ends_when_its_token_does() {
    let city = TestHub::with_city().await;
    let hub = city.hub.as_ref().unwrap();
    let token = city.token("health-analyst");
    let analyst = hub.authenticate(&token).await.unwrap();
    hub.renew(&analyst).unwrap();
    gridhub::identity::revoke(&city.metadata(), &analyst.token_id, city.clock.now()).unwrap();
    assert!(matches!(hub.renew(&analyst), Err(Error::Unauthenticated)));
    assert!(matches!(
        hub.authenticate_as("grid-worker", &city.token("health-analyst")).await,
        Err(Error::Unauthenticated)
    ));
    hub.authenticate_as("health-analyst", &city.token("health-analyst")).await.unwrap();
}

const OPEN: &str = "SELECT case_id, confirmed_date FROM cases WHERE sex = '女'";
const BOUND: &str = "SELECT case_id FROM cases WHERE sex = $1 LIMIT $2";
const PROTECTED: &str = "SELECT sex, count(DISTINCT id_no) AS n FROM cases WHERE severity IS NULL GROUP BY 1";

/// What is remembered is given again as it is.
async fn is_remembered(hub: &Hub, credential: &Credential, question: impl Fn() -> Question) -> bool {
    let described = async || hub.describe(credential, &question()).await.unwrap();
    let (first, second): (Arc<Described>, Arc<Described>) = (described().await, described().await);
    assert_eq!((&first.schema, &first.columns), (&second.schema, &second.columns));
    assert_eq!(first.parameters, second.parameters);
    Arc::ptr_eq(&first, &second)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_described_again_is_remembered_for_who_asked_it_alone() {
    let city = TestHub::with_city().await;
    let hub = city.hub.as_ref().unwrap();
    let analyst = hub.authenticate(&city.token("health-analyst")).await.unwrap();
    for sql in [OPEN, BOUND, PROTECTED] {
        assert!(is_remembered(hub, &analyst, || asked(sql, "epidemiology")).await, "{sql}");
    }
    for sql in [
        "SELECT case_id FROM cases WHERE confirmed_date < now()",
        "SELECT case_id, current_date FROM cases",
        "EXPLAIN SELECT case_id FROM cases",
        "SELECT 1 AS one",
        // It may pass with a value, and does not with NULL.
        "SELECT sex, count(*) FROM cases WHERE severity LIKE $1 GROUP BY 1",
    ] {
        assert!(!is_remembered(hub, &analyst, || asked(sql, "epidemiology")).await, "{sql}");
    }
    let wished =
        || Question { wishes: Wishes { interval: true, ..Wishes::default() }, ..asked(PROTECTED, "epidemiology") };
    assert!(!is_remembered(hub, &analyst, wished).await);
    let plain = hub.describe(&analyst, &asked(PROTECTED, "epidemiology")).await.unwrap();
    let with_ends = hub.describe(&analyst, &wished()).await.unwrap();
    assert!(with_ends.schema.fields().len() > plain.schema.fields().len());

    // Types that who asks names make another question of it.
    let sql = "SELECT level + $1 AS sum FROM divisions";
    let named = |kind: ScalarValue| Question { params: vec![kind], ..asked(sql, "epidemiology") };
    let described = async |question: Question| hub.describe(&analyst, &question).await.unwrap();
    for (kind, expected) in [
        (ScalarValue::Float64(None), DataType::Float64),
        (ScalarValue::Int64(None), DataType::Int64),
        (ScalarValue::Float64(None), DataType::Float64),
    ] {
        assert_eq!(described(named(kind)).await.parameters, [expected]);
    }
    // Nobody is given what others asked, or what held before policies decided anew.
    let divisions = || asked("SELECT name FROM divisions", "epidemiology");
    let (first, again) = (described(divisions()).await, described(divisions()).await);
    let other_purpose = described(asked("SELECT name FROM divisions", "supply-planning")).await;
    let epidemiologist = hub.authenticate(&city.token("cdc-epidemiologist")).await.unwrap();
    let others = hub.describe(&epidemiologist, &divisions()).await.unwrap();
    city.clock.step(TimeDelta::hours(2));
    let later = described(divisions()).await;
    assert!(Arc::ptr_eq(&first, &again));
    for other in [other_purpose, others, later] {
        assert!(!Arc::ptr_eq(&first, &other));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_description_follows_from_statement_and_view_alone() {
    let told = async |site: &TestHub| {
        let hub = site.hub.as_ref().unwrap();
        let analyst = hub.authenticate(&site.token("health-analyst")).await.unwrap();
        let mut told = Vec::new();
        for sql in [OPEN, BOUND, PROTECTED] {
            let described = hub.describe(&analyst, &asked(sql, "epidemiology")).await.unwrap();
            told.push((described.parameters.clone(), described.schema.clone(), described.columns.clone()));
        }
        told
    };
    // Without a row, with all of them, and once something was released.
    let empty = told(&TestHub::start().await).await;
    let mut city = TestHub::with_city().await;
    assert_eq!(told(&city).await, empty);
    assert_eq!(city.ask("health-analyst", "epidemiology", PROTECTED).await.status, 200);
    assert_eq!(told(&city).await, empty);
    city.restart().await;
    assert_eq!(told(&city).await, empty);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_is_recorded_each_time_and_what_is_remembered_is_counted() {
    let clock = TestClock::at("2026-01-07T01:00:00Z");
    let city = TestHub::with(clock, |opening| opening.throttle.per_second = 4).await;
    let hub = city.hub.as_ref().unwrap();
    let analyst = hub.authenticate(&city.token("health-analyst")).await.unwrap();
    let size = || hub.checkpoint().lines().nth(1).unwrap().parse::<u64>().unwrap();
    let before = size();
    for times in 1..3 {
        let refused = hub.describe(&analyst, &asked("SELECT temperature FROM visits", "epidemiology")).await;
        assert!(matches!(refused, Err(Error::Refused(_))), "{refused:?}");
        assert_eq!(size(), before + 2 * times);
    }
    // Twice as many at once as in a second, and then those that a second lets in.
    let mut told = Ok(());
    for _ in 0..10_000 {
        told = hub.describe(&analyst, &asked(OPEN, "epidemiology")).await.map(drop);
        if told.is_err() {
            break;
        }
    }
    assert!(matches!(told, Err(Error::RateLimited(_))), "{told:?}");
}

//! What a statement is described as before it is asked: its answer must look like that.

use arrow::datatypes::DataType;
use chrono::NaiveDate;
use datafusion::common::ScalarValue;
use gridhub::{
    demo::questions,
    disclose::{Small, Wishes},
    error::Error,
    hub::{Hub, Question},
    identity::Credential,
};

use crate::support::TestHub;

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

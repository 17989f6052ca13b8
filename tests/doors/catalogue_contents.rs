//! Everything that the tables of the catalogue hold, read from end to end as three callers: no name that the hub's own
//! catalogue does not tell them, and the columns that answers have.

use std::{collections::BTreeSet, fs};

use arrow::datatypes::DataType;
use gridhub::{
    dataset::contract,
    error::{Error, Result},
    hub::{Hub, Question},
    identity::Credential,
};
use serde_json::Value;

use super::support::texts_of_batches;
use crate::support::{TestHub, repository};

/// Callers whose views differ, their purposes, and names that each of them must not read anywhere.
const CALLERS: [(&str, &str, &[&str]); 3] = [
    ("health-analyst", "epidemiology", &["buyer_phone", "buyer_name", "hub-admin"]),
    ("pharmacy-planner", "supply-planning", &["residents", "temperature", "household_id", "health-analyst"]),
    ("grid-worker", "case-management", &["sales", "ct_value", "vaccine", "cdc-epidemiologist", "grid-worker-b"]),
];

/// The rows of a statement about the catalogue as text.
async fn rows(hub: &Hub, caller: &Credential, purpose: &str, sql: &str) -> Result<Vec<Vec<Option<String>>>> {
    let question = Question { purpose: Some(purpose.to_owned()), ..Question::new(sql, "test") };
    let found = hub.look_up(caller, question).await?;
    Ok(texts_of_batches(&found.batches))
}

/// The tables of the catalogue, as the catalogue lists them.
async fn tables(hub: &Hub, caller: &Credential, purpose: &str) -> Vec<String> {
    let sql = "SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
               WHERE n.nspname IN ('pg_catalog', 'information_schema') ORDER BY 1, 2";
    let rows = rows(hub, caller, purpose, sql).await.unwrap();
    let named = |row: Vec<Option<String>>| row.into_iter().flatten().collect::<Vec<_>>().join(".");
    rows.into_iter().map(named).collect()
}

/// The words of a text, names in one piece.
fn words(text: &str) -> BTreeSet<String> {
    let parts = text.split(|letter: char| !letter.is_alphanumeric() && letter != '_' && letter != '-');
    parts.filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

/// Every name of a dataset, a field, an agency, a caller or a declaration.
fn names() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for dataset in contract::load_folder(&repository().join("schemas")).unwrap().values() {
        names.extend(dataset.name.to_string().split('.').map(str::to_owned));
        names.extend(dataset.fields.iter().map(|field| field.name.clone()));
    }
    let entities = fs::read_to_string(repository().join("policies/entities.json")).unwrap();
    let entities: Vec<Value> = serde_json::from_str(&entities).unwrap();
    let ids = entities.iter().map(|entity| &entity["uid"]);
    let named = ids.filter(|id| id["type"] != "Role").map(|id| id["id"].as_str().unwrap().to_owned());
    names.extend(named);
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn no_table_of_the_catalogue_tells_more_than_the_hub() {
    let city = TestHub::with_city().await;
    let hub = city.hub.as_ref().unwrap();
    // What stands in every PostgreSQL, whoever asks.
    let system = fs::read_to_string(repository().join("src/query/catalog/relations.txt")).unwrap();
    let count = system.lines().count();
    for (caller, purpose, hidden) in CALLERS {
        let credential = hub.authenticate(&city.token(caller)).await.unwrap();
        let listed = serde_json::to_string(&hub.catalogue(&credential, Some(purpose)).unwrap()).unwrap();
        let types = rows(hub, &credential, purpose, "SELECT typname FROM pg_type").await.unwrap();
        let types: Vec<String> = types.into_iter().flatten().flatten().collect();
        let known = words(&format!("{listed} {system} {} {caller}", types.join(" ")));
        let unknown: BTreeSet<String> = names().difference(&known).cloned().collect();
        for name in hidden {
            assert!(unknown.contains(*name), "{caller} may know `{name}`, or nothing is called so");
        }
        assert!(unknown.len() > 15, "{caller}: {unknown:?}");
        let tables = tables(hub, &credential, purpose).await;
        assert_eq!(tables.len(), count, "{caller}");
        let (mut leaked, mut seen) = (BTreeSet::new(), BTreeSet::new());
        for table in &tables {
            let (schema, name) = table.split_once('.').unwrap();
            let sql = format!("SELECT * FROM {schema}.\"{name}\"");
            let rows = rows(hub, &credential, purpose, &sql).await.unwrap_or_else(|fault| panic!("{table}: {fault}"));
            let words: BTreeSet<String> = rows.iter().flatten().flatten().flat_map(|cell| words(cell)).collect();
            leaked.extend(words.intersection(&unknown).map(|word| format!("{table} knows {word}")));
            seen.extend(words);
        }
        assert!(leaked.is_empty(), "{caller}: {leaked:?}");
        // The search looks where names are.
        for dataset in hub.shapes(&credential, Some(purpose)).unwrap() {
            for name in [&dataset.agency, &dataset.table] {
                assert!(seen.contains(name), "{caller} does not find {name}");
            }
            for field in dataset.schema.fields() {
                assert!(seen.contains(field.name()), "{caller} does not find {}", field.name());
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_are_those_of_answers() {
    let city = TestHub::with_city().await;
    let hub = city.hub.as_ref().unwrap();
    for (caller, purpose, _) in CALLERS {
        let credential = hub.authenticate(&city.token(caller)).await.unwrap();
        let mut expected = Vec::new();
        for shape in hub.shapes(&credential, Some(purpose)).unwrap() {
            for (field, place) in shape.schema.fields().iter().zip(1..) {
                let (kind, digits) = match field.data_type() {
                    DataType::Utf8 => ("text", None),
                    DataType::Boolean => ("boolean", None),
                    DataType::Int16 => ("smallint", None),
                    DataType::Int32 => ("integer", None),
                    DataType::Int64 => ("bigint", None),
                    DataType::Float64 => ("double precision", None),
                    DataType::Date32 => ("date", None),
                    DataType::Timestamp(_, Some(_)) => ("timestamp with time zone", None),
                    DataType::Decimal128(precision, scale) => ("numeric", Some((*precision, *scale))),
                    other => panic!("{caller}: {}.{} is {other}", shape.table, field.name()),
                };
                expected.push(vec![
                    Some(shape.agency.clone()),
                    Some(shape.table.clone()),
                    Some(field.name().clone()),
                    Some(format!("{place}")),
                    Some(kind.to_owned()),
                    digits.map(|(precision, _)| precision.to_string()),
                    digits.map(|(_, scale)| scale.to_string()),
                ]);
            }
        }
        expected.sort();
        assert!(expected.len() > 5, "{caller}");
        let sql = "SELECT table_schema, table_name, column_name, ordinal_position, data_type, numeric_precision, \
                   numeric_scale FROM information_schema.columns";
        let mut found = rows(hub, &credential, purpose, sql).await.unwrap();
        found.sort();
        assert_eq!(found, expected, "{caller}");
        // Attributes say the same in PostgreSQL's own words.
        let sql = "SELECT n.nspname, c.relname, a.attname, a.attnum, format_type(a.atttypid, a.atttypmod) \
                   FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid \
                   JOIN pg_namespace n ON n.oid = c.relnamespace \
                   WHERE n.nspname NOT IN ('pg_catalog', 'information_schema')";
        let mut found = rows(hub, &credential, purpose, sql).await.unwrap();
        found.sort();
        let worded = |row: Vec<Option<String>>| match row.as_slice() {
            [names @ .., Some(kind), Some(precision), Some(scale)] => {
                [names, &[Some(format!("{kind}({precision},{scale})"))]].concat()
            }
            [rest @ .., _, _] => rest.to_vec(),
            _ => Vec::new(),
        };
        assert_eq!(found, expected.into_iter().map(worded).collect::<Vec<_>>(), "{caller}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_datasets_are_not_in_the_catalogue() {
    let city = TestHub::with_city().await;
    let hub = city.hub.as_ref().unwrap();
    for (caller, purpose, _) in CALLERS {
        let credential = hub.authenticate(&city.token(caller)).await.unwrap();
        for shape in hub.shapes(&credential, Some(purpose)).unwrap() {
            // A table that is there and one that is not are as unknown here.
            for table in [format!("{}.{}", shape.agency, shape.table), "nobody.nothing".to_owned()] {
                let fault = rows(hub, &credential, purpose, &format!("SELECT * FROM {table}")).await.unwrap_err();
                assert!(matches!(&fault, Error::UnknownTable(name) if *name == table), "{caller}: {fault:?}");
            }
        }
        for sql in ["SELECT * FROM pg_stat_activity", "SELECT * FROM pg_locks", "SELECT * FROM pg_auth_members"] {
            assert!(rows(hub, &credential, purpose, sql).await.unwrap().is_empty(), "{caller}: {sql}");
        }
        let roles = rows(hub, &credential, purpose, "SELECT rolname FROM pg_roles").await.unwrap();
        assert_eq!(roles, [[Some(caller.to_owned())]]);
        let sql = "SELECT 'health-uploader'::regrole";
        assert!(rows(hub, &credential, purpose, sql).await.is_err(), "{caller}");
    }
}

//! TPC-H through the hub: pushed, checked, stored, asked through both gates, and answered as the engine alone answers
//! over the same rows in memory. `GRIDHUB_TPCH_SCALE` makes it larger.
#![expect(clippy::disallowed_types, reason = "the ungoverned engine is the yardstick here")]

mod data;

use std::{collections::BTreeMap, sync::Arc};

use arrow::{
    array::{AsArray, StringArray},
    datatypes::DataType,
    record_batch::RecordBatch,
};
use datafusion::{
    config::Dialect,
    datasource::MemTable,
    error::DataFusionError,
    prelude::{SessionConfig, SessionContext},
};
use gridhub::{
    hub::{Hub, Question},
    validate::canonical::holds_identifier,
};

use data::{CALLER, Table};

/// What an engine answers from statistics, or with a limit that it pushes into a scan of no columns.
const WHOLE: &[&str] = &[
    "SELECT count(*) FROM lineitem",
    "SELECT min(o_orderdate), max(o_orderdate), count(o_orderkey) FROM orders",
    "SELECT count(*) FROM orders WHERE o_orderdate < DATE '1995-01-01'",
    "SELECT 23 AS c FROM nation LIMIT 1",
    "SELECT count(*) FROM (SELECT 23 AS c FROM nation ORDER BY c LIMIT 2) t",
];

#[test]
fn answers_are_those_of_the_engine_alone() {
    // Planning recurses deeply, all the more so where nothing is optimised.
    let runtime = tokio::runtime::Builder::new_multi_thread().thread_stack_size(64 << 20).enable_all().build().unwrap();
    runtime.block_on(compare(data::scale(0.01)));
}

async fn compare(scale: f64) {
    let tables = data::tables(scale);
    let folder = tempfile::tempdir().unwrap();
    let opening = data::opening(folder.path(), &tables);
    let data_folder = opening.data.clone();
    let hub = Hub::open(opening).await.unwrap();
    let analyst = data::credential(&hub, &data_folder, CALLER).await;

    let plain = plain_session();
    for table in &tables {
        let mut warnings: BTreeMap<String, u64> = BTreeMap::new();
        for batch in &table.batches {
            let receipt = data::push(&hub, &analyst, &format!("tpch.{}", table.name), batch).await;
            assert_eq!(receipt.rows_accepted, batch.num_rows() as u64, "{receipt:?}");
            for (kind, rows) in receipt.warnings {
                *warnings.entry(kind).or_default() += rows;
            }
        }
        let (kept, withheld) = as_kept(table);
        let told = warnings.remove("identifier_in_text").unwrap_or_default();
        assert_eq!((told, warnings.len()), (withheld, 0), "{}: {warnings:?}", table.name);
        let kept = MemTable::try_new(kept[0].schema(), vec![kept]).unwrap();
        plain.register_table(table.name, Arc::new(kept)).unwrap();
    }

    for sql in WHOLE {
        let governed = hub.query(&analyst, question((*sql).into())).await.unwrap().released;
        let expected = ask(&plain, (*sql).into()).await.unwrap().1;
        assert_eq!(data::cells(&governed.batches), data::cells(&expected), "{sql}");
    }
    let mut with_rows = 0;
    for query in data::queries(scale) {
        let name = query.name;
        let answered = hub.query(&analyst, question(query.sql.clone())).await;
        let released = answered.unwrap_or_else(|error| panic!("{name}: {error:?}")).released;
        assert_eq!(released.protection.mode, "exact", "{name}");
        assert!(released.columns.iter().all(|column| column.exposure == "clear"), "{name}: {:?}", released.columns);

        let (columns, batches) = ask(&plain, query.sql).await.unwrap_or_else(|error| panic!("{name}: {error}"));
        let released_columns: Vec<_> = released.columns.iter().map(|column| column.name.clone()).collect();
        assert_eq!(released_columns, columns, "{name}");
        let (mut governed, mut expected) = (data::cells(&released.batches), data::cells(&batches));
        if !query.ordered {
            governed.sort();
            expected.sort();
        }
        assert_eq!(governed, expected, "{name}");
        with_rows += usize::from(!governed.is_empty());
    }
    // A few ask for things so rare that a small scale has none.
    assert!(with_rows >= 15, "only {with_rows} of 22 questions have rows");
}

fn question(sql: String) -> Question {
    Question::new(sql, "test")
}

fn plain_session() -> SessionContext {
    let mut config = SessionConfig::new();
    config.options_mut().sql_parser.dialect = Dialect::PostgreSQL;
    SessionContext::new_with_config(config)
}

/// Asks the engine alone, on a thread with room for planning.
async fn ask(plain: &SessionContext, sql: String) -> Result<(Vec<String>, Vec<RecordBatch>), DataFusionError> {
    let plain = plain.clone();
    let asking = tokio::spawn(async move {
        let answer = plain.sql(&sql).await?;
        let columns = answer.schema().fields().iter().map(|field| field.name().clone()).collect();
        Ok::<_, DataFusionError>((columns, answer.collect().await?))
    });
    asking.await.unwrap()
}

/// The rows as the hub keeps their text, and how many values it withholds: white space around a text goes, and a text
/// that reads like an identifier becomes NULL. No contract turns that off, and TPC-H's addresses, random letters and
/// digits, hold a credit code with a right check by chance about once in ten thousand.
fn as_kept(table: &Table) -> (Vec<RecordBatch>, u64) {
    let mut withheld = 0;
    let mut keep = |column: &str, typed: &str| -> Option<String> {
        let typed = typed.trim();
        if !holds_identifier(typed, |_| false) {
            return (!typed.is_empty()).then(|| typed.to_owned());
        }
        assert!(column.ends_with("_address"), "{column} holds what reads like an identifier: {typed}");
        withheld += 1;
        None
    };
    let mut kept = Vec::new();
    for batch in &table.batches {
        let schema = batch.schema();
        let mut columns = batch.columns().to_vec();
        for (field, column) in schema.fields().iter().zip(&mut columns) {
            if *field.data_type() == DataType::Utf8 {
                let texts = column.as_string::<i32>().iter().map(|typed| keep(field.name(), typed?));
                *column = Arc::new(texts.collect::<StringArray>());
            }
        }
        kept.push(RecordBatch::try_new(schema, columns).unwrap());
    }
    (kept, withheld)
}

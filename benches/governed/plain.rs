//! The ungoverned side: DataFusion as an engineer without the hub would set it up over the same Delta tables. It knows
//! contracts only to write the views that such an engineer would write by hand: local time, and the current state of
//! what is corrected.
#![expect(clippy::disallowed_types, reason = "the ungoverned engine is the yardstick here")]

use std::{path::Path, sync::Arc, time::Instant};

use arrow::record_batch::RecordBatch;
use datafusion::{
    config::Dialect,
    error::{DataFusionError, Result},
    execution::SessionStateBuilder,
    prelude::{ParquetReadOptions, SessionConfig, SessionContext},
};
use deltalake_core::{
    DeltaTable,
    delta_datafusion::{DeltaSessionConfig, planner::DeltaPlanner},
    ensure_table_uri, open_table,
};
use gridhub::dataset::{ChangeMode, Dataset, Datasets, FieldType};

/// A session over all tables of a hub's data folder.
#[derive(Clone)]
pub struct Plain(SessionContext);

impl Plain {
    /// Opens the tables below `folder` in so many partitions. Everything else is as Delta sets it up, but for the
    /// dialect, and for the case of identifiers, which PostgreSQL folds.
    pub async fn open(folder: &Path, datasets: &Datasets, partitions: usize) -> Result<Self> {
        let config: SessionConfig = DeltaSessionConfig::default().into();
        let mut config = config
            .with_target_partitions(partitions)
            .set_bool("datafusion.sql_parser.enable_ident_normalization", true);
        config.options_mut().sql_parser.dialect = Dialect::PostgreSQL;
        let context = session(config);
        for dataset in datasets.values() {
            let location = ensure_table_uri(folder.join(dataset.name.to_string()).to_string_lossy()).unwrap();
            let table = open_table(location).await.unwrap();
            let stored = table.table_provider().with_session(Arc::new(context.state())).await.unwrap();
            let name = dataset.name.table.as_str();
            match view(dataset) {
                None => context.register_table(name, stored)?,
                Some(sql) => {
                    context.register_table(stored_name(dataset), stored)?;
                    let view = context.sql(&sql).await?.into_view();
                    context.register_table(name, view)?
                }
            };
        }
        Ok(Self(context))
    }

    /// Answers a question, on a thread of the runtime as the hub does.
    pub async fn ask(&self, sql: &str) -> Result<Vec<RecordBatch>> {
        let (context, sql) = (self.0.clone(), sql.to_owned());
        tokio::spawn(async move { context.sql(&sql).await?.collect().await }).await.unwrap()
    }

    /// How long it takes to bind a question to tables, to optimise it and to plan its execution, in milliseconds.
    pub async fn plan(&self, sql: &str) -> Result<[f64; 3]> {
        let (context, sql) = (self.0.clone(), sql.to_owned());
        let planning = tokio::spawn(async move {
            let started = Instant::now();
            let (state, plan) = context.sql(&sql).await?.into_parts();
            let bound = super::milliseconds(started);
            let plan = state.optimize(&plan)?;
            let optimised = super::milliseconds(started);
            state.query_planner().create_physical_plan(&plan, &state).await?;
            Ok::<_, DataFusionError>([bound, optimised - bound, super::milliseconds(started) - optimised])
        });
        planning.await.unwrap()
    }
}

/// A session that plans as Delta would have it.
fn session(config: SessionConfig) -> SessionContext {
    let state = SessionStateBuilder::new()
        .with_default_features()
        .with_config(config)
        .with_query_planner(DeltaPlanner::new())
        .build();
    SessionContext::new_with_state(state)
}

fn stored_name(dataset: &Dataset) -> String {
    format!("stored_{}", dataset.name.table)
}

/// What stands between stored rows and a question where both are not the same. Keys are not told apart by source, as
/// the hub does: here every dataset has one.
fn view(dataset: &Dataset) -> Option<String> {
    let zoned = dataset.stored_fields().any(|field| field.kind == FieldType::Timestamp);
    if dataset.change == ChangeMode::Append && !zoned {
        return None;
    }
    let shown: Vec<_> = dataset
        .stored_fields()
        .map(|field| match (field.name.as_str(), field.kind) {
            (name, FieldType::Timestamp) => {
                let zone = &dataset.timezone;
                format!("arrow_cast(\"{name}\", 'Timestamp(Microsecond, Some(\"{zone}\"))') AS \"{name}\"")
            }
            (name, _) => format!("\"{name}\""),
        })
        .collect();
    let (shown, stored) = (shown.join(", "), stored_name(dataset));
    let (order_by, operation) = match &dataset.change {
        ChangeMode::Append => return Some(format!("SELECT {shown} FROM {stored}")),
        ChangeMode::Upsert { order_by } => (order_by, None),
        ChangeMode::Changes { order_by, operation } => (order_by, Some(operation)),
    };
    let mut record = Vec::new();
    for key in &dataset.key {
        record.push(format!("\"{key}\""));
        // A row without a key is a record of its own.
        if dataset.field(key).is_some_and(|field| !field.required) {
            record.push(format!("CASE WHEN \"{key}\" IS NULL THEN __digest END"));
        }
    }
    let mut newest_first: Vec<_> = order_by.iter().map(|field| format!("\"{field}\" DESC NULLS LAST")).collect();
    newest_first.extend(["__arrival DESC".to_owned(), "__digest DESC".to_owned()]);
    let newest_first = newest_first.join(", ");
    let place_in =
        |part: &[String], order: &str| format!("row_number() OVER (PARTITION BY {} ORDER BY {order})", part.join(", "));
    let kept = operation.map(|field| format!("\"{field}\" IS DISTINCT FROM 'D'"));
    let gone = kept.as_ref().map(|kept| format!(" AND {kept}")).unwrap_or_default();
    let place = dataset.territory.as_ref().filter(|field| !dataset.key.contains(field));
    let Some((place, kept)) = place.zip(kept) else {
        let newest = place_in(&record, &newest_first);
        let numbered = format!("(SELECT *, {newest} AS __newest FROM {stored})");
        return Some(format!("SELECT {shown} FROM {numbered} AS numbered WHERE __newest = 1{gone}"));
    };
    // What is deleted in one place stands in another.
    let there = place_in(&[record.clone(), vec![format!("\"{place}\"")]].concat(), &newest_first);
    let newest = place_in(&record, &format!("{kept} DESC, {newest_first}"));
    let numbered = format!("(SELECT *, {there} AS __newest_there, {newest} AS __newest FROM {stored})");
    Some(format!("SELECT {shown} FROM {numbered} AS numbered WHERE __newest = 1 AND __newest_there = 1{gone}"))
}

/// Rewrites a Parquet file as a Delta table as the engine does it, with as many partitions as there are cores. Returns
/// how many rows were written.
pub async fn rewrite(file: &Path, folder: &Path) -> usize {
    std::fs::create_dir_all(folder).unwrap();
    let context = session(DeltaSessionConfig::default().into());
    let rows = context.read_parquet(file.to_str().unwrap(), ParquetReadOptions::default()).await.unwrap();
    let plan = rows.logical_plan().clone();
    let table = DeltaTable::try_from_url(ensure_table_uri(folder.to_str().unwrap()).unwrap()).await.unwrap();
    let table =
        table.write(Vec::new()).with_input_plan(plan).with_session_state(Arc::new(context.state())).await.unwrap();
    let files = table.snapshot().unwrap().log_data();
    files.iter().map(|file| file.num_records().unwrap_or_default()).sum()
}

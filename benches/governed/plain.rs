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
    prelude::{SessionConfig, SessionContext},
};
use deltalake_core::{
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
        let state = SessionStateBuilder::new()
            .with_default_features()
            .with_config(config)
            .with_query_planner(DeltaPlanner::new())
            .build();
        let context = SessionContext::new_with_state(state);
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
    let gone = operation.map(|field| format!(" AND \"{field}\" IS DISTINCT FROM 'D'")).unwrap_or_default();
    Some(format!(
        "SELECT {shown} FROM (SELECT *, row_number() OVER (PARTITION BY {} ORDER BY {}) AS __newest FROM {stored}) \
         AS numbered WHERE __newest = 1{gone}",
        record.join(", "),
        newest_first.join(", "),
    ))
}

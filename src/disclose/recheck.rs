//! The gate's second look, at the plan as the optimizer left it: nothing sealed is used outside a release, and
//! nothing stands inside one but what the gate put there. What the gate decided on the plan as it was written
//! must still hold of the plan that runs; a plan of which it does not is a fault of the hub and is not run.

use datafusion::{
    common::{
        Column,
        tree_node::{TreeNode, TreeNodeRecursion},
    },
    logical_expr::{Expr, JoinType, LogicalPlan},
};

use crate::{
    error::{Error, Result},
    policy::Exposure,
    query::{FOREIGN, GovernedTable, ReleasedNode, SUBJECT},
    release::aggregate::is_cell_aggregate,
};

/// Checks a whole plan.
///
/// # Errors
/// [`Error::Internal`].
pub fn check(plan: &LogicalPlan) -> Result<()> {
    match sealed_columns(plan)?.contains(&true) {
        true => Err(broken("a sealed column comes out of it")),
        false => Ok(()),
    }
}

/// Which columns of a plan outside any release are sealed.
fn sealed_columns(plan: &LogicalPlan) -> Result<Vec<bool>> {
    let columns = plan.schema().fields().len();
    if let Some(inputs) = released(plan) {
        inputs.into_iter().try_for_each(is_of_cells)?;
        return Ok(vec![false; columns]);
    }
    if let LogicalPlan::TableScan(scan) = plan {
        let Some(table) = GovernedTable::behind(&scan.source) else { return Ok(vec![false; columns]) };
        if !table.rows_open() || table.carries_subjects() {
            return Err(broken("rows that may only be counted stand outside a release"));
        }
        let sealed = |name: &str| table.view().fields.iter().any(|(n, e)| n == name && *e == Exposure::Aggregate);
        let sealed_filter = scan.filters.iter().flat_map(Expr::column_refs).any(|column| sealed(&column.name));
        return match sealed_filter {
            true => Err(broken("a scan is filtered by a sealed column")),
            false => Ok(scan.projected_schema.fields().iter().map(|field| sealed(field.name())).collect()),
        };
    }
    let mut below = Vec::new();
    for input in plan.inputs() {
        for ((qualifier, field), sealed) in input.schema().iter().zip(sealed_columns(input)?) {
            below.push((Column::new(qualifier.cloned(), field.name()), sealed));
        }
    }
    // A subquery is a query of its own.
    let mut subqueries = Ok(());
    let look = plan.apply_subqueries(|subquery| {
        subqueries = subqueries.clone().and_then(|()| check(subquery));
        Ok(TreeNodeRecursion::Continue)
    });
    look.map_err(Error::internal)?;
    subqueries?;
    let is_sealed = |column: &Column| below.iter().any(|(known, sealed)| *sealed && known == column);
    let uses_sealed = |expr: &Expr| expr.column_refs().into_iter().any(is_sealed);
    if let LogicalPlan::Projection(projection) = plan {
        return projection
            .expr
            .iter()
            .map(|expr| match expr.clone().unalias() {
                Expr::Column(column) => Ok(is_sealed(&column)),
                expr if uses_sealed(&expr) => Err(broken("something is computed of a sealed column")),
                _ => Ok(false),
            })
            .collect();
    }
    if plan.expressions().iter().any(uses_sealed) {
        return Err(broken("a sealed column is used outside a release"));
    }
    let any = below.iter().any(|(_, sealed)| *sealed);
    match plan {
        LogicalPlan::Filter(_)
        | LogicalPlan::Sort(_)
        | LogicalPlan::Limit(_)
        | LogicalPlan::Subquery(_)
        | LogicalPlan::SubqueryAlias(_) => Ok(below.into_iter().map(|(_, sealed)| sealed).collect()),
        LogicalPlan::Join(join) => Ok(match join.join_type {
            JoinType::Inner | JoinType::Left | JoinType::Right | JoinType::Full => {
                below.into_iter().map(|(_, sealed)| sealed).collect()
            }
            _ => plan.schema().columns().iter().map(is_sealed).collect(),
        }),
        _ if any && !matches!(plan, LogicalPlan::Aggregate(_)) => {
            Err(broken("a sealed column goes through a part that is not known to pass it on"))
        }
        _ => Ok(vec![false; columns]),
    }
}

/// The inputs of a release.
fn released(plan: &LogicalPlan) -> Option<Vec<&LogicalPlan>> {
    match plan {
        LogicalPlan::Extension(extension) if extension.node.as_any().is::<ReleasedNode>() => {
            Some(extension.node.inputs())
        }
        _ => None,
    }
}

/// Whether a plan comes to cells, summed up over their subjects, and to nothing else.
fn is_of_cells(plan: &LogicalPlan) -> Result<()> {
    match plan {
        LogicalPlan::Projection(projection)
            if projection.expr.iter().all(|expr| matches!(expr.clone().unalias(), Expr::Column(_))) =>
        {
            is_of_cells(&projection.input)
        }
        LogicalPlan::Aggregate(aggregate) => {
            let summed_up = matches!(aggregate.aggr_expr.as_slice(), [only] if matches!(only.clone().unalias(),
                Expr::AggregateFunction(call) if is_cell_aggregate(&call.func)));
            match summed_up {
                true => is_region(&aggregate.input),
                false => Err(broken("something other than cells is released")),
            }
        }
        // Conditions that no row can meet.
        LogicalPlan::EmptyRelation(_) => Ok(()),
        _ => Err(broken("something other than cells is released")),
    }
}

/// Whether a plan holds only what the gate builds regions of.
fn is_region(plan: &LogicalPlan) -> Result<()> {
    match plan {
        LogicalPlan::TableScan(scan) => match GovernedTable::behind(&scan.source) {
            Some(table) if table.carries_subjects() => Ok(()),
            _ => Err(broken("a table in a release does not carry its subjects")),
        },
        // The optimizer turns joins round, and where no more is needed asks only whether there is a row.
        LogicalPlan::Join(join)
            if matches!(join.join_type, JoinType::Full | JoinType::LeftMark | JoinType::RightMark) =>
        {
            Err(broken("a join in a release is of a kind that was not put there"))
        }
        LogicalPlan::Aggregate(_)
        | LogicalPlan::Filter(_)
        | LogicalPlan::Join(_)
        | LogicalPlan::Projection(_)
        | LogicalPlan::SubqueryAlias(_) => {
            let mut subquery = false;
            plan.apply_expressions(|expr| {
                subquery |= expr.exists(|expr| {
                    Ok(matches!(expr, Expr::Exists(_) | Expr::InSubquery(_) | Expr::ScalarSubquery(_)))
                })?;
                Ok(TreeNodeRecursion::Continue)
            })
            .map_err(Error::internal)?;
            match subquery {
                true => Err(broken("a subquery stands in a release")),
                false => plan.inputs().into_iter().try_for_each(is_region),
            }
        }
        LogicalPlan::EmptyRelation(_) => Ok(()),
        // INVARIANT: what is not named above has no place below a release.
        _ => Err(broken("a part that was not put there stands in a release")),
    }
}

/// Whether a physical plan shows the number of a subject.
pub fn shows_subjects(schema: &arrow::datatypes::Schema) -> bool {
    schema.fields().iter().any(|field| field.name() == SUBJECT || field.name() == FOREIGN)
}

fn broken(what: &str) -> Error {
    Error::internal(format!("the optimized plan breaks the gate, as {what}"))
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeSet,
        path::{Path, PathBuf},
        sync::Arc,
    };

    use chrono::{DateTime, Utc};

    use super::super::Guarded;
    use crate::{
        audit::Clock,
        dataset::contract,
        error::Result,
        keys::Keys,
        policy::Policy,
        pseudonym::Pseudonyms,
        query::{
            self, Bounds, Engine,
            defences::{Defence, Defences},
        },
        store::{Snapshot, Store, metadata::Metadata, publication::Publisher},
    };

    /// An engine over empty tables, and the policies of the repository.
    struct Bench {
        engine: Arc<Engine>,
        policy: Policy,
        snapshot: Snapshot,
    }

    impl Bench {
        async fn new(folder: &Path, defences: Defences) -> Self {
            let repository = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
            let now: DateTime<Utc> = "2026-01-07T01:00:00Z".parse().unwrap();
            let clock: Clock = Arc::new(move || now);
            let datasets = contract::load_folder(&repository.join("schemas")).unwrap();
            let policy = Policy::load(&repository.join("policies"), &datasets, Arc::clone(&clock)).unwrap();
            let data = folder.join("data");
            std::fs::create_dir(&data).unwrap();
            let keys = Arc::new(Keys::open(&folder.join("keys"), &data, false).unwrap());
            let publisher = Publisher::new(Arc::new(Metadata::open(&data).unwrap()), &keys, Arc::clone(&clock));
            let limits = query::Limits::default();
            let runtime = query::runtime(&data.join("spill"), &limits).unwrap();
            let tables = data.join("tables");
            let store = Store::open(&tables, &datasets, Arc::clone(&runtime), publisher, limits.tables).await.unwrap();
            let pseudonyms = Arc::new(Pseudonyms::new(keys));
            let engine = Arc::new(Engine::new(runtime, pseudonyms, limits, clock, defences).unwrap());
            Self { engine, policy, snapshot: store.snapshot() }
        }

        /// Hands a plan to the engine as if it had passed the gate.
        async fn prepare(&self, purpose: &str, sql: &'static str) -> Result<()> {
            let view = self.policy.view(&self.policy.caller("health-analyst").unwrap(), purpose).unwrap();
            let (engine, snapshot) = (Arc::clone(&self.engine), self.snapshot.clone());
            let preparing = async move {
                let planned = engine.plan(&view, &snapshot, sql, &[]).await?;
                let guarded = Guarded {
                    state: Arc::new(planned.state),
                    plan: planned.plan,
                    asked: None,
                    columns: Vec::new(),
                    protected: false,
                    charged: BTreeSet::new(),
                    timeless: planned.timeless,
                };
                engine.prepare(&guarded).map(drop)
            };
            self.engine.work(&Bounds::default(), preparing).await
        }
    }

    /// Plans in which something sealed is used outside a release.
    const UNSAFE: [(&str, &str); 7] = [
        ("epidemiology", "SELECT temperature FROM visits"),
        ("epidemiology", "SELECT id_no FROM visits WHERE temperature > 37"),
        ("epidemiology", "SELECT avg(temperature) FROM visits"),
        ("epidemiology", "SELECT id_no FROM visits ORDER BY temperature LIMIT 1"),
        ("epidemiology", "SELECT v.id_no FROM visits v JOIN tests t ON v.temperature = t.ct_value"),
        ("epidemiology", "SELECT count(*) FROM cases WHERE id_no IN (SELECT id_no FROM tests WHERE ct_value < 25)"),
        ("supply-planning", "SELECT count(*) FROM cases"),
    ];

    #[tokio::test(flavor = "multi_thread")]
    async fn what_the_gate_let_slip_is_not_run_unless_the_second_look_is_gone() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let standing = Bench::new(one.path(), Defences::default()).await;
        let down = Bench::new(other.path(), Defences::without(&[Defence::Recheck])).await;
        for (purpose, sql) in UNSAFE {
            let said = standing.prepare(purpose, sql).await.err().and_then(|error| error.fault()).unwrap_or_default();
            assert!(said.contains("breaks the gate"), "{sql}: {said:?}");
            assert!(down.prepare(purpose, sql).await.is_ok(), "{sql}");
        }
        assert!(standing.prepare("epidemiology", "SELECT count(*) FROM visits WHERE mode = '入户'").await.is_ok());
    }
}

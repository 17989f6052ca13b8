//! Questions that are ready to be answered, and what is remembered of them: nothing of a table but its name and columns,
//! and how its rows lay.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use datafusion::{
    common::{
        Result, internal_err,
        tree_node::{Transformed, TreeNode, TreeNodeRecursion},
    },
    execution::{SessionState, SessionStateBuilder, TaskContext},
    logical_expr::{Expr, LogicalPlan, Volatility},
    physical_plan::ExecutionPlan,
};

use super::{
    Catalog, Catalogs, GovernedTable, Shown, source,
    template::{Tables, Template},
    total::Failures,
};
use crate::{
    dataset::DatasetName,
    disclose::{Guarded, Reads},
    error::Error,
    pseudonym::TokenKey,
    store::{Stored, materialised::RowsOf},
};

/// A guarded question, all but read for.
pub struct Ready {
    pub(super) guarded: Guarded,
    pub(super) steps: Steps,
    pub(super) reads: Reads,
    pub(super) failures: Failures,
    /// What it runs in.
    pub(super) session: Arc<SessionState>,
}

impl Ready {
    /// The gate's word on it.
    pub fn guarded(&self) -> &Guarded {
        &self.guarded
    }

    /// What is to be remembered of it, and the rows that it reads; `None` where it reads more than tables in memory, or
    /// would take much memory.
    pub(super) async fn known(&self) -> Result<Option<(Known, Tables)>> {
        let Steps::Settled(plan) = &self.steps else { return Ok(None) };
        let Some(tables) = memory_alone(plan)? else { return Ok(None) };
        if size_of(plan)? > REMEMBERED {
            return Ok(None);
        }
        // What cannot be planned over places is planned over rows, which says what is wrong where that fails, too.
        Ok(Known::of(self, plan).await.ok().flatten().map(|known| (known, tables)))
    }
}

/// How a question is answered.
pub(super) enum Steps {
    /// A plan that was optimized and settled, still to be planned in the engine's terms.
    Settled(LogicalPlan),
    /// A plan in the engine's terms, to be run once.
    Planned(Arc<dyn ExecutionPlan>, Arc<TaskContext>),
}

/// What is remembered of a question that reads nothing but tables in memory.
pub struct Known {
    guarded: Guarded,
    plan: LogicalPlan,
    /// The same in the engine's terms, where it can be run again.
    template: Option<Template>,
    /// The key of the tokens that it shows, and compares with.
    tokens: TokenKey,
    reads: Reads,
    failures: Failures,
    session: Arc<SessionState>,
}

impl Known {
    /// What there is to know of a question and its plan, without the rows and versions of its tables.
    pub(super) async fn of(ready: &Ready, plan: &LogicalPlan) -> Result<Option<Self>> {
        let Some(tokens) = tokens_of(plan)? else { return Ok(None) };
        let none = Arc::new(Catalogs(Arc::new(Catalog(BTreeMap::new()))));
        let session = SessionStateBuilder::new_from_existing(ready.session.as_ref().clone()).with_catalog_list(none);
        let session = Arc::new(session.build());
        let guarded = ready.guarded.without_tables(Arc::clone(&session));
        let plan = with_tables(plan.clone(), |table| Ok(table.unbound()))?;
        let physical = session.query_planner().create_physical_plan(&plan, session.as_ref()).await?;
        let template = Template::of(physical, &session)?;
        let (reads, failures) = (ready.reads.clone(), ready.failures.clone());
        Ok(Some(Self { guarded, plan, template, tokens, reads, failures, session }))
    }

    /// The question over those tables; `None` where they lie otherwise than was planned for, and where there is no plan
    /// that can be run again.
    pub(super) fn over(&self, tables: &Tables) -> Result<Option<Ready>> {
        let Some(template) = &self.template else { return Ok(None) };
        let Some(plan) = template.filled(tables)? else { return Ok(None) };
        Ok(Some(self.ready(Steps::Planned(plan, Arc::clone(&template.context)))))
    }

    /// The question over the tables as they are shown now; `None` where one of them is not, or lies otherwise than was
    /// planned for, or where tokens are others now.
    pub(super) async fn bound_to(&self, shown: &Shown) -> crate::error::Result<Option<Ready>> {
        if !self.tokens.is_that(&shown.tokens) {
            return Ok(None);
        }
        let Some(template) = &self.template else { return self.planned_anew_for(shown).await };
        let mut tables = Tables::new();
        for place in template.places() {
            let (RowsOf::Current(name) | RowsOf::Published(name)) = place;
            let Some((current, published)) = shown.rows(name).await? else { return Ok(None) };
            let rows = match place {
                RowsOf::Current(_) => current,
                RowsOf::Published(_) => published,
            };
            // A table that has outgrown memory is read in another way.
            let Stored::Memory(rows) = rows else { return Ok(None) };
            tables.insert(place.clone(), rows);
        }
        self.over(&tables).map_err(Error::internal)
    }

    async fn planned_anew_for(&self, shown: &Shown) -> crate::error::Result<Option<Ready>> {
        let mut now = BTreeMap::new();
        for name in tables_of(&self.plan).map_err(Error::internal)? {
            let Some(rows) = shown.rows(&name).await? else { return Ok(None) };
            now.insert(name, rows);
        }
        let bind = |table: &GovernedTable| match now.get(&table.view().dataset.name) {
            Some((current, published)) => Ok(table.bound_to(current.clone(), published.clone(), shown.tokens.clone())),
            None => internal_err!("a table of a plan that it does not name"),
        };
        let plan = with_tables(self.plan.clone(), bind).map_err(Error::internal)?;
        let small = memory_alone(&plan).map_err(Error::internal)?.is_some();
        Ok(small.then(|| self.ready(Steps::Settled(plan))))
    }

    fn ready(&self, steps: Steps) -> Ready {
        let (guarded, reads, failures) = (self.guarded.clone(), self.reads.clone(), self.failures.clone());
        Ready { guarded, steps, reads, failures, session: Arc::clone(&self.session) }
    }
}

/// The largest plan that is remembered.
const REMEMBERED: usize = 1_000;

/// How large a plan is: the columns of all its parts together, and the parts of its expressions, by which it takes
/// memory. No more is counted than shows that it is too large.
fn size_of(plan: &LogicalPlan) -> Result<usize> {
    let mut size = 0;
    plan.apply_with_subqueries(|node| {
        size += node.schema().fields().len();
        node.apply_expressions(|expr| {
            expr.apply(|_| {
                size += 1;
                Ok(if size > REMEMBERED { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
            })
        })
    })?;
    Ok(size)
}

/// The datasets that the scans of a plan read.
pub(super) fn tables_of(plan: &LogicalPlan) -> Result<BTreeSet<DatasetName>> {
    let mut names = BTreeSet::new();
    plan.apply_with_subqueries(|node| {
        if let LogicalPlan::TableScan(scan) = node
            && let Some(table) = GovernedTable::behind(&scan.source)
        {
            names.insert(table.view().dataset.name.clone());
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(names)
}

/// A plan with other tables in the place of those it reads.
fn with_tables(plan: LogicalPlan, change: impl Fn(&GovernedTable) -> Result<GovernedTable>) -> Result<LogicalPlan> {
    let changed = plan.transform_up_with_subqueries(|node| match node {
        LogicalPlan::TableScan(mut scan) => match GovernedTable::behind(&scan.source).map(&change) {
            Some(table) => {
                scan.source = source(table?);
                Ok(Transformed::yes(LogicalPlan::TableScan(scan)))
            }
            None => Ok(Transformed::no(LogicalPlan::TableScan(scan))),
        },
        node => Ok(Transformed::no(node)),
    })?;
    Ok(changed.data)
}

/// Whether nothing in a plan depends on when it is asked, or differs from call to call.
pub(super) fn is_timeless(plan: &LogicalPlan) -> Result<bool> {
    let mut timeless = true;
    plan.apply_with_subqueries(|node| {
        node.apply_expressions(|expr| {
            expr.apply(|part| {
                let volatility = match part {
                    Expr::ScalarFunction(call) => call.func.signature().volatility,
                    Expr::AggregateFunction(call) => call.func.signature().volatility,
                    Expr::WindowFunction(call) => call.fun.signature().volatility,
                    _ => Volatility::Immutable,
                };
                timeless &= volatility == Volatility::Immutable;
                Ok(if timeless { TreeNodeRecursion::Continue } else { TreeNodeRecursion::Stop })
            })
        })
    })?;
    Ok(timeless)
}

/// The rows of all tables of a plan, where they are held in memory.
pub(super) fn memory_alone(plan: &LogicalPlan) -> Result<Option<Tables>> {
    let mut tables = Some(Tables::new());
    plan.apply_with_subqueries(|node| {
        if let LogicalPlan::TableScan(scan) = node {
            let rows = GovernedTable::behind(&scan.source).and_then(GovernedTable::in_memory);
            tables = tables.take().zip(rows).map(|(mut tables, (of, rows))| {
                tables.insert(of, Arc::clone(rows));
                tables
            });
        }
        Ok(if tables.is_some() { TreeNodeRecursion::Continue } else { TreeNodeRecursion::Stop })
    })?;
    Ok(tables)
}

/// The key of the tokens that the tables of a plan show; `None` where it has no table.
fn tokens_of(plan: &LogicalPlan) -> Result<Option<TokenKey>> {
    let mut tokens = None;
    plan.apply_with_subqueries(|node| {
        if let LogicalPlan::TableScan(scan) = node {
            tokens = GovernedTable::behind(&scan.source).map(|table| table.tokens().clone());
        }
        Ok(if tokens.is_some() { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    })?;
    Ok(tokens)
}

#[cfg(test)]
mod tests {
    use datafusion::{logical_expr::LogicalPlanBuilder, prelude::lit};

    use super::*;

    #[test]
    fn long_expressions_make_a_plan_large() {
        let of = |expr: Expr| {
            let plan = LogicalPlanBuilder::empty(true).project(vec![expr]).and_then(LogicalPlanBuilder::build);
            size_of(&plan.unwrap()).unwrap()
        };
        let list = |items: i64| lit(1_i64).in_list((0..items).map(lit).collect(), false);
        assert!(of(lit(1_i64)) < 5);
        assert!(of(list(100)) > 100);
        assert!(of(list(100)) <= REMEMBERED);
        assert!(of(list(2_000)) > REMEMBERED);
    }
}

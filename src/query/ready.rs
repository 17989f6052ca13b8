//! Plans that are ready to be read for, and what makes them so that they can be kept: nothing of a table in them but its
//! name and columns.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use datafusion::{
    common::{
        Result, internal_err,
        tree_node::{Transformed, TreeNode, TreeNodeRecursion},
    },
    execution::{SessionState, SessionStateBuilder},
    logical_expr::{Expr, LogicalPlan, Volatility},
};

use super::{Catalog, Catalogs, GovernedTable, Shown, source, total::Failures};
use crate::{
    dataset::DatasetName,
    disclose::{Guarded, Reads},
    error::Error,
};

/// A guarded plan, all but read: what is left to do is to plan how, and to run it.
pub struct Ready {
    pub(super) guarded: Guarded,
    /// Optimized and settled.
    pub(super) plan: LogicalPlan,
    pub(super) reads: Reads,
    pub(super) failures: Failures,
    /// What it runs in.
    pub(super) session: Arc<SessionState>,
    /// Whether it reads nothing but tables in memory.
    pub(super) small: bool,
}

impl Ready {
    /// The same over no rows and no version of any table.
    pub(super) fn unbound(&self) -> Result<Self> {
        let none = Arc::new(Catalogs(Arc::new(Catalog(BTreeMap::new()))));
        let session = SessionStateBuilder::new_from_existing(self.session.as_ref().clone()).with_catalog_list(none);
        let session = Arc::new(session.build());
        let guarded = self.guarded.without_tables(Arc::clone(&session));
        let plan = with_tables(self.plan.clone(), |table| Ok(table.unbound()))?;
        let (reads, failures) = (self.reads.clone(), self.failures.clone());
        Ok(Self { guarded, plan, reads, failures, session, small: self.small })
    }

    /// The same over the tables as they are shown now; `None` where one of them is not.
    pub(super) async fn bound_to(&self, shown: &Shown) -> crate::error::Result<Option<Self>> {
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
        let small = reads_memory_alone(&plan).map_err(Error::internal)?;
        let (guarded, reads, failures) = (self.guarded.clone(), self.reads.clone(), self.failures.clone());
        Ok(Some(Self { guarded, plan, reads, failures, session: Arc::clone(&self.session), small }))
    }
}

/// Most columns in all parts of a plan that is remembered.
pub(super) const REMEMBERED: usize = 1_000;

/// The columns of all parts of a plan together, by which it takes memory.
pub(super) fn columns_in(plan: &LogicalPlan) -> Result<usize> {
    let mut columns = 0;
    plan.apply_with_subqueries(|node| {
        columns += node.schema().fields().len();
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(columns)
}

/// The datasets that the scans of a plan read.
fn tables_of(plan: &LogicalPlan) -> Result<BTreeSet<DatasetName>> {
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

/// Whether every table of a plan is held in memory.
pub(super) fn reads_memory_alone(plan: &LogicalPlan) -> Result<bool> {
    let mut alone = true;
    plan.apply_with_subqueries(|node| {
        if let LogicalPlan::TableScan(scan) = node {
            alone &= GovernedTable::behind(&scan.source).is_some_and(GovernedTable::is_in_memory);
        }
        Ok(if alone { TreeNodeRecursion::Continue } else { TreeNodeRecursion::Stop })
    })?;
    Ok(alone)
}

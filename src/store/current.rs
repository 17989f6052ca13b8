//! Which of a table's rows say what its records are now. A property of the dataset, whoever asks.
//!
//! Rows are only ever added: a record that changed has several, each from its source. Who sends what is never
//! replaced by what others send.

use std::sync::Arc;

use arrow::compute::SortOptions;
use datafusion::{
    catalog::Session,
    common::{Column, DFSchema, Result},
    logical_expr::{BinaryExpr, Case, Expr, Operator, expr::Sort},
    physical_expr::PhysicalSortExpr,
    physical_plan::{ExecutionPlan, coalesce_partitions::CoalescePartitionsExec, filter::FilterExec},
    prelude::lit,
};

use super::{
    ARRIVAL, DIGEST, SOURCE,
    newest::{NewestExec, Order},
};
use crate::dataset::{ChangeMode, Dataset};

/// Which rows belong together, and which of them comes first, in terms of stored columns.
#[derive(Debug, Clone)]
pub struct Ranking {
    /// Rows that agree in these belong together; NULL agrees with NULL.
    pub within: Vec<Expr>,
    /// The order among them.
    pub order: Vec<Sort>,
}

/// The rows that are current: those that come first in every ranking of all rows, and are `kept`.
#[derive(Debug, Clone)]
pub struct Current {
    /// The rankings. The last is within a record, the others within what belongs to one too.
    // INVARIANT: so rows of other records have no say in which rows of a record are current.
    pub rankings: Vec<Ranking>,
    /// Which of the first rows are no deletions; none where there are no deletions.
    pub kept: Option<Expr>,
}

/// Of each source and key, the newest row; rows whose key is not whole stand for themselves. `None` where rows are
/// never replaced.
///
/// Where rows have operations and a territory, a deletion speaks of its own territory: the newest row that is none
/// is current unless a later one deletes it there. So the office that a household left does not take it away from
/// the one where it arrived, whichever of the two speaks last.
pub fn current(dataset: &Dataset) -> Option<Current> {
    let (order_by, operation) = match &dataset.change {
        ChangeMode::Append => return None,
        ChangeMode::Upsert { order_by } => (order_by, None),
        ChangeMode::Changes { order_by, operation } => (order_by, Some(operation)),
    };
    let mut within = vec![stored(SOURCE)];
    within.extend(key_parts(dataset));
    let mut order: Vec<_> = order_by.iter().map(|field| stored(field).sort(false, false)).collect();
    order.push(stored(ARRIVAL).sort(false, false));
    order.push(stored(DIGEST).sort(false, false));
    let Some(operation) = operation else {
        return Some(Current { rankings: vec![Ranking { within, order }], kept: None });
    };
    // A missing operation is no deletion, which `<>` would make of it.
    let kept = BinaryExpr::new(Box::new(stored(operation)), Operator::IsDistinctFrom, Box::new(lit("D")));
    let kept = Expr::BinaryExpr(kept);
    // A key that names its territory says itself where its rows are.
    let Some(territory) = dataset.territory.as_ref().filter(|field| !dataset.key.contains(field)) else {
        return Some(Current { rankings: vec![Ranking { within, order }], kept: Some(kept) });
    };
    let there = within.iter().cloned().chain([stored(territory)]).collect();
    let mut kept_first = vec![kept.clone().sort(false, false)];
    kept_first.extend(order.iter().cloned());
    let rankings = vec![Ranking { within: there, order }, Ranking { within, order: kept_first }];
    Some(Current { rankings, kept: Some(kept) })
}

/// Where a record is a subject, of each subject the newest of its sources' current rows: by what they say themselves
/// of when, then by the name of the source. Elsewhere keys are a source's own, as two pharmacies may both have a
/// sale 1, and there is nothing to choose.
// INVARIANT: it is of rows within the caller's scope alone, or a source could ask through its own rows whether others
// have one of somebody. For the same reason it knows no order of arrival.
pub fn over_sources(dataset: &Dataset) -> Option<Ranking> {
    let order_by = match &dataset.change {
        ChangeMode::Append => return None,
        ChangeMode::Upsert { order_by } | ChangeMode::Changes { order_by, .. } => order_by,
    };
    if !dataset.records_are_subjects() {
        return None;
    }
    let when = order_by.as_ref().or(dataset.event_time.as_ref());
    let mut order: Vec<_> = when.into_iter().map(|field| stored(field).sort(false, false)).collect();
    order.push(stored(SOURCE).sort(true, false));
    order.push(stored(DIGEST).sort(false, false));
    Some(Ranking { within: key_parts(dataset), order })
}

/// The fields of a key, and beside each of them what keeps rows without it apart.
fn key_parts(dataset: &Dataset) -> Vec<Expr> {
    let mut parts = Vec::new();
    for key in &dataset.key {
        parts.push(stored(key));
        let alone = Case::new(None, vec![(Box::new(stored(key).is_null()), Box::new(stored(DIGEST)))], None);
        parts.push(Expr::Case(alone));
    }
    parts
}

fn stored(name: &str) -> Expr {
    Expr::Column(Column::from_name(name))
}

/// A first row is the first of all, wherever the others lie.
fn in_one_stream(rows: Arc<dyn ExecutionPlan>) -> Arc<dyn ExecutionPlan> {
    match rows.properties().output_partitioning().partition_count() {
        0 | 1 => rows,
        _ => Arc::new(CoalescePartitionsExec::new(rows)),
    }
}

impl Ranking {
    /// The columns it looks at.
    pub fn columns(&self) -> impl Iterator<Item = &Column> {
        let exprs = self.within.iter().chain(self.order.iter().map(|key| &key.expr));
        exprs.flat_map(Expr::column_refs)
    }

    /// The same over rows of a schema.
    ///
    /// # Errors
    /// Where the schema lacks a column.
    pub fn over(&self, session: &dyn Session, schema: &DFSchema) -> Result<Order> {
        let within = self.within.iter().map(|expr| session.create_physical_expr(expr.clone(), schema));
        let by = self.order.iter().map(|key| {
            let expr = session.create_physical_expr(key.expr.clone(), schema)?;
            Ok(PhysicalSortExpr::new(expr, SortOptions::new(!key.asc, key.nulls_first)))
        });
        Ok(Order { within: within.collect::<Result<_>>()?, by: by.collect::<Result<_>>()? })
    }

    /// The rows of a plan that come first.
    ///
    /// # Errors
    /// As [`Ranking::over`].
    pub fn first_of(&self, session: &dyn Session, rows: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
        let schema = DFSchema::try_from(rows.schema())?;
        let order = self.over(session, &schema)?;
        Ok(Arc::new(NewestExec::new(in_one_stream(rows), vec![order])))
    }
}

impl Current {
    /// The columns it looks at.
    pub fn columns(&self) -> impl Iterator<Item = &Column> {
        let kept = self.kept.iter().flat_map(Expr::column_refs);
        self.rankings.iter().flat_map(Ranking::columns).chain(kept)
    }

    /// The rows of a plan that are current, in one pass with all of them in memory.
    ///
    /// # Errors
    /// Where the plan lacks a column.
    pub fn of(&self, session: &dyn Session, rows: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
        let schema = DFSchema::try_from(rows.schema())?;
        let orders = self.rankings.iter().map(|ranking| ranking.over(session, &schema)).collect::<Result<_>>()?;
        let first: Arc<dyn ExecutionPlan> = Arc::new(NewestExec::new(in_one_stream(rows), orders));
        match &self.kept {
            None => Ok(first),
            Some(kept) => {
                let kept = session.create_physical_expr(kept.clone(), &schema)?;
                Ok(Arc::new(FilterExec::try_new(kept, first)?))
            }
        }
    }
}

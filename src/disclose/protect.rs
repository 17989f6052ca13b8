//! Turns an aggregate over a sealed region into a protected one: the rows of each subject in each cell are
//! added up first, then each cell is summed up over its subjects, and what is released of the cells is decided
//! above that ([`Cells`]).

use std::{collections::BTreeSet, sync::Arc};

use datafusion::{
    common::Column,
    functions_aggregate::expr_fn::max,
    logical_expr::{Aggregate, Expr, Extension, LogicalPlan, LogicalPlanBuilder, expr::AggregateFunction},
    prelude::lit,
};
use ring::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    Gate, Wishes,
    cells::{Cells, Small},
    levels,
    region::Region,
    rules,
    statistic::{Counted, Statistic},
};
use crate::{
    error::{Error, Result},
    query::{ReleasedNode, defences::Defence},
    release::aggregate::cell_aggregate,
};

/// A protected aggregate, and what its columns are made of.
pub struct Protected {
    /// The plan in its place.
    pub plan: LogicalPlan,
    /// For each column, the sealed fields that reach it, and how.
    pub reached: Vec<Vec<Reached>>,
    /// For each column, what its noise is like; `None` for group keys.
    pub noise: Vec<Option<&'static str>>,
    /// Which group keys are sealed themselves.
    pub sealed_keys: Vec<bool>,
}

/// A sealed field, and by what it reaches a column.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
pub struct Reached {
    /// `agency.table.field`, or `agency.table.*` for rows that may only be counted.
    pub field: String,
    /// `value`, `key`, `filter`, `link` or `rows`.
    pub how: String,
}

/// Checks a region by all rules and puts a protected aggregate in its place.
///
/// # Errors
/// The refusal of the first rule that is broken.
pub fn aggregate(region: &Region, aggregate: &Aggregate, gate: &Arc<Gate>, wishes: &Wishes) -> Result<Protected> {
    if gate.defences.stand(Defence::Grammar) {
        rules::check(region)?;
    }
    let statistic = Statistic::of(region)?;
    let common = reached_by_all(region);
    let keys = region.keys.iter().map(|key| with(&common, sealed(region, key, "key")));
    let mut reached: Vec<Vec<Reached>> = keys.collect();
    let sealed_keys = region.keys.iter().map(|key| !region.sealed(key).is_empty()).collect();
    let of_keys: Vec<Reached> = region.keys.iter().flat_map(|key| sealed(region, key, "key")).collect();
    let common = with(&common, of_keys);
    reached.extend(region.calls.iter().map(|call| with(&common, sealed(region, call, "value"))));
    let mut noise = vec![None; region.keys.len()];
    noise.extend(statistic.formulas.iter().map(|formula| Some(formula.word(&statistic.slots))));

    let roll_up = match wishes.small {
        Small::RollUp => Some(levels::of(region)?),
        _ => None,
    };
    let cells = cells(region, aggregate, &statistic, gate, wishes, roll_up, &common);
    let mut inputs = vec![cell_plan(region, &statistic, false).map_err(Error::internal)?];
    if cells.compares_with_whole() {
        inputs.push(
            cell_plan(region, &Statistic { slots: Vec::new(), formulas: Vec::new() }, true).map_err(Error::internal)?,
        );
    }
    if wishes.small != Small::LeaveOut && inputs.len() > 1 {
        return Err(Error::refused(
            "small-cells",
            "small cells that differ in something sensitive cannot be put together: it would not show what they share",
            "leave the option out, or group and filter by columns that are not sealed",
        ));
    }
    let node = ReleasedNode::new(inputs, cells).map_err(Error::internal)?;
    Ok(Protected { plan: LogicalPlan::Extension(Extension { node: Arc::new(node) }), reached, noise, sealed_keys })
}

fn cells(
    region: &Region,
    aggregate: &Aggregate,
    statistic: &Statistic,
    gate: &Arc<Gate>,
    wishes: &Wishes,
    roll_up: Option<levels::Ladder>,
    common: &[Reached],
) -> Cells {
    let table = region.table(&region.subject);
    let fields = |reached: &[Reached]| reached.iter().map(|it| it.field.clone()).collect::<BTreeSet<_>>();
    let slots = statistic.slots.iter().map(|slot| super::cells::SlotKind {
        kind: slot.kind(),
        is_people: slot.what == Counted::People,
        is_count: !matches!(slot.what, Counted::Values(_)),
        is_sensitive_part: slot.when.iter().any(|condition| match condition {
            // That a value is there is not what it is, unless that tells whom a join found.
            Expr::IsNotNull(inner) => {
                matches!(inner.as_ref(), Expr::Column(column) if region.is_of_picked(column))
                    && region.splits(condition)
            }
            condition => region.splits(condition),
        }),
    });
    let charges = region.calls.iter().map(|call| {
        let charged = with(common, sealed(region, call, "value"));
        (call.to_string(), fields(&charged))
    });
    let fields_of_schema = aggregate.schema.fields();
    let kinds = fields_of_schema.iter().map(|field| field.data_type().clone()).collect::<Vec<_>>();
    Cells {
        gate: Arc::clone(gate),
        schema: Arc::clone(&aggregate.schema),
        keys: region.keys.len(),
        domain: table.map(|table| table.domain()).unwrap_or_default(),
        slots: slots.collect(),
        formulas: statistic.formulas.iter().cloned().zip(kinds[region.keys.len()..].iter().cloned()).collect(),
        charges: charges.collect(),
        definition: definition(region),
        charged: fields(common),
        open_keys: region.keys.iter().map(|key| !region.splits(key)).collect(),
        whole: region.splits_by_sensitive(),
        small: wishes.small,
        interval: wishes.interval,
        ladder: roll_up,
    }
}

/// Sealed fields that reach every column: they pick or link the rows.
fn reached_by_all(region: &Region) -> Vec<Reached> {
    let mut reached: Vec<Reached> =
        region.sealed_rows().map(|field| Reached { field, how: "rows".to_owned() }).collect();
    reached.extend(region.parts.filters.iter().flat_map(|filter| sealed(region, filter, "filter")));
    let links = region.links();
    reached.extend(links.flat_map(|link| sealed(region, link, "link")));
    with(&reached, Vec::new())
}

fn sealed(region: &Region, expr: &Expr, how: &str) -> Vec<Reached> {
    region.sealed(expr).into_iter().map(|field| Reached { field, how: how.to_owned() }).collect()
}

fn with(some: &[Reached], more: Vec<Reached>) -> Vec<Reached> {
    some.iter().cloned().chain(more).collect::<BTreeSet<_>>().into_iter().collect()
}

/// One row a cell: its keys, and its subjects summed up. The `whole` has neither sealed keys nor sealed
/// conditions: it is what the cells are a part of.
fn cell_plan(region: &Region, statistic: &Statistic, whole: bool) -> datafusion::common::Result<LogicalPlan> {
    const CELL: &str = "cell";
    const VOUCHED: &str = "vouched";
    let keys: Vec<Expr> = region.keys.iter().filter(|key| !whole || !region.splits(key)).cloned().collect();
    let names: Vec<String> = (0..keys.len()).map(|at| format!("k{at}")).collect();
    let subject = Expr::Column(region.subject.clone());
    let rows = match whole {
        true => region.plan_of_whole()?,
        false => region.plan()?,
    };
    let rows = rows.filter(subject.clone().is_not_null())?;

    let mut grouped: Vec<Expr> = keys.into_iter().zip(&names).map(|(key, name)| key.alias(name)).collect();
    grouped.push(subject.alias("subject"));
    let vouched = region.vouched();
    let mut calls: Vec<Expr> =
        statistic.slots.iter().enumerate().map(|(at, slot)| slot.call.clone().alias(format!("c{at}"))).collect();
    if let Some(vouched) = &vouched {
        calls.push(max(vouched.clone()).alias(VOUCHED));
    }
    let column = |name: &str| Expr::Column(Column::from_name(name));
    let subjects = LogicalPlanBuilder::from(rows.aggregate(grouped, calls)?.build()?);

    let mut arguments = vec![column("subject"), vouched.map_or_else(|| lit(true), |_| column(VOUCHED))];
    arguments.extend((0..statistic.slots.len()).map(|at| column(&format!("c{at}"))));
    let sum_up = AggregateFunction::new_udf(Arc::new(cell_aggregate()), arguments, false, None, Vec::new(), None);
    subjects
        .aggregate(names.iter().map(|name| column(name)), vec![Expr::AggregateFunction(sum_up).alias(CELL)])?
        .build()
}

/// What tells this region's cells from those of another: its tables, how they are put together, its conditions and
/// keys, and the rows that its caller may count. Two texts of one set of people are two definitions; the set tells
/// that they are one.
fn definition(region: &Region) -> [u8; 32] {
    let mut lines = vec![region.text()];
    lines.extend(region.keys.iter().map(|key| format!("by {key}")));
    let mut digest = Context::new(&SHA256);
    for line in lines {
        digest.update(&(line.len() as u64).to_le_bytes());
        digest.update(line.as_bytes());
    }
    let mut out = [0; 32];
    out.copy_from_slice(digest.finish().as_ref());
    out
}

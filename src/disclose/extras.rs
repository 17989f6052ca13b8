//! Columns that a caller wished for beside those it asked for: the ends of intervals, and the level at which a
//! cell is answered. They are carried from the release up to the answer, which works where nothing but
//! projections, filters, orders and limits lie between.

use std::{collections::BTreeMap, sync::Arc};

use datafusion::{
    common::Column,
    logical_expr::{Expr, LogicalPlan, Projection},
};

use crate::{
    error::{Error, Result},
    query::ReleasedNode,
};

/// The name under which a release hands out levels; it is also what readers see.
pub const LEVEL: &str = "answered_at";

/// The names under which a release hands out the ends of the interval of its call `at`.
pub fn ends(at: usize) -> [String; 2] {
    [format!("__low_{at}"), format!("__high_{at}")]
}

/// The plan with the extra columns of its release after those it has.
///
/// # Errors
/// `extras`, where they cannot be carried up.
pub fn carry(plan: &LogicalPlan) -> Result<LogicalPlan> {
    Ok(carried(plan)?.plan)
}

/// A plan with extra columns, and where they are.
struct Carried {
    plan: LogicalPlan,
    /// The places of both ends, for each column that has them.
    ends: BTreeMap<usize, [usize; 2]>,
    level: Option<usize>,
}

fn carried(plan: &LogicalPlan) -> Result<Carried> {
    match plan {
        LogicalPlan::Extension(extension) => match extension.node.as_any().downcast_ref::<ReleasedNode>() {
            Some(released) => of_release(plan, released),
            None => Err(no_way()),
        },
        LogicalPlan::Projection(projection) => {
            let input = carried(&projection.input)?;
            let columns = input.plan.schema().columns();
            let mut shown = projection.expr.clone();
            let mut ends = BTreeMap::new();
            for (at, expr) in projection.expr.iter().enumerate() {
                let Expr::Column(column) = expr.clone().unalias_nested().data else { continue };
                let place = columns.iter().position(|known| *known == column);
                let Some([low, high]) = place.and_then(|place| input.ends.get(&place)) else { continue };
                let name = projection.schema.field(at).name();
                ends.insert(at, [shown.len(), shown.len() + 1]);
                for (place, end) in [(low, "low"), (high, "high")] {
                    shown.push(Expr::Column(columns[*place].clone()).alias(format!("{name}_{end}")));
                }
            }
            let level = input.level.map(|level| {
                shown.push(Expr::Column(columns[level].clone()).alias(LEVEL));
                shown.len() - 1
            });
            let plan = Projection::try_new(shown, Arc::new(input.plan)).map_err(|_| taken())?;
            Ok(Carried { plan: LogicalPlan::Projection(plan), ends, level })
        }
        LogicalPlan::Filter(_) | LogicalPlan::Sort(_) | LogicalPlan::Limit(_) | LogicalPlan::SubqueryAlias(_) => {
            let [input] = plan.inputs()[..] else { return Err(no_way()) };
            let input = carried(input)?;
            let plan = plan.with_new_exprs(plan.expressions(), vec![input.plan]).map_err(Error::internal)?;
            Ok(Carried { plan, ..input })
        }
        _ => Err(no_way()),
    }
}

fn of_release(plan: &LogicalPlan, released: &ReleasedNode) -> Result<Carried> {
    let places: BTreeMap<Column, usize> =
        plan.schema().columns().into_iter().enumerate().map(|(at, column)| (column, at)).collect();
    let place = |name: &str| places.get(&Column::from_name(name)).copied();
    let calls = 0..released.calls();
    let ends = calls.filter_map(|call| {
        let [low, high] = ends(call);
        Some((released.keys() + call, [place(&low)?, place(&high)?]))
    });
    Ok(Carried { plan: plan.clone(), ends: ends.collect(), level: place(LEVEL) })
}

fn no_way() -> Error {
    Error::refused(
        "extras",
        "intervals and levels of protected numbers go with a query whose last aggregate is the protected one",
        "ask for the protected aggregate itself, with WHERE, HAVING, ORDER BY and LIMIT, or leave the option out",
    )
}

fn taken() -> Error {
    Error::refused(
        "extras",
        "a column of the answer has the name of one of the columns asked for beside it",
        format!("rename columns whose name ends in `_low` or `_high` or is `{LEVEL}`"),
    )
}

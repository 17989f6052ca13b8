//! How much longer than its inputs a text can become. Texts put together out of themselves, again and
//! again, double every time; the engine reserves them outside its memory limit, so such a statement is
//! refused before it runs.

use std::collections::HashMap;

use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::logical_expr::{
    BinaryExpr, Distinct, Expr, LogicalPlan, Operator,
    expr::{Alias, ScalarFunction},
};

use crate::error::{Error, Result};

/// Most parts a text may be put together from.
const PARTS: u64 = 1_000;

/// Bytes of a literal that count for one part.
const PART: usize = 128;

/// Refuses plans whose texts grow beyond bounds.
///
/// # Errors
/// [`Error::Refused`].
pub fn check(plan: &LogicalPlan) -> Result<()> {
    parts(plan, &mut HashMap::new()).map(drop)
}

/// For each column of a plan, of how many parts its values may consist.
fn parts(plan: &LogicalPlan, working: &mut HashMap<String, Vec<u64>>) -> Result<Vec<u64>> {
    let width = plan.schema().fields().len();
    let found = match plan {
        LogicalPlan::Projection(projection) => {
            let below = parts(&projection.input, working)?;
            of_all(&projection.expr, &projection.input, &below, working)?
        }
        LogicalPlan::Aggregate(aggregate) => {
            let below = parts(&aggregate.input, working)?;
            let both: Vec<Expr> = aggregate.group_expr.iter().chain(&aggregate.aggr_expr).cloned().collect();
            of_all(&both, &aggregate.input, &below, working)?
        }
        LogicalPlan::Window(window) => {
            let below = parts(&window.input, working)?;
            let added = of_all(&window.window_expr, &window.input, &below, working)?;
            [below, added].concat()
        }
        LogicalPlan::Distinct(Distinct::On(on)) => {
            let below = parts(&on.input, working)?;
            of_all(&on.select_expr, &on.input, &below, working)?
        }
        LogicalPlan::Union(union) => {
            let mut widest = vec![1; width];
            for input in &union.inputs {
                for (widest, parts) in widest.iter_mut().zip(parts(input, working)?) {
                    *widest = parts.max(*widest);
                }
            }
            widest
        }
        LogicalPlan::RecursiveQuery(query) => {
            let first = parts(&query.static_term, working)?;
            working.insert(query.name.clone(), first.clone());
            let next = parts(&query.recursive_term, working)?;
            if next.iter().zip(&first).any(|(next, first)| next > first) {
                return Err(too_long());
            }
            first
        }
        LogicalPlan::TableScan(scan) => working.get(scan.table_name.table()).cloned().unwrap_or_else(|| vec![1; width]),
        other => {
            let mut all = Vec::new();
            for input in other.inputs() {
                all.extend(parts(input, working)?);
            }
            let below = all.clone();
            for expr in other.expressions() {
                // Filters and keys compute texts too, and throw them away.
                of(&expr, &|_| below.iter().copied().max().unwrap_or(1), working)?;
            }
            all
        }
    };
    // Grouping sets and joins that keep one side change the number of columns; the widest stands for all.
    match found.len() == width {
        true => Ok(found),
        false => Ok(vec![found.into_iter().max().unwrap_or(1); width]),
    }
}

fn of_all(
    expressions: &[Expr],
    input: &LogicalPlan,
    below: &[u64],
    working: &mut HashMap<String, Vec<u64>>,
) -> Result<Vec<u64>> {
    let column = |column: &datafusion::common::Column| {
        let at = input.schema().maybe_index_of_column(column);
        at.and_then(|at| below.get(at).copied()).unwrap_or_else(|| below.iter().copied().max().unwrap_or(1))
    };
    expressions.iter().map(|expr| of(expr, &column, working)).collect()
}

fn of(
    expr: &Expr,
    column: &dyn Fn(&datafusion::common::Column) -> u64,
    working: &mut HashMap<String, Vec<u64>>,
) -> Result<u64> {
    let count = match expr {
        // Two literals of any length may be put together; they are in memory for each of thousands of rows.
        Expr::Literal(value, _) => {
            let length = value.try_as_str().flatten().map_or(0, str::len);
            u64::try_from(length / PART).unwrap_or(u64::MAX).saturating_add(1).min(PARTS / 2)
        }
        Expr::Column(found) | Expr::OuterReferenceColumn(_, found) => column(found),
        Expr::Alias(Alias { expr, .. }) => of(expr, column, working)?,
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::StringConcat, right }) => {
            of(left, column, working)?.saturating_add(of(right, column, working)?)
        }
        Expr::ScalarFunction(ScalarFunction { func, args })
            if matches!(
                func.name(),
                "concat" | "concat_ws" | "make_array" | "array_append" | "array_concat" | "array_prepend"
            ) =>
        {
            let mut sum = 0_u64;
            for part in args {
                sum = sum.saturating_add(of(part, column, working)?);
            }
            // The separator stands between any two of the others.
            if let ("concat_ws", Some(separator)) = (func.name(), args.first()) {
                let between = (args.len() as u64).saturating_sub(3);
                sum = sum.saturating_add(of(separator, column, working)?.saturating_mul(between));
            }
            sum
        }
        // All texts of a group in one: to put a few of these together is to double a table.
        Expr::AggregateFunction(call) if matches!(call.func.name(), "string_agg" | "array_agg") => PARTS / 2,
        // Some letters become three in another case, and translate makes each of these one again. A quote becomes two,
        // between two more.
        Expr::ScalarFunction(ScalarFunction { func, args })
            if matches!(func.name(), "upper" | "lower" | "initcap" | "quote_ident") && args.len() == 1 =>
        {
            of(&args[0], column, working)?.saturating_mul(3)
        }
        Expr::ScalarSubquery(subquery) => parts(&subquery.subquery, working)?.into_iter().max().unwrap_or(1),
        other => {
            let mut inner = Vec::new();
            other
                .apply_children(|child| {
                    inner.push(child.clone());
                    Ok(TreeNodeRecursion::Continue)
                })
                .map_err(Error::internal)?;
            let mut widest = 1;
            for child in &inner {
                widest = of(child, column, working)?.max(widest);
            }
            widest
        }
    };
    if count > PARTS { Err(too_long()) } else { Ok(count) }
}

fn too_long() -> Error {
    Error::refused(
        "text-too-long",
        format!("a text would be put together from more than {PARTS} parts, or grow with every step of a recursion"),
        "put together fewer texts, and none from itself",
    )
}

#[cfg(test)]
mod tests {
    use datafusion::{
        logical_expr::{LogicalPlanBuilder, binary_expr},
        prelude::lit,
    };

    use super::*;

    #[test]
    fn long_literals_count_for_more() {
        // Plans are walked by recursion; workers of the engine have as much room.
        let counting = std::thread::Builder::new().stack_size(64 << 20).spawn(count_long_literals).unwrap();
        counting.join().unwrap();
    }

    fn count_long_literals() {
        let allowed = |count: usize, length: usize| {
            let text = || lit("x".repeat(length));
            let all = (1..count).fold(text(), |all, _| binary_expr(all, Operator::StringConcat, text()));
            check(&LogicalPlanBuilder::empty(true).project(vec![all]).unwrap().build().unwrap()).is_ok()
        };
        assert!(allowed(300, 100));
        assert!(allowed(2, 1 << 20));
        assert!(!allowed(3, 1 << 20));
        assert!(!allowed(300, 10 * PART));
    }
}

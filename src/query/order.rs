//! Makes an answer a function of the rows the caller may see, and not of how they lie on disk.
//!
//! Where rows lie follows things a caller may not see: the hidden fields of a row, the batches of others,
//! the rows between. An engine shows that order wherever a query leaves it open: in the order of an
//! answer, in which rows `LIMIT` or `row_number()` pick, in the last digits of a sum of floating point
//! numbers, and in whether a guarded division is computed at all, which is decided batch by batch. Here
//! each of these gets a total order of the columns it works on, is added up without rounding, or is decided
//! row by row. Ties that are left are rows the query itself cannot tell apart.
//!
//! Works on the optimized plan, whose columns are those really needed.

use std::sync::Arc;

use arrow::datatypes::DataType;
use datafusion::{
    common::{
        Column, DFSchema, Result, ScalarValue,
        tree_node::{Transformed, TreeNode, TreeNodeRecursion},
    },
    logical_expr::{
        BinaryExpr, Case, Expr, ExprSchemable, Extension, FetchType, Limit, LogicalPlan, Operator, SkipType, Sort,
        SortExpr,
        expr::{AggregateFunction, AggregateFunctionParams, InList, WindowFunction},
        expr_rewriter::NamePreserver,
    },
    prelude::lit,
};

use super::{
    defences::{Defence, Defences},
    exact,
    functions::{self, OrderUse},
    ordered::OrderedNode,
    total,
};
use crate::release::aggregate::is_cell_aggregate;

/// A plan whose answer follows visible rows only, and in how many partitions it may run.
pub struct Settled {
    /// The plan.
    pub plan: LogicalPlan,
    /// Whether rows must stay in one stream: partitions race, and who wins would show.
    pub one_stream: bool,
}

/// Settles every choice that a query leaves open.
///
/// # Errors
/// Where the plan cannot be rebuilt.
pub fn settle(plan: LogicalPlan, defences: Defences) -> Result<Settled> {
    let mut plan = plan.transform_up_with_subqueries(without_repeated_keys)?.data;
    if defences.stand(Defence::TotalOrder) {
        plan = plan.transform_up_with_subqueries(add_exactly)?.data;
    }
    let one_stream = leaves_choices(&plan)?;
    if defences.stand(Defence::GuardedLogic) {
        plan = plan.transform_up_with_subqueries(guard)?.data;
    }
    if defences.stand(Defence::TotalOrder) {
        plan = plan.transform_up_with_subqueries(pick_in_order)?.data;
    }
    if defences.stand(Defence::AnswerOrder) {
        plan = in_total_order(plan, None)?;
    }
    Ok(Settled { plan, one_stream })
}

/// Whether something in the plan takes rows as they come. What is given a total order, as limits and windows
/// are, takes the same rows however many streams they come in; an aggregate may put its parts together as
/// these race.
fn leaves_choices(plan: &LogicalPlan) -> Result<bool> {
    let mut choices = false;
    plan.apply_with_subqueries(|node| {
        choices |= match node {
            LogicalPlan::RecursiveQuery(_) => true,
            LogicalPlan::Aggregate(aggregate) => {
                aggregate.aggr_expr.iter().any(|expr| order_use(expr, aggregate.input.schema()) != OrderUse::None)
            }
            _ => false,
        };
        Ok(if choices { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    })?;
    Ok(choices)
}

fn aggregate_call(expr: &Expr) -> Option<&AggregateFunction> {
    match expr {
        Expr::AggregateFunction(call) => Some(call),
        Expr::Alias(alias) => aggregate_call(&alias.expr),
        _ => None,
    }
}

fn window_call(expr: &Expr) -> Option<&WindowFunction> {
    match expr {
        Expr::WindowFunction(call) => Some(call),
        Expr::Alias(alias) => window_call(&alias.expr),
        _ => None,
    }
}

/// The types of arguments. Narrow whole numbers that are cast to floating point, as the engine does for an
/// average, are still narrow whole numbers.
fn types(args: &[Expr], schema: &DFSchema) -> Vec<DataType> {
    let kind = |arg: &Expr| match arg {
        Expr::Cast(cast) if *cast.field.data_type() == DataType::Float64 => match cast.expr.get_type(schema) {
            Ok(narrow @ (DataType::Int8 | DataType::Int16 | DataType::UInt8 | DataType::UInt16)) => Ok(narrow),
            _ => arg.get_type(schema),
        },
        arg => arg.get_type(schema),
    };
    args.iter().map(|arg| kind(arg).unwrap_or(DataType::Null)).collect()
}

/// How an aggregate uses the order of its rows; what is not an aggregate is taken for the worst.
fn order_use(expr: &Expr, schema: &DFSchema) -> OrderUse {
    match aggregate_call(expr) {
        Some(call) if exact::is_form(call.func.name()) || is_cell_aggregate(&call.func) => OrderUse::None,
        Some(call) => functions::order_use(call.func.name(), &types(&call.params.args, schema)),
        None => OrderUse::PicksRows,
    }
}

/// Sort keys that leave no two rows of `schema` in an open order: `first`, then every other column.
fn total_keys(first: Vec<SortExpr>, schema: &DFSchema) -> Vec<SortExpr> {
    let mut keys = distinct_keys(&first);
    for (qualifier, field) in schema.iter() {
        let column = Expr::Column(Column::new(qualifier.cloned(), field.name()));
        if *field.data_type() != DataType::Null && !keys.iter().any(|key| key.expr == column) {
            keys.push(column.sort(true, false));
        }
    }
    keys
}

/// The rows of `input` in the order of `first` and then of all their values, kept through the engine's
/// own planning of orders.
fn ordered(input: Arc<LogicalPlan>, first: Vec<SortExpr>, within: Vec<Expr>) -> Arc<LogicalPlan> {
    let keys = total_keys(first, input.schema());
    let node = OrderedNode { input: input.as_ref().clone(), keys, within };
    Arc::new(LogicalPlan::Extension(Extension { node: Arc::new(node) }))
}

/// A key that is named again in ORDER BY of an aggregate decides nothing, and the engine stumbles over it.
fn without_repeated_keys(node: LogicalPlan) -> Result<Transformed<LogicalPlan>> {
    fn repeats(expr: &Expr) -> bool {
        aggregate_call(expr).is_some_and(|call| distinct_keys(&call.params.order_by).len() < call.params.order_by.len())
    }
    match node {
        LogicalPlan::Aggregate(mut aggregate) if aggregate.aggr_expr.iter().any(repeats) => {
            for expr in &mut aggregate.aggr_expr {
                change_order_by(expr, |_, keys| distinct_keys(&keys))?;
            }
            Ok(Transformed::yes(LogicalPlan::Aggregate(aggregate)))
        }
        other => Ok(Transformed::no(other)),
    }
}

/// Sums and averages of doubles in a form that no order shows in, which costs less than an order would.
fn add_exactly(node: LogicalPlan) -> Result<Transformed<LogicalPlan>> {
    let LogicalPlan::Aggregate(mut aggregate) = node else { return Ok(Transformed::no(node)) };
    let schema = Arc::clone(aggregate.input.schema());
    let mut changed = false;
    for expr in &mut aggregate.aggr_expr {
        let Some(call) = aggregate_call(expr) else { continue };
        let doubles = call.params.args.iter().all(|arg| matches!(arg.get_type(&schema), Ok(DataType::Float64)));
        let Some(form) = exact::form_of(call.func.name()) else { continue };
        if doubles && !call.params.distinct && call.params.args.len() == 1 {
            change_call(expr, |call| call.func = form)?;
            changed = true;
        }
    }
    Ok(Transformed::new_transformed(LogicalPlan::Aggregate(aggregate), changed))
}

fn distinct_keys(keys: &[SortExpr]) -> Vec<SortExpr> {
    let mut kept: Vec<SortExpr> = Vec::new();
    for key in keys {
        // An alias of a column is that column.
        let expr = key.expr.clone().unalias_nested().data;
        if !kept.iter().any(|known| known.expr == expr) {
            kept.push(SortExpr { expr, ..key.clone() });
        }
    }
    kept
}

/// Gives what picks rows by their order a total one.
fn pick_in_order(node: LogicalPlan) -> Result<Transformed<LogicalPlan>> {
    Ok(match node {
        LogicalPlan::Limit(limit) => {
            let fetch = match (limit.get_skip_type()?, limit.get_fetch_type()?) {
                (SkipType::Literal(skip), FetchType::Literal(fetch)) => fetch.and_then(|n| n.checked_add(skip)),
                _ => None,
            };
            let input = in_total_order(Arc::unwrap_or_clone(limit.input), fetch)?;
            Transformed::yes(LogicalPlan::Limit(Limit { input: Arc::new(input), ..limit }))
        }
        LogicalPlan::Sort(sort) if sort.fetch.is_some() => {
            let expr = total_keys(sort.expr, sort.input.schema());
            Transformed::yes(LogicalPlan::Sort(Sort { expr, ..sort }))
        }
        // Also for functions that treat peers alike: a limit above stops as soon as it has seen enough of rows
        // that come in order, and what else is computed on the way may fail.
        LogicalPlan::Window(ref window) => {
            // All functions of one node share partition and order.
            let (mut first, mut within) = (Vec::new(), Vec::new());
            if let Some(call) = window.window_expr.first().and_then(window_call) {
                within.clone_from(&call.params.partition_by);
                first.extend(within.iter().map(|expr| expr.clone().sort(true, false)));
                first.extend(call.params.order_by.iter().cloned());
            }
            let input = ordered(Arc::clone(&window.input), first, within);
            Transformed::yes(node.with_new_exprs(node.expressions(), vec![input.as_ref().clone()])?)
        }
        LogicalPlan::Aggregate(mut aggregate) => {
            let schema = Arc::clone(aggregate.input.schema());
            let uses: Vec<_> = aggregate.aggr_expr.iter().map(|expr| order_use(expr, &schema)).collect();
            if uses.iter().all(|order_use| *order_use == OrderUse::None) {
                return Ok(Transformed::no(LogicalPlan::Aggregate(aggregate)));
            }
            for (expr, order_use) in aggregate.aggr_expr.iter_mut().zip(&uses) {
                if *order_use == OrderUse::PicksRows {
                    change_order_by(expr, |call, keys| match (call.distinct, call.args.first()) {
                        // Distinct values are in a total order by themselves, and take no other key.
                        (true, Some(value)) if !keys.iter().any(|key| key.expr == *value) => {
                            keys.into_iter().chain([value.clone().sort(true, false)]).collect()
                        }
                        (true, _) => keys,
                        (false, _) => total_keys(keys, &schema),
                    })?;
                }
            }
            if uses.contains(&OrderUse::Accumulates) {
                aggregate.input = ordered(aggregate.input, Vec::new(), Vec::new());
            }
            Transformed::yes(LogicalPlan::Aggregate(aggregate))
        }
        other => Transformed::no(other),
    })
}

/// Changes the order of an aggregate's rows.
fn change_order_by(
    expr: &mut Expr,
    change: impl FnOnce(&AggregateFunctionParams, Vec<SortExpr>) -> Vec<SortExpr>,
) -> Result<()> {
    change_call(expr, |call| {
        let keys = std::mem::take(&mut call.params.order_by);
        call.params.order_by = change(&call.params, keys);
    })
}

/// Changes the call of an aggregate, and keeps the name by which nodes above refer to it.
fn change_call(expr: &mut Expr, change: impl FnOnce(&mut AggregateFunction)) -> Result<()> {
    let name = expr.schema_name().to_string();
    let mut call = &mut *expr;
    while let Expr::Alias(alias) = call {
        call = &mut alias.expr;
    }
    if let Expr::AggregateFunction(call) = call {
        change(call);
    }
    *expr = std::mem::take(expr).alias_if_changed(name)?;
    Ok(())
}

enum Found {
    Sorted(LogicalPlan),
    Unsorted(LogicalPlan),
}

/// Makes the order total that a plan's rows come in, where it comes in one: through projections and
/// limits down to the sort.
fn extend_sort(plan: LogicalPlan) -> Result<Found> {
    Ok(match plan {
        LogicalPlan::Sort(sort) => {
            let expr = total_keys(sort.expr, sort.input.schema());
            Found::Sorted(LogicalPlan::Sort(Sort { expr, ..sort }))
        }
        LogicalPlan::Projection(mut it) => below(Arc::clone(&it.input), |input| {
            it.input = input;
            LogicalPlan::Projection(it)
        })?,
        LogicalPlan::SubqueryAlias(mut it) => below(Arc::clone(&it.input), |input| {
            it.input = input;
            LogicalPlan::SubqueryAlias(it)
        })?,
        LogicalPlan::Limit(mut it) => below(Arc::clone(&it.input), |input| {
            it.input = input;
            LogicalPlan::Limit(it)
        })?,
        other => Found::Unsorted(other),
    })
}

fn below(input: Arc<LogicalPlan>, around: impl FnOnce(Arc<LogicalPlan>) -> LogicalPlan) -> Result<Found> {
    Ok(match extend_sort(Arc::unwrap_or_clone(input))? {
        Found::Sorted(input) => Found::Sorted(around(Arc::new(input))),
        Found::Unsorted(input) => Found::Unsorted(around(Arc::new(input))),
    })
}

/// The rows in the order asked for and, where that leaves ties or none was asked for, in the order of their
/// own values; where no order was asked for, the first `fetch` of them.
fn in_total_order(plan: LogicalPlan, fetch: Option<usize>) -> Result<LogicalPlan> {
    Ok(match extend_sort(plan)? {
        Found::Sorted(plan) => plan,
        Found::Unsorted(plan) => {
            let expr = total_keys(Vec::new(), plan.schema());
            match expr.is_empty() {
                true => plan,
                false => LogicalPlan::Sort(Sort { expr, input: Arc::new(plan), fetch }),
            }
        }
    })
}

/// Turns `a AND b` and `a OR b`, where `b` may fail, into CASE: the engine decides whether it computes `b`
/// for a whole batch at once, but for CASE row by row.
fn guard(node: LogicalPlan) -> Result<Transformed<LogicalPlan>> {
    // What a scan took over is total.
    if matches!(node, LogicalPlan::TableScan(_)) {
        return Ok(Transformed::no(node));
    }
    let schema = total::inputs_of(&node);
    let filters = matches!(node, LogicalPlan::Filter(_));
    let names = NamePreserver::new(&node);
    node.map_expressions(|expr| {
        let name = names.save(&expr);
        let written_out = without_fallible_lists(expr, &schema)?;
        let guarded = written_out.transform_data(|expr| match filters {
            true => guard_filter(expr, &schema),
            false => guard_value(expr, &schema),
        })?;
        Ok(guarded.update_data(|expr| name.restore(expr)))
    })
}

/// A list is looked through batch by batch too: one whose later items may fail is written out.
fn without_fallible_lists(expr: Expr, schema: &DFSchema) -> Result<Transformed<Expr>> {
    expr.transform_up(|expr| match expr {
        Expr::InList(InList { expr, list, negated })
            if list.iter().skip(1).any(|item| !total::is_total(item, schema)) =>
        {
            let equals = list.into_iter().map(|item| expr.as_ref().clone().eq(item)).reduce(Expr::or);
            let within = equals.unwrap_or_else(|| lit(false));
            Ok(Transformed::yes(if negated { Expr::Not(Box::new(within)) } else { within }))
        }
        other => Ok(Transformed::no(other)),
    })
}

/// Of a filter, where NULL keeps a row out as FALSE does.
fn guard_filter(expr: Expr, schema: &DFSchema) -> Result<Transformed<Expr>> {
    let Expr::BinaryExpr(BinaryExpr { left, op: op @ (Operator::And | Operator::Or), right }) = expr else {
        return guard_value(expr, schema);
    };
    let may_fail = !total::is_total(&right, schema);
    let (left, right) = (guard_filter(*left, schema)?, guard_filter(*right, schema)?);
    if !may_fail {
        let changed = left.transformed || right.transformed;
        let both = BinaryExpr::new(Box::new(left.data), op, Box::new(right.data));
        return Ok(Transformed::new_transformed(Expr::BinaryExpr(both), changed));
    }
    let (then, otherwise) = match op {
        Operator::And => (right.data, lit(false)),
        _ => (lit(true), right.data),
    };
    Ok(Transformed::yes(case(left.data, then, otherwise)))
}

fn guard_value(expr: Expr, schema: &DFSchema) -> Result<Transformed<Expr>> {
    expr.transform_up(|expr| {
        let Expr::BinaryExpr(BinaryExpr { left, op: op @ (Operator::And | Operator::Or), right }) = expr else {
            return Ok(Transformed::no(expr));
        };
        if total::is_total(&right, schema) {
            return Ok(Transformed::no(Expr::BinaryExpr(BinaryExpr { left, op, right })));
        }
        // The shorter side is the one that is written out twice: the longer would double at every level.
        if parts_of(&left)? > parts_of(&right)? {
            return Ok(Transformed::yes(by_value_of_left(*left, op, *right, schema)));
        }
        let both = Expr::BinaryExpr(BinaryExpr { left: left.clone(), op, right });
        let decided = match op {
            Operator::And => case(Expr::IsFalse(left), lit(false), both),
            _ => case(Expr::IsTrue(left), lit(true), both),
        };
        Ok(Transformed::yes(decided))
    })
}

/// `left AND right` or `left OR right`, with `left` written out once.
fn by_value_of_left(left: Expr, op: Operator, right: Expr, schema: &DFSchema) -> Expr {
    let deciding = op == Operator::Or;
    if matches!(left.nullable(schema), Ok(false)) {
        return match op {
            Operator::And => case(left, right, lit(false)),
            _ => case(left, lit(true), right),
        };
    }
    let unknown = BinaryExpr::new(Box::new(lit(ScalarValue::Boolean(None))), op, Box::new(right.clone()));
    let values = vec![(Box::new(lit(deciding)), Box::new(lit(deciding))), (Box::new(lit(!deciding)), Box::new(right))];
    Expr::Case(Case::new(Some(Box::new(left)), values, Some(Box::new(Expr::BinaryExpr(unknown)))))
}

fn parts_of(expr: &Expr) -> Result<usize> {
    let mut parts = 0;
    expr.apply(|_| {
        parts += 1;
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(parts)
}

fn case(when: Expr, then: Expr, otherwise: Expr) -> Expr {
    Expr::Case(Case::new(None, vec![(Box::new(when), Box::new(then))], Some(Box::new(otherwise))))
}

#[cfg(test)]
mod tests {
    use arrow::{
        array::{ArrayRef, BooleanArray, RecordBatch},
        datatypes::{Field, Schema},
    };
    use datafusion::{execution::SessionStateBuilder, prelude::col};

    use super::*;

    #[test]
    fn nested_conditions_do_not_double_at_every_level() {
        let schema = Schema::new(vec![Field::new("n", DataType::Int64, true)]);
        let schema = DFSchema::try_from(schema).unwrap();
        let fallible = |n: i64| (lit(1_i64) / (col("n") - lit(n))).eq(lit(1_i64));
        let left_deep = (0..12).map(fallible).reduce(Expr::and).unwrap();
        let right_deep = (0..12).map(fallible).reduce(|inner, outer| outer.or(inner)).unwrap();
        for expr in [left_deep, right_deep] {
            let parts = parts_of(&expr).unwrap();
            let guarded = guard_value(expr, &schema).unwrap().data;
            assert!((parts + 1..4 * parts).contains(&parts_of(&guarded).unwrap()), "{guarded}");
        }
    }

    #[test]
    fn by_the_value_of_one_side_both_come_to_the_same() {
        let values = [Some(true), Some(false), None];
        let pairs: Vec<_> = values.iter().flat_map(|left| values.map(|right| (*left, right))).collect();
        for (may_be_unknown, pairs) in
            [(true, pairs.clone()), (false, pairs.into_iter().filter(|(left, _)| left.is_some()).collect())]
        {
            let left: ArrayRef = Arc::new(pairs.iter().map(|pair| pair.0).collect::<BooleanArray>());
            let right: ArrayRef = Arc::new(pairs.iter().map(|pair| pair.1).collect::<BooleanArray>());
            let columns = [("left", left, may_be_unknown), ("right", right, true)];
            let rows = RecordBatch::try_from_iter_with_nullable(columns).unwrap();
            let schema = DFSchema::try_from(rows.schema()).unwrap();
            let state = SessionStateBuilder::new().build();
            let of = |expr: Expr| {
                let expr = state.create_physical_expr(expr, &schema).unwrap();
                expr.evaluate(&rows).unwrap().into_array(rows.num_rows()).unwrap()
            };
            for op in [Operator::And, Operator::Or] {
                let plain = BinaryExpr::new(Box::new(col("left")), op, Box::new(col("right")));
                let by_value = by_value_of_left(col("left"), op, col("right"), &schema);
                assert_eq!(&of(by_value), &of(Expr::BinaryExpr(plain)), "{op} {may_be_unknown}");
            }
        }
    }
}

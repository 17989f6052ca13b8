//! One change of meaning between what was written and what the engine would make of it: a day compared
//! with an instant is that day's midnight *in the data's zone*.
//!
//! The engine compares a zoned timestamp with a date at midnight UTC, which in Shanghai is eight in the
//! morning.

use arrow::datatypes::{DataType, TimeUnit};
use datafusion::{
    common::{
        DFSchema, Result,
        tree_node::{Transformed, TreeNode},
    },
    functions::datetime::to_local_time,
    logical_expr::{
        Between, BinaryExpr, Cast, Expr, ExprSchemable, LogicalPlan, expr::InList, expr_rewriter::NamePreserver,
    },
};

use super::total::inputs_of;

/// Rewrites comparisons of zoned timestamps with dates everywhere in a plan.
///
/// # Errors
/// Where the plan cannot be typed.
pub fn local_midnights(plan: LogicalPlan) -> Result<LogicalPlan> {
    let rewritten = plan.transform_up_with_subqueries(|node| {
        let schema = inputs_of(&node);
        // Parents refer to these expressions by name.
        let names = NamePreserver::new(&node);
        node.map_expressions(|expr| {
            let name = names.save(&expr);
            Ok(expr.transform_up(|expr| Ok(rewrite(expr, &schema)))?.update_data(|expr| name.restore(expr)))
        })
    })?;
    Ok(rewritten.data)
}

fn rewrite(expr: Expr, schema: &DFSchema) -> Transformed<Expr> {
    match expr {
        Expr::BinaryExpr(BinaryExpr { left, op, right }) if op.supports_propagation() => {
            let (zone_left, zone_right) = (zone(&left, schema), zone(&right, schema));
            let (left, right) = match (zone_left, zone_right) {
                (Some(zone), None) if is_date(&right, schema) => (left, Box::new(midnight(*right, &zone))),
                (None, Some(zone)) if is_date(&left, schema) => (Box::new(midnight(*left, &zone)), right),
                _ => return Transformed::no(Expr::BinaryExpr(BinaryExpr { left, op, right })),
            };
            Transformed::yes(Expr::BinaryExpr(BinaryExpr { left, op, right }))
        }
        Expr::Between(Between { expr, negated, low, high }) => {
            let Some(zone) = zone(&expr, schema) else {
                return Transformed::no(Expr::Between(Between { expr, negated, low, high }));
            };
            let bound = |bound: Box<Expr>| match is_date(&bound, schema) {
                true => Box::new(midnight(*bound, &zone)),
                false => bound,
            };
            let (low, high) = (bound(low), bound(high));
            Transformed::yes(Expr::Between(Between { expr, negated, low, high }))
        }
        Expr::InList(InList { expr, list, negated }) => {
            let Some(zone) = zone(&expr, schema) else {
                return Transformed::no(Expr::InList(InList { expr, list, negated }));
            };
            let item = |item: Expr| if is_date(&item, schema) { midnight(item, &zone) } else { item };
            let list = list.into_iter().map(item).collect();
            Transformed::yes(Expr::InList(InList { expr, list, negated }))
        }
        // Without its zone an instant is what the clock on the wall shows, not what it shows in Greenwich.
        Expr::Cast(Cast { expr, field })
            if matches!(field.data_type(), DataType::Timestamp(_, None)) && zone(&expr, schema).is_some() =>
        {
            Transformed::yes(Expr::Cast(Cast::new_from_field(Box::new(to_local_time().call(vec![*expr])), field)))
        }
        other => Transformed::no(other),
    }
}

fn zone(expr: &Expr, schema: &DFSchema) -> Option<std::sync::Arc<str>> {
    match expr.get_type(schema) {
        Ok(DataType::Timestamp(_, zone)) => zone,
        _ => None,
    }
}

fn is_date(expr: &Expr, schema: &DFSchema) -> bool {
    expr.get_type(schema).is_ok_and(|kind| kind == DataType::Date32)
}

fn midnight(day: Expr, zone: &std::sync::Arc<str>) -> Expr {
    // Without a zone first: that cast keeps the wall clock, the second one reads it in the zone.
    let wall = DataType::Timestamp(TimeUnit::Microsecond, None);
    let zoned = DataType::Timestamp(TimeUnit::Microsecond, Some(std::sync::Arc::clone(zone)));
    Expr::Cast(Cast::new(Box::new(Expr::Cast(Cast::new(Box::new(day), wall))), zoned))
}

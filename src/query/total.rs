//! Which expressions fail on no value, and how the others may fail.
//!
//! A total expression may be computed over rows the caller cannot see: it tells nothing by failing. All
//! others wait until only visible rows are left, and if one fails, the words for it are chosen here from
//! the query alone, never from which row failed first. PostgreSQL calls the same property LEAKPROOF.

use std::collections::BTreeSet;

use arrow::datatypes::{DataType, TimeUnit};
use datafusion::{
    common::{
        DFSchema,
        tree_node::{TreeNode, TreeNodeRecursion},
    },
    logical_expr::{
        BinaryExpr, Case, Cast, Expr, ExprSchemable, Like, LogicalPlan, Operator, TryCast,
        expr::{Alias, InList, ScalarFunction},
    },
};

use super::functions;
use crate::error::Error;

/// Whether the expression yields a value or NULL for every row, whatever is in it. Types must have been
/// fitted before, as the engine's analyzer does: a comparison of two types is taken for one that may fail.
pub fn is_total(expr: &Expr, schema: &DFSchema) -> bool {
    let total = |expr: &Expr| is_total(expr, schema);
    match expr {
        Expr::Column(_) | Expr::Literal(..) => true,
        Expr::Alias(Alias { expr, .. })
        | Expr::Not(expr)
        | Expr::IsNull(expr)
        | Expr::IsNotNull(expr)
        | Expr::IsTrue(expr)
        | Expr::IsFalse(expr)
        | Expr::IsUnknown(expr)
        | Expr::IsNotTrue(expr)
        | Expr::IsNotFalse(expr)
        | Expr::IsNotUnknown(expr) => total(expr),
        Expr::BinaryExpr(BinaryExpr { left, op, right }) => {
            total(left) && total(right) && operator_is_total(left, *op, right, schema)
        }
        Expr::Between(between) => {
            let same = [&between.low, &between.high].into_iter().all(|bound| same_type(&between.expr, bound, schema));
            same && [&between.expr, &between.low, &between.high].into_iter().all(|part| total(part))
        }
        Expr::InList(InList { expr, list, .. }) => {
            total(expr) && list.iter().all(|item| total(item) && same_type(expr, item, schema))
        }
        // A pattern that is no literal is compiled for every row, and one of them may be too large.
        Expr::Like(Like { expr, pattern, .. }) => total(expr) && is_short_pattern(pattern),
        Expr::Case(Case { expr, when_then_expr, else_expr }) => {
            expr.iter().chain(else_expr).all(|part| total(part))
                && when_then_expr.iter().all(|(when, then)| total(when) && total(then))
        }
        Expr::Cast(Cast { expr, field }) => {
            total(expr) && expr.get_type(schema).is_ok_and(|from| cast_is_total(&from, field.data_type()))
        }
        Expr::TryCast(TryCast { expr, field }) => {
            total(expr) && expr.get_type(schema).is_ok_and(|from| try_cast_is_total(&from, field.data_type()))
        }
        Expr::ScalarFunction(ScalarFunction { func, args }) => {
            functions::call_is_total(func.name(), args) && args.iter().all(total)
        }
        // INVARIANT: what is not known to be total may fail.
        _ => false,
    }
}

fn same_type(one: &Expr, other: &Expr, schema: &DFSchema) -> bool {
    match (one.get_type(schema), other.get_type(schema)) {
        (Ok(one), Ok(other)) => one == other || other == DataType::Null || one == DataType::Null,
        _ => false,
    }
}

fn operator_is_total(left: &Expr, op: Operator, right: &Expr, schema: &DFSchema) -> bool {
    let float = || left.get_type(schema).is_ok_and(|kind| kind.is_floating());
    match op {
        Operator::And | Operator::Or => true,
        Operator::Eq
        | Operator::NotEq
        | Operator::Lt
        | Operator::LtEq
        | Operator::Gt
        | Operator::GtEq
        | Operator::IsDistinctFrom
        | Operator::IsNotDistinctFrom => same_type(left, right, schema),
        // Whole numbers wrap around, floating point goes to infinity; decimals and dates overflow.
        Operator::Plus | Operator::Minus | Operator::Multiply => {
            let kind = left.get_type(schema);
            same_type(left, right, schema) && kind.is_ok_and(|kind| kind.is_integer() || kind.is_floating())
        }
        Operator::Divide | Operator::Modulo => float() && same_type(left, right, schema),
        Operator::LikeMatch | Operator::ILikeMatch | Operator::NotLikeMatch | Operator::NotILikeMatch => {
            is_short_pattern(right)
        }
        _ => false,
    }
}

/// The longest LIKE pattern that is compiled below the barrier, in bytes: one of megabytes fails.
const PATTERN: usize = 1_000;

fn is_short_pattern(expr: &Expr) -> bool {
    match expr {
        Expr::Literal(value, _) => value.try_as_str().flatten().is_none_or(|pattern| pattern.len() <= PATTERN),
        _ => false,
    }
}

/// Whether that cast fails on no value.
pub fn cast_is_total(from: &DataType, to: &DataType) -> bool {
    use DataType as D;
    let whole = |kind: &DataType| match kind {
        D::Int8 => 8,
        D::Int16 => 16,
        D::Int32 => 32,
        D::Int64 => 64,
        _ => 0,
    };
    let digits = |kind: &DataType| match kind {
        D::Int8 => 3,
        D::Int16 => 5,
        D::Int32 => 10,
        D::Int64 => 19,
        _ => u8::MAX,
    };
    match (from, to) {
        (from, to) if from == to => true,
        (D::Null, _) => true,
        (from, to) if whole(from) > 0 && whole(to) >= whole(from) => true,
        (from, D::Float64) if whole(from) > 0 => true,
        (D::Float32, D::Float64) => true,
        (D::Decimal128(..), D::Float64) => true,
        (from, D::Decimal128(precision, scale)) if whole(from) > 0 => {
            u8::try_from(*scale).is_ok_and(|scale| digits(from) <= precision.saturating_sub(scale))
        }
        (D::Decimal128(from_precision, from_scale), D::Decimal128(precision, scale)) => {
            scale >= from_scale
                && i16::from(*precision) - i16::from(*scale) >= i16::from(*from_precision) - i16::from(*from_scale)
        }
        (D::Boolean, to) if whole(to) > 0 => true,
        (from, D::Utf8) => whole(from) > 0 || matches!(from, D::Boolean | D::Float64 | D::Decimal128(..)),
        (D::Timestamp(TimeUnit::Microsecond, Some(_)), D::Timestamp(TimeUnit::Microsecond, Some(_))) => true,
        (D::Utf8 | D::LargeUtf8 | D::Utf8View, D::LargeUtf8 | D::Utf8View) => true,
        _ => false,
    }
}

/// A cast that answers NULL for what it cannot do still fails on days and instants beyond the calendar when
/// it writes them out, so only what reads a text or narrows a number counts.
fn try_cast_is_total(from: &DataType, to: &DataType) -> bool {
    let text = matches!(from, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View);
    let number = |kind: &DataType| kind.is_integer() || kind.is_floating() || matches!(kind, DataType::Decimal128(..));
    cast_is_total(from, to)
        || (text && (number(to) || matches!(to, DataType::Boolean | DataType::Date32)))
        || (number(from) && number(to))
}

/// A way in which an expression may fail, as people would say it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Failure {
    Division,
    Cast,
    Arithmetic,
    Function,
    ManyRows,
}

impl Failure {
    fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::Division => ("a division by zero", "use NULLIF"),
            Self::Cast => ("a value that cannot be cast", "filter or use TRY_CAST"),
            Self::Arithmetic => ("a number that grows out of its type", "cast to a wider one"),
            Self::Function => ("a value that a function does not take", "guard it with CASE"),
            Self::ManyRows => ("a subquery of one value with several rows", "aggregate it or add LIMIT 1"),
        }
    }
}

/// How a plan may fail on the values of its rows.
#[derive(Debug, Clone, Default)]
pub struct Failures(BTreeSet<Failure>);

impl Failures {
    /// The ways in which expressions anywhere in the plan may fail.
    ///
    /// # Errors
    /// Where the plan cannot be walked.
    pub fn of(plan: &LogicalPlan) -> datafusion::common::Result<Self> {
        let mut found = BTreeSet::new();
        plan.apply_with_subqueries(|node| {
            // What a scan took over is total.
            if matches!(node, LogicalPlan::TableScan(_)) {
                return Ok(TreeNodeRecursion::Continue);
            }
            let schema = inputs_of(node);
            node.apply_expressions(|expr| {
                expr.apply(|part| {
                    found.extend(failure(part, &schema));
                    Ok(TreeNodeRecursion::Continue)
                })
            })
        })?;
        Ok(Self(found))
    }

    /// What to tell a caller whose rows made an expression fail: the same whichever did.
    pub fn told(&self) -> Error {
        let mut ways: Vec<_> = self.0.iter().map(|failure| failure.words()).collect();
        let last = ways.pop();
        Error::DataError(match (last, ways.as_slice()) {
            (None, _) => "an expression fails on a value in the rows asked for; guard it with CASE".into(),
            (Some((what, instead)), []) => format!("{what} in the rows asked for; {instead}"),
            (Some((what, instead)), ways) => format!(
                "one of these in the rows asked for: {}, or {what} ({instead})",
                ways.iter().map(|(what, instead)| format!("{what} ({instead})")).collect::<Vec<_>>().join(", ")
            ),
        })
    }
}

/// What the expressions of a node can refer to.
pub fn inputs_of(node: &LogicalPlan) -> DFSchema {
    let mut schema = DFSchema::empty();
    for input in node.inputs() {
        schema.merge(input.schema());
    }
    schema
}

/// How this part alone may fail, its own parts left aside.
fn failure(part: &Expr, schema: &DFSchema) -> Option<Failure> {
    match part {
        Expr::BinaryExpr(BinaryExpr { left, op, right }) if !operator_is_total(left, *op, right, schema) => {
            Some(match op {
                Operator::Divide | Operator::Modulo => Failure::Division,
                Operator::Plus | Operator::Minus | Operator::Multiply => Failure::Arithmetic,
                _ => Failure::Function,
            })
        }
        Expr::Cast(Cast { expr, field }) => {
            let total = expr.get_type(schema).is_ok_and(|from| cast_is_total(&from, field.data_type()));
            (!total).then_some(Failure::Cast)
        }
        Expr::TryCast(TryCast { expr, field }) => {
            let total = expr.get_type(schema).is_ok_and(|from| try_cast_is_total(&from, field.data_type()));
            (!total).then_some(Failure::Cast)
        }
        Expr::Negative(_) => Some(Failure::Arithmetic),
        Expr::ScalarFunction(ScalarFunction { func, args }) if !functions::call_is_total(func.name(), args) => {
            Some(Failure::Function)
        }
        Expr::AggregateFunction(call) if matches!(call.func.name(), "sum" | "avg") => {
            let decimal = call.params.args.iter().any(|arg| arg.get_type(schema).is_ok_and(|kind| kind.is_decimal()));
            decimal.then_some(Failure::Arithmetic)
        }
        Expr::ScalarSubquery(_) => Some(Failure::ManyRows),
        _ => None,
    }
}

//! What a filter says about the range of a column. Files and row groups are left out by ranges; people ask for
//! the first digits of a division code and for the day of an instant. The filter itself is applied elsewhere:
//! here it is enough that no row it wants lies outside.

use arrow::datatypes::DataType;
use datafusion::{
    common::ScalarValue,
    logical_expr::{
        Between, BinaryExpr, Cast, Expr, Like, Operator,
        expr::{InList, ScalarFunction},
    },
    prelude::lit,
};

use super::division;
use crate::dataset::FieldType;

/// The type of a column that may be looked at below the barrier.
pub type Clear<'a> = &'a dyn Fn(&str) -> Option<FieldType>;

/// A condition that every row fulfils for which `filter` is true, as ranges of columns that `clear` admits.
/// `None` where nothing is known.
pub fn implied(filter: &Expr, clear: Clear<'_>) -> Option<Expr> {
    let again = |filter: &Expr| implied(filter, clear);
    match filter {
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::And, right }) => match (again(left), again(right)) {
            (Some(left), Some(right)) => Some(left.and(right)),
            (one, other) => one.or(other),
        },
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::Or, right }) => Some(again(left)?.or(again(right)?)),
        Expr::BinaryExpr(BinaryExpr { left, op, right }) => match (left.as_ref(), right.as_ref()) {
            (coarse, Expr::Literal(value, _)) => compared(coarse, *op, value, clear),
            (Expr::Literal(value, _), coarse) => compared(coarse, op.swap()?, value, clear),
            _ => None,
        },
        Expr::Between(Between { expr, negated: false, low, high }) => match (low.as_ref(), high.as_ref()) {
            (Expr::Literal(low, _), Expr::Literal(high, _)) => {
                let from = compared(expr, Operator::GtEq, low, clear)?;
                Some(from.and(compared(expr, Operator::LtEq, high, clear)?))
            }
            _ => None,
        },
        Expr::InList(InList { expr, list, negated: false }) => {
            let one = |item: &Expr| match item {
                Expr::Literal(value, _) => compared(expr, Operator::Eq, value, clear),
                _ => None,
            };
            list.iter().map(one).reduce(|one, other| Some(one?.or(other?)))?
        }
        Expr::Like(Like { negated: false, expr, pattern, escape_char: None, case_insensitive: false }) => {
            let Expr::Literal(pattern, _) = pattern.as_ref() else { return None };
            let pattern = pattern.try_as_str().flatten()?;
            let prefix = &pattern[..pattern.find(['%', '_', '\\']).unwrap_or(pattern.len())];
            starts_with(column(expr, FieldType::Text, clear)?, prefix)
        }
        Expr::ScalarFunction(ScalarFunction { func, args }) => match (func.name(), args.as_slice()) {
            ("starts_with", [text, Expr::Literal(prefix, _)]) => {
                starts_with(column(text, FieldType::Text, clear)?, prefix.try_as_str().flatten()?)
            }
            _ => None,
        },
        _ => None,
    }
}

/// A coarse form of a column compared with a literal.
fn compared(coarse: &Expr, op: Operator, value: &ScalarValue, clear: Clear<'_>) -> Option<Expr> {
    match coarse {
        Expr::ScalarFunction(ScalarFunction { func, args }) if op == Operator::Eq => {
            let text = match (func.name(), args.as_slice()) {
                ("substr", [text, Expr::Literal(ScalarValue::Int64(Some(1)), _), Expr::Literal(..)]) => text,
                ("left", [text, Expr::Literal(ScalarValue::Int64(Some(width)), _)]) if *width > 0 => text,
                (division::NAME, [text, Expr::Literal(..)]) => text,
                _ => return None,
            };
            starts_with(column(text, FieldType::Text, clear)?, value.try_as_str().flatten()?)
        }
        Expr::Cast(Cast { expr, field }) if *field.data_type() == DataType::Date32 => {
            let ScalarValue::Date32(Some(day)) = value else { return None };
            on_day(column(expr, FieldType::Timestamp, clear)?, op, *day)
        }
        _ => None,
    }
}

/// The column, where it is of that type: a range of another would be compared after a cast, which may fail.
fn column(expr: &Expr, kind: FieldType, clear: Clear<'_>) -> Option<Expr> {
    match expr {
        Expr::Column(column) if clear(&column.name) == Some(kind) => {
            Some(Expr::Column(datafusion::common::Column::from_name(&column.name)))
        }
        _ => None,
    }
}

fn starts_with(column: Expr, prefix: &str) -> Option<Expr> {
    if prefix.is_empty() {
        return None;
    }
    let from = column.clone().gt_eq(lit(prefix));
    Some(match after(prefix) {
        Some(end) => from.and(column.lt(lit(end))),
        None => from,
    })
}

/// The least text above all that start with `prefix`.
fn after(prefix: &str) -> Option<String> {
    let mut text: Vec<char> = prefix.chars().collect();
    while let Some(last) = text.pop() {
        // Past the last character, and over those that no text holds, there is nothing to add one to.
        if let Some(next) = char::from_u32(last as u32 + 1) {
            text.push(next);
            return Some(text.into_iter().collect());
        }
    }
    None
}

/// A local day as a range of instants, whatever the zone: no clock has ever been set more than 16 hours from
/// that of UTC.
fn on_day(column: Expr, op: Operator, day: i32) -> Option<Expr> {
    const HOUR: i64 = 3_600_000_000;
    let instant = |days: i64, hours: i64| {
        let micros = days.checked_mul(24 * HOUR)?.checked_add(hours * HOUR)?;
        Some(lit(ScalarValue::TimestampMicrosecond(Some(micros), Some("UTC".into()))))
    };
    let day = i64::from(day);
    let from = instant(day, -16)?;
    let until = instant(day + 1, 16)?;
    match op {
        Operator::Eq => Some(column.clone().gt_eq(from).and(column.lt(until))),
        Operator::Gt | Operator::GtEq => Some(column.gt_eq(from)),
        Operator::Lt | Operator::LtEq => Some(column.lt(until)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use datafusion::{
        logical_expr::cast,
        prelude::{col, lit, substring},
    };

    use super::*;

    fn of(filter: &Expr) -> Option<String> {
        let clear = |name: &str| match name {
            "grid" => Some(FieldType::Text),
            "at" => Some(FieldType::Timestamp),
            _ => None,
        };
        implied(filter, &clear).map(|range| range.to_string())
    }

    #[test]
    fn prefixes_become_ranges() {
        let district = substring(col("grid"), lit(1_i64), lit(6_i64));
        assert_eq!(of(&district.eq(lit("420199"))).unwrap(), "grid >= Utf8(\"420199\") AND grid < Utf8(\"42019:\")");
        let district = division::function().call(vec![col("grid"), lit("district")]);
        assert_eq!(of(&district.clone().eq(lit("420199"))), of(&col("grid").like(lit("420199%"))));
        assert_eq!(of(&lit("42").lt(district.clone())), None);
        assert_eq!(of(&division::function().call(vec![col("hidden"), lit("city")]).eq(lit("4201"))), None);
        assert_eq!(of(&district.in_list(vec![lit("a"), lit("b")], true)), None);
        assert_eq!(of(&col("grid").like(lit("a%b"))).unwrap(), "grid >= Utf8(\"a\") AND grid < Utf8(\"b\")");
        assert_eq!(of(&col("grid").like(lit("%b"))), None);
        assert_eq!(of(&col("hidden").like(lit("a%"))), None);
        assert_eq!(of(&col("grid").like(lit("a%")).or(col("grid").eq(lit("c")))), None);
        assert_eq!(after("a\u{10ffff}").as_deref(), Some("b"));
        assert_eq!(after("\u{10ffff}"), None);
        // The next number is a surrogate, which is no character.
        assert_eq!(after("a\u{d7ff}").as_deref(), Some("b"));
    }

    #[test]
    fn days_become_ranges_of_instants() {
        let day = |n: i32| lit(ScalarValue::Date32(Some(n)));
        assert_eq!(of(&cast(col("grid"), DataType::Date32).eq(day(1))), None);
        let told = of(&cast(col("at"), DataType::Date32).between(day(1), day(2))).unwrap();
        let hour = 3_600_000_000_i64;
        assert_eq!(
            told,
            format!(
                "at >= TimestampMicrosecond({}, Some(\"UTC\")) AND at < TimestampMicrosecond({}, Some(\"UTC\"))",
                8 * hour,
                88 * hour
            )
        );
    }
}

//! The stretch of a column's texts outside of which a condition does not hold.

use datafusion::logical_expr::{Between, BinaryExpr, Expr, Operator, expr::InList};

use crate::store::stretch::Stretch;

/// The texts of that column of which a condition may hold, and perhaps more.
pub fn of(condition: &Expr, column: &str) -> Stretch {
    found(condition, column).unwrap_or_default()
}

fn found(condition: &Expr, column: &str) -> Option<Stretch> {
    match condition {
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::And, right }) => {
            Some(of(left, column).and(of(right, column)))
        }
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::Or, right }) => Some(of(left, column).or(of(right, column))),
        Expr::BinaryExpr(BinaryExpr { left, op, right }) if is_that(left, column) => compared(*op, literal(right)?),
        Expr::BinaryExpr(BinaryExpr { left, op, right }) if is_that(right, column) => {
            compared(op.swap()?, literal(left)?)
        }
        Expr::Between(Between { expr, negated: false, low, high }) if is_that(expr, column) => {
            Some(Stretch::from(literal(low)?).and(Stretch::up_to(literal(high)?)))
        }
        Expr::InList(InList { expr, list, negated: false }) if is_that(expr, column) => {
            let texts = list.iter().map(|item| literal(item).map(Stretch::at)).collect::<Option<Vec<_>>>()?;
            texts.into_iter().reduce(Stretch::or)
        }
        _ => None,
    }
}

fn compared(op: Operator, text: &str) -> Option<Stretch> {
    match op {
        Operator::Eq => Some(Stretch::at(text)),
        Operator::GtEq => Some(Stretch::from(text)),
        Operator::Gt => Some(Stretch::after(text)),
        Operator::Lt => Some(Stretch::below(text)),
        Operator::LtEq => Some(Stretch::up_to(text)),
        _ => None,
    }
}

fn is_that(expr: &Expr, column: &str) -> bool {
    matches!(expr, Expr::Column(found) if found.name == column)
}

fn literal(expr: &Expr) -> Option<&str> {
    match expr {
        Expr::Literal(value, _) => value.try_as_str()?,
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use datafusion::prelude::{col, lit};

    use super::*;

    #[test]
    fn conditions_are_read_as_stretches() {
        let code = || col("code");
        let both = |from: &str, below: &str| Stretch::from(from).and(Stretch::below(below));
        for (condition, stretch) in [
            (code().gt_eq(lit("42")).and(code().lt(lit("43"))), both("42", "43")),
            (code().is_not_null().and(code().gt_eq(lit("42"))), Stretch::from("42")),
            (lit("42").lt(code()), Stretch::after("42")),
            (code().eq(lit("1")).or(code().eq(lit("3"))), Stretch::at("1").or(Stretch::at("3"))),
            (code().in_list(vec![lit("1"), lit("3")], false), Stretch::at("1").or(Stretch::at("3"))),
            (code().between(lit("1"), lit("3")), Stretch::from("1").and(Stretch::up_to("3"))),
            // Nothing is known of what the other side lets pass.
            (code().eq(lit("1")).or(col("other").eq(lit("3"))), Stretch::default()),
            (code().in_list(vec![lit("1"), col("other")], false), Stretch::default()),
            (code().in_list(vec![lit("1")], true), Stretch::default()),
            (code().not_eq(lit("1")), Stretch::default()),
            (Expr::Not(Box::new(code().eq(lit("1")))), Stretch::default()),
            (col("other").eq(lit("1")), Stretch::default()),
        ] {
            assert_eq!(of(&condition, "code"), stretch, "{condition}");
        }
    }
}

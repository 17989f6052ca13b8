//! `protected-flag`: whether a person also stands in another dataset. EXISTS, NOT EXISTS, IN and NOT IN are one
//! yes or no a row, decided by the person alone and by which of two recorded times came first; they pick the
//! same people for everybody who asks. (NOT IN is answered as NOT EXISTS: rows that name nobody name nobody.)

use datafusion::logical_expr::{BinaryExpr, Expr, Operator};

use super::same_subject;
use crate::{
    dataset::{Bin, FieldType},
    disclose::region::{Region, What},
    error::{Error, Result},
    policy::Exposure,
};

const NAME: &str = "protected-flag";

pub fn check(region: &Region) -> Result<()> {
    for conditions in region.parts.flags.iter().map(|flag| &flag.on) {
        let links = conditions.iter().filter(|condition| same_subject(region, condition)).count();
        let others = conditions.iter().filter(|condition| !same_subject(region, condition));
        if links != 1 || !others.clone().all(|condition| is_earlier_or_later(region, condition)) {
            return Err(Error::refused(
                NAME,
                "a subquery is linked to the query around it by something other than the person, and which of two \
                 days or times came first",
                "EXISTS (SELECT 1 FROM t WHERE t.id_no = s.id_no AND filters of t), with t.sampled_at >= s.visited_at \
                 if you like; or s.id_no IN (SELECT id_no FROM t WHERE filters of t)",
            ));
        }
    }
    Ok(())
}

/// One recorded time compared with another.
fn is_earlier_or_later(region: &Region, condition: &Expr) -> bool {
    let Expr::BinaryExpr(BinaryExpr { left, op, right }) = condition else { return false };
    let time = |expr: &Expr| match region.what(expr.try_as_col()?)? {
        What::Field(field, Exposure::Clear | Exposure::Aggregate)
            if matches!(field.kind, FieldType::Date | FieldType::Timestamp) && field.bins.contains(&Bin::Day) =>
        {
            Some(field.kind)
        }
        _ => None,
    };
    matches!(op, Operator::Lt | Operator::LtEq | Operator::Gt | Operator::GtEq)
        && time(left).is_some_and(|kind| time(right) == Some(kind))
}

//! `protected-join`: tables of a sealed region are joined on the person, or on a coarse column to a register
//! that is about nobody. Any other join would pick people at the caller's will, and many joins weigh them so.

use datafusion::logical_expr::{BinaryExpr, Expr, Operator};

use super::{filter, same_subject};
use crate::{
    dataset::Bin,
    disclose::{
        coarse,
        region::{Region, What},
    },
    error::{Error, Result},
};

const NAME: &str = "protected-join";

/// The most datasets about people whose rows are joined one by one. Each gives people another weight in what is
/// counted, and each weighting is another look at the same set.
const MOST: usize = 2;

pub fn check(region: &Region) -> Result<()> {
    for conditions in &region.parts.joins {
        let mut linked = false;
        for condition in conditions {
            match same_subject(region, condition) || to_reference(region, condition) {
                true => linked = true,
                false if is_equality_of_columns(condition) => return Err(refusal()),
                false => filter::condition(region, condition)?,
            }
        }
        if !linked {
            return Err(refusal());
        }
    }
    let people = region.row_by_row().into_iter().filter(|table| !table.is_reference()).count();
    match people <= MOST {
        true => Ok(()),
        false => Err(Error::refused(
            NAME,
            format!(
                "below a protected aggregate rows of {people} datasets are joined one by one, and {MOST} are the most"
            ),
            "join what is computed once a person, as (SELECT id_no, count(*) FROM t GROUP BY id_no), or ask with EXISTS",
        )),
    }
}

/// A coarse form of one table looked up in a register.
fn to_reference(region: &Region, condition: &Expr) -> bool {
    let Expr::BinaryExpr(BinaryExpr { left, op: Operator::Eq, right }) = condition else { return false };
    let register = |expr: &Expr| {
        let Expr::Column(column) = expr else { return false };
        let registered = matches!(region.what(column), Some(What::Field(field, _)) if field.bins.contains(&Bin::Value));
        registered && region.table(column).is_some_and(|table| table.is_reference())
    };
    let coarse = |expr: &Expr| coarse::is_key(expr, &|column| region.dimension(column), &region.schema);
    (register(left) && coarse(right)) || (register(right) && coarse(left))
}

fn is_equality_of_columns(condition: &Expr) -> bool {
    matches!(condition, Expr::BinaryExpr(BinaryExpr { left, op: Operator::Eq, right })
        if !left.column_refs().is_empty() && !right.column_refs().is_empty())
}

fn refusal() -> Error {
    Error::refused(
        NAME,
        "below a protected aggregate there is a join on something other than the same person, or a coarse column \
         and a register that is about nobody",
        "JOIN or LEFT JOIN on the fields that name the person in both datasets, as in ON t.id_no = r.id_no",
    )
}

//! `protected-summary`: what may be computed once a person, to group or filter by: the largest or smallest of
//! a field that has registered bins, and how many rows or records there are.

use datafusion::logical_expr::{Expr, expr::AggregateFunction};

use crate::{
    disclose::region::Region,
    error::{Error, Result},
};

const NAME: &str = "protected-summary";

pub fn check(region: &Region) -> Result<()> {
    match region.parts.summaries.iter().all(|call| is_listed(region, call)) {
        true => Ok(()),
        false => Err(Error::refused(
            NAME,
            "a value computed once a person is something other than max or min of a field with registered bins, or a \
             count",
            "SELECT id_no, max(dose_no) AS doses FROM t GROUP BY id_no, or count(*)",
        )),
    }
}

fn is_listed(region: &Region, call: &Expr) -> bool {
    let Expr::AggregateFunction(AggregateFunction { func, params }) = call else { return false };
    if params.filter.is_some() || !params.order_by.is_empty() || params.null_treatment.is_some() {
        return false;
    }
    match (func.name(), params.args.as_slice()) {
        ("max" | "min", [Expr::Column(column)]) => region.dimension(column).is_some_and(|it| !it.bins.is_empty()),
        ("count", [Expr::Column(_)]) => true,
        ("count", [Expr::Literal(value, _)]) => !params.distinct && !value.is_null(),
        _ => false,
    }
}

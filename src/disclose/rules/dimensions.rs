//! `protected-dimensions`: how many things may narrow one cell. Each multiplies the sets of people a caller can
//! draw, and reconstruction lives on many sets (Dinur and Nissim 2003).

use std::collections::BTreeSet;

use datafusion::{
    common::Column,
    logical_expr::{Expr, expr::AggregateFunction},
};

use crate::{
    disclose::region::{Region, Table, What},
    error::{Error, Result},
};

const NAME: &str = "protected-dimensions";

/// The most columns and flags that keys, filters and the condition of a call may use together.
const MOST: usize = 4;

pub fn check(region: &Region) -> Result<()> {
    let picks = region.keys.iter().chain(&region.parts.filters).flat_map(Expr::column_refs);
    // What a join is linked by narrows nothing, but conditions beside it do.
    let beside = region.parts.joins.iter().flatten().flat_map(Expr::column_refs).filter(|column| {
        !matches!(region.what(column), Some(What::Subject(_))) && !region.table(column).is_some_and(Table::is_reference)
    });
    let picks: BTreeSet<_> = picks.chain(beside).collect();
    let of_call =
        |call: &Expr| picks.iter().copied().chain(conditions(call)).cloned().collect::<BTreeSet<Column>>().len();
    let widest = region.calls.iter().map(of_call).max().unwrap_or(picks.len());
    // A flag is narrowed by columns that are among these already, or is one thing itself.
    let used = widest + region.parts.flags.iter().filter(|flag| !flag.is_narrowed).count();
    match used <= MOST {
        true => Ok(()),
        false => Err(Error::refused(
            NAME,
            format!("the cells are narrowed by {used} columns and flags, and {MOST} are the most"),
            format!("use at most {MOST} different columns and flags in GROUP BY, WHERE and FILTER or CASE together"),
        )),
    }
}

/// The columns that a call's FILTER and CASE look at.
fn conditions(call: &Expr) -> Vec<&Column> {
    let Expr::AggregateFunction(AggregateFunction { params, .. }) = call else { return Vec::new() };
    let cases = params.args.iter().filter_map(|argument| match argument {
        Expr::Case(case) => Some(case.when_then_expr.iter().map(|(when, _)| when.as_ref())),
        _ => None,
    });
    cases.flatten().chain(params.filter.as_deref()).flat_map(Expr::column_refs).collect()
}

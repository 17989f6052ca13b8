//! The rules of the sealed region, one a file, and the order in which they are tried. A refusal names the
//! first rule that is broken. All of them look at the query and the policy and never at data, so that a
//! refusal tells nothing but what was asked.

mod dimensions;
mod filter;
mod flag;
mod group_key;
mod join;
pub mod shape;
mod summary;

use std::collections::BTreeSet;

use datafusion::{
    common::Column,
    logical_expr::{BinaryExpr, Expr, Operator},
};

use super::{
    coarse,
    region::{Region, What},
};
use crate::error::Result;

/// A rule looks at a region and refuses it, in its own name, or lets it pass.
type Rule = fn(&Region) -> Result<()>;

/// All rules, in the order in which they are tried. Before them stands `protected-shape`, without which
/// there is no region to look at; after them the rules of single statistics, in `statistic`.
const RULES: [Rule; 6] = [join::check, flag::check, summary::check, filter::check, group_key::check, dimensions::check];

/// Tries all rules.
///
/// # Errors
/// The refusal of the first that is broken.
pub fn check(region: &Region) -> Result<()> {
    RULES.iter().try_for_each(|rule| rule(region))
}

/// Checks a condition by the grammar of filters, which conditions of calls share.
///
/// # Errors
/// `protected-filter`.
pub fn condition(region: &Region, condition: &Expr) -> Result<()> {
    filter::condition(region, condition)
}

/// Whether two columns name subjects who can be told apart within one domain, and are compared for equality.
fn same_subject(region: &Region, condition: &Expr) -> bool {
    let Expr::BinaryExpr(BinaryExpr { left, op: Operator::Eq, right }) = condition else { return false };
    let domain = |expr: &Expr| match region.what(expr.try_as_col()?)? {
        What::Subject(table) if table.view().dataset.subject.is_some() => Some(table.domain()),
        _ => None,
    };
    match (domain(left), domain(right)) {
        (Some(one), Some(other)) => one == other && left != right,
        _ => false,
    }
}

/// The coarse forms of a region's columns, as a caller would write them.
fn coarse_forms(region: &Region) -> String {
    let mut forms = Vec::new();
    for (at, table) in region.tables.iter().enumerate() {
        for (name, _) in &table.view().fields {
            let column = Column::new(Some(format!("t{at}")), name);
            if let Some(dimension) = region.dimension(&column) {
                forms.extend(coarse::forms(name, &dimension));
            }
        }
    }
    let mut known = BTreeSet::new();
    forms.retain(|form| known.insert(form.clone()));
    match forms.is_empty() {
        true => "nothing: these datasets have no coarse column, so ask for the whole".into(),
        false => forms.join(", "),
    }
}

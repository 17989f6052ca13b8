//! Which column of the catalogue a column of an answer is, as it is: object ids and single letters have types of
//! their own in PostgreSQL, and clients that read the binary form go by them.
//!
//! The engine knows these as numbers and texts. So the types are not in its tables, where every expression would have
//! to carry them along, but found afterwards in the plan.

use std::collections::HashMap;

use arrow_pg::datatypes::{PG_CHAR_KEY, PG_OID_ALIAS_KEY};
use datafusion::{
    common::JoinType,
    logical_expr::{Distinct, Expr, LogicalPlan},
};

use super::system::{self, Sort};

/// What the field of that column of a plan says of itself to the doors; nothing where its type says it all.
pub(super) fn marks(plan: &LogicalPlan, column: usize) -> HashMap<String, String> {
    let mark = |key: &str, value: &str| HashMap::from([(key.to_owned(), value.to_owned())]);
    match sort(plan, column) {
        Some(Sort::ObjectId) => mark(PG_OID_ALIAS_KEY, "oid"),
        Some(Sort::Letter) => mark(PG_CHAR_KEY, ""),
        None => HashMap::new(),
    }
}

fn sort(plan: &LogicalPlan, column: usize) -> Option<Sort> {
    match plan {
        LogicalPlan::TableScan(scan) => {
            let field = scan.projected_schema.fields().get(column)?;
            system::sort(scan.table_name.schema()?, scan.table_name.table(), field.name())
        }
        LogicalPlan::Projection(projection) => of(projection.expr.get(column)?, &projection.input),
        LogicalPlan::Aggregate(aggregate) => of(aggregate.group_expr.get(column)?, &aggregate.input),
        LogicalPlan::Join(join) => {
            let left = join.left.schema().fields().len();
            match join.join_type {
                JoinType::Inner | JoinType::Left | JoinType::Right | JoinType::Full if column < left => {
                    sort(&join.left, column)
                }
                JoinType::Inner | JoinType::Left | JoinType::Right | JoinType::Full => sort(&join.right, column - left),
                JoinType::LeftSemi | JoinType::LeftAnti => sort(&join.left, column),
                _ => None,
            }
        }
        // Both sides have to be it.
        LogicalPlan::Union(union) => {
            let mut sorts = union.inputs.iter().map(|input| sort(input, column));
            let first = sorts.next()?;
            first.filter(|_| sorts.all(|other| other == first))
        }
        // What a window computes stands behind what it was given.
        LogicalPlan::Window(window) if column < window.input.schema().fields().len() => sort(&window.input, column),
        LogicalPlan::SubqueryAlias(alias) => sort(&alias.input, column),
        LogicalPlan::Filter(filter) => sort(&filter.input, column),
        LogicalPlan::Sort(sorted) => sort(&sorted.input, column),
        LogicalPlan::Limit(limit) => sort(&limit.input, column),
        LogicalPlan::Distinct(Distinct::All(input)) => sort(input, column),
        _ => None,
    }
}

fn of(expr: &Expr, input: &LogicalPlan) -> Option<Sort> {
    match expr {
        Expr::Alias(alias) => of(&alias.expr, input),
        Expr::Column(column) => sort(input, input.schema().maybe_index_of_column(column)?),
        _ => None,
    }
}

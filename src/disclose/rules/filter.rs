//! `protected-filter`: rows of a sealed region are picked by coarse columns only, each condition on its own, so
//! that no set of people can be drawn at will: no OR, no NOT, no list that leaves one out of a fine column.

use datafusion::logical_expr::Expr;

use super::coarse_forms;
use crate::{
    disclose::{
        coarse,
        region::{Region, What},
    },
    error::{Error, Result},
};

const NAME: &str = "protected-filter";

pub fn check(region: &Region) -> Result<()> {
    region.parts.filters.iter().try_for_each(|condition| self::condition(region, condition))
}

pub fn condition(region: &Region, condition: &Expr) -> Result<()> {
    if tests_presence(region, condition) {
        return Ok(());
    }
    coarse::check(condition, &|column| region.dimension(column), &region.schema).map_err(|fault| {
        let column = condition.column_refs().into_iter().find(|column| Some(&column.name) == fault.column.as_ref());
        let name =
            column.map_or_else(|| "a condition without a column".to_owned(), |it| format!("`{}`", region.name(it)));
        Error::refused(NAME, format!("{name} {}", fault.why.words()), format!("filter by {}", coarse_forms(region)))
    })
}

/// Whether the person of a joined table is there.
fn tests_presence(region: &Region, condition: &Expr) -> bool {
    let (Expr::IsNull(inner) | Expr::IsNotNull(inner)) = condition else { return false };
    matches!(inner.as_ref(), Expr::Column(column) if matches!(region.what(column), Some(What::Subject(_))))
}

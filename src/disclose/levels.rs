//! The ladder of divisions on which too small cells are rolled up: grid, community, subdistrict, district, city.

use datafusion::logical_expr::{Expr, expr::ScalarFunction};

use super::region::{Region, What};
use crate::{
    dataset::{
        Generalise,
        division::{self, LEVELS},
    },
    error::{Error, Result},
};

/// A group key that is a division code, and how long its codes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ladder {
    /// Which of the group keys it is.
    pub key: usize,
    /// The digits of its codes.
    pub width: usize,
}

/// The level of codes of that many digits.
pub fn word(width: usize) -> &'static str {
    LEVELS.iter().find(|(_, digits)| *digits == width).map_or("group", |(word, _)| word)
}

/// The digits of codes above those of `width`, from the next to the last.
pub fn above(width: usize) -> impl Iterator<Item = usize> {
    LEVELS.iter().rev().map(|(_, digits)| *digits).filter(move |digits| *digits < width)
}

/// The first group key of a region that is a division code.
///
/// # Errors
/// `roll-up`, where there is none.
pub fn of(region: &Region) -> Result<Ladder> {
    let ladder =
        region.keys.iter().enumerate().find_map(|(key, expr)| Some(Ladder { key, width: width(region, expr)? }));
    ladder.ok_or_else(|| {
        Error::refused(
            "roll-up",
            "small cells are to be answered at a larger division, and no group key is a division code",
            "GROUP BY division(grid_code, 'community'), or ask without rolling up",
        )
    })
}

fn width(region: &Region, key: &Expr) -> Option<usize> {
    let digits = |expr: &Expr| match expr {
        Expr::Literal(value, _) => value.to_string().parse::<usize>().ok(),
        _ => None,
    };
    let (column, width) = match key {
        Expr::Column(column) => (column, None),
        Expr::ScalarFunction(ScalarFunction { func, args }) => match (func.name(), args.as_slice()) {
            ("substr", [Expr::Column(column), _, width]) | ("left", [Expr::Column(column), width]) => {
                (column, Some(digits(width)?))
            }
            ("division", [Expr::Column(column), Expr::Literal(level, _)]) => {
                (column, Some(division::width(level.try_as_str()??)?))
            }
            _ => return None,
        },
        _ => return None,
    };
    let What::Field(field, _) = region.what(column)? else { return None };
    field.division?;
    let width = width.or(match region.dimension(column)?.generalised {
        Some(Generalise::Prefix(width)) => usize::try_from(width).ok(),
        _ => division::width("grid"),
    })?;
    LEVELS.iter().any(|(_, digits)| *digits == width).then_some(width)
}

//! `protected-shape`: what a protected aggregate may stand on at all.

use crate::error::Error;

/// The refusal of a part that has no place in a sealed region.
pub fn refusal(what: &str) -> Error {
    Error::refused(
        "protected-shape",
        format!("below a protected aggregate there is {what}"),
        "SELECT coarse columns, count(*), avg(a sealed column) FROM one dataset, with JOIN or LEFT JOIN on the person, \
         EXISTS or NOT EXISTS of the same person in another dataset, and filters joined by AND, GROUP BY those columns",
    )
}

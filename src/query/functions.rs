//! The functions callers may use: an allow list.
//!
//! What is not listed is refused by name wherever it turns up in a plan, so a new version of the engine
//! adds nothing by itself. Left out on purpose: functions that differ from call to call (`random`,
//! `uuid`), that tell of storage or engine (`version`, `input_file_name`, `arrow_metadata`), that grow
//! memory without bound (`repeat`, `lpad`, `replace`, `range`), that read patterns otherwise than PostgreSQL does
//! (`to_char`), and everything on nested values.

use std::sync::Arc;

use datafusion::{
    execution::SessionStateDefaults,
    logical_expr::{AggregateUDF, Expr, ScalarUDF, WindowUDF},
};

use crate::error::{Error, Result};

/// Scalar functions by their canonical names.
const SCALAR: &[&str] = &[
    "abs",
    "acos",
    "ascii",
    "asin",
    "atan",
    "atan2",
    "bit_length",
    "btrim",
    "cbrt",
    "ceil",
    "character_length",
    "chr",
    "coalesce",
    "concat",
    "concat_ws",
    "contains",
    "cos",
    "current_date",
    "date_part",
    "date_trunc",
    "degrees",
    "ends_with",
    "exp",
    "floor",
    "greatest",
    "initcap",
    "isnan",
    "iszero",
    "least",
    "left",
    "ln",
    "log",
    "log10",
    "log2",
    "lower",
    "ltrim",
    "make_date",
    "nanvl",
    "now",
    "nullif",
    "nvl",
    "nvl2",
    "octet_length",
    "pi",
    "power",
    "radians",
    "regexp_like",
    "reverse",
    "right",
    "round",
    "rtrim",
    "signum",
    "sin",
    "split_part",
    "sqrt",
    "starts_with",
    "strpos",
    "substr",
    "tan",
    "to_date",
    "to_local_time",
    "to_timestamp",
    "to_unixtime",
    "translate",
    "trunc",
    "upper",
];

/// Aggregate functions, which may also stand over a window.
const AGGREGATE: &[&str] = &[
    "approx_distinct",
    "approx_median",
    "approx_percentile_cont",
    "avg",
    "bool_and",
    "bool_or",
    "corr",
    "count",
    "covar_pop",
    "covar_samp",
    "first_value",
    "grouping",
    "last_value",
    "max",
    "median",
    "min",
    "percentile_cont",
    "regr_slope",
    "regr_intercept",
    "regr_r2",
    "stddev",
    "stddev_pop",
    "string_agg",
    "sum",
    "var",
    "var_pop",
];

/// Window functions.
const WINDOW: &[&str] = &[
    "cume_dist",
    "dense_rank",
    "first_value",
    "lag",
    "last_value",
    "lead",
    "nth_value",
    "ntile",
    "percent_rank",
    "rank",
    "row_number",
];

fn listed(list: &[&str], name: &str) -> bool {
    list.contains(&name)
}

/// Whether callers may use the scalar function of that canonical name.
pub fn allows_scalar(name: &str) -> bool {
    listed(SCALAR, name)
}

/// Whether callers may use the aggregate function of that canonical name.
pub fn allows_aggregate(name: &str) -> bool {
    listed(AGGREGATE, name)
}

/// Whether callers may use the window function of that canonical name.
pub fn allows_window(name: &str) -> bool {
    listed(WINDOW, name) || listed(AGGREGATE, name)
}

/// The engine's scalar functions that are listed.
pub fn scalar() -> Vec<Arc<ScalarUDF>> {
    SessionStateDefaults::default_scalar_functions().into_iter().filter(|f| allows_scalar(f.name())).collect()
}

/// The engine's aggregate functions that are listed.
pub fn aggregate() -> Vec<Arc<AggregateUDF>> {
    SessionStateDefaults::default_aggregate_functions().into_iter().filter(|f| allows_aggregate(f.name())).collect()
}

/// The engine's window functions that are listed.
pub fn window() -> Vec<Arc<WindowUDF>> {
    SessionStateDefaults::default_window_functions().into_iter().filter(|f| listed(WINDOW, f.name())).collect()
}

/// Refuses arguments by which a listed function would reserve memory without bound.
///
/// # Errors
/// [`Error::Refused`].
pub fn check_arguments(name: &str, arguments: &[Expr]) -> Result<()> {
    // The third argument is a size that the engine reserves at once, however large.
    match name == "approx_percentile_cont" && arguments.len() > 2 {
        true => Err(Error::refused(
            "function-not-listed",
            "approx_percentile_cont with a number of centroids",
            "leave the third argument out",
        )),
        false => Ok(()),
    }
}

/// The refusal of a function, the same whether it exists elsewhere or not.
pub fn refusal(name: &str) -> Error {
    let name: String = name.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | ' ')).take(40).collect();
    Error::refused(
        "function-not-listed",
        format!("`{name}` is not among the functions of this hub"),
        "use the common text, date, number, aggregate and window functions",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_listed_function_exists_once() {
        assert_eq!(scalar().len(), SCALAR.len());
        assert_eq!(aggregate().len(), AGGREGATE.len());
        assert_eq!(window().len(), WINDOW.len());
    }
}

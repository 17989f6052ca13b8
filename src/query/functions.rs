//! The functions callers may use: an allow list, each classed by whether it can fail on a value.
//!
//! What is not listed is refused by name wherever it turns up in a plan, so a new version of the engine
//! adds nothing by itself. Left out on purpose: functions that differ from call to call (`random`,
//! `uuid`), that tell of storage or engine (`version`, `input_file_name`, `arrow_metadata`), that grow
//! memory without bound (`repeat`, `lpad`, `range`), and everything on nested values.

use std::sync::Arc;

use datafusion::{
    execution::SessionStateDefaults,
    logical_expr::{AggregateUDF, ScalarUDF, WindowUDF},
};

use crate::error::Error;

/// Whether a function can fail on a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Has a result for every value of its types.
    Total,
    /// Fails on some values: may only see rows the caller may see.
    Fallible,
}

use Class::{Fallible, Total};

/// Scalar functions by their canonical names.
const SCALAR: &[(&str, Class)] = &[
    ("abs", Fallible),
    ("acos", Total),
    ("ascii", Total),
    ("asin", Total),
    ("atan", Total),
    ("atan2", Total),
    ("bit_length", Total),
    ("btrim", Total),
    ("cbrt", Total),
    ("ceil", Total),
    ("character_length", Total),
    ("chr", Fallible),
    ("coalesce", Total),
    ("concat", Total),
    ("concat_ws", Total),
    ("contains", Total),
    ("cos", Total),
    ("current_date", Total),
    ("date_part", Fallible),
    ("date_trunc", Fallible),
    ("degrees", Total),
    ("ends_with", Total),
    ("exp", Total),
    ("floor", Total),
    ("greatest", Total),
    ("initcap", Total),
    ("isnan", Total),
    ("iszero", Total),
    ("least", Total),
    ("left", Total),
    ("ln", Total),
    ("log", Total),
    ("log10", Total),
    ("log2", Total),
    ("lower", Total),
    ("ltrim", Total),
    ("make_date", Fallible),
    ("nanvl", Total),
    ("now", Total),
    ("nullif", Total),
    ("nvl", Total),
    ("nvl2", Total),
    ("octet_length", Total),
    ("pi", Total),
    ("power", Fallible),
    ("radians", Total),
    ("regexp_like", Fallible),
    ("replace", Total),
    ("reverse", Total),
    ("right", Total),
    ("round", Total),
    ("rtrim", Total),
    ("signum", Total),
    ("sin", Total),
    ("split_part", Fallible),
    ("sqrt", Total),
    ("starts_with", Total),
    ("strpos", Total),
    ("substr", Fallible),
    ("tan", Total),
    ("to_char", Fallible),
    ("to_date", Fallible),
    ("to_local_time", Total),
    ("to_timestamp", Fallible),
    ("to_unixtime", Fallible),
    ("translate", Total),
    ("trunc", Total),
    ("upper", Total),
];

/// Aggregate functions, which may also stand over a window.
const AGGREGATE: &[(&str, Class)] = &[
    ("approx_distinct", Total),
    ("approx_median", Total),
    ("approx_percentile_cont", Total),
    ("avg", Fallible),
    ("bool_and", Total),
    ("bool_or", Total),
    ("corr", Total),
    ("count", Total),
    ("covar_pop", Total),
    ("covar_samp", Total),
    ("first_value", Total),
    ("grouping", Total),
    ("last_value", Total),
    ("max", Total),
    ("median", Total),
    ("min", Total),
    ("percentile_cont", Total),
    ("regr_slope", Total),
    ("regr_intercept", Total),
    ("regr_r2", Total),
    ("stddev", Total),
    ("stddev_pop", Total),
    ("string_agg", Total),
    ("sum", Fallible),
    ("var", Total),
    ("var_pop", Total),
];

/// Window functions.
const WINDOW: &[(&str, Class)] = &[
    ("cume_dist", Total),
    ("dense_rank", Total),
    ("first_value", Total),
    ("lag", Total),
    ("last_value", Total),
    ("lead", Total),
    ("nth_value", Total),
    ("ntile", Fallible),
    ("percent_rank", Total),
    ("rank", Total),
    ("row_number", Total),
];

fn listed(list: &[(&str, Class)], name: &str) -> bool {
    list.iter().any(|(listed, _)| *listed == name)
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

/// The refusal of a function, the same whether it exists elsewhere or not.
pub fn refusal(name: &str) -> Error {
    let name: String = name.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | ' ')).take(40).collect();
    Error::refused(
        "function-not-listed",
        format!("`{name}` is not among the functions of this hub"),
        "use the common text, date, number, aggregate and window functions; README lists them",
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

//! The functions callers may use, and what each may do: one table of every function the engine has, and of
//! those the hub adds to them.
//!
//! What has no class is refused by name wherever it turns up in a plan, so a new version of the engine adds
//! nothing by itself; a test names what it brought. A class is judged by the engine's source, not its manual.

use std::sync::{Arc, LazyLock};

use arrow::datatypes::DataType;
use datafusion::{
    common::ScalarValue,
    execution::SessionStateDefaults,
    logical_expr::{AggregateUDF, Expr, ScalarUDF, WindowUDF},
};

use super::division;
use crate::{
    dataset::division::{LEVELS, width},
    error::{Error, Result},
};

/// What a function may do to the promise that rows a caller may not see leave no trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// For every value of its arguments it yields a value or NULL: no error, no panic, memory in proportion
    /// to its arguments. May run below the barrier. (Taken for granted: the texts of one batch are together
    /// far from 2 GiB, where every text function of the engine ends.)
    Total,
    /// It may fail on some value; it waits above the barrier, on rows the caller may see.
    Fallible,
    /// It differs from call to call; refused. (What the engine pins for a query, as it does `now`, is total.)
    Volatile,
    /// Refused: it tells of storage or engine, grows memory, makes or takes nested values, or reads patterns
    /// otherwise than `PostgreSQL` does.
    Forbidden,
}

/// Function names by class, sorted within each group.
type Table = &'static [(Class, &'static [&'static str])];

/// Scalar functions by their canonical names.
#[rustfmt::skip]
const SCALAR: Table = &[
    // Text. Upper, lower and initcap can make one character three, translate one byte four.
    (Class::Total, &[
        "ascii", "bit_length", "btrim", "character_length", "contains", "division", "ends_with", "find_in_set",
        "initcap", "left", "lower", "ltrim", "octet_length", "reverse", "right", "rtrim", "starts_with", "strpos",
        "substr_index", "to_hex", "translate", "upper",
    ]),
    // Numbers: IEEE 754 answers everything with a number, an infinity or NaN.
    (Class::Total, &[
        "acos", "acosh", "asin", "asinh", "atan", "atan2", "atanh", "cbrt", "cos", "cosh", "cot", "degrees", "exp",
        "isnan", "iszero", "ln", "log", "log10", "log2", "nanvl", "pi", "radians", "signum", "sin", "sinh", "tan",
        "tanh", "trunc",
    ]),
    // Choices between values, and the moment of the query.
    (Class::Total, &[
        "coalesce", "current_date", "current_time", "greatest", "least", "now", "nullif", "nvl", "nvl2",
    ]),
    // Text: a code that is no character, an empty or negative position, a pattern that does not compile; what
    // concatenation makes may pass 2 GiB a batch, and levenshtein takes the product of both lengths in time.
    (Class::Fallible, &[
        "chr", "concat", "concat_ws", "levenshtein", "regexp_count", "regexp_instr", "regexp_like", "split_part",
        "substr",
    ]),
    // Numbers: overflow (ceil, floor and round of decimals, abs of the least integer), roots of negative
    // numbers, negative powers of zero.
    (Class::Fallible, &["abs", "ceil", "factorial", "floor", "gcd", "lcm", "power", "round", "sqrt"]),
    // Times: out of range, not a time, an unknown unit. Instants are counted in nanoseconds here and there,
    // which end in the year 2262; to_local_time panics at the end of the calendar.
    (Class::Fallible, &[
        "date_bin", "date_part", "date_trunc", "make_date", "make_time", "to_date", "to_local_time", "to_time",
        "to_timestamp", "to_timestamp_micros", "to_timestamp_millis", "to_timestamp_nanos", "to_timestamp_seconds",
        "to_unixtime",
    ]),
    (Class::Volatile, &["random", "uuid"]),
    // They tell of files, versions and types, or bring types of the engine into a query.
    (Class::Forbidden, &[
        "arrow_cast", "arrow_field", "arrow_metadata", "arrow_try_cast", "arrow_typeof", "cast_to_type",
        "file_row_index", "input_file_name", "try_cast_to_type", "version", "with_metadata",
    ]),
    // They make long texts of short ones.
    (Class::Forbidden, &["decode", "encode", "lpad", "overlay", "regexp_replace", "repeat", "replace", "rpad"]),
    // Hashes, which invite to guess what stands behind a token.
    (Class::Forbidden, &["digest", "md5", "sha224", "sha256", "sha384", "sha512"]),
    // Patterns of their own (to_char), zones of any spelling (from_unixtime, where to_timestamp does).
    (Class::Forbidden, &["from_unixtime", "to_char"]),
    // They make or take nested values.
    (Class::Forbidden, &[
        "array_add", "array_any_value", "array_append", "array_avg", "array_compact", "array_concat", "array_dims",
        "array_distance", "array_distinct", "array_element", "array_except", "array_has", "array_has_all",
        "array_has_any", "array_intersect", "array_length", "array_max", "array_min", "array_ndims", "array_normalize",
        "array_pop_back", "array_pop_front", "array_position", "array_positions", "array_prepend", "array_product",
        "array_remove", "array_remove_all", "array_remove_n", "array_repeat", "array_replace", "array_replace_all",
        "array_replace_n", "array_resize", "array_reverse", "array_scale", "array_slice", "array_sort",
        "array_subtract", "array_sum", "array_to_string", "array_union", "arrays_zip", "cardinality", "cosine_distance",
        "empty", "flatten", "generate_series", "get_field", "inner_product", "make_array", "map", "map_entries",
        "map_extract", "map_keys", "map_values", "named_struct", "range", "regexp_match", "string_to_array", "struct",
        "union_extract", "union_tag",
    ]),
];

/// Aggregate functions, which may also stand over a window.
#[rustfmt::skip]
const AGGREGATE: Table = &[
    // Whole numbers and decimals wrap around, floating point numbers become infinite.
    (Class::Total, &[
        "any_value", "approx_distinct", "bit_and", "bit_or", "bit_xor", "bool_and", "bool_or", "corr", "count",
        "covar_pop", "covar_samp", "first_value", "grouping", "last_value", "max", "min", "regr_avgx", "regr_avgy",
        "regr_count", "regr_intercept", "regr_r2", "regr_slope", "regr_sxx", "regr_sxy", "regr_syy", "stddev",
        "stddev_pop", "sum", "var", "var_pop",
    ]),
    // avg of decimals overflows near 38 digits; the others keep every value, or check an argument when they run.
    (Class::Fallible, &[
        "approx_median", "approx_percentile_cont", "avg", "median", "percentile_cont", "string_agg",
    ]),
    // Nested values; weights of any sign; an aggregate that PostgreSQL has over windows only.
    (Class::Forbidden, &["approx_percentile_cont_with_weight", "array_agg", "nth_value"]),
];

/// Window functions.
#[rustfmt::skip]
const WINDOW: Table = &[
    (Class::Total, &[
        "cume_dist", "dense_rank", "first_value", "last_value", "percent_rank", "rank", "row_number",
    ]),
    // Their numbers are looked at when they run.
    (Class::Fallible, &["lag", "lead", "nth_value", "ntile"]),
];

static SCALAR_FUNCTIONS: LazyLock<Vec<Arc<ScalarUDF>>> =
    LazyLock::new(|| all_scalar().into_iter().filter(|f| allows_scalar(f.name())).collect());

static AGGREGATE_FUNCTIONS: LazyLock<Vec<Arc<AggregateUDF>>> = LazyLock::new(|| {
    SessionStateDefaults::default_aggregate_functions().into_iter().filter(|f| allows_aggregate(f.name())).collect()
});

static WINDOW_FUNCTIONS: LazyLock<Vec<Arc<WindowUDF>>> = LazyLock::new(|| {
    SessionStateDefaults::default_window_functions().into_iter().filter(|f| allows(WINDOW, f.name())).collect()
});

/// The engine's scalar functions and the hub's.
fn all_scalar() -> Vec<Arc<ScalarUDF>> {
    let mut functions = SessionStateDefaults::default_scalar_functions();
    functions.push(division::function());
    functions
}

/// Whether callers may use the scalar function of that canonical name.
fn allows_scalar(name: &str) -> bool {
    allows(SCALAR, name)
}

/// Whether callers may use the aggregate function of that canonical name.
fn allows_aggregate(name: &str) -> bool {
    allows(AGGREGATE, name)
}

/// Whether callers may use the window function of that canonical name.
fn allows_window(name: &str) -> bool {
    allows(WINDOW, name) || allows(AGGREGATE, name)
}

/// The scalar functions that callers may use.
fn scalar() -> Vec<Arc<ScalarUDF>> {
    SCALAR_FUNCTIONS.clone()
}

/// The engine's aggregate functions that callers may use.
fn aggregate() -> Vec<Arc<AggregateUDF>> {
    AGGREGATE_FUNCTIONS.clone()
}

/// The engine's window functions that callers may use.
fn window() -> Vec<Arc<WindowUDF>> {
    WINDOW_FUNCTIONS.clone()
}

fn class_of(table: Table, name: &str) -> Option<Class> {
    table.iter().find(|(_, names)| names.contains(&name)).map(|(class, _)| *class)
}

fn allows(table: Table, name: &str) -> bool {
    matches!(class_of(table, name), Some(Class::Total | Class::Fallible))
}

/// The longest text that `starts_with` may look for below the barrier, in bytes.
const PREFIX: usize = 1_000;

/// The longest delimiter of `string_agg`, in bytes.
const DELIMITER: usize = 64;

/// The parts of a date or an instant that `date_part` finds in every one of them.
const DATE_PARTS: &[&str] = &[
    "day", "dow", "doy", "epoch", "hour", "isodow", "isoyear", "minute", "month", "quarter", "second", "week", "year",
];

/// Whether this call fails on no value of its arguments: the function is total, or its literal arguments make
/// it so. What its arguments do themselves, casts among them, is asked of each of them; so ask of plans whose
/// types the engine has settled, where every cast is to be seen.
///
/// - `date_part`: an unknown part and one that the type lacks fail; the part is known and the value is a column
///   or a cast to a date or an instant, all of whose parts the engine finds, or NULL where the calendar ends.
///   (Columns of the hub's tables are never times of day or intervals, which have no year.)
/// - `power`: only zero to a negative power fails.
/// - `round`: without places, or with none left of the point, whole numbers are handed on, and decimals lose
///   at least as many digits as they gain; only rounding to tens and beyond overflows.
/// - `split_part`: only the part number zero fails.
/// - `starts_with`: the engine makes a pattern of a literal, and one beyond 10 MiB compiled fails.
/// - `substr`: only a negative length, and the least of all starts, fail.
///
/// `date_trunc` is not among them: it counts in nanoseconds, and fails on instants beyond the year 2262.
pub fn call_is_total(name: &str, arguments: &[Expr]) -> bool {
    match (name, arguments) {
        ("date_part", [part, moment]) => {
            text(part).is_some_and(|part| DATE_PARTS.contains(&part.to_ascii_lowercase().as_str())) && is_moment(moment)
        }
        ("power", [_, exponent]) => number(exponent).is_some_and(|exponent| exponent >= 0.0),
        ("round", [_]) => true,
        ("round", [_, places]) => whole(places).is_some_and(|places| (0..=i64::from(i32::MAX)).contains(&places)),
        ("split_part", [_, _, part]) => whole(part).is_some_and(|part| part != 0),
        ("starts_with", [_, prefix]) => {
            matches!(prefix, Expr::Column(_)) || text(prefix).is_some_and(|prefix| prefix.len() <= PREFIX)
        }
        ("substr", [_, start]) => whole(start).is_some_and(|start| start > i64::MIN),
        ("substr", [_, start, length]) => {
            whole(start).is_some_and(|start| start > i64::MIN) && whole(length).is_some_and(|length| length >= 0)
        }
        _ => class_of(SCALAR, name) == Some(Class::Total),
    }
}

/// The value of a literal, also under casts; nothing where such a cast fails.
pub fn literal(expr: &Expr) -> Option<ScalarValue> {
    match expr {
        Expr::Literal(value, _) => Some(value.clone()),
        Expr::Cast(cast) => literal(&cast.expr)?.cast_to(cast.field.data_type()).ok(),
        _ => None,
    }
}

fn text(expr: &Expr) -> Option<String> {
    let value = literal(expr)?;
    value.try_as_str().flatten().map(str::to_owned)
}

fn whole(expr: &Expr) -> Option<i64> {
    match literal(expr)?.cast_to(&DataType::Int64) {
        Ok(ScalarValue::Int64(value)) => value,
        _ => None,
    }
}

fn number(expr: &Expr) -> Option<f64> {
    match literal(expr)?.cast_to(&DataType::Float64) {
        Ok(ScalarValue::Float64(value)) => value,
        _ => None,
    }
}

fn is_moment(expr: &Expr) -> bool {
    match expr {
        Expr::Column(_) => true,
        Expr::Cast(cast) => matches!(cast.field.data_type(), DataType::Date32 | DataType::Timestamp(..)),
        _ => false,
    }
}

/// How an aggregate's value depends on the order in which rows reach it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OrderUse {
    /// It does not.
    None,
    /// It is the value of some rows, or values in the order of rows.
    PicksRows,
    /// The order shows in the last digits of a floating point number, in a sketch, or in what becomes of NaN
    /// and of negative zero.
    Accumulates,
}

/// How an aggregate over arguments of these types depends on the order of rows. Ask with the types that the
/// arguments have before the engine casts them: it averages whole numbers as floating point ones.
pub fn order_use(aggregate: &str, argument_types: &[DataType]) -> OrderUse {
    let first = argument_types.first();
    let exact = match aggregate {
        "approx_distinct" | "bit_and" | "bit_or" | "bit_xor" | "bool_and" | "bool_or" | "count" | "grouping"
        | "regr_count" => true,
        // Whole numbers and decimals wrap around in any order. In groups, max and min take whatever comes after
        // NaN, and the first of two zeros; the middle ones of an even number are compared as loosely.
        "max" | "median" | "min" | "percentile_cont" | "sum" => first.is_some_and(|kind| !kind.is_floating()),
        // Wider numbers are added up in 53 bits, which narrow ones never fill.
        "avg" => first.is_some_and(|kind| {
            kind.is_decimal()
                || matches!(
                    kind,
                    DataType::Int8 | DataType::Int16 | DataType::UInt8 | DataType::UInt16 | DataType::Duration(_)
                )
        }),
        // any_value pays no heed to an order of its own, but takes the first that comes.
        "any_value"
        | "approx_median"
        | "approx_percentile_cont"
        | "approx_percentile_cont_with_weight"
        | "corr"
        | "covar_pop"
        | "covar_samp"
        | "regr_avgx"
        | "regr_avgy"
        | "regr_intercept"
        | "regr_r2"
        | "regr_slope"
        | "regr_sxx"
        | "regr_sxy"
        | "regr_syy"
        | "stddev"
        | "stddev_pop"
        | "var"
        | "var_pop" => false,
        // first_value, last_value, nth_value, string_agg, array_agg, and what is not known.
        _ => return OrderUse::PicksRows,
    };
    if exact { OrderUse::None } else { OrderUse::Accumulates }
}

/// Refuses arguments by which a listed function would reserve memory without bound, and those that can only be
/// a mistake.
///
/// # Errors
/// [`Error::Refused`].
pub fn check_arguments(name: &str, arguments: &[Expr]) -> Result<()> {
    match (name, arguments) {
        // The third argument is a size that the engine reserves at once, however large.
        // They promise a zone and give none, and their patterns are not PostgreSQL's.
        (
            "to_timestamp"
            | "to_timestamp_micros"
            | "to_timestamp_millis"
            | "to_timestamp_nanos"
            | "to_timestamp_seconds",
            [_, _, ..],
        ) => Err(Error::refused(
            "function-not-listed",
            format!("{name} with a pattern"),
            "write times as ISO 8601, as in to_timestamp('2026-01-05 10:00:00')",
        )),
        (division::NAME, [_, level]) if literal(level).is_some_and(|level| is_no_level(&level)) => {
            let [others @ .., (last, _)] = LEVELS;
            let others = others.map(|(level, _)| format!("'{level}'")).join(", ");
            Err(Error::refused(
                "division-level",
                "the second argument of division is the name of no level",
                format!("name the level {others} or '{last}'"),
            ))
        }
        // It stands between any two values, outside the engine's memory limit.
        ("string_agg" | "array_to_string", [_, delimiter, ..])
            if text(delimiter).is_none_or(|text| text.len() > DELIMITER) =>
        {
            Err(Error::refused(
                "function-not-listed",
                format!("{name} with a delimiter that is no literal of at most {DELIMITER} bytes"),
                "use a short delimiter",
            ))
        }
        ("approx_percentile_cont", [_, _, _, ..]) => Err(Error::refused(
            "function-not-listed",
            "approx_percentile_cont with a number of centroids",
            "leave the third argument out",
        )),
        // The engine keeps every pattern of a batch compiled, and one may take 10 MiB.
        ("regexp_count" | "regexp_instr" | "regexp_like", [_, written @ ..])
            if written.iter().any(|argument| literal(argument).is_none()) =>
        {
            Err(Error::refused(
                "function-not-listed",
                format!("{name} with a pattern that is put together from data"),
                "write the pattern, and what follows it, as literals",
            ))
        }
        _ => Ok(()),
    }
}

fn is_no_level(level: &ScalarValue) -> bool {
    !level.is_null() && level.try_as_str().flatten().and_then(width).is_none()
}

/// Which functions a session knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Listed {
    /// Those callers may use.
    #[default]
    Allowed,
    /// All there are, which only tests ask for.
    All,
}

impl Listed {
    /// Whether the scalar function of that canonical name may be used.
    pub fn allows_scalar(self, name: &str) -> bool {
        self == Self::All || allows_scalar(name)
    }

    /// Whether the aggregate function of that canonical name may be used.
    pub fn allows_aggregate(self, name: &str) -> bool {
        self == Self::All || allows_aggregate(name)
    }

    /// Whether the window function of that canonical name may be used.
    pub fn allows_window(self, name: &str) -> bool {
        self == Self::All || allows_window(name)
    }

    /// The scalar functions.
    pub fn scalar(self) -> Vec<Arc<ScalarUDF>> {
        match self {
            Self::Allowed => scalar(),
            Self::All => all_scalar(),
        }
    }

    /// The aggregate functions.
    pub fn aggregate(self) -> Vec<Arc<AggregateUDF>> {
        match self {
            Self::Allowed => aggregate(),
            Self::All => SessionStateDefaults::default_aggregate_functions(),
        }
    }

    /// The window functions.
    pub fn window(self) -> Vec<Arc<WindowUDF>> {
        match self {
            Self::Allowed => window(),
            Self::All => SessionStateDefaults::default_window_functions(),
        }
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
#[expect(clippy::disallowed_types, reason = "the engine's own functions are tried on invented values, behind no gate")]
mod tests {
    use std::collections::BTreeSet;

    use arrow::{
        array::{
            ArrayRef, BooleanArray, Date32Array, Decimal128Array, Float32Array, Float64Array, Int16Array, Int32Array,
            Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray, TimestampNanosecondArray,
        },
        datatypes::{Field, FieldRef},
    };
    use datafusion::{
        logical_expr::{LogicalPlan, type_coercion::functions::fields_with_udf},
        prelude::SessionContext,
    };

    use super::*;

    fn covers(table: Table, engine: &[&str]) {
        let listed: Vec<&str> = table.iter().flat_map(|(_, names)| names.iter().copied()).collect();
        let once: BTreeSet<&str> = listed.iter().copied().collect();
        assert_eq!(once.len(), listed.len(), "a function has two classes");
        for (_, names) in table {
            assert!(names.is_sorted(), "not sorted: {names:?}");
        }
        let without: Vec<&&str> = engine.iter().filter(|name| !once.contains(**name)).collect();
        assert!(without.is_empty(), "functions of the engine without a class: {without:?}");
        let gone: Vec<&&str> = once.iter().filter(|name| !engine.contains(name)).collect();
        assert!(gone.is_empty(), "functions that the engine does not have: {gone:?}");
    }

    fn allowed(table: Table) -> BTreeSet<&'static str> {
        let groups = table.iter().filter(|(class, _)| matches!(class, Class::Total | Class::Fallible));
        groups.flat_map(|(_, names)| names.iter().copied()).collect()
    }

    #[test]
    fn every_function_of_the_engine_has_one_class() {
        let engine = all_scalar();
        covers(SCALAR, &engine.iter().map(|f| f.name()).collect::<Vec<_>>());
        let engine = SessionStateDefaults::default_aggregate_functions();
        covers(AGGREGATE, &engine.iter().map(|f| f.name()).collect::<Vec<_>>());
        let engine = SessionStateDefaults::default_window_functions();
        covers(WINDOW, &engine.iter().map(|f| f.name()).collect::<Vec<_>>());
    }

    #[test]
    fn sessions_get_the_allowed_functions_and_no_others() {
        assert_eq!(scalar().iter().map(|f| f.name()).collect::<BTreeSet<_>>(), allowed(SCALAR));
        assert_eq!(aggregate().iter().map(|f| f.name()).collect::<BTreeSet<_>>(), allowed(AGGREGATE));
        assert_eq!(window().iter().map(|f| f.name()).collect::<BTreeSet<_>>(), allowed(WINDOW));
        for refused in ["random", "version", "repeat", "md5", "make_array", "no_such_function"] {
            assert!(!allows_scalar(refused), "{refused}");
        }
    }

    /// Twelve values of each type: none at first, then the ends of the type and what else is apt to break.
    fn nasty() -> RecordBatch {
        const INTEGERS: [i64; 11] = [i64::MIN, i64::MAX, 0, 1, -1, 2, -7, 63, 1_000_000, i64::MIN + 1, i64::MAX - 1];
        const FLOATS: [f64; 11] = [
            f64::NAN,
            f64::INFINITY,
            f64::NEG_INFINITY,
            -0.0,
            0.0,
            f64::MAX,
            f64::MIN,
            f64::MIN_POSITIVE,
            0.5,
            -1.5,
            1e18,
        ];
        let long = "长x".repeat(400);
        let texts = [
            "",
            " ",
            "a",
            "a,b,,c",
            "Ünïcödé ΐŉİß",
            "中文字",
            "\u{0}",
            "%_\\",
            "-1",
            "e\u{301}\u{1F600}",
            long.as_str(),
        ];
        // The ends of each type stay its ends.
        let narrow = |least: i64, most: i64| column(&INTEGERS, move |value| (*value).clamp(least, most));
        let i32s: Vec<Option<i32>> =
            narrow(i32::MIN.into(), i32::MAX.into()).into_iter().map(|v| v.and_then(|v| v.try_into().ok())).collect();
        let i16s: Vec<Option<i16>> =
            narrow(i16::MIN.into(), i16::MAX.into()).into_iter().map(|v| v.and_then(|v| v.try_into().ok())).collect();
        let i64s = column(&INTEGERS, |value| *value);
        let columns: [(&str, ArrayRef); 14] = [
            ("text", Arc::new(StringArray::from(column(&texts, |text| (*text).to_owned())))),
            ("i64", Arc::new(Int64Array::from(i64s.clone()))),
            ("f64", Arc::new(Float64Array::from(column(&FLOATS, |value| *value)))),
            ("day", Arc::new(Date32Array::from(i32s.clone()))),
            ("i32", Arc::new(Int32Array::from(i32s))),
            ("i16", Arc::new(Int16Array::from(i16s))),
            ("f32", Arc::new(Float32Array::from(column(&FLOATS, |value| *value as f32)))),
            ("wide", Arc::new(decimal(10_i128.pow(38) - 1, 38, 10))),
            ("tight", Arc::new(decimal(9_999, 4, 2))),
            ("flag", Arc::new(BooleanArray::from(column(&INTEGERS, |value| *value > 0)))),
            ("utc", Arc::new(TimestampMicrosecondArray::from(i64s.clone()).with_timezone("UTC"))),
            ("zoned", Arc::new(TimestampMicrosecondArray::from(i64s.clone()).with_timezone("Asia/Shanghai"))),
            ("wall", Arc::new(TimestampMicrosecondArray::from(i64s.clone()))),
            ("nanos", Arc::new(TimestampNanosecondArray::from(i64s))),
        ];
        RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, array)| (name, array, true))).unwrap()
    }

    fn column<T, U>(values: &[T], convert: impl Fn(&T) -> U) -> Vec<Option<U>> {
        std::iter::once(None).chain(values.iter().map(|value| Some(convert(value)))).collect()
    }

    fn decimal(most: i128, precision: u8, scale: i8) -> Decimal128Array {
        let values = [most, -most, 0, 1, -1, most - 1, 1 - most, most / 2, 99, -50, 5];
        let values = column(&values, |value| *value);
        Decimal128Array::from(values).with_precision_and_scale(precision, scale).unwrap()
    }

    /// An engine with the table `nasty`. To meet every value with every other, name it several times.
    fn engine() -> SessionContext {
        let engine = SessionContext::new();
        engine.register_batch("nasty", nasty()).unwrap();
        engine.register_udf(division::function().as_ref().clone());
        engine
    }

    /// Every list of `length` arguments out of `kinds`, in SQL and by type.
    fn lists(kinds: &[(String, DataType)], length: usize) -> Vec<Vec<(String, FieldRef)>> {
        let mut lists = vec![Vec::new()];
        for alias in ["a", "b", "c"].into_iter().take(length) {
            lists = lists
                .iter()
                .flat_map(|list| {
                    kinds.iter().map(move |(sql, kind)| {
                        let mut longer: Vec<(String, FieldRef)> = list.clone();
                        let field = Arc::new(Field::new("argument", kind.clone(), true));
                        longer.push((sql.replace('@', alias), field));
                        longer
                    })
                })
                .collect();
        }
        lists
    }

    #[tokio::test]
    async fn total_functions_fail_on_no_value() {
        let engine = engine();
        let columns: Vec<(String, DataType)> = nasty()
            .schema()
            .fields()
            .iter()
            .map(|field| (format!("@.\"{}\"", field.name()), field.data_type().clone()))
            .collect();
        let literals = [
            ("''", DataType::Utf8),
            ("'é,'", DataType::Utf8),
            ("-1", DataType::Int64),
            ("arrow_cast(NULL, 'Utf8')", DataType::Utf8),
            ("arrow_cast(NULL, 'Int64')", DataType::Int64),
        ];
        let literals = literals.map(|(sql, kind)| (sql.to_owned(), kind));
        // Of two arguments all types and literals are tried, of three the commonest.
        let two = [columns.as_slice(), literals.as_slice()].concat();
        let three = [&columns[..4], literals.as_slice()].concat();
        for function in scalar().iter().filter(|f| class_of(SCALAR, f.name()) == Some(Class::Total)) {
            let name = function.name();
            let tried = [lists(&columns, 0), lists(&columns, 1), lists(&two, 2), lists(&three, 3)].concat();
            let mut calls = Vec::new();
            for list in tried {
                let fields: Vec<FieldRef> = list.iter().map(|(_, field)| Arc::clone(field)).collect();
                // Where the engine would cast first, a failure would be the cast's.
                let fits = fields_with_udf(&fields, function.as_ref())
                    .is_ok_and(|wanted| wanted.iter().map(|f| f.data_type()).eq(fields.iter().map(|f| f.data_type())));
                // Literals alone are worked out before any row is read.
                let reads = list.is_empty() || list.iter().any(|(sql, _)| sql.contains('"'));
                if fits && reads {
                    let arguments: Vec<&str> = list.iter().map(|(sql, _)| sql.as_str()).collect();
                    calls.push(format!("\"{name}\"({})", arguments.join(", ")));
                }
            }
            assert!(!calls.is_empty(), "no arguments were found for `{name}`");
            // Many calls at once, and one by one only to name the culprit.
            for together in calls.chunks(40) {
                if run(&engine, together).await.is_ok() {
                    continue;
                }
                for call in together {
                    let outcome = run(&engine, std::slice::from_ref(call)).await;
                    assert!(outcome.is_ok(), "`{call}`: {outcome:?}");
                }
            }
        }
    }

    async fn run(engine: &SessionContext, calls: &[String]) -> datafusion::error::Result<usize> {
        let named: Vec<String> = calls.iter().enumerate().map(|(at, call)| format!("{call} AS c{at}")).collect();
        let sql = format!("SELECT {} FROM nasty a, nasty b, nasty c", named.join(", "));
        Ok(engine.sql(&sql).await?.collect().await?.len())
    }

    #[tokio::test]
    async fn literals_make_calls_total() {
        let engine = engine();
        let mut calls: Vec<String> = [
            "power(a.f64, 0)",
            "power(a.f64, 2.5)",
            "power(a.i64, 3)",
            "round(a.f64)",
            "round(a.f32)",
            "round(a.f64, 400)",
            "round(a.i64, 0)",
            "round(a.i16)",
            "round(a.wide)",
            "round(a.wide, 3)",
            "round(a.tight)",
            "round(a.tight, 1)",
            "round(a.tight, 9)",
            "split_part(a.text, b.text, 1)",
            "split_part(a.text, ',', -9223372036854775807)",
            "split_part(a.text, '', 9223372036854775807)",
            r"starts_with(a.text, '%_\')",
            "starts_with(a.text, b.text)",
            "substr(a.text, 2)",
            "substr(a.text, -9223372036854775807)",
            "substr(a.text, 0, 0)",
            "substr(a.text, -5, 9223372036854775807)",
            "substr(a.text, 9223372036854775807, 9223372036854775807)",
        ]
        .map(str::to_owned)
        .into();
        for part in DATE_PARTS {
            calls.extend(
                ["day", "utc", "zoned", "wall", "nanos"].map(|column| format!("date_part('{part}', a.{column})")),
            );
        }
        for call in calls {
            let answer = engine.sql(&format!("SELECT {call} FROM nasty a, nasty b")).await.unwrap();
            assert!(judged(answer.logical_plan()), "`{call}` is not held to be total");
            let outcome = answer.collect().await;
            assert!(outcome.is_ok(), "`{call}`: {outcome:?}");
        }
    }

    /// What is said of the only call of a projection.
    fn judged(plan: &LogicalPlan) -> bool {
        let LogicalPlan::Projection(projection) = plan else { return false };
        match projection.expr.first().cloned().map(Expr::unalias) {
            Some(Expr::ScalarFunction(call)) => call_is_total(call.func.name(), &call.args),
            _ => false,
        }
    }

    #[tokio::test]
    async fn other_literals_do_not() {
        let engine = engine();
        let long = format!("starts_with(a.text, '{}')", "_".repeat(PREFIX + 1));
        for call in [
            "abs(a.i64)",
            "chr(a.i64)",
            "date_part('year', a.utc - b.utc)",
            "date_trunc('month', a.utc)",
            "power(a.f64, -1)",
            "power(a.f64, b.f64)",
            "round(a.i64, -1)",
            "round(a.wide, b.i32)",
            "split_part(a.text, ',', 0)",
            "split_part(a.text, ',', b.i64)",
            "sqrt(a.f64)",
            "substr(a.text, 1, -1)",
            "substr(a.text, b.i64)",
            &long,
        ] {
            let answer = engine.sql(&format!("SELECT {call} FROM nasty a, nasty b")).await.unwrap();
            assert!(!judged(answer.logical_plan()), "`{call}` is held to be total");
        }
        assert!(!call_is_total("random", &[]));
        assert!(!call_is_total("no_such_function", &[]));
    }

    #[test]
    fn levels_are_known_before_a_query_runs() {
        use datafusion::{
            logical_expr::cast,
            prelude::{col, lit},
        };
        for level in [lit("district"), col("b"), lit(ScalarValue::Null), cast(lit("grid"), DataType::LargeUtf8)] {
            assert!(check_arguments("division", &[col("a"), level.clone()]).is_ok(), "{level}");
        }
        for level in [lit("street"), lit("District"), lit(""), lit(6), cast(lit("street"), DataType::LargeUtf8)] {
            assert!(check_arguments("division", &[col("a"), level.clone()]).is_err(), "{level}");
        }
    }

    #[test]
    fn patterns_and_sizes_are_written_out() {
        use datafusion::prelude::{col, lit};
        assert!(check_arguments("regexp_like", &[col("a"), lit("^x"), lit("i")]).is_ok());
        assert!(check_arguments("regexp_like", &[col("a"), col("b")]).is_err());
        assert!(check_arguments("regexp_count", &[col("a"), lit("x"), lit(1), col("b")]).is_err());
        assert!(check_arguments("approx_percentile_cont", &[col("a"), lit(0.5)]).is_ok());
        assert!(check_arguments("approx_percentile_cont", &[col("a"), lit(0.5), lit(1_000_000_000)]).is_err());
        assert!(check_arguments("substr", &[col("a"), col("b")]).is_ok());
    }

    #[test]
    fn only_exact_aggregates_do_without_an_order() {
        let decimal = DataType::Decimal128(10, 2);
        for (aggregate, kind, expected) in [
            ("count", DataType::Float64, OrderUse::None),
            ("sum", DataType::Int64, OrderUse::None),
            ("sum", decimal.clone(), OrderUse::None),
            ("sum", DataType::Float64, OrderUse::Accumulates),
            ("avg", DataType::Int16, OrderUse::None),
            ("avg", decimal, OrderUse::None),
            ("avg", DataType::Int32, OrderUse::Accumulates),
            ("avg", DataType::Float64, OrderUse::Accumulates),
            ("max", DataType::Utf8, OrderUse::None),
            ("max", DataType::Float64, OrderUse::Accumulates),
            ("median", DataType::Int64, OrderUse::None),
            ("stddev", DataType::Int64, OrderUse::Accumulates),
            ("first_value", DataType::Int64, OrderUse::PicksRows),
            ("string_agg", DataType::Utf8, OrderUse::PicksRows),
            ("no_such_function", DataType::Int64, OrderUse::PicksRows),
        ] {
            assert_eq!(order_use(aggregate, std::slice::from_ref(&kind)), expected, "{aggregate} of {kind}");
        }
        assert_eq!(order_use("count", &[]), OrderUse::None);
    }

    #[test]
    fn aggregates_that_pick_rows_are_known() {
        let picks: Vec<&str> = allowed(AGGREGATE)
            .into_iter()
            .filter(|name| order_use(name, &[DataType::Int64]) == OrderUse::PicksRows)
            .collect();
        assert_eq!(picks, ["first_value", "last_value", "string_agg"]);
    }

    /// In groups, the largest of NaN and a number is whichever comes last.
    #[tokio::test]
    async fn the_largest_floating_point_number_depends_on_order() {
        let engine = SessionContext::new();
        let mut found = Vec::new();
        for values in [vec![f64::NAN, 1.0], vec![1.0, f64::NAN]] {
            let numbers: ArrayRef = Arc::new(Float64Array::from(values));
            let group: ArrayRef = Arc::new(Int64Array::from(vec![1, 1]));
            let batch = RecordBatch::try_from_iter([("x", numbers), ("g", group)]).unwrap();
            let sql = "SELECT CAST(max(x) AS VARCHAR) AS most FROM t GROUP BY g";
            engine.register_batch("t", batch).unwrap();
            let rows = engine.sql(sql).await.unwrap().to_string().await.unwrap();
            engine.deregister_table("t").unwrap();
            found.push(rows);
        }
        assert_ne!(found[0], found[1], "the engine settled what NaN is; `order_use` may say so");
    }
}

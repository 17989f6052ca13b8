//! What is coarse enough for protected statistics: which expressions may be group keys, and which conditions may
//! say whose values are counted.
//!
//! A contract registers bins, sets of values that may be told apart. What passes here tells apart nothing finer:
//! every condition holds for all values of a bin or for none, so that no two conditions differ by one person
//! whom no group shows. And it fails on no value, or an error would tell that a row is there.
//!
//! Knows no view, no table and no plan. Expressions are looked at as their caller wrote them; how the engine
//! would fit the types of a comparison is asked of the engine's own rules, and literals are cast as it casts them.

use std::fmt;

use arrow::{
    array::timezone::Tz,
    datatypes::{DataType, Date32Type, TimeUnit},
};
use chrono::{DateTime, Datelike, NaiveDate, NaiveTime, TimeZone, Weekday};
use datafusion::{
    common::{Column, DFSchema, ScalarValue, tree_node::TreeNode},
    logical_expr::{
        Between, BinaryExpr, Case, Cast, Expr, ExprSchemable, Operator,
        expr::{InList, ScalarFunction},
        type_coercion::{binary::comparison_coercion, other::get_coerce_type_for_list},
    },
};

use crate::{
    dataset::{Bin, FieldType, Generalise, division},
    query::{cast_is_total, functions::literal},
};

/// What a column may be cut into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dimension {
    /// Its type.
    pub kind: FieldType,
    /// The bins that its contract registers.
    pub bins: Vec<Bin>,
    /// How the access gate has made its values coarser already.
    pub generalised: Option<Generalise>,
}

/// Finds the dimension behind a column; `None` for what is none: a token, a hidden column, a released value.
pub type Resolve<'a> = &'a dyn Fn(&Column) -> Option<Dimension>;

/// Why an expression is not coarse.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The column it is about, where there is one; of several, the first by name.
    pub column: Option<String>,
    /// What is wrong.
    pub why: Why,
}

/// What is wrong with a group key or a condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// The condition is something other than AND of the comparisons that are allowed.
    Form,
    /// The expression is no registered form of a column, and no column whose own values are registered.
    Fine,
    /// A comparison with something that is no literal, or with one that cannot be cast as it says.
    NoLiteral,
    /// A comparison with a literal of a type for which the engine would cast rows, and might fail on one.
    Type,
    /// A comparison that cuts the column where no registered bin ends.
    Edge,
    /// CASE or coalesce with results that are no literals of one type.
    Results,
    /// CASE over several columns, or with one result for several conditions.
    Groups,
}

impl Why {
    /// What is wrong, said of a column.
    pub fn words(self) -> &'static str {
        match self {
            Self::Form => {
                "is tested by something other than AND of =, IN, BETWEEN, <, <=, >, >= and IS NULL with literals"
            }
            Self::Fine => "is neither coarse by itself nor in one of its registered forms",
            Self::NoLiteral => "is compared with something that is no literal",
            Self::Type => "is compared with a literal of another type",
            Self::Edge => "is cut where none of its registered bins ends",
            Self::Groups => "is put into CASE that looks at several columns or has one result twice, which is OR",
            Self::Results => "is put into CASE or coalesce whose results are not all literals of one type",
        }
    }
}

impl Fault {
    fn of(expr: &Expr, why: Why) -> Self {
        let column = expr.column_refs().into_iter().map(|column| column.name.clone()).min();
        Self { column, why }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.column {
            Some(column) => write!(f, "`{column}` {}", self.why.words()),
            None => write!(f, "an expression without a column {}", self.why.words()),
        }
    }
}

/// Whether the expression is a coarse form: a group key of a protected aggregate.
pub fn is_key(expr: &Expr, resolve: Resolve<'_>, schema: &DFSchema) -> bool {
    check_key(expr, resolve, schema).is_ok()
}

/// Checks that the expression is a coarse form, as [`is_key`] does, and says what is wrong where it is none.
///
/// Coarse are: a column whose own values are registered, or that the access gate has made coarse; the registered
/// forms of a column, which are `substr` and `left` from its start, `division`, `CAST(… AS DATE)` and
/// `date_trunc`; CASE that chooses between literals by coarse conditions; `coalesce` of one of these and a
/// literal.
///
/// # Errors
/// The first [`Fault`].
pub fn check_key(expr: &Expr, resolve: Resolve<'_>, schema: &DFSchema) -> Result<(), Fault> {
    let of = |column: &Expr, fits: &dyn Fn(&Dimension) -> bool| match column {
        Expr::Column(column) => resolve(column).is_some_and(|dimension| fits(&dimension)),
        _ => false,
    };
    let coarse = match expr {
        Expr::Alias(alias) => return check_key(&alias.expr, resolve, schema),
        Expr::Case(case) => return check_case(case, resolve, schema),
        Expr::Column(_) => of(expr, &Dimension::is_coarse),
        Expr::Cast(Cast { expr: moment, field }) if *field.data_type() == DataType::Date32 => {
            of(moment.as_ref(), &Dimension::has_days)
        }
        Expr::ScalarFunction(ScalarFunction { func, args }) => match (func.name(), args.as_slice()) {
            ("coalesce", [key, instead]) => {
                check_key(key, resolve, schema)?;
                return match stands_in(instead, key, schema) {
                    true => Ok(()),
                    false => Err(Fault::of(expr, Why::Results)),
                };
            }
            ("substr", [column, from, width]) if whole(from) == Some(1) => {
                whole(width).is_some_and(|width| of(column, &|dimension| dimension.has_prefix(width)))
            }
            ("left", [column, width]) => {
                whole(width).is_some_and(|width| of(column, &|dimension| dimension.has_prefix(width)))
            }
            ("division", [column, level]) => {
                length(level).is_some_and(|width| of(column, &|dimension| dimension.has_prefix(width)))
            }
            ("date_trunc", [unit, column]) => {
                unit_of(unit).is_some_and(|bin| of(column, &|dimension| dimension.bins.contains(&bin)))
            }
            _ => false,
        },
        _ => false,
    };
    match coarse {
        true => Ok(()),
        false => Err(Fault::of(expr, Why::Fine)),
    }
}

/// Checks one conjunct of a filter, or the condition of CASE or FILTER: AND of comparisons of coarse forms with
/// literals by `=`, IN, BETWEEN, `<`, `<=`, `>` and `>=`, and of IS NULL and its opposite. A column whose values
/// are in order need not be coarse itself, where it is cut at the ends of registered bins alone.
///
/// # Errors
/// The first [`Fault`].
pub fn check(predicate: &Expr, resolve: Resolve<'_>, schema: &DFSchema) -> Result<(), Fault> {
    let form = || Fault::of(predicate, Why::Form);
    match predicate {
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::And, right }) => {
            check(left, resolve, schema)?;
            check(right, resolve, schema)
        }
        Expr::BinaryExpr(BinaryExpr { left, op, right }) => {
            let order = Order::of(*op).ok_or_else(form)?;
            match (literal(left), literal(right)) {
                (None, Some(value)) => check_comparison(left, Test::Is(order), &[value], resolve, schema),
                (Some(value), None) => check_comparison(right, Test::Is(order.swapped()), &[value], resolve, schema),
                (None, None) => Err(Fault::of(predicate, Why::NoLiteral)),
                (Some(_), Some(_)) => Err(form()),
            }
        }
        Expr::InList(InList { expr, list, negated: false }) => {
            let values = literals(expr, list)?;
            check_comparison(expr, Test::Among, &values, resolve, schema)
        }
        Expr::Between(Between { expr, negated: false, low, high }) => {
            let values = literals(expr, [low.as_ref(), high.as_ref()])?;
            check_comparison(expr, Test::Between, &values, resolve, schema)
        }
        Expr::IsNull(expr) | Expr::IsNotNull(expr) => check_presence(expr, resolve, schema),
        Expr::Not(inner) => match inner.as_ref() {
            Expr::IsNull(expr) | Expr::IsNotNull(expr) => check_presence(expr, resolve, schema),
            _ => Err(form()),
        },
        // INVARIANT: what is not named above is refused.
        _ => Err(form()),
    }
}

/// The coarse forms of a column as a caller would write them, for hints.
pub fn forms(name: &str, dimension: &Dimension) -> Vec<String> {
    let mut forms = Vec::new();
    if dimension.is_coarse() {
        forms.push(name.to_owned());
    }
    for bin in &dimension.bins {
        match bin {
            Bin::Prefix(width) => forms.push(format!("substr({name}, 1, {width})")),
            Bin::Day if dimension.kind == FieldType::Timestamp => forms.push(format!("CAST({name} AS DATE)")),
            Bin::Week => forms.push(format!("date_trunc('week', {name})")),
            Bin::Month => forms.push(format!("date_trunc('month', {name})")),
            // A year of which nothing else is left is the column itself.
            Bin::Year if !dimension.is_coarse() => forms.push(format!("date_trunc('year', {name})")),
            Bin::Band(width) if !dimension.is_coarse() => {
                forms.push(format!("CASE WHEN {name} >= {width} THEN … END (cut at multiples of {width})"));
            }
            Bin::Edges(edges) => {
                let edges: Vec<String> = edges.texts().collect();
                let first = edges.first().map_or("", String::as_str);
                forms.push(format!("CASE WHEN {name} >= {first} THEN … END (cut at {})", edges.join(", ")));
            }
            Bin::Value | Bin::Day | Bin::Year | Bin::Band(_) => {}
        }
    }
    forms
}

impl Dimension {
    /// Whether the column's own values are coarse: registered as they are, or made so by the access gate, to a
    /// form at least as coarse as one that is registered.
    fn is_coarse(&self) -> bool {
        let any = |fits: &dyn Fn(&Bin) -> bool| self.bins.iter().any(fits);
        let made = match self.generalised {
            None => self.kind == FieldType::Date && any(&|bin| *bin == Bin::Day),
            Some(Generalise::Prefix(own)) => any(&|bin| matches!(bin, Bin::Prefix(width) if *width >= own)),
            Some(Generalise::Month) => any(&|bin| matches!(bin, Bin::Day | Bin::Month)),
            Some(Generalise::Year | Generalise::Years(_)) => {
                any(&|bin| matches!(bin, Bin::Day | Bin::Month | Bin::Year))
            }
            Some(Generalise::Band(own)) => any(&|bin| matches!(bin, Bin::Band(width) if own.is_multiple_of(*width))),
        };
        made || self.bins.contains(&Bin::Value)
    }

    /// Whether its days are coarse.
    fn has_days(&self) -> bool {
        match self.kind {
            FieldType::Date => self.is_coarse(),
            FieldType::Timestamp => self.bins.contains(&Bin::Day),
            _ => false,
        }
    }

    /// Whether its first characters, so many, are coarse. No more than the access gate has left are all of it.
    fn has_prefix(&self, width: u32) -> bool {
        let whole = matches!(self.generalised, Some(Generalise::Prefix(own)) if own <= width);
        self.kind == FieldType::Text && (self.bins.contains(&Bin::Prefix(width)) || (whole && self.is_coarse()))
    }

    /// Whether its values are in an order that bins can cut.
    fn is_cut(&self) -> bool {
        !matches!(self.kind, FieldType::Text | FieldType::Boolean) && !self.bins.is_empty()
    }

    /// Whether the values from `low` on and below `high` are whole bins. Both ends are counted as [`Place`] does.
    fn has_range(&self, low: Option<i128>, high: Option<i128>, stored: &DataType) -> bool {
        let settled = |end: Option<i128>| match end {
            Some(end) => self.at_or_after(end).map(Some),
            None => Some(None),
        };
        let (Some(low), Some(high)) = (settled(low), settled(high)) else { return false };
        if let (Some(low), Some(high)) = (low, high)
            && low >= high
        {
            return true;
        }
        [low, high].into_iter().flatten().all(|end| self.bins.iter().any(|bin| self.ends(bin, end, stored)))
    }

    /// The first value, not before this one, that the access gate leaves in the column.
    fn at_or_after(&self, value: i128) -> Option<i128> {
        let first = |years: i32| {
            let day = date(value)?;
            let year = day.year() - day.year().rem_euclid(years);
            let first = NaiveDate::from_ymd_opt(year, 1, 1)?;
            if first == day { Some(first) } else { NaiveDate::from_ymd_opt(year.checked_add(years)?, 1, 1) }
        };
        let day = match self.generalised {
            None | Some(Generalise::Prefix(_)) => return Some(value),
            Some(Generalise::Month) => {
                let day = date(value)?;
                match day.day() {
                    1 => Some(day),
                    _ => day.with_day(1)?.checked_add_months(chrono::Months::new(1)),
                }
            }
            Some(Generalise::Year) => first(1),
            Some(Generalise::Years(width)) => first(i32::try_from(width).ok()?),
            Some(Generalise::Band(width)) if matches!(self.kind, FieldType::Integer(_)) => {
                return Some(up(value, width.into()) * i128::from(width));
            }
            // How floating point numbers were rounded to their band is not followed.
            Some(Generalise::Band(_)) => None,
        };
        day.map(|day| Date32Type::from_naive_date(day).into())
    }

    /// Whether one bin ends and the next begins at this value.
    fn ends(&self, bin: &Bin, value: i128, stored: &DataType) -> bool {
        match (bin, self.kind) {
            (Bin::Value, _) => true,
            (_, FieldType::Date) => date(value).is_some_and(|day| begins(bin, day)),
            (_, FieldType::Timestamp) => {
                let DataType::Timestamp(_, Some(zone)) = stored else { return false };
                midnight(value, zone).is_some_and(|day| begins(bin, day))
            }
            (Bin::Band(width), FieldType::Double) => {
                let number = number(value);
                // Minus zero is no place of its own; what begins there is not followed.
                number.is_finite() && number % f64::from(*width) == 0.0 && (number != 0.0 || number.is_sign_positive())
            }
            (Bin::Edges(edges), FieldType::Double) => {
                edges.texts().any(|edge| edge.parse::<f64>().is_ok_and(|edge| rank(edge) == value))
            }
            (Bin::Band(width), kind) => {
                let unit = digits(kind).and_then(|digits| 10_i128.checked_pow(digits));
                let width = unit.and_then(|unit| unit.checked_mul(i128::from(*width)));
                width.is_some_and(|width| value.rem_euclid(width) == 0)
            }
            (Bin::Edges(edges), kind) => digits(kind).is_some_and(|digits| edges.has(value, digits)),
            _ => false,
        }
    }
}

/// How many digits after the point a number of that type is counted in.
fn digits(kind: FieldType) -> Option<u32> {
    match kind {
        FieldType::Integer(_) => Some(0),
        FieldType::Decimal(_, scale) => u32::try_from(scale).ok(),
        _ => None,
    }
}

/// The comparisons by order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Equal,
    Below,
    NotAbove,
    Above,
    NotBelow,
}

impl Order {
    fn of(operator: Operator) -> Option<Self> {
        match operator {
            Operator::Eq => Some(Self::Equal),
            Operator::Lt => Some(Self::Below),
            Operator::LtEq => Some(Self::NotAbove),
            Operator::Gt => Some(Self::Above),
            Operator::GtEq => Some(Self::NotBelow),
            _ => None,
        }
    }

    /// The same with its sides exchanged.
    fn swapped(self) -> Self {
        match self {
            Self::Equal => Self::Equal,
            Self::Below => Self::Above,
            Self::NotAbove => Self::NotBelow,
            Self::Above => Self::Below,
            Self::NotBelow => Self::NotAbove,
        }
    }

    /// The values for which it holds against a literal at that place: from one on, and below another.
    fn range(self, place: Place) -> (Option<i128>, Option<i128>) {
        match self {
            Self::Equal => (Some(place.from), Some(place.above)),
            Self::Below => (None, Some(place.from)),
            Self::NotAbove => (None, Some(place.above)),
            Self::Above => (Some(place.above), None),
            Self::NotBelow => (Some(place.from), None),
        }
    }
}

/// A comparison of one expression with literals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Test {
    /// With one, by order.
    Is(Order),
    /// Equal to one of them.
    Among,
    /// From the first to the second, both in.
    Between,
}

fn check_comparison(
    side: &Expr,
    test: Test,
    literals: &[ScalarValue],
    resolve: Resolve<'_>,
    schema: &DFSchema,
) -> Result<(), Fault> {
    // CASE sorts values into groups of the caller's own making, which is what OR and NOT would do to a filter.
    if side.exists(|part| Ok(matches!(part, Expr::Case(_)))).unwrap_or(true) {
        return Err(Fault::of(side, Why::Form));
    }
    let cut = match (check_key(side, resolve, schema), side) {
        (Ok(()), _) => None,
        (Err(fault), Expr::Column(column)) => {
            Some(resolve(column).filter(|dimension| dimension.is_cut()).ok_or(fault)?)
        }
        (Err(fault), _) => return Err(fault),
    };
    let other_type = || Fault::of(side, Why::Type);
    let stored = side.get_type(schema).map_err(|_| other_type())?;
    let literals = as_compared(&stored, test, literals).ok_or_else(other_type)?;
    let Some(dimension) = cut else {
        let ordered = matches!(test, Test::Is(order) if order != Order::Equal);
        return match ordered && stored == DataType::Utf8 {
            true => Err(Fault::of(side, Why::Form)),
            false => Ok(()),
        };
    };
    let edge = || Fault::of(side, Why::Edge);
    let ranges = ranges(test, &literals, &stored).ok_or_else(edge)?;
    match ranges.into_iter().all(|(low, high)| dimension.has_range(low, high, &stored)) {
        true => Ok(()),
        false => Err(edge()),
    }
}

/// The literals in the type in which the engine compares them with values of type `stored`. Nothing where it
/// would cast those values and might fail on one, or where a literal cannot be cast.
fn as_compared(stored: &DataType, test: Test, literals: &[ScalarValue]) -> Option<Vec<ScalarValue>> {
    let kinds: Vec<DataType> = literals.iter().map(ScalarValue::data_type).collect();
    let common = match (test, kinds.as_slice()) {
        (Test::Between, [low, high]) => {
            comparison_coercion(&comparison_coercion(stored, low)?, &comparison_coercion(stored, high)?)?
        }
        (_, kinds) => get_coerce_type_for_list(stored, kinds)?,
    };
    let total = match (stored, &common) {
        // Times are of the years 1850 to 2200, all of which can be counted in nanoseconds.
        (DataType::Timestamp(TimeUnit::Microsecond, from), DataType::Timestamp(TimeUnit::Nanosecond, to)) => {
            from.is_some() == to.is_some()
        }
        (stored, common) => cast_is_total(stored, common),
    };
    if !total {
        return None;
    }
    literals.iter().map(|value| value.cast_to(&common).ok()).collect()
}

/// The values for which the comparison holds, as ranges. Nothing where they cannot be told; none for literals
/// that are NULL, with which nothing compares.
fn ranges(test: Test, literals: &[ScalarValue], stored: &DataType) -> Option<Vec<(Option<i128>, Option<i128>)>> {
    let there = literals.iter().filter(|value| !value.is_null());
    let places = there.map(|value| Place::of(value, stored)).collect::<Option<Vec<_>>>()?;
    Some(match (test, places.as_slice()) {
        (Test::Is(order), places) => places.iter().map(|place| order.range(*place)).collect(),
        (Test::Among, places) => places.iter().map(|place| Order::Equal.range(*place)).collect(),
        (Test::Between, [low, high]) => vec![(Some(low.from), Some(high.above))],
        (Test::Between, _) => Vec::new(),
    })
}

/// Where a literal lies among the values a column can have, counted in units: whole numbers, the last digit of
/// decimals, days, microseconds, and of floating point numbers each one that there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    /// The first value that is not below the literal.
    from: i128,
    /// The first value that is above it.
    above: i128,
}

impl Place {
    fn of(value: &ScalarValue, stored: &DataType) -> Option<Self> {
        // Larger whole numbers are rounded where they become floating point ones.
        const EXACT: f64 = 9_007_199_254_740_992.0;
        let at = |number: i128| Some(Self { from: number, above: number.checked_add(1)? });
        let finer = |number: i128, digits: i8| {
            let unit = 10_i128.checked_pow(u32::try_from(digits).ok()?)?;
            Some(Self { from: up(number, unit), above: number.div_euclid(unit) + 1 })
        };
        match (stored, value) {
            (DataType::Int16 | DataType::Int32 | DataType::Int64, value) => match value {
                ScalarValue::Int16(Some(number)) => at((*number).into()),
                ScalarValue::Int32(Some(number)) => at((*number).into()),
                ScalarValue::Int64(Some(number)) => at((*number).into()),
                ScalarValue::Float64(Some(number)) if number.abs() < EXACT => {
                    Some(Self { from: number.ceil() as i128, above: number.floor() as i128 + 1 })
                }
                ScalarValue::Decimal128(Some(number), _, scale) => finer(*number, *scale),
                _ => None,
            },
            (DataType::Decimal128(_, own), ScalarValue::Decimal128(Some(number), _, scale)) => {
                finer(*number, scale.checked_sub(*own)?)
            }
            (DataType::Float64, ScalarValue::Float64(Some(number))) => at(rank(*number)),
            (DataType::Date32, ScalarValue::Date32(Some(day))) => at((*day).into()),
            (DataType::Timestamp(TimeUnit::Microsecond, _), ScalarValue::TimestampMicrosecond(Some(time), _)) => {
                at((*time).into())
            }
            (DataType::Timestamp(TimeUnit::Microsecond, _), ScalarValue::TimestampNanosecond(Some(time), _)) => {
                finer((*time).into(), 3)
            }
            _ => None,
        }
    }
}

/// How many whole units reach up to the number.
fn up(number: i128, unit: i128) -> i128 {
    number.div_euclid(unit) + i128::from(number.rem_euclid(unit) != 0)
}

/// The place of a floating point number among all, in the order in which the engine compares them: that of
/// [`f64::total_cmp`], both zeros being one.
fn rank(number: f64) -> i128 {
    // Minus zero and zero are zero.
    turned((number + 0.0).to_bits() as i64).into()
}

/// The floating point number at that place; NaN where there is none.
fn number(rank: i128) -> f64 {
    i64::try_from(rank).map_or(f64::NAN, |rank| f64::from_bits(turned(rank) as u64))
}

/// Negative numbers have the order of their bits turned round. Its own inverse.
fn turned(bits: i64) -> i64 {
    bits ^ (((bits >> 63) as u64) >> 1) as i64
}

fn date(days: i128) -> Option<NaiveDate> {
    Date32Type::to_naive_date_opt(i32::try_from(days).ok()?)
}

/// Whether a bin of the calendar begins with that day.
fn begins(bin: &Bin, day: NaiveDate) -> bool {
    match bin {
        Bin::Day => true,
        Bin::Week => day.weekday() == Weekday::Mon,
        Bin::Month => day.day() == 1,
        Bin::Year => day.ordinal() == 1,
        _ => false,
    }
}

/// The day that begins in the zone at that instant, in microseconds. None where the clock is set at midnight, so
/// that it is not there, or is there twice.
fn midnight(instant: i128, zone: &str) -> Option<NaiveDate> {
    let zone: Tz = zone.parse().ok()?;
    let instant = DateTime::from_timestamp_micros(i64::try_from(instant).ok()?)?;
    // Near the ends of the calendar there is no local time.
    if !(1..=9999).contains(&instant.year()) {
        return None;
    }
    let local = instant.with_timezone(&zone).naive_local();
    (local.time() == NaiveTime::MIN && zone.from_local_datetime(&local).single()? == instant).then_some(local.date())
}

/// Whether rows without a value may be told from the others.
fn check_presence(expr: &Expr, resolve: Resolve<'_>, schema: &DFSchema) -> Result<(), Fault> {
    let fault = match check_key(expr, resolve, schema) {
        Ok(()) => return Ok(()),
        Err(fault) => fault,
    };
    match expr {
        Expr::Column(column) if resolve(column).is_some_and(|dimension| !dimension.bins.is_empty()) => Ok(()),
        _ => Err(fault),
    }
}

/// Checks that CASE chooses between literals of one type by coarse conditions.
fn check_case(case: &Case, resolve: Resolve<'_>, schema: &DFSchema) -> Result<(), Fault> {
    match &case.expr {
        Some(side) => {
            let values = literals(side, case.when_then_expr.iter().map(|(when, _)| when.as_ref()))?;
            check_comparison(side, Test::Among, &values, resolve, schema)?;
        }
        None => {
            for (when, _) in &case.when_then_expr {
                check(when, resolve, schema)?;
            }
        }
    }
    // Values of several columns, or of several conditions under one name, would be joined by OR.
    let whole = Expr::Case(case.clone());
    let results: Vec<_> = case.when_then_expr.iter().map(|(_, then)| then).chain(&case.else_expr).collect();
    let one_each = results.iter().enumerate().all(|(at, result)| !results[..at].contains(result));
    if whole.column_refs().len() > 1 || !one_each {
        return Err(Fault::of(&whole, Why::Groups));
    }
    // A result that cannot be cast to the type of the others fails when the first row gets it.
    let results = || Fault::of(&whole, Why::Results);
    let mut kind = DataType::Null;
    for result in case.when_then_expr.iter().map(|(_, then)| then).chain(&case.else_expr) {
        let own = literal(result).ok_or_else(results)?.data_type();
        kind = match (kind, own) {
            (DataType::Null, own) => own,
            (kind, DataType::Null) => kind,
            (DataType::Int64, DataType::Float64) | (DataType::Float64, DataType::Int64) => DataType::Float64,
            (kind, own) if kind == own => kind,
            _ => return Err(results()),
        };
    }
    Ok(())
}

/// Whether the literal may stand in for values of `key` that are not there: the engine casts neither, but whole
/// numbers to wider ones.
fn stands_in(instead: &Expr, key: &Expr, schema: &DFSchema) -> bool {
    let (Some(value), Ok(kind)) = (literal(instead), key.get_type(schema)) else { return false };
    match value.data_type() {
        DataType::Null => true,
        DataType::Int64 => matches!(kind, DataType::Int16 | DataType::Int32 | DataType::Int64),
        own => own == kind,
    }
}

/// The values of expressions that are all literals.
fn literals<'a>(side: &Expr, expressions: impl IntoIterator<Item = &'a Expr>) -> Result<Vec<ScalarValue>, Fault> {
    expressions.into_iter().map(|expr| literal(expr).ok_or_else(|| Fault::of(side, Why::NoLiteral))).collect()
}

fn whole(expr: &Expr) -> Option<u32> {
    match expr {
        Expr::Literal(ScalarValue::Int64(Some(number)), _) => u32::try_from(*number).ok(),
        _ => None,
    }
}

fn text(expr: &Expr) -> Option<&str> {
    match expr {
        Expr::Literal(value, _) => value.try_as_str().flatten(),
        _ => None,
    }
}

/// The length of the codes of a level of divisions.
fn length(level: &Expr) -> Option<u32> {
    u32::try_from(division::width(text(level)?)?).ok()
}

/// The bins into which `date_trunc` cuts by that unit.
fn unit_of(unit: &Expr) -> Option<Bin> {
    match text(unit)?.to_ascii_lowercase().as_str() {
        "day" => Some(Bin::Day),
        "week" => Some(Bin::Week),
        "month" => Some(Bin::Month),
        "year" => Some(Bin::Year),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::{
        array::{
            Array, ArrayRef, AsArray, Date32Array, Decimal128Array, Float64Array, Int16Array, RecordBatch, StringArray,
        },
        datatypes::{Field, Schema},
    };
    use datafusion::{
        execution::{SessionState, SessionStateBuilder},
        logical_expr::cast,
        prelude::{col, lit},
    };
    use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};

    use super::*;
    use crate::{
        dataset::{Edges, layout::arrow_type},
        query::functions::Listed,
    };

    const ZONE: &str = "Asia/Shanghai";

    fn engine() -> SessionState {
        SessionStateBuilder::new().with_default_features().with_scalar_functions(Listed::Allowed.scalar()).build()
    }

    fn edges(text: &str) -> Bin {
        Bin::Edges(Edges::parse(text).unwrap())
    }

    /// Columns of each kind, and one that is no dimension.
    fn columns() -> Vec<(&'static str, Dimension)> {
        let of = |kind, bins: &[Bin], generalised| Dimension { kind, bins: bins.to_vec(), generalised };
        let prefixes = [Bin::Prefix(6), Bin::Prefix(9), Bin::Prefix(12)];
        vec![
            ("sex", of(FieldType::Text, &[Bin::Value], None)),
            ("urgent", of(FieldType::Boolean, &[Bin::Value], None)),
            ("grid", of(FieldType::Text, &prefixes, None)),
            ("community", of(FieldType::Text, &prefixes, Some(Generalise::Prefix(12)))),
            ("dose", of(FieldType::Integer(16), &[Bin::Value], None)),
            ("age", of(FieldType::Integer(16), &[Bin::Band(10)], None)),
            ("block", of(FieldType::Integer(16), &[Bin::Band(20)], Some(Generalise::Band(10)))),
            ("qty", of(FieldType::Integer(64), &[edges("5|10|20")], None)),
            ("temperature", of(FieldType::Decimal(4, 1), &[edges("37.3|38|39")], None)),
            ("ph", of(FieldType::Decimal(3, 1), &[edges("4.5|8.3")], None)),
            ("amount", of(FieldType::Decimal(10, 2), &[edges("10|20.5"), Bin::Band(50)], None)),
            ("weight", of(FieldType::Double, &[edges("2.5|4"), Bin::Band(10)], None)),
            ("onset", of(FieldType::Date, &[Bin::Week, Bin::Month], None)),
            ("given", of(FieldType::Date, &[Bin::Day], None)),
            ("born", of(FieldType::Date, &[Bin::Year], Some(Generalise::Year))),
            ("since", of(FieldType::Date, &[Bin::Year], Some(Generalise::Month))),
            ("seen", of(FieldType::Timestamp, &[Bin::Day, Bin::Week, Bin::Month], None)),
            ("noted", of(FieldType::Text, &[], None)),
        ]
    }

    fn schema_of(columns: &[(&str, Dimension)]) -> DFSchema {
        let mut fields: Vec<Field> = columns
            .iter()
            .map(|(name, dimension)| {
                let kind = match dimension.kind {
                    FieldType::Timestamp => DataType::Timestamp(TimeUnit::Microsecond, Some(ZONE.into())),
                    kind => arrow_type(kind),
                };
                Field::new(*name, kind, true)
            })
            .collect();
        fields.push(Field::new("token", DataType::Utf8, true));
        DFSchema::try_from(Schema::new(fields)).unwrap()
    }

    fn dimension_of(column: &Column) -> Option<Dimension> {
        columns().into_iter().find(|(name, _)| *name == column.name).map(|(_, dimension)| dimension)
    }

    /// What is wrong with each condition, as its caller would write it.
    fn checked(conditions: &[&str]) -> Vec<Option<Why>> {
        let (engine, schema) = (engine(), schema_of(&columns()));
        let why = |sql: &&str| {
            let predicate = engine.create_logical_expr(sql, &schema).unwrap();
            check(&predicate, &dimension_of, &schema).err().map(|fault| fault.why)
        };
        conditions.iter().map(why).collect()
    }

    #[test]
    fn conditions_on_whole_bins_pass() {
        let conditions = [
            "sex = '男'",
            "'男' = sex",
            "sex IN ('男', '女', NULL)",
            "sex BETWEEN 'a' AND 'b'",
            "sex IS NULL",
            "sex IS NOT NULL",
            "NOT sex IS NULL",
            "sex = NULL",
            "urgent = true",
            "substr(grid, 1, 6) = '420191'",
            "left(grid, 9) IN ('420191001', '420191002')",
            "division(grid, 'district') = '420191'",
            "division(grid, 'community') IS NULL",
            "grid IS NULL",
            "community = '420191001001'",
            "division(community, 'grid') IS NOT NULL",
            "dose = 1",
            "dose IN (1, 2.5)",
            "dose >= 2 AND dose > 1.5 AND 3 > dose",
            "dose BETWEEN 1 AND 2",
            "age < 30",
            "30 <= age AND 60 > age",
            "age > 29 AND age <= 39",
            "age BETWEEN 30 AND 39",
            "age BETWEEN 30 AND 39.9",
            "age >= -10",
            "age <= 29.5",
            // Nobody.
            "age = 29.5",
            "age BETWEEN 41 AND 32",
            "age < NULL",
            "age BETWEEN NULL AND 33",
            // Only whole tens are left: 20 and 30.
            "block > 10 AND block <= 31",
            "block BETWEEN 20 AND 30",
            "qty >= 5 AND qty < 20",
            "qty > 4.5",
            "qty BETWEEN 5 AND 9",
            "qty >= CAST('10' AS DECIMAL(5, 2))",
            "temperature >= 37.3",
            "temperature > 37.25",
            "temperature < 38",
            "38 <= temperature",
            "temperature <= 37.9",
            "temperature BETWEEN 37.3 AND 37.9",
            "temperature >= CAST('37.3' AS DECIMAL(4, 1))",
            "temperature IS NULL",
            "ph >= CAST('8.3' AS DECIMAL(3, 1))",
            "amount >= 10 AND amount < 20.5",
            "amount > 9.99 AND amount <= 20.49",
            "amount >= 50 AND amount < 150",
            "weight >= 2.5 AND weight < 4",
            "weight < 20 AND weight >= 0 AND weight >= -10",
            "onset >= DATE '2026-01-05' AND onset < DATE '2026-02-01'",
            "onset BETWEEN DATE '2026-01-05' AND DATE '2026-01-11'",
            "onset > DATE '2026-01-04'",
            "onset <= '2026-01-31'",
            "date_trunc('month', onset) = DATE '2026-01-01'",
            "given = DATE '2026-01-07'",
            "given > '2026-01-07'",
            "born <= DATE '1966-01-18'",
            "born IN (DATE '1966-05-05', DATE '1950-01-01')",
            "since > DATE '2025-12-15'",
            "since < DATE '2026-01-01'",
            "seen >= TIMESTAMP '2026-01-15 00:00:00' AND seen < '2026-01-16'",
            "CAST(seen AS DATE) = DATE '2026-01-15'",
            "CAST(seen AS DATE) BETWEEN DATE '2026-01-15' AND DATE '2026-01-16'",
            "date_trunc('week', seen) = TIMESTAMP '2026-01-12 00:00:00'",
            "coalesce(sex, 'none') = 'none'",
        ];
        for (condition, why) in conditions.iter().zip(checked(&conditions)) {
            assert_eq!(why, None, "{condition}");
        }
    }

    #[test]
    fn conditions_that_cut_bins_or_may_fail_do_not() {
        let conditions = [
            ("sex <> '男'", Why::Form),
            ("sex IS DISTINCT FROM '男'", Why::Form),
            ("sex LIKE '男%'", Why::Form),
            ("sex = '男' OR sex = '女'", Why::Form),
            ("NOT sex = '男'", Why::Form),
            ("NOT (sex IS NULL AND age IS NULL)", Why::Form),
            ("sex NOT IN ('男')", Why::Form),
            ("age NOT BETWEEN 30 AND 39", Why::Form),
            ("sex < '男'", Why::Form),
            ("sex = '男' AND 1 = 1", Why::Form),
            ("true", Why::Form),
            ("urgent", Why::Form),
            ("sex = 5", Why::Type),
            ("sex IN ('男', 5)", Why::Type),
            ("sex = DATE '2026-01-05'", Why::Type),
            ("sex = token", Why::NoLiteral),
            ("dose = dose", Why::NoLiteral),
            ("dose IN (1, age)", Why::NoLiteral),
            ("dose = CAST('x' AS INT)", Why::NoLiteral),
            ("token = '00000000000000000000000000000000'", Why::Fine),
            ("token IS NULL", Why::Fine),
            ("noted IS NULL", Why::Fine),
            ("grid = '420191001001001'", Why::Fine),
            ("grid BETWEEN '4201' AND '4202'", Why::Fine),
            ("substr(grid, 1, 7) = '4201910'", Why::Fine),
            ("substr(grid, 2, 6) = '201910'", Why::Fine),
            ("division(grid, 'city') = '4201'", Why::Fine),
            ("upper(sex) = 'X'", Why::Fine),
            ("age + 1 < 30", Why::Fine),
            ("age < 31", Why::Edge),
            ("age <= 30", Why::Edge),
            ("age > 30", Why::Edge),
            ("age = 30", Why::Edge),
            ("age IN (30, 31)", Why::Edge),
            ("age BETWEEN 30 AND 40", Why::Edge),
            ("age BETWEEN 31 AND 39", Why::Edge),
            ("age < 1e300", Why::Edge),
            ("block > 20", Why::Edge),
            ("block = 20", Why::Edge),
            ("qty > 5", Why::Edge),
            ("qty < 9007199254740993.0", Why::Edge),
            ("temperature > 37.3", Why::Edge),
            ("temperature = 37.3", Why::Edge),
            ("temperature >= 37.4", Why::Edge),
            ("temperature < 37.35", Why::Edge),
            // The engine makes 8.300000000000001 of this literal, and leaves 8.3 out.
            ("ph >= 8.3", Why::Edge),
            ("amount >= 20.51", Why::Edge),
            ("amount < 20", Why::Edge),
            ("weight > 2.5", Why::Edge),
            ("weight <= 4", Why::Edge),
            ("weight >= 5", Why::Edge),
            ("weight < CAST('NaN' AS DOUBLE)", Why::Edge),
            ("weight >= CAST('2.5' AS DECIMAL(4, 1))", Why::Type),
            ("onset >= DATE '2026-01-06'", Why::Edge),
            ("onset = DATE '2026-01-05'", Why::Edge),
            ("onset > DATE '2026-01-05'", Why::Edge),
            ("onset >= TIMESTAMP '2026-01-05 00:00:00'", Why::Type),
            ("since <= DATE '2026-01-01'", Why::Edge),
            ("seen >= TIMESTAMP '2026-01-15 08:00:00'", Why::Edge),
            ("seen <= TIMESTAMP '2026-01-15 00:00:00'", Why::Edge),
            ("seen = TIMESTAMP '2026-01-15 00:00:00'", Why::Edge),
            ("seen BETWEEN '2026-01-15' AND '2026-01-16'", Why::Edge),
            ("seen >= 'soon'", Why::Type),
            ("CASE WHEN temperature >= 38 THEN 'high' ELSE 'low' END = 'high'", Why::Form),
            ("coalesce(CASE WHEN sex = '男' THEN 1 END, 0) = 0", Why::Form),
        ];
        let written = conditions.map(|(condition, _)| condition);
        for ((condition, expected), why) in conditions.iter().zip(checked(&written)) {
            assert_eq!(why, Some(*expected), "{condition}");
        }
    }

    /// As a comparison with a day is rewritten before it comes here.
    #[test]
    fn days_are_local_ones() {
        let schema = schema_of(&columns());
        let midnight = |zone: &str| {
            let wall = cast(lit(ScalarValue::Date32(Some(20_468))), DataType::Timestamp(TimeUnit::Microsecond, None));
            cast(wall, DataType::Timestamp(TimeUnit::Microsecond, Some(zone.into())))
        };
        assert_eq!(check(&col("seen").gt_eq(midnight(ZONE)), &dimension_of, &schema), Ok(()));
        let fault = check(&col("seen").gt_eq(midnight("UTC")), &dimension_of, &schema).unwrap_err();
        assert_eq!(fault, Fault { column: Some("seen".into()), why: Why::Edge });
        assert_eq!(fault.to_string(), "`seen` is cut where none of its registered bins ends");
    }

    #[test]
    fn a_day_begins_once() {
        let at = |text: &str| i128::from(DateTime::parse_from_rfc3339(text).unwrap().timestamp_micros());
        let day = |year, month, day| NaiveDate::from_ymd_opt(year, month, day);
        assert_eq!(midnight(at("2026-01-14T16:00:00Z"), ZONE), day(2026, 1, 15));
        assert_eq!(midnight(at("2026-01-14T16:00:00.000001Z"), ZONE), None);
        // Clocks are set in the night after.
        assert_eq!(midnight(at("2026-03-28T23:00:00Z"), "Europe/Berlin"), day(2026, 3, 29));
        // At a minute past midnight they were set back to before it.
        assert_eq!(midnight(at("2006-10-29T02:30:00Z"), "America/St_Johns"), None);
        assert_eq!(midnight(at("2006-10-29T03:30:00Z"), "America/St_Johns"), None);
        assert_eq!(midnight(i128::from(i64::MAX), ZONE), None);
        assert_eq!(midnight(i128::MAX, ZONE), None);
    }

    #[test]
    fn coarse_forms_are_keys() {
        let (engine, schema) = (engine(), schema_of(&columns()));
        for key in [
            "sex",
            "sex AS s",
            "urgent",
            "dose",
            "community",
            "substr(community, 1, 12)",
            "substr(grid, 1, 12)",
            "left(grid, 6)",
            "division(grid, 'subdistrict')",
            "division(community, 'district')",
            "division(community, 'grid')",
            "given",
            "born",
            "CAST(given AS DATE)",
            "CAST(seen AS DATE)",
            "date_trunc('week', onset)",
            "DATE_TRUNC('MONTH', seen)",
            "date_trunc('year', since)",
            "coalesce(sex, '未知')",
            "coalesce(dose, 0)",
            "coalesce(division(grid, 'district'), 'elsewhere')",
            "CASE WHEN temperature >= 38 THEN 'high' WHEN temperature >= 37.3 THEN 'mid' END",
            "CASE sex WHEN '男' THEN 1 WHEN '女' THEN 2 ELSE 0.5 END",
            "CASE WHEN age < 30 AND age >= 10 THEN DATE '2026-01-01' ELSE NULL END",
            "coalesce(CASE WHEN age < 30 THEN 'young' END, 'old')",
        ] {
            let expr = engine.create_logical_expr(key, &schema).unwrap();
            assert_eq!(check_key(&expr, &dimension_of, &schema), Ok(()), "{key}");
            assert!(is_key(&expr, &dimension_of, &schema));
        }
        for (key, why) in [
            ("1", Why::Fine),
            ("'a'", Why::Fine),
            ("token", Why::Fine),
            ("noted", Why::Fine),
            ("grid", Why::Fine),
            ("temperature", Why::Fine),
            ("age", Why::Fine),
            ("block", Why::Fine),
            ("onset", Why::Fine),
            ("since", Why::Fine),
            ("seen", Why::Fine),
            ("CAST(onset AS DATE)", Why::Fine),
            ("date_trunc('day', onset)", Why::Fine),
            ("date_trunc('quarter', seen)", Why::Fine),
            ("date_trunc('hour', seen)", Why::Fine),
            ("substr(grid, 1, 5)", Why::Fine),
            ("substr(grid, 1)", Why::Fine),
            ("left(grid, 15)", Why::Fine),
            ("division(grid, 'grid')", Why::Fine),
            ("division(grid, 'street')", Why::Fine),
            ("division(grid, sex)", Why::Fine),
            ("division(token, 'district')", Why::Fine),
            ("upper(sex)", Why::Fine),
            ("age / 10", Why::Fine),
            ("coalesce(sex)", Why::Fine),
            ("coalesce('a', sex)", Why::Fine),
            ("coalesce(sex, token)", Why::Results),
            ("coalesce(dose, 'x')", Why::Results),
            ("coalesce(given, 'never')", Why::Results),
            ("CASE WHEN temperature >= 37.5 THEN 1 END", Why::Edge),
            ("CASE WHEN temperature >= 38 THEN 1 WHEN token = 'x' THEN 2 END", Why::Fine),
            ("CASE WHEN age < 30 AND sex = '男' THEN 1 END", Why::Groups),
            ("CASE WHEN age < 10 THEN 1 WHEN age >= 30 THEN 1 ELSE 2 END", Why::Groups),
            ("CASE sex WHEN '男' THEN 0 ELSE 0 END", Why::Groups),
            ("CASE age WHEN 30 THEN 1 END", Why::Edge),
            ("CASE sex WHEN token THEN 1 END", Why::NoLiteral),
            ("CASE WHEN true THEN 1 END", Why::Form),
            ("CASE WHEN age < 30 THEN age END", Why::Results),
            ("CASE WHEN age < 30 THEN 'x' ELSE 1 END", Why::Results),
            ("CASE WHEN age < 30 THEN CAST('x' AS INT) END", Why::Results),
            ("CASE WHEN age < 30 THEN 1 ELSE 1 / 0 END", Why::Results),
        ] {
            let expr = engine.create_logical_expr(key, &schema).unwrap();
            assert_eq!(check_key(&expr, &dimension_of, &schema).map_err(|fault| fault.why), Err(why), "{key}");
        }
    }

    #[test]
    fn forms_are_those_that_pass() {
        let of = |name: &str| forms(name, &dimension_of(&Column::from_name(name)).unwrap());
        assert_eq!(of("sex"), ["sex"]);
        assert_eq!(of("grid"), ["substr(grid, 1, 6)", "substr(grid, 1, 9)", "substr(grid, 1, 12)"]);
        assert_eq!(of("born"), ["born"]);
        assert_eq!(of("since"), ["date_trunc('year', since)"]);
        assert_eq!(of("seen"), ["CAST(seen AS DATE)", "date_trunc('week', seen)", "date_trunc('month', seen)"]);
        assert_eq!(of("age"), ["CASE WHEN age >= 10 THEN … END (cut at multiples of 10)"]);
        assert_eq!(of("temperature"), ["CASE WHEN temperature >= 37.3 THEN … END (cut at 37.3, 38, 39)"]);
        assert!(of("noted").is_empty());
    }

    /// A column `x`, its values in order, and to which of its bins each of them belongs.
    struct Scale {
        dimension: Dimension,
        schema: DFSchema,
        rows: RecordBatch,
        bins: Vec<i64>,
    }

    impl Scale {
        fn new(dimension: Dimension, values: ArrayRef, bins: Vec<i64>) -> Self {
            let rows = RecordBatch::try_from_iter_with_nullable([("x", values, true)]).unwrap();
            let schema = DFSchema::try_from(rows.schema()).unwrap();
            Self { dimension, schema, rows, bins }
        }

        /// Whether the condition passes; fails where it passes and tells values of one bin apart.
        fn passes(&self, engine: &SessionState, condition: &str) -> bool {
            let predicate = engine.create_logical_expr(condition, &self.schema).unwrap();
            let resolve = |_: &Column| Some(self.dimension.clone());
            if check(&predicate, &resolve, &self.schema).is_err() {
                return false;
            }
            let computed = engine.create_physical_expr(predicate, &self.schema).unwrap();
            let holds = computed.evaluate(&self.rows).unwrap().into_array(self.rows.num_rows()).unwrap();
            let holds = holds.as_boolean();
            for row in 1..self.rows.num_rows() {
                let same =
                    (holds.is_valid(row) && holds.value(row)) == (holds.is_valid(row - 1) && holds.value(row - 1));
                assert!(
                    same || self.bins[row] != self.bins[row - 1],
                    "`{condition}` cuts {:?} at row {row}",
                    self.dimension
                );
            }
            true
        }
    }

    /// Where a bin of numbers ends, in hundredths.
    fn ends_of(bin: &Bin) -> Vec<i64> {
        match bin {
            Bin::Band(width) => (-25..=25).map(|n| n * i64::from(*width) * 100).collect(),
            Bin::Edges(edges) => {
                edges.texts().map(|edge| (edge.parse::<f64>().unwrap() * 100.0).round() as i64).collect()
            }
            _ => Vec::new(),
        }
    }

    /// A comparison of `x` with literals that `literal` makes.
    fn comparison(rng: &mut StdRng, mut literal: impl FnMut(&mut StdRng) -> String) -> String {
        let operator = *["=", "<", "<=", ">", ">="].choose(rng).unwrap();
        let (one, other) = (literal(rng), literal(rng));
        match rng.random_range(0..8) {
            0 => format!("x BETWEEN {one} AND {other}"),
            1 => format!("x IN ({one}, {other})"),
            2 => format!("{one} {operator} x"),
            3 => format!("x {operator} {one} AND x < {other}"),
            _ => format!("x {operator} {one}"),
        }
    }

    #[test]
    fn numbers_that_are_told_apart_are_in_different_bins() {
        let (engine, mut rng) = (engine(), StdRng::seed_from_u64(1));
        let kinds = [FieldType::Integer(16), FieldType::Decimal(4, 1), FieldType::Decimal(4, 2), FieldType::Double];
        for kind in kinds {
            let step = match kind {
                FieldType::Integer(_) => 100,
                FieldType::Decimal(_, 1) => 10,
                _ => 1,
            };
            let hundredths: Vec<i64> = (-2_500..=2_500).filter(|hundredths| hundredths % step == 0).collect();
            let values: ArrayRef = match kind {
                FieldType::Integer(_) => {
                    Arc::new(Int16Array::from_iter_values(hundredths.iter().map(|value| (value / 100) as i16)))
                }
                FieldType::Decimal(precision, scale) => {
                    let values = hundredths.iter().map(|value| i128::from(value / step));
                    Arc::new(
                        Decimal128Array::from_iter_values(values).with_precision_and_scale(precision, scale).unwrap(),
                    )
                }
                _ => Arc::new(Float64Array::from_iter_values(hundredths.iter().map(|value| *value as f64 / 100.0))),
            };
            let mut bins = vec![Bin::Band(2), Bin::Band(5), edges("-3|0|4|9")];
            if kind != FieldType::Integer(16) {
                bins.extend([edges("-1.5|0|2.3|8.3|17.1"), edges("16.4|16.6|16.9")]);
            }
            let scales: Vec<(Vec<i64>, Scale)> = bins
                .into_iter()
                .map(|bin| {
                    let ends = ends_of(&bin);
                    let of = |value: &i64| ends.iter().filter(|end| *end <= value).count() as i64;
                    let of = hundredths.iter().map(of).collect();
                    let dimension = Dimension { kind, bins: vec![bin], generalised: None };
                    (ends, Scale::new(dimension, Arc::clone(&values), of))
                })
                .collect();
            let mut passed = 0;
            for _ in 0..1_500 {
                let (ends, scale) = scales.choose(&mut rng).unwrap();
                let condition = comparison(&mut rng, |rng| {
                    let near = *[0, 0, 0, -100, -10, -5, -1, 1, 5, 10, 100].choose(rng).unwrap();
                    let value = *ends.choose(rng).unwrap() + near;
                    let sign = if value < 0 { "-" } else { "" };
                    let text = format!("{sign}{}.{:02}", value.abs() / 100, value.abs() % 100);
                    match rng.random_range(0..3) {
                        0 => format!("CAST('{text}' AS DECIMAL(6, 2))"),
                        1 if value % 100 == 0 => format!("{}", value / 100),
                        _ => text,
                    }
                });
                passed += usize::from(scale.passes(&engine, &condition));
            }
            assert!(passed > 30, "only {passed} conditions on {kind:?} passed");
        }
    }

    #[test]
    fn days_that_are_told_apart_are_in_different_bins() {
        let (engine, mut rng) = (engine(), StdRng::seed_from_u64(2));
        let first = NaiveDate::from_ymd_opt(2025, 11, 20).unwrap();
        let all: Vec<NaiveDate> = first.iter_days().take(480).collect();
        let firsts: Vec<NaiveDate> = all.iter().copied().filter(|day| day.day() == 1).collect();
        let cases = [
            (Bin::Week, None, &all),
            (Bin::Month, None, &all),
            (Bin::Year, None, &all),
            (Bin::Year, Some(Generalise::Month), &firsts),
        ];
        for (bin, generalised, days) in cases {
            let of = |day: &NaiveDate| match bin {
                Bin::Week => i64::from(day.iso_week().year()) * 100 + i64::from(day.iso_week().week()),
                Bin::Month => i64::from(day.year()) * 100 + i64::from(day.month()),
                _ => i64::from(day.year()),
            };
            let values = Date32Array::from_iter_values(days.iter().map(|day| Date32Type::from_naive_date(*day)));
            let dimension = Dimension { kind: FieldType::Date, bins: vec![bin.clone()], generalised };
            let scale = Scale::new(dimension, Arc::new(values), days.iter().map(of).collect());
            let ends: Vec<NaiveDate> = all.iter().copied().filter(|day| begins(&bin, *day)).collect();
            let mut passed = 0;
            for _ in 0..600 {
                let condition = comparison(&mut rng, |rng| {
                    let day = match rng.random_bool(0.5) {
                        true => *ends.choose(rng).unwrap(),
                        false => *all.choose(rng).unwrap(),
                    };
                    let day = if rng.random_bool(0.3) { day.pred_opt().unwrap() } else { day };
                    if rng.random_bool(0.5) { format!("DATE '{day}'") } else { format!("'{day}'") }
                });
                passed += usize::from(scale.passes(&engine, &condition));
            }
            assert!(passed > 30, "only {passed} conditions on {bin:?} passed");
        }
    }

    /// What the table says of a type is what the engine does: no accepted comparison fails on any value.
    #[test]
    fn accepted_comparisons_fail_on_no_value() {
        let engine = engine();
        let most = 10_i128.pow(38) - 1;
        let wide = Decimal128Array::from_iter_values([most, -most, 0]).with_precision_and_scale(38, 0).unwrap();
        let dimension = |kind| Dimension { kind, bins: vec![Bin::Value], generalised: None };
        let texts: ArrayRef = Arc::new(StringArray::from(vec![Some("x"), None, Some("5")]));
        let (wide, texts) = (
            Scale::new(dimension(FieldType::Decimal(38, 0)), Arc::new(wide), vec![0, 1, 2]),
            Scale::new(dimension(FieldType::Text), texts, vec![0, 1, 2]),
        );
        assert!(wide.passes(&engine, "x >= 5"));
        assert!(texts.passes(&engine, "x = '5'"));
        // Such numbers have no room for digits after the point, and such texts are no numbers and no days.
        for (scale, condition) in [(&wide, "x >= 5.5"), (&texts, "x = 5"), (&texts, "x = DATE '2026-01-05'")] {
            assert!(!scale.passes(&engine, condition), "{condition}");
        }
    }
}

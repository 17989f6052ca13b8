//! Row scopes as predicates over stored rows: [`Scope::admits`] in the engine's words.
//!
//! Every leaf asks first whether there is a value at all, so that it is true or false and never NULL, and a
//! negation can be a plain NOT. Literals have the very type of the stored column: nothing is cast, and no
//! value of a row can make the predicate fail. It knows no caller and no policy.

use datafusion::{
    common::{Column, ScalarValue},
    logical_expr::{Expr, expr::Like},
    prelude::lit,
};

use crate::{
    dataset::{
        Dataset, Field, FieldType,
        layout::{DAY, arrow_type, ten_thousandths},
        scope::{Comparison, Pattern, Scope, Value},
    },
    store::SOURCE,
};

/// A scope as a predicate over stored rows; `None` where it admits every row.
pub fn predicate(scope: &Scope, dataset: &Dataset) -> Option<Expr> {
    match scope {
        Scope::All => None,
        other => Some(written(other, dataset)),
    }
}

fn written(scope: &Scope, dataset: &Dataset) -> Expr {
    let territory = || dataset.territory.as_deref().map(stored);
    let field = |name: &str| dataset.scope_field(name);
    let again = |scope: &Scope| written(scope, dataset);
    let leaf = match scope {
        Scope::All => Some(lit(true)),
        Scope::Nothing => None,
        // A range, since ranges prune files: `:` is the character after `9`.
        Scope::Within(division) => territory().map(|code| {
            let from = code.clone().gt_eq(lit(division.clone()));
            code.clone().is_not_null().and(from).and(code.lt(lit(format!("{division}:"))))
        }),
        Scope::At(division) => territory().map(|code| code.clone().is_not_null().and(code.eq(lit(division.clone())))),
        Scope::HasTerritory => territory().map(Expr::is_not_null),
        Scope::Source(agency) => Some(stored(SOURCE).is_not_null().and(stored(SOURCE).eq(lit(agency.clone())))),
        Scope::Has(name) => field(name).map(present),
        Scope::Compare(name, how, value) => field(name).and_then(|field| compared(field, *how, value)),
        Scope::OneOf(name, values) => field(name).and_then(|field| one_of(field, values)),
        Scope::Like(name, pattern) => {
            field(name).filter(|field| field.kind == FieldType::Text).map(|field| like(field, pattern))
        }
        Scope::Fields(one, how, other) => field(one).zip(field(other)).and_then(|(one, other)| {
            let same = arrow_type(one.kind) == arrow_type(other.kind);
            same.then(|| present(one).and(present(other)).and(sign(*how, stored(&one.name), stored(&other.name))))
        }),
        Scope::Not(inner) => Some(Expr::Not(Box::new(again(inner)))),
        Scope::Every(parts) => Some(parts.iter().map(again).reduce(Expr::and).unwrap_or_else(|| lit(true))),
        Scope::Any(parts) => parts.iter().map(again).reduce(Expr::or),
    };
    leaf.unwrap_or_else(|| lit(false))
}

fn stored(name: &str) -> Expr {
    Expr::Column(Column::from_name(name))
}

fn present(field: &Field) -> Expr {
    stored(&field.name).is_not_null()
}

fn sign(how: Comparison, left: Expr, right: Expr) -> Expr {
    match how {
        Comparison::Equal => left.eq(right),
        Comparison::Less => left.lt(right),
        Comparison::LessOrEqual => left.lt_eq(right),
        Comparison::Greater => left.gt(right),
        Comparison::GreaterOrEqual => left.gt_eq(right),
    }
}

/// What a comparison of a field with a known value comes to.
enum Folded {
    /// It holds of every value.
    Always,
    /// It holds of no value.
    Never,
    /// The same of what is stored, with a literal of the column's own type.
    As(Comparison, ScalarValue),
}

/// `None` where it holds of no row.
fn compared(field: &Field, how: Comparison, value: &Value<'_>) -> Option<Expr> {
    match folded(field.kind, how, value) {
        Folded::Always => Some(present(field)),
        Folded::Never => None,
        Folded::As(how, literal) => Some(present(field).and(sign(how, stored(&field.name), lit(literal)))),
    }
}

/// `None` where it holds of no row.
fn one_of(field: &Field, values: &[Value<'_>]) -> Option<Expr> {
    let literals = values.iter().filter_map(|value| match folded(field.kind, Comparison::Equal, value) {
        Folded::As(_, literal) => Some(lit(literal)),
        Folded::Always | Folded::Never => None,
    });
    let literals: Vec<Expr> = literals.collect();
    (!literals.is_empty()).then(|| present(field).and(stored(&field.name).in_list(literals, false)))
}

fn folded(kind: FieldType, how: Comparison, value: &Value<'_>) -> Folded {
    match (kind, value) {
        (FieldType::Text, Value::Text(text)) => Folded::As(how, ScalarValue::Utf8(Some(text.to_string()))),
        (FieldType::Boolean, Value::Truth(truth)) => Folded::As(how, ScalarValue::Boolean(Some(*truth))),
        (FieldType::Integer(_), Value::Whole(number)) => number_folded(kind, how, 1, (*number).into()),
        (FieldType::Date, Value::Instant(micros)) => number_folded(kind, how, DAY, *micros),
        (FieldType::Timestamp, Value::Instant(micros)) => number_folded(kind, how, 1, *micros),
        (FieldType::Decimal(_, scale), Value::Decimal(number)) => match ten_thousandths(scale) {
            Some(unit) => number_folded(kind, how, unit, *number),
            None => Folded::Never,
        },
        // Values of different kinds compare in no way.
        _ => Folded::Never,
    }
}

/// A comparison of `stored * unit` with a number.
fn number_folded(kind: FieldType, how: Comparison, unit: i128, number: i128) -> Folded {
    let below = number.div_euclid(unit);
    let exact = number.rem_euclid(unit) == 0;
    let bound = match how {
        Comparison::Equal if !exact => return Folded::Never,
        // Of what lies between two stored numbers, everything less is less than the upper one too.
        Comparison::Less | Comparison::GreaterOrEqual if !exact => below + 1,
        _ => below,
    };
    match literal(kind, bound) {
        Some(literal) => Folded::As(how, literal),
        // The bound lies outside the column's range, and every stored number on the same side of it.
        None => match (how, bound > 0) {
            (Comparison::Less | Comparison::LessOrEqual, true) => Folded::Always,
            (Comparison::Greater | Comparison::GreaterOrEqual, false) => Folded::Always,
            _ => Folded::Never,
        },
    }
}

/// A stored number as a literal of its column's type; `None` where the type does not reach so far.
fn literal(kind: FieldType, number: i128) -> Option<ScalarValue> {
    use arrow::datatypes::DataType as D;
    Some(match arrow_type(kind) {
        D::Int16 => ScalarValue::Int16(Some(number.try_into().ok()?)),
        D::Int32 => ScalarValue::Int32(Some(number.try_into().ok()?)),
        D::Int64 => ScalarValue::Int64(Some(number.try_into().ok()?)),
        D::Date32 => ScalarValue::Date32(Some(number.try_into().ok()?)),
        D::Timestamp(_, zone) => ScalarValue::TimestampMicrosecond(Some(number.try_into().ok()?), zone),
        D::Decimal128(precision, scale) => {
            let reaches = 10_u128.checked_pow(precision.into())?;
            (number.unsigned_abs() < reaches).then_some(ScalarValue::Decimal128(Some(number), precision, scale))?
        }
        _ => return None,
    })
}

fn like(field: &Field, pattern: &Pattern) -> Expr {
    if pattern.is_any() {
        return present(field);
    }
    let mut text = String::new();
    for (at, part) in pattern.parts().enumerate() {
        if at > 0 {
            text.push('%');
        }
        for character in part.chars() {
            if matches!(character, '%' | '_' | '\\') {
                text.push('\\');
            }
            text.push(character);
        }
    }
    // The engine's LIKE takes `\` for its escape where none is named, and knows no other.
    let form = Like::new(false, Box::new(stored(&field.name)), Box::new(lit(text)), None, false);
    present(field).and(Expr::Like(form))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(kind: FieldType, how: Comparison, value: Value<'_>) -> String {
        match folded(kind, how, &value) {
            Folded::Always => "always".into(),
            Folded::Never => "never".into(),
            Folded::As(how, literal) => sign(how, stored("x"), lit(literal)).to_string(),
        }
    }

    #[test]
    fn numbers_beyond_a_column_decide_without_it() {
        use Comparison::{Equal, Greater, GreaterOrEqual, Less, LessOrEqual};
        let byte = FieldType::Integer(8);
        for (how, number, words) in [
            (Equal, 40_000, "never"),
            (Less, 40_000, "always"),
            (LessOrEqual, 40_000, "always"),
            (Greater, 40_000, "never"),
            (GreaterOrEqual, i64::MAX, "never"),
            (Less, -40_000, "never"),
            (GreaterOrEqual, -40_000, "always"),
            (Greater, i64::MIN, "always"),
            (Equal, 32_767, "x = Int16(32767)"),
        ] {
            assert_eq!(said(byte, how, Value::Whole(number)), words, "{how:?} {number}");
        }
    }

    #[test]
    fn instants_within_a_day_compare_with_days() {
        use Comparison::{Equal, Greater, GreaterOrEqual, Less, LessOrEqual};
        let noon = DAY + DAY / 2;
        for (how, micros, words) in [
            (Equal, DAY, r#"x = Date32("1970-01-02")"#),
            (Equal, noon, "never"),
            (Less, noon, r#"x < Date32("1970-01-03")"#),
            (LessOrEqual, noon, r#"x <= Date32("1970-01-02")"#),
            (Greater, noon, r#"x > Date32("1970-01-02")"#),
            (GreaterOrEqual, noon, r#"x >= Date32("1970-01-03")"#),
            (Less, -noon, r#"x < Date32("1969-12-31")"#),
            (Less, DAY, r#"x < Date32("1970-01-02")"#),
            (Less, i128::from(i64::MAX) * 1_000, "always"),
        ] {
            assert_eq!(said(FieldType::Date, how, Value::Instant(micros)), words, "{how:?} {micros}");
        }
    }

    #[test]
    fn patterns_are_escaped() {
        let parts = ["a%", "_", "\\"].map(str::to_owned);
        let [start, within, end] = parts;
        let field = Field {
            name: "x".into(),
            description: String::new(),
            kind: FieldType::Text,
            required: false,
            since: None,
            class: crate::dataset::FieldClass::Plain,
            identifier: None,
            generalise: None,
            bins: Vec::new(),
            allowed: None,
            bounds: None,
            centre: None,
            division: None,
        };
        let written = like(&field, &Pattern::new(start, vec![within], end)).to_string();
        assert_eq!(written, r#"x IS NOT NULL AND x LIKE Utf8("a\%%\_%\\")"#);
    }
}

//! Row scopes: which rows of a dataset a caller may reach, in two-valued logic over a row's territory,
//! source and fields.
//!
//! A scope is evaluated in two places, on rows that come in and as a predicate of queries. In both, what is
//! said of an absent territory or field is false, and a negation turns just that round: nothing is ever
//! unknown. This module knows neither the language of policies nor that of queries.

use std::{borrow::Cow, cmp::Ordering, collections::BTreeSet, fmt};

use chrono::{DateTime, SecondsFormat};

use super::division;

/// A predicate over rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// Every row.
    All,
    /// No row.
    Nothing,
    /// The row's territory lies in this division.
    Within(String),
    /// The row's territory is this division.
    At(String),
    /// The row has a territory.
    HasTerritory,
    /// The row was pushed by this agency.
    Source(String),
    /// The row has a value in this field.
    Has(String),
    /// The row's value in this field compares so with a known one.
    Compare(String, Comparison, Value<'static>),
    /// The row's value in this field is one of these.
    OneOf(String, Vec<Value<'static>>),
    /// The row's text in this field has this form.
    Like(String, Pattern),
    /// The row's values in two fields of one type compare so.
    Fields(String, Comparison, String),
    /// The row is not in the scope.
    Not(Box<Scope>),
    /// The row is in every one of these.
    Every(Vec<Scope>),
    /// The row is in one of these.
    Any(Vec<Scope>),
}

/// How two values compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
    /// `=`
    Equal,
    /// `<`
    Less,
    /// `<=`
    LessOrEqual,
    /// `>`
    Greater,
    /// `>=`
    GreaterOrEqual,
}

impl Comparison {
    /// Whether it holds of two values in that order.
    pub fn holds(self, order: Ordering) -> bool {
        match self {
            Self::Equal => order.is_eq(),
            Self::Less => order.is_lt(),
            Self::LessOrEqual => order.is_le(),
            Self::Greater => order.is_gt(),
            Self::GreaterOrEqual => order.is_ge(),
        }
    }

    /// The comparison that says the same with its sides exchanged.
    pub fn swapped(self) -> Self {
        match self {
            Self::Equal => Self::Equal,
            Self::Less => Self::Greater,
            Self::LessOrEqual => Self::GreaterOrEqual,
            Self::Greater => Self::Less,
            Self::GreaterOrEqual => Self::LessOrEqual,
        }
    }

    fn sign(self) -> &'static str {
        match self {
            Self::Equal => "=",
            Self::Less => "<",
            Self::LessOrEqual => "<=",
            Self::Greater => ">",
            Self::GreaterOrEqual => ">=",
        }
    }
}

/// A value as policies know it. Values of different kinds compare in no way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value<'a> {
    /// Text.
    Text(Cow<'a, str>),
    /// True or false.
    Truth(bool),
    /// A whole number.
    Whole(i64),
    /// An instant in microseconds since 1970, UTC; a day is its midnight. Wider than what is stored, so that
    /// days and policies' milliseconds fit without loss.
    Instant(i128),
    /// A decimal number in ten-thousandths, which is as fine as policies know them.
    Decimal(i128),
}

impl Value<'_> {
    /// How two values of one kind lie to each other.
    pub fn order(&self, other: &Value<'_>) -> Option<Ordering> {
        match (self, other) {
            (Self::Text(one), Value::Text(other)) => Some(one.as_ref().cmp(other.as_ref())),
            (Self::Truth(one), Value::Truth(other)) => Some(one.cmp(other)),
            (Self::Whole(one), Value::Whole(other)) => Some(one.cmp(other)),
            (Self::Instant(one), Value::Instant(other)) | (Self::Decimal(one), Value::Decimal(other)) => {
                Some(one.cmp(other))
            }
            _ => None,
        }
    }
}

impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => write!(f, "{text:?}"),
            Self::Truth(truth) => write!(f, "{truth}"),
            Self::Whole(number) => write!(f, "{number}"),
            Self::Instant(micros) => match i64::try_from(*micros).ok().and_then(DateTime::from_timestamp_micros) {
                Some(time) => f.write_str(&time.to_rfc3339_opts(SecondsFormat::AutoSi, true)),
                None => write!(f, "{micros} µs after 1970"),
            },
            Self::Decimal(number) => {
                let (sign, size) = (if *number < 0 { "-" } else { "" }, number.unsigned_abs());
                write!(f, "{sign}{}.{:04}", size / 10_000, size % 10_000)
            }
        }
    }
}

/// A form of text: a start, pieces somewhere after it in this order, and an end, none overlapping another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    start: String,
    within: Vec<String>,
    end: String,
}

impl Pattern {
    /// A pattern of these parts; each may be empty.
    pub fn new(start: String, within: Vec<String>, end: String) -> Self {
        Self { start, within: within.into_iter().filter(|piece| !piece.is_empty()).collect(), end }
    }

    /// The parts, with anything between them.
    pub fn parts(&self) -> impl Iterator<Item = &str> {
        let within = self.within.iter().map(String::as_str);
        std::iter::once(self.start.as_str()).chain(within).chain([self.end.as_str()])
    }

    /// Whether any text has this form.
    pub fn is_any(&self) -> bool {
        self.parts().all(str::is_empty)
    }

    /// Whether the text has this form.
    pub fn matches(&self, text: &str) -> bool {
        let inner = text.strip_prefix(self.start.as_str()).and_then(|rest| rest.strip_suffix(self.end.as_str()));
        let Some(mut rest) = inner else { return false };
        // What is found earliest leaves most for the pieces after it.
        for piece in &self.within {
            let Some(after) = rest.split_once(piece.as_str()).map(|(_, after)| after) else { return false };
            rest = after;
        }
        true
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, part) in self.parts().enumerate() {
            write!(f, "{}{}", if at == 0 { "\"" } else { "*" }, part.escape_debug().to_string().replace('*', "\\*"))?;
        }
        f.write_str("\"")
    }
}

/// A row as scopes look at it.
pub trait Row {
    /// The division it belongs to.
    fn territory(&self) -> Option<&str>;

    /// The agency that pushed it.
    fn source(&self) -> &str;

    /// Its value in a field, if it has one there.
    fn value(&self, field: &str) -> Option<Value<'_>>;
}

impl Scope {
    /// Whether a row is in the scope.
    pub fn admits(&self, row: &impl Row) -> bool {
        match self {
            Self::All => true,
            Self::Nothing => false,
            Self::Within(division) => row.territory().is_some_and(|code| division::lies_in(code, division)),
            Self::At(division) => row.territory() == Some(division.as_str()),
            Self::HasTerritory => row.territory().is_some(),
            Self::Source(agency) => row.source() == agency,
            Self::Has(field) => row.value(field).is_some(),
            Self::Compare(field, how, known) => {
                row.value(field).and_then(|value| value.order(known)).is_some_and(|order| how.holds(order))
            }
            Self::OneOf(field, known) => row
                .value(field)
                .is_some_and(|value| known.iter().any(|known| value.order(known) == Some(Ordering::Equal))),
            Self::Like(field, pattern) => {
                matches!(row.value(field), Some(Value::Text(text)) if pattern.matches(&text))
            }
            Self::Fields(one, how, other) => row
                .value(one)
                .zip(row.value(other))
                .and_then(|(one, other)| one.order(&other))
                .is_some_and(|order| how.holds(order)),
            Self::Not(inner) => !inner.admits(row),
            Self::Every(parts) => parts.iter().all(|part| part.admits(row)),
            Self::Any(parts) => parts.iter().any(|part| part.admits(row)),
        }
    }

    /// Whether it looks at nothing of a row but its territory.
    pub fn looks_only_at_territory(&self) -> bool {
        match self {
            Self::All | Self::Nothing | Self::Within(_) | Self::At(_) | Self::HasTerritory => true,
            Self::Source(_)
            | Self::Has(_)
            | Self::Compare(..)
            | Self::OneOf(..)
            | Self::Like(..)
            | Self::Fields(..) => false,
            Self::Not(inner) => inner.looks_only_at_territory(),
            Self::Every(parts) | Self::Any(parts) => parts.iter().all(Self::looks_only_at_territory),
        }
    }

    /// The fields it looks at by their names.
    pub fn fields(&self) -> BTreeSet<&str> {
        match self {
            Self::All | Self::Nothing | Self::Within(_) | Self::At(_) | Self::HasTerritory | Self::Source(_) => {
                BTreeSet::new()
            }
            Self::Has(field) | Self::Compare(field, ..) | Self::OneOf(field, _) | Self::Like(field, _) => {
                BTreeSet::from([field.as_str()])
            }
            Self::Fields(one, _, other) => BTreeSet::from([one.as_str(), other.as_str()]),
            Self::Not(inner) => inner.fields(),
            Self::Every(parts) | Self::Any(parts) => parts.iter().flat_map(|part| part.fields()).collect(),
        }
    }

    /// The scope without parts that decide nothing.
    pub fn simplified(self) -> Self {
        match self {
            Self::Not(inner) => match inner.simplified() {
                Self::All => Self::Nothing,
                Self::Nothing => Self::All,
                Self::Not(twice) => *twice,
                other => Self::Not(Box::new(other)),
            },
            Self::Every(parts) => {
                let mut kept = Vec::new();
                for part in parts.into_iter().map(Self::simplified) {
                    match part {
                        Self::All => {}
                        Self::Nothing => return Self::Nothing,
                        part => kept.push(part),
                    }
                }
                one_or(kept, Self::All, Self::Every)
            }
            Self::Any(parts) => {
                let mut kept = Vec::new();
                for part in parts.into_iter().map(Self::simplified) {
                    match part {
                        Self::Nothing => {}
                        Self::All => return Self::All,
                        part => kept.push(part),
                    }
                }
                one_or(kept, Self::Nothing, Self::Any)
            }
            other => other,
        }
    }
}

fn one_or(mut parts: Vec<Scope>, none: Scope, many: impl Fn(Vec<Scope>) -> Scope) -> Scope {
    parts.dedup();
    match (parts.pop(), parts.is_empty()) {
        (None, _) => none,
        (Some(only), true) => only,
        (Some(last), false) => {
            parts.push(last);
            many(parts)
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |f: &mut fmt::Formatter<'_>, parts: &[Self], word: &str| {
            for (at, part) in parts.iter().enumerate() {
                let before = if at == 0 { "(" } else { word };
                write!(f, "{before}{part}")?;
            }
            f.write_str(")")
        };
        match self {
            Self::All => f.write_str("all rows"),
            Self::Nothing => f.write_str("no rows"),
            Self::Within(division) => write!(f, "territory in {division}"),
            Self::At(division) => write!(f, "territory = {division}"),
            Self::HasTerritory => f.write_str("has a territory"),
            Self::Source(agency) => write!(f, "pushed by {agency}"),
            Self::Has(field) => write!(f, "has {field}"),
            Self::Compare(field, how, value) => write!(f, "{field} {} {value}", how.sign()),
            Self::OneOf(field, values) => {
                write!(f, "{field} in [")?;
                for (at, value) in values.iter().enumerate() {
                    write!(f, "{}{value}", if at == 0 { "" } else { ", " })?;
                }
                f.write_str("]")
            }
            Self::Like(field, pattern) => write!(f, "{field} like {pattern}"),
            Self::Fields(one, how, other) => write!(f, "{one} {} {other}", how.sign()),
            Self::Not(inner) => write!(f, "not {inner}"),
            Self::Every(parts) => list(f, parts, " and "),
            Self::Any(parts) => list(f, parts, " or "),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A row whose one field is a number.
    #[derive(Debug)]
    struct Toy {
        territory: Option<String>,
        source: String,
        level: Option<i64>,
    }

    impl Row for Toy {
        fn territory(&self) -> Option<&str> {
            self.territory.as_deref()
        }

        fn source(&self) -> &str {
            &self.source
        }

        fn value(&self, field: &str) -> Option<Value<'_>> {
            self.level.filter(|_| field == "level").map(Value::Whole)
        }
    }

    fn rows() -> impl Strategy<Value = Toy> {
        (prop::option::of("[1-2]{1,3}"), "[ab]", prop::option::of(0..3_i64))
            .prop_map(|(territory, source, level)| Toy { territory, source, level })
    }

    fn scopes() -> impl Strategy<Value = Scope> {
        let level = || "level".to_owned();
        let leaf = prop_oneof![
            Just(Scope::All),
            Just(Scope::Nothing),
            Just(Scope::HasTerritory),
            "[1-2]{1,3}".prop_map(Scope::Within),
            "[1-2]{1,3}".prop_map(Scope::At),
            "[ab]".prop_map(Scope::Source),
            Just(Scope::Has(level())),
            (0..3_i64).prop_map(move |n| Scope::Compare(level(), Comparison::LessOrEqual, Value::Whole(n))),
        ];
        leaf.prop_recursive(4, 24, 3, |inner| {
            prop_oneof![
                inner.clone().prop_map(|scope| Scope::Not(Box::new(scope))),
                prop::collection::vec(inner.clone(), 0..3).prop_map(Scope::Every),
                prop::collection::vec(inner, 0..3).prop_map(Scope::Any),
            ]
        })
    }

    proptest! {
        #[test]
        fn simplifying_changes_no_decision(scope in scopes(), row in rows()) {
            prop_assert_eq!(scope.clone().simplified().admits(&row), scope.admits(&row));
        }

        #[test]
        fn a_pattern_matches_what_was_put_between_its_parts(
            parts in prop::collection::vec("[ab*]{0,2}", 2..5), between in prop::collection::vec("[ab%]{0,2}", 4),
        ) {
            let mut text = parts[0].clone();
            for (part, gap) in parts[1..].iter().zip(&between) {
                text.push_str(gap);
                text.push_str(part);
            }
            prop_assert!(pattern(&parts).matches(&text));
        }
    }

    fn pattern(parts: &[String]) -> Pattern {
        let (start, rest) = parts.split_first().unwrap();
        let (end, within) = rest.split_last().unwrap();
        Pattern::new(start.clone(), within.to_vec(), end.clone())
    }

    #[test]
    fn parts_of_a_pattern_do_not_overlap() {
        for (parts, text, matches) in [
            ("a*a", "a", false),
            ("a*a", "aa", true),
            ("ab*b*ba", "abba", false),
            ("ab*b*ba", "abbba", true),
            ("*", "", true),
            ("*é*", "aéb", true),
            ("*%*_", "a%b", false),
        ] {
            let parts: Vec<String> = parts.split('*').map(str::to_owned).collect();
            assert_eq!(pattern(&parts).matches(text), matches, "{parts:?} {text}");
        }
    }

    #[test]
    fn scopes_say_what_they_look_at() {
        let level = || Scope::Compare("level".into(), Comparison::Less, Value::Whole(1));
        let lab = || Scope::Any(vec![Scope::Within("42".into()), Scope::Not(Box::new(Scope::HasTerritory))]);
        let pair = || Scope::Fields("b".into(), Comparison::Equal, "a".into());
        for (scope, only_territory, fields) in [
            (lab(), true, vec![]),
            (Scope::Source("lab".into()), false, vec![]),
            (Scope::Every(vec![lab(), Scope::Not(Box::new(level()))]), false, vec!["level"]),
            (Scope::Any(vec![level(), pair(), Scope::Has("c".into())]), false, vec!["a", "b", "c", "level"]),
        ] {
            assert_eq!(scope.looks_only_at_territory(), only_territory, "{scope}");
            assert_eq!(scope.fields().into_iter().collect::<Vec<_>>(), fields, "{scope}");
        }
    }

    #[test]
    fn scopes_read_as_sentences() {
        let leaf = |value| Scope::Compare("field".into(), Comparison::Less, value);
        for (scope, words) in [
            (leaf(Value::Text("a\"b".into())), r#"field < "a\"b""#),
            (leaf(Value::Instant(1_767_571_200_000_000)), "field < 2026-01-05T00:00:00Z"),
            (leaf(Value::Decimal(-15_000)), "field < -1.5000"),
            (Scope::OneOf("field".into(), vec![Value::Whole(1), Value::Whole(2)]), "field in [1, 2]"),
            (Scope::Like("field".into(), Pattern::new("a*".into(), vec![], "".into())), r#"field like "a\**""#),
        ] {
            assert_eq!(scope.to_string(), words);
        }
    }
}

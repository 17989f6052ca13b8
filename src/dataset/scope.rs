//! Row scopes: which rows of a dataset a caller may reach, in two-valued logic over a row's territory and
//! source.
//!
//! A scope is evaluated in two places, on rows that come in and as a predicate of queries. Both treat an
//! absent territory as lying nowhere, so that a negation never lets it in by being unknown.

use std::fmt;

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
    /// The row is not in the scope.
    Not(Box<Scope>),
    /// The row is in every one of these.
    Every(Vec<Scope>),
    /// The row is in one of these.
    Any(Vec<Scope>),
}

impl Scope {
    /// Whether a row of that territory and source is in the scope.
    pub fn admits(&self, territory: Option<&str>, source: &str) -> bool {
        match self {
            Self::All => true,
            Self::Nothing => false,
            Self::Within(division) => territory.is_some_and(|code| division::lies_in(code, division)),
            Self::At(division) => territory == Some(division),
            Self::HasTerritory => territory.is_some(),
            Self::Source(agency) => source == agency,
            Self::Not(inner) => !inner.admits(territory, source),
            Self::Every(parts) => parts.iter().all(|part| part.admits(territory, source)),
            Self::Any(parts) => parts.iter().any(|part| part.admits(territory, source)),
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

    fn scopes() -> impl Strategy<Value = Scope> {
        let leaf = prop_oneof![
            Just(Scope::All),
            Just(Scope::Nothing),
            Just(Scope::HasTerritory),
            "[1-2]{1,3}".prop_map(Scope::Within),
            "[1-2]{1,3}".prop_map(Scope::At),
            "[ab]".prop_map(Scope::Source),
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
        fn simplifying_changes_no_decision(
            scope in scopes(), territory in prop::option::of("[1-2]{1,3}"), source in "[ab]",
        ) {
            prop_assert_eq!(
                scope.clone().simplified().admits(territory.as_deref(), &source),
                scope.admits(territory.as_deref(), &source)
            );
        }
    }
}

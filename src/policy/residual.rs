//! What Cedar leaves open about a row, as a [`Scope`].
//!
//! Partial evaluation decides everything known before a row is looked at; what remains speaks of the row's
//! attributes. A shape that is not translated here is an [`Obstacle`], and the policy it stands in then
//! denies.
//!
//! Cedar fails on an attribute that is not there, and a validated policy asks with `has` before. So where a
//! translation looks at both sides of `&&`, `||` and `if` and takes an absent value for none, it decides as
//! Cedar does: the side that Cedar would not have looked at changes nothing.

use cedar_policy::pst::{BinaryOp, EntityUID, Expr, Literal, PatternElem, UnaryOp, Var};

use super::{
    Caller,
    attributes::{Attributes, Kind},
};
use crate::dataset::{
    Dataset, Datasets, Field, division,
    layout::{POLICY_SCALE, arrow_type, type_word},
    scope::{Comparison, Pattern, Scope, Value},
};

/// The longest pattern that is translated; the engine makes an automaton of it.
const LONGEST_PATTERN: usize = 1_000;

/// What cannot be translated, in the policy's own words, and what to write instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Obstacle {
    pub what: String,
    pub instead: String,
}

impl Obstacle {
    /// A condition that fails whatever the row is.
    pub fn failure() -> Self {
        Self { what: "the condition, which fails for every row".into(), instead: INSTEAD_OF_FAILURE.into() }
    }

    /// A condition that cannot even be taken apart.
    pub fn whole() -> Self {
        Self { what: "the condition as a whole".into(), instead: INSTEAD.into() }
    }
}

const INSTEAD: &str = "compare attributes of the row with values by ==, !=, <, <=, >, >=, in, contains and like, ask \
                       for them by has, and join that by &&, ||, ! and if";
const INSTEAD_OF_FAILURE: &str = "leave out what fails, such as a sum beyond 64 bits or an attribute of an entity \
                                  that is not listed";
const INSTEAD_OF_ARITHMETIC: &str = "work the number out and compare the attribute itself: `resource.level == 1`";
const INSTEAD_OF_TIME: &str = "compare the attribute itself with the first and last instant meant: `resource.day >= \
                               datetime(\"2026-01-05\") && resource.day < datetime(\"2026-01-06\")`";
const INSTEAD_OF_SETS: &str = "list the values: `[\"a\", \"b\"].contains(resource.kind)`";
const INSTEAD_OF_CHAINS: &str = "name the entities meant: `resource.source == Agency::\"cdc\"`";
const INSTEAD_OF_LENGTH: &str = "use a pattern of at most 1000 characters";
const INSTEAD_OF_HIDDEN: &str = "leave it out: identifiers and free text cannot be looked at";
const INSTEAD_OF_TYPES: &str = "leave it out: fields of this type cannot be looked at";

/// Whose question about which dataset left something open.
pub struct Setting<'a> {
    pub caller: &'a Caller,
    pub dataset: &'a Dataset,
    pub attributes: &'a Attributes,
}

impl Setting<'_> {
    /// The rows for which the expression is true.
    ///
    /// # Errors
    /// What cannot be translated.
    pub fn scope(&self, expr: &Expr) -> Result<Scope, Obstacle> {
        match expr {
            Expr::Literal(Literal::Bool(true)) => Ok(Scope::All),
            Expr::Literal(Literal::Bool(false)) => Ok(Scope::Nothing),
            Expr::UnaryOp { op: UnaryOp::Not, expr } => self.negation(expr),
            Expr::BinaryOp { op: BinaryOp::And, left, right } => match self.scope(left)?.simplified() {
                // What would not be looked at need not be translated; so a policy that first asks for a field
                // says nothing about datasets without it.
                Scope::Nothing => Ok(Scope::Nothing),
                left => Ok(Scope::Every(vec![left, self.scope(right)?])),
            },
            Expr::BinaryOp { op: BinaryOp::Or, left, right } => match self.scope(left)?.simplified() {
                Scope::All => Ok(Scope::All),
                left => Ok(Scope::Any(vec![left, self.scope(right)?])),
            },
            Expr::IfThenElse { cond, then_expr, else_expr } => match self.scope(cond)?.simplified() {
                Scope::All => self.scope(then_expr),
                Scope::Nothing => self.scope(else_expr),
                condition => Ok(Scope::Any(vec![
                    Scope::Every(vec![condition.clone(), self.scope(then_expr)?]),
                    Scope::Every(vec![not(condition), self.scope(else_expr)?]),
                ])),
            },
            Expr::BinaryOp { op: BinaryOp::NotEq, left, right } => {
                Ok(not(self.compare(Comparison::Equal, left, right, expr)?))
            }
            Expr::BinaryOp { op: BinaryOp::In, left, right } => self.membership(left, right, expr),
            Expr::BinaryOp { op: BinaryOp::Contains, left, right } => self.contains(left, right, expr),
            Expr::BinaryOp { op, left, right } => match comparison(*op) {
                Some(how) => self.compare(how, left, right, expr),
                None => Err(self.obstacle(expr)),
            },
            Expr::HasAttr { expr: of, attrs } if self.is_row(of) && attrs.iter().count() == 1 => {
                Ok(match attrs.head.as_str() {
                    "territory" => Scope::HasTerritory,
                    "source" => Scope::All,
                    name => self.field(name)?.map_or(Scope::Nothing, |field| Scope::Has(field.name.clone())),
                })
            }
            Expr::Like { expr: of, pattern } => self.like(of, pattern, expr),
            Expr::Is { expr: of, entity_type, in_expr: None } => {
                match (self.attribute(of), entity_type.to_string().as_str()) {
                    (Some("territory"), "Division") => Ok(Scope::HasTerritory),
                    (Some("source"), "Agency") => Ok(Scope::All),
                    (Some("territory" | "source"), _) => Ok(Scope::Nothing),
                    _ => Err(self.obstacle(expr)),
                }
            }
            // A bare attribute can only be true or false.
            Expr::GetAttr { .. } => match self.attribute(expr) {
                Some("territory" | "source") | None => Err(self.obstacle(expr)),
                Some(name) => Ok(self.field(name)?.map_or(Scope::Nothing, |field| {
                    Scope::Compare(field.name.clone(), Comparison::Equal, Value::Truth(true))
                })),
            },
            other => Err(self.obstacle(other)),
        }
    }

    fn negation(&self, expr: &Expr) -> Result<Scope, Obstacle> {
        match expr {
            // Cedar writes `>` as `!(<=)`. As a comparison of its own it prunes files, and a row without the
            // value is outside on either side.
            Expr::BinaryOp { op: BinaryOp::LessEq, left, right } => {
                self.compare(Comparison::Greater, left, right, expr)
            }
            Expr::BinaryOp { op: BinaryOp::Less, left, right } => {
                self.compare(Comparison::GreaterOrEqual, left, right, expr)
            }
            other => Ok(not(self.scope(other)?)),
        }
    }

    fn compare(&self, how: Comparison, left: &Expr, right: &Expr, whole: &Expr) -> Result<Scope, Obstacle> {
        match (self.attribute(left), self.attribute(right)) {
            (Some(name), None) => self.with_known(name, how, right, whole),
            (None, Some(name)) => self.with_known(name, how.swapped(), left, whole),
            (Some(one), Some(other)) => self.fields(one, how, other, whole),
            (None, None) => {
                let known = known_order(left, right).ok_or_else(|| self.obstacle(whole))?;
                Ok(if how.holds(known) { Scope::All } else { Scope::Nothing })
            }
        }
    }

    fn with_known(&self, name: &str, how: Comparison, known: &Expr, whole: &Expr) -> Result<Scope, Obstacle> {
        match (name, known) {
            ("territory" | "source", Expr::Literal(Literal::EntityUID(entity))) if how == Comparison::Equal => {
                Ok(lies(name, BinaryOp::Eq, entity))
            }
            ("territory" | "source", _) => Err(self.obstacle(whole)),
            _ => {
                let Some(field) = self.field(name)? else { return Ok(Scope::Nothing) };
                let value = value(known).ok_or_else(|| self.obstacle(whole))?;
                Ok(Scope::Compare(field.name.clone(), how, value))
            }
        }
    }

    fn fields(&self, one: &str, how: Comparison, other: &str, whole: &Expr) -> Result<Scope, Obstacle> {
        if [one, other].iter().any(|name| matches!(*name, "territory" | "source")) {
            return Err(self.obstacle(whole));
        }
        match (self.field(one)?, self.field(other)?) {
            // Fields of two types would have to be converted, which can fail.
            (Some(one), Some(other)) if one.kind == other.kind => {
                Ok(Scope::Fields(one.name.clone(), how, other.name.clone()))
            }
            (Some(_), Some(_)) => Err(self.obstacle(whole)),
            _ => Ok(Scope::Nothing),
        }
    }

    fn membership(&self, left: &Expr, right: &Expr, whole: &Expr) -> Result<Scope, Obstacle> {
        if let Expr::Set(items) = right {
            let parts = items.iter().map(|item| self.membership(left, item, whole));
            return Ok(Scope::Any(parts.collect::<Result<_, _>>()?));
        }
        match (self.attribute(left), self.attribute(right), entity(left), entity(right)) {
            (Some(name @ ("territory" | "source")), None, _, Some(known)) => Ok(lies(name, BinaryOp::In, known)),
            (None, Some("source"), Some(known), _) => self.above(known).ok_or_else(|| self.obstacle(whole)),
            (None, Some("territory"), Some(known), _) if is(known, "Division") => {
                Ok(Scope::Any(divisions_above(&known.eid).map(|code| Scope::At(code.to_owned())).collect()))
            }
            // Of divisions that no entity names Cedar knows nothing, and the hub that they lie by their digits.
            (None, None, Some(one), Some(other)) if is(one, "Division") && is(other, "Division") => {
                let lies = divisions_above(&one.eid).any(|code| code == other.eid.as_str());
                Ok(if lies { Scope::All } else { Scope::Nothing })
            }
            _ => Err(self.obstacle(whole)),
        }
    }

    /// The rows of the agency in which something known is.
    fn above(&self, known: &EntityUID) -> Option<Scope> {
        let dataset = self.dataset.name.to_string();
        let agency = match (known.ty.to_string().as_str(), known.eid.as_str()) {
            ("Agency", id) => id,
            ("Caller", id) if id == self.caller.id => &self.caller.agency,
            ("Dataset" | "Row", id) if id == dataset => &self.dataset.name.agency,
            _ => return None,
        };
        Some(Scope::Source(agency.to_owned()))
    }

    fn contains(&self, set: &Expr, one: &Expr, whole: &Expr) -> Result<Scope, Obstacle> {
        let Expr::Set(items) = set else { return Err(self.obstacle(whole)) };
        let values: Option<Vec<_>> = items.iter().map(|item| value(item)).collect();
        match (self.attribute(one).filter(|name| !matches!(*name, "territory" | "source")), values) {
            (Some(name), Some(values)) => {
                Ok(self.field(name)?.map_or(Scope::Nothing, |field| Scope::OneOf(field.name.clone(), values)))
            }
            _ => {
                let parts = items.iter().map(|item| self.compare(Comparison::Equal, item, one, whole));
                Ok(Scope::Any(parts.collect::<Result<_, _>>()?))
            }
        }
    }

    fn like(&self, of: &Expr, pattern: &[PatternElem], whole: &Expr) -> Result<Scope, Obstacle> {
        let Some(name) = self.attribute(of).filter(|name| !matches!(*name, "territory" | "source")) else {
            return Err(self.obstacle(whole));
        };
        let Some(field) = self.field(name)? else { return Ok(Scope::Nothing) };
        if pattern.len() > LONGEST_PATTERN {
            return Err(self.obstacle(whole));
        }
        let mut pieces = vec![String::new()];
        for element in pattern {
            match (element, pieces.last_mut()) {
                (PatternElem::Char(character), Some(piece)) => piece.push(*character),
                _ => pieces.push(String::new()),
            }
        }
        let end = pieces.pop().unwrap_or_default();
        let mut pieces = pieces.into_iter();
        Ok(match pieces.next() {
            Some(start) => Scope::Like(field.name.clone(), Pattern::new(start, pieces.collect(), end)),
            // Without a wildcard there is one piece, and it is all of the text.
            None => Scope::Compare(field.name.clone(), Comparison::Equal, Value::Text(end.into())),
        })
    }

    /// The field an attribute means in this dataset, if any.
    fn field(&self, attribute: &str) -> Result<Option<&Field>, Obstacle> {
        meant(attribute, self.attributes, self.dataset)
    }

    fn attribute<'e>(&self, expr: &'e Expr) -> Option<&'e str> {
        match expr {
            Expr::GetAttr { expr, attr } if self.is_row(expr) => Some(attr.as_str()),
            _ => None,
        }
    }

    fn is_row(&self, expr: &Expr) -> bool {
        match expr {
            Expr::Var(Var::Resource) => true,
            Expr::Literal(Literal::EntityUID(entity)) => {
                is(entity, "Row") && entity.eid.as_str() == self.dataset.name.to_string()
            }
            _ => false,
        }
    }

    fn obstacle(&self, expr: &Expr) -> Obstacle {
        let row = format!("Row::\"{}\"", self.dataset.name);
        let what = quoted(&expr.to_string().replace(&row, "resource"));
        Obstacle { what, instead: instead(expr).unwrap_or(INSTEAD).into() }
    }
}

/// The first part of a condition on a row, as written, that is translated for no caller and no dataset.
pub fn never(expr: &Expr, attributes: &Attributes, datasets: &Datasets) -> Option<Obstacle> {
    let declared = |name: &str| matches!(name, "territory" | "source") || attributes.contains_key(name);
    if let Some(instead) = refused(expr).filter(|_| speaks_of(expr, &declared)) {
        return Some(Obstacle { what: quoted(&expr.to_string()), instead: instead.into() });
    }
    let unusable = named(expr).filter(|name| attributes.contains_key(*name)).and_then(|name| {
        let fields: Vec<_> = datasets.values().map(|dataset| meant(name, attributes, dataset)).collect();
        let usable = fields.iter().any(|field| matches!(field, Ok(Some(_))));
        fields.into_iter().find_map(Result::err).filter(|_| !usable)
    });
    unusable.or_else(|| parts(expr).into_iter().find_map(|part| never(part, attributes, datasets)))
}

/// The field that an attribute means in a dataset; nothing where the dataset has none of that name.
///
/// # Errors
/// A field in a form that row scopes cannot look at. To take it for absent would be to forbid nothing where a
/// policy means to forbid.
fn meant<'d>(attribute: &str, attributes: &Attributes, dataset: &'d Dataset) -> Result<Option<&'d Field>, Obstacle> {
    let Some(field) = dataset.field(attribute) else { return Ok(None) };
    let is = |form: &str| format!("`resource.{attribute}`, which is {form} in `{}`", dataset.name);
    if dataset.scope_field(attribute).is_none() {
        let form = if field.has_token() { "an identifier" } else { "free text" };
        return Err(Obstacle { what: is(form), instead: INSTEAD_OF_HIDDEN.into() });
    }
    match (attributes.get(attribute), Kind::of(field.kind)) {
        (Some(declared), Some(kind)) if *declared == kind => Ok(Some(field)),
        (_, kind) => Err(Obstacle {
            what: is(&type_word(&arrow_type(field.kind))),
            instead: kind.map_or_else(
                || INSTEAD_OF_TYPES.to_owned(),
                |kind| format!("declare it as `{attribute}?: {}`", kind.word()),
            ),
        }),
    }
}

fn quoted(words: &str) -> String {
    format!("`{}`", words.chars().take(200).collect::<String>())
}

fn not(scope: Scope) -> Scope {
    Scope::Not(Box::new(scope))
}

fn comparison(op: BinaryOp) -> Option<Comparison> {
    Some(match op {
        BinaryOp::Eq => Comparison::Equal,
        BinaryOp::Less | BinaryOp::DecimalLessThan => Comparison::Less,
        BinaryOp::LessEq | BinaryOp::DecimalLessEq => Comparison::LessOrEqual,
        BinaryOp::Greater | BinaryOp::DecimalGreater => Comparison::Greater,
        BinaryOp::GreaterEq | BinaryOp::DecimalGreaterEq => Comparison::GreaterOrEqual,
        _ => return None,
    })
}

/// The rows whose territory or source is, or is in, a known entity.
fn lies(attribute: &str, op: BinaryOp, known: &EntityUID) -> Scope {
    let id = known.eid.to_string();
    match (attribute, known.ty.to_string().as_str(), op) {
        // Nothing lies in what is no division code, but what is written so.
        ("territory", "Division", BinaryOp::In) if is_canonical(&id) => Scope::Within(id),
        ("territory", "Division", _) => Scope::At(id),
        // Agencies have no parents, so being in one is being it.
        ("source", "Agency", _) => Scope::Source(id),
        // Cedar's entities of different types are never equal and never in each other.
        _ => Scope::Nothing,
    }
}

fn is_canonical(code: &str) -> bool {
    division::canonical(code).is_some_and(|canonical| canonical == code)
}

/// A division and those it lies in.
fn divisions_above(code: &str) -> impl Iterator<Item = &str> {
    let above = division::LENGTHS.into_iter().filter(move |length| *length < code.len() && is_canonical(code));
    above.filter_map(move |length| code.get(..length)).chain([code])
}

fn entity(expr: &Expr) -> Option<&EntityUID> {
    match expr {
        Expr::Literal(Literal::EntityUID(entity)) => Some(entity),
        _ => None,
    }
}

fn is(entity: &EntityUID, kind: &str) -> bool {
    entity.ty.to_string() == kind
}

/// How two known things lie to each other; entities and values of different kinds are merely not the same.
fn known_order(left: &Expr, right: &Expr) -> Option<std::cmp::Ordering> {
    match (entity(left), entity(right)) {
        (Some(one), Some(other)) => Some(match one == other {
            true => std::cmp::Ordering::Equal,
            false => std::cmp::Ordering::Less,
        }),
        _ => value(left)?.order(&value(right)?),
    }
}

/// A known value as partial evaluation writes it.
fn value(expr: &Expr) -> Option<Value<'static>> {
    let text = |expr: &Expr| match expr {
        Expr::Literal(Literal::String(text)) => Some(text.to_string()),
        _ => None,
    };
    Some(match expr {
        Expr::Literal(Literal::Bool(truth)) => Value::Truth(*truth),
        Expr::Literal(Literal::Long(number)) => Value::Whole(*number),
        Expr::Literal(Literal::String(text)) => Value::Text(text.to_string().into()),
        Expr::UnaryOp { op: UnaryOp::Decimal, expr } => Value::Decimal(decimal(&text(expr)?)?),
        // Cedar writes every instant as so many milliseconds after 1970.
        Expr::BinaryOp { op: BinaryOp::Offset, left, right } => match (left.as_ref(), right.as_ref()) {
            (
                Expr::UnaryOp { op: UnaryOp::Datetime, expr: day },
                Expr::UnaryOp { op: UnaryOp::Duration, expr: after },
            ) if text(day)? == "1970-01-01" => {
                let millis: i64 = text(after)?.strip_suffix("ms")?.parse().ok()?;
                Value::Instant(i128::from(millis) * 1_000)
            }
            _ => return None,
        },
        _ => return None,
    })
}

/// A decimal in ten-thousandths; Cedar writes all four digits after the point.
fn decimal(text: &str) -> Option<i128> {
    let (whole, part) = text.split_once('.')?;
    if part.len() != POLICY_SCALE as usize {
        return None;
    }
    format!("{whole}{part}").parse().ok()
}

/// What to write in place of the first part that stands in the way.
fn instead(expr: &Expr) -> Option<&'static str> {
    if value(expr).is_some() {
        return None;
    }
    refused(expr).or_else(|| parts(expr).into_iter().find_map(instead))
}

/// What to write in place of an expression that is never translated where it is left open, whatever it is
/// made of.
fn refused(expr: &Expr) -> Option<&'static str> {
    match expr {
        Expr::ResidualError => Some(INSTEAD_OF_FAILURE),
        Expr::UnaryOp { op: UnaryOp::Neg, .. }
        | Expr::BinaryOp { op: BinaryOp::Add | BinaryOp::Sub | BinaryOp::Mul, .. } => Some(INSTEAD_OF_ARITHMETIC),
        Expr::UnaryOp {
            op:
                UnaryOp::ToDate
                | UnaryOp::ToTime
                | UnaryOp::ToMilliseconds
                | UnaryOp::ToSeconds
                | UnaryOp::ToMinutes
                | UnaryOp::ToHours
                | UnaryOp::ToDays,
            ..
        }
        | Expr::BinaryOp { op: BinaryOp::Offset | BinaryOp::DurationSince, .. } => Some(INSTEAD_OF_TIME),
        Expr::UnaryOp { op: UnaryOp::IsEmpty, .. }
        | Expr::BinaryOp { op: BinaryOp::ContainsAll | BinaryOp::ContainsAny, .. } => Some(INSTEAD_OF_SETS),
        Expr::GetAttr { expr, .. } if matches!(expr.as_ref(), Expr::GetAttr { .. }) => Some(INSTEAD_OF_CHAINS),
        Expr::HasAttr { expr, attrs } if matches!(expr.as_ref(), Expr::GetAttr { .. }) || attrs.iter().count() > 1 => {
            Some(INSTEAD_OF_CHAINS)
        }
        Expr::Like { pattern, .. } if pattern.len() > LONGEST_PATTERN => Some(INSTEAD_OF_LENGTH),
        _ => None,
    }
}

/// Whether an expression or a part of it speaks of such an attribute of `resource`.
fn speaks_of(expr: &Expr, such: &impl Fn(&str) -> bool) -> bool {
    named(expr).is_some_and(such) || parts(expr).into_iter().any(|part| speaks_of(part, such))
}

/// The attribute of `resource` that an expression gets or asks for.
fn named(expr: &Expr) -> Option<&str> {
    let (of, name) = match expr {
        Expr::GetAttr { expr, attr } => (expr, attr),
        Expr::HasAttr { expr, attrs } => (expr, &attrs.head),
        _ => return None,
    };
    matches!(of.as_ref(), Expr::Var(Var::Resource)).then_some(name.as_str())
}

/// The expressions of which an expression is made.
pub fn parts(expr: &Expr) -> Vec<&Expr> {
    match expr {
        Expr::UnaryOp { expr, .. }
        | Expr::GetAttr { expr, .. }
        | Expr::HasAttr { expr, .. }
        | Expr::Like { expr, .. } => vec![expr.as_ref()],
        Expr::Is { expr, in_expr, .. } => [expr].into_iter().chain(in_expr).map(AsRef::as_ref).collect(),
        Expr::BinaryOp { left, right, .. } => vec![left.as_ref(), right.as_ref()],
        Expr::IfThenElse { cond, then_expr, else_expr } => {
            vec![cond.as_ref(), then_expr.as_ref(), else_expr.as_ref()]
        }
        Expr::Set(items) => items.iter().map(AsRef::as_ref).collect(),
        Expr::Record(members) => members.values().map(AsRef::as_ref).collect(),
        _ => Vec::new(),
    }
}

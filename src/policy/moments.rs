//! The moments at which decisions of policies can change, where nothing but time passes.
//!
//! Policies, entities and callers stay as they are while a hub runs; of all that is decided on, `context.now`
//! alone moves. Where policies do no more with it than to compare it with known instants, what was decided
//! holds until the next of these. What is not recognised here may be anything, and then there are no moments.

use std::collections::BTreeSet;

use cedar_policy::{
    Context, Entities, EvalResult, Expression, PolicySet, Request, eval_expression,
    pst::{self, BinaryOp, Expr, Literal, UnaryOp, Var},
};
use chrono::{DateTime, Utc};

use super::{cedar::uid, residual::parts};

/// All instants with which policies can compare the time, in milliseconds since 1970 and in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moments(Vec<i64>);

impl Moments {
    /// The moments of policies over entities. More of them than can matter does no harm: every instant that
    /// policies and entities name is one.
    ///
    /// # Errors
    /// What could change a decision at any time, in words.
    pub fn of(policies: &PolicySet, entities: &Entities) -> Result<Self, String> {
        let mut reading = Reading::new(entities)?;
        for policy in policies.policies() {
            let written = policy.to_pst().map_err(|_| format!("policy `{}` cannot be taken apart", policy.id()))?;
            for clause in written.body().clauses() {
                let (pst::Clause::When(expr) | pst::Clause::Unless(expr)) = clause;
                reading.condition(expr).map_err(|part| {
                    format!("policy `{}` does more than compare the time with a known instant: `{part}`", policy.id())
                })?;
            }
        }
        for entity in entities.iter() {
            // A row that is listed is no known thing: in its place stand all rows of its dataset.
            if entity.uid().type_name().to_string() == "Row" {
                return Err(format!("{} is listed", entity.uid()));
            }
            for (name, value) in entity.attrs().chain(entity.tags()) {
                let read = value.ok().and_then(|value| reading.value(&value));
                read.ok_or_else(|| format!("`{name}` of {} cannot be read", entity.uid()))?;
            }
        }
        Ok(Self(reading.moments.into_iter().collect()))
    }

    /// Whether what was decided at `made` is also what would be decided at `now`, which is not before it: no
    /// moment lies in between or is one of both. As Cedar knows time, all of a millisecond is the same.
    pub fn hold(&self, made: DateTime<Utc>, now: DateTime<Utc>) -> bool {
        let (made, now) = (made.timestamp_millis(), now.timestamp_millis());
        let next = self.0.partition_point(|moment| *moment < made);
        made == now || self.0.get(next).is_none_or(|moment| *moment > now)
    }
}

/// Moments found so far.
struct Reading<'a> {
    entities: &'a Entities,
    /// A request that nothing is asked of; instants are known without one.
    request: Request,
    moments: BTreeSet<i64>,
}

impl<'a> Reading<'a> {
    fn new(entities: &'a Entities) -> Result<Self, String> {
        let (caller, action, resource) = (uid("Caller", ""), uid("Action", ""), uid("Log", ""));
        let request =
            Request::new(caller, action, resource, Context::empty(), None).map_err(|fault| fault.to_string())?;
        Ok(Self { entities, request, moments: BTreeSet::new() })
    }

    /// Takes the moments out of a condition.
    ///
    /// # Errors
    /// A part of it, as written, by which it could change at any time.
    fn condition(&mut self, expr: &Expr) -> Result<(), String> {
        match expr {
            Expr::BinaryOp {
                op:
                    BinaryOp::Eq
                    | BinaryOp::NotEq
                    | BinaryOp::Less
                    | BinaryOp::LessEq
                    | BinaryOp::Greater
                    | BinaryOp::GreaterEq,
                left,
                right,
            } if is_now(left) || is_now(right) => {
                let other = if is_now(left) { right } else { left };
                self.known(other).ok_or_else(|| expr.to_string())
            }
            Expr::GetAttr { expr: of, .. } if is_context(of) => match is_now(expr) {
                true => Err(expr.to_string()),
                false => Ok(()),
            },
            Expr::HasAttr { expr: of, attrs } if is_context(of) => {
                match attrs.iter().any(|name| name.as_str() == "now") {
                    true => Err(expr.to_string()),
                    false => Ok(()),
                }
            }
            Expr::Var(Var::Context) => Err(expr.to_string()),
            Expr::UnaryOp { op: UnaryOp::Datetime, .. } => self.known(expr).ok_or_else(|| expr.to_string()),
            Expr::Literal(_) | Expr::Var(_) => Ok(()),
            Expr::UnaryOp { .. }
            | Expr::BinaryOp { .. }
            | Expr::GetAttr { .. }
            | Expr::HasAttr { .. }
            | Expr::Like { .. }
            | Expr::Is { .. }
            | Expr::IfThenElse { .. }
            | Expr::Set(_)
            | Expr::Record(_) => parts(expr).into_iter().try_for_each(|part| self.condition(part)),
            other => Err(other.to_string()),
        }
    }

    /// Takes what the time is compared with, if its instants are known.
    fn known(&mut self, other: &Expr) -> Option<()> {
        match other {
            // One of the values of entities, all of which are moments. Not so what lies further: a caller's
            // attribute may be a row.
            Expr::GetAttr { expr: of, .. } if matches!(of.as_ref(), Expr::Var(Var::Principal)) => Some(()),
            fixed if is_fixed(fixed) => {
                self.moments.insert(self.instant(&fixed.to_string())?);
                Some(())
            }
            _ => None,
        }
    }

    /// Takes all instants in a value.
    fn value(&mut self, value: &EvalResult) -> Option<()> {
        match value {
            EvalResult::Bool(_) | EvalResult::Long(_) | EvalResult::String(_) | EvalResult::EntityUid(_) => {}
            EvalResult::ExtensionValue(text) if is_no_instant(text) => {}
            EvalResult::ExtensionValue(text) => {
                self.moments.insert(self.instant(text)?);
            }
            EvalResult::Set(items) => {
                for item in items.iter() {
                    self.value(item)?;
                }
            }
            EvalResult::Record(members) => {
                for (_, member) in members.iter() {
                    self.value(member)?;
                }
            }
        }
        Some(())
    }

    /// The milliseconds since 1970 of an instant, by Cedar's own reckoning.
    fn instant(&self, written: &str) -> Option<i64> {
        let since: Expression =
            format!("({written}).durationSince(datetime(\"1970-01-01\")).toMilliseconds()").parse().ok()?;
        match eval_expression(&self.request, self.entities, &since) {
            Ok(EvalResult::Long(milliseconds)) => Some(milliseconds),
            _ => None,
        }
    }
}

fn is_context(expr: &Expr) -> bool {
    matches!(expr, Expr::Var(Var::Context))
}

fn is_now(expr: &Expr) -> bool {
    matches!(expr, Expr::GetAttr { expr, attr } if is_context(expr) && attr.as_str() == "now")
}

/// Whether it is an instant written out, or an attribute of a named entity, or so long before or after one.
fn is_fixed(expr: &Expr) -> bool {
    match expr {
        Expr::UnaryOp { op: UnaryOp::Datetime, expr } => is_text(expr),
        Expr::GetAttr { expr, .. } => is_path(expr),
        Expr::BinaryOp { op: BinaryOp::Offset, left, right } => {
            let duration = matches!(right.as_ref(), Expr::UnaryOp { op: UnaryOp::Duration, expr } if is_text(expr));
            is_fixed(left) && duration
        }
        _ => false,
    }
}

fn is_path(expr: &Expr) -> bool {
    match expr {
        Expr::Literal(Literal::EntityUID(_)) => true,
        Expr::GetAttr { expr, .. } => is_path(expr),
        _ => false,
    }
}

fn is_text(expr: &Expr) -> bool {
    matches!(expr, Expr::Literal(Literal::String(_)))
}

/// Whether Cedar writes a value of another type so.
fn is_no_instant(written: &str) -> bool {
    ["decimal(", "duration(", "ip("].iter().any(|start| written.starts_with(start))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENTITIES: &str = r#"[
      {"uid": {"type": "Declaration", "id": "alert"}, "attrs": {
        "ends": {"__extn": {"fn": "datetime", "arg": "1970-01-01T00:00:05Z"}},
        "level": "city",
        "share": {"__extn": {"fn": "decimal", "arg": "0.5"}},
        "grace": {"__extn": {"fn": "duration", "arg": "1d"}},
        "net": {"__extn": {"fn": "ip", "arg": "10.0.0.0/8"}},
        "above": {"__entity": {"type": "Declaration", "id": "law"}}
      }, "parents": []},
      {"uid": {"type": "Declaration", "id": "law"}, "attrs": {
        "phases": [{"from": {"__extn": {"fn": "datetime", "arg": "1970-01-01T00:00:07.250+0000"}}}],
        "until": {"last": {"__extn": {"fn": "datetime", "arg": "1969-12-31T23:59:59.999Z"}}}
      }, "parents": []}
    ]"#;

    /// Those of the entities.
    const ALWAYS: [i64; 3] = [-1, 5_000, 7_250];

    fn moments(condition: &str) -> Result<Vec<i64>, String> {
        let policies: PolicySet =
            format!("permit (principal, action, resource) when {{ {condition} }};").parse().unwrap();
        Moments::of(&policies, &Entities::from_json_str(ENTITIES, None).unwrap()).map(|moments| moments.0)
    }

    #[test]
    fn comparing_the_time_with_known_instants_gives_moments() {
        for (condition, more) in [
            ("true", None),
            (r#"context.purpose == "audit" && context has purpose"#, None),
            (r#"context.now < Declaration::"alert".ends"#, None),
            (r#"Declaration::"law".until.last >= context["now"]"#, None),
            (r#"context.now != Declaration::"alert".above.until.last"#, None),
            (r#"principal has ends && context.now <= principal.ends"#, None),
            (r#"context.now > datetime("1970-01-01T00:00:09Z")"#, Some(9_000)),
            (r#"datetime("1970-01-01T01:00:00+0100") == context.now"#, Some(0)),
            (r#"!(context.now >= Declaration::"alert".ends.offset(duration("-6s")))"#, Some(-1_000)),
            (r#"context.now < datetime("1970-01-02").offset(duration("1d1ms"))"#, Some(172_800_001)),
            (r#"if context.now < datetime("1970-01-02") then resource.a == 1 else false"#, Some(86_400_000)),
            (r#"[context.now < datetime("1970-01-02"), true].contains(resource.a)"#, Some(86_400_000)),
            (r#"{open: context.now < datetime("1970-01-02")}.open"#, Some(86_400_000)),
            // Needless, and does no harm.
            (r#"resource.day < datetime("1970-01-02")"#, Some(86_400_000)),
        ] {
            let expected: BTreeSet<i64> = ALWAYS.into_iter().chain(more).collect();
            assert_eq!(moments(condition), Ok(expected.into_iter().collect()), "{condition}");
        }
    }

    #[test]
    fn any_other_use_of_the_time_gives_none() {
        for condition in [
            r#"context.now.toDate() == datetime("2026-01-01")"#,
            r#"context.now.toTime() < duration("8h")"#,
            r#"context.now.offset(duration("1d")) < Declaration::"alert".ends"#,
            r#"context.now.durationSince(Declaration::"alert".ends) < duration("1d")"#,
            r#"Declaration::"alert".ends.durationSince(context.now).toDays() < 3"#,
            r#"context.now < resource.day"#,
            r#"context.now < resource.source.ends"#,
            r#"context.now < Row::"cdc.cases".confirmed_date"#,
            r#"context.now < principal.first.ends"#,
            r#"context.now < principal.ends.offset(duration("1d"))"#,
            r#"context.now < principal.getTag("ends")"#,
            r#"context.now < Declaration::"gone".ends"#,
            r#"context.now < Declaration::"alert".starts"#,
            r#"context.now < Declaration::"alert".level"#,
            r#"context.now < datetime("9999-12-31").offset(duration("9223372036854775807ms"))"#,
            r#"context.now < Declaration::"alert".ends.offset(Declaration::"alert".grace)"#,
            r#"context.now < (if resource.a == 1 then datetime("2026-01-01") else datetime("2027-01-01"))"#,
            r#"context.now < datetime("2026-01-01").toDate()"#,
            r#"context.now == context.now"#,
            r#"context.now == context"#,
            r#"context has now"#,
            r#"context has now.of.day"#,
            r#"[context.now].contains(Declaration::"alert".ends)"#,
            r#"[Declaration::"alert".ends].contains(context.now)"#,
            r#"{at: context.now}.at < Declaration::"alert".ends"#,
            r#"context == {now: Declaration::"alert".ends}"#,
            r#"(if resource.a == 1 then context else context).now < Declaration::"alert".ends"#,
            r#"(if context.now < Declaration::"alert".ends then context.now else context.now) == principal.ends"#,
            r#"principal.a == 1 || !(principal.b == 2 && context.now == resource.day)"#,
        ] {
            assert!(moments(condition).is_err(), "{condition}");
        }
        let unless: PolicySet =
            "permit (principal, action, resource) unless { context.now == resource.day };".parse().unwrap();
        assert!(Moments::of(&unless, &Entities::empty()).is_err());
    }

    #[test]
    fn listed_rows_give_none() {
        let row = r#"[{"uid": {"type": "Row", "id": "cdc.cases"}, "attrs": {}, "parents": []}]"#;
        assert!(Moments::of(&PolicySet::new(), &Entities::from_json_str(row, None).unwrap()).is_err());
        assert!(Moments::of(&PolicySet::new(), &Entities::empty()).is_ok());
    }

    #[test]
    fn decisions_hold_from_one_moment_to_the_next() {
        let at = |milliseconds: i64, nanoseconds: i64| {
            DateTime::from_timestamp_millis(milliseconds).unwrap() + chrono::TimeDelta::nanoseconds(nanoseconds)
        };
        let moments = Moments(vec![-1, 5_000, 7_250]);
        for (made, now) in [(0, 4_999), (5_001, 7_249), (7_251, i64::from(u32::MAX)), (-9_000, -2), (5_000, 5_000)] {
            assert!(moments.hold(at(made, 0), at(now, 999_999)), "{made} to {now}");
            assert!(moments.hold(at(made, 0), at(made, 999_999)), "{made}");
        }
        for (made, now) in [(4_999, 5_000), (5_000, 5_001), (4_999, 5_001), (0, 8_000), (-2, -1), (-1, 0)] {
            assert!(!moments.hold(at(made, 999_999), at(now, 0)), "{made} to {now}");
        }
        assert!(Moments(Vec::new()).hold(at(0, 0), at(i64::from(u32::MAX), 0)));
    }
}

//! What Cedar leaves open about a row, as a [`Scope`].
//!
//! Partial evaluation decides everything known before a row is looked at; what remains speaks of
//! `resource.territory` and `resource.source`. A shape that is not translated here is an error, and the
//! policy it stands in then denies.

use cedar_policy::pst::{BinaryOp, Expr, Literal, UnaryOp, Var};

use crate::dataset::scope::Scope;

/// The rows for which the expression is true.
///
/// # Errors
/// The name of what cannot be translated.
pub fn scope(expr: &Expr, caller_agency: &str) -> Result<Scope, &'static str> {
    let again = |expr: &Expr| scope(expr, caller_agency);
    Ok(match expr {
        Expr::Literal(Literal::Bool(true)) => Scope::All,
        Expr::Literal(Literal::Bool(false)) => Scope::Nothing,
        Expr::UnaryOp { op: UnaryOp::Not, expr } => Scope::Not(Box::new(again(expr)?)),
        Expr::BinaryOp { op: BinaryOp::And, left, right } => Scope::Every(vec![again(left)?, again(right)?]),
        Expr::BinaryOp { op: BinaryOp::Or, left, right } => Scope::Any(vec![again(left)?, again(right)?]),
        Expr::BinaryOp { op: BinaryOp::NotEq, left, right } => {
            Scope::Not(Box::new(compare(BinaryOp::Eq, left, right, caller_agency)?))
        }
        Expr::BinaryOp { op: op @ (BinaryOp::Eq | BinaryOp::In | BinaryOp::Contains), left, right } => {
            compare(*op, left, right, caller_agency)?
        }
        Expr::HasAttr { expr, attrs } if is_row(expr) && attrs.iter().count() == 1 => match attrs.head.as_str() {
            "territory" => Scope::HasTerritory,
            "source" => Scope::All,
            _ => return Err("`has` of an attribute rows do not have"),
        },
        Expr::IfThenElse { cond, then_expr, else_expr } => {
            let condition = again(cond)?;
            Scope::Any(vec![
                Scope::Every(vec![condition.clone(), again(then_expr)?]),
                Scope::Every(vec![Scope::Not(Box::new(condition)), again(else_expr)?]),
            ])
        }
        _ => return Err("an expression over rows other than ==, !=, in, contains, has, &&, ||, ! and if"),
    })
}

fn compare(op: BinaryOp, left: &Expr, right: &Expr, caller_agency: &str) -> Result<Scope, &'static str> {
    match (op, attribute(left), attribute(right)) {
        (BinaryOp::Eq, Some(attribute), None) => one(attribute, op, right),
        (BinaryOp::Eq, None, Some(attribute)) => one(attribute, op, left),
        (BinaryOp::In, Some(attribute), None) => any(attribute, op, right),
        // `principal in resource.source`: the caller's agency is known, the row's is not.
        (BinaryOp::In, None, Some("source")) if matches!(left, Expr::Literal(Literal::EntityUID(caller)) if caller.ty.to_string() == "Caller") => {
            Ok(Scope::Source(caller_agency.to_owned()))
        }
        (BinaryOp::Contains, None, Some(attribute)) => any(attribute, BinaryOp::Eq, left),
        _ => Err("a comparison other than of territory or source with something known"),
    }
}

fn any(attribute: &str, op: BinaryOp, known: &Expr) -> Result<Scope, &'static str> {
    match known {
        Expr::Set(items) => items.iter().map(|item| one(attribute, op, item)).collect::<Result<_, _>>().map(Scope::Any),
        other => one(attribute, op, other),
    }
}

fn one(attribute: &str, op: BinaryOp, known: &Expr) -> Result<Scope, &'static str> {
    let Expr::Literal(Literal::EntityUID(entity)) = known else {
        return Err("a comparison of a row with something that is not known before");
    };
    let id = entity.eid.to_string();
    Ok(match (attribute, entity.ty.to_string().as_str(), op) {
        ("territory", "Division", BinaryOp::In) => Scope::Within(id),
        ("territory", "Division", _) => Scope::At(id),
        // Agencies have no parents, so being in one is being it.
        ("source", "Agency", _) => Scope::Source(id),
        // Cedar's entities of different types are never equal and never in each other.
        ("territory" | "source", ..) => Scope::Nothing,
        _ => return Err("an attribute rows do not have"),
    })
}

fn attribute(expr: &Expr) -> Option<&str> {
    match expr {
        Expr::GetAttr { expr, attr } if is_row(expr) => Some(attr.as_str()),
        _ => None,
    }
}

fn is_row(expr: &Expr) -> bool {
    match expr {
        Expr::Var(Var::Resource) => true,
        Expr::Literal(Literal::EntityUID(entity)) => entity.ty.to_string() == "Row",
        _ => false,
    }
}

//! The protected aggregate: its grammar, and the plan it becomes.
//!
//! Below it only one governed table, aliases and filters may stand; filters and group keys are columns
//! whose values are registered as coarse, against literals. Groups of fewer than [`THRESHOLD`] distinct
//! subjects are dropped, and within a group a value that rests on fewer is NULL, so that one person's
//! measure among many absent ones does not show.
//!
//! Guarantee: every released number rests on at least [`THRESHOLD`] distinct subjects of one caller's row
//! scope. Assumptions: the contract names the subject, and its bins are coarse. What it does not give:
//! protection against subtracting one answer from another.

use std::sync::Arc;

use arrow::datatypes::DataType;
use datafusion::{
    common::{Column, DFSchema},
    functions_aggregate::expr_fn::count_distinct,
    logical_expr::{
        Aggregate, Between, BinaryExpr, Case, Cast, Expr, ExprSchemable, Extension, LogicalPlan, LogicalPlanBuilder,
        Operator,
        expr::{AggregateFunction, InList, ScalarFunction},
    },
    prelude::lit,
};

use super::{Label, THRESHOLD, label::Here};
use crate::{
    dataset::{Bin, FieldType, Generalise},
    error::{Error, Result},
    policy::{DatasetView, Exposure},
    query::{self, GovernedTable, ReleasedNode, SUBJECT},
};

/// Checks the shape of a protected aggregate over `below` and rewrites it.
pub fn aggregate(below: &LogicalPlan, aggregate: &Aggregate, here: &Here) -> Result<LogicalPlan> {
    let table = check_below(below)?;
    let view = table.view();
    for key in &aggregate.group_expr {
        if !is_coarse(key, view) {
            return Err(fine_key(key, view));
        }
    }
    let measures = aggregate.aggr_expr.iter().map(|expr| measure(expr, view, here)).collect::<Result<Vec<_>>>()?;
    rewrite(below, aggregate, &measures).map_err(Error::internal)
}

/// What a protected value rests on: the whole group, or those of its rows in which a column is there.
enum Measure {
    Rows,
    Present(Column),
}

/// The one governed table below, past aliases and filters of the grammar.
fn check_below(plan: &LogicalPlan) -> Result<&GovernedTable> {
    match plan {
        LogicalPlan::TableScan(scan) => {
            GovernedTable::behind(&scan.source).ok_or_else(|| Error::internal("a protected aggregate over no table"))
        }
        LogicalPlan::SubqueryAlias(alias) => check_below(&alias.input),
        LogicalPlan::Filter(filter) => {
            let table = check_below(&filter.input)?;
            check_filter(&filter.predicate, table.view(), filter.input.schema())?;
            Ok(table)
        }
        _ => Err(Error::refused(
            "protected-shape",
            "below a protected aggregate there is something other than one dataset with simple filters (a join, a \
             subquery, DISTINCT, a window or a computed column)",
            "SELECT coarse columns, count(*), avg(a sealed column) FROM one dataset WHERE column IN (...) GROUP BY \
             those columns",
        )),
    }
}

/// AND of =, IN and BETWEEN of coarse columns and literals.
fn check_filter(predicate: &Expr, view: &DatasetView, schema: &DFSchema) -> Result<()> {
    let fits = |column: &Expr, literal: &Expr| {
        is_coarse(column, view) && is_literal(literal) && compares_without_fail(column, literal, schema)
    };
    let passes = match predicate {
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::And, right }) => {
            check_filter(left, view, schema)?;
            return check_filter(right, view, schema);
        }
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::Eq, right }) => fits(left, right) || fits(right, left),
        Expr::InList(InList { expr, list, negated: false }) => list.iter().all(|item| fits(expr, item)),
        Expr::Between(Between { expr, negated: false, low, high }) => fits(expr, low) && fits(expr, high),
        _ => false,
    };
    match passes {
        true => Ok(()),
        false => Err(Error::refused(
            "protected-filter",
            "a filter below a protected aggregate is something other than AND of =, IN and BETWEEN of coarse \
             columns with literals",
            format!("filter by {}", coarse_forms(view)),
        )),
    }
}

/// Whether the comparison fails on no value of the column. A literal of another type would make the
/// engine cast the column, and an error would tell that a row is there.
fn compares_without_fail(column: &Expr, literal: &Expr, schema: &DFSchema) -> bool {
    let (Ok(column), Ok(literal)) = (column.get_type(schema), literal.get_type(schema)) else { return false };
    match (&column, &literal) {
        (_, DataType::Null) => true,
        // The literal is cast, once, whatever the rows are.
        (DataType::Date32 | DataType::Timestamp(..), DataType::Utf8) => true,
        (DataType::Timestamp(_, Some(_)), DataType::Timestamp(..)) => true,
        _ => column == literal || (column.is_integer() && literal.is_integer()),
    }
}

/// A literal, or a cast of one, as `DATE '2026-01-05'` is.
fn is_literal(expr: &Expr) -> bool {
    match expr {
        Expr::Literal(..) => true,
        Expr::Cast(Cast { expr, .. }) => is_literal(expr),
        _ => false,
    }
}

/// Whether the expression is a coarse form that the contract registers: the column itself where its own
/// values are few, or one of its bins.
fn is_coarse(expr: &Expr, view: &DatasetView) -> bool {
    match expr {
        Expr::Alias(alias) => is_coarse(&alias.expr, view),
        Expr::Column(column) => {
            let Some((bins, exposure, kind, generalise)) = readable(column, view) else { return false };
            let shown = match (exposure, generalise) {
                (Exposure::Clear, _) if kind == FieldType::Date => bins.contains(&Bin::Day),
                (Exposure::Clear, _) => false,
                (Exposure::Generalised, Some(Generalise::Prefix(width))) => bins.contains(&Bin::Prefix(width)),
                (Exposure::Generalised, Some(Generalise::Month)) => {
                    bins.contains(&Bin::Month) || bins.contains(&Bin::Day)
                }
                (Exposure::Generalised, Some(Generalise::Year | Generalise::Years(_))) => {
                    bins.iter().any(|bin| matches!(bin, Bin::Day | Bin::Month | Bin::Year))
                }
                _ => false,
            };
            shown || bins.contains(&Bin::Value)
        }
        // The day of a timestamp.
        Expr::Cast(Cast { expr, field }) if *field.data_type() == DataType::Date32 => {
            matches!(expr.as_ref(), Expr::Column(column) if readable(column, view)
                .is_some_and(|(bins, exposure, kind, _)| exposure == Exposure::Clear
                    && matches!(kind, FieldType::Date | FieldType::Timestamp) && bins.contains(&Bin::Day)))
        }
        Expr::ScalarFunction(ScalarFunction { func, args }) => match (func.name(), args.as_slice()) {
            ("substr", [Expr::Column(column), from, width]) => {
                let (Some(1), Some(width)) = (whole(from), whole(width)) else { return false };
                readable(column, view).is_some_and(|(bins, ..)| bins.contains(&Bin::Prefix(width)))
            }
            ("left", [Expr::Column(column), width]) => {
                let Some(width) = whole(width) else { return false };
                readable(column, view).is_some_and(|(bins, ..)| bins.contains(&Bin::Prefix(width)))
            }
            ("date_trunc", [Expr::Literal(unit, _), Expr::Column(column)]) => {
                let bin = match unit.try_as_str().flatten().map(str::to_ascii_lowercase).as_deref() {
                    Some("day") => Bin::Day,
                    Some("week") => Bin::Week,
                    Some("month") => Bin::Month,
                    Some("year") => Bin::Year,
                    _ => return false,
                };
                readable(column, view).is_some_and(|(bins, ..)| bins.contains(&bin))
            }
            _ => false,
        },
        _ => false,
    }
}

type Readable<'a> = (&'a [Bin], Exposure, FieldType, Option<Generalise>);

/// A column the caller may read, but no token: a token is as fine as a person.
fn readable<'a>(column: &Column, view: &'a DatasetView) -> Option<Readable<'a>> {
    let (_, exposure) = view.fields.iter().find(|(name, _)| *name == column.name)?;
    let field = view.dataset.field(&column.name)?;
    matches!(exposure, Exposure::Clear | Exposure::Generalised).then_some((
        field.bins.as_slice(),
        *exposure,
        field.kind,
        field.generalise,
    ))
}

fn whole(expr: &Expr) -> Option<u32> {
    match expr {
        Expr::Literal(value, _) => value.to_string().parse().ok(),
        _ => None,
    }
}

/// Checks one aggregate and says what its value rests on.
fn measure(expr: &Expr, view: &DatasetView, here: &Here) -> Result<Measure> {
    let not_listed = || {
        Error::refused(
            "protected-aggregate",
            "a protected aggregate is something other than count, count(distinct), sum or avg of one column",
            "use count(*), count(column), count(DISTINCT column), sum(column) or avg(column), without FILTER, CASE \
             or arithmetic inside",
        )
    };
    let Expr::AggregateFunction(AggregateFunction { func, params }) = expr.clone().unalias() else {
        return Err(not_listed());
    };
    if params.filter.is_some() || !params.order_by.is_empty() || params.null_treatment.is_some() {
        return Err(not_listed());
    }
    match (func.name(), params.distinct, params.args.as_slice()) {
        ("count", false, [Expr::Literal(..)]) => Ok(Measure::Rows),
        ("count", false, [Expr::Column(column)]) => Ok(Measure::Present(column.clone())),
        // How many values a readable column has would tell of groups that are absent.
        ("count", true, [Expr::Column(column)]) => {
            let identifies = view.dataset.field(&column.name).is_some_and(|field| field.identifier.is_some());
            match identifies || here.label(column)? == Label::Sealed {
                true => Ok(Measure::Present(column.clone())),
                false => Err(Error::refused(
                    "protected-distinct",
                    format!("the number of distinct values of `{}` would count groups that are absent", column.name),
                    "count distinct people or records, or group by the column",
                )),
            }
        }
        ("sum" | "avg", false, [Expr::Column(column)]) => {
            let bounded = view.dataset.field(&column.name).is_some_and(|field| field.bounds.is_some());
            if here.label(column)? == Label::Sealed && !bounded {
                return Err(Error::refused(
                    "unbounded-measure",
                    format!("`{}` has no bounds in its contract, so one value could carry a whole sum", column.name),
                    format!("use count({0}), or ask the owner to register bounds for `{0}`", column.name),
                ));
            }
            Ok(Measure::Present(column.clone()))
        }
        _ => Err(not_listed()),
    }
}

fn rewrite(
    below: &LogicalPlan,
    aggregate: &Aggregate,
    measures: &[Measure],
) -> datafusion::common::Result<LogicalPlan> {
    const PEOPLE: &str = "__people";
    let input = with_subject(below)?;
    let (qualifier, field) = input.schema().qualified_field_with_unqualified_name(SUBJECT)?;
    let subject = Expr::Column(Column::new(qualifier.cloned(), field.name()));

    let mut computed = aggregate.aggr_expr.clone();
    computed.push(count_distinct(subject.clone()).alias(PEOPLE));
    for (at, measure) in measures.iter().enumerate() {
        let Measure::Present(column) = measure else { continue };
        let present = Expr::Column(column.clone()).is_not_null();
        let counted = Case::new(None, vec![(Box::new(present), Box::new(subject.clone()))], None);
        computed.push(count_distinct(Expr::Case(counted)).alias(format!("{PEOPLE}_{at}")));
    }
    let enough = |name: String| Expr::Column(Column::from_name(name)).gt_eq(lit(THRESHOLD as i64));

    let mut plan = LogicalPlanBuilder::from(input).aggregate(aggregate.group_expr.clone(), computed)?;
    let alone = aggregate.group_expr.is_empty();
    if !alone {
        // INVARIANT: a group of fewer distinct subjects looks like one that does not exist.
        plan = plan.filter(enough(PEOPLE.into()))?;
    }
    let schema = &aggregate.schema;
    let groups = schema.fields().len() - measures.len();
    let mut shown = Vec::new();
    for at in 0..schema.fields().len() {
        let (qualifier, field) = schema.qualified_field(at);
        let value = Expr::Column(Column::new(qualifier.cloned(), field.name()));
        let Some(measure) = at.checked_sub(groups) else {
            shown.push(value);
            continue;
        };
        let people = match &measures[measure] {
            Measure::Rows if !alone => {
                shown.push(value);
                continue;
            }
            Measure::Rows => PEOPLE.to_owned(),
            Measure::Present(_) => format!("{PEOPLE}_{measure}"),
        };
        let guarded = Case::new(None, vec![(Box::new(enough(people)), Box::new(value))], None);
        shown.push(Expr::Case(guarded).alias(field.name()));
    }
    let input = plan.project(shown)?.build()?;
    Ok(LogicalPlan::Extension(Extension { node: Arc::new(ReleasedNode { input }) }))
}

/// The same plan over the table that carries subjects.
fn with_subject(plan: &LogicalPlan) -> datafusion::common::Result<LogicalPlan> {
    match plan {
        LogicalPlan::TableScan(scan) => match GovernedTable::behind(&scan.source) {
            Some(table) => {
                LogicalPlanBuilder::scan(scan.table_name.clone(), query::source(table.with_subject()), None)?.build()
            }
            None => datafusion::common::internal_err!("a protected aggregate over no table"),
        },
        other => {
            let inputs = other.inputs().into_iter().map(with_subject).collect::<Result<Vec<_>, _>>()?;
            other.with_new_exprs(other.expressions(), inputs)
        }
    }
}

fn fine_key(key: &Expr, view: &DatasetView) -> Error {
    let name =
        key.column_refs().into_iter().next().map_or_else(|| "that".to_owned(), |column| format!("`{}`", column.name));
    Error::refused(
        "protected-group-key",
        format!("a protected aggregate is grouped by {name}, which is sealed, a token or too fine"),
        format!("group by {}", coarse_forms(view)),
    )
}

/// The coarse forms of a view, as a caller would write them.
fn coarse_forms(view: &DatasetView) -> String {
    let mut forms = Vec::new();
    for (name, _) in &view.fields {
        let column = Column::from_name(name);
        let Some((bins, _, kind, _)) = readable(&column, view) else { continue };
        if is_coarse(&Expr::Column(column), view) {
            forms.push(name.clone());
        }
        for bin in bins {
            match bin {
                Bin::Prefix(width) => forms.push(format!("substr({name}, 1, {width})")),
                Bin::Day if kind == FieldType::Timestamp => forms.push(format!("CAST({name} AS DATE)")),
                Bin::Week => forms.push(format!("date_trunc('week', {name})")),
                Bin::Month => forms.push(format!("date_trunc('month', {name})")),
                Bin::Value | Bin::Day | Bin::Year => {}
            }
        }
    }
    match forms.is_empty() {
        true => "nothing: this view has no coarse column, so ask for the whole".into(),
        false => forms.join(", "),
    }
}

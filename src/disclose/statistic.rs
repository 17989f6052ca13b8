//! What is asked of each cell, and how it is worked out: which contributions of each subject are added up
//! ([`Slot`]), and how released numbers make an answer ([`Formula`]). Everything is a function of numbers that
//! are released one by one, so that no answer says more than they do.

use datafusion::{
    common::{Column, ScalarValue},
    functions_aggregate::expr_fn::{count, count_distinct, max, sum},
    logical_expr::{Case, Cast, Expr, expr::AggregateFunction, utils::split_conjunction},
    prelude::lit,
};

use super::{
    measure,
    region::{Region, What},
    rules,
};
use crate::{
    dataset::{Bin, Field, FieldType},
    error::{Error, Result},
    policy::Exposure,
};

/// What one subject contributes to a cell, and how the total is released.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// The call that adds up a subject's rows.
    pub call: Expr,
    /// What is counted.
    pub what: Counted,
    /// The conditions under which rows count.
    pub when: Vec<Expr>,
}

/// What a slot counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Counted {
    /// People: each contributes one.
    People,
    /// Rows or records of a dataset.
    Rows(String),
    /// Values of a field, or their squares, in units from the field's centre.
    Values(String),
}

impl Slot {
    /// The kind of cells it can be compared with.
    pub fn kind(&self) -> String {
        match &self.what {
            Counted::People => "people".to_owned(),
            Counted::Rows(of) => format!("rows {of}"),
            Counted::Values(of) => format!("sum {of}"),
        }
    }
}

/// How an answer is made of released numbers. Slots are given by their place.
#[derive(Debug, Clone, PartialEq)]
pub enum Formula {
    /// How many people the cell stands for.
    People,
    /// A released count, so many times.
    Count(usize, f64),
    /// How many of these counts are released.
    Released(Vec<usize>),
    /// One released count by another, so many times.
    Share(usize, usize, f64),
    /// A sum: of deviations, and of as many centres.
    Sum(Moments),
    /// A mean.
    Mean(Moments),
    /// A variance or, `root`, a standard deviation; of a `sample` or of all.
    Spread {
        /// Sum of deviations and their number.
        of: Moments,
        /// Sum of their squares.
        squares: usize,
        /// Whether it is estimated from a sample.
        sample: bool,
        /// Whether its root is taken.
        root: bool,
    },
    /// A quantile of a histogram of released counts.
    Quantile {
        /// Bins from the lowest to the highest, with the slots of their counts.
        bins: Vec<(Option<f64>, Option<f64>, usize)>,
        /// The slot of the count of all values.
        whole: usize,
        /// From 0 to 1.
        at: f64,
    },
}

/// A sum of deviations from a public centre, and their number.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Moments {
    /// The slot of the sum.
    pub sum: usize,
    /// The slot of the count of values.
    pub count: usize,
    /// The centre, in units.
    pub centre: i128,
    /// Decimal digits of a unit.
    pub digits: u8,
}

impl Formula {
    /// What it is called where noise is explained.
    pub fn word(&self, slots: &[Slot]) -> &'static str {
        match self {
            Self::People => "count",
            Self::Count(at, _) if slots.get(*at).is_some_and(|slot| slot.what == Counted::People) => "count",
            Self::Count(..) => "rows",
            Self::Released(_) => "values",
            Self::Share(..) => "share",
            Self::Sum(_) => "sum",
            Self::Mean(_) => "mean",
            Self::Spread { .. } => "spread",
            Self::Quantile { .. } => "quantile",
        }
    }
}

/// All that is asked of each cell.
pub struct Statistic {
    /// What is added up.
    pub slots: Vec<Slot>,
    /// One formula a call.
    pub formulas: Vec<Formula>,
}

/// The most bins of one histogram, and values of one list.
const BINS: usize = 64;

impl Statistic {
    /// Reads the calls of a region.
    ///
    /// # Errors
    /// The refusal of the first call that is no protected statistic.
    pub fn of(region: &Region) -> Result<Self> {
        let mut reader = Reader { region, slots: Vec::new() };
        let formulas = region.calls.iter().map(|call| reader.formula(call)).collect::<Result<_>>()?;
        Ok(Self { slots: reader.slots, formulas })
    }
}

struct Reader<'a> {
    region: &'a Region,
    slots: Vec<Slot>,
}

impl Reader<'_> {
    fn formula(&mut self, call: &Expr) -> Result<Formula> {
        let Expr::AggregateFunction(AggregateFunction { func, params }) = call.clone().unalias() else {
            return Err(not_listed("that"));
        };
        let name = func.name();
        let ordered = matches!(name, "percentile_cont" | "approx_percentile_cont");
        if params.null_treatment.is_some() || (!params.order_by.is_empty() && !ordered) {
            return Err(not_listed(name));
        }
        let mut when = Vec::new();
        if let Some(filter) = &params.filter {
            when.extend(self.conditions(filter)?);
        }
        match (name, params.distinct, params.args.as_slice()) {
            ("count", false, [Expr::Literal(value, _)]) if !value.is_null() => self.rows(when),
            ("count", false, [argument]) => {
                when.extend(self.there(argument)?);
                self.rows(when)
            }
            ("count", true, [argument]) => self.distinct(argument, when),
            ("sum" | "avg", false, [argument @ Expr::Case(_)]) if self.chosen(argument, name).is_none() => {
                self.share(name, argument, when)
            }
            ("sum" | "avg", false, [argument]) => {
                let of = self.moments(argument, &mut when, name)?;
                Ok(if name == "sum" { Formula::Sum(of) } else { Formula::Mean(of) })
            }
            ("stddev" | "stddev_pop" | "var" | "var_pop", false, [argument]) => {
                let of = self.moments(argument, &mut when, name)?;
                let (field, _) = self.field(argument).ok_or_else(|| not_listed(name))?;
                let units = measure::units(argument.clone(), field, measure::Power::Two)?;
                let squares =
                    self.slot(sum(chosen(&when, units)), Counted::Values(self.field_name(argument, " squared")), &when);
                let (sample, root) = (!name.ends_with("_pop"), name.starts_with("stddev"));
                Ok(Formula::Spread { of, squares, sample, root })
            }
            ("median" | "approx_median", false, [argument]) => self.quantile(argument, 0.5, when),
            ("percentile_cont" | "approx_percentile_cont", false, [argument, at]) => {
                let at = number(at).filter(|at| (0.0..=1.0).contains(at)).ok_or_else(|| not_listed(name))?;
                self.quantile(argument, at, when)
            }
            ("min" | "max", ..) => Err(Error::refused(
                "protected-aggregate",
                format!("`{name}` of a protected group is one person's value"),
                "use percentile_cont(0.05) or percentile_cont(0.95) WITHIN GROUP (ORDER BY the column), where its bins are \
                 registered",
            )),
            _ => Err(not_listed(name)),
        }
    }

    fn slot(&mut self, call: Expr, what: Counted, when: &[Expr]) -> usize {
        let slot = Slot { call, what, when: when.to_vec() };
        if let Some(at) = self.slots.iter().position(|known| *known == slot) {
            return at;
        }
        self.slots.push(slot);
        self.slots.len() - 1
    }

    fn dataset(&self) -> String {
        let table = self.region.table(&self.region.subject);
        table.map(|table| table.view().dataset.name.to_string()).unwrap_or_default()
    }

    fn rows(&mut self, when: Vec<Expr>) -> Result<Formula> {
        let rows = self.count_rows(&when);
        Ok(Formula::Count(rows, 1.0))
    }

    fn count_rows(&mut self, when: &[Expr]) -> usize {
        // Where each person has one row, whatever the data are, rows are people.
        if self.region.has_one_row_a_subject() {
            return self.count_people(when);
        }
        let call = count(chosen(when, lit(1_i64)));
        self.slot(call, Counted::Rows(self.dataset()), when)
    }

    fn count_people(&mut self, when: &[Expr]) -> usize {
        let call = max(chosen(when, lit(1_i64)));
        self.slot(call, Counted::People, when)
    }

    /// The conditions under which the argument of a count is there.
    fn there(&self, argument: &Expr) -> Result<Vec<Expr>> {
        match argument {
            Expr::Column(column) if *column == self.region.subject => Ok(Vec::new()),
            Expr::Column(column) if self.region.what(column).is_some() => Ok(vec![argument.clone().is_not_null()]),
            argument => match case(argument) {
                Some((condition, then, None)) => {
                    let mut when = self.conditions(condition)?;
                    when.extend(match then {
                        Expr::Literal(value, _) if !value.is_null() => Vec::new(),
                        then => self.there(then)?,
                    });
                    Ok(when)
                }
                _ => Err(not_listed("count")),
            },
        }
    }

    fn distinct(&mut self, argument: &Expr, mut when: Vec<Expr>) -> Result<Formula> {
        if let Some((condition, then, None)) = case(argument) {
            when.extend(self.conditions(condition)?);
            return self.distinct(then, when);
        }
        let Expr::Column(column) = argument else { return Err(not_listed("count(DISTINCT)")) };
        match self.region.what(column) {
            Some(What::Subject(table)) if table.view().dataset.subject.is_some() => {
                if *column != self.region.subject {
                    // The same person, or nobody where a LEFT JOIN found none.
                    self.joined_on_subject(column)?;
                    when.push(argument.clone().is_not_null());
                }
                match when.is_empty() {
                    true => Ok(Formula::People),
                    false => Ok(Formula::Count(self.count_people(&when), 1.0)),
                }
            }
            Some(What::Field(field, _)) => {
                let table = self.region.table(column).ok_or_else(|| Error::internal("a column of no table"))?;
                if table.view().dataset.key == [field.name.clone()] {
                    let call = count_distinct(chosen(&when, argument.clone()));
                    let what = Counted::Rows(format!("{}.{}", table.view().dataset.name, field.name));
                    return Ok(Formula::Count(self.slot(call, what, &when), 1.0));
                }
                let values = field.allowed.as_ref().filter(|allowed| {
                    field.bins.contains(&Bin::Value) && allowed.len() <= BINS && field.identifier.is_none()
                });
                let Some(values) = values else {
                    return Err(Error::refused(
                        "protected-distinct",
                        format!("the number of distinct values of `{}` would count groups that are absent", field.name),
                        "count distinct people or records, or group by the column",
                    ));
                };
                let slots = values.iter().map(|value| {
                    let mut with = when.clone();
                    with.push(argument.clone().eq(lit(value.as_str())));
                    with
                });
                let slots = slots.collect::<Vec<_>>();
                Ok(Formula::Released(slots.iter().map(|with| self.count_people(with)).collect()))
            }
            _ => Err(not_listed("count(DISTINCT)")),
        }
    }

    /// A person counted under the name of a joined table must be the person that is counted.
    fn joined_on_subject(&self, column: &Column) -> Result<()> {
        let domain = |column: &Column| self.region.table(column).map(|table| table.domain());
        match domain(column) == domain(&self.region.subject) {
            true => Ok(()),
            false => Err(not_listed("count(DISTINCT)")),
        }
    }

    /// `sum(CASE WHEN p THEN 1 ELSE 0 END)`, and the same as a mean: how many rows, or which part of them.
    fn share(&mut self, name: &str, argument: &Expr, mut when: Vec<Expr>) -> Result<Formula> {
        let Some((condition, then, otherwise)) = case(argument) else { return Err(not_listed(name)) };
        let (Some(then), otherwise) = (number(then), otherwise.map(number)) else { return Err(not_listed(name)) };
        if !matches!(otherwise, None | Some(Some(0.0))) {
            return Err(not_listed(name));
        }
        let whole = self.count_rows(&when);
        when.extend(self.conditions(condition)?);
        let part = self.count_rows(&when);
        match (name, otherwise) {
            ("sum", _) => Ok(Formula::Count(part, then)),
            (_, Some(_)) => Ok(Formula::Share(part, whole, then)),
            (_, None) => Err(not_listed("avg of a constant")),
        }
    }

    /// `CASE WHEN p THEN column END`, whose ELSE is nothing, or nothing that a sum would notice.
    fn chosen<'e>(&self, argument: &'e Expr, name: &str) -> Option<(&'e Expr, &'e Expr)> {
        let (condition, then, otherwise) = case(argument)?;
        let nothing = otherwise.is_none_or(|otherwise| name == "sum" && number(otherwise) == Some(0.0));
        (nothing && self.field(then).is_some()).then_some((condition, then))
    }

    fn moments(&mut self, argument: &Expr, when: &mut Vec<Expr>, name: &str) -> Result<Moments> {
        let mut argument = argument;
        if let Some((condition, then)) = self.chosen(argument, name) {
            when.extend(self.conditions(condition)?);
            argument = then;
        }
        let Some((field, exposure)) = self.field(argument) else { return Err(not_listed(name)) };
        if field.bounds.is_none() && (exposure == Exposure::Aggregate || field.kind == FieldType::Double) {
            return Err(Error::refused(
                "unbounded-measure",
                format!("`{}` has no bounds in its contract, so one value could carry a whole sum", field.name),
                format!("use count({0}), or ask the owner to register bounds for `{0}`", field.name),
            ));
        }
        let (field, of) = (field.clone(), self.field_name(argument, ""));
        let units = measure::units(argument.clone(), &field, measure::Power::One)?;
        let sum = self.slot(sum(chosen(when, units)), Counted::Values(of), when);
        when.push(argument.clone().is_not_null());
        let count = self.count_rows(when);
        when.pop();
        let (centre, digits) = measure::centre(&field);
        Ok(Moments { sum, count, centre, digits })
    }

    fn quantile(&mut self, argument: &Expr, at: f64, when: Vec<Expr>) -> Result<Formula> {
        let Some((field, _)) = self.field(argument) else { return Err(not_listed("a quantile")) };
        let whole_numbers = matches!(field.kind, FieldType::Integer(_)) && field.bins.contains(&Bin::Value);
        let edges = measure::edges(field).filter(|edges| edges.len() < BINS);
        let Some(edges) = edges else {
            return Err(Error::refused(
                "protected-quantile",
                format!("`{}` has no registered bins to make a histogram of", field.name),
                format!("use avg({0}), or ask the owner to register edges for `{0}`", field.name),
            ));
        };
        let mut there = when.clone();
        there.push(argument.clone().is_not_null());
        let whole = self.count_rows(&there);
        let mut bins = Vec::new();
        let ends = std::iter::once(None).chain(edges.iter().map(Some)).collect::<Vec<_>>();
        for (place, low) in ends.iter().enumerate() {
            let high = ends.get(place + 1).copied().flatten();
            let mut with = when.clone();
            with.push(argument.clone().is_not_null());
            with.extend(low.map(|(edge, _)| argument.clone().gt_eq(edge.clone())));
            with.extend(high.map(|(edge, _)| argument.clone().lt(edge.clone())));
            let slot = self.count_rows(&with);
            // A whole number is no range.
            let high = if whole_numbers { *low } else { high };
            bins.push((low.map(|(_, edge)| *edge), high.map(|(_, edge)| *edge), slot));
        }
        Ok(Formula::Quantile { bins, whole, at })
    }

    /// The field that an argument is.
    fn field(&self, argument: &Expr) -> Option<(&Field, Exposure)> {
        match self.region.what(argument.try_as_col()?)? {
            What::Field(field, exposure @ (Exposure::Clear | Exposure::Aggregate)) if measure::is_number(field) => {
                Some((field, exposure))
            }
            _ => None,
        }
    }

    fn field_name(&self, argument: &Expr, power: &str) -> String {
        let column = argument.try_as_col();
        let table = column.and_then(|column| self.region.table(column));
        let dataset = table.map(|table| table.view().dataset.name.to_string()).unwrap_or_default();
        format!("{dataset}.{}{power}", column.map(|column| column.name.as_str()).unwrap_or_default())
    }

    /// The conjuncts of a condition, each checked as a filter would be.
    fn conditions(&self, condition: &Expr) -> Result<Vec<Expr>> {
        let conjuncts = split_conjunction(condition);
        conjuncts.iter().try_for_each(|conjunct| rules::condition(self.region, conjunct))?;
        Ok(conjuncts.into_iter().cloned().collect())
    }
}

/// `value` where all conditions hold, else nothing.
fn chosen(when: &[Expr], value: Expr) -> Expr {
    match when.iter().cloned().reduce(Expr::and) {
        Some(condition) => Expr::Case(Case::new(None, vec![(Box::new(condition), Box::new(value))], None)),
        None => value,
    }
}

/// A CASE of one condition: it, its value, and what stands otherwise, if that is not NULL.
fn case(expr: &Expr) -> Option<(&Expr, &Expr, Option<&Expr>)> {
    let Expr::Case(Case { expr: None, when_then_expr, else_expr }) = expr else { return None };
    let [(condition, then)] = when_then_expr.as_slice() else { return None };
    let otherwise = else_expr.as_deref().filter(|expr| !matches!(expr, Expr::Literal(value, _) if value.is_null()));
    Some((condition, then, otherwise))
}

/// A number that is written out.
fn number(expr: &Expr) -> Option<f64> {
    match expr {
        Expr::Literal(value, _) => match value.cast_to(&arrow::datatypes::DataType::Float64).ok()? {
            ScalarValue::Float64(number) => number.filter(|number| number.is_finite()),
            _ => None,
        },
        Expr::Cast(Cast { expr, .. }) => number(expr),
        _ => None,
    }
}

fn not_listed(name: &str) -> Error {
    Error::refused(
        "protected-aggregate",
        format!("a protected aggregate does not know `{name}` in this form"),
        "use count(*), count(column), count(DISTINCT the person), sum, avg, stddev, var, median or percentile_cont of one \
         column, with FILTER (WHERE …) or CASE WHEN … THEN … END over conditions that a filter may have",
    )
}

//! Labels through a plan: what each column of each node holds, and whether its rows may be seen. Every
//! node and expression that is not named here is refused.
//!
//! Works on the plan as the caller wrote it, before the engine's analyzer and optimizer change it, so
//! that every cast and function seen here was written by the caller.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use datafusion::{
    common::{
        Column, DFSchema,
        tree_node::{Transformed, TreeNode},
    },
    logical_expr::{
        Aggregate, Distinct, DistinctOn, Expr, LogicalPlan, RecursiveQuery, Subquery, WindowFunctionDefinition,
        expr::{Exists, InSubquery},
    },
};

use super::{CLEAR, Gate, Label, Noise, Reached, Wishes, extras, protect, region::Region};
use crate::{
    dataset::DatasetName,
    error::{Error, Result},
    policy::Exposure,
    query::{GovernedTable, functions},
    release::noise::NOISE_SD,
};

/// A plan with the label of each of its columns.
pub struct Labelled {
    /// The plan, protected aggregates rewritten.
    pub plan: LogicalPlan,
    /// One label a column.
    pub labels: Vec<Label>,
    /// Whether a protected aggregate is in it.
    pub protected: bool,
    /// The datasets whose sealed fields it uses.
    pub charged: BTreeSet<DatasetName>,
    traces: Vec<Trace>,
}

/// What one released column is made of.
struct Trace {
    reached: Vec<Reached>,
    noise: Option<&'static str>,
}

/// Which released columns a value was computed from, as bits; past the last they share one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lineage(u64);

impl Lineage {
    fn of(trace: usize) -> Self {
        Self(1 << trace.min(63))
    }

    pub(super) fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    fn has(self, trace: usize) -> bool {
        self.0 & (1 << trace.min(63)) != 0
    }
}

impl Labelled {
    fn traces(&self, label: Label) -> impl Iterator<Item = &Trace> {
        let traces = self.traces.iter().enumerate();
        traces.filter(move |(at, _)| matches!(label, Label::Released(of) if of.has(*at))).map(|(_, trace)| trace)
    }

    /// The sealed fields that reach a column of that label.
    pub fn reached_by(&self, label: Label) -> Vec<Reached> {
        self.traces(label)
            .flat_map(|trace| trace.reached.iter().cloned())
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect()
    }

    /// What the noise on a column of that label is like.
    pub fn noise(&self, label: Label) -> Option<Noise> {
        let words: BTreeSet<_> = self.traces(label).filter_map(|trace| trace.noise).collect();
        let of = match words.len() {
            0 => return None,
            1 => words.into_iter().next()?,
            _ => "computed",
        };
        Some(Noise { of: of.to_owned(), sd: (of == "count").then_some((NOISE_SD * 100.0).round() / 100.0) })
    }
}

/// Labels a whole query.
///
/// # Errors
/// [`Error::Refused`].
pub fn label(plan: &LogicalPlan, functions: functions::Listed, gate: &Arc<Gate>, wishes: Wishes) -> Result<Labelled> {
    let mut pass = Pass {
        functions,
        gate,
        wishes,
        protected: false,
        traces: Vec::new(),
        outer: Vec::new(),
        recursive: BTreeMap::new(),
    };
    let mut node = pass.node(plan)?;
    if node.rows == Rows::Sealed {
        return Err(rows_only_counted());
    }
    refuse_sealed_columns(&node)?;
    if pass.protected && wishes != Wishes::default() {
        node.plan = extras::carry(&node.plan)?;
        let all = (0..pass.traces.len()).map(Lineage::of).reduce(Lineage::and).unwrap_or(Lineage::of(0));
        node.labels.resize(node.plan.schema().fields().len(), Label::Released(all));
    }
    let fields = pass.traces.iter().flat_map(|trace| &trace.reached);
    let datasets = fields.filter_map(|reached| DatasetName::parse(reached.field.rsplit_once('.')?.0));
    let charged = datasets.collect();
    let Pass { protected, traces, .. } = pass;
    Ok(Labelled { plan: node.plan, labels: node.labels, protected, charged, traces })
}

/// The rules of what is sealed and used outside a protected aggregate.
const SEALED: [&str; 2] = ["sealed-field", "sealed-rows"];

/// Whether the rows of a relation may be seen one by one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rows {
    Open,
    /// They may only be counted.
    Sealed,
}

struct Node {
    plan: LogicalPlan,
    labels: Vec<Label>,
    rows: Rows,
}

struct Pass<'a> {
    functions: functions::Listed,
    gate: &'a Arc<Gate>,
    wishes: Wishes,
    protected: bool,
    /// What released columns are made of.
    traces: Vec<Trace>,
    /// What correlated subqueries may refer to, innermost last.
    outer: Vec<(DFSchema, Vec<Label>)>,
    /// The labels of recursive queries in the making, by name.
    recursive: BTreeMap<String, Vec<Label>>,
}

impl Pass<'_> {
    fn node(&mut self, plan: &LogicalPlan) -> Result<Node> {
        match plan {
            LogicalPlan::TableScan(scan) => self.scan(plan, scan),
            LogicalPlan::SubqueryAlias(alias) => {
                let input = self.node(&alias.input)?;
                let (labels, rows) = (input.labels, input.rows);
                Ok(Node { plan: with_inputs(plan, vec![input.plan])?, labels, rows })
            }
            LogicalPlan::Filter(filter) => {
                let input = self.node(&filter.input)?;
                let here = Here::of(&input);
                self.expression(&filter.predicate, &here)?;
                let predicate = self.subqueries(&filter.predicate, &here)?;
                let plan = plan.with_new_exprs(vec![predicate], vec![input.plan]).map_err(Error::internal)?;
                Ok(Node { plan, labels: input.labels, rows: input.rows })
            }
            LogicalPlan::Projection(projection) => {
                let input = self.open(&projection.input)?;
                let here = Here::of(&input);
                let labels = projection.expr.iter().map(|expr| self.passed_on(expr, &here)).collect::<Result<_>>()?;
                self.rebuild(plan, input, labels)
            }
            LogicalPlan::Aggregate(aggregate) => self.aggregate(plan, aggregate),
            LogicalPlan::Sort(sort) => {
                let input = self.open(&sort.input)?;
                let here = Here::of(&input);
                for key in &sort.expr {
                    self.expression(&key.expr, &here)?;
                }
                let labels = input.labels.clone();
                self.rebuild(plan, input, labels)
            }
            LogicalPlan::Limit(limit) => {
                let input = self.open(&limit.input)?;
                let labels = input.labels.clone();
                self.rebuild(plan, input, labels)
            }
            LogicalPlan::Window(window) => {
                let input = self.open(&window.input)?;
                let added = self.expressions(&window.window_expr, &Here::of(&input))?;
                let labels = [input.labels.clone(), added].concat();
                self.rebuild(plan, input, labels)
            }
            LogicalPlan::Join(join) => {
                let left = self.open(&join.left)?;
                let right = self.open(&join.right)?;
                let both = Here::of_both(&left, &right)?;
                let keys = join.on.iter().flat_map(|(left, right)| [left, right]);
                for expr in keys.chain(&join.filter) {
                    self.expression(expr, &both)?;
                    if has_subquery(expr)? {
                        return Err(refused("subquery", "a subquery in the condition of a join", "put it in WHERE"));
                    }
                }
                let labels = joined(plan, &both)?;
                Ok(Node { plan: with_inputs(plan, vec![left.plan, right.plan])?, labels, rows: Rows::Open })
            }
            LogicalPlan::Union(union) => {
                let mut labels: Option<Vec<Label>> = None;
                let mut inputs = Vec::new();
                for input in &union.inputs {
                    let input = self.open(input)?;
                    refuse_sealed_columns(&input)?;
                    labels = Some(match labels {
                        None => input.labels.clone(),
                        Some(labels) => labels.into_iter().zip(&input.labels).map(|(a, b)| a.and(*b)).collect(),
                    });
                    inputs.push(input.plan);
                }
                Ok(Node { plan: with_inputs(plan, inputs)?, labels: labels.unwrap_or_default(), rows: Rows::Open })
            }
            LogicalPlan::Distinct(Distinct::All(input)) => {
                let input = self.open(input)?;
                refuse_sealed_columns(&input)?;
                let labels = input.labels.clone();
                self.rebuild(plan, input, labels)
            }
            LogicalPlan::Distinct(Distinct::On(on)) => {
                let input = self.open(&on.input)?;
                let here = Here::of(&input);
                self.expressions(&on.on_expr, &here)?;
                for key in on.sort_expr.iter().flatten() {
                    self.expression(&key.expr, &here)?;
                }
                let labels = self.expressions(&on.select_expr, &here)?;
                let parts = on.on_expr.iter().chain(&on.select_expr);
                for expr in parts.chain(on.sort_expr.iter().flatten().map(|key| &key.expr)) {
                    if has_subquery(expr)? {
                        return Err(refused("subquery", "a subquery in DISTINCT ON", "select it in a subquery below"));
                    }
                }
                // The engine cannot put new inputs into this node, so it is made anew.
                let distinct = DistinctOn::try_new(
                    on.on_expr.clone(),
                    on.select_expr.clone(),
                    on.sort_expr.clone(),
                    Arc::new(input.plan),
                );
                let plan = LogicalPlan::Distinct(Distinct::On(distinct.map_err(Error::internal)?));
                Ok(Node { plan, labels, rows: Rows::Open })
            }
            LogicalPlan::Values(values) => {
                let here = Here { schema: DFSchema::empty(), labels: Vec::new() };
                for expr in values.values.iter().flatten() {
                    if has_subquery(expr)? {
                        return Err(refused("subquery", "a subquery in VALUES", "select from the subquery"));
                    }
                    self.expression(expr, &here)?;
                }
                Ok(Node { plan: plan.clone(), labels: vec![CLEAR; plan.schema().fields().len()], rows: Rows::Open })
            }
            LogicalPlan::EmptyRelation(_) => {
                Ok(Node { plan: plan.clone(), labels: vec![CLEAR; plan.schema().fields().len()], rows: Rows::Open })
            }
            LogicalPlan::RecursiveQuery(query) => self.recursive(query),
            // Its columns would be looked up among those of its neighbours, which are not labelled yet.
            LogicalPlan::Subquery(_) => {
                Err(refused("lateral", "a LATERAL subquery", "join a subquery on its columns, or put it in WHERE"))
            }
            LogicalPlan::Unnest(_) => Err(refused("nested-values", "UNNEST of nested values", "use plain columns")),
            // INVARIANT: what is not named above is refused, whatever a later engine may call it.
            _ => Err(refused("read-only", "something other than a query", "write a SELECT")),
        }
    }

    fn scan(&mut self, plan: &LogicalPlan, scan: &datafusion::logical_expr::TableScan) -> Result<Node> {
        let Some(table) = GovernedTable::behind(&scan.source) else {
            return match self.recursive.get(scan.table_name.table()) {
                // The rows a recursive query has made so far.
                Some(labels) if scan.table_name.schema().is_none() => {
                    Ok(Node { plan: plan.clone(), labels: labels.clone(), rows: Rows::Open })
                }
                _ => Err(Error::internal("a scan of something that is not governed")),
            };
        };
        if !scan.filters.is_empty() || scan.fetch.is_some() || scan.projection.is_some() {
            return Err(Error::internal("a scan was optimized before it was looked at"));
        }
        let view = table.view();
        let labels = view
            .fields
            .iter()
            .map(|(_, exposure)| match exposure {
                Exposure::Aggregate => Label::Sealed,
                exposure => Label::Shown(*exposure),
            })
            .collect();
        let rows = if table.rows_open() { Rows::Open } else { Rows::Sealed };
        Ok(Node { plan: plan.clone(), labels, rows })
    }

    /// A node whose rows may be seen.
    fn open(&mut self, plan: &LogicalPlan) -> Result<Node> {
        let node = self.node(plan)?;
        match node.rows {
            Rows::Open => Ok(node),
            Rows::Sealed => Err(rows_only_counted()),
        }
    }

    /// The node with a guarded input and guarded subqueries in its expressions.
    fn rebuild(&mut self, plan: &LogicalPlan, input: Node, labels: Vec<Label>) -> Result<Node> {
        let here = Here::of(&input);
        let mut expressions = Vec::new();
        for expr in plan.expressions() {
            expressions.push(self.subqueries(&expr, &here)?);
        }
        let plan = plan.with_new_exprs(expressions, vec![input.plan]).map_err(Error::internal)?;
        Ok(Node { plan, labels, rows: Rows::Open })
    }

    /// An aggregate over something sealed becomes a protected one. What has not the shape of one is labelled
    /// like any other part, and refused where it uses what is sealed.
    fn aggregate(&mut self, plan: &LogicalPlan, aggregate: &Aggregate) -> Result<Node> {
        let region = Region::of(aggregate);
        if let Ok(region) = &region
            && region.touches_sealed()
        {
            return self.protected_aggregate(region, aggregate);
        }
        let node = self.open_aggregate(plan, aggregate);
        match (node, region) {
            (Err(Error::Refused(refusal)), Err(no_region)) if SEALED.contains(&refusal.rule.as_str()) => Err(no_region),
            (node, _) => node,
        }
    }

    fn protected_aggregate(&mut self, region: &Region, aggregate: &Aggregate) -> Result<Node> {
        let protected = protect::aggregate(region, aggregate, self.gate, &self.wishes)?;
        self.protected = true;
        let mut labels = Vec::new();
        for (at, (reached, noise)) in protected.reached.into_iter().zip(protected.noise).enumerate() {
            let key = region.keys.get(at).filter(|_| !protected.sealed_keys.get(at).copied().unwrap_or(true));
            labels.push(match key {
                Some(key) => region.exposure(key),
                None => {
                    self.traces.push(Trace { reached, noise });
                    Label::Released(Lineage::of(self.traces.len() - 1))
                }
            });
        }
        let all = labels.iter().copied().filter(|label| matches!(label, Label::Released(_))).reduce(Label::and);
        labels.resize(protected.plan.schema().fields().len(), all.unwrap_or(CLEAR));
        Ok(Node { plan: protected.plan, labels, rows: Rows::Open })
    }

    fn open_aggregate(&mut self, plan: &LogicalPlan, aggregate: &Aggregate) -> Result<Node> {
        let input = self.open(&aggregate.input)?;
        let here = Here::of(&input);
        let mut labels = Vec::new();
        for expr in &aggregate.group_expr {
            match expr {
                Expr::GroupingSet(sets) => {
                    for expr in sets.distinct_expr() {
                        labels.push(self.expression(expr, &here)?);
                    }
                    // The engine adds a column that numbers the grouping sets.
                    labels.push(CLEAR);
                }
                expr => labels.push(self.expression(expr, &here)?),
            }
        }
        for expr in &aggregate.aggr_expr {
            let label = self.expression(expr, &here)?;
            labels.push(if is_count(expr) { CLEAR } else { label });
        }
        self.rebuild(plan, input, labels)
    }

    fn recursive(&mut self, query: &RecursiveQuery) -> Result<Node> {
        let first = self.open(&query.static_term)?;
        refuse_sealed_columns(&first)?;
        let shadowed = self.recursive.insert(query.name.clone(), first.labels.clone());
        let next = self.open(&query.recursive_term);
        match shadowed {
            Some(labels) => drop(self.recursive.insert(query.name.clone(), labels)),
            None => drop(self.recursive.remove(&query.name)),
        }
        let next = next?;
        refuse_sealed_columns(&next)?;
        let labels = first.labels.iter().zip(&next.labels).map(|(a, b)| a.and(*b)).collect();
        let plan = LogicalPlan::RecursiveQuery(RecursiveQuery {
            static_term: Arc::new(first.plan),
            recursive_term: Arc::new(next.plan),
            ..query.clone()
        });
        Ok(Node { plan, labels, rows: Rows::Open })
    }

    fn expressions(&mut self, expressions: &[Expr], here: &Here) -> Result<Vec<Label>> {
        expressions.iter().map(|expr| self.expression(expr, here)).collect()
    }

    /// The label of an expression that a projection hands on. A sealed column may be handed on as it is,
    /// as `SELECT *` in a subquery does: it stays sealed, and whatever uses it or shows it is refused.
    fn passed_on(&mut self, expr: &Expr, here: &Here) -> Result<Label> {
        match expr {
            Expr::Column(column) if here.label(column)? == Label::Sealed => Ok(Label::Sealed),
            Expr::Alias(alias) if matches!(alias.expr.as_ref(), Expr::Column(_)) => self.passed_on(&alias.expr, here),
            expr => self.expression(expr, here),
        }
    }

    /// The label of an expression's value. Refuses sealed columns, unlisted functions and unknown forms.
    fn expression(&mut self, expr: &Expr, here: &Here) -> Result<Label> {
        match expr {
            Expr::Column(column) => {
                let label = here.label(column)?;
                if label == Label::Sealed {
                    return Err(sealed_in(&column.name, here));
                }
                return Ok(label);
            }
            Expr::OuterReferenceColumn(_, column) => return self.outer_label(column),
            Expr::ScalarFunction(call) if !self.functions.allows_scalar(call.func.name()) => {
                return Err(functions::refusal(call.func.name()));
            }
            Expr::ScalarFunction(call) => functions::check_arguments(call.func.name(), &call.args)?,
            Expr::AggregateFunction(call) if !self.functions.allows_aggregate(call.func.name()) => {
                return Err(functions::refusal(call.func.name()));
            }
            Expr::AggregateFunction(call) => functions::check_arguments(call.func.name(), &call.params.args)?,
            Expr::WindowFunction(call) => {
                let listed = match &call.fun {
                    WindowFunctionDefinition::AggregateUDF(f) => self.functions.allows_aggregate(f.name()),
                    WindowFunctionDefinition::WindowUDF(f) => self.functions.allows_window(f.name()),
                };
                if !listed {
                    return Err(functions::refusal(call.fun.name()));
                }
                functions::check_arguments(call.fun.name(), &call.params.args)?;
            }
            Expr::Like(like) if like.escape_char.is_some() => {
                return Err(refused("unsupported", "LIKE with ESCAPE", "escape with a backslash"));
            }
            Expr::Exists(Exists { subquery, .. }) => {
                self.subquery(subquery, here)?;
                return Ok(CLEAR);
            }
            Expr::ScalarSubquery(subquery) => {
                let labels = self.subquery(subquery, here)?.1;
                return Ok(labels.into_iter().reduce(Label::and).unwrap_or(CLEAR));
            }
            Expr::InSubquery(InSubquery { expr, subquery, .. }) => {
                self.subquery(subquery, here)?;
                return self.expression(expr, here);
            }
            // The engine confuses columns of the same name inside and outside of these.
            Expr::SetComparison(_) => {
                return Err(refused(
                    "subquery",
                    "a comparison with ANY or ALL of a subquery",
                    "use IN (SELECT …), NOT IN, or compare with (SELECT max(…) …)",
                ));
            }
            Expr::Alias(_)
            | Expr::Literal(..)
            | Expr::BinaryExpr(_)
            | Expr::Like(_)
            | Expr::SimilarTo(_)
            | Expr::Not(_)
            | Expr::IsNotNull(_)
            | Expr::IsNull(_)
            | Expr::IsTrue(_)
            | Expr::IsFalse(_)
            | Expr::IsUnknown(_)
            | Expr::IsNotTrue(_)
            | Expr::IsNotFalse(_)
            | Expr::IsNotUnknown(_)
            | Expr::Negative(_)
            | Expr::Between(_)
            | Expr::Case(_)
            | Expr::Cast(_)
            | Expr::TryCast(_)
            | Expr::InList(_) => {}
            // INVARIANT: what is not named above is refused.
            _ => {
                return Err(refused(
                    "unknown-expression",
                    "an expression the hub does not know how to protect",
                    "use plain columns, operators, CASE, CAST and the listed functions",
                ));
            }
        }
        let mut parts = Vec::new();
        expr.apply_children(|child| {
            parts.push(child.clone());
            Ok(datafusion::common::tree_node::TreeNodeRecursion::Continue)
        })
        .map_err(Error::internal)?;
        let mut label = CLEAR;
        for part in &parts {
            label = label.and(self.expression(part, here)?);
        }
        Ok(label)
    }

    fn outer_label(&self, column: &Column) -> Result<Label> {
        // Only the query next around: a farther one may have a column of the same name.
        let Some((schema, labels)) = self.outer.last() else {
            return Err(Error::internal("a correlated column that is nowhere"));
        };
        let here = Here { schema: schema.clone(), labels: labels.clone() };
        match here.label(column) {
            Ok(Label::Sealed) => Err(sealed_in(&column.name, &here)),
            Ok(label) => Ok(label),
            Err(_) => Err(refused(
                "subquery",
                "a subquery that refers to a query further out than the next",
                "hand the column on through the query between",
            )),
        }
    }

    /// A subquery must itself be something that may be answered.
    fn subquery(&mut self, subquery: &Subquery, here: &Here) -> Result<(LogicalPlan, Vec<Label>)> {
        self.outer.push((here.schema.clone(), here.labels.clone()));
        let inner = self.open(&subquery.subquery);
        self.outer.pop();
        let inner = inner?;
        refuse_sealed_columns(&inner)?;
        Ok((inner.plan, inner.labels))
    }

    /// The expression with every subquery in it replaced by its guarded form.
    fn subqueries(&mut self, expr: &Expr, here: &Here) -> Result<Expr> {
        if !has_subquery(expr)? {
            return Ok(expr.clone());
        }
        let mut failed = None;
        let replaced = expr
            .clone()
            .transform_up(|expr| {
                let mut guarded = |subquery: &Subquery| match self.subquery(subquery, here) {
                    Ok((plan, _)) => Subquery { subquery: Arc::new(plan), ..subquery.clone() },
                    Err(error) => {
                        failed.get_or_insert(error);
                        subquery.clone()
                    }
                };
                Ok(match expr {
                    Expr::Exists(mut it) => {
                        it.subquery = guarded(&it.subquery);
                        Transformed::yes(Expr::Exists(it))
                    }
                    Expr::InSubquery(mut it) => {
                        it.subquery = guarded(&it.subquery);
                        Transformed::yes(Expr::InSubquery(it))
                    }
                    Expr::ScalarSubquery(it) => Transformed::yes(Expr::ScalarSubquery(guarded(&it))),
                    other => Transformed::no(other),
                })
            })
            .map_err(Error::internal)?;
        match failed {
            Some(error) => Err(error),
            None => Ok(replaced.data),
        }
    }
}

/// The columns an expression can refer to, with their labels.
pub struct Here {
    pub schema: DFSchema,
    pub labels: Vec<Label>,
}

impl Here {
    fn of(node: &Node) -> Self {
        Self { schema: node.plan.schema().as_ref().clone(), labels: node.labels.clone() }
    }

    fn of_both(left: &Node, right: &Node) -> Result<Self> {
        let schema = left.plan.schema().join(right.plan.schema()).map_err(Error::internal)?;
        Ok(Self { schema, labels: [left.labels.clone(), right.labels.clone()].concat() })
    }

    pub fn label(&self, column: &Column) -> Result<Label> {
        let at = self.schema.maybe_index_of_column(column);
        at.and_then(|at| self.labels.get(at).copied()).ok_or_else(|| Error::internal("a column without a label"))
    }

    /// The names of the columns that may be read.
    fn readable(&self) -> Vec<String> {
        let fields = self.schema.fields().iter().zip(&self.labels);
        fields.filter(|(_, label)| **label != Label::Sealed).map(|(field, _)| field.name().clone()).collect()
    }
}

fn joined(plan: &LogicalPlan, both: &Here) -> Result<Vec<Label>> {
    let schema = plan.schema();
    (0..schema.fields().len())
        .map(|at| {
            let (qualifier, field) = schema.qualified_field(at);
            both.label(&Column::new(qualifier.cloned(), field.name()))
        })
        .collect()
}

fn with_inputs(plan: &LogicalPlan, inputs: Vec<LogicalPlan>) -> Result<LogicalPlan> {
    plan.with_new_exprs(plan.expressions(), inputs).map_err(Error::internal)
}

fn has_subquery(expr: &Expr) -> Result<bool> {
    expr.exists(|expr| {
        Ok(matches!(expr, Expr::Exists(_) | Expr::InSubquery(_) | Expr::SetComparison(_) | Expr::ScalarSubquery(_)))
    })
    .map_err(Error::internal)
}

fn is_count(expr: &Expr) -> bool {
    matches!(expr.clone().unalias(), Expr::AggregateFunction(call) if call.func.name() == "count")
}

fn refuse_sealed_columns(node: &Node) -> Result<()> {
    match node.labels.iter().position(|label| *label == Label::Sealed) {
        Some(at) => Err(sealed_in(node.plan.schema().field(at).name(), &Here::of(node))),
        None => Ok(()),
    }
}

fn refused(rule: &str, what: &str, instead: &str) -> Error {
    Error::refused(rule, what, instead)
}

/// The refusal of a sealed field outside a protected aggregate.
fn sealed_in(name: &str, here: &Here) -> Error {
    let readable = here.readable();
    let instead = match readable.is_empty() {
        true => format!("use count({name}) or, for a number, avg({name}) and sum({name})"),
        false => format!(
            "use count({name}) or, for a number, avg({name}) and sum({name}), grouped by a coarse column; columns \
             that may be read here: {}",
            readable.join(", ")
        ),
    };
    Error::refused(
        "sealed-field",
        format!("`{name}` is sealed for this purpose: it may only feed a protected aggregate"),
        instead,
    )
}

fn rows_only_counted() -> Error {
    Error::refused(
        "sealed-rows",
        "rows of this dataset may only be counted for this purpose, not seen or sorted",
        "SELECT a coarse column, count(*) FROM the dataset GROUP BY that column",
    )
}

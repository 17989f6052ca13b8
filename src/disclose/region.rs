//! The sealed region: everything below a protected aggregate, taken apart into tables, links between them,
//! filters, group keys and calls, so that the [rules](super::rules) can look at each. Knows how relations
//! fit together and not which of them are allowed.
//!
//! A column of the region is a field of one of its tables or a value computed once a subject, whatever
//! names and subqueries lie between: these are followed, and what is written in a projection stands where
//! it is used. Wherever the query names the person a row is about, the region has that person's hidden
//! number in its place, so persons are joined and counted without their tokens.

use std::collections::BTreeMap;

use arrow::datatypes::{DataType, Field as ArrowField, Schema};
use datafusion::{
    catalog::TableProvider,
    common::{
        Column, DFSchema, JoinType, TableReference,
        tree_node::{Transformed, TreeNode, TreeNodeRecursion},
    },
    logical_expr::{
        Aggregate, Distinct, Expr, Join, LogicalPlan, LogicalPlanBuilder,
        expr::{AggregateFunction, Exists, InSubquery},
        utils::split_conjunction,
    },
    prelude::lit,
};

use super::{CLEAR, Label, coarse::Dimension};
use crate::{
    dataset::{Bin, Field, FieldClass, FieldType, scope::Scope},
    error::{Error, Result},
    policy::{DatasetView, Exposure, Rows},
    query::{self, FOREIGN, GovernedTable, SUBJECT},
};

/// What stands below one protected aggregate, and the aggregate's own keys and calls.
pub struct Region {
    /// The datasets read, in the order in which they are written.
    pub tables: Vec<Table>,
    /// How they are put together.
    pub from: From,
    /// The hidden number of the subject that is counted.
    pub subject: Column,
    /// Group keys.
    pub keys: Vec<Expr>,
    /// Calls of aggregate functions.
    pub calls: Vec<Expr>,
    /// What the parts were put together with, for the rules.
    pub parts: Parts,
    /// The columns of all tables and all values computed once a subject.
    pub schema: DFSchema,
    computed: BTreeMap<Column, Computed>,
}

/// The parts of a region that rules look at.
#[derive(Default)]
pub struct Parts {
    /// Conditions of joins, one list a join.
    pub joins: Vec<Vec<Expr>>,
    /// Conditions that rows must meet, one a conjunct.
    pub filters: Vec<Expr>,
    /// Questions whether a subject stands in another table.
    pub flags: Vec<Flag>,
    /// Calls that compute a value once a subject.
    pub summaries: Vec<Expr>,
}

/// A question whether a subject stands in another table.
pub struct Flag {
    /// What links the two.
    pub on: Vec<Expr>,
    /// Whether the other is narrowed by conditions of its own.
    pub is_narrowed: bool,
}

/// A dataset of the region.
pub struct Table(GovernedTable);

/// How tables are put together.
pub enum From {
    /// All rows of a table.
    Table(usize),
    /// Rows that meet all conditions.
    Filter(Box<From>, Vec<Expr>),
    /// Rows of one with rows of another, or those that have some or none there.
    Join(Box<From>, Box<From>, JoinType, Vec<Expr>),
    /// One row a subject.
    Summary(Box<Summary>),
}

/// Values computed once a subject.
pub struct Summary {
    from: From,
    key: Column,
    alias: String,
    values: Vec<(String, Expr)>,
}

/// What a column of a region is.
pub enum What<'a> {
    /// A field of a dataset, at the caller's exposure.
    Field(&'a Field, Exposure),
    /// The hidden number of the subject of a table.
    Subject(&'a Table),
    /// A value computed once a subject.
    Computed(&'a Computed),
}

/// A value computed once a subject.
pub struct Computed {
    /// The call that computes it.
    pub call: Expr,
    /// What it may be cut into; `None` for what is no value to group by.
    pub dimension: Option<Dimension>,
}

impl Table {
    /// The caller's view of it.
    pub fn view(&self) -> &DatasetView {
        self.0.view()
    }

    /// Whether all of it may be seen and none of it is about anybody, as in the register of divisions.
    pub fn is_reference(&self) -> bool {
        let DatasetView { dataset, rows, .. } = self.view();
        dataset.is_about_nobody() && *rows == Rows::Open(Scope::All)
    }

    /// Within what its subjects can be told apart: people of one linkage domain are the same people.
    pub fn domain(&self) -> String {
        self.0.subject_domain()
    }

    /// Whether the caller's own agency owns it.
    fn is_callers(&self) -> bool {
        self.view().own && self.0.asked_by_owner()
    }

    fn exposure(&self, field: &str) -> Option<Exposure> {
        self.view().fields.iter().find(|(name, _)| name == field).map(|(_, exposure)| *exposure)
    }
}

impl Region {
    /// Takes apart what stands below an aggregate.
    ///
    /// # Errors
    /// `protected-shape`, where it is no region.
    pub fn of(aggregate: &Aggregate) -> Result<Self> {
        let mut reader = Reader::default();
        let input = reader.relation(&aggregate.input, None)?;
        if !input.correlated.is_empty() {
            return Err(shape("a subquery that refers to the query around it"));
        }
        let place = |exprs: &[Expr]| exprs.iter().map(|expr| input.place(expr, None)).collect::<Result<Vec<_>>>();
        let (keys, calls) = (place(&aggregate.group_expr)?, place(&aggregate.aggr_expr)?);
        let schema = reader.schema()?;
        let Reader { tables, computed, parts, .. } = reader;
        Ok(Self { tables, from: input.from, subject: input.subject, keys, calls, parts, schema, computed })
    }

    /// Whether anything of it is sealed: a field that is used, or rows that may only be counted.
    pub fn touches_sealed(&self) -> bool {
        self.tables.iter().any(|table| !table.0.rows_open())
            || self.expressions().any(|expr| !self.sealed(expr).is_empty())
    }

    /// What a column is; `None` for what is no column of the region.
    pub fn what(&self, column: &Column) -> Option<What<'_>> {
        if let Some(computed) = self.computed.get(column) {
            return Some(What::Computed(computed));
        }
        let table = self.table(column)?;
        if column.name == SUBJECT {
            return Some(What::Subject(table));
        }
        let field = table.view().dataset.field(&column.name)?;
        Some(What::Field(field, table.exposure(&column.name)?))
    }

    /// Whether a column is the number of a table's subject.
    pub fn names_subject(&self, column: &Column) -> bool {
        matches!(self.what(column), Some(What::Subject(_)))
    }

    /// The table a column is of, or is computed from.
    pub fn table(&self, column: &Column) -> Option<&Table> {
        table(&self.tables, column)
    }

    /// What a column may be cut into, if it is one to group or filter by.
    pub fn dimension(&self, column: &Column) -> Option<Dimension> {
        match self.what(column)? {
            What::Field(field, exposure) => dimension(field, exposure),
            What::Computed(computed) => computed.dimension.clone(),
            What::Subject(_) => None,
        }
    }

    /// The name a caller knows a column by.
    pub fn name(&self, column: &Column) -> String {
        match self.what(column) {
            Some(What::Subject(table)) => {
                table.view().dataset.subject.clone().unwrap_or_else(|| "the record".to_owned())
            }
            Some(What::Computed(computed)) => {
                let columns = computed.call.column_refs();
                let function = match &computed.call {
                    Expr::AggregateFunction(call) => call.func.name(),
                    _ => "a value",
                };
                format!(
                    "{function}({})",
                    columns.into_iter().map(|column| self.name(column)).collect::<Vec<_>>().join(", ")
                )
            }
            _ => column.name.clone(),
        }
    }

    /// What a caller may read of an expression none of whose fields is sealed.
    pub fn exposure(&self, expr: &Expr) -> Label {
        let exposures = expr.column_refs().into_iter().filter_map(|column| match self.what(column)? {
            What::Field(_, exposure) => Some(Label::Shown(exposure)),
            What::Subject(_) | What::Computed(_) => None,
        });
        exposures.reduce(Label::and).unwrap_or(CLEAR)
    }

    /// The sealed fields an expression uses, as `agency.table.field`.
    pub fn sealed(&self, expr: &Expr) -> Vec<String> {
        let mut sealed = Vec::new();
        for column in expr.column_refs() {
            match self.what(column) {
                Some(What::Field(field, Exposure::Aggregate)) => {
                    let table =
                        self.table(column).map(|table| table.view().dataset.name.to_string()).unwrap_or_default();
                    sealed.push(format!("{table}.{}", field.name));
                }
                Some(What::Subject(table)) => {
                    let dataset = &table.view().dataset;
                    let subject = dataset.subject.as_deref().unwrap_or_default();
                    if table.exposure(subject) == Some(Exposure::Aggregate) {
                        sealed.push(format!("{}.{subject}", dataset.name));
                    }
                }
                Some(What::Computed(computed)) => sealed.extend(self.sealed(&computed.call)),
                Some(What::Field(..)) | None => {}
            }
        }
        sealed
    }

    /// The datasets whose rows may only be counted, as `agency.table.*`.
    pub fn sealed_rows(&self) -> impl Iterator<Item = String> {
        let sealed = self.tables.iter().filter(|table| !table.0.rows_open());
        sealed.map(|table| format!("{}.*", table.view().dataset.name))
    }

    /// Whether an expression uses a sealed field of the kind that harms when known, or asks whether a person is
    /// among rows that may only be counted.
    pub fn sensitive(&self, expr: &Expr) -> bool {
        expr.column_refs().into_iter().any(|column| match self.what(column) {
            Some(What::Field(field, Exposure::Aggregate)) => field.class == FieldClass::Sensitive,
            Some(What::Subject(table)) => !table.0.rows_open(),
            Some(What::Computed(computed)) => self.sensitive(&computed.call),
            Some(What::Field(..)) | None => false,
        })
    }

    /// Whether cells split people by something sensitive.
    pub fn splits_by_sensitive(&self) -> bool {
        self.keys.iter().any(|key| self.splits(key)) || self.picks_sensitive(&self.from)
    }

    fn picks_sensitive(&self, from: &From) -> bool {
        match from {
            From::Table(_) => false,
            From::Filter(input, conditions) => {
                conditions.iter().any(|condition| self.splits(condition)) || self.picks_sensitive(input)
            }
            From::Join(left, _, JoinType::Left, _) => self.picks_sensitive(left),
            From::Join(left, right, _, on) => {
                let links = on.iter().any(|condition| self.splits(condition));
                links || self.is_sensitive(right) || self.picks_sensitive(left)
            }
            From::Summary(summary) => self.picks_sensitive(&summary.from),
        }
    }

    /// Whether a condition or key says something sensitive of whom it lets pass. That two columns name one person
    /// does not; that a person is, or is not, in a relation picked by something sensitive does, by whichever of
    /// its columns it is asked.
    pub fn splits(&self, condition: &Expr) -> bool {
        condition.column_refs().into_iter().any(|column| match self.what(column) {
            Some(What::Subject(_)) => self.is_of_picked(column) && is_presence(condition),
            Some(What::Field(..) | What::Computed(_)) => {
                self.is_of_picked(column) || self.sensitive(&Expr::Column(column.clone()))
            }
            None => false,
        })
    }

    /// Whether a column is of a relation that is joined to the right of another and picked by something sensitive.
    pub fn is_of_picked(&self, column: &Column) -> bool {
        column.relation.as_ref().is_some_and(|alias| self.is_picked(&self.from, alias.table()))
    }

    fn is_picked(&self, from: &From, alias: &str) -> bool {
        match from {
            From::Table(_) => false,
            From::Filter(input, _) => self.is_picked(input, alias),
            From::Join(left, right, _, on) => {
                let picked =
                    || self.is_sensitive(right) || on.iter().any(|condition| self.is_plainly_sensitive(condition));
                (holds(right, alias) && picked()) || self.is_picked(left, alias) || self.is_picked(right, alias)
            }
            From::Summary(summary) => self.is_picked(&summary.from, alias),
        }
    }

    /// Whether a condition compares something sealed of the kind that harms when known.
    fn is_plainly_sensitive(&self, condition: &Expr) -> bool {
        let fields = |column: &Column| !self.names_subject(column) && self.sensitive(&Expr::Column(column.clone()));
        !is_presence(condition) && condition.column_refs().into_iter().any(fields)
    }

    /// Whether rows of it may only be counted, so that being among them is sensitive however it is narrowed.
    fn counts_only(&self, from: &From) -> bool {
        match from {
            From::Table(at) => !self.tables[*at].0.rows_open(),
            From::Filter(input, _) => self.counts_only(input),
            From::Join(left, right, ..) => self.counts_only(left) || self.counts_only(right),
            From::Summary(summary) => self.counts_only(&summary.from),
        }
    }

    /// Whether being among these rows is sensitive.
    fn is_sensitive(&self, from: &From) -> bool {
        match from {
            From::Table(at) => !self.tables[*at].0.rows_open(),
            From::Filter(input, conditions) => {
                conditions.iter().any(|condition| self.is_plainly_sensitive(condition)) || self.is_sensitive(input)
            }
            From::Join(left, right, ..) => self.is_sensitive(left) || self.is_sensitive(right),
            From::Summary(summary) => self.is_sensitive(&summary.from),
        }
    }

    /// What says of a row whether its subject is known from another agency than the caller's; `None` where all
    /// are. Whoever both pushes rows and asks about them could fill a cell up with people it invented.
    pub fn vouched(&self) -> Option<Expr> {
        if !self.tables.iter().any(|table| table.view().own) || !self.seals_of_others() {
            return None;
        }
        let mut words = Vec::new();
        match self.vouching(&self.from, &mut words) {
            true => None,
            false => Some(words.into_iter().reduce(Expr::or).unwrap_or_else(|| lit(false))),
        }
    }

    /// Whether anything that is sealed belongs to another agency than the caller's.
    fn seals_of_others(&self) -> bool {
        let of_others = |column: &Column| {
            let sealed = match self.what(column) {
                Some(What::Field(_, exposure)) => exposure == Exposure::Aggregate,
                Some(What::Subject(table)) => !table.0.rows_open(),
                Some(What::Computed(_)) | None => false,
            };
            sealed && self.table(column).is_some_and(|table| !table.is_callers())
        };
        self.tables.iter().any(|table| !table.0.rows_open() && !table.is_callers())
            || self.expressions().any(|expr| expr.column_refs().into_iter().any(of_others))
    }

    /// Whether every row of `from` is vouched for; else what says of which rows are.
    fn vouching(&self, from: &From, words: &mut Vec<Expr>) -> bool {
        match from {
            From::Table(at) => {
                let own = self.tables[*at].view().own;
                if own {
                    words.push(Expr::Column(Column::new(Some(format!("t{at}")), FOREIGN)));
                }
                !own
            }
            From::Filter(input, _) => self.vouching(input, words),
            From::Join(left, right, JoinType::Inner, _) => {
                let right = self.vouching(right, words);
                self.vouching(left, words) || right
            }
            From::Join(left, right, JoinType::LeftSemi, _) => {
                self.vouching(right, &mut Vec::new()) || self.vouching(left, words)
            }
            From::Join(left, right, JoinType::Left, _) => {
                let mut theirs = Vec::new();
                if self.vouching(right, &mut theirs)
                    && let Some(subject) = subject_of(right)
                {
                    theirs.push(Expr::Column(subject).is_not_null());
                }
                words.extend(theirs);
                self.vouching(left, words)
            }
            From::Join(left, ..) => self.vouching(left, words),
            // Where its rows came from is not among what is computed once a subject.
            From::Summary(summary) => self.vouching(&summary.from, &mut Vec::new()),
        }
    }

    /// What links tables with each other.
    pub fn links(&self) -> impl Iterator<Item = &Expr> {
        self.parts.joins.iter().chain(self.parts.flags.iter().map(|flag| &flag.on)).flatten()
    }

    /// Every expression that stands anywhere in the region.
    pub fn expressions(&self) -> impl Iterator<Item = &Expr> {
        let Parts { filters, summaries, .. } = &self.parts;
        self.keys.iter().chain(&self.calls).chain(filters).chain(summaries).chain(self.links())
    }

    /// The rows of the region in words: the same for the same tables, conditions and links, in whatever order
    /// conditions were written.
    pub fn text(&self) -> String {
        self.text_of(&self.from)
    }

    fn text_of(&self, from: &From) -> String {
        let sorted = |conditions: &[Expr]| {
            let mut texts: Vec<_> = conditions.iter().map(ToString::to_string).collect();
            texts.sort_unstable();
            texts.join(" and ")
        };
        match from {
            From::Table(at) => {
                let view = self.tables[*at].view();
                format!("t{at} {} {:?}", view.dataset.name, view.rows)
            }
            From::Filter(input, conditions) => format!("({}) where {}", self.text_of(input), sorted(conditions)),
            From::Join(left, right, kind, on) => {
                format!("({}) {kind} ({}) on {}", self.text_of(left), self.text_of(right), sorted(on))
            }
            From::Summary(summary) => {
                let Summary { from, key, values, .. } = summary.as_ref();
                let values = values.iter().map(|(name, call)| format!("{name} {call}")).collect::<Vec<_>>();
                format!("({}) once {key}: {}", self.text_of(from), values.join(", "))
            }
        }
    }

    /// The datasets whose rows are joined one by one, the base first: what is computed once a subject, or asked
    /// about it, is not among them.
    pub fn row_by_row(&self) -> Vec<&Table> {
        let mut tables = Vec::new();
        self.rows_of(&self.from, &mut tables);
        tables
    }

    /// Whether each subject has one row by how the query is written, and not by chance.
    pub fn has_one_row_a_subject(&self) -> bool {
        self.row_by_row().is_empty()
    }

    fn rows_of<'a>(&'a self, from: &From, tables: &mut Vec<&'a Table>) {
        match from {
            From::Table(at) => tables.push(&self.tables[*at]),
            From::Filter(input, _) | From::Join(input, _, JoinType::LeftSemi | JoinType::LeftAnti, _) => {
                self.rows_of(input, tables);
            }
            From::Join(left, right, ..) => {
                self.rows_of(left, tables);
                self.rows_of(right, tables);
            }
            From::Summary(_) => {}
        }
    }

    /// The rows of the region as a plan, over tables that carry the numbers of their subjects.
    ///
    /// # Errors
    /// Where the engine cannot build it.
    pub fn plan(&self) -> datafusion::common::Result<LogicalPlanBuilder> {
        self.build(&self.from, Part::Cells)
    }

    /// The rows of the region without the conditions that are sensitive: what its rows are a part of.
    ///
    /// # Errors
    /// Where the engine cannot build it.
    pub fn plan_of_whole(&self) -> datafusion::common::Result<LogicalPlanBuilder> {
        self.build(&self.from, Part::Whole)
    }

    fn build(&self, from: &From, part: Part) -> datafusion::common::Result<LogicalPlanBuilder> {
        Ok(match from {
            From::Table(at) => {
                let source = query::source(self.tables[*at].0.with_subject());
                LogicalPlanBuilder::scan(TableReference::bare(format!("t{at}")), source, None)?
            }
            From::Filter(input, conditions) => {
                let input = self.build(input, part)?;
                let kept = conditions.iter().filter(|condition| part == Part::Cells || !self.splits(condition));
                match kept.cloned().reduce(Expr::and) {
                    Some(condition) => input.filter(condition)?,
                    None => input,
                }
            }
            From::Join(left, right, kind, on) => {
                let left = self.build(left, part)?;
                let (kind, right_part, on) = match (part, kind) {
                    // A part of those of whom the question is asked at all, or of all.
                    (Part::Whole, JoinType::LeftAnti) if self.is_sensitive(right) => return Ok(left),
                    (Part::Whole, JoinType::LeftSemi) if self.counts_only(right) => return Ok(left),
                    (Part::Whole, JoinType::Inner) if self.counts_only(right) => {
                        (JoinType::Left, Part::Cells, on.clone())
                    }
                    (Part::Whole, JoinType::LeftSemi | JoinType::Inner) => {
                        let kept = on.iter().filter(|condition| !self.splits(condition));
                        (*kind, Part::Whole, kept.cloned().collect())
                    }
                    _ => (*kind, Part::Cells, on.clone()),
                };
                left.join_on(self.build(right, right_part)?.build()?, kind, on)?
            }
            From::Summary(summary) => {
                let values = summary.values.iter().map(|(name, call)| call.clone().alias(name)).collect::<Vec<_>>();
                let key = Expr::Column(summary.key.clone());
                let mut shown = vec![key.clone().alias(SUBJECT)];
                shown.extend(summary.values.iter().map(|(name, _)| Expr::Column(Column::from_name(name))));
                let input = self.build(&summary.from, part)?.filter(key.clone().is_not_null())?;
                input.aggregate(vec![key], values)?.project(shown)?.alias(summary.alias.as_str())?
            }
        })
    }
}

/// The rows of the cells, or those of what they are a part of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Cells,
    Whole,
}

/// Whether a condition asks only whether something is there.
fn is_presence(condition: &Expr) -> bool {
    matches!(condition, Expr::IsNull(_) | Expr::IsNotNull(_))
}

/// Whether the relation of that alias is a part of another.
fn holds(from: &From, alias: &str) -> bool {
    match from {
        From::Table(at) => alias == format!("t{at}"),
        From::Filter(input, _) => holds(input, alias),
        From::Join(left, right, ..) => holds(left, alias) || holds(right, alias),
        From::Summary(summary) => summary.alias == alias,
    }
}

/// The hidden number of the subject of a relation.
fn subject_of(from: &From) -> Option<Column> {
    match from {
        From::Table(at) => Some(Column::new(Some(format!("t{at}")), SUBJECT)),
        From::Filter(input, _) | From::Join(input, ..) => subject_of(input),
        From::Summary(summary) => Some(Column::new(Some(summary.alias.as_str()), SUBJECT)),
    }
}

/// The table that an alias stands for: `t0` for the first, `t0s1` for what is computed once a subject of it.
fn table<'a>(tables: &'a [Table], column: &Column) -> Option<&'a Table> {
    let alias = column.relation.as_ref()?.table().strip_prefix('t')?;
    let end = alias.find(|c: char| !c.is_ascii_digit()).unwrap_or(alias.len());
    tables.get(alias[..end].parse::<usize>().ok()?)
}

/// What a field may be cut into: never a token, which is as fine as a person.
fn dimension(field: &Field, exposure: Exposure) -> Option<Dimension> {
    if field.identifier.is_some() || exposure == Exposure::Token {
        return None;
    }
    Some(Dimension {
        kind: field.kind,
        bins: field.bins.clone(),
        generalised: field.generalise.filter(|_| exposure == Exposure::Generalised),
    })
}

/// A relation of the query, in columns of the region.
struct Relation {
    /// As the query knows it.
    schema: DFSchema,
    /// What its columns are, in that order.
    columns: Vec<Expr>,
    from: From,
    subject: Column,
    /// Conditions that refer to the query around it.
    correlated: Vec<Expr>,
}

#[derive(Default)]
struct Reader {
    tables: Vec<Table>,
    computed: BTreeMap<Column, Computed>,
    parts: Parts,
    /// The aliases of relations that have one row a subject.
    summaries: Vec<String>,
}

impl Reader {
    fn relation(&mut self, plan: &LogicalPlan, around: Option<&Relation>) -> Result<Relation> {
        match plan {
            LogicalPlan::TableScan(scan) => {
                let table = GovernedTable::behind(&scan.source).ok_or_else(|| shape("a recursive query"))?;
                let alias = format!("t{}", self.tables.len());
                let column = |name: &str| Column::new(Some(alias.as_str()), name);
                let names_subject = |name: &String| table.view().dataset.subject.as_ref() == Some(name);
                let columns = table.view().fields.iter().map(|(name, _)| match names_subject(name) {
                    true => Expr::Column(column(SUBJECT)),
                    false => Expr::Column(column(name)),
                });
                let columns = columns.collect();
                self.tables.push(Table(table.clone()));
                let from = From::Table(self.tables.len() - 1);
                Ok(Relation {
                    schema: plan.schema().as_ref().clone(),
                    columns,
                    from,
                    subject: column(SUBJECT),
                    correlated: Vec::new(),
                })
            }
            LogicalPlan::SubqueryAlias(alias) => {
                let input = self.relation(&alias.input, around)?;
                Ok(Relation { schema: alias.schema.as_ref().clone(), ..input })
            }
            LogicalPlan::Projection(projection) => {
                let input = self.relation(&projection.input, around)?;
                let columns = projection.expr.iter().map(|expr| input.place(expr, None)).collect::<Result<_>>()?;
                Ok(Relation { schema: projection.schema.as_ref().clone(), columns, ..input })
            }
            LogicalPlan::Filter(filter) => {
                let input = self.relation(&filter.input, around)?;
                self.filtered(input, &filter.predicate, around)
            }
            LogicalPlan::Join(join) => self.joined(join, around),
            LogicalPlan::Aggregate(aggregate) => {
                let input = self.relation(&aggregate.input, around)?;
                let key = match aggregate.group_expr.as_slice() {
                    [key] => input.place(key, None)?,
                    _ => return Err(shape("an inner GROUP BY of something other than the subject alone")),
                };
                let Expr::Column(key) = key else {
                    return Err(shape("an inner GROUP BY of something other than the subject alone"));
                };
                let calls =
                    aggregate.aggr_expr.iter().map(|call| input.place(call, None)).collect::<Result<Vec<_>>>()?;
                self.summary(input, &key, calls, aggregate.schema.as_ref().clone())
            }
            LogicalPlan::Distinct(Distinct::All(input)) => {
                let input = self.relation(input, around)?;
                let [Expr::Column(key)] = input.columns.as_slice() else {
                    return Err(shape("DISTINCT of something other than the subject alone"));
                };
                let (key, schema) = (key.clone(), input.schema.clone());
                self.summary(input, &key, Vec::new(), schema)
            }
            LogicalPlan::Window(_) => Err(shape("a window function")),
            LogicalPlan::Union(_) => Err(shape("a UNION")),
            LogicalPlan::Sort(_) | LogicalPlan::Limit(_) => Err(shape("ORDER BY or LIMIT in a subquery")),
            LogicalPlan::Values(_) | LogicalPlan::EmptyRelation(_) => Err(shape("rows that are written in the query")),
            // INVARIANT: what is not named above is refused, whatever a later engine may call it.
            _ => Err(shape("a part that is not known there")),
        }
    }

    fn filtered(&mut self, mut input: Relation, predicate: &Expr, around: Option<&Relation>) -> Result<Relation> {
        let mut conditions = Vec::new();
        for conjunct in split_conjunction(predicate) {
            match conjunct {
                Expr::Exists(Exists { subquery, negated }) => {
                    let known = self.parts.filters.len();
                    let inner = self.relation(&subquery.subquery, Some(&input))?;
                    let is_narrowed = self.parts.filters.len() > known;
                    input = self.flagged(input, inner, Flag { on: Vec::new(), is_narrowed }, *negated);
                }
                Expr::InSubquery(InSubquery { expr, subquery, negated }) => {
                    let known = self.parts.filters.len();
                    let inner = self.relation(&subquery.subquery, Some(&input))?;
                    let is_narrowed = self.parts.filters.len() > known;
                    let [only] = inner.columns.as_slice() else { return Err(shape("IN over several columns")) };
                    let on = input.place(expr, None)?.eq(only.clone());
                    input = self.flagged(input, inner, Flag { on: vec![on], is_narrowed }, *negated);
                }
                conjunct
                    if conjunct
                        .exists(|expr| Ok(matches!(expr, Expr::OuterReferenceColumn(..))))
                        .map_err(Error::internal)? =>
                {
                    let placed = input.place(conjunct, around)?;
                    input.correlated.push(placed);
                }
                conjunct => conditions.push(input.place(conjunct, None)?),
            }
        }
        self.parts.filters.extend(conditions.iter().cloned());
        let from = From::Filter(Box::new(input.from), conditions);
        Ok(Relation { from, ..input })
    }

    /// Rows of `input` whose subject stands, or does not stand, in `inner`.
    fn flagged(&mut self, input: Relation, inner: Relation, mut flag: Flag, negated: bool) -> Relation {
        flag.on.extend(inner.correlated);
        let on = flag.on.clone();
        self.parts.flags.push(flag);
        let kind = if negated { JoinType::LeftAnti } else { JoinType::LeftSemi };
        Relation { from: From::Join(Box::new(input.from), Box::new(inner.from), kind, on), ..input }
    }

    fn joined(&mut self, join: &Join, around: Option<&Relation>) -> Result<Relation> {
        if !matches!(join.join_type, JoinType::Inner | JoinType::Left) {
            return Err(shape("a join other than JOIN and LEFT JOIN"));
        }
        let left = self.relation(&join.left, around)?;
        let right = self.relation(&join.right, around)?;
        let correlated = [left.correlated, right.correlated].concat();
        if !correlated.is_empty() {
            return Err(shape("a subquery that refers to the query around it from within a join"));
        }
        let over_reference = table(&self.tables, &left.subject).is_some_and(Table::is_reference);
        let subject = match join.join_type == JoinType::Inner && over_reference {
            true => right.subject.clone(),
            false => left.subject.clone(),
        };
        let both = Relation {
            schema: join.left.schema().join(join.right.schema()).map_err(Error::internal)?,
            columns: [left.columns, right.columns].concat(),
            from: From::Table(0),
            subject,
            correlated,
        };
        let mut on = Vec::new();
        for (one, other) in &join.on {
            on.push(both.place(one, None)?.eq(both.place(other, None)?));
        }
        for conjunct in join.filter.iter().flat_map(split_conjunction) {
            on.push(both.place(conjunct, None)?);
        }
        self.parts.joins.push(on.clone());
        let from = From::Join(Box::new(left.from), Box::new(right.from), join.join_type, on);
        // A join of USING shows its columns once each by name; both are the same then.
        let columns = join
            .schema
            .iter()
            .map(|(qualifier, field)| both.column(&Column::new(qualifier.cloned(), field.name())))
            .collect::<Result<_>>()?;
        Ok(Relation { schema: join.schema.as_ref().clone(), columns, from, ..both })
    }

    /// One row for each subject of `input`.
    fn summary(&mut self, input: Relation, key: &Column, calls: Vec<Expr>, schema: DFSchema) -> Result<Relation> {
        if *key != input.subject || !input.correlated.is_empty() {
            return Err(shape("an inner GROUP BY of something other than the subject alone"));
        }
        // The alias names the table its subjects are of, which says within what they can be told apart.
        let of = key.relation.as_ref().map(|alias| alias.table()).unwrap_or_default();
        let alias = format!("{of}s{}", self.summaries.len());
        self.summaries.push(alias.clone());
        let mut columns = vec![Expr::Column(Column::new(Some(alias.as_str()), SUBJECT))];
        let mut values = Vec::new();
        for (at, call) in calls.into_iter().enumerate() {
            let call = call.unalias();
            let name = format!("c{at}");
            let column = Column::new(Some(alias.as_str()), &name);
            let dimension = self.value_of(&call);
            self.computed.insert(column.clone(), Computed { call: call.clone(), dimension });
            self.parts.summaries.push(call.clone());
            columns.push(Expr::Column(column));
            values.push((name, call));
        }
        let subject = Column::new(Some(alias.as_str()), SUBJECT);
        let summary = Summary { from: input.from, key: key.clone(), alias, values };
        Ok(Relation { schema, columns, from: From::Summary(Box::new(summary)), subject, correlated: Vec::new() })
    }

    /// What a value computed once a subject may be cut into: the largest and smallest of a field's values are
    /// among its values, and how many rows there are is a small number.
    fn value_of(&self, call: &Expr) -> Option<Dimension> {
        let Expr::AggregateFunction(AggregateFunction { func, params }) = call else { return None };
        match (func.name(), params.args.as_slice()) {
            ("max" | "min", [Expr::Column(column)]) => {
                let table = table(&self.tables, column)?;
                dimension(table.view().dataset.field(&column.name)?, table.exposure(&column.name)?)
            }
            ("count", _) => Some(Dimension { kind: FieldType::Integer(64), bins: vec![Bin::Value], generalised: None }),
            _ => None,
        }
    }

    fn schema(&self) -> Result<DFSchema> {
        let mut all = DFSchema::empty();
        let mut add = |alias: &str, schema: &Schema| -> Result<()> {
            let columns = DFSchema::try_from_qualified_schema(TableReference::bare(alias), schema);
            all.merge(&columns.map_err(Error::internal)?);
            Ok(())
        };
        for (at, table) in self.tables.iter().enumerate() {
            add(&format!("t{at}"), &table.0.with_subject().schema())?;
        }
        for alias in &self.summaries {
            let mut fields = vec![ArrowField::new(SUBJECT, DataType::UInt64, true)];
            for (column, computed) in self.computed.iter().filter(|(column, _)| in_relation(column, alias)) {
                fields.push(ArrowField::new(&column.name, self.kind_of(&computed.call), true));
            }
            add(alias, &Schema::new(fields))?;
        }
        Ok(all)
    }

    /// The type of a value computed once a subject: that of the field it is taken from, or a number.
    fn kind_of(&self, call: &Expr) -> DataType {
        let field = || match call {
            Expr::AggregateFunction(call) if call.func.name() != "count" => {
                let column = call.params.args.first()?.try_as_col()?;
                let schema = table(&self.tables, column)?.0.schema();
                Some(schema.field_with_name(&column.name).ok()?.data_type().clone())
            }
            _ => None,
        };
        field().unwrap_or(DataType::Int64)
    }
}

fn in_relation(column: &Column, alias: &str) -> bool {
    column.relation.as_ref().is_some_and(|relation| relation.table() == alias)
}

impl Relation {
    /// What a column of the relation is.
    fn column(&self, column: &Column) -> Result<Expr> {
        let at = self.schema.maybe_index_of_column(column);
        at.and_then(|at| self.columns.get(at).cloned()).ok_or_else(|| shape("a column that is not found"))
    }

    /// An expression over this relation in columns of the region, and over the query around it.
    fn place(&self, expr: &Expr, around: Option<&Self>) -> Result<Expr> {
        let mut failed = None;
        let mut found = |column: Result<Expr>| match column {
            Ok(expr) => Transformed::new(expr, true, TreeNodeRecursion::Jump),
            Err(error) => {
                failed.get_or_insert(error);
                Transformed::new(lit(false), true, TreeNodeRecursion::Jump)
            }
        };
        let placed = expr.clone().transform_down(|expr| {
            Ok(match &expr {
                Expr::Column(column) => found(self.column(column)),
                Expr::OuterReferenceColumn(_, column) => found(match around {
                    Some(around) => around.column(column),
                    None => Err(shape("a subquery that refers to the query around it")),
                }),
                Expr::Exists(_) | Expr::InSubquery(_) | Expr::ScalarSubquery(_) | Expr::SetComparison(_) => {
                    found(Err(shape("a subquery that is not one of the conditions joined by AND")))
                }
                _ => Transformed::no(expr),
            })
        });
        let placed = placed.map_err(Error::internal)?.data;
        match failed {
            Some(error) => Err(error),
            None => Ok(placed.unalias_nested().data),
        }
    }
}

fn shape(what: &str) -> Error {
    super::rules::shape::refusal(what)
}

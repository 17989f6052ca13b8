//! A dataset as one caller sees it, as a table of the engine: row scope and masks below a barrier.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    fmt,
    hash::{Hash, Hasher},
    sync::{Arc, Mutex, PoisonError},
};

use arrow::{
    array::{Array, ArrayRef, AsArray, BinaryArray, Date32Array, StringArray, UInt64Array},
    buffer::{NullBuffer, OffsetBuffer},
    compute::{cast, kernels::substring::substring_by_char},
    datatypes::{DataType, Date32Type, Field as ArrowField, Float64Type, Int64Type, Schema, SchemaRef, TimeUnit},
    row::{RowConverter, SortField},
};
use async_trait::async_trait;
use chrono::{Datelike, NaiveDate};
use datafusion::{
    catalog::{Session, TableProvider},
    common::{
        Column, DFSchema, Result, ScalarValue, internal_err,
        tree_node::{Transformed, TreeNode},
    },
    datasource::{TableType, provider_as_source},
    functions_window::expr_fn::row_number,
    logical_expr::{
        Between, BinaryExpr, Case, ColumnarValue, Expr, ExprFunctionExt, Extension, LogicalPlan, LogicalPlanBuilder,
        Operator, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, TableProviderFilterPushDown, TableSource,
        Volatility,
        expr::{InList, Sort as SortExpr},
    },
    physical_plan::{ExecutionPlan, filter::FilterExec, projection::ProjectionExec},
    prelude::lit,
};

use super::{
    barrier::{BarrierExec, WholeExec},
    defences::{Defence, Defences},
    newest::{MOST_ROWS, NewestNode, Ranking},
    prune, scope, total,
};
use crate::{
    dataset::{
        ChangeMode, Dataset, FieldType, Generalise,
        layout::{WIDTH, arrow_type},
        scope::Scope,
    },
    policy::{DatasetView, Exposure, Rows},
    pseudonym::{SubjectKey, TokenKey},
    store::{ARRIVAL, DIGEST, SOURCE},
};

/// The column in which protected aggregates find the subject of a row. Never in a caller's schema.
pub const SUBJECT: &str = "__subject";

/// The column in which they find whether a row came from another agency than the caller's. Only where the
/// caller's own agency pushes to the dataset.
pub const FOREIGN: &str = "__foreign";

/// How protected aggregates tell subjects apart.
#[derive(Clone)]
pub struct Subjects {
    /// Within what they can be told apart.
    pub domain: String,
    /// The key of their numbers.
    pub key: SubjectKey,
    /// The agency that asks.
    pub agency: String,
}

/// A governed table. Its schema holds the caller's fields and nothing else; its scan applies row scope
/// and masks and puts a barrier on top.
#[derive(Clone)]
pub struct GovernedTable {
    view: DatasetView,
    raw: Arc<dyn TableProvider>,
    /// The rows as they were last published.
    published: Arc<dyn TableProvider>,
    tokens: TokenKey,
    schema: SchemaRef,
    subjects: Subjects,
    with_subject: bool,
    defences: Defences,
    /// Filters of which a scan takes over only what they imply; whoever asked applies them.
    applied_above: Arc<Mutex<HashSet<Expr>>>,
}

impl fmt::Debug for GovernedTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GovernedTable({})", self.view.dataset.name)
    }
}

impl GovernedTable {
    /// The table of a view over the stored rows.
    pub fn new(
        view: &DatasetView,
        raw: Arc<dyn TableProvider>,
        published: Arc<dyn TableProvider>,
        tokens: TokenKey,
        subjects: Subjects,
        defences: Defences,
    ) -> Self {
        let mut view = view.clone();
        if !defences.stand(Defence::HiddenFields) {
            for field in view.dataset.stored_fields() {
                if !view.fields.iter().any(|(name, _)| *name == field.name) {
                    let exposure = if field.identifier.is_some() { Exposure::Token } else { Exposure::Clear };
                    view.fields.push((field.name.clone(), exposure));
                }
            }
        }
        let schema = Arc::new(Schema::new(visible_fields(&view)));
        Self {
            view,
            raw,
            published,
            tokens,
            schema,
            subjects,
            with_subject: false,
            defences,
            applied_above: Arc::default(),
        }
    }

    /// The same table as it was last published, with the number of each row's subject in a column of its own,
    /// for protected aggregates only.
    pub fn with_subject(&self) -> Self {
        let mut fields = visible_fields(&self.view);
        fields.push(ArrowField::new(SUBJECT, DataType::UInt64, true));
        if self.view.own {
            fields.push(ArrowField::new(FOREIGN, DataType::Boolean, true));
        }
        let raw = match self.defences.stand(Defence::Epochs) {
            true => Arc::clone(&self.published),
            false => Arc::clone(&self.raw),
        };
        Self { raw, schema: Arc::new(Schema::new(fields)), with_subject: true, ..self.clone() }
    }

    /// Whether it carries the numbers of its subjects.
    pub fn carries_subjects(&self) -> bool {
        self.with_subject
    }

    /// Whether the agency that asks owns it.
    pub fn asked_by_owner(&self) -> bool {
        self.subjects.agency == self.dataset().name.agency
    }

    /// Within what its subjects can be told apart.
    pub fn subject_domain(&self) -> String {
        self.subjects.domain.clone()
    }

    /// The view it shows.
    pub fn view(&self) -> &DatasetView {
        &self.view
    }

    /// The governed table behind a source of the planner, if it is one.
    pub fn behind(source: &Arc<dyn TableSource>) -> Option<&Self> {
        source
            .downcast_ref::<datafusion::datasource::DefaultTableSource>()
            .and_then(|source| source.table_provider.downcast_ref::<Self>())
    }

    /// Whether its rows may be seen one by one.
    pub fn rows_open(&self) -> bool {
        matches!(self.view.rows, Rows::Open(_))
    }

    /// Whether the caller sees all there is but how it lies: every row, none replaced by a later one, and
    /// every field of the contract as it is or as a token.
    pub fn is_whole(&self) -> bool {
        self.view.rows == Rows::Open(Scope::All)
            && self.dataset().change == ChangeMode::Append
            && !self.with_subject
            && self
                .dataset()
                .fields
                .iter()
                .all(|field| matches!(self.exposure(&field.name), Some(Exposure::Clear | Exposure::Token)))
    }

    fn dataset(&self) -> &Dataset {
        &self.view.dataset
    }

    /// What a visible column is computed from.
    fn shown(&self, name: &str, exposure: Exposure) -> Result<Expr> {
        let stored = stored(name);
        let Some(field) = self.dataset().field(name) else {
            return internal_err!("a view of a field that is not there");
        };
        Ok(match (exposure, field.generalise) {
            (Exposure::Token, _) => masked(Mask::Token(Box::new(self.tokens.clone())), stored),
            (Exposure::Generalised, Some(how)) => masked(Mask::Generalise(how), stored),
            (Exposure::Generalised, None) => return internal_err!("a generalised form that is not there"),
            // A sealed identifier can be counted; its pseudonym is as good as its token for that.
            (Exposure::Aggregate, _) if field.identifier.is_some() => stored,
            (Exposure::Clear | Exposure::Aggregate, _) if field.kind == FieldType::Timestamp => {
                datafusion::logical_expr::cast(
                    stored,
                    DataType::Timestamp(TimeUnit::Microsecond, Some(Arc::clone(&self.dataset().timezone))),
                )
            }
            (Exposure::Clear | Exposure::Aggregate, _) => stored,
        }
        .alias(name))
    }

    fn exposure(&self, name: &str) -> Option<Exposure> {
        self.view.fields.iter().find(|(field, _)| field == name).map(|(_, exposure)| *exposure)
    }

    /// The filter in terms of stored columns, where it may go below the barrier: what is total over clear
    /// columns, and tokens compared with literals, put together by AND and OR.
    fn below(&self, filter: &Expr) -> Option<Expr> {
        self.keeps_keys_whole(filter).then(|| self.stored_form(filter))?
    }

    /// What is known of rows that pass the filter, where the filter itself stays above.
    fn implied(&self, filter: &Expr) -> Option<Expr> {
        let clear = |name: &str| {
            let field = self.dataset().field(name).filter(|field| field.identifier.is_none())?;
            (self.exposure(name) == Some(Exposure::Clear)).then_some(field.kind)
        };
        self.keeps_keys_whole(filter).then(|| prune::implied(filter, &clear))?
    }

    /// Which row of a key is current must be decided before anything but whole keys is left out.
    fn keeps_keys_whole(&self, filter: &Expr) -> bool {
        self.dataset().change == ChangeMode::Append
            || filter.column_refs().into_iter().all(|column| self.dataset().key.contains(&column.name))
    }

    fn stored_form(&self, filter: &Expr) -> Option<Expr> {
        if let Expr::BinaryExpr(BinaryExpr { left, op: op @ (Operator::And | Operator::Or), right }) = filter {
            let (left, right) = (self.stored_form(left)?, self.stored_form(right)?);
            return Some(Expr::BinaryExpr(BinaryExpr::new(Box::new(left), *op, Box::new(right))));
        }
        self.token_test(filter).or_else(|| self.clear_test(filter))
    }

    /// A token compared with literals, turned back into a comparison of pseudonyms.
    fn token_test(&self, filter: &Expr) -> Option<Expr> {
        let token = |expr: &Expr| match expr {
            Expr::Column(column) if self.exposure(&column.name)? == Exposure::Token => Some(stored(&column.name)),
            _ => None,
        };
        let pseudonym = |text: &ScalarValue| {
            let pseudonym = self.tokens.invert(text.try_as_str()??);
            pseudonym.map(|p0| lit(ScalarValue::Binary(Some(p0.to_vec()))))
        };
        match filter {
            Expr::BinaryExpr(BinaryExpr { left, op: Operator::Eq, right }) => {
                let (column, literal) = match (left.as_ref(), right.as_ref()) {
                    (column, Expr::Literal(value, _)) | (Expr::Literal(value, _), column) => (token(column)?, value),
                    _ => return None,
                };
                literal.try_as_str()?;
                // What is no token equals nothing.
                Some(pseudonym(literal).map_or_else(|| lit(false), |pseudonym| column.eq(pseudonym)))
            }
            Expr::InList(InList { expr, list, negated: false }) => {
                let column = token(expr)?;
                let literals: Option<Vec<_>> = list
                    .iter()
                    .map(|item| match item {
                        Expr::Literal(value, _) => value.try_as_str().map(|_| value),
                        _ => None,
                    })
                    .collect();
                let pseudonyms: Vec<_> = literals?.into_iter().filter_map(pseudonym).collect();
                Some(match pseudonyms.is_empty() {
                    true => lit(false),
                    false => column.in_list(pseudonyms, false),
                })
            }
            Expr::IsNull(inner) => token(inner).map(Expr::is_null),
            Expr::IsNotNull(inner) => token(inner).map(Expr::is_not_null),
            _ => None,
        }
    }

    /// A test of clear columns that fails on no value.
    fn clear_test(&self, filter: &Expr) -> Option<Expr> {
        let masked_counts_as_clear = !self.defences.stand(Defence::MaskedPredicates);
        let zoned = |name: &str| self.dataset().field(name).is_some_and(|field| field.kind == FieldType::Timestamp);
        let columns = filter.column_refs();
        for column in &columns {
            match self.exposure(&column.name)? {
                Exposure::Clear => {}
                Exposure::Generalised if masked_counts_as_clear => {}
                _ => return None,
            }
        }
        // Stored times are in UTC and shown in the data's zone: the same instants, other days.
        if columns.iter().any(|column| zoned(&column.name)) {
            return self.instant_test(filter);
        }
        let schema = DFSchema::try_from(Arc::clone(&self.schema)).ok()?;
        let plain = unqualified(filter.clone()).ok()?;
        // INVARIANT: what may fail on a value is not computed on rows the caller may not see.
        let waits = self.defences.stand(Defence::FallibleWaits) && !total::is_total(&plain, &schema);
        (!waits).then_some(plain)
    }

    /// A time compared with literals.
    fn instant_test(&self, filter: &Expr) -> Option<Expr> {
        let column = |expr: &Expr| match expr {
            Expr::Column(column) => Some(stored(&column.name)),
            _ => None,
        };
        let instant = |expr: &Expr| match expr {
            Expr::Literal(ScalarValue::TimestampMicrosecond(value, Some(_)), _) => {
                Some(lit(ScalarValue::TimestampMicrosecond(*value, Some("UTC".into()))))
            }
            _ => None,
        };
        match filter {
            Expr::BinaryExpr(BinaryExpr { left, op, right })
                if matches!(
                    op,
                    Operator::Eq | Operator::NotEq | Operator::Lt | Operator::LtEq | Operator::Gt | Operator::GtEq
                ) =>
            {
                let (left, right) = match column(left) {
                    Some(left) => (left, instant(right)?),
                    None => (instant(left)?, column(right)?),
                };
                Some(Expr::BinaryExpr(BinaryExpr::new(Box::new(left), *op, Box::new(right))))
            }
            Expr::Between(Between { expr, negated: false, low, high }) => {
                Some(column(expr)?.between(instant(low)?, instant(high)?))
            }
            Expr::InList(InList { expr, list, negated }) => {
                let instants: Option<Vec<_>> = list.iter().map(instant).collect();
                Some(column(expr)?.in_list(instants?, *negated))
            }
            Expr::IsNull(inner) => column(inner).map(Expr::is_null),
            Expr::IsNotNull(inner) => column(inner).map(Expr::is_not_null),
            _ => None,
        }
    }

    /// The columns of a scan as expressions over stored ones.
    fn columns(&self, projection: Option<&Vec<usize>>) -> Result<Vec<Expr>> {
        let mut shown = Vec::new();
        for (name, exposure) in &self.view.fields {
            shown.push(self.shown(name, *exposure)?);
        }
        if self.with_subject {
            let key = Box::new(self.subjects.key.clone());
            let subject = match (&self.dataset().subject, self.dataset().key.as_slice()) {
                (Some(subject), _) => masked(Mask::Subject(key), stored(subject)),
                // Where rows are about nobody, each record counts for itself, whatever else it says, and each row
                // where records have no key.
                (None, []) => masked(Mask::Subject(key), stored(DIGEST)),
                (None, fields) => masked_all(Mask::Record(key), fields.iter().map(|field| stored(field)).collect()),
            };
            shown.push(subject.alias(SUBJECT));
            if self.view.own {
                shown.push(stored(SOURCE).not_eq(lit(self.subjects.agency.as_str())).alias(FOREIGN));
            }
        }
        Ok(match projection {
            Some(projection) => projection.iter().filter_map(|at| shown.get(*at).cloned()).collect(),
            None => shown,
        })
    }

    fn scope(&self) -> Option<Expr> {
        match self.defences.stand(Defence::RowScope) {
            true => scope::predicate(self.view.rows.scope(), self.dataset()),
            false => None,
        }
    }

    /// The stored rows for which all `conditions` hold, as `columns`; the conditions prune files and row
    /// groups.
    async fn rows(
        &self,
        session: &dyn Session,
        columns: &[Expr],
        conditions: &[Expr],
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let needed = Expr::column_refs;
        let names: BTreeSet<&str> =
            columns.iter().chain(conditions).flat_map(needed).map(|column| column.name.as_str()).collect();
        let stored = self.raw.schema();
        let at: Vec<usize> = stored
            .fields()
            .iter()
            .enumerate()
            .filter(|(_, f)| names.contains(f.name().as_str()))
            .map(|(at, _)| at)
            .collect();
        let mut plan = self.raw.scan(session, Some(&at), conditions, None).await?;
        let schema = DFSchema::try_from(plan.schema())?;
        if let Some(condition) = conditions.iter().cloned().reduce(Expr::and) {
            let condition = session.create_physical_expr(condition, &schema)?;
            plan = Arc::new(FilterExec::try_new(condition, plan)?);
        }
        let mut shown = Vec::new();
        for column in columns {
            let name = column.schema_name().to_string();
            shown.push((session.create_physical_expr(column.clone(), &schema)?, name));
        }
        Ok(Arc::new(ProjectionExec::try_new(shown, plan)?))
    }
}

#[async_trait]
impl TableProvider for GovernedTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    /// What goes below is applied there in full, since the scan keeps its own filter; what is only implied is not.
    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        let how = |filter: &&Expr| {
            if self.below(filter).is_some() {
                return Ok(TableProviderFilterPushDown::Exact);
            }
            if self.implied(filter).is_none() {
                return Ok(TableProviderFilterPushDown::Unsupported);
            }
            // A scan gets its filters without the names of tables.
            let plain = unqualified((*filter).clone())?;
            self.applied_above.lock().unwrap_or_else(PoisonError::into_inner).insert(plain);
            Ok(TableProviderFilterPushDown::Inexact)
        };
        filters.iter().map(how).collect()
    }

    /// Neither the limit nor any statistic crosses the barrier.
    async fn scan(
        &self,
        session: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        _limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let columns = self.columns(projection)?;
        // INVARIANT: a filter that was taken over is applied, or nothing is answered.
        let mut conditions = Vec::new();
        for filter in filters {
            let (applied, implied) = (self.below(filter), self.implied(filter));
            if applied.is_none()
                && !self
                    .applied_above
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .contains(&unqualified(filter.clone())?)
            {
                return internal_err!("a filter that was taken over cannot be applied");
            }
            conditions.extend(implied.into_iter().chain(applied));
        }
        if self.dataset().change == ChangeMode::Append {
            conditions.extend(self.scope());
            let rows = self.rows(session, &columns, &conditions).await?;
            return Ok(match self.is_whole() {
                true => Arc::new(WholeExec::new(rows)),
                false => self.behind_barrier(rows),
            });
        }
        let mut plan = LogicalPlanBuilder::scan("stored", provider_as_source(Arc::clone(&self.raw)), None)?;
        for condition in conditions {
            plan = plan.filter(condition)?;
        }
        let how = self.firsts();
        plan = current_state(plan, self.dataset(), how)?;
        if let Some(scope) = self.scope() {
            plan = plan.filter(scope)?;
        }
        let plan = over_sources(plan, self.dataset(), how)?.project(columns)?.build()?;
        Ok(self.behind_barrier(session.create_physical_plan(&plan).await?))
    }
}

impl GovernedTable {
    /// Whether the table is small enough to be in memory at once.
    fn firsts(&self) -> Firsts {
        let stored = self.raw.statistics().and_then(|known| known.num_rows.get_value().copied());
        match stored {
            Some(rows) if rows > MOST_ROWS => Firsts::ByWindow,
            _ => Firsts::ByHash,
        }
    }

    fn behind_barrier(&self, rows: Arc<dyn ExecutionPlan>) -> Arc<dyn ExecutionPlan> {
        match self.defences.stand(Defence::Barrier) {
            true => Arc::new(BarrierExec::telling(rows, !self.defences.stand(Defence::Statistics))),
            false => rows,
        }
    }
}

fn visible_fields(view: &DatasetView) -> Vec<ArrowField> {
    let of = |name: &String, exposure: Exposure| {
        let field = view.dataset.field(name)?;
        let kind = match (exposure, arrow_type(field.kind)) {
            (Exposure::Token, _) => DataType::Utf8,
            (Exposure::Aggregate, _) if field.identifier.is_some() => DataType::Binary,
            (_, DataType::Timestamp(unit, _)) => DataType::Timestamp(unit, Some(Arc::clone(&view.dataset.timezone))),
            (_, kind) => kind,
        };
        Some(ArrowField::new(name, kind, true))
    };
    view.fields.iter().filter_map(|(name, exposure)| of(name, *exposure)).collect()
}

/// The columns of a dataset as an answer would have them, where they are asked for by themselves. Each carries its
/// exposure as metadata `gridhub.exposure`; sealed ones are there to be counted.
pub fn shown_fields(view: &DatasetView) -> Vec<ArrowField> {
    let written = |field: ArrowField| match field.data_type() {
        // Sealed identifiers are told apart by their pseudonym, which no answer holds.
        DataType::Binary => field.with_data_type(DataType::Utf8),
        _ => field,
    };
    let exposures = view.fields.iter().map(|(_, exposure)| exposure.word().to_owned());
    let fields = visible_fields(view).into_iter().map(written).zip(exposures);
    fields.map(|(field, word)| field.with_metadata(HashMap::from([("gridhub.exposure".to_owned(), word)]))).collect()
}

fn stored(name: &str) -> Expr {
    Expr::Column(Column::from_name(name))
}

fn unqualified(filter: Expr) -> Result<Expr> {
    let stripped = filter.transform_up(|expr| {
        Ok(match expr {
            Expr::Column(column) => Transformed::yes(stored(&column.name)),
            other => Transformed::no(other),
        })
    })?;
    Ok(stripped.data)
}

/// Of each source and key, the newest row; rows whose key is not whole stand for themselves.
///
/// Where rows have operations and a territory, a deletion speaks of its own territory: the newest row that is none
/// is current unless a later one deletes it there. So the office that a household left does not take it away from
/// the one where it arrived, whichever of the two speaks last.
fn current_state(plan: LogicalPlanBuilder, dataset: &Dataset, how: Firsts) -> Result<LogicalPlanBuilder> {
    const NEWEST: &str = "__newest";
    const NEWEST_THERE: &str = "__newest_there";
    let (order_by, operation) = match &dataset.change {
        ChangeMode::Append => return Ok(plan),
        ChangeMode::Upsert { order_by } => (order_by, None),
        ChangeMode::Changes { order_by, operation } => (order_by, Some(operation)),
    };
    let mut partition = vec![stored(SOURCE)];
    partition.extend(key_parts(dataset));
    let mut order: Vec<_> = order_by.iter().map(|field| stored(field).sort(false, false)).collect();
    order.push(stored(ARRIVAL).sort(false, false));
    order.push(stored(DIGEST).sort(false, false));
    let Some(operation) = operation else { return first_of(plan, NEWEST, partition, order, how) };
    // A missing operation is no deletion, which `<>` would make of it.
    let kept = BinaryExpr::new(Box::new(stored(operation)), Operator::IsDistinctFrom, Box::new(lit("D")));
    let kept = Expr::BinaryExpr(kept);
    // A key that names its territory says itself where its rows are.
    let Some(territory) = dataset.territory.as_ref().filter(|field| !dataset.key.contains(field)) else {
        return first_of(plan, NEWEST, partition, order, how)?.filter(kept);
    };
    let there = partition.iter().cloned().chain([stored(territory)]).collect::<Vec<_>>();
    let mut kept_first = vec![kept.clone().sort(false, false)];
    kept_first.extend(order.iter().cloned());
    if how == Firsts::ByHash {
        let there = Ranking { within: there, order };
        let newest = Ranking { within: partition, order: kept_first };
        return extended(plan, vec![there, newest])?.filter(kept);
    }
    let there = row_number().partition_by(there).order_by(order).build()?.alias(NEWEST_THERE);
    let newest = row_number().partition_by(partition).order_by(kept_first).build()?.alias(NEWEST);
    let first = |name: &str| stored(name).eq(lit(1_u64));
    // A node of the plan knows one order of rows.
    plan.window(vec![there])?.window(vec![newest])?.filter(first(NEWEST).and(first(NEWEST_THERE)).and(kept))
}

/// Where a record is a subject, of each subject the newest of its sources' rows: by what they say themselves of
/// when, then by the name of the source. Elsewhere keys are a source's own, as two pharmacies may both have a sale 1.
// INVARIANT: it looks only at rows within the caller's scope, or a source could ask through its own rows whether
// others have one of somebody. For the same reason it knows no order of arrival.
fn over_sources(plan: LogicalPlanBuilder, dataset: &Dataset, how: Firsts) -> Result<LogicalPlanBuilder> {
    const NEWEST_OF_ALL: &str = "__newest_of_all";
    let order_by = match &dataset.change {
        ChangeMode::Append => return Ok(plan),
        ChangeMode::Upsert { order_by } | ChangeMode::Changes { order_by, .. } => order_by,
    };
    if !dataset.records_are_subjects() {
        return Ok(plan);
    }
    let when = order_by.as_ref().or(dataset.event_time.as_ref());
    let mut order: Vec<_> = when.into_iter().map(|field| stored(field).sort(false, false)).collect();
    order.push(stored(SOURCE).sort(true, false));
    order.push(stored(DIGEST).sort(false, false));
    first_of(plan, NEWEST_OF_ALL, key_parts(dataset), order, how)
}

/// The fields of a key, and beside each of them what keeps rows without it apart.
fn key_parts(dataset: &Dataset) -> Vec<Expr> {
    let mut parts = Vec::new();
    for key in &dataset.key {
        parts.push(stored(key));
        let alone = Case::new(None, vec![(Box::new(stored(key).is_null()), Box::new(stored(DIGEST)))], None);
        parts.push(Expr::Case(alone));
    }
    parts
}

/// How the first row of each part is found: the rows are the same.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Firsts {
    /// In memory, in one pass.
    ByHash,
    /// By the engine's windows, which sort and may spill to disk.
    ByWindow,
}

fn extended(plan: LogicalPlanBuilder, rankings: Vec<Ranking>) -> Result<LogicalPlanBuilder> {
    let node = NewestNode { input: plan.build()?, rankings };
    Ok(LogicalPlanBuilder::from(LogicalPlan::Extension(Extension { node: Arc::new(node) })))
}

/// Of each part, the row that comes first; `name` is of a column that nothing else has.
fn first_of(
    plan: LogicalPlanBuilder,
    name: &str,
    partition: Vec<Expr>,
    order: Vec<SortExpr>,
    how: Firsts,
) -> Result<LogicalPlanBuilder> {
    if how == Firsts::ByHash {
        return extended(plan, vec![Ranking { within: partition, order }]);
    }
    let place = row_number().partition_by(partition).order_by(order).build()?.alias(name);
    plan.window(vec![place])?.filter(stored(name).eq(lit(1_u64)))
}

/// How a stored value becomes what a caller sees.
#[derive(Clone)]
enum Mask {
    Token(Box<TokenKey>),
    Subject(Box<SubjectKey>),
    Record(Box<SubjectKey>),
    Generalise(Generalise),
}

fn masked(mask: Mask, stored: Expr) -> Expr {
    masked_all(mask, vec![stored])
}

fn masked_all(mask: Mask, stored: Vec<Expr>) -> Expr {
    let signature = Signature::any(stored.len(), Volatility::Immutable);
    ScalarUDF::new_from_impl(Masked { mask, signature }).call(stored)
}

/// A mask as a function of the engine. It is in no registry: only scans use it.
struct Masked {
    mask: Mask,
    signature: Signature,
}

impl fmt::Debug for Masked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Masked {
    fn same(&self) -> (&str, Option<Generalise>, Option<&[u8]>) {
        match &self.mask {
            Mask::Token(_) => (self.name(), None, None),
            Mask::Subject(key) | Mask::Record(key) => (self.name(), None, Some(key.name())),
            Mask::Generalise(how) => (self.name(), Some(*how), None),
        }
    }
}

// Within one plan there is one token key, so two token masks are the same function.
impl PartialEq for Masked {
    fn eq(&self, other: &Self) -> bool {
        self.same() == other.same()
    }
}

impl Eq for Masked {}

impl Hash for Masked {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.same().hash(state);
    }
}

impl ScalarUDFImpl for Masked {
    fn name(&self) -> &'static str {
        match self.mask {
            Mask::Token(_) => "gridhub_token",
            Mask::Subject(_) => "gridhub_subject",
            Mask::Record(_) => "gridhub_record",
            Mask::Generalise(_) => "gridhub_generalise",
        }
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, arguments: &[DataType]) -> Result<DataType> {
        match (&self.mask, arguments) {
            (Mask::Token(_), _) => Ok(DataType::Utf8),
            (Mask::Subject(_) | Mask::Record(_), _) => Ok(DataType::UInt64),
            (Mask::Generalise(_), [kind]) => Ok(kind.clone()),
            _ => internal_err!("a mask has one argument"),
        }
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        if let Mask::Record(key) = &self.mask {
            let fields = ColumnarValue::values_to_arrays(&arguments.args)?;
            return Ok(ColumnarValue::Array(records(key, &fields)?));
        }
        let [value] = arguments.args.as_slice() else { return internal_err!("a mask has one argument") };
        let values = value.to_array(arguments.number_rows)?;
        let masked = match &self.mask {
            Mask::Token(key) => tokens(key, &values)?,
            Mask::Subject(key) => subjects(key, &values)?,
            Mask::Generalise(how) => generalised(*how, &values)?,
            Mask::Record(_) => return internal_err!("a record is not one value"),
        };
        Ok(ColumnarValue::Array(masked))
    }
}

fn tokens(key: &TokenKey, values: &ArrayRef) -> Result<ArrayRef> {
    let binary = cast(values, &DataType::Binary)?;
    let binary: &BinaryArray = binary.as_binary();
    let pseudonyms: Vec<Option<[u8; WIDTH]>> =
        binary.iter().map(|value| value.and_then(|value| value.try_into().ok())).collect();
    let there: Vec<[u8; WIDTH]> = pseudonyms.iter().flatten().copied().collect();
    let lengths = pseudonyms.iter().map(|pseudonym| if pseudonym.is_some() { 2 * WIDTH } else { 0 });
    let nulls = pseudonyms.iter().map(Option::is_some).collect::<NullBuffer>();
    let texts = StringArray::try_new(OffsetBuffer::from_lengths(lengths), key.tokens(&there).into(), Some(nulls))?;
    Ok(Arc::new(texts))
}

fn subjects(key: &SubjectKey, values: &ArrayRef) -> Result<ArrayRef> {
    let binary = cast(values, &DataType::Binary)?;
    let binary: &BinaryArray = binary.as_binary();
    let pseudonyms: Vec<[u8; WIDTH]> =
        binary.iter().map(|value| value.and_then(|value| value.try_into().ok()).unwrap_or_default()).collect();
    Ok(Arc::new(UInt64Array::new(key.numbers(&pseudonyms).into(), binary.nulls().cloned())))
}

fn records(key: &SubjectKey, fields: &[ArrayRef]) -> Result<ArrayRef> {
    let order = fields.iter().map(|field| SortField::new(field.data_type().clone())).collect();
    let rows = RowConverter::new(order)?.convert_columns(fields)?;
    Ok(Arc::new(rows.iter().map(|row| Some(key.record(row.as_ref()))).collect::<UInt64Array>()))
}

fn generalised(how: Generalise, values: &ArrayRef) -> Result<ArrayRef> {
    let dates = |first: &dyn Fn(NaiveDate) -> Option<NaiveDate>| -> ArrayRef {
        let days = values.as_primitive::<Date32Type>();
        let coarse =
            days.iter().map(|day| first(Date32Type::to_naive_date_opt(day?)?).map(Date32Type::from_naive_date));
        Arc::new(coarse.collect::<Date32Array>())
    };
    Ok(match how {
        Generalise::Month => dates(&|day| day.with_day(1)),
        Generalise::Year => dates(&|day| NaiveDate::from_ymd_opt(day.year(), 1, 1)),
        Generalise::Years(width) => {
            let width = i32::try_from(width).unwrap_or(i32::MAX);
            dates(&|day| NaiveDate::from_ymd_opt(day.year() - day.year().rem_euclid(width), 1, 1))
        }
        Generalise::Prefix(width) => {
            let text = cast(values, &DataType::Utf8)?;
            let text: &StringArray = text.as_string();
            Arc::new(substring_by_char(text, 0, Some(u64::from(width)))?)
        }
        Generalise::Band(width) if *values.data_type() == DataType::Float64 => {
            let width = f64::from(width);
            Arc::new(values.as_primitive::<Float64Type>().unary::<_, Float64Type>(|n| (n / width).floor() * width))
        }
        Generalise::Band(width) => {
            let width = i64::from(width);
            let numbers = cast(values, &DataType::Int64)?;
            let floors = numbers.as_primitive::<Int64Type>().unary::<_, Int64Type>(|n| n - n.rem_euclid(width));
            // A floor of a value of the type may lie below its least value by less than one band.
            arrow::compute::cast(&(Arc::new(floors) as ArrayRef), values.data_type())?
        }
    })
}

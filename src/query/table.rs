//! A dataset as one caller sees it, as a table of the engine: row scope and masks below a barrier.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use arrow::datatypes::{DataType, Field as ArrowField, Schema, SchemaRef, TimeUnit};
use async_trait::async_trait;
use datafusion::{
    catalog::{Session, TableProvider},
    common::{
        Column, DFSchema, Result, ScalarValue, internal_err,
        tree_node::{Transformed, TreeNode},
    },
    datasource::{TableType, provider_as_source},
    functions_window::expr_fn::row_number,
    logical_expr::{
        Between, BinaryExpr, Expr, ExprFunctionExt, LogicalPlanBuilder, Operator, TableProviderFilterPushDown,
        TableSource, expr::InList,
    },
    physical_plan::{ExecutionPlan, filter::FilterExec, projection::ProjectionExec},
    prelude::lit,
};

use super::{
    barrier::{BarrierExec, WholeExec},
    defences::{Defence, Defences},
    mask::{Mask, masked, masked_all},
    prune, scope, stretch, total,
};
use crate::{
    dataset::{ChangeMode, Dataset, FieldType, layout::arrow_type, scope::Scope},
    policy::{DatasetView, Exposure, Rows},
    pseudonym::{SubjectKey, TokenKey},
    store::{
        DIGEST, SOURCE, Stored,
        current::{Current, Ranking, current, over_sources},
        materialised::{Materialised, RowsOf},
        stretch::Stretch,
    },
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
    raw: Stored,
    /// The rows as they were last published.
    published: Stored,
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
        raw: Stored,
        published: Stored,
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
            true => self.published.clone(),
            false => self.raw.clone(),
        };
        Self { raw, schema: Arc::new(Schema::new(fields)), with_subject: true, ..self.clone() }
    }

    /// The same over no rows.
    pub fn unbound(&self) -> Self {
        Self { raw: self.raw.unread(), published: self.published.unread(), ..self.clone() }
    }

    /// The same over other rows, with other tokens.
    pub fn bound_to(&self, current: Stored, published: Stored, tokens: TokenKey) -> Self {
        let raw = match self.shows_published() {
            true => published.clone(),
            false => current,
        };
        Self { raw, published, tokens, ..self.clone() }
    }

    /// Its rows, where they are held in memory.
    pub fn in_memory(&self) -> Option<(RowsOf, &Arc<Materialised>)> {
        match &self.raw {
            Stored::Memory(rows) => Some((self.rows_of(), rows)),
            Stored::Files(_) | Stored::Nothing(_) => None,
        }
    }

    /// The tokens that it shows.
    pub fn tokens(&self) -> &TokenKey {
        &self.tokens
    }

    /// Which rows it shows.
    fn rows_of(&self) -> RowsOf {
        let name = self.dataset().name.clone();
        match self.shows_published() {
            true => RowsOf::Published(name),
            false => RowsOf::Current(name),
        }
    }

    fn shows_published(&self) -> bool {
        self.with_subject && self.defences.stand(Defence::Epochs)
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
            (Exposure::Generalised, _) => self.coarse(name)?,
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

    /// A column as its generalised form.
    fn coarse(&self, name: &str) -> Result<Expr> {
        match self.dataset().field(name).and_then(|field| field.generalise) {
            Some(how) => Ok(masked(Mask::Generalise(how), stored(name))),
            None => internal_err!("a generalised form that is not there"),
        }
    }

    fn exposure(&self, name: &str) -> Option<Exposure> {
        self.view.fields.iter().find(|(field, _)| field == name).map(|(_, exposure)| *exposure)
    }

    /// Whether a filter that may go below the barrier is best applied first, where it leaves out rows, files and parts
    /// of files: what looks at no more than keys, or rows that are never replaced, as they are stored.
    fn goes_first(&self, filter: &Expr) -> bool {
        self.keeps_keys_whole(filter)
            && !filter.column_refs().iter().any(|column| self.is_compared_coarser(&column.name))
    }

    /// Whether a column is compared as something else than it is stored as.
    fn is_compared_coarser(&self, name: &str) -> bool {
        // INVARIANT: what is compared is what is shown, or a filter would tell of what the mask hides.
        self.exposure(name) == Some(Exposure::Generalised) && self.defences.stand(Defence::MaskedPredicates)
    }

    /// Whether a filter below the barrier may compare a column that is not a token.
    fn may_be_compared(&self, name: &str) -> bool {
        // INVARIANT: wherever the rows lie. How many rows of all scopes there are decides that, and the plan that is
        // explained, and what fails first, would tell of it.
        matches!(self.exposure(name), Some(Exposure::Clear | Exposure::Generalised))
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

    /// The filter in terms of stored columns, where it may go below the barrier: what is total over clear columns and
    /// over generalised ones as they are shown, and tokens compared with literals, put together by AND and OR.
    fn below(&self, filter: &Expr) -> Option<Expr> {
        if let Expr::BinaryExpr(BinaryExpr { left, op: op @ (Operator::And | Operator::Or), right }) = filter {
            let (left, right) = (self.below(left)?, self.below(right)?);
            return Some(Expr::BinaryExpr(BinaryExpr::new(Box::new(left), *op, Box::new(right))));
        }
        self.token_test(filter).or_else(|| self.value_test(filter))
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

    /// A test of clear and of generalised columns that fails on no value.
    fn value_test(&self, filter: &Expr) -> Option<Expr> {
        let zoned = |name: &str| self.dataset().field(name).is_some_and(|field| field.kind == FieldType::Timestamp);
        let columns = filter.column_refs();
        if !columns.iter().all(|column| self.may_be_compared(&column.name)) {
            return None;
        }
        // Stored times are in UTC and shown in the data's zone: the same instants, other days.
        if columns.iter().any(|column| zoned(&column.name)) {
            return self.instant_test(filter);
        }
        let schema = DFSchema::try_from(Arc::clone(&self.schema)).ok()?;
        let plain = unqualified(filter.clone()).ok()?;
        // INVARIANT: what may fail on a value is not computed on rows the caller may not see.
        if self.defences.stand(Defence::FallibleWaits) && !total::is_total(&plain, &schema) {
            return None;
        }
        self.as_shown(plain).ok()
    }

    /// The same of what a caller sees of its columns, in terms of stored ones.
    fn as_shown(&self, filter: Expr) -> Result<Expr> {
        let shown = filter.transform_up(|expr| match &expr {
            Expr::Column(column) if self.is_compared_coarser(&column.name) => {
                Ok(Transformed::yes(self.coarse(&column.name)?))
            }
            _ => Ok(Transformed::no(expr)),
        })?;
        Ok(shown.data)
    }

    /// A time compared with literals.
    fn instant_test(&self, filter: &Expr) -> Option<Expr> {
        let column = |expr: &Expr| match expr {
            Expr::Column(column) if self.exposure(&column.name)? == Exposure::Clear => Some(stored(&column.name)),
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

    /// The stretch of territories that is read of rows in memory.
    fn stretch(&self, first: &[Expr], scope: Option<&Expr>) -> Stretch {
        let Some(territory) = &self.dataset().territory else { return Stretch::default() };
        // INVARIANT: what a question asks for bounds what is read only where all rows within its bounds are in scope and
        // may be seen, or time would tell how many others there are.
        let all_are_open = matches!(self.view.rows, Rows::Open(Scope::All | Scope::Within(_) | Scope::At(_)));
        let asked = first.iter().filter(|_| all_are_open);
        asked.chain(scope).map(|condition| stretch::of(condition, territory)).fold(Stretch::default(), Stretch::and)
    }

    /// The stored rows for which all conditions hold, as `columns`; those that go first prune files and row groups.
    async fn rows(
        &self,
        session: &dyn Session,
        columns: &[Expr],
        conditions: Conditions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let (Conditions { mut first, then }, scope) = (conditions, self.scope());
        let stretch = self.stretch(&first, scope.as_ref());
        first.extend(scope);
        let needed = columns.iter().chain(&first).chain(&then).flat_map(Expr::column_refs);
        let needed = needed.map(|column| column.name.as_str()).collect();
        let rows = filtered(session, self.scanned(session, &needed, &first, stretch).await?, &first)?;
        projected(session, filtered_behind_barrier(session, rows, &then)?, columns)
    }
}

/// What is asked of rows below the barrier.
#[derive(Default)]
struct Conditions {
    /// Of keys, or of rows that are never replaced: before it is decided which rows are current.
    first: Vec<Expr>,
    /// Of rows that are current and in scope.
    then: Vec<Expr>,
}

/// The rows of a plan for which all conditions hold.
fn filtered(
    session: &dyn Session,
    rows: Arc<dyn ExecutionPlan>,
    conditions: &[Expr],
) -> Result<Arc<dyn ExecutionPlan>> {
    let Some(condition) = conditions.iter().cloned().reduce(Expr::and) else { return Ok(rows) };
    let condition = session.create_physical_expr(condition, &DFSchema::try_from(rows.schema())?)?;
    Ok(Arc::new(FilterExec::try_new(condition, rows)?))
}

/// The same, behind a barrier of its own: else the engine would put the conditions before those below, and spare itself
/// these for what it leaves out, also of rows out of scope.
fn filtered_behind_barrier(
    session: &dyn Session,
    rows: Arc<dyn ExecutionPlan>,
    conditions: &[Expr],
) -> Result<Arc<dyn ExecutionPlan>> {
    match conditions.is_empty() {
        true => Ok(rows),
        false => filtered(session, Arc::new(BarrierExec::within_scan(rows)), conditions),
    }
}

/// The rows of a plan as columns computed from them.
fn projected(session: &dyn Session, rows: Arc<dyn ExecutionPlan>, columns: &[Expr]) -> Result<Arc<dyn ExecutionPlan>> {
    let schema = DFSchema::try_from(rows.schema())?;
    let mut shown = Vec::new();
    for column in columns {
        let name = column.schema_name().to_string();
        shown.push((session.create_physical_expr(column.clone(), &schema)?, name));
    }
    Ok(Arc::new(ProjectionExec::try_new(shown, rows)?))
}

#[async_trait]
impl TableProvider for GovernedTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    /// What goes below is applied there in full, since the scan keeps its own filter, and before anything is masked that
    /// is only shown; what is only implied is not.
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
        let mut conditions = Conditions::default();
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
            conditions.first.extend(implied);
            match self.goes_first(filter) {
                true => conditions.first.extend(applied),
                false => conditions.then.extend(applied),
            }
        }
        let Some(current) = current(self.dataset()) else {
            let rows = self.rows(session, &columns, conditions).await?;
            return Ok(match self.is_whole() {
                true => Arc::new(WholeExec::new(rows)),
                false => self.behind_barrier(rows),
            });
        };
        let rows = match &self.raw {
            Stored::Files(files) if has_more_rows_than(files, MOST_ROWS) => {
                self.current_by_windows(session, files, &current, &columns, conditions).await?
            }
            _ => self.current(session, &current, &columns, conditions).await?,
        };
        Ok(self.behind_barrier(rows))
    }
}

/// Rows beyond which not all of a table's are taken into memory at once to find the current ones.
const MOST_ROWS: usize = 2_000_000;

fn has_more_rows_than(files: &Arc<dyn TableProvider>, most: usize) -> bool {
    let stored = files.statistics().and_then(|known| known.num_rows.get_value().copied());
    stored.is_some_and(|rows| rows > most)
}

impl GovernedTable {
    /// The rows that are current, in scope, and for whose keys the conditions hold, as `columns`.
    async fn current(
        &self,
        session: &dyn Session,
        current: &Current,
        columns: &[Expr],
        conditions: Conditions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let (scope, choice) = (self.scope(), self.choice());
        let Conditions { first, then } = conditions;
        let looked_at = columns.iter().chain(&first).chain(&then).chain(&scope).flat_map(Expr::column_refs);
        let mut needed: BTreeSet<&str> = looked_at.map(|column| column.name.as_str()).collect();
        needed.extend(choice.iter().flat_map(Ranking::columns).map(|column| column.name.as_str()));
        let stretch = self.stretch(&first, scope.as_ref());
        let mut rows = match &self.raw {
            Stored::Files(_) => {
                needed.extend(current.columns().map(|column| column.name.as_str()));
                let rows = filtered(session, self.scanned(session, &needed, &first, stretch).await?, &first)?;
                current.of(session, rows)?
            }
            Stored::Memory(_) | Stored::Nothing(_) => {
                filtered(session, self.scanned(session, &needed, &first, stretch).await?, &first)?
            }
        };
        if let Some(scope) = scope {
            rows = filtered(session, rows, &[scope])?;
        }
        if let Some(choice) = choice {
            rows = choice.first_of(session, rows)?;
        }
        projected(session, filtered_behind_barrier(session, rows, &then)?, columns)
    }

    /// The same by windows, which may spill.
    async fn current_by_windows(
        &self,
        session: &dyn Session,
        files: &Arc<dyn TableProvider>,
        current: &Current,
        columns: &[Expr],
        conditions: Conditions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let Conditions { first, then } = conditions;
        let needed: BTreeSet<&Column> = columns.iter().chain(&then).flat_map(Expr::column_refs).collect();
        let mut plan = LogicalPlanBuilder::scan("stored", provider_as_source(Arc::clone(files)), None)?;
        for condition in first {
            plan = plan.filter(condition)?;
        }
        plan = first_by_window(plan, current.rankings.clone())?;
        for condition in current.kept.clone().into_iter().chain(self.scope()) {
            plan = plan.filter(condition)?;
        }
        if let Some(choice) = self.choice() {
            plan = first_by_window(plan, vec![choice])?;
        }
        let plan = plan.project(needed.into_iter().cloned().map(Expr::Column))?.build()?;
        let rows = session.create_physical_plan(&plan).await?;
        projected(session, filtered_behind_barrier(session, rows, &then)?, columns)
    }

    /// Between whose rows of one record there is to be chosen, within the caller's scope.
    fn choice(&self) -> Option<Ranking> {
        match &self.raw {
            Stored::Memory(rows) if rows.has_one_row_each() => None,
            Stored::Nothing(unread) if unread.has_one_row_each() => None,
            _ => over_sources(self.dataset()),
        }
    }

    /// Those stored columns; of files, those that the conditions leave, of rows in memory, those of a stretch of
    /// territories.
    async fn scanned(
        &self,
        session: &dyn Session,
        columns: &BTreeSet<&str>,
        conditions: &[Expr],
        within: Stretch,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let stored = self.raw.schema();
        let places = stored.fields().iter().enumerate().filter(|(_, field)| columns.contains(field.name().as_str()));
        let places: Vec<usize> = places.map(|(at, _)| at).collect();
        match &self.raw {
            Stored::Files(files) => files.scan(session, Some(&places), conditions, None).await,
            Stored::Memory(rows) => rows.scan(&places, within),
            Stored::Nothing(unread) => unread.scan(&places, within, self.rows_of()),
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

/// The rows of a plan that come first in every ranking, by the engine's windows, which sort and may spill to disk.
fn first_by_window(plan: LogicalPlanBuilder, rankings: Vec<Ranking>) -> Result<LogicalPlanBuilder> {
    let name = |at: usize| format!("__newest_{at}");
    let mut plan = plan;
    let all = rankings.len();
    for (at, Ranking { within, order }) in rankings.into_iter().enumerate() {
        // A node of the plan knows one order of rows.
        plan = plan.window(vec![row_number().partition_by(within).order_by(order).build()?.alias(name(at))])?;
    }
    let first = (0..all).map(|at| stored(&name(at)).eq(lit(1_u64)));
    plan.filter(first.reduce(Expr::and).unwrap_or_else(|| lit(true)))
}

//! The barrier between what a caller wrote and what it may not see: no predicate, limit, sort, projection
//! or statistic crosses it, in either direction. Beside it the other nodes of the hub's own: what stands
//! where a barrier would when nothing is hidden behind it, and an order that no optimizer takes away.

use std::{fmt, sync::Arc};

use arrow::{
    array::{RecordBatch, RecordBatchOptions},
    compute::{BatchCoalescer, SortOptions},
};
use async_trait::async_trait;
use datafusion::{
    catalog::{
        Session,
        memory::{DataSourceExec, MemorySourceConfig},
    },
    common::{DFSchemaRef, Result, Statistics, internal_err, stats::Precision, tree_node::TreeNodeRecursion},
    config::ConfigOptions,
    execution::{SendableRecordBatchStream, TaskContext, context::QueryPlanner},
    logical_expr::{
        Expr, LogicalPlan, SortExpr, UserDefinedLogicalNode, UserDefinedLogicalNodeCore,
        physical_planning_context::PhysicalPlanningContext,
    },
    physical_expr::{EquivalenceProperties, LexOrdering, OrderingRequirements, PhysicalSortExpr},
    physical_plan::{
        DisplayAs, DisplayFormatType, Distribution, ExecutionPlan, Partitioning, PhysicalExpr, PlanProperties,
        execution_plan::CardinalityEffect,
        filter_pushdown::{FilterDescription, FilterPushdownPhase},
        statistics::{ChildStats, StatisticsArgs, StatisticsContext},
        stream::RecordBatchStreamAdapter,
    },
    physical_planner::{DefaultPhysicalPlanner, ExtensionPlanner, PhysicalPlanner},
};

use futures::{StreamExt, stream};

use crate::error::Error;

/// Passes rows on and nothing else. Every optimizer hook keeps its closed default; those whose default
/// is open are closed here.
#[derive(Debug)]
pub struct BarrierExec {
    input: Arc<dyn ExecutionPlan>,
    properties: Arc<PlanProperties>,
    tells_statistics: bool,
}

impl BarrierExec {
    /// A barrier above `input`.
    pub fn new(input: Arc<dyn ExecutionPlan>) -> Self {
        Self::telling(input, false)
    }

    /// A barrier that tells how many rows are stored below it, which none does where all defences stand.
    pub(super) fn telling(input: Arc<dyn ExecutionPlan>, tells_statistics: bool) -> Self {
        let below = input.properties();
        let properties = Arc::new(PlanProperties::new(
            // No ordering and no constant of what lies below is told.
            EquivalenceProperties::new(input.schema()),
            Partitioning::UnknownPartitioning(below.output_partitioning().partition_count()),
            below.emission_type,
            below.boundedness,
        ));
        Self { input, properties, tells_statistics }
    }
}

impl DisplayAs for BarrierExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BarrierExec")
    }
}

impl ExecutionPlan for BarrierExec {
    fn name(&self) -> &'static str {
        "BarrierExec"
    }
    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }
    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }
    fn maintains_input_order(&self) -> Vec<bool> {
        vec![false]
    }
    fn benefits_from_input_partitioning(&self) -> Vec<bool> {
        vec![false]
    }
    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }
    fn with_new_children(self: Arc<Self>, mut children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        match (children.pop(), children.is_empty()) {
            (Some(input), true) => Ok(Arc::new(Self::telling(input, self.tells_statistics))),
            _ => internal_err!("a barrier has one input"),
        }
    }
    fn statistics_from_inputs(&self, _: &[Arc<Statistics>], args: &StatisticsArgs) -> Result<Arc<Statistics>> {
        let mut known = Statistics::new_unknown(&self.schema());
        if self.tells_statistics {
            known.num_rows = stored_rows(&self.input, args)?;
        }
        Ok(Arc::new(known))
    }
    fn child_stats_requests(&self, _: Option<usize>) -> Vec<ChildStats> {
        vec![ChildStats::Skip]
    }
    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        self.input.execute(partition, context)
    }
}

/// The logical barrier above a protected aggregate: what the caller does with released values is not
/// pushed to where unreleased ones are.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Hash)]
pub struct ReleasedNode {
    /// The plan whose every row is released.
    pub input: LogicalPlan,
}

impl UserDefinedLogicalNodeCore for ReleasedNode {
    fn name(&self) -> &'static str {
        "Released"
    }
    fn inputs(&self) -> Vec<&LogicalPlan> {
        vec![&self.input]
    }
    fn schema(&self) -> &DFSchemaRef {
        self.input.schema()
    }
    fn expressions(&self) -> Vec<Expr> {
        Vec::new()
    }
    fn fmt_for_explain(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Released")
    }
    fn with_exprs_and_inputs(&self, _: Vec<Expr>, mut inputs: Vec<LogicalPlan>) -> Result<Self> {
        match inputs.pop() {
            Some(input) => Ok(Self { input }),
            None => internal_err!("a release has one input"),
        }
    }
}

/// Stands where a barrier would, over a table behind which nothing is hidden: filters and statistics pass, as
/// in an engine without a gate. (Limits do not: a scan of no columns forgets them.)
#[derive(Debug)]
pub struct WholeExec {
    input: Arc<dyn ExecutionPlan>,
}

impl WholeExec {
    /// No barrier above `input`.
    pub fn new(input: Arc<dyn ExecutionPlan>) -> Self {
        Self { input }
    }
}

impl DisplayAs for WholeExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WholeExec")
    }
}

impl ExecutionPlan for WholeExec {
    fn name(&self) -> &'static str {
        "WholeExec"
    }
    fn properties(&self) -> &Arc<PlanProperties> {
        self.input.properties()
    }
    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }
    fn maintains_input_order(&self) -> Vec<bool> {
        vec![true]
    }
    fn benefits_from_input_partitioning(&self) -> Vec<bool> {
        vec![false]
    }
    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }
    fn with_new_children(self: Arc<Self>, mut children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        match (children.pop(), children.is_empty()) {
            (Some(input), true) => Ok(Arc::new(Self::new(input))),
            _ => internal_err!("a whole table has one input"),
        }
    }
    fn repartitioned(&self, partitions: usize, config: &ConfigOptions) -> Result<Option<Arc<dyn ExecutionPlan>>> {
        Ok(self.input.repartitioned(partitions, config)?.map(|input| Arc::new(Self::new(input)) as _))
    }
    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        self.input.execute(partition, context)
    }
    fn child_stats_requests(&self, partition: Option<usize>) -> Vec<ChildStats> {
        vec![ChildStats::At(partition)]
    }
    fn statistics_from_inputs(&self, inputs: &[Arc<Statistics>], _: &StatisticsArgs) -> Result<Arc<Statistics>> {
        match inputs {
            [only] => Ok(Arc::clone(only)),
            _ => internal_err!("a whole table has one input"),
        }
    }
    fn cardinality_effect(&self) -> CardinalityEffect {
        CardinalityEffect::Equal
    }
    fn gather_filters_for_pushdown(
        &self,
        _: FilterPushdownPhase,
        parent_filters: Vec<Arc<dyn PhysicalExpr>>,
        _: &ConfigOptions,
    ) -> Result<FilterDescription> {
        FilterDescription::from_children(parent_filters, &self.children())
    }
}

/// The logical form of an order that is kept whatever the nodes above ask for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Hash)]
pub struct OrderedNode {
    /// The plan whose rows are put in order.
    pub input: LogicalPlan,
    /// The order.
    pub keys: Vec<SortExpr>,
}

impl UserDefinedLogicalNodeCore for OrderedNode {
    fn name(&self) -> &'static str {
        "Ordered"
    }
    fn inputs(&self) -> Vec<&LogicalPlan> {
        vec![&self.input]
    }
    fn schema(&self) -> &DFSchemaRef {
        self.input.schema()
    }
    fn expressions(&self) -> Vec<Expr> {
        self.keys.iter().map(|key| key.expr.clone()).collect()
    }
    fn fmt_for_explain(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ordered")
    }
    fn with_exprs_and_inputs(&self, expressions: Vec<Expr>, mut inputs: Vec<LogicalPlan>) -> Result<Self> {
        let keys = self.keys.iter().zip(expressions).map(|(key, expr)| SortExpr { expr, ..key.clone() }).collect();
        match inputs.pop() {
            Some(input) => Ok(Self { input, keys }),
            None => internal_err!("an order has one input"),
        }
    }
}

/// Rows in one stream, one order and batches of one size, since sums are added up batch by batch. The order
/// is brought about below it by the engine's own planning, which can rely on it above.
#[derive(Debug)]
struct OrderedExec {
    input: Arc<dyn ExecutionPlan>,
    /// `None` where there is no column to tell rows apart by.
    order: Option<LexOrdering>,
    properties: Arc<PlanProperties>,
}

impl OrderedExec {
    fn new(input: Arc<dyn ExecutionPlan>, order: Option<LexOrdering>) -> Self {
        let below = input.properties();
        let properties = Arc::new(PlanProperties::new(
            EquivalenceProperties::new_with_orderings(input.schema(), order.clone()),
            Partitioning::UnknownPartitioning(1),
            below.emission_type,
            below.boundedness,
        ));
        Self { input, order, properties }
    }
}

impl DisplayAs for OrderedExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OrderedExec")
    }
}

impl ExecutionPlan for OrderedExec {
    fn name(&self) -> &'static str {
        "OrderedExec"
    }
    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }
    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }
    fn required_input_ordering(&self) -> Vec<Option<OrderingRequirements>> {
        vec![self.order.clone().map(OrderingRequirements::from)]
    }
    fn required_input_distribution(&self) -> Vec<Distribution> {
        vec![Distribution::SinglePartition]
    }
    fn maintains_input_order(&self) -> Vec<bool> {
        vec![true]
    }
    fn benefits_from_input_partitioning(&self) -> Vec<bool> {
        vec![false]
    }
    fn apply_expressions(
        &self,
        on: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        let mut next = TreeNodeRecursion::Continue;
        for key in self.order.iter().flatten() {
            next = on(&key.expr)?;
        }
        Ok(next)
    }
    fn with_new_children(self: Arc<Self>, mut children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        match (children.pop(), children.is_empty()) {
            (Some(input), true) => Ok(Arc::new(Self::new(input, self.order.clone()))),
            _ => internal_err!("an order has one input"),
        }
    }
    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let rows = context.session_config().batch_size();
        let input = self.input.execute(partition, context)?;
        let schema = input.schema();
        let equal =
            EqualBatches { input: Some(input), cut: BatchCoalescer::new(Arc::clone(&schema), rows), bare: 0, rows };
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, stream::try_unfold(equal, EqualBatches::next))))
    }
}

/// Rows on their way into batches of one size.
struct EqualBatches {
    /// `None` at its end.
    input: Option<SendableRecordBatchStream>,
    cut: BatchCoalescer,
    /// Rows without columns, which cannot be put together but by their number.
    bare: usize,
    rows: usize,
}

impl EqualBatches {
    async fn next(mut self) -> Result<Option<(RecordBatch, Self)>> {
        loop {
            if let Some(batch) = self.cut.next_completed_batch() {
                return Ok(Some((batch, self)));
            }
            let Some(input) = &mut self.input else {
                let rows = self.bare.min(self.rows);
                if rows == 0 {
                    return Ok(None);
                }
                self.bare -= rows;
                let options = RecordBatchOptions::new().with_row_count(Some(rows));
                let batch = RecordBatch::try_new_with_options(self.cut.schema(), Vec::new(), &options)?;
                return Ok(Some((batch, self)));
            };
            match input.next().await.transpose()? {
                Some(batch) if batch.num_columns() == 0 => self.bare += batch.num_rows(),
                Some(batch) => self.cut.push_batch(batch)?,
                None => {
                    self.input = None;
                    self.cut.finish_buffered_batch()?;
                }
            }
        }
    }
}

/// Plans queries with the hub's own nodes.
#[derive(Debug)]
pub struct Planner;

#[async_trait]
impl QueryPlanner for Planner {
    async fn create_physical_plan(&self, plan: &LogicalPlan, session: &dyn Session) -> Result<Arc<dyn ExecutionPlan>> {
        DefaultPhysicalPlanner::with_extension_planners(vec![Arc::new(Self)]).create_physical_plan(plan, session).await
    }
}

#[async_trait]
impl ExtensionPlanner for Planner {
    async fn plan_extension(
        &self,
        planner: &dyn PhysicalPlanner,
        node: &dyn UserDefinedLogicalNode,
        _: &[&LogicalPlan],
        inputs: &[Arc<dyn ExecutionPlan>],
        session: &dyn Session,
        context: &PhysicalPlanningContext,
    ) -> Result<Option<Arc<dyn ExecutionPlan>>> {
        let [input] = inputs else { return Ok(None) };
        if node.as_any().is::<ReleasedNode>() {
            return Ok(Some(Arc::new(BarrierExec::new(Arc::clone(input)))));
        }
        let Some(ordered) = node.as_any().downcast_ref::<OrderedNode>() else { return Ok(None) };
        let mut order = Vec::new();
        for key in &ordered.keys {
            let expr = planner.create_physical_expr(&key.expr, ordered.input.schema(), session, context)?;
            order.push(PhysicalSortExpr::new(expr, SortOptions::new(!key.asc, key.nulls_first)));
        }
        Ok(Some(Arc::new(OrderedExec::new(Arc::clone(input), LexOrdering::new(order)))))
    }
}

/// How many rows the tables below hold, scope or no scope.
fn stored_rows(plan: &Arc<dyn ExecutionPlan>, args: &StatisticsArgs) -> Result<Precision<usize>> {
    match plan.children().as_slice() {
        [only] if plan.name() != "DeltaScanExec" => stored_rows(only, args),
        _ => {
            let told = StatisticsContext::new().compute(plan.as_ref(), args)?.num_rows;
            Ok(told.get_value().map_or(Precision::Absent, |rows| Precision::Exact(*rows)))
        }
    }
}

/// Checks that nothing is read outside a barrier but what the caller itself wrote.
///
/// # Errors
/// [`Error::Internal`]: such a plan is a fault of the hub and is not run.
pub fn verify(plan: &Arc<dyn ExecutionPlan>) -> crate::error::Result<()> {
    // A release stands on scans that have barriers of their own.
    if plan.downcast_ref::<WholeExec>().is_some() {
        return Ok(());
    }
    if let Some(barrier) = plan.downcast_ref::<BarrierExec>() {
        return match contains_barrier(&barrier.input) {
            true => verify(&barrier.input),
            false => Ok(()),
        };
    }
    let children = plan.children();
    if children.is_empty() {
        let written = matches!(plan.name(), "EmptyExec" | "PlaceholderRowExec" | "WorkTableExec")
            || plan
                .downcast_ref::<DataSourceExec>()
                .is_some_and(|source| source.data_source().downcast_ref::<MemorySourceConfig>().is_some());
        return match written {
            true => Ok(()),
            false => Err(Error::internal(format!("`{}` stands outside a barrier", plan.name()))),
        };
    }
    children.into_iter().try_for_each(verify)
}

fn contains_barrier(plan: &Arc<dyn ExecutionPlan>) -> bool {
    plan.downcast_ref::<BarrierExec>().is_some()
        || plan.downcast_ref::<WholeExec>().is_some()
        || plan.children().into_iter().any(contains_barrier)
}

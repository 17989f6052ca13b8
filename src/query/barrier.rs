//! The barrier between what a caller wrote and what it may not see: no predicate, limit, sort, projection
//! or statistic crosses it, in either direction.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use datafusion::{
    catalog::{
        Session,
        memory::{DataSourceExec, MemorySourceConfig},
    },
    common::{DFSchemaRef, Result, internal_err, tree_node::TreeNodeRecursion},
    execution::{SendableRecordBatchStream, TaskContext, context::QueryPlanner},
    logical_expr::{
        Expr, LogicalPlan, UserDefinedLogicalNode, UserDefinedLogicalNodeCore,
        physical_planning_context::PhysicalPlanningContext,
    },
    physical_expr::EquivalenceProperties,
    physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PhysicalExpr, PlanProperties},
    physical_planner::{DefaultPhysicalPlanner, ExtensionPlanner, PhysicalPlanner},
};

use crate::error::Error;

/// Passes rows on and nothing else. Every optimizer hook keeps its closed default; those whose default
/// is open are closed here.
#[derive(Debug)]
pub struct BarrierExec {
    input: Arc<dyn ExecutionPlan>,
    properties: Arc<PlanProperties>,
}

impl BarrierExec {
    /// A barrier above `input`.
    pub fn new(input: Arc<dyn ExecutionPlan>) -> Self {
        let below = input.properties();
        let properties = Arc::new(PlanProperties::new(
            // No ordering and no constant of what lies below is told.
            EquivalenceProperties::new(input.schema()),
            Partitioning::UnknownPartitioning(below.output_partitioning().partition_count()),
            below.emission_type,
            below.boundedness,
        ));
        Self { input, properties }
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
            (Some(input), true) => Ok(Arc::new(Self::new(input))),
            _ => internal_err!("a barrier has one input"),
        }
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

/// Plans queries with the hub's own node.
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
        _: &dyn PhysicalPlanner,
        node: &dyn UserDefinedLogicalNode,
        _: &[&LogicalPlan],
        inputs: &[Arc<dyn ExecutionPlan>],
        _: &dyn Session,
        _: &PhysicalPlanningContext,
    ) -> Result<Option<Arc<dyn ExecutionPlan>>> {
        match (node.as_any().downcast_ref::<ReleasedNode>(), inputs) {
            (Some(_), [input]) => Ok(Some(Arc::new(BarrierExec::new(Arc::clone(input))))),
            _ => Ok(None),
        }
    }
}

/// Checks that nothing is read outside a barrier but what the caller itself wrote.
///
/// # Errors
/// [`Error::Internal`]: such a plan is a fault of the hub and is not run.
pub fn verify(plan: &Arc<dyn ExecutionPlan>) -> crate::error::Result<()> {
    // A release stands on scans that have barriers of their own.
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
    plan.downcast_ref::<BarrierExec>().is_some() || plan.children().into_iter().any(contains_barrier)
}

//! How the hub's own logical nodes become physical ones.

use std::sync::Arc;

use arrow::compute::SortOptions;
use async_trait::async_trait;
use datafusion::{
    catalog::Session,
    common::Result,
    execution::context::QueryPlanner,
    logical_expr::{LogicalPlan, UserDefinedLogicalNode, physical_planning_context::PhysicalPlanningContext},
    physical_expr::{LexOrdering, PhysicalSortExpr},
    physical_plan::ExecutionPlan,
    physical_planner::{DefaultPhysicalPlanner, ExtensionPlanner, PhysicalPlanner},
};

use super::{
    giving_way, once,
    ordered::{OrderedExec, OrderedNode},
    released::{ReleasedExec, ReleasedNode},
};

/// Plans queries with the hub's own nodes.
#[derive(Debug)]
pub struct Planner;

#[async_trait]
impl QueryPlanner for Planner {
    async fn create_physical_plan(&self, plan: &LogicalPlan, session: &dyn Session) -> Result<Arc<dyn ExecutionPlan>> {
        let planner = DefaultPhysicalPlanner::with_extension_planners(vec![Arc::new(Self)]);
        giving_way::in_joins(once::left_sides(planner.create_physical_plan(plan, session).await?)?)
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
        if let Some(released) = node.as_any().downcast_ref::<ReleasedNode>() {
            return Ok(Some(Arc::new(ReleasedExec::new(inputs.to_vec(), released))));
        }
        let [input] = inputs else { return Ok(None) };
        let Some(ordered) = node.as_any().downcast_ref::<OrderedNode>() else { return Ok(None) };
        let mut order = Vec::new();
        for key in &ordered.keys {
            let expr = planner.create_physical_expr(&key.expr, ordered.input.schema(), session, context)?;
            order.push(PhysicalSortExpr::new(expr, SortOptions::new(!key.asc, key.nulls_first)));
        }
        let mut within = Vec::new();
        for expr in &ordered.within {
            within.push(planner.create_physical_expr(expr, ordered.input.schema(), session, context)?);
        }
        Ok(Some(Arc::new(OrderedExec::new(Arc::clone(input), LexOrdering::new(order), within))))
    }
}

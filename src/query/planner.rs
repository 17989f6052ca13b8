//! How the hub's own logical nodes become physical ones.

use std::sync::Arc;

use arrow::compute::SortOptions;
use async_trait::async_trait;
use datafusion::{
    catalog::Session,
    common::Result,
    execution::context::QueryPlanner,
    logical_expr::{
        Expr, LogicalPlan, SortExpr, UserDefinedLogicalNode, physical_planning_context::PhysicalPlanningContext,
    },
    physical_expr::{LexOrdering, PhysicalSortExpr},
    physical_plan::ExecutionPlan,
    physical_planner::{DefaultPhysicalPlanner, ExtensionPlanner, PhysicalPlanner},
};

use super::{
    newest::{NewestExec, NewestNode, PhysicalRanking},
    once,
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
        once::left_sides(planner.create_physical_plan(plan, session).await?)
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
        if let Some(newest) = node.as_any().downcast_ref::<NewestNode>() {
            let schema = newest.input.schema();
            let physical = |expr: &Expr| planner.create_physical_expr(expr, schema, session, context);
            let mut rankings = Vec::new();
            for ranking in &newest.rankings {
                let within = ranking.within.iter().map(physical).collect::<Result<_>>()?;
                let key = |key: &SortExpr| {
                    Ok(PhysicalSortExpr::new(physical(&key.expr)?, SortOptions::new(!key.asc, key.nulls_first)))
                };
                let order = ranking.order.iter().map(key).collect::<Result<_>>()?;
                rankings.push(PhysicalRanking { within, order });
            }
            return Ok(Some(Arc::new(NewestExec::new(Arc::clone(input), rankings))));
        }
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

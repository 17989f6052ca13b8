//! Joins make many rows out of few, and the engine lets others run only where rows are read: a join of two small
//! tables would compute for minutes in one go, and could not be stopped. So joins give way after each batch that they
//! read or make.

use std::{fmt, sync::Arc};

use datafusion::{
    common::{
        Result, internal_err,
        tree_node::{Transformed, TreeNode, TreeNodeRecursion},
    },
    execution::{SendableRecordBatchStream, TaskContext},
    physical_plan::{
        DisplayAs, DisplayFormatType, ExecutionPlan, PhysicalExpr, PlanProperties,
        joins::{CrossJoinExec, HashJoinExec, NestedLoopJoinExec, PiecewiseMergeJoinExec, SortMergeJoinExec},
        replace_children_if_necessary,
        stream::RecordBatchStreamAdapter,
    },
};
use futures::StreamExt;

/// The plan with joins that give way.
///
/// # Errors
/// Where the plan cannot be rebuilt.
pub fn in_joins(plan: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
    let give_way = |node: Arc<dyn ExecutionPlan>| {
        if !is_join(&node) {
            return Ok(Transformed::no(node));
        }
        let mut sides: Vec<_> = node.children().into_iter().cloned().collect();
        // The side that is read while rows are made.
        if let Some(right) = sides.last_mut() {
            *right = Arc::new(GivesWayExec { input: Arc::clone(right) });
        }
        let input = replace_children_if_necessary(node, sides)?;
        Ok(Transformed::yes(Arc::new(GivesWayExec { input }) as Arc<dyn ExecutionPlan>))
    };
    Ok(plan.transform_up(give_way)?.data)
}

fn is_join(node: &Arc<dyn ExecutionPlan>) -> bool {
    node.downcast_ref::<HashJoinExec>().is_some()
        || node.downcast_ref::<NestedLoopJoinExec>().is_some()
        || node.downcast_ref::<CrossJoinExec>().is_some()
        || node.downcast_ref::<SortMergeJoinExec>().is_some()
        || node.downcast_ref::<PiecewiseMergeJoinExec>().is_some()
}

/// Passes rows on, and lets others run before each batch.
#[derive(Debug)]
struct GivesWayExec {
    input: Arc<dyn ExecutionPlan>,
}

impl DisplayAs for GivesWayExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("GivesWayExec")
    }
}

impl ExecutionPlan for GivesWayExec {
    fn name(&self) -> &'static str {
        "GivesWayExec"
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
            (Some(input), true) => Ok(Arc::new(Self { input })),
            _ => internal_err!("what gives way has one input"),
        }
    }
    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let batches = self.input.execute(partition, context)?.then(|batch| async {
            tokio::task::yield_now().await;
            batch
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), batches)))
    }
}

#[cfg(test)]
mod tests {
    use arrow::{
        array::{ArrayRef, Int64Array, RecordBatch},
        datatypes::SchemaRef,
    };
    use datafusion::{catalog::memory::MemorySourceConfig, common::JoinType};
    use futures::poll;

    use super::*;

    fn rows() -> Arc<dyn ExecutionPlan> {
        let column: ArrayRef = Arc::new(Int64Array::from(vec![1, 2]));
        let batch = RecordBatch::try_from_iter([("a", column)]).unwrap();
        let schema: SchemaRef = batch.schema();
        MemorySourceConfig::try_new_exec(&[vec![batch.clone(), batch]], schema, None).unwrap()
    }

    #[tokio::test]
    async fn others_run_before_each_batch() {
        let mut batches = GivesWayExec { input: rows() }.execute(0, Arc::default()).unwrap();
        for _ in 0..2 {
            assert!(poll!(batches.next()).is_pending());
            assert_eq!(batches.next().await.unwrap().unwrap().num_rows(), 2);
        }
        assert!(batches.next().await.is_none());
    }

    #[test]
    fn joins_give_way_above_and_below() {
        let join = NestedLoopJoinExec::try_new(rows(), rows(), None, &JoinType::Left, None).unwrap();
        let plan = in_joins(Arc::new(join)).unwrap();
        let join = Arc::clone(plan.children()[0]);
        let sides: Vec<_> = join.children().into_iter().map(|side| side.name()).collect();
        assert_eq!((plan.name(), join.name()), ("GivesWayExec", "NestedLoopJoinExec"));
        assert_eq!(sides, ["DataSourceExec", "GivesWayExec"]);
    }
}

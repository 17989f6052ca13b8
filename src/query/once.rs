//! Where memory is too small for the left side of a nested-loop join, the engine computes that side once more, to put
//! it on disk. Not all of its operators can be run twice: some panic, and outer joins in several streams then repeat
//! rows. So such a side is computed once, and a query that would need it again has taken more than it may.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use datafusion::{
    common::{
        DataFusionError, Result, internal_err,
        tree_node::{Transformed, TreeNode, TreeNodeRecursion},
    },
    execution::{SendableRecordBatchStream, TaskContext},
    physical_plan::{
        DisplayAs, DisplayFormatType, ExecutionPlan, PhysicalExpr, PlanProperties, joins::NestedLoopJoinExec,
        replace_children_if_necessary,
    },
};

/// The plan with the left side of every nested-loop join computed once.
///
/// # Errors
/// Where the plan cannot be rebuilt.
pub fn left_sides(plan: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
    let once = |node: Arc<dyn ExecutionPlan>| {
        if node.downcast_ref::<NestedLoopJoinExec>().is_none() {
            return Ok(Transformed::no(node));
        }
        let mut sides: Vec<_> = node.children().into_iter().cloned().collect();
        if let Some(left) = sides.first_mut() {
            *left = Arc::new(OnceExec::new(Arc::clone(left)));
        }
        replace_children_if_necessary(node, sides).map(Transformed::yes)
    };
    Ok(plan.transform_up(once)?.data)
}

/// Passes rows on, in one run.
#[derive(Debug)]
struct OnceExec {
    input: Arc<dyn ExecutionPlan>,
    begun: AtomicBool,
}

impl OnceExec {
    fn new(input: Arc<dyn ExecutionPlan>) -> Self {
        Self { input, begun: AtomicBool::new(false) }
    }
}

impl DisplayAs for OnceExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OnceExec")
    }
}

impl ExecutionPlan for OnceExec {
    fn name(&self) -> &'static str {
        "OnceExec"
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
    /// Also how a recursive query begins its next step, with everything below made anew.
    fn with_new_children(self: Arc<Self>, mut children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        match (children.pop(), children.is_empty()) {
            (Some(input), true) => Ok(Arc::new(Self::new(input))),
            _ => internal_err!("one side has one input"),
        }
    }
    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        // A nested-loop join has its left side in one stream.
        match self.begun.swap(true, Ordering::Relaxed) {
            true => Err(DataFusionError::ResourcesExhausted("one side of a join is larger than memory".into())),
            false => self.input.execute(partition, context),
        }
    }
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::{DataType, Field, Schema};
    use datafusion::{common::JoinType, physical_plan::empty::EmptyExec};

    use super::*;

    fn nothing() -> Arc<dyn ExecutionPlan> {
        Arc::new(EmptyExec::new(Arc::new(Schema::new(vec![Field::new("a", DataType::Int64, true)]))))
    }

    #[test]
    fn what_was_computed_is_not_computed_again() {
        let context = Arc::new(TaskContext::default());
        let once: Arc<dyn ExecutionPlan> = Arc::new(OnceExec::new(nothing()));
        assert!(once.execute(0, Arc::clone(&context)).is_ok());
        let again = once.execute(0, Arc::clone(&context)).err().unwrap();
        assert!(matches!(again, DataFusionError::ResourcesExhausted(_)), "{again}");
        assert!(once.reset_state().unwrap().execute(0, context).is_ok());
    }

    #[test]
    fn left_sides_of_nested_loops_are_computed_once() {
        let join = NestedLoopJoinExec::try_new(nothing(), nothing(), None, &JoinType::Left, None).unwrap();
        let plan = left_sides(Arc::new(join)).unwrap();
        let names: Vec<_> = plan.children().into_iter().map(|side| side.name()).collect();
        assert_eq!((plan.name(), names), ("NestedLoopJoinExec", vec!["OnceExec", "EmptyExec"]));
    }
}

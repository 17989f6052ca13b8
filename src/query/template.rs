//! Plans in the engine's terms that are run again and again: planned once over places for rows, which are filled each
//! time with the rows of the tables as they stand then.
//!
//! Only such parts of a plan are known to keep nothing of one run for the next as are named here.

use std::{collections::BTreeMap, sync::Arc};

use datafusion::{
    common::{
        Result,
        tree_node::{Transformed, TreeNode, TreeNodeRecursion},
    },
    execution::{SessionState, TaskContext},
    physical_plan::ExecutionPlan,
};

use crate::store::materialised::{Materialised, PlaceExec, RowsOf};

/// Parts that keep nothing between two runs once their inputs are others.
const STATELESS: [&str; 13] = [
    "AggregateExec",
    "BarrierExec",
    "CoalescePartitionsExec",
    "CooperativeExec",
    "FilterExec",
    "GivesWayExec",
    "GlobalLimitExec",
    "LocalLimitExec",
    "NewestExec",
    "OrderedExec",
    "ProjectionExec",
    "ReleasedExec",
    "WholeExec",
];

/// Parts that have to forget what they found in a run: a limit by which a sort leaves rows out, one side of a join.
const FORGETFUL: [&str; 2] = ["HashJoinExec", "SortExec"];

fn is_known_to_forget(node: &Arc<dyn ExecutionPlan>) -> bool {
    let name = node.name();
    if FORGETFUL.contains(&name) {
        return true;
    }
    // What finds filters while it runs has them from run to run.
    let finds_filters = !node.dynamic_expressions_produced().is_empty();
    STATELESS.contains(&name) && !finds_filters
}

/// The rows of tables.
pub type Tables = BTreeMap<RowsOf, Arc<Materialised>>;

/// A plan that can be run again.
pub struct Template {
    plan: Arc<dyn ExecutionPlan>,
    places: Vec<RowsOf>,
    /// In which it runs.
    pub(super) context: Arc<TaskContext>,
}

impl Template {
    /// A plan over places alone; `None` where it might keep something of a run, or reads anything else.
    ///
    /// # Errors
    /// Only a fault of the hub.
    pub fn of(plan: Arc<dyn ExecutionPlan>, session: &SessionState) -> Result<Option<Self>> {
        let (mut places, mut is_known) = (Vec::new(), true);
        plan.apply(|node| {
            if let Some(place) = node.downcast_ref::<PlaceExec>() {
                places.push(place.of().clone());
            } else {
                is_known &= !node.children().is_empty() && is_known_to_forget(node);
            }
            Ok(TreeNodeRecursion::Continue)
        })?;
        Ok(is_known.then(|| Self { plan, places, context: session.task_ctx() }))
    }

    /// Which rows it needs.
    pub fn places(&self) -> &[RowsOf] {
        &self.places
    }

    /// The plan over those rows, to be run once; `None` where some lie otherwise than was planned for.
    ///
    /// # Errors
    /// Only a fault of the hub.
    pub fn filled(&self, tables: &Tables) -> Result<Option<Arc<dyn ExecutionPlan>>> {
        let mut all_fit = true;
        let filled = Arc::clone(&self.plan).transform_up(|node| {
            if let Some(place) = node.downcast_ref::<PlaceExec>() {
                let rows = tables.get(place.of()).and_then(|rows| place.filled(rows));
                all_fit &= rows.is_some();
                return Ok(rows.map_or_else(|| Transformed::no(Arc::clone(&node)), Transformed::yes));
            }
            match FORGETFUL.contains(&node.name()) {
                true => node.reset_state().map(Transformed::yes),
                false => Ok(Transformed::no(node)),
            }
        })?;
        Ok(all_fit.then_some(filled.data))
    }
}

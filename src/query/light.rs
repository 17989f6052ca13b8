//! Planning for questions about little: of what an engine does to a plan, what is needed for it to run right. The
//! rest makes plans faster that run long, and takes longer itself than a small table takes to be read.

use std::sync::{Arc, LazyLock};

use datafusion::{
    common::{
        Result,
        config::ConfigOptions,
        tree_node::{TreeNode, TreeNodeRecursion},
    },
    execution::{SessionState, SessionStateBuilder},
    physical_optimizer::{PhysicalOptimizerRule, optimizer::PhysicalOptimizer},
    physical_plan::{ExecutionPlan, aggregates::AggregateExec},
};

type Rule = Arc<dyn PhysicalOptimizerRule + Send + Sync>;

/// Decides which side of a join is held.
const JOINS: [&str; 1] = ["join_selection"];

/// Gives way to others while it runs, where it would not by itself.
const MANNERS: [&str; 1] = ["EnsureCooperative"];

/// Sees to it that every part gets its rows in the order and in the one stream that it asks for.
const REQUIREMENTS: [&str; 5] = [
    "OutputRequirements",
    "EnsureRequirements",
    "CombinePartialFinalAggregate",
    "OptimizeAggregateOrder",
    "EnsureCooperative",
];

/// Checks that it does.
const CHECK: [&str; 1] = ["SanityCheckPlan"];

/// Rules of the engine by name, in its order.
fn rules(names: &[&str]) -> Vec<Rule> {
    PhysicalOptimizer::default().rules.into_iter().filter(|rule| names.contains(&rule.name())).collect()
}

static LITTLE: LazyLock<Vec<Rule>> = LazyLock::new(|| {
    vec![Arc::new(Little {
        joins: rules(&JOINS),
        manners: rules(&MANNERS),
        requirements: rules(&REQUIREMENTS),
        check: rules(&CHECK),
    })]
});

/// The same session, for a plan that reads little: in one stream, since several would only be put together again.
pub fn lightly(state: SessionState) -> SessionState {
    let mut state = SessionStateBuilder::new_from_existing(state).with_physical_optimizer_rules(LITTLE.clone()).build();
    state.config_mut().options_mut().execution.target_partitions = 1;
    state
}

/// All that is done to a plan that reads little. In one stream, most of them ask for nothing that they do not have.
#[derive(Debug)]
struct Little {
    joins: Vec<Rule>,
    manners: Vec<Rule>,
    requirements: Vec<Rule>,
    check: Vec<Rule>,
}

impl PhysicalOptimizerRule for Little {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, config: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        let has = Parts::of(&plan)?;
        let plan = if has.joins { applied(&self.joins, plan, config)? } else { plan };
        // Aggregates come in two halves, which are put together once their requirements are seen to.
        if !has.aggregates {
            let plan = applied(&self.manners, Arc::clone(&plan), config)?;
            if let Ok(checked) = applied(&self.check, plan, config) {
                return Ok(checked);
            }
        }
        applied(&self.check, applied(&self.requirements, plan, config)?, config)
    }
    fn name(&self) -> &'static str {
        "Little"
    }
    fn schema_check(&self) -> bool {
        true
    }
}

fn applied(rules: &[Rule], plan: Arc<dyn ExecutionPlan>, config: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
    rules.iter().try_fold(plan, |plan, rule| rule.optimize(plan, config))
}

/// What stands in a plan.
#[derive(Default)]
struct Parts {
    joins: bool,
    aggregates: bool,
}

impl Parts {
    fn of(plan: &Arc<dyn ExecutionPlan>) -> Result<Self> {
        let mut has = Self::default();
        plan.apply(|node| {
            has.joins |= node.children().len() > 1;
            has.aggregates |= node.downcast_ref::<AggregateExec>().is_some();
            Ok(TreeNodeRecursion::Continue)
        })?;
        Ok(has)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_engine_has_all_of_them() {
        for names in [&JOINS[..], &MANNERS, &REQUIREMENTS, &CHECK] {
            let found = rules(names);
            for name in names {
                assert!(found.iter().any(|rule| rule.name() == *name), "{name}");
            }
        }
    }
}

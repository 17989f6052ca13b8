//! The barrier between what a caller wrote and what it may not see: no predicate, limit, sort, projection
//! or statistic crosses it, in either direction. Beside it what stands in its place when nothing is hidden
//! behind it, and the check that one or the other stands above every scan.

use std::{fmt, sync::Arc};

use datafusion::{
    catalog::memory::{DataSourceExec, MemorySourceConfig},
    common::{Result, Statistics, internal_err, stats::Precision, tree_node::TreeNodeRecursion},
    config::ConfigOptions,
    execution::{SendableRecordBatchStream, TaskContext},
    physical_expr::EquivalenceProperties,
    physical_plan::{
        ChildrenPropertiesMode, DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PhysicalExpr,
        PlanProperties, ReplaceChildrenOptions,
        execution_plan::CardinalityEffect,
        filter_pushdown::{FilterDescription, FilterPushdownPhase},
        statistics::{ChildStats, StatisticsArgs, StatisticsContext},
    },
};

use super::released::ReleasedExec;
use crate::{disclose::recheck, error::Error};

/// Passes rows on and nothing else. Every optimizer hook keeps its closed default; those whose default
/// is open are closed here.
#[derive(Debug, Clone)]
pub struct BarrierExec {
    input: Arc<dyn ExecutionPlan>,
    properties: Arc<PlanProperties>,
    tells_statistics: bool,
    /// Whether it stands between parts of one scan, above which the scan's own is still to stand.
    within_scan: bool,
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
        Self { input, properties, tells_statistics, within_scan: false }
    }

    /// A barrier between parts of one scan, in which the last look at a plan sees none.
    pub(super) fn within_scan(input: Arc<dyn ExecutionPlan>) -> Self {
        Self { within_scan: true, ..Self::new(input) }
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
    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        self.replace_children(children, ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute))
    }
    /// What is known of it stays where that stays which is known of its input.
    fn replace_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
        options: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        match (options.children_properties, children.as_slice()) {
            (ChildrenPropertiesMode::Keep, [input]) => {
                Ok(Arc::new(Self { input: Arc::clone(input), ..Self::clone(&self) }))
            }
            (ChildrenPropertiesMode::Recompute, [input]) => {
                let made_anew = Self::telling(Arc::clone(input), self.tells_statistics);
                Ok(Arc::new(Self { within_scan: self.within_scan, ..made_anew }))
            }
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

/// Stands where a barrier would, over a table behind which nothing is hidden: statistics and the filters of
/// joins pass, as in an engine without a gate. (Limits do not: a scan of no columns forgets them.)
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
            // How many rows there are, but not between which values: the engine stumbles over bounds that a filter
            // meets exactly.
            [only] => Ok(Arc::new(Statistics { num_rows: only.num_rows, ..Statistics::new_unknown(&self.schema()) })),
            _ => internal_err!("a whole table has one input"),
        }
    }
    fn cardinality_effect(&self) -> CardinalityEffect {
        CardinalityEffect::Equal
    }
    /// What joins and limits find out while they run passes. A caller's own filters were handed over with the
    /// scan, in the order in which they guard each other, or stay above.
    fn gather_filters_for_pushdown(
        &self,
        phase: FilterPushdownPhase,
        parent_filters: Vec<Arc<dyn PhysicalExpr>>,
        _: &ConfigOptions,
    ) -> Result<FilterDescription> {
        match phase {
            FilterPushdownPhase::Pre => Ok(FilterDescription::all_unsupported(&parent_filters, &self.children())),
            FilterPushdownPhase::Post => FilterDescription::from_children(parent_filters, &self.children()),
        }
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
    stands(plan, Place::Outside)
}

/// Where a part of a plan stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Outside,
    BelowRelease,
}

fn stands(plan: &Arc<dyn ExecutionPlan>, place: Place) -> crate::error::Result<()> {
    if place == Place::Outside && recheck::shows_subjects(&plan.schema()) {
        return Err(Error::internal("the numbers of subjects are shown outside a release"));
    }
    let is_barrier = plan.downcast_ref::<BarrierExec>().is_some_and(|barrier| !barrier.within_scan);
    if is_barrier || plan.downcast_ref::<WholeExec>().is_some() {
        return Ok(());
    }
    let below = if plan.downcast_ref::<ReleasedExec>().is_some() { Place::BelowRelease } else { place };
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
    children.into_iter().try_for_each(|child| stands(child, below))
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::Schema;
    use datafusion::physical_plan::streaming::StreamingTableExec;

    use super::*;

    #[test]
    fn a_barrier_within_a_scan_is_not_the_barrier_of_the_scan() {
        let rows = StreamingTableExec::try_new(Arc::new(Schema::empty()), Vec::new(), None, Vec::new(), false, None);
        let rows: Arc<dyn ExecutionPlan> = Arc::new(rows.unwrap());
        let within: Arc<dyn ExecutionPlan> = Arc::new(BarrierExec::within_scan(Arc::clone(&rows)));
        for mode in [ChildrenPropertiesMode::Keep, ChildrenPropertiesMode::Recompute] {
            let options = ReplaceChildrenOptions::new(mode);
            let again = Arc::clone(&within).replace_children(vec![Arc::clone(&rows)], options).unwrap();
            assert!(verify(&again).is_err());
            let above: Arc<dyn ExecutionPlan> = Arc::new(BarrierExec::new(again));
            assert!(verify(&above).is_ok());
        }
    }
}

//! An order of rows that no optimizer takes away. Knows nothing of why it is wanted.

use std::{fmt, sync::Arc};

use arrow::{
    array::{RecordBatch, RecordBatchOptions},
    compute::BatchCoalescer,
};
use datafusion::{
    common::{DFSchemaRef, Result, internal_err, tree_node::TreeNodeRecursion},
    execution::{SendableRecordBatchStream, TaskContext},
    logical_expr::{Expr, LogicalPlan, SortExpr, UserDefinedLogicalNodeCore},
    physical_expr::{EquivalenceProperties, LexOrdering, OrderingRequirements},
    physical_plan::{
        ChildrenPropertiesMode, DisplayAs, DisplayFormatType, Distribution, ExecutionPlan, Partitioning, PhysicalExpr,
        PlanProperties, ReplaceChildrenOptions, stream::RecordBatchStreamAdapter,
    },
};
use futures::{StreamExt, stream};

/// The logical form of an order that is kept whatever the nodes above ask for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Hash)]
pub struct OrderedNode {
    /// The plan whose rows are put in order.
    pub input: LogicalPlan,
    /// The order.
    pub keys: Vec<SortExpr>,
    /// Rows that agree in these stay together and in order; where there are none, all rows do.
    pub within: Vec<Expr>,
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
        self.keys.iter().map(|key| &key.expr).chain(&self.within).cloned().collect()
    }
    fn fmt_for_explain(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ordered")
    }
    fn with_exprs_and_inputs(&self, mut expressions: Vec<Expr>, mut inputs: Vec<LogicalPlan>) -> Result<Self> {
        let within = expressions.split_off(self.keys.len());
        let keys = self.keys.iter().zip(expressions).map(|(key, expr)| SortExpr { expr, ..key.clone() }).collect();
        match inputs.pop() {
            Some(input) => Ok(Self { input, keys, within }),
            None => internal_err!("an order has one input"),
        }
    }
}

/// Rows in one stream (or one for all that belong together), one order and batches of one size, since sums are added up
/// batch by batch. The order is brought about below it by the engine's own planning, which can rely on it above.
#[derive(Debug, Clone)]
pub struct OrderedExec {
    input: Arc<dyn ExecutionPlan>,
    /// `None` where there is no column to tell rows apart by.
    order: Option<LexOrdering>,
    within: Vec<Arc<dyn PhysicalExpr>>,
    properties: Arc<PlanProperties>,
}

impl OrderedExec {
    /// `input` in one stream, in that order.
    pub fn new(input: Arc<dyn ExecutionPlan>, order: Option<LexOrdering>, within: Vec<Arc<dyn PhysicalExpr>>) -> Self {
        let below = input.properties();
        let partitioning = match within.is_empty() {
            true => Partitioning::UnknownPartitioning(1),
            false => below.output_partitioning().clone(),
        };
        let properties = Arc::new(PlanProperties::new(
            EquivalenceProperties::new_with_orderings(input.schema(), order.clone()),
            partitioning,
            below.emission_type,
            below.boundedness,
        ));
        Self { input, order, within, properties }
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
        vec![match self.within.is_empty() {
            true => Distribution::SinglePartition,
            false => Distribution::KeyPartitioned(self.within.clone()),
        }]
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
        for expr in self.order.iter().flatten().map(|key| &key.expr).chain(&self.within) {
            next = on(expr)?;
        }
        Ok(next)
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
                Ok(Arc::new(Self::new(Arc::clone(input), self.order.clone(), self.within.clone())))
            }
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

//! Where released numbers are made: the only way out of a sealed region. What the caller does with them is
//! not pushed to where unreleased ones are, and no statistic comes up from there.

use std::{
    cmp::Ordering,
    fmt,
    hash::{Hash, Hasher},
    sync::Arc,
};

use datafusion::{
    common::{DFSchemaRef, DataFusionError, Result, internal_err, tree_node::TreeNodeRecursion},
    execution::{SendableRecordBatchStream, TaskContext},
    logical_expr::{Expr, LogicalPlan, UserDefinedLogicalNodeCore},
    physical_expr::EquivalenceProperties,
    physical_plan::{
        DisplayAs, DisplayFormatType, Distribution, ExecutionPlan, Partitioning, PhysicalExpr, PlanProperties,
        execution_plan::{Boundedness, EmissionType},
        stream::RecordBatchStreamAdapter,
    },
};
use futures::{StreamExt, TryStreamExt, stream};

use crate::disclose::Cells;

/// The logical node above the cells of a protected aggregate. Its inputs are the cells and, where they split
/// something sealed, the wholes that they are parts of.
#[derive(Clone)]
pub struct ReleasedNode {
    inputs: Vec<LogicalPlan>,
    cells: Arc<Cells>,
    schema: DFSchemaRef,
}

impl ReleasedNode {
    /// Releases what `inputs` come to.
    ///
    /// # Errors
    /// Where two of its columns have one name.
    pub fn new(inputs: Vec<LogicalPlan>, cells: Cells) -> Result<Self> {
        let schema = cells.schema_released()?;
        Ok(Self { inputs, cells: Arc::new(cells), schema })
    }

    /// What is asked of the cells.
    pub fn cells(&self) -> &Arc<Cells> {
        &self.cells
    }

    /// How many columns are group keys.
    pub fn keys(&self) -> usize {
        self.cells.keys
    }

    /// How many columns are released numbers, after the keys.
    pub fn calls(&self) -> usize {
        self.cells.formulas.len()
    }
}

impl fmt::Debug for ReleasedNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

// One query has few of these, told apart by the cells they release.
impl PartialEq for ReleasedNode {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.cells, &other.cells) && self.inputs == other.inputs
    }
}

impl Eq for ReleasedNode {}

impl Hash for ReleasedNode {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.inputs.hash(state);
    }
}

impl PartialOrd for ReleasedNode {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        self.inputs.partial_cmp(&other.inputs)
    }
}

impl UserDefinedLogicalNodeCore for ReleasedNode {
    fn name(&self) -> &'static str {
        "Released"
    }
    fn inputs(&self) -> Vec<&LogicalPlan> {
        self.inputs.iter().collect()
    }
    fn schema(&self) -> &DFSchemaRef {
        &self.schema
    }
    fn expressions(&self) -> Vec<Expr> {
        Vec::new()
    }
    fn fmt_for_explain(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Released")
    }
    fn with_exprs_and_inputs(&self, _: Vec<Expr>, inputs: Vec<LogicalPlan>) -> Result<Self> {
        match inputs.len() == self.inputs.len() {
            true => Ok(Self { inputs, ..self.clone() }),
            false => internal_err!("a release has as many inputs as it had"),
        }
    }
}

/// Waits for all cells and releases what may be released of them, in one stream.
pub struct ReleasedExec {
    inputs: Vec<Arc<dyn ExecutionPlan>>,
    cells: Arc<Cells>,
    properties: Arc<PlanProperties>,
}

impl ReleasedExec {
    /// Releases what `inputs` come to.
    pub fn new(inputs: Vec<Arc<dyn ExecutionPlan>>, node: &ReleasedNode) -> Self {
        let schema = Arc::clone(node.schema.inner());
        let properties = Arc::new(PlanProperties::new(
            EquivalenceProperties::new(schema),
            Partitioning::UnknownPartitioning(1),
            EmissionType::Final,
            Boundedness::Bounded,
        ));
        Self { inputs, cells: Arc::clone(&node.cells), properties }
    }
}

impl fmt::Debug for ReleasedExec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl DisplayAs for ReleasedExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ReleasedExec")
    }
}

impl ExecutionPlan for ReleasedExec {
    fn name(&self) -> &'static str {
        "ReleasedExec"
    }
    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }
    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        self.inputs.iter().collect()
    }
    fn required_input_distribution(&self) -> Vec<Distribution> {
        vec![Distribution::SinglePartition; self.inputs.len()]
    }
    fn maintains_input_order(&self) -> Vec<bool> {
        vec![false; self.inputs.len()]
    }
    fn benefits_from_input_partitioning(&self) -> Vec<bool> {
        vec![false; self.inputs.len()]
    }
    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }
    fn with_new_children(self: Arc<Self>, inputs: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        match inputs.len() == self.inputs.len() {
            true => {
                Ok(Arc::new(Self { inputs, cells: Arc::clone(&self.cells), properties: Arc::clone(&self.properties) }))
            }
            false => internal_err!("a release has as many inputs as it had"),
        }
    }
    fn execute(&self, _: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let streams = self.inputs.iter().map(|input| input.execute(0, Arc::clone(&context)));
        let streams = streams.collect::<Result<Vec<_>>>()?;
        let (cells, schema) = (Arc::clone(&self.cells), self.schema());
        let columns = Arc::clone(&schema);
        let released = async move {
            let mut inputs = Vec::new();
            for stream in streams {
                inputs.push(stream.try_collect::<Vec<_>>().await?);
            }
            cells.release(&inputs, &columns).map_err(|error| DataFusionError::External(Box::new(error)))
        };
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, stream::once(released).boxed())))
    }
}

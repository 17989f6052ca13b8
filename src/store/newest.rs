//! Of rows that belong together, the one that comes first: what a record says now. One pass with a table of hashes,
//! where the engine's own windows would sort everything for every question.
//!
//! Knows nothing of what the rows are, and gives the same rows as the windows do.

use std::{collections::HashMap, fmt, sync::Arc};

use arrow::{
    array::{ArrayRef, BooleanArray, RecordBatch},
    buffer::BooleanBuffer,
    compute::{concat_batches, filter_record_batch},
    row::{Row, RowConverter, Rows, SortField},
};
use datafusion::{
    common::{Result, internal_err, tree_node::TreeNodeRecursion},
    execution::{SendableRecordBatchStream, TaskContext, memory_pool::MemoryConsumer},
    physical_expr::{EquivalenceProperties, PhysicalSortExpr},
    physical_plan::{
        ChildrenPropertiesMode, DisplayAs, DisplayFormatType, Distribution, ExecutionPlan, Partitioning, PhysicalExpr,
        PlanProperties, ReplaceChildrenOptions, execution_plan::EmissionType, stream::RecordBatchStreamAdapter,
    },
};
use futures::{TryStreamExt, stream};

/// Which rows belong together, and which of them comes first.
#[derive(Debug, Clone)]
pub struct Order {
    /// Rows that agree in these belong together; NULL agrees with NULL.
    pub within: Vec<Arc<dyn PhysicalExpr>>,
    /// The order among them. Rows that agree in all of it are one as good as the other.
    pub by: Vec<PhysicalSortExpr>,
}

/// The rows that come first in every order, in the order in which they came. All orders are of all rows.
#[derive(Debug, Clone)]
pub struct NewestExec {
    input: Arc<dyn ExecutionPlan>,
    orders: Vec<Order>,
    properties: Arc<PlanProperties>,
}

impl NewestExec {
    /// Those rows of `input`.
    pub fn new(input: Arc<dyn ExecutionPlan>, orders: Vec<Order>) -> Self {
        let properties = Arc::new(PlanProperties::new(
            EquivalenceProperties::new(input.schema()),
            Partitioning::UnknownPartitioning(1),
            EmissionType::Final,
            input.properties().boundedness,
        ));
        Self { input, orders, properties }
    }
}

impl DisplayAs for NewestExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NewestExec")
    }
}

impl ExecutionPlan for NewestExec {
    fn name(&self) -> &'static str {
        "NewestExec"
    }
    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }
    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }
    fn required_input_distribution(&self) -> Vec<Distribution> {
        vec![Distribution::SinglePartition]
    }
    fn maintains_input_order(&self) -> Vec<bool> {
        vec![false]
    }
    fn apply_expressions(
        &self,
        on: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        let mut next = TreeNodeRecursion::Continue;
        for order in &self.orders {
            for expr in order.within.iter().chain(order.by.iter().map(|key| &key.expr)) {
                next = on(expr)?;
            }
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
                Ok(Arc::new(Self::new(Arc::clone(input), self.orders.clone())))
            }
            _ => internal_err!("what is newest is of one input"),
        }
    }
    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let mut input = self.input.execute(partition, Arc::clone(&context))?;
        let (schema, orders) = (input.schema(), self.orders.clone());
        let memory = MemoryConsumer::new("NewestExec").register(context.memory_pool());
        let found = async move {
            let schema = input.schema();
            let mut batches = Vec::new();
            while let Some(batch) = input.try_next().await? {
                // Once as they came, once in one piece.
                memory.try_grow(2 * batch.get_array_memory_size())?;
                batches.push(batch);
            }
            let rows = concat_batches(&schema, &batches)?;
            drop(batches);
            let newest = newest(&rows, &orders)?;
            drop(memory);
            Ok(newest)
        };
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, stream::once(found))))
    }
}

fn newest(rows: &RecordBatch, orders: &[Order]) -> Result<RecordBatch> {
    let mut first = BooleanBuffer::new_set(rows.num_rows());
    for order in orders {
        first = &first & &firsts(rows, order)?;
    }
    Ok(filter_record_batch(rows, &BooleanArray::new(first, None))?)
}

/// Whether every row comes first, since none belongs with another.
///
/// # Errors
/// Where the rows lack a column.
pub fn are_all_first(rows: &RecordBatch, order: &Order) -> Result<bool> {
    Ok(firsts(rows, order)?.count_set_bits() == rows.num_rows())
}

/// Which rows come first among those they belong to.
///
/// # Errors
/// Where the rows lack a column.
pub fn firsts(rows: &RecordBatch, order: &Order) -> Result<BooleanBuffer> {
    let kind = |expr: &Arc<dyn PhysicalExpr>| expr.data_type(rows.schema_ref());
    let within = order.within.iter().map(|expr| Ok((expr, SortField::new(kind(expr)?))));
    let within = comparable(rows, within.collect::<Result<_>>()?)?;
    let places = order.by.iter().map(|key| {
        let field = SortField::new_with_options(kind(&key.expr)?, key.options);
        Ok((&key.expr, field))
    });
    let places = comparable(rows, places.collect::<Result<_>>()?)?;
    // Keys are their senders' to choose: the hashes are none that they could make meet.
    let mut best: HashMap<Row<'_>, usize> = HashMap::with_capacity(rows.num_rows());
    for at in 0..rows.num_rows() {
        let place = best.entry(within.row(at)).or_insert(at);
        if places.row(at) < places.row(*place) {
            *place = at;
        }
    }
    let mut first = vec![false; rows.num_rows()];
    for at in best.into_values() {
        first[at] = true;
    }
    Ok(first.into())
}

/// The rows under some expressions, in a form that is compared byte by byte.
fn comparable(rows: &RecordBatch, by: Vec<(&Arc<dyn PhysicalExpr>, SortField)>) -> Result<Rows> {
    let mut columns: Vec<ArrayRef> = Vec::with_capacity(by.len());
    let mut fields = Vec::with_capacity(by.len());
    for (expr, field) in by {
        columns.push(expr.evaluate(rows)?.into_array(rows.num_rows())?);
        fields.push(field);
    }
    Ok(RowConverter::new(fields)?.convert_columns(&columns)?)
}

#[cfg(test)]
#[expect(clippy::disallowed_types, reason = "the engine's own word on invented rows")]
mod tests {
    use arrow::{
        array::{Int64Array, StringArray},
        compute::SortOptions,
    };
    use datafusion::{
        functions_window::expr_fn::row_number,
        logical_expr::{Expr, ExprFunctionExt, LogicalPlanBuilder},
        physical_expr::expressions::col as physical,
        prelude::{SessionContext, col, lit},
    };
    use proptest::prelude::*;

    use super::*;

    fn table(rows: &[(Option<i64>, Option<i64>, i64)]) -> RecordBatch {
        let key: ArrayRef = Arc::new(rows.iter().map(|row| row.0).collect::<Int64Array>());
        let when: ArrayRef =
            Arc::new(rows.iter().map(|row| row.1.map(|when| when.to_string())).collect::<StringArray>());
        let number: ArrayRef = Arc::new((0..).zip(rows).map(|(at, _)| at).collect::<Int64Array>());
        let other: ArrayRef = Arc::new(rows.iter().map(|row| row.2).collect::<Int64Array>());
        RecordBatch::try_from_iter_with_nullable([
            ("key", key, true),
            ("when", when, true),
            ("number", number, true),
            ("other", other, true),
        ])
        .unwrap()
    }

    fn numbers(batch: &RecordBatch) -> Vec<i64> {
        let column = batch.column_by_name("number").unwrap();
        let column = column.as_any().downcast_ref::<Int64Array>().unwrap();
        let mut numbers: Vec<i64> = column.values().to_vec();
        numbers.sort_unstable();
        numbers
    }

    fn order(batch: &RecordBatch, within: &[&str]) -> Order {
        let schema = batch.schema();
        let key = |name: &str| PhysicalSortExpr::new(physical(name, &schema).unwrap(), SortOptions::new(true, false));
        Order {
            within: within.iter().map(|name| physical(name, &schema).unwrap()).collect(),
            by: vec![key("when"), key("number")],
        }
    }

    proptest! {
        #[test]
        fn they_are_those_that_windows_number_first(
            rows in prop::collection::vec((prop::option::of(0_i64..4), prop::option::of(0_i64..3), 0_i64..3), 0..40),
        ) {
            let batch = table(&rows);
            let found = newest(&batch, &[order(&batch, &["key"]), order(&batch, &["key", "other"])]).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let expected = runtime.block_on(async {
                let engine = SessionContext::new();
                let place = |within: Vec<Expr>, name: &str| {
                    let order = vec![col("\"when\"").sort(false, false), col("number").sort(false, false)];
                    row_number().partition_by(within).order_by(order).build().unwrap().alias(name)
                };
                let plan = engine.read_batch(batch.clone()).unwrap().into_unoptimized_plan();
                let plan = LogicalPlanBuilder::from(plan)
                    .window(vec![place(vec![col("key")], "one")])
                    .and_then(|plan| plan.window(vec![place(vec![col("key"), col("other")], "two")]))
                    .and_then(|plan| plan.filter(col("one").eq(lit(1_u64)).and(col("two").eq(lit(1_u64)))))
                    .and_then(LogicalPlanBuilder::build)
                    .unwrap();
                let frame = engine.execute_logical_plan(plan).await.unwrap();
                frame.collect().await.unwrap().iter().flat_map(numbers).collect::<Vec<_>>()
            });
            let mut expected = expected;
            expected.sort_unstable();
            prop_assert_eq!(numbers(&found), expected);
        }
    }
}

//! Rows in memory as part of a plan: a node that reads them, and one that holds their place while they are not there.

use std::{fmt, sync::Arc};

use arrow::{
    array::{AsArray, RecordBatch},
    compute::concat_batches,
    datatypes::SchemaRef,
};
use datafusion::{
    common::{Result, Statistics, internal_err, project_schema, stats::Precision, tree_node::TreeNodeRecursion},
    execution::{SendableRecordBatchStream, TaskContext},
    physical_expr::EquivalenceProperties,
    physical_plan::{
        DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PhysicalExpr, PlanProperties,
        execution_plan::{Boundedness, EmissionType},
        statistics::StatisticsArgs,
        stream::RecordBatchStreamAdapter,
    },
};
use futures::stream;

use super::{Materialised, count};
use crate::{dataset::DatasetName, store::stretch::Stretch};

impl Materialised {
    /// Reads those of its columns; of the territories, those within a stretch, and perhaps more.
    ///
    /// # Errors
    /// Where there is no such column.
    pub fn scan(self: &Arc<Self>, columns: &[usize], within: Stretch) -> Result<Arc<dyn ExecutionPlan>> {
        let (columns, within, properties) = (columns.into(), Arc::new(within), properties(&self.schema, columns)?);
        Ok(Arc::new(MaterialisedExec { table: Arc::clone(self), columns, within, properties }))
    }

    /// Those columns of the rows of a piece within a stretch of territories; `None` where there are none.
    fn part(&self, piece: &RecordBatch, columns: &[usize], within: &Stretch) -> Result<Option<RecordBatch>> {
        let codes = self.sorted_by.filter(|_| within.is_bounded());
        let rows = match codes.and_then(|at| piece.column(at).as_string_opt::<i32>()) {
            Some(codes) => within.rows_of(codes),
            None => 0..piece.num_rows(),
        };
        if rows.is_empty() {
            return Ok(None);
        }
        let piece = piece.project(columns)?;
        if rows.len() == piece.num_rows() {
            return Ok(Some(piece));
        }
        let part = piece.slice(rows.start, rows.len());
        // INVARIANT: in buffers of its own. Operators count all of a buffer that a slice shares, and whether a question
        // finds enough memory would tell how many other rows there are, and how long their texts. What is put together
        // of one alone would be a slice again.
        Ok(Some(concat_batches(part.schema_ref(), [&part, &part.slice(0, 0)])?))
    }
}

/// What is known of some columns of rows in memory before they are read.
fn properties(schema: &SchemaRef, columns: &[usize]) -> Result<Arc<PlanProperties>> {
    let schema = project_schema(schema, Some(&columns.to_vec()))?;
    Ok(Arc::new(PlanProperties::new(
        EquivalenceProperties::new(schema),
        Partitioning::UnknownPartitioning(1),
        EmissionType::Incremental,
        Boundedness::Bounded,
    )))
}

/// A table without its rows: what there is to plan with.
#[derive(Debug, Clone)]
pub struct Unread {
    schema: SchemaRef,
    one_each: bool,
}

impl Unread {
    pub(in crate::store) fn new(schema: SchemaRef, one_each: bool) -> Self {
        Self { schema, one_each }
    }

    /// The columns.
    pub fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    /// Whether no record had rows of several sources ([`Materialised::has_one_row_each`]).
    pub fn has_one_row_each(&self) -> bool {
        self.one_each
    }

    /// A place for the rows of `of`, which are read as by [`Materialised::scan`] once they are there.
    ///
    /// # Errors
    /// Where there is no such column.
    pub fn scan(&self, columns: &[usize], within: Stretch, of: RowsOf) -> Result<Arc<dyn ExecutionPlan>> {
        let (columns, within, properties) = (columns.into(), Arc::new(within), properties(&self.schema, columns)?);
        Ok(Arc::new(PlaceExec { of, table: self.clone(), columns, within, properties }))
    }
}

/// Which rows of a table.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum RowsOf {
    /// Those that stand.
    Current(DatasetName),
    /// Those that were last published.
    Published(DatasetName),
}

/// Reads rows that are in memory. A plan's node of its own: those of the engine hold rows that a caller wrote itself,
/// and may stand outside a barrier.
#[derive(Debug)]
struct MaterialisedExec {
    table: Arc<Materialised>,
    columns: Arc<[usize]>,
    within: Arc<Stretch>,
    properties: Arc<PlanProperties>,
}

impl DisplayAs for MaterialisedExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MaterialisedExec")
    }
}

impl ExecutionPlan for MaterialisedExec {
    fn name(&self) -> &'static str {
        "MaterialisedExec"
    }
    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }
    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }
    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }
    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        match children.is_empty() {
            true => Ok(self),
            false => internal_err!("rows in memory are of no input"),
        }
    }
    fn statistics_from_inputs(&self, _: &[Arc<Statistics>], _: &StatisticsArgs) -> Result<Arc<Statistics>> {
        let all = count(&self.table.rows.current);
        let rows = match self.within.is_bounded() {
            true => Precision::Inexact(all),
            false => Precision::Exact(all),
        };
        Ok(Arc::new(Statistics { num_rows: rows, ..Statistics::new_unknown(&self.schema()) }))
    }
    fn execute(&self, _: usize, _: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let (table, columns) = (Arc::clone(&self.table), Arc::clone(&self.columns));
        let within = Arc::clone(&self.within);
        let parts = (0..table.rows.current.len())
            .filter_map(move |at| table.part(&table.rows.current[at], &columns, &within).transpose());
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), stream::iter(parts))))
    }
}

/// Stands where rows in memory will be read, in a plan that is made before they are there.
#[derive(Debug)]
pub struct PlaceExec {
    of: RowsOf,
    table: Unread,
    columns: Arc<[usize]>,
    within: Arc<Stretch>,
    properties: Arc<PlanProperties>,
}

impl PlaceExec {
    /// The rows that belong here.
    pub fn of(&self) -> &RowsOf {
        &self.of
    }

    /// Reads those rows; `None` where they lie otherwise than was planned for.
    pub fn filled(&self, rows: &Arc<Materialised>) -> Option<Arc<dyn ExecutionPlan>> {
        let fits = rows.one_each == self.table.one_each && rows.schema == self.table.schema;
        let (columns, within) = (Arc::clone(&self.columns), Arc::clone(&self.within));
        let (table, properties) = (Arc::clone(rows), Arc::clone(&self.properties));
        fits.then(|| Arc::new(MaterialisedExec { table, columns, within, properties }) as _)
    }
}

impl DisplayAs for PlaceExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PlaceExec")
    }
}

impl ExecutionPlan for PlaceExec {
    fn name(&self) -> &'static str {
        "PlaceExec"
    }
    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }
    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }
    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }
    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        match children.is_empty() {
            true => Ok(self),
            false => internal_err!("a place is of no input"),
        }
    }
    fn execute(&self, _: usize, _: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        internal_err!("a place without rows is read")
    }
}

#[cfg(test)]
mod tests {
    use arrow::{
        array::{ArrayRef, Int64Array, StringArray},
        datatypes::Int64Type,
    };

    use super::{
        super::{Room, Rows, in_pieces},
        *,
    };

    /// Rows of a text, a territory, and the place at which each is named here.
    fn of_territories(codes: &[Option<&str>], texts: &[&str]) -> Materialised {
        let columns: [(&str, ArrayRef, bool); 3] = [
            ("text", Arc::new(StringArray::from(texts.to_vec())), true),
            ("code", Arc::new(StringArray::from(codes.to_vec())), true),
            ("place", Arc::new(Int64Array::from_iter_values((0..).take(codes.len()))), false),
        ];
        let rows = RecordBatch::try_from_iter_with_nullable(columns).unwrap();
        let schema = rows.schema();
        let current = in_pieces(Vec::new(), vec![rows], &schema, Some(1)).unwrap();
        let rows = Rows { kept: Vec::new(), current };
        Materialised { rows, schema, sorted_by: Some(1), one_each: true, _room: Room::of(0).nothing() }
    }

    #[test]
    fn memory_of_a_part_follows_its_own_rows() {
        let codes = [Some("43"), None, Some("42"), Some("41"), Some("42")];
        let parts = ["short", "a text of many characters ".repeat(1_000).as_str()].map(|other| {
            let table = of_territories(&codes, &[other, other, "mine", other, "also mine"]);
            let part = |columns: &[usize], within: &Stretch| {
                table.part(&table.rows.current[0], columns, within).unwrap().map(|part| {
                    let places = part.column_by_name("place").map(|places| places.as_primitive::<Int64Type>().values());
                    let mut places: Vec<i64> = places.into_iter().flatten().copied().collect();
                    places.sort_unstable();
                    (places, part.num_rows(), part.get_array_memory_size())
                })
            };
            assert!(part(&[0, 2], &Stretch::at("44")).is_none());
            assert_eq!(part(&[0, 2], &Stretch::default()).map(|(places, ..)| places), Some(vec![0, 1, 2, 3, 4]));
            assert_eq!(part(&[2], &Stretch::from("42")).map(|(places, ..)| places), Some(vec![0, 2, 4]));
            // As a count reads them.
            assert_eq!(part(&[], &Stretch::from("42")).map(|(_, rows, _)| rows), Some(3));
            part(&[0, 2], &Stretch::at("42")).unwrap()
        });
        let [short, long] = &parts;
        assert_eq!(short.0, [2, 4]);
        assert_eq!(short, long);
    }
}

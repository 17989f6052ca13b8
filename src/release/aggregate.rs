//! Cells as an aggregate of the engine: `gridhub_cell(subject, vouched, c1, …, cm)` makes of rows, one for each
//! subject of a group, the bytes of a [`Cell`]. In no registry: only plans that the disclosure gate rewrote use
//! it, and what it answers is for [`super::decide`] and for nobody else.

use std::{fmt, sync::Arc};

use arrow::{
    array::{
        Array, ArrayRef, AsArray, BinaryArray, BinaryBuilder, BooleanArray, Decimal128Array, Int64Array, UInt64Array,
    },
    datatypes::{DataType, Decimal128Type, Field, FieldRef, Int64Type, UInt64Type},
};
use datafusion::{
    common::{Result, ScalarValue, internal_err, plan_err, resources_err},
    logical_expr::{
        Accumulator, AggregateUDF, AggregateUDFImpl, EmitTo, GroupsAccumulator, Signature, Volatility,
        function::{AccumulatorArgs, StateFieldsArgs},
    },
};

use super::cell::{Cell, Subject};

/// What plans call it.
pub const NAME: &str = "gridhub_cell";

/// Arguments before the contributions.
const BEFORE: usize = 2;

/// The aggregate `gridhub_cell(subject, vouched, c1, …, cm)`: of unsigned 64-bit numbers that differ within a
/// group, booleans, and 64-bit integers or decimals, of which the units of the last digit are taken. It answers
/// [`Cell::bytes`] of m measures. Rows without a subject are passed over, and NULL vouches for nobody and
/// contributes nothing.
pub fn cell_aggregate() -> AggregateUDF {
    AggregateUDF::new_from_impl(CellAggregate { signature: Signature::variadic_any(Volatility::Immutable) })
}

/// Whether a function is [`cell_aggregate`], by its own type and not by a name.
pub fn is_cell_aggregate(function: &AggregateUDF) -> bool {
    function.inner().downcast_ref::<CellAggregate>().is_some()
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct CellAggregate {
    signature: Signature,
}

impl AggregateUDFImpl for CellAggregate {
    fn name(&self) -> &str {
        NAME
    }
    fn signature(&self) -> &Signature {
        &self.signature
    }
    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        match types {
            [DataType::UInt64, DataType::Boolean, contributions @ ..]
                if contributions.iter().all(|kind| matches!(kind, DataType::Int64 | DataType::Decimal128(..))) =>
            {
                Ok(DataType::Binary)
            }
            _ => plan_err!("a cell is not made of {types:?}"),
        }
    }
    fn state_fields(&self, args: StateFieldsArgs) -> Result<Vec<FieldRef>> {
        Ok(vec![Arc::new(Field::new(format!("{}[cell]", args.name), DataType::Binary, true))])
    }
    fn accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        Ok(Box::new(One { cell: Cell::new(measures(&args)?) }))
    }
    fn groups_accumulator_supported(&self, _: AccumulatorArgs) -> bool {
        true
    }
    fn create_groups_accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn GroupsAccumulator>> {
        Ok(Box::new(Groups::new(measures(&args)?)))
    }
}

fn measures(args: &AccumulatorArgs) -> Result<usize> {
    match args.exprs.len().checked_sub(BEFORE) {
        Some(measures) => Ok(measures),
        None => internal_err!("a cell needs a subject and whether it is vouched for"),
    }
}

/// The rows of a batch, with their types found out once.
struct Rows<'a> {
    subjects: &'a UInt64Array,
    vouched: &'a BooleanArray,
    contributions: Vec<Contributions<'a>>,
}

enum Contributions<'a> {
    Whole(&'a Int64Array),
    Decimal(&'a Decimal128Array),
}

impl<'a> Rows<'a> {
    fn of(values: &'a [ArrayRef], measures: usize) -> Result<Self> {
        let [subjects, vouched, contributions @ ..] = values else {
            return internal_err!("a cell has too few arguments");
        };
        let (Some(subjects), Some(vouched)) = (subjects.as_primitive_opt::<UInt64Type>(), vouched.as_boolean_opt())
        else {
            return internal_err!("the subjects of a cell have other types");
        };
        let contributions: Option<Vec<_>> = contributions.iter().map(Contributions::of).collect();
        match contributions {
            Some(contributions) if contributions.len() == measures => Ok(Self { subjects, vouched, contributions }),
            _ => internal_err!("the measures of a cell are others, or have other types"),
        }
    }

    fn subject(&self, row: usize) -> Option<Subject> {
        let vouched = self.vouched.is_valid(row) && self.vouched.value(row);
        self.subjects.is_valid(row).then(|| Subject { number: self.subjects.value(row), vouched })
    }

    fn contribution(&self, measure: usize, row: usize) -> Option<i128> {
        match self.contributions.get(measure)? {
            Contributions::Whole(values) => values.is_valid(row).then(|| values.value(row).into()),
            Contributions::Decimal(values) => values.is_valid(row).then(|| values.value(row)),
        }
    }

    /// Adds the row to a cell, if it has a subject.
    fn add_to(&self, cell: &mut Cell, row: usize) {
        if let Some(subject) = self.subject(row) {
            cell.add(subject, |measure| self.contribution(measure, row));
        }
    }
}

impl<'a> Contributions<'a> {
    fn of(values: &'a ArrayRef) -> Option<Self> {
        let whole = values.as_primitive_opt::<Int64Type>().map(Self::Whole);
        whole.or_else(|| values.as_primitive_opt::<Decimal128Type>().map(Self::Decimal))
    }
}

/// Whether an aggregate's own filter lets a row through.
fn passes(filter: Option<&BooleanArray>, row: usize) -> bool {
    filter.is_none_or(|filter| filter.is_valid(row) && filter.value(row))
}

/// Cells as they are passed on, one a row.
fn written(cells: impl Iterator<Item = Cell>) -> Result<ArrayRef> {
    let mut out = BinaryBuilder::new();
    let mut bytes = Vec::new();
    for mut cell in cells {
        bytes.clear();
        cell.settle();
        cell.write(&mut bytes);
        // Where the array's offsets end.
        if out.values_slice().len() + bytes.len() > i32::MAX as usize {
            return resources_err!("the cells of one query take more than 2 GiB");
        }
        out.append_value(&bytes);
    }
    Ok(Arc::new(out.finish()))
}

/// The cells that were passed on.
fn states(values: &[ArrayRef]) -> Result<&BinaryArray> {
    match values.first().and_then(|cells| cells.as_binary_opt::<i32>()) {
        Some(cells) => Ok(cells),
        None => internal_err!("a cell has one state, of bytes"),
    }
}

/// Adds what was passed on in a row to a cell.
fn merge(cell: &mut Cell, states: &BinaryArray, row: usize) -> Result<()> {
    if states.is_null(row) {
        return Ok(());
    }
    match Cell::from_bytes(states.value(row)).filter(|part| part.measures() == cell.measures()) {
        None => return internal_err!("a cell that cannot be read"),
        Some(part) if cell.subjects() == 0 => *cell = part,
        Some(part) => cell.merge(&part),
    }
    Ok(())
}

/// The cells of all groups.
struct Groups {
    measures: usize,
    cells: Vec<Cell>,
    /// What the cells have on the heap, kept up with every row: the engine asks after every batch.
    heap: usize,
}

impl Groups {
    fn new(measures: usize) -> Self {
        Self { measures, cells: Vec::new(), heap: 0 }
    }

    fn grow(&mut self, groups: usize) {
        if groups > self.cells.len() {
            self.cells.resize_with(groups, || Cell::new(self.measures));
        }
    }

    fn take(&mut self, emit: EmitTo) -> Vec<Cell> {
        let cells = emit.take_needed(&mut self.cells);
        let heap: usize = cells.iter().map(Cell::size).sum();
        self.heap = self.heap.saturating_sub(heap);
        cells
    }
}

impl GroupsAccumulator for Groups {
    fn update_batch(
        &mut self,
        values: &[ArrayRef],
        groups: &[usize],
        filter: Option<&BooleanArray>,
        total: usize,
    ) -> Result<()> {
        self.grow(total);
        let rows = Rows::of(values, self.measures)?;
        for (row, group) in groups.iter().enumerate() {
            if !passes(filter, row) {
                continue;
            }
            let cell = &mut self.cells[*group];
            let before = cell.size();
            rows.add_to(cell, row);
            self.heap += cell.size().saturating_sub(before);
        }
        Ok(())
    }

    fn evaluate(&mut self, emit: EmitTo) -> Result<ArrayRef> {
        written(self.take(emit).into_iter())
    }

    fn state(&mut self, emit: EmitTo) -> Result<Vec<ArrayRef>> {
        Ok(vec![self.evaluate(emit)?])
    }

    fn merge_batch(&mut self, values: &[ArrayRef], groups: &[usize], total: usize) -> Result<()> {
        self.grow(total);
        let states = states(values)?;
        for (row, group) in groups.iter().enumerate() {
            let cell = &mut self.cells[*group];
            let before = cell.size();
            merge(cell, states, row)?;
            self.heap = (self.heap + cell.size()).saturating_sub(before);
        }
        Ok(())
    }

    fn convert_to_state(&self, values: &[ArrayRef], filter: Option<&BooleanArray>) -> Result<Vec<ArrayRef>> {
        let rows = Rows::of(values, self.measures)?;
        let cells = (0..rows.subjects.len()).map(|row| {
            let mut cell = Cell::new(self.measures);
            if passes(filter, row) {
                rows.add_to(&mut cell, row);
            }
            cell
        });
        Ok(vec![written(cells)?])
    }

    fn size(&self) -> usize {
        size_of::<Self>() + self.cells.capacity() * size_of::<Cell>() + self.heap
    }
}

/// The cell of all rows, where there are no groups.
struct One {
    cell: Cell,
}

impl fmt::Debug for One {
    /// Says nothing of the cell.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(NAME)
    }
}

impl Accumulator for One {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        let rows = Rows::of(values, self.cell.measures())?;
        (0..rows.subjects.len()).for_each(|row| rows.add_to(&mut self.cell, row));
        Ok(())
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        self.cell.settle();
        Ok(ScalarValue::Binary(Some(self.cell.bytes())))
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        Ok(vec![self.evaluate()?])
    }

    fn merge_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        let states = states(values)?;
        (0..states.len()).try_for_each(|row| merge(&mut self.cell, states, row))
    }

    fn size(&self) -> usize {
        size_of::<Self>() + self.cell.size()
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_types, reason = "the engine runs the aggregate on invented rows, behind no gate")]
mod tests {
    use std::collections::BTreeMap;

    use arrow::record_batch::RecordBatch;
    use datafusion::{
        catalog::TableProvider,
        datasource::MemTable,
        prelude::{SessionConfig, SessionContext},
    };
    use proptest::prelude::*;
    use rand::{Rng, SeedableRng, rngs::StdRng};

    use super::*;

    /// Group, subject, whether it is vouched for, and two contributions.
    type Row = (u8, Option<u64>, Option<bool>, Option<i64>, Option<i128>);

    fn columns(rows: &[Row]) -> Vec<ArrayRef> {
        let decimals: Decimal128Array = rows.iter().map(|row| row.4).collect();
        vec![
            Arc::new(rows.iter().map(|row| row.1).collect::<UInt64Array>()),
            Arc::new(rows.iter().map(|row| row.2).collect::<BooleanArray>()),
            Arc::new(rows.iter().map(|row| row.3).collect::<Int64Array>()),
            Arc::new(decimals.with_precision_and_scale(38, 0).unwrap()),
        ]
    }

    /// The cells of the groups, made without the engine.
    fn cells(rows: &[Row]) -> BTreeMap<u8, Cell> {
        let mut cells = BTreeMap::new();
        for (group, number, vouched, whole, decimal) in rows.iter().copied() {
            let cell = cells.entry(group).or_insert_with(|| Cell::new(2));
            let Some(number) = number else { continue };
            let contributions = [whole.map(i128::from), decimal];
            cell.add(Subject { number, vouched: vouched == Some(true) }, |measure| contributions[measure]);
        }
        cells
    }

    fn rarely(random: &mut StdRng) -> bool {
        random.random_range(0..10) == 0
    }

    /// Invented rows; within a group subjects differ.
    fn invented(seed: u64, groups: u8, rows: usize) -> Vec<Row> {
        let mut random = StdRng::seed_from_u64(seed);
        (0..rows)
            .map(|_| {
                let subject = random.random::<u64>();
                (
                    // Of very different sizes.
                    (random.random::<f64>().powi(3) * f64::from(groups)) as u8,
                    (!rarely(&mut random)).then_some(subject),
                    (!rarely(&mut random)).then(|| random.random()),
                    (!rarely(&mut random)).then(|| random.random_range(-3..100)),
                    (!rarely(&mut random)).then(|| random.random_range(-(1_i128 << 90)..1_i128 << 90)),
                )
            })
            .collect()
    }

    fn updated(groups: &mut Groups, rows: &[Row], total: usize) {
        let places: Vec<usize> = rows.iter().map(|row| row.0.into()).collect();
        groups.update_batch(&columns(rows), &places, None, total).unwrap();
    }

    proptest! {
        #[test]
        fn partial_states_come_to_the_same_cells(
            seed in any::<u64>(),
            groups in 1_u8..8,
            rows in 0_usize..400,
            cuts in prop::collection::vec(0_usize..400, 3),
        ) {
            let rows = invented(seed, groups, rows);
            let total = usize::from(groups);
            let mut whole = Groups::new(2);
            updated(&mut whole, &rows, total);

            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(rows.len())).collect();
            cuts.sort_unstable();
            let mut merged = Groups::new(2);
            // One part row by row, one in two batches, and one in one.
            let (alone, rest) = rows.split_at(cuts[0]);
            let states = merged.convert_to_state(&columns(alone), None).unwrap();
            let places: Vec<usize> = alone.iter().map(|row| row.0.into()).collect();
            merged.merge_batch(&states, &places, total).unwrap();
            let (two, one) = rest.split_at(cuts[2] - cuts[0]);
            let (first, second) = two.split_at(cuts[1] - cuts[0]);
            for batches in [vec![first, second], vec![one]] {
                let mut part = Groups::new(2);
                batches.into_iter().for_each(|batch| updated(&mut part, batch, total));
                let states = part.state(EmitTo::All).unwrap();
                merged.merge_batch(&states, &(0..total).collect::<Vec<_>>(), total).unwrap();
            }

            let expected = cells(&rows);
            let nobody = Cell::new(2);
            for mut groups in [whole, merged] {
                let heap: usize = groups.cells.iter().map(Cell::size).sum();
                prop_assert_eq!(groups.heap, heap);
                let first = groups.evaluate(EmitTo::First(1)).unwrap();
                prop_assert_eq!(groups.cells.len(), total - 1);
                let others = groups.evaluate(EmitTo::All).unwrap();
                prop_assert_eq!((groups.heap, groups.cells.len()), (0, 0));
                let found = first.as_binary::<i32>().iter().chain(others.as_binary::<i32>());
                for (group, found) in found.enumerate() {
                    let expected = expected.get(&(group as u8)).unwrap_or(&nobody);
                    prop_assert_eq!(found.map(<[u8]>::to_vec), Some(expected.bytes()));
                }
            }
        }
    }

    #[test]
    fn filtered_rows_are_left_out() {
        let rows = invented(1, 3, 200);
        let filter: BooleanArray = (0..200).map(|row| [Some(true), Some(false), None][row % 3]).collect();
        let through: Vec<Row> = rows.iter().copied().step_by(3).collect();
        let expected = cells(&through);
        let places: Vec<usize> = rows.iter().map(|row| row.0.into()).collect();
        let mut updated = Groups::new(2);
        updated.update_batch(&columns(&rows), &places, Some(&filter), 3).unwrap();
        let mut converted = Groups::new(2);
        let states = converted.convert_to_state(&columns(&rows), Some(&filter)).unwrap();
        converted.merge_batch(&states, &places, 3).unwrap();
        for mut groups in [updated, converted] {
            let found = groups.evaluate(EmitTo::All).unwrap();
            for (group, cell) in &expected {
                assert_eq!(found.as_binary::<i32>().value((*group).into()), cell.bytes());
            }
        }
    }

    #[test]
    fn other_arguments_are_refused() {
        let aggregate = cell_aggregate();
        let (subject, vouched) = (DataType::UInt64, DataType::Boolean);
        for right in [vec![], vec![DataType::Int64], vec![DataType::Decimal128(38, 0), DataType::Int64]] {
            let types = [vec![subject.clone(), vouched.clone()], right].concat();
            assert_eq!(aggregate.return_type(&types).unwrap(), DataType::Binary);
        }
        for wrong in [
            vec![],
            vec![subject.clone()],
            vec![DataType::Int64, vouched.clone()],
            vec![subject.clone(), DataType::Int64],
            vec![subject, vouched, DataType::Float64],
        ] {
            assert!(aggregate.return_type(&wrong).is_err(), "{wrong:?}");
        }
        let mut groups = Groups::new(1);
        assert!(groups.update_batch(&columns(&[]), &[], None, 0).is_err());
        let state: ArrayRef = Arc::new(BinaryArray::from_iter_values([Cell::new(2).bytes()]));
        assert!(groups.merge_batch(&[Arc::clone(&state)], &[0], 1).is_err());
        assert!(Groups::new(2).merge_batch(&[state], &[0], 1).is_ok());
    }

    #[test]
    fn nothing_is_printed_of_a_cell() {
        let mut cell = Cell::new(0);
        cell.add(Subject { number: 0x00c0_ffee, vouched: true }, |_| None);
        assert_eq!(format!("{:?}", One { cell }), NAME);
    }

    async fn asked(engine: &SessionContext, sql: &str) -> Vec<RecordBatch> {
        engine.sql(sql).await.unwrap().collect().await.unwrap()
    }

    #[tokio::test]
    async fn the_engine_makes_the_same_cells() {
        let rows = invented(2, 100, 3_000);
        let batches: Vec<RecordBatch> = rows
            .chunks(700)
            .map(|rows| {
                let places: ArrayRef = Arc::new(rows.iter().map(|row| Some(i64::from(row.0))).collect::<Int64Array>());
                let columns = std::iter::once(places).chain(columns(rows));
                let names = ["place", "subject", "vouched", "one", "other"].into_iter();
                let columns = names.zip(columns).map(|(name, column)| (name, column, true));
                RecordBatch::try_from_iter_with_nullable(columns).unwrap()
            })
            .collect();
        let partitions = batches.chunks(2).map(<[RecordBatch]>::to_vec).collect();
        let table: Arc<dyn TableProvider> = Arc::new(MemTable::try_new(batches[0].schema(), partitions).unwrap());
        let expected: BTreeMap<u8, Vec<u8>> =
            cells(&rows).into_iter().map(|(group, cell)| (group, cell.bytes())).collect();
        assert!(expected.values().any(|bytes| bytes[0] == 0), "no small cell");
        assert!(expected.values().any(|bytes| bytes[0] == 1), "no large cell");
        // The same rows in one group.
        let together: Vec<Row> = rows.iter().map(|row| (0, row.1, row.2, row.3, row.4)).collect();
        let whole = cells(&together)[&0].bytes();

        // Once with partial sums, and once with rows that are passed on one by one.
        for ratio in [1.0, 0.0] {
            let mut config = SessionConfig::new().with_target_partitions(3).with_batch_size(100);
            config.options_mut().execution.skip_partial_aggregation_probe_ratio_threshold = ratio;
            config.options_mut().execution.skip_partial_aggregation_probe_rows_threshold = 100;
            let engine = SessionContext::new_with_config(config);
            engine.register_udaf(cell_aggregate());
            engine.register_table("t", Arc::clone(&table)).unwrap();

            let mut found = BTreeMap::new();
            let sql = "SELECT place, gridhub_cell(subject, vouched, one, other) FROM t GROUP BY place";
            for batch in asked(&engine, sql).await {
                let (places, made) = (batch.column(0).as_primitive::<Int64Type>(), batch.column(1).as_binary::<i32>());
                for row in 0..batch.num_rows() {
                    found.insert(places.value(row) as u8, made.value(row).to_vec());
                }
            }
            assert!(found == expected);

            for (sql, expected) in [
                ("SELECT gridhub_cell(subject, vouched, one, other) FROM t", &whole),
                ("SELECT gridhub_cell(subject, vouched, one, other) FROM t WHERE place > 100", &Cell::new(2).bytes()),
            ] {
                let batches = asked(&engine, sql).await;
                assert_eq!(batches[0].column(0).as_binary::<i32>().value(0), expected);
            }
        }
    }
}

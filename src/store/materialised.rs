//! Small tables in memory: a version's rows as they stand, read and sorted out once, when it is written, and not anew
//! for every question.
//!
//! A version is not told to anybody before its rows are ready. Were they made ready by the first who asks, that one
//! would feel by its wait that somebody sent something, perhaps rows that are not its to see.

mod scan;

use std::{
    collections::HashSet,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use arrow::{
    array::{AsArray, BooleanArray, RecordBatch, UInt32Array, new_null_array},
    buffer::BooleanBuffer,
    compute::{cast, concat_batches, filter_record_batch, not, sort_to_indices, take_record_batch},
    datatypes::{DataType, FieldRef, SchemaRef},
    row::{RowConverter, SortField},
};
use datafusion::{
    common::{DFSchema, DataFusionError, Result, cast::as_boolean_array, internal_err},
    execution::SessionState,
    physical_plan::{PhysicalExpr, execute_stream},
};
use deltalake_core::DeltaTable;
use futures::TryStreamExt;

use super::{
    BATCH, SOURCE, current, in_background,
    newest::{self, Order},
    rows_of,
    write::bytes_of,
};
use crate::dataset::Dataset;
pub use scan::{PlaceExec, RowsOf, Unread};

/// The most rows of a version, superseded ones included.
const MOST_ROWS: u64 = 200_000;

/// Rows of a piece, where many are put together.
const PIECE: usize = 8_192;

/// Small pieces besides, before they are.
const SMALL_PIECES: usize = 32;

/// Memory for the rows of all versions that are held.
#[derive(Debug, Clone)]
pub(super) struct Room {
    taken: Arc<AtomicUsize>,
    bytes: usize,
}

impl Room {
    /// As many bytes; none holds no version.
    pub(super) fn of(bytes: usize) -> Self {
        Self { taken: Arc::default(), bytes }
    }

    /// No part of it yet.
    fn nothing(&self) -> Taken {
        Taken { room: self.clone(), bytes: 0 }
    }
}

/// A part of the room, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Taken {
    room: Room,
    bytes: usize,
}

impl Taken {
    /// Makes it that large, unless there is no room for it.
    fn resize(&mut self, bytes: usize) -> bool {
        let enough = |taken: usize| (taken - self.bytes).checked_add(bytes).filter(|all| *all <= self.room.bytes);
        let resized = self.room.taken.fetch_update(Ordering::AcqRel, Ordering::Acquire, enough).is_ok();
        if resized {
            self.bytes = bytes;
        }
        resized
    }

    /// Makes it larger by some rows, unless there is no room for them.
    fn grow(&mut self, rows: &RecordBatch) -> bool {
        self.resize(self.bytes + bytes_of(rows))
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.room.taken.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

/// The rows of one version that are current, of each source its own.
pub struct Materialised {
    rows: Rows,
    schema: SchemaRef,
    /// The column in whose order the rows of each piece lie: the territory, by which callers' scopes tell rows apart.
    sorted_by: Option<usize>,
    one_each: bool,
    _room: Taken,
}

/// Rows in pieces, which versions share as far as they are the same.
#[derive(Clone, Default)]
struct Rows {
    /// Those that come first in some ranking: no other row has a say in what is current after rows were added.
    kept: Vec<RecordBatch>,
    /// Those of them that are current.
    current: Vec<RecordBatch>,
}

impl fmt::Debug for Materialised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} rows", count(&self.rows.current))
    }
}

impl Materialised {
    /// The rows of a version; `None` where they are too many, or there is no room for them as they were sent. No more
    /// of them is read than there is room for.
    ///
    /// # Errors
    /// Where they cannot be read.
    pub(super) async fn of(
        table: &DeltaTable,
        dataset: &Arc<Dataset>,
        session: &Arc<SessionState>,
        room: &Room,
    ) -> crate::error::Result<Option<Self>> {
        if room.bytes == 0 || rows_of(table) > MOST_ROWS {
            return Ok(None);
        }
        let provider = table.table_provider().with_session(Arc::clone(session)).await;
        let provider = provider.map_err(crate::error::Error::internal)?;
        let mut taken = room.nothing();
        let read = async {
            let schema = provider.schema();
            // Which batch a row came in is for the hub's bookkeeping alone.
            let columns: Vec<usize> =
                (0..schema.fields().len()).filter(|at| schema.field(*at).name() != BATCH).collect();
            let plan = provider.scan(session.as_ref(), Some(&columns), &[], None).await?;
            let (schema, mut rows) = (plan.schema(), execute_stream(plan, session.task_ctx())?);
            let mut all = Vec::new();
            while let Some(batch) = rows.try_next().await? {
                if !taken.grow(&batch) {
                    return Ok(None);
                }
                all.push(batch);
            }
            Ok::<_, DataFusionError>(Some((schema, all)))
        };
        let Some((schema, rows)) = read.await.map_err(crate::error::Error::internal)? else { return Ok(None) };
        let (dataset, session) = (Arc::clone(dataset), Arc::clone(session));
        in_background(move || Self::sorted_out(Rows::default(), rows, schema, &dataset, &session, taken)).await
    }

    /// The rows of the version that comes of this one by what is `added`, to which alone it takes time in proportion,
    /// almost: the others are looked through for rows of the same records. `None` where they are too many, or there is
    /// no room.
    ///
    /// # Errors
    /// Where they cannot be read or do not fit.
    pub(super) async fn with<I: Iterator<Item = crate::error::Result<RecordBatch>>>(
        self: Arc<Self>,
        added: impl FnOnce() -> I + Send + 'static,
        table: &DeltaTable,
        dataset: &Arc<Dataset>,
        session: &Arc<SessionState>,
        room: &Room,
    ) -> crate::error::Result<Option<Self>> {
        if rows_of(table) > MOST_ROWS {
            return Ok(None);
        }
        let (dataset, session, mut taken) = (Arc::clone(dataset), Arc::clone(session), room.nothing());
        in_background(move || {
            let mut all = Vec::new();
            for rows in added() {
                let rows = fitted(&rows?, &self.schema).map_err(crate::error::Error::internal)?;
                if !taken.grow(&rows) {
                    return Ok(None);
                }
                all.push(rows);
            }
            Self::sorted_out(self.rows.clone(), all, Arc::clone(&self.schema), &dataset, &session, taken)
        })
        .await
    }

    fn sorted_out(
        before: Rows,
        added: Vec<RecordBatch>,
        schema: SchemaRef,
        dataset: &Dataset,
        session: &SessionState,
        mut taken: Taken,
    ) -> crate::error::Result<Option<Self>> {
        let sort_out = || {
            let rows = before.with(added, &schema, dataset, session)?;
            let one_each = rows.have_one_each(&schema, dataset, session)?;
            Ok::<_, DataFusionError>((rows, one_each))
        };
        let (rows, one_each) = sort_out().map_err(crate::error::Error::internal)?;
        let sorted_by = order_of(dataset, &schema);
        Ok(taken.resize(rows.bytes()).then(|| Self { rows, schema, sorted_by, one_each, _room: taken }))
    }

    /// The columns.
    pub fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    /// Whether no record has rows of several sources, so that there is nothing to choose between them.
    pub fn has_one_row_each(&self) -> bool {
        self.one_each
    }
}

impl Rows {
    /// The same after rows were added.
    fn with(
        self,
        added: Vec<RecordBatch>,
        schema: &SchemaRef,
        dataset: &Dataset,
        session: &SessionState,
    ) -> Result<Self> {
        let sorted_by = order_of(dataset, schema);
        let Some(current) = current::current(dataset) else {
            let all = in_pieces(self.current, added, schema, sorted_by)?;
            return Ok(Self { kept: all.clone(), current: all });
        };
        let known = DFSchema::try_from(Arc::clone(schema))?;
        let orders = current.rankings.iter().map(|ranking| ranking.over(session, &known));
        let orders = orders.collect::<Result<Vec<_>>>()?;
        let added = concat_batches(schema, &added)?;
        let touched = Touched::by(&added, &orders)?;
        let (kept, mut again) = touched.apart(&self.kept)?;
        again.push(added);
        let again = concat_batches(schema, &again)?;

        let firsts = orders.iter().map(|order| newest::firsts(&again, order)).collect::<Result<Vec<_>>>()?;
        let none = || BooleanBuffer::new_unset(again.num_rows());
        let in_some = firsts.iter().cloned().reduce(|one, other| &one | &other).unwrap_or_else(none);
        let mut in_all = firsts.into_iter().reduce(|one, other| &one & &other).unwrap_or_else(none);
        let those = |mask: BooleanBuffer| filter_record_batch(&again, &BooleanArray::new(mask, None));
        let kept = in_pieces(kept, vec![those(in_some)?], schema, sorted_by)?;
        if current.kept.is_none() && orders.len() == 1 {
            return Ok(Self { current: kept.clone(), kept });
        }
        if let Some(condition) = &current.kept {
            let holds = session.create_physical_expr(condition.clone(), &known)?;
            let holds = holds.evaluate(&again)?.into_array(again.num_rows())?;
            // NULL holds nowhere.
            let holds: BooleanBuffer = as_boolean_array(&holds)?.iter().map(|holds| holds == Some(true)).collect();
            in_all = &in_all & &holds;
        }
        let (current, _) = touched.apart(&self.current)?;
        Ok(Self { current: in_pieces(current, vec![those(in_all)?], schema, sorted_by)?, kept })
    }

    /// Whether no record has rows of several sources.
    fn have_one_each(&self, schema: &SchemaRef, dataset: &Dataset, session: &SessionState) -> Result<bool> {
        let Some(choice) = current::over_sources(dataset) else { return Ok(true) };
        if self.have_one_source()? {
            return Ok(true);
        }
        let order = choice.over(session, &DFSchema::try_from(Arc::clone(schema))?)?;
        newest::are_all_first(&concat_batches(schema, &self.current)?, &order)
    }

    /// Whether one source sent all of them.
    fn have_one_source(&self) -> Result<bool> {
        let mut known: Option<String> = None;
        for piece in &self.current {
            let Some(sources) = piece.column_by_name(SOURCE) else { return Ok(false) };
            let sources = cast(sources, &DataType::Utf8)?;
            for source in sources.as_string::<i32>() {
                let Some(source) = source else { return Ok(false) };
                if known.get_or_insert_with(|| source.to_owned()) != source {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// The memory they take; pieces that are both kept and current take it once.
    fn bytes(&self) -> usize {
        let of = |pieces: &[RecordBatch]| pieces.iter().map(RecordBatch::get_array_memory_size).sum::<usize>();
        let shared = match (self.kept.first(), self.current.first()) {
            (Some(kept), Some(current)) => Arc::ptr_eq(kept.column(0), current.column(0)),
            _ => false,
        };
        of(&self.current) + if shared { 0 } else { of(&self.kept) }
    }
}

/// The records that rows are added to.
struct Touched<'a> {
    within: &'a [Arc<dyn PhysicalExpr>],
    converter: RowConverter,
    records: HashSet<Box<[u8]>>,
}

impl<'a> Touched<'a> {
    /// Those of some rows, where that is how they are ranked. A ranking within less than others comes last.
    fn by(added: &RecordBatch, orders: &'a [Order]) -> Result<Self> {
        let Some(Order { within, .. }) = orders.last() else { return internal_err!("rows without a ranking") };
        let kind = |expr: &Arc<dyn PhysicalExpr>| Ok(SortField::new(expr.data_type(added.schema_ref())?));
        let converter = RowConverter::new(within.iter().map(kind).collect::<Result<_>>()?)?;
        let mut touched = Self { within, converter, records: HashSet::new() };
        touched.records = touched.rows(added)?.iter().map(|row| row.data().into()).collect();
        Ok(touched)
    }

    fn rows(&self, piece: &RecordBatch) -> Result<arrow::row::Rows> {
        let values = self.within.iter().map(|expr| expr.evaluate(piece)?.into_array(piece.num_rows()));
        Ok(self.converter.convert_columns(&values.collect::<Result<Vec<_>>>()?)?)
    }

    /// Rows of other records, in their pieces as far as these have no other rows, and rows of these records.
    fn apart(&self, pieces: &[RecordBatch]) -> Result<(Vec<RecordBatch>, Vec<RecordBatch>)> {
        let (mut others, mut these) = (Vec::new(), Vec::new());
        for piece in pieces {
            let touched = self.rows(piece)?.iter().map(|row| self.records.contains(row.data())).collect();
            let touched = BooleanArray::new(touched, None);
            if touched.has_true() {
                these.push(filter_record_batch(piece, &touched)?);
                others.push(filter_record_batch(piece, &not(&touched)?)?);
            } else {
                others.push(piece.clone());
            }
        }
        Ok((others, these))
    }
}

fn count(pieces: &[RecordBatch]) -> usize {
    pieces.iter().map(RecordBatch::num_rows).sum()
}

/// Pieces with more behind them, with buffers of their own: operators that hold rows count all of a buffer that slices
/// share, as often as there are slices. Where there are many, or a large one, they are cut anew. The rows of each lie in
/// the order of a column, as those of `pieces` do already.
fn in_pieces(
    pieces: Vec<RecordBatch>,
    more: Vec<RecordBatch>,
    schema: &SchemaRef,
    sorted_by: Option<usize>,
) -> Result<Vec<RecordBatch>> {
    let has_rows = |piece: &RecordBatch| piece.num_rows() > 0;
    let mut all: Vec<RecordBatch> = pieces.into_iter().filter(has_rows).collect();
    let more: Vec<RecordBatch> = more.into_iter().filter(has_rows).collect();
    let is_large = |piece: &RecordBatch| piece.num_rows() > PIECE;
    let pieces = all.len() + more.len();
    if pieces > SMALL_PIECES + (count(&all) + count(&more)) / PIECE || all.iter().chain(&more).any(is_large) {
        let whole = concat_batches(schema, all.iter().chain(&more))?;
        let order = in_order(&whole, sorted_by)?;
        let cut = |start: usize| take_record_batch(&whole, &order.slice(start, PIECE.min(order.len() - start)));
        return Ok((0..order.len()).step_by(PIECE).map(cut).collect::<Result<_, _>>()?);
    }
    for piece in more {
        all.push(take_record_batch(&piece, &in_order(&piece, sorted_by)?)?);
    }
    Ok(all)
}

/// The places of rows in the order of a column.
fn in_order(rows: &RecordBatch, sorted_by: Option<usize>) -> Result<UInt32Array> {
    match sorted_by {
        Some(at) => Ok(sort_to_indices(rows.column(at), None, None)?),
        None => Ok(UInt32Array::from_iter_values((0..).take(rows.num_rows()))),
    }
}

/// The column by which rows in memory are in order.
fn order_of(dataset: &Dataset, schema: &SchemaRef) -> Option<usize> {
    let at = schema.index_of(dataset.territory.as_deref()?).ok()?;
    (*schema.field(at).data_type() == DataType::Utf8).then_some(at)
}

/// Rows as they lie in a file, with the columns that are held.
fn fitted(rows: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch> {
    let column = |field: &FieldRef| match rows.column_by_name(field.name()) {
        Some(column) => Ok(cast(column, field.data_type())?),
        None => Ok(new_null_array(field.data_type(), rows.num_rows())),
    };
    let columns = schema.fields().iter().map(column).collect::<Result<Vec<_>>>()?;
    Ok(RecordBatch::try_new(Arc::clone(schema), columns)?)
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, Int64Array, StringArray};

    use super::*;

    #[test]
    fn pieces_take_no_more_memory_than_the_whole() {
        let texts: StringArray = (0..20_000).map(|row| (row % 7 > 0).then(|| format!("text {row}"))).collect();
        let columns: [(&str, ArrayRef, bool); 2] =
            [("number", Arc::new(Int64Array::from_iter_values(0..20_000)), false), ("text", Arc::new(texts), true)];
        let rows = RecordBatch::try_from_iter_with_nullable(columns).unwrap();
        let schema = rows.schema();
        let pieces = in_pieces(Vec::new(), vec![rows.clone()], &schema, None).unwrap();
        let counts: Vec<_> = pieces.iter().map(RecordBatch::num_rows).collect();
        assert_eq!(counts, [8_192, 8_192, 3_616]);
        assert_eq!(concat_batches(&schema, &pieces).unwrap(), rows);
        let bytes: usize = pieces.iter().map(RecordBatch::get_array_memory_size).sum();
        assert!(bytes < rows.get_array_memory_size() * 3 / 2, "{bytes}");
        assert!(in_pieces(Vec::new(), vec![rows.slice(0, 0)], &schema, None).unwrap().is_empty());
        // One row after the other stays one piece after the other, for a while.
        let mut pieces = pieces;
        for row in 0..100 {
            pieces = in_pieces(pieces, vec![rows.slice(row, 1)], &schema, None).unwrap();
            assert!(pieces.len() <= SMALL_PIECES + 3);
        }
        assert_eq!(count(&pieces), 20_100);
    }

    #[test]
    fn the_rows_of_each_piece_are_in_order() {
        let texts: StringArray =
            (0..9_000).map(|row| (row % 7 > 0).then(|| format!("{}", row * 7_919 % 9_001))).collect();
        let column: ArrayRef = Arc::new(texts);
        let rows = RecordBatch::try_from_iter_with_nullable([("text", column, true)]).unwrap();
        let schema = rows.schema();
        let texts = |pieces: &[RecordBatch]| -> Vec<Option<String>> {
            let texts = pieces.iter().flat_map(|piece| piece.column(0).as_string::<i32>());
            texts.map(|text| text.map(str::to_owned)).collect()
        };
        let mut pieces = in_pieces(Vec::new(), vec![rows.clone()], &schema, Some(0)).unwrap();
        for more in 0..100 {
            let small = rows.slice(more * 3, 3);
            let known = [texts(&pieces), texts(std::slice::from_ref(&small))].concat();
            pieces = in_pieces(pieces, vec![small], &schema, Some(0)).unwrap();
            for piece in &pieces {
                assert!(texts(std::slice::from_ref(piece)).is_sorted());
            }
            let sorted = |mut texts: Vec<Option<String>>| {
                texts.sort();
                texts
            };
            assert_eq!(sorted(texts(&pieces)), sorted(known));
        }
    }

    #[test]
    fn all_together_take_no_more_than_the_room() {
        let room = Room::of(10);
        let (mut one, mut other) = (room.nothing(), room.nothing());
        assert!(one.resize(6));
        assert!(!other.resize(5));
        assert!(other.resize(4));
        assert!(!one.resize(7));
        assert!(one.resize(3));
        assert!(other.resize(7));
        drop(other);
        assert!(one.resize(10));
        assert!(!one.resize(usize::MAX));
    }
}

//! The disclosure gate. Looks at a plan before it runs ([`guard`]) and opens what came out of it
//! ([`release`]); nothing else can.
//!
//! A plan that touches no sealed field runs exactly as written over the caller's view. One that does must
//! have the shape of a protected aggregate, and is rewritten into one: groups of fewer than
//! [`THRESHOLD`] distinct subjects are absent. Everything else is refused, by its structure and never by
//! data. Overlapping protected queries can still be subtracted from each other: that is the work of noise
//! and ledger, which are not here yet.

mod label;
mod protect;

use std::{collections::BTreeMap, sync::Arc};

use arrow::{
    array::{Array, MutableArrayData, RecordBatch, RecordBatchOptions, make_array},
    compute::BatchCoalescer,
    datatypes::{DataType, SchemaRef},
};
use datafusion::{execution::SessionState, logical_expr::LogicalPlan};
use serde::{Deserialize, Serialize};

use crate::{
    dataset::layout::type_word,
    error::{Error, Result},
    policy::Exposure,
    query::Planned,
};

/// The fewest distinct subjects a protected group may stand for (NCHS and ONS publish no cell below 10).
pub const THRESHOLD: u64 = 10;

/// Most cells one protected query may release.
pub const CELLS: usize = 10_000;

/// A plan that passed the gate. Made by [`guard`] alone; the engine runs nothing else.
pub struct Guarded {
    state: SessionState,
    plan: LogicalPlan,
    /// The plan as its caller wrote it, where it is to be shown and not run.
    asked: Option<LogicalPlan>,
    columns: Vec<ColumnExposure>,
    protected: bool,
}

impl Guarded {
    pub(crate) fn state(&self) -> &SessionState {
        &self.state
    }

    pub(crate) fn plan(&self) -> &LogicalPlan {
        &self.plan
    }

    /// The caller's own plan, where showing it is the answer.
    pub(crate) fn asked(&self) -> Option<&LogicalPlan> {
        self.asked.as_ref()
    }

    /// The columns the answer will have.
    pub fn columns(&self) -> &[ColumnExposure] {
        &self.columns
    }

    /// How the answer will be protected.
    pub fn protection(&self) -> Protection {
        Protection::of(self.protected)
    }
}

/// A column of an answer and what its values are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ColumnExposure {
    /// Its name.
    pub name: String,
    /// Its type, in SQL's words.
    #[serde(rename = "type")]
    pub kind: String,
    /// `clear`, `generalised`, `token` or `released`.
    pub exposure: String,
}

/// What was done to an answer before it was let out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Protection {
    /// `exact` or `protected`.
    pub mode: String,
    /// For protected answers: the fewest distinct subjects a group stands for.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub threshold: Option<u64>,
    /// For protected answers: the standard deviation of the noise.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub noise_sd: Option<f64>,
}

impl Protection {
    fn of(protected: bool) -> Self {
        match protected {
            false => Self { mode: "exact".into(), threshold: None, noise_sd: None },
            true => Self { mode: "protected".into(), threshold: Some(THRESHOLD), noise_sd: Some(0.0) },
        }
    }
}

/// What a guarded plan came to, not to be looked at before [`release`].
pub struct Answer {
    guarded: Guarded,
    reads: Reads,
    schema: SchemaRef,
    batches: Vec<RecordBatch>,
}

/// Every field a query reads, as `agency.table.field`, with the exposure at which it is read.
pub type Reads = BTreeMap<String, String>;

impl Answer {
    /// Seals what the engine computed.
    pub(crate) fn seal(guarded: Guarded, reads: Reads, schema: SchemaRef, batches: Vec<RecordBatch>) -> Self {
        Self { guarded, reads, schema, batches }
    }
}

/// An answer that may leave the hub.
#[derive(Debug, Clone)]
pub struct Released {
    /// The columns.
    pub columns: Vec<ColumnExposure>,
    /// What was done to it.
    pub protection: Protection,
    /// The engine's schema of the rows.
    pub schema: SchemaRef,
    /// The rows.
    pub batches: Vec<RecordBatch>,
    /// Things the reader should know.
    pub notices: Vec<String>,
    /// What was read for it.
    pub reads: Reads,
}

impl Released {
    /// How many rows it has.
    pub fn rows(&self) -> usize {
        self.batches.iter().map(RecordBatch::num_rows).sum()
    }
}

/// Looks at a plan as its caller wrote it: lets it pass, rewrites it into a protected one, or refuses.
///
/// # Errors
/// [`Error::Refused`] with the rule, the reason and the nearest query that would pass.
pub fn guard(planned: Planned) -> Result<Guarded> {
    let Planned { state, plan, explain, functions } = planned;
    let labelled = label::label(&plan, functions)?;
    if explain {
        let line = ColumnExposure { name: "plan".into(), kind: "text".into(), exposure: CLEAR.word().into() };
        return Ok(Guarded { state, plan: labelled.plan, asked: Some(plan), columns: vec![line], protected: false });
    }
    let columns = labelled
        .plan
        .schema()
        .fields()
        .iter()
        .zip(&labelled.labels)
        .map(|(field, label)| ColumnExposure {
            name: field.name().clone(),
            kind: type_word(field.data_type()),
            exposure: match label {
                // A number made of tokens, how many there are, is no token.
                Label::Shown(Exposure::Token) if *field.data_type() != DataType::Utf8 => CLEAR.word().into(),
                label => label.word().into(),
            },
        })
        .collect();
    Ok(Guarded { state, columns, plan: labelled.plan, asked: None, protected: labelled.protected })
}

/// Opens an answer.
///
/// # Errors
/// [`Error::TooManyCells`], which counts released cells only.
pub fn release(answer: Answer) -> Result<Released> {
    let Answer { guarded, reads, schema, batches } = answer;
    let batches = in_equal_parts(batches, &schema)?;
    let batches = batches.iter().map(|batch| written_out(batch, &schema)).collect::<Result<Vec<_>>>()?;
    let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
    let cells = guarded.columns.iter().filter(|column| column.exposure == "released").count() * rows;
    if guarded.protected && cells > CELLS {
        return Err(Error::TooManyCells(CELLS));
    }
    let mut columns = guarded.columns;
    // What the engine made of the types is what the rows have.
    for (column, field) in columns.iter_mut().zip(schema.fields()) {
        column.kind = type_word(field.data_type());
    }
    let notices = match guarded.protected {
        true => vec![format!(
            "protected: groups of fewer than {THRESHOLD} distinct people are absent, and values resting on fewer are NULL"
        )],
        false => Vec::new(),
    };
    Ok(Released {
        protection: Protection::of(guarded.protected),
        columns,
        schema: Arc::clone(&schema),
        batches,
        notices,
        reads,
    })
}

/// Rows in each batch of an answer but the last.
const ROWS: usize = 8_192;

/// The rows in batches cut by their number alone: the engine's own cuts tell how rows lie below.
fn in_equal_parts(batches: Vec<RecordBatch>, schema: &SchemaRef) -> Result<Vec<RecordBatch>> {
    if schema.fields().is_empty() {
        return Ok(batches);
    }
    let mut parts = BatchCoalescer::new(Arc::clone(schema), ROWS);
    let mut out = Vec::new();
    for batch in batches {
        parts.push_batch(batch).map_err(Error::internal)?;
        out.extend(std::iter::from_fn(|| parts.next_completed_batch()));
    }
    parts.finish_buffered_batch().map_err(Error::internal)?;
    out.extend(std::iter::from_fn(|| parts.next_completed_batch()));
    Ok(out)
}

/// The batch with nothing in its buffers but what it shows: under a NULL, and before and after a slice,
/// Arrow keeps whatever was there, and writes it into streams.
fn written_out(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch> {
    let rows = batch.num_rows();
    let mut columns = Vec::with_capacity(batch.num_columns());
    for column in batch.columns() {
        let data = column.to_data();
        let mut out = MutableArrayData::new(vec![&data], column.null_count() > 0, rows);
        match column.nulls().filter(|nulls| nulls.null_count() > 0) {
            None => out.try_extend(0, 0, rows).map_err(Error::internal)?,
            Some(nulls) => {
                let mut from = 0;
                for (start, end) in nulls.valid_slices() {
                    out.try_extend_nulls(start - from).map_err(Error::internal)?;
                    out.try_extend(0, start, end).map_err(Error::internal)?;
                    from = end;
                }
                out.try_extend_nulls(rows - from).map_err(Error::internal)?;
            }
        }
        columns.push(make_array(out.freeze()));
    }
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options).map_err(Error::internal)
}

/// What a column of a plan holds, from most to least readable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Label {
    /// The caller's to read, at that exposure.
    Shown(Exposure),
    /// Came out of a protected aggregate.
    Released,
    /// May feed a protected aggregate and nothing else.
    Sealed,
}

impl Label {
    /// What a value computed from both is. The coarsest word wins: what is partly a token is a token.
    fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Shown(one), Self::Shown(two)) => Self::Shown(one.min(two)),
            (one, two) => one.max(two),
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Shown(exposure) => exposure.word(),
            Self::Released => "released",
            Self::Sealed => "aggregate",
        }
    }
}

const CLEAR: Label = Label::Shown(Exposure::Clear);

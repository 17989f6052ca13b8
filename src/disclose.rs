//! The disclosure gate. Looks at a plan before it runs ([`guard`]) and opens what came out of it
//! ([`release`]); nothing else can.
//!
//! A plan that touches no sealed field runs exactly as written over the caller's view. One that does must
//! have the shape of a protected aggregate, and is rewritten into one: cells are summed up over distinct
//! subjects, get noise that follows the set of subjects, and are shown where they stand for enough of them
//! ([`crate::release`]). Everything else is refused, by its structure and never by data.
//!
//! [`label`](self) follows what each column holds through the whole plan; where an aggregate turns out to
//! stand on something sealed, [`Region`](region::Region) takes apart what is below it, [`rules`] look at the
//! parts in one order, [`statistic::Statistic`] says what is to be added up, and [`Cells`] releases it.

mod cells;
mod coarse;
mod extras;
mod label;
mod levels;
mod measure;
pub(crate) mod padding;
mod protect;
pub(crate) mod recheck;
mod region;
mod rules;
mod settings;
mod statistic;

pub(crate) use cells::Cells;
pub use cells::Small;
use label::Labelled;
pub use protect::Reached;
pub use settings::Settings;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use arrow::{
    array::{Array, MutableArrayData, RecordBatch, RecordBatchOptions, make_array},
    compute::BatchCoalescer,
    datatypes::{DataType, SchemaRef},
};
use datafusion::{
    execution::SessionState,
    logical_expr::{EmptyRelation, LogicalPlan},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    dataset::{Dataset, DatasetName, layout::type_word},
    error::{Error, Result},
    policy::{Exposure, View},
    query::{Engine, Planned, defences::Defences},
    release::{
        ledger::Ledger,
        noise::{NOISE_SD, NoiseKey, SPREAD, THRESHOLD},
    },
    store::Snapshot,
};

/// What a hub releases protected numbers with.
pub struct Gate {
    /// The key of the noise.
    pub(crate) noise: NoiseKey,
    /// What has been released.
    pub(crate) ledger: Ledger,
    /// What the policies say about releases.
    pub(crate) settings: Settings,
    /// The defences that stand: all, but in tests.
    pub(crate) defences: Defences,
}

impl Gate {
    /// A gate with that noise and all that was released so far.
    pub fn new(noise: NoiseKey, ledger: Ledger, settings: Settings, defences: Defences) -> Self {
        Self { noise, ledger, settings, defences }
    }

    /// Sees to it that the numbers of subjects are known of all datasets that a question is charged to.
    pub(crate) async fn count_charged(
        &self,
        engine: &Engine,
        tables: &Snapshot,
        view: &View,
        guarded: &Guarded,
    ) -> Result<()> {
        for seen in guarded.charged().filter_map(|name| view.dataset(name)) {
            self.count_subjects(engine, tables, &seen.dataset).await?;
        }
        Ok(())
    }

    /// Sees to it that the number of a dataset's subjects is known, on which it depends how much may be
    /// released: counted when the first number is released of it, and again when it has grown.
    async fn count_subjects(&self, engine: &Engine, tables: &Snapshot, dataset: &Dataset) -> Result<()> {
        let name = dataset.name.to_string();
        let version = tables.published_version(&dataset.name).unwrap_or(0);
        let known = self.ledger.population(&name)?;
        // A fifth more versions, roughly a fifth more people.
        if known.is_some_and(|(counted, _)| version <= counted + counted / 5) {
            return Ok(());
        }
        let subjects = engine.count_subjects(tables, dataset).await?;
        self.ledger.remember_population(&name, version, subjects)
    }
}

/// How a caller would like a protected answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Wishes {
    /// Whether each number comes with the ends of its interval.
    pub interval: bool,
    /// What becomes of cells that are too small.
    pub small: Small,
}

/// Most numbers one protected query may release.
pub const CELLS: usize = 10_000;

/// A plan that passed the gate. Made by [`guard`] alone; the engine runs nothing else.
#[derive(Clone)]
pub struct Guarded {
    state: Arc<SessionState>,
    plan: LogicalPlan,
    /// The plan as its caller wrote it, where it is to be shown and not run.
    asked: Option<LogicalPlan>,
    columns: Vec<ColumnExposure>,
    protected: bool,
    charged: BTreeSet<DatasetName>,
    timeless: bool,
}

impl Guarded {
    /// The same in a session without the tables it was planned over, whose rows it would keep.
    pub(crate) fn without_tables(&self, state: Arc<SessionState>) -> Self {
        let plan = LogicalPlan::EmptyRelation(EmptyRelation {
            produce_one_row: false,
            schema: Arc::clone(self.plan.schema()),
        });
        Self { state, plan, ..self.clone() }
    }

    /// Whether it says the same whenever it is asked, of the same rows.
    pub(crate) fn is_timeless(&self) -> bool {
        self.timeless
    }

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

    /// The datasets whose sealed fields the answer is charged to.
    pub fn charged(&self) -> impl Iterator<Item = &DatasetName> {
        self.charged.iter()
    }

    /// Whether a protected aggregate is in it: by its structure, and not by data.
    pub fn is_protected(&self) -> bool {
        self.protected
    }

    /// How the answer will be protected.
    pub fn protection(&self) -> Protection {
        Protection::of(self.protected)
    }
}

/// A column of an answer and what its values are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ColumnExposure {
    /// Its name.
    pub name: String,
    /// Its type, in SQL's words.
    #[serde(rename = "type")]
    pub kind: String,
    /// `clear`, `generalised`, `token` or `released`.
    pub exposure: String,
    /// For released numbers: what its noise is like.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub noise: Option<Noise>,
    /// The sealed fields that reach it, and how: by `value`, `key`, `filter`, `link` or `rows`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub reached_by: Vec<Reached>,
}

/// What the noise on a released number is like.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Noise {
    /// What the number is: `count` of people, `rows`, `sum`, `mean`, `share`, `spread`, `quantile`, `values`, or `computed` of such.
    pub of: String,
    /// Its standard deviation, where it is one for all rows; ask for intervals where it is not.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub sd: Option<f64>,
}

/// What was done to an answer before it was let out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
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
            true => Self {
                mode: "protected".into(),
                threshold: u64::try_from(THRESHOLD).ok(),
                // As people read it: the exact figure is the root of 2.
                noise_sd: Some((NOISE_SD * 100.0).round() / 100.0),
            },
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
pub fn guard(planned: Planned, gate: &Arc<Gate>, wishes: Wishes) -> Result<Guarded> {
    let Planned { state, plan, explain, functions, timeless, .. } = planned;
    let state = Arc::new(state);
    let labelled = label::label(&plan, functions, gate, wishes)?;
    if explain {
        let columns = vec![ColumnExposure {
            name: "plan".into(),
            kind: "text".into(),
            exposure: CLEAR.word().into(),
            noise: None,
            reached_by: Vec::new(),
        }];
        let charged = BTreeSet::new();
        let (plan, asked) = (labelled.plan, Some(plan));
        return Ok(Guarded { state, plan, asked, columns, protected: false, charged, timeless: false });
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
            noise: labelled.noise(*label),
            reached_by: labelled.reached_by(*label),
        })
        .collect();
    let Labelled { plan, protected, charged, .. } = labelled;
    Ok(Guarded { state, columns, plan, asked: None, protected, charged, timeless })
}

/// Opens an answer.
///
/// # Errors
/// [`Error::TooManyCells`], which counts released cells only.
pub fn release(answer: Answer) -> Result<Released> {
    let Answer { guarded, reads, schema, batches } = answer;
    let batches = in_equal_parts(batches, &schema)?;
    let batches = batches.iter().map(|batch| written_out(batch, &schema)).collect::<Result<Vec<_>>>()?;
    let mut columns = guarded.columns;
    // What the engine made of the types is what the rows have.
    for (column, field) in columns.iter_mut().zip(schema.fields()) {
        column.kind = type_word(field.data_type());
    }
    let notices = match guarded.protected {
        true => vec![format!(
            "protected: counts carry noise (standard deviation {:.2}, at most {SPREAD}), groups below {THRESHOLD} are \
             absent and values resting on fewer are NULL, rows that name nobody are left out, and totals need not equal \
             the sums of their parts",
            NOISE_SD
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Label {
    /// The caller's to read, at that exposure.
    Shown(Exposure),
    /// Came out of a protected aggregate, reached by sealed fields.
    Released(label::Lineage),
    /// May feed a protected aggregate and nothing else.
    Sealed,
}

impl Label {
    /// What a value computed from both is. The coarsest word wins: what is partly a token is a token.
    fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Shown(one), Self::Shown(two)) => Self::Shown(one.min(two)),
            (Self::Released(one), Self::Released(two)) => Self::Released(one.and(two)),
            (Self::Sealed, _) | (_, Self::Sealed) => Self::Sealed,
            (released @ Self::Released(_), _) | (_, released) => released,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Shown(exposure) => exposure.word(),
            Self::Released(_) => "released",
            Self::Sealed => "aggregate",
        }
    }
}

const CLEAR: Label = Label::Shown(Exposure::Clear);

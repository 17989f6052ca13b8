//! Cells of a protected aggregate on their way out: which are shown, with what numbers, held against everything
//! that was released before and charged to the ledger. All cells of a query are decided under one lock, in the
//! order of their keys, and nothing leaves before the ledger is on disk.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use arrow::{
    array::{Array, ArrayRef, AsArray, RecordBatch, new_empty_array},
    datatypes::{DataType, Field as ArrowField, SchemaRef},
    row::{RowConverter, SortField},
};
use datafusion::common::{DFSchema, DFSchemaRef, ScalarValue};
use ring::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    CELLS, Gate, extras,
    levels::{self, Ladder},
    statistic::{Formula, Moments},
};
use crate::{
    dataset::layout::WIDTH,
    error::{Error, Result},
    query::defences::Defence,
    release::{
        cell::{Cell, Measure, Set},
        decide,
        ledger::Session,
        noise::{EDGES, FLOOR, NOISE_SD, THRESHOLD},
        representative::Outcome,
    },
};

/// What becomes of cells that are too small to be shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Small {
    /// They are absent, as cells of nobody are.
    #[default]
    LeaveOut,
    /// All of them together are one row more, where that is large enough itself.
    Merge,
    /// Those of one division together are a row at that division, the smallest that is large enough.
    RollUp,
}

/// A slot of a statistic, as cells need to know it.
pub struct SlotKind {
    /// The kind of cells it is held against.
    pub kind: String,
    /// Whether each subject counts once.
    pub is_people: bool,
    /// Whether it counts, and does not add up values.
    pub is_count: bool,
    /// Whether it counts a part of the cell, picked by something sensitive.
    pub is_sensitive_part: bool,
}

/// What is asked of the cells of one protected aggregate.
pub struct Cells {
    pub(super) gate: Arc<Gate>,
    /// The columns of the aggregate as its caller wrote it.
    pub(super) schema: DFSchemaRef,
    pub(crate) keys: usize,
    /// Within what subjects can be told apart.
    pub(super) domain: String,
    pub(super) slots: Vec<SlotKind>,
    pub(crate) formulas: Vec<(Formula, DataType)>,
    /// For each formula, what it is in words of the region, and the sealed fields that reach it.
    pub(super) charges: Vec<(String, BTreeSet<String>)>,
    /// What tells this region from any other.
    pub(super) definition: [u8; 32],
    /// The sealed fields that reach every number.
    pub(super) charged: BTreeSet<String>,
    /// Which keys are not sensitive: by these a cell finds the whole that it is a part of.
    pub(super) open_keys: Vec<bool>,
    /// Whether cells are held against the whole that they are a part of.
    pub(super) whole: bool,
    pub(super) small: Small,
    pub(super) interval: bool,
    pub(super) ladder: Option<Ladder>,
}

/// A group as the engine summed it up.
struct Group {
    keys: Vec<ScalarValue>,
    /// What tells it from the other groups of the query, and the order in which they are decided.
    text: Vec<u8>,
    cell: Cell,
    level: Option<String>,
}

/// A row of the answer.
struct Row {
    keys: Vec<ScalarValue>,
    numbers: Vec<Option<Number>>,
    level: Option<String>,
}

/// A released number.
#[derive(Debug, Clone, Copy)]
struct Number {
    value: Value,
    /// The standard deviation of its noise, where it is known.
    sd: Option<f64>,
}

#[derive(Debug, Clone, Copy)]
enum Value {
    /// So many units of so many decimal digits.
    Whole(i128, u8),
    Real(f64),
}

/// What became of a group.
enum Verdict {
    Shown(Row),
    /// Too few people stand behind it.
    Small,
    /// Nearly all of the whole that it is a part of: it would say of each of them what sets the part apart.
    Telling,
}

/// The part of all values that the released bars of a histogram must hold for a quantile to be read off it.
const HISTOGRAM: f64 = 0.9;

/// Half the width of a 95 % interval, in standard deviations of a normal distribution.
const HALF: f64 = 1.96;

impl Cells {
    /// The columns that are handed out: those of the aggregate, then extra ones that were wished for.
    ///
    /// # Errors
    /// Where two of them have one name.
    pub fn schema_released(&self) -> datafusion::common::Result<DFSchemaRef> {
        let mut columns: Vec<_> = self
            .schema
            .iter()
            // Anything may be absent, whatever the aggregate promised.
            .map(|(qualifier, field)| (qualifier.cloned(), Arc::new(field.as_ref().clone().with_nullable(true))))
            .collect();
        for (at, (_, kind)) in self.formulas.iter().enumerate().filter(|_| self.interval) {
            let ends = extras::ends(at).map(|name| (None, Arc::new(ArrowField::new(name, kind.clone(), true))));
            columns.extend(ends);
        }
        if self.small != Small::LeaveOut {
            columns.push((None, Arc::new(ArrowField::new(extras::LEVEL, DataType::Utf8, true))));
        }
        Ok(Arc::new(DFSchema::new_with_metadata(columns, self.schema.metadata().clone())?))
    }

    /// Whether the wholes that cells are parts of are needed too.
    pub fn compares_with_whole(&self) -> bool {
        self.whole && self.gate.defences.stand(Defence::Homogeneity)
    }

    /// Decides all cells and charges what is released.
    ///
    /// # Errors
    /// [`Error::TooManyCells`], which counts released numbers only, and the refusal of a field of which no more
    /// may be released.
    pub fn release(&self, inputs: &[Vec<RecordBatch>], schema: &SchemaRef) -> Result<RecordBatch> {
        let wholes = match inputs.get(1) {
            Some(batches) => Some(self.wholes(batches)?),
            None => None,
        };
        let mut groups = self.groups(inputs.first().map_or(&[], Vec::as_slice), self.keys)?;
        groups.sort_by(|one, other| one.text.cmp(&other.text));
        let mut session = self.gate.ledger.session();
        let mut charges = Charges::default();
        let (mut rows, mut small) = (Vec::new(), Vec::new());
        for group in groups {
            match self.verdict(&group, wholes.as_ref(), &mut session, &mut charges) {
                Verdict::Shown(row) => rows.push(row),
                Verdict::Small => small.push(group),
                Verdict::Telling => {}
            }
        }
        match (self.small, self.ladder) {
            (Small::LeaveOut, _) | (Small::RollUp, None) => {}
            (Small::Merge, _) => rows.extend(self.merged(&small, &mut session, &mut charges)),
            (Small::RollUp, Some(ladder)) => self.rolled_up(small, ladder, &mut rows, &mut session, &mut charges),
        }
        let numbers: usize = rows.iter().map(|row| row.numbers.iter().flatten().count()).sum();
        if numbers > CELLS {
            return Err(Error::TooManyCells(CELLS));
        }
        self.charge(charges, &mut session)?;
        session.commit()?;
        self.batch(&rows, schema)
    }

    /// How many people each whole seems to have: noise and all, so that no more is told than a release would.
    fn wholes(&self, batches: &[RecordBatch]) -> Result<HashMap<Vec<ScalarValue>, i64>> {
        let keys = self.open_keys.iter().filter(|open| **open).count();
        let groups = self.groups(batches, keys)?;
        let people = |group: Group| {
            let people = decide::people(group.cell.summed().people(), &self.gate.noise, &self.domain)?;
            Some((group.keys, people))
        };
        Ok(groups.into_iter().filter_map(people).collect())
    }

    fn groups(&self, batches: &[RecordBatch], keys: usize) -> Result<Vec<Group>> {
        let Some(first) = batches.first() else { return Ok(Vec::new()) };
        let order = first.columns()[..keys].iter().map(|column| SortField::new(column.data_type().clone())).collect();
        let order = RowConverter::new(order).map_err(Error::internal)?;
        // What nobody will see of so few need not be kept: there may be very many of them.
        let keeps_few = keys == 0 || self.small != Small::LeaveOut || !self.gate.defences.stand(Defence::Threshold);
        let mut groups = Vec::new();
        for batch in batches {
            let columns = &batch.columns()[..keys];
            let texts = match keys {
                0 => None,
                _ => Some(order.convert_columns(columns).map_err(Error::internal)?),
            };
            let cells = batch.column(keys).as_binary_opt::<i32>();
            let cells = cells.ok_or_else(|| Error::internal("cells are not binary"))?;
            for row in (0..batch.num_rows()).filter(|row| cells.is_valid(*row)) {
                let cell = Cell::from_bytes(cells.value(row)).ok_or_else(|| Error::internal("a cell that is none"))?;
                if !keeps_few && cell.subjects() < FLOOR {
                    continue;
                }
                let keys = columns.iter().map(|column| ScalarValue::try_from_array(column, row));
                groups.push(Group {
                    keys: keys.collect::<Result<_, _>>().map_err(Error::internal)?,
                    text: texts.as_ref().map(|texts| texts.row(row).as_ref().to_vec()).unwrap_or_default(),
                    cell,
                    level: self.ladder.map(|ladder| levels::word(ladder.width).to_owned()),
                });
            }
        }
        Ok(groups)
    }

    fn verdict(
        &self,
        group: &Group,
        wholes: Option<&HashMap<Vec<ScalarValue>, i64>>,
        session: &mut Session<'_>,
        charges: &mut Charges,
    ) -> Verdict {
        let nothing = || Row { keys: group.keys.clone(), numbers: vec![None; self.formulas.len()], level: None };
        // A cell of too few is not even added up.
        if group.cell.subjects() < FLOOR && self.gate.defences.stand(Defence::Threshold) {
            return if self.keys == 0 { Verdict::Shown(nothing()) } else { Verdict::Small };
        }
        let summed = group.cell.summed();
        let Some(people) = self.people(summed.people(), session) else {
            return if self.keys == 0 { Verdict::Shown(nothing()) } else { Verdict::Small };
        };
        if let Some(wholes) = wholes {
            let open = group.keys.iter().zip(&self.open_keys).filter(|(_, open)| **open);
            let whole = wholes.get(&open.map(|(key, _)| key.clone()).collect::<Vec<_>>());
            if whole.is_none_or(|whole| i128::from(*whole) - people.value < i128::from(THRESHOLD)) {
                return if self.keys == 0 { Verdict::Shown(nothing()) } else { Verdict::Telling };
            }
        }
        if self.formulas.is_empty() {
            charges.add(&self.charged, self.cell_definition(&group.text, "people"));
        }
        let mut outcomes = Vec::with_capacity(self.slots.len());
        for (slot, measure) in self.slots.iter().zip(summed.measures()) {
            outcomes.push(match slot.is_sensitive_part && self.is_telling(measure.set(), people) {
                true => None,
                false => self.outcome(slot, measure, session),
            });
        }
        let mut numbers = Vec::with_capacity(self.formulas.len());
        for ((formula, _), (text, fields)) in self.formulas.iter().zip(&self.charges) {
            let number = evaluate(formula, people, &outcomes);
            if number.is_some() {
                charges.add(fields, self.cell_definition(&group.text, text));
            }
            numbers.push(number);
        }
        Verdict::Shown(Row { keys: group.keys.clone(), numbers, level: group.level.clone() })
    }

    /// Whether a part is so much of its cell that it would say of each of its people what sets the part apart.
    fn is_telling(&self, part: &Set, cell: Outcome) -> bool {
        if !self.gate.defences.stand(Defence::Homogeneity) {
            return false;
        }
        let part = decide::people(part, &self.gate.noise, &self.domain).map_or(0, i128::from);
        part > 0 && cell.value - part < i128::from(THRESHOLD)
    }

    /// How many people a set is said to be; nothing where it is withheld.
    fn people(&self, set: &Set, session: &mut Session<'_>) -> Option<Outcome> {
        let fresh = || {
            let value = match self.without_noise(set) {
                Some(shown) => shown.then_some(i64::try_from(set.subjects()).ok()?)?,
                None => decide::people(set, &self.gate.noise, &self.domain)?,
            };
            Some(Outcome { value: value.into(), sd: NOISE_SD })
        };
        self.settled("people", set, session, fresh)
    }

    fn outcome(&self, slot: &SlotKind, measure: &Measure, session: &mut Session<'_>) -> Option<Outcome> {
        if slot.is_people {
            return self.people(measure.set(), session);
        }
        let kind = format!("{} {}", self.domain, slot.kind);
        let fresh = || {
            if let Some(shown) = self.without_noise(measure.set()) {
                return shown.then_some(Outcome { value: measure.total(), sd: 0.0 });
            }
            let total = match slot.is_count {
                true => decide::rows(measure, &self.gate.noise, &self.domain, &kind)?,
                false => decide::sum(measure, &self.gate.noise, &self.domain, &kind)?,
            };
            Some(Outcome { value: total.value, sd: total.sd })
        };
        self.settled(&slot.kind, measure.set(), session, fresh)
    }

    /// Where a defence is taken down that makes noise or needs it: whether the bare number is shown.
    fn without_noise(&self, set: &Set) -> Option<bool> {
        let stand = |defence| self.gate.defences.stand(defence);
        match (stand(Defence::Noise), stand(Defence::Threshold)) {
            (true, true) => None,
            (_, false) => Some(true),
            (false, true) => Some(i64::try_from(set.subjects()).is_ok_and(|subjects| subjects >= THRESHOLD)),
        }
    }

    /// What was released of a set that differs from this one in a few people, or what is `fresh`. So nobody can
    /// tell two such sets apart, and whoever is in one and not in the other stays unknown.
    fn settled(
        &self,
        kind: &str,
        set: &Set,
        session: &mut Session<'_>,
        fresh: impl FnOnce() -> Option<Outcome>,
    ) -> Option<Outcome> {
        if !self.gate.defences.stand(Defence::Snap) {
            return fresh();
        }
        if set.subjects() < FLOOR {
            return None;
        }
        let kind = format!("{} {kind}", self.domain);
        let widest = FLOOR + EDGES - 1;
        let near = session.near(&kind, set.subjects(), widest).filter(|known| {
            // Most are far, which is quickly seen, and where near ends is not.
            let within = |reach: u64| set.sketch().distance_below(&known.sketch, usize::try_from(reach).unwrap_or(0));
            if !within(widest) {
                return false;
            }
            let reach = FLOOR + self.gate.noise.edge(known.id, set.check(), set.subjects());
            known.subjects.abs_diff(set.subjects()) < reach && within(reach)
        });
        if let Some(oldest) = near.min_by_key(|known| known.id) {
            return oldest.outcome;
        }
        let outcome = fresh();
        session.add(&kind, set.subjects(), set.sketch().clone(), outcome);
        outcome
    }

    /// All small groups as one row without keys.
    fn merged(&self, small: &[Group], session: &mut Session<'_>, charges: &mut Charges) -> Option<Row> {
        if small.len() < 2 {
            return None;
        }
        let keys = small.first()?.keys.iter().map(|key| ScalarValue::try_from(&key.data_type()));
        let group = Group {
            keys: keys.collect::<Result<_, _>>().ok()?,
            text: b"all small groups".to_vec(),
            cell: self.union(small.iter())?,
            level: Some("all small groups".to_owned()),
        };
        match self.verdict(&group, None, session, charges) {
            Verdict::Shown(row) => Some(row),
            Verdict::Small | Verdict::Telling => None,
        }
    }

    /// Small groups of one division together, from the smallest divisions to the largest.
    fn rolled_up(
        &self,
        small: Vec<Group>,
        ladder: Ladder,
        rows: &mut Vec<Row>,
        session: &mut Session<'_>,
        charges: &mut Charges,
    ) {
        let mut waiting = small;
        for width in levels::above(ladder.width) {
            let mut divisions: BTreeMap<Vec<String>, Vec<Group>> = BTreeMap::new();
            for mut group in waiting {
                let Some(code) = group.keys[ladder.key].try_as_str().flatten() else { continue };
                let Some(above) = code.get(..width).map(|code| ScalarValue::Utf8(Some(code.to_owned()))) else {
                    continue;
                };
                let kind = group.keys[ladder.key].data_type();
                let Ok(above) = above.cast_to(&kind) else { continue };
                group.keys[ladder.key] = above;
                let name = group.keys.iter().map(|key| format!("{key:?}")).collect();
                divisions.entry(name).or_default().push(group);
            }
            waiting = Vec::new();
            for (name, groups) in divisions {
                // What is not known one by one any more was not small.
                let (Some(cell), Some(first)) = (self.union(groups.iter()), groups.first()) else { continue };
                let group = Group {
                    keys: first.keys.clone(),
                    text: format!("small groups of {name:?}").into_bytes(),
                    cell,
                    level: Some(format!("rest of {}", levels::word(width))),
                };
                match self.verdict(&group, None, session, charges) {
                    Verdict::Shown(row) => rows.push(row),
                    Verdict::Small | Verdict::Telling => waiting.push(group),
                }
            }
        }
    }

    fn union<'a>(&self, groups: impl Iterator<Item = &'a Group>) -> Option<Cell> {
        Cell::union(groups.map(|group| &group.cell), |slot| self.slots.get(slot).is_some_and(|slot| slot.is_people))
    }

    fn cell_definition(&self, text: &[u8], slot: &str) -> [u8; WIDTH] {
        let mut digest = Context::new(&SHA256);
        digest.update(&self.definition);
        for part in [text, slot.as_bytes()] {
            digest.update(&(part.len() as u64).to_le_bytes());
            digest.update(part);
        }
        let mut out = [0; WIDTH];
        out.copy_from_slice(&digest.finish().as_ref()[..WIDTH]);
        out
    }

    fn charge(&self, charges: Charges, session: &mut Session<'_>) -> Result<()> {
        if !self.gate.defences.stand(Defence::Ledger) {
            return Ok(());
        }
        for (column, definitions) in charges.0 {
            let mut fresh = false;
            for definition in definitions {
                fresh |= session.charge(&column, definition);
            }
            if fresh && session.charged(&column) > self.gate.most_cells(&column)? {
                return Err(Error::refused(
                    "protected-spent",
                    format!("as many protected numbers as may be have been released of `{column}`, over all callers"),
                    "ask again what was asked before, which stays free, ask for fewer or larger groups, or ask the owner",
                ));
            }
        }
        Ok(())
    }

    fn batch(&self, rows: &[Row], schema: &SchemaRef) -> Result<RecordBatch> {
        let mut columns = Vec::with_capacity(schema.fields().len());
        let kinds = schema.fields().iter().map(|field| field.data_type());
        let mut kinds = kinds.into_iter();
        let mut push = |values: Vec<ScalarValue>| -> Result<()> {
            let kind = kinds.next().ok_or_else(|| Error::internal("a released column without a type"))?;
            columns.push(column(values, kind)?);
            Ok(())
        };
        for key in 0..self.keys {
            push(rows.iter().map(|row| row.keys[key].clone()).collect())?;
        }
        let numbers = |at: usize, kind: &DataType, pick: &dyn Fn(Number) -> Option<Value>| {
            let number =
                |row: &Row| row.numbers[at].and_then(pick).map_or_else(|| null(kind), |value| scalar(value, kind));
            rows.iter().map(number).collect::<Vec<_>>()
        };
        for (at, (_, kind)) in self.formulas.iter().enumerate() {
            push(numbers(at, kind, &|number| Some(number.value)))?;
        }
        for (at, (_, kind)) in self.formulas.iter().enumerate().filter(|_| self.interval) {
            push(numbers(at, kind, &|number| number.end(-1.0)))?;
            push(numbers(at, kind, &|number| number.end(1.0)))?;
        }
        if self.small != Small::LeaveOut {
            push(rows.iter().map(|row| ScalarValue::Utf8(row.level.clone())).collect())?;
        }
        RecordBatch::try_new(Arc::clone(schema), columns).map_err(Error::internal)
    }
}

impl Gate {
    /// How many numbers may be released of a sealed field.
    fn most_cells(&self, column: &str) -> Result<u64> {
        let dataset = column.rsplit_once('.').map_or(column, |(dataset, _)| dataset);
        let subjects = self.ledger.population(dataset)?.map_or(0, |(_, subjects)| subjects);
        // Two figures of it are enough, so that the end of the ledger does not count people.
        let figures = 10_u64.checked_pow(subjects.checked_ilog10().unwrap_or(0).saturating_sub(1)).unwrap_or(1);
        let subjects = subjects - subjects % figures;
        let share = (subjects as f64 * self.settings.cells_per_subject) as u64;
        Ok(share.max(self.settings.cells_at_least))
    }
}

/// What a query is charged for, by column.
#[derive(Default)]
struct Charges(BTreeMap<String, BTreeSet<[u8; WIDTH]>>);

impl Charges {
    fn add(&mut self, columns: &BTreeSet<String>, definition: [u8; WIDTH]) {
        for column in columns {
            self.0.entry(column.clone()).or_default().insert(definition);
        }
    }
}

impl Number {
    /// One end of its interval.
    fn end(self, side: f64) -> Option<Value> {
        let half = side * HALF * self.sd?;
        Some(match self.value {
            Value::Whole(units, digits) => {
                let unit = 10_f64.powi(-i32::from(digits));
                Value::Whole(units.saturating_add(outward(half / unit)), digits)
            }
            Value::Real(value) => Value::Real(value + half),
        })
    }
}

/// Away from zero to the next whole number.
fn outward(number: f64) -> i128 {
    (number.abs().ceil() * number.signum()) as i128
}

/// Works a formula out of released numbers; nothing where one of them is withheld.
fn evaluate(formula: &Formula, people: Outcome, slots: &[Option<Outcome>]) -> Option<Number> {
    let slot = |at: usize| slots.get(at).copied().flatten();
    let count = |outcome: Outcome| Number { value: Value::Whole(outcome.value, 0), sd: Some(outcome.sd) };
    match formula {
        Formula::People => Some(count(people)),
        Formula::Count(at, 1.0) => slot(*at).map(count),
        Formula::Count(at, times) => {
            let outcome = slot(*at)?;
            Some(Number { value: Value::Real(outcome.value as f64 * times), sd: Some(outcome.sd * times.abs()) })
        }
        Formula::Released(values) => {
            let released = values.iter().filter(|at| slot(**at).is_some()).count();
            Some(Number { value: Value::Whole(i128::try_from(released).ok()?, 0), sd: None })
        }
        Formula::Share(part, whole, times) => {
            let (part, whole) = (slot(*part)?, slot(*whole)?);
            let (value, sd) = quotient(part, whole)?;
            Some(Number { value: Value::Real(value * times), sd: Some(sd * times.abs()) })
        }
        Formula::Sum(of) => {
            let (sum, count) = (slot(of.sum)?, slot(of.count)?);
            let value = sum.value.checked_add(of.centre.checked_mul(count.value)?)?;
            let sd = sum.sd.hypot(of.centre as f64 * count.sd) * unit(*of);
            Some(Number { value: Value::Whole(value, of.digits), sd: Some(sd) })
        }
        Formula::Mean(of) => {
            let (mean, sd) = quotient(slot(of.sum)?, slot(of.count)?)?;
            Some(Number { value: Value::Real((mean + of.centre as f64) * unit(*of)), sd: Some(sd * unit(*of)) })
        }
        Formula::Spread { of, squares, sample, root } => {
            let (sum, count, squares) = (slot(of.sum)?, slot(of.count)?, slot(*squares)?);
            let moments = decide::Moments {
                people: i64::try_from(people.value).ok()?,
                count: count.value as f64,
                sum: sum.value as f64,
                squares: squares.value as f64,
            };
            let spread = if *sample { decide::Spread::Sample } else { decide::Spread::Population };
            let variance = decide::variance(moments, spread)? * unit(*of).powi(2);
            Some(Number { value: Value::Real(if *root { variance.sqrt() } else { variance }), sd: None })
        }
        Formula::Quantile { bins, whole, at } => {
            let bars = bins.iter().filter_map(|(low, high, count)| {
                Some(decide::Bar {
                    low: low.unwrap_or(f64::NEG_INFINITY),
                    high: high.unwrap_or(f64::INFINITY),
                    count: slot(*count)?.value as f64,
                })
            });
            let bars: Vec<_> = bars.collect();
            // Where bars are withheld, those that are left say little of the whole.
            let shown: f64 = bars.iter().map(|bar| bar.count).sum();
            if shown < slot(*whole)?.value as f64 * HISTOGRAM {
                return None;
            }
            let value = decide::quantile(&bars, *at)?;
            Some(Number { value: Value::Real(value), sd: None })
        }
    }
}

fn unit(of: Moments) -> f64 {
    10_f64.powi(-i32::from(of.digits))
}

/// One released number by another, and the standard deviation of that to first order.
fn quotient(part: Outcome, whole: Outcome) -> Option<(f64, f64)> {
    if whole.value <= 0 {
        return None;
    }
    let (n, value) = (whole.value as f64, part.value as f64 / whole.value as f64);
    Some((value, (part.sd / n).hypot(value * whole.sd / n)))
}

fn null(kind: &DataType) -> ScalarValue {
    ScalarValue::try_from(kind).unwrap_or(ScalarValue::Null)
}

/// A number in the type of its column; NULL where it does not fit.
fn scalar(value: Value, kind: &DataType) -> ScalarValue {
    let in_digits = |digits: i32| match value {
        Value::Whole(units, of) => rescaled(units, digits - i32::from(of)),
        Value::Real(real) => {
            let units = (real * 10_f64.powi(digits)).round();
            (units.is_finite() && units.abs() < 1e38).then_some(units as i128)
        }
    };
    match kind {
        DataType::Float64 => ScalarValue::Float64(Some(match value {
            Value::Whole(units, digits) => units as f64 / 10_f64.powi(i32::from(digits)),
            Value::Real(real) => real,
        })),
        DataType::Decimal128(precision, scale) => {
            ScalarValue::Decimal128(in_digits(i32::from(*scale)), *precision, *scale)
        }
        kind => match in_digits(0).map(i64::try_from) {
            Some(Ok(whole)) => ScalarValue::Int64(Some(whole)).cast_to(kind).unwrap_or_else(|_| null(kind)),
            _ => null(kind),
        },
    }
}

/// Units in units of so many digits more, rounded half away from zero.
fn rescaled(units: i128, digits: i32) -> Option<i128> {
    let factor = 10_i128.checked_pow(digits.unsigned_abs())?;
    match digits {
        0.. => units.checked_mul(factor),
        _ => Some((units.abs().checked_add(factor / 2)? / factor) * units.signum()),
    }
}

fn column(values: Vec<ScalarValue>, kind: &DataType) -> Result<ArrayRef> {
    if values.is_empty() {
        return Ok(new_empty_array(kind));
    }
    ScalarValue::iter_to_array(values).map_err(Error::internal)
}

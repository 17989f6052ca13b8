//! Checks uploads against their contract: `Upload` in, `Checked` out, with a word on every bad row.
//!
//! A file is decoded slice by slice; in each, columns are canonicalised and checked, rows with a fault are set
//! aside by number and reason, and the rest goes on. Slices are checked apart from each other, so that all cores
//! can be at it. Nothing here touches the disk or keeps a value of a row it refused.

pub mod canonical;
mod column;
mod digest;
mod file;
mod format;
mod hostile;
mod limits;
mod revision;
mod text;

use std::{collections::BTreeMap, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch, RecordBatchOptions, StringArray},
    compute::filter,
    datatypes::{Field as ArrowField, Schema, SchemaRef},
};
use ring::hmac;

pub use file::plain_rows;
pub use format::Format;
pub use limits::Limits;

use crate::{
    dataset::{
        Dataset, Field, FieldClass,
        division::Divisions,
        layout::{self, WIDTH, arrow_type},
        minor_version,
        receipt::RejectedRow,
        scope::{Row, Scope, Value},
    },
    error::{Error, Result},
    spool::Body,
};

/// A file as it came in.
pub struct Upload {
    /// What it says it is rows of.
    pub dataset: Arc<Dataset>,
    /// The agency that pushes: the source of every row.
    pub source: String,
    /// How it is written.
    pub format: Format,
    /// The contract version its sender says it follows, where it says so outside the file.
    pub contract_version: Option<String>,
    /// The file.
    pub body: Body,
}

/// What rows are checked against besides their contract.
pub struct Context<'a> {
    /// The division codes known now.
    pub divisions: &'a Divisions,
    /// The rows this caller may push.
    pub scope: &'a Scope,
    /// The key of row digests.
    pub digest_key: &'a hmac::Key,
}

/// Why a row was rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// A required field is empty.
    Missing,
    /// The value is not of the field's type.
    Type,
    /// The value has not the shape of its kind.
    Format,
    /// An identifier fails its check digit.
    CheckDigit,
    /// The value is none of those the contract lists.
    NotAllowed,
    /// A number is outside its bounds.
    OutOfRange,
    /// The division code is not in the divisions dataset, or not of the level asked for.
    UnknownDivision,
    /// The row is none of those this caller may push, by its territory or what it says.
    OutsideScope,
    /// The row names somebody whose records were erased.
    Erased,
}

impl Reason {
    /// The word receipts use.
    pub fn word(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Type => "type",
            Self::Format => "format",
            Self::CheckDigit => "check_digit",
            Self::NotAllowed => "not_allowed",
            Self::OutOfRange => "out_of_range",
            Self::UnknownDivision => "unknown_division",
            Self::OutsideScope => "outside_scope",
            Self::Erased => "erased",
        }
    }
}

/// What was found in a file or a part of it, without values.
#[derive(Debug, Default, Clone)]
pub struct Findings {
    /// Data rows.
    pub received: u64,
    /// Rejected rows by reason.
    pub rejections: BTreeMap<String, u64>,
    /// The first rejected rows.
    pub rejected_rows: Vec<RejectedRow>,
    /// Rows in which something was mended or is odd, by kind.
    pub warnings: BTreeMap<String, u64>,
}

impl Findings {
    /// How many rows were rejected.
    pub fn rejected(&self) -> u64 {
        self.rejections.values().sum()
    }

    /// Rejects a row, numbered over the whole file.
    pub(crate) fn reject(&mut self, row: u64, field: String, reason: Reason) {
        *self.rejections.entry(reason.word().into()).or_default() += 1;
        if self.rejected_rows.len() < LISTED_ROWS {
            self.rejected_rows.push(RejectedRow { row, field, reason: reason.word().into() });
        }
    }

    fn warn(&mut self, kind: &str, rows: u64) {
        if rows > 0 {
            *self.warnings.entry(kind.into()).or_default() += rows;
        }
    }

    /// Takes in what was found in another part of the file, before this one or after.
    pub fn take_in(&mut self, other: Self) {
        self.received += other.received;
        for (reason, rows) in other.rejections {
            *self.rejections.entry(reason).or_default() += rows;
        }
        for (kind, rows) in other.warnings {
            *self.warnings.entry(kind).or_default() += rows;
        }
        // Each part lists its own first rows, so the first of the whole are among them.
        self.rejected_rows.extend(other.rejected_rows);
        self.rejected_rows.sort_unstable_by_key(|rejected| rejected.row);
        self.rejected_rows.truncate(LISTED_ROWS);
    }
}

/// How many rejected rows a receipt lists one by one.
pub const LISTED_ROWS: usize = 1_000;

/// A file that was opened and fits its contract, to be taken slice by slice.
pub struct Slices {
    dataset: Arc<Dataset>,
    source: String,
    reader: file::Reader,
    taken: u64,
    follows_older: bool,
}

/// Some consecutive rows of a file, as they were written.
pub struct Slice {
    dataset: Arc<Dataset>,
    source: String,
    rows: RecordBatch,
    first_row: u64,
    follows_older: bool,
}

/// Rows that fit their contract, identifiers in canonical form and still readable. Has no printed form;
/// made by [`check`] alone and good for [`crate::pseudonym::Replacing::replace`] alone.
pub struct Checked {
    dataset: Arc<Dataset>,
    rows: RecordBatch,
    digests: Vec<[u8; WIDTH]>,
    numbers: Vec<u64>,
}

impl Checked {
    pub(crate) fn into_parts(self) -> Parts {
        (self.dataset, self.rows, self.digests, self.numbers)
    }

    /// Whether no row is left.
    pub fn is_empty(&self) -> bool {
        self.digests.is_empty()
    }
}

/// Dataset, rows, the digest of each, and its number in the file.
pub(crate) type Parts = (Arc<Dataset>, RecordBatch, Vec<[u8; WIDTH]>, Vec<u64>);

/// Opens a file and compares its columns with the contract's.
///
/// # Errors
/// [`Error::ContractViolation`] where the file cannot be read or its columns do not fit, and
/// [`Error::TooLarge`] where it would cost more than the limits allow.
pub fn open(upload: Upload, limits: Limits) -> Result<Slices> {
    let Upload { dataset, source, format, contract_version, body } = upload;
    // Columns first: who sends a version unknown here learns which of them it is.
    let reader = file::open(format, body, &dataset, contract_version.as_deref(), limits)?;
    check_version(&dataset, contract_version.as_deref())?;
    check_version(&dataset, reader.contract_version())?;
    let said = reader.contract_version().or(contract_version.as_deref());
    let follows_older = check_absent(&dataset, said, reader.absent())?;
    Ok(Slices { dataset, source, reader, taken: 0, follows_older })
}

impl Iterator for Slices {
    type Item = Result<Slice>;

    /// Fails as [`open`] does, for what only shows on the way.
    fn next(&mut self) -> Option<Self::Item> {
        let rows = match self.reader.next()? {
            Ok(rows) => rows,
            Err(error) => return Some(Err(error)),
        };
        let first_row = self.taken;
        self.taken += rows.num_rows() as u64;
        let (dataset, source) = (Arc::clone(&self.dataset), self.source.clone());
        Some(Ok(Slice { dataset, source, rows, first_row, follows_older: self.follows_older }))
    }
}

/// The Arrow schema of canonical rows: the stored fields, identifiers still as text.
fn canonical_schema(dataset: &Dataset) -> SchemaRef {
    let fields = dataset.stored_fields().map(|field| ArrowField::new(&field.name, arrow_type(field.kind), true));
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

/// A sender that says which version it follows must follow one this contract can read: the same major
/// version, and no newer minor one.
fn check_version(dataset: &Dataset, said: Option<&str>) -> Result<()> {
    let Some(said) = said else { return Ok(()) };
    match (minor_version(said), minor_version(&dataset.version)) {
        (Some((major, minor)), Some(ours)) if major == ours.0 && minor <= ours.1 => Ok(()),
        _ => Err(Error::violation(format!(
            "the file follows version `{}` of `{}`, this hub version {}; send it in that form or ask for the \
             contract to be raised",
            said.chars().take(40).collect::<String>(),
            dataset.name,
            dataset.version
        ))),
    }
}

/// A file that follows an older minor version lacks what later ones added, and nothing else. Whether a file that
/// names no version follows an older one.
fn check_absent(dataset: &Dataset, said: Option<&str>, absent: &[usize]) -> Result<bool> {
    let Some(said) = said else { return Ok(!absent.is_empty()) };
    let was_there = |field: &Field| field.since.as_deref().and_then(minor_version) <= minor_version(said);
    let missing: Vec<_> = absent
        .iter()
        .filter_map(|at| dataset.fields.get(*at))
        .filter(|field| was_there(field))
        .map(|field| format!("`{}`", field.name))
        .collect();
    if missing.is_empty() {
        return Ok(false);
    }
    Err(Error::violation(format!(
        "{} does not fit `{}` version {}: columns missing that its own version has: {}",
        file::following(Some(said)),
        dataset.name,
        dataset.version,
        missing.join(", ")
    )))
}

/// Checks a slice of a file. The findings say what became of every row; `Checked` holds those that passed.
///
/// # Errors
/// Only a fault of the hub.
pub fn check(slice: Slice, context: &Context<'_>) -> Result<(Checked, Findings)> {
    let Slice { dataset, source, rows: batch, first_row, follows_older } = slice;
    let rows = batch.num_rows();
    let mut findings = Findings { received: rows as u64, ..Findings::default() };
    if follows_older {
        findings.warn("older_contract", rows as u64);
    }
    let mut faults: Vec<Option<(usize, Reason)>> = vec![None; rows];
    let mut warnings = Vec::new();
    let mut columns = Vec::with_capacity(dataset.fields.len());
    for (at, (field, input)) in dataset.fields.iter().zip(batch.columns()).enumerate() {
        let checked = column::check(field, &dataset.timezone, input, context.divisions)?;
        for (row, reason) in checked.faults {
            // The first field at fault, in the contract's order, names the row's fault.
            faults[row].get_or_insert((at, reason));
        }
        warnings.extend(checked.warnings);
        for (_, kind) in checked.damage {
            findings.warn(kind, 1);
        }
        columns.push(checked.values);
    }
    reject_outside_scope(&dataset, &source, &columns, context.scope, &mut faults);

    for (row, fault) in faults.iter().enumerate() {
        let Some((at, reason)) = fault else { continue };
        let field = dataset.fields.get(*at).map(|field| field.name.clone()).unwrap_or_default();
        findings.reject(first_row + row as u64, field, *reason);
    }
    for (row, kind) in warnings {
        if faults[row].is_none() {
            findings.warn(kind, 1);
        }
    }

    let (columns, numbers) = match findings.rejections.is_empty() {
        true => (columns, (first_row..first_row + rows as u64).collect()),
        false => {
            let good = BooleanArray::from_iter(faults.iter().map(|fault| Some(fault.is_none())));
            let kept = columns.iter().map(|column| filter(column, &good)).collect::<std::result::Result<_, _>>();
            let numbers = (first_row..).zip(&faults).filter(|(_, fault)| fault.is_none()).map(|(row, _)| row);
            (kept.map_err(Error::internal)?, numbers.collect())
        }
    };
    let digests = digest::row_digests(context.digest_key, &dataset, &source, &columns, Vec::len(&numbers))?;
    let kept: Vec<_> = dataset
        .fields
        .iter()
        .zip(&columns)
        .filter(|(field, _)| field.class != FieldClass::FreeText)
        .map(|(_, column)| Arc::clone(column))
        .collect();
    let options = RecordBatchOptions::new().with_row_count(Some(Vec::len(&numbers)));
    let rows = RecordBatch::try_new_with_options(canonical_schema(&dataset), kept, &options);
    let rows = rows.map_err(Error::internal)?;
    findings.warn("revision", revision::revisions(&dataset, &rows) as u64);
    Ok((Checked { dataset, rows, digests, numbers }, findings))
}

fn reject_outside_scope(
    dataset: &Dataset,
    source: &str,
    columns: &[ArrayRef],
    scope: &Scope,
    faults: &mut [Option<(usize, Reason)>],
) {
    let at = dataset.territory.as_ref().and_then(|name| dataset.fields.iter().position(|f| &f.name == name));
    let territories = at.and_then(|at| columns[at].as_string_opt::<i32>());
    // Where a scope looks at more, no one field is at fault.
    let named = at.filter(|_| scope.looks_only_at_territory()).unwrap_or(usize::MAX);
    for (row, fault) in faults.iter_mut().enumerate() {
        if fault.is_none() && !scope.admits(&Incoming { dataset, source, columns, territories, row }) {
            *fault = Some((named, Reason::OutsideScope));
        }
    }
}

/// A row of checked columns, one for each field of its contract.
struct Incoming<'a> {
    dataset: &'a Dataset,
    source: &'a str,
    columns: &'a [ArrayRef],
    territories: Option<&'a StringArray>,
    row: usize,
}

impl Row for Incoming<'_> {
    fn territory(&self) -> Option<&str> {
        self.territories.filter(|codes| codes.is_valid(self.row)).map(|codes| codes.value(self.row))
    }

    fn source(&self) -> &str {
        self.source
    }

    fn value(&self, field: &str) -> Option<Value<'_>> {
        self.dataset.scope_field(field)?;
        let at = self.dataset.fields.iter().position(|known| known.name == field)?;
        layout::value(self.columns.get(at)?, self.row)
    }
}

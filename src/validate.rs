//! Checks uploads against their contract: `Upload` in, `Checked` out, with a word on every bad row.
//!
//! A batch is decoded, each column is canonicalised and checked, rows with a fault are set aside by
//! number and reason, and the rest goes on. Nothing here touches the disk or keeps a value of a row it
//! refused.

pub mod canonical;
mod column;
mod file;
mod hostile;

use std::{collections::BTreeMap, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch, StringArray},
    compute::{concat_batches, filter_record_batch},
    datatypes::{DataType, Field as ArrowField, Schema, SchemaRef},
};
use bytes::Bytes;
use ring::hmac;

pub use file::{Format, Limits};

use crate::{
    dataset::{
        Dataset, FieldClass,
        division::Divisions,
        layout::{self, WIDTH, arrow_type},
        receipt::RejectedRow,
        scope::{Row, Scope, Value},
    },
    error::{Error, Result},
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
    pub bytes: Bytes,
}

/// What rows are checked against besides their contract.
pub struct Context<'a> {
    /// The division codes known now.
    pub divisions: &'a Divisions,
    /// The rows this caller may push.
    pub scope: &'a Scope,
    /// The key of row digests.
    pub digest_key: &'a hmac::Key,
    /// What a file may cost.
    pub limits: Limits,
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
        }
    }
}

/// What was found in a file, without values.
#[derive(Debug, Default, Clone)]
pub struct Findings {
    /// Data rows in the file.
    pub received: u64,
    /// Rejected rows by reason.
    pub rejections: BTreeMap<String, u64>,
    /// The first rejected rows.
    pub rejected_rows: Vec<RejectedRow>,
    /// Accepted rows in which something was mended or is odd, by kind.
    pub warnings: BTreeMap<String, u64>,
}

impl Findings {
    /// How many rows were rejected.
    pub fn rejected(&self) -> u64 {
        self.rejections.values().sum()
    }
}

/// How many rejected rows a receipt lists one by one.
pub const LISTED_ROWS: usize = 1_000;

/// Rows that fit their contract, identifiers in canonical form and still readable. Has no printed form;
/// made by [`check`] alone and good for [`crate::pseudonym::Pseudonyms::replace`] alone.
pub struct Checked {
    dataset: Arc<Dataset>,
    source: String,
    rows: RecordBatch,
    digests: Vec<[u8; WIDTH]>,
}

impl Checked {
    pub(crate) fn into_parts(self) -> (Arc<Dataset>, String, RecordBatch, Vec<[u8; WIDTH]>) {
        (self.dataset, self.source, self.rows, self.digests)
    }

    /// Whether no row is left.
    pub fn is_empty(&self) -> bool {
        self.digests.is_empty()
    }
}

/// Checks an upload. The findings say what became of every row; `Checked` holds those that passed.
///
/// # Errors
/// [`Error::ContractViolation`] where the file cannot be read or its columns do not fit, and
/// [`Error::TooLarge`] where it would cost more than the limits allow.
pub fn check(upload: Upload, context: &Context<'_>) -> Result<(Checked, Findings)> {
    let Upload { dataset, source, format, contract_version, bytes } = upload;
    check_version(&dataset, contract_version.as_deref())?;
    let reader = file::open(format, bytes, &dataset, context.limits)?;
    check_version(&dataset, reader.contract_version())?;

    let schema = canonical_schema(&dataset);
    let mut findings = Findings::default();
    let mut parts = Vec::new();
    let mut digests = Vec::new();
    for batch in reader {
        let batch = batch?;
        let checked = check_batch(&dataset, &source, &batch, context, &mut findings)?;
        digests.extend(checked.digests);
        parts.push(RecordBatch::try_new(Arc::clone(&schema), checked.columns).map_err(Error::internal)?);
    }
    let rows = concat_batches(&schema, &parts).map_err(Error::internal)?;
    Ok((Checked { dataset, source, rows, digests }, findings))
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
    let parts = |version: &str| -> Option<(u32, u32)> {
        let mut parts = version.split('.').map(|part| part.parse().ok());
        Some((parts.next()??, parts.next()??))
    };
    match (parts(said), parts(&dataset.version)) {
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

struct CheckedBatch {
    columns: Vec<ArrayRef>,
    digests: Vec<[u8; WIDTH]>,
}

fn check_batch(
    dataset: &Dataset,
    source: &str,
    batch: &RecordBatch,
    context: &Context<'_>,
    findings: &mut Findings,
) -> Result<CheckedBatch> {
    let rows = batch.num_rows();
    let first_row = findings.received;
    findings.received += rows as u64;
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
        columns.push(checked.values);
    }
    reject_outside_scope(dataset, source, &columns, context.scope, &mut faults);

    for (row, fault) in faults.iter().enumerate() {
        let Some((at, reason)) = fault else { continue };
        *findings.rejections.entry(reason.word().into()).or_default() += 1;
        if findings.rejected_rows.len() < LISTED_ROWS {
            let field = dataset.fields.get(*at).map(|field| field.name.clone()).unwrap_or_default();
            findings.rejected_rows.push(RejectedRow {
                row: first_row + row as u64,
                field,
                reason: reason.word().into(),
            });
        }
    }
    for (row, kind) in warnings {
        if faults[row].is_none() {
            *findings.warnings.entry(kind.into()).or_default() += 1;
        }
    }

    let good = BooleanArray::from_iter(faults.iter().map(|fault| Some(fault.is_none())));
    let all = Schema::new(
        dataset
            .fields
            .iter()
            .map(|field| ArrowField::new(&field.name, arrow_type(field.kind), true))
            .collect::<Vec<_>>(),
    );
    let whole = RecordBatch::try_new(Arc::new(all), columns).map_err(Error::internal)?;
    let kept = filter_record_batch(&whole, &good).map_err(Error::internal)?;
    let digests = row_digests(context.digest_key, dataset, source, &kept)?;
    let columns = dataset
        .fields
        .iter()
        .zip(kept.columns())
        .filter(|(field, _)| field.class != FieldClass::FreeText)
        .map(|(_, column)| Arc::clone(column))
        .collect();
    Ok(CheckedBatch { columns, digests })
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

/// A keyed digest of each whole row, free text included: two rows of one source are exact copies when
/// these are equal. The encoding is the hub's own, since digests outlive library versions.
fn row_digests(key: &hmac::Key, dataset: &Dataset, source: &str, rows: &RecordBatch) -> Result<Vec<[u8; WIDTH]>> {
    let mut texts = Vec::with_capacity(rows.num_columns());
    for column in rows.columns() {
        let text = arrow::compute::cast(column, &DataType::Utf8).map_err(Error::internal)?;
        texts.push(text);
    }
    let texts: Vec<_> = texts.iter().map(|text| text.as_string::<i32>()).collect();
    let name = dataset.name.to_string();
    let mut encoded = Vec::new();
    let digests = (0..rows.num_rows()).map(|row| {
        encoded.clear();
        for part in [name.as_str(), source]
            .into_iter()
            .map(Some)
            .chain(texts.iter().map(|text| text.is_valid(row).then(|| text.value(row))))
        {
            match part {
                None => encoded.push(0),
                Some(text) => {
                    encoded.push(1);
                    encoded.extend_from_slice(&(text.len() as u64).to_le_bytes());
                    encoded.extend_from_slice(text.as_bytes());
                }
            }
        }
        let mut digest = [0; WIDTH];
        digest.copy_from_slice(&hmac::sign(key, &encoded).as_ref()[..WIDTH]);
        digest
    });
    Ok(digests.collect())
}

//! One column of a slice: canonical values, and a fault or a warning for every row that needs one.

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, AsArray, Float64Array, StringArray, StringBuilder, new_null_array},
    compute::{CastOptions, cast, cast_with_options},
    datatypes::{DataType, Date32Type, Float64Type, TimeUnit},
};

use super::{Reason, canonical};
use crate::{
    dataset::{
        DivisionRule, Field, FieldClass, FieldType, IdentifierKind,
        division::{self, Divisions},
        layout::arrow_type,
    },
    error::{Error, Result},
};

/// The longest text a field may hold.
const LONGEST_TEXT: usize = 8_192;

/// The longest identifier, however it is spaced.
const LONGEST_IDENTIFIER: usize = 512;

/// A checked column: as many values as rows came in; those of faulty rows mean nothing.
pub struct CheckedColumn {
    /// The canonical values, of the field's Arrow type.
    pub values: ArrayRef,
    /// Rows at fault.
    pub faults: Vec<(usize, Reason)>,
    /// Rows with something worth telling.
    pub warnings: Vec<(usize, &'static str)>,
}

/// Checks one column.
///
/// # Errors
/// Only a fault of the hub: types were compared when the file was opened.
pub fn check(field: &Field, timezone: &str, input: &ArrayRef, divisions: &Divisions) -> Result<CheckedColumn> {
    let mut checked = match field.kind {
        FieldType::Text => check_text(field, &cast(input, &DataType::Utf8View).map_err(Error::internal)?, divisions),
        _ => check_typed(field, timezone, input)?,
    };
    if field.required {
        let at_fault: std::collections::HashSet<usize> = checked.faults.iter().map(|(row, _)| *row).collect();
        let empty = (0..checked.values.len()).filter(|row| checked.values.is_null(*row) && !at_fault.contains(row));
        let missing: Vec<_> = empty.map(|row| (row, Reason::Missing)).collect();
        checked.faults.extend(missing);
    }
    Ok(checked)
}

fn check_text(field: &Field, input: &ArrayRef, divisions: &Divisions) -> CheckedColumn {
    let input = input.as_string_view();
    let mut values = StringBuilder::with_capacity(input.len(), input.len() * 8);
    let mut faults = Vec::new();
    let mut warnings = Vec::new();
    for row in 0..input.len() {
        let typed = if input.is_valid(row) { input.value(row) } else { "" };
        let longest = if field.identifier.is_some() { LONGEST_IDENTIFIER } else { LONGEST_TEXT };
        if typed.len() > longest {
            faults.push((row, Reason::Format));
            values.append_null();
            continue;
        }
        match check_one_text(field, typed, divisions) {
            Text::Value(text) => values.append_value(text),
            Text::Mended(text) => {
                warnings.push((row, "canonicalised"));
                values.append_value(text);
            }
            Text::Empty(warning) => {
                warnings.extend(warning.map(|kind| (row, kind)));
                values.append_null();
            }
            Text::Noted(text, warning) => {
                warnings.push((row, warning));
                values.append_value(text);
            }
            Text::Fault(reason) => {
                faults.push((row, reason));
                values.append_null();
            }
        }
    }
    CheckedColumn { values: Arc::new(values.finish()), faults, warnings }
}

enum Text {
    Value(String),
    Mended(String),
    Noted(String, &'static str),
    Empty(Option<&'static str>),
    Fault(Reason),
}

fn check_one_text(field: &Field, typed: &str, divisions: &Divisions) -> Text {
    if let Some(identifier) = &field.identifier {
        return check_identifier(field, identifier.kind, typed);
    }
    let text = typed.trim();
    if text.is_empty() {
        return Text::Empty(None);
    }
    if field.class == FieldClass::FreeText {
        return match canonical::holds_identifier(text, |code| divisions.contains(code)) {
            true => Text::Noted(text.to_owned(), "identifier_in_text"),
            false => Text::Value(text.to_owned()),
        };
    }
    if let Some(rule) = field.division {
        let Some(code) = division::canonical(text) else { return Text::Fault(Reason::Format) };
        let level_fits = match rule {
            DivisionRule::Grid => code.len() == 15,
            DivisionRule::Community => code.len() == 12,
            DivisionRule::Any | DivisionRule::Defines => true,
        };
        let known = rule == DivisionRule::Defines || divisions.contains(&code);
        return if level_fits && known { Text::Value(code) } else { Text::Fault(Reason::UnknownDivision) };
    }
    if field.allowed.as_ref().is_some_and(|allowed| !allowed.contains(text)) {
        return Text::Fault(Reason::NotAllowed);
    }
    // INVARIANT: text that is stored carries no identifier past the pseudonyms.
    if canonical::holds_identifier(text, |code| divisions.contains(code)) {
        return Text::Empty(Some("identifier_in_text"));
    }
    Text::Value(text.to_owned())
}

fn check_identifier(field: &Field, kind: IdentifierKind, typed: &str) -> Text {
    use canonical::Canonical;
    match (canonical::canonical(kind, typed), kind) {
        (Canonical::Value { text, touched: false }, _) => Text::Value(text),
        (Canonical::Value { text, touched: true }, _) => Text::Mended(text),
        (Canonical::Missing, _) if field.required => Text::Fault(Reason::Missing),
        (Canonical::Missing, IdentifierKind::CnResidentId) => Text::Empty(Some("missing_identifier")),
        (Canonical::Missing, IdentifierKind::Name) => Text::Empty(Some("missing_name")),
        (Canonical::Missing, _) => Text::Empty(None),
        // A phone is a poor key and often mistyped; losing the row for it would cost more than it gives.
        (Canonical::Malformed, IdentifierKind::CnMobile) if !field.required => Text::Empty(Some("malformed_phone")),
        (Canonical::Malformed, _) => Text::Fault(Reason::Format),
        (Canonical::BadCheck, _) => Text::Fault(Reason::CheckDigit),
    }
}

fn check_typed(field: &Field, timezone: &str, input: &ArrayRef) -> Result<CheckedColumn> {
    let target = arrow_type(field.kind);
    let safe = CastOptions { safe: true, ..CastOptions::default() };
    if *input.data_type() == DataType::Null {
        let values = new_null_array(&target, input.len());
        return Ok(CheckedColumn { values, faults: Vec::new(), warnings: Vec::new() });
    }
    let input = without_empty_text(input)?;
    // Days and times without a zone are local ones.
    let steps: Vec<DataType> = match field.kind {
        FieldType::Timestamp => vec![DataType::Timestamp(TimeUnit::Microsecond, Some(timezone.into())), target],
        // Through the widest type first, so that what does not fit is a fault and not a wrapped number.
        FieldType::Integer(8) => vec![DataType::Int64, DataType::Int8, target],
        FieldType::Integer(_) => vec![DataType::Int64, target],
        _ => vec![target],
    };
    let mut values = Arc::clone(&input);
    for step in &steps {
        if !arrow::compute::can_cast_types(values.data_type(), step) {
            return Err(Error::internal("a column's type was not compared on opening"));
        }
        values = cast_with_options(&values, step, &safe).map_err(Error::internal)?;
    }
    let numbers = as_numbers(field, &input)?;
    let mut faults = Vec::new();
    for row in 0..input.len() {
        if values.is_null(row) && input.is_valid(row) {
            // What is a number, and no value of this type, is too large for it.
            let number =
                numbers.as_ref().is_some_and(|numbers| numbers.is_valid(row) && numbers.value(row).is_finite());
            faults.push((row, if number { Reason::OutOfRange } else { Reason::Type }));
        }
    }
    if let (Some((smallest, largest)), Some(numbers)) = (field.bounds, &numbers) {
        for row in 0..numbers.len() {
            let within = |number: f64| number >= smallest && number <= largest;
            // As sent, so that rounding to the field's scale brings nothing back into bounds.
            if numbers.is_valid(row) && values.is_valid(row) && !within(numbers.value(row)) {
                faults.push((row, Reason::OutOfRange));
            }
        }
    }
    if matches!(field.kind, FieldType::Date | FieldType::Timestamp) {
        let days = cast(&values, &DataType::Date32).map_err(Error::internal)?;
        let days = days.as_primitive::<Date32Type>();
        let strange = (0..days.len()).filter(|row| days.is_valid(*row) && !DAYS.contains(&days.value(*row)));
        faults.extend(strange.map(|row| (row, Reason::OutOfRange)));
    }
    Ok(CheckedColumn { values, faults, warnings: Vec::new() })
}

/// 1850 to 2200, in days since 1970: other years are mistyped, and far ones overflow in queries.
const DAYS: std::ops::Range<i32> = -43_829..84_006;

/// The values of a numeric field as they were sent.
fn as_numbers(field: &Field, input: &ArrayRef) -> Result<Option<Float64Array>> {
    let numeric = matches!(field.kind, FieldType::Integer(_) | FieldType::Decimal(..) | FieldType::Double);
    if !numeric || !arrow::compute::can_cast_types(input.data_type(), &DataType::Float64) {
        return Ok(None);
    }
    let safe = CastOptions { safe: true, ..CastOptions::default() };
    let mut numbers = Arc::clone(input);
    if *input.data_type() == DataType::Float32 {
        // Through its shortest text: 37.3 is meant, not the float next to it.
        numbers = cast_with_options(&numbers, &DataType::Utf8, &safe).map_err(Error::internal)?;
    }
    let numbers = cast_with_options(&numbers, &DataType::Float64, &safe).map_err(Error::internal)?;
    Ok(numbers.as_primitive_opt::<Float64Type>().cloned())
}

/// Text columns come from CSV, where nothing at all stands for NULL.
fn without_empty_text(input: &ArrayRef) -> Result<ArrayRef> {
    if !matches!(input.data_type(), DataType::Utf8) {
        return match input.data_type() {
            DataType::Dictionary(_, value) => cast(input, value).map_err(Error::internal),
            _ => Ok(Arc::clone(input)),
        };
    }
    let trimmed = input.as_string::<i32>().iter().map(|text| text.map(str::trim).filter(|text| !text.is_empty()));
    Ok(Arc::new(trimmed.collect::<StringArray>()))
}

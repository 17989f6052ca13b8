//! One column of a slice: canonical values, and a fault or a warning for every row that needs one.

use std::{borrow::Cow, collections::HashSet, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, AsArray, Float64Array, StringBuilder, StringViewArray, new_null_array},
    compute::{CastOptions, cast, cast_with_options},
    datatypes::{DataType, Float64Type, TimeUnit},
};

use super::{Reason, canonical};
use crate::{
    dataset::{
        DivisionRule, Field, FieldClass, FieldType, IdentifierKind,
        division::{self, Divisions},
        layout::{self, arrow_type},
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
    /// Rows with something worth telling, should they be accepted.
    pub warnings: Vec<(usize, &'static str)>,
    /// Rows whose value a spreadsheet spoilt, accepted or not: their sender must go back to the source.
    pub damage: Vec<(usize, &'static str)>,
}

/// A long number that lost its digits.
const SPREADSHEET_NUMBER: &str = "spreadsheet_number";

/// A day that became a number.
const SPREADSHEET_DATE: &str = "spreadsheet_date";

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
        let at_fault: HashSet<usize> = checked.faults.iter().map(|(row, _)| *row).collect();
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
    let mut damage = Vec::new();
    for row in 0..input.len() {
        let typed = if input.is_valid(row) { input.value(row) } else { "" };
        let longest = if field.identifier.is_some() { LONGEST_IDENTIFIER } else { LONGEST_TEXT };
        if typed.len() > longest {
            faults.push((row, Reason::Format));
            values.append_null();
            continue;
        }
        let checked = check_one_text(field, typed, divisions);
        if matches!(checked, Text::Fault(_) | Text::Empty(Some(_))) && canonical::is_spreadsheet_number(typed) {
            damage.push((row, SPREADSHEET_NUMBER));
        }
        match checked {
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
    if field.identifier.as_ref().is_some_and(|identifier| identifier.kind == IdentifierKind::CnResidentId) {
        spread_damage(input, &mut faults, &mut damage);
    }
    CheckedColumn { values: Arc::new(values.finish()), faults, warnings, damage }
}

/// Where a spreadsheet is known to have spoilt an id, takes every other one of the slice that could be spoilt for that.
///
/// Of the ids that lost their last three digits one in eleven still fits its check digit, and names somebody else.
/// Without such a neighbour they stay: one genuine id in 1,100 ends so.
fn spread_damage(input: &StringViewArray, faults: &mut Vec<(usize, Reason)>, damage: &mut Vec<(usize, &'static str)>) {
    if damage.is_empty() {
        return;
    }
    let at_fault: HashSet<usize> = faults.iter().map(|(row, _)| *row).collect();
    for row in (0..input.len()).filter(|row| input.is_valid(*row) && !at_fault.contains(row)) {
        if canonical::is_spreadsheet_number(input.value(row)) {
            faults.push((row, Reason::Format));
            damage.push((row, SPREADSHEET_NUMBER));
        }
    }
}

enum Text<'a> {
    Value(Cow<'a, str>),
    Mended(String),
    Noted(String, &'static str),
    Empty(Option<&'static str>),
    Fault(Reason),
}

fn check_one_text<'a>(field: &Field, typed: &'a str, divisions: &Divisions) -> Text<'a> {
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
            false => Text::Value(text.into()),
        };
    }
    if let Some(rule) = field.division {
        let plain = canonical::plain_text(text);
        let Some(code) = division::canonical(&plain) else { return Text::Fault(Reason::Format) };
        let level_fits = match rule {
            DivisionRule::Grid => code.len() == 15,
            DivisionRule::Community => code.len() == 12,
            DivisionRule::Any | DivisionRule::Defines => true,
        };
        let known = rule == DivisionRule::Defines || divisions.contains(&code);
        return match plain {
            _ if !level_fits || !known => Text::Fault(Reason::UnknownDivision),
            Cow::Borrowed(_) => Text::Value(code.into()),
            Cow::Owned(_) => Text::Mended(code),
        };
    }
    if let Some(allowed) = &field.allowed {
        // What the contract itself lists names nobody.
        if allowed.contains(text) {
            return Text::Value(text.into());
        }
        let plain = canonical::plain_text(text);
        return if allowed.contains(plain.as_ref()) {
            Text::Mended(plain.into_owned())
        } else {
            Text::Fault(Reason::NotAllowed)
        };
    }
    // INVARIANT: text that is stored carries no identifier past the pseudonyms.
    if canonical::holds_identifier(text, |code| divisions.contains(code)) {
        return Text::Empty(Some("identifier_in_text"));
    }
    Text::Value(text.into())
}

fn check_identifier<'a>(field: &Field, kind: IdentifierKind, typed: &'a str) -> Text<'a> {
    use canonical::Canonical;
    if canonical::is_canonical(kind, typed) {
        return Text::Value(typed.into());
    }
    match (canonical::canonical(kind, typed), kind) {
        (Canonical::Value { text, touched: false }, _) => Text::Value(text.into()),
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
        return Ok(CheckedColumn { values, faults: Vec::new(), warnings: Vec::new(), damage: Vec::new() });
    }
    let Typed { values: input, warnings, damage } = as_typed(field, input)?;
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
            let number = numbers.as_ref().filter(|numbers| numbers.is_valid(row)).map(|numbers| numbers.value(row));
            let is_whole_field = matches!(field.kind, FieldType::Integer(_));
            let reason = match number {
                Some(number) if is_whole_field && number.fract() != 0.0 => Reason::Type,
                // What is a number, and no value of this type, is too large for it.
                Some(number) if number.is_finite() => Reason::OutOfRange,
                _ => Reason::Type,
            };
            faults.push((row, reason));
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
        let days = layout::days(values.as_ref()).map_err(Error::internal)?;
        let strange = (0..days.len()).filter(|row| days.is_valid(*row) && !DAYS.contains(&days.value(*row)));
        faults.extend(strange.map(|row| (row, Reason::OutOfRange)));
    }
    Ok(CheckedColumn { values, faults, warnings, damage })
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

/// The values of a field that holds no text, as they were typed.
struct Typed {
    values: ArrayRef,
    warnings: Vec<(usize, &'static str)>,
    damage: Vec<(usize, &'static str)>,
}

/// Text columns come from CSV, where nothing at all stands for NULL, digits may be full width, and days are in
/// the form of whatever spreadsheet had the file last.
fn as_typed(field: &Field, input: &ArrayRef) -> Result<Typed> {
    let (mut warnings, mut damage) = (Vec::new(), Vec::new());
    if !matches!(input.data_type(), DataType::Utf8) {
        let values = match input.data_type() {
            DataType::Dictionary(_, value) => cast(input, value).map_err(Error::internal)?,
            _ => Arc::clone(input),
        };
        return Ok(Typed { values, warnings, damage });
    }
    let is_time = matches!(field.kind, FieldType::Date | FieldType::Timestamp);
    let texts = input.as_string::<i32>();
    let mut values = StringBuilder::with_capacity(texts.len(), texts.value_data().len());
    for (row, typed) in texts.iter().enumerate() {
        let text = canonical::plain_text(typed.unwrap_or_default());
        if text.is_empty() {
            values.append_null();
            continue;
        }
        if is_time && canonical::is_serial_day(&text) {
            damage.push((row, SPREADSHEET_DATE));
        }
        let mended = if is_time { canonical::plain_time(&text) } else { written_out(field.kind, &text) };
        if mended.is_some() || matches!(text, Cow::Owned(_)) {
            warnings.push((row, "canonicalised"));
        }
        values.append_value(mended.as_deref().unwrap_or(&text));
    }
    Ok(Typed { values: Arc::new(values.finish()), warnings, damage })
}

/// A number of a whole or decimal field that is written as `1.0` or `1.85E+01`, in the form that Arrow reads. `None`
/// where it is in that form already, or where the field does not hold it exactly.
fn written_out(kind: FieldType, text: &str) -> Option<String> {
    let (places, signs) = match kind {
        FieldType::Integer(_) => (0, ".eE"),
        FieldType::Decimal(_, scale) => (usize::try_from(scale).ok()?, "eE"),
        _ => return None,
    };
    if !text.contains(|c: char| signs.contains(c)) {
        return None;
    }
    let plain = canonical::written_out(text)?;
    let fraction = plain.split_once('.').map_or(0, |(_, fraction)| fraction.len());
    (fraction <= places).then_some(plain)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use arrow::{
        array::{StringArray, TimestampMicrosecondArray},
        datatypes::{Date32Type, TimestampMicrosecondType},
    };

    use super::*;
    use crate::dataset::{Dataset, contract};

    fn visits() -> Dataset {
        let text = include_str!("../../schemas/community.visits.odcs.yaml");
        contract::parse(Path::new("community.visits.odcs.yaml"), text).unwrap()
    }

    fn cases() -> Dataset {
        let text = include_str!("../../schemas/cdc.cases.odcs.yaml");
        contract::parse(Path::new("cdc.cases.odcs.yaml"), text).unwrap()
    }

    fn checked(dataset: &Dataset, field: &str, texts: &[&str]) -> CheckedColumn {
        let input: ArrayRef = Arc::new(StringArray::from(texts.to_vec()));
        check(dataset.field(field).unwrap(), &dataset.timezone, &input, &Divisions::new([])).unwrap()
    }

    #[test]
    fn numbers_that_a_spreadsheet_cut_are_faults_with_a_word_on_why() {
        let ids = ["4.20104E+17", "420104198001010000", "110105194912310021", "11010519491231002X", "abc"];
        let column = checked(&visits(), "id_no", &ids);
        let faults = [(0, Reason::Format), (1, Reason::CheckDigit), (2, Reason::CheckDigit), (4, Reason::Format)];
        assert_eq!(column.faults, faults);
        assert_eq!(column.damage, [(0, SPREADSHEET_NUMBER), (1, SPREADSHEET_NUMBER)]);
        // A phone is not worth the row; a record number and a grid are.
        let column = checked(&visits(), "phone", &["1.39E+10", "13912345678"]);
        assert_eq!((column.faults.len(), column.damage), (0, vec![(0, SPREADSHEET_NUMBER)]));
        assert_eq!(column.warnings, [(0, "malformed_phone")]);
        for field in ["visit_id", "grid_code"] {
            let column = checked(&visits(), field, &["4.20191E+14"]);
            assert_eq!(column.faults, [(0, Reason::Format)], "{field}");
            assert_eq!(column.damage, [(0, SPREADSHEET_NUMBER)], "{field}");
        }
    }

    #[test]
    fn an_id_that_fits_by_chance_falls_with_its_spoilt_neighbours() {
        // Sound by its check digit, and as likely somebody's as a rounded number.
        let lucky = "110105195001032000";
        let column = checked(&visits(), "id_no", &[lucky, "11010519491231002X"]);
        assert!(column.faults.is_empty() && column.damage.is_empty());
        for spoilt in ["420104198001010000", "4.20104E+17"] {
            let column =
                checked(&visits(), "id_no", &[lucky, spoilt, "11010519491231002X", "１１０１０５195001032000"]);
            let mut rows: Vec<_> = column.damage.iter().map(|(row, _)| *row).collect();
            rows.sort_unstable();
            assert_eq!(rows, [0, 1, 3], "{spoilt}");
            assert!(column.faults.contains(&(0, Reason::Format)) && column.faults.contains(&(3, Reason::Format)));
            assert_eq!(column.faults.len(), 3, "{spoilt}");
        }
        // A wrong id of another kind says nothing about it.
        let column = checked(&visits(), "id_no", &[lucky, "110105194912310021"]);
        assert_eq!((column.faults, column.damage), (vec![(1, Reason::CheckDigit)], Vec::new()));
    }

    #[test]
    fn codes_and_listed_values_may_be_full_width() {
        let dataset = visits();
        let field = dataset.field("grid_code").unwrap();
        let divisions = Divisions::new(["420104001001001".to_owned()]);
        let codes = ["420104001001001", "４２０１０４００１００１００１", "４２０１０４００１００１００２", "４２x"];
        let input: ArrayRef = Arc::new(StringArray::from(codes.to_vec()));
        let column = check(field, &dataset.timezone, &input, &divisions).unwrap();
        assert_eq!(column.faults, [(2, Reason::UnknownDivision), (3, Reason::Format)]);
        assert_eq!(column.warnings, [(1, "canonicalised")]);
        assert_eq!(column.values.as_string::<i32>().value(1), "420104001001001");

        let mut field = dataset.field("mode").unwrap().clone();
        field.allowed = Some(["A1".to_owned(), "入户".to_owned(), "Ｂ".to_owned()].into());
        let input: ArrayRef = Arc::new(StringArray::from(vec!["A1", "Ａ１", "入户", "Ａ２", "Ｂ", "B"]));
        let column = check(&field, &dataset.timezone, &input, &divisions).unwrap();
        assert_eq!(column.faults, [(3, Reason::NotAllowed), (5, Reason::NotAllowed)]);
        assert_eq!(column.warnings, [(1, "canonicalised")]);
        let values = column.values.as_string::<i32>();
        assert_eq!((values.value(1), values.value(4)), ("A1", "Ｂ"));
    }

    #[test]
    fn whole_numbers_may_be_written_as_programs_write_them() {
        let dataset = visits();
        let mut field = dataset.field("temperature").unwrap().clone();
        field.bounds = None;
        let column_of = |field: &Field, texts: &[&str]| {
            let input: ArrayRef = Arc::new(StringArray::from(texts.to_vec()));
            let column = check(field, "UTC", &input, &Divisions::new([])).unwrap();
            let values = cast(&column.values, &DataType::Utf8).unwrap();
            let values = values.as_string::<i32>().iter().map(|value| value.map(str::to_owned)).collect::<Vec<_>>();
            // Nobody is warned of a row that is not taken.
            let faulty = |row: usize| column.faults.iter().any(|(fault, _)| *fault == row);
            let warnings: Vec<_> = column.warnings.iter().copied().filter(|(row, _)| !faulty(*row)).collect();
            (values, column.faults, warnings)
        };
        let some = |text: &str| Some(text.to_owned());

        // A decimal of four digits, one of them after the point.
        let texts = ["1.85E+01", "1e2", "-2.0e0", "37.50", "1.855E+01", "1e3", "1e60", "1e", "e5"];
        let (values, faults, warnings) = column_of(&field, &texts);
        assert_eq!(values[..4], [some("18.5"), some("100.0"), some("-2.0"), some("37.5")]);
        let large = [(4, Reason::OutOfRange), (5, Reason::OutOfRange), (6, Reason::OutOfRange)];
        assert_eq!(faults, [&large[..], &[(7, Reason::Type), (8, Reason::Type)]].concat());
        assert_eq!(warnings, [0, 1, 2].map(|row| (row, "canonicalised")));

        field.kind = FieldType::Integer(16);
        let texts = ["1.0", "１．００", "1e2", "1.50E+1", "12", "1.5", "1e-1", "4e4", "99999", "1e60", "x"];
        let (values, faults, warnings) = column_of(&field, &texts);
        assert_eq!(values[..5], ["1", "1", "100", "15", "12"].map(some));
        let (fraction, large) = (Reason::Type, Reason::OutOfRange);
        assert_eq!(faults, [(5, fraction), (6, fraction), (7, large), (8, large), (9, large), (10, Reason::Type)]);
        assert_eq!(warnings, [0, 1, 2, 3].map(|row| (row, "canonicalised")));
        field.bounds = Some((1.0, 20.0));
        assert_eq!(column_of(&field, &["2e1", "21.0"]).1, [(1, Reason::OutOfRange)]);

        // Not by way of a double, which has no such number.
        field.bounds = None;
        field.kind = FieldType::Integer(64);
        let (values, faults, _) =
            column_of(&field, &["9007199254740993.0", "9.007199254740993e15", "9223372036854775808.0"]);
        assert_eq!(values, [some("9007199254740993"), some("9007199254740993"), None]);
        assert_eq!(faults, [(2, Reason::OutOfRange)]);
    }

    #[test]
    fn days_are_mended_where_they_are_clear_and_refused_where_not() {
        let days = ["2026-01-08", "2026/1/8", "２０２６年１月８日", "46030", "1/8/2026", " "];
        let column = checked(&cases(), "birth_date", &days);
        let values = column.values.as_primitive::<Date32Type>();
        // 20,461 days from 1970-01-01 to 2026-01-08.
        assert_eq!(values.iter().collect::<Vec<_>>(), [Some(20_461), Some(20_461), Some(20_461), None, None, None]);
        assert!(column.faults.starts_with(&[(3, Reason::Type), (4, Reason::Type)]));
        assert_eq!(column.damage, [(3, SPREADSHEET_DATE)]);
        assert_eq!(column.warnings, [(1, "canonicalised"), (2, "canonicalised")]);
    }

    #[test]
    fn times_without_a_zone_are_local_in_whatever_form() {
        let times =
            ["2026-01-08T01:05:00Z", "2026-01-08 09:05:00", "2026/1/8 9:05", "２０２６-1-8　９：０５", "46030.37847"];
        let column = checked(&visits(), "visited_at", &times);
        let values = column.values.as_primitive::<TimestampMicrosecondType>();
        // 20,461 days, one hour and five minutes in UTC.
        let instant = Some((20_461_i64 * 86_400 + 3_900) * 1_000_000);
        assert_eq!(values.iter().collect::<Vec<_>>(), [instant, instant, instant, instant, None]);
        assert_eq!(column.faults, [(4, Reason::Type)]);
        assert_eq!(column.damage, [(4, SPREADSHEET_DATE)]);
    }

    #[test]
    fn times_that_no_calendar_knows_are_out_of_range() {
        let times = TimestampMicrosecondArray::from(vec![i64::MAX, i64::MIN, 0]).with_timezone("UTC");
        let input: ArrayRef = Arc::new(times);
        let dataset = visits();
        let field = dataset.field("visited_at").unwrap();
        let column = check(field, &dataset.timezone, &input, &Divisions::new([])).unwrap();
        assert_eq!(column.faults, [(0, Reason::OutOfRange), (1, Reason::OutOfRange)]);
    }

    #[test]
    fn digits_may_be_full_width() {
        let column = checked(&visits(), "temperature", &["36.5", "３６.５", "３６．５", "36，5"]);
        let sent = cast(&column.values, &DataType::Utf8).unwrap();
        assert_eq!(
            sent.as_string::<i32>().iter().collect::<Vec<_>>(),
            [Some("36.5"), Some("36.5"), Some("36.5"), None]
        );
        assert_eq!(column.faults, [(3, Reason::Type)]);
        assert!(column.damage.is_empty());
    }

    #[test]
    fn text_is_left_alone() {
        let input: ArrayRef = Arc::new(StringViewArray::from(vec!["46030", "2026/1/8"]));
        let dataset = visits();
        let column = check(dataset.field("visit_id").unwrap(), &dataset.timezone, &input, &Divisions::new([])).unwrap();
        assert!(column.faults.is_empty() && column.damage.is_empty() && column.warnings.is_empty());
    }
}

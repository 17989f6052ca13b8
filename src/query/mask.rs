//! Masks: how stored values become what a caller sees. Knows nothing of who asks, and of why.

use std::{
    fmt,
    hash::{Hash, Hasher},
    sync::Arc,
};

use arrow::{
    array::{Array, ArrayRef, AsArray, BinaryArray, StringArray, StringBuilder, UInt64Array},
    buffer::{NullBuffer, OffsetBuffer},
    compute::{cast, kernels::substring::substring_by_char},
    datatypes::{DataType, Date32Type, Float64Type, Int64Type},
    row::{RowConverter, SortField},
};
use chrono::{Datelike, NaiveDate};
use datafusion::{
    common::{Result, internal_err},
    logical_expr::{ColumnarValue, Expr, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility},
};

use crate::{
    dataset::{Generalise, layout::WIDTH},
    pseudonym::{SubjectKey, TokenKey},
};

/// How a stored value becomes what a caller sees.
#[derive(Clone)]
pub enum Mask {
    /// The token of a pseudonym.
    Token(Box<TokenKey>),
    /// The number of a subject.
    Subject(Box<SubjectKey>),
    /// The number of a record, by several fields.
    Record(Box<SubjectKey>),
    /// A coarser value.
    Generalise(Generalise),
}

/// A stored value behind its mask.
pub fn masked(mask: Mask, stored: Expr) -> Expr {
    masked_all(mask, vec![stored])
}

/// Stored values behind one mask.
pub fn masked_all(mask: Mask, stored: Vec<Expr>) -> Expr {
    let signature = Signature::any(stored.len(), Volatility::Immutable);
    ScalarUDF::new_from_impl(Masked { mask, signature }).call(stored)
}

/// A mask as a function of the engine. It is in no registry: only scans use it.
struct Masked {
    mask: Mask,
    signature: Signature,
}

impl fmt::Debug for Masked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Masked {
    fn same(&self) -> (&str, Option<Generalise>, Option<&[u8]>) {
        match &self.mask {
            Mask::Token(_) => (self.name(), None, None),
            Mask::Subject(key) | Mask::Record(key) => (self.name(), None, Some(key.name())),
            Mask::Generalise(how) => (self.name(), Some(*how), None),
        }
    }
}

// Within one plan there is one token key, so two token masks are the same function.
impl PartialEq for Masked {
    fn eq(&self, other: &Self) -> bool {
        self.same() == other.same()
    }
}

impl Eq for Masked {}

impl Hash for Masked {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.same().hash(state);
    }
}

impl ScalarUDFImpl for Masked {
    fn name(&self) -> &'static str {
        match self.mask {
            Mask::Token(_) => "gridhub_token",
            Mask::Subject(_) => "gridhub_subject",
            Mask::Record(_) => "gridhub_record",
            Mask::Generalise(_) => "gridhub_generalise",
        }
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, arguments: &[DataType]) -> Result<DataType> {
        match (&self.mask, arguments) {
            (Mask::Token(_), _) => Ok(DataType::Utf8),
            (Mask::Subject(_) | Mask::Record(_), _) => Ok(DataType::UInt64),
            (Mask::Generalise(_), [kind]) => Ok(kind.clone()),
            _ => internal_err!("a mask has one argument"),
        }
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        if let Mask::Record(key) = &self.mask {
            let fields = ColumnarValue::values_to_arrays(&arguments.args)?;
            return Ok(ColumnarValue::Array(records(key, &fields)?));
        }
        let [value] = arguments.args.as_slice() else { return internal_err!("a mask has one argument") };
        let values = value.to_array(arguments.number_rows)?;
        let masked = match &self.mask {
            Mask::Token(key) => tokens(key, &values)?,
            Mask::Subject(key) => subjects(key, &values)?,
            Mask::Generalise(how) => generalised(*how, &values)?,
            Mask::Record(_) => return internal_err!("a record is not one value"),
        };
        Ok(ColumnarValue::Array(masked))
    }
}

fn tokens(key: &TokenKey, values: &ArrayRef) -> Result<ArrayRef> {
    let binary = cast(values, &DataType::Binary)?;
    let binary: &BinaryArray = binary.as_binary();
    let pseudonyms: Vec<Option<[u8; WIDTH]>> =
        binary.iter().map(|value| value.and_then(|value| value.try_into().ok())).collect();
    let there: Vec<[u8; WIDTH]> = pseudonyms.iter().flatten().copied().collect();
    let lengths = pseudonyms.iter().map(|pseudonym| if pseudonym.is_some() { 2 * WIDTH } else { 0 });
    let nulls = pseudonyms.iter().map(Option::is_some).collect::<NullBuffer>();
    let texts = StringArray::try_new(OffsetBuffer::from_lengths(lengths), key.tokens(&there).into(), Some(nulls))?;
    Ok(Arc::new(texts))
}

fn subjects(key: &SubjectKey, values: &ArrayRef) -> Result<ArrayRef> {
    let binary = cast(values, &DataType::Binary)?;
    let binary: &BinaryArray = binary.as_binary();
    let pseudonyms: Vec<[u8; WIDTH]> =
        binary.iter().map(|value| value.and_then(|value| value.try_into().ok()).unwrap_or_default()).collect();
    Ok(Arc::new(UInt64Array::new(key.numbers(&pseudonyms).into(), binary.nulls().cloned())))
}

fn records(key: &SubjectKey, fields: &[ArrayRef]) -> Result<ArrayRef> {
    let order = fields.iter().map(|field| SortField::new(field.data_type().clone())).collect();
    let rows = RowConverter::new(order)?.convert_columns(fields)?;
    Ok(Arc::new(rows.iter().map(|row| Some(key.record(row.as_ref()))).collect::<UInt64Array>()))
}

fn generalised(how: Generalise, values: &ArrayRef) -> Result<ArrayRef> {
    // The days before a date in its period.
    let dates = |before: &dyn Fn(NaiveDate) -> Option<i32>| -> ArrayRef {
        let days = values.as_primitive::<Date32Type>();
        Arc::new(days.unary_opt::<_, Date32Type>(|day| day.checked_sub(before(NaiveDate::from_epoch_days(day)?)?)))
    };
    Ok(match how {
        Generalise::Month => dates(&|day| i32::try_from(day.day0()).ok()),
        Generalise::Year => dates(&|day| i32::try_from(day.ordinal0()).ok()),
        Generalise::Years(width) => {
            let width = i32::try_from(width).unwrap_or(i32::MAX);
            dates(&|day| {
                let first = NaiveDate::from_ymd_opt(day.year() - day.year().rem_euclid(width), 1, 1)?;
                Some(day.to_epoch_days() - first.to_epoch_days())
            })
        }
        Generalise::Prefix(width) => {
            let text = cast(values, &DataType::Utf8)?;
            let text: &StringArray = text.as_string();
            match text.is_ascii() {
                true => Arc::new(first_bytes(text, usize::try_from(width).unwrap_or(usize::MAX))),
                false => Arc::new(substring_by_char(text, 0, Some(u64::from(width)))?),
            }
        }
        Generalise::Band(width) if *values.data_type() == DataType::Float64 => {
            let width = f64::from(width);
            Arc::new(values.as_primitive::<Float64Type>().unary::<_, Float64Type>(|n| (n / width).floor() * width))
        }
        Generalise::Band(width) => {
            let width = i64::from(width);
            let numbers = cast(values, &DataType::Int64)?;
            let floors = numbers.as_primitive::<Int64Type>().unary::<_, Int64Type>(|n| n - n.rem_euclid(width));
            // A floor of a value of the type may lie below its least value by less than one band.
            arrow::compute::cast(&(Arc::new(floors) as ArrayRef), values.data_type())?
        }
    })
}

/// The first bytes of texts in which each byte is a character. The engine's own functions take several times as long for
/// short ones.
fn first_bytes(texts: &StringArray, most: usize) -> StringArray {
    let mut first =
        StringBuilder::with_capacity(texts.len(), texts.value_data().len().min(texts.len().saturating_mul(most)));
    for text in texts {
        first.append_option(text.map(|text| text.get(..most).unwrap_or(text)));
    }
    first.finish()
}

#[cfg(test)]
mod tests {
    use arrow::array::Date32Array;
    use proptest::{collection, option, prelude::*};

    use super::*;

    fn of_days(how: Generalise, days: Vec<Option<i32>>) -> Vec<Option<NaiveDate>> {
        let values: ArrayRef = Arc::new(Date32Array::from(days));
        let coarse = generalised(how, &values).unwrap();
        coarse.as_primitive::<Date32Type>().iter().map(|day| NaiveDate::from_epoch_days(day?)).collect()
    }

    fn of_texts(width: u32, texts: Vec<Option<&str>>) -> Vec<Option<String>> {
        let values: ArrayRef = Arc::new(StringArray::from(texts));
        let coarse = generalised(Generalise::Prefix(width), &values).unwrap();
        coarse.as_string::<i32>().iter().map(|text| text.map(str::to_owned)).collect()
    }

    proptest! {
        #[test]
        fn days_become_the_first_of_their_period(days in collection::vec(option::of(-1_000_000..1_000_000), 0..20)) {
            let dates: Vec<_> = days.iter().map(|day| NaiveDate::from_epoch_days((*day)?)).collect();
            let first = |year: i32, month: u32| NaiveDate::from_ymd_opt(year, month, 1);
            let months: Vec<_> = dates.iter().map(|day| first(day.as_ref()?.year(), day.as_ref()?.month())).collect();
            let years: Vec<_> = dates.iter().map(|day| first(day.as_ref()?.year(), 1)).collect();
            let decades: Vec<_> = dates.iter().map(|day| first(day.as_ref()?.year().div_euclid(10) * 10, 1)).collect();
            prop_assert_eq!(of_days(Generalise::Month, days.clone()), months);
            prop_assert_eq!(of_days(Generalise::Year, days.clone()), years);
            prop_assert_eq!(of_days(Generalise::Years(10), days), decades);
        }

        #[test]
        fn texts_become_their_first_characters(texts in collection::vec(option::of("[0-9a-z区é]{0,6}"), 0..6), width in 0..8_u32) {
            let known: Vec<_> = texts
                .iter()
                .map(|text| Some(text.as_ref()?.chars().take(width as usize).collect::<String>()))
                .collect();
            prop_assert_eq!(of_texts(width, texts.iter().map(Option::as_deref).collect()), known);
        }
    }

    #[test]
    fn days_beyond_the_calendar_are_nothing() {
        for how in [Generalise::Month, Generalise::Year, Generalise::Years(10)] {
            assert_eq!(of_days(how, vec![Some(i32::MAX), Some(i32::MIN), None]), [None, None, None]);
        }
    }
}

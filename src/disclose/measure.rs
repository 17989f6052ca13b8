//! Values of a field as whole numbers of units: clamped to the bounds of the contract and taken from the
//! field's public centre, so that sums are exact in any order and noise is in proportion to deviations.

use std::{
    fmt,
    hash::{Hash, Hasher},
    sync::Arc,
};

use arrow::{
    array::{Array, ArrayRef, AsArray, Decimal128Array, Int64Array},
    compute::cast,
    datatypes::{DataType, Decimal128Type, Float64Type},
};
use datafusion::{
    common::{Result, ScalarValue, internal_err},
    logical_expr::{ColumnarValue, Expr, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility},
    prelude::lit,
};

use crate::{
    dataset::{Bin, Field, FieldType},
    error::Error,
};

/// Whether a value is taken as it is or squared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Power {
    /// The deviation.
    One,
    /// Its square.
    Two,
}

/// Whether values of the field can be added up.
pub fn is_number(field: &Field) -> bool {
    field.identifier.is_none()
        && matches!(field.kind, FieldType::Integer(_) | FieldType::Decimal(..) | FieldType::Double)
}

/// The centre of a field in units, and the decimal digits of a unit.
pub fn centre(field: &Field) -> (i128, u8) {
    let digits = digits(field);
    (in_units(centre_value(field), digits), digits)
}

/// The value in units from the centre.
///
/// # Errors
/// Where the field is no number.
pub fn units(value: Expr, field: &Field, power: Power) -> crate::error::Result<Expr> {
    if !is_number(field) {
        return Err(Error::internal("a measure that is no number"));
    }
    let digits = digits(field);
    let bounds = field.bounds.map(|(low, high)| (in_units(low, digits), in_units(high, digits)));
    let measure = Units {
        digits,
        bounds: bounds.unwrap_or((-WIDEST, WIDEST)),
        centre: in_units(centre_value(field), digits),
        power,
        signature: Signature::any(1, Volatility::Immutable),
    };
    Ok(ScalarUDF::new_from_impl(measure).call(vec![value]))
}

/// The edges of the field's registered bins, as literals of its type and as numbers.
pub fn edges(field: &Field) -> Option<Vec<(Expr, f64)>> {
    let texts = field.bins.iter().find_map(|bin| match bin {
        Bin::Edges(edges) => Some(edges.texts().collect::<Vec<_>>()),
        _ => None,
    });
    let texts = texts.or_else(|| {
        let (low, high) = field.bounds.filter(|(low, high)| high - low <= 50.0)?;
        let whole = matches!(field.kind, FieldType::Integer(_)) && field.bins.contains(&Bin::Value);
        whole.then(|| (low as i64..=high as i64 + 1).map(|edge| edge.to_string()).collect())
    })?;
    texts
        .iter()
        .map(|text| {
            let number: f64 = text.parse().ok()?;
            let literal = match field.kind {
                FieldType::Integer(_) => lit(text.parse::<i64>().ok()?),
                FieldType::Decimal(precision, scale) => {
                    let units = in_units(number, u8::try_from(scale).ok()?);
                    lit(ScalarValue::Decimal128(Some(units), precision, scale))
                }
                _ => lit(number),
            };
            Some((literal, number))
        })
        .collect()
}

/// The most units that a value without bounds may have; more are cut off.
const WIDEST: i128 = 1_000_000_000_000_000_000;

/// Significant digits that are kept of a double.
const DOUBLE_DIGITS: i32 = 12;

fn digits(field: &Field) -> u8 {
    match field.kind {
        FieldType::Decimal(_, scale) => u8::try_from(scale).unwrap_or(0),
        FieldType::Double => {
            let (low, high) = field.bounds.unwrap_or((-1e6, 1e6));
            let whole = low.abs().max(high.abs()).max(1.0).log10().ceil() as i32;
            u8::try_from((DOUBLE_DIGITS - whole).clamp(0, 12)).unwrap_or(0)
        }
        _ => 0,
    }
}

fn centre_value(field: &Field) -> f64 {
    field.centre.unwrap_or(0.0)
}

fn in_units(value: f64, digits: u8) -> i128 {
    // A cast to an integer saturates, and takes NaN for zero.
    (value * 10_f64.powi(i32::from(digits))).round() as i128
}

/// The conversion as a function of the engine. It is in no registry: only protected aggregates use it. It
/// fails on no value.
struct Units {
    digits: u8,
    bounds: (i128, i128),
    centre: i128,
    power: Power,
    signature: Signature,
}

impl Units {
    fn key(&self) -> (u8, (i128, i128), i128, Power) {
        (self.digits, self.bounds, self.centre, self.power)
    }

    fn deviation(&self, units: i128) -> i128 {
        let deviation = units.clamp(self.bounds.0, self.bounds.1) - self.centre;
        match self.power {
            Power::One => deviation,
            Power::Two => deviation.saturating_mul(deviation),
        }
    }

    /// Whether sums over a million rows of a subject fit 64 bits.
    fn is_narrow(&self) -> bool {
        let widest = (self.bounds.0 - self.centre).abs().max((self.bounds.1 - self.centre).abs());
        self.power == Power::One && widest < 1 << 40
    }
}

impl fmt::Debug for Units {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl PartialEq for Units {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Units {}

impl Hash for Units {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.key().hash(state);
    }
}

impl ScalarUDFImpl for Units {
    fn name(&self) -> &'static str {
        "gridhub_units"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(if self.is_narrow() { DataType::Int64 } else { DataType::Decimal128(38, 0) })
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let [value] = arguments.args.as_slice() else { return internal_err!("a measure has one argument") };
        let values = value.to_array(arguments.number_rows)?;
        let units: Vec<Option<i128>> = match values.data_type() {
            DataType::Decimal128(..) => values
                .as_primitive::<Decimal128Type>()
                .iter()
                .map(|value| value.map(|value| self.deviation(value)))
                .collect(),
            DataType::Float64 => {
                let units = values.as_primitive::<Float64Type>().iter();
                let units = units.map(|value| value.filter(|value| !value.is_nan()));
                units.map(|value| value.map(|value| self.deviation(in_units(value, self.digits)))).collect()
            }
            _ => {
                let whole = cast(&values, &DataType::Int64)?;
                let whole: &Int64Array = whole.as_primitive();
                whole.iter().map(|value| value.map(|value| self.deviation(i128::from(value)))).collect()
            }
        };
        let array: ArrayRef = match self.is_narrow() {
            true => Arc::new(
                units.iter().map(|value| value.and_then(|value| i64::try_from(value).ok())).collect::<Int64Array>(),
            ),
            false => Arc::new(units.into_iter().collect::<Decimal128Array>().with_precision_and_scale(38, 0)?),
        };
        Ok(ColumnarValue::Array(array))
    }
}

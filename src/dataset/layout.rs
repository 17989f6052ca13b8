//! How field types are laid out in Arrow, and what they are called in SQL and policies.

use std::sync::Arc;

use arrow::{
    array::{Array, AsArray, Date32Array},
    compute::cast,
    datatypes::{
        DataType, Date32Type, Decimal128Type, Field as ArrowField, Int16Type, Int32Type, Int64Type, Schema, SchemaRef,
        TimeUnit, TimestampMicrosecondType,
    },
    error::ArrowError,
};

use super::{Dataset, FieldType, scope::Value};

/// How many microseconds a day of UTC has.
pub const DAY: i128 = 86_400_000_000;

/// How many digits after the point a policy's decimal has; a field with more is none that policies can read.
pub const POLICY_SCALE: i8 = 4;

/// How many bytes a pseudonym or a keyed digest of a row has.
pub const WIDTH: usize = 16;

/// The Arrow type in which values of a field type are kept.
pub fn arrow_type(kind: FieldType) -> DataType {
    match kind {
        FieldType::Text => DataType::Utf8,
        FieldType::Boolean => DataType::Boolean,
        // Delta has no 8-bit integer that every reader knows; 16 bits hold it.
        FieldType::Integer(8 | 16) => DataType::Int16,
        FieldType::Integer(32) => DataType::Int32,
        FieldType::Integer(_) => DataType::Int64,
        FieldType::Decimal(precision, scale) => DataType::Decimal128(precision, scale),
        FieldType::Double => DataType::Float64,
        FieldType::Date => DataType::Date32,
        FieldType::Timestamp => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
    }
}

/// The value in a row of a column of one of these types, as policies know it: nothing for NULL, and for types
/// they have no word for.
pub fn value(column: &dyn Array, row: usize) -> Option<Value<'_>> {
    if !column.is_valid(row) {
        return None;
    }
    Some(match column.data_type() {
        DataType::Utf8 => Value::Text(column.as_string::<i32>().value(row).into()),
        DataType::Boolean => Value::Truth(column.as_boolean().value(row)),
        DataType::Int16 => Value::Whole(column.as_primitive::<Int16Type>().value(row).into()),
        DataType::Int32 => Value::Whole(column.as_primitive::<Int32Type>().value(row).into()),
        DataType::Int64 => Value::Whole(column.as_primitive::<Int64Type>().value(row)),
        DataType::Date32 => Value::Instant(i128::from(column.as_primitive::<Date32Type>().value(row)) * DAY),
        DataType::Timestamp(TimeUnit::Microsecond, _) => {
            Value::Instant(column.as_primitive::<TimestampMicrosecondType>().value(row).into())
        }
        DataType::Decimal128(_, scale) => {
            // What is too large to be widened is larger than anything a policy can name.
            Value::Decimal(column.as_primitive::<Decimal128Type>().value(row).saturating_mul(ten_thousandths(*scale)?))
        }
        _ => return None,
    })
}

/// The days by UTC, since 1970, of the dates or times of a column.
///
/// # Errors
/// Where it holds neither.
pub fn days(column: &dyn Array) -> Result<Date32Array, ArrowError> {
    const DAY: i64 = 86_400_000_000;
    match column.data_type() {
        // A cast goes by the calendar, at many times the cost, and fails for years that the calendar does not know.
        DataType::Timestamp(TimeUnit::Microsecond, Some(zone)) if &**zone == "UTC" => {
            let times = column.as_primitive::<TimestampMicrosecondType>();
            Ok(times.unary(|time| i32::try_from(time.div_euclid(DAY)).unwrap_or(i32::MAX)))
        }
        _ => Ok(cast(column, &DataType::Date32)?.as_primitive::<Date32Type>().clone()),
    }
}

/// How many ten-thousandths a stored decimal of that scale counts in; nothing where it is finer than that.
pub fn ten_thousandths(scale: i8) -> Option<i128> {
    let digits = u32::try_from(POLICY_SCALE.checked_sub(scale)?).ok()?;
    10_i128.checked_pow(digits)
}

/// The Arrow schema of the stored fields of a dataset: identifiers as 16-byte binaries, free text absent.
pub fn stored_schema(dataset: &Dataset) -> SchemaRef {
    let fields = dataset.stored_fields().map(|field| {
        let kind = if field.identifier.is_some() { DataType::Binary } else { arrow_type(field.kind) };
        ArrowField::new(&field.name, kind, true)
    });
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

/// A column type in SQL's words.
pub fn type_word(kind: &DataType) -> String {
    use DataType as D;
    match kind {
        D::Utf8 | D::LargeUtf8 | D::Utf8View => "text".into(),
        D::Boolean => "boolean".into(),
        D::Int8 | D::Int16 | D::UInt8 => "smallint".into(),
        D::Int32 | D::UInt16 => "integer".into(),
        D::Int64 | D::UInt32 | D::UInt64 => "bigint".into(),
        D::Float16 | D::Float32 => "real".into(),
        D::Float64 => "double precision".into(),
        D::Decimal32(precision, scale)
        | D::Decimal64(precision, scale)
        | D::Decimal128(precision, scale)
        | D::Decimal256(precision, scale) => format!("numeric({precision},{scale})"),
        D::Date32 | D::Date64 => "date".into(),
        D::Time32(_) | D::Time64(_) => "time".into(),
        D::Timestamp(_, Some(_)) => "timestamp with time zone".into(),
        D::Timestamp(_, None) => "timestamp".into(),
        D::Interval(_) | D::Duration(_) => "interval".into(),
        D::Null => "unknown".into(),
        D::Dictionary(_, value) => type_word(value),
        D::Binary | D::LargeBinary | D::BinaryView | D::FixedSizeBinary(_) => "bytea".into(),
        _ => "nested".into(),
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::TimestampMicrosecondArray;

    use super::*;

    #[test]
    fn days_are_those_of_utc_in_all_years() {
        let day = 86_400_000_000;
        let times = [Some(-1), Some(0), Some(day - 1), None, Some(day), Some(i64::MAX), Some(i64::MIN)];
        let times = TimestampMicrosecondArray::from(times.to_vec()).with_timezone("UTC");
        let expected = [Some(-1), Some(0), Some(0), None, Some(1), Some(106_751_991), Some(-106_751_992)];
        assert_eq!(days(&times).expect("days").iter().collect::<Vec<_>>(), expected);
        let dates = Date32Array::from(vec![Some(7), None]);
        assert_eq!(days(&dates).expect("days"), dates);
    }
}

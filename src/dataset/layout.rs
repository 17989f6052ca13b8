//! How field types are laid out in Arrow, and what they are called in SQL.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field as ArrowField, Schema, SchemaRef, TimeUnit};

use super::{Dataset, FieldType};

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

//! Small tables made from rows of named cells.

use std::sync::Arc;

use arrow::{
    array::{
        ArrayRef, BooleanArray, Int16Array, Int32Array, Int64Array, ListBuilder, RecordBatch, RecordBatchOptions,
        StringArray, StringBuilder, new_null_array,
    },
    compute::cast,
    datatypes::{DataType, Field, SchemaRef},
    error::ArrowError,
};

/// One value of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Cell {
    /// A whole number, an object id among them.
    Whole(i64),
    /// True or false.
    Truth(bool),
    /// Text.
    Text(String),
    /// Several texts.
    Texts(Vec<String>),
}

impl From<i32> for Cell {
    fn from(value: i32) -> Self {
        Self::Whole(value.into())
    }
}

impl From<i64> for Cell {
    fn from(value: i64) -> Self {
        Self::Whole(value)
    }
}

impl From<bool> for Cell {
    fn from(value: bool) -> Self {
        Self::Truth(value)
    }
}

impl From<&str> for Cell {
    fn from(value: &str) -> Self {
        Self::Text(value.to_owned())
    }
}

impl From<&String> for Cell {
    fn from(value: &String) -> Self {
        Self::Text(value.clone())
    }
}

impl From<String> for Cell {
    fn from(value: String) -> Self {
        Self::Text(value)
    }
}

/// Cells by the names of their columns. A column that is not named is NULL; where its schema forbids that, it is 0,
/// false or empty.
pub(super) type Row = Vec<(&'static str, Cell)>;

/// The rows as a batch of that schema.
///
/// # Errors
/// Where a schema has a type that no such row can hold.
pub(super) fn batch(schema: &SchemaRef, rows: &[Row]) -> Result<RecordBatch, ArrowError> {
    let columns = schema.fields().iter().map(|field| column(field, rows));
    let options = RecordBatchOptions::new().with_row_count(Some(rows.len()));
    RecordBatch::try_new_with_options(Arc::clone(schema), columns.collect::<Result<Vec<_>, _>>()?, &options)
}

/// The columns of a batch under another schema: those of the same name, cast where they must be; NULL for others.
///
/// # Errors
/// Where a column cannot be cast.
pub(super) fn fitted(source: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch, ArrowError> {
    let columns = schema.fields().iter().map(|field| match source.column_by_name(field.name()) {
        Some(column) if !matches!(field.data_type(), DataType::List(_)) => cast(column, field.data_type()),
        _ => Ok(new_null_array(field.data_type(), source.num_rows())),
    });
    RecordBatch::try_new(Arc::clone(schema), columns.collect::<Result<Vec<_>, _>>()?)
}

fn column(field: &Field, rows: &[Row]) -> Result<ArrayRef, ArrowError> {
    let name = field.name();
    let cells = || rows.iter().map(|row| row.iter().find(|(column, _)| column == name).map(|(_, cell)| cell));
    let whole = || {
        cells().map(|cell| match cell {
            Some(Cell::Whole(value)) => Some(*value),
            _ => (!field.is_nullable()).then_some(0),
        })
    };
    Ok(match field.data_type() {
        DataType::Int16 => Arc::new(whole().map(|value| i16::try_from(value?).ok()).collect::<Int16Array>()),
        DataType::Int32 => Arc::new(whole().map(|value| i32::try_from(value?).ok()).collect::<Int32Array>()),
        DataType::Int64 => Arc::new(whole().collect::<Int64Array>()),
        kind @ (DataType::Float32 | DataType::Float64) => cast(&whole().collect::<Int64Array>(), kind)?,
        DataType::Boolean => {
            let truths = cells().map(|cell| match cell {
                Some(Cell::Truth(value)) => Some(*value),
                _ => (!field.is_nullable()).then_some(false),
            });
            Arc::new(truths.collect::<BooleanArray>())
        }
        DataType::Utf8 => {
            let texts = cells().map(|cell| match cell {
                Some(Cell::Text(text)) => Some(text.as_str()),
                _ => (!field.is_nullable()).then_some(""),
            });
            Arc::new(texts.collect::<StringArray>())
        }
        DataType::List(item) if *item.data_type() == DataType::Utf8 => {
            let mut lists = ListBuilder::new(StringBuilder::new()).with_field(Arc::clone(item));
            for cell in cells() {
                match cell {
                    Some(Cell::Texts(texts)) => lists.append_value(texts.iter().map(Some)),
                    _ => lists.append_null(),
                }
            }
            Arc::new(lists.finish())
        }
        kind => new_null_array(kind, rows.len()),
    })
}

#[cfg(test)]
mod tests {
    use arrow::{
        array::AsArray,
        datatypes::{Int32Type, Schema},
    };

    use super::*;

    #[test]
    fn cells_stand_under_their_names() {
        let fields = vec![
            Field::new("oid", DataType::Int32, false),
            Field::new("name", DataType::Utf8, true),
            Field::new("words", DataType::new_list(DataType::Utf8, true), true),
            Field::new("weight", DataType::Float32, true),
        ];
        let schema = Arc::new(Schema::new(fields));
        let rows = [
            vec![("name", "a".into()), ("oid", 7.into())],
            vec![("words", Cell::Texts(vec!["b".into()])), ("name", "c".into())],
        ];
        let batch = batch(&schema, &rows).expect("a batch");
        assert_eq!(batch.column(0).as_primitive::<Int32Type>().values(), &[7, 0]);
        assert_eq!(batch.column(1).as_string::<i32>().iter().collect::<Vec<_>>(), [Some("a"), Some("c")]);
        assert_eq!(batch.column(2).null_count(), 1);
        let narrow = Arc::new(Schema::new(vec![Field::new("oid", DataType::Int64, true)]));
        assert_eq!(fitted(&batch, &narrow).expect("fitted").num_rows(), 2);
    }
}

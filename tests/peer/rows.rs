//! Answers as rows of text, and whether two of them say the same.

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, AsArray, RecordBatch},
    compute::cast,
    datatypes::{DataType, Field, Float64Type, Schema, SchemaRef},
    util::display::{ArrayFormatter, FormatOptions},
};

pub const NULL: &str = "∅";

pub type Row = Vec<String>;

/// How two answers are compared.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum How {
    InOrder,
    ByRows,
    ByValues,
}

/// A schema without notes, and in which everything may be missing.
pub fn open_schema(schema: &Schema) -> SchemaRef {
    let fields = schema.fields().iter().map(|field| Field::new(field.name(), field.data_type().clone(), true));
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

pub fn rows_of(batches: &[RecordBatch]) -> Vec<Row> {
    let mut rows = Vec::new();
    for batch in batches {
        let columns: Vec<_> = batch.columns().iter().map(cells).collect();
        rows.extend((0..batch.num_rows()).map(|row| columns.iter().map(|cells| cells[row].clone()).collect::<Row>()));
    }
    rows
}

fn cells(column: &ArrayRef) -> Vec<String> {
    if column.data_type().is_floating() {
        let numbers = cast(column, &DataType::Float64).unwrap();
        let numbers = numbers.as_primitive::<Float64Type>();
        return numbers.iter().map(|number| number.map_or_else(|| NULL.to_owned(), twelve_digits)).collect();
    }
    let options = FormatOptions::new().with_null(NULL);
    match ArrayFormatter::try_new(column.as_ref(), &options) {
        Ok(formatter) => (0..column.len()).map(|row| formatter.value(row).to_string()).collect(),
        Err(_) => vec![column.data_type().to_string(); column.len()],
    }
}

/// Sums of many numbers differ behind these by the order in which they are added.
fn twelve_digits(number: f64) -> String {
    if number.is_nan() { "NaN".into() } else { format!("{number:.11e}") }
}

pub fn sorted(mut rows: Vec<Row>) -> Vec<Row> {
    rows.sort();
    rows
}

pub fn same(expected: &[Row], answered: &[Row], how: How) -> bool {
    laid_out(expected, how) == laid_out(answered, how)
}

fn laid_out(rows: &[Row], how: How) -> Vec<Row> {
    match how {
        How::InOrder => rows.to_vec(),
        How::ByRows => sorted(rows.to_vec()),
        How::ByValues => sorted(rows.iter().flatten().map(|cell| vec![cell.clone()]).collect()),
    }
}

pub fn first_difference(expected: &[Row], answered: &[Row], how: How) -> String {
    let (left, right) = (laid_out(expected, how), laid_out(answered, how));
    let at = left.iter().zip(&right).position(|(a, b)| a != b).unwrap_or_else(|| left.len().min(right.len()));
    let shown = |rows: &[Row]| rows.get(at).map_or_else(|| "nothing".to_owned(), |row| cut(&row.join(" | "), 200));
    format!(
        "{} rows expected, {} answered; row {at}: expected {}, answered {}",
        left.len(),
        right.len(),
        shown(&left),
        shown(&right)
    )
}

/// A text on one line, its beginning only where it is long.
pub fn cut(text: &str, longest: usize) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(longest).collect()
}

//! Keyed digests of whole rows, by which exact copies are known. The encoding is the hub's own, since digests
//! outlive library versions.

use arrow::{
    array::{Array, ArrayRef, AsArray, BooleanArray, StringArray},
    datatypes::{
        DataType, Date32Type, Decimal128Type, Float64Type, Int16Type, Int32Type, Int64Type, TimeUnit,
        TimestampMicrosecondType,
    },
};
use ring::hmac;

use crate::{
    dataset::{Dataset, layout::WIDTH},
    error::{Error, Result},
};

/// A column as bytes of its values.
enum Values<'a> {
    Texts(&'a StringArray),
    Truths(&'a BooleanArray),
    /// Little-endian numbers of so many bytes each; what stands where there is none means nothing.
    Numbers(&'a dyn Array, &'a [u8], usize),
}

impl<'a> Values<'a> {
    fn of(column: &'a ArrayRef) -> Result<Self> {
        macro_rules! numbers {
            ($kind:ty, $width:literal) => {{
                let numbers = column.as_primitive::<$kind>();
                Self::Numbers(column.as_ref(), numbers.values().inner().as_slice(), $width)
            }};
        }
        Ok(match column.data_type() {
            DataType::Utf8 => Self::Texts(column.as_string()),
            DataType::Boolean => Self::Truths(column.as_boolean()),
            DataType::Int16 => numbers!(Int16Type, 2),
            DataType::Int32 => numbers!(Int32Type, 4),
            DataType::Int64 => numbers!(Int64Type, 8),
            DataType::Date32 => numbers!(Date32Type, 4),
            DataType::Timestamp(TimeUnit::Microsecond, _) => numbers!(TimestampMicrosecondType, 8),
            DataType::Float64 => numbers!(Float64Type, 8),
            DataType::Decimal128(..) => numbers!(Decimal128Type, 16),
            _ => return Err(Error::internal("a field type without an encoding")),
        })
    }

    /// Appends the value in a row: a mark of whether there is one, its length where lengths differ, its bytes.
    fn append(&self, row: usize, encoded: &mut Vec<u8>) {
        match self {
            Self::Texts(texts) if texts.is_valid(row) => {
                let text = texts.value(row).as_bytes();
                encoded.push(1);
                encoded.extend_from_slice(&(text.len() as u64).to_le_bytes());
                encoded.extend_from_slice(text);
            }
            Self::Truths(truths) if truths.is_valid(row) => {
                encoded.extend_from_slice(&[1, u8::from(truths.value(row))]);
            }
            Self::Numbers(column, bytes, width) if column.is_valid(row) => {
                encoded.push(1);
                encoded.extend_from_slice(&bytes[row * width..(row + 1) * width]);
            }
            _ => encoded.push(0),
        }
    }
}

/// A keyed digest of each whole row, free text included: two rows of one source are exact copies when these are
/// equal. `columns` are those of the contract's fields, in its order, `rows` long. Fields that a later version added
/// count by name and only where they are filled, so that a row has one digest under all versions.
///
/// # Errors
/// Only a fault of the hub.
pub fn row_digests(
    key: &hmac::Key,
    dataset: &Dataset,
    source: &str,
    columns: &[ArrayRef],
    rows: usize,
) -> Result<Vec<[u8; WIDTH]>> {
    let (mut first, mut added) = (Vec::new(), Vec::new());
    for (at, column) in columns.iter().enumerate() {
        match dataset.fields.get(at).filter(|field| field.since.is_some()) {
            None => first.push(Values::of(column)?),
            Some(field) => added.push((field.name.as_str(), column, Values::of(column)?)),
        }
    }
    added.sort_by_key(|(name, ..)| *name);
    let mut encoded = Vec::new();
    for part in [dataset.name.to_string().as_str(), source] {
        encoded.extend_from_slice(&(part.len() as u64).to_le_bytes());
        encoded.extend_from_slice(part.as_bytes());
    }
    let start = encoded.len();
    let digests = (0..rows).map(|row| {
        encoded.truncate(start);
        for column in &first {
            column.append(row, &mut encoded);
        }
        for (name, _, values) in added.iter().filter(|(_, column, _)| column.is_valid(row)) {
            encoded.push(2);
            encoded.extend_from_slice(&(name.len() as u64).to_le_bytes());
            encoded.extend_from_slice(name.as_bytes());
            values.append(row, &mut encoded);
        }
        let mut digest = [0; WIDTH];
        digest.copy_from_slice(&hmac::sign(key, &encoded).as_ref()[..WIDTH]);
        digest
    });
    Ok(digests.collect())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Float64Array, Int64Array};

    use super::*;
    use crate::dataset::contract;

    fn visits() -> Arc<Dataset> {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("schemas");
        let datasets = contract::load_folder(&folder).expect("contracts");
        Arc::clone(datasets.values().find(|dataset| dataset.name.table == "visits").expect("visits"))
    }

    #[test]
    fn rows_have_one_digest_only_if_all_of_them_is_the_same() {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &[7; 32]);
        let texts: ArrayRef =
            Arc::new(StringArray::from(vec![Some("a"), Some("a"), None, Some(""), Some("ab"), Some("a")]));
        let more: ArrayRef =
            Arc::new(StringArray::from(vec![Some("b"), Some("b"), Some("b"), Some("b"), None, Some("b")]));
        let numbers: ArrayRef = Arc::new(Int64Array::from(vec![Some(1), Some(1), Some(1), Some(1), Some(1), None]));
        let reals: ArrayRef = Arc::new(Float64Array::from(vec![0.5; 6]));
        let columns = [texts, more, numbers, reals];
        let dataset = visits();
        let digests = row_digests(&key, &dataset, "community", &columns, 6).expect("digests");
        assert_eq!(digests[0], digests[1]);
        let distinct: std::collections::HashSet<_> = digests.iter().collect();
        assert_eq!(distinct.len(), 5, "a value, none, an empty one, a shifted border and a missing number differ");
        let other = row_digests(&key, &dataset, "hospital", &columns, 1).expect("digests");
        assert_ne!(other[0], digests[0], "another source's row is another row");
        // A slice of a longer column is read from its own first row.
        let tail: Vec<ArrayRef> = columns.iter().map(|column| column.slice(2, 3)).collect();
        assert_eq!(row_digests(&key, &dataset, "community", &tail, 3).expect("digests"), digests[2..5]);
    }
}

//! Rows that say of themselves that they correct earlier ones. Whether the hub has those is not looked at: a receipt
//! depends on nothing but the file and what its source sent.

use arrow::{
    array::{AsArray, RecordBatch},
    compute::cast,
    datatypes::{DataType, Int64Type},
};

use crate::dataset::{ChangeMode, Dataset, FieldType};

/// How many of the rows, in canonical form, are revisions: where the dataset's order is a whole number that counts
/// up from 1, those with more than 1. Where its order is a time, or there is none, no row says so, and it is 0.
pub(super) fn revisions(dataset: &Dataset, rows: &RecordBatch) -> usize {
    let (ChangeMode::Upsert { order_by: Some(order) } | ChangeMode::Changes { order_by: Some(order), .. }) =
        &dataset.change
    else {
        return 0;
    };
    if !dataset.field(order).is_some_and(|field| matches!(field.kind, FieldType::Integer(_))) {
        return 0;
    }
    let Some(Ok(numbers)) = rows.column_by_name(order).map(|column| cast(column, &DataType::Int64)) else { return 0 };
    numbers.as_primitive_opt::<Int64Type>().map_or(0, |numbers| numbers.iter().flatten().filter(|n| *n > 1).count())
}

#[cfg(test)]
mod tests {
    use std::{path::Path, sync::Arc};

    use arrow::{
        array::{ArrayRef, Int16Array, TimestampMicrosecondArray},
        datatypes::{Field as ArrowField, Schema},
    };

    use super::*;
    use crate::dataset::contract;

    fn dataset(mode: &str, kind: &str) -> Dataset {
        let text = format!(
            "apiVersion: v3.1.0\nkind: DataContract\nid: lab.samples\nname: samples\nversion: 1.0.0\nstatus: active\n\
             schema:\n  - name: samples\n    customProperties: [{mode}]\n    properties:\n      \
             - {{name: id, logicalType: string, physicalType: string, primaryKey: true}}\n      \
             - {{name: version, {kind}}}\n"
        );
        contract::parse(Path::new("lab.samples.odcs.yaml"), &text).unwrap()
    }

    fn rows(column: ArrayRef) -> RecordBatch {
        let schema = Schema::new(vec![ArrowField::new("version", column.data_type().clone(), true)]);
        RecordBatch::try_new(Arc::new(schema), vec![column]).unwrap()
    }

    #[test]
    fn numbers_above_one_are_revisions() {
        let ordered = "{property: gridhub.changeMode, value: upsert}, {property: gridhub.orderBy, value: version}";
        let whole = "logicalType: integer, physicalType: int16";
        let numbers = rows(Arc::new(Int16Array::from(vec![Some(1), Some(2), None, Some(7), Some(0), Some(-3)])));
        assert_eq!(revisions(&dataset(ordered, whole), &numbers), 2);
        assert_eq!(revisions(&dataset("{property: gridhub.changeMode, value: upsert}", whole), &numbers), 0);
        assert_eq!(revisions(&dataset("", whole), &numbers), 0);
        let times = rows(Arc::new(TimestampMicrosecondArray::from(vec![5, 6]).with_timezone("UTC")));
        assert_eq!(revisions(&dataset(ordered, "logicalType: timestamp, physicalType: timestamp"), &times), 0);
    }
}

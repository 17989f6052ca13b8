//! Prepared statements: described once, bound as often as wanted, asked through tickets like any other question.

use std::{sync::Arc, time::Duration};

use arrow::{
    array::{Array, AsArray, RecordBatch},
    datatypes::{DataType, Date64Type, Field, Fields, Schema},
    ipc::writer::IpcWriteOptions,
};
use arrow_flight::{
    FlightData, FlightDescriptor, FlightInfo, IpcMessage, SchemaAsIpc,
    sql::{ActionCreatePreparedStatementResult, DoPutPreparedStatementResult},
};
use bytes::Bytes;
use datafusion::common::ScalarValue;
use futures::stream::BoxStream;
use tonic::Status;

use super::{
    Door, error,
    session::{Asker, Settings},
    shapes::Shape,
};
use crate::{
    error::{Error, Result},
    spool, validate,
};

/// Bytes that the messages with values may have, as sent and once decompressed.
const SENT: u64 = 1 << 20;

/// Bytes that the values of one statement may take, since each ticket for it keeps them.
const VALUES: usize = 256 << 10;

/// How long a statement is kept that nobody uses.
pub(super) const LIFE: Duration = Duration::from_secs(3_600);

/// A statement, the values bound to it last, and what was found when it was described.
#[derive(Clone)]
pub(super) struct Prepared {
    sql: String,
    params: Vec<ScalarValue>,
    shape: Arc<Shape>,
    described_for: Settings,
}

impl Door {
    /// Prepares a statement.
    pub(super) async fn prepare(&self, asker: &Asker, sql: String) -> Result<ActionCreatePreparedStatementResult> {
        let shape = self.describe(asker, &sql).await?;
        let parameters = shape.parameters.iter().enumerate();
        let parameters = parameters.map(|(at, kind)| Field::new(format!("${}", at + 1), kind.clone(), true));
        let (dataset_schema, parameter_schema) =
            (shape.encoded.clone(), encoded(&Schema::new(parameters.collect::<Fields>()))?);
        let described_for = asker.settings.clone();
        let prepared = Prepared { sql, params: Vec::new(), shape, described_for };
        let handle = self.prepared.add(asker.id(), prepared)?;
        let prepared_statement_handle = Bytes::copy_from_slice(&handle);
        Ok(ActionCreatePreparedStatementResult { prepared_statement_handle, dataset_schema, parameter_schema })
    }

    /// Binds the one row of values that comes in. The handle stays the same, since some clients go on with the one they
    /// have; tickets given out before keep the values they were given for.
    pub(super) async fn bind(
        &self,
        asker: &Asker,
        handle: &Bytes,
        messages: BoxStream<'static, Result<FlightData, Status>>,
    ) -> Result<DoPutPreparedStatementResult, Status> {
        if self.prepared.of(asker.id(), handle).is_none() {
            return Err(error::unknown_statement());
        }
        let body = self.arrow_body(messages, SENT).await.map_err(not_taken)?;
        let params = bound_values(&body)?;
        let bound = self.prepared.change(asker.id(), handle, |prepared| prepared.params = params);
        bound.ok_or_else(error::unknown_statement)?;
        Ok(DoPutPreparedStatementResult { prepared_statement_handle: Some(handle.clone()) })
    }

    /// A ticket for a prepared statement with the values bound to it.
    pub(super) async fn prepared_ticket(
        &self,
        asker: &Asker,
        descriptor: FlightDescriptor,
        handle: &[u8],
    ) -> Result<FlightInfo, Status> {
        let prepared = self.prepared.of(asker.id(), handle).ok_or_else(error::unknown_statement)?;
        let shape = self.prepared_shape(asker, &prepared).await?;
        Ok(self.ticket(asker, descriptor, prepared.sql, prepared.params, shape)?)
    }

    /// What its answer will look like: as when it was prepared, unless it is asked otherwise than then.
    pub(super) async fn prepared_shape(&self, asker: &Asker, prepared: &Prepared) -> Result<Arc<Shape>> {
        let (then, now) = (&prepared.described_for, &asker.settings);
        match then.purpose == now.purpose && then.wishes == now.wishes {
            true => Ok(Arc::clone(&prepared.shape)),
            false => self.describe(asker, &prepared.sql).await,
        }
    }
}

/// The values of the one row that was sent; none where no row was.
fn bound_values(body: &spool::Body) -> Result<Vec<ScalarValue>> {
    // What a decoder says of values may hold them.
    let batches = validate::plain_rows(body, SENT).map_err(|_| unreadable())?;
    let mut rows = batches.iter().filter(|batch| batch.num_rows() > 0);
    let Some(row) = rows.next() else { return Ok(Vec::new()) };
    if row.num_rows() > 1 || rows.next().is_some() {
        return Err(Error::BadRequest(
            "a prepared statement is bound to one row of values; ask once for each row, or put the values into the \
             statement"
                .into(),
        ));
    }
    let values = values(row)?;
    match values.iter().map(ScalarValue::size).sum::<usize>() > VALUES {
        true => Err(too_long()),
        false => Ok(values),
    }
}

/// The values of a row, in the order of its fields: clients name them `0`, `1`, … or as the parameters are named.
fn values(batch: &RecordBatch) -> Result<Vec<ScalarValue>> {
    if batch.columns().iter().any(|column| has_day_before_all(column.as_ref())) {
        return Err(unknown_value());
    }
    batch.columns().iter().map(|column| ScalarValue::try_from_array(column, 0).map_err(|_| unknown_value())).collect()
}

/// Whether there is the one day in it that the engine cannot write down, and panics over.
fn has_day_before_all(column: &dyn Array) -> bool {
    match column.data_type() {
        DataType::Date64 => column.as_primitive::<Date64Type>().iter().any(|day| day == Some(i64::MIN)),
        DataType::List(_) => has_day_before_all(column.as_list::<i32>().values().as_ref()),
        DataType::LargeList(_) => has_day_before_all(column.as_list::<i64>().values().as_ref()),
        _ => false,
    }
}

fn unknown_value() -> Error {
    Error::BadRequest("a value bound to the statement has a type that parameters cannot have; cast it".into())
}

fn unreadable() -> Error {
    Error::BadRequest("the values to bind cannot be read; send one row of plain values as Arrow record batches".into())
}

fn too_long() -> Error {
    Error::TooLarge { what: "the row of values", limit: format!("{} KiB", VALUES >> 10) }
}

/// Why messages with values were not taken, in the words of values.
fn not_taken(error: Error) -> Error {
    match error {
        Error::TooLarge { .. } => too_long(),
        Error::BrokeOff(_) => Error::BrokeOff("the values did not come whole; bind them again".into()),
        other => other,
    }
}

/// A schema as it stands in messages.
pub(super) fn encoded(schema: &Schema) -> Result<Bytes> {
    let options = IpcWriteOptions::default();
    let IpcMessage(bytes) = IpcMessage::try_from(SchemaAsIpc::new(schema, &options)).map_err(Error::internal)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use arrow::{
        array::{ArrayRef, Date64Array, Int64Array, ListArray, NullArray, StringArray},
        buffer::OffsetBuffer,
        datatypes::Int64Type,
        ipc::{
            CompressionType,
            writer::{IpcWriteOptions, StreamWriter},
        },
    };

    use super::*;

    /// The messages that a client sends to bind these columns.
    fn sent(columns: Vec<(&str, ArrayRef)>, compression: Option<CompressionType>) -> Vec<u8> {
        let batch = RecordBatch::try_from_iter(columns).unwrap();
        let options = IpcWriteOptions::default().try_with_compression(compression).unwrap();
        let mut writer = StreamWriter::try_new_with_options(Vec::new(), batch.schema_ref(), options).unwrap();
        writer.write(&batch).unwrap();
        writer.into_inner().unwrap()
    }

    fn texts(texts: Vec<String>) -> ArrayRef {
        Arc::new(StringArray::from(texts))
    }

    #[test]
    fn one_row_is_bound_and_no_more() {
        let bound = |body: Vec<u8>| bound_values(&body.into());
        for compression in [None, Some(CompressionType::ZSTD), Some(CompressionType::LZ4_FRAME)] {
            let row = sent(vec![("0", texts(vec!["x".repeat(5_000)]))], compression);
            assert_eq!(bound(row).unwrap(), [ScalarValue::Utf8(Some("x".repeat(5_000)))]);
        }
        assert!(bound(sent(vec![("0", texts(Vec::new()))], None)).unwrap().is_empty());
        let two = bound(sent(vec![("0", texts(vec!["a".into(), "b".into()]))], None)).unwrap_err();
        assert!(matches!(two, Error::BadRequest(why) if why.contains("one row")));
        let long = bound(sent(vec![("0", texts(vec!["x".repeat(VALUES)]))], None)).unwrap_err();
        assert!(matches!(long, Error::TooLarge { .. }), "{long}");
        // It is small as it is sent.
        let packed = sent(vec![("0", texts(vec!["x".repeat(4 << 20)]))], Some(CompressionType::ZSTD));
        assert!(packed.len() < 64 << 10);
        assert!(matches!(bound(packed).unwrap_err(), Error::BadRequest(_)));
    }

    #[test]
    fn lengths_that_lie_are_not_believed() {
        for compression in [CompressionType::ZSTD, CompressionType::LZ4_FRAME] {
            let mut row = sent(vec![("0", texts(vec!["x".repeat(5_000)]))], Some(compression));
            // Where the writer says how long the text is once decompressed: reserving so much would end the process.
            let said = 8 * row.chunks_exact(8).rposition(|word| word == 5_000_u64.to_le_bytes()).unwrap();
            row[said..said + 8].copy_from_slice(&(1_u64 << 45).to_le_bytes());
            assert!(matches!(bound_values(&row.into()).unwrap_err(), Error::BadRequest(_)));
        }
        let columns: [ArrayRef; 2] = [Arc::new(Int64Array::from(vec![7])), Arc::new(numbers())];
        for column in columns {
            let row = sent(vec![("0", column)], None);
            for at in 0..row.len() {
                let mut broken = row.clone();
                broken[at] ^= 0x7f;
                // Whatever it comes to, it comes to an answer.
                let _ = bound_values(&broken.into());
            }
        }
    }

    fn numbers() -> ListArray {
        ListArray::from_iter_primitive::<Int64Type, _, _>([Some(vec![Some(1), None])])
    }

    #[test]
    fn lists_of_plain_values_are_bound_and_no_others() {
        fn bound(column: ArrayRef) -> Result<Vec<ScalarValue>> {
            bound_values(&sent(vec![("0", column)], None).into())
        }
        assert_eq!(bound(Arc::new(numbers())).unwrap(), [ScalarValue::List(Arc::new(numbers()))]);
        // Lists of lists, and of what takes no room however long it is.
        fn of(kind: DataType, values: ArrayRef) -> ArrayRef {
            let offsets = OffsetBuffer::from_lengths([values.len()]);
            Arc::new(ListArray::new(Arc::new(Field::new_list_field(kind, true)), offsets, values, None))
        }
        let lists = of(DataType::new_list(DataType::Int64, true), Arc::new(numbers()));
        let nothing = of(DataType::Null, Arc::new(NullArray::new(3)));
        for column in [lists, nothing] {
            assert!(matches!(bound(column).unwrap_err(), Error::BadRequest(_)));
        }
        // A day that cannot be written down, alone and in a list.
        let day = |day: i64| Arc::new(Date64Array::from(vec![Some(day), None])) as ArrayRef;
        let days = |day: ArrayRef| of(DataType::Date64, day);
        assert!(bound(days(day(0))).is_ok());
        for column in [day(i64::MIN).slice(0, 1), days(day(i64::MIN))] {
            assert!(matches!(bound(column).unwrap_err(), Error::BadRequest(_)));
        }
    }

    #[test]
    fn values_are_read_in_the_order_of_their_fields() {
        let row = RecordBatch::try_from_iter([
            ("0", Arc::new(Int64Array::from(vec![7])) as ArrayRef),
            ("1", Arc::new(StringArray::from(vec![None::<&str>])) as ArrayRef),
        ])
        .unwrap();
        assert_eq!(values(&row).unwrap(), [ScalarValue::Int64(Some(7)), ScalarValue::Utf8(None)]);
    }
}

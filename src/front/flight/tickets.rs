//! Questions on their way: described and given a ticket, then asked each time the ticket is shown. A ticket is a random
//! handle that belongs to its caller and dies; what it stands for stays here.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use arrow::{
    array::{Array, ArrayRef, RecordBatch, RecordBatchOptions},
    compute::{CastOptions, cast_with_options},
    datatypes::{DataType, SchemaRef},
    ipc::writer::{DictionaryTracker, IpcDataGenerator, IpcWriteContext, IpcWriteOptions},
};
use arrow_flight::{
    FlightData, FlightDescriptor, FlightEndpoint, FlightInfo, Ticket,
    encode::FlightDataEncoderBuilder,
    error::FlightError,
    sql::{Any, Command, ProstMessageExt, TicketStatementQuery},
};
use bytes::Bytes;
use datafusion::common::ScalarValue;
use futures::{
    StreamExt, TryStreamExt,
    stream::{self, BoxStream},
};
use prost::Message;
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tonic::{Response, Status, metadata::MetadataMap};

use super::{
    Door, error,
    session::{Asker, Settings},
    shapes::{Shape, Told, plain},
};
use crate::{
    disclose::ColumnExposure,
    error::{Error, Result},
    front::{answer, door::to_its_end, figures},
    hub::{Answered, Question, Room},
    query::{self, Bounds},
};

/// This door in the log and in figures.
const CHANNEL: &str = "flight";

/// Rows of an answer as they go out.
pub(super) type Rows = BoxStream<'static, Result<FlightData, Status>>;

/// A question that waits for its ticket to be shown.
pub(super) struct Asked {
    sql: String,
    params: Vec<ScalarValue>,
    settings: Settings,
    shape: Arc<Shape>,
    /// Stops its runs.
    stop: CancellationToken,
}

impl Asked {
    fn question(&self, timeout: Option<Duration>) -> Question {
        Question {
            purpose: self.settings.purpose.clone(),
            params: self.params.clone(),
            wishes: self.settings.wishes,
            bounds: Bounds {
                deadline: [self.settings.timeout, timeout].into_iter().flatten().min(),
                stop: self.stop.child_token(),
            },
            ..Question::new(self.sql.clone(), CHANNEL)
        }
    }
}

impl Door {
    /// What the answer to a statement will look like, whatever the values of its parameters.
    pub(super) async fn describe(&self, asker: &Asker, sql: &str) -> Result<Arc<Shape>> {
        let question = Question {
            purpose: asker.settings.purpose.clone(),
            wishes: asker.settings.wishes,
            bounds: Bounds { deadline: asker.settings.timeout, ..Bounds::default() },
            ..Question::new(sql, CHANNEL)
        };
        let _while_asked = question.bounds.stop.clone().drop_guard();
        let (hub, credential) = (Arc::clone(&self.hub), asker.credential.clone());
        if query::is_look_up(sql) {
            let described = to_its_end(async move { hub.describe_look_up(&credential, &question).await }).await?;
            return Ok(Arc::new(Shape::of_look_up(&described)?));
        }
        let described = to_its_end(async move { hub.describe(&credential, &question).await }).await?;
        self.shapes.of(&described)
    }

    /// A ticket for a question, and what its answer will look like.
    pub(super) fn ticket(
        &self,
        asker: &Asker,
        descriptor: FlightDescriptor,
        sql: String,
        params: Vec<ScalarValue>,
        shape: Arc<Shape>,
    ) -> Result<FlightInfo> {
        let (schema, facts) = (shape.encoded.clone(), shape.facts.clone());
        let mut settings = asker.settings.clone();
        // This call's time is not that of the one that shows the ticket; a session's is looked at again then.
        settings.timeout = None;
        let asked = Asked { sql, params, settings, shape, stop: CancellationToken::new() };
        let handle = self.tickets.add(asker.id(), Arc::new(asked))?;
        let ticket = TicketStatementQuery { statement_handle: Bytes::copy_from_slice(&handle) };
        let mut endpoint = FlightEndpoint::new().with_ticket(Ticket::new(ticket.as_any().encode_to_vec()));
        let expires = endpoint.expiration_time.get_or_insert_default();
        expires.seconds = (self.hub.now() + self.options.ticket_life).timestamp();
        Ok(info(schema, descriptor, endpoint).with_app_metadata(facts))
    }

    /// The answer to the question that a ticket stands for.
    pub(super) async fn redeem(&self, asker: &Asker, handle: &[u8]) -> Result<Response<Rows>, Status> {
        let asked = self.tickets.of(asker.id(), handle).ok_or_else(error::unknown_ticket)?;
        // A call that names another purpose than the question was described for does not mean this question.
        if asker.named_purpose.is_some() && asker.named_purpose != asked.settings.purpose {
            return Err(error::unknown_ticket());
        }
        self.answer(asker, &asked).await
    }

    async fn answer(&self, asker: &Asker, asked: &Asked) -> Result<Response<Rows>, Status> {
        let question = asked.question(asker.settings.timeout);
        // Who goes away, or whose time is over, wants no answer any more: nothing runs on in its place.
        let _while_asked = question.bounds.stop.clone().drop_guard();
        let (hub, credential) = (Arc::clone(&self.hub), asker.credential.clone());
        let told = asked.shape.told.clone();
        if asked.shape.look_up {
            let found = to_its_end(async move { hub.look_up(&credential, question).await }).await?;
            return Ok(Response::new(keeping(found.room, rows(told, found.batches, Bytes::new()))));
        }
        let answered = to_its_end(async move {
            let begun = Instant::now();
            let answered = hub.query(&credential, question).await;
            figures::asked(CHANNEL, &answered, begun.elapsed());
            answered
        })
        .await?;
        // Readers go by what they were told, so it must still be true.
        let columns = &asked.shape.columns;
        if !columns.is_empty() && !are_alike(&answered.released.columns, columns) {
            return Err(Status::aborted("what you may see has changed since this was described; ask again"));
        }
        let facts = answer::facts(&answered).to_string();
        let mut headers = MetadataMap::new();
        say_facts(&mut headers, &answered);
        let rows = rows(told, answered.released.batches, facts.into());
        let mut response = Response::new(keeping(answered.room, rows));
        *response.metadata_mut() = headers;
        Ok(response)
    }

    /// Stops what runs for the tickets of a flight.
    pub(super) fn cancel(&self, asker: &Asker, info: &FlightInfo) -> Result<(), Status> {
        let tickets = info.endpoint.iter().filter_map(|endpoint| endpoint.ticket.as_ref());
        let mut known = false;
        for ticket in tickets {
            if let Some(asked) = handle_of(ticket).and_then(|handle| self.tickets.remove(asker.id(), &handle)) {
                asked.stop.cancel();
                known = true;
            }
        }
        known.then_some(()).ok_or_else(error::unknown_ticket)
    }
}

/// The handle in a ticket, where it is one of a question.
fn handle_of(ticket: &Ticket) -> Option<Bytes> {
    let any = Any::decode(ticket.ticket.clone()).ok()?;
    match Command::try_from(any).ok()? {
        Command::TicketStatementQuery(ticket) => Some(ticket.statement_handle),
        _ => None,
    }
}

/// Where rows of this schema are to be had.
pub(super) fn info(schema: Bytes, descriptor: FlightDescriptor, endpoint: FlightEndpoint) -> FlightInfo {
    let info = FlightInfo { schema, ..FlightInfo::new() };
    info.with_descriptor(descriptor).with_endpoint(endpoint).with_ordered(true)
}

/// Bytes of rows that are turned into messages at once, and not each when it is asked for.
const LITTLE: usize = 64 << 10;

/// Rows as they go out, with facts about them on the first message, which is the schema.
fn rows(told: Told, batches: Vec<RecordBatch>, facts: Bytes) -> Rows {
    match told.header {
        Some(header) if is_little(&batches, &told.schema) => at_once(&told.schema, header, &batches, facts),
        _ => one_by_one(told.schema, batches, facts),
    }
}

/// Whether rows are few, and are already of the types that they go out in: others may grow by that.
fn is_little(batches: &[RecordBatch], schema: &SchemaRef) -> bool {
    let are_plain = |batch: &RecordBatch| {
        batch.columns().iter().zip(schema.fields()).all(|(column, field)| column.data_type() == field.data_type())
    };
    let columns = batches.iter().flat_map(RecordBatch::columns);
    batches.iter().all(are_plain) && columns.map(|column| column.get_buffer_memory_size()).sum::<usize>() <= LITTLE
}

/// The messages of few rows under a schema whose own message is there. In such a schema are no dictionaries.
fn at_once(schema: &SchemaRef, header: Bytes, batches: &[RecordBatch], facts: Bytes) -> Rows {
    let mut messages = Vec::with_capacity(1 + batches.len());
    messages.push(Ok(FlightData { data_header: header, app_metadata: facts, ..FlightData::default() }));
    let (options, mut context) = (IpcWriteOptions::default(), IpcWriteContext::default());
    let mut none = DictionaryTracker::new(true);
    for batch in batches.iter().filter(|batch| batch.num_rows() > 0) {
        let encoded = fit(batch, schema).and_then(|batch| {
            IpcDataGenerator::default().encode(&batch, &mut none, &options, &mut context).map_err(Error::internal)
        });
        let message = encoded.map(|(_, rows)| FlightData::from(rows)).map_err(Status::from);
        let failed = message.is_err();
        messages.push(message);
        if failed {
            break;
        }
    }
    stream::iter(messages).boxed()
}

/// Rows that become messages when these are asked for.
pub(super) fn one_by_one(schema: SchemaRef, batches: Vec<RecordBatch>, facts: Bytes) -> Rows {
    let target = Arc::clone(&schema);
    let fitted = stream::iter(batches)
        .map(move |batch| fit(&batch, &target).map_err(|error| FlightError::from(Status::from(error))));
    FlightDataEncoderBuilder::new()
        .with_schema(schema)
        .with_metadata(facts)
        .build(fitted)
        .map_err(|error| match error {
            FlightError::Tonic(status) => *status,
            other => Error::internal(other).into(),
        })
        .boxed()
}

/// The same rows, with the room that they take in memory, which goes with them.
fn keeping(room: Room, rows: Rows) -> Rows {
    if room.bytes() == 0 {
        return rows;
    }
    rows.inspect(move |_| {
        let _kept = &room;
    })
    .boxed()
}

/// A batch under the schema its reader was told.
fn fit(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch> {
    if batch.num_columns() != schema.fields().len() {
        return Err(Error::internal("an answer has other columns than were described"));
    }
    let columns = batch.columns().iter().zip(schema.fields()).map(|(column, field)| fitted(column, field.data_type()));
    let columns = columns.collect::<Result<Vec<_>>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options).map_err(Error::internal)
}

fn fitted(column: &ArrayRef, kind: &DataType) -> Result<ArrayRef> {
    if column.data_type() == kind {
        return Ok(Arc::clone(column));
    }
    // A value that does not fit is a fault; the usual cast would make it a missing one.
    let strictly = CastOptions { safe: false, ..CastOptions::default() };
    let cast = |column: &ArrayRef, kind: &DataType| cast_with_options(column, kind, &strictly);
    if plain(column.data_type()) == *kind {
        return cast(column, kind).map_err(Error::internal);
    }
    // Values that were bound may make a column of another type than was told, and do where that loses nothing.
    let fitted = cast(column, kind).map_err(|_| other_type())?;
    let is_whole = *kind == DataType::Utf8 || cast(&fitted, column.data_type()).is_ok_and(|again| &again == column);
    is_whole.then_some(fitted).ok_or_else(other_type)
}

fn other_type() -> Error {
    Error::BadRequest(
        "the values bound make a column of another type than was told; say the type, as in CAST($1 AS BIGINT)".into(),
    )
}

/// Whether columns are shown by the same names and as openly as others.
fn are_alike(these: &[ColumnExposure], others: &[ColumnExposure]) -> bool {
    these.len() == others.len()
        && these.iter().zip(others).all(|(one, other)| one.name == other.name && one.exposure == other.exposure)
}

/// The facts of an answer in headers, as the HTTP door says them.
fn say_facts(headers: &mut MetadataMap, answered: &Answered) {
    let released = &answered.released;
    error::put(headers, "gridhub-query-id", &answered.query_id);
    error::put(headers, "gridhub-log-index", &answered.log_index.to_string());
    error::put(headers, "gridhub-protection", &json!(released.protection).to_string());
    error::put(headers, "gridhub-snapshot", &answered.snapshot);
    error::put(headers, "gridhub-policy", &answered.policy);
    if !released.notices.is_empty() {
        error::put(headers, "gridhub-notices", &json!(released.notices).to_string());
    }
}

#[cfg(test)]
mod tests {
    use arrow::{
        array::{AsArray, DictionaryArray, Float64Array, Int64Array, ListArray, StringArray, StringViewArray},
        datatypes::{Field, Int16Type, Int32Type, Int64Type, Schema},
    };

    use super::*;
    use crate::front::flight::shapes::plain_schema;

    #[test]
    fn rows_go_out_under_the_schema_that_was_told() {
        let words: DictionaryArray<Int32Type> = ["a", "b", "a"].into_iter().collect();
        let views = StringViewArray::from(vec![Some("x"), None, Some("y")]);
        let columns: Vec<(&str, ArrayRef)> =
            vec![("words", Arc::new(words) as ArrayRef), ("views", Arc::new(views) as ArrayRef)];
        let batch = RecordBatch::try_from_iter(columns).unwrap();
        let told = Arc::new(plain_schema(batch.schema_ref()));
        assert!(told.fields().iter().all(|field| *field.data_type() == DataType::Utf8 && field.is_nullable()));
        let fitted = fit(&batch, &told).unwrap();
        assert_eq!(fitted.column(0).as_string::<i32>(), &StringArray::from(vec!["a", "b", "a"]));
        assert!(fitted.column(1).is_null(1));
        let narrower = Arc::new(told.project(&[0]).unwrap());
        assert!(fit(&batch, &narrower).is_err());
    }

    #[test]
    fn values_that_change_a_type_lose_nothing_by_it() {
        let halves: ArrayRef = Arc::new(Float64Array::from(vec![Some(2.5), None]));
        let wholes: ArrayRef = Arc::new(Float64Array::from(vec![Some(2.0), None]));
        let texts: ArrayRef = Arc::new(StringArray::from(vec!["13800138000a"]));
        assert_eq!(fitted(&wholes, &DataType::Int16).unwrap().as_primitive::<Int16Type>().value(0), 2);
        assert_eq!(fitted(&wholes, &DataType::Utf8).unwrap().as_string::<i32>().value(0), "2.0");
        for (column, kind) in [(&halves, DataType::Int16), (&texts, DataType::Int64), (&texts, DataType::Date32)] {
            let refused = fitted(column, &kind).unwrap_err();
            assert!(matches!(&refused, Error::BadRequest(why) if !why.contains("138")), "{refused}");
        }
    }

    #[test]
    fn answers_without_columns_keep_their_rows() {
        let options = RecordBatchOptions::new().with_row_count(Some(3));
        let schema = Arc::new(Schema::empty());
        let batch = RecordBatch::try_new_with_options(Arc::clone(&schema), Vec::new(), &options).unwrap();
        assert_eq!(fit(&batch, &schema).unwrap().num_rows(), 3);
    }

    #[test]
    fn a_ticket_holds_its_handle_and_nothing_else() {
        let ticket = TicketStatementQuery { statement_handle: Bytes::from_static(&[7; 32]) };
        let ticket = Ticket::new(ticket.as_any().encode_to_vec());
        assert_eq!(handle_of(&ticket), Some(Bytes::from_static(&[7; 32])));
        assert_eq!(handle_of(&Ticket::new(vec![7; 32])), None);
        assert_eq!(handle_of(&Ticket::new(Vec::new())), None);
    }

    #[tokio::test]
    async fn facts_come_with_the_first_message() {
        let schema = Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, true)]));
        for told in [Told::new(Arc::clone(&schema)), Told { header: None, schema }] {
            let messages: Vec<_> = rows(told, Vec::new(), Bytes::from_static(b"{}")).try_collect().await.unwrap();
            assert_eq!(messages.len(), 1, "an answer without rows still has its schema");
            assert_eq!(messages[0].app_metadata, Bytes::from_static(b"{}"));
        }
    }

    #[tokio::test]
    async fn few_rows_go_out_as_many_would() {
        let halves = Float64Array::from(vec![Some(2.5), None, Some(-1.0)]);
        let words = StringArray::from(vec!["a", "", "望江区"]);
        let lists =
            ListArray::from_iter_primitive::<Int64Type, _, _>([Some(vec![Some(1), None]), None, Some(Vec::new())]);
        let columns: [(&str, ArrayRef); 3] =
            [("halves", Arc::new(halves)), ("words", Arc::new(words)), ("lists", Arc::new(lists))];
        let batch = RecordBatch::try_from_iter(columns).unwrap();
        let plain = plain_schema(batch.schema_ref());
        let fields = plain.fields().iter().map(|field| {
            let exposure = ("gridhub.exposure".to_owned(), "clear".to_owned());
            field.as_ref().clone().with_metadata([exposure].into())
        });
        let told = Told::new(Arc::new(Schema::new(fields.collect::<Vec<_>>())));
        assert!(told.header.is_some());
        let batches = vec![batch.clone(), batch.slice(0, 0), batch.slice(1, 2)];
        assert!(is_little(&batches, &told.schema));
        let facts = Bytes::from_static(b"{}");
        let few: Vec<_> = rows(told.clone(), batches.clone(), facts.clone()).try_collect().await.unwrap();
        let many: Vec<_> = one_by_one(told.schema, batches, facts).try_collect().await.unwrap();
        assert_eq!((few.len(), few), (3, many));
    }

    #[test]
    fn rows_that_are_many_or_change_their_type_wait_to_be_asked_for() {
        let told = |kind| Arc::new(Schema::new(vec![Field::new("n", kind, true)]));
        let batch = |rows: i64| {
            let numbers: ArrayRef = Arc::new(Int64Array::from_iter_values(0..rows));
            RecordBatch::try_from_iter([("n", numbers)]).unwrap()
        };
        assert!(is_little(&[batch(3), batch(0)], &told(DataType::Int64)));
        assert!(!is_little(&[batch(3)], &told(DataType::Utf8)));
        assert!(!is_little(&[batch(10), batch(LITTLE as i64 / 8)], &told(DataType::Int64)));
    }
}

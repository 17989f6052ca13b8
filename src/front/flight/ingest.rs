//! Bulk ingestion as an upload: the record batches go into the spool as the Arrow stream that they are, and come back
//! as a receipt. Nothing of them is decoded here.

use std::sync::{Arc, OnceLock};

use arrow::ipc::root_as_message;
use arrow_flight::{
    FlightData, PutResult,
    sql::{CommandStatementIngest, TableExistsOption, TableNotExistOption},
};
use axum::body::Body;
use bytes::Bytes;
use futures::{
    StreamExt, TryStreamExt,
    future::ready,
    stream::{self, BoxStream},
};
use prost::Message;
use tonic::{Code, Response, Status};
use uuid::Uuid;

use super::{
    Door, MESSAGE, error,
    metadata::CATALOG,
    session::{Asker, Call},
    wire::Ingested,
};
use crate::{
    dataset::receipt::Receipt,
    error::{Error, Result},
    front::{
        door::{batch_id, to_its_end},
        intake,
    },
    hub::Push,
    spool,
    validate::Format,
};

/// What every message of an Arrow stream begins with, before its length.
const CONTINUATION: [u8; 4] = [0xff; 4];

/// The end of an Arrow stream: a message of no length.
const END: &[u8] = &[0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0];

/// Results of a put.
pub(super) type Results = BoxStream<'static, Result<PutResult, Status>>;

impl Door {
    /// Takes the rows of a bulk ingestion as a batch of the dataset they are for. The id of the batch is what the
    /// option or header `gridhub-batch-id` says, so that it can be sent again; else a new one.
    pub(super) async fn ingest(
        &self,
        asker: Asker,
        call: Call,
        command: CommandStatementIngest,
        messages: BoxStream<'static, Result<FlightData, Status>>,
    ) -> Result<Response<Results>, Status> {
        if command.transaction_id.as_ref().is_some_and(|id| !id.is_empty()) {
            return Err(error::no_transactions());
        }
        let dataset = target(&command, &asker.credential.caller.agency)?;
        let said = command.options.get("gridhub-batch-id").or(call.batch_id.as_ref());
        let batch_id = said.map(|said| batch_id(said)).transpose()?.unwrap_or_else(Uuid::now_v7);
        self.hub.admit(&asker.credential, &dataset)?;
        let body = self.arrow_body(messages, self.options.body_limit).await?;
        let push = Push {
            dataset,
            batch_id,
            format: Format::Arrow,
            contract_version: call.contract_version,
            content_digest: None,
            body,
            dry_run: false,
        };
        let hub = Arc::clone(&self.hub);
        let received = to_its_end(async move { hub.upload(&asker.credential, push).await }).await?;
        let receipt = received.receipt;
        let result = Ingested {
            record_count: i64::try_from(receipt.rows_accepted).unwrap_or(i64::MAX),
            receipt: serde_json::to_string(&receipt).map_err(Error::internal)?,
        };
        let result = PutResult { app_metadata: result.encode_to_vec().into() };
        let mut response: Response<Results> = Response::new(stream::iter([Ok(result)]).boxed());
        error::put(response.metadata_mut(), "gridhub-receipt", &short(&receipt));
        Ok(response)
    }

    /// What comes in messages as the Arrow stream that it is, of at most `limit` bytes.
    ///
    /// # Errors
    /// What is wrong with a message, or as [`intake::whole`].
    pub(super) async fn arrow_body(
        &self,
        messages: BoxStream<'static, Result<FlightData, Status>>,
        limit: u64,
    ) -> Result<spool::Body> {
        let fault = Arc::new(OnceLock::new());
        let found = Arc::clone(&fault);
        let body = Body::from_stream(arrow_stream(messages).inspect_err(move |error| {
            // There is one at most, since nothing is read after it.
            let _ = found.set(error.clone());
        }));
        let taken = intake::whole(self.hub.spool().draft(), body, limit, self.options.silence).await;
        match (taken, fault.get()) {
            (Err(Error::BrokeOff(_)), Some(fault)) => Err(fault.clone()),
            (taken, _) => taken,
        }
    }
}

/// The dataset that rows are for. Nothing is made, replaced or kept for a while only: datasets are the operator's.
fn target(command: &CommandStatementIngest, agency: &str) -> Result<String> {
    let refuse = |why: &str| Err(Error::NotAllowed(why.to_owned()));
    if command.temporary {
        return refuse("the hub has no temporary tables; send rows to a dataset of yours in append mode");
    }
    let said = command.table_definition_options.unwrap_or_default();
    let (missing, there) = (said.if_not_exist, said.if_exists);
    if there == TableExistsOption::Replace as i32 {
        return refuse("rows of a dataset are not replaced as a whole; use append mode");
    }
    // A dataset that is not there is not found whatever the client would like to be made of it.
    if there != TableExistsOption::Append as i32 {
        let why = match missing == TableNotExistOption::Create as i32 {
            true => "datasets are made by their contract, not by clients; use append mode",
            false => "say what becomes of rows that are there: use append mode",
        };
        return refuse(why);
    }
    if command.catalog.as_deref().is_some_and(|catalog| !catalog.is_empty() && catalog != CATALOG) {
        return Err(Error::NotFound);
    }
    let table = &command.table;
    Ok(match command.schema.as_deref().filter(|schema| !schema.is_empty()) {
        Some(schema) => format!("{schema}.{table}"),
        None if table.contains('.') => table.clone(),
        None => format!("{agency}.{table}"),
    })
}

/// The bytes of an Arrow stream, from its messages.
fn arrow_stream(
    messages: BoxStream<'static, Result<FlightData, Status>>,
) -> impl futures::Stream<Item = Result<Bytes>> + Send + 'static {
    let framed = messages.flat_map(|message| {
        stream::iter(match message.map_err(|status| broken_off(&status)).and_then(framed) {
            Ok(parts) => parts.into_iter().map(Ok).collect::<Vec<_>>(),
            Err(error) => vec![Err(error)],
        })
    });
    framed.chain(stream::once(ready(Ok(Bytes::from_static(END)))))
}

/// Why there are no further messages.
fn broken_off(status: &Status) -> Error {
    match status.code() {
        Code::OutOfRange => Error::TooLarge {
            what: "a message",
            limit: format!("{} MiB; send record batches of fewer rows", MESSAGE >> 20),
        },
        _ => Error::BrokeOff("the messages broke off; send them again under the same id".into()),
    }
}

/// A message as it stands in an Arrow stream; nothing where it carries no Arrow.
///
/// # Errors
/// [`Error::BadRequest`] where its body is not as long as its header says: what is too much would be read as further
/// messages, or as the end of all.
fn framed(message: FlightData) -> Result<Vec<Bytes>> {
    let FlightData { data_header: header, data_body: body, .. } = message;
    if header.is_empty() {
        return Ok(Vec::new());
    }
    let said = root_as_message(&header).ok().and_then(|message| usize::try_from(message.bodyLength()).ok());
    if said != Some(body.len()) {
        return Err(Error::BadRequest("a message is no Arrow, or its body is not as long as its header says".into()));
    }
    // Bodies begin at multiples of 8.
    let length = header.len().next_multiple_of(8);
    let mut head = Vec::with_capacity(CONTINUATION.len() + 4 + length);
    head.extend_from_slice(&CONTINUATION);
    head.extend_from_slice(&(length as u32).to_le_bytes());
    head.extend_from_slice(&header);
    head.resize(CONTINUATION.len() + 4 + length, 0);
    let parts = [Bytes::from(head), body];
    Ok(parts.into_iter().filter(|part| !part.is_empty()).collect())
}

/// A receipt as a header says it: without its list of rejected rows, which may be long.
pub(super) fn short(receipt: &Receipt) -> String {
    let receipt = Receipt { rejected_rows: Vec::new(), ..receipt.clone() };
    serde_json::to_string(&receipt).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use arrow::{
        array::{ArrayRef, Int64Array, RecordBatch, StringArray},
        ipc::reader::StreamReader,
    };
    use arrow_flight::{FlightDescriptor, encode::FlightDataEncoderBuilder, sql::TableDefinitionOptions};
    use futures::TryStreamExt;

    use super::*;

    fn command(missing: TableNotExistOption, there: TableExistsOption) -> CommandStatementIngest {
        CommandStatementIngest {
            table_definition_options: Some(TableDefinitionOptions {
                if_not_exist: missing as i32,
                if_exists: there as i32,
            }),
            table: "visits".into(),
            ..CommandStatementIngest::default()
        }
    }

    #[test]
    fn rows_are_appended_and_nothing_else() {
        let append = command(TableNotExistOption::Fail, TableExistsOption::Append);
        assert_eq!(target(&append, "hospital").unwrap(), "hospital.visits");
        let create_append = command(TableNotExistOption::Create, TableExistsOption::Append);
        assert_eq!(target(&create_append, "hospital").unwrap(), "hospital.visits");
        let elsewhere = CommandStatementIngest { schema: Some("streets".into()), ..append.clone() };
        assert_eq!(target(&elsewhere, "hospital").unwrap(), "streets.visits");
        let whole = CommandStatementIngest { table: "streets.visits".into(), ..append.clone() };
        assert_eq!(target(&whole, "hospital").unwrap(), "streets.visits");
        let hub = CommandStatementIngest { catalog: Some("hub".into()), ..append.clone() };
        assert_eq!(target(&hub, "hospital").unwrap(), "hospital.visits");
        for refused in [
            command(TableNotExistOption::Create, TableExistsOption::Fail),
            command(TableNotExistOption::Create, TableExistsOption::Replace),
            command(TableNotExistOption::Fail, TableExistsOption::Unspecified),
            CommandStatementIngest { table_definition_options: None, ..append.clone() },
            CommandStatementIngest { temporary: true, ..append.clone() },
        ] {
            assert!(matches!(target(&refused, "hospital"), Err(Error::NotAllowed(_))), "{refused:?}");
        }
        let other = CommandStatementIngest { catalog: Some("other".into()), ..append };
        assert!(matches!(target(&other, "hospital"), Err(Error::NotFound)));
    }

    #[tokio::test]
    async fn messages_make_an_arrow_stream() {
        let batch = RecordBatch::try_from_iter([
            ("n", Arc::new(Int64Array::from(vec![1, 2, 3])) as _),
            ("word", Arc::new(StringArray::from(vec![Some("a"), None, Some("ccc")])) as _),
        ])
        .unwrap();
        let sent = [batch.clone(), batch.slice(1, 2)];
        let messages = FlightDataEncoderBuilder::new()
            .with_flight_descriptor(Some(FlightDescriptor::new_cmd("ingest")))
            .build(stream::iter(sent.clone().map(Ok)))
            .map_err(|error| Status::internal(error.to_string()))
            .boxed();
        let bytes: Vec<Bytes> = arrow_stream(messages).try_collect().await.unwrap();
        let came: Vec<_> =
            StreamReader::try_new(bytes.concat().as_slice(), None).unwrap().collect::<Result<_, _>>().unwrap();
        assert_eq!(came, sent);
    }

    #[tokio::test]
    async fn a_body_is_as_long_as_its_header_says() {
        let batch = RecordBatch::try_from_iter([("n", Arc::new(Int64Array::from(vec![7])) as ArrayRef)]).unwrap();
        let batches = stream::iter([batch.clone(), batch].map(Ok));
        let messages: Vec<_> = FlightDataEncoderBuilder::new().build(batches).try_collect().await.unwrap();
        assert_eq!(messages.len(), 3);
        for other in [
            // Eight bytes more would be the end of all, and the rows after them would be gone without a word.
            [&messages[1].data_body[..], &[0; 8]].concat(),
            messages[1].data_body[8..].to_vec(),
        ] {
            let mut messages = messages.clone();
            messages[1].data_body = other.into();
            let messages = stream::iter(messages.into_iter().map(Ok)).boxed();
            let refused = arrow_stream(messages).try_collect::<Vec<_>>().await.unwrap_err();
            assert!(matches!(refused, Error::BadRequest(_)), "{refused}");
        }
    }

    #[tokio::test]
    async fn a_message_that_is_too_large_is_not_one_that_broke_off() {
        let why = |status| async { arrow_stream(stream::iter([Err(status)]).boxed()).try_collect::<Vec<_>>().await };
        assert!(matches!(why(Status::out_of_range("too large")).await, Err(Error::TooLarge { .. })));
        assert!(matches!(why(Status::cancelled("gone")).await, Err(Error::BrokeOff(_))));
    }

    #[tokio::test]
    async fn a_stream_that_breaks_off_does_not_look_whole() {
        let broken = stream::iter([Err(Status::cancelled("gone"))]).boxed();
        let mut bytes = Box::pin(arrow_stream(broken));
        assert!(bytes.next().await.unwrap().is_err());
    }
}

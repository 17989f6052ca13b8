//! The Flight SQL door: Arrow record batches over gRPC. Here are the calls of the protocol, one after the other; what
//! they come to is in the modules below. What stands between two calls is kept under random handles, and no ticket
//! holds SQL.

mod error;
mod greeting;
mod handles;
mod ingest;
mod metadata;
mod prepared;
mod session;
mod shapes;
mod tickets;
mod wire;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use arrow_flight::{
    Action, ActionType, CancelFlightInfoRequest, CancelFlightInfoResult, CancelStatus, Criteria, Empty, FlightData,
    FlightDescriptor, FlightEndpoint, FlightInfo, HandshakeRequest, HandshakeResponse, PollInfo, PutResult,
    SchemaResult, Ticket,
    flight_service_server::{FlightService, FlightServiceServer},
    sql::{
        ActionCancelQueryRequest, ActionCancelQueryResult, ActionClosePreparedStatementRequest,
        ActionCreatePreparedStatementRequest, Any, Command, ProstMessageExt,
    },
};
use bytes::Bytes;
use futures::{
    StreamExt,
    stream::{self, BoxStream},
};
use prost::Message;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming, codec::CompressionEncoding, transport::Server};

use self::{
    greeting::Greeted,
    handles::{Handles, Life},
    prepared::Prepared,
    session::{Call, Session},
    shapes::Shapes,
    tickets::Asked,
};
use super::listen::{Limits, Listener};
use crate::{
    error::{Error, Result},
    hub::Hub,
};

/// Bytes that one message may have: a record batch of an ingestion is many times smaller.
const MESSAGE: usize = 16 << 20;

/// Bytes of headers that one call may have.
const HEADERS: u32 = 64 << 10;

/// Bytes that a sender may be ahead on one stream, and on one connection.
const WINDOWS: (u32, u32) = (1 << 20, 4 << 20);

/// How often a silent peer is asked whether it is still there, and how long it may take to say so.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(20));

/// How long a session is kept that nobody uses.
const SESSION: Duration = Duration::from_secs(3_600);

/// Everything the Flight SQL door needs besides a hub.
#[derive(Debug, Clone)]
pub struct Options {
    /// The longest file, in bytes, that an ingestion may come to.
    pub body_limit: u64,
    /// How long a sender may send nothing before what it sends counts as broken off.
    pub silence: Duration,
    /// Calls that one connection may make at once; further ones wait.
    pub calls_at_once: usize,
    /// Sessions of one caller; one more ends the one unused for longest.
    pub sessions: usize,
    /// Tickets of one caller; one more takes the place of its oldest.
    pub tickets: usize,
    /// How long a ticket is good for.
    pub ticket_life: Duration,
    /// Prepared statements of one caller; one more takes the place of the one unused for longest.
    pub prepared: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            body_limit: 4 << 30,
            silence: Duration::from_secs(60),
            calls_at_once: 64,
            sessions: 256,
            tickets: 1_024,
            ticket_life: Duration::from_secs(300),
            prepared: 256,
        }
    }
}

/// Serves until `stop`, then lets running calls finish, for as long as the listener's limits say.
///
/// # Errors
/// [`Error::Unreachable`] where the server fails.
pub async fn serve(listener: Listener, hub: Arc<Hub>, options: Options, stop: CancellationToken) -> Result<()> {
    let listener = listener.at("flight");
    let Limits { patience, headers, .. } = listener.limits();
    let incoming = listener.incoming(stop.clone()).map(move |came| came.map(|stream| Greeted::new(stream, headers)));
    let calls_at_once = options.calls_at_once;
    let service = FlightServiceServer::new(Door::new(hub, options))
        .max_decoding_message_size(MESSAGE)
        .accept_compressed(CompressionEncoding::Gzip)
        .accept_compressed(CompressionEncoding::Zstd)
        // Many clients say that they read gzip without meaning to pay for it; who says zstd means it.
        .send_compressed(CompressionEncoding::Zstd);
    let server = Server::builder()
        .concurrency_limit_per_connection(calls_at_once)
        .max_concurrent_streams(u32::try_from(calls_at_once).unwrap_or(u32::MAX))
        .initial_stream_window_size(WINDOWS.0)
        .initial_connection_window_size(WINDOWS.1)
        .http2_keepalive_interval(Some(KEEPALIVE.0))
        .http2_keepalive_timeout(Some(KEEPALIVE.1))
        .http2_max_header_list_size(HEADERS)
        .add_service(service)
        .serve_with_incoming_shutdown(incoming, stop.clone().cancelled_owned());
    // A client that never reads its answer does not keep the hub up.
    let patience = async {
        stop.cancelled().await;
        sleep(patience).await;
    };
    tokio::select! {
        ended = server => ended.map_err(|e| Error::Unreachable(format!("the Flight SQL door failed: {e}"))),
        () = patience => {
            tracing::warn!("calls that were still running are cut off");
            Ok(())
        }
    }
}

/// The door: a hub, and what is kept between two calls.
struct Door {
    hub: Arc<Hub>,
    options: Options,
    sessions: Handles<Session>,
    tickets: Handles<Arc<Asked>>,
    prepared: Handles<Prepared>,
    shapes: Shapes,
}

impl Door {
    fn new(hub: Arc<Hub>, options: Options) -> Self {
        Self {
            hub,
            sessions: Handles::new(Life::Idle(SESSION), options.sessions),
            tickets: Handles::new(Life::Fixed(options.ticket_life), options.tickets),
            prepared: Handles::new(Life::Idle(prepared::LIFE), options.prepared),
            shapes: Shapes::default(),
            options,
        }
    }

    /// What is to be had for a command, and where.
    async fn info(&self, call: Call, descriptor: FlightDescriptor) -> Result<FlightInfo, Status> {
        let asker = self.asker(&call).await?;
        let command = command(&descriptor.cmd)?;
        match command {
            Command::CommandStatementQuery(asked) => {
                alone(asked.transaction_id.as_ref())?;
                let shape = self.describe(&asker, &asked.query).await?;
                Ok(self.ticket(&asker, descriptor, asked.query, Vec::new(), shape)?)
            }
            Command::CommandPreparedStatementQuery(asked) => {
                self.prepared_ticket(&asker, descriptor, &asked.prepared_statement_handle).await
            }
            Command::CommandStatementSubstraitPlan(_) => Err(error::no_substrait()),
            other => {
                metadata::check_length(&descriptor.cmd)?;
                let schema = metadata::schema(&other)?.ok_or_else(error::unknown_request)?;
                // What is asked of the database as a whole is no secret, so the ticket is the command itself.
                let endpoint = FlightEndpoint::new().with_ticket(Ticket::new(descriptor.cmd.clone()));
                Ok(tickets::info(prepared::encoded(&schema)?, descriptor, endpoint))
            }
        }
    }

    /// What the answer to a command will look like.
    async fn schema(&self, call: Call, descriptor: FlightDescriptor) -> Result<SchemaResult, Status> {
        let asker = self.asker(&call).await?;
        let schema = match command(&descriptor.cmd)? {
            Command::CommandStatementQuery(asked) => self.describe(&asker, &asked.query).await?.encoded.clone(),
            Command::CommandPreparedStatementQuery(asked) => {
                let known = self.prepared.of(asker.id(), &asked.prepared_statement_handle);
                let prepared = known.ok_or_else(error::unknown_statement)?;
                self.prepared_shape(&asker, &prepared).await?.encoded.clone()
            }
            Command::CommandStatementSubstraitPlan(_) => return Err(error::no_substrait()),
            other => {
                let schema = metadata::schema(&other)?.ok_or_else(error::unknown_request)?;
                prepared::encoded(&schema)?
            }
        };
        Ok(SchemaResult { schema })
    }

    /// The rows that a ticket stands for.
    async fn rows(&self, call: Call, ticket: Ticket) -> Result<Response<tickets::Rows>, Status> {
        let asker = self.asker(&call).await?;
        match command(&ticket.ticket).map_err(|_| error::unknown_ticket())? {
            Command::TicketStatementQuery(ticket) => self.redeem(&asker, &ticket.statement_handle).await,
            other => {
                metadata::check_length(&ticket.ticket)?;
                let batch = metadata::rows(self, &asker, other)?.ok_or_else(error::unknown_ticket)?;
                Ok(Response::new(tickets::one_by_one(batch.schema(), vec![batch], Bytes::new())))
            }
        }
    }

    /// Takes what a client puts: values to bind, or rows to ingest.
    async fn take(&self, call: Call, mut messages: Streaming<FlightData>) -> Result<Response<ingest::Results>, Status> {
        let asker = self.asker(&call).await?;
        let first = timeout(self.options.silence, messages.message()).await;
        let first = first.map_err(|_| Error::BrokeOff("nothing came; send it again".into()))??;
        let first = first.ok_or_else(error::unknown_request)?;
        let command = command(first.flight_descriptor.as_ref().map_or(&[][..], |descriptor| &descriptor.cmd[..]))?;
        let messages = stream::iter([Ok(first)]).chain(messages).boxed();
        match command {
            Command::CommandStatementIngest(asked) => self.ingest(asker, call, asked, messages).await,
            Command::CommandPreparedStatementQuery(asked) => {
                let bound = self.bind(&asker, &asked.prepared_statement_handle, messages).await?;
                let result = PutResult { app_metadata: bound.encode_to_vec().into() };
                Ok(Response::new(stream::iter([Ok(result)]).boxed()))
            }
            Command::CommandStatementUpdate(_) | Command::CommandPreparedStatementUpdate(_) => Err(error::read_only()),
            Command::CommandStatementSubstraitPlan(_) => Err(error::no_substrait()),
            _ => Err(error::unknown_request()),
        }
    }

    /// Does what an action asks, and returns its results.
    async fn act(&self, call: Call, action: Action) -> Result<Vec<Bytes>, Status> {
        let asker = self.asker(&call).await?;
        let body = action.body;
        match action.r#type.as_str() {
            "CreatePreparedStatement" => {
                let asked: ActionCreatePreparedStatementRequest = unpacked(body)?;
                alone(asked.transaction_id.as_ref())?;
                let prepared = self.prepare(&asker, asked.query).await?;
                Ok(vec![prepared.as_any().encode_to_vec().into()])
            }
            "ClosePreparedStatement" => {
                let asked: ActionClosePreparedStatementRequest = unpacked(body)?;
                // Closing what is closed already is no fault.
                self.prepared.remove(asker.id(), &asked.prepared_statement_handle);
                Ok(Vec::new())
            }
            "CancelFlightInfo" => {
                let asked: CancelFlightInfoRequest = decoded(body)?;
                self.cancel(&asker, &asked.info.unwrap_or_default())?;
                Ok(vec![CancelFlightInfoResult::new(CancelStatus::Cancelled).encode_to_vec().into()])
            }
            // The older way to say the same.
            "CancelQuery" => {
                let asked: ActionCancelQueryRequest = unpacked(body)?;
                self.cancel(&asker, &decoded(asked.info)?)?;
                let result = ActionCancelQueryResult { result: CancelStatus::Cancelled as i32 };
                Ok(vec![result.as_any().encode_to_vec().into()])
            }
            "SetSessionOptions" => Ok(vec![self.set_options(&asker, decoded(body)?)?.encode_to_vec().into()]),
            "GetSessionOptions" => Ok(vec![self.options(&asker)?.encode_to_vec().into()]),
            "CloseSession" => Ok(vec![self.close_session(&asker).encode_to_vec().into()]),
            "BeginTransaction" | "EndTransaction" | "BeginSavepoint" | "EndSavepoint" => Err(error::no_transactions()),
            "CreatePreparedSubstraitPlan" => Err(error::no_substrait()),
            _ => Err(error::unknown_request()),
        }
    }
}

#[tonic::async_trait]
impl FlightService for Door {
    type HandshakeStream = BoxStream<'static, Result<HandshakeResponse, Status>>;
    type ListFlightsStream = BoxStream<'static, Result<FlightInfo, Status>>;
    type DoGetStream = tickets::Rows;
    type DoPutStream = ingest::Results;
    type DoExchangeStream = BoxStream<'static, Result<FlightData, Status>>;
    type DoActionStream = BoxStream<'static, Result<arrow_flight::Result, Status>>;
    type ListActionsStream = BoxStream<'static, Result<ActionType, Status>>;

    async fn handshake(
        &self,
        request: Request<Streaming<HandshakeRequest>>,
    ) -> Result<Response<Self::HandshakeStream>, Status> {
        let call = Call::of(&request);
        counted("Handshake", self.open_session(call, request.into_inner())).await
    }

    async fn get_flight_info(&self, request: Request<FlightDescriptor>) -> Result<Response<FlightInfo>, Status> {
        let call = Call::of(&request);
        counted("GetFlightInfo", self.info(call, request.into_inner())).await.map(Response::new)
    }

    /// Describing is short, so there is nothing to poll for: the first answer is the last.
    async fn poll_flight_info(&self, request: Request<FlightDescriptor>) -> Result<Response<PollInfo>, Status> {
        let call = Call::of(&request);
        let info = counted("PollFlightInfo", self.info(call, request.into_inner())).await?;
        Ok(Response::new(PollInfo::new().with_info(info)))
    }

    async fn get_schema(&self, request: Request<FlightDescriptor>) -> Result<Response<SchemaResult>, Status> {
        let call = Call::of(&request);
        counted("GetSchema", self.schema(call, request.into_inner())).await.map(Response::new)
    }

    async fn do_get(&self, request: Request<Ticket>) -> Result<Response<Self::DoGetStream>, Status> {
        let call = Call::of(&request);
        counted("DoGet", self.rows(call, request.into_inner())).await
    }

    async fn do_put(&self, request: Request<Streaming<FlightData>>) -> Result<Response<Self::DoPutStream>, Status> {
        let call = Call::of(&request);
        counted("DoPut", self.take(call, request.into_inner())).await
    }

    async fn do_action(&self, request: Request<Action>) -> Result<Response<Self::DoActionStream>, Status> {
        let call = Call::of(&request);
        let results = counted("DoAction", self.act(call, request.into_inner())).await?;
        let results = results.into_iter().map(|body| Ok(arrow_flight::Result { body }));
        Ok(Response::new(stream::iter(results.collect::<Vec<_>>()).boxed()))
    }

    async fn list_actions(&self, _: Request<Empty>) -> Result<Response<Self::ListActionsStream>, Status> {
        let actions = ACTIONS
            .map(|(name, description)| Ok(ActionType { r#type: name.to_owned(), description: description.to_owned() }));
        Ok(Response::new(stream::iter(actions).boxed()))
    }

    async fn list_flights(&self, _: Request<Criteria>) -> Result<Response<Self::ListFlightsStream>, Status> {
        Err(Status::unimplemented("the hub lists tables by Flight SQL's GetTables"))
    }

    async fn do_exchange(&self, _: Request<Streaming<FlightData>>) -> Result<Response<Self::DoExchangeStream>, Status> {
        Err(Status::unimplemented("the hub knows no exchange; ask by Flight SQL"))
    }
}

/// What `list_actions` tells.
const ACTIONS: [(&str, &str); 7] = [
    ("CreatePreparedStatement", "prepares a statement"),
    ("ClosePreparedStatement", "forgets a prepared statement"),
    ("CancelFlightInfo", "stops what runs for the tickets of a flight"),
    ("CancelQuery", "stops what runs for the tickets of a flight"),
    ("SetSessionOptions", "sets purpose, statement_timeout, interval or small_cells of a session"),
    ("GetSessionOptions", "tells the options of a session"),
    ("CloseSession", "ends a session"),
];

/// The command in a message.
fn command(bytes: &[u8]) -> Result<Command, Status> {
    let any = Any::decode(bytes).map_err(|_| error::unknown_request())?;
    Command::try_from(any).map_err(|_| error::unknown_request())
}

/// The request in the envelope of Flight SQL's actions.
fn unpacked<T: ProstMessageExt>(body: Bytes) -> Result<T, Status> {
    let any: Any = decoded(body)?;
    any.unpack().ok().flatten().ok_or_else(error::unknown_request)
}

/// The request in the body of Flight's own actions.
fn decoded<T: Message + Default>(body: Bytes) -> Result<T, Status> {
    T::decode(body).map_err(|_| error::unknown_request())
}

/// Statements stand alone: none is part of a transaction.
fn alone(transaction: Option<&Bytes>) -> Result<(), Status> {
    match transaction.is_some_and(|id| !id.is_empty()) {
        true => Err(error::no_transactions()),
        false => Ok(()),
    }
}

/// Counts a call by its method and its outcome, which name nobody.
async fn counted<T>(method: &'static str, call: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    let started = Instant::now();
    let outcome = call.await;
    let code = outcome.as_ref().err().map_or(tonic::Code::Ok, Status::code);
    let outcome_word = error::outcome(code);
    metrics::counter!("gridhub_requests_total", "door" => "flight", "method" => method, "outcome" => outcome_word)
        .increment(1);
    metrics::histogram!("gridhub_request_seconds", "door" => "flight", "method" => method)
        .record(started.elapsed().as_secs_f64());
    outcome
}

#[cfg(test)]
mod tests {
    use arrow_flight::sql::{CommandGetTables, CommandStatementQuery};

    use super::*;

    #[test]
    fn commands_are_read_and_rubbish_is_not() {
        let asked = CommandStatementQuery { query: "SELECT 1".into(), transaction_id: None };
        assert_eq!(command(&asked.as_any().encode_to_vec()).unwrap(), Command::CommandStatementQuery(asked));
        let tables = CommandGetTables::default().as_any().encode_to_vec();
        assert!(matches!(command(&tables), Ok(Command::CommandGetTables(_))));
        assert_eq!(command(&[0xff; 9]).unwrap_err().code(), tonic::Code::InvalidArgument);
        let status = unpacked::<ActionCancelQueryRequest>(tables.into()).unwrap_err();
        assert_eq!(status.code(), tonic::Code::InvalidArgument);
    }

    #[test]
    fn statements_stand_alone() {
        assert!(alone(None).is_ok());
        assert!(alone(Some(&Bytes::new())).is_ok(), "some clients send an empty id where they mean none");
        assert_eq!(alone(Some(&Bytes::from_static(b"t"))).unwrap_err().code(), tonic::Code::Unimplemented);
    }
}

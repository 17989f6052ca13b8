//! The simple protocol: a text of one or more statements, each answered in order until the first that fails.

use std::fmt::Debug;

use async_trait::async_trait;
use futures::{Sink, SinkExt};
use pgwire::{
    api::{
        ClientInfo, ClientPortalStore, PgWireConnectionState,
        query::{SimpleQueryHandler, send_ready_for_query},
        results::Response,
        store::PortalStore,
    },
    error::{PgWireError, PgWireResult},
    messages::{PgWireBackendMessage, response::EmptyQueryResponse, simplequery::Query, startup::ParameterStatus},
};

use super::{
    error::error,
    reply::{Answer, Reply, counted, reply, send_description, send_done, send_notices, send_rows},
    session::Session,
    statements::{fault, split},
};

/// Handles the messages of the simple protocol. What it knows of a connection is the connection's own.
#[derive(Debug, Default)]
pub(super) struct Simple;

#[async_trait]
impl SimpleQueryHandler for Simple {
    async fn on_query<C>(&self, client: &mut C, query: Query) -> PgWireResult<()>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        client.set_state(PgWireConnectionState::QueryInProgress);
        let answered = answer(client, &query.query).await;
        settle(client, answered)?;
        client.set_state(PgWireConnectionState::ReadyForQuery);
        end_exchange(client).await
    }

    async fn do_query<C>(&self, _: &mut C, _: &str) -> PgWireResult<Vec<Response>>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        Err(fault("XX000", "messages are answered as they come"))
    }
}

async fn answer<C>(client: &mut C, text: &str) -> PgWireResult<()>
where
    C: ClientInfo + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
    C::Error: Debug,
    PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
{
    let session = Session::of(client)?;
    // As in Postgres, these last no longer than to the next text.
    session.shelf().forget("");
    session.shelf().close("");
    let statements = split(text)?;
    if statements.is_empty() {
        client.feed(PgWireBackendMessage::EmptyQueryResponse(EmptyQueryResponse::new())).await?;
    }
    for (at, statement) in statements.into_iter().enumerate() {
        // Until the client had taken the answer to the one before, its caller may have been shut out. Also what is
        // answered without the hub is for callers that are still let in.
        if at > 0 {
            session.look_up().map_err(|fault| error(&fault))?;
        }
        match reply(&session, &statement?, Vec::new()).await? {
            Reply::Done { tag, notices } => {
                send_notices(client, &notices).await?;
                send_done(client, tag).await?;
            }
            Reply::Rows { answer: Answer { rows, notices, running }, tag } => {
                send_notices(client, &notices).await?;
                send_description(client, &rows, &[]).await?;
                send_rows(client, &rows, &[], &running).await?;
                send_done(client, counted(tag, rows.count())).await?;
            }
            Reply::Copy { answer: Answer { rows, notices, running }, copy } => {
                send_notices(client, &notices).await?;
                copy.send(client, &rows, &running).await?;
                send_done(client, counted("COPY", rows.count())).await?;
            }
        }
    }
    Ok(())
}

/// Ends an exchange of messages: tells which settings changed, and that the next exchange may begin.
///
/// # Errors
/// What breaks the connection.
pub(super) async fn end_exchange<C>(client: &mut C) -> PgWireResult<()>
where
    C: ClientInfo + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
    C::Error: Debug,
    PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
{
    let session = Session::of(client)?;
    session.exchanged();
    for (name, value) in session.news() {
        let told = ParameterStatus::new(name.to_owned(), value);
        client.feed(PgWireBackendMessage::ParameterStatus(told)).await?;
    }
    let status = session.status();
    client.set_transaction_status(status);
    send_ready_for_query(client, status).await
}

/// Lets the session know of a failure, and the connection of where the session is then.
pub(super) fn settle<C: ClientInfo, T>(client: &mut C, result: PgWireResult<T>) -> PgWireResult<T> {
    let session = Session::of(client)?;
    if result.is_err() {
        session.failed();
    }
    client.set_transaction_status(session.status());
    result
}

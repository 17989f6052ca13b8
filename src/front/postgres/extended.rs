//! The extended protocol: statements that are prepared, bound, described and carried out message by message, whose
//! answers may be read in parts.

use std::{fmt::Debug, mem, sync::Arc};

use async_trait::async_trait;
use futures::{Sink, SinkExt};
use pgwire::{
    api::{
        ClientInfo, ClientPortalStore, portal::Portal as LibraryPortal, query::ExtendedQueryHandler, results::Response,
        stmt::NoopQueryParser, store::PortalStore,
    },
    error::{PgWireError, PgWireResult},
    messages::{
        PgWireBackendMessage,
        data::NoData,
        extendedquery::{
            Bind, BindComplete, Close, CloseComplete, Describe, Execute, Parse, ParseComplete, PortalSuspended,
            Sync as PgSync, TARGET_TYPE_BYTE_PORTAL, TARGET_TYPE_BYTE_STATEMENT,
        },
        response::EmptyQueryResponse,
    },
};

use super::{
    cursor::Cursor,
    encode::description,
    prepared::{Portal, Prepared, Progress, lock},
    reply::{Answer, Reply, counted, failed_transaction, refuse_in_failed, reply, send_done, send_notices, send_rows},
    session::{Session, Transaction},
    simple::{end_exchange, settle},
    statements::{fault, split},
};

/// Handles the messages of the extended protocol. What it knows of a connection is the connection's own.
#[derive(Debug, Default)]
pub(super) struct Extended;

#[async_trait]
impl ExtendedQueryHandler for Extended {
    // The library's store of statements is not used: `Shelf` is.
    type Statement = String;
    type QueryParser = NoopQueryParser;

    fn query_parser(&self) -> Arc<Self::QueryParser> {
        Arc::new(NoopQueryParser)
    }

    async fn on_parse<C>(&self, client: &mut C, message: Parse) -> PgWireResult<()>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore<Statement = Self::Statement>,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let prepared = prepare(client, message);
        settle(client, prepared)?;
        client.feed(PgWireBackendMessage::ParseComplete(ParseComplete::new())).await?;
        Ok(())
    }

    async fn on_bind<C>(&self, client: &mut C, message: Bind) -> PgWireResult<()>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore<Statement = Self::Statement>,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let session = Session::of(client)?;
        let bound = bind(&session, message).await;
        settle(client, bound)?;
        client.feed(PgWireBackendMessage::BindComplete(BindComplete::new())).await?;
        Ok(())
    }

    async fn on_describe<C>(&self, client: &mut C, message: Describe) -> PgWireResult<()>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore<Statement = Self::Statement>,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let session = Session::of(client)?;
        let described = describe(&session, message).await;
        for message in settle(client, described)? {
            client.feed(message).await?;
        }
        Ok(())
    }

    async fn on_execute<C>(&self, client: &mut C, message: Execute) -> PgWireResult<()>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore<Statement = Self::Statement>,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let executed = execute(client, message).await;
        settle(client, executed)
    }

    async fn on_sync<C>(&self, client: &mut C, _: PgSync) -> PgWireResult<()>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore<Statement = Self::Statement>,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        end_exchange(client).await
    }

    async fn on_close<C>(&self, client: &mut C, message: Close) -> PgWireResult<()>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore<Statement = Self::Statement>,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let (session, name) = (Session::of(client)?, message.name.unwrap_or_default());
        match message.target_type {
            TARGET_TYPE_BYTE_STATEMENT => session.shelf().forget(&name),
            // Cursors are portals, too.
            _ => {
                let _ = session.shelf().close(&name) || lock(session.cursors()).close(&name);
            }
        }
        client.feed(PgWireBackendMessage::CloseComplete(CloseComplete::new())).await?;
        Ok(())
    }

    async fn do_query<C>(&self, _: &mut C, _: &LibraryPortal<Self::Statement>, _: usize) -> PgWireResult<Response>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore<Statement = Self::Statement>,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        Err(fault("XX000", "messages are answered as they come"))
    }
}

fn prepare<C: ClientInfo>(client: &C, message: Parse) -> PgWireResult<()> {
    let session = Session::of(client)?;
    let (shelf, name) = (session.shelf(), message.name.unwrap_or_default());
    // Whether or not another takes its place, the last one without a name is gone.
    if name.is_empty() {
        shelf.forget("");
    }
    let mut statements = split(&message.query)?;
    if statements.len() > 1 {
        return Err(fault("42601", "cannot insert multiple commands into a prepared statement"));
    }
    let statement = statements.pop().transpose()?;
    if let Some(statement) = &statement {
        refuse_in_failed(&session, statement)?;
    }
    shelf.prepare(name, Prepared::new(statement, message.type_oids))
}

async fn bind(session: &Arc<Session>, message: Bind) -> PgWireResult<()> {
    let prepared = session.shelf().prepared(message.statement_name.as_deref().unwrap_or_default())?;
    if let Some(statement) = &prepared.statement {
        refuse_in_failed(session, statement)?;
    }
    let name = message.portal_name.clone().unwrap_or_default();
    // A cursor of SQL is a portal, too.
    if !name.is_empty() && lock(session.cursors()).has(&name) {
        return Err(fault("42P03", format!("cursor \"{name}\" already exists")));
    }
    let parameters = prepared.bind(session, &message).await?;
    let formats = message.result_column_format_codes;
    session.shelf().keep(name, Portal { prepared, parameters, formats, progress: Progress::Bound })
}

async fn describe(session: &Arc<Session>, message: Describe) -> PgWireResult<Vec<PgWireBackendMessage>> {
    let shelf = session.shelf();
    let name = message.name.unwrap_or_default();
    let (prepared, formats, mut messages) = match message.target_type {
        TARGET_TYPE_BYTE_STATEMENT => {
            let prepared = shelf.prepared(&name)?;
            let parameters = prepared.parameters(session).await?;
            (prepared, Vec::new(), vec![PgWireBackendMessage::ParameterDescription(parameters)])
        }
        TARGET_TYPE_BYTE_PORTAL => match shelf.bound(&name) {
            Some((prepared, formats)) => (prepared, formats, Vec::new()),
            // Cursors are portals too, and clients that declared one ask for its columns in this way.
            None => {
                let schema = lock(session.cursors()).schema(&name);
                let schema = schema.map_err(|_| fault("34000", format!("portal \"{name}\" does not exist")))?;
                return Ok(vec![PgWireBackendMessage::RowDescription(description(&schema, &[]))]);
            }
        },
        kind => return Err(PgWireError::InvalidTargetType(kind)),
    };
    messages.push(match &prepared.shape(session).await?.schema {
        Some(schema) => {
            check_formats(&formats, schema.fields().len())?;
            prepared.promise(schema);
            PgWireBackendMessage::RowDescription(description(schema, &formats))
        }
        None => PgWireBackendMessage::NoData(NoData::new()),
    });
    Ok(messages)
}

async fn execute<C>(client: &mut C, message: Execute) -> PgWireResult<()>
where
    C: ClientInfo + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
    C::Error: Debug,
    PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
{
    let session = Session::of(client)?;
    let shelf = session.shelf();
    let name = message.name.unwrap_or_default();
    let most = usize::try_from(message.max_rows).ok().filter(|most| *most > 0).unwrap_or(usize::MAX);
    if !shelf.has(&name) && lock(session.cursors()).has(&name) {
        return execute_cursor(client, &session, &name, most).await;
    }
    let mut portal = shelf.take(&name)?;
    let prepared = Arc::clone(&portal.prepared);
    let Some(statement) = &prepared.statement else {
        client.feed(PgWireBackendMessage::EmptyQueryResponse(EmptyQueryResponse::new())).await?;
        return shelf.keep(name, portal);
    };
    let (mut cursor, tag, running) = match mem::replace(&mut portal.progress, Progress::Done) {
        Progress::Bound => match reply(&session, statement, mem::take(&mut portal.parameters)).await? {
            Reply::Done { tag, notices } => {
                send_notices(client, &notices).await?;
                send_done(client, tag).await?;
                return shelf.keep(name, portal);
            }
            Reply::Copy { answer: Answer { rows, notices, running }, copy } => {
                send_notices(client, &notices).await?;
                copy.send(client, &rows, &running).await?;
                send_done(client, counted("COPY", rows.count())).await?;
                return shelf.keep(name, portal);
            }
            Reply::Rows { answer: Answer { rows, notices, running }, tag } => {
                send_notices(client, &notices).await?;
                (Cursor::of_portal(&statement.sql, prepared.fitted(rows)?), tag, running)
            }
        },
        Progress::Reading { cursor, tag } => {
            refuse_in_failed(&session, statement)?;
            (cursor, tag, session.run())
        }
        Progress::Done => return Err(fault("55000", format!("portal \"{name}\" cannot be run"))),
    };
    check_formats(&portal.formats, cursor.schema().fields().len())?;
    let part = cursor.next(most);
    send_rows(client, &part, &portal.formats, &running).await?;
    // As in Postgres, that there is nothing more shows only when fewer rows came than were asked for.
    if part.count() == most {
        client.feed(PgWireBackendMessage::PortalSuspended(PortalSuspended::new())).await?;
    } else {
        cursor.empty();
        send_done(client, counted(tag, part.count())).await?;
    }
    portal.progress = Progress::Reading { cursor, tag };
    shelf.keep(name, portal)
}

/// Sends rows of a cursor that was declared in SQL, in text, since nobody bound it to a form.
async fn execute_cursor<C>(client: &mut C, session: &Arc<Session>, name: &str, most: usize) -> PgWireResult<()>
where
    C: ClientInfo + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
    C::Error: Debug,
    PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
{
    if session.transaction() == Transaction::Failed {
        return Err(failed_transaction());
    }
    let running = session.run();
    let rows = lock(session.cursors()).next(name, most)?;
    send_rows(client, &rows, &[], &running).await?;
    match rows.count() == most {
        true => Ok(client.feed(PgWireBackendMessage::PortalSuspended(PortalSuspended::new())).await?),
        false => send_done(client, counted("SELECT", rows.count())).await,
    }
}

fn check_formats(formats: &[i16], columns: usize) -> PgWireResult<()> {
    match formats.len() < 2 || formats.len() == columns {
        true => Ok(()),
        false => {
            let why = format!("bind message has {} result formats but query has {columns} columns", formats.len());
            Err(fault("08P01", why))
        }
    }
}

#[cfg(test)]
#[expect(clippy::panic, reason = "a test that fails should say so at once")]
mod tests {
    use super::*;

    #[test]
    fn forms_are_none_one_or_one_for_each_column() {
        for (formats, columns) in [(&[][..], 3), (&[1], 3), (&[0, 1, 0], 3)] {
            assert!(check_formats(formats, columns).is_ok(), "{formats:?}");
        }
        let Err(PgWireError::UserError(info)) = check_formats(&[0, 1], 3) else { panic!("it was taken") };
        assert_eq!(info.code, "08P01");
    }
}

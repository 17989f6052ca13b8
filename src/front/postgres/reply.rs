//! One statement from its words to its answer: the session's own, cursors and copies, the catalogue, and questions to
//! the hub. Both protocols answer with what is made here.

use std::{fmt::Debug, mem, pin::pin, sync::Arc, time::Instant};

use arrow::datatypes::{Schema, SchemaRef};
use datafusion::common::ScalarValue;
use futures::{Sink, SinkExt};
use pgwire::{
    error::{PgWireError, PgWireResult},
    messages::{PgWireBackendMessage, response::CommandComplete},
};

use super::{
    cancel::Running,
    command::{CURSOR_COLUMNS, UNNAMED},
    copy::Copy,
    cursor::{self, Cursor, Declare, Fetch, Life, Listed, Wanted},
    encode::{Rows, data_row, description, plain_schema, text_schema},
    error::{error, notice},
    prepared::{Prepared, Progress, Shape, lock},
    session::{CHANNEL, Outcome, Session, Transaction},
    shapes::Key,
    statements::{Kind, Statement, fault},
};
use crate::{
    error::Error,
    front::{door::to_its_end, figures},
    hub::Answered,
};

/// The columns of `SHOW ALL`.
const SETTINGS: [&str; 3] = ["name", "setting", "description"];

/// Most columns of an answer, as in Postgres; the protocol counts them in 16 bits.
const MOST_COLUMNS: usize = 1_664;

/// What a statement comes to.
pub(super) enum Reply {
    /// It was done.
    Done {
        /// What that is called.
        tag: String,
        /// What its reader should know.
        notices: Vec<String>,
    },
    /// Rows.
    Rows {
        /// The rows, and what belongs to them.
        answer: Answer,
        /// What the answer is called.
        tag: &'static str,
    },
    /// Rows as a file.
    Copy {
        /// The rows, and what belongs to them.
        answer: Answer,
        /// The form of the file.
        copy: Copy,
    },
}

/// Rows that are to be sent.
pub(super) struct Answer {
    /// The rows.
    pub(super) rows: Rows,
    /// What their reader should know.
    pub(super) notices: Vec<String>,
    /// The statement, which goes on until they are sent.
    pub(super) running: Running,
}

/// Carries out a statement.
///
/// # Errors
/// 25P02 in a transaction that has failed, and whatever the statement fails with.
pub(super) async fn reply(
    session: &Arc<Session>,
    statement: &Statement,
    parameters: Vec<ScalarValue>,
) -> PgWireResult<Reply> {
    refuse_in_failed(session, statement)?;
    match &statement.kind {
        Kind::Declare(declare) => open(session, statement, declare, parameters).await,
        Kind::Fetch(fetch) => read(session, fetch).await,
        Kind::Copy(copy) => {
            let answer = ask(session, statement, parameters).await?;
            Ok(Reply::Copy { answer, copy: copy.clone() })
        }
        Kind::Prepare(prepare) => {
            let prepared = Prepared::new(Some((*prepare.statement).clone()), prepare.types.clone());
            session.shelf().prepare(prepare.name.clone(), prepared)?;
            Ok(done("PREPARE"))
        }
        Kind::Execute(execute) => {
            let prepared = session.shelf().prepared(&execute.name)?;
            let query = query_of(session, &prepared)?;
            let parameters = prepared.read(session, &execute.name, &execute.values).await?;
            let mut answer = ask(session, query, parameters).await?;
            answer.rows = prepared.fitted(answer.rows)?;
            Ok(Reply::Rows { answer, tag: query.tag() })
        }
        Kind::Other => match session.command(&statement.sql).map_err(|fault| error(&fault))? {
            Some(outcome) => outcome_of(session, outcome),
            None => {
                let answer = ask(session, statement, parameters).await?;
                Ok(Reply::Rows { answer, tag: statement.tag() })
            }
        },
    }
}

/// Opens a cursor.
async fn open(
    session: &Arc<Session>,
    statement: &Statement,
    declare: &Declare,
    parameters: Vec<ScalarValue>,
) -> PgWireResult<Reply> {
    if declare.life == Life::Transaction && matches!(session.transaction(), Transaction::Idle) {
        let why = "DECLARE CURSOR can only be used in transaction blocks; write BEGIN first, or WITH HOLD";
        return Err(fault("25P01", why));
    }
    // A portal of the protocol is a cursor, too.
    if session.shelf().has(&declare.name) {
        return Err(fault("42P03", format!("cursor \"{}\" already exists", declare.name)));
    }
    lock(session.cursors()).admit(declare)?;
    let Answer { rows, notices, .. } = ask(session, statement, parameters).await?;
    lock(session.cursors()).open(declare, rows)?;
    Ok(Reply::Done { tag: "DECLARE CURSOR".into(), notices })
}

/// Reads a cursor, or a portal of the protocol.
async fn read(session: &Arc<Session>, fetch: &Fetch) -> PgWireResult<Reply> {
    let is_declared = lock(session.cursors()).has(&fetch.name);
    let answer = if is_declared {
        let rows = lock(session.cursors()).fetch(fetch)?;
        Answer { rows, notices: Vec::new(), running: session.run() }
    } else {
        read_portal(session, fetch).await?
    };
    Ok(match fetch.wanted {
        Wanted::Rows => Reply::Rows { answer, tag: "FETCH" },
        Wanted::Count => Reply::Done { tag: format!("MOVE {}", answer.rows.count()), notices: answer.notices },
    })
}

async fn read_portal(session: &Arc<Session>, fetch: &Fetch) -> PgWireResult<Answer> {
    let shelf = session.shelf();
    let mut portal = shelf.take(&fetch.name).map_err(|_| cursor::unknown(&fetch.name))?;
    let prepared = Arc::clone(&portal.prepared);
    let (mut cursor, tag, notices, running) = match mem::replace(&mut portal.progress, Progress::Done) {
        Progress::Bound => {
            let query = query_of(session, &prepared)?;
            let answer = ask(session, query, mem::take(&mut portal.parameters)).await?;
            let cursor = Cursor::of_portal(&query.sql, prepared.fitted(answer.rows)?);
            (cursor, query.tag(), answer.notices, answer.running)
        }
        Progress::Reading { cursor, tag } => (cursor, tag, Vec::new(), session.run()),
        Progress::Done => return Err(fault("55000", format!("portal \"{}\" cannot be run", fetch.name))),
    };
    let rows = cursor.fetch(fetch)?;
    portal.progress = Progress::Reading { cursor, tag };
    shelf.keep(fetch.name.clone(), portal)?;
    Ok(Answer { rows, notices, running })
}

/// The query of a prepared statement that is not carried out in the protocol, but from inside another statement.
fn query_of<'a>(session: &Session, prepared: &'a Prepared) -> PgWireResult<&'a Statement> {
    let statement = prepared.statement.as_ref().filter(|statement| {
        let is_own = session.describe_command(&statement.sql).map_or(true, |own| own.is_some());
        matches!(statement.kind, Kind::Other) && !statement.has_no_rows() && !is_own
    });
    statement.ok_or_else(|| fault("55000", "only queries can be run in this way"))
}

fn outcome_of(session: &Session, outcome: Outcome) -> PgWireResult<Reply> {
    match outcome {
        Outcome::Done(tag) => Ok(done(tag)),
        Outcome::Shown { name, value } => texts(session, "SHOW", &[name], &[vec![Some(value)]]),
        Outcome::Row(columns) => {
            let (names, values): (Vec<_>, Vec<_>) = columns.into_iter().unzip();
            texts(session, "SELECT", &names, &[values])
        }
        Outcome::Settings(settings) => {
            let settings = settings.into_iter().map(|(name, value, what)| vec![Some(name), Some(value), Some(what)]);
            texts(session, "SHOW", &SETTINGS, &settings.collect::<Vec<_>>())
        }
        Outcome::Deallocate(None) => {
            session.shelf().deallocate_all();
            Ok(done("DEALLOCATE ALL"))
        }
        Outcome::Deallocate(Some(name)) => {
            session.shelf().deallocate(&name)?;
            Ok(done("DEALLOCATE"))
        }
        Outcome::Close(None) => {
            lock(session.cursors()).close_all();
            session.shelf().close_all();
            Ok(done("CLOSE CURSOR ALL"))
        }
        Outcome::Close(Some(name)) => {
            let closed = lock(session.cursors()).close(&name) || session.shelf().close(&name);
            if closed { Ok(done("CLOSE CURSOR")) } else { Err(cursor::unknown(&name)) }
        }
        Outcome::Cursors { columns, name } => {
            let mut open: Vec<_> = lock(session.cursors()).listed().collect();
            open.extend(session.shelf().listed());
            open.retain(|one| name.as_ref().is_none_or(|name| *name == one.name));
            let rows: Vec<Vec<_>> =
                open.iter().map(|one| columns.iter().map(|column| cursor_value(one, column)).collect()).collect();
            texts(session, "SELECT", &columns, &rows)
        }
    }
}

/// What `pg_cursors` says of a cursor in one of its columns. When it was opened is not kept.
fn cursor_value(cursor: &Listed, column: &str) -> Option<String> {
    let truth = |is_so: bool| Some(if is_so { "t" } else { "f" }.to_owned());
    let [name, statement, is_holdable, is_binary, is_scrollable, _] = CURSOR_COLUMNS;
    match column {
        UNNAMED => Some("1".to_owned()),
        column if column == name => Some(cursor.name.clone()),
        column if column == statement => Some(cursor.sql.clone()),
        column if column == is_holdable => truth(cursor.is_held),
        column if column == is_binary => truth(false),
        column if column == is_scrollable => truth(cursor.goes_back),
        _ => None,
    }
}

fn texts(
    session: &Session,
    tag: &'static str,
    names: &[impl AsRef<str>],
    rows: &[Vec<Option<String>>],
) -> PgWireResult<Reply> {
    let rows = Rows::texts(names, rows).map_err(|fault| error(&fault))?;
    Ok(Reply::Rows { answer: Answer { rows, notices: Vec::new(), running: session.run() }, tag })
}

fn done(tag: impl Into<String>) -> Reply {
    Reply::Done { tag: tag.into(), notices: Vec::new() }
}

/// In a transaction that has failed nothing is heard but its end.
///
/// # Errors
/// 25P02.
pub(super) fn refuse_in_failed(session: &Session, statement: &Statement) -> PgWireResult<()> {
    match matches!(session.transaction(), Transaction::Failed) && !statement.ends_transaction() {
        true => Err(failed_transaction()),
        false => Ok(()),
    }
}

/// What is said of everything in such a transaction.
pub(super) fn failed_transaction() -> PgWireError {
    fault("25P02", "current transaction is aborted, commands ignored until end of transaction block")
}

/// Puts a question to the hub: to its catalogue where that is all it is about, else to the data.
async fn ask(session: &Arc<Session>, statement: &Statement, params: Vec<ScalarValue>) -> PgWireResult<Answer> {
    let credential = session.credential().map_err(|fault| error(&fault))?;
    let (question, running) = session.question(statement.question(), params).map_err(|fault| error(&fault))?;
    let (hub, hears_notices) = (Arc::clone(session.hub()), session.hears_notices());
    let looks_up = statement.looks_up();
    let asked = to_its_end(async move {
        if looks_up {
            let found = hub.look_up(&credential, question).await?;
            let rows = Rows::new(&found.schema, &found.batches)?.keeping(found.room);
            return Ok::<_, Error>(Answer { rows, notices: Vec::new(), running });
        }
        let begun = Instant::now();
        let answered = hub.query(&credential, question).await;
        figures::asked(CHANNEL, &answered, begun.elapsed());
        let answered = answered?;
        let notices = if hears_notices { notices_of(&answered) } else { Vec::new() };
        let released = answered.released;
        let rows = Rows::named(&released.schema, &released.columns, &released.batches)?.keeping(answered.room);
        // It can be cancelled as long as this lives.
        Ok(Answer { rows, notices, running })
    });
    let answer = asked.await.map_err(|fault| error(&fault))?;
    check_width(answer.rows.schema())?;
    Ok(answer)
}

fn check_width(schema: &Schema) -> PgWireResult<()> {
    match schema.fields().len() <= MOST_COLUMNS {
        true => Ok(()),
        false => Err(fault("54011", format!("an answer can have at most {MOST_COLUMNS} columns at this door"))),
    }
}

/// What the reader of an answer should know: what was done to protect it, and how to find it in the log.
fn notices_of(answered: &Answered) -> Vec<String> {
    let mut notices = answered.released.notices.clone();
    let protection = &answered.released.protection;
    if protection.mode != "exact" {
        let threshold = protection.threshold.map(|threshold| format!(" threshold={threshold}")).unwrap_or_default();
        let noise = protection.noise_sd.map(|noise| format!(" noise_sd={noise}")).unwrap_or_default();
        notices.push(format!(
            "protection: mode={}{threshold}{noise}; query_id={}; log_index={}",
            protection.mode, answered.query_id, answered.log_index
        ));
    }
    notices
}

/// What a statement takes and answers with. `named` are NULLs of the types that the client named. Nothing is carried
/// out.
///
/// # Errors
/// 25P02 in a transaction that has failed, and what is wrong with the statement.
pub(super) async fn describe(
    session: &Arc<Session>,
    statement: &Statement,
    named: Vec<ScalarValue>,
) -> PgWireResult<Arc<Shape>> {
    refuse_in_failed(session, statement)?;
    let without = |schema| Ok(Arc::new(Shape { parameters: Vec::new(), schema }));
    match &statement.kind {
        Kind::Fetch(fetch) if fetch.wanted == Wanted::Rows => {
            return without(columns_of(session, &fetch.name).await?);
        }
        Kind::Execute(execute) => {
            let prepared = session.shelf().prepared(&execute.name)?;
            let query = query_of(session, &prepared)?;
            return without(describe_query(session, query, prepared.nulls()).await?.schema.clone());
        }
        // Their answers are no rows of the protocol; what their queries take must be known only where they take something.
        _ if statement.has_no_rows() && statement.parameters == 0 => return without(None),
        Kind::Other => {
            if let Some(columns) = session.describe_command(&statement.sql).map_err(|fault| error(&fault))? {
                return without((!columns.is_empty()).then(|| text_schema(&columns)));
            }
        }
        _ => {}
    }
    describe_query(session, statement, named).await
}

/// The columns of a cursor, or of a portal of the protocol.
async fn columns_of(session: &Arc<Session>, name: &str) -> PgWireResult<Option<SchemaRef>> {
    let (declared, reading) = (lock(session.cursors()).schema(name).ok(), session.shelf().reading(name));
    if let Some(known) = declared.or(reading) {
        return Ok(Some(known));
    }
    let (prepared, _) = session.shelf().bound(name).ok_or_else(|| cursor::unknown(name))?;
    let query = query_of(session, &prepared)?;
    Ok(describe_query(session, query, prepared.nulls()).await?.schema.clone())
}

/// The same of a question to the hub, which is asked once as long as the answer would be the same.
async fn describe_query(
    session: &Arc<Session>,
    statement: &Statement,
    named: Vec<ScalarValue>,
) -> PgWireResult<Arc<Shape>> {
    let credential = session.credential().map_err(|fault| error(&fault))?;
    let terms = session.terms();
    // Where there is none, the hub has a reason that it will tell.
    let version = session.hub().catalogue_version(&credential, terms.purpose.as_deref()).ok();
    let types = named.iter().map(ScalarValue::data_type).collect();
    let key = version.map(|version| Key { sql: statement.sql.clone(), types, terms, version });
    if let Some(shape) = key.as_ref().and_then(|key| lock(session.shapes()).find(key)) {
        return Ok(shape);
    }
    let (question, running) = session.question(statement.question(), named).map_err(|fault| error(&fault))?;
    let hub = Arc::clone(session.hub());
    let looks_up = statement.looks_up();
    let asked = to_its_end(async move {
        let _running = running;
        match looks_up {
            true => hub.describe_look_up(&credential, &question).await,
            false => hub.describe(&credential, &question).await,
        }
    });
    let described = asked.await.map_err(|fault| error(&fault))?;
    check_width(&described.schema)?;
    let schema = (!statement.has_no_rows()).then(|| plain_schema(&described.schema, &described.columns));
    let shape = Arc::new(Shape { parameters: described.parameters.clone(), schema });
    if let Some(key) = key {
        lock(session.shapes()).keep(key, Arc::clone(&shape));
    }
    Ok(shape)
}

/// Sends what the reader of an answer should know.
///
/// # Errors
/// What breaks the connection.
pub(super) async fn send_notices<C>(client: &mut C, notices: &[String]) -> PgWireResult<()>
where
    C: Sink<PgWireBackendMessage> + Unpin + Send,
    C::Error: Debug,
    PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
{
    for text in notices {
        client.feed(PgWireBackendMessage::NoticeResponse(notice(text))).await?;
    }
    Ok(())
}

/// Sends what is said of the columns before the rows.
///
/// # Errors
/// What breaks the connection.
pub(super) async fn send_description<C>(client: &mut C, rows: &Rows, formats: &[i16]) -> PgWireResult<()>
where
    C: Sink<PgWireBackendMessage> + Unpin + Send,
    C::Error: Debug,
    PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
{
    client.feed(PgWireBackendMessage::RowDescription(description(rows.schema(), formats))).await?;
    Ok(())
}

/// Sends rows one by one, as fast as the client takes them, unless the statement is ended meanwhile.
///
/// # Errors
/// What ends the statement or breaks the connection, and a value that has no form in Postgres.
pub(super) async fn send_rows<C>(client: &mut C, rows: &Rows, formats: &[i16], running: &Running) -> PgWireResult<()>
where
    C: Sink<PgWireBackendMessage> + Unpin + Send,
    C::Error: Debug,
    PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
{
    let mut ended = pin!(running.ended());
    for (batch, row) in rows.iter() {
        let row = data_row(batch, row, formats).map_err(|fault| error(&fault))?;
        tokio::select! {
            biased;
            why = &mut ended => return Err(error(&why)),
            fed = client.feed(PgWireBackendMessage::DataRow(row)) => fed?,
        }
    }
    Ok(())
}

/// Sends the end of a statement.
///
/// # Errors
/// What breaks the connection.
pub(super) async fn send_done<C>(client: &mut C, tag: String) -> PgWireResult<()>
where
    C: Sink<PgWireBackendMessage> + Unpin + Send,
    C::Error: Debug,
    PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
{
    client.feed(PgWireBackendMessage::CommandComplete(CommandComplete::new(tag))).await?;
    Ok(())
}

/// What an answer of so many rows is called.
pub(super) fn counted(tag: &str, rows: usize) -> String {
    match tag {
        "SELECT" | "FETCH" | "COPY" => format!("{tag} {rows}"),
        tag => tag.to_owned(),
    }
}

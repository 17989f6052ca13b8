//! What a connection keeps between messages: prepared statements, and portals, which are statements with their
//! parameters and what is left of their answers. The library's own store knows neither bounds nor rows in memory.

use std::{
    cmp::max,
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use arrow::datatypes::{DataType, Field, SchemaRef};
use datafusion::common::ScalarValue;
use pgwire::{
    api::Type,
    error::{PgWireError, PgWireResult},
    messages::{data::ParameterDescription, extendedquery::Bind},
};

use super::{
    cursor::{Cursor, Listed},
    encode::{Rows, TEXT, format_of, pg_type},
    parameters::{Expected, null_of},
    reply::describe,
    session::{Session, Terms},
    statements::{Kind, Statement, fault},
};

/// How many prepared statements a connection may have.
const MOST_STATEMENTS: usize = 1024;

/// How many bytes their texts and names may take together, and the types that their client named.
const MOST_TEXT: usize = 16 << 20;

/// How many portals it may have.
const MOST_PORTALS: usize = 64;

/// How many bytes of rows they may hold together.
const MOST_BYTES: usize = 256 << 20;

/// What a statement takes and answers with.
#[derive(Debug)]
pub(super) struct Shape {
    /// The types of its parameters, as the hub found them.
    pub(super) parameters: Vec<DataType>,
    /// Its columns; nothing where it answers with no rows.
    pub(super) schema: Option<SchemaRef>,
}

/// A statement that can be carried out many times; nothing where its text is empty.
pub(super) struct Prepared {
    pub(super) statement: Option<Statement>,
    /// The types that the client named, 0 for those it did not.
    types: Vec<u32>,
    /// The numbers of the parameters of which it says that they are arrays of oids.
    of_oids: Vec<usize>,
    /// What it was found to be, and on which terms.
    shape: Mutex<Option<(Terms, Arc<Shape>)>>,
    /// The columns that its client was told of last.
    promised: Mutex<Option<SchemaRef>>,
}

/// The numbers of the parameters that a statement casts to arrays of oids. To the catalogue these are plain numbers; but
/// who looks types up knows of no other array before it has.
fn arrays_of_oids(sql: &str) -> Vec<usize> {
    let sql = sql.to_ascii_lowercase();
    let number = |at: usize| {
        let before = sql[..at].trim_end_matches(|c: char| c.is_ascii_digit());
        before.ends_with('$').then(|| sql[before.len()..at].parse().ok())?
    };
    let mut numbers: Vec<usize> = sql.match_indices("::oid[]").filter_map(|(at, _)| number(at)).collect();
    numbers.sort_unstable();
    numbers.dedup();
    numbers
}

impl Prepared {
    /// A statement with the types of the first of its parameters.
    pub(super) fn new(statement: Option<Statement>, types: Vec<u32>) -> Self {
        let of_oids = statement.as_ref().map_or_else(Vec::new, |statement| arrays_of_oids(&statement.sql));
        Self { statement, types, of_oids, shape: Mutex::default(), promised: Mutex::default() }
    }

    /// How many bytes its text takes, and the types that its client named.
    fn bytes(&self) -> usize {
        let text = self.statement.as_ref().map_or(0, |statement| statement.sql.len());
        text + size_of_val(self.types.as_slice())
    }

    /// How many parameters it takes.
    fn count(&self) -> usize {
        max(self.types.len(), self.statement.as_ref().map_or(0, |statement| statement.parameters))
    }

    /// The type that the client gave a parameter.
    fn named(&self, at: usize) -> Option<Type> {
        let named = self.types.get(at).and_then(|oid| Type::from_oid(*oid));
        named.filter(|kind| *kind != Type::UNKNOWN)
    }

    /// NULLs of the types that the client named; none where it named no type.
    pub(super) fn nulls(&self) -> Vec<ScalarValue> {
        let nulls: Vec<_> = (0..self.count()).map(|at| self.named(at).map_or(ScalarValue::Null, null_of)).collect();
        if nulls.iter().all(|null| *null == ScalarValue::Null) { Vec::new() } else { nulls }
    }

    /// What it takes and answers with, asked once on the same terms.
    ///
    /// # Errors
    /// What is wrong with the statement.
    pub(super) async fn shape(&self, session: &Arc<Session>) -> PgWireResult<Arc<Shape>> {
        let Some(statement) = &self.statement else {
            return Ok(Arc::new(Shape { parameters: Vec::new(), schema: None }));
        };
        // Another cursor, or another prepared statement, may have the name by then.
        if let Kind::Fetch(_) | Kind::Execute(_) = statement.kind {
            return describe(session, statement, Vec::new()).await;
        }
        let terms = session.terms();
        if let Some((known, shape)) = lock(&self.shape).as_ref()
            && *known == terms
        {
            return Ok(Arc::clone(shape));
        }
        let shape = describe(session, statement, self.nulls()).await?;
        *lock(&self.shape) = Some((terms, Arc::clone(&shape)));
        Ok(shape)
    }

    /// Its answer in the columns that its client was told of, where it was.
    ///
    /// # Errors
    /// 0A000 where it does not fit them.
    pub(super) fn fitted(&self, rows: Rows) -> PgWireResult<Rows> {
        let Some(promised) = self.promised() else { return Ok(rows) };
        rows.promised(&promised).ok_or_else(|| fault("0A000", "cached plan must not change result type"))
    }

    /// The columns that its client was told of last. They may be others by now, on other terms.
    fn promised(&self) -> Option<SchemaRef> {
        lock(&self.promised).clone()
    }

    /// Remembers what its client is told of its columns, and reads rows by from then on.
    pub(super) fn promise(&self, schema: &SchemaRef) {
        *lock(&self.promised) = Some(Arc::clone(schema));
    }

    /// What its client is told of its parameters.
    ///
    /// # Errors
    /// As [`Prepared::shape`].
    pub(super) async fn parameters(&self, session: &Arc<Session>) -> PgWireResult<ParameterDescription> {
        let expected = self.expected(session).await?;
        Ok(ParameterDescription::new(expected.iter().map(|expected| expected.kind.oid()).collect()))
    }

    /// What each of its parameters is. The hub is asked only where the client left that open.
    async fn expected(&self, session: &Arc<Session>) -> PgWireResult<Vec<Expected>> {
        let named: Vec<_> = (0..self.count()).map(|at| self.named(at)).collect();
        let found = match named.iter().all(Option::is_some) {
            true => None,
            false => Some(self.shape(session).await?),
        };
        let expected = named.into_iter().enumerate().map(|(at, kind)| {
            let described = found.as_ref().and_then(|shape| shape.parameters.get(at)).cloned();
            let described = described.filter(|kind| *kind != DataType::Null);
            let guess = || match &described {
                Some(_) if self.of_oids.contains(&(at + 1)) => Type::OID_ARRAY,
                Some(kind) => pg_type(&Field::new("", kind.clone(), true)),
                // What nobody knows is text, as in Postgres.
                None => Type::TEXT,
            };
            Expected { kind: kind.unwrap_or_else(guess), described }
        });
        Ok(expected.collect())
    }

    /// Reads what a client binds to it.
    ///
    /// # Errors
    /// 08P01 where the numbers of values or forms do not fit, and what is wrong with a value.
    pub(super) async fn bind(&self, session: &Arc<Session>, bind: &Bind) -> PgWireResult<Vec<ScalarValue>> {
        let (given, wanted) = (bind.parameters.len(), self.count());
        if given != wanted {
            let why = format!("bind message supplies {given} parameters, but the prepared statement requires {wanted}");
            return Err(fault("08P01", why));
        }
        let formats = &bind.parameter_format_codes;
        if formats.len() > 1 && formats.len() != given {
            return Err(fault("08P01", format!("bind message has {} formats but {given} parameters", formats.len())));
        }
        if let Some(code) = formats.iter().chain(&bind.result_column_format_codes).find(|code| !(0..=1).contains(*code))
        {
            return Err(fault("22023", format!("unsupported format code: {code}")));
        }
        if given == 0 {
            return Ok(Vec::new());
        }
        let expected = self.expected(session).await?;
        let values = expected
            .iter()
            .zip(&bind.parameters)
            .enumerate()
            .map(|(at, (expected, value))| expected.read(at + 1, value.as_deref(), format_of(formats, at)));
        values.collect()
    }

    /// Reads what a statement of SQL gives it.
    ///
    /// # Errors
    /// 42601 where the number of values does not fit, and what is wrong with a value.
    pub(super) async fn read(
        &self,
        session: &Arc<Session>,
        name: &str,
        values: &[Option<String>],
    ) -> PgWireResult<Vec<ScalarValue>> {
        let (given, wanted) = (values.len(), self.count());
        if given != wanted {
            let why = format!("prepared statement \"{name}\" takes {wanted} parameters, not {given}");
            return Err(fault("42601", why));
        }
        if given == 0 {
            return Ok(Vec::new());
        }
        let expected = self.expected(session).await?;
        let values = expected.iter().zip(values).enumerate();
        let values = values.map(|(at, (expected, value))| {
            let text = value.as_deref().map(str::as_bytes);
            expected.read(at + 1, text, TEXT)
        });
        values.collect()
    }
}

/// A prepared statement with its parameters.
pub(super) struct Portal {
    pub(super) prepared: Arc<Prepared>,
    pub(super) parameters: Vec<ScalarValue>,
    /// The forms of the columns of the answer.
    pub(super) formats: Vec<i16>,
    pub(super) progress: Progress,
}

/// How far a portal is.
pub(super) enum Progress {
    /// Not carried out yet.
    Bound,
    /// Its answer is sent in parts.
    Reading {
        /// The answer, and how far it was sent.
        cursor: Cursor,
        /// What the answer is called.
        tag: &'static str,
    },
    /// Carried out, and there are no rows.
    Done,
}

impl Portal {
    /// How many bytes of rows it holds.
    fn bytes(&self) -> usize {
        match &self.progress {
            Progress::Reading { cursor, .. } => cursor.bytes(),
            Progress::Bound | Progress::Done => 0,
        }
    }
}

/// The prepared statements and portals of one connection.
#[derive(Default)]
pub(super) struct Shelf {
    statements: Mutex<BTreeMap<String, Arc<Prepared>>>,
    portals: Mutex<BTreeMap<String, Portal>>,
}

impl Shelf {
    /// Keeps a statement. One without a name takes the place of the last.
    ///
    /// # Errors
    /// 42P05 where there is one of that name, 53400 where there are too many.
    pub(super) fn prepare(&self, name: String, prepared: Prepared) -> PgWireResult<()> {
        let mut statements = lock(&self.statements);
        if !name.is_empty() && statements.contains_key(&name) {
            return Err(fault("42P05", format!("prepared statement \"{name}\" already exists")));
        }
        if statements.len() >= MOST_STATEMENTS && !name.is_empty() {
            let why = format!("this connection has {MOST_STATEMENTS} prepared statements; close some");
            return Err(fault("53400", why));
        }
        let others = statements.iter().filter(|(other, _)| **other != name);
        let held = others.map(|(other, prepared)| other.len() + prepared.bytes());
        let held = held.fold(name.len() + prepared.bytes(), usize::saturating_add);
        if held > MOST_TEXT {
            let most = MOST_TEXT >> 20;
            let why = format!("the prepared statements of this connection take more than {most} MiB; close some");
            return Err(fault("53400", why));
        }
        statements.insert(name, Arc::new(prepared));
        Ok(())
    }

    /// A statement by its name.
    ///
    /// # Errors
    /// 26000 where there is none.
    pub(super) fn prepared(&self, name: &str) -> PgWireResult<Arc<Prepared>> {
        lock(&self.statements).get(name).cloned().ok_or_else(|| unknown_statement(name))
    }

    /// Forgets a statement; nothing where there is none.
    pub(super) fn forget(&self, name: &str) {
        lock(&self.statements).remove(name);
    }

    /// Forgets a statement that there is.
    ///
    /// # Errors
    /// 26000 where there is none of that name.
    pub(super) fn deallocate(&self, name: &str) -> PgWireResult<()> {
        lock(&self.statements).remove(name).map(|_| ()).ok_or_else(|| unknown_statement(name))
    }

    /// Forgets all statements.
    pub(super) fn deallocate_all(&self) {
        lock(&self.statements).clear();
    }

    /// Keeps a portal. One without a name takes the place of the last.
    ///
    /// # Errors
    /// 42P03 where there is one of that name, 53400 where there are too many or they hold too much.
    pub(super) fn keep(&self, name: String, portal: Portal) -> PgWireResult<()> {
        let mut portals = lock(&self.portals);
        if !name.is_empty() && portals.contains_key(&name) {
            return Err(fault("42P03", format!("portal \"{name}\" already exists")));
        }
        let held: usize = portals.iter().filter(|(other, _)| **other != name).map(|(_, portal)| portal.bytes()).sum();
        if portals.len() >= MOST_PORTALS || held.saturating_add(portal.bytes()) > MOST_BYTES {
            return Err(fault("53400", "the portals of this connection are too many or hold too much; close some"));
        }
        portals.insert(name, portal);
        Ok(())
    }

    /// Takes a portal to go on with it. One that fails meanwhile is gone, as in Postgres.
    ///
    /// # Errors
    /// 34000 where there is none of that name.
    pub(super) fn take(&self, name: &str) -> PgWireResult<Portal> {
        lock(&self.portals).remove(name).ok_or_else(|| fault("34000", format!("portal \"{name}\" does not exist")))
    }

    /// Forgets a portal; whether there was one.
    pub(super) fn close(&self, name: &str) -> bool {
        lock(&self.portals).remove(name).is_some()
    }

    /// Forgets all portals, as the end of a transaction does.
    pub(super) fn close_all(&self) {
        lock(&self.portals).clear();
    }

    /// The statement of a portal and the forms of its columns.
    pub(super) fn bound(&self, name: &str) -> Option<(Arc<Prepared>, Vec<i16>)> {
        lock(&self.portals).get(name).map(|portal| (Arc::clone(&portal.prepared), portal.formats.clone()))
    }

    /// Whether there is a portal of that name.
    pub(super) fn has(&self, name: &str) -> bool {
        lock(&self.portals).contains_key(name)
    }

    /// The columns of a portal that is being read.
    pub(super) fn reading(&self, name: &str) -> Option<SchemaRef> {
        match &lock(&self.portals).get(name)?.progress {
            Progress::Reading { cursor, .. } => Some(Arc::clone(cursor.schema())),
            Progress::Bound | Progress::Done => None,
        }
    }

    /// The portals that have a name, as `pg_cursors` shows them.
    pub(super) fn listed(&self) -> Vec<Listed> {
        let portals = lock(&self.portals);
        let named = portals.iter().filter(|(name, _)| !name.is_empty());
        let listed = named.map(|(name, portal)| {
            let statement = portal.prepared.statement.as_ref();
            let sql = statement.map(|statement| statement.sql.clone()).unwrap_or_default();
            Listed { name: name.clone(), sql, is_held: false, goes_back: false }
        });
        listed.collect()
    }
}

fn unknown_statement(name: &str) -> PgWireError {
    fault("26000", format!("prepared statement \"{name}\" does not exist"))
}

/// What a lock guards, also after a panic: these are replaced whole.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        disclose::Wishes,
        front::postgres::{encode::text_schema, statements::split},
    };

    fn code<T>(result: PgWireResult<T>) -> String {
        match result {
            Err(PgWireError::UserError(info)) => info.code,
            _ => "none".into(),
        }
    }

    fn portal() -> Portal {
        let prepared = Arc::new(Prepared::new(None, Vec::new()));
        Portal { prepared, parameters: Vec::new(), formats: Vec::new(), progress: Progress::Bound }
    }

    #[test]
    fn names_are_given_once_but_for_the_empty_one() {
        let shelf = Shelf::default();
        let prepare = |name: &str| code(shelf.prepare(name.into(), Prepared::new(None, Vec::new())));
        assert_eq!([prepare(""), prepare(""), prepare("a"), prepare("a")], ["none", "none", "none", "42P05"]);
        assert_eq!(code(shelf.prepared("b")), "26000");
        shelf.forget("b");
        assert_eq!(code(shelf.deallocate("a")), "none");
        assert_eq!(code(shelf.deallocate("a")), "26000");
        assert_eq!(prepare("a"), "none");
        shelf.deallocate_all();
        assert_eq!(code(shelf.prepared("a")), "26000");
        let keep = |name: &str| code(shelf.keep(name.into(), portal()));
        assert_eq!([keep(""), keep(""), keep("p"), keep("p")], ["none", "none", "none", "42P03"]);
        assert_eq!(code(shelf.take("p")), "none");
        assert_eq!(code(shelf.take("p")), "34000");
        assert_eq!((keep("p").as_str(), shelf.close("p"), shelf.close("p")), ("none", true, false));
        shelf.close_all();
        assert_eq!(code(shelf.take("")), "34000");
    }

    #[test]
    fn there_is_room_for_some() {
        let shelf = Shelf::default();
        let prepare = |at: usize| code(shelf.prepare(format!("s{at}"), Prepared::new(None, Vec::new())));
        assert!((0..MOST_STATEMENTS).all(|at| prepare(at) == "none"));
        assert_eq!(prepare(MOST_STATEMENTS), "53400");
        // Of few that are long there is no room for as many.
        shelf.deallocate_all();
        let long = || Prepared::new(None, vec![0; MOST_TEXT / 10]);
        let kept = ["a", "b", "c"].map(|name| code(shelf.prepare(name.into(), long())));
        assert_eq!(kept, ["none", "none", "53400"]);
        let keep = |at: usize| code(shelf.keep(format!("p{at}"), portal()));
        assert!((0..MOST_PORTALS).all(|at| keep(at) == "none"));
        assert_eq!(keep(MOST_PORTALS), "53400");
    }

    #[test]
    fn there_is_room_for_so_much_text() {
        let shelf = Shelf::default();
        let sql = format!("SELECT '{}'", "x".repeat(1_000_000));
        let prepare = |name: String| {
            let statement = split(&sql).unwrap().remove(0).unwrap();
            code(shelf.prepare(name, Prepared::new(Some(statement), Vec::new())))
        };
        assert!((0..16).all(|at| prepare(format!("s{at}")) == "none"));
        assert_eq!(prepare("s16".into()), "53400");
        shelf.forget("s0");
        assert_eq!(prepare("s16".into()), "none");
    }

    #[test]
    fn what_was_promised_is_what_was_told() {
        let prepared = Prepared::new(None, Vec::new());
        assert!(prepared.promised().is_none());
        let told = text_schema(&["a", "b"]);
        prepared.promise(&told);
        // The hub finds something else for another purpose; the client has not heard of it.
        let terms = Terms { purpose: Some("audit".into()), wishes: Wishes::default() };
        let found = Shape { parameters: Vec::new(), schema: Some(text_schema(&["a"])) };
        *lock(&prepared.shape) = Some((terms, Arc::new(found)));
        assert_eq!(prepared.promised(), Some(told));
    }

    #[test]
    fn parameters_that_are_cast_to_arrays_of_oids_are_known() {
        assert_eq!(arrays_of_oids("WHERE a = any($12::oid[]) OR b = ANY($3::OID[]) OR c = ANY($3::oid[])"), [3, 12]);
        assert!(arrays_of_oids("'é'::oid[], $::oid[], $1::oid, 1::oid[]").is_empty());
    }

    #[test]
    fn types_named_by_the_client_count_as_parameters() {
        let prepared = Prepared::new(None, vec![Type::INT4.oid(), 0, Type::UNKNOWN.oid()]);
        assert_eq!(prepared.count(), 3);
        assert_eq!([prepared.named(0), prepared.named(1), prepared.named(2)], [Some(Type::INT4), None, None]);
    }
}

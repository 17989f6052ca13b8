//! Cursors of SQL: a question is asked once, when its cursor is declared, and what was let out then is read in parts.

use std::collections::BTreeMap;

use arrow::datatypes::SchemaRef;
use pgwire::error::{PgWireError, PgWireResult};

use super::{
    encode::Rows,
    error::error,
    statements::{Words, fault},
};
use crate::error::Result;

/// How many cursors a session may have.
const MOST: usize = 16;

/// How many bytes of rows they may hold together.
const MOST_BYTES: usize = 256 << 20;

/// `DECLARE`: opens a cursor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Declare {
    /// Its name.
    pub(super) name: String,
    /// The query.
    pub(super) sql: String,
    /// How long it lives.
    pub(super) life: Life,
    way: Way,
}

/// How long a cursor lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Life {
    /// To the end of the transaction.
    Transaction,
    /// To the end of the session (`WITH HOLD`).
    Session,
}

/// How a transaction ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// As it was meant to.
    Committed,
    /// As if it had never been.
    RolledBack,
}

/// Which way a cursor can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Forward,
    Both,
}

impl Declare {
    /// Reads what comes after `DECLARE`.
    ///
    /// # Errors
    /// 42601 where it cannot be read, 0A000 for `BINARY`.
    pub(super) fn read(words: &mut Words<'_>) -> PgWireResult<Self> {
        let wrong = || fault("42601", "write DECLARE name [NO SCROLL] CURSOR [WITH HOLD] FOR SELECT …");
        let name = words.name().ok_or_else(wrong)?;
        let mut way = Way::Both;
        loop {
            if words.word("BINARY") {
                return Err(fault("0A000", "cursors are not binary by name; ask for binary results in the protocol"));
            } else if words.words(&["NO", "SCROLL"]) {
                way = Way::Forward;
            } else if !(words.word("SCROLL") || words.word("INSENSITIVE") || words.word("ASENSITIVE")) {
                break;
            }
        }
        if !words.word("CURSOR") {
            return Err(wrong());
        }
        let life = match words.words(&["WITH", "HOLD"]) {
            true => Life::Session,
            false => {
                words.words(&["WITHOUT", "HOLD"]);
                Life::Transaction
            }
        };
        if !words.word("FOR") {
            return Err(wrong());
        }
        let sql = words.rest().ok_or_else(wrong)?.to_owned();
        Ok(Self { name, sql, life, way })
    }
}

/// `FETCH` and `MOVE`: reads a cursor, or goes on in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fetch {
    /// The cursor's name.
    pub(super) name: String,
    /// Whether rows are wanted.
    pub(super) wanted: Wanted,
    step: Step,
}

/// Whether the rows that a cursor passes are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    /// They are (`FETCH`).
    Rows,
    /// Only their number is (`MOVE`).
    Count,
}

/// Where a cursor goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// So many rows on.
    Forward(usize),
    /// So many rows back.
    Backward(usize),
    /// To that row, from the end where it is negative.
    Absolute(i64),
    /// So many rows on, of which only the last is read.
    Relative(i64),
}

impl Fetch {
    /// Reads what comes after `FETCH` or `MOVE`.
    ///
    /// # Errors
    /// 42601 where it cannot be read.
    pub(super) fn read(words: &mut Words<'_>, wanted: Wanted) -> PgWireResult<Self> {
        let wrong = || fault("42601", "write FETCH [FORWARD] [n | ALL] FROM cursor");
        let step = if words.word("NEXT") {
            Step::Forward(1)
        } else if words.word("PRIOR") {
            Step::Backward(1)
        } else if words.word("FIRST") {
            Step::Absolute(1)
        } else if words.word("LAST") {
            Step::Absolute(-1)
        } else if words.word("ABSOLUTE") {
            Step::Absolute(words.number().ok_or_else(wrong)?)
        } else if words.word("RELATIVE") {
            Step::Relative(words.number().ok_or_else(wrong)?)
        } else if words.word("ALL") {
            Step::Forward(usize::MAX)
        } else if words.word("BACKWARD") {
            match Self::many(words) {
                Step::Forward(many) => Step::Backward(many),
                Step::Backward(many) => Step::Forward(many),
                other => other,
            }
        } else {
            words.word("FORWARD");
            Self::many(words)
        };
        let _ = words.word("FROM") || words.word("IN");
        let name = words.name().ok_or_else(wrong)?;
        match words.is_done() {
            true => Ok(Self { name, wanted, step }),
            false => Err(wrong()),
        }
    }

    /// How many, one where nothing is said; backward where the number is negative.
    fn many(words: &mut Words<'_>) -> Step {
        if words.word("ALL") {
            return Step::Forward(usize::MAX);
        }
        let number = words.number().unwrap_or(1);
        let many = usize::try_from(number.unsigned_abs()).unwrap_or(usize::MAX);
        if number < 0 { Step::Backward(many) } else { Step::Forward(many) }
    }
}

/// Rows that are read in parts.
pub(super) struct Cursor {
    rows: Rows,
    /// The question.
    sql: String,
    life: Life,
    way: Way,
    /// Whether the transaction that it was opened in has been committed.
    committed: bool,
    /// The row it stands on, counted from 1: 0 before the first, one more than there are after the last.
    at: usize,
}

impl Cursor {
    /// The answer to that question, which a portal of the protocol reads: forward, up to the end of the transaction.
    pub(super) fn of_portal(sql: &str, rows: Rows) -> Self {
        Self { rows, sql: sql.to_owned(), life: Life::Transaction, way: Way::Forward, committed: false, at: 0 }
    }

    /// The next rows, at most so many.
    pub(super) fn next(&mut self, most: usize) -> Rows {
        let (count, from) = (self.rows.count(), self.at.min(self.rows.count()));
        self.at = self.at.saturating_add(most).min(count + 1);
        self.rows.range(from, self.at.min(count) - from)
    }

    /// Goes where a statement says, and gives the rows that it read.
    ///
    /// # Errors
    /// 55000 where it cannot go that way; else only a fault of the hub.
    pub(super) fn fetch(&mut self, fetch: &Fetch) -> PgWireResult<Rows> {
        let back = match fetch.step {
            Step::Forward(_) | Step::Relative(0..) => false,
            Step::Backward(rows) => rows > 0,
            Step::Relative(..0) => true,
            Step::Absolute(row) => row < 0 || usize::try_from(row).is_ok_and(|row| row <= self.at),
        };
        match back && self.way == Way::Forward {
            true => Err(fault("55000", "cursor can only scan forward")),
            false => self.step(fetch.step).map_err(|fault| error(&fault)),
        }
    }

    /// Lets go of rows that nobody can read any more. It stands after the last row.
    pub(super) fn empty(&mut self) {
        self.rows = self.rows.range(0, 0);
        self.at = 1;
    }

    /// Names and types of its columns.
    pub(super) fn schema(&self) -> &SchemaRef {
        self.rows.schema()
    }

    /// How many bytes of rows it holds.
    pub(super) fn bytes(&self) -> usize {
        self.rows.bytes()
    }

    /// Goes on, and gives the rows that it read.
    ///
    /// # Errors
    /// Only a fault of the hub.
    fn step(&mut self, step: Step) -> Result<Rows> {
        let count = self.rows.count();
        Ok(match step {
            Step::Forward(0) | Step::Backward(0) | Step::Relative(0) => {
                let stands = usize::from((1..=count).contains(&self.at));
                self.rows.range(self.at.saturating_sub(1), stands)
            }
            Step::Forward(many) => self.next(many),
            Step::Backward(many) => {
                let to = self.at.saturating_sub(1);
                self.at = self.at.saturating_sub(many);
                let from = self.at.saturating_sub(1);
                self.rows.range(from, to - from.min(to)).reversed()?
            }
            Step::Absolute(row) if row < 0 => self.stand(i128::try_from(count).unwrap_or(0) + 1 + i128::from(row)),
            Step::Absolute(row) => self.stand(row.into()),
            Step::Relative(rows) => self.stand(i128::try_from(self.at).unwrap_or(0) + i128::from(rows)),
        })
    }

    fn stand(&mut self, row: i128) -> Rows {
        let count = self.rows.count();
        self.at = usize::try_from(row.max(0)).unwrap_or(usize::MAX).min(count + 1);
        let stands = usize::from((1..=count).contains(&self.at));
        self.rows.range(self.at.saturating_sub(1), stands)
    }
}

/// An open cursor or portal, as it is told of.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Listed {
    /// Its name.
    pub(super) name: String,
    /// Its question.
    pub(super) sql: String,
    /// Whether it outlives its transaction.
    pub(super) is_held: bool,
    /// Whether it is read backward, too.
    pub(super) goes_back: bool,
}

/// The cursors of one session.
#[derive(Default)]
pub(super) struct Cursors {
    open: BTreeMap<String, Cursor>,
}

impl Cursors {
    /// Refuses a cursor that there is no room for, before its question is asked.
    ///
    /// # Errors
    /// 42P03 where there is one of that name, 53400 where there are too many.
    pub(super) fn admit(&self, declare: &Declare) -> PgWireResult<()> {
        if self.open.contains_key(&declare.name) {
            return Err(fault("42P03", format!("cursor \"{}\" already exists", declare.name)));
        }
        match self.open.len() < MOST {
            true => Ok(()),
            false => Err(fault("53400", format!("this session has {MOST} cursors; close one"))),
        }
    }

    /// Opens a cursor on an answer.
    ///
    /// # Errors
    /// As [`Cursors::admit`], and 53400 where all of them together would hold too much.
    pub(super) fn open(&mut self, declare: &Declare, rows: Rows) -> PgWireResult<()> {
        self.admit(declare)?;
        let held = self.open.values().map(|cursor| cursor.rows.bytes()).fold(0, usize::saturating_add);
        if held.saturating_add(rows.bytes()) > MOST_BYTES {
            let most = MOST_BYTES >> 20;
            return Err(fault("53400", format!("the cursors of this session hold more than {most} MiB; close one")));
        }
        let (sql, life, way) = (declare.sql.clone(), declare.life, declare.way);
        let cursor = Cursor { rows, sql, life, way, committed: false, at: 0 };
        self.open.insert(declare.name.clone(), cursor);
        Ok(())
    }

    /// Reads a cursor.
    ///
    /// # Errors
    /// 34000 where there is none of that name, 55000 where it cannot go that way.
    pub(super) fn fetch(&mut self, fetch: &Fetch) -> PgWireResult<Rows> {
        self.open.get_mut(&fetch.name).ok_or_else(|| unknown(&fetch.name))?.fetch(fetch)
    }

    /// The next rows of a cursor, at most so many.
    ///
    /// # Errors
    /// 34000 where there is none of that name.
    pub(super) fn next(&mut self, name: &str, most: usize) -> PgWireResult<Rows> {
        self.open.get_mut(name).map(|cursor| cursor.next(most)).ok_or_else(|| unknown(name))
    }

    /// Whether there is one of that name.
    pub(super) fn has(&self, name: &str) -> bool {
        self.open.contains_key(name)
    }

    /// What is open, as `pg_cursors` shows it.
    pub(super) fn listed(&self) -> impl Iterator<Item = Listed> {
        self.open.iter().map(|(name, cursor)| Listed {
            name: name.clone(),
            sql: cursor.sql.clone(),
            is_held: cursor.life == Life::Session,
            goes_back: cursor.way == Way::Both,
        })
    }

    /// Names and types of the columns of a cursor.
    ///
    /// # Errors
    /// 34000 where there is none of that name.
    pub(super) fn schema(&self, name: &str) -> PgWireResult<SchemaRef> {
        self.open.get(name).map(|cursor| SchemaRef::clone(cursor.rows.schema())).ok_or_else(|| unknown(name))
    }

    /// Closes a cursor; whether there was one of that name.
    pub(super) fn close(&mut self, name: &str) -> bool {
        self.open.remove(name).is_some()
    }

    /// Closes all of them.
    pub(super) fn close_all(&mut self) {
        self.open.clear();
    }

    /// Closes those that end with their transaction: all that are not held and, where it is rolled back, those too that
    /// were opened in it.
    pub(super) fn end(&mut self, end: End) {
        let lasts = |cursor: &Cursor| cursor.life == Life::Session && (cursor.committed || end == End::Committed);
        self.open.retain(|_, cursor| lasts(cursor));
        for cursor in self.open.values_mut() {
            cursor.committed = true;
        }
    }
}

/// There is no cursor and no portal of that name.
pub(super) fn unknown(name: &str) -> PgWireError {
    fault("34000", format!("cursor \"{name}\" does not exist"))
}

#[cfg(test)]
#[expect(clippy::panic, reason = "a test that fails should say so at once")]
mod tests {
    use super::*;
    use crate::front::postgres::statements::{Kind, split};

    fn kind(sql: &str) -> Kind {
        split(sql).unwrap().remove(0).unwrap().kind
    }

    fn declare(sql: &str) -> Declare {
        let Kind::Declare(declare) = kind(sql) else { panic!("{sql}") };
        declare
    }

    fn fetch(sql: &str) -> Fetch {
        let Kind::Fetch(fetch) = kind(sql) else { panic!("{sql}") };
        fetch
    }

    fn code<T>(result: PgWireResult<T>) -> String {
        match result {
            Err(PgWireError::UserError(info)) => info.code,
            _ => "none".into(),
        }
    }

    /// A cursor over five rows, and what statements read of it, one after the other.
    fn read(declared: &str, statements: &[&str]) -> Vec<String> {
        let mut cursors = Cursors::default();
        let rows: Vec<_> = (1..=5).map(|row| vec![Some(row.to_string())]).collect();
        cursors.open(&declare(declared), Rows::texts(&["n"], &rows).unwrap()).unwrap();
        let read = statements.iter().map(|sql| match cursors.fetch(&fetch(sql)) {
            Ok(rows) => {
                let text = |(batch, row): (&arrow::array::RecordBatch, usize)| {
                    arrow::array::AsArray::as_string::<i32>(batch.column(0)).value(row).to_owned()
                };
                rows.iter().map(text).collect::<Vec<_>>().join(" ")
            }
            error => code(error),
        });
        read.collect()
    }

    #[test]
    fn declarations_are_read() {
        let short = declare("declare C cursor for select 1");
        assert_eq!((short.name.as_str(), short.sql.as_str()), ("c", "select 1"));
        assert_eq!((short.life, short.way), (Life::Transaction, Way::Both));
        let long = declare("DECLARE \"my C\" INSENSITIVE NO SCROLL CURSOR WITH HOLD FOR (SELECT ';')");
        assert_eq!((long.name.as_str(), long.sql.as_str()), ("my C", "(SELECT ';')"));
        assert_eq!((long.life, long.way), (Life::Session, Way::Forward));
        for (sql, wanted) in [
            ("DECLARE c BINARY CURSOR FOR SELECT 1", "0A000"),
            ("DECLARE c CURSOR SELECT 1", "42601"),
            ("DECLARE CURSOR FOR SELECT 1", "42601"),
            ("FETCH 3", "42601"),
            ("FETCH ABSOLUTE FROM c", "42601"),
            ("FETCH 3 FROM c WHERE", "42601"),
        ] {
            assert_eq!(code(split(sql).unwrap().remove(0)), wanted, "{sql}");
        }
    }

    #[test]
    fn directions_are_those_of_postgres() {
        assert_eq!(fetch("FETCH c"), fetch("fetch next from C"));
        assert_eq!(fetch("FETCH 3 IN c").step, Step::Forward(3));
        assert_eq!(fetch("FETCH -3 c").step, Step::Backward(3));
        assert_eq!(fetch("FETCH FORWARD ALL FROM c").step, Step::Forward(usize::MAX));
        assert_eq!(fetch("FETCH BACKWARD -2 FROM c").step, Step::Forward(2));
        assert_eq!(fetch("MOVE 3 FROM c").wanted, Wanted::Count);
    }

    #[test]
    fn a_cursor_is_read_in_parts() {
        let forward = ["FETCH 2 FROM c", "FETCH c", "FETCH 0 FROM c", "FETCH ALL FROM c", "FETCH c", "FETCH 0 FROM c"];
        assert_eq!(read("DECLARE c CURSOR FOR SELECT 1", &forward), ["1 2", "3", "3", "4 5", "", ""]);
        let both =
            ["MOVE ALL IN c", "FETCH BACKWARD 2 c", "FETCH c", "FETCH PRIOR c", "FETCH BACKWARD ALL c", "FETCH c"];
        assert_eq!(read("DECLARE c CURSOR FOR SELECT 1", &both), ["1 2 3 4 5", "5 4", "5", "4", "3 2 1", "1"]);
        let places =
            ["FETCH LAST c", "FETCH FIRST c", "FETCH ABSOLUTE -2 c", "FETCH RELATIVE -3 c", "FETCH RELATIVE 9 c"];
        assert_eq!(read("DECLARE c CURSOR FOR SELECT 1", &places), ["5", "1", "4", "1", ""]);
        let ends = ["FETCH PRIOR c", "FETCH ABSOLUTE 0 c", "FETCH ABSOLUTE 9 c", "FETCH -1 c"];
        assert_eq!(read("DECLARE c CURSOR FOR SELECT 1", &ends), ["", "", "", "5"]);
        let one_way = ["FETCH 3 c", "FETCH PRIOR c", "FETCH ABSOLUTE 2 c", "FETCH ABSOLUTE 4 c"];
        assert_eq!(read("DECLARE c NO SCROLL CURSOR FOR SELECT 1", &one_way), ["1 2 3", "55000", "55000", "4"]);
    }

    #[test]
    fn a_portal_is_read_forward_and_then_let_go() {
        let rows: Vec<_> = (1..=5).map(|row| vec![Some(row.to_string())]).collect();
        let mut cursor = Cursor::of_portal("SELECT 1", Rows::texts(&["n"], &rows).unwrap());
        assert_eq!(cursor.next(2).count(), 2);
        assert_eq!(cursor.fetch(&fetch("MOVE 2 FROM p")).unwrap().count(), 2);
        assert_eq!(code(cursor.fetch(&fetch("FETCH PRIOR FROM p"))), "55000");
        assert_eq!(cursor.next(usize::MAX).count(), 1);
        cursor.empty();
        assert_eq!((cursor.next(usize::MAX).count(), cursor.schema().fields().len()), (0, 1));
        assert_eq!(code(cursor.fetch(&fetch("FETCH PRIOR FROM p"))), "55000");
    }

    #[test]
    fn cursors_end_with_their_transaction_unless_held() {
        let mut cursors = Cursors::default();
        let rows = || Rows::texts(&["n"], &[]).unwrap();
        let (kept, lost) =
            (declare("DECLARE a CURSOR WITH HOLD FOR SELECT 1"), declare("DECLARE b CURSOR FOR SELECT 1"));
        cursors.open(&kept, rows()).unwrap();
        cursors.open(&lost, rows()).unwrap();
        assert_eq!(code(cursors.open(&kept, rows())), "42P03");
        cursors.end(End::Committed);
        assert!(cursors.schema("a").is_ok());
        assert_eq!(code(cursors.schema("b")), "34000");
        // What is rolled back takes along those that were opened in it, and no others.
        let undone = declare("DECLARE c CURSOR WITH HOLD FOR SELECT 1");
        cursors.open(&undone, rows()).unwrap();
        cursors.end(End::RolledBack);
        assert!(cursors.schema("a").is_ok());
        assert_eq!(code(cursors.schema("c")), "34000");
        assert!(cursors.close("a"));
        assert!(!cursors.close("a"));
    }

    #[test]
    fn there_is_room_for_a_few_cursors() {
        let mut cursors = Cursors::default();
        let open = |cursors: &mut Cursors, at: usize| {
            let declared = declare(&format!("DECLARE c{at} CURSOR FOR SELECT 1"));
            code(cursors.open(&declared, Rows::texts(&["n"], &[]).unwrap()))
        };
        let opened: Vec<_> = (0..=MOST).map(|at| open(&mut cursors, at)).collect();
        assert_eq!((opened[MOST - 1].as_str(), opened[MOST].as_str()), ("none", "53400"));
        cursors.close_all();
        assert_eq!(open(&mut cursors, 0), "none");
    }
}

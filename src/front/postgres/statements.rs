//! The statements of a text: where each begins and ends, and which of them this door answers itself. Words only; what
//! a statement may see is the hub's affair.

use std::{ops::Range, sync::OnceLock};

use datafusion::sql::sqlparser::{
    dialect::PostgreSqlDialect,
    tokenizer::{Location, Token, Tokenizer},
};
use pgwire::error::{ErrorInfo, PgWireError, PgWireResult};

use super::{
    copy::Copy,
    cursor::{Declare, Fetch, Wanted},
    prepare::{Execute, Prepare},
};
use crate::query;

/// The longest text that is looked at, in bytes. What the hub plans is shorter.
const LONGEST: usize = 1 << 20;

/// Most parameters of a statement: the protocol counts them in 16 bits.
const MOST_PARAMETERS: usize = u16::MAX as usize;

/// First words of statements that answer with no rows, whoever carries them out.
const WITHOUT_ROWS: [&str; 21] = [
    "ABORT",
    "BEGIN",
    "CLOSE",
    "COMMIT",
    "COPY",
    "DEALLOCATE",
    "DECLARE",
    "DISCARD",
    "END",
    "LISTEN",
    "LOCK",
    "MOVE",
    "NOTIFY",
    "PREPARE",
    "RELEASE",
    "RESET",
    "ROLLBACK",
    "SAVEPOINT",
    "SET",
    "START",
    "UNLISTEN",
];

/// First words of statements that end a transaction, failed or not.
const ENDING: [&str; 4] = ["ABORT", "COMMIT", "END", "ROLLBACK"];

/// One statement of a text.
#[derive(Debug, Clone)]
pub(super) struct Statement {
    /// Its text, without the semicolon.
    pub(super) sql: String,
    /// What is done with it.
    pub(super) kind: Kind,
    /// How many parameters it has.
    pub(super) parameters: usize,
    /// Its first word, in capitals.
    word: String,
    /// Whether it is about the catalogue alone, once somebody asked.
    looks_up: OnceLock<bool>,
}

/// What this door does with a statement.
#[derive(Debug, Clone)]
pub(super) enum Kind {
    /// It opens a cursor.
    Declare(Declare),
    /// It reads or moves a cursor.
    Fetch(Fetch),
    /// It answers as a file.
    Copy(Copy),
    /// It keeps a query for later.
    Prepare(Prepare),
    /// It carries out what was kept.
    Execute(Execute),
    /// It is the session's, or a question to the hub.
    Other,
}

impl Statement {
    /// The statement whose pieces these are.
    ///
    /// # Errors
    /// What is wrong with one that this door answers itself, and 42P02 for a parameter that no client can bind.
    fn of(sql: &str, pieces: &[Piece]) -> PgWireResult<Self> {
        let text = match pieces {
            [first, .., last] => &sql[first.at.start..last.at.end],
            [only] => &sql[only.at.clone()],
            [] => "",
        };
        let mut words = Words::new(sql, pieces);
        let word = words.first().to_ascii_uppercase();
        let kind = match word.as_str() {
            "DECLARE" => Kind::Declare(Declare::read(&mut words)?),
            "FETCH" => Kind::Fetch(Fetch::read(&mut words, Wanted::Rows)?),
            "MOVE" => Kind::Fetch(Fetch::read(&mut words, Wanted::Count)?),
            "COPY" => Kind::Copy(Copy::read(&mut words)?),
            "PREPARE" => Kind::Prepare(Prepare::read(&mut words)?),
            "EXECUTE" => Kind::Execute(Execute::read(&mut words)?),
            _ => Kind::Other,
        };
        let numbers = pieces.iter().filter_map(|piece| match &piece.token {
            Token::Placeholder(name) => name.strip_prefix('$')?.parse::<usize>().ok(),
            _ => None,
        });
        // Those of a query that is only kept are given when it is carried out.
        let parameters = match kind {
            Kind::Prepare(_) => 0,
            _ => numbers.max().unwrap_or(0),
        };
        // What is kept of each of them is kept up to the highest number.
        if parameters > MOST_PARAMETERS {
            let why = format!("there is no parameter ${parameters}; they go up to ${MOST_PARAMETERS}");
            return Err(fault("42P02", why));
        }
        Ok(Self { sql: text.to_owned(), kind, parameters, word, looks_up: OnceLock::new() })
    }

    /// The text that goes to the hub: the statement, or the query inside it.
    pub(super) fn question(&self) -> &str {
        match &self.kind {
            Kind::Declare(declare) => &declare.sql,
            Kind::Copy(copy) => &copy.sql,
            Kind::Fetch(_) | Kind::Prepare(_) | Kind::Execute(_) | Kind::Other => &self.sql,
        }
    }

    /// Whether its question is about the catalogue alone. It is read for that once.
    pub(super) fn looks_up(&self) -> bool {
        *self.looks_up.get_or_init(|| query::is_look_up(self.question()))
    }

    /// Whether its first word says that it answers with no rows.
    pub(super) fn has_no_rows(&self) -> bool {
        WITHOUT_ROWS.contains(&self.word.as_str())
    }

    /// Whether it ends a transaction.
    pub(super) fn ends_transaction(&self) -> bool {
        ENDING.contains(&self.word.as_str())
    }

    /// What its answer is called, and whether the number of rows belongs to that.
    pub(super) fn tag(&self) -> &'static str {
        match self.word.as_str() {
            "EXPLAIN" => "EXPLAIN",
            _ => "SELECT",
        }
    }
}

/// The statements of a text, in order; what is wrong with one is said when its turn comes.
///
/// # Errors
/// 54000 where the text is too long to look at.
pub(super) fn split(sql: &str) -> PgWireResult<Vec<PgWireResult<Statement>>> {
    if sql.len() > LONGEST {
        return Err(fault("54000", format!("the text is longer than {} KiB", LONGEST >> 10)));
    }
    if let Some(at) = one_select(sql) {
        let first = Piece { token: Token::make_keyword("SELECT"), at };
        return Ok(vec![Statement::of(sql, &[first])]);
    }
    // What cannot be cut into words goes to the hub as it is, which says what is wrong with it.
    let Some(pieces) = pieces(sql) else {
        let (sql, word, looks_up) = (sql.to_owned(), String::new(), OnceLock::new());
        return Ok(vec![Ok(Statement { sql, kind: Kind::Other, parameters: 0, word, looks_up })]);
    };
    let statements = pieces.split(|piece| piece.token == Token::SemiColon);
    Ok(statements.filter(|pieces| !pieces.is_empty()).map(|pieces| Statement::of(sql, pieces)).collect())
}

/// An error of this door's own.
pub(super) fn fault(code: &str, message: impl Into<String>) -> PgWireError {
    PgWireError::UserError(Box::new(ErrorInfo::new("ERROR".into(), code.into(), message.into())))
}

/// An error of this door's own, with what to do about it.
pub(super) fn fault_with_hint(code: &str, message: impl Into<String>, hint: impl Into<String>) -> PgWireError {
    let mut info = ErrorInfo::new("ERROR".into(), code.into(), message.into());
    info.hint = Some(hint.into());
    PgWireError::UserError(Box::new(info))
}

/// A word, sign or literal of a text, and where it stands.
#[derive(Debug)]
pub(super) struct Piece {
    token: Token,
    at: Range<usize>,
}

/// A text cut up, without blanks and comments; nothing where a quote or comment does not end.
fn pieces(sql: &str) -> Option<Vec<Piece>> {
    let tokens = Tokenizer::new(&PostgreSqlDialect {}, sql).tokenize_with_location().ok()?;
    let mut place = Place { sql, line: 1, column: 1, at: 0 };
    let mut pieces = Vec::with_capacity(tokens.len());
    for token in tokens {
        let at = place.of(token.span.start)..place.of(token.span.end);
        if !matches!(token.token, Token::Whitespace(_) | Token::EOF) {
            pieces.push(Piece { token: token.token, at });
        }
    }
    Some(pieces)
}

/// Where the only statement of a text stands, if that is plainly a `SELECT` without parameters. Most are, and all of them
/// go to the hub, which reads them word by word itself.
fn one_select(sql: &str) -> Option<Range<usize>> {
    let text = sql.trim_ascii_end();
    let text = text.strip_suffix(';').unwrap_or(text).trim_ascii_end();
    let begin = sql.len() - sql.trim_ascii_start().len();
    let (verb, rest) = text.get(begin..)?.split_at_checked("SELECT".len())?;
    let is_select = verb.eq_ignore_ascii_case("SELECT") && rest.starts_with([' ', '\n', '\r', '\t']);
    // After a comment, a quoted semicolon or a parameter it takes the tokenizer to say.
    let is_plain = !rest.contains([';', '$']) && !rest.contains("--") && !rest.contains("/*");
    (is_select && is_plain).then_some(begin..text.len())
}

/// Turns lines and columns, which only grow, into bytes.
struct Place<'a> {
    sql: &'a str,
    line: u64,
    column: u64,
    at: usize,
}

impl Place<'_> {
    fn of(&mut self, location: Location) -> usize {
        for letter in self.sql[self.at..].chars() {
            if (self.line, self.column) >= (location.line, location.column) {
                break;
            }
            self.at += letter.len_utf8();
            (self.line, self.column) = if letter == '\n' { (self.line + 1, 1) } else { (self.line, self.column + 1) };
        }
        self.at
    }
}

/// Reads the pieces of one statement from left to right.
pub(super) struct Words<'a> {
    sql: &'a str,
    pieces: &'a [Piece],
    at: usize,
}

impl<'a> Words<'a> {
    fn new(sql: &'a str, pieces: &'a [Piece]) -> Self {
        Self { sql, pieces, at: 0 }
    }

    /// The first word, which is passed; nothing where it is none.
    fn first(&mut self) -> &'a str {
        match self.pieces.first() {
            Some(Piece { token: Token::Word(word), .. }) if word.quote_style.is_none() => {
                self.at = 1;
                &word.value
            }
            _ => "",
        }
    }

    fn peek(&self) -> Option<&'a Token> {
        self.pieces.get(self.at).map(|piece| &piece.token)
    }

    /// Whether nothing is left.
    pub(super) fn is_done(&self) -> bool {
        self.at >= self.pieces.len()
    }

    /// Passes a word, where it comes next.
    pub(super) fn word(&mut self, word: &str) -> bool {
        let comes = matches!(self.peek(), Some(Token::Word(next))
            if next.quote_style.is_none() && next.value.eq_ignore_ascii_case(word));
        self.at += usize::from(comes);
        comes
    }

    /// Passes words that belong together, where they come next.
    pub(super) fn words(&mut self, words: &[&str]) -> bool {
        let before = self.at;
        let come = words.iter().all(|word| self.word(word));
        if !come {
            self.at = before;
        }
        come
    }

    /// Passes a sign, where it comes next.
    pub(super) fn sign(&mut self, sign: &Token) -> bool {
        let comes = self.peek() == Some(sign);
        self.at += usize::from(comes);
        comes
    }

    /// Passes a name, folded to small letters unless it is quoted.
    pub(super) fn name(&mut self) -> Option<String> {
        let name = match self.peek()? {
            Token::Word(word) if word.quote_style.is_none() => word.value.to_lowercase(),
            Token::Word(word) => word.value.clone(),
            _ => return None,
        };
        self.at += 1;
        Some(name)
    }

    /// Passes a text in quotes.
    pub(super) fn text(&mut self) -> Option<String> {
        let text = match self.peek()? {
            Token::SingleQuotedString(text) | Token::EscapedStringLiteral(text) => text.clone(),
            _ => return None,
        };
        self.at += 1;
        Some(text)
    }

    /// Passes a whole number, with its sign.
    pub(super) fn number(&mut self) -> Option<i64> {
        let before = self.at;
        let sign = match (self.sign(&Token::Minus), self.sign(&Token::Plus)) {
            (true, _) => -1,
            _ => 1,
        };
        let number = match self.peek() {
            Some(Token::Number(digits, _)) => digits.parse::<i64>().ok(),
            _ => None,
        };
        self.at = if number.is_some() { self.at + 1 } else { before };
        number.map(|number| sign * number)
    }

    /// Passes what stands in parentheses, where they come next, and gives its text.
    pub(super) fn parenthesis(&mut self) -> Option<&'a str> {
        let from = self.pieces.get(self.at).filter(|piece| piece.token == Token::LParen)?.at.end;
        let mut depth = 0_usize;
        for (at, piece) in self.pieces.iter().enumerate().skip(self.at) {
            match piece.token {
                Token::LParen => depth += 1,
                Token::RParen => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                self.at = at + 1;
                return self.sql.get(from..piece.at.start);
            }
        }
        None
    }

    /// Passes a name that may have several parts, and gives it as it was written.
    pub(super) fn qualified(&mut self) -> Option<&'a str> {
        let from = self.pieces.get(self.at)?.at.start;
        self.name()?;
        while self.sign(&Token::Period) {
            self.name()?;
        }
        self.sql.get(from..self.pieces.get(self.at.checked_sub(1)?)?.at.end)
    }

    /// Passes a literal, with a type before or after it where there is one, and gives its text; none for NULL.
    pub(super) fn literal(&mut self) -> Option<Option<String>> {
        let before = self.at;
        let read = self.bare_literal();
        while read.is_some() && self.sign(&Token::DoubleColon) {
            if self.kind().is_none() {
                self.at = before;
                return None;
            }
        }
        read
    }

    fn bare_literal(&mut self) -> Option<Option<String>> {
        if self.word("NULL") {
            return Some(None);
        }
        for truth in ["true", "false"] {
            if self.word(truth) {
                return Some(Some(truth.to_owned()));
            }
        }
        if let Some(text) = self.text() {
            return Some(Some(text));
        }
        let before = self.at;
        // `DATE '2026-01-05'`
        if self.kind().is_some()
            && let Some(text) = self.text()
        {
            return Some(Some(text));
        }
        self.at = before;
        let sign = if self.sign(&Token::Minus) { "-" } else { "" };
        if sign.is_empty() {
            self.sign(&Token::Plus);
        }
        match self.peek() {
            Some(Token::Number(digits, _)) => {
                self.at += 1;
                Some(Some(format!("{sign}{digits}")))
            }
            _ => {
                self.at = before;
                None
            }
        }
    }

    /// Passes the name of a type, with its length, and gives it without.
    pub(super) fn kind(&mut self) -> Option<String> {
        let mut name = self.name()?;
        if name == "pg_catalog" && self.sign(&Token::Period) {
            name = self.name()?;
        }
        for more in ["varying", "precision"] {
            if self.word(more) {
                name = format!("{name} {more}");
            }
        }
        self.parenthesis();
        for (words, more) in [(["WITH", "TIME", "ZONE"], "with"), (["WITHOUT", "TIME", "ZONE"], "without")] {
            if self.words(&words) {
                name = format!("{name} {more} time zone");
            }
        }
        if self.sign(&Token::LBracket) {
            self.sign(&Token::RBracket).then_some(())?;
            name.push_str("[]");
        }
        Some(name)
    }

    /// Passes all that is left, which is a statement inside this one.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn statement(&mut self) -> PgWireResult<Statement> {
        let pieces = self.pieces.get(self.at..).unwrap_or_default();
        self.at = self.pieces.len();
        Statement::of(self.sql, pieces)
    }

    /// Passes all that is left, and gives its text.
    pub(super) fn rest(&mut self) -> Option<&'a str> {
        let from = self.pieces.get(self.at)?.at.start;
        self.at = self.pieces.len();
        self.sql.get(from..self.pieces.last()?.at.end)
    }
}

#[cfg(test)]
#[expect(clippy::panic, reason = "a test that fails should say so at once")]
mod tests {
    use super::*;

    #[test]
    fn a_statement_is_read_for_what_it_is_about() {
        let statement = |sql: &str| split(sql).unwrap().remove(0).unwrap();
        let catalogue = statement("DECLARE c CURSOR FOR SELECT relname FROM pg_class");
        assert!(catalogue.looks_up() && catalogue.clone().looks_up());
        assert!(!statement("SELECT name FROM divisions").looks_up());
    }

    fn texts(sql: &str) -> Vec<String> {
        split(sql).unwrap().into_iter().map(|statement| statement.unwrap().sql).collect()
    }

    #[test]
    fn a_plain_select_is_the_same_whether_or_not_it_is_cut_up() {
        for sql in [
            "SELECT 1",
            " \n select day, '社区' FROM visits WHERE a = 'it''s' \t;\n",
            "SELECT\n*\nFROM \"t\" ; ",
            "Select E'a\\'b', [1], current_setting('purpose')",
        ] {
            let cut = texts_cut_up(sql);
            assert_eq!(one_select(sql).map(|at| sql[at].to_owned()).into_iter().collect::<Vec<_>>(), cut, "{sql}");
            let statement = split(sql).unwrap().remove(0).unwrap();
            assert_eq!((&statement.sql, statement.tag(), statement.parameters), (&cut[0], "SELECT", 0), "{sql}");
            assert!(matches!(statement.kind, Kind::Other) && !statement.has_no_rows(), "{sql}");
        }
        for sql in [
            "",
            ";",
            "SELECT",
            "SELECTED 1",
            "SELECT(1)",
            "SELECT 1;;",
            "SELECT 1; SELECT 2",
            "SELECT ';'",
            "SELECT $1",
            "SELECT $$;$$",
            "SELECT 1 -- one",
            "SELECT 1 /* ; */",
            "-- one\nSELECT 1",
            "FETCH 1 FROM c",
            "社区社区",
        ] {
            assert_eq!(one_select(sql), None, "{sql}");
        }
    }

    fn texts_cut_up(sql: &str) -> Vec<String> {
        let pieces = pieces(sql).unwrap();
        let statements = pieces.split(|piece| piece.token == Token::SemiColon).filter(|pieces| !pieces.is_empty());
        statements.map(|pieces| Statement::of(sql, pieces).unwrap().sql).collect()
    }

    #[test]
    fn statements_end_at_semicolons_that_stand_alone() {
        assert_eq!(texts("SELECT 1; SELECT 2 ;"), ["SELECT 1", "SELECT 2"]);
        assert_eq!(texts("  "), [""; 0]);
        assert_eq!(texts(" ; -- nothing\n ;"), [""; 0]);
        assert_eq!(texts("SELECT ';', \";\" FROM t"), ["SELECT ';', \";\" FROM t"]);
        assert_eq!(texts("SELECT 1 -- a; b\n, 2; SELECT 3"), ["SELECT 1 -- a; b\n, 2", "SELECT 3"]);
        assert_eq!(texts("SELECT 1 /* ; /* ; */ ; */; SELECT 2"), ["SELECT 1", "SELECT 2"]);
        assert_eq!(texts("SELECT $$;$$; SELECT $a$;$$;$a$"), ["SELECT $$;$$", "SELECT $a$;$$;$a$"]);
        assert_eq!(texts("SELECT E'\\';'; SELECT 'x'';'"), ["SELECT E'\\';'", "SELECT 'x'';'"]);
        assert_eq!(texts("SELECT '社区；';\nSELECT '家'"), ["SELECT '社区；'", "SELECT '家'"]);
        // What does not end is the hub's to complain about.
        assert_eq!(texts("SELECT 'a; SELECT 2"), ["SELECT 'a; SELECT 2"]);
    }

    #[test]
    fn parameters_are_counted_by_their_number() {
        let count = |sql| split(sql).unwrap().remove(0).unwrap().parameters;
        assert_eq!(count("SELECT $2, '$3', $1"), 2);
        assert_eq!(count("SELECT 1"), 0);
        assert_eq!(count("DECLARE c CURSOR FOR SELECT $1"), 1);
        assert_eq!(count("SELECT $65535"), 65_535);
        for number in ["65536", "4000000000", "18446744073709551615"] {
            let Err(PgWireError::UserError(info)) = split(&format!("SELECT ${number}")).unwrap().remove(0) else {
                panic!("${number} was taken")
            };
            assert_eq!(info.code, "42P02");
        }
    }

    #[test]
    fn first_words_say_what_comes_back() {
        let statement = |sql| split(sql).unwrap().remove(0).unwrap();
        assert!(statement("begin").has_no_rows());
        assert!(statement("/* c */ Set x = 1").has_no_rows());
        assert!(!statement("SELECT 1").has_no_rows());
        assert!(statement("rollback to a").ends_transaction());
        assert!(!statement("\"rollback\"").ends_transaction());
        assert_eq!(statement("explain SELECT 1").tag(), "EXPLAIN");
    }

    #[test]
    fn a_text_that_is_too_long_is_not_looked_at() {
        let Err(PgWireError::UserError(info)) = split(&" ".repeat(LONGEST + 1)) else { panic!("it was split") };
        assert_eq!(info.code, "54000");
    }
}

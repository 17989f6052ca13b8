//! The statements that a connection answers by itself: settings and transactions. Reads them, and carries none out.

use datafusion::sql::sqlparser::{
    dialect::PostgreSqlDialect,
    tokenizer::{Token, Tokenizer},
};

use super::error::UNSUPPORTED;
use crate::error::{Error, Result};

/// The columns of `pg_cursors`.
pub(super) const CURSOR_COLUMNS: [&str; 6] =
    ["name", "statement", "is_holdable", "is_binary", "is_scrollable", "creation_time"];

/// What Postgres calls a column that has no name.
pub(super) const UNNAMED: &str = "?column?";

/// One of those statements.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Command {
    /// `SET name TO value`; no value is its default.
    Set { name: String, value: Option<String>, reach: Reach },
    /// `RESET name`, or `RESET ALL`.
    Reset(Option<String>),
    /// `SHOW name`, or `SHOW ALL`.
    Show(Option<String>),
    /// `SELECT current_setting('name'), set_config('name', 'value', false)` and the like.
    Select(Vec<Item>),
    /// `SELECT … FROM pg_cursors`, perhaps of the one of that name.
    Cursors { columns: Vec<String>, name: Option<String> },
    /// A transaction begins.
    Begin(&'static str),
    /// It ends well; another begins where `chain` says so.
    Commit(Chain),
    /// It ends badly.
    Rollback(Chain),
    /// A point in a transaction that it can go back to.
    Savepoint(String),
    /// The point is forgotten.
    Release(String),
    /// The transaction goes back to that point.
    RollbackTo(String),
    /// `CLOSE name`, or `ALL`: a cursor is not read any further.
    Close(Option<String>),
    /// `DEALLOCATE name`, or `ALL`.
    Deallocate(Option<String>),
    /// `DISCARD ALL`.
    DiscardAll,
    /// What has nothing to do here, and succeeds: the words that it is answered with.
    Nothing(&'static str),
}

/// How long a setting lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// As long as the connection.
    Session,
    /// Until the transaction ends.
    Transaction,
}

/// Whether a transaction follows the one that ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Chain {
    /// One like it begins at once.
    Next,
    /// None does.
    End,
}

/// A column of a `SELECT` over settings, with what it is called.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Item {
    pub(super) name: String,
    pub(super) call: Call,
}

/// What a column of a `SELECT` over settings asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Call {
    /// The value of a setting.
    Current(String),
    /// The value of a setting, or NULL where there is none of that name.
    CurrentOrNull(String),
    /// A setting is set and shown.
    Set { name: String, value: Option<String>, reach: Reach },
    /// The hub has no locks to let go.
    Unlock,
}

/// Reads one statement; none where it is for somebody else.
///
/// # Errors
/// [`Error::SqlSyntax`] where it begins like one of these and goes on otherwise; refusals of what PostgreSQL has and
/// the hub does not.
pub(super) fn parse(sql: &str) -> Result<Option<Command>> {
    if !may_be_one(sql) {
        return Ok(None);
    }
    // What cannot be read here is told by whoever answers it.
    let Ok(tokens) = Tokenizer::new(&PostgreSqlDialect {}, sql).tokenize() else { return Ok(None) };
    let mut tokens: Vec<Token> =
        tokens.into_iter().filter(|token| !matches!(token, Token::Whitespace(_) | Token::EOF)).collect();
    while tokens.last() == Some(&Token::SemiColon) {
        tokens.pop();
    }
    let mut words = Words { tokens: &tokens, at: 0 };
    let Some(verb) = words.keyword() else { return Ok(None) };
    let command = match verb.as_str() {
        "set" => set(&mut words)?,
        "reset" => reset(&mut words)?,
        "show" => show(&mut words)?,
        "select" => match select(&mut words).map(Command::Select).or_else(|| cursors(&mut words)) {
            Some(command) => command,
            None => return Ok(None),
        },
        "begin" => {
            words.rest();
            Command::Begin("BEGIN")
        }
        "start" => {
            words.expect("transaction")?;
            words.rest();
            Command::Begin("START TRANSACTION")
        }
        "commit" | "end" => {
            not_prepared(&mut words)?;
            Command::Commit(chain(&mut words)?)
        }
        "abort" => Command::Rollback(chain(&mut words)?),
        "rollback" => rollback(&mut words)?,
        "savepoint" => Command::Savepoint(words.name()?),
        "release" => {
            words.takes("savepoint");
            Command::Release(words.name()?)
        }
        "close" => Command::Close(if words.takes("all") { None } else { Some(words.name()?) }),
        "deallocate" => {
            words.takes("prepare");
            Command::Deallocate(if words.takes("all") { None } else { Some(words.name()?) })
        }
        "discard" => match words.keyword().as_deref() {
            Some("all") => Command::DiscardAll,
            Some("plans") => Command::Nothing("DISCARD PLANS"),
            Some("sequences") => Command::Nothing("DISCARD SEQUENCES"),
            Some("temp" | "temporary") => Command::Nothing("DISCARD TEMP"),
            _ => return Err(wrong()),
        },
        "unlisten" => {
            words.rest();
            Command::Nothing("UNLISTEN")
        }
        "listen" | "notify" => {
            let why = "the hub sends no notifications";
            return Err(Error::refused(UNSUPPORTED, why, "ask again now and then"));
        }
        _ => return Ok(None),
    };
    match words.is_at_end() {
        true => Ok(Some(command)),
        false => Err(wrong()),
    }
}

/// Most statements are for somebody else, and need not be read twice.
fn may_be_one(sql: &str) -> bool {
    let text = sql.trim_start();
    let first: String = text.chars().take_while(char::is_ascii_alphabetic).take(16).collect();
    match first.to_ascii_lowercase().as_str() {
        "select" => {
            let text = text.to_ascii_lowercase();
            ["current_setting", "set_config", "pg_advisory_unlock_all", "pg_cursors"]
                .iter()
                .any(|name| text.contains(name))
        }
        // A comment stands before it.
        "" => true,
        "set" | "reset" | "show" | "begin" | "start" | "commit" | "end" | "abort" | "rollback" | "savepoint"
        | "release" | "close" | "deallocate" | "discard" | "unlisten" | "listen" | "notify" => true,
        _ => false,
    }
}

fn set(words: &mut Words<'_>) -> Result<Command> {
    let reach = if words.takes("local") { Reach::Transaction } else { Reach::Session };
    let says_session = reach == Reach::Session && words.takes("session");
    if words.takes("transaction") || (says_session && words.takes("characteristics")) {
        // Each answer is of one moment, and nothing is ever written: all levels are the same here.
        words.rest();
        return Ok(Command::Nothing("SET"));
    }
    if words.takes("constraints") {
        words.rest();
        return Ok(Command::Nothing("SET CONSTRAINTS"));
    }
    let other = words.takes("role")
        || (says_session && words.takes("authorization"))
        || words.takes_both("session", "authorization");
    if other {
        return match words.value()?.map(|value| value.to_ascii_lowercase()).as_deref() {
            None | Some("none") => Ok(Command::Nothing("SET")),
            Some(_) => Err(Error::refused(
                "one-caller",
                "a connection is that of the caller who opened it",
                "connect as the other caller, with a token of its",
            )),
        };
    }
    if words.takes("names") {
        return Ok(Command::Set { name: "client_encoding".into(), value: words.value()?, reach });
    }
    if words.takes("schema") {
        return Ok(Command::Set { name: "search_path".into(), value: words.value()?, reach });
    }
    if words.takes_both("time", "zone") {
        let value = words.value()?.filter(|value| !value.eq_ignore_ascii_case("local"));
        return Ok(Command::Set { name: "timezone".into(), value, reach });
    }
    let name = words.name()?;
    if !words.takes("to") {
        words.expect_token(&Token::Eq)?;
    }
    Ok(Command::Set { name, value: words.value()?, reach })
}

fn reset(words: &mut Words<'_>) -> Result<Command> {
    if words.takes("all") {
        return Ok(Command::Reset(None));
    }
    if words.takes("role") || words.takes_both("session", "authorization") {
        return Ok(Command::Nothing("RESET"));
    }
    match words.takes_both("time", "zone") {
        true => Ok(Command::Reset(Some("timezone".into()))),
        false => Ok(Command::Reset(Some(words.name()?))),
    }
}

fn show(words: &mut Words<'_>) -> Result<Command> {
    if words.takes("all") {
        return Ok(Command::Show(None));
    }
    if words.takes_both("time", "zone") {
        return Ok(Command::Show(Some("timezone".into())));
    }
    if words.takes_both("transaction", "isolation") {
        words.expect("level")?;
        return Ok(Command::Show(Some("transaction_isolation".into())));
    }
    match words.takes_both("session", "authorization") {
        true => Ok(Command::Show(Some("session_authorization".into()))),
        false => Ok(Command::Show(Some(words.name()?))),
    }
}

fn rollback(words: &mut Words<'_>) -> Result<Command> {
    not_prepared(words)?;
    let _ = words.takes("work") || words.takes("transaction");
    if words.takes("to") {
        words.takes("savepoint");
        return Ok(Command::RollbackTo(words.name()?));
    }
    Ok(Command::Rollback(chain(words)?))
}

fn not_prepared(words: &mut Words<'_>) -> Result<()> {
    match words.takes("prepared") {
        true => Err(Error::refused(UNSUPPORTED, "transactions in two phases are not offered", "COMMIT")),
        false => Ok(()),
    }
}

fn chain(words: &mut Words<'_>) -> Result<Chain> {
    let _ = words.takes("work") || words.takes("transaction");
    if !words.takes("and") {
        return Ok(Chain::End);
    }
    let chain = if words.takes("no") { Chain::End } else { Chain::Next };
    words.expect("chain")?;
    Ok(chain)
}

/// The columns of a `SELECT` over settings alone; none where it asks for anything else.
fn select(words: &mut Words<'_>) -> Option<Vec<Item>> {
    let mut items = Vec::new();
    loop {
        items.push(item(words)?);
        if !words.takes_token(&Token::Comma) {
            break;
        }
    }
    words.is_at_end().then_some(items)
}

/// The columns of `pg_cursors`, as they are asked for from its beginning; none where it is asked for in other ways.
fn cursors(words: &mut Words<'_>) -> Option<Command> {
    words.at = 1;
    let mut columns = Vec::new();
    loop {
        match words.tokens.get(words.at)? {
            Token::Mul => {
                words.at += 1;
                columns.extend(CURSOR_COLUMNS.map(str::to_owned));
            }
            Token::Number(..) => {
                words.at += 1;
                columns.push(UNNAMED.to_owned());
            }
            _ => columns.push(words.name().ok().filter(|name| CURSOR_COLUMNS.contains(&name.as_str()))?),
        }
        if !words.takes_token(&Token::Comma) {
            break;
        }
    }
    words.expect("from").ok()?;
    let table = words.name().ok()?;
    if !matches!(table.as_str(), "pg_cursors" | "pg_catalog.pg_cursors") {
        return None;
    }
    let name = match words.takes("where") {
        true => {
            words.expect("name").ok()?;
            words.expect_token(&Token::Eq).ok()?;
            Some(words.text()?)
        }
        false => None,
    };
    words.is_at_end().then_some(Command::Cursors { columns, name })
}

fn item(words: &mut Words<'_>) -> Option<Item> {
    let function = words.name().ok()?;
    let function = function.strip_prefix("pg_catalog.").unwrap_or(&function).to_owned();
    words.expect_token(&Token::LParen).ok()?;
    let call = match function.as_str() {
        "current_setting" => {
            let name = words.text()?.to_ascii_lowercase();
            match words.takes_token(&Token::Comma) && words.truth()? {
                true => Call::CurrentOrNull(name),
                false => Call::Current(name),
            }
        }
        "set_config" => {
            let name = words.text()?.to_ascii_lowercase();
            words.expect_token(&Token::Comma).ok()?;
            let value = if words.takes("null") { None } else { Some(words.text()?) };
            words.expect_token(&Token::Comma).ok()?;
            let reach = if words.truth()? { Reach::Transaction } else { Reach::Session };
            Call::Set { name, value, reach }
        }
        "pg_advisory_unlock_all" => Call::Unlock,
        _ => return None,
    };
    words.expect_token(&Token::RParen).ok()?;
    if words.takes_token(&Token::DoubleColon) {
        words.keyword().filter(|kind| matches!(kind.as_str(), "text" | "varchar"))?;
    }
    let called = words.takes("as") || matches!(words.peek(), Some(Token::Word(_)));
    let name = if called { words.name().ok()? } else { function };
    Some(Item { name, call })
}

/// A statement that is read word by word.
struct Words<'a> {
    tokens: &'a [Token],
    at: usize,
}

impl Words<'_> {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at)
    }

    fn is_at_end(&self) -> bool {
        self.at >= self.tokens.len()
    }

    /// What follows says nothing here.
    fn rest(&mut self) {
        self.at = self.tokens.len();
    }

    /// A word without quotes, in lower case.
    fn keyword(&mut self) -> Option<String> {
        let Some(Token::Word(word)) = self.tokens.get(self.at) else { return None };
        if word.quote_style.is_some() {
            return None;
        }
        self.at += 1;
        Some(word.value.to_ascii_lowercase())
    }

    fn takes(&mut self, word: &str) -> bool {
        let before = self.at;
        let found = self.keyword().as_deref() == Some(word);
        if !found {
            self.at = before;
        }
        found
    }

    fn takes_both(&mut self, first: &str, second: &str) -> bool {
        let before = self.at;
        let found = self.takes(first) && self.takes(second);
        if !found {
            self.at = before;
        }
        found
    }

    fn takes_token(&mut self, token: &Token) -> bool {
        let found = self.peek() == Some(token);
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, word: &str) -> Result<()> {
        if self.takes(word) { Ok(()) } else { Err(wrong()) }
    }

    fn expect_token(&mut self, token: &Token) -> Result<()> {
        if self.takes_token(token) { Ok(()) } else { Err(wrong()) }
    }

    /// A name, with its prefix where it has one; in lower case unless quoted.
    fn name(&mut self) -> Result<String> {
        let mut name = String::new();
        loop {
            let Some(Token::Word(word)) = self.tokens.get(self.at) else { return Err(wrong()) };
            self.at += 1;
            match word.quote_style {
                Some(_) => name.push_str(&word.value),
                None => name.push_str(&word.value.to_ascii_lowercase()),
            }
            if !self.takes_token(&Token::Period) {
                return Ok(name);
            }
            name.push('.');
        }
    }

    /// A text in quotes.
    fn text(&mut self) -> Option<String> {
        let (Token::SingleQuotedString(text) | Token::EscapedStringLiteral(text)) = self.tokens.get(self.at)? else {
            return None;
        };
        self.at += 1;
        // Where a client says of what type the text is.
        if self.takes_token(&Token::DoubleColon) {
            self.keyword()?;
        }
        Some(text.clone())
    }

    fn truth(&mut self) -> Option<bool> {
        if let Some(word) = self.keyword() {
            return word.parse().ok();
        }
        match self.text()?.as_str() {
            "t" | "true" | "on" | "1" => Some(true),
            "f" | "false" | "off" | "0" => Some(false),
            _ => None,
        }
    }

    /// What a setting is set to, all that is left of the statement; none is `DEFAULT`.
    fn value(&mut self) -> Result<Option<String>> {
        if self.takes("default") {
            return Ok(None);
        }
        let mut parts = Vec::new();
        loop {
            parts.push(self.value_part()?);
            if !self.takes_token(&Token::Comma) {
                return Ok(Some(parts.join(", ")));
            }
        }
    }

    fn value_part(&mut self) -> Result<String> {
        let sign = if self.takes_token(&Token::Minus) { "-" } else { "" };
        if sign.is_empty() {
            self.takes_token(&Token::Plus);
        }
        let token = self.tokens.get(self.at).ok_or_else(wrong)?;
        self.at += 1;
        match token {
            Token::Number(number, _) => Ok(format!("{sign}{number}")),
            _ if !sign.is_empty() => Err(wrong()),
            Token::Word(word) if word.quote_style.is_some() => Ok(format!("\"{}\"", word.value)),
            Token::Word(word) => Ok(word.value.clone()),
            Token::SingleQuotedString(text) | Token::EscapedStringLiteral(text) => Ok(text.clone()),
            Token::DollarQuotedString(text) => Ok(text.value.clone()),
            _ => Err(wrong()),
        }
    }
}

fn wrong() -> Error {
    Error::SqlSyntax(
        "the statement cannot be read; write SET name TO value, SHOW name, BEGIN, COMMIT or ROLLBACK".into(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(sql: &str) -> Option<Command> {
        parse(sql).unwrap()
    }

    fn set_to(name: &str, value: &str) -> Option<Command> {
        Some(Command::Set { name: name.into(), value: Some(value.into()), reach: Reach::Session })
    }

    #[test]
    fn settings_are_set_in_all_the_ways_that_clients_write() {
        for sql in
            ["SET purpose = 'epidemiology'", "set Purpose to epidemiology", "SET SESSION purpose TO $$epidemiology$$;"]
        {
            assert_eq!(read(sql), set_to("purpose", "epidemiology"), "{sql}");
        }
        assert_eq!(read("/* driver */ SET statement_timeout = 5000 -- ms"), set_to("statement_timeout", "5000"));
        assert_eq!(read("SET extra_float_digits = -3"), set_to("extra_float_digits", "-3"));
        assert_eq!(read("SET gridhub.small_cells TO 'roll-up'"), set_to("gridhub.small_cells", "roll-up"));
        assert_eq!(read("SET search_path TO a, \"B\""), set_to("search_path", "a, \"B\""));
        assert_eq!(read("SET NAMES 'utf8'"), set_to("client_encoding", "utf8"));
        assert_eq!(read("SET TIME ZONE 'Asia/Shanghai'"), set_to("timezone", "Asia/Shanghai"));
        let local = Command::Set { name: "purpose".into(), value: None, reach: Reach::Transaction };
        assert_eq!(read("SET LOCAL purpose = DEFAULT"), Some(local));
        let modes = "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY";
        assert_eq!(read(modes), Some(Command::Nothing("SET")));
        assert_eq!(read("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE"), Some(Command::Nothing("SET")));
    }

    #[test]
    fn nobody_becomes_somebody_else() {
        for sql in ["SET ROLE admin", "SET SESSION AUTHORIZATION 'admin'", "SET LOCAL ROLE admin"] {
            assert!(matches!(parse(sql), Err(Error::Refused(_))), "{sql}");
        }
        assert_eq!(read("SET ROLE NONE"), Some(Command::Nothing("SET")));
        assert_eq!(read("RESET SESSION AUTHORIZATION"), Some(Command::Nothing("RESET")));
    }

    #[test]
    fn settings_are_shown_and_reset() {
        assert_eq!(read("show DateStyle"), Some(Command::Show(Some("datestyle".into()))));
        assert_eq!(read("SHOW TRANSACTION ISOLATION LEVEL"), Some(Command::Show(Some("transaction_isolation".into()))));
        assert_eq!(read("SHOW ALL"), Some(Command::Show(None)));
        assert_eq!(read("RESET ALL"), Some(Command::Reset(None)));
        assert_eq!(read("RESET purpose"), Some(Command::Reset(Some("purpose".into()))));
    }

    #[test]
    fn functions_over_settings_are_read_where_they_stand_alone() {
        let current = |name: &str| Call::Current(name.into());
        let jit = "SELECT current_setting('jit') AS cur, set_config('jit', 'off', false) AS new";
        let set = Call::Set { name: "jit".into(), value: Some("off".into()), reach: Reach::Session };
        let expected = vec![Item { name: "cur".into(), call: current("jit") }, Item { name: "new".into(), call: set }];
        assert_eq!(read(jit), Some(Command::Select(expected)));
        let one = vec![Item { name: "current_setting".into(), call: current("purpose") }];
        assert_eq!(read("select pg_catalog.current_setting('purpose')"), Some(Command::Select(one)));
        for sql in [
            "SELECT current_setting('a') FROM t",
            "SELECT 1",
            "SELECT a, set_config('a', 'b', false)",
            "SELECT set_config($1, $2, false)",
        ] {
            assert_eq!(read(sql), None, "{sql}");
        }
    }

    #[test]
    fn cursors_are_looked_up_by_their_name() {
        let asked = |columns: &[&str], name: Option<&str>| {
            let columns = columns.iter().map(|column| (*column).to_owned()).collect();
            Some(Command::Cursors { columns, name: name.map(str::to_owned) })
        };
        let psycopg = "SELECT 1 FROM pg_catalog.pg_cursors WHERE name = 'my cursor'";
        assert_eq!(read(psycopg), asked(&[UNNAMED], Some("my cursor")));
        assert_eq!(read("select name, Statement from pg_cursors;"), asked(&["name", "statement"], None));
        assert_eq!(read("SELECT * FROM pg_cursors"), asked(&CURSOR_COLUMNS, None));
        for sql in [
            "SELECT count(*) FROM pg_cursors",
            "SELECT pid FROM pg_cursors",
            "SELECT name FROM other.pg_cursors",
            "SELECT name FROM pg_cursors WHERE name = $1",
            "SELECT name FROM pg_cursors ORDER BY 1",
            "SELECT 'pg_cursors'",
        ] {
            assert_eq!(read(sql), None, "{sql}");
        }
    }

    #[test]
    fn transactions_are_read() {
        assert_eq!(read("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY"), Some(Command::Begin("BEGIN")));
        assert_eq!(read("START TRANSACTION"), Some(Command::Begin("START TRANSACTION")));
        assert_eq!(read("END"), Some(Command::Commit(Chain::End)));
        assert_eq!(read("COMMIT WORK AND CHAIN"), Some(Command::Commit(Chain::Next)));
        assert_eq!(read("ABORT"), Some(Command::Rollback(Chain::End)));
        assert_eq!(read("ROLLBACK AND NO CHAIN"), Some(Command::Rollback(Chain::End)));
        assert_eq!(read("ROLLBACK TO SAVEPOINT \"S 1\""), Some(Command::RollbackTo("S 1".into())));
        assert_eq!(read("RELEASE s"), Some(Command::Release("s".into())));
        assert_eq!(read("DEALLOCATE PREPARE \"_pg3_0\""), Some(Command::Deallocate(Some("_pg3_0".into()))));
        assert_eq!(read("CLOSE ALL"), Some(Command::Close(None)));
        assert_eq!(read("CLOSE C"), Some(Command::Close(Some("c".into()))));
        assert_eq!(read("DEALLOCATE ALL"), Some(Command::Deallocate(None)));
        for sql in ["COMMIT PREPARED 'x'", "LISTEN c", "COMMIT 1", "SET", "SET purpose 'x'", "SHOW"] {
            assert!(parse(sql).is_err(), "{sql}");
        }
    }

    #[test]
    fn everything_else_is_for_somebody_else() {
        for sql in
            ["SELECT 1", "-- nothing\nSELECT 1", "INSERT INTO t VALUES (1)", "FETCH c", "", "EXPLAIN SELECT 1", "'"]
        {
            assert_eq!(read(sql), None, "{sql}");
        }
    }
}

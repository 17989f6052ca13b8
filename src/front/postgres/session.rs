//! What a connection is while it lasts: whose it is, its settings, and the transaction it is in. Transactions change
//! nothing in the hub: each answer is of one moment, and none is written. They are kept because clients count on them,
//! and because settings go back with them.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use datafusion::common::ScalarValue;
use pgwire::{
    api::ClientInfo,
    error::PgWireResult,
    messages::{response::TransactionStatus, startup::SecretKey},
};

use super::{
    cancel::{Entry, Running},
    command::{self, Call, Chain, Command, Item, Reach},
    cursor::{Cursors, End},
    error::{self, FAILED_TRANSACTION, IN_TRANSACTION, MANY_SAVEPOINTS, NO_SAVEPOINT, NO_TRANSACTION, UNSUPPORTED},
    prepared::Shelf,
    settings::{
        self, INTERVAL, Known, MESSAGES, PURPOSE, REPORTED, SESSION_AUTHORIZATION, SMALL_CELLS, STATEMENT_TIMEOUT,
        Values,
    },
    shapes::Shapes,
};
use crate::{
    disclose::Wishes,
    error::{Error, Result},
    hub::{Hub, Question},
    identity::Credential,
    query::Bounds,
};

/// What the hub's log calls this door.
pub(super) const CHANNEL: &str = "postgres";

/// How many savepoints a transaction may have. Each keeps the settings of its time.
const MOST_SAVEPOINTS: usize = 256;

/// How long their names may be in bytes, as in PostgreSQL.
const LONGEST_NAME: usize = 63;

/// A connection that was let in.
pub(super) struct Session {
    hub: Arc<Hub>,
    credential: Credential,
    /// Whether the credential was looked up for the message or the statement that is being answered, and was not asked
    /// for since.
    is_looked_up: AtomicBool,
    entry: Entry,
    state: Mutex<State>,
    cursors: Mutex<Cursors>,
    shelf: Shelf,
    shapes: Mutex<Shapes>,
}

/// On what terms questions are asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Terms {
    /// Why; none where the hub is left to say which purpose it is.
    pub(super) purpose: Option<String>,
    /// How protected answers are liked.
    pub(super) wishes: Wishes,
}

/// Whether a connection is in a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transaction {
    /// In none.
    Idle,
    /// In one.
    Open,
    /// In one in which a statement failed.
    Failed,
}

/// What a statement that the session answers by itself came to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It is done; the words that it is answered with.
    Done(String),
    /// One row of one text column.
    Shown { name: String, value: String },
    /// One row of text columns, by name.
    Row(Vec<(String, Option<String>)>),
    /// All settings: name, value, what it is for.
    Settings(Vec<(String, String, String)>),
    /// The prepared statement of that name, or all, are to be forgotten.
    Deallocate(Option<String>),
    /// The cursor or portal of that name, or all, are to be closed.
    Close(Option<String>),
    /// These columns of what is open, or of the one of that name.
    Cursors { columns: Vec<String>, name: Option<String> },
}

struct State {
    /// Settings as the start-up packet made them, which `RESET` goes back to.
    begun: Values,
    /// Settings that were set since.
    set: Values,
    /// Settings that were set for the running transaction.
    local: Values,
    /// What the client was told of its settings.
    told: Values,
    /// What was set when it was told of them last, for the connection and for the transaction.
    told_of: Option<(Values, Values)>,
    transaction: Transaction,
    /// Settings as they were when the transaction began. Outside of a transaction block, the messages up to the end of
    /// their exchange are one.
    before: Values,
    savepoints: Vec<Savepoint>,
}

struct Savepoint {
    name: String,
    set: Values,
    local: Values,
}

impl Session {
    /// A connection of that caller, with what the client's start-up packet asked for.
    ///
    /// # Errors
    /// Refusals of settings that do not exist or cannot be so, the purpose errors, and what the options' text may fail
    /// with.
    pub(super) fn new(
        hub: Arc<Hub>,
        credential: Credential,
        entry: Entry,
        asked: &BTreeMap<String, String>,
    ) -> Result<Self> {
        let state = State {
            begun: Values::from([(SESSION_AUTHORIZATION, credential.caller.id.clone())]),
            set: Values::new(),
            local: Values::new(),
            told: Values::new(),
            told_of: None,
            transaction: Transaction::Idle,
            before: Values::new(),
            savepoints: Vec::new(),
        };
        let session = Self {
            hub,
            credential,
            is_looked_up: AtomicBool::new(false),
            entry,
            state: Mutex::new(state),
            cursors: Mutex::default(),
            shelf: Shelf::default(),
            shapes: Mutex::default(),
        };
        let options = asked.get("options").map(|options| read_options(options)).transpose()?.unwrap_or_default();
        let named = asked.iter().filter(|(name, _)| !is_of_protocol(name));
        let named = named.map(|(name, value)| (name.clone(), value.clone()));
        for (name, value) in options.into_iter().chain(named) {
            let known = settings::find(&name)?;
            if let Some(value) = session.normal(known, &value)? {
                session.state().begun.insert(known.name, value);
            }
        }
        if asked.get("replication").is_some_and(|mode| !matches!(mode.as_str(), "false" | "off" | "no" | "0")) {
            return Err(Error::refused(UNSUPPORTED, "the hub does not replicate to clients", "ask in SQL"));
        }
        Ok(session)
    }

    /// The session of a connection.
    ///
    /// # Errors
    /// The end of the connection, where it was not let in.
    pub(super) fn of<C: ClientInfo>(client: &C) -> PgWireResult<Arc<Self>> {
        client.session_extensions().get::<Self>().ok_or_else(|| error::fatal("08P01", "log in first"))
    }

    /// The hub that is asked.
    pub(super) fn hub(&self) -> &Arc<Hub> {
        &self.hub
    }

    /// Looks up who asks, as a message comes that carries out statements, and before each further statement of its text.
    ///
    /// # Errors
    /// [`Error::Unauthenticated`] where the credential is no longer in force.
    pub(super) fn look_up(&self) -> Result<()> {
        self.hub.renew(&self.credential)?;
        self.is_looked_up.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Who asks, looked up anew, unless that was just done for this message or statement.
    ///
    /// # Errors
    /// As [`Session::look_up`].
    pub(super) fn credential(&self) -> Result<Credential> {
        match self.is_looked_up.swap(false, Ordering::Relaxed) {
            true => Ok(self.credential.clone()),
            false => self.hub.renew(&self.credential),
        }
    }

    /// Another message begins: until it came, its caller may have been shut out.
    pub(super) fn begin_another(&self) {
        self.is_looked_up.store(false, Ordering::Relaxed);
    }

    /// On what terms it asks now.
    pub(super) fn terms(&self) -> Terms {
        let state = self.state();
        Terms {
            purpose: Some(state.value_of(PURPOSE)).filter(|purpose| !purpose.is_empty()),
            wishes: Wishes {
                interval: state.value_of(INTERVAL) == "on",
                small: settings::small_cells(&state.value_of(SMALL_CELLS)),
            },
        }
    }

    /// Whether its client wants to be told what there is to know besides answers.
    pub(super) fn hears_notices(&self) -> bool {
        settings::lets_notices_through(&self.state().value_of(MESSAGES))
    }

    /// The connection's number and secret, for cancel requests.
    pub(super) fn place(&self) -> (i32, SecretKey) {
        (self.entry.pid(), self.entry.secret())
    }

    /// A question with this connection's purpose, wishes and deadline; a cancel request stops it while the guard lives.
    ///
    /// # Errors
    /// None so far.
    pub(super) fn question(&self, sql: &str, params: Vec<ScalarValue>) -> Result<(Question, Running)> {
        let Terms { purpose, wishes } = self.terms();
        let deadline = self.limit();
        let running = self.entry.run(deadline);
        let bounds = Bounds { deadline, stop: running.stop() };
        Ok((Question { purpose, params, wishes, bounds, ..Question::new(sql, CHANNEL) }, running))
    }

    /// A statement that is answered without a question, and may take as long as one.
    pub(super) fn run(&self) -> Running {
        self.entry.run(self.limit())
    }

    /// Ends the statement that runs, if one does.
    pub(super) fn stop(&self) {
        self.entry.stop();
    }

    fn limit(&self) -> Option<Duration> {
        settings::limit(&self.state().value_of(STATEMENT_TIMEOUT))
    }

    /// Answers the statements that are about the connection alone. `sql` is one statement; none where it is another.
    ///
    /// # Errors
    /// A refusal of anything but its end in a failed transaction; whatever the statement fails with.
    pub(super) fn command(&self, sql: &str) -> Result<Option<Outcome>> {
        let command = command::parse(sql);
        let mut state = self.state();
        let ends = matches!(command, Ok(Some(Command::Commit(_) | Command::Rollback(_) | Command::RollbackTo(_))));
        if state.transaction == Transaction::Failed && !ends {
            return Err(Error::refused(
                FAILED_TRANSACTION,
                "current transaction is aborted, commands ignored until end of transaction block",
                "ROLLBACK",
            ));
        }
        let Some(command) = command? else { return Ok(None) };
        self.carry_out(&mut state, command).map(Some)
    }

    /// The names of the text columns that such a statement would be answered with, without carrying it out: no name
    /// where it has no rows. None where it is another statement.
    ///
    /// # Errors
    /// Where it cannot be read, or names a setting that does not exist.
    pub(super) fn describe_command(&self, sql: &str) -> Result<Option<Vec<String>>> {
        let columns = match command::parse(sql)? {
            None => return Ok(None),
            Some(Command::Show(None)) => ["name", "setting", "description"].map(str::to_owned).to_vec(),
            Some(Command::Show(Some(name))) => vec![settings::find(&name)?.name.to_owned()],
            Some(Command::Select(items)) => items.into_iter().map(|item| item.name).collect(),
            Some(Command::Cursors { columns, .. }) => columns,
            Some(_) => Vec::new(),
        };
        Ok(Some(columns))
    }

    /// Whether the connection is in a transaction.
    pub(super) fn transaction(&self) -> Transaction {
        self.state().transaction
    }

    /// The same as the protocol tells it.
    pub(super) fn status(&self) -> TransactionStatus {
        match self.transaction() {
            Transaction::Idle => TransactionStatus::Idle,
            Transaction::Open => TransactionStatus::Transaction,
            Transaction::Failed => TransactionStatus::Error,
        }
    }

    /// A statement failed; what follows in its transaction is refused until it ends. Outside of a transaction block it
    /// ends at once, and portals with it.
    pub(super) fn failed(&self) {
        let mut state = self.state();
        if state.transaction == Transaction::Idle {
            self.kept().end(End::RolledBack);
            self.shelf.close_all();
        }
        state.fail();
    }

    /// An exchange of messages came to its end. Outside of a transaction block that ends a transaction: what it set
    /// stays from now on, its cursors too, and its portals go.
    pub(super) fn exchanged(&self) {
        let mut state = self.state();
        if state.transaction == Transaction::Idle {
            self.kept().end(End::Committed);
            self.shelf.close_all();
            state.end();
        }
    }

    /// The answers that are kept for `FETCH`.
    pub(super) fn cursors(&self) -> &Mutex<Cursors> {
        &self.cursors
    }

    /// Its prepared statements and portals.
    pub(super) fn shelf(&self) -> &Shelf {
        &self.shelf
    }

    /// What its statements were found to be.
    pub(super) fn shapes(&self) -> &Mutex<Shapes> {
        &self.shapes
    }

    /// Settings that clients are told of and that changed since this was asked last; at first, all of them.
    pub(super) fn news(&self) -> Vec<(&'static str, String)> {
        self.state().news()
    }

    fn carry_out(&self, state: &mut State, command: Command) -> Result<Outcome> {
        let tag = match command {
            Command::Set { name, value, reach } => {
                self.set(state, settings::find(&name)?, value.as_deref(), reach)?;
                "SET"
            }
            Command::Reset(None) => {
                state.set.clear();
                state.local.clear();
                "RESET"
            }
            Command::Reset(Some(name)) => {
                self.set(state, settings::find(&name)?, None, Reach::Session)?;
                "RESET"
            }
            Command::Show(None) => {
                let shown = |known: &Known| (known.name.to_owned(), state.value(known), known.about.to_owned());
                return Ok(Outcome::Settings(settings::all().map(shown).collect()));
            }
            Command::Show(Some(name)) => {
                let known = settings::find(&name)?;
                return Ok(Outcome::Shown { name: known.name.to_owned(), value: state.value(known) });
            }
            Command::Select(items) => return self.select(state, items),
            Command::Begin(tag) => {
                state.begin();
                tag
            }
            Command::Commit(chain) => {
                let tag = if state.transaction == Transaction::Failed { "ROLLBACK" } else { "COMMIT" };
                self.end(state, chain)?;
                tag
            }
            Command::Rollback(chain) => {
                state.fail();
                self.end(state, chain)?;
                "ROLLBACK"
            }
            Command::Savepoint(name) => {
                state.keep(name)?;
                "SAVEPOINT"
            }
            Command::Release(name) => {
                let at = state.savepoint(&name)?;
                state.savepoints.truncate(at);
                "RELEASE"
            }
            Command::RollbackTo(name) => {
                let at = state.savepoint(&name)?;
                state.savepoints.truncate(at + 1);
                let Savepoint { set, local, .. } = &state.savepoints[at];
                (state.set, state.local) = (set.clone(), local.clone());
                state.transaction = Transaction::Open;
                "ROLLBACK"
            }
            Command::Close(name) => return Ok(Outcome::Close(name)),
            Command::Cursors { columns, name } => return Ok(Outcome::Cursors { columns, name }),
            Command::Deallocate(name) => return Ok(Outcome::Deallocate(name)),
            Command::DiscardAll => {
                if state.transaction != Transaction::Idle {
                    return Err(Error::refused(IN_TRANSACTION, "DISCARD ALL cannot run in a transaction", "COMMIT"));
                }
                state.set.clear();
                self.kept().close_all();
                self.shelf.close_all();
                self.shelf.deallocate_all();
                "DISCARD ALL"
            }
            Command::Nothing(tag) => tag,
        };
        Ok(Outcome::Done(tag.to_owned()))
    }

    fn set(&self, state: &mut State, known: &'static Known, value: Option<&str>, reach: Reach) -> Result<()> {
        let value = match value {
            Some(value) => match self.normal(known, value)? {
                Some(value) => value,
                None => return Ok(()),
            },
            None => state.begun.get(known.name).cloned().unwrap_or_else(|| known.default.to_owned()),
        };
        match reach {
            Reach::Session => {
                state.local.remove(known.name);
                state.set.insert(known.name, value);
            }
            Reach::Transaction => {
                state.local.insert(known.name, value);
            }
        }
        Ok(())
    }

    /// A value as it is kept, where the hub takes it from this caller.
    fn normal(&self, known: &Known, value: &str) -> Result<Option<String>> {
        let value = known.normal(value)?;
        match value.as_deref() {
            Some(purpose) if known.name == PURPOSE && !purpose.is_empty() => {
                self.hub.purpose(&self.credential()?, Some(purpose)).map(Some)
            }
            _ => Ok(value),
        }
    }

    fn select(&self, state: &mut State, items: Vec<Item>) -> Result<Outcome> {
        let mut row = Vec::new();
        for Item { name, call } in items {
            let value = match call {
                Call::Current(setting) => Some(state.value(settings::find(&setting)?)),
                Call::CurrentOrNull(setting) => settings::find(&setting).ok().map(|known| state.value(known)),
                Call::Set { name, value, reach } => {
                    let known = settings::find(&name)?;
                    self.set(state, known, value.as_deref(), reach)?;
                    Some(state.value(known))
                }
                Call::Unlock => Some(String::new()),
            };
            row.push((name, value));
        }
        match <[(String, Option<String>); 1]>::try_from(row) {
            Ok([(name, Some(value))]) => Ok(Outcome::Shown { name, value }),
            Ok([null]) => Ok(Outcome::Row(vec![null])),
            Err(row) => Ok(Outcome::Row(row)),
        }
    }

    fn end(&self, state: &mut State, chain: Chain) -> Result<()> {
        if chain == Chain::Next {
            state.in_transaction()?;
        }
        self.kept().end(match state.transaction {
            Transaction::Failed => End::RolledBack,
            Transaction::Idle | Transaction::Open => End::Committed,
        });
        self.shelf.close_all();
        state.end();
        if chain == Chain::Next {
            state.begin();
        }
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn kept(&self) -> MutexGuard<'_, Cursors> {
        self.cursors.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn value(&self, known: &Known) -> String {
        let kept = [&self.local, &self.set, &self.begun].into_iter().find_map(|values| values.get(known.name));
        kept.map_or_else(|| known.default.to_owned(), String::clone)
    }

    /// The value of a setting that there is.
    fn value_of(&self, name: &str) -> String {
        settings::find(name).map_or_else(|_| String::new(), |known| self.value(known))
    }

    /// Settings that clients are told of and that changed since this was asked last; at first, all of them.
    fn news(&mut self) -> Vec<(&'static str, String)> {
        // Between most exchanges nothing was set.
        if self.told_of.as_ref().is_some_and(|(set, local)| *set == self.set && *local == self.local) {
            return Vec::new();
        }
        let now = REPORTED.into_iter().map(|name| (name, self.value_of(name)));
        let news: Vec<_> = now.filter(|(name, value)| self.told.get(name) != Some(value)).collect();
        self.told.extend(news.iter().cloned());
        self.told_of = Some((self.set.clone(), self.local.clone()));
        news
    }

    /// A transaction in a transaction is the same one.
    fn begin(&mut self) {
        if self.transaction == Transaction::Idle {
            self.transaction = Transaction::Open;
        }
    }

    /// A statement failed: its transaction goes back, outside of a block at once.
    fn fail(&mut self) {
        match self.transaction {
            Transaction::Idle => {
                self.set.clone_from(&self.before);
                self.local.clear();
            }
            Transaction::Open => self.transaction = Transaction::Failed,
            Transaction::Failed => {}
        }
    }

    /// Ends the transaction; settings go back where it failed.
    fn end(&mut self) {
        match self.transaction {
            Transaction::Failed => self.set.clone_from(&self.before),
            Transaction::Idle | Transaction::Open => self.before.clone_from(&self.set),
        }
        self.local.clear();
        self.savepoints.clear();
        self.transaction = Transaction::Idle;
    }

    fn in_transaction(&self) -> Result<()> {
        match self.transaction {
            Transaction::Idle => Err(Error::refused(NO_TRANSACTION, "there is no transaction in progress", "BEGIN")),
            _ => Ok(()),
        }
    }

    /// Keeps the settings as they are under a name. Drivers make one of the same name before each statement and release
    /// none: of these, the oldest goes where there are too many.
    fn keep(&mut self, name: String) -> Result<()> {
        self.in_transaction()?;
        if name.len() > LONGEST_NAME {
            let why = format!("names of savepoints have at most {LONGEST_NAME} bytes");
            return Err(Error::refused(MANY_SAVEPOINTS, why, "choose a shorter one"));
        }
        if self.savepoints.len() >= MOST_SAVEPOINTS {
            let Some(oldest) = self.savepoints.iter().position(|savepoint| savepoint.name == name) else {
                let why = format!("this transaction has {MOST_SAVEPOINTS} savepoints");
                return Err(Error::refused(MANY_SAVEPOINTS, why, "RELEASE some"));
            };
            self.savepoints.remove(oldest);
        }
        let (set, local) = (self.set.clone(), self.local.clone());
        self.savepoints.push(Savepoint { name, set, local });
        Ok(())
    }

    fn savepoint(&self, name: &str) -> Result<usize> {
        self.in_transaction()?;
        let found = self.savepoints.iter().rposition(|savepoint| savepoint.name == name);
        found.ok_or_else(|| Error::refused(NO_SAVEPOINT, format!("savepoint `{name}` does not exist"), ""))
    }
}

/// What a start-up packet says that is no setting: who, which database (the hub is one, under any name), and options of
/// the protocol.
fn is_of_protocol(name: &str) -> bool {
    matches!(name, "user" | "database" | "options" | "replication") || name.starts_with("_pq_.")
}

/// Settings in the form of a command line, as libpq sends them: `-c purpose=epidemiology --statement-timeout=5s`, with
/// a backslash before blanks that do not part words.
fn read_options(text: &str) -> Result<Vec<(String, String)>> {
    let mut words = split_options(text).into_iter();
    let mut options = Vec::new();
    while let Some(word) = words.next() {
        let setting = match word.strip_prefix("--") {
            Some(setting) => Some(setting.to_owned()),
            None => match word.strip_prefix("-c") {
                Some("") => words.next(),
                Some(setting) => Some(setting.to_owned()),
                None => None,
            },
        };
        let (name, value) = setting
            .as_deref()
            .and_then(|setting| setting.split_once('='))
            .ok_or_else(|| Error::SqlSyntax("the connection's options cannot be read; write -c purpose=NAME".into()))?;
        options.push((name.trim().replace('-', "_"), value.to_owned()));
    }
    Ok(options)
}

fn split_options(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '\\' => word.get_or_insert_default().extend(letters.next()),
            blank if blank.is_whitespace() => words.extend(word.take()),
            letter => word.get_or_insert_default().push(letter),
        }
    }
    words.extend(word);
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_as_libpq_writes_them() {
        let read = |text: &str| {
            let options = read_options(text).unwrap();
            options.into_iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>()
        };
        assert_eq!(
            read("-c purpose=epidemiology -c statement_timeout=5s"),
            ["purpose=epidemiology", "statement_timeout=5s"]
        );
        assert_eq!(read("-cpurpose=a  --statement-timeout=1min"), ["purpose=a", "statement_timeout=1min"]);
        assert_eq!(read("-c application_name=my\\ \\\\tool"), ["application_name=my \\tool"]);
        assert_eq!(read(" "), Vec::<String>::new());
        for wrong in ["purpose=a", "-c", "-c purpose", "-x"] {
            assert!(read_options(wrong).is_err(), "{wrong}");
        }
    }

    fn state() -> State {
        State {
            begun: Values::from([("TimeZone", "Asia/Shanghai".to_owned())]),
            set: Values::new(),
            local: Values::new(),
            told: Values::new(),
            told_of: None,
            transaction: Transaction::Idle,
            before: Values::new(),
            savepoints: Vec::new(),
        }
    }

    #[test]
    fn a_failed_transaction_takes_its_settings_back() {
        let mut state = state();
        state.set.insert(INTERVAL, "on".into());
        state.end();
        state.begin();
        state.set.insert(INTERVAL, "off".into());
        state.local.insert(SMALL_CELLS, "merge".into());
        assert_eq!(state.value_of(SMALL_CELLS), "merge");
        state.fail();
        state.end();
        assert_eq!((state.value_of(INTERVAL).as_str(), state.value_of(SMALL_CELLS).as_str()), ("on", "leave-out"));
        assert_eq!(state.transaction, Transaction::Idle);
    }

    #[test]
    fn outside_of_a_block_an_exchange_is_a_transaction() {
        let mut state = state();
        state.set.insert(INTERVAL, "on".into());
        state.local.insert(SMALL_CELLS, "merge".into());
        assert_eq!(state.value_of(SMALL_CELLS), "merge");
        state.fail();
        assert_eq!((state.value_of(INTERVAL).as_str(), state.value_of(SMALL_CELLS).as_str()), ("off", "leave-out"));
        state.set.insert(INTERVAL, "on".into());
        state.local.insert(SMALL_CELLS, "merge".into());
        state.end();
        state.fail();
        assert_eq!((state.value_of(INTERVAL).as_str(), state.value_of(SMALL_CELLS).as_str()), ("on", "leave-out"));
        // What came before BEGIN in the same exchange goes back with the block.
        state.set.insert(INTERVAL, "off".into());
        state.begin();
        state.fail();
        state.end();
        assert_eq!(state.value_of(INTERVAL), "on");
    }

    #[test]
    fn a_transaction_that_ends_well_keeps_its_settings_but_local_ones() {
        let mut state = state();
        state.begin();
        state.set.insert(INTERVAL, "on".into());
        state.local.insert(SMALL_CELLS, "merge".into());
        state.end();
        assert_eq!((state.value_of(INTERVAL).as_str(), state.value_of(SMALL_CELLS).as_str()), ("on", "leave-out"));
    }

    #[test]
    fn clients_are_told_of_what_changed() {
        let mut state = state();
        assert_eq!(state.news().len(), REPORTED.len());
        assert!(state.news().is_empty());
        let told = |zone: &str| vec![("TimeZone", zone.to_owned())];
        state.set.insert("TimeZone", "UTC".into());
        state.set.insert(INTERVAL, "on".into());
        assert_eq!(state.news(), told("UTC"));
        state.local.insert("TimeZone", "Europe/Paris".into());
        assert_eq!(state.news(), told("Europe/Paris"));
        state.fail();
        assert_eq!(state.news(), told("Asia/Shanghai"), "it is as it was before");
        assert!(state.news().is_empty());
    }

    #[test]
    fn savepoints_are_of_transactions() {
        let mut state = state();
        assert!(state.savepoint("s").is_err());
        state.begin();
        assert!(state.savepoint("s").is_err());
        state.keep("s".into()).unwrap();
        assert_eq!(state.savepoint("s").unwrap(), 0);
        for _ in 0..MOST_SAVEPOINTS {
            state.keep("again".into()).unwrap();
        }
        assert_eq!(state.savepoint("s").unwrap(), 0, "it is not the oldest of another name");
        assert_eq!(state.savepoints.len(), MOST_SAVEPOINTS);
        assert!(state.keep("one more".into()).is_err());
        assert!(state.keep("x".repeat(LONGEST_NAME + 1)).is_err());
        state.end();
        assert!(state.in_transaction().is_err());
    }

    #[test]
    fn settings_of_the_start_are_under_those_set_since() {
        let mut state = state();
        assert_eq!(state.value_of("timezone"), "Asia/Shanghai");
        state.set.insert("TimeZone", "UTC".into());
        assert_eq!(state.value_of("TimeZone"), "UTC");
    }
}

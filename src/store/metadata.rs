//! What the hub must remember besides rows: tokens, batches, the text of questions, what is published, what
//! protected statistics released, and what the command line wants logged. SQLite in the data folder; no
//! identifier and no plain SQL goes in.

use std::{
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use chrono::{DateTime, Utc};
use rusqlite::{Connection, OptionalExtension, Params, Row, params, types::Type};

use super::{
    epoch::{Counted, Publication},
    tombstones::{MARK, Tombstone},
};
use crate::{
    audit::Event,
    dataset::layout::WIDTH,
    error::{Error, Result},
    release::{
        representative::{Outcome, Representative},
        sketch::Sketch,
    },
};

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT;
    CREATE TABLE IF NOT EXISTS tokens (
        id TEXT PRIMARY KEY, caller TEXT NOT NULL, hash BLOB NOT NULL UNIQUE, created INTEGER NOT NULL,
        expires INTEGER, revoked INTEGER) STRICT;
    CREATE TABLE IF NOT EXISTS scram (token_id TEXT PRIMARY KEY, keys BLOB NOT NULL) STRICT;
    CREATE TABLE IF NOT EXISTS batches (
        sequence INTEGER PRIMARY KEY AUTOINCREMENT, agency TEXT NOT NULL, dataset TEXT NOT NULL,
        batch_id TEXT NOT NULL, digest BLOB NOT NULL, caller TEXT NOT NULL, done INTEGER NOT NULL,
        receipt TEXT NOT NULL, UNIQUE (agency, dataset, batch_id)) STRICT;
    CREATE TABLE IF NOT EXISTS questions (query_id TEXT PRIMARY KEY, sealed BLOB NOT NULL) STRICT;
    CREATE TABLE IF NOT EXISTS unlogged (id INTEGER PRIMARY KEY AUTOINCREMENT, event TEXT NOT NULL) STRICT;
    CREATE TABLE IF NOT EXISTS publications (
        dataset TEXT PRIMARY KEY, version INTEGER, counted INTEGER NOT NULL, since INTEGER,
        pending BLOB NOT NULL) STRICT;
    CREATE TABLE IF NOT EXISTS representatives (
        id INTEGER PRIMARY KEY, kind TEXT NOT NULL, subjects INTEGER NOT NULL, sketch BLOB NOT NULL,
        value BLOB, sd BLOB) STRICT;
    CREATE TABLE IF NOT EXISTS charges (
        column_name TEXT NOT NULL, definition BLOB NOT NULL, PRIMARY KEY (column_name, definition))
        STRICT, WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS populations (
        dataset TEXT PRIMARY KEY, version INTEGER NOT NULL, subjects INTEGER NOT NULL) STRICT;
    CREATE TABLE IF NOT EXISTS token_epochs (
        agency TEXT NOT NULL, purpose TEXT NOT NULL, begun INTEGER NOT NULL, PRIMARY KEY (agency, purpose))
        STRICT, WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS extents (
        dataset TEXT PRIMARY KEY, version INTEGER NOT NULL, rows INTEGER NOT NULL) STRICT;
    CREATE TABLE IF NOT EXISTS tombstones (
        domain TEXT NOT NULL, mark BLOB NOT NULL, sieve INTEGER NOT NULL, erased INTEGER NOT NULL,
        PRIMARY KEY (domain, mark)) STRICT, WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS erasures (
        id TEXT PRIMARY KEY, begun INTEGER NOT NULL, sealed BLOB, rows TEXT NOT NULL, certificate TEXT) STRICT;
";

/// The metadata database.
pub struct Metadata {
    connection: Mutex<Connection>,
    /// For what every request looks up: it does not wait for the disk behind what others write.
    reading: Mutex<Connection>,
    /// The last number given to a batch, once one was.
    sequence: Mutex<Option<i64>>,
}

/// A token as it is remembered: everything but what opens the door.
#[derive(Debug, Clone)]
pub struct TokenRecord {
    /// Its id.
    pub id: String,
    /// Whose it is.
    pub caller: String,
    /// When it was made.
    pub created: DateTime<Utc>,
    /// When it ends by itself.
    pub expires: Option<DateTime<Utc>>,
    /// When it was revoked.
    pub revoked: Option<DateTime<Utc>>,
}

/// A batch as it is remembered.
#[derive(Debug, Clone)]
pub struct BatchRecord {
    /// Rises over all batches.
    pub sequence: i64,
    /// The pushing agency.
    pub agency: String,
    /// The dataset.
    pub dataset: String,
    /// The sender's id.
    pub batch_id: String,
    /// HMAC of the file's digest.
    pub digest: Vec<u8>,
    /// Who pushed.
    pub caller: String,
    /// Whether the outcome is settled and logged.
    pub done: bool,
    /// The receipt, unsigned until done.
    pub receipt: String,
}

/// An erasure that was begun and not ended.
pub struct UnfinishedErasure {
    /// Its id.
    pub id: String,
    /// Whom it is about, sealed.
    pub sealed: Vec<u8>,
    /// The rows erased so far, as JSON by dataset.
    pub rows: String,
}

impl Metadata {
    /// Opens the database in the data folder, making it on first start.
    ///
    /// # Errors
    /// [`Error::Setup`] where it cannot be opened or is no database.
    pub fn open(data: &Path) -> Result<Self> {
        let file = data.join("metadata.sqlite");
        let open = || -> rusqlite::Result<(Connection, Connection)> {
            let connection = Connection::open(&file)?;
            connection.busy_timeout(Duration::from_secs(10))?;
            connection.pragma_update(None, "journal_mode", "WAL")?;
            connection.pragma_update(None, "synchronous", "FULL")?;
            connection.pragma_update(None, "secure_delete", "ON")?;
            connection.execute_batch(SCHEMA)?;
            let reading = Connection::open(&file)?;
            reading.busy_timeout(Duration::from_secs(10))?;
            reading.pragma_update(None, "query_only", "ON")?;
            Ok((connection, reading))
        };
        let (connection, reading) =
            open().map_err(|e| Error::setup(&file, None, format!("cannot open the metadata: {e}")))?;
        Ok(Self { connection: Mutex::new(connection), reading: Mutex::new(reading), sequence: Mutex::default() })
    }

    /// Looks through the database of that data folder for damage: found late, it would fail one caller and not the
    /// next.
    ///
    /// # Errors
    /// [`Error::Setup`] where its pages do not fit together.
    pub fn check(&self, data: &Path) -> Result<()> {
        let found = self.connection().query_row("PRAGMA quick_check(1)", [], |row| row.get::<_, String>(0));
        match found.as_deref() {
            Ok("ok") => Ok(()),
            _ => Err(Error::setup(
                &data.join("metadata.sqlite"),
                None,
                "is damaged; restore it from a backup, with the tables and the log of the same time",
            )),
        }
    }

    fn connection(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reading(&self) -> MutexGuard<'_, Connection> {
        self.reading.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A remembered fact.
    ///
    /// # Errors
    /// A fault of the database.
    pub fn fact(&self, name: &str) -> Result<Option<Vec<u8>>> {
        self.connection()
            .query_row("SELECT value FROM facts WHERE name = ?1", [name], |row| row.get(0))
            .optional()
            .map_err(fault)
    }

    /// Remembers a fact; writes nothing where it is remembered so already.
    ///
    /// # Errors
    /// A fault of the database.
    pub fn remember(&self, name: &str, value: &[u8]) -> Result<()> {
        let sql = "INSERT INTO facts VALUES (?1, ?2) ON CONFLICT (name) DO UPDATE SET value = ?2 WHERE value <> ?2";
        self.connection().execute(sql, params![name, value]).map_err(fault)?;
        Ok(())
    }

    /// Stores a new token with its hash and what it takes to check a proof of it, together with the event that records
    /// it.
    ///
    /// # Errors
    /// A fault of the database.
    pub fn add_token(&self, token: &TokenRecord, hash: &[u8], scram: &[u8], event: &Event) -> Result<()> {
        let mut connection = self.connection();
        let change = connection.transaction().map_err(fault)?;
        change
            .execute(
                "INSERT INTO tokens VALUES (?1, ?2, ?3, ?4, ?5, NULL)",
                params![token.id, token.caller, hash, token.created.timestamp(), token.expires.map(|t| t.timestamp())],
            )
            .map_err(fault)?;
        change.execute("INSERT INTO scram VALUES (?1, ?2)", params![token.id, scram]).map_err(fault)?;
        queue(&change, event)?;
        change.commit().map_err(fault)
    }

    /// Revokes a token at once; false where there is no such token in force.
    ///
    /// # Errors
    /// A fault of the database.
    pub fn revoke_token(&self, id: &str, now: DateTime<Utc>, event: &Event) -> Result<bool> {
        let mut connection = self.connection();
        let change = connection.transaction().map_err(fault)?;
        let changed = change
            .execute("UPDATE tokens SET revoked = ?2 WHERE id = ?1 AND revoked IS NULL", params![id, now.timestamp()])
            .map_err(fault)?;
        if changed == 0 {
            return Ok(false);
        }
        queue(&change, event)?;
        change.commit().map_err(fault)?;
        Ok(true)
    }

    /// The token with that hash, in force or not, and whether something waited to be logged when it was read: both are
    /// of one moment.
    ///
    /// # Errors
    /// A fault of the database.
    pub fn token_by_hash(&self, hash: &[u8]) -> Result<Option<(TokenRecord, bool)>> {
        let sql = "SELECT id, caller, created, expires, revoked, EXISTS (SELECT 1 FROM unlogged)
                   FROM tokens WHERE hash = ?1";
        first(&self.reading(), sql, [hash], |row| Ok((read_token(row)?, row.get(5)?)))
    }

    /// The token of that id, in force or not.
    ///
    /// # Errors
    /// A fault of the database.
    pub fn token(&self, id: &str) -> Result<Option<TokenRecord>> {
        let sql = "SELECT id, caller, created, expires, revoked FROM tokens WHERE id = ?1";
        first(&self.reading(), sql, [id], read_token)
    }

    /// Ids of a caller's tokens in force, each with what it takes to check a proof of it. Tokens made before there
    /// were proofs are not among them.
    ///
    /// # Errors
    /// A fault of the database.
    pub fn scram_keys(&self, caller: &str, now: DateTime<Utc>) -> Result<Vec<(String, Vec<u8>)>> {
        let connection = self.reading();
        let sql = "SELECT token_id, keys FROM scram JOIN tokens ON id = token_id
                   WHERE caller = ?1 AND revoked IS NULL AND (expires IS NULL OR expires > ?2)";
        let mut statement = connection.prepare(sql).map_err(fault)?;
        let found = statement.query_map(params![caller, now.timestamp()], |row| Ok((row.get(0)?, row.get(1)?)));
        let keys = found.map_err(fault)?.collect::<Result<_, _>>();
        keys.map_err(fault)
    }

    /// All tokens, oldest first.
    ///
    /// # Errors
    /// A fault of the database.
    pub fn tokens(&self) -> Result<Vec<TokenRecord>> {
        let connection = self.connection();
        let sql = "SELECT id, caller, created, expires, revoked FROM tokens ORDER BY created, id";
        let mut statement = connection.prepare(sql).map_err(fault)?;
        let tokens = statement.query_map([], read_token).map_err(fault)?.collect::<Result<_, _>>();
        tokens.map_err(fault)
    }

    /// The batch of that agency, dataset and id.
    ///
    /// # Errors
    /// A fault of the database.
    pub fn batch(&self, agency: &str, dataset: &str, batch_id: &str) -> Result<Option<BatchRecord>> {
        let sql = "SELECT * FROM batches WHERE agency = ?1 AND dataset = ?2 AND batch_id = ?3";
        first(&self.reading(), sql, [agency, dataset, batch_id], read_batch)
    }

    /// Batches of a dataset whose outcome is not settled, oldest first, as a crash leaves them.
    ///
    /// # Errors
    /// A fault of the database.
    pub fn unsettled_batches(&self, dataset: &str) -> Result<Vec<BatchRecord>> {
        let connection = self.connection();
        let mut statement = connection
            .prepare("SELECT * FROM batches WHERE dataset = ?1 AND done = 0 ORDER BY sequence")
            .map_err(fault)?;
        let batches = statement.query_map([dataset], read_batch).map_err(fault)?.collect::<Result<_, _>>();
        batches.map_err(fault)
    }

    /// A number that no batch has had, and above those of all that were begun before.
    ///
    /// # Errors
    /// A fault of the database.
    pub fn next_sequence(&self) -> Result<i64> {
        let mut next = self.sequence.lock().unwrap_or_else(PoisonError::into_inner);
        if next.is_none() {
            let sql = "SELECT seq FROM sqlite_sequence WHERE name = 'batches'";
            let last = self.reading().query_row(sql, [], |row| row.get(0)).optional().map_err(fault)?;
            *next = Some(last.unwrap_or(0));
        }
        let taken = next.get_or_insert(0);
        *taken += 1;
        Ok(*taken)
    }

    /// Remembers batches that are about to be committed, all or none.
    ///
    /// # Errors
    /// A fault of the database; also where an id is taken.
    pub fn begin_batches(&self, batches: &[BatchRecord]) -> Result<()> {
        let mut connection = self.connection();
        let change = connection.transaction().map_err(fault)?;
        for batch in batches {
            change
                .execute(
                    "INSERT INTO batches (sequence, agency, dataset, batch_id, digest, caller, done, receipt)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, 0, ?7)",
                    params![
                        batch.sequence,
                        batch.agency,
                        batch.dataset,
                        batch.batch_id,
                        batch.digest,
                        batch.caller,
                        batch.receipt
                    ],
                )
                .map_err(fault)?;
        }
        change.commit().map_err(fault)
    }

    /// Settles batches with their final receipts, together with what is published of their dataset now, where
    /// that changed.
    ///
    /// # Errors
    /// A fault of the database.
    pub fn settle_batches(&self, receipts: &[(i64, String)], publication: Option<(&str, &Counted)>) -> Result<()> {
        let mut connection = self.connection();
        let change = connection.transaction().map_err(fault)?;
        for (sequence, receipt) in receipts {
            let sql = "UPDATE batches SET done = 1, receipt = ?2 WHERE sequence = ?1";
            change.execute(sql, params![sequence, receipt]).map_err(fault)?;
        }
        if let Some((dataset, publication)) = publication {
            keep_publication(&change, dataset, publication)?;
        }
        change.commit().map_err(fault)
    }

    /// Forgets a batch of which nothing was stored, so that its id can be used again.
    ///
    /// # Errors
    /// A fault of the database.
    pub fn drop_batch(&self, sequence: i64) -> Result<()> {
        self.connection().execute("DELETE FROM batches WHERE sequence = ?1", [sequence]).map_err(fault)?;
        Ok(())
    }

    /// Keeps the sealed texts of questions, all of them or none.
    ///
    /// # Errors
    /// A fault of the database.
    pub fn keep_questions(&self, texts: &[(&str, &[u8])]) -> Result<()> {
        let mut connection = self.connection();
        // A statement by itself is a change of its own.
        if let [only] = texts {
            return keep_question(&connection, only);
        }
        let change = connection.transaction().map_err(fault)?;
        for text in texts {
            keep_question(&change, text)?;
        }
        change.commit().map_err(fault)
    }

    /// The sealed text of a question.
    ///
    /// # Errors
    /// A fault of the database.
    pub fn question(&self, query_id: &str) -> Result<Option<Vec<u8>>> {
        let sql = "SELECT sealed FROM questions WHERE query_id = ?1";
        self.connection().query_row(sql, [query_id], |row| row.get(0)).optional().map_err(fault)
    }

    /// Events that the command line left for the hub to log, oldest first, with their numbers.
    ///
    /// # Errors
    /// A fault of the database.
    pub fn unlogged(&self) -> Result<Vec<(i64, Event)>> {
        let connection = self.reading();
        let mut statement = connection.prepare_cached("SELECT id, event FROM unlogged ORDER BY id").map_err(fault)?;
        let rows =
            statement.query_map([], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?))).map_err(fault)?;
        let mut events = Vec::new();
        for row in rows {
            let (id, text) = row.map_err(fault)?;
            events.push((id, serde_json::from_str(&text).map_err(Error::internal)?));
        }
        Ok(events)
    }

    /// Forgets an event that is now in the log.
    ///
    /// # Errors
    /// A fault of the database.
    pub fn logged(&self, id: i64) -> Result<()> {
        self.connection().execute("DELETE FROM unlogged WHERE id = ?1", [id]).map_err(fault)?;
        Ok(())
    }

    /// What is published of a dataset, and what waits; nothing where nothing was ever committed.
    ///
    /// # Errors
    /// A fault of the database.
    pub fn publication(&self, dataset: &str) -> Result<Publication> {
        let sql = "SELECT version, counted, since, pending FROM publications WHERE dataset = ?1";
        let publication = self.connection().query_row(sql, [dataset], read_publication).optional().map_err(fault)?;
        Ok(publication.unwrap_or_default())
    }

    /// Remembers what is published of a dataset, and what waits.
    ///
    /// # Errors
    /// A fault of the database.
    pub fn keep_publication(&self, dataset: &str, counted: &Counted) -> Result<()> {
        let mut connection = self.connection();
        let change = connection.transaction().map_err(fault)?;
        keep_publication(&change, dataset, counted)?;
        change.commit().map_err(fault)
    }

    /// How many rows a table had in the version that was counted last, as pair of version and rows.
    ///
    /// # Errors
    /// A fault of the database.
    pub fn extent(&self, dataset: &str) -> Result<Option<(u64, u64)>> {
        let sql = "SELECT version, rows FROM extents WHERE dataset = ?1";
        let extent = self.connection().query_row(sql, [dataset], |row| {
            Ok((row.get::<_, i64>(0)?.unsigned_abs(), row.get::<_, i64>(1)?.unsigned_abs()))
        });
        extent.optional().map_err(fault)
    }

    /// All representatives of released and withheld cells with their kinds, oldest first.
    ///
    /// # Errors
    /// A fault of the database.
    pub fn representatives(&self) -> Result<Vec<(String, Representative)>> {
        let connection = self.connection();
        let sql = "SELECT kind, id, subjects, sketch, value, sd FROM representatives ORDER BY id";
        let mut statement = connection.prepare(sql).map_err(fault)?;
        let representatives = statement.query_map([], read_representative).map_err(fault)?.collect::<Result<_, _>>();
        representatives.map_err(fault)
    }

    /// All released cell definitions, as pairs of column and definition.
    ///
    /// # Errors
    /// A fault of the database.
    pub fn charges(&self) -> Result<Vec<(String, [u8; WIDTH])>> {
        let connection = self.connection();
        let mut statement = connection.prepare("SELECT column_name, definition FROM charges").map_err(fault)?;
        let charges = statement.query_map([], read_charge).map_err(fault)?.collect::<Result<_, _>>();
        charges.map_err(fault)
    }

    /// Remembers what one query decided, all of it or nothing: new representatives with their kinds, and
    /// pairs of column and definition released for the first time.
    ///
    /// # Errors
    /// A fault of the database; also where an id or a pair is taken.
    pub fn record_cells<'a>(
        &self,
        cells: impl Iterator<Item = (&'a str, &'a Representative)>,
        charges: &[(String, [u8; WIDTH])],
    ) -> Result<()> {
        let mut connection = self.connection();
        let change = connection.transaction().map_err(fault)?;
        add_representatives(&change, cells)?;
        add_charges(&change, charges)?;
        change.commit().map_err(fault)
    }

    /// How many subjects a dataset had, and the version in which they were counted.
    ///
    /// # Errors
    /// A fault of the database.
    pub fn population(&self, dataset: &str) -> Result<Option<(i64, u64)>> {
        let sql = "SELECT version, subjects FROM populations WHERE dataset = ?1";
        self.connection().query_row(sql, [dataset], read_population).optional().map_err(fault)
    }

    /// Remembers how many subjects a dataset has in a version.
    ///
    /// # Errors
    /// A fault of the database.
    pub fn remember_population(&self, dataset: &str, version: i64, subjects: u64) -> Result<()> {
        let sql = "INSERT INTO populations VALUES (?1, ?2, ?3)
                   ON CONFLICT (dataset) DO UPDATE SET version = ?2, subjects = ?3";
        self.connection().execute(sql, params![dataset, version, whole(subjects)?]).map_err(fault)?;
        Ok(())
    }

    /// The epoch of the tokens that callers of `agency` asking for `purpose` see: 1, and one more for each that was
    /// begun for them, whether for them alone or among others.
    ///
    /// # Errors
    /// A fault of the database.
    pub fn token_epoch(&self, agency: &str, purpose: &str) -> Result<u64> {
        // Asked with every question. There are few of them, so all are looked at: to find them by their key, the database
        // would make a table of its own for each list of names.
        let sql = "SELECT coalesce(sum(begun), 0) FROM token_epochs
                   WHERE +agency IN ('', ?1) AND +purpose IN ('', ?2)";
        let begun: i64 = first(&self.reading(), sql, [agency, purpose], |row| row.get(0))?.unwrap_or(0);
        Ok(begun.unsigned_abs() + 1)
    }

    /// Begins a new epoch of tokens for callers of an agency, or of all, asking for a purpose, or for any; in force for
    /// whatever is asked afterwards, and left for the hub to log. Returns how many were begun for exactly these.
    ///
    /// # Errors
    /// A fault of the database.
    pub fn begin_token_epoch(&self, agency: Option<&str>, purpose: Option<&str>) -> Result<u64> {
        let mut connection = self.connection();
        let change = connection.transaction().map_err(fault)?;
        let sql = "INSERT INTO token_epochs VALUES (?1, ?2, 1)
                   ON CONFLICT (agency, purpose) DO UPDATE SET begun = begun + 1 RETURNING begun";
        // No agency and no purpose is called by the empty word.
        let names = [agency.unwrap_or_default(), purpose.unwrap_or_default()];
        let begun: i64 = change.query_row(sql, names, |row| row.get(0)).map_err(fault)?;
        let epoch = begun.unsigned_abs();
        let [agency, purpose] = [agency, purpose].map(|name| name.map(str::to_owned));
        queue(&change, &Event::TokensEpoch { agency, purpose, epoch })?;
        change.commit().map_err(fault)?;
        Ok(epoch)
    }

    /// Leaves an event of the command line for the hub to log.
    ///
    /// # Errors
    /// A fault of the database.
    pub fn leave_for_log(&self, event: &Event) -> Result<()> {
        let mut connection = self.connection();
        let change = connection.transaction().map_err(fault)?;
        queue(&change, event)?;
        change.commit().map_err(fault)
    }

    /// Forgets how many subjects a dataset has, so that they are counted anew.
    ///
    /// # Errors
    /// A fault of the database.
    pub fn forget_population(&self, dataset: &str) -> Result<()> {
        self.connection().execute("DELETE FROM populations WHERE dataset = ?1", [dataset]).map_err(fault)?;
        Ok(())
    }

    /// All tombstones.
    ///
    /// # Errors
    /// A fault of the database.
    pub fn tombstones(&self) -> Result<Vec<Tombstone>> {
        let connection = self.connection();
        let mut statement = connection.prepare("SELECT domain, mark, sieve FROM tombstones").map_err(fault)?;
        let tombstones = statement.query_map([], read_tombstone).map_err(fault)?.collect::<Result<_, _>>();
        tombstones.map_err(fault)
    }

    /// Remembers an erasure begun at `begun` (seconds since 1970) with whom it is about, sealed, and their
    /// tombstones: all of it or nothing.
    ///
    /// # Errors
    /// A fault of the database; also where the id is taken.
    pub fn begin_erasure(&self, id: &str, begun: i64, sealed: &[u8], tombstones: &[Tombstone]) -> Result<()> {
        let mut connection = self.connection();
        let change = connection.transaction().map_err(fault)?;
        change
            .execute("INSERT INTO erasures VALUES (?1, ?2, ?3, '{}', NULL)", params![id, begun, sealed])
            .map_err(fault)?;
        {
            let mut insert =
                change.prepare("INSERT OR IGNORE INTO tombstones VALUES (?1, ?2, ?3, ?4)").map_err(fault)?;
            for Tombstone { domain, mark, sieve } in tombstones {
                insert.execute(params![domain, &mark[..], sieve, begun]).map_err(fault)?;
            }
        }
        change.commit().map_err(fault)
    }

    /// Erasures that were begun and not ended, oldest first.
    ///
    /// # Errors
    /// A fault of the database.
    pub fn unfinished_erasures(&self) -> Result<Vec<UnfinishedErasure>> {
        let connection = self.connection();
        let sql = "SELECT id, sealed, rows FROM erasures WHERE sealed IS NOT NULL ORDER BY begun, id";
        let mut statement = connection.prepare(sql).map_err(fault)?;
        let read = |row: &rusqlite::Row<'_>| {
            Ok(UnfinishedErasure { id: row.get("id")?, sealed: row.get("sealed")?, rows: row.get("rows")? })
        };
        let erasures = statement.query_map([], read).map_err(fault)?.collect::<Result<_, _>>();
        erasures.map_err(fault)
    }

    /// Remembers how many rows an erasure takes, as JSON by dataset, before they go.
    ///
    /// # Errors
    /// A fault of the database.
    pub fn count_erased(&self, id: &str, rows: &str) -> Result<()> {
        self.connection().execute("UPDATE erasures SET rows = ?2 WHERE id = ?1", [id, rows]).map_err(fault)?;
        Ok(())
    }

    /// Ends an erasure: its certificate is kept, and whom it was about forgotten.
    ///
    /// # Errors
    /// A fault of the database.
    pub fn end_erasure(&self, id: &str, certificate: &str) -> Result<()> {
        let sql = "UPDATE erasures SET sealed = NULL, certificate = ?2 WHERE id = ?1";
        self.connection().execute(sql, [id, certificate]).map_err(fault)?;
        Ok(())
    }

    /// The certificate of an erasure that has ended, as JSON.
    ///
    /// # Errors
    /// A fault of the database.
    pub fn certificate(&self, id: &str) -> Result<Option<String>> {
        let sql = "SELECT certificate FROM erasures WHERE id = ?1";
        let found = self.connection().query_row(sql, [id], |row| row.get(0)).optional().map_err(fault)?;
        Ok(found.flatten())
    }

    /// Moves everything from the write-ahead log into the database and empties the log, so that nothing
    /// deleted is left in it. Where another process reads the database, the rest follows later.
    ///
    /// # Errors
    /// A fault of the database.
    pub fn flush(&self) -> Result<()> {
        let connection = self.connection();
        // Whoever reads keeps the log from being emptied.
        let _idle = self.reading();
        connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).map_err(fault)
    }
}

/// The first row of what is looked up for every request: the statement is read once.
fn first<T>(
    connection: &Connection,
    sql: &str,
    params: impl Params,
    read: impl FnOnce(&Row<'_>) -> rusqlite::Result<T>,
) -> Result<Option<T>> {
    let mut statement = connection.prepare_cached(sql).map_err(fault)?;
    statement.query_row(params, read).optional().map_err(fault)
}

fn keep_question(connection: &Connection, (query_id, sealed): &(&str, &[u8])) -> Result<()> {
    let mut statement = connection.prepare_cached("INSERT INTO questions VALUES (?1, ?2)").map_err(fault)?;
    statement.execute(params![query_id, sealed]).map_err(fault)?;
    Ok(())
}

fn keep_publication(connection: &Connection, dataset: &str, counted: &Counted) -> Result<()> {
    let Counted { publication, rows } = counted;
    let sql = "INSERT INTO publications VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT (dataset)
               DO UPDATE SET version = ?2, counted = ?3, since = ?4, pending = ?5";
    let Publication { version, counted, since, pending } = publication;
    let since = since.map(|since| since.timestamp_millis());
    let pending: Vec<u8> = pending.iter().flatten().copied().collect();
    let version = version.map(whole).transpose()?;
    connection.execute(sql, params![dataset, version, whole(*counted)?, since, pending]).map_err(fault)?;
    let sql = "INSERT INTO extents VALUES (?1, ?2, ?3) ON CONFLICT (dataset) DO UPDATE SET version = ?2, rows = ?3";
    connection.execute(sql, params![dataset, whole(*counted)?, whole(*rows)?]).map_err(fault)?;
    Ok(())
}

fn add_representatives<'a>(
    change: &rusqlite::Transaction<'_>,
    cells: impl Iterator<Item = (&'a str, &'a Representative)>,
) -> Result<()> {
    let mut insert = change.prepare("INSERT INTO representatives VALUES (?1, ?2, ?3, ?4, ?5, ?6)").map_err(fault)?;
    for (kind, cell) in cells {
        let sketch = cell.sketch.bytes();
        let value = cell.outcome.map(|outcome| outcome.value.to_le_bytes());
        let sd = cell.outcome.map(|outcome| outcome.sd.to_le_bytes());
        insert.execute(params![cell.id, kind, whole(cell.subjects)?, &sketch[..], value, sd]).map_err(fault)?;
    }
    Ok(())
}

fn add_charges(change: &rusqlite::Transaction<'_>, charges: &[(String, [u8; WIDTH])]) -> Result<()> {
    let mut insert = change.prepare("INSERT INTO charges VALUES (?1, ?2)").map_err(fault)?;
    for (column, definition) in charges {
        insert.execute(params![column, definition]).map_err(fault)?;
    }
    Ok(())
}

/// SQLite's integers have a sign.
fn whole(number: u64) -> Result<i64> {
    i64::try_from(number).map_err(Error::internal)
}

fn queue(change: &rusqlite::Transaction<'_>, event: &Event) -> Result<()> {
    let text = serde_json::to_string(event).map_err(Error::internal)?;
    change.execute("INSERT INTO unlogged (event) VALUES (?1)", [text]).map_err(fault)?;
    Ok(())
}

fn read_token(row: &rusqlite::Row<'_>) -> rusqlite::Result<TokenRecord> {
    let time = |at: usize| -> rusqlite::Result<Option<DateTime<Utc>>> {
        Ok(row.get::<_, Option<i64>>(at)?.and_then(|seconds| DateTime::from_timestamp(seconds, 0)))
    };
    Ok(TokenRecord {
        id: row.get(0)?,
        caller: row.get(1)?,
        created: time(2)?.unwrap_or_default(),
        expires: time(3)?,
        revoked: time(4)?,
    })
}

fn read_batch(row: &rusqlite::Row<'_>) -> rusqlite::Result<BatchRecord> {
    Ok(BatchRecord {
        sequence: row.get("sequence")?,
        agency: row.get("agency")?,
        dataset: row.get("dataset")?,
        batch_id: row.get("batch_id")?,
        digest: row.get("digest")?,
        caller: row.get("caller")?,
        done: row.get("done")?,
        receipt: row.get("receipt")?,
    })
}

fn read_publication(row: &rusqlite::Row<'_>) -> rusqlite::Result<Publication> {
    let pending: Vec<u8> = row.get("pending")?;
    Ok(Publication {
        version: row.get::<_, Option<i64>>("version")?.map(i64::unsigned_abs),
        counted: row.get::<_, i64>("counted")?.unsigned_abs(),
        since: row.get::<_, Option<i64>>("since")?.and_then(DateTime::from_timestamp_millis),
        pending: pending.chunks_exact(WIDTH).filter_map(|subject| <[u8; WIDTH]>::try_from(subject).ok()).collect(),
    })
}

fn read_representative(row: &rusqlite::Row<'_>) -> rusqlite::Result<(String, Representative)> {
    let sketch: Vec<u8> = row.get("sketch")?;
    let sketch = Sketch::from_bytes(&sketch)
        .ok_or_else(|| rusqlite::Error::FromSqlConversionFailure(3, Type::Blob, "no sketch".into()))?;
    let value: Option<[u8; 16]> = row.get("value")?;
    let sd: Option<[u8; 8]> = row.get("sd")?;
    let outcome = value.zip(sd);
    let representative = Representative {
        id: row.get("id")?,
        subjects: row.get::<_, i64>("subjects")?.unsigned_abs(),
        sketch,
        outcome: outcome.map(|(value, sd)| Outcome { value: i128::from_le_bytes(value), sd: f64::from_le_bytes(sd) }),
    };
    Ok((row.get("kind")?, representative))
}

fn read_charge(row: &rusqlite::Row<'_>) -> rusqlite::Result<(String, [u8; WIDTH])> {
    Ok((row.get("column_name")?, row.get("definition")?))
}

fn read_population(row: &rusqlite::Row<'_>) -> rusqlite::Result<(i64, u64)> {
    Ok((row.get("version")?, row.get::<_, i64>("subjects")?.unsigned_abs()))
}

fn read_tombstone(row: &rusqlite::Row<'_>) -> rusqlite::Result<Tombstone> {
    Ok(Tombstone { domain: row.get("domain")?, mark: row.get::<_, [u8; MARK]>("mark")?, sieve: row.get("sieve")? })
}

fn fault(error: rusqlite::Error) -> Error {
    match error.sqlite_error_code() {
        Some(rusqlite::ErrorCode::DiskFull) => {
            Error::ResourceLimit("the hub's disk is full; tell the operator, then try again".into())
        }
        _ => Error::internal(error),
    }
}

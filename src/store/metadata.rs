//! What the hub must remember besides rows: tokens, batches, the text of questions, and what the command
//! line wants logged. SQLite in the data folder; no identifier and no plain SQL goes in.

use std::{
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use chrono::{DateTime, Utc};
use rusqlite::{Connection, OptionalExtension, params};

use crate::{
    audit::Event,
    error::{Error, Result},
};

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT;
    CREATE TABLE IF NOT EXISTS tokens (
        id TEXT PRIMARY KEY, caller TEXT NOT NULL, hash BLOB NOT NULL UNIQUE, created INTEGER NOT NULL,
        expires INTEGER, revoked INTEGER) STRICT;
    CREATE TABLE IF NOT EXISTS batches (
        sequence INTEGER PRIMARY KEY AUTOINCREMENT, agency TEXT NOT NULL, dataset TEXT NOT NULL,
        batch_id TEXT NOT NULL, digest BLOB NOT NULL, caller TEXT NOT NULL, done INTEGER NOT NULL,
        receipt TEXT NOT NULL, UNIQUE (agency, dataset, batch_id)) STRICT;
    CREATE TABLE IF NOT EXISTS questions (query_id TEXT PRIMARY KEY, sealed BLOB NOT NULL) STRICT;
    CREATE TABLE IF NOT EXISTS unlogged (id INTEGER PRIMARY KEY AUTOINCREMENT, event TEXT NOT NULL) STRICT;
";

/// The metadata database.
pub struct Metadata {
    connection: Mutex<Connection>,
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

impl Metadata {
    /// Opens the database in the data folder, making it on first start.
    ///
    /// # Errors
    /// [`Error::Setup`] where it cannot be opened or is no database.
    pub fn open(data: &Path) -> Result<Self> {
        let file = data.join("metadata.sqlite");
        let open = || -> rusqlite::Result<Connection> {
            let connection = Connection::open(&file)?;
            connection.busy_timeout(Duration::from_secs(10))?;
            connection.pragma_update(None, "journal_mode", "WAL")?;
            connection.pragma_update(None, "synchronous", "FULL")?;
            connection.pragma_update(None, "secure_delete", "ON")?;
            connection.execute_batch(SCHEMA)?;
            Ok(connection)
        };
        let connection = open().map_err(|e| Error::setup(&file, None, format!("cannot open the metadata: {e}")))?;
        Ok(Self { connection: Mutex::new(connection) })
    }

    fn connection(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
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

    /// Stores a new token together with the event that records it.
    ///
    /// # Errors
    /// A fault of the database.
    pub fn add_token(&self, token: &TokenRecord, hash: &[u8], event: &Event) -> Result<()> {
        let mut connection = self.connection();
        let change = connection.transaction().map_err(fault)?;
        change
            .execute(
                "INSERT INTO tokens VALUES (?1, ?2, ?3, ?4, ?5, NULL)",
                params![token.id, token.caller, hash, token.created.timestamp(), token.expires.map(|t| t.timestamp())],
            )
            .map_err(fault)?;
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

    /// The token with that hash, in force or not.
    ///
    /// # Errors
    /// A fault of the database.
    pub fn token_by_hash(&self, hash: &[u8]) -> Result<Option<TokenRecord>> {
        let sql = "SELECT id, caller, created, expires, revoked FROM tokens WHERE hash = ?1";
        self.connection().query_row(sql, [hash], read_token).optional().map_err(fault)
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
        self.connection().query_row(sql, [agency, dataset, batch_id], read_batch).optional().map_err(fault)
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

    /// Remembers a batch that is about to be committed and returns its sequence.
    ///
    /// # Errors
    /// A fault of the database; also where the id is taken.
    pub fn begin_batch(&self, batch: &BatchRecord) -> Result<i64> {
        let connection = self.connection();
        connection
            .execute(
                "INSERT INTO batches (agency, dataset, batch_id, digest, caller, done, receipt)
                 VALUES (?1, ?2, ?3, ?4, ?5, 0, ?6)",
                params![batch.agency, batch.dataset, batch.batch_id, batch.digest, batch.caller, batch.receipt],
            )
            .map_err(fault)?;
        Ok(connection.last_insert_rowid())
    }

    /// Settles a batch with its final receipt.
    ///
    /// # Errors
    /// A fault of the database.
    pub fn settle_batch(&self, sequence: i64, receipt: &str) -> Result<()> {
        let sql = "UPDATE batches SET done = 1, receipt = ?2 WHERE sequence = ?1";
        self.connection().execute(sql, params![sequence, receipt]).map_err(fault)?;
        Ok(())
    }

    /// Forgets a batch of which nothing was stored, so that its id can be used again.
    ///
    /// # Errors
    /// A fault of the database.
    pub fn drop_batch(&self, sequence: i64) -> Result<()> {
        self.connection().execute("DELETE FROM batches WHERE sequence = ?1", [sequence]).map_err(fault)?;
        Ok(())
    }

    /// Keeps the sealed text of a question.
    ///
    /// # Errors
    /// A fault of the database.
    pub fn keep_question(&self, query_id: &str, sealed: &[u8]) -> Result<()> {
        let sql = "INSERT INTO questions VALUES (?1, ?2)";
        self.connection().execute(sql, params![query_id, sealed]).map_err(fault)?;
        Ok(())
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
        let connection = self.connection();
        let mut statement = connection.prepare("SELECT id, event FROM unlogged ORDER BY id").map_err(fault)?;
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

fn fault(error: rusqlite::Error) -> Error {
    match error.sqlite_error_code() {
        Some(rusqlite::ErrorCode::DiskFull) => {
            Error::ResourceLimit("the hub's disk is full; tell the operator, then try again".into())
        }
        _ => Error::internal(error),
    }
}

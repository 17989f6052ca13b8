//! The access log: append, prove, verify.
//!
//! Entries are lines of JSON, hashed into an RFC 6962 tree whose head is signed with Ed25519. [`tree`]
//! and [`checkpoint`] are pure format; [`log`] does the files. The log knows nothing of what it records
//! beyond [`Event`]; nothing in an event is a value of a record or an identifier.

pub mod checkpoint;
pub mod keeper;
pub mod log;
pub mod question;
pub mod scrub;
pub mod tree;

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use log::Log;

use crate::error::{Error, Result};

/// Where the hub takes the time from; tests put their own in.
pub type Clock = std::sync::Arc<dyn Fn() -> DateTime<Utc> + Send + Sync>;

/// One entry of the log: when, and what.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Entry {
    /// Position in the log, from 0. Not stored in the entry, whose place it is; readers get it from
    /// [`Entry::with_index`].
    #[serde(skip_serializing, default)]
    pub index: u64,
    /// When it was written, by the hub's clock.
    pub at: DateTime<Utc>,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
}

impl Entry {
    /// The entry with its place in the log, as readers get it.
    ///
    /// # Errors
    /// Only a fault of the hub.
    pub fn with_index(&self) -> Result<Value> {
        let mut value = serde_json::to_value(self).map_err(Error::internal)?;
        value["index"] = self.index.into();
        Ok(value)
    }
}

/// What the log records.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "kind")]
pub enum Event {
    /// The hub began to serve, under this policy and these contracts.
    #[serde(rename = "hub.start")]
    HubStart {
        /// Version of the hub.
        build: String,
        /// Policy version.
        policy: String,
        /// Contract version of every dataset.
        contracts: BTreeMap<String, String>,
    },
    /// The hub came up under other policies than before.
    #[serde(rename = "policy.change")]
    PolicyChange {
        /// The policy version before.
        from: String,
        /// The policy version now.
        to: String,
    },
    /// A caller asked. Written before anything is looked at.
    #[serde(rename = "query.begin")]
    QueryBegin {
        /// The query's id.
        query_id: String,
        /// Who asks.
        caller: String,
        /// For which agency.
        agency: String,
        /// Which token was used.
        token_id: String,
        /// Why.
        purpose: String,
        /// Through which door.
        channel: String,
        /// SHA-256 over salt and SQL; salt and SQL lie encrypted beside the log.
        commitment: String,
        /// False where identifiers in the text were replaced before it was kept.
        reproducible: bool,
        /// Policy version.
        policy: String,
    },
    /// How the query ended.
    #[serde(rename = "query.end")]
    QueryEnd {
        /// The query's id.
        query_id: String,
        /// Index of its begin entry.
        begin: u64,
        /// `answered`, or the slug of the error.
        outcome: String,
        /// The rule that refused it, if one did.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        rule: Option<String>,
        /// `exact` or `protected`; absent where nothing was answered.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        protection: Option<String>,
        /// Rows that left the hub.
        rows: u64,
        /// Table versions read.
        tables: BTreeMap<String, i64>,
        /// The published versions of the tables read, where they are others: protected statistics read these.
        #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
        published: BTreeMap<String, i64>,
        /// The exposure at which each field used was read, as `agency.table.field` to exposure.
        fields: BTreeMap<String, String>,
        /// The opaque name the caller got for the table versions.
        snapshot: String,
        /// For faults of the hub: the cause, for the operator.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        cause: Option<String>,
    },
    /// An upload passed its checks and is about to be committed.
    #[serde(rename = "upload.begin")]
    UploadBegin {
        /// The batch.
        batch_id: String,
        /// Its dataset.
        dataset: String,
        /// Who pushes.
        caller: String,
        /// For which agency.
        agency: String,
        /// HMAC of the file's digest.
        digest: String,
    },
    /// What became of an upload.
    #[serde(rename = "upload.end")]
    UploadEnd {
        /// The batch.
        batch_id: String,
        /// Its dataset.
        dataset: String,
        /// Who pushed.
        caller: String,
        /// For which agency.
        agency: String,
        /// `accepted`, `partly_accepted`, `rejected`, or the slug of the error.
        outcome: String,
        /// Rows in the file.
        received: u64,
        /// Rows stored.
        accepted: u64,
        /// Rows refused.
        rejected: u64,
        /// Exact copies, kept once.
        duplicate: u64,
        /// The table version that holds the batch; absent where nothing was stored.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        version: Option<i64>,
    },
    /// A token was made on the command line.
    #[serde(rename = "token.create")]
    TokenCreate {
        /// The token's id, which opens nothing.
        token_id: String,
        /// For whom.
        caller: String,
        /// Until when; absent for tokens without end.
        expires: Option<DateTime<Utc>>,
    },
    /// A token was revoked on the command line; it ended at once, the entry may follow later.
    #[serde(rename = "token.revoke")]
    TokenRevoke {
        /// The token's id.
        token_id: String,
    },
    /// The key that wraps the hub's secrets was being exchanged on the command line. The secrets stay the same.
    #[serde(rename = "keys.rotate")]
    KeysRotate {
        /// The id of the new key, which opens nothing.
        key_id: String,
    },
    /// Recipients see other tokens from now on, by the command line; in force at once, the entry may follow later.
    #[serde(rename = "tokens.epoch")]
    TokensEpoch {
        /// Callers of this agency; absent for all.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        agency: Option<String>,
        /// Asking for this purpose; absent for all.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        purpose: Option<String>,
        /// How many epochs were begun for exactly these. A recipient's own epoch is 1 and the sum of all that
        /// concern it.
        epoch: u64,
    },
    /// Somebody is about to be erased.
    #[serde(rename = "erasure.begin")]
    ErasureBegin {
        /// The erasure's id.
        id: String,
        /// Who erases.
        caller: String,
        /// For which agency.
        agency: String,
        /// Which token was used.
        token_id: String,
        /// Why, as a purpose.
        purpose: String,
        /// How many identifiers were given.
        identifiers: u64,
        /// The legal basis or file, as the caller gave it; names nobody by an identifier.
        basis: String,
        /// Policy version.
        policy: String,
    },
    /// An erasure was done.
    #[serde(rename = "erasure.end")]
    ErasureEnd {
        /// The erasure's id.
        id: String,
        /// How many identifiers were given.
        identifiers: u64,
        /// SHA-256 over the tombstones' marks, sorted.
        marks: String,
        /// Rows erased by dataset, for all that could have named one of them.
        datasets: BTreeMap<String, u64>,
        /// Files of history that were deleted.
        files_deleted: u64,
        /// Bytes of the data folder searched afterwards.
        bytes_searched: u64,
        /// Whether nothing was found then.
        verified: bool,
        /// SHA-256 of the certificate without log index and signature.
        certificate_digest: String,
    },
    /// Somebody read the log.
    #[serde(rename = "log.read")]
    LogRead {
        /// Who read.
        caller: String,
        /// From which entry.
        from: u64,
        /// How many entries at most.
        count: u64,
    },
    /// The hub put files of a table together, or deleted files that no version needs. No row changed.
    #[serde(rename = "store.upkeep")]
    StoreUpkeep {
        /// The dataset.
        dataset: String,
        /// The table version afterwards.
        version: u64,
        /// How many files that version's rows lay in before.
        files_before: u64,
        /// How many they lie in now.
        files_after: u64,
        /// How many old files were deleted.
        deleted: u64,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_from_before_publications_read_and_write_as_they_were() {
        let written = concat!(
            r#"{"at":"2026-01-07T01:00:00Z","kind":"query.end","query_id":"q","begin":1,"outcome":"answered","#,
            r#""protection":"exact","rows":2,"tables":{"cdc.cases":1},"fields":{"cdc.cases.*":"rows"},"snapshot":"s"}"#
        );
        let entry: Entry = serde_json::from_str(written).expect("an entry");
        assert!(matches!(&entry.event, Event::QueryEnd { published, .. } if published.is_empty()));
        assert_eq!(serde_json::to_string(&entry).expect("text"), written);
    }
}

//! The hub's signed word on what became of an upload.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What became of an upload. Holds row numbers and reasons, and no value of any row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Receipt {
    /// The id the sender chose.
    pub batch_id: String,
    /// The dataset.
    pub dataset: String,
    /// Whether all, some or none of the rows were taken.
    pub status: Status,
    /// Data rows in the file.
    pub rows_received: u64,
    /// Rows now in the dataset.
    pub rows_accepted: u64,
    /// Rows refused.
    pub rows_rejected: u64,
    /// Exact copies of rows this source had sent already, or sent twice here; kept once.
    pub rows_duplicate: u64,
    /// Rejected rows by reason.
    pub rejections: BTreeMap<String, u64>,
    /// The first rejected rows, counted from 0 over the file's data rows.
    pub rejected_rows: Vec<RejectedRow>,
    /// Rows in which something was mended, left out or is odd, by kind.
    pub warnings: BTreeMap<String, u64>,
    /// SHA-256 of the file, as in the HTTP field `Content-Digest`.
    pub content_digest: String,
    /// The contract version the rows were checked against.
    pub contract_version: String,
    /// The entry of the access log that records the outcome.
    pub log_index: u64,
    /// Ed25519 over the receipt's JSON without this member, in base64.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub signature: String,
}

/// Whether all, some or none of the rows were taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = ReceiptStatus)]
pub enum Status {
    /// No row was rejected.
    Accepted,
    /// Some rows were rejected.
    PartlyAccepted,
    /// Nothing was stored.
    Rejected,
}

impl Status {
    /// The word receipts and the log use.
    pub fn word(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::PartlyAccepted => "partly_accepted",
            Self::Rejected => "rejected",
        }
    }
}

/// One rejected row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RejectedRow {
    /// Its number in the file, from 0.
    pub row: u64,
    /// The first field at fault; empty where the row as a whole is.
    pub field: String,
    /// Why.
    pub reason: String,
}

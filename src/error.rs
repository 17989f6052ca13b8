//! Everything that can go wrong, in words an outsider may read.
//!
//! Each variant carries only what its reader can act on. What the operator needs besides goes to the
//! log under the query's id, never into the message. Protocols and status codes are `front`'s affair.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::dataset::receipt::Receipt;

/// The result of anything fallible in gridhub.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong. [`Error::slug`] names the kind, stable over versions.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// No credential, or one that is unknown, expired or revoked: these look alike on purpose.
    #[error("no valid access token; send `Authorization: Bearer TOKEN`")]
    Unauthenticated,
    /// The caller has several purposes and named none.
    #[error("name a purpose; this caller has: {}", .allowed.join(", "))]
    PurposeRequired {
        /// The purposes the caller may name.
        allowed: Vec<String>,
    },
    /// The caller named a purpose that is not among its own.
    #[error("purpose `{purpose}` is not open to this caller; it has: {}", .allowed.join(", "))]
    PurposeNotAllowed {
        /// What was asked for.
        purpose: String,
        /// The purposes the caller may name.
        allowed: Vec<String>,
    },
    /// An upload, or a look at the log, that no policy allows.
    #[error("{0}")]
    NotAllowed(String),
    /// No such table in this caller's view, whether or not it exists elsewhere.
    #[error("unknown table `{0}`; GET /v1/datasets lists yours")]
    UnknownTable(String),
    /// No such column in this caller's view, whether or not it exists elsewhere.
    #[error("unknown column `{0}`; GET /v1/datasets/NAME lists the columns of a dataset")]
    UnknownColumn(String),
    /// The statement could not be read or planned.
    #[error("{0}")]
    SqlSyntax(String),
    /// A gate refused the query by its structure.
    #[error("{}", .0.why)]
    Refused(Refusal),
    /// The file cannot be read, or its columns do not fit the contract.
    #[error("{why}")]
    ContractViolation {
        /// What does not fit and what to do about it, without values.
        why: String,
        /// The logged receipt, where rows were looked at and all of them, or the whole batch, refused.
        receipt: Option<Box<Receipt>>,
    },
    /// The batch id was used for other bytes.
    #[error("this batch id was used for other bytes; send the file under a new id")]
    BatchConflict,
    /// The body is not what its digest says.
    #[error("the body does not match its Content-Digest; send it again")]
    DigestMismatch,
    /// Something is larger than the hub takes.
    #[error("{what} is larger than {limit}")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// The limit with its unit.
        limit: String,
    },
    /// A protected answer would release more cells than one query may.
    #[error("the answer has more than {0} protected cells; group by something coarser")]
    TooManyCells(usize),
    /// The deadline passed.
    #[error("the query took longer than {0} s; narrow it or aggregate")]
    Timeout(u64),
    /// Whoever asked wants no answer any more.
    #[error("the query was cancelled")]
    Cancelled,
    /// Too many queries at once.
    #[error("the hub is busy; try again in a moment")]
    Busy,
    /// Nothing may be answered that cannot be logged.
    #[error("the access log cannot be written, so nothing can be answered; tell the operator")]
    LogUnavailable,
    /// Unknown, or not this caller's: these look alike on purpose.
    #[error("not found")]
    NotFound,
    /// An upload in pieces that is unknown, has expired, or is not this caller's: these look alike on purpose.
    #[error(
        "no such upload of this caller; it may have expired, or the hub was started anew: begin another under the \
         same batch id"
    )]
    UnknownUpload,
    /// An upload in pieces goes on elsewhere than its sender thought.
    #[error("the upload goes on at byte {offset}; send from there")]
    UploadOffset {
        /// Where it goes on, in bytes.
        offset: u64,
    },
    /// A piece of an upload is not what its checksum says.
    #[error("the piece does not match its Upload-Checksum; send it again from the same offset")]
    ChecksumMismatch,
    /// A body ended before its end, or nothing of it came for too long.
    #[error("{0}")]
    BrokeOff(String),
    /// Somebody else is at this upload.
    #[error("another request is at this upload; wait for its end, or try again in a moment")]
    Locked,
    /// A version of the protocol of uploads in pieces that the hub does not speak, or none.
    #[error("this hub speaks tus 1.0.0; send `Tus-Resumable: 1.0.0`")]
    UnsupportedVersion,
    /// More at once than one agency may have.
    #[error("{0}")]
    RateLimited(String),
    /// A media type the hub does not speak.
    #[error("{0}")]
    UnsupportedMediaType(String),
    /// A runtime error of visible rows; values are left out.
    #[error("{0}")]
    DataError(String),
    /// The query needs more memory, disk or rows than it may have.
    #[error("{0}")]
    ResourceLimit(String),
    /// A request that cannot be read.
    #[error("{0}")]
    BadRequest(String),
    /// A call with a method the path does not know.
    #[error("this path does not know that method; GET /openapi.json lists what there is")]
    MethodNotAllowed,
    /// A file the operator wrote is wrong.
    #[error("{}{}: {why}", .file.display(), .line.map(|l| format!(":{l}")).unwrap_or_default())]
    Setup {
        /// The file or folder.
        file: PathBuf,
        /// The line, where it is known.
        line: Option<usize>,
        /// What is wrong and what to write instead.
        why: String,
    },
    /// A command was used wrongly.
    #[error("{0}")]
    Usage(String),
    /// The hub could not be reached; nothing is lost.
    #[error("{0}")]
    Unreachable(String),
    /// A refusal that came back from a hub, as its problem document says it.
    #[error("{0}")]
    Remote(String),
    /// A fault of the hub. The text is for its log, not for the caller.
    #[error("something went wrong inside the hub; it is logged")]
    Internal(String),
}

/// Why a gate said no, which rule, and the nearest query that would pass. Made from the query and the
/// policy alone, never from data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Refusal {
    /// The rule's name, stable over versions.
    pub rule: String,
    /// What in the query the rule objects to.
    pub why: String,
    /// The nearest query, or change of the query, that would pass.
    #[serde(rename = "try")]
    pub instead: String,
}

impl Error {
    /// A refusal by `rule`.
    pub fn refused(rule: &str, why: impl Into<String>, instead: impl Into<String>) -> Self {
        Self::Refused(Refusal { rule: rule.into(), why: why.into(), instead: instead.into() })
    }

    /// A file that does not fit its contract.
    pub fn violation(why: impl Into<String>) -> Self {
        Self::ContractViolation { why: why.into(), receipt: None }
    }

    /// Something wrong in a file the operator wrote.
    pub fn setup(file: &Path, line: Option<usize>, why: impl Into<String>) -> Self {
        Self::Setup { file: file.to_owned(), line, why: why.into() }
    }

    /// A fault of the hub, with its cause for the log.
    pub fn internal(cause: impl std::fmt::Display) -> Self {
        Self::Internal(cause.to_string())
    }

    /// The kind of a fault of the hub, for logs: engine texts may carry values, so logs too get what stands
    /// before the first of them and no more.
    pub fn fault(&self) -> Option<String> {
        match self {
            Self::Internal(cause) => {
                Some(cause.split([':', '\'', '"']).next().unwrap_or_default().chars().take(200).collect())
            }
            _ => None,
        }
    }

    /// The kind of error, as it ends the `type` of a problem document.
    pub fn slug(&self) -> &'static str {
        match self {
            Self::Unauthenticated => "unauthenticated",
            Self::PurposeRequired { .. } => "purpose-required",
            Self::PurposeNotAllowed { .. } => "purpose-not-allowed",
            Self::NotAllowed(_) => "not-allowed",
            Self::UnknownTable(_) => "unknown-table",
            Self::UnknownColumn(_) => "unknown-column",
            Self::SqlSyntax(_) => "sql-syntax",
            Self::Refused(_) => "refused",
            Self::ContractViolation { .. } => "contract-violation",
            Self::BatchConflict => "batch-conflict",
            Self::DigestMismatch => "digest-mismatch",
            Self::TooLarge { .. } => "too-large",
            Self::TooManyCells(_) => "too-many-cells",
            Self::Timeout(_) => "timeout",
            Self::Cancelled => "cancelled",
            Self::Busy => "busy",
            Self::LogUnavailable => "log-unavailable",
            Self::NotFound | Self::UnknownUpload => "not-found",
            Self::UploadOffset { .. } => "upload-offset",
            Self::ChecksumMismatch => "checksum-mismatch",
            Self::BrokeOff(_) => "broken-off",
            Self::Locked => "locked",
            Self::UnsupportedVersion => "unsupported-version",
            Self::RateLimited(_) => "rate-limited",
            Self::UnsupportedMediaType(_) => "unsupported-media-type",
            Self::DataError(_) => "data-error",
            Self::ResourceLimit(_) => "resource-limit",
            Self::BadRequest(_) => "bad-request",
            Self::MethodNotAllowed => "method-not-allowed",
            Self::Setup { .. } | Self::Usage(_) | Self::Unreachable(_) | Self::Remote(_) | Self::Internal(_) => {
                "internal"
            }
        }
    }
}

//! Errors as gRPC statuses. The only place of this door where a code is chosen.

use tonic::{
    Code, Status,
    metadata::{AsciiMetadataValue, MetadataMap},
};

use crate::error::Error;

/// Bytes that one header may have: some clients take no more than 8 KiB of all headers together.
const HEADER: usize = 3 << 10;

/// Bytes that the words of an error may have. They go out in a header, each byte that is not ASCII as three.
const WORDS: usize = 1 << 10;

/// The code of an error.
fn code(error: &Error) -> Code {
    match error {
        Error::Unauthenticated => Code::Unauthenticated,
        Error::PurposeRequired { .. }
        | Error::SqlSyntax(_)
        | Error::UnknownTable(_)
        | Error::UnknownColumn(_)
        | Error::ContractViolation { .. }
        | Error::DigestMismatch
        | Error::ChecksumMismatch
        | Error::TooLarge { .. }
        | Error::TooManyCells(_)
        | Error::UnsupportedMediaType(_)
        | Error::UnsupportedVersion
        | Error::DataError(_)
        | Error::BadRequest(_)
        | Error::Usage(_) => Code::InvalidArgument,
        Error::PurposeNotAllowed { .. } | Error::NotAllowed(_) | Error::Refused(_) => Code::PermissionDenied,
        Error::NotFound | Error::UnknownUpload => Code::NotFound,
        Error::BatchConflict => Code::AlreadyExists,
        Error::UploadOffset { .. } => Code::OutOfRange,
        Error::Timeout(_) => Code::DeadlineExceeded,
        Error::Cancelled => Code::Cancelled,
        Error::Busy | Error::RateLimited(_) | Error::ResourceLimit(_) => Code::ResourceExhausted,
        Error::BrokeOff(_) | Error::Locked => Code::Aborted,
        Error::LogUnavailable => Code::Unavailable,
        Error::MethodNotAllowed => Code::Unimplemented,
        Error::Setup { .. } | Error::Unreachable(_) | Error::Remote(_) | Error::Internal(_) => Code::Internal,
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        if let Some(cause) = error.fault() {
            tracing::error!(cause, "a fault of the hub");
        }
        // What operators read stays with them.
        let words = match &error {
            Error::Setup { .. } => Error::Internal(String::new()).to_string(),
            other => other.to_string(),
        };
        let mut status = Self::new(code(&error), shortened(words));
        let headers = status.metadata_mut();
        put(headers, "gridhub-error", error.slug());
        match &error {
            Error::Refused(refusal) => {
                put(headers, "gridhub-rule", &refusal.rule);
                put(headers, "gridhub-try", &refusal.instead);
            }
            Error::PurposeRequired { allowed } | Error::PurposeNotAllowed { allowed, .. } => {
                put(headers, "gridhub-purposes", &allowed.join(", "));
            }
            Error::ContractViolation { receipt: Some(receipt), .. } => {
                put(headers, "gridhub-receipt", &super::ingest::short(receipt));
            }
            _ => {}
        }
        status
    }
}

/// Words that are no longer than a header may be: they may repeat a name that somebody wrote at any length.
fn shortened(mut words: String) -> String {
    if words.len() > WORDS {
        words.truncate(words.floor_char_boundary(WORDS));
        words.push('…');
    }
    words
}

/// Says something in a header; leaves it out where it cannot be said there or is too long for one.
pub(super) fn put(headers: &mut MetadataMap, name: &'static str, words: &str) {
    if words.len() > HEADER {
        return;
    }
    if let Ok(value) = AsciiMetadataValue::try_from(words) {
        headers.insert(name, value);
    }
}

/// A ticket that is unknown, has expired or is another caller's: these look alike on purpose.
pub(super) fn unknown_ticket() -> Status {
    Status::not_found("unknown or expired ticket; ask again")
}

/// A prepared statement that is unknown, has expired or is another caller's.
pub(super) fn unknown_statement() -> Status {
    Status::not_found("unknown or expired prepared statement; prepare it again")
}

/// Statements that change something.
pub(super) fn read_only() -> Status {
    Status::unimplemented(
        "the hub answers questions and is not changed by statements; send rows by bulk ingestion in append mode",
    )
}

/// Transactions and savepoints.
pub(super) fn no_transactions() -> Status {
    Status::unimplemented("the hub has no transactions; each statement stands alone, so switch autocommit on")
}

/// Plans instead of SQL, which would come in beside the gates.
pub(super) fn no_substrait() -> Status {
    Status::unimplemented("the hub takes no Substrait plans; send SQL")
}

/// A request that is none of Flight SQL's.
pub(super) fn unknown_request() -> Status {
    Status::invalid_argument("the request is none that this hub knows of Flight SQL")
}

/// The word for an outcome in metrics.
pub(super) fn outcome(code: Code) -> &'static str {
    match code {
        Code::Ok => "ok",
        Code::Unauthenticated => "unauthenticated",
        Code::PermissionDenied => "refused",
        Code::InvalidArgument | Code::OutOfRange | Code::FailedPrecondition | Code::AlreadyExists => "invalid",
        Code::NotFound => "not-found",
        Code::DeadlineExceeded => "timeout",
        Code::Cancelled => "cancelled",
        Code::ResourceExhausted => "exhausted",
        Code::Unimplemented => "unimplemented",
        Code::Unavailable | Code::Aborted => "unavailable",
        Code::Internal | Code::Unknown | Code::DataLoss => "internal",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_its_rule_and_what_would_pass() {
        let status = Status::from(Error::refused("no-raw", "`person` is sealed", "count people"));
        assert_eq!(status.code(), Code::PermissionDenied);
        assert_eq!(status.message(), "`person` is sealed");
        let header = |name: &str| status.metadata().get(name).and_then(|value| value.to_str().ok());
        assert_eq!(header("gridhub-error"), Some("refused"));
        assert_eq!(header("gridhub-rule"), Some("no-raw"));
        assert_eq!(header("gridhub-try"), Some("count people"));
    }

    #[test]
    fn causes_of_faults_stay_inside() {
        let status = Status::from(Error::internal("cannot read 'secret'"));
        assert_eq!(status.code(), Code::Internal);
        assert!(!format!("{status:?}").contains("secret"), "{status:?}");
    }

    #[test]
    fn words_fit_into_a_header() {
        let status = Status::from(Error::UnknownColumn("温度".repeat(10_000)));
        assert!(status.message().len() <= WORDS + '…'.len_utf8());
        assert!(status.message().starts_with("unknown column `温度") && status.message().ends_with('…'), "{status}");
        let status = Status::from(Error::UnknownColumn("temperature".into()));
        assert!(!status.message().ends_with('…'), "{status}");
    }

    #[test]
    fn what_no_header_can_say_is_left_out() {
        let mut headers = MetadataMap::new();
        put(&mut headers, "gridhub-try", "line\nbreak");
        put(&mut headers, "gridhub-rule", &"x".repeat(HEADER + 1));
        assert!(headers.is_empty());
    }
}

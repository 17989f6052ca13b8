//! Errors as PostgreSQL tells them: a SQLSTATE, the message, and a hint on what would pass. The only place of this door
//! where a SQLSTATE is chosen for an error of the hub.

use pgwire::{
    error::{ErrorInfo, PgWireError},
    messages::response::NoticeResponse,
};

use crate::error::{Error, Refusal};

/// Kinds of refusals that this door makes by itself, as their rules are called, with their SQLSTATEs.
const OWN: [(&str, &str); 8] = [
    (UNKNOWN_SETTING, "42704"),
    (SETTING_VALUE, "22023"),
    (FAILED_TRANSACTION, "25P02"),
    (NO_TRANSACTION, "25P01"),
    (IN_TRANSACTION, "25001"),
    (NO_SAVEPOINT, "3B001"),
    (MANY_SAVEPOINTS, "53400"),
    (UNSUPPORTED, "0A000"),
];

/// A setting that does not exist.
pub(super) const UNKNOWN_SETTING: &str = "unknown-setting";
/// A value that a setting does not take.
pub(super) const SETTING_VALUE: &str = "setting-value";
/// A statement after a failed one, in the same transaction.
pub(super) const FAILED_TRANSACTION: &str = "failed-transaction";
/// A statement that makes sense in a transaction only.
pub(super) const NO_TRANSACTION: &str = "no-transaction";
/// A statement that makes sense outside of transactions only.
pub(super) const IN_TRANSACTION: &str = "in-transaction";
/// A savepoint that does not exist.
pub(super) const NO_SAVEPOINT: &str = "no-savepoint";
/// More savepoints than a transaction may have.
pub(super) const MANY_SAVEPOINTS: &str = "many-savepoints";
/// What PostgreSQL has and the hub does not.
pub(super) const UNSUPPORTED: &str = "unsupported";

/// An error of the hub, as this door tells it. Faults are left in the operator's log, with what may stand there.
pub(super) fn error(error: &Error) -> PgWireError {
    if let Some(cause) = error.fault() {
        tracing::error!(cause, "a fault of the hub");
    }
    PgWireError::UserError(Box::new(told(error)))
}

/// The end of a connection, with a SQLSTATE.
pub(super) fn fatal(code: &str, message: impl Into<String>) -> PgWireError {
    PgWireError::UserError(Box::new(info("FATAL", code, message.into())))
}

/// The end of a connection, with a SQLSTATE and what would pass.
pub(super) fn fatal_with_hint(code: &str, message: impl Into<String>, hint: impl Into<String>) -> PgWireError {
    let mut info = info("FATAL", code, message.into());
    info.hint = Some(hint.into());
    PgWireError::UserError(Box::new(info))
}

/// The same for whoever is not let in: a caller that does not exist, a token that is not its, one that has ended.
pub(super) fn not_let_in() -> PgWireError {
    fatal("28P01", "password authentication failed")
}

/// An error that ends the connection, whatever it is.
pub(super) fn ending(error: PgWireError) -> PgWireError {
    let mut info = sent(error);
    info.severity = "FATAL".into();
    info.severity_nonlocalized = Some("FATAL".into());
    PgWireError::UserError(Box::new(info))
}

/// What is sent of an error. Those of the protocol's library may quote what a client sent, or name types of ours: they
/// keep their SQLSTATE and get words of this door.
pub(super) fn sent(error: PgWireError) -> ErrorInfo {
    let words = match &error {
        PgWireError::UserError(_) => None,
        PgWireError::PortalNotFound(_) => Some("there is no such portal; bind one first"),
        PgWireError::StatementNotFound(_) => Some("there is no such prepared statement; prepare it first"),
        PgWireError::FailedToParseParameter(_)
        | PgWireError::InvalidRustTypeForParameter(_)
        | PgWireError::ParameterIndexOutOfBound(_) => Some("a parameter cannot be read; send it as text"),
        PgWireError::QueryCanceled => Some("canceling statement due to user request"),
        PgWireError::ApiError(_) => Some("something went wrong inside the hub; it is logged"),
        PgWireError::UnsupportedProtocolVersion(..) => Some("this hub speaks version 3 of the protocol"),
        _ => Some("the message does not belong here, or cannot be read"),
    };
    if matches!(error, PgWireError::ApiError(_)) {
        tracing::error!("a fault of the Postgres door");
    }
    let mut info = ErrorInfo::from(error);
    if let Some(words) = words {
        info.message = words.into();
    }
    info.severity_nonlocalized = Some(info.severity.clone());
    info
}

/// Something to tell besides an answer.
pub(super) fn notice(text: impl Into<String>) -> NoticeResponse {
    info("NOTICE", "00000", text.into()).into()
}

fn info(severity: &str, code: &str, message: String) -> ErrorInfo {
    let mut info = ErrorInfo::new(severity.to_owned(), code.to_owned(), message);
    info.severity_nonlocalized = Some(severity.to_owned());
    info
}

fn told(error: &Error) -> ErrorInfo {
    // The credential was good when the connection began.
    let severity = if matches!(error, Error::Unauthenticated) { "FATAL" } else { "ERROR" };
    let mut info = info(severity, sqlstate(error), message(error));
    match error {
        Error::PurposeRequired { allowed } | Error::PurposeNotAllowed { allowed, .. } => {
            info.hint = Some(format!("SET purpose = '…'; this caller has: {}", allowed.join(", ")));
        }
        Error::Refused(Refusal { rule, instead, .. }) => {
            info.detail = own(rule).is_none().then(|| format!("rule: {rule}"));
            info.hint = Some(instead.clone()).filter(|instead| !instead.is_empty());
        }
        Error::UnknownTable(_) => {
            info.hint = Some("\\dt *.*, or information_schema.tables, lists yours".into());
        }
        Error::UnknownColumn(_) => {
            info.hint = Some("\\d NAME, or information_schema.columns, lists the columns of a table".into());
        }
        _ => {}
    }
    info
}

/// What an error is called here; other doors speak of requests and paths.
fn message(error: &Error) -> String {
    match error {
        Error::Unauthenticated => {
            "the credential of this connection is no longer in force; connect with another".into()
        }
        Error::PurposeRequired { .. } => "name a purpose".into(),
        Error::PurposeNotAllowed { purpose, .. } => format!("purpose `{purpose}` is not open to this caller"),
        Error::UnknownTable(name) => format!("unknown table `{name}`"),
        Error::UnknownColumn(name) => format!("unknown column `{name}`"),
        Error::Timeout(_) => "canceling statement due to statement timeout".into(),
        Error::Cancelled => "canceling statement due to user request".into(),
        // What operators read stays with them.
        Error::Setup { .. } => Error::Internal(String::new()).to_string(),
        other => other.to_string(),
    }
}

fn sqlstate(error: &Error) -> &'static str {
    match error {
        Error::Unauthenticated => "28000",
        Error::PurposeRequired { .. } | Error::PurposeNotAllowed { .. } => "22023",
        Error::Refused(refusal) => own(&refusal.rule).unwrap_or("42501"),
        Error::NotAllowed(_) => "42501",
        Error::UnknownTable(_) => "42P01",
        Error::UnknownColumn(_) => "42703",
        Error::SqlSyntax(_) | Error::BadRequest(_) => "42601",
        Error::Timeout(_) | Error::Cancelled => "57014",
        Error::Busy => "53300",
        Error::RateLimited(_) => "53400",
        Error::TooManyCells(_) | Error::TooLarge { .. } => "54000",
        Error::ResourceLimit(_) => "53200",
        Error::DataError(_) | Error::ContractViolation { .. } => "22000",
        Error::LogUnavailable => "58030",
        Error::NotFound => "42704",
        Error::UnsupportedMediaType(_) => "0A000",
        // Errors of uploads, of the command line and of other doors do not come from a question.
        _ => "XX000",
    }
}

fn own(rule: &str) -> Option<&'static str> {
    OWN.iter().find(|(name, _)| *name == rule).map(|(_, code)| *code)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent_of(cause: &Error) -> ErrorInfo {
        sent(error(cause))
    }

    #[test]
    fn kinds_have_their_sqlstates() {
        let allowed = || vec!["epidemiology".to_owned(), "audit".to_owned()];
        for (error, code) in [
            (Error::PurposeRequired { allowed: allowed() }, "22023"),
            (Error::PurposeNotAllowed { purpose: "fun".into(), allowed: allowed() }, "22023"),
            (Error::refused("some-rule", "no", "yes"), "42501"),
            (Error::refused(FAILED_TRANSACTION, "no", ""), "25P02"),
            (Error::NotAllowed("no".into()), "42501"),
            (Error::UnknownTable("t".into()), "42P01"),
            (Error::UnknownColumn("c".into()), "42703"),
            (Error::SqlSyntax("no".into()), "42601"),
            (Error::Timeout(1), "57014"),
            (Error::Cancelled, "57014"),
            (Error::Busy, "53300"),
            (Error::RateLimited("no".into()), "53400"),
            (Error::TooManyCells(1), "54000"),
            (Error::ResourceLimit("no".into()), "53200"),
            (Error::DataError("no".into()), "22000"),
            (Error::LogUnavailable, "58030"),
            (Error::internal("no"), "XX000"),
        ] {
            let info = sent_of(&error);
            assert_eq!((info.severity.as_str(), info.code.as_str()), ("ERROR", code), "{error}");
        }
        assert!(sent_of(&Error::Unauthenticated).is_fatal());
    }

    #[test]
    fn refusals_carry_their_rule_and_what_would_pass() {
        let info = sent_of(&Error::refused("some-rule", "why it is so", "what would pass"));
        assert_eq!(info.message, "why it is so");
        assert_eq!(info.detail.as_deref(), Some("rule: some-rule"));
        assert_eq!(info.hint.as_deref(), Some("what would pass"));
        let info = sent_of(&Error::refused(UNKNOWN_SETTING, "why it is so", ""));
        assert_eq!((info.detail, info.hint), (None, None));
    }

    #[test]
    fn causes_stay_inside() {
        let cause = "the value 420106 of somebody";
        assert!(!sent_of(&Error::internal(cause)).message.contains("420106"));
        for error in [PgWireError::ApiError(cause.into()), PgWireError::FailedToParseParameter(cause.into())] {
            assert!(!sent(error).message.contains("420106"));
        }
        let info = sent(ending(PgWireError::StatementNotFound("420106".into())));
        assert!(info.is_fatal() && !info.message.contains("420106"));
    }
}

//! Errors as RFC 9457 problem documents. The only place where a status code is chosen.

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::{Map, Value, json};

use crate::error::Error;

/// What every `type` begins with.
const TYPE: &str = "https://gridhub.dev/problems/";

/// The status of an error.
pub fn status(error: &Error) -> StatusCode {
    match error {
        Error::Unauthenticated => StatusCode::UNAUTHORIZED,
        Error::PurposeRequired { .. }
        | Error::SqlSyntax(_)
        | Error::DigestMismatch
        | Error::Usage(_)
        | Error::BadRequest(_) => StatusCode::BAD_REQUEST,
        Error::PurposeNotAllowed { .. } | Error::NotAllowed(_) => StatusCode::FORBIDDEN,
        Error::NotFound | Error::UnknownUpload => StatusCode::NOT_FOUND,
        Error::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
        Error::BatchConflict | Error::UploadOffset { .. } => StatusCode::CONFLICT,
        Error::UnsupportedVersion => StatusCode::PRECONDITION_FAILED,
        Error::BrokeOff(_) => StatusCode::REQUEST_TIMEOUT,
        Error::Locked => StatusCode::LOCKED,
        Error::RateLimited(_) => StatusCode::TOO_MANY_REQUESTS,
        // The number is of tus alone; HTTP has no name for it.
        Error::ChecksumMismatch => StatusCode::from_u16(460).unwrap_or(StatusCode::BAD_REQUEST),
        Error::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
        Error::UnsupportedMediaType(_) => StatusCode::UNSUPPORTED_MEDIA_TYPE,
        Error::UnknownTable(_)
        | Error::UnknownColumn(_)
        | Error::Refused(_)
        | Error::ContractViolation { .. }
        | Error::TooManyCells(_)
        | Error::DataError(_)
        | Error::ResourceLimit(_) => StatusCode::UNPROCESSABLE_ENTITY,
        Error::Busy | Error::LogUnavailable => StatusCode::SERVICE_UNAVAILABLE,
        Error::Timeout(_) => StatusCode::GATEWAY_TIMEOUT,
        // The number is of no standard; servers write it down for clients that went away.
        Error::Cancelled => StatusCode::from_u16(499).unwrap_or(StatusCode::BAD_REQUEST),
        Error::Setup { .. } | Error::Unreachable(_) | Error::Remote(_) | Error::Internal(_) => {
            StatusCode::INTERNAL_SERVER_ERROR
        }
    }
}

/// The document itself.
pub fn document(error: &Error) -> Value {
    let slug = error.slug();
    let status = status(error);
    // What operators read stays with them.
    let detail = match error {
        Error::Setup { .. } => Error::Internal(String::new()).to_string(),
        other => other.to_string(),
    };
    let mut members = Map::from_iter([
        ("type".to_owned(), json!(format!("{TYPE}{slug}"))),
        ("title".to_owned(), json!(slug.replace('-', " "))),
        ("status".to_owned(), json!(status.as_u16())),
        ("detail".to_owned(), json!(detail)),
    ]);
    match error {
        Error::Refused(refusal) => {
            members.insert("rule".into(), json!(refusal.rule));
            members.insert("why".into(), json!(refusal.why));
            members.insert("try".into(), json!(refusal.instead));
        }
        Error::ContractViolation { receipt: Some(receipt), .. } => {
            members.insert("receipt".into(), json!(receipt));
        }
        Error::PurposeRequired { allowed } | Error::PurposeNotAllowed { allowed, .. } => {
            members.insert("purposes".into(), json!(allowed));
        }
        Error::UploadOffset { offset } => {
            members.insert("offset".into(), json!(offset));
        }
        _ => {}
    }
    Value::Object(members)
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        if let Some(cause) = self.fault() {
            tracing::error!(cause, "a fault of the hub");
        }
        let mut response = (status(&self), document(&self).to_string()).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if matches!(self, Self::Unauthenticated) {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"gridhub\""));
        }
        let seconds = match self {
            Self::Busy | Self::Locked | Self::RateLimited(_) => Some("1"),
            // Somebody has to see to it first.
            Self::LogUnavailable => Some("30"),
            _ => None,
        };
        if let Some(seconds) = seconds {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static(seconds));
        }
        // For those who tell of the request: its slug, and which one it was.
        response.extensions_mut().insert(self);
        response
    }
}

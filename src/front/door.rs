//! What the routes of the HTTP door share: the hub behind it, who is asking, and how requests say what they carry.
//! Knows no route.

use std::{sync::Arc, time::Duration};

use axum::{
    extract::{FromRequestParts, Query},
    http::{HeaderMap, StatusCode, header, request::Parts},
};
use metrics_exporter_prometheus::PrometheusHandle;
use serde::Deserialize;
use uuid::Uuid;

use crate::{
    error::{Error, Result},
    hub::{Hub, Received},
    identity::Credential,
    resumable::Uploads,
    validate::Format,
};

/// What handlers share.
#[derive(Clone)]
pub(super) struct Door {
    pub(super) hub: Arc<Hub>,
    pub(super) uploads: Arc<Uploads>,
    pub(super) body_limit: u64,
    pub(super) silence: Duration,
    pub(super) metrics: Option<PrometheusHandle>,
    pub(super) open_metrics: bool,
}

/// A caller, by `Authorization: Bearer`.
pub(super) struct Caller(pub(super) Credential);

impl FromRequestParts<Door> for Caller {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, door: &Door) -> Result<Self> {
        let header = parts.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let token = header
            .and_then(|value| value.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, token)| token.trim())
            .ok_or(Error::Unauthenticated)?;
        door.hub.authenticate(token).await.map(Self)
    }
}

/// The members of a query string.
pub(super) struct Members<T>(pub(super) T);

impl<T: serde::de::DeserializeOwned> FromRequestParts<Door> for Members<T> {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &Door) -> Result<Self> {
        Query::try_from_uri(&parts.uri).map(|Query(members)| Self(members)).map_err(|_| {
            Error::BadRequest("the query string cannot be read; give each member once, in its form".into())
        })
    }
}

/// The query string of whatever is asked for a purpose.
#[derive(Deserialize)]
pub(super) struct Purpose {
    pub(super) purpose: Option<String>,
}

/// Runs a step of the hub to its end, also when the client goes away meanwhile: what was begun is
/// settled and recorded.
pub(super) async fn to_its_end<T: Send + 'static>(step: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
    tokio::spawn(step).await.map_err(Error::internal)?
}

/// Whether a batch was taken now or before.
pub(super) fn status_of(received: &Received) -> StatusCode {
    if received.again { StatusCode::OK } else { StatusCode::CREATED }
}

/// How a file is written, by its media type.
pub(super) fn format_of(media_type: &str) -> Result<Format> {
    Format::from_media_type(media_type).ok_or_else(|| {
        Error::UnsupportedMediaType(
            "send application/vnd.apache.parquet, application/vnd.apache.arrow.stream or text/csv".into(),
        )
    })
}

/// A body is the file itself: what a coding unfolds to has no length that could be promised.
pub(super) fn refuse_encodings(headers: &HeaderMap) -> Result<()> {
    let values = headers.get_all(header::CONTENT_ENCODING).iter();
    let codings = values.flat_map(|value| value.to_str().unwrap_or("unreadable").split(','));
    match codings.map(str::trim).all(|coding| coding.is_empty() || coding.eq_ignore_ascii_case("identity")) {
        true => Ok(()),
        false => Err(Error::UnsupportedMediaType(
            "send the file without Content-Encoding; Parquet is compressed inside".into(),
        )),
    }
}

/// The id of a batch, which its sender made.
pub(super) fn batch_id(text: &str) -> Result<Uuid> {
    Uuid::parse_str(text).map_err(|_| {
        Error::BadRequest("the batch id is not a UUID; make one and keep it for every try of the same file".into())
    })
}

/// What a header says; nothing where it is no text.
pub(super) fn text_header(headers: &HeaderMap, name: &str) -> Option<String> {
    Some(headers.get(name)?.to_str().ok()?.to_owned())
}

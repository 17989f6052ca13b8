//! What the routes of the HTTP door share: the hub behind it, who is asking, and how requests say what they carry.
//! Knows no route.

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    extract::{FromRequest, FromRequestParts, Path, Query, Request, rejection::JsonRejection},
    http::{HeaderMap, HeaderValue, StatusCode, header, request::Parts},
};
use metrics_exporter_prometheus::PrometheusHandle;
use serde::{Deserialize, de::DeserializeOwned};
use tokio::time::timeout;
use tracing::Instrument;
use uuid::Uuid;

use super::{listen::Peer, requests::Asker};
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

/// A caller, by `Authorization: Bearer`; without that header, by the certificate of its connection.
pub(super) struct Caller(pub(super) Credential);

impl FromRequestParts<Door> for Caller {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, door: &Door) -> Result<Self> {
        let credential = match parts.headers.get(header::AUTHORIZATION) {
            Some(header) => door.hub.authenticate(bearer(header)?).await?,
            None => {
                let peer = parts.extensions.get::<Peer>();
                let certificate = peer.and_then(|peer| peer.certificate.as_ref()).ok_or(Error::Unauthenticated)?;
                door.hub.authenticate_by_certificate(certificate)?
            }
        };
        if let Some(asker) = parts.extensions.get::<Asker>() {
            asker.is(&credential.caller.id);
        }
        Ok(Self(credential))
    }
}

fn bearer(header: &HeaderValue) -> Result<&str> {
    let header = header.to_str().map_err(|_| Error::Unauthenticated)?;
    let said = header.split_once(' ').filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    said.map(|(_, token)| token.trim()).ok_or(Error::Unauthenticated)
}

/// A short document of JSON that a request carries, or why it cannot be read.
pub(super) struct Document<T>(pub(super) Result<Json<T>, JsonRejection>);

impl<T: DeserializeOwned + Send> FromRequest<Door> for Document<T> {
    type Rejection = Error;

    async fn from_request(request: Request, door: &Door) -> Result<Self> {
        // It is short, so all of it may take no longer than a piece of a long one.
        match timeout(door.silence, Json::<T>::from_request(request, door)).await {
            Ok(read) => Ok(Self(read)),
            Err(_) => Err(Error::BrokeOff("the request did not come to its end in time; send it again".into())),
        }
    }
}

/// The named segments of a path.
pub(super) struct Segments<T>(pub(super) T);

impl<T: DeserializeOwned + Send> FromRequestParts<Door> for Segments<T> {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, door: &Door) -> Result<Self> {
        // A path that is no text names nothing.
        let Path(segments) = Path::from_request_parts(parts, door).await.map_err(|_| Error::NotFound)?;
        Ok(Self(segments))
    }
}

/// The members of a query string.
pub(super) struct Members<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequestParts<Door> for Members<T> {
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
    // Boxed before it is handed on, since every hand that it goes through would copy it.
    let step = Box::pin(step);
    tokio::spawn(step.in_current_span()).await.map_err(Error::internal)?
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

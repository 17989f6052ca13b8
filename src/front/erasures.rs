//! Erasures over HTTP. Whom they are about is told in the body alone: addresses and headers end in logs.

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, Path, State, rejection::JsonRejection},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::Deserialize;
use uuid::Uuid;

use super::door::{Caller, Door, Members, Purpose, to_its_end};
use crate::{
    error::{Error, Result},
    hub::{Erasure, RawIdentifier},
};

/// The routes, with a limit of 1 MiB on the body.
pub(super) fn routes() -> Router<Door> {
    Router::new()
        .route("/v1/erasures", post(erase))
        .route("/v1/erasures/{id}", get(certificate))
        .layer(DefaultBodyLimit::max(1 << 20))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    identifiers: Vec<RawIdentifier>,
    #[serde(default)]
    basis: String,
}

async fn erase(
    State(door): State<Door>,
    Caller(caller): Caller,
    Members(asked): Members<Purpose>,
    body: Result<Json<Asked>, JsonRejection>,
) -> Result<Response> {
    // What the reader of JSON says of a fault may quote the body.
    let Json(Asked { identifiers, basis }) = body.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => Error::TooLarge { what: "the request", limit: "1 MiB".into() },
        StatusCode::UNSUPPORTED_MEDIA_TYPE => {
            Error::UnsupportedMediaType("send the identifiers as application/json".into())
        }
        _ => Error::BadRequest(
            "the request must be JSON: {\"identifiers\": [{\"kind\": \"cn_resident_id\", \"value\": \"…\"}], \
             \"basis\": \"…\"}"
                .into(),
        ),
    })?;
    let erasure = Erasure { identifiers, basis };
    let erasing = async move { door.hub.erase(&caller, asked.purpose.as_deref(), erasure).await };
    Ok(Json(to_its_end(erasing).await?).into_response())
}

async fn certificate(
    State(door): State<Door>,
    Caller(caller): Caller,
    Path(id): Path<String>,
    Members(asked): Members<Purpose>,
) -> Result<Response> {
    let id = Uuid::parse_str(&id).map_err(|_| Error::NotFound)?;
    Ok(Json(door.hub.certificate(&caller, asked.purpose.as_deref(), id)?).into_response())
}

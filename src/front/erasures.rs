//! Erasures over HTTP. Whom they are about is told in the body alone: addresses and headers end in logs.

use axum::{
    Json,
    extract::{DefaultBodyLimit, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use super::door::{Caller, Document, Door, Members, Purpose, Segments, to_its_end};
use crate::{
    error::{Error, Result},
    hub::{Certificate, Erasure, RawIdentifier},
};

/// The routes, with a limit of 1 MiB on the body.
pub(super) fn routes() -> OpenApiRouter<Door> {
    OpenApiRouter::new().routes(routes!(erase)).routes(routes!(certificate)).layer(DefaultBodyLimit::max(1 << 20))
}

/// Whom to erase.
#[derive(Deserialize, ToSchema)]
#[schema(as = ErasureRequest)]
#[serde(deny_unknown_fields)]
struct Asked {
    /// By which identifiers; all rows that name one of them go.
    #[schema(min_items = 1, max_items = 1000)]
    identifiers: Vec<RawIdentifier>,
    /// The legal basis or file, which goes into the log and must name nobody.
    #[serde(default)]
    #[schema(max_length = 300)]
    basis: String,
}

/// Erase people from all datasets, for officers
#[utoipa::path(
    post,
    path = "/v1/erasures",
    tag = "erasures",
    params(("purpose" = Option<String>, Query, description = "what for; needed of callers with several purposes")),
    request_body(
        content = Asked,
        content_type = "application/json",
        example = json!({ "identifiers": [{ "kind": "cn_mobile", "value": "14100000000" }], "basis": "file 17/2026" })
    ),
    responses((status = 200, description = "the signed certificate", body = Certificate))
)]
async fn erase(
    State(door): State<Door>,
    Caller(caller): Caller,
    Members(asked): Members<Purpose>,
    Document(body): Document<Asked>,
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

/// The certificate of an erasure again
#[utoipa::path(
    get,
    path = "/v1/erasures/{id}",
    tag = "erasures",
    params(
        ("id" = Uuid, Path, description = "the erasure, as its certificate names it"),
        ("purpose" = Option<String>, Query, description = "what for; needed of callers with several purposes"),
    ),
    responses((status = 200, description = "the certificate", body = Certificate))
)]
async fn certificate(
    State(door): State<Door>,
    Caller(caller): Caller,
    Segments(id): Segments<String>,
    Members(asked): Members<Purpose>,
) -> Result<Response> {
    let id = Uuid::parse_str(&id).map_err(|_| Error::NotFound)?;
    Ok(Json(door.hub.certificate(&caller, asked.purpose.as_deref(), id)?).into_response())
}

//! The HTTP door.

use std::{net::SocketAddr, sync::Arc};

use axum::{
    Json, Router,
    body::Body,
    extract::{ConnectInfo, DefaultBodyLimit, FromRequestParts, Path, Query, Request, State, rejection::JsonRejection},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header, request::Parts},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post, put},
};
use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use datafusion::common::ScalarValue;
use metrics_exporter_prometheus::PrometheusHandle;
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::answer::{self, AnswerFormat};
use crate::{
    audit::Entry,
    disclose::{Small, Wishes},
    error::{Error, Result},
    hub::{Hub, Push, Question},
    identity::Credential,
    validate::Format,
};

/// How long running requests may take once the hub was asked to stop.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(10);

/// What handlers share.
#[derive(Clone)]
struct Door {
    hub: Arc<Hub>,
    metrics: Option<PrometheusHandle>,
    open_metrics: bool,
}

/// Everything the HTTP door needs besides a hub.
#[derive(Clone, Default)]
pub struct Options {
    /// Where metrics are kept.
    pub metrics: Option<PrometheusHandle>,
    /// Whether health and metrics answer to other addresses than loopback.
    pub open_metrics: bool,
    /// The longest body.
    pub body_limit: usize,
}

/// The routes of a hub.
pub fn router(hub: Arc<Hub>, options: Options) -> Router {
    let door = Door { hub, metrics: options.metrics, open_metrics: options.open_metrics };
    let operations = Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route("/openapi.json", get(openapi))
        .layer(middleware::from_fn_with_state(door.clone(), loopback_only));
    // Questions are short; only files are long.
    let questions = Router::new()
        .route("/v1/sql", post(sql))
        .route("/v1/explain", post(explain))
        .layer(DefaultBodyLimit::max(1 << 20));
    Router::new()
        .route("/v1/datasets", get(datasets))
        .route("/v1/datasets/{dataset}", get(dataset))
        .route("/v1/datasets/{dataset}/batches/{batch}", put(push).get(receipt))
        .route("/v1/log/checkpoint", get(checkpoint))
        .route("/v1/log/verifier", get(verifier))
        .route("/v1/log/tile/0/{*tile}", get(hash_tile))
        .route("/v1/log/entries", get(log_entries))
        .layer(DefaultBodyLimit::max(options.body_limit))
        .merge(questions)
        .merge(operations)
        .fallback(async || Error::NotFound)
        .method_not_allowed_fallback(async || Error::MethodNotAllowed)
        .layer(middleware::from_fn(count))
        .with_state(door)
}

/// A caller, by `Authorization: Bearer`.
struct Caller(Credential);

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
struct Members<T>(T);

impl<T: serde::de::DeserializeOwned> FromRequestParts<Door> for Members<T> {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &Door) -> Result<Self> {
        Query::try_from_uri(&parts.uri).map(|Query(members)| Self(members)).map_err(|_| {
            Error::BadRequest("the query string cannot be read; give each member once, in its form".into())
        })
    }
}

#[derive(Deserialize)]
struct Purpose {
    purpose: Option<String>,
}

async fn datasets(
    State(door): State<Door>,
    Caller(caller): Caller,
    Members(asked): Members<Purpose>,
) -> Result<Response> {
    let listed = door.hub.catalogue(&caller, asked.purpose.as_deref())?;
    Ok(Json(json!({ "datasets": listed })).into_response())
}

async fn dataset(
    State(door): State<Door>,
    Caller(caller): Caller,
    Path(name): Path<String>,
    Members(asked): Members<Purpose>,
) -> Result<Response> {
    let listed = door.hub.catalogue(&caller, asked.purpose.as_deref())?;
    let found = listed.into_iter().find(|dataset| dataset.name == name).ok_or(Error::NotFound)?;
    Ok(Json(found).into_response())
}

#[derive(Deserialize)]
struct PushOptions {
    #[serde(default)]
    dry_run: bool,
}

async fn push(
    State(door): State<Door>,
    Caller(caller): Caller,
    Path((dataset, batch)): Path<(String, String)>,
    Members(options): Members<PushOptions>,
    headers: HeaderMap,
    body: Result<Bytes, axum::extract::rejection::BytesRejection>,
) -> Result<Response> {
    let batch_id = batch_id(&batch)?;
    let media_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let format = Format::from_media_type(media_type).ok_or_else(|| {
        Error::UnsupportedMediaType(
            "send application/vnd.apache.parquet, application/vnd.apache.arrow.stream or text/csv".into(),
        )
    })?;
    let bytes = body.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => {
            Error::TooLarge { what: "the body", limit: "this hub's limit; send the file in parts".into() }
        }
        _ => Error::violation("the body broke off; send it again under the same id"),
    })?;
    let push = Push {
        dataset,
        batch_id,
        format,
        contract_version: text_header(&headers, "gridhub-contract-version"),
        content_digest: content_digest(&headers)?,
        bytes,
        dry_run: options.dry_run,
    };
    let received = to_its_end(async move { door.hub.upload(&caller, push).await }).await?;
    let status = if received.again || options.dry_run { StatusCode::OK } else { StatusCode::CREATED };
    Ok((status, Json(received.receipt)).into_response())
}

async fn receipt(
    State(door): State<Door>,
    Caller(caller): Caller,
    Path((dataset, batch)): Path<(String, String)>,
) -> Result<Response> {
    let batch = Uuid::parse_str(&batch).map_err(|_| Error::NotFound)?;
    Ok(Json(door.hub.receipt(&caller, &dataset, batch)?).into_response())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    sql: String,
    #[serde(default)]
    purpose: Option<String>,
    #[serde(default)]
    params: Vec<Value>,
    #[serde(default)]
    interval: bool,
    #[serde(default)]
    small_cells: Option<String>,
}

impl Asked {
    fn question(body: Result<Json<Self>, JsonRejection>) -> Result<Question> {
        let Json(asked) = body.map_err(|rejection| match rejection.status() {
            StatusCode::PAYLOAD_TOO_LARGE => Error::TooLarge { what: "the request", limit: "1 MiB".into() },
            StatusCode::UNSUPPORTED_MEDIA_TYPE => {
                Error::UnsupportedMediaType("send the question as application/json".into())
            }
            _ => Error::SqlSyntax(
                "the request must be JSON: {\"sql\": \"SELECT …\", \"purpose\": \"…\"}; GET /openapi.json lists \
                 all members"
                    .into(),
            ),
        })?;
        let params = asked.params.iter().map(parameter).collect::<Result<_>>()?;
        let small = asked.small_cells.as_deref().map(small_cells).transpose()?.unwrap_or_default();
        let wishes = Wishes { interval: asked.interval, small };
        Ok(Question { sql: asked.sql, purpose: asked.purpose, params, wishes, channel: "http" })
    }
}

fn small_cells(word: &str) -> Result<Small> {
    serde_json::from_value(word.into()).map_err(|_| {
        let word: String = word.chars().take(64).collect();
        Error::BadRequest(format!("`small_cells` cannot be `{word}`; write `leave-out`, `merge` or `roll-up`"))
    })
}

fn parameter(value: &Value) -> Result<ScalarValue> {
    Ok(match value {
        Value::Null => ScalarValue::Null,
        Value::Bool(value) => ScalarValue::from(*value),
        Value::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(whole), _) => ScalarValue::from(whole),
            (None, Some(number)) => ScalarValue::from(number),
            (None, None) => return Err(Error::SqlSyntax("a number in `params` is too large".into())),
        },
        Value::String(text) => ScalarValue::from(text.as_str()),
        _ => return Err(Error::SqlSyntax("`params` holds numbers, texts, booleans and nulls".into())),
    })
}

async fn sql(
    State(door): State<Door>,
    Caller(caller): Caller,
    headers: HeaderMap,
    body: Result<Json<Asked>, JsonRejection>,
) -> Result<Response> {
    let format = AnswerFormat::from_accept(text_header(&headers, "accept").as_deref())?;
    let question = Asked::question(body)?;
    let answered = to_its_end(async move { door.hub.query(&caller, question).await }).await?;
    let body = answer::write(&answered, format)?;
    let mut response = Response::new(Body::from(body));
    let protection = serde_json::to_string(&answered.released.protection).map_err(Error::internal)?;
    let mut put = |name: &'static str, value: &str| {
        if let Ok(value) = HeaderValue::from_str(value) {
            response.headers_mut().insert(HeaderName::from_static(name), value);
        }
    };
    put("content-type", format.media_type());
    put("gridhub-query-id", &answered.query_id);
    put("gridhub-log-index", &answered.log_index.to_string());
    put("gridhub-protection", &protection);
    put("gridhub-snapshot", &answered.snapshot);
    put("gridhub-policy", &answered.policy);
    if !answered.released.notices.is_empty() {
        put("gridhub-notices", &json!(answered.released.notices).to_string());
    }
    put("cache-control", "no-store");
    Ok(response)
}

/// Runs a step of the hub to its end, also when the client goes away meanwhile: what was begun is
/// settled and recorded.
async fn to_its_end<T: Send + 'static>(step: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
    tokio::spawn(step).await.map_err(Error::internal)?
}

async fn explain(
    State(door): State<Door>,
    Caller(caller): Caller,
    body: Result<Json<Asked>, JsonRejection>,
) -> Result<Response> {
    let question = Asked::question(body)?;
    Ok(Json(to_its_end(async move { door.hub.explain(&caller, question).await }).await?).into_response())
}

async fn checkpoint(State(door): State<Door>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], door.hub.checkpoint()).into_response()
}

async fn verifier(State(door): State<Door>) -> String {
    format!("{}\n", door.hub.verifier())
}

/// A tile of leaf hashes, 256 to a full one, named as in C2SP tlog-tiles: `000`, `x001/000`, `000.p/17`.
async fn hash_tile(State(door): State<Door>, Path(tile): Path<String>) -> Result<Response> {
    let (number, width) = match tile.split_once(".p/") {
        Some((number, width)) => (number, width.parse().ok().filter(|width| (1..256).contains(width))),
        None => (tile.as_str(), Some(256)),
    };
    let digits: String = number.split('/').map(|part| part.strip_prefix('x').unwrap_or(part)).collect();
    let place = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(256)).zip(width);
    let (first, width) = place.ok_or(Error::NotFound)?;
    let hashes = door.hub.log_hashes(first, first.saturating_add(width));
    if hashes.len() as u64 != width {
        return Err(Error::NotFound);
    }
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], hashes.concat()).into_response())
}

#[derive(Deserialize)]
struct Entries {
    #[serde(default)]
    from: u64,
    #[serde(default = "hundred")]
    count: usize,
    purpose: Option<String>,
}

fn hundred() -> usize {
    100
}

async fn log_entries(
    State(door): State<Door>,
    Caller(caller): Caller,
    Members(asked): Members<Entries>,
) -> Result<Response> {
    let entries = door.hub.log_entries(&caller, asked.purpose.as_deref(), asked.from, asked.count).await?;
    let listed = entries.iter().map(Entry::with_index).collect::<Result<Vec<_>>>()?;
    Ok(Json(json!({ "entries": listed })).into_response())
}

async fn ready(State(door): State<Door>) -> Response {
    match door.hub.is_ready() {
        true => "ready\n".into_response(),
        false => (StatusCode::SERVICE_UNAVAILABLE, "not ready\n").into_response(),
    }
}

async fn metrics(State(door): State<Door>) -> Response {
    match &door.metrics {
        Some(metrics) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], metrics.render()).into_response(),
        None => Error::NotFound.into_response(),
    }
}

/// The interface in OpenAPI 3.1.
async fn openapi() -> Response {
    Json(description()).into_response()
}

/// The OpenAPI document.
pub fn description() -> Value {
    let problem =
        json!({ "description": "an RFC 9457 problem document", "content": { "application/problem+json": {} } });
    let operation = |summary: &str, ok: &str, what: &str| json!({ "summary": summary, "responses": { ok: { "description": what }, "default": problem } });
    let question = json!({
        "required": true,
        "content": { "application/json": { "schema": {
            "type": "object", "required": ["sql"], "additionalProperties": false,
            "properties": {
                "sql": { "type": "string" }, "purpose": { "type": "string" }, "params": { "type": "array" },
                "interval": {
                    "type": "boolean", "default": false,
                    "description": "whether each protected number `n` comes with the ends of its 95 % interval, \
                        in columns `n_low` and `n_high`",
                },
                "small_cells": {
                    "enum": ["leave-out", "merge", "roll-up"], "default": "leave-out",
                    "description": "what becomes of protected cells of too few people: absent, one row of all of \
                        them, or rows of larger divisions; column `answered_at` says which",
                },
            },
        } } },
    });
    let mut ask = operation("ask", "200", "the answer, in the format of Accept");
    ask["requestBody"] = question.clone();
    let mut explain = operation("what a query would be answered with, or why not", "200", "the explanation");
    explain["requestBody"] = question;
    json!({
        "openapi": "3.1.0",
        "info": { "title": "gridhub", "version": env!("CARGO_PKG_VERSION") },
        "components": { "securitySchemes": { "token": { "type": "http", "scheme": "bearer" } } },
        "security": [{ "token": [] }],
        "paths": {
            "/v1/datasets": { "get": operation("the catalogue as this caller sees it", "200", "datasets with exposures") },
            "/v1/datasets/{dataset}": { "get": operation("one dataset", "200", "its fields with exposures") },
            "/v1/datasets/{dataset}/batches/{batch}": {
                "put": operation("push a batch", "201", "the receipt"),
                "get": operation("the receipt again", "200", "the receipt"),
            },
            "/v1/sql": { "post": ask },
            "/v1/explain": { "post": explain },
            "/v1/log/checkpoint": { "get": operation("the newest signed checkpoint", "200", "a C2SP signed note") },
            "/v1/log/entries": { "get": operation("readable entries, for officers", "200", "entries") },
        },
    })
}

async fn loopback_only(State(door): State<Door>, request: Request, next: Next) -> Response {
    // Without a known peer the request came from inside the process, as tests do.
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|peer| peer.0.ip());
    match door.open_metrics || peer.is_none_or(|ip| ip.is_loopback()) {
        true => next.run(request).await,
        false => Error::NotFound.into_response(),
    }
}

/// Counts requests by route and status; paths themselves may carry what somebody typed.
async fn count(request: Request, next: Next) -> Response {
    let method = match *request.method() {
        Method::GET => "GET",
        Method::PUT => "PUT",
        Method::POST => "POST",
        _ => "other",
    };
    let started = std::time::Instant::now();
    let response = next.run(request).await;
    let status = response.status().as_u16().to_string();
    metrics::counter!("gridhub_http_requests_total", "method" => method, "status" => status).increment(1);
    metrics::histogram!("gridhub_http_seconds", "method" => method).record(started.elapsed().as_secs_f64());
    response
}

fn batch_id(text: &str) -> Result<Uuid> {
    Uuid::parse_str(text).map_err(|_| {
        Error::BadRequest("the batch id is not a UUID; make one and keep it for every try of the same file".into())
    })
}

fn text_header(headers: &HeaderMap, name: &str) -> Option<String> {
    Some(headers.get(name)?.to_str().ok()?.to_owned())
}

/// SHA-256 from `Content-Digest` (RFC 9530); other algorithms are ignored, as that standard asks.
fn content_digest(headers: &HeaderMap) -> Result<Option<Vec<u8>>> {
    let Some(header) = text_header(headers, "content-digest") else { return Ok(None) };
    for part in header.split(',') {
        if let Some(encoded) = part.trim().strip_prefix("sha-256=") {
            let encoded = encoded.strip_prefix(':').and_then(|encoded| encoded.strip_suffix(':'));
            let digest = encoded.and_then(|encoded| BASE64.decode(encoded).ok());
            return digest.map(Some).ok_or(Error::DigestMismatch);
        }
    }
    Ok(None)
}

/// Serves until `stop` resolves, then lets running requests finish.
///
/// # Errors
/// [`Error::Unreachable`] where the listener fails.
pub async fn serve(
    listener: tokio::net::TcpListener,
    router: Router,
    stop: impl Future<Output = ()> + Send + 'static,
) -> Result<()> {
    let (stopping, stopped) = tokio::sync::oneshot::channel();
    let server = axum::serve(listener, router.into_make_service_with_connect_info::<SocketAddr>())
        .with_graceful_shutdown(async move {
            stop.await;
            let _ = stopping.send(());
        });
    // A client that never finishes its request does not keep the hub up.
    let patience = async {
        let _ = stopped.await;
        tokio::time::sleep(PATIENCE).await;
    };
    tokio::select! {
        ended = server.into_future() => ended.map_err(|e| Error::Unreachable(format!("the HTTP door failed: {e}"))),
        () = patience => Ok(()),
    }
}

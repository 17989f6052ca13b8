//! The HTTP door: its routes, what each of them reads and writes, and how it is served.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    body::Body,
    extract::{ConnectInfo, DefaultBodyLimit, Path, Request, State, rejection::JsonRejection},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post, put},
};
use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use datafusion::common::ScalarValue;
use metrics_exporter_prometheus::PrometheusHandle;
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    answer::{self, AnswerFormat},
    door::{Caller, Door, Members, Purpose, batch_id, format_of, refuse_encodings, status_of, text_header, to_its_end},
    erasures, intake, uploads,
};
use crate::{
    audit::Entry,
    disclose::{Small, Wishes},
    error::{Error, Result},
    hub::{Hub, Push, Question},
    resumable::{self, Uploads},
};

/// How long running requests may take once the hub was asked to stop.
const PATIENCE: Duration = Duration::from_secs(10);

/// Everything the HTTP door needs besides a hub.
#[derive(Clone)]
pub struct Options {
    /// Where metrics are kept.
    pub metrics: Option<PrometheusHandle>,
    /// Whether health and metrics answer to other addresses than loopback.
    pub open_metrics: bool,
    /// The longest file, in bytes, whether it comes whole or in pieces.
    pub body_limit: u64,
    /// How long a sender may send nothing before its body counts as broken off.
    pub silence: Duration,
    /// How many uploads in pieces are kept, and how long.
    pub uploads: resumable::Limits,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            metrics: None,
            open_metrics: false,
            body_limit: 4 << 30,
            silence: Duration::from_secs(60),
            uploads: resumable::Limits::default(),
        }
    }
}

/// The routes of a hub.
pub fn router(hub: Arc<Hub>, options: Options) -> Router {
    let door = Door {
        hub,
        uploads: Arc::new(Uploads::new(options.uploads)),
        body_limit: options.body_limit,
        silence: options.silence,
        metrics: options.metrics,
        open_metrics: options.open_metrics,
    };
    let operations = Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route("/openapi.json", get(openapi))
        .layer(middleware::from_fn_with_state(door.clone(), loopback_only));
    // Questions are short. Files may be long, and are taken by `intake` under a limit of its own.
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
        .merge(uploads::routes())
        .merge(questions)
        .merge(erasures::routes())
        .merge(operations)
        .fallback(async || Error::NotFound)
        .method_not_allowed_fallback(async || Error::MethodNotAllowed)
        .layer(middleware::from_fn(count))
        .with_state(door)
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

/// A slip in the name of `dry_run` would store what was to be checked only, so unknown members are refused.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
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
    body: Body,
) -> Result<Response> {
    let batch_id = batch_id(&batch)?;
    let format = format_of(&text_header(&headers, "content-type").unwrap_or_default())?;
    refuse_encodings(&headers)?;
    let content_digest = said_digest(&headers)?;
    door.hub.admit(&caller, &dataset)?;
    let body = intake::whole(door.hub.spool().draft(), body, door.body_limit, door.silence).await?;
    let push = Push {
        dataset,
        batch_id,
        format,
        contract_version: text_header(&headers, "gridhub-contract-version"),
        content_digest,
        body,
        dry_run: options.dry_run,
    };
    let received = to_its_end(async move { door.hub.upload(&caller, push).await }).await?;
    let status = if options.dry_run { StatusCode::OK } else { status_of(&received) };
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
    let mut push =
        operation("push a batch; the same bytes again under the same id give the same receipt", "201", "the receipt");
    push["parameters"] = json!([
        { "name": "dry_run", "in": "query", "schema": { "type": "boolean", "default": false },
          "description": "whether to check only, and store nothing" },
        { "name": "Content-Digest", "in": "header", "schema": { "type": "string" },
          "description": "SHA-256 of the file as RFC 9530 writes it; `Repr-Digest` will do too" },
        { "name": "Gridhub-Contract-Version", "in": "header", "schema": { "type": "string" },
          "description": "the version of the contract that the file follows" },
    ]);
    push["requestBody"] = json!({
        "required": true,
        "description": "a file of any size up to the hub's limit, as it is: without Content-Encoding",
        "content": {
            "application/vnd.apache.parquet": {}, "application/vnd.apache.arrow.stream": {}, "text/csv": {},
        },
    });
    let mut erase = operation("erase people from all datasets, for officers", "200", "the signed certificate");
    erase["requestBody"] = json!({
        "required": true,
        "content": { "application/json": { "schema": {
            "type": "object", "required": ["identifiers"], "additionalProperties": false,
            "properties": {
                "identifiers": { "type": "array", "minItems": 1, "maxItems": 1_000, "items": {
                    "type": "object", "required": ["kind", "value"], "additionalProperties": false,
                    "properties": {
                        "kind": {
                            "type": "string",
                            "description": "`cn_resident_id`, `cn_mobile`, `uscc`, or `opaque:` and a linkage domain",
                        },
                        "value": { "type": "string" },
                    },
                } },
                "basis": { "type": "string", "description": "goes into the log and must name nobody" },
            },
        } } },
    });
    json!({
        "openapi": "3.1.0",
        "info": { "title": "gridhub", "version": env!("CARGO_PKG_VERSION") },
        "components": { "securitySchemes": { "token": { "type": "http", "scheme": "bearer" } } },
        "security": [{ "token": [] }],
        "paths": {
            "/v1/datasets": { "get": operation("the catalogue as this caller sees it", "200", "datasets with exposures") },
            "/v1/datasets/{dataset}": { "get": operation("one dataset", "200", "its fields with exposures") },
            "/v1/datasets/{dataset}/batches/{batch}": {
                "put": push,
                "get": operation("the receipt again", "200", "the receipt"),
            },
            "/v1/uploads": uploads::description(&problem),
            "/v1/uploads/{upload}": uploads::description_of_one(&problem),
            "/v1/sql": { "post": ask },
            "/v1/explain": { "post": explain },
            "/v1/erasures": { "post": erase },
            "/v1/erasures/{id}": { "get": operation("the certificate of an erasure again", "200", "the certificate") },
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
        Method::PATCH => "PATCH",
        _ => "other",
    };
    let started = std::time::Instant::now();
    let response = next.run(request).await;
    let status = response.status().as_u16().to_string();
    metrics::counter!("gridhub_http_requests_total", "method" => method, "status" => status).increment(1);
    metrics::histogram!("gridhub_http_seconds", "method" => method).record(started.elapsed().as_secs_f64());
    response
}

/// SHA-256 of the file, from `Content-Digest` or `Repr-Digest` (RFC 9530). Without a content coding both speak of the
/// same bytes.
fn said_digest(headers: &HeaderMap) -> Result<Option<Vec<u8>>> {
    match (digest_header(headers, "content-digest")?, digest_header(headers, "repr-digest")?) {
        (Some(content), Some(whole)) if content != whole => Err(Error::DigestMismatch),
        (content, whole) => Ok(content.or(whole)),
    }
}

/// SHA-256 from a digest header; other algorithms are ignored, as RFC 9530 asks.
fn digest_header(headers: &HeaderMap, name: &str) -> Result<Option<Vec<u8>>> {
    let Some(header) = text_header(headers, name) else { return Ok(None) };
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

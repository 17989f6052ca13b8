//! The HTTP door: its routes, what each of them reads and writes, and how it is served.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use arrow::datatypes::DataType;
use axum::{
    Json, Router,
    body::Body,
    extract::{ConnectInfo, DefaultBodyLimit, Request, State, rejection::JsonRejection},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::get,
};
use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use datafusion::common::ScalarValue;
use futures::stream;
use metrics_exporter_prometheus::PrometheusHandle;
use serde::Deserialize;
use serde_json::{Value, json};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

pub use super::serve::serve;
use super::{
    answer::{self, AnswerFormat, Chunks},
    cache,
    door::{
        Caller, Document, Door, Members, Purpose, Segments, batch_id, format_of, refuse_encodings, status_of,
        text_header, to_its_end,
    },
    erasures, figures, intake,
    listen::Peer,
    openapi::{self, Answer, Catalogue, LogEntries, Placeholder},
    requests, uploads,
};
use crate::{
    audit::Entry,
    dataset::receipt::Receipt,
    disclose::{Small, Wishes},
    error::{Error, Result},
    hub::{Explained, Hub, Listed, Push, Question},
    resumable::{self, Uploads},
};

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
    let operations = OpenApiRouter::new()
        .routes(routes!(healthy))
        .routes(routes!(ready))
        .routes(routes!(metrics))
        .layer(middleware::from_fn_with_state(door.clone(), loopback_only));
    // Questions are short. Files may be long, and are taken by `intake` under a limit of its own.
    let questions =
        OpenApiRouter::new().routes(routes!(sql)).routes(routes!(explain)).layer(DefaultBodyLimit::max(1 << 20));
    let (router, interface) = OpenApiRouter::with_openapi(openapi::interface())
        .routes(routes!(datasets))
        .routes(routes!(dataset))
        .routes(routes!(push, receipt))
        .routes(routes!(checkpoint))
        .routes(routes!(verifier))
        .routes(routes!(hash_tile))
        .routes(routes!(log_entries))
        .merge(uploads::routes())
        .merge(questions)
        .merge(erasures::routes())
        .merge(operations)
        .split_for_parts();
    let described = serde_json::to_vec(&openapi::complete(interface)).map(Bytes::from).map_err(Error::internal);
    let description = move || async move { described.map(|text| ([(header::CONTENT_TYPE, "application/json")], text)) };
    router
        .route("/openapi.json", get(description).layer(middleware::from_fn_with_state(door.clone(), loopback_only)))
        .fallback(async || Error::NotFound)
        .method_not_allowed_fallback(async || Error::MethodNotAllowed)
        .layer(middleware::from_fn(requests::name_problems))
        .layer(requests::compression())
        .layer(middleware::from_fn(requests::observe))
        .with_state(door)
}

/// The catalogue as this caller sees it
#[utoipa::path(
    get,
    path = "/v1/datasets",
    tag = "catalogue",
    params(
        ("purpose" = Option<String>, Query, description = "what for; needed of callers with several purposes"),
        ("If-None-Match" = Option<String>, Header, description = "the `ETag` of what the client has already"),
    ),
    responses(
        (status = 200, description = "datasets, fields and what this caller gets of them", body = Catalogue,
            headers(("ETag" = String, description = "changes whenever the catalogue may have"))),
        (status = 304, description = "the client has it already"),
    )
)]
async fn datasets(
    State(door): State<Door>,
    Caller(caller): Caller,
    Members(asked): Members<Purpose>,
    headers: HeaderMap,
) -> Result<Response> {
    // Before the catalogue: if that changes in between, the client asks once too often.
    let version = door.hub.catalogue_version(&caller, asked.purpose.as_deref())?;
    let listed = door.hub.catalogue(&caller, asked.purpose.as_deref())?;
    Ok(cache::unless_known(&headers, &version, Json(json!({ "datasets": listed })).into_response()))
}

/// One dataset as this caller sees it
#[utoipa::path(
    get,
    path = "/v1/datasets/{dataset}",
    tag = "catalogue",
    params(
        ("dataset" = String, Path, pattern = r"^[a-z][a-z0-9_]*\.[a-z][a-z0-9_]*$", example = "community.visits"),
        ("purpose" = Option<String>, Query, description = "what for; needed of callers with several purposes"),
        ("If-None-Match" = Option<String>, Header, description = "the `ETag` of what the client has already"),
    ),
    responses(
        (status = 200, description = "its fields and what this caller gets of them", body = Listed,
            headers(("ETag" = String, description = "changes whenever the catalogue may have"))),
        (status = 304, description = "the client has it already"),
    )
)]
async fn dataset(
    State(door): State<Door>,
    Caller(caller): Caller,
    Segments(name): Segments<String>,
    Members(asked): Members<Purpose>,
    headers: HeaderMap,
) -> Result<Response> {
    let version = door.hub.catalogue_version(&caller, asked.purpose.as_deref())?;
    let listed = door.hub.catalogue(&caller, asked.purpose.as_deref())?;
    let found = listed.into_iter().find(|dataset| dataset.name == name).ok_or(Error::NotFound)?;
    Ok(cache::unless_known(&headers, &version, Json(found).into_response()))
}

/// A slip in the name of `dry_run` would store what was to be checked only, so unknown members are refused.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PushOptions {
    #[serde(default)]
    dry_run: bool,
}

/// Push a batch
///
/// The same bytes again under the same id give the same receipt.
#[utoipa::path(
    put,
    path = "/v1/datasets/{dataset}/batches/{batch}",
    tag = "uploads",
    params(
        ("dataset" = String, Path, pattern = r"^[a-z][a-z0-9_]*\.[a-z][a-z0-9_]*$", example = "community.visits"),
        ("batch" = Uuid, Path, description = "made by the sender, one for each file"),
        ("dry_run" = Option<bool>, Query, description = "whether to check only, and store nothing"),
        ("Content-Digest" = Option<String>, Header, description = "SHA-256 of the file as RFC 9530 writes it; \
            `Repr-Digest` will do too"),
        ("Gridhub-Contract-Version" = Option<String>, Header, description = "the version of the contract that the \
            file follows"),
    ),
    request_body(
        description = "a file of any size up to the hub's limit, as it is: without Content-Encoding",
        content(
            ("application/vnd.apache.parquet"),
            ("application/vnd.apache.arrow.stream"),
            ("text/csv", example = json!("visit_id,grid_code\n1,420191001001\n"))
        )
    ),
    responses(
        (status = 201, description = "taken, whole or in part", body = Receipt),
        (status = 200, description = "taken before, or only checked", body = Receipt),
    )
)]
async fn push(
    State(door): State<Door>,
    Caller(caller): Caller,
    Segments((dataset, batch)): Segments<(String, String)>,
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
    let received = to_its_end(async move { door.hub.upload(&caller, push).await }).await;
    figures::uploaded(&received);
    let received = received?;
    let status = if options.dry_run { StatusCode::OK } else { status_of(&received) };
    Ok((status, Json(received.receipt)).into_response())
}

/// The receipt of a batch again, for the agency that pushed it
#[utoipa::path(
    get,
    path = "/v1/datasets/{dataset}/batches/{batch}",
    tag = "uploads",
    params(
        ("dataset" = String, Path, pattern = r"^[a-z][a-z0-9_]*\.[a-z][a-z0-9_]*$", example = "community.visits"),
        ("batch" = Uuid, Path, description = "made by the sender, one for each file"),
    ),
    responses((status = 200, description = "the receipt", body = Receipt))
)]
async fn receipt(
    State(door): State<Door>,
    Caller(caller): Caller,
    Segments((dataset, batch)): Segments<(String, String)>,
) -> Result<Response> {
    let batch = Uuid::parse_str(&batch).map_err(|_| Error::NotFound)?;
    Ok(Json(door.hub.receipt(&caller, &dataset, batch)?).into_response())
}

/// A question.
#[derive(Deserialize, ToSchema)]
#[schema(
    as = Question,
    example = json!({
        "sql": "SELECT count(*) FROM community.visits WHERE grid_code = $1",
        "purpose": "epidemiology",
        "params": ["420191001001"],
    })
)]
#[serde(deny_unknown_fields)]
struct Asked {
    /// One statement that reads, in the words of PostgreSQL.
    sql: String,
    /// What for; needed of callers with several purposes.
    #[serde(default)]
    purpose: Option<String>,
    /// Values of `$1`, `$2`, ….
    #[serde(default)]
    #[schema(value_type = Vec<Placeholder>)]
    params: Vec<Value>,
    /// Whether each protected number `n` comes with the ends of its 95 % interval, in columns `n_low` and `n_high`.
    #[serde(default)]
    interval: bool,
    /// What becomes of protected cells of too few people: absent, one row of all of them, or rows of larger divisions;
    /// column `answered_at` says which.
    #[serde(default)]
    #[schema(value_type = Option<Small>)]
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
        Ok(Question { purpose: asked.purpose, params, wishes, ..Question::new(asked.sql, "http") })
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
        Value::Array(elements) => array(elements)?,
        Value::Object(_) => {
            return Err(Error::SqlSyntax("`params` holds numbers, texts, booleans and nulls".into()));
        }
    })
}

/// The array of a placeholder, as in `x = ANY ($1)`.
fn array(elements: &[Value]) -> Result<ScalarValue> {
    let wrong =
        || Error::SqlSyntax("an array in `params` holds numbers, texts or booleans, or nulls among them".into());
    let mut kind = DataType::Null;
    let mut members = Vec::with_capacity(elements.len());
    for element in elements {
        if element.is_array() {
            return Err(wrong());
        }
        let member = parameter(element)?;
        kind = match (kind, member.data_type()) {
            (DataType::Null, own) => own,
            (kind, DataType::Null) => kind,
            (DataType::Int64, DataType::Float64) | (DataType::Float64, DataType::Int64) => DataType::Float64,
            (kind, own) if kind == own => kind,
            _ => return Err(wrong()),
        };
        members.push(member);
    }
    // What nobody knows is text.
    let kind = if kind == DataType::Null { DataType::Utf8 } else { kind };
    let members = members.iter().map(|member| member.cast_to(&kind)).collect::<Result<Vec<_>, _>>();
    let members = members.map_err(Error::internal)?;
    Ok(ScalarValue::List(ScalarValue::new_list_nullable(&members, &kind)))
}

/// Ask
///
/// The answer comes in the format of `Accept`.
#[utoipa::path(
    post,
    path = "/v1/sql",
    tag = "questions",
    request_body(content = Asked, content_type = "application/json"),
    responses((
        status = 200,
        description = "the answer",
        content(
            (Answer = "application/json"),
            ("application/x-ndjson"),
            ("text/csv"),
            ("application/vnd.apache.arrow.stream"),
            ("application/vnd.apache.parquet")
        ),
        headers(
            ("Gridhub-Query-Id" = String, description = "the question's id in the log"),
            ("Gridhub-Log-Index" = u64, description = "the log entry that records its end"),
            ("Gridhub-Protection" = String, description = "what was done to the answer, in JSON"),
            ("Gridhub-Snapshot" = String, description = "the opaque name of the versions of the tables"),
            ("Gridhub-Policy" = String, description = "the version of the policy"),
            ("Gridhub-Notices" = String, description = "things the reader should know, where there are any, in JSON")
        )
    ))
)]
async fn sql(
    State(door): State<Door>,
    Caller(caller): Caller,
    headers: HeaderMap,
    Document(body): Document<Asked>,
) -> Result<Response> {
    let format = AnswerFormat::from_accept(text_header(&headers, "accept").as_deref())?;
    let question = Asked::question(body)?;
    let begun = Instant::now();
    // Who goes away wants no answer, and gets its turn back; that it was given up is recorded as any end is.
    let _gone = question.bounds.stop.clone().drop_guard();
    let answered = to_its_end(async move { door.hub.query(&caller, question).await }).await;
    figures::asked("http", &answered, begun.elapsed());
    let answered = answered?;
    let protection = serde_json::to_string(&answered.released.protection).map_err(Error::internal)?;
    let mut headers = HeaderMap::new();
    let mut put = |name: &'static str, value: &str| {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(HeaderName::from_static(name), value);
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
    Ok((headers, body_of(answer::chunks(answered, format)?)?).into_response())
}

/// The body of an answer: with its length where it is short, else made as its reader takes it.
fn body_of(mut chunks: Chunks) -> Result<Body> {
    let Some(first) = chunks.next().transpose()? else { return Ok(Body::empty()) };
    let Some(second) = chunks.next().transpose()? else { return Ok(Body::from(chunks.only(first))) };
    let rest = chunks.inspect(|chunk| {
        if let Err(error) = chunk {
            tracing::error!(cause = error.fault(), "an answer broke off");
        }
    });
    Ok(Body::from_stream(stream::iter([Ok(first), Ok(second)].into_iter().chain(rest))))
}

/// What a question would be answered with, or why not
#[utoipa::path(
    post,
    path = "/v1/explain",
    tag = "questions",
    request_body(content = Asked, content_type = "application/json"),
    responses((status = 200, description = "the explanation; a refusal by a gate is one", body = Explained))
)]
async fn explain(
    State(door): State<Door>,
    Caller(caller): Caller,
    Document(body): Document<Asked>,
) -> Result<Response> {
    let question = Asked::question(body)?;
    Ok(Json(to_its_end(async move { door.hub.explain(&caller, question).await }).await?).into_response())
}

/// The newest signed checkpoint of the log, a C2SP signed note
#[utoipa::path(
    get,
    path = "/v1/log/checkpoint",
    tag = "log",
    security(()),
    responses((status = 200, description = "origin, size, root and signature", body = String))
)]
async fn checkpoint(State(door): State<Door>) -> Response {
    let text = ([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], door.hub.checkpoint());
    cache::for_now(text.into_response())
}

/// The key with which checkpoints and receipts are verified
#[utoipa::path(
    get,
    path = "/v1/log/verifier",
    tag = "log",
    security(()),
    responses((status = 200, description = "a C2SP verifier key", body = String))
)]
async fn verifier(State(door): State<Door>) -> Response {
    cache::for_now(format!("{}\n", door.hub.verifier()).into_response())
}

/// A tile of leaf hashes of the log, 256 to a full one
///
/// Named as in C2SP tlog-tiles: `000`, `x001/000`, `000.p/17`. A full one never changes.
#[utoipa::path(
    get,
    path = "/v1/log/tile/0/{*tile}",
    tag = "log",
    security(()),
    params(("tile" = String, Path, description = "the tile", pattern = r"^(x[0-9]{3}/)*[0-9]{3}(\.p/[0-9]{1,3})?$",
        example = "000.p/1")),
    responses((status = 200, description = "hashes of 32 bytes each", content_type = "application/octet-stream"))
)]
async fn hash_tile(State(door): State<Door>, Segments(tile): Segments<String>) -> Result<Response> {
    let (number, width) = match tile.split_once(".p/") {
        Some((number, width)) => (number, width.parse().ok().filter(|width| (1..256).contains(width))),
        None => (tile.as_str(), Some(256)),
    };
    let digits: String = number.split('/').map(|part| part.strip_prefix('x').unwrap_or(part)).collect();
    let place = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(256)).zip(width);
    let (first, width) = place.ok_or(Error::NotFound)?;
    let hashes = door.hub.log_hashes(first, first.saturating_add(width))?;
    if hashes.len() as u64 != width {
        return Err(Error::NotFound);
    }
    let hashes = ([(header::CONTENT_TYPE, "application/octet-stream")], hashes.concat()).into_response();
    Ok(if width == 256 { cache::forever(hashes) } else { cache::for_now(hashes) })
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

/// Readable entries of the access log, for officers
#[utoipa::path(
    get,
    path = "/v1/log/entries",
    tag = "log",
    params(
        ("from" = Option<u64>, Query, description = "the first entry, from 0"),
        ("count" = Option<u64>, Query, description = "how many: 100 unless told, 1,000 at most"),
        ("purpose" = Option<String>, Query, description = "what for; needed of callers with several purposes"),
    ),
    responses((status = 200, description = "the entries that there are", body = LogEntries))
)]
async fn log_entries(
    State(door): State<Door>,
    Caller(caller): Caller,
    Members(asked): Members<Entries>,
) -> Result<Response> {
    let entries = door.hub.log_entries(&caller, asked.purpose.as_deref(), asked.from, asked.count).await?;
    let listed = entries.iter().map(Entry::with_index).collect::<Result<Vec<_>>>()?;
    Ok(Json(json!({ "entries": listed })).into_response())
}

/// Whether the hub runs
#[utoipa::path(
    get,
    path = "/healthz",
    tag = "operations",
    security(()),
    responses((status = 200, description = "it runs", body = String))
)]
async fn healthy() -> &'static str {
    "ok\n"
}

/// Whether the hub can answer
#[utoipa::path(
    get,
    path = "/readyz",
    tag = "operations",
    security(()),
    responses(
        (status = 200, description = "it can", body = String),
        (status = 503, description = "its log takes no entries", body = String),
    )
)]
async fn ready(State(door): State<Door>) -> Response {
    match door.hub.is_ready() {
        true => "ready\n".into_response(),
        false => (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "30")], "not ready\n").into_response(),
    }
}

/// Figures about the hub for Prometheus, where they are kept
#[utoipa::path(
    get,
    path = "/metrics",
    tag = "operations",
    security(()),
    responses((status = 200, description = "the figures, as text", body = String))
)]
async fn metrics(State(door): State<Door>) -> Result<Response> {
    let metrics = door.metrics.as_ref().ok_or(Error::NotFound)?;
    figures::logged(&door.hub.checkpoint());
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], metrics.render()).into_response())
}

async fn loopback_only(State(door): State<Door>, request: Request, next: Next) -> Response {
    let extensions = request.extensions();
    let peer = extensions.get::<Peer>().map(|peer| peer.address);
    let peer = peer.or_else(|| extensions.get::<ConnectInfo<SocketAddr>>().map(|peer| peer.0));
    // Without a known peer the request came from inside the process, as tests do.
    match door.open_metrics || peer.is_none_or(|peer| peer.ip().to_canonical().is_loopback()) {
        true => next.run(request).await,
        false => Error::NotFound.into_response(),
    }
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
    for line in headers.get_all(name) {
        // One that is no text may be the one that was meant.
        let line = line.to_str().map_err(|_| Error::DigestMismatch)?;
        for part in line.split(',') {
            if let Some(encoded) = part.trim().strip_prefix("sha-256=") {
                let encoded = encoded.strip_prefix(':').and_then(|encoded| encoded.strip_suffix(':'));
                let digest = encoded.and_then(|encoded| BASE64.decode(encoded).ok());
                return digest.map(Some).ok_or(Error::DigestMismatch);
            }
        }
    }
    Ok(None)
}

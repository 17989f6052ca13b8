//! The HTTP interface in OpenAPI 3.1. What each route takes and answers stands at its handler; here is what they
//! share, and what the documents look like that no type of the hub is written as.

use serde_json::Value;
use utoipa::{
    OpenApi, ToSchema,
    openapi::{
        self, Components, Ref, RefOr, Required,
        content::ContentBuilder,
        path::{HttpMethod, Operation, PathItem},
        response::ResponseBuilder,
        security::{Http, HttpAuthScheme, SecurityScheme},
    },
};

use crate::{
    dataset::receipt::Receipt,
    disclose::{ColumnExposure, Protection},
    hub::Listed,
};

/// How problems are written.
const PROBLEM: &str = "application/problem+json";

/// An RFC 9457 problem document: every refusal and failure.
#[derive(ToSchema)]
pub struct Problem {
    /// An address that ends in the slug of the kind of problem, stable over versions: `unauthenticated`,
    /// `purpose-required`, `purpose-not-allowed`, `not-allowed`, `unknown-table`, `unknown-column`, `sql-syntax`,
    /// `refused`, `contract-violation`, `batch-conflict`, `digest-mismatch`, `too-large`, `too-many-cells`, `timeout`,
    /// `cancelled`, `busy`, `log-unavailable`, `not-found`, `upload-offset`, `checksum-mismatch`, `broken-off`,
    /// `locked`, `unsupported-version`, `rate-limited`, `unsupported-media-type`, `data-error`, `resource-limit`,
    /// `bad-request`, `method-not-allowed`, `internal`.
    #[schema(pattern = "/[a-z-]+$", example = "https://gridhub.dev/problems/unknown-table")]
    pub r#type: String,
    /// The slug in words.
    #[schema(example = "unknown table")]
    pub title: String,
    /// The status of the response.
    #[schema(minimum = 400, maximum = 599)]
    pub status: u16,
    /// What went wrong and what to do about it, without any value of a row.
    pub detail: String,
    /// The request, as header `Gridhub-Request-Id` has it.
    #[schema(pattern = "^urn:uuid:[0-9a-f-]{36}$")]
    pub instance: String,
    /// Of a refused question: the rule.
    pub rule: Option<String>,
    /// Of a refused question: what the rule objects to.
    pub why: Option<String>,
    /// Of a refused question: the nearest one that would pass.
    pub r#try: Option<String>,
    /// Of a batch of which no row was stored: its receipt.
    pub receipt: Option<Receipt>,
    /// Where a purpose is missing or not open: those that are.
    pub purposes: Option<Vec<String>>,
    /// Of an upload in pieces: the byte from which it goes on.
    pub offset: Option<u64>,
}

/// An answer as JSON. The other formats have the rows in the body, and the rest in headers or schema metadata.
#[derive(ToSchema)]
pub struct Answer {
    /// The columns, in order.
    pub columns: Vec<ColumnExposure>,
    /// The rows: a value a column. Numbers that have no form in JSON are null; times are RFC 3339.
    pub rows: Vec<Vec<Value>>,
    /// What was done to the answer before it was let out.
    pub protection: Protection,
    /// Things the reader should know.
    pub notices: Vec<String>,
    /// The question's id in the log.
    pub query_id: String,
    /// The log entry that records the question's end.
    pub log_index: u64,
    /// The opaque name of the versions of the tables.
    pub snapshot: String,
    /// The version of the policy.
    pub policy: String,
}

/// The catalogue as one caller sees it.
#[derive(ToSchema)]
pub struct Catalogue {
    /// The datasets of which the caller may see something.
    pub datasets: Vec<Listed>,
}

/// Readable entries of the access log.
#[derive(ToSchema)]
pub struct LogEntries {
    /// The entries, oldest first: their `kind`, `at`, `index`, and what else there is to say of that kind.
    #[schema(value_type = Vec<Object>)]
    pub entries: Vec<Value>,
}

/// The value of a placeholder `$1`, `$2`, ….
#[derive(ToSchema)]
#[serde(untagged)]
pub enum Placeholder {
    /// A number.
    Number(f64),
    /// A text; also days and times.
    Text(String),
    /// A truth value.
    Truth(bool),
    /// Numbers to compare with by `= ANY` or `<> ALL`.
    Numbers(Vec<Option<f64>>),
    /// Texts to compare with.
    Texts(Vec<Option<String>>),
    /// Truth values to compare with.
    Truths(Vec<Option<bool>>),
    /// NULL.
    Null,
}

#[derive(OpenApi)]
#[openapi(
    info(title = "gridhub", description = "Data of a city's agencies, shared under field-level policy"),
    components(schemas(Problem)),
    security(("token" = []))
)]
struct Interface;

/// What the routes are added to.
pub(super) fn interface() -> openapi::OpenApi {
    Interface::openapi()
}

/// Adds what all operations share, once they are all there.
pub(super) fn complete(mut interface: openapi::OpenApi) -> openapi::OpenApi {
    let components = interface.components.get_or_insert_with(Components::new);
    components.add_security_scheme("token", SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer)));
    // The rest of a path is one parameter to the router, and none that OpenAPI knows.
    if let Some(tiles) = interface.paths.paths.remove("/v1/log/tile/0/{*tile}") {
        interface.paths.paths.insert("/v1/log/tile/0/{tile}".into(), tiles);
    }
    for (path, item) in &mut interface.paths.paths {
        for (method, operation) in operations(item) {
            for status in refusals(path, &method, operation) {
                let known = &mut operation.responses.responses;
                known.entry(status.to_string()).or_insert_with(|| problem(&method, status));
            }
        }
    }
    interface
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = (HttpMethod, &mut Operation)> {
    [
        (HttpMethod::Get, &mut item.get),
        (HttpMethod::Head, &mut item.head),
        (HttpMethod::Put, &mut item.put),
        (HttpMethod::Post, &mut item.post),
        (HttpMethod::Patch, &mut item.patch),
        (HttpMethod::Delete, &mut item.delete),
        (HttpMethod::Options, &mut item.options),
    ]
    .into_iter()
    .filter_map(|(method, operation)| Some((method, operation.as_mut()?)))
}

/// The statuses with which an operation may refuse or fail.
fn refusals(path: &str, method: &HttpMethod, operation: &mut Operation) -> Vec<u16> {
    let mut statuses = vec![400, 404, 405, 408, 500, 503];
    let is_open = operation.security.is_some();
    if !is_open {
        statuses.extend([401, 403, 429]);
    }
    if let Some(RefOr::T(body)) = &mut operation.request_body {
        // Uploads may begin without a piece.
        let is_needed = path != "/v1/uploads";
        body.required = Some(if is_needed { Required::True } else { Required::False });
        statuses.extend([409, 413, 415, 422, 504]);
    }
    if path.starts_with("/v1/uploads") && *method != HttpMethod::Options {
        statuses.extend([409, 412, 423, 460]);
    }
    statuses
}

/// The response of a refusal. What answers HEAD has no body.
fn problem(method: &HttpMethod, status: u16) -> RefOr<openapi::Response> {
    let what = match status {
        400 => "the request cannot be read, or lacks a purpose",
        401 => "no valid access token",
        403 => "not allowed to this caller or purpose",
        404 => "unknown, or not this caller's",
        405 => "a method that the path does not know; `Allow` lists those it does",
        408 => "the body broke off, or did not come in time",
        409 => "in conflict with what was sent before",
        412 => "a version of tus that the hub does not speak",
        413 => "larger than the hub takes",
        415 => "a media type that the hub does not speak",
        422 => "refused by a gate, not in the view, or not as the contract says",
        423 => "another request is at this upload",
        429 => "more at once than one may have; `Retry-After` says when to try again",
        460 => "the piece does not match its checksum",
        503 => "the hub cannot answer now; `Retry-After` says when to try again",
        504 => "the question took longer than it may",
        _ => "a fault of the hub",
    };
    let response = ResponseBuilder::new().description(what);
    let response = match method {
        HttpMethod::Head => response,
        _ => response.content(PROBLEM, ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).build()),
    };
    RefOr::T(response.build())
}

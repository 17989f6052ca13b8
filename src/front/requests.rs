//! What happens to every request over HTTP, whatever it asks: it gets an id, is counted, is told of in the log of the
//! process, and its response gets the headers that all have. Paths, queries, bodies and headers are told to nobody:
//! any of them may be what somebody typed.

use std::{
    sync::{Arc, OnceLock},
    time::Instant,
};

use axum::{
    body::Body,
    extract::{MatchedPath, Request},
    http::{HeaderMap, HeaderValue, Method, header},
    middleware::Next,
    response::Response,
};
use tower_http::{
    CompressionLevel,
    compression::{
        CompressionLayer,
        predicate::{And, NotForContentType, Predicate, SizeAbove},
    },
};
use tracing::Instrument;
use uuid::Uuid;

use super::{figures, listen::Peer, problem};
use crate::error::Error;

/// The header that names a request in its response.
const REQUEST_ID: &str = "gridhub-request-id";

/// The id of a request, in its extensions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct RequestId(Uuid);

impl RequestId {
    /// The id that whoever forwards the request gave it, else one of the hub's own. Others than random or timed UUIDs
    /// are not taken: they may be anything, and end in logs.
    fn of(headers: &HeaderMap) -> Self {
        let said = headers.get("x-request-id").and_then(|value| Uuid::parse_str(value.to_str().ok()?).ok());
        let said = said.filter(|id| matches!(id.get_version_num(), 4 | 7));
        Self(said.unwrap_or_else(Uuid::now_v7))
    }
}

/// Who a request turned out to come from, in its extensions: filled in once that is known.
#[derive(Debug, Clone, Default)]
pub(super) struct Asker(Arc<OnceLock<String>>);

impl Asker {
    /// Takes down the id of the caller.
    pub(super) fn is(&self, caller: &str) {
        let _ = self.0.set(caller.to_owned());
    }
}

/// Names, counts and logs a request, and puts on its response what all have.
pub(super) async fn observe(mut request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let id = RequestId::of(request.headers());
    let method = word_of(request.method());
    let route = request.extensions().get::<MatchedPath>().map_or("none", MatchedPath::as_str).to_owned();
    let secure = request.extensions().get::<Peer>().is_some_and(|peer| peer.secure);
    let asker = Asker::default();
    request.extensions_mut().insert(id);
    request.extensions_mut().insert(asker.clone());
    // Of the level of errors, or what goes wrong would be told without its request where only that is told.
    let span = tracing::error_span!("request", id = %id.0);
    let mut response = next.run(request).instrument(span.clone()).await;
    let took = begun.elapsed();
    let status = response.status().as_u16();
    let slug = response.extensions().get::<Error>().map(Error::slug);
    span.in_scope(|| {
        let (route, caller) = (route.as_str(), asker.0.get().map(String::as_str));
        let milliseconds = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        tracing::info!(target: "gridhub::http", method, route, status, milliseconds, caller, slug, "request");
    });
    figures::requested(method, &route, status, took);
    let headers = response.headers_mut();
    if let Ok(id) = HeaderValue::from_str(&id.0.to_string()) {
        headers.insert(REQUEST_ID, id);
    }
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    // What one caller may see is kept for no other, unless its route says so.
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    if secure {
        headers.insert(header::STRICT_TRANSPORT_SECURITY, HeaderValue::from_static("max-age=31536000"));
    }
    response
}

/// Says in a problem document which request it is about.
pub(super) async fn name_problems(request: Request, next: Next) -> Response {
    let id = request.extensions().get::<RequestId>().copied();
    let response = next.run(request).await;
    let Some((RequestId(id), error)) = id.zip(response.extensions().get::<Error>()) else { return response };
    let mut document = problem::document(error);
    document["instance"] = id.urn().to_string().into();
    let (mut parts, _) = response.into_parts();
    parts.headers.remove(header::CONTENT_LENGTH);
    Response::from_parts(parts, Body::from(document.to_string()))
}

/// Which bodies are compressed.
type Compressible = And<And<And<SizeAbove, NotForContentType>, NotForContentType>, NotForContentType>;

/// Compresses bodies for those who say that they can read it.
///
/// How well a body compresses tells of what is in it (BREACH) where somebody who sees only its length also chooses part
/// of it, beside a secret that is not theirs. Bodies here hold what their reader may see, and no token or key; texts of
/// the question that come back in one are its reader's own.
pub(super) fn compression() -> CompressionLayer<Compressible> {
    let compressible = SizeAbove::new(1 << 10)
        // Compressed inside.
        .and(NotForContentType::const_new("application/vnd.apache.parquet"))
        // An event is for now, not for when enough of them fill a block.
        .and(NotForContentType::SSE)
        // Hashes of the log.
        .and(NotForContentType::const_new("application/octet-stream"));
    CompressionLayer::new().quality(CompressionLevel::Fastest).compress_when(compressible)
}

/// A method by a word of the hub's own: those that nobody knows may be anything.
fn word_of(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::PUT => "PUT",
        Method::POST => "POST",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderName;

    use super::*;

    fn taken(said: &str) -> bool {
        let headers = HeaderMap::from_iter([(HeaderName::from_static("x-request-id"), said.parse().unwrap())]);
        let RequestId(id) = RequestId::of(&headers);
        assert!(matches!(id.get_version_num(), 4 | 7));
        Uuid::parse_str(said) == Ok(id)
    }

    #[test]
    fn ids_from_outside_are_taken_where_they_are_ids() {
        assert!(taken("0190f5a2-7b3c-7def-8abc-0123456789ab"));
        assert!(taken("9F0F5A27-B3C4-4DEF-8ABC-0123456789AB"), "in either case");
        for said in ["420191199001011234", "", "a\tb", "00000000-0000-0000-0000-420191199001", "DROP TABLE"] {
            assert!(!taken(said), "{said}");
        }
        assert_ne!(RequestId::of(&HeaderMap::new()), RequestId::of(&HeaderMap::new()));
    }
}

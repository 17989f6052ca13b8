//! What clients may keep of a response, and when they need not be sent it again.

use axum::{
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};

/// A response that a client may keep for itself, if it asks each time whether it still holds: the response itself, or
/// that the client has it already. `version` changes whenever the response may have changed.
///
/// The validator is a weak one: the same version may be sent compressed or not, and those are not the same bytes.
pub(super) fn unless_known(headers: &HeaderMap, version: &str, response: Response) -> Response {
    let mut response = match names(headers, version) {
        true => StatusCode::NOT_MODIFIED.into_response(),
        false => response,
    };
    let headers = response.headers_mut();
    if let Ok(tag) = HeaderValue::from_str(&format!("W/\"{version}\"")) {
        headers.insert(header::ETAG, tag);
    }
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
    headers.insert(header::VARY, HeaderValue::from_static("authorization, accept-encoding"));
    response
}

/// Whether `If-None-Match` has this version, or any.
fn names(headers: &HeaderMap, version: &str) -> bool {
    let listed = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    listed.flat_map(|list| list.split(',')).map(str::trim).any(|tag| {
        let opaque = tag.strip_prefix("W/").unwrap_or(tag);
        tag == "*" || opaque.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) == Some(version)
    })
}

/// A response that never changes.
pub(super) fn forever(mut response: Response) -> Response {
    let value = HeaderValue::from_static("public, max-age=31536000, immutable");
    response.headers_mut().insert(header::CACHE_CONTROL, value);
    response
}

/// A response that everybody gets, and that changes.
pub(super) fn for_now(mut response: Response) -> Response {
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_known_version_is_not_sent_again() {
        let asked = |said: &str| {
            let headers = HeaderMap::from_iter([(header::IF_NONE_MATCH, said.parse().unwrap())]);
            unless_known(&headers, "v1", "body".into_response()).status()
        };
        for said in ["W/\"v1\"", "\"v1\"", "\"v0\", W/\"v1\"", "*"] {
            assert_eq!(asked(said), StatusCode::NOT_MODIFIED, "{said}");
        }
        for said in ["", "v1", "\"v2\"", "W/\"v1"] {
            assert_eq!(asked(said), StatusCode::OK, "{said}");
        }
        let whole = unless_known(&HeaderMap::new(), "v1", "body".into_response());
        assert_eq!((whole.status(), whole.headers()[header::ETAG].to_str().unwrap()), (StatusCode::OK, "W/\"v1\""));
    }
}

//! Uploads in pieces, for senders whose line breaks: [tus 1.0](https://tus.io/protocols/resumable-upload) with
//! creation, creation-with-upload, checksum, expiration and termination. The piece that completes an upload is
//! answered as the PUT of a whole batch is, with its receipt.

use std::collections::BTreeMap;

use axum::{
    Json,
    body::{Body, HttpBody},
    extract::{FromRequestParts, Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, header, request::Parts},
    middleware::{self, Next},
    response::{IntoResponse, Response},
};
use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use ring::digest::{Algorithm, Context, SHA1_FOR_LEGACY_USE_ONLY, SHA256};
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use super::{
    door::{Caller, Door, Segments, batch_id, format_of, refuse_encodings, status_of, text_header, to_its_end},
    figures,
    intake::{self, End, Intake},
};
use crate::{
    dataset::receipt::Receipt,
    error::{Error, Result},
    hub::Received,
    identity::Credential,
    resumable::{Content, Plan, Standing, Turn},
    spool::{self, Draft},
};

/// The one version of the protocol.
const VERSION: &str = "1.0.0";

/// What pieces are sent as.
const PIECE: &str = "application/offset+octet-stream";

/// Bytes that `Upload-Metadata` may have: it is kept as long as the upload is.
const LONGEST_METADATA: usize = 8 << 10;

/// The routes of uploads in pieces.
pub(super) fn routes() -> OpenApiRouter<Door> {
    let (router, interface) = OpenApiRouter::new()
        .routes(routes!(create, capabilities))
        .routes(routes!(standing, go_on, forget, overridden, capabilities_here))
        .split_for_parts();
    let router =
        router.method_not_allowed_fallback(async || Error::MethodNotAllowed).layer(middleware::from_fn(in_tus));
    let mut routes = OpenApiRouter::from(router);
    *routes.get_openapi_mut() = interface;
    routes
}

/// A request in the one version of the protocol. Looked at after who asks, so that nobody else hears of it.
struct InTus;

impl FromRequestParts<Door> for InTus {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &Door) -> Result<Self> {
        match parts.headers.get("tus-resumable").is_some_and(|version| version == VERSION) {
            true => Ok(Self),
            false => Err(Error::UnsupportedVersion),
        }
    }
}

/// Names the version of the protocol in every reply.
async fn in_tus(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let unsupported = response.status() == StatusCode::PRECONDITION_FAILED;
    let headers = response.headers_mut();
    headers.insert("tus-resumable", HeaderValue::from_static(VERSION));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if unsupported {
        headers.insert("tus-version", HeaderValue::from_static(VERSION));
    }
    response
}

/// What of tus 1.0 the hub speaks, and the longest file
#[utoipa::path(
    options,
    path = "/v1/uploads",
    tag = "uploads",
    security(()),
    responses(
        (status = 204, description = "headers alone", headers(
            ("Tus-Version" = String, description = "the one version of the protocol"),
            ("Tus-Max-Size" = u64, description = "the longest file, in bytes"),
            ("Tus-Extension" = String, description = "the extensions of the protocol"),
            ("Tus-Checksum-Algorithm" = String, description = "the digests of pieces")
        )),
    )
)]
async fn capabilities(State(door): State<Door>) -> Response {
    let headers = [
        ("tus-version", VERSION.to_owned()),
        ("tus-max-size", door.body_limit.to_string()),
        ("tus-extension", "creation,creation-with-upload,checksum,expiration,termination".to_owned()),
        ("tus-checksum-algorithm", "sha256,sha1".to_owned()),
    ];
    (StatusCode::NO_CONTENT, headers).into_response()
}

/// What of tus 1.0 the hub speaks, asked at an upload
#[utoipa::path(
    options,
    path = "/v1/uploads/{upload}",
    tag = "uploads",
    params(
        ("upload" = Uuid, Path, description = "the upload, from the `Location` of its beginning"),
    ),
    security(()),
    responses(
        (status = 204, description = "headers alone, as at `/v1/uploads`"),
    )
)]
async fn capabilities_here(door: State<Door>) -> Response {
    capabilities(door).await
}

/// Begin an upload in pieces
///
/// tus 1.0 with creation and creation-with-upload.
#[utoipa::path(
    post,
    path = "/v1/uploads",
    tag = "uploads",
    params(
        ("Tus-Resumable" = String, Header, description = "the version of the protocol", pattern = r"^1\.0\.0$",
            example = "1.0.0"),
        ("Upload-Length" = u64, Header, description = "how many bytes the file has"),
        ("Upload-Metadata" = String, Header, description = "names with values in base64, between commas: `dataset`, \
            `batch_id`, `content_type` (or `filetype`), and, where wished for, `content_digest` (SHA-256 of the file \
            in hex or base64), `contract_version`, `dry_run`"),
    ),
    request_body(description = "the first piece, if any", content(("application/offset+octet-stream"))),
    responses(
        (status = 201, description = "begun; with the receipt where the body was the whole file",
            headers(
                ("Location" = String, description = "where pieces are sent"),
                ("Upload-Offset" = u64, description = "the byte from which the upload goes on"),
                ("Upload-Expires" = String, description = "until when the hub keeps it")
            )),
        (status = 200, description = "as 201, of a batch that was taken before or only checked", body = Receipt),
    )
)]
async fn create(
    State(door): State<Door>,
    Caller(caller): Caller,
    _: InTus,
    headers: HeaderMap,
    body: Body,
) -> Result<Response> {
    if headers.contains_key("upload-defer-length") {
        return Err(Error::BadRequest("give `Upload-Length`; the hub takes no uploads of unknown length".into()));
    }
    let length = number(&headers, "upload-length")?;
    if length > door.body_limit {
        return Err(intake::too_large());
    }
    let plan = plan(&headers)?;
    let checksum = Checksum::of_piece(&headers)?;
    let carries_bytes = is_piece(&headers);
    if !carries_bytes && body.size_hint().exact() != Some(0) {
        return Err(not_a_piece());
    }
    refuse_encodings(&headers)?;
    door.hub.admit(&caller, &plan.dataset)?;
    let draft = door.hub.spool().draft();
    let turn = door.uploads.begin(&caller.caller, plan, length, door.hub.now())?;
    if !carries_bytes && length > 0 {
        let standing = turn.end(Content::Coming(draft), door.hub.now());
        return Ok(created(StatusCode::CREATED.into_response(), &standing));
    }
    to_its_end(async move {
        let (draft, trouble) = take_piece(&door, &turn, draft, body, checksum).await?;
        if let Some(error) = trouble {
            // Its sender has not heard of it yet, so there is no upload.
            return Err(error);
        }
        let (standing, ended) = carry_on(&door, &caller, turn, draft).await?;
        let response = ended.map_or_else(|| StatusCode::CREATED.into_response(), IntoResponse::into_response);
        Ok(created(response, &standing))
    })
    .await
}

/// From which byte the upload goes on
#[utoipa::path(
    head,
    path = "/v1/uploads/{upload}",
    tag = "uploads",
    params(
        ("upload" = Uuid, Path, description = "the upload, from the `Location` of its beginning"),
        ("Tus-Resumable" = String, Header, description = "the version of the protocol", pattern = r"^1\.0\.0$",
            example = "1.0.0"),
    ),
    responses(
        (status = 200, description = "how far it is", headers(
                ("Upload-Offset" = u64, description = "the byte from which the upload goes on"),
                ("Upload-Expires" = String, description = "until when the hub keeps it"),
                ("Upload-Length" = u64, description = "how many bytes the file has")
            )),
    )
)]
async fn standing(
    State(door): State<Door>,
    Caller(caller): Caller,
    _: InTus,
    Segments(upload): Segments<String>,
) -> Result<Response> {
    let standing = door.uploads.standing(&caller.caller, upload_id(&upload)?, door.hub.now())?;
    let mut response = stands(StatusCode::OK.into_response(), &standing);
    let headers = response.headers_mut();
    headers.insert("upload-length", standing.length.into());
    if let Ok(metadata) = HeaderValue::from_str(&standing.metadata) {
        headers.insert("upload-metadata", metadata);
    }
    Ok(response)
}

/// Send the next piece
#[utoipa::path(
    patch,
    path = "/v1/uploads/{upload}",
    tag = "uploads",
    params(
        ("upload" = Uuid, Path, description = "the upload, from the `Location` of its beginning"),
        ("Tus-Resumable" = String, Header, description = "the version of the protocol", pattern = r"^1\.0\.0$",
            example = "1.0.0"),
        ("Upload-Offset" = u64, Header, description = "the byte at which the piece begins"),
        ("Upload-Checksum" = Option<String>, Header, description = "`sha256` or `sha1`, a space, and the digest of the \
            piece in base64: the piece is taken only if it is right, else the answer is 460"),
    ),
    request_body(description = "the piece", content(("application/offset+octet-stream"))),
    responses(
        (status = 201, description = "the last piece: the receipt of the batch", body = Receipt,
            headers(
                ("Upload-Offset" = u64, description = "the byte from which the upload goes on"),
                ("Upload-Expires" = String, description = "until when the hub keeps it")
            )),
        (status = 200, description = "as 201, of a batch that was taken before or only checked", body = Receipt),
        (status = 204, description = "taken, with more to come", headers(
                ("Upload-Offset" = u64, description = "the byte from which the upload goes on"),
                ("Upload-Expires" = String, description = "until when the hub keeps it")
            )),
    )
)]
async fn go_on(
    State(door): State<Door>,
    Caller(caller): Caller,
    _: InTus,
    Segments(upload): Segments<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response> {
    let id = upload_id(&upload)?;
    door.uploads.standing(&caller.caller, id, door.hub.now())?;
    if !is_piece(&headers) {
        return Err(not_a_piece());
    }
    refuse_encodings(&headers)?;
    let at = number(&headers, "upload-offset")?;
    let checksum = Checksum::of_piece(&headers)?;
    let (turn, content) = door.uploads.take(&caller.caller, id, at, door.hub.now())?;
    to_its_end(async move {
        let (standing, ended) = match content {
            Content::Coming(draft) => {
                let (draft, trouble) = take_piece(&door, &turn, draft, body, checksum).await?;
                if let Some(error) = trouble.filter(|_| draft.len() < turn.length()) {
                    turn.end(Content::Coming(draft), door.hub.now());
                    return Err(error);
                }
                carry_on(&door, &caller, turn, draft).await?
            }
            Content::Whole(whole) => {
                if let Err(error) = check_last_byte(&door, at, &whole, body, checksum).await {
                    turn.end(Content::Whole(whole), door.hub.now());
                    return Err(error);
                }
                settle(&door, &caller, turn, whole).await
            }
            Content::Ended(outcome) => {
                let again = outcome.clone().map(|receipt| Received { receipt, again: true });
                let ended = Ended::of(turn.plan(), again);
                (turn.end(Content::Ended(outcome), door.hub.now()), Some(ended))
            }
        };
        let response = ended.map_or_else(|| StatusCode::NO_CONTENT.into_response(), IntoResponse::into_response);
        Ok(stands(response, &standing))
    })
    .await
}

/// Forget an upload
///
/// A batch that came of it stays.
#[utoipa::path(
    delete,
    path = "/v1/uploads/{upload}",
    tag = "uploads",
    params(
        ("upload" = Uuid, Path, description = "the upload, from the `Location` of its beginning"),
        ("Tus-Resumable" = String, Header, description = "the version of the protocol", pattern = r"^1\.0\.0$",
            example = "1.0.0"),
    ),
    responses(
        (status = 204, description = "forgotten"),
    )
)]
async fn forget(
    State(door): State<Door>,
    Caller(caller): Caller,
    _: InTus,
    Segments(upload): Segments<String>,
) -> Result<StatusCode> {
    door.uploads.forget(&caller.caller, upload_id(&upload)?, door.hub.now())?;
    Ok(StatusCode::NO_CONTENT)
}

/// For senders whose surroundings know neither PATCH nor DELETE
#[utoipa::path(
    post,
    path = "/v1/uploads/{upload}",
    tag = "uploads",
    params(
        ("upload" = Uuid, Path, description = "the upload, from the `Location` of its beginning"),
        ("Tus-Resumable" = String, Header, description = "the version of the protocol", pattern = r"^1\.0\.0$",
            example = "1.0.0"),
        ("X-HTTP-Method-Override" = String, Header, description = "`PATCH` or `DELETE`, whose headers and body follow",
            pattern = "^(PATCH|DELETE)$"),
    ),
    request_body(description = "the piece", content(("application/offset+octet-stream"))),
    responses(
        (status = 201, description = "the last piece: the receipt of the batch", body = Receipt,
            headers(
                ("Upload-Offset" = u64, description = "the byte from which the upload goes on"),
                ("Upload-Expires" = String, description = "until when the hub keeps it")
            )),
        (status = 200, description = "as 201, of a batch that was taken before or only checked", body = Receipt),
        (status = 204, description = "taken, with more to come", headers(
                ("Upload-Offset" = u64, description = "the byte from which the upload goes on"),
                ("Upload-Expires" = String, description = "until when the hub keeps it")
            )),
    )
)]
async fn overridden(
    door: State<Door>,
    caller: Caller,
    tus: InTus,
    upload: Segments<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response> {
    match text_header(&headers, "x-http-method-override").as_deref() {
        Some("PATCH") => go_on(door, caller, tus, upload, headers, body).await,
        Some("DELETE") => forget(door, caller, tus, upload).await.map(IntoResponse::into_response),
        _ => Err(Error::MethodNotAllowed),
    }
}

// ------------------------------------------------------------------------------------ steps of a piece

/// Adds a piece to a draft, and says what was wrong with it. A piece with a checksum is taken whole or not at
/// all; of one without, whatever came before the line broke.
async fn take_piece(
    door: &Door,
    turn: &Turn,
    draft: Draft,
    body: Body,
    checksum: Option<Checksum>,
) -> Result<(Draft, Option<Error>)> {
    let (mark, room) = (draft.mark(), turn.length().saturating_sub(draft.len()));
    let sum = checksum.as_ref().map(|checksum| Context::new(checksum.algorithm));
    let (intake, end) = Intake { draft, sum }.pour(body, room, door.silence).await?;
    let Intake { mut draft, sum } = intake;
    let trouble = match end {
        End::Whole => match checksum.zip(sum).is_none_or(|(checksum, sum)| checksum.is_of(sum)) {
            true => return Ok((draft, None)),
            false => Error::ChecksumMismatch,
        },
        End::BrokeOff | End::Silent => {
            let error = Error::BrokeOff("the piece broke off; HEAD says from which byte to go on".into());
            if checksum.is_none() {
                return Ok((draft, Some(error)));
            }
            error
        }
        End::TooLong => Error::TooLarge { what: "the piece", limit: "what Upload-Length leaves".into() },
        End::Unwritten(error) => error,
    };
    draft.back_to(mark)?;
    Ok((draft, Some(trouble)))
}

/// Leaves an upload until its next piece, or settles it where this was the last.
async fn carry_on(door: &Door, caller: &Credential, turn: Turn, draft: Draft) -> Result<(Standing, Option<Ended>)> {
    if draft.len() < turn.length() {
        return Ok((turn.end(Content::Coming(draft), door.hub.now()), None));
    }
    let whole = intake::finish(draft).await?;
    Ok(settle(door, caller, turn, whole).await)
}

/// Hands a whole upload to the hub. Where the hub cannot say now what becomes of it, its bytes are kept and the
/// sender may ask again.
async fn settle(door: &Door, caller: &Credential, turn: Turn, whole: spool::Body) -> (Standing, Option<Ended>) {
    let outcome = door.hub.upload(caller, turn.plan().push(whole.clone())).await;
    figures::uploaded(&outcome);
    let content = match &outcome {
        Ok(received) => Content::Ended(Ok(received.receipt.clone())),
        Err(error) if will_pass(error) => Content::Whole(whole),
        Err(error) => Content::Ended(Err(error.clone())),
    };
    let ended = Ended::of(turn.plan(), outcome);
    (turn.end(content, door.hub.now()), Some(ended))
}

/// Whether the same bytes may fare better later.
fn will_pass(error: &Error) -> bool {
    matches!(
        error,
        Error::Busy
            | Error::LogUnavailable
            | Error::ResourceLimit(_)
            | Error::Timeout(_)
            | Error::Unauthenticated
            | Error::Setup { .. }
            | Error::Internal(_)
    )
}

/// Takes the last byte of an upload that is there already, from a sender who was told that it is missing.
async fn check_last_byte(
    door: &Door,
    at: u64,
    whole: &spool::Body,
    body: Body,
    checksum: Option<Checksum>,
) -> Result<()> {
    let sum = checksum.as_ref().map(|checksum| Context::new(checksum.algorithm));
    let intake = Intake { draft: door.hub.spool().draft(), sum };
    let (intake, end) = intake.pour(body, whole.len().saturating_sub(at), door.silence).await?;
    if !matches!(end, End::Whole) {
        return Err(Error::violation(
            "the piece is not what is left of the upload; HEAD says from which byte to go on",
        ));
    }
    if checksum.zip(intake.sum).is_some_and(|(checksum, sum)| !checksum.is_of(sum)) {
        return Err(Error::ChecksumMismatch);
    }
    let sent = intake::finish(intake.draft).await?;
    let (sent, kept) = tokio::task::spawn_blocking({
        let whole = whole.clone();
        move || Ok::<_, std::io::Error>((sent.read_at(0, 1)?, whole.read_at(at, 1)?))
    })
    .await
    .map_err(Error::internal)?
    .map_err(Error::internal)?;
    match sent == kept {
        true => Ok(()),
        false => Err(Error::violation("the last byte is not the one that was sent before; begin another upload")),
    }
}

/// The reply to the piece that completes an upload.
struct Ended(Response);

impl Ended {
    fn of(plan: &Plan, outcome: Result<Received>) -> Self {
        Self(match outcome {
            Ok(received) => {
                let status = if plan.dry_run { StatusCode::OK } else { status_of(&received) };
                (status, Json(received.receipt)).into_response()
            }
            Err(error) => error.into_response(),
        })
    }
}

impl IntoResponse for Ended {
    fn into_response(self) -> Response {
        self.0
    }
}

// ------------------------------------------------------------------------------------------- headers

/// Says in a reply how far the upload is.
fn stands(mut response: Response, standing: &Standing) -> Response {
    let headers = response.headers_mut();
    headers.insert("upload-offset", standing.offset.into());
    let expires = standing.expires.format("%a, %d %b %Y %H:%M:%S GMT").to_string();
    if let Ok(expires) = HeaderValue::from_str(&expires) {
        headers.insert("upload-expires", expires);
    }
    response
}

/// Says in a reply, besides, where the upload is.
fn created(response: Response, standing: &Standing) -> Response {
    let mut response = stands(response, standing);
    if let Ok(location) = HeaderValue::from_str(&format!("/v1/uploads/{}", standing.id)) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

fn upload_id(text: &str) -> Result<Uuid> {
    Uuid::parse_str(text).map_err(|_| Error::UnknownUpload)
}

fn number(headers: &HeaderMap, name: &str) -> Result<u64> {
    let number = text_header(headers, name).and_then(|text| text.parse().ok());
    number.ok_or_else(|| Error::BadRequest(format!("give `{name}`, a number of bytes")))
}

fn is_piece(headers: &HeaderMap) -> bool {
    text_header(headers, "content-type").is_some_and(|kind| kind.trim().eq_ignore_ascii_case(PIECE))
}

fn not_a_piece() -> Error {
    Error::UnsupportedMediaType(format!("send the bytes of an upload as {PIECE}"))
}

/// What a piece should digest to.
struct Checksum {
    algorithm: &'static Algorithm,
    expected: Vec<u8>,
}

impl Checksum {
    fn of_piece(headers: &HeaderMap) -> Result<Option<Self>> {
        let Some(value) = headers.get("upload-checksum") else { return Ok(None) };
        let (name, encoded) = value.to_str().ok().and_then(|text| text.trim().split_once(' ')).unwrap_or_default();
        let algorithm = match name {
            "sha256" => &SHA256,
            // The protocol demands it; senders who can choose take the other.
            "sha1" => &SHA1_FOR_LEGACY_USE_ONLY,
            _ => return Err(wrong_checksum()),
        };
        let expected = BASE64.decode(encoded.trim()).map_err(|_| wrong_checksum())?;
        Ok(Some(Self { algorithm, expected }))
    }

    fn is_of(&self, sum: Context) -> bool {
        sum.finish().as_ref() == self.expected
    }
}

fn wrong_checksum() -> Error {
    Error::BadRequest("write `Upload-Checksum` as `sha256` or `sha1`, a space, and the digest in base64".into())
}

/// What an upload is to become, by its `Upload-Metadata`.
fn plan(headers: &HeaderMap) -> Result<Plan> {
    let metadata = text_header(headers, "upload-metadata").unwrap_or_default();
    let members = members(&metadata)?;
    let member = |name: &str| members.get(name).map(String::as_str).filter(|value| !value.is_empty());
    let needed = |name: &str| {
        member(name).ok_or_else(|| Error::BadRequest(format!("give `{name}` in `Upload-Metadata`, in base64")))
    };
    let kind = member("content_type").or_else(|| member("filetype"));
    Ok(Plan {
        dataset: needed("dataset")?.to_owned(),
        batch_id: batch_id(needed("batch_id")?)?,
        format: format_of(kind.map_or_else(|| needed("content_type"), Ok)?)?,
        contract_version: member("contract_version").map(str::to_owned),
        content_digest: member("content_digest").map(sha_256).transpose()?,
        dry_run: match member("dry_run") {
            None | Some("false") => false,
            Some("true") => true,
            Some(_) => return Err(Error::BadRequest("`dry_run` in `Upload-Metadata` is `true` or `false`".into())),
        },
        metadata,
    })
}

/// The members of `Upload-Metadata`: names with values in base64, between commas.
fn members(metadata: &str) -> Result<BTreeMap<String, String>> {
    let unreadable = || {
        Error::BadRequest("write `Upload-Metadata` as names with values in base64, between commas, each once".into())
    };
    if metadata.len() > LONGEST_METADATA {
        return Err(Error::TooLarge { what: "`Upload-Metadata`", limit: "8 KiB".into() });
    }
    let mut members = BTreeMap::new();
    for pair in metadata.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
        let (name, encoded) = pair.split_once(' ').unwrap_or((pair, ""));
        let value = BASE64.decode(encoded.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        if members.insert(name.to_owned(), value.ok_or_else(unreadable)?).is_some() {
            return Err(unreadable());
        }
    }
    Ok(members)
}

/// A digest as people write it: 64 hexadecimal digits, or base64.
fn sha_256(text: &str) -> Result<Vec<u8>> {
    let digits = || (0..text.len()).step_by(2).map(|at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok());
    let digest = match text.len() == 64 {
        true => digits().collect::<Option<Vec<u8>>>(),
        false => BASE64.decode(text).ok(),
    };
    digest.filter(|digest| digest.len() == 32).ok_or_else(|| {
        Error::BadRequest("`content_digest` in `Upload-Metadata` is the SHA-256 of the file in hex or base64".into())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hex::hex;

    #[test]
    fn digests_are_read_in_either_form() {
        let bytes: Vec<u8> = (0..32).map(|byte| byte * 7).collect();
        assert_eq!(sha_256(&hex(&bytes)).unwrap(), bytes);
        assert_eq!(sha_256(&BASE64.encode(&bytes)).unwrap(), bytes);
        for wrong in ["", "00", "AAAA", &"g".repeat(64), &"é".repeat(32), &BASE64.encode([0; 33])] {
            assert_eq!(sha_256(wrong).unwrap_err().slug(), "bad-request", "{wrong}");
        }
    }

    #[test]
    fn metadata_names_each_member_once() {
        let read = members("dataset Y29tbXVuaXR5LnZpc2l0cw==, dry_run ,note").unwrap();
        assert_eq!(read["dataset"], "community.visits");
        assert_eq!((read["dry_run"].as_str(), read["note"].as_str()), ("", ""));
        for wrong in ["dataset !", "a YQ==,a YQ==", "a /w=="] {
            assert_eq!(members(wrong).unwrap_err().slug(), "bad-request", "{wrong}");
        }
        assert_eq!(members(&"a".repeat(9 << 10)).unwrap_err().slug(), "too-large");
    }
}

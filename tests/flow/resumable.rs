//! Uploads in pieces: a line that breaks, a sender that forgets, a hub that starts anew, and files that come whole.

use std::{sync::Arc, time::Duration};

use axum::{
    body::Body,
    http::{Method, Request},
};
use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use chrono::TimeDelta;
use futures::{channel::mpsc, stream};
use gridhub::{
    front::http::{self, Options},
    resumable::Limits,
};
use insta::assert_snapshot;
use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, SHA256, digest};
use serde_json::{Value, json};
use tower::ServiceExt;
use uuid::Uuid;

use crate::support::{CSV, Reply, TestHub, fixture};

const VISITS: &str = "community.visits";
const UNKNOWN: &str = "404 not-found: no such upload of this caller; it may have expired, or the hub was started anew: \
                       begin another under the same batch id";

async fn hub_with_divisions() -> TestHub {
    divisions_on(TestHub::start().await).await
}

async fn divisions_on(hub: TestHub) -> TestHub {
    let reply = hub.push("platform-uploader", "platform.divisions", CSV, fixture("platform.divisions.csv")).await;
    assert_eq!(reply.status, 201, "{}", reply.text());
    hub
}

fn file() -> Vec<u8> {
    fixture("community.visits.csv")
}

fn metadata(members: &[(&str, &str)]) -> String {
    members.iter().map(|(name, value)| format!("{name} {}", BASE64.encode(value))).collect::<Vec<_>>().join(",")
}

fn visits(id: Uuid) -> String {
    metadata(&[("dataset", VISITS), ("batch_id", &id.to_string()), ("content_type", CSV)])
}

/// A receipt without what differs from batch to batch.
fn essence(receipt: &Value) -> Value {
    let mut receipt = receipt.clone();
    for member in ["batch_id", "signature", "log_index"] {
        assert!(receipt.as_object_mut().unwrap().shift_remove(member).is_some(), "{member}");
    }
    receipt
}

/// A sender of pieces.
struct Site<'a> {
    hub: &'a TestHub,
    token: String,
}

impl<'a> Site<'a> {
    fn of(hub: &'a TestHub, caller: &str) -> Self {
        Self { hub, token: hub.token(caller) }
    }

    fn request(&self, method: Method, path: &str, headers: &[(&str, &str)], body: Body) -> Request<Body> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("authorization", format!("Bearer {}", self.token))
            .header("tus-resumable", "1.0.0");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(body).unwrap()
    }

    async fn send(&self, method: Method, path: &str, headers: &[(&str, &str)], body: impl Into<Body>) -> Reply {
        let reply = self.hub.send(self.request(method, path, headers, body.into())).await;
        assert_eq!(reply.header("tus-resumable"), "1.0.0", "every reply names the version");
        reply
    }

    async fn begin(&self, length: usize, metadata: &str) -> Reply {
        let length = length.to_string();
        let headers = [("upload-length", length.as_str()), ("upload-metadata", metadata)];
        self.send(Method::POST, "/v1/uploads", &headers, Body::empty()).await
    }

    /// The address of a new upload.
    async fn address(&self, length: usize, metadata: &str) -> String {
        let reply = self.begin(length, metadata).await;
        assert_eq!(reply.status, 201, "{}", reply.text());
        reply.header("location")
    }

    async fn patch(&self, address: &str, at: usize, body: impl Into<Body>) -> Reply {
        self.patch_with(address, at, &[], body).await
    }

    async fn patch_with(&self, address: &str, at: usize, more: &[(&str, &str)], body: impl Into<Body>) -> Reply {
        let at = at.to_string();
        let mut headers = vec![("upload-offset", at.as_str()), ("content-type", "application/offset+octet-stream")];
        headers.extend_from_slice(more);
        self.send(Method::PATCH, address, &headers, body).await
    }

    async fn head(&self, address: &str) -> Reply {
        self.send(Method::HEAD, address, &[], Body::empty()).await
    }

    async fn offset(&self, address: &str) -> String {
        let reply = self.head(address).await;
        assert_eq!(reply.status, 200);
        reply.header("upload-offset")
    }

    /// What a look at an unknown upload says, with its words.
    async fn unknown(&self, address: &str) {
        assert_eq!(self.head(address).await.status, 404);
        assert_eq!(self.patch(address, 0, "x").await.problem(), UNKNOWN);
        assert_eq!(self.send(Method::DELETE, address, &[], Body::empty()).await.problem(), UNKNOWN);
    }

    async fn visits(&self) -> String {
        self.hub.ask_as(&self.token, "", "SELECT count(*) FROM visits", "application/json").await.rows()
    }
}

/// A body whose line breaks after these bytes.
fn broken(bytes: &[u8]) -> Body {
    let pieces = [Ok(Bytes::copy_from_slice(bytes)), Err(std::io::Error::other("the line broke"))];
    Body::from_stream(stream::iter(pieces))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_hub_speaks() {
    let hub = TestHub::start().await;
    for path in ["/v1/uploads".to_owned(), format!("/v1/uploads/{}", Uuid::new_v4())] {
        let request = Request::builder().method(Method::OPTIONS).uri(path).body(Body::empty()).unwrap();
        let reply = hub.send(request).await;
        assert_eq!((reply.status, reply.header("tus-version")), (204, "1.0.0".into()));
        assert_eq!(reply.header("tus-max-size"), (64 << 20).to_string());
        let extensions = "creation,creation-with-upload,checksum,expiration,termination";
        assert_eq!((reply.header("tus-extension"), reply.header("tus-resumable")), (extensions.into(), "1.0.0".into()));
        assert_eq!(reply.header("tus-checksum-algorithm"), "sha256,sha1");
    }
    let token = hub.token("community-uploader");
    for version in ["", "0.2.2"] {
        let request = Request::post("/v1/uploads")
            .header("authorization", format!("Bearer {token}"))
            .header("tus-resumable", version)
            .body(Body::empty());
        let reply = hub.send(request.unwrap()).await;
        assert_eq!(reply.problem(), "412 unsupported-version: this hub speaks tus 1.0.0; send `Tus-Resumable: 1.0.0`");
        assert_eq!(reply.header("tus-version"), "1.0.0");
    }
    let site = Site::of(&hub, "community-uploader");
    assert_eq!(site.send(Method::GET, "/v1/uploads", &[], Body::empty()).await.status, 405);
}

#[tokio::test(flavor = "multi_thread")]
async fn three_pieces_give_the_receipt_of_one_body() {
    let (whole, pieces) = (hub_with_divisions().await, hub_with_divisions().await);
    let put = whole.push("community-uploader", VISITS, CSV, file()).await;
    assert_eq!((put.status, put.json()["rows_accepted"].clone()), (201, json!(16)));

    let (site, id, file) = (Site::of(&pieces, "community-uploader"), Uuid::now_v7(), file());
    let begun = site.begin(file.len(), &visits(id)).await;
    let address = begun.header("location");
    assert!(address.starts_with("/v1/uploads/"), "{address}");
    assert_eq!((begun.status, begun.header("upload-offset")), (201, "0".into()));
    assert_eq!(begun.header("upload-expires"), "Thu, 08 Jan 2026 01:00:00 GMT");
    let third = file.len() / 3;
    for piece in 0..2 {
        let reply = site.patch(&address, piece * third, file[piece * third..(piece + 1) * third].to_vec()).await;
        assert_eq!((reply.status, reply.header("upload-offset")), (204, ((piece + 1) * third).to_string()));
        assert!(reply.body.is_empty());
    }
    let look = site.head(&address).await;
    assert_eq!((look.status, look.header("upload-offset")), (200, (2 * third).to_string()));
    assert_eq!(
        (look.header("upload-length"), look.header("cache-control")),
        (file.len().to_string(), "no-store".into())
    );
    assert_eq!(look.header("upload-metadata"), visits(id));
    assert_eq!(site.visits().await, "[0]", "nothing is seen of a batch that is not whole");

    let last = site.patch(&address, 2 * third, file[2 * third..].to_vec()).await;
    assert_eq!((last.status, last.header("upload-offset")), (201, file.len().to_string()), "{}", last.text());
    assert_eq!(essence(&last.json()), essence(&put.json()));
    let fetched = pieces.get(&site.token, &format!("/v1/datasets/{VISITS}/batches/{id}")).await;
    assert_eq!(fetched.json(), last.json());
    assert_eq!(site.visits().await, "[16]");

    // Who lost the answer asks again: the end of the upload is remembered, and so is the batch.
    assert_eq!(site.offset(&address).await, file.len().to_string());
    let again = site.patch(&address, file.len(), Body::empty()).await;
    assert_eq!((again.status, again.json()), (200, last.json()));
    let put_again = pieces.push_as(&site.token, VISITS, id, CSV, file.clone()).await;
    assert_eq!((put_again.status, put_again.json()), (200, last.json()));
    assert_eq!(site.visits().await, "[16]");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_comes_with_its_beginning() {
    let hub = hub_with_divisions().await;
    let (site, id, file) = (Site::of(&hub, "community-uploader"), Uuid::now_v7(), file());
    let (length, words) = (file.len().to_string(), visits(id));
    let mut headers = vec![
        ("upload-length", length.as_str()),
        ("upload-metadata", words.as_str()),
        ("content-type", "application/offset+octet-stream"),
    ];
    let part = site.send(Method::POST, "/v1/uploads", &headers, file[..100].to_vec()).await;
    assert_eq!((part.status, part.header("upload-offset")), (201, "100".into()));
    let rest = site.patch(&part.header("location"), 100, file[100..].to_vec()).await;
    assert_eq!(rest.status, 201, "{}", rest.text());
    // All at once, of a batch that is known by now.
    let whole = site.send(Method::POST, "/v1/uploads", &headers, file.clone()).await;
    assert_eq!((whole.status, whole.json()), (200, rest.json()));
    assert_eq!(site.offset(&whole.header("location")).await, length);

    let unlike = site.send(Method::POST, "/v1/uploads", &headers[..2], file.clone()).await;
    assert_snapshot!(unlike.problem(), @"415 unsupported-media-type: send the bytes of an upload as application/offset+octet-stream");
    headers[0].1 = "0";
    let empty = site.send(Method::POST, "/v1/uploads", &headers[..2], Body::empty()).await;
    assert_snapshot!(empty.problem(), @"409 batch-conflict: this batch id was used for other bytes; send the file under a new id");
}

#[tokio::test(flavor = "multi_thread")]
async fn pieces_that_are_out_of_place() {
    let hub = hub_with_divisions().await;
    let (site, file) = (Site::of(&hub, "community-uploader"), file());
    let address = site.address(file.len(), &visits(Uuid::now_v7())).await;
    site.patch(&address, 0, file[..50].to_vec()).await;
    for at in [0, 49, 51] {
        let reply = site.patch(&address, at, file[at..at + 10].to_vec()).await;
        assert_eq!(reply.problem(), "409 upload-offset: the upload goes on at byte 50; send from there");
        assert_eq!(reply.json()["offset"], 50);
    }
    let headers = [("content-type", "application/offset+octet-stream")];
    let nowhere = site.send(Method::PATCH, &address, &headers, "x").await;
    assert_snapshot!(nowhere.problem(), @"400 bad-request: give `upload-offset`, a number of bytes");
    let unlike = site.send(Method::PATCH, &address, &[("upload-offset", "50"), ("content-type", CSV)], "x").await;
    assert_eq!(unlike.status, 415);
    let packed = site.patch_with(&address, 50, &[("content-encoding", "gzip")], "x").await;
    assert_eq!(packed.status, 415);

    // Longer than was promised, with and without a length of its own.
    let mut long = file[50..].to_vec();
    long.push(b'x');
    let pieces: Vec<_> = long.chunks(100).map(|piece| Ok::<_, std::io::Error>(Bytes::copy_from_slice(piece))).collect();
    for body in [Body::from(long), Body::from_stream(stream::iter(pieces))] {
        let reply = site.patch(&address, 50, body).await;
        assert_eq!(reply.problem(), "413 too-large: the piece is larger than what Upload-Length leaves");
        assert_eq!(site.offset(&address).await, "50");
    }
    // A sender whose surroundings know no PATCH.
    let headers = [
        ("x-http-method-override", "PATCH"),
        ("upload-offset", "50"),
        ("content-type", "application/offset+octet-stream"),
    ];
    let rest = site.send(Method::POST, &address, &headers, file[50..].to_vec()).await;
    assert_eq!((rest.status, rest.json()["rows_accepted"].clone()), (201, json!(16)), "{}", rest.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn pieces_with_checksums_are_taken_whole_or_not_at_all() {
    let hub = hub_with_divisions().await;
    let (site, file) = (Site::of(&hub, "community-uploader"), file());
    let address = site.address(file.len(), &visits(Uuid::now_v7())).await;
    let sha256 = |bytes: &[u8]| format!("sha256 {}", BASE64.encode(digest(&SHA256, bytes)));
    let sha1 = |bytes: &[u8]| format!("sha1 {}", BASE64.encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, bytes)));

    let first = site.patch_with(&address, 0, &[("upload-checksum", &sha256(&file[..99]))], file[..99].to_vec()).await;
    assert_eq!((first.status, first.header("upload-offset")), (204, "99".into()));
    let mut damaged = file[99..200].to_vec();
    damaged[17] ^= 1;
    for checksum in [sha256(&file[99..200]), sha1(&file[99..200])] {
        let reply = site.patch_with(&address, 99, &[("upload-checksum", &checksum)], damaged.clone()).await;
        assert_eq!(
            reply.problem(),
            "460 checksum-mismatch: the piece does not match its Upload-Checksum; send it again from the same offset"
        );
        assert_eq!(site.offset(&address).await, "99");
    }
    for checksum in ["md5 AAAA", "sha256", "sha256 ?", ""] {
        let reply = site.patch_with(&address, 99, &[("upload-checksum", checksum)], file[99..200].to_vec()).await;
        assert_eq!(
            reply.problem(),
            "400 bad-request: write `Upload-Checksum` as `sha256` or `sha1`, a space, and the digest in base64"
        );
    }
    // A line that breaks leaves nothing of a piece with a checksum, and all that came of one without.
    let checksum = sha256(&file[99..]);
    let reply = site.patch_with(&address, 99, &[("upload-checksum", &checksum)], broken(&file[99..150])).await;
    assert_snapshot!(reply.problem(), @"408 broken-off: the piece broke off; HEAD says from which byte to go on");
    assert_eq!(site.offset(&address).await, "99");
    assert_eq!(site.patch(&address, 99, broken(&file[99..150])).await.status, 408);
    assert_eq!(site.offset(&address).await, "150");
    let rest = site.patch_with(&address, 150, &[("upload-checksum", &sha1(&file[150..]))], file[150..].to_vec()).await;
    assert_eq!((rest.status, rest.json()["rows_accepted"].clone()), (201, json!(16)), "{}", rest.text());
}

/// The line breaks when all bytes are there: the batch is taken, since the sender will read that nothing is missing.
#[tokio::test(flavor = "multi_thread")]
async fn a_line_that_breaks_after_the_last_byte() {
    let hub = hub_with_divisions().await;
    let (site, id, file) = (Site::of(&hub, "community-uploader"), Uuid::now_v7(), file());
    let address = site.address(file.len(), &visits(id)).await;
    assert_eq!(site.patch(&address, 0, broken(&file)).await.status, 201);
    assert_eq!(site.offset(&address).await, file.len().to_string());
    assert_eq!(site.visits().await, "[16]");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sender_that_hangs_up_finds_what_came() {
    let hub = hub_with_divisions().await;
    let (site, file) = (Site::of(&hub, "community-uploader"), file());
    let address = site.address(file.len(), &visits(Uuid::now_v7())).await;
    let (line, pieces) = mpsc::unbounded::<Result<Bytes, std::io::Error>>();
    line.unbounded_send(Ok(Bytes::copy_from_slice(&file[..50]))).unwrap();
    let sending = site.patch(&address, 0, Body::from_stream(pieces));
    assert!(tokio::time::timeout(Duration::from_millis(200), sending).await.is_err(), "it waits for more");
    line.unbounded_send(Err(std::io::Error::other("the line broke"))).unwrap();
    for _ in 0..500 {
        if site.offset(&address).await == "50" {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(site.patch(&address, 50, file[50..].to_vec()).await.status, 201);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_piece_at_a_time() {
    let hub = hub_with_divisions().await;
    let (site, file) = (Site::of(&hub, "community-uploader"), file());
    let address = site.address(file.len(), &visits(Uuid::now_v7())).await;
    let (line, pieces) = mpsc::unbounded::<Result<Bytes, std::io::Error>>();
    let meanwhile = async {
        let mut second = site.patch(&address, 0, Body::empty()).await;
        while second.status == 204 {
            tokio::time::sleep(Duration::from_millis(10)).await;
            second = site.patch(&address, 0, Body::empty()).await;
        }
        assert_snapshot!(second.problem(), @"423 locked: another request is at this upload; wait for its end, or try again in a moment");
        assert_eq!(site.send(Method::DELETE, &address, &[], Body::empty()).await.status, 423);
        assert_eq!(site.offset(&address).await, "0");
        line.unbounded_send(Ok(Bytes::from(file.clone()))).unwrap();
        drop(line);
    };
    let (first, ()) = tokio::join!(site.patch(&address, 0, Body::from_stream(pieces)), meanwhile);
    assert_eq!(first.status, 201, "{}", first.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_is_its_senders_alone() {
    let hub = hub_with_divisions().await;
    let (site, file) = (Site::of(&hub, "community-uploader"), file());
    let address = site.address(file.len(), &visits(Uuid::now_v7())).await;
    site.patch(&address, 0, file[..50].to_vec()).await;
    for stranger in ["community-east-uploader", "hospital-uploader", "health-analyst"] {
        Site::of(&hub, stranger).unknown(&address).await;
    }
    site.unknown(&format!("/v1/uploads/{}", Uuid::new_v4())).await;
    site.unknown("/v1/uploads/42").await;
    // Another token of the same sender will do, and one that was taken back will not.
    let other = Site::of(&hub, "community-uploader");
    assert_eq!(other.offset(&address).await, "50");
    let id = hub.metadata().tokens().unwrap().last().unwrap().id.clone();
    gridhub::identity::revoke(&hub.metadata(), &id, hub.clock.now()).unwrap();
    assert_eq!(other.patch(&address, 50, file[50..].to_vec()).await.status, 401);
    assert_eq!(site.offset(&address).await, "50");
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads_end_by_word_by_time_and_by_restart() {
    let mut hub = hub_with_divisions().await;
    let file = file();
    let id = Uuid::now_v7();
    {
        let site = Site::of(&hub, "community-uploader");
        let address = site.address(file.len(), &visits(id)).await;
        assert_eq!(site.send(Method::DELETE, &address, &[], Body::empty()).await.status, 204);
        site.unknown(&address).await;

        // It is kept for a day after its last byte.
        let address = site.address(file.len(), &visits(id)).await;
        hub.clock.step(TimeDelta::hours(23));
        let reply = site.patch(&address, 0, file[..50].to_vec()).await;
        assert_eq!(reply.header("upload-expires"), "Fri, 09 Jan 2026 00:00:00 GMT");
        hub.clock.step(TimeDelta::hours(24) - TimeDelta::seconds(1));
        let site = Site::of(&hub, "community-uploader");
        assert_eq!(site.offset(&address).await, "50");
        hub.clock.step(TimeDelta::seconds(1));
        site.unknown(&address).await;
    }
    let address = Site::of(&hub, "community-uploader").address(file.len(), &visits(id)).await;
    Site::of(&hub, "community-uploader").patch(&address, 0, file[..50].to_vec()).await;
    hub.restart().await;
    let site = Site::of(&hub, "community-uploader");
    site.unknown(&address).await;
    // Nothing is lost: the batch has its id still.
    let address = site.address(file.len(), &visits(id)).await;
    assert_eq!(site.patch(&address, 0, file).await.status, 201);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_in_pieces_stores_nothing() {
    let hub = hub_with_divisions().await;
    let (site, id, file) = (Site::of(&hub, "community-uploader"), Uuid::now_v7().to_string(), file());
    let mut members = vec![("dataset", VISITS), ("batch_id", id.as_str()), ("filetype", CSV), ("dry_run", "true")];
    let address = site.address(file.len(), &metadata(&members)).await;
    let reply = site.patch(&address, 0, file.clone()).await;
    assert_eq!((reply.status, reply.json()["rows_accepted"].clone()), (200, json!(16)), "{}", reply.text());
    assert_eq!(site.visits().await, "[0]");
    members[3].1 = "false";
    let address = site.address(file.len(), &metadata(&members)).await;
    assert_eq!(site.patch(&address, 0, file).await.status, 201);
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_are_refused_at_their_end() {
    let hub = hub_with_divisions().await;
    let (site, id, file) = (Site::of(&hub, "community-uploader"), Uuid::now_v7().to_string(), file());
    let members = |digest: &'static str| {
        metadata(&[("dataset", VISITS), ("batch_id", id.as_str()), ("content_type", CSV), ("content_digest", digest)])
    };
    let address = site.address(file.len(), &members("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=")).await;
    let wrong = "400 digest-mismatch: the body does not match its Content-Digest; send it again";
    assert_eq!(site.patch(&address, 0, file.clone()).await.problem(), wrong);
    assert_eq!(site.patch(&address, file.len(), Body::empty()).await.problem(), wrong, "said again, not tried again");
    let nothing = site.address(9, &visits(Uuid::now_v7())).await;
    let reply = site.patch(&nothing, 0, "not a csv").await;
    assert_eq!((reply.status, reply.header("upload-offset")), (422, "9".into()));
    // The id was not used up.
    assert_eq!(hub.push_as(&site.token, VISITS, id.parse().unwrap(), CSV, file).await.status, 201);
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads_that_never_begin() {
    let hub = TestHub::start().await;
    let (site, id) = (Site::of(&hub, "community-uploader"), Uuid::now_v7().to_string());
    let begin = async |members: &[(&str, &str)]| site.begin(10, &metadata(members)).await.problem();
    assert_snapshot!(begin(&[]).await, @"400 bad-request: give `dataset` in `Upload-Metadata`, in base64");
    assert_snapshot!(begin(&[("dataset", VISITS)]).await, @"400 bad-request: give `batch_id` in `Upload-Metadata`, in base64");
    assert_snapshot!(begin(&[("dataset", VISITS), ("batch_id", "42")]).await, @"400 bad-request: the batch id is not a UUID; make one and keep it for every try of the same file");
    assert_snapshot!(begin(&[("dataset", VISITS), ("batch_id", id.as_str())]).await, @"400 bad-request: give `content_type` in `Upload-Metadata`, in base64");
    assert_snapshot!(begin(&[("dataset", VISITS), ("batch_id", id.as_str()), ("content_type", "image/png")]).await, @"415 unsupported-media-type: send application/vnd.apache.parquet, application/vnd.apache.arrow.stream or text/csv");
    assert_snapshot!(begin(&[("dataset", VISITS), ("batch_id", id.as_str()), ("content_type", CSV), ("dry_run", "maybe")]).await, @"400 bad-request: `dry_run` in `Upload-Metadata` is `true` or `false`");
    assert_snapshot!(site.begin(10, "dataset ?").await.problem(), @"400 bad-request: write `Upload-Metadata` as names with values in base64, between commas, each once");
    let words = visits(Uuid::now_v7());
    let endless = site.send(Method::POST, "/v1/uploads", &[("upload-defer-length", "1")], Body::empty()).await;
    assert_snapshot!(endless.problem(), @"400 bad-request: give `Upload-Length`; the hub takes no uploads of unknown length");
    let headers = [("upload-length", "-1"), ("upload-metadata", words.as_str())];
    let negative = site.send(Method::POST, "/v1/uploads", &headers, Body::empty()).await;
    assert_snapshot!(negative.problem(), @"400 bad-request: give `upload-length`, a number of bytes");
    let large = site.begin((64 << 20) + 1, &words).await;
    assert_snapshot!(large.problem(), @"413 too-large: the body is larger than this hub's limit; send the file in parts");

    // Leave is asked for before the first byte, in the words of a whole push.
    let analyst = Site::of(&hub, "health-analyst").begin(10, &words).await;
    assert_snapshot!(analyst.problem(), @"403 not-allowed: `health-analyst` may not push to `community.visits`; ask the agency `community` for leave");
    let stranger = Site::of(&hub, "pharmacy-uploader");
    let nowhere = metadata(&[("dataset", "community.nothing"), ("batch_id", id.as_str()), ("content_type", CSV)]);
    assert_eq!(stranger.begin(10, &words).await.problem(), "404 not-found: not found");
    assert_eq!(stranger.begin(10, &nowhere).await.problem(), "404 not-found: not found");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_agency_has_so_many_open_uploads() {
    let hub = hub_with_divisions().await;
    let site = Site::of(&hub, "community-uploader");
    let mut last = String::new();
    for _ in 0..16 {
        last = site.address(10, &visits(Uuid::now_v7())).await;
    }
    for caller in ["community-uploader", "community-east-uploader"] {
        let reply = Site::of(&hub, caller).begin(10, &visits(Uuid::now_v7())).await;
        assert_eq!(
            reply.problem(),
            "429 rate-limited: `community` has 16 open uploads; end them or DELETE those that will not go on"
        );
    }
    site.send(Method::DELETE, &last, &[], Body::empty()).await;
    site.address(10, &visits(Uuid::now_v7())).await;

    // The hub as a whole has a limit too.
    let options = Options { uploads: Limits { open: 0, ..Limits::default() }, ..Options::default() };
    let router = http::router(Arc::clone(hub.hub.as_ref().unwrap()), options);
    let words = visits(Uuid::now_v7());
    let headers = [("upload-length", "10"), ("upload-metadata", words.as_str())];
    let request = site.request(Method::POST, "/v1/uploads", &headers, Body::empty());
    assert_eq!(router.oneshot(request).await.unwrap().status(), 503);
}

#[tokio::test(flavor = "multi_thread")]
async fn whole_bodies_that_do_not_come_whole() {
    let hub = hub_with_divisions().await;
    let token = hub.token("community-uploader");
    let put = |headers: &[(&str, &str)], body: Body| {
        let mut request = Request::put(format!("/v1/datasets/{VISITS}/batches/{}", Uuid::now_v7()))
            .header("authorization", format!("Bearer {token}"))
            .header("content-type", CSV);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(body).unwrap()
    };
    let cut = hub.send(put(&[], broken(&file()))).await;
    assert_snapshot!(cut.problem(), @"408 broken-off: the body broke off; send it again under the same id");
    let packed = hub.send(put(&[("content-encoding", "gzip")], Body::from(file()))).await;
    assert_snapshot!(packed.problem(), @"415 unsupported-media-type: send the file without Content-Encoding; Parquet is compressed inside");
    // The hub does not learn a length beforehand, and stops at its limit.
    let endless = stream::repeat_with(|| Ok::<_, std::io::Error>(Bytes::from_static(&[b'x'; 64 << 10])));
    let large = hub.send(put(&[], Body::from_stream(endless))).await;
    assert_snapshot!(large.problem(), @"413 too-large: the body is larger than this hub's limit; send the file in parts");
    // Who may not push is told so before anything is read.
    let unread =
        stream::poll_fn(|_| -> std::task::Poll<Option<Result<Bytes, std::io::Error>>> { panic!("it was read") });
    let request = Request::put(format!("/v1/datasets/{VISITS}/batches/{}", Uuid::now_v7()))
        .header("authorization", format!("Bearer {}", hub.token("health-analyst")))
        .header("content-type", CSV);
    assert_eq!(hub.send(request.body(Body::from_stream(unread)).unwrap()).await.status, 403);

    // A sender that says nothing more is not waited for.
    let options = Options { silence: Duration::from_millis(100), ..Options::default() };
    let router = http::router(Arc::clone(hub.hub.as_ref().unwrap()), options);
    let silent = Body::from_stream(stream::pending::<Result<Bytes, std::io::Error>>());
    let reply = router.oneshot(put(&[], silent)).await.unwrap();
    assert_eq!(reply.status(), 408);

    let sum = |bytes: &[u8]| format!("sha-256=:{}:", BASE64.encode(digest(&SHA256, bytes)));
    let (right, wrong) = (sum(&file()), sum(b"x"));
    let mismatch = "400 digest-mismatch: the body does not match its Content-Digest; send it again";
    for headers in [
        vec![("repr-digest", wrong.as_str())],
        vec![("content-digest", "sha-512=:AA==:"), ("content-digest", wrong.as_str())],
        vec![("repr-digest", right.as_str()), ("content-digest", wrong.as_str())],
    ] {
        assert_eq!(hub.send(put(&headers, Body::from(file()))).await.problem(), mismatch);
    }
    let headers =
        [("repr-digest", right.as_str()), ("content-digest", right.as_str()), ("content-encoding", "identity")];
    let whole = hub.send(put(&headers, Body::from(file()))).await;
    assert_eq!((whole.status, whole.json()["rows_accepted"].clone()), (201, json!(16)), "{}", whole.text());
}

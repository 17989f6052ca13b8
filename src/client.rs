//! The other side of the wire: what the command line says to a hub over HTTP.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use reqwest::{Certificate, Identity, Method, RequestBuilder, Response, StatusCode};
use ring::digest::{Context, SHA256, digest};
use rustls::CertificateError;
use serde::Serialize;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    audit::{
        Entry, checkpoint,
        tree::{Hash, Tree},
    },
    dataset::receipt::{Receipt, Status},
    disclose::{Small, Wishes},
    error::{Error, Result},
    keys::folder::read as read_secret,
    validate::Format,
};

/// How often an upload is tried without getting any further before it is given up for now.
const TRIES: u32 = 7;

/// The same for a caller that comes back by itself.
const FEW_TRIES: u32 = 3;

/// How often an upload is begun anew because the hub no longer knows it, as after its restart.
const NEW_STARTS: u32 = 20;

/// The first pause between two tries; each further one is twice as long, up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(200);

/// The longest pause between two tries.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// How long the hub may be at work on an upload whose connection was cut: it checks the rows of a large file.
const LOCKED: Duration = Duration::from_secs(15 * 60);

/// Bytes of a body sent in one piece; as often progress is told.
const PIECE: usize = 256 << 10;

/// Bytes up to which a file goes in one request, and the most that one request of a larger file carries.
const CHUNK: usize = 8 << 20;

/// The version of the protocol of resumable uploads, <https://tus.io/protocols/resumable-upload>.
const TUS: &str = "1.0.0";

/// What a hub may find too large, in its words.
const TOO_LARGE: [&str; 17] = [
    "the body",
    "the file",
    "the file's own description",
    "the decompressed file",
    "the header line",
    "the text of a few rows",
    "the number of rows",
    "the number of columns",
    "the number of row groups",
    "the number of pages",
    "the number of batches",
    "a page of each column together",
    "a batch of the stream, or all its dictionaries",
    "the piece",
    "`Upload-Metadata`",
    "the request",
    "the statement",
];

/// A connection to a hub, on behalf of one token.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    url: String,
    token: String,
    tries: u32,
}

/// Whom a client trusts to be its hub besides those the system trusts, and the certificate by which the hub knows it.
#[derive(Clone, Default)]
pub struct Trust {
    roots: Vec<Certificate>,
    identity: Option<Identity>,
}

impl Trust {
    /// The same, and whoever has a certificate signed by one of the roots in a PEM file.
    ///
    /// # Errors
    /// [`Error::Usage`] where it holds none.
    pub fn in_roots(self, file: &Path) -> Result<Self> {
        let unusable = |why: &str| Error::Usage(format!("`{}` holds no roots to trust: {why}", file.display()));
        let text = fs::read(file).map_err(|e| unusable(&e.to_string()))?;
        let roots = Certificate::from_pem_bundle(&text).map_err(|_| unusable("it is no PEM file"))?;
        match roots.is_empty() {
            true => Err(unusable("there is no BEGIN CERTIFICATE in it")),
            false => Ok(Self { roots, ..self }),
        }
    }

    /// The same with a certificate and its key to show, both PEM; no token is needed then.
    ///
    /// # Errors
    /// [`Error::Usage`] or [`Error::Setup`] where they cannot be used, or others can read the key.
    pub fn showing(self, certificate: &Path, key: &Path) -> Result<Self> {
        let unusable = |why: &str| Error::Usage(format!("`{}` cannot be shown: {why}", certificate.display()));
        let mut text = read_secret(key)?;
        text.push(b'\n');
        text.extend(fs::read(certificate).map_err(|e| unusable(&e.to_string()))?);
        let identity = Identity::from_pem(&text).map_err(|_| unusable("it must be PEM, and its key too"))?;
        Ok(Self { identity: Some(identity), ..self })
    }
}

/// A file of rows on its way to a dataset.
#[derive(Clone)]
pub struct Parcel {
    /// The dataset, `agency.name`.
    pub dataset: String,
    /// The id of the batch; the same for every try of the same file.
    pub batch_id: Uuid,
    /// How the file is written.
    pub format: Format,
    /// Its bytes.
    pub content: Content,
    /// SHA-256 of the bytes; where absent, it is found in a first pass over them.
    pub digest: Option<[u8; 32]>,
    /// Whether the hub checks the rows and stores none.
    pub dry_run: bool,
}

/// The bytes of a parcel: in memory, or in a file that is read as it is sent and never held whole.
#[derive(Clone)]
pub struct Content(Source);

#[derive(Clone)]
enum Source {
    Memory(Bytes),
    File { file: Arc<File>, length: u64 },
}

/// How far a push has come, in bytes from the beginning. A place may come again, or an earlier one, where a
/// connection was cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Read for the digest.
    Read(u64),
    /// Sent to the hub.
    Sent(u64),
}

/// Who hears of the steps of a push.
pub type Progress = Arc<dyn Fn(Step) + Send + Sync>;

impl From<Bytes> for Content {
    fn from(bytes: Bytes) -> Self {
        Self(Source::Memory(bytes))
    }
}

impl Content {
    /// The bytes of a file on disk; the file may not change until they are sent.
    ///
    /// # Errors
    /// [`Error::Usage`] where it cannot be read.
    pub fn open(path: &Path) -> Result<Self> {
        let opened = File::open(path).and_then(|file| {
            let facts = file.metadata()?;
            match facts.is_file() {
                true => Ok((file, facts.len())),
                false => Err(io::Error::other("this is no file")),
            }
        });
        let (file, length) = opened.map_err(|e| Error::Usage(format!("cannot read `{}`: {e}", path.display())))?;
        Ok(Self(Source::File { file: Arc::new(file), length }))
    }

    /// Bytes there are.
    pub fn length(&self) -> u64 {
        match &self.0 {
            Source::Memory(bytes) => bytes.len() as u64,
            Source::File { length, .. } => *length,
        }
    }

    /// SHA-256 of all bytes; `progress` hears of every piece.
    ///
    /// # Errors
    /// [`Error::Usage`] where the file cannot be read.
    pub async fn digest(&self, progress: Progress) -> Result<[u8; 32]> {
        let content = self.clone();
        let hashed = tokio::task::spawn_blocking(move || {
            let mut context = Context::new(&SHA256);
            let mut at = 0;
            while at < content.length() {
                let piece = content.read_at(at, PIECE)?;
                context.update(&piece);
                at += piece.len() as u64;
                progress(Step::Read(at));
            }
            let mut sum = [0; 32];
            sum.copy_from_slice(context.finish().as_ref());
            Ok::<_, io::Error>(sum)
        });
        hashed.await.map_err(Error::internal)?.map_err(unreadable)
    }

    /// Up to `length` bytes from `at`; fewer only at the end.
    async fn read(&self, at: u64, length: usize) -> Result<Bytes> {
        let content = self.clone();
        let read = tokio::task::spawn_blocking(move || content.read_at(at, length));
        read.await.map_err(Error::internal)?.map_err(unreadable)
    }

    fn read_at(&self, at: u64, length: usize) -> io::Result<Bytes> {
        let length = (length as u64).min(self.length().saturating_sub(at)) as usize;
        match &self.0 {
            Source::Memory(bytes) => Ok(bytes.slice(at as usize..at as usize + length)),
            Source::File { file, .. } => {
                let mut bytes = vec![0; length];
                file.read_exact_at(&mut bytes, at)?;
                Ok(bytes.into())
            }
        }
    }
}

fn unreadable(error: io::Error) -> Error {
    Error::Usage(format!("the file cannot be read to its end: {error}; leave it as it is while it is sent"))
}

/// Where an upload in chunks stands.
enum Place {
    /// The hub knows nothing of it, or no more.
    Nowhere,
    /// The hub knows it; how much it has is to be asked.
    Unsure(Uuid),
    /// The hub has so many bytes.
    At(Uuid, u64),
}

impl Place {
    fn unsure(self) -> Self {
        match self {
            Self::At(upload, _) => Self::Unsure(upload),
            other => other,
        }
    }
}

/// What one exchange with the hub came to.
enum Moved {
    /// The hub has all and says what became of it.
    Ended(Box<Receipt>),
    To(Place),
    /// The hub does not know the upload any more.
    Gone,
    /// The hub is at work on it still.
    Locked,
    /// The chunk came damaged, or for another place.
    Back,
}

/// How often, and how long, to wait while nothing goes forward.
struct Tries {
    most: u32,
    failed: u32,
}

impl Tries {
    fn new(most: u32) -> Self {
        Self { most, failed: 0 }
    }

    fn forward(&mut self) {
        self.failed = 0;
    }

    /// Waits, or gives the error back where it was the last try.
    async fn wait(&mut self, error: Error) -> Result<()> {
        self.failed += 1;
        if self.failed >= self.most {
            return Err(error);
        }
        let pause = (FIRST_PAUSE * 2_u32.saturating_pow(self.failed - 1)).min(LONGEST_PAUSE);
        // Spread, so that a thousand uploaders do not come back at once.
        let spread = rand::random_range(0..=pause.as_millis() as u64 / 2);
        tokio::time::sleep(pause + Duration::from_millis(spread)).await;
        Ok(())
    }
}

/// Whether the next try may end otherwise.
fn passes(error: &Error) -> bool {
    matches!(
        error,
        Error::Unreachable(_) | Error::Busy | Error::RateLimited(_) | Error::LogUnavailable | Error::Internal(_)
    )
}

impl Client {
    /// A client of the hub at `url`, known by a token.
    ///
    /// # Errors
    /// [`Error::Usage`] where the URL is none, or not one of HTTP.
    pub fn new(url: &str, token: &str) -> Result<Self> {
        Self::over(url, token, Trust::default())
    }

    /// The same over TLS of that kind; without a token where that is empty, known by its certificate.
    ///
    /// # Errors
    /// As [`Client::new`], and where the certificate to show does not fit its key.
    pub fn over(url: &str, token: &str, trust: Trust) -> Result<Self> {
        if !url::Url::parse(url).is_ok_and(|url| matches!(url.scheme(), "http" | "https")) {
            return Err(Error::Usage(format!("`{url}` is no address of a hub; write http://HOST:PORT")));
        }
        let shows = trust.identity.is_some();
        let mut http =
            reqwest::Client::builder().connect_timeout(Duration::from_secs(5)).no_proxy().tls_certs_merge(trust.roots);
        if let Some(identity) = trust.identity {
            http = http.identity(identity);
        }
        let http = http.build().map_err(|error| match shows {
            true => Error::Usage("the certificate cannot be shown: its key is none, or that of another".into()),
            false => Error::internal(error),
        })?;
        Ok(Self { http, url: url.trim_end_matches('/').to_owned(), token: token.to_owned(), tries: TRIES })
    }

    /// The hub's address.
    pub fn address(&self) -> &str {
        &self.url
    }

    /// The same client, giving up sooner: for a caller that comes back by itself.
    pub fn impatient(self) -> Self {
        Self { tries: FEW_TRIES, ..self }
    }

    /// Pushes a file and returns its receipt. A file up to 8 MiB goes in one request, a larger one in chunks, which go
    /// on where a cut connection left them, and from the beginning where the hub was restarted. It is tried again
    /// under the same id as long as it gets further.
    ///
    /// # Errors
    /// The hub's problem; [`Error::Unreachable`], [`Error::Busy`] or [`Error::RateLimited`] after several tries that
    /// got no further; [`Error::Usage`] where the file cannot be read.
    pub async fn push(&self, parcel: &Parcel, progress: Progress) -> Result<Receipt> {
        let digest = match parcel.digest {
            Some(digest) => digest,
            None => parcel.content.digest(Arc::clone(&progress)).await?,
        };
        let sum = BASE64.encode(digest);
        match parcel.content.length() <= CHUNK as u64 {
            true => self.push_whole(parcel, &sum, &progress).await,
            false => self.push_in_chunks(parcel, &sum, &progress).await,
        }
    }

    async fn push_whole(&self, parcel: &Parcel, sum: &str, progress: &Progress) -> Result<Receipt> {
        let file = parcel.content.read(0, CHUNK).await?;
        let mut tries = Tries::new(self.tries);
        loop {
            let query = if parcel.dry_run { "?dry_run=true" } else { "" };
            let request = self
                .request(Method::PUT, &format!("{}{query}", batch_path(parcel)))
                .header("content-type", parcel.format.media_type())
                .header("content-digest", format!("sha-256=:{sum}:"))
                .header("content-length", file.len())
                .body(in_pieces(file.clone(), 0, progress));
            match self.receipt(request).await {
                Err(error) if passes(&error) => tries.wait(error).await?,
                ended => return ended,
            }
        }
    }

    async fn push_in_chunks(&self, parcel: &Parcel, sum: &str, progress: &Progress) -> Result<Receipt> {
        let mut tries = Tries::new(self.tries);
        let mut place = Place::Nowhere;
        let mut chunk = CHUNK;
        let (mut reached, mut starts) = (0, 0);
        let mut locked: Option<Instant> = None;
        loop {
            match self.move_on(parcel, sum, &place, chunk, progress).await {
                Ok(Moved::Ended(receipt)) => return Ok(*receipt),
                Ok(Moved::To(next)) => {
                    if let Place::At(_, offset) = next
                        && offset > reached
                    {
                        reached = offset;
                        tries.forward();
                        locked = None;
                        chunk = (chunk * 2).min(CHUNK);
                    }
                    place = next;
                }
                Ok(Moved::Gone) => {
                    starts += 1;
                    if starts > NEW_STARTS {
                        return Err(Error::Unreachable(
                            "the hub forgets the upload again and again; nothing is lost, try again later".into(),
                        ));
                    }
                    (place, reached) = (Place::Nowhere, 0);
                }
                Ok(Moved::Locked) => {
                    if locked.get_or_insert_with(Instant::now).elapsed() > LOCKED {
                        return Err(Error::Unreachable(
                            "the hub is still at work on the upload; nothing is lost, ask again later".into(),
                        ));
                    }
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    place = place.unsure();
                }
                Ok(Moved::Back) => {
                    chunk = smaller(chunk);
                    let error = "the file arrives damaged or out of place; nothing is lost, try again";
                    tries.wait(Error::Unreachable(error.into())).await?;
                    place = place.unsure();
                }
                Err(error) if passes(&error) => {
                    chunk = smaller(chunk);
                    tries.wait(error).await?;
                    place = place.unsure();
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// One exchange: makes the upload, asks how much of it the hub has, or sends what comes next.
    async fn move_on(
        &self,
        parcel: &Parcel,
        sum: &str,
        place: &Place,
        chunk: usize,
        progress: &Progress,
    ) -> Result<Moved> {
        match place {
            Place::Nowhere => {
                progress(Step::Sent(0));
                match self.known(parcel, sum).await? {
                    Some(receipt) => Ok(Moved::Ended(Box::new(receipt))),
                    None => self.begin(parcel, sum).await,
                }
            }
            Place::Unsure(upload) => self.ask(*upload).await,
            Place::At(upload, offset) => {
                let bytes = parcel.content.read(*offset, chunk).await?;
                self.send_chunk(*upload, *offset, bytes, progress).await
            }
        }
    }

    /// The receipt, where an earlier try came to its end and only the answer was lost.
    async fn known(&self, parcel: &Parcel, sum: &str) -> Result<Option<Receipt>> {
        if parcel.dry_run {
            return Ok(None);
        }
        let receipt = match self.receipt(self.request(Method::GET, &batch_path(parcel))).await {
            Ok(receipt) => receipt,
            Err(Error::NotFound) => return Ok(None),
            Err(error) => return Err(error),
        };
        if receipt.content_digest != format!("sha-256=:{sum}:") {
            return Err(Error::BatchConflict);
        }
        match receipt.status {
            Status::Rejected => Err(Error::ContractViolation {
                why: "no row of the batch was stored; the receipt says why, mend the rows and send them under a new id"
                    .into(),
                receipt: Some(Box::new(receipt)),
            }),
            _ => Ok(Some(receipt)),
        }
    }

    async fn begin(&self, parcel: &Parcel, sum: &str) -> Result<Moved> {
        let request = self
            .request(Method::POST, "/v1/uploads")
            .header("tus-resumable", TUS)
            .header("upload-length", parcel.content.length())
            .header("upload-metadata", upload_metadata(parcel, sum));
        let response = self.send(request).await?;
        // Its last part names the upload; the rest may be another way to the hub than ours.
        let location = response.headers().get("location").and_then(|location| location.to_str().ok());
        let upload = location.and_then(|location| Uuid::parse_str(location.rsplit('/').next()?).ok());
        let upload = upload.ok_or_else(|| Error::Remote("the hub does not say where its upload is".into()))?;
        Ok(Moved::To(Place::At(upload, 0)))
    }

    async fn ask(&self, upload: Uuid) -> Result<Moved> {
        let request = self.request(Method::HEAD, &format!("/v1/uploads/{upload}")).header("tus-resumable", TUS);
        let response = request.send().await.map_err(unreachable)?;
        // An answer to HEAD has no body, so the status alone says what is wrong.
        match response.status() {
            StatusCode::NOT_FOUND | StatusCode::GONE => Ok(Moved::Gone),
            StatusCode::LOCKED => Ok(Moved::Locked),
            StatusCode::UNAUTHORIZED => Err(Error::Unauthenticated),
            status if status.is_success() => Ok(Moved::To(Place::At(upload, upload_offset(&response)?))),
            status if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => Err(Error::Busy),
            status => Err(Error::Remote(status.to_string())),
        }
    }

    async fn send_chunk(&self, upload: Uuid, offset: u64, bytes: Bytes, progress: &Progress) -> Result<Moved> {
        let request = self
            .request(Method::PATCH, &format!("/v1/uploads/{upload}"))
            .header("tus-resumable", TUS)
            .header("upload-offset", offset)
            .header("upload-checksum", format!("sha256 {}", BASE64.encode(digest(&SHA256, &bytes))))
            .header("content-type", "application/offset+octet-stream")
            .header("content-length", bytes.len())
            .body(in_pieces(bytes, offset, progress));
        let response = request.send().await.map_err(unreachable)?;
        match response.status().as_u16() {
            204 => match upload_offset(&response)? {
                further if further > offset => Ok(Moved::To(Place::At(upload, further))),
                _ => Ok(Moved::Back),
            },
            200 | 201 => Ok(Moved::Ended(Box::new(response.json().await.map_err(unreachable)?))),
            404 | 410 => Ok(Moved::Gone),
            423 => Ok(Moved::Locked),
            460 => Ok(Moved::Back),
            _ => match problem(response).await {
                (slug, _) if slug == "upload-offset" => Ok(Moved::Back),
                (_, error) => Err(error),
            },
        }
    }

    async fn receipt(&self, request: RequestBuilder) -> Result<Receipt> {
        self.send(request).await?.json().await.map_err(unreachable)
    }

    /// Asks, and returns the body as the hub wrote it.
    ///
    /// # Errors
    /// The hub's problem, or [`Error::Unreachable`].
    pub async fn query(&self, sql: &str, purpose: Option<&str>, wishes: Wishes, accept: &str) -> Result<Bytes> {
        let question = question(sql, purpose, wishes);
        let request = self.request(Method::POST, "/v1/sql").header("accept", accept).json(&question);
        self.send(request).await?.bytes().await.map_err(unreachable)
    }

    /// Asks what a query would be answered with.
    ///
    /// # Errors
    /// The hub's problem, or [`Error::Unreachable`].
    pub async fn explain(&self, sql: &str, purpose: Option<&str>, wishes: Wishes) -> Result<Value> {
        let question = question(sql, purpose, wishes);
        self.json(self.request(Method::POST, "/v1/explain").json(&question)).await
    }

    /// The catalogue, or one dataset of it.
    ///
    /// # Errors
    /// The hub's problem, or [`Error::Unreachable`].
    pub async fn datasets(&self, name: Option<&str>, purpose: Option<&str>) -> Result<Value> {
        let path = name.map_or_else(|| "/v1/datasets".to_owned(), |name| format!("/v1/datasets/{name}"));
        let mut request = self.request(Method::GET, &path);
        if let Some(purpose) = purpose {
            request = request.query(&[("purpose", purpose)]);
        }
        self.json(request).await
    }

    /// Entries of the access log.
    ///
    /// # Errors
    /// The hub's problem, or [`Error::Unreachable`].
    pub async fn log_entries(&self, from: u64, count: usize, purpose: Option<&str>) -> Result<Vec<Entry>> {
        let mut request =
            self.request(Method::GET, "/v1/log/entries").query(&[("from", from), ("count", count as u64)]);
        if let Some(purpose) = purpose {
            request = request.query(&[("purpose", purpose)]);
        }
        let mut answer = self.json(request).await?;
        serde_json::from_value(answer["entries"].take()).map_err(Error::internal)
    }

    /// How many entries the signed checkpoint covers.
    ///
    /// # Errors
    /// The hub's problem, or [`Error::Unreachable`].
    pub async fn log_size(&self) -> Result<u64> {
        let response = self.send(self.request(Method::GET, "/v1/log/checkpoint")).await?;
        let note = response.text().await.map_err(unreachable)?;
        let size = note.lines().nth(1).and_then(|size| size.parse().ok());
        size.ok_or_else(|| Error::Remote("the hub's checkpoint cannot be read".into()))
    }

    /// Recomputes the log's root from its published hashes and compares it with the signed checkpoint.
    /// Returns how many entries it covers.
    ///
    /// # Errors
    /// A sentence that says what is wrong.
    pub async fn verify_log(&self, verifier: Option<&str>) -> Result<u64> {
        let text = async |path: &str| -> Result<String> {
            self.send(self.request(Method::GET, path)).await?.text().await.map_err(unreachable)
        };
        let verifier = match verifier {
            Some(verifier) => verifier.to_owned(),
            None => text("/v1/log/verifier").await?,
        };
        let head = checkpoint::open(&text("/v1/log/checkpoint").await?, &verifier).map_err(Error::Remote)?;
        let mut tree = Tree::default();
        for tile in 0..head.size.div_ceil(256) {
            let width = (head.size - tile * 256).min(256);
            let path = tile_path(tile, width);
            let response = self.send(self.request(Method::GET, &path)).await?;
            let hashes = response.bytes().await.map_err(unreachable)?;
            for hash in hashes.chunks(32) {
                let hash = Hash::try_from(hash).map_err(|_| Error::Remote("a tile of hashes is cut".into()))?;
                tree.push(hash);
            }
        }
        match tree.size() == head.size && tree.root() == head.root {
            true => Ok(head.size),
            false => Err(Error::Remote("the published hashes are not those that were signed".into())),
        }
    }

    /// Erases people, and returns the certificate.
    ///
    /// # Errors
    /// The hub's problem, or [`Error::Unreachable`].
    pub async fn erase(&self, identifiers: &[TypedIdentifier<'_>], basis: &str, purpose: &str) -> Result<Value> {
        let erasure = json!({ "identifiers": identifiers, "basis": basis });
        self.json(self.request(Method::POST, "/v1/erasures").query(&[("purpose", purpose)]).json(&erasure)).await
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.url));
        match self.token.as_str() {
            "" => request,
            token => request.bearer_auth(token),
        }
    }

    async fn json(&self, request: RequestBuilder) -> Result<Value> {
        self.send(request).await?.json().await.map_err(unreachable)
    }

    async fn send(&self, request: RequestBuilder) -> Result<Response> {
        let response = request.send().await.map_err(unreachable)?;
        match response.status().is_success() {
            true => Ok(response),
            false => Err(problem(response).await.1),
        }
    }
}

/// Where a batch is pushed to, and its receipt found.
fn batch_path(parcel: &Parcel) -> String {
    format!("/v1/datasets/{}/batches/{}", parcel.dataset, parcel.batch_id)
}

/// A body that tells how much of it went out, counted from `offset`.
fn in_pieces(bytes: Bytes, offset: u64, progress: &Progress) -> reqwest::Body {
    let progress = Arc::clone(progress);
    let starts = (0..bytes.len()).step_by(PIECE);
    let pieces: Vec<Bytes> = starts.map(|at| bytes.slice(at..bytes.len().min(at + PIECE))).collect();
    progress(Step::Sent(offset));
    reqwest::Body::wrap_stream(futures::stream::iter(pieces.into_iter().scan(offset, move |sent, piece| {
        *sent += piece.len() as u64;
        progress(Step::Sent(*sent));
        Some(Ok::<_, io::Error>(piece))
    })))
}

/// A chunk that is likelier to get through a line that is cut often.
fn smaller(chunk: usize) -> usize {
    (chunk / 2).max(PIECE)
}

/// What an upload is for, as tus writes it: names with values in base64.
fn upload_metadata(parcel: &Parcel, sum: &str) -> String {
    let batch_id = parcel.batch_id.to_string();
    let mut members = vec![
        ("dataset", parcel.dataset.as_str()),
        ("batch_id", &batch_id),
        ("content_type", parcel.format.media_type()),
        ("content_digest", sum),
    ];
    if parcel.dry_run {
        members.push(("dry_run", "true"));
    }
    let members: Vec<_> = members.iter().map(|(name, value)| format!("{name} {}", BASE64.encode(value))).collect();
    members.join(",")
}

fn upload_offset(response: &Response) -> Result<u64> {
    let offset = response.headers().get("upload-offset").and_then(|offset| offset.to_str().ok()?.parse().ok());
    offset.ok_or_else(|| Error::Remote("the hub does not say how much of the upload it has".into()))
}

/// An identifier of somebody to be erased, as it was typed. Has no printed form.
#[derive(Serialize)]
pub struct TypedIdentifier<'a> {
    /// Its kind, as contracts name it; `opaque:` and the linkage domain for those.
    pub kind: &'a str,
    /// The identifier.
    pub value: &'a str,
}

/// A question as the hub reads it; what is not wished for is left out.
fn question(sql: &str, purpose: Option<&str>, wishes: Wishes) -> Value {
    let mut question = json!({ "sql": sql });
    if let Some(purpose) = purpose {
        question["purpose"] = json!(purpose);
    }
    if wishes.interval {
        question["interval"] = json!(true);
    }
    if wishes.small != Small::default() {
        question["small_cells"] = json!(wishes.small);
    }
    question
}

/// What a problem document says, with the slug that ends its type.
async fn problem(response: Response) -> (String, Error) {
    let status = response.status();
    let problem: Value = response.json().await.unwrap_or_default();
    let slug = problem["type"].as_str().and_then(|kind| kind.rsplit('/').next()).unwrap_or_default();
    (slug.to_owned(), from_problem(slug, status, &problem))
}

/// The error of the same slug, so that callers can tell what passes with time from what does not.
fn from_problem(slug: &str, status: StatusCode, problem: &Value) -> Error {
    let member = |name: &str| problem[name].as_str().map(str::to_owned);
    let detail = member("detail").unwrap_or_else(|| status.to_string());
    if let (Some(rule), Some(why), Some(instead)) = (member("rule"), member("why"), member("try")) {
        return Error::refused(&rule, why, instead);
    }
    if status == StatusCode::REQUEST_TIMEOUT {
        return Error::Unreachable("the line broke off; nothing is lost, try again".into());
    }
    match slug {
        "unauthenticated" => Error::Unauthenticated,
        "not-allowed" => Error::NotAllowed(detail),
        "contract-violation" => Error::ContractViolation {
            why: detail,
            receipt: serde_json::from_value(problem["receipt"].clone()).ok().map(Box::new),
        },
        "batch-conflict" => Error::BatchConflict,
        "digest-mismatch" => Error::DigestMismatch,
        "too-large" => {
            let (what, limit) = detail.split_once(" is larger than ").unwrap_or(("the upload", "the hub takes"));
            let what = TOO_LARGE.into_iter().find(|known| *known == what).unwrap_or("the upload");
            Error::TooLarge { what, limit: limit.to_owned() }
        }
        "busy" => Error::Busy,
        "rate-limited" => Error::RateLimited(detail),
        "log-unavailable" => Error::LogUnavailable,
        "not-found" => Error::NotFound,
        "unsupported-media-type" => Error::UnsupportedMediaType(detail),
        "resource-limit" => Error::ResourceLimit(detail),
        "bad-request" => Error::BadRequest(detail),
        "internal" => Error::Internal("the hub's log says more".into()),
        "" => Error::Unreachable(format!("what answers there is no hub ({status}); nothing is lost, mend the address")),
        _ => Error::Remote(detail),
    }
}

fn unreachable(error: reqwest::Error) -> Error {
    let what = match tls_fault(&error) {
        Some(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer)) => {
            "has a certificate that nobody trusted here has signed; name the roots that did with --ca FILE"
        }
        Some(rustls::Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        )) => "has a certificate for another name than that in its address; mend the address",
        Some(rustls::Error::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. },
        )) => "has a certificate that has expired; tell its operator",
        Some(rustls::Error::InvalidCertificate(_)) => {
            "has a certificate that is not trusted; where it should be, name the roots that signed it with --ca FILE"
        }
        Some(rustls::Error::AlertReceived(_)) => {
            "does not take this side's certificate, or wants one; name one that it trusts with --certificate and \
             --certificate-key"
        }
        _ if error.is_timeout() => "did not answer in time",
        _ => "cannot be reached",
    };
    Error::Unreachable(format!("the hub {what}; nothing is lost, try again"))
}

/// What TLS objects to, however deep it lies among the causes of an error.
fn tls_fault<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a rustls::Error> {
    if let Some(fault) = error.downcast_ref::<rustls::Error>() {
        return Some(fault);
    }
    // An I/O error hides what it wraps from `source`.
    if let Some(wrapped) = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        return tls_fault(wrapped);
    }
    tls_fault(error.source()?)
}

/// The path of a hash tile as C2SP tlog-tiles writes it: groups of three digits, all but the last
/// behind an `x`.
fn tile_path(tile: u64, width: u64) -> String {
    let mut number = format!("{:03}", tile % 1_000);
    let mut rest = tile / 1_000;
    while rest > 0 {
        number = format!("x{:03}/{number}", rest % 1_000);
        rest /= 1_000;
    }
    match width {
        256 => format!("/v1/log/tile/0/{number}"),
        partial => format!("/v1/log/tile/0/{number}.p/{partial}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wishes_are_written_as_the_hub_reads_them() {
        let plain = question("SELECT 1", None, Wishes::default());
        assert_eq!(plain, json!({"sql": "SELECT 1"}));
        let wished = question("SELECT 1", Some("audit"), Wishes { interval: true, small: Small::RollUp });
        let written = json!({"sql": "SELECT 1", "purpose": "audit", "interval": true, "small_cells": "roll-up"});
        assert_eq!(wished, written);
    }

    fn parcel(content: Content) -> Parcel {
        Parcel {
            dataset: "community.visits".into(),
            batch_id: Uuid::from_u128(7),
            format: Format::Csv,
            content,
            digest: None,
            dry_run: true,
        }
    }

    #[test]
    fn an_upload_says_what_it_is_for() {
        let metadata = upload_metadata(&parcel(Bytes::new().into()), "c3Vt");
        let members: Vec<_> = metadata
            .split(',')
            .map(|member| {
                let (name, value) = member.split_once(' ').unwrap();
                format!("{name}={}", String::from_utf8(BASE64.decode(value).unwrap()).unwrap())
            })
            .collect();
        let expected = [
            "dataset=community.visits",
            "batch_id=00000000-0000-0000-0000-000000000007",
            "content_type=text/csv",
            "content_digest=c3Vt",
            "dry_run=true",
        ];
        assert_eq!(members, expected);
    }

    #[tokio::test]
    async fn a_file_reads_as_its_bytes_do() {
        let bytes: Bytes = (0..PIECE as u32 * 2 + 5).map(|number| number as u8).collect::<Vec<_>>().into();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file.csv");
        std::fs::write(&path, &bytes).unwrap();
        let file = Content::open(&path).unwrap();
        assert_eq!(file.length(), bytes.len() as u64);
        let sum = file.digest(Arc::new(|_| {})).await.unwrap();
        assert_eq!(sum.as_slice(), digest(&SHA256, &bytes).as_ref());
        assert_eq!(sum, Content::from(bytes.clone()).digest(Arc::new(|_| {})).await.unwrap());
        let end = bytes.len() as u64 - 3;
        assert_eq!(file.read(end, 10).await.unwrap(), bytes.slice(bytes.len() - 3..));
        assert_eq!(Content::from(bytes.clone()).read(end, 10).await.unwrap(), bytes.slice(bytes.len() - 3..));
        assert!(matches!(Content::open(folder.path()), Err(Error::Usage(_))));
    }

    #[tokio::test]
    async fn tries_end_unless_something_goes_forward() {
        let mut tries = Tries::new(2);
        for _ in 0..3 {
            tries.wait(Error::Busy).await.unwrap();
            tries.forward();
        }
        tries.wait(Error::Busy).await.unwrap();
        assert!(matches!(tries.wait(Error::Busy).await, Err(Error::Busy)));
    }

    #[test]
    fn problems_keep_their_kind() {
        let kind = |slug: &str, status: StatusCode| {
            from_problem(slug, status, &json!({"detail": "the body is larger than 4 GiB"})).to_string()
        };
        assert_eq!(kind("too-large", StatusCode::PAYLOAD_TOO_LARGE), "the body is larger than 4 GiB");
        assert_eq!(kind("timeout", StatusCode::GATEWAY_TIMEOUT), "the body is larger than 4 GiB");
        let too_large = |detail: &str| {
            from_problem("too-large", StatusCode::PAYLOAD_TOO_LARGE, &json!({ "detail": detail })).to_string()
        };
        let columns = "the number of columns is larger than 1000; write the file with fewer, or send it in parts";
        assert_eq!(too_large(columns), columns);
        assert_eq!(too_large("the moon is larger than 4 GiB"), "the upload is larger than 4 GiB");
        assert_eq!(too_large("too much"), "the upload is larger than the hub takes");
        let limited = json!({"detail": "`community` has 16 open uploads"});
        let limited = from_problem("rate-limited", StatusCode::TOO_MANY_REQUESTS, &limited);
        assert!(passes(&limited));
        assert_eq!((limited.slug(), limited.to_string().as_str()), ("rate-limited", "`community` has 16 open uploads"));
        // A page of some proxy on the way says nothing about the batch.
        assert!(passes(&from_problem("", StatusCode::NOT_FOUND, &Value::Null)));
        assert!(passes(&from_problem("internal", StatusCode::INTERNAL_SERVER_ERROR, &Value::Null)));
        assert!(!passes(&from_problem("not-found", StatusCode::NOT_FOUND, &Value::Null)));
    }

    #[test]
    fn hubs_are_reached_by_http() {
        for url in ["ftp://127.0.0.1:8080", "localhost:8080", "127.0.0.1:8080", "hub"] {
            assert!(matches!(Client::new(url, "ghub_x"), Err(Error::Usage(_))), "{url}");
        }
    }

    #[test]
    fn what_tls_objects_to_is_found_below_its_wrappers() {
        let fault = || rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let wrapped = io::Error::other(io::Error::new(io::ErrorKind::InvalidData, fault()));
        assert_eq!(tls_fault(&wrapped), Some(&fault()));
        assert_eq!(tls_fault(&io::Error::other("something else")), None);
        assert_eq!(tls_fault(&io::Error::from(io::ErrorKind::ConnectionRefused)), None);
    }

    #[test]
    fn a_certificate_to_show_comes_with_its_key_kept_close() {
        let folder = tempfile::tempdir().unwrap();
        let made = rcgen::generate_simple_self_signed(vec!["uploader.example".to_owned()]).unwrap();
        let (certificate, key) = (folder.path().join("own.pem"), folder.path().join("own.key"));
        fs::write(&certificate, made.cert.pem()).unwrap();
        fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        let mode = |mode| fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
        mode(0o644);
        assert!(Trust::default().showing(&certificate, &key).is_err_and(|e| e.to_string().contains("chmod 600")));
        mode(0o600);
        assert!(Trust::default().showing(&certificate, &key).is_ok());
        assert!(matches!(Trust::default().showing(&key, &key), Err(Error::Usage(_))));
        assert!(Trust::default().in_roots(&certificate).is_ok());
        assert!(matches!(Trust::default().in_roots(&key), Err(Error::Usage(_))));
        assert!(matches!(Trust::default().in_roots(&folder.path().join("none.pem")), Err(Error::Usage(_))));
    }

    #[test]
    fn tiles_are_named_as_the_standard_does() {
        assert_eq!(tile_path(0, 256), "/v1/log/tile/0/000");
        assert_eq!(tile_path(1_234_067, 256), "/v1/log/tile/0/x001/x234/067");
        assert_eq!(tile_path(5, 17), "/v1/log/tile/0/005.p/17");
    }
}

//! The other side of the wire: what the command line says to a hub over HTTP.

use std::{sync::Arc, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use ring::digest::{SHA256, digest};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    audit::{
        Entry, checkpoint,
        tree::{Hash, Tree},
    },
    dataset::receipt::Receipt,
    disclose::{Small, Wishes},
    error::{Error, Result},
    validate::Format,
};

/// How often an upload is tried before it is given up for now.
const TRIES: u32 = 5;

/// Bytes of a body sent in one piece.
const PIECE: usize = 256 << 10;

/// A connection to a hub, on behalf of one token.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    url: String,
    token: String,
}

impl Client {
    /// A client of the hub at `url`.
    ///
    /// # Errors
    /// [`Error::Usage`] where the URL is none.
    pub fn new(url: &str, token: &str) -> Result<Self> {
        url::Url::parse(url).map_err(|_| Error::Usage(format!("`{url}` is no URL; write http://HOST:PORT")))?;
        let http = reqwest::Client::builder()
            .connect_timeout(Duration::from_secs(5))
            .no_proxy()
            .build()
            .map_err(Error::internal)?;
        Ok(Self { http, url: url.trim_end_matches('/').to_owned(), token: token.to_owned() })
    }

    /// Pushes a file and returns its receipt. Tried again under the same id while the hub cannot be
    /// reached; `sent` hears of every piece that went out.
    ///
    /// # Errors
    /// The hub's problem, or [`Error::Unreachable`].
    pub async fn push(
        &self,
        dataset: &str,
        batch_id: Uuid,
        format: Format,
        file: Bytes,
        dry_run: bool,
        sent: Arc<dyn Fn(u64) + Send + Sync>,
    ) -> Result<Receipt> {
        let sum = BASE64.encode(digest(&SHA256, &file));
        let mut pause = Duration::from_millis(200);
        for attempt in 1.. {
            sent(0);
            let pieces: Vec<Bytes> =
                (0..file.len()).step_by(PIECE).map(|at| file.slice(at..file.len().min(at + PIECE))).collect();
            let told = Arc::clone(&sent);
            let stream = futures::stream::iter(pieces.into_iter().scan(0, move |total, piece| {
                *total += piece.len() as u64;
                told(*total);
                Some(Ok::<_, std::io::Error>(piece))
            }));
            let path =
                format!("/v1/datasets/{dataset}/batches/{batch_id}{}", if dry_run { "?dry_run=true" } else { "" });
            let request = self
                .request(Method::PUT, &path)
                .header("content-type", format.media_type())
                .header("content-digest", format!("sha-256=:{sum}:"))
                .header("content-length", file.len())
                .body(reqwest::Body::wrap_stream(stream));
            match self.send(request).await {
                Ok(response) => return response.json().await.map_err(unreachable),
                Err(Error::Unreachable(_) | Error::Busy) if attempt < TRIES => {
                    // Spread, so that a thousand uploaders do not come back at once.
                    let spread = rand::random_range(0..=pause.as_millis() as u64 / 2);
                    tokio::time::sleep(pause + Duration::from_millis(spread)).await;
                    pause *= 2;
                }
                Err(error) => return Err(error),
            }
        }
        Err(Error::Unreachable("the hub could not be reached".into()))
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

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.url)).bearer_auth(&self.token)
    }

    async fn json(&self, request: RequestBuilder) -> Result<Value> {
        self.send(request).await?.json().await.map_err(unreachable)
    }

    async fn send(&self, request: RequestBuilder) -> Result<Response> {
        let response = request.send().await.map_err(unreachable)?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let problem: Value = response.json().await.unwrap_or_default();
        let slug = problem["type"].as_str().and_then(|kind| kind.rsplit('/').next()).unwrap_or_default();
        Err(match (slug, status) {
            ("log-unavailable", _) => Error::LogUnavailable,
            (_, StatusCode::SERVICE_UNAVAILABLE) => Error::Busy,
            _ => from_problem(status, &problem),
        })
    }
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

fn from_problem(status: StatusCode, problem: &Value) -> Error {
    let member = |name: &str| problem[name].as_str().map(str::to_owned);
    if let (Some(rule), Some(why), Some(instead)) = (member("rule"), member("why"), member("try")) {
        return Error::refused(&rule, why, instead);
    }
    if let Ok(receipt) = serde_json::from_value(problem["receipt"].clone()) {
        return Error::ContractViolation {
            why: member("detail").unwrap_or_default(),
            receipt: Some(Box::new(receipt)),
        };
    }
    Error::Remote(member("detail").unwrap_or_else(|| status.to_string()))
}

fn unreachable(error: reqwest::Error) -> Error {
    let what = if error.is_timeout() { "did not answer in time" } else { "cannot be reached" };
    Error::Unreachable(format!("the hub {what}; nothing is lost, try again"))
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

    #[test]
    fn tiles_are_named_as_the_standard_does() {
        assert_eq!(tile_path(0, 256), "/v1/log/tile/0/000");
        assert_eq!(tile_path(1_234_067, 256), "/v1/log/tile/0/x001/x234/067");
        assert_eq!(tile_path(5, 17), "/v1/log/tile/0/005.p/17");
    }
}

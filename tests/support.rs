//! A hub in a temporary folder, and conversations with it over HTTP.

mod parts;

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
};

use arrow::{
    array::RecordBatch,
    csv,
    datatypes::{DataType, Field, Schema, TimeUnit},
};
use axum::{Router, body::Body, http::Request};
use chrono::{DateTime, TimeDelta, Utc};
use gridhub::{
    dataset::contract,
    front::http::{self, Options},
    hub::{Hub, Opening},
    identity,
    query::defences::{Defence, Defences},
    store::metadata::Metadata,
};
use http_body_util::BodyExt;
use serde_json::Value;
use tempfile::TempDir;
use tower::ServiceExt;
use uuid::Uuid;

pub use parts::Parts;

pub const PARQUET: &str = "application/vnd.apache.parquet";
pub const CSV: &str = "text/csv";

/// A clock that stands where tests put it.
#[derive(Clone)]
pub struct TestClock(Arc<AtomicI64>);

impl TestClock {
    pub fn at(time: &str) -> Self {
        let time: DateTime<Utc> = time.parse().unwrap();
        Self(Arc::new(AtomicI64::new(time.timestamp_millis())))
    }

    pub fn step(&self, by: TimeDelta) {
        self.0.fetch_add(by.num_milliseconds(), Ordering::SeqCst);
    }

    pub fn now(&self) -> DateTime<Utc> {
        DateTime::from_timestamp_millis(self.0.load(Ordering::SeqCst)).unwrap()
    }
}

/// The repository's own folder.
pub fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

pub fn fixture(name: &str) -> Vec<u8> {
    std::fs::read(repository().join("tests/fixtures").join(name)).unwrap()
}

pub struct TestHub {
    pub folder: TempDir,
    pub clock: TestClock,
    pub hub: Option<Arc<Hub>>,
    router: Router,
    /// Which defences stand, after a restart too.
    defences: Defences,
}

/// What came back.
pub struct Reply {
    pub status: u16,
    pub headers: axum::http::HeaderMap,
    pub body: Vec<u8>,
}

impl Reply {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|_| panic!("not JSON: {}", String::from_utf8_lossy(&self.body)))
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    pub fn header(&self, name: &str) -> String {
        self.headers.get(name).map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default()
    }

    /// Status, slug and detail of a problem, for snapshots.
    pub fn problem(&self) -> String {
        let body = self.json();
        assert_eq!(self.header("content-type"), "application/problem+json");
        assert_eq!(body["status"], self.status);
        let slug = body["type"].as_str().unwrap().rsplit('/').next().unwrap().to_owned();
        format!("{} {slug}: {}", self.status, body["detail"].as_str().unwrap())
    }

    /// The rows of an answer, one a line.
    pub fn rows(&self) -> String {
        assert_eq!(self.status, 200, "{}", String::from_utf8_lossy(&self.body));
        let body = self.json();
        let rows = body["rows"].as_array().unwrap();
        rows.iter().map(|row| row.to_string()).collect::<Vec<_>>().join("\n")
    }
}

impl TestHub {
    pub async fn start() -> Self {
        Self::start_at("2026-01-07T01:00:00Z").await
    }

    pub async fn start_at(time: &str) -> Self {
        Self::with(TestClock::at(time), |_| {}).await
    }

    pub async fn with(clock: TestClock, change: impl FnOnce(&mut Opening)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut opening = opening(folder.path(), &clock);
        change(&mut opening);
        let defences = opening.defences;
        let hub = Arc::new(Hub::open(opening).await.unwrap());
        let router = router(&hub);
        Self { folder, clock, hub: Some(hub), router, defences }
    }

    /// A hub on a folder that was used before, with its keys, or why it does not start.
    pub async fn on(folder: TempDir, clock: TestClock) -> gridhub::error::Result<Self> {
        let opening = opening(folder.path(), &clock);
        let defences = opening.defences;
        let hub = Arc::new(Hub::open(opening).await?);
        let router = router(&hub);
        Ok(Self { folder, clock, hub: Some(hub), router, defences })
    }

    /// A hub with all fixtures pushed.
    pub async fn with_city() -> Self {
        Self::city_on(Self::start().await).await
    }

    /// The same without tables in memory.
    pub async fn with_city_in_files() -> Self {
        Self::city_on(Self::in_files().await).await
    }

    /// A hub without tables in memory.
    pub async fn in_files() -> Self {
        Self::with(TestClock::at("2026-01-07T01:00:00Z"), |opening| opening.query_limits.tables = 0).await
    }

    /// The same where protected numbers are shown without noise and as if nothing had been asked before, so that
    /// they can be worked out by hand: what is left is who is counted, and that fourteen people must be.
    pub async fn with_city_in_plain_numbers() -> Self {
        Self::city_on(Self::in_plain_numbers().await).await
    }

    /// A hub without rows, and without noise.
    pub async fn in_plain_numbers() -> Self {
        let plain = Defences::without(&[Defence::Noise, Defence::Snap, Defence::Ledger, Defence::Homogeneity]);
        Self::with(TestClock::at("2026-01-07T01:00:00Z"), |opening| opening.defences = plain).await
    }

    async fn city_on(hub: Self) -> Self {
        for (caller, dataset, file) in [
            ("platform-uploader", "platform.divisions", "platform.divisions.csv"),
            ("community-uploader", "community.residents", "community.residents.csv"),
            ("community-uploader", "community.residents", "community.residents.2.csv"),
            ("community-uploader", "community.visits", "community.visits.csv"),
            ("hospital-uploader", "hospital.tests", "hospital.tests.csv"),
            ("hospital-uploader", "hospital.tests", "hospital.tests.2.csv"),
            ("cdc-uploader", "cdc.cases", "cdc.cases.csv"),
            ("cdc-uploader", "cdc.quarantine_orders", "cdc.quarantine_orders.csv"),
            ("pharmacy-uploader", "pharmacy.sales", "pharmacy.sales.csv"),
            ("health-uploader", "health_bureau.vaccinations", "health_bureau.vaccinations.csv"),
        ] {
            let reply = hub.push(caller, dataset, CSV, fixture(file)).await;
            assert_eq!(reply.status, 201, "{file}: {}", reply.text());
            assert_eq!(reply.json()["rows_rejected"], 0, "{file}: {}", reply.text());
        }
        hub
    }

    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    pub fn metadata(&self) -> Metadata {
        Metadata::open(&self.data()).unwrap()
    }

    pub fn token(&self, caller: &str) -> String {
        identity::create(&self.metadata(), caller, Some(TimeDelta::days(1)), self.clock.now()).unwrap().0
    }

    /// Lets go of the hub and its folder.
    pub fn stop(&mut self) {
        drop(self.hub.take());
        self.router = Router::new();
    }

    /// Stops the hub and starts another on the same folder.
    pub async fn restart(&mut self) {
        self.restart_with(|_| {}).await;
    }

    /// Stops the hub and starts another on the same folder, in other ways.
    pub async fn restart_with(&mut self, change: impl FnOnce(&mut Opening)) {
        self.stop();
        let mut opening = opening(self.folder.path(), &self.clock);
        opening.defences = self.defences;
        change(&mut opening);
        self.defences = opening.defences;
        let hub = Arc::new(Hub::open(opening).await.unwrap());
        self.router = router(&hub);
        self.hub = Some(hub);
    }

    /// Sends a request, and takes its id out of the reply: it is another each time and says nothing of data, so that
    /// replies that must be alike can be held against each other.
    pub async fn send(&self, request: Request<Body>) -> Reply {
        let mut reply = self.send_and_keep_id(request).await;
        let id = reply.headers.remove("gridhub-request-id").expect("every reply names its request");
        if reply.header("content-type") == "application/problem+json" && !reply.body.is_empty() {
            let mut document = reply.json();
            let instance = document.as_object_mut().unwrap().remove("instance").expect("and every problem");
            assert_eq!(instance, format!("urn:uuid:{}", id.to_str().unwrap()));
            reply.body = document.to_string().into_bytes();
        }
        reply
    }

    /// Sends a request. What comes back is as it is.
    pub async fn send_and_keep_id(&self, request: Request<Body>) -> Reply {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes().to_vec();
        Reply { status: parts.status.as_u16(), headers: parts.headers, body }
    }

    pub async fn get(&self, token: &str, path: &str) -> Reply {
        let request = Request::get(path).header("authorization", format!("Bearer {token}"));
        self.send(request.body(Body::empty()).unwrap()).await
    }

    pub async fn push(&self, caller: &str, dataset: &str, media_type: &str, body: Vec<u8>) -> Reply {
        self.push_as(&self.token(caller), dataset, Uuid::now_v7(), media_type, body).await
    }

    pub async fn push_as(&self, token: &str, dataset: &str, id: Uuid, media_type: &str, body: Vec<u8>) -> Reply {
        let request = Request::put(format!("/v1/datasets/{dataset}/batches/{id}"))
            .header("authorization", format!("Bearer {token}"))
            .header("content-type", media_type);
        self.send(request.body(Body::from(body)).unwrap()).await
    }

    pub async fn ask(&self, caller: &str, purpose: &str, sql: &str) -> Reply {
        self.ask_as(&self.token(caller), purpose, sql, "application/json").await
    }

    pub async fn ask_as(&self, token: &str, purpose: &str, sql: &str, accept: &str) -> Reply {
        let mut question = serde_json::json!({ "sql": sql });
        if !purpose.is_empty() {
            question["purpose"] = purpose.into();
        }
        self.post(token, "/v1/sql", &question, accept).await
    }

    pub async fn post(&self, token: &str, path: &str, body: &Value, accept: &str) -> Reply {
        let request = Request::post(path)
            .header("authorization", format!("Bearer {token}"))
            .header("content-type", "application/json")
            .header("accept", accept);
        self.send(request.body(Body::from(body.to_string())).unwrap()).await
    }
}

fn router(hub: &Arc<Hub>) -> Router {
    http::router(Arc::clone(hub), Options { body_limit: 64 << 20, ..Options::default() })
}

pub fn opening(folder: &Path, clock: &TestClock) -> Opening {
    let clock = clock.clone();
    Opening {
        clock: Arc::new(move || clock.now()),
        ..Opening::new(
            folder.join("data"),
            repository().join("schemas"),
            repository().join("policies"),
            folder.join("keys"),
        )
    }
}

/// A CSV fixture as the Parquet file an agency would send: typed columns, times with their zone.
pub fn parquet_of(dataset: &str, text: &[u8]) -> Vec<u8> {
    gridhub::demo::as_parquet(&batch_of(dataset, text)).unwrap().to_vec()
}

/// A batch as an Arrow stream.
pub fn stream_of(batch: &RecordBatch) -> Vec<u8> {
    let mut stream = Vec::new();
    let mut writer = arrow::ipc::writer::StreamWriter::try_new(&mut stream, &batch.schema()).unwrap();
    writer.write(batch).unwrap();
    writer.finish().unwrap();
    drop(writer);
    stream
}

pub fn batch_of(dataset: &str, text: &[u8]) -> RecordBatch {
    let datasets = contract::load_folder(&repository().join("schemas")).unwrap();
    let contract = datasets.values().find(|found| found.name.to_string() == dataset).unwrap();
    let fields: Vec<_> = contract
        .fields
        .iter()
        .map(|field| {
            let kind = match gridhub::dataset::layout::arrow_type(field.kind) {
                DataType::Timestamp(..) => DataType::Timestamp(TimeUnit::Millisecond, Some("Asia/Shanghai".into())),
                other => other,
            };
            Field::new(&field.name, kind, true)
        })
        .collect();
    let mut reader = csv::ReaderBuilder::new(Arc::new(Schema::new(fields)))
        .with_header(true)
        .build(std::io::Cursor::new(text))
        .unwrap();
    reader.next().unwrap().unwrap()
}

/// A copy of the repository's folder of that name, one file changed.
pub fn changed(into: &Path, folder: &str, file: &str, change: impl FnOnce(String) -> String) -> PathBuf {
    let copy = into.join(folder);
    std::fs::create_dir_all(&copy).unwrap();
    for entry in std::fs::read_dir(repository().join(folder)).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, copy.join(path.file_name().unwrap())).unwrap();
    }
    let path = copy.join(file);
    std::fs::write(&path, change(std::fs::read_to_string(&path).unwrap())).unwrap();
    copy
}

/// The files below a folder.
pub fn files_below(folder: &Path) -> Vec<PathBuf> {
    let (mut files, mut open) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(folder) = open.pop() {
        let entries = match std::fs::read_dir(folder) {
            // What a running hub deletes meanwhile is not there.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            entries => entries.unwrap(),
        };
        for entry in entries {
            match entry.unwrap().path() {
                path if path.is_dir() => open.push(path),
                path => files.push(path),
            }
        }
    }
    files.sort();
    files
}

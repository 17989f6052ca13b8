//! A hub in a process of its own with all three doors open, full of an invented city, and what it takes of the
//! machine.

use std::{
    fs::{self, File},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use arrow::record_batch::RecordBatch;
use chrono::{NaiveDate, Utc};
use gridhub::{
    demo::{as_parquet, city},
    hub::{Hub, Opening, Push},
    identity::{self, Credential},
    store::metadata::Metadata,
    validate::Format,
};
use uuid::Uuid;

use super::{
    clients::{Ports, Visitor},
    truth::Truth,
};

/// How long a hub may take to open its doors.
const PATIENCE: Duration = Duration::from_secs(120);

/// The limits on a single caller are not what is measured: a few callers stand for hundreds here.
const SETTINGS: &str = "\
caller_questions_per_second = 1000000
caller_questions_at_once = 1000
connections = 1024
";

/// The uploaders of the city's agencies.
const UPLOADERS: [(&str, &str); 6] = [
    ("platform", "platform-uploader"),
    ("community", "community-uploader"),
    ("hospital", "hospital-uploader"),
    ("cdc", "cdc-uploader"),
    ("pharmacy", "pharmacy-uploader"),
    ("health_bureau", "health-uploader"),
];

/// Pushes an invented city to the hub of a folder, which does not run yet. Returns what it should know then.
pub async fn fill(folder: &Path, people: usize, days: usize) -> Truth {
    let invented = city::invent(people, days, 1, NaiveDate::from_ymd_opt(2026, 1, 18).unwrap());
    let (data, repository) = (folder.join("data"), repository());
    let opening =
        Opening::new(data.clone(), repository.join("schemas"), repository.join("policies"), folder.join("keys"));
    let hub = Hub::open(opening).await.unwrap();
    let files = invented.files.iter().map(|file| (file.dataset, &file.rows));
    // Grids are checked against the divisions, so these come first.
    for (dataset, rows) in [("platform.divisions", &invented.divisions)].into_iter().chain(files) {
        let agency = dataset.split('.').next().unwrap();
        let (_, caller) = UPLOADERS.iter().find(|(known, _)| *known == agency).unwrap();
        let credential = hub.authenticate(&token(folder, caller)).await.unwrap();
        push(&hub, &credential, dataset, rows).await;
    }
    Truth::of(&invented)
}

async fn push(hub: &Hub, credential: &Credential, dataset: &str, rows: &RecordBatch) {
    let push = Push {
        dataset: dataset.to_owned(),
        batch_id: Uuid::now_v7(),
        format: Format::Parquet,
        contract_version: None,
        content_digest: None,
        body: as_parquet(rows).unwrap().into(),
        dry_run: false,
    };
    hub.upload(credential, push).await.unwrap_or_else(|error| panic!("{dataset}: {error:?}"));
}

fn token(folder: &Path, caller: &str) -> String {
    let metadata = Metadata::open(&folder.join("data")).unwrap();
    identity::create(&metadata, caller, None, Utc::now()).unwrap().0
}

/// The program as it was built with the test or benchmark that asks.
fn built_beside() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_gridhub"))
}

fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// A hub that runs. It is killed when it is let go of.
pub struct Served {
    child: Child,
    /// Where its doors are.
    pub ports: Ports,
    folder: PathBuf,
}

impl Served {
    /// Starts the hub of a folder and waits until every door is open.
    pub async fn start(folder: &Path) -> Self {
        let (settings, said) = (folder.join("hub.toml"), folder.join("hub.log"));
        fs::write(&settings, SETTINGS).unwrap();
        let [http, postgres, flight] = free_ports();
        let ports = Ports { http, postgres, flight };
        let address = |port: u16| format!("127.0.0.1:{port}");
        let program = std::env::var_os("GRIDHUB_LOAD_HUB").map_or_else(built_beside, PathBuf::from);
        let mut command = Command::new(program);
        command.current_dir(repository()).arg("serve").arg("--config").arg(&settings);
        command.arg("--data").arg(folder.join("data")).arg("--keys").arg(folder.join("keys"));
        command.args(["--http", &address(http), "--postgres", &address(postgres), "--flight", &address(flight)]);
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("GRIDHUB_")) {
            command.env_remove(name);
        }
        let child = command.stdout(Stdio::null()).stderr(File::create(said).unwrap()).spawn().unwrap();
        let mut served = Self { child, ports, folder: folder.to_owned() };
        let until = Instant::now() + PATIENCE;
        for port in [http, postgres, flight] {
            while TcpStream::connect(("127.0.0.1", port)).is_err() {
                let ended = served.child.try_wait().unwrap();
                assert!(ended.is_none() && Instant::now() < until, "no door opens: {}", served.said());
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        served
    }

    /// Somebody who may ask, with a token that works.
    pub fn visitor(&self, caller: &'static str, purpose: &'static str) -> Visitor {
        Visitor { caller, purpose, token: token(&self.folder, caller) }
    }

    /// What it said of itself.
    pub fn said(&self) -> String {
        fs::read_to_string(self.folder.join("hub.log")).unwrap_or_default()
    }

    /// Bytes of memory that it takes now.
    pub fn memory(&self) -> u64 {
        let numbers = fs::read_to_string(format!("/proc/{}/statm", self.child.id())).unwrap();
        // Pages of 4 KiB, as on every machine that CI has.
        numbers.split(' ').nth(1).unwrap().parse::<u64>().unwrap() << 12
    }

    /// Files and sockets that it holds open now.
    pub fn open_files(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().count()
    }

    /// Asks it to end, and waits until it has: with what exit status.
    pub fn stop(mut self) -> Option<i32> {
        let asked = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status().unwrap();
        assert!(asked.success());
        self.child.wait().unwrap().code()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Ports that nobody listens on. Held all at once, so that no two are the same.
pub fn free_ports<const N: usize>() -> [u16; N] {
    let held = [(); N].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    held.map(|listener| listener.local_addr().unwrap().port())
}

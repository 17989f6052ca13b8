//! The whole loop on an invented city: a hub comes up, every agency pushes, an analyst asks, a grid worker
//! looks, an officer reviews, the log is verified. Everything goes over the wire, as real users would.

pub mod city;
pub mod questions;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use chrono::{TimeDelta, Utc};
use clap::Args;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use metrics_exporter_prometheus::PrometheusBuilder;
use parquet::arrow::ArrowWriter;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    cli::words,
    client::{Client, Parcel},
    dataset::receipt::Receipt,
    disclose::Wishes,
    error::{Error, Result},
    front::{
        doors::{Addresses, Cover, Doors, Options},
        http,
        listen::Limits,
    },
    hub::{Hub, Opening},
    identity,
    store::metadata::Metadata,
    validate::Format,
};

/// Run the whole loop on an invented city.
#[derive(Args)]
pub struct Demo {
    /// People of the city.
    #[arg(long, default_value_t = 20_000)]
    people: usize,
    /// Days of the emergency.
    #[arg(long, default_value_t = 7)]
    days: usize,
    /// End instead of staying up.
    #[arg(long)]
    exit: bool,
    /// The data folder; a temporary one by default. Keys go beside it, into DIR.keys.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Where HTTP listens; another port is taken where this one is in use.
    #[arg(long, default_value = "127.0.0.1:8080", value_name = "ADDRESS")]
    http: String,
    /// The contracts.
    #[arg(long, default_value = "./schemas", value_name = "DIR")]
    schemas: PathBuf,
    /// The policies.
    #[arg(long, default_value = "./policies", value_name = "DIR")]
    policies: PathBuf,
}

/// Who pushes which agency's datasets.
const UPLOADERS: [(&str, &str); 5] = [
    ("community", "community-uploader"),
    ("hospital", "hospital-uploader"),
    ("cdc", "cdc-uploader"),
    ("pharmacy", "pharmacy-uploader"),
    ("health_bureau", "health-uploader"),
];

impl Demo {
    /// Runs the loop, then stays up unless told to end.
    pub async fn run(self) -> Result<()> {
        let started = Instant::now();
        let temporary = match self.data {
            Some(_) => None,
            None => Some(tempfile::tempdir().map_err(Error::internal)?),
        };
        let data = match (&self.data, &temporary) {
            (Some(data), _) => data.clone(),
            (None, Some(folder)) => folder.path().join("data"),
            (None, None) => return Err(Error::internal("no data folder")),
        };
        let keys = PathBuf::from(format!("{}.keys", data.display()));

        say("1. An invented city");
        let city = city::invent(self.people, self.days, 1, Utc::now().date_naive());
        let rows: usize = city.files.iter().map(|file| file.rows.num_rows()).sum();
        println!(
            "{} people, {} to {}, {} files with {rows} rows, {} of them dirty",
            self.people,
            city.first_day,
            city.last_day,
            city.files.len(),
            city.files.iter().map(|file| dirty(&file.dirt)).sum::<usize>()
        );

        say("2. The hub comes up");
        let doors = bind(&self.http).await?;
        let hub = Arc::new(Hub::open(Opening::new(data.clone(), self.schemas, self.policies, keys)).await?);
        let url = doors.http()?.ok_or_else(|| Error::Usage("the demo needs its HTTP door".into()))?;
        println!("{url}, data in {}", data.display());
        let postgres = doors.postgres()?;
        let flight = doors.flight()?;
        let http = http::Options {
            metrics: PrometheusBuilder::new().install_recorder().ok(),
            body_limit: 256 << 20,
            ..http::Options::default()
        };
        let stop = CancellationToken::new();
        let server = tokio::spawn(doors.serve(hub, Options { http, ..Options::default() }, stop.clone()));

        say("3. Six agencies push, the government platform first");
        let tokens = Tokens { data: data.clone() };
        let pushed = Instant::now();
        let platform = Client::new(&url, &tokens.for_caller("platform-uploader")?)?;
        let receipt = push(&platform, "platform.divisions", &city.divisions).await?;
        println!("platform       {} divisions", receipt.rows_accepted);
        let summary = push_all(&url, &tokens, &city).await?;
        println!("{} rows in {:.1} s, {}", summary.received, pushed.elapsed().as_secs_f64(), summary.in_words());

        say("4. An analyst of the health bureau asks, for epidemiology");
        let analyst_token = tokens.for_caller("health-analyst")?;
        let analyst = Client::new(&url, &analyst_token)?;
        for (title, sql) in questions::analyst(city.last_day) {
            ask(&analyst, title, &sql, Some("epidemiology")).await?;
        }

        say("5. What is refused, and why");
        for sql in questions::REFUSED {
            println!("\n> {sql}");
            match analyst.query(sql, Some("epidemiology"), Wishes::default(), "application/json").await {
                Err(Error::Refused(refusal)) => {
                    println!("refused by `{}`: {}\ntry: {}", refusal.rule, refusal.why, refusal.instead);
                }
                Err(Error::Remote(why)) => println!("{why}"),
                Err(error) => return Err(error),
                Ok(_) => return Err(Error::internal("a query that must be refused was answered")),
            }
        }

        say("6. A grid worker sees the own community, a pharmacy chain only counts");
        let worker_token = tokens.for_caller("grid-worker")?;
        let worker = Client::new(&url, &worker_token)?;
        for (title, sql) in questions::worker() {
            ask(&worker, title, &sql, None).await?;
        }
        let planner = Client::new(&url, &tokens.for_caller("pharmacy-planner")?)?;
        for (title, sql) in questions::planner() {
            ask(&planner, title, &sql, None).await?;
        }

        say("7. A compliance officer reviews who asked what");
        let officer_token = tokens.for_caller("compliance-officer")?;
        let officer = Client::new(&url, &officer_token)?;
        let newest = officer.log_size().await?.saturating_sub(16);
        let entries = officer.log_entries(newest, 16, None).await?;
        for entry in &entries {
            println!("{}", words::entry(entry));
        }

        say("8. The log is verified against its signed head");
        println!("{} entries, none changed, none missing", officer.verify_log(None).await?);
        println!("\nall of this took {:.1} s", started.elapsed().as_secs_f64());

        if self.exit {
            stop.cancel();
            return server.await.map_err(Error::internal)?;
        }
        say("The hub stays up; stop it with Ctrl-C");
        print_invitations(&url, &analyst_token, &tokens.for_caller("community-uploader")?, &officer_token, &data);
        if let Some(address) = postgres {
            println!("{}", psql(address, &analyst_token));
        }
        if let Some(url) = flight {
            println!("Flight SQL     {url}, with the same tokens");
        }
        words::interrupted().await;
        stop.cancel();
        server.await.map_err(Error::internal)?
    }
}

/// All doors on loopback, HTTP where it is wished for unless that is in use.
async fn bind(http: &str) -> Result<Doors> {
    const ANY_PORT: &str = "127.0.0.1:0";
    let wished = Addresses { http, postgres: ANY_PORT, flight: ANY_PORT };
    match Doors::bind(wished, &Cover::Loopback, Limits::default()).await {
        Ok(doors) => Ok(doors),
        Err(_) => Doors::bind(Addresses { http: ANY_PORT, ..wished }, &Cover::Loopback, Limits::default()).await,
    }
}

/// How the analyst asks over the Postgres protocol.
fn psql(address: SocketAddr, token: &str) -> String {
    let (host, port) = (address.ip(), address.port());
    let connection =
        format!("host={host} port={port} dbname=hub user=health-analyst options='-c purpose=epidemiology'");
    format!("psql           PGPASSWORD={token} psql \"{connection}\"")
}

/// Makes tokens as the command line would, on the data folder.
struct Tokens {
    data: PathBuf,
}

impl Tokens {
    fn for_caller(&self, caller: &str) -> Result<String> {
        let metadata = Metadata::open(&self.data)?;
        Ok(identity::create(&metadata, caller, Some(TimeDelta::days(1)), Utc::now())?.0)
    }
}

/// What became of all rows.
#[derive(Default)]
struct Summary {
    received: u64,
    accepted: u64,
    rejected: u64,
    duplicate: u64,
    counts: std::collections::BTreeMap<String, u64>,
}

impl Summary {
    fn add(&mut self, receipt: &Receipt) {
        self.received += receipt.rows_received;
        self.accepted += receipt.rows_accepted;
        self.rejected += receipt.rows_rejected;
        self.duplicate += receipt.rows_duplicate;
        for (what, count) in receipt.rejections.iter().chain(&receipt.warnings) {
            *self.counts.entry(what.clone()).or_default() += count;
        }
    }

    fn in_words(&self) -> String {
        let counts: Vec<_> = self.counts.iter().map(|(what, count)| format!("{what} {count}")).collect();
        format!(
            "{} stored, {} rejected, {} duplicates ({})",
            self.accepted,
            self.rejected,
            self.duplicate,
            counts.join(", ")
        )
    }
}

/// Each agency pushes its files in order, all agencies at once.
async fn push_all(url: &str, tokens: &Tokens, city: &city::City) -> Result<Summary> {
    let bars = MultiProgress::new();
    let mut pushes = Vec::new();
    for (agency, caller) in UPLOADERS {
        let client = Client::new(url, &tokens.for_caller(caller)?)?;
        let files: Vec<_> = city.files.iter().filter(|file| file.dataset.split('.').next() == Some(agency)).collect();
        let rows = files.iter().map(|file| file.rows.num_rows() as u64).sum();
        let bar = bars.add(ProgressBar::new(rows));
        if let Ok(style) = ProgressStyle::with_template("{msg:14} {bar:40} {pos:>7}/{len:7} rows {elapsed}") {
            bar.set_style(style);
        }
        bar.set_message(agency);
        pushes.push(async move {
            let mut receipts = Vec::new();
            for file in files {
                receipts.push(push(&client, file.dataset, &file.rows).await?);
                bar.inc(file.rows.num_rows() as u64);
            }
            bar.finish();
            Ok::<_, Error>(receipts)
        });
    }
    let mut summary = Summary::default();
    for receipts in futures::future::try_join_all(pushes).await? {
        receipts.iter().for_each(|receipt| summary.add(receipt));
    }
    Ok(summary)
}

async fn push(client: &Client, dataset: &str, rows: &RecordBatch) -> Result<Receipt> {
    let file = as_parquet(rows)?;
    let parcel = Parcel {
        dataset: dataset.to_owned(),
        batch_id: Uuid::now_v7(),
        format: Format::Parquet,
        content: file.into(),
        digest: None,
        dry_run: false,
    };
    client.push(&parcel, Arc::new(|_| {})).await
}

/// A batch as a Parquet file.
///
/// # Errors
/// Only a fault of the writer.
pub fn as_parquet(rows: &RecordBatch) -> Result<Bytes> {
    let mut out = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut out, rows.schema(), None).map_err(Error::internal)?;
    writer.write(rows).map_err(Error::internal)?;
    writer.close().map_err(Error::internal)?;
    Ok(out.into())
}

async fn ask(client: &Client, title: &str, sql: &str, purpose: Option<&str>) -> Result<()> {
    println!("\n{title}\n> {sql}");
    let answer = client.query(sql, purpose, Wishes::default(), "application/vnd.apache.arrow.stream").await?;
    print!("{}", words::table(&answer)?);
    Ok(())
}

fn dirty(dirt: &city::Dirt) -> usize {
    dirt.bad_check_digit
        + dirt.missing_id
        + dirt.canonicalised_ids
        + dirt.malformed_phone
        + dirt.missing_name
        + dirt.unknown_grid
        + dirt.identifier_in_text
        + dirt.duplicates
}

fn say(title: &str) {
    println!("\n\x1b[1m{title}\x1b[0m");
}

fn print_invitations(url: &str, analyst: &str, uploader: &str, officer: &str, data: &Path) {
    println!(
        "
analyst        curl -s {url}/v1/sql -H 'Authorization: Bearer {analyst}' -H 'Content-Type: application/json' \\
                 -d '{{\"sql\":\"SELECT confirmed_date, count(*) AS n FROM cases GROUP BY 1 ORDER BY 1\",\"purpose\":\"epidemiology\"}}'
uploader       curl -s {url}/v1/datasets -H 'Authorization: Bearer {uploader}'
officer        curl -s '{url}/v1/log/entries?from=0&count=5' -H 'Authorization: Bearer {officer}'

from another shell: export GRIDHUB_URL={url} GRIDHUB_TOKEN=…, then gridhub query, push or audit list
the data lies in {}",
        data.display()
    );
}

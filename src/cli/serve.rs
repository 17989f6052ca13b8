//! `gridhub serve`.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use chrono::TimeDelta;
use clap::Args;
use metrics_exporter_prometheus::PrometheusBuilder;
use serde::Serialize;
use tokio::net::TcpListener;

use super::words;
use crate::{
    config::Settings,
    error::{Error, Result},
    front::http,
    hub::{Hub, Opening},
    query, resumable, validate,
};

/// Run the hub on its data folder.
#[derive(Args, Serialize)]
pub struct Serve {
    /// Where tables, log and metadata lie [default: ./data].
    #[arg(long, value_name = "DIR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<PathBuf>,
    /// The contracts [default: ./schemas].
    #[arg(long, value_name = "DIR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    schemas: Option<PathBuf>,
    /// The policies [default: ./policies].
    #[arg(long, value_name = "DIR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    policies: Option<PathBuf>,
    /// The keys [default: the user's configuration folder].
    #[arg(long, value_name = "DIR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    keys: Option<PathBuf>,
    /// Where HTTP listens, or `none` [default: 127.0.0.1:8080].
    #[arg(long, value_name = "ADDRESS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    http: Option<String>,
    /// The Postgres door is not built yet: only `none`.
    #[arg(long, value_name = "ADDRESS")]
    #[serde(skip)]
    postgres: Option<String>,
    /// The Flight SQL door is not built yet: only `none`.
    #[arg(long, value_name = "ADDRESS")]
    #[serde(skip)]
    flight: Option<String>,
    /// A TOML file of settings.
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    config: Option<PathBuf>,
}

impl Serve {
    /// Runs until interrupted.
    pub async fn run(self) -> Result<()> {
        for (door, address) in [("--postgres", &self.postgres), ("--flight", &self.flight)] {
            if address.as_deref().is_some_and(|address| address != "none") {
                return Err(Error::Usage(format!("{door}: this door is not built yet; leave it out or say none")));
            }
        }
        let command_line = serde_json::to_value(&self).map_err(Error::internal)?;
        let settings = Settings::read(self.config.as_ref(), &command_line)?;
        if settings.http == "none" {
            return Err(Error::Usage("--http none: no door would be left".into()));
        }
        keep_values_out_of_panics();
        let listener = TcpListener::bind(&settings.http)
            .await
            .map_err(|e| Error::Usage(format!("cannot listen on `{}`: {e}", settings.http)))?;
        let hub = Arc::new(open(&settings).await?);
        let address = listener.local_addr().map_err(Error::internal)?;
        eprintln!("gridhub listens on http://{address}, data in {}", settings.data.display());
        let options = http::Options {
            metrics: PrometheusBuilder::new().install_recorder().ok(),
            open_metrics: settings.open_metrics,
            body_limit: (settings.upload_mb as u64) << 20,
            silence: Duration::from_secs(settings.upload_silence_seconds),
            uploads: resumable::Limits {
                open: settings.max_uploads,
                lifetime: TimeDelta::hours(settings.upload_hours.into()),
                ..resumable::Limits::default()
            },
        };
        log_in_the_background(Arc::clone(&hub));
        keep_up_in_the_background(Arc::clone(&hub), Duration::from_secs(settings.upkeep_minutes.max(1) * 60));
        http::serve(listener, http::router(hub, options), words::interrupted()).await
    }
}

/// A panic is told of by its place alone: its message may hold a value of the file that a decoder fell over.
fn keep_values_out_of_panics() {
    std::panic::set_hook(Box::new(|fall| {
        let place = fall.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!(place, "a part of the hub fell over");
    }));
}

/// Opens a hub with these settings.
pub async fn open(settings: &Settings) -> Result<Hub> {
    Hub::open(Opening {
        query_limits: query::Limits {
            memory: settings.query_memory_mb << 20,
            deadline: Duration::from_secs(settings.query_seconds),
            rows: settings.answer_rows,
            ..query::Limits::default()
        },
        spool_memory: settings.upload_memory_kb << 10,
        upload_limits: validate::Limits { bytes: (settings.upload_mb as u64) << 20, ..validate::Limits::default() },
        upkeep: settings.upkeep()?,
        ..Opening::new(
            settings.data.clone(),
            settings.schemas.clone(),
            settings.policies.clone(),
            settings.keys_folder(),
        )
    })
    .await
}

/// What the command line leaves in the metadata gets into the log even when nobody asks anything.
fn log_in_the_background(hub: Arc<Hub>) {
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            if let Err(error) = hub.log_what_waits().await {
                tracing::error!(%error, "events wait to be logged");
            }
        }
    });
}

/// Keeps tables up right after the start, every so often, and sooner where small files crowd.
fn keep_up_in_the_background(hub: Arc<Hub>, every: Duration) {
    tokio::spawn(async move {
        let mut last: Option<Instant> = None;
        // Small files that a round could not put together will not be put together by the next one at once.
        let mut stays_crowded = false;
        loop {
            let due = last.is_none_or(|last| last.elapsed() >= every);
            if due || (!stays_crowded && hub.is_crowded().await) {
                // What went wrong is in the hub's own log, table by table; the next round tries again.
                if let Err(error) = hub.maintain().await {
                    tracing::error!(%error, "tables are not kept up");
                }
                last = Some(Instant::now());
                stays_crowded = hub.is_crowded().await;
            }
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
    });
}

//! `gridhub serve`.

use std::{path::PathBuf, sync::Arc, time::Duration};

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
    query, validate,
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
        let listener = TcpListener::bind(&settings.http)
            .await
            .map_err(|e| Error::Usage(format!("cannot listen on `{}`: {e}", settings.http)))?;
        let hub = Arc::new(open(&settings).await?);
        let address = listener.local_addr().map_err(Error::internal)?;
        eprintln!("gridhub listens on http://{address}, data in {}", settings.data.display());
        let options = http::Options {
            metrics: PrometheusBuilder::new().install_recorder().ok(),
            open_metrics: settings.open_metrics,
            body_limit: settings.upload_mb << 20,
        };
        log_in_the_background(Arc::clone(&hub));
        http::serve(listener, http::router(hub, options), words::interrupted()).await
    }
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
        upload_limits: validate::Limits { bytes: settings.upload_mb << 20, ..validate::Limits::default() },
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

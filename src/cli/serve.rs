//! `gridhub serve`.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use chrono::TimeDelta;
use clap::Args;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::words;
use crate::{
    config::{LogFormat, PostgresAuth, Settings, TlsClients},
    error::{Error, Result},
    front::{
        doors::{Addresses, Cover, Doors, Options},
        figures, flight, http, listen, postgres,
        tls::Tls,
    },
    hub::{Hub, Opening, throttle},
    identity::{oidc::Issuers, revocation::Revocations},
    query, resumable, validate,
};

/// Doors that share what the system allows.
const DOORS: usize = 3;

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
    /// Where the Postgres protocol is spoken, or `none` [default: 127.0.0.1:5433].
    #[arg(long, value_name = "ADDRESS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    postgres: Option<String>,
    /// Where Flight SQL is spoken, or `none` [default: 127.0.0.1:50051].
    #[arg(long, value_name = "ADDRESS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    flight: Option<String>,
    /// The hub's certificate as PEM: all doors speak TLS.
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    tls_certificate: Option<PathBuf>,
    /// The certificate's key as PEM.
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    tls_key: Option<PathBuf>,
    /// The roots that sign certificates of clients, as PEM.
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    tls_client_roots: Option<PathBuf>,
    /// Lists of certificates of clients that were taken back (CRLs), as PEM.
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    tls_client_revocations: Option<PathBuf>,
    /// A TOML file of settings.
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    config: Option<PathBuf>,
}

impl Serve {
    /// Runs until interrupted.
    pub async fn run(self) -> Result<()> {
        let settings = self.settings()?;
        keep_values_out_of_panics();
        // Doors first: a port in use is told of before anything is opened or made.
        let doors = Doors::bind(addresses(&settings), &cover(&settings)?, limits(&settings)).await?;
        let hub = Arc::new(open(&settings).await?);
        if let Some(url) = doors.http()? {
            eprintln!("gridhub listens on {url}, data in {}", settings.data.display());
        }
        if let Some(address) = doors.postgres()? {
            eprintln!("gridhub speaks Postgres on {address}");
        }
        if let Some(url) = doors.flight()? {
            eprintln!("gridhub speaks Flight SQL on {url}");
        }
        log_in_the_background(Arc::clone(&hub));
        keep_up_in_the_background(Arc::clone(&hub), Duration::from_secs(settings.upkeep_minutes.max(1) * 60));
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        tokio::spawn(async move {
            words::interrupted().await;
            stopped.cancel();
        });
        doors.serve(hub, options(&settings), stop).await
    }

    /// How this hub writes its own log. Whatever is wrong with the settings is told of when they are used.
    pub fn log_format(&self) -> LogFormat {
        self.settings().map(|settings| settings.log_format).unwrap_or_default()
    }

    fn settings(&self) -> Result<Settings> {
        let command_line = serde_json::to_value(self).map_err(Error::internal)?;
        Settings::read(self.config.as_ref(), &command_line)
    }
}

fn addresses(settings: &Settings) -> Addresses<'_> {
    Addresses { http: &settings.http, postgres: &settings.postgres, flight: &settings.flight }
}

fn cover(settings: &Settings) -> Result<Cover> {
    let (Some(certificate), Some(key)) = (&settings.tls_certificate, &settings.tls_key) else {
        return Ok(if settings.behind_proxy { Cover::Proxy } else { Cover::Loopback });
    };
    let tls = match (&settings.tls_client_roots, settings.tls_clients) {
        (Some(roots), TlsClients::Required) => Tls::open_to_certificates_only(certificate, key, roots)?,
        (roots, _) => Tls::open(certificate, key, roots.as_deref())?,
    };
    match &settings.tls_client_revocations {
        Some(lists) => tls.with_revocations(lists).map(Cover::Tls),
        None => Ok(Cover::Tls(tls)),
    }
}

fn limits(settings: &Settings) -> listen::Limits {
    // The other half is for tables, the log and the ways out.
    let connections = match more_open_files() {
        Some(files) => settings.connections.min((files / 2 / DOORS).max(1)),
        None => settings.connections,
    };
    if connections < settings.connections {
        tracing::warn!(connections, "a door takes fewer connections than set: the system allows too few open files");
    }
    let per_address = match settings.connections_per_address {
        _ if settings.behind_proxy => 0,
        Some(most) => most,
        None => connections.div_ceil(2),
    };
    let patience = Duration::from_secs(settings.stop_seconds);
    listen::Limits { connections, per_address, patience, ..listen::Limits::default() }
}

/// Raises the number of files that may be open as far as the system lets it, and says what it is; nothing where there
/// is no limit. Tables have many files, and each connection is one.
fn more_open_files() -> Option<usize> {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let files = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    };
    files.map(|files| usize::try_from(files).unwrap_or(usize::MAX))
}

fn options(settings: &Settings) -> Options {
    let body_limit = (settings.upload_mb as u64) << 20;
    let silence = Duration::from_secs(settings.upload_silence_seconds);
    let auth = match settings.postgres_auth {
        PostgresAuth::Token => postgres::Auth::Token,
        PostgresAuth::Scram => postgres::Auth::Scram,
    };
    Options {
        http: http::Options {
            metrics: figures::install(),
            open_metrics: settings.open_metrics,
            body_limit,
            silence,
            uploads: resumable::Limits {
                open: settings.max_uploads,
                lifetime: TimeDelta::hours(settings.upload_hours.into()),
                ..resumable::Limits::default()
            },
        },
        postgres: postgres::Options {
            auth,
            behind_proxy: settings.behind_proxy,
            patience: Duration::from_secs(settings.stop_seconds),
            ..postgres::Options::default()
        },
        flight: flight::Options { body_limit, silence, ..flight::Options::default() },
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
            tables: settings.small_tables_mb << 20,
            ..query::Limits::default()
        },
        spool_memory: settings.upload_memory_kb << 10,
        upload_limits: validate::Limits { bytes: (settings.upload_mb as u64) << 20, ..validate::Limits::default() },
        upkeep: settings.upkeep()?,
        throttle: throttle::Limits {
            per_second: settings.caller_questions_per_second,
            at_once: settings.caller_questions_at_once,
        },
        unread_answers: settings.unread_answers_mb << 20,
        issuers: Issuers::open(&settings.oidc)?,
        revocations: settings.tls_client_revocations.as_deref().map(Revocations::open).transpose()?.unwrap_or_default(),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_has_half_of_a_door_unless_told_or_behind_a_proxy() {
        let most = |settings: Settings| limits(&settings).per_address;
        let usual = || Settings { connections: 5, ..Settings::default() };
        assert_eq!(most(usual()), 3);
        assert_eq!(most(Settings { connections: 1, ..usual() }), 1);
        assert_eq!(most(Settings { connections_per_address: Some(2), ..usual() }), 2);
        assert_eq!(most(Settings { connections_per_address: Some(0), ..usual() }), 0);
        assert_eq!(most(Settings { behind_proxy: true, connections_per_address: Some(2), ..usual() }), 0);
    }
}

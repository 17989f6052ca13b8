//! Every setting of `gridhub serve`, its default and why. Read from a TOML file (`--config`), the
//! environment (`GRIDHUB_…`) and the command line, the later winning; unknown keys are refused.

use std::path::PathBuf;

use figment::{
    Figment,
    providers::{Env, Format, Serialized, Toml},
};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Settings of a hub.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Where tables, log and metadata lie.
    pub data: PathBuf,
    /// The contracts.
    pub schemas: PathBuf,
    /// The policies.
    pub policies: PathBuf,
    /// The keys: by default in the user's configuration folder, never inside `data`.
    pub keys: Option<PathBuf>,
    /// Where HTTP listens: the loopback address, since TLS ends at a proxy for now. `none` is off.
    pub http: String,
    /// Megabytes of memory for all queries together.
    pub query_memory_mb: usize,
    /// Seconds one query may take.
    pub query_seconds: u64,
    /// Rows one answer may have.
    pub answer_rows: usize,
    /// Megabytes one upload may have.
    pub upload_mb: usize,
    /// Whether health and metrics answer to other addresses than loopback.
    pub open_metrics: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            data: "./data".into(),
            schemas: "./schemas".into(),
            policies: "./policies".into(),
            keys: None,
            http: "127.0.0.1:8080".into(),
            query_memory_mb: 2_048,
            query_seconds: 60,
            answer_rows: 1_000_000,
            upload_mb: 256,
            open_metrics: false,
        }
    }
}

impl Settings {
    /// The settings of file, environment and the given command line members.
    ///
    /// # Errors
    /// [`Error::Usage`] naming the key and where it was set.
    pub fn read(file: Option<&PathBuf>, command_line: &serde_json::Value) -> Result<Self> {
        let mut settings = Figment::from(Serialized::defaults(Self::default()));
        if let Some(file) = file {
            if !file.exists() {
                return Err(Error::setup(file, None, "no such configuration file"));
            }
            settings = settings.merge(Toml::file(file));
        }
        // GRIDHUB_URL and GRIDHUB_TOKEN are the client's.
        settings
            .merge(Env::prefixed("GRIDHUB_").ignore(&["url", "token", "log"]))
            .merge(Serialized::globals(command_line))
            .extract()
            .map_err(|e| Error::Usage(format!("settings: {e}")))
    }

    /// The folder of keys.
    pub fn keys_folder(&self) -> PathBuf {
        self.keys.clone().unwrap_or_else(|| {
            let home = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
            home("XDG_CONFIG_HOME")
                .or_else(|| home("HOME").map(|home| home.join(".config")))
                .unwrap_or_else(|| PathBuf::from("/etc"))
                .join("gridhub")
                .join("keys")
        })
    }
}

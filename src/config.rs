//! Every setting of `gridhub serve`, its default and why. Read from a TOML file (`--config`), the
//! environment (`GRIDHUB_…`) and the command line, the later winning; unknown keys are refused.

use std::path::PathBuf;

use chrono::TimeDelta;
use figment::{
    Figment,
    providers::{Env, Format, Serialized, Toml},
};
use serde::{Deserialize, Serialize};

use crate::{
    error::{Error, Result},
    store::maintenance::{LONGEST, Upkeep},
};

/// Megabytes that one upload may have at most, 1 TiB: beyond lies a slip of the hand.
const LONGEST_UPLOAD: usize = 1 << 20;

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
    /// Kilobytes of an upload that wait in memory; longer ones wait on disk, encrypted.
    pub upload_memory_kb: usize,
    /// Hours an upload in pieces is kept after its last byte: over a night without a line.
    pub upload_hours: u32,
    /// Uploads in pieces that may be open at once: each keeps its bytes on disk.
    pub max_uploads: usize,
    /// Seconds in which at least one byte of a body must come.
    pub upload_silence_seconds: u64,
    /// Minutes between two rounds of upkeep; a table with many small files does not wait for the next.
    pub upkeep_minutes: u64,
    /// How many small files must be worth putting together before they are.
    pub compact_small_files: usize,
    /// Megabytes of the files that small ones are put together to.
    pub compact_target_mb: u64,
    /// Hours for which a replaced version of a table can still be read, at most 168.
    pub keep_hours: u32,
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
            upload_mb: 4_096,
            upload_memory_kb: 256,
            upload_hours: 24,
            max_uploads: 256,
            upload_silence_seconds: 60,
            upkeep_minutes: 10,
            compact_small_files: 16,
            compact_target_mb: 64,
            keep_hours: 168,
            open_metrics: false,
        }
    }
}

impl Settings {
    /// The settings of file, environment and the given command line members.
    ///
    /// # Errors
    /// [`Error::Usage`] naming the key, also where its value would let nothing through.
    pub fn read(file: Option<&PathBuf>, command_line: &serde_json::Value) -> Result<Self> {
        let mut settings = Figment::from(Serialized::defaults(Self::default()));
        if let Some(file) = file {
            if !file.exists() {
                return Err(Error::setup(file, None, "no such configuration file"));
            }
            settings = settings.merge(Toml::file(file));
        }
        // GRIDHUB_URL and GRIDHUB_TOKEN are the client's.
        let settings: Self = settings
            .merge(Env::prefixed("GRIDHUB_").ignore(&["url", "token", "log"]))
            .merge(Serialized::globals(command_line))
            .extract()
            .map_err(|e| Error::Usage(format!("settings: {e}")))?;
        settings.check()?;
        Ok(settings)
    }

    fn check(&self) -> Result<()> {
        let at_least_one = [
            ("upload_mb", self.upload_mb as u64),
            ("max_uploads", self.max_uploads as u64),
            ("upload_hours", self.upload_hours.into()),
            ("upload_silence_seconds", self.upload_silence_seconds),
            ("query_seconds", self.query_seconds),
            ("query_memory_mb", self.query_memory_mb as u64),
            ("compact_target_mb", self.compact_target_mb),
        ];
        if let Some((key, _)) = at_least_one.iter().find(|(_, value)| *value == 0) {
            return Err(Error::Usage(format!("settings: {key} is 0 and must be 1 at least")));
        }
        if self.upload_mb > LONGEST_UPLOAD {
            return Err(Error::Usage(format!(
                "settings: upload_mb is {} and may be {LONGEST_UPLOAD} at most",
                self.upload_mb
            )));
        }
        Ok(())
    }

    /// When and how tables are kept up.
    ///
    /// # Errors
    /// [`Error::Usage`] where old versions should be kept for longer than they can be.
    pub fn upkeep(&self) -> Result<Upkeep> {
        let keep = TimeDelta::hours(self.keep_hours.into());
        if keep > LONGEST {
            return Err(Error::Usage(format!("settings: keep_hours is {} and may be 168 at most", self.keep_hours)));
        }
        Ok(Upkeep { small_files: self.compact_small_files, target: self.compact_target_mb << 20, keep })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_let_nothing_through_are_named() {
        let usual = Settings::default;
        assert!(usual().check().is_ok());
        assert!(Settings { upload_mb: LONGEST_UPLOAD, ..usual() }.check().is_ok());
        for (key, settings) in [
            ("upload_mb", Settings { upload_mb: 0, ..usual() }),
            ("upload_mb", Settings { upload_mb: LONGEST_UPLOAD + 1, ..usual() }),
            ("max_uploads", Settings { max_uploads: 0, ..usual() }),
            ("upload_hours", Settings { upload_hours: 0, ..usual() }),
            ("upload_silence_seconds", Settings { upload_silence_seconds: 0, ..usual() }),
            ("query_seconds", Settings { query_seconds: 0, ..usual() }),
            ("query_memory_mb", Settings { query_memory_mb: 0, ..usual() }),
            ("compact_target_mb", Settings { compact_target_mb: 0, ..usual() }),
        ] {
            let refused = settings.check().unwrap_err();
            assert!(
                matches!(&refused, Error::Usage(why) if why.starts_with(&format!("settings: {key} is "))),
                "{refused}"
            );
        }
    }
}

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
    identity::oidc::Issuer,
    store::maintenance::{LONGEST, Upkeep},
};

/// Megabytes that one upload may have at most, 1 TiB: beyond lies a slip of the hand.
const LONGEST_UPLOAD: usize = 1 << 20;

/// What of the environment is the client's, `GRIDHUB_URL` and so on, and the filter of the log.
const OF_THE_CLIENT: [&str; 6] = ["url", "token", "ca", "certificate", "certificate_key", "log"];

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
    /// Where HTTP listens; `none` is off. Without TLS only a loopback address, for this door and the others.
    pub http: String,
    /// Where the Postgres protocol is spoken; `none` is off. Not 5432, where a database may be.
    pub postgres: String,
    /// Where Flight SQL is spoken; `none` is off.
    pub flight: String,
    /// How Postgres clients show who they are.
    pub postgres_auth: PostgresAuth,
    /// The hub's certificate and those above it, as PEM. With it all doors speak TLS.
    pub tls_certificate: Option<PathBuf>,
    /// The certificate's key, as PEM, readable by the hub alone.
    pub tls_key: Option<PathBuf>,
    /// The roots that sign certificates of clients, as PEM; whose they are is said in the policies. Without them no
    /// client can show one.
    pub tls_client_roots: Option<PathBuf>,
    /// Lists of certificates of clients that were taken back (CRLs), as PEM. One that has ended takes back all of its
    /// issuer; issuers without a list have taken back none.
    pub tls_client_revocations: Option<PathBuf>,
    /// Whether clients must show a certificate, or may come with a token alone.
    pub tls_clients: TlsClients,
    /// Whether TLS ends at a proxy before the hub, so that it may listen on any address without. The proxy must keep
    /// `/healthz`, `/readyz` and `/metrics` to itself where it runs on the same machine: the hub takes it for loopback.
    pub behind_proxy: bool,
    /// Issuers of OpenID Connect whose tokens count; which caller their subjects are is said in the policies.
    pub oidc: Vec<Issuer>,
    /// Connections at once, for each door; further ones wait. Never more than half of what the system allows.
    pub connections: usize,
    /// Connections at once from one address, for each door; further ones are closed. Half of them unless told, 0 is as
    /// many as there may be. Behind a proxy all come from its address, and this does not count.
    pub connections_per_address: Option<usize>,
    /// Questions a second of one caller over some time; 0 is as many as it likes.
    pub caller_questions_per_second: u32,
    /// Questions at once of one caller, further ones wait; 0 is as many as it likes.
    pub caller_questions_at_once: usize,
    /// Seconds that running requests may take once the hub was asked to stop.
    pub stop_seconds: u64,
    /// How the hub's own log is written to standard error.
    pub log_format: LogFormat,
    /// Megabytes of memory for all queries together.
    pub query_memory_mb: usize,
    /// Seconds one query may take.
    pub query_seconds: u64,
    /// Rows one answer may have.
    pub answer_rows: usize,
    /// Megabytes of memory for small tables, all together; none holds no table in memory.
    pub small_tables_mb: usize,
    /// Megabytes of memory for all answers together that their readers do not have yet.
    pub unread_answers_mb: usize,
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

/// How Postgres clients show who they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PostgresAuth {
    /// The access token as password, over TLS or loopback.
    #[default]
    Token,
    /// SCRAM-SHA-256 (RFC 7677): the token does not cross the wire.
    Scram,
}

/// Whether clients must show a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TlsClients {
    /// They may; a token does too.
    #[default]
    Optional,
    /// They must, at every door.
    Required,
}

/// How the hub's own log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Lines for people.
    #[default]
    Text,
    /// One JSON object a line, for machines.
    Json,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            data: "./data".into(),
            schemas: "./schemas".into(),
            policies: "./policies".into(),
            keys: None,
            http: "127.0.0.1:8080".into(),
            postgres: "127.0.0.1:5433".into(),
            flight: "127.0.0.1:50051".into(),
            postgres_auth: PostgresAuth::default(),
            tls_certificate: None,
            tls_key: None,
            tls_client_roots: None,
            tls_client_revocations: None,
            tls_clients: TlsClients::default(),
            behind_proxy: false,
            oidc: Vec::new(),
            connections: 1_024,
            connections_per_address: None,
            caller_questions_per_second: 200,
            caller_questions_at_once: 4,
            stop_seconds: 10,
            log_format: LogFormat::default(),
            query_memory_mb: 2_048,
            query_seconds: 60,
            answer_rows: 1_000_000,
            small_tables_mb: 256,
            unread_answers_mb: 1_024,
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
        let settings: Self = settings
            .merge(Env::prefixed("GRIDHUB_").ignore(&OF_THE_CLIENT))
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
            ("unread_answers_mb", self.unread_answers_mb as u64),
            ("compact_target_mb", self.compact_target_mb),
            ("connections", self.connections as u64),
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
        self.check_tls()
    }

    /// A setting of TLS that does nothing without another would leave its writer believing in it.
    fn check_tls(&self) -> Result<()> {
        let needs = |key: &str, other: &str| Err(Error::Usage(format!("settings: {key} is set and needs {other}")));
        match (&self.tls_certificate, &self.tls_key) {
            (Some(_), None) => return needs("tls_certificate", "tls_key"),
            (None, Some(_)) => return needs("tls_key", "tls_certificate"),
            _ => {}
        }
        if self.tls_client_roots.is_some() && self.tls_certificate.is_none() {
            return needs("tls_client_roots", "tls_certificate and tls_key");
        }
        if self.tls_client_revocations.is_some() && self.tls_client_roots.is_none() {
            return needs("tls_client_revocations", "tls_client_roots");
        }
        if self.tls_clients == TlsClients::Required && self.tls_client_roots.is_none() {
            return needs("tls_clients = \"required\"", "tls_client_roots");
        }
        // Behind a proxy the Postgres door takes plain connections from anywhere, and with TLS nobody expects that.
        if self.behind_proxy && self.tls_certificate.is_some() {
            return Err(Error::Usage(
                "settings: behind_proxy and tls_certificate are both set; TLS ends at a proxy or here".into(),
            ));
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
#[expect(clippy::panic, reason = "a test that fails should say so at once")]
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
            ("unread_answers_mb", Settings { unread_answers_mb: 0, ..usual() }),
            ("compact_target_mb", Settings { compact_target_mb: 0, ..usual() }),
            ("connections", Settings { connections: 0, ..usual() }),
        ] {
            let refused = settings.check().unwrap_err();
            assert!(
                matches!(&refused, Error::Usage(why) if why.starts_with(&format!("settings: {key} is "))),
                "{refused}"
            );
        }
    }

    #[test]
    fn settings_of_tls_that_do_nothing_alone_are_named() {
        let usual = Settings::default;
        let file = || Some(PathBuf::from("file.pem"));
        let whole = || Settings { tls_certificate: file(), tls_key: file(), tls_client_roots: file(), ..usual() };
        assert!(whole().check().is_ok());
        assert!(Settings { tls_clients: TlsClients::Required, ..whole() }.check().is_ok());
        assert!(Settings { tls_client_revocations: file(), ..whole() }.check().is_ok());
        for (settings, expected) in [
            (Settings { tls_key: None, ..whole() }, "tls_certificate is set and needs tls_key"),
            (Settings { tls_certificate: None, ..whole() }, "tls_key is set and needs tls_certificate"),
            (
                Settings { tls_client_roots: file(), ..usual() },
                "tls_client_roots is set and needs tls_certificate and tls_key",
            ),
            (
                Settings { tls_client_revocations: file(), tls_client_roots: None, ..whole() },
                "tls_client_revocations is set and needs tls_client_roots",
            ),
            (
                Settings { tls_clients: TlsClients::Required, tls_client_roots: None, ..whole() },
                "tls_clients = \"required\" is set and needs tls_client_roots",
            ),
        ] {
            assert_eq!(settings.check().unwrap_err().to_string(), format!("settings: {expected}"));
        }
        assert!(Settings { behind_proxy: true, ..usual() }.check().is_ok());
        let both = Settings { behind_proxy: true, ..whole() }.check().unwrap_err().to_string();
        assert_eq!(both, "settings: behind_proxy and tls_certificate are both set; TLS ends at a proxy or here");
    }

    #[test]
    fn issuers_are_read_from_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("hub.toml");
        let read = |text: &str| {
            std::fs::write(&file, text).unwrap();
            Settings::read(Some(&file), &serde_json::json!({"postgres": "none"}))
        };
        let text = "tls_clients = \"optional\"\nlog_format = \"json\"\npostgres_auth = \"scram\"\n\
                    [[oidc]]\nissuer = \"https://issuer.example\"\naudience = \"gridhub\"\n";
        let settings = read(text).unwrap();
        assert_eq!((settings.log_format, settings.postgres_auth), (LogFormat::Json, PostgresAuth::Scram));
        assert_eq!((settings.postgres.as_str(), settings.flight.as_str()), ("none", "127.0.0.1:50051"));
        let [issuer] = settings.oidc.as_slice() else { panic!("{:?}", settings.oidc) };
        assert_eq!((issuer.issuer.as_str(), issuer.subject_claim.as_str()), ("https://issuer.example", "sub"));
        assert_eq!(issuer.algorithms, ["RS256", "ES256", "EdDSA"]);
        for slip in ["audiense = \"x\"\n", "tls_clients = \"perhaps\"\n"] {
            let refused = read(&format!("{slip}{text}{slip}")).unwrap_err();
            assert!(matches!(refused, Error::Usage(_)), "{refused}");
        }
    }
}

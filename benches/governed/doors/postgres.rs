//! PostgreSQL 15 as an engineer would make it do what a hub does: a cluster of its own in a temporary folder, the same
//! city loaded by COPY, the gates of `gates.sql`, and a log.

use std::{
    collections::HashMap,
    fs,
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
    process::{Command, Output},
};

use bytes::Bytes;
use futures::SinkExt;
use tokio_postgres::{Client, Config, Statement};

use super::{
    clients::{connect, prepared, simple_rows, words},
    questions::{Question, Rows},
    served::free_ports,
    truth::Truth,
};

/// Where Debian has the programs of this version.
const PROGRAMS: &str = "/usr/lib/postgresql/15/bin";

/// The user as whom a server runs that was started by root, which it refuses to run as.
const USER: &str = "postgres";

/// As an administrator would set it, and room for all connections. Commits are on the disk when they are said to be,
/// which is the default and stands here since it is what is compared.
const SETTINGS: &str = "-c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c shared_buffers=512MB \
                        -c max_connections=250 -c fsync=on -c synchronous_commit=on";

/// How a client asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// In one message of text.
    Simple,
    /// By a statement that was prepared, with a parameter.
    Prepared,
}

/// Where tokens come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tokens {
    /// Computed for each row as it is read, for whoever reads it.
    Computed,
    /// Made beforehand, for every caller and person.
    Stored,
}

/// What is kept of a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Log {
    /// A row, on the disk before the question runs: what a hub guarantees.
    Committed,
    /// A line in the server's log, which reaches the disk some time.
    Statements,
}

/// A server that runs. It is stopped when it is let go of.
pub struct Postgres {
    port: u16,
    cluster: PathBuf,
    _folder: tempfile::TempDir,
}

/// A connection, and how it asks.
pub struct Session {
    client: Client,
    protocol: Protocol,
    log: Log,
    record: Option<Statement>,
    statements: HashMap<&'static str, Statement>,
}

impl Postgres {
    /// Starts a server with the city in it, or says why not.
    pub async fn start(truth: &Truth) -> Result<Self, String> {
        let folder = tempfile::tempdir().map_err(|error| words(&error))?;
        let cluster = folder.path().join("cluster");
        let is_root = run(Command::new("id").arg("-u"))?.trim() == "0";
        if is_root {
            let [user, group] = ["-u", "-g"].map(|which| run(Command::new("id").args([which, USER])));
            let number = |text: String| text.trim().parse::<u32>().map_err(|error| words(&error));
            fs::create_dir(&cluster).map_err(|error| words(&error))?;
            chown(&cluster, Some(number(user?)?), Some(number(group?)?)).map_err(|error| words(&error))?;
            let open = fs::Permissions::from_mode(0o711);
            fs::set_permissions(folder.path(), open).map_err(|error| words(&error))?;
        }
        run(program("initdb", &cluster).args(["-A", "trust", "-U", USER, "-E", "UTF8", "--locale", "C.UTF-8"]))?;
        let [port] = free_ports();
        let settings = format!("-p {port} {SETTINGS}");
        let said = cluster.join("server.log");
        run(program("pg_ctl", &cluster).args(["-w", "-o", &settings, "-l"]).arg(said).arg("start"))?;
        let server = Self { port, cluster, _folder: folder };
        let administrator = connect(&server.settings(USER)).await?;
        let fault = |error: tokio_postgres::Error| words(&error);
        administrator.batch_execute(include_str!("gates.sql")).await.map_err(fault)?;
        load(&administrator, truth).await.map_err(fault)?;
        administrator.batch_execute(include_str!("ready.sql")).await.map_err(fault)?;
        administrator.batch_execute("VACUUM ANALYZE").await.map_err(fault)?;
        administrator.batch_execute("CHECKPOINT").await.map_err(fault)?;
        Ok(server)
    }

    /// A connection as who asks a question.
    pub async fn open(
        &self,
        question: &Question,
        protocol: Protocol,
        tokens: Tokens,
        log: Log,
    ) -> Result<Session, String> {
        let (caller, schema) = match (question.purpose, tokens) {
            ("case-management", Tokens::Computed) => ("grid-worker", "casework_computed"),
            ("case-management", Tokens::Stored) => ("grid-worker", "casework_stored"),
            ("epidemiology", Tokens::Computed) => ("health-analyst", "epidemiology_computed"),
            ("epidemiology", Tokens::Stored) => ("health-analyst", "epidemiology_stored"),
            _ => ("health-planner", "planning"),
        };
        let logged = match log {
            Log::Committed => "none",
            Log::Statements => "all",
        };
        let mut settings = self.settings(caller);
        settings.options(format!("-c search_path={schema} -c log_statement={logged}"));
        let client = connect(&settings).await?;
        let record = match (log, protocol) {
            (Log::Committed, Protocol::Prepared) => {
                Some(client.prepare("SELECT gate.record($1)").await.map_err(|error| words(&error))?)
            }
            _ => None,
        };
        Ok(Session { client, protocol, log, record, statements: HashMap::new() })
    }

    fn settings(&self, user: &str) -> Config {
        let mut settings = Config::new();
        settings.host("127.0.0.1").port(self.port).dbname("postgres").user(user);
        settings
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let _ = program("pg_ctl", &self.cluster).args(["-m", "immediate", "stop"]).output();
    }
}

impl Session {
    /// Asks a question with a literal. Where the log is committed, the question runs after that, in the same trip.
    pub async fn ask(&mut self, question: &Question, literal: &str) -> Result<Rows, String> {
        let sql = plain(question);
        let text = sql.replacen("$1", &format!("'{literal}'"), 1);
        match (self.protocol, &self.record) {
            (Protocol::Simple, _) => {
                let message = match self.log {
                    Log::Committed => {
                        format!("BEGIN; SELECT gate.record('{}'); COMMIT; {text}", text.replace('\'', "''"))
                    }
                    Log::Statements => text,
                };
                Ok(simple_rows(self.client.simple_query(&message).await.map_err(|error| words(&error))?))
            }
            (Protocol::Prepared, None) => prepared(&self.client, &mut self.statements, sql, literal).await,
            (Protocol::Prepared, Some(record)) => {
                // Sent one behind the other without waiting; each is a transaction of its own.
                let recorded: [&(dyn tokio_postgres::types::ToSql + Sync); 1] = [&text];
                let (recorded, rows) = tokio::join!(
                    self.client.query(record, &recorded),
                    prepared(&self.client, &mut self.statements, sql, literal)
                );
                recorded.map_err(|error| words(&error))?;
                rows
            }
        }
    }

    /// Some tokens of people who were tested, as this caller reads them.
    pub async fn tokens(&self) -> Result<Vec<String>, String> {
        let sql = "SELECT DISTINCT id_no FROM tests WHERE id_no IS NOT NULL ORDER BY 1 LIMIT 40";
        let rows = simple_rows(self.client.simple_query(sql).await.map_err(|error| words(&error))?);
        Ok(rows.into_iter().flatten().collect())
    }
}

/// A question as it is put to PostgreSQL, which has no protected counts: people are counted there, and groups of few
/// are left out.
fn plain(question: &Question) -> &'static str {
    match question.purpose {
        "supply-planning" => {
            "SELECT special_group, count(DISTINCT id_no) AS n FROM residents WHERE grid_code = $1 \
             GROUP BY 1 HAVING count(DISTINCT id_no) >= 14"
        }
        _ => question.sql,
    }
}

/// Loads the city by COPY.
async fn load(administrator: &Client, truth: &Truth) -> Result<(), tokio_postgres::Error> {
    let text = |text: &Option<String>| text.clone().unwrap_or_else(|| "\\N".to_owned());
    let residents = truth.residents.iter().map(|r| {
        let (id_no, group) = (text(&r.id_no), text(&r.special_group));
        [&id_no, &r.grid_code, &r.sex, &r.birth_date.to_string(), &r.residence_type, &group]
            .map(String::as_str)
            .join("\t")
    });
    let columns = "base.residents (id_no, grid_code, sex, birth_date, residence_type, special_group)";
    copy(administrator, columns, residents).await?;
    let cases = truth.cases.iter().map(|c| {
        let onset = text(&c.onset_date.map(|day| day.to_string()));
        let id_no = text(&c.id_no);
        [&c.case_id, &id_no, &c.grid_code, &onset, &c.confirmed_date.to_string()].map(String::as_str).join("\t")
    });
    copy(administrator, "base.cases (case_id, id_no, grid_code, onset_date, confirmed_date)", cases).await?;
    let tests = truth.tests.iter().map(|t| {
        let id_no = text(&t.id_no);
        [&t.test_id, &id_no, &t.revision.to_string(), &t.method, &t.result].map(String::as_str).join("\t")
    });
    copy(administrator, "base.tests (test_id, id_no, revision, method, result)", tests).await
}

async fn copy(
    administrator: &Client,
    into: &str,
    lines: impl Iterator<Item = String>,
) -> Result<(), tokio_postgres::Error> {
    let sink = administrator.copy_in::<_, Bytes>(format!("COPY {into} FROM STDIN").as_str()).await?;
    let mut sink = std::pin::pin!(sink);
    let mut text = String::new();
    for line in lines {
        text.push_str(&line);
        text.push('\n');
    }
    sink.send(Bytes::from(text)).await?;
    sink.finish().await.map(drop)
}

/// A program of PostgreSQL on a cluster, run by a user who may.
fn program(name: &str, cluster: &Path) -> Command {
    let path = Path::new(PROGRAMS).join(name);
    let is_root = run(Command::new("id").arg("-u")).is_ok_and(|id| id.trim() == "0");
    let mut command = if is_root {
        let mut command = Command::new("runuser");
        command.args(["-u", USER, "--"]).arg(path);
        command
    } else {
        Command::new(path)
    };
    command.arg("-D").arg(cluster).current_dir("/");
    command
}

/// Runs a program to its end; what it said, or why it failed.
fn run(command: &mut Command) -> Result<String, String> {
    let shown = format!("{command:?}");
    let Output { status, stdout, stderr } = command.output().map_err(|error| format!("{shown}: {error}"))?;
    match status.success() {
        true => Ok(String::from_utf8_lossy(&stdout).into_owned()),
        false => Err(format!("{shown}: {}", String::from_utf8_lossy(&stderr))),
    }
}

//! Small governed questions through each door of a hub, and the same of PostgreSQL 15 made to do what a hub does, on
//! the same machine in the same run.
//!
//! What is compared:
//! - The *hub* is `gridhub serve` in a process of its own, with usual settings but for the limits on a single caller,
//!   asked over loopback without TLS: HTTP with JSON by reqwest, the Postgres wire by tokio-postgres in the simple
//!   protocol and by a prepared statement, Flight SQL by the client of arrow-flight (a call for the ticket and one for
//!   the rows, as it is done). Every answer is under policy and has two entries in a log whose hashes make a tree, both
//!   flushed to the disk, the second before a row goes out. Every connection showed a token, and the hub looks it up
//!   for each question.
//! - *PostgreSQL* is Debian's 15 with its defaults and 512 MB of shared buffers, in a cluster made for the run, on the
//!   same disk. `doors/gates.sql` is what an engineer would write: row level security with the caller's division, and
//!   security-barrier views that make birth dates and days of onset coarser and show a person as an HMAC under the
//!   caller's key. It has what a planner could wish for: indexes, statistics, and the newest state of every resident,
//!   case and test in one row, so that nothing is put together when asked. Its callers log in by trust.
//! - Its log comes in two ways. *Committed* is the hub's guarantee, as far as PostgreSQL gives it: a row in a table is
//!   committed, and with `synchronous_commit` on the disk, before the question runs; it is sent in the same message,
//!   or right behind, so that it costs no trip. *Statements* is `log_statement = all`, which the server writes and
//!   nobody flushes; that is less than what the hub does, and cheaper. Neither is a log that outsiders can check.
//! - Its tokens come in two ways. *Computed* as they are read, so that only the caller's key is kept, as in the hub:
//!   to look a person up, every row is hashed. *Stored* beforehand for every caller and person, with indexes: as fast
//!   as can be, and a table that turns every token back into a person.
//! - Protected counts have no counterpart: they are held against `count(DISTINCT …)` with `HAVING … >= 14`, without
//!   noise, without a ledger and without any guarantee, of a view that does not even hide whom it counts.
//!
//! The ratio is that of answers a second to PostgreSQL with computed tokens and the committed log, in the faster of
//! both protocols. 1, 16 and 200 connections ask as fast as they are answered, each after one question to warm up;
//! asking and answering share the machine's cores on either side. Before anything is timed, every answer of every side
//! is compared with what the city's files say, tokens and noise apart.
//!
//! PostgreSQL is skipped, and it is said so, where its programs are not in `/usr/lib/postgresql/15/bin`.

#[allow(dead_code, reason = "the load test uses more of it")]
#[path = "../../tests/load/clients.rs"]
mod clients;
#[path = "doors/postgres.rs"]
mod postgres;
#[allow(dead_code, reason = "the load test uses more of it")]
#[path = "../../tests/load/questions.rs"]
mod questions;
#[allow(dead_code, reason = "the load test uses more of it")]
#[path = "../../tests/load/served.rs"]
mod served;
#[path = "../../tests/load/truth.rs"]
mod truth;

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use serde::Serialize;
use tokio::sync::Barrier;

use crate::setting;
use clients::{Connection, Door, Visitor};
use postgres::{Log, Postgres, Protocol, Tokens};
use questions::{Question, Right, Rows};
use served::Served;

/// What a side did with a question.
#[derive(Debug, Clone, Serialize)]
pub struct Line {
    /// The question.
    pub question: &'static str,
    /// Connections that asked at once.
    pub connections: usize,
    /// Who answered, and how it was asked.
    pub side: String,
    /// Answers of all connections.
    pub answers_a_second: f64,
    /// Half of the answers took at most this long.
    pub p50_ms: f64,
    /// All but one of a hundred took at most this long.
    pub p99_ms: f64,
    /// Answers a second as a part of those of PostgreSQL with computed tokens and a committed log.
    pub ratio: Option<f64>,
}

/// Who is asked, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Hub(Door),
    Postgres(Protocol, Tokens, Log),
}

impl Side {
    /// All of them: those that PostgreSQL has only where it runs.
    fn all(with_postgres: Option<&Postgres>) -> Vec<Self> {
        let mut sides: Vec<Self> = Door::ALL.into_iter().map(Self::Hub).collect();
        if with_postgres.is_some() {
            for (tokens, log) in [
                (Tokens::Computed, Log::Committed),
                (Tokens::Computed, Log::Statements),
                (Tokens::Stored, Log::Committed),
            ] {
                sides.extend([Protocol::Simple, Protocol::Prepared].map(|it| Self::Postgres(it, tokens, log)));
            }
        }
        sides
    }

    fn name(self) -> String {
        match self {
            Self::Hub(door) => format!("hub, {}", door.name()),
            Self::Postgres(protocol, tokens, log) => {
                let protocol = match protocol {
                    Protocol::Simple => "simple",
                    Protocol::Prepared => "prepared",
                };
                let tokens = match tokens {
                    Tokens::Computed => "computed",
                    Tokens::Stored => "stored",
                };
                let log = match log {
                    Log::Committed => "committed",
                    Log::Statements => "statements",
                };
                format!("PostgreSQL, {protocol}, {tokens}, {log}")
            }
        }
    }

    /// Whether it is what ratios are taken against.
    fn is_yardstick(self) -> bool {
        matches!(self, Self::Postgres(_, Tokens::Computed, Log::Committed))
    }
}

/// A connection to either.
enum Session {
    Hub(Connection),
    Postgres(postgres::Session),
}

impl Session {
    async fn ask(&mut self, question: &Question, literal: &str) -> Result<Rows, String> {
        match self {
            Self::Hub(connection) => connection.ask(question, literal).await,
            Self::Postgres(session) => session.ask(question, literal).await,
        }
    }
}

/// A question, who asks it, and the literals for either side: tokens differ.
struct Asked {
    question: Question,
    visitor: Visitor,
    of_hub: Vec<String>,
    of_postgres: Vec<String>,
}

impl Asked {
    fn literals(&self, side: Side) -> &[String] {
        match side {
            Side::Hub(_) => &self.of_hub,
            Side::Postgres(..) => &self.of_postgres,
        }
    }
}

/// Both sides, full of the same city.
struct Sides {
    hub: Served,
    postgres: Option<Postgres>,
    asked: Vec<Asked>,
}

/// Measures every question on every side.
pub async fn measure() -> Vec<Line> {
    let people = setting("GRIDHUB_BENCH_PEOPLE", 20_000);
    let during = Duration::from_secs_f64(setting("GRIDHUB_BENCH_DOORS_SECONDS", 2.0));
    let connections = setting("GRIDHUB_BENCH_CONNECTIONS", "1,16,200".to_owned());
    let connections: Vec<usize> = connections.split(',').map(|number| number.trim().parse().unwrap()).collect();
    let folder = tempfile::tempdir().unwrap();
    let truth = served::fill(folder.path(), people, 7).await;
    let hub = Served::start(folder.path()).await;
    let postgres = match Postgres::start(&truth).await {
        Ok(postgres) => Some(postgres),
        Err(why) => {
            println!("\nSKIPPED PostgreSQL 15, and with it every ratio: {why}");
            None
        }
    };
    println!(
        "\nDoors: {people} people, {} residents, {} cases and {} tests",
        truth.residents.len(),
        truth.cases.len(),
        truth.tests.len()
    );
    let mut asked = Vec::new();
    for question in questions::questions(&truth) {
        asked.push(prepare(question, &hub, postgres.as_ref()).await);
    }
    let sides = Arc::new(Sides { hub, postgres, asked });
    let all = Side::all(sides.postgres.as_ref());
    for at in 0..sides.asked.len() {
        for side in &all {
            sides.compare(at, *side).await;
        }
    }
    let mut lines = Vec::new();
    for at in 0..sides.asked.len() {
        for connections in &connections {
            let mut measured = Vec::new();
            for side in &all {
                measured.push((*side, Arc::clone(&sides).time(at, *side, *connections, during).await));
            }
            let yardstick = measured.iter().filter(|(side, _)| side.is_yardstick());
            let yardstick = yardstick.map(|(_, line)| line.answers_a_second).reduce(f64::max);
            lines.extend(
                measured.into_iter().map(|(_, line)| Line {
                    ratio: yardstick.map(|yardstick| line.answers_a_second / yardstick),
                    ..line
                }),
            );
        }
    }
    lines
}

/// Finds the literals of a question.
async fn prepare(question: Question, hub: &Served, postgres: Option<&Postgres>) -> Asked {
    let visitor = hub.visitor(question.caller, question.purpose);
    let (of_hub, of_postgres) = match &question.right {
        Right::Tokens => {
            let mut connection = Connection::open(Door::Http, hub.ports, &visitor).await.unwrap();
            let rows = connection.ask_in_sql("SELECT id_no FROM tests WHERE id_no IS NOT NULL").await.unwrap();
            let tokens: BTreeSet<String> = rows.into_iter().flatten().collect();
            let of_postgres = match postgres {
                Some(postgres) => {
                    let opened = postgres.open(&question, Protocol::Simple, Tokens::Computed, Log::Statements).await;
                    opened.unwrap().tokens().await.unwrap()
                }
                None => Vec::new(),
            };
            (tokens.into_iter().take(40).collect(), of_postgres)
        }
        right => (right.literals(), right.literals()),
    };
    Asked { question, visitor, of_hub, of_postgres }
}

impl Sides {
    async fn open(&self, asked: &Asked, side: Side) -> Result<Session, String> {
        match (side, &self.postgres) {
            (Side::Hub(door), _) => Ok(Session::Hub(Connection::open(door, self.hub.ports, &asked.visitor).await?)),
            (Side::Postgres(protocol, tokens, log), Some(postgres)) => {
                Ok(Session::Postgres(postgres.open(&asked.question, protocol, tokens, log).await?))
            }
            (Side::Postgres(..), None) => Err("PostgreSQL does not run".to_owned()),
        }
    }

    /// Asks a side with every literal, and compares as far as the city tells what is right.
    async fn compare(&self, at: usize, side: Side) {
        let asked = &self.asked[at];
        let Asked { question, .. } = asked;
        let opened = self.open(asked, side).await;
        let mut session = opened.unwrap_or_else(|why| panic!("{}, {}: {why}", question.name, side.name()));
        let mut found = 0;
        for literal in asked.literals(side) {
            let rows = session.ask(question, literal).await;
            let rows = rows.unwrap_or_else(|why| panic!("{}, {}: {why}", question.name, side.name()));
            let rows = question.comparable(rows);
            found += rows.len();
            if let Right::Known(right) = &question.right {
                assert_eq!(rows, right[literal], "{}, {}: {literal}", question.name, side.name());
            }
        }
        assert!(found > 0, "{}, {}: never a row", question.name, side.name());
    }

    /// Lets so many connections ask for a while, each as soon as it is answered.
    async fn time(self: Arc<Self>, at: usize, side: Side, connections: usize, during: Duration) -> Line {
        let barrier = Arc::new(Barrier::new(connections));
        let tasks = (0..connections).map(|number| {
            let (sides, barrier) = (Arc::clone(&self), Arc::clone(&barrier));
            tokio::spawn(async move {
                let asked = &sides.asked[at];
                let literals = asked.literals(side);
                let opened = async {
                    let mut session = sides.open(asked, side).await?;
                    session.ask(&asked.question, &literals[number % literals.len()]).await?;
                    Ok::<_, String>(session)
                };
                let opened = opened.await;
                // Also where it failed: the others wait for it.
                barrier.wait().await;
                let mut session = opened?;
                let started = Instant::now();
                let mut times = Vec::new();
                // Every connection takes the literals in turn, none the same at the same time as the next.
                let mut next = number;
                while started.elapsed() < during {
                    next += 1;
                    let asking = Instant::now();
                    session.ask(&asked.question, &literals[next % literals.len()]).await?;
                    times.push(asking.elapsed().as_secs_f64() * 1e3);
                }
                Ok::<_, String>((times, started.elapsed()))
            })
        });
        let name = self.asked[at].question.name;
        let (mut times, mut longest) = (Vec::new(), Duration::ZERO);
        for task in tasks.collect::<Vec<_>>() {
            let done = task.await.unwrap();
            let (taken, took) = done.unwrap_or_else(|why| panic!("{name}, {}: {why}", side.name()));
            times.extend(taken);
            longest = longest.max(took);
        }
        let answers_a_second = times.len() as f64 / longest.as_secs_f64();
        times.sort_unstable_by(f64::total_cmp);
        let at = |share: f64| times[((times.len() - 1) as f64 * share).round() as usize];
        let (p50_ms, p99_ms) = (at(0.5), at(0.99));
        Line { question: name, connections, side: side.name(), answers_a_second, p50_ms, p99_ms, ratio: None }
    }
}

/// Prints a line a side, and what all questions come to.
pub fn tell(lines: &[Line]) {
    let mut shown = None;
    for line in lines {
        if shown != Some((line.question, line.connections)) {
            shown = Some((line.question, line.connections));
            println!("\n{}, {} at once", line.question, line.connections);
            println!("{:46} {:>10} {:>9} {:>9} {:>6}", "", "answers/s", "p50 ms", "p99 ms", "ratio");
        }
        let ratio = line.ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"));
        let Line { side, answers_a_second, p50_ms, p99_ms, .. } = line;
        println!("{side:46} {answers_a_second:>10.1} {p50_ms:>9.2} {p99_ms:>9.2} {ratio:>6}");
    }
    let ratios = ratios(lines);
    if ratios.is_empty() {
        return;
    }
    println!("\nAll questions, geometric means of the ratios");
    for Ratio { side, connections, ratio } in ratios {
        println!("{side:46} {connections:>4} at once {ratio:>6.2}");
    }
}

/// What the questions come to for a side.
#[derive(Debug, Serialize)]
pub struct Ratio {
    side: String,
    connections: usize,
    ratio: f64,
}

/// The geometric mean of the ratios of all questions, for every side and number of connections.
pub fn ratios(lines: &[Line]) -> Vec<Ratio> {
    let kinds: BTreeSet<(usize, &str)> = lines.iter().map(|line| (line.connections, line.side.as_str())).collect();
    let of_kind = |(connections, side): (usize, &str)| {
        let same = lines.iter().filter(|line| (line.connections, line.side.as_str()) == (connections, side));
        let logarithms: Vec<f64> = same.filter_map(|line| line.ratio).map(f64::ln).collect();
        let mean = logarithms.iter().sum::<f64>() / logarithms.len() as f64;
        (!logarithms.is_empty()).then(|| Ratio { side: side.to_owned(), connections, ratio: mean.exp() })
    };
    kinds.into_iter().filter_map(of_kind).collect()
}

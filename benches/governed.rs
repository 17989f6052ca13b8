//! What governance costs: questions asked through both gates, and the same questions asked of the engine alone over
//! the same Delta tables, in one run and in turn. `cargo bench --bench governed`.
//!
//! What is compared:
//! - *governed* is the part of [`Hub::query`] that answers: bind to the caller's view, guard, run, release, on the
//!   hub's own engine with its own limits. It is put together here from the same public stages in the same order, over
//!   the hub's data folder, so that nothing is measured that a hub does not run.
//! - *ungoverned* is DataFusion over the same tables as deltalake-core sets it up (`governed/plain.rs`), with a session
//!   that lives on, in as many partitions as there are cores. That is what an engineer without the hub would have, and
//!   what the ratio is taken against.
//! - *1 partition* is the same in one, as the hub runs queries that pick rows by their order. It tells the cost of the
//!   gates from the cost of the hub's choice to let no partitions race there.
//! - *end to end* is [`Hub::query`]: in addition policy decisions, the text of the question sealed, and two log entries
//!   flushed to the disk. It is no part of the ratio, since the engineer's setup keeps no log; its share is the same
//!   for every question and measured by `SELECT 1`. HTTP and the encoding of answers are in none of these.
//!
//! After one round to warm up, in which the answers of both sides are compared, the sides take turns; medians are
//! compared, not best times. Both sides run in this process, from the same page cache, one question at a time: the hub
//! lets many callers share the cores, and how it fares then is not measured here. What a small question costs beyond
//! its rows is told under *planning*; its physical plan cannot be timed apart from outside, so whole questions over
//! tables of a few rows are compared.
//!
//! Ends with an error only where something fails or answers differ, never over time. Settings, all from the
//! environment: `GRIDHUB_TPCH_SCALE` (0.1), `GRIDHUB_BENCH_PEOPLE` (100000), `GRIDHUB_BENCH_DAYS` (14),
//! `GRIDHUB_BENCH_REPEAT` (11), `GRIDHUB_BENCH_JSON` (target/governed.json).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a measurement that fails should say so")]

#[path = "governed/city.rs"]
mod city;
#[path = "../tests/tpch/data.rs"]
mod data;
#[path = "governed/plain.rs"]
mod plain;
#[path = "governed/report.rs"]
mod report;

use std::{
    collections::BTreeMap,
    fmt::Debug,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
    time::Instant,
};

use arrow::{
    array::{Array, ArrayRef, AsArray, StringArray},
    compute::cast,
    datatypes::{DataType, Field, Float64Type, Schema},
    record_batch::RecordBatch,
};
use chrono::Utc;
use gridhub::{
    dataset::{Datasets, contract},
    disclose::{self, Released},
    error::Result,
    hub::{self, Hub, Opening},
    identity::Credential,
    keys::Keys,
    policy::{Policy, View},
    pseudonym::{Pseudonyms, TokenKey},
    query::{self, Engine, defences::Defences},
    store::{Snapshot, Store},
};
use serde_json::json;

use plain::Plain;
use report::{Log, Measured, Planning};

fn main() {
    // `cargo test --all-targets` starts benchmarks too, without this word.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().thread_stack_size(64 << 20).enable_all().build().unwrap();
    runtime.block_on(run());
}

async fn run() {
    let scale = data::scale(0.1);
    let (people, days) = (setting("GRIDHUB_BENCH_PEOPLE", 100_000), setting("GRIDHUB_BENCH_DAYS", 14));
    let repeat = setting::<usize>("GRIDHUB_BENCH_REPEAT", 11).max(1);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    println!("{cores} cores, {repeat} rounds, medians in milliseconds");

    let tpch = World::with_tpch(scale, cores).await;
    let questions = data::queries(scale).into_iter().map(Question::from).collect::<Vec<_>>();
    let tpch_measured = tpch.measure_all(&questions, repeat).await;
    report::questions(&format!("TPC-H at scale {scale}"), &tpch_measured);
    let mut planning = vec![tpch.measure_planning("SELECT r_name FROM region WHERE r_regionkey = 1", repeat).await];

    let city = World::with_city(people, days, cores).await;
    let questions = city::questions(&city.index_case().await);
    let city_measured = city.measure_all(&questions, repeat).await;
    report::questions(&format!("An analyst's questions, {people} people, {days} days"), &city_measured);
    planning.push(city.measure_planning("SELECT name FROM divisions WHERE level = 2", repeat).await);

    report::planning(&planning);
    let log = city.measure_log(repeat).await;
    report::log(&log);
    report::write(&json!({
        "machine": report::machine(cores),
        "repeat": repeat,
        "tpch": {
            "scale": scale, "rows": tpch.rows,
            "questions": tpch_measured, "summary": report::summary(&tpch_measured),
        },
        "city": {
            "people": people, "days": days, "rows": city.rows,
            "questions": city_measured, "summary": report::summary(&city_measured),
        },
        "planning": planning,
        "log": log,
    }));
}

fn setting<T: FromStr<Err: Debug>>(name: &str, usual: T) -> T {
    std::env::var(name).map_or(usual, |text| text.parse().unwrap_or_else(|error| panic!("{name}: {error:?}")))
}

/// A question as it is put to either side.
pub struct Question {
    /// What it is called in reports.
    pub name: String,
    /// As the hub is asked.
    pub governed: String,
    /// As the engine alone is asked.
    pub plain: String,
    /// What the ungoverned side adds for the comparison, and not for the time, to answer what a protected one does.
    pub only: Option<&'static str>,
    /// Whether the rows come in an order that leaves nothing to chance.
    pub ordered: bool,
}

impl From<data::Query> for Question {
    fn from(query: data::Query) -> Self {
        let data::Query { name, sql, ordered } = query;
        Self { name: name.to_owned(), governed: sql.clone(), plain: sql, only: None, ordered }
    }
}

/// A hub full of rows, the stages of its queries, and the engine alone over its tables.
struct World {
    hub: Hub,
    credential: Credential,
    engine: Arc<Engine>,
    view: Arc<View>,
    snapshot: Snapshot,
    tokens: TokenKey,
    plain: Plain,
    plain_in_one: Plain,
    rows: BTreeMap<String, u64>,
    _folder: tempfile::TempDir,
}

/// What a hub was opened with, for the stages to be put together beside it.
struct Places {
    data: PathBuf,
    schemas: PathBuf,
    policies: PathBuf,
    keys: PathBuf,
    limits: query::Limits,
}

impl Places {
    fn of(opening: &Opening) -> Self {
        Self {
            data: opening.data.clone(),
            schemas: opening.schemas.clone(),
            policies: opening.policies.clone(),
            keys: opening.keys.clone(),
            limits: opening.query_limits,
        }
    }
}

impl World {
    async fn with_tpch(scale: f64, cores: usize) -> Self {
        let tables = data::tables(scale);
        let folder = tempfile::tempdir().unwrap();
        let opening = data::opening(folder.path(), &tables);
        let places = Places::of(&opening);
        let hub = Hub::open(opening).await.unwrap();
        let analyst = data::credential(&hub, &places.data, data::CALLER).await;
        let mut rows: BTreeMap<String, u64> = BTreeMap::new();
        for table in tables {
            let name = format!("tpch.{}", table.name);
            for batch in &table.batches {
                let receipt = data::push(&hub, &analyst, &name, batch).await;
                *rows.entry(name.clone()).or_default() += receipt.rows_accepted;
            }
        }
        Self::over(folder, &places, hub, analyst, rows, cores).await
    }

    async fn with_city(people: usize, days: usize, cores: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let opening = city::opening(folder.path());
        let places = Places::of(&opening);
        let hub = Hub::open(opening).await.unwrap();
        let rows = city::push(&hub, &places.data, people, days).await;
        let analyst = data::credential(&hub, &places.data, city::CALLER).await;
        Self::over(folder, &places, hub, analyst, rows, cores).await
    }

    async fn over(
        folder: tempfile::TempDir,
        places: &Places,
        hub: Hub,
        credential: Credential,
        rows: BTreeMap<String, u64>,
        cores: usize,
    ) -> Self {
        let datasets = contract::load_folder(&places.schemas).unwrap();
        let policy = Policy::load(&places.policies, &datasets, Arc::new(Utc::now)).unwrap();
        let purpose = purpose(&credential);
        let view = policy.view(&credential.caller, &purpose).unwrap();
        let pseudonyms = Arc::new(Pseudonyms::new(Arc::new(Keys::open(&places.keys, &places.data, true).unwrap())));
        let tokens = pseudonyms.tokens(&credential.caller.agency, &purpose);
        let runtime = query::runtime(&folder.path().join("spill"), &places.limits).unwrap();
        let tables = places.data.join("tables");
        let store = Store::open(&tables, &datasets, Arc::clone(&runtime)).await.unwrap();
        Self {
            hub,
            credential,
            engine: Arc::new(
                Engine::new(runtime, pseudonyms, places.limits, Arc::new(Utc::now), Defences::default()).unwrap(),
            ),
            view,
            snapshot: store.snapshot(),
            tokens,
            plain: open_plain(&tables, &datasets, cores).await,
            plain_in_one: open_plain(&tables, &datasets, 1).await,
            rows,
            _folder: folder,
        }
    }

    /// Answers as the middle of [`Hub::query`] does.
    async fn governed(&self, sql: &str) -> Result<Released> {
        let (engine, view, snapshot) = (Arc::clone(&self.engine), Arc::clone(&self.view), self.snapshot.clone());
        let sql = sql.to_owned();
        let answering = async move {
            let planned = engine.plan(&view, &snapshot, &sql, &[]).await?;
            let guarded = disclose::guard(planned)?;
            let answer = engine.run(guarded).await?;
            disclose::release(answer)
        };
        self.engine.work(answering).await
    }

    /// How long it takes to bind a question to the view, to guard it and to optimise it, in milliseconds.
    async fn plan(&self, sql: &str) -> Result<[f64; 3]> {
        let (engine, view, snapshot) = (Arc::clone(&self.engine), Arc::clone(&self.view), self.snapshot.clone());
        let sql = sql.to_owned();
        let planning = async move {
            let started = Instant::now();
            let planned = engine.plan(&view, &snapshot, &sql, &[]).await?;
            let bound = milliseconds(started);
            let guarded = disclose::guard(planned)?;
            let checked = milliseconds(started);
            engine.prepare(&guarded)?;
            Ok([bound, checked - bound, milliseconds(started) - checked])
        };
        self.engine.work(planning).await
    }

    async fn end_to_end(&self, sql: &str) -> Result<hub::Answered> {
        let purpose = Some(purpose(&self.credential));
        let question = hub::Question { sql: sql.to_owned(), purpose, params: Vec::new(), channel: "bench" };
        self.hub.query(&self.credential, question).await
    }

    async fn measure_all(&self, questions: &[Question], repeat: usize) -> Vec<Measured> {
        let mut measured = Vec::new();
        for question in questions {
            let rows = self.compare(question).await;
            let (mut governed, mut plain, mut in_one, mut whole) = (vec![], vec![], vec![], vec![]);
            for _ in 0..repeat {
                governed.push(timed(&question.name, self.governed(&question.governed)).await);
                plain.push(timed(&question.name, self.plain.ask(&question.plain)).await);
                in_one.push(timed(&question.name, self.plain_in_one.ask(&question.plain)).await);
                whole.push(timed(&question.name, self.end_to_end(&question.governed)).await);
            }
            measured.push(Measured {
                name: question.name.clone(),
                rows,
                governed: median(governed),
                ungoverned: median(plain),
                in_one_partition: median(in_one),
                end_to_end: median(whole),
            });
        }
        measured
    }

    /// Asks every side once, and compares what they answer. Returns the number of rows.
    async fn compare(&self, question: &Question) -> usize {
        let name = &question.name;
        let governed = self.governed(&question.governed).await.unwrap_or_else(|error| panic!("{name}: {error:?}"));
        self.end_to_end(&question.governed).await.unwrap_or_else(|error| panic!("{name}: {error:?}"));
        let rows = governed.rows();
        for side in [&self.plain, &self.plain_in_one] {
            side.ask(&question.plain).await.unwrap_or_else(|error| panic!("{name}: {error}"));
            let comparable = format!("{}{}", question.plain, question.only.unwrap_or_default());
            let plain = side.ask(&comparable).await.unwrap_or_else(|error| panic!("{name}: {error}"));
            let (mut governed, opaque) = self.with_pseudonyms(&governed);
            let mut plain = data::cells(&rounded(&plain));
            for row in &mut plain {
                opaque.iter().for_each(|column| row[*column] = OPAQUE.to_owned());
            }
            if !question.ordered {
                governed.sort();
                plain.sort();
            }
            assert!(
                governed == plain,
                "{name} is answered with\n{governed:?}\nand by the engine alone with\n{plain:?}"
            );
        }
        rows
    }

    /// Rows as text, tokens as the pseudonyms behind them; and the columns in which there are other things than whole
    /// tokens, of which nothing can be compared but that they are there.
    fn with_pseudonyms(&self, released: &Released) -> (Vec<Vec<String>>, Vec<usize>) {
        let mut rows = data::cells(&rounded(&released.batches));
        let mut opaque = Vec::new();
        for (at, column) in released.columns.iter().enumerate() {
            if column.exposure != "token" {
                continue;
            }
            let behind: Option<Vec<String>> = rows.iter().map(|row| self.pseudonym(&row[at])).collect();
            match behind {
                Some(pseudonyms) => rows.iter_mut().zip(pseudonyms).for_each(|(row, text)| row[at] = text),
                None => {
                    rows.iter_mut().for_each(|row| row[at] = OPAQUE.to_owned());
                    opaque.push(at);
                }
            }
        }
        (rows, opaque)
    }

    /// A cell's pseudonym in hexadecimal; NULL stays NULL.
    fn pseudonym(&self, cell: &str) -> Option<String> {
        match cell {
            "NULL" => Some(cell.to_owned()),
            token => Some(self.tokens.invert(token)?.iter().map(|byte| format!("{byte:02x}")).collect()),
        }
    }

    /// The case whose chain of infection the hub follows: that with the least token.
    async fn index_case(&self) -> String {
        let released = self.governed("SELECT min(source_case_id) AS case_id FROM cases").await.unwrap();
        let cell = data::cells(&released.batches).swap_remove(0).swap_remove(0);
        self.pseudonym(&cell).filter(|pseudonym| pseudonym != "NULL").unwrap_or_default()
    }

    async fn measure_planning(&self, sql: &str, repeat: usize) -> Planning {
        let small = Question {
            name: sql.to_owned(),
            governed: sql.to_owned(),
            plain: sql.to_owned(),
            only: None,
            ordered: false,
        };
        self.compare(&small).await;
        let (mut governed, mut plain, mut governed_steps, mut plain_steps) = (vec![], vec![], vec![], vec![]);
        // Small questions take little time, and their medians more rounds.
        for _ in 0..5 * repeat {
            governed.push(timed(sql, self.governed(sql)).await);
            plain.push(timed(sql, self.plain_in_one.ask(sql)).await);
            governed_steps.push(self.plan(sql).await.unwrap());
            plain_steps.push(self.plain_in_one.plan(sql).await.unwrap());
        }
        Planning {
            name: sql.to_owned(),
            governed: median(governed),
            ungoverned: median(plain),
            bind_guard_optimise: medians(&governed_steps),
            bind_optimise_plan: medians(&plain_steps),
        }
    }

    async fn measure_log(&self, repeat: usize) -> Log {
        const NOTHING: &str = "SELECT 1";
        self.end_to_end(NOTHING).await.unwrap();
        let (mut governed, mut whole) = (vec![], vec![]);
        for _ in 0..5 * repeat {
            governed.push(timed(NOTHING, self.governed(NOTHING)).await);
            whole.push(timed(NOTHING, self.end_to_end(NOTHING)).await);
        }
        Log { governed: median(governed), end_to_end: median(whole) }
    }
}

async fn open_plain(tables: &Path, datasets: &Datasets, partitions: usize) -> Plain {
    Plain::open(tables, datasets, partitions).await.unwrap_or_else(|error| panic!("the engine alone: {error}"))
}

/// What a caller asks for: its one purpose, or that of the questions.
fn purpose(credential: &Credential) -> String {
    match credential.caller.purposes.as_slice() {
        [only] => only.clone(),
        _ => city::PURPOSE.to_owned(),
    }
}

/// What stands for a value that only its own side can read.
const OPAQUE: &str = "(token)";

/// Sums of floating-point numbers differ in their last digits with the order of rows, so six digits are compared;
/// all other types are exact.
fn rounded(batches: &[RecordBatch]) -> Vec<RecordBatch> {
    let round = |column: &ArrayRef| -> ArrayRef {
        if !column.data_type().is_floating() {
            return Arc::clone(column);
        }
        let numbers = cast(column, &DataType::Float64).unwrap();
        let texts = numbers.as_primitive::<Float64Type>().iter().map(|number| Some(format!("{:.5e}", number?)));
        Arc::new(texts.collect::<StringArray>())
    };
    let batch = |batch: &RecordBatch| {
        let columns: Vec<ArrayRef> = batch.columns().iter().map(round).collect();
        let schema = batch.schema();
        let fields = schema.fields().iter().zip(&columns);
        let fields = fields.map(|(field, column)| Field::new(field.name(), column.data_type().clone(), true));
        RecordBatch::try_new(Arc::new(Schema::new(fields.collect::<Vec<_>>())), columns).unwrap()
    };
    batches.iter().map(batch).collect()
}

// ---- Time

/// Milliseconds since then.
fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

async fn timed<T, E: Debug>(name: &str, work: impl Future<Output = Result<T, E>>) -> f64 {
    let started = Instant::now();
    let done = work.await;
    let took = milliseconds(started);
    if let Err(error) = done {
        panic!("{name}: {error:?}");
    }
    took
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    let half = times.len() / 2;
    match times.len() % 2 {
        1 => times[half],
        _ => f64::midpoint(times[half - 1], times[half]),
    }
}

fn medians(times: &[[f64; 3]]) -> [f64; 3] {
    [0, 1, 2].map(|step| median(times.iter().map(|steps| steps[step]).collect()))
}

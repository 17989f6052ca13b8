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
//! compared, not best times. What protected questions release is in the ledger from then on, and found there. Both
//! sides run in this process, from the same page cache, one question at a time: the hub lets many callers share the
//! cores, and how it fares then is not measured here. What a small question costs beyond its rows is told under
//! *planning*; its physical plan cannot be timed apart from outside, so whole questions over tables of a few rows are
//! compared.
//!
//! Beside these, what protection costs: protected statistics against the same counted by the engine alone
//! (`governed/protected.rs`), and the sketches that they are compared by (`governed/sketches.rs`); and what the way in
//! costs (`governed/uploads.rs`). And what small questions cost many callers at every door, beside PostgreSQL 15 with
//! row level security, masking views and a log (`governed/doors.rs`).
//!
//! Ends with an error only where something fails or answers differ, never over time. Settings, all from the
//! environment:
//! - `GRIDHUB_BENCH`: which of `tpch`, `questions`, `protected`, `sketches`, `uploads` and `doors` are run, with commas
//!   between; all.
//! - `GRIDHUB_BENCH_REPEAT` (11), `GRIDHUB_BENCH_JSON` (target/governed.json).
//! - `GRIDHUB_TPCH_SCALE` (0.1).
//! - `GRIDHUB_BENCH_PEOPLE` (100000) and `GRIDHUB_BENCH_DAYS` (14): the city of `questions`, and of those of them that
//!   are `protected`.
//! - `GRIDHUB_BENCH_ROWS` (1000000), `GRIDHUB_BENCH_SUBJECTS` (100000) and `GRIDHUB_BENCH_GROUPS` (2000): the measures
//!   of `protected`. A large city's are `GRIDHUB_BENCH_ROWS=10000000 GRIDHUB_BENCH_SUBJECTS=1000000`, which take long
//!   to load. Of groups of fewer than 18 people, some are not shown.
//! - `GRIDHUB_BENCH_UPLOAD_ROWS` (1000000) and `GRIDHUB_BENCH_UPLOAD_PEOPLE` (a tenth of them): the large file of
//!   `uploads`. `GRIDHUB_BENCH_PUSHES` (40): small pushes of each uploader.
//! - `GRIDHUB_BENCH_CONNECTIONS` (1,16,200) and `GRIDHUB_BENCH_DOORS_SECONDS` (2): how many ask at every door of
//!   `doors`, and for how long; its city has 20000 people where `GRIDHUB_BENCH_PEOPLE` says nothing else.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a measurement that fails should say so")]

#[path = "governed/city.rs"]
mod city;
#[path = "../tests/tpch/data.rs"]
mod data;
#[path = "governed/doors.rs"]
mod doors;
#[path = "governed/lab.rs"]
mod lab;
#[path = "governed/pinsketch.rs"]
mod pinsketch;
#[path = "governed/plain.rs"]
mod plain;
#[path = "governed/protected.rs"]
mod protected;
#[path = "governed/report.rs"]
mod report;
#[path = "governed/sketches.rs"]
mod sketches;
#[path = "governed/uploads.rs"]
mod uploads;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    fs,
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
    disclose::{self, Gate, Released, Wishes},
    error::Result,
    hub::{self, Hub, Opening},
    identity::Credential,
    keys::Keys,
    policy::{Policy, View},
    pseudonym::{Pseudonyms, TokenKey},
    query::{self, Bounds, Engine, defences::Defences},
    store::{Snapshot, Store, metadata::Metadata, publication::Publisher},
};
use serde_json::json;

use lab::Size;
use plain::Plain;
use protected::Exact;
use report::{Log, Measured, Planning};

fn main() {
    // `cargo test --all-targets` starts benchmarks too, without this word.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().thread_stack_size(64 << 20).enable_all().build().unwrap();
    runtime.block_on(run());
}

/// What can be measured, in the order in which it is.
const BENCHES: [&str; 6] = ["tpch", "questions", "protected", "sketches", "uploads", "doors"];

async fn run() {
    let wanted = wanted();
    let wants = |bench: &str| wanted.contains(bench);
    let repeat = setting::<usize>("GRIDHUB_BENCH_REPEAT", 11).max(1);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    println!("{cores} cores, {repeat} rounds, medians in milliseconds");
    let mut report = json!({"machine": report::machine(cores), "repeat": repeat});
    let mut planning = Vec::new();

    if wants("tpch") {
        let scale = data::scale(0.1);
        let tpch = World::with_tpch(scale, cores).await;
        let questions = data::queries(scale).into_iter().map(Question::from).collect::<Vec<_>>();
        let measured = tpch.measure_all(&questions, repeat).await;
        report::questions(&format!("TPC-H at scale {scale}"), &measured);
        planning.push(tpch.measure_planning("SELECT r_name FROM region WHERE r_regionkey = 1", repeat).await);
        report["tpch"] = json!({
            "scale": scale, "rows": tpch.rows,
            "questions": measured, "summary": report::summary(&measured),
        });
    }

    let mut log = None;
    let mut protected = Vec::new();
    if wants("questions") || wants("protected") {
        let (people, days) = (setting("GRIDHUB_BENCH_PEOPLE", 100_000), setting("GRIDHUB_BENCH_DAYS", 14));
        let city = World::with_city(people, days, cores).await;
        let questions = city::questions(&city.index_case().await);
        if wants("questions") {
            let measured = city.measure_all(&questions, repeat).await;
            report::questions(&format!("An analyst's questions, {people} people, {days} days"), &measured);
            planning.push(city.measure_planning("SELECT name FROM divisions WHERE level = 2", repeat).await);
            log = Some(city.measure_log(repeat).await);
            report["city"] = json!({
                "people": people, "days": days, "rows": city.rows,
                "questions": measured, "summary": report::summary(&measured),
            });
        }
        if wants("protected") {
            protected = city.measure_protected(&questions, repeat).await;
        }
    }

    if !planning.is_empty() {
        report::planning(&planning);
        report["planning"] = json!(planning);
    }
    if let Some(log) = log {
        report::log(&log);
        report["log"] = json!(log);
    }

    if wants("protected") {
        let size = Size::from_environment();
        let lab = World::with_lab(&size, cores).await;
        let measured = lab.measure_protected(&lab::questions(&size), repeat).await;
        let counting = lab.measure_counting("lab.measures", repeat).await;
        let Size { rows, subjects, groups } = size;
        report::protected(&format!("Protected: {rows} rows, {subjects} people, {groups} areas"), &measured);
        report::counting(counting);
        report::protected("Protected: those of the analyst's questions", &protected);
        report["protected"] = json!({
            "subjects": subjects, "groups": groups, "rows": lab.rows,
            "questions": measured, "summary": report::summary_of_protected(&measured),
            "count_subjects_ms": counting,
            "city": {"questions": protected, "summary": report::summary_of_protected(&protected)},
        });
    }

    if wants("sketches") {
        let measured = sketches::measure(repeat);
        report::sketches(&measured);
        report["sketches"] = json!(measured);
    }
    if wants("uploads") {
        let hashing = uploads::hashing();
        report::hashing(&hashing);
        let bulk = uploads::bulk(repeat.min(3)).await;
        report::bulk(&bulk);
        let mut small = Vec::new();
        for uploaders in [1, 16, 64] {
            uploads::rest().await;
            small.push(uploads::small(uploaders).await);
        }
        report::small(&small);
        report["uploads"] = json!({"hashing": hashing, "bulk": bulk, "small": small});
    }
    if wants("doors") {
        let lines = doors::measure().await;
        doors::tell(&lines);
        report["doors"] = json!({"each": lines, "geometric_means": doors::ratios(&lines)});
    }
    report::write(&report);
}

/// Which benchmarks are run.
fn wanted() -> BTreeSet<String> {
    let names = setting("GRIDHUB_BENCH", BENCHES.join(","));
    let wanted: BTreeSet<String> = names.split(',').map(|name| name.trim().to_owned()).collect();
    let unknown = wanted.iter().find(|name| !BENCHES.contains(&name.as_str()));
    assert!(unknown.is_none(), "GRIDHUB_BENCH: there are {}, and no {unknown:?}", BENCHES.join(", "));
    wanted
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
    /// Whether the rows come in an order that leaves nothing to chance.
    pub ordered: bool,
    /// For those that the hub protects: what the exact answer is.
    pub protected: Option<Exact>,
}

impl From<data::Query> for Question {
    fn from(query: data::Query) -> Self {
        let data::Query { name, sql, ordered } = query;
        Self { name: name.to_owned(), governed: sql.clone(), plain: sql, ordered, protected: None }
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
    keys: Arc<Keys>,
    /// Beside the hub's own, whose ledger has an end.
    gate: Arc<Gate>,
    plain: Plain,
    plain_in_one: Plain,
    rows: BTreeMap<String, u64>,
    folder: tempfile::TempDir,
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

    async fn with_lab(size: &Size, cores: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let opening = lab::opening(folder.path());
        let places = Places::of(&opening);
        let hub = Hub::open(opening).await.unwrap();
        let rows = lab::push(&hub, &places.data, size).await;
        let analyst = data::credential(&hub, &places.data, lab::CALLER).await;
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
        let keys = Arc::new(Keys::open(&places.keys, &places.data, true).unwrap());
        let metadata = Arc::new(Metadata::open(&places.data).unwrap());
        let publisher = Publisher::new(metadata, &keys, Arc::new(Utc::now));
        let ledger = folder.path().join("ledger");
        fs::create_dir_all(&ledger).unwrap();
        let gate = protected::gate(&keys, &ledger);
        let pseudonyms = Arc::new(Pseudonyms::new(Arc::clone(&keys)));
        let tokens = pseudonyms.tokens(&credential.caller.agency, &purpose).unwrap();
        let runtime = query::runtime(&folder.path().join("spill"), &places.limits).unwrap();
        let tables = places.data.join("tables");
        let store =
            Store::open(&tables, &datasets, Arc::clone(&runtime), publisher, places.limits.tables).await.unwrap();
        Self {
            hub,
            credential,
            engine: Arc::new(
                Engine::new(runtime, pseudonyms, places.limits, Arc::new(Utc::now), Defences::default()).unwrap(),
            ),
            view,
            snapshot: store.snapshot(),
            tokens,
            keys,
            gate,
            plain: open_plain(&tables, &datasets, cores).await,
            plain_in_one: open_plain(&tables, &datasets, 1).await,
            rows,
            folder,
        }
    }

    /// Answers as the middle of [`Hub::query`] does.
    async fn governed(&self, sql: &str) -> Result<Released> {
        self.released(&self.gate, sql).await
    }

    /// Answers through another gate than usual.
    async fn released(&self, gate: &Arc<Gate>, sql: &str) -> Result<Released> {
        let (engine, view, snapshot) = (Arc::clone(&self.engine), Arc::clone(&self.view), self.snapshot.clone());
        let (gate, sql) = (Arc::clone(gate), sql.to_owned());
        let answering = async move {
            let planned = engine.plan(&view, &snapshot, &sql, &[]).await?;
            let guarded = disclose::guard(planned, &gate, Wishes::default())?;
            let answer = engine.run(guarded).await?;
            disclose::release(answer)
        };
        self.engine.work(&Bounds::default(), answering).await
    }

    /// How long it takes to bind a question to the view, to guard it and to optimise it, in milliseconds.
    async fn plan(&self, sql: &str) -> Result<[f64; 3]> {
        let (engine, view, snapshot) = (Arc::clone(&self.engine), Arc::clone(&self.view), self.snapshot.clone());
        let (gate, sql) = (Arc::clone(&self.gate), sql.to_owned());
        let planning = async move {
            let started = Instant::now();
            let planned = engine.plan(&view, &snapshot, &sql, &[]).await?;
            let bound = milliseconds(started);
            let guarded = disclose::guard(planned, &gate, Wishes::default())?;
            let checked = milliseconds(started);
            engine.prepare(&guarded)?;
            Ok([bound, checked - bound, milliseconds(started) - checked])
        };
        self.engine.work(&Bounds::default(), planning).await
    }

    async fn end_to_end(&self, sql: &str) -> Result<hub::Answered> {
        let purpose = Some(purpose(&self.credential));
        let question = hub::Question { purpose, ..hub::Question::new(sql, "bench") };
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
        for side in [&self.plain, &self.plain_in_one] {
            let plain = side.ask(&question.plain).await.unwrap_or_else(|error| panic!("{name}: {error}"));
            match &question.protected {
                None => self.compare_exactly(question, &governed, &plain),
                Some(exact) => {
                    let counted = side.ask(&exact.sql).await.unwrap_or_else(|error| panic!("{name}: {error}"));
                    protected::compare(name, exact, &governed, &counted);
                }
            }
        }
        governed.rows()
    }

    fn compare_exactly(&self, question: &Question, governed: &Released, plain: &[RecordBatch]) {
        let name = &question.name;
        assert_eq!(governed.protection.mode, "exact", "{name}");
        let (mut governed, opaque) = self.with_pseudonyms(governed);
        let mut plain = data::cells(&rounded(plain));
        for row in &mut plain {
            opaque.iter().for_each(|column| row[*column] = OPAQUE.to_owned());
        }
        if !question.ordered {
            governed.sort();
            plain.sort();
        }
        assert!(governed == plain, "{name} is answered with\n{governed:?}\nand by the engine alone with\n{plain:?}");
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
            ordered: false,
            protected: None,
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

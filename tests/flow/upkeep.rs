//! Upkeep: small files become few, old ones go, and no answer changes by it, whoever is asking meanwhile.

use std::{
    fs::{self, File},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use arrow::array::RecordBatch;
use chrono::TimeDelta;
use datafusion::{
    catalog::TableProvider,
    common::ScalarValue,
    execution::SessionStateBuilder,
    physical_plan::{ExecutionPlan, collect, metrics::MetricValue},
    prelude::{Expr, SessionConfig, col, lit},
};
use deltalake_core::{DeltaTable, ensure_table_uri};
use gridhub::{
    dataset::{DatasetName, contract},
    demo::city::with_check_digit,
    identity,
    keys::Keys,
    query::{
        self,
        defences::{Defence, Defences},
    },
    store::{Store, maintenance::Upkeep, publication::Publisher},
};
use uuid::Uuid;

use crate::support::{CSV, TestClock, TestHub, fixture, repository};

const VISITS: &str = "community.visits";
const UPLOADER: &str = "community-uploader";
const ANALYST: (&str, &str) = ("health-analyst", "epidemiology");
const WORKER: (&str, &str) = ("grid-worker", "case-management");
const GRIDS: [&str; 3] = ["420191001001001", "420191001001002", "420191001002001"];

/// A hub with divisions, on the first of February, whose protected numbers have no noise, with these settings.
async fn hub(time: &str, upkeep: Upkeep) -> TestHub {
    let plain = Defences::without(&[Defence::Noise, Defence::Snap, Defence::Ledger, Defence::Homogeneity]);
    let hub = TestHub::with(TestClock::at(time), |opening| {
        opening.defences = plain;
        opening.upkeep = upkeep;
    })
    .await;
    let reply = hub.push("platform-uploader", "platform.divisions", CSV, fixture("platform.divisions.csv")).await;
    assert_eq!(reply.status, 201, "{}", reply.text());
    hub
}

const FEBRUARY: &str = "2026-02-01T01:00:00Z";

/// Keeps nothing that was replaced.
fn at_once() -> Upkeep {
    Upkeep { keep: TimeDelta::zero(), ..Upkeep::default() }
}

fn header() -> String {
    String::from_utf8(fixture("community.visits.csv")).unwrap().lines().next().unwrap().to_owned()
}

/// A visit of a person, at a time as the data's zone has it.
fn row(visit: &str, person: usize, at: &str) -> String {
    let id = with_check_digit(&format!("42019119{:02}0101{:03}", 50 + person % 50, 100 + person));
    let (grid, temperature) = (GRIDS[person % 3], 36.0 + (person % 20) as f64 / 10.0);
    format!("{visit},{grid},,{id},,,,{at},入户,{temperature:.1},,,\n")
}

/// Three people's visits, on a day of January that goes with the number of the push.
fn three(push: usize) -> Vec<u8> {
    let day = 1 + push % 28;
    let rows: String = (0..3)
        .map(|number| {
            let person = push * 3 + number;
            row(&format!("V{person}"), person, &format!("2026-01-{day:02} 10:{:02}:{:02}", person / 60, person % 60))
        })
        .collect();
    format!("{}\n{rows}", header()).into_bytes()
}

/// Pushes visits and says how many were stored and how many were there before.
async fn push(hub: &TestHub, body: Vec<u8>) -> (u64, u64) {
    let reply = hub.push(UPLOADER, VISITS, CSV, body).await;
    assert_eq!(reply.status, 201, "{}", reply.text());
    let receipt = reply.json();
    assert_eq!(receipt["rows_rejected"], 0, "{}", reply.text());
    (receipt["rows_accepted"].as_u64().unwrap(), receipt["rows_duplicate"].as_u64().unwrap())
}

async fn maintain(hub: &TestHub) {
    hub.hub.as_ref().unwrap().maintain().await.unwrap();
}

/// All that two callers see of the visits, and a protected number.
async fn answers(hub: &TestHub) -> Vec<String> {
    let rows = "SELECT visit_id, grid_code, id_no, visited_at, mode, symptoms FROM visits ORDER BY visited_at";
    let mut answers = Vec::new();
    for (caller, purpose) in [ANALYST, WORKER] {
        answers.push(hub.ask(caller, purpose, rows).await.rows());
    }
    let protected = hub.ask(ANALYST.0, ANALYST.1, "SELECT count(temperature), avg(temperature) FROM visits").await;
    assert_eq!(protected.json()["protection"]["mode"], "protected");
    answers.push(protected.rows());
    answers
}

fn folder(hub: &TestHub) -> PathBuf {
    hub.data().join("tables").join(VISITS)
}

/// How many files lie in a folder whose name ends like this.
fn lying(folder: PathBuf, end: &str) -> usize {
    fs::read_dir(folder)
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().path().to_str().unwrap().ends_with(end))
        .count()
}

fn on_disk(hub: &TestHub) -> usize {
    lying(folder(hub), ".parquet")
}

/// How many files the current version has.
async fn files(hub: &TestHub) -> usize {
    let location = ensure_table_uri(folder(hub).to_str().unwrap()).unwrap();
    DeltaTable::try_from_url(location).await.unwrap().get_file_uris().unwrap().count()
}

/// The tables of a hub, looked at beside it.
async fn beside(hub: &TestHub) -> Store {
    let (folder, clock) = (hub.folder.path(), hub.clock.clone());
    let datasets = contract::load_folder(&repository().join("schemas")).unwrap();
    let keys = Keys::open(&folder.join("keys"), &hub.data(), true).unwrap();
    let publisher = Publisher::new(Arc::new(hub.metadata()), &keys, Arc::new(move || clock.now()));
    let runtime = query::runtime(&folder.join(Uuid::now_v7().to_string()), &query::Limits::default()).unwrap();
    Store::open(&hub.data().join("tables"), &datasets, runtime, publisher, 0).await.unwrap()
}

/// How many rows of a table match, and how many files were opened to find them.
async fn read(table: Arc<dyn TableProvider>, filters: &[Expr]) -> (usize, usize) {
    let config = SessionConfig::new().set_bool("datafusion.execution.parquet.schema_force_view_types", false);
    let state = SessionStateBuilder::new().with_config(config).with_default_features().build();
    let plan = table.scan(&state, None, filters, None).await.unwrap();
    let rows = collect(Arc::clone(&plan), state.task_ctx()).await.unwrap();
    (rows.iter().map(RecordBatch::num_rows).sum(), opened(&plan))
}

fn opened(plan: &Arc<dyn ExecutionPlan>) -> usize {
    let metrics = plan.metrics().unwrap_or_default();
    let here = metrics.iter().map(|metric| match (metric.value().name(), metric.value()) {
        ("files_opened", MetricValue::Count { count, .. }) => count.value(),
        _ => 0,
    });
    here.sum::<usize>() + plan.children().into_iter().map(opened).sum::<usize>()
}

/// How many rows the visits have: as they stand, and as published.
async fn rows(hub: &TestHub) -> (usize, usize) {
    let (snapshot, name) = (beside(hub).await.snapshot(), DatasetName::parse(VISITS).unwrap());
    let (current, published) = (snapshot.provider(&name).await.unwrap(), snapshot.published(&name).await.unwrap());
    (read(current, &[]).await.0, read(published, &[]).await.0)
}

#[tokio::test(flavor = "multi_thread")]
async fn many_small_files_become_one_and_nothing_else_changes() {
    let mut hub = hub(FEBRUARY, Upkeep::default()).await;
    for number in 0..40 {
        assert_eq!(push(&hub, three(number)).await, (3, 0));
    }
    let before = answers(&hub).await;
    assert_eq!(before[0].lines().count(), 120);
    assert_eq!((files(&hub).await, on_disk(&hub)), (40, 40));
    let (name, old) = (DatasetName::parse(VISITS).unwrap(), beside(&hub).await.snapshot());

    maintain(&hub).await;
    assert_eq!((files(&hub).await, on_disk(&hub)), (1, 41));
    assert_eq!(answers(&hub).await, before);
    // Who took the tables as they were before reads on, and so does who asks only now.
    assert_eq!(read(old.provider(&name).await.unwrap(), &[]).await, (120, 40));
    assert_eq!(read(old.published(&name).await.unwrap(), &[]).await.0, 120);
    // There is nothing left to do.
    maintain(&hub).await;
    assert_eq!((files(&hub).await, on_disk(&hub)), (1, 41));

    let entries = hub.get(&hub.token("compliance-officer"), "/v1/log/entries?from=0&count=1000").await.json();
    let upkeep: Vec<_> =
        entries["entries"].as_array().unwrap().iter().filter(|entry| entry["kind"] == "store.upkeep").collect();
    assert_eq!(upkeep.len(), 1, "{upkeep:?}");
    assert_eq!(upkeep[0]["dataset"], VISITS);
    for (member, value) in [("version", 41), ("files_before", 40), ("files_after", 1), ("deleted", 0)] {
        assert_eq!(upkeep[0][member], value, "{member}");
    }

    assert_eq!(push(&hub, three(7)).await, (0, 3));
    hub.restart().await;
    assert_eq!(answers(&hub).await, before);
    for number in 0..40 {
        assert_eq!(push(&hub, three(number)).await, (0, 3));
    }
    assert_eq!(push(&hub, three(40)).await, (3, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_version_needs_goes_and_the_log_with_it() {
    let mut hub = hub(FEBRUARY, at_once()).await;
    for number in 0..60 {
        push(&hub, three(number)).await;
    }
    maintain(&hub).await;
    // Twelve people publish what there is, so that no version from before is read any more.
    for number in 60..64 {
        push(&hub, three(number)).await;
    }
    let before = answers(&hub).await;
    maintain(&hub).await;
    let current = files(&hub).await;
    assert!(current <= 5, "{current}");
    assert_eq!(on_disk(&hub), current);
    let log = folder(&hub).join("_delta_log");
    assert!(lying(log.clone(), ".checkpoint.parquet") >= 1);
    assert!(!log.join("00000000000000000000.json").exists());
    assert!(lying(log, ".json") <= 10);
    assert_eq!(answers(&hub).await, before);
    assert_eq!(rows(&hub).await, (192, 192));

    hub.restart_with(|opening| opening.upkeep = at_once()).await;
    assert_eq!(answers(&hub).await, before);
    assert_eq!(push(&hub, three(3)).await, (0, 3));
    assert_eq!(push(&hub, three(64)).await, (3, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_published_stays_while_a_change_waits() {
    let mut hub = hub(FEBRUARY, at_once()).await;
    for number in 0..4 {
        push(&hub, three(number)).await;
    }
    assert_eq!(rows(&hub).await, (12, 12));
    // One person, twenty times: nine fewer than publish.
    for hour in 0..20 {
        let visit = row(&format!("W{hour}"), 500, &format!("2026-01-30 {hour:02}:00:00"));
        push(&hub, format!("{}\n{visit}", header()).into_bytes()).await;
    }
    assert_eq!(rows(&hub).await, (32, 12));
    maintain(&hub).await;
    assert_eq!(files(&hub).await, 1);
    // The new file, and the four from which protected statistics are still made.
    assert_eq!(on_disk(&hub), 5);
    assert_eq!(rows(&hub).await, (32, 12));
    let protected = "SELECT count(temperature) FROM visits WHERE visited_at < DATE '2026-02-01'";
    let reply = hub.ask(ANALYST.0, ANALYST.1, protected).await;
    assert_eq!(reply.status, 200, "{}", reply.text());

    hub.restart_with(|opening| opening.upkeep = at_once()).await;
    assert_eq!(rows(&hub).await, (32, 12));
    maintain(&hub).await;
    assert_eq!(rows(&hub).await, (32, 12));
    // The day that publishes it was not put off by the upkeep, nor brought forward.
    hub.clock.step(TimeDelta::hours(24) - TimeDelta::milliseconds(1));
    assert_eq!(rows(&hub).await, (32, 12));
    hub.clock.step(TimeDelta::milliseconds(1));
    assert_eq!(rows(&hub).await, (32, 32));
}

#[tokio::test(flavor = "multi_thread")]
async fn leftovers_go_at_the_start_or_when_they_are_a_day_old() {
    let mut hub = hub(FEBRUARY, at_once()).await;
    for number in 0..8 {
        push(&hub, three(number)).await;
    }
    let before = answers(&hub).await;
    let orphans = || {
        let one = fs::read_dir(folder(&hub)).unwrap().map(|entry| entry.unwrap().path());
        let one = one.into_iter().find(|path| path.extension().is_some_and(|end| end == "parquet")).unwrap();
        let names = ["part-00000-left.snappy.parquet", "part-00001-left.snappy.parquet#1"];
        let orphans = names.map(|name| folder(&hub).join(name));
        orphans.iter().for_each(|orphan| assert!(fs::copy(&one, orphan).unwrap() > 0));
        orphans
    };
    let [left, half] = orphans();
    // An upload may be about to name them.
    maintain(&hub).await;
    assert!(left.exists() && half.exists());
    let yesterday = SystemTime::now() - Duration::from_secs(25 * 3_600);
    for orphan in [&left, &half] {
        File::options().write(true).open(orphan).unwrap().set_modified(yesterday).unwrap();
    }
    maintain(&hub).await;
    assert!(!left.exists() && !half.exists());
    assert_eq!((files(&hub).await, on_disk(&hub)), (8, 8));

    orphans();
    let commit = folder(&hub).join("_delta_log/00000000000000000099.json#1");
    fs::write(&commit, "{}").unwrap();
    hub.restart().await;
    assert!(!left.exists() && !half.exists() && !commit.exists());
    assert_eq!((files(&hub).await, on_disk(&hub)), (8, 8));
    assert_eq!(answers(&hub).await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn days_still_spare_files_when_they_were_put_together() {
    let hub = hub(FEBRUARY, Upkeep { target: 64 << 10, ..Upkeep::default() }).await;
    for number in 0..56 {
        push(&hub, three(number)).await;
    }
    maintain(&hub).await;
    let current = files(&hub).await;
    assert!((2..=28).contains(&current), "{current}");
    let (store, name) = (beside(&hub).await, DatasetName::parse(VISITS).unwrap());
    let table = store.snapshot().provider(&name).await.unwrap();
    let midnight = |day: i64| {
        let moment = (20_454 + day - 1) * 86_400_000_000;
        lit(ScalarValue::TimestampMicrosecond(Some(moment), Some("UTC".into())))
    };
    // The second and third of January, and so on: 20,454 days after 1970 begins 2026.
    for day in 1..=28 {
        let filters = [col("visited_at").gt_eq(midnight(day)), col("visited_at").lt(midnight(day + 1))];
        let (_, opened) = read(Arc::clone(&table), &filters).await;
        assert_eq!(opened, 1, "day {day} of {current} files");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pushes_go_on_during_upkeep() {
    let hub = hub(FEBRUARY, at_once()).await;
    for number in 0..30 {
        push(&hub, three(number)).await;
    }
    let upkeep = async {
        for _ in 0..4 {
            maintain(&hub).await;
        }
    };
    let pushing = async {
        for number in 30..70 {
            assert_eq!(push(&hub, three(number)).await, (3, 0));
            assert_eq!(push(&hub, three(number - 30)).await, (0, 3));
        }
    };
    tokio::join!(upkeep, pushing);
    maintain(&hub).await;
    let counted = hub.ask(UPLOADER, "", "SELECT count(*) FROM visits").await;
    assert_eq!(counted.rows(), "[210]");
    assert_eq!(rows(&hub).await.0, 210);
}

/// Pushes twenty visits an hour, keeps up every so many pushes, and tells how long the first and the last pushes took.
async fn hours(hub: &TestHub, pushes: usize, every: Option<usize>) {
    let token = identity::create(&hub.metadata(), UPLOADER, Some(TimeDelta::days(500)), hub.clock.now()).unwrap().0;
    let header = header();
    let report = 1_000.min(pushes / 2);
    let mut begun = Instant::now();
    for number in 0..pushes {
        let local = hub.clock.now() + TimeDelta::hours(8);
        let rows: String = (0..20)
            .map(|second| {
                let at = local + TimeDelta::seconds(second as i64);
                row(&format!("V{number}x{second}"), (number * 20 + second) % 800, &at.format("%F %T").to_string())
            })
            .collect();
        hub.clock.step(TimeDelta::hours(1));
        let body = format!("{header}\n{rows}").into_bytes();
        let reply = hub.push_as(&token, VISITS, Uuid::now_v7(), CSV, body).await;
        assert_eq!((reply.status, reply.json()["rows_accepted"].as_u64()), (201, Some(20)), "{}", reply.text());
        if number == pushes - report {
            begun = Instant::now();
        }
        if number + 1 == report || number + 1 == pushes {
            println!("{:.1} pushes a second up to push {}", report as f64 / begun.elapsed().as_secs_f64(), number + 1);
        }
        if every.is_some_and(|every| (number + 1) % every == 0) {
            maintain(hub).await;
        }
    }
}

/// Tells what lies on disk and how long questions take.
async fn figures(hub: &TestHub, when: &str) {
    let log = folder(hub).join("_delta_log");
    let bytes: u64 = fs::read_dir(folder(hub)).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum();
    println!(
        "{when}: {} files of {} on disk, {bytes} bytes, {} commits in the log, {} checkpoints",
        files(hub).await,
        on_disk(hub),
        lying(log.clone(), ".json"),
        lying(log, ".checkpoint.parquet"),
    );
    for (what, from, to) in [
        ("a day", "2025-06-15", "2025-06-16"),
        ("a month", "2025-06-01", "2025-07-01"),
        ("the year", "2025-01-01", "2026-01-02"),
    ] {
        let days = format!("visited_at >= DATE '{from}' AND visited_at < DATE '{to}'");
        let sql = format!("SELECT count(*), max(visited_at) FROM visits WHERE {days}");
        let mut times = Vec::new();
        for _ in 0..5 {
            let begun = Instant::now();
            let reply = hub.ask(UPLOADER, "", &sql).await;
            times.push(begun.elapsed());
            assert_eq!(reply.status, 200, "{}", reply.text());
        }
        times.sort();
        println!("{when}: {what} in {:?}", times[2]);
    }
}

const NEW_YEAR: &str = "2025-01-01T00:00:00Z";

#[tokio::test(flavor = "multi_thread")]
async fn files_and_log_stay_few_however_many_pushes_come() {
    let hub = hub(NEW_YEAR, at_once()).await;
    for round in 1..=8 {
        hours(&hub, 25, Some(25)).await;
        let current = files(&hub).await;
        assert!(current <= 28, "{current} files after round {round}");
    }
    assert_eq!(rows(&hub).await.0, 4_000);
    // Those of the version before, if it is the published one, on top.
    assert!(on_disk(&hub) <= 60, "{} files on disk", on_disk(&hub));
    let log = folder(&hub).join("_delta_log");
    assert!(lying(log.clone(), ".json") <= 150, "{} commits in the log", lying(log, ".json"));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "many minutes; prints the figures of a year of hourly pushes"]
async fn a_year_of_hourly_pushes() {
    let hub = hub(NEW_YEAR, at_once()).await;
    hours(&hub, 8_760, Some(24)).await;
    figures(&hub, "with upkeep every day").await;
    assert_eq!(rows(&hub).await.0, 8_760 * 20);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "many minutes; prints the figures of a year of hourly pushes whose upkeep comes at its end"]
async fn a_year_of_hourly_pushes_that_nobody_kept_up() {
    let hub = hub(NEW_YEAR, at_once()).await;
    hours(&hub, 8_760, None).await;
    figures(&hub, "before upkeep").await;
    let begun = Instant::now();
    maintain(&hub).await;
    println!("upkeep of the year in {:?}", begun.elapsed());
    figures(&hub, "after upkeep").await;
    assert_eq!(rows(&hub).await.0, 8_760 * 20);
}

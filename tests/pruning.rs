//! What is left unread on disk, and on whose word: predicates of a caller on what it sees clear, tokens, and its row
//! scope spare files and row groups; predicates on what it sees coarser, or on what a later row may replace, spare
//! nothing, or how long an answer takes would tell what it hides.
//!
//! A question goes through the hub's own stages up to the optimized plan; from there it is planned and run here with
//! the hub's own planner, since only the plan that ran knows what it read. Every batch is a file of one row group, and
//! batch, day and community go together: file 3 is what grid 420191001003001 saw on the third of January.

use std::{path::Path, sync::Arc};

use arrow::{array::RecordBatch, datatypes::DataType};
use datafusion::{
    catalog::TableProvider,
    execution::{SessionState, SessionStateBuilder},
    logical_expr::{TableProviderFilterPushDown, cast},
    physical_plan::{ExecutionPlan, collect, metrics::MetricValue},
    prelude::{SessionConfig, col, lit},
};
use gridhub::{
    dataset::DatasetName,
    demo::city::with_check_digit,
    disclose::{self, Wishes},
    pseudonym::TokenKey,
    query::{
        Bounds, GovernedTable, Subjects, barrier,
        defences::{Defence, Defences},
        planner,
    },
    store::Snapshot,
};

use crate::support::{CSV, Parts, TestHub, changed, repository};

const ANALYST: (&str, &str) = ("health-analyst", "epidemiology");
const WORKER: (&str, &str) = ("grid-worker", "case-management");

/// Files of a dataset, one a day.
const DAYS: usize = 12;
/// Rows of each.
const ROWS: usize = 200;

fn community(day: usize) -> String {
    format!("420191001{day:03}")
}

/// A person of that day's file and of no other.
fn person(day: usize, number: usize) -> String {
    with_check_digit(&format!("420191{}0101{number:03}", 1950 + day))
}

/// Seven minutes after seven minutes, from the first hour of the day in the data's zone to its last.
fn moment(day: usize, number: usize) -> String {
    format!("2026-01-{day:02} {:02}:{:02}:00", number * 7 / 60, number * 7 % 60)
}

/// A dataset: who pushes it, its name, its columns and a row of a day.
type Pushed = (&'static str, &'static str, &'static str, fn(usize, usize) -> String);

const VISITS: Pushed = (
    "community-uploader",
    "community.visits",
    "visit_id,grid_code,household_id,id_no,name,phone,worker_id,visited_at,mode,temperature,symptoms,needs,remark",
    |day, n| {
        let (grid, id, at) = (community(day) + "001", person(day, n), moment(day, n));
        format!("V{day:02}{n:03},{grid},{grid}H{n:04},{id},安一,1410000{n:04},W{day:02},{at},入户,36.5,,,\n")
    },
);

const TESTS: Pushed = (
    "hospital-uploader",
    "hospital.tests",
    "test_id,revision,id_no,name,phone,lab_uscc,sampled_at,reported_at,method,result,ct_value",
    |day, n| {
        let (id, at) = (person(day, n), moment(day, n));
        format!("T{day:02}{n:03},1,{id},安一,1410000{n:04},12420191MB00000013,{at},{at},核酸,阴性,\n")
    },
);

/// A hub that took in the divisions and one dataset, file by file, and was stopped.
async fn city((caller, dataset, columns, row): Pushed) -> TestHub {
    let mut hub = TestHub::start_at("2026-02-01T01:00:00Z").await;
    let above = "42,云省,1,\n4201,云泽市,2,42\n420191,望江区,3,4201\n420191001,临江街道,4,420191\n";
    let divisions =
        |rows: String| ("platform-uploader", "platform.divisions", format!("code,name,level,parent_code\n{rows}"));
    let mut files = vec![divisions(above.to_owned())];
    for day in 1..=DAYS {
        let code = community(day);
        files.push(divisions(format!("{code},桥东社区,5,420191001\n{code}001,桥东网格,6,{code}\n")));
        let rows: String = (1..=ROWS).map(|number| row(day, number)).collect();
        files.push((caller, dataset, format!("{columns}\n{rows}")));
    }
    for (caller, dataset, text) in files {
        let rows = text.lines().count() - 1;
        let reply = hub.push(caller, dataset, CSV, text.into_bytes()).await;
        assert_eq!(reply.status, 201, "{dataset}: {}", reply.text());
        assert_eq!(reply.json()["rows_accepted"], rows, "{dataset}: {}", reply.text());
    }
    hub.stop();
    hub
}

/// What a plan read, once it ran.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Read {
    /// Files opened: those that Delta's own statistics did not rule out.
    files: usize,
    /// Row groups decoded, of files opened.
    groups: usize,
    /// Row groups that a Bloom filter ruled out.
    by_bloom: usize,
    /// Bytes of columns and Bloom filters, footers left aside.
    bytes: usize,
    /// Rows of the answer.
    rows: usize,
}

impl Read {
    fn add(&mut self, plan: &Arc<dyn ExecutionPlan>) {
        if let Some(metrics) = plan.metrics() {
            for metric in metrics.iter() {
                match (metric.value().name(), metric.value()) {
                    ("files_opened", MetricValue::Count { count, .. }) => self.files += count.value(),
                    ("bytes_scanned", MetricValue::Count { count, .. }) => self.bytes += count.value(),
                    // The last filter that every row group has to pass, those without a Bloom filter too.
                    ("row_groups_pruned_bloom_filter", MetricValue::PruningMetrics { pruning_metrics, .. }) => {
                        self.groups += pruning_metrics.matched();
                        self.by_bloom += pruning_metrics.pruned();
                    }
                    _ => {}
                }
            }
        }
        plan.children().into_iter().for_each(|child| self.add(child));
    }

    fn files_groups_rows(self) -> (usize, usize, usize) {
        (self.files, self.groups, self.rows)
    }
}

/// The stages of a hub's queries over the folder of one that was stopped.
struct Stages {
    parts: Parts,
    snapshot: Snapshot,
    state: SessionState,
}

impl Stages {
    async fn over(hub: &TestHub, policies: &Path, defences: Defences) -> Self {
        let parts = Parts::under(hub, policies, defences, 0).await;
        // As the hub's own sessions read files, in the one partition in which it runs what leaves choices open.
        let config = SessionConfig::new()
            .with_target_partitions(1)
            .set_bool("datafusion.execution.parquet.schema_force_view_types", false)
            .set_bool("datafusion.execution.parquet.pushdown_filters", true);
        let state = SessionStateBuilder::new()
            .with_config(config)
            .with_runtime_env(Arc::clone(&parts.runtime))
            .with_default_features()
            .with_query_planner(Arc::new(planner::Planner))
            .build();
        Self { snapshot: parts.store.snapshot(), state, parts }
    }

    async fn usual(hub: &TestHub) -> Self {
        Self::over(hub, &repository().join("policies"), Defences::default()).await
    }

    /// The key of the analyst's tokens.
    fn tokens(&self) -> TokenKey {
        self.parts.pseudonyms.tokens("health_bureau", ANALYST.1).unwrap()
    }

    /// Asks, and says what was read for the answer.
    async fn read(&self, who: (&str, &str), sql: &str) -> Read {
        let (view, engine, gate) = (self.parts.view(who), Arc::clone(&self.parts.engine), Arc::clone(&self.parts.gate));
        let (snapshot, state) = (self.snapshot.clone(), self.state.clone());
        let text = sql.to_owned();
        let reading = async move {
            let guarded = disclose::guard(engine.plan(&view, &snapshot, &text, &[]).await?, &gate, Wishes::default())?;
            let (plan, _) = engine.prepare(&guarded)?;
            let plan = state.query_planner().create_physical_plan(&plan, &state).await.unwrap();
            barrier::verify(&plan)?;
            let rows = collect(Arc::clone(&plan), state.task_ctx()).await.unwrap();
            let mut read = Read { rows: rows.iter().map(RecordBatch::num_rows).sum(), ..Read::default() };
            read.add(&plan);
            Ok(read)
        };
        self.parts.engine.work(&Bounds::default(), reading).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"))
    }

    /// What the analyst sees of an identifier.
    fn token(&self, dataset: &str, field: &str, canonical: &str) -> String {
        let view = self.parts.view(ANALYST);
        let seen = view.dataset(&DatasetName::parse(dataset).unwrap()).unwrap();
        let identifier = seen.dataset.field(field).unwrap().identifier.as_ref().unwrap();
        self.tokens().token(&self.parts.pseudonyms.pseudonym(identifier, canonical))
    }

    /// Looks for one row of every file by its token: all files are opened, and of the row groups little more is read
    /// than the one that holds it. Filters fail for one row group in a hundred, here for one or two of all.
    async fn find_by_token(&self, sql: impl Fn(usize) -> String) {
        let (mut groups, mut by_bloom) = (0, 0);
        for day in 1..=DAYS {
            let read = self.read(ANALYST, &sql(day)).await;
            assert_eq!((read.files, read.rows), (DAYS, 1), "{read:?}");
            assert!(read.groups >= 1, "{read:?}");
            (groups, by_bloom) = (groups + read.groups, by_bloom + read.by_bloom);
        }
        assert_eq!(groups + by_bloom, DAYS * DAYS, "nothing but a Bloom filter knows of pseudonyms");
        assert!(groups <= DAYS + 12, "{groups} row groups were read for {DAYS} rows");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn time_place_and_tokens_read_what_matches() {
    let hub = city(VISITS).await;
    let stages = Stages::usual(&hub).await;
    let all = stages.read(ANALYST, "SELECT visit_id, grid_code FROM visits").await;
    assert_eq!(all.files_groups_rows(), (DAYS, DAYS, DAYS * ROWS));
    for (predicate, files, groups) in [
        // Days of the data's zone: in UTC these two would lie in three files.
        ("visited_at >= DATE '2026-01-03' AND visited_at < DATE '2026-01-05'", 2, 2),
        ("grid_code = '420191001003001'", 1, 1),
        ("grid_code IN ('420191001003001', '420191001007001')", 2, 2),
        ("grid_code >= '420191001003' AND grid_code < '420191001006'", 3, 3),
        ("visited_at < DATE '2026-01-02' OR grid_code = '420191001012001'", 2, 2),
        ("visited_at < DATE '2026-01-02' AND grid_code = '420191001012001'", 0, 0),
        // What people write for a place; the ranges in it skip files, which none of these forms does.
        ("grid_code LIKE '420191001003%'", 1, 1),
        ("substr(grid_code, 1, 12) = '420191001003'", 1, 1),
        ("left(grid_code, 12) IN ('420191001003', '420191001007')", 2, 2),
    ] {
        let read = stages.read(ANALYST, &format!("SELECT visit_id, grid_code FROM visits WHERE {predicate}")).await;
        assert_eq!(read.files_groups_rows(), (files, groups, groups * ROWS), "{predicate}");
        assert!(read.bytes < all.bytes, "{predicate}: {read:?} of {all:?}");
    }
    // A day is looked for in any zone.
    let day =
        stages.read(ANALYST, "SELECT visit_id FROM visits WHERE CAST(visited_at AS DATE) = DATE '2026-01-03'").await;
    assert!(day.files <= 3 && day.rows == ROWS, "{day:?}");
    // The same below a protected aggregate.
    let sql = "SELECT avg(temperature) FROM visits WHERE grid_code = '420191001003001'";
    assert_eq!(stages.read(ANALYST, sql).await.files_groups_rows(), (1, 1, 1));

    let of_person = |day| stages.token("community.visits", "id_no", &person(day, day));
    stages.find_by_token(|day| format!("SELECT visited_at FROM visits WHERE id_no = '{}'", of_person(day))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_scope_reads_its_own_files() {
    let hub = city(VISITS).await;
    let stages = Stages::usual(&hub).await;
    for (predicate, files) in [
        ("true", 1),
        ("mode = '入户'", 1),
        ("grid_code = '420191001001001'", 1),
        // Whatever holds only elsewhere.
        ("grid_code = '420191001003001'", 0),
        ("grid_code >= '420191001002'", 0),
        ("visited_at >= DATE '2026-01-02'", 0),
    ] {
        let read = stages.read(WORKER, &format!("SELECT visit_id FROM visits WHERE {predicate}")).await;
        assert_eq!(read.files_groups_rows(), (files, files, files * ROWS), "{predicate}");
    }
    let elsewhere = stages.read(("grid-worker-b", WORKER.1), "SELECT visit_id FROM visits").await;
    assert_eq!(elsewhere, Read::default());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_shown_coarser_spares_nothing() {
    let hub = city(VISITS).await;
    let policies = changed(&hub.folder.path().join("changed"), "policies", "community.cedar", |text| {
        let clear = r#"["grid_code", "visited_at", "mode", "symptoms", "needs"]"#;
        assert_eq!(text.matches(clear).count(), 1, "the fields of visits that the analyst sees clear");
        let coarser = r#"
            @id("coarser grids")
            permit (principal in Agency::"health_bureau", action == Action::"field:generalised",
                    resource in Dataset::"community.visits")
            when { resource.has_generalised && resource.name == "grid_code" };"#;
        text.replace(clear, r#"["visited_at", "mode", "symptoms", "needs"]"#) + coarser
    });
    let stages = Stages::over(&hub, &policies, Defences::default()).await;
    let all = stages.read(ANALYST, "SELECT visit_id, grid_code FROM visits").await;
    assert_eq!(all.files_groups_rows(), (DAYS, DAYS, DAYS * ROWS));
    let raw = "SELECT visit_id, grid_code FROM visits WHERE grid_code = '420191001003001'";
    for (sql, rows) in [
        (raw, 0),
        ("SELECT visit_id, grid_code FROM visits WHERE grid_code = '420191001003'", ROWS),
        ("SELECT visit_id, grid_code FROM visits WHERE grid_code LIKE '420191001003001%'", 0),
        ("SELECT visit_id, grid_code FROM visits WHERE grid_code > '420191001003' AND grid_code < '420191001004'", 0),
    ] {
        assert_eq!(stages.read(ANALYST, sql).await, Read { rows, ..all }, "{sql}");
    }
    // It is the mask that keeps them out: without that defence the raw value would pick its file.
    let weakened = Stages::over(&hub, &policies, Defences::without(&[Defence::MaskedPredicates])).await;
    assert_eq!(weakened.read(ANALYST, raw).await.files_groups_rows(), (1, 1, ROWS));

    // Nor does it where another plans the scan, which takes over no filter that may fail.
    let name = DatasetName::parse("community.visits").unwrap();
    let (view, stored) = (stages.parts.view(ANALYST), stages.snapshot.stored(&name).await.unwrap());
    let subjects = Subjects {
        domain: "cn_resident_id".into(),
        key: stages.parts.pseudonyms.subjects("cn_resident_id"),
        agency: "health_bureau".into(),
    };
    let seen = view.dataset(&name).unwrap();
    let table = GovernedTable::new(seen, stored.clone(), stored, stages.tokens(), subjects, Defences::default());
    for (code, rows) in [("420191001003001", 0), ("420191001003", ROWS)] {
        let filter = col("grid_code").eq(lit(code));
        let answer = table.supports_filters_pushdown(&[&filter]).unwrap();
        assert_eq!(answer, [TableProviderFilterPushDown::Exact]);
        let plan = table.scan(&stages.state, None, &[filter], None).await.unwrap();
        let found = collect(Arc::clone(&plan), stages.state.task_ctx()).await.unwrap();
        let mut read = Read { rows: found.iter().map(RecordBatch::num_rows).sum(), ..Read::default() };
        read.add(&plan);
        assert_eq!(read.files_groups_rows(), (DAYS, DAYS, rows), "{code}");
    }
    let fallible = cast(col("grid_code"), DataType::Int64).eq(lit(1_i64));
    let answer = table.supports_filters_pushdown(&[&fallible]).unwrap();
    assert_eq!(answer, [TableProviderFilterPushDown::Unsupported]);
    assert!(table.scan(&stages.state, None, &[fallible], None).await.is_err());
}

/// Which row of a key is current shows only where all rows of that key are read: keys spare files, nothing else does.
#[tokio::test(flavor = "multi_thread")]
async fn of_corrected_records_only_keys_spare_files() {
    let hub = city(TESTS).await;
    let stages = Stages::usual(&hub).await;
    for (predicate, files, rows) in [
        ("code = '420191001003001'", 1, 1),
        ("code >= '420191001003' AND code < '420191001005'", 2, 4),
        ("code = '420191001003001' AND level = 5", 1, 0),
        // The file of what lies above them, too.
        ("level = 6", DAYS + 1, DAYS),
        ("parent_code = '420191001003'", DAYS + 1, 1),
    ] {
        let read = stages.read(ANALYST, &format!("SELECT name FROM divisions WHERE {predicate}")).await;
        assert_eq!(read.files_groups_rows(), (files, files, rows), "{predicate}");
    }

    let of_test = |day| stages.token("hospital.tests", "test_id", &format!("T{day:02}{day:03}"));
    stages.find_by_token(|day| format!("SELECT result FROM tests WHERE test_id = '{}'", of_test(day))).await;
    let of_person = format!("id_no = '{}'", stages.token("hospital.tests", "id_no", &person(3, 3)));
    for (predicate, rows) in [
        ("sampled_at >= DATE '2026-01-03' AND sampled_at < DATE '2026-01-05'", 2 * ROWS),
        ("result = '阳性'", 0),
        (of_person.as_str(), 1),
    ] {
        let read = stages.read(ANALYST, &format!("SELECT result FROM tests WHERE {predicate}")).await;
        assert_eq!(read.files_groups_rows(), (DAYS, DAYS, rows), "{predicate}");
        assert_eq!(read.by_bloom, 0, "{predicate}");
    }
}

//! Small tables in memory, and questions that are asked again: what is remembered is how they are answered, and neither
//! rows nor times; nobody finds what others asked.

use std::sync::Arc;

use chrono::TimeDelta;
use gridhub::{
    dataset::DatasetName,
    disclose::{self, Wishes},
    policy::View,
    query::{self, Asked, Bounds},
    store::{Snapshot, Stored, materialised::Materialised},
};
use serde_json::json;

use crate::support::{CSV, Parts, Reply, TestClock, TestHub, fixture};

const ANALYST: (&str, &str) = ("health-analyst", "epidemiology");
const PLANNER: (&str, &str) = ("health-analyst", "supply-planning");
const CASES: &str = "SELECT case_id, confirmed_date FROM cases WHERE sex = '女'";

impl Parts {
    /// Asks as a hub does that has not been asked this before.
    async fn ask(&self, view: &Arc<View>, tables: &Snapshot, sql: &str) {
        let (engine, gate, view) = (Arc::clone(&self.engine), Arc::clone(&self.gate), Arc::clone(view));
        let (tables, sql) = (tables.clone(), sql.to_owned());
        let asking = async move {
            let planned = engine.plan(&view, &tables, &sql, &[]).await?;
            let guarded = disclose::guard(planned, &gate, Wishes::default())?;
            let answer = engine.run_and_remember(guarded, &view, Asked::new(&sql, &[])).await?;
            disclose::release(answer)
        };
        self.engine.work(&Bounds::default(), Box::pin(asking)).await.unwrap();
    }

    /// Whether it is known how to answer that.
    async fn knows(&self, view: &Arc<View>, tables: &Snapshot, sql: &str) -> bool {
        let asked = Asked::new(sql, &[]).unwrap();
        self.engine.recall(view, tables, &asked).await.unwrap().is_some()
    }
}

async fn in_memory(tables: &Snapshot, name: &str) -> Option<Arc<Materialised>> {
    match tables.stored(&DatasetName::parse(name).unwrap()).await.unwrap() {
        Stored::Memory(rows) => Some(rows),
        Stored::Files(_) => None,
        Stored::Nothing(_) => panic!("a table of a snapshot lies somewhere"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn small_tables_are_in_memory_as_far_as_there_is_room() {
    let mut hub = TestHub::with_city().await;
    hub.stop();
    let usual = Parts::of(&hub, query::Limits::default().tables).await.store.snapshot();
    for name in ["platform.divisions", "community.residents", "cdc.cases", "hospital.tests", "pharmacy.sales"] {
        assert!(in_memory(&usual, name).await.is_some(), "{name}");
    }
    let none = Parts::of(&hub, 0).await.store.snapshot();
    assert!(in_memory(&none, "cdc.cases").await.is_none());
    // Room for one or two of them.
    let few = Parts::of(&hub, 16 << 10).await.store.snapshot();
    let mut held = 0;
    for name in ["community.residents", "community.visits", "hospital.tests", "cdc.cases", "pharmacy.sales"] {
        held += usize::from(in_memory(&few, name).await.is_some());
    }
    assert!((1..5).contains(&held), "{held}");
}

/// Whoever asks next would feel otherwise that somebody sent something.
#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_was_found_out_later_is_in_memory_too() {
    let mut hub = TestHub::start().await;
    for (caller, dataset, file) in [
        ("platform-uploader", "platform.divisions", "platform.divisions.csv"),
        ("community-uploader", "community.residents", "community.residents.csv"),
    ] {
        assert_eq!(hub.push(caller, dataset, CSV, fixture(file)).await.status, 201);
    }
    hub.stop();
    let parts = Parts::of(&hub, query::Limits::default().tables).await;
    let residents = DatasetName::parse("community.residents").unwrap();
    let before = parts.store.snapshot().version(&residents);
    hub.restart().await;
    let more = fixture("community.residents.2.csv");
    assert_eq!(hub.push("community-uploader", "community.residents", CSV, more).await.status, 201);
    hub.stop();
    // As where a commit landed and only what followed it failed.
    assert_eq!(parts.store.writer(&residents).await.unwrap().find(i64::MAX).await.unwrap(), None);
    let tables = parts.store.snapshot();
    assert!(tables.version(&residents) > before);
    assert!(in_memory(&tables, "community.residents").await.is_some());
}

/// How many rows there are of all scopes and sources decides where a table lies, and so does how many other tables have.
#[tokio::test(flavor = "multi_thread")]
async fn where_rows_lie_shows_in_no_plan_and_in_no_error() {
    let (memory, files) = (TestHub::with_city().await, TestHub::with_city_in_files().await);
    for sql in [
        "EXPLAIN SELECT sex FROM cases WHERE birth_date < '1960-01-01' AND onset_date > '2025-01-01'",
        "EXPLAIN SELECT vaccine FROM vaccinations WHERE birth_date < '1960-01-01' AND dose_no = 1",
        "EXPLAIN SELECT sex FROM residents WHERE birth_date::text LIKE '195%' OR id_no = 'x'",
        "EXPLAIN SELECT count(temperature) FROM visits WHERE grid_code = '420191001001001'",
        // What is left out by the second condition fails by the first, where that comes first.
        "SELECT count(*) FROM cases WHERE (grid_code || 'x')::bigint < 3 AND grid_code LIKE '%x'",
        "SELECT count(*) FROM vaccinations WHERE (birth_date::text)::bigint < 3 AND birth_date > '2090-01-01'",
        "SELECT count(*) FROM cases WHERE (grid_code || 'x')::bigint < 3",
    ] {
        let (one, other) = (memory.ask(ANALYST.0, ANALYST.1, sql).await, files.ask(ANALYST.0, ANALYST.1, sql).await);
        assert_eq!(one.status, other.status, "{sql}: {} {}", one.text(), other.text());
        match one.status {
            200 => assert_eq!(one.rows(), other.rows(), "{sql}"),
            _ => assert_eq!(one.problem(), other.problem(), "{sql}"),
        }
    }
}

/// What a worker is answered whose own 20 visits lie in memory beside many others with that text.
async fn asked_beside(others: &str) -> Reply {
    let hub = TestHub::with(TestClock::at("2026-01-20T01:00:00Z"), |opening| opening.query_limits.memory = 64 << 20);
    let hub = hub.await;
    let mut visits = "visit_id,grid_code,household_id,id_no,name,phone,worker_id,visited_at,mode,temperature,symptoms,\
                      needs,remark\n"
        .to_owned();
    for row in 0..3_000 {
        let (grid, text) = if row < 20 { ("420191001001001", "咳嗽") } else { ("420191001002001", others) };
        let at = format!("2026-01-10 10:{:02}:00", row % 60);
        visits += &format!(
            "W{row:05},{grid},{grid}H0000,42019119500110001X,安一,14100000000,W01,{at},入户,36.5,{text},药品,\n"
        );
    }
    for (caller, dataset, rows) in [
        ("platform-uploader", "platform.divisions", fixture("platform.divisions.csv")),
        ("community-uploader", "community.visits", visits.into_bytes()),
    ] {
        let reply = hub.push(caller, dataset, CSV, rows).await;
        assert_eq!(reply.json()["rows_rejected"], 0, "{}", reply.text());
    }
    // A side of a join is held in memory whole.
    let all = vec!["SELECT symptoms FROM community.visits"; 40].join(" UNION ALL ");
    let sql = format!("SELECT count(*) FROM ({all}) a, community.visits b WHERE a.symptoms || 'x' > b.symptoms");
    hub.ask("grid-worker", "case-management", &sql).await
}

#[tokio::test(flavor = "multi_thread")]
async fn how_much_memory_a_question_takes_tells_nothing_of_other_rows() {
    let (short, long) = (asked_beside("发热").await, asked_beside(&"发热".repeat(300)).await);
    assert_eq!(short.rows(), "[16000]");
    assert_eq!(long.rows(), short.rows(), "{}", long.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_remembered_is_found_by_who_asked_it_alone() {
    let mut hub = TestHub::with_city().await;
    hub.stop();
    let parts = Parts::of(&hub, query::Limits::default().tables).await;
    let (view, other, tables) = (parts.view(ANALYST), parts.view(PLANNER), parts.store.snapshot());
    assert!(!parts.knows(&view, &tables, CASES).await);
    parts.ask(&view, &tables, CASES).await;
    assert!(parts.knows(&view, &tables, CASES).await);
    assert!(!parts.knows(&view, &tables, &format!("{CASES} ")).await);
    assert!(!parts.knows(&other, &tables, CASES).await);
    // The same caller once policies have decided anew.
    hub.clock.step(TimeDelta::hours(2));
    let later = parts.view(ANALYST);
    assert!(!Arc::ptr_eq(&view, &later));
    assert!(!parts.knows(&later, &tables, CASES).await);
    // Of many, those asked last.
    for number in 0..100 {
        parts.ask(&later, &tables, &format!("{CASES} LIMIT {number}")).await;
    }
    assert!(!parts.knows(&later, &tables, &format!("{CASES} LIMIT 0")).await);
    assert!(parts.knows(&later, &tables, &format!("{CASES} LIMIT 99")).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_remembered_that_holds_for_a_moment() {
    let mut hub = TestHub::with_city().await;
    hub.stop();
    let parts = Parts::of(&hub, query::Limits::default().tables).await;
    let (view, tables) = (parts.view(ANALYST), parts.store.snapshot());
    for sql in [
        "SELECT case_id FROM cases WHERE confirmed_date < now()",
        "SELECT case_id, current_date FROM cases",
        "EXPLAIN SELECT case_id FROM cases",
    ] {
        parts.ask(&view, &tables, sql).await;
        assert!(!parts.knows(&view, &tables, sql).await, "{sql}");
    }
    // Plans that take much memory.
    let columns: Vec<_> = (0..32).map(|at| format!("c{at}.case_id AS a{at}, c{at}.sex AS b{at}")).collect();
    let joins: String = (1..32).map(|at| format!(" JOIN cases c{at} ON c{at}.case_id = c0.case_id")).collect();
    let wide = format!("SELECT {} FROM cases c0{joins}", columns.join(", "));
    parts.ask(&view, &tables, &wide).await;
    assert!(!parts.knows(&view, &tables, &wide).await);
    let files = Parts::of(&hub, 0).await;
    let (view, tables) = (files.view(ANALYST), files.store.snapshot());
    files.ask(&view, &tables, CASES).await;
    assert!(!files.knows(&view, &tables, CASES).await);
}

/// Erased rows would live on in it.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_remembered_holds_no_rows() {
    let mut hub = TestHub::with_city().await;
    hub.stop();
    let parts = Parts::of(&hub, query::Limits::default().tables).await;
    let (view, tables) = (parts.view(ANALYST), parts.store.snapshot());
    let rows = in_memory(&tables, "cdc.cases").await.unwrap();
    let held = Arc::strong_count(&rows);
    for sql in [
        CASES,
        "SELECT count(temperature) FROM visits JOIN cases ON visits.id_no = cases.id_no",
        "SELECT case_id FROM cases WHERE sex = (SELECT max(sex) FROM cases)",
        "SELECT count(*) FROM cases WHERE id_no IN (SELECT id_no FROM tests)",
        "SELECT a.sex, count(*) FROM cases a JOIN cases b ON a.id_no = b.id_no GROUP BY 1 ORDER BY 2 LIMIT 3",
        "SELECT grid_code, row_number() OVER (PARTITION BY sex ORDER BY confirmed_date) FROM cases",
    ] {
        parts.ask(&view, &tables, sql).await;
        assert!(parts.knows(&view, &tables, sql).await, "{sql}");
        assert_eq!(Arc::strong_count(&rows), held, "{sql}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_asked_again_is_answered_from_what_stands_now() {
    let hub = TestHub::start().await;
    let ask = async |sql: &str| hub.ask(ANALYST.0, ANALYST.1, sql).await.rows();
    let push = async |caller: &str, dataset: &str, file: &str| {
        let reply = hub.push(caller, dataset, CSV, fixture(file)).await;
        assert_eq!(reply.status, 201, "{}", reply.text());
    };
    let (residents, today) =
        ("SELECT count(*), max(birth_date) FROM residents", "SELECT current_date, count(*) FROM cases");
    push("platform-uploader", "platform.divisions", "platform.divisions.csv").await;
    assert_eq!(ask(residents).await, "[0,null]");
    push("community-uploader", "community.residents", "community.residents.csv").await;
    let first = ask(residents).await;
    assert_ne!(first, "[0,null]");
    assert_eq!(ask(residents).await, first);
    push("community-uploader", "community.residents", "community.residents.2.csv").await;
    let second = ask(residents).await;
    assert_ne!(second, first);
    assert_eq!(ask("SELECT count(*), max(birth_date) FROM community.residents").await, second);
    assert_eq!(ask(today).await, "[\"2026-01-07\",0]");
    hub.clock.step(TimeDelta::days(1));
    assert_eq!(ask(today).await, "[\"2026-01-08\",0]");
}

/// What one run of a plan finds, as a sort its limit and a join one of its sides, is nothing to the next.
#[tokio::test(flavor = "multi_thread")]
async fn one_run_of_a_plan_knows_nothing_of_another() {
    let hub = TestHub::start().await;
    let others = TestHub::in_files().await;
    let questions = [
        "SELECT birth_date, sex FROM residents ORDER BY birth_date DESC, id_no LIMIT 3",
        "SELECT birth_date, sex FROM residents ORDER BY birth_date, id_no LIMIT 2 OFFSET 1",
        "SELECT count(*), min(r.birth_date) FROM residents r JOIN residents s ON r.birth_date = s.birth_date",
        "SELECT sex, count(*) FROM residents GROUP BY sex ORDER BY sex",
        "SELECT DISTINCT residence_type FROM residents ORDER BY 1",
        "SELECT count(*) FROM residents WHERE birth_date < '1990-01-01' AND sex = '男'",
        "SELECT max(birth_date) FROM residents",
        "SELECT sex, row_number() OVER (ORDER BY birth_date, id_no) FROM residents ORDER BY 2 LIMIT 4",
        "SELECT sex FROM residents UNION ALL SELECT sex FROM cases ORDER BY 1 LIMIT 5",
        "SELECT count(*) FROM residents r WHERE NOT EXISTS (SELECT 1 FROM cases c WHERE c.id_no = r.id_no)",
    ];
    let files = ["platform.divisions", "community.residents", "cdc.cases", "community.residents.2"];
    let uploaders = ["platform-uploader", "community-uploader", "cdc-uploader", "community-uploader"];
    for (file, caller) in files.into_iter().zip(uploaders) {
        for hub in [&hub, &others] {
            let dataset = file.trim_end_matches(".2");
            assert_eq!(hub.push(caller, dataset, CSV, fixture(&format!("{file}.csv"))).await.status, 201);
        }
        for sql in questions {
            let known = others.ask(ANALYST.0, ANALYST.1, sql).await.rows();
            let asking = (0..4).map(|_| hub.ask(ANALYST.0, ANALYST.1, sql));
            for reply in futures::future::join_all(asking).await {
                assert_eq!(reply.rows(), known, "{sql} after {file}");
            }
        }
    }
}

/// Who may be counted is decided anew each time.
#[tokio::test(flavor = "multi_thread")]
async fn protected_questions_are_answered_from_what_is_published_now() {
    let hub = TestHub::in_plain_numbers().await;
    let ask = async |sql: &str| hub.ask(ANALYST.0, ANALYST.1, sql).await;
    let push = async |caller: &str, dataset: &str| {
        assert_eq!(hub.push(caller, dataset, CSV, fixture(&format!("{dataset}.csv"))).await.status, 201);
    };
    let sql = "SELECT count(temperature), count(*) FROM visits";
    push("platform-uploader", "platform.divisions").await;
    for _ in 0..2 {
        let reply = ask(sql).await;
        assert_eq!(
            (reply.rows().as_str(), reply.json()["protection"]["mode"].as_str()),
            ("[null,null]", Some("protected"))
        );
    }
    push("community-uploader", "community.visits").await;
    let first = ask(sql).await.rows();
    assert_ne!(first, "[null,null]");
    for _ in 0..2 {
        let reply = ask(sql).await;
        assert_eq!((reply.rows(), reply.json()["protection"]["mode"].as_str()), (first.clone(), Some("protected")));
    }
    // Written otherwise, it is planned as for the first time.
    assert_eq!(ask(&format!("{sql} ")).await.rows(), first);
    // What is wished for besides is not what is known.
    let wished = json!({"sql": sql, "purpose": ANALYST.1, "interval": true});
    for _ in 0..2 {
        let wished = hub.post(&hub.token(ANALYST.0), "/v1/sql", &wished, "").await.json();
        assert_eq!(wished["columns"].as_array().unwrap().len(), 6, "{wished}");
    }
    assert_eq!(ask(sql).await.json()["columns"].as_array().unwrap().len(), 2);
}

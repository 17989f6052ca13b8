//! Small tables in memory, and questions that are asked again: what is remembered is how they are answered, and neither
//! rows nor times; nobody finds what others asked.

use std::sync::Arc;

use chrono::TimeDelta;
use gridhub::{
    dataset::{DatasetName, contract},
    disclose::{self, Gate, Settings, Wishes},
    keys::Keys,
    policy::{Policy, View},
    pseudonym::Pseudonyms,
    query::{self, Asked, Bounds, Engine, defences::Defences},
    release::{ledger::Ledger, noise::NoiseKey},
    store::{Snapshot, Store, Stored, materialised::Materialised, publication::Publisher},
};
use uuid::Uuid;

use crate::support::{CSV, TestHub, fixture, repository};

const ANALYST: (&str, &str) = ("health-analyst", "epidemiology");
const PLANNER: (&str, &str) = ("health-analyst", "supply-planning");
const CASES: &str = "SELECT case_id, confirmed_date FROM cases WHERE sex = '女'";

/// The hub's own parts over the folder of one that was stopped.
struct Parts {
    engine: Arc<Engine>,
    policy: Policy,
    store: Store,
    gate: Arc<Gate>,
}

impl Parts {
    /// With so many bytes for tables in memory.
    async fn of(hub: &TestHub, tables: usize) -> Self {
        let (folder, clock, limits) = (hub.folder.path(), hub.clock.clone(), query::Limits::default());
        let clock: gridhub::audit::Clock = Arc::new(move || clock.now());
        let datasets = contract::load_folder(&repository().join("schemas")).unwrap();
        let keys = Arc::new(Keys::open(&folder.join("keys"), &hub.data(), true).unwrap());
        let metadata = Arc::new(hub.metadata());
        let publisher = Publisher::new(Arc::clone(&metadata), &keys, Arc::clone(&clock));
        let (ledger, defences) = (Ledger::open(metadata).unwrap(), Defences::default());
        let gate = Gate::new(NoiseKey::new(&keys), ledger, Settings::default(), defences);
        let runtime = query::runtime(&folder.join(Uuid::now_v7().to_string()), &limits).unwrap();
        let folder = hub.data().join("tables");
        let store = Store::open(&folder, &datasets, Arc::clone(&runtime), publisher, tables).await.unwrap();
        let policy = Policy::load(&repository().join("policies"), &datasets, Arc::clone(&clock)).unwrap();
        let engine = Engine::new(runtime, Arc::new(Pseudonyms::new(keys)), limits, clock, defences).unwrap();
        Self { engine: Arc::new(engine), policy, store, gate: Arc::new(gate) }
    }

    fn view(&self, (caller, purpose): (&str, &str)) -> Arc<View> {
        self.policy.view(&self.policy.caller(caller).unwrap(), purpose).unwrap()
    }

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
async fn nothing_is_remembered_that_holds_for_a_moment_or_is_protected() {
    let mut hub = TestHub::with_city().await;
    hub.stop();
    let parts = Parts::of(&hub, query::Limits::default().tables).await;
    let (view, tables) = (parts.view(ANALYST), parts.store.snapshot());
    for sql in [
        "SELECT case_id FROM cases WHERE confirmed_date < now()",
        "SELECT case_id, current_date FROM cases",
        "SELECT count(temperature) FROM visits",
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
